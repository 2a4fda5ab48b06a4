//! A writer can die at any instruction. These tests stop it at every byte of
//! every file, open the trail again, and want whole events, no more, no less.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail loudly")]

mod common;
#[path = "common/copy_folder.rs"]
mod copy_folder;

use common::{at, genesis};
use copy_folder::copy_folder;
use pitser_authority::{Authority, AuthorityHandle, Config, Micros, User};
use pitser_client::{Client, Endpoint};
use pitser_evidence::Code;
use pitser_evidence::codec::Digest;
use pitser_evidence::line::Op;
use pitser_ksi::pki::Subject;
use pitser_trail::export::Exporter;
use pitser_trail::{
    Body, Draft, Layout, MAX_BLOCK_LINES, PatientId, ReadError, Recovery, Row, SegmentLimits,
    Trail, TrailError, read,
};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

#[allow(
    clippy::disallowed_methods,
    reason = "a test is where the clock comes from"
)]
fn micros() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_micros() as u64
}

fn create(dir: &Path) -> Trail {
    Trail::create(Layout::new(dir), "test.example/hospital", &genesis()).unwrap()
}

fn reopen(dir: &Path) -> Result<(Trail, Recovery), TrailError> {
    Trail::open::<()>(Layout::new(dir)).map(|(trail, (), recovery)| (trail, recovery))
}

fn change(op: Op, pos: u64, id: &str, patient: &str, value: &str) -> Draft {
    Draft {
        table: Some("observation".into()),
        key: Some(vec![format!("t{id}").into_bytes()]),
        patient: Some(PatientId::Id(patient.into())),
        row: op.commits_row().then(|| Row {
            names: ["id".to_owned(), "value".to_owned()].into(),
            values: vec![
                Some(format!("t{id}").into_bytes().into()),
                Some(value.as_bytes().into()),
            ],
        }),
        ..Draft::new(op, at(pos), "ehr", pos.to_string())
    }
}

/// Events 1 to 4; the third has three lines.
fn events() -> Vec<Vec<Draft>> {
    vec![
        vec![change(Op::Create, 1, "obs-1", "pt-1", "t120")],
        vec![change(Op::Create, 2, "obs-2", "pt-2", "t80")],
        vec![
            change(Op::Relink, 3, "obs-2", "pt-2", ""),
            change(Op::Relink, 3, "obs-2", "pt-1", ""),
            change(Op::Update, 3, "obs-2", "pt-1", "t80"),
        ],
        vec![change(Op::Update, 4, "obs-1", "pt-1", "t121")],
    ]
}

fn sized(bytes: u64) -> SegmentLimits {
    SegmentLimits {
        bytes,
        ..SegmentLimits::default()
    }
}

fn close(trail: &mut Trail) -> pitser_trail::BlockSummary {
    trail
        .close_block(
            at(9),
            "4",
            Digest::of(&[b"mapping"]),
            "Block closed due to time limit.",
        )
        .unwrap()
}

fn cut(path: &Path, len: u64) {
    std::fs::File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(len)
        .unwrap();
}

/// Opens a copy of `dir` after `damage` was done to it.
fn after(
    dir: &Path,
    damage: impl FnOnce(&Layout),
) -> (tempfile::TempDir, Result<(Trail, Recovery), TrailError>) {
    let copied = tempfile::tempdir().unwrap();
    copy_folder(dir, copied.path());
    damage(&Layout::new(copied.path()));
    let opened = reopen(copied.path());
    (copied, opened)
}

/// Whatever happened before: the trail takes what is missing and verifies.
fn goes_on(dir: &Path, mut trail: Trail, from_event: usize) {
    for event in events().into_iter().skip(from_event) {
        trail.append(event).unwrap();
    }
    trail.commit().unwrap();
    close(&mut trail);
    drop(trail);
    let mut positions = Vec::new();
    let view = read(&Layout::new(dir), None, |line, _| {
        positions.push(line.pos.clone())
    })
    .unwrap();
    assert!(view.tail.is_empty());
    let expected = ["0", "1", "2", "3", "3", "3", "4"];
    positions.retain(|p| p != "9");
    let told: Vec<_> = positions.iter().map(String::as_str).collect();
    assert_eq!(
        told.iter()
            .filter(|p| **p != "4")
            .copied()
            .collect::<Vec<_>>(),
        expected[..6]
    );
}

#[test]
fn lines_cut_at_every_byte_leave_whole_events() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = create(dir.path());
    let mut ends = vec![
        std::fs::metadata(Layout::new(dir.path()).segment(0))
            .unwrap()
            .len(),
    ];
    for event in events() {
        trail.append(event).unwrap();
        trail.commit().unwrap();
        ends.push(
            std::fs::metadata(Layout::new(dir.path()).segment(0))
                .unwrap()
                .len(),
        );
    }
    drop(trail);
    let (first, last) = (ends[0], *ends.last().unwrap());
    // Every byte around the ends, and a stride in between, to keep this short.
    let near = |len: u64| ends.iter().any(|end| end.abs_diff(len) <= 2);
    for len in (first..=last).filter(|len| near(*len) || len % 37 == 0) {
        let whole = ends.iter().filter(|end| **end <= len).count() - 1;
        let (copied, opened) = after(dir.path(), |layout| cut(&layout.segment(0), len));
        let (trail, recovery) = opened.unwrap();
        let lines = [1, 2, 3, 6, 7][whole];
        assert_eq!(trail.state().next_seq(), lines, "cut at {len}");
        assert_eq!(
            recovery != Recovery::default(),
            !ends.contains(&len),
            "cut at {len}: {recovery:?}"
        );
        goes_on(copied.path(), trail, whole);
    }
}

#[test]
fn a_block_cut_at_every_byte_is_built_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = create(dir.path());
    close(&mut trail);
    let blocks = Layout::new(dir.path()).blocks(0);
    let before = std::fs::metadata(&blocks).unwrap().len();
    for event in events() {
        trail.append(event).unwrap();
    }
    trail.commit().unwrap();
    close(&mut trail);
    let root = trail.log().root();
    drop(trail);
    let end = std::fs::metadata(&blocks).unwrap().len();
    for len in (before..end).filter(|len| len % 13 == 0 || *len < before + 3 || *len > end - 3) {
        let (copied, opened) = after(dir.path(), |layout| cut(&layout.blocks(0), len));
        let (trail, recovery) = opened.unwrap();
        assert!(recovery.rebuilt_block, "cut at {len}");
        assert_eq!(trail.blocks(), 2);
        assert_ne!(
            trail.log().root(),
            root,
            "a block that was never sealed gets a new random seed"
        );
        drop(trail);
        read(&Layout::new(copied.path()), None, |_, _| {}).unwrap();
    }
}

/// The parts of a file's sectors from byte `from` on.
fn sectors(file: &Path, from: u64) -> Vec<std::ops::Range<usize>> {
    let (from, end) = (from as usize, std::fs::read(file).unwrap().len());
    let starts = (from / 512 * 512..end).step_by(512);
    starts.map(|at| at.max(from)..(at + 512).min(end)).collect()
}

/// Fills a part of a file with zeroes: it was never written.
fn lose(path: &Path, part: std::ops::Range<usize>) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[part].fill(0);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn sectors_of_lines_that_were_never_written_leave_whole_events() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path());
    let mut trail = create(dir.path());
    close(&mut trail);
    let segment = layout.segment(0);
    let before = std::fs::metadata(&segment).unwrap().len();
    for event in events() {
        trail.append(event).unwrap();
    }
    trail.commit().unwrap();
    drop(trail);
    let lines = std::fs::read(&segment).unwrap();
    for part in sectors(&segment, before) {
        let whole = lines[before as usize..part.start].split(|b| *b == b'\n');
        let whole = whole.count() - 1;
        let (copied, opened) = after(dir.path(), |layout| lose(&layout.segment(0), part.clone()));
        let (trail, recovery) = opened.unwrap();
        assert!(recovery.cut_bytes > 0, "{part:?}");
        // The third event has three lines.
        let kept = [0, 1, 2, 2, 2, 5, 6][whole];
        assert_eq!(trail.state().next_seq(), 2 + kept, "{part:?}");
        goes_on(copied.path(), trail, [0, 1, 2, 2, 2, 3, 4][whole]);
    }
    // What a power cut does not do.
    let (_copied, opened) = after(dir.path(), |layout| {
        let mut bytes = std::fs::read(layout.segment(0)).unwrap();
        let at = before as usize + 20;
        bytes[at] ^= 1;
        std::fs::write(layout.segment(0), bytes).unwrap();
    });
    assert!(
        matches!(opened, Err(TrailError::Read(ReadError::Damaged(_)))),
        "{opened:?}"
    );
}

#[test]
fn a_block_of_which_sectors_were_never_written_is_built_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = create(dir.path());
    close(&mut trail);
    let blocks = Layout::new(dir.path()).blocks(0);
    let before = std::fs::metadata(&blocks).unwrap().len();
    for round in 0..5 {
        for mut event in events() {
            for key in event.iter_mut().filter_map(|draft| draft.key.as_mut()) {
                key[0].push(b'0' + round);
            }
            trail.append(event).unwrap();
        }
    }
    close(&mut trail);
    drop(trail);
    for part in sectors(&blocks, before) {
        let (copied, opened) = after(dir.path(), |layout| lose(&layout.blocks(0), part.clone()));
        let (trail, recovery) = opened.unwrap();
        assert!(recovery.rebuilt_block, "{part:?}");
        assert_eq!(trail.blocks(), 2);
        drop(trail);
        read(&Layout::new(copied.path()), None, |_, _| {}).unwrap();
    }
}

async fn authority(dir: &Path) -> (AuthorityHandle, Client) {
    let subject = Subject {
        email: "publications@test.example".into(),
        ..Subject::default()
    };
    Authority::init(dir, Micros(micros()).ended(), &subject).unwrap();
    let config = Config::new(dir).with_user(User::new("test", b"test".as_slice()));
    let authority = Authority::start(config, || Micros(micros())).await.unwrap();
    let uri = format!("ksi+tcp://test:test@{}", authority.tcp_address());
    let client = Client::connect(Endpoint::parse(&uri).unwrap())
        .await
        .unwrap();
    (authority, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn seals_cut_at_every_byte_are_asked_for_again_and_segments_close_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, client) = authority(&dir.path().join("authority")).await;
    let dir = dir.path().join("trail");
    std::fs::create_dir(&dir).unwrap();
    let layout = Layout::new(&dir);
    let mut trail = create(&dir);
    trail.set_segment_limits(sized(1));
    let mut signed = Vec::new();
    for event in events() {
        trail.append(event).unwrap();
        let block = close(&mut trail);
        signed.push((
            block.block,
            client.sign(block.root, block.level).await.unwrap().encode(),
        ));
    }
    assert!(matches!(
        trail.add_seal(1, &signed[1].1),
        Err(TrailError::SealOrder {
            expected: 0,
            got: 1
        })
    ));
    trail.add_seal(0, &signed[0].1).unwrap();
    assert!(
        layout.logsig(0).exists() && !layout.parts(0).exists(),
        "a sealed segment is one file"
    );
    drop(trail);

    let (mut trail, recovery) = reopen(&dir).unwrap();
    assert_eq!(recovery, Recovery::default());
    assert_eq!(
        trail.unsealed().map(|b| b.block).collect::<Vec<_>>(),
        [1, 2, 3]
    );
    let kept_at = pitser_evidence::seal::time(&signed[0].1);
    assert!(kept_at.is_some());
    assert_eq!(trail.sealed_at(), kept_at, "of a segment that is closed");
    trail.add_seal(1, &signed[1].1).unwrap();
    trail.add_seal(2, &signed[2].1).unwrap();
    trail.set_segment_limits(sized(1 << 20));
    let block = {
        trail
            .append(vec![change(Op::Delete, 5, "obs-2", "pt-1", "")])
            .unwrap();
        trail.add_seal(3, &signed[3].1).unwrap();
        close(&mut trail)
    };
    let seal = client.sign(block.root, block.level).await.unwrap().encode();
    trail.add_seal(block.block, &seal).unwrap();
    let kept_at = pitser_evidence::seal::time(&seal);
    assert_eq!(trail.sealed_at(), kept_at);
    drop(trail);
    assert_eq!(reopen(&dir).unwrap().0.sealed_at(), kept_at);

    let open = 4;
    let end = std::fs::metadata(layout.seals(open)).unwrap().len();
    for len in (8..end).filter(|len| len % 101 == 0 || *len < 12 || *len > end - 3) {
        let (copied, opened) = after(&dir, |layout| cut(&layout.seals(open), len));
        let (mut trail, _) = opened.unwrap();
        assert_eq!(
            trail.unsealed().map(|b| b.block).collect::<Vec<_>>(),
            [4],
            "cut at {len}"
        );
        trail.add_seal(4, &seal).unwrap();
        drop(trail);
        let view = read(&Layout::new(copied.path()), None, |_, _| {}).unwrap();
        assert!(view.blocks.iter().all(|b| b.seal.is_some()));
    }

    // The crash between putting the joined file in place and removing the parts.
    let (copied, opened) = after(&dir, |layout| {
        std::fs::create_dir(layout.parts(0)).unwrap();
        std::fs::write(layout.blocks(0), b"LOG12BLK").unwrap();
    });
    drop(opened.unwrap());
    assert!(!Layout::new(copied.path()).parts(0).exists());

    // A seal of another block is noticed.
    let (_copied, opened) = after(&dir, |layout| {
        let mut bytes = std::fs::read(layout.seals(open)).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        std::fs::write(layout.seals(open), bytes).unwrap();
    });
    assert!(
        matches!(opened, Err(TrailError::Read(ReadError::Damaged(_)))),
        "{opened:?}"
    );
    authority.shutdown().await.unwrap();
}

#[test]
fn what_was_altered_after_sealing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = create(dir.path());
    for event in events() {
        trail.append(event).unwrap();
    }
    close(&mut trail);
    trail
        .append(vec![change(Op::Delete, 5, "obs-2", "pt-1", "")])
        .unwrap();
    close(&mut trail);
    drop(trail);
    let lines = std::fs::read(Layout::new(dir.path()).segment(0)).unwrap();
    let check = |expected: Code, line: Option<u64>, damage: &dyn Fn(&Layout)| {
        let (copied, opened) = after(dir.path(), damage);
        let named = |found: &pitser_trail::Damage| {
            assert_eq!((found.code, found.line), (expected, line), "{found}");
        };
        match read(&Layout::new(copied.path()), None, |_, _| {}) {
            Err(ReadError::Damaged(found)) => named(&found),
            other => panic!("{other:?}"),
        }
        // What is before the map's newest commit is not read at each start.
        match opened {
            Err(TrailError::Read(ReadError::Damaged(found))) => named(&found),
            Ok(_) => assert_eq!(expected, Code::LineAltered),
            other => panic!("{other:?}"),
        }
    };
    // One letter of line 2.
    let at = lines
        .iter()
        .enumerate()
        .filter(|(_, b)| **b == b'\n')
        .nth(1)
        .unwrap()
        .0
        + 20;
    check(Code::LineAltered, Some(2), &|layout| {
        let mut lines = lines.clone();
        lines[at] ^= 1;
        std::fs::write(layout.segment(0), lines).unwrap();
    });
    // Line 2 is gone.
    check(Code::LineAltered, Some(2), &|layout| {
        let kept: Vec<_> = lines
            .split_inclusive(|b| *b == b'\n')
            .enumerate()
            .filter(|(n, _)| *n != 2)
            .map(|(_, l)| l)
            .collect();
        std::fs::write(layout.segment(0), kept.concat()).unwrap();
    });
    // The end is gone, and the blocks remember it.
    check(Code::TrailShort, None, &|layout| {
        cut(&layout.segment(0), lines.len() as u64 - 1)
    });
    // The first block is gone.
    check(Code::BlockMissing, None, &|layout| {
        let blocks = std::fs::read(layout.blocks(0)).unwrap();
        let first = pitser_ksi::logsig::read_block(&blocks[8..], 8)
            .unwrap()
            .unwrap()
            .bytes
            .len();
        std::fs::write(
            layout.blocks(0),
            [&blocks[..8], &blocks[8 + first..]].concat(),
        )
        .unwrap();
    });
}

/// Segments that were put back from an earlier time, beside a vault and a head of now: nothing
/// is thrown away because of them.
#[test]
fn segments_older_than_the_kept_head_are_refused_and_cost_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path());
    let segments = layout.segment(0).parent().unwrap().to_owned();
    let older = tempfile::tempdir().unwrap();
    let mut trail = create(dir.path());
    let [first, second, ..] = &events()[..] else {
        unreachable!("there are four");
    };
    trail.append(first.clone()).unwrap();
    trail.commit().unwrap();
    close(&mut trail);
    copy_folder(&segments, older.path());
    trail.append(second.clone()).unwrap();
    trail.commit().unwrap();
    close(&mut trail);
    let head = trail.sign_head();
    trail.store_head(&head).unwrap();
    drop(trail);

    let newer = tempfile::tempdir().unwrap();
    let put_back = |from: &Path| {
        std::fs::remove_dir_all(&segments).unwrap();
        copy_folder(from, &segments);
    };
    copy_folder(&segments, newer.path());
    put_back(older.path());
    match reopen(dir.path()) {
        Err(TrailError::Read(ReadError::Damaged(damage))) => {
            assert_eq!(damage.code, Code::TrailShort);
            assert!(
                damage.text.contains("over 2 blocks, and the trail has 1"),
                "{damage}"
            );
        }
        other => panic!("{:?}", other.map(|(_, recovery)| recovery)),
    }
    put_back(newer.path());
    drop(reopen(dir.path()).unwrap());
    let mut exporter = Exporter::open(layout).unwrap();
    let opened = (0..exporter.lines_read()).filter_map(|seq| exporter.opened(seq).unwrap().1);
    assert_eq!(
        opened.filter(|(_, content)| content.row.is_some()).count(),
        2
    );
}

/// A segment's age counts from its first block, also of a writer that was opened since;
/// what its lines tell of may be older than that.
#[test]
fn a_segment_is_closed_when_it_is_old() {
    let dir = tempfile::tempdir().unwrap();
    let day = SegmentLimits::default().age_s;
    let segments = |dir: &Path| Layout::new(dir).segment_numbers().unwrap().len();
    let block = |trail: &mut Trail, second: u64| {
        let mapping = Digest::of(&[b"mapping"]);
        trail
            .close_block(at(second), "4", mapping, "Block closed.")
            .unwrap()
    };
    let mut trail = create(dir.path());
    block(&mut trail, 3 * day);
    block(&mut trail, 4 * day - 1);
    assert_eq!(segments(dir.path()), 1);
    drop(trail);
    let (mut trail, _) = reopen(dir.path()).unwrap();
    block(&mut trail, 4 * day);
    assert_eq!(segments(dir.path()), 2);
    // The next one is young, and a clock that goes back makes none old.
    drop(trail);
    let (mut trail, _) = reopen(dir.path()).unwrap();
    block(&mut trail, 4 * day + 5);
    block(&mut trail, 3);
    assert_eq!(segments(dir.path()), 2);
    block(&mut trail, 5 * day + 5);
    assert_eq!(segments(dir.path()), 3);
    drop(trail);
    read(&Layout::new(dir.path()), None, |_, _| {}).unwrap();
}

#[test]
fn one_writer_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let trail = create(dir.path());
    assert!(matches!(reopen(dir.path()), Err(TrailError::Locked(_))));
    drop(trail);
    reopen(dir.path()).unwrap();
    assert!(matches!(
        Trail::create(Layout::new(dir.path()), "o/s", &genesis()),
        Err(TrailError::Exists(_))
    ));
}

#[test]
fn lines_that_are_made_durable_behind_their_writer_are_there_like_others() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = create(dir.path());
    let [first, second, third, fourth] = <[_; 4]>::try_from(events()).unwrap();
    let is_there = |trail: &mut Trail, seq| trail.vault().get(seq).unwrap().is_some();
    trail.append(first).unwrap();
    trail.commit_behind().unwrap();
    // Of what is under way the vault gives what was put there; a line is not durable.
    assert!(is_there(&mut trail, 1));
    assert_eq!(trail.line(1).unwrap(), None);
    assert!(!trail.is_durable());
    trail.append(second).unwrap();
    trail.commit_behind().unwrap();
    assert_eq!(trail.line(1).unwrap().unwrap().seq, 1);
    assert_eq!(trail.line(2).unwrap(), None);
    trail.append(third).unwrap();
    assert!((1..=5).all(|seq| is_there(&mut trail, seq)));
    trail.commit().unwrap();
    assert!(trail.is_durable());
    assert_eq!(trail.line(5).unwrap().unwrap().seq, 5);
    trail.append(fourth).unwrap();
    trail.commit_behind().unwrap();
    drop(trail);
    let (mut trail, recovery) = reopen(dir.path()).unwrap();
    assert_eq!(recovery, Recovery::default());
    assert!((1..=6).all(|seq| is_there(&mut trail, seq)));
    goes_on(dir.path(), trail, 4);
}

/// Its number is not known to whoever writes it, and changes with the block's end before.
#[test]
fn a_finding_may_be_about_the_first_line_of_its_own_event() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = create(dir.path());
    let finding = || Draft {
        body: Some(Box::new(Body::EventFinding {
            code: Code::Truncated,
            text: "the table was truncated".into(),
        })),
        ..Draft::new(Op::Finding, at(2), "guardian", "2")
    };
    let read = || change(Op::Read, 2, "obs-1", "pt-1", "");
    trail.append(vec![read()]).unwrap();
    close(&mut trail);
    let events = vec![
        vec![read()],
        vec![read(), read(), finding()],
        vec![finding()],
    ];
    let first = trail.append_all(events).unwrap();
    trail.commit().unwrap();
    let about = |seq| trail.line(seq).unwrap().unwrap().finding.unwrap().about;
    assert_eq!(about(first + 3), Some(first + 1));
    assert_eq!(about(first + 4), Some(first + 4), "it is its own event");
}

/// What no reader would take is not begun, and the trail goes on once there is room.
#[test]
fn a_block_gets_no_more_lines_than_a_reader_takes() {
    let dir = tempfile::tempdir().unwrap();
    let mut trail = create(dir.path());
    let reads = |number: usize| {
        let read = || vec![change(Op::Read, 2, "obs-1", "pt-1", "")];
        (0..number).map(|_| read()).collect::<Vec<_>>()
    };
    let room = MAX_BLOCK_LINES - trail.open_lines();
    trail.append_all(reads(room - 1)).unwrap();
    let refused = trail.append_all(reads(2)).unwrap_err();
    let TrailError::BlockFull { open, lines } = refused else {
        panic!("{refused}");
    };
    assert_eq!((open, lines), (MAX_BLOCK_LINES - 1, 2));
    trail.append_all(reads(1)).unwrap();
    let refused = trail.append(reads(1).remove(0)).unwrap_err();
    assert!(refused.to_string().contains("do not fit"), "{refused}");
    assert_eq!(close(&mut trail).count as usize, MAX_BLOCK_LINES + 1);
    trail.append_all(reads(3)).unwrap();
    close(&mut trail);
    let lines = trail.state().next_seq();
    drop(trail);
    let (trail, recovery) = reopen(dir.path()).unwrap();
    assert_eq!(
        (trail.state().next_seq(), recovery),
        (lines, Recovery::default())
    );
}
