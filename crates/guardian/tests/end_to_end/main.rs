//! One small guarded database from its first row to a verified evidence file,
//! with a real authority, a real witness and real files.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail loudly")]

mod cut;
#[path = "../../../capture/tests/postgres/harness.rs"]
mod harness;
mod many;
mod outage;
#[path = "../../../authority/tests/common/port.rs"]
mod port;
mod postgres;
mod room;
mod sqlite;
mod triggers;

use pitser_authority::{Authority, AuthorityHandle, Config, Micros, User};
use pitser_client::{Client, Endpoint};
use pitser_evidence::anchors::{AuthorityAnchor, KeyAnchor, PublicationAnchor, TrailAnchor};
use pitser_evidence::line::{Op, Patient};
use pitser_evidence::{Anchors, Evidence, StepState, Verdict, verify};
use pitser_guardian::approver::{Approver, Power, Token};
use pitser_guardian::config::{Kind, Source, Tuning};
use pitser_guardian::erasure::{Answer, Ask, Asked};
use pitser_guardian::{
    Clock, Guardian, Handle, Parts, SourceState, StartError, Status, audit, init,
};
use pitser_ksi::pki::Subject;
use pitser_ksi::publication::PublicationData;
use pitser_ksi::publications_file::PublicationsFile;
use pitser_ksi::time::Second;
use pitser_tlog::note::{CosigningKey, Note, SignatureLine, SigningKey, VerifierKey};
use pitser_tlog::witness_protocol::Refusal;
use pitser_trail::export::Exporter;
use pitser_witness::{ClockedWitness, Cosign, Log, MemoryStore, Peer, Witness};
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[allow(
    clippy::disallowed_methods,
    reason = "a test is where the clock comes from"
)]
fn micros() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_micros() as u64
}

fn install(site: &Site) -> Result<init::Plan, init::InitError> {
    init::install(&site.source, &site.tuning, &clock(), &mut |_| {})
}

fn clock() -> Clock {
    Arc::new(micros)
}

fn second() -> Second {
    Second(micros() / 1_000_000)
}

const SCHEMA: &str = "
    PRAGMA journal_mode=WAL;
    CREATE TABLE patient (id TEXT PRIMARY KEY NOT NULL, name TEXT);
    CREATE TABLE observation (id TEXT PRIMARY KEY NOT NULL, patient TEXT, value TEXT);
    CREATE TABLE result (id INTEGER PRIMARY KEY, observation TEXT, note TEXT);
    INSERT INTO patient VALUES ('pt-1', 'Mari'), ('pt-2', 'Jaan');
    INSERT INTO observation VALUES ('obs-1', 'pt-1', '120 mmHg'), ('obs-2', 'pt-2', '80 mmHg');
    INSERT INTO result VALUES (1, 'obs-1', 'normal'), (2, 'obs-2', NULL);";

struct Site {
    dir: tempfile::TempDir,
    source: Source,
    tuning: Tuning,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("hospital.db");
        Connection::open(&database)
            .unwrap()
            .execute_batch(SCHEMA)
            .unwrap();
        let path = |table: &str, path: &str| (table.to_owned(), path.to_owned());
        let source = Source {
            patient: [
                path("patient", "id"),
                path("observation", "patient"),
                path("result", "observation -> observation.id"),
            ]
            .into(),
            resources: [path("Observation", "observation")].into(),
            ..Source::new(
                "hospital",
                Kind::Sqlite,
                &database.display().to_string(),
                &["*"],
            )
        };
        let tuning = Tuning {
            scan_every_s: 0,
            cosign_every_s: 1,
            witness_quorum: 1,
            ..Tuning::new("test.example", dir.path().join("guard"))
        };
        Self {
            dir,
            source,
            tuning,
        }
    }

    fn database(&self) -> Connection {
        Connection::open(&self.source.url).unwrap()
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(&self.source.url)
    }

    /// Changes one byte of the database file, past the engine: the first of `value`.
    fn edit_file(&self, value: &[u8]) {
        use std::os::unix::fs::FileExt;
        let db = self.database();
        db.busy_timeout(Duration::from_secs(10)).unwrap();
        db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| {
            row.get::<_, i64>(0)
        })
        .unwrap();
        drop(db);
        let bytes = std::fs::read(self.path()).unwrap();
        let at = bytes.windows(value.len()).position(|w| w == value).unwrap();
        std::fs::File::options()
            .write(true)
            .open(self.path())
            .unwrap()
            .write_all_at(b"9", at as u64)
            .unwrap();
    }

    fn witness(&self, name: &str, seed: u8) -> (Peer, VerifierKey) {
        let keys = pitser_trail::Keys::open(&self.tuning.layout(&self.source)).unwrap();
        let key = CosigningKey::from_seed(name, &[seed; 32]).unwrap();
        let mut witness = Witness::new(key, MemoryStore::default());
        witness.add_log(&Log::new(keys.log().verifier())).unwrap();
        let verifier = witness.verifier();
        (
            Peer::new(
                Box::new(ClockedWitness::new(witness, || second().0)),
                verifier.clone(),
            ),
            verifier,
        )
    }

    fn start(&self, client: Option<Client>) -> (Handle, VerifierKey) {
        let (peer, witness) = self.witness("witness.example", 7);
        (self.start_before(client, vec![peer]), witness)
    }

    /// Guards before these witnesses.
    fn start_before(&self, client: Option<Client>, witnesses: Vec<Peer>) -> Handle {
        let parts = Parts {
            source: self.source.clone(),
            tuning: self.tuning.clone(),
            client,
            witnesses,
            fleet: None,
            clock: clock(),
        };
        Guardian::start(parts).unwrap()
    }

    /// Guards by this clock, with nobody who signs or cosigns.
    fn start_alone(&self, clock: impl Fn() -> u64 + Send + Sync + 'static) -> Handle {
        self.start_asking(None, clock)
    }

    fn start_asking(
        &self,
        client: Option<Client>,
        clock: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Handle {
        let parts = Parts {
            source: self.source.clone(),
            tuning: self.tuning.clone(),
            client,
            witnesses: Vec::new(),
            fleet: None,
            clock: Arc::new(clock),
        };
        Guardian::start(parts).unwrap()
    }

    /// The same by a clock that stands still, so that no block ends with a second, and
    /// nothing is acknowledged.
    fn start_still(&self) -> Handle {
        let now = micros();
        self.start_alone(move || now)
    }
}

async fn authority(dir: &Path) -> (AuthorityHandle, Client) {
    authority_at(dir, micros).await
}

/// One by another clock.
async fn authority_at(
    dir: &Path,
    micros: impl Fn() -> u64 + Clone + Send + Sync + 'static,
) -> (AuthorityHandle, Client) {
    let subject = Subject {
        email: "publications@test.example".into(),
        ..Subject::default()
    };
    Authority::init(dir, Second(micros() / 1_000_000), &subject).unwrap();
    let config = Config {
        publish_every_s: 0,
        max_clock_jump: Duration::from_secs(600),
        ..Config::new(dir)
    }
    .with_user(User::new("test", b"test".as_slice()));
    let authority = Authority::start(config, move || Micros(micros()))
        .await
        .unwrap();
    let uri = format!("ksi+tcp://test:test@{}", authority.tcp_address());
    let client = Client::connect(Endpoint::parse(&uri).unwrap())
        .await
        .unwrap();
    (authority, client)
}

async fn status_with(guardian: &Handle, what: &str, wanted: impl FnMut(&Status) -> bool) -> Status {
    let limit = Duration::from_secs(30);
    let seen = tokio::time::timeout(limit, guardian.wait_for(wanted)).await;
    let seen = seen.ok().flatten();
    seen.unwrap_or_else(|| panic!("not within {limit:?}: {what}; {:?}", guardian.status()))
}

/// Waits until the rows that were there before have their lines.
async fn guarding(guardian: &Handle) {
    let is_guarding = |s: &Status| s.state == SourceState::Guarding;
    status_with(guardian, "it guards", is_guarding).await;
}

/// A witness that answers when it is let.
struct Slow {
    witness: Box<dyn Cosign>,
    let_go: Mutex<Receiver<()>>,
}

impl Cosign for Slow {
    fn add_checkpoint(&self, body: &[u8]) -> Result<Vec<SignatureLine>, Refusal> {
        self.let_go
            .lock()
            .unwrap()
            .recv()
            .map_err(|_| Refusal::Unavailable {
                reason: "gone".into(),
            })?;
        self.witness.add_checkpoint(body)
    }
}

/// A witness that never answers is asked, and nobody waits for it: changes are
/// sealed, and heads are kept by the quorum of the others. What it cosigns in
/// the end is added.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_witness_holds_up_nothing() {
    let site = Site::new();
    let (_authority, client) = authority(&site.dir.path().join("authority")).await;
    install(&site).unwrap();
    let (quick, key) = site.witness("quick.example", 7);
    let (slow, slow_key) = site.witness("slow.example", 8);
    let (let_go, waits) = std::sync::mpsc::channel();
    let slow = Slow {
        witness: slow.into_parts().1,
        let_go: Mutex::new(waits),
    };
    let slow = Peer::new(Box::new(slow), slow_key.clone());
    let guardian = site.start_before(Some(client), vec![slow, quick]);
    let first = guardian.settle().await.unwrap();
    site.database().execute_batch(CHANGES).unwrap();
    let blocks = guardian.settle().await.unwrap();
    assert!(blocks > first);
    let shown = guardian.status().witnesses;
    assert_eq!((shown[0].name.as_str(), shown[0].size), ("slow.example", 0));
    assert_eq!(
        (shown[1].name.as_str(), shown[1].size),
        ("quick.example", blocks)
    );

    // It answers about the head that it was asked about first, then about the newest.
    let_go.send(()).unwrap();
    let_go.send(()).unwrap();
    status_with(&guardian, "the slow one", |s| {
        s.witnesses[0].size == s.blocks
    })
    .await;
    let path = site.tuning.layout(&site.source).head();
    let head = Note::parse(&std::fs::read(path).unwrap()).unwrap();
    assert!(head.cosigned_at(&key).is_ok());
    assert!(head.cosigned_at(&slow_key).is_ok());
    assert_eq!(
        guardian
            .status()
            .findings
            .iter()
            .filter(|f| f.code.starts_with("TRL"))
            .count(),
        0
    );
    drop(let_go);
    guardian.stop().await;
}

/// A guardian that is started while nobody signs or cosigns says since when they have not:
/// otherwise nobody would be told how old that is.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_sealed_and_cosigned_is_known_after_a_restart() {
    let site = Site::new();
    let (_authority, client) = authority(&site.dir.path().join("authority")).await;
    install(&site).unwrap();
    let (guardian, _) = site.start(Some(client));
    let blocks = guardian.settle().await.unwrap();
    let before = guardian.status();
    guardian.stop().await;
    let (witness, key) = site.witness("witness.example", 7);
    let (never_lets_go, waits) = std::sync::mpsc::channel();
    let silent = Slow {
        witness: witness.into_parts().1,
        let_go: Mutex::new(waits),
    };
    let guardian = site.start_before(None, vec![Peer::new(Box::new(silent), key)]);
    let after = status_with(&guardian, "the trail", |s| s.is_opened).await;
    assert!(before.sealed_up_to.is_some() && after.sealed_up_to >= before.sealed_up_to);
    assert!(before.witnessed_at.is_some() && after.witnessed_at >= before.witnessed_at);
    assert!(after.witnessed >= blocks, "{after:?}");
    assert_eq!(after.witnesses[0].size, 0);
    drop(never_lets_go);
    guardian.stop().await;
}

/// After a restart another service answers, whose clock is behind: what it says is not
/// kept before its clock is past the last seal.
#[tokio::test(flavor = "multi_thread")]
async fn no_seal_is_older_than_one_from_before_a_restart() {
    let site = Site::new();
    let (_first, client) = authority(&site.dir.path().join("authority")).await;
    install(&site).unwrap();
    let (guardian, _) = site.start(Some(client));
    guardian.settle().await.unwrap();
    guardian.stop().await;
    let behind_us = Arc::new(AtomicU64::new(60_000_000));
    let by = Arc::clone(&behind_us);
    let clock = move || micros() - by.load(Ordering::Relaxed);
    let (_second, client) = authority_at(&site.dir.path().join("second"), clock).await;
    let (guardian, _) = site.start(Some(client));
    site.database().execute_batch(CHANGES).unwrap();
    status_with(&guardian, "why it is not sealed", |status| {
        let trouble = status.trouble.as_deref().unwrap_or_default();
        trouble.contains("before the block that it continues")
    })
    .await;
    behind_us.store(0, Ordering::Relaxed);
    guardian.settle().await.unwrap();
    guardian.stop().await;
    let view = pitser_trail::check(&site.tuning.layout(&site.source)).unwrap();
    assert!(view.seals.waiting.is_empty());
}

/// Without its quorum a head does not count, and why is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_head_without_its_quorum_does_not_count() {
    let mut site = Site::new();
    site.tuning.witness_quorum = 2;
    let (_authority, client) = authority(&site.dir.path().join("authority")).await;
    install(&site).unwrap();
    let (guardian, _) = site.start(Some(client));
    let error = guardian.settle().await.unwrap_err();
    assert!(error.contains("1 of 2 required witnesses"), "{error}");
    assert_eq!(guardian.status().witnessed, 0);
    let trouble = guardian.status().trouble.unwrap();
    assert!(trouble.contains("1 of 2"), "{trouble}");
    assert!(!site.tuning.layout(&site.source).head().exists());
    guardian.stop().await;
}

const CHANGES: &str = "
    BEGIN;
    INSERT INTO pitser_begin (actor, app, purpose) VALUES ('EE38001085718', 'ward', 'TREAT');
    UPDATE observation SET value = '130 mmHg' WHERE id = 'obs-1';
    INSERT INTO result VALUES (3, 'obs-1', 'high');
    UPDATE observation SET patient = 'pt-1' WHERE id = 'obs-2';
    INSERT INTO pitser_end DEFAULT VALUES;
    COMMIT;";

const READ: &str = r#"{"resourceType":"AuditEvent","type":{"code":"rest"},"action":"R","recorded":"2026-03-14T09:26:53Z",
    "agent":[{"who":{"identifier":{"value":"EE47101010033"}},"requestor":true}],"source":{"observer":{"display":"ehr"}},
    "entity":[{"what":{"reference":"Observation/obs-1"},"type":{"code":"2"}},{"what":{"reference":"Patient/pt-1"},"type":{"code":"1"},"role":{"code":"1"}}]}"#;

#[tokio::test(flavor = "multi_thread")]
async fn from_the_first_row_to_a_verified_evidence_file() {
    let site = Site::new();
    let (authority, client) = authority(&site.dir.path().join("authority")).await;
    let genesis = install(&site).unwrap().genesis.unwrap();
    let (guardian, witness) = site.start(Some(client.clone()));
    guardian.settle().await.unwrap();

    site.database().execute_batch(CHANGES).unwrap();
    let receipt = guardian.submit(READ.into()).await.unwrap();
    assert!(!receipt.known && receipt.lines == 1, "{receipt:?}");
    assert!(
        guardian.submit(READ.into()).await.unwrap().known,
        "the same bytes are one event"
    );
    guardian.settle().await.unwrap();
    assert_eq!(guardian.scan().await.unwrap().findings, []);
    assert_eq!(guardian.status().findings, []);

    // One digit in the file, past every trigger; then a plain DELETE.
    site.edit_file(b"130 mmHg");
    let scan = guardian.scan().await.unwrap();
    let found: Vec<_> = scan
        .findings
        .iter()
        .map(|f| (f.code.as_str(), f.key.as_deref(), f.columns.clone()))
        .collect();
    assert_eq!(found, [("ROW-01", Some("obs-1"), vec!["value".to_owned()])]);
    site.database()
        .execute("DELETE FROM result WHERE id = 2", [])
        .unwrap();
    status_with(&guardian, "ACT-01", |s| {
        s.findings
            .iter()
            .any(|f| f.code == "ACT-01" && f.key.as_deref() == Some("2"))
    })
    .await;
    guardian.settle().await.unwrap();

    let code = authority.publish().await.unwrap().code;
    let evidence = export(&site, &client, &authority, &witness, &genesis, "pt-1").await;
    let anchors = anchors(&authority, &genesis, &code, witness);
    let bytes = evidence.encode();
    let evidence = Evidence::decode(&bytes).unwrap();
    let report = verify(&evidence, Some(&anchors), second());
    assert_eq!(report.verdict, Verdict::Intact, "{report:#?}");
    let ops: Vec<_> = evidence.lines.iter().map(|l| l.line.op.as_str()).collect();
    let expected = "baseline baseline baseline update create relink update read finding";
    assert_eq!(
        ops.join(" "),
        expected,
        "obs-2 is pt-1's in the end, what was sealed as pt-2's stays so"
    );

    let text = String::from_utf8(bytes.clone()).unwrap();
    for other in ["Jaan", "pt-2"] {
        // pt-2 stands only where obs-2 moved away from it, in pt-1's own row.
        assert!(!text.contains("Jaan"), "{other}");
    }
    let without = verify(&evidence, None, second());
    assert_eq!(without.verdict, Verdict::Unconfirmed, "{without:#?}");
    let round_trip = Anchors::from_toml(&anchors.to_toml()).unwrap();
    assert_eq!(round_trip, anchors);
    let mut fork = anchors.clone();
    fork.trails[0].genesis = pitser_evidence::codec::Digest::of(&[b"another"]);
    assert!(matches!(
        verify(&evidence, Some(&fork), second()).verdict,
        Verdict::Broken(_)
    ));
    let mut unaudited = anchors.clone();
    unaudited.auditors.clear();
    let report = verify(&evidence, Some(&unaudited), second());
    assert_eq!(report.verdict, Verdict::Unconfirmed);
    let waiting: Vec<_> = report
        .steps
        .iter()
        .filter(|s| s.state == StepState::Waiting)
        .map(|s| s.name)
        .collect();
    assert_eq!(waiting, ["audit"]);

    guardian.stop().await;
    authority.shutdown().await.unwrap();
}

fn auditor() -> SigningKey {
    SigningKey::from_seed("auditor.example", &[9; 32]).unwrap()
}

/// What a verifier knows beforehand.
fn anchors(
    authority: &AuthorityHandle,
    genesis: &str,
    code: &str,
    witness: VerifierKey,
) -> Anchors {
    Anchors {
        version: 1,
        witness_quorum: 1,
        trails: vec![TrailAnchor {
            origin: "test.example/hospital".into(),
            genesis: genesis.parse().unwrap(),
        }],
        publications: vec![PublicationAnchor {
            code: PublicationData::from_code(code).unwrap(),
        }],
        authorities: vec![AuthorityAnchor {
            certificate: authority.certificate_pem().to_owned(),
            constraints: vec![authority.constraint().to_owned()],
        }],
        witnesses: vec![KeyAnchor::new(witness)],
        auditors: vec![KeyAnchor::new(auditor().verifier())],
        calendar_log: None,
    }
}

async fn export(
    site: &Site,
    client: &Client,
    authority: &AuthorityHandle,
    witness: &VerifierKey,
    genesis: &str,
    patient: &str,
) -> Evidence {
    let layout = site.tuning.layout(&site.source);
    let head = Note::parse(&std::fs::read(layout.head()).unwrap()).unwrap();
    let known = audit::Known {
        origin: site.tuning.origin(&site.source),
        genesis: genesis.parse().unwrap(),
        witnesses: vec![witness.clone()],
        quorum: 1,
    };
    let statement = audit::replay(&layout, &head, &known, &auditor(), second()).unwrap();
    let file = PublicationsFile::decode(&authority.publications_file()).unwrap();
    let record = file.latest().unwrap();
    let mut exporter = Exporter::open_at_head(layout).unwrap();
    let mut extended = std::collections::HashMap::new();
    let listed = exporter.list(patient).unwrap();
    for (block, seal) in exporter.seals(&listed).unwrap() {
        let seal = pitser_ksi::Signature::decode(&seal).unwrap();
        let longer = client
            .extend(&seal, Some(record.data.time), Some(record))
            .await
            .unwrap();
        extended.insert(block, longer.encode());
    }
    exporter
        .evidence_of(
            listed,
            Some(statement.to_string()),
            Some(authority.publications_file().to_vec()),
            |block, _| extended[&block].clone(),
        )
        .unwrap()
}

/// Asks at an address where nobody answers.
fn nobody() -> Client {
    let free = port::free_address();
    let endpoint = Endpoint::parse(&format!("ksi+tcp://test:test@{free}"));
    Client::new(endpoint.unwrap(), Default::default())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trail_goes_on_while_the_authority_is_down_and_after_a_restart() {
    let site = Site::new();
    install(&site).unwrap();
    let (guardian, _) = site.start(Some(nobody()));
    site.database().execute_batch(CHANGES).unwrap();
    status_with(&guardian, "unsealed blocks and a reason", |s| {
        s.blocks >= 2
            && s.unsealed == s.blocks
            && s.trouble
                .as_deref()
                .is_some_and(|t| t.contains("sealed in order"))
    })
    .await;
    guardian.stop().await;
    status_with(&guardian, "stopped", |s| s.state == SourceState::Stopped).await;

    let (authority, client) = authority(&site.dir.path().join("authority")).await;
    let (guardian, _) = site.start(Some(client));
    let blocks = guardian.settle().await.unwrap();
    let status = guardian.status();
    assert!(blocks >= 2 && status.unsealed == 0, "{status:?}");
    assert_eq!(guardian.scan().await.unwrap().findings, []);
    assert_eq!(status.findings, [], "a restart is no finding");
    guardian.stop().await;
    authority.shutdown().await.unwrap();
    let view = pitser_trail::read(&site.tuning.layout(&site.source), None, |_, _| {}).unwrap();
    assert!(view.blocks.iter().all(|b| b.seal.is_some()));
}

/// While blocks go on being closed.
#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_stays_down_is_a_finding() {
    let mut site = Site::new();
    site.tuning.seal_alarm_s = 2;
    site.tuning.heartbeat_s = 1;
    install(&site).unwrap();
    let (guardian, _) = site.start(Some(nobody()));
    site.database().execute_batch(CHANGES).unwrap();
    status_with(&guardian, "SEAL-01", |s| {
        s.blocks > 2 && s.findings.iter().any(|found| found.code == "SEAL-01")
    })
    .await;
    guardian.stop().await;
}

/// Whoever restarts a guardian does not begin to count anew.
#[tokio::test(flavor = "multi_thread")]
async fn blocks_that_were_unsealed_before_a_start_are_overdue() {
    let mut site = Site::new();
    site.tuning.seal_alarm_s = 1800;
    site.tuning.heartbeat_s = 1;
    install(&site).unwrap();
    let guardian = site.start_asking(Some(nobody()), || micros() - 3_600_000_000);
    status_with(&guardian, "a block", |s| s.blocks > 0).await;
    guardian.stop().await;

    let ahead = Arc::new(AtomicU64::new(0));
    let by = Arc::clone(&ahead);
    let guardian = site.start_asking(Some(nobody()), move || micros() + by.load(Ordering::SeqCst));
    let is_overdue = |s: &Status| s.findings.iter().any(|found| found.code == "SEAL-01");
    // The authority may be about to start, too.
    let status = status_with(&guardian, "asked in vain", |s| s.trouble.is_some()).await;
    assert!(!is_overdue(&status), "{status:?}");
    ahead.store(60_000_000, Ordering::SeqCst);
    status_with(&guardian, "SEAL-01", is_overdue).await;
    guardian.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edited_row_cannot_be_laundered_by_a_later_update() {
    let site = Site::new();
    install(&site).unwrap();
    let (guardian, _) = site.start(None);
    guarding(&guardian).await;
    site.edit_file(b"120 mmHg");
    site.database()
        .execute_batch(
            "BEGIN; INSERT INTO pitser_begin (actor) VALUES ('x'); \
             UPDATE observation SET value = '121 mmHg' WHERE id = 'obs-1'; \
             INSERT INTO pitser_end DEFAULT VALUES; COMMIT;",
        )
        .unwrap();
    let is_told = |s: &Status| {
        let mut found = s.findings.iter();
        found.any(|f| f.open && f.code == "ROW-04" && f.columns == ["value"])
    };
    status_with(&guardian, "ROW-04", is_told).await;
    // The row is as it was sealed since; what happened has happened.
    assert_eq!(guardian.scan().await.unwrap().findings, []);
    assert!(is_told(&guardian.status()));
    guardian.stop().await;
}

/// Nor one that was removed past capture by a row that takes its place.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_in_the_place_of_one_that_vanished_is_not_just_a_new_one() {
    let site = Site::new();
    install(&site).unwrap();
    let (guardian, _) = site.start(None);
    guarding(&guardian).await;
    site.database()
        .execute_batch(
            "BEGIN;
             CREATE TEMP TRIGGER quiet AFTER DELETE ON main.observation
               BEGIN SELECT RAISE(IGNORE); END;
             DELETE FROM observation WHERE id = 'obs-1';
             DROP TRIGGER temp.quiet;
             INSERT INTO pitser_begin (actor) VALUES ('x');
             INSERT INTO observation VALUES ('obs-1', 'pt-1', 'forged');
             DELETE FROM observation WHERE id = 'obs-2';
             INSERT INTO observation VALUES ('obs-2', 'pt-2', 'entered anew');
             INSERT INTO pitser_end DEFAULT VALUES;
             COMMIT",
        )
        .unwrap();
    status_with(&guardian, "ROW-04", |s| !s.findings.is_empty()).await;
    assert_eq!(guardian.scan().await.unwrap().findings, []);
    let open = guardian.status().findings;
    let open: Vec<_> = open.iter().map(|f| (&*f.code, f.key.as_deref())).collect();
    assert_eq!(open, [("ROW-04", Some("obs-1"))]);
    guardian.stop().await;
}

/// A trigger of the writer's own connection ends ours before it has written anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_came_past_capture_cannot_be_laundered_by_a_later_change() {
    let site = Site::new();
    install(&site).unwrap();
    let (guardian, _) = site.start(None);
    guarding(&guardian).await;
    for (at, change) in [
        "UPDATE observation SET value = 'as if it were old'",
        "DELETE FROM observation",
    ]
    .iter()
    .enumerate()
    {
        let sql = format!(
            "BEGIN;
             CREATE TEMP TRIGGER quiet AFTER INSERT ON main.observation
               BEGIN SELECT RAISE(IGNORE); END;
             INSERT INTO observation VALUES ('obs-{at}9', 'pt-1', 'new');
             DROP TRIGGER temp.quiet;
             INSERT INTO pitser_begin (actor) VALUES ('x');
             {change} WHERE id = 'obs-{at}9';
             INSERT INTO pitser_end DEFAULT VALUES;
             COMMIT"
        );
        site.database().execute_batch(&sql).unwrap();
        let key = format!("obs-{at}9");
        status_with(&guardian, "ROW-04", |s| {
            let mut found = s.findings.iter();
            found.any(|f| f.code == "ROW-04" && f.key.as_ref() == Some(&key))
        })
        .await;
    }
    assert_eq!(guardian.scan().await.unwrap().findings, []);
    let open = guardian.status().findings;
    assert!(open.len() == 2 && open.iter().all(|f| f.open), "{open:?}");
    guardian.stop().await;
    // Each stands in the list of whose row it was.
    let layout = site.tuning.layout(&site.source);
    let mut found = Vec::new();
    pitser_trail::read(&layout, None, |line, _| {
        if line.finding.is_some() {
            found.push((line.v, line.patient.is_some(), line.key.is_some()));
        }
    })
    .unwrap();
    assert_eq!(found, [(6, true, true); 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_triggers_missing_and_unknown_rows_are_found() {
    let site = Site::new();
    install(&site).unwrap();
    let (guardian, _) = site.start(None);
    guarding(&guardian).await;
    let db = site.database();
    drop_triggers(&db, "observation");
    db.execute_batch("DELETE FROM observation WHERE id = 'obs-1'; INSERT INTO observation VALUES ('obs-9', 'pt-1', 'x');").unwrap();
    for code in ["CAP-03", "ROW-02", "ROW-03"] {
        status_with(&guardian, code, |s| {
            s.findings.iter().any(|f| f.code == code)
        })
        .await;
    }
    let keys: Vec<_> = guardian
        .status()
        .findings
        .into_iter()
        .filter(|f| f.code.starts_with("ROW"))
        .map(|f| (f.code, f.key))
        .collect();
    assert_eq!(
        keys,
        [
            ("ROW-03".to_owned(), Some("obs-9".to_owned())),
            ("ROW-02".to_owned(), Some("obs-1".to_owned()))
        ]
    );
    guardian.stop().await;
}

/// The key of such a row may be the patient's identifier, and must not outlive the
/// patient's own key.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_found_about_a_row_that_was_never_sealed_is_erased_with_its_patient() {
    let mut site = Site::new();
    let approver = |name: &str| Approver {
        name: name.into(),
        token_sha256: Token::new(name).hash(),
        may: vec![Power::Erase],
        until: None,
    };
    site.tuning.approvers = vec![approver("Mari"), approver("Jaan")];
    install(&site).unwrap();
    let (guardian, _) = site.start(None);
    guardian.scan().await.unwrap();
    let db = site.database();
    drop_triggers(&db, "patient");
    db.execute_batch("INSERT INTO patient VALUES ('pt-9', 'Eve')")
        .unwrap();
    let is_found = |s: &Status| s.findings.iter().any(|f| f.code == "ROW-03");
    status_with(&guardian, "ROW-03", is_found).await;
    assert_eq!(lines_that_tell(&site, "pt-9").len(), 1);
    db.execute_batch("DELETE FROM patient WHERE id = 'pt-9'")
        .unwrap();
    let ask = async |token: &str, ask: Ask| {
        let asked = Asked {
            token: Token::new(token),
            ask,
        };
        guardian.erasure(asked).await.unwrap()
    };
    let request = Ask::Request {
        patient: "pt-9".into(),
        basis: "GDPR art. 17".into(),
    };
    let Answer::Requested { code, .. } = ask("Mari", request).await else {
        panic!("not taken");
    };
    ask("Jaan", Ask::Confirm { code }).await;
    guardian.stop().await;
    assert_eq!(lines_that_tell(&site, "pt-9"), Vec::<u64>::new());
    assert_eq!(lines_that_tell(&site, "pt-1").len(), 1, "its baseline");
}

/// Lines whose content in the vault opens and has `value` in its key.
fn lines_that_tell(site: &Site, value: &str) -> Vec<u64> {
    let layout = site.tuning.layout(&site.source);
    let keys = pitser_trail::Keys::open(&layout).unwrap();
    let mut vault = pitser_trail::Vault::open_read_only(&layout.vault(), keys.master()).unwrap();
    let mut lines = Vec::new();
    pitser_trail::read(&layout, None, |line, _| lines.push(line.seq)).unwrap();
    lines.retain(|seq| {
        let content = vault.get(*seq).unwrap().map(|(_, content)| content);
        let key = content.and_then(|content| content.key).unwrap_or_default();
        key.iter().any(|cell| cell.ends_with(value.as_bytes()))
    });
    lines
}

fn drop_triggers(db: &Connection, table: &str) {
    let query = "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = ?1";
    let mut query = db.prepare(query).unwrap();
    let triggers = query.query_map([table], |row| row.get::<_, String>(0));
    let triggers: Vec<_> = triggers.unwrap().collect::<Result<_, _>>().unwrap();
    assert!(!triggers.is_empty());
    for trigger in triggers {
        db.execute_batch(&format!("DROP TRIGGER \"{trigger}\""))
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_said_to_be_damaged_and_guarding_goes_on() {
    use std::os::unix::fs::FileExt;
    let site = Site::new();
    install(&site).unwrap();
    let (guardian, _) = site.start(None);
    guarding(&guardian).await;
    let page: u64 = site
        .database()
        .query_row(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'observation'",
            [],
            |row| row.get(0),
        )
        .unwrap();
    site.edit_file(b"120 mmHg");
    site.edit_file(b"normal");
    let file = std::fs::File::options()
        .write(true)
        .open(site.path())
        .unwrap();
    file.write_all_at(&[0xff; 512], (page - 1) * 4096).unwrap();
    let scan = guardian.scan().await.unwrap();
    let found: Vec<_> = scan
        .findings
        .iter()
        .map(|f| (f.code.as_str(), f.table.as_deref()))
        .collect();
    assert_eq!(found, [("ROW-01", Some("result"))], "the others are judged");
    let [unread] = &scan.unread[..] else {
        panic!("{:?}", scan.unread)
    };
    assert!(unread.table == "observation" && unread.why.contains("restore"));
    let status = guardian.status();
    assert_eq!(
        (&status.unread, status.verified_up_to),
        (&scan.unread, None)
    );
    assert!(status.trouble.is_some_and(|t| t.contains("restore")));
    guardian.submit(READ.into()).await.unwrap();
    guardian.stop().await;
}

#[tokio::test]
async fn what_is_wrong_before_the_start_is_said_with_a_remedy() {
    let mut site = Site::new();
    let told = |error: &dyn std::error::Error, part: &str| {
        assert!(error.to_string().contains(part), "{error}")
    };
    let parts = |site: &Site| Parts {
        source: site.source.clone(),
        tuning: site.tuning.clone(),
        client: None,
        witnesses: vec![],
        fleet: None,
        clock: clock(),
    };
    let error = Guardian::start(parts(&site)).unwrap_err();
    assert!(matches!(
        error,
        StartError::Init(init::InitError::NotInitialised(_))
    ));
    told(&error, "pitser guard init");

    site.source.tables = vec!["nothing_*".into()];
    told(&install(&site).unwrap_err(), "no table");
    site.source.tables = vec!["*".into()];
    site.source
        .patient
        .insert("observation".into(), "pasient".into());
    told(&install(&site).unwrap_err(), "no column pasient");
    site.source
        .patient
        .insert("observation".into(), "patient".into());
    site.database()
        .execute_batch("CREATE TABLE notes (text TEXT)")
        .unwrap();
    told(&install(&site).unwrap_err(), "primary key");
    site.source.exclude = vec!["notes".into()];
    install(&site).unwrap();
    std::fs::remove_file(&site.source.url).unwrap();
    let error = Guardian::start(parts(&site)).unwrap_err();
    told(&error, "hospital.db");
    assert!(
        !site.path().exists(),
        "a database that is not there must not be made"
    );
}

/// A patient of another server has the same id as one of ours.
#[tokio::test(flavor = "multi_thread")]
async fn what_another_server_calls_like_a_patient_of_ours_is_not_theirs() {
    let mut site = Site::new();
    site.source.fhir_bases = vec!["https://ehr.example.org/fhir/".into()];
    install(&site).unwrap();
    let (guardian, _) = site.start(None);
    let at = |base: &str| {
        let event = READ.replace("Observation/obs-1", &format!("{base}Observation/obs-1"));
        event.replace("Patient/pt-1", &format!("{base}Patient/pt-1"))
    };
    let [ours, theirs] = [
        "https://ehr.example.org/fhir/",
        "https://other.example.org/fhir/",
    ]
    .map(at);
    for (event, is_foreign) in [(ours, false), (theirs, true)] {
        let told = guardian.submit(event.into()).await.unwrap();
        let said = told.profile_violations.concat();
        assert_eq!((told.lines, said.contains("fhir_bases")), (1, is_foreign));
    }
    guardian.stop().await;
    let layout = site.tuning.layout(&site.source);
    let keys = pitser_trail::Keys::open(&layout).unwrap();
    let mut whose = Vec::new();
    pitser_trail::read(&layout, None, |line, _| {
        whose.extend((line.op == Op::Read).then_some(line.patient));
    })
    .unwrap();
    let known = keys.pseudonym("pt-1");
    assert_eq!(whose, [Some(known), Some(Patient::Unknown)]);
}
