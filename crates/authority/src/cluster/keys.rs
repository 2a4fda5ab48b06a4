//! What stands in etcd. All keys begin with the configured prefix.
//!
//! | key                  | value                                                       |
//! |----------------------|-------------------------------------------------------------|
//! | `charter`            | three lines: version, genesis, digest of the certificate    |
//! | `head`               | at:8 ‖ previous:8 ‖ root:33, the newest entry; big-endian    |
//! | `seconds/<t>`        | root:33 of a second with requests; 12 decimal digits        |
//! | `leader`             | name of the node that leads; goes with its lease            |
//! | `tiled`              | the first second that is in no tile, in decimal digits      |
//! | `tiles/<index>`      | SHA-256 of the tile that left etcd; 9 decimal digits        |
//! | `publications`       | the publications file                                       |
//! | `fleet/<n>`          | event n of the fleet's registrations, JSON; 8 digits        |
//!
//! Entries form a chain: each names the one before it, and whoever writes one
//! compares `head` with the revision that he knows. Seconds between `previous` and
//! `at` had no requests. Events of the fleet have no gaps either: one is put where there
//! is none, after the one that whoever puts it has for the one before.

use std::fmt;

use pitser_ksi::hash::{Algorithm, Imprint};
use pitser_ksi::time::Second;

use super::tiles::TILE_SECONDS;

/// Names of keys.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            prefix: format!("{}/", prefix.trim_end_matches('/')),
        }
    }

    /// Begins all of them.
    pub(super) fn all(&self) -> String {
        self.prefix.clone()
    }

    pub(super) fn charter(&self) -> String {
        self.named("charter")
    }

    pub(super) fn head(&self) -> String {
        self.named("head")
    }

    pub(super) fn leader(&self) -> String {
        self.named("leader")
    }

    pub(super) fn tiled(&self) -> String {
        self.named("tiled")
    }

    pub(super) fn publications(&self) -> String {
        self.named("publications")
    }

    pub(super) fn second(&self, at: Second) -> String {
        format!("{}seconds/{:012}", self.prefix, at.0)
    }

    /// The second that a key names, if it names one.
    pub(super) fn second_of(&self, key: &[u8]) -> Option<Second> {
        let digits = std::str::from_utf8(key)
            .ok()?
            .strip_prefix(&self.prefix)?
            .strip_prefix("seconds/")?;
        digits.parse().ok().map(Second)
    }

    pub(super) fn tile(&self, index: u64) -> String {
        format!("{}tiles/{index:09}", self.prefix)
    }

    /// Begins those of registrations.
    pub(super) fn fleet(&self) -> String {
        self.named("fleet/")
    }

    pub(super) fn registration(&self, number: u64) -> String {
        format!("{}fleet/{number:08}", self.prefix)
    }

    fn named(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

/// One step of the chain of seconds, as `head` holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) at: Second,
    /// The second of the entry before it, or the one before the genesis.
    pub(super) previous: Second,
    pub(super) root: Imprint,
}

impl Entry {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(16 + ROOT);
        bytes.extend_from_slice(&self.at.0.to_be_bytes());
        bytes.extend_from_slice(&self.previous.0.to_be_bytes());
        bytes.extend_from_slice(self.root.as_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (at, rest) = bytes.split_first_chunk()?;
        let (previous, root) = rest.split_first_chunk()?;
        let entry = Self {
            at: Second(u64::from_be_bytes(*at)),
            previous: Second(u64::from_be_bytes(*previous)),
            root: decode_root(root)?,
        };
        (entry.previous < entry.at).then_some(entry)
    }
}

/// A SHA-256 imprint, or nothing.
pub(super) fn decode_root(bytes: &[u8]) -> Option<Imprint> {
    Imprint::from_bytes(bytes)
        .ok()
        .filter(|root| root.algorithm() == Algorithm::Sha256)
}

/// Which calendar stands under the prefix, and who signs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Charter {
    pub(super) genesis: Second,
    /// SHA-256 of the certificate, in hexadecimal digits.
    pub(super) certificate: String,
}

impl Charter {
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut lines = std::str::from_utf8(bytes).ok()?.lines();
        let version = lines.next()?;
        let genesis = lines.next()?.strip_prefix("genesis ")?.parse().ok()?;
        let certificate = lines.next()?.strip_prefix("certificate ")?.to_owned();
        (version == VERSION).then_some(Self {
            genesis: Second(genesis),
            certificate,
        })
    }
}

impl fmt::Display for Charter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{VERSION}")?;
        writeln!(f, "genesis {}", self.genesis.0)?;
        writeln!(f, "certificate {}", self.certificate)
    }
}

/// The tile that holds a second.
pub(super) fn tile_of(at: Second) -> u64 {
    at.0 / TILE_SECONDS
}

/// Bytes of a SHA-256 imprint.
pub(super) const ROOT: usize = 33;
const VERSION: &str = "pitser cluster 1";

#[cfg(test)]
mod tests {
    use pitser_ksi::hash::hash;

    use super::*;

    fn entry() -> Entry {
        Entry {
            at: Second(1_773_480_413),
            previous: Second(1_773_480_400),
            root: hash(Algorithm::Sha256, &[b"root"]),
        }
    }

    #[test]
    fn entries_and_charters_are_read_as_written() {
        assert_eq!(Entry::decode(&entry().encode()), Some(entry()));
        let charter = Charter {
            genesis: Second(1_773_480_413),
            certificate: "00ff".to_owned(),
        };
        assert_eq!(
            Charter::decode(charter.to_string().as_bytes()),
            Some(charter)
        );
    }

    #[test]
    fn an_entry_of_another_length_or_order_is_none() {
        let bytes = entry().encode();
        for len in 0..bytes.len() {
            assert_eq!(Entry::decode(&bytes[..len]), None, "{len}");
        }
        let longer: Vec<u8> = bytes.iter().copied().chain([0]).collect();
        assert_eq!(Entry::decode(&longer), None);
        let same = Entry {
            previous: entry().at,
            ..entry()
        };
        assert_eq!(Entry::decode(&same.encode()), None);
    }

    #[test]
    fn keys_of_seconds_sort_by_time() {
        let keys = Keys::new("/pitser");
        let (early, late) = (keys.second(Second(999)), keys.second(Second(1_000)));
        assert!(early < late);
        assert_eq!(keys.second_of(late.as_bytes()), Some(Second(1_000)));
        assert_eq!(keys.second_of(b"/other/seconds/000000000999"), None);
    }
}
