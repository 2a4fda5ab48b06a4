//! A small hospital and everyone around it, in memory: a trail of three blocks
//! with its keys, an authority whose calendar is half a minute old, two
//! witnesses and an auditor. Everything happens in January 1970 and is the
//! same in every run.
#![allow(dead_code, reason = "every test binary compiles its own copy")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

pub(crate) mod authority;
pub(crate) mod calendar_log;

use authority::Calendar;
use pitser_evidence::anchors::{Anchors, KeyAnchor, PublicationAnchor, TrailAnchor};
use pitser_evidence::audit::Statement;
use pitser_evidence::block::LogLeaf;
use pitser_evidence::codec::{Blob, Bytes32, Digest};
use pitser_evidence::commit::{
    Key, LineNonce, commit_person, commit_raw, commit_row, commit_table_key, patient_alpha,
    record_key,
};
use pitser_evidence::file::{
    BlockProof, Evidence, FORMAT, LineProof, MapEntry, MapProof, OpenColumn, OpenPerson, OpenRaw,
    Opening, Subject,
};
use pitser_evidence::finding::Code;
use pitser_evidence::line::{
    Actor, Binding, Checkpoint, Ddl, Finding, Gap, Genesis, Line, Op, Patient, TableGenesis,
    Timestamp,
};
use pitser_evidence::state::State;
use pitser_evidence::vrf;
use pitser_evidence::{Report, StepState, Verdict, verify};
use pitser_ksi::hash::{Algorithm, Imprint};
use pitser_ksi::logsig::{BLOCK_CLOSE_REASON, BlockBuilder, BlockTree};
use pitser_ksi::time::Second;
use pitser_tlog::checkpoint::Checkpoint as Head;
use pitser_tlog::merkle::{LogTree, leaf_hash};
use pitser_tlog::note::{CosigningKey, Note, SigningKey};
use std::collections::BTreeMap;

pub(crate) const ORIGIN: &str = "haigla.example/hospital";
pub(crate) const TIMELINE: u32 = 1;
/// When blocks 0, 1 and 2 are sealed.
pub(crate) const SEALED: [u64; 3] = [5, 9, 14];
/// When the witnesses see the head.
pub(crate) const COSIGNED: [u64; 2] = [15, 16];
pub(crate) const AUDITED: u64 = 18;
pub(crate) const PUBLISHED: u64 = 20;
pub(crate) const JUDGED: Second = Second(30);

/// A change to a line on its way into the trail.
type Meddle<'a> = &'a dyn Fn(&mut Line);

/// The operator's side: everything that an operator holds.
pub(crate) struct World {
    pub(crate) origin: String,
    pub(crate) log_key: SigningKey,
    pub(crate) vrf: vrf::SecretKey,
    pub(crate) state: State,
    pub(crate) lines: Vec<Line>,
    pub(crate) blocks: Vec<SealedBlock>,
    pub(crate) log: LogTree,
    contents: BTreeMap<u64, Content>,
    open: usize,
    last_leaf: Imprint,
    /// The value of observation 13.
    result: &'static str,
}

/// One block with all that proofs need.
pub(crate) struct SealedBlock {
    pub(crate) leaf: LogLeaf,
    pub(crate) iv: [u8; 32],
    pub(crate) previous_leaf: Imprint,
    pub(crate) tree: BlockTree,
}

/// What a line commits to.
#[derive(Clone, Default)]
struct Content {
    row: Vec<(&'static str, Option<&'static str>)>,
    person: Option<&'static str>,
    raw: Option<&'static str>,
}

/// A line to be.
struct Event<'a> {
    op: Op,
    at_s: u64,
    record: Option<(&'a str, &'a str)>,
    patient: Option<Patient>,
    content: Content,
    columns: Option<Vec<String>>,
    event: Option<u64>,
    more: bool,
}

impl World {
    /// The usual three blocks.
    pub(crate) fn new() -> Self {
        Self::meddled(7, &|_| {})
    }

    /// The usual three blocks, with this value in the newest row about pt-1.
    pub(crate) fn with_result(result: &'static str) -> Self {
        Self::with(7, result, &|_| {})
    }

    /// The usual three blocks of a trail with that salt, each line as `meddle`
    /// leaves it: what follows is consistent with the change.
    pub(crate) fn meddled(salt: u8, meddle: Meddle<'_>) -> Self {
        Self::with(salt, "positive", meddle)
    }

    fn with(salt: u8, result: &'static str, meddle: Meddle<'_>) -> Self {
        let log_key = SigningKey::from_seed(ORIGIN, &[1; 32]).unwrap();
        let vrf = vrf::SecretKey::from_seed(&[2; 32]);
        let mut world = Self {
            origin: ORIGIN.into(),
            log_key,
            vrf,
            state: State::new(),
            lines: Vec::new(),
            blocks: Vec::new(),
            log: LogTree::new(),
            contents: BTreeMap::new(),
            open: 0,
            last_leaf: Imprint::zero(Algorithm::Sha256),
            result,
        };
        world.begin(salt, meddle);
        world.first_block(meddle);
        world.second_block(meddle);
        world.third_block(meddle);
        world
    }

    /// A trail in which nobody knows whom the reads were about: `*unknown` has four
    /// lines, of which the first three are in block 1.
    pub(crate) fn with_strangers() -> Self {
        Self::meddled(7, &|line| {
            if line.op == Op::Read && line.patient != Some(Patient::Many) {
                line.patient = Some(Patient::Unknown);
                (line.table, line.key) = (None, None);
            }
        })
    }

    /// The lines of a list.
    pub(crate) fn seqs(&self, list: Patient) -> Vec<u64> {
        let lines = self.lines.iter();
        lines
            .filter(|line| line.patient == Some(list))
            .map(|line| line.seq)
            .collect()
    }

    /// The lines that commit to a message.
    pub(crate) fn seqs_with_messages(&self) -> Vec<u64> {
        let lines = self.lines.iter().filter(|line| line.raw.is_some());
        lines.map(|line| line.seq).collect()
    }

    /// The evidence about a patient, without the first `before` lines of `*unknown`.
    pub(crate) fn partial(&mut self, id: &str, before: u64) -> Evidence {
        let mut evidence = self.evidence(id);
        let first = self.seqs(Patient::Unknown)[usize::try_from(before).unwrap()];
        evidence
            .lines
            .retain(|it| it.line.patient != Some(Patient::Unknown) || it.line.seq >= first);
        // Their nonces are those of the patients who they were about at first.
        for proof in &mut evidence.lines {
            if proof.line.patient == Some(Patient::Unknown) {
                proof.open = None;
            }
        }
        evidence.map.unknown.before = Some(before);
        evidence.format = evidence.oldest_format().to_owned();
        self.sign(&mut evidence);
        evidence
    }

    fn begin(&mut self, salt: u8, meddle: Meddle<'_>) {
        let mut line = Line::new(Op::Genesis, 0, instant(1), "ehr", "0");
        line.genesis = Some(Box::new(Genesis {
            log_key: self.log_key.verifier().to_string(),
            origin: self.origin.clone(),
            predecessor: "none".into(),
            rules: None,
            salt: Bytes32([salt; 32]),
            system: "sqlite:test".into(),
            tables: vec![
                table(
                    "observation",
                    &["id", "patient_id", "status", "value"],
                    "patient_id",
                ),
                table("patient", &["id", "name"], "id"),
            ],
            timeline: TIMELINE,
            uncovered: vec!["table scratch".into()],
            vrf_key: Bytes32(self.vrf.public().0),
        }));
        meddle(&mut line);
        self.push(line);
    }

    fn first_block(&mut self, meddle: Meddle<'_>) {
        for (table, key, patient, row) in [
            (
                "patient",
                "1",
                "pt-1",
                vec![("id", Some("1")), ("name", Some("Mari Maasikas"))],
            ),
            (
                "patient",
                "2",
                "pt-2",
                vec![("id", Some("2")), ("name", Some("Jüri Kask"))],
            ),
            (
                "observation",
                "11",
                "pt-1",
                observation("11", "1", Some("final"), "120 mmHg"),
            ),
            (
                "observation",
                "12",
                "pt-1",
                observation("12", "1", None, "7.1 mmol/L"),
            ),
            (
                "observation",
                "21",
                "pt-2",
                observation("21", "2", Some("final"), "36.6"),
            ),
        ] {
            let event = Event::new(Op::Baseline, 2)
                .record(table, key)
                .patient(self.pseudonym(patient));
            self.event(event.row(row), meddle);
        }
        self.event(Event::new(Op::Live, 3), meddle);
        self.close(4, SEALED[0]);
    }

    fn second_block(&mut self, meddle: Meddle<'_>) {
        let (mari, juri) = (self.pseudonym("pt-1"), self.pseudonym("pt-2"));
        let amended = observation("11", "1", Some("amended"), "140 mmHg");
        let update = Event::new(Op::Update, 6)
            .record("observation", "11")
            .patient(mari);
        self.event(
            update
                .row(amended)
                .columns(&["status", "value"])
                .person("EE38001085718"),
            meddle,
        );
        let read = Event::new(Op::Read, 6)
            .record("observation", "11")
            .patient(mari);
        self.event(read.person("EE47101010033"), meddle);
        let message = r#"{"resourceType":"AuditEvent"}"#;
        self.event(
            Event::new(Op::Read, 7)
                .patient(juri)
                .person("EE47101010033"),
            meddle,
        );
        self.event(
            Event::new(Op::Read, 7)
                .patient(Patient::Many)
                .person("EE38001085718"),
            meddle,
        );
        self.event(
            Event::new(Op::Read, 7)
                .patient(Patient::Unknown)
                .raw(message),
            meddle,
        );
        let mut finding = Event::new(Op::Finding, 8).record("observation", "21");
        finding.patient = Some(juri);
        self.event(finding, meddle);
        self.event(Event::new(Op::Ddl, 8), meddle);
        self.event(Event::new(Op::Gap, 8), meddle);
        self.close(8, SEALED[1]);
    }

    fn third_block(&mut self, meddle: Meddle<'_>) {
        let (mari, juri) = (self.pseudonym("pt-1"), self.pseudonym("pt-2"));
        let first = self.lines.len() as u64;
        let moved = || Event {
            event: Some(first),
            ..Event::new(Op::Relink, 11).record("observation", "12")
        };
        self.event(
            Event {
                more: true,
                ..moved().patient(mari)
            },
            meddle,
        );
        self.event(
            Event {
                more: true,
                ..moved().patient(juri)
            },
            meddle,
        );
        let row = observation("12", "2", Some("final"), "7.1 mmol/L");
        self.event(
            Event {
                op: Op::Update,
                ..moved()
                    .patient(juri)
                    .row(row)
                    .columns(&["patient_id", "status"])
            },
            meddle,
        );
        let row = observation("13", "1", Some("preliminary"), self.result);
        self.event(
            Event::new(Op::Create, 12)
                .record("observation", "13")
                .patient(mari)
                .row(row),
            meddle,
        );
        self.event(
            Event::new(Op::Delete, 12)
                .record("observation", "21")
                .patient(juri),
            meddle,
        );
        let message = r#"{"resourceType":"AuditEvent","action":"R"}"#;
        let read = Event::new(Op::Read, 13)
            .record("observation", "13")
            .patient(mari);
        self.event(read.person("EE38001085718").raw(message), meddle);
        self.close(13, SEALED[2]);
    }

    fn event(&mut self, event: Event<'_>, meddle: Meddle<'_>) {
        let seq = self.lines.len() as u64;
        let mut line = Line::new(event.op, seq, instant(event.at_s), "ehr", seq.to_string());
        line.event = event.event.unwrap_or(seq);
        line.more = event.more.then_some(true);
        line.table = event.record.map(|(table, _)| table.to_owned());
        line.key = event
            .record
            .map(|(table, key)| record_key(&table_key(table), [key.as_bytes()]));
        line.patient = event.patient;
        line.columns = event.columns.map(Into::into);
        let nonce = self.nonce(&line);
        if event.op.commits_row() {
            line.row = Some(commit_row(&nonce, cells(&event.content)).1);
        }
        line.actor = event.content.person.map(|person| Actor {
            app: Some("ehr".into()),
            binding: Binding::C,
            client: Some("10.1.2.3".into()),
            person: Some(commit_person(&nonce.person(), person)),
            role: Some("ehr_app".into()),
        });
        line.raw = event
            .content
            .raw
            .map(|raw| commit_raw(&nonce.raw(), raw.as_bytes()));
        line.finding = (event.op == Op::Finding).then(|| {
            Box::new(Finding {
                about: Some(5),
                code: Code::RowDiffers,
                text: "a live row differs from its sealed version".into(),
            })
        });
        line.ddl = (event.op == Op::Ddl).then(|| {
            Box::new(Ddl {
                after: Digest::of(&[b"after"]),
                before: Some(Digest::of(&[b"before"])),
            })
        });
        line.gap = (event.op == Op::Gap).then(|| {
            Box::new(Gap {
                from: "842".into(),
                to: "845".into(),
            })
        });
        self.contents.insert(seq, event.content);
        meddle(&mut line);
        let before = self.state.before(&line).unwrap();
        line.prev = before.prev();
        line.patient_prev = before.patient_prev();
        self.push(line);
    }

    fn push(&mut self, line: Line) {
        line.check().unwrap();
        // What somebody decides who should not has its place in the map all the same.
        let mut counted = line.clone();
        if line.op.is_answered_for() || line.op == Op::Erase {
            (counted.accept, counted.release, counted.erase) = (None, None, None);
            counted.op = Op::Read;
        }
        let hash = Line::hash(&line.encode());
        self.state.apply(&counted, hash).unwrap();
        self.lines.push(line);
    }

    fn close(&mut self, at_s: u64, sealed: u64) {
        let seq = self.lines.len() as u64;
        let (block, first) = (self.blocks.len() as u64, self.open as u64);
        let map = Digest(Imprint::new(Algorithm::Sha256, &self.state.root().unwrap()).unwrap());
        let mut line = Line::new(Op::Checkpoint, seq, instant(at_s), "guardian", "841");
        line.checkpoint = Some(Box::new(Checkpoint {
            block,
            count: seq + 1 - first,
            first,
            head: None,
            map,
            map_seq: seq - 1,
            mapping: Digest::of(&[b"mapping"]),
            origin: self.origin.clone(),
            pos: "841".into(),
            seal: None,
            system: "sqlite:test".into(),
            timeline: TIMELINE,
        }));
        self.push(line);
        let iv = [u8::try_from(sealed).unwrap(); 32];
        let mut builder = BlockBuilder::new(Algorithm::Sha256, &iv, self.last_leaf).unwrap();
        let mut tree = BlockTree::new(Algorithm::Sha256, &iv, self.last_leaf);
        for line in &self.lines[self.open..] {
            builder.record_line(&line.encode());
            tree.record_line(&line.encode());
        }
        builder
            .metarecord(BLOCK_CLOSE_REASON, "a second has passed")
            .unwrap();
        tree.metarecord(BLOCK_CLOSE_REASON, "a second has passed")
            .unwrap();
        let closed = builder.close().unwrap();
        assert_eq!(tree.root(), Some((closed.root, closed.level)));
        let leaf = LogLeaf {
            origin: self.origin.clone(),
            block,
            first_seq: first,
            count: seq + 1 - first,
            root: Digest(closed.root),
            level: closed.level,
            map,
        };
        self.log.push(leaf_hash(&leaf.encode()));
        let previous_leaf = std::mem::replace(&mut self.last_leaf, closed.last_leaf);
        self.open = self.lines.len();
        self.blocks.push(SealedBlock {
            leaf,
            iv,
            previous_leaf,
            tree,
        });
    }

    /// Gives a block's log entry another content, as if it had always been so.
    pub(crate) fn rewrite_leaf(&mut self, block: usize, change: impl FnOnce(&mut LogLeaf)) {
        change(&mut self.blocks[block].leaf);
        self.log = LogTree::new();
        for block in &self.blocks {
            self.log.push(leaf_hash(&block.leaf.encode()));
        }
    }

    pub(crate) fn pseudonym(&self, id: &str) -> Patient {
        Patient::Pseudonym(Bytes32(self.vrf.prove(&patient_alpha(&self.origin, id)).0))
    }

    pub(crate) fn genesis_hash(&self) -> Digest {
        Line::hash(&self.lines[0].encode())
    }

    fn nonce(&self, line: &Line) -> LineNonce {
        let seed = line
            .patient
            .map_or_else(|| "none".into(), |p| p.to_string());
        let key = Key::new(Key::new([3; 32]).derive(&[seed.as_bytes()]));
        LineNonce::new(&key, &self.origin, TIMELINE, line.seq)
    }

    /// The calendar in which all blocks of this trail are sealed.
    pub(crate) fn calendar(&self) -> Calendar {
        Calendar::new(
            self.blocks
                .iter()
                .zip(SEALED)
                .map(|(b, at)| (at, (b.leaf.root.0, b.leaf.level))),
        )
    }

    /// The log's head at `size`, signed by the trail's key alone.
    pub(crate) fn head(&self, size: u64) -> Note {
        let root = self.log.root_at(size).unwrap();
        Head::new(&self.origin, size, root)
            .unwrap()
            .sign(&self.log_key)
            .unwrap()
    }

    pub(crate) fn line_proof(&self, seq: u64, opened: bool) -> LineProof {
        let block = self
            .blocks
            .iter()
            .rfind(|b| b.leaf.first_seq <= seq)
            .unwrap();
        let line = self.lines[usize::try_from(seq).unwrap()].clone();
        let chain = block.tree.chain(seq - block.leaf.first_seq).unwrap();
        LineProof {
            block: block.leaf.block,
            chain: Blob(chain.encode().unwrap()),
            open: if opened { self.opening(&line) } else { None },
            line,
        }
    }

    fn opening(&self, line: &Line) -> Option<Opening> {
        let content = self.contents.get(&line.seq)?;
        let nonce = self.nonce(line);
        let columns =
            cells(content).map(|(name, value)| OpenColumn::open(name, nonce.column(name), value));
        let opening = Opening {
            columns: line.row.map(|_| columns.collect()),
            person: content.person.map(|p| OpenPerson {
                nonce: nonce.person(),
                value: p.into(),
            }),
            raw: content.raw.map(|r| OpenRaw {
                bytes: Some(Blob(r.into())),
                nonce: nonce.raw(),
            }),
        };
        let nothing =
            opening.columns.is_none() && opening.person.is_none() && opening.raw.is_none();
        (!nothing).then_some(opening)
    }

    pub(crate) fn block_proof(&self, block: u64, size: u64, seal: Vec<u8>) -> BlockProof {
        let path = self.log.inclusion_proof(block, size).unwrap();
        BlockProof {
            block,
            leaf: Blob(self.blocks[usize::try_from(block).unwrap()].leaf.encode()),
            path: path.into_iter().map(Bytes32).collect(),
            seal: Some(Blob(seal)),
        }
    }

    /// The evidence about a patient, sealed up to the publication, cosigned
    /// and audited, and signed by the trail's key.
    pub(crate) fn evidence(&mut self, id: &str) -> Evidence {
        let subject = self.pseudonym(id);
        let shown = [Some(subject), Some(Patient::Many), Some(Patient::Unknown)];
        let about = self
            .lines
            .iter()
            .filter(|l| shown.contains(&l.patient))
            .map(|l| l.seq);
        let lines = about.map(|seq| self.line_proof(seq, true)).collect();
        let size = self.log.size();
        let calendar = self.calendar();
        let blocks = (0..size)
            .zip(SEALED)
            .map(|(block, at)| self.block_proof(block, size, calendar.published(at, PUBLISHED)))
            .collect();
        let (_, proof) = self.vrf.prove(&patient_alpha(&self.origin, id));
        let mut evidence = Evidence {
            audit: Some(self.audit(|_| {}).to_string()),
            blocks,
            calendar: Vec::new(),
            format: FORMAT.into(),
            genesis: self.lines[0].clone(),
            head: cosigned(self.head(size)).to_string(),
            lines,
            map: MapProof {
                block: size - 1,
                many: self.map_entry(&Patient::Many),
                patient: self.map_entry(&subject),
                unknown: self.map_entry(&Patient::Unknown),
            },
            origin: self.origin.clone(),
            publications: None,
            signature: String::new(),
            subject: Subject {
                id: id.into(),
                proof: Blob(proof.to_vec()),
            },
        };
        self.sign(&mut evidence);
        evidence
    }

    pub(crate) fn map_entry(&mut self, patient: &Patient) -> MapEntry {
        MapEntry {
            before: None,
            leaf: self
                .state
                .patient(patient)
                .unwrap()
                .map(|leaf| Blob(leaf.encode())),
            path: self.state.prove_patient(patient).unwrap(),
        }
    }

    /// The statement of an honest auditor, changed by `change`.
    pub(crate) fn audit(&self, change: impl FnOnce(&mut Statement)) -> Note {
        let mut statement = Statement {
            origin: self.origin.clone(),
            genesis: self.genesis_hash(),
            block: self.log.size() - 1,
            size: self.log.size(),
            log_root: self.log.root(),
            map_root: self.blocks.last().unwrap().leaf.map,
            made_at: Second(AUDITED),
        };
        change(&mut statement);
        Note::sign(&statement.text(), &auditor()).unwrap()
    }

    /// Signs the file as it now is: what an operator can always do.
    pub(crate) fn sign(&self, evidence: &mut Evidence) {
        evidence.signature = self.log_key.sign(&evidence.signed_text()).to_string();
    }

    /// What a careful verifier trusts.
    pub(crate) fn anchors(&self) -> Anchors {
        Anchors {
            version: 1,
            witness_quorum: 2,
            trails: vec![TrailAnchor {
                origin: self.origin.clone(),
                genesis: self.genesis_hash(),
            }],
            publications: vec![PublicationAnchor {
                code: self.calendar().publication(PUBLISHED),
            }],
            authorities: Vec::new(),
            witnesses: witnesses()
                .iter()
                .map(|w| KeyAnchor::new(w.verifier()))
                .collect(),
            auditors: vec![KeyAnchor::new(auditor().verifier())],
            calendar_log: None,
        }
    }
}

impl<'a> Event<'a> {
    fn new(op: Op, at_s: u64) -> Self {
        let content = Content::default();
        Self {
            op,
            at_s,
            record: None,
            patient: None,
            content,
            columns: None,
            event: None,
            more: false,
        }
    }

    fn record(self, table: &'a str, key: &'a str) -> Self {
        Self {
            record: Some((table, key)),
            ..self
        }
    }

    fn patient(self, patient: Patient) -> Self {
        Self {
            patient: Some(patient),
            ..self
        }
    }

    fn row(mut self, row: Vec<(&'static str, Option<&'static str>)>) -> Self {
        self.content.row = row;
        self
    }

    fn columns(self, names: &[&str]) -> Self {
        Self {
            columns: Some(names.iter().map(|n| (*n).to_owned()).collect()),
            ..self
        }
    }

    fn person(mut self, person: &'static str) -> Self {
        self.content.person = Some(person);
        self
    }

    fn raw(mut self, raw: &'static str) -> Self {
        self.content.raw = Some(raw);
        self
    }
}

pub(crate) fn witnesses() -> [CosigningKey; 2] {
    [
        ("ministry.example/witness", 4),
        ("university.example/witness", 5),
    ]
    .map(|(name, seed)| CosigningKey::from_seed(name, &[seed; 32]).unwrap())
}

pub(crate) fn auditor() -> SigningKey {
    SigningKey::from_seed("auditor.example", &[6; 32]).unwrap()
}

/// The head as both witnesses have cosigned it.
pub(crate) fn cosigned(mut head: Note) -> Note {
    for (witness, at) in witnesses().iter().zip(COSIGNED) {
        let line = witness.cosign(head.text(), at);
        head.add(line).unwrap();
    }
    head
}

/// "intact"; "unconfirmed at" and the steps that wait; or "broken", code and step.
pub(crate) fn judge(evidence: &Evidence, anchors: Option<&Anchors>) -> String {
    // Only what a file can say: what is written is what is read.
    let evidence = match Evidence::decode(&evidence.encode()) {
        Ok(evidence) => evidence,
        Err(_) => return "unreadable".into(),
    };
    outcome(&verify(&evidence, anchors, JUDGED))
}

pub(crate) fn outcome(report: &Report) -> String {
    let named = |state| {
        let steps = report.steps.iter().filter(move |s| s.state == state);
        steps.map(|s| s.name).collect::<Vec<_>>().join(", ")
    };
    match report.verdict {
        Verdict::Intact => "intact".into(),
        Verdict::Unconfirmed => format!("unconfirmed at {}", named(StepState::Waiting)),
        Verdict::Broken(code) => format!("broken {code} at {}", named(StepState::Broken)),
    }
}

pub(crate) fn instant(at_s: u64) -> Timestamp {
    Timestamp::from_micros(at_s * 1_000_000 + 250_000).unwrap()
}

pub(crate) fn table_key(table: &str) -> Key {
    Key::new(Key::new([8; 32]).derive(&[table.as_bytes()]))
}

fn table(name: &str, columns: &[&str], patient: &str) -> TableGenesis {
    TableGenesis {
        columns: columns.iter().map(|c| (*c).to_owned()).collect(),
        key: vec!["id".into()],
        name: name.into(),
        patient: patient.into(),
        table_key: commit_table_key(name, &table_key(name)),
    }
}

fn observation(
    id: &'static str,
    patient: &'static str,
    status: Option<&'static str>,
    value: &'static str,
) -> Vec<(&'static str, Option<&'static str>)> {
    vec![
        ("id", Some(id)),
        ("patient_id", Some(patient)),
        ("status", status),
        ("value", Some(value)),
    ]
}

fn cells(content: &Content) -> impl Iterator<Item = (&'static str, Option<&'static [u8]>)> {
    content
        .row
        .clone()
        .into_iter()
        .map(|(name, value)| (name, value.map(str::as_bytes)))
}
