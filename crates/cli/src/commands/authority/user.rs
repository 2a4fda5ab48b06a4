//! `pitser authority user`: who may ask, and how much.

use std::fs::File;
use std::path::PathBuf;

use data_encoding::BASE32_NOPAD;
use pitser_authority::users::file::{self, FileKey, Record, is_login};
use pitser_authority::{Allowance, MAX_LEVEL, User};
use pitser_ksi::hash::Algorithm;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::config::{Config, Place};
use crate::files;
use crate::outcome::{Exit, Failure, Outcome};
use crate::output::{Form, print, print_json};

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Let somebody in; prints the key once
    Add(Add),
    /// Change what a user may use
    Set(Set),
    /// Who may ask
    List(List),
    /// Refuse a user until enabled again
    Disable(One),
    /// Let a disabled user in again
    Enable(One),
    /// Forget a user
    Remove(One),
}

/// Arguments of `user add`.
#[derive(Debug, clap::Args)]
pub(crate) struct Add {
    /// Login: letters, digits and . - _ @
    login: String,
    /// A file with the user's key, - for the standard input [default: a new one is made]
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    #[command(flatten)]
    bounds: Bounds,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    form: Form,
}

/// Arguments of `user set`.
#[derive(Debug, clap::Args)]
pub(crate) struct Set {
    /// Login
    login: String,
    #[command(flatten)]
    bounds: Bounds,
    #[command(flatten)]
    place: Place,
}

/// What a user may use; what is not given stays as it is.
#[derive(Debug, clap::Args)]
struct Bounds {
    /// Highest level of what is signed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(..=i64::from(MAX_LEVEL)))]
    max_level: Option<u8>,
    /// Signatures a second; "none" for no bound
    #[arg(long, value_name = "N", value_parser = bound)]
    rate: Option<Bound>,
    /// Signatures a day (UTC); "none" for no bound
    #[arg(long, value_name = "N", value_parser = bound)]
    per_day: Option<Bound>,
    /// Signatures a month (UTC); "none" for no bound
    #[arg(long, value_name = "N", value_parser = bound)]
    per_month: Option<Bound>,
    /// Hash algorithms of what is signed, such as SHA-256,SHA-512; "any" for all that are secure
    #[arg(long, value_name = "NAMES", value_parser = algorithms)]
    algorithms: Option<Algorithms>,
}

/// A number, or none.
#[derive(Debug, Clone, Copy)]
struct Bound(Option<u32>);

#[derive(Debug, Clone)]
struct Algorithms(Vec<Algorithm>);

fn bound(text: &str) -> Result<Bound, String> {
    match text {
        "none" => Ok(Bound(None)),
        digits => match digits.parse() {
            Ok(0) => Err("0 would refuse everything: `pitser authority user disable` does".into()),
            Ok(number) => Ok(Bound(Some(number))),
            Err(_) => Err("a whole number up to 4294967295, or none".into()),
        },
    }
}

fn algorithms(text: &str) -> Result<Algorithms, String> {
    if text == "any" {
        return Ok(Algorithms(Vec::new()));
    }
    let named = |name: &str| {
        let algorithm =
            Algorithm::from_name(name).ok_or(format!("{name:?} is no hash algorithm"))?;
        match algorithm.is_trusted() {
            true => Ok(algorithm),
            false => Err(format!(
                "{algorithm} is no longer secure enough to be signed"
            )),
        }
    };
    text.split(',')
        .map(named)
        .collect::<Result<_, _>>()
        .map(Algorithms)
}

impl Bounds {
    fn apply(&self, user: &mut User) {
        user.max_level = self.max_level.unwrap_or(user.max_level);
        let allowance = &mut user.allowance;
        if let Some(Bound(rate)) = self.rate {
            allowance.rate = rate;
        }
        if let Some(Bound(per_day)) = self.per_day {
            allowance.per_day = per_day.map(u64::from);
        }
        if let Some(Bound(per_month)) = self.per_month {
            allowance.per_month = per_month.map(u64::from);
        }
        if let Some(Algorithms(algorithms)) = &self.algorithms {
            allowance.algorithms.clone_from(algorithms);
        }
    }
}

/// Arguments of `user list`.
#[derive(Debug, clap::Args)]
pub(crate) struct List {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    form: Form,
}

/// Arguments of commands about one user.
#[derive(Debug, clap::Args)]
pub(crate) struct One {
    /// Login
    login: String,
    #[command(flatten)]
    place: Place,
}

/// Runs the command.
pub(super) fn run(command: Command) -> Outcome {
    match command {
        Command::Add(args) => add(&args),
        Command::Set(args) => change(&args.place, &args.login, |book, at| {
            args.bounds.apply(&mut book.records[at].user);
        }),
        Command::List(args) => list(&args),
        Command::Disable(args) => change(&args.place, &args.login, |book, at| {
            book.records[at].is_enabled = false;
        }),
        Command::Enable(args) => change(&args.place, &args.login, |book, at| {
            book.records[at].is_enabled = true;
        }),
        Command::Remove(args) => change(&args.place, &args.login, |book, at| {
            book.records.remove(at);
        }),
    }
}

/// The file of users while it is changed.
struct Book {
    path: PathBuf,
    key: FileKey,
    records: Vec<Record>,
    /// The key file, locked so that two changes do not lose one.
    _lock: File,
}

impl Book {
    fn open(config: &Config) -> Result<Self, Failure> {
        let (key_path, guarded) = config.users_key()?;
        let key = FileKey::read(&key_path, guarded).map_err(Failure::input)?;
        let lock = File::open(&key_path).and_then(|file| file.lock().map(|()| file));
        let lock = lock.map_err(|e| Failure::Service(format!("{}: {e}", key_path.display())))?;
        let path = config.users_file();
        let records = file::read(&path, &key).map_err(Failure::input)?;
        Ok(Self {
            path,
            key,
            records,
            _lock: lock,
        })
    }

    fn find(&self, login: &str) -> Option<usize> {
        self.records.iter().position(|one| one.user.login == login)
    }

    fn save(&self) -> Result<(), Failure> {
        file::write(&self.path, &self.records, &self.key).map_err(Failure::service)
    }
}

fn add(args: &Add) -> Outcome {
    if !is_login(&args.login) {
        return Err(Failure::Input(format!(
            "{:?} cannot be a login: 1 to {} letters, digits and . - _ @",
            args.login,
            file::MAX_LOGIN_LEN
        )));
    }
    let config = args.place.read()?;
    let mut book = Book::open(&config)?;
    if book.find(&args.login).is_some() {
        return Err(Failure::Input(format!(
            "there is a user {} already; `user set` changes what they may use, and after `user remove` \
             they can be added with another key",
            args.login
        )));
    }
    let key = match &args.key_file {
        Some(path) => brought_key(path)?,
        None => new_key()?,
    };
    let mut user = User::new(&args.login, key.as_bytes());
    args.bounds.apply(&mut user);
    book.records.push(Record {
        user,
        is_enabled: true,
    });
    book.save()?;
    // A key that was brought along is known already.
    let shown = args.key_file.is_none().then_some(key.as_str());
    if args.form.json {
        print_json(&json!({ "login": args.login, "key": shown }))?;
    } else {
        let key = shown
            .map(|key| format!("key      {key}\n"))
            .unwrap_or_default();
        print(&format!("user     {}\n{key}{RELOAD}", args.login))?;
    }
    Ok(Exit::Intact)
}

/// 120 random bits, in letters and digits: it goes into addresses unquoted.
fn new_key() -> Result<Zeroizing<String>, Failure> {
    let mut random = Zeroizing::new([0; 15]);
    getrandom::getrandom(&mut *random)
        .map_err(|e| Failure::Service(format!("no random bytes: {e}")))?;
    Ok(Zeroizing::new(BASE32_NOPAD.encode(&*random)))
}

fn brought_key(path: &std::path::Path) -> Result<Zeroizing<String>, Failure> {
    let text = Zeroizing::new(files::read_text(path)?);
    let key = text.trim_end_matches(['\r', '\n']);
    if key.is_empty() || key.len() > file::MAX_KEY_LEN || key.contains('\n') {
        return Err(Failure::Input(format!(
            "{}: a key is one line of 1 to {} bytes",
            path.display(),
            file::MAX_KEY_LEN
        )));
    }
    Ok(Zeroizing::new(key.to_owned()))
}

fn change(place: &Place, login: &str, change: impl FnOnce(&mut Book, usize)) -> Outcome {
    let config = place.read()?;
    let mut book = Book::open(&config)?;
    let at = book.find(login).ok_or_else(|| {
        Failure::Input(format!(
            "there is no user {login:?}; `pitser authority user list` shows who there is"
        ))
    })?;
    change(&mut book, at);
    book.save()?;
    print(RELOAD)?;
    Ok(Exit::Intact)
}

fn list(args: &List) -> Outcome {
    let records = args.place.read()?.records()?;
    if args.form.json {
        let users: Vec<Value> = records.iter().map(facts).collect();
        print_json(&json!({ "users": users }))?;
        return Ok(Exit::Intact);
    }
    let mut text = String::new();
    for record in &records {
        text += &line(record);
    }
    print(if text.is_empty() { "nobody\n" } else { &text })?;
    Ok(Exit::Intact)
}

fn facts(Record { user, is_enabled }: &Record) -> Value {
    let Allowance {
        rate,
        per_day,
        per_month,
        algorithms,
    } = &user.allowance;
    json!({
        "login": user.login,
        "enabled": is_enabled,
        "max_level": user.max_level,
        "rate": rate,
        "per_day": per_day,
        "per_month": per_month,
        "algorithms": algorithms.iter().map(|one| one.name()).collect::<Vec<_>>(),
    })
}

fn line(Record { user, is_enabled }: &Record) -> String {
    let allowance = &user.allowance;
    let mut line = format!("{}  up to level {}", user.login, user.max_level);
    for (bound, unit) in [
        (allowance.rate.map(u64::from), "second"),
        (allowance.per_day, "day"),
        (allowance.per_month, "month"),
    ] {
        if let Some(bound) = bound {
            line += &format!(", {bound} a {unit}");
        }
    }
    let names: Vec<_> = allowance.algorithms.iter().map(|one| one.name()).collect();
    if !names.is_empty() {
        line += &format!(", {}", names.join(" or "));
    }
    if !is_enabled {
        line += ", disabled";
    }
    line + "\n"
}

const RELOAD: &str = "A running authority goes by it after SIGHUP (systemctl reload)\n";
