//! One suite for every store: each test opens the same store again and again.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::thread;

use pitser_tlog::merkle::leaf_hash;
use pitser_tlog::note::SigningKey;
use pitser_witness::{Fork, Head, Log, MemoryStore, Pace, SqliteStore, Store, StoreError};

#[test]
fn memory_conforms() {
    conforms(|| {
        let store = MemoryStore::new();
        move || store.clone()
    });
}

#[test]
fn sqlite_conforms() {
    conforms(|| {
        let folder = tempfile::tempdir().unwrap();
        move || SqliteStore::open(folder.path().join("witness.db")).unwrap()
    });
}

/// `fresh` makes an empty store; what it returns opens that one.
fn conforms<S: Store + Send, O: Fn() -> S + Sync>(fresh: impl Fn() -> O) {
    starts_empty(&fresh());
    survives_reopening(&fresh());
    keeps_logs_apart(&fresh());
    refuses_a_stale_head(&fresh());
    accepts_the_same_head_at_a_later_time(&fresh());
    refuses_a_clock_that_went_back(&fresh());
    lets_one_of_two_racers_win(&fresh());
    keeps_the_first_fork_of_a_log(&fresh());
    tells_the_newest_time(&fresh());
    keeps_what_is_watched(&fresh());
}

fn starts_empty<S: Store>(open: &impl Fn() -> S) {
    assert_eq!(open().head("a").unwrap(), None);
    assert_eq!(open().forks().unwrap(), []);
}

fn survives_reopening<S: Store>(open: &impl Fn() -> S) {
    let (one, two) = (head(1, 10), head(2, 20));
    open().advance("a", None, &one).unwrap();
    assert_eq!(open().head("a").unwrap().as_ref(), Some(&one));
    open().advance("a", Some(&one), &two).unwrap();
    assert_eq!(open().head("a").unwrap().as_ref(), Some(&two));
}

fn keeps_logs_apart<S: Store>(open: &impl Fn() -> S) {
    let mut store = open();
    store.advance("a", None, &head(1, 10)).unwrap();
    store.advance("b", None, &head(5, 10)).unwrap();
    assert_eq!(store.head("a").unwrap(), Some(head(1, 10)));
    assert_eq!(store.head("b").unwrap(), Some(head(5, 10)));
    assert_eq!(store.head("A").unwrap(), None);
}

fn refuses_a_stale_head<S: Store>(open: &impl Fn() -> S) {
    let mut store = open();
    let (one, two, three) = (head(1, 10), head(2, 20), head(3, 30));
    assert_conflict(store.advance("a", Some(&one), &two), 0);
    store.advance("a", None, &one).unwrap();
    store.advance("a", Some(&one), &two).unwrap();
    assert_conflict(store.advance("a", None, &three), 2);
    assert_conflict(store.advance("a", Some(&one), &three), 2);
    let forked = Head {
        root: leaf_hash(b"forked"),
        ..two.clone()
    };
    assert_conflict(store.advance("a", Some(&forked), &three), 2);
    assert_eq!(store.head("a").unwrap(), Some(two));
}

fn accepts_the_same_head_at_a_later_time<S: Store>(open: &impl Fn() -> S) {
    let mut store = open();
    store.advance("a", None, &head(1, 10)).unwrap();
    store
        .advance("a", Some(&head(1, 10)), &head(1, 20))
        .unwrap();
    // What counts is the tree, not when the caller last looked.
    store
        .advance("a", Some(&head(1, 10)), &head(1, 30))
        .unwrap();
    assert_eq!(open().head("a").unwrap(), Some(head(1, 30)));
}

fn refuses_a_clock_that_went_back<S: Store>(open: &impl Fn() -> S) {
    open().advance("a", None, &head(1, 10)).unwrap();
    let result = open().advance("b", None, &head(1, 9));
    assert!(
        matches!(result, Err(StoreError::ClockWentBack)),
        "{result:?}"
    );
    assert_eq!(open().head("b").unwrap(), None);
    open().advance("b", None, &head(1, 10)).unwrap();
}

fn lets_one_of_two_racers_win<S: Store + Send>(open: &(impl Fn() -> S + Sync)) {
    let start = head(1, 10);
    open().advance("a", None, &start).unwrap();
    let barrier = Barrier::new(2);
    let race = |size| {
        let mut store = open();
        barrier.wait();
        store.advance("a", Some(&start), &head(size, 20))
    };
    let (left, right) = thread::scope(|scope| {
        let left = scope.spawn(|| race(2));
        (race(3), left.join().unwrap())
    });
    assert!(left.is_ok() != right.is_ok(), "{left:?} {right:?}");
    let stored = open().head("a").unwrap().unwrap().size;
    assert_conflict(left.and(right), stored);
}

fn keeps_the_first_fork_of_a_log<S: Store>(open: &impl Fn() -> S) {
    let fork = |origin: &str, size| Fork {
        origin: origin.into(),
        size,
        held: "held\n".into(),
        refused: "refused\n".into(),
        refused_at: 7,
    };
    open().keep_fork(fork("b", 1)).unwrap();
    open().keep_fork(fork("b", 2)).unwrap();
    open().keep_fork(fork("a", 3)).unwrap();
    assert_eq!(open().forks().unwrap(), [fork("a", 3), fork("b", 1)]);
}

fn tells_the_newest_time<S: Store>(open: &impl Fn() -> S) {
    assert_eq!(open().latest_at().unwrap(), None);
    open().advance("b", None, &head(1, 10)).unwrap();
    open().advance("a", None, &head(1, 30)).unwrap();
    assert_eq!(open().latest_at().unwrap(), Some(30));
}

fn keeps_what_is_watched<S: Store>(open: &impl Fn() -> S) {
    let log = |name: &str, seed| {
        let key = SigningKey::from_seed(name, &[seed; 32]).unwrap();
        Log::new(key.verifier())
    };
    let (a, b) = (log("a", 1), log("b", 2));
    open().put_log(&b).unwrap();
    open().put_log(&a).unwrap();
    assert_eq!(open().logs().unwrap(), [a.clone(), b.clone()]);
    assert_eq!(open().log("a").unwrap(), Some(a));
    assert_eq!(open().log("A").unwrap(), None);

    open().advance("b", None, &head(3, 10)).unwrap();
    let calendar = log("b", 3).with_pace(Pace {
        genesis_at: 1_735_689_600,
        tolerance_s: 0,
    });
    open().put_log(&calendar).unwrap();
    assert_eq!(open().log("b").unwrap(), Some(calendar));
    assert_eq!(open().head("b").unwrap(), Some(head(3, 10)));
}

/// That commits are also synced is asserted beside the code, in `sqlite.rs`.
#[test]
fn sqlite_keeps_what_was_committed_without_closing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("witness.db");
    let mut store = SqliteStore::open(&path).unwrap();
    store.advance("a", None, &head(1, 10)).unwrap();
    // What a killed process leaves: the files as they are, never closed.
    let after = folder.path().join("after.db");
    fs::copy(&path, &after).unwrap();
    fs::copy(
        folder.path().join("witness.db-wal"),
        folder.path().join("after.db-wal"),
    )
    .unwrap();
    let recovered = SqliteStore::open(&after).unwrap();
    assert_eq!(recovered.head("a").unwrap(), Some(head(1, 10)));
}

/// The child reports a size only after `advance` returned `Ok`; whatever it
/// reported must be there after it was killed in the middle of its work.
#[test]
fn a_killed_process_loses_nothing_it_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("witness.db");
    for reports in [1, 20, 60] {
        let mut child = Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "child_that_advances_until_killed",
                "--ignored",
                "--nocapture",
            ])
            .env(CHILD_STORE, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let lines = output.lines().map(Result::unwrap);
        let sizes = lines.filter_map(|line| line.strip_prefix(REPORT)?.parse::<u64>().ok());
        let reported = sizes.take(reports).last().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let stored = SqliteStore::open(&path).unwrap().head("a").unwrap();
        let stored = stored.unwrap();
        assert!(stored.size >= reported, "{} < {reported}", stored.size);
        assert_eq!(stored, head(stored.size, 10));
    }
}

#[test]
#[ignore = "the child process of a_killed_process_loses_nothing_it_reported"]
fn child_that_advances_until_killed() {
    let Some(path) = env::var_os(CHILD_STORE) else {
        return; // nobody's child
    };
    let mut store = SqliteStore::open(path).unwrap();
    let mut held = store.head("a").unwrap();
    loop {
        let next = head(held.as_ref().map_or(1, |head| head.size + 1), 10);
        store.advance("a", held.as_ref(), &next).unwrap();
        println!("{REPORT}{}", next.size);
        held = Some(next);
    }
}

const CHILD_STORE: &str = "WITNESS_STORE_OF_CHILD";
const REPORT: &str = "stored ";

#[test]
fn sqlite_refuses_files_of_another_kind() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |path| {
        let result = SqliteStore::open(path);
        assert!(
            matches!(result, Err(StoreError::UnknownFormat)),
            "{result:?}"
        );
    };
    let text = folder.path().join("text.db");
    fs::write(
        &text,
        "not a database, and longer than the header of one, by far and by all means, \
        since a short file would be taken for an empty database",
    )
    .unwrap();
    refused(&text);

    let other = folder.path().join("other.db");
    rusqlite::Connection::open(&other)
        .unwrap()
        .execute_batch("CREATE TABLE t (c)")
        .unwrap();
    refused(&other);

    let newer = folder.path().join("newer.db");
    drop(SqliteStore::open(&newer).unwrap());
    rusqlite::Connection::open(&newer)
        .unwrap()
        .execute_batch("PRAGMA user_version = 3")
        .unwrap();
    refused(&newer);
}

#[test]
fn sqlite_refuses_numbers_it_cannot_hold() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(folder.path().join("witness.db")).unwrap();
    let result = store.advance("a", None, &head(1 << 63, 10));
    assert!(matches!(result, Err(StoreError::Failed(_))), "{result:?}");
    assert_eq!(store.head("a").unwrap(), None);
}

fn head(size: u64, cosigned_at: u64) -> Head {
    Head {
        size,
        root: leaf_hash(&size.to_be_bytes()),
        cosigned_at,
        note: format!("head of {size}\n"),
    }
}

fn assert_conflict(result: Result<(), StoreError>, expected: u64) {
    match result {
        Err(StoreError::Conflict { size }) => assert_eq!(size, expected),
        other => panic!("no conflict: {other:?}"),
    }
}
