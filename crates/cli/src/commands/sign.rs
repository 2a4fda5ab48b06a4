//! `pitser sign`: signatures for files, or for a hash.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use pitser_ksi::block_signer::{BlockSigner, SignableBlock};
use pitser_ksi::chain::Metadata;
use pitser_ksi::hash::{Algorithm, Imprint};
use pitser_ksi::signature::Signature;

use crate::files::{self, STANDARD};
use crate::outcome::{Exit, Failure, Outcome};
use crate::output::Form;
use crate::service::{self, Credentials};
use crate::tree::{Map, Tree};

/// The command's arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The documents; - for the standard input. Many are one request: each gets a signature
    /// of its own, which tells nothing of the others but hashes
    #[arg(
        required_unless_present = "hash",
        conflicts_with = "hash",
        value_name = "FILE"
    )]
    files: Vec<PathBuf>,
    /// The document's hash, such as SHA-256:9f2c…, in place of the document
    #[arg(long, value_name = "IMPRINT")]
    hash: Option<Imprint>,
    /// Hash algorithm for the documents
    #[arg(long, value_name = "NAME", default_value = "SHA-256", value_parser = algorithm, conflicts_with = "hash")]
    algorithm: Algorithm,
    /// The signing service, such as ksi+tcp://USER:KEY@HOST:PORT or https://USER:KEY@HOST;
    /// up to three times: all are asked, and the first good answer counts
    #[arg(short = 'S', long = "service", value_name = "URI", required = true)]
    services: Vec<String>,
    #[command(flatten)]
    credentials: Credentials,
    /// Where to write the signature; - for the standard output; a folder for many
    /// [default: FILE.ksig]
    #[arg(short, long, value_name = "OUT.ksig|DIR")]
    output: Option<PathBuf>,
    /// Replace existing files
    #[arg(long)]
    force: bool,
    /// Height of the local tree whose root --hash is
    #[arg(long, value_name = "N", default_value_t = 0, requires = "hash")]
    level: u8,
    /// Say in each signature for whom it is made: metadata that is signed with the document
    #[arg(long, value_name = "TEXT", conflicts_with = "hash")]
    client_id: Option<String>,
    /// Hide the documents from each other's holders: what stands beside a document is mixed
    /// with random bytes, so that nobody can confirm a guess
    #[arg(long, conflicts_with = "hash")]
    mask: bool,
    #[command(flatten)]
    form: Form,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Outcome {
    let outputs = args.outputs()?;
    let client = args.credentials.client(&args.services)?;
    let taken = |output: &&PathBuf| output.as_os_str() != STANDARD && output.exists();
    if let Some(taken) = outputs.iter().find(taken).filter(|_| !args.force) {
        // Before a signature is asked for that nobody could keep.
        return Err(Failure::Input(format!(
            "{} is there already; choose another name with -o, or --force to replace it",
            taken.display()
        )));
    }
    let sign = |input, level| service::ask(async { Ok(client.sign(input, level).await?) });
    let signatures = match args.block()? {
        Some(block) => {
            let signature = sign(block.root(), block.level())?;
            let cut = (0..block.len()).map(|number| block.signature_of(number, &signature));
            cut.collect::<Result<Vec<_>, _>>()
                .map_err(Failure::service)?
        }
        None => vec![sign(args.input()?, args.level)?],
    };
    for (signature, output) in signatures.iter().zip(&outputs) {
        files::write(output, signature.as_bytes(), args.force)?;
    }
    match (signatures.as_slice(), outputs.as_slice()) {
        ([_], [output]) if output.as_os_str() == STANDARD => {}
        ([signature], [output]) => args.form.show(&facts(signature, output))?,
        _ => {
            let each = signatures.iter().zip(&outputs).map(|(signature, output)| {
                Tree::Line(
                    Map::new()
                        .with("written", output.display().to_string())
                        .with("input", signature.input()),
                )
            });
            let first = signatures.first().map(Signature::aggregation_time);
            let facts = Map::new().maybe("signed_at", first);
            args.form.show(&facts.list("signatures", each))?;
        }
    }
    Ok(Exit::Intact)
}

impl Args {
    /// The tree over all documents; `None` if there is one, and nothing is to be
    /// joined with it.
    fn block(&self) -> Result<Option<SignableBlock>, Failure> {
        if self.files.len() < 2 && !self.mask && self.client_id.is_none() {
            return Ok(None);
        }
        let mut signer = BlockSigner::new(self.algorithm);
        if self.mask {
            let mut iv = vec![0; self.algorithm.digest_len()];
            getrandom::getrandom(&mut iv)
                .map_err(|e| Failure::Service(format!("no random bytes: {e}")))?;
            signer = signer.masking(&iv, Imprint::zero(self.algorithm));
        }
        let metadata = self.client_id.clone().map(|client_id| Metadata {
            client_id,
            ..Metadata::default()
        });
        for file in &self.files {
            let document = files::hash(file, self.algorithm)?;
            signer
                .push(document, 0, metadata.as_ref())
                .map_err(Failure::input)?;
        }
        Ok(signer.finish())
    }

    fn input(&self) -> Result<Imprint, Failure> {
        let input = match (&self.hash, self.files.as_slice()) {
            (Some(imprint), _) => *imprint,
            (None, [file, ..]) => files::hash(file, self.algorithm)?,
            (None, []) => {
                return Err(Failure::Input(
                    "nothing to sign: name a file, or a --hash".into(),
                ));
            }
        };
        if !input.algorithm().is_trusted() {
            return Err(Failure::Input(format!(
                "{} is no longer to be relied on; hash with SHA-256",
                input.algorithm()
            )));
        }
        Ok(input)
    }

    /// Where the signature of each document goes.
    fn outputs(&self) -> Result<Vec<PathBuf>, Failure> {
        let unnamed = || Failure::Input("the signature has no name yet: give one with -o".into());
        let beside = |file: &PathBuf| {
            if file.as_os_str() == STANDARD {
                return Err(unnamed());
            }
            Ok(files::appended(file, ".ksig"))
        };
        match (&self.output, self.files.as_slice()) {
            (Some(folder), files) if !files.is_empty() && folder.is_dir() => files
                .iter()
                .map(|file| {
                    let signature = beside(file)?;
                    let name = signature.file_name().ok_or_else(unnamed)?;
                    Ok(folder.join(name))
                })
                .collect::<Result<_, _>>()
                .and_then(each_once),
            (Some(output), [_, _, ..]) => Err(Failure::Input(format!(
                "{} is no folder: the signatures of many files need one",
                output.display()
            ))),
            (Some(output), _) => Ok(vec![output.clone()]),
            (None, []) => Err(unnamed()),
            (None, files) => files
                .iter()
                .map(beside)
                .collect::<Result<_, _>>()
                .and_then(each_once),
        }
    }
}

/// What a signature says of itself, and where it is.
pub(super) fn facts(signature: &Signature, written: &Path) -> Map {
    let by: Vec<_> = signature.identities().collect();
    Map::new()
        .with("signed_at", signature.aggregation_time())
        .with("by", by.join(", "))
        .with("input", signature.input())
        .maybe(
            "published",
            signature.publication().map(|record| record.data.time),
        )
        .maybe(
            "publication_code",
            signature.publication().map(|record| record.data.to_code()),
        )
        .with("written", written.display().to_string())
}

/// Reads the name of an algorithm that may still be relied on.
pub(super) fn algorithm(name: &str) -> Result<Algorithm, String> {
    let known = || {
        let names: Vec<_> = Algorithm::ALL
            .iter()
            .filter(|a| a.is_trusted())
            .map(|a| a.name())
            .collect();
        format!("not one of {}", names.join(", "))
    };
    Algorithm::from_name(name)
        .filter(|algorithm| algorithm.is_trusted())
        .ok_or_else(known)
}

/// Refuses files whose signatures would have one name: one would be lost.
fn each_once(outputs: Vec<PathBuf>) -> Result<Vec<PathBuf>, Failure> {
    let mut named = HashSet::new();
    match outputs.iter().find(|output| !named.insert(*output)) {
        Some(twice) => Err(Failure::Input(format!(
            "two files would have the signature {}: sign them into different folders",
            twice.display()
        ))),
        None => Ok(outputs),
    }
}
