//! The log's files against a tree in memory, over a real calendar.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pitser_ksi::calendar_entry::CalendarEntry;
use pitser_ksi::hash::{Algorithm, Imprint, hash};
use pitser_ksi::time::Second;
use pitser_tlog::merkle::{LogTree, consistency_proof, inclusion_proof, leaf_hash};
use pitser_tlog::note::{CosigningKey, SigningKey};
use pitser_tlog::tiles::{
    Content, Tile, changed_bundles, changed_tiles, decode_bundle, tile_bytes,
};
use pitser_tlog::witness_protocol::Refusal;
use pitser_witness::{Answer, Cosign};
use tempfile::TempDir;

use super::files::Follower;
use super::key::open_key;
use super::{Keeper, LogConfig, LogError, LogWitness, Setup, create_key};
use crate::calendar::{Calendar, zero_leaf};

/// Odd, so that nodes of the calendar hold seconds before it.
const GENESIS: Second = Second(1_773_480_413);
const ORIGIN: &str = "authority.example/calendar";

struct World {
    dir: TempDir,
    calendar: Option<Calendar>,
}

impl World {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        Calendar::create(&dir.path().join("calendar"), GENESIS).unwrap();
        let mut world = Self {
            dir,
            calendar: None,
        };
        world.reopen();
        world
    }

    /// The calendar's first `seconds` seconds; the last one of every seven is empty.
    fn grown(seconds: u64) -> Self {
        let mut world = Self::new();
        (0..seconds)
            .filter(|i| i % 7 != 6)
            .for_each(|i| world.append(i));
        world
    }

    fn reopen(&mut self) {
        self.calendar = None;
        self.calendar = Some(Calendar::open(&self.dir.path().join("calendar")).unwrap());
    }

    fn append(&mut self, index: u64) {
        let calendar = self.calendar.as_mut().unwrap();
        calendar.append(GENESIS.plus(index), root(index)).unwrap();
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("calendar-log")
    }

    fn open(&self) -> Result<Follower, LogError> {
        let reader = self.calendar.as_ref().unwrap().reader();
        Follower::open(&self.log(), reader, ORIGIN)
    }

    /// The log, brought up to the calendar.
    fn follow(&self) -> Follower {
        let mut follower = self.open().unwrap();
        while follower.grow().unwrap() > 0 {}
        follower
    }

    /// What the log must be, from roots that are looked up one by one.
    fn model(&self) -> (Vec<Vec<u8>>, LogTree) {
        let reader = self.calendar.as_ref().unwrap().reader();
        let seconds = reader.head().unwrap().since(GENESIS) + 1;
        let entries: Vec<Vec<u8>> = (0..seconds)
            .map(|i| {
                let at = GENESIS.plus(i);
                let mut bytes = vec![1];
                bytes.extend_from_slice(&at.0.to_be_bytes());
                bytes.extend_from_slice(reader.leaf(at).unwrap().as_bytes());
                bytes.extend_from_slice(reader.root_at(at).unwrap().as_bytes());
                bytes
            })
            .collect();
        let tree = entries.iter().map(|entry| leaf_hash(entry)).collect();
        (entries, tree)
    }

    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        contents(&self.log())
    }

    fn calendar_dir(&self) -> PathBuf {
        self.dir.path().join("calendar")
    }
}

fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap());
    let read = |file: fs::DirEntry| {
        let name = file.file_name().into_string().unwrap();
        (name, fs::read(file.path()).unwrap())
    };
    files.map(read).collect()
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir_all(to).unwrap();
    for (name, bytes) in contents(from) {
        fs::write(to.join(name), bytes).unwrap();
    }
}

fn root(index: u64) -> Imprint {
    hash(Algorithm::Sha256, &[b"round", &index.to_be_bytes()])
}

#[test]
fn every_second_is_an_entry_and_every_root_and_proof_is_the_models() {
    let mut world = World::new();
    let mut follower = world.open().unwrap();
    for index in [0, 1, 2, 5, 6, 250, 255, 256, 300, 600] {
        world.append(index);
        assert!(follower.grow().unwrap() > 0);
        assert_eq!(follower.grow().unwrap(), 0);
        let (_, tree) = world.model();
        let files = follower.files();
        assert_eq!((files.size(), files.due()), (index + 1, index + 1));
        assert_eq!(follower.root().unwrap(), tree.root());
        for old in [0, 1, 2, 255, 256, 257, index] {
            if old < tree.size() {
                let size = tree.size();
                let found = inclusion_proof(&**files, old, size).unwrap();
                assert_eq!(found, tree.inclusion_proof(old, size).unwrap());
                let found = consistency_proof(&**files, old, size).unwrap();
                assert_eq!(found, tree.consistency_proof(old, size).unwrap());
            }
        }
    }
}

#[test]
fn tiles_and_bundles_of_every_level_are_the_models() {
    let mut world = World::grown(300);
    // An outage of most of a day: three levels of tiles.
    world.append(66_000);
    let follower = world.follow();
    let (entries, tree) = world.model();
    assert_eq!(follower.root().unwrap(), tree.root());
    let size = tree.size();
    let mut levels = 0;
    for tile in changed_tiles(0, size) {
        let found = follower.files().tile(tile).unwrap().unwrap();
        assert_eq!(found, tile_bytes(&tree, tile).unwrap(), "{tile}");
        levels += u64::from(tile.index() == 0);
    }
    assert_eq!(levels, 3);
    let mut at = 0;
    for tile in changed_bundles(0, size) {
        let found = follower.files().tile(tile).unwrap().unwrap();
        for entry in decode_bundle(&found).unwrap() {
            assert_eq!(entry, entries[at], "entry {at}");
            at += 1;
        }
    }
    assert_eq!(at as u64, size);
    // Narrower ones are there, wider ones and others are not.
    let tile = |path: &str| follower.files().tile(Tile::parse(path).unwrap()).unwrap();
    assert_eq!(
        tile("tile/0/000.p/3"),
        tile("tile/0/000").map(|t| t[..96].to_vec())
    );
    assert!(
        tile(
            &Tile::at_size(Content::Hashes(0), 257, size)
                .unwrap()
                .to_string()
        )
        .is_some()
    );
    for path in [
        "tile/0/257",
        "tile/0/258.p/1",
        "tile/3/000.p/1",
        "tile/9/000",
        "tile/63/000",
        "tile/entries/258",
        "tile/entries/x999/x999/x999/x999/x999/999",
    ] {
        assert_eq!(tile(path), None, "{path}");
    }
}

#[test]
fn an_outage_becomes_zero_entries() {
    let mut world = World::grown(3);
    world.append(9_000);
    let follower = world.follow();
    for index in [3, 4_500, 8_999] {
        let entry = follower.files().entry(GENESIS.plus(index)).unwrap();
        assert_eq!(entry.round(), zero_leaf());
        assert_eq!(entry.time(), GENESIS.plus(index));
    }
    let (entries, _) = world.model();
    assert_eq!(
        CalendarEntry::decode(&entries[8_999]).unwrap().round(),
        zero_leaf()
    );
}

#[test]
fn a_log_that_is_deleted_is_computed_again_byte_for_byte() {
    let world = World::grown(9_000);
    let mut follower = world.follow();
    follower.sync().unwrap();
    drop(follower);
    let before = world.files();
    assert_eq!(before["level-0"].len(), 9_000 * 32);
    assert_eq!(before["level-1"].len(), 35 * 32);
    fs::remove_dir_all(world.log()).unwrap();
    world.follow().sync().unwrap();
    assert!(world.files() == before, "other files than before");
    // One by one as well; `state` is what says how much there is.
    for name in before.keys() {
        fs::remove_file(world.log().join(name)).unwrap();
        world.follow().sync().unwrap();
        assert!(world.files() == before, "without {name}");
    }
}

/// What a crash leaves of everything that was written after the last sync: a
/// file that is too short, too long, or has pages that never reached the disk.
#[test]
fn whatever_a_crash_left_behind_the_last_sync_is_computed_again() {
    let mut world = World::grown(5_000);
    let mut follower = world.follow();
    follower.sync().unwrap();
    (5_000..6_000).for_each(|i| world.append(i));
    while follower.grow().unwrap() > 0 {}
    drop(follower);
    let (whole, saved) = (world.files(), world.dir.path().join("saved"));
    copy(&world.log(), &saved);
    let (level, synced) = (&whole["level-0"], 5_000 * 32);
    let (_, tree) = world.model();
    let torn: Vec<Vec<u8>> = vec![
        level[..synced].to_vec(),
        level[..synced + 1].to_vec(),
        level[..synced + 3_205].to_vec(),
        level[..level.len() - 1].to_vec(),
        [&level[..synced], &vec![0; level.len() - synced]].concat(),
        [&level[..synced + 64], &vec![0xee; 40_000]].concat(),
    ];
    for (case, bytes) in torn.into_iter().enumerate() {
        for upper in [Some(19), Some(17), None] {
            copy(&saved, &world.log());
            fs::write(world.log().join("level-0"), &bytes).unwrap();
            if let Some(nodes) = upper {
                // 19 nodes of level 1 were there at the last sync; one may be lost
                // with the directory's entry, as it were: a file cut too far.
                let cut = &whole["level-1"][..nodes * 32 + 7];
                fs::write(world.log().join("level-1"), cut).unwrap();
            }
            let again = world.follow();
            assert_eq!(again.root().unwrap(), tree.root(), "case {case} {upper:?}");
            for (name, bytes) in world.files().iter().filter(|(n, _)| n.starts_with("level")) {
                let whole = &whole[name];
                assert!(
                    bytes[..whole.len()] == whole[..],
                    "case {case} {upper:?}: {name}"
                );
            }
        }
    }
}

#[test]
fn a_state_that_is_damaged_counts_as_none() {
    let world = World::grown(300);
    world.follow().sync().unwrap();
    let path = world.log().join("state");
    let good = fs::read_to_string(&path).unwrap();
    for bad in [
        String::new(),
        good.replace("log 1", "log 2"),
        good.replace("size 300", "size 0300"),
        good.replace("size 300", "size 299"),
        good[..good.len() - 1].to_owned(),
        format!("{good}\n"),
        good.replace("genesis 1", "genesis 2"),
    ] {
        assert_ne!(bad, good);
        fs::write(&path, &bad).unwrap();
        assert_eq!(world.open().unwrap().files().size(), 0, "{bad:?}");
        world.follow().sync().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), good);
    }
    assert_eq!(world.open().unwrap().files().size(), 300);
}

#[test]
fn a_calendar_from_an_old_copy_is_noticed_by_its_log() {
    let mut world = World::grown(200);
    let old = world.dir.path().join("old");
    copy(&world.calendar_dir(), &old);
    (200..300).for_each(|i| world.append(i));
    world.follow().sync().unwrap();
    world.calendar = None;
    copy(&old, &world.calendar_dir());
    world.reopen();
    let error = world.open().unwrap_err();
    assert!(
        matches!(error, LogError::Contradicted { size: 300, .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains("restore the newest calendar"),
        "{error}"
    );
    // It goes on, with other roots, past what the log knows.
    (200..400).for_each(|i| world.append(i + 1));
    let error = world.open().unwrap_err();
    assert!(
        matches!(error, LogError::Contradicted { size: 300, .. }),
        "{error}"
    );
}

#[test]
fn an_origin_never_changes() {
    let world = World::grown(5);
    world.follow().sync().unwrap();
    let reader = world.calendar.as_ref().unwrap().reader();
    let error = Follower::open(&world.log(), reader, "other.example/calendar").unwrap_err();
    assert!(
        error.to_string().contains("an origin never changes"),
        "{error}"
    );
}

#[test]
fn what_cannot_be_read_now_is_tried_again() {
    let mut world = World::grown(300);
    let mut follower = world.follow();
    (300..700).for_each(|i| world.append(i));
    let path = world.calendar_dir().join("level-00");
    let leaves = fs::read(&path).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(500 * 33).unwrap();
    let error = follower.grow().unwrap_err();
    assert!(error.to_string().contains("cannot read"), "{error}");
    assert_eq!(follower.files().size(), 300);
    std::os::unix::fs::FileExt::write_all_at(&file, &leaves, 0).unwrap();
    assert_eq!(follower.grow().unwrap(), 400);
    assert_eq!(follower.root().unwrap(), world.model().1.root());
}

#[test]
fn the_key_is_its_owners_alone() {
    let dir = TempDir::new().unwrap();
    create_key(dir.path()).unwrap();
    let path = dir.path().join("log-key");
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let key = open_key(dir.path(), ORIGIN).unwrap().verifier();
    // An existing key stays; so does what is made of it.
    create_key(dir.path()).unwrap();
    assert_eq!(open_key(dir.path(), ORIGIN).unwrap().verifier(), key);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let error = open_key(dir.path(), ORIGIN).unwrap_err();
    assert!(error.to_string().contains("chmod 600"), "{error}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let secret = fs::read_to_string(&path).unwrap();
    for bad in [
        "",
        "no hexadecimal digits",
        &secret[..62],
        &secret.to_uppercase().replace('0', "A"),
    ] {
        fs::write(&path, bad).unwrap();
        let error = open_key(dir.path(), ORIGIN).unwrap_err();
        assert!(matches!(error, LogError::BadKey { .. }), "{error}");
        assert!(
            bad.is_empty() || !error.to_string().contains(bad),
            "{error}"
        );
    }
    fs::write(&path, &secret).unwrap();
    let error = open_key(dir.path(), "no name").unwrap_err();
    assert!(matches!(error, LogError::Config(_)), "{error}");
}

struct Nobody;

impl Cosign for Nobody {
    fn add_checkpoint(&self, _: &[u8]) -> Answer {
        Err(Refusal::UnknownOrigin)
    }
}

#[test]
fn a_choice_of_witnesses_that_means_nothing_is_refused() {
    let world = World::grown(1);
    create_key(world.dir.path()).unwrap();
    let own = open_key(world.dir.path(), ORIGIN).unwrap().verifier();
    let witness = |seed: u8, name: &str| {
        let key = CosigningKey::from_seed(name, &[seed; 32]).unwrap();
        key.verifier()
    };
    let plain = SigningKey::from_seed("signs", &[9; 32]).unwrap().verifier();
    let cosigns = pitser_tlog::note::Algorithm::CosignatureV1;
    let disguised = pitser_tlog::note::VerifierKey::new("own", cosigns, own.public_key()).unwrap();
    let (a, b) = (witness(1, "a"), witness(2, "b"));
    for (keys, quorum, part) in [
        (vec![&a, &b], 0, "say how many"),
        (vec![&a, &b], 3, "there are 2"),
        (vec![], 1, "there are 0"),
        (vec![&a, &witness(1, "again")], 1, "twice"),
        (vec![&a, &disguised], 1, "the log's own"),
        (vec![&plain], 1, "this key signs"),
    ] {
        let config = LogConfig {
            origin: ORIGIN.to_owned(),
            witnesses: keys
                .into_iter()
                .map(|key| LogWitness {
                    key: key.clone(),
                    way: Arc::new(Nobody),
                })
                .collect(),
            quorum,
        };
        let opened = Keeper::open(Setup {
            dir: world.dir.path(),
            calendar: world.calendar.as_ref().unwrap().reader(),
            config: &config,
        });
        let error = opened.err().unwrap();
        assert!(error.to_string().contains(part), "{error}");
    }
}
