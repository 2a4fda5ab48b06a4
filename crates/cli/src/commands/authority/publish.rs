//! `pitser authority publish`: by the authority that runs, or in its place when none
//! does; also a file that was composed elsewhere.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use pitser_authority::{Authority, AuthorityError, PublicationsError, Published};
use pitser_ksi::publications_file;
use pitser_ksi::time::Second;
use serde_json::{Value, json};

use super::ask;
use super::config::{Config, Place};
use crate::outcome::{Exit, Failure, Outcome};
use crate::output::{self, Form, plural, print, print_json};
use crate::{clock, files, service};

/// Arguments of `pitser authority publish`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// Hand in this publications file, which `pitser authority compose` made where the key is
    #[arg(long, value_name = "FILE", conflicts_with = "due")]
    file: Option<PathBuf>,
    /// Show the code that is to be carried to where the key is, and publish nothing
    #[arg(long)]
    due: bool,
    #[command(flatten)]
    form: Form,
}

/// Runs the command.
pub(super) fn run(args: &Args) -> Outcome {
    let config = args.place.read()?;
    let (facts, text) = match &args.file {
        _ if args.due => due(&config)?,
        Some(path) => hand_in(&config, path)?,
        None => publish(&config)?,
    };
    if args.form.json {
        print_json(&facts)?;
    } else {
        print(&output::clean(&text))?;
    }
    Ok(Exit::Intact)
}

/// Facts for programs, and the same for people.
type Told = (Value, String);

fn publish(config: &Config) -> Result<Told, Failure> {
    let published = ask_or(config, "/publish", Vec::new(), || {
        let signer = config.signer();
        let published = Authority::publish_stopped(&config.data(), signer.as_ref(), clock::now());
        let Published { data, code, is_new } = published?;
        Ok(json!({ "second": data.time.to_string(), "code": code, "new": is_new }))
    })?;
    let known = match published["new"] {
        Value::Bool(false) => ", as before",
        _ => "",
    };
    let (second, code) = (string(&published, "second"), string(&published, "code"));
    let text = format!("published {second}{known}\n{code}\n");
    Ok((published, text))
}

fn hand_in(config: &Config, path: &Path) -> Result<Told, Failure> {
    let file = files::read(path)?;
    if file.len() > publications_file::MAX_LEN {
        return Err(Failure::Input(format!(
            "{}: no publications file: longer than {} bytes",
            path.display(),
            publications_file::MAX_LEN
        )));
    }
    let handed_in = ask_or(config, "/publications.bin", file.clone(), || {
        Ok(Authority::hand_in_stopped(&config.data(), &file, clock::now())?.facts())
    })?;
    let count = handed_in["publications"].as_u64().unwrap_or(0);
    let mut text = match handed_in["new"] {
        Value::Bool(false) => "this is the newest publications file already".to_owned(),
        _ => "the publications file is taken".to_owned(),
    };
    text += &format!(": {}\n", plural(count, "publication"));
    for added in handed_in["added"].as_array().into_iter().flatten() {
        let (second, code) = (string(added, "second"), string(added, "code"));
        text += &format!("published {second}\n{code}\n");
    }
    Ok((handed_in, text))
}

fn due(config: &Config) -> Result<Told, Failure> {
    let service = config.service()?;
    let due = Authority::due(&service).map_err(failure)?;
    let (_, issuer) = Authority::published(&service.dir).map_err(failure)?;
    let (second, code) = (due.data.time.to_string(), due.data.to_code());
    let text = |at: Second| at.to_string();
    let (since, next_at) = (due.since.map(text), due.next_at.map(text));
    let head = match (&since, &next_at) {
        (Some(since), _) => format!("due since {since}: {second}"),
        (None, Some(next)) => format!("nothing is due until {next}; the newest second is {second}"),
        (None, None) => format!("nothing is due; the newest second is {second}"),
    };
    let proof = match service.log.witnesses.is_empty() {
        true => String::new(),
        false => format!(
            "Witnesses see this calendar: take /log/proof/{} along, and add --anchors ANCHORS.toml \
             --proof FILE.\n",
            due.data.time.0
        ),
    };
    let told = format!(
        "{head}\n{code}\n\n\
         Where the publications key is, with this authority's newest publications.bin:\n\
         pitser authority compose --old publications.bin --code {code} --key KEY.pem --certificate \
         CERT.pem --constraint {} -o next.bin\n\
         {proof}\
         Then here:\n\
         pitser authority publish --file next.bin --config {}\n",
        issuer.constraint,
        config.path.display(),
    );
    let facts = json!({
        "second": second, "code": code, "due": since.is_some(), "since": since, "next": next_at,
    });
    Ok((facts, told))
}

fn string(facts: &Value, name: &str) -> String {
    facts[name].as_str().unwrap_or_default().to_owned()
}

/// What the authority that runs answers, or what is done in its place when none does.
fn ask_or(
    config: &Config,
    path: &str,
    body: Vec<u8>,
    instead: impl FnOnce() -> Result<Value, AuthorityError>,
) -> Result<Value, Failure> {
    let socket = config.admin();
    match service::ask(async { Ok(ask::post(&socket, path, body).await) })? {
        Ok((200, done)) => Ok(done),
        Ok((status, refused)) => {
            let reason = refused["error"].as_str().unwrap_or("it does not say why");
            let text = format!("the authority did not publish: {reason}");
            Err(match status {
                422 => Failure::Input(text),
                _ => Failure::Service(text),
            })
        }
        Err(e) if config.cluster.is_some() => Err(Failure::Service(format!(
            "{}: {e}. A cluster publishes by a node that runs (the one that leads, or, with a \
             file, any): `pitser authority run`, or publish there",
            socket.display()
        ))),
        // The calendar's lock decides whether really none runs.
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            instead().map_err(failure)
        }
        Err(e) => Err(Failure::Service(format!("{}: {e}", socket.display()))),
    }
}

fn failure(error: AuthorityError) -> Failure {
    match &error {
        AuthorityError::Publications(
            PublicationsError::Refused(_)
            | PublicationsError::Elsewhere
            | PublicationsError::OwnKey
            | PublicationsError::NotHandedIn,
        ) => Failure::input(error),
        _ => Failure::service(error),
    }
}
