//! Complete lists with their proofs: out of closed segments and the open one, whatever
//! became of what is noted about them.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail loudly")]

#[path = "common/authority.rs"]
mod authority;
mod common;

use common::{at, genesis};
use pitser_evidence::block::LogLeaf;
use pitser_evidence::codec::Digest;
use pitser_evidence::file::BlockProof;
use pitser_evidence::finding::Code;
use pitser_evidence::line::Op;
use pitser_evidence::seal;
use pitser_evidence::{Evidence, StepState, Verdict, verify};
use pitser_ksi::logsig::BlockReader;
use pitser_ksi::time::Second;
use pitser_trail::export::{Asked, ExportError, Exporter};
use pitser_trail::{
    Draft, Layout, PatientId, ReadError, Row, SegmentLimits, Trail, Watch, forget, replay,
};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const PATIENTS: u64 = 5;
/// Lines of each block before its checkpoint, which a metarecord follows: around a group
/// of the tree's, which has 64 of all these.
const BLOCKS: [u64; 10] = [1, 61, 62, 63, 64, 65, 200, 2, 5, 5];
/// Blocks after which a segment is closed.
const CLOSED: [usize; 3] = [1, 4, 6];

fn patient(number: u64) -> String {
    format!("pt-{}", number % PATIENTS)
}

fn change(number: u64) -> Draft {
    let id = format!("t{number}").into_bytes();
    Draft {
        table: Some("observation".into()),
        key: Some(vec![id.clone()]),
        patient: Some(PatientId::Id(patient(number))),
        row: Some(Row {
            names: ["id".to_owned(), "value".to_owned()].into(),
            values: vec![Some(id.into()), Some(number.to_be_bytes()[..].into())],
        }),
        ..Draft::new(Op::Create, at(number), "ehr", number.to_string())
    }
}

/// Three closed segments and an open one, all sealed but for its last block.
async fn trail(dir: &Path) -> Layout {
    let (authority, client) = authority::start(&dir.join("authority")).await;
    let layout = Layout::new(dir.join("trail"));
    let mut trail = Trail::create(layout.clone(), "test.example/hospital", &genesis()).unwrap();
    let mut next = 0;
    for (block, lines) in BLOCKS.into_iter().enumerate() {
        for number in next..next + lines {
            trail.append(vec![change(number)]).unwrap();
        }
        next += lines;
        close(&mut trail, next, CLOSED.contains(&block));
        if block + 1 < BLOCKS.len() {
            authority::seal(&mut trail, &client).await;
        }
    }
    let head = trail.sign_head();
    trail.store_head(&head).unwrap();
    authority.shutdown().await.unwrap();
    layout
}

fn close(trail: &mut Trail, second: u64, segment: bool) {
    trail.set_segment_limits(SegmentLimits {
        bytes: if segment { 1 } else { u64::MAX },
        ..SegmentLimits::default()
    });
    let mapping = Digest::of(&[b"mapping"]);
    let closed = trail.close_block(at(second), &second.to_string(), mapping, "It is time.");
    closed.unwrap();
}

fn evidence(layout: &Layout, patient: &str) -> Result<Evidence, ExportError> {
    let mut exporter = Exporter::open_at_head(layout.clone())?;
    exporter.evidence(patient, None, None, |_, seal| seal.to_vec())
}

/// The evidence on everybody, each of which proves a whole list.
fn all(layout: &Layout) -> Vec<Evidence> {
    let all = (0..PATIENTS).map(|number| evidence(layout, &patient(number)).unwrap());
    let all: Vec<Evidence> = all.collect();
    let lines: usize = all.iter().map(|evidence| evidence.lines.len()).sum();
    assert_eq!(lines as u64, BLOCKS.iter().sum::<u64>());
    for evidence in &all {
        let report = verify(evidence, None, Second(1_773_500_000));
        assert!(!matches!(report.verdict, Verdict::Broken(_)), "{report:#?}");
        for name in ["log", "lines", "subject", "complete"] {
            let step = report.steps.iter().find(|step| step.name == name).unwrap();
            assert_eq!(step.state, StepState::Matches, "{step:?}");
        }
    }
    all
}

/// Nobody knows whom a line of each of the first three blocks was about, and two of the first.
async fn trail_with_strangers(dir: &Path) -> Layout {
    let (authority, client) = authority::start(&dir.join("authority")).await;
    let layout = Layout::new(dir.join("trail"));
    let mut trail = Trail::create(layout.clone(), "test.example/hospital", &genesis()).unwrap();
    for (number, strangers) in (0..).zip([2, 1, 1, 0]) {
        trail.append(vec![change(number)]).unwrap();
        for _ in 0..strangers {
            let read = Draft::new(Op::Read, at(number), "ehr", number.to_string());
            let patient = Some(PatientId::Unknown);
            trail.append(vec![Draft { patient, ..read }]).unwrap();
        }
        close(&mut trail, number, false);
        authority::seal(&mut trail, &client).await;
    }
    let head = trail.sign_head();
    trail.store_head(&head).unwrap();
    authority.shutdown().await.unwrap();
    layout
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_list_begins_with_the_newest_line_that_is_not_asked_for() {
    let dir = TempDir::new().unwrap();
    let layout = trail_with_strangers(dir.path()).await;
    let mut exporter = Exporter::open_at_head(layout).unwrap();
    let mut shown = |shared_since| {
        let asked = Asked {
            patient: "pt-0",
            shared_since,
        };
        let listed = exporter.list(asked).unwrap();
        let seals = exporter.seals(&listed).unwrap();
        let evidence = exporter.evidence_of(listed, None, None, |_, seal| seal.to_vec());
        let evidence = evidence.unwrap();
        assert_eq!(evidence.map.many.before, None);
        assert_eq!(
            seals.len(),
            evidence.blocks.len(),
            "no seal more than is shown"
        );
        Evidence::decode(&evidence.encode()).unwrap()
    };
    let whole = shown(None);
    assert_eq!(whole.format, "pitser-evidence/1");
    let seal = |block: &BlockProof| seal::time(&block.seal.as_ref().unwrap().0).unwrap();
    let sealed: Vec<Second> = whole.blocks.iter().map(seal).collect();
    assert_eq!(sealed.len(), 4);
    for (since, before) in [
        (Second(sealed[0].0 - 1), None),
        (sealed[0], Some(1)),
        (Second(sealed[1].0 - 1), Some(1)),
        (sealed[1], Some(2)),
        (sealed[2], Some(3)),
        (sealed[3], Some(3)),
        (Second(u64::MAX), Some(3)),
    ] {
        let evidence = shown(Some(since));
        assert_eq!(evidence.map.unknown.before, before, "{since:?}");
        let report = verify(&evidence, None, Second(1_773_500_000));
        assert!(!matches!(report.verdict, Verdict::Broken(_)), "{report:#?}");
        let left_out: Vec<_> = report.left_out.iter().map(|it| it.lines).collect();
        assert_eq!(left_out, Vec::from_iter(before));
        // The patient's own line is the first of all.
        assert_eq!(evidence.lines[0], whole.lines[0]);
    }
}

/// Remembers when the last of the first blocks was sealed.
struct Remembered {
    blocks: u64,
    at: Second,
}

impl Watch for Remembered {
    fn lines(&mut self, _: u64) {}

    fn judged(&self) -> u64 {
        self.blocks
    }

    fn judged_at(&self) -> Option<Second> {
        Some(self.at)
    }

    fn seal(&mut self, _: &LogLeaf, _: &[u8]) -> Result<(), String> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_goes_on_finds_no_seal_older_than_the_last_one_it_judged() {
    let dir = TempDir::new().unwrap();
    let layout = trail_with_strangers(dir.path()).await;
    let whole = evidence(&layout, "pt-0").unwrap();
    let sealed = whole
        .blocks
        .iter()
        .map(|block| block.seal.as_ref().unwrap());
    let sealed: Vec<Second> = sealed.map(|seal| seal::time(&seal.0).unwrap()).collect();
    let layout = layout.with_map(dir.path().join("own"));
    let go_on = |until, blocks, at| replay(&layout, until, &mut Remembered { blocks, at });
    go_on(2, 0, Second(0)).unwrap();
    // As if block 1 had been sealed after block 2 was.
    let failed = go_on(4, 2, Second(sealed[2].0 + 1));
    let Err(ReadError::Damaged(damage)) = &failed else {
        panic!("{failed:?}");
    };
    assert_eq!(damage.code, Code::SealInvalid);
    assert_eq!(go_on(4, 2, sealed[1]).unwrap().known, 2);
    // What was judged is older than that, where it is read again.
    forget(&layout).unwrap();
    assert_eq!(go_on(4, 4, sealed[3]).unwrap().known, 0);
}

fn outlines(layout: &Layout) -> Vec<PathBuf> {
    let files = fs::read_dir(layout.dir().join("outlines")).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_whole_whatever_became_of_the_outlines() {
    let dir = TempDir::new().unwrap();
    let layout = trail(dir.path()).await;
    let told = all(&layout);
    let kept = outlines(&layout);
    assert_eq!(kept.len(), CLOSED.len(), "of closed segments alone");
    assert_eq!(all(&layout), told);
    let good: Vec<Vec<u8>> = kept.iter().map(|path| fs::read(path).unwrap()).collect();
    // Each byte altered in turn, every seventh here: what was noted is noted again.
    for at in (0..good[1].len()).step_by(7) {
        let mut bytes = good[1].clone();
        bytes[at] ^= 0x10;
        fs::write(&kept[1], bytes).unwrap();
        assert_eq!(evidence(&layout, "pt-1").unwrap(), told[1], "byte {at}");
    }
    // Cut short, empty, of another segment.
    for bytes in [&good[1][..good[1].len() / 2], b"", &good[0], &good[2]] {
        fs::write(&kept[1], bytes).unwrap();
        assert_eq!(all(&layout), told);
        assert_eq!(fs::read(&kept[1]).unwrap(), good[1]);
    }
    // In a folder that cannot be made they are not kept.
    let folder = layout.dir().join("outlines");
    fs::remove_dir_all(&folder).unwrap();
    fs::write(&folder, b"no folder").unwrap();
    assert_eq!(all(&layout), told);
}

/// That no more is read is what makes a list out of a long trail quick.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_log_signature_that_is_noted_only_seals_are_read() {
    let dir = TempDir::new().unwrap();
    let layout = trail(dir.path()).await;
    let told = all(&layout);
    for segment in 0..3 {
        let path = layout.logsig(segment);
        let whole = fs::read(&path).unwrap();
        let mut seals = vec![0xff; whole.len()];
        for block in BlockReader::new(&whole).unwrap() {
            let seal = block.unwrap().seal;
            seals[seal.at..seal.at + seal.bytes.len()].copy_from_slice(seal.bytes);
        }
        fs::write(&path, seals).unwrap();
    }
    assert_eq!(all(&layout), told);
}

/// Block 7 is the open segment's first, and has lines of two patients.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_seal_is_in_the_way_of_its_block_alone() {
    let dir = TempDir::new().unwrap();
    let layout = trail(dir.path()).await;
    let told = all(&layout);
    let block = told[1].blocks.iter().find(|block| block.block == 7);
    let root = LogLeaf::decode(&block.unwrap().leaf.0).unwrap().root;
    let mut seals = fs::read(layout.seals(3)).unwrap();
    let root = root.0.digest();
    let at = seals.windows(root.len()).position(|part| part == root);
    seals[at.unwrap()] ^= 1;
    fs::write(layout.seals(3), seals).unwrap();
    for number in 0..PATIENTS {
        let found = evidence(&layout, &patient(number));
        match number {
            1 | 2 => assert!(matches!(found, Err(ExportError::Block(7))), "{found:?}"),
            _ => assert_eq!(found.unwrap(), told[number as usize]),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn outlines_of_wrong_hashes_are_not_believed() {
    let dir = TempDir::new().unwrap();
    let layout = trail(dir.path()).await;
    let mut bytes = fs::read(layout.logsig(1)).unwrap();
    // The first record hash: a long element 0902 of 33 bytes.
    let record = bytes
        .windows(4)
        .position(|head| head == [0x89, 0x02, 0, 33]);
    bytes[record.unwrap() + 10] ^= 1;
    fs::write(layout.logsig(1), bytes).unwrap();
    let failed = evidence(&layout, "pt-1");
    let Err(ExportError::Read(ReadError::Damaged(damage))) = &failed else {
        panic!("{failed:?}");
    };
    assert_eq!(
        (damage.code, &damage.path),
        (Code::LineAltered, &layout.logsig(1))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_altered_line_leads_to_no_root() {
    let dir = TempDir::new().unwrap();
    let layout = trail(dir.path()).await;
    let told = all(&layout);
    let path = layout.segment(1);
    let text = fs::read_to_string(&path).unwrap();
    let at = text.find("\"op\":\"create\"").unwrap();
    let altered = format!("{}\"op\":\"update\"{}", &text[..at], &text[at + 13..]);
    fs::write(&path, altered).unwrap();
    let wrong = (0..PATIENTS).filter(|number| {
        let whose = &told[*number as usize].lines;
        match evidence(&layout, &patient(*number)) {
            Ok(evidence) => {
                assert_eq!(evidence, told[*number as usize]);
                false
            }
            Err(ExportError::Block(block)) => {
                assert!(whose.iter().any(|line| line.block == block));
                true
            }
            Err(error) => panic!("{error}"),
        }
    });
    assert!(wrong.count() > 0);
}
