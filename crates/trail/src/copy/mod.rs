//! A copy of a trail, made beside its writer: a trail's folder itself, to be kept and, if
//! need be, put in the trail's place.
//!
//! Whoever copies files one after the other while they are written has parts of several
//! moments: lines that name a seal which came after the seals were copied, blocks without
//! their lines, a head over blocks that are not there. Here each part has what the others
//! need:
//!
//! | step | what is copied | why then |
//! |---|---|---|
//! | 1 | heads, statements, the guardian's own files | none is ahead of the lines |
//! | 2 | closed segments; of open ones blocks, and then lines: those of the blocks, and what came after | a block's lines are durable before it |
//! | 3 | seals of these blocks | a seal is durable before a line names it |
//! | 4 | the vault | what a line commits to is durable before the line |
//! | 5 | which lines erase | none was done in the vault that is not noted |
//!
//! What is in the target stays a copy all the time: segments are put together beside those
//! that are there, replayed, and only then take their place.
//!
//! ```text
//! TARGET/                 a trail's folder (layout.rs), without what is derived
//! TARGET/next/trail/      segments that are being put together
//! TARGET/trail.before/    while they take the others' place
//! TARGET/verified/        the map of what was replayed: the next copy goes on there
//! TARGET/copied           up to where seals were judged, and which files are ours
//! ```
//! A closed segment does not change: it is copied once, and then only named again. The
//! vault's files grow: what was added is copied. `keys.db` is copied whole each time, so
//! that a patient who was erased is gone from the copy, too.

mod notes;
mod segments;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use pitser_evidence::block::LogLeaf;
use pitser_evidence::line::Line;
use pitser_ksi::time::Second;

use crate::disk::{self, At, DiskError};
use crate::erasure;
use crate::layout::Layout;
use crate::map::{self, MapError, OsFolder};
use crate::read::{self, ReadError};
use crate::replay::{Replayed, Watch, forget, replay};
use crate::vault::{self, VaultError};
use crate::write::{TrailError, take_lock};
use notes::{Notes, Record};

/// What is copied.
#[derive(Debug, Clone, Copy, Default)]
pub struct CopyOptions {
    /// Whether the secret keys are left out, which never change: they are kept elsewhere.
    pub without_keys: bool,
}

/// How far a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// So many bytes are copied.
    Copied(u64),
    /// So many lines are replayed.
    Replayed(u64),
}

/// What the target has now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// Blocks.
    pub blocks: u64,
    /// Those of them that have their seal.
    pub sealed: u64,
    /// Lines, those after the last block too.
    pub lines: u64,
    /// Blocks that were replayed this time.
    pub replayed: u64,
    /// Bytes that were copied this time.
    pub bytes: u64,
    /// Whether secret keys are there, also such as somebody else has put there.
    pub has_keys: bool,
}

/// Why there is no copy of the trail as it is now. What the target had, it has.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The trail cannot be read, or is damaged.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A file cannot be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The vault cannot be copied.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// Somebody writes in the target.
    #[error("{}: another pitser writes there: a copy, or a guardian whose trail it is. Name another folder", .0.display())]
    Locked(PathBuf),
    /// The target is in the trail's folder, or that one in it.
    #[error("{}: this is the trail's own folder, or one has the other. Name a folder elsewhere", .0.display())]
    Inside(PathBuf),
    /// The target has another trail.
    #[error("{}: this is a copy of another trail. Name another folder", .0.display())]
    Other(PathBuf),
    /// The trail has fewer blocks than its copy.
    #[error(
        "TRL-03 {}: it has {trail} blocks, and its copy has {copied}. Keep both: one of them is evidence. \
         Name another folder for a copy of what the trail is now", path.display()
    )]
    Shorter {
        /// The trail.
        path: PathBuf,
        /// Its blocks.
        trail: u64,
        /// Those of the copy.
        copied: u64,
    },
    /// The trail does not go on from where its copy ends.
    #[error(
        "TRL-04 {}: it does not go on from its copy, which ends another way. Keep both: one of them is \
         evidence. Name another folder for a copy of what the trail is now", .0.display()
    )]
    Forked(PathBuf),
    /// Files went away while they were copied, again and again.
    #[error("{}: its files are moved while they are copied. Try again once nobody archives them", .0.display())]
    Moving(PathBuf),
}

impl From<MapError> for CopyError {
    fn from(error: MapError) -> Self {
        Self::Read(error.into())
    }
}

/// Copies a trail to `target`, which is empty or has an earlier copy of it. Safe beside the
/// trail's writer and readers, and to be repeated after whatever interrupted it.
///
/// Every block is replayed once, and each seal judged by itself once: what an earlier copy
/// has of them is not read again. What the vault holds is only looked at for whether it is
/// whole.
///
/// # Errors
/// [`CopyError`].
pub fn copy(
    trail: &Layout,
    target: &Path,
    options: CopyOptions,
    tell: &mut dyn FnMut(Progress),
) -> Result<Copied, CopyError> {
    if !trail.has_trail() {
        return Err(ReadError::Nothing(trail.dir().to_owned()).into());
    }
    disk::private_dir(target)?;
    refuse_inside(trail.dir(), target)?;
    let to = trail.elsewhere(target);
    let _lock = match take_lock(&to) {
        Ok(lock) => lock,
        Err(TrailError::Locked(_)) => return Err(CopyError::Locked(target.to_owned())),
        Err(TrailError::Disk(error)) => return Err(error.into()),
        Err(_) => return Err(CopyError::Locked(target.to_owned())),
    };
    put_back(&to)?;
    if to.has_trail() && read::genesis(&to)?.1 != read::genesis(trail)?.1 {
        return Err(CopyError::Other(target.to_owned()));
    }
    let mut copying = Copying {
        trail,
        next: to
            .elsewhere(target.join("next"))
            .with_map(target.join("verified")),
        record: Record::read(target)?,
        to,
        options,
        bytes: 0,
        tell,
    };
    copying.know_what_is_there()?;
    let mut tried = 1;
    loop {
        match copying.run() {
            // A segment was closed, or archived, or somebody erased, in between.
            Err(CopyError::Moving(_)) if tried < ATTEMPTS => tried += 1,
            done => return done,
        }
    }
}

/// What happens to a trail's files while they are copied happens once a day.
const ATTEMPTS: u32 = 10;

struct Copying<'a> {
    trail: &'a Layout,
    /// What is there from an earlier copy.
    to: Layout,
    /// What takes its place.
    next: Layout,
    record: Record,
    options: CopyOptions,
    bytes: u64,
    tell: &'a mut dyn FnMut(Progress),
}

impl Copying<'_> {
    /// Sees to it that what the target has is replayed: what is to take its place has to go
    /// on from there.
    fn know_what_is_there(&mut self) -> Result<(), CopyError> {
        let folder = OsFolder::new(self.next.map());
        if !self.to.has_trail() || matches!(map::newest(folder), Ok(Some(_))) {
            return Ok(());
        }
        let known = self.to.clone().with_map(self.next.map());
        forget(&known)?;
        self.record.judge_again();
        let blocks = read::check(&known)?.log().size();
        let tell = &mut *self.tell;
        replay(&known, blocks, &mut Judging::of(&self.record, tell))?;
        Ok(())
    }

    fn run(&mut self) -> Result<Copied, CopyError> {
        let notes = Notes::read(self.trail, self.options.without_keys)?;
        let staged = segments::stage(
            (self.trail, &self.to, &self.next),
            &mut self.bytes,
            self.tell,
        )?;
        let copied = self.verify(staged)?;
        let vault = self.to.vault();
        self.bytes += vault::copy(&self.trail.vault(), &vault)?;
        (self.tell)(Progress::Copied(self.bytes));
        let erasures = erasure::notes(self.trail)?;
        for (seq, patient) in erasure::noted(&erasures) {
            // The vault knows nothing of her any more, and the lines do not say so.
            if seq >= copied.lines && !vault::has_older(&vault, patient, seq)? {
                return Err(self.moving());
            }
        }
        self.take_place()?;
        notes.write(&self.to, &mut self.record)?;
        disk::replace(&self.to.erasures(), erasures.as_bytes())?;
        self.record.write(self.to.dir())?;
        let keys = [self.to.keys(), self.to.vault_key(), self.to.wrapped_key()];
        Ok(Copied {
            bytes: self.bytes,
            has_keys: keys.iter().any(|key| key.exists()),
            ..copied
        })
    }

    /// Replays what was put together, from where the copy before ended.
    fn verify(&mut self, staged: segments::Staged) -> Result<Copied, CopyError> {
        let blocks = match &staged.last_checkpoint {
            Some(line) => line.checkpoint.as_ref().map_or(0, |body| body.block + 1),
            None => 0,
        };
        let known = map::newest(OsFolder::new(self.next.map()))?;
        if let Some(known) = known.filter(|known| known.blocks > blocks) {
            return Err(CopyError::Shorter {
                path: self.trail.dir().to_owned(),
                trail: blocks,
                copied: known.blocks,
            });
        }
        let replayed = self.replay(blocks)?;
        let view = &replayed.view;
        let waiting = view.seals.waiting.len() as u64;
        let first = view.seals.waiting.front();
        self.record
            .judged(first.map_or(blocks, |leaf| leaf.block), view.sealed_at);
        let lines = view.state.next_seq() + staged.lines_after;
        Ok(Copied {
            blocks,
            sealed: blocks - waiting,
            lines,
            replayed: blocks - replayed.known,
            bytes: 0,
            has_keys: false,
        })
    }

    /// Goes on from what is known of the copy before. If that cannot be done it is replayed
    /// once more: it is either damaged, or leads elsewhere.
    fn replay(&mut self, blocks: u64) -> Result<Replayed, CopyError> {
        for known_again in [false, true] {
            let mut judging = Judging::of(&self.record, self.tell);
            match replay(&self.next, blocks, &mut judging) {
                Err(ReadError::Map(MapError::Damaged { .. })) if !known_again => {
                    forget(&self.next)?;
                    self.know_what_is_there()?;
                }
                Err(ReadError::Map(MapError::Damaged { .. })) => break,
                replayed => return Ok(replayed?),
            }
        }
        Err(CopyError::Forked(self.trail.dir().to_owned()))
    }

    /// The segments that were put together take the place of those that are there.
    fn take_place(&self) -> Result<(), DiskError> {
        let (there, next) = (self.to.segments(), self.next.segments());
        let before = self.to.before();
        if there.exists() {
            fs::rename(&there, &before).at(&there, "cannot rename")?;
        }
        fs::rename(&next, &there).at(&next, "cannot rename")?;
        disk::sync_dir(&there)?;
        remove_all(&before)?;
        remove_all(self.next.dir())
    }

    fn moving(&self) -> CopyError {
        CopyError::Moving(self.trail.dir().to_owned())
    }
}

/// After an interruption: segments whose place was not taken yet come back.
fn put_back(to: &Layout) -> Result<(), DiskError> {
    let (there, before) = (to.segments(), to.before());
    if before.exists() && !there.exists() {
        fs::rename(&before, &there).at(&before, "cannot rename")?;
    }
    remove_all(&before)
}

fn refuse_inside(trail: &Path, target: &Path) -> Result<(), CopyError> {
    let whole = |path: &Path| fs::canonicalize(path).at(path, "cannot look at");
    let (trail, whole_target) = (whole(trail)?, whole(target)?);
    match whole_target.starts_with(&trail) || trail.starts_with(&whole_target) {
        true => Err(CopyError::Inside(target.to_owned())),
        false => Ok(()),
    }
}

fn remove_all(folder: &Path) -> Result<(), DiskError> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.at(folder, "cannot remove"),
    }
}

/// Judges each seal by itself, once.
struct Judging<'a> {
    judged: u64,
    judged_at: Option<Second>,
    tell: &'a mut dyn FnMut(Progress),
}

impl<'a> Judging<'a> {
    fn of(record: &Record, tell: &'a mut dyn FnMut(Progress)) -> Self {
        let (judged, judged_at) = record.seals();
        Self {
            judged,
            judged_at,
            tell,
        }
    }
}

impl Watch for Judging<'_> {
    fn lines(&mut self, lines: u64) {
        (self.tell)(Progress::Replayed(lines));
    }

    fn judged(&self) -> u64 {
        self.judged
    }

    fn judged_at(&self) -> Option<Second> {
        self.judged_at
    }

    fn seal(&mut self, _: &LogLeaf, _: &[u8]) -> Result<(), String> {
        Ok(())
    }
}

/// The last line in `bytes`, if it is one.
fn last_line(bytes: &[u8]) -> Option<Line> {
    let bytes = bytes.strip_suffix(b"\n")?;
    let start = memchr::memrchr(b'\n', bytes).map_or(0, |at| at + 1);
    Line::decode(&bytes[start..]).ok()
}
