//! Far more findings than are kept in memory: each is told once, all are counted, and
//! each can be answered for, over restarts too.

use super::triggers::past_triggers;
use super::*;
use pitser_guardian::acceptance::Asked;
use pitser_guardian::approver::{Approver, Power, Refused, Token};
use pitser_guardian::{MoreStatus, Status};
use pitser_monitor::KEPT;

const MOST: u64 = KEPT as u64;

fn site() -> Site {
    let mut site = Site::new();
    site.tuning.approvers = vec![Approver {
        name: "Mari".into(),
        token_sha256: Token::new("mari").hash(),
        may: vec![Power::Accept],
        until: None,
    }];
    site
}

async fn accept(guardian: &Handle, findings: &[u64]) -> Result<(), String> {
    let asked = Asked {
        token: Token::new("mari"),
        findings: findings.to_vec(),
        reason: "the nightly import".into(),
    };
    match guardian.accept(asked).await {
        Ok(_) => Ok(()),
        Err(Refused::Rule(why)) => Err(why),
        Err(other) => panic!("{other}"),
    }
}

fn open(status: &Status, code: &str) -> u64 {
    status.open_findings(|it| it == code)
}

/// Lines of the open findings that are listed.
fn listed(status: &Status) -> Vec<u64> {
    let open = status.findings.iter().filter(|f| f.open);
    open.map(|f| f.line.unwrap()).collect()
}

/// Lines of the trail that tell of findings of this code.
fn told(site: &Site, code: &str) -> u64 {
    let mut lines = 0;
    let layout = site.tuning.layout(&site.source);
    pitser_trail::read(&layout, None, |line, _| {
        let found = line.finding.as_ref().map(|it| it.code.as_str());
        lines += u64::from(found == Some(code));
    })
    .unwrap();
    lines
}

fn more(status: &Status, code: &str) -> MoreStatus {
    let mut more = status.more_findings.iter();
    more.find(|more| more.code == code).unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_events_is_counted_and_can_be_accepted() {
    let site = site();
    install(&site).unwrap();
    let (mut guardian, _) = site.start(None);
    let number = 2 * MOST + 50;
    let db = site.database();
    for n in 0..number {
        db.execute("UPDATE observation SET value = ?1 WHERE id = 'obs-1'", [n])
            .unwrap();
    }
    let found = |s: &Status| open(s, "ACT-01") == number;
    status_with(&guardian, "all of them", found).await;

    let status = guardian.status();
    let counted = more(&status, "ACT-01");
    assert_eq!(listed(&status).len() as u64, MOST);
    assert_eq!((counted.open, counted.earlier), (number - MOST, 0));
    assert_eq!(counted.table.as_deref(), Some("observation"));
    // Two lines for each: the change, and what is wrong with it.
    let (first, last) = (counted.first_line.unwrap(), counted.last_line.unwrap());
    assert!(last - first >= 2 * (number - MOST - 1));

    // One that is listed, and two that are only counted.
    let one = listed(&status)[0];
    accept(&guardian, &[first, one, last]).await.unwrap();
    for line in [first, one, last] {
        let why = accept(&guardian, &[line]).await.unwrap_err();
        assert!(why.contains("accepted before"), "{why}");
    }
    let why = accept(&guardian, &[first - 1]).await.unwrap_err();
    assert!(why.contains("no finding"), "{why}");
    let is_left = |status: &Status| {
        assert_eq!(open(status, "ACT-01"), number - 3);
        assert_eq!(status.all_findings(|it| it == "ACT-01"), number);
    };
    is_left(&guardian.status());
    let accepted = |s: &Status| s.findings.iter().filter(|f| f.accepted.is_some()).count();
    assert_eq!(accepted(&guardian.status()), 3);

    guardian.stop().await;
    (guardian, _) = site.start(None);
    is_left(&guardian.status());

    // When those that are listed are accepted, others are. So all can be.
    let mut left = number - 3;
    while left > 0 {
        let now = listed(&guardian.status());
        assert!(!now.is_empty() && now.len() as u64 <= MOST);
        accept(&guardian, &now).await.unwrap();
        left -= now.len() as u64;
        let are_shown = |s: &Status| {
            open(s, "ACT-01") == left && (left == 0 || listed(s).len() as u64 >= left.min(MOST / 2))
        };
        status_with(&guardian, "others instead", are_shown).await;
    }
    guardian.stop().await;
    (guardian, _) = site.start(None);
    let status = guardian.status();
    assert_eq!(status.open_findings(|_| true), 0);
    assert_eq!(status.all_findings(|it| it == "ACT-01"), number);
    guardian.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_wrong_rows_is_told_once_and_closed_when_it_is_mended() {
    let site = site();
    // More lines than a block can have.
    let number = pitser_trail::MAX_BLOCK_LINES as u64 + 100;
    let rows = format!(
        "WITH RECURSIVE n(n) AS (SELECT 100 UNION ALL SELECT n + 1 FROM n LIMIT {number})
         INSERT INTO result SELECT n, 'obs-1', 'normal' FROM n"
    );
    site.database().execute_batch(&rows).unwrap();
    install(&site).unwrap();
    let (mut guardian, _) = site.start(None);
    let scanned = async |guardian: &Handle| {
        let scan = guardian.scan().await.unwrap();
        assert!(scan.findings.len() as u64 <= MOST);
        scan.findings.len() as u64 + scan.more
    };
    assert_eq!(scanned(&guardian).await, 0);
    past_triggers(
        &site.database(),
        "result",
        "UPDATE result SET note = 'forged' WHERE id >= 100",
    );
    assert_eq!(scanned(&guardian).await, number);
    let told = || told(&site, "ROW-01");
    assert_eq!(scanned(&guardian).await, number);
    assert_eq!(told(), number);
    let status = guardian.status();
    assert_eq!(open(&status, "ROW-01"), number);
    let largest = status.recent.iter().map(|block| block.lines).max();
    assert!(largest.unwrap() as usize <= pitser_trail::MAX_BLOCK_LINES + 1);

    // What is only counted is known by the trail after a start.
    guardian.stop().await;
    (guardian, _) = site.start(None);
    assert_eq!(open(&guardian.status(), "ROW-01"), number);
    assert_eq!(scanned(&guardian).await, number);
    assert_eq!(told(), number);

    // All but the first of them, which are not listed, are mended.
    let first = "UPDATE result SET note = 'normal' WHERE id >= 110";
    past_triggers(&site.database(), "result", first);
    assert_eq!(scanned(&guardian).await, 10);
    let status = guardian.status();
    assert_eq!((listed(&status).len(), open(&status, "ROW-01")), (10, 10));
    assert_eq!(status.all_findings(|it| it == "ROW-01"), number);
    past_triggers(
        &site.database(),
        "result",
        "UPDATE result SET note = 'forged' WHERE id = 200",
    );
    assert_eq!(scanned(&guardian).await, 11);
    assert_eq!(told(), number + 1, "it is another finding");
    guardian.stop().await;
}

/// More than are judged at a time: of rows that were read, and of rows that were not met.
#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_unknown_and_missing_rows_is_told_once() {
    let site = site();
    let number = 5_000;
    let rows = |first: u64| {
        format!(
            "WITH RECURSIVE n(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM n LIMIT {number})
             INSERT INTO result SELECT n, 'obs-1', 'normal' FROM n"
        )
    };
    site.database().execute_batch(&rows(100)).unwrap();
    install(&site).unwrap();
    let (guardian, _) = site.start(None);
    let changed = async |statement: &str| {
        past_triggers(&site.database(), "result", statement);
        let scan = guardian.scan().await.unwrap();
        let status = guardian.status();
        let of = |code: &str| open(&status, code);
        let found = [of("ROW-01"), of("ROW-02"), of("ROW-03")];
        let all: u64 = found.iter().sum();
        assert_eq!(scan.findings.len() as u64 + scan.more, all);
        found
    };
    assert_eq!(changed("SELECT 1").await, [0, 0, 0]);
    assert_eq!(changed(&rows(100_000)).await, [0, 0, number]);
    let gone = "DELETE FROM result WHERE id BETWEEN 100 AND 99999";
    assert_eq!(changed(gone).await, [0, number, number]);
    assert_eq!(changed(&rows(100)).await, [0, 0, number]);
    let gone = "DELETE FROM result WHERE id >= 100000";
    assert_eq!(changed(gone).await, [0, 0, 0]);
    for code in ["ROW-02", "ROW-03"] {
        assert_eq!(told(&site, code), number, "{code}");
    }
    guardian.stop().await;
}
