//! How fast an auditor replays a trail, and what of that is what.
//!
//! ```text
//! cargo bench -p pitser-guardian --bench audit              a million lines
//! cargo bench -p pitser-guardian --bench audit -- 5000000   as many
//! ```
//! Rows of ten columns, one line each, of half as many records and a twentieth as many
//! patients, in blocks of 30,000 lines; no seals. The map is on disk, as an auditor keeps
//! it. The floor is what cannot be done without: the file is read and each line hashed.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark that cannot be set up has failed; it prints its figures"
)]

use pitser_evidence::Anchors;
use pitser_evidence::codec::Digest;
use pitser_evidence::line::{Line, Op, Timestamp};
use pitser_guardian::audit::{Auditor, Judge};
use pitser_ksi::time::Second;
use pitser_tlog::note::CosigningKey;
use pitser_trail::{Draft, GenesisDraft, Layout, PatientId, Row, TableDraft, Trail};
use std::sync::Arc;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

const ORIGIN: &str = "hospital.example/bench";
const TABLE: &str = "public.observation";
const NOW: u64 = 1_773_480_413;
const BLOCK: u64 = 30_000;

fn main() {
    let lines = std::env::args().skip(1).find_map(|arg| arg.parse().ok());
    let lines: u64 = lines.unwrap_or(1_000_000);
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path().join("trail"));
    let anchors = trail(&layout, lines);
    println!("{lines} lines, {} MB", bytes(&layout) >> 20);

    let (hashed, took) = timed(|| floor(&layout));
    told("read and hashed", hashed, took);
    let (view, took) = timed(|| pitser_trail::read(&layout, None, |_, _| {}).unwrap());
    told("replayed in memory", view.state.next_seq(), took);
    drop(view);
    let seed = Zeroizing::new([7; 32]);
    let home = dir.path().join("auditor");
    std::fs::create_dir(&home).unwrap();
    Auditor::create(&home, "auditor.example", &seed).unwrap();
    let mut auditor = Auditor::open(&home, None).unwrap();
    let judge = Judge {
        anchors: &anchors,
        publications: None,
        anew: false,
        clock: &|| Second(NOW),
    };
    let follow = |auditor: &mut Auditor| auditor.follow(&layout, judge, &mut |_| {}).unwrap();
    let (audited, took) = timed(|| follow(&mut auditor));
    told("replayed and signed", audited.lines, took);
    let (audited, took) = timed(|| follow(&mut auditor));
    println!(
        "looked at again, with nothing new: {:.0} ms, {} blocks replayed",
        took.clock.as_secs_f64() * 1000.0,
        audited.replayed
    );
}

/// By the clock, and of the processor.
#[derive(Clone, Copy)]
struct Took {
    clock: Duration,
    processor: Duration,
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Took) {
    let (began, before) = (Instant::now(), processor());
    let done = work();
    let took = Took {
        clock: began.elapsed(),
        processor: processor().saturating_sub(before),
    };
    (done, took)
}

/// What this thread has had of the processor; nothing else does the work here.
fn processor() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanoseconds = text.split(' ').next().unwrap().parse().unwrap();
    Duration::from_nanos(nanoseconds)
}

fn told(what: &str, lines: u64, took: Took) {
    let us = took.processor.as_secs_f64() * 1e6 / lines as f64;
    println!(
        "{what:20} {:7.2} s; {:6.2} s of the processor, {us:5.2} us a line",
        took.clock.as_secs_f64(),
        took.processor.as_secs_f64()
    );
}

fn bytes(layout: &Layout) -> u64 {
    let numbers = layout.segment_numbers().unwrap();
    let paths = numbers.into_iter().map(|number| layout.segment(number));
    paths.map(|path| path.metadata().unwrap().len()).sum()
}

/// Every line is read, and hashed once.
fn floor(layout: &Layout) -> u64 {
    let mut lines = 0;
    for number in layout.segment_numbers().unwrap() {
        let bytes = std::fs::read(layout.segment(number)).unwrap();
        for line in bytes.split(|byte| *byte == b'\n').filter(|l| !l.is_empty()) {
            std::hint::black_box(Line::hash(line));
            lines += 1;
        }
    }
    lines
}

/// Writes the trail with its cosigned head, and gives what an auditor knows of it.
fn trail(layout: &Layout, lines: u64) -> Anchors {
    let at: Timestamp = "2026-03-14T09:26:53.000000Z".parse().unwrap();
    let names: Arc<[String]> = (0..10).map(|column| format!("column_{column}")).collect();
    let draft = GenesisDraft {
        at,
        system: "bench".into(),
        timeline: 1,
        pos: "0".into(),
        source: "bench".into(),
        tables: vec![TableDraft {
            name: TABLE.into(),
            columns: names.to_vec(),
            key: vec![names[0].clone()],
            patient: names[1].clone(),
        }],
        uncovered: Vec::new(),
    };
    let mut trail = Trail::create(layout.clone(), ORIGIN, &draft).unwrap();
    let (records, patients) = (lines / 2 + 1, lines / 20 + 1);
    let mut seen = vec![false; usize::try_from(records).unwrap()];
    let mut next = 0;
    while next < lines {
        let until = (next + BLOCK - 1).min(lines);
        while next < until {
            let some = next..(next + 500).min(until);
            next = some.end;
            let drafts = some.map(|number| {
                let record = number * 7919 % records;
                let known = std::mem::replace(&mut seen[usize::try_from(record).unwrap()], true);
                vec![change(&names, record, record % patients, known, at)]
            });
            trail.append_all(drafts.collect()).unwrap();
        }
        trail.commit().unwrap();
        let mapping = Digest::of(&[b"mapping"]);
        trail.close_block(at, "1", mapping, "bench").unwrap();
    }
    let witness = CosigningKey::from_seed("witness.example", &[9; 32]).unwrap();
    let mut head = trail.sign_head();
    let line = witness.cosign(head.text(), NOW);
    head.add(line).unwrap();
    trail.store_head(&head).unwrap();
    anchors(trail.genesis_hash(), &witness)
}

fn anchors(genesis: Digest, witness: &CosigningKey) -> Anchors {
    let text = format!(
        "version = 1\nwitness_quorum = 1\n[[trail]]\norigin = \"{ORIGIN}\"\ngenesis = \"{genesis}\"\n\
         [[witness]]\nkey = \"{}\"\n",
        witness.verifier()
    );
    Anchors::from_toml(&text).unwrap()
}

fn change(names: &Arc<[String]>, record: u64, patient: u64, known: bool, at: Timestamp) -> Draft {
    let value = |column: usize| match column {
        0 => format!("i{record}"),
        1 => format!("tpt-{patient}"),
        _ => format!("tvalue {record} of a column"),
    };
    let values = (0..names.len()).map(|column| Some(value(column).into_bytes().into()));
    Draft {
        tx: Some(record),
        table: Some(TABLE.into()),
        key: Some(vec![format!("i{record}").into_bytes()]),
        patient: Some(PatientId::Id(format!("pt-{patient}"))),
        row: Some(Row {
            names: Arc::clone(names),
            values: values.collect(),
        }),
        ..Draft::new(
            if known { Op::Update } else { Op::Create },
            at,
            "bench",
            "1",
        )
    }
}
