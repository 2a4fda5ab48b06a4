//! `pitser dev`: an authority on loopback, for development.

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;

use pitser_authority::calendar::CalendarError;
use pitser_authority::{
    Authority, AuthorityError, AuthorityHandle, Config, IdentityError, LogConfig, LogError,
    LogWitness, Micros, RoundReport, Subject, User,
};
use pitser_ksi::publication::PublicationData;
use pitser_ksi::publications_file::PublicationsFile;

use crate::clock;
use crate::files::Folder;
use crate::outcome::{Exit, Failure, Outcome};
use crate::output::{self, Form};
use crate::service::{self, Secret};
use crate::signals::stop_requested;
use crate::tree::Map;
use crate::witnesses;

/// The command's arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to sign and extend over TCP; port 0 picks a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:3332")]
    listen: SocketAddr,
    /// Where to sign and extend over HTTP, and to fetch publications
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    http: SocketAddr,
    /// Who may ask
    #[arg(long, value_name = "NAME", default_value = "anon")]
    user: String,
    /// That user's secret
    #[arg(
        long,
        value_name = "SECRET",
        default_value = "anon",
        hide_default_value = true
    )]
    key: Secret,
    /// Publish every so many seconds; 0 for never
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    publish_every: u64,
    /// Keep calendar, key and publications here; without it they vanish at the end
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// What the log of the calendar is called; witnesses and verifiers know it by this name
    #[arg(long, value_name = "NAME", default_value = "localhost/calendar")]
    origin: String,
    /// A witness of the calendar's log, by its address and its key; may be given several times
    #[arg(long, num_args = 2, value_names = ["URL", "VKEY"])]
    witness: Vec<String>,
    /// How many witnesses must have cosigned a second; more than half of them if absent
    #[arg(long, value_name = "K", requires = "witness")]
    quorum: Option<usize>,
    #[command(flatten)]
    form: Form,
}

/// Runs the command until it is interrupted.
pub(crate) fn run(args: Args) -> Outcome {
    let folder = match &args.dir {
        Some(dir) => Folder::kept(dir)?,
        None => Folder::temporary()?,
    };
    service::block_on(serve(&args, &folder.path))?;
    Ok(Exit::Intact)
}

async fn serve(args: &Args, dir: &Path) -> Result<(), Failure> {
    prepare(dir).await?;
    let mut config =
        Config::new(dir).with_user(User::new(&args.user, args.key.expose().as_bytes()));
    config.tcp = args.listen;
    config.http = Some(args.http);
    config.publish_every_s = args.publish_every;
    config.machine_id = "pitser-dev".to_owned();
    config.log = calendar_log(args)?;
    let mut interrupted = pin!(stop_requested());
    // Signals are caught before the first line is printed: whoever reads it may stop us.
    tokio::select! {
        biased;
        () = &mut interrupted => return Ok(()),
        () = std::future::ready(()) => {}
    }
    let authority = Authority::start(config, || Micros(clock::micros()))
        .await
        .map_err(not_started)?;
    for address in [args.listen, args.http] {
        if !address.ip().is_loopback() {
            tracing::warn!(%address, "not a loopback address: anybody who reaches it and knows the key is served");
        }
    }
    let show = Show {
        args,
        live: io::stdout().is_terminal() || args.form.json,
    };
    show.greeting(&authority, dir)?;
    let outcome = follow(&authority, &show, interrupted).await;
    let stopped = authority.shutdown().await;
    outcome?;
    stopped.map_err(Failure::service)?;
    show.event(Map::new().with("event", "stopped"), "stopped")
}

/// The calendar's log and its witnesses, as the arguments have them.
fn calendar_log(args: &Args) -> Result<LogConfig, Failure> {
    let witness = |pair: &[String]| {
        let parsed = witnesses::parse(&pair[0], &pair[1]);
        let (prefix, key) = parsed.map_err(|e| Failure::Input(format!("--witness: {e}")))?;
        Ok(LogWitness::http(key, prefix))
    };
    let pairs = args.witness.chunks_exact(2);
    let witnesses = pairs.map(witness).collect::<Result<Vec<_>, Failure>>()?;
    Ok(LogConfig {
        origin: args.origin.clone(),
        quorum: witnesses::quorum(witnesses.len(), args.quorum),
        witnesses,
    })
}

/// Shows rounds and publications until somebody or something stops.
async fn follow(
    authority: &AuthorityHandle,
    show: &Show<'_>,
    mut interrupted: Pin<&mut impl Future<Output = ()>>,
) -> Result<(), Failure> {
    let mut rounds = authority.rounds();
    let mut publications = authority.publications_file();
    loop {
        tokio::select! {
            () = &mut interrupted => return Ok(()),
            stopped = authority.stopped() => return stopped.map_err(Failure::service),
            Ok(()) = rounds.changed() => {}
        }
        let report = *rounds.borrow_and_update();
        show.round(report)?;
        let newest = authority.publications_file();
        if !Arc::ptr_eq(&publications, &newest) {
            publications = newest;
            show.publication(&publications)?;
        }
    }
}

/// Makes the data folder, unless there is one.
async fn prepare(dir: &Path) -> Result<(), Failure> {
    let (dir, genesis) = (dir.to_owned(), clock::now());
    let subject = Subject {
        email: "publications@dev.invalid".to_owned(),
        common_name: "Pitser development authority".to_owned(),
        ..Subject::default()
    };
    // An RSA key takes about a second.
    let made = tokio::task::spawn_blocking(move || Authority::init(&dir, genesis, &subject)).await;
    match made.map_err(Failure::service)? {
        Ok(())
        | Err(AuthorityError::Identity(IdentityError::Exists { .. }))
        | Err(AuthorityError::Calendar(CalendarError::Exists { .. })) => Ok(()),
        Err(error) => Err(Failure::service(error)),
    }
}

fn not_started(error: AuthorityError) -> Failure {
    match &error {
        AuthorityError::Bind {
            protocol, source, ..
        } if source.kind() == io::ErrorKind::AddrInUse => {
            let option = if *protocol == "TCP" {
                "--listen"
            } else {
                "--http"
            };
            Failure::Service(format!(
                "{error}, for instance with {option} 127.0.0.1:0, which picks a free one"
            ))
        }
        AuthorityError::Users(_) | AuthorityError::Log(LogError::Config(_)) => {
            Failure::input(error)
        }
        _ => Failure::service(error),
    }
}

/// What is told while it runs: one JSON object a line, or text.
struct Show<'a> {
    args: &'a Args,
    /// Whether rounds are worth showing.
    live: bool,
}

impl Show<'_> {
    fn greeting(&self, authority: &AuthorityHandle, dir: &Path) -> Result<(), Failure> {
        let tcp = authority.tcp_address();
        let http = authority.http_address().unwrap_or(self.args.http);
        let certificate = dir.join("certificate.pem").display().to_string();
        let publications = format!("http://{http}/publications.bin");
        let constraint = authority.constraint();
        let log = format!("http://{http}/log");
        let log_key = authority.log_key().to_string();
        let genesis = authority.calendar().genesis().to_string();
        let service = self.service_uri(tcp);
        let facts = Map::new()
            .with("event", "listening")
            .with("tcp", tcp.to_string())
            .with("http", http.to_string())
            .with("service", format!("ksi+tcp://{tcp}"))
            .with("user", &self.args.user)
            .with("publications", &publications)
            .with("certificate", &certificate)
            .with("constraint", constraint)
            .with("calendar_log", &log)
            .with("calendar_log_key", &log_key)
            .with("calendar_genesis", &genesis)
            .with("fleet_key", authority.fleet_key().to_string())
            .with("dir", dir.display().to_string());
        let quoted = shell_quoted(&certificate);
        let trust = format!("-P {publications} --trust {quoted} --constraint {constraint}");
        let every = match self.args.publish_every {
            0 => "never".to_owned(),
            seconds => format!("every {seconds} s"),
        };
        let text = format!(
            "sign, extend   ksi+tcp://{tcp}, http://{http}\n\
             publications   {publications}, {every}\n\
             trust          {certificate}, {constraint}\n\
             calendar log   {log}, begins {genesis}, {log_key}\n\
             \n\
             pitser sign FILE -S {service}\n\
             pitser verify FILE.ksig --document FILE {trust}\n\
             pitser extend FILE.ksig -X {service} {trust}\n\
             pitser verify FILE.ext.ksig --document FILE {trust}\n\
             \n\
             Ctrl-C stops it{}",
            if self.args.dir.is_some() {
                "; the next run goes on with this folder"
            } else {
                "; nothing is kept"
            }
        );
        self.event(facts, &text)
    }

    /// The address with the usual credentials, which are no secret; others are
    /// for the environment.
    fn service_uri(&self, tcp: SocketAddr) -> String {
        if (self.args.user.as_str(), self.args.key.expose()) == ("anon", "anon") {
            format!("ksi+tcp://anon:anon@{tcp}")
        } else {
            format!("ksi+tcp://{tcp} --user {}", shell_quoted(&self.args.user))
        }
    }

    fn round(&self, RoundReport { second, requests }: RoundReport) -> Result<(), Failure> {
        if !self.live || requests == 0 {
            return Ok(());
        }
        let facts = Map::new()
            .with("event", "round")
            .with("second", second)
            .with("requests", requests);
        self.event(facts, &format!("{second}  {requests} signed"))
    }

    fn publication(&self, file: &[u8]) -> Result<(), Failure> {
        let file = PublicationsFile::decode(file).map_err(Failure::service)?;
        let Some(PublicationData { time, .. }) = file.latest().map(|record| record.data) else {
            return Ok(());
        };
        let code = file
            .latest()
            .map(|record| record.data.to_code())
            .unwrap_or_default();
        let facts = Map::new()
            .with("event", "published")
            .with("second", time)
            .with("code", &code);
        self.event(facts, &format!("{time}  published {code}"))
    }

    fn event(&self, facts: Map, text: &str) -> Result<(), Failure> {
        if self.args.form.json {
            output::print_json(&facts)
        } else {
            output::print(&format!("{text}\n"))
        }
    }
}

/// Quoted if a shell would take it apart.
fn shell_quoted(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:@=".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_can_be_pasted() {
        assert_eq!(shell_quoted("/tmp/a-b.pem"), "/tmp/a-b.pem");
        assert_eq!(shell_quoted("/tmp/a b"), "'/tmp/a b'");
        assert_eq!(shell_quoted("it's"), "'it'\\''s'");
    }
}
