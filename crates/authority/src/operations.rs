//! What a service needs besides signing: HTTPS, monitors, the operator's commands,
//! and a housekeeper that tells the log how it goes.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use crate::running::RoundReport;
use crate::service::Service;
use crate::users::spent;

/// Listeners besides TCP and HTTP. By default there are none.
#[derive(Debug, Clone, Default)]
pub struct Operations {
    /// As HTTP, under TLS.
    pub https: Option<Https>,
    /// Where `/metrics` and `/status` are served besides `/health` and `/ready`:
    /// an address that only monitors reach, since they show logins.
    pub monitor: Option<SocketAddr>,
    /// The unix socket on which the operator's commands are obeyed; also what
    /// the monitor's address serves.
    pub admin: Option<PathBuf>,
    /// Where what users have spent of their quotas is kept over a restart;
    /// `None`: it is forgotten.
    pub spent: Option<PathBuf>,
}

/// Where HTTPS is served, and as whom.
#[derive(Debug, Clone)]
pub struct Https {
    /// The address; port 0 picks a free one.
    pub address: SocketAddr,
    /// The chain of certificates in PEM, the server's first.
    pub certificate: PathBuf,
    /// Its key in PEM.
    pub key: PathBuf,
}

/// Looks on while rounds go by, and ends with them.
pub(crate) struct Housekeeper {
    pub(crate) service: Arc<Service>,
    pub(crate) rounds: watch::Receiver<RoundReport>,
    pub(crate) spent: Option<PathBuf>,
}

impl Housekeeper {
    pub(crate) async fn run(mut self) {
        let started = self.rounds.borrow().second;
        let (mut told_at, mut kept_at) = (started, started);
        let mut told = self.service.metrics.refusals();
        while self.rounds.changed().await.is_ok() {
            let RoundReport { second, requests } = *self.rounds.borrow_and_update();
            let waiting = self.service.waiting();
            tracing::debug!(%second, requests, waiting, "round");
            if second.since(told_at) >= TELL_EVERY_S {
                told_at = second;
                told = self.tell_refusals(told);
            }
            if second.since(kept_at) >= KEEP_EVERY_S {
                kept_at = second;
                self.keep_spent().await;
            }
        }
        self.tell_refusals(told);
        self.keep_spent().await;
    }

    /// One line about all that was refused since `before`: a flood of it must not
    /// fill the disk.
    fn tell_refusals(&self, before: Refusals) -> Refusals {
        let now = self.service.metrics.refusals();
        let since: Vec<String> = before
            .iter()
            .zip(&now)
            .filter(|((_, before), (_, now))| now > before)
            .map(|((reason, before), (_, now))| format!("{reason} {}", now - before))
            .collect();
        if !since.is_empty() {
            tracing::warn!(refused = since.join(", "), "requests were refused");
        }
        now
    }

    async fn keep_spent(&self) {
        let Some(path) = self.spent.clone() else {
            return;
        };
        let spent = self.service.users.spent();
        // It says itself what went wrong; a panic was told when it happened.
        let _ = tokio::task::spawn_blocking(move || spent::write(&path, &spent)).await;
    }
}

type Refusals = Vec<(&'static str, u64)>;

const TELL_EVERY_S: u64 = 10;
const KEEP_EVERY_S: u64 = 60;
