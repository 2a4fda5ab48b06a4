//! Log signatures: every line of a log is a leaf, every block of lines a tree
//! whose root is signed (spec §7).
//!
//! | magic      | file                                                         | here                        |
//! |------------|--------------------------------------------------------------|-----------------------------|
//! | `LOGSIG12` | log signature: all blocks, each with its seal                | [`BlockReader`]             |
//! | `LOG12BLK` | its first part while signatures are pending: unsealed blocks | [`BlockReader`]             |
//! | `LOG12SIG` | its second part: the seals, as they arrive                   | [`SealReader`], [`integrate`] |
//! | `RECSIG12` | integrity proof: some lines, each with its path to the seal  | [`Excerpt`]                 |
//! | `LOGSIG11`, `RECSIG11` | the same, signed at level 0: a legacy                  | the same                    |
//! | `KSISTAT10` | state file: the last leaf, which the next log goes on from  | [`encode_state`], [`decode_state`] |
//!
//! After the magic a log signature is a sequence of blocks:
//!
//! ```text
//! 0901 header     01 algorithm:1  02 IV  03 last leaf of the previous block
//!   0911 metarecord  (before its own hashes)  01 index  02 { 01 key  02 value }
//!   0902 record hash                                 optional: all records or none
//!   0903 tree hash: the leaf, then each finished parent   optional: all or none
//!   …
//!   0903 tree hashes of the final merge              optional, with the others
//! 0904 seal       01 record count, metarecords included
//!                 then 0905 { 0800 signature } or 02 { 01 root  02 error } or 0906
//! ```
//!
//! ```text
//! record r:    h = H(line)                    metarecord: h = H(0911, whole)
//!              m = H(previous leaf ‖ IV)
//!              leaf = H(m ‖ h ‖ 01)           metarecord: leaf = H(h ‖ m ‖ 01)
//! parent:      H(left ‖ right ‖ level)        level: 2 over two leaves, and so on
//! final merge: from the smallest complete subtree upwards, the smaller on the right
//! ```
//!
//! The mask `m` keeps whoever holds the path of one line from guessing its
//! neighbours; it also chains each leaf to all before it, across blocks.
//!
//! In scope: building, reading and checking these bytes, on slices handed in.
//! Elsewhere: files and their replacement (`trail`), obtaining signatures
//! (`client`). Hashing runs without allocation per line, and blocks can be
//! verified in parallel, because a header states the leaf it continues from.

mod builder;
mod excerpt;
mod hashing;
mod levels;
mod lines;
mod outline;
mod parts;
mod proof;
mod reader;
mod signed;
mod state;
mod verify;

pub use crate::tree::level_for;
pub use builder::{
    BlockBuilder, BuildError, ClosedBlock, StoredHashes, encode_signed, encode_unsigned,
};
pub use excerpt::{Excerpt, ExcerptBlock, ExtractError, Extracted, RecordFault, extract};
pub use lines::{Lines, next_line};
pub use outline::Outline;
pub use parts::{
    Integrated, IntegratedBlock, Integration, IntegrationError, SealReader, integrate,
};
pub use proof::{BlockTree, ProofError, RecordChain, Step};
pub use reader::{Block, BlockReader, Header, Metarecord, Seal, SealRecord, read_block, read_seal};
pub use signed::{record_signature, signed_root, verify_signature_of_block};
pub use state::{STATE_MAGIC, decode_state, encode_state};
pub use verify::{BlockReport, BlockVerifier, Fault, MAX_FAULTS, verify_block};

/// Length of every magic, in bytes.
pub const MAGIC_LEN: usize = 8;

/// What a file says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// `LOGSIG11`: a log signature whose roots were signed at level 0.
    LogSignature11,
    /// `LOGSIG12`: a log signature.
    LogSignature,
    /// `LOG12BLK`: the blocks of a log signature that waits for its seals.
    Blocks,
    /// `LOG12SIG`: the seals of such blocks.
    Seals,
    /// `RECSIG11`: an integrity proof taken from a `LOGSIG11`.
    Proof11,
    /// `RECSIG12`: an integrity proof.
    Proof,
}

impl Format {
    /// All formats.
    pub const ALL: [Format; 6] = [
        Self::LogSignature11,
        Self::LogSignature,
        Self::Blocks,
        Self::Seals,
        Self::Proof11,
        Self::Proof,
    ];

    /// The first [`MAGIC_LEN`] bytes of such a file.
    #[must_use]
    pub const fn magic(self) -> &'static [u8; MAGIC_LEN] {
        match self {
            Self::LogSignature11 => b"LOGSIG11",
            Self::LogSignature => b"LOGSIG12",
            Self::Blocks => b"LOG12BLK",
            Self::Seals => b"LOG12SIG",
            Self::Proof11 => b"RECSIG11",
            Self::Proof => b"RECSIG12",
        }
    }

    /// The format that `bytes` starts with.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|format| bytes.starts_with(format.magic()))
    }

    /// The level at which the root of a block of `count` records is signed.
    #[must_use]
    pub fn signing_level(self, count: u64) -> u8 {
        match self {
            Self::LogSignature11 | Self::Proof11 => 0,
            _ => level_for(count),
        }
    }
}

/// Key of the metarecord that closes a block before it is full; its value is the reason.
pub const BLOCK_CLOSE_REASON: &str = "com.guardtime.blockCloseReason";

mod tag {
    use crate::tlv::Tag;

    pub(super) const HEADER: Tag = 0x0901;
    pub(super) const RECORD_HASH: Tag = 0x0902;
    pub(super) const TREE_HASH: Tag = 0x0903;
    pub(super) const SEAL: Tag = 0x0904;
    pub(super) const KSI_SIGNATURE: Tag = 0x0905;
    pub(super) const RFC3161: Tag = 0x0906;
    pub(super) const RECORD_CHAIN: Tag = 0x0907;
    pub(super) const METARECORD: Tag = 0x0911;
}
