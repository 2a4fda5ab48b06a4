//! A log as static files (c2sp.org/tlog-tiles).
//!
//! ```text
//! tile/<level>/<index>[.p/<width>]     width hashes of 32 bytes
//! tile/entries/<index>[.p/<width>]     width times: length:16 ‖ entry
//! ```
//!
//! A full tile is 256 wide. Hash `i` of tile `n` at level `l` covers leaves
//! `(256 n + i) * 256^l .. (256 n + i + 1) * 256^l`. Only complete hashes are in
//! tiles. An index is written in groups of three digits, all but the last one
//! with an `x` before it: 1234067 is `x001/x234/067`.

use std::fmt;

use crate::error::{DecodeError, DecodeErrorKind as Kind};
use crate::merkle::{Hash, Nodes, OutOfRange, node_hash};
use crate::text::parse_decimal;

/// Hashes in a full tile, entries in a full bundle.
pub const FULL_WIDTH: u16 = 256;

/// Tree levels that one tile spans.
const TILE_HEIGHT: u8 = 8;

/// Highest tile level of a log of fewer than 2^63 leaves.
const TOP_LEVEL: u8 = 7;

/// What a tile file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Content {
    /// The entries themselves.
    Entries,
    /// Hashes of this tile level, `0..=63`; leaf hashes at level 0.
    Hashes(u8),
}

/// One file of a tiled log. `Display` gives its path under the log's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tile {
    content: Content,
    index: u64,
    width: u16,
}

impl Tile {
    /// Tile `index` of its kind, as a log of `size` leaves has it; `None` if
    /// it has nothing there.
    pub fn at_size(content: Content, index: u64, size: u64) -> Option<Self> {
        let start = index.checked_mul(u64::from(FULL_WIDTH))?;
        let available = hashes_at(content, size).checked_sub(start)?;
        let width = available.min(u64::from(FULL_WIDTH)) as u16;
        (width > 0).then_some(Self {
            content,
            index,
            width,
        })
    }

    /// Reads a path, which must be the one that `Display` writes.
    ///
    /// # Errors
    /// Any other path.
    pub fn parse(path: &str) -> Result<Self, DecodeError> {
        let malformed = || DecodeError::new(Kind::Expected("tile/<level>/<index>[.p/<width>]"), 0);
        if path.len() > MAX_PATH_BYTES {
            return Err(malformed());
        }
        let (content, rest) = path
            .strip_prefix("tile/")
            .and_then(|rest| rest.split_once('/'))
            .ok_or_else(malformed)?;
        let content = match content {
            "entries" => Some(Content::Entries),
            level => parse_decimal(level)
                .and_then(|level| u8::try_from(level).ok())
                .filter(|level| *level < 64)
                .map(Content::Hashes),
        };
        let (index, width) = match rest.split_once(".p/") {
            None => (rest, Some(FULL_WIDTH)),
            Some((index, width)) => (index, parse_partial_width(width)),
        };
        let (Some(content), Some(index), Some(width)) = (content, parse_index(index), width) else {
            return Err(malformed());
        };
        Ok(Self {
            content,
            index,
            width,
        })
    }

    /// Whether it holds entries, or hashes of which level.
    pub fn content(&self) -> Content {
        self.content
    }

    /// Position among the tiles of its kind, from 0.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Hashes or entries in the file, `1..=256`.
    pub fn width(&self) -> u16 {
        self.width
    }

    /// Whether this file will be superseded by a wider one.
    pub fn is_partial(&self) -> bool {
        self.width < FULL_WIDTH
    }

    /// Length of the file in bytes; `None` for entries, whose length varies.
    pub fn hash_bytes(&self) -> Option<usize> {
        match self.content {
            Content::Entries => None,
            Content::Hashes(_) => Some(usize::from(self.width) * size_of::<Hash>()),
        }
    }
}

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.content {
            Content::Entries => f.write_str("tile/entries/")?,
            Content::Hashes(level) => write!(f, "tile/{level}/")?,
        }
        write_index(f, self.index / 1000)?;
        write!(f, "{:03}", self.index % 1000)?;
        if self.is_partial() {
            write!(f, ".p/{}", self.width)
        } else {
            Ok(())
        }
    }
}

/// The hash tiles to write when a log grows, lowest level first.
///
/// A tile that was partial at `old_size` and has grown is among them, at its
/// new width.
pub fn changed_tiles(old_size: u64, new_size: u64) -> impl Iterator<Item = Tile> {
    (0..=TOP_LEVEL)
        .map(Content::Hashes)
        .flat_map(move |content| changed(content, old_size, new_size))
}

/// The entry bundles to write when a log grows.
pub fn changed_bundles(old_size: u64, new_size: u64) -> impl Iterator<Item = Tile> {
    changed(Content::Entries, old_size, new_size)
}

/// The file of a hash tile.
///
/// # Errors
/// [`OutOfRange`] for a bundle of entries, or when `nodes` lacks a node.
pub fn tile_bytes<N: Nodes + ?Sized>(nodes: &N, tile: Tile) -> Result<Vec<u8>, N::Error> {
    let level = match tile.content {
        Content::Hashes(level @ 0..=TOP_LEVEL) => level * TILE_HEIGHT,
        _ => return Err(OutOfRange.into()),
    };
    let full = u64::from(FULL_WIDTH);
    let start = tile.index.checked_mul(full).ok_or(OutOfRange)?;
    let end = start.checked_add(tile.width.into()).ok_or(OutOfRange)?;
    let mut bytes = Vec::with_capacity(usize::from(tile.width) * size_of::<Hash>());
    for index in start..end {
        bytes.extend_from_slice(&nodes.node(level, index)?);
    }
    Ok(bytes)
}

/// The file of an entry bundle.
///
/// # Errors
/// More than 256 entries, or one of more than 65,535 bytes.
pub fn encode_bundle<'a>(
    entries: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Vec<u8>, DecodeError> {
    let mut bytes = Vec::new();
    for (index, entry) in entries.into_iter().enumerate() {
        if index == usize::from(FULL_WIDTH) {
            return Err(DecodeError::new(TOO_MANY_ENTRIES, bytes.len()));
        }
        let Ok(length) = u16::try_from(entry.len()) else {
            let max_bytes = usize::from(u16::MAX);
            return Err(DecodeError::new(Kind::TooLong { max_bytes }, bytes.len()));
        };
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(entry);
    }
    Ok(bytes)
}

/// The entries of a bundle file; check their count against the tile's width.
///
/// # Errors
/// More than 256 entries, or a file that ends inside one.
pub fn decode_bundle(bytes: &[u8]) -> Result<Vec<&[u8]>, DecodeError> {
    let mut entries = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let at = bytes.len() - rest.len();
        if entries.len() == usize::from(FULL_WIDTH) {
            return Err(DecodeError::new(TOO_MANY_ENTRIES, at));
        }
        let (entry, after) = rest
            .split_first_chunk()
            .and_then(|(length, rest)| rest.split_at_checked(u16::from_be_bytes(*length).into()))
            .ok_or(DecodeError::new(Kind::Truncated, at))?;
        entries.push(entry);
        rest = after;
    }
    Ok(entries)
}

/// A tree whose nodes are read from tiles.
///
/// The tiles are believed as they are: verify what is derived from them, a
/// root or a proof, against a signed head.
#[derive(Debug, Clone)]
pub struct TiledTree<F> {
    size: u64,
    read: F,
}

impl<F, E> TiledTree<F>
where
    F: Fn(Tile) -> Result<Vec<u8>, E>,
    E: From<OutOfRange>,
{
    /// The tree of `size` leaves whose tile files `read` returns.
    pub fn new(size: u64, read: F) -> Self {
        Self { size, read }
    }
}

impl<F, E> Nodes for TiledTree<F>
where
    F: Fn(Tile) -> Result<Vec<u8>, E>,
    E: From<OutOfRange>,
{
    type Error = E;

    fn node(&self, level: u8, index: u64) -> Result<Hash, E> {
        // A node inside a tile is the root of 2^height neighbouring hashes.
        let (tile_level, height) = (level / TILE_HEIGHT, level % TILE_HEIGHT);
        let first = index.checked_mul(1 << height).ok_or(OutOfRange)?;
        let content = Content::Hashes(tile_level);
        let tile = Tile::at_size(content, first / u64::from(FULL_WIDTH), self.size);
        let bytes = (self.read)(tile.ok_or(OutOfRange)?)?;
        let (hashes, _) = bytes.as_chunks();
        let start = (first % u64::from(FULL_WIDTH)) as usize;
        let covered = hashes.get(start..start + (1 << height));
        Ok(complete_root(covered.ok_or(OutOfRange)?.to_vec()))
    }
}

/// The root over a power of two of hashes.
fn complete_root(mut hashes: Vec<Hash>) -> Hash {
    while hashes.len() > 1 {
        let (pairs, _) = hashes.as_chunks();
        hashes = pairs.iter().map(|[l, r]| node_hash(l, r)).collect();
    }
    hashes[0]
}

fn changed(content: Content, old_size: u64, new_size: u64) -> impl Iterator<Item = Tile> {
    let full = u64::from(FULL_WIDTH);
    let (old, new) = (hashes_at(content, old_size), hashes_at(content, new_size));
    // Nothing has changed at a level that did not grow.
    let indices = if new > old {
        old / full..new.div_ceil(full)
    } else {
        0..0
    };
    indices.filter_map(move |index| Tile::at_size(content, index, new_size))
}

/// How many complete hashes, or entries, a log of `size` leaves has of a kind.
fn hashes_at(content: Content, size: u64) -> u64 {
    match content {
        Content::Entries => size,
        Content::Hashes(level) => size.checked_shr(8 * u32::from(level)).unwrap_or(0),
    }
}

/// Every group but the last.
fn write_index(f: &mut fmt::Formatter<'_>, groups: u64) -> fmt::Result {
    if groups > 0 {
        write_index(f, groups / 1000)?;
        write!(f, "x{:03}/", groups % 1000)?;
    }
    Ok(())
}

fn parse_index(path: &str) -> Option<u64> {
    let mut index = 0u64;
    let mut groups = path.split('/').peekable();
    let mut first = true;
    while let Some(group) = groups.next() {
        let digits = match groups.peek() {
            Some(_) => group.strip_prefix('x')?,
            None => group,
        };
        let three_digits = digits.len() == 3 && digits.bytes().all(|byte| byte.is_ascii_digit());
        // A leading group of zeroes would be a second name for the same tile.
        let redundant = first && groups.peek().is_some() && digits == "000";
        if !three_digits || redundant {
            return None;
        }
        index = index.checked_mul(1000)?.checked_add(digits.parse().ok()?)?;
        first = false;
    }
    Some(index)
}

fn parse_partial_width(width: &str) -> Option<u16> {
    parse_decimal(width)
        .and_then(|width| u16::try_from(width).ok())
        .filter(|width| (1..FULL_WIDTH).contains(width))
}

/// Seven groups of three digits name any tile.
const MAX_PATH_BYTES: usize = 64;
const TOO_MANY_ENTRIES: Kind = Kind::TooMany {
    what: "entries",
    max: FULL_WIDTH as usize,
};
