//! The map beside the trail: opened at any commit, lagging, damaged or gone, it
//! is what the segments say.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail loudly")]

#[path = "common/authority.rs"]
mod authority;
mod common;
#[path = "common/copy_folder.rs"]
mod copy_folder;

use common::{at, genesis};
use copy_folder::copy_folder;
use pitser_evidence::codec::Digest;
use pitser_evidence::line::{Line, Op};
use pitser_evidence::map::patient_map_key;
use pitser_trail::export::{ExportError, Exporter};
use pitser_trail::{Draft, Gather, Layout, PatientId, Row, SegmentLimits, Trail, TrailError, read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Numbers of all lines, in order: nothing is shown twice or left out.
#[derive(Debug, Default, Clone, PartialEq)]
struct Seen(Vec<u64>);

impl Gather for Seen {
    const FORM: &'static str = "seen 1";

    fn line(&mut self, line: &Line) {
        self.0.push(line.seq);
    }

    fn save(&self) -> Vec<u8> {
        self.0.iter().flat_map(|seq| seq.to_be_bytes()).collect()
    }

    fn load(bytes: &[u8]) -> Option<Self> {
        let (whole, []) = bytes.as_chunks::<8>() else {
            return None;
        };
        Some(Self(whole.iter().map(|b| u64::from_be_bytes(*b)).collect()))
    }
}

fn create(dir: &Path) -> Trail {
    let origin = "test.example/hospital";
    let mut trail = Trail::create_gathering::<Seen>(Layout::new(dir), origin, &genesis()).unwrap();
    trail.set_map_commit_lines(0);
    trail
}

fn open(dir: &Path) -> Result<(Trail, Seen), TrailError> {
    let (mut trail, seen, _) = Trail::open::<Seen>(Layout::new(dir))?;
    trail.set_map_commit_lines(0);
    Ok((trail, seen))
}

fn change(n: u64) -> Draft {
    let record = n % 90;
    let id = format!("t{record}").into_bytes();
    Draft {
        table: Some("observation".into()),
        key: Some(vec![id.clone()]),
        patient: Some(PatientId::Id(format!("pt-{}", record % 7))),
        row: Some(Row {
            names: ["id".to_owned(), "value".to_owned()].into(),
            values: vec![Some(id.into()), Some(n.to_be_bytes()[..].into())],
        }),
        ..Draft::new(Op::Update, at(n), "ehr", n.to_string())
    }
}

fn message(n: u64) -> Draft {
    Draft {
        patient: Some(PatientId::Many),
        ..Draft::new(Op::Read, at(n), "ehr", format!("message-{n}"))
    }
}

/// One block of `lines` changes and a message.
fn block(trail: &mut Trail, n: u64, lines: u64) {
    for line in 0..lines {
        trail.append(vec![change(n * 1000 + line)]).unwrap();
    }
    trail.append(vec![message(n)]).unwrap();
    trail.commit().unwrap();
    let mapping = Digest::of(&[b"mapping"]);
    trail
        .close_block(at(n), &n.to_string(), mapping, "It is time.")
        .unwrap();
}

/// A trail that was opened is what the segments say, and goes on.
fn is_what_the_segments_say(dir: &Path, context: &str) {
    let view = read(&Layout::new(dir), None, |_, _| {}).unwrap();
    let mut expected = view.state;
    let (mut trail, seen) = open(dir).unwrap_or_else(|e| panic!("{context}: {e}"));
    let lines = trail.state().next_seq();
    assert_eq!(lines, expected.next_seq(), "{context}");
    assert_eq!(seen.0, (0..lines).collect::<Vec<_>>(), "{context}");
    assert_eq!(trail.blocks(), view.index.log().size(), "{context}");
    assert_eq!(trail.log().root(), view.index.log().root(), "{context}");
    assert_eq!(trail.genesis_hash(), view.genesis_hash, "{context}");
    let waiting: Vec<_> = trail.unsealed().map(|b| b.block).collect();
    assert_eq!(
        waiting,
        (0..trail.blocks()).collect::<Vec<_>>(),
        "{context}"
    );
    for seq in 0..lines {
        assert_eq!(trail.line(seq).unwrap().unwrap().seq, seq, "{context}");
    }
    assert!(trail.has_message("message-1").unwrap(), "{context}");
    assert!(!trail.has_message("message-0").unwrap(), "{context}");
    for n in 0..7 {
        let patient = trail.keys().pseudonym(&format!("pt-{n}"));
        assert_eq!(
            trail.state().patient(&patient).unwrap(),
            expected.patient(&patient).unwrap(),
            "{context}"
        );
    }
    block(&mut trail, 900, 3);
    let root = read(&Layout::new(dir), None, |_, _| {})
        .unwrap()
        .state
        .root();
    drop(trail);
    let (trail, _) = open(dir).unwrap();
    assert_eq!(trail.state().next_seq(), lines + 5, "{context}");
    drop(trail);
    expected = read(&Layout::new(dir), None, |_, _| {}).unwrap().state;
    assert_eq!(expected.root(), root, "{context}");
}

/// Five blocks in three segments, each with a commit, and lines after them.
fn history(dir: &Path) {
    let mut trail = create(dir);
    for n in 1..=5 {
        trail.set_segment_limits(SegmentLimits {
            bytes: if n % 2 == 0 { 1 } else { 1 << 20 },
            ..SegmentLimits::default()
        });
        block(&mut trail, n, 20 * n);
    }
    trail.append(vec![change(7000)]).unwrap();
    trail.commit().unwrap();
}

#[test]
fn a_trail_opens_from_each_of_its_commits() {
    let dir = tempfile::tempdir().unwrap();
    // The map as it was after each block, under the trail as it is.
    let mut trail = create(dir.path());
    let mut maps = Vec::new();
    for n in 1..=5 {
        trail.set_segment_limits(SegmentLimits {
            bytes: if n % 2 == 0 { 1 } else { 1 << 20 },
            ..SegmentLimits::default()
        });
        block(&mut trail, n, 20 * n);
        let map = tempfile::tempdir().unwrap();
        copy_folder(&Layout::new(dir.path()).map(), map.path());
        maps.push(map);
    }
    trail.append(vec![change(7000)]).unwrap();
    trail.commit().unwrap();
    drop(trail);
    for (n, map) in maps.iter().enumerate() {
        let copied = tempfile::tempdir().unwrap();
        copy_folder(dir.path(), copied.path());
        let layout = Layout::new(copied.path());
        std::fs::remove_dir_all(layout.map()).unwrap();
        copy_folder(map.path(), &layout.map());
        is_what_the_segments_say(copied.path(), &format!("commit {n}"));
    }
}

#[test]
fn a_map_that_is_damaged_or_gone_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    history(dir.path());
    let names: Vec<_> = std::fs::read_dir(Layout::new(dir.path()).map())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(names.len() >= 6, "{names:?}");
    type Damage = (&'static str, fn(&Path));
    let damages: [Damage; 4] = [
        ("removed", |path| std::fs::remove_file(path).unwrap()),
        ("emptied", |path| std::fs::write(path, b"").unwrap()),
        ("halved", |path| {
            let bytes = std::fs::read(path).unwrap();
            std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("altered", |path| {
            let mut bytes = std::fs::read(path).unwrap();
            for byte in bytes.iter_mut().skip(3).step_by(40) {
                *byte ^= 1;
            }
            std::fs::write(path, bytes).unwrap();
        }),
    ];
    for name in names {
        for (what, damage) in damages {
            let copied = tempfile::tempdir().unwrap();
            copy_folder(dir.path(), copied.path());
            damage(&Layout::new(copied.path()).map().join(&name));
            let context = format!("{name:?} {what}");
            // What is only noticed when it is used ends the trail's use, once.
            let used = open(copied.path()).and_then(|(mut trail, _)| {
                for n in 0..95 {
                    trail.append(vec![change(n)])?;
                }
                trail.line(3).map(drop)
            });
            if let Err(error) = used {
                assert!(
                    error.to_string().contains("made anew"),
                    "{context}: {error}"
                );
            }
            is_what_the_segments_say(copied.path(), &context);
        }
    }
}

/// Of the blocks, opening reads some: all of them may be many gigabytes.
#[tokio::test(flavor = "multi_thread")]
async fn a_trail_opens_without_its_blocks_being_read() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, client) = authority::start(&dir.path().join("authority")).await;
    let trail_dir = dir.path().join("trail");
    std::fs::create_dir(&trail_dir).unwrap();
    let mut trail = create(&trail_dir);
    trail.set_segment_limits(SegmentLimits {
        bytes: 1,
        ..SegmentLimits::default()
    });
    for n in 1..=6 {
        block(&mut trail, n, 1);
    }
    authority::seal(&mut trail, &client).await;
    let root = trail.log().root();
    drop(trail);
    // The second block, which no search for the last ones comes by, and its leaf.
    let map = Layout::new(&trail_dir).map();
    let altered = [("blocks", 6), ("log", 10)].map(|(name, records)| {
        let path = map.join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        let record = bytes.len() / records;
        bytes[record + 1] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        (path, bytes)
    });
    let (mut trail, _) = open(&trail_dir).unwrap();
    assert_eq!((trail.blocks(), trail.log().root()), (6, root));
    block(&mut trail, 7, 1);
    drop(trail);
    for (path, bytes) in altered {
        let now = std::fs::read(&path).unwrap();
        assert!(now.starts_with(&bytes), "{} was made anew", path.display());
    }
    let exporter = Exporter::open(Layout::new(&trail_dir)).unwrap();
    assert!(exporter.roots(1).is_ok());
    assert!(exporter.roots(2).is_err(), "what is asked for is checked");
    authority.shutdown().await.unwrap();
}

#[test]
fn the_map_of_another_trail_is_not_believed() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    history(dir.path());
    history(other.path());
    let (layout, others) = (Layout::new(dir.path()), Layout::new(other.path()));
    std::fs::remove_dir_all(layout.map()).unwrap();
    copy_folder(&others.map(), &layout.map());
    is_what_the_segments_say(dir.path(), "another trail's map");
}

#[test]
fn what_one_gathers_another_gathers_anew() {
    let dir = tempfile::tempdir().unwrap();
    history(dir.path());
    // Whoever wants nothing neither needs nor spoils what is kept.
    let (mut trail, (), _) = Trail::open::<()>(Layout::new(dir.path())).unwrap();
    trail.set_map_commit_lines(0);
    block(&mut trail, 6, 4);
    drop(trail);
    is_what_the_segments_say(dir.path(), "after one who gathers nothing");
}

#[test]
fn rebuilding_gives_the_same() {
    let dir = tempfile::tempdir().unwrap();
    history(dir.path());
    let mut told = Vec::new();
    let layout = Layout::new(dir.path());
    let (trail, seen, _) = Trail::rebuild::<Seen>(layout.clone(), &mut |n| told.push(n)).unwrap();
    assert_eq!(told, [0]);
    assert_eq!(seen.0.len() as u64, trail.state().next_seq());
    assert!(matches!(
        Trail::rebuild::<Seen>(layout, &mut |_| {}),
        Err(TrailError::Locked(_))
    ));
    drop(trail);
    is_what_the_segments_say(dir.path(), "rebuilt");
}

#[test]
fn proofs_are_had_at_every_sealed_head() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = create(dir.path());
    let layout = Layout::new(dir.path());
    for n in 1..=6 {
        block(&mut trail, n, 10);
        // A witness has seen all but the newest block.
        if n == 4 {
            let head = trail.sign_head();
            trail.store_head(&head).unwrap();
        }
    }
    trail.append(vec![change(7000)]).unwrap();
    trail.commit().unwrap();
    let view = read(&layout, None, |_, _| {}).unwrap();
    for blocks in 1..=6 {
        let mut exporter = Exporter::open_at(layout.clone(), blocks).unwrap();
        let last = exporter.last_block().unwrap();
        assert_eq!(last.leaf, view.blocks[blocks as usize - 1].leaf);
        let root: [u8; 32] = last.leaf.map.0.digest().try_into().unwrap();
        for identifier in ["pt-1", "nobody"] {
            let entry = exporter.prove_patient(identifier).unwrap();
            let key = patient_map_key(&trail.keys().pseudonym(identifier));
            let leaf = entry.leaf.as_ref().map(|leaf| leaf.0.as_slice());
            assert_eq!(leaf.is_some(), identifier == "pt-1");
            assert!(
                entry.path.shows(&root, &key, leaf),
                "{identifier} at {blocks}"
            );
        }
    }
    assert!(matches!(
        Exporter::open_at(layout.clone(), 7),
        Err(ExportError::NoHead)
    ));
    // Beside the writer, with lines that are not in a block yet.
    let mut exporter = Exporter::open(layout.clone()).unwrap();
    let list = exporter
        .patient_history("pt-0")
        .unwrap()
        .map(Result::unwrap)
        .collect::<Vec<_>>();
    let expected = view.state.patient(&trail.keys().pseudonym("pt-0")).unwrap();
    assert_eq!(list.len() as u64, expected.unwrap().count);
    assert_eq!(list.last().unwrap().block, None);
    // The same without the map.
    std::fs::remove_dir_all(layout.map()).unwrap();
    let mut exporter = Exporter::open(layout).unwrap();
    let again = exporter
        .patient_history("pt-0")
        .unwrap()
        .map(Result::unwrap)
        .collect::<Vec<_>>();
    let seqs = |list: &[pitser_trail::export::Entry]| -> Vec<u64> {
        list.iter().map(|entry| entry.line.seq).collect()
    };
    assert_eq!(seqs(&again), seqs(&list));
}

/// The system went down: a commit was durable, lines that it has were not.
#[test]
fn a_commit_that_the_segments_do_not_reach_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = create(dir.path());
    for n in 1..=3 {
        block(&mut trail, n, 10);
    }
    let layout = Layout::new(dir.path());
    let earlier = tempfile::tempdir().unwrap();
    copy_folder(&layout.segments(), earlier.path());
    for n in 4..=5 {
        block(&mut trail, n, 10);
    }
    drop(trail);
    std::fs::remove_dir_all(layout.segments()).unwrap();
    copy_folder(earlier.path(), &layout.segments());
    is_what_the_segments_say(dir.path(), "segments of an earlier moment");
}

/// Tells readers to stop, also if the writer fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn readers_beside_the_writer_see_whole_lists() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = create(dir.path());
    block(&mut trail, 1, 5);
    let head = trail.sign_head();
    trail.store_head(&head).unwrap();
    let layout = Layout::new(dir.path());
    let is_over = AtomicBool::new(false);
    let read = std::thread::scope(|scope| {
        let over = Over(&is_over);
        let reader = scope.spawn(|| {
            let mut read = 0u64;
            while !is_over.load(Ordering::SeqCst) || read == 0 {
                let mut exporter = Exporter::open(layout.clone()).unwrap();
                for patient in 0..7 {
                    let entry = exporter.prove_patient(&format!("pt-{patient}")).unwrap();
                    let Some(leaf) = entry.leaf else { continue };
                    let leaf = pitser_evidence::map::Leaf::decode(&leaf.0).unwrap();
                    let list = exporter
                        .patient_history(&format!("pt-{patient}"))
                        .unwrap()
                        .map(Result::unwrap)
                        .collect::<Vec<_>>();
                    assert_eq!(list.len() as u64, leaf.count);
                }
                read += 1;
            }
            read
        });
        for n in 2..=40 {
            trail.set_segment_limits(SegmentLimits {
                bytes: if n % 9 == 0 { 1 } else { 1 << 20 },
                ..SegmentLimits::default()
            });
            block(&mut trail, n, 30);
            let head = trail.sign_head();
            trail.store_head(&head).unwrap();
        }
        drop(over);
        reader.join().unwrap()
    });
    assert!(read > 0);
    drop(trail);
    is_what_the_segments_say(dir.path(), "after readers");
}
