//! Setting up, starting and stopping an authority.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use pitser_ksi::pki::Subject;
use pitser_ksi::publications_file::PublicationsFile;
use pitser_ksi::time::Second;
use pitser_tlog::note::VerifierKey;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::beat::Beat;
use crate::calendar::{Calendar, CalendarError, CalendarReader};
use crate::clock::Clock;
#[cfg(feature = "cluster")]
use crate::cluster::{Cluster, ClusterError, Start, Turns};
use crate::config::Config;
use crate::engine::{Engine, Press, Stopped};
use crate::fleet::{Fleet, FleetError};
use crate::handover::{Examiner, HandedIn};
use crate::identity::{Brought, BroughtKey, Identity, IdentityError};
use crate::ledger::Tenure;
use crate::listeners::Listeners;
use crate::log::{self, Keeper, KeeperHandle, LogError, LogStatus, Setup, Site};
use crate::pace::{ClockFault, Pace};
use crate::publications::{self, Due, Publications, PublicationsError, Published, Publisher};
use crate::publicity::{Announced, Herald, Issuer, Publicity, Schedule};
use crate::round::Rounds;
use crate::running::{Launch, RoundReport, Running};
use crate::service::{Own, Past, Service, TlsError};
use crate::signatory::{Pinned, Signatory};
use crate::signer::SignerCommand;
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
        first_file(dir, &Identity::open(dir, None)?, genesis)?;
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
        let signer = match brought.key {
            BroughtKey::Pem(_) => None,
            BroughtKey::Behind(command) => Some(command),
        };
        first_file(dir, &Identity::open(dir, signer)?, genesis)
    }

    /// Keeps the publications key away from an authority: of a new one before
    /// [`Self::init`], or of one that does not run.
    ///
    /// From then on it publishes nothing by itself. Without a publications file it does
    /// not start; the first is handed in by [`Self::hand_in_stopped`].
    ///
    /// # Errors
    /// [`IdentityError::OtherSubject`], [`IdentityError::NotValid`]; there is a pinned
    /// certificate already: [`IdentityError::Exists`].
    pub fn pin(dir: &Path, pinned: &Pinned<'_>, now: Second) -> Result<(), AuthorityError> {
        Ok(pinned.store(dir, now)?)
    }

    /// Hands a publications file that was made elsewhere to an authority that does not
    /// run. One that does takes it on its admin socket.
    ///
    /// # Errors
    /// [`PublicationsError::Refused`], and nothing has changed;
    /// [`CalendarError::InUse`] if it does run.
    pub fn hand_in_stopped(
        dir: &Path,
        file: &[u8],
        now: Second,
    ) -> Result<HandedIn, AuthorityError> {
        let calendar = Calendar::open(&dir.join(CALENDAR))?;
        let own = Identity::certificate(dir)?;
        let examiner = Examiner {
            calendar: &calendar.reader(),
            own_der: own.der(),
            signatory: &Signatory::open(dir)?,
            now,
        };
        Ok(Publications::hand_in_stopped(dir, &examiner, file)?)
    }

    /// What somebody with a publications key that is kept elsewhere is to publish next.
    /// Works beside a running authority too.
    ///
    /// # Errors
    /// [`AuthorityError`]; [`PublicationsError::OwnKey`] if the key is not elsewhere.
    pub fn due(config: &Config) -> Result<Due, AuthorityError> {
        if !Signatory::open(&config.dir)?.is_elsewhere {
            return Err(PublicationsError::OwnKey.into());
        }
        let newest = Publications::read(&config.dir)?.latest().map(|it| it.data);
        let calendar = CalendarReader::open_beside(&config.dir.join(CALENDAR))?;
        Ok(publications::due(&calendar, newest, Schedule::of(config))?)
    }

    /// Publishes the newest second of an authority that does not run, and whose key
    /// is in its folder or behind `signer`.
    ///
    /// # Errors
    /// [`AuthorityError`]; [`CalendarError::InUse`] if it does run.
    pub fn publish_stopped(
        dir: &Path,
        signer: Option<&SignerCommand>,
        now: Second,
    ) -> Result<Published, AuthorityError> {
        let calendar = Calendar::open(&dir.join(CALENDAR))?;
        let identity = Arc::new(Identity::open(dir, signer)?);
        identity.check_valid(now)?;
        let signatory = Signatory::beside(dir, &identity)?;
        let publications = Publications::open(dir, calendar.reader(), identity, signatory)?;
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
        let signatory = Signatory::open(dir)?;
        Ok(Examined {
            calendar: CalendarReader::open_beside(&dir.join(CALENDAR))?,
            publications,
            certificate_pem: signatory.certificate_pem,
            constraint: signatory.constraint,
        })
    }

    /// What an authority has published, and who it is. Looks at neither its calendar
    /// nor a signature, and works beside a running one too.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn published(dir: &Path) -> Result<(PublicationsFile, Issuer), AuthorityError> {
        let signatory = Signatory::open(dir)?;
        let issuer = Issuer::new(&signatory.certificate_pem, &signatory.constraint)
            .map_err(IdentityError::from)?;
        Ok((Publications::read(dir)?, issuer))
    }

    /// Starts serving, and returns when the sockets listen.
    ///
    /// Runs on the current tokio runtime until [`AuthorityHandle::shutdown`], or
    /// until a fault stops the rounds ([`Running::stopped`]).
    ///
    /// # Errors
    /// [`AuthorityError`]; nothing is left running.
    pub async fn start(
        config: Config,
        clock: impl Clock,
    ) -> Result<AuthorityHandle, AuthorityError> {
        let clock: Arc<dyn Clock> = Arc::new(clock);
        let (now, started_at) = (clock.now(), Instant::now());
        let calendar = Calendar::open(&config.dir.join(CALENDAR))?;
        let newest = calendar
            .head()
            .unwrap_or(Second(calendar.genesis().0.saturating_sub(1)));
        let is_alone = !config.is_clustered();
        // A node looks at its clock whenever it begins to lead.
        let since = if is_alone { newest } else { now.ended() };
        let pace = Pace::start(now, since, config.max_clock_jump, config.max_outage_s)?;
        let identity = Arc::new(Identity::open(&config.dir, config.signer.as_ref())?);
        identity.check_valid(now.ended())?;
        let load = match is_alone {
            true => Publications::open,
            false => Publications::load,
        };
        let reader = calendar.reader();
        let calendar = Arc::new(Mutex::new(calendar));
        let signatory = Signatory::beside(&config.dir, &identity)?;
        let publications = Arc::new(load(
            &config.dir,
            reader.clone(),
            Arc::clone(&identity),
            signatory.clone(),
        )?);
        let keeper = Keeper::open(Setup {
            dir: &config.dir,
            calendar: reader.clone(),
            config: &config.log,
        })?;
        let published_at = publications.summary().1.map(|data| data.time);
        let hook = match &config.publicity.hook {
            Some(hook) => Some((hook.clone(), Announced::open(&config.dir, published_at)?)),
            None => None,
        };
        let publicity = Arc::new(
            Publicity::new(
                Arc::clone(&publications),
                &signatory,
                reader.genesis(),
                &config.publicity,
                hook.as_ref()
                    .map(|(_, announced)| Arc::clone(&announced.state)),
            )
            .map_err(IdentityError::from)?,
        );
        let fleet = Fleet::open(&config)?;
        let fleet_key = fleet.key();
        let listeners = Listeners::bind(&config).await?;
        #[cfg(feature = "cluster")]
        let cluster = match &config.cluster {
            Some(cluster) => Some(Arc::new(Cluster::join(Start {
                config: cluster.clone(),
                calendar: Arc::clone(&calendar),
                identity: Arc::clone(&identity),
                publications: Arc::clone(&publications),
                fleet: Arc::clone(&fleet),
                clock: Arc::clone(&clock),
                max_clock_jump: config.max_clock_jump,
            })?)),
            None => None,
        };
        let schedule = Schedule::of(&config);
        let publisher = Publisher {
            publications,
            schedule,
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
            Past::Own(Box::new(Own {
                calendar: reader.clone(),
                publications: publisher.clone(),
                publicity: Arc::clone(&publicity),
                log,
                fleet,
            })),
        )?);
        if let Some(path) = &config.operations.spent {
            service.users.restore(spent::read(path));
        }
        let (reports, rounds) = watch::channel(RoundReport {
            second: closed,
            requests: 0,
        });
        let genesis = reader.genesis();
        let engine = Engine {
            service: Arc::clone(&service),
            beat: Beat::start(clock, pace, config.grace, started_at),
            press: Press {
                ledger: calendar,
                identity: Arc::clone(&identity),
                machine_id: config.machine_id.into(),
                trees: Arc::default(),
                bell: keeper.bell(),
            },
            closed,
            tenure: Tenure::unlimited(),
            publisher: publisher.clone(),
            // What fell due while nothing ran is made up for with the first second.
            publish_at: schedule.after(published_at.unwrap_or(genesis)),
            reports,
            stop: stopping.clone(),
            #[cfg(feature = "cluster")]
            turns: cluster.map(|cluster| Turns {
                cluster,
                max_clock_jump: config.max_clock_jump,
                max_outage_s: config.max_outage_s,
            }),
        };
        let launch = Launch {
            service: Arc::clone(&service),
            listeners,
            rounds: rounds.clone(),
            stop,
            spent: config.operations.spent,
        };
        let mut running = launch.run(engine.run());
        if let Some((hook, announced)) = hook {
            let herald = Herald {
                hook,
                announced,
                publicity,
                dir: config.dir,
                rounds,
                stop: stopping,
                cluster_of: (!is_alone).then_some(service),
            };
            running.servers.push(tokio::spawn(herald.run()));
        }
        let log = keeper.start()?;
        Ok(AuthorityHandle {
            running,
            calendar: reader,
            signatory,
            publications: publisher,
            log,
            fleet_key,
        })
    }
}

/// What [`Authority::examine`] found.
#[derive(Debug)]
pub struct Examined {
    /// The calendar as it stood then.
    pub calendar: CalendarReader,
    /// What was published; its signature is still to be verified.
    pub publications: PublicationsFile,
    /// The certificate of who signs publications, in PEM.
    pub certificate_pem: String,
    /// What verifiers demand of its subject.
    pub constraint: String,
}

/// A running authority. Dropping it stops the authority like
/// [`AuthorityHandle::shutdown`], which besides waits until everybody is answered.
pub struct AuthorityHandle {
    running: Running,
    calendar: CalendarReader,
    signatory: Signatory,
    publications: Publisher,
    log: KeeperHandle,
    fleet_key: VerifierKey,
}

impl Deref for AuthorityHandle {
    type Target = Running;

    fn deref(&self) -> &Running {
        &self.running
    }
}

impl fmt::Debug for AuthorityHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorityHandle")
            .field("running", &self.running)
            .field("head", &self.head())
            .finish_non_exhaustive()
    }
}

impl AuthorityHandle {
    /// The calendar's newest second, if it has any.
    pub fn head(&self) -> Option<Second> {
        self.calendar.head()
    }

    /// A view of the calendar.
    pub fn calendar(&self) -> CalendarReader {
        self.calendar.clone()
    }

    /// Publishes the calendar's newest second.
    ///
    /// # Errors
    /// [`PublicationsError`]; the file is as it was.
    pub async fn publish(&self) -> Result<Published, PublicationsError> {
        let publications = self.publications.clone();
        let now = self.running.service.now().ended();
        tokio::task::spawn_blocking(move || publications.publish(now))
            .await
            .map_err(|_| PublicationsError::Interrupted)?
    }

    /// The bytes of the newest publications file.
    pub fn publications_file(&self) -> Arc<[u8]> {
        self.publications.file()
    }

    /// The certificate that verifies publications files, as PEM; they list the one that
    /// verifies calendar roots.
    pub fn certificate_pem(&self) -> &str {
        &self.signatory.certificate_pem
    }

    /// What a verifier demands of the publications file's signer, e.g.
    /// `email=publications@example.org`.
    pub fn constraint(&self) -> &str {
        &self.signatory.constraint
    }

    /// The key of the calendar's log, which witnesses are told; its name is the
    /// log's origin.
    pub fn log_key(&self) -> &VerifierKey {
        self.log.key()
    }

    /// The key of the fleet's log, which witnesses are told too; its name is that
    /// log's origin.
    pub fn fleet_key(&self) -> &VerifierKey {
        &self.fleet_key
    }

    /// How the calendar's log is doing, and its witnesses.
    pub fn log_status(&self) -> LogStatus {
        self.log.status()
    }

    /// Waits until `wanted` holds of the calendar's log.
    pub async fn log_until(&self, wanted: impl FnMut(&LogStatus) -> bool) -> LogStatus {
        self.log.until(wanted).await
    }

    /// Accepts nothing more, answers what was accepted when its round closes, and
    /// returns when all connections are closed.
    ///
    /// # Errors
    /// What stopped the rounds, if that was not this shutdown.
    pub async fn shutdown(self) -> Result<(), Arc<Stopped>> {
        let outcome = self.running.end().await;
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
    /// The fleet cannot be opened.
    #[error(transparent)]
    Fleet(#[from] FleetError),
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

/// A publications file without publications, unless its key is elsewhere.
fn first_file(dir: &Path, identity: &Identity, genesis: Second) -> Result<(), AuthorityError> {
    if !Signatory::beside(dir, identity)?.is_elsewhere {
        Publications::create(dir, identity, genesis)?;
    }
    Ok(())
}

/// The calendar's folder inside the data folder.
pub(crate) const CALENDAR: &str = "calendar";
