//! The auditor's side of a sample: draws lines that nobody could foresee, has their rows
//! opened, and compares (docs/spec/34-audit.md §7).

use std::cell::RefCell;
use std::fmt;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;

use pitser_evidence::block::LogLeaf;
use pitser_evidence::codec::{Blob, Bytes32, Digest};
use pitser_evidence::commit::Key;
use pitser_evidence::finding::Code;
use pitser_evidence::line::{Genesis, Line, Op};
use pitser_evidence::sample::{self, Compared, Drawn, Live, OpenedRow, Shown, ShownRow, Wrong};
use pitser_evidence::store::Pages;
use pitser_evidence::vrf::SecretKey;
use pitser_ksi::time::Second;
use pitser_tlog::checkpoint::Checkpoint;
use pitser_tlog::note::SigningKey;
use pitser_trail::disk::{self, AppendFile, At};
use pitser_trail::map::MapError;
use pitser_trail::{Layout, ReadError, View};
use serde::{Deserialize, Serialize};

use super::follow::Doubt;
use super::remote::{RemoteError, Site};
use super::{AuditError, Auditor, Known, contradiction};

/// Lines that are drawn for each row that is wanted, at most: others are about no row.
const DRAWS: usize = 256;

/// Seconds after which a sample of which too much was refused is followed by another.
const REFUSED_S: u64 = 600;

/// How rows are sampled.
#[derive(Clone, Copy)]
pub struct Sampling<'a> {
    /// Rows of a sample, at most [`sample::MAX_ROWS`].
    pub rows: usize,
    /// Seconds between two samples.
    pub every_s: u64,
    /// Of a hundred rows, so many may be refused; with more, nothing is signed.
    pub refusals_at_most: u8,
    /// The auditor's clock.
    pub clock: &'a dyn Fn() -> Second,
    /// Who opens rows.
    pub(super) site: &'a Site,
}

impl fmt::Debug for Sampling<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sampling({} rows)", self.rows)
    }
}

/// What came of a sample. It names no record and no person: those are in the lines.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampled {
    /// By the auditor's clock.
    pub at: u64,
    /// Blocks under the head that it was drawn at, and the root of their log.
    pub size: u64,
    /// That root.
    pub log_root: Option<Bytes32>,
    /// Lines under that head.
    pub lines: u64,
    /// Shows that the output is that of the sampling key for this head.
    pub proof: Option<Blob>,
    /// The rows that were asked for, by their lines.
    pub asked: Vec<u64>,
    /// Of these, opened, with key and patient as in their lines.
    pub agreed: u64,
    /// Opened in part, and what was not shown.
    pub partly: Vec<(u64, String)>,
    /// Not opened: the patient was erased, by a line that is there.
    pub erased: u64,
    /// Not opened, or nothing of it that says whose row it is, and why.
    pub refused: Vec<(u64, String)>,
    /// Lines about something else than their rows.
    pub wrong: Vec<(u64, String)>,
    /// Newest lines of their records whose live rows are as they were sealed, by the
    /// guardian's word.
    pub live: u64,
    /// Those whose live rows are not, and what the guardian found.
    pub live_wrong: Vec<(u64, String)>,
}

impl Sampled {
    /// Whether more was refused than `at_most` of a hundred rows.
    fn is_refused(&self, at_most: u8) -> bool {
        self.refused.len() * 100 > self.asked.len() * usize::from(at_most)
    }
}

/// What came of the samples before.
#[derive(Default)]
struct Before {
    /// The last one.
    last: Option<Sampled>,
    /// Lines under the head of the last one of which not too much was refused: those that
    /// follow are new.
    lines: u64,
}

/// What a wrong row is shown by.
#[derive(Serialize)]
struct Evidence<'a> {
    code: Code,
    text: &'a str,
    line: &'a Line,
    shown: &'a OpenedRow,
}

impl Auditor {
    /// The public key that shows that samples were not chosen.
    pub fn sampling_key(&self) -> String {
        data_encoding::BASE64.encode(&sampling_key(&self.key).public().0)
    }

    /// Has a sample of rows opened, if one is due. A site that refuses too many rows is
    /// signed for again once it has opened a later sample.
    pub(super) fn sample<P: Pages<Error: Into<MapError>>>(
        &mut self,
        layout: &Layout,
        view: &View<P>,
        known: &Known,
        head: &Checkpoint,
        sampling: Sampling<'_>,
    ) -> Result<Option<Sampled>, AuditError> {
        if sampling.rows == 0 {
            return Ok(None);
        }
        let now = (sampling.clock)();
        let at_most = sampling.refusals_at_most;
        let refused = |sampled: Sampled| {
            let sampled = Box::new(sampled);
            AuditError::Waiting(Doubt::Refused { sampled, at_most })
        };
        let Before { last, lines: new } = self.samples_before(&known.genesis, at_most)?;
        if let Some(last) = last {
            let is_refused = last.is_refused(at_most);
            // Who was busy is asked again sooner, and for the same rows if the head is the same.
            let every_s = match is_refused || last.asked.len() == last.refused.len() {
                true => sampling.every_s.min(REFUSED_S),
                false => sampling.every_s,
            };
            let has_more = is_refused || last.size < head.size();
            if !has_more || now.0.saturating_sub(last.at) < every_s {
                return match is_refused {
                    true => Err(refused(last)),
                    false => Ok(None),
                };
            }
        }
        let Some(genesis) = view.state.genesis().cloned() else {
            return Ok(None);
        };
        let drawn = Drawn {
            origin: known.origin.clone(),
            genesis: known.genesis,
            size: head.size(),
            log_root: *head.root(),
        };
        let (output, proof) = sampling_key(&self.key).prove(&drawn.alpha());
        let lines = Lines {
            layout,
            view,
            known,
        };
        let end = view.state.next_seq();
        let asked = lines.draw(&output, new, end, sampling.rows)?;
        if asked.is_empty() {
            return Ok(None);
        }
        let mut sampled = Sampled {
            at: now.0,
            size: head.size(),
            log_root: Some(Bytes32(*head.root())),
            lines: end,
            proof: Some(Blob(proof.to_vec())),
            asked: asked.iter().map(|line| line.seq).collect(),
            ..Sampled::default()
        };
        let shown = sampling.site.rows(&self.key, &sampled.asked);
        let wrong = compare(&mut sampled, &asked, shown, &lines, &genesis)?;
        if let Some((line, text, code, shown)) = wrong {
            let evidence = Evidence {
                code,
                text: &text,
                line: &line,
                shown: &shown,
            };
            let json = serde_json::to_vec_pretty(&evidence).expect("texts and numbers");
            // Before the sample counts as done: without it the next look would sign. If it
            // cannot be kept, what was found is told all the same.
            let text = format!("line {}: {text}", line.seq);
            if let Err(error) = disk::replace(&self.wrong(&known.genesis), &json) {
                let text = format!("a row was opened, and {text}. It could not be kept: {error}");
                return Err(contradiction(code, text));
            }
            self.note_sampled(&known.genesis, &sampled)?;
            return Err(self.accuse(known, code, &text));
        }
        self.note_sampled(&known.genesis, &sampled)?;
        match sampled.is_refused(at_most) {
            true => Err(refused(sampled)),
            false => Ok(Some(sampled)),
        }
    }

    fn wrong(&self, genesis: &Digest) -> PathBuf {
        self.trail(genesis).join("wrong.json")
    }

    fn note_sampled(&self, genesis: &Digest, sampled: &Sampled) -> Result<(), AuditError> {
        let mut record = serde_json::to_vec(sampled).expect("texts, numbers and lists of them");
        record.push(b'\n');
        let path = self.trail(genesis).join("samples");
        Ok(AppendFile::open(&path, b"")?.append(&record)?)
    }

    fn accuse(&self, known: &Known, code: Code, text: &str) -> AuditError {
        let path = self.wrong(&known.genesis);
        let text = format!(
            "a row was opened, and {text}. {} has the line and what was shown of its row",
            path.display()
        );
        contradiction(code, text)
    }

    /// A line that is not about its row stays so: nothing is signed until somebody has
    /// looked at it.
    pub(super) fn no_wrong_row(&self, known: &Known) -> Result<(), AuditError> {
        #[derive(Deserialize)]
        struct Known {
            code: Code,
            text: String,
            line: Line,
        }
        let path = self.wrong(&known.genesis);
        if !path.exists() {
            return Ok(());
        }
        let bytes = fs::read(&path).at(&path, "cannot read")?;
        let found: Known = serde_json::from_slice(&bytes).map_err(|e| AuditError::Folder {
            path,
            what: format!("it is not what was kept there: {e}"),
        })?;
        let text = format!("line {}: {}", found.line.seq, found.text);
        Err(self.accuse(known, found.code, &text))
    }

    fn samples_before(&self, genesis: &Digest, at_most: u8) -> Result<Before, AuditError> {
        let path = self.trail(genesis).join("samples");
        let mut before = Before::default();
        if !path.exists() {
            return Ok(before);
        }
        let file = fs::File::open(&path).at(&path, "cannot open")?;
        for line in BufReader::new(file).lines() {
            let line = line.at(&path, "cannot read")?;
            // What a crash left of a line was never looked at.
            let Ok(sampled) = serde_json::from_str::<Sampled>(&line) else {
                continue;
            };
            if !sampled.is_refused(at_most) {
                before.lines = sampled.lines;
            }
            before.last = Some(sampled);
        }
        Ok(before)
    }
}

/// Derived from the auditor's key, for samples alone.
fn sampling_key(key: &SigningKey) -> SecretKey {
    let secret = Digest::of(&[key.expose().as_bytes()]);
    let secret = Key::new(secret.0.digest().try_into().expect("SHA-256 has 32 bytes"));
    let seed = zeroize::Zeroizing::new(secret.derive(&[b"pitser/v1/audit-sampling-key\0"]));
    SecretKey::from_seed(&seed)
}

/// The lines of a replayed trail.
pub(super) struct Lines<'a, P> {
    pub(super) layout: &'a Layout,
    pub(super) view: &'a View<P>,
    pub(super) known: &'a Known,
}

impl<P: Pages<Error: Into<MapError>>> Lines<'_, P> {
    /// The last line about a record.
    fn last(&self, table: &str, key: &Bytes32) -> Result<Option<u64>, AuditError> {
        let leaf = self.view.state.record_leaf(table, key);
        let leaf = leaf.map_err(|error| ReadError::from(error.into()))?;
        Ok(leaf.map(|leaf| leaf.last_seq))
    }
}

impl<P> Lines<'_, P> {
    fn line(&self, seq: u64) -> Result<Option<Line>, AuditError> {
        let bytes = self.view.index.line(self.layout, seq);
        let bytes = bytes.map_err(ReadError::from)?;
        Ok(bytes.and_then(|bytes| Line::decode(&bytes).ok()))
    }

    /// The lines of a sample, half of them from those that are new since the last one.
    fn draw(
        &self,
        output: &[u8; 32],
        new: u64,
        end: u64,
        rows: usize,
    ) -> Result<Vec<Line>, AuditError> {
        let rows = rows.min(sample::MAX_ROWS);
        let mut drawn: Vec<Line> = Vec::new();
        for (number, range, most) in [(0, new..end, rows.div_ceil(2)), (1, 0..end, rows)] {
            for seq in sample::draws(output, number, range).take(DRAWS * rows) {
                if drawn.len() >= most {
                    break;
                }
                if let Some(line) = self.line(seq)?.filter(|line| line.row.is_some())
                    && !drawn.iter().any(|other| other.seq == seq)
                {
                    drawn.push(line);
                }
            }
        }
        Ok(drawn)
    }

    /// The hash of the mapping that a line's block was closed under.
    fn mapping(&self, seq: u64) -> Result<Option<Digest>, AuditError> {
        let block = self.view.index.block_of(seq, &self.known.origin);
        let Some(block) = block.map_err(ReadError::from)? else {
            return Ok(None);
        };
        self.mapping_under(&block.leaf)
    }

    /// The same of a block, by its number.
    pub(super) fn mapping_of(&self, block: u64) -> Result<Option<Digest>, AuditError> {
        let block = self.view.index.block(block, &self.known.origin);
        match block.map_err(ReadError::from)? {
            Some(block) => self.mapping_under(&block.leaf),
            None => Ok(None),
        }
    }

    fn mapping_under(&self, block: &LogLeaf) -> Result<Option<Digest>, AuditError> {
        let last = self.line(block.first_seq + block.count - 1)?;
        Ok(last.and_then(|line| Some(line.checkpoint?.mapping)))
    }
}

/// What could be looked up; why it could not is kept.
fn answer<T>(
    failed: &RefCell<Option<AuditError>>,
    found: Result<Option<T>, AuditError>,
) -> Option<T> {
    found.unwrap_or_else(|error| {
        failed.replace(Some(error));
        None
    })
}

type WrongRow = (Line, String, Code, Box<OpenedRow>);

/// Compares what was shown with the lines, into `sampled`; the first row that is wrong.
fn compare<P: Pages<Error: Into<MapError>>>(
    sampled: &mut Sampled,
    asked: &[Line],
    shown: Result<Shown, RemoteError>,
    lines: &Lines<'_, P>,
    genesis: &Genesis,
) -> Result<Option<WrongRow>, AuditError> {
    let shown = match shown {
        Ok(shown) => shown.rows,
        Err(error) => {
            let why = error.to_string();
            let rows = asked.iter().map(|line| (line.seq, why.clone()));
            sampled.refused.extend(rows);
            return Ok(None);
        }
    };
    let mut first = None;
    // Under this one a site opens what leads to the patient.
    let newest = lines.mapping(sampled.lines.saturating_sub(1))?;
    for (line, shown) in asked.iter().zip(shown) {
        let seq = line.seq;
        match shown {
            ShownRow::Refused { why } => {
                let why = why.chars().filter(|c| !c.is_control()).take(200);
                sampled.refused.push((seq, why.collect()));
            }
            ShownRow::Erased { line: erasing } => {
                let erasing_line = match erasing < sampled.lines && erasing > seq {
                    true => lines.line(erasing)?,
                    false => None,
                };
                let is_so =
                    erasing_line.is_some_and(|e| e.op == Op::Erase && e.patient == line.patient);
                match is_so {
                    true => sampled.erased += 1,
                    false => sampled.refused.push((
                        seq,
                        format!("it is said to be erased by line {erasing}, which does not say so"),
                    )),
                }
            }
            ShownRow::Opened(opened) => {
                let failed = RefCell::new(None);
                let mut at = |seq| answer(&failed, lines.line(seq));
                let mut last = |table: &str, key: &Bytes32| answer(&failed, lines.last(table, key));
                let mapping = lines.mapping(seq)?;
                let mut trail = sample::Trail {
                    genesis,
                    mapping,
                    lines: sampled.lines,
                    line: &mut at,
                    last: &mut last,
                };
                let compared = sample::compare(line, &opened, &mut trail);
                if let Some(error) = failed.into_inner() {
                    return Err(error);
                }
                match compared {
                    Ok(Compared { kept, .. }) if kept.is_empty() => sampled.agreed += 1,
                    Ok(Compared { kept, is_shut }) => {
                        let list = match is_shut && mapping == newest {
                            true => &mut sampled.refused,
                            false => &mut sampled.partly,
                        };
                        list.push((seq, kept.join("; ")));
                    }
                    Err(wrong) => {
                        sampled.wrong.push((seq, wrong.to_string()));
                        let code = match wrong {
                            Wrong::Opening(_) => Code::OpeningInvalid,
                            Wrong::Other(_) => Code::SubjectMismatch,
                        };
                        let row = (line.clone(), wrong.to_string(), code, opened);
                        first.get_or_insert(row);
                        continue;
                    }
                }
                if let Some(live) = &opened.live {
                    note_live(sampled, seq, live);
                }
            }
        }
    }
    Ok(first)
}

/// What the guardian says of the live row, which nothing shows.
fn note_live(sampled: &mut Sampled, seq: u64, live: &Live) {
    if live.compared_at.is_none() || !live.is_newest {
        return;
    }
    match live.wrong.is_empty() {
        true => sampled.live += 1,
        false => {
            let codes: Vec<String> = live.wrong.iter().take(8).cloned().collect();
            sampled.live_wrong.push((seq, codes.join(", ")));
        }
    }
}
