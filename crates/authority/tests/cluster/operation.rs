//! What an operator of a cluster lives with.

use std::fs;
use std::time::{Duration, Instant};

use etcd_client::{EventType, GetOptions};
use pitser_authority::calendar::Calendar;
use pitser_authority::cluster::{ClusterError, TILE_SECONDS};
use pitser_client::{Client, ClientError};
use pitser_ksi::hash::hash;
use pitser_ksi::signature::Signature;
use pitser_ksi::{Algorithm, Imprint, Second};
use tokio::time::sleep;

use crate::machines::{GENESIS, MACHINES, World, has_etcd, name, until};

fn document(number: u64) -> Imprint {
    hash(Algorithm::Sha256, &[&number.to_be_bytes()])
}

async fn started() -> World {
    let mut world = World::new().await;
    for machine in 0..MACHINES {
        world.start_node(machine, 0).await;
    }
    world
}

/// A signature, as soon as somebody leads.
async fn signed(client: &Client, number: u64) -> Signature {
    let mut signature = None;
    until("somebody signs", async || {
        signature = client.sign(document(number), 0).await.ok();
        signature.is_some()
    })
    .await;
    signature.unwrap()
}

/// Takes a node's calendar away, and the log that follows it.
fn empty(world: &World, machine: usize) {
    for name in ["calendar", "calendar-log"] {
        let _ = fs::remove_dir_all(world.folder(machine).join(name));
    }
    Calendar::create(&world.folder(machine).join("calendar"), GENESIS).unwrap();
}

/// The node that leads, when one does.
async fn leader(world: &World) -> usize {
    let mut leader = None;
    until("somebody leads", async || {
        leader = world.leader().await;
        leader.is_some()
    })
    .await;
    leader.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_refuse_at_once_and_extend() {
    if !has_etcd() {
        return;
    }
    let mut world = started().await;
    let signature = signed(&world.client(0..MACHINES), 1).await;
    let leader = leader(&world).await;
    let follower = (leader + 1) % MACHINES;
    let refused = world.client([follower]).sign(document(2), 0).await;
    let Err(ClientError::Refused {
        status, message, ..
    }) = &refused
    else {
        panic!("{refused:?}");
    };
    assert_eq!(*status, 0x0300);
    assert!(message.contains(&name(leader)), "{message}");
    world.until_health(follower, "200 OK").await;

    let client = world.client([follower]);
    until("the follower has that second", async || {
        client.extend(&signature, None, None).await.is_ok()
    })
    .await;

    // In order, the lead is handed over: nobody waits for the lease to run out.
    let began = Instant::now();
    let mut etcd = world.etcd().await;
    let mut changes = etcd.watch("/pitser/leader", None).await.unwrap();
    world.stop_node(leader).await;
    let mut elected = async || {
        loop {
            let change = changes.message().await.unwrap().unwrap();
            for event in change.events() {
                if event.event_type() == EventType::Put {
                    let name = event.kv().unwrap().value_str().unwrap();
                    return name.to_owned();
                }
            }
        }
    };
    // Once it was the one that stopped, elected again before it was gone.
    assert_ne!(elected().await, name(leader));
    let others = (0..MACHINES).filter(|machine| *machine != leader);
    let next = signed(&world.client(others), 3).await;
    assert!(next.aggregation_time() > signature.aggregation_time());
    println!("handed over in {:?}", began.elapsed());
    world.start_node(leader, 0).await;
    let client = world.client([leader]);
    until("the node that was away has it all", async || {
        client.extend(&next, None, None).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_seconds_move_to_tiles_and_an_empty_node_gets_them_back() {
    if has_etcd() {
        old_seconds_move_to(World::unfounded().await).await;
    }
}

#[cfg(feature = "s3")]
#[tokio::test(flavor = "multi_thread")]
async fn old_seconds_move_to_a_bucket_and_an_empty_node_gets_them_back() {
    if !has_etcd() {
        return;
    }
    let mut world = World::unfounded().await;
    if world.use_s3() {
        old_seconds_move_to(world).await;
    }
}

/// A store that takes connections and answers nothing costs the rounds nothing.
#[cfg(feature = "s3")]
#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_hangs_holds_up_no_round() {
    if !has_etcd() {
        return;
    }
    let mut world = World::unfounded().await;
    if !world.use_s3() {
        return;
    }
    let leaves: Vec<Imprint> = (0..2 * TILE_SECONDS).map(document).collect();
    Calendar::open(&world.folder(0).join("calendar"))
        .unwrap()
        .extend(&leaves)
        .unwrap();
    world.age(leaves.len() as u64);
    world.found().await.unwrap();
    let tiles = world.tiles().join("seconds");
    let tiles = || fs::read_dir(&tiles).map_or(0, Iterator::count);
    let founded = tiles();
    // More is old enough for these nodes than for the founder.
    world.keep_s = 10;
    world.s3.as_ref().unwrap().hang(true);
    for machine in 0..2 {
        world.start_node(machine, 0).await;
    }
    let client = world.client(0..2);
    signed(&client, 0).await;
    for number in 1..12 {
        client.sign(document(number), 0).await.unwrap();
    }
    assert_eq!(tiles(), founded);
    world.s3.as_ref().unwrap().hang(false);
    until("the old seconds move", async || tiles() > founded).await;
}

async fn old_seconds_move_to(mut world: World) {
    let leaves: Vec<Imprint> = (0..3 * TILE_SECONDS).map(document).collect();
    Calendar::open(&world.folder(0).join("calendar"))
        .unwrap()
        .extend(&leaves)
        .unwrap();
    world.age(leaves.len() as u64);
    world.found().await.unwrap();
    let founded = fs::read_dir(world.tiles().join("seconds")).unwrap().count();
    assert!(founded >= 1);
    // More is old enough for these nodes than for the founder.
    world.keep_s = 10;
    for machine in 0..2 {
        world.start_node(machine, 0).await;
    }
    let signature = signed(&world.client(0..2), 1).await;
    let mut etcd = world.etcd().await;
    let tiled_by_now = GENESIS.0 + 3 * TILE_SECONDS - TILE_SECONDS;
    until("old seconds are in tiles", async || {
        let tiled = etcd.get("/pitser/tiled", None).await.unwrap();
        let digits = tiled.kvs()[0].value_str().unwrap();
        digits.parse::<u64>().unwrap() >= tiled_by_now
    })
    .await;
    let tiled = etcd.get("/pitser/tiled", None).await.unwrap();
    let first: u64 = tiled.kvs()[0].value_str().unwrap().parse().unwrap();
    let old = GetOptions::new().with_range(format!("/pitser/seconds/{first:012}"));
    let old = etcd.get("/pitser/seconds/", Some(old)).await.unwrap();
    assert_eq!(old.count(), 0);
    // etcd forgets its history, as it does every hour.
    let revision = old.header().unwrap().revision();
    etcd.compact(revision, None).await.unwrap();

    empty(&world, 2);
    world.start_node(2, 0).await;
    let client = world.client([2]);
    until("the empty node has it all", async || {
        client.extend(&signature, None, None).await.is_ok()
    })
    .await;
    for machine in 0..MACHINES {
        world.stop_node(machine).await;
    }
    let calendars = world.calendars();
    for (at, leaf) in (GENESIS.0..).zip(&leaves) {
        for calendar in calendars.values() {
            assert_eq!(calendar[&at], leaf.to_string());
        }
    }

    // A tile that somebody changed is not taken over.
    let tiles = world.tiles().join("seconds");
    let tile = fs::read_dir(tiles).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&tile).unwrap();
    bytes[4001] ^= 1;
    fs::write(&tile, bytes).unwrap();
    empty(&world, 2);
    world.start_node(2, 0).await;
    world.until_health(2, "is not what the cluster wrote").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_past_does_not_take_part() {
    if !has_etcd() {
        return;
    }
    let mut world = started().await;
    let client = world.client(0..MACHINES);
    let first = signed(&client, 1).await;
    let mut etcd = world.etcd().await;
    let old_head = etcd.get("/pitser/head", None).await.unwrap();
    let old_head = old_head.kvs()[0].value().to_vec();
    world.stop_node(2).await;

    // Somebody appends a second of his own.
    let mut calendar = Calendar::open(&world.folder(2).join("calendar")).unwrap();
    let head = calendar.head().unwrap_or(Second(GENESIS.0 - 1));
    calendar.append(head.plus(1), document(99)).unwrap();
    drop(calendar);
    until("the others went on", async || {
        let signature = signed(&client, 2).await;
        signature.aggregation_time() > head.plus(2)
    })
    .await;
    world.start_node(2, 0).await;
    world.until_health(2, "one of them was altered").await;
    // It does not sign, and the others do.
    let refused = world.client([2]).sign(document(3), 0).await;
    assert!(matches!(refused, Err(ClientError::Refused { .. })));
    signed(&client, 3).await;

    // etcd is restored from an old snapshot.
    for machine in 0..MACHINES {
        world.stop_node(machine).await;
    }
    etcd.put("/pitser/head", old_head, None).await.unwrap();
    world.start_node(0, 0).await;
    world.until_health(0, "from an old snapshot").await;
    // What it has, it still shows.
    let node = world.client([0]);
    node.extend(&first, None, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_founded_once_and_never_by_itself() {
    if !has_etcd() {
        return;
    }
    let mut world = World::unfounded().await;
    world.start_node(0, 0).await;
    world.until_health(0, "found it once").await;
    world.stop_node(0).await;
    world.found().await.unwrap();
    let again = world.found().await;
    assert!(
        matches!(again, Err(ClusterError::AlreadyFounded { .. })),
        "{again:?}"
    );
    // A node with a key of its own does not belong here.
    fs::remove_dir_all(world.folder(1)).unwrap();
    crate::machines::init(&world.folder(1));
    world.start_node(1, 0).await;
    world
        .until_health(1, "another calendar or certificate")
        .await;
    world.start_node(0, 0).await;
    signed(&world.client([0]), 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_far_ahead_of_the_others_does_not_lead() {
    if !has_etcd() {
        return;
    }
    let mut world = World::new().await;
    world.start_node(0, 0).await;
    let before = signed(&world.client([0]), 1).await;
    world.start_node(1, 600_000).await;
    let wrong = world.client([1]);
    let newest = async || wrong.extender_config().await.ok()?.calendar_last;
    let mut caught_up = None;
    until("the wrong node follows", async || {
        caught_up = newest().await;
        caught_up >= Some(before.aggregation_time())
    })
    .await;
    until("it hears the right one's time", async || {
        newest().await > caught_up
    })
    .await;
    // Now it is alone.
    world.kill_node(0);
    until("the lease runs out", async || {
        world.leader().await.is_none()
    })
    .await;
    sleep(Duration::from_secs(4)).await;
    assert_eq!(world.leader().await, None);
    world.start_node(0, 0).await;
    let after = signed(&world.client([0]), 2).await;
    let passed = after.aggregation_time().since(before.aggregation_time());
    assert!(passed < 500, "{passed} s were skipped");
    assert!(after.aggregation_time() < Second(GENESIS.0 + 600));
}
