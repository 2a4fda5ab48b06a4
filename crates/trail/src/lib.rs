//! A source's trail on disk: segments of lines, blocks and their seals, the
//! vault, recovery after a crash, and what is exported for outsiders.
//!
//! In scope: the files of one trail directory ([`layout`]), their single
//! writer ([`Trail`]), the reader that recomputes everything ([`mod@read`]), keys
//! at rest ([`keys`], [`master`]), the vault ([`vault`]), who may be erased from it
//! ([`erasure`]), evidence files ([`export`]), segments that moved to an object store
//! ([`archive`]), and the pieces of all of them that an auditor asks for ([`serve`]).
//! Elsewhere: formats (`evidence`), sockets and devices (signatures, cosignatures, the
//! store and the master key's keeper are handed in), what happened in a database
//! (`capture`). Time is an argument.
//!
//! The order of every write is: vault, lines, block, seal. Each is on disk
//! before the next begins, so a crash leaves at most an unfinished end, which
//! [`Trail::open`] cuts off or completes. ARCHITECTURE.md has the table.

pub mod archive;
mod behind;
pub mod copy;
pub mod disk;
pub mod draft;
pub mod erasure;
pub mod export;
mod gather;
pub mod hold;
pub mod index;
pub mod keys;
pub mod layout;
pub mod log;
pub mod map;
mod marks;
pub mod master;
mod named;
pub mod read;
mod recent;
mod records;
pub mod replay;
pub mod serve;
mod signatures;
pub mod vault;
mod write;

pub use draft::{Body, Draft, DraftActor, PatientId, Row, Value};
pub use gather::Gather;
pub use keys::Keys;
pub use layout::{Layout, VaultKey};
pub use read::{BlockInfo, Damage, ReadError, View, check, read};
pub use replay::{Replayed, Watch, forget, replay};
pub use vault::{Content, Marks, Vault, row_marks};
pub use write::{
    BlockSummary, GenesisDraft, MAX_BLOCK_LINES, Recovery, SegmentLimits, TableDraft, Trail,
    TrailError,
};
