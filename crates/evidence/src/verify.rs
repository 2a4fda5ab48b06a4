//! Judging an evidence file against a verifier's own anchors
//! (docs/spec/35-evidence.md §4).
//!
//! The examination runs in a fixed order and stops at the first contradiction.
//! What is merely missing (an anchor, a publication, an auditor) is noted and
//! makes the verdict `unconfirmed`.

use crate::anchors::{Anchors, trusted};
use crate::audit::Statement;
use crate::block::LogLeaf;
use crate::calendar_log::{NotWitnessed, Proofs};
use crate::codec::{Blob, Digest};
use crate::commit::{column_leaf, commit_person, commit_raw, patient_alpha, row_root};
use crate::file::{BlockProof, Evidence, LineProof, MapEntry, OpenColumn, OpenRaw, Opening};
use crate::finding::Code;
use crate::line::{Genesis, Line, Op, Patient, Release};
use crate::map::{Leaf, LeafKind, patient_map_key};
use crate::seal::{self, Seal, SealKeys};
use crate::vrf::PublicKey;
use pitser_ksi::hash::Algorithm;
use pitser_ksi::logsig::RecordChain;
use pitser_ksi::signature::Signature;
use pitser_ksi::time::Second;
use pitser_ksi::tlv::Element;
use pitser_tlog::checkpoint::{Checkpoint, verify_quorum};
use pitser_tlog::merkle;
use pitser_tlog::note::{Note, SignatureError, SignatureLine, VerifierKey};
use std::collections::{BTreeMap, BTreeSet};

/// What an examination came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Everything that is claimed follows from the anchors.
    Intact,
    /// Nothing contradicts the claims; something needed to confirm them is missing.
    Unconfirmed,
    /// A claim is contradicted.
    Broken(Code),
}

impl Verdict {
    /// `intact`, `unconfirmed` or `broken`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Intact => "intact",
            Self::Unconfirmed => "unconfirmed",
            Self::Broken(_) => "broken",
        }
    }
}

/// How one step of the examination ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepState {
    /// Follows from the anchors.
    Matches,
    /// Not contradicted, and not confirmed.
    Waiting,
    /// Contradicted.
    Broken,
}

/// One step, as a person reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// One word.
    pub name: &'static str,
    /// How it ended.
    pub state: StepState,
    /// What was seen.
    pub text: String,
}

/// The examination of one evidence file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The outcome.
    pub verdict: Verdict,
    /// When the last block under the head was sealed, if that is confirmed. The evidence
    /// says nothing about what came later, whenever the head was cosigned: witnesses cosign
    /// an old one again.
    pub as_of: Option<Second>,
    /// When a quorum of witnesses had cosigned the head.
    pub witnessed_at: Option<Second>,
    /// What is known to be missing at the beginning of the shared lists.
    pub left_out: Vec<LeftOut>,
    /// The steps in their order; the last one broken if the verdict is.
    pub steps: Vec<Step>,
}

/// The first lines of a shared list, which are not in the file: the next one points
/// to the last of them, and the map counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeftOut {
    /// `*many` or `*unknown`.
    pub list: Patient,
    /// How many there are.
    pub lines: u64,
    /// The last of them.
    pub up_to: u64,
    /// When all of them existed: the next line of the list was sealed then. `None`
    /// while that seal is not confirmed.
    pub sealed_by: Option<Second>,
}

impl std::fmt::Display for LeftOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            list,
            lines,
            up_to,
            sealed_by,
        } = self;
        let by = match sealed_by {
            Some(at) => format!("all sealed by {at}"),
            None => "sealed at times that are not confirmed".to_owned(),
        };
        write!(
            f,
            "the first {lines} lines of {list}, up to line {up_to}, {by}, are not in this file"
        )
    }
}

/// Judges `evidence` by whole lists. Without anchors the best verdict is `unconfirmed`.
///
/// `at` is the instant of the judgement; certificates are judged by it.
pub fn verify(evidence: &Evidence, anchors: Option<&Anchors>, at: Second) -> Report {
    judge(evidence, anchors, at, None)
}

/// Does as [`verify`] for somebody who asks of the shared lists only what was sealed
/// after `shared_since`. Of the patient's own list he always asks for all.
pub fn verify_since(
    evidence: &Evidence,
    anchors: Option<&Anchors>,
    at: Second,
    shared_since: Second,
) -> Report {
    judge(evidence, anchors, at, Some(shared_since))
}

fn judge(
    evidence: &Evidence,
    anchors: Option<&Anchors>,
    at: Second,
    shared_since: Option<Second>,
) -> Report {
    let mut examination = Examination {
        evidence,
        anchors,
        at,
        shared_since,
        as_of: None,
        witnessed_at: None,
        left_out: Vec::new(),
        steps: Vec::new(),
    };
    let verdict = match examination.run() {
        Err(Contradiction { name, code, text }) => {
            examination.note(name, StepState::Broken, format!("{code} {text}"));
            Verdict::Broken(code)
        }
        Ok(())
            if examination
                .steps
                .iter()
                .all(|s| s.state == StepState::Matches) =>
        {
            Verdict::Intact
        }
        Ok(()) => Verdict::Unconfirmed,
    };
    Report {
        verdict,
        as_of: examination.as_of,
        witnessed_at: examination.witnessed_at,
        left_out: examination.left_out,
        steps: examination.steps,
    }
}

struct Contradiction {
    name: &'static str,
    code: Code,
    text: String,
}

fn broken(name: &'static str, code: Code, text: impl Into<String>) -> Contradiction {
    Contradiction {
        name,
        code,
        text: text.into(),
    }
}

struct Examination<'a> {
    evidence: &'a Evidence,
    anchors: Option<&'a Anchors>,
    at: Second,
    /// Since when the shared lists are asked for; `None` from their beginning.
    shared_since: Option<Second>,
    as_of: Option<Second>,
    witnessed_at: Option<Second>,
    left_out: Vec<LeftOut>,
    steps: Vec<Step>,
}

/// A block that stands in the log.
struct Placed {
    leaf: LogLeaf,
    sealed_at: Option<Second>,
}

struct Head {
    size: u64,
    root: merkle::Hash,
}

impl<'a> Examination<'a> {
    fn run(&mut self) -> Result<(), Contradiction> {
        let genesis = self.genesis_body()?;
        let log_key = self.file(genesis)?;
        let genesis_hash = self.genesis()?;
        let head = self.head(&log_key)?;
        let blocks = self.blocks(&head)?;
        self.lines(&blocks)?;
        let subject = self.subject(genesis)?;
        let map_root = self.complete(&head, &blocks, subject, genesis)?;
        self.audit(&log_key, genesis_hash, &head, map_root)?;
        self.openings()
    }

    fn note(&mut self, name: &'static str, state: StepState, text: impl Into<String>) {
        self.steps.push(Step {
            name,
            state,
            text: text.into(),
        });
    }

    fn genesis_body(&self) -> Result<&'a Genesis, Contradiction> {
        let genesis = self.evidence.genesis.genesis.as_deref();
        genesis
            .filter(|g| g.origin == self.evidence.origin)
            .ok_or_else(|| {
                broken(
                    "file",
                    Code::EvidenceAltered,
                    "it does not begin with its trail's genesis line",
                )
            })
    }

    /// The trail's own key signed the file as it is.
    fn file(&mut self, genesis: &Genesis) -> Result<VerifierKey, Contradiction> {
        let altered = |text: String| broken("file", Code::EvidenceAltered, text);
        let key: VerifierKey = genesis
            .log_key
            .parse()
            .map_err(|e| altered(format!("the genesis line's log key is unusable: {e}")))?;
        if key.name() != genesis.origin {
            return Err(altered(
                "the log key in the genesis line bears another trail's name".into(),
            ));
        }
        let line = SignatureLine::parse(&self.evidence.signature)
            .map_err(|e| altered(format!("its signature line is unreadable: {e}")))?;
        if !key.made(&line) || key.verify(&self.evidence.signed_text(), &line).is_err() {
            return Err(altered(
                "it was changed after the trail's key signed it".into(),
            ));
        }
        let count = self.evidence.lines.len();
        self.note(
            "file",
            StepState::Matches,
            format!("{count} lines, signed by {}", key.name()),
        );
        Ok(key)
    }

    /// The trail is the one that the anchors know.
    fn genesis(&mut self) -> Result<Digest, Contradiction> {
        let hash = Line::hash(&self.evidence.genesis.encode());
        let Some(anchors) = self.anchors else {
            self.note(
                "genesis",
                StepState::Waiting,
                format!("{hash}: no anchors file to compare it with"),
            );
            return Ok(hash);
        };
        let mut known = anchors
            .trails
            .iter()
            .filter(|t| t.origin == self.evidence.origin)
            .peekable();
        if known.peek().is_none() {
            let text = format!(
                "your anchors do not know the trail {}",
                self.evidence.origin
            );
            self.note("genesis", StepState::Waiting, text);
        } else if known.any(|t| t.genesis == hash) {
            self.note("genesis", StepState::Matches, hash.to_string());
        } else {
            return Err(broken(
                "genesis",
                Code::TrailForked,
                format!(
                    "this trail of that name began with {hash}, the one in your anchors did not"
                ),
            ));
        }
        Ok(hash)
    }

    /// The head is the trail's, and a quorum of witnesses cosigned it.
    fn head(&mut self, log_key: &VerifierKey) -> Result<Head, Contradiction> {
        let forked = |text: String| broken("head", Code::TrailForked, text);
        let note = Note::parse(self.evidence.head.as_bytes())
            .map_err(|e| forked(format!("unreadable: {e}")))?;
        let checkpoint = Checkpoint::open(&note, log_key.name(), log_key)
            .map_err(|e| forked(format!("not signed by the trail's key: {e}")))?;
        let head = Head {
            size: checkpoint.size(),
            root: *checkpoint.root(),
        };
        if head.size == 0 {
            return Err(forked("it covers no block".into()));
        }
        let quorum = self.anchors.map_or(0, |a| a.witness_quorum as usize);
        if quorum == 0 {
            let text = format!("{} blocks; no witness of yours to confirm it", head.size);
            self.note("head", StepState::Waiting, text);
            return Ok(head);
        }
        let witnesses = self.anchors.map_or(&[][..], |a| &a.witnesses);
        let trusted = trusted(witnesses, &note);
        match verify_quorum(&note, log_key, &trusted, quorum) {
            Ok(seen) => {
                self.witnessed_at = Some(Second(seen.cosigned_at));
                let text = format!(
                    "{} blocks, cosigned by {} at {}",
                    head.size,
                    seen.witnesses.join(", "),
                    Second(seen.cosigned_at)
                );
                self.note("head", StepState::Matches, text);
            }
            Err(pitser_tlog::checkpoint::QuorumError::TooFew { found, required }) => {
                let text = format!(
                    "{} blocks; {found} of {required} required witnesses cosigned",
                    head.size
                );
                self.note("head", StepState::Waiting, text);
            }
            Err(e) => return Err(forked(e.to_string())),
        }
        Ok(head)
    }

    /// Every block stands in the log where it says, and its seal holds.
    fn blocks(&mut self, head: &Head) -> Result<BTreeMap<u64, Placed>, Contradiction> {
        let keys = SealKeys::new(
            self.anchors,
            self.evidence.publications.as_ref().map(|b| b.0.as_slice()),
            self.at,
        );
        let calendar = self.calendar()?;
        let mut blocks = BTreeMap::new();
        let (mut seals, mut seconds) = (SealSummary::default(), SecondSummary::default());
        let mut previous: Option<(u64, Second)> = None;
        for proof in &self.evidence.blocks {
            if previous.is_some_and(|(number, _)| number >= proof.block) {
                return Err(broken("log", Code::BlockMissing, "blocks are not in order"));
            }
            let leaf = self.in_log(proof, head)?;
            let seal = match &proof.seal {
                None => Seal::Waiting("no seal has come yet".into()),
                Some(bytes) => {
                    let seal = seal::check(&bytes.0, leaf.root.0, leaf.level, &keys);
                    // Whoever has the key can sign any second, but not change one that is
                    // published.
                    let seal = match seal {
                        Seal::Keyed { at } if keys.covers(at) => Seal::Waiting(format!(
                            "a publication of yours covers {at}, and the seal is not extended to it: ask for a newer export"
                        )),
                        other => other,
                    };
                    match &calendar {
                        Some(proofs) => seconds.add(proof.block, &bytes.0, seal, proofs)?,
                        None => seal,
                    }
                }
            };
            let sealed_at = seals.add(proof.block, &seal)?;
            if let (Some((_, before)), Some(at)) = (previous, sealed_at)
                && at < before
            {
                let text = format!(
                    "block {} was sealed before the block it follows",
                    proof.block
                );
                return Err(broken("seals", Code::SealInvalid, text));
            }
            previous = Some((
                proof.block,
                sealed_at.or(previous.map(|p| p.1)).unwrap_or_default(),
            ));
            blocks.insert(proof.block, Placed { leaf, sealed_at });
        }
        let text = format!("{} blocks stand in the log of {}", blocks.len(), head.size);
        self.note("log", StepState::Matches, text);
        seals.note(self);
        if calendar.is_some() {
            seconds.note(self);
        }
        Ok(blocks)
    }

    /// The proofs from the calendar's log, if the anchors name it.
    fn calendar(&self) -> Result<Option<Proofs<'a>>, Contradiction> {
        let Some(log) = self
            .anchors
            .and_then(|anchors| anchors.calendar_log.as_ref())
        else {
            return Ok(None);
        };
        let proofs = Proofs::read(log, &self.evidence.calendar);
        let proofs = proofs.map_err(|text| broken("witnessed", Code::SealInvalid, text))?;
        Ok(Some(proofs))
    }

    fn in_log(&self, proof: &BlockProof, head: &Head) -> Result<LogLeaf, Contradiction> {
        let missing = |text: String| {
            broken(
                "log",
                Code::BlockMissing,
                format!("block {}: {text}", proof.block),
            )
        };
        let leaf = LogLeaf::decode(&proof.leaf.0).map_err(|e| missing(e.to_string()))?;
        if leaf.origin != self.evidence.origin || leaf.block != proof.block {
            return Err(missing("its log entry is another block's".into()));
        }
        let path: Vec<_> = proof.path.iter().map(|b| b.0).collect();
        merkle::verify_inclusion(
            merkle::leaf_hash(&proof.leaf.0),
            proof.block,
            head.size,
            &path,
            &head.root,
        )
        .map_err(|e| missing(format!("not under the cosigned head: {e}")))?;
        Ok(leaf)
    }

    /// Every line stands in its block.
    fn lines(&mut self, blocks: &BTreeMap<u64, Placed>) -> Result<(), Contradiction> {
        let altered = |seq: u64, text: String| {
            broken("lines", Code::LineAltered, format!("line {seq}: {text}"))
        };
        let mut previous = None;
        let mut latest_s = 0;
        // Of the line that states the time furthest behind its seal.
        let mut earliest = (0, 0);
        for proof in &self.evidence.lines {
            let seq = proof.line.seq;
            if previous.is_some_and(|p| p >= seq) {
                return Err(altered(seq, "lines are not in order".into()));
            }
            previous = Some(seq);
            let Placed { leaf, sealed_at } = blocks.get(&proof.block).ok_or_else(|| {
                altered(seq, format!("its block {} is not in the file", proof.block))
            })?;
            let last = leaf.first_seq.saturating_add(leaf.count);
            if !(leaf.first_seq..last).contains(&seq) {
                return Err(altered(
                    seq,
                    format!("block {} does not cover it", proof.block),
                ));
            }
            let chain = Element::single(&proof.chain.0)
                .and_then(|element| RecordChain::decode(&element))
                .map_err(|e| altered(seq, format!("its chain: {e}")))?;
            if !chain.is_of_line(&proof.line.encode()) {
                return Err(altered(
                    seq,
                    "its text does not hash to what was sealed".into(),
                ));
            }
            if chain.root() != (leaf.root.0, leaf.level) {
                return Err(altered(
                    seq,
                    "its chain does not lead to its block's root".into(),
                ));
            }
            let happened_at = Second(proof.line.at.micros() / 1_000_000);
            latest_s = latest_s.max(sealed_at.map_or(0, |at| at.since(happened_at)));
            let ahead_s = sealed_at.map_or(0, |at| happened_at.since(at));
            if ahead_s > earliest.0 {
                earliest = (ahead_s, seq);
            }
        }
        let count = self.evidence.lines.len();
        let text = format!(
            "{count} lines hash to the roots of their blocks, sealed at most {latest_s} s after the time they state"
        );
        match earliest {
            (ahead_s, seq) if ahead_s > AHEAD_S => self.note(
                "lines",
                StepState::Waiting,
                format!("{text}; line {seq} was sealed {ahead_s} s before the time it states"),
            ),
            _ => self.note("lines", StepState::Matches, text),
        }
        Ok(())
    }

    /// The pseudonym in the lines is the named person's, and only one exists.
    fn subject(&mut self, genesis: &Genesis) -> Result<Patient, Contradiction> {
        let mismatch = |text: &str| broken("subject", Code::SubjectMismatch, text);
        let subject = &self.evidence.subject;
        let proof = subject
            .proof
            .0
            .as_slice()
            .try_into()
            .map_err(|_| mismatch("its proof is not 80 bytes"))?;
        let alpha = patient_alpha(&self.evidence.origin, &subject.id);
        let pseudonym = PublicKey(genesis.vrf_key.0)
            .verify(&alpha, proof)
            .ok_or_else(|| mismatch("the pseudonym is not that of the named identifier"))?;
        let patient = Patient::Pseudonym(crate::codec::Bytes32(pseudonym));
        let allowed = [Some(patient), Some(Patient::Many), Some(Patient::Unknown)];
        if self
            .evidence
            .lines
            .iter()
            .any(|l| !allowed.contains(&l.line.patient))
        {
            return Err(mismatch("it shows a line that is not the subject's"));
        }
        self.note(
            "subject",
            StepState::Matches,
            "the pseudonym is that of the named identifier",
        );
        Ok(patient)
    }

    /// The lines are all there are, by the map under the head.
    fn complete(
        &mut self,
        head: &Head,
        blocks: &BTreeMap<u64, Placed>,
        subject: Patient,
        genesis: &Genesis,
    ) -> Result<Digest, Contradiction> {
        let missing = |text: String| broken("complete", Code::BlockMissing, text);
        let map = &self.evidence.map;
        if map.block.checked_add(1) != Some(head.size) {
            return Err(missing("the map is not that of the head".into()));
        }
        let last = blocks
            .get(&map.block)
            .ok_or_else(|| missing("the head's last block is not in the file".into()))?;
        self.as_of = last.sealed_at;
        let root = last.leaf.map;
        let lists = [
            (subject, &map.patient),
            (Patient::Many, &map.many),
            (Patient::Unknown, &map.unknown),
        ];
        let mut counts = Vec::new();
        for (patient, entry) in lists {
            let lines: Vec<_> = self
                .evidence
                .lines
                .iter()
                .filter(|l| l.line.patient == Some(patient))
                .collect();
            let left_out =
                check_list(patient, entry, &lines, root).map_err(|text| missing(text.into()))?;
            self.left_out.extend(left_out.map(|left_out| LeftOut {
                sealed_by: blocks.get(&lines[0].block).and_then(|it| it.sealed_at),
                ..left_out
            }));
            counts.push(lines.len());
        }
        self.accepted()
            .and_then(|()| self.held(subject, genesis))
            .map_err(|text| broken("complete", Code::LineAltered, text))?;
        let [own, many, unknown] = [counts[0], counts[1], counts[2]];
        let mut text = match self.left_out.is_empty() {
            true => format!(
                "the map lists {own} lines of the subject, {many} of *many and {unknown} of *unknown: all are here"
            ),
            false => format!(
                "the map lists {own} lines of the subject, which are all here; of *many the last {many} are, \
                 and of *unknown the last {unknown}"
            ),
        };
        for left_out in &self.left_out {
            text += &format!("; {left_out}");
        }
        if genesis.rules.is_none() {
            text += "; other lists may have lines about the subject's records, but for rows (the trail has no rule 15)";
        }
        if genesis.rules.is_none_or(|rules| rules < 16) {
            text += "; findings may be answered for in other lists (the trail has no rule 16)";
        }
        let erases = |line: &LineProof| line.line.op == Op::Erase;
        if genesis.rules.is_none_or(|rules| rules < 17) && self.evidence.lines.iter().any(erases) {
            text += "; the trail began before rule 17: that no legal hold stood when the subject was erased, \
                     is the operator's word";
        }
        let state = match self.left_out.iter().all(|it| self.is_before(it)) {
            true => StepState::Matches,
            false => StepState::Waiting,
        };
        self.note("complete", state, text);
        Ok(root)
    }

    /// Whether what is left out is not asked for.
    fn is_before(&self, left_out: &LeftOut) -> bool {
        let asked = left_out.sealed_by.zip(self.shared_since);
        asked.is_some_and(|(sealed_by, since)| sealed_by <= since)
    }

    /// What was accepted is a finding of the same list, and was accepted once. The
    /// lists are known to be complete, but for what is left out and said to be.
    fn accepted(&self) -> Result<(), String> {
        // Known to be in order.
        let lines = &self.evidence.lines;
        let mut seen = BTreeSet::new();
        for line in lines.iter().map(|proof| &proof.line) {
            let Some(accept) = &line.accept else { continue };
            let seq = accept.finding.seq;
            let found = lines.binary_search_by_key(&seq, |proof| proof.line.seq);
            let is_it = |finding: &Line| {
                let of_same = (&finding.patient, &finding.table, &finding.key)
                    == (&line.patient, &line.table, &line.key);
                finding.op == Op::Finding
                    && of_same
                    && Line::hash(&finding.encode()) == accept.finding.hash
            };
            let is_left_out = |it: &LeftOut| Some(it.list) == line.patient && seq <= it.up_to;
            let is_sound = match found {
                Ok(at) => is_it(&lines[at].line),
                Err(_) => self.left_out.iter().any(is_left_out),
            };
            if !is_sound {
                return Err(format!(
                    "line {} accepts line {seq}, which is no such finding of its list",
                    line.seq
                ));
            }
            if !seen.insert(seq) {
                return Err(format!(
                    "line {} accepts the finding of line {seq} again",
                    line.seq
                ));
            }
        }
        Ok(())
    }

    /// Whom a hold keeps was not erased, and what was released is a hold of the list that
    /// stood. Of the subject's own list nothing is left out.
    fn held(&self, subject: Patient, genesis: &Genesis) -> Result<(), String> {
        let mut standing = BTreeMap::new();
        let lines = self.evidence.lines.iter().map(|proof| &proof.line);
        for line in lines.filter(|line| line.patient == Some(subject)) {
            if line.op.is_about_a_hold() && genesis.rules.is_none_or(|rules| rules < 17) {
                let seq = line.seq;
                return Err(format!(
                    "line {seq} is about a hold, which its trail cannot have"
                ));
            }
            if line.op == Op::Hold {
                standing.insert(line.seq, Line::hash(&line.encode()));
            }
            if let Some(Release { hold }) = line.release.as_deref()
                && standing.remove(&hold.seq) != Some(hold.hash)
            {
                return Err(format!(
                    "line {} releases line {}, which is no hold of the list that stands",
                    line.seq, hold.seq
                ));
            }
            if line.op == Op::Erase
                && let Some((hold, _)) = standing.first_key_value()
            {
                return Err(format!(
                    "line {} erases the subject, of whom the hold of line {hold} stands",
                    line.seq
                ));
            }
        }
        Ok(())
    }

    /// Somebody else replayed the trail and found this log and this map.
    fn audit(
        &mut self,
        log_key: &VerifierKey,
        genesis: Digest,
        head: &Head,
        map_root: Digest,
    ) -> Result<(), Contradiction> {
        let (state, text) = match self.audited(log_key, genesis, head, map_root)? {
            Ok(text) => (StepState::Matches, text),
            Err(why) => (
                StepState::Waiting,
                format!("{why}: completeness is the operator's word"),
            ),
        };
        self.note("audit", state, text);
        Ok(())
    }

    /// What an auditor of the anchors confirms, or why none does.
    fn audited(
        &self,
        log_key: &VerifierKey,
        genesis: Digest,
        head: &Head,
        map_root: Digest,
    ) -> Result<Result<String, String>, Contradiction> {
        let forked = |text: String| broken("audit", Code::TrailForked, text);
        let Some(note) = &self.evidence.audit else {
            return Ok(Err("no auditor's statement".into()));
        };
        let read = Note::parse(note.as_bytes()).ok().and_then(|note| {
            Statement::parse(note.text())
                .ok()
                .map(|statement| (note, statement))
        });
        let Some((note, statement)) = read else {
            return Ok(Err("the auditor's statement is unreadable".into()));
        };
        // Nobody has seen a head before it was cosigned: an expired key cannot
        // reach it by stating an earlier time.
        let made_at = statement.made_at.max(self.witnessed_at.unwrap_or_default());
        let mut trusted = None;
        for auditor in self.anchors.iter().flat_map(|a| &a.auditors) {
            match note.verify(&auditor.key) {
                Err(SignatureError::Invalid) => {
                    return Err(forked(format!(
                        "the signature of {} does not verify",
                        auditor.key.name()
                    )));
                }
                Ok(())
                    if auditor.covers(made_at)
                        && auditor.key.public_key() != log_key.public_key() =>
                {
                    trusted.get_or_insert(auditor);
                }
                _ => {}
            }
        }
        let Some(auditor) = trusted else {
            return Ok(Err("no auditor of yours signed".into()));
        };
        if statement.origin != self.evidence.origin || statement.size != head.size {
            let about = format!("{} blocks of {}", statement.size, statement.origin);
            return Ok(Err(format!(
                "the auditor's statement is about another head, {about}"
            )));
        }
        let name = auditor.key.name();
        for (same, what) in [
            (statement.genesis == genesis, "began with another line"),
            (statement.log_root == head.root, "has another log"),
            (
                statement.block == self.evidence.map.block && statement.map_root == map_root,
                "has another map",
            ),
        ] {
            if !same {
                return Err(forked(format!("the trail that {name} replayed {what}")));
            }
        }
        Ok(Ok(format!(
            "{name} replayed every line up to block {}, and said so at {}",
            statement.block, statement.made_at
        )))
    }

    /// What is disclosed is what was committed to.
    fn openings(&mut self) -> Result<(), Contradiction> {
        let mut opened = Opened::default();
        for proof in &self.evidence.lines {
            opened.add(proof).map_err(|what| {
                broken(
                    "values",
                    Code::OpeningInvalid,
                    format!("line {}: {what}", proof.line.seq),
                )
            })?;
        }
        let Opened {
            values,
            hidden,
            apart,
        } = opened;
        let mut text = format!(
            "{values} disclosed values open their commitments, {hidden} columns are kept back"
        );
        if apart > 0 {
            text += &format!(", {apart} values stand in files of their own");
        }
        self.note("values", StepState::Matches, text);
        Ok(())
    }
}

#[derive(Default)]
struct SealSummary {
    published: u64,
    keyed: u64,
    last_at: Option<Second>,
    waiting: Option<(u64, String)>,
}

impl SealSummary {
    /// Counts a seal; gives its time where it has one.
    fn add(&mut self, block: u64, seal: &Seal) -> Result<Option<Second>, Contradiction> {
        let at = match seal {
            Seal::Published { at } => {
                self.published += 1;
                Some(*at)
            }
            Seal::Keyed { at } => {
                self.keyed += 1;
                Some(*at)
            }
            Seal::Waiting(why) => {
                self.waiting.get_or_insert_with(|| (block, why.clone()));
                None
            }
            Seal::Broken(why) => {
                return Err(broken(
                    "seals",
                    Code::SealInvalid,
                    format!("block {block}: {why}"),
                ));
            }
        };
        self.last_at = at.or(self.last_at);
        Ok(at)
    }

    fn note(self, examination: &mut Examination<'_>) {
        match self.waiting {
            Some((block, why)) => {
                examination.note("seals", StepState::Waiting, format!("block {block}: {why}"))
            }
            None => {
                let until = self.last_at.unwrap_or_default();
                let text = match self.keyed {
                    0 => format!(
                        "{} seals up to {until}, by publications of yours",
                        self.published
                    ),
                    keyed => format!(
                        "{} seals up to {until}, {keyed} of them by the authority's key until the next publication",
                        self.published + keyed
                    ),
                };
                examination.note("seals", StepState::Matches, text);
            }
        }
    }
}

/// What the calendar's log says of the seconds of seals.
#[derive(Default)]
struct SecondSummary {
    witnessed: u64,
    latest_s: u64,
    waiting: Option<(u64, NotWitnessed)>,
}

impl SecondSummary {
    /// Looks at the second of one seal. A publication whose own second is not
    /// witnessed does not count: the seal waits then.
    fn add(
        &mut self,
        block: u64,
        bytes: &[u8],
        seal: Seal,
        proofs: &Proofs<'_>,
    ) -> Result<Seal, Contradiction> {
        if matches!(seal, Seal::Waiting(_) | Seal::Broken(_)) {
            return Ok(seal);
        }
        let Ok(signature) = Signature::decode(bytes) else {
            return Ok(seal);
        };
        let contradicted = |text: String| {
            broken(
                "witnessed",
                Code::SealInvalid,
                format!("block {block}: {text}"),
            )
        };
        let Some(chain) = signature.calendar() else {
            return Err(contradicted("its seal has no calendar chain".into()));
        };
        match proofs.second(chain) {
            Ok(seen) => {
                self.witnessed += 1;
                self.latest_s = self.latest_s.max(seen.cosigned_at.since(seen.second));
            }
            Err(NotWitnessed::Contradicted(text)) => return Err(contradicted(text)),
            Err(why) => drop(self.waiting.get_or_insert((block, why))),
        }
        let Some(record) = signature.publication() else {
            return Ok(seal);
        };
        match proofs.publication(&record.data) {
            Ok(_) => Ok(seal),
            Err(NotWitnessed::Contradicted(text)) => Err(contradicted(format!(
                "the publication of {}: {text}",
                record.data.time
            ))),
            Err(why) => Ok(Seal::Waiting(format!(
                "the publication of {} does not count: {why}",
                record.data.time
            ))),
        }
    }

    fn note(self, examination: &mut Examination<'_>) {
        let (state, text) = match self.waiting {
            Some((block, why)) => (StepState::Waiting, format!("block {block}: {why}")),
            None => (
                StepState::Matches,
                format!(
                    "{} seconds of seals stand in the calendar's log, cosigned at most {} s later",
                    self.witnessed, self.latest_s
                ),
            ),
        };
        examination.note("witnessed", state, text);
    }
}

/// That a list is whole, or all of its lines after those that it says are left out:
/// of these the times are not known here.
fn check_list(
    patient: Patient,
    entry: &MapEntry,
    lines: &[&LineProof],
    root: Digest,
) -> Result<Option<LeftOut>, &'static str> {
    if root.0.algorithm() != Algorithm::Sha256 {
        return Err("the map's root is not SHA-256");
    }
    let root: [u8; 32] = root
        .0
        .digest()
        .try_into()
        .map_err(|_| "the map's root is not SHA-256")?;
    let value = entry.leaf.as_ref().map(|b| b.0.as_slice());
    if !entry.path.shows(&root, &patient_map_key(&patient), value) {
        return Err("the map does not hold this list");
    }
    let Some(value) = value else {
        return match lines.is_empty() && entry.before.is_none() {
            true => Ok(None),
            false => Err("the map holds no such list"),
        };
    };
    let leaf = Leaf::decode(value).map_err(|_| "the list's leaf is unreadable")?;
    let left_out = match entry.before {
        None => None,
        Some(count) => {
            let first = lines.first().and_then(|proof| proof.line.patient_prev);
            let last = first.ok_or("it says that lines are left out, and none follows on them")?;
            Some((count, last))
        }
    };
    let mut before = left_out.map(|(_, last)| last);
    for proof in lines {
        if proof.line.patient_prev != before {
            return Err("a line between two others is left out");
        }
        let hash = Line::hash(&proof.line.encode());
        before = Some(crate::line::Prev {
            hash,
            seq: proof.line.seq,
        });
    }
    let last = Some(crate::line::Prev {
        hash: leaf.last_hash,
        seq: leaf.last_seq,
    });
    if leaf.kind != LeafKind::Patient || before != last {
        return Err("lines at the end are left out");
    }
    let earlier = left_out.map_or(0, |(count, _)| count);
    if leaf.count.checked_sub(lines.len() as u64) != Some(earlier) {
        return Err("the map does not count as many lines as it says");
    }
    Ok(left_out.map(|(lines, last)| LeftOut {
        list: patient,
        lines,
        up_to: last.seq,
        sealed_by: None,
    }))
}

/// What is disclosed, counted.
#[derive(Default)]
struct Opened {
    values: usize,
    hidden: usize,
    /// Those in files of their own, which are compared apart ([`Evidence::apart`]).
    apart: usize,
}

impl Opened {
    fn add(&mut self, proof: &LineProof) -> Result<(), &'static str> {
        let Some(open) = &proof.open else {
            return Ok(());
        };
        let Opening {
            columns,
            person,
            raw,
        } = open;
        let line = &proof.line;
        if let Some(columns) = columns
            && line.row != Some(self.row(columns)?)
        {
            return Err("the row's columns are not those that were sealed");
        }
        if let Some(person) = person {
            let sealed = line.actor.as_ref().and_then(|a| a.person);
            if sealed != Some(commit_person(&person.nonce, &person.value)) {
                return Err("the person is not the one that was sealed");
            }
            self.values += 1;
        }
        match raw {
            None => {}
            Some(OpenRaw { bytes: None, .. }) => match line.raw {
                Some(_) => self.apart += 1,
                None => return Err("a message is to stand apart, and none was sealed"),
            },
            Some(OpenRaw {
                bytes: Some(Blob(bytes)),
                nonce,
            }) => match line.raw == Some(commit_raw(nonce, bytes)) {
                true => self.values += 1,
                false => return Err("the message is not the one that was sealed"),
            },
        }
        Ok(())
    }

    /// The row's commitment, from what is shown of its columns.
    fn row(&mut self, columns: &[OpenColumn]) -> Result<Digest, &'static str> {
        let mut names = BTreeSet::new();
        let mut leaves = Vec::with_capacity(columns.len());
        for column in columns {
            let name = column.name.as_str();
            if !names.insert(name) || names.len() > MAX_SHORT || name.len() > MAX_SHORT {
                return Err(
                    "a column's name is there twice or too long, or there are too many columns",
                );
            }
            let leaf = match (&column.hidden, &column.nonce) {
                (Some(leaf), nonce) if column.bytes().is_none() => {
                    match nonce {
                        None => self.hidden += 1,
                        Some(_) => self.apart += 1,
                    }
                    leaf.0
                }
                (None, Some(nonce)) if column.value.is_none() || column.bytes.is_none() => {
                    self.values += 1;
                    column_leaf(nonce, name, column.bytes())
                }
                _ => return Err("a column is neither open nor hidden"),
            };
            leaves.push((name, leaf));
        }
        Ok(row_root(leaves))
    }
}

/// A line may state a time so many seconds after its seal: clocks differ.
const AHEAD_S: u64 = 600;
/// What the two bytes of a count or length can say.
const MAX_SHORT: usize = u16::MAX as usize;
