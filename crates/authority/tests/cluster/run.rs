//! Runs with faults that come from a seed, and the check of what was seen.
//!
//! `CLUSTER_SEEDS=200 CLUSTER_PARALLEL=2 cargo test -p pitser-authority --features
//! cluster --test cluster -- --ignored --nocapture long` is the long form;
//! `SEED=17 … seed` repeats one run.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pitser_client::{Client, Options, publications_file};
use pitser_ksi::hash::hash;
use pitser_ksi::pki::{Constraint, TrustAnchors};
use pitser_ksi::policy::{self, Context, Policy, Verdict};
use pitser_ksi::publications_file::PublicationsFile;
use pitser_ksi::signature::Signature;
use pitser_ksi::{Algorithm, Imprint, Second};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::history::{Event, Kind, check};
use crate::machines::{MACHINES, World, has_etcd, now_ns, until};
use crate::proxy::Line;

/// What goes wrong with one machine.
#[derive(Debug, Clone, Copy)]
enum Fault {
    KillNode,
    KillEtcd,
    /// Both, as when the power fails.
    KillMachine,
    PauseNode,
    PauseEtcd,
    CutOff,
    /// The node loses etcd's answers, not its own questions.
    Deaf,
    Slow(Duration),
    /// etcd ends the term of whoever leads, again and again, while this node hears
    /// and is heard late: it writes when another one leads already.
    Usurped(Duration),
    /// Killed, and started again with a clock so many milliseconds ahead.
    Clock(i64),
}

/// A small generator: the same numbers from the same seed, for ever.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }

    fn fault(&mut self) -> Fault {
        match self.below(12) {
            0 => Fault::KillNode,
            1 => Fault::KillEtcd,
            2 => Fault::KillMachine,
            3 => Fault::PauseNode,
            4 => Fault::PauseEtcd,
            5 => Fault::CutOff,
            6 | 7 => Fault::Deaf,
            8 => Fault::Slow(self.millis(20, 400)),
            9 | 10 => Fault::Usurped(self.millis(20, 400)),
            _ => Fault::Clock(self.below(12_000) as i64 - 6_000),
        }
    }
}

/// A signature and when it was asked for.
struct Signed {
    asked_at: Instant,
    got_at: Instant,
    got_ns: u64,
    number: u64,
    signature: Signature,
}

/// Asks for signatures all the time, of all nodes at once.
struct Load {
    signed: Arc<Mutex<Vec<Signed>>>,
    task: JoinHandle<()>,
}

impl Load {
    fn start(client: Client) -> Self {
        let signed: Arc<Mutex<Vec<Signed>>> = Arc::default();
        let all = Arc::clone(&signed);
        let task = tokio::spawn(async move {
            for number in 0.. {
                let (client, all) = (client.clone(), Arc::clone(&all));
                tokio::spawn(async move {
                    let asked_at = Instant::now();
                    // An error is an answer, too.
                    if let Ok(signature) = client.sign(document(number), 0).await {
                        all.lock().unwrap().push(Signed {
                            asked_at,
                            got_at: Instant::now(),
                            got_ns: now_ns(),
                            number,
                            signature,
                        });
                    }
                });
                sleep(Duration::from_millis(60)).await;
            }
        });
        Self { signed, task }
    }

    /// How long after `since` somebody had a signature who asked after `since`.
    async fn resumes(&self, since: Instant) -> Duration {
        let mut took = None;
        until("signing resumes", async || {
            let signed = self.signed.lock().unwrap();
            let later = signed.iter().filter(|signed| signed.asked_at >= since);
            took = later.map(|signed| signed.got_at).min();
            took.is_some()
        })
        .await;
        took.unwrap() - since
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn document(number: u64) -> Imprint {
    hash(Algorithm::Sha256, &[&number.to_be_bytes()])
}

/// What a run measured.
pub struct Report {
    pub signatures: usize,
    pub seconds: usize,
    /// Writes that were done, refused, and of unknown outcome.
    pub writes: [usize; 3],
    /// For each strike: what it was, how many machines it hit, and how long nobody
    /// who asked from then on had a signature.
    pub faults: Vec<(String, usize, Duration)>,
}

pub async fn run(seed: u64) -> Report {
    let mut random = Random(seed);
    let mut world = World::new().await;
    for machine in 0..MACHINES {
        world.start_node(machine, 0).await;
    }
    let load = Load::start(world.client(0..MACHINES));
    load.resumes(Instant::now()).await;
    let mut faults = Vec::new();
    for _ in 0..3 {
        faults.push(strike(&mut world, &mut random, &load).await);
        sleep(random.millis(0, 700)).await;
    }
    let (signed, events) = conclude(&mut world, load).await;
    let writes = [Kind::Written, Kind::Refused, Kind::Unknown];
    let seconds: BTreeSet<Second> = signed
        .iter()
        .map(|signed| signed.signature.aggregation_time())
        .collect();
    Report {
        signatures: signed.len(),
        seconds: seconds.len(),
        writes: writes.map(|kind| events.iter().filter(|event| event.kind == kind).count()),
        faults,
    }
}

/// One fault, or two at a time at different machines; then all is mended.
async fn strike(world: &mut World, random: &mut Random, load: &Load) -> (String, usize, Duration) {
    let leader = world.leader().await;
    let first = match leader {
        Some(leader) if random.below(10) < 6 => leader,
        _ => random.below(MACHINES as u64) as usize,
    };
    let mut chosen = vec![(first, random.fault())];
    if random.below(4) == 0 {
        let second = (first + 1 + random.below(2) as usize) % MACHINES;
        chosen.push((second, random.fault()));
    }
    let mut told: Vec<String> = Vec::new();
    let (began, began_ns) = (Instant::now(), now_ns());
    for (machine, fault) in &chosen {
        let role = if leader == Some(*machine) {
            " (leads)"
        } else {
            ""
        };
        told.push(format!("{fault:?} at {machine}{role}"));
        inject(world, *machine, *fault).await;
    }
    sleep(random.millis(300, 5000)).await;
    for (machine, fault) in &chosen {
        mend(world, *machine, *fault).await;
    }
    let (told, took) = (told.join(", "), load.resumes(began).await);
    if chosen.len() == 1 && took > PROMISED {
        println!(
            "{took:?} after {told} that began at {began_ns} ns:\n{}",
            world.logs()
        );
    }
    (told, chosen.len(), took)
}

async fn inject(world: &mut World, machine: usize, fault: Fault) {
    match fault {
        Fault::KillNode | Fault::Clock(_) => world.kill_node(machine),
        Fault::KillEtcd => world.kill_etcd(machine),
        Fault::KillMachine => {
            world.kill_node(machine);
            world.kill_etcd(machine);
        }
        Fault::PauseNode => world.nodes[machine].as_ref().unwrap().process.pause(),
        Fault::PauseEtcd => world.etcds[machine].as_ref().unwrap().pause(),
        Fault::CutOff => world.cut_off(machine),
        Fault::Deaf => world.set_lines(machine, Line::Deaf),
        Fault::Slow(delay) => world.set_lines(machine, Line::Slow(delay)),
        Fault::Usurped(delay) => {
            world.set_lines(machine, Line::Slow(delay));
            for _ in 0..6 {
                sleep(2 * delay).await;
                world.depose().await;
            }
        }
    }
}

async fn mend(world: &mut World, machine: usize, fault: Fault) {
    match fault {
        Fault::KillNode => world.start_node(machine, 0).await,
        Fault::Clock(ahead_ms) => world.start_node(machine, ahead_ms).await,
        Fault::KillEtcd => world.start_etcd(machine),
        Fault::KillMachine => {
            world.start_etcd(machine);
            world.start_node(machine, 0).await;
        }
        Fault::PauseNode => world.nodes[machine].as_ref().unwrap().process.resume(),
        Fault::PauseEtcd => world.etcds[machine].as_ref().unwrap().resume(),
        Fault::CutOff => world.put_back(machine),
        Fault::Deaf | Fault::Slow(_) | Fault::Usurped(_) => world.set_lines(machine, Line::Good),
    }
}

/// Checks all that was answered, stops everything and checks all that happened.
async fn conclude(world: &mut World, load: Load) -> (Vec<Signed>, Vec<Event>) {
    load.resumes(Instant::now()).await;
    let Load { signed, task } = &load;
    task.abort();
    let signed = std::mem::take(&mut *signed.lock().unwrap());
    let last = signed.iter().map(|s| s.signature.aggregation_time()).max();
    let last = last.unwrap();
    let publications = published(world, last).await;
    for machine in 0..MACHINES {
        let node = world.client([machine]);
        until("every node has what was signed", async || {
            let config = node.extender_config().await;
            config.is_ok_and(|config| config.calendar_last >= Some(last))
        })
        .await;
    }
    let nodes: Vec<Client> = (0..MACHINES).map(|m| world.client([m])).collect();
    for signed in &signed {
        verify(signed, last, &publications, &nodes).await;
    }
    for machine in 0..MACHINES {
        world.stop_node(machine).await;
    }
    let mut events = world.history();
    events.extend(signed.iter().map(|signed| Event {
        time_ns: signed.got_ns,
        by: "client".to_owned(),
        kind: Kind::Signed,
        at: signed.signature.aggregation_time().0,
        root: signed.signature.aggregation_output().to_string(),
    }));
    if let Err(violation) = check(&events, &world.calendars(), last.0) {
        panic!("{violation}");
    }
    (signed, events)
}

/// The same publications file from every node, with a publication after `last`.
async fn published(world: &World, last: Second) -> PublicationsFile {
    let read = |file: &str| std::fs::read_to_string(world.folder(0).join(file)).unwrap();
    let anchors = TrustAnchors::from_pem(&read("certificate.pem")).unwrap();
    let constraint: Constraint = read("constraint").trim().parse().unwrap();
    let mut shown = BTreeSet::new();
    until("all nodes show the same new publication", async || {
        shown.clear();
        for machine in 0..MACHINES {
            let uri = world.publications_uri(machine);
            // Nothing is a file, too: not the same.
            let file = publications_file(&uri, &Options::default()).await;
            shown.insert(file.unwrap_or_default());
        }
        let decoded = shown.first().map(|bytes| PublicationsFile::decode(bytes));
        let newest = decoded.and_then(|file| Some(file.ok()?.latest()?.data.time));
        shown.len() == 1 && newest >= Some(last)
    })
    .await;
    let file = PublicationsFile::decode(shown.first().unwrap()).unwrap();
    file.verify(&anchors, &[constraint], file.created_at())
        .unwrap();
    file
}

/// By key, by publication, and by every node's calendar.
async fn verify(signed: &Signed, last: Second, publications: &PublicationsFile, nodes: &[Client]) {
    let Signed {
        number, signature, ..
    } = signed;
    let time = signature.aggregation_time();
    let verdict = |signature: &Signature, policy| {
        let mut context = Context::new(policy);
        context.document = Some(document(*number));
        context.publications = Some(publications);
        policy::verify(signature, &context)
    };
    let intact = Verdict::Intact { signed_at: time };
    assert_eq!(verdict(signature, Policy::Key), intact);
    let record = publications.latest().unwrap();
    let mut chains = Vec::new();
    for node in nodes {
        let extended = node.extend(signature, None, Some(record)).await.unwrap();
        assert_eq!(verdict(&extended, Policy::PublicationsFile), intact);
        chains.push(node.extend_calendar(time, Some(last)).await.unwrap());
    }
    for chain in &chains {
        assert_eq!(*chain, chains[0]);
        assert_eq!(chain.input, signature.calendar().unwrap().input);
    }
}

fn seed() -> u64 {
    let given = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(now_ns)
}

/// Runs one seed and says so, whatever comes of it.
async fn told(seed: u64) -> Report {
    println!("SEED={seed}");
    let report = run(seed).await;
    let Report {
        signatures,
        seconds,
        writes: [done, refused, unknown],
        faults,
    } = &report;
    println!(
        "SEED={seed}: {signatures} signatures in {seconds} rounds are whole; of the writes {done} \
         were done, {refused} refused, {unknown} unknown"
    );
    for (fault, _, took) in faults {
        println!("  {:5} ms  {fault}", took.as_millis());
    }
    report
}

/// A handful of seeds, other ones every time.
#[tokio::test(flavor = "multi_thread")]
async fn no_second_has_two_roots_whatever_fails() {
    if !has_etcd() {
        return;
    }
    let first = seed();
    for seed in first..first.saturating_add(SHORT) {
        told(seed).await;
    }
}

/// `CLUSTER_SEEDS` of them, `CLUSTER_PARALLEL` at a time, from `SEED` on.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the long form of the test above"]
async fn long() {
    let number = |key: &str, default| {
        let given = std::env::var(key).ok();
        given.map_or(default, |text| text.parse::<u64>().unwrap())
    };
    let (first, count) = (seed(), number("CLUSTER_SEEDS", 200));
    let mut waiting = first..first + count;
    let mut running = tokio::task::JoinSet::new();
    let mut took = Vec::new();
    let (mut passed, mut failed) = (0, Vec::new());
    loop {
        while (running.len() as u64) < number("CLUSTER_PARALLEL", 2)
            && let Some(seed) = waiting.next()
        {
            running.spawn(async move {
                let here = tokio::runtime::Handle::current();
                let outcome = tokio::task::spawn_blocking(move || here.block_on(told(seed)));
                (seed, outcome.await)
            });
        }
        let Some(done) = running.join_next().await else {
            break;
        };
        match done.unwrap() {
            (_, Ok(report)) => {
                passed += 1;
                took.extend(report.faults);
            }
            (seed, Err(e)) => {
                println!("SEED={seed} FAILED {e}");
                failed.push(seed);
            }
        }
    }
    println!("{passed} seeds passed, failed: {failed:?}");
    for (machines, what) in [(1, "one machine"), (2, "two machines at a time")] {
        let of = took.iter().filter(|(_, hit, _)| *hit == machines);
        let mut took: Vec<(Duration, &str)> = of.map(|(f, _, t)| (*t, f.as_str())).collect();
        took.sort();
        let Some((longest, fault)) = took.last() else {
            continue;
        };
        let at = |percent: usize| took[took.len() * percent / 100].0.as_millis();
        println!(
            "faults of {what}: {}; signing resumed after p50 {} ms, p90 {} ms, p99 {} ms, \
             at most {} ms ({fault})",
            took.len(),
            at(50),
            at(90),
            at(99),
            longest.as_millis(),
        );
    }
    assert!(failed.is_empty(), "{failed:?}");
}

/// What one fault is to cost at most, with time to spare on the machine. Not asserted:
/// it would be the machine's load that is tested. The nodes' logs are shown instead.
const PROMISED: Duration = Duration::from_secs(5);
/// Runs in CI: each takes about a quarter of a minute.
const SHORT: u64 = 2;
