//! The fleet as guardians, the public and the operator meet it, over real HTTP:
//! trails are registered, grow, are begun anew beside a falsified database, fork.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;

use common::{GENESIS, config, init};
use pitser_authority::{
    Authority, AuthorityError, AuthorityHandle, Clock, Config, FleetError, LogConfig, LogWitness,
    ManualClock, Micros, User,
};
use pitser_client::fleet::{Fleet, FleetError as Refused, Registration, system_id};
use pitser_client::{Endpoint, Options};
use pitser_ksi::hash::{Algorithm, hash};
use pitser_tlog::checkpoint::{Checkpoint, verify_quorum};
use pitser_tlog::merkle::{LogTree, leaf_hash};
use pitser_tlog::note::{CosigningKey, Note, SigningKey};
use pitser_tlog::tiles::decode_bundle;
use pitser_witness::{ClockedWitness, Log, MemoryStore, Witness};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const CALENDAR: &str = "authority.example/calendar";
const FLEET: &str = "authority.example/fleet";

struct World {
    dir: TempDir,
    clock: Arc<ManualClock>,
    config: Config,
    authority: AuthorityHandle,
}

impl World {
    async fn new(change: impl FnOnce(&mut Config)) -> Self {
        let dir = TempDir::new().unwrap();
        init(&dir);
        let clock = Arc::new(ManualClock::new(Micros::boundary(GENESIS)));
        let mut config = config(&dir).with_user(User::new("clinic", "key of the clinic"));
        config.operations.monitor = Some("127.0.0.1:0".parse().unwrap());
        config.log.origin = CALENDAR.to_owned();
        change(&mut config);
        let authority = Authority::start(config.clone(), Arc::clone(&clock))
            .await
            .unwrap();
        Self {
            dir,
            clock,
            config,
            authority,
        }
    }

    /// Stops and starts again; `change` happens to the configuration in between.
    async fn again(self, change: impl FnOnce(&mut Config)) -> Self {
        let Self {
            dir,
            clock,
            mut config,
            authority,
        } = self;
        authority.shutdown().await.unwrap();
        change(&mut config);
        let authority = Authority::start(config.clone(), Arc::clone(&clock))
            .await
            .unwrap();
        Self {
            dir,
            clock,
            config,
            authority,
        }
    }

    fn public(&self) -> SocketAddr {
        self.authority.http_address().unwrap()
    }

    fn fleet_of(&self, user: &str, key: &str) -> Fleet {
        let key = pitser_client::Key::new(key.as_bytes());
        let uri = format!("http://{}", self.public());
        let endpoint = Endpoint::parse(&uri).unwrap().with_credentials(user, key);
        Fleet::new(endpoint, Options::default()).unwrap()
    }

    fn fleet(&self) -> Fleet {
        self.fleet_of("anon", "anon")
    }

    /// A moment by everybody's clock, later than any before.
    fn now(&self) -> u64 {
        self.clock.set(Micros(self.clock.now().0 + 1));
        self.clock.now().0
    }

    async fn list(&self, address: SocketAddr) -> Value {
        let (status, body) = get(address, "/fleet.json").await;
        assert_eq!(status, 200);
        serde_json::from_slice(&body).unwrap()
    }

    async fn public_list(&self) -> Value {
        self.list(self.public()).await
    }

    async fn operators_list(&self) -> Value {
        self.list(self.authority.monitor_address().unwrap()).await
    }

    async fn entries(&self, size: usize) -> Vec<String> {
        let path = format!("/fleet/log/tile/entries/000.p/{size}");
        let (status, body) = get(self.public(), &path).await;
        assert_eq!(status, 200);
        let entries = decode_bundle(&body).unwrap().into_iter();
        let text = |entry: &[u8]| String::from_utf8(entry.to_vec()).unwrap();
        entries.map(text).collect()
    }
}

async fn get(address: SocketAddr, path: &str) -> (u16, Vec<u8>) {
    talk(address, format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await
}

async fn talk(address: SocketAddr, request: &[u8]) -> (u16, Vec<u8>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let status = String::from_utf8_lossy(&answer[9..12]).parse().unwrap();
    (status, answer[end + 4..].to_vec())
}

/// A hospital's trail.
struct Trail {
    key: SigningKey,
    registration: Registration,
    tree: LogTree,
}

impl Trail {
    fn new(origin: &str, seed: u8, genesis: &str) -> Self {
        let key = SigningKey::from_seed(origin, &[seed; 32]).unwrap();
        Self {
            registration: Registration {
                key: key.verifier(),
                genesis: hash(Algorithm::Sha256, &[genesis.as_bytes()]),
                system: system_id(origin),
                begun_at: GENESIS,
            },
            key,
            tree: LogTree::new(),
        }
    }

    fn note(&self) -> Note {
        self.registration.sign(&self.key).unwrap()
    }

    fn grow(&mut self, blocks: u64) -> Note {
        for _ in 0..blocks {
            let leaf = leaf_hash(&self.tree.size().to_be_bytes());
            self.tree.push(leaf);
        }
        self.head(self.tree.size())
    }

    fn head(&self, size: u64) -> Note {
        let root = self.tree.root_at(size).unwrap();
        let head = Checkpoint::new(self.key.name(), size, root).unwrap();
        head.sign(&self.key).unwrap()
    }
}

fn ehr() -> Trail {
    Trail::new("hospital.example/ehr", 1, "genesis")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_trail_beside_a_falsified_database_shows_for_ever() {
    let world = World::new(|_| {}).await;
    let mut trail = ehr();
    let proof = world
        .fleet()
        .register(&trail.note(), world.now())
        .await
        .unwrap();
    assert_eq!(proof.index(), 0);
    let key = world.authority.fleet_key().clone();
    assert_eq!(key.name(), FLEET);
    let head = Checkpoint::open(proof.head(), FLEET, &key).unwrap();
    assert_eq!((head.size(), *head.root()), (1, leaf_hash(proof.extra())));
    // The same again is the same.
    let again = world.fleet().register(&trail.note(), world.now()).await;
    assert_eq!(again.unwrap(), proof);
    world
        .fleet()
        .head(&trail.grow(40), world.now())
        .await
        .unwrap();

    // The guardian's folder is thrown away: another key, another genesis.
    let fresh = Trail::new("hospital.example/ehr", 2, "fresh");
    let same_key = Trail::new("hospital.example/ehr", 1, "fresh too");
    for other in [&fresh, &fresh, &same_key] {
        let refused = world.fleet().register(&other.note(), world.now()).await;
        let Err(Refused::Taken(reason)) = refused else {
            panic!("{refused:?}");
        };
        assert!(reason.contains("entry 0 of 2026-03-14"), "{reason}");
    }
    // Its heads are not taken either.
    let mut fresh = fresh;
    let refused = world.fleet().head(&fresh.grow(50), world.now()).await;
    assert!(matches!(refused, Err(Refused::Refused { status: 400, .. })));

    let check = async |world: &World| {
        let list = world.public_list().await;
        let shown = &list["trails"][0];
        assert_eq!(shown["origin"], "hospital.example/ehr");
        assert_eq!(shown["size"], 40);
        assert_eq!(shown["refused"].as_array().unwrap().len(), 2);
        assert_eq!(shown["refused"][0]["entry"], 1);
        assert_eq!(list["log"]["size"], 3);
        assert_eq!(
            (&list["registered"], &list["refused"]),
            (&1.into(), &2.into())
        );
        let entries = world.entries(3).await;
        assert!(entries[0].starts_with("pitser fleet entry 1\nregistered\n"));
        assert!(entries[1].starts_with("pitser fleet entry 1\nrefused\n"));
        assert!(entries[1].ends_with(&fresh.note().to_string()));
        let tree: LogTree = entries
            .iter()
            .map(|one| leaf_hash(one.as_bytes()))
            .collect();
        let (_, note) = get(world.public(), "/fleet/log/checkpoint").await;
        let head = Checkpoint::open(&Note::parse(&note).unwrap(), FLEET, &key).unwrap();
        assert_eq!((head.size(), *head.root()), (3, tree.root()));
        let (_, hashes) = get(world.public(), "/fleet/log/tile/0/000.p/3").await;
        assert_eq!(hashes.len(), 96);
        let (_, page) = get(world.public(), "/fleet").await;
        let page = String::from_utf8(page).unwrap();
        assert!(page.contains("ANOTHER TRAIL of this name"), "{page}");
    };
    check(&world).await;
    let world = world.again(|_| {}).await;
    check(&world).await;
    // And a power cut in the middle of a line takes nothing that was answered.
    let path = world.dir.path().join("fleet/registrations");
    let World {
        dir,
        clock,
        config,
        authority,
    } = world;
    authority.shutdown().await.unwrap();
    let mut torn = fs::read(&path).unwrap();
    torn.extend_from_slice(b"0123456789abcdef {\"kind\":\"regi");
    fs::write(&path, torn).unwrap();
    let authority = Authority::start(config.clone(), Arc::clone(&clock)).await;
    let world = World {
        dir,
        clock,
        config,
        authority: authority.unwrap(),
    };
    check(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trail_that_shrinks_or_forks_is_refused_and_both_heads_are_kept() {
    let world = World::new(|_| {}).await;
    let fleet = world.fleet();
    let (mut trail, mut other) = (ehr(), Trail::new("hospital.example/lab", 3, "lab"));
    for one in [&trail, &other] {
        fleet.register(&one.note(), world.now()).await.unwrap();
    }
    let unknown = Trail::new("hospital.example/none", 4, "").grow(1);
    let refused = fleet.head(&unknown, world.now()).await;
    assert!(matches!(refused, Err(Refused::Unknown)), "{refused:?}");
    let (held, lab) = (trail.grow(9), other.grow(5));
    fleet.head(&held, world.now()).await.unwrap();
    fleet.head(&held, world.now()).await.unwrap();
    fleet.head(&lab, world.now()).await.unwrap();
    let small = trail.head(8);
    let refused = fleet.head(&small, world.now()).await;
    assert!(matches!(refused, Err(Refused::Shrunk(_))), "{refused:?}");
    let mut forked = Trail::new("hospital.example/lab", 3, "lab");
    forked.tree.push(leaf_hash(b"altered"));
    let altered = forked.grow(4);
    let refused = fleet.head(&altered, world.now()).await;
    assert!(matches!(refused, Err(Refused::Forked(_))), "{refused:?}");

    let check = async |world: &World| {
        let list = world.public_list().await;
        let (ehr, lab_shown) = (&list["trails"][0], &list["trails"][1]);
        assert_eq!(ehr["size"], 9);
        assert_eq!(ehr["shrunk"]["held"], held.to_string());
        assert_eq!(ehr["shrunk"]["other"], small.to_string());
        assert_eq!(lab_shown["forked"]["held"], lab.to_string());
        assert_eq!(lab_shown["forked"]["other"], altered.to_string());
        assert_eq!(list["forked"], 2);
        let monitor = world.authority.monitor_address().unwrap();
        let (_, metrics) = get(monitor, "/metrics").await;
        let metrics = String::from_utf8(metrics).unwrap();
        assert!(metrics.contains("\npitser_fleet_forked 2\n"), "{metrics}");
    };
    check(&world).await;
    let world = world.again(|_| {}).await;
    check(&world).await;
    // What grows from what was seen is still taken.
    world
        .fleet()
        .head(&trail.grow(1), world.now())
        .await
        .unwrap();
    assert_eq!(world.public_list().await["trails"][0]["size"], 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_users_are_heard_each_for_their_own_trails_and_once() {
    let world = World::new(|config| {
        config.fleet.origins_per_user = 2;
        config.fleet.silent_s = 10;
    })
    .await;
    let mut trail = ehr();
    let at = world.now();
    for fleet in [
        world.fleet_of("anon", "wrong"),
        world.fleet_of("nobody", ""),
    ] {
        let refused = fleet.register(&trail.note(), at).await;
        let refused = refused.unwrap_err();
        assert!(matches!(refused, Refused::Refused { status: 401, .. }));
    }
    let (status, _) = talk(
        world.public(),
        b"POST /fleet/register HTTP/1.0\r\ncontent-length: 1\r\n\r\nx",
    )
    .await;
    assert_eq!(status, 401);
    let long = format!(
        "POST /fleet/head HTTP/1.0\r\ncontent-length: 20000\r\n\r\n{}",
        "x".repeat(20_000)
    );
    assert_eq!(talk(world.public(), long.as_bytes()).await.0, 413);
    // A clock that is wrong by an hour.
    let late = at + 3_600_000_000;
    let refused = world.fleet().register(&trail.note(), late).await;
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("400") && refused.contains("set yours"),
        "{refused}"
    );
    assert_eq!(world.public_list().await["registered"], 0);

    world.fleet().register(&trail.note(), at).await.unwrap();
    let clinic = world.fleet_of("clinic", "key of the clinic");
    let refused = clinic.head(&trail.grow(1), world.now()).await;
    assert!(matches!(refused, Err(Refused::Refused { status: 403, .. })));
    let at = world.now();
    world.fleet().head(&trail.grow(1), at).await.unwrap();
    let replayed = world.fleet().head(&trail.grow(1), at).await;
    assert!(matches!(
        replayed,
        Err(Refused::Refused { status: 400, .. })
    ));
    assert_eq!(world.public_list().await["trails"][0]["size"], 2);

    // As many as one may, refused ones of others do not count against them.
    let second = Trail::new("hospital.example/b", 5, "b").note();
    let third = Trail::new("hospital.example/c", 6, "c").note();
    world.fleet().register(&second, world.now()).await.unwrap();
    let refused = world.fleet().register(&third, world.now()).await;
    assert!(matches!(refused, Err(Refused::Refused { status: 429, .. })));
    clinic.register(&third, world.now()).await.unwrap();
    // Heads in a flood: so many and no more, until time has passed.
    let mut taken = 0;
    for _ in 0..60 {
        let sent = world.fleet().head(&trail.grow(1), world.now()).await;
        taken += u32::from(sent.is_ok());
    }
    assert!((20..40).contains(&taken), "{taken}");

    // Logins are for operators.
    let public = world.public_list().await;
    assert!(!public.to_string().contains("clinic"), "{public}");
    assert!(public["trails"][0]["user"].is_null() && public["trails"][0]["seen_at"].is_null());
    let operators = world.operators_list().await;
    let of = |origin: &str| {
        let mut trails = operators["trails"].as_array().unwrap().iter();
        trails.find(|one| one["origin"] == origin).unwrap().clone()
    };
    assert_eq!(of("hospital.example/c")["user"], "clinic");
    assert_eq!(of("hospital.example/c")["silent"], false);
    world.clock.advance(std::time::Duration::from_secs(11));
    let operators = world.operators_list().await;
    assert_eq!(operators["silent"], 3);

    // Whose user is gone may be registered by another one, the same trail alone.
    let world = world
        .again(|config| {
            config.users.retain(|user| user.login != "anon");
        })
        .await;
    let clinic = world.fleet_of("clinic", "key of the clinic");
    clinic.register(&trail.note(), world.now()).await.unwrap();
    clinic.head(&trail.grow(1), world.now()).await.unwrap();
    let world = world.again(|_| {}).await;
    let operators = world.operators_list().await;
    assert_eq!(operators["trails"][1]["origin"], "hospital.example/c");
    let moved = &operators["trails"][2];
    assert_eq!(
        (&moved["user"], &moved["entry"]),
        (&"clinic".into(), &0.into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn witnesses_cosign_the_log_and_their_cosignatures_on_heads_are_counted() {
    let keys = [1, 2].map(|n| CosigningKey::from_seed(&format!("w{n}.example"), &[n; 32]).unwrap());
    let world = World::new(|config| {
        let seed = fs::read_to_string(config.dir.join("log-key")).unwrap();
        let seed = data_encoding::HEXLOWER
            .decode(seed.trim().as_bytes())
            .unwrap();
        let log = SigningKey::from_seed(FLEET, seed.as_slice().try_into().unwrap()).unwrap();
        let witness = |key: &CosigningKey| {
            let own = CosigningKey::parse(&key.expose()).unwrap();
            let mut witness = Witness::new(own, MemoryStore::new());
            witness.add_log(&Log::new(log.verifier())).unwrap();
            LogWitness {
                key: key.verifier(),
                way: Arc::new(ClockedWitness::new(witness, || GENESIS.0)),
            }
        };
        config.log = LogConfig {
            origin: CALENDAR.to_owned(),
            witnesses: keys.iter().map(witness).collect(),
            quorum: 2,
        };
    })
    .await;
    let fleet_key = world.authority.fleet_key().clone();
    let mut trail = ehr();
    world
        .fleet()
        .register(&trail.note(), world.now())
        .await
        .unwrap();
    // Nobody waited for them; they come.
    let note = loop {
        let (status, body) = get(world.public(), "/fleet/log/witnessed").await;
        if status == 200 {
            break Note::parse(&body).unwrap();
        }
    };
    let verifiers: Vec<_> = keys.iter().map(CosigningKey::verifier).collect();
    let quorum = verify_quorum(&note, &fleet_key, &verifiers, 2).unwrap();
    assert_eq!(quorum.checkpoint.size(), 1);

    let mut head = trail.grow(7);
    world.fleet().head(&head, world.now()).await.unwrap();
    let shown = async || world.public_list().await["trails"][0].clone();
    assert_eq!(
        (&shown().await["size"], &shown().await["witnessed"]),
        (&7.into(), &0.into())
    );
    head.add(keys[1].cosign(head.text(), GENESIS.0)).unwrap();
    let stranger = CosigningKey::from_seed("w9.example", &[9; 32]).unwrap();
    head.add(stranger.cosign(head.text(), GENESIS.0)).unwrap();
    world.fleet().head(&head, world.now()).await.unwrap();
    let is_seen = shown().await;
    assert_eq!(
        (&is_seen["witnessed"], &is_seen["witnessed_by"]),
        (&7.into(), &1.into())
    );
    assert_eq!(is_seen["witnesses"], 2);
    // One that does not verify spoils the head.
    let mut spoilt = trail.grow(1);
    spoilt.add(keys[0].cosign(head.text(), GENESIS.0)).unwrap();
    let refused = world.fleet().head(&spoilt, world.now()).await;
    assert!(matches!(refused, Err(Refused::Refused { status: 400, .. })));
    world
        .fleet()
        .head(&trail.grow(1), world.now())
        .await
        .unwrap();
    let world = world.again(|_| {}).await;
    let list = world.public_list().await;
    let shown = &list["trails"][0];
    assert_eq!(
        (&shown["size"], &shown["witnessed"]),
        (&9.into(), &7.into())
    );
    assert_eq!(list["log"]["witnessed"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_from_an_old_copy_does_not_start() {
    let world = World::new(|_| {}).await;
    let path = world.dir.path().join("fleet/registrations");
    let fleet = world.fleet();
    fleet.register(&ehr().note(), world.now()).await.unwrap();
    let old = fs::read(&path).unwrap();
    let second = Trail::new("hospital.example/b", 5, "b").note();
    fleet.register(&second, world.now()).await.unwrap();
    let World {
        dir: _dir,
        clock,
        config,
        authority,
    } = world;
    authority.shutdown().await.unwrap();
    let newest = fs::read(&path).unwrap();
    fs::write(&path, &old).unwrap();
    let start = async || {
        let started = Authority::start(config.clone(), Arc::clone(&clock)).await;
        started.map(drop).unwrap_err()
    };
    let error = start().await;
    let contradicted = FleetError::Contradicted {
        dir: config.dir.join("fleet"),
        size: 2,
    };
    assert_eq!(error.to_string(), contradicted.to_string());
    let mut damaged = newest.clone();
    damaged[30] ^= 1;
    fs::write(&path, &damaged).unwrap();
    let error = start().await;
    assert!(
        matches!(
            error,
            AuthorityError::Fleet(FleetError::Damaged { line: 1, .. })
        ),
        "{error}"
    );
    fs::write(&path, &newest).unwrap();
    let mut renamed = config.clone();
    renamed.log.origin = "other.example/calendar".to_owned();
    fs::remove_dir_all(config.dir.join("calendar-log")).unwrap();
    let started = Authority::start(renamed, Arc::clone(&clock)).await;
    let error = started.map(drop).unwrap_err();
    assert!(error.to_string().contains("never changes"), "{error}");
    Authority::start(config, clock).await.unwrap();
}
