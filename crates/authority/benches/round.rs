//! How fast a full round is sealed, against plain SHA-256 in the same run.
//!
//! `cargo bench -p pitser-authority`. A round of n requests takes at least 2n
//! hashes: one for each metadata link, one for each inner node.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use pitser_authority::Micros;
use pitser_authority::round::{Request, Rounds, Sealed};
use pitser_ksi::pdu::{
    AggregationResponse, AggregationResponsePayload, Header, SignResult, Status,
};
use pitser_ksi::tlv::Writer;
use pitser_ksi::{Algorithm, Second, hash};
use sha2::{Digest, Sha256};

const REQUESTS: u64 = 150_000;
const RUNS: usize = 5;
/// What a calendar chain and its authentication record take.
const CALENDAR_PART: [u8; 900] = [0; 900];

fn main() {
    let floor = best(|| {
        // Two imprints and a level: what an inner node hashes.
        let mut block = [0u8; 67];
        for number in 0..2 * REQUESTS {
            block[..8].copy_from_slice(&number.to_be_bytes());
            black_box(Sha256::digest(block));
        }
    });
    let sealing = best(|| drop(black_box(seal())));
    let answering = best(|| answer(seal()));
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let answering_together = best(|| {
        thread::scope(|scope| {
            for part in seal().split((REQUESTS as usize).div_ceil(cores)) {
                scope.spawn(|| answer(part));
            }
        });
    });
    report("plain SHA-256, 2 hashes a request", floor, floor);
    report("seal a round", sealing, floor);
    report("seal and answer it on one core", answering, floor);
    report("seal and answer it on all cores", answering_together, floor);
}

fn answer(round: Sealed<u64>) {
    for (request, chain) in round.into_answers() {
        let mut signature = Writer::new();
        chain.write(&mut signature);
        signature.raw(&CALENDAR_PART);
        let result = SignResult {
            request_id: request.ticket,
            status: Status::OK,
            message: None,
            signature: signature.finish().expect("a signature is short"),
        };
        let payload = AggregationResponsePayload::Result(result);
        let pdu = AggregationResponse::new(Header::new("anon"), payload);
        let bytes = pdu.encode(b"anon", Algorithm::Sha256);
        black_box(bytes.expect("an answer is short"));
    }
}

fn seal() -> Sealed<u64> {
    let mut rounds = Rounds::after(Second(0), REQUESTS as usize);
    for number in 0..REQUESTS {
        let request = Request {
            user: "anon".into(),
            input: hash::hash(Algorithm::Sha256, &[&number.to_be_bytes()]),
            level: 0,
            arrived_at: Micros(1),
            ticket: number,
        };
        rounds.accept(request).expect("the round has room");
    }
    let round = rounds.close(Micros(1_000_000)).remove(0);
    round.seal("bench").expect("the tree is not too high")
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
