//! Setting up, starting and stopping an authority.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use pitser_ksi::pki::Subject;
use pitser_ksi::time::Second;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::calendar::{Calendar, CalendarError, CalendarReader};
use crate::clock::Clock;
#[cfg(feature = "cluster")]
use crate::cluster::{Cluster, ClusterError, Start, Turns};
use crate::config::Config;
use crate::engine::{Engine, Press, Stopped, next_multiple};
use crate::identity::{Identity, IdentityError};
use crate::ledger::Tenure;
use crate::pace::{ClockFault, Pace};
use crate::publications::{Publications, PublicationsError, Published, Publisher};
use crate::round::Rounds;
use crate::service::{Service, UserError, http, tcp};

/// The service: aggregation rounds, calendar, extender and publications.
#[derive(Debug)]
pub struct Authority(());

impl Authority {
    /// Makes the data folder of a new authority: an empty calendar from `genesis`
    /// on, a signing key, a certificate for `subject`, and a publications file
    /// without publications. Takes about a second.
    ///
    /// Nothing in an existing data folder is changed.
    ///
    /// # Errors
    /// [`AuthorityError`]; a key in `dir` is [`IdentityError::Exists`], a calendar
    /// [`CalendarError::Exists`].
    pub fn init(dir: &Path, genesis: Second, subject: &Subject) -> Result<(), AuthorityError> {
        Identity::refuse_existing(dir)?;
        Calendar::create(&dir.join(CALENDAR), genesis)?;
        Identity::create(dir, subject, genesis)?;
        let identity = Identity::open(dir)?;
        Publications::create(dir, &identity, genesis)?;
        Ok(())
    }

    /// Starts serving, and returns when the sockets listen.
    ///
    /// Runs on the current tokio runtime until [`AuthorityHandle::shutdown`], or
    /// until a fault stops the rounds ([`AuthorityHandle::stopped`]).
    ///
    /// # Errors
    /// [`AuthorityError`]; nothing is left running.
    pub async fn start(
        config: Config,
        clock: impl Clock,
    ) -> Result<AuthorityHandle, AuthorityError> {
        let clock: Arc<dyn Clock> = Arc::new(clock);
        let now = clock.now();
        let calendar = Calendar::open(&config.dir.join(CALENDAR))?;
        let newest = calendar
            .head()
            .unwrap_or(Second(calendar.genesis().0.saturating_sub(1)));
        let is_alone = !config.is_clustered();
        // A node looks at its clock whenever it begins to lead.
        let since = if is_alone { newest } else { now.ended() };
        let pace = Pace::start(now, since, config.max_clock_jump, config.max_outage_s)?;
        let identity = Arc::new(Identity::open(&config.dir)?);
        identity.check_valid(now.ended())?;
        let load = match is_alone {
            true => Publications::open,
            false => Publications::load,
        };
        let reader = calendar.reader();
        let calendar = Arc::new(Mutex::new(calendar));
        let publications = Arc::new(load(&config.dir, reader.clone(), Arc::clone(&identity))?);
        let tcp_listener = bind("TCP", config.tcp).await?;
        let http_listener = match config.http {
            Some(address) => Some(bind("HTTP", address).await?),
            None => None,
        };
        let tcp_address = local_address("TCP", config.tcp, &tcp_listener)?;
        let http_address = match (&http_listener, config.http) {
            (Some(listener), Some(asked)) => Some(local_address("HTTP", asked, listener)?),
            _ => None,
        };

        // What arrives from now on belongs to a second that has not ended.
        let closed = now.ended().max(newest);
        let rounds = Rounds::after(closed, config.limits.requests_per_round);
        let service = Arc::new(Service::new(
            &config,
            Arc::clone(&clock),
            rounds,
            reader.clone(),
            Arc::clone(&publications),
        )?);
        #[cfg(feature = "cluster")]
        let cluster = match &config.cluster {
            Some(cluster) => Some(Arc::new(Cluster::join(Start {
                config: cluster.clone(),
                calendar: Arc::clone(&calendar),
                identity: Arc::clone(&identity),
                publications: Arc::clone(&publications),
                clock: Arc::clone(&clock),
                max_clock_jump: config.max_clock_jump,
            })?)),
            None => None,
        };
        let publisher = Publisher {
            publications: Arc::clone(&publications),
            #[cfg(feature = "cluster")]
            cluster: cluster.clone(),
        };
        let (stop, stopping) = watch::channel(false);
        let (reports, rounds) = watch::channel(RoundReport {
            second: closed,
            requests: 0,
        });
        let engine = Engine {
            service: Arc::clone(&service),
            clock: Arc::clone(&clock),
            pace,
            press: Press {
                ledger: calendar,
                identity: Arc::clone(&identity),
                machine_id: config.machine_id.into(),
                trees: Arc::default(),
            },
            closed,
            tenure: Tenure::unlimited(),
            publisher: publisher.clone(),
            publish_every_s: config.publish_every_s,
            publish_at: next_multiple(closed, config.publish_every_s.max(1)),
            reports,
            stop: stopping.clone(),
            #[cfg(feature = "cluster")]
            turns: cluster.map(|cluster| Turns {
                cluster,
                max_clock_jump: config.max_clock_jump,
                max_outage_s: config.max_outage_s,
            }),
        };
        let (stopped, on_stop) = watch::channel(None);
        let engine = tokio::spawn(async move {
            let outcome = engine.run().await;
            if let Err(fault) = &outcome {
                tracing::error!(error = %fault, "rounds stopped: nothing is signed any more");
            }
            stopped.send_replace(Some(outcome.map_err(Arc::new)));
        });
        let mut servers = vec![tokio::spawn(tcp::serve(
            tcp_listener,
            Arc::clone(&service),
            stopping.clone(),
        ))];
        if let Some(listener) = http_listener {
            servers.push(tokio::spawn(http::serve(
                listener,
                Arc::clone(&service),
                stopping,
            )));
        }
        Ok(AuthorityHandle {
            tcp_address,
            http_address,
            clock,
            service,
            calendar: reader,
            identity,
            publisher,
            rounds,
            on_stop,
            stop,
            engine,
            servers,
        })
    }
}

/// A round that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundReport {
    /// The newest second of the calendar; durable.
    pub second: Second,
    /// Requests that were signed in it.
    pub requests: usize,
}

/// A running authority. Dropping it stops the authority like
/// [`AuthorityHandle::shutdown`], which besides waits until everybody is answered.
pub struct AuthorityHandle {
    tcp_address: SocketAddr,
    http_address: Option<SocketAddr>,
    clock: Arc<dyn Clock>,
    service: Arc<Service>,
    calendar: CalendarReader,
    identity: Arc<Identity>,
    publisher: Publisher,
    rounds: watch::Receiver<RoundReport>,
    on_stop: watch::Receiver<Option<Outcome>>,
    stop: watch::Sender<bool>,
    engine: JoinHandle<()>,
    servers: Vec<JoinHandle<()>>,
}

impl fmt::Debug for AuthorityHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorityHandle")
            .field("tcp_address", &self.tcp_address)
            .field("http_address", &self.http_address)
            .field("head", &self.head())
            .finish_non_exhaustive()
    }
}

type Outcome = Result<(), Arc<Stopped>>;

impl AuthorityHandle {
    /// Where aggregator and extender PDUs are accepted over TCP.
    pub fn tcp_address(&self) -> SocketAddr {
        self.tcp_address
    }

    /// Where HTTP is served, if it is.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    /// The calendar's newest second, if it has any.
    pub fn head(&self) -> Option<Second> {
        self.calendar.head()
    }

    /// A view of the calendar.
    pub fn calendar(&self) -> CalendarReader {
        self.calendar.clone()
    }

    /// The newest round; changes once a second.
    pub fn rounds(&self) -> watch::Receiver<RoundReport> {
        self.rounds.clone()
    }

    /// Requests that wait for their round to close.
    pub fn waiting(&self) -> usize {
        self.service.waiting()
    }

    /// Publishes the calendar's newest second.
    ///
    /// # Errors
    /// [`PublicationsError`]; the file is as it was.
    pub async fn publish(&self) -> Result<Published, PublicationsError> {
        self.publisher.publish(self.clock.now().ended()).await
    }

    /// The bytes of the newest publications file.
    pub fn publications_file(&self) -> Arc<[u8]> {
        self.publisher.publications.file()
    }

    /// The certificate that verifies calendar roots and publications files, as PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.identity.certificate_pem
    }

    /// What a verifier demands of the publications file's signer, e.g.
    /// `email=publications@example.org`.
    pub fn constraint(&self) -> &str {
        &self.identity.constraint
    }

    /// Waits until rounds have ended, and says why: `Ok` after a shutdown.
    ///
    /// # Errors
    /// [`Stopped`]: nothing is signed any more; extending still works.
    pub async fn stopped(&self) -> Result<(), Arc<Stopped>> {
        let mut on_stop = self.on_stop.clone();
        match on_stop
            .wait_for(Option::is_some)
            .await
            .map(|outcome| outcome.clone())
        {
            Ok(Some(outcome)) => outcome,
            Ok(None) | Err(_) => Err(Arc::new(Stopped::Interrupted)),
        }
    }

    /// Accepts nothing more, answers what was accepted when its round closes, and
    /// returns when all connections are closed.
    ///
    /// # Errors
    /// What stopped the rounds, if that was not this shutdown.
    pub async fn shutdown(self) -> Result<(), Arc<Stopped>> {
        self.stop.send_replace(true);
        let outcome = self.stopped().await;
        for server in self.servers {
            let _ = server.await;
        }
        let _ = self.engine.await;
        outcome
    }
}

/// Why an authority cannot be set up or started. Says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// The calendar cannot be made or opened.
    #[error(transparent)]
    Calendar(#[from] CalendarError),
    /// The signing key or certificate cannot be made or used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The publications file cannot be made or read.
    #[error(transparent)]
    Publications(#[from] PublicationsError),
    /// The clock contradicts the calendar.
    #[error(transparent)]
    Clock(#[from] ClockFault),
    /// The cluster's configuration cannot be right.
    #[cfg(feature = "cluster")]
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The list of users cannot be right.
    #[error(transparent)]
    Users(#[from] UserError),
    /// A socket cannot listen.
    #[error(
        "cannot listen for {protocol} on {address}: {source}; {}",
        bind_advice(source)
    )]
    Bind {
        /// TCP or HTTP.
        protocol: &'static str,
        /// The configured address.
        address: SocketAddr,
        /// The operating system's answer.
        source: io::Error,
    },
}

fn bind_advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => "another program uses this port: stop it or choose another",
        io::ErrorKind::PermissionDenied => "choose a port above 1023, or allow this one",
        io::ErrorKind::AddrNotAvailable => "this machine does not have that address",
        _ => "check the address in the configuration",
    }
}

async fn bind(protocol: &'static str, address: SocketAddr) -> Result<TcpListener, AuthorityError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| AuthorityError::Bind {
            protocol,
            address,
            source,
        })
}

fn local_address(
    protocol: &'static str,
    asked: SocketAddr,
    listener: &TcpListener,
) -> Result<SocketAddr, AuthorityError> {
    listener
        .local_addr()
        .map_err(|source| AuthorityError::Bind {
            protocol,
            address: asked,
            source,
        })
}

/// The calendar's folder inside the data folder.
pub(crate) const CALENDAR: &str = "calendar";
