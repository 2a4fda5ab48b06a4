//! What an operator decides. Durations and sizes are plain numbers with units.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::fleet::FleetConfig;
use crate::log::LogConfig;
use crate::operations::Operations;
use crate::publicity::PublicityConfig;
use crate::signer::SignerCommand;
use crate::users::Allowance;

/// How an authority runs. [`Config::new`] has the defaults.
#[derive(Debug, Clone)]
pub struct Config {
    /// The data folder that [`crate::Authority::init`] made.
    pub dir: PathBuf,
    /// Where aggregator and extender PDUs are accepted over TCP; port 0 picks one.
    pub tcp: SocketAddr,
    /// Where PDUs are accepted as POST, and publications served; `None`: nowhere.
    pub http: Option<SocketAddr>,
    /// Who may ask.
    pub users: Vec<User>,
    /// Publish whenever a multiple of this many seconds since 1970 has passed;
    /// 0: only on demand.
    pub publish_every_s: u64,
    /// Stop signing when the clock goes back, or jumps forward, by more than this.
    pub max_clock_jump: Duration,
    /// Refuse to start when the calendar's head is older than this: filling the
    /// gap cannot be undone, and a clock that is wrong by years looks the same.
    pub max_outage_s: u64,
    /// How long after a second's end its round still takes what had arrived by
    /// then and was not looked at yet; below a second.
    pub grace: Duration,
    /// The machine id in each signature's metadata.
    pub machine_id: String,
    /// Bounds on what strangers may use.
    pub limits: Limits,
    /// The cluster that this node is part of; `None`: it is alone.
    #[cfg(feature = "cluster")]
    pub cluster: Option<crate::cluster::ClusterConfig>,
    /// The calendar's log and its witnesses.
    pub log: LogConfig,
    /// Trails that guardians register.
    pub fleet: FleetConfig,
    /// HTTPS, monitors and the operator's commands.
    pub operations: Operations,
    /// What signs, if the key is not in the data folder.
    pub signer: Option<SignerCommand>,
    /// What happens besides `publish_every_s` around publications.
    pub publicity: PublicityConfig,
}

impl Config {
    /// Listens on loopback ports of the system's choice, for nobody yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        let any_port = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        Self {
            dir: dir.into(),
            tcp: any_port,
            http: Some(any_port),
            users: Vec::new(),
            publish_every_s: 86_400,
            max_clock_jump: Duration::from_secs(30),
            max_outage_s: 90 * 86_400,
            grace: Duration::ZERO,
            machine_id: "pitser".to_owned(),
            limits: Limits::default(),
            #[cfg(feature = "cluster")]
            cluster: None,
            log: LogConfig::default(),
            fleet: FleetConfig::default(),
            operations: Operations::default(),
            signer: None,
            publicity: PublicityConfig::default(),
        }
    }

    /// Whether this authority is a node of a cluster.
    pub(crate) fn is_clustered(&self) -> bool {
        #[cfg(feature = "cluster")]
        return self.cluster.is_some();
        #[cfg(not(feature = "cluster"))]
        return false;
    }

    /// Lets one more user in.
    #[must_use]
    pub fn with_user(mut self, user: User) -> Self {
        self.users.push(user);
        self
    }
}

/// Someone who may ask.
#[derive(Debug, Clone)]
pub struct User {
    /// Login id, in the PDU header and in the metadata of this user's signatures.
    pub login: String,
    /// Shared secret for the message authentication codes.
    pub key: Secret,
    /// Highest level this user may sign at; see [`MAX_LEVEL`].
    pub max_level: u8,
    /// How much, and what.
    pub allowance: Allowance,
}

impl User {
    /// A user who may sign at every level up to [`MAX_LEVEL`], as much as they like.
    pub fn new(login: impl Into<String>, key: impl Into<Vec<u8>>) -> Self {
        Self {
            login: login.into(),
            key: Secret::from(key.into()),
            max_level: MAX_LEVEL,
            allowance: Allowance::default(),
        }
    }
}

/// A shared secret. `Debug` hides it; reading takes [`Secret::expose`].
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// The secret bytes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Secret {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Bounds on what one peer, and all of them, may use.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Requests that one round takes; more are told to come back next second.
    pub requests_per_round: usize,
    /// Connections at a time, TCP and HTTP each; more wait to be accepted.
    pub connections: usize,
    /// The same of one peer: an IPv4 address or an IPv6 /64. More are closed at once.
    pub connections_of_peer: usize,
    /// Requests of one TCP connection that wait for an answer; its reader stops
    /// until one is answered.
    pub pipeline: usize,
    /// A connection that sends nothing for this long is closed.
    pub idle: Duration,
    /// A connection that leaves answers lying for this long is cut: it keeps the
    /// rounds they stand in in memory.
    pub taken_within: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_per_round: 400_000,
            connections: 8192,
            connections_of_peer: 4096,
            pipeline: 65_536,
            idle: Duration::from_secs(60),
            taken_within: Duration::from_secs(10),
        }
    }
}

/// The highest level any client is known to ask for (spec service §5).
pub const MAX_LEVEL: u8 = 20;
