//! An aggregator below another service: its rounds are signed by the rounds above.
//!
//! ```text
//! requests ── round of second t ── root, level ──► the service above
//!    ▲                                                │ its round, calendar, seal
//!    └── own chain ‖ everything above ◄───────────────┘
//! ```
//!
//! There is no calendar here, no key and no folder: what is lost is asked for
//! again. The load above depends on the number of aggregators alone. A signature
//! takes one second longer for every service between.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use pitser_client::Client;
use pitser_ksi::hash::Imprint;
use pitser_ksi::pdu::Status;
use pitser_ksi::time::Second;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::authority::AuthorityError;
use crate::beat::{Beat, Woken};
use crate::clock::Clock;
use crate::config::Config;
use crate::engine::{Stopped, on_disk, refuse_all};
use crate::listeners::Listeners;
use crate::pace::Pace;
use crate::round::Rounds;
use crate::running::{Launch, RoundReport, Running};
use crate::service::{
    Answered, ClosedRound, Parent, ParentError, Past, Service, Tail, Trees, stopping,
};
use crate::users::spent;

/// A service whose rounds another service signs. It takes and gives the same
/// messages as an [`crate::Authority`], at levels as high as the one above allows.
#[derive(Debug)]
pub struct Aggregator(());

impl Aggregator {
    /// Starts serving below the services of `parent`, and returns when the sockets
    /// listen. Whether they answer shows with the first round; see
    /// [`Running::ready`].
    ///
    /// Of `config`, the data folder, publications, outages and the calendar's log
    /// are without meaning here.
    ///
    /// # Errors
    /// [`AuthorityError`]; nothing is left running.
    pub async fn start(
        config: Config,
        parent: Client,
        clock: impl Clock,
    ) -> Result<AggregatorHandle, AuthorityError> {
        let clock: Arc<dyn Clock> = Arc::new(clock);
        let (now, started_at) = (clock.now(), Instant::now());
        let closed = now.ended();
        let pace = Pace::start(now, closed, config.max_clock_jump, u64::MAX)?;
        let listeners = Listeners::bind(&config).await?;
        let parent = Parent::new(parent);
        let service = Arc::new(Service::new(
            &config,
            Arc::clone(&clock),
            Rounds::after(closed, config.limits.requests_per_round),
            Past::Parent(Arc::clone(&parent)),
        )?);
        if let Some(path) = &config.operations.spent {
            service.users.restore(spent::read(path));
        }
        let (stop, stopping) = watch::channel(false);
        let (reports, rounds) = watch::channel(RoundReport {
            second: closed,
            requests: 0,
        });
        let engine = Engine {
            service: Arc::clone(&service),
            beat: Beat::start(clock, pace, config.grace, started_at),
            closed,
            press: Press {
                parent,
                machine_id: config.machine_id.into(),
                trees: Arc::default(),
                tolerance_s: config.max_clock_jump.as_secs(),
            },
            pressing: JoinSet::new(),
            reports,
            stop: stopping,
        };
        let launch = Launch {
            service,
            listeners,
            rounds,
            stop,
            spent: config.operations.spent,
        };
        Ok(AggregatorHandle(launch.run(engine.run())))
    }
}

/// A running aggregator.
pub struct AggregatorHandle(Running);

impl Deref for AggregatorHandle {
    type Target = Running;

    fn deref(&self) -> &Running {
        &self.0
    }
}

impl fmt::Debug for AggregatorHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AggregatorHandle").field(&self.0).finish()
    }
}

impl AggregatorHandle {
    /// Accepts nothing more, answers what was accepted when the service above has
    /// signed it, and returns when all connections are closed.
    ///
    /// # Errors
    /// What stopped the rounds, if that was not this shutdown.
    pub async fn shutdown(self) -> Result<(), Arc<Stopped>> {
        self.0.end().await
    }
}

struct Engine {
    service: Arc<Service>,
    beat: Beat,
    /// The newest second that is closed.
    closed: Second,
    press: Press,
    /// Rounds that wait for the service above; each by itself, since a slow answer
    /// to one says nothing about the next.
    pressing: JoinSet<()>,
    reports: watch::Sender<RoundReport>,
    stop: watch::Receiver<bool>,
}

impl Engine {
    async fn run(mut self) -> Result<(), Stopped> {
        let outcome = self.rounds().await;
        let reason = match &outcome {
            Ok(()) => "the service is shutting down".to_owned(),
            Err(fault) => fault.to_string(),
        };
        let waiting = self.service.close(reason.clone());
        refuse_all(waiting, Status::INTERNAL_ERROR, &reason);
        while self.pressing.join_next().await.is_some() {}
        outcome
    }

    async fn rounds(&mut self) -> Result<(), Stopped> {
        loop {
            let stopped = *self.stop.borrow();
            if stopped && self.service.waiting() == 0 {
                return Ok(());
            }
            let (stop, pressing) = (&mut self.stop, &mut self.pressing);
            let interruption = async {
                tokio::select! {
                    () = stopping(stop), if !stopped => {}
                    Some(_) = pressing.join_next() => {}
                    else => std::future::pending().await,
                }
            };
            let Woken::Ended(now) = self.beat.wait(self.closed, interruption).await? else {
                continue;
            };
            let mut requests = 0;
            for round in self.service.close_rounds(now) {
                requests += round.requests.len();
                let sealed = self.press.clone().seal(round, Arc::clone(&self.service));
                self.pressing.spawn(sealed);
            }
            self.closed = now.ended();
            let second = self.closed;
            self.reports.send_replace(RoundReport { second, requests });
        }
    }
}

/// Has closed rounds signed above.
#[derive(Clone)]
struct Press {
    parent: Arc<Parent>,
    machine_id: Arc<str>,
    trees: Arc<Trees>,
    /// How far the clock above may be from ours, in seconds.
    tolerance_s: u64,
}

impl Press {
    async fn seal(self, round: ClosedRound, service: Arc<Service>) {
        let (asked, begun) = (round.requests.len(), Instant::now());
        let (trees, machine_id) = (Arc::clone(&self.trees), Arc::clone(&self.machine_id));
        let built = on_disk(move || {
            let tree = round.tree(trees.take(), &machine_id);
            (round, tree)
        });
        let Ok((round, tree)) = built.await else {
            // The runtime ends, and with it everybody's connection.
            return;
        };
        let tree = match tree {
            Ok(tree) => tree,
            Err(full) => {
                tracing::error!(second = %round.second, error = %full, "a round could not be built");
                Answered::refuse(round, Status::INTERNAL_ERROR, &full.to_string());
                return service.metrics.round(asked, 0, begun.elapsed());
            }
        };
        let signed = self.ask(round.second, tree.root(), tree.level()).await;
        self.parent.note(signed.as_ref().map(|tail| tail.second));
        match signed {
            Ok(tail) => {
                Answered::sign(round, tree, tail, &self.trees);
                service.metrics.round(asked, asked, begun.elapsed());
            }
            Err(e) => {
                tracing::error!(second = %round.second, error = %e, "a round was not signed");
                Answered::refuse(round, e.status(), &e.to_string());
                service.metrics.round(asked, 0, begun.elapsed());
            }
        }
    }

    /// What stands above the root of the round of `second`.
    async fn ask(&self, second: Second, root: Imprint, level: u8) -> Result<Tail, ParentError> {
        let signature = self.parent.client.sign(root, level).await?;
        let signed = signature.aggregation_time();
        // Clients would see a time before they asked.
        if signed.plus(self.tolerance_s) < second {
            return Err(ParentError::Clock {
                signed,
                now: second,
            });
        }
        let bytes = signature.above(level);
        Ok(Tail {
            second: signed,
            index: signature.aggregation_chains()[0].index.clone(),
            bytes: bytes.map_err(|e| ParentError::Unfit(e.to_string()))?,
        })
    }
}
