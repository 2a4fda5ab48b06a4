//! `pitser trail archive` as an operator runs it: beside a running guardian, to a folder
//! and to a bucket, killed in between; histories, evidence and `trail verify` afterwards.
//! And `pitser trail rebuild`, after which all of these are what they were, too.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod common;
#[cfg(feature = "s3")]
#[allow(dead_code, reason = "each test program uses its part")]
#[path = "../../client/tests/common/s3.rs"]
mod s3;

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Dev, Process, Said, first_line, pitser, run};
use pitser_trail::Layout;
use serde_json::Value;
use tempfile::TempDir;

/// A hospital whose trail gets a segment for each block.
struct Hospital {
    dir: TempDir,
    _authority: Dev,
}

impl Hospital {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let authority = Dev::start(dir.path(), 3600);
        let config = format!(
            "[authority]\naggregator = \"{}\"\n\
             [guard]\norganisation = \"hospital.example\"\ndata = \"guard\"\n\
             listen = \"127.0.0.1:0\"\nsegment_s = 0\nheartbeat_s = 1\nwitness_every_s = 1\n\
             [[source]]\nname = \"h\"\nkind = \"sqlite\"\nurl = \"hospital.db\"\n\
             tables = [\"*\"]\n[source.patient]\nentry = \"patient\"\n",
            authority.service
        );
        fs::write(dir.path().join("pitser.toml"), config).unwrap();
        let this = Self {
            dir,
            _authority: authority,
        };
        this.sql(
            "CREATE TABLE entry (id INTEGER PRIMARY KEY, patient TEXT, note TEXT);
             INSERT INTO entry VALUES (1, 'pt-1', 'a')",
        );
        this.run("guard init").exits(0);
        this
    }

    fn run(&self, args: &str) -> Said {
        run(self.dir.path(), args)
    }

    fn sql(&self, text: &str) {
        let db = rusqlite::Connection::open(self.dir.path().join("hospital.db")).unwrap();
        db.busy_timeout(Duration::from_secs(20)).unwrap();
        db.execute_batch(text).unwrap();
    }

    fn configure(&self, more: &str) {
        let path = self.dir.path().join("pitser.toml");
        let text = fs::read_to_string(&path).unwrap();
        let (text, _) = text.split_once("[archive]").unwrap_or((&text, ""));
        fs::write(&path, text.to_owned() + more).unwrap();
    }

    fn layout(&self) -> Layout {
        Layout::new(self.dir.path().join("guard/h"))
    }

    fn guard(&self) -> Process {
        let (guardian, line) = Process::start(self.dir.path(), "guard run");
        assert!(line.starts_with("guarding"), "{line}");
        guardian
    }

    /// Changes a row until so many segments are closed and sealed.
    fn until_closed(&self, segments: u32) {
        let began = Instant::now();
        let mut note = 0;
        let is_closed = |number| self.layout().logsig(number).exists();
        while !is_closed(segments - 1) {
            note += 1;
            self.sql(&format!("UPDATE entry SET note = 'n{note}'"));
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "no segment is closed"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Everything that is told of the trail, but for what changes with each telling.
    fn told(&self) -> [Value; 3] {
        let verified = consistent(self.run("trail verify --json")).json();
        // Nobody said who changed the row: there are findings.
        let history = self.run("history --patient pt-1 --json").exits(1).json();
        let export = "evidence export --patient pt-1 -o e.pitser --force";
        self.run(export).exits(0);
        let evidence = fs::read(self.dir.path().join("e.pitser")).unwrap();
        [
            verified,
            history,
            serde_json::from_slice(&evidence).unwrap(),
        ]
    }

    /// Archives it to what is configured, and uses it from there.
    fn is_used_from_its_archive(&self) {
        let guardian = self.guard();
        self.until_closed(4);
        guardian.stop();
        let before = self.told();
        let moved = self.run("trail archive --json").exits(0).json();
        assert!(moved["segments"].as_u64().unwrap() >= 3, "{moved}");
        assert!(moved["freed_bytes"].as_u64().unwrap() > 0, "{moved}");
        assert!(!self.layout().segment(0).exists());
        assert_eq!(self.told(), before);
        fs::remove_dir_all(self.layout().dir().join("archive-cache")).unwrap();
        assert_eq!(self.told(), before);

        // A copy has the receipts, and needs the archive as the trail does.
        self.run("trail copy backup").exits(0);
        self.run("trail copy another guard/h").exits(0);
        for copy in ["backup", "another"] {
            let folder = self.dir.path().join(copy);
            assert!(!Layout::new(&folder).segment(0).exists());
            consistent(self.run(&format!("trail verify {copy}"))).says("blocks are sealed");
            self.run(&format!("trail verify {copy} --config none.toml"))
                .exits(3)
                .says("name the configuration whose [archive]");
            self.run(&format!("trail rebuild {copy}")).exits(0);
            fs::remove_dir_all(folder).unwrap();
        }

        // Beside a guardian that goes on.
        let guardian = self.guard();
        let mut next = self.layout().segment_numbers().unwrap().last().unwrap() + 3;
        let newest = next - 2;
        self.until_closed(next);
        self.run("trail archive --keep 0").exits(0).says("segments");
        // Once the map has it, in ten seconds.
        while self.layout().segment(newest).exists() {
            next += 1;
            self.until_closed(next);
            self.run("trail archive --keep 0").exits(0);
        }
        self.until_closed(next + 2);
        guardian.stop();
        let history = |told: &[Value; 3]| told[1]["lines"].as_array().unwrap().len();
        assert!(history(&self.told()) > history(&before));
    }
}

/// Nothing contradicts the trail; its last lines may wait for their seal.
#[track_caller]
fn consistent(said: Said) -> Said {
    assert!(matches!(said.code, 0 | 2), "{said:?}");
    said
}

#[test]
fn a_folder() {
    let hospital = Hospital::new();
    hospital
        .run("trail archive")
        .exits(3)
        .says("no archive is configured");
    let folder: PathBuf = hospital.dir.path().join("archive");
    hospital.configure(&format!(
        "[archive]\nstore = \"file://{}\"\n",
        folder.display()
    ));
    // It is not there: who needs it not does not mind, and who does is told.
    consistent(hospital.run("trail verify"));
    let guardian = hospital.guard();
    hospital.until_closed(2);
    guardian.stop();
    hospital
        .run("trail archive --keep 0")
        .exits(4)
        .says("archive");
    fs::create_dir(&folder).unwrap();
    hospital.is_used_from_its_archive();
    // Somebody alters what lies there.
    let objects = common::files(&folder);
    let lines = objects
        .iter()
        .find(|path| path.ends_with("000001.jsonl.zst"));
    let mut bytes = fs::read(lines.unwrap()).unwrap();
    bytes[20] ^= 1;
    fs::write(lines.unwrap(), bytes).unwrap();
    fs::remove_dir_all(hospital.layout().dir().join("archive-cache")).unwrap();
    let export = "evidence export --patient pt-1 -o e.pitser --force";
    for reads in [
        "trail verify",
        "trail verify guard/h",
        "history --patient pt-1",
        export,
    ] {
        hospital
            .run(reads)
            .exits(1)
            .says("is not what was archived");
    }
    // That nobody can read it says nothing of the trail, nor of whoever asks.
    fs::rename(&folder, hospital.dir.path().join("away")).unwrap();
    for reads in ["history --patient pt-1", export] {
        hospital.run(reads).exits(4).says("archive");
    }
}

/// The archive is another machine's, which may be down for an hour: that is no reason to
/// leave a database without its guardian.
#[test]
fn a_guardian_starts_and_seals_while_its_archive_is_away() {
    let hospital = Hospital::new();
    let (folder, away) = (
        hospital.dir.path().join("archive"),
        hospital.dir.path().join("away"),
    );
    hospital.configure(&format!(
        "[archive]\nstore = \"file://{}\"\n",
        folder.display()
    ));
    fs::create_dir(&folder).unwrap();
    let guardian = hospital.guard();
    hospital.until_closed(4);
    guardian.stop();
    hospital.run("trail archive --keep 0").exits(0);
    let last = *hospital.layout().segment_numbers().unwrap().last().unwrap();
    for closed in 0..last - 1 {
        assert!(!hospital.layout().segment(closed).exists());
    }
    let cache = hospital.layout().dir().join("archive-cache");
    assert!(!cache.exists() || fs::remove_dir_all(&cache).is_ok());
    fs::rename(&folder, &away).unwrap();
    // Twice: what is written without the archive is gone on from without it, too.
    for round in 1..=2 {
        let guardian = hospital.guard();
        hospital.until_closed(last + 2 * round);
        guardian.stop();
    }
    assert!(!cache.exists(), "something was fetched");
    fs::rename(&away, &folder).unwrap();
    let verified = consistent(hospital.run("trail verify --json")).json();
    assert!(
        verified["blocks"].as_u64() > Some(u64::from(last)),
        "{verified}"
    );
}

/// What is done to the map's folder.
type Damage = fn(&std::path::Path);

/// Every file of it, changed.
fn each_file(map: &std::path::Path, change: fn(&mut Vec<u8>)) {
    let files = common::files(map);
    assert!(!files.is_empty());
    for file in files {
        let mut bytes = fs::read(&file).unwrap();
        change(&mut bytes);
        fs::write(&file, bytes).unwrap();
    }
}

#[test]
fn map_and_index_are_made_anew_when_asked() {
    let hospital = Hospital::new();
    let guardian = hospital.guard();
    hospital.until_closed(3);
    // Not beside whoever writes them.
    hospital
        .run("trail rebuild")
        .exits(3)
        .says("another pitser writes this trail");
    guardian.stop();
    let mut before = hospital.told();
    let map = hospital.layout().map();
    let damages: [Damage; 4] = [
        |map| fs::remove_dir_all(map).unwrap(),
        |map| each_file(map, Vec::clear),
        |map| each_file(map, |bytes| bytes.iter_mut().for_each(|byte| *byte ^= 1)),
        |_| (),
    ];
    for damage in damages {
        damage(&map);
        let rebuilt = hospital.run("trail rebuild --json").exits(0).json();
        for count in ["lines", "blocks"] {
            assert_eq!(rebuilt[count], before[0][count], "{rebuilt}");
        }
        assert!(rebuilt["bytes"].as_u64() > Some(0), "{rebuilt}");
        assert_eq!(hospital.told(), before);
        assert!(!makes_the_map_anew(&hospital), "it was made anew before");
        // The guardian's heartbeat may have written a block.
        let history = before[1].clone();
        before = hospital.told();
        assert_eq!(before[1], history);
    }
    // Without a configuration.
    fs::remove_dir_all(&map).unwrap();
    let rebuilt = hospital.run("trail rebuild guard/h").exits(0);
    rebuilt.says("map and index made anew from");
    assert_eq!(hospital.told(), before);
    // A guardian notices damage by itself.
    each_file(&map, |bytes| bytes.iter_mut().for_each(|byte| *byte ^= 1));
    assert!(makes_the_map_anew(&hospital), "it goes by a damaged map");
}

/// Whether a guardian that starts cannot use the map as it lies there.
fn makes_the_map_anew(hospital: &Hospital) -> bool {
    let path = hospital.dir.path().join("stderr");
    let mut guardian = pitser(hospital.dir.path())
        .args(["guard", "run"])
        .stdout(Stdio::piped())
        .stderr(fs::File::create(&path).unwrap())
        .spawn()
        .unwrap();
    assert!(first_line(&mut guardian).starts_with("guarding"));
    Process(guardian).stop();
    let said = fs::read_to_string(path).unwrap();
    said.contains("the map is made anew from the segments")
}

#[cfg(not(feature = "s3"))]
#[test]
fn without_the_feature_a_bucket_is_said_to_take_it() {
    let hospital = Hospital::new();
    hospital.configure("[archive]\nstore = \"s3://bucket/trails\"\n");
    let guardian = hospital.guard();
    hospital.until_closed(2);
    guardian.stop();
    hospital
        .run("trail archive --keep 0")
        .exits(4)
        .says("--features s3");
}

#[cfg(feature = "s3")]
mod bucket {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::s3::{KEY_ID, S3Server, SECRET};
    use super::*;

    fn credentials(hospital: &Hospital, secret: &str) {
        let path = hospital.dir.path().join("credentials");
        let text = format!("aws_access_key_id = {KEY_ID}\naws_secret_access_key = {secret}\n");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    }

    fn configure(hospital: &Hospital, server: &S3Server) {
        hospital.configure(&format!(
            "[archive]\nstore = \"s3://bucket/trails\"\n[archive.s3]\n\
             endpoint = \"http://{}\"\ncredentials_file = \"credentials\"\n",
            server.address()
        ));
        credentials(hospital, SECRET);
    }

    #[test]
    fn a_bucket() {
        let Some(server) = S3Server::start() else {
            return;
        };
        let hospital = Hospital::new();
        configure(&hospital, &server);
        hospital.is_used_from_its_archive();
        assert!(server.file("trails/hospital.example/h").exists());

        // Nothing tells the secret, to whomever.
        fs::remove_dir_all(hospital.layout().dir().join("archive-cache")).unwrap();
        credentials(&hospital, "hush-not-the-one");
        let said = hospital
            .run("trail verify")
            .exits(4)
            .says("SignatureDoesNotMatch");
        assert!(!said.err.contains("hush"), "{said:?}");
        let path = hospital.dir.path().join("credentials");
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let said = hospital.run("trail verify").exits(3).says("chmod 600");
        assert!(!said.err.contains("hush"), "{said:?}");

        // The usual variables do as well.
        hospital.configure("[archive]\nstore = \"s3://bucket/trails\"\n");
        hospital
            .run("trail verify")
            .exits(4)
            .says("AWS_ACCESS_KEY_ID");
        let verified = pitser(hospital.dir.path())
            .args(["trail", "verify"])
            .env("AWS_ACCESS_KEY_ID", KEY_ID)
            .env("AWS_SECRET_ACCESS_KEY", SECRET)
            .env("AWS_ENDPOINT_URL", format!("http://{}", server.address()))
            .output()
            .unwrap();
        consistent(verified.into());
    }

    #[test]
    fn killed_while_the_bucket_hangs_the_next_run_ends_it() {
        let Some(server) = S3Server::start() else {
            return;
        };
        let hospital = Hospital::new();
        configure(&hospital, &server);
        let guardian = hospital.guard();
        hospital.until_closed(3);
        guardian.stop();
        let before = hospital.told();
        server.hang(true);
        let archiving = pitser(hospital.dir.path())
            .args(["trail", "archive", "--keep", "0"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let archiving = Process(archiving);
        let lock = hospital.layout().dir().join("archive.lock");
        let began = Instant::now();
        while !lock.exists() {
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "it does not begin"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        archiving.kill();
        assert!(hospital.layout().segment(0).exists());
        assert_eq!(hospital.told(), before);
        server.hang(false);
        hospital.run("trail archive --keep 0").exits(0);
        assert!(!hospital.layout().segment(0).exists());
        assert_eq!(hospital.told(), before);
    }
}
