//! JSON for scripts, and what a supervisor asks (spec 61 §4).

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use pitser_guardian::acceptance;
use pitser_guardian::approver::Refused;
use pitser_guardian::erasure::Asked;
use pitser_guardian::{ScanSummary, SourceState};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::Guarded;
use crate::body::{Missing, arrived};
use crate::site::{Site, Source};
use crate::words::state_words;

/// Version of this software.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// A scan that takes longer goes on, but is no longer waited for.
const SCAN_ANSWER: Duration = Duration::from_secs(20);
/// Longest question of an approver, in bytes.
const ASKED_BYTES: usize = 16 << 10;

pub(crate) async fn status<G: Guarded>(State(site): State<Arc<Site<G>>>) -> Response {
    Json(json!({ "version": VERSION, "sources": site.statuses() })).into_response()
}

pub(crate) async fn health() -> &'static str {
    "ok\n"
}

pub(crate) async fn ready<G: Guarded>(State(site): State<Arc<Site<G>>>) -> Response {
    let reasons: Vec<_> = site
        .statuses()
        .into_iter()
        .filter(|status| status.state != SourceState::Guarding)
        .map(|status| {
            let why = status.trouble.unwrap_or_else(|| state_words(status.state));
            json!({ "source": status.name, "state": status.state, "reason": why })
        })
        .collect();
    let code = match reasons.is_empty() {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let answer = json!({ "ready": reasons.is_empty(), "reasons": reasons });
    (code, Json(answer)).into_response()
}

/// One scan at a time, since each reads every guarded row.
pub(crate) async fn scan<G: Guarded>(
    State(site): State<Arc<Site<G>>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    let Some(source) = site.source(Some(&name)) else {
        let answer = json!({ "error": format!("no source is named {name:?}") });
        return (StatusCode::NOT_FOUND, Json(answer)).into_response();
    };
    let answer = run_scan(source).await;
    // A form that was sent without JavaScript goes back to the page.
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok());
    match accept {
        Some(accept) if accept.contains("text/html") => Redirect::to("/").into_response(),
        _ => answer,
    }
}

async fn run_scan<G: Guarded>(source: &Source<G>) -> Response {
    let goes_on = || {
        let answer = json!({ "source": source.name, "running": true });
        (StatusCode::ACCEPTED, Json(answer)).into_response()
    };
    let Ok(running) = Arc::clone(&source.scanning).try_lock_owned() else {
        return goes_on();
    };
    let guardian = source.guardian.clone();
    let scan = tokio::spawn(async move {
        let outcome = guardian.scan().await;
        drop(running);
        outcome
    });
    match tokio::time::timeout(SCAN_ANSWER, scan).await {
        Err(_) => goes_on(),
        Ok(Ok(Ok(summary))) => {
            let ScanSummary {
                rows,
                findings,
                more,
                unread,
            } = summary;
            let name = &source.name;
            Json(json!({
                "source": name, "rows": rows, "findings": findings, "more": more, "unread": unread
            }))
            .into_response()
        }
        Ok(Ok(Err(why))) => unavailable(&why),
        Ok(Err(_)) => unavailable("the scan was broken off"),
    }
}

/// An approver's question about erasures, or his decision.
pub(crate) async fn erasure<G: Guarded>(
    State(site): State<Arc<Site<G>>>,
    Path(name): Path<String>,
    body: Body,
) -> Response {
    match asked::<Asked, G>(&site, &name, body, "4.5").await {
        Ok((source, asked)) => answer(source.guardian.erasure(asked).await),
        Err(refused) => refused,
    }
}

/// An approver answers for findings.
pub(crate) async fn accept<G: Guarded>(
    State(site): State<Arc<Site<G>>>,
    Path(name): Path<String>,
    body: Body,
) -> Response {
    match asked::<acceptance::Asked, G>(&site, &name, body, "4.6").await {
        Ok((source, asked)) => answer(source.guardian.accept(asked).await),
        Err(refused) => refused,
    }
}

/// An approver answers for a portion of the findings that he chose.
pub(crate) async fn accept_of<G: Guarded>(
    State(site): State<Arc<Site<G>>>,
    Path(name): Path<String>,
    body: Body,
) -> Response {
    match asked::<acceptance::AskedOf, G>(&site, &name, body, "4.6").await {
        Ok((source, asked)) => answer(source.guardian.accept_of(asked).await),
        Err(refused) => refused,
    }
}

/// What an approver asks, of which source. His token never goes over a network in
/// clear, so nothing but a loopback address takes one.
async fn asked<'a, T: DeserializeOwned, G: Guarded>(
    site: &'a Site<G>,
    name: &str,
    body: Body,
    section: &str,
) -> Result<(&'a Source<G>, T), Response> {
    if !site.is_local() {
        let why = "this guardian can be reached from other machines without TLS: approvers are \
                   heard on a loopback address alone";
        return Err(refused(StatusCode::FORBIDDEN, why));
    }
    let unknown = || {
        refused(
            StatusCode::NOT_FOUND,
            &format!("no source is named {name:?}"),
        )
    };
    let source = site.source(Some(name)).ok_or_else(unknown)?;
    let bytes = arrived(body, ASKED_BYTES).await.map_err(|missing| {
        let why = match missing {
            Missing::TooLarge => "a question has at most 16 KiB",
            Missing::TooSlow => "the question took too long",
            Missing::BrokenOff => "the question broke off",
        };
        refused(missing.status(), why)
    })?;
    // What serde says of it could repeat the token.
    let asked = serde_json::from_slice(&bytes).map_err(|_| {
        let why = format!("this is no question of an approver: see spec 61, {section}");
        refused(StatusCode::BAD_REQUEST, &why)
    })?;
    Ok((source, asked))
}

fn answer<T: Serialize>(answer: Result<T, Refused>) -> Response {
    match answer {
        Ok(answer) => Json(answer).into_response(),
        Err(error @ (Refused::Unknown | Refused::Powerless { .. } | Refused::Expired { .. })) => {
            refused(StatusCode::FORBIDDEN, &error.to_string())
        }
        Err(Refused::Rule(why)) => refused(StatusCode::CONFLICT, &why),
        Err(Refused::Unavailable(why)) => unavailable(&why),
    }
}

fn refused(code: StatusCode, why: &str) -> Response {
    (code, Json(json!({ "error": why }))).into_response()
}

fn unavailable(why: &str) -> Response {
    refused(StatusCode::SERVICE_UNAVAILABLE, why)
}
