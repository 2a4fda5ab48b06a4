//! Fetches publications files, and proofs from calendars' logs. Nothing of them
//! is verified here.

use std::sync::Arc;

use pitser_ksi::publications_file::MAX_LEN;
use pitser_ksi::time::Second;
use tokio::time::Instant;

use crate::answer::Fault;
use crate::endpoint::{Endpoint, EndpointError, Key, Transport};
use crate::error::{Asked, ClientError};
use crate::file;
use crate::http::HttpService;
use crate::options::Options;
use crate::service;

/// Reads a publications file from `http://`, `https://` or `file://`, at most
/// [`MAX_LEN`] bytes. Nothing of it is verified.
///
/// # Errors
/// [`ClientError`].
pub async fn publications_file(uri: &str, options: &Options) -> Result<Vec<u8>, ClientError> {
    let endpoint = Endpoint::parse(uri)?.with_credentials("", Key::new([]));
    if let Some(path) = endpoint.file() {
        let read = file::read(path, MAX_LEN).await;
        return read.map_err(|source| ClientError::Read {
            path: path.to_owned(),
            source,
        });
    }
    let path = endpoint.path().unwrap_or("/").to_owned();
    fetch(&endpoint, &path, MAX_LEN, Asked::Publications, options).await
}

/// The `tlog-proof` of `second` from the calendar's log at `log`, such as
/// `https://authority.example/log`, at most [`MAX_PROOF_LEN`] bytes; the log may
/// take `wait_s` seconds until witnesses have seen that second. Nothing of it is
/// verified (docs/spec/51-calendar-log.md §4).
///
/// # Errors
/// [`ClientError`]; [`ClientError::Http`] with status 503 as long as the second
/// is not witnessed, 404 if the calendar begins later.
pub async fn calendar_proof(
    log: &str,
    second: Second,
    wait_s: u64,
    options: &Options,
) -> Result<Vec<u8>, ClientError> {
    let endpoint = Endpoint::parse(log)?.with_credentials("", Key::new([]));
    let prefix = endpoint.path().unwrap_or("").trim_end_matches('/');
    let path = format!("{prefix}/proof/{}?wait={wait_s}", second.0);
    let asked = Asked::CalendarProof;
    fetch(&endpoint, &path, MAX_PROOF_LEN, asked, options).await
}

/// Longest proof that is read, in bytes; a real one has about 2,000.
pub const MAX_PROOF_LEN: usize = 128 * 1024;

/// GETs `path`, again if the connection breaks.
async fn fetch(
    endpoint: &Endpoint,
    path: &str,
    max_len: usize,
    asked: Asked,
    options: &Options,
) -> Result<Vec<u8>, ClientError> {
    if endpoint.transport() == Transport::Tcp || endpoint.file().is_some() {
        return Err(EndpointError::NoFiles.into());
    }
    let server = Arc::new(HttpService::new(endpoint, options));
    let deadline = Instant::now() + options.answer_timeout;
    let mut attempt = 1;
    loop {
        let fault = match server.get(path, max_len, deadline).await {
            Ok(answer) if answer.status.is_success() => return Ok(answer.body.to_vec()),
            Ok(answer) => Fault::Http(answer.status.as_u16()),
            Err(fault) => fault,
        };
        let error = service::error(endpoint, options, asked, fault);
        let is_broken = matches!(
            error,
            ClientError::Connect { .. } | ClientError::Lost { .. }
        );
        if !is_broken || attempt >= options.attempts || Instant::now() >= deadline {
            return Err(error);
        }
        attempt += 1;
    }
}
