//! What operators are told of a running service.

use pitser_ksi::publication::PublicationData;
use serde_json::{Value, json};

use super::{Intake, Service};
use crate::handover::HandedIn;
use crate::log::{LogStatus, LogWitnessStatus};
use crate::metrics::State;
use crate::publications::{Due, PublicationsError, Published};
use crate::publicity::HookState;

impl Service {
    /// One line for a supervisor: `Err` if rounds have ended and only a restart helps.
    pub(crate) fn health(&self) -> Result<String, String> {
        match &*self.intake() {
            Intake::Open(_) => Ok(match self.past.newest() {
                Some(newest) => format!("ok, newest second {newest}\n"),
                None => "ok, no second yet\n".to_owned(),
            }),
            Intake::Following(reason) => Ok(format!("ok, following: {reason}\n")),
            Intake::Closed(reason) => Err(format!("{reason}\n")),
        }
    }

    /// One line for a load balancer: `Ok` while a request would be signed soon.
    pub(crate) fn ready(&self) -> Result<String, String> {
        self.health()?;
        if let Intake::Following(reason) = &*self.intake() {
            return Err(format!("following: {reason}\n"));
        }
        let now = self.clock.now().ended();
        match self.past.works(now) {
            Ok(()) => Ok("ready\n".to_owned()),
            Err(trouble) => Err(format!("not ready: {trouble}\n")),
        }
    }

    /// What is looked up for `/metrics`.
    pub(crate) fn state(&self) -> State {
        let (publications, newest) = self.published();
        let mut users: Vec<_> = self
            .users
            .members()
            .iter()
            .map(|one| (one.login.to_string(), one.accepted()))
            .collect();
        users.sort();
        State {
            is_signing: self.health().is_ok(),
            waiting: self.waiting(),
            head: self.past.newest(),
            now: self.clock.now().ended(),
            log: self.past.own().map(|own| own.log.status()),
            publications,
            published_at: newest.map(|data| data.time),
            due_since: self.due().map(|due| due.and_then(|due| due.since)),
            hook: self.hook().map(HookState::counts),
            fleet: self
                .past
                .own()
                .map(|own| own.fleet.counts(self.clock.now().ended())),
            users,
        }
    }

    /// What `/status` answers: `GET`'s `health` and `ready`, and what they rest on.
    pub(crate) fn status(&self) -> Value {
        let (publications, newest) = self.published();
        let now = self.clock.now().ended();
        let head = self.past.newest();
        let (health, ready) = (self.health(), self.ready());
        let told = health.as_ref().err().or(ready.as_ref().err());
        json!({
            "healthy": health.is_ok(),
            "ready": ready.is_ok(),
            "trouble": told.map(|line| line.trim_end()),
            "now": now.to_string(),
            "genesis": self.past.own().map(|own| own.calendar.genesis().to_string()),
            "head": head.map(|head| head.to_string()),
            "head_age_s": head.map(|head| now.since(head)),
            "waiting": self.waiting(),
            "signatures": self.metrics.signatures(),
            "users": self.users.members().len(),
            "publications": publications,
            "published": newest.map(|data| json!({
                "second": data.time.to_string(),
                "code": data.to_code(),
            })),
            "due": self.due().flatten().map(|due| json!({
                "second": due.data.time.to_string(),
                "code": due.data.to_code(),
                "since": due.since.map(|since| since.to_string()),
            })),
            "hook": self.hook().map(HookState::status),
            "fleet": self.past.own().map(|own| {
                let counts = own.fleet.counts(now);
                json!({
                    "registered": counts.registered,
                    "silent": counts.silent,
                    "forked": counts.forked,
                    "refused": counts.refused,
                })
            }),
            "clock_synchronised": self.metrics.clock_synchronised(),
            "log": self.past.own().map(|own| log(&own.log.status())),
        })
    }

    /// What is run after publications, if anything is.
    fn hook(&self) -> Option<&HookState> {
        self.past.own()?.publicity.hook.as_deref()
    }

    /// How many publications there are, and the newest.
    fn published(&self) -> (usize, Option<PublicationData>) {
        let own = self.past.own();
        own.map_or((0, None), |own| own.publicity.summary())
    }

    /// What waits for a publications key that is kept elsewhere. `None`: it is here.
    fn due(&self) -> Option<Option<Due>> {
        let publications = &self.past.own()?.publications;
        if !publications.publications.are_elsewhere() {
            return None;
        }
        // A calendar that cannot be read is told of in other places.
        Some(publications.due().ok().flatten())
    }

    /// Takes a publications file that was made elsewhere, if the calendar is ours.
    /// Blocks on the disk.
    pub(crate) fn hand_in(&self, file: &[u8]) -> Option<Result<HandedIn, PublicationsError>> {
        let own = self.past.own()?;
        Some(own.publications.hand_in(file, self.clock.now().ended()))
    }

    /// Publishes the newest second, if the calendar is ours. Blocks on the disk.
    pub(crate) fn publish(&self) -> Option<Result<Published, PublicationsError>> {
        let own = self.past.own()?;
        Some(own.publications.publish(self.clock.now().ended()))
    }
}

fn log(status: &LogStatus) -> Value {
    let witness = |one: &LogWitnessStatus| {
        json!({
            "name": one.name,
            "size": one.size,
            "cosigned": one.cosigned_at.map(|at| at.to_string()),
            "trouble": one.trouble,
        })
    };
    json!({
        "size": status.size,
        "witnessed": status.witnessed,
        "behind_s": status.behind_s(),
        "quorum": status.quorum,
        "witnesses": status.witnesses.iter().map(witness).collect::<Vec<_>>(),
        "trouble": status.trouble,
    })
}
