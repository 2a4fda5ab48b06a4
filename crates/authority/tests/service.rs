//! Authority and client together, over real sockets on loopback.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::HashSet;

use common::{GENESIS, World, document};
use pitser_client::{Asked, Client, ClientError, Options, publications_file};
use pitser_ksi::policy::{self, Context, Policy, Verdict};
use pitser_ksi::publications_file::PublicationsFile;
use pitser_ksi::signature::Signature;
use pitser_ksi::{Imprint, Second};

#[tokio::test(flavor = "multi_thread")]
async fn signs_over_tcp() {
    let world = World::new().await;
    signs(&world, &world.tcp()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signs_over_http() {
    let world = World::new().await;
    signs(&world, &world.http()).await;
}

/// Sign, verify by key, publish, extend, verify by publication: at levels 0 and 5.
async fn signs(world: &World, client: &Client) {
    for (number, level) in [(1, 0), (2, 5)] {
        let input = document(number);
        let signature = world.run(client.sign(input, level)).await.unwrap();
        assert_eq!(signature.input(), input);
        assert_eq!(signature.identities().next().as_deref(), Some("anon"));
        assert!(signature.aggregation_time() >= GENESIS);

        let publications = world.verified_publications();
        let by_key = verify(&signature, input, level, Policy::Key, &publications);
        assert_eq!(by_key, intact(&signature));

        world.ticks(3).await;
        let published = world.authority.publish().await.unwrap();
        assert!(published.is_new);
        let bytes = publications_file(&world.publications_uri(), &Options::default())
            .await
            .unwrap();
        let publications = PublicationsFile::decode(&bytes).unwrap();
        world.verify(&publications);
        let record = publications.nearest(signature.aggregation_time()).unwrap();
        assert_eq!(record.data, published.data);

        let extended = client.extend(&signature, None, Some(record)).await.unwrap();
        let by_publication = verify(
            &extended,
            input,
            level,
            Policy::PublicationsFile,
            &publications,
        );
        assert_eq!(by_publication, intact(&signature));
        let mut context = Context::new(Policy::UserPublication);
        context.document = Some(input);
        context.level = level;
        context.user_publication = Some(published.data);
        assert_eq!(policy::verify(&extended, &context), intact(&signature));
    }
}

fn verify(
    signature: &Signature,
    input: Imprint,
    level: u8,
    policy: Policy,
    publications: &PublicationsFile,
) -> Verdict {
    let mut context = Context::new(policy);
    context.document = Some(input);
    context.level = level;
    context.publications = Some(publications);
    policy::verify(signature, &context)
}

fn intact(signature: &Signature) -> Verdict {
    Verdict::Intact {
        signed_at: signature.aggregation_time(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_share_rounds_and_one_connection() {
    let world = World::new().await;
    let (tcp, http) = (world.tcp(), world.http());
    let mut signing = tokio::task::JoinSet::new();
    for number in 0..400 {
        let client = if number % 10 == 0 {
            http.clone()
        } else {
            tcp.clone()
        };
        let level = (number % 7) as u8;
        signing.spawn(async move {
            let signature = client.sign(document(number), level).await.unwrap();
            assert_eq!(signature.input(), document(number));
            signature.aggregation_time()
        });
    }
    let seconds: HashSet<Second> = world.run(signing.join_all()).await.into_iter().collect();
    assert!(seconds.len() < 400, "no round was shared");

    let mut extending = tokio::task::JoinSet::new();
    for second in seconds {
        let client = tcp.clone();
        extending.spawn(async move { client.extend_calendar(second, None).await.unwrap() });
    }
    extending.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_and_a_stranger_hear_the_same() {
    let world = World::new().await;
    for (user, key) in [("anon", "wrong"), ("nobody", "anon")] {
        let error = world
            .tcp_as(user, key)
            .sign(document(1), 0)
            .await
            .unwrap_err();
        let ClientError::Refused {
            status,
            asked,
            message,
            ..
        } = &error
        else {
            panic!("{error}");
        };
        assert_eq!((*status, *asked), (0x0102, Asked::Sign));
        assert_eq!(message, "unknown user or wrong key");
        let text = error.to_string();
        assert!(text.contains("check name and HMAC key of user"), "{text}");
        assert!(
            text.contains(&world.authority.tcp_address().to_string()),
            "{text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refuses_what_is_too_high_or_too_weak() {
    let world = World::new().await;
    let client = world.tcp_as("low", "other");
    world.run(client.sign(document(1), 3)).await.unwrap();
    check_refused(client.sign(document(1), 4).await, 0x0104);
    let sha1 = pitser_ksi::hash::hash(pitser_ksi::Algorithm::Sha1, &[b"old"]);
    check_refused(client.sign(sha1, 0).await, 0x0103);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_extender_says_which_time_is_wrong() {
    let world = World::new().await;
    world.ticks(5).await;
    let client = world.tcp();
    let head = world.authority.head().unwrap();
    let at = |offset: u64| Some(Second(head.0 + offset));
    client
        .extend_calendar(GENESIS.plus(1), at(0))
        .await
        .unwrap();
    let newest = client.extend_calendar(GENESIS.plus(1), None).await.unwrap();
    assert_eq!(newest.publication_time, head);

    check_refused(
        client.extend_calendar(Second(GENESIS.0 - 1), at(0)).await,
        0x0105,
    );
    check_refused(client.extend_calendar(head, at(1)).await, 0x0107);
    check_refused(client.extend_calendar(head.plus(1), None).await, 0x0107);
    let backwards = client.extend_calendar(head, Some(GENESIS.plus(1))).await;
    assert!(matches!(backwards, Err(ClientError::Backwards { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn shows_its_configuration() {
    let world = World::new().await;
    world.ticks(2).await;
    for client in [world.tcp_as("low", "other"), world.http()] {
        let config = client.config().await.unwrap();
        assert_eq!(config.period_ms, Some(1000));
        assert!(matches!(config.max_level, Some(3 | 20)));
        let config = client.extender_config().await.unwrap();
        assert_eq!(config.calendar_first, Some(GENESIS));
        assert_eq!(config.calendar_last, world.authority.head());
    }
}

fn check_refused<T: std::fmt::Debug>(outcome: Result<T, ClientError>, expected: u64) {
    match outcome {
        Err(ClientError::Refused { status, .. }) => assert_eq!(status, expected),
        other => panic!("{other:?} instead of status {expected:#06x}"),
    }
}
