//! `pitser authority init`: everything that an authority begins with.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use pitser_authority::users::file::{self, FileKey};
use pitser_authority::{Authority, AuthorityError, Brought, Subject};
use pitser_client::{Endpoint, Key};
use pitser_ksi::pki::Constraint;
use zeroize::Zeroizing;

use super::config::EXAMPLE;
use crate::outcome::{Exit, Failure, Outcome};
use crate::output::{self, print};
use crate::service::Secret;
use crate::{clock, files};

/// Arguments of `pitser authority init`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder to make it in
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Address in the certificate, by which verifiers know the authority: one in a domain of yours
    #[arg(long, value_name = "ADDRESS", required_unless_present_any = ["key", "below"])]
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
    /// Make an aggregator instead, whose rounds this service signs: ksi+tcp://HOST:PORT; its key is
    /// taken from PITSER_KEY. May be given up to three times, for services that keep one calendar
    #[arg(
        long,
        value_name = "SERVICE",
        conflicts_with_all = ["email", "name", "organisation", "country", "key"]
    )]
    below: Vec<String>,
    /// Who we are at the services above
    #[arg(long, value_name = "NAME", requires = "below")]
    login: Option<String>,
    /// Our key there, unless the address has it
    #[arg(
        long = "parent-key",
        env = "PITSER_KEY",
        hide = true,
        hide_env_values = true,
        value_name = "SECRET"
    )]
    parent_key: Option<Secret>,
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
    if !args.below.is_empty() {
        // What is wrong with it is said before anything is made.
        above(args)?;
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(place.data())
        .map_err(|e| Failure::Service(format!("{}: {e}", args.dir.display())))?;
    if args.below.is_empty() {
        make_authority(args, &place)?;
    }
    let key = FileKey::generate();
    key.write(&place.users_key())
        .map_err(|e| Failure::Service(format!("{}: {e}", place.users_key().display())))?;
    file::write(&place.users(), &[], &key).map_err(Failure::service)?;
    let config = match &args.below[..] {
        [] => EXAMPLE.to_owned(),
        _ => below(args, &place)?,
    };
    files::write(&place.config(), config.as_bytes(), false)?;
    print(&output::clean(&place.next_steps(args.below.is_empty())?))?;
    Ok(Exit::Intact)
}

/// Calendar, signing key, certificate and publications.
fn make_authority(args: &Args, place: &Place<'_>) -> Result<(), Failure> {
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
    Ok(())
}

/// The configuration of an aggregator; writes its key at the services above.
fn below(args: &Args, place: &Place<'_>) -> Result<String, Failure> {
    let Above {
        services,
        user,
        key,
    } = above(args)?;
    write_secret(&place.parent_key(), key.as_bytes())?;
    let block = format!(
        "[parent]\nservices = {services:?}\nuser     = {user:?}\nkey_file = \"parent-key\"\n"
    );
    let commented = EXAMPLE
        .find("# [parent]")
        .zip(EXAMPLE.find("\n[limits]"))
        .expect("the example has both");
    Ok(format!(
        "{}{block}{}",
        &EXAMPLE[..commented.0],
        &EXAMPLE[commented.1..]
    ))
}

/// The services above, and who we are there.
struct Above {
    /// Without login and key.
    services: Vec<String>,
    user: String,
    key: Zeroizing<String>,
}

fn above(args: &Args) -> Result<Above, Failure> {
    let endpoints = args.below.iter().map(|service| {
        let endpoint = Endpoint::parse(service).map_err(Failure::input)?;
        let user = args.login.as_deref().unwrap_or(endpoint.user());
        let key = match &args.parent_key {
            Some(key) => Key::new(key.expose().as_bytes()),
            None => endpoint.key().clone(),
        };
        if user.is_empty() || key.expose().is_empty() {
            return Err(Failure::Input(format!(
                "--below {endpoint}: who are we there? Give --login, and our key in PITSER_KEY"
            )));
        }
        let user = user.to_owned();
        Ok(endpoint.with_credentials(user, key))
    });
    let endpoints = endpoints.collect::<Result<Vec<_>, Failure>>()?;
    let first = &endpoints[0];
    let own = |one: &Endpoint| {
        (
            one.user().to_owned(),
            Zeroizing::new(one.key().expose().to_vec()),
        )
    };
    if endpoints.iter().any(|one| own(one) != own(first)) {
        return Err(Failure::Input(
            "--below: login and key are to be the same at all services above".into(),
        ));
    }
    let key = String::from_utf8(first.key().expose().to_vec());
    Ok(Above {
        services: endpoints.iter().map(ToString::to_string).collect(),
        user: first.user().to_owned(),
        key: Zeroizing::new(key.map_err(|_| Failure::Input("our key there is no text".into()))?),
    })
}

fn write_secret(path: &Path, secret: &[u8]) -> Result<(), Failure> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| {
        file.write_all(secret)?;
        file.sync_all()
    })
    .map_err(|e| Failure::Service(format!("{}: {e}", path.display())))
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

    fn parent_key(&self) -> PathBuf {
        self.0.join("parent-key")
    }

    fn next_steps(&self, is_authority: bool) -> Result<String, Failure> {
        let config = self.config();
        let config = config.display();
        let commands = format!(
            "\n\
             pitser authority user add NAME --config {config}\n\
             pitser authority run --config {config}\n\
             pitser authority status --config {config}\n"
        );
        if !is_authority {
            return Ok(format!(
                "aggregator     {config}\n\
                 key above      {}: nobody else may have it\n\
                 key of users   {}: keep a copy, but not beside one of the file of users\n{commands}",
                self.parent_key().display(),
                self.users_key().display(),
            ));
        }
        let constraint = files::read_text(&self.data().join("constraint"))?;
        Ok(format!(
            "authority      {config}\n\
             certificate    {}: verifiers trust it, with --constraint {}\
             signing key    {}: nobody else may have it\n\
             key of users   {}: keep a copy, but not beside one of the file of users\n{commands}",
            self.data().join("certificate.pem").display(),
            constraint,
            self.data().join("signing-key.pem").display(),
            self.users_key().display(),
        ))
    }
}
