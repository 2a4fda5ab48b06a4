//! Starting, stopping, crashing and clocks: what an operator lives with.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{GENESIS, World, config, document, init, tick};
use pitser_authority::{
    Authority, AuthorityError, Clock, ClockFault, Config, ManualClock, Micros, Second, Stopped,
    Subject, User,
};
use pitser_client::ClientError;
use tempfile::TempDir;

#[tokio::test(flavor = "multi_thread")]
async fn an_hour_of_seconds_with_and_without_requests() {
    let world = World::new().await;
    let client = world.tcp();
    let mut signatures = Vec::new();
    while world.clock.now().ended() < GENESIS.plus(3600) {
        signatures.push(
            world
                .run(client.sign(document(signatures.len() as u64), 0))
                .await
                .unwrap(),
        );
        world.ticks(500).await;
    }
    let audit = world.authority.calendar().audit(|_, _| ()).unwrap();
    assert_eq!(audit.fault, None);
    assert_eq!(audit.sealed_seconds, signatures.len() as u64);
    for signature in signatures {
        client.extend(&signature, None, None).await.unwrap();
    }
}

/// On the runtime's own timer, which jumps to the next deadline when all is quiet.
#[tokio::test(start_paused = true)]
async fn a_round_closes_on_the_boundary_without_busy_waiting() {
    let dir = TempDir::new().unwrap();
    init(&dir);
    let (start, looked) = (tokio::time::Instant::now(), Arc::new(AtomicUsize::new(0)));
    let looks = Arc::clone(&looked);
    let clock = move || {
        looks.fetch_add(1, Ordering::Relaxed);
        Micros::boundary(GENESIS).plus(Duration::from_millis(300) + start.elapsed())
    };
    let authority = Authority::start(config(&dir), clock).await.unwrap();
    let mut rounds = authority.rounds();
    for second in 1..=60 {
        let round = *rounds
            .wait_for(|round| round.second > GENESIS.plus(second - 1))
            .await
            .unwrap();
        assert_eq!(round.second, GENESIS.plus(second));
        let late = start.elapsed() + Duration::from_millis(300) - Duration::from_secs(second);
        assert!(
            late < Duration::from_millis(5),
            "second {second} closed {late:?} late"
        );
    }
    let looked = looked.load(Ordering::Relaxed);
    assert!(
        looked < 60 * 6,
        "the clock was looked at {looked} times in a minute"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_still_extend_after_a_restart_and_an_outage() {
    let world = World::new().await;
    let before = world.run(world.tcp().sign(document(1), 2)).await.unwrap();
    let published = world.authority.publish().await.unwrap();
    let now = world.clock.now();
    let World { dir, authority, .. } = world;
    authority.shutdown().await.unwrap();

    let world = World::start(dir, Micros(now.0 + 86_400_000_000)).await;
    let after = world.run(world.tcp().sign(document(2), 0)).await.unwrap();
    let newer = world.authority.publish().await.unwrap();
    let file = world.verified_publications();
    assert_eq!(
        file.at_time(published.data.time).unwrap().data,
        published.data
    );
    assert_eq!(file.latest().unwrap().data, newer.data);
    for signature in [before, after] {
        for record in file.publications() {
            if record.data.time >= signature.aggregation_time() {
                world
                    .tcp()
                    .extend(&signature, None, Some(record))
                    .await
                    .unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_answers_what_was_accepted() {
    let world = World::new().await;
    let (tcp, http) = (world.tcp(), world.http());
    let signing = tokio::spawn(async move {
        let (by_tcp, by_http) = tokio::join!(tcp.sign(document(1), 0), http.sign(document(2), 0));
        (by_tcp.unwrap(), by_http.unwrap())
    });
    world.until_waiting(2).await;
    let World {
        authority, clock, ..
    } = world;
    let (stopped, ()) = tokio::join!(authority.shutdown(), async {
        tokio::task::yield_now().await;
        clock.advance(Duration::from_secs(1));
    });
    stopped.unwrap();
    let (by_tcp, by_http) = signing.await.unwrap();
    assert_eq!(by_tcp.aggregation_time(), GENESIS.plus(1));
    assert_eq!(by_http.aggregation_time(), GENESIS.plus(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_stops_signing_but_not_extending() {
    let world = World::new().await;
    let client = world.tcp();
    let signature = world.run(client.sign(document(1), 0)).await.unwrap();
    let now = world.clock.now();
    world.clock.set(Micros(now.0 + 3_600_000_000));
    let stopped = world.authority.stopped().await.unwrap_err();
    assert!(
        matches!(&*stopped, Stopped::Clock(ClockFault::Jumped { .. })),
        "{stopped}"
    );

    let refused = client.sign(document(2), 0).await.unwrap_err();
    assert!(
        matches!(refused, ClientError::Refused { status: 0x0200, .. }),
        "{refused}"
    );
    assert!(refused.to_string().contains("CLK-01"), "{refused}");
    client.extend(&signature, None, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_goes_back_tells_those_who_wait() {
    let world = World::new().await;
    world.ticks(100).await;
    let client = world.tcp();
    let signing = tokio::spawn(async move { client.sign(document(1), 0).await });
    world.until_waiting(1).await;
    world.clock.set(Micros::boundary(GENESIS.plus(50)));
    let refused = signing.await.unwrap().unwrap_err();
    assert!(refused.to_string().contains("CLK-01"), "{refused}");
    let stopped = world.authority.shutdown().await.unwrap_err();
    assert!(
        matches!(&*stopped, Stopped::Clock(ClockFault::WentBack { .. })),
        "{stopped}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_behind_the_calendar_is_not_started() {
    let world = World::new().await;
    world.ticks(10).await;
    let World { dir, authority, .. } = world;
    authority.shutdown().await.unwrap();
    let clock = ManualClock::new(Micros::boundary(GENESIS.plus(9)));
    let error = Authority::start(config(&dir), clock).await.unwrap_err();
    assert!(
        matches!(error, AuthorityError::Clock(ClockFault::BehindHead { .. })),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn publishes_on_schedule() {
    let dir = TempDir::new().unwrap();
    init(&dir);
    let clock = Arc::new(ManualClock::new(Micros::boundary(GENESIS)));
    let config = Config {
        publish_every_s: 10,
        ..config(&dir)
    };
    let authority = Authority::start(config, clock.clone()).await.unwrap();
    for _ in 0..35 {
        tick(&clock, &authority).await;
    }
    // The round after the last publication waits for it.
    let file =
        pitser_ksi::publications_file::PublicationsFile::decode(&authority.publications_file())
            .unwrap();
    let times: Vec<u64> = file
        .publications()
        .iter()
        .map(|record| record.data.time.0)
        .collect();
    assert_eq!(times, [1_773_480_420, 1_773_480_430, 1_773_480_440]);
}

/// It would take the place of one that everybody believes, and all later ones follow it.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_nobody_would_believe_is_not_published() {
    let world = World::new().await;
    world.ticks(3).await;
    world.authority.publish().await.unwrap();
    world.ticks(3).await;
    let before = world.authority.publications_file();
    let now = world.clock.now();
    let century = Duration::from_secs(100 * 366 * 86_400);
    for (clock, expected) in [
        (now.0 + u64::try_from(century.as_micros()).unwrap(), "valid"),
        (now.0 - 4_000_000, "Set the clock right"),
    ] {
        world.clock.set(Micros(clock));
        let refused = world.authority.publish().await.unwrap_err().to_string();
        assert!(refused.contains(expected), "{refused}");
        assert_eq!(world.authority.publications_file(), before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_copy_of_the_calendar_is_noticed() {
    let world = World::new().await;
    world.ticks(20).await;
    world.authority.publish().await.unwrap();
    let now = world.clock.now();
    let World { dir, authority, .. } = world;
    authority.shutdown().await.unwrap();
    let entries = dir.path().join("calendar/level-00");
    let bytes = std::fs::read(&entries).unwrap();
    std::fs::write(&entries, &bytes[..33 * 10]).unwrap();
    let error = Authority::start(config(&dir), ManualClock::new(now))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("restored from an old copy"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn start_errors_say_what_to_do() {
    let world = World::new().await;
    let now = world.clock.now();

    let error = Authority::start(config(&world.dir), ManualClock::new(now))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("in use by another process"),
        "{error}"
    );

    let dir = TempDir::new().unwrap();
    let error = Authority::start(config(&dir), ManualClock::new(now))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("run init first"), "{error}");

    init(&dir);
    let taken = Config {
        tcp: world.authority.tcp_address(),
        ..config(&dir)
    };
    let error = Authority::start(taken, ManualClock::new(now))
        .await
        .unwrap_err();
    let port = world.authority.tcp_address().port().to_string();
    assert!(error.to_string().contains(&port), "{error}");
    assert!(
        error.to_string().contains("another program uses this port"),
        "{error}"
    );

    let twice = config(&dir).with_user(User::new("anon", "x"));
    let error = Authority::start(twice, ManualClock::new(now))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("listed twice"), "{error}");

    let key = dir.path().join("signing-key.pem");
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = Authority::start(config(&dir), ManualClock::new(now))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("chmod 600"), "{error}");
}

#[test]
fn setting_up_twice_changes_nothing() {
    let dir = TempDir::new().unwrap();
    init(&dir);
    let key = || std::fs::read(dir.path().join("signing-key.pem")).unwrap();
    let before = key();
    let again = || Authority::init(dir.path(), Second(1), &Subject::default()).unwrap_err();
    assert!(
        again().to_string().contains("choose another folder"),
        "{}",
        again()
    );
    std::fs::rename(dir.path().join("calendar"), dir.path().join("away")).unwrap();
    assert!(
        again().to_string().contains("choose another folder"),
        "{}",
        again()
    );
    assert_eq!(key(), before);
    assert!(!dir.path().join("calendar").exists());
}
