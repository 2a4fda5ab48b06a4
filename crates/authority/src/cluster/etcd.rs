//! Asking etcd, whose members may be gone, slow, or cut off from the others.
//!
//! A question goes to the member that answered last. When it does not answer at
//! once the next one is asked beside it, and the first good answer counts. So
//! every question here may reach etcd more than once: each is a read, or a
//! transaction whose comparison lets it happen once.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{
    Certificate, Client, ConnectOptions, Error, GetOptions, GetResponse, Identity,
    LeaseGrantOptions, TlsOptions, Txn, TxnResponse, WatchOptions, WatchStream,
};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::config::ClusterConfig;

/// etcd, by all its members.
#[derive(Debug, Clone)]
pub(super) struct Etcd {
    members: Arc<[Member]>,
    /// Index of the member that answered last.
    preferred: Arc<AtomicUsize>,
}

struct Member {
    endpoint: String,
    options: ConnectOptions,
    /// Made when first needed; it connects again by itself.
    client: Mutex<Option<Client>>,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.endpoint)
    }
}

/// etcd cannot be asked.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum EtcdError {
    /// No member gave a good answer.
    #[error("no etcd member answers ({reason}); see whether most of them run and reach each other")]
    NoAnswer {
        /// What the members said, or that they said nothing.
        reason: String,
    },
    /// etcd answered with something else than was asked for.
    #[error("etcd holds something under {key} that no node wrote; is the prefix used by others?")]
    Malformed {
        /// The key.
        key: String,
    },
    /// A configured file cannot be read.
    #[error("cannot read {}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// No endpoint is configured.
    #[error("the cluster names no etcd endpoint; give the client addresses of all members")]
    NoEndpoint,
}

impl Etcd {
    /// Reads the files that the configuration names; connects when first asked.
    pub(super) fn new(config: &ClusterConfig) -> Result<Self, EtcdError> {
        if config.endpoints.is_empty() {
            return Err(EtcdError::NoEndpoint);
        }
        let options = connect_options(config)?;
        let members = config.endpoints.iter().map(|endpoint| Member {
            endpoint: endpoint.clone(),
            options: options.clone(),
            client: Mutex::new(None),
        });
        Ok(Self {
            members: members.collect(),
            preferred: Arc::default(),
        })
    }

    /// Runs a transaction until it is known what became of it, at most until
    /// `deadline`. Its comparisons must make a second run harmless.
    pub(super) async fn txn(&self, txn: Txn, deadline: Instant) -> Result<TxnResponse, EtcdError> {
        self.ask(deadline, move |mut client| {
            let txn = txn.clone();
            async move { client.txn(txn).await }
        })
        .await
    }

    /// The keys from `from` up to, not including, `to`, as etcd holds them now.
    pub(super) async fn range(
        &self,
        from: String,
        to: String,
        limit: i64,
    ) -> Result<GetResponse, EtcdError> {
        self.ask(Instant::now() + PATIENCE, move |mut client| {
            let options = GetOptions::new().with_range(to.clone()).with_limit(limit);
            let from = from.clone();
            async move { client.get(from, Some(options)).await }
        })
        .await
    }

    /// A lease of the caller's own number, for `ttl_s` from before this was called.
    pub(super) async fn grant(&self, id: i64, ttl_s: u32) -> Result<Duration, EtcdError> {
        self.ask(Instant::now() + PATIENCE, move |mut client| async move {
            let options = LeaseGrantOptions::new().with_id(id);
            match client.lease_grant(ttl_s.into(), Some(options)).await {
                Ok(granted) => Ok(seconds(granted.ttl())),
                // This question arrived twice.
                Err(e) if e.to_string().contains("lease already exists") => {
                    Ok(Duration::from_secs(ttl_s.into()))
                }
                Err(e) => Err(e),
            }
        })
        .await
    }

    /// Renews a lease; false if it is gone.
    pub(super) async fn renew(&self, id: i64, deadline: Instant) -> Result<bool, EtcdError> {
        self.ask(deadline, move |mut client| async move {
            // Returns when the first renewal was answered.
            match client.lease_keep_alive(id).await {
                Ok(_) => Ok(true),
                Err(Error::LeaseKeepAliveError(_)) => Ok(false),
                Err(e) => Err(e),
            }
        })
        .await
    }

    /// Ends a lease, and with it the keys that go with it.
    pub(super) async fn revoke(&self, id: i64) -> Result<(), EtcdError> {
        self.ask(Instant::now() + PATIENCE, move |mut client| async move {
            match client.lease_revoke(id).await {
                Err(e) if !e.to_string().contains("lease not found") => Err(e),
                _ => Ok(()),
            }
        })
        .await
    }

    /// What happens under `prefix` from `revision` on, in order; at the member that
    /// answered last.
    pub(super) async fn watch(
        &self,
        prefix: String,
        revision: i64,
    ) -> Result<WatchStream, EtcdError> {
        self.ask(Instant::now() + PATIENCE, move |mut client| {
            let options = WatchOptions::new()
                .with_prefix()
                .with_start_revision(revision);
            let prefix = prefix.clone();
            async move { client.watch(prefix, Some(options)).await }
        })
        .await
    }

    /// Prefers another member from now on: the one that did not deliver is avoided.
    pub(super) fn avoid_preferred(&self) {
        self.preferred.fetch_add(1, Ordering::Relaxed);
    }

    async fn ask<T, F, Fut>(&self, deadline: Instant, call: F) -> Result<T, EtcdError>
    where
        T: Send + 'static,
        F: Fn(Client) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, Error>> + Send,
    {
        let call = Arc::new(call);
        let count = self.members.len();
        let first = self.preferred.load(Ordering::Relaxed);
        let mut waiting = (first..first + count).map(|index| index % count);
        // Whoever is not waited for any more is cut off when this is dropped.
        let mut asked: JoinSet<(usize, Result<T, Error>)> = JoinSet::new();
        let mut reason = "nothing was heard in time".to_owned();
        loop {
            if let Some(index) = waiting.next() {
                let (members, call) = (Arc::clone(&self.members), Arc::clone(&call));
                asked.spawn(async move {
                    let answer = async { call(members[index].client().await?).await };
                    (index, answer.await)
                });
            }
            let is_last = waiting.len() == 0;
            let answer = async {
                tokio::select! {
                    answer = asked.join_next() => Some(answer),
                    () = sleep(HEDGE), if !is_last => None,
                }
            };
            match timeout_at(deadline, answer).await {
                Ok(Some(Some(Ok((index, Ok(answer)))))) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Ok(Some(Some(Ok((index, Err(e)))))) => {
                    reason = format!("{}: {e}", self.members[index].endpoint);
                }
                Ok(Some(Some(Err(_)))) | Ok(None) => {}
                Ok(Some(None)) if is_last => return Err(EtcdError::NoAnswer { reason }),
                Ok(Some(None)) => {}
                Err(_) => return Err(EtcdError::NoAnswer { reason }),
            }
        }
    }
}

impl Member {
    async fn client(&self) -> Result<Client, Error> {
        let mut client = self.client.lock().await;
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let connecting = Client::connect([&self.endpoint], Some(self.options.clone()));
        let made = timeout(CONNECT, connecting)
            .await
            .map_err(|_| Error::EndpointError("cannot connect in time".to_owned()))??;
        Ok(client.insert(made).clone())
    }
}

fn connect_options(config: &ClusterConfig) -> Result<ConnectOptions, EtcdError> {
    let mut options = ConnectOptions::new()
        .with_connect_timeout(CONNECT)
        .with_keep_alive(PING, PING)
        .with_keep_alive_while_idle(true)
        // A member that knows no leader is to say so rather than be silent.
        .with_require_leader(true);
    if let Some(login) = &config.login {
        let password = String::from_utf8_lossy(login.password.expose()).into_owned();
        options = options
            .with_user(&login.user, password)
            .with_auto_token_refresh(true);
    }
    if let Some(tls) = &config.tls {
        let mut chosen = TlsOptions::new().ca_certificate(Certificate::from_pem(read(&tls.ca)?));
        if let Some((certificate, key)) = &tls.identity {
            chosen = chosen.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        options = options.with_tls(chosen);
    }
    Ok(options)
}

fn read(path: &PathBuf) -> Result<Vec<u8>, EtcdError> {
    fs::read(path).map_err(|e| EtcdError::File {
        path: path.clone(),
        reason: e.to_string(),
    })
}

fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or(0))
}

/// How long any question may take, all members together.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// The next member is asked when the one before has said nothing for this long.
const HEDGE: Duration = Duration::from_millis(200);
const CONNECT: Duration = Duration::from_secs(1);
/// A connection on which nothing answers a ping for this long is given up.
const PING: Duration = Duration::from_secs(1);
