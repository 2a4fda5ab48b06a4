//! Services below services: what they sign verifies as if there were none between.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use common::{GENESIS, World, document};
use pitser_authority::{
    Aggregator, AggregatorHandle, Clock, Config, Limits, ManualClock, Micros, Running, User,
};
use pitser_client::{Client, ClientError, Endpoint, Options};
use pitser_ksi::Second;
use pitser_ksi::policy::{self, Context, Policy};

/// An aggregator for `user`, below the service that `parent` asks.
async fn below(world: &World, parent: Client, user: &str) -> AggregatorHandle {
    let config = Config {
        limits: Limits {
            requests_per_round: 1000,
            ..Limits::default()
        },
        machine_id: format!("below {user}"),
        ..Config::new("").with_user(User::new(user, "key"))
    };
    let clock = Arc::clone(&world.clock);
    Aggregator::start(config, parent, clock).await.unwrap()
}

fn client(service: &Running, user: &str) -> Client {
    let uri = format!("ksi+tcp://{user}:key@{}", service.tcp_address());
    let options = Options {
        attempts: 1,
        ..Options::default()
    };
    Client::new(Endpoint::parse(&uri).unwrap(), options)
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_name_everybody_between_and_verify() {
    let world = World::new().await;
    let region = below(&world, world.tcp(), "region").await;
    let hospital = below(&world, client(&region, "region"), "ward").await;
    let ward = client(&hospital, "ward");
    let mut signing = tokio::task::JoinSet::new();
    for number in 0..50u64 {
        let ward = ward.clone();
        let level = (number % 5) as u8;
        signing.spawn(async move {
            let signature = ward.sign(document(number), level).await.unwrap();
            (number, level, signature)
        });
    }
    let signed = world.run(signing.join_all()).await;
    world.ticks(2).await;
    let published = world.authority.publish().await.unwrap();
    let publications = world.verified_publications();
    for (number, level, signature) in signed {
        assert_eq!(
            signature.identities().collect::<Vec<_>>(),
            ["ward", "region", "anon"]
        );
        assert_eq!(signature.aggregation_chains().len(), 3);
        let mut context = Context {
            document: Some(document(number)),
            level,
            publications: Some(&publications),
            ..Context::new(Policy::Key)
        };
        assert!(policy::verify(&signature, &context).is_intact(), "{number}");
        // Extending goes the same way up.
        let record = publications.nearest(signature.aggregation_time());
        let extended = ward.extend(&signature, None, record);
        let extended = extended.await.unwrap();
        context.policy = Policy::UserPublication;
        context.user_publication = Some(published.data);
        let verdict = policy::verify(&extended, &context);
        assert!(verdict.is_intact(), "{number}: {verdict:?}");
        context.document = Some(document(number + 1));
        assert!(!policy::verify(&extended, &context).is_intact());
    }
    assert_eq!(hospital.ready(), Ok(()));
    hospital.shutdown().await.unwrap();
    region.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_extender_above_answers_with_its_own_words() {
    let world = World::new().await;
    world.ticks(5).await;
    let service = below(&world, world.tcp(), "ward").await;
    let ward = client(&service, "ward");
    let config = ward.extender_config().await.unwrap();
    assert_eq!(config.calendar_first, Some(GENESIS));
    let early = ward
        .extend_calendar(Second(GENESIS.0 - 1), Some(GENESIS))
        .await;
    assert_eq!(status(&early.unwrap_err()), 0x0105);
    let late = ward.extend_calendar(GENESIS, Some(GENESIS.plus(9))).await;
    assert_eq!(status(&late.unwrap_err()), 0x0107);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_service_above_nothing_is_signed_and_everybody_is_told() {
    let world = World::new().await;
    let nobody = format!("ksi+tcp://anon:anon@{}", unused_address());
    let options = Options {
        attempts: 1,
        ..Options::default()
    };
    let nobody = Client::new(Endpoint::parse(&nobody).unwrap(), options);
    let service = below(&world, nobody, "ward").await;
    assert_eq!(service.ready(), Ok(()), "nothing is known yet");
    let ward = client(&service, "ward");
    let refused = world.run(ward.sign(document(1), 0)).await.unwrap_err();
    assert_eq!(status(&refused), 0x0300);
    assert!(
        refused.to_string().contains("the service above"),
        "{refused}"
    );
    let trouble = service.ready().unwrap_err();
    assert!(trouble.contains("the service above"), "{trouble}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_far_behind_above_is_not_signed_by() {
    let world = World::new().await;
    let config = Config::new("").with_user(User::new("ward", "key"));
    let clock = HourAhead(Arc::clone(&world.clock));
    let service = Aggregator::start(config, world.tcp(), clock).await.unwrap();
    let ward = client(&service, "ward");
    let refused = world.run(ward.sign(document(1), 0)).await.unwrap_err();
    assert_eq!(status(&refused), 0x0300);
    assert!(refused.to_string().contains("CLK-01"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_answers_what_was_accepted() {
    let world = World::new().await;
    let service = below(&world, world.tcp(), "ward").await;
    let ward = client(&service, "ward");
    let signing = tokio::spawn(async move { ward.sign(document(1), 0).await });
    while service.waiting() == 0 {
        tokio::task::yield_now().await;
    }
    let stopped = world.run(service.shutdown()).await;
    stopped.unwrap();
    assert_eq!(signing.await.unwrap().unwrap().input(), document(1));
}

/// The clock of somebody who has set it wrong.
struct HourAhead(Arc<ManualClock>);

impl Clock for HourAhead {
    fn now(&self) -> Micros {
        self.0.now().plus(HOUR)
    }

    fn wait_until(&self, at: Micros) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.0
            .wait_until(Micros(0).plus(at.since(Micros(0).plus(HOUR))))
    }
}

const HOUR: Duration = Duration::from_secs(3600);

fn status(error: &ClientError) -> u64 {
    match error {
        ClientError::Refused { status, .. } => *status,
        other => panic!("{other}"),
    }
}

/// Where nobody listens.
fn unused_address() -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}
