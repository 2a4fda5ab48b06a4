//! Heads cosigned per second, as 800 guardians ask for it: each has a log of
//! its own, and each head has grown by a few blocks.
//!
//! ```text
//! taskset -c 0 cargo bench -p pitser-witness      everything on one core, the asking too
//! ```
//!
//! `floor` is the arithmetic alone: one signature verified, one made, the proof
//! hashed; `ml-dsa` the same with ML-DSA-44 (`--features ml-dsa`). `memory` adds
//! the decision, `sqlite` makes each head durable before it is cosigned, `http`
//! is a whole request over loopback.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark that cannot be set up has failed; it prints its figures"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pitser_tlog::checkpoint::Checkpoint;
use pitser_tlog::merkle::{LogTree, leaf_hash, verify_consistency};
use pitser_tlog::note::{Algorithm, CosigningKey, SigningKey};
use pitser_tlog::witness_protocol::AddCheckpoint;
use pitser_witness::{
    Cosign, HttpWitness, Limits, Log, MemoryStore, Rate, Server, SqliteStore, Store, Witness,
};

const LOGS: usize = 800;
/// Blocks between two heads: one every ten seconds, of one block a second.
const GROWTH: u64 = 10;
/// Blocks that each log has at the beginning: about twelve days of them.
const START: u64 = 1_000_000;
const NEEDED_PER_S: f64 = 80.0;
const NOW: u64 = 1_735_689_600;
/// Guardians that ask at the same time over HTTP.
const ASKING: usize = 8;

fn main() {
    let keys: Vec<_> = (0..LOGS)
        .map(|log| {
            let mut seed = [1; 32];
            seed[..8].copy_from_slice(&(log as u64).to_be_bytes());
            SigningKey::from_seed(&format!("hospital-{log}.example/ehr"), &seed).unwrap()
        })
        .collect();
    let tree: LogTree = (0..START + 20 * GROWTH)
        .map(|index| leaf_hash(&index.to_be_bytes()))
        .collect();
    let bench = Bench { keys, tree };
    println!(
        "{LOGS} logs of a million blocks, {GROWTH} more in each head; needed: {NEEDED_PER_S} a second"
    );
    bench.floor();
    bench.in_process("memory", bench.witness(MemoryStore::new()));
    let folder = tempfile::tempdir().unwrap();
    let store = |name: &str| SqliteStore::open(folder.path().join(name)).unwrap();
    bench.in_process("sqlite", bench.witness(store("process.db")));
    bench.over_http(bench.witness(store("http.db")));
}

struct Bench {
    keys: Vec<SigningKey>,
    tree: LogTree,
}

impl Bench {
    /// A witness that holds the first head of each log.
    fn witness<S: Store>(&self, store: S) -> Witness<S> {
        let mut witness = Witness::new(key(Algorithm::CosignatureV1), store);
        for (log, body) in self.heads(0).into_iter().enumerate() {
            let key = self.keys[log].verifier();
            witness.add_log(&Log::new(key)).unwrap();
            witness.add_checkpoint(&body, NOW).unwrap();
        }
        witness
    }

    /// The requests of one round, one of each log.
    fn heads(&self, round: u64) -> Vec<Vec<u8>> {
        let size = START + round * GROWTH;
        let (root, old) = (
            self.tree.root_at(size).unwrap(),
            round.checked_sub(1).map_or(0, |_| size - GROWTH),
        );
        let proof = self.tree.consistency_proof(old, size).unwrap();
        let one = |key: &SigningKey| {
            let head = Checkpoint::new(key.name(), size, root).unwrap();
            let request = AddCheckpoint {
                old_size: old,
                proof: proof.clone(),
                head: head.sign(key).unwrap(),
            };
            request.to_string().into_bytes()
        };
        self.keys.iter().map(one).collect()
    }

    fn floor(&self) {
        self.floor_of("floor", &key(Algorithm::CosignatureV1));
        #[cfg(feature = "ml-dsa")]
        self.floor_of("ml-dsa", &key(Algorithm::MlDsa44));
    }

    fn floor_of(&self, name: &str, key: &CosigningKey) {
        let bodies = self.heads(1);
        let before = self.tree.root_at(START).unwrap();
        let after = self.tree.root_at(START + GROWTH).unwrap();
        let began = Instant::now();
        for _ in 0..ROUNDS {
            for (body, log) in bodies.iter().zip(&self.keys) {
                let request = AddCheckpoint::parse(body).unwrap();
                request.head.verify(&log.verifier()).unwrap();
                let size = START + GROWTH;
                verify_consistency(START, &before, size, &after, &request.proof).unwrap();
                std::hint::black_box(key.cosign(request.head.text(), NOW));
            }
        }
        report(name, LOGS * ROUNDS as usize, began.elapsed());
    }

    fn in_process<S: Store>(&self, name: &str, mut witness: Witness<S>) {
        let mut took = Duration::ZERO;
        for round in 1..=ROUNDS {
            let bodies = self.heads(round);
            let began = Instant::now();
            for body in &bodies {
                witness.add_checkpoint(body, NOW + round).unwrap();
            }
            took += began.elapsed();
        }
        report(name, LOGS * ROUNDS as usize, took);
    }

    fn over_http(&self, witness: Witness<SqliteStore>) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let limits = Limits {
            of_peer: Rate {
                per_s: u32::MAX,
                burst: u32::MAX,
            },
            ..Limits::default()
        };
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let started = Server::start(listen, witness, limits, || NOW + 1);
        let server = runtime.block_on(started).unwrap();
        let prefix: pitser_witness::Prefix =
            format!("http://{}", server.address()).parse().unwrap();
        let asking: Vec<_> = (0..ASKING)
            .map(|_| HttpWitness::new(prefix.clone()))
            .collect();
        let mut took = Duration::ZERO;
        for round in 1..=ROUNDS {
            let bodies = Arc::new(self.heads(round));
            let next = AtomicUsize::new(0);
            let began = Instant::now();
            thread::scope(|scope| {
                for witness in &asking {
                    let (bodies, next) = (Arc::clone(&bodies), &next);
                    scope.spawn(move || {
                        while let Some(body) = bodies.get(next.fetch_add(1, Ordering::Relaxed)) {
                            witness.add_checkpoint(body).unwrap();
                        }
                    });
                }
            });
            took += began.elapsed();
        }
        report("http", LOGS * ROUNDS as usize, took);
        runtime.block_on(server.stop());
    }
}

fn key(algorithm: Algorithm) -> CosigningKey {
    CosigningKey::with_algorithm("witness.example", algorithm, &[2; 32]).unwrap()
}

fn report(name: &str, heads: usize, took: Duration) {
    let per_s = heads as f64 / took.as_secs_f64();
    println!(
        "{name:<7} {per_s:>9.0} heads a second, {:>7.0} µs each, {:>6.1} times what is needed",
        1e6 / per_s,
        per_s / NEEDED_PER_S
    );
}

/// Heads of each log.
const ROUNDS: u64 = 3;
