//! Copies of a trail that is written meanwhile: each is a trail itself, and can be gone on
//! with.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail loudly")]

#[path = "common/authority.rs"]
mod authority;
mod common;
#[path = "common/copy_folder.rs"]
mod copy_folder;

use common::{at, genesis};
use copy_folder::copy_folder;
use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;

use pitser_client::Client;
use pitser_evidence::codec::Digest;
use pitser_evidence::line::Op;
use pitser_trail::copy::{Copied, CopyError, CopyOptions, Progress, copy};
use pitser_trail::{Draft, Layout, PatientId, Row, SegmentLimits, Trail, check};
use tempfile::TempDir;

const EVERYTHING: CopyOptions = CopyOptions {
    without_keys: false,
};

/// A trail whose blocks' seals were made, and are not there yet.
struct Written {
    dir: TempDir,
    trail: Trail,
    seals: VecDeque<(u64, Vec<u8>)>,
    client: Client,
    _authority: pitser_authority::AuthorityHandle,
}

impl Written {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (authority, client) = authority::start(&dir.path().join("authority")).await;
        let layout = Layout::new(dir.path().join("trail"));
        let trail = Trail::create(layout, "test.example/copy", &genesis()).unwrap();
        Self {
            dir,
            trail,
            seals: VecDeque::new(),
            client,
            _authority: authority,
        }
    }

    /// So many blocks more, and a seal of each that is held back.
    async fn blocks(&mut self, more: u64) {
        for _ in 0..more {
            self.block();
        }
        let known = self.seals.len();
        let waiting: Vec<_> = self.trail.unsealed().skip(known).cloned().collect();
        let mut making = tokio::task::JoinSet::new();
        for block in waiting {
            let client = self.client.clone();
            making.spawn(async move {
                let seal = client.sign(block.root, block.level).await.unwrap();
                (block.block, seal.encode())
            });
        }
        let mut made = making.join_all().await;
        made.sort_unstable();
        self.seals.extend(made);
    }

    /// A line about a patient, and a block around it.
    fn block(&mut self) {
        self.line();
        let mapping = Digest::of(&[b"mapping"]);
        self.trail
            .close_block(at(9), "1", mapping, "Block closed.")
            .unwrap();
    }

    fn line(&mut self) {
        let seq = self.trail.state().next_seq();
        self.line_of(format!("pt-{}", seq % 5));
    }

    fn line_of(&mut self, patient: String) {
        self.line_with(patient, None);
    }

    fn line_with(&mut self, patient: String, value: Option<Vec<u8>>) {
        let seq = self.trail.state().next_seq();
        let row = Row {
            names: ["id".to_owned(), "value".to_owned()].into(),
            values: vec![
                Some(format!("t{seq}").into_bytes().into()),
                value.map(Into::into),
            ],
        };
        let draft = Draft {
            table: Some("observation".into()),
            key: Some(vec![format!("t{seq}").into_bytes()]),
            patient: Some(PatientId::Id(patient)),
            row: Some(row),
            ..Draft::new(Op::Create, at(seq), "ehr", seq.to_string())
        };
        self.trail.append(vec![draft]).unwrap();
        self.trail.commit().unwrap();
    }

    /// The next seal comes.
    fn seal(&mut self) {
        if let Some((block, seal)) = self.seals.pop_front() {
            self.trail.add_seal(block, &seal).unwrap();
        }
    }

    fn erase(&mut self, patient: &str) {
        let asked = self.trail.request_erasure(patient, "GDPR", "Mari", at(20));
        let (code, _) = asked.unwrap();
        self.trail
            .confirm_erasure(&code, "Jaan", at(21), "6")
            .unwrap();
    }

    /// Copies the trail, which then loses its last line in a crash: another content comes to
    /// stand where that of the line was.
    fn copy_and_lose_a_line(mut self, to: &Path) -> (Self, Copied) {
        let layout = self.layout();
        let file = layout.vault().join(CONTENTS);
        let before = fs::read(&file).unwrap();
        self.line();
        let lines = fs::read(layout.segment(0)).unwrap();
        let told = self.copy(to).unwrap();
        drop(self.trail);
        let end = lines[..lines.len() - 1].iter().rposition(|b| *b == b'\n');
        fs::write(layout.segment(0), &lines[..=end.unwrap()]).unwrap();
        let (trail, (), _) = Trail::open::<()>(layout).unwrap();
        self.trail = trail;
        assert!(
            fs::read(&file).unwrap() == before,
            "a content without its line"
        );
        (0..3).for_each(|_| self.line());
        (self, told)
    }

    fn layout(&self) -> Layout {
        Layout::new(self.dir.path().join("trail"))
    }

    fn copy(&self, to: &Path) -> Result<Copied, CopyError> {
        copy(&self.layout(), to, EVERYTHING, &mut |_| {})
    }
}

/// A copy is a trail that follows from its first to its last line, and whose guardian
/// goes on, with all that its lines commit to.
#[track_caller]
fn is_whole(copied: &Path, told: Copied) {
    let view = check(&Layout::new(copied)).unwrap();
    assert_eq!(view.log().size(), told.blocks);
    assert_eq!(told.blocks - view.seals.waiting.len() as u64, told.sealed);
    assert_eq!(view.state.next_seq(), told.lines);
    let restored = tempfile::tempdir().unwrap();
    copy_folder(copied, restored.path());
    let layout = Layout::new(restored.path());
    let (mut trail, (), recovery) = Trail::open::<()>(layout).unwrap();
    assert_eq!((recovery.cut_bytes, recovery.rebuilt_block), (0, false));
    assert_eq!(trail.state().next_seq(), told.lines);
    let mut gone = 0;
    for seq in 0..told.lines {
        let line = trail.line(seq).unwrap().unwrap();
        if line.row.is_some() && trail.vault().get(seq).unwrap().is_none() {
            gone += 1;
        }
        if line.op == Op::Erase {
            // Hers, before that line.
            gone = 0;
        }
    }
    assert_eq!(gone, 0, "of a patient who was not erased");
}

/// What a guardian may do while it is copied from.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Meanwhile {
    /// A seal comes, and the next block names it.
    Seals,
    /// So it does, and the segment is closed.
    Closes,
    /// Somebody is erased.
    Erases,
}

/// At each step of a copy the writer goes on, at one or at all of them.
async fn copied_while(what: Meanwhile) {
    let mut written = Written::new().await;
    written.blocks(40).await;
    written.seal();
    if what == Meanwhile::Closes {
        written.trail.set_segment_limits(SegmentLimits {
            bytes: 1,
            age_s: u64::MAX,
        });
    }
    let layout = written.layout();
    for step in (0..12).map(Some).chain([None]) {
        let target = tempfile::tempdir().unwrap();
        let patient = format!("her-{}", written.trail.blocks());
        written.line_of(patient.clone());
        let mut now = 0;
        let mut erased = false;
        let told = copy(&layout, target.path(), EVERYTHING, &mut |_| {
            now += 1;
            // A writer that does so at each step would never let a copy end.
            let all = step.is_none() && now < 9;
            if !all && step != Some(now) {
                return;
            }
            written.seal();
            written.block();
            if what == Meanwhile::Erases && !std::mem::replace(&mut erased, true) {
                written.erase(&patient);
                written.line();
            }
        });
        is_whole(target.path(), told.unwrap());
    }
}

#[tokio::test]
async fn a_copy_has_the_seals_that_its_lines_name() {
    copied_while(Meanwhile::Seals).await;
}

#[tokio::test]
async fn a_copy_is_whole_though_segments_are_closed_meanwhile() {
    copied_while(Meanwhile::Closes).await;
}

#[tokio::test]
async fn a_copy_knows_whom_its_vault_has_lost() {
    copied_while(Meanwhile::Erases).await;
}

/// A guardian goes on with a copy that ends with a segment that was just closed.
#[tokio::test]
async fn a_trail_goes_on_after_a_closed_segment() {
    let mut written = Written::new().await;
    let small = SegmentLimits {
        bytes: 1,
        age_s: u64::MAX,
    };
    written.trail.set_segment_limits(small);
    written.blocks(3).await;
    (0..3).for_each(|_| written.seal());
    let target = tempfile::tempdir().unwrap();
    written.copy(target.path()).unwrap();
    let layout = Layout::new(target.path());
    let numbers = layout.segment_numbers().unwrap();
    let [.., closed, open] = numbers[..] else {
        panic!("{numbers:?}")
    };
    assert!(layout.logsig(closed).exists());
    assert_eq!(fs::metadata(layout.segment(open)).unwrap().len(), 0);
    fs::remove_file(layout.segment(open)).unwrap();
    fs::remove_dir_all(layout.parts(open)).unwrap();
    let signature = fs::read(layout.logsig(closed)).unwrap();
    let (trail, (), _) = Trail::open::<()>(layout.clone()).unwrap();
    written.trail = trail;
    written.trail.set_segment_limits(small);
    written.blocks(2).await;
    (0..2).for_each(|_| written.seal());
    assert!(fs::read(layout.logsig(closed)).unwrap() == signature);
    let view = check(&layout).unwrap();
    assert_eq!((view.log().size(), view.seals.waiting.len()), (5, 0));
}

/// A thread that writes as fast as it can, and copies one after the other: each into a new
/// folder, and all into one.
#[tokio::test(flavor = "multi_thread")]
async fn copies_of_a_trail_under_load_are_whole() {
    let mut written = Written::new().await;
    written.trail.set_segment_limits(SegmentLimits {
        bytes: 40_000,
        age_s: u64::MAX,
    });
    written.blocks(200).await;
    let layout = written.layout();
    let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (is_over, order) = (over.clone(), std::sync::atomic::Ordering::Relaxed);
    let writer = std::thread::spawn(move || {
        while !is_over.load(order) {
            (0..3).for_each(|_| written.line());
            written.seal();
            written.block();
        }
        written
    });
    let one = tempfile::tempdir().unwrap();
    let mut before = 0;
    for _ in 0..6 {
        let other = tempfile::tempdir().unwrap();
        for target in [one.path(), other.path()] {
            is_whole(
                target,
                copy(&layout, target, EVERYTHING, &mut |_| {}).unwrap(),
            );
        }
        let view = check(&Layout::new(one.path())).unwrap();
        assert!(view.log().size() > before, "it is written all the time");
        before = view.log().size();
    }
    over.store(true, order);
    let written = writer.join().unwrap();
    let told = written.copy(one.path()).unwrap();
    assert_eq!(told.blocks, written.trail.blocks());
    is_whole(one.path(), told);
}

/// What does not change is named again, and what was erased is gone.
#[tokio::test]
async fn a_later_copy_takes_what_came_since() {
    let mut written = Written::new().await;
    written.trail.set_segment_limits(SegmentLimits {
        bytes: 6000,
        age_s: u64::MAX,
    });
    written.blocks(30).await;
    (0..30).for_each(|_| written.seal());
    let target = tempfile::tempdir().unwrap();
    let first = written.copy(target.path()).unwrap();
    assert_eq!((first.replayed, first.sealed), (30, 30));
    let to = Layout::new(target.path());
    let closed = to.segment(0);
    assert!(to.logsig(1).exists(), "some segments are closed");
    let (inode, epoch) = (
        fs::metadata(&closed).unwrap().ino(),
        to.vault().join("epoch-000001.key"),
    );
    assert!(epoch.exists());

    written.erase("pt-1");
    written.block();
    let second = written.copy(target.path()).unwrap();
    assert_eq!((second.blocks, second.replayed), (31, 1));
    assert!(second.bytes < first.bytes, "{second:?} {first:?}");
    assert_eq!(fs::metadata(&closed).unwrap().ino(), inode);
    assert!(!epoch.exists(), "which opened what was erased");
    assert!(!fs::exists(target.path().join("next")).unwrap());
    is_whole(target.path(), second);
    for (path, mode) in [
        (closed, 0o600),
        (to.segments(), 0o700),
        (to.vault().join("keys.db"), 0o600),
        (to.keys(), 0o600),
    ] {
        let found = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{}", path.display());
    }
}

/// The keys of a vault that was copied with them are gone once they are to be elsewhere.
#[tokio::test]
async fn keys_are_left_out() {
    let mut written = Written::new().await;
    written.block();
    let target = tempfile::tempdir().unwrap();
    let to = Layout::new(target.path());
    written.copy(target.path()).unwrap();
    assert!(to.keys().exists() && to.vault_key().exists());
    let options = CopyOptions { without_keys: true };
    copy(&written.layout(), target.path(), options, &mut |_| {}).unwrap();
    assert!(!to.keys().exists() && !to.vault_key().exists());
    // They come from where they are kept.
    for (from, to) in [
        (written.layout().keys(), to.keys()),
        (written.layout().vault_key(), to.vault_key()),
    ] {
        fs::copy(from, to).unwrap();
    }
    let told = copy(&written.layout(), target.path(), options, &mut |_| {}).unwrap();
    assert!(told.has_keys);
    is_whole(target.path(), told);
}

/// A copy that ends among the keys says which it may have left.
#[tokio::test]
async fn keys_of_a_copy_that_was_cut_off_are_left_out() {
    let mut written = Written::new().await;
    written.block();
    let target = tempfile::tempdir().unwrap();
    let to = Layout::new(target.path());
    fs::create_dir(to.vault_key()).unwrap();
    written.copy(target.path()).unwrap_err();
    assert!(to.keys().exists());
    fs::remove_dir(to.vault_key()).unwrap();
    let options = CopyOptions { without_keys: true };
    let told = copy(&written.layout(), target.path(), options, &mut |_| {}).unwrap();
    assert!(!told.has_keys);
    assert!(!to.keys().exists() && !to.vault_key().exists());
}

/// Whoever may write into the copy has nothing of ours removed.
#[tokio::test]
async fn what_a_copy_says_of_itself_leads_nowhere_else() {
    let mut written = Written::new().await;
    written.block();
    let target = tempfile::tempdir().unwrap();
    written.copy(target.path()).unwrap();
    let (key, beside) = (written.layout().vault_key(), target.path().join("mine"));
    fs::write(&beside, "not of the copy").unwrap();
    std::os::unix::fs::symlink(&key, target.path().join("link")).unwrap();
    let record = target.path().join("copied");
    let mut said: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    let up = format!("../{}/mine", target.path().file_name().unwrap().display());
    let files = said["files"].as_array_mut().unwrap();
    let names = [
        key.display().to_string(),
        up,
        "..".into(),
        "link".into(),
        "vault".into(),
    ];
    files.extend(names.into_iter().map(Into::into));
    fs::write(&record, said.to_string()).unwrap();
    let before = fs::read(&key).unwrap();
    let told = written.copy(target.path()).unwrap();
    assert_eq!(fs::read(&key).unwrap(), before);
    assert!(beside.exists());
    is_whole(target.path(), told);
}

/// Wherever a copy ends before it is done, the one before is there, and the next is made.
#[tokio::test]
async fn an_interrupted_copy_costs_nothing() {
    let mut written = Written::new().await;
    written.blocks(6).await;
    let target = tempfile::tempdir().unwrap();
    written.copy(target.path()).unwrap();
    for step in 1..20 {
        written.seal();
        written.block();
        let known = check(&Layout::new(target.path())).unwrap().log().size();
        let mut now = 0;
        let interrupted = catch_unwind(AssertUnwindSafe(|| {
            copy(&written.layout(), target.path(), EVERYTHING, &mut |_| {
                now += 1;
                assert!(now < step, "the power is gone");
            })
        }));
        let view = check(&Layout::new(target.path())).unwrap();
        match interrupted {
            Err(_) => assert_eq!(view.log().size(), known),
            Ok(copied) => return is_whole(target.path(), copied.unwrap()),
        }
    }
    panic!("it has fewer steps");
}

/// A file that is written anew leaves its bytes on the disk, where nobody overwrites them.
#[tokio::test]
async fn keys_that_are_there_are_not_written_again() {
    let mut written = Written::new().await;
    written.block();
    let target = tempfile::tempdir().unwrap();
    written.copy(target.path()).unwrap();
    let keys = ["keys.json", "vault.key", "vault/epoch-000001.key"];
    let files = || {
        let files = keys.map(|name| target.path().join(name));
        files.map(|file| fs::metadata(file).unwrap().ino())
    };
    let before = files();
    written.block();
    written.copy(target.path()).unwrap();
    assert_eq!(files(), before);
    // One that is another is put in its place.
    fs::write(target.path().join("vault/epoch-000001.key"), b"damaged").unwrap();
    let told = written.copy(target.path()).unwrap();
    is_whole(target.path(), told);
}

/// Between two names the segments have none: the next copy puts that right.
#[tokio::test]
async fn segments_that_were_about_to_be_replaced_come_back() {
    let mut written = Written::new().await;
    written.block();
    let target = tempfile::tempdir().unwrap();
    written.copy(target.path()).unwrap();
    let names = ["trail", "trail.before"].map(|name| target.path().join(name));
    fs::rename(&names[0], &names[1]).unwrap();
    // Whoever goes on with it is told, and begins no other trail there.
    let layout = Layout::new(target.path());
    let refused = Trail::open::<()>(layout.clone()).err().unwrap().to_string();
    assert!(refused.contains("was cut off"), "{refused}");
    let refused = check(&layout).err().unwrap().to_string();
    assert!(refused.contains("was cut off"), "{refused}");
    let refused = Trail::create(layout, "test.example/hospital", &genesis());
    assert!(refused.err().unwrap().to_string().contains("was cut off"));
    written.block();
    let told = written.copy(target.path()).unwrap();
    assert_eq!((told.blocks, told.replayed), (2, 1));
    is_whole(target.path(), told);
    assert!(!names[1].exists());
}

/// A copy is never replaced by another history than its own, nor by less of it.
#[tokio::test]
async fn what_a_copy_does_not_lead_to_does_not_replace_it() {
    let mut written = Written::new().await;
    written.block();
    let older = tempfile::tempdir().unwrap();
    copy_folder(written.layout().dir(), older.path());
    written.block();
    let target = tempfile::tempdir().unwrap();
    written.copy(target.path()).unwrap();
    let whole = || check(&Layout::new(target.path())).unwrap().log().size();

    // An older state was put back, and then gone on with.
    let copied = |from: &Path| copy(&Layout::new(from), target.path(), EVERYTHING, &mut |_| {});
    let shorter = copied(older.path()).unwrap_err();
    assert!(shorter.to_string().starts_with("TRL-03 "), "{shorter}");
    let (mut put_back, (), _) = Trail::open::<()>(Layout::new(older.path())).unwrap();
    for _ in 0..100 {
        // Other lines stand where the copy's last one does.
        let draft = Draft::new(Op::Live, at(30), "ehr", "another position");
        put_back.append(vec![draft]).unwrap();
        let mapping = Digest::of(&[b"mapping"]);
        put_back.close_block(at(31), "1", mapping, "").unwrap();
    }
    let forked = copied(older.path()).unwrap_err();
    assert!(forked.to_string().starts_with("TRL-04 "), "{forked}");
    assert_eq!(whole(), 2);
    // Also if it is not known any more what the copy had.
    let verified = target.path().join("verified");
    fs::remove_dir_all(&verified).unwrap();
    assert!(matches!(copied(older.path()), Err(CopyError::Forked(_))));
    assert_eq!(whole(), 2);
    // What is damaged there accuses nobody.
    fs::write(verified.join("log"), "").unwrap();
    assert_eq!(written.copy(target.path()).unwrap().replayed, 0);

    let another = Written::new().await;
    let other = copied(another.layout().dir());
    assert!(matches!(other, Err(CopyError::Other(_))), "{other:?}");
    let own = written.copy(written.layout().dir());
    assert!(matches!(own, Err(CopyError::Inside(_))), "{own:?}");
    let inside = written.copy(&written.layout().dir().join("backup"));
    assert!(matches!(inside, Err(CopyError::Inside(_))), "{inside:?}");
    let (_trail, (), _) = Trail::open::<()>(Layout::new(target.path())).unwrap();
    let used = written.copy(target.path());
    assert!(matches!(used, Err(CopyError::Locked(_))), "{used:?}");
}

/// The first file of a vault's contents.
const CONTENTS: &str = "contents/000000.dat";

/// What the source lost in a crash, and others that came to stand there.
#[tokio::test]
async fn the_vault_is_copied_again_where_another_content_stands() {
    let mut written = Written::new().await;
    written.block();
    let target = tempfile::tempdir().unwrap();
    let (written, _) = written.copy_and_lose_a_line(target.path());
    let told = written.copy(target.path()).unwrap();
    let [from, to] = [written.layout(), Layout::new(target.path())]
        .map(|layout| fs::read(layout.vault().join(CONTENTS)).unwrap());
    assert!(from == to);
    is_whole(target.path(), told);
}

/// Which trail the test below copies, and where to.
const FROM: &str = "COPIED_TRAIL";
const TO: &str = "COPIED_TO";

/// Not a test: what the next one lets run where no file may grow beyond a limit.
#[test]
#[ignore = "runs under a limit, as a process of another test"]
fn copied_under_a_limit() {
    let [Some(from), Some(to)] = [FROM, TO].map(std::env::var_os) else {
        return;
    };
    let copied = copy(&Layout::new(from), Path::new(&to), EVERYTHING, &mut |_| {});
    let refused = copied.unwrap_err().to_string();
    assert!(refused.contains("000000.dat"), "{refused}");
}

/// A disk that is full while the vault is copied again.
#[tokio::test]
async fn contents_that_cannot_be_copied_again_leave_the_copy_before() {
    let mut written = Written::new().await;
    written.line_with("pt-0".into(), Some(vec![b't'; 1 << 20]));
    written.block();
    let target = tempfile::tempdir().unwrap();
    let (written, told) = written.copy_and_lose_a_line(target.path());
    let limited = Command::new("bash")
        .args(["-c", r#"trap '' XFSZ; ulimit -f 512; exec "$0" "$@""#])
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "copied_under_a_limit"])
        .env(FROM, written.layout().dir())
        .env(TO, target.path())
        .output()
        .unwrap();
    assert!(limited.status.success(), "{limited:?}");
    is_whole(target.path(), told);

    let contents = Layout::new(target.path()).vault().join("contents");
    // Of a file that the trail does not have any more.
    fs::write(contents.join("000001.dat.new~"), "half").unwrap();
    let told = written.copy(target.path()).unwrap();
    is_whole(target.path(), told);
    let names = fs::read_dir(&contents).unwrap();
    let names: BTreeSet<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["000000.dat", "index"].map(Into::into).into());
}

#[tokio::test]
async fn progress_is_told() {
    let mut written = Written::new().await;
    written.block();
    let target = tempfile::tempdir().unwrap();
    let mut told = Vec::new();
    copy(&written.layout(), target.path(), EVERYTHING, &mut |p| {
        told.push(p)
    })
    .unwrap();
    assert!(told.contains(&Progress::Replayed(0)), "{told:?}");
    let bytes = |p: &Progress| matches!(p, Progress::Copied(_));
    assert!(
        told.iter()
            .filter(|p| bytes(p))
            .is_sorted_by_key(|p| match p {
                Progress::Copied(bytes) => *bytes,
                Progress::Replayed(lines) => *lines,
            })
    );
}
