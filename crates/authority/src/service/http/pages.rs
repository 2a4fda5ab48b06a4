//! What is asked by HTTP, and what is answered.

use std::convert::Infallible;
use std::sync::Arc;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use hyper::{Method, Request, Response, StatusCode};
use pitser_ksi::{publications_file, tlv};

use crate::aside::Aside;
use crate::fleet;
use crate::publications::{PublicationsError, Published};
use crate::publicity::{Page, Publicity};
use crate::service::Service;
use crate::service::answer::Outlet;
use crate::service::desk::Desk;

/// Who may see what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Audience {
    /// Anybody: PDUs, publications, whether it works.
    Public,
    /// Also counters and logins.
    Operator,
    /// Also whoever owns the data: commands.
    Owner,
}

type Answer = Response<Full<Bytes>>;

/// Answers one request. Nothing can go wrong that is no answer.
pub(super) async fn answer(
    service: &Arc<Service>,
    audience: Audience,
    request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    let path = request.uri().path();
    Ok(match *request.method() {
        Method::GET | Method::HEAD if path.starts_with("/log/") => match service.past.own() {
            Some(own) => own.log.answer(path, request.uri().query()).await,
            None => text(StatusCode::NOT_FOUND, ABOVE),
        },
        Method::GET | Method::HEAD if Publicity::has(path) => shown(service, path).await,
        Method::GET | Method::HEAD if is_fleet(path) => match service.past.own() {
            Some(own) => {
                let is_operator = audience >= Audience::Operator;
                fleet::get(&own.fleet, path, service.now(), is_operator).await
            }
            None => text(StatusCode::NOT_FOUND, ABOVE),
        },
        Method::GET | Method::HEAD => page(service, audience, path),
        Method::POST if audience == Audience::Owner && path == "/publish" => publish(service).await,
        Method::POST if audience == Audience::Owner && path == "/publications.bin" => {
            hand_in(service, request.into_body()).await
        }
        Method::POST if audience == Audience::Public && is_fleet(path) => {
            match service.past.own() {
                Some(own) => fleet::post(service, &own.fleet, request).await,
                None => text(StatusCode::NOT_FOUND, ABOVE),
            }
        }
        Method::POST if audience == Audience::Public => pdu(service, request.into_body()).await,
        Method::POST => text(StatusCode::NOT_FOUND, "nothing is signed here\n"),
        _ => {
            let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "GET or POST\n");
            let allowed = hyper::header::HeaderValue::from_static("GET, HEAD, POST");
            refused.headers_mut().insert(ALLOW, allowed);
            refused
        }
    })
}

fn is_fleet(path: &str) -> bool {
    path == "/fleet" || path == "/fleet.json" || path.starts_with("/fleet/")
}

fn page(service: &Service, audience: Audience, path: &str) -> Answer {
    let is_operator = audience >= Audience::Operator;
    match path {
        "/publications.bin" => match service.past.own() {
            Some(own) => {
                let file = Bytes::from_owner(own.publications.file());
                reply(StatusCode::OK, "application/octet-stream", file)
            }
            None => text(StatusCode::NOT_FOUND, ABOVE),
        },
        "/health" => told(service.health()),
        "/ready" => told(service.ready()),
        "/metrics" if is_operator => {
            let counted = service.metrics.text(&service.state());
            reply(StatusCode::OK, "text/plain; version=0.0.4", counted)
        }
        "/status" if is_operator => reply(StatusCode::OK, JSON, service.status().to_string()),
        "/metrics" | "/status" => text(
            StatusCode::FORBIDDEN,
            "this is served on the monitor address alone\n",
        ),
        _ => text(
            StatusCode::NOT_FOUND,
            "GET /publications.bin, /publications.atom, /publications/latest, /log/checkpoint, /fleet, /health or /ready; POST a message to sign or extend\n",
        ),
    }
}

static SHOWING: Aside = Aside::new();

/// Something about publications for people, off the runtime's threads.
async fn shown(service: &Service, path: &str) -> Answer {
    let Some(own) = service.past.own() else {
        return text(StatusCode::NOT_FOUND, ABOVE);
    };
    let (publicity, path) = (Arc::clone(&own.publicity), path.to_owned());
    let page = SHOWING.run(move || publicity.answer(&path)).await;
    match page {
        Ok(Page::Html(page)) => reply(StatusCode::OK, "text/html; charset=utf-8", page),
        Ok(Page::Pdf(page)) => reply(StatusCode::OK, "application/pdf", page),
        Ok(Page::Atom(page)) => reply(StatusCode::OK, "application/atom+xml; charset=utf-8", page),
        Ok(Page::At(path)) => {
            let mut answer = text(StatusCode::FOUND, format!("{path}\n"));
            if let Ok(path) = path.try_into() {
                answer.headers_mut().insert(LOCATION, path);
            }
            answer
        }
        Ok(Page::None(reason)) => text(StatusCode::NOT_FOUND, reason),
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, ""),
    }
}

/// One message of the protocol.
async fn pdu(service: &Service, body: Incoming) -> Answer {
    if body.size_hint().lower() > tlv::MAX as u64 {
        return text(StatusCode::PAYLOAD_TOO_LARGE, "");
    }
    let (outlet, mut replies) = Outlet::new(1, service.limits.taken_within);
    let body = Limited::new(body, tlv::MAX).collect();
    let body = tokio::time::timeout(service.limits.idle, body).await;
    // Gone with this block: once its answer is taken there can be no other.
    let status = {
        let mut desk = Desk::new(service, outlet);
        match body {
            Ok(Ok(frame)) => {
                let (frame, arrived_at) = (frame.to_bytes(), service.now());
                service.metrics.received(frame.len());
                desk.take(&frame, arrived_at);
                desk.flush(arrived_at);
                StatusCode::OK
            }
            Ok(Err(_)) => {
                desk.refuse_garbage();
                StatusCode::PAYLOAD_TOO_LARGE
            }
            Err(_) => return text(StatusCode::REQUEST_TIMEOUT, ""),
        }
    };
    let mut answer = Vec::new();
    match replies.fill(&mut answer, 1).await {
        Ok(1..) if !answer.is_empty() => {
            service.metrics.sent(answer.len());
            reply(status, "application/ksi-response", answer)
        }
        _ => text(StatusCode::INTERNAL_SERVER_ERROR, ""),
    }
}

async fn publish(service: &Arc<Service>) -> Answer {
    let service = Arc::clone(service);
    let published = tokio::task::spawn_blocking(move || service.publish()).await;
    let published = published.unwrap_or(Some(Err(PublicationsError::Interrupted)));
    let Some(published) = published else {
        return text(StatusCode::NOT_FOUND, ABOVE);
    };
    match published {
        Ok(Published { data, code, is_new }) => {
            let facts = serde_json::json!({
                "second": data.time.to_string(), "code": code, "new": is_new,
            });
            reply(StatusCode::OK, JSON, facts.to_string())
        }
        Err(e) => not_published(&e),
    }
}

/// Takes a publications file that was made elsewhere.
async fn hand_in(service: &Arc<Service>, body: Incoming) -> Answer {
    let body = Limited::new(body, publications_file::MAX_LEN).collect();
    let file = match tokio::time::timeout(service.limits.idle, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => return text(StatusCode::PAYLOAD_TOO_LARGE, ""),
        Err(_) => return text(StatusCode::REQUEST_TIMEOUT, ""),
    };
    let service = Arc::clone(service);
    let handed_in = tokio::task::spawn_blocking(move || service.hand_in(&file)).await;
    match handed_in.unwrap_or(Some(Err(PublicationsError::Interrupted))) {
        Some(Ok(handed_in)) => reply(StatusCode::OK, JSON, handed_in.facts().to_string()),
        Some(Err(e)) => not_published(&e),
        None => text(StatusCode::NOT_FOUND, ABOVE),
    }
}

/// 422 if something else is to be asked for or handed in.
fn not_published(error: &PublicationsError) -> Answer {
    let status = match error {
        PublicationsError::Refused(_)
        | PublicationsError::Elsewhere
        | PublicationsError::OwnKey => StatusCode::UNPROCESSABLE_ENTITY,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let facts = serde_json::json!({ "error": error.to_string() });
    reply(status, JSON, facts.to_string())
}

fn told(outcome: Result<String, String>) -> Answer {
    match outcome {
        Ok(line) => text(StatusCode::OK, line),
        Err(line) => text(StatusCode::SERVICE_UNAVAILABLE, line),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    reply(status, "text/plain; charset=utf-8", body)
}

fn reply(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    headers.insert(
        CACHE_CONTROL,
        hyper::header::HeaderValue::from_static("no-store"),
    );
    answer
}

/// An aggregator has neither calendar nor publications.
const ABOVE: &str = "this is an aggregator: the service above it publishes\n";
const JSON: &str = "application/json";
