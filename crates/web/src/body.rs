//! The body of a request: all of it, in time, or why not.

use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::http::StatusCode;
use http_body_util::LengthLimitError;
use tokio::time::timeout;

/// A body that takes longer to arrive is given up.
const ARRIVE: Duration = Duration::from_secs(60);

/// Why there is no body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// It is longer than is taken.
    TooLarge,
    /// It took longer than is waited for.
    TooSlow,
    /// Its sender ended it before its end.
    BrokenOff,
}

impl Missing {
    /// The status to answer with.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::BrokenOff => StatusCode::BAD_REQUEST,
        }
    }
}

/// A body of at most so many bytes.
pub(crate) async fn arrived(body: Body, most: usize) -> Result<Bytes, Missing> {
    if body.size_hint().lower() > most as u64 {
        return Err(Missing::TooLarge);
    }
    let arrived = timeout(ARRIVE, to_bytes(body, most)).await;
    arrived.map_err(|_| Missing::TooSlow)?.map_err(|error| {
        match error.into_inner().is::<LengthLimitError>() {
            true => Missing::TooLarge,
            false => Missing::BrokenOff,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::channel::Channel;
    use tokio::time::{Instant, sleep};

    #[tokio::test(start_paused = true)]
    async fn a_body_comes_whole_and_in_time_or_not_at_all() {
        let whole = arrived(Body::from("12345"), 5).await;
        assert_eq!(whole.unwrap(), "12345");
        assert_eq!(
            arrived(Body::from("123456"), 5).await,
            Err(Missing::TooLarge)
        );
        // One that does not say how long it is, and comes byte by byte.
        for (bytes, most, expected) in [
            (5, 5, Ok(Bytes::from("xxxxx"))),
            (6, 5, Err(Missing::TooLarge)),
            (7, 9, Err(Missing::TooSlow)),
        ] {
            let (mut out, body) = Channel::<Bytes, axum::Error>::new(1);
            tokio::spawn(async move {
                for _ in 0..bytes {
                    sleep(Duration::from_secs(9)).await;
                    if out.send_data(Bytes::from_static(b"x")).await.is_err() {
                        return;
                    }
                }
            });
            assert_eq!(arrived(Body::new(body), most).await, expected, "{bytes}");
        }
        let (out, body) = Channel::<Bytes, axum::Error>::new(1);
        out.abort(axum::Error::new(std::io::Error::other("reset")));
        assert_eq!(arrived(Body::new(body), 5).await, Err(Missing::BrokenOff));
        // Nothing at all comes.
        let (_out, body) = Channel::<Bytes, axum::Error>::new(1);
        let begun = Instant::now();
        assert_eq!(arrived(Body::new(body), 5).await, Err(Missing::TooSlow));
        assert_eq!(begun.elapsed(), ARRIVE);
    }
}
