//! Tile paths and contents against the specification and `tlog_tiles`.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use std::collections::BTreeMap;
use std::str;

use pitser_tlog::error::DecodeErrorKind as Kind;
use pitser_tlog::merkle::{
    LogTree, OutOfRange, consistency_proof, inclusion_proof, leaf_hash, root,
};
use pitser_tlog::tiles::{
    Content, Tile, TiledTree, changed_bundles, changed_tiles, decode_bundle, encode_bundle,
    tile_bytes,
};
use proptest::prelude::*;

#[test]
fn paths_are_read_as_they_are_written() {
    let check = |path: &str, content, index, width| {
        let tile = Tile::parse(path).unwrap();
        assert_eq!(
            (tile.content(), tile.index(), tile.width()),
            (content, index, width)
        );
        assert_eq!(tile.to_string(), path);
    };
    check("tile/0/000", Content::Hashes(0), 0, 256);
    check("tile/0/x001/x234/067", Content::Hashes(0), 1_234_067, 256);
    check("tile/0/x001/000", Content::Hashes(0), 1000, 256);
    check("tile/63/999.p/255", Content::Hashes(63), 999, 255);
    check("tile/entries/x273/000.p/1", Content::Entries, 273_000, 1);
    check(
        "tile/1/x018/x446/x744/x073/x709/x551/615",
        Content::Hashes(1),
        u64::MAX,
        256,
    );
}

#[test]
fn each_tile_has_one_path() {
    let check = |path: &str| {
        let refused = Kind::Expected("tile/<level>/<index>[.p/<width>]");
        assert_eq!(Tile::parse(path).unwrap_err().kind, refused, "{path}");
    };
    check("");
    check("tile/0");
    check("tile/0/");
    check("/tile/0/000");
    check("tile/64/000");
    check("tile/00/000");
    check("tile/-1/000");
    check("tile/x/000");
    check("tile/0/0");
    check("tile/0/0000");
    check("tile/0/001/000");
    check("tile/0/x001");
    check("tile/0/x000/001");
    check("tile/0/x001/x000");
    check("tile/0/000.p/0");
    check("tile/0/000.p/256");
    check("tile/0/000.p/01");
    check("tile/0/000.p/");
    check("tile/0/000.p/1.p/1");
    check("tile/0/x018/x446/x744/x073/x709/x551/616");
    check("tile/0/../../etc/passwd");
    check(&format!("tile/0/{}000", "x000/".repeat(1000)));
}

/// The example of c2sp.org/tlog-tiles: a tree of 70,000 leaves.
#[test]
fn a_tree_of_70_000_leaves() {
    let tiles: Vec<Tile> = changed_tiles(0, 70_000).collect();
    let widths = |level| {
        let of_level = tiles
            .iter()
            .filter(|tile| tile.content() == Content::Hashes(level));
        let widths: Vec<u16> = of_level.map(|tile| tile.width()).collect();
        (widths.len(), *widths.last().unwrap())
    };
    assert_eq!(widths(0), (274, 112));
    assert_eq!(widths(1), (2, 17));
    assert_eq!(widths(2), (1, 1));
    assert_eq!(tiles.len(), 277);
    assert_eq!(changed_bundles(0, 70_000).count(), 274);
}

#[test]
fn growth_rewrites_only_what_grew() {
    let check = |old, new, expected: &[&str]| {
        let paths: Vec<String> = changed_tiles(old, new)
            .map(|tile| tile.to_string())
            .collect();
        assert_eq!(paths, expected, "{old} to {new}");
    };
    check(0, 0, &[]);
    check(5, 5, &[]);
    check(0, 1, &["tile/0/000.p/1"]);
    check(1, 2, &["tile/0/000.p/2"]);
    check(255, 256, &["tile/0/000", "tile/1/000.p/1"]);
    check(256, 257, &["tile/0/001.p/1"]);
    check(
        255,
        513,
        &[
            "tile/0/000",
            "tile/0/001",
            "tile/0/002.p/1",
            "tile/1/000.p/2",
        ],
    );
    check(2, 1, &[]);
    assert!(changed_tiles(i64::MAX as u64 - 1, i64::MAX as u64).count() <= 8);
}

#[test]
fn tiles_equal_those_of_tlog_tiles() {
    use tlog_tiles::{Tile as Other, tlog};
    struct Stored(Vec<tlog::Hash>);
    impl tlog::HashReader for Stored {
        fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<tlog::Hash>, tlog::Error> {
            Ok(indexes.iter().map(|&i| self.0[i as usize]).collect())
        }
    }
    let mut stored = Stored(Vec::new());
    for index in 0..700 {
        let hashes = tlog::stored_hashes(index, &entry(index), &stored).unwrap();
        stored.0.extend(hashes);
    }
    let tree = tree(700);
    let mut ours = changed_tiles(0, 700);
    for other in Other::new_tiles(8, 0, 700) {
        let tile = ours.next().unwrap();
        assert_eq!(tile.content(), Content::Hashes(other.level()));
        assert_eq!(tile.index(), other.level_index());
        assert_eq!(u32::from(tile.width()), other.width());
        assert_eq!(
            tile_bytes(&tree, tile).unwrap(),
            other.read_data(&stored).unwrap()
        );
    }
    assert_eq!(ours.next(), None);
}

#[test]
fn a_tree_is_provable_from_its_files_alone() {
    let size = 70_000;
    let tree = tree(size);
    let mut files = BTreeMap::new();
    for tile in changed_tiles(0, size) {
        let bytes = tile_bytes(&tree, tile).unwrap();
        assert_eq!(tile.hash_bytes(), Some(bytes.len()));
        files.insert(tile.to_string(), bytes);
    }
    let read = |tile: Tile| files.get(&tile.to_string()).cloned().ok_or(OutOfRange);
    let tiled = TiledTree::new(size, read);
    assert_eq!(root(&tiled, size), Ok(tree.root()));
    for index in [0, 255, 256, 65_535, 65_536, 69_999] {
        let proof = inclusion_proof(&tiled, index, size);
        assert_eq!(proof, tree.inclusion_proof(index, size), "leaf {index}");
    }
    for old in [1, 256, 257, 65_536, 69_999] {
        let proof = consistency_proof(&tiled, old, size);
        assert_eq!(proof, tree.consistency_proof(old, size), "from {old}");
    }
}

#[test]
fn short_or_missing_tiles_are_errors() {
    let empty = TiledTree::new(300, |_| Ok::<_, OutOfRange>(Vec::new()));
    assert_eq!(root(&empty, 300), Err(OutOfRange));
    let missing = TiledTree::new(300, |_| Err(OutOfRange));
    assert_eq!(inclusion_proof(&missing, 3, 300), Err(OutOfRange));
    let tree = tree(3);
    // The last ones are at the edge of what 64 bits can count.
    for path in [
        "tile/0/x072/x057/x594/x037/x927/935",
        "tile/entries/000.p/3",
        "tile/0/000",
        "tile/9/000",
        "tile/0/x018/x446/x744/x073/x709/x551/615",
    ] {
        assert_eq!(
            tile_bytes(&tree, Tile::parse(path).unwrap()),
            Err(OutOfRange),
            "{path}"
        );
    }
}

#[test]
fn bundles_are_capped_and_strict() {
    let bytes = encode_bundle([&b"ab"[..], b"", b"c"]).unwrap();
    assert_eq!(bytes, b"\0\x02ab\0\0\0\x01c");
    assert_eq!(decode_bundle(&bytes).unwrap(), [&b"ab"[..], b"", b"c"]);
    let error = decode_bundle(b"\0\x02ab\0\x05cd").unwrap_err();
    assert_eq!((error.kind, error.at), (Kind::Truncated, 4));
    assert_eq!(decode_bundle(b"\0").unwrap_err().kind, Kind::Truncated);
    assert!(encode_bundle([&b""[..]; 256]).is_ok());
    assert!(encode_bundle([&b""[..]; 257]).is_err());
    assert!(decode_bundle(&[0; 512]).is_ok());
    assert!(decode_bundle(&[0; 514]).is_err());
    assert!(encode_bundle([&[0; 65_536][..]]).is_err());
}

proptest! {
    #[test]
    fn any_tile_path_survives(level in 0u8..64, index: u64, size: u64) {
        let content = if level == 0 { Content::Entries } else { Content::Hashes(level - 1) };
        if let Some(tile) = Tile::at_size(content, index >> (level / 2), size) {
            prop_assert_eq!(Tile::parse(&tile.to_string()), Ok(tile));
        }
    }

    #[test]
    fn bundles_survive(entries in prop::collection::vec(any::<Vec<u8>>(), 0..20)) {
        let bytes = encode_bundle(entries.iter().map(Vec::as_slice)).unwrap();
        prop_assert_eq!(decode_bundle(&bytes).unwrap(), entries);
    }

    #[test]
    fn hostile_input_never_panics(bytes: Vec<u8>) {
        let _ = decode_bundle(&bytes);
        if let Ok(path) = str::from_utf8(&bytes) {
            let _ = Tile::parse(path);
        }
    }
}

fn entry(index: u64) -> Vec<u8> {
    format!("entry {index}").into_bytes()
}

fn tree(size: u64) -> LogTree {
    (0..size).map(|index| leaf_hash(&entry(index))).collect()
}
