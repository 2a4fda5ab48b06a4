//! The fleet of an authority of several nodes: one log, whichever node is asked.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use pitser_authority::{Authority, Config, ManualClock, Micros, User};
use pitser_client::fleet::{Fleet, FleetError, Registration, system_id};
use pitser_client::{Endpoint, Key, Options};
use pitser_ksi::hash::{Algorithm, hash};
use pitser_tlog::checkpoint::Checkpoint;
use pitser_tlog::merkle::{LogTree, leaf_hash};
use pitser_tlog::note::{Note, SigningKey};
use pitser_tlog::proof::LogProof;
use pitser_tlog::tiles::decode_bundle;
use tokio::task::JoinSet;

use crate::machines::{GENESIS, MACHINES, World, copy, has_etcd, until};
use crate::proxy::Line;

/// The trail `origin` of a hospital, begun with `genesis`.
fn trail(origin: &str, genesis: &str) -> Note {
    let key = SigningKey::from_seed(origin, &[1; 32]).unwrap();
    let registration = Registration {
        key: key.verifier(),
        genesis: hash(Algorithm::Sha256, &[genesis.as_bytes()]),
        system: system_id(origin),
        begun_at: GENESIS,
    };
    registration.sign(&key).unwrap()
}

fn name(number: usize) -> String {
    format!("hospital.example/{number}")
}

fn fleet(world: &World, machine: usize) -> Fleet {
    fleet_at(world.http(machine))
}

fn fleet_at(address: SocketAddr) -> Fleet {
    let endpoint = Endpoint::parse(&format!("http://{address}")).unwrap();
    let endpoint = endpoint.with_credentials("anon", Key::new(b"anon"));
    Fleet::new(endpoint, Options::default()).unwrap()
}

async fn register(world: &World, machine: usize, note: &Note) -> Result<LogProof, FleetError> {
    fleet(world, machine).register(note, world.now_us()).await
}

fn is_away(registered: &Result<LogProof, FleetError>) -> bool {
    match registered {
        Err(FleetError::Refused { status, reason, .. }) => {
            assert!(
                *status != 503 || reason.contains("ask another one"),
                "{reason}"
            );
            *status == 503
        }
        _ => false,
    }
}

/// Registers it as soon as the node is in touch.
async fn registered(world: &World, machine: usize, note: &Note) -> LogProof {
    let mut proof = None;
    until("the node registers", async || {
        let registered = register(world, machine, note).await;
        assert!(registered.is_ok() || is_away(&registered), "{registered:?}");
        proof = registered.ok();
        proof.is_some()
    })
    .await;
    proof.unwrap()
}

/// The newest checkpoint that a node shows.
async fn checkpoint(world: &World, machine: usize) -> Option<Note> {
    let (head, body) = world.get(machine, "/fleet/log/checkpoint").await.ok()?;
    head.contains(" 200 OK")
        .then(|| Note::parse(&body).unwrap())
}

/// Until these nodes show one checkpoint, of so many entries, which their files lead to.
async fn until_all_show(world: &World, machines: impl IntoIterator<Item = usize>, entries: u64) {
    let mut first = None;
    for machine in machines {
        let mut shown = None;
        until(
            &format!("node {machine} shows {entries} entries"),
            async || {
                shown = checkpoint(world, machine).await;
                shown.as_ref().is_some_and(|note| size(note) >= entries)
            },
        )
        .await;
        let shown = shown.unwrap();
        let first = first.get_or_insert_with(|| shown.clone());
        assert_eq!(shown.to_string(), first.to_string(), "node {machine}");
        let head = Checkpoint::parse(shown.text()).unwrap();
        let path = format!("/fleet/log/tile/entries/000.p/{entries}");
        let (_, bundle) = world.get(machine, &path).await.unwrap();
        let bundle = decode_bundle(&bundle).unwrap();
        let tree: LogTree = bundle.iter().map(|entry| leaf_hash(entry)).collect();
        assert_eq!((head.size(), *head.root()), (entries, tree.root()));
    }
}

fn size(note: &Note) -> u64 {
    Checkpoint::parse(note.text()).unwrap().size()
}

fn registrations(world: &World, machine: usize) -> PathBuf {
    world.folder(machine).join("fleet/registrations")
}

/// Registers it while this is an authority of one node.
async fn register_alone(
    world: &World,
    machine: usize,
    note: &Note,
) -> Result<LogProof, FleetError> {
    let config = Config::new(world.folder(machine)).with_user(User::new("anon", "anon"));
    let now = Micros::boundary(GENESIS);
    let authority = Authority::start(config, Arc::new(ManualClock::new(now)));
    let authority = authority.await.unwrap();
    let fleet = fleet_at(authority.http_address().unwrap());
    let registered = fleet.register(note, now.0).await;
    authority.shutdown().await.unwrap();
    registered
}

async fn started() -> World {
    let mut world = World::new().await;
    for machine in 0..MACHINES {
        world.start_node(machine, 0).await;
    }
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_register_at_the_same_time_have_one_log() {
    if !has_etcd() {
        return;
    }
    let world = started().await;
    for machine in 0..MACHINES {
        registered(&world, machine, &trail(&name(machine), "genesis")).await;
    }
    // Two nodes are asked for all of these at once, and for one name with two genesis.
    let mut asked = JoinSet::new();
    for number in 3..43 {
        let (fleet, note) = (fleet(&world, number % 2), trail(&name(number), "genesis"));
        let now_us = world.now_us();
        asked.spawn(async move { fleet.register(&note, now_us).await });
    }
    for machine in 0..2 {
        let genesis = format!("genesis of {machine}");
        let (fleet, note) = (fleet(&world, machine), trail(&name(43), &genesis));
        let now_us = world.now_us();
        asked.spawn(async move { fleet.register(&note, now_us).await });
    }
    let (mut places, mut taken) = (Vec::new(), 0);
    while let Some(answer) = asked.join_next().await {
        match answer.unwrap() {
            Ok(proof) => places.push(proof.index()),
            Err(FleetError::Taken(_)) => taken += 1,
            other => panic!("{other:?}"),
        }
    }
    places.sort_unstable();
    places.dedup();
    assert_eq!((places.len(), taken), (41, 1));
    until_all_show(&world, 0..MACHINES, 45).await;
    // Whichever node is asked, it is the same entry.
    let note = trail(&name(42), "genesis");
    let first = registered(&world, 0, &note).await;
    assert_eq!(registered(&world, 2, &note).await, first);
    let third = register(&world, 2, &trail(&name(43), "third")).await;
    assert!(matches!(third, Err(FleetError::Taken(_))), "{third:?}");
    until_all_show(&world, 0..MACHINES, 46).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_killed_has_it_all_afterwards() {
    if !has_etcd() {
        return;
    }
    let mut world = started().await;
    registered(&world, 2, &trail(&name(0), "genesis")).await;
    world.kill_node(2);
    for number in 1..6 {
        registered(&world, number % 2, &trail(&name(number), "genesis")).await;
    }
    // etcd forgets its history meanwhile.
    let mut etcd = world.etcd().await;
    let head = etcd.get("/pitser/head", None).await.unwrap();
    let revision = head.header().unwrap().revision();
    etcd.compact(revision, None).await.unwrap();
    world.start_node(2, 0).await;
    // It asks nobody for it: it is there by itself.
    until_all_show(&world, [2, 0, 1], 6).await;
    registered(&world, 2, &trail(&name(6), "genesis")).await;
    until_all_show(&world, 0..MACHINES, 7).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_etcd_nothing_is_registered_and_with_it_again() {
    if !has_etcd() {
        return;
    }
    let mut world = started().await;
    let known = trail(&name(0), "genesis");
    let proof = registered(&world, 0, &known).await;
    for machine in 0..MACHINES {
        world.kill_etcd(machine);
    }
    let note = trail(&name(1), "genesis");
    for machine in 0..MACHINES {
        let refused = register(&world, machine, &note).await;
        assert!(is_away(&refused), "{refused:?}");
        assert!(fs::read(registrations(&world, machine)).unwrap().len() < 2048);
    }
    // What is known is answered all the same.
    assert_eq!(register(&world, 0, &known).await.unwrap(), proof);
    for machine in 0..MACHINES {
        world.start_etcd(machine);
    }
    for machine in 0..MACHINES {
        assert_eq!(registered(&world, machine, &note).await.index(), 1);
    }
    until_all_show(&world, 0..MACHINES, 2).await;

    // A node that is cut off alone refuses, the others go on.
    world.set_lines(2, Line::Cut);
    let note = trail(&name(2), "genesis");
    let refused = register(&world, 2, &note).await;
    assert!(is_away(&refused), "{refused:?}");
    registered(&world, 0, &note).await;
    world.set_lines(2, Line::Good);
    assert_eq!(registered(&world, 2, &note).await.index(), 2);
    until_all_show(&world, 0..MACHINES, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_founder_brings_its_registrations_along() {
    if !has_etcd() {
        return;
    }
    let mut world = World::unfounded().await;
    for number in 0..2 {
        let proof = register_alone(&world, 0, &trail(&name(number), "genesis")).await;
        assert_eq!(proof.unwrap().index(), number as u64);
    }
    world.found().await.unwrap();
    let mut etcd = world.etcd().await;
    let found = etcd.get("/pitser/fleet/00000001", None).await.unwrap();
    assert_eq!(found.count(), 1, "before any node is there");
    // One node has an older copy than what was founded with, another one has none.
    let more = register_alone(&world, 0, &trail(&name(0), "another")).await;
    assert!(matches!(more, Err(FleetError::Taken(_))), "{more:?}");
    fs::remove_dir_all(world.folder(2).join("fleet")).unwrap();
    for machine in 0..MACHINES {
        world.start_node(machine, 0).await;
    }
    until_all_show(&world, 0..MACHINES, 3).await;
    let proof = registered(&world, 2, &trail(&name(1), "genesis")).await;
    assert_eq!(proof.index(), 1);
    registered(&world, 1, &trail(&name(2), "genesis")).await;
    until_all_show(&world, 0..MACHINES, 4).await;

    // What etcd lost, the nodes bring back.
    let newest = "/pitser/fleet/00000003";
    let before = etcd.get(newest, None).await.unwrap();
    etcd.delete(newest, None).await.unwrap();
    until("it is there again", async || {
        let again = etcd.get(newest, None).await.unwrap();
        let again = again.kvs().first().map(|pair| pair.value().to_vec());
        again.is_some_and(|again| again == before.kvs()[0].value())
    })
    .await;
    registered(&world, 2, &trail(&name(3), "genesis")).await;
    until_all_show(&world, 0..MACHINES, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_log_registers_nothing_and_keeps_it() {
    if !has_etcd() {
        return;
    }
    let mut world = World::new().await;
    // One key signs two logs before they come together.
    let (ours, theirs) = (trail(&name(0), "ours"), trail(&name(1), "theirs"));
    register_alone(&world, 0, &ours).await.unwrap();
    register_alone(&world, 2, &theirs).await.unwrap();
    let before = fs::read(registrations(&world, 2)).unwrap();
    world.start_node(0, 0).await;
    let proof = registered(&world, 0, &trail(&name(2), "genesis")).await;
    assert_eq!(proof.index(), 1);

    world.start_node(2, 0).await;
    until("it has seen that there are two logs", async || {
        world.logs().contains("of the other nodes are two")
    })
    .await;
    for note in [&ours, &trail(&name(3), "genesis")] {
        let refused = register(&world, 2, note).await;
        assert!(is_away(&refused), "{refused:?}");
    }
    // Nor when it hears of one that would be its next.
    registered(&world, 0, &trail(&name(4), "genesis")).await;
    let refused = register(&world, 2, &trail(&name(5), "genesis")).await;
    assert!(is_away(&refused), "{refused:?}");
    assert_eq!(fs::read(registrations(&world, 2)).unwrap(), before);
    assert_eq!(size(&checkpoint(&world, 2).await.unwrap()), 1);
    // What it has, it still shows.
    assert_eq!(register(&world, 2, &theirs).await.unwrap().index(), 0);

    // As the message says: a copy of another node's.
    world.stop_node(2).await;
    world.stop_node(0).await;
    let folder = |machine: usize| world.folder(machine).join("fleet");
    fs::remove_dir_all(folder(2)).unwrap();
    copy(&folder(0), &folder(2));
    for machine in [0, 2] {
        world.start_node(machine, 0).await;
    }
    registered(&world, 2, &trail(&name(5), "genesis")).await;
    until_all_show(&world, [0, 2], 4).await;
}
