//! Server-sent events: what changes, as it changes (spec 61 §4.2).
//!
//! ```text
//! event: status
//! data: {"name":"ehr","state":"guarding",...}
//! ```

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::channel::{Channel, Sender};
use pitser_guardian::Status;
use tokio::time::sleep;

use crate::Guarded;
use crate::site::{Site, stopping};

/// A comment is sent after so much silence, so that both sides notice an end.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Least time between two updates; what happens in between is not sent singly.
const PACE: Duration = Duration::from_millis(250);

/// GET `/api/events`: the status of each source, then each that changes.
pub(crate) async fn statuses<G: Guarded>(State(site): State<Arc<Site<G>>>) -> Response {
    let mut sent: Vec<String> = Vec::new();
    stream(site, move |statuses| {
        let mut events = String::new();
        sent.resize(statuses.len(), String::new());
        for (status, sent) in statuses.iter().zip(&mut sent) {
            let json = serde_json::to_string(status).expect("strings, numbers and lists");
            if json != *sent {
                events += &event("status", &json);
                *sent = json;
            }
        }
        events
    })
}

/// One event. `json` has no line breaks.
pub(crate) fn event(name: &str, json: &str) -> String {
    format!("event: {name}\ndata: {json}\n\n")
}

/// Sends what `render` makes of the statuses, now and whenever one changes;
/// nothing while it gives nothing.
pub(crate) fn stream<G: Guarded>(
    site: Arc<Site<G>>,
    render: impl FnMut(&[Status]) -> String + Send + 'static,
) -> Response {
    let Some(place) = site.stream_place() else {
        let why = "too many live streams; close some, or ask /api/status from time to time\n";
        let retry = [(header::RETRY_AFTER, "30")];
        return (StatusCode::SERVICE_UNAVAILABLE, retry, why).into_response();
    };
    let (out, body) = Channel::<Bytes, Infallible>::new(1);
    tokio::spawn(async move {
        send_changes(&site, render, out).await;
        drop(place);
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (
            header::HeaderName::from_static("x-accel-buffering"),
            "no", // nginx would hold events back
        ),
    ];
    (headers, Body::new(body)).into_response()
}

/// Returns when the other side is gone, or the server stops.
async fn send_changes<G: Guarded>(
    site: &Site<G>,
    mut render: impl FnMut(&[Status]) -> String,
    mut out: Sender<Bytes>,
) {
    let (mut changes, mut stop) = (site.changes(), site.stop());
    let mut next = String::from("retry: 2000\n\n");
    loop {
        changes.mark_unchanged();
        next += &render(&site.statuses());
        if !next.is_empty() && out.send_data(next.into()).await.is_err() {
            return;
        }
        next = tokio::select! {
            () = stopping(&mut stop) => return,
            () = sleep(KEEP_ALIVE) => String::from(": still here\n\n"),
            changed = async { sleep(PACE).await; changes.changed().await } => match changed {
                Ok(()) => String::new(),
                Err(_) => return,
            },
        };
    }
}
