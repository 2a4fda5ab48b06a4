//! Whatever a dishonest log submits, in whatever order, across restarts and a
//! clock that jumps: all heads that were ever cosigned lie on one branch, each
//! time no earlier than the one before.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use pitser_tlog::checkpoint::Checkpoint;
use pitser_tlog::merkle::{LogTree, leaf_hash};
use pitser_tlog::note::{CosigningKey, SigningKey};
use pitser_tlog::witness_protocol::AddCheckpoint;
use pitser_witness::{Log, MemoryStore, Witness};
use proptest::prelude::*;

const SIZE: u64 = 24;
const BRANCHES: usize = 3;

/// One submission of a log that keeps several histories.
#[derive(Debug, Clone)]
struct Move {
    branch: usize,
    /// The branch from which the consistency proof is taken.
    proof_branch: usize,
    old_size: u64,
    size: u64,
    now: u64,
    restart: bool,
}

prop_compose! {
    fn any_move()(
        branch in 0..BRANCHES,
        proof_branch in 0..BRANCHES,
        sizes in (0..=SIZE, 0..=SIZE),
        now in 90u64..110,
        restart: bool,
    ) -> Move {
        let (old_size, size) = sizes;
        Move { branch, proof_branch, old_size, size, now, restart }
    }
}

proptest! {
    #[test]
    fn cosigned_heads_form_one_history(
        fork_points in prop::array::uniform3(0..SIZE),
        moves in prop::collection::vec(any_move(), 1..80),
        correct_sizes: bool,
    ) {
        let branches: Vec<LogTree> = fork_points
            .iter()
            .enumerate()
            .map(|(branch, &fork)| history(branch, fork))
            .collect();
        let store = MemoryStore::new();
        let mut witness = witness(store.clone());
        let mut cosigned: Vec<(usize, u64, u64)> = Vec::new();
        for step in moves {
            if step.restart {
                witness = self::witness(store.clone());
            }
            // Half of the runs ask from the size that the witness holds, and so
            // get further than guesses do.
            let held = cosigned.last().map_or(0, |&(_, size, _)| size);
            let old_size = if correct_sizes { held } else { step.old_size };
            let request = request(&branches, &step, old_size);
            if witness.add_checkpoint(&request, step.now).is_ok() {
                cosigned.push((step.branch, step.size, step.now));
            }
        }
        for pair in cosigned.windows(2) {
            let ((earlier, old_size, old_at), (later, size, at)) = (pair[0], pair[1]);
            prop_assert!(old_size <= size && old_at <= at, "{pair:?}");
            let before = branches[earlier].root_at(old_size).unwrap();
            let after = branches[later].root_at(old_size).unwrap();
            prop_assert_eq!(before, after, "{:?}", pair);
        }
    }
}

/// Histories agree up to `fork` and differ after it.
fn history(branch: usize, fork: u64) -> LogTree {
    (0..SIZE)
        .map(|index| {
            if index < fork {
                leaf_hash(&index.to_be_bytes())
            } else {
                leaf_hash(format!("{branch} {index}").as_bytes())
            }
        })
        .collect()
}

fn request(branches: &[LogTree], step: &Move, old_size: u64) -> Vec<u8> {
    let root = branches[step.branch].root_at(step.size).unwrap();
    let head = Checkpoint::new("log.example", step.size, root).unwrap();
    let proof = branches[step.proof_branch].consistency_proof(old_size, step.size);
    let request = AddCheckpoint {
        old_size,
        proof: proof.unwrap_or_default(),
        head: head.sign(&log_key()).unwrap(),
    };
    request.to_string().into_bytes()
}

fn witness(store: MemoryStore) -> Witness<MemoryStore> {
    let key = CosigningKey::from_seed("witness.example", &[2; 32]).unwrap();
    let mut witness = Witness::new(key, store);
    witness.add_log(&Log::new(log_key().verifier())).unwrap();
    witness
}

fn log_key() -> SigningKey {
    SigningKey::from_seed("log.example", &[1; 32]).unwrap()
}
