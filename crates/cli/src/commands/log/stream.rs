//! Logs and log signatures piece by piece: what is held in memory depends on the
//! longest block, not on the length of the files.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use pitser_ksi::hash::Imprint;
use pitser_ksi::logsig::{
    self, Block, BlockReader, Format, IntegrationError, MAGIC_LEN, SealReader, SealRecord,
};
use pitser_ksi::{DecodeError, DecodeErrorKind};

use super::malformed;
use crate::files;
use crate::outcome::Failure;

/// A file, of which a stretch is in memory.
pub(super) struct Window<'f> {
    path: PathBuf,
    source: Box<dyn Read + 'f>,
    /// The stretch is what lies from `start` to `end`; beyond it there is room.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Position of the stretch in the file, in bytes.
    at: usize,
    is_complete: bool,
}

impl<'f> Window<'f> {
    /// Opens `path`; `-` is the standard input.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        if path.as_os_str() == files::STANDARD {
            return Ok(Self::new(path, Box::new(io::stdin().lock())));
        }
        let file = File::open(path).map_err(|e| unreadable(path, &e))?;
        Ok(Self::new(path, Box::new(file)))
    }

    /// What was read from `path` before.
    pub(super) fn of(path: &Path, bytes: &'f [u8]) -> Self {
        Self::new(path, Box::new(bytes))
    }

    fn new(path: &Path, source: Box<dyn Read + 'f>) -> Self {
        Self {
            path: path.to_owned(),
            source,
            buffer: Vec::new(),
            start: 0,
            end: 0,
            at: 0,
            is_complete: false,
        }
    }

    /// What the first bytes say that the file is.
    pub(super) fn format(&mut self) -> Result<Option<Format>, Failure> {
        while self.stretch().len() < MAGIC_LEN && !self.is_complete {
            self.read_on()?;
        }
        Ok(Format::of(self.stretch()))
    }

    /// All that is left of the file.
    pub(super) fn read_all(&mut self) -> Result<&[u8], Failure> {
        while !self.is_complete {
            self.read_on()?;
        }
        Ok(self.stretch())
    }

    /// Takes out the next item, whose length `measure` tells once it is all there;
    /// `None` at the end.
    fn next_item(
        &mut self,
        measure: impl Fn(&[u8]) -> Result<Option<usize>, DecodeError>,
    ) -> Result<Option<Vec<u8>>, Failure> {
        let at = self.at;
        loop {
            let stretch = self.stretch();
            if let Some(length) = measure(stretch).map_err(|e| malformed(&self.path, e))? {
                let item = stretch[..length].to_vec();
                self.consume(length);
                return Ok(Some(item));
            }
            if self.is_complete && stretch.is_empty() {
                return Ok(None);
            }
            if self.is_complete {
                let end = DecodeError::new(DecodeErrorKind::Truncated, at + stretch.len());
                let text = format!("{end}: what begins at byte {at} is cut off");
                return Err(malformed(&self.path, text));
            }
            if stretch.len() > LONGEST_BLOCK {
                let text =
                    format!("the block at byte {at} does not end within {LONGEST_BLOCK} bytes");
                return Err(malformed(&self.path, text));
            }
            self.read_on()?;
        }
    }

    fn stretch(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    fn consume(&mut self, length: usize) {
        self.start += length;
        self.at += length;
    }

    /// Lengthens the stretch: by a piece, or by as much as it is long already, so
    /// that to look again at what has grown costs no more than the growth.
    fn read_on(&mut self) -> Result<(), Failure> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let wanted = self.end + PIECE.max(self.end);
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
        while self.end < wanted {
            match self.source.read(&mut self.buffer[self.end..wanted]) {
                Ok(0) => {
                    self.is_complete = true;
                    return Ok(());
                }
                Ok(length) => self.end += length,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(unreadable(&self.path, &e)),
            }
        }
        Ok(())
    }
}

/// Bytes read at once.
const PIECE: usize = 256 * 1024;

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let text = format!("cannot read {}: {error}", path.display());
    match error.kind() {
        ErrorKind::NotFound
        | ErrorKind::PermissionDenied
        | ErrorKind::NotADirectory
        | ErrorKind::IsADirectory => Failure::Input(text),
        _ => Failure::Service(text),
    }
}

/// The lines of a log.
pub(super) struct LogLines<'f> {
    window: Window<'f>,
    leaves_open_line: bool,
}

impl<'f> LogLines<'f> {
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let window = Window::open(path)?;
        Ok(Self {
            window,
            leaves_open_line: false,
        })
    }

    /// From here on what stands at the end without a line end is no line.
    pub(super) fn leave_open_line(&mut self) {
        self.leaves_open_line = true;
    }

    /// Whether such a line was left.
    pub(super) fn is_open(&self) -> bool {
        self.leaves_open_line && !self.window.stretch().is_empty()
    }

    /// The first line of `bytes`, with its end, and its length; `None` if it is not whole.
    fn next_line<'b>(&self, bytes: &'b [u8]) -> Option<(&'b [u8], usize)> {
        let is_all = self.window.is_complete && !self.leaves_open_line;
        logsig::next_line(bytes, is_all)
    }

    /// Takes out the next lines, at most `count` of them and not many: their
    /// number, and their bytes with all line ends. `None` at the end.
    pub(super) fn take(&mut self, count: u64) -> Result<Option<(u64, Vec<u8>)>, Failure> {
        self.step(count, <[u8]>::to_vec)
    }

    /// Takes out the next `count` lines; `None` if there are fewer.
    pub(super) fn take_all(&mut self, count: u64) -> Result<Option<Vec<u8>>, Failure> {
        let (mut bytes, mut left) = (Vec::new(), count);
        while left > 0 {
            let taken = self.step(left, |lines| bytes.extend_from_slice(lines))?;
            let Some((taken, ())) = taken else {
                return Ok(None);
            };
            left -= taken;
        }
        Ok(Some(bytes))
    }

    /// Steps over the next `count` lines, or as many as there are; tells how many.
    pub(super) fn skip(&mut self, count: u64) -> Result<u64, Failure> {
        let mut skipped = 0;
        while skipped < count
            && let Some((taken, ())) = self.step(count - skipped, |_| ())?
        {
            skipped += taken;
        }
        Ok(skipped)
    }

    /// Whether another line follows.
    pub(super) fn has_more(&mut self) -> Result<bool, Failure> {
        loop {
            let stretch = self.window.stretch();
            let is_some = match self.leaves_open_line {
                true => self.next_line(stretch).is_some(),
                false => !stretch.is_empty(),
            };
            if is_some || self.window.is_complete {
                return Ok(is_some);
            }
            self.window.read_on()?;
        }
    }

    /// Shows the next lines, at most `count` of them and not many, with all line
    /// ends, and steps over them; tells their number. `None` at the end.
    pub(super) fn step<T>(
        &mut self,
        count: u64,
        see: impl FnOnce(&[u8]) -> T,
    ) -> Result<Option<(u64, T)>, Failure> {
        if count == 0 {
            return Ok(None);
        }
        loop {
            let stretch = self.window.stretch();
            let (mut lines, mut end) = (0, 0);
            while lines < count
                && let Some((_, length)) = self.next_line(&stretch[end..])
            {
                lines += 1;
                end += length;
            }
            if lines > 0 {
                let seen = see(&stretch[..end]);
                self.window.consume(end);
                return Ok(Some((lines, seen)));
            }
            if self.window.is_complete {
                return Ok(None);
            }
            self.window.read_on()?;
        }
    }
}

/// The blocks of a log signature; those of a folder of parts with the seals that
/// have come.
pub(super) struct Blocks<'f> {
    window: Window<'f>,
    format: Format,
    seals: Option<Seals<'f>>,
}

/// The bytes of one block.
pub(super) struct OwnedBlock {
    bytes: Vec<u8>,
    at: usize,
}

impl OwnedBlock {
    /// A block that was just built, with its 0904.
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn get(&self) -> Block<'_> {
        logsig::read_block(&self.bytes, self.at)
            .ok()
            .flatten()
            .expect("these bytes were read as a block before")
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The same block with `seal`, a whole 0904, in place of its own.
    pub(super) fn with_seal(mut self, seal: &[u8]) -> Self {
        let length = self.get().unsealed_bytes().len();
        self.bytes.truncate(length);
        self.bytes.extend_from_slice(seal);
        self
    }
}

impl<'f> Blocks<'f> {
    /// The blocks in a log signature, or in a folder of parts.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        if !path.is_dir() {
            return Self::new(Window::open(path)?);
        }
        let part = |name: &str| {
            let part = path.join(name);
            File::open(&part)
                .map(|file| Window::new(&part, Box::new(file)))
                .map_err(|e| unreadable(&part, &e))
        };
        let mut blocks = Self::new(part("blocks.dat")?)?;
        blocks.seals = Some(Seals::new(part("block-signatures.dat")?)?);
        Ok(blocks)
    }

    pub(super) fn new(mut window: Window<'f>) -> Result<Self, Failure> {
        window.format()?;
        let format = BlockReader::new(window.stretch())
            .map_err(|e| malformed(&window.path, e))?
            .format();
        window.consume(MAGIC_LEN);
        Ok(Self {
            window,
            format,
            seals: None,
        })
    }

    pub(super) fn format(&self) -> Format {
        self.format
    }

    /// The next block; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<OwnedBlock>, Failure> {
        let at = self.window.at;
        let block = self.window.next_item(|stretch| {
            logsig::read_block(stretch, at).map(|block| block.map(|it| it.bytes.len()))
        })?;
        let block = block.map(|bytes| OwnedBlock { bytes, at });
        match (block, &mut self.seals) {
            (Some(block), Some(seals)) => Ok(Some(match seals.take_for(&block)? {
                Some(seal) => block.with_seal(&seal),
                None => block,
            })),
            (None, Some(seals)) => seals.end().map(|()| None),
            (block, None) => Ok(block),
        }
    }
}

/// Seals that came later, in the order of their blocks.
struct Seals<'f> {
    window: Window<'f>,
    next: Option<LaterSeal>,
}

struct LaterSeal {
    at: usize,
    bytes: Vec<u8>,
    /// What it is of: a block of so many records, with this root.
    of: (u64, Option<Imprint>),
}

impl<'f> Seals<'f> {
    fn new(mut window: Window<'f>) -> Result<Self, Failure> {
        window.format()?;
        SealReader::new(window.stretch()).map_err(|e| malformed(&window.path, e))?;
        window.consume(MAGIC_LEN);
        let mut seals = Self { window, next: None };
        seals.read_on()?;
        Ok(seals)
    }

    fn read_on(&mut self) -> Result<(), Failure> {
        let at = self.window.at;
        let bytes = self.window.next_item(|stretch| {
            logsig::read_seal(stretch, at).map(|seal| seal.map(|it| it.bytes.len()))
        })?;
        self.next = match bytes {
            None => None,
            Some(bytes) => {
                let seal = logsig::read_seal(&bytes, at)
                    .ok()
                    .flatten()
                    .expect("these bytes were read as a seal before");
                let of = what_it_is_of(&seal).map_err(|e| {
                    malformed(&self.window.path, format_args!("seal at byte {at}: {e}"))
                })?;
                Some(LaterSeal { at, bytes, of })
            }
        };
        Ok(())
    }

    /// The next seal, if it is of `block`.
    fn take_for(&mut self, block: &OwnedBlock) -> Result<Option<Vec<u8>>, Failure> {
        let Some(next) = &self.next else {
            return Ok(None);
        };
        let of = what_it_is_of(&block.get().seal).map_err(|e| {
            malformed(
                &self.window.path,
                format_args!("block at byte {}: {e}", block.at),
            )
        })?;
        if next.of != of {
            return Ok(None);
        }
        let seal = self.next.take().map(|next| next.bytes);
        self.read_on()?;
        Ok(seal)
    }

    /// Asserts that none is left over.
    fn end(&self) -> Result<(), Failure> {
        match &self.next {
            None => Ok(()),
            Some(LaterSeal { at, .. }) => Err(malformed(
                &self.window.path,
                IntegrationError::StraySeal { at: *at },
            )),
        }
    }
}

fn what_it_is_of(seal: &SealRecord<'_>) -> Result<(u64, Option<Imprint>), DecodeError> {
    Ok((seal.count, seal.root()?))
}

/// Beyond what any writer makes: with all hashes stored, a block over 2^20 lines
/// takes 120 MB.
const LONGEST_BLOCK: usize = 1 << 28;

#[cfg(test)]
mod tests {
    use super::*;

    /// Hands out its bytes a few at a time.
    struct Drops<'b>(&'b [u8], usize);

    impl Read for Drops<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = self.1.min(buffer.len()).min(self.0.len());
            buffer[..length].copy_from_slice(&self.0[..length]);
            self.0 = &self.0[length..];
            Ok(length)
        }
    }

    fn lines(log: &[u8]) -> LogLines<'_> {
        LogLines {
            window: Window::new(Path::new("log"), Box::new(Drops(log, 1000))),
            leaves_open_line: false,
        }
    }

    #[test]
    fn lines_are_whole_wherever_pieces_end() {
        let mut log = Vec::new();
        for number in 0..100_000 {
            let end = ["\n", "\r\n", "\r"][number % 3];
            log.extend(format!("{number:width$}{end}", width = number % 40).into_bytes());
        }
        let mut stream = lines(&log);
        let (mut seen, mut bytes) = (0, Vec::new());
        while let Some((count, piece)) = stream.take(7001).unwrap() {
            assert!(count <= 7001);
            assert_eq!(logsig::Lines::new(&piece).count() as u64, count);
            seen += count;
            bytes.extend(piece);
        }
        assert_eq!(seen, 100_000);
        assert!(bytes == log);
        assert!(stream.window.buffer.len() <= 2 * PIECE);
    }

    #[test]
    fn lines_are_taken_and_skipped() {
        let mut stream = lines(b"one\ntwo\r\n\nfour");
        assert_eq!(stream.skip(1).unwrap(), 1);
        assert_eq!(stream.take_all(2).unwrap().unwrap(), b"two\r\n\n");
        assert_eq!(stream.skip(0).unwrap(), 0);
        assert_eq!(stream.skip(9).unwrap(), 1);
        assert!(stream.take_all(1).unwrap().is_none());
    }

    #[test]
    fn a_long_line_is_a_line() {
        let log = [vec![b'x'; 3 * PIECE], b"\ny".to_vec()].concat();
        let mut stream = lines(&log);
        assert_eq!(stream.take_all(1).unwrap().unwrap().len(), 3 * PIECE + 1);
        assert_eq!(stream.skip(9).unwrap(), 1);
    }
}
