//! Room in a block: whatever is written together stands in one, however full that is.

use super::*;
use pitser_capture::fhir::MAX_EVENT;
use pitser_evidence::line::{Line, Op};
use pitser_trail::MAX_BLOCK_LINES;
use std::fmt::Write;

/// With so many lines a block is full.
const FULL: usize = MAX_BLOCK_LINES - 1000;

fn rows(from: usize, rows: usize) -> String {
    format!(
        "WITH RECURSIVE n(n) AS (SELECT {from} UNION ALL SELECT n + 1 FROM n LIMIT {rows})
         INSERT INTO result SELECT n, 'obs-1', 'normal' FROM n;"
    )
}

/// Rows that somebody adds: a line for each.
fn signed(from: usize, number: usize) -> String {
    format!(
        "INSERT INTO pitser_begin (actor, app, purpose) VALUES ('EE38001085718', 'ward', 'TREAT');
         {}
         INSERT INTO pitser_end DEFAULT VALUES;",
        rows(from, number)
    )
}

/// Does it in one transaction, which is taken in one piece if it is small.
fn change(site: &Site, what: &str) {
    let whole = format!("BEGIN; {what} COMMIT;");
    site.database().execute_batch(&whole).unwrap();
}

/// An audit event of so many records that nobody knows.
fn event(records: usize) -> Vec<u8> {
    let mut entities = String::new();
    for record in 0..records {
        write!(entities, r#"{{"what":{{"reference":"List/{record}"}}}},"#).unwrap();
    }
    entities.pop();
    let (before, _) = READ.split_once(r#""entity":["#).unwrap();
    format!(r#"{before}"entity":[{entities}]}}"#).into_bytes()
}

/// Lines that the open block has once everything is taken that was committed.
async fn open(site: &Site, guardian: &Handle) -> usize {
    guardian.scan().await.unwrap();
    let last = blocks(site).pop().unwrap();
    let is_open = last.last().is_some_and(|line| line.op != Op::Checkpoint);
    if is_open { last.len() } else { 0 }
}

/// All lines, by block.
fn blocks(site: &Site) -> Vec<Vec<Line>> {
    let layout = site.tuning.layout(&site.source);
    let mut lines = Vec::new();
    pitser_trail::read(&layout, None, |line, _| lines.push(line.clone())).unwrap();
    let blocks = lines.split_inclusive(|line| line.op == Op::Checkpoint);
    blocks.map(<[_]>::to_vec).collect()
}

/// A checkpoint's position is before that of the next change: whoever starts there is told
/// of all that has no line yet, and of nothing else. And a finding is about the change that
/// it says.
fn check(blocks: &[Vec<Line>], findings: usize) {
    let lines: Vec<&Line> = blocks.iter().flatten().collect();
    let pos = |line: &Line| line.pos.parse::<u64>().unwrap();
    let (mut covered, mut last, mut told) = (0, 0, 0);
    for line in &lines {
        match line.op {
            Op::Create => {
                assert!(pos(line) > covered, "line {}", line.seq);
                last = pos(line);
            }
            Op::Checkpoint => {
                assert!(pos(line) >= last, "line {}", line.seq);
                covered = pos(line);
            }
            Op::Finding => {
                let about = line.finding.as_ref().unwrap().about.unwrap();
                let about = usize::try_from(about).unwrap();
                let (before, first) = (lines[about - 1], lines[about]);
                assert_eq!((first.op, first.key), (Op::Create, line.key));
                assert_ne!(before.tx, first.tx, "the first of its transaction");
                told += 1;
            }
            _ => {}
        }
    }
    assert_eq!(told, findings);
    for block in blocks {
        assert!(block.len() <= FULL + 1, "{}", block.len());
    }
}

/// A row that nobody has signed is two lines: it, and the finding about it.
#[tokio::test(flavor = "multi_thread")]
async fn changes_that_do_not_fit_open_another_block() {
    let site = Site::new();
    install(&site).unwrap();
    let guardian = site.start_still();
    let mut next = 1000;
    let mut from = |number: usize| {
        next += number;
        next - number
    };
    let mut lines = open(&site, &guardian).await;
    // Lines that the block has before, what comes then, and lines that the next one has.
    for (before, signed_rows, has_unsigned, after) in [
        (FULL - 9, 10, false, 10),
        (FULL, 0, true, 2),
        (FULL - 3, 3, true, 5),
        (FULL - 1, 0, true, 1),
    ] {
        let number = before - lines;
        change(&site, &signed(from(number), number));
        assert_eq!(open(&site, &guardian).await, before);
        let mut what = match signed_rows {
            0 => String::new(),
            number => signed(from(number), number),
        };
        if has_unsigned {
            what += &rows(from(1), 1);
        }
        change(&site, &what);
        lines = open(&site, &guardian).await;
        assert_eq!(lines, after, "after {before}");
    }
    guardian.stop().await;
    check(&blocks(&site), 3);
}

/// What stands in every line of an event is short: a line has an end, and so has memory.
#[tokio::test(flavor = "multi_thread")]
async fn an_audit_event_of_nothing_but_a_name_is_taken() {
    let site = Site::new();
    install(&site).unwrap();
    let guardian = site.start_still();
    let event = String::from_utf8(event(200)).unwrap();
    let agent = |name: &str| {
        let client = r#"{"requestor":false,"type":{"coding":[{"code":"110152"}]},"name":"NAME"}"#;
        let agents = format!(r#""agent":[{},"#, client.replace("NAME", name));
        event.replace(r#""agent":["#, &agents).into_bytes()
    };
    let name = "\\n".repeat((MAX_EVENT - agent("").len()) / 2);
    let receipt = guardian.submit(agent(&name)).await.unwrap();
    assert_eq!((receipt.known, receipt.lines), (false, 200));
    assert_eq!(guardian.status().state, SourceState::Guarding);
    guardian.stop().await;
    let lines = blocks(&site).concat();
    let read: Vec<&Line> = lines.iter().filter(|it| it.op == Op::Read).collect();
    assert_eq!(read.len(), 200);
    let longest = read.iter().map(|line| line.encode().len()).max();
    assert!(longest < Some(4096), "{longest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_event_of_thousands_of_lines_is_taken_near_a_full_block() {
    let mut site = Site::new();
    site.tuning.many_patients = 100;
    install(&site).unwrap();
    let guardian = site.start_still();
    let number = FULL - 10 - open(&site, &guardian).await;
    change(&site, &signed(1000, number));
    assert_eq!(open(&site, &guardian).await, FULL - 10);
    let receipt = guardian.submit(event(2000)).await.unwrap();
    assert_eq!((receipt.known, receipt.lines), (false, 2000));
    assert_eq!(open(&site, &guardian).await, 2000);
    guardian.stop().await;
    let blocks = blocks(&site);
    let read = |line: &&Line| line.op == Op::Read && line.pos == receipt.id;
    let last = blocks.last().unwrap();
    assert_eq!(last.iter().filter(read).count(), 2000);
    check(&blocks, 0);
}
