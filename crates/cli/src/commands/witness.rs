//! `pitser witness`: cosigns the heads of others' logs, and remembers them.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;

use pitser_ksi::time::Second;
use pitser_tlog::error::DecodeErrorKind;
use pitser_tlog::note::{Algorithm, CosigningKey, VerifierKey};
use pitser_witness::{Limits, Log, Pace, Rate, Server, SqliteStore, Store, StoreError, Witness};
use serde_json::json;
use zeroize::Zeroizing;

use crate::outcome::{Exit, Failure, Outcome};
use crate::output::{self, Form, print, print_json};
use crate::signals::stop_requested;
use crate::trust::instant;
use crate::{clock, files, service};

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make a witness's key and its memory
    Init(Init),
    /// Answer over HTTP (c2sp.org/tlog-witness) until stopped
    Run(Run),
    /// Watch a log from now on; a running witness sees it at once
    AddLog(Box<AddLog>),
    /// The logs that are watched, and their newest cosigned heads; exit code 1 if one has forked
    List(List),
}

#[derive(Debug, clap::Args)]
struct Place {
    /// The witness's folder: its key, and what it has cosigned
    #[arg(long, value_name = "DIR", env = "PITSER_WITNESS")]
    dir: PathBuf,
}

/// Arguments of `pitser witness init`.
#[derive(Debug, clap::Args)]
pub(crate) struct Init {
    #[command(flatten)]
    place: Place,
    /// The key's name, such as notary.example/witness: a name in a domain of yours
    #[arg(long, value_name = "NAME")]
    name: String,
    /// What the key cosigns with; those who trust it need a Pitser that verifies it
    #[arg(long, value_enum, default_value_t = Kind::Ed25519)]
    algorithm: Kind,
}

/// Algorithms of a witness's key.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Kind {
    /// What every witness and verifier knows
    Ed25519,
    /// Made to withstand quantum computers, with lines of 3 kB; in builds with the feature ml-dsa
    #[value(name = "ml-dsa-44")]
    MlDsa44,
}

impl From<Kind> for Algorithm {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Ed25519 => Self::CosignatureV1,
            Kind::MlDsa44 => Self::MlDsa44,
        }
    }
}

/// Arguments of `pitser witness run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    #[command(flatten)]
    place: Place,
    /// Where to listen; port 0 picks a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7081")]
    listen: SocketAddr,
    /// Seconds by which this machine's clock may be set back
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    clock_tolerance: u64,
    /// Connections at a time; one address has at most half of them
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u16).range(2..))]
    connections: u16,
    /// Requests a second of one log
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    log_rate: u32,
    /// Requests a second of one address
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    peer_rate: u32,
    #[command(flatten)]
    form: Form,
}

/// Arguments of `pitser witness add-log`.
#[derive(Debug, clap::Args)]
pub(crate) struct AddLog {
    #[command(flatten)]
    place: Place,
    /// The log's key, as `guard init` and authorities print it: origin+id+key
    #[arg(value_name = "VKEY")]
    key: VerifierKey,
    /// For a calendar, which gets one entry a second: the second of its first one
    #[arg(long, visible_alias = "calendar-genesis", value_name = "RFC3339", value_parser = instant)]
    genesis: Option<Second>,
    /// By how many seconds the calendar's clock may be ahead of ours
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 5,
        requires = "genesis"
    )]
    tolerance: u64,
    /// Replace what is known of a log of this origin; what was cosigned for it stays binding
    #[arg(long)]
    replace: bool,
}

/// Arguments of `pitser witness list`.
#[derive(Debug, clap::Args)]
pub(crate) struct List {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    form: Form,
}

/// Runs the command.
pub(crate) fn run(command: Command) -> Outcome {
    match command {
        Command::Init(args) => init(&args),
        Command::Run(args) => service::block_on(serve(&args)),
        Command::AddLog(args) => add_log(&args),
        Command::List(args) => list(&args),
    }
}

fn init(args: &Init) -> Outcome {
    let place = &args.place;
    if place.key().exists() {
        return Err(Failure::Input(format!(
            "{} is there already. A key belongs to one memory for life: choose another folder for another witness",
            place.key().display()
        )));
    }
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::getrandom(&mut *seed)
        .map_err(|e| Failure::Service(format!("no random bytes: {e}")))?;
    let key = CosigningKey::with_algorithm(&args.name, args.algorithm.into(), &seed).map_err(
        |e| match e.kind {
            DecodeErrorKind::NotBuiltIn { .. } => {
                Failure::Input(format!("--algorithm: {}", e.kind))
            }
            _ => Failure::Input(format!("--name {:?}: {e}", args.name)),
        },
    )?;
    pitser_disk::private_folder(&place.dir)
        .map_err(|e| Failure::Service(format!("{}: {e}", place.dir.display())))?;
    // The memory first: a key without one is never used.
    let store = place.open_store()?;
    if store.latest_at().map_err(Failure::service)?.is_some() {
        return Err(Failure::Input(format!(
            "{} remembers what another key has cosigned; choose another folder",
            place.store().display()
        )));
    }
    drop(store);
    let secret = Zeroizing::new(format!("{}\n", *key.expose()));
    files::write_secret(&place.key(), secret.as_bytes())?;
    print(&format!(
        "witness  {}\nkey      {}\n\n\
         Publish the key where people would look for it, and give it to those whose logs you watch.\n\
         Then: pitser witness add-log --dir {} VKEY\n",
        key.name(),
        key.verifier(),
        place.dir.display(),
    ))?;
    Ok(Exit::Intact)
}

async fn serve(args: &Run) -> Outcome {
    let mut interrupted = pin!(stop_requested());
    // Signals are caught before the first line is printed: whoever reads it may stop us.
    tokio::select! {
        biased;
        () = &mut interrupted => return Ok(Exit::Intact),
        () = std::future::ready(()) => {}
    }
    let (key, store) = args.place.open()?;
    let verifier = key.verifier();
    let logs = store.logs().map_err(Failure::service)?.len();
    let rate = |per_s: u32, burst| Rate {
        per_s,
        burst: per_s.saturating_mul(burst),
    };
    let witness = Witness::new(key, store)
        .with_clock_tolerance(args.clock_tolerance)
        .with_rate(rate(args.log_rate, 10));
    let limits = Limits {
        connections: usize::from(args.connections),
        of_peer: rate(args.peer_rate, 4),
        ..Limits::default()
    };
    if let Some(behind_s) = witness
        .clock_behind_s(clock::now().0)
        .map_err(Failure::service)?
    {
        tracing::error!(
            behind_s,
            "CLK-01: the clock is behind the newest cosignature; nothing is cosigned until it is set right"
        );
    }
    let server = Server::start(args.listen, witness, limits, || clock::now().0)
        .await
        .map_err(Failure::service)?;
    let address = server.address();
    if args.form.json {
        print_json(&json!({
            "event": "listening", "address": address.to_string(), "key": verifier.to_string(), "logs": logs,
        }))?;
    } else {
        print(&format!(
            "witness  {}\nkey      {verifier}\nlogs     {logs}\nlistens  http://{address}/\n",
            verifier.name()
        ))?;
    }
    interrupted.await;
    server.stop().await;
    Ok(Exit::Intact)
}

fn add_log(args: &AddLog) -> Outcome {
    if args.key.algorithm() != Algorithm::Ed25519 {
        return Err(Failure::Input(format!(
            "{} is the key of a witness, not of a log",
            args.key.name()
        )));
    }
    let (key, mut store) = args.place.open()?;
    if key.verifier().public_key() == args.key.public_key() {
        return Err(Failure::Input(
            "a witness does not watch a log of its own key".into(),
        ));
    }
    let mut log = Log::new(args.key.clone());
    log.pace = args.genesis.map(|genesis| Pace {
        genesis_at: genesis.0,
        tolerance_s: args.tolerance,
    });
    let known = store.log(&log.origin).map_err(Failure::service)?;
    if known.as_ref().is_some_and(|known| *known != log) && !args.replace {
        return Err(Failure::Input(format!(
            "{} is watched already, with another key or pace: --replace if its operator has told you so \
             on a way that you trust",
            log.origin
        )));
    }
    store.put_log(&log).map_err(Failure::service)?;
    print(&output::clean(&format!(
        "watching {}{}\n",
        log.origin,
        match log.pace {
            Some(pace) => format!(", one entry a second since {}", Second(pace.genesis_at)),
            None => String::new(),
        }
    )))?;
    Ok(Exit::Intact)
}

fn list(args: &List) -> Outcome {
    let (key, store) = args.place.open()?;
    let forks = store.forks().map_err(Failure::service)?;
    let mut logs = Vec::new();
    let mut text = format!("witness  {}\nkey      {}\n", key.name(), key.verifier());
    for log in store.logs().map_err(Failure::service)? {
        let head = store.head(&log.origin).map_err(Failure::service)?;
        let fork = forks.iter().find(|fork| fork.origin == log.origin);
        let state = head.as_ref().map_or("nothing cosigned yet".into(), |head| {
            format!("size {}, cosigned {}", head.size, Second(head.cosigned_at))
        });
        text += &format!("{}  {state}\n", log.origin);
        if let Some(fork) = fork {
            text += &format!(
                "  FORKED: two roots of {} entries, seen {}; --json shows both heads\n",
                fork.size,
                Second(fork.refused_at)
            );
        }
        logs.push(json!({
            "origin": log.origin,
            "key": log.key.to_string(),
            "genesis": log.pace.map(|pace| Second(pace.genesis_at).to_string()),
            "size": head.as_ref().map(|head| head.size),
            "cosigned_at": head.as_ref().map(|head| Second(head.cosigned_at).to_string()),
            "head": head.map(|head| head.note),
            "fork": fork.map(|fork| json!({
                "size": fork.size,
                "held": fork.held,
                "refused": fork.refused,
                "refused_at": Second(fork.refused_at).to_string(),
            })),
        }));
    }
    if args.form.json {
        print_json(&json!({ "key": key.verifier().to_string(), "logs": logs }))?;
    } else {
        print(&output::clean(&text))?;
    }
    Ok(match forks.is_empty() {
        true => Exit::Intact,
        false => Exit::Broken,
    })
}

impl Place {
    fn key(&self) -> PathBuf {
        self.dir.join("key")
    }

    fn store(&self) -> PathBuf {
        self.dir.join("witness.db")
    }

    /// The key and its memory. A key whose memory is gone is not used.
    fn open(&self) -> Result<(CosigningKey, SqliteStore), Failure> {
        let text = fs::read_to_string(self.key()).map(Zeroizing::new);
        let text = text.map_err(|e| {
            let path = self.key();
            let path = path.display();
            match e.kind() {
                io::ErrorKind::NotFound => Failure::Input(format!(
                    "{path}: {e}. Make a witness with `pitser witness init --dir {} --name NAME`",
                    self.dir.display()
                )),
                _ => Failure::Service(format!("{path}: {e}")),
            }
        })?;
        let key = CosigningKey::parse(text.trim_end()).map_err(|e| {
            // Whatever else is wrong with it, it is not shown.
            let why = match e.kind {
                DecodeErrorKind::NotBuiltIn { .. } => e.kind.to_string(),
                _ => "no witness's key".to_owned(),
            };
            Failure::Input(format!("{}: {why}", self.key().display()))
        })?;
        let is_lost = |how: &str| {
            Failure::Input(format!(
                "{} is {how}. Without its memory this key must not cosign again: make a new witness in \
                 another folder, and tell those who trust this one",
                self.store().display()
            ))
        };
        if !self.store().exists() {
            return Err(is_lost("gone"));
        }
        match SqliteStore::open_known(self.store()) {
            Err(StoreError::Empty) => Err(is_lost("empty")),
            opened => Ok((key, self.opened(opened)?)),
        }
    }

    fn open_store(&self) -> Result<SqliteStore, Failure> {
        self.opened(SqliteStore::open(self.store()))
    }

    fn opened(&self, opened: Result<SqliteStore, StoreError>) -> Result<SqliteStore, Failure> {
        opened.map_err(|e| {
            let text = format!("{}: {e}", self.store().display());
            match e {
                StoreError::UnknownFormat => Failure::Input(text),
                _ => Failure::Service(text),
            }
        })
    }
}
