//! An authority that is killed again and again while many ask it: whatever it
//! answered stays true.
//!
//! `SOAK_S=600 cargo test -p pitser --test authority_soak -- --ignored --nocapture`
//! takes ten minutes and kills every 20 seconds.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{AUTHORITY, found_authority, run, start_authority};
use pitser_client::{Client, Endpoint, Options};
use pitser_ksi::hash::{Algorithm, Imprint, hash};
use pitser_ksi::policy::{Context, Policy, verify};
use pitser_ksi::publications_file::PublicationsFile;
use pitser_ksi::signature::Signature;
use tokio::task::JoinSet;

#[test]
fn what_was_answered_survives_kills() {
    soak(Duration::from_secs(8), Duration::from_secs(2), 100);
}

#[test]
#[ignore = "takes as long as SOAK_S says; CI runs it apart"]
fn soak_of_the_authority() {
    let seconds = std::env::var("SOAK_S").map_or(30, |seconds| seconds.parse().unwrap());
    soak(Duration::from_secs(seconds), Duration::from_secs(20), 1000);
}

/// Lets `askers` ask for so long, killing the authority `every` so often.
fn soak(length: Duration, every: Duration, askers: u64) {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (address, key) = found_authority(dir);
    let mut authority = start_authority(dir);
    let uri = format!("ksi+tcp://hospital:{key}@{address}");
    let client = Client::new(Endpoint::parse(&uri).unwrap(), Options::default());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let asked = Arc::new(Asked::default());
    let mut asking = JoinSet::new();
    for number in 0..askers {
        let (client, asked) = (client.clone(), Arc::clone(&asked));
        let task = async move { asked.ask(&client, number).await };
        asking.spawn_on(task, runtime.handle());
    }

    let began = Instant::now();
    let mut kills = 0u64;
    while began.elapsed() < length {
        let before = asked.count();
        // Not always at the same place of the second.
        let jitter = Duration::from_millis(kills * 137 % 1000);
        std::thread::sleep(every + jitter);
        assert!(
            asked.count() > before,
            "nothing was signed before kill {kills}"
        );
        authority.kill();
        kills += 1;
        authority = start_authority(dir);
    }
    asked.over.store(true, Ordering::Relaxed);
    runtime.block_on(asking.join_all());

    run(
        dir,
        &format!("authority publish --config {AUTHORITY} --json"),
    )
    .exits(0);
    let signed = std::mem::take(&mut *asked.signed.lock().unwrap());
    let intact = runtime.block_on(extend_all(dir, &client, &signed));
    assert_eq!(intact, signed.len());
    run(dir, &format!("authority audit --config {AUTHORITY}")).exits(0);
    println!(
        "{} signatures, {kills} kills, {} requests failed, longest pause {} ms: all extend and verify",
        signed.len(),
        asked.failed.load(Ordering::Relaxed),
        asked.pause.lock().unwrap().1.as_millis(),
    );
    authority.kill();
}

/// What askers have got.
#[derive(Default)]
struct Asked {
    over: AtomicBool,
    signed: Mutex<Vec<(Imprint, Signature)>>,
    failed: AtomicU64,
    /// When the newest answer came, and the longest time between two.
    pause: Mutex<(Option<Instant>, Duration)>,
}

impl Asked {
    /// Asks for one signature after the other until it is over.
    async fn ask(&self, client: &Client, number: u64) {
        for request in 0u64.. {
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            let (number, request) = (number.to_be_bytes(), request.to_be_bytes());
            let document = hash(Algorithm::Sha256, &[&number, &request]);
            match client.sign(document, 0).await {
                Ok(signature) => self.answered(document, signature),
                // The authority is away; the client has waited and tried again.
                Err(_) => _ = self.failed.fetch_add(1, Ordering::Relaxed),
            }
        }
    }

    fn answered(&self, document: Imprint, signature: Signature) {
        let now = Instant::now();
        let mut pause = self.pause.lock().unwrap();
        let before = pause.0.replace(now).unwrap_or(now);
        pause.1 = pause.1.max(now - before);
        self.signed.lock().unwrap().push((document, signature));
    }

    fn count(&self) -> usize {
        self.signed.lock().unwrap().len()
    }
}

/// Extends all to the one publication, and verifies them by the publications file;
/// returns how many hold.
async fn extend_all(dir: &Path, client: &Client, signed: &[(Imprint, Signature)]) -> usize {
    let file = fs::read(dir.join("auth/data/publications.bin")).unwrap();
    let publications = PublicationsFile::decode(&file).unwrap();
    let record = publications.latest().unwrap();
    let mut chains = BTreeMap::new();
    let mut intact = 0;
    for (document, signature) in signed {
        let second = signature.aggregation_time();
        if let std::collections::btree_map::Entry::Vacant(place) = chains.entry(second) {
            let chain = client.extend_calendar(second, Some(record.data.time));
            place.insert(chain.await.unwrap());
        }
        let extended = signature.extend_with(&chains[&second], Some(record));
        let context = Context {
            document: Some(*document),
            publications: Some(&publications),
            ..Context::new(Policy::PublicationsFile)
        };
        intact += usize::from(verify(&extended.unwrap(), &context).is_intact());
    }
    intact
}
