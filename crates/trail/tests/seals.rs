//! Seals that checkpoints name: those that the trail's files have, and no others.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail loudly")]

#[path = "common/authority.rs"]
mod authority;
mod common;
#[path = "common/copy_folder.rs"]
mod copy_folder;

use common::{at, genesis};
use copy_folder::copy_folder;
use std::fs;
use std::path::Path;

use pitser_client::Client;
use pitser_evidence::Code;
use pitser_evidence::block::LogLeaf;
use pitser_evidence::codec::Digest;
use pitser_evidence::line::{Checkpoint, Line, Op};
use pitser_ksi::hash::{Algorithm, Imprint};
use pitser_ksi::logsig::{self, BLOCK_CLOSE_REASON, BlockBuilder, StoredHashes};
use pitser_trail::{
    BlockSummary, Damage, Draft, Layout, ReadError, SegmentLimits, Trail, Watch, forget, read,
    replay,
};
use tempfile::TempDir;

/// Four blocks of one segment. The checkpoint of each names the seal of the one before
/// it, but for the last, which came before the third one's seal. Two seals of the second
/// block were made; `spare` is the one that was not kept.
struct Sealed {
    dir: TempDir,
    kept: Vec<u8>,
    spare: Vec<u8>,
    client: Client,
    _authority: pitser_authority::AuthorityHandle,
}

impl Sealed {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (authority, client) = authority::start(&dir.path().join("authority")).await;
        let layout = Layout::new(dir.path().join("trail"));
        let mut trail = Trail::create(layout, "test.example/seals", &genesis()).unwrap();
        close(&mut trail);
        authority::seal(&mut trail, &client).await;
        let second = close(&mut trail);
        let (kept, spare) = two_seals(&second, &client).await;
        trail.add_seal(1, &kept).unwrap();
        close(&mut trail);
        close(&mut trail);
        authority::seal(&mut trail, &client).await;
        Self {
            dir,
            kept: logsig::encode_signed(second.count + 1, &kept).unwrap(),
            spare: logsig::encode_signed(second.count + 1, &spare).unwrap(),
            client,
            _authority: authority,
        }
    }

    fn trail(&self) -> std::path::PathBuf {
        self.dir.path().join("trail")
    }

    fn open(&self) -> Trail {
        Trail::open::<()>(Layout::new(self.trail())).unwrap().0
    }

    /// What a reader finds in a copy to which `damage` was done.
    fn found(&self, damage: impl FnOnce(&Layout)) -> Result<u64, Damage> {
        let copied = tempfile::tempdir().unwrap();
        copy_folder(&self.trail(), copied.path());
        let layout = Layout::new(copied.path());
        damage(&layout);
        match read(&layout, None, |_, _| {}) {
            Ok(view) => Ok(view.log().size()),
            Err(ReadError::Damaged(found)) => Err(found),
            Err(other) => panic!("{other}"),
        }
    }

    /// In a file of seals, or a log signature.
    fn exchange(&self, path: &Path) {
        let bytes = fs::read(path).unwrap();
        let at = bytes
            .windows(self.kept.len())
            .position(|part| part == self.kept)
            .unwrap();
        let rest = &bytes[at + self.kept.len()..];
        fs::write(path, [&bytes[..at], &self.spare, rest].concat()).unwrap();
    }
}

fn close(trail: &mut Trail) -> BlockSummary {
    trail
        .append(vec![Draft::new(Op::Live, at(1), "ehr", "1")])
        .unwrap();
    let mapping = Digest::of(&[b"mapping"]);
    trail.close_block(at(1), "1", mapping, "test").unwrap()
}

/// Two seals of a block, the older one first.
async fn two_seals(block: &BlockSummary, client: &Client) -> (Vec<u8>, Vec<u8>) {
    let first = client.sign(block.root, block.level).await.unwrap().encode();
    loop {
        let next = client.sign(block.root, block.level).await.unwrap().encode();
        if next != first {
            return (first, next);
        }
    }
}

/// Whoever holds the trail writes its last block anew, with another checkpoint.
fn rewrite(layout: &Layout, change: impl FnOnce(&mut Checkpoint)) {
    let bytes = fs::read(layout.segment(0)).unwrap();
    let mut lines: Vec<Vec<u8>> = bytes
        .split_inclusive(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\n").unwrap().to_vec())
        .collect();
    let mut line = Line::decode(lines.last().unwrap()).unwrap();
    let checkpoint = line.checkpoint.as_mut().unwrap();
    let first = usize::try_from(checkpoint.first).unwrap();
    change(checkpoint);
    *lines.last_mut().unwrap() = line.encode();
    let text: Vec<u8> = lines
        .iter()
        .flat_map(|line| [line, &b"\n"[..]].concat())
        .collect();
    fs::write(layout.segment(0), text).unwrap();

    let blocks = fs::read(layout.blocks(0)).unwrap();
    let mut starts = vec![logsig::MAGIC_LEN];
    while let Some(block) = logsig::read_block(&blocks[starts[starts.len() - 1]..], 0).unwrap() {
        starts.push(starts[starts.len() - 1] + block.bytes.len());
        if starts[starts.len() - 1] == blocks.len() {
            break;
        }
    }
    let last = starts[starts.len() - 2];
    let previous = logsig::read_block(&blocks[last..], 0).unwrap().unwrap();
    let stored = StoredHashes {
        records: true,
        tree: false,
    };
    let previous: Imprint = previous.header.previous_leaf;
    let mut builder = BlockBuilder::storing(stored, Algorithm::Sha256, &[1; 32], previous).unwrap();
    for line in &lines[first..] {
        builder.record(Line::hash(line).0).unwrap();
    }
    builder.metarecord(BLOCK_CLOSE_REASON, "test").unwrap();
    let mut closed = builder.close().unwrap();
    let marker = closed.unsigned(None).unwrap();
    closed.bytes.extend(marker);
    fs::write(layout.blocks(0), [&blocks[..last], &closed.bytes].concat()).unwrap();
    // Its seal is of the block that it replaces.
    let seals = fs::read(layout.seals(0)).unwrap();
    let records = logsig::SealReader::new(&seals).unwrap();
    let sealed: Vec<_> = records.map(|record| record.unwrap().at).collect();
    if sealed.len() == starts.len() - 1 {
        fs::write(layout.seals(0), &seals[..sealed[sealed.len() - 1]]).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_names_a_seal_that_an_earlier_block_has() {
    let sealed = Sealed::new().await;
    assert_eq!(sealed.found(|_| {}).unwrap(), 4);
    assert_eq!(sealed.found(|layout| rewrite(layout, |_| {})).unwrap(), 4);

    // Both seals are of the second block, and neither is older than the first one's or
    // newer than the third one's.
    let found = sealed.found(|layout| sealed.exchange(&layout.seals(0)));
    let found = found.unwrap_err();
    assert_eq!(found.code, Code::SealInvalid, "{found}");
    assert!(found.text.contains("block 1"), "{found}");

    // No block after the first has one any more.
    let found = sealed.found(|layout| {
        let seals = fs::read(layout.seals(0)).unwrap();
        let mut records = logsig::SealReader::new(&seals).unwrap();
        let second = records.nth(1).unwrap().unwrap().at;
        fs::write(layout.seals(0), &seals[..second]).unwrap();
    });
    let found = found.unwrap_err();
    assert_eq!(found.code, Code::BlockMissing, "{found}");
    assert!(found.text.contains("block 1"), "{found}");

    // The last checkpoint names the second seal.
    type Lie = fn(&mut Checkpoint);
    let lies: [(&str, Code, Lie); 4] = [
        ("not the one", Code::SealInvalid, |it| {
            it.seal.as_mut().unwrap().hash = Digest::of(&[b"none"]);
        }),
        ("not before it", Code::LineAltered, |it| {
            it.seal.as_mut().unwrap().block = it.block;
        }),
        ("before that of the last one", Code::LineAltered, |it| {
            it.seal.as_mut().unwrap().block = 0;
        }),
        ("names no seal", Code::LineAltered, |it| it.seal = None),
    ];
    for (text, code, lie) in lies {
        let found = sealed.found(|layout| rewrite(layout, lie)).unwrap_err();
        assert_eq!(found.code, code, "{found}");
        assert!(found.text.contains(text), "{found}");
    }
}

/// All seals were judged, and nobody reads them again.
struct Judged;

impl Watch for Judged {
    fn lines(&mut self, _: u64) {}

    fn judged(&self) -> u64 {
        u64::MAX
    }

    fn seal(&mut self, _: &LogLeaf, _: &[u8]) -> Result<(), String> {
        Ok(())
    }
}

/// Who goes on with a trail reads the seals of earlier segments again only if one of them
/// is named.
#[tokio::test(flavor = "multi_thread")]
async fn a_seal_of_a_segment_that_was_read_before_is_compared_when_it_is_named() {
    let sealed = Sealed::new().await;
    let mine = tempfile::tempdir().unwrap();
    let layout = Layout::new(sealed.trail()).with_map(mine.path().join("map"));
    assert_eq!(replay(&layout, 4, &mut Judged).unwrap().known, 0);
    // The segment is closed with a block that has no seal when the next one begins.
    let mut trail = sealed.open();
    trail.set_segment_limits(SegmentLimits {
        bytes: 1,
        ..SegmentLimits::default()
    });
    let last = close(&mut trail);
    trail.set_segment_limits(SegmentLimits::default());
    close(&mut trail);
    drop(trail);
    assert_eq!(replay(&layout, 6, &mut Judged).unwrap().known, 4);
    let mut trail = sealed.open();
    let (kept, spare) = two_seals(&last, &sealed.client).await;
    trail.add_seal(4, &kept).unwrap();
    assert!(layout.logsig(0).exists());
    close(&mut trail);
    drop(trail);
    assert_eq!(replay(&layout, 7, &mut Judged).unwrap().known, 6);

    let record = |seal: &[u8]| logsig::encode_signed(last.count + 1, seal).unwrap();
    let sealed = Sealed {
        kept: record(&kept),
        spare: record(&spare),
        ..sealed
    };
    sealed.exchange(&layout.logsig(0));
    // What was replayed is not looked at again.
    assert_eq!(replay(&layout, 7, &mut Judged).unwrap().known, 7);
    forget(&layout).unwrap();
    assert_eq!(replay(&layout, 6, &mut Judged).unwrap().known, 0);
    match replay(&layout, 7, &mut Judged) {
        Err(ReadError::Damaged(found)) => {
            assert_eq!(found.code, Code::SealInvalid, "{found}");
            assert!(found.text.contains("block 4"), "{found}");
        }
        other => panic!("{:?}", other.map(|replayed| replayed.known)),
    }
}
