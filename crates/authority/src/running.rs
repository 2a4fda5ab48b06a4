//! What every running service can be asked.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use pitser_ksi::time::Second;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::config::User;
use crate::engine::Stopped;
use crate::listeners::{Addresses, Listeners};
use crate::metrics::Metrics;
use crate::operations::Housekeeper;
use crate::service::http::tls::Tls;
use crate::service::{Service, TlsError};
use crate::users::UserError;

/// A round that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundReport {
    /// The newest second that is closed; durable, if the calendar is ours.
    pub second: Second,
    /// Requests that were signed in it.
    pub requests: usize,
}

/// A running service: an authority, or an aggregator below one. Dropping it stops
/// the service without waiting until everybody is answered.
pub struct Running {
    pub(crate) addresses: Addresses,
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) service: Arc<Service>,
    pub(crate) rounds: watch::Receiver<RoundReport>,
    pub(crate) on_stop: watch::Receiver<Option<Outcome>>,
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) engine: JoinHandle<()>,
    pub(crate) servers: Vec<JoinHandle<()>>,
}

/// A service that is ready to serve.
pub(crate) struct Launch {
    pub(crate) service: Arc<Service>,
    pub(crate) listeners: Listeners,
    pub(crate) rounds: watch::Receiver<RoundReport>,
    pub(crate) stop: watch::Sender<bool>,
    /// Where what users have spent is kept over a restart.
    pub(crate) spent: Option<PathBuf>,
}

impl Launch {
    /// Lets `engine` close its rounds, and serves on all listeners.
    pub(crate) fn run(
        self,
        engine: impl Future<Output = Result<(), Stopped>> + Send + 'static,
    ) -> Running {
        let (addresses, tls) = (self.listeners.addresses.clone(), self.listeners.tls.clone());
        let (stopped, on_stop) = watch::channel(None);
        let engine = tokio::spawn(async move {
            let outcome = engine.await;
            if let Err(fault) = &outcome {
                tracing::error!(error = %fault, "rounds stopped: nothing is signed any more");
            }
            stopped.send_replace(Some(outcome.map_err(Arc::new)));
        });
        let mut servers = self.listeners.serve(&self.service, &self.stop.subscribe());
        let housekeeper = Housekeeper {
            service: Arc::clone(&self.service),
            rounds: self.rounds.clone(),
            spent: self.spent,
        };
        servers.push(tokio::spawn(housekeeper.run()));
        Running {
            addresses,
            tls,
            service: self.service,
            rounds: self.rounds,
            on_stop,
            stop: self.stop,
            engine,
            servers,
        }
    }
}

pub(crate) type Outcome = Result<(), Arc<Stopped>>;

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running")
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

impl Running {
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
    /// Reads files; does nothing without HTTPS, and says so by `false`.
    ///
    /// # Errors
    /// [`TlsError`]; the old ones stay.
    pub fn reload_tls(&self) -> Result<bool, TlsError> {
        match &self.tls {
            Some(tls) => tls.reload().map(|()| true),
            None => Ok(false),
        }
    }

    /// The newest round; changes once a second.
    pub fn rounds(&self) -> watch::Receiver<RoundReport> {
        self.rounds.clone()
    }

    /// Requests that wait for their round to close.
    pub fn waiting(&self) -> usize {
        self.service.waiting()
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

    /// Stops, and waits until all are answered and all connections closed.
    pub(crate) async fn end(self) -> Outcome {
        self.stop.send_replace(true);
        let outcome = self.stopped().await;
        for server in self.servers {
            let _ = server.await;
        }
        let _ = self.engine.await;
        outcome
    }
}
