//! A block in the trail's log: what witnesses' cosignatures stand for.
//!
//! ```text
//! 01 ‖ len(origin):2 ‖ origin ‖ block:8 ‖ first seq:8 ‖ count:8
//!    ‖ LOGSIG root:imprint ‖ level:1 ‖ map root:imprint
//! ```
//! The bytes are a C2SP log entry (RFC 6962 leaf `H(00 ‖ bytes)`), known as
//! soon as the block is closed and before its seal comes. Integers are
//! big-endian; `count` counts lines, the checkpoint line included.

use crate::codec::{CodecError, Digest};
use pitser_ksi::hash::{Algorithm, Imprint};

/// One entry of a trail's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLeaf {
    /// Name of the trail.
    pub origin: String,
    /// Block number and index in the log.
    pub block: u64,
    /// `seq` of the first line.
    pub first_seq: u64,
    /// Number of lines.
    pub count: u64,
    /// Root of the LOGSIG12 block.
    pub root: Digest,
    /// Level at which the root is signed.
    pub level: u8,
    /// Root of the map before the checkpoint line.
    pub map: Digest,
}

impl LogLeaf {
    /// The entry's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![1];
        out.extend(
            u16::try_from(self.origin.len())
                .unwrap_or(u16::MAX)
                .to_be_bytes(),
        );
        out.extend(self.origin.as_bytes());
        for number in [self.block, self.first_seq, self.count] {
            out.extend(number.to_be_bytes());
        }
        out.extend(self.root.0.as_bytes());
        out.push(self.level);
        out.extend(self.map.0.as_bytes());
        out
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// [`CodecError::Rule`] unless it is exactly what [`LogLeaf::encode`] writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        Self::parse(bytes).ok_or_else(|| CodecError::Rule("not a log entry of version 1".into()))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (1, rest) = bytes.split_first().map(|(v, r)| (*v, r))? else {
            return None;
        };
        let (length, rest) = rest.split_first_chunk::<2>()?;
        let (origin, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        let (block, rest) = rest.split_first_chunk::<8>()?;
        let (first_seq, rest) = rest.split_first_chunk::<8>()?;
        let (count, rest) = rest.split_first_chunk::<8>()?;
        let (root, rest) = split_imprint(rest)?;
        let (level, rest) = rest.split_first()?;
        let (map, rest) = split_imprint(rest)?;
        rest.is_empty().then_some(Self {
            origin: String::from_utf8(origin.to_vec()).ok()?,
            block: u64::from_be_bytes(*block),
            first_seq: u64::from_be_bytes(*first_seq),
            count: u64::from_be_bytes(*count),
            root,
            level: *level,
            map,
        })
    }
}

fn split_imprint(bytes: &[u8]) -> Option<(Digest, &[u8])> {
    let algorithm = Algorithm::from_id(*bytes.first()?)?;
    let (imprint, rest) = bytes.split_at_checked(1 + algorithm.digest_len())?;
    Some((Digest(Imprint::from_bytes(imprint).ok()?), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_exactly_what_it_writes() {
        let leaf = LogLeaf {
            origin: "haigla.example/hospital".into(),
            block: 3,
            first_seq: 40,
            count: 12,
            root: Digest::of(&[b"root"]),
            level: 5,
            map: Digest::of(&[b"map"]),
        };
        let bytes = leaf.encode();
        assert_eq!(LogLeaf::decode(&bytes), Ok(leaf));
        for cut in 0..bytes.len() {
            assert!(LogLeaf::decode(&bytes[..cut]).is_err());
        }
        assert!(LogLeaf::decode(&[bytes, vec![0]].concat()).is_err());
    }
}
