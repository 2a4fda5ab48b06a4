//! `pitser erase`: two people destroy what can be opened about a patient.
//!
//! The running guardian is asked; while none runs, the trail's folder is opened here.

use crate::clock;
use crate::config::Config;
use crate::files;
use crate::outcome::{Exit, Failure, Outcome};
use crate::output::{clean, plural, print, print_json};
use pitser_evidence::line::Timestamp;
use pitser_guardian::approver::{Approver, Refused, Token};
use pitser_guardian::config::Source;
use pitser_guardian::erasure::{self, Ask, Asked};
use serde::Serialize;
use serde_json::Value;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Arguments of `pitser erase`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["patient", "confirm", "new_token"]))]
pub(crate) struct Args {
    /// Ask for this patient to be erased, by the identifier in the database; prints a code
    #[arg(long, value_name = "ID")]
    patient: Option<String>,
    /// The legal basis, without a word about the patient: it stands in the trail for ever
    #[arg(long, value_name = "TEXT", requires = "patient")]
    basis: Option<String>,
    /// Erase what another person asked for under this code
    #[arg(long, value_name = "CODE")]
    confirm: Option<String>,
    /// Make a token for an approver, and print what goes into the configuration
    #[arg(long, value_name = "FILE", requires = "by")]
    new_token: Option<PathBuf>,
    /// The approver's name; beside a token, a check that it is that person's
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Only show what would be destroyed, and what speaks against it
    #[arg(long, conflicts_with = "new_token")]
    dry_run: bool,
    #[command(flatten)]
    asking: Asking,
}

/// Who asks, and which trail.
#[derive(Debug, clap::Args)]
pub(super) struct Asking {
    /// File with the token of the approver who asks
    #[arg(long, value_name = "FILE", env = "PITSER_TOKEN_FILE")]
    token: Option<PathBuf>,
    /// Configuration file
    #[arg(long, default_value = "pitser.toml", env = "PITSER_CONFIG")]
    config: PathBuf,
    /// Which source, if there are several
    #[arg(long)]
    source: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

const BACKUPS: &str = "\
Backups are not touched either. Whoever has one of the vault and of its master key opens what it holds: the erasure
counts from the end of the last such backup's life.
";

/// Runs the command.
pub(crate) async fn run(args: Args) -> Outcome {
    if let (Some(file), Some(name)) = (&args.new_token, &args.by) {
        return new_token(file, name);
    }
    let ask = match (args.patient, args.basis, args.confirm) {
        (Some(patient), _, _) if args.dry_run => Ask::Plan { patient },
        (Some(patient), Some(basis), _) => Ask::Request { patient, basis },
        (Some(_), None, _) => {
            return Err(Failure::Input(
                "name the legal basis with --basis, or only look with --dry-run".into(),
            ));
        }
        (None, _, code) if args.dry_run => Ask::Show {
            code: code.unwrap_or_default(),
        },
        (None, _, code) => Ask::Confirm {
            code: code.unwrap_or_default(),
        },
    };
    let answer = args.asking.ask(ask, args.by.as_deref()).await?;
    match args.asking.json {
        true => print_json(&answer)?,
        false => print(&clean(&describe(&answer)))?,
    }
    Ok(Exit::Intact)
}

/// Makes a token and says how it becomes an approver's.
fn new_token(file: &Path, name: &str) -> Outcome {
    let mut random = Zeroizing::new([0; 32]);
    getrandom::getrandom(&mut *random).map_err(Failure::service)?;
    let token = data_encoding::BASE32_NOPAD.encode(&*random);
    let token = Zeroizing::new(token + "\n");
    files::write_secret(file, token.as_bytes())?;
    let hash = Token::new(&token).hash();
    let name = toml::Value::from(name);
    print(&format!(
        "# The token is in {}: keep it where nobody else reads it. Into pitser.toml goes, and is no secret:\n\
         [[approver]]\nname = {name}\ntoken_sha256 = \"{hash}\"\n",
        file.display(),
    ))?;
    Ok(Exit::Intact)
}

impl Asking {
    /// Asks the running guardian, or the trail itself.
    pub(super) async fn ask(&self, ask: Ask, by: Option<&str>) -> Result<Value, Failure> {
        let config = Config::read(&self.config)?;
        let source = config.source(self.source.as_deref())?;
        let asked = Asked {
            token: self.token(&config, by)?,
            ask,
        };
        let path = format!("/api/erasure/{}", source.name);
        match send(&config, &path, &asked).await? {
            Some(answer) => Ok(answer),
            None => alone(&config, source, &asked),
        }
    }

    /// Asks the running guardian about findings, at an address below `/api/accept/`.
    pub(super) async fn of_findings<T: Serialize>(
        &self,
        below: &str,
        by: Option<&str>,
        asked: impl FnOnce(Token) -> T,
    ) -> Result<Value, Failure> {
        let config = Config::read(&self.config)?;
        let source = config.source(self.source.as_deref())?;
        let asked = asked(self.token(&config, by)?);
        let path = format!("/api/accept/{}{below}", source.name);
        let answer = send(&config, &path, &asked).await?;
        answer.ok_or_else(|| {
            Failure::Service(format!(
                "no guardian answers at {}. Start it with `pitser guard run`, or correct guard.listen",
                config.guard.listen
            ))
        })
    }

    /// Who asks.
    fn token(&self, config: &Config, by: Option<&str>) -> Result<Token, Failure> {
        let token = self.token.as_ref().ok_or_else(|| {
            Failure::Input("show who asks with --token FILE; `pitser erase --new-token FILE --by NAME` makes one".into())
        })?;
        let token = Token::new(&Zeroizing::new(files::read_text(token)?));
        check_name(config, &token, by)?;
        Ok(token)
    }
}

/// Sends a question to the running guardian; `None` if there is none.
async fn send(
    config: &Config,
    path: &str,
    asked: &impl Serialize,
) -> Result<Option<Value>, Failure> {
    let body = serde_json::to_vec(asked).map(Zeroizing::new);
    let body = body.map_err(Failure::service)?;
    match super::guard::send(config, "POST", path, &body).await? {
        Some((200, answer)) => Ok(Some(answer)),
        Some((503, answer)) => Err(Failure::Service(error_of(&answer))),
        Some((_, answer)) => Err(Failure::Input(error_of(&answer))),
        None => Ok(None),
    }
}

/// A token in the wrong place is noticed before it decides anything.
fn check_name(config: &Config, token: &Token, by: Option<&str>) -> Result<(), Failure> {
    let Some(by) = by else { return Ok(()) };
    let hash = token.hash();
    let approvers = config.tuning().approvers;
    let is_so = |a: &Approver| a.name == by && a.token_sha256 == hash;
    match approvers.iter().any(is_so) {
        true => Ok(()),
        false => Err(Failure::Input(format!(
            "the token is not that of an [[approver]] named {by:?}"
        ))),
    }
}

fn error_of(answer: &Value) -> String {
    let told = answer["error"].as_str();
    told.unwrap_or("the guardian did not say why").to_owned()
}

/// While no guardian runs: the trail's folder itself.
fn alone(config: &Config, source: &Source, asked: &Asked) -> Result<Value, Failure> {
    let tuning = config.tuning();
    let now = Timestamp::from_micros(clock::micros()).map_err(Failure::service)?;
    let layout = tuning.layout(source);
    let answer = erasure::answer_alone(layout, &tuning.approvers, asked, now);
    let answer = answer.map_err(Failure::opening)?;
    match answer {
        Ok(answer) => serde_json::to_value(answer).map_err(Failure::service),
        Err(Refused::Unavailable(why)) => Err(Failure::Service(why)),
        Err(refused) => Err(Failure::input(refused)),
    }
}

/// An answer for people.
fn describe(answer: &Value) -> String {
    let (kind, body) = match answer.as_object().and_then(|answer| answer.iter().next()) {
        Some((kind, body)) => (kind.as_str(), body),
        None => ("", answer),
    };
    match kind {
        "plan" => describe_plan(body) + BACKUPS,
        "requested" => {
            let code = text(&body["code"]);
            format!(
                "{}{BACKUPS}asked by   {}\ncode       {code}, valid until {}\n\
                 Another approver looks with `pitser erase --confirm {code} --dry-run`, and decides without --dry-run.\n",
                describe_plan(&body["plan"]),
                text(&body["request"]["by"]),
                text(&body["request"]["expires_at"]),
            )
        }
        "waiting" => format!(
            "identifier {}\nbasis      {}\nasked by   {}, valid until {}\n{}{BACKUPS}",
            text(&body["identifier"]),
            text(&body["request"]["basis"]),
            text(&body["request"]["by"]),
            text(&body["request"]["expires_at"]),
            describe_plan(&body["plan"]),
        ),
        "erased" => format!(
            "erased     {}\nline       {}, sealed with the next block\nbasis      {}\ndecided by {}, {}\n{BACKUPS}",
            text(&body["patient"]),
            body["seq"],
            text(&body["basis"]),
            text(&body["deciders"][0]),
            text(&body["deciders"][1]),
        ),
        _ => String::new(),
    }
}

fn describe_plan(plan: &Value) -> String {
    let count = |name: &str| plan[name].as_u64().unwrap_or_default();
    let key = match plan["has_key"].as_bool() {
        Some(true) => "there, to be destroyed with the identifier",
        _ => "destroyed before: nothing is left to erase",
    };
    let more = match count("more_holds") {
        0 => String::new(),
        more => format!("; and {more} more, which `pitser hold list` shows"),
    };
    let hold = match plan["hold"].is_object() {
        true => format!(
            "since {}, set by {}: {}{more}",
            text(&plan["hold"]["at"]),
            text(&plan["hold"]["by"]),
            text(&plan["hold"]["reason"])
        ),
        false => "none".into(),
    };
    format!(
        "patient    {}\nkey        {key}\nlines      {}, which stay and keep their proofs; what they commit to cannot be opened afterwards\n\
         database   {} of the patient, which this does not touch\nhold       {hold}\n",
        text(&plan["patient"]),
        count("lines"),
        plural(count("live_rows"), "row"),
    )
}

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
