//! `pitser log`: log signatures, LOGSIG12 and its relatives.
//!
//! ```text
//! LOG                 the lines
//! LOG.logsig          their log signature
//! LOG.logsig.parts/   the same while signatures are pending: blocks.dat, block-signatures.dat
//! BASE.excerpt        some of the lines, BASE.excerpt.logsig their proof
//! ```

mod extend;
mod extract;
mod integrate;
mod parallel;
mod previous;
mod reseal;
mod sign;
mod stream;
mod verify;

use std::path::{Path, PathBuf};

use crate::files;
use crate::outcome::{Failure, Outcome};
use crate::output::Form;
use crate::trust::TrustArgs;

/// What to do with a log.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Sign a log line by line: what is new in it, and what was not signed before
    Sign(sign::Args),
    /// Judge a log, or an excerpt, by its log signature
    Verify(Box<VerifyArgs>),
    /// Take lines out, each with its own proof
    Extract(extract::Args),
    /// Lead the signatures of all blocks to publications
    Extend(extend::Args),
    /// Join the two parts of a log signature whose signatures came later
    Integrate(integrate::Args),
}

/// Arguments of `log verify`.
#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    /// The log, or an excerpt
    log: PathBuf,
    /// Its log signature [default: LOG.logsig, or LOG.logsig.parts]
    signature: Option<PathBuf>,
    /// What the first block must go on from: the log before, its last leaf, or a state file
    #[arg(long, value_name = "LOG|IMPRINT|FILE")]
    after: Option<String>,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    form: Form,
}

/// Runs the command.
pub(crate) fn run(command: Command) -> Outcome {
    match command {
        Command::Sign(args) => sign::run(args),
        Command::Verify(args) => {
            let VerifyArgs {
                log,
                signature,
                after,
                trust,
                form,
            } = *args;
            let path = signature.unwrap_or_else(|| beside(&log));
            let after = after.as_deref().map(previous::leaf).transpose()?;
            verify::run(&path, &log, after, &trust, form)
        }
        Command::Extract(args) => extract::run(args),
        Command::Extend(args) => extend::run(args),
        Command::Integrate(args) => integrate::run(args),
    }
}

pub(super) use verify::run_on as verify_pair;

/// The log signature of `log`: its parts, if it has no other.
fn beside(log: &Path) -> PathBuf {
    let whole = files::appended(log, SUFFIX);
    let parts = files::appended(log, PARTS_SUFFIX);
    if !whole.exists() && parts.is_dir() {
        parts
    } else {
        whole
    }
}

/// An error about the bytes of a log signature.
fn malformed(path: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::Input(format!(
        "{}: not a sound log signature: {error}",
        path.display()
    ))
}

const SUFFIX: &str = ".logsig";
const PARTS_SUFFIX: &str = ".logsig.parts";
