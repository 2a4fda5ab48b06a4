//! Joining the two parts of a log signature whose signatures came later.

use std::path::PathBuf;

use pitser_ksi::logsig::{Format, Seal};

use super::stream::Blocks;
use super::{PARTS_SUFFIX, SUFFIX};
use crate::files::{self, NewFile};
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
    let mut blocks = Blocks::open(&files::appended(&args.log, PARTS_SUFFIX))?;
    let output = args
        .output
        .unwrap_or_else(|| files::appended(&args.log, SUFFIX));
    let mut whole = NewFile::create(&output, args.force)?;
    whole.write(Format::LogSignature.magic())?;
    let (mut signed, mut unsigned) = (0_u64, 0_u64);
    while let Some(block) = blocks.next()? {
        match block.get().seal.seal {
            Seal::Unsigned { .. } => unsigned += 1,
            _ => signed += 1,
        }
        whole.write(block.bytes())?;
    }
    whole.finish()?;
    args.form.show(
        &Map::new()
            .with("signed_blocks", signed)
            .with("unsigned_blocks", unsigned)
            .with("written", output.display().to_string()),
    )?;
    Ok(if unsigned == 0 {
        Exit::Intact
    } else {
        Exit::Unconfirmed
    })
}
