//! Histories and evidence files, made from a trail's files beside its writer.

use crate::erasure;
use crate::index::{BlockEntry, Index};
use crate::keys::{KeyError, Keys};
use crate::layout::Layout;
use crate::map::{self, MapError, OsFolder, ReadPages};
use crate::read::{self, ReadError, Start, View};
use crate::signatures::Signatures;
use crate::vault::{Content, Vault, VaultError};
use pitser_evidence::apart::Apart;
use pitser_evidence::audit::Statement;
use pitser_evidence::codec::{Blob, Bytes32, Digest};
use pitser_evidence::commit::{Key, LineNonce};
use pitser_evidence::file::{
    BlockProof, Evidence, LineProof, ListLengths, MAX_FILE, MapEntry, MapProof, OpenColumn,
    OpenPerson, OpenRaw, Opening, Subject, TooLarge,
};
use pitser_evidence::line::{Genesis, Line, Op, Patient};
use pitser_evidence::map::Leaf;
use pitser_evidence::seal;
use pitser_evidence::store::Tree;
use pitser_ksi::logsig::{Lines, Outline};
use pitser_ksi::time::Second;
use pitser_tlog::checkpoint::Checkpoint as Head;
use pitser_tlog::merkle::Hash;
use pitser_tlog::note::Note;
use std::collections::BTreeMap;
use std::path::Path;

/// Why nothing could be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The trail cannot be read to its end.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The map or the index cannot be read.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The vault cannot be read.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// Keys cannot be had.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// No line is about the patient.
    #[error(
        "the trail has no line about this patient. Is the identifier spelled as in the database?"
    )]
    UnknownPatient,
    /// No line is about the record.
    #[error(
        "the trail has no line about this record of table {0}. Is the key spelled as in the database?"
    )]
    UnknownRecord(String),
    /// There is no cosigned head yet.
    #[error(
        "no head of this trail has been cosigned yet: evidence needs one. Wait a few seconds, or check the witnesses"
    )]
    NoHead,
    /// Nobody could verify the evidence.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// A block's signature is not for the block.
    #[error(
        "the signature of block {0} is not the block's: `pitser trail verify` says what is wrong"
    )]
    Block(u64),
    /// A line does not stand where the trail says.
    #[error("line {0} cannot be read")]
    Line(u64),
}

/// One line of a history.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The line.
    pub line: Line,
    /// What it commits to, if the vault still opens it.
    pub content: Option<Content>,
    /// Its block; `None` while the block is open.
    pub block: Option<u64>,
    /// When the block was sealed.
    pub sealed_at: Option<Second>,
    /// True if a publication covers the seal.
    pub published: bool,
    /// True if a quorum-cosigned head covers the block.
    pub witnessed: bool,
}

/// The lines of a history, oldest first. What they commit to is opened one by one: all
/// of it may be longer than memory.
#[derive(Debug)]
pub struct History<'e> {
    exporter: &'e mut Exporter,
    /// Those that are still to come, newest first.
    lines: Vec<Line>,
}

impl Iterator for History<'_> {
    type Item = Result<Entry, ExportError>;

    fn next(&mut self) -> Option<Self::Item> {
        let line = self.lines.pop()?;
        Some(self.exporter.entry(line))
    }
}

/// What evidence is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The patient's identifier. Of the own list all lines are shown.
    pub patient: &'a str,
    /// Of `*many` and `*unknown`, all lines that were sealed after this second, and the
    /// newest one that was not: its seal shows when those before it existed, which are
    /// left out. `None` for all.
    pub shared_since: Option<Second>,
}

impl<'a> From<&'a str> for Asked<'a> {
    fn from(patient: &'a str) -> Self {
        Self {
            patient,
            shared_since: None,
        }
    }
}

/// What evidence on a patient is made of: the lines that it shows, by `seq`, and how many of
/// each shared list it does not.
#[derive(Debug)]
pub struct Listed {
    identifier: String,
    subject: Patient,
    lines: Vec<Line>,
    many_before: u64,
    unknown_before: u64,
}

/// How many bytes of values an evidence file may still take.
struct Room(usize);

/// Most of them: as text they may be longer, and lines and proofs have to stand in the
/// file as well.
const VALUES_IN_FILE: usize = 96 << 20;
/// Room for the signature.
const SIGNATURE: usize = 4096;
/// A longer one stands in a file of its own.
const VALUE_IN_FILE: usize = 1 << 20;
/// A shorter one would be no shorter as a hash.
const SHORT_VALUE: usize = 64;

impl Room {
    fn takes(&mut self, value: &[u8]) -> bool {
        if value.len() > VALUE_IN_FILE || value.len() > self.0.max(SHORT_VALUE) {
            return false;
        }
        self.0 = self.0.saturating_sub(value.len());
        true
    }
}

/// A trail opened for reading, with the keys that open its contents.
#[derive(Debug)]
pub struct Exporter {
    layout: Layout,
    keys: Keys,
    vault: Vault,
    view: View<ReadPages<OsFolder>>,
    head: Option<(Note, Head)>,
    /// Those of the segment that was asked about last.
    signatures: Option<Signatures>,
}

impl Exporter {
    /// Opens the trail as it stands now, beside its writer.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn open(layout: Layout) -> Result<Self, ExportError> {
        Self::read(layout, false)
    }

    /// Opens the trail as of its newest cosigned head: evidence is as of then.
    ///
    /// # Errors
    /// [`ExportError::NoHead`] before the first one.
    pub fn open_at_head(layout: Layout) -> Result<Self, ExportError> {
        Self::read(layout, true)
    }

    /// Opens the trail as it was with its first `blocks` blocks, as of any sealed
    /// head therefore.
    ///
    /// A head that is not older than the map's newest commits costs what
    /// [`Exporter::open`] does. For an older one the segments are read from the
    /// genesis on, into memory: about 10 us of processor time a line, and 150
    /// bytes a leaf.
    ///
    /// # Errors
    /// [`ExportError::NoHead`] if there are fewer blocks.
    pub fn open_at(layout: Layout, blocks: u64) -> Result<Self, ExportError> {
        let exporter = Self::read_until(layout, |_| Ok(Some(blocks)))?;
        match exporter.view.index.blocks() >= blocks {
            true => Ok(exporter),
            false => Err(ExportError::NoHead),
        }
    }

    /// The map's leaf of a patient and its path, as of the last block that was read.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn prove_patient(&mut self, identifier: &str) -> Result<MapEntry, ExportError> {
        let patient = self.keys.pseudonym(identifier);
        self.map_entry(&patient)
    }

    /// The log's entry of the last block that was read.
    ///
    /// # Errors
    /// [`ExportError::NoHead`] if there is none.
    pub fn last_block(&self) -> Result<BlockEntry, ExportError> {
        let last = self.view.index.blocks().checked_sub(1);
        self.block(last.ok_or(ExportError::NoHead)?)
    }

    /// Opens the trail as of the head that the newest auditor's statement is about,
    /// with that statement: what evidence that is to be intact is made as of.
    /// `None` if no statement is kept, or its head is not.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn open_audited(layout: &Layout) -> Result<Option<(Self, String)>, ExportError> {
        let Some((statement, size)) = audit_of(layout) else {
            return Ok(None);
        };
        for path in [layout.head(), layout.audited()] {
            let keys = Keys::open(layout)?;
            let Some((note, head)) = head_in(&path, &keys).filter(|(_, h)| h.size() == size) else {
                continue;
            };
            let exporter = Self::read_as_of(layout.clone(), keys, Some((note, head)), Some(size))?;
            return Ok(Some((exporter, statement)));
        }
        Ok(None)
    }

    /// How many blocks the newest cosigned head covers that this exporter's does not.
    pub fn blocks_after(&self) -> u64 {
        let newest = head_in(&self.layout.head(), &self.keys);
        let size = |head: &Option<(Note, Head)>| head.as_ref().map_or(0, |(_, head)| head.size());
        size(&newest).saturating_sub(size(&self.head))
    }

    /// The genesis hash, and the log's and the map's root with the trail's first
    /// `blocks` blocks; `None` if there are fewer.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn roots(&self, blocks: u64) -> Result<Option<(Digest, Hash, Digest)>, ExportError> {
        let last = match blocks.checked_sub(1) {
            Some(last) => self.view.index.block(last, self.keys.origin())?,
            None => None,
        };
        let root = self.view.log().root_at(blocks)?;
        Ok(last
            .zip(root)
            .map(|(last, root)| (self.view.genesis_hash, root, last.leaf.map)))
    }

    fn read(layout: Layout, at_head: bool) -> Result<Self, ExportError> {
        Self::read_until(layout, |head| match (head, at_head) {
            (Some((_, head)), true) => Ok(Some(head.size())),
            (None, true) => Err(ExportError::NoHead),
            (_, false) => Ok(None),
        })
    }

    fn read_until(
        layout: Layout,
        until: impl FnOnce(&Option<(Note, Head)>) -> Result<Option<u64>, ExportError>,
    ) -> Result<Self, ExportError> {
        let keys = Keys::open(&layout)?;
        let head = head_in(&layout.head(), &keys);
        let until = until(&head)?;
        Self::read_as_of(layout, keys, head, until)
    }

    fn read_as_of(
        layout: Layout,
        keys: Keys,
        head: Option<(Note, Head)>,
        until: Option<u64>,
    ) -> Result<Self, ExportError> {
        let view = view(&layout, until)?;
        let vault = Vault::open_read_only(&layout.vault(), keys.master())?;
        Ok(Self {
            layout,
            keys,
            vault,
            view,
            head,
            signatures: None,
        })
    }

    /// The genesis body.
    pub fn genesis(&self) -> Option<&Genesis> {
        self.view.state.genesis().map(|genesis| &**genesis)
    }

    /// Whether any line is about the record.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn has_record(&self, table: &str, cells: &[Vec<u8>]) -> Result<bool, ExportError> {
        let key = self.record_key(table, cells);
        Ok(self.view.state.record_leaf(table, &key)?.is_some())
    }

    fn record_key(&self, table: &str, cells: &[Vec<u8>]) -> Bytes32 {
        pitser_evidence::commit::record_key(
            &self.keys.table(table),
            cells.iter().map(Vec::as_slice),
        )
    }

    /// The keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// All lines about a patient, oldest first.
    ///
    /// # Errors
    /// [`ExportError::UnknownPatient`] and whatever keeps them from being read.
    pub fn patient_history(&mut self, identifier: &str) -> Result<History<'_>, ExportError> {
        let patient = self.keys.pseudonym(identifier);
        let leaf = self.view.state.patient(&patient)?;
        let last = leaf.ok_or(ExportError::UnknownPatient)?.last_seq;
        self.history(last, |line| line.patient_prev.map(|p| p.seq))
    }

    /// All lines about a record, oldest first. `cells` are its key's canonical values.
    ///
    /// # Errors
    /// [`ExportError::UnknownRecord`] and whatever keeps them from being read.
    pub fn record_history(
        &mut self,
        table: &str,
        cells: &[Vec<u8>],
    ) -> Result<History<'_>, ExportError> {
        let leaf = self
            .view
            .state
            .record_leaf(table, &self.record_key(table, cells))?;
        let last = leaf
            .ok_or_else(|| ExportError::UnknownRecord(table.to_owned()))?
            .last_seq;
        self.history(last, |line| line.prev.map(|p| p.seq))
    }

    fn history(
        &mut self,
        last: u64,
        before: impl Fn(&Line) -> Option<u64>,
    ) -> Result<History<'_>, ExportError> {
        let mut lines = Vec::new();
        let mut next = Some(last);
        while let Some(seq) = next {
            let (line, _) = self.line(seq)?;
            next = before(&line);
            lines.push(line);
        }
        Ok(History {
            exporter: self,
            lines,
        })
    }

    fn entry(&mut self, line: Line) -> Result<Entry, ExportError> {
        let content = self.vault.get(line.seq)?.map(|(_, content)| content);
        let block = self.block_of(line.seq)?;
        let seal = match &block {
            Some(block) => self.seal(block)?,
            None => None,
        };
        // A head that only the trail itself signed is no witness's word.
        let cosigned = self
            .head
            .as_ref()
            .filter(|(note, _)| note.signatures().len() > 1);
        let covered = cosigned.map_or(0, |(_, head)| head.size());
        let published = seal.as_deref().is_some_and(|seal| {
            pitser_ksi::signature::Signature::decode(seal).is_ok_and(|s| s.publication().is_some())
        });
        let block = block.map(|entry| entry.leaf.block);
        Ok(Entry {
            line,
            content,
            block,
            sealed_at: seal.as_deref().and_then(seal::time),
            published,
            witnessed: block.is_some_and(|block| block < covered),
        })
    }

    fn origin(&self) -> &str {
        self.genesis().map_or("", |genesis| &genesis.origin)
    }

    fn block_of(&self, seq: u64) -> Result<Option<BlockEntry>, ExportError> {
        Ok(self.view.index.block_of(seq, self.origin())?)
    }

    /// A block's seal, which is for the root that the index has: one for another is
    /// damage.
    fn seal(&mut self, block: &BlockEntry) -> Result<Option<Vec<u8>>, ExportError> {
        let (root, level) = (block.leaf.root.0, block.leaf.level);
        let (signatures, at) = self.signatures(block)?;
        let seal = signatures.seal(at)?;
        if let Some(bytes) = &seal
            && let seal::Seal::Broken(_) = seal::check(bytes, root, level, &seal::SealKeys::none())
        {
            return Err(ExportError::Block(block.leaf.block));
        }
        Ok(seal)
    }

    /// The outline of a block's tree, which leads to the root that the index has.
    fn outline(&mut self, block: &BlockEntry) -> Result<Outline, ExportError> {
        let root = (block.leaf.root.0, block.leaf.level);
        let (signatures, at) = self.signatures(block)?;
        Ok(signatures.outline(at, root)?)
    }

    /// The signatures of a block's segment, and which of them is the block's.
    fn signatures(&mut self, block: &BlockEntry) -> Result<(&mut Signatures, u64), ExportError> {
        let at = block.leaf.block - self.view.index.first_of(block.segment)?;
        let kept = self.signatures.take();
        let kept = kept.filter(|kept| kept.segment() == block.segment);
        let signatures = match kept {
            Some(kept) => kept,
            None => Signatures::open(&self.layout, block.segment)?,
        };
        Ok((self.signatures.insert(signatures), at))
    }

    fn line(&self, seq: u64) -> Result<(Line, Vec<u8>), ExportError> {
        let bytes = self.view.index.line(&self.layout, seq)?;
        let bytes = bytes.ok_or(ExportError::Line(seq))?;
        let line = Line::decode(&bytes).map_err(|_| ExportError::Line(seq))?;
        Ok((line, bytes))
    }

    /// The seals of the blocks that evidence with these lines has, by number.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn seals(&mut self, listed: &Listed) -> Result<Vec<(u64, Vec<u8>)>, ExportError> {
        let mut blocks = BTreeMap::new();
        for line in &listed.lines {
            let entry = self.sealed_block_of(line.seq)?;
            blocks.insert(entry.leaf.block, entry);
        }
        if let Some(last) = self.view.index.blocks().checked_sub(1) {
            blocks.insert(last, self.block(last)?);
        }
        let mut seals = Vec::new();
        for (block, entry) in blocks {
            seals.extend(self.seal(&entry)?.map(|seal| (block, seal)));
        }
        Ok(seals)
    }

    /// The evidence on one patient as of the newest cosigned head.
    ///
    /// `seal_of` may replace a block's signature by an extended one; `audit`
    /// and `publications` are put in as they are.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn evidence<'a>(
        &mut self,
        asked: impl Into<Asked<'a>>,
        audit: Option<String>,
        publications: Option<Vec<u8>>,
        seal_of: impl FnMut(u64, &[u8]) -> Vec<u8>,
    ) -> Result<Evidence, ExportError> {
        let listed = self.list(asked)?;
        self.evidence_of(listed, audit, publications, seal_of)
    }

    /// The same, of lines that this exporter has listed.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn evidence_of(
        &mut self,
        listed: Listed,
        audit: Option<String>,
        publications: Option<Vec<u8>>,
        mut seal_of: impl FnMut(u64, &[u8]) -> Vec<u8>,
    ) -> Result<Evidence, ExportError> {
        let (note, size) = match &self.head {
            Some((note, head)) => (note.to_string(), head.size()),
            None => return Err(ExportError::NoHead),
        };
        let last_block = size.checked_sub(1).ok_or(ExportError::NoHead)?;
        let Listed {
            identifier,
            subject,
            lines,
            many_before,
            unknown_before,
        } = listed;
        let mut by_block: BTreeMap<u64, (BlockEntry, Vec<Line>)> = BTreeMap::new();
        by_block.insert(last_block, (self.block(last_block)?, Vec::new()));
        for line in lines {
            let entry = self.sealed_block_of(line.seq)?;
            let block = by_block.entry(entry.leaf.block);
            block.or_insert((entry, Vec::new())).1.push(line);
        }
        let mut blocks = Vec::new();
        let mut proofs = Vec::new();
        let mut room = Room(VALUES_IN_FILE);
        for (entry, lines) in by_block.into_values() {
            blocks.push(self.block_proof(&entry, size, &mut seal_of)?);
            proofs.extend(self.line_proofs(&entry, lines, subject, &mut room)?);
        }
        let mut evidence = Evidence {
            audit,
            blocks,
            calendar: Vec::new(),
            format: String::new(),
            genesis: self.line(0)?.0,
            head: note,
            lines: proofs,
            map: MapProof {
                block: last_block,
                many: starting_after(many_before, self.map_entry(&Patient::Many)?),
                patient: self.map_entry(&subject)?,
                unknown: starting_after(unknown_before, self.map_entry(&Patient::Unknown)?),
            },
            origin: self.keys.origin().to_owned(),
            publications: publications.map(Blob),
            signature: String::new(),
            subject: Subject {
                proof: Blob(self.keys.prove_pseudonym(&identifier).to_vec()),
                id: identifier,
            },
        };
        self.sign(&mut evidence);
        Ok(evidence)
    }

    /// Puts proofs that seconds were witnessed into `evidence`, which this exporter
    /// made, in the order of their seconds, and signs it anew.
    pub fn add_calendar(&self, evidence: &mut Evidence, proofs: Vec<String>) {
        evidence.set_calendar(proofs);
        self.sign(evidence);
    }

    fn sign(&self, evidence: &mut Evidence) {
        evidence.put_apart(MAX_FILE - SIGNATURE);
        evidence.format = evidence.oldest_format().to_owned();
        evidence.signature = self.keys.log().sign(&evidence.signed_text()).to_string();
    }

    /// The bytes of what stands apart from evidence that this exporter made; `None` if
    /// they can be had no more, since the patient was erased.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn apart(&mut self, part: &Apart<'_>) -> Result<Option<Vec<u8>>, ExportError> {
        let Some((_, content)) = self.vault.get(part.seq)? else {
            return Ok(None);
        };
        let Some((_, column)) = part.column else {
            return Ok(content.raw.map(|raw| raw.to_vec()));
        };
        let row = content.row;
        let value = row.as_ref().and_then(|row| {
            let mut columns = row.iter();
            columns.find_map(|(name, value)| value.filter(|_| name == column))
        });
        Ok(value.map(<[u8]>::to_vec))
    }

    /// The lines that evidence on a patient as of the newest cosigned head is to show, unless
    /// they are more than anybody reads.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn list<'a>(&mut self, asked: impl Into<Asked<'a>>) -> Result<Listed, ExportError> {
        let asked = asked.into();
        if self.head.is_none() {
            return Err(ExportError::NoHead);
        }
        let subject = self.keys.pseudonym(asked.patient);
        if self.view.state.patient(&subject)?.is_none() {
            return Err(ExportError::UnknownPatient);
        }
        let mut lengths = ListLengths::default();
        // Before any line is read, as far as it is known.
        let counted: &[Patient] = match asked.shared_since {
            Some(_) => &[subject],
            None => &[subject, Patient::Many, Patient::Unknown],
        };
        for patient in counted {
            *lengths.of(Some(*patient)) = self.count(patient)?;
        }
        lengths.check()?;
        let mut lines = Vec::new();
        self.take_list(&mut lines, subject, |_, _| Ok(false))?;
        // Most lines are of the block of the one after them.
        let mut known: Option<(u64, Option<Second>)> = None;
        let mut before = [0; 2];
        for (before, list) in before.iter_mut().zip([Patient::Many, Patient::Unknown]) {
            let mut taken = 0;
            self.take_list(&mut lines, list, |exporter, line| {
                taken += 1;
                let Some(since) = asked.shared_since else {
                    return Ok(false);
                };
                *lengths.of(Some(list)) = taken;
                lengths.check()?;
                let block = exporter.sealed_block_of(line.seq)?;
                let sealed_at = match known {
                    Some((number, at)) if number == block.leaf.block => at,
                    _ => exporter.seal(&block)?.as_deref().and_then(seal::time),
                };
                known = Some((block.leaf.block, sealed_at));
                Ok(sealed_at.is_some_and(|at| at <= since))
            })?;
            *before = self.count(&list)? - taken;
        }
        lines.sort_by_key(|line| line.seq);
        let [many_before, unknown_before] = before;
        Ok(Listed {
            identifier: asked.patient.to_owned(),
            subject,
            lines,
            many_before,
            unknown_before,
        })
    }

    /// Takes a list's lines from the newest back, up to the one that is the `last`.
    fn take_list(
        &mut self,
        lines: &mut Vec<Line>,
        patient: Patient,
        mut is_last: impl FnMut(&mut Self, &Line) -> Result<bool, ExportError>,
    ) -> Result<(), ExportError> {
        let leaf = self.view.state.patient(&patient)?;
        let mut next = leaf.map(|leaf| leaf.last_seq);
        while let Some(seq) = next {
            let (line, _) = self.line(seq)?;
            next = match is_last(self, &line)? {
                true => None,
                false => line.patient_prev.map(|prev| prev.seq),
            };
            lines.push(line);
        }
        Ok(())
    }

    /// How many lines a list has.
    fn count(&self, patient: &Patient) -> Result<u64, ExportError> {
        let leaf = self.view.state.patient(patient)?;
        Ok(leaf.map_or(0, |leaf| leaf.count))
    }

    /// What of a line is disclosed to its subject: all of the subject's own;
    /// of the pseudo-patients' lines only who acted.
    /// A message is disclosed with the first line of its event.
    fn opening(
        &mut self,
        line: &Line,
        subject: Patient,
        room: &mut Room,
    ) -> Result<Option<Opening>, ExportError> {
        let own = line.patient == Some(subject);
        let is_first = own && line.raw.is_some() && line.seq == line.event;
        let alone = is_first && self.event_is_about(line, subject)?;
        let Some((key, content)) = self.vault.get(line.seq)? else {
            return Ok(None);
        };
        let nonce = self.nonce(&key, line.seq);
        let mut column = |(name, value): (&str, Option<&[u8]>)| {
            let nonce = nonce.column(name);
            match value {
                Some(value) if !room.takes(value) => OpenColumn::apart(name, nonce, value),
                value => OpenColumn::open(name, nonce, value),
            }
        };
        let row = content.row.filter(|_| own);
        let columns = row.map(|row| row.iter().map(&mut column).collect());
        let opening = Opening {
            columns,
            person: content.person.map(|value| OpenPerson {
                nonce: nonce.person(),
                value,
            }),
            raw: content.raw.filter(|_| alone).map(|bytes| OpenRaw {
                bytes: room.takes(&bytes).then(|| Blob(bytes.to_vec())),
                nonce: nonce.raw(),
            }),
        };
        let empty = opening.columns.is_none() && opening.person.is_none() && opening.raw.is_none();
        Ok((!empty).then_some(opening))
    }

    /// True if no line of the event is about anyone else.
    fn event_is_about(&self, line: &Line, subject: Patient) -> Result<bool, ExportError> {
        for seq in line.event.. {
            let (other, _) = self.line(seq)?;
            if other.event != line.event || other.patient != Some(subject) {
                return Ok(false);
            }
            if other.more.is_none() {
                break;
            }
        }
        Ok(true)
    }

    /// Number of lines that were read.
    pub fn lines_read(&self) -> u64 {
        self.view.state.next_seq()
    }

    /// A line, and what it commits to with the nonce that opens it, as long as the
    /// vault has them.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn opened(
        &mut self,
        seq: u64,
    ) -> Result<(Line, Option<(LineNonce, Content)>), ExportError> {
        let (line, _) = self.line(seq)?;
        let kept = self.vault.get(seq)?;
        let opened = kept.map(|(key, content)| (self.nonce(&key, seq), content));
        Ok((line, opened))
    }

    /// Who a pseudonym stands for, with the proof; `None` if nobody knows any more, or
    /// it is no pseudonym.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn subject(&mut self, patient: &Patient) -> Result<Option<Subject>, ExportError> {
        let Patient::Pseudonym(_) = patient else {
            return Ok(None);
        };
        let identifier = self.vault.identifier(&patient.to_string())?;
        Ok(identifier.map(|id| Subject {
            proof: Blob(self.keys.prove_pseudonym(&id).to_vec()),
            id: id.to_string(),
        }))
    }

    /// The newest line up to `seq` that commits to a row of the record; `cells` are its
    /// key's canonical values.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn row_line(
        &self,
        table: &str,
        cells: &[Vec<u8>],
        seq: u64,
    ) -> Result<Option<u64>, ExportError> {
        self.record_line(table, cells, |line| line.seq <= seq && line.row.is_some())
    }

    /// The newest line about a record that is `wanted`.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn record_line(
        &self,
        table: &str,
        cells: &[Vec<u8>],
        wanted: impl Fn(&Line) -> bool,
    ) -> Result<Option<u64>, ExportError> {
        let leaf = self.record_leaf(table, cells)?;
        let before = |line: &Line| line.prev.map(|prev| prev.seq);
        self.walk(leaf.map(|leaf| leaf.last_seq), before, wanted)
    }

    /// The same among the lines that `counts`, if its row stands there: if none of them
    /// says later that it is gone.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn standing_row_line(
        &self,
        table: &str,
        cells: &[Vec<u8>],
        counts: impl Fn(&Line) -> bool,
    ) -> Result<Option<u64>, ExportError> {
        let last = self.record_line(table, cells, |line| {
            counts(line) && (line.row.is_some() || line.op == Op::Delete)
        })?;
        match last {
            Some(last) => Ok(self.line(last)?.0.row.is_some().then_some(last)),
            None => Ok(None),
        }
    }

    fn record_leaf(&self, table: &str, cells: &[Vec<u8>]) -> Result<Option<Leaf>, ExportError> {
        let record = self.record_key(table, cells);
        Ok(self.view.state.record_leaf(table, &record)?)
    }

    /// The line after `seq` that erased the patient, if there is one.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn erased_by(&self, patient: &Patient, seq: u64) -> Result<Option<u64>, ExportError> {
        // The patient may have come back, and have very many lines since.
        let is_so = |line: &Line| line.op == Op::Erase && line.patient == Some(*patient);
        let (name, notes) = (
            patient.to_string(),
            erasure::notes(&self.layout).map_err(ReadError::from)?,
        );
        let noted = erasure::noted(&notes).filter(|(noted, of)| *noted > seq && *of == name);
        for (noted, _) in noted.filter(|(noted, _)| *noted < self.lines_read()) {
            if is_so(&self.line(noted)?.0) {
                return Ok(Some(noted));
            }
        }
        let leaf = self.view.state.patient(patient)?;
        let before = |line: &Line| line.patient_prev.map(|prev| prev.seq);
        let before = |line: &Line| before(line).filter(|before| *before > seq);
        self.walk(leaf.map(|leaf| leaf.last_seq), before, |line| {
            line.seq > seq && is_so(line)
        })
    }

    /// The first line that is `wanted` from `next` back, at most [`WALK`] lines away.
    fn walk(
        &self,
        mut next: Option<u64>,
        before: impl Fn(&Line) -> Option<u64>,
        wanted: impl Fn(&Line) -> bool,
    ) -> Result<Option<u64>, ExportError> {
        for _ in 0..WALK {
            let Some(seq) = next else { break };
            let (line, _) = self.line(seq)?;
            if wanted(&line) {
                return Ok(Some(seq));
            }
            next = before(&line);
        }
        Ok(None)
    }

    fn nonce(&self, key: &Key, seq: u64) -> LineNonce {
        let timeline = self.view.state.genesis().map_or(1, |g| g.timeline);
        LineNonce::new(key, self.keys.origin(), timeline, seq)
    }

    fn block_proof(
        &mut self,
        entry: &BlockEntry,
        size: u64,
        seal_of: &mut impl FnMut(u64, &[u8]) -> Vec<u8>,
    ) -> Result<BlockProof, ExportError> {
        let block = entry.leaf.block;
        let path = self.view.log().inclusion_proof(block, size)?;
        let path = path.ok_or(ExportError::NoHead)?;
        let seal = self.seal(entry)?;
        Ok(BlockProof {
            block,
            leaf: Blob(entry.leaf.encode()),
            path: path.into_iter().map(Bytes32).collect(),
            seal: seal.map(|seal| Blob(seal_of(block, &seal))),
        })
    }

    /// Proofs of lines of one block, with what of them is disclosed to `subject`.
    fn line_proofs(
        &mut self,
        entry: &BlockEntry,
        lines: Vec<Line>,
        subject: Patient,
        room: &mut Room,
    ) -> Result<Vec<LineProof>, ExportError> {
        if lines.is_empty() {
            return Ok(Vec::new());
        }
        let outline = self.outline(entry)?;
        let mut proofs = Vec::with_capacity(lines.len());
        for line in lines {
            proofs.push(LineProof {
                block: entry.leaf.block,
                chain: self.line_chain(entry, &outline, line.seq)?,
                open: self.opening(&line, subject, room)?,
                line,
            });
        }
        Ok(proofs)
    }

    /// The path from a line to its block's root, made from the lines around it.
    fn line_chain(
        &self,
        entry: &BlockEntry,
        outline: &Outline,
        seq: u64,
    ) -> Result<Blob, ExportError> {
        let unreadable = || ExportError::Line(seq);
        let first = entry.leaf.first_seq;
        let around = outline.lines_around(seq - first).ok_or_else(unreadable)?;
        let (begin, count) = (first + around.start, around.end - around.start);
        let text = self.view.index.lines(&self.layout, begin, count)?;
        let text = text.ok_or_else(unreadable)?;
        let chain = outline.chain(seq - first, Lines::new(&text));
        let chain = chain.ok_or_else(unreadable)?;
        if chain.root() != (entry.leaf.root.0, entry.leaf.level) {
            return Err(ExportError::Block(entry.leaf.block));
        }
        Ok(Blob(chain.encode().map_err(|_| unreadable())?))
    }

    /// The block of a line, which is in one.
    fn sealed_block_of(&self, seq: u64) -> Result<BlockEntry, ExportError> {
        self.block_of(seq)?.ok_or(ExportError::Line(seq))
    }

    fn block(&self, block: u64) -> Result<BlockEntry, ExportError> {
        let entry = self.view.index.block(block, self.origin())?;
        entry.ok_or(ExportError::NoHead)
    }

    fn map_entry(&mut self, patient: &Patient) -> Result<MapEntry, ExportError> {
        let leaf = self.view.state.patient(patient)?;
        Ok(MapEntry {
            before: None,
            leaf: leaf.map(|leaf| Blob(leaf.encode())),
            path: self.view.state.prove_patient(patient)?,
        })
    }
}

/// The entry of a list of which the first `before` lines are not shown.
fn starting_after(before: u64, entry: MapEntry) -> MapEntry {
    MapEntry {
        before: (before > 0).then_some(before),
        ..entry
    }
}

/// A head in `path` that the trail's own key signed.
fn head_in(path: &Path, keys: &Keys) -> Option<(Note, Head)> {
    let note = Note::parse(&std::fs::read(path).ok()?).ok()?;
    let head = Head::open(&note, keys.origin(), &keys.log().verifier()).ok()?;
    Some((note, head))
}

/// The newest auditor's statement, and the number of blocks that it is about.
fn audit_of(layout: &Layout) -> Option<(String, u64)> {
    let text = std::fs::read_to_string(layout.audit()).ok()?;
    let note = Note::parse(text.as_bytes()).ok()?;
    let statement = Statement::parse(note.text()).ok()?;
    Some((text, statement.size))
}

/// The trail, or its first `until` blocks: the map's newest commit that is not
/// beyond them, and what came after it read on top. Without such a commit, the
/// segments are read from the genesis on, into memory.
fn view(layout: &Layout, until: Option<u64>) -> Result<View<ReadPages<OsFolder>>, ExportError> {
    match map::beside_writer(|| view_on_map(layout, until)) {
        Ok(Some(view)) => return Ok(view),
        Ok(None) | Err(ReadError::Map(MapError::Damaged { .. })) => {}
        Err(error) => return Err(error.into()),
    }
    let start = Start {
        tree: Tree::default(),
        index: Index::default(),
        commit: None,
    };
    Ok(read::read_on(
        layout,
        until,
        start,
        &mut read::Unseen,
        false,
    )?)
}

/// Lines of a list that are looked through for one of them.
const WALK: usize = 10_000;

fn view_on_map(
    layout: &Layout,
    until: Option<u64>,
) -> Result<Option<View<ReadPages<OsFolder>>>, ReadError> {
    let folder = OsFolder::new(layout.map());
    let opened = map::read(folder.clone(), until.unwrap_or(u64::MAX))?;
    let Some((tree, commit)) = opened else {
        return Ok(None);
    };
    let index = Index::open(&folder, commit.blocks, commit.next_seq, false)?;
    let commit = read::ends_with(layout, &index, commit)?;
    let start = Start {
        tree,
        index,
        commit: Some(commit),
    };
    read::read_on(layout, until, start, &mut read::Unseen, false).map(Some)
}
