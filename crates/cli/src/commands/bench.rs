//! `pitser bench`: whole paths, against a floor in the same run.

mod access;
mod authority;
mod guard;
mod server;
mod verify;

use crate::outcome::Outcome;
use crate::tree::Tree;

/// What to measure.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// A patient's complete access list with its proof, out of a trail that is written for it
    Access(access::Args),
    /// An authority under load: signatures a second, latency, processor time, memory
    Authority(authority::Args),
    /// A guardian behind a PostgreSQL server: changes a second, processor time, disk, memory, latency
    Guard(guard::Args),
    /// A log signature: to make it, to verify it, to take a line out
    Verify(verify::Args),
}

/// Runs the command.
pub(crate) fn run(command: Command) -> Outcome {
    match command {
        Command::Access(args) => access::run(&args),
        Command::Authority(args) => authority::run(&args),
        Command::Guard(args) => guard::run(&args),
        Command::Verify(args) => verify::run(&args),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// With two decimals, which is more than a measurement is good for.
fn rounded(value: f64) -> Tree {
    Tree::Hundredths((value * 100.0).round() as u64)
}
