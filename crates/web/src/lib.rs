//! The guardian's HTTP side: audit events in; status, findings and metrics out
//! (spec 61).
//!
//! | request                        | answer                                         |
//! |--------------------------------|------------------------------------------------|
//! | POST `/fhir/AuditEvent`        | one event into the trail, durable when answered |
//! | POST `/fhir`                   | a batch Bundle of them                         |
//! | POST `/fhir/{source}/...`      | the same, to the source of that name           |
//! | GET `/fhir/metadata`           | what the FHIR side can do                      |
//! | GET `/`                        | the status page                                |
//! | GET `/api/status`, `/api/events` | all that is known, once or as it changes     |
//! | POST `/api/scan/{source}`      | compares all live rows now                     |
//! | POST `/api/erasure/{source}`   | an approver asks about erasures, or decides    |
//! | POST `/api/accept/{source}`    | an approver answers for findings               |
//! | POST `/api/accept/{source}/portion` | the same for some of those that he chose  |
//! | `/audit/{source}/...`          | what auditors ask, each request signed (spec 64) |
//! | GET `/health`, `/ready`        | is the process alive; are all sources guarded  |
//! | GET `/metrics`                 | Prometheus text                                |
//!
//! In scope: HTTP, its limits, and how things are said to people. Elsewhere:
//! what an event means (`capture`), what becomes of it (`guardian`).
//!
//! **Invariants.** An event is answered with 200 or 201 only after its trail
//! line is on disk. A source is never shown as guarded by a guardian that is
//! gone. This crate reads no clock: the browser computes "4 seconds ago".
//!
//! There is no authentication here, but for the tokens of approvers and the signatures of
//! auditors, and the page names records in clear: listen
//! on a loopback address, and put a reverse proxy with TLS and a login in front
//! of it for anybody else. What a web page of another origin could do through a
//! browser on this machine is refused (spec 61 §2).

mod api;
mod audit;
mod body;
mod events;
mod fhir;
mod gate;
mod listen;
mod metrics;
mod page;
mod site;
mod words;

use std::collections::HashSet;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use pitser_guardian::acceptance;
use pitser_guardian::approver::Refused;
use pitser_guardian::audit::Desk;
use pitser_guardian::erasure::{Answer, Asked};
use pitser_guardian::{Handle, ScanSummary, Status, SubmitError};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use listen::Bounded;
use site::Site;

/// Starts the HTTP side of guardians.
pub struct Server;

impl Server {
    /// Listens on `listen` and serves `guardians`; the first one also answers
    /// under paths without a source's name. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`WebError`]; nothing is left running.
    pub fn start<G: Guarded>(
        listen: SocketAddr,
        guardians: Vec<G>,
    ) -> Result<ServerHandle, WebError> {
        let (stop, stopping) = watch::channel(false);
        let listener = Bounded::bind(listen)?;
        let address = listener
            .address()
            .map_err(|source| WebError::Listen { listen, source })?;
        let site = Arc::new(Site::new(address, guardians, stopping)?);
        let served = tokio::spawn(serve(listener, site));
        tracing::info!(%address, "status page and API: http://{address}/");
        Ok(ServerHandle {
            address,
            stop,
            served,
        })
    }
}

/// A running server. Dropping it stops it without waiting.
#[derive(Debug)]
pub struct ServerHandle {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    served: JoinHandle<()>,
}

impl ServerHandle {
    /// Where it listens; with the real port if port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more requests, answers those that have begun, and ends live
    /// streams; after five seconds it waits no longer.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        if tokio::time::timeout(STOP, &mut self.served).await.is_err() {
            self.served.abort();
        }
    }
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WebError {
    /// The address cannot be listened on.
    #[error("cannot listen on {listen}: {source}. {}", way_out(source.kind()))]
    Listen {
        /// The address asked for.
        listen: SocketAddr,
        /// What the operating system says.
        source: io::Error,
    },
    /// There is nothing to show.
    #[error("no source is guarded; configure at least one [[source]]")]
    NoSource,
    /// Two sources of one name could not be told apart in paths.
    #[error("two sources are named {name:?}; give each its own name")]
    SameName {
        /// The name.
        name: String,
    },
}

fn way_out(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::AddrInUse => {
            "Another program, perhaps another guardian, has this address: stop it, or set \
             another `listen` address in the configuration"
        }
        io::ErrorKind::PermissionDenied => {
            "Ports below 1024 need a privilege: set a `listen` address with a higher port"
        }
        io::ErrorKind::AddrNotAvailable => {
            "No network interface of this machine has the address: correct `listen`"
        }
        _ => "Correct the `listen` address in the configuration",
    }
}

/// What this crate asks of a guardian. A [`Handle`] is one; tests have their own.
pub trait Guarded: Clone + Send + Sync + 'static {
    /// How things stand, and each change of it. When its sender is gone, so is
    /// the guardian.
    fn watch(&self) -> watch::Receiver<Status>;

    /// Takes the exact bytes of one FHIR `AuditEvent`; completes when it is durable.
    fn submit(&self, raw: Vec<u8>) -> impl Future<Output = Result<Taken, SubmitError>> + Send;

    /// Compares all live rows with the trail.
    fn scan(&self) -> impl Future<Output = Result<ScanSummary, String>> + Send;

    /// Answers an approver of erasures.
    fn erasure(&self, asked: Asked) -> impl Future<Output = Result<Answer, Refused>> + Send;

    /// Has an approver answer for findings.
    fn accept(
        &self,
        asked: acceptance::Asked,
    ) -> impl Future<Output = Result<acceptance::Answer, Refused>> + Send;

    /// The same for a portion of those that he chose.
    fn accept_of(
        &self,
        asked: acceptance::AskedOf,
    ) -> impl Future<Output = Result<acceptance::Portion, Refused>> + Send;

    /// How long its thread has been at its newest step ([`Handle::at_one_step`]).
    fn at_one_step(&self) -> Option<Duration>;

    /// Where auditors are answered; `None` where nobody is.
    fn desk(&self) -> Option<Arc<Desk>>;
}

/// What became of a submitted event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Its opaque id in the trail.
    pub id: String,
    /// The same bytes had been taken before.
    pub known: bool,
    /// Lines written for it.
    pub lines: usize,
    /// Where it breaks the IHE profile.
    pub profile_violations: Vec<String>,
}

impl Guarded for Handle {
    fn at_one_step(&self) -> Option<Duration> {
        Handle::at_one_step(self)
    }

    fn watch(&self) -> watch::Receiver<Status> {
        Handle::watch(self)
    }

    async fn submit(&self, raw: Vec<u8>) -> Result<Taken, SubmitError> {
        let receipt = Handle::submit(self, raw).await?;
        Ok(Taken {
            id: receipt.id,
            known: receipt.known,
            lines: receipt.lines,
            profile_violations: receipt.profile_violations,
        })
    }

    async fn scan(&self) -> Result<ScanSummary, String> {
        Handle::scan(self).await
    }

    async fn erasure(&self, asked: Asked) -> Result<Answer, Refused> {
        Handle::erasure(self, asked).await
    }

    async fn accept(&self, asked: acceptance::Asked) -> Result<acceptance::Answer, Refused> {
        Handle::accept(self, asked).await
    }

    async fn accept_of(&self, asked: acceptance::AskedOf) -> Result<acceptance::Portion, Refused> {
        Handle::accept_of(self, asked).await
    }

    fn desk(&self) -> Option<Arc<Desk>> {
        Some(Arc::clone(Handle::desk(self)))
    }
}

async fn serve<G: Guarded>(listener: Bounded, site: Arc<Site<G>>) {
    let _relays = site.relay_changes();
    let mut stop = site.stop();
    let served = axum::serve(listener, routes(site))
        .with_graceful_shutdown(async move { site::stopping(&mut stop).await })
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the HTTP listener failed");
    }
}

fn routes<G: Guarded>(site: Arc<Site<G>>) -> Router {
    Router::new()
        .route("/", get(page::page::<G>))
        .route("/live", get(page::live::<G>))
        .route("/health", get(api::health))
        .route("/ready", get(api::ready::<G>))
        .route("/metrics", get(metrics::metrics::<G>))
        .route("/api/status", get(api::status::<G>))
        .route("/api/events", get(events::statuses::<G>))
        .route("/api/scan/{source}", post(api::scan::<G>))
        .route("/api/erasure/{source}", post(api::erasure::<G>))
        .route("/api/accept/{source}", post(api::accept::<G>))
        .route("/api/accept/{source}/portion", post(api::accept_of::<G>))
        .route(
            "/audit/{source}/{*what}",
            get(audit::audit::<G>).post(audit::audit::<G>),
        )
        .route("/fhir/metadata", get(fhir::metadata))
        .route("/fhir", post(fhir::batch::<G>))
        .route("/fhir/AuditEvent", post(fhir::event::<G>))
        .route("/fhir/{source}", post(fhir::batch_of::<G>))
        .route("/fhir/{source}/metadata", get(fhir::metadata))
        .route("/fhir/{source}/AuditEvent", post(fhir::event_of::<G>))
        .layer(from_fn_with_state(Arc::clone(&site), gate::pass::<G>))
        .with_state(site)
}

fn check_names<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), WebError> {
    let mut seen = HashSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(WebError::SameName { name: name.into() });
        }
    }
    if seen.is_empty() {
        return Err(WebError::NoSource);
    }
    Ok(())
}

/// How long [`ServerHandle::stop`] waits for requests that have begun.
const STOP: Duration = Duration::from_secs(5);
