//! What a client may be told besides addresses.

use std::time::Duration;

use pitser_ksi::hash::Algorithm;

use crate::tls::Roots;

/// How long to wait, how often to try, and who may vouch for services.
#[derive(Debug, Clone)]
pub struct Options {
    /// For a connection to be made, TLS included.
    pub connect_timeout: Duration,
    /// For an answer to one request, all attempts together. A signature takes up
    /// to a second by design.
    pub answer_timeout: Duration,
    /// Attempts at one service when a connection cannot be made or breaks, when
    /// its round is full or when what stands behind it fails, with growing
    /// pauses. Asking twice does no harm.
    pub attempts: u32,
    /// The algorithm of the message authentication codes.
    pub mac_algorithm: Algorithm,
    /// The authorities that may vouch for services over HTTPS.
    pub roots: Roots,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(10),
            attempts: 3,
            mac_algorithm: Algorithm::Sha256,
            roots: Roots::system(),
        }
    }
}
