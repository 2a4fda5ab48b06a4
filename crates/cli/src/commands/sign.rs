//! `pitser sign`: a signature for a file or a hash.

use std::path::{Path, PathBuf};

use pitser_ksi::hash::{Algorithm, Imprint};
use pitser_ksi::signature::Signature;

use crate::files::{self, STANDARD};
use crate::outcome::{Exit, Failure, Outcome};
use crate::output::Form;
use crate::service::{self, Credentials};
use crate::tree::Map;

/// The command's arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The document; - for the standard input
    #[arg(required_unless_present = "hash", conflicts_with = "hash")]
    file: Option<PathBuf>,
    /// The document's hash, such as SHA-256:9f2c…, in place of the document
    #[arg(long, value_name = "IMPRINT")]
    hash: Option<Imprint>,
    /// Hash algorithm for the document
    #[arg(long, value_name = "NAME", default_value = "SHA-256", value_parser = algorithm, conflicts_with = "hash")]
    algorithm: Algorithm,
    /// The signing service, such as ksi+tcp://USER:KEY@HOST:PORT or https://USER:KEY@HOST;
    /// up to three times: all are asked, and the first good answer counts
    #[arg(short = 'S', long = "service", value_name = "URI", required = true)]
    services: Vec<String>,
    #[command(flatten)]
    credentials: Credentials,
    /// Where to write the signature; - for the standard output [default: FILE.ksig]
    #[arg(short, long, value_name = "OUT.ksig")]
    output: Option<PathBuf>,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
    /// Height of the local tree whose root --hash is
    #[arg(long, value_name = "N", default_value_t = 0, requires = "hash")]
    level: u8,
    #[command(flatten)]
    form: Form,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Outcome {
    let output = args.output()?;
    let client = args.credentials.client(&args.services)?;
    if !args.force && output.as_os_str() != STANDARD && output.exists() {
        // Before a signature is asked for that nobody could keep.
        return Err(Failure::Input(format!(
            "{} is there already; choose another name with -o, or --force to replace it",
            output.display()
        )));
    }
    let input = args.input()?;
    let signature = service::ask(async { Ok(client.sign(input, args.level).await?) })?;
    files::write(&output, signature.as_bytes(), args.force)?;
    if output.as_os_str() != STANDARD {
        args.form.show(&facts(&signature, &output))?;
    }
    Ok(Exit::Intact)
}

impl Args {
    fn input(&self) -> Result<Imprint, Failure> {
        let input = match (&self.hash, &self.file) {
            (Some(imprint), _) => *imprint,
            (None, Some(file)) => files::hash(file, self.algorithm)?,
            (None, None) => {
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

    fn output(&self) -> Result<PathBuf, Failure> {
        match (&self.output, &self.file) {
            (Some(output), _) => Ok(output.clone()),
            (None, Some(file)) if file.as_os_str() != STANDARD => {
                Ok(files::appended(file, ".ksig"))
            }
            _ => Err(Failure::Input(
                "the signature has no name yet: give one with -o".into(),
            )),
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
