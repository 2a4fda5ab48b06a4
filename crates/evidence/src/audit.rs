//! The auditor's statement: somebody else replayed every line and got the
//! same log and the same map (docs/spec/34-audit.md).
//!
//! A signed note (C2SP `signed-note`, Ed25519) with this text:
//!
//! ```text
//! pitser-audit/1
//! <origin>
//! <hash of the genesis line, as an imprint in hexadecimal>
//! <number of the last block>
//! <size of the log> <root of the log, base64>
//! <root of the map after that block's lines, as an imprint in hexadecimal>
//! <Unix seconds of the statement>
//! ```
//!
//! The genesis hash is what ties a verifier's anchor to this log: a name and a
//! key alone could stand for two trails.

use crate::codec::{CodecError, Digest};
use data_encoding::BASE64;
use pitser_ksi::time::Second;

const FIRST_LINE: &str = "pitser-audit/1";

/// What an auditor signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// Name of the trail.
    pub origin: String,
    /// Hash of the first line replayed.
    pub genesis: Digest,
    /// The last block replayed.
    pub block: u64,
    /// Size of the log with that block.
    pub size: u64,
    /// Root of the log at that size.
    pub log_root: [u8; 32],
    /// Root of the map that the block's log entry holds.
    pub map_root: Digest,
    /// When the statement was made, by the auditor's clock.
    pub made_at: Second,
}

impl Statement {
    /// The note text to sign.
    pub fn text(&self) -> String {
        format!(
            "{FIRST_LINE}\n{}\n{}\n{}\n{} {}\n{}\n{}\n",
            self.origin,
            self.genesis,
            self.block,
            self.size,
            BASE64.encode(&self.log_root),
            self.map_root,
            self.made_at.0
        )
    }

    /// Reads a note text.
    ///
    /// # Errors
    /// [`CodecError::Rule`] unless it is exactly what [`Statement::text`] writes.
    pub fn parse(text: &str) -> Result<Self, CodecError> {
        let statement = Self::read(text).filter(|s| s.text() == text);
        statement.ok_or_else(|| CodecError::Rule("not an audit statement of version 1".into()))
    }

    fn read(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next()? != FIRST_LINE {
            return None;
        }
        let origin = lines.next()?.to_owned();
        let genesis = lines.next()?.parse().ok()?;
        let block = lines.next()?.parse().ok()?;
        let (size, root) = lines.next()?.split_once(' ')?;
        Some(Self {
            origin,
            genesis,
            block,
            size: size.parse().ok()?,
            log_root: BASE64.decode(root.as_bytes()).ok()?.try_into().ok()?,
            map_root: lines.next()?.parse().ok()?,
            made_at: Second(lines.next()?.parse().ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_exactly_what_it_writes() {
        let statement = Statement {
            origin: "haigla.example/hospital".into(),
            genesis: Digest::of(&[b"genesis"]),
            block: 6,
            size: 7,
            log_root: [3; 32],
            map_root: Digest::of(&[b"map"]),
            made_at: Second(1_773_480_413),
        };
        let text = statement.text();
        assert_eq!(Statement::parse(&text), Ok(statement));
        for wrong in [
            text.replace("\n7 ", "\n07 "),
            text.replace("audit/1", "audit/2"),
            text.clone() + "\n",
            text.trim().into(),
        ] {
            assert!(Statement::parse(&wrong).is_err(), "{wrong}");
        }
    }
}
