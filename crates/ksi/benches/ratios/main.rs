//! What batches, trees and verification gain over one `sha2` message after the
//! other, as ratios from the same run:
//!
//! ```console
//! $ cargo bench -p pitser-ksi --bench ratios              # a table
//! $ cargo bench -p pitser-ksi --bench ratios -- --json    # the same, a line of JSON each
//! ```
//!
//! Everything runs on one thread, whose processor time is measured: waiting for the
//! processor does not count, memory that is touched for the first time does. Rounds
//! alternate between the two, so that what a busy machine still takes away, such as
//! caches, it takes from both. The median of the rounds' ratios is told, and between
//! what lies the middle four fifths of them.

#![allow(clippy::unwrap_used, reason = "a benchmark may panic")]

mod work;

use std::fs;
use work::Comparison;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |wanted: &str| arguments.iter().any(|argument| argument == wanted);
    // `cargo test --all-targets` comes here, too.
    if !has("--bench") {
        return;
    }
    let json = has("--json");
    if !json {
        println!("{}", heading());
    }
    for comparison in work::comparisons() {
        let measured = Measured::of(comparison);
        println!(
            "{}",
            if json {
                measured.json()
            } else {
                measured.row()
            }
        );
    }
    if !json {
        println!("load average at the end: {}", load());
    }
}

struct Measured {
    comparison: Comparison,
    rounds: usize,
    /// The 10th, 50th and 90th of a hundred rounds' ratios.
    ratios: [f64; 3],
    /// Medians, in things per second.
    ours: f64,
    plain: f64,
}

impl Measured {
    /// Runs rounds for about this long, whatever their number.
    const SECONDS: f64 = 0.5;

    fn of(mut comparison: Comparison) -> Self {
        let Comparison { plain, ours, .. } = &mut comparison;
        let (warm_plain, warm_ours) = (seconds(plain), seconds(ours));
        let rounds = (Self::SECONDS / (warm_plain + warm_ours)) as usize;
        let rounds = rounds.clamp(11, 1001);
        let times: Vec<_> = (0..rounds)
            .map(|_| (seconds(plain), seconds(ours)))
            .collect();
        let sorted = |value: fn(&(f64, f64)) -> f64| {
            let mut values: Vec<_> = times.iter().map(value).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let ratios = sorted(|(plain, ours)| plain / ours);
        let rate = |seconds: Vec<f64>| comparison.count as f64 / seconds[rounds / 2];
        Self {
            rounds,
            ratios: [rounds / 10, rounds / 2, rounds * 9 / 10].map(|at| ratios[at]),
            ours: rate(sorted(|(_, ours)| *ours)),
            plain: rate(sorted(|(plain, _)| *plain)),
            comparison,
        }
    }

    fn row(&self) -> String {
        let [low, median, high] = self.ratios;
        let Comparison { kernel, what, .. } = &self.comparison;
        let [ours, plain] = [self.ours, self.plain].map(per_second);
        format!(
            "{kernel:15} {what:46} {median:5.2} ({low:5.2} to {high:5.2}) {ours:>9} {plain:>9} {:>6}",
            self.rounds
        )
    }

    fn json(&self) -> String {
        let [low, median, high] = self.ratios;
        let Comparison { kernel, what, .. } = &self.comparison;
        let (ours, plain, rounds) = (self.ours, self.plain, self.rounds);
        format!(
            r#"{{"kernel":"{kernel}","what":"{what}","ratio":{median:.3},"low":{low:.3},"high":{high:.3},"per_second":{ours:.0},"sha2_per_second":{plain:.0},"rounds":{rounds}}}"#
        )
    }
}

fn heading() -> String {
    let columns = format!(
        "{:15} {:46} {:>5} {:16} {:>9} {:>9} {:>6}",
        "by", "what", "ratio", "(middle 80 %)", "ours", "sha2", "rounds"
    );
    format!(
        "{}; load average {}\n\n{columns}",
        processor().unwrap_or_else(|| "unknown processor".to_owned()),
        load()
    )
}

/// The processor's name, and which of the features that matter it has.
fn processor() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name))?;
        line.split_once(": ").map(|(_, value)| value)
    };
    let flags: Vec<_> = field("flags")?.split(' ').collect();
    let features = ["sha_ni", "avx512f", "avx512bw"].map(|feature| {
        let has = if flags.contains(&feature) { "" } else { "no " };
        format!("{has}{feature}")
    });
    Some(format!("{}: {}", field("model name")?, features.join(", ")))
}

/// Of the last minute, 5 and 15 minutes.
fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn per_second(rate: f64) -> String {
    if rate < 1e6 {
        format!("{:.0} k/s", rate / 1e3)
    } else {
        format!("{:.1} M/s", rate / 1e6)
    }
}

fn seconds(work: &mut dyn FnMut()) -> f64 {
    let start = now();
    work();
    now() - start
}

/// Seconds that this thread has had the processor.
#[cfg(unix)]
fn now() -> f64 {
    use rustix::time::{ClockId, clock_gettime};
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Seconds that have passed.
#[cfg(not(unix))]
fn now() -> f64 {
    use std::{sync::LazyLock, time::Instant};
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_secs_f64()
}
