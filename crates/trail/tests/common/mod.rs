//! The trail that most tests here begin with.

use pitser_evidence::line::Timestamp;
use pitser_trail::{GenesisDraft, TableDraft};

/// So many seconds after the genesis.
pub(crate) fn at(second: u64) -> Timestamp {
    Timestamp::from_micros((1_773_480_413 + second) * 1_000_000).unwrap()
}

/// One table, `observation`, with a key and a value.
pub(crate) fn genesis() -> GenesisDraft {
    GenesisDraft {
        at: at(0),
        system: "5e55".into(),
        timeline: 1,
        pos: "0".into(),
        source: "ehr".into(),
        tables: vec![TableDraft {
            name: "observation".into(),
            columns: vec!["id".into(), "value".into()],
            key: vec!["id".into()],
            patient: "patient".into(),
        }],
        uncovered: vec![],
    }
}
