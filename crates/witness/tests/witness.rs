//! What a witness cosigns, and everything that it must not.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pitser_tlog::checkpoint::{Checkpoint, verify_quorum};
use pitser_tlog::merkle::{Hash, LogTree, OutOfRange, leaf_hash};
use pitser_tlog::note::{CosigningKey, Note, SignatureLine, Signed, SigningKey};
use pitser_tlog::witness_protocol::{AddCheckpoint, Refusal};
use pitser_witness::{
    ClockedWitness, Cosign, Fork, Head, Log, MemoryStore, Pace, Peer, Rate, Store, StoreError,
    SubmitError, Witness,
};

const NOW: u64 = 1_735_689_600;

#[test]
fn follows_a_growing_log() {
    let mut world = World::new();
    for (size, now) in [
        (1, NOW),
        (2, NOW),
        (9, NOW + 1),
        (9, NOW + 5),
        (300, NOW + 9),
    ] {
        let held = world.held().map_or(0, |head| head.size);
        let note = world.head(size);
        let line = world.ask(held, size, now).unwrap();
        let mut cosigned = note.clone();
        cosigned.add(line).unwrap();
        let quorum = verify_quorum(
            &cosigned,
            &log_key().verifier(),
            &[witness_key().verifier()],
            1,
        );
        assert_eq!(quorum.unwrap().cosigned_at, now);
        let stored = world.held().unwrap();
        assert_eq!((stored.size, stored.cosigned_at), (size, now));
        assert_eq!(stored.note, note.to_string());
    }
}

#[test]
fn cosigns_an_empty_log() {
    let mut world = World::new();
    assert!(world.ask(0, 0, NOW).is_ok());
    assert!(world.ask(0, 3, NOW).is_ok());
}

#[test]
fn refuses_an_empty_log_that_is_not_empty() {
    let mut world = World::new();
    let head = Checkpoint::new(ORIGIN, 0, leaf_hash(b"something")).unwrap();
    let request = request(0, Vec::new(), head.sign(&log_key()).unwrap());
    assert_eq!(
        world.witness.add_checkpoint(&request, NOW),
        Err(Refusal::Inconsistent)
    );
}

#[test]
fn refuses_a_rollback() {
    let mut world = World::at(9);
    let conflict = Err(Refusal::Conflict { size: 9 });
    assert_eq!(world.ask(0, 5, NOW), conflict);
    assert_eq!(world.ask(5, 5, NOW), conflict);
    assert_eq!(world.ask(4, 5, NOW), conflict);
    // The proof is built for the forgery: from 9 leaves to 5 there is none.
    let backwards = request(9, Vec::new(), world.head(5));
    let result = world.witness.add_checkpoint(&backwards, NOW);
    assert_eq!(result, Err(Refusal::OldSizeTooLarge));
    assert_eq!(world.held().unwrap().size, 9);
}

#[test]
fn refuses_a_fork_at_the_same_size_and_keeps_the_proof() {
    let mut world = World::at(9);
    let honest = world.head(9);
    world.rewrite(3);
    let forged = world.head(9);
    let conflict = Err(Refusal::Conflict { size: 9 });
    assert_eq!(world.ask(9, 9, NOW), conflict);
    assert_eq!(world.ask(0, 9, NOW), conflict);
    let expected = Fork {
        origin: ORIGIN.into(),
        size: 9,
        held: honest.to_string(),
        refused: forged.to_string(),
        refused_at: NOW,
    };
    assert_eq!(world.store.forks().unwrap(), [expected]);
    // Both notes verify: anybody can see that the log signed two histories.
    for note in [honest, forged] {
        assert_eq!(note.verify(&log_key().verifier()), Ok(()));
    }
}

#[test]
fn refuses_a_fork_that_grew() {
    let mut world = World::at(9);
    world.rewrite(3);
    assert_eq!(world.ask(9, 20, NOW), Err(Refusal::Inconsistent));
    assert_eq!(world.held().unwrap().size, 9);
}

#[test]
fn refuses_wrong_proofs() {
    let mut world = World::at(9);
    let proof = world.tree.consistency_proof(9, 20).unwrap();
    let mut refused = |proof: Vec<Hash>| {
        let head = world.head(20);
        let result = world.witness.add_checkpoint(&request(9, proof, head), NOW);
        assert_eq!(result, Err(Refusal::Inconsistent));
    };
    refused(Vec::new());
    refused(proof[1..].to_vec());
    for at in 0..proof.len() {
        let mut altered = proof.clone();
        altered[at][0] ^= 1;
        refused(altered);
    }
}

#[test]
fn refuses_a_proof_for_the_first_head() {
    let mut world = World::new();
    let proof = vec![leaf_hash(b"needless")];
    let result = world
        .witness
        .add_checkpoint(&request(0, proof, world.head(3)), NOW);
    assert_eq!(result, Err(Refusal::Inconsistent));
}

#[test]
fn refuses_what_the_log_did_not_sign() {
    let mut world = World::new();
    let head = Checkpoint::new(ORIGIN, 3, world.tree.root_at(3).unwrap()).unwrap();
    let mut refused = |key: &SigningKey, expected| {
        let request = request(0, Vec::new(), head.sign(key).unwrap());
        assert_eq!(world.witness.add_checkpoint(&request, NOW), Err(expected));
    };
    refused(&signing_key(ORIGIN, 99), Refusal::NotSigned);
    refused(&signing_key("other.example", 1), Refusal::NotSigned);

    // A true signature beside a false one by the same key spoils the note.
    let mut note = head.sign(&log_key()).unwrap();
    note.add(log_key().sign("another text\n")).unwrap();
    let request = request(0, Vec::new(), note);
    let result = world.witness.add_checkpoint(&request, NOW);
    assert_eq!(result, Err(Refusal::NotSigned));
    assert_eq!(world.held(), None);
}

#[test]
fn refuses_logs_it_does_not_watch() {
    let mut world = World::new();
    let stranger = signing_key("stranger.example", 1);
    let head = Checkpoint::new("stranger.example", 3, leaf_hash(b"")).unwrap();
    let request = request(0, Vec::new(), head.sign(&stranger).unwrap());
    let result = world.witness.add_checkpoint(&request, NOW);
    assert_eq!(result, Err(Refusal::UnknownOrigin));
    world
        .witness
        .add_log(&Log::new(stranger.verifier()))
        .unwrap();
    assert!(world.witness.add_checkpoint(&request, NOW).is_ok());
}

#[test]
fn refuses_malformed_requests() {
    let mut world = World::new();
    let good = request(0, Vec::new(), world.head(3));
    for length in 0..good.len() {
        let result = world.witness.add_checkpoint(&good[..length], NOW);
        assert!(
            matches!(result, Err(Refusal::Malformed(_))),
            "{length} bytes"
        );
    }
    let poem = Note::sign("no checkpoint\n", &log_key()).unwrap();
    let result = world
        .witness
        .add_checkpoint(&request(0, Vec::new(), poem), NOW);
    assert!(matches!(result, Err(Refusal::Malformed(_))));
    assert_eq!(world.held(), None);
}

#[test]
fn every_bit_of_a_request_counts() {
    let mut world = World::at(3);
    let proof = world.tree.consistency_proof(3, 5).unwrap();
    let good = request(3, proof, world.head(5));
    for bit in 0..good.len() * 8 {
        let mut altered = good.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        let result = world.witness.add_checkpoint(&altered, NOW);
        assert!(result.is_err(), "bit {bit} went unnoticed");
    }
    assert!(world.witness.add_checkpoint(&good, NOW).is_ok());
}

#[test]
fn a_replayed_request_moves_nothing() {
    let mut world = World::new();
    let first = request(0, Vec::new(), world.head(3));
    assert!(world.witness.add_checkpoint(&first, NOW).is_ok());
    world.ask(3, 8, NOW).unwrap();
    let result = world.witness.add_checkpoint(&first, NOW);
    assert_eq!(result, Err(Refusal::Conflict { size: 8 }));
    assert_eq!(world.held().unwrap().size, 8);
}

#[test]
fn strangers_lines_are_neither_needed_nor_kept() {
    let mut world = World::new();
    let mut note = world.head(3);
    note.add(signing_key("stranger.example", 5).sign("anything\n"))
        .unwrap();
    let request = request(0, Vec::new(), note);
    assert!(world.witness.add_checkpoint(&request, NOW).is_ok());
    assert_eq!(world.held().unwrap().note, world.head(3).to_string());
}

#[test]
fn cosignature_times_never_go_back() {
    let mut world = World::at(3);
    let result = world.ask(3, 5, NOW - 1);
    assert!(
        matches!(result, Err(Refusal::Unavailable { .. })),
        "{result:?}"
    );
    assert_eq!(world.held().unwrap().size, 3);

    // Nor do they for another log, or after a restart.
    let other = signing_key("other.example", 7);
    let mut restarted = witness(world.store.clone());
    restarted.add_log(&Log::new(other.verifier())).unwrap();
    let head = Checkpoint::new("other.example", 1, leaf_hash(b"")).unwrap();
    let request = request(0, Vec::new(), head.sign(&other).unwrap());
    let result = restarted.add_checkpoint(&request, NOW - 1);
    assert!(
        matches!(result, Err(Refusal::Unavailable { .. })),
        "{result:?}"
    );
    assert!(restarted.add_checkpoint(&request, NOW).is_ok());
}

#[test]
fn a_clock_that_is_set_back_a_little_states_no_earlier_time() {
    let world = World::new();
    let mut witness = witness(world.store.clone()).with_clock_tolerance(5);
    let mut stated = |old, size, now| {
        let proof = world.tree.consistency_proof(old, size).unwrap();
        let line = witness.add_checkpoint(&request(old, proof, world.head(size)), now)?;
        let signed = witness_key().verifier();
        Ok::<_, Refusal>(signed.verify(world.head(size).text(), &line).unwrap())
    };
    assert_eq!(stated(0, 3, NOW), Ok(Signed::At(NOW)));
    assert_eq!(stated(3, 4, NOW - 5), Ok(Signed::At(NOW)));
    let refused = stated(4, 5, NOW - 6);
    assert!(
        matches!(&refused, Err(Refusal::Unavailable { reason }) if reason.contains("clock")),
        "{refused:?}"
    );
    assert_eq!(stated(4, 5, NOW + 1), Ok(Signed::At(NOW + 1)));
}

#[test]
fn a_clock_that_is_behind_is_told() {
    let world = World::at(3);
    let tolerant = witness(world.store.clone()).with_clock_tolerance(5);
    for (now, behind_s) in [(NOW + 9, None), (NOW - 5, None), (NOW - 6, Some(6))] {
        assert_eq!(tolerant.clock_behind_s(now).unwrap(), behind_s);
    }
}

/// Only what a log has signed counts against it: a stranger cannot use up its
/// share by asking in its name.
#[test]
fn a_log_that_asks_too_often_is_put_off() {
    let world = World::new();
    let rate = Rate { per_s: 1, burst: 2 };
    let mut witness = witness(world.store.clone()).with_rate(rate);
    let head = world.head(3);
    let forged = Checkpoint::new(ORIGIN, 3, leaf_hash(b"")).unwrap();
    let forged = forged.sign(&signing_key(ORIGIN, 66)).unwrap();
    for _ in 0..5 {
        let asked = witness.add_checkpoint(&request(0, Vec::new(), forged.clone()), NOW);
        assert_eq!(asked, Err(Refusal::NotSigned));
    }
    let mut ask = |old, now| witness.add_checkpoint(&request(old, Vec::new(), head.clone()), now);
    assert!(ask(0, NOW).is_ok());
    assert!(ask(3, NOW).is_ok());
    assert!(ask(3, NOW).is_ok());
    assert_eq!(ask(3, NOW), Err(Refusal::TooManyRequests));
    assert!(ask(3, NOW + 1).is_ok());
}

/// Heads are public: anybody can send them again.
#[test]
fn heads_that_are_sent_again_take_nothing_from_the_logs_share() {
    let world = World::new();
    let rate = Rate { per_s: 1, burst: 2 };
    let mut witness = witness(world.store.clone()).with_rate(rate);
    let [older, newer] = [2, 3].map(|size| world.head(size));
    let mut ask =
        |old, proof, head: &Note| witness.add_checkpoint(&request(old, proof, head.clone()), NOW);
    assert!(ask(0, Vec::new(), &older).is_ok());
    for _ in 0..5 {
        let stale = ask(1, Vec::new(), &older);
        assert!(matches!(stale, Err(Refusal::Conflict { .. })), "{stale:?}");
    }
    assert!(ask(2, Vec::new(), &older).is_ok());
    assert!(ask(2, Vec::new(), &older).is_ok());
    assert_eq!(ask(2, Vec::new(), &older), Err(Refusal::TooManyRequests));
    assert!(ask(2, world.tree.consistency_proof(2, 3).unwrap(), &newer).is_ok());
}

#[test]
fn a_calendar_cannot_run_ahead_of_time() {
    let mut world = World::new();
    let pace = Pace {
        genesis_at: NOW - 9,
        tolerance_s: 0,
    };
    world
        .witness
        .add_log(&Log::new(log_key().verifier()).with_pace(pace))
        .unwrap();
    assert_eq!(world.ask(0, 11, NOW), Err(Refusal::AheadOfTime));
    assert!(world.ask(0, 10, NOW).is_ok());
    assert_eq!(world.ask(10, 12, NOW + 1), Err(Refusal::AheadOfTime));
    assert!(world.ask(10, 11, NOW + 1).is_ok());
}

#[test]
fn pace_counts_seconds() {
    let check = |genesis_at, tolerance_s, now, expected| {
        assert_eq!(
            Pace {
                genesis_at,
                tolerance_s
            }
            .max_size(now),
            expected
        );
    };
    check(100, 0, 100, 1);
    check(100, 0, 99, 0);
    check(100, 0, 0, 0);
    check(100, 2, 99, 2);
    check(100, 5, 160, 66);
    check(0, u64::MAX, u64::MAX, u64::MAX);
}

/// A crash after the head was stored once left the log without a cosignature
/// and the witness ahead of it. The log asks again from the size it is told.
#[test]
fn a_crash_between_store_and_answer_loses_nothing() {
    let mut world = World::at(3);
    let mut crashing = witness(Faulty {
        store: world.store.clone(),
        fault: Fault::AfterStoring,
    });
    let proof = world.tree.consistency_proof(3, 5).unwrap();
    let asked = request(3, proof, world.head(5));
    let result = crashing.add_checkpoint(&asked, NOW);
    assert!(
        matches!(result, Err(Refusal::Unavailable { .. })),
        "{result:?}"
    );

    let mut restarted = witness(world.store.clone());
    assert_eq!(
        restarted.add_checkpoint(&asked, NOW),
        Err(Refusal::Conflict { size: 5 })
    );
    let again = request(5, Vec::new(), world.head(5));
    assert!(restarted.add_checkpoint(&again, NOW).is_ok());
    // The head it never answered for binds it all the same.
    world.rewrite(4);
    assert_eq!(world.ask(3, 6, NOW), Err(Refusal::Conflict { size: 5 }));
    assert_eq!(world.ask(5, 6, NOW), Err(Refusal::Inconsistent));
}

#[test]
fn without_its_store_a_witness_is_silent() {
    let world = World::at(3);
    let mut full = witness(Faulty {
        store: world.store.clone(),
        fault: Fault::BeforeStoring,
    });
    let proof = world.tree.consistency_proof(3, 5).unwrap();
    let result = full.add_checkpoint(&request(3, proof, world.head(5)), NOW);
    assert!(
        matches!(result, Err(Refusal::Unavailable { .. })),
        "{result:?}"
    );
    assert_eq!(world.held().unwrap().size, 3);
}

#[test]
fn two_witness_processes_on_one_store_cannot_be_split() {
    let mut world = World::at(3);
    let mut other = witness(world.store.clone());
    world.ask(3, 5, NOW).unwrap();
    world.rewrite(4);
    let proof = world.tree.consistency_proof(3, 5).unwrap();
    let result = other.add_checkpoint(&request(3, proof, world.head(5)), NOW);
    assert_eq!(result, Err(Refusal::Conflict { size: 5 }));
}

#[test]
fn a_peer_finds_out_what_its_witness_holds() {
    let world = World::at(9);
    let (mut peer, clock) = world.peer();
    clock.store(NOW + 60, Ordering::Relaxed);
    let head = world.head(20);
    let line = peer.cosign(&world.tree, &head).unwrap();
    let verdict = witness_key().verifier().verify(head.text(), &line);
    assert_eq!(verdict, Ok(Signed::At(NOW + 60)));
}

#[test]
fn a_peer_asks_twice_only_the_first_time() {
    struct Counting(Box<dyn Cosign>, Arc<AtomicU64>);
    impl Cosign for Counting {
        fn add_checkpoint(&self, body: &[u8]) -> Result<Vec<SignatureLine>, Refusal> {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.add_checkpoint(body)
        }
    }
    let world = World::at(9);
    let requests = Arc::new(AtomicU64::new(0));
    let clocked = ClockedWitness::new(witness(world.store.clone()), || NOW);
    let counting = Counting(Box::new(clocked), Arc::clone(&requests));
    let mut peer = Peer::new(Box::new(counting), witness_key().verifier());
    for (size, asked) in [(20, 2), (30, 3), (30, 4), (400, 5)] {
        assert!(peer.cosign(&world.tree, &world.head(size)).is_ok());
        assert_eq!(requests.load(Ordering::Relaxed), asked, "{size} leaves");
    }
}

#[test]
fn a_peer_learns_that_its_log_was_rewound_or_forked() {
    let mut world = World::at(9);
    let (mut peer, _) = world.peer();
    let result = peer.cosign(&world.tree, &world.head(5));
    assert!(
        matches!(result, Err(SubmitError::Ahead { size: 9 })),
        "{result:?}"
    );
    world.rewrite(3);
    for size in [9, 20] {
        let (mut peer, _) = world.peer();
        let result = peer.cosign(&world.tree, &world.head(size));
        assert!(
            matches!(result, Err(SubmitError::Forked { size: 9 })),
            "{result:?}"
        );
    }
}

/// Every log continues what is empty: somebody else answers.
#[test]
fn whoever_refuses_the_beginning_of_a_log_shows_no_fork() {
    struct Stranger(fn() -> Refusal);
    impl Cosign for Stranger {
        fn add_checkpoint(&self, _: &[u8]) -> Result<Vec<SignatureLine>, Refusal> {
            Err(self.0())
        }
    }
    let world = World::at(9);
    for refusal in [|| Refusal::Inconsistent, || Refusal::Conflict { size: 0 }] {
        let mut peer = Peer::new(Box::new(Stranger(refusal)), witness_key().verifier());
        let result = peer.cosign(&world.tree, &world.head(9));
        assert!(matches!(result, Err(SubmitError::Refused(_))), "{result:?}");
    }
}

#[test]
fn a_peer_believes_only_its_witnesss_key() {
    struct Impostor;
    impl Cosign for Impostor {
        fn add_checkpoint(&self, body: &[u8]) -> Result<Vec<SignatureLine>, Refusal> {
            let head = AddCheckpoint::parse(body)?.head;
            let impostor = CosigningKey::from_seed(witness_key().name(), &[66; 32])?;
            Ok(vec![impostor.cosign(head.text(), NOW)])
        }
    }
    let world = World::new();
    let mut peer = Peer::new(Box::new(Impostor), witness_key().verifier());
    let result = peer.cosign(&world.tree, &world.head(3));
    assert!(
        matches!(result, Err(SubmitError::NoCosignature)),
        "{result:?}"
    );
}

const ORIGIN: &str = "hospital.example/ehr";

/// A log of 400 entries, a witness, and what the witness remembers.
struct World {
    leaves: Vec<Hash>,
    tree: LogTree,
    store: MemoryStore,
    witness: Witness<MemoryStore>,
}

impl World {
    fn new() -> Self {
        let leaves: Vec<Hash> = (0..400u32).map(|i| leaf_hash(&i.to_be_bytes())).collect();
        let store = MemoryStore::new();
        Self {
            tree: leaves.iter().copied().collect(),
            leaves,
            witness: witness(store.clone()),
            store,
        }
    }

    /// A world whose witness has cosigned `size` leaves.
    fn at(size: u64) -> Self {
        let mut world = Self::new();
        world.ask(0, size, NOW).unwrap();
        world
    }

    /// Alters an entry of the past.
    fn rewrite(&mut self, index: usize) {
        self.leaves[index] = leaf_hash(b"rewritten");
        self.tree = self.leaves.iter().copied().collect();
    }

    fn head(&self, size: u64) -> Note {
        let root = self.tree.root_at(size).unwrap();
        let head = Checkpoint::new(ORIGIN, size, root).unwrap();
        head.sign(&log_key()).unwrap()
    }

    fn ask(&mut self, old: u64, size: u64, now: u64) -> Result<SignatureLine, Refusal> {
        let proof = self.tree.consistency_proof(old, size);
        let proof = proof.unwrap_or_else(|OutOfRange| Vec::new());
        let request = request(old, proof, self.head(size));
        self.witness.add_checkpoint(&request, now)
    }

    fn held(&self) -> Option<Head> {
        self.store.head(ORIGIN).unwrap()
    }

    /// A peer of a witness on the same store, and the witness's clock.
    fn peer(&self) -> (Peer, Arc<AtomicU64>) {
        let clock = Arc::new(AtomicU64::new(NOW));
        let now = Arc::clone(&clock);
        let witness = ClockedWitness::new(witness(self.store.clone()), move || {
            now.load(Ordering::Relaxed)
        });
        let peer = Peer::new(Box::new(Arc::new(witness)), witness_key().verifier());
        (peer, clock)
    }
}

fn witness<S: Store>(store: S) -> Witness<S> {
    let mut witness = Witness::new(witness_key(), store);
    witness.add_log(&Log::new(log_key().verifier())).unwrap();
    witness
}

fn request(old_size: u64, proof: Vec<Hash>, head: Note) -> Vec<u8> {
    let request = AddCheckpoint {
        old_size,
        proof,
        head,
    };
    request.to_string().into_bytes()
}

fn log_key() -> SigningKey {
    signing_key(ORIGIN, 1)
}

fn signing_key(name: &str, seed: u8) -> SigningKey {
    SigningKey::from_seed(name, &[seed; 32]).unwrap()
}

fn witness_key() -> CosigningKey {
    CosigningKey::from_seed("witness.example/w1", &[2; 32]).unwrap()
}

/// A store whose `advance` fails on one side of the write.
struct Faulty {
    store: MemoryStore,
    fault: Fault,
}

enum Fault {
    BeforeStoring,
    AfterStoring,
}

impl Store for Faulty {
    fn head(&self, origin: &str) -> Result<Option<Head>, StoreError> {
        self.store.head(origin)
    }

    fn advance(
        &mut self,
        origin: &str,
        expected: Option<&Head>,
        new: &Head,
    ) -> Result<(), StoreError> {
        if let Fault::AfterStoring = self.fault {
            self.store.advance(origin, expected, new)?;
        }
        Err(StoreError::failed("disk full"))
    }

    fn keep_fork(&mut self, fork: Fork) -> Result<(), StoreError> {
        self.store.keep_fork(fork)
    }

    fn forks(&self) -> Result<Vec<Fork>, StoreError> {
        self.store.forks()
    }

    fn latest_at(&self) -> Result<Option<u64>, StoreError> {
        self.store.latest_at()
    }

    fn log(&self, origin: &str) -> Result<Option<Log>, StoreError> {
        self.store.log(origin)
    }

    fn logs(&self) -> Result<Vec<Log>, StoreError> {
        self.store.logs()
    }

    fn put_log(&mut self, log: &Log) -> Result<(), StoreError> {
        self.store.put_log(log)
    }
}
