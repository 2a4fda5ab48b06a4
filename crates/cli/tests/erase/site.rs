//! The hospital, and how its approvers use the binary.

use crate::common::port::free_address;
use crate::common::{Process, Said, first_line, pitser};
use rusqlite::Connection;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A guarded database of SQLite, and two approvers.
pub(crate) struct Site(tempfile::TempDir);

impl Site {
    /// A database of two patients, guarded, and two approvers.
    pub(crate) fn new(more: &str) -> Self {
        let site = Self(tempfile::tempdir().unwrap());
        let listen = free_address();
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

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = pitser(self.0.path());
        command
            .args(args)
            .env_remove("PITSER_TOKEN_FILE")
            .env_remove("PITSER_CONFIG")
            .env("CREDENTIALS_DIRECTORY", self.0.path());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Said {
        self.command(args).output().unwrap().into()
    }

    /// As one of the approvers.
    pub(crate) fn run_as(&self, who: &str, args: &[&str]) -> Said {
        let token = self.path(&format!("{who}.token"));
        self.run(&[args, &["--token", token.to_str().unwrap()]].concat())
    }

    pub(crate) fn guard(&self) -> Process {
        let mut command = self.command(&["guard", "run"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let line = first_line(&mut child);
        assert!(line.starts_with("guarding"), "{line}");
        Process(child)
    }

    /// The code of a new request.
    pub(crate) fn request(&self, who: &str, patient: &str) -> String {
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
    pub(crate) fn update(&self, id: i64, note: &str) {
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
    pub(crate) fn scans_clean(&self) {
        self.run(&["guard", "scan"])
            .exits(0)
            .says("2 rows compared");
    }

    #[track_caller]
    pub(crate) fn history(&self, patient: &str) -> Vec<Value> {
        let said = self.run(&["history", "--patient", patient, "--json"]);
        said.exits(0).json()["lines"].as_array().unwrap().clone()
    }
}

/// Whether any file below `dir` has these bytes.
pub(crate) fn is_in(dir: &Path, secret: &[u8]) -> bool {
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
