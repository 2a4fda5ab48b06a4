//! The status page with made-up guardians, to look at and to work on:
//! `cargo run -p pitser-web --example page`.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pitser_guardian::acceptance;
use pitser_guardian::approver::Refused;
use pitser_guardian::audit::Desk;
use pitser_guardian::erasure::{Answer, Asked};
use pitser_guardian::{
    AcceptedStatus, BaselineStatus, BlockStatus, FindingStatus, ScanSummary, SourceState, Status,
    SubmitError,
};
use pitser_web::{Guarded, Server, Taken, WebError};
use tokio::sync::watch;

#[tokio::main]
async fn main() -> Result<(), WebError> {
    let mut servers = Vec::new();
    for (port, what, sources) in [
        (7070, "all is well", vec![intact("ehr")]),
        (7071, "tampered with", vec![tampered()]),
        (7072, "no authority", vec![unsealed()]),
        (7073, "first rows", vec![baseline()]),
        (7074, "stopped", vec![stopped()]),
        (
            7075,
            "several",
            vec![intact("ehr"), tampered(), unsealed(), stopped()],
        ),
    ] {
        let guardians = sources.into_iter().map(Pretend::run).collect();
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let server = Server::start(listen, guardians)?;
        println!("http://{}/  {what}", server.address());
        servers.push(server);
    }
    std::future::pending().await
}

/// A guardian without anything to guard, which lives on.
#[derive(Clone)]
struct Pretend(watch::Receiver<Status>);

impl Pretend {
    fn run(mut status: Status) -> Self {
        let (publish, receiver) = watch::channel(status.clone());
        tokio::spawn(async move {
            let mut seconds = 0_u64;
            loop {
                live_on(&mut status, seconds);
                publish.send_replace(status.clone());
                tokio::time::sleep(Duration::from_secs(1)).await;
                seconds += 1;
            }
        });
        Self(receiver)
    }
}

impl Guarded for Pretend {
    fn at_one_step(&self) -> Option<Duration> {
        None
    }

    fn desk(&self) -> Option<Arc<Desk>> {
        None
    }

    fn watch(&self) -> watch::Receiver<Status> {
        self.0.clone()
    }

    async fn submit(&self, _: Vec<u8>) -> Result<Taken, SubmitError> {
        Err(SubmitError::Unavailable("nothing is guarded here".into()))
    }

    async fn erasure(&self, _: Asked) -> Result<Answer, Refused> {
        Err(Refused::Unknown)
    }

    async fn accept(&self, _: acceptance::Asked) -> Result<acceptance::Answer, Refused> {
        Err(Refused::Unknown)
    }

    async fn accept_of(&self, _: acceptance::AskedOf) -> Result<acceptance::Portion, Refused> {
        Err(Refused::Unknown)
    }

    async fn scan(&self) -> Result<ScanSummary, String> {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Err("nothing is guarded here".into())
    }
}

/// What a second brings.
fn live_on(status: &mut Status, seconds: u64) {
    if status.state != SourceState::Guarding {
        return;
    }
    let lines = 1 + seconds * seconds * 7 % 97;
    let is_sealing = status.trouble.is_none();
    status.blocks += 1;
    status.lines += lines + 1;
    status.events += lines;
    let block = BlockStatus {
        block: status.blocks - 1,
        lines: lines + 1,
        sealed_at: is_sealing.then(|| ago(0)),
    };
    let mut recent = VecDeque::from(std::mem::take(&mut status.recent));
    recent.push_front(block);
    recent.truncate(20);
    status.recent = recent.into();
    if is_sealing {
        status.sealed_up_to = Some(ago(0));
    } else {
        status.unsealed += 1;
    }
    if seconds.is_multiple_of(10) && is_sealing {
        status.witnessed = status.blocks;
        status.witnessed_at = Some(ago(0));
    }
    if seconds % 30 == 4 {
        status.verified_up_to = Some(ago(0));
    }
}

fn intact(name: &str) -> Status {
    let recent = (1..20)
        .map(|n| BlockStatus {
            block: 86_399 - n,
            lines: 2 + n * n * 5 % 61,
            sealed_at: Some(ago(n)),
        })
        .collect();
    Status {
        name: name.into(),
        origin: format!("north-hospital/{name}"),
        state: SourceState::Guarding,
        position: "918204".into(),
        events: 1_204_611,
        lines: 1_291_010,
        blocks: 86_399,
        sealed_up_to: Some(ago(1)),
        verified_up_to: Some(ago(4)),
        rows_verified: 2_734,
        witnessed: 86_395,
        witnessed_at: Some(ago(6)),
        patients: 150,
        genesis: "019f2c7e0b4b6a55d2e8c3f10a94d7be6671b8205c3de49fa07c18e2b3d45f6a71".into(),
        recent,
        ..Status::default()
    }
}

fn tampered() -> Status {
    let finding =
        |code: &str, table: &str, key: &str, columns: &[&str], text: &str, open| FindingStatus {
            code: code.into(),
            table: (!table.is_empty()).then(|| table.into()),
            key: (!key.is_empty()).then(|| key.into()),
            columns: columns.iter().map(|&c| c.into()).collect(),
            at: ago(if open { 12 } else { 7300 }),
            found_at_us: 0,
            text: text.into(),
            open,
            line: Some(1_291_007),
            accepted: (!open).then(|| AcceptedStatus {
                line: 1_291_042,
                at: ago(3600),
                by: Some("Mari Maasikas".into()),
                reason: Some("the planned upgrade to version 4.2".into()),
            }),
        };
    Status {
        findings: vec![
            finding(
                "CAP-05",
                "",
                "",
                &[],
                "table encounter has a new column: triage_note",
                false,
            ),
            finding(
                "ACT-01",
                "medication",
                "88",
                &["dose"],
                "update without an attributed actor",
                true,
            ),
            finding(
                "ROW-02",
                "condition",
                "Jõgi & Söhne <b>,2",
                &[],
                "the row is missing from the database",
                true,
            ),
            finding(
                "ROW-01",
                "observation",
                "4f1d2c9a-77b1",
                &["value", "unit"],
                "the live row differs from its sealed version",
                true,
            ),
        ],
        ..intact("laboratory")
    }
}

fn unsealed() -> Status {
    let mut status = intact("imaging");
    status.trouble = Some("authority ksi+tcp://10.0.4.2:3332: connection refused".into());
    status.sealed_up_to = Some(ago(247));
    status.witnessed_at = None;
    status
}

fn baseline() -> Status {
    Status {
        name: "pharmacy".into(),
        origin: "north-hospital/pharmacy".into(),
        state: SourceState::Baseline,
        events: 14_500,
        baseline: Some(BaselineStatus {
            rows: 14_500,
            about: Some(1_200_000),
        }),
        genesis: intact("x").genesis,
        ..Status::default()
    }
}

fn stopped() -> Status {
    Status {
        state: SourceState::Stopped,
        ..intact("archive")
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "an example has no command line to hand it a clock"
)]
fn ago(seconds: u64) -> String {
    let now = SystemTime::now() - Duration::from_secs(seconds);
    let at = jiff::Timestamp::try_from(now).expect("this machine's clock shows a real year");
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
