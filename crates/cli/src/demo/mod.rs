//! `pitser demo`: the whole story in one process, on real input. Every step
//! really happens, and the exit code says whether every one did.

mod hospital;
mod stage;

use crate::clock;
use crate::outcome::{Exit, Failure, Outcome};
use hospital::{Hospital, Target};
use pitser_authority::{Authority, AuthorityHandle, Config as AuthorityConfig, Micros, User};
use pitser_client::{Client, Endpoint};
use pitser_evidence::anchors::{AuthorityAnchor, KeyAnchor, PublicationAnchor, TrailAnchor};
use pitser_evidence::{Anchors, Evidence, Verdict};
use pitser_guardian::config::{Kind, Source, Tuning};
use pitser_guardian::{FindingStatus, Guardian, Handle, Parts, audit, init};
use pitser_ksi::pki::Subject;
use pitser_ksi::publication::PublicationData;
use pitser_tlog::note::{CosigningKey, Note, SigningKey, VerifierKey};
use pitser_trail::export::Exporter;
use pitser_witness::{ClockedWitness, Log, Peer, SqliteStore, Witness};
use serde_json::json;
use stage::Stage;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the guardian may take to notice what it must notice.
const PATIENCE: Duration = Duration::from_secs(30);
const MARKER: &str = ".pitser-demo";
const USER: &str = "demo";

/// Arguments of `pitser demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder for everything the demo makes; an earlier demo in it is replaced
    #[arg(long, default_value = "pitser-demo")]
    dir: PathBuf,
    /// Exit when the story is told, instead of guarding on
    #[arg(long)]
    once: bool,
    /// Print one JSON object as the last line, and nothing else on standard output
    #[arg(long)]
    json: bool,
    /// Address of the status page; by default 127.0.0.1:7070, or any free port if that is taken
    #[arg(long)]
    listen: Option<SocketAddr>,
}

/// Runs the demo.
pub(crate) async fn run(args: Args) -> Outcome {
    let stage = Stage::new(args.json);
    prepare(&args.dir)?;
    let mut demo = Demo::start(&args, &stage).await?;
    let summary = demo.play(&stage).await?;
    let passed = summary.verdict == Verdict::Intact.as_str();
    demo.close(&args, &stage, &summary).await?;
    Ok(if passed { Exit::Intact } else { Exit::Broken })
}

/// An empty folder, or one that an earlier demo made.
fn prepare(dir: &Path) -> Result<(), Failure> {
    if dir.join(MARKER).exists() {
        std::fs::remove_dir_all(dir).map_err(Failure::service)?;
    }
    let mut there = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir_all(dir)
                .map_err(|e| Failure::Service(format!("{}: {e}", dir.display())))?;
            std::fs::read_dir(dir).map_err(Failure::service)?
        }
        Err(e) => return Err(Failure::Service(format!("{}: {e}", dir.display()))),
    };
    if there.next().is_some() {
        return Err(Failure::Input(format!(
            "{} is not empty and no earlier demo made it: choose another folder with --dir",
            dir.display()
        )));
    }
    std::fs::write(
        dir.join(MARKER),
        "Made by `pitser demo`, which may delete this folder.\n",
    )
    .map_err(Failure::service)
}

/// Everything that runs.
struct Demo {
    dir: PathBuf,
    authority: AuthorityHandle,
    client: Client,
    witness: VerifierKey,
    guardian: Handle,
    web: pitser_web::ServerHandle,
    hospital: Hospital,
    tuning: Tuning,
    source: Source,
    genesis: String,
}

/// What the last line says.
struct Summary {
    verdict: &'static str,
    evidence: PathBuf,
    anchors: PathBuf,
    findings: Vec<Detected>,
}

struct Detected {
    finding: FindingStatus,
    detected_ms: u64,
}

impl Demo {
    async fn start(args: &Args, stage: &Stage) -> Result<Self, Failure> {
        let dir = args.dir.clone();
        let authority = start_authority(&dir).await?;
        let uri = format!("ksi+tcp://{USER}:{USER}@{}", authority.tcp_address());
        let client = Client::connect(Endpoint::parse(&uri).map_err(Failure::input)?)
            .await
            .map_err(Failure::service)?;
        stage.done(
            "authority",
            format!("one round a second on {}", authority.tcp_address()),
        );

        let mut bar = stage.bar("hospital", 3150);
        let hospital = Hospital::create(&dir.join("hospital.db"), |n| bar.set(n))?;
        bar.finish(format!(
            "{} records of 31 March in {}",
            bar.position(),
            dir.join("hospital.db").display()
        ));

        let source = Source {
            patient: Hospital::patient_paths(),
            resources: Hospital::resources(),
            ..Source::new(
                "clinic",
                Kind::Sqlite,
                &dir.join("hospital.db").display().to_string(),
                &["*"],
            )
        };
        let tuning = Tuning {
            scan_every_s: 2,
            cosign_every_s: 5,
            witness_quorum: 1,
            ..Tuning::new("demo.example", dir.join("guard"))
        };
        let plan = init::install(&source, &tuning, &clock::shared(), &mut |_| {})
            .map_err(Failure::service)?;
        let genesis = plan.genesis.unwrap_or_default();
        stage.done(
            "guardian",
            format!(
                "{} tables, trail demo.example/clinic begins with {}…",
                plan.tables.len(),
                short(&genesis)
            ),
        );

        let (peer, witness) = start_witness(&dir, &tuning, &source)?;
        stage.done(
            "witness",
            format!("{} cosigns the trail's heads", witness.name()),
        );

        let guardian = Guardian::start(Parts {
            source: source.clone(),
            tuning: tuning.clone(),
            client: Some(client.clone()),
            witnesses: vec![peer],
            fleet: None,
            clock: clock::shared(),
        })
        .map_err(Failure::service)?;
        let web = start_web(args.listen, &guardian).await?;
        Ok(Self {
            dir,
            authority,
            client,
            witness,
            guardian,
            web,
            hospital,
            tuning,
            source,
            genesis,
        })
    }

    async fn play(&mut self, stage: &Stage) -> Result<Summary, Failure> {
        self.baseline(stage).await?;
        self.april(stage).await?;
        self.reads(stage).await?;
        self.publish(stage).await?;

        let edited = self.hospital.value_to_edit()?;
        let deleted = self.hospital.row_to_delete(&edited)?;
        let findings = vec![
            self.edit(stage, &edited).await?,
            self.delete(stage, &deleted).await?,
        ];

        self.guardian.settle().await.map_err(Failure::Service)?;
        let codes = self.publish(stage).await?;
        let (evidence, anchors) = self.export(stage, &edited.patient, codes).await?;
        let verdict = self.judge(stage, &evidence, &anchors)?;
        Ok(Summary {
            verdict,
            evidence,
            anchors,
            findings,
        })
    }

    async fn baseline(&self, stage: &Stage) -> Result<(), Failure> {
        let wait = stage.spinner("sealing", "the rows that are already there");
        let sealed = self
            .guardian
            .wait_for(|s| s.blocks > 0 && s.unsealed == 0 && s.sealed_up_to.is_some())
            .await;
        let status = sealed.ok_or_else(|| Failure::Service("the guardian stopped".into()))?;
        wait.finish(format!(
            "{} lines sealed at {}",
            status.lines,
            status.sealed_up_to.unwrap_or_default()
        ));
        Ok(())
    }

    async fn april(&mut self, stage: &Stage) -> Result<(), Failure> {
        let changes = Hospital::april()?;
        let mut bar = stage.bar("april", changes.len() as u64);
        let (created, updated) =
            tokio::task::block_in_place(|| self.hospital.apply(&changes, |n| bar.set(n)))?;
        bar.finish(format!("{created} records created and {updated} updated by the application, each by a named person"));
        Ok(())
    }

    async fn reads(&self, stage: &Stage) -> Result<(), Failure> {
        let events = self.hospital.reads(40, &clock::now().to_string())?;
        let count = events.len();
        let mut bar = stage.bar("reads", count as u64);
        for (number, event) in events.into_iter().enumerate() {
            stage::post_json(self.web.address(), "/fhir/AuditEvent", event).await?;
            bar.set(number as u64 + 1);
        }
        bar.finish(format!(
            "{count} AuditEvents taken at http://{}/fhir/AuditEvent",
            self.web.address()
        ));
        Ok(())
    }

    async fn publish(&self, stage: &Stage) -> Result<Vec<PublicationData>, Failure> {
        self.guardian.settle().await.map_err(Failure::Service)?;
        let published = self.authority.publish().await.map_err(Failure::service)?;
        stage.done(
            "published",
            format!("{} for {}", published.code, published.data.time),
        );
        Ok(vec![published.data])
    }

    /// The first insider: one digit, in the file, past every trigger.
    async fn edit(&self, stage: &Stage, target: &Target) -> Result<Detected, Failure> {
        let edited_at = clock::micros();
        let (offset, value) = self.hospital.edit_file(target)?;
        stage.attack(
            "insider 1",
            format!(
                "edits byte {offset} of the file: {} becomes {value}",
                target.value
            ),
        );
        self.caught(stage, "ROW-01", target, edited_at).await
    }

    /// The second insider: plain SQL, naming nobody.
    async fn delete(&self, stage: &Stage, target: &Target) -> Result<Detected, Failure> {
        let deleted_at = clock::micros();
        self.hospital.delete_row(target)?;
        stage.attack("insider 2", "deletes a row with plain SQL");
        self.caught(stage, "ACT-01", target, deleted_at).await
    }

    async fn caught(
        &self,
        stage: &Stage,
        code: &str,
        target: &Target,
        since: u64,
    ) -> Result<Detected, Failure> {
        let is_it = |f: &FindingStatus| {
            f.code == code
                && f.table.as_deref() == Some(&target.table)
                && f.key.as_deref() == Some(&target.id)
        };
        let found = tokio::time::timeout(
            PATIENCE,
            self.guardian.wait_for(|s| s.findings.iter().any(is_it)),
        )
        .await;
        let status = found.ok().flatten().ok_or_else(|| {
            Failure::Service(format!(
                "{code} on {} was not raised within {PATIENCE:?}",
                target.table
            ))
        })?;
        let finding = status
            .findings
            .into_iter()
            .find(is_it)
            .ok_or_else(|| Failure::Service("finding vanished".into()))?;
        let detected_ms = finding.found_at_us.saturating_sub(since) / 1000;
        let columns = if finding.columns.is_empty() {
            String::new()
        } else {
            format!(", columns {}", finding.columns.join(", "))
        };
        stage.finding(
            code,
            format!(
                "{} {}{columns}: {} ({detected_ms} ms)",
                target.table, target.id, finding.text
            ),
        );
        Ok(Detected {
            finding,
            detected_ms,
        })
    }

    /// An independent replay, the evidence file, and the verifier's own anchors.
    async fn export(
        &self,
        stage: &Stage,
        patient: &str,
        codes: Vec<PublicationData>,
    ) -> Result<(PathBuf, PathBuf), Failure> {
        let layout = self.tuning.layout(&self.source);
        let head = std::fs::read(layout.head()).map_err(Failure::service)?;
        let head = Note::parse(&head).map_err(Failure::service)?;
        let auditor =
            SigningKey::from_seed("auditor.demo.example", &random()?).map_err(Failure::service)?;
        let origin = self.tuning.origin(&self.source);
        let known = audit::Known {
            origin: origin.clone(),
            genesis: self.genesis.parse().map_err(Failure::service)?,
            witnesses: vec![self.witness.clone()],
            quorum: 1,
        };
        let statement = audit::replay(&layout, &head, &known, &auditor, clock::now())
            .map_err(Failure::service)?;
        pitser_trail::disk::replace(&layout.audit(), statement.to_string().as_bytes())
            .map_err(Failure::service)?;
        stage.done(
            "auditor",
            format!("{} replayed every line and signed the map", auditor.name()),
        );

        let mut exporter = Exporter::open_at_head(layout).map_err(Failure::service)?;
        let listed = exporter.list(patient).map_err(Failure::service)?;
        let seals = exporter.seals(&listed).map_err(Failure::service)?;
        let seals = extended(&self.client, seals, &self.authority, &codes).await?;
        let evidence = exporter
            .evidence_of(
                listed,
                Some(statement.to_string()),
                Some(self.authority.publications_file().to_vec()),
                |block, seal| seals.get(&block).cloned().unwrap_or_else(|| seal.to_vec()),
            )
            .map_err(Failure::service)?;
        let evidence_path = self.dir.join(format!("evidence-{patient}.json"));
        std::fs::write(&evidence_path, evidence.encode()).map_err(Failure::service)?;
        stage.done(
            "evidence",
            format!(
                "{} lines on one patient in {}",
                evidence.lines.len(),
                evidence_path.display()
            ),
        );

        let anchors = Anchors {
            version: 1,
            witness_quorum: 1,
            trails: vec![TrailAnchor {
                origin,
                genesis: known.genesis,
            }],
            publications: codes
                .into_iter()
                .map(|code| PublicationAnchor { code })
                .collect(),
            authorities: vec![AuthorityAnchor {
                certificate: self.authority.certificate_pem().to_owned(),
                constraints: vec![self.authority.constraint().to_owned()],
            }],
            witnesses: vec![KeyAnchor::new(self.witness.clone())],
            auditors: vec![KeyAnchor::new(auditor.verifier())],
            calendar_log: None,
        };
        let anchors_path = self.dir.join("anchors.toml");
        std::fs::write(&anchors_path, anchors.to_toml()).map_err(Failure::service)?;
        stage.done(
            "anchors",
            format!(
                "what a verifier brings along, in {}",
                anchors_path.display()
            ),
        );
        Ok((evidence_path, anchors_path))
    }

    /// As `pitser verify` does it: from the two files alone.
    fn judge(
        &self,
        stage: &Stage,
        evidence: &Path,
        anchors: &Path,
    ) -> Result<&'static str, Failure> {
        let bytes = std::fs::read(evidence).map_err(Failure::service)?;
        let evidence = Evidence::decode(&bytes).map_err(Failure::input)?;
        let text = std::fs::read_to_string(anchors).map_err(Failure::service)?;
        let anchors = Anchors::from_toml(&text).map_err(Failure::input)?;
        let report = pitser_evidence::verify(&evidence, Some(&anchors), clock::now());
        stage.verdict(&report);
        Ok(report.verdict.as_str())
    }

    async fn close(self, args: &Args, stage: &Stage, summary: &Summary) -> Result<(), Failure> {
        let status = self.guardian.status();
        let latency = status.seal_latency_ms;
        let url = format!("http://{}/", self.web.address());
        write_config(&self.dir, &self.source, self.web.address())?;
        let record = summary
            .findings
            .first()
            .and_then(|d| d.finding.key.as_deref())
            .unwrap_or_default();
        stage.invite(
            &url,
            &self.dir,
            &summary.evidence,
            &summary.anchors,
            record,
            args.once,
        );
        stage.summary(&json!({
            "events": status.events,
            "blocks": status.blocks,
            "findings": summary.findings.iter().map(|d| json!({
                "code": d.finding.code,
                "table": d.finding.table,
                "key": d.finding.key,
                "columns": d.finding.columns,
                "detected_ms": d.detected_ms,
            })).collect::<Vec<_>>(),
            "evidence": {
                "path": summary.evidence,
                "anchors": summary.anchors,
                "verdict": summary.verdict,
            },
            "seal_latency_ms": { "p50": latency.map(|l| l.p50), "p99": latency.map(|l| l.p99) },
            "status_page": url,
        }));
        if !args.once {
            crate::signals::stop_requested().await;
        }
        self.guardian.stop().await;
        self.web.stop().await;
        self.authority.shutdown().await.map_err(Failure::service)?;
        Ok(())
    }
}

async fn start_authority(dir: &Path) -> Result<AuthorityHandle, Failure> {
    let authority_dir = dir.join("authority");
    let subject = Subject {
        country: "EE".into(),
        organization: "Pitser demo".into(),
        common_name: "Pitser demo authority".into(),
        email: "publications@demo.example".into(),
    };
    Authority::init(&authority_dir, clock::now(), &subject).map_err(Failure::service)?;
    let config = AuthorityConfig {
        publish_every_s: 0,
        ..AuthorityConfig::new(&authority_dir)
    }
    .with_user(User::new(USER, USER.as_bytes()));
    Authority::start(config, || Micros(clock::micros()))
        .await
        .map_err(Failure::service)
}

fn start_witness(
    dir: &Path,
    tuning: &Tuning,
    source: &Source,
) -> Result<(Peer, VerifierKey), Failure> {
    let keys = pitser_trail::Keys::open(&tuning.layout(source)).map_err(Failure::service)?;
    let key =
        CosigningKey::from_seed("witness.demo.example", &random()?).map_err(Failure::service)?;
    let store = SqliteStore::open(dir.join("witness.db")).map_err(Failure::service)?;
    let mut witness = Witness::new(key, store);
    let log = Log::new(keys.log().verifier());
    witness.add_log(&log).map_err(Failure::service)?;
    let verifier = witness.verifier();
    let clocked = ClockedWitness::new(witness, || clock::now().0);
    Ok((Peer::new(Box::new(clocked), verifier.clone()), verifier))
}

/// The wished address, or any free port if nobody wished for one.
async fn start_web(
    listen: Option<SocketAddr>,
    guardian: &Handle,
) -> Result<pitser_web::ServerHandle, Failure> {
    let usual = SocketAddr::from(([127, 0, 0, 1], 7070));
    let first = pitser_web::Server::start(listen.unwrap_or(usual), vec![guardian.clone()]);
    match (first, listen) {
        (Ok(web), _) => Ok(web),
        (Err(error), Some(_)) => Err(Failure::service(error)),
        (Err(_), None) => {
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            pitser_web::Server::start(any, vec![guardian.clone()]).map_err(Failure::service)
        }
    }
}

/// Seals, extended to the newest publication.
async fn extended(
    client: &Client,
    seals: Vec<(u64, Vec<u8>)>,
    authority: &AuthorityHandle,
    codes: &[PublicationData],
) -> Result<HashMap<u64, Vec<u8>>, Failure> {
    let file =
        pitser_ksi::publications_file::PublicationsFile::decode(&authority.publications_file())
            .map_err(Failure::service)?;
    let Some(record) = codes.first().and_then(|code| file.at_time(code.time)) else {
        return Ok(HashMap::new());
    };
    crate::seals::extended(client, seals, record).await
}

/// The configuration with which other commands find what the demo made.
fn write_config(dir: &Path, source: &Source, listen: SocketAddr) -> Result<(), Failure> {
    let table = |map: &std::collections::BTreeMap<String, String>| {
        map.iter()
            .map(|(k, v)| format!("{k} = {v:?}\n"))
            .collect::<String>()
    };
    let text = format!(
        "# Written by `pitser demo`.\n\
         [authority]\naggregator = \"embedded\"\n\n\
         [guard]\norganisation = \"demo.example\"\ndata = \"guard\"\nlisten = \"{listen}\"\n\n\
         [[source]]\nname = \"{}\"\nkind = \"sqlite\"\nurl = \"hospital.db\"\ntables = [\"*\"]\n\n\
         [source.patient]\n{}\n[source.resources]\n{}",
        source.name,
        table(&source.patient),
        table(&source.resources)
    );
    std::fs::write(dir.join("pitser.toml"), text).map_err(Failure::service)
}

fn random() -> Result<[u8; 32], Failure> {
    let mut bytes = [0; 32];
    getrandom::getrandom(&mut bytes).map_err(Failure::service)?;
    Ok(bytes)
}

fn short(imprint: &str) -> &str {
    imprint.get(..18).unwrap_or(imprint)
}
