//! `pitser authority init`: everything that an authority begins with.

use std::path::{Path, PathBuf};

use pitser_authority::users::file::{self, FileKey};
use pitser_authority::{
    Authority, AuthorityError, Brought, BroughtKey, Pinned, SignerCommand, Subject,
};
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
    #[arg(long, value_name = "ADDRESS", required_unless_present_any = ["key", "signer", "below"])]
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
    /// Certificate in PEM of a publications key that is kept on another machine: publications are
    /// made there with `pitser authority compose` and handed in here (docs/publications.md)
    #[arg(
        long,
        value_name = "CERT.pem",
        requires = "publications_constraint",
        conflicts_with = "below"
    )]
    publications_certificate: Option<PathBuf>,
    /// What verifiers are to demand of that certificate, such as email=publications@example.org
    #[arg(long, value_name = "NAME=VALUE", requires = "publications_certificate")]
    publications_constraint: Option<String>,
    /// Make an aggregator instead, whose rounds this service signs: ksi+tcp://HOST:PORT; its key is
    /// taken from PITSER_KEY. May be given up to three times, for services that keep one calendar
    #[arg(
        long,
        value_name = "SERVICE",
        conflicts_with_all = ["email", "name", "organisation", "country", "key", "signer"]
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
    if !args.below.is_empty() {
        // What is wrong with it is said before anything is made.
        above(args)?;
    }
    pitser_disk::private_folder(&place.data())
        .map_err(|e| Failure::Service(format!("{}: {e}", args.dir.display())))?;
    if args.below.is_empty() {
        make_authority(args, &place)?;
    }
    let key = FileKey::generate();
    key.write(&place.users_key())
        .map_err(|e| Failure::Service(format!("{}: {e}", place.users_key().display())))?;
    file::write(&place.users(), &[], &key).map_err(Failure::service)?;
    let config = match &args.below[..] {
        [] => configuration(&args.signer)?,
        _ => below(args, &place)?,
    };
    files::write(&place.config(), config.as_bytes(), false)?;
    print(&output::clean(&place.next_steps(args)?))?;
    Ok(Exit::Intact)
}

/// Calendar, signing key, certificate and publications.
fn make_authority(args: &Args, place: &Place<'_>) -> Result<(), Failure> {
    let genesis = clock::now();
    if let (Some(certificate), Some(constraint)) = (
        &args.publications_certificate,
        &args.publications_constraint,
    ) {
        let pinned = Pinned {
            certificate_pem: &files::read_text(certificate)?,
            constraint,
        };
        Authority::pin(&place.data(), &pinned, genesis)
            .map_err(|e| Failure::Input(format!("{}: {e}", certificate.display())))?;
    }
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
    Ok(())
}

/// The configuration of an aggregator; writes its key at the services above.
fn below(args: &Args, place: &Place<'_>) -> Result<String, Failure> {
    let Above {
        services,
        user,
        key,
    } = above(args)?;
    files::write_secret(&place.parent_key(), key.as_bytes())?;
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

    fn parent_key(&self) -> PathBuf {
        self.0.join("parent-key")
    }

    /// How the first publications file comes about whose key is elsewhere.
    fn first_publications(&self, constraint: &str) -> String {
        format!(
            "\n\
             It starts when it has a publications file. Carry {} to the publications key, and there:\n\
             pitser authority compose --first --calendar-certificate certificate.pem --key KEY.pem \
             --certificate CERT.pem --constraint {constraint} -o publications.bin\n\
             Then here:\n\
             pitser authority publish --file publications.bin --config {}\n",
            self.data().join("certificate.pem").display(),
            self.config().display(),
        )
    }

    fn next_steps(&self, args: &Args) -> Result<String, Failure> {
        let config = self.config();
        let config = config.display();
        let commands = format!(
            "\n\
             pitser authority user add NAME --config {config}\n\
             pitser authority run --config {config}\n\
             pitser authority status --config {config}\n"
        );
        if !args.below.is_empty() {
            return Ok(format!(
                "aggregator     {config}\n\
                 key above      {}: nobody else may have it\n\
                 key of users   {}: keep a copy, but not beside one of the file of users\n{commands}",
                self.parent_key().display(),
                self.users_key().display(),
            ));
        }
        let (prefix, first) = match &args.publications_constraint {
            Some(constraint) => ("publications-", self.first_publications(constraint)),
            None => ("", String::new()),
        };
        let trusted = |name: &str| self.data().join(format!("{prefix}{name}"));
        let constraint = files::read_text(&trusted("constraint"))?;
        let key = match args.signer.first() {
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
             key of users   {}: keep a copy, but not beside one of the file of users\n{first}{commands}",
            trusted("certificate.pem").display(),
            constraint,
            self.users_key().display(),
        ))
    }
}
