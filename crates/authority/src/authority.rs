//! Setting up, starting and stopping an authority.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use pitser_ksi::pki::Subject;
use pitser_ksi::publications_file::PublicationsFile;
use pitser_ksi::time::Second;
use pitser_tlog::note::VerifierKey;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::calendar::{Calendar, CalendarError, CalendarReader};
use crate::clock::Clock;
#[cfg(feature = "cluster")]
use crate::cluster::{Cluster, ClusterError, Start, Turns};
use crate::config::{Config, User};
use crate::engine::{Engine, Press, Stopped, next_multiple};
use crate::identity::{Brought, Identity, IdentityError};
use crate::ledger::Tenure;
use crate::log::{self, Keeper, KeeperHandle, LogError, LogStatus, Setup, Site};
use crate::metrics::Metrics;
use crate::operations::Housekeeper;
use crate::pace::{ClockFault, Pace};
use crate::publications::{Publications, PublicationsError, Published, Publisher};
use crate::round::Rounds;
use crate::service::http::admin::Admin;
use crate::service::http::tls::Tls;
use crate::service::http::{self, Door};
use crate::service::{Service, TlsError, tcp};
use crate::users::{UserError, spent};

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
        log::create_key(dir)?;
        Ok(())
    }

    /// As [`Self::init`], with a key and a certificate that were made elsewhere.
    ///
    /// # Errors
    /// [`AuthorityError`]; [`IdentityError::NoPair`], [`IdentityError::OtherSubject`]
    /// and [`IdentityError::NotValid`] before anything is made.
    pub fn init_with(
        dir: &Path,
        genesis: Second,
        brought: &Brought<'_>,
    ) -> Result<(), AuthorityError> {
        Identity::refuse_existing(dir)?;
        brought.check(genesis)?;
        Calendar::create(&dir.join(CALENDAR), genesis)?;
        Identity::import(dir, brought)?;
        Publications::create(dir, &Identity::open(dir)?, genesis)?;
        Ok(())
    }

    /// Publishes the newest second of an authority that does not run.
    ///
    /// # Errors
    /// [`AuthorityError`]; [`CalendarError::InUse`] if it does run.
    pub fn publish_stopped(dir: &Path, now: Second) -> Result<Published, AuthorityError> {
        let calendar = Calendar::open(&dir.join(CALENDAR))?;
        let identity = Arc::new(Identity::open(dir)?);
        identity.check_valid(now)?;
        let publications = Publications::open(dir, calendar.reader(), identity)?;
        Ok(publications.publish(now)?)
    }

    /// Looks at an authority's calendar and publications without writing, beside a
    /// running one too.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn examine(dir: &Path) -> Result<Examined, AuthorityError> {
        // First the file: all that it publishes is in the calendar that is read next.
        let publications = Publications::read(dir)?;
        let identity = Identity::open_public(dir)?;
        Ok(Examined {
            calendar: CalendarReader::open_beside(&dir.join(CALENDAR))?,
            publications,
            certificate_pem: identity.0,
            constraint: identity.1,
        })
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
        let keeper = Keeper::open(Setup {
            dir: &config.dir,
            calendar: reader.clone(),
            config: &config.log,
        })?;
        let listeners = Listeners::bind(&config).await?;
        let addresses = listeners.addresses.clone();
        let tls = listeners.tls.clone();
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
            publications,
            #[cfg(feature = "cluster")]
            cluster: cluster.clone(),
        };

        let (stop, stopping) = watch::channel(false);
        let log = Site::new(&keeper, stopping.clone(), config.limits.connections);
        // What arrives from now on belongs to a second that has not ended.
        let closed = now.ended().max(newest);
        let rounds = Rounds::after(closed, config.limits.requests_per_round);
        let service = Arc::new(Service::new(
            &config,
            Arc::clone(&clock),
            rounds,
            reader.clone(),
            publisher.clone(),
            log,
        )?);
        if let Some(path) = &config.operations.spent {
            service.users.restore(spent::read(path));
        }
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
                bell: keeper.bell(),
            },
            closed,
            tenure: Tenure::unlimited(),
            publisher,
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
        let mut servers = listeners.serve(&service, &stopping);
        let housekeeper = Housekeeper {
            service: Arc::clone(&service),
            rounds: rounds.clone(),
            spent: config.operations.spent,
        };
        servers.push(tokio::spawn(housekeeper.run()));
        let log = keeper.start()?;
        Ok(AuthorityHandle {
            addresses,
            tls,
            service,
            calendar: reader,
            identity,
            rounds,
            on_stop,
            stop,
            engine,
            servers,
            log,
        })
    }
}

/// The sockets of an authority that starts.
struct Listeners {
    tcp: TcpListener,
    doors: Vec<(TcpListener, Door)>,
    tls: Option<Arc<Tls>>,
    admin: Option<Admin>,
    addresses: Addresses,
}

/// Where an authority listens.
#[derive(Debug, Clone)]
struct Addresses {
    tcp: SocketAddr,
    http: Option<SocketAddr>,
    https: Option<SocketAddr>,
    monitor: Option<SocketAddr>,
}

impl Listeners {
    async fn bind(config: &Config) -> Result<Self, AuthorityError> {
        let (tcp, tcp_address) = bind("TCP", config.tcp).await?;
        let mut addresses = Addresses {
            tcp: tcp_address,
            http: None,
            https: None,
            monitor: None,
        };
        let mut doors = Vec::new();
        if let Some(address) = config.http {
            let (listener, address) = bind("HTTP", address).await?;
            addresses.http = Some(address);
            doors.push((listener, Door::Http));
        }
        let operations = &config.operations;
        let mut tls = None;
        if let Some(https) = &operations.https {
            let loaded = Arc::new(Tls::load(https)?);
            let (listener, address) = bind("HTTPS", https.address).await?;
            addresses.https = Some(address);
            doors.push((listener, Door::Https(Arc::clone(&loaded))));
            tls = Some(loaded);
        }
        if let Some(address) = operations.monitor {
            let (listener, address) = bind("monitors", address).await?;
            addresses.monitor = Some(address);
            doors.push((listener, Door::Monitor));
        }
        let admin = operations.admin.as_deref().map(|path| {
            Admin::bind(path).map_err(|source| AuthorityError::Admin {
                path: path.to_owned(),
                source,
            })
        });
        Ok(Self {
            tcp,
            doors,
            tls,
            admin: admin.transpose()?,
            addresses,
        })
    }

    fn serve(self, service: &Arc<Service>, stop: &watch::Receiver<bool>) -> Vec<JoinHandle<()>> {
        let tcp = tcp::serve(self.tcp, Arc::clone(service), stop.clone());
        let mut servers = vec![tokio::spawn(tcp)];
        for (listener, door) in self.doors {
            let served = http::serve(listener, door, Arc::clone(service), stop.clone());
            servers.push(tokio::spawn(served));
        }
        if let Some(admin) = self.admin {
            let served = admin.serve(Arc::clone(service), stop.clone());
            servers.push(tokio::spawn(served));
        }
        servers
    }
}

/// What [`Authority::examine`] found.
#[derive(Debug)]
pub struct Examined {
    /// The calendar as it stood then.
    pub calendar: CalendarReader,
    /// What was published; its signature is still to be verified.
    pub publications: PublicationsFile,
    /// The authority's certificate, in PEM.
    pub certificate_pem: String,
    /// What verifiers demand of its subject.
    pub constraint: String,
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
    addresses: Addresses,
    tls: Option<Arc<Tls>>,
    service: Arc<Service>,
    calendar: CalendarReader,
    identity: Arc<Identity>,
    rounds: watch::Receiver<RoundReport>,
    on_stop: watch::Receiver<Option<Outcome>>,
    stop: watch::Sender<bool>,
    engine: JoinHandle<()>,
    servers: Vec<JoinHandle<()>>,
    log: KeeperHandle,
}

impl fmt::Debug for AuthorityHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorityHandle")
            .field("addresses", &self.addresses)
            .field("head", &self.head())
            .finish_non_exhaustive()
    }
}

type Outcome = Result<(), Arc<Stopped>>;

impl AuthorityHandle {
    /// Where aggregator and extender PDUs are accepted over TCP.
    pub fn tcp_address(&self) -> SocketAddr {
        self.addresses.tcp
    }

    /// Where HTTP is served, if it is.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.addresses.http
    }

    /// Where HTTPS is served, if it is.
    pub fn https_address(&self) -> Option<SocketAddr> {
        self.addresses.https
    }

    /// Where monitors are served, if they are.
    pub fn monitor_address(&self) -> Option<SocketAddr> {
        self.addresses.monitor
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.service.metrics
    }

    /// Whether requests would be signed soon; what is wrong otherwise.
    ///
    /// # Errors
    /// One line of text.
    pub fn ready(&self) -> Result<(), String> {
        self.service.ready().map(drop)
    }

    /// From now on these users may ask. Connections and requests go on; who stays
    /// keeps what they have spent.
    ///
    /// # Errors
    /// [`UserError`]; nothing has changed.
    pub fn replace_users(&self, users: &[User]) -> Result<(), UserError> {
        self.service.users.replace(users)
    }

    /// Reads the certificate of HTTPS and its key again, for connections from now on.
    /// Reads files; does nothing without HTTPS.
    ///
    /// # Errors
    /// [`TlsError`]; the old ones stay.
    pub fn reload_tls(&self) -> Result<(), TlsError> {
        self.tls.as_ref().map_or(Ok(()), |tls| tls.reload())
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
        let service = Arc::clone(&self.service);
        tokio::task::spawn_blocking(move || service.publish())
            .await
            .map_err(|_| PublicationsError::Interrupted)?
    }

    /// The bytes of the newest publications file.
    pub fn publications_file(&self) -> Arc<[u8]> {
        self.service.publications_file()
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

    /// The key of the calendar's log, which witnesses are told; its name is the
    /// log's origin.
    pub fn log_key(&self) -> &VerifierKey {
        self.log.key()
    }

    /// How the calendar's log is doing, and its witnesses.
    pub fn log_status(&self) -> LogStatus {
        self.log.status()
    }

    /// Waits until `wanted` holds of the calendar's log.
    pub async fn log_until(&self, wanted: impl FnMut(&LogStatus) -> bool) -> LogStatus {
        self.log.until(wanted).await
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
        // It has what the last round wrote.
        let log = self.log;
        let _ = tokio::task::spawn_blocking(move || log.stop()).await;
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
    /// The calendar's log cannot be opened.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The list of users cannot be right.
    #[error(transparent)]
    Users(#[from] UserError),
    /// HTTPS has no certificate that can be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The admin socket cannot be made.
    #[error(
        "cannot make the admin socket {}: {source}; its path has at most 107 bytes, its folder \
         must be the service's own",
        path.display()
    )]
    Admin {
        /// Its path.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A socket cannot listen.
    #[error(
        "cannot listen for {protocol} on {address}: {source}; {}",
        bind_advice(source)
    )]
    Bind {
        /// TCP, HTTP, HTTPS or monitors.
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

/// A listener, and its address with the real port.
async fn bind(
    protocol: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), AuthorityError> {
    let bound = async {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    bound.await.map_err(|source| AuthorityError::Bind {
        protocol,
        address,
        source,
    })
}

/// The calendar's folder inside the data folder.
pub(crate) const CALENDAR: &str = "calendar";
