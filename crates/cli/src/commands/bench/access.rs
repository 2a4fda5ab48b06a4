//! How soon a patient's complete access list is there, with its proof.
//!
//! A trail is written as a guardian writes it, vault and seals included, with the lines
//! of each patient spread evenly from its beginning to its end: the worst case, for a
//! list that long touches as many blocks and segments as it can. Then lists of patients
//! by chance are asked for, each as an encoded evidence file: lines, what they disclose,
//! paths to their blocks, seals, paths to the cosigned head, and the map's proof that
//! nothing is missing. Every one of them is judged by the ordinary verifier, outside of
//! the time. Files stay in the system's cache. Beside the clock's time stands that of the
//! processor, which others on the machine disturb least.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pitser_client::{Client, Endpoint, Options, publications_file};
use pitser_evidence::anchors::{AuthorityAnchor, KeyAnchor, TrailAnchor};
use pitser_evidence::codec::Digest;
use pitser_evidence::line::{Binding, Op, Timestamp};
use pitser_evidence::{Anchors, Evidence, StepState, verify};
use pitser_tlog::note::CosigningKey;
use pitser_trail::export::Exporter;
use pitser_trail::{Draft, DraftActor, GenesisDraft, Layout, PatientId, Row, TableDraft, Trail};
use tokio::task::JoinSet;

use super::rounded;
use super::server::Authority;
use crate::clock;
use crate::files::Folder;
use crate::outcome::{Exit, Failure, Outcome};
use crate::output::{Form, Progress};
use crate::service;
use crate::tree::Map;

/// The command's arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Lines about patients, rows of ten columns and 250 bytes; each takes 1.2 kB on disk
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1_000..=1_000_000_000))]
    lines: u64,
    /// Patients whom the lines are about in turn [default: a hundredth of the lines]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    patients: Option<u64>,
    /// Lines in a block, as many as a busy source writes in a second
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=30_000))]
    block: u64,
    /// Patients whose lists are asked for, by chance
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    asked: u64,
    #[command(flatten)]
    form: Form,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Outcome {
    let folder = Folder::temporary()?;
    let facts = service::block_on(measure(args, &folder.path))?;
    args.form.show(&facts)?;
    Ok(Exit::Intact)
}

async fn measure(args: &Args, folder: &Path) -> Result<Map, Failure> {
    let patients = args.patients.unwrap_or(args.lines / 100).max(1);
    let authority = Authority::start(folder, "")?;
    let layout = Layout::new(folder.join("trail"));
    let written = write(args, patients, &layout, &authority).await?;
    let publications = authority.text("publications");
    let verifier = Verifier {
        anchors: written.anchors,
        publications: publications_file(publications, &Options::default()).await?,
        lines: args.lines / patients..=args.lines.div_ceil(patients),
    };
    let chosen: Vec<String> = chosen(args.asked, patients)?;
    let mut progress = Progress::new("lists");
    let (mut opened_once, mut opened_each_time) = (Vec::new(), Vec::new());
    let (mut bytes, mut lines, mut blocks) = (Vec::new(), Vec::new(), Vec::new());
    // The first list after segments were closed pays for notes that stay (`outlines/`).
    let (first, _) = list(&mut opened(&layout)?, &chosen[0], &verifier.publications)?;
    let begun = Began::now();
    let mut exporter = opened(&layout)?;
    let opening = begun.cost();
    for (done, patient) in (1..).zip(&chosen) {
        let (took, list) = list(&mut exporter, patient, &verifier.publications)?;
        let evidence = verifier.judge(&list)?;
        opened_once.push(took);
        bytes.push(list.len() as u64);
        lines.push(evidence.lines.len() as u64);
        blocks.push(evidence.blocks.len() as u64);
        progress.set_of(done, Some(2 * args.asked));
    }
    drop(exporter);
    for (done, patient) in (args.asked + 1..).zip(&chosen) {
        let begun = Began::now();
        let (_, list) = list(&mut opened(&layout)?, patient, &verifier.publications)?;
        opened_each_time.push(begun.cost());
        verifier.judge(&list)?;
        progress.set_of(done, Some(2 * args.asked));
    }
    progress.finish();
    Ok(Map::new()
        .with("lines", args.lines)
        .with("patients", patients)
        .with("blocks", written.blocks)
        .with("written_s", written.took.as_secs())
        .with("disk_mb", disk_bytes(layout.dir())? / 1_000_000)
        .with("list_lines", middle(lines))
        .with("list_blocks", middle(blocks))
        .with("list_bytes", middle(bytes))
        .with("verified", 2 * args.asked)
        .with("opened_once_ms", percentiles(opened_once))
        .with("opened_each_time_ms", percentiles(opened_each_time))
        .with("open_ms", rounded(millis(opening.clock)))
        .with("first_list_ms", rounded(millis(first.clock))))
}

fn opened(layout: &Layout) -> Result<Exporter, Failure> {
    Exporter::open_at_head(layout.clone()).map_err(Failure::service)
}

/// When something began, by the clock and by this thread's processor time.
struct Began {
    at: Instant,
    cpu: Duration,
}

/// What it took.
#[derive(Clone, Copy)]
struct Cost {
    clock: Duration,
    cpu: Duration,
}

impl Began {
    fn now() -> Self {
        Self {
            at: Instant::now(),
            cpu: thread_cpu(),
        }
    }

    fn cost(&self) -> Cost {
        Cost {
            clock: self.at.elapsed(),
            cpu: thread_cpu().saturating_sub(self.cpu),
        }
    }
}

/// Processor time that this thread has used; none where the system does not tell.
fn thread_cpu() -> Duration {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ns = told.split(' ').next().and_then(|ns| ns.parse().ok());
    Duration::from_nanos(ns.unwrap_or_default())
}

/// A patient's list as an evidence file, and what it took.
fn list(
    exporter: &mut Exporter,
    patient: &str,
    publications: &[u8],
) -> Result<(Cost, Vec<u8>), Failure> {
    let begun = Began::now();
    let publications = Some(publications.to_vec());
    let evidence = exporter.evidence(patient, None, publications, |_, seal| seal.to_vec());
    let file = evidence.map_err(Failure::service)?.encode();
    Ok((begun.cost(), file))
}

/// Patients by chance.
fn chosen(asked: u64, patients: u64) -> Result<Vec<String>, Failure> {
    let mut chosen = Vec::new();
    for _ in 0..asked {
        let mut bytes = [0; 8];
        getrandom::getrandom(&mut bytes).map_err(Failure::service)?;
        chosen.push(patient(u64::from_be_bytes(bytes) % patients));
    }
    Ok(chosen)
}

fn patient(number: u64) -> String {
    format!("patient-{number:08}")
}

/// Judges lists as somebody does who gets them.
struct Verifier {
    anchors: Anchors,
    publications: Vec<u8>,
    /// How many lines a patient has.
    lines: std::ops::RangeInclusive<u64>,
}

impl Verifier {
    /// All must hold, but that no auditor has signed the map.
    fn judge(&self, file: &[u8]) -> Result<Evidence, Failure> {
        let evidence = Evidence::decode(file).map_err(Failure::service)?;
        let report = verify(&evidence, Some(&self.anchors), clock::now());
        let holds = |step: &pitser_evidence::Step| match step.state {
            StepState::Matches => true,
            StepState::Waiting => step.name == "audit",
            StepState::Broken => false,
        };
        if let Some(step) = report.steps.iter().find(|step| !holds(step)) {
            let text = format!("a list does not verify: {}: {}", step.name, step.text);
            return Err(Failure::Service(text));
        }
        let lines = evidence.lines.len() as u64;
        if !self.lines.contains(&lines) {
            let expected = &self.lines;
            return Err(Failure::Service(format!(
                "a list has {lines} lines, and should have {expected:?}"
            )));
        }
        Ok(evidence)
    }
}

/// A trail that was written.
struct Written {
    anchors: Anchors,
    blocks: u64,
    took: Duration,
}

/// Blocks whose seals are asked for together, in one of the authority's rounds.
const SEALED_TOGETHER: usize = 512;
/// Lines that are prepared together, as a guardian does.
const TOGETHER: u64 = 500;

async fn write(
    args: &Args,
    patients: u64,
    layout: &Layout,
    authority: &Authority,
) -> Result<Written, Failure> {
    let begun = Instant::now();
    let endpoint = Endpoint::parse(&authority.service()).map_err(Failure::service)?;
    let client = Client::connect(endpoint).await?;
    let mut progress = Progress::new("lines written");
    let mut trail = create(layout.clone())?;
    let rows = Rows::new(patients);
    let mut next = 0;
    while next < args.lines {
        let end = args.lines.min(next + args.block);
        while next < end {
            let to = end.min(next + TOGETHER);
            let events = (next..to).map(|number| rows.event(number).map(|draft| vec![draft]));
            let events = events.collect::<Result<_, _>>()?;
            trail.append_all(events).map_err(Failure::service)?;
            next = to;
        }
        close_block(&mut trail)?;
        if trail.unsealed().count() >= SEALED_TOGETHER {
            seal(&mut trail, &client).await?;
        }
        progress.set_of(next, Some(args.lines));
    }
    seal(&mut trail, &client).await?;
    progress.finish();
    let anchors = cosigned(&mut trail, authority)?;
    let blocks = trail.blocks();
    // The map is made durable as of the last block.
    drop(trail);
    let took = begun.elapsed();
    Ok(Written {
        anchors,
        blocks,
        took,
    })
}

const ORIGIN: &str = "bench.example/records";
const TABLE: &str = "public.observation";
const COLUMNS: [&str; 10] = [
    "id", "patient", "code", "status", "value", "unit", "taken_at", "device", "place", "note",
];

fn create(layout: Layout) -> Result<Trail, Failure> {
    let draft = GenesisDraft {
        at: now()?,
        system: "bench".into(),
        timeline: 1,
        pos: "0".into(),
        source: "bench".into(),
        tables: vec![TableDraft {
            name: TABLE.into(),
            columns: COLUMNS.map(str::to_owned).to_vec(),
            key: vec!["id".into()],
            patient: "patient".into(),
        }],
        uncovered: vec![],
    };
    Trail::create(layout, ORIGIN, &draft).map_err(Failure::service)
}

fn now() -> Result<Timestamp, Failure> {
    Timestamp::from_micros(clock::micros()).map_err(Failure::service)
}

/// What is written: row after row, by patients in turn.
struct Rows {
    names: Arc<[String]>,
    patients: u64,
}

impl Rows {
    fn new(patients: u64) -> Self {
        Self {
            names: COLUMNS.map(str::to_owned).into(),
            patients,
        }
    }

    fn event(&self, number: u64) -> Result<Draft, Failure> {
        let whose = patient(number % self.patients);
        let id = format!("{number:>12}");
        let value = |(at, name): (usize, &String)| {
            let text = match at {
                0 => id.clone(),
                1 => whose.clone(),
                _ => format!("{name} of {number:>16} {:.<4}", at),
            };
            Some(text.into_bytes().into())
        };
        Ok(Draft {
            tx: Some(number / 10),
            table: Some(TABLE.into()),
            key: Some(vec![id.clone().into_bytes()]),
            patient: Some(PatientId::Id(whose.clone())),
            actor: Some(DraftActor {
                app: Some("ward".into()),
                binding: Binding::C,
                client: Some("192.0.2.7".into()),
                person: Some(format!("person-{}", number % 997)),
                role: Some("app".into()),
            }),
            row: Some(Row {
                names: Arc::clone(&self.names),
                values: self.names.iter().enumerate().map(value).collect(),
            }),
            ..Draft::new(Op::Create, now()?, "bench", format!("{number:016X}"))
        })
    }
}

fn close_block(trail: &mut Trail) -> Result<(), Failure> {
    let pos = trail.blocks().to_string();
    let mapping = Digest::of(&[b"patient"]);
    let closed = trail.close_block(now()?, &pos, mapping, "It is full.");
    closed.map(drop).map_err(Failure::service)
}

/// Has all waiting blocks sealed.
async fn seal(trail: &mut Trail, client: &Client) -> Result<(), Failure> {
    let mut asked = JoinSet::new();
    for block in trail.unsealed().cloned() {
        let client = client.clone();
        asked.spawn(async move {
            let signature = client.sign(block.root, block.level).await;
            signature.map(|signature| (block.block, signature.encode()))
        });
    }
    let mut seals = asked
        .join_all()
        .await
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    seals.sort_unstable();
    for (block, seal) in seals {
        trail.add_seal(block, &seal).map_err(Failure::service)?;
    }
    Ok(())
}

/// Has the head cosigned, by a witness who has just come; gives what a verifier trusts.
fn cosigned(trail: &mut Trail, authority: &Authority) -> Result<Anchors, Failure> {
    let mut seed = [0; 32];
    getrandom::getrandom(&mut seed).map_err(Failure::service)?;
    let witness = CosigningKey::from_seed("witness.bench.example", &seed);
    let witness = witness.map_err(Failure::service)?;
    let mut head = trail.sign_head();
    let cosignature = witness.cosign(head.text(), clock::now().0);
    head.add(cosignature).map_err(Failure::service)?;
    trail.store_head(&head).map_err(Failure::service)?;
    let certificate = std::fs::read_to_string(authority.text("certificate"));
    Ok(Anchors {
        version: 1,
        witness_quorum: 1,
        trails: vec![TrailAnchor {
            origin: ORIGIN.into(),
            genesis: trail.genesis_hash(),
        }],
        publications: Vec::new(),
        authorities: vec![AuthorityAnchor {
            certificate: certificate.map_err(Failure::service)?,
            constraints: vec![authority.text("constraint").to_owned()],
        }],
        witnesses: vec![KeyAnchor::new(witness.verifier())],
        auditors: Vec::new(),
        calendar_log: None,
    })
}

fn middle(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// By the clock; of processor time the middle.
fn percentiles(costs: Vec<Cost>) -> Map {
    let sorted = |of: fn(&Cost) -> Duration| {
        let mut all: Vec<Duration> = costs.iter().map(of).collect();
        all.sort_unstable();
        all
    };
    let at = |all: &[Duration], percent: usize| {
        let at = (all.len() * percent).div_ceil(100).max(1) - 1;
        rounded(millis(all[at]))
    };
    let (clock, cpu) = (sorted(|cost| cost.clock), sorted(|cost| cost.cpu));
    Map::new()
        .with("p50", at(&clock, 50))
        .with("p99", at(&clock, 99))
        .with("cpu_p50", at(&cpu, 50))
}

fn millis(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

/// Bytes of all files below `folder`.
fn disk_bytes(folder: &Path) -> Result<u64, Failure> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).map_err(Failure::service)? {
        let entry = entry.map_err(Failure::service)?;
        let found = entry.metadata().map_err(Failure::service)?;
        bytes += match found.is_dir() {
            true => disk_bytes(&entry.path())?,
            false => found.len(),
        };
    }
    Ok(bytes)
}
