//! The FHIR feed of ITI-20: one `AuditEvent`, or a batch Bundle of them (spec 61 §3).
//!
//! | answer | means                                                     |
//! |--------|-----------------------------------------------------------|
//! | 201    | taken; its line is on disk                                |
//! | 200    | the same bytes had been taken before; nothing was written |
//! | 400    | not JSON, a key twice, or the body broke off              |
//! | 408    | it took too long to arrive                                |
//! | 413    | larger than is looked at                                  |
//! | 415    | says that it is something else than JSON                  |
//! | 422    | JSON, but no R4 `AuditEvent`                              |
//! | 503    | not taken now; send the same bytes again later            |

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use pitser_capture::fhir::{self, FhirError, MAX_BUNDLE, MAX_EVENT, Problem};
use pitser_guardian::SubmitError;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use crate::api::VERSION;
use crate::body::{Missing, arrived};
use crate::site::{Site, Source};
use crate::{Guarded, Taken};

/// A request whose events are not durable by then is told to come again.
const TAKE: Duration = Duration::from_secs(45);
/// Seconds after which a sender should try again.
const RETRY_AFTER: &str = "5";

/// POST `/fhir/AuditEvent`.
pub(crate) async fn event<G: Guarded>(
    State(site): State<Arc<Site<G>>>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    feed(&site, None, MAX_EVENT, &headers, body).await
}

/// POST `/fhir/{source}/AuditEvent`.
pub(crate) async fn event_of<G: Guarded>(
    State(site): State<Arc<Site<G>>>,
    Path(source): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    feed(&site, Some(&source), MAX_EVENT, &headers, body).await
}

/// POST `/fhir`.
pub(crate) async fn batch<G: Guarded>(
    State(site): State<Arc<Site<G>>>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    feed(&site, None, MAX_BUNDLE, &headers, body).await
}

/// POST `/fhir/{source}`.
pub(crate) async fn batch_of<G: Guarded>(
    State(site): State<Arc<Site<G>>>,
    Path(source): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    feed(&site, Some(&source), MAX_BUNDLE, &headers, body).await
}

/// GET `/fhir/metadata`: clients ask this before they send.
pub(crate) async fn metadata() -> Response {
    let statement = json!({
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": "2026-11-23",
        "kind": "instance",
        "software": { "name": "Pitser", "version": VERSION },
        "implementation": { "description": "Takes audit events into a sealed trail (IHE ITI-20, FHIR feed)" },
        "fhirVersion": "4.0.1",
        "format": ["application/fhir+json"],
        "rest": [{
            "mode": "server",
            "resource": [{ "type": "AuditEvent", "interaction": [{ "code": "create" }] }],
            "interaction": [{ "code": "batch" }],
        }],
    });
    fhir_json(StatusCode::OK, &statement)
}

/// The body says whether it is an event or a Bundle: real senders mix the paths up.
async fn feed<G: Guarded>(
    site: &Site<G>,
    name: Option<&str>,
    most: usize,
    headers: &HeaderMap,
    body: Body,
) -> Response {
    let Some(source) = site.source(name) else {
        let why = "no source of this name is guarded here";
        return refuse(StatusCode::NOT_FOUND, "not-found", why);
    };
    if !is_json(headers) {
        let why = "send application/fhir+json";
        return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-supported", why);
    }
    let _place = match most {
        MAX_EVENT => None,
        _ => match site.bundle_place() {
            None => return busy("too many Bundles are in work"),
            place => place,
        },
    };
    let raw = match read(body, most).await {
        Ok(raw) => raw,
        Err(refused) => return refused,
    };
    let until = Instant::now() + TAKE;
    if fhir::is_bundle(&raw) {
        return take_bundle(source, &raw, until).await;
    }
    let answer = take(source, raw.into(), until).await;
    answer.into_response(wants_nothing_back(headers))
}

async fn take_bundle<G: Guarded>(source: &Source<G>, raw: &[u8], until: Instant) -> Response {
    let entries = match fhir::parse_bundle(raw) {
        Ok(entries) => entries,
        Err(error) => return Answer::Refused(error).into_response(false),
    };
    // As text at once: ten thousand trees would be some hundred megabytes.
    let mut answers = String::from(BATCH_RESPONSE);
    let mut is_away = false;
    for (at, entry) in entries.into_iter().enumerate() {
        let answer = match entry {
            Err(error) => Answer::Refused(error),
            Ok(_) if is_away => Answer::Later("not tried, as an entry before failed".into()),
            Ok(raw) => take(source, raw.to_vec(), until).await,
        };
        is_away |= matches!(answer, Answer::Later(_));
        let separator = if at == 0 { "" } else { "," };
        answers += &format!("{separator}{}", answer.entry());
    }
    answers += "]}";
    // A sender that looks at the status alone must not believe that all is
    // well; sent again, what was taken is known and costs nothing.
    match is_away {
        false => (StatusCode::OK, FHIR_JSON, answers).into_response(),
        true => later((StatusCode::SERVICE_UNAVAILABLE, FHIR_JSON, answers).into_response()),
    }
}

/// How the answer to a Bundle begins; the entries follow.
const BATCH_RESPONSE: &str = r#"{"resourceType":"Bundle","type":"batch-response","entry":["#;

async fn take<G: Guarded>(source: &Source<G>, raw: Vec<u8>, until: Instant) -> Answer {
    match timeout_at(until, source.guardian.submit(raw)).await {
        Ok(Ok(taken)) => Answer::Taken(taken),
        Ok(Err(SubmitError::Refused(error))) => Answer::Refused(error),
        Ok(Err(error @ SubmitError::Unavailable(_))) => Answer::Later(error.to_string()),
        Err(_) => Answer::Later("the guardian is busy".into()),
    }
}

/// What becomes of one event.
enum Answer {
    Taken(Taken),
    Refused(FhirError),
    Later(String),
}

impl Answer {
    fn status(&self) -> StatusCode {
        match self {
            Self::Taken(taken) if taken.known => StatusCode::OK,
            Self::Taken(_) => StatusCode::CREATED,
            Self::Later(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Refused(error) => match error.problem {
                Problem::Syntax => StatusCode::BAD_REQUEST,
                Problem::TooLarge | Problem::TooMany => StatusCode::PAYLOAD_TOO_LARGE,
                Problem::Required | Problem::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            },
        }
    }

    /// Relative to the FHIR base; seen from `[base]/AuditEvent` that is the same.
    fn location(&self) -> Option<String> {
        match self {
            Self::Taken(taken) => Some(format!("AuditEvent/{}", taken.id)),
            _ => None,
        }
    }

    fn outcome(&self) -> Value {
        match self {
            Self::Refused(error) => error.to_operation_outcome(),
            Self::Later(why) => issues([("error", "transient", why.as_str())]),
            Self::Taken(taken) => {
                let first = match taken.known {
                    true => "these bytes had been taken before; nothing was written".to_owned(),
                    false => format!("durable in the trail; lines: {}", taken.lines),
                };
                let all = std::iter::once(&first).chain(&taken.profile_violations);
                issues(all.map(|text| ("information", "informational", text.as_str())))
            }
        }
    }

    fn into_response(self, wants_nothing_back: bool) -> Response {
        let mut response = match self {
            Self::Taken(_) if wants_nothing_back => self.status().into_response(),
            _ => fhir_json(self.status(), &self.outcome()),
        };
        if let Some(Ok(location)) = self.location().map(TryInto::try_into) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        match self {
            Self::Later(_) => later(response),
            _ => response,
        }
    }

    fn entry(&self) -> Value {
        let mut response =
            json!({ "status": self.status().to_string(), "outcome": self.outcome() });
        if let Some(location) = self.location() {
            response["location"] = location.into();
        }
        json!({ "response": response })
    }
}

/// JSON by its media type, or nothing said about it. What a form of a web page
/// could send is not.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE) else {
        return true;
    };
    let kind = kind.to_str().unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    let essence = essence.to_ascii_lowercase();
    essence.ends_with("+json") || essence.ends_with("/json")
}

/// `Prefer: return=minimal`.
fn wants_nothing_back(headers: &HeaderMap) -> bool {
    headers
        .get_all("prefer")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split([',', ';']))
        .any(|preference| preference.trim().eq_ignore_ascii_case("return=minimal"))
}

async fn read(body: Body, most: usize) -> Result<Bytes, Response> {
    arrived(body, most).await.map_err(|missing| {
        let (code, why) = match missing {
            Missing::TooLarge => ("too-long", &*format!("at most {most} bytes are taken here")),
            Missing::TooSlow => ("timeout", "the body took too long"),
            Missing::BrokenOff => ("incomplete", "the body broke off"),
        };
        refuse(missing.status(), code, why)
    })
}

fn refuse(status: StatusCode, code: &str, why: &str) -> Response {
    fhir_json(status, &issues([("error", code, why)]))
}

fn busy(why: &str) -> Response {
    later(refuse(StatusCode::SERVICE_UNAVAILABLE, "throttled", why))
}

fn later(mut response: Response) -> Response {
    let seconds = header::HeaderValue::from_static(RETRY_AFTER);
    response.headers_mut().insert(header::RETRY_AFTER, seconds);
    response
}

fn issues<'a>(issues: impl IntoIterator<Item = (&'a str, &'a str, &'a str)>) -> Value {
    let issues: Vec<_> = issues
        .into_iter()
        .map(|(severity, code, diagnostics)| {
            json!({ "severity": severity, "code": code, "diagnostics": diagnostics })
        })
        .collect();
    json!({ "resourceType": "OperationOutcome", "issue": issues })
}

fn fhir_json(status: StatusCode, value: &Value) -> Response {
    (status, FHIR_JSON, value.to_string()).into_response()
}

const FHIR_JSON: [(header::HeaderName, &str); 1] =
    [(header::CONTENT_TYPE, "application/fhir+json")];

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderName;

    fn headers(name: HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, header::HeaderValue::from_static(value))])
    }

    #[test]
    fn takes_what_says_that_it_is_json() {
        assert!(is_json(&HeaderMap::new()));
        for (kind, taken) in [
            ("application/fhir+json", true),
            ("application/fhir+json; fhirVersion=4.0", true),
            ("Application/JSON;charset=utf-8", true),
            ("text/json", true),
            ("application/fhir+xml", false),
            ("text/plain", false),
            ("text/plain; x=/json", false),
            ("application/x-www-form-urlencoded", false),
        ] {
            assert_eq!(
                is_json(&headers(header::CONTENT_TYPE, kind)),
                taken,
                "{kind}"
            );
        }
    }

    #[test]
    fn preferences() {
        let prefer = HeaderName::from_static("prefer");
        for (value, minimal) in [
            ("return=minimal", true),
            ("respond-async, Return=Minimal", true),
            ("return=OperationOutcome", false),
        ] {
            let headers = headers(prefer.clone(), value);
            assert_eq!(wants_nothing_back(&headers), minimal, "{value}");
        }
    }
}
