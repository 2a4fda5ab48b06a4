//! What wrong rows take of memory, by an allocator that counts.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/table.rs"]
mod table;

use peak_alloc::PeakAlloc;
use pitser_evidence::Code;
use pitser_evidence::codec::{Bytes32, Digest};
use pitser_evidence::commit::Key as SecretKey;
use pitser_monitor::{
    Expected, Finding, Incidents, Judge, Noted, ScanTable, Suspects, Versions, look,
};
use std::sync::Mutex;
use table::Table;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Held by each test: what is counted is everybody's.
static ALONE: Mutex<()> = Mutex::new(());

/// Whoever restores an old backup makes so many rows wrong, and far more.
const ROWS: u64 = 300_000;

fn wrong(number: u64) -> Finding {
    let digest = Digest::of(&[&number.to_be_bytes()]);
    Finding {
        table: Some("entry".into()),
        record: Some(Bytes32(digest.0.digest().try_into().unwrap())),
        columns: vec!["note".into()],
        ..Finding::general(Code::RowDiffers, "the row differs from its sealed version")
    }
}

/// One scan, which finds the rows of these numbers; how many of them were new.
fn scan(incidents: &mut Incidents, numbers: impl Iterator<Item = u64>) -> u64 {
    incidents.begin_scan();
    let mut new = 0;
    for number in numbers {
        let finding = wrong(number);
        if incidents.note(&finding) == Noted::New {
            incidents.found(finding, number, number);
            new += 1;
        }
    }
    incidents.settle(|_| true);
    new
}

/// All are known by their findings, and each of them is told once, as long as it is wrong.
#[test]
fn a_wrong_row_takes_twenty_bytes_and_a_scan_nothing_more() {
    let _alone = ALONE.lock().unwrap();
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let mut incidents = Incidents::default();
    for new in [ROWS, 0] {
        assert_eq!(scan(&mut incidents, 0..ROWS), new);
        let peak = MEMORY.peak_usage() - before;
        eprintln!("{} bytes a row", peak / ROWS as usize);
        // Of those that are kept in full there are few.
        assert!(peak < 20 * ROWS as usize + (1 << 20), "{peak}");
    }
    // Where their findings stand is a run of lines.
    let with_rows = MEMORY.current_usage();
    let counted = incidents.counted_rows();
    assert_eq!(counted.count(), ROWS - incidents.kept().len() as u64);
    assert!(MEMORY.current_usage() - with_rows < 1024);
    drop(counted);
    // Most are mended, and give their memory back.
    assert_eq!(scan(&mut incidents, 0..ROWS / 10), 0);
    assert_eq!(incidents.open(&[Code::RowDiffers]), ROWS / 10);
    let kept = MEMORY.current_usage() - before;
    assert!(kept < 2 * ROWS as usize + (1 << 20), "{kept}");
}

/// Compares nothing.
struct Content;

impl Judge for Content {
    fn expected(&mut self, _: &str, records: &[Bytes32]) -> Option<Vec<Expected>> {
        Some(vec![Expected::Erased; records.len()])
    }

    fn judge(&mut self, _: Suspects) -> Option<()> {
        None
    }
}

/// Which of equal rows one is takes a count of each; that there is one takes less.
#[test]
fn a_row_without_a_key_takes_little_more_than_one_with_a_key() {
    let _alone = ALONE.lock().unwrap();
    let take = |keyless: bool| {
        let tables = [ScanTable {
            name: "entry".into(),
            key: SecretKey::new([1; 32]),
            keyless,
            columns: Versions::default(),
        }];
        // None is equal to another.
        let mut table = Table {
            rows: ROWS,
            value: |number: u64| number.to_be_bytes().to_vec(),
        };
        let before = MEMORY.current_usage();
        MEMORY.reset_peak_usage();
        let look = look(&mut table, &tables, &mut Content).unwrap();
        assert_eq!(look.map(|look| look.rows), Some(ROWS));
        (MEMORY.peak_usage() - before) / ROWS as usize
    };
    let (with, without) = (take(false), take(true));
    eprintln!("{with} bytes with a key, {without} without");
    assert!(without < with + 24, "{with}, {without}");
}
