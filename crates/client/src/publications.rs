//! Fetches publications files. Nothing of them is verified here.

use std::sync::Arc;

use pitser_ksi::publications_file::MAX_LEN;
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
    if endpoint.transport() == Transport::Tcp {
        return Err(EndpointError::NoFiles.into());
    }
    if let Some(path) = endpoint.file() {
        let read = file::read(path, MAX_LEN).await;
        return read.map_err(|source| ClientError::Read {
            path: path.to_owned(),
            source,
        });
    }
    let server = Arc::new(HttpService::new(&endpoint, options));
    let deadline = Instant::now() + options.answer_timeout;
    let path = endpoint.path().unwrap_or("/");
    let mut attempt = 1;
    loop {
        let fault = match server.get(path, MAX_LEN, deadline).await {
            Ok(answer) if answer.status.is_success() => return Ok(answer.body.to_vec()),
            Ok(answer) => Fault::Http(answer.status.as_u16()),
            Err(fault) => fault,
        };
        let error = service::error(&endpoint, options, Asked::Publications, fault);
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
