//! The fleet over real processes: a hospital's guardian registers its trail and sends
//! heads; then somebody throws the trail away, and begins a fresh one beside a
//! falsified database. The authority is killed in between, at any moment.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use common::copy_folder::copy_folder;
use common::port::free_address;
use common::{Process, Said, run};
use pitser_client::fleet::{Fleet, Registration, system_id};
use pitser_client::{Endpoint, Options};
use pitser_ksi::Second;
use pitser_ksi::hash::{Algorithm, hash};
use pitser_tlog::checkpoint::Checkpoint;
use pitser_tlog::merkle::{LogTree, leaf_hash, verify_inclusion};
use pitser_tlog::note::{Note, SigningKey, VerifierKey};
use pitser_tlog::proof::LogProof;
use pitser_tlog::tiles::decode_bundle;
use serde_json::Value;

const ORIGIN: &str = "hospital.example/ehr";

/// An authority and a hospital with one database.
struct World {
    folder: tempfile::TempDir,
    key: String,
    http: String,
    status: String,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        run(
            dir,
            "authority init --dir auth --email publications@authority.example",
        )
        .exits(0);
        let added = run(
            dir,
            "authority user add hospital --config auth/authority.toml --json",
        );
        let key = added.exits(0).json()["key"].as_str().unwrap().to_owned();
        let [tcp, http, status] = [(); 3].map(|()| free_address().to_string());
        let config = fs::read_to_string(dir.join("auth/authority.toml")).unwrap();
        let config = config
            .replace("\"127.0.0.1:3332\"", &format!("\"{tcp}\""))
            .replace("\"127.0.0.1:8080\"", &format!("\"{http}\""))
            .replace("monitor = \"127.0.0.1:7090\"", "")
            .replace("origins_per_user = 64", "origins_per_user = 10000")
            .replace("localhost/calendar", "authority.example/calendar");
        fs::write(dir.join("auth/authority.toml"), config).unwrap();
        let config = format!(
            "[authority]\naggregator = \"ksi+tcp://hospital:{key}@{tcp}\"\n\
             fleet = \"http://hospital:{key}@{http}\"\n\
             [guard]\norganisation = \"hospital.example\"\ndata = \"guard\"\nlisten = \"{status}\"\n\
             witness_every_s = 1\nheartbeat_s = 1\n\
             [[source]]\nname = \"ehr\"\nkind = \"sqlite\"\nurl = \"hospital.db\"\ntables = [\"*\"]\n\
             [source.patient]\nentry = \"patient\"\n"
        );
        fs::write(dir.join("pitser.toml"), config).unwrap();
        let db = rusqlite::Connection::open(dir.join("hospital.db")).unwrap();
        db.execute_batch(
            "CREATE TABLE entry (id INTEGER PRIMARY KEY, patient TEXT, note TEXT);
             INSERT INTO entry VALUES (1, 'pt-1', 'a')",
        )
        .unwrap();
        Self {
            folder,
            key,
            http,
            status,
        }
    }

    fn dir(&self) -> &Path {
        self.folder.path()
    }

    fn run(&self, args: &str) -> Said {
        run(self.dir(), args)
    }

    fn authority(&self) -> (Process, VerifierKey) {
        let args = "authority run --json --config auth/authority.toml";
        let (process, line) = Process::start(self.dir(), args);
        let facts: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(facts["event"], "listening", "{line}");
        (process, facts["fleet"].as_str().unwrap().parse().unwrap())
    }

    fn guard(&self) -> Process {
        let (guardian, line) = Process::start(self.dir(), "guard run");
        assert!(line.starts_with("guarding"), "{line}");
        guardian
    }

    /// Waits for a status of the guardian that is wanted.
    fn status(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut stream = TcpStream::connect(&self.status).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(90)))
            .unwrap();
        let request = format!("GET /api/events HTTP/1.1\r\nHost: {}\r\n\r\n", self.status);
        stream.write_all(request.as_bytes()).unwrap();
        for line in BufReader::new(stream).lines() {
            let line = line.unwrap();
            let Some(json) = line.strip_prefix("data: ") else {
                continue;
            };
            let status: Value = serde_json::from_str(json).unwrap();
            if wanted(&status) {
                return status;
            }
        }
        panic!("the guardian is gone");
    }

    /// `pitser authority fleet`, which ends with this exit code.
    fn fleet(&self, code: i32) -> Value {
        self.run("authority fleet --config auth/authority.toml --json")
            .exits(code)
            .json()
    }

    fn get(&self, path: &str) -> Vec<u8> {
        let mut stream = TcpStream::connect(&self.http).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        assert!(answer.starts_with(b"HTTP/1.0 200"), "{path}");
        answer.split_off(end + 4)
    }

    /// The entries of the log, which its checkpoint is about.
    fn entries(&self, key: &VerifierKey) -> Vec<String> {
        let note = Note::parse(&self.get("/fleet/log/checkpoint")).unwrap();
        let head = Checkpoint::open(&note, "authority.example/fleet", key).unwrap();
        let path = format!("/fleet/log/tile/entries/000.p/{}", head.size());
        let bundle = self.get(&path);
        let entries = decode_bundle(&bundle).unwrap();
        let tree: LogTree = entries.iter().map(|entry| leaf_hash(entry)).collect();
        assert_eq!(tree.root(), *head.root());
        let text = |entry: &&[u8]| String::from_utf8(entry.to_vec()).unwrap();
        entries.iter().map(text).collect()
    }
}

fn word_after(said: &Said, label: &str) -> String {
    let mut lines = said.out.lines();
    let line = lines.find_map(|line| line.trim_start().strip_prefix(label)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {label:?} in {said:?}"))
        .trim()
        .to_owned()
}

fn sent(status: &Value) -> u64 {
    status["fleet"]["size"].as_u64().unwrap_or(0)
}

#[test]
fn a_fresh_trail_beside_a_falsified_database_is_refused_and_seen_by_everybody() {
    let world = World::new();
    let (authority, key) = world.authority();
    // Somebody between, who signs with another key, is not believed.
    let config = fs::read_to_string(world.dir().join("pitser.toml")).unwrap();
    let with_key = |key: &VerifierKey| {
        let key = format!("[authority]\nfleet_key = \"{key}\"");
        let config = config.replacen("[authority]", &key, 1);
        fs::write(world.dir().join("pitser.toml"), config).unwrap();
    };
    let other = SigningKey::from_seed(key.name(), &[9; 32]).unwrap();
    with_key(&other.verifier());
    world
        .run("guard init")
        .exits(0)
        .says("not signed by the fleet's key");
    with_key(&key);
    let said = world
        .run("guard init")
        .exits(0)
        .says("fleet    ehr, entry 0");
    let genesis = word_after(&said, "genesis");
    // What it was answered is beside the trail, and holds.
    let proof = fs::read(world.dir().join("guard/ehr/fleet.proof")).unwrap();
    let proof = LogProof::parse(&proof).unwrap();
    let head = Checkpoint::open(proof.head(), key.name(), &key).unwrap();
    let leaf = leaf_hash(proof.extra());
    verify_inclusion(leaf, proof.index(), head.size(), proof.path(), head.root()).unwrap();
    world.run("guard init").exits(0).says("entry 0");

    let guardian = world.guard();
    let status = world.status(|status| sent(status) >= 2);
    let list = world.fleet(0);
    let shown = &list["trails"][0];
    assert_eq!(
        (&shown["origin"], &shown["user"]),
        (&ORIGIN.into(), &"hospital".into())
    );
    assert_eq!(shown["genesis"], genesis);
    assert!(shown["size"].as_u64().unwrap() >= sent(&status));
    assert!(!list.to_string().contains("pt-1"));
    world
        .run("guard status")
        .exits(0)
        .says("  fleet      entry 0, ");
    // The authority is killed: guarding goes on, and so do heads when it is back.
    authority.kill();
    world.status(|status| status["fleet"]["trouble"].is_string());
    let (authority, _) = world.authority();
    let before = world.fleet(0)["trails"][0]["size"].as_u64().unwrap();
    assert!(before >= sent(&status), "what was answered is forgotten");
    let is_better = |status: &Value| sent(status) > before && status["fleet"]["trouble"].is_null();
    world.status(is_better);
    guardian.stop();

    // Somebody falsifies the database, throws the trail away, and begins anew.
    let db = rusqlite::Connection::open(world.dir().join("hospital.db")).unwrap();
    fs::rename(world.dir().join("guard"), world.dir().join("hidden")).unwrap();
    db.execute_batch("UPDATE entry SET note = 'falsified'")
        .unwrap();
    drop(db);
    let said = world.run("guard init");
    assert_eq!(said.code, 1, "{said:?}");
    let said = said.says("pitser: TRL-04 another trail of this origin is registered");
    let said = said.says(&genesis).says("Put the old trail back");
    let fresh = word_after(&said, "genesis");
    assert_ne!(fresh, genesis);
    assert!(!world.dir().join("guard/ehr/fleet.proof").exists());

    authority.kill();
    let (authority, again) = world.authority();
    assert_eq!(again, key);
    let list = world.fleet(1);
    assert_eq!(list["trails"][0]["refused"][0]["genesis"], fresh);
    world
        .run("authority fleet --config auth/authority.toml")
        .exits(1)
        .says("ANOTHER TRAIL of this name was begun and refused");
    let entries = world.entries(&key);
    assert_eq!(entries.len(), 2);
    for (entry, word, genesis) in [
        (&entries[0], "registered", &genesis),
        (&entries[1], "refused", &fresh),
    ] {
        assert!(
            entry.starts_with(&format!("pitser fleet entry 1\n{word}\n")),
            "{entry}"
        );
        let note = entry.split_once("\n\n").unwrap().1;
        let (registration, _) = Registration::open(note.as_bytes()).unwrap();
        assert_eq!(registration.origin(), ORIGIN);
        assert!(entry.contains(genesis.as_str()), "{entry}");
    }
    let page = String::from_utf8(world.get("/fleet")).unwrap();
    assert!(page.contains("ANOTHER TRAIL") && !page.contains("<th>User"));

    // Whoever lets it run is told again, as a finding.
    let guardian = world.guard();
    let is_found = |status: &Value| {
        let mut findings = status["findings"].as_array().unwrap().iter();
        findings.any(|one| one["code"] == "TRL-04" && one["open"] == true)
    };
    world.status(is_found);
    guardian.stop();
    assert_eq!(world.fleet(1)["log"]["size"], 2, "said once is enough");
    authority.stop();
}

#[test]
fn a_trail_that_is_begun_while_the_authority_is_away_is_registered_later() {
    let world = World::new();
    world
        .run("guard init")
        .exits(0)
        .says("not registered with the fleet yet")
        .says("tries again");
    let guardian = world.guard();
    world.status(|status| status["fleet"]["trouble"].is_string());
    world
        .run("guard status")
        .says("  fleet      not registered yet; now: ");
    let (authority, _) = world.authority();
    let status = world.status(|status| sent(status) > 0);
    assert_eq!(status["fleet"]["entry"], 0);
    assert!(world.dir().join("guard/ehr/fleet.proof").exists());
    guardian.stop();

    // An old copy of the trail: it was longer before.
    let old = world.dir().join("old");
    copy_folder(&world.dir().join("guard"), &old);
    let guardian = world.guard();
    let before = sent(&status);
    world.status(|status| sent(status) > before + 3);
    guardian.stop();
    fs::remove_dir_all(world.dir().join("guard")).unwrap();
    copy_folder(&old, &world.dir().join("guard"));
    let guardian = world.guard();
    let is_short = |status: &Value| {
        let mut findings = status["findings"].as_array().unwrap().iter();
        findings.any(|one| one["code"] == "TRL-03")
    };
    world.status(is_short);
    guardian.stop();
    let list = world.fleet(1);
    let shrunk = &list["trails"][0]["shrunk"];
    let size = |name: &str| {
        let note = Note::parse(shrunk[name].as_str().unwrap().as_bytes()).unwrap();
        Checkpoint::parse(note.text()).unwrap().size()
    };
    assert!(size("other") < size("held"));
    world
        .run("authority fleet --config auth/authority.toml")
        .exits(1)
        .says("SHRUNK");
    authority.stop();
}

/// A trail of its own for each number, as its guardian would register it.
fn registration(number: u32) -> Note {
    let name = format!("hospital.example/{number:05}");
    let mut seed = [7; 32];
    seed[..4].copy_from_slice(&number.to_be_bytes());
    let key = SigningKey::from_seed(&name, &seed).unwrap();
    let registration = Registration {
        key: key.verifier(),
        genesis: hash(Algorithm::Sha256, &[name.as_bytes()]),
        system: system_id(&name),
        begun_at: Second(1_773_480_413),
    };
    registration.sign(&key).unwrap()
}

#[allow(clippy::disallowed_methods, reason = "the authority's clock is real")]
fn now_us() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap().as_micros().try_into().unwrap()
}

/// Killed while registrations come in one after the other, it keeps every one that
/// it has answered, in its place, and the log only grows.
#[test]
fn a_killed_authority_forgets_no_registration_that_it_has_answered() {
    let world = World::new();
    let uri = format!("http://hospital:{}@{}", world.key, world.http);
    let mut answered: Vec<(u32, u64)> = Vec::new();
    let mut next = 0;
    for _ in 0..6 {
        let (authority, key) = world.authority();
        let entries = match answered.is_empty() {
            true => Vec::new(),
            false => world.entries(&key),
        };
        for (number, place) in &answered {
            let entry = &entries[usize::try_from(*place).unwrap()];
            let is_its = entry.ends_with(&format!("\n\n{}", registration(*number)));
            assert!(is_its, "{number} is not entry {place}: {entry}");
        }
        let (tell, told) = std::sync::mpsc::channel();
        let endpoint = Endpoint::parse(&uri).unwrap();
        let registrant = std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            let fleet = Fleet::new(endpoint, Options::default()).unwrap();
            for number in next.. {
                let registration = registration(number);
                let registered = fleet.register(&registration, now_us());
                let Ok(proof) = runtime.block_on(registered) else {
                    return number;
                };
                tell.send((number, proof.index())).unwrap();
            }
            unreachable!("it is killed before")
        });
        answered.extend(told.iter().take(5));
        authority.kill();
        next = registrant.join().unwrap();
        answered.extend(told.try_iter());
    }
    assert!(answered.len() >= 30);
    let (authority, _) = world.authority();
    assert!(world.fleet(0)["registered"].as_u64().unwrap() >= answered.len() as u64);
    authority.stop();
}

#[test]
fn an_address_without_a_user_is_refused_before_anything_is_done() {
    let world = World::new();
    let config = fs::read_to_string(world.dir().join("pitser.toml")).unwrap();
    let change = |from: &str, to: &str, expected: &str| {
        let changed = config.replacen(from, to, 1);
        assert_ne!(changed, config);
        fs::write(world.dir().join("pitser.toml"), changed).unwrap();
        let said = world.run("guard init").exits(3).says(expected);
        assert!(!format!("{said:?}").contains(&world.key));
        assert!(!world.dir().join("guard").exists());
    };
    let login = format!("http://hospital:{}@", world.key);
    change(
        &login,
        "http://",
        "authority.fleet: name the user and the key",
    );
    let tcp = login.replace("http", "ksi+tcp");
    change(
        &login,
        &tcp,
        "authority.fleet: the address begins with https://",
    );
    let key = "[authority]\nfleet_key = \"x+y\"";
    change("[authority]", key, "authority.fleet_key: ");
}
