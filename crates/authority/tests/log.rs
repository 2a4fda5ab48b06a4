//! The calendar's log as witnesses and verifiers meet it: a real authority, real
//! witnesses, and those who are dead, slow, or lie.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use common::{GENESIS, config, document, init, tick};
use pitser_authority::{
    Authority, AuthorityError, AuthorityHandle, Clock, Config, LogConfig, LogError, LogWitness,
    ManualClock, Micros, Second,
};
use pitser_client::{Client, Endpoint, Options};
use pitser_ksi::calendar_entry::CalendarEntry;
use pitser_ksi::signature::Signature;
use pitser_tlog::checkpoint::{Checkpoint, verify_quorum};
use pitser_tlog::merkle::{LogTree, leaf_hash};
use pitser_tlog::note::{CosigningKey, Note, VerifierKey};
use pitser_tlog::proof::LogProof;
use pitser_tlog::tiles::decode_bundle;
use pitser_tlog::witness_protocol::{AddCheckpoint, Refusal};
use pitser_witness::{
    Answer, Cosign, Limits, Log, Pace, Server, ServerHandle, SqliteStore, Store, Witness,
};
use tempfile::TempDir;

const ORIGIN: &str = "authority.example/calendar";

/// An authority whose log is witnessed.
struct World {
    dir: TempDir,
    clock: Arc<ManualClock>,
    config: Config,
    authority: AuthorityHandle,
}

impl World {
    async fn new(witnesses: Vec<LogWitness>, quorum: usize) -> Self {
        let dir = TempDir::new().unwrap();
        init(&dir);
        Self::start(dir, Micros::boundary(GENESIS), witnesses, quorum).await
    }

    async fn start(dir: TempDir, now: Micros, witnesses: Vec<LogWitness>, quorum: usize) -> Self {
        let clock = Arc::new(ManualClock::new(now));
        let log = LogConfig {
            origin: ORIGIN.to_owned(),
            witnesses,
            quorum,
        };
        let config = Config {
            log,
            ..config(&dir)
        };
        let authority = Authority::start(config.clone(), Arc::clone(&clock));
        let authority = authority.await.unwrap();
        Self {
            dir,
            clock,
            config,
            authority,
        }
    }

    async fn tick(&self) {
        tick(&self.clock, &self.authority).await;
    }

    async fn ticks(&self, seconds: u64) {
        for _ in 0..seconds {
            self.tick().await;
        }
    }

    /// Signs while a second passes.
    async fn sign(&self, number: u64) -> Signature {
        let uri = format!("ksi+tcp://anon:anon@{}", self.authority.tcp_address());
        let client = Client::new(Endpoint::parse(&uri).unwrap(), Options::default());
        let signing = tokio::spawn(async move { client.sign(document(number), 0).await });
        while self.authority.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        self.tick().await;
        signing.await.unwrap().unwrap()
    }

    async fn extend(&self, signature: &Signature, to: Second) -> Signature {
        let uri = format!("ksi+tcp://anon:anon@{}", self.authority.tcp_address());
        let client = Client::new(Endpoint::parse(&uri).unwrap(), Options::default());
        client.extend(signature, Some(to), None).await.unwrap()
    }

    async fn signed_up_to(&self, size: u64) {
        self.authority.log_until(|log| log.size >= size).await;
    }

    async fn witnessed_up_to(&self, size: u64) {
        self.authority.log_until(|log| log.witnessed >= size).await;
    }

    fn get(&self, path: &str) -> Got {
        get(self.authority.http_address().unwrap(), path)
    }

    fn key(&self) -> VerifierKey {
        self.authority.log_key().clone()
    }

    async fn stop(self) -> (TempDir, Micros) {
        let now = self.clock.now();
        self.authority.shutdown().await.unwrap();
        (self.dir, now)
    }
}

struct Got {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Got {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    #[track_caller]
    fn ok(self) -> Vec<u8> {
        assert_eq!(self.status, 200, "{}", self.text());
        self.body
    }
}

fn get(address: SocketAddr, path: &str) -> Got {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(bytes[..end].to_vec())
        .unwrap()
        .to_lowercase();
    Got {
        status: head[9..12].parse().unwrap(),
        head,
        body: bytes[end + 4..].to_vec(),
    }
}

/// A witness's service with its store on disk and a clock of its own.
struct Notary {
    key: CosigningKey,
    address: SocketAddr,
    clock: Arc<AtomicU64>,
    folder: TempDir,
    _server: ServerHandle,
}

impl Notary {
    /// It watches the calendar of `authority`, which it was told of by its key.
    async fn new(seed: u8) -> Self {
        let folder = TempDir::new().unwrap();
        let key = || CosigningKey::from_seed(&format!("w{seed}.example"), &[seed; 32]).unwrap();
        let store = SqliteStore::open(folder.path().join("witness.db")).unwrap();
        let clock = Arc::new(AtomicU64::new(GENESIS.0));
        let now = Arc::clone(&clock);
        let server = Server::start(
            SocketAddr::from(([127, 0, 0, 1], 0)),
            Witness::new(key(), store),
            Limits::default(),
            move || now.load(Ordering::Relaxed),
        );
        let server = server.await.unwrap();
        Self {
            key: key(),
            address: server.address(),
            clock,
            folder,
            _server: server,
        }
    }

    fn store(&self) -> SqliteStore {
        SqliteStore::open(self.folder.path().join("witness.db")).unwrap()
    }

    fn watch(&self, log: VerifierKey) {
        let pace = Pace {
            genesis_at: GENESIS.0,
            tolerance_s: 5,
        };
        let mut store = self.store();
        store.put_log(&Log::new(log).with_pace(pace)).unwrap();
    }

    fn set_clock(&self, now: Second) {
        self.clock.store(now.0, Ordering::Relaxed);
    }

    fn way(&self) -> LogWitness {
        let prefix = format!("http://{}", self.address).parse().unwrap();
        LogWitness::http(self.key.verifier(), prefix)
    }
}

/// A witness that says whatever a test wants.
struct Odd<F>(F);

impl<F: Fn(&[u8]) -> Answer + Send + Sync> Cosign for Odd<F> {
    fn add_checkpoint(&self, body: &[u8]) -> Answer {
        (self.0)(body)
    }
}

fn odd(key: VerifierKey, answer: impl Fn(&[u8]) -> Answer + Send + Sync + 'static) -> LogWitness {
    LogWitness {
        key,
        way: Arc::new(Odd(answer)),
    }
}

fn cosigner(seed: u8) -> CosigningKey {
    CosigningKey::from_seed(&format!("w{seed}.example"), &[seed; 32]).unwrap()
}

/// One that cosigns anything at the second that is the head's newest.
fn easy(seed: u8) -> LogWitness {
    let key = cosigner(seed);
    odd(key.verifier(), move |body| {
        let head = AddCheckpoint::parse(body).unwrap().head;
        Ok(vec![key.cosign(head.text(), newest(&head).0)])
    })
}

fn newest(head: &Note) -> Second {
    GENESIS.plus(Checkpoint::parse(head.text()).unwrap().size() - 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_second_is_witnessed_and_proved_to_who_has_its_signature() {
    let notaries = [
        Notary::new(1).await,
        Notary::new(2).await,
        Notary::new(3).await,
    ];
    let ways = notaries.iter().map(Notary::way).collect();
    let world = World::new(ways, 2).await;
    let keys: Vec<_> = notaries.iter().map(|n| n.key.verifier()).collect();
    let log = world.key();
    for notary in &notaries {
        notary.watch(log.clone());
        notary.set_clock(GENESIS.plus(1_000));
    }
    world.ticks(4).await;
    let signature = world.sign(1).await;
    // Genesis is second 0 and nothing came in it: 6 entries with this second.
    let index = signature.aggregation_time().since(GENESIS);
    world.witnessed_up_to(index + 1).await;
    let prove = |at: Second| {
        let proof = world.get(&format!("/log/proof/{}", at.0)).ok();
        LogProof::parse(&proof).unwrap()
    };
    let proof = prove(signature.aggregation_time());
    assert_eq!(proof.index(), index);
    let entry = CalendarEntry::of_chain(signature.calendar().unwrap()).unwrap();
    let quorum = proof
        .verify(leaf_hash(&entry.encode()), &log, &keys, 2)
        .unwrap();
    assert_eq!(quorum.cosigned_at, GENESIS.0 + 1_000);
    assert_eq!(proof.extra(), entry.encode());
    // Extended, or under a later head, it is the same entry.
    world.ticks(70).await;
    world.witnessed_up_to(index + 71).await;
    let extended = world.extend(&signature, GENESIS.plus(60)).await;
    let again = CalendarEntry::of_chain(extended.calendar().unwrap()).unwrap();
    assert_eq!(again, entry);
    let later = prove(signature.aggregation_time());
    assert_ne!(later.head(), proof.head());
    later
        .verify(leaf_hash(&entry.encode()), &log, &keys, 2)
        .unwrap();
    // What the witnesses hold is what was served.
    let status = world.authority.log_status();
    assert_eq!((status.quorum, status.witnesses.len()), (2, 3));
    assert_eq!(status.trouble, None);
    let held = notaries[0].store().head(ORIGIN).unwrap().unwrap();
    assert!(held.size <= status.size);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_what_its_tiles_say() {
    let world = World::new(vec![easy(1)], 1).await;
    let signature = world.sign(1).await;
    world.ticks(2).await;
    // An outage of ten minutes, and the clock of the same process jumps over it.
    let (dir, now) = world.stop().await;
    let now = now.plus(std::time::Duration::from_secs(600));
    let world = World::start(dir, now, vec![easy(1)], 1).await;
    world.tick().await;
    let size = world.clock.now().ended().since(GENESIS);
    // The first second ends after the genesis.
    let size = size + 1;
    world.witnessed_up_to(size).await;

    let got = world.get("/log/checkpoint");
    assert!(
        got.head.contains("content-type: text/plain; charset=utf-8"),
        "{}",
        got.head
    );
    assert!(got.head.contains("cache-control: no-store"), "{}", got.head);
    let note = Note::parse(&got.ok()).unwrap();
    let checkpoint = Checkpoint::open(&note, ORIGIN, &world.key()).unwrap();
    assert_eq!(checkpoint.size(), size);
    let note = Note::parse(&world.get("/log/witnessed").ok()).unwrap();
    let quorum = verify_quorum(&note, &world.key(), &[cosigner(1).verifier()], 1).unwrap();
    assert_eq!(quorum.checkpoint, checkpoint);

    let mut entries = Vec::new();
    let last = size % 256;
    for path in [
        "entries/000",
        "entries/001",
        &format!("entries/002.p/{last}"),
    ] {
        let got = world.get(&format!("/log/tile/{path}"));
        let is_full = !path.contains(".p/");
        assert_eq!(got.head.contains("immutable"), is_full, "{}", got.head);
        assert!(
            got.head.contains("content-type: application/octet-stream"),
            "{}",
            got.head
        );
        let bytes = got.ok();
        entries.extend(
            decode_bundle(&bytes)
                .unwrap()
                .into_iter()
                .map(<[u8]>::to_vec),
        );
    }
    let tree: LogTree = entries.iter().map(|entry| leaf_hash(entry)).collect();
    assert_eq!((tree.size(), tree.root()), (size, *checkpoint.root()));
    let leaves: Vec<u8> = (0..256).flat_map(|i| tree.leaf(i).unwrap()).collect();
    assert_eq!(world.get("/log/tile/0/000").ok(), leaves);
    // Every second is there, and those of the outage are empty.
    let decoded: Vec<_> = entries
        .iter()
        .map(|e| CalendarEntry::decode(e).unwrap())
        .collect();
    for (index, entry) in (0..).zip(&decoded) {
        assert_eq!(entry.time(), GENESIS.plus(index));
        let is_signed = entry.time() == signature.aggregation_time();
        let zero = pitser_ksi::Imprint::zero(pitser_ksi::Algorithm::Sha256);
        assert_eq!(entry.round() != zero, is_signed, "{}", entry.time());
        let root = world.authority.calendar().root_at(entry.time()).unwrap();
        assert_eq!(entry.calendar(), root);
    }
    for path in ["0/009", "0/9", "entries/000.p/256", "x", "0/000/../001"] {
        assert_eq!(
            world.get(&format!("/log/tile/{path}")).status,
            404,
            "{path}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_his_second_is_answered_as_soon_as_it_is_witnessed() {
    let (questions, asked) = channel::<()>();
    let (let_go, answers) = channel::<()>();
    let key = cosigner(1);
    let gate = Mutex::new((questions, answers));
    let verifier = key.verifier();
    let slow = odd(verifier.clone(), move |body| {
        let gate = gate.lock().unwrap();
        let _ = gate.0.send(());
        let _ = gate.1.recv();
        let head = AddCheckpoint::parse(body).unwrap().head;
        Ok(vec![key.cosign(head.text(), newest(&head).0)])
    });
    let world = World::new(vec![slow], 1).await;
    world.tick().await;
    world.signed_up_to(2).await;
    let path = format!("/log/proof/{}", GENESIS.0 + 1);
    let at_once = world.get(&path);
    assert_eq!(at_once.status, 503);
    assert!(at_once.head.contains("retry-after: 1"), "{}", at_once.head);
    assert!(
        at_once.text().contains("not cosigned by 1 witnesses yet"),
        "{}",
        at_once.text()
    );
    let address = world.authority.http_address().unwrap();
    let waiting = std::thread::spawn(move || get(address, &format!("{path}?wait=25")));
    // The witness has a question and keeps it; then it answers that and all others.
    tokio::task::block_in_place(|| asked.recv().unwrap());
    assert!(!waiting.is_finished());
    drop(let_go);
    let got = tokio::task::block_in_place(|| waiting.join().unwrap());
    let proof = LogProof::parse(&got.ok()).unwrap();
    let entry = CalendarEntry::decode(proof.extra()).unwrap();
    assert_eq!(entry.time(), GENESIS.plus(1));
    let leaf = leaf_hash(proof.extra());
    proof.verify(leaf, &world.key(), &[verifier], 1).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_proved_is_refused_in_words() {
    let world = World::new(Vec::new(), 0).await;
    world.ticks(3).await;
    world.signed_up_to(4).await;
    for (path, status, part) in [
        (format!("/log/proof/{}", GENESIS.0 - 1), 404, "begins later"),
        ("/log/proof/12x".to_owned(), 400, "decimal number"),
        ("/log/proof/012".to_owned(), 400, "decimal number"),
        (format!("/log/proof/{}?wait=x", GENESIS.0), 400, "wait="),
        (format!("/log/proof/{}?w=1", GENESIS.0), 400, "wait="),
        (
            format!("/log/proof/{}", GENESIS.0),
            503,
            "no witnesses are configured",
        ),
        (
            "/log/witnessed".to_owned(),
            404,
            "no checkpoint is witnessed",
        ),
    ] {
        let got = world.get(&path);
        assert_eq!(got.status, status, "{path}: {}", got.text());
        assert!(got.text().contains(part), "{path}: {}", got.text());
    }
    // A shutdown does not wait for those who wait.
    let address = world.authority.http_address().unwrap();
    let path = format!("/log/proof/{}?wait=25", GENESIS.0 + 9_999);
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    world.get("/log/checkpoint").ok();
    let (dir, _) = world.stop().await;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 503"),
        "{answer}"
    );
    drop(dir);
}

/// Two of four are enough, and two are honest.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_a_slow_and_a_lying_witness_hold_up_nobody() {
    // Dead: nobody listens there any more.
    let dead = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = dead.local_addr().unwrap();
    drop(dead);
    let dead = LogWitness::http(
        cosigner(1).verifier(),
        format!("http://{address}").parse().unwrap(),
    );
    // Slow: it never answers as long as the test runs.
    let (_hold, held): (Sender<()>, Receiver<()>) = channel();
    let held = Mutex::new(held);
    let slow = odd(cosigner(2).verifier(), move |_| {
        let _ = held.lock().unwrap().recv();
        Err(Refusal::TooManyRequests)
    });
    // Lying: in another way for each head.
    let turn = AtomicU64::new(0);
    let (liar, thief) = (cosigner(3), cosigner(66));
    let lying = odd(liar.verifier(), move |body| {
        let head = AddCheckpoint::parse(body).unwrap().head;
        let at = newest(&head).0;
        let other = Checkpoint::new(ORIGIN, 7, leaf_hash(b"other"))
            .unwrap()
            .to_string();
        match turn.fetch_add(1, Ordering::Relaxed) % 4 {
            0 => Ok(vec![thief.cosign(head.text(), at)]),
            1 => Ok(vec![liar.cosign(&other, at)]),
            // It would have seen the head long before its newest second.
            2 => Ok(vec![liar.cosign(head.text(), at - 3_600)]),
            _ => Err(Refusal::Conflict { size: 1 << 40 }),
        }
    });
    let world = World::new(vec![dead, slow, lying, easy(4), easy(5)], 2).await;
    for _ in 0..8 {
        world.tick().await;
        let size = world.clock.now().ended().since(GENESIS) + 1;
        world.witnessed_up_to(size).await;
    }
    let honest = [cosigner(4).verifier(), cosigner(5).verifier()];
    let note = Note::parse(&world.get("/log/witnessed").ok()).unwrap();
    verify_quorum(&note, &world.key(), &honest, 2).unwrap();
    for line in note.signatures() {
        assert!(!line.name().starts_with("w3"), "the liar's line was kept");
    }
    // Nor does it hold up those who sign, or the end.
    world.sign(1).await;
    let log = world
        .authority
        .log_until(|log| log.witnesses[0].trouble.is_some() && log.witnesses[2].trouble.is_some());
    let log = log.await;
    assert_eq!((log.witnesses[1].size, log.witnesses[2].size), (0, 0));
    assert!(log.witnesses[3].size > 0 && log.witnesses[3].trouble.is_none());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_witness_less_than_the_quorum_is_not_witnessed() {
    let deaf = Arc::new(AtomicBool::new(true));
    let is_deaf = Arc::clone(&deaf);
    let key = cosigner(2);
    let second = odd(key.verifier(), move |body| {
        if is_deaf.load(Ordering::Relaxed) {
            return Err(Refusal::NotSigned);
        }
        let head = AddCheckpoint::parse(body).unwrap().head;
        Ok(vec![key.cosign(head.text(), newest(&head).0)])
    });
    let world = World::new(vec![easy(1), second], 2).await;
    world.ticks(3).await;
    let log = world.authority.log_until(|log| {
        log.size == 4 && log.witnesses[0].size > 0 && log.witnesses[1].trouble.is_some()
    });
    let log = log.await;
    assert_eq!((log.witnessed, log.behind_s()), (0, 4));
    assert_eq!(world.get("/log/witnessed").status, 404);
    deaf.store(false, Ordering::Relaxed);
    world.tick().await;
    world.witnessed_up_to(5).await;
    assert_eq!(world.authority.log_status().witnesses[1].trouble, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_witness_that_was_told_another_key_does_not_cosign() {
    let notary = Notary::new(1).await;
    let world = World::new(vec![notary.way()], 1).await;
    let other = pitser_tlog::note::SigningKey::from_seed(ORIGIN, &[7; 32]).unwrap();
    notary.watch(other.verifier());
    notary.set_clock(GENESIS.plus(100));
    world.tick().await;
    let refused = |log: &pitser_authority::LogStatus| {
        let trouble = log.witnesses[0].trouble.as_deref();
        trouble.is_some_and(|why| why.contains("not signed by the log's key"))
    };
    assert_eq!(world.authority.log_until(refused).await.witnessed, 0);
    notary.watch(world.key());
    world.tick().await;
    world.witnessed_up_to(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_calendar_ahead_of_its_witness_waits_for_the_witness() {
    let notary = Notary::new(1).await;
    let world = World::new(vec![notary.way()], 1).await;
    notary.watch(world.key());
    // Tolerance is five seconds: at second 0 of its clock five more may be there.
    world.ticks(5).await;
    world.witnessed_up_to(6).await;
    world.tick().await;
    let ahead = |log: &pitser_authority::LogStatus| {
        let trouble = log.witnesses[0].trouble.as_deref();
        trouble.is_some_and(|why| why.contains("more entries than seconds"))
    };
    assert_eq!(world.authority.log_until(ahead).await.witnessed, 6);
    notary.set_clock(GENESIS.plus(2));
    world.tick().await;
    world.witnessed_up_to(8).await;
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let to = to.join(file.file_name());
        match file.file_type().unwrap().is_dir() {
            true => copy(&file.path(), &to),
            false => drop(std::fs::copy(file.path(), &to).unwrap()),
        }
    }
}

/// The whole folder is restored, so nothing on the authority's own disk can tell;
/// its witness remembers.
#[tokio::test(flavor = "multi_thread")]
async fn a_calendar_restored_from_an_old_copy_is_refused_by_its_witness() {
    let notary = Notary::new(1).await;
    let world = World::new(vec![notary.way()], 1).await;
    notary.watch(world.key());
    notary.set_clock(GENESIS.plus(100));
    world.ticks(3).await;
    world.witnessed_up_to(4).await;
    let (dir, now) = world.stop().await;
    let old = TempDir::new().unwrap();
    copy(dir.path(), old.path());
    let world = World::start(dir, now, vec![notary.way()], 1).await;
    world.sign(1).await;
    world.ticks(4).await;
    world.witnessed_up_to(9).await;
    world.stop().await;

    let world = World::start(old, now, vec![notary.way()], 1).await;
    world.sign(2).await;
    let trouble = |part: &'static str| {
        move |log: &pitser_authority::LogStatus| {
            let trouble = log.witnesses[0].trouble.as_deref();
            trouble.is_some_and(|why| why.contains(part))
        }
    };
    let log = world.authority.log_until(trouble("already holds 9 leaves"));
    assert!(log.await.witnessed <= 4);
    // Once it has as many seconds it is the same size with another root, then a
    // log that does not continue what was cosigned.
    world.ticks(6).await;
    let log = world.authority.log_until(trouble("does not continue"));
    assert!(log.await.witnessed <= 4);
    let held = notary.store().head(ORIGIN).unwrap().unwrap();
    assert_eq!(held.size, 9);
}

/// Only the calendar is restored, and the log's folder stays.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_calendar_beside_a_newer_log_is_not_started() {
    let world = World::new(vec![easy(1)], 1).await;
    world.ticks(3).await;
    let (dir, now) = world.stop().await;
    let old = TempDir::new().unwrap();
    copy(&dir.path().join("calendar"), old.path());
    let world = World::start(dir, now, vec![easy(1)], 1).await;
    world.sign(1).await;
    world.ticks(2).await;
    world.witnessed_up_to(7).await;
    let config = world.config.clone();
    let (dir, later) = world.stop().await;
    copy(old.path(), &dir.path().join("calendar"));
    let start = |now| Authority::start(config.clone(), ManualClock::new(now));
    // Too short; and filled up by an outage, with other seconds.
    for now in [now, later] {
        let error = start(now).await.unwrap_err();
        let is_contradicted = matches!(
            error,
            AuthorityError::Log(LogError::Contradicted { size: 7, .. })
        );
        assert!(is_contradicted, "{error}");
    }
    // Without the files of the hashes, the checkpoint alone still tells.
    for name in ["state", "level-0", "level-1"] {
        std::fs::remove_file(dir.path().join("calendar-log").join(name)).unwrap();
    }
    let error = start(now).await.unwrap_err();
    assert!(
        error.to_string().contains("restore the newest calendar"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_witnessed_stays_so_over_a_restart() {
    let world = World::new(vec![easy(1)], 1).await;
    world.ticks(3).await;
    world.witnessed_up_to(4).await;
    let proof = world.get(&format!("/log/proof/{}", GENESIS.0 + 2)).ok();
    let key = world.key();
    let (dir, now) = world.stop().await;
    // The only witness is deaf now: what it said before still counts.
    let deaf = odd(cosigner(1).verifier(), |_| Err(Refusal::TooManyRequests));
    let world = World::start(dir, now, vec![deaf], 1).await;
    assert_eq!(world.key(), key);
    assert_eq!(world.authority.log_status().witnessed, 4);
    let again = world.get(&format!("/log/proof/{}", GENESIS.0 + 2)).ok();
    assert_eq!(again, proof);
    let (dir, now) = world.stop().await;
    // For those who trust another witness it does not.
    let world = World::start(dir, now, vec![easy(2)], 1).await;
    let note = Note::parse(&world.get("/log/witnessed").body);
    if let Ok(note) = note {
        verify_quorum(&note, &key, &[cosigner(2).verifier()], 1).unwrap();
    }
    world.tick().await;
    world.witnessed_up_to(5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_from_before_logs_gets_one() {
    let dir = TempDir::new().unwrap();
    init(&dir);
    std::fs::remove_file(dir.path().join("log-key")).unwrap();
    let world = World::start(dir, Micros::boundary(GENESIS), vec![easy(1)], 1).await;
    world.ticks(2).await;
    world.witnessed_up_to(3).await;
}

/// The example of docs/spec/51-calendar-log.md: a calendar of three empty seconds.
#[tokio::test(flavor = "multi_thread")]
async fn the_chapters_example_is_reproduced() {
    let chapter = include_str!("../../../docs/spec/51-calendar-log.md");
    let dir = TempDir::new().unwrap();
    init(&dir);
    std::fs::write(dir.path().join("log-key"), "01".repeat(32) + "\n").unwrap();
    let world = World::start(dir, Micros::boundary(GENESIS), vec![easy(2)], 1).await;
    world.ticks(2).await;
    world.witnessed_up_to(3).await;
    let proof = world.get(&format!("/log/proof/{}", GENESIS.0 + 1)).ok();
    let proof = String::from_utf8(proof).unwrap();
    let read = LogProof::parse(proof.as_bytes()).unwrap();
    let entry: String = read
        .extra()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    for part in [
        format!("```\n{proof}```"),
        format!("\n{entry}\n"),
        format!("\n{}\n", world.key()),
        format!("\n{}\n", cosigner(2).verifier()),
    ] {
        assert!(chapter.contains(&part), "not in the chapter:\n{part}");
    }
}
