//! The calendar against a model that keeps every leaf in memory.

use std::fs;

use pitser_ksi::hash;
use tempfile::TempDir;

use super::*;

/// A calendar on disk, and the leaves it ought to have.
struct World {
    dir: TempDir,
    calendar: Option<Calendar>,
    leaves: Vec<Imprint>,
}

impl World {
    fn new(genesis: u64) -> Self {
        let dir = TempDir::new().unwrap();
        Calendar::create(dir.path(), Second(genesis)).unwrap();
        let calendar = Some(Calendar::open(dir.path()).unwrap());
        Self {
            dir,
            calendar,
            leaves: vec![zero_leaf(); genesis as usize],
        }
    }

    /// A calendar whose seconds `genesis..=head` all have requests.
    fn filled(genesis: u64, head: u64) -> Self {
        let mut world = Self::new(genesis);
        for at in genesis..=head {
            world.append(at);
        }
        world
    }

    fn calendar(&mut self) -> &mut Calendar {
        self.calendar.as_mut().unwrap()
    }

    fn reader(&self) -> CalendarReader {
        self.calendar.as_ref().unwrap().reader()
    }

    fn append(&mut self, at: u64) {
        self.calendar().append(Second(at), root(at)).unwrap();
        self.leaves.resize(at as usize, zero_leaf());
        self.leaves.push(root(at));
    }

    fn close(&mut self) {
        self.calendar = None;
    }

    fn reopen(&mut self) -> Result<(), CalendarError> {
        self.close();
        self.calendar = Some(Calendar::open(self.dir.path())?);
        Ok(())
    }

    fn path(&self, level: u8) -> PathBuf {
        self.dir.path().join(format!("level-{level:02}"))
    }

    /// Every root, and every chain into the newest of them, equals the model's.
    fn check(&self) {
        let reader = self.reader();
        let genesis = reader.genesis().0 as usize;
        assert_eq!(
            reader.head(),
            (self.leaves.len() > genesis).then(|| Second(self.leaves.len() as u64 - 1))
        );
        for head in genesis..self.leaves.len() {
            let found = reader.root_at(Second(head as u64)).unwrap();
            assert_eq!(found, tree::naive(&self.leaves[..=head]), "root at {head}");
        }
        let Some(head) = reader.head() else { return };
        let root = reader.root_at(head).unwrap();
        for at in genesis..self.leaves.len() {
            let chain = reader.chain(Second(at as u64), head).unwrap();
            assert_eq!(chain.input, self.leaves[at]);
            assert_eq!(chain.output(), root, "chain from {at}");
        }
        assert_eq!(reader.audit(|_, _| ()).unwrap().fault, None);
    }
}

fn root(at: u64) -> Imprint {
    hash::hash(Algorithm::Sha256, &[b"root of", &at.to_be_bytes()])
}

#[test]
fn equals_the_recursive_tree_from_any_genesis() {
    for genesis in [0, 1, 2, 15, 16, 17, 255, 256, 300] {
        let mut world = World::new(genesis);
        world.check();
        for step in [0, 1, 2, 3, 17, 18, 40, 41, 90] {
            world.append(genesis + step);
        }
        world.check();
        world.reopen().unwrap();
        world.check();
    }
}

#[test]
fn chains_tell_their_own_time() {
    let world = World::filled(37, 120);
    let reader = world.reader();
    for head in 37..=120 {
        for at in 37..=head {
            let chain = reader.chain(Second(at), Second(head)).unwrap();
            assert_eq!(chain.time_from_shape(), Some(Second(at)), "{at} of {head}");
        }
    }
}

#[test]
fn a_longer_chain_is_compatible_with_the_shorter_one() {
    let world = World::filled(5, 140);
    let reader = world.reader();
    for at in [5, 6, 31, 63, 64, 100, 127] {
        let at = Second(at);
        let first = reader.chain(at, at).unwrap();
        for head in at.0..=140 {
            let extended = reader.chain(at, Second(head)).unwrap();
            assert!(
                first.is_compatible_with(&extended),
                "{at} extended to {head}"
            );
        }
    }
    let other = reader.chain(Second(64), Second(140)).unwrap();
    assert!(
        !reader
            .chain(Second(63), Second(63))
            .unwrap()
            .is_compatible_with(&other)
    );
}

#[test]
fn an_outage_longer_than_one_write_becomes_zero_leaves() {
    let mut world = World::filled(1000, 1003);
    world.append(1003 + 10_000);
    let reader = world.reader();
    assert_eq!(reader.leaf(Second(1004)).unwrap(), zero_leaf());
    assert_eq!(reader.leaf(Second(11_002)).unwrap(), zero_leaf());
    assert_eq!(
        reader.root_at(Second(11_003)).unwrap(),
        tree::naive(&world.leaves)
    );
    let audit = reader.audit(|_, _| ()).unwrap();
    assert_eq!((audit.seconds, audit.sealed_seconds), (10_004, 5));
    assert_eq!(audit.fault, None);
}

#[test]
fn a_calendar_of_today_costs_35_bytes_a_second() {
    let genesis = 1_773_480_413;
    let dir = TempDir::new().unwrap();
    Calendar::create(dir.path(), Second(genesis)).unwrap();
    let mut calendar = Calendar::open(dir.path()).unwrap();
    calendar.append(Second(genesis + 99_999), root(1)).unwrap();
    let size: u64 = fs::read_dir(dir.path())
        .unwrap()
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    assert!(size < 3_530_000, "{size} bytes for 100,000 seconds");

    let chain = calendar
        .reader()
        .chain(Second(genesis), Second(genesis + 99_999))
        .unwrap();
    assert_eq!(chain.time_from_shape(), Some(Second(genesis)));
    assert_eq!(
        chain.output(),
        calendar.reader().root_at(Second(genesis + 99_999)).unwrap()
    );
}

#[test]
fn a_second_is_written_once() {
    let mut world = World::filled(10, 12);
    let calendar = world.calendar();
    calendar.append(Second(11), root(11)).unwrap();
    for at in [10, 11, 12] {
        let refused = calendar.append(Second(at), zero_leaf());
        assert!(
            matches!(refused, Err(CalendarError::WriteOnce { .. })),
            "second {at}"
        );
    }
    let refused = calendar.append(Second(9), root(9));
    assert!(matches!(refused, Err(CalendarError::BeforeGenesis { .. })));
    world.check();
}

#[test]
fn says_what_it_does_not_have() {
    let world = World::filled(10, 12);
    let reader = world.reader();
    assert!(matches!(
        reader.leaf(Second(13)),
        Err(CalendarError::Beyond { .. })
    ));
    assert!(matches!(
        reader.root_at(Second(13)),
        Err(CalendarError::Beyond { .. })
    ));
    assert!(matches!(
        reader.root_at(Second(9)),
        Err(CalendarError::BeforeGenesis { .. })
    ));
    assert!(matches!(
        reader.chain(Second(9), Second(12)),
        Err(CalendarError::BeforeGenesis { .. })
    ));
    let backwards = reader.chain(Second(12), Second(11));
    assert!(matches!(backwards, Err(CalendarError::Backwards { .. })));
}

#[test]
fn only_one_process_writes() {
    let world = World::filled(10, 12);
    let second = Calendar::open(world.dir.path());
    assert!(matches!(second, Err(CalendarError::InUse { .. })));
    let again = Calendar::create(world.dir.path(), Second(10));
    assert!(matches!(again, Err(CalendarError::Exists { .. })));
    let World { dir, calendar, .. } = world;
    let reader = calendar.as_ref().unwrap().reader();
    drop(calendar);
    let next = Calendar::open(dir.path()).unwrap();
    assert_eq!(reader.head(), next.head(), "a reader holds up nobody");
}

#[test]
fn a_folder_without_a_calendar_is_named() {
    let dir = TempDir::new().unwrap();
    let error = Calendar::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains("run init"), "{error}");
}

/// The machine stopped somewhere within the last two writes: whatever the length
/// of the entries and of the nodes, whole entries are kept and nothing else is.
#[test]
fn survives_a_torn_write_at_every_byte() {
    let mut world = World::filled(3, 35);
    world.close();
    let files: Vec<_> = [0, 4, 8]
        .map(|level| fs::read(world.path(level)).unwrap())
        .into();
    assert_eq!(files[0].len(), 33 * 33);
    assert_eq!(files[1].len(), 2 * 33);
    let all = world.leaves.clone();
    for cut in 31 * 33..=33 * 33 {
        for nodes in [0, 32, 33, 65, 66] {
            fs::write(world.path(0), &files[0][..cut]).unwrap();
            fs::write(world.path(4), &files[1][..nodes]).unwrap();
            world.reopen().unwrap();
            world.leaves = all[..3 + cut / 33].to_vec();
            let head = world.leaves.len() as u64 - 1;
            let found = world.reader().root_at(Second(head)).unwrap();
            assert_eq!(
                found,
                tree::naive(&world.leaves),
                "{cut} bytes, {nodes} of nodes"
            );
            assert_eq!(world.reader().audit(|_, _| ()).unwrap().fault, None);
            world.append(head + 1);
            world.append(head + 7);
            let found = world.reader().root_at(Second(head + 7)).unwrap();
            assert_eq!(found, tree::naive(&world.leaves));
            world.close();
        }
    }
}

#[test]
fn node_files_are_made_again() {
    let mut world = World::filled(3, 600);
    world.close();
    for level in (4..=32).step_by(4) {
        fs::remove_file(world.path(level)).unwrap();
    }
    world.reopen().unwrap();
    world.check();

    // Ahead of the entries, and of other content: the crash came before the sync.
    world.close();
    fs::write(world.path(4), [1; 33 * 60]).unwrap();
    fs::write(world.path(8), [1; 33 * 9 + 5]).unwrap();
    world.reopen().unwrap();
    world.check();
}

/// Power went while an outage was being filled: the file has its length already,
/// but a page in the middle never reached the disk.
#[test]
fn a_hole_among_fresh_zero_leaves_is_cut_off() {
    let mut world = World::filled(10, 20);
    world.append(60);
    world.close();
    let mut bytes = fs::read(world.path(0)).unwrap();
    bytes.truncate(50 * 33); // the root of second 60 was not written yet
    bytes[30 * 33..32 * 33].fill(0);
    fs::write(world.path(0), bytes).unwrap();
    world.reopen().unwrap();
    world.leaves.truncate(10 + 30);
    world.check();
    world.append(60);
    world.check();
}

#[test]
fn damage_of_an_acknowledged_entry_is_not_cut_off() {
    let mut world = World::filled(10, 40);
    world.close();
    let mut bytes = fs::read(world.path(0)).unwrap();
    bytes[20 * 33] = 0;
    fs::write(world.path(0), bytes).unwrap();
    let error = world.reopen().unwrap_err();
    assert!(
        matches!(error, CalendarError::Corrupt { at: 660, .. }),
        "{error}"
    );
}

/// Entries after the last complete node are covered by no node; all others are.
#[test]
fn the_audit_notices_every_changed_byte_below_a_node() {
    let mut world = World::filled(0, 20);
    world.append(4980);
    world.append(5000);
    for (level, at) in [
        (0, 5),
        (0, 33 * 4980 + 7),
        (4, 1),
        (4, 33 * 300),
        (8, 33 * 18),
        (12, 20),
    ] {
        let clean = fs::read(world.path(level)).unwrap();
        let mut bytes = clean.clone();
        bytes[at] ^= 0x40;
        fs::write(world.path(level), bytes).unwrap();
        let fault = world.reader().audit(|_, _| ()).unwrap().fault;
        assert!(fault.is_some(), "level {level}, byte {at}");
        fs::write(world.path(level), clean).unwrap();
    }
    world.reopen().unwrap();
    assert_eq!(world.reader().audit(|_, _| ()).unwrap().fault, None);
}

#[test]
fn a_walk_tells_every_second_its_leaf_and_root() {
    let mut world = World::filled(1_000, 1_040);
    world.append(1_100);
    world.append(1_101);
    let reader = world.reader();
    for from in 1_000..=1_102 {
        let mut walk = reader.walk(Second(from)).unwrap();
        let mut entries = Vec::new();
        for most in [1, 3, 200, 200] {
            entries.extend(walk.take(most).unwrap());
        }
        assert_eq!(entries.len() as u64, 1_102 - from);
        for (at, entry) in (from..).zip(entries) {
            assert_eq!(entry.time(), Second(at));
            assert_eq!(entry.round(), world.leaves[at as usize]);
            let naive = tree::naive(&world.leaves[..=at as usize]);
            assert_eq!(entry.calendar(), naive, "root at {at}");
        }
    }
    // It goes on when the calendar does.
    let mut walk = reader.walk(Second(1_102)).unwrap();
    assert_eq!(walk.take(9).unwrap(), []);
    world.append(1_102);
    assert_eq!(walk.take(9).unwrap().len(), 1);
    assert!(reader.walk(Second(999)).is_err());
    assert!(reader.walk(Second(1_104)).is_err());
    let empty = World::new(5).reader();
    assert_eq!(empty.walk(Second(5)).unwrap().take(9).unwrap(), []);
}

/// A calendar of several jobs, that begins and ends in the middle of one.
#[test]
fn the_audit_names_what_is_damaged_first() {
    let mut world = World::new(5_000);
    for at in [5_000, 5_003, 8_191, 8_192, 12_288, 17_000] {
        world.append(at);
    }
    let audit = world.reader().audit(|_, _| ()).unwrap();
    assert_eq!(audit.fault, None);
    assert_eq!((audit.seconds, audit.sealed_seconds), (12_001, 6));
    let nodes = (17_001 / 16 - 5_000 / 16) + (17_001 / 256 - 5_000 / 256) + (17_001 / 4096 - 1);
    assert_eq!(audit.nodes, nodes);

    let clean = fs::read(world.path(0)).unwrap();
    let damaged = |at: &[u64]| {
        let mut bytes = clean.clone();
        for at in at {
            bytes[(at - 5_000) as usize * 33 + 9] ^= 1;
        }
        fs::write(world.path(0), bytes).unwrap();
        world.reader().audit(|_, _| ()).unwrap().fault
    };
    // The node above, in the file of level 4: whichever thread finds another one.
    for (at, first) in [
        (&[16_900, 6_000][..], 6_000),
        (&[12_288], 12_288),
        (&[9_000, 8_000, 13_000], 8_000),
    ] {
        let fault = damaged(at).unwrap();
        let byte = (first / 16 - 5_000 / 16) * 33;
        let expected = format!("level-04 is damaged at byte {byte};");
        assert!(fault.contains(&expected), "{expected} {fault}");
    }
    assert_eq!(damaged(&[]), None);
}

#[test]
fn a_reader_beside_the_writer_sees_what_is_complete() {
    let mut world = World::filled(10, 30);
    world.append(5_000);
    let beside = CalendarReader::open_beside(world.dir.path()).unwrap();
    let writer = world.reader();
    assert_eq!(beside.head(), writer.head());
    let head = writer.head().unwrap();
    assert_eq!(beside.root_at(head).unwrap(), writer.root_at(head).unwrap());
    world.append(5_001);
    assert_eq!(beside.head(), Some(head), "it does not grow");

    // The writer has written an entry, but not yet the node that it completes.
    world.append(5_007);
    let nodes = fs::read(world.path(4)).unwrap();
    fs::write(world.path(4), &nodes[..nodes.len() - 33]).unwrap();
    let beside = CalendarReader::open_beside(world.dir.path()).unwrap();
    assert_eq!(beside.head(), Some(Second(5_006)));
    assert_eq!(beside.audit(|_, _| ()).unwrap().fault, None);

    // No writer leaves so much undone.
    fs::write(world.path(4), &nodes[..33]).unwrap();
    let error = CalendarReader::open_beside(world.dir.path()).unwrap_err();
    assert!(matches!(error, CalendarError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("level-04"), "{error}");
}
