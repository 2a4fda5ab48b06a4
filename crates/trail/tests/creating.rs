//! Trails that cannot be begun, and what stays behind.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail loudly")]

mod common;

use common::genesis;
use pitser_trail::{Layout, TableDraft, Trail, TrailError};

const ORIGIN: &str = "test.example/hospital";

/// Nothing that cannot be read again is written.
#[test]
fn more_tables_than_a_line_can_name() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path());
    let mut wide = genesis();
    let columns: Vec<String> = (0..20).map(|nth| format!("column_{nth}")).collect();
    wide.tables = (0..4000)
        .map(|nth| TableDraft {
            name: format!("public.table_{nth}"),
            columns: columns.clone(),
            key: vec!["column_0".into()],
            patient: "patient".into(),
        })
        .collect();
    let refused = Trail::create(layout.clone(), ORIGIN, &wide).err().unwrap();
    let text = refused.to_string();
    assert!(
        text.starts_with("4000 tables, with 80000 columns, are too many"),
        "{text}"
    );
    assert!(!layout.has_trail());
    // Fewer of them fit.
    wide.tables.truncate(1000);
    drop(Trail::create(layout.clone(), ORIGIN, &wide).unwrap());
    Trail::open::<()>(layout).unwrap();
}

/// Its log key bears the name: what it signs would be another trail's.
#[test]
fn keys_of_another_name_are_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path());
    drop(Trail::create(layout.clone(), ORIGIN, &genesis()).unwrap());
    std::fs::remove_dir_all(layout.segments()).unwrap();
    let other = "test.example/clinic";
    let refused = Trail::create(layout.clone(), other, &genesis())
        .err()
        .unwrap();
    assert!(
        matches!(refused, TrailError::OthersKeys { .. }),
        "{refused}"
    );
    let text = refused.to_string();
    assert!(text.contains(ORIGIN) && text.contains(other), "{text}");
    assert!(!layout.has_trail());
    drop(Trail::create(layout, ORIGIN, &genesis()).unwrap());
}
