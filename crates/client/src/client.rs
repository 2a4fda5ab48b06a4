//! The client: asks, checks, and only then believes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pitser_ksi::chain::CalendarChain;
use pitser_ksi::hash::{Algorithm, Imprint};
use pitser_ksi::pdu::{
    AggregationRequest, AggregationRequestPayload, AggregatorConfig, ExtendQuery, ExtendRequest,
    ExtendRequestPayload, ExtenderConfig, Header, Payload, Pdu, SignRequest, Status,
};
use pitser_ksi::policy::{self, Context, Policy, Verdict};
use pitser_ksi::publication::PublicationRecord;
use pitser_ksi::signature::Signature;
use pitser_ksi::time::Second;
use pitser_ksi::{publications_file as publications, tlv};
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use crate::answer::{self, Answer, Fault, Question};
use crate::endpoint::{Endpoint, Key, Transport};
use crate::error::{Asked, ClientError};
use crate::http::HttpService;
use crate::tcp::TcpService;

/// How long to wait, and how often to try.
#[derive(Debug, Clone)]
pub struct Options {
    /// For a connection to be made.
    pub connect_timeout: Duration,
    /// For an answer to one request, all attempts together. A signature takes up
    /// to a second by design.
    pub answer_timeout: Duration,
    /// Attempts when a connection cannot be made or breaks, with growing pauses.
    /// Asking twice does no harm.
    pub attempts: u32,
    /// The algorithm of the message authentication codes.
    pub mac_algorithm: Algorithm,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(10),
            attempts: 3,
            mac_algorithm: Algorithm::Sha256,
        }
    }
}

/// A connection to one service, for any number of tasks; cheap to clone.
#[derive(Debug, Clone)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    endpoint: Endpoint,
    options: Options,
    transport: Carrier,
    next_request_id: AtomicU64,
    /// Held while a configuration is asked for: its answer has no request id.
    configuration: Mutex<()>,
}

#[derive(Debug)]
enum Carrier {
    Tcp(TcpService),
    Http(HttpService),
}

impl Client {
    /// A client that connects when it is first used.
    pub fn new(endpoint: Endpoint, options: Options) -> Self {
        let (address, limit) = (endpoint.address(), options.connect_timeout);
        let transport = match endpoint.transport() {
            Transport::Tcp => Carrier::Tcp(TcpService::new(address, endpoint.key().clone(), limit)),
            Transport::Http => {
                Carrier::Http(HttpService::new(address, limit, options.answer_timeout))
            }
        };
        Self(Arc::new(Inner {
            endpoint,
            options,
            transport,
            next_request_id: AtomicU64::new(1),
            configuration: Mutex::new(()),
        }))
    }

    /// A client with default options that is connected already.
    ///
    /// # Errors
    /// [`ClientError::Connect`] if nobody listens there. The key is not tried.
    pub async fn connect(endpoint: Endpoint) -> Result<Self, ClientError> {
        let client = Self::new(endpoint, Options::default());
        match &client.0.transport {
            Carrier::Tcp(service) => drop(service.link().await?),
            Carrier::Http(service) => service.probe().await?,
        }
        Ok(client)
    }

    /// The service and its user.
    pub fn endpoint(&self) -> &Endpoint {
        &self.0.endpoint
    }

    /// Has `input`, the root of a local tree of height `level`, signed; for a
    /// document's imprint the level is 0.
    ///
    /// The signature has passed the internal policy for this input and level.
    /// Whether the service's key is one to be trusted is for the caller to verify.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn sign(&self, input: Imprint, level: u8) -> Result<Signature, ClientError> {
        let request_id = self.new_request_id();
        let request = AggregationRequestPayload::Sign(SignRequest {
            request_id,
            input,
            level,
        });
        let pdu: AggregationRequest = self.message(request);
        let answer = self
            .ask(Asked::Sign, Question::Sign(request_id), &pdu)
            .await?;
        let Answer::Sign(result) = answer else {
            return Err(self.unfit("it answers something else"));
        };
        self.check_status(Asked::Sign, result.status, result.message)?;
        let signature = Signature::from_result(&result.signature, level).map_err(|source| {
            ClientError::Malformed {
                service: self.service(),
                source,
            }
        })?;
        self.check_internally(&signature, Some((input, level)))?;
        Ok(signature)
    }

    /// `signature` led to the calendar's root at second `to`, or at the second of
    /// `record`, which then vouches for it, or at the newest second there is.
    ///
    /// The new signature has passed the internal policy, and continues the
    /// history that the old one told.
    ///
    /// # Errors
    /// [`ClientError::Backwards`] and [`ClientError::Unfit`] besides those of asking.
    pub async fn extend(
        &self,
        signature: &Signature,
        to: Option<Second>,
        record: Option<&PublicationRecord>,
    ) -> Result<Signature, ClientError> {
        let published = record.map(|record| record.data.time);
        if to.is_some() && published.is_some() && to != published {
            return Err(self.unfit("the publication is of another second than was asked for"));
        }
        let calendar = self
            .extend_calendar(signature.aggregation_time(), to.or(published))
            .await?;
        let extended = signature
            .extend_with(&calendar, record)
            .map_err(|e| self.unfit(&e.to_string()))?;
        self.check_internally(&extended, None)?;
        Ok(extended)
    }

    /// The calendar chain from second `from` to the root at `to`, or at the newest
    /// second there is. It has the times and the shape that were asked for.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn extend_calendar(
        &self,
        from: Second,
        to: Option<Second>,
    ) -> Result<CalendarChain, ClientError> {
        let chain = self.calendar_as_answered(from, to).await?;
        if to.is_some_and(|to| chain.publication_time != to) {
            return Err(self.unfit("the chain leads to another second than was asked for"));
        }
        if chain.aggregation_time != Some(from) {
            return Err(self.unfit("the chain starts at another second than was asked for"));
        }
        if chain.time_from_shape() != Some(from) {
            return Err(self.unfit("the chain has the shape of another second (INT-05)"));
        }
        Ok(chain)
    }

    /// As [`Client::extend_calendar`], for a caller who judges the chain himself.
    async fn calendar_as_answered(
        &self,
        from: Second,
        to: Option<Second>,
    ) -> Result<CalendarChain, ClientError> {
        if let Some(to) = to.filter(|to| *to < from) {
            return Err(ClientError::Backwards {
                signed_at: from,
                to,
            });
        }
        let request_id = self.new_request_id();
        let query = ExtendQuery {
            request_id,
            aggregation_time: from,
            publication_time: to,
        };
        let pdu: ExtendRequest = self.message(ExtendRequestPayload::Extend(query));
        let answer = self
            .ask(Asked::Extend, Question::Extend(request_id), &pdu)
            .await?;
        let Answer::Extend(result) = answer else {
            return Err(self.unfit("it answers something else"));
        };
        self.check_status(Asked::Extend, result.status, result.message)?;
        result
            .calendar
            .ok_or_else(|| self.unfit("the calendar chain is missing"))
    }

    /// How the aggregator wants to be used.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn config(&self) -> Result<AggregatorConfig, ClientError> {
        let _turn = self.0.configuration.lock().await;
        let pdu: AggregationRequest = self.message(AggregationRequestPayload::Config);
        match self
            .ask(Asked::Configuration, Question::AggregatorConfig, &pdu)
            .await?
        {
            Answer::AggregatorConfig(config) => Ok(config),
            _ => Err(self.unfit("it answers something else")),
        }
    }

    /// How the extender wants to be used, and the range of its calendar.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn extender_config(&self) -> Result<ExtenderConfig, ClientError> {
        let _turn = self.0.configuration.lock().await;
        let pdu: ExtendRequest = self.message(ExtendRequestPayload::Config);
        match self
            .ask(Asked::Configuration, Question::ExtenderConfig, &pdu)
            .await?
        {
            Answer::ExtenderConfig(config) => Ok(config),
            _ => Err(self.unfit("it answers something else")),
        }
    }

    /// This client as an extender for [`policy::verify`].
    ///
    /// It blocks its thread: verify inside `tokio::task::spawn_blocking`, never
    /// directly in a task.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn blocking_extender(&self) -> BlockingExtender {
        BlockingExtender {
            client: self.clone(),
            runtime: Handle::current(),
        }
    }

    fn new_request_id(&self) -> u64 {
        self.0.next_request_id.fetch_add(1, Ordering::Relaxed)
    }

    fn message<P: Payload>(&self, payload: P) -> Pdu<P> {
        Pdu::new(Header::new(self.0.endpoint.user()), payload)
    }

    /// Sends a message until its answer comes, the attempts or the time are used up.
    async fn ask<P: Payload>(
        &self,
        asked: Asked,
        question: Question,
        pdu: &Pdu<P>,
    ) -> Result<Answer, ClientError> {
        let Options {
            attempts,
            answer_timeout,
            mac_algorithm,
            ..
        } = self.0.options;
        let bytes = pdu.encode(self.0.endpoint.key().expose(), mac_algorithm)?;
        let deadline = Instant::now() + answer_timeout;
        let mut attempt = 1;
        loop {
            let outcome = match timeout_at(deadline, self.attempt(question, &bytes)).await {
                Ok(Ok(Ok(answer))) => return Ok(answer),
                Ok(Ok(Err(fault))) => self.error(asked, fault),
                Ok(Err(error)) => error,
                Err(_) => {
                    return Err(ClientError::TimedOut {
                        service: self.service(),
                        waited: answer_timeout,
                    });
                }
            };
            let broken = matches!(
                outcome,
                ClientError::Connect { .. } | ClientError::Lost { .. }
            );
            if !broken || attempt >= attempts {
                return Err(outcome);
            }
            tracing::debug!(error = %outcome, attempt, "asking again");
            attempt += 1;
        }
    }

    async fn attempt(
        &self,
        question: Question,
        bytes: &[u8],
    ) -> Result<Result<Answer, Fault>, ClientError> {
        match &self.0.transport {
            Carrier::Tcp(service) => service.ask(question, bytes.to_vec()).await,
            Carrier::Http(service) => {
                let path = self.0.endpoint.path();
                let response = service.post(path, bytes.to_vec(), tlv::MAX).await?;
                let answers = match answer::read(&response.body, self.0.endpoint.key().expose()) {
                    Ok(answers) => answers,
                    // What is no message may be the error page of a proxy.
                    Err(Fault::Malformed(_)) if response.status.as_u16() >= 400 => {
                        let status = response.status.as_u16();
                        return Err(ClientError::Http {
                            service: self.service(),
                            status,
                        });
                    }
                    Err(fault) => return Ok(Err(fault)),
                };
                let found = answers
                    .into_iter()
                    .find(|answer| answer.question() == question);
                found
                    .map(Ok)
                    .ok_or_else(|| self.unfit("it answers another request"))
            }
        }
    }

    fn check_status(
        &self,
        asked: Asked,
        status: Status,
        message: Option<String>,
    ) -> Result<(), ClientError> {
        if status.is_ok() {
            return Ok(());
        }
        let message = message.unwrap_or_default();
        Err(self.error(asked, Fault::Refused { status, message }))
    }

    fn check_internally(
        &self,
        signature: &Signature,
        input: Option<(Imprint, u8)>,
    ) -> Result<(), ClientError> {
        let mut context = Context::new(Policy::Internal);
        if let Some((input, level)) = input {
            context.document = Some(input);
            context.level = level;
        }
        match policy::verify(signature, &context) {
            Verdict::Intact { .. } => Ok(()),
            Verdict::Unconfirmed { reason, .. } => Err(self.unfit(&reason.to_string())),
            Verdict::Broken { code, step } => Err(self.unfit(&format!("{code}, {step}"))),
        }
    }

    fn error(&self, asked: Asked, fault: Fault) -> ClientError {
        let service = self.service();
        let user = self.0.endpoint.user().to_owned();
        match fault {
            Fault::Lost(reason) => ClientError::Lost { service, reason },
            Fault::Refused { status, message } => ClientError::Refused {
                service,
                asked,
                status: status.0,
                message,
                user,
            },
            Fault::Unauthenticated => ClientError::Unauthenticated { service, user },
            Fault::Malformed(source) => ClientError::Malformed { service, source },
        }
    }

    fn unfit(&self, reason: &str) -> ClientError {
        ClientError::Unfit {
            service: self.service(),
            reason: reason.to_owned(),
        }
    }

    fn service(&self) -> String {
        format!("the service at {}", self.0.endpoint.address())
    }
}

/// A [`Client`] that verification policies can ask; see
/// [`Client::blocking_extender`].
#[derive(Debug, Clone)]
pub struct BlockingExtender {
    client: Client,
    runtime: Handle,
}

impl policy::Extend for BlockingExtender {
    /// The chain as it was answered: policies tell a chain of another second (CAL-03,
    /// PUB-02) from an extender that fails.
    fn extend(
        &self,
        from: Second,
        to: Option<Second>,
    ) -> Result<CalendarChain, policy::ExtendError> {
        self.runtime
            .block_on(self.client.calendar_as_answered(from, to))
            .map_err(|e| policy::ExtendError(e.to_string()))
    }
}

/// Reads a publications file from `http://` or `file://`, at most
/// [`publications::MAX_LEN`] bytes. Nothing of it is verified.
///
/// # Errors
/// [`ClientError`].
pub async fn publications_file(uri: &str) -> Result<Vec<u8>, ClientError> {
    if let Some(path) = uri.strip_prefix("file://") {
        return read_file(path.to_owned()).await;
    }
    let endpoint = Endpoint::parse(uri)?.with_credentials("", Key::new([]));
    if endpoint.transport() != Transport::Http {
        return Err(crate::EndpointError::Scheme(Some("ksi+tcp".to_owned())).into());
    }
    let options = Options::default();
    let service = HttpService::new(
        endpoint.address(),
        options.connect_timeout,
        options.answer_timeout,
    );
    let answer = service.get(endpoint.path(), publications::MAX_LEN).await?;
    if !answer.status.is_success() {
        let status = answer.status.as_u16();
        return Err(ClientError::Http {
            service: endpoint.to_string(),
            status,
        });
    }
    Ok(answer.body.to_vec())
}

/// Reads on another thread: a file may be on a slow disk.
async fn read_file(path: String) -> Result<Vec<u8>, ClientError> {
    let name = path.clone();
    let reading = tokio::task::spawn_blocking(move || std::fs::read(path));
    let read = reading.await.unwrap_or_else(|e| Err(io::Error::other(e)));
    read.map_err(|source| ClientError::Read { path: name, source })
}
