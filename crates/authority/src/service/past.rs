//! What there is of seconds gone by: a calendar of one's own, or a parent's.

use std::sync::{Arc, Mutex, PoisonError};

use pitser_client::{Client, ClientError};
use pitser_ksi::pdu::{
    ExtendQuery, ExtendRequestPayload, ExtendResponsePayload, ExtendResult, ExtenderConfig, Status,
};
use pitser_ksi::time::Second;

use super::invalid;
use crate::aside::Aside;
use crate::calendar::{CalendarError, CalendarReader};
use crate::fleet::Fleet;
use crate::log::Site;
use crate::publications::Publisher;
use crate::publicity::Publicity;

pub(crate) enum Past {
    Own(Box<Own>),
    /// Of an aggregator, which has none.
    Parent(Arc<Parent>),
}

/// What an authority keeps.
pub(crate) struct Own {
    pub(crate) calendar: CalendarReader,
    pub(crate) publications: Publisher,
    /// What is shown of them.
    pub(crate) publicity: Arc<Publicity>,
    /// The calendar's log over HTTP.
    pub(crate) log: Site,
    /// Registered trails.
    pub(crate) fleet: Arc<Fleet>,
}

/// The service above an aggregator.
pub(crate) struct Parent {
    pub(crate) client: Client,
    /// What came of the last round that was sent there.
    state: Mutex<State>,
}

#[derive(Debug, Clone, Default)]
struct State {
    /// The newest second that it signed in.
    newest: Option<Second>,
    /// Why it did not sign last, if it did not.
    trouble: Option<String>,
}

impl Parent {
    pub(crate) fn new(client: Client) -> Arc<Self> {
        Arc::new(Self {
            client,
            state: Mutex::default(),
        })
    }

    /// Remembers what came of a round.
    pub(crate) fn note(&self, outcome: Result<Second, &ParentError>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(second) => {
                state.newest = state.newest.max(Some(second));
                state.trouble = None;
            }
            Err(e) => state.trouble = Some(e.to_string()),
        }
    }

    fn state(&self) -> State {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.clone()
    }
}

/// Why a round has no signature from above.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ParentError {
    #[error("the service above: {0}")]
    Client(#[from] ClientError),
    #[error("CLK-01: the service above signed in second {signed}, and it is {now} here")]
    Clock { signed: Second, now: Second },
    #[error("the service above signed something else: {0}")]
    Unfit(String),
}

impl ParentError {
    /// What an aggregator's client is told.
    pub(crate) fn status(&self) -> Status {
        match self {
            Self::Client(e) => upstream(e),
            Self::Clock { .. } | Self::Unfit(_) => Status::UPSTREAM_ERROR,
        }
    }
}

fn upstream(error: &ClientError) -> Status {
    match error {
        ClientError::TimedOut { .. } => Status::UPSTREAM_TIMEOUT,
        // Its bounds on us are none of our clients' doing.
        _ => Status::UPSTREAM_ERROR,
    }
}

impl Past {
    /// The newest second there is.
    pub(super) fn newest(&self) -> Option<Second> {
        match self {
            Self::Own(own) => own.calendar.head(),
            Self::Parent(parent) => parent.state().newest,
        }
    }

    /// What an authority keeps.
    pub(crate) fn own(&self) -> Option<&Own> {
        match self {
            Self::Own(own) => Some(own),
            Self::Parent(_) => None,
        }
    }

    /// Whether a round that closes now would be signed; if not, why.
    pub(super) fn works(&self, now: Second) -> Result<(), String> {
        match self {
            Self::Own(own) => match own.calendar.head() {
                Some(head) if now.since(head) <= RECENT_S => Ok(()),
                Some(head) => Err(format!(
                    "the newest second, {head}, ended {} s ago",
                    now.since(head)
                )),
                None => Err("no round has been closed yet".to_owned()),
            },
            Self::Parent(parent) => parent.state().trouble.map_or(Ok(()), Err),
        }
    }

    /// What answers a message to the extender; `counted` hears of each status.
    pub(super) fn extension(
        &self,
        payloads: Vec<ExtendRequestPayload>,
        bounds: Bounds,
        counted: impl Fn(Status) + Send + 'static,
    ) -> impl Future<Output = Vec<ExtendResponsePayload>> + Send + 'static {
        let source = match self {
            Self::Own(own) => Source::Own(own.calendar.clone()),
            Self::Parent(parent) => Source::Parent(Arc::clone(parent)),
        };
        async move {
            match source {
                // The calendar may have to be read from a slow disk.
                Source::Own(calendar) => EXTENDING
                    .run(move || from_calendar(&calendar, payloads, bounds, counted))
                    .await
                    .unwrap_or_else(|_| vec![failed()]),
                Source::Parent(parent) => from_parent(&parent, payloads, counted).await,
            }
        }
    }
}

static EXTENDING: Aside = Aside::new();

enum Source {
    Own(CalendarReader),
    Parent(Arc<Parent>),
}

/// What an extender tells besides chains.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    pub(super) now: Second,
    pub(super) max_requests: u64,
}

fn failed() -> ExtendResponsePayload {
    let mut error = invalid("the calendar cannot be read");
    error.status = Status::INTERNAL_ERROR;
    ExtendResponsePayload::Error(error)
}

fn from_calendar(
    calendar: &CalendarReader,
    payloads: Vec<ExtendRequestPayload>,
    bounds: Bounds,
    counted: impl Fn(Status),
) -> Vec<ExtendResponsePayload> {
    let answer = |payload| match payload {
        ExtendRequestPayload::Extend(query) => {
            let found = look_up(calendar, &query, bounds.now);
            counted(found.status);
            ExtendResponsePayload::Result(found)
        }
        ExtendRequestPayload::Config => ExtendResponsePayload::Config(ExtenderConfig {
            max_requests: Some(bounds.max_requests),
            parents: Vec::new(),
            calendar_first: Some(calendar.genesis()),
            calendar_last: calendar.head(),
        }),
    };
    payloads.into_iter().map(answer).collect()
}

/// Asks the service above, one after the other: a message has few requests.
async fn from_parent(
    parent: &Parent,
    payloads: Vec<ExtendRequestPayload>,
    counted: impl Fn(Status) + Send,
) -> Vec<ExtendResponsePayload> {
    let mut answers = Vec::new();
    for payload in payloads {
        answers.push(match payload {
            ExtendRequestPayload::Extend(query) => {
                let found = ask(&parent.client, &query).await;
                counted(found.status);
                ExtendResponsePayload::Result(found)
            }
            ExtendRequestPayload::Config => match parent.client.extender_config().await {
                Ok(config) => ExtendResponsePayload::Config(config),
                Err(e) => {
                    let mut error = invalid(&e.to_string());
                    error.status = upstream(&e);
                    ExtendResponsePayload::Error(error)
                }
            },
        });
    }
    answers
}

async fn ask(client: &Client, query: &ExtendQuery) -> ExtendResult {
    let (from, to) = (query.aggregation_time, query.publication_time);
    match client.extend_calendar(from, to).await {
        Ok(chain) => ExtendResult {
            request_id: query.request_id,
            status: Status::OK,
            message: None,
            calendar_last: None,
            calendar: Some(chain),
        },
        Err(e) => {
            // What is wrong with the times is wrong here as well.
            let status = match &e {
                ClientError::Refused { status, .. } if (0x0103..0x0108).contains(status) => {
                    Status(*status)
                }
                ClientError::Backwards { .. } => Status::TIME_RANGE_INVALID,
                e => upstream(e),
            };
            ExtendResult::failure(query.request_id, status, e.to_string())
        }
    }
}

fn look_up(calendar: &CalendarReader, query: &ExtendQuery, now: Second) -> ExtendResult {
    let head = calendar.head();
    let found = match query.publication_time.or(head) {
        Some(to) => calendar.chain(query.aggregation_time, to),
        None => Err(CalendarError::Beyond {
            at: query.aggregation_time,
            head,
        }),
    };
    match found {
        Ok(chain) => ExtendResult {
            request_id: query.request_id,
            status: Status::OK,
            message: None,
            calendar_last: head,
            calendar: Some(chain),
        },
        Err(e) => ExtendResult {
            calendar_last: head,
            ..ExtendResult::failure(query.request_id, status_of(&e, now), e.to_string())
        },
    }
}

fn status_of(error: &CalendarError, now: Second) -> Status {
    match error {
        CalendarError::Backwards { .. } => Status::TIME_RANGE_INVALID,
        CalendarError::BeforeGenesis { .. } => Status::TIME_TOO_OLD,
        CalendarError::Beyond { at, .. } if *at > now => Status::TIME_IN_FUTURE,
        CalendarError::Beyond { .. } => Status::TIME_TOO_NEW,
        CalendarError::Corrupt { .. } => Status::DATABASE_CORRUPT,
        _ => Status::INTERNAL_ERROR,
    }
}

/// A round that closes later than this is no longer on time, in seconds.
const RECENT_S: u64 = 3;
