//! What a supervisor hears of guardians: how they are, and that they get on.

use std::time::Duration;

use pitser_guardian::{Handle, SourceState};
use tokio::time::MissedTickBehavior;

use crate::notify::Supervisor;
use crate::output::plural;

/// How often we look if no watchdog asks for more.
const PACE: Duration = Duration::from_secs(5);

/// Tells `supervisor` how `guardians` are, whenever that changes, and its watchdog that they
/// get on, as long as all do. If one of them hangs, the watchdog hears nothing more and
/// restarts all of us: what was committed meanwhile waits in the database.
pub(super) async fn attend(supervisor: &Supervisor, guardians: &[Handle]) {
    let watchdog = supervisor.watchdog();
    // It hears of us twice before it loses patience, or not at all.
    let pace = watchdog.map_or(PACE, |period| PACE.min(period / 4));
    let longest = watchdog.map(|period| period / 2);
    let mut every = tokio::time::interval(pace.max(Duration::from_millis(1)));
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = String::new();
    loop {
        every.tick().await;
        let hangs = guardians.iter().find_map(|guardian| {
            let age = guardian.at_one_step()?;
            (age >= longest?).then(|| (guardian.status().name, age))
        });
        let now = match &hangs {
            None => {
                supervisor.alive();
                let words: Vec<String> = guardians.iter().map(words).collect();
                words.join("; ")
            }
            Some((name, _)) => format!("{name}: {}", SourceState::Stuck.words()),
        };
        if now == told {
            continue;
        }
        supervisor.status(&now);
        if let Some((source, age)) = hangs {
            tracing::error!(
                source,
                seconds = age.as_secs(),
                "the guardian's thread is at one step for too long: the watchdog is not told that we get on, and \
                 restarts us unless it ends"
            );
        }
        told = now;
    }
}

/// A source in a few words, without anything that a patient's data could be in.
fn words(guardian: &Handle) -> String {
    let status = guardian.status();
    let state = status.state.words();
    match status.open_findings(|_| true) {
        0 => format!("{}: {state}", status.name),
        open => format!("{}: {state}, {}", status.name, plural(open, "open finding")),
    }
}
