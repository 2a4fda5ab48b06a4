//! A guarded database, an authority and a witness, each a process of its own.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use pitser_tlog::note::VerifierKey;
use serde_json::Value;

use crate::common::port::free_address;
use crate::common::triggers::past_triggers;
use crate::common::{Dev, Process, Said, run};

pub(crate) const ORIGIN: &str = "hospital.example/ehr";

/// A witness's process and where it answers.
pub(crate) fn witness(dir: &Path) -> (Process, String) {
    witness_in(dir, "w")
}

pub(crate) fn witness_in(dir: &Path, folder: &str) -> (Process, String) {
    let run = format!("witness run --dir {folder} --listen 127.0.0.1:0 --json");
    let (process, line) = Process::start(dir, &run);
    let facts: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(facts["event"], "listening");
    let address = facts["address"].as_str().unwrap();
    (process, format!("http://{address}"))
}

/// Makes a witness in `dir/w`; returns its key.
pub(crate) fn init(dir: &Path) -> VerifierKey {
    let said = run(dir, "witness init --dir w --name notary.example/witness").exits(0);
    word_after(&said, "key").parse().unwrap()
}

/// The word after `label` on a line of its own.
pub(crate) fn word_after(said: &Said, label: &str) -> String {
    let mut lines = said.out.lines();
    let line = lines.find_map(|line| line.trim_start().strip_prefix(label)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {label:?} in {said:?}"))
        .trim()
        .to_owned()
}

/// A guarded database, an authority and a witness, each a process of its own.
pub(crate) struct Hospital {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) listen: String,
    pub(crate) witness_key: VerifierKey,
    pub(crate) log_key: String,
    pub(crate) genesis: String,
    pub(crate) witness: Option<Process>,
    pub(crate) witness_url: String,
    pub(crate) dev: Dev,
}

impl Hospital {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        let witness_key = init(dir);
        let (process, url) = witness(dir);
        let calendar =
            format!(" --origin authority.example/calendar --witness {url} {witness_key}");
        let dev = Dev::start_with(dir, 1, &calendar);
        let (log, genesis) = (dev.fact("calendar_log_key"), dev.fact("calendar_genesis"));
        let add = format!("witness add-log --dir w {log} --calendar-genesis {genesis}");
        run(dir, &add).exits(0).says("one entry a second");
        let listen = free_address().to_string();
        let config = format!(
            "[authority]\naggregator = \"{}\"\npublications = \"{}\"\ncalendar_log = \"{}\"\n\
             [guard]\norganisation = \"hospital.example\"\ndata = \"guard\"\nlisten = \"{listen}\"\n\
             witness_every_s = 1\n\
             [[source]]\nname = \"ehr\"\nkind = \"sqlite\"\nurl = \"hospital.db\"\ntables = [\"*\"]\n\
             [source.patient]\nentry = \"patient\"\n\
             [[witness]]\nname = \"notary\"\nurl = \"{url}\"\nkey = \"{witness_key}\"\n",
            dev.service,
            dev.publications,
            dev.fact("calendar_log")
        );
        fs::write(dir.join("pitser.toml"), config).unwrap();
        let db = rusqlite::Connection::open(dir.join("hospital.db")).unwrap();
        db.execute_batch(
            "CREATE TABLE entry (id INTEGER PRIMARY KEY, patient TEXT, note TEXT);
             INSERT INTO entry VALUES (1, 'pt-1', 'a')",
        )
        .unwrap();
        let said = run(dir, "guard init").exits(0);
        let (log, genesis) = (word_after(&said, "log key"), word_after(&said, "genesis"));
        run(dir, &format!("witness add-log --dir w {log}")).exits(0);
        Self {
            listen,
            witness_key,
            log_key: log,
            genesis,
            witness: Some(process),
            witness_url: url,
            dev,
            dir: folder,
        }
    }

    pub(crate) fn run(&self, args: &str) -> Said {
        run(self.dir.path(), args)
    }

    pub(crate) fn change(&self, note: &str) {
        let db = rusqlite::Connection::open(self.dir.path().join("hospital.db")).unwrap();
        db.busy_timeout(Duration::from_secs(20)).unwrap();
        db.execute("UPDATE entry SET note = ?1", [note]).unwrap();
    }

    /// The same behind the guardian's back.
    pub(crate) fn change_unseen(&self, note: &str) {
        let db = rusqlite::Connection::open(self.dir.path().join("hospital.db")).unwrap();
        db.busy_timeout(Duration::from_secs(20)).unwrap();
        let change = format!("UPDATE entry SET note = '{note}'");
        past_triggers(&db, "entry", &change);
    }

    pub(crate) fn guard(&self) -> Process {
        let (guardian, line) = Process::start(self.dir.path(), "guard run");
        assert!(line.starts_with("guarding"), "{line}");
        guardian
    }

    /// Waits for a status that is wanted.
    pub(crate) fn status(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut stream = TcpStream::connect(&self.listen).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let request = format!("GET /api/events HTTP/1.1\r\nHost: {}\r\n\r\n", self.listen);
        stream.write_all(request.as_bytes()).unwrap();
        for line in BufReader::new(stream).lines() {
            let line = line.unwrap();
            let Some(json) = line.strip_prefix("data: ") else {
                continue;
            };
            let status: Value = serde_json::from_str(json).unwrap();
            if wanted(&status) {
                return status;
            }
        }
        panic!("the guardian is gone");
    }

    /// What somebody trusts who trusts this witness and this authority.
    pub(crate) fn anchors(&self) {
        let certificate = self.dev.trust.split(' ').nth(3).unwrap();
        let constraint = self.dev.trust.split(' ').nth(5).unwrap();
        let anchors = format!(
            "version = 1\nwitness_quorum = 1\n\
             [[trail]]\norigin = \"{ORIGIN}\"\ngenesis = \"{}\"\n\
             [[authority]]\ncertificate = \"\"\"\n{}\"\"\"\nconstraints = [\"{constraint}\"]\n\
             [[witness]]\nkey = \"{key}\"\n\
             [calendar_log]\nkey = \"{}\"\ngenesis = \"{}\"\nquorum = 1\n\
             [[calendar_log.witness]]\nkey = \"{key}\"\n",
            self.genesis,
            fs::read_to_string(certificate).unwrap(),
            self.dev.fact("calendar_log_key"),
            self.dev.fact("calendar_genesis"),
            key = self.witness_key,
        );
        fs::write(self.dir.path().join("anchors.toml"), anchors).unwrap();
    }
}

pub(crate) fn witnessed(blocks: u64) -> impl Fn(&Value) -> bool {
    move |status| status["witnessed"].as_u64().unwrap() >= blocks
}
