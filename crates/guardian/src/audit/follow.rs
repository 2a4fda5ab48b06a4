//! An auditor goes on with a trail: from the head that he has signed to the one
//! that is there now.

use super::folder::Judged;
use super::sampling::{Lines, Sampled, Sampling};
use super::{AuditError, Auditor, Known, Signed, contradiction, cosigned, named_key, sign};
use pitser_evidence::Anchors;
use pitser_evidence::anchors::trusted;
use pitser_evidence::audit::Statement;
use pitser_evidence::block::LogLeaf;
use pitser_evidence::codec::Digest;
use pitser_evidence::finding::Code;
use pitser_evidence::sample::first_mapping;
use pitser_evidence::seal::{self, Seal, SealKeys};
use pitser_ksi::time::Second;
use pitser_tlog::checkpoint::Checkpoint;
use pitser_tlog::note::Note;
use pitser_trail::disk::{At, DiskError};
use pitser_trail::map::{DiskPages, OsFolder};
use pitser_trail::{Layout, ReadError, View, Watch, forget, read, replay};
use std::fmt;
use std::io::{self, Read as _};

/// A head with the lines of many witnesses is shorter: those of ML-DSA have 3,300 bytes.
pub(super) const HEAD_MAX: u64 = 256 << 10;

/// What is missing before anything can be signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doubt {
    /// The anchors do not have the trail of this name.
    UnknownTrail(String),
    /// The anchors have no quorum of witnesses.
    NoQuorum,
    /// There is no head yet, or it covers no block.
    NoHead,
    /// The head cannot be read: it may be half copied.
    Unreadable(String),
    /// Too few witnesses have cosigned the head.
    TooFew {
        /// So many have.
        found: usize,
        /// So many must.
        required: usize,
    },
    /// Of a sample of rows, the site has refused more than it may.
    Refused {
        /// What came of the sample.
        sampled: Box<Sampled>,
        /// So many of a hundred rows may be refused.
        at_most: u8,
    },
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownTrail(origin) => write!(
                f,
                "your anchors do not know the trail {origin}: learn the hash of its genesis line from its register, and put both there"
            ),
            Self::NoQuorum => f.write_str(
                "your anchors have no witness_quorum: without witnesses nobody knows whether the head is everybody's",
            ),
            Self::NoHead => f.write_str(
                "the trail has no cosigned head yet: wait a few seconds, or ask its operator about its witnesses",
            ),
            Self::Unreadable(why) => write!(
                f,
                "the trail's head.note is no head ({why}): was it copied to its end?"
            ),
            Self::TooFew { found, required } => write!(
                f,
                "{found} of {required} required witnesses cosigned the head: wait, or ask the operator about the others"
            ),
            Self::Refused { sampled, at_most } => write!(
                f,
                "{} of {} rows that were drawn are not opened, and at most {at_most} of a hundred may be: ask the operator \
                 why, and how many rows a day he opens. Until a sample is opened, nothing shows that lines are about \
                 their rows",
                sampled.refused.len(),
                sampled.asked.len()
            ),
        }
    }
}

/// How the seals stand that a replay met.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SealCounts {
    /// Under a publication of the anchors.
    pub published: u64,
    /// Under the authority's key, which the anchors lead to.
    pub keyed: u64,
    /// Consistent; what would confirm them is not in the anchors.
    pub unconfirmed: u64,
    /// Blocks without a seal yet.
    pub waiting: u64,
}

/// What came of an examination.
#[derive(Debug)]
pub struct Audited {
    /// The statement about the head that is there now.
    pub signed: Signed,
    /// Whether it was signed now; otherwise the trail has not gone on.
    pub is_new: bool,
    /// Lines of the trail up to that head.
    pub lines: u64,
    /// Blocks that were replayed now.
    pub replayed: u64,
    /// The seals that were judged now: theirs, and those that came late for blocks that
    /// were replayed before.
    pub seals: SealCounts,
    /// What came of a sample of rows, if one was due.
    pub sampled: Option<Sampled>,
    /// Blocks, of those that were replayed now, that were closed under another mapping from
    /// tables to patients than the one before them, or, of the first, than the genesis has.
    pub mappings: Places,
    /// Lines, of those that were replayed now, that say that capture was interrupted or
    /// weakened. They are about everybody, and in nobody's list.
    pub holes: Places,
    /// The last statement about another trail of the same name, if there is one.
    pub namesake: Option<Statement>,
}

/// Blocks or lines of a trail, by their numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// How many they are.
    pub count: u64,
    /// The first of them, [`Self::TOLD`] at most.
    pub first: Vec<u64>,
}

impl Places {
    /// So many are named.
    pub const TOLD: usize = 16;

    fn note(&mut self, number: u64) {
        self.count += 1;
        if self.first.len() < Self::TOLD {
            self.first.push(number);
        }
    }
}

/// What the trail is judged by, and how.
#[derive(Clone, Copy)]
pub struct Judge<'a> {
    /// What the auditor trusts.
    pub anchors: &'a Anchors,
    /// A publications file, to confirm seals by; it is believed if the anchors say so.
    pub publications: Option<&'a [u8]>,
    /// Whether to replay from the genesis on, whatever was replayed before.
    pub anew: bool,
    /// The auditor's clock.
    pub clock: &'a dyn Fn() -> Second,
}

impl fmt::Debug for Judge<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Judge")
            .field("anew", &self.anew)
            .finish_non_exhaustive()
    }
}

impl Auditor {
    /// Replays the trail in `layout` up to the cosigned head that is there, and signs
    /// its log and map. A head that was signed already is not signed again.
    ///
    /// Nothing is written to the trail's folder, and none of its secrets is read.
    /// `progress` is told the number of lines read, now and then.
    ///
    /// # Errors
    /// [`AuditError`]: nothing is signed. What [`AuditError::code`] names is shown by a
    /// replay from the genesis on, unless it is about heads alone.
    pub fn follow(
        &mut self,
        layout: &Layout,
        judge: Judge<'_>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Audited, AuditError> {
        self.follow_asking(layout, judge, None, progress)
    }

    /// The same, and has a sample of rows opened before anything is signed.
    pub(super) fn follow_asking(
        &mut self,
        layout: &Layout,
        judge: Judge<'_>,
        sampling: Option<Sampling<'_>>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Audited, AuditError> {
        // The head first: what is written meanwhile only makes the trail longer.
        let note = read_head(layout)?;
        let numbers = layout.segment_numbers().unwrap_or_default();
        if numbers.first().is_some_and(|first| *first != 0) {
            let text = "its first segment is missing";
            return Err(contradiction(Code::BlockMissing, text));
        }
        let (line, hash) = read::genesis(layout)?;
        let genesis = line.genesis.as_deref();
        let origin = genesis.map_or("", |genesis| &genesis.origin);
        let mut known = Known {
            origin: origin.to_owned(),
            genesis: hash,
            witnesses: Vec::new(),
            quorum: judge.anchors.witness_quorum as usize,
        };
        is_anchored(judge.anchors, &known)?;
        let note = note.ok_or(AuditError::Waiting(Doubt::NoHead))?;
        known.witnesses = trusted(&judge.anchors.witnesses, &note);
        let log_key = named_key(genesis.map(|genesis| genesis.log_key.as_str()), &known)?;
        let head = cosigned(&note, &log_key, &known)?;
        let layout = layout.clone().with_map(self.map(&hash));
        let subject = Subject {
            layout: &layout,
            judge,
            known: &known,
            head: &head,
            note: &note,
        };
        let audited = self.examine(subject, sampling, progress);
        if let Err(error) = &audited
            && error.code().is_some()
            && let Err(failed) = self.keep_refused(&hash, &note)
        {
            tracing::warn!(error = %failed, "the head that was refused could not be kept");
        }
        audited
    }

    fn examine(
        &mut self,
        subject: Subject<'_>,
        sampling: Option<Sampling<'_>>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Audited, AuditError> {
        let Subject {
            layout,
            judge,
            known,
            head,
            note,
        } = subject;
        let before = self.newest(&known.genesis)?.cloned();
        let namesake = self.namesake(&known.origin, &known.genesis)?;
        if let Some(before) = &before {
            goes_on(before, head)?;
        }
        if judge.anew {
            forget(layout)?;
        }
        let judged = match judge.anew {
            true => Judged::default(),
            false => self.judged(&known.genesis),
        };
        let mut counting = Counting::new(judge, judged, progress);
        let mut outcome = attempt(layout, known, head, before.as_ref(), &mut counting);
        // What was kept may be what is wrong: nobody is accused because of it.
        if !judge.anew && outcome.as_ref().is_err_and(is_doubtful) {
            if let Err(error) = &outcome {
                tracing::warn!(%error, "the trail is not what was replayed before: it is replayed from its genesis on");
            }
            forget(layout)?;
            counting = Counting::new(judge, Judged::default(), progress);
            outcome = attempt(layout, known, head, before.as_ref(), &mut counting);
        }
        let attempted = outcome?;
        let waiting = &attempted.view.seals.waiting;
        let seals = SealCounts {
            waiting: waiting.len() as u64,
            ..counting.seals
        };
        self.note_judged(&known.genesis, counting.reached)?;
        self.no_wrong_row(known)?;
        let sampled = match sampling {
            Some(sampling) => self.sample(layout, &attempted.view, known, head, sampling)?,
            None => None,
        };
        let (signed, is_new) = match before.filter(|b| b.statement.size == head.size()) {
            Some(before) => (before, false),
            None => {
                let signed = Signed {
                    note: sign(&attempted.statement, &self.key)?.to_string(),
                    statement: attempted.statement,
                    head: note.to_string(),
                };
                self.remember(&signed)?;
                (signed, true)
            }
        };
        Ok(Audited {
            signed,
            is_new,
            lines: attempted.view.state.next_seq(),
            replayed: head.size() - attempted.known,
            seals,
            sampled,
            mappings: attempted.mappings,
            holes: counting.holes,
            namesake,
        })
    }
}

/// What is examined.
#[derive(Clone, Copy)]
struct Subject<'a> {
    layout: &'a Layout,
    judge: Judge<'a>,
    known: &'a Known,
    head: &'a Checkpoint,
    note: &'a Note,
}

/// Whether the anchors have the trail that begins as this one does.
pub(super) fn is_anchored(anchors: &Anchors, known: &Known) -> Result<(), AuditError> {
    let mut named = anchors.trails.iter().filter(|t| t.origin == known.origin);
    if named.clone().next().is_none() {
        let doubt = Doubt::UnknownTrail(known.origin.clone());
        return Err(AuditError::Waiting(doubt));
    }
    match named.any(|trail| trail.genesis == known.genesis) {
        true => Ok(()),
        false => {
            let text = format!(
                "this trail of that name begins with {}, the one in your anchors does not",
                known.genesis
            );
            Err(contradiction(Code::TrailForked, text))
        }
    }
}

/// Whether `head` can come after, or be, what was signed, as far as it shows by itself.
fn goes_on(before: &Signed, head: &Checkpoint) -> Result<(), AuditError> {
    let signed = &before.statement;
    if head.size() < signed.size {
        let text = format!(
            "its newest head covers {} blocks; a statement of {} covers {}",
            head.size(),
            signed.made_at,
            signed.size
        );
        return Err(contradiction(Code::TrailShort, text));
    }
    if head.size() == signed.size && *head.root() != signed.log_root {
        return Err(forked(signed.size));
    }
    Ok(())
}

fn forked(size: u64) -> AuditError {
    let text = format!("its first {size} blocks are not those that a statement was signed about");
    contradiction(Code::TrailForked, text)
}

struct Attempted {
    statement: Statement,
    known: u64,
    view: View<DiskPages<OsFolder>>,
    mappings: Places,
}

fn attempt(
    layout: &Layout,
    known: &Known,
    head: &Checkpoint,
    before: Option<&Signed>,
    counting: &mut Counting<'_>,
) -> Result<Attempted, AuditError> {
    let replayed = replay(layout, head.size(), counting)?;
    let view = &replayed.view;
    super::log_key(view, known)?;
    let statement = super::statement(view, head, known, (counting.clock)())?;
    if let Some(Signed { statement: old, .. }) = before {
        let map = view.index.block(old.block, &known.origin);
        let map = map.map_err(ReadError::from)?.map(|entry| entry.leaf.map);
        let root = view.log().root_at(old.size).map_err(ReadError::from)?;
        if root != Some(old.log_root) || map != Some(old.map_root) {
            return Err(forked(old.size));
        }
    }
    let mappings = mapping_changes(layout, view, replayed.known, known, counting)?;
    Ok(Attempted {
        statement,
        known: replayed.known,
        view: replayed.view,
        mappings,
    })
}

/// Where the mapping changed since the `replayed` blocks that were known before.
fn mapping_changes(
    layout: &Layout,
    view: &View<DiskPages<OsFolder>>,
    replayed: u64,
    known: &Known,
    counting: &mut Counting<'_>,
) -> Result<Places, AuditError> {
    let mut changes = std::mem::take(&mut counting.mappings);
    let Some((block, first)) = counting.first_mapping else {
        return Ok(changes);
    };
    let lines = Lines {
        layout,
        view,
        known,
    };
    let before = match replayed.checked_sub(1) {
        Some(last) => lines.mapping_of(last)?,
        None => view.state.genesis().map(|genesis| first_mapping(genesis)),
    };
    if before != Some(first) {
        changes.count += 1;
        changes.first.insert(0, block);
        changes.first.truncate(Places::TOLD);
    }
    Ok(changes)
}

/// Whether an error may come of what was kept from earlier replays.
fn is_doubtful(error: &AuditError) -> bool {
    error.code().is_some() || matches!(error, AuditError::Trail(ReadError::Map(_)))
}

/// The newest head in a trail's folder.
fn read_head(layout: &Layout) -> Result<Option<Note>, AuditError> {
    let path = layout.head();
    let file = match std::fs::File::open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.at(&path, "cannot open")?,
    };
    let mut bytes = Vec::new();
    let read: Result<_, DiskError> = file
        .take(HEAD_MAX)
        .read_to_end(&mut bytes)
        .at(&path, "cannot read");
    read?;
    let unreadable = |e: pitser_tlog::error::DecodeError| Doubt::Unreadable(e.to_string());
    let note = Note::parse(&bytes).map_err(|e| AuditError::Waiting(unreadable(e)))?;
    Ok(Some(note))
}

/// Judges seals by the anchors and counts them.
struct Counting<'a> {
    keys: SealKeys,
    clock: &'a dyn Fn() -> Second,
    /// What was judged in earlier looks.
    judged: Judged,
    /// What is judged now, up to the first block that waits for its seal.
    reached: Judged,
    seals: SealCounts,
    /// The first block that was replayed, and the mapping that it was closed under.
    first_mapping: Option<(u64, Digest)>,
    last_mapping: Option<Digest>,
    mappings: Places,
    holes: Places,
    progress: &'a mut dyn FnMut(u64),
}

impl<'a> Counting<'a> {
    fn new(judge: Judge<'a>, judged: Judged, progress: &'a mut dyn FnMut(u64)) -> Self {
        Self {
            keys: SealKeys::new(Some(judge.anchors), judge.publications, (judge.clock)()),
            clock: judge.clock,
            judged,
            reached: judged,
            seals: SealCounts::default(),
            first_mapping: None,
            last_mapping: None,
            mappings: Places::default(),
            holes: Places::default(),
            progress,
        }
    }
}

impl Watch for Counting<'_> {
    fn lines(&mut self, lines: u64) {
        (self.progress)(lines);
    }

    fn judged(&self) -> u64 {
        self.judged.blocks
    }

    fn judged_at(&self) -> Option<Second> {
        Some(self.judged.at)
    }

    fn mapping(&mut self, block: u64, mapping: Digest) {
        self.first_mapping.get_or_insert((block, mapping));
        let before = self.last_mapping.replace(mapping);
        if before.is_some_and(|before| before != mapping) {
            self.mappings.note(block);
        }
    }

    fn hole(&mut self, seq: u64) {
        self.holes.note(seq);
    }

    fn seal(&mut self, leaf: &LogLeaf, bytes: &[u8]) -> Result<(), String> {
        match seal::check(bytes, leaf.root.0, leaf.level, &self.keys) {
            Seal::Published { .. } => self.seals.published += 1,
            Seal::Keyed { .. } => self.seals.keyed += 1,
            Seal::Waiting(_) => self.seals.unconfirmed += 1,
            Seal::Broken(text) => return Err(text),
        }
        if leaf.block == self.reached.blocks {
            self.reached.blocks += 1;
            self.reached.at = seal::time(bytes).unwrap_or(self.reached.at);
        }
        Ok(())
    }
}
