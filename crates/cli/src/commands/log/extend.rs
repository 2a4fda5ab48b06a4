//! Leading the signatures of a log signature to publications.

use std::path::{Path, PathBuf};

use pitser_client::Client;
use pitser_ksi::logsig::{Block, Seal, encode_signed};
use pitser_ksi::publications_file::PublicationsFile;
use pitser_ksi::signature::Signature;

use super::SUFFIX;
use super::reseal::{Made, Reseal, Resealed};
use super::stream::Blocks;
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
    let output = args.output.clone().unwrap_or_else(|| path.clone());
    let client = args.credentials.client(&args.extenders)?;
    let done = service::ask(extend(&path, &output, &client, &publications))?;
    if let Some(failure) = done.failure {
        return Err(Failure::Service(format!(
            "{} of {} blocks could not be extended: {failure}; the others are in {}, and the same command \
             extends the rest",
            done.missed,
            done.blocks,
            output.display()
        )));
    }
    let left = done.blocks - done.sealed;
    args.form.show(
        &Map::new()
            .with("extended_blocks", done.sealed)
            .with("other_blocks", left)
            .with("written", output.display().to_string()),
    )?;
    Ok(if left == 0 {
        Exit::Intact
    } else {
        Exit::Unconfirmed
    })
}

async fn extend(
    path: &Path,
    output: &Path,
    client: &Client,
    publications: &PublicationsFile,
) -> Result<Resealed, Failure> {
    let mut blocks = Blocks::open(path)?;
    let mut new = Reseal::new(output, path == output, blocks.format())?;
    while let Some(block) = blocks.next()? {
        let seal = seal(client, &block.get(), publications)?;
        new.push(block, seal).await?;
    }
    new.finish().await?.keep()
}

/// Makes the block's new 0904; `None` where there is no signature, or no publication
/// covers it yet.
fn seal(
    client: &Client,
    block: &Block<'_>,
    publications: &PublicationsFile,
) -> Result<Option<impl Future<Output = Made> + Send + 'static>, Failure> {
    let Seal::Signature(bytes) = block.seal.seal else {
        return Ok(None);
    };
    let signature = Signature::decode(bytes).map_err(Failure::input)?;
    let Some(record) = publications.nearest(signature.aggregation_time()).cloned() else {
        return Ok(None);
    };
    let (client, count) = (client.clone(), block.seal.count);
    Ok(Some(async move {
        let extended = client.extend(&signature, None, Some(&record)).await?;
        encode_signed(count, extended.as_bytes())
            .map(Some)
            .map_err(Failure::input)
    }))
}
