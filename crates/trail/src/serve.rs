//! The bytes of a trail's segments for somebody elsewhere who reads them in pieces:
//! beside the writer, archived or not (docs/spec/64-audit-http.md §3).

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use crate::archive;
use crate::disk::At;
use crate::layout::Layout;
use crate::read::ReadError;

/// A file of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Its lines.
    Lines,
    /// Its blocks, while signatures are pending.
    Blocks,
    /// Its seals, while signatures are pending.
    Seals,
    /// Its log signature, once it is closed and sealed.
    Signature,
}

/// Lengths in bytes of a segment's files; `None` of those that are not there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Of [`Part::Lines`].
    pub lines: Option<u64>,
    /// Of [`Part::Blocks`].
    pub blocks: Option<u64>,
    /// Of [`Part::Seals`].
    pub seals: Option<u64>,
    /// Of [`Part::Signature`].
    pub signature: Option<u64>,
}

impl Part {
    fn path(self, layout: &Layout, number: u32) -> PathBuf {
        match self {
            Self::Lines => layout.segment(number),
            Self::Blocks => layout.blocks(number),
            Self::Seals => layout.seals(number),
            Self::Signature => layout.logsig(number),
        }
    }
}

/// How long a segment's files are now. Seals are looked at first and lines last: the
/// writer goes the other way, so that each has what the one before it needs.
///
/// # Errors
/// [`ReadError`] if they cannot be looked at.
pub fn sizes(layout: &Layout, number: u32) -> Result<Sizes, ReadError> {
    let size = |part: Part| {
        let path = part.path(layout, number);
        match std::fs::metadata(&path) {
            Ok(found) => Ok(Some(found.len())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).at(&path, "cannot look at"),
        }
    };
    let mut sizes = Sizes {
        signature: size(Part::Signature)?,
        seals: size(Part::Seals)?,
        blocks: size(Part::Blocks)?,
        lines: size(Part::Lines)?,
    };
    // Between the receipt and the removal of the files there are both.
    if let (None, Some((lines, signature))) = (sizes.lines, archive::sizes(layout, number)?) {
        sizes.lines = Some(lines);
        sizes.signature = Some(signature);
    }
    Ok(sizes)
}

/// Up to `max` bytes of a file from byte `from` on; `None` if it is not there, or
/// shorter.
///
/// # Errors
/// [`ReadError`] if it cannot be read.
pub fn piece(
    layout: &Layout,
    number: u32,
    part: Part,
    from: u64,
    max: usize,
) -> Result<Option<Vec<u8>>, ReadError> {
    let path = part.path(layout, number);
    let mut file = match File::open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return archived(layout, number, part, from, max);
        }
        file => file.at(&path, "cannot open")?,
    };
    if file.metadata().at(&path, "cannot look at")?.len() < from {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(from))
        .and_then(|_| file.take(max as u64).read_to_end(&mut bytes))
        .at(&path, "cannot read")?;
    Ok(Some(bytes))
}

fn archived(
    layout: &Layout,
    number: u32,
    part: Part,
    from: u64,
    max: usize,
) -> Result<Option<Vec<u8>>, ReadError> {
    let whole = match part {
        Part::Lines => archive::lines(layout, number)?,
        Part::Signature => archive::signatures(layout, number)?,
        Part::Blocks | Part::Seals => None,
    };
    Ok(whole.and_then(|whole| {
        let rest = whole.get(usize::try_from(from).ok()?..)?;
        Some(rest[..rest.len().min(max)].to_vec())
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_those_of_the_file_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        std::fs::create_dir_all(layout.parts(0)).unwrap();
        std::fs::write(layout.segment(0), b"0123456789").unwrap();
        std::fs::write(layout.blocks(0), b"blocks").unwrap();
        let found = sizes(&layout, 0).unwrap();
        let expected = Sizes {
            lines: Some(10),
            blocks: Some(6),
            ..Sizes::default()
        };
        assert_eq!(found, expected);
        assert_eq!(sizes(&layout, 1).unwrap(), Sizes::default());
        for (from, max, bytes) in [
            (0, 4, Some(&b"0123"[..])),
            (4, 100, Some(b"456789")),
            (10, 4, Some(b"")),
            (11, 4, None),
        ] {
            let piece = piece(&layout, 0, Part::Lines, from, max).unwrap();
            assert_eq!(piece.as_deref(), bytes, "{from} {max}");
        }
        assert_eq!(piece(&layout, 0, Part::Signature, 0, 4).unwrap(), None);
        assert_eq!(piece(&layout, 1, Part::Lines, 0, 4).unwrap(), None);
    }
}
