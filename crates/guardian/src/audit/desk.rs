//! Where a guardian answers its auditors (docs/spec/64-audit-http.md): the trail's files
//! in pieces, opened rows, and taking their statements. Whoever carries requests (`web`)
//! need not understand them.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pitser_evidence::Code;
use pitser_evidence::sample::{MAX_ANSWER, MAX_ROWS, Question};
use pitser_trail::Layout;
use pitser_trail::export::ExportError;
use pitser_trail::serve::{self, Part, Sizes};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{OwnedMutexGuard, Semaphore, watch};

use super::follow::HEAD_MAX;
use super::open::Opener;
use super::request::{Admitted, Gate, Signed};
use super::take::{NotTaken, Proper};
use crate::Clock;
use crate::status::Status;

/// Bytes of a file in one answer.
pub(super) const PIECE: usize = 4 << 20;
/// Segments in one answer.
pub(super) const SEGMENTS: u32 = 256;
/// Longest wait for a new head, in seconds.
pub(super) const WAIT_S: u64 = 30;
/// Longest body of a request, in bytes.
pub const BODY: usize = 1 << 20;
/// Answers that are read from disk at a time, and that wait for a new head.
const READS: usize = 4;
const WAITS: usize = 16;
/// Requests of an auditor in a second, and at once.
const RATE: u64 = 64;
const BURST: u64 = 128;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// A request as it came.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Its method.
    pub method: &'a str,
    /// Path and query, from `/audit/` on.
    pub target: &'a str,
    /// Its `Authorization`; empty without one.
    pub authorization: &'a str,
    /// Its body, at most [`BODY`] bytes.
    pub body: &'a [u8],
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Whether the body is JSON; otherwise it is bytes of a file.
    pub is_json: bool,
    /// The body.
    pub body: Vec<u8>,
}

/// How a trail stands: `GET /audit/{source}/state`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct TrailState {
    /// The newest cosigned head, as a note.
    pub(super) head: Option<String>,
    /// Bytes of the newest publications file.
    pub(super) publications: Option<u64>,
    /// Segments from the one on that was asked for, without gaps.
    pub(super) segments: Vec<SegmentState>,
}

/// The files of a segment.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct SegmentState {
    pub(super) lines: Option<u64>,
    pub(super) blocks: Option<u64>,
    pub(super) seals: Option<u64>,
    pub(super) signature: Option<u64>,
}

impl From<Sizes> for SegmentState {
    fn from(sizes: Sizes) -> Self {
        let Sizes {
            lines,
            blocks,
            seals,
            signature,
        } = sizes;
        Self {
            lines,
            blocks,
            seals,
            signature,
        }
    }
}

/// A statement that is handed over: `POST /audit/{source}/statement`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HandedOver {
    pub(super) head: String,
    pub(super) note: String,
}

/// How a file is called in a request.
pub(super) fn name_of(part: Part) -> &'static str {
    match part {
        Part::Lines => "lines",
        Part::Blocks => "blocks",
        Part::Seals => "seals",
        Part::Signature => "signature",
    }
}

/// Told what an auditor's statement says against the trail.
pub(crate) type Accuse = Box<dyn Fn(Code, String) + Send + Sync>;

/// Answers the auditors of one trail.
pub struct Desk {
    source: String,
    layout: Layout,
    auditors: Vec<Admitted>,
    clock: Clock,
    status: watch::Receiver<Status>,
    accuse: Accuse,
    /// Locked to look at or count a request.
    pace: Mutex<Pace>,
    reads: Arc<Semaphore>,
    waits: Semaphore,
    /// Samples and statements are worked on one at a time.
    work: Arc<tokio::sync::Mutex<()>>,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Desk({}, {} auditors)", self.source, self.auditors.len())
    }
}

/// Who asked how much.
#[derive(Debug)]
struct Pace {
    gate: Gate,
    /// By place among the auditors.
    spent: HashMap<usize, Spent>,
}

#[derive(Debug, Clone, Copy)]
struct Spent {
    /// Requests that may come now, as of `at_ms`.
    requests: u64,
    at_ms: u64,
    /// Rows since `day_ms`.
    rows: u64,
    day_ms: u64,
}

/// Why there is no other answer.
enum No {
    /// Nothing that is asked for, or not in that form.
    Bad(&'static str),
    NotThere(&'static str),
    Busy(&'static str),
    Unfit(String),
    Failed(String),
}

impl Desk {
    pub(crate) fn new(
        source: &str,
        origin: &str,
        layout: Layout,
        auditors: Vec<Admitted>,
        clock: Clock,
        status: watch::Receiver<Status>,
        accuse: Accuse,
    ) -> Self {
        let gate = Gate::new(origin.to_owned(), clock() / 1000);
        Self {
            source: source.to_owned(),
            layout,
            auditors,
            clock,
            status,
            accuse,
            pace: Mutex::new(Pace {
                gate,
                spent: HashMap::new(),
            }),
            reads: Arc::new(Semaphore::new(READS)),
            waits: Semaphore::new(WAITS),
            work: Arc::default(),
        }
    }

    /// Answers whoever signed the request with a key of the configuration; everybody
    /// else alike, whatever he asks.
    pub async fn answer(&self, request: Request<'_>) -> Answer {
        let Some(who) = self.admit(request) else {
            return Self::stranger((self.clock)() / 1000);
        };
        if !self.has_turn(who) {
            let why = "that was too many requests; ask again in a second";
            return said(429, &json!({ "error": why }));
        }
        match self.admitted(who, request).await {
            Ok(answer) => answer,
            Err(no) => no.answer(),
        }
    }

    /// What everybody hears who is no auditor of ours. The time tells an auditor whose
    /// clock is wrong.
    fn stranger(now_ms: u64) -> Answer {
        let why = "this is for auditors whose key the guardian's configuration has, under [[auditor]]; requests are \
                   signed, and the clocks may be a minute apart";
        said(401, &json!({ "error": why, "now_ms": now_ms }))
    }

    fn admit(&self, request: Request<'_>) -> Option<usize> {
        let signed = Signed {
            origin: "",
            method: request.method,
            target: request.target,
            body: request.body,
        };
        let now_ms = (self.clock)() / 1000;
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        pace.gate
            .admit(&self.auditors, signed, request.authorization, now_ms)
    }

    fn has_turn(&self, who: usize) -> bool {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let spent = pace.spent(who, (self.clock)() / 1000);
        let has_turn = spent.requests > 0;
        spent.requests = spent.requests.saturating_sub(1);
        has_turn
    }

    async fn admitted(&self, who: usize, request: Request<'_>) -> Result<Answer, No> {
        let (path, query) = request
            .target
            .split_once('?')
            .unwrap_or((request.target, ""));
        let path = path.strip_prefix("/audit/").and_then(|path| {
            let (source, path) = path.split_once('/')?;
            (source == self.source).then_some(path)
        });
        let words: Vec<&str> = path.unwrap_or_default().split('/').collect();
        match (request.method, &words[..]) {
            ("GET", ["state"]) => self.state(Query(query)).await,
            ("GET", ["publications"]) => self.publications().await,
            ("GET", ["segments", number, part]) => {
                let number = number.parse().map_err(|_| No::Bad("that is no segment"))?;
                self.piece(number, part, Query(query)).await
            }
            ("POST", ["sample"]) => self.sample(who, request.body).await,
            ("POST", ["statement"]) => self.statement(who, request.body).await,
            _ => Err(No::NotThere("auditors ask for nothing of that name")),
        }
    }

    async fn state(&self, query: Query<'_>) -> Result<Answer, No> {
        let (known, wait_s) = (query.number("known")?, query.number("wait")?);
        let from = u32::try_from(query.number("from")?).map_err(|_| No::Bad("from: too large"))?;
        if wait_s > 0 {
            let busy = No::Busy("too many auditors wait for a new head");
            let _place = self.waits.try_acquire().map_err(|_| busy)?;
            let mut status = self.status.clone();
            let newer = status.wait_for(|status| status.witnessed > known);
            let patience = Duration::from_secs(wait_s.min(WAIT_S));
            // In time or not: what is there is told.
            let _ = tokio::time::timeout(patience, newer).await;
        }
        let state = self.read(move |layout| state_of(layout, from)).await?;
        Ok(said(200, &state))
    }

    async fn publications(&self) -> Result<Answer, No> {
        let read = |layout: &Layout| match std::fs::read(layout.publications()) {
            Ok(bytes) if bytes.len() <= PUBLICATIONS => Ok(bytes),
            _ => Err(No::NotThere("there is no publications file")),
        };
        self.read(read).await.map(bytes)
    }

    async fn piece(&self, number: u32, part: &str, query: Query<'_>) -> Result<Answer, No> {
        let parts = [Part::Lines, Part::Blocks, Part::Seals, Part::Signature];
        let mut parts = parts.into_iter();
        let part = parts.find(|known| name_of(*known) == part);
        let part = part.ok_or(No::Bad("a segment has no such file"))?;
        let from = query.number("from")?;
        let read = move |layout: &Layout| {
            let piece = serve::piece(layout, number, part, from, PIECE);
            let piece = piece.map_err(|e| No::failed(&e))?;
            piece.ok_or(No::NotThere("the file is not there, or shorter"))
        };
        self.read(read).await.map(bytes)
    }

    async fn sample(&self, who: usize, body: &[u8]) -> Result<Answer, No> {
        let bad = No::Bad("that is no question for rows");
        let question: Question = serde_json::from_slice(body).map_err(|_| bad)?;
        let rows = question.rows.len();
        if rows > MAX_ROWS {
            return Err(No::Bad("that is more rows than one question may ask for"));
        }
        let auditor = &self.auditors[who];
        let place = self.work_place()?;
        self.spend_rows(who, rows as u64, auditor.rows_per_day)?;
        tracing::info!(source = %self.source, auditor = %auditor.name, rows, "rows are opened for an auditor");
        let (status, table_keys) = (self.status.borrow().clone(), auditor.table_keys);
        let opened = self.work(place, move |layout| {
            let mut opener = Opener::new(layout.clone(), &status, table_keys)?;
            opener.rows(&question.rows)
        });
        let shown = opened.await?.map_err(|e: ExportError| No::failed(&e))?;
        let answer = said(200, &shown);
        match answer.body.len() <= MAX_ANSWER {
            true => Ok(answer),
            false => Err(No::Unfit("the rows are too large; ask for fewer".into())),
        }
    }

    fn spend_rows(&self, who: usize, rows: u64, most: u64) -> Result<(), No> {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let spent = pace.spent(who, (self.clock)() / 1000);
        if spent.rows + rows > most {
            let text = format!("of {most} rows a day {} were opened already", spent.rows);
            return Err(No::Unfit(text));
        }
        spent.rows += rows;
        Ok(())
    }

    async fn statement(&self, who: usize, body: &[u8]) -> Result<Answer, No> {
        let bad = No::Bad("that is no statement with its head");
        let handed: HandedOver = serde_json::from_slice(body).map_err(|_| bad)?;
        if handed.head.len() as u64 > HEAD_MAX {
            return Err(No::Bad("the head is too long"));
        }
        let (key, name) = (self.auditors[who].key.clone(), &self.auditors[who].name);
        let taken = self.work(self.work_place()?, move |layout| {
            let HandedOver { head, note } = handed;
            let proper = Proper::new(layout, &key, note.as_bytes(), head.as_bytes())?;
            proper.take_if_newest(layout)?;
            Ok(proper.statement)
        });
        match taken.await? {
            Ok(statement) => {
                tracing::info!(source = %self.source, auditor = %name, blocks = statement.size, "an auditor's statement was taken");
                Ok(said(200, &json!({ "blocks": statement.size })))
            }
            Err(error @ NotTaken::Forked { .. }) => {
                tracing::error!(source = %self.source, auditor = %name, %error, "an auditor has another trail");
                (self.accuse)(Code::TrailForked, error.to_string());
                let why = format!("{} {error}", Code::TrailForked);
                Ok(said(409, &json!({ "error": why })))
            }
            Err(error @ (NotTaken::Statement(_) | NotTaken::Head)) => {
                Err(No::Unfit(error.to_string()))
            }
            Err(error) => Err(No::failed(&error)),
        }
    }

    /// Reads from the trail's files, a few at a time.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Layout) -> Result<T, No> + Send + 'static,
    ) -> Result<T, No> {
        let closed = No::Busy("the guardian ends");
        let place = Arc::clone(&self.reads).acquire_owned().await;
        let place = place.map_err(|_| closed)?;
        let layout = self.layout.clone();
        // To its end, whoever is waiting for it.
        let read = tokio::task::spawn_blocking(move || {
            let read = read(&layout);
            drop(place);
            read
        });
        let read = read.await;
        read.unwrap_or_else(|_| Err(No::Failed("the answer was broken off".into())))
    }

    /// What takes long is done one thing at a time.
    fn work_place(&self) -> Result<OwnedMutexGuard<()>, No> {
        let busy = |_| No::Busy("another sample or statement is being worked on");
        Arc::clone(&self.work).try_lock_owned().map_err(busy)
    }

    async fn work<T: Send + 'static>(
        &self,
        place: OwnedMutexGuard<()>,
        work: impl FnOnce(&Layout) -> T + Send + 'static,
    ) -> Result<T, No> {
        let layout = self.layout.clone();
        let done = tokio::task::spawn_blocking(move || {
            let done = work(&layout);
            drop(place);
            done
        });
        let broken = |_| No::Failed("the answer was broken off".into());
        done.await.map_err(broken)
    }
}

/// Longest publications file, in bytes.
pub(super) const PUBLICATIONS: usize = 16 << 20;

fn state_of(layout: &Layout, from: u32) -> Result<TrailState, No> {
    // The head first: what is written meanwhile only makes the trail longer.
    let head = std::fs::read_to_string(layout.head()).ok();
    let publications = std::fs::metadata(layout.publications()).ok();
    let mut segments = Vec::new();
    for number in from..from.saturating_add(SEGMENTS) {
        let sizes = serve::sizes(layout, number).map_err(|e| No::failed(&e))?;
        if sizes.lines.is_none() {
            break;
        }
        segments.push(sizes.into());
    }
    Ok(TrailState {
        head,
        publications: publications.map(|found| found.len()),
        segments,
    })
}

impl Pace {
    /// What an auditor has left, as of now.
    fn spent(&mut self, who: usize, now_ms: u64) -> &mut Spent {
        let spent = self.spent.entry(who).or_insert(Spent {
            requests: BURST,
            at_ms: now_ms,
            rows: 0,
            day_ms: now_ms,
        });
        let earned = now_ms.saturating_sub(spent.at_ms) * RATE / 1000;
        if earned > 0 {
            spent.requests = (spent.requests + earned).min(BURST);
            spent.at_ms = now_ms;
        }
        if now_ms.saturating_sub(spent.day_ms) >= DAY_MS {
            (spent.rows, spent.day_ms) = (0, now_ms);
        }
        spent
    }
}

/// The part of a target after `?`.
#[derive(Clone, Copy)]
struct Query<'a>(&'a str);

impl Query<'_> {
    /// A number; 0 if it is not there.
    fn number(self, name: &str) -> Result<u64, No> {
        let mut fields = self.0.split('&').filter_map(|field| field.split_once('='));
        match fields.find(|(field, _)| *field == name) {
            None => Ok(0),
            Some((_, number)) => number.parse().map_err(|_| No::Bad("that is no number")),
        }
    }
}

impl No {
    /// What went wrong here is told to the operator, not to the auditor: it names files.
    fn failed(error: &dyn fmt::Display) -> Self {
        tracing::warn!(%error, "an auditor could not be answered");
        Self::Failed("the trail cannot be read now; its operator's log says why".into())
    }

    fn answer(self) -> Answer {
        let (status, why) = match self {
            Self::Bad(why) => (400, why.to_owned()),
            Self::NotThere(why) => (404, why.to_owned()),
            Self::Unfit(why) => (422, why),
            Self::Busy(why) => (503, why.to_owned()),
            Self::Failed(why) => (500, why),
        };
        said(status, &json!({ "error": why }))
    }
}

fn said(status: u16, body: &impl Serialize) -> Answer {
    Answer {
        status,
        is_json: true,
        body: serde_json::to_vec(body).expect("texts, numbers and lists of them"),
    }
}

fn bytes(body: Vec<u8>) -> Answer {
    Answer {
        status: 200,
        is_json: false,
        body,
    }
}
