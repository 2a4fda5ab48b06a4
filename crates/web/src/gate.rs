//! What every request passes: no foreign web page may use a browser on this
//! machine to read what is shown here, or to post (spec 61 §2).

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{self, HeaderName};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::Guarded;
use crate::site::Site;

/// On every answer; a handler's own value stays.
const HEADERS: [(HeaderName, HeaderValue); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"),
    ),
    (
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    ),
    (
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    ),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        HeaderValue::from_static("same-origin"),
    ),
];

pub(crate) async fn pass<G: Guarded>(
    State(site): State<Arc<Site<G>>>,
    request: Request,
    next: Next,
) -> Response {
    let mut response = match refusal(site.is_local(), &request) {
        Some((status, why)) => (status, format!("{why}\n")).into_response(),
        None => next.run(request).await,
    };
    for (name, value) in HEADERS {
        response.headers_mut().entry(name).or_insert(value);
    }
    response
}

fn refusal(is_local: bool, request: &Request) -> Option<(StatusCode, &'static str)> {
    let headers = request.headers();
    if is_local && !text(headers, header::HOST).is_none_or(is_local_host) {
        let why = "this guardian listens on a loopback address and answers to `localhost` only; \
                   a reverse proxy must send `Host: localhost`";
        return Some((StatusCode::MISDIRECTED_REQUEST, why));
    }
    if !request.method().is_safe() && is_foreign(headers) {
        let why = "a web page of another origin may not post here";
        return Some((StatusCode::FORBIDDEN, why));
    }
    None
}

/// A name that cannot be made to point here from outside (DNS rebinding).
fn is_local_host(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Posted by a browser for a page of another origin. Programs send neither header.
fn is_foreign(headers: &HeaderMap) -> bool {
    if let Some(site) = text(headers, HeaderName::from_static("sec-fetch-site")) {
        return !matches!(site, "same-origin" | "none");
    }
    let Some(origin) = text(headers, header::ORIGIN) else {
        return false;
    };
    let host = origin.split_once("://").map(|(_, host)| host);
    host != text(headers, header::HOST)
}

/// A header's value; unreadable bytes count as an empty one.
fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers
        .get(name)
        .map(|value| value.to_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    #[test]
    fn only_names_of_this_machine_are_local() {
        for (host, local) in [
            ("localhost", true),
            ("localhost:7070", true),
            ("LocalHost:7070", true),
            ("127.0.0.1:7070", true),
            ("127.9.9.9", true),
            ("[::1]:7070", true),
            ("[::1]", true),
            ("example.org", false),
            ("localhost.example.org:7070", false),
            ("127.0.0.1.example.org", false),
            ("10.0.0.1", false),
            ("", false),
        ] {
            assert_eq!(is_local_host(host), local, "{host:?}");
        }
    }

    #[test]
    fn foreign_pages_may_not_post() {
        let own: &[_] = &[("host", "localhost:7070")];
        for (method, headers, refused) in [
            ("POST", &[][..], false),
            ("POST", &[("sec-fetch-site", "same-origin")], false),
            ("POST", &[("sec-fetch-site", "none")], false),
            ("POST", &[("sec-fetch-site", "same-site")], true),
            ("POST", &[("sec-fetch-site", "cross-site")], true),
            ("GET", &[("sec-fetch-site", "cross-site")], false),
            ("POST", &[("origin", "http://localhost:7070")], false),
            ("POST", &[("origin", "http://localhost:8080")], true),
            ("POST", &[("origin", "null")], true),
            ("PUT", &[("origin", "https://example.org")], true),
        ] {
            let mut request = Request::builder().method(method);
            for (name, value) in own.iter().chain(headers) {
                request = request.header(*name, *value);
            }
            let request = request.body(Body::empty()).unwrap();
            assert_eq!(
                refusal(true, &request).is_some(),
                refused,
                "{method} {headers:?}"
            );
        }
    }
}
