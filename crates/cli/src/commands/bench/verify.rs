//! How fast a log is signed, verified, and a line taken out of it.
//!
//! Each figure is that of the command as a user runs it, in a process of its own,
//! with all blocks signed by an authority on loopback. The floor is what hashing
//! alone takes one hash after another on all processors: four hashes a line, of
//! the line, its mask, its leaf and a parent. Rounds alternate between the two, so
//! that a busy machine slows both alike.

use std::hint::black_box;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use pitser_ksi::hash::{Algorithm, Imprint, hash, node};

use super::server::{Authority, ourselves};
use super::{median, rounded};
use crate::files::{Folder, NewFile};
use crate::outcome::{Exit, Failure, Outcome};
use crate::output::Form;
use crate::tree::Map;

/// The command's arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Lines of the log, 124 bytes each
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    lines: u64,
    /// Rounds; their median is told
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=101))]
    rounds: u32,
    #[command(flatten)]
    form: Form,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Outcome {
    if args.lines == 0 {
        return Err(Failure::Input("a log needs lines to be measured".into()));
    }
    let folder = Folder::temporary()?;
    let bench = Bench {
        folder: &folder.path,
        args,
    };
    let facts = bench.measure()?;
    args.form.show(&facts)?;
    Ok(Exit::Intact)
}

struct Bench<'b> {
    folder: &'b Path,
    args: &'b Args,
}

impl Bench<'_> {
    fn measure(&self) -> Result<Map, Failure> {
        self.write_log()?;
        let authority = Authority::start(self.folder, "")?;
        let mut sign = Vec::new();
        for store in STORES {
            let took = self.time(&format!(
                "log sign a.log --store {store} -o {store}.logsig -S {}",
                authority.service()
            ))?;
            sign.push(took);
        }
        let verify = format!("log verify a.log records.logsig {}", authority.trust());
        let (mut verified, mut floors, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.args.rounds {
            let floor = self.floor();
            let ours = self.args.lines as f64 / self.time(&verify)?.as_secs_f64();
            verified.push(ours);
            floors.push(floor);
            ratios.push(ours / floor);
        }
        let mut extract = Map::new();
        for store in STORES {
            let line = self.args.lines - self.args.lines.min(5) + 1;
            let command = format!("log extract a.log {store}.logsig -l {line} -o {store} --force");
            let mut times = Vec::new();
            for _ in 0..self.args.rounds {
                times.push(self.time(&command)?.as_secs_f64() * 1e3);
            }
            extract = extract.with(store, rounded(median(times)));
        }
        let lines = self.args.lines as f64;
        let sign: Vec<_> = sign.iter().map(|took| lines / took.as_secs_f64()).collect();
        Ok(Map::new()
            .with("lines", self.args.lines)
            .with("line_bytes", LINE)
            .with("processors", processors())
            .with("sign_lines_per_s", median(sign) as u64)
            .with("verify_lines_per_s", median(verified) as u64)
            .with("floor_lines_per_s", median(floors) as u64)
            .with("of_floor", rounded(median(ratios)))
            .with("extract_ms", extract))
    }

    fn write_log(&self) -> Result<(), Failure> {
        let mut log = NewFile::create(&self.folder.join("a.log"), false)?;
        for number in 0..self.args.lines {
            let text = format!("2026-03-14T09:26:53.589793+00:00 ward-7 app[{number:>9}]: ");
            log.write(format!("{text:x<width$}\n", width = LINE - 1).as_bytes())?;
        }
        log.finish()
    }

    /// Runs one of our commands, which must succeed.
    fn time(&self, command: &str) -> Result<Duration, Failure> {
        let start = Instant::now();
        let output = ourselves(self.folder, command)?
            .output()
            .map_err(Failure::service)?;
        let took = start.elapsed();
        if output.status.success() {
            return Ok(took);
        }
        Err(Failure::Service(format!(
            "pitser {command}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )))
    }

    /// Lines a second that plain hashing could do, on all processors.
    fn floor(&self) -> f64 {
        let lines = (self.args.lines / 10).clamp(1, 200_000);
        let start = Instant::now();
        thread::scope(|scope| {
            for _ in 0..processors() {
                scope.spawn(|| hash_lines(lines));
            }
        });
        lines as f64 * processors() as f64 / start.elapsed().as_secs_f64()
    }
}

/// The four hashes of each line, one after another.
fn hash_lines(lines: u64) {
    let algorithm = Algorithm::Sha256;
    let line = [b'x'; LINE - 1];
    let mut last = Imprint::zero(algorithm);
    for _ in 0..lines {
        let record = hash(algorithm, &[black_box(&line)]);
        let mask = hash(algorithm, &[last.as_bytes(), &[0; 32]]);
        last = node(algorithm, mask.as_bytes(), record.as_bytes(), 1);
        black_box(node(algorithm, last.as_bytes(), last.as_bytes(), 2));
    }
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

const STORES: [&str; 3] = ["none", "records", "tree"];
/// Length of a line with its line end, in bytes.
const LINE: usize = 124;
