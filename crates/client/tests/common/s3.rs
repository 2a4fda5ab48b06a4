//! A server that speaks S3 and checks every signature: `s3s-fs`, a process.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// The server, killed with this. Its bucket is a folder, for tests to look into.
pub(crate) struct S3Server {
    process: Child,
    root: TempDir,
    address: String,
}

pub(crate) const BUCKET: &str = "bucket";
pub(crate) const KEY_ID: &str = "AKIATEST";
pub(crate) const SECRET: &str = "kept/by+the=test";

impl S3Server {
    /// One with an empty bucket; `None`, and a word about it, if there is no such program.
    pub(crate) fn start() -> Option<Self> {
        Self::start_at("127.0.0.1")
    }

    /// The same at an address of this machine.
    pub(crate) fn start_at(host: &str) -> Option<Self> {
        let root = TempDir::new().unwrap();
        std::fs::create_dir(root.path().join(BUCKET)).unwrap();
        let mut command = Command::new("s3s-fs");
        command
            .args(["--host", host, "--port", "0"])
            .args(["--access-key", KEY_ID, "--secret-key", SECRET])
            .arg(root.path())
            .env("RUST_LOG", "s3s_fs=info")
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let Ok(mut process) = command.spawn() else {
            println!(
                "skipped: no S3 server here (cargo install s3s-fs --version 0.14.1 --features binary)"
            );
            return None;
        };
        let mut said = BufReader::new(process.stdout.take().unwrap()).lines();
        let address = said
            .by_ref()
            .map(Result::unwrap)
            .find_map(|line| Some(line.split_once("running at http://")?.1.to_owned()))
            .expect("it says where it listens");
        // Its log must not fill up.
        std::thread::spawn(move || said.count());
        Some(Self {
            process,
            root,
            address: address
                .trim_end_matches(|c: char| !c.is_ascii_digit())
                .to_owned(),
        })
    }

    /// Stops it without ending it: it takes connections and answers none. Or lets it go on.
    pub(crate) fn hang(&self, hangs: bool) {
        let signal = if hangs { "-STOP" } else { "-CONT" };
        let pid = self.process.id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().unwrap();
        assert!(sent.success(), "kill {signal} {pid}");
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Where an object lies.
    pub(crate) fn file(&self, object: &str) -> PathBuf {
        self.root.path().join(BUCKET).join(object)
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
