//! Witnesses, and when they had cosigned which second.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pitser_ksi::time::Second;
use pitser_tlog::proof::LogProof;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::load::{Histogram, Times};
use crate::clock;
use crate::commands::bench::server::{Authority, Server, ourselves};
use crate::outcome::Failure;

/// `pitser witness run`, several times.
pub(super) struct Witnesses(Vec<Witness>);

struct Witness {
    folder: PathBuf,
    server: Server,
}

impl Witnesses {
    /// Starts `count` of them, each in a folder of its own.
    pub(super) fn start(folder: &Path, count: u8) -> Result<Self, Failure> {
        let start = |number: u8| {
            let folder = folder.join(format!("witness-{number}"));
            std::fs::create_dir(&folder).map_err(Failure::service)?;
            let name = format!("witness-{number}.invalid/bench");
            run(&folder, &format!("witness init --dir w --name {name}"))?;
            let command = "witness run --dir w --listen 127.0.0.1:0 --json";
            let server = Server::start(&folder, command)?;
            Ok(Witness { folder, server })
        };
        (1..=count).map(start).collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// What `pitser dev` is told of them.
    pub(super) fn options(&self, quorum: usize) -> String {
        let mut options = String::new();
        for Witness { server, .. } in &self.0 {
            let (address, key) = (server.text("address"), server.text("key"));
            options += &format!(" --witness http://{address} {key}");
        }
        if quorum > 0 {
            options += &format!(" --quorum {quorum}");
        }
        options
    }

    /// Makes all of them watch the calendar of `authority`.
    pub(super) fn watch(&self, authority: &Authority) -> Result<(), Failure> {
        let (key, genesis) = (
            authority.text("calendar_log_key"),
            authority.text("calendar_genesis"),
        );
        for witness in &self.0 {
            let command = format!("witness add-log --dir w {key} --genesis {genesis}");
            run(&witness.folder, &command)?;
        }
        Ok(())
    }
}

fn run(folder: &Path, command: &str) -> Result<(), Failure> {
    let output = ourselves(folder, command)?.output();
    let output = output.map_err(Failure::service)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Failure::Service(format!("pitser {command}: {said}")))
}

/// An authority's log, over HTTP.
pub(super) struct Log {
    address: String,
    quorum: usize,
}

/// When each second had its quorum.
#[derive(Default)]
pub(super) struct Cosigned(BTreeMap<Second, Instant>);

impl Log {
    pub(super) fn of(authority: &Authority, quorum: usize) -> Result<Self, Failure> {
        Ok(Self {
            address: authority.text("http").to_owned(),
            quorum,
        })
    }

    /// Waits for the quorum of one second after the other, for all seconds in
    /// which a load of so many seconds may be signed.
    pub(super) async fn watch(self, seconds: u32) -> Result<Cosigned, Failure> {
        let mut cosigned = Cosigned::default();
        if self.quorum == 0 {
            return Ok(cosigned);
        }
        let first = clock::now();
        for number in 0..u64::from(seconds) + 4 {
            let second = first.plus(number);
            self.wait_for(second).await?;
            cosigned.0.insert(second, Instant::now());
        }
        Ok(cosigned)
    }

    async fn wait_for(&self, second: Second) -> Result<(), Failure> {
        let request = format!(
            "GET /log/proof/{}?wait=20 HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            second.0, self.address
        );
        let mut stream = TcpStream::connect(&self.address)
            .await
            .map_err(Failure::service)?;
        let mut answer = Vec::new();
        let written = stream.write_all(request.as_bytes()).await;
        written.map_err(Failure::service)?;
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        read.map_err(Failure::service)?.map_err(Failure::service)?;
        let bad = |why: &str| Failure::Service(format!("the proof of second {second}: {why}"));
        let head_end = answer.windows(4).position(|four| four == b"\r\n\r\n");
        let body = &answer[head_end.ok_or_else(|| bad("no answer"))? + 4..];
        if !answer.starts_with(b"HTTP/1.1 200 ") {
            return Err(bad(String::from_utf8_lossy(body).trim()));
        }
        let proof = LogProof::parse(body).map_err(|e| bad(&e.to_string()))?;
        // The log's own signature, and the witnesses'.
        if proof.head().signatures().len() <= self.quorum {
            return Err(bad("too few cosignatures"));
        }
        Ok(())
    }
}

impl Cosigned {
    /// From when each request was due until its signature was there and its second
    /// had the quorum.
    pub(super) fn latency(&self, times: &[Times]) -> Result<Histogram, Failure> {
        let mut latency = Histogram::default();
        if self.0.is_empty() {
            return Ok(latency);
        }
        for times in times {
            let cosigned = self.0.get(&times.second).ok_or_else(|| {
                Failure::Service(format!("second {} was not watched", times.second))
            })?;
            let done = times.answered.max(*cosigned);
            latency.add_one(done.saturating_duration_since(times.due));
        }
        Ok(latency)
    }
}

/// Longer than the authority lets anybody wait.
const PATIENCE: Duration = Duration::from_secs(30);
