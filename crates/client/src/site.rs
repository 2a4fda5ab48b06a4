//! A guardian's HTTP side as an auditor asks it (docs/spec/64-audit-http.md): bounded
//! answers to signed requests. What is asked, and what an answer is worth, is for the
//! caller to say.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use tokio::time::Instant;

use crate::endpoint::{Endpoint, Transport};
use crate::error::{Asked, ClientError};
use crate::http::HttpService;
use crate::options::Options;
use crate::service;

/// The way to a guardian. Cloning it keeps the connection.
#[derive(Clone)]
pub struct Site {
    endpoint: Endpoint,
    options: Options,
    server: Arc<HttpService>,
}

/// A whole answer, whatever its status.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The body, no longer than was allowed.
    pub body: Bytes,
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Site")
            .field(&self.endpoint.to_string())
            .finish()
    }
}

impl Site {
    /// The guardian at `endpoint`, `https://HOST`; nothing is connected yet. `None` if
    /// that is no address of HTTP.
    pub fn new(endpoint: Endpoint, options: Options) -> Option<Self> {
        let is_http = matches!(endpoint.transport(), Transport::Http | Transport::Https);
        is_http.then(|| Self {
            server: Arc::new(HttpService::new(&endpoint, &options)),
            endpoint,
            options,
        })
    }

    /// Asks for `target`, below the address's own path. The answer has at most `max`
    /// bytes, and is there after `patience`, or never.
    ///
    /// # Errors
    /// [`ClientError`] without an answer; a status that refuses is one.
    pub async fn get(
        &self,
        target: &str,
        authorization: &str,
        max: usize,
        patience: Duration,
    ) -> Result<Reply, ClientError> {
        let deadline = Instant::now() + patience;
        let path = self.path(target);
        let sent = self.server.get_as(&path, authorization, max, deadline);
        self.reply(sent.await, patience)
    }

    /// The same, with a body.
    ///
    /// # Errors
    /// Those of [`Site::get`].
    pub async fn post(
        &self,
        target: &str,
        authorization: &str,
        body: Vec<u8>,
        max: usize,
        patience: Duration,
    ) -> Result<Reply, ClientError> {
        let deadline = Instant::now() + patience;
        let path = self.path(target);
        let sent = self
            .server
            .post_note(&path, authorization, body.into(), max, deadline);
        self.reply(sent.await, patience)
    }

    fn path(&self, target: &str) -> String {
        let prefix = self.endpoint.path().unwrap_or("").trim_end_matches('/');
        format!("{prefix}{target}")
    }

    fn reply(
        &self,
        sent: Result<crate::http::Answer, crate::answer::Fault>,
        patience: Duration,
    ) -> Result<Reply, ClientError> {
        let answer = sent.map_err(|fault| {
            let options = Options {
                answer_timeout: patience,
                ..self.options.clone()
            };
            service::error(&self.endpoint, &options, Asked::Audit, fault)
        })?;
        Ok(Reply {
            status: answer.status.as_u16(),
            body: answer.body,
        })
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.endpoint.fmt(f)
    }
}
