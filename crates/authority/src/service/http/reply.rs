//! Answers to GET, with what a cache may do with them.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};

pub(crate) type Answer = Response<Full<Bytes>>;

/// An answer of this kind, whose content nobody is to guess another kind of.
pub(crate) fn reply(
    status: StatusCode,
    kind: &'static str,
    cache: &'static str,
    body: impl Into<Bytes>,
) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    answer
}

pub(crate) const TEXT: &str = "text/plain; charset=utf-8";
pub(crate) const BYTES: &str = "application/octet-stream";

pub(crate) const FOR_EVER: &str = "public, max-age=31536000, immutable";
pub(crate) const BRIEFLY: &str = "public, max-age=60";
pub(crate) const NEVER: &str = "no-store";
