//! `pitser authority init`: everything that an authority begins with.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use pitser_authority::users::file::{self, FileKey};
use pitser_authority::{Authority, AuthorityError, Brought, BroughtKey, SignerCommand, Subject};
use pitser_ksi::pki::Constraint;
use zeroize::Zeroizing;

use super::config::EXAMPLE;
use crate::outcome::{Exit, Failure, Outcome};
use crate::output::{self, print};
use crate::{clock, files};

/// Arguments of `pitser authority init`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder to make it in
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Address in the certificate, by which verifiers know the authority: one in a domain of yours
    #[arg(long, value_name = "ADDRESS", required_unless_present_any = ["key", "signer"])]
    email: Option<String>,
    /// Name in the certificate
    #[arg(long, value_name = "NAME", conflicts_with_all = ["key", "signer"])]
    name: Option<String>,
    /// Organisation in the certificate
    #[arg(long, value_name = "NAME", conflicts_with_all = ["key", "signer"])]
    organisation: Option<String>,
    /// Country in the certificate, two letters
    #[arg(long, value_name = "XX", conflicts_with_all = ["key", "signer"])]
    country: Option<String>,
    /// An RSA key that you bring along, PKCS#8 in PEM
    #[arg(
        long,
        value_name = "KEY.pem",
        requires_all = ["certificate", "constraint"],
        conflicts_with = "email"
    )]
    key: Option<PathBuf>,
    /// A program that signs with a key in a device (docs/publications.md), by its whole path;
    /// given again for each of its arguments
    #[arg(
        long,
        value_name = "PROGRAM",
        requires_all = ["certificate", "constraint"],
        conflicts_with_all = ["email", "key"],
        allow_hyphen_values = true
    )]
    signer: Vec<String>,
    /// The key's certificate, in PEM
    #[arg(long, value_name = "CERT.pem")]
    certificate: Option<PathBuf>,
    /// What verifiers are to demand of that certificate, such as email=publications@example.org
    #[arg(long, value_name = "NAME=VALUE", requires = "certificate")]
    constraint: Option<String>,
}

/// Runs the command.
pub(super) fn run(args: &Args) -> Outcome {
    let brings_key = args.key.is_some() || !args.signer.is_empty();
    if args.certificate.is_some() && !brings_key {
        return Err(Failure::Input(
            "--certificate is for a key that you bring along: give --key or --signer too".into(),
        ));
    }
    if args.signer.first().is_some_and(|it| !it.starts_with('/')) {
        return Err(Failure::Input(
            "--signer needs the program's whole path".into(),
        ));
    }
    let place = Place(&args.dir);
    for path in [place.config(), place.users(), place.users_key()] {
        if path.exists() {
            return Err(Failure::Input(format!(
                "{} is there already; choose another --dir, or move that authority away first",
                path.display()
            )));
        }
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(place.data())
        .map_err(|e| Failure::Service(format!("{}: {e}", args.dir.display())))?;
    let genesis = clock::now();
    let made = match (&args.certificate, &args.constraint) {
        (Some(certificate), Some(constraint)) => {
            // Its spelling is checked before anything is made.
            constraint.parse::<Constraint>().map_err(Failure::input)?;
            let certificate = files::read_text(certificate)?;
            let pem = match &args.key {
                Some(path) => Some(Zeroizing::new(files::read_text(path)?)),
                None => None,
            };
            let signer = SignerCommand::new(&args.signer);
            let brought = Brought {
                key: match &pem {
                    Some(pem) => BroughtKey::Pem(pem),
                    None => BroughtKey::Behind(&signer),
                },
                certificate_pem: &certificate,
                constraint,
            };
            Authority::init_with(&place.data(), genesis, &brought)
        }
        _ => Authority::init(&place.data(), genesis, &subject(args)),
    };
    made.map_err(|e| match e {
        AuthorityError::Identity(_) | AuthorityError::Calendar(_) => Failure::input(e),
        _ => Failure::service(e),
    })?;
    let key = FileKey::generate();
    key.write(&place.users_key())
        .map_err(|e| Failure::Service(format!("{}: {e}", place.users_key().display())))?;
    file::write(&place.users(), &[], &key).map_err(Failure::service)?;
    files::write(
        &place.config(),
        configuration(&args.signer)?.as_bytes(),
        false,
    )?;
    print(&output::clean(&place.next_steps(args.signer.first())?))?;
    Ok(Exit::Intact)
}

/// The example, with the program that signs.
fn configuration(signer: &[String]) -> Result<String, Failure> {
    if signer.is_empty() {
        return Ok(EXAMPLE.to_owned());
    }
    // An array of strings is written alike in JSON and TOML, but for characters that no
    // command has.
    let command = serde_json::to_string(signer).map_err(Failure::input)?;
    Ok(EXAMPLE
        .replace("# [signer]", "[signer]")
        .replace(EXAMPLE_COMMAND, &format!("command = {command}")))
}

/// How the example names a program that signs.
const EXAMPLE_COMMAND: &str = "# command = [\"/usr/local/bin/hsm-sign\"]";

fn subject(args: &Args) -> Subject {
    let text = |given: &Option<String>| given.clone().unwrap_or_default();
    Subject {
        email: text(&args.email),
        common_name: text(&args.name),
        organization: text(&args.organisation),
        country: text(&args.country),
    }
}

/// The folder of an authority, as `init` arranges it.
struct Place<'a>(&'a Path);

impl Place<'_> {
    fn config(&self) -> PathBuf {
        self.0.join("authority.toml")
    }

    fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    fn users(&self) -> PathBuf {
        self.0.join("users")
    }

    fn users_key(&self) -> PathBuf {
        self.0.join("users-key")
    }

    fn next_steps(&self, signer: Option<&String>) -> Result<String, Failure> {
        let constraint = files::read_text(&self.data().join("constraint"))?;
        let config = self.config();
        let config = config.display();
        let key = match signer {
            Some(program) => format!("behind {program}"),
            None => format!(
                "{}: nobody else may have it",
                self.data().join("signing-key.pem").display()
            ),
        };
        Ok(format!(
            "authority      {config}\n\
             certificate    {}: verifiers trust it, with --constraint {}\
             signing key    {key}\n\
             key of users   {}: keep a copy, but not beside one of the file of users\n\
             \n\
             pitser authority user add NAME --config {config}\n\
             pitser authority run --config {config}\n\
             pitser authority status --config {config}\n",
            self.data().join("certificate.pem").display(),
            constraint,
            self.users_key().display(),
        ))
    }
}
