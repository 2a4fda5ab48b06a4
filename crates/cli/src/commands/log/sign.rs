//! Signing a log, or what of its log signature is not signed yet.

use std::path::PathBuf;

use pitser_client::{Client, ClientError};
use pitser_ksi::hash::{Algorithm, Imprint};
use pitser_ksi::logsig::{
    BLOCK_CLOSE_REASON, BlockBuilder, BlockReader, BuildError, Format, Lines, Seal, StoredHashes,
    encode_signed, encode_unsigned,
};
use pitser_ksi::signature::Signature;
use tokio::task::JoinSet;

use super::{SUFFIX, malformed};
use crate::commands::sign::algorithm;
use crate::files;
use crate::outcome::{Exit, Failure, Outcome};
use crate::output::Form;
use crate::service::{self, Credentials};
use crate::tree::Map;

/// The command's arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The log; if LOG.logsig is there, its unsigned blocks are signed
    log: PathBuf,
    /// The signing service, such as ksi+tcp://USER:KEY@HOST:PORT or https://USER:KEY@HOST;
    /// up to three times: all are asked, and the first good answer counts
    #[arg(short = 'S', long = "service", value_name = "URI", required = true)]
    services: Vec<String>,
    #[command(flatten)]
    credentials: Credentials,
    /// Hash algorithm of a new log signature
    #[arg(long, value_name = "NAME", default_value = "SHA-256", value_parser = algorithm)]
    algorithm: Algorithm,
    /// Height of a block's tree: a block holds 2^(N-1) lines
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u8).range(2..=20))]
    level: u8,
    #[command(flatten)]
    form: Form,
}

/// Runs the command. What was signed is kept even if the service fails halfway.
pub(crate) fn run(args: Args) -> Outcome {
    let client = args.credentials.client(&args.services)?;
    let path = files::appended(&args.log, SUFFIX);
    let (format, mut blocks) = if path.exists() {
        let file = files::read(&path)?;
        let reader = BlockReader::new(&file).map_err(|e| malformed(&path, e))?;
        (
            reader.format(),
            unsigned_of(reader).map_err(|e| malformed(&path, e))?,
        )
    } else {
        (
            Format::LogSignature,
            build(&files::read(&args.log)?, &args)?,
        )
    };
    let asked = blocks.iter().filter(|block| block.is_pending()).count();
    let failure = service::ask(async { Ok(sign_all(&client, &mut blocks).await) })?;
    let file = assemble(format, &blocks).map_err(Failure::input)?;
    files::write(&path, &file, true)?;
    let missing = blocks.iter().filter(|block| block.is_pending()).count();
    if let Some(error) = failure {
        return Err(Failure::Service(format!(
            "{missing} of {asked} blocks could not be signed: {error}; the others are in {}, and the same \
             command signs the rest",
            path.display()
        )));
    }
    args.form.show(
        &Map::new()
            .with("blocks", blocks.len())
            .with("signed_now", asked)
            .with("written", path.display().to_string()),
    )?;
    Ok(Exit::Intact)
}

/// A block, and what is to be signed of it.
struct Block {
    /// 0901 up to but without the 0904.
    bytes: Vec<u8>,
    count: u64,
    end: End,
}

enum End {
    /// To be signed at this level.
    Pending {
        root: Imprint,
        level: u8,
    },
    Signed(Box<Signature>),
    /// A whole 0904 that is left as it is.
    Kept(Vec<u8>),
}

impl Block {
    fn is_pending(&self) -> bool {
        matches!(self.end, End::Pending { .. })
    }
}

/// Blocks of a log that has no log signature yet.
fn build(log: &[u8], args: &Args) -> Result<Vec<Block>, Failure> {
    let mut lines = Lines::new(log).peekable();
    let mut blocks = Vec::new();
    let mut last_leaf = Imprint::zero(args.algorithm);
    // Record hashes let a verifier name the line that was altered.
    let stored = StoredHashes {
        records: true,
        tree: false,
    };
    let full = 1 << (args.level - 1);
    while lines.peek().is_some() {
        let mut iv = vec![0; args.algorithm.digest_len()];
        getrandom::getrandom(&mut iv)
            .map_err(|e| Failure::Service(format!("no random bytes: {e}")))?;
        let closed = build_block(stored, args.algorithm, &iv, last_leaf, full, &mut lines)
            .map_err(Failure::input)?;
        last_leaf = closed.last_leaf;
        blocks.push(Block {
            bytes: closed.bytes,
            count: closed.count,
            end: End::Pending {
                root: closed.root,
                level: closed.level,
            },
        });
    }
    if blocks.is_empty() {
        return Err(Failure::Input(format!(
            "{} has no lines to sign",
            args.log.display()
        )));
    }
    Ok(blocks)
}

fn build_block<'l>(
    stored: StoredHashes,
    algorithm: Algorithm,
    iv: &[u8],
    last_leaf: Imprint,
    full: u64,
    lines: &mut impl Iterator<Item = &'l [u8]>,
) -> Result<pitser_ksi::logsig::ClosedBlock, BuildError> {
    let mut block = BlockBuilder::storing(stored, algorithm, iv, last_leaf)?;
    while block.count() < full {
        let Some(line) = lines.next() else {
            block.metarecord(BLOCK_CLOSE_REASON, "Block closed due to file closure.")?;
            break;
        };
        block.record_line(line);
    }
    block.close()
}

/// The blocks of a log signature, those without a signature pending.
fn unsigned_of(reader: BlockReader<'_>) -> Result<Vec<Block>, pitser_ksi::DecodeError> {
    let format = reader.format();
    reader
        .map(|block| {
            let block = block?;
            let count = block.seal.count;
            let end = match block.seal.seal {
                Seal::Unsigned { root, .. } => End::Pending {
                    root,
                    level: format.signing_level(count),
                },
                Seal::Signature(_) | Seal::Rfc3161(_) => End::Kept(block.seal.bytes.to_vec()),
            };
            Ok(Block {
                bytes: block.unsealed_bytes().to_vec(),
                count,
                end,
            })
        })
        .collect()
}

/// Has all pending blocks signed, many in one round. Returns the first failure.
async fn sign_all(client: &Client, blocks: &mut [Block]) -> Option<ClientError> {
    let mut pending = blocks
        .iter()
        .enumerate()
        .filter_map(|(index, block)| match block.end {
            End::Pending { root, level } => Some((index, root, level)),
            _ => None,
        });
    let ask = |(index, root, level): (usize, Imprint, u8)| {
        let client = client.clone();
        async move { (index, client.sign(root, level).await) }
    };
    let mut asked: JoinSet<_> = pending.by_ref().take(AT_A_TIME).map(ask).collect();
    let (mut signed, mut failure) = (Vec::new(), None);
    while let Some(answer) = asked.join_next().await {
        match answer {
            Ok((index, Ok(signature))) => {
                signed.push((index, signature));
                // After a failure those under way are still waited for.
                if let (None, Some(next)) = (&failure, pending.next()) {
                    asked.spawn(ask(next));
                }
            }
            Ok((_, Err(error))) => _ = failure.get_or_insert(error),
            // A task that was aborted or panicked leaves its block unsigned.
            Err(_) => {}
        }
    }
    for (index, signature) in signed {
        blocks[index].end = End::Signed(Box::new(signature));
    }
    failure
}

fn assemble(format: Format, blocks: &[Block]) -> Result<Vec<u8>, pitser_ksi::error::EncodeError> {
    let mut file = format.magic().to_vec();
    for block in blocks {
        file.extend_from_slice(&block.bytes);
        file.extend(match &block.end {
            End::Pending { root, .. } => encode_unsigned(block.count, root, None)?,
            End::Signed(signature) => encode_signed(block.count, signature.as_bytes())?,
            End::Kept(bytes) => bytes.clone(),
        });
    }
    Ok(file)
}

/// Requests under way at a time.
const AT_A_TIME: usize = 256;
