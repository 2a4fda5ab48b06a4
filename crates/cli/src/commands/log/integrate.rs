//! Joining the two parts of a log signature whose signatures came later.

use std::path::PathBuf;

use super::{PARTS_SUFFIX, SUFFIX, join};
use crate::files;
use crate::outcome::{Exit, Outcome};
use crate::output::Form;
use crate::tree::Map;

/// The command's arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The log; its parts are LOG.logsig.parts/blocks.dat and block-signatures.dat
    log: PathBuf,
    /// Where to write the log signature [default: LOG.logsig]
    #[arg(short, long, value_name = "OUT.logsig")]
    output: Option<PathBuf>,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    form: Form,
}

/// Runs the command. Blocks without a signature stay unsigned: `log sign` or a
/// later integration signs them.
pub(crate) fn run(args: Args) -> Outcome {
    let whole = join(&files::appended(&args.log, PARTS_SUFFIX))?;
    let output = args
        .output
        .unwrap_or_else(|| files::appended(&args.log, SUFFIX));
    files::write(&output, &whole.bytes, args.force)?;
    args.form.show(
        &Map::new()
            .with("signed_blocks", whole.signed)
            .with("unsigned_blocks", whole.unsigned)
            .with("written", output.display().to_string()),
    )?;
    Ok(if whole.unsigned == 0 {
        Exit::Intact
    } else {
        Exit::Unconfirmed
    })
}
