//! Times in which nothing is captured.

use super::*;
use std::sync::atomic::AtomicBool;

const SINCE: &str = "nothing is captured since";
const FROM: &str = "nothing was captured from";

/// Lines of the findings whose text begins so.
fn told(status: &Status, start: &str) -> Vec<Option<u64>> {
    let all = status.findings.iter();
    let told = all.filter(|f| f.text.starts_with(start));
    told.map(|f| f.line).collect()
}

/// Each session opened its source, and so the outage began anew with each: one that always
/// fails at once was never told.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_fail_at_once_do_not_end_an_outage() {
    let mut site = Site::new();
    site.tuning.unwatched_alarm_s = 3600;
    install(&site).unwrap();
    let ahead = Arc::new(AtomicU64::new(0));
    let later = Arc::clone(&ahead);
    let guardian = site.start_alone(move || micros() + later.load(Ordering::SeqCst));
    guardian.scan().await.unwrap();
    // A session that sees another schema ends: it cannot be written down.
    let layout = site.tuning.layout(&site.source);
    let next = layout.dir().join("fingerprint.next.json");
    std::fs::remove_file(&next).unwrap();
    std::fs::create_dir_all(next.join("in the way")).unwrap();
    let column = "ALTER TABLE result ADD COLUMN unit TEXT";
    site.database().execute_batch(column).unwrap();
    let fails = |s: &Status| s.state == SourceState::TrailUnavailable;
    let status = status_with(&guardian, "fails", fails).await;
    assert_eq!(told(&status, SINCE), []);

    ahead.store(2 * 3600 * 1_000_000, Ordering::SeqCst);
    // Another session was opened by then, and has failed.
    let is_told = |s: &Status| fails(s) && !told(s, SINCE).is_empty();
    let status = status_with(&guardian, "says so", is_told).await;
    assert_eq!(told(&status, SINCE), [None]);
    assert_eq!(told(&status, FROM), []);

    // From here on it is always shown: as one that lasts, then as one that is over.
    let is_over = Arc::new(AtomicBool::new(false));
    let (mut shown, over) = (guardian.watch(), Arc::clone(&is_over));
    let watcher = tokio::spawn(async move {
        let mut seen = 0;
        while !over.load(Ordering::SeqCst) && shown.changed().await.is_ok() {
            let status = shown.borrow_and_update().clone();
            let (lasts, was) = (told(&status, SINCE), told(&status, FROM));
            assert_eq!(lasts.len() + was.len(), 1, "{:?}", status.findings);
            seen += 1;
        }
        seen
    });
    std::fs::remove_dir_all(&next).unwrap();
    let goes_on = |s: &Status| !told(s, FROM).is_empty();
    let status = status_with(&guardian, "goes on", goes_on).await;
    is_over.store(true, Ordering::SeqCst);
    assert_eq!(told(&status, SINCE), []);
    assert!(told(&status, FROM)[0].is_some());
    guardian.stop().await;
    assert!(watcher.await.unwrap() > 0);
}

/// A machine's clock ran ahead, and is put right: all that is regular was due by then.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_back_holds_nothing_up() {
    let mut site = Site::new();
    site.tuning.unwatched_alarm_s = 3600;
    install(&site).unwrap();
    let ahead = Arc::new(AtomicU64::new(3600 * 1_000_000));
    let by = Arc::clone(&ahead);
    let guardian = site.start_alone(move || micros() + by.load(Ordering::SeqCst));
    guardian.scan().await.unwrap();
    let mut blocks = guardian.status().blocks;
    for (note, by) in [("before", 3600), ("after", 0)] {
        ahead.store(by * 1_000_000, Ordering::SeqCst);
        let change = format!("UPDATE result SET note = '{note}' WHERE id = 1");
        site.database().execute_batch(&change).unwrap();
        let closes = |s: &Status| s.blocks > blocks;
        blocks = status_with(&guardian, "closes a block", closes)
            .await
            .blocks;
    }
    guardian.stop().await;
}

/// Whoever is to be told of an outage has to know whose it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_guardian_that_starts_without_its_database_says_whose_it_is() {
    let mut site = Site::new();
    install(&site).unwrap();
    let layout = site.tuning.layout(&site.source);
    let (_, genesis) = pitser_trail::read::genesis(&layout).unwrap();
    // Nobody listens there.
    let url = "postgres://pitser@127.0.0.1:1/hospital";
    site.source = Source::new("hospital", Kind::Postgres, url, &["*"]);
    site.tuning.unwatched_alarm_s = 0;
    let (guardian, _) = site.start(None);
    let status = guardian.status();
    assert_eq!(status.state, SourceState::DatabaseUnavailable);
    assert_eq!(told(&status, SINCE), [None]);
    assert_eq!(status.genesis, genesis.to_string());
    assert!(!status.is_opened);
    guardian.stop().await;
}
