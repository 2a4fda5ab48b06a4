//! An authority that is killed again and again while many ask it, or whose disk fails
//! before the power is cut: whatever it answered stays true.
//!
//! `SOAK_S=600 cargo test -p pitser --test authority_soak -- --ignored --nocapture`
//! takes ten minutes and kills every 20 seconds.
//! `POWER_CUTS=50 cargo test -p pitser --test authority_soak power -- --nocapture` cuts
//! the power fifty times.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/disk.rs"]
mod disk;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{AUTHORITY, Choices, found_authority, run, start_authority};
use disk::{Disk, Fault};
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
    let asking = Asking::begin(dir, askers);
    let asked = &asking.asked;
    let mut authority = start_authority(dir);

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
    let told = asking.end(dir);
    println!("{kills} kills, {told}: all extend and verify");
    authority.kill();
}

#[test]
fn what_was_answered_survives_a_power_cut_after_a_disk_that_failed_once() {
    if !disk::is_there() {
        eprintln!("skipped: no strace here, or it may not watch processes");
        return;
    }
    let cuts = std::env::var("POWER_CUTS").map_or(2, |cuts| cuts.parse().unwrap());
    let mut choices = Choices::seeded();
    for _ in 0..cuts {
        println!("SEED={}", choices.0);
        power_cut(&mut choices);
    }
}

/// Nothing here takes so long on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Has a call fail that is to make the calendar durable, kills the authority at once, and
/// starts it again; it answers, and the power is cut.
fn power_cut(choices: &mut Choices) {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let asking = Asking::begin(dir, 20);
    let mut disk = Disk::of(&dir.join("auth"), dir);
    let call = ["fdatasync", "fsync"][usize::from(choices.below(4) == 0)];
    let times = 1 + choices.below(6);
    let refusal = (Fault::Refusal, call, times);
    let mut ended = 0;
    for fault in [Some(refusal), None] {
        let log = dir.join(format!("calls-{ended}"));
        let mut authority = watch(dir, &log, fault);
        let before = asking.asked.seconds();
        let (mut length, mut grown_at) = (0, Instant::now());
        let mut is_time = || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            if text.len() > length {
                (length, grown_at) = (text.len(), Instant::now());
            }
            // In a call it would be in doubt what it did; and in the next second it may
            // write again by itself what could not be made durable.
            let is_quiet = grown_at.elapsed() > Duration::from_millis(20);
            let seconds = asking.asked.seconds() - before;
            let has_failed = fault.is_some() && text.contains("(INJECTED)");
            is_quiet && (has_failed || seconds >= if fault.is_some() { 8 } else { 3 })
        };
        let began = Instant::now();
        while authority.try_wait().unwrap().is_none() && !is_time() {
            assert!(began.elapsed() < PATIENCE, "nothing is signed any more");
            std::thread::yield_now();
        }
        let signs = fault.is_some() || asking.asked.seconds() > before;
        assert!(signs, "it has ended by itself");
        disk::end(&mut authority, "-KILL");
        disk.replay(&log);
        disk.check();
        ended += 1;
        if disk.is_in_doubt() {
            break;
        }
    }
    let lost = disk.cut_power(choices);
    let authority = start_authority(dir);
    let told = asking.end(dir);
    println!("{call} {times}, killed {ended} times, lost {lost:?}, {told}: all extend and verify");
    authority.kill();
}

/// Starts an authority whose calls are written down. It may end before it listens.
fn watch(dir: &Path, log: &Path, fault: Option<(Fault, &str, u64)>) -> Child {
    let mut command = disk::watched(log, fault, dir);
    command.args(["authority", "run", "--json", "--config", AUTHORITY]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// Those who ask an authority, whether or not it runs.
struct Asking {
    client: Client,
    runtime: tokio::runtime::Runtime,
    asked: Arc<Asked>,
    askers: JoinSet<()>,
}

impl Asking {
    /// Makes the authority in `dir`, and has so many ask it.
    fn begin(dir: &Path, askers: u64) -> Self {
        let (address, key) = found_authority(dir);
        let uri = format!("ksi+tcp://hospital:{key}@{address}");
        let mut asking = Self {
            client: Client::new(Endpoint::parse(&uri).unwrap(), Options::default()),
            runtime: tokio::runtime::Runtime::new().unwrap(),
            asked: Arc::default(),
            askers: JoinSet::new(),
        };
        for number in 0..askers {
            let (client, asked) = (asking.client.clone(), Arc::clone(&asking.asked));
            let task = async move { asked.ask(&client, number).await };
            asking.askers.spawn_on(task, asking.runtime.handle());
        }
        asking
    }

    /// Asserts that all that was answered extends and verifies, and that the calendar is
    /// what it was; what there was, in words.
    fn end(self, dir: &Path) -> String {
        self.asked.over.store(true, Ordering::Relaxed);
        self.runtime.block_on(self.askers.join_all());
        let publish = format!("authority publish --config {AUTHORITY} --json");
        run(dir, &publish).exits(0);
        let signed = std::mem::take(&mut *self.asked.signed.lock().unwrap());
        let extended = extend_all(dir, &self.client, &signed);
        assert_eq!(self.runtime.block_on(extended), signed.len());
        run(dir, &format!("authority audit --config {AUTHORITY}")).exits(0);
        format!(
            "{} signatures, {} requests failed, longest pause {} ms",
            signed.len(),
            self.asked.failed.load(Ordering::Relaxed),
            self.asked.pause.lock().unwrap().1.as_millis(),
        )
    }
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

    /// In how many seconds something was signed.
    fn seconds(&self) -> usize {
        let signed = self.signed.lock().unwrap();
        let seconds = signed.iter().map(|(_, it)| it.aggregation_time());
        seconds.collect::<BTreeSet<_>>().len()
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
