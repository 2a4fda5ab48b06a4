//! Leading the signatures of a log signature to publications.

use std::path::PathBuf;

use pitser_client::Client;
use pitser_ksi::logsig::{Block, BlockReader, Seal, encode_signed};
use pitser_ksi::publications_file::PublicationsFile;
use pitser_ksi::signature::Signature;

use super::{SUFFIX, malformed};
use crate::files;
use crate::outcome::{Exit, Failure, Outcome};
use crate::output::Form;
use crate::service::{self, Credentials};
use crate::tree::Map;
use crate::trust::PublicationsArgs;

/// The command's arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The log; LOG.logsig is replaced once all of it is extended
    log: PathBuf,
    /// The extending service, such as ksi+tcp://USER:KEY@HOST:PORT or https://USER:KEY@HOST;
    /// up to three times: all are asked, and the first good answer counts
    #[arg(short = 'X', long = "extender", value_name = "URI", required = true)]
    extenders: Vec<String>,
    #[command(flatten)]
    publications: PublicationsArgs,
    #[command(flatten)]
    credentials: Credentials,
    /// Where to write the extended log signature [default: replace LOG.logsig]
    #[arg(short, long, value_name = "OUT.logsig")]
    output: Option<PathBuf>,
    #[command(flatten)]
    form: Form,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Outcome {
    let Some(publications) = args.publications.load(&args.credentials)? else {
        return Err(Failure::Input("name the publications file with -P".into()));
    };
    if args.publications.trusts_somebody()
        && let Err(doubt) = args.publications.judge(&publications)?
    {
        return Err(Failure::Input(format!(
            "the publications file is not believed: {doubt}"
        )));
    }
    let path = files::appended(&args.log, SUFFIX);
    let file = files::read(&path)?;
    let client = args.credentials.client(&args.extenders)?;
    let reader = BlockReader::new(&file).map_err(|e| malformed(&path, e))?;
    let mut extended = reader.format().magic().to_vec();
    let (mut done, mut left) = (0_u64, 0_u64);
    service::ask(async {
        for block in reader {
            let block = block.map_err(|e| malformed(&path, e))?;
            extended.extend_from_slice(block.unsealed_bytes());
            match extend(&client, &block, &publications).await? {
                Some(seal) => {
                    done += 1;
                    extended.extend(seal);
                }
                None => {
                    left += 1;
                    extended.extend_from_slice(block.seal.bytes);
                }
            }
        }
        Ok(())
    })?;
    let output = args.output.clone().unwrap_or(path);
    files::write(&output, &extended, args.output.is_none())?;
    args.form.show(
        &Map::new()
            .with("extended_blocks", done)
            .with("other_blocks", left)
            .with("written", output.display().to_string()),
    )?;
    Ok(if left == 0 {
        Exit::Intact
    } else {
        Exit::Unconfirmed
    })
}

/// The block's new 0904; `None` where there is no signature, or no publication
/// covers it yet.
async fn extend(
    client: &Client,
    block: &Block<'_>,
    publications: &PublicationsFile,
) -> Result<Option<Vec<u8>>, Failure> {
    let Seal::Signature(bytes) = block.seal.seal else {
        return Ok(None);
    };
    let signature = Signature::decode(bytes).map_err(Failure::input)?;
    let Some(record) = publications.nearest(signature.aggregation_time()) else {
        return Ok(None);
    };
    let extended = client.extend(&signature, None, Some(record)).await?;
    encode_signed(block.seal.count, extended.as_bytes())
        .map(Some)
        .map_err(Failure::input)
}
