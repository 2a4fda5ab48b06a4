//! The `pitser` binary: command line, configuration, clock and runtime.
//!
//! In scope: reading arguments, files and the machine's clock, showing what the
//! other crates found, and turning it into the exit codes of [`outcome`].
//! Elsewhere: every format, rule and service. Nothing is judged here that the
//! libraries do not judge.

mod clock;
mod commands;
mod config;
mod demo;
mod files;
mod kind;
mod listener;
mod notify;
mod ntp;
mod outcome;
mod output;
mod seals;
mod service;
mod signals;
mod store;
#[cfg(feature = "pkcs11")]
mod token;
mod tree;
mod trust;
mod witnesses;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{ArgAction, CommandFactory as _, Parser, Subcommand};
#[cfg(target_os = "linux")]
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tracing_subscriber::filter::{EnvFilter, LevelFilter};

use crate::commands::{
    audit, authority, bench, dev, erase, evidence, extend, guard, history, hold, inspect, log,
    manual, sign, trail, verify, witness,
};
use crate::outcome::Outcome;

/// A change on its way into the trail is some fifty small pieces of memory, a
/// signature request some ten: with the C library's allocator a fifth of the
/// processor time goes there.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Keeps the records of a health database irrefutable.
///
/// Exit codes: 0 intact or done, 1 broken, 2 cannot be confirmed yet, 3 wrong
/// usage or unreadable input, 4 a service or the machine failed.
#[derive(Debug, Parser)]
#[command(name = "pitser", version, max_term_width = 100)]
struct Cli {
    /// Say more on the error output; up to -vvv. PITSER_LOG chooses more finely
    #[arg(short, long, global = true, action = ArgAction::Count, display_order = 900)]
    verbose: u8,
    /// How the log on the error output is written: for people, or an object a line
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        default_value_t,
        env = "PITSER_LOG_FORMAT",
        display_order = 901
    )]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

// Comments on the values would fill half a page of every command's help.
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The whole story in one process: guard a synthetic hospital, tamper with it, catch it, prove it
    Demo(demo::Args),
    /// Prepare databases, guard them, ask how they are
    Guard(guard::Args),
    /// The life of a record, or everything about a patient
    History(history::Args),
    /// Destroy the key and the identifier of a patient, when two people decide it; all proofs stay
    Erase(erase::Args),
    /// Legal holds: as long as one stands, the patient is not erased
    Hold(hold::Args),
    /// What an outsider can verify
    Evidence(evidence::Args),
    /// The trail itself: recompute everything, move closed files to an archive
    Trail(trail::Args),
    /// Replay somebody else's trail, and sign that nothing was left out
    #[command(subcommand)]
    Audit(audit::Command),
    /// Cosign the heads of others' logs, so that nobody can rewrite them unseen
    #[command(subcommand)]
    Witness(witness::Command),
    /// The timestamping service: one round a second, a calendar, publications
    #[command(subcommand)]
    Authority(Box<authority::Command>),
    /// An authority on loopback, for development
    Dev(dev::Args),
    /// Have a file, or a hash, signed
    Sign(sign::Args),
    /// Lead a signature to a publication: from then on no key is relied on
    Extend(extend::Args),
    /// Judge a signature, an evidence file, a log signature or a publications file
    Verify(Box<verify::Args>),
    /// Show what a file says, without judging it
    Inspect(inspect::Args),
    /// Sign and verify logs, line by line
    #[command(subcommand)]
    Log(log::Command),
    /// Measure whole paths against a floor in the same run
    #[command(subcommand)]
    Bench(bench::Command),
    /// Print what a shell needs to complete our commands
    Completions(manual::CompletionsArgs),
    /// Print the manual page, or write those of all commands
    Man(manual::ManArgs),
}

impl Command {
    fn run(self) -> Outcome {
        match self {
            Self::Demo(args) => service::block_on(demo::run(args)),
            Self::Guard(args) => service::block_on(guard::run(args)),
            Self::History(args) => history::run(&args),
            Self::Erase(args) => service::block_on(erase::run(args)),
            Self::Hold(args) => service::block_on(hold::run(args)),
            Self::Evidence(args) => service::block_on(evidence::run(args)),
            Self::Trail(args) => trail::run(&args),
            Self::Audit(command) => audit::run(command),
            Self::Witness(command) => witness::run(command),
            Self::Authority(command) => authority::run(*command),
            Self::Dev(args) => dev::run(args),
            Self::Sign(args) => sign::run(args),
            Self::Extend(args) => extend::run(args),
            Self::Verify(args) => verify::run(*args),
            Self::Inspect(args) => inspect::run(args),
            Self::Log(command) => log::run(command),
            Self::Bench(command) => bench::run(command),
            Self::Completions(args) => manual::completions(&args, Cli::command()),
            Self::Man(args) => manual::man(&args, Cli::command()),
        }
    }
}

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    keep_memory_private();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let quiet = matches!(cli.command, Command::Demo(_));
    start_log(cli.verbose, quiet, cli.log_format);
    match cli.command.run() {
        Ok(exit) => exit.into(),
        Err(failure) => {
            eprintln!("pitser: {}", output::clean(&failure.to_string()));
            failure.code().into()
        }
    }
}

/// A crash, or a watchdog's signal, writes no core: it would have keys and patients' data.
/// Nor may another process of the same user look into this one's memory. Whoever has
/// started it under a debugger sees all of that anyway.
#[cfg(target_os = "linux")]
fn keep_memory_private() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let tracer = status.lines().find_map(|it| it.strip_prefix("TracerPid:"));
    if tracer.is_some_and(|pid| pid.trim() != "0") {
        return;
    }
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        eprintln!("pitser: a crash may write what is in memory to disk: {error}");
    }
}

/// Help and version are answers; anything else is wrong usage, which is 3 here
/// because 2 already means "cannot be confirmed yet".
fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A reader that went away is no failure.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(outcome::WRONG_USAGE)
        }
        _ => {
            let text = error.render().to_string();
            eprint!("pitser: {}", text.trim_start_matches("error: "));
            ExitCode::from(outcome::WRONG_USAGE)
        }
    }
}

/// Warnings by default, in the demo only errors; `-v` and `PITSER_LOG` (such as `pitser_client=debug`) say more.
fn start_log(verbose: u8, quiet: bool, format: LogFormat) {
    let level = match verbose {
        0 if quiet => LevelFilter::ERROR,
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let filter = EnvFilter::builder()
        .with_default_directive(level.into())
        .with_env_var("PITSER_LOG")
        .from_env_lossy();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log
            .with_ansi(output::may_colour(std::io::stderr().is_terminal()))
            .init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
