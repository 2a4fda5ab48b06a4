//! `pitser guard`: prepares databases, guards them, says how they are.

use super::{accept, attend};
use crate::clock;
use crate::config::{Config, EXAMPLE};
use crate::listener;
use crate::notify::Supervisor;
use crate::outcome::{Exit, Failure, Outcome};
use crate::output::{self, Progress, print, print_json};
use crate::signals;
use crate::trust::instant;
use pitser_authority::{Authority, AuthorityHandle, Config as AuthorityConfig, Micros, User};
use pitser_client::{Client, Endpoint, Options};
use pitser_evidence::Code;
use pitser_guardian::acceptance;
use pitser_guardian::alert::{Alerts, Pace, Surroundings};
use pitser_guardian::approver::Refused;
use pitser_guardian::audit::Desk;
use pitser_guardian::config::Source;
use pitser_guardian::erasure::{Answer, Asked};
use pitser_guardian::fleet::{RegisterError, register};
use pitser_guardian::init::{self, InitError, Plan};
use pitser_guardian::{
    Guardian, Handle, Parts, ScanSummary, SourceState, StartError, Status, SubmitError, Unopened,
};
use pitser_ksi::pki::Subject;
use pitser_ksi::time::Second;
use pitser_trail::Keys;
use pitser_trail::master::try_keeper;
use pitser_web::{Guarded, Taken};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Arguments of `pitser guard`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Prepare the databases and begin their trails; repeating it is harmless
    Init(Prepare),
    /// Guard until stopped
    Run(Common),
    /// How things stand, asked of the running guardian; exit code 1 while a finding is open, 2 while
    /// database or trail are out of reach
    Status(Asking),
    /// Compare every live row with its seal now; exit code 1 if one differs, 4 if a source or a
    /// table cannot be read
    Scan(Asking),
    /// Answer for findings that were looked into: they are open no more, and the trail says who says
    /// so and why
    Accept(accept::Args),
    /// Send a test message to each receiver of findings; exit code 4 if one does not take it
    TestAlert(Common),
    /// Take everything of ours out of the databases; the trails stay
    Uninstall(Prepare),
    /// Print a commented pitser.toml with every key
    Example,
}

#[derive(Debug, clap::Args)]
struct Common {
    /// Configuration file
    #[arg(long, default_value = "pitser.toml", env = "PITSER_CONFIG")]
    config: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Prepare {
    #[command(flatten)]
    common: Common,
    /// Print every statement, run none
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
struct Asking {
    #[command(flatten)]
    common: Common,
    /// Only this source
    #[arg(long)]
    source: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// How long a stopping guardian waits for the seal of its last block.
const LAST_SEAL: Duration = Duration::from_secs(10);

/// Runs the command.
pub(crate) async fn run(args: Args) -> Outcome {
    match args.command {
        Command::Init(args) => {
            // What is wrong with it is said before anything is done.
            let config = Config::read(&args.common.config)?;
            config.fleet()?;
            try_keepers(&config, &args)?;
            prepare(&args, init_one)?;
            register_all(&args).await
        }
        Command::Uninstall(args) => prepare(&args, uninstall_one),
        Command::Run(args) => guard(&Config::read(&args.config)?).await,
        Command::Status(args) => status(&args).await,
        Command::Scan(args) => scan(&args).await,
        Command::Accept(args) => accept::run(args).await,
        Command::TestAlert(args) => test_alert(&Config::read(&args.config)?).await,
        Command::Example => {
            print(EXAMPLE)?;
            Ok(Exit::Intact)
        }
    }
}

fn prepare(args: &Prepare, one: fn(&Config, &Source, bool) -> Result<(), Failure>) -> Outcome {
    let config = Config::read(&args.common.config)?;
    for source in &config.sources {
        one(&config, source, args.dry_run)?;
    }
    Ok(Exit::Intact)
}

/// Has the token of each trail that is new do what it will have to.
fn try_keepers(config: &Config, args: &Prepare) -> Result<(), Failure> {
    let layouts = config.sources.iter().map(|it| config.tuning().layout(it));
    for layout in layouts.filter(|it| !args.dry_run && !it.has_trail()) {
        try_keeper(&layout).map_err(Failure::service)?;
    }
    Ok(())
}

/// Registers the trails with the authority's fleet, if one is configured.
async fn register_all(args: &Prepare) -> Outcome {
    let config = Config::read(&args.common.config)?;
    let Some(fleet) = config.fleet()?.filter(|_| !args.dry_run) else {
        return Ok(Exit::Intact);
    };
    let tuning = config.tuning();
    let mut outcome = Ok(Exit::Intact);
    for source in &config.sources {
        let layout = tuning.layout(source);
        match register(&layout, &fleet, &clock::shared()).await {
            Ok(entry) => print(&format!("fleet    {}, entry {entry}\n", source.name))?,
            Err(RegisterError::Fleet(error)) if error.is_passing() => {
                let line = format!(
                    "note     {}: not registered with the fleet yet: {error}. `pitser guard run` tries again\n",
                    source.name
                );
                print(&output::clean(&line))?;
            }
            Err(RegisterError::Fleet(error)) => {
                // The others are registered all the same.
                outcome = Err(Failure::Tampered(format!(
                    "{} {error}. Put the old trail back into {}, from a copy if need be; whoever reads the \
                     fleet's log sees that this one was begun beside it. A database that is new takes another \
                     source name",
                    Code::TrailForked,
                    layout.dir().display()
                )));
            }
            Err(error) => return Err(Failure::service(error)),
        }
    }
    outcome
}

fn init_one(config: &Config, source: &Source, dry_run: bool) -> Result<(), Failure> {
    let tuning = config.tuning();
    if dry_run {
        let plan = init::plan(source, &tuning).map_err(refused)?;
        for statement in &plan.statements {
            print(&format!("{statement};\n\n"))?;
        }
        notes(&plan, "-- note:")?;
        // What the trail will say from its first line on, so that nobody claims more.
        for item in &plan.uncovered {
            print(&output::clean(&format!("-- not covered: {item}\n")))?;
        }
        let trail = if plan.new_trail {
            "a new trail would begin"
        } else {
            "its trail goes on"
        };
        return print(&format!(
            "-- {}: {} tables, {} statements, {trail}\n",
            source.name,
            plan.tables.len(),
            plan.statements.len()
        ));
    }
    let mut bar = Progress::new("rows of the baseline");
    let plan = init::install(source, &tuning, &clock::shared(), &mut |done| {
        bar.set_of(done.rows, done.about)
    })
    .map_err(refused)?;
    bar.finish();
    let nothing = match plan.statements.is_empty() && !plan.new_trail {
        true => ": everything was in place",
        false => "",
    };
    print(&format!(
        "{}: {} tables guarded, {} statements run{nothing}\ntrail    {}\ngenesis  {}\n",
        source.name,
        plan.tables.len(),
        plan.statements.len(),
        tuning.origin(source),
        plan.genesis.as_deref().unwrap_or_default(),
    ))?;
    if let Ok(keys) = Keys::open(&tuning.layout(source)) {
        // What witnesses are given: pitser witness add-log.
        print(&format!("log key  {}\n", keys.log().verifier()))?;
    }
    if plan.rows > 0 {
        print(&format!("baseline {} rows\n", plan.rows))?;
    }
    notes(&plan, "note    ")
}

/// What an administrator has to know or do besides.
fn notes(plan: &Plan, label: &str) -> Result<(), Failure> {
    for note in &plan.notes {
        print(&output::clean(&format!("{label} {note}\n")))?;
    }
    Ok(())
}

fn uninstall_one(_: &Config, source: &Source, dry_run: bool) -> Result<(), Failure> {
    let statements = init::uninstall(source, dry_run).map_err(refused)?;
    if statements.is_empty() {
        return print(&format!(
            "{}: nothing of ours is in the database; the trail stays where it is\n",
            source.name
        ));
    }
    for statement in statements.iter().filter(|_| dry_run) {
        print(&format!("{statement};\n"))?;
    }
    let done = if dry_run { "would be" } else { "were" };
    print(&format!(
        "{}: {} objects {done} removed; the trail stays where it is\n",
        source.name,
        statements.len()
    ))
}

async fn guard(config: &Config) -> Outcome {
    let mut stop = pin!(signals::stop_requested());
    // Signals are caught before anything is started or said: whoever reads
    // that we guard may stop us at once.
    tokio::select! {
        biased;
        () = &mut stop => return Ok(Exit::Intact),
        () = std::future::ready(()) => {}
    }
    let receivers = config.alerts()?;
    for source in &config.sources {
        if !config.tuning().layout(source).has_trail() {
            return Err(Failure::input(InitError::NotInitialised(
                source.name.clone(),
            )));
        }
    }
    let embedded = match config.authority.is_embedded() {
        true => Some(embedded_authority(config).await?),
        false => None,
    };
    // Not connected yet: while the authority is down, blocks wait for their seals.
    let client = match &embedded {
        Some(authority) => own(authority.tcp_address())?,
        None => config.aggregator()?,
    };
    let handles = start_all(config, &client)?;
    let shown: Vec<_> = handles.iter().map(Handle::watch).collect();
    let around = Surroundings {
        data: config.guard.data.clone(),
        clock: clock::shared(),
        pace: Pace::default(),
    };
    let alerts = Alerts::start(&receivers, &shown, &around).map_err(Failure::input)?;
    let overseen = |handle: &Handle| Overseen {
        handle: handle.clone(),
        shown: alerts.watch(handle.watch()),
    };
    let overseen = handles.iter().map(overseen).collect();
    let listen: SocketAddr = config
        .guard
        .listen
        .parse()
        .map_err(|e| Failure::Input(format!("guard.listen {:?}: {e}", config.guard.listen)))?;
    let web = pitser_web::Server::start(listen, overseen).map_err(Failure::service)?;
    if !web.address().ip().is_loopback() {
        tracing::warn!(
            "{} can be reached from other machines, without a login: put a proxy that asks for one in front",
            web.address()
        );
    }
    print(&format!(
        "guarding {}; status page http://{}/\n",
        guarded(&handles),
        web.address()
    ))?;
    let supervisor = Supervisor::from_environment();
    supervisor.ready();
    tokio::select! {
        () = stop => {}
        () = attend::attend(&supervisor, &handles) => {}
    }
    supervisor.stopping();
    for handle in handles {
        // The last block gets its seal if the authority answers in time; if
        // not, it is asked for again at the next start.
        handle.stop_sealed(LAST_SEAL).await;
    }
    alerts.stop().await;
    web.stop().await;
    if let Some(authority) = embedded {
        authority.shutdown().await.map_err(Failure::service)?;
    }
    Ok(Exit::Intact)
}

/// `a, b, and c as soon as it can be opened`
fn guarded(handles: &[Handle]) -> String {
    let (mut open, mut later) = (Vec::new(), Vec::new());
    for status in handles.iter().map(Handle::status) {
        match status.state {
            SourceState::Starting | SourceState::Baseline | SourceState::Guarding => {
                open.push(status.name);
            }
            _ => later.push(status.name),
        }
    }
    let (it, later) = match later.len() {
        1 => ("it", later.join(", ")),
        _ => ("they", later.join(", ")),
    };
    match (open.is_empty(), later.is_empty()) {
        (_, true) => open.join(", "),
        (true, _) => format!("{later} as soon as {it} can be opened"),
        (false, false) => format!(
            "{}, and {later} as soon as {it} can be opened",
            open.join(", ")
        ),
    }
}

/// A client of the authority in this process.
fn own(address: SocketAddr) -> Result<Client, Failure> {
    let uri = format!("ksi+tcp://guardian:guardian@{address}");
    let endpoint = Endpoint::parse(&uri).map_err(Failure::service)?;
    Ok(Client::new(endpoint, Options::default()))
}

/// A guardian whose status tells of its alerts too.
#[derive(Clone)]
struct Overseen {
    handle: Handle,
    shown: watch::Receiver<Status>,
}

impl Guarded for Overseen {
    fn at_one_step(&self) -> Option<Duration> {
        self.handle.at_one_step()
    }

    fn watch(&self) -> watch::Receiver<Status> {
        self.shown.clone()
    }

    async fn submit(&self, raw: Vec<u8>) -> Result<Taken, SubmitError> {
        Guarded::submit(&self.handle, raw).await
    }

    async fn scan(&self) -> Result<ScanSummary, String> {
        Guarded::scan(&self.handle).await
    }

    async fn erasure(&self, asked: Asked) -> Result<Answer, Refused> {
        Guarded::erasure(&self.handle, asked).await
    }

    async fn accept(&self, asked: acceptance::Asked) -> Result<acceptance::Answer, Refused> {
        Guarded::accept(&self.handle, asked).await
    }

    async fn accept_of(&self, asked: acceptance::AskedOf) -> Result<acceptance::Portion, Refused> {
        Guarded::accept_of(&self.handle, asked).await
    }

    fn desk(&self) -> Option<Arc<Desk>> {
        Guarded::desk(&self.handle)
    }
}

/// Starts a guardian of each source. One that cannot guard now is tried again, as long as
/// another one can; a mistake of the configuration ends them all.
fn start_all(config: &Config, client: &Client) -> Result<Vec<Handle>, Failure> {
    let mut started = Vec::new();
    for source in &config.sources {
        let parts = Parts {
            source: source.clone(),
            tuning: config.tuning(),
            client: Some(client.clone()),
            witnesses: config.witnesses()?,
            fleet: config.fleet()?,
            clock: clock::shared(),
        };
        match Guardian::open(parts) {
            Err(unopened) if unopened.error().is_configuration() => {
                return Err(not_started(unopened.into_error()));
            }
            opened => started.push(opened),
        }
    }
    let is_any = started.iter().any(Result::is_ok);
    if !is_any && started.len() > 1 {
        // The end tells of the first of them.
        for (source, opened) in config.sources.iter().zip(&started) {
            if let Err(unopened) = opened {
                let (source, error) = (&source.name, unopened.error().words());
                tracing::error!(source, error, "it cannot be opened");
            }
        }
    }
    let handles = started.into_iter().map(|opened| match opened {
        Err(unopened) if is_any => unopened.try_again(),
        opened => opened.map_err(Unopened::into_error),
    });
    handles.collect::<Result<_, _>>().map_err(not_started)
}

fn not_started(error: StartError) -> Failure {
    let words = error.words();
    match error {
        StartError::Init(InitError::Trail(error)) | StartError::Trail(error) => {
            Failure::opening(error)
        }
        StartError::Init(error) if error.is_configuration() => Failure::Input(words),
        _ => Failure::Service(words),
    }
}

/// Whose move it is: the configuration's, the trail's, or a service's.
fn refused(error: InitError) -> Failure {
    match error {
        InitError::Trail(error) => Failure::opening(error),
        error if error.is_configuration() => Failure::input(error),
        other => Failure::service(other),
    }
}

async fn embedded_authority(config: &Config) -> Result<AuthorityHandle, Failure> {
    let dir = config.guard.data.join("authority");
    if !dir.exists() {
        let subject = Subject {
            organization: config.guard.organisation.clone(),
            common_name: "embedded authority".into(),
            email: format!("publications@{}", config.guard.organisation),
            ..Subject::default()
        };
        Authority::init(&dir, clock::now(), &subject).map_err(Failure::service)?;
    }
    let authority =
        AuthorityConfig::new(&dir).with_user(User::new("guardian", b"guardian".as_slice()));
    Authority::start(authority, || Micros(clock::micros()))
        .await
        .map_err(Failure::service)
}

async fn status(args: &Asking) -> Outcome {
    let config = Config::read(&args.common.config)?;
    let wanted = asked(&config, args)?;
    let mut answer = ask(&config, "GET", "/api/status").await?;
    let Value::Array(told) = answer["sources"].take() else {
        let address = &config.guard.listen;
        return Err(Failure::Service(format!(
            "what answers at {address} is no guardian: correct guard.listen"
        )));
    };
    let tuning = config.tuning();
    let sources: Vec<Value> = wanted
        .map(|source| {
            let origin = tuning.origin(source);
            let mut told = told.iter();
            let told = told
                .find(|it| it["name"] == source.name.as_str() && it["origin"] == origin.as_str());
            let unknown = || json!({ "name": source.name, "origin": origin, "state": UNGUARDED });
            told.cloned().unwrap_or_else(unknown)
        })
        .collect();
    let open: u64 = sources.iter().map(open_findings).sum();
    if args.json {
        print_json(&json!({ "sources": sources }))?;
    } else {
        for source in &sources {
            match source["state"] == UNGUARDED {
                true => print(&not_guarded(source, &config.guard.listen))?,
                false => print(&describe(source))?,
            }
        }
    }
    // Nothing is found where nobody can look.
    let blind = |source: &Value| {
        let state = source["state"].as_str().unwrap_or_default();
        [
            "database-unavailable",
            "trail-unavailable",
            "damaged",
            "stuck",
            "stopped",
            UNGUARDED,
        ]
        .contains(&state)
    };
    Ok(match open {
        0 if sources.iter().any(blind) => Exit::Unconfirmed,
        0 => Exit::Intact,
        _ => Exit::Broken,
    })
}

async fn scan(args: &Asking) -> Outcome {
    let config = Config::read(&args.common.config)?;
    let mut open = 0;
    let mut goes_on = Vec::new();
    let mut unread = Vec::new();
    let mut reports = Vec::new();
    let mut failed = None;
    let sources: Vec<&Source> = asked(&config, args)?.collect();
    for source in &sources {
        let report = ask(&config, "POST", &format!("/api/scan/{}", source.name)).await;
        let report = match report {
            Ok(report) => report,
            // What the others show counts all the same.
            Err(failure) => {
                reports.push(json!({ "name": source.name, "error": failure.to_string() }));
                if !args.json && sources.len() > 1 {
                    print(&line(&format!("{}: not compared: {failure}", source.name)))?;
                }
                failed.get_or_insert(failure);
                continue;
            }
        };
        if report["running"] == true {
            goes_on.push(source.name.as_str());
            reports.push(json!({ "name": source.name, "running": true }));
            if !args.json {
                print(&format!(
                    "{}: the scan goes on; `pitser guard status` tells its outcome\n",
                    source.name
                ))?;
            }
            continue;
        }
        let more = report["more"].as_u64().unwrap_or(0);
        open += findings(&report).count() as u64 + more;
        unread.extend(unread_tables(&report));
        if !args.json {
            print(&format!(
                "{}: {} rows compared\n",
                source.name, report["rows"]
            ))?;
            for finding in findings(&report) {
                print(&show_finding(finding))?;
            }
            if more > 0 {
                print(&format!("  and {more} more\n"))?;
            }
            for table in unread_tables(&report) {
                print(&line(&format!("  not compared: {table}")))?;
            }
        }
        reports.push(json!({
            "name": source.name, "rows": report["rows"], "findings": report["findings"],
            "more": more, "unread": report["unread"],
        }));
    }
    if args.json {
        print_json(&json!({ "sources": reports }))?;
    }
    if let Some(failure) = failed.filter(|_| open == 0) {
        return Err(failure);
    }
    match unread.is_empty() {
        _ if open > 0 => Ok(Exit::Broken),
        true if !goes_on.is_empty() => Ok(Exit::Unconfirmed),
        true => Ok(Exit::Intact),
        false => Err(Failure::Service(format!(
            "not all rows could be compared: {}",
            unread.join(". ")
        ))),
    }
}

async fn test_alert(config: &Config) -> Outcome {
    let receivers = config.alerts()?;
    if receivers.is_empty() {
        return Err(Failure::Input(
            "nobody is told of findings: configure an [[alert]], or guard.webhook".into(),
        ));
    }
    let mut failed = 0;
    for receiver in &receivers {
        let answer = receiver.test(clock::micros(), Pace::default()).await;
        failed += usize::from(answer.is_err());
        let answer = answer.unwrap_or_else(|why| format!("not delivered: {why}"));
        let line = format!("{}  {answer}\n", receiver.label());
        print(&output::clean(&line))?;
    }
    match failed {
        0 => Ok(Exit::Intact),
        _ => Err(Failure::Service(format!(
            "{failed} of {} did not take the test message",
            output::plural(receivers.len() as u64, "receiver")
        ))),
    }
}

/// The sources that are asked about; a name that none has is refused.
fn asked<'c>(
    config: &'c Config,
    args: &Asking,
) -> Result<impl Iterator<Item = &'c Source>, Failure> {
    let only = args.source.as_deref();
    let only = only.map(|name| config.source(Some(name))).transpose()?;
    let is_asked = move |source: &&Source| only.is_none_or(|only| only.name == source.name);
    Ok(config.sources.iter().filter(is_asked))
}

/// State of a source of the configuration that the guardian who answers does not have.
const UNGUARDED: &str = "not-guarded";

fn not_guarded(source: &Value, address: &str) -> String {
    let text = |key: &str| source[key].as_str().unwrap_or_default();
    format!(
        "{} ({})\n  state      not guarded by who answers at {address}: start `pitser guard run` with this \
         configuration\n",
        text("name"),
        text("origin"),
    )
}

fn findings(source: &Value) -> impl Iterator<Item = &Value> {
    source["findings"].as_array().into_iter().flatten()
}

/// Of each code and table that not all are listed of: how many more, and where they are.
fn more_findings(source: &Value) -> impl Iterator<Item = &Value> {
    source["more_findings"].as_array().into_iter().flatten()
}

fn open_findings(source: &Value) -> u64 {
    let listed = findings(source).filter(|f| f["open"] == true).count();
    let more = more_findings(source).filter_map(|more| more["open"].as_u64());
    listed as u64 + more.sum::<u64>()
}

/// Tables that a scan could not read, and why.
fn unread_tables(report: &Value) -> impl Iterator<Item = String> {
    let tables = report["unread"].as_array().into_iter().flatten();
    tables.map(|unread| {
        let text = |key: &str| unread[key].as_str().unwrap_or_default();
        format!("{}: {}", text("table"), text("why"))
    })
}

fn describe(source: &Value) -> String {
    let text = |key: &str| source[key].as_str().unwrap_or("never").to_owned();
    let mut out = format!(
        "{} ({})\n  state      {}\n  position   {}\n  events     {} in {} blocks, {} unsealed\n  sealed     {}\n  verified   {} ({} rows)\n",
        text("name"),
        text("origin"),
        text("state"),
        text("position"),
        source["events"],
        source["blocks"],
        source["unsealed"],
        text("sealed_up_to"),
        text("verified_up_to"),
        source["rows_verified"],
    );
    out += &describe_witnesses(source, clock::now());
    out += &describe_fleet(&source["fleet"]);
    if let Some(trouble) = source["trouble"].as_str() {
        out += &line(&format!("  trouble    {trouble}"));
    }
    if let Some(rows) = source["baseline"]["rows"].as_u64() {
        let about = source["baseline"]["about"].as_u64();
        let about = about.map_or(String::new(), |about| format!(" of about {about}"));
        out += &format!("  baseline   {rows}{about} rows read\n");
    }
    for alert in source["alerts"].as_array().into_iter().flatten() {
        out += &line(&format!(
            "  alerts     {} delivered, {} waiting: {}",
            alert["delivered"],
            alert["waiting"],
            alert["endpoint"].as_str().unwrap_or_default()
        ));
    }
    for table in unread_tables(source) {
        out += &line(&format!("  not compared {table}"));
    }
    for finding in findings(source) {
        out += &show_finding(finding);
    }
    for more in more_findings(source) {
        out += &show_more(more);
    }
    out
}

/// `  and 299500 more ACT-01 public.entry, in lines 12 to 598998; 3 earlier ones`
fn show_more(more: &Value) -> String {
    let text = |key: &str| more[key].as_str().unwrap_or_default();
    let number = |key: &str| more[key].as_u64().unwrap_or(0);
    let (code, table) = (text("code"), text("table"));
    let lines = (number("first_line"), number("last_line"));
    let told = match (number("open"), number("earlier")) {
        (0, earlier) => format!("  and {earlier} earlier {code} {table}"),
        (open, earlier) => {
            let earlier = match earlier {
                0 => String::new(),
                _ => format!("; {earlier} earlier ones"),
            };
            format!(
                "  and {open} more {code} {table}, in lines {} to {}{earlier}",
                lines.0, lines.1
            )
        }
    };
    line(&told)
}

/// What the authority's fleet has of the trail.
fn describe_fleet(fleet: &Value) -> String {
    if fleet.is_null() {
        return String::new();
    }
    let mut told = match fleet["entry"].as_u64() {
        Some(entry) => format!("  fleet      entry {entry}"),
        None => "  fleet      not registered yet".to_owned(),
    };
    if let Some(at) = fleet["sent_at"].as_str() {
        told += &format!(", {} blocks sent {at}", fleet["size"]);
    }
    if let Some(trouble) = fleet["trouble"].as_str() {
        told += &format!("; now: {trouble}");
    }
    line(&told)
}

/// How much of the trail is cosigned, how old that is, and who did not.
fn describe_witnesses(source: &Value, now: Second) -> String {
    let age = |at: &Value| {
        let at = at.as_str().and_then(|at| instant(at).ok())?;
        Some(format!("{} s ago", now.since(at)))
    };
    let witnesses: Vec<&Value> = source["witnesses"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    let mut out = match age(&source["witnessed_at"]) {
        Some(age) => format!(
            "  witnessed  {} of {} blocks, {age}\n",
            source["witnessed"], source["blocks"]
        ),
        None if witnesses.is_empty() => "  witnessed  never: no [[witness]] is configured\n".into(),
        None => "  witnessed  not yet\n".into(),
    };
    for witness in witnesses {
        let state = match (witness["trouble"].as_str(), age(&witness["cosigned_at"])) {
            (Some(trouble), Some(age)) => {
                format!("{} blocks, {age}; now: {trouble}", witness["size"])
            }
            (Some(trouble), None) => trouble.to_owned(),
            (None, Some(age)) => format!("{} blocks, {age}", witness["size"]),
            (None, None) => "not asked yet".to_owned(),
        };
        let name = witness["name"].as_str().unwrap_or_default();
        out += &line(&format!("    {name}: {state}"));
    }
    out
}

/// A line of ours, whatever the database has put into it.
fn line(text: &str) -> String {
    format!("{}\n", output::one_line(text))
}

fn show_finding(finding: &Value) -> String {
    let text = |key: &str| finding[key].as_str().unwrap_or_default();
    let columns: Vec<&str> = finding["columns"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let place = match finding["line"].as_u64() {
        Some(line) => format!(" (line {line})"),
        None => String::new(),
    };
    let accepted = &finding["accepted"];
    let said = |key: &str| accepted[key].as_str().unwrap_or("?");
    let state = match (accepted.is_object(), finding["open"] == false) {
        (true, _) => format!(
            " (accepted {} by {}: {})",
            said("at"),
            said("by"),
            said("reason")
        ),
        (false, true) => " (no longer found)".to_owned(),
        (false, false) => String::new(),
    };
    line(&format!(
        "  {} {} {} {} [{}] {}{place}{state}",
        text("at"),
        text("code"),
        text("table"),
        text("key"),
        columns.join(", "),
        text("text"),
    ))
}

/// Asks the running guardian's API.
pub(super) async fn ask(config: &Config, method: &str, path: &str) -> Result<Value, Failure> {
    let address = &config.guard.listen;
    let Some((status, body)) = send(config, method, path, b"").await? else {
        return Err(Failure::Service(format!(
            "no guardian answers at {address}. Start it with `pitser guard run`, or correct guard.listen"
        )));
    };
    match (status, body["error"].as_str()) {
        (200 | 202, _) => Ok(body),
        (_, Some(why)) => Err(Failure::Service(format!(
            "the guardian at {address} cannot do it now: {why}"
        ))),
        (status, None) => Err(Failure::Service(format!(
            "the guardian at {address} answered {status}"
        ))),
    }
}

/// Sends a request to the running guardian's API: the status and the JSON of its
/// answer, or `None` if nobody listens there.
pub(super) async fn send(
    config: &Config,
    method: &str,
    path: &str,
    body: &[u8],
) -> Result<Option<(u16, Value)>, Failure> {
    let address = &config.guard.listen;
    let patience = match method {
        "GET" => PATIENCE,
        _ => PATIENCE_WORK,
    };
    let sent = tokio::time::timeout(patience, exchange(config, method, path, body));
    sent.await.unwrap_or_else(|_| {
        Err(Failure::Service(format!(
            "the guardian at {address} has not answered for {} s: what it was asked for may be done all the same",
            patience.as_secs()
        )))
    })
}

async fn exchange(
    config: &Config,
    method: &str,
    path: &str,
    body: &[u8],
) -> Result<Option<(u16, Value)>, Failure> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let address = &config.guard.listen;
    let silent =
        |e: std::io::Error| Failure::Service(format!("no guardian answers at {address}: {e}"));
    let mut stream = match tokio::net::TcpStream::connect(address).await {
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => return Ok(None),
        connected => connected.map_err(silent)?,
    };
    // What has a body shows a token.
    if !body.is_empty() {
        let (ours, theirs) = (stream.local_addr(), stream.peer_addr());
        let (ours, theirs) = (ours.map_err(silent)?, theirs.map_err(silent)?);
        listener::check(ours, theirs, &config.guard.data)?;
    }
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.map_err(silent)?;
    stream.write_all(body).await.map_err(silent)?;
    // It may have done by then what it was asked for.
    let ended = || {
        Failure::Service(format!(
            "the guardian at {address} ended before it had answered: what it was asked for may be done all the same"
        ))
    };
    let mut answer = Vec::new();
    let read = stream.take(LONGEST).read_to_end(&mut answer).await;
    read.map_err(|_| ended())?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(ended)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.unwrap_or(0);
    match serde_json::from_str(body) {
        Ok(json) => Ok(Some((status, json))),
        Err(_) if status != 200 => Ok(Some((status, json!({ "error": body.trim() })))),
        Err(e) => Err(Failure::Service(format!(
            "the guardian at {address} gave no JSON: {e}"
        ))),
    }
}

/// How long its state may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a scan, which it answers for after 20 s in any case, or a decision may take.
const PATIENCE_WORK: Duration = Duration::from_secs(120);
/// Longest answer, in bytes.
const LONGEST: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_of_the_database_looks_like_a_line_of_ours() {
        let key = "7\n  state      guarding\u{2028}";
        let finding =
            json!({ "code": "ROW-01", "table": "public.visit", "key": key, "text": "it differs" });
        let source = json!({ "name": "h", "findings": [finding], "trouble": key, "unread": [{ "table": key }] });
        let told = describe(&source);
        let states = told.lines().filter(|line| line.starts_with("  state "));
        assert_eq!(states.count(), 1, "{told}");
        assert!(
            told.contains("7\\n  state      guarding\\u{2028}"),
            "{told}"
        );
    }
}
