//! What must hold of every reader, whatever bytes it is given: what it accepts it
//! writes back byte for byte, and memory is bounded by the input.

use super::memory::bounded;
use pitser_evidence::{
    Anchors, Evidence, Line, Verdict,
    audit::Statement,
    block::LogLeaf,
    codec::Bytes32,
    map::Leaf,
    sample::{self, Shown, ShownRow},
    state::State,
    verify,
};
use pitser_ksi::Second;
use pitser_tlog::{Note, SigningKey};
use std::sync::LazyLock;

/// An evidence file, as it came and signed anew: judged without anchors, and with
/// those of the published vectors.
pub fn evidence(bytes: &[u8]) {
    let Ok(mut evidence) = bounded(bytes, || Evidence::decode(bytes)) else {
        return;
    };
    assert_eq!(evidence.encode(), bytes);
    let unanchored = bounded(bytes, || verify(&evidence, None, JUDGED));
    assert_ne!(unanchored.verdict, Verdict::Intact, "nobody is trusted");
    judged(&evidence, bytes);

    // A signature over whatever it says lets the checks behind it be reached.
    let text = evidence.signed_text();
    if let Ok(note) = Note::sign(&text, &LOG) {
        let line = note.signatures()[0].to_string();
        evidence.signature = line;
        judged(&evidence, bytes);
    }
}

fn judged(evidence: &Evidence, bytes: &[u8]) {
    let report = bounded(bytes, || verify(evidence, Some(&ANCHORS), JUDGED));
    assert_eq!(report, verify(evidence, Some(&ANCHORS), JUDGED));
    if report.verdict == Verdict::Intact {
        let published = PUBLISHED
            .iter()
            .find(|known| known.subject == evidence.subject);
        let published = published.expect("a patient of the vectors");
        assert_eq!(evidence.genesis, published.genesis);
        for proof in &evidence.lines {
            assert!(
                published.lines.iter().any(|known| known.line == proof.line),
                "a forged line"
            );
        }
    }
}

/// Lines of a trail, replayed; entries of the log and of the map, statements.
pub fn line(bytes: &[u8]) {
    let mut state = State::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let Ok(decoded) = bounded(line, || Line::decode(line)) else {
            continue;
        };
        assert_eq!(decoded.encode(), line);
        assert_eq!(decoded.check(), Ok(()));
        let next = state.next_seq();
        let applied = bounded(line, || state.apply(&decoded, Line::hash(line)));
        assert!(applied.is_err() || decoded.seq == next);
    }
    assert_eq!(state.root(), state.root());
    if let Ok(leaf) = bounded(bytes, || LogLeaf::decode(bytes)) {
        assert_eq!(leaf.encode(), bytes);
    }
    if let Ok(leaf) = bounded(bytes, || Leaf::decode(bytes)) {
        assert_eq!(leaf.encode(), bytes);
    }
    if let Ok(text) = str::from_utf8(bytes)
        && let Ok(statement) = bounded(bytes, || Statement::parse(text))
    {
        assert_eq!(statement.text(), text);
    }
}

/// What a site shows of its rows to an auditor, compared with the published trail.
pub fn sample(bytes: &[u8]) {
    let Ok(shown) = bounded(bytes, || serde_json::from_slice::<Shown>(bytes)) else {
        return;
    };
    let written = serde_json::to_vec(&shown).expect("it has a JSON form");
    let again: Shown = serde_json::from_slice(&written).expect("what is written is read");
    assert_eq!(serde_json::to_vec(&again).ok(), Some(written));
    let genesis = TRAIL[0].genesis.as_ref().expect("the first line is one");
    let mapping = TRAIL.iter().find_map(|line| line.checkpoint.as_ref());
    let mut line = |seq| TRAIL.iter().find(|line| line.seq == seq).cloned();
    let mut last = |table: &str, key: &Bytes32| {
        let is_of = |line: &&Line| line.table.as_deref() == Some(table) && line.key == Some(*key);
        TRAIL.iter().rev().find(is_of).map(|line| line.seq)
    };
    let mut trail = sample::Trail {
        genesis,
        mapping: mapping.map(|checkpoint| checkpoint.mapping),
        lines: TRAIL.len() as u64,
        line: &mut line,
        last: &mut last,
    };
    let lines = TRAIL.iter().filter(|line| line.row.is_some());
    for (line, row) in lines.zip(&shown.rows) {
        let ShownRow::Opened(opened) = row else {
            continue;
        };
        let compared = bounded(bytes, || sample::compare(line, opened, &mut trail));
        let patient = opened.patient.as_ref().filter(|_| line.patient.is_some());
        if let (Ok(_), Some(patient)) = (compared, patient) {
            let known = patient.id.starts_with("pt-") && patient.id.len() == 4;
            assert!(known, "a forged patient");
        }
    }
}

/// What a verifier writes down of whom it trusts. Memory is not looked at: the file
/// is the verifier's own, and the TOML library takes 500 bytes for each dot of a key.
pub fn anchors(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
    if let Ok(anchors) = Anchors::from_toml(text) {
        let again = anchors.to_toml();
        let read = Anchors::from_toml(&again).expect("what is written is read");
        assert_eq!(read.to_toml(), again);
    }
}

/// When the vectors are intact, and whose key signs them.
const JUDGED: Second = Second(30);
static LOG: LazyLock<SigningKey> = LazyLock::new(|| {
    SigningKey::from_seed(&PUBLISHED[0].origin, &[1; 32]).expect("a published name")
});

macro_rules! testdata {
    ($name:literal) => {
        include_str!(concat!("../../../../testdata/pitser/", $name))
    };
}

static ANCHORS: LazyLock<Anchors> =
    LazyLock::new(|| Anchors::from_toml(testdata!("anchors.toml")).expect("test data is sound"));
static PUBLISHED: LazyLock<[Evidence; 2]> = LazyLock::new(|| {
    [
        testdata!("evidence-pt-1.json"),
        testdata!("evidence-pt-3.json"),
    ]
    .map(|file| Evidence::decode(file.as_bytes()).expect("test data is sound"))
});
static TRAIL: LazyLock<Vec<Line>> = LazyLock::new(|| {
    let lines = testdata!("trail.jsonl").lines();
    let lines = lines.map(|line| Line::decode(line.as_bytes()));
    lines.collect::<Result<_, _>>().expect("test data is sound")
});
