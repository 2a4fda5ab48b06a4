//! `pitser authority init`: everything that an authority begins with.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use pitser_authority::users::file::{self, FileKey};
use pitser_authority::{Authority, AuthorityError, Brought, Subject};
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
    #[arg(long, value_name = "ADDRESS", required_unless_present = "key")]
    email: Option<String>,
    /// Name in the certificate
    #[arg(long, value_name = "NAME", conflicts_with = "key")]
    name: Option<String>,
    /// Organisation in the certificate
    #[arg(long, value_name = "NAME", conflicts_with = "key")]
    organisation: Option<String>,
    /// Country in the certificate, two letters
    #[arg(long, value_name = "XX", conflicts_with = "key")]
    country: Option<String>,
    /// An RSA key that you bring along, PKCS#8 in PEM
    #[arg(
        long,
        value_name = "KEY.pem",
        requires_all = ["certificate", "constraint"],
        conflicts_with = "email"
    )]
    key: Option<PathBuf>,
    /// Its certificate, in PEM
    #[arg(long, value_name = "CERT.pem", requires = "key")]
    certificate: Option<PathBuf>,
    /// What verifiers are to demand of that certificate, such as email=publications@example.org
    #[arg(long, value_name = "NAME=VALUE", requires = "key")]
    constraint: Option<String>,
}

/// Runs the command.
pub(super) fn run(args: &Args) -> Outcome {
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
    let made = match (&args.key, &args.certificate, &args.constraint) {
        (Some(key), Some(certificate), Some(constraint)) => {
            // Its spelling is checked before anything is made.
            constraint.parse::<Constraint>().map_err(Failure::input)?;
            let key = Zeroizing::new(files::read_text(key)?);
            let certificate = files::read_text(certificate)?;
            let brought = Brought {
                key_pem: &key,
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
    files::write(&place.config(), EXAMPLE.as_bytes(), false)?;
    print(&output::clean(&place.next_steps()?))?;
    Ok(Exit::Intact)
}

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

    fn next_steps(&self) -> Result<String, Failure> {
        let constraint = files::read_text(&self.data().join("constraint"))?;
        let config = self.config();
        let config = config.display();
        Ok(format!(
            "authority      {config}\n\
             certificate    {}: verifiers trust it, with --constraint {}\
             signing key    {}: nobody else may have it\n\
             key of users   {}: keep a copy, but not beside one of the file of users\n\
             \n\
             pitser authority user add NAME --config {config}\n\
             pitser authority run --config {config}\n\
             pitser authority status --config {config}\n",
            self.data().join("certificate.pem").display(),
            constraint,
            self.data().join("signing-key.pem").display(),
            self.users_key().display(),
        ))
    }
}
