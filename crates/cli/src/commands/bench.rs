//! `pitser bench`: whole paths, against a floor in the same run.

mod authority;
mod server;
mod verify;

use crate::outcome::Outcome;

/// What to measure.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// An authority under load: signatures a second, latency, processor time, memory
    Authority(authority::Args),
    /// A log signature: to make it, to verify it, to take a line out
    Verify(verify::Args),
}

/// Runs the command.
pub(crate) fn run(command: Command) -> Outcome {
    match command {
        Command::Authority(args) => authority::run(&args),
        Command::Verify(args) => verify::run(&args),
    }
}
