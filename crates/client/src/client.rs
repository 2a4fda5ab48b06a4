//! The client: one to three services that are asked at the same time.

use std::collections::HashSet;
use std::future::Future;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use pitser_ksi::chain::CalendarChain;
use pitser_ksi::hash::Imprint;
use pitser_ksi::pdu::{AggregatorConfig, ExtenderConfig};
use pitser_ksi::policy::{self, Context, Policy};
use pitser_ksi::publication::PublicationRecord;
use pitser_ksi::signature::Signature;
use pitser_ksi::time::Second;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};

use crate::configuration;
use crate::endpoint::{Endpoint, EndpointError};
use crate::error::ClientError;
use crate::options::Options;
use crate::race::Race;
use crate::service::{Service, StrayChain, doubt};

/// Connections to one service, or to up to three of which the first good answer
/// counts; for any number of tasks, cheap to clone.
///
/// An answer is good if it has passed every check (spec service §5), so that a
/// service that lies, or is slow or away, takes nothing from the others. Those
/// whose answers are not waited for any more keep their connections.
#[derive(Debug, Clone)]
pub struct Client(Arc<[Service]>);

impl Client {
    /// A client of one service that connects when it is first used.
    pub fn new(endpoint: Endpoint, options: Options) -> Self {
        Self(Arc::new([Service::new(endpoint, options)]))
    }

    /// A client of one to three services, each sent every request.
    ///
    /// # Errors
    /// [`EndpointError::Count`], [`EndpointError::Twice`].
    pub fn of(
        endpoints: impl IntoIterator<Item = Endpoint>,
        options: &Options,
    ) -> Result<Self, EndpointError> {
        let endpoints: Vec<_> = endpoints.into_iter().collect();
        if !(1..=MAX_SERVICES).contains(&endpoints.len()) {
            return Err(EndpointError::Count(endpoints.len()));
        }
        let mut seen = HashSet::new();
        let twice = endpoints
            .iter()
            .find(|endpoint| !seen.insert(format!("{endpoint} {:?}", endpoint.path())));
        if let Some(twice) = twice {
            return Err(EndpointError::Twice(twice.to_string()));
        }
        let services = endpoints
            .into_iter()
            .map(|endpoint| Service::new(endpoint, options.clone()));
        Ok(Self(services.collect()))
    }

    /// A client with default options that is connected already.
    ///
    /// # Errors
    /// [`ClientError::Connect`] if nobody listens there. The key is not tried.
    pub async fn connect(endpoint: Endpoint) -> Result<Self, ClientError> {
        let client = Self::new(endpoint, Options::default());
        for service in &*client.0 {
            service.probe().await?;
        }
        Ok(client)
    }

    /// The services and their users.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.0.iter().map(|service| &service.endpoint)
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
        self.first_good(|service| service.sign(input, level)).await
    }

    /// `signature` led to the calendar's root at second `to`, or at the second of
    /// `record`, which then vouches for it, or at the newest second there is.
    ///
    /// The new signature has passed the internal policy, and continues the
    /// history that the old one told.
    ///
    /// # Errors
    /// [`ClientError::Backwards`], [`ClientError::Broken`] and
    /// [`ClientError::Unfit`] besides those of asking.
    pub async fn extend(
        &self,
        signature: &Signature,
        to: Option<Second>,
        record: Option<&PublicationRecord>,
    ) -> Result<Signature, ClientError> {
        let from = signature.aggregation_time();
        let published = record.map(|record| record.data.time);
        if let (Some(to), Some(published)) = (to, published)
            && to != published
        {
            return Err(ClientError::Elsewhere { to, published });
        }
        // So that no service is blamed for what it was sent.
        if let Some(reason) = doubt(signature, &Context::new(Policy::Internal)) {
            return Err(ClientError::Broken { reason });
        }
        let to = to.or(published);
        check_order(from, to)?;
        self.first_good(|service| service.extend(signature, to, record))
            .await
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
        self.calendar(from, to, &StrayChain::default()).await
    }

    /// As [`Client::extend_calendar`]; a chain that was not asked for is kept in
    /// `stray`.
    async fn calendar(
        &self,
        from: Second,
        to: Option<Second>,
        stray: &StrayChain,
    ) -> Result<CalendarChain, ClientError> {
        check_order(from, to)?;
        self.first_good(|service| service.calendar(from, to, stray))
            .await
    }

    /// How the aggregators want to be used: of several, the best of what each
    /// takes (spec service §5, "HA").
    ///
    /// # Errors
    /// [`ClientError`] if none answers. Once one has, the others get another two
    /// seconds.
    pub async fn config(&self) -> Result<AggregatorConfig, ClientError> {
        self.all_good(Service::config)
            .await
            .map(configuration::aggregators)
    }

    /// How the extenders want to be used, and the range of their calendars.
    ///
    /// # Errors
    /// As [`Client::config`].
    pub async fn extender_config(&self) -> Result<ExtenderConfig, ClientError> {
        self.all_good(Service::extender_config)
            .await
            .map(configuration::extenders)
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

    /// Asks all services; the first good answer counts, and the others are not
    /// waited for.
    async fn first_good<'a, T, F>(
        &'a self,
        ask: impl Fn(&'a Service) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        if let [only] = &*self.0 {
            return ask(only).await;
        }
        let mut race = Race::new(self.0.iter().map(ask));
        let mut failures = Vec::new();
        while let Some((place, outcome)) = race.next().await {
            match outcome {
                Ok(good) => {
                    self.note(place, &failures);
                    return Ok(good);
                }
                Err(error) => failures.push((place, error)),
            }
        }
        Err(all(failures))
    }

    /// Asks all services, and takes what those that answer in time say, in the
    /// order of services.
    async fn all_good<'a, T, F>(
        &'a self,
        ask: impl Fn(&'a Service) -> F,
    ) -> Result<Vec<T>, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let mut race = Race::new(self.0.iter().map(ask));
        let (mut good, mut failures, mut until) = (Vec::new(), Vec::new(), None);
        loop {
            let next = match until {
                None => race.next().await,
                Some(until) => timeout_at(until, race.next()).await.unwrap_or(None),
            };
            match next {
                Some((place, Ok(answer))) => {
                    good.push((place, answer));
                    until.get_or_insert_with(|| Instant::now() + GRACE);
                }
                Some((place, Err(error))) => failures.push((place, error)),
                None => break,
            }
        }
        if good.is_empty() {
            return Err(all(failures));
        }
        good.sort_by_key(|(place, _)| *place);
        Ok(good.into_iter().map(|(_, answer)| answer).collect())
    }

    fn note(&self, winner: usize, failures: &[(usize, ClientError)]) {
        self.0[winner].note(None);
        for (place, error) in failures {
            self.0[*place].note(Some(error));
        }
    }
}

fn all(failures: Vec<(usize, ClientError)>) -> ClientError {
    ClientError::all(failures.into_iter().map(|(_, error)| error).collect())
}

fn check_order(from: Second, to: Option<Second>) -> Result<(), ClientError> {
    match to.filter(|to| *to < from) {
        Some(to) => Err(ClientError::Backwards {
            signed_at: from,
            to,
        }),
        None => Ok(()),
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
    /// Where no service has the chain that was asked for, a policy judges what one
    /// answered: it tells a chain of another second (CAL-03, PUB-02) from an extender
    /// that fails.
    fn extend(
        &self,
        from: Second,
        to: Option<Second>,
    ) -> Result<CalendarChain, policy::ExtendError> {
        let stray = StrayChain::default();
        let chain = self.client.calendar(from, to, &stray);
        self.runtime.block_on(chain).or_else(|error| {
            let stray = stray.into_inner().unwrap_or_else(PoisonError::into_inner);
            stray.ok_or_else(|| policy::ExtendError(error.to_string()))
        })
    }
}

/// Services that a client may have.
const MAX_SERVICES: usize = 3;
/// How long the others may take to tell their configuration once one has.
const GRACE: Duration = Duration::from_secs(2);
