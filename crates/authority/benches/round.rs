//! How fast a full round is sealed, against plain SHA-256 in the same run.
//!
//! `cargo bench -p pitser-authority`. A round of n requests takes at least 2n
//! hashes: one for each metadata link, one for each inner node.

use std::hint::black_box;
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use std::sync::Arc;

use pitser_authority::Micros;
use pitser_authority::round::{Closed, Request, Rounds, links_into};
use pitser_ksi::hash::HmacKey;
use pitser_ksi::pdu::SignatureAnswer;
use pitser_ksi::tree::{Tree, TreeBuilder};
use pitser_ksi::{Algorithm, Second, hash};
use sha2::{Digest, Sha256};

const REQUESTS: u64 = 150_000;
const RUNS: usize = 5;
/// What a calendar chain and its authentication record take.
const CALENDAR_PART: [u8; 900] = [0; 900];

type Round = Closed<u64, Arc<str>>;

fn main() {
    let floor = best(|| {
        // Two imprints and a level: what an inner node hashes.
        let mut block = [0u8; 67];
        for number in 0..2 * REQUESTS {
            block[..8].copy_from_slice(&number.to_be_bytes());
            black_box(Sha256::digest(block));
        }
    });
    let collecting = best(|| drop(black_box(collect())));
    let round = collect();
    let mut builder = Some(TreeBuilder::new(Algorithm::Sha256));
    let sealing = best(|| {
        let tree = seal(&round, builder.take());
        builder = Some(black_box(tree).recycle());
    });
    let tree = seal(&round, None);
    let codes = best(|| codes(&round));
    let answering = best(|| answer(&round, &tree, 0..REQUESTS as u32));
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let answering_together = best(|| {
        thread::scope(|scope| {
            for part in 0..cores as u32 {
                let end = |part: u32| (REQUESTS * u64::from(part) / cores as u64) as u32;
                let (round, tree) = (&round, &tree);
                scope.spawn(move || answer(round, tree, end(part)..end(part + 1)));
            }
        });
    });
    report("plain SHA-256, 2 hashes a request", floor, floor);
    report("collect a round", collecting, floor);
    report("build its tree", sealing, floor);
    report("HMAC of the answers alone", codes, floor);
    report("answer it on one core", answering, floor);
    report("answer it on all cores", answering_together, floor);
}

fn answer(round: &Round, tree: &Tree, numbers: Range<u32>) {
    let key = HmacKey::new(b"anon");
    let (mut links, mut out) = (Vec::new(), Vec::new());
    for number in numbers {
        let request = &round.requests[number as usize];
        links_into(tree, number, &mut links);
        let answer = SignatureAnswer {
            login_id: "anon",
            instance_id: None,
            message_id: None,
            request_id: request.ticket,
            input: request.input,
            aggregation_time: round.second,
            index: &[],
            algorithm: tree.algorithm(),
            tail: &CALENDAR_PART,
        };
        out.clear();
        let written = answer.write(&mut out, &links, &key, Algorithm::Sha256);
        written.expect("an answer is short");
        black_box(&out);
    }
}

fn codes(round: &Round) {
    let key = HmacKey::new(b"anon");
    let answer = [0; 1700];
    for _ in &round.requests {
        black_box(key.mac(Algorithm::Sha256, &[black_box(&answer)]));
    }
}

fn collect() -> Round {
    let mut rounds = Rounds::after(Second(0), REQUESTS as usize);
    let anon: Arc<str> = "anon".into();
    let mut requests = Vec::new();
    for first in (0..REQUESTS).step_by(500) {
        requests.extend((first..first + 500).map(|number| Request {
            input: hash::hash(Algorithm::Sha256, &[&number.to_be_bytes()]),
            level: 0,
            ticket: number,
        }));
        let accepted = rounds.accept(Arc::clone(&anon), Micros(1), Micros(1), &mut requests);
        accepted.expect("the clock stands still");
    }
    rounds.close(Micros(1_000_000)).remove(0)
}

fn seal(round: &Round, builder: Option<TreeBuilder>) -> Tree {
    let builder = builder.unwrap_or_else(|| TreeBuilder::new(Algorithm::Sha256));
    round
        .tree(builder, "bench")
        .expect("the tree is not too high")
}

fn best(mut work: impl FnMut()) -> Duration {
    let run = |_| {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    (0..RUNS).map(run).min().unwrap_or_default()
}

fn report(what: &str, took: Duration, floor: Duration) {
    let rate = REQUESTS as f64 / took.as_secs_f64() / 1000.0;
    let ratio = took.as_secs_f64() / floor.as_secs_f64();
    println!("{what:36} {rate:8.0} k requests/s  {ratio:5.2} x plain SHA-256");
}
