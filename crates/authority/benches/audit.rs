//! How long the audit of a calendar takes, against the hashes that it must compute.
//!
//! `cargo bench -p pitser-authority --bench audit -- [SECONDS]`: a calendar of 30
//! million seconds (a year), no two leaves alike, unless another length is asked for.
//! Ten years are 315 million seconds.

#![allow(clippy::unwrap_used, reason = "a benchmark may panic")]

use std::fs::File;
use std::hint::black_box;
use std::io::{BufWriter, Write};
use std::time::{Duration, Instant};

use pitser_authority::calendar::{Calendar, CalendarReader};
use pitser_ksi::hash::{Algorithm, Batch};
use pitser_ksi::{Imprint, Second};

const GENESIS: u64 = 1_773_480_413;
const TEN_YEARS_S: u64 = 315_360_000;

fn main() {
    let asked = std::env::args().find_map(|argument| argument.parse().ok());
    let seconds: u64 = asked.unwrap_or(30_000_000);
    let dir = tempfile::TempDir::new().unwrap();
    let dir = dir.path();
    Calendar::create(dir, Second(GENESIS)).unwrap();
    let mut leaves = BufWriter::new(File::create(dir.join("level-00")).unwrap());
    let mut leaf = [0; 33];
    leaf[0] = Algorithm::Sha256.id();
    for second in 0..seconds {
        leaf[1..9].copy_from_slice(&second.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        leaves.write_all(&leaf).unwrap();
    }
    drop(leaves);
    let (made, took) = timed(|| Calendar::open(dir).unwrap());
    println!("nodes made  {}", rate(seconds, took));

    let floor_s = floor(seconds);
    println!(
        "floor       {}, one core, hashing alone",
        rate(seconds, floor_s)
    );

    let beside = CalendarReader::open_beside(dir).unwrap();
    let (audit, took) = timed(|| beside.audit(|_, _| ()).unwrap());
    println!("audit       {}", rate(seconds, took));
    assert_eq!(audit.fault, None);
    assert!(audit.seconds + 16 > seconds);
    let ten_years = took.mul_f64(TEN_YEARS_S as f64 / seconds as f64);
    println!("ten years   {:.0} s at this speed", ten_years.as_secs_f64());

    let head = made.head().unwrap();
    let (_, took) = timed(|| black_box(made.reader().root_at(head).unwrap()));
    println!("root        {} µs", took.as_micros());
}

/// One hash a second, as a tree has inner nodes.
fn floor(hashes: u64) -> Duration {
    let mut batch = Batch::new(Algorithm::Sha256);
    let child = Imprint::zero(Algorithm::Sha256);
    let run = || {
        for _ in 0..hashes / 4096 {
            for _ in 0..4096 {
                batch.push_node(child.as_bytes(), child.as_bytes(), 0xff);
            }
            black_box(batch.drain().last());
        }
    };
    timed(run).1
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let begun = Instant::now();
    let done = work();
    (done, begun.elapsed())
}

fn rate(seconds: u64, took: Duration) -> String {
    let took = took.as_secs_f64();
    let millions = seconds as f64 / took / 1e6;
    format!("{took:6.1} s for {seconds} seconds, {millions:.1} million a second")
}
