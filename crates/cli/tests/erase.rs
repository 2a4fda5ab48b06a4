//! Two approvers erase a patient, as they do it at their terminals: with the guardian
//! running, and on the folder of one that is stopped.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod common;

use common::{Process, Said, first_line, pitser};
use rusqlite::Connection;
use serde_json::Value;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

struct Site(tempfile::TempDir);

impl Site {
    /// A database of two patients, guarded, and two approvers.
    fn new(more: &str) -> Self {
        let site = Self(tempfile::tempdir().unwrap());
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = free.local_addr().unwrap();
        let mut config = format!(
            "[authority]\naggregator = \"embedded\"\n\
             [guard]\ndata = \"guard\"\nlisten = \"{listen}\"\nscan_every_s = 0\n\
             [[source]]\nname = \"h\"\nkind = \"sqlite\"\nurl = \"hospital.db\"\ntables = [\"*\"]\n{more}\
             [source.patient]\nentry = \"patient\"\n"
        );
        for (file, name) in [("mari.token", "Mari Maasikas"), ("jaan.token", "Jaan Tamm")] {
            let made = site
                .run(&["erase", "--new-token", file, "--by", name])
                .exits(0);
            config += &made.out;
        }
        std::fs::write(site.path("pitser.toml"), config).unwrap();
        let db = Connection::open(site.path("hospital.db")).unwrap();
        db.execute_batch(
            "CREATE TABLE entry (id INTEGER PRIMARY KEY, patient TEXT, note TEXT);
             INSERT INTO entry VALUES (1, 'pt-1', 'pressure 120'), (2, 'pt-2', 'pressure 80')",
        )
        .unwrap();
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = pitser(self.0.path());
        command
            .args(args)
            .env_remove("PITSER_TOKEN_FILE")
            .env_remove("PITSER_CONFIG")
            .env("CREDENTIALS_DIRECTORY", self.0.path());
        command
    }

    fn run(&self, args: &[&str]) -> Said {
        self.command(args).output().unwrap().into()
    }

    /// As one of the approvers.
    fn run_as(&self, who: &str, args: &[&str]) -> Said {
        let token = self.path(&format!("{who}.token"));
        self.run(&[args, &["--token", token.to_str().unwrap()]].concat())
    }

    fn guard(&self) -> Process {
        let mut command = self.command(&["guard", "run"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let line = first_line(&mut child);
        assert!(line.starts_with("guarding"), "{line}");
        Process(child)
    }

    /// The code of a new request.
    fn request(&self, who: &str, patient: &str) -> String {
        let ask = [
            "erase",
            "--patient",
            patient,
            "--basis",
            "GDPR art. 17(1)(d)",
            "--json",
        ];
        let answer = self.run_as(who, &ask).exits(0).json();
        answer["requested"]["code"].as_str().unwrap().to_owned()
    }

    /// The application changes a row.
    fn update(&self, id: i64, note: &str) {
        let mut db = Connection::open(self.path("hospital.db")).unwrap();
        let tx = db.transaction().unwrap();
        tx.execute(
            "INSERT INTO pitser_begin (actor, app) VALUES ('dr-1', 'ehr')",
            [],
        )
        .unwrap();
        tx.execute("UPDATE entry SET note = ?2 WHERE id = ?1", (id, note))
            .unwrap();
        tx.execute("INSERT INTO pitser_end DEFAULT VALUES", [])
            .unwrap();
        tx.commit().unwrap();
    }

    /// All live rows are as sealed, as far as that can still be told.
    #[track_caller]
    fn scans_clean(&self) {
        self.run(&["guard", "scan"])
            .exits(0)
            .says("2 rows compared");
    }

    #[track_caller]
    fn history(&self, patient: &str) -> Vec<Value> {
        let said = self.run(&["history", "--patient", patient, "--json"]);
        said.exits(0).json()["lines"].as_array().unwrap().clone()
    }
}

fn is_in(dir: &Path, secret: &[u8]) -> bool {
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => is_in(&path, secret),
            false => {
                let bytes = std::fs::read(path).unwrap();
                bytes.windows(secret.len()).any(|part| part == secret)
            }
        }
    })
}

#[test]
fn two_people_erase_a_patient_while_the_guardian_runs() {
    let site = Site::new("");
    site.run(&["guard", "init"]).exits(0);
    let guardian = site.guard();
    site.scans_clean();
    assert_eq!(site.history("pt-1")[0]["row"]["note"], "tpressure 120");

    // Who asks must say so, and be an approver.
    let look = ["erase", "--patient", "pt-1", "--dry-run"];
    site.run(&look).exits(3).says("--token FILE");
    std::fs::write(site.path("stranger.token"), "AAAA").unwrap();
    site.run_as("stranger", &look)
        .exits(3)
        .says("no approver's");
    let shown = site.run_as("mari", &look).exits(0);
    let shown = shown.says("database   1 row of the patient");
    shown.says("hold       none").says("backup");
    site.run_as("mari", &["erase", "--patient", "pt-1"])
        .exits(3)
        .says("--basis");

    // One person is not enough, nor two beside a legal hold.
    let code = site.request("mari", "pt-1");
    let confirm = ["erase", "--confirm", &code];
    site.run_as("mari", &confirm)
        .exits(3)
        .says("another person");
    site.run_as(
        "jaan",
        &[
            "hold",
            "add",
            "--patient",
            "pt-1",
            "--reason",
            "court case 2-26-117",
        ],
    )
    .exits(0)
    .says("by Jaan Tamm: court case");
    site.run_as("mari", &["hold", "list"])
        .exits(0)
        .says("pt-1  hold of");
    site.run_as("jaan", &confirm)
        .exits(3)
        .says("a legal hold stands");
    site.run_as("jaan", &["hold", "remove", "--patient", "pt-1"])
        .exits(0)
        .says("lifted hold");
    site.run_as("jaan", &["erase", "--confirm", &code, "--dry-run"])
        .exits(0)
        .says("identifier pt-1")
        .says("asked by   Mari Maasikas");
    site.run_as(
        "jaan",
        &["erase", "--confirm", &code, "--by", "Mari Maasikas"],
    )
    .exits(3)
    .says("not that of an [[approver]]");
    assert!(
        !site.history("pt-1")[0]["row"].is_null(),
        "nothing is done yet"
    );
    site.run_as("jaan", &confirm)
        .exits(0)
        .says("decided by Mari Maasikas, Jaan Tamm");

    // Nothing opens any more, and nothing is found wrong with that.
    site.scans_clean();
    let lines = site.history("pt-1");
    assert_eq!(lines.len(), 2);
    assert!(lines[0]["row"].is_null());
    assert_eq!(lines[1]["line"]["op"], "erase");
    assert_eq!(lines[1]["line"]["erase"]["basis"], "GDPR art. 17(1)(d)");
    assert_eq!(lines[1]["deciders"][0], "Mari Maasikas");
    site.run_as("mari", &["erase", "--patient", "pt-1", "--basis", "again"])
        .exits(3)
        .says("nothing to erase");

    // The row that was left in the database comes back under another key.
    site.update(1, "pressure 121");
    site.scans_clean();
    let lines = site.history("pt-1");
    assert_eq!(
        (lines.len(), lines[2]["row"]["note"].as_str()),
        (3, Some("tpressure 121"))
    );
    assert!(lines[0]["row"].is_null());
    assert_eq!(lines[0]["line"]["patient"], lines[2]["line"]["patient"]);
    assert_eq!(site.history("pt-2")[0]["row"]["note"], "tpressure 80");
    guardian.stop();
    let verified = site.run(&["trail", "verify"]);
    assert!(verified.code == 0 || verified.code == 2, "{verified:?}");
    site.run(&["inspect", "guard/h/trail/000000.jsonl"])
        .exits(0)
        .says("erase");
    assert!(!is_in(&site.path("guard"), b"Mari Maasikas"));
}

#[test]
fn two_people_erase_a_patient_while_no_guardian_runs() {
    let site = Site::new("");
    site.run(&["guard", "init"]).exits(0);
    let guardian = site.guard();
    site.scans_clean();
    guardian.stop();
    let code = site.request("jaan", "pt-2");
    site.run_as("mari", &["erase", "--confirm", &code]).exits(0);
    assert!(site.history("pt-2")[0]["row"].is_null());
    let guardian = site.guard();
    site.scans_clean();
    site.update(1, "pressure 122");
    site.scans_clean();
    guardian.stop();
    let lines = site.history("pt-2");
    assert_eq!(
        (lines.len(), lines[1]["deciders"][1].as_str()),
        (2, Some("Mari Maasikas"))
    );
    assert!(
        lines[1]["sealed_at"].is_string(),
        "its line is sealed like any other"
    );
    assert_eq!(site.history("pt-1").len(), 2);
}

#[test]
fn the_master_key_may_be_a_credential() {
    let site = Site::new("vault_key = \"credential:master\"\n");
    site.run(&["guard", "init"]).exits(4).says("master");
    std::fs::write(site.path("master"), "5e".repeat(32)).unwrap();
    site.run(&["guard", "init"]).exits(0);
    let guardian = site.guard();
    site.scans_clean();
    guardian.stop();
    assert!(!site.path("guard/h/vault.key").exists());
    assert_eq!(site.history("pt-1")[0]["row"]["note"], "tpressure 120");
    std::fs::write(site.path("master"), "5f".repeat(32)).unwrap();
    site.run(&["history", "--patient", "pt-1"])
        .exits(4)
        .says("does not open with this master key");
}
