//! `pitser authority run`: the service, until it is stopped.

use std::ops::Deref;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use pitser_authority::{
    Aggregator, AggregatorHandle, Authority, AuthorityError, AuthorityHandle, Micros, Running,
    Stopped,
};
use serde_json::{Value, json};
use tokio::time::MissedTickBehavior;

use super::config::{Config, Place};
use crate::notify::Supervisor;
use crate::ntp::Source;
use crate::outcome::{Exit, Failure, Outcome};
use crate::output::{Form, plural, print, print_json};
use crate::signals::{Hangups, stop_requested};
use crate::{clock, ntp};

/// Arguments of `pitser authority run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    form: Form,
}

/// Runs the command until it is interrupted.
pub(super) async fn run(args: Args) -> Outcome {
    let mut interrupted = pin!(stop_requested());
    let mut hangups = Hangups::catch().map_err(Failure::service)?;
    // Signals are caught before the first line is printed: whoever reads it may send some.
    tokio::select! {
        biased;
        () = &mut interrupted => return Ok(Exit::Intact),
        () = std::future::ready(()) => {}
    }
    let config = args.place.read()?;
    let mut service = config.service()?;
    service.users = config.enabled_users()?;
    let users = service.users.len();
    let now = || Micros(clock::micros());
    let authority = match config.parent()? {
        None => {
            let started = Authority::start(service, now).await;
            started.map(|authority| Started::Authority(Box::new(authority)))
        }
        Some(parent) => {
            let data = config.data();
            std::fs::create_dir_all(&data)
                .map_err(|e| Failure::Service(format!("cannot create {}: {e}", data.display())))?;
            let started = Aggregator::start(service, parent, now).await;
            started.map(|aggregator| Started::Aggregator(Box::new(aggregator)))
        }
    };
    let authority = authority.map_err(not_started)?;
    let supervisor = Supervisor::from_environment();
    let show = Show(args.form);
    show.listening(&authority, &config, users)?;
    supervisor.ready();
    let watch = Watch {
        authority: &authority,
        config: &config,
        supervisor: &supervisor,
        show,
    };
    let outcome = tokio::select! {
        () = &mut interrupted => Ok(()),
        outcome = watch.over(&mut hangups) => outcome,
        () = follow_clock(&authority, config.time_source()) => Ok(()),
    };
    supervisor.stopping();
    let stopped = authority.shutdown().await;
    outcome?;
    stopped.map_err(Failure::service)?;
    show.event(json!({ "event": "stopped" }), "stopped")?;
    Ok(Exit::Intact)
}

/// What runs: with a calendar, or below somebody who has one.
enum Started {
    Authority(Box<AuthorityHandle>),
    Aggregator(Box<AggregatorHandle>),
}

impl Deref for Started {
    type Target = Running;

    fn deref(&self) -> &Running {
        match self {
            Self::Authority(authority) => authority,
            Self::Aggregator(aggregator) => aggregator,
        }
    }
}

impl Started {
    async fn shutdown(self) -> Result<(), Arc<Stopped>> {
        match self {
            Self::Authority(authority) => authority.shutdown().await,
            Self::Aggregator(aggregator) => aggregator.shutdown().await,
        }
    }
}

fn not_started(error: AuthorityError) -> Failure {
    match &error {
        AuthorityError::Users(_) | AuthorityError::Tls(_) => Failure::input(error),
        _ => Failure::service(error),
    }
}

/// What goes on beside signing.
struct Watch<'a> {
    authority: &'a Running,
    config: &'a Config,
    supervisor: &'a Supervisor,
    show: Show,
}

impl Watch<'_> {
    /// Until rounds end for a reason that a restart may mend.
    async fn over(&self, hangups: &mut Hangups) -> Result<(), Failure> {
        let mut rounds = self.authority.rounds();
        loop {
            tokio::select! {
                stopped = self.authority.stopped() => {
                    let Err(reason) = stopped else { return Ok(()) };
                    return self.stopped(&reason, hangups).await;
                }
                // A supervisor hears of every round: if they hang, it restarts us.
                Ok(()) = rounds.changed() => self.supervisor.alive(),
                () = hangups.next() => self.reload().await?,
            }
        }
    }

    /// Rounds have ended. After a fault of the clock only a person can say which
    /// time is right: a restart by a supervisor would sign with whatever it shows,
    /// so this goes on extending, and says that it does not sign.
    async fn stopped(&self, reason: &Stopped, hangups: &mut Hangups) -> Result<(), Failure> {
        if !matches!(reason, Stopped::Clock(_)) {
            return Err(Failure::service(reason));
        }
        let text = reason.to_string();
        self.show
            .event(json!({ "event": "not signing", "reason": text }), &text)?;
        let mut every = tokio::time::interval(Duration::from_secs(1));
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = every.tick() => self.supervisor.alive(),
                () = hangups.next() => self.reload().await?,
            }
        }
    }

    /// Reads users and certificate again. What cannot be read leaves the old one.
    async fn reload(&self) -> Result<(), Failure> {
        let users = tokio::task::block_in_place(|| self.config.enabled_users());
        let users = users.and_then(|users| {
            self.authority
                .replace_users(&users)
                .map_err(Failure::input)?;
            Ok(users.len())
        });
        let tls = tokio::task::block_in_place(|| self.authority.reload_tls());
        // Each for itself: who is no user any more is out, whatever the certificate is.
        let (mut done, mut reasons, mut count) = (Vec::new(), Vec::new(), None);
        match users {
            Ok(users) => {
                done.push(plural(users, "user"));
                count = Some(users);
            }
            Err(e) => reasons.push(format!("the users stay as they were: {e}")),
        }
        match tls {
            Ok(true) => done.push("the certificate".to_owned()),
            Ok(false) => {}
            Err(e) => reasons.push(format!("the certificate stays as it was: {e}")),
        }
        let (done, reason) = (done.join(" and "), reasons.join(". "));
        let (event, text) = match (done.is_empty(), reason.is_empty()) {
            (_, true) => ("reloaded", format!("reloaded, {done}")),
            (true, false) => ("not reloaded", format!("not reloaded: {reason}")),
            (false, false) => ("partly reloaded", format!("reloaded, {done}; {reason}")),
        };
        let mut told = json!({ "event": event, "users": count });
        if !reason.is_empty() {
            tracing::error!(reason, "{event}");
            told["reason"] = reason.into();
        }
        self.show.event(told, &text)
    }
}

/// Asks once a minute whether the clock follows a time source. Never completes.
async fn follow_clock(authority: &Running, source: Source) {
    let mut every = tokio::time::interval(Duration::from_secs(60));
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut before, is_asked) = (None, source != Source::None);
    loop {
        every.tick().await;
        let (source, now) = (source.clone(), clock::now());
        let state = tokio::task::spawn_blocking(move || ntp::synchronised(&source, now)).await;
        let state = state.unwrap_or_default();
        authority.metrics().set_clock_synchronised(state);
        if before != Some(state) {
            match state {
                Some(true) => tracing::info!("the clock follows a time source"),
                Some(false) => {
                    tracing::warn!("the clock does not follow a time source; run NTP");
                }
                None if is_asked => tracing::warn!(
                    "neither systemd-timesyncd nor chrony tells whether the clock follows a time source"
                ),
                None => {}
            }
            before = Some(state);
        }
    }
}

/// What is told while it runs: one JSON object a line, or text.
#[derive(Clone, Copy)]
struct Show(Form);

impl Show {
    fn listening(self, started: &Started, config: &Config, users: usize) -> Result<(), Failure> {
        let authority: &Running = started;
        let (log, fleet) = match started {
            Started::Authority(authority) => (
                Some(authority.log_key().to_string()),
                Some(authority.fleet_key().to_string()),
            ),
            Started::Aggregator(_) => (None, None),
        };
        let url = |scheme: &str, address: Option<std::net::SocketAddr>| {
            address.map(|address| format!("{scheme}://{address}"))
        };
        let addresses = [
            ("tcp", url("ksi+tcp", Some(authority.tcp_address()))),
            ("http", url("http", authority.http_address())),
            ("https", url("https", authority.https_address())),
            ("monitor", url("http", authority.monitor_address())),
            ("admin", Some(config.admin().display().to_string())),
            ("log", log),
            ("fleet", fleet),
        ];
        let mut facts = json!({ "event": "listening", "users": users });
        let mut text = String::new();
        for (name, address) in addresses {
            if let Some(address) = address {
                text += &format!("{name:<8} {address}\n");
                facts[name] = address.into();
            }
        }
        text += &format!("users    {users}");
        self.event(facts, &text)?;
        if users == 0 {
            tracing::warn!("nobody may ask yet: `pitser authority user add`, then SIGHUP");
        }
        Ok(())
    }

    fn event(self, facts: Value, text: &str) -> Result<(), Failure> {
        if self.0.json {
            print_json(&facts)
        } else {
            print(&format!("{}\n", crate::output::clean(text)))
        }
    }
}
