//! What a guardian keeps from all lines of its trail, without reading them
//! again at each start.

use crate::runtime::Written;
use pitser_capture::Position;
use pitser_evidence::Code;
use pitser_evidence::codec::{Blob, Bytes32, Digest};
use pitser_evidence::line::{Line, Op};
use pitser_monitor::{Finding, Keep, Kind, More, Newest};
use pitser_trail::Gather;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashSet};

/// What every line of the trail is asked for when it is opened.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) position: Option<Position>,
    pub(crate) genesis_position: Option<Position>,
    /// Tables whose rows all have their line.
    pub(crate) live: HashSet<String>,
    pub(crate) events: u64,
    /// Findings: the newest in full, the others counted.
    pub(crate) findings: Newest<Told>,
    /// Findings that are only counted, and were accepted; until somebody says by
    /// [`Collected::place`] of which code and table they are.
    pub(crate) accepted: BTreeSet<u64>,
    pub(crate) fingerprint: Option<Digest>,
    /// Tables that the trail was begun with.
    pub(crate) first: Vec<String>,
    /// Records that were deleted before their table's baseline was complete.
    pub(crate) gone: HashSet<(String, Bytes32)>,
    /// What there is of the last transaction.
    pub(crate) written: Written,
    /// The highest number of a transaction since something was missing last.
    pub(crate) newest_tx: u64,
}

/// A finding as the trail tells it.
#[derive(Debug)]
pub(crate) struct Told {
    /// Its line.
    pub(crate) line: Line,
    /// The line that accepts it.
    pub(crate) accept: Option<Line>,
    /// Bytes of both.
    weight: usize,
}

impl Told {
    fn new(line: Line) -> Self {
        Self {
            weight: line.encode().len(),
            accept: None,
            line,
        }
    }

    fn accepted(&mut self, by: Line) {
        self.weight += by.encode().len();
        self.accept = Some(by);
    }
}

impl Keep for Told {
    fn weight(&self) -> usize {
        self.weight
    }

    fn may_go(&self) -> bool {
        finding_of(&self.line).is_none_or(|finding| finding.may_be_counted())
    }
}

/// What a finding's line says, without the key that the vault has.
pub(crate) fn finding_of(line: &Line) -> Option<Finding> {
    let body = line.finding.as_ref()?;
    Some(Finding {
        code: body.code,
        table: line.table.clone(),
        key: None,
        record: line.key,
        columns: line.columns.as_deref().unwrap_or_default().to_vec(),
        about: body.about,
        text: body.text.clone(),
    })
}

impl Collected {
    /// Says of which code and table a finding is that was accepted.
    pub(crate) fn place(&mut self, seq: u64, kind: &Kind) {
        if self.accepted.remove(&seq) {
            self.findings.end_counted(kind, seq, None);
        }
    }

    fn finding(&mut self, line: &Line) {
        let Some(finding) = finding_of(line) else {
            return;
        };
        let kind = finding.kind();
        // It was written again, so that the one before is open no more.
        let is_same = |told: &Told| finding_of(&told.line).is_some_and(|it| it.is_same(&finding));
        if !finding.is_event() {
            self.findings.replace(&kind, is_same);
        }
        self.findings.open(&kind, line.seq, Told::new(line.clone()));
    }

    fn accept(&mut self, line: &Line) {
        let Some(accept) = &line.accept else { return };
        let seq = accept.finding.seq;
        if !self.findings.end(seq, |told| told.accepted(line.clone())) {
            self.accepted.insert(seq);
        }
    }
}

/// Findings of one code and table, as they are made durable.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedKind {
    code: Code,
    table: Option<String>,
    /// Those in full.
    open: Vec<Blob>,
    /// Each with the line that accepts it.
    earlier: Vec<(Blob, Option<Blob>)>,
    /// Of those that are only counted: how many are open, how many are not, and between
    /// which lines the first are.
    more: (u64, u64, u64, u64),
}

impl SavedKind {
    fn of(kind: &Kind, findings: &Newest<Told>) -> Self {
        let blob = |line: &Line| Blob(line.encode());
        let open = findings.open_of(kind);
        let earlier = findings.earlier_of(kind);
        let both = |told: &Told| (blob(&told.line), told.accept.as_ref().map(blob));
        let more = findings.more_than(kind);
        Self {
            code: kind.0,
            table: kind.1.clone(),
            open: open.map(|(_, told)| blob(&told.line)).collect(),
            earlier: earlier.map(|(_, told)| both(told)).collect(),
            more: (more.open, more.earlier, more.first, more.last),
        }
    }

    fn add_to(self, findings: &mut Newest<Told>) -> Option<()> {
        let line = |blob: &Blob| Line::decode(&blob.0).ok();
        let kind = (self.code, self.table);
        let (open, earlier, first, last) = self.more;
        let more = More {
            open,
            earlier,
            first,
            last,
        };
        if more != More::default() {
            findings.set_more(kind.clone(), more);
        }
        for blob in &self.open {
            let told = Told::new(line(blob)?);
            findings.open(&kind, told.line.seq, told);
        }
        for (blob, by) in &self.earlier {
            let mut told = Told::new(line(blob)?);
            if let Some(by) = by {
                told.accepted(line(by)?);
            }
            findings.put_earlier(&kind, told.line.seq, told);
        }
        Some(())
    }
}

/// [`Collected`] as it is made durable. A changed form has another name.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    position: Option<String>,
    genesis_position: Option<String>,
    live: BTreeSet<String>,
    events: u64,
    findings: Vec<SavedKind>,
    accepted: BTreeSet<u64>,
    fingerprint: Option<Digest>,
    first: Vec<String>,
    gone: Vec<(String, Bytes32)>,
    written: Written,
    newest_tx: u64,
}

impl Saved {
    fn collected(self) -> Option<Collected> {
        // `None` within `Some` is a position that was none.
        let position = |text: Option<String>| match text {
            Some(text) => text.parse().ok().map(Some),
            None => Some(None),
        };
        let mut findings = Newest::default();
        for kind in self.findings {
            kind.add_to(&mut findings)?;
        }
        Some(Collected {
            position: position(self.position)?,
            genesis_position: position(self.genesis_position)?,
            live: self.live.into_iter().collect(),
            events: self.events,
            findings,
            accepted: self.accepted,
            fingerprint: self.fingerprint,
            first: self.first,
            gone: self.gone.into_iter().collect(),
            written: self.written,
            newest_tx: self.newest_tx,
        })
    }
}

impl Gather for Collected {
    const FORM: &'static str = "guardian 7";

    fn save(&self) -> Vec<u8> {
        let position = |position: &Option<Position>| position.as_ref().map(Position::to_string);
        let kinds = self.findings.kinds();
        let kinds = kinds.iter().map(|kind| SavedKind::of(kind, &self.findings));
        let saved = Saved {
            position: position(&self.position),
            genesis_position: position(&self.genesis_position),
            live: self.live.iter().cloned().collect(),
            events: self.events,
            findings: kinds.collect(),
            accepted: self.accepted.clone(),
            fingerprint: self.fingerprint,
            first: self.first.clone(),
            gone: self.gone.iter().cloned().collect(),
            written: self.written.clone(),
            newest_tx: self.newest_tx,
        };
        serde_json::to_vec(&saved).expect("it has only numbers, text and bytes")
    }

    fn load(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice::<Saved>(bytes).ok()?.collected()
    }

    fn line(&mut self, line: &Line) {
        match line.op {
            Op::Genesis => {
                self.genesis_position = line.pos.parse().ok();
                let tables = line.genesis.iter().flat_map(|genesis| &genesis.tables);
                self.first = tables.map(|table| table.name.clone()).collect();
            }
            Op::Live => {
                match &line.table {
                    Some(table) => drop(self.live.insert(table.clone())),
                    None => self.live.extend(std::mem::take(&mut self.first)),
                }
                let live = &self.live;
                self.gone.retain(|(table, _)| !live.contains(table));
            }
            Op::Finding => self.finding(line),
            Op::Accept => self.accept(line),
            // The database may be an older copy of itself, which counts on from there.
            Op::Gap => self.newest_tx = 0,
            Op::Ddl => self.fingerprint = line.ddl.as_ref().map(|d| d.after),
            Op::Delete => {
                if let (Some(table), Some(record)) = (&line.table, line.key)
                    && !self.live.contains(table)
                {
                    self.gone.insert((table.clone(), record));
                }
            }
            _ => {}
        }
        self.newest_tx = self.newest_tx.max(line.tx.unwrap_or(0));
        if line.op != Op::Read
            && let Ok(position) = line.pos.parse()
        {
            self.written.note(line, position);
            self.position = Some(position);
        }
        self.events += u64::from(!matches!(line.op, Op::Checkpoint | Op::Genesis | Op::Live));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pitser_evidence::line::{Acceptance, Actor, Binding, Finding as Body, Prev, Timestamp};
    use pitser_monitor::{KEPT, KEPT_BYTES};
    use pitser_trail::{Draft, GenesisDraft, Layout, Trail};

    fn at(second: u64) -> Timestamp {
        Timestamp::from_micros(second * 1_000_000).unwrap()
    }

    fn body(about: u64) -> Body {
        Body {
            about: Some(about),
            code: Code::Unattributed,
            text: "update without an attributed actor".into(),
        }
    }

    fn finding(seq: u64) -> Line {
        Line {
            table: Some("entry".into()),
            columns: Some(vec!["note".into()].into()),
            finding: Some(Box::new(body(seq - 1))),
            ..Line::new(Op::Finding, seq, at(1), "guardian", "1")
        }
    }

    fn acceptance(seq: u64, of: u64) -> Line {
        let finding = Prev {
            hash: Digest::of(&[]),
            seq: of,
        };
        Line {
            accept: Some(Box::new(Acceptance { finding })),
            actor: Some(Actor {
                app: None,
                binding: Binding::B,
                client: None,
                person: Some(Digest::of(&[b"p"])),
                role: None,
            }),
            raw: Some(Digest::of(&[b"why"])),
            ..Line::new(Op::Accept, seq, at(2), "guardian", "1")
        }
    }

    fn open(collected: &Collected) -> u64 {
        let kept = collected.findings.all_open().count() as u64;
        kept + collected
            .findings
            .more()
            .map(|(_, more)| more.open)
            .sum::<u64>()
    }

    /// As many as any login can cause in an hour or two: one for each of its changes.
    #[test]
    fn what_is_committed_is_bounded_however_much_is_found() {
        const NUMBER: u64 = 300_000;
        let mut collected = Collected::default();
        for n in 1..=NUMBER {
            collected.line(&finding(2 * n));
        }
        let kind = (Code::Unattributed, Some("entry".to_owned()));
        assert_eq!(collected.findings.open_of(&kind).count(), KEPT);
        assert_eq!(open(&collected), NUMBER);
        let saved = collected.save();
        assert!(saved.len() < 200_000, "{} bytes", saved.len());

        // The first is only counted, the last is kept.
        let mut collected = Collected::load(&saved).unwrap();
        assert_eq!(open(&collected), NUMBER);
        collected.line(&acceptance(2 * NUMBER + 1, 2));
        collected.line(&acceptance(2 * NUMBER + 2, 2 * NUMBER));
        assert_eq!(
            (open(&collected), &collected.accepted),
            (NUMBER - 1, &BTreeSet::from([2]))
        );
        let mut collected = Collected::load(&collected.save()).unwrap();
        collected.place(2, &kind);
        collected.place(2, &kind);
        assert_eq!(
            (open(&collected), collected.accepted.len()),
            (NUMBER - 2, 0)
        );
        assert_eq!(collected.findings.more_than(&kind).earlier, 1);
    }

    #[test]
    fn findings_of_many_tables_with_long_texts_are_bounded_too() {
        let mut collected = Collected::default();
        for n in 1..=2_000 {
            let mut line = finding(2 * n);
            line.table = Some(format!("t{}", n % 500));
            line.finding.as_mut().unwrap().text = "x".repeat(64 << 10);
            collected.line(&line);
        }
        assert_eq!(open(&collected), 2_000);
        // Base64 within base64.
        let saved = collected.save().len();
        assert!(saved < 2 * KEPT_BYTES, "{saved} bytes");
    }

    /// What was deleted before a table's rows had their lines matters until they have them.
    #[test]
    fn rows_that_are_gone_are_forgotten_once_their_table_is_live() {
        let mut collected = Collected::default();
        let of = |op, seq, table: &str| Line {
            table: Some(table.to_owned()),
            key: (op == Op::Delete).then_some(Bytes32([7; 32])),
            ..Line::new(op, seq, at(1), "s", "1")
        };
        for (seq, table) in [(1, "entry"), (2, "letter")] {
            collected.line(&of(Op::Delete, seq, table));
        }
        collected.line(&of(Op::Live, 3, "entry"));
        let left = HashSet::from([("letter".to_owned(), Bytes32([7; 32]))]);
        assert_eq!(collected.gone, left);
        collected.line(&of(Op::Delete, 4, "entry"));
        assert_eq!(collected.gone, left);
    }

    /// A row that was mended and is wrong again, time after time: of the scans between,
    /// the trail says nothing.
    #[test]
    fn a_state_that_is_found_again_is_one_that_is_open() {
        let mut collected = Collected::default();
        for n in 1..=1000 {
            let mut line = finding(n);
            line.key = Some(Bytes32([1; 32]));
            line.finding.as_mut().unwrap().code = Code::RowDiffers;
            collected.line(&line);
        }
        assert_eq!(open(&collected), 1);
    }

    /// What a guardian before this one kept: all lines of findings.
    #[derive(Debug, Default)]
    struct Old(Vec<Line>);

    impl Gather for Old {
        const FORM: &'static str = "guardian 3";

        fn line(&mut self, line: &Line) {
            if line.op == Op::Finding {
                self.0.push(line.clone());
            }
        }

        fn save(&self) -> Vec<u8> {
            let lines: Vec<Blob> = self.0.iter().map(|line| Blob(line.encode())).collect();
            serde_json::to_vec(&serde_json::json!({ "findings": lines })).unwrap()
        }

        fn load(bytes: &[u8]) -> Option<Self> {
            let saved: serde_json::Value = serde_json::from_slice(bytes).ok()?;
            let lines: Vec<Blob> = serde_json::from_value(saved["findings"].clone()).ok()?;
            let lines = lines.iter().map(|line| Line::decode(&line.0).ok());
            lines.collect::<Option<_>>().map(Self)
        }
    }

    #[test]
    fn a_trail_whose_guardian_kept_everything_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let genesis = GenesisDraft {
            at: at(1),
            system: "s".into(),
            timeline: 1,
            pos: "1".into(),
            source: "h".into(),
            tables: vec![],
            uncovered: vec![],
        };
        let (origin, number) = ("test.example/h", 5_000);
        let mut trail = Trail::create_gathering::<Old>(layout.clone(), origin, &genesis).unwrap();
        for n in 0..number {
            let draft = Draft {
                table: Some("entry".into()),
                body: Some(Box::new(pitser_trail::Body::Finding(body(n)))),
                ..Draft::new(Op::Finding, at(2), "guardian", "1")
            };
            trail.append(vec![draft]).unwrap();
        }
        // Committed with the next block but one, far enough later.
        for second in [100, 200, 300] {
            trail
                .close_block(at(second), "1", Digest::of(&[]), "test")
                .unwrap();
        }
        drop(trail);
        let (trail, old, _) = Trail::open::<Old>(layout.clone()).unwrap();
        assert_eq!(old.0.len() as u64, number);
        drop(trail);
        let (_, collected, _) = Trail::open::<Collected>(layout).unwrap();
        assert_eq!(open(&collected), number);
    }
}
