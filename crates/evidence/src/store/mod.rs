//! Where the map's leaves are kept while a trail is replayed.
//!
//! [`State`](crate::state::State) says how a line changes the leaves; a
//! [`Storage`] finds and keeps them. There is one, [`Tree`]: buckets of leaves
//! whose map keys begin with the same bits, under a binary tree of hashes. It
//! leaves open where the buckets' bytes are: [`Memory`] keeps them here, the
//! trail on disk.

mod entry;
mod hashing;
mod memory;
mod nodes;
mod tree;

pub use entry::Malformed;
pub use memory::Memory;
pub use nodes::{Bucket, Extent, Prefix};
pub use tree::{Counts, Limits, Pages, Tree};

use crate::codec::Bytes32;
use crate::line::Patient;
use crate::map::{Leaf, MapKey, Path};
use crate::state::Record;

/// Keeps the leaves of a map, and whose the records are.
///
/// What was put is found at once. Whether it outlives the process is the
/// implementation's to say; [`State`](crate::state::State) does not ask.
pub trait Storage {
    /// Why leaves cannot be read or kept.
    type Error: std::error::Error;

    /// The leaf of a record, if any line was about it.
    ///
    /// # Errors
    /// What the storage says.
    fn record_leaf(&self, table: &str, key: &Bytes32) -> Result<Option<Leaf>, Self::Error>;

    /// The leaves that a line about this record and this patient finds. Cheaper than to
    /// ask one by one.
    ///
    /// # Errors
    /// What the storage says.
    fn leaves(
        &self,
        record: Option<(&str, &Bytes32)>,
        patient: Option<&Patient>,
    ) -> Result<Leaves, Self::Error>;

    /// The record itself: its leaf, and whose it is.
    ///
    /// # Errors
    /// What the storage says.
    fn record(&self, table: &str, key: &Bytes32) -> Result<Option<Record>, Self::Error>;

    /// Whether a record is this patient's; `None` if no line was about it. Cheaper than
    /// to ask whose it is.
    ///
    /// # Errors
    /// What the storage says.
    fn is_of(
        &self,
        table: &str,
        key: &Bytes32,
        patient: &Patient,
    ) -> Result<Option<bool>, Self::Error>;

    /// Keeps a record's leaf, and notes whose the record is. Patients whom it
    /// names have a leaf already.
    ///
    /// # Errors
    /// What the storage says.
    fn put_record(
        &mut self,
        table: &str,
        key: &Bytes32,
        leaf: &Leaf,
        whose: Whose,
    ) -> Result<(), Self::Error>;

    /// Shows all records of a table to `visit`, in no order.
    ///
    /// # Errors
    /// What the storage says.
    fn records(
        &self,
        table: &str,
        visit: &mut dyn FnMut(&Bytes32, &Leaf),
    ) -> Result<(), Self::Error>;

    /// How many records are this patient's and have a row. All records are looked at.
    ///
    /// # Errors
    /// What the storage says.
    fn rows_of(&self, patient: &Patient) -> Result<u64, Self::Error>;

    /// The leaf of a patient's list, if any line was about the patient.
    ///
    /// # Errors
    /// What the storage says.
    fn patient_leaf(&self, patient: &Patient) -> Result<Option<Leaf>, Self::Error>;

    /// Keeps the leaf of a patient's list, and how many holds stand: the map's root knows
    /// nothing of these.
    ///
    /// # Errors
    /// What the storage says.
    fn put_patient(
        &mut self,
        patient: &Patient,
        leaf: &Leaf,
        holds: u64,
    ) -> Result<(), Self::Error>;

    /// Number of patients, the two pseudo-patients included where they occur.
    fn patients(&self) -> u64;

    /// Notes a digest beside the leaves: the map's root knows nothing of it.
    ///
    /// # Errors
    /// What the storage says.
    fn mark(&mut self, mark: &Bytes32) -> Result<(), Self::Error>;

    /// Whether a digest was noted.
    ///
    /// # Errors
    /// What the storage says.
    fn is_marked(&self, mark: &Bytes32) -> Result<bool, Self::Error>;

    /// The map's root over all leaves (docs/spec/33-map.md §3).
    ///
    /// # Errors
    /// What the storage says.
    fn root(&mut self) -> Result<[u8; 32], Self::Error>;

    /// The path of `key`: proves its leaf, or that it has none.
    ///
    /// # Errors
    /// What the storage says.
    fn prove(&mut self, key: &MapKey) -> Result<Path, Self::Error>;
}

/// What there is about a record and a patient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaves {
    /// The record's leaf, if any line was about it.
    pub record: Option<Leaf>,
    /// The leaf of the patient's list, if any line was about the patient.
    pub patient: Option<Leaf>,
    /// How many holds stand that keep the patient from being erased.
    pub holds: u64,
    /// Whether both are there, and the record is the patient's.
    pub is_patients: bool,
}

/// How a line bears on whose a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The first line about the record, without a row.
    First(Option<Patient>),
    /// The line commits to the record's row.
    Committed(Option<Patient>),
    /// Not at all.
    Unchanged,
}
