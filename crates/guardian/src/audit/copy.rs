//! An auditor's own copy of a trail that a guardian serves: fetched in pieces, from where
//! the last fetch ended, up to the blocks of a cosigned head.
//!
//! ```text
//! trails/<genesis>/copy/trail/…      segments as the guardian has them (pitser_trail::layout)
//! trails/<genesis>/copy/head.note    the head that it was fetched up to
//! trails/<genesis>/copy/whole        how many segments are whole, and their blocks
//! ```
//! Blocks under a cosigned head are durable at the guardian before the head is: lines and
//! blocks after them may still be cut off there by a crash, so they are not kept here.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use pitser_ksi::logsig::{self, MAGIC_LEN};
use pitser_tlog::note::SigningKey;
use pitser_trail::Layout;
use pitser_trail::disk::{self, At, DiskError};
use pitser_trail::serve::Part;
use serde::{Deserialize, Serialize};

use super::desk::{PIECE, SEGMENTS, SegmentState};
use super::remote::{RemoteError, Site};

/// Bytes of one file of a segment, at most: a segment is read into memory. An
/// operator's are closed at 64 MiB unless he has configured otherwise.
const FILE_MAX: u64 = 512 << 20;
/// A segment's files may change while they are fetched; so often it is tried again.
const ATTEMPTS: usize = 4;

/// A copy, and where it comes from.
pub(super) struct Copy<'a> {
    pub(super) site: &'a Site,
    pub(super) key: &'a SigningKey,
    pub(super) layout: Layout,
    /// Told the bytes that were fetched.
    pub(super) progress: &'a mut dyn FnMut(u64),
    pub(super) fetched: u64,
}

/// What of the copy is not fetched again.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Whole {
    /// The first segments, closed and sealed.
    segments: u32,
    /// Their blocks.
    blocks: u64,
}

/// Blocks of a signature file.
#[derive(Debug, Default, PartialEq, Eq)]
struct Survey {
    blocks: u64,
    lines: u64,
    /// Where the last of them ends.
    end: usize,
}

/// Why a segment was not fetched.
enum Missed {
    /// Its files changed meanwhile: it was closed, or archived.
    Changed,
    Failed(RemoteError),
}

impl<E: Into<RemoteError>> From<E> for Missed {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl Copy<'_> {
    /// Fetches what there is of the first `blocks` blocks. Less, if the guardian has less:
    /// that is for the replay to say.
    pub(super) fn fetch(&mut self, blocks: u64) -> Result<(), RemoteError> {
        disk::private_dir(&self.layout.segments())?;
        let mut whole = self.whole();
        // Segments that wait for seals are looked at again, however old they are.
        let (mut number, mut covered, mut is_whole) = (whole.segments, whole.blocks, true);
        while covered < blocks {
            let listed = self.site.state(self.key, u64::MAX, 0, number)?.segments;
            if number == 0 && listed.is_empty() {
                return Err(self
                    .site
                    .unfit("it has a head, and no segment of its trail"));
            }
            let is_last = listed.len() < SEGMENTS as usize;
            for found in listed {
                let found = self.segment(number, found, blocks - covered)?;
                // Damage, which the replay is to find: what comes after it is not wanted.
                if found.blocks == 0 {
                    return Ok(());
                }
                covered += found.blocks;
                number += 1;
                is_whole &= found.is_closed;
                if is_whole {
                    whole = Whole {
                        segments: number,
                        blocks: covered,
                    };
                    self.keep(whole)?;
                }
                if covered >= blocks {
                    return Ok(());
                }
            }
            if is_last {
                return Ok(());
            }
        }
        Ok(())
    }

    fn whole(&self) -> Whole {
        let text = fs::read(self.layout.dir().join("whole")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    fn keep(&self, whole: Whole) -> Result<(), DiskError> {
        let text = serde_json::to_vec(&whole).expect("two numbers");
        disk::replace(&self.layout.dir().join("whole"), &text)
    }

    /// Fetches a segment's files, up to its first `blocks` blocks.
    fn segment(
        &mut self,
        number: u32,
        mut found: SegmentState,
        blocks: u64,
    ) -> Result<Fetched, RemoteError> {
        for _ in 0..ATTEMPTS {
            let fetched = match found.signature {
                Some(signature) => self.closed(number, found, signature),
                None => self.open(number, found, blocks),
            };
            match fetched {
                Ok(fetched) => return Ok(fetched),
                Err(Missed::Failed(error)) => return Err(error),
                Err(Missed::Changed) => {}
            }
            let state = self.site.state(self.key, u64::MAX, 0, number)?;
            let again = state.segments.first().copied();
            found = again.ok_or_else(|| self.gone(number))?;
        }
        Err(self.gone(number))
    }

    fn gone(&self, number: u32) -> RemoteError {
        let what = format!("the files of its segment {number} are not as long as it says");
        self.site.unfit(what)
    }

    fn closed(
        &mut self,
        number: u32,
        found: SegmentState,
        signature: u64,
    ) -> Result<Fetched, Missed> {
        let lines = self.layout.segment(number);
        self.file(number, Part::Lines, &lines, found.lines)?;
        let path = self.layout.logsig(number);
        let beside = path.with_extension("logsig.fetched");
        self.file(number, Part::Signature, &beside, Some(signature))?;
        let survey = survey(&read(&beside)?, u64::MAX);
        fs::rename(&beside, &path).at(&path, "cannot replace")?;
        let parts = self.layout.parts(number);
        if parts.exists() {
            fs::remove_dir_all(&parts).at(&parts, "cannot remove")?;
        }
        Ok(Fetched {
            blocks: survey.blocks,
            is_closed: true,
        })
    }

    fn open(&mut self, number: u32, found: SegmentState, most: u64) -> Result<Fetched, Missed> {
        disk::private_dir(&self.layout.parts(number))?;
        let (seals, blocks) = (self.layout.seals(number), self.layout.blocks(number));
        let lines = self.layout.segment(number);
        self.file(number, Part::Seals, &seals, Some(found.seals.unwrap_or(0)))?;
        self.file(number, Part::Blocks, &blocks, found.blocks)?;
        self.file(number, Part::Lines, &lines, found.lines)?;
        let survey = survey(&read(&blocks)?, most);
        if survey.blocks == most {
            cut(&blocks, survey.end as u64)?;
            if let Some(end) = end_of_line(&lines, survey.lines)? {
                cut(&lines, end)?;
            }
        }
        Ok(Fetched {
            blocks: survey.blocks,
            is_closed: false,
        })
    }

    /// Fetches a file from where its copy ends up to byte `end`.
    fn file(
        &mut self,
        number: u32,
        part: Part,
        path: &Path,
        end: Option<u64>,
    ) -> Result<(), Missed> {
        let end = end.ok_or(Missed::Changed)?;
        if end > FILE_MAX {
            let what = format!("a file of its segment {number} has {end} bytes");
            return Err(Missed::Failed(self.site.unfit(what)));
        }
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .at(path, "cannot open")?;
        let mut at = file.metadata().at(path, "cannot look at")?.len();
        if at > end {
            // A crash there may have cut it, or it is another file.
            file.set_len(0).at(path, "cannot shorten")?;
            at = 0;
        }
        while at < end {
            let piece = self.site.piece(self.key, number, part, at)?;
            let mut piece = piece.ok_or(Missed::Changed)?;
            piece.truncate(usize::try_from(end - at).unwrap_or(usize::MAX));
            // It has all that was asked for, or the file is another one. Who answers in
            // crumbs would hold up whoever asks.
            if (piece.len() as u64) < (PIECE as u64).min(end - at) {
                return Err(Missed::Changed);
            }
            file.write_all(&piece).at(path, "cannot write")?;
            at += piece.len() as u64;
            self.fetched += piece.len() as u64;
            (self.progress)(self.fetched);
        }
        file.sync_data().at(path, "cannot make durable")?;
        Ok(())
    }
}

/// What came of fetching a segment.
struct Fetched {
    /// Blocks that are here of it.
    blocks: u64,
    /// It is closed and sealed: nothing more comes.
    is_closed: bool,
}

/// The first `most` blocks of a signature file or of an open segment's blocks. Ends
/// before whatever cannot be read.
fn survey(bytes: &[u8], most: u64) -> Survey {
    let mut survey = Survey {
        end: MAGIC_LEN,
        ..Survey::default()
    };
    while survey.blocks < most {
        let Some(rest) = bytes.get(survey.end..).filter(|rest| !rest.is_empty()) else {
            break;
        };
        let Ok(Some(block)) = logsig::read_block(rest, survey.end) else {
            break;
        };
        survey.end += block.bytes.len();
        survey.lines += block.line_count();
        survey.blocks += 1;
    }
    survey
}

/// Where line `count` of a file ends; `None` if it has fewer.
fn end_of_line(path: &Path, count: u64) -> Result<Option<u64>, DiskError> {
    let mut file = File::open(path).at(path, "cannot open")?;
    let (mut left, mut at) = (count, 0);
    let mut buffer = vec![0; 1 << 16];
    while left > 0 {
        let len = file.read(&mut buffer).at(path, "cannot read")?;
        if len == 0 {
            return Ok(None);
        }
        for (offset, byte) in buffer[..len].iter().enumerate() {
            if *byte == b'\n' {
                left -= 1;
                if left == 0 {
                    return Ok(Some(at + offset as u64 + 1));
                }
            }
        }
        at += len as u64;
    }
    Ok(Some(0))
}

fn read(path: &Path) -> Result<Vec<u8>, DiskError> {
    fs::read(path).at(path, "cannot read")
}

fn cut(path: &Path, len: u64) -> Result<(), DiskError> {
    let file = OpenOptions::new().write(true).open(path);
    file.and_then(|file| file.set_len(len))
        .at(path, "cannot shorten")
}
