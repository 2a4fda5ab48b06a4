//! A witness over real sockets: what it answers, and that nobody keeps it from
//! answering others.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use pitser_tlog::checkpoint::Checkpoint;
use pitser_tlog::merkle::{Hash, LogTree, leaf_hash};
use pitser_tlog::note::{CosigningKey, Note, SignatureLine, SigningKey};
use pitser_tlog::witness_protocol::{AddCheckpoint, MAX_REQUEST_BYTES, Refusal};
use pitser_witness::{
    Cosign, HttpWitness, Limits, Log, Pace, Peer, Rate, Server, ServerHandle, SqliteStore, Store,
    SubmitError, Witness,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::runtime::Runtime;

const NOW: u64 = 1_735_689_600;
const ORIGIN: &str = "hospital.example/ehr";

/// A running witness on a store of its own.
struct World {
    runtime: Runtime,
    server: Option<ServerHandle>,
    address: SocketAddr,
    clock: Arc<AtomicU64>,
    folder: tempfile::TempDir,
    tree: LogTree,
}

impl World {
    fn new() -> Self {
        Self::with(Limits::default(), |witness| witness)
    }

    fn with(
        limits: Limits,
        shape: impl FnOnce(Witness<SqliteStore>) -> Witness<SqliteStore>,
    ) -> Self {
        Self::of(witness_key(), limits, shape)
    }

    fn of(
        key: CosigningKey,
        limits: Limits,
        shape: impl FnOnce(Witness<SqliteStore>) -> Witness<SqliteStore>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(folder.path().join("witness.db")).unwrap();
        let mut witness = shape(Witness::new(key, store));
        witness.add_log(&Log::new(log_key().verifier())).unwrap();
        let clock = Arc::new(AtomicU64::new(NOW));
        let now = Arc::clone(&clock);
        let runtime = Runtime::new().unwrap();
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let started = Server::start(listen, witness, limits, move || now.load(Ordering::Relaxed));
        let server = runtime.block_on(started).unwrap();
        Self {
            runtime,
            address: server.address(),
            server: Some(server),
            clock,
            folder,
            tree: tree(400, None),
        }
    }

    /// The store, as another process has it.
    fn store(&self) -> SqliteStore {
        SqliteStore::open(self.folder.path().join("witness.db")).unwrap()
    }

    fn http(&self) -> HttpWitness {
        HttpWitness::new(format!("http://{}", self.address).parse().unwrap())
    }

    fn ask(&self, tree: &LogTree, old: u64, size: u64) -> Result<Vec<SignatureLine>, Refusal> {
        self.http().add_checkpoint(&request(tree, old, size))
    }

    /// Sends bytes and reads until the witness closes.
    fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        // It may close before it has read everything.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    fn post(&self, body: &[u8]) -> String {
        let head = format!(
            "POST /add-checkpoint HTTP/1.1\r\nHost: w\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        self.raw(&[head.as_bytes(), body].concat())
    }

    fn get(&self, path: &str) -> String {
        self.raw(format!("GET {path} HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n").as_bytes())
    }

    fn stop(mut self) {
        let server = self.server.take().unwrap();
        self.runtime.block_on(server.stop());
    }
}

#[track_caller]
fn says(answer: &str, status: u16, parts: &[&str]) {
    let start = format!("HTTP/1.1 {status} ");
    assert!(answer.starts_with(&start), "not {status}: {answer}");
    for part in parts {
        assert!(answer.contains(part), "{part:?} is not in: {answer}");
    }
}

#[test]
fn each_case_has_its_status() {
    let world = World::new();
    let good = |old, size| request(&world.tree, old, size);
    let line = format!("— {} ", witness_key().name());
    says(&world.post(&good(0, 5)), 200, &[&line]);
    let size = ["content-type: text/x.tlog.size\r\n", "\r\n\r\n5\n"];
    says(&world.post(&good(0, 9)), 409, &size);
    says(&world.post(&good(3, 9)), 409, &size);
    says(&world.post(&good(5, 5)), 200, &[&line]);
    says(&world.post(b"old 5\n\nsomething\n"), 400, &[]);
    says(&world.post(b""), 400, &[]);
    says(&world.post(&good_with_old(&world.tree, 9, 7)), 400, &[]);
    let forged = |name, seed| {
        let key = SigningKey::from_seed(name, &[seed; 32]).unwrap();
        let head = Checkpoint::new(name, 9, leaf_hash(b"")).unwrap();
        body(5, Vec::new(), head.sign(&key).unwrap())
    };
    says(&world.post(&forged(ORIGIN, 66)), 403, &[]);
    says(&world.post(&forged("nobody.example", 1)), 404, &["unknown"]);
    let forked = tree(400, Some(3));
    says(&world.post(&request(&forked, 5, 9)), 422, &[]);
    says(&world.post(&request(&forked, 5, 5)), 409, &size);
    let forks = world.store().forks().unwrap();
    assert_eq!((forks.len(), forks[0].size), (1, 5));
    assert_eq!(world.store().head(ORIGIN).unwrap().unwrap().size, 5);
    says(
        &world.get("/metrics"),
        200,
        &[
            "pitser_witness_requests_total{status=\"200\"} 2\n",
            "pitser_witness_requests_total{status=\"409\"} 3\n",
            "pitser_witness_forked_logs 1\n",
            "pitser_witness_logs 1\n",
        ],
    );
    let key = witness_key().verifier().to_string();
    says(&world.get("/"), 200, &[&key, ORIGIN, "has forked"]);
    says(&world.get("/health"), 200, &["\r\n\r\nok\n"]);
    says(&world.get("/add-checkpoint"), 405, &["allow: POST"]);
    says(&world.get("/other"), 404, &[]);
    let head = world.raw(b"HEAD / HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n");
    assert!(head.ends_with("\r\n\r\n"), "{head}");
    world.stop();
}

#[test]
fn a_log_that_is_added_is_watched_at_once() {
    let world = World::new();
    let key = SigningKey::from_seed("calendar.example", &[9; 32]).unwrap();
    let root = world.tree.root_at(11).unwrap();
    let head = Checkpoint::new("calendar.example", 11, root).unwrap();
    let request = body(0, Vec::new(), head.sign(&key).unwrap());
    says(&world.post(&request), 404, &[]);
    let log = Log::new(key.verifier()).with_pace(Pace {
        genesis_at: NOW - 9,
        tolerance_s: 0,
    });
    world.store().put_log(&log).unwrap();
    // Eleven seconds cannot have passed since then.
    says(&world.post(&request), 503, &["more entries than seconds"]);
    world.clock.store(NOW + 1, Ordering::Relaxed);
    says(&world.post(&request), 200, &[]);
    world.stop();
}

#[test]
fn a_clock_that_went_back_is_told_and_cosigns_nothing() {
    let world = World::new();
    world.ask(&world.tree, 0, 5).unwrap();
    world.clock.store(NOW - 60, Ordering::Relaxed);
    says(&world.get("/health"), 503, &["CLK-01 ", " 60 s behind"]);
    says(
        &world.get("/metrics"),
        200,
        &["pitser_witness_clock_behind_seconds 60\n"],
    );
    says(&world.get("/"), 200, &["CLK-01"]);
    let answer = world.post(&request(&world.tree, 5, 9));
    says(&answer, 503, &["witness unavailable"]);
    assert!(
        !answer.contains("clock"),
        "its operator's business: {answer}"
    );
    world.clock.store(NOW + 60, Ordering::Relaxed);
    says(&world.get("/health"), 200, &[]);
    assert!(world.ask(&world.tree, 5, 9).is_ok());
    world.stop();
}

/// All logs are read for `/` and `/metrics`, however often somebody asks.
#[test]
fn who_asks_for_everything_is_told_what_was_read_last() {
    let limits = Limits {
        survey: Duration::from_secs(3600),
        ..Limits::default()
    };
    let world = World::with(limits, |witness| witness);
    let told = |size: &str| {
        says(&world.get("/"), 200, &[size]);
        let metrics = world.get("/metrics");
        let newest = metrics
            .lines()
            .find(|line| line.contains("_cosigned_timestamp_seconds "));
        newest.map(str::to_owned)
    };
    world.ask(&world.tree, 0, 5).unwrap();
    let before = told("<td>5</td>");
    assert!(before.is_some());
    world.clock.store(NOW + 1, Ordering::Relaxed);
    world.ask(&world.tree, 5, 9).unwrap();
    assert_eq!(told("<td>5</td>"), before);
    // Requests are counted all the same, and the store is not asked for them.
    says(
        &world.get("/metrics"),
        200,
        &["pitser_witness_requests_total{status=\"200\"} 2\n"],
    );
    world.stop();
}

#[test]
fn hostile_requests_are_refused_before_they_cost_anything() {
    let world = World::new();
    let claims = |length: usize| {
        format!("POST /add-checkpoint HTTP/1.1\r\nHost: w\r\nContent-Length: {length}\r\n\r\n")
    };
    // Not a byte of it is waited for.
    says(
        &world.raw(claims(MAX_REQUEST_BYTES + 1).as_bytes()),
        413,
        &["connection: close"],
    );
    let chunked = b"POST /add-checkpoint HTTP/1.1\r\nHost: w\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = [
        format!("{:x}\r\n", 32 * 1024).as_bytes(),
        &[b'x'; 32 * 1024],
        b"\r\n",
    ]
    .concat();
    let endless = [&chunked[..], &chunk, &chunk, &chunk].concat();
    says(&world.raw(&endless), 413, &[]);
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"\r\n\r\n\r\n\0\0\0\0",
        claims(usize::MAX).as_bytes(),
        &[b'A'; 20_000],
    ] {
        let answer = world.raw(garbage);
        assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
    }
    let mut longest = vec![b'\n'; MAX_REQUEST_BYTES];
    longest[..6].copy_from_slice(b"old 0\n");
    says(&world.post(&longest), 400, &[]);
    says(&world.post(&[0xff; 1000]), 400, &[]);
    assert!(world.ask(&world.tree, 0, 5).is_ok());
    world.stop();
}

/// Those who send nothing, or a little now and then, hold no place for long,
/// and no other address's place at any time.
#[test]
fn slow_clients_block_nobody() {
    let limits = Limits {
        connections: 8,
        head: Duration::from_millis(300),
        body: Duration::from_millis(300),
        ..Limits::default()
    };
    let world = World::with(limits, |witness| witness);
    let slow = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(world.address).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    };
    let head = b"POST /add-checkpoint HTTP/1.1\r\nHost: w\r\nContent-Length: 100\r\n\r\nold";
    let mut held = vec![slow(b""), slow(b"POST /add"), slow(head)];
    // There is a place left for somebody who asks properly.
    assert!(world.ask(&world.tree, 0, 5).is_ok());
    for stream in &mut held {
        // Each is cut in the end: reading it comes to an end.
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
    }
    // One address that takes all it can get does not get all.
    let crowd: Vec<_> = (0..20).map(|_| slow(b"P")).collect();
    let answer = world.runtime.block_on(async {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let mut stream = socket.connect(world.address).await.unwrap();
        let request = b"GET /health HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    });
    says(&answer, 200, &[]);
    drop(crowd);
    world.stop();
}

#[test]
fn who_asks_too_often_is_put_off() {
    let limits = Limits {
        of_peer: Rate { per_s: 1, burst: 6 },
        ..Limits::default()
    };
    let world = World::with(limits, |witness| {
        witness.with_rate(Rate { per_s: 1, burst: 2 })
    });
    assert!(world.ask(&world.tree, 0, 5).is_ok());
    assert!(world.ask(&world.tree, 5, 6).is_ok());
    // The log's own share is used up, the address's is not.
    let later = ["retry-after: 1\r\n"];
    says(&world.post(&request(&world.tree, 6, 7)), 429, &later);
    assert_eq!(world.store().head(ORIGIN).unwrap().unwrap().size, 6);
    says(&world.get("/health"), 200, &[]);
    says(&world.get("/health"), 200, &[]);
    says(&world.get("/health"), 200, &[]);
    says(&world.get("/health"), 429, &later);
    assert_eq!(world.ask(&world.tree, 6, 7), Err(Refusal::TooManyRequests));
    world.clock.store(NOW + 1, Ordering::Relaxed);
    assert!(world.ask(&world.tree, 6, 7).is_ok());
    world.stop();
}

/// Two histories, asked for at the same time over many connections.
#[test]
fn of_two_histories_one_is_cosigned() {
    let world = World::new();
    world.ask(&world.tree, 0, 3).unwrap();
    let other = tree(400, Some(4));
    let races = thread::scope(|scope| {
        let racers: Vec<_> = (0..8u64)
            .map(|racer| {
                let (world, tree) = (&world, [&world.tree, &other][racer as usize % 2]);
                scope.spawn(move || (racer % 2, world.ask(tree, 3, 10).is_ok()))
            })
            .collect();
        racers
            .into_iter()
            .map(|racer| racer.join().unwrap())
            .collect::<Vec<_>>()
    });
    let winners: Vec<_> = races.iter().filter(|(_, won)| *won).collect();
    assert_eq!(winners.len(), 1, "{races:?}");
    let held = world.store().head(ORIGIN).unwrap().unwrap();
    let won = [&world.tree, &other][usize::try_from(winners[0].0).unwrap()];
    assert_eq!(held.root, won.root_at(10).unwrap());
    world.stop();
}

#[test]
fn a_peer_goes_on_with_a_witness_that_was_restarted() {
    let world = World::new();
    let address = world.address;
    let mut peer = Peer::new(Box::new(world.http()), witness_key().verifier());
    let cosign =
        |peer: &mut Peer, size| peer.cosign(&tree(400, None), &head(&tree(400, None), size));
    assert!(cosign(&mut peer, 5).is_ok());
    assert!(cosign(&mut peer, 6).is_ok());
    let store = world.store();
    world.stop();
    let result = cosign(&mut peer, 7);
    let gone = |reason: &Refusal| matches!(reason, Refusal::Unavailable { .. });
    assert!(
        matches!(&result, Err(SubmitError::Refused(reason)) if gone(reason)),
        "{result:?}"
    );
    let runtime = Runtime::new().unwrap();
    let witness = Witness::new(witness_key(), store);
    let started = Server::start(address, witness, Limits::default(), || NOW + 5);
    let server = runtime.block_on(started).unwrap();
    assert!(cosign(&mut peer, 8).is_ok());
    runtime.block_on(server.stop());
}

/// A witness is not believed, and not waited for longer than is allowed.
#[test]
fn what_answers_in_a_witnesss_place_does_no_harm() {
    let endless = [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n"[..],
        &[b'x'; 100_000],
    ]
    .concat();
    for answer in [
        &b""[..],
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe",
        b"HTTP/1.1 409 Conflict\r\nContent-Length: 2\r\n\r\n7\n",
        b"HTTP/1.1 409 Conflict\r\nContent-Type: text/x.tlog.size\r\nContent-Length: 3\r\n\r\n-1\n",
        b"HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n",
        &endless,
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let owned = answer.to_vec();
        let served = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 4096];
            let _ = stream.read(&mut asked).unwrap();
            let _ = stream.write_all(&owned);
        });
        let witness = HttpWitness::new(format!("http://{address}").parse().unwrap());
        let result = witness.add_checkpoint(&request(&tree(9, None), 0, 5));
        let told = String::from_utf8_lossy(&answer[..answer.len().min(60)]);
        assert!(
            matches!(result, Err(Refusal::Unavailable { .. })),
            "{told}: {result:?}"
        );
        served.join().unwrap();
    }
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let witness = HttpWitness::new(format!("http://{address}").parse().unwrap());
    let witness = witness.with_time_limit(Duration::from_millis(50));
    let result = witness.add_checkpoint(b"anything");
    assert!(
        matches!(&result, Err(Refusal::Unavailable { reason }) if reason.contains("within")),
        "{result:?}"
    );
}

/// One witness of each algorithm. What the second answers must be its own, too.
#[cfg(feature = "ml-dsa")]
#[test]
fn a_quorum_of_both_algorithms() {
    use pitser_tlog::checkpoint::verify_quorum;
    use pitser_tlog::note::Algorithm;

    let key = |seed| {
        let key = CosigningKey::with_algorithm("pq.example", Algorithm::MlDsa44, &[seed; 32]);
        key.unwrap()
    };
    let worlds = [
        World::new(),
        World::of(key(7), Limits::default(), |witness| witness),
    ];
    let keys = [witness_key().verifier(), key(7).verifier()];
    let mut peers: Vec<Peer> = worlds
        .iter()
        .zip(&keys)
        .map(|(world, key)| Peer::new(Box::new(world.http()), key.clone()))
        .collect();
    let tree = &worlds[0].tree;
    for size in [5, 9, 400] {
        let mut head = head(tree, size);
        for peer in &mut peers {
            let line = peer.cosign(tree, &head).unwrap();
            head.add(line).unwrap();
        }
        let quorum = verify_quorum(&head, &log_key().verifier(), &keys, 2).unwrap();
        assert_eq!(quorum.cosigned_at, NOW);
        assert_eq!(quorum.witnesses, ["pq.example", "witness.example/w1"]);
    }
    let rollback = worlds[1].ask(tree, 0, 5);
    assert_eq!(rollback, Err(Refusal::Conflict { size: 400 }));
    let mut deceived = Peer::new(Box::new(worlds[1].http()), key(8).verifier());
    let refused = deceived.cosign(tree, &head(tree, 400));
    assert!(
        matches!(refused, Err(SubmitError::NoCosignature)),
        "{refused:?}"
    );
    worlds.into_iter().for_each(World::stop);
}

/// `size` leaves, of which one may be altered.
fn tree(size: u32, altered: Option<u32>) -> LogTree {
    let leaf = |index: u32| -> Hash {
        match Some(index) == altered {
            true => leaf_hash(b"altered"),
            false => leaf_hash(&index.to_be_bytes()),
        }
    };
    (0..size).map(leaf).collect()
}

fn head(tree: &LogTree, size: u64) -> Note {
    let head = Checkpoint::new(ORIGIN, size, tree.root_at(size).unwrap()).unwrap();
    head.sign(&log_key()).unwrap()
}

fn request(tree: &LogTree, old: u64, size: u64) -> Vec<u8> {
    let proof = tree.consistency_proof(old, size).unwrap();
    body(old, proof, head(tree, size))
}

fn good_with_old(tree: &LogTree, old: u64, size: u64) -> Vec<u8> {
    body(old, Vec::new(), head(tree, size))
}

fn body(old_size: u64, proof: Vec<Hash>, head: Note) -> Vec<u8> {
    let request = AddCheckpoint {
        old_size,
        proof,
        head,
    };
    request.to_string().into_bytes()
}

fn log_key() -> SigningKey {
    SigningKey::from_seed(ORIGIN, &[1; 32]).unwrap()
}

fn witness_key() -> CosigningKey {
    CosigningKey::from_seed("witness.example/w1", &[2; 32]).unwrap()
}
