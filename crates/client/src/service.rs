//! One service: asks it, checks, and only then believes.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use hyper::body::Bytes;
use pitser_ksi::chain::CalendarChain;
use pitser_ksi::hash::Imprint;
use pitser_ksi::pdu::{
    AggregationRequest, AggregationRequestPayload, AggregatorConfig, ExtendQuery, ExtendRequest,
    ExtendRequestPayload, ExtenderConfig, Header, Payload, Pdu, SignRequest,
};
use pitser_ksi::policy::{self, Context, Policy, Verdict};
use pitser_ksi::publication::PublicationRecord;
use pitser_ksi::signature::Signature;
use pitser_ksi::time::Second;
use pitser_ksi::tlv;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

use crate::answer::{self, Answer, Fault, Question};
use crate::endpoint::{Endpoint, Transport};
use crate::error::{Asked, Bounds, ClientError};
use crate::file::FileService;
use crate::http::{self, HttpService};
use crate::options::Options;
use crate::pace::jittered;
use crate::tcp::TcpService;

/// One service and the connections to it.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) endpoint: Endpoint,
    options: Options,
    carrier: Carrier,
    next_request_id: AtomicU64,
    /// Held while a configuration is asked for: its answer has no request id.
    configuration: Mutex<()>,
    /// Whether it failed when last heard of, where others did not.
    is_failing: AtomicBool,
}

#[derive(Debug)]
enum Carrier {
    Tcp(TcpService),
    Http(Arc<HttpService>),
    File(FileService),
}

impl Service {
    pub(crate) fn new(endpoint: Endpoint, options: Options) -> Self {
        let key = endpoint.key().clone();
        let carrier = match (endpoint.transport(), endpoint.file()) {
            (_, Some(path)) => Carrier::File(FileService::new(path.to_owned(), key)),
            (Transport::Http | Transport::Https, _) => {
                Carrier::Http(Arc::new(HttpService::new(&endpoint, &options)))
            }
            _ => Carrier::Tcp(TcpService::new(endpoint.address(), key, &options)),
        };
        Self {
            endpoint,
            options,
            carrier,
            next_request_id: AtomicU64::new(1),
            configuration: Mutex::new(()),
            is_failing: AtomicBool::new(false),
        }
    }

    /// Connects, to find out whether anybody listens.
    pub(crate) async fn probe(&self) -> Result<(), ClientError> {
        let probed = match &self.carrier {
            Carrier::Tcp(service) => service.probe().await,
            Carrier::Http(service) => service.probe().await,
            Carrier::File(_) => Ok(()),
        };
        probed.map_err(|fault| self.error(Asked::Configuration, fault))
    }

    pub(crate) async fn sign(&self, input: Imprint, level: u8) -> Result<Signature, ClientError> {
        let request_id = self.new_request_id();
        let pdu: AggregationRequest = self.message(AggregationRequestPayload::Sign(SignRequest {
            request_id,
            input,
            level,
        }));
        let answers = self
            .ask(Asked::Sign, Question::Sign(request_id), &pdu)
            .await;
        let answers = match answers {
            Ok(answers) => answers,
            Err(error) => return Err(self.with_bounds(error).await),
        };
        self.first_good(answers, |answer| self.signature(answer, input, level))
    }

    /// The signature that an answer holds, for this input and level.
    fn signature(
        &self,
        answer: Answer,
        input: Imprint,
        level: u8,
    ) -> Result<Signature, ClientError> {
        let Answer::Sign(result) = answer else {
            return Err(self.unfit("it answers something else"));
        };
        let signature = Signature::from_result(&result.signature, level)
            .map_err(|source| self.error(Asked::Sign, Fault::Malformed(source)))?;
        let mut context = Context::new(Policy::Internal);
        context.document = Some(input);
        context.level = level;
        doubt(&signature, &context).map_or(Ok(signature), |doubt| Err(self.unfit(&doubt)))
    }

    pub(crate) async fn extend(
        &self,
        signature: &Signature,
        to: Option<Second>,
        record: Option<&PublicationRecord>,
    ) -> Result<Signature, ClientError> {
        let calendar = self
            .calendar(signature.aggregation_time(), to, &StrayChain::default())
            .await?;
        let extended = signature
            .extend_with(&calendar, record)
            .map_err(|e| self.unfit(&e.to_string()))?;
        let context = Context::new(Policy::Internal);
        match doubt(&extended, &context) {
            None => Ok(extended),
            Some(doubt) => Err(self.unfit(&doubt)),
        }
    }

    /// The chain between these seconds. One between others is kept in `stray`, for
    /// whoever judges it.
    pub(crate) async fn calendar(
        &self,
        from: Second,
        to: Option<Second>,
        stray: &StrayChain,
    ) -> Result<CalendarChain, ClientError> {
        let request_id = self.new_request_id();
        let query = ExtendQuery {
            request_id,
            aggregation_time: from,
            publication_time: to,
        };
        let pdu: ExtendRequest = self.message(ExtendRequestPayload::Extend(query));
        let answers = self
            .ask(Asked::Extend, Question::Extend(request_id), &pdu)
            .await;
        match answers {
            Ok(answers) => self.first_good(answers, |answer| self.chain(answer, from, to, stray)),
            Err(error) => Err(self.with_bounds(error).await),
        }
    }

    /// The chain that an answer holds, between these seconds.
    fn chain(
        &self,
        answer: Answer,
        from: Second,
        to: Option<Second>,
        stray: &StrayChain,
    ) -> Result<CalendarChain, ClientError> {
        let Answer::Extend(result) = answer else {
            return Err(self.unfit("it answers something else"));
        };
        let chain = result
            .calendar
            .ok_or_else(|| self.unfit("the calendar chain is missing"))?;
        let wrong = if to.is_some_and(|to| chain.publication_time != to) {
            "the chain leads to another second than was asked for"
        } else if chain.aggregation_time != Some(from) {
            "the chain starts at another second than was asked for"
        } else if chain.time_from_shape() != Some(from) {
            "the chain has the shape of another second (INT-05)"
        } else {
            return Ok(chain);
        };
        stray
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(chain);
        Err(self.unfit(wrong))
    }

    pub(crate) async fn config(&self) -> Result<AggregatorConfig, ClientError> {
        let _turn = self.configuration.lock().await;
        let pdu: AggregationRequest = self.message(AggregationRequestPayload::Config);
        let question = Question::AggregatorConfig;
        let answers = self.ask(Asked::Configuration, question, &pdu).await?;
        self.first_good(answers, |answer| match answer {
            Answer::AggregatorConfig(config) => Ok(config),
            _ => Err(self.unfit("it answers something else")),
        })
    }

    pub(crate) async fn extender_config(&self) -> Result<ExtenderConfig, ClientError> {
        let _turn = self.configuration.lock().await;
        let pdu: ExtendRequest = self.message(ExtendRequestPayload::Config);
        let question = Question::ExtenderConfig;
        let answers = self.ask(Asked::Configuration, question, &pdu).await?;
        self.first_good(answers, |answer| match answer {
            Answer::ExtenderConfig(config) => Ok(config),
            _ => Err(self.unfit("it answers something else")),
        })
    }

    /// Notes that this service failed, or did not, where another gave a good
    /// answer: a change is logged, for nobody else would notice.
    pub(crate) fn note(&self, failure: Option<&ClientError>) {
        let was_failing = self.is_failing.swap(failure.is_some(), Ordering::Relaxed);
        match failure {
            Some(error) if !was_failing => {
                tracing::warn!("{error}. Another service answers in its place");
            }
            None if was_failing => tracing::info!("{} answers again", name(&self.endpoint)),
            _ => {}
        }
    }

    /// One of several answers, as a file may hold them.
    fn first_good<T>(
        &self,
        answers: Vec<Answer>,
        check: impl Fn(Answer) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let mut why_not = None;
        for answer in answers {
            match check(answer) {
                Ok(good) => return Ok(good),
                Err(error) => why_not = why_not.or(Some(error)),
            }
        }
        Err(why_not.unwrap_or_else(|| self.unfit("it answers nothing")))
    }

    fn new_request_id(&self) -> u64 {
        self.next_request_id.fetch_add(1, Ordering::Relaxed)
    }

    fn message<P: Payload>(&self, payload: P) -> Pdu<P> {
        Pdu::new(Header::new(self.endpoint.user()), payload)
    }

    /// Sends a message until it is answered with success, or the attempts or the
    /// time are used up. At least one answer.
    async fn ask<P: Payload>(
        &self,
        asked: Asked,
        question: Question,
        pdu: &Pdu<P>,
    ) -> Result<Vec<Answer>, ClientError> {
        let pdu = pdu.encode(self.endpoint.key().expose(), self.options.mac_algorithm)?;
        let pdu = Bytes::from(pdu);
        let deadline = Instant::now() + self.options.answer_timeout;
        let (mut attempt, mut before) = (1, None);
        loop {
            let fault = match self.attempt(question, pdu.clone(), deadline).await {
                Ok(answers) => return Ok(answers),
                Err(fault) => fault,
            };
            // A connection cannot be made too early: its pace is kept elsewhere.
            let pause = match fault {
                Fault::Unreachable(_) | Fault::Lost(_) => Duration::ZERO,
                _ => jittered(ROUND),
            };
            let is_late = Instant::now() + pause >= deadline;
            let error = self.error(asked, fault);
            if !error.is_worth_repeating() || attempt >= self.options.attempts || is_late {
                // What ended an earlier attempt tells more than that the time is over.
                let told = matches!(
                    error,
                    ClientError::TimedOut { .. } | ClientError::Connect { .. }
                );
                return Err(before.filter(|_| told && is_late).unwrap_or(error));
            }
            tracing::debug!(%error, attempt, "asking again");
            before = Some(error);
            attempt += 1;
            sleep(pause).await;
        }
    }

    async fn attempt(
        &self,
        question: Question,
        pdu: Bytes,
        deadline: Instant,
    ) -> Result<Vec<Answer>, Fault> {
        let answers = match &self.carrier {
            Carrier::Tcp(service) => vec![service.ask(question, pdu, deadline).await?],
            Carrier::Http(service) => {
                let path = self.endpoint.path();
                let path = path.unwrap_or_else(|| usual_path(question));
                let answer = service.post(path, pdu, tlv::MAX, deadline).await?;
                vec![self.posted(question, &answer)?]
            }
            Carrier::File(file) => file.ask(question).await?,
        };
        let (mut good, mut why_not) = (Vec::new(), None);
        for answer in answers {
            match answer.accepted() {
                Ok(answer) => good.push(answer),
                Err(fault) => why_not = why_not.or(Some(fault)),
            }
        }
        match why_not {
            Some(fault) if good.is_empty() => Err(fault),
            _ => Ok(good),
        }
    }

    /// The answer to `question` in the body of an HTTP answer. Its status counts
    /// only where the body is no message: it may be the error page of a proxy.
    fn posted(&self, question: Question, answer: &http::Answer) -> Result<Answer, Fault> {
        let answers = match answer::read(&answer.body, self.endpoint.key().expose()) {
            Ok(answers) => answers,
            Err(Fault::Malformed(_)) if !answer.status.is_success() => {
                return Err(Fault::Http(answer.status.as_u16()));
            }
            Err(Fault::Malformed(_)) if answer.body.trim_ascii_start().starts_with(b"<") => {
                return Err(Fault::Foreign(
                    "it answers with a web page; is this the right path?",
                ));
            }
            Err(fault) => return Err(fault),
        };
        let found = answers
            .into_iter()
            .find(|answer| answer.question() == question);
        found.ok_or_else(|| Fault::Unfit("it answers another request".to_owned()))
    }

    /// Adds what the service's configuration says about a refused request, if it
    /// tells within a moment.
    async fn with_bounds(&self, mut error: ClientError) -> ClientError {
        let ClientError::Refused {
            asked,
            status,
            bounds,
            ..
        } = &mut error
        else {
            return error;
        };
        let told = match (*asked, *status) {
            (Asked::Sign, 0x0104) => match timeout(BOUNDS, self.config()).await {
                Ok(Ok(config)) => config.max_level.map(Bounds::MaxLevel),
                _ => None,
            },
            (Asked::Extend, 0x0105..=0x0107) => {
                match timeout(BOUNDS, self.extender_config()).await {
                    Ok(Ok(config)) => calendar(config.calendar_first, config.calendar_last),
                    _ => None,
                }
            }
            _ => None,
        };
        *bounds = told.or(*bounds);
        error
    }

    fn error(&self, asked: Asked, fault: Fault) -> ClientError {
        error(&self.endpoint, &self.options, asked, fault)
    }

    fn unfit(&self, reason: &str) -> ClientError {
        self.error(Asked::Sign, Fault::Unfit(reason.to_owned()))
    }
}

/// What a fault of a service comes to for its user.
pub(crate) fn error(
    endpoint: &Endpoint,
    options: &Options,
    asked: Asked,
    fault: Fault,
) -> ClientError {
    let service = name(endpoint);
    let user = endpoint.user().to_owned();
    match fault {
        Fault::Unreachable(error) => ClientError::Connect {
            service,
            source: copy(&error),
        },
        Fault::Tls { problem, advice } => ClientError::Tls {
            service,
            problem,
            advice,
        },
        Fault::Lost(reason) => ClientError::Lost { service, reason },
        Fault::TimedOut => ClientError::TimedOut {
            service,
            waited: options.answer_timeout,
        },
        Fault::Refused {
            status,
            message,
            calendar_last,
        } => ClientError::Refused {
            service,
            asked,
            status: status.0,
            message,
            user,
            bounds: calendar(None, calendar_last),
        },
        Fault::Unauthenticated => ClientError::Unauthenticated { service, user },
        Fault::Foreign(hint) => ClientError::Foreign { service, hint },
        Fault::Malformed(source) => ClientError::Malformed { service, source },
        Fault::Unfit(reason) => ClientError::Unfit { service, reason },
        Fault::Http(status) => ClientError::Http { service, status },
        Fault::Read(error) => ClientError::Read {
            path: endpoint.file().unwrap_or("".as_ref()).to_owned(),
            source: copy(&error),
        },
    }
}

fn name(endpoint: &Endpoint) -> String {
    match endpoint.transport() {
        Transport::File => format!("the file {}", endpoint.address()),
        _ => format!("the service at {}", endpoint.address()),
    }
}

/// What the internal policy finds wrong with a signature.
pub(crate) fn doubt(signature: &Signature, context: &Context<'_>) -> Option<String> {
    match policy::verify(signature, context) {
        Verdict::Intact { .. } => None,
        Verdict::Unconfirmed { reason, .. } => Some(reason.to_string()),
        Verdict::Broken { code, step } => Some(format!("{code}, {step}")),
    }
}

fn calendar(first: Option<Second>, last: Option<Second>) -> Option<Bounds> {
    first.or(last).map(|_| Bounds::Calendar { first, last })
}

/// An error that several are told.
fn copy(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

/// Where services are usually asked over HTTP, if the address has no path.
fn usual_path(question: Question) -> &'static str {
    match question.is_for_extender() {
        false => "/gt-signingservice",
        true => "/gt-extendingservice",
    }
}

/// A calendar chain that was answered, but not asked for.
pub(crate) type StrayChain = std::sync::Mutex<Option<CalendarChain>>;

/// The pause before a request that was refused is sent again: by then another
/// round is open.
const ROUND: Duration = Duration::from_secs(1);
/// How long a service may take to explain a refusal.
const BOUNDS: Duration = Duration::from_secs(2);
