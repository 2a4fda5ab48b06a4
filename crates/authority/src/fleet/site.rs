//! The fleet over HTTP.
//!
//! | request                        | answer                                            |
//! |--------------------------------|---------------------------------------------------|
//! | POST `/fleet/register`         | `tlog-proof` of the entry; 409: the name is taken |
//! |                                | 503: other nodes are not reached                  |
//! | POST `/fleet/head`             | 200; 409: it contradicts what was sent before     |
//! | GET `/fleet`, `/fleet.json`    | the list; with logins for operators alone         |
//! | GET `/fleet/log/checkpoint`    | the newest checkpoint of the log                  |
//! | GET `/fleet/log/witnessed`     | the newest one that a quorum has cosigned         |
//! | GET `/fleet/log/tile/…`        | tiles and entries (C2SP tlog-tiles)               |
//!
//! Whoever asks by POST is a user, and proves it before anything is looked at.

use std::sync::Arc;

use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, StatusCode};
use pitser_client::fleet::{
    Call, Credentials, MAX_HEAD_BYTES, MAX_REGISTRATION_BYTES, Registration,
};
use pitser_tlog::checkpoint::Checkpoint;
use pitser_tlog::note::Note;
use pitser_tlog::tiles::{Content, Tile, encode_bundle, tile_bytes};

use super::show::page;
use super::{Fleet, FleetError, Heard, NotTaken, Registered, SKEW_S, Signed, is_near};
use crate::aside::Aside;
use crate::clock::Micros;
use crate::metrics::Reason;
use crate::service::Service;
use crate::service::http::reply::{Answer, BRIEFLY, FOR_EVER, NEVER, TEXT, reply};

/// Answers POST of a path below `/fleet/`.
pub(crate) async fn post(
    service: &Arc<Service>,
    fleet: &Arc<Fleet>,
    request: Request<Incoming>,
) -> Answer {
    let (call, most) = match request.uri().path() {
        "/fleet/register" => (Call::Register, MAX_REGISTRATION_BYTES),
        "/fleet/head" => (Call::Head, MAX_HEAD_BYTES),
        _ => {
            return told(StatusCode::NOT_FOUND, "POST /fleet/register or /fleet/head");
        }
    };
    let credentials = credentials(request.headers());
    let body = Limited::new(request.into_body(), most).collect();
    let body = match tokio::time::timeout(service.limits.idle, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => {
            service.metrics.refused(Reason::TooMuch);
            return told(StatusCode::PAYLOAD_TOO_LARGE, "this is too long");
        }
        Err(_) => return told(StatusCode::REQUEST_TIMEOUT, "this took too long"),
    };
    let now = service.now();
    let credentials = match authenticated(service, credentials, call, &body, now) {
        Ok(credentials) => credentials,
        Err((status, text)) => {
            service.metrics.refused(Reason::Authentication);
            let mut answer = told(status, &text);
            let scheme = HeaderValue::from_static("Pitser");
            answer
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, scheme);
            return answer;
        }
    };
    let (service, fleet) = (Arc::clone(service), Arc::clone(fleet));
    let judge = move || match call {
        Call::Register => register(&service, &fleet, &credentials, &body, now),
        Call::Head => head(&service, &fleet, &credentials, &body, now),
    };
    match TAKING.run(judge).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            tracing::error!(%error, "the fleet cannot be written");
            told(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the fleet cannot be written now",
            )
        }
        Err(_) => told(StatusCode::INTERNAL_SERVER_ERROR, "the fleet failed"),
    }
}

fn credentials(headers: &HeaderMap) -> Option<Credentials> {
    let header = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    Credentials::parse(header)
}

/// Those of a user, about this body, and made just now.
fn authenticated(
    service: &Service,
    credentials: Option<Credentials>,
    call: Call,
    body: &[u8],
    now: Micros,
) -> Result<Credentials, (StatusCode, String)> {
    let refused = |text: &str| (StatusCode::UNAUTHORIZED, text.to_owned());
    let Some(credentials) = credentials else {
        return Err(refused("say who asks: Authorization: Pitser …"));
    };
    let member = service.users.get(&credentials.login);
    let key = member
        .as_deref()
        .map_or(&service.users.stranger().mac_key, |one| &one.mac_key);
    // Also for strangers: they cost as much time.
    let is_theirs = credentials.are_of(key, call, body);
    if member.is_none() || !is_theirs {
        return Err(refused("unknown user or wrong key"));
    }
    if !is_near(credentials.at_us, now) {
        let text = format!(
            "it is {now} here, and the request says {}: clocks that differ by more than {SKEW_S} s; set yours",
            Micros(credentials.at_us)
        );
        return Err((StatusCode::BAD_REQUEST, text));
    }
    Ok(credentials)
}

fn register(
    service: &Service,
    fleet: &Fleet,
    credentials: &Credentials,
    body: &[u8],
    now: Micros,
) -> Result<Answer, FleetError> {
    let (registration, note) = match Registration::open(body) {
        Ok(opened) => opened,
        Err(error) => {
            service.metrics.refused(Reason::Malformed);
            return Ok(told(StatusCode::BAD_REQUEST, &error.to_string()));
        }
    };
    let is_user = |login: &str| service.users.get(login).is_some();
    let login = &credentials.login;
    let registered = fleet.register(&registration, &note, login, now.ended(), &is_user);
    // Why this node is not in touch is logged where that is tried again.
    if let Err(FleetError::Away { .. } | FleetError::Apart { .. } | FleetError::Unfit { .. }) =
        registered
    {
        service.metrics.refused(Reason::NotSigning);
        return Ok(told(StatusCode::SERVICE_UNAVAILABLE, NOT_IN_TOUCH));
    }
    Ok(match registered? {
        Registered::Proof(proof) => reply(StatusCode::OK, TEXT, NEVER, proof.to_string()),
        Registered::Taken(text) => told(StatusCode::CONFLICT, &text),
        Registered::TooMany(text) => {
            service.metrics.refused(Reason::Quota);
            told(StatusCode::TOO_MANY_REQUESTS, text)
        }
    })
}

fn head(
    service: &Service,
    fleet: &Fleet,
    credentials: &Credentials,
    body: &[u8],
    now: Micros,
) -> Result<Answer, FleetError> {
    let note = Note::parse(body).ok();
    let parsed = note.and_then(|note| Some((Checkpoint::parse(note.text()).ok()?, note)));
    let Some((checkpoint, note)) = parsed else {
        service.metrics.refused(Reason::Malformed);
        return Ok(told(StatusCode::BAD_REQUEST, "this is no head of a trail"));
    };
    let (login, sent_us) = (&credentials.login, credentials.at_us);
    let heard = fleet.head((&checkpoint, &note), login, sent_us, now.ended())?;
    Ok(match heard {
        Heard::Taken => told(StatusCode::OK, "taken"),
        Heard::Contradicts(text) => told(StatusCode::CONFLICT, &text),
        Heard::Refused(reason) => {
            let (status, counted) = match reason {
                NotTaken::Unknown => (StatusCode::NOT_FOUND, Reason::OutOfRange),
                NotTaken::NotYours => (StatusCode::FORBIDDEN, Reason::Authentication),
                NotTaken::NotSigned | NotTaken::BadCosignature => {
                    (StatusCode::BAD_REQUEST, Reason::Malformed)
                }
                NotTaken::Replayed => (StatusCode::BAD_REQUEST, Reason::Authentication),
                NotTaken::TooOften => (StatusCode::TOO_MANY_REQUESTS, Reason::Rate),
            };
            service.metrics.refused(counted);
            told(status, &reason.to_string())
        }
    })
}

static TAKING: Aside = Aside::new();
static SHOWING: Aside = Aside::new();

/// Answers GET of `/fleet`, `/fleet.json` and paths below `/fleet/log/`.
pub(crate) async fn get(fleet: &Arc<Fleet>, path: &str, now: Micros, is_operator: bool) -> Answer {
    let (fleet, path) = (Arc::clone(fleet), path.to_owned());
    // The lock may be held by somebody who waits for the disk.
    let shown = SHOWING
        .run(move || show(&fleet, &path, now, is_operator))
        .await;
    let failed = |_| told(StatusCode::INTERNAL_SERVER_ERROR, "the fleet failed");
    shown.unwrap_or_else(failed)
}

fn show(fleet: &Fleet, path: &str, now: Micros, is_operator: bool) -> Answer {
    match path {
        "/fleet" | "/fleet/" => {
            let page = page(&fleet.list(now.ended(), is_operator));
            let mut answer = reply(StatusCode::OK, "text/html; charset=utf-8", NEVER, page);
            let policy = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");
            let headers = answer.headers_mut();
            headers.insert(header::CONTENT_SECURITY_POLICY, policy);
            answer
        }
        "/fleet.json" => {
            let list = fleet.list(now.ended(), is_operator);
            reply(StatusCode::OK, "application/json", NEVER, list.to_string())
        }
        "/fleet/log/checkpoint" => note(
            fleet.inner().checkpoint.as_ref(),
            "nothing is registered yet",
        ),
        "/fleet/log/witnessed" => note(
            fleet.inner().witnessed.as_ref(),
            "no checkpoint is witnessed yet",
        ),
        path => match path.strip_prefix("/fleet/log/") {
            Some(tile) => self::tile(fleet, tile),
            None => told(
                StatusCode::NOT_FOUND,
                "GET /fleet, /fleet.json or /fleet/log/checkpoint",
            ),
        },
    }
}

fn note(signed: Option<&Signed>, none: &str) -> Answer {
    match signed {
        Some(signed) => reply(StatusCode::OK, TEXT, NEVER, signed.note.to_string()),
        None => told(StatusCode::NOT_FOUND, none),
    }
}

fn tile(fleet: &Fleet, path: &str) -> Answer {
    let inner = fleet.inner();
    let size = inner.checkpoint.as_ref().map_or(0, |signed| signed.size);
    let found = Tile::parse(path).ok().and_then(|tile| {
        let there = Tile::at_size(tile.content(), tile.index(), size)?;
        let bytes = match tile.content() {
            _ if there.width() < tile.width() => return None,
            Content::Hashes(_) => tile_bytes(&inner.tree, tile).ok()?,
            Content::Entries => {
                let from = usize::try_from(tile.index()).ok()? * usize::from(TILE_WIDTH);
                let to = from + usize::from(tile.width());
                let entries = inner.ledger.entries().get(from..to)?;
                encode_bundle(entries.iter().map(Vec::as_slice)).ok()?
            }
        };
        Some((tile, bytes))
    });
    match found {
        Some((tile, bytes)) => {
            let cache = if tile.is_partial() { BRIEFLY } else { FOR_EVER };
            reply(StatusCode::OK, "application/octet-stream", cache, bytes)
        }
        None => told(StatusCode::NOT_FOUND, "no such tile"),
    }
}

fn told(status: StatusCode, text: &str) -> Answer {
    reply(status, TEXT, NEVER, format!("{text}\n"))
}

/// Whoever asks learns no addresses and no folders.
const NOT_IN_TOUCH: &str = "not registered: this node is not in touch with the other nodes of its authority; ask \
                            another one, or again later";
const TILE_WIDTH: u16 = pitser_tlog::tiles::FULL_WIDTH;
