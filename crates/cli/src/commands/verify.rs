//! `pitser verify`: judges whatever the file is.

mod apart;
mod evidence;
mod publications;
pub(super) mod signature;

use std::path::{Path, PathBuf};

use pitser_ksi::hash::Imprint;
use pitser_ksi::time::Second;
use pitser_ksi::{DecodeError, DecodeErrorKind};

use super::log;
use crate::files;
use crate::kind::Kind;
use crate::outcome::{Failure, Outcome};
use crate::output::Form;
use crate::trust::{TrustArgs, instant};

/// The command's arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to judge; - for the standard input
    file: PathBuf,
    /// The document that was signed; for a log signature, the log
    #[arg(long, value_name = "FILE")]
    document: Option<PathBuf>,
    /// The document's hash, such as SHA-256:9f2c…
    #[arg(long, value_name = "IMPRINT", conflicts_with = "document")]
    hash: Option<Imprint>,
    /// Height at which the hash stands in a local tree
    #[arg(long, value_name = "N", default_value_t = 0)]
    level: u8,
    #[command(flatten)]
    trust: TrustArgs,
    /// What you trust, to judge evidence by
    #[arg(long, value_name = "ANCHORS.toml")]
    anchors: Option<PathBuf>,
    /// The person whom the evidence must be about, as the database identifies them
    #[arg(long, value_name = "ID")]
    patient: Option<String>,
    /// Of the lists of reads of many or unknown patients, what was sealed up to then need not be
    /// in the evidence
    #[arg(long, value_name = "RFC3339", value_parser = instant)]
    shared_since: Option<Second>,
    /// Where values are that are too long for the evidence; FILE.values unless said
    #[arg(long, value_name = "FOLDER")]
    values: Option<PathBuf>,
    /// Show the lines of the evidence, and what is disclosed of them
    #[arg(long)]
    show: bool,
    #[command(flatten)]
    form: Form,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Outcome {
    let bytes = files::read(&args.file)?;
    let name = args.file.display();
    let kind = Kind::of(&bytes);
    for (is_given, option) in [
        (args.patient.is_some(), "--patient"),
        (args.shared_since.is_some(), "--shared-since"),
        (args.values.is_some(), "--values"),
    ] {
        if is_given && !matches!(kind, Some(Kind::Evidence)) {
            return Err(Failure::Input(format!(
                "{name}: {option} is about an evidence file, which this is not"
            )));
        }
    }
    if args.anchors.is_some() && !matches!(kind, Some(Kind::Evidence)) {
        return Err(Failure::Input(format!(
            "{name}: --anchors is about an evidence file, which this is not"
        )));
    }
    // Whoever gives what is not looked at would take the verdict for an answer to it.
    let (is_used, what): (fn(&str) -> bool, _) = match kind {
        Some(Kind::Evidence) => (
            |_| false,
            "an evidence file: what you trust stands in the file that --anchors names (publication codes, keys, \
             trails, witnesses, auditors)",
        ),
        Some(Kind::PublicationsFile) => (
            |option| ["--trust", "--constraint"].contains(&option),
            "a publications file, which is judged by who signed it. pitser inspect shows the codes in it",
        ),
        Some(Kind::Log(_)) => (
            |option| !["--hash", "--level"].contains(&option),
            "the signature of a log: name the log with --document",
        ),
        _ => (|_| true, ""),
    };
    let given = [
        (args.document.is_some(), "--document"),
        (args.hash.is_some(), "--hash"),
        (args.level != 0, "--level"),
    ];
    let mut given = given.into_iter().chain(args.trust.given());
    if let Some((_, option)) = given.find(|(is_given, option)| *is_given && !is_used(option)) {
        return Err(Failure::Input(format!(
            "{name}: {option} says nothing about {what}"
        )));
    }
    match kind {
        Some(Kind::Signature) => signature::run(&bytes, &args),
        Some(Kind::Evidence) => evidence::run(&bytes, &args),
        Some(Kind::PublicationsFile) => publications::run(&bytes, &args),
        Some(Kind::Log(format)) => {
            let text = match &args.document {
                Some(path) => path.clone(),
                None => log_of(&args.file).ok_or_else(|| {
                    Failure::Input(format!("{name} signs a log: name it with --document"))
                })?,
            };
            log::verify_pair(format, &bytes, &args.file, &text, &args.trust, args.form)
        }
        Some(kind) => Err(Failure::Input(format!(
            "{name}: recognised as {kind}, which proves nothing by itself; pitser inspect shows what it says"
        ))),
        None => Err(Failure::Input(format!(
            "{name}: neither a signature, an evidence file, a log signature nor a publications file"
        ))),
    }
}

/// `file`, of `length` bytes, is not the `what` that it seems to be.
fn unsound(file: &Path, what: &str, error: DecodeError, length: usize) -> Failure {
    let hint = match error.kind {
        DecodeErrorKind::Truncated => format!(
            ", which reaches beyond what holds it. The file has {length} bytes: if it was cut off, take it \
             from a copy"
        ),
        _ => String::new(),
    };
    Failure::Input(format!(
        "{}: not a sound {what}: {error}{hint}",
        file.display()
    ))
}

/// The log that lies beside `signature`.
fn log_of(signature: &Path) -> Option<PathBuf> {
    let is_signature = signature.extension()? == "logsig";
    is_signature.then(|| signature.with_extension(""))
}
