//! Signing a log: what of it has no log signature yet, and what of its log
//! signature is not signed yet.

use std::path::{Path, PathBuf};

use pitser_client::Client;
use pitser_ksi::hash::{Algorithm, Imprint};
use pitser_ksi::logsig::{
    BLOCK_CLOSE_REASON, Block, BlockBuilder, Format, Lines, Seal, StoredHashes, encode_signed,
    encode_state,
};

use super::reseal::{Made, Reseal};
use super::stream::{Blocks, LogLines, OwnedBlock};
use super::{SUFFIX, beside, previous};
use crate::commands::sign::algorithm;
use crate::files::{self, STANDARD};
use crate::outcome::{Exit, Failure, Outcome};
use crate::output::Form;
use crate::service::{self, Credentials};
use crate::tree::Map;

/// The command's arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The log; what LOG.logsig already covers stays, unsigned blocks of it are signed,
    /// and lines beyond it are added. - for the standard input, with -o
    log: PathBuf,
    /// The signing service, such as ksi+tcp://USER:KEY@HOST:PORT or https://USER:KEY@HOST;
    /// up to three times: all are asked, and the first good answer counts. Without one the
    /// blocks wait to be signed later, by the same command
    #[arg(short = 'S', long = "service", value_name = "URI")]
    services: Vec<String>,
    #[command(flatten)]
    credentials: Credentials,
    /// Hash algorithm of new blocks
    #[arg(long, value_name = "NAME", default_value = "SHA-256", value_parser = algorithm)]
    algorithm: Algorithm,
    /// Height of a block's tree: a block holds 2^(N-1) lines
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u8).range(2..=20))]
    level: u8,
    /// Hashes to store in new blocks: records name each altered line (37 bytes a line), the
    /// tree lets lines be extracted without hashing others (74 bytes a line)
    #[arg(long, value_name = "WHICH", value_enum, default_value_t = Store::Records)]
    store: Store,
    /// What a new log signature goes on from: the log before, its last leaf, or a state file
    #[arg(long, value_name = "LOG|IMPRINT|FILE", conflicts_with = "state")]
    after: Option<String>,
    /// Where the last leaf is kept between the files of a rotated log (KSISTAT10): a new log
    /// signature goes on from it, then it is brought up to date
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Nothing more is written to the log: its last line counts although it has no line end.
    /// Without it such a line is left for the next time, as it may be half of one
    #[arg(long)]
    closed: bool,
    /// Where the log signature is [default: LOG.logsig]
    #[arg(short, long, value_name = "OUT.logsig")]
    output: Option<PathBuf>,
    #[command(flatten)]
    form: Form,
}

/// Which redundant hashes a block carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Store {
    None,
    Records,
    Tree,
    All,
}

impl From<Store> for StoredHashes {
    fn from(store: Store) -> Self {
        Self {
            records: matches!(store, Store::Records | Store::All),
            tree: matches!(store, Store::Tree | Store::All),
        }
    }
}

/// Runs the command. What was signed is kept even if the service fails halfway.
pub(crate) fn run(args: Args) -> Outcome {
    let client = if args.services.is_empty() {
        None
    } else {
        Some(args.credentials.client(&args.services)?)
    };
    let output = args.output()?;
    let done = service::ask(sign(&args, client.as_ref(), &output))?;
    let is_later = args.keep_state(&done)?;
    let waiting = done.unsigned;
    if let Some(failure) = done.failure {
        let asked = waiting + done.signed;
        return Err(Failure::Service(format!(
            "{waiting} of {asked} blocks could not be signed: {failure}; the others are in {}, and the \
             same command signs the rest",
            output.display()
        )));
    }
    if output.as_os_str() != STANDARD {
        args.form.show(
            &Map::new()
                .with("blocks", done.blocks)
                .with("lines_added", done.lines_added)
                .with("signed_now", done.signed)
                .with("unsigned", waiting)
                .maybe(
                    "left_for_later",
                    done.is_open.then_some(
                        "the last line, which has no line end yet (--closed if it is whole)",
                    ),
                )
                .maybe(
                    "state",
                    is_later.then_some("left alone: it is that of another log"),
                )
                .maybe("last_leaf", done.last_leaf)
                .with("written", output.display().to_string()),
        )?;
    }
    Ok(if waiting == 0 {
        Exit::Intact
    } else {
        Exit::Unconfirmed
    })
}

impl Args {
    fn output(&self) -> Result<PathBuf, Failure> {
        match &self.output {
            Some(output) => Ok(output.clone()),
            None if self.log.as_os_str() == STANDARD => Err(Failure::Input(
                "the log signature has no name yet: give one with -o".into(),
            )),
            None => Ok(files::appended(&self.log, SUFFIX)),
        }
    }

    /// Where blocks are already: the log signature, or the parts of one.
    fn source(&self, output: &Path) -> Option<PathBuf> {
        let source = if self.output.is_none() {
            beside(&self.log)
        } else {
            output.to_owned()
        };
        source.exists().then_some(source)
    }

    /// What the first block of a new log signature goes on from.
    fn start(&self) -> Result<Imprint, Failure> {
        let given = match (&self.after, &self.state) {
            (Some(after), _) => Some(previous::leaf(after)?),
            (None, Some(state)) => previous::state(state)?,
            (None, None) => None,
        };
        Ok(given.unwrap_or(Imprint::zero(self.algorithm)))
    }
}

impl Args {
    /// Brings the state file up to date; `true` if it is left as it is, since it has gone on
    /// to another log, which this one must not cut off.
    fn keep_state(&self, done: &Done) -> Result<bool, Failure> {
        match (&self.state, &done.last_leaf) {
            (Some(path), Some(leaf)) if done.is_there(*leaf) => {
                files::write(path, &encode_state(leaf), true).map(|()| false)
            }
            (Some(_), Some(_)) => Ok(true),
            _ => Ok(false),
        }
    }

    /// A log that has its beginning goes on from what that says.
    fn is_beginning(&self, began: &Imprint) -> Result<(), Failure> {
        match &self.after {
            Some(after) if previous::leaf(after)? != *began => Err(Failure::Input(format!(
                "{} is signed from its beginning, and does not go on from {after}: --after is for a log that \
                 has no signature yet",
                self.log.display()
            ))),
            _ => Ok(()),
        }
    }
}

#[derive(Default)]
struct Done {
    blocks: u64,
    lines_added: u64,
    signed: u64,
    unsigned: u64,
    failure: Option<Failure>,
    /// Unknown if the log is not there any more.
    last_leaf: Option<Imprint>,
    /// What the state file has, if there is one.
    state: Option<Imprint>,
    /// That is a leaf of this log, or the one that it goes on from.
    is_here: bool,
    /// A line without an end was left out.
    is_open: bool,
}

impl Done {
    /// Whether the state stands in this log, one of whose blocks ends with `leaf`.
    fn is_there(&self, leaf: Imprint) -> bool {
        self.is_here || self.state.is_none_or(|state| state == leaf)
    }
}

async fn sign(args: &Args, client: Option<&Client>, output: &Path) -> Result<Done, Failure> {
    let source = args.source(output);
    let mut log = if source.is_some() && !args.log.exists() && args.log.as_os_str() != STANDARD {
        None
    } else {
        Some(LogLines::open(&args.log)?)
    };
    let mut blocks = source.as_deref().map(Blocks::open).transpose()?;
    let read = blocks.as_ref().map(Blocks::format);
    // The parts of a log signature become one.
    let format = read
        .filter(|format| *format != Format::Blocks)
        .unwrap_or(Format::LogSignature);
    let mut new = Reseal::new(
        output,
        source.as_ref().is_some_and(|it| it == output),
        format,
    )?;
    let mut done = Done {
        state: args
            .state
            .as_deref()
            .map(previous::state)
            .transpose()?
            .flatten(),
        ..Done::default()
    };

    let mut last: Option<OwnedBlock> = None;
    while let Some(blocks) = &mut blocks
        && let Some(block) = blocks.next()?
    {
        let went_on_from = block.get().header.previous_leaf;
        if last.is_none() {
            args.is_beginning(&went_on_from)?;
        }
        done.is_here = done.is_there(went_on_from);
        if let Some(before) = last.replace(block) {
            if let Some(log) = &mut log {
                previous::skip(&before, log)?;
            }
            push(&mut new, before, client, format, &mut done).await?;
        }
    }
    if let Some(block) = last {
        if let Some(log) = &mut log {
            done.last_leaf = Some(previous::check(&block, log, &args.log)?.last_leaf);
            done.is_here = done.last_leaf.is_some_and(|leaf| done.is_there(leaf));
        }
        push(&mut new, block, client, format, &mut done).await?;
    }

    let is_open = source.as_ref().is_some_and(|it| it.is_dir());
    if let Some(log) = log.as_mut().filter(|_| !is_open) {
        if !args.closed && args.log.as_os_str() != STANDARD {
            log.leave_open_line();
        }
        while log.has_more()? {
            if format == Format::LogSignature11 {
                return Err(Failure::Input(format!(
                    "{}: a LOGSIG11, to which nothing is added; sign the lines it does not cover in a file \
                     of their own",
                    output.display()
                )));
            }
            let start = match done.last_leaf {
                Some(leaf) => leaf,
                None => args.start()?,
            };
            done.is_here = done.is_there(start);
            let (block, leaf, lines) = build(args, start, log)?;
            done.last_leaf = Some(leaf);
            done.lines_added += lines;
            push(&mut new, block, client, format, &mut done).await?;
        }
    }

    done.is_open = log.as_ref().is_some_and(LogLines::is_open);
    let written = new.finish().await?;
    if written.done.blocks == 0 {
        let name = args.log.display();
        return Err(Failure::Input(match done.is_open {
            true => {
                format!("{name} has no whole line to sign yet; if it is finished, say --closed")
            }
            false => format!("{name} has no lines to sign"),
        }));
    }
    done.blocks = written.done.blocks;
    done.signed = written.done.sealed;
    done.unsigned += written.done.missed;
    let is_new = source.as_deref() != Some(output);
    let resealed = if is_new || done.signed + done.lines_added > 0 {
        written.keep()?
    } else {
        written.done
    };
    done.failure = resealed.failure;
    Ok(done)
}

/// Passes a block on, to be signed if it is not.
async fn push(
    new: &mut Reseal,
    block: OwnedBlock,
    client: Option<&Client>,
    format: Format,
    done: &mut Done,
) -> Result<(), Failure> {
    let seal = match (pending(&block.get(), format), client) {
        (None, _) => None,
        (Some(_), None) => {
            done.unsigned += 1;
            None
        }
        (Some(pending), Some(client)) => Some(pending.sign(client.clone())),
    };
    new.push(block, seal).await
}

/// What is to be signed of a block.
struct Pending {
    count: u64,
    root: Imprint,
    level: u8,
}

fn pending(block: &Block<'_>, format: Format) -> Option<Pending> {
    let Seal::Unsigned { root, .. } = block.seal.seal else {
        return None;
    };
    let count = block.seal.count;
    Some(Pending {
        count,
        root,
        level: format.signing_level(count),
    })
}

impl Pending {
    async fn sign(self, client: Client) -> Made {
        let signature = client.sign(self.root, self.level).await?;
        encode_signed(self.count, signature.as_bytes())
            .map(Some)
            .map_err(Failure::input)
    }
}

/// A block over the next lines, of which there is at least one; its last leaf, and
/// the number of its lines.
fn build(
    args: &Args,
    start: Imprint,
    log: &mut LogLines<'_>,
) -> Result<(OwnedBlock, Imprint, u64), Failure> {
    let mut iv = vec![0; args.algorithm.digest_len()];
    getrandom::getrandom(&mut iv).map_err(|e| Failure::Service(format!("no random bytes: {e}")))?;
    let mut block = BlockBuilder::storing(args.store.into(), args.algorithm, &iv, start)
        .map_err(Failure::input)?;
    let full = 1_u64 << (args.level - 1);
    while block.count() < full {
        let room = full - block.count();
        let fed = log.step(room, |piece| {
            block.record_lines(&mut Lines::new(piece), full)
        })?;
        if fed.is_none() {
            break;
        }
    }
    let lines = block.count();
    if lines < full {
        block
            .metarecord(BLOCK_CLOSE_REASON, "Block closed due to file closure.")
            .map_err(Failure::input)?;
    }
    let closed = block.close().map_err(Failure::input)?;
    let seal = closed.unsigned(None).map_err(Failure::input)?;
    let mut bytes = closed.bytes;
    bytes.extend(seal);
    Ok((OwnedBlock::new(bytes), closed.last_leaf, lines))
}
