//! The log over HTTP: C2SP tlog-tiles, and proofs.
//!
//! | GET                              | answer                                       |
//! |----------------------------------|----------------------------------------------|
//! | `/log/checkpoint`                | the newest checkpoint                        |
//! | `/log/witnessed`                 | the newest one that a quorum has cosigned    |
//! | `/log/tile/<L>/<N>[.p/<W>]`      | a hash tile                                  |
//! | `/log/tile/entries/<N>[.p/<W>]`  | entries                                      |
//! | `/log/proof/<second>[?wait=<s>]` | `tlog-proof` of a second under the newest    |
//! |                                  | witnessed checkpoint, with the entry as extra |
//!
//! A full tile never changes and may be cached for ever; so may a partial one,
//! but nobody will ask for it for long. Whoever wants his second witnessed says
//! how long he will wait, and is answered as soon as it is.

use std::sync::Arc;
use std::time::Duration;

use hyper::header::HeaderValue;
use hyper::{StatusCode, header};
use pitser_ksi::time::Second;
use pitser_tlog::merkle::inclusion_proof;
use pitser_tlog::proof::LogProof;
use pitser_tlog::tiles::Tile;
use tokio::sync::{Semaphore, watch};

use super::files::Files;
use super::keeper::{Head, Keeper, View};
use super::{LogError, LogStatus};
use crate::service::http::reply::{Answer, BRIEFLY, BYTES, FOR_EVER, NEVER, TEXT, reply};
use crate::service::stopping;

/// The log's part of the HTTP service.
pub(crate) struct Site {
    files: Arc<Files>,
    view: watch::Receiver<View>,
    stop: watch::Receiver<bool>,
    /// Requests that read files at a time.
    readers: Semaphore,
    /// Requests that may wait for a witness at a time.
    waiters: Semaphore,
}

fn note(head: Option<Arc<Head>>, none: &'static str) -> Answer {
    match head {
        Some(head) => reply(StatusCode::OK, TEXT, NEVER, head.note.to_string()),
        None => reply(StatusCode::NOT_FOUND, TEXT, NEVER, none),
    }
}

/// Proves the entry of `second` under `head`, which covers it.
fn prove(files: &Files, second: Second, index: u64, head: &Head) -> Result<LogProof, LogError> {
    let path = inclusion_proof(files, index, head.size)?;
    let entry = files.entry(second)?.encode();
    LogProof::new(index, path, head.note.clone())
        .and_then(|proof| proof.with_extra(entry.to_vec()))
        .map_err(|_| LogError::OutOfRange)
}

impl Site {
    /// `stop` ends those who wait.
    pub(crate) fn new(keeper: &Keeper, stop: watch::Receiver<bool>, connections: usize) -> Self {
        Self {
            files: Arc::clone(keeper.files()),
            view: keeper.view(),
            stop,
            readers: Semaphore::new(READERS),
            // Others need connections as well.
            waiters: Semaphore::new(connections / 4),
        }
    }

    /// How the log is doing.
    pub(crate) fn status(&self) -> LogStatus {
        self.view.borrow().status.clone()
    }

    /// Answers GET of a path below `/log/`.
    pub(crate) async fn answer(&self, path: &str, query: Option<&str>) -> Answer {
        let path = path.strip_prefix("/log/").unwrap_or(path);
        match path.split_once('/') {
            None if path == "checkpoint" => {
                let head = self.view.borrow().checkpoint.clone();
                note(head, "nothing is signed yet; ask again in a second\n")
            }
            None if path == "witnessed" => {
                let head = self.view.borrow().witnessed.clone();
                note(head, "no checkpoint is witnessed yet\n")
            }
            Some(("tile", tile)) => self.tile(tile).await,
            Some(("proof", second)) => self.proof(second, query).await,
            _ => {
                let text =
                    "GET /log/checkpoint, /log/witnessed, /log/tile/… or /log/proof/SECOND\n";
                reply(StatusCode::NOT_FOUND, TEXT, NEVER, text)
            }
        }
    }

    async fn tile(&self, path: &str) -> Answer {
        let none = || reply(StatusCode::NOT_FOUND, TEXT, NEVER, "no such tile\n");
        let Ok(tile) = Tile::parse(&format!("tile/{path}")) else {
            return none();
        };
        let cache = if tile.is_partial() { BRIEFLY } else { FOR_EVER };
        match self.read(move |files| files.tile(tile)).await {
            Ok(Some(bytes)) => reply(StatusCode::OK, BYTES, cache, bytes),
            Ok(None) => none(),
            Err(unreadable) => unreadable,
        }
    }

    async fn proof(&self, second: &str, query: Option<&str>) -> Answer {
        let sentence = |text: &'static str| reply(StatusCode::BAD_REQUEST, TEXT, NEVER, text);
        let Some(second) = number(second) else {
            return sentence("a second is a decimal number, counted from 1970\n");
        };
        let wait_s = match query.map(|query| query.strip_prefix("wait=")) {
            None => Some(0),
            Some(seconds) => seconds.and_then(number),
        };
        let Some(wait_s) = wait_s else {
            return sentence("the query is wait= and a number of seconds\n");
        };
        let Some(index) = second.checked_sub(self.files.genesis().0) else {
            let text = "the calendar begins later\n";
            return reply(StatusCode::NOT_FOUND, TEXT, NEVER, text);
        };
        let wait = Duration::from_secs(wait_s).min(LONGEST_WAIT);
        let Some(head) = self.covering(index, wait).await else {
            return self.not_witnessed(Second(second), index);
        };
        let prove = move |files: &Files| prove(files, Second(second), index, &head);
        match self.read(prove).await {
            // A later checkpoint would do as well, but it never gets wrong.
            Ok(proof) => reply(StatusCode::OK, TEXT, BRIEFLY, proof.to_string()),
            Err(unreadable) => unreadable,
        }
    }

    /// The newest witnessed head, once it covers entry `index`; waits at most so
    /// long, and not at all if too many do.
    async fn covering(&self, index: u64, wait: Duration) -> Option<Arc<Head>> {
        let covers = |view: &View| {
            let head = view.witnessed.as_ref().filter(|head| head.size > index)?;
            // After a start the hashes may still be on their way.
            (head.size <= self.files.size()).then(|| Arc::clone(head))
        };
        let now = covers(&self.view.borrow());
        if now.is_some() || wait.is_zero() {
            return now;
        }
        let _place = self.waiters.try_acquire().ok()?;
        let (mut view, mut stop) = (self.view.clone(), self.stop.clone());
        let witnessed = view.wait_for(|view| covers(view).is_some());
        tokio::select! {
            view = witnessed => covers(&*view.ok()?),
            () = tokio::time::sleep(wait) => None,
            () = stopping(&mut stop) => None,
        }
    }

    fn not_witnessed(&self, second: Second, index: u64) -> Answer {
        let view = self.view.borrow();
        let status = &view.status;
        let text = match status.quorum {
            0 => "no witnesses are configured: nothing is witnessed\n".to_owned(),
            _ if index >= status.size => format!("{second} is not in the log yet\n"),
            quorum => format!("{second} is not cosigned by {quorum} witnesses yet\n"),
        };
        let mut answer = reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, NEVER, text);
        let soon = HeaderValue::from_static("1");
        answer.headers_mut().insert(header::RETRY_AFTER, soon);
        answer
    }

    /// What `look` finds in the files, off the runtime's threads.
    async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Files) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, Answer> {
        let failed = |text| reply(StatusCode::INTERNAL_SERVER_ERROR, TEXT, NEVER, text);
        let Ok(_turn) = self.readers.acquire().await else {
            return Err(failed("the service is shutting down\n"));
        };
        let files = Arc::clone(&self.files);
        match tokio::task::spawn_blocking(move || look(&files)).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => {
                tracing::error!(%error, "the calendar's log cannot be read");
                Err(failed("the log cannot be read\n"))
            }
            Err(_) => Err(failed("the log cannot be read\n")),
        }
    }
}

/// A decimal number as it is written: no sign, no leading zeroes.
fn number(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

/// A bundle of entries costs about a millisecond of hashing.
const READERS: usize = 8;

/// No request waits longer; well below the time after which a silent connection
/// is closed.
const LONGEST_WAIT: Duration = Duration::from_secs(25);
