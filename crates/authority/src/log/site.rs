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

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use pitser_ksi::time::Second;
use pitser_tlog::merkle::inclusion_proof;
use pitser_tlog::proof::LogProof;
use pitser_tlog::tiles::Tile;
use tokio::sync::{Semaphore, watch};

use super::LogError;
use super::files::Files;
use super::keeper::{Head, Keeper, View};
use crate::service::stopping;

struct Site {
    files: Arc<Files>,
    view: watch::Receiver<View>,
    stop: watch::Receiver<bool>,
    /// Requests that read files at a time.
    readers: Semaphore,
    /// Requests that may wait for a witness at a time.
    waiters: Semaphore,
}

/// The log's part of the HTTP service; `stop` ends those who wait.
pub(crate) fn routes(keeper: &Keeper, stop: watch::Receiver<bool>, connections: usize) -> Router {
    let site = Site {
        files: Arc::clone(keeper.files()),
        view: keeper.view(),
        stop,
        readers: Semaphore::new(READERS),
        // Others need connections as well.
        waiters: Semaphore::new(connections / 4),
    };
    Router::new()
        .route("/log/checkpoint", get(checkpoint))
        .route("/log/witnessed", get(witnessed))
        .route("/log/tile/{*path}", get(tile))
        .route("/log/proof/{second}", get(proof))
        .with_state(Arc::new(site))
}

async fn checkpoint(State(site): State<Arc<Site>>) -> Response {
    let head = site.view.borrow().checkpoint.clone();
    note(head, "nothing is signed yet; ask again in a second\n")
}

async fn witnessed(State(site): State<Arc<Site>>) -> Response {
    let head = site.view.borrow().witnessed.clone();
    note(head, "no checkpoint is witnessed yet\n")
}

fn note(head: Option<Arc<Head>>, none: &'static str) -> Response {
    match head {
        Some(head) => answer(StatusCode::OK, TEXT, NEVER, head.note.to_string()),
        None => answer(StatusCode::NOT_FOUND, TEXT, NEVER, none),
    }
}

async fn tile(State(site): State<Arc<Site>>, Path(path): Path<String>) -> Response {
    let none = || answer(StatusCode::NOT_FOUND, TEXT, NEVER, "no such tile\n");
    let Ok(tile) = Tile::parse(&format!("tile/{path}")) else {
        return none();
    };
    let cache = if tile.is_partial() { BRIEFLY } else { FOR_EVER };
    match site.read(move |files| files.tile(tile)).await {
        Ok(Some(bytes)) => answer(StatusCode::OK, BYTES, cache, bytes),
        Ok(None) => none(),
        Err(unreadable) => unreadable,
    }
}

async fn proof(
    State(site): State<Arc<Site>>,
    Path(second): Path<String>,
    RawQuery(query): RawQuery,
) -> Response {
    let sentence = |text: &'static str| answer(StatusCode::BAD_REQUEST, TEXT, NEVER, text);
    let Some(second) = number(&second) else {
        return sentence("a second is a decimal number, counted from 1970\n");
    };
    let wait_s = match query.as_deref().map(|query| query.strip_prefix("wait=")) {
        None => Some(0),
        Some(seconds) => seconds.and_then(number),
    };
    let Some(wait_s) = wait_s else {
        return sentence("the query is wait= and a number of seconds\n");
    };
    let Some(index) = second.checked_sub(site.files.genesis().0) else {
        let text = "the calendar begins later\n";
        return answer(StatusCode::NOT_FOUND, TEXT, NEVER, text);
    };
    let wait = Duration::from_secs(wait_s).min(LONGEST_WAIT);
    let Some(head) = site.covering(index, wait).await else {
        return site.not_witnessed(Second(second), index);
    };
    let prove = move |files: &Files| prove(files, Second(second), index, &head);
    match site.read(prove).await {
        // A later checkpoint would do as well, but it never gets wrong.
        Ok(proof) => answer(StatusCode::OK, TEXT, BRIEFLY, proof.to_string()),
        Err(unreadable) => unreadable,
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

    fn not_witnessed(&self, second: Second, index: u64) -> Response {
        let view = self.view.borrow();
        let status = &view.status;
        let text = match status.quorum {
            0 => "no witnesses are configured: nothing is witnessed\n".to_owned(),
            _ if index >= status.size => format!("{second} is not in the log yet\n"),
            quorum => format!("{second} is not cosigned by {quorum} witnesses yet\n"),
        };
        let mut answer = answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, NEVER, text);
        let soon = HeaderValue::from_static("1");
        answer.headers_mut().insert(header::RETRY_AFTER, soon);
        answer
    }

    /// What `look` finds in the files, off the runtime's threads.
    async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Files) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, Response> {
        let failed = |text| answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, NEVER, text);
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

fn answer(
    status: StatusCode,
    kind: &'static str,
    cache: &'static str,
    body: impl IntoResponse,
) -> Response {
    let mut answer = (status, body).into_response();
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    answer
}

const TEXT: &str = "text/plain; charset=utf-8";
const BYTES: &str = "application/octet-stream";

const FOR_EVER: &str = "public, max-age=31536000, immutable";
const BRIEFLY: &str = "public, max-age=60";
const NEVER: &str = "no-store";

/// A bundle of entries costs about a millisecond of hashing.
const READERS: usize = 8;

/// No request waits longer; well below the time after which a silent connection
/// is closed.
const LONGEST_WAIT: Duration = Duration::from_secs(25);
