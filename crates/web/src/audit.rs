//! What auditors ask (spec 64): carried to the guardian's desk, which knows whose
//! signatures count and what is answered.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use pitser_guardian::audit::{Answer, BODY, Request as Asked};

use crate::Guarded;
use crate::body::arrived;
use crate::site::Site;

pub(crate) async fn audit<G: Guarded>(
    State(site): State<Arc<Site<G>>>,
    Path((source, _)): Path<(String, String)>,
    request: Request,
) -> Response {
    // Strangers do not learn which sources there are.
    let source = site.source(Some(&source)).or_else(|| site.source(None));
    let Some(desk) = source.and_then(|source| source.guardian.desk()) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let (head, body) = request.into_parts();
    let body = match arrived(body, BODY).await {
        Ok(body) => body,
        Err(missing) => return missing.status().into_response(),
    };
    let authorization = head.headers.get(header::AUTHORIZATION);
    let target = head.uri.path_and_query();
    let asked = Asked {
        method: head.method.as_str(),
        target: target.map_or("", |target| target.as_str()),
        authorization: authorization
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default(),
        body: &body,
    };
    answered(desk.answer(asked).await)
}

fn answered(answer: Answer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let kind = match answer.is_json {
        true => "application/json",
        false => "application/octet-stream",
    };
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    if matches!(answer.status, 429 | 503) {
        headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
    }
    response
}
