//! Judging a log by its log signature.

use std::collections::BTreeSet;
use std::path::Path;

use pitser_evidence::Code as Finding;
use pitser_ksi::DecodeError;
use pitser_ksi::hash::Imprint;
use pitser_ksi::logsig::{Block, BlockReport, Excerpt, Fault, Format, Lines, RecordFault, Seal};
use pitser_ksi::policy;
use pitser_ksi::signature::Signature;
use pitser_ksi::time::Second;

use super::stream::{Blocks, LogLines, Window};
use super::{malformed, parallel};
use crate::commands::verify::signature::Case;
use crate::files;
use crate::outcome::{Failure, Outcome};
use crate::output::{Form, Judgement, State, Step, Verdict, plural};
use crate::tree::{Map, Tree};
use crate::trust::{Trust, TrustArgs};

/// Judges the lines of `log` by `signature`, the bytes of `path`, which are of `format`.
pub(crate) fn run_on(
    format: Format,
    signature: &[u8],
    path: &Path,
    log: &Path,
    trust: &TrustArgs,
    form: Form,
) -> Outcome {
    debug_assert_eq!(Format::of(signature), Some(format));
    judge(Window::of(path, signature), path, log, None, trust, form)
}

/// Judges the lines of `log` by the log signature in `path`, whose first block must
/// go on from the leaf `after`, if one is given.
pub(super) fn run(
    path: &Path,
    log: &Path,
    after: Option<Imprint>,
    trust: &TrustArgs,
    form: Form,
) -> Outcome {
    if !path.is_dir() {
        return judge(Window::open(path)?, path, log, after, trust, form);
    }
    let trust = trust.load()?;
    let mut examination = Examination::new(&trust, after);
    let blocks = Blocks::open(path)?;
    let format = blocks.format();
    examination.blocks(blocks, path, log)?;
    examination.tell(format, path, log, form)
}

fn judge(
    mut signature: Window<'_>,
    path: &Path,
    log: &Path,
    after: Option<Imprint>,
    trust: &TrustArgs,
    form: Form,
) -> Outcome {
    let trust = trust.load()?;
    let format = signature.format()?.ok_or_else(|| unknown(path))?;
    let mut examination = Examination::new(&trust, after);
    match format {
        Format::Seals => {
            return Err(Failure::Input(format!(
                "{}: these are the signatures alone; join them with their blocks by pitser log integrate",
                path.display()
            )));
        }
        Format::Proof | Format::Proof11 if after.is_some() => {
            return Err(Failure::Input(format!(
                "{}: --after says nothing about an excerpt, which does not say what its log goes on from",
                path.display()
            )));
        }
        Format::Proof | Format::Proof11 => {
            let lines = files::read(log)?;
            let excerpt = Excerpt::decode(signature.read_all()?).map_err(|e| malformed(path, e))?;
            examination
                .excerpt(&excerpt, &lines)
                .map_err(|e| malformed(path, e))?;
        }
        Format::LogSignature | Format::LogSignature11 | Format::Blocks => {
            examination.blocks(Blocks::new(signature)?, path, log)?;
        }
    }
    examination.tell(format, path, log, form)
}

/// What was found in the blocks looked at so far. Lines and blocks count from 1
/// where they are shown, as editors do.
struct Examination<'t> {
    trust: &'t Trust,
    /// The leaf that the first block must go on from.
    after: Option<Imprint>,
    /// Whether the first block goes on from another log.
    goes_on: bool,
    /// The leaf that the next log goes on from, if it is certain.
    last_leaf: Option<Imprint>,
    lines: u64,
    blocks: u64,
    /// What the lines are not.
    faults: Vec<(Finding, String)>,
    /// Where a block does not go on from the one before.
    breaks: Vec<String>,
    seals: Seals,
    /// Lines in no block.
    uncovered: u64,
    /// Whether all blocks of the log are there to be compared with each other.
    is_whole: bool,
    facts: Vec<Tree>,
}

#[derive(Default)]
struct Seals {
    signed: u64,
    broken: Option<(String, String)>,
    waiting: Option<String>,
    first: Option<Second>,
    last: Option<Second>,
    /// What the confirmed ones rest on.
    proofs: BTreeSet<&'static str>,
}

impl<'t> Examination<'t> {
    fn new(trust: &'t Trust, after: Option<Imprint>) -> Self {
        Self {
            trust,
            after,
            goes_on: false,
            last_leaf: None,
            lines: 0,
            blocks: 0,
            faults: Vec::new(),
            breaks: Vec::new(),
            seals: Seals::default(),
            uncovered: 0,
            is_whole: true,
            facts: Vec::new(),
        }
    }

    fn tell(self, format: Format, path: &Path, log: &Path, form: Form) -> Outcome {
        let mut judgement = self.judge();
        judgement.details = Map::new()
            .with("file", log.display().to_string())
            .with("signature", path.display().to_string())
            .with("kind", crate::kind::Kind::Log(format).to_string())
            .with("lines", self.lines)
            .maybe("last_leaf", self.last_leaf)
            .list(
                "faults",
                self.faults
                    .iter()
                    .map(|(code, text)| Map::new().with("code", code.as_str()).with("text", text)),
            )
            .with("blocks", Tree::List(self.facts));
        judgement.show(form)
    }

    fn blocks(&mut self, mut blocks: Blocks<'_>, path: &Path, log: &Path) -> Result<(), Failure> {
        let mut lines = LogLines::open(log)?;
        let format = blocks.format();
        let mut before: Option<BlockReport> = None;
        parallel::check(&mut blocks, &mut lines, |(block, report)| {
            let report = report.map_err(|e| malformed(path, e))?;
            self.block(format, &block.get(), &report, before.as_ref())
                .map_err(|e| malformed(path, e))?;
            before = Some(report);
            Ok(())
        })?;
        self.uncovered = lines.skip(u64::MAX)?;
        self.last_leaf = before
            .filter(BlockReport::is_intact)
            .map(|report| report.last_leaf);
        Ok(())
    }

    fn block(
        &mut self,
        format: Format,
        block: &Block<'_>,
        report: &BlockReport,
        before: Option<&BlockReport>,
    ) -> Result<(), DecodeError> {
        self.blocks += 1;
        if self.blocks == 1 {
            self.first_block(block);
        }
        // What follows a block that differs cannot be told from its last leaf.
        let before_was_intact = before.filter(|before| before.is_intact());
        if before_was_intact.is_some_and(|before| !before.is_followed_by(block)) {
            self.breaks.push(format!(
                "block {} does not go on from the one before",
                self.blocks
            ));
        }
        self.lines_of(block, report);
        let (verdict, signed_at) = self.seal_of(format, block)?;
        let verdict = if report.is_intact() {
            verdict
        } else {
            "broken"
        };
        self.facts.push(Tree::Map(
            Map::new()
                .with("block", self.blocks)
                .with("first_line", self.lines + 1)
                .with("lines", block.line_count())
                .maybe("signed_at", signed_at)
                .with("verdict", verdict),
        ));
        self.lines += block.line_count();
        Ok(())
    }

    /// What becomes of the newest block's seal, and when it was made.
    fn seal_of(
        &mut self,
        format: Format,
        block: &Block<'_>,
    ) -> Result<(&'static str, Option<Second>), DecodeError> {
        Ok(match block.seal.seal {
            Seal::Signature(bytes) => {
                let signature = Signature::decode(bytes)?;
                let level = format.signing_level(block.seal.count);
                // A root that differs is told as a fault of the lines.
                let verdict = self.seal(&signature, signature.input(), level);
                (verdict, Some(signature.aggregation_time()))
            }
            Seal::Unsigned { error, .. } => {
                let why = error.map(|error| format!(": {error}")).unwrap_or_default();
                let text = format!("not signed yet{why}");
                (self.seals.wait(self.blocks, text), None)
            }
            Seal::Rfc3161(_) => {
                let text = "sealed by an RFC 3161 token, which is not verified here";
                (self.seals.wait(self.blocks, text.to_owned()), None)
            }
        })
    }

    /// Compares the first block with what came before the log.
    fn first_block(&mut self, block: &Block<'_>) {
        let previous = block.header.previous_leaf;
        self.goes_on = previous.digest().iter().any(|byte| *byte != 0);
        if self.after.is_some_and(|after| after != previous) {
            let text =
                format!("block 1 goes on from {previous}, which is not where the log before ends");
            self.breaks.push(text);
        }
    }

    fn lines_of(&mut self, block: &Block<'_>, report: &BlockReport) {
        let (first, last) = (self.lines + 1, self.lines + block.line_count());
        let named = self.faults.len();
        for fault in &report.faults {
            match *fault {
                Fault::Line { line, .. } => {
                    self.fault(
                        Finding::LineAltered,
                        format!("line {} is not what was signed", first + line),
                    );
                }
                Fault::LineMissing { line } => {
                    let from = first + line;
                    let text = if from == last {
                        format!("line {last} is missing")
                    } else {
                        format!("lines {from} to {last} are missing")
                    };
                    self.fault(Finding::BlockMissing, text);
                }
                _ => {}
            }
        }
        if report.is_intact() || self.faults.len() > named {
            return;
        }
        match report.first_wrong_line() {
            Some(line) => {
                self.fault(
                    Finding::LineAltered,
                    format!("line {} is not what was signed", first + line),
                );
            }
            None if report.faults.contains(&Fault::Root) && !block.has_record_hashes() => {
                self.fault(
                    Finding::LineAltered,
                    format!("some of lines {first} to {last} is not what was signed"),
                );
            }
            None => {
                let text = format!(
                    "the hashes or metarecords of block {} were altered",
                    self.blocks
                );
                self.fault(Finding::SealInvalid, text);
            }
        }
    }

    fn excerpt(&mut self, excerpt: &Excerpt, log: &[u8]) -> Result<(), DecodeError> {
        self.is_whole = false;
        for fault in excerpt.check(Lines::new(log))? {
            match fault {
                RecordFault::Line { line } => {
                    self.fault(
                        Finding::LineAltered,
                        format!("line {} is not what was signed", line + 1),
                    );
                }
                RecordFault::LineMissing { line } => {
                    self.fault(
                        Finding::BlockMissing,
                        format!("line {} is missing", line + 1),
                    );
                }
                RecordFault::LineUnproven { line } => {
                    self.fault(
                        Finding::LineAltered,
                        format!("line {} was added: no proof is of it", line + 1),
                    );
                }
                RecordFault::Root { block, record } => {
                    let text = format!(
                        "proof {} of block {} leads elsewhere",
                        record + 1,
                        block + 1
                    );
                    self.fault(Finding::SealInvalid, text);
                }
                RecordFault::Order { block, record } => {
                    let text = format!(
                        "proof {} of block {} is of a record that does not come after the one before it",
                        record + 1,
                        block + 1
                    );
                    self.fault(Finding::BlockMissing, text);
                }
                RecordFault::Repeated { block } => {
                    let text = format!("block {} is one that was there before", block + 1);
                    self.fault(Finding::BlockMissing, text);
                }
                _ => self.fault(
                    Finding::SealInvalid,
                    "the proof does not fit its lines".into(),
                ),
            }
        }
        let mut before = None;
        for block in &excerpt.blocks {
            self.blocks += 1;
            let signature = Signature::decode(&block.signature)?;
            let signed_at = signature.aggregation_time();
            if before
                .replace(signed_at)
                .is_some_and(|before| before > signed_at)
            {
                let text = format!("block {} was signed before the one before it", self.blocks);
                self.fault(Finding::BlockMissing, text);
            }
            let level = excerpt.signing_level(block);
            let verdict = self.seal(&signature, signature.input(), level);
            self.lines += block
                .records
                .iter()
                .filter(|record| record.metarecord().is_none())
                .count() as u64;
            self.facts.push(Tree::Map(
                Map::new()
                    .with("block", self.blocks)
                    .with("records", block.records.len())
                    .with("signed_at", signature.aggregation_time())
                    .with("verdict", verdict),
            ));
        }
        Ok(())
    }

    /// Judges the signature of the newest block.
    fn seal(&mut self, signature: &Signature, root: Imprint, level: u8) -> &'static str {
        let case = Case {
            signature,
            trust: self.trust,
            document: Some(root),
            level,
        };
        let report = case.examine();
        match report.verdict {
            policy::Verdict::Intact { signed_at } => {
                self.seals.proofs.insert(case.proof(&report));
                self.seals.signed += 1;
                self.seals.first = self.seals.first.or(Some(signed_at));
                self.seals.last = Some(signed_at);
                "intact"
            }
            policy::Verdict::Unconfirmed { reason, .. } => {
                let text = case.missing(&reason);
                self.seals.wait(self.blocks, text)
            }
            policy::Verdict::Broken { code, .. } => {
                let text = format!("block {}: {code} {}", self.blocks, code.meaning());
                self.seals.broken.get_or_insert((code.to_string(), text));
                "broken"
            }
        }
    }

    fn fault(&mut self, code: Finding, text: String) {
        self.faults.push((code, text));
    }

    fn judge(&self) -> Judgement {
        let order = self.is_whole.then(|| self.order_step());
        let mut steps: Vec<_> = [Some(self.lines_step()), order, Some(self.seals_step())]
            .into_iter()
            .flatten()
            .collect();
        if self.uncovered > 0 {
            let text = format!(
                "{} from line {} on in no block: added after signing; if rightly, pitser log sign covers them",
                plural(self.uncovered, "line"),
                self.lines + 1
            );
            steps.push(Step::new("rest", State::Waiting, text));
        }
        let state = |wanted| steps.iter().any(|step| step.state == wanted);
        let (verdict, code, summary) = if state(State::Broken) {
            let code = self.broken_code();
            (
                Verdict::Broken,
                Some(code),
                "the log is not what was signed".to_owned(),
            )
        } else if state(State::Waiting) {
            (
                Verdict::Unconfirmed,
                Some("GEN-02".to_owned()),
                "all checks so far agree".to_owned(),
            )
        } else {
            let proofs: Vec<_> = self.seals.proofs.iter().copied().collect();
            (
                Verdict::Intact,
                None,
                format!("every line is what was signed; {}", proofs.join("; or ")),
            )
        };
        let remarks = self
            .faults
            .iter()
            .skip(1)
            .take(MAX_SHOWN)
            .map(|(code, text)| format!("  {code} {text}\n"));
        let mut remarks: String = remarks.collect();
        if self.faults.len() > MAX_SHOWN + 1 {
            remarks += &format!("  and {} more\n", self.faults.len() - MAX_SHOWN - 1);
        }
        Judgement {
            verdict,
            code,
            summary,
            steps,
            details: Map::new(),
            remarks,
        }
    }

    fn broken_code(&self) -> String {
        let line = self.faults.first().map(|(code, _)| code.to_string());
        let order = (!self.breaks.is_empty()).then(|| Finding::BlockMissing.to_string());
        let seal = self.seals.broken.as_ref().map(|(code, _)| code.clone());
        line.or(order).or(seal).unwrap_or_default()
    }

    fn lines_step(&self) -> Step {
        match self.faults.first() {
            Some((code, text)) => Step::new("lines", State::Broken, format!("{code} {text}")),
            None => {
                let text = format!(
                    "{} in {}",
                    plural(self.lines, "line"),
                    plural(self.blocks, "block")
                );
                Step::new("lines", State::Matches, text)
            }
        }
    }

    fn order_step(&self) -> Step {
        match self.breaks.first() {
            Some(text) => Step::new(
                "order",
                State::Broken,
                format!("{} {text}", Finding::BlockMissing),
            ),
            None => {
                let first = match (self.after, self.goes_on) {
                    (Some(_), _) => ", the first from the log before",
                    (None, true) => "; the first goes on from another log: --after compares it",
                    (None, false) => "",
                };
                let text = format!("each block goes on from the one before{first}");
                Step::new("order", State::Matches, text)
            }
        }
    }

    fn seals_step(&self) -> Step {
        let Seals {
            signed,
            broken,
            waiting,
            first,
            last,
            ..
        } = &self.seals;
        if let Some((_, text)) = broken {
            return Step::new("seals", State::Broken, text);
        }
        if let Some(text) = waiting {
            let text = format!("{signed} of {} confirmed; {text}", self.blocks);
            return Step::new("seals", State::Waiting, text);
        }
        let Some((first, last)) = first.zip(*last) else {
            let text = "nothing is signed here: no block, and so no line, has a signature";
            return Step::new("seals", State::Waiting, text);
        };
        let when = if first == last {
            format!("of {first}")
        } else {
            format!("from {first} to {last}")
        };
        Step::new("seals", State::Matches, format!("{signed}, {when}"))
    }
}

impl Seals {
    fn wait(&mut self, block: u64, text: String) -> &'static str {
        self.waiting
            .get_or_insert_with(|| format!("block {block}: {text}"));
        "unconfirmed"
    }
}

/// Faults that are shown besides the first; JSON and the blocks have the rest.
const MAX_SHOWN: usize = 20;

fn unknown(path: &Path) -> Failure {
    Failure::Input(format!(
        "{}: not a log signature: it starts with none of LOGSIG12, LOGSIG11, LOG12BLK, RECSIG12, RECSIG11",
        path.display()
    ))
}
