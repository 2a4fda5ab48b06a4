//! Segments in an archive: moved once, whole or not at all, wherever it is interrupted;
//! read as before; believed nothing.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail loudly")]

#[path = "common/authority.rs"]
mod authority;
mod common;
#[path = "common/copy_folder.rs"]
mod copy_folder;

use common::{at, genesis};
use copy_folder::copy_folder;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pitser_evidence::Code;
use pitser_evidence::codec::Digest;
use pitser_evidence::line::Op;
use pitser_trail::archive::{Archive, ArchiveError, MoveError, MoveOptions, move_segments};
use pitser_trail::copy::{CopyOptions, copy};
use pitser_trail::export::Exporter;
use pitser_trail::{Damage, Draft, Layout, PatientId, ReadError, Row, SegmentLimits, Trail, read};
use tempfile::TempDir;

const SEGMENTS: u32 = 4;

/// A folder that fails once so many calls were made, before or after doing as it was told.
#[derive(Debug)]
struct Folder {
    dir: PathBuf,
    calls: AtomicUsize,
    fails_at: usize,
    does_it_first: bool,
}

impl Folder {
    fn new(dir: impl Into<PathBuf>) -> Arc<Self> {
        Self::failing(dir, usize::MAX, false)
    }

    fn failing(dir: impl Into<PathBuf>, fails_at: usize, does_it_first: bool) -> Arc<Self> {
        Arc::new(Self {
            dir: dir.into(),
            calls: AtomicUsize::new(0),
            fails_at,
            does_it_first,
        })
    }

    fn call<T>(&self, work: impl FnOnce() -> Result<T, ArchiveError>) -> Result<T, ArchiveError> {
        if self.calls.fetch_add(1, Ordering::Relaxed) != self.fails_at {
            return work();
        }
        if self.does_it_first {
            work()?;
        }
        Err(ArchiveError::Failed("the line was cut".into()))
    }
}

impl Archive for Folder {
    fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), ArchiveError> {
        self.call(|| {
            let path = self.dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            if !path.exists() {
                fs::write(path, bytes).unwrap();
            }
            Ok(())
        })
    }

    fn get(&self, name: &str, max: usize) -> Result<Vec<u8>, ArchiveError> {
        self.call(|| {
            let bytes = fs::read(self.dir.join(name));
            let bytes = bytes.map_err(|_| ArchiveError::Missing(format!("no {name}")))?;
            match bytes.len() > max {
                true => Err(ArchiveError::TooLong(format!("{name} is too long"))),
                false => Ok(bytes),
            }
        })
    }

    fn name(&self) -> String {
        "a folder of the test".into()
    }
}

fn change(op: Op, pos: u64) -> Draft {
    let text = |value: String| Some(value.into_bytes().into());
    Draft {
        table: Some("observation".into()),
        key: Some(vec![b"tobs-1".to_vec()]),
        patient: Some(PatientId::Id("pt-1".into())),
        row: Some(Row {
            names: ["id".to_owned(), "value".to_owned()].into(),
            values: vec![text("tobs-1".into()), text(format!("t{pos}"))],
        }),
        ..Draft::new(op, at(pos), "ehr", pos.to_string())
    }
}

fn close(trail: &mut Trail, second: u64) -> pitser_trail::BlockSummary {
    let mapping = Digest::of(&[b"mapping"]);
    let pos = second.to_string();
    trail
        .close_block(at(second), &pos, mapping, "Block closed.")
        .unwrap()
}

/// A trail of [`SEGMENTS`] closed and sealed segments and one that has begun, all of
/// whose blocks the map has.
async fn trail() -> TempDir {
    trail_of_map(1).await
}

/// The same, whose map is committed after so many lines.
async fn trail_of_map(commit_lines: u64) -> TempDir {
    let dir = TempDir::new().unwrap();
    let (authority, client) = authority::start(&dir.path().join("authority")).await;
    let layout = Layout::new(dir.path().join("hospital"));
    let mut trail = Trail::create(layout, "test.example/hospital", &genesis()).unwrap();
    trail.set_map_commit_lines(commit_lines);
    trail.set_segment_limits(SegmentLimits {
        bytes: 1,
        ..SegmentLimits::default()
    });
    for number in 1..=u64::from(SEGMENTS) {
        let op = if number == 1 { Op::Create } else { Op::Update };
        trail.append(vec![change(op, number)]).unwrap();
        trail.commit().unwrap();
        close(&mut trail, number);
        authority::seal(&mut trail, &client).await;
    }
    // The last line that the map has is not archived.
    trail.set_segment_limits(SegmentLimits::default());
    trail.append(vec![change(Op::Update, 8)]).unwrap();
    close(&mut trail, 8);
    authority::seal(&mut trail, &client).await;
    let head = trail.sign_head();
    trail.store_head(&head).unwrap();
    trail.append(vec![change(Op::Update, 9)]).unwrap();
    trail.commit().unwrap();
    drop(trail);
    authority.shutdown().await.unwrap();
    dir
}

/// A copy of the trail, and an empty archive.
struct Site(TempDir);

impl Site {
    fn of(original: &TempDir) -> Self {
        let dir = TempDir::new().unwrap();
        copy_folder(
            &original.path().join("hospital"),
            &dir.path().join("hospital"),
        );
        Self(dir)
    }

    fn bare(&self) -> Layout {
        Layout::new(self.0.path().join("hospital"))
    }

    fn archive(&self) -> PathBuf {
        self.0.path().join("archive")
    }

    fn layout(&self) -> Layout {
        self.with(Folder::new(self.archive()), 1 << 20)
    }

    fn with(&self, archive: Arc<Folder>, cache_bytes_max: u64) -> Layout {
        self.bare().with_archive(archive, cache_bytes_max)
    }

    fn move_all(&self) -> Result<Vec<u32>, MoveError> {
        moved(&self.layout(), 0)
    }

    /// Objects whose names end so.
    fn objects(&self, ending: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.archive()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => found.push(path),
                }
            }
        }
        found.retain(|path| path.to_str().unwrap().ends_with(ending));
        found.sort();
        found
    }
}

fn moved(layout: &Layout, keep: usize) -> Result<Vec<u32>, MoveError> {
    let mut numbers = Vec::new();
    let options = MoveOptions {
        keep,
        ..MoveOptions::default()
    };
    move_segments(layout, options, |one| numbers.push(one.segment))?;
    Ok(numbers)
}

/// What everything in a trail comes to.
fn comes_to(layout: &Layout) -> Result<(u64, [u8; 32], [u8; 32]), ReadError> {
    let mut view = read(layout, None, |_, _| {})?;
    Ok((
        view.state.next_seq(),
        view.index.log().root(),
        view.state.root().unwrap(),
    ))
}

fn damaged(layout: &Layout) -> Damage {
    match read(layout, None, |_, _| {}) {
        Err(ReadError::Damaged(damage)) => damage,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn archived_segments_are_read_as_before_and_the_trail_goes_on() {
    let original = trail().await;
    let site = Site::of(&original);
    let before = comes_to(&site.bare()).unwrap();
    let history = |layout: Layout| {
        let mut exporter = Exporter::open(layout).unwrap();
        let entries = exporter.patient_history("pt-1").unwrap();
        let line = |entry: pitser_trail::export::Entry| (entry.line.encode(), entry.content);
        entries
            .map(|entry| line(entry.unwrap()))
            .collect::<Vec<_>>()
    };
    let told = history(site.bare());
    assert_eq!(told.len(), SEGMENTS as usize + 2);
    let evidence = |layout: Layout| {
        let mut exporter = Exporter::open_at_head(layout).unwrap();
        let evidence = exporter.evidence("pt-1", None, None, |_, seal| seal.to_vec());
        evidence.unwrap().encode()
    };
    let proved = evidence(site.bare());
    let outlines = site.bare().dir().join("outlines");
    fs::remove_dir_all(&outlines).unwrap();

    assert_eq!(moved(&site.layout(), 2).unwrap(), [0, 1]);
    assert_eq!(moved(&site.layout(), 0).unwrap(), [2, 3]);
    assert!(moved(&site.layout(), 0).unwrap().is_empty());
    for number in 0..SEGMENTS {
        assert!(!site.bare().segment(number).exists());
        assert!(!site.bare().logsig(number).exists());
    }
    assert_eq!(comes_to(&site.layout()).unwrap(), before);
    assert_eq!(history(site.layout()), told);
    // Outlines were made when segments were moved, and are made again.
    assert_eq!(fs::read_dir(&outlines).unwrap().count(), SEGMENTS as usize);
    assert_eq!(evidence(site.layout()), proved);
    fs::remove_dir_all(&outlines).unwrap();
    assert_eq!(evidence(site.layout()), proved);
    assert_eq!(fs::read_dir(&outlines).unwrap().count(), SEGMENTS as usize);
    // What is stored is plain zstd of the very files.
    for (number, object) in site.objects(".jsonl.zst").iter().enumerate() {
        let unpacked = zstd::decode_all(&*fs::read(object).unwrap()).unwrap();
        let layout = Layout::new(original.path().join("hospital"));
        let file = layout.segment(u32::try_from(number).unwrap());
        assert_eq!(unpacked, fs::read(file).unwrap());
    }

    let elsewhere = read(&site.bare(), None, |_, _| {});
    assert!(
        matches!(elsewhere, Err(ReadError::Elsewhere(_))),
        "{elsewhere:?}"
    );
    let again = Trail::create(site.bare(), "test.example/hospital", &genesis());
    assert!(again.is_err(), "a trail was begun beside an archived one");

    let (mut trail, (), _) = Trail::open::<()>(site.layout()).unwrap();
    trail.append(vec![change(Op::Update, 10)]).unwrap();
    trail.commit().unwrap();
    close(&mut trail, 11);
    assert_eq!(trail.line(0).unwrap().unwrap().op, Op::Genesis);
    drop(trail);
    assert_eq!(comes_to(&site.layout()).unwrap().0, before.0 + 2);
    assert_eq!(history(site.layout()).len(), told.len() + 1);
}

/// The archive fails at each call in turn, having done what it was told or not: nothing is
/// lost, everything reads, and the next run ends it.
#[tokio::test(flavor = "multi_thread")]
async fn interrupted_at_every_call_it_is_done_by_the_next_run() {
    let original = trail().await;
    let before = comes_to(&Site::of(&original).bare()).unwrap();
    let mut interrupted = 0;
    for does_it_first in [false, true] {
        for fails_at in 0.. {
            let site = Site::of(&original);
            let archive = Folder::failing(site.archive(), fails_at, does_it_first);
            match moved(&site.with(archive, 0), 0) {
                Ok(_) => break,
                Err(error) => assert!(matches!(error, MoveError::Archive(_)), "{error:?}"),
            }
            interrupted += 1;
            assert_eq!(comes_to(&site.layout()).unwrap(), before, "call {fails_at}");
            site.move_all().unwrap();
            assert_eq!(comes_to(&site.layout()).unwrap(), before, "call {fails_at}");
            assert_eq!(site.bare().segment_numbers().unwrap(), [0, 1, 2, 3, 4]);
            assert!(!site.bare().segment(3).exists());
        }
    }
    // Three objects a segment, each put and read back.
    assert_eq!(interrupted, 2 * 6 * SEGMENTS as usize);
}

/// Killed between the receipt and the removal of either file.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_leaves_beside_a_receipt_is_read_and_then_removed() {
    let original = trail().await;
    let whole = Layout::new(original.path().join("hospital"));
    let before = comes_to(&whole).unwrap();
    for left in [&[Layout::segment, Layout::logsig][..], &[Layout::logsig]] {
        let site = Site::of(&original);
        site.move_all().unwrap();
        for path in left {
            fs::copy(path(&whole, 1), path(&site.bare(), 1)).unwrap();
        }
        assert_eq!(comes_to(&site.layout()).unwrap(), before);
        drop(Trail::open::<()>(site.layout()).unwrap());
        assert_eq!(site.move_all().unwrap(), [1]);
        assert!(left.iter().all(|path| !path(&site.bare(), 1).exists()));
        assert_eq!(comes_to(&site.layout()).unwrap(), before);

        // A file that is not what was archived is kept, for whoever looks into it.
        let mut other = fs::read(whole.logsig(1)).unwrap();
        other.push(0);
        fs::write(site.bare().logsig(1), other).unwrap();
        let refused = site.move_all().unwrap_err();
        assert!(refused.to_string().contains("both are kept"), "{refused}");
        assert!(site.bare().logsig(1).exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_altered_object_is_named() {
    let original = trail().await;
    let site = Site::of(&original);
    site.move_all().unwrap();
    // Nothing is kept here, so that each reading asks the archive.
    let layout = || site.with(Folder::new(site.archive()), 0);
    let objects = [
        site.objects("2.jsonl.zst"),
        site.objects("2.jsonl.logsig.zst"),
    ]
    .concat();
    assert_eq!(objects.len(), 2);
    for object in objects {
        let good = fs::read(&object).unwrap();
        let mut flipped = good.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        let longer = [&good[..], b"0"].concat();
        for bytes in [&flipped[..], &good[1..], &longer, b""] {
            fs::write(&object, bytes).unwrap();
            let found = damaged(&layout());
            assert_eq!(found.code, Code::LineAltered);
            assert!(found.text.contains("000002.jsonl"), "{found}");
        }
        fs::remove_file(&object).unwrap();
        assert_eq!(damaged(&layout()).code, Code::BlockMissing);
        fs::write(&object, good).unwrap();
    }
    comes_to(&layout()).unwrap();

    // An archive and receipts that agree on another history do not make it this one.
    let receipts: Vec<_> = (1..=2).map(|n| site.bare().receipt(n)).collect();
    let first = fs::read_to_string(&receipts[0]).unwrap();
    fs::write(
        &receipts[1],
        first.replace("\"segment\":1", "\"segment\":2"),
    )
    .unwrap();
    assert_eq!(damaged(&layout()).code, Code::BlockMissing);
    fs::write(&receipts[1], first).unwrap();
    assert!(damaged(&layout()).text.contains("no receipt of segment 2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_is_away_says_nothing_about_the_trail() {
    let original = trail().await;
    let site = Site::of(&original);
    site.move_all().unwrap();
    let away = site.with(Folder::failing(site.archive(), 0, false), 0);
    let error = read(&away, None, |_, _| {}).unwrap_err();
    assert!(matches!(error, ReadError::Archive(_)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patient_whose_lines_are_lost_is_erased_all_the_same() {
    let original = trail().await;
    let site = Site::of(&original);
    // More lines than are found together; an orderly end then keeps the map, without
    // which the trail is read from its genesis.
    let (mut trail, (), _) = Trail::open::<()>(site.bare()).unwrap();
    for pos in 10..80 {
        trail.append(vec![change(Op::Update, pos)]).unwrap();
    }
    close(&mut trail, 80);
    drop(trail);
    moved(&site.layout(), 1).unwrap();
    fs::remove_dir_all(site.archive()).unwrap();
    let (mut trail, (), _) = Trail::open::<()>(site.layout()).unwrap();
    assert!(trail.line(1).is_err(), "its first line is in the archive");
    let plan = trail.plan_erasure("pt-1").unwrap();
    assert_eq!((plan.lines, plan.live_rows), (u64::from(SEGMENTS) + 72, 1));
    let (code, _) = trail
        .request_erasure("pt-1", "GDPR art. 17", "Mari", at(90))
        .unwrap();
    trail.confirm_erasure(&code, "Jaan", at(91), "80").unwrap();
    assert!(!trail.plan_erasure("pt-1").unwrap().has_key);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_fetched_is_kept_within_bounds_and_not_believed() {
    let original = trail().await;
    let site = Site::of(&original);
    site.move_all().unwrap();
    let sizes: Vec<u64> = [".jsonl.zst", ".logsig.zst"]
        .iter()
        .flat_map(|ending| site.objects(ending))
        .map(|path| fs::metadata(path).unwrap().len())
        .collect();
    let all: u64 = sizes.iter().sum();
    let cache = site.bare().dir().join("archive-cache");
    let kept = || {
        let files = fs::read_dir(&cache)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        files.collect::<Vec<_>>()
    };

    comes_to(&site.with(Folder::new(site.archive()), all)).unwrap();
    assert_eq!(kept().len(), sizes.len());
    // Everything is here, so the archive is not asked.
    let away = Folder::failing(site.archive(), 0, false);
    comes_to(&site.with(Arc::clone(&away), all)).unwrap();
    assert_eq!(away.calls.load(Ordering::Relaxed), 0);
    for path in kept() {
        fs::write(path, b"something else").unwrap();
    }
    comes_to(&site.with(Folder::new(site.archive()), all)).unwrap();

    let bound = all / 2;
    comes_to(&site.with(Folder::new(site.archive()), bound)).unwrap();
    fs::remove_dir_all(&cache).unwrap();
    comes_to(&site.with(Folder::new(site.archive()), bound)).unwrap();
    let used: u64 = kept()
        .iter()
        .map(|path| fs::metadata(path).unwrap().len())
        .sum();
    assert!(0 < used && used <= bound, "{used} of {bound}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_whole_is_moved_and_nothing_is_overwritten() {
    let original = trail().await;
    // Somebody altered a line after it was sealed.
    let site = Site::of(&original);
    let path = site.bare().segment(1);
    let mut lines = fs::read(&path).unwrap();
    let value = lines.windows(6).position(|w| w == b"\"pos\":").unwrap() + 7;
    lines[value] = b'7';
    fs::write(&path, &lines).unwrap();
    let refused = site.move_all();
    assert!(
        matches!(refused, Err(MoveError::Read(ReadError::Damaged(_)))),
        "{refused:?}"
    );
    assert_eq!(fs::read(&path).unwrap(), lines);
    assert!(site.objects("1.jsonl.zst").is_empty());

    // Something else stands where the segment goes.
    let site = Site::of(&original);
    site.move_all().unwrap();
    let taken = site.objects("1.jsonl.zst");
    let other = fs::read(&site.objects("2.jsonl.zst")[0]).unwrap();
    let site2 = Site::of(&original);
    let object = taken[0].strip_prefix(site.archive()).unwrap();
    let path = site2.archive().join(object);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, &other).unwrap();
    let refused = site2.move_all();
    assert!(
        matches!(refused, Err(MoveError::Taken { .. })),
        "{refused:?}"
    );
    assert!(site2.bare().segment(1).exists() && site2.bare().logsig(1).exists());
    assert_eq!(fs::read(&path).unwrap(), other);
}

/// A segment whose seals have not all come is the writer's.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_seal_stays() {
    let original = trail().await;
    let site = Site::of(&original);
    let (mut trail, (), _) = Trail::open::<()>(site.layout()).unwrap();
    trail.set_segment_limits(SegmentLimits {
        bytes: 1,
        ..SegmentLimits::default()
    });
    close(&mut trail, 11);
    // The writer is there all the time.
    assert_eq!(site.move_all().unwrap(), [0, 1, 2, 3]);
    assert!(site.bare().segment(4).exists());
    trail.append(vec![change(Op::Update, 12)]).unwrap();
    trail.commit().unwrap();
    drop(trail);
    comes_to(&site.layout()).unwrap();
}

/// Lines that the map does not have yet are replayed when the trail is opened, which must
/// not take the archive.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_map_does_not_cover_stays() {
    let original = trail_of_map(1000).await;
    let site = Site::of(&original);
    assert!(site.move_all().unwrap().is_empty());
    drop(Trail::open::<()>(site.bare()).unwrap());
    // Two lines a segment: one commit, after the third block, whose last line stays.
    let original = trail_of_map(7).await;
    let site = Site::of(&original);
    let moved = site.move_all().unwrap();
    assert!(
        !moved.is_empty() && moved.len() < SEGMENTS as usize,
        "{moved:?}"
    );
    let (mut trail, (), _) = Trail::open::<()>(site.bare()).unwrap();
    trail.set_map_commit_lines(1);
    close(&mut trail, 11);
    trail.append(vec![change(Op::Update, 12)]).unwrap();
    drop(trail);
    let rest = site.move_all().unwrap();
    assert_eq!([moved, rest].concat(), [0, 1, 2, 3]);
}

/// What DuckDB, which knows nothing of this program, reads is what the lines say.
#[cfg(feature = "parquet")]
#[tokio::test(flavor = "multi_thread")]
async fn duckdb_reads_the_events() {
    let python = |script: &str, arguments: &[PathBuf]| {
        let mut command = std::process::Command::new("python3");
        command.args(["-c", script]).args(arguments).output()
    };
    let has_duckdb = python("import duckdb", &[]);
    if !has_duckdb.is_ok_and(|output| output.status.success()) {
        return println!("skipped: no DuckDB for python3 here (pip install duckdb)");
    }
    let original = trail().await;
    let site = Site::of(&original);
    let options = MoveOptions {
        keep: 0,
        parquet: true,
    };
    move_segments(&site.layout(), options, |_| {}).unwrap();
    assert_eq!(site.objects(".parquet").len(), SEGMENTS as usize);

    let mut told = Vec::new();
    let view = read(&site.layout(), None, |line, place| {
        if place.segment < SEGMENTS {
            let patient = line.patient.map_or("None".to_owned(), |it| it.to_string());
            let block = line.checkpoint.as_ref().map(|it| it.block.to_string());
            told.push(format!(
                "{} {} {} {} {} {} {} {patient} {}",
                line.seq,
                line.at.micros(),
                line.op.as_str(),
                line.pos,
                line.table.as_deref().unwrap_or("None"),
                line.row.map_or("None".to_owned(), |row| row.to_string()),
                Digest::of(&[&line.encode()]),
                block.unwrap_or("None".to_owned()),
            ));
        }
    });
    assert!(view.unwrap().blocks.len() >= SEGMENTS as usize);
    let script = r#"
import duckdb, sys
query = """select seq, epoch_us("at"), op, pos, "table", "row", hash, patient, block
           from read_parquet(?) order by seq"""
for row in duckdb.execute(query, [sys.argv[1] + "/**/*.parquet"]).fetchall():
    print(*row)
types = duckdb.execute("select typeof(\"at\") from read_parquet(?) limit 1",
                       [sys.argv[1] + "/**/*.parquet"]).fetchone()[0]
assert types == "TIMESTAMP WITH TIME ZONE", types
"#;
    let output = python(script, &[site.archive()]).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let read: Vec<_> = std::str::from_utf8(&output.stdout)
        .unwrap()
        .lines()
        .collect();
    assert_eq!(read, told);
}

/// What the archive has lost was put back from a copy: that is the only one now.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_put_back_is_archived_again_before_it_is_removed() {
    let original = trail().await;
    let whole = Layout::new(original.path().join("hospital"));
    let before = comes_to(&whole).unwrap();
    for lost in [".jsonl.zst", ".logsig.zst"] {
        let site = Site::of(&original);
        site.move_all().unwrap();
        fs::remove_file(&site.objects(lost)[1]).unwrap();
        assert_eq!(damaged(&site.layout()).code, Code::BlockMissing);
        // The log signature alone: nobody has the lines that it is about.
        fs::copy(whole.logsig(1), site.bare().logsig(1)).unwrap();
        if lost == ".jsonl.zst" {
            site.move_all().unwrap_err();
            assert!(site.bare().logsig(1).exists());
            fs::copy(whole.segment(1), site.bare().segment(1)).unwrap();
        }
        assert_eq!(comes_to(&site.layout()).unwrap(), before);
        assert_eq!(site.move_all().unwrap(), [1]);
        assert!(!site.bare().segment(1).exists() && !site.bare().logsig(1).exists());
        assert_eq!(comes_to(&site.layout()).unwrap(), before);
    }
}

/// Making the map anew needs what the archive has; when that fails, the map stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_map_that_cannot_be_made_anew_stays() {
    let original = trail().await;
    let site = Site::of(&original);
    site.move_all().unwrap();
    drop(Trail::open::<()>(site.layout()).unwrap());
    let map = || {
        let files = fs::read_dir(site.bare().map()).unwrap();
        let mut files: Vec<_> = files
            .map(|file| file.unwrap())
            .map(|file| (file.file_name(), fs::read(file.path()).unwrap()))
            .collect();
        files.sort();
        files
    };
    let before = map();
    assert!(!before.is_empty());
    let Err(error) = Trail::rebuild::<()>(site.bare(), &mut |_| {}) else {
        panic!("made of nothing");
    };
    assert!(error.to_string().contains("archive"), "{error}");
    assert!(map() == before);
    drop(Trail::rebuild::<()>(site.layout(), &mut |_| {}).unwrap());
    assert!(!map().is_empty());
    assert!(!site.bare().dir().join("map.before").exists());
}

/// What moved between two copies, and what had moved before the first: receipts stand for
/// it, and whoever has the archive reads the copy as the trail.
#[tokio::test(flavor = "multi_thread")]
async fn a_trail_is_copied_with_the_receipts_of_what_is_archived() {
    let original = trail().await;
    let site = Site::of(&original);
    let before = comes_to(&site.bare()).unwrap();
    let [earlier, anew, without] = [(); 3].map(|()| TempDir::new().unwrap());
    let copied =
        |from: Layout, to: &TempDir| copy(&from, to.path(), CopyOptions::default(), &mut |_| {});
    let first = copied(site.layout(), &earlier).unwrap();
    assert_eq!(moved(&site.layout(), 2).unwrap(), [0, 1]);
    let second = copied(site.layout(), &earlier).unwrap();
    assert_eq!((second.blocks, second.replayed), (first.blocks, 0));
    site.move_all().unwrap();
    for (target, replayed) in [(&earlier, 0), (&anew, first.blocks)] {
        let told = copied(site.layout(), target).unwrap();
        assert_eq!((told.blocks, told.replayed), (first.blocks, replayed));
        assert_eq!((told.lines, told.sealed), (first.lines, first.sealed));
        let there = Layout::new(target.path());
        for number in 0..SEGMENTS {
            assert!(there.receipt(number).exists());
            assert!(!there.segment(number).exists() && !there.logsig(number).exists());
        }
        let there = there.with_archive(Folder::new(site.archive()), 1 << 20);
        assert_eq!(comes_to(&there).unwrap(), before);
        let (trail, (), recovery) = Trail::open::<()>(there).unwrap();
        assert_eq!((recovery.cut_bytes, trail.blocks()), (0, first.blocks));
    }

    // Without the archive nobody knows whether that is the same trail, nor replays it.
    for target in [&without, &anew] {
        let error = copied(site.bare(), target).unwrap_err().to_string();
        assert!(
            error.contains("name the configuration whose [archive]"),
            "{error}"
        );
    }
    assert!(!without.path().join("trail").exists(), "no copy");
    let kept = Layout::new(anew.path()).with_archive(Folder::new(site.archive()), 1 << 20);
    assert_eq!(comes_to(&kept).unwrap(), before);
    // An object that is not as it was sealed is no part of a copy.
    let object = &site.objects(".jsonl.zst")[0];
    fs::write(object, b"nothing").unwrap();
    fs::remove_dir_all(site.bare().dir().join("archive-cache")).unwrap();
    copied(site.layout(), &without).unwrap_err();
    assert!(!without.path().join("trail").exists(), "no copy");
}
