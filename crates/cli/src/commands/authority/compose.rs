//! `pitser authority compose`: the next publications file, where its key is. Nothing
//! is asked of any network.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use pitser_authority::ceremony::{ComposeError, Composition, Old, PublicationsKey};
use pitser_authority::{BroughtKey, SignerCommand};
use pitser_evidence::anchors::Anchors;
use pitser_evidence::calendar_log::{NotWitnessed, check_publication};
use pitser_ksi::pki::Certificate;
use pitser_ksi::publication::PublicationData;
use pitser_ksi::publications_file::PublicationsFile;
use pitser_tlog::proof::LogProof;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::outcome::{Exit, Failure, Outcome};
use crate::output::{self, Form, plural, print, print_json};
use crate::trust::code;
use crate::{clock, files};

/// Arguments of `pitser authority compose`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("begin").required(true).args(["old", "first"]))]
#[command(group = clap::ArgGroup::new("with").required(true).args(["key", "signer"]))]
pub(crate) struct Args {
    /// The authority's newest publications file, which the new one follows
    #[arg(long, value_name = "FILE")]
    old: Option<PathBuf>,
    /// There is none yet
    #[arg(long)]
    first: bool,
    /// The certificate that signed the old file, if it is another one than --certificate
    #[arg(long, value_name = "CERT.pem", requires = "old")]
    old_certificate: Option<PathBuf>,
    /// What verifiers demand of --old-certificate, if it is something else than --constraint
    #[arg(long, value_name = "NAME=VALUE", requires = "old_certificate")]
    old_constraint: Option<String>,
    /// A code to publish, as `pitser authority publish --due` showed it; given again for each
    #[arg(long = "code", value_name = "CODE", value_parser = code)]
    codes: Vec<PublicationData>,
    /// The certificate of the calendar's key, certificate.pem of the authority: for the first file,
    /// and when that is a new one
    #[arg(long, value_name = "CERT.pem")]
    calendar_certificate: Vec<PathBuf>,
    /// Anchors that name the calendar's log: each code then needs the proof that witnesses saw its
    /// second
    #[arg(long, value_name = "FILE", requires = "proof")]
    anchors: Option<PathBuf>,
    /// Such a proof, /log/proof/SECOND of the authority; given again for each code
    #[arg(long, value_name = "FILE", requires = "anchors")]
    proof: Vec<PathBuf>,
    /// The publications key, RSA, PKCS#8 in PEM
    #[arg(long, value_name = "KEY.pem")]
    key: Option<PathBuf>,
    /// A program that signs with a key in a device (docs/publications.md), by its whole path;
    /// given again for each of its arguments
    #[arg(long, value_name = "PROGRAM", allow_hyphen_values = true)]
    signer: Vec<String>,
    /// The key's certificate, in PEM
    #[arg(long, value_name = "CERT.pem")]
    certificate: PathBuf,
    /// What verifiers demand of that certificate, such as email=publications@example.org
    #[arg(long, value_name = "NAME=VALUE")]
    constraint: String,
    /// Where to write the new file, - for the standard output
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace the file if it is there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    form: Form,
}

/// Runs the command.
pub(super) fn run(args: &Args) -> Outcome {
    let certificate_pem = files::read_text(&args.certificate)?;
    let old_certificate_pem = match &args.old_certificate {
        Some(path) => files::read_text(path)?,
        None => certificate_pem.clone(),
    };
    let old = match &args.old {
        Some(path) => Some(read_file(path)?),
        None => None,
    };
    let certificates = calendar_certificates(&args.calendar_certificate)?;
    if args.codes.is_empty() && certificates.is_empty() && args.old_certificate.is_none() {
        return Err(Failure::Input(
            "nothing to add: give --code with what `pitser authority publish --due` showed, or \
             --calendar-certificate with certificate.pem of the authority"
                .into(),
        ));
    }
    let composition = Composition {
        old: old.as_ref().map(|file| Old {
            file,
            certificate_pem: &old_certificate_pem,
            constraint: args.old_constraint.as_ref().unwrap_or(&args.constraint),
        }),
        publications: &args.codes,
        certificates,
        constraint: &args.constraint,
        now: clock::now(),
    };
    if let Some(anchors) = &args.anchors {
        check_witnessed(&args.codes, anchors, &args.proof)?;
    }
    let key = open_key(args, &certificate_pem)?;
    let new = composition.sign(&key).map_err(failure)?;
    files::write(&args.output, new.encode(), args.force)?;
    tell(args, old.as_ref(), &new)
}

fn read_file(path: &Path) -> Result<PublicationsFile, Failure> {
    PublicationsFile::decode(&files::read(path)?)
        .map_err(|e| Failure::Input(format!("{}: no publications file: {e}", path.display())))
}

/// Refuses a code that the witnesses of the calendar's log did not see.
fn check_witnessed(
    codes: &[PublicationData],
    anchors: &Path,
    proofs: &[PathBuf],
) -> Result<(), Failure> {
    let wrong = |path: &Path, e: &dyn Display| Failure::Input(format!("{}: {e}", path.display()));
    let log = Anchors::from_toml(&files::read_text(anchors)?)
        .map_err(|e| wrong(anchors, &e))?
        .calendar_log
        .ok_or_else(|| {
            wrong(
                anchors,
                &"it does not name a calendar's log ([calendar_log])",
            )
        })?;
    let read = |path: &PathBuf| LogProof::parse(&files::read(path)?).map_err(|e| wrong(path, &e));
    let proofs = proofs.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    for data in codes {
        let index = data.time.0.checked_sub(log.genesis.0);
        let proof = proofs.iter().find(|proof| Some(proof.index()) == index);
        let second = data.time;
        let witnessed = match proof {
            Some(proof) => check_publication(data, proof, &log),
            None => Err(NotWitnessed::NoProof { second }),
        };
        witnessed.map_err(|e| match e {
            NotWitnessed::Contradicted(_) => Failure::Tampered(format!(
                "PUB-01: the code of {second} is not what witnesses saw: {e}. Do not sign it"
            )),
            e => Failure::Input(format!(
                "the code of {second} is not proved to be witnessed: {e}. Get /log/proof/{} of the \
                 authority, a little later if need be",
                second.0
            )),
        })?;
    }
    Ok(())
}

/// The DER of each.
fn calendar_certificates(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>, Failure> {
    let read = |path: &PathBuf| {
        let certificate = Certificate::from_pem(&files::read_text(path)?)
            .map_err(|e| Failure::Input(format!("{}: {e}", path.display())))?;
        match certificate.has_supported_key() {
            true => Ok(certificate.der().to_vec()),
            false => Err(Failure::Input(format!(
                "{}: not of an RSA key, as calendars have; take data/certificate.pem of the authority",
                path.display()
            ))),
        }
    };
    paths.iter().map(read).collect()
}

fn open_key(args: &Args, certificate_pem: &str) -> Result<PublicationsKey, Failure> {
    if args.signer.first().is_some_and(|it| !it.starts_with('/')) {
        return Err(Failure::Input(
            "--signer needs the program's whole path".into(),
        ));
    }
    let pem = match &args.key {
        Some(path) => Some(Zeroizing::new(files::read_text(path)?)),
        None => None,
    };
    let signer = SignerCommand::new(&args.signer);
    let key = match &pem {
        Some(pem) => BroughtKey::Pem(pem),
        None => BroughtKey::Behind(&signer),
    };
    PublicationsKey::open(&key, certificate_pem).map_err(failure)
}

/// What the new file says beyond the old one.
fn tell(args: &Args, old: Option<&PublicationsFile>, new: &PublicationsFile) -> Outcome {
    let known = |der: &[u8]| {
        old.is_some_and(|old| old.certificates().iter().any(|record| record.der == der))
    };
    let certificates = new.certificates().iter();
    let certificates: Vec<String> = certificates
        .filter(|record| !known(&record.der))
        .filter_map(|record| Some(Certificate::from_der(&record.der).ok()?.subject()))
        .collect();
    let count = new.publications().len();
    if args.output.as_os_str() == files::STANDARD {
        return Ok(Exit::Intact);
    }
    if args.form.json {
        let one = |data: &PublicationData| -> Value {
            json!({ "second": data.time.to_string(), "code": data.to_code() })
        };
        let added: Vec<_> = args.codes.iter().map(one).collect();
        print_json(&json!({
            "added": added, "certificates": certificates, "publications": count,
        }))?;
        return Ok(Exit::Intact);
    }
    let mut text = match old {
        Some(old) => {
            let made_at = old.created_at();
            let count = plural(old.publications().len(), "publication");
            format!("follows  the file of {made_at}, {count}\n")
        }
        None => "follows  nothing: it is the first\n".to_owned(),
    };
    for data in &args.codes {
        text += &format!("adds     {}\n         {}\n", data.time, data.to_code());
    }
    for subject in &certificates {
        text += &format!("adds     certificate of {subject}\n");
    }
    text += &format!(
        "signed   {}, {}, as {}\n",
        args.output.display(),
        plural(count, "publication"),
        args.constraint
    );
    print(&output::clean(&text))?;
    Ok(Exit::Intact)
}

/// What contradicts a publication is worth an alarm; everything else is input.
fn failure(error: ComposeError) -> Failure {
    match error {
        ComposeError::Contradiction { .. } => Failure::Tampered(format!("PUB-01: {error}")),
        error => Failure::input(error),
    }
}
