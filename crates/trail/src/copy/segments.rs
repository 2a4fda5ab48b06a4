//! Segments of a copy: what is there already is named again, the rest is copied.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use memchr::memmem;
use pitser_evidence::line::{Line, MAX_LINE};

use super::{CopyError, Progress, last_line};
use crate::archive;
use crate::disk::{self, At, DiskError};
use crate::layout::Layout;
use crate::read::{self, ReadError};

/// What was put together.
pub(super) struct Staged {
    /// The checkpoint of the last block.
    pub(super) last_checkpoint: Option<Line>,
    /// Lines after it.
    pub(super) lines_after: u64,
}

/// Puts the segments of `from` together in `to`, with those that `before` has already.
/// `bytes` counts what was copied.
pub(super) fn stage(
    (from, before, to): (&Layout, &Layout, &Layout),
    bytes: &mut u64,
    tell: &mut dyn FnMut(Progress),
) -> Result<Staged, CopyError> {
    let mut stage = Stage {
        from,
        before,
        to,
        bytes,
        tell,
    };
    disk::private_dir(&to.segments())?;
    let listed = from.segment_numbers();
    let numbers = listed.at(&from.segments(), "cannot list")?;
    stage.remove_others(&numbers)?;
    let mut open = Vec::new();
    for number in &numbers {
        let kind = stage.kind(*number);
        // Others have come since they were listed.
        if Some(number) == numbers.last()
            && !matches!(kind, Kind::Open)
            && from
                .segment_numbers()
                .at(&from.segments(), "cannot list")?
                .last()
                != Some(number)
        {
            return Err(stage.moving());
        }
        match kind {
            Kind::Archived => stage.archived(*number)?,
            Kind::Closed => stage.closed(*number)?,
            Kind::Open => open.push(stage.open(*number)?),
        }
    }
    // That of a later block shows that all before it are there.
    for segment in open.iter().rev() {
        stage.seals(segment)?;
    }
    let lines_after = open.last().map_or(0, |last| last.lines_after);
    disk::sync_dir(&to.segment(0))?;
    Ok(Staged {
        last_checkpoint: stage.last_checkpoint(&numbers, &open)?,
        lines_after,
    })
}

enum Kind {
    Archived,
    Closed,
    /// In parts: the last one, and those before it that wait for seals.
    Open,
}

/// An open segment whose blocks and lines are copied.
struct Open {
    number: u32,
    /// The blocks, whole ones.
    blocks: Vec<u8>,
    /// Where their lines end.
    end: u64,
    /// Lines after that.
    lines_after: u64,
}

struct Stage<'a> {
    from: &'a Layout,
    before: &'a Layout,
    to: &'a Layout,
    bytes: &'a mut u64,
    tell: &'a mut dyn FnMut(Progress),
}

impl Stage<'_> {
    fn kind(&self, number: u32) -> Kind {
        match (
            self.from.segment(number).exists() && self.from.logsig(number).exists(),
            self.from.receipt(number).exists(),
        ) {
            // Between the receipt and the removal of the files there are both.
            (true, _) => Kind::Closed,
            (false, true) => Kind::Archived,
            (false, false) => Kind::Open,
        }
    }

    fn archived(&mut self, number: u32) -> Result<(), CopyError> {
        let path = self.from.receipt(number);
        let receipt = self.read(&path)?.ok_or_else(|| self.moving())?;
        disk::replace(&self.to.receipt(number), &receipt)?;
        remove(&self.to.segment(number))?;
        remove(&self.to.logsig(number))?;
        Ok(super::remove_all(&self.to.parts(number))?)
    }

    fn closed(&mut self, number: u32) -> Result<(), CopyError> {
        for path in [Layout::segment, Layout::logsig] {
            let [from, before, to] =
                [self.from, self.before, self.to].map(|layout| path(layout, number));
            let size = match fs::metadata(&from) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(self.moving()),
                found => found.at(&from, "cannot look at")?.len(),
            };
            let is_there = |path: &Path| fs::metadata(path).is_ok_and(|it| it.len() == size);
            // An earlier run was interrupted after it had this one.
            if is_there(&to) {
                continue;
            }
            if is_there(&before) {
                remove(&to)?;
                if fs::hard_link(&before, &to).is_ok() {
                    continue;
                }
            }
            let file = File::open(&from).at(&from, "cannot open")?;
            self.write(&to, file.take(size), &from)?;
        }
        remove(&self.to.receipt(number))?;
        Ok(super::remove_all(&self.to.parts(number))?)
    }

    /// Blocks, then their lines, and those after them that no block has yet.
    fn open(&mut self, number: u32) -> Result<Open, CopyError> {
        remove(&self.to.logsig(number))?;
        remove(&self.to.receipt(number))?;
        disk::private_dir(&self.to.parts(number))?;
        let mut blocks = self.part(number, Layout::blocks)?;
        let whole = read::whole_blocks(self.from, number, &blocks)?;
        blocks.truncate(usize::try_from(whole.bytes).unwrap_or(usize::MAX));
        let path = self.from.segment(number);
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(self.moving()),
            file => file.at(&path, "cannot open")?,
        };
        let end = end_of(&file, whole.lines).at(&path, "cannot read")?;
        let (after, lines_after) = lines_after(&file, end).at(&path, "cannot read")?;
        (&file).rewind().at(&path, "cannot read")?;
        let lines = (&file).take(end).chain(&after[..]);
        self.write(&self.to.segment(number), lines, &path)?;
        disk::replace(&self.to.blocks(number), &blocks)?;
        *self.bytes += blocks.len() as u64;
        Ok(Open {
            number,
            blocks,
            end,
            lines_after,
        })
    }

    /// The seals of a segment's copied blocks, as far as they have come.
    fn seals(&mut self, segment: &Open) -> Result<(), CopyError> {
        let mut seals = self.part(segment.number, Layout::seals)?;
        let whole = read::whole_seals(self.from, segment.number, (&segment.blocks, &seals))?;
        seals.truncate(usize::try_from(whole).unwrap_or(usize::MAX));
        disk::replace(&self.to.seals(segment.number), &seals)?;
        *self.bytes += seals.len() as u64;
        (self.tell)(Progress::Copied(*self.bytes));
        Ok(())
    }

    /// A part of an open segment; empty if it was not begun.
    fn part(
        &mut self,
        number: u32,
        path: fn(&Layout, u32) -> std::path::PathBuf,
    ) -> Result<Vec<u8>, CopyError> {
        let read = self.read(&path(self.from, number))?;
        (self.tell)(Progress::Copied(*self.bytes));
        match read {
            Some(bytes) => Ok(bytes),
            None if self.from.logsig(number).exists() => Err(self.moving()),
            None if self.from.receipt(number).exists() => Err(self.moving()),
            None => Ok(Vec::new()),
        }
    }

    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, DiskError> {
        match fs::read(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.at(path, "cannot read").map(Some),
        }
    }

    /// Writes a new file in the place of `to`, whole or not at all, durably.
    fn write(&mut self, to: &Path, mut from: impl Read, of: &Path) -> Result<(), DiskError> {
        let beside = to.with_added_extension("new~");
        let mut options = OpenOptions::new();
        options.create(true).truncate(true).write(true).mode(0o600);
        let mut file = options.open(&beside).at(&beside, "cannot create")?;
        let mut part = vec![0; PART];
        loop {
            let read = from.read(&mut part).at(of, "cannot read")?;
            if read == 0 {
                break;
            }
            file.write_all(&part[..read]).at(&beside, "cannot write")?;
            *self.bytes += read as u64;
            (self.tell)(Progress::Copied(*self.bytes));
        }
        file.sync_all().at(&beside, "cannot make durable")?;
        fs::rename(&beside, to).at(to, "cannot replace")
    }

    /// What an earlier run has left of segments that are not there.
    fn remove_others(&self, numbers: &[u32]) -> Result<(), CopyError> {
        let listed = self.to.segment_numbers();
        for number in listed.at(&self.to.segments(), "cannot list")? {
            if numbers.binary_search(&number).is_err() {
                remove(&self.to.segment(number))?;
                remove(&self.to.logsig(number))?;
                remove(&self.to.receipt(number))?;
                super::remove_all(&self.to.parts(number))?;
            }
        }
        Ok(())
    }

    /// The line that the last block ends with.
    fn last_checkpoint(&self, numbers: &[u32], open: &[Open]) -> Result<Option<Line>, CopyError> {
        for number in numbers.iter().rev() {
            let end = match open.iter().find(|open| open.number == *number) {
                Some(open) if open.end == 0 => continue,
                Some(open) => Some(open.end),
                None => None,
            };
            let path = self.to.segment(*number);
            let last = match File::open(&path) {
                Ok(mut file) => {
                    let length = file.metadata().at(&path, "cannot look at")?.len();
                    let end = end.unwrap_or(length).min(length);
                    let start = end.saturating_sub(MAX_LINE as u64 + 2);
                    let mut bytes = Vec::new();
                    file.seek(SeekFrom::Start(start))
                        .and_then(|_| file.take(end - start).read_to_end(&mut bytes))
                        .at(&path, "cannot read")?;
                    last_line(&bytes)
                }
                Err(_) => archive::lines(self.to, *number)?.and_then(|lines| last_line(&lines)),
            };
            return match last.filter(|line| line.checkpoint.is_some()) {
                Some(last) => Ok(Some(last)),
                // Whoever reads all of it says what is wrong.
                None => match read::check(self.to) {
                    Err(error) => Err(error.into()),
                    Ok(_) => Err(ReadError::Nothing(path).into()),
                },
            };
        }
        Ok(None)
    }

    fn moving(&self) -> CopyError {
        CopyError::Moving(self.from.dir().to_owned())
    }
}

/// Where the first `lines` lines of a file end, or it does.
fn end_of(mut file: &File, mut lines: u64) -> io::Result<u64> {
    let mut part = vec![0; PART];
    let mut end = 0;
    while lines > 0 {
        let read = file.read(&mut part)?;
        if read == 0 {
            break;
        }
        let mut ends = memchr::memchr_iter(b'\n', &part[..read]);
        let found = ends
            .by_ref()
            .take(usize::try_from(lines).unwrap_or(usize::MAX));
        let (count, last) = found.fold((0, 0), |(count, _), at| (count + 1, at + 1));
        lines -= count;
        end += if lines == 0 { last } else { read } as u64;
    }
    Ok(end)
}

/// The whole lines after byte `end`, and their number, but for a checkpoint and what comes
/// after it: its block was not copied.
fn lines_after(mut file: &File, end: u64) -> io::Result<(Vec<u8>, u64)> {
    let length = file.metadata()?.len().saturating_sub(end);
    file.seek(SeekFrom::Start(end))?;
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes)?;
    // No text of a line has these bytes: its quotation marks are escaped.
    let finder = memmem::Finder::new(br#""op":"checkpoint""#);
    let (mut kept, mut lines) = (0, 0);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        if !line.ends_with(b"\n") || finder.find(line).is_some() {
            break;
        }
        kept += line.len();
        lines += 1;
    }
    bytes.truncate(kept);
    Ok((bytes, lines))
}

fn remove(path: &Path) -> Result<(), DiskError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.at(path, "cannot remove"),
    }
}

/// Bytes copied at a time.
const PART: usize = 1 << 20;
