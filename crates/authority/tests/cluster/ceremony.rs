//! A cluster whose publications key is on none of its machines.

use std::fs;

use pitser_authority::ceremony::{Composition, Old, PublicationsKey};
use pitser_authority::{Authority, BroughtKey, Config, Due, Pinned, Second, Subject};
use pitser_client::{Options, publications_file};
use pitser_ksi::hash::{Algorithm, hash};
use pitser_ksi::publication::PublicationData;
use pitser_ksi::publications_file::PublicationsFile;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::spawn_blocking;

use crate::machines::{GENESIS, MACHINES, World, has_etcd, until};

/// The machine with the publications key.
struct Vault {
    key: PublicationsKey,
    certificate: String,
}

const CONSTRAINT: &str = "email=vault@example.org";

impl Vault {
    fn new() -> Self {
        // Some RSA key and certificate: those of an authority that never runs.
        let dir = tempfile::tempdir().unwrap();
        let subject = Subject {
            email: "vault@example.org".into(),
            ..Subject::default()
        };
        Authority::init(dir.path(), GENESIS, &subject).unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        let certificate = read("certificate.pem");
        let pem = read("signing-key.pem");
        let key = PublicationsKey::open(&BroughtKey::Pem(&pem), &certificate).unwrap();
        Self { key, certificate }
    }

    fn compose(&self, old: Old<'_>, data: PublicationData, now: Second) -> Vec<u8> {
        let composition = Composition {
            old: Some(old),
            publications: &[data],
            certificates: Vec::new(),
            constraint: CONSTRAINT,
            now,
        };
        composition.sign(&self.key).unwrap().encode().to_vec()
    }
}

/// What a node says when it is handed a file.
async fn hand_in(world: &World, machine: usize, file: &[u8]) -> String {
    let mut stream = UnixStream::connect(world.admin(machine)).await.unwrap();
    let head = format!(
        "POST /publications.bin HTTP/1.1\r\nhost: node\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        file.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(file).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Hands it in again while the node is behind the others.
async fn until_taken(world: &World, machine: usize, file: &[u8]) {
    until("the file is taken", async || {
        let answer = hand_in(world, machine, file).await;
        let is_behind = answer.contains("has another publications file")
            || answer.contains("has not ended here yet");
        assert!(is_behind || answer.contains(" 200 OK"), "{answer}");
        answer.contains(" 200 OK")
    })
    .await;
}

async fn until_all_show(world: &World, file: &[u8]) {
    until("all nodes show the new file", async || {
        for machine in 0..MACHINES {
            let uri = world.publications_uri(machine);
            let shown = publications_file(&uri, &Options::default()).await;
            if shown.unwrap_or_default() != file {
                return false;
            }
        }
        true
    })
    .await;
}

/// What a node waits for, since something later than `after` is due.
async fn due(world: &World, machine: usize, after: Second) -> Due {
    let mut found = None;
    until("a publication is due", async || {
        let mut config = Config::new(world.folder(machine));
        config.publish_every_s = 20;
        let due = spawn_blocking(move || Authority::due(&config))
            .await
            .unwrap();
        found = due
            .ok()
            .filter(|due| due.since.is_some() && due.data.time > after);
        found.is_some()
    })
    .await;
    found.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_is_handed_the_file_and_all_show_it() {
    if !has_etcd() {
        return;
    }
    let vault = spawn_blocking(Vault::new).await.unwrap();
    let mut world = World::unfounded().await;
    // It published by itself before: what it has signed stays.
    let read = |name: &str| fs::read_to_string(world.folder(0).join(name)).unwrap();
    let (own_certificate, own_constraint) = (read("certificate.pem"), read("constraint"));
    let first = fs::read(world.folder(0).join("publications.bin")).unwrap();
    let pinned = Pinned {
        certificate_pem: &vault.certificate,
        constraint: CONSTRAINT,
    };
    Authority::pin(&world.folder(0), &pinned, GENESIS).unwrap();
    world.found().await.unwrap();
    for machine in 0..MACHINES {
        world.start_node(machine, 0).await;
    }

    // Carried from one node, handed to another, whoever leads.
    let asked = due(&world, 0, GENESIS).await;
    let old = PublicationsFile::decode(&first).unwrap();
    let old = Old {
        file: &old,
        certificate_pem: &own_certificate,
        constraint: own_constraint.trim(),
    };
    let second = vault.compose(old, asked.data, asked.data.time);
    for machine in 0..MACHINES {
        // The second to be asked follows the first, or is just about to.
        until_taken(&world, machine, &second).await;
    }
    until_all_show(&world, &second).await;

    // What one node refuses no node shows.
    let old = PublicationsFile::decode(&second).unwrap();
    let old = Old {
        file: &old,
        certificate_pem: &vault.certificate,
        constraint: CONSTRAINT,
    };
    let asked = due(&world, 1, asked.data.time).await;
    let forged = PublicationData {
        imprint: hash(Algorithm::Sha256, &[b"another calendar"]),
        ..asked.data
    };
    for refused in [
        first,
        vault.compose(old, forged, asked.data.time),
        b"rubbish".to_vec(),
    ] {
        for machine in 0..MACHINES {
            let answer = hand_in(&world, machine, &refused).await;
            assert!(answer.contains(" 422 "), "{answer}");
        }
    }
    until_all_show(&world, &second).await;

    // A node that was killed follows, and is handed the next one as any other.
    world.kill_node(2);
    let third = vault.compose(old, asked.data, asked.data.time);
    until_taken(&world, 0, &third).await;
    world.start_node(2, 0).await;
    until_all_show(&world, &third).await;
    let asked = due(&world, 2, asked.data.time).await;
    let old = PublicationsFile::decode(&third).unwrap();
    let old = Old {
        file: &old,
        certificate_pem: &vault.certificate,
        constraint: CONSTRAINT,
    };
    let fourth = vault.compose(old, asked.data, asked.data.time);
    until_taken(&world, 2, &fourth).await;
    until_all_show(&world, &fourth).await;
}
