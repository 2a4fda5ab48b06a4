//! The single writer of a trail.

use crate::disk::{self, AppendFile, DiskError};
use crate::draft::{Body, Draft, DraftActor, PatientId};
use crate::keys::{KeyError, Keys, random};
use crate::layout::Layout;
use crate::read::{self, Place, ReadError, View, part_magics};
use crate::vault::{Compartment, Content, Marks, Vault, VaultError, mark};
use pitser_evidence::block::LogLeaf;
use pitser_evidence::codec::{Bytes32, Digest};
use pitser_evidence::commit::{
    Key, LineNonce, commit_person, commit_raw, commit_row, commit_table_key, record_key,
};
use pitser_evidence::line::{
    Actor, Checkpoint, Erasure, Genesis, Line, MAX_LINE, Op, Patient, SealRef, TableGenesis,
    Timestamp,
};
use pitser_evidence::state::{State, StateError};
use pitser_ksi::hash::{Algorithm, Imprint};
use pitser_ksi::logsig::{self, BLOCK_CLOSE_REASON, BlockBuilder, StoredHashes};
use pitser_tlog::checkpoint::Checkpoint as Head;
use pitser_tlog::merkle::{LogTree, leaf_hash};
use pitser_tlog::note::Note;
use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;

/// Lines in a block before it must be closed: 2^15 - 1 lines and the close
/// metarecord make a tree that is signed at level 16.
pub const MAX_BLOCK_LINES: usize = (1 << 15) - 2;

/// The compartment of the people who decided erasures.
const ERASURES: &str = "*erasures";

/// What fixes a new trail.
#[derive(Debug, Clone)]
pub struct GenesisDraft {
    /// When.
    pub at: Timestamp,
    /// The database's identity.
    pub system: String,
    /// Its timeline.
    pub timeline: u32,
    /// Its position.
    pub pos: String,
    /// The configured name of the source.
    pub source: String,
    /// Guarded tables; their key commitments are filled in here.
    pub tables: Vec<TableDraft>,
    /// What is not covered.
    pub uncovered: Vec<String>,
}

/// A guarded table of a new trail.
#[derive(Debug, Clone)]
pub struct TableDraft {
    /// Name.
    pub name: String,
    /// Columns in the table's order.
    pub columns: Vec<String>,
    /// Columns of the primary key.
    pub key: Vec<String>,
    /// How a row's patient is found, or `none`.
    pub patient: String,
}

/// A closed block: what is to be sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockSummary {
    /// Block number.
    pub block: u64,
    /// `seq` of its first line.
    pub first_seq: u64,
    /// Number of lines.
    pub count: u64,
    /// Root to be signed.
    pub root: Imprint,
    /// Level at which it is signed.
    pub level: u8,
}

/// What opening a trail found and mended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Bytes of an unfinished line, block or seal that were cut off.
    pub cut_bytes: u64,
    /// Lines of an unfinished event that were cut off.
    pub cut_event: bool,
    /// A block whose lines were there, but whose signature block was not.
    pub rebuilt_block: bool,
    /// A patient whose line of erasure was there, and whose key was too.
    pub finished_erasure: bool,
}

/// Why the trail cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TrailError {
    /// A file cannot be written or read.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The vault cannot be written or read.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// Keys cannot be had.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The trail on disk cannot be read to its end.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A line does not follow from those before it.
    #[error(transparent)]
    State(#[from] StateError),
    /// A line breaks a rule of the format.
    #[error("a line cannot be written: {0}")]
    Line(#[from] pitser_evidence::codec::CodecError),
    /// Another process writes this trail.
    #[error("{}: another pitser writes this trail. Stop it first", .0.display())]
    Locked(std::path::PathBuf),
    /// A trail is already there.
    #[error("{}: there is a trail here already; its genesis stays as it is", .0.display())]
    Exists(std::path::PathBuf),
    /// An earlier write failed: the trail must be opened again.
    #[error("an earlier write to the trail failed; it has to be opened again")]
    Poisoned,
    /// A seal for a block that is not the next to be sealed.
    #[error("seal of block {got}, while block {expected} waits for one")]
    SealOrder {
        /// The block that waits.
        expected: u64,
        /// The block that the seal is for.
        got: u64,
    },
    /// A block's signature would not fit its format.
    #[error("block {0} cannot be written as a log signature")]
    Block(u64),
}

impl TrailError {
    /// True if the disk is full: worth trying again later.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Disk(e) | Self::Read(ReadError::Disk(e)) => e.is_full(),
            Self::Vault(e) => e.is_full(),
            _ => false,
        }
    }
}

/// An open trail. After an error it is poisoned: drop it and open it again,
/// which recovers whatever is durable.
#[derive(Debug)]
pub struct Trail {
    layout: Layout,
    keys: Keys,
    vault: Vault,
    state: State,
    genesis_hash: Digest,
    log: LogTree,
    /// Held until the trail is dropped.
    _lock: File,
    files: SegmentFiles,
    segment_bytes_max: u64,
    /// Encoded lines that are not on disk yet.
    buffer: Vec<u8>,
    /// Record hashes of the lines in the open block.
    open: Vec<Imprint>,
    last_leaf: Imprint,
    places: Vec<Place>,
    unsealed: VecDeque<BlockSummary>,
    /// Segments whose parts still wait for seals: number and end block.
    closing: VecDeque<(u32, u64, AppendFile)>,
    last_seal: Option<SealRef>,
    head: Option<Digest>,
    poisoned: bool,
}

/// The open segment.
#[derive(Debug)]
struct SegmentFiles {
    number: u32,
    lines: AppendFile,
    blocks: AppendFile,
    seals: AppendFile,
}

impl SegmentFiles {
    fn open(layout: &Layout, number: u32) -> Result<Self, DiskError> {
        let (blocks_magic, seals_magic) = part_magics();
        disk::private_dir(&layout.parts(number))?;
        Ok(Self {
            number,
            lines: AppendFile::open(&layout.segment(number), b"")?,
            blocks: AppendFile::open(&layout.blocks(number), blocks_magic)?,
            seals: AppendFile::open(&layout.seals(number), seals_magic)?,
        })
    }
}

impl Trail {
    /// Begins a new trail with its genesis line; the line is durable on return.
    ///
    /// # Errors
    /// [`TrailError::Exists`] if there is one, and whatever keeps it from
    /// being written.
    pub fn create(layout: Layout, origin: &str, draft: &GenesisDraft) -> Result<Self, TrailError> {
        if layout.segment(0).exists() {
            return Err(TrailError::Exists(layout.dir().to_owned()));
        }
        disk::private_dir(&layout.segments())?;
        let tables: Vec<String> = draft.tables.iter().map(|t| t.name.clone()).collect();
        let keys = if layout.keys().exists() {
            Keys::open(&layout)?
        } else {
            Keys::create(&layout, origin, &tables)?
        };
        let genesis = Genesis {
            log_key: keys.log().verifier().to_string(),
            origin: origin.to_owned(),
            predecessor: "none".into(),
            salt: Bytes32(random()?),
            system: draft.system.clone(),
            tables: tables_of(&keys, &draft.tables),
            timeline: draft.timeline,
            uncovered: draft.uncovered.clone(),
            vrf_key: Bytes32(keys.vrf_public().0),
        };
        let mut line = Line::new(Op::Genesis, 0, draft.at.clone(), &draft.source, &draft.pos);
        line.genesis = Some(Box::new(genesis));
        line.check()?;
        let mut bytes = line.encode();
        bytes.push(b'\n');
        disk::replace(&layout.segment(0), &bytes)?;
        let (trail, (), _) = Self::open(layout, |(), _| {})?;
        Ok(trail)
    }

    /// Opens a trail for writing: takes its lock, cuts off what a crash left
    /// unfinished, recomputes everything, and lets `collect` gather what the
    /// caller wants to know from every line.
    ///
    /// # Errors
    /// [`TrailError`]; a damaged trail is not opened.
    pub fn open<T: Default>(
        layout: Layout,
        collect: impl Fn(&mut T, &Line),
    ) -> Result<(Self, T, Recovery), TrailError> {
        if !layout.segment(0).exists() {
            return Err(ReadError::Nothing(layout.dir().to_owned()).into());
        }
        let lock = take_lock(&layout)?;
        let keys = Keys::open(&layout)?;
        let mut vault = Vault::open(&layout.vault(), keys.master())?;
        let mut recovery = Recovery::default();
        let (view, mut files, collected) = recover(&layout, &mut recovery, collect)?;
        vault.discard_from(view.state.next_seq())?;
        // Lines that a crash left in the system's cache count from now on.
        files.lines.append(b"")?;
        let head = std::fs::read(layout.head())
            .ok()
            .map(|note| Digest::of(&[&note]));
        let (unsealed, last_seal) = seals_of(&view);
        let mut trail = Self {
            keys,
            vault,
            genesis_hash: view.genesis_hash,
            log: view.log,
            _lock: lock,
            files,
            segment_bytes_max: 64 << 20,
            buffer: Vec::new(),
            open: view.tail,
            last_leaf: view.last_leaf,
            places: view.places,
            state: view.state,
            unsealed,
            closing: VecDeque::new(),
            last_seal,
            head,
            poisoned: false,
            layout,
        };
        trail.reopen_closing()?;
        recovery.finished_erasure = trail.finish_erasures()?;
        Ok((trail, collected, recovery))
    }

    /// Segments are closed once they are longer than this, in bytes.
    pub fn set_segment_bytes_max(&mut self, bytes: u64) {
        self.segment_bytes_max = bytes;
    }

    /// The secret keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The vault.
    pub fn vault(&mut self) -> &mut Vault {
        &mut self.vault
    }

    /// Everything that follows from the lines so far.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Hash of the genesis line.
    pub fn genesis_hash(&self) -> Digest {
        self.genesis_hash
    }

    /// The genesis body.
    pub fn genesis(&self) -> &Genesis {
        self.state
            .genesis()
            .expect("an open trail has its genesis line")
    }

    /// Where the files are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Number of blocks.
    pub fn blocks(&self) -> u64 {
        self.log.size()
    }

    /// Number of lines in the open block.
    pub fn open_lines(&self) -> usize {
        self.open.len()
    }

    /// Adds the lines of one event and gives the `seq` of the first.
    ///
    /// They are durable, all or none, once [`Trail::commit`] returns.
    ///
    /// # Errors
    /// Any error poisons the trail.
    pub fn append(&mut self, event: Vec<Draft>) -> Result<u64, TrailError> {
        self.usable()?;
        let first = self.state.next_seq();
        self.checked(|trail| {
            let last = event.len().saturating_sub(1);
            for (index, draft) in event.into_iter().enumerate() {
                trail.append_one(draft, first, index < last)?;
            }
            Ok(first)
        })
    }

    fn append_one(&mut self, mut draft: Draft, event: u64, more: bool) -> Result<(), TrailError> {
        let seq = self.state.next_seq();
        let mut line = Line::new(draft.op, seq, draft.at, draft.source, draft.pos);
        line.event = event;
        line.more = more.then_some(true);
        line.tx = draft.tx;
        line.table = draft.table;
        line.purpose = draft.purpose;
        line.columns = draft.columns;
        line.patient = draft.patient.as_ref().map(|p| self.patient(p));
        line.key = draft
            .key
            .as_ref()
            .map(|cells| self.record_key(line.table.as_deref(), cells));
        let mut deciders = None;
        match draft.body {
            Body::None => {}
            Body::Finding(finding) => line.finding = Some(finding),
            Body::Gap(gap) => line.gap = Some(gap),
            Body::Ddl(ddl) => line.ddl = Some(ddl),
            Body::Erase {
                basis,
                deciders: names,
            } => {
                line.erase = Some(self.erasure(basis, &names, seq)?);
                deciders = Some(names);
            }
        }
        let person = draft.actor.as_mut().and_then(|actor| actor.person.take());
        line.actor = draft.actor.map(actor_of);
        let clear = Content {
            key: draft.key,
            person,
            raw: draft.raw,
            marks: None,
            row: draft.row,
            deciders,
        };
        self.keep(clear, draft.image, draft.patient.as_ref(), &mut line)?;
        if let (Some(table), Some(key)) = (&line.table, &line.key) {
            line.prev = self.state.prev(table, key);
        }
        line.patient_prev = line.patient.and_then(|p| self.state.patient_prev(&p));
        self.push(&line)
    }

    /// Puts what the line commits to into the vault, and the commitments into the
    /// line. Without `image` the row itself is not kept.
    fn keep(
        &mut self,
        mut content: Content,
        image: bool,
        patient: Option<&PatientId>,
        line: &mut Line,
    ) -> Result<(), TrailError> {
        if content.is_empty() {
            return Ok(());
        }
        let compartment = self.compartment(patient, line)?;
        let nonce = self.nonce(compartment.key(), line.seq);
        if let Some(row) = &content.row {
            let (leaves, root) = commit_row(&nonce, row.iter());
            line.row = Some(root);
            if !image {
                content.marks = Some(Marks {
                    names: Arc::clone(&row.names),
                    marks: leaves.iter().map(mark).collect(),
                });
                content.row = None;
            }
        }
        if let (Some(actor), Some(person)) = (&mut line.actor, &content.person) {
            actor.person = Some(commit_person(&nonce.person(), person));
        }
        let raw = content.raw.as_ref();
        line.raw = raw.map(|raw| commit_raw(&nonce.raw(), raw));
        self.vault.put(line.seq, &compartment, &content)?;
        Ok(())
    }

    /// The compartment that a line's content goes to. Who decided an erasure must be
    /// known when the patient's own is gone.
    fn compartment(
        &mut self,
        patient: Option<&PatientId>,
        line: &Line,
    ) -> Result<Compartment, VaultError> {
        let (id, identifier) = match (line.patient, patient) {
            _ if line.op == Op::Erase => (ERASURES.to_owned(), None),
            (Some(pseudonym), Some(PatientId::Id(id))) => {
                (pseudonym.to_string(), Some(id.as_str()))
            }
            (Some(pseudo), _) => (pseudo.to_string(), None),
            (None, _) => {
                let table = line.table.as_deref().unwrap_or_default();
                (format!("table:{table}"), None)
            }
        };
        self.vault.compartment_or_new(&id, identifier, line.seq)
    }

    /// The body of line `seq`, which erases.
    fn erasure(
        &mut self,
        basis: String,
        [first, second]: &[String; 2],
        seq: u64,
    ) -> Result<Erasure, VaultError> {
        let compartment = self.vault.compartment_or_new(ERASURES, None, seq)?;
        let nonce = self.nonce(compartment.key(), seq);
        Ok(Erasure {
            basis,
            deciders: [
                commit_person(&nonce.decider(0), first),
                commit_person(&nonce.decider(1), second),
            ],
        })
    }

    /// Destroys what can be opened or confirmed about a patient: first a line that
    /// says so, durably, then the key. Gives the line's `seq`. The decision is
    /// [`Trail::confirm_erasure`]'s.
    ///
    /// # Errors
    /// Any error poisons the trail. Where the line is durable, opening the trail
    /// again finishes the erasure.
    pub(crate) fn erase(
        &mut self,
        identifier: &str,
        basis: String,
        deciders: [String; 2],
        (at, pos): (Timestamp, &str),
    ) -> Result<u64, TrailError> {
        let patient = self.keys.pseudonym(identifier);
        let seq = self.state.next_seq();
        self.intend_erasure(patient, seq)?;
        self.append(vec![Draft {
            patient: Some(PatientId::Id(identifier.to_owned())),
            body: Body::Erase { basis, deciders },
            ..Draft::new(Op::Erase, at, "guardian", pos)
        }])?;
        self.commit()?;
        self.checked(|trail| Ok(trail.vault.erase(&patient.to_string(), seq)?))?;
        self.keys.forget(identifier);
        Ok(seq)
    }

    /// Notes beside the trail that line `seq` is to erase a patient. Without that line
    /// the note means nothing.
    fn intend_erasure(&self, patient: Patient, seq: u64) -> Result<(), DiskError> {
        let noted = std::fs::read_to_string(self.layout.erasures()).unwrap_or_default();
        let text = format!("{noted}{seq} {patient}\n");
        disk::replace(&self.layout.erasures(), text.as_bytes())
    }

    /// Erases whom a durable line says to be erased and the vault still knows: a crash
    /// came between, or an older copy of the vault was put back. `true` if there was one.
    fn finish_erasures(&mut self) -> Result<bool, TrailError> {
        let noted = std::fs::read_to_string(self.layout.erasures()).unwrap_or_default();
        let mut has_finished = false;
        for (seq, patient) in noted.lines().filter_map(|note| note.split_once(' ')) {
            let Ok(seq) = seq.parse() else { continue };
            let line = self.line(seq)?;
            let is_so = |line: Line| {
                line.op == Op::Erase && line.patient.is_some_and(|p| p.to_string() == patient)
            };
            if line.is_some_and(is_so) {
                has_finished |= self.vault.erase(patient, seq)?;
            }
        }
        Ok(has_finished)
    }

    /// The nonce that opens line `seq` under `key`.
    pub fn nonce(&self, key: &Key, seq: u64) -> LineNonce {
        LineNonce::new(key, &self.genesis().origin, self.genesis().timeline, seq)
    }

    /// The pseudonym of a patient.
    pub fn patient(&self, patient: &PatientId) -> Patient {
        match patient {
            PatientId::Id(id) => self.keys.pseudonym(id),
            PatientId::Many => Patient::Many,
            PatientId::Unknown => Patient::Unknown,
        }
    }

    /// The opaque key of a record.
    pub fn record_key(&self, table: Option<&str>, cells: &[Vec<u8>]) -> Bytes32 {
        record_key(
            &self.keys.table(table.unwrap_or_default()),
            cells.iter().map(Vec::as_slice),
        )
    }

    fn push(&mut self, line: &Line) -> Result<(), TrailError> {
        line.check()?;
        let bytes = line.encode();
        if bytes.len() > MAX_LINE {
            return Err(pitser_evidence::codec::CodecError::Rule(format!(
                "longer than {MAX_LINE} bytes"
            ))
            .into());
        }
        let hash = Line::hash(&bytes);
        self.state.apply(line, hash)?;
        self.open.push(hash.0);
        self.places.push(Place {
            segment: self.files.number,
            len: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            offset: self.files.lines.len() + self.buffer.len() as u64,
        });
        self.buffer.extend_from_slice(&bytes);
        self.buffer.push(b'\n');
        Ok(())
    }

    /// Makes all lines so far durable: first the vault, then the segment.
    ///
    /// # Errors
    /// Any error poisons the trail; nothing since the last commit may then be
    /// acknowledged to its source.
    pub fn commit(&mut self) -> Result<(), TrailError> {
        self.usable()?;
        self.checked(|trail| {
            if trail.buffer.is_empty() {
                return Ok(());
            }
            trail.vault.commit()?;
            trail.files.lines.append(&trail.buffer)?;
            trail.buffer.clear();
            Ok(())
        })
    }

    /// Ends the open block with a checkpoint line and makes it durable.
    ///
    /// `pos` is the source's position that the block covers, `mapping` the
    /// hash of the table-to-patient mapping.
    ///
    /// # Errors
    /// Any error poisons the trail.
    pub fn close_block(
        &mut self,
        at: Timestamp,
        pos: &str,
        mapping: Digest,
        reason: &str,
    ) -> Result<BlockSummary, TrailError> {
        self.usable()?;
        self.checked(|trail| {
            let block = trail.blocks();
            let line = trail.checkpoint_line(at, pos, mapping, block);
            trail.push(&line)?;
            trail.commit()?;
            let summary = trail.write_block(block, reason)?;
            if trail.files.lines.len() >= trail.segment_bytes_max {
                trail.next_segment()?;
            }
            Ok(summary)
        })
    }

    fn checkpoint_line(&mut self, at: Timestamp, pos: &str, mapping: Digest, block: u64) -> Line {
        let seq = self.state.next_seq();
        let root =
            Imprint::new(Algorithm::Sha256, &self.state.root()).expect("the map's hash is SHA-256");
        let count = self.open.len() as u64 + 1;
        let genesis = self.genesis();
        let body = Checkpoint {
            block,
            count,
            first: seq + 1 - count,
            head: self.head,
            map: Digest(root),
            map_seq: seq - 1,
            mapping,
            origin: genesis.origin.clone(),
            pos: pos.to_owned(),
            seal: self.last_seal,
            system: genesis.system.clone(),
            timeline: genesis.timeline,
        };
        let mut line = Line::new(Op::Checkpoint, seq, at, "guardian", pos);
        line.checkpoint = Some(Box::new(body));
        line
    }

    fn write_block(&mut self, block: u64, reason: &str) -> Result<BlockSummary, TrailError> {
        let first_seq = self.state.next_seq() - self.open.len() as u64;
        let closed = build_block(&self.open, self.last_leaf, reason)
            .map_err(|()| TrailError::Block(block))?;
        self.files.blocks.append(&closed.bytes)?;
        let map =
            Imprint::new(Algorithm::Sha256, &self.state.root()).expect("the map's hash is SHA-256");
        let leaf = LogLeaf {
            origin: self.genesis().origin.clone(),
            block,
            first_seq,
            count: self.open.len() as u64,
            root: Digest(closed.root),
            level: closed.level,
            map: Digest(map),
        };
        self.log.push(leaf_hash(&leaf.encode()));
        self.last_leaf = closed.last_leaf;
        self.open.clear();
        let summary = BlockSummary {
            block,
            first_seq,
            count: leaf.count,
            root: closed.root,
            level: closed.level,
        };
        self.unsealed.push_back(summary.clone());
        Ok(summary)
    }

    /// Blocks that wait for their seal, oldest first.
    pub fn unsealed(&self) -> impl Iterator<Item = &BlockSummary> {
        self.unsealed.iter()
    }

    /// Keeps the signature of the block that has waited longest, durably.
    ///
    /// # Errors
    /// [`TrailError::SealOrder`] leaves the trail as it is; others poison it.
    pub fn add_seal(&mut self, block: u64, signature: &[u8]) -> Result<(), TrailError> {
        self.usable()?;
        let expected = self.unsealed.front().map_or(self.blocks(), |b| b.block);
        let Some(summary) = self.unsealed.front().filter(|b| b.block == block) else {
            return Err(TrailError::SealOrder {
                expected,
                got: block,
            });
        };
        // One more record than lines: the metarecord that closes the block.
        let bytes = logsig::encode_signed(summary.count + 1, signature)
            .map_err(|_| TrailError::Block(block))?;
        self.checked(|trail| {
            match trail.closing.front_mut() {
                Some((_, _, seals)) => seals.append(&bytes)?,
                None => trail.files.seals.append(&bytes)?,
            }
            trail.unsealed.pop_front();
            trail.last_seal = Some(SealRef {
                block,
                hash: Digest::of(&[signature]),
            });
            if trail
                .closing
                .front()
                .is_some_and(|(_, end, _)| block + 1 == *end)
            {
                let (number, _, _) = trail.closing.pop_front().expect("just looked at");
                finish_segment(&trail.layout, number)?;
            }
            Ok(())
        })
    }

    /// The head over all blocks so far, signed by the trail's key.
    pub fn sign_head(&self) -> Note {
        let head = Head::new(&self.genesis().origin, self.log.size(), self.log.root())
            .expect("the origin was a key name at genesis");
        head.sign(self.keys.log()).expect("a head is a short note")
    }

    /// The log, for proofs.
    pub fn log(&self) -> &LogTree {
        &self.log
    }

    /// Keeps a cosigned head; later checkpoint lines refer to it.
    ///
    /// # Errors
    /// [`TrailError::Disk`].
    pub fn store_head(&mut self, note: &Note) -> Result<(), TrailError> {
        let bytes = note.to_string();
        disk::replace(&self.layout.head(), bytes.as_bytes())?;
        self.head = Some(Digest::of(&[bytes.as_bytes()]));
        Ok(())
    }

    /// Reads line `seq`, if it is durable.
    ///
    /// # Errors
    /// [`TrailError::Disk`] or [`TrailError::Line`].
    pub fn line(&self, seq: u64) -> Result<Option<Line>, TrailError> {
        let place = usize::try_from(seq)
            .ok()
            .and_then(|seq| self.places.get(seq));
        let Some(place) = place else { return Ok(None) };
        let bytes = read::read_line(&self.layout, *place)?;
        Ok(Some(Line::decode(&bytes)?))
    }

    fn next_segment(&mut self) -> Result<(), TrailError> {
        let number = self.files.number + 1;
        let files = SegmentFiles::open(&self.layout, number)?;
        let old = std::mem::replace(&mut self.files, files);
        let end = self.blocks();
        if self.unsealed.is_empty() {
            finish_segment(&self.layout, old.number)?;
        } else {
            self.closing.push_back((old.number, end, old.seals));
        }
        Ok(())
    }

    /// After opening: earlier segments that still have parts.
    fn reopen_closing(&mut self) -> Result<(), TrailError> {
        let first_waiting = self.unsealed.front().map(|b| b.block);
        for number in 0..self.files.number {
            if self.layout.logsig(number).exists() {
                remove_parts(&self.layout, number)?;
                continue;
            }
            let end = self.end_block(number)?;
            if first_waiting.is_some_and(|first| first < end) {
                let seals = AppendFile::open(&self.layout.seals(number), part_magics().1)?;
                self.closing.push_back((number, end, seals));
            } else {
                finish_segment(&self.layout, number)?;
            }
        }
        Ok(())
    }

    /// The number of the first block after segment `number`.
    fn end_block(&self, number: u32) -> Result<u64, TrailError> {
        let last = self
            .places
            .iter()
            .rposition(|p| p.segment == number)
            .unwrap_or(0);
        let line = self.line(last as u64)?;
        Ok(line.and_then(|l| l.checkpoint).map_or(0, |c| c.block + 1))
    }

    fn usable(&self) -> Result<(), TrailError> {
        if self.poisoned {
            Err(TrailError::Poisoned)
        } else {
            Ok(())
        }
    }

    fn checked<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, TrailError>,
    ) -> Result<T, TrailError> {
        let result = work(self);
        self.poisoned |= result.is_err();
        result
    }
}

fn tables_of(keys: &Keys, drafts: &[TableDraft]) -> Vec<TableGenesis> {
    let mut tables: Vec<_> = drafts
        .iter()
        .map(|t| TableGenesis {
            columns: t.columns.clone(),
            key: t.key.clone(),
            name: t.name.clone(),
            patient: t.patient.clone(),
            table_key: commit_table_key(&t.name, &keys.table(&t.name)),
        })
        .collect();
    tables.sort_by(|a, b| a.name.cmp(&b.name));
    tables
}

fn actor_of(actor: DraftActor) -> Actor {
    Actor {
        app: actor.app,
        binding: actor.binding,
        client: actor.client,
        person: None,
        role: actor.role,
    }
}

fn build_block(
    records: &[Imprint],
    previous: Imprint,
    reason: &str,
) -> Result<logsig::ClosedBlock, ()> {
    let iv: [u8; 32] = random().map_err(|_| ())?;
    let stored = StoredHashes {
        records: true,
        tree: false,
    };
    let mut builder =
        BlockBuilder::storing(stored, Algorithm::Sha256, &iv, previous).map_err(|_| ())?;
    for record in records {
        builder.record(*record).map_err(|_| ())?;
    }
    builder
        .metarecord(BLOCK_CLOSE_REASON, reason)
        .map_err(|_| ())?;
    let mut closed = builder.close().map_err(|_| ())?;
    let marker = closed.unsigned(None).map_err(|_| ())?;
    closed.bytes.extend(marker);
    Ok(closed)
}

fn seals_of(view: &View) -> (VecDeque<BlockSummary>, Option<SealRef>) {
    let mut last = None;
    let mut unsealed = VecDeque::new();
    for block in &view.blocks {
        match &block.seal {
            Some(seal) => {
                last = Some(SealRef {
                    block: block.leaf.block,
                    hash: Digest::of(&[seal]),
                })
            }
            None => unsealed.push_back(BlockSummary {
                block: block.leaf.block,
                first_seq: block.leaf.first_seq,
                count: block.leaf.count,
                root: block.leaf.root.0,
                level: block.leaf.level,
            }),
        }
    }
    (unsealed, last)
}

/// Brings the last segment's files to a whole number of items.
fn recover<T: Default>(
    layout: &Layout,
    recovery: &mut Recovery,
    collect: impl Fn(&mut T, &Line),
) -> Result<(View, SegmentFiles, T), TrailError> {
    let numbers = layout
        .segment_numbers()
        .map_err(|_| ReadError::Nothing(layout.dir().to_owned()))?;
    let last = numbers.last().copied().unwrap_or(0);
    loop {
        let mut files = SegmentFiles::open(layout, last)?;
        let mut collected = T::default();
        let view = read::read(layout, None, |line, _| collect(&mut collected, line))?;
        let whole = view.whole;
        let (blocks_magic, seals_magic) = part_magics();
        let lengths = [
            (&mut files.lines, whole.lines),
            (
                &mut files.blocks,
                whole.blocks.max(blocks_magic.len() as u64),
            ),
            (&mut files.seals, whole.seals.max(seals_magic.len() as u64)),
        ];
        for (file, whole) in lengths {
            if file.len() > whole {
                recovery.cut_bytes += file.len() - whole;
                file.truncate(whole)?;
            }
        }
        if let Some(start) = whole.unfinished_event {
            recovery.cut_event = true;
            files.lines.truncate(start)?;
        } else if let Some(lines) = whole.unwritten_block {
            recovery.rebuilt_block = true;
            let closed = build_block(
                &view.tail[..lines],
                view.last_leaf,
                "Block closed after a restart.",
            )
            .map_err(|()| TrailError::Block(view.blocks.len() as u64))?;
            files.blocks.append(&closed.bytes)?;
        } else {
            return Ok((view, files, collected));
        }
    }
}

/// Joins a closed segment's parts into its log signature.
fn finish_segment(layout: &Layout, number: u32) -> Result<(), TrailError> {
    use crate::disk::At;
    let (blocks_path, seals_path) = (layout.blocks(number), layout.seals(number));
    let blocks = std::fs::read(&blocks_path).at(&blocks_path, "cannot read")?;
    let seals = std::fs::read(&seals_path).at(&seals_path, "cannot read")?;
    let integrated = logsig::integrate(&blocks, &seals).map_err(|e| {
        ReadError::Damaged(read::Damage {
            code: pitser_evidence::Code::SealInvalid,
            path: blocks_path.clone(),
            line: None,
            text: e.to_string(),
        })
    })?;
    disk::replace(&layout.logsig(number), &integrated.bytes)?;
    remove_parts(layout, number)?;
    Ok(())
}

/// Removes the parts that a segment's log signature has replaced.
fn remove_parts(layout: &Layout, number: u32) -> Result<(), DiskError> {
    use crate::disk::At;
    let parts = layout.parts(number);
    match std::fs::remove_dir_all(&parts) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.at(&parts, "cannot remove"),
    }
}

fn take_lock(layout: &Layout) -> Result<File, TrailError> {
    use crate::disk::At;
    let path = layout.lock();
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .at(&path, "cannot open")?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(TrailError::Locked(path)),
        Err(std::fs::TryLockError::Error(e)) => Err(e).at(&path, "cannot lock").map_err(Into::into),
    }
}
