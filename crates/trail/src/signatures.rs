//! Signatures of single blocks, without reading all of their segment's.
//!
//! Of a closed segment it is noted where each block's seal stands in the log signature,
//! and an outline of the block's tree, in `outlines/NNNNNN`:
//!
//! ```text
//! "pitser outline\r\n" ‖ length of the log signature:8 ‖ blocks:8 ‖ crc:4
//! for each block: where its part begins:8
//! part    length:4 ‖ crc:4 ‖ where the seal record begins:8 ‖ its length:4 ‖ outline
//! ```
//! That is a byte a line and some 250 a block. The file is made from the log signature
//! when it is first asked for, and follows from it: whoever cannot keep it does without,
//! and what it leads to is compared with the blocks' roots. An archived segment's stays
//! here. Of an open segment everything is read; that is 64 MiB of lines at most.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::sync::Arc;

use pitser_evidence::finding::Code;
use pitser_ksi::hash::Imprint;
use pitser_ksi::logsig::{BlockReader, Outline, read_block, read_seal};

use crate::archive;
use crate::disk::{At, DiskError, private_dir};
use crate::keys::random;
use crate::layout::Layout;
use crate::read::{self, Damage, ReadError, SealedBlock};

const MAGIC: &[u8; 16] = b"pitser outline\r\n";
const HEAD: usize = MAGIC.len() + 8 + 8 + 4;

/// The signatures of one segment's blocks.
#[derive(Debug)]
pub(crate) struct Signatures {
    layout: Layout,
    segment: u32,
    kept: Kept,
}

#[derive(Debug)]
enum Kept {
    /// Of the open segment, or one that waits for seals: all of them.
    Open(Vec<SealedBlock>),
    /// Of a closed one.
    Closed {
        /// The log signature.
        signature: Source,
        outlines: Source,
    },
}

/// A file's bytes, here or fetched.
#[derive(Debug)]
enum Source {
    File(File),
    Memory(Arc<Vec<u8>>),
}

/// What is noted of a block.
struct Part {
    seal_at: u64,
    seal_length: u32,
    outline: Vec<u8>,
}

impl Signatures {
    /// Those of a segment.
    ///
    /// # Errors
    /// [`ReadError`].
    pub(crate) fn open(layout: &Layout, segment: u32) -> Result<Self, ReadError> {
        let kept = match log_signature(layout, segment)? {
            None => Kept::Open(read::signatures(layout, segment)?),
            Some(signature) => {
                let outlines = match noted(layout, segment, &signature) {
                    Some(outlines) => outlines,
                    None => note(layout, segment, &signature)?,
                };
                Kept::Closed {
                    signature,
                    outlines,
                }
            }
        };
        Ok(Self {
            layout: layout.clone(),
            segment,
            kept,
        })
    }

    /// The segment.
    pub(crate) fn segment(&self) -> u32 {
        self.segment
    }

    /// The seal of the segment's block `at`, counted from 0, as it stands there; `None`
    /// if it has not come.
    ///
    /// # Errors
    /// [`ReadError`] if there is no such block.
    pub(crate) fn seal(&mut self, at: u64) -> Result<Option<Vec<u8>>, ReadError> {
        if let Kept::Closed { outlines, .. } = &self.kept
            && part(outlines, at).is_none()
        {
            self.note_again()?;
        }
        let told = self.told_seal(at)?;
        told.ok_or_else(|| self.damage(at))
    }

    /// `None` if there is no such block, or what is noted leads to no seal.
    fn told_seal(&self, at: u64) -> Result<Option<Option<Vec<u8>>>, ReadError> {
        let (signature, outlines) = match &self.kept {
            Kept::Open(blocks) => return Ok(open_block(blocks, at).map(|b| b.seal.clone())),
            Kept::Closed {
                signature,
                outlines,
            } => (signature, outlines),
        };
        let Some(part) = part(outlines, at) else {
            return Ok(None);
        };
        let record = signature.read(part.seal_at, u64::from(part.seal_length));
        let record = record.at(&self.layout.logsig(self.segment), "cannot read")?;
        let record = record
            .as_deref()
            .and_then(|record| read_seal(record, 0).ok()?);
        Ok(record.map(|record| read::signature(&record.seal).map(<[u8]>::to_vec)))
    }

    /// The outline of block `at`'s tree, which has this root and level.
    ///
    /// # Errors
    /// [`ReadError`] if the block's stored hashes do not lead there.
    pub(crate) fn outline(&mut self, at: u64, root: (Imprint, u8)) -> Result<Outline, ReadError> {
        if let Some(outline) = self.told_outline(at, root) {
            return Ok(outline);
        }
        self.note_again()?;
        let outline = self.told_outline(at, root);
        outline.ok_or_else(|| self.damage(at))
    }

    fn told_outline(&self, at: u64, root: (Imprint, u8)) -> Option<Outline> {
        let outline = match &self.kept {
            Kept::Open(blocks) => {
                let block = read_block(&open_block(blocks, at)?.logsig, 0).ok()??;
                Outline::of_stored(&block)
            }
            Kept::Closed { outlines, .. } => Outline::decode(&part(outlines, at)?.outline),
        };
        outline.filter(|outline| outline.root() == Some(root))
    }

    /// Makes the outlines of a closed segment anew, which are not what was written.
    fn note_again(&mut self) -> Result<(), ReadError> {
        if let Kept::Closed {
            signature,
            outlines,
        } = &mut self.kept
        {
            *outlines = note(&self.layout, self.segment, signature)?;
        }
        Ok(())
    }

    fn damage(&self, at: u64) -> ReadError {
        let text = format!("it does not prove what was sealed in its block {at}");
        damage(&self.layout, self.segment, text).into()
    }
}

fn open_block(blocks: &[SealedBlock], at: u64) -> Option<&SealedBlock> {
    blocks.get(usize::try_from(at).ok()?)
}

fn damage(layout: &Layout, segment: u32, text: String) -> Damage {
    Damage {
        code: Code::LineAltered,
        path: layout.logsig(segment),
        line: None,
        text,
    }
}

/// The log signature of a segment; `None` as long as it is in parts.
fn log_signature(layout: &Layout, segment: u32) -> Result<Option<Source>, ReadError> {
    let path = layout.logsig(segment);
    match File::open(&path) {
        Ok(file) => Ok(Some(Source::File(file))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Ok(archive::signatures(layout, segment)?.map(Source::Memory))
        }
        Err(e) => Err(e).at(&path, "cannot open").map_err(Into::into),
    }
}

/// The outlines of a segment with this log signature, if they are kept.
fn noted(layout: &Layout, segment: u32, signature: &Source) -> Option<Source> {
    let kept = Source::File(File::open(layout.outlines(segment)).ok()?);
    let head = kept.read(0, HEAD as u64).ok()??;
    let (body, crc) = head.split_last_chunk()?;
    let (magic, lengths) = body.split_first_chunk()?;
    let (length, _) = lengths.split_first_chunk()?;
    let is_whole = magic == MAGIC && crc32fast::hash(body) == u32::from_be_bytes(*crc);
    let fits = is_whole && signature.length().ok() == Some(u64::from_be_bytes(*length));
    fits.then_some(kept)
}

/// Makes the outlines of a closed segment, and keeps them if that can be done.
fn note(layout: &Layout, segment: u32, signature: &Source) -> Result<Source, ReadError> {
    let path = layout.logsig(segment);
    let bytes = match signature {
        Source::Memory(bytes) => Arc::clone(bytes),
        Source::File(_) => Arc::new(fs::read(&path).at(&path, "cannot read")?),
    };
    let outlines = outlines(&bytes).map_err(|text| damage(layout, segment, text))?;
    if let Err(error) = keep(layout, segment, &outlines) {
        tracing::debug!(%error, "outlines are not kept, and made again when they are asked for");
    }
    Ok(Source::Memory(Arc::new(outlines)))
}

/// The outlines of a whole log signature.
fn outlines(signature: &[u8]) -> Result<Vec<u8>, String> {
    let mut parts: Vec<Vec<u8>> = Vec::new();
    for block in BlockReader::new(signature).map_err(|e| e.to_string())? {
        let block = block.map_err(|e| e.to_string())?;
        let outline = Outline::of_stored(&block);
        let outline = outline.ok_or("a block stores no hash of its lines")?;
        let mut part = (block.seal.at as u64).to_be_bytes().to_vec();
        // An element is below 128 KiB.
        part.extend((block.seal.bytes.len() as u32).to_be_bytes());
        part.extend(outline.encode());
        parts.push(part);
    }
    let mut bytes = MAGIC.to_vec();
    bytes.extend((signature.len() as u64).to_be_bytes());
    bytes.extend((parts.len() as u64).to_be_bytes());
    bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
    let mut at = (HEAD + 8 * parts.len()) as u64;
    for part in &parts {
        bytes.extend(at.to_be_bytes());
        at += 8 + part.len() as u64;
    }
    for part in &parts {
        // Shorter than the log signature, which is below 4 GiB.
        bytes.extend((part.len() as u32).to_be_bytes());
        bytes.extend(crc32fast::hash(part).to_be_bytes());
        bytes.extend(part);
    }
    Ok(bytes)
}

/// The part of block `at`, if it can be read and is what was written.
fn part(outlines: &Source, at: u64) -> Option<Part> {
    let read = |at, length| outlines.read(at, length).ok()?;
    let number = |at| Some(u64::from_be_bytes(read(at, 8)?.try_into().ok()?));
    let blocks = number(MAGIC.len() as u64 + 8)?;
    let start = number(HEAD as u64 + at.checked_mul(8).filter(|_| at < blocks)?)?;
    let lengths = read(start, 8)?;
    let (length, crc) = lengths.split_first_chunk()?;
    let length = u64::from(u32::from_be_bytes(*length));
    let body = read(start.checked_add(8)?, length)?;
    if crc32fast::hash(&body).to_be_bytes() != *crc {
        return None;
    }
    let (seal_at, rest) = body.split_first_chunk()?;
    let (seal_length, outline) = rest.split_first_chunk()?;
    Some(Part {
        seal_at: u64::from_be_bytes(*seal_at),
        seal_length: u32::from_be_bytes(*seal_length),
        outline: outline.to_vec(),
    })
}

/// Not durably: what is lost is made again.
fn keep(layout: &Layout, segment: u32, outlines: &[u8]) -> Result<(), DiskError> {
    let path = layout.outlines(segment);
    if let Some(folder) = path.parent() {
        private_dir(folder)?;
    }
    // Others may be at it, too.
    let tag = random().map_or(0, u32::from_be_bytes);
    let beside = path.with_extension(format!("{tag:08x}.new"));
    let mut options = OpenOptions::new();
    let created = options
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&beside);
    let mut file = created.at(&beside, "cannot create")?;
    let written = file.write_all(outlines).at(&beside, "cannot write");
    let kept = written.and_then(|()| fs::rename(&beside, &path).at(&path, "cannot replace"));
    if kept.is_err() {
        let _ = fs::remove_file(&beside);
    }
    kept
}

impl Source {
    /// Length in bytes.
    fn length(&self) -> io::Result<u64> {
        match self {
            Self::File(file) => Ok(file.metadata()?.len()),
            Self::Memory(bytes) => Ok(bytes.len() as u64),
        }
    }

    /// So many bytes from `at` on; `None` if there are fewer.
    fn read(&self, at: u64, length: u64) -> io::Result<Option<Vec<u8>>> {
        let end = at.checked_add(length);
        let whole = self.length()?;
        if end.is_none_or(|end| end > whole) {
            return Ok(None);
        }
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        match self {
            Self::File(file) => file.read_exact_at(&mut bytes, at)?,
            Self::Memory(whole) => {
                let start = usize::try_from(at).map_err(io::Error::other)?;
                bytes.copy_from_slice(&whole[start..start + length]);
            }
        }
        Ok(Some(bytes))
    }
}
