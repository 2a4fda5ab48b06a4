//! `pitser audit` as an auditor and an operator run it: what makes evidence intact, and
//! what an auditor does not sign.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod common;
#[path = "common/hospital.rs"]
mod hospital;

use common::copy_folder::copy_folder;
use common::{Process, Said, pitser, run};
use hospital::{Hospital, witnessed, word_after};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

const EXPORT: &str = "evidence export --patient pt-1 -o e.pitser --force --json";
const VERIFY: &str = "verify e.pitser --anchors anchors.toml --json";

/// A hospital and, apart from it, an auditor with his anchors.
struct Audit {
    hospital: Hospital,
    key: String,
}

impl Audit {
    fn new() -> Self {
        let hospital = Hospital::new();
        hospital.anchors();
        let said = hospital.run("audit init --dir a --name auditor.example/auditor");
        let key = word_after(&said.exits(0), "key");
        Self { hospital, key }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.hospital.dir.path().join(name)
    }

    fn run(&self, args: &str) -> Said {
        self.hospital.run(args)
    }

    /// The auditor's key is in the anchors from now on.
    fn trust(&self, key: &str) {
        let path = self.path("anchors.toml");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(path, format!("{text}\n[[auditor]]\nkey = \"{key}\"\n")).unwrap();
    }

    /// Guards while a row is changed, until that is sealed, cosigned and published.
    fn goes_on(&mut self, note: &str) {
        let guardian = self.hospital.guard();
        let blocks = self.hospital.status(witnessed(1))["blocks"].as_u64();
        self.hospital.change(note);
        let is_sealed = |status: &Value| status["unsealed"] == 0;
        let status = self
            .hospital
            .status(|status| witnessed(blocks.unwrap() + 1)(status) && is_sealed(status));
        guardian.stop();
        let sealed = status["sealed_up_to"].as_str().unwrap().to_owned();
        self.hospital.dev.published(&sealed);
    }

    /// What the auditor gets of the trail, anew: no key and no vault.
    fn shows(&self) {
        let (from, to) = (self.path("guard/ehr"), self.path("site"));
        let _ = fs::remove_dir_all(&to);
        copy_folder(&from.join("trail"), &to.join("trail"));
        fs::copy(from.join("head.note"), to.join("head.note")).unwrap();
    }

    /// The auditor looks at what is shown.
    fn follow(&self) -> String {
        let publications = &self.hospital.dev.publications;
        format!(
            "audit follow site --anchors anchors.toml --dir a -o s.note --json -P {publications}"
        )
    }

    fn give(&self) -> Said {
        self.run(&format!("audit give s.note --key {}", self.key))
    }

    /// Names of the steps of the evidence's judgement that wait.
    fn waiting(&self, code: i32) -> Vec<String> {
        let report = self.run(VERIFY).exits(code).json();
        let steps = report["steps"].as_array().unwrap().iter();
        let waiting = steps.filter(|step| step["state"] == "waiting");
        waiting
            .map(|step| step["name"].as_str().unwrap().to_owned())
            .collect()
    }

    /// The auditor does not sign, and says why.
    #[track_caller]
    fn is_refused(&self, follow: &str, codes: &[&str]) {
        let memory = |name: &str| fs::read(self.path(name)).ok();
        let before = (memory("a/statements"), memory("s.note"));
        let said = self.run(follow).exits(1).json();
        assert!(codes.contains(&said["code"].as_str().unwrap()), "{said}");
        assert_eq!(said["verdict"], "broken");
        assert_eq!((memory("a/statements"), memory("s.note")), before);
    }

    /// Another auditor, who has not seen this trail before.
    fn newcomer(&self, name: &str) -> String {
        let init = format!("audit init --dir {name} --name {name}.example");
        self.run(&init).exits(0);
        self.follow().replace("--dir a", &format!("--dir {name}"))
    }
}

/// Changes the lines of the trail's last segment that is shown.
fn edit(site: &Path, change: impl Fn(Vec<&[u8]>) -> Vec<Vec<u8>>) {
    let mut segments: Vec<_> = fs::read_dir(site.join("trail"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "jsonl"))
        .collect();
    segments.sort();
    let path = segments.pop().unwrap();
    let bytes = fs::read(&path).unwrap();
    let lines = change(bytes.split_inclusive(|&b| b == b'\n').collect());
    fs::write(path, lines.concat()).unwrap();
}

fn owned(lines: Vec<&[u8]>) -> Vec<Vec<u8>> {
    lines.into_iter().map(<[u8]>::to_vec).collect()
}

/// Without a sign of it: the length of the line stays.
fn altered(lines: Vec<&[u8]>, number: usize) -> Vec<Vec<u8>> {
    let mut lines = owned(lines);
    let at = lines[number].windows(6).position(|w| w == b"\"at\":\"");
    let digit = &mut lines[number][at.unwrap() + 9];
    *digit = if *digit == b'1' { b'2' } else { b'1' };
    lines
}

#[test]
fn evidence_is_intact_under_an_anchored_auditor_alone() {
    let mut audit = Audit::new();
    let follow = audit.follow();
    audit.shows_nothing_yet();
    audit.goes_on("b");
    audit.shows();
    audit.run(EXPORT).exits(0);
    assert_eq!(audit.waiting(2), ["audit"]);

    let said = audit.run(&follow).exits(0).json();
    assert_eq!(said["verdict"], "intact");
    assert_eq!(said["signed"], true);
    assert!(said["seals_keyed"].as_u64().unwrap() > 0, "{said}");
    assert_eq!(said["seals_unconfirmed"], 0, "{said}");
    let first_blocks = said["replayed_blocks"].as_u64().unwrap();
    // With nothing new, nothing is signed, and what was is given again.
    fs::remove_file(audit.path("s.note")).unwrap();
    let again = audit.run(&follow).exits(0).json();
    assert_eq!(again["signed"], false);
    assert_eq!(again["replayed_blocks"], 0);
    assert_eq!(again["note"], said["note"]);
    audit.give().exits(0).says("auditor.example/auditor");

    let exported = audit.run(EXPORT).exits(0).json();
    assert_eq!(exported["audited"], true);
    assert_eq!(audit.waiting(2), ["audit"], "nobody trusts him yet");
    audit.trust(&audit.key);
    assert_eq!(audit.waiting(0), [""; 0]);

    // He goes on from where he stands, with what a crash left of a line cut off.
    audit.goes_on("c");
    audit.shows();
    let statements = fs::read(audit.path("a/statements")).unwrap();
    let torn = [&statements[..], &statements[..40]].concat();
    fs::write(audit.path("a/statements"), torn).unwrap();
    let exported = audit.run(EXPORT).exits(0).json();
    assert!(exported["blocks_after"].as_u64().unwrap() > 0, "{exported}");
    assert_eq!(audit.waiting(0), [""; 0], "as of what he has signed");
    audit.run(&format!("{EXPORT} --newest")).exits(0);
    assert_eq!(audit.waiting(2), ["audit"], "but not what came after");
    // As a crash leaves it while a statement is taken: the new head, the old statement.
    let ehr = audit.path("guard/ehr");
    fs::rename(ehr.join("audited.note"), audit.path("old.head")).unwrap();
    fs::copy(ehr.join("head.note"), ehr.join("audited.note")).unwrap();
    let exported = audit.run(EXPORT).exits(0).json();
    assert_eq!(exported["audited"], false);
    assert_eq!(audit.waiting(2), ["audit"]);
    let said = audit.run(&follow).exits(0).json();
    assert_eq!(said["signed"], true);
    let now = said["block"].as_u64().unwrap() + 1;
    assert_eq!(
        said["replayed_blocks"].as_u64().unwrap(),
        now - first_blocks
    );
    audit.give().exits(0);
    let exported = audit.run(EXPORT).exits(0).json();
    assert_eq!(exported["blocks_after"], 0);
    assert_eq!(audit.waiting(0), [""; 0]);
    let text = fs::read_to_string(audit.path("a/statements")).unwrap();
    assert_eq!(text.lines().count(), 2, "each head is signed once");

    // The operator takes nothing that is not about his trail, or not signed.
    let note = fs::read_to_string(audit.path("s.note")).unwrap();
    fs::write(audit.path("s.note"), note.replace("\n01", "\n02")).unwrap();
    audit.give().exits(3).says("s.note");
    fs::write(audit.path("s.note"), &note).unwrap();
    fs::copy(audit.path("anchors.toml"), audit.path("s.note.head")).unwrap();
    audit.give().exits(3).says("not the head");
}

impl Audit {
    /// Before there is a head there is nothing to sign, and that is no tampering.
    fn shows_nothing_yet(&self) {
        copy_folder(&self.path("guard/ehr/trail"), &self.path("site/trail"));
        let said = self.run(&self.follow()).exits(2).json();
        assert_eq!(said["verdict"], "unconfirmed");
        assert_eq!(said["signed"], false);
    }
}

#[test]
fn what_is_not_as_it_was_is_not_signed() {
    let mut audit = Audit::new();
    let follow = audit.follow();
    audit.goes_on("b");
    audit.shows();
    audit.run(&follow).exits(0);
    let site = audit.path("site");

    // What he has replayed is with him; asked to, he looks at all of it again.
    let newcomer = audit.newcomer("newcomer");
    let anew = format!("{follow} --anew");
    edit(&site, |lines| altered(lines, 1));
    audit.is_refused(&anew, &["TRL-01"]);
    audit.is_refused(&newcomer, &["TRL-01"]);
    audit.shows();
    edit(&site, |lines| altered(lines, 0));
    audit.is_refused(&follow, &["TRL-04"]);
    audit.shows();
    audit.run(&anew).exits(0);

    audit.goes_on("c");
    audit.shows();
    let last = |lines: &Vec<&[u8]>| lines.len() - 1;
    edit(&site, |lines| {
        let last = last(&lines);
        altered(lines, last)
    });
    audit.is_refused(&follow, &["TRL-01"]);
    audit.shows();
    edit(&site, |lines| {
        let at = last(&lines) - 1;
        let mut lines = owned(lines);
        lines.remove(at);
        lines
    });
    audit.is_refused(&follow, &["TRL-01", "TRL-03"]);
    audit.shows();
    edit(&site, |lines| {
        let last = last(&lines);
        owned(lines[..last].to_vec())
    });
    audit.is_refused(&follow, &["TRL-03"]);

    // A copy that is not finished shows nothing.
    audit.shows();
    let head = fs::read(site.join("head.note")).unwrap();
    fs::write(site.join("head.note"), &head[..20]).unwrap();
    audit.run(&follow).exits(2).says("copied to its end");

    // Nobody cosigned it: no tampering, and no statement.
    audit.shows();
    let anchors = fs::read_to_string(audit.path("anchors.toml")).unwrap();
    let (quorum, path) = ("witness_quorum = 1", audit.path("anchors.toml"));
    fs::write(&path, anchors.replacen(quorum, "witness_quorum = 0", 1)).unwrap();
    audit.run(&follow).exits(2).says("witness_quorum");
    let genesis = &audit.hospital.genesis;
    let other = genesis.replace(&genesis[2..6], "0000");
    fs::write(&path, anchors.replace(genesis, &other)).unwrap();
    audit.is_refused(&follow, &["TRL-04"]);
    fs::write(&path, anchors.replace("ehr", "other")).unwrap();
    audit.run(&follow).exits(2).says("do not know the trail");
    fs::write(&path, &anchors).unwrap();
    audit.run(&follow).exits(0);
    assert!(
        audit
            .path("a/trails")
            .join(genesis)
            .join("refused.note")
            .exists()
    );

    // A key without its memory does not sign again.
    fs::remove_file(audit.path("a/statements")).unwrap();
    audit.run(&follow).exits(3).says("must not sign again");
}

/// Database, trail and even the witness are put back, and go on otherwise.
#[test]
fn a_fork_that_its_witness_lent_itself_to_is_not_signed() {
    let mut audit = Audit::new();
    let follow = audit.follow();
    audit.goes_on("b");
    let dir = audit.hospital.dir.path().to_owned();
    let stop_witness = |audit: &mut Audit| audit.hospital.witness.take().unwrap().stop();
    let address = audit.hospital.witness_url.strip_prefix("http://").unwrap();
    let witness = format!("witness run --dir w --listen {address} --json");
    stop_witness(&mut audit);
    let parts = ["guard", "w"];
    for part in parts {
        copy_folder(&dir.join(part), &dir.join("back").join(part));
    }
    fs::copy(dir.join("hospital.db"), dir.join("back/hospital.db")).unwrap();
    audit.hospital.witness = Some(Process::start(&dir, &witness).0);
    audit.goes_on("c");
    audit.shows();
    audit.run(&follow).exits(0);

    stop_witness(&mut audit);
    for part in parts {
        fs::remove_dir_all(dir.join(part)).unwrap();
        copy_folder(&dir.join("back").join(part), &dir.join(part));
    }
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(dir.join(format!("hospital.db{suffix}")));
    }
    fs::copy(dir.join("back/hospital.db"), dir.join("hospital.db")).unwrap();
    audit.hospital.witness = Some(Process::start(&dir, &witness).0);
    // Shorter first, then as long, and longer.
    audit.shows();
    audit.is_refused(&follow, &["TRL-03"]);
    audit.goes_on("d");
    audit.goes_on("e");
    audit.shows();
    audit.is_refused(&follow, &["TRL-04"]);
    let newcomer = audit.newcomer("newcomer");
    run(&dir, &newcomer).exits(0);
}

/// Until stopped, one look after the other.
#[test]
fn an_auditor_goes_on_beside_the_guardian() {
    let mut audit = Audit::new();
    audit.goes_on("b");
    let follow = "audit follow guard/ehr --anchors anchors.toml --dir a --every 1 --json";
    let guardian = audit.hospital.guard();
    let mut auditor = pitser(audit.hospital.dir.path())
        .args(follow.split(' '))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(auditor.stdout.take().unwrap()).lines();
    let auditor = Process(auditor);
    let mut block = || -> u64 {
        let said: Value = serde_json::from_str(&said.next().unwrap().unwrap()).unwrap();
        assert_eq!(said["verdict"], "intact", "{said}");
        said["block"].as_u64().unwrap()
    };
    let began = block();
    audit.hospital.change("c");
    while block() == began {}
    audit
        .run("audit follow guard/ehr --anchors anchors.toml --dir a")
        .exits(3)
        .says("another pitser is this auditor");
    auditor.stop();
    guardian.stop();
}

/// Who answers for a finding is on record as a line like any other, and is replayed.
#[test]
fn an_accepted_finding_is_replayed_too() {
    let mut audit = Audit::new();
    let made = audit.run("erase --new-token m.token --by Mari").exits(0);
    let approver = made
        .out
        .replace("name = \"Mari\"", "name = \"Mari\"\nmay = [\"accept\"]");
    assert_ne!(approver, made.out);
    let path = audit.path("pitser.toml");
    let config = fs::read_to_string(&path).unwrap();
    fs::write(&path, config + &approver).unwrap();
    // Nobody says who changed the row.
    audit.goes_on("b");
    audit.shows();
    audit.run(&audit.follow()).exits(0);

    let guardian = audit.hospital.guard();
    let found = audit.run("guard status --json").exits(1).json();
    let finding = found["sources"][0]["findings"][0]["line"].as_u64().unwrap();
    let accept = format!("guard accept --finding {finding} --reason import --token m.token");
    audit.run(&accept).exits(0);
    guardian.stop();
    audit.goes_on("c");
    let lines = fs::read_dir(audit.path("guard/ehr/trail"))
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            fs::read_to_string(path).unwrap_or_default()
        });
    assert!(lines.collect::<String>().contains("{\"accept\":"));
    audit.shows();
    let said = audit.run(&audit.follow()).exits(0).json();
    assert_eq!(said["verdict"], "intact");
    audit.trust(&audit.key.clone());
    audit.give().exits(0);
    audit.run(EXPORT).exits(0);
    assert_eq!(audit.waiting(0), [""; 0]);
}

/// Killed at any moment, he says one thing of each head, and goes on.
#[test]
fn a_killed_auditor_says_nothing_twice() {
    let mut audit = Audit::new();
    audit.goes_on("b");
    let follow = audit.follow().replace("follow site", "follow guard/ehr");
    let guardian = audit.hospital.guard();
    audit.hospital.status(witnessed(1));
    for moment in 0..40 {
        audit.hospital.change(&format!("c{moment}"));
        let child = pitser(audit.hospital.dir.path())
            .args(follow.split(' '))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(moment * 5));
        Process(child).kill();
    }
    guardian.stop();
    audit.run(&follow).exits(0);
    let text = fs::read_to_string(audit.path("a/statements")).unwrap();
    let sizes: Vec<u64> = text
        .lines()
        .map(|line| {
            let entry: Value = serde_json::from_str(line).unwrap();
            let size = entry["note"].as_str().unwrap().lines().nth(4).unwrap();
            size.split_once(' ').unwrap().0.parse().unwrap()
        })
        .collect();
    assert!(sizes.is_sorted_by(|a, b| a < b), "{sizes:?}");
    audit.give().exits(0);
}

/// Closed segments are in the operator's archive: they are read there.
#[test]
fn archived_segments_are_replayed_too() {
    let mut audit = Audit::new();
    let config = fs::read_to_string(audit.path("pitser.toml")).unwrap();
    let config = config.replace("witness_every_s = 1", "witness_every_s = 1\nsegment_s = 0");
    let store = format!("file://{}", audit.path("store").display());
    fs::create_dir(audit.path("store")).unwrap();
    fs::write(
        audit.path("pitser.toml"),
        format!("{config}[archive]\nstore = \"{store}\"\n"),
    )
    .unwrap();
    for note in ["b", "c", "d"] {
        audit.goes_on(note);
    }
    audit.run("trail archive").exits(0);
    audit.shows();
    assert!(!audit.path("site/trail/000000.jsonl").exists());
    let follow = audit.follow();
    audit.run(&follow).exits(3).says("--archive");
    let said = audit.run(&format!("{follow} --archive {store}"));
    assert_eq!(said.exits(0).json()["signed"], true);
    assert!(!audit.path("site/archive-cache").exists());
    fs::remove_file(audit.path("site/trail/000000.jsonl.archived")).unwrap();
    audit.is_refused(&format!("{follow} --archive {store}"), &["TRL-02"]);
}

/// Nobody reads a file of any length, and of a patient's own list nothing may be left out.
#[test]
fn values_that_are_too_long_for_the_file_stand_beside_it() {
    let mut audit = Audit::new();
    audit.trust(&audit.key);
    let long = ["x", "y"].map(|letter| letter.repeat(3 << 20));
    for note in [&*long[0], "short", &*long[1]] {
        audit.goes_on(note);
    }
    audit.shows();
    audit.run(&audit.follow()).exits(0);
    audit.give().exits(0);
    let export = EXPORT.replace(" --force", "");
    // An export that was cut off: what it has left goes away, and needs no --force.
    let unfinished = audit.path("e.pitser.values.unfinished");
    fs::create_dir(&unfinished).unwrap();
    fs::write(unfinished.join("7.2"), "t").unwrap();
    let said = audit.run(&export).exits(0).json();
    assert_eq!(said["apart"]["files"], 2, "{said}");
    assert_eq!(said["apart"]["bytes"], 2 * (1 + (3 << 20)), "{said}");
    assert!(fs::metadata(audit.path("e.pitser")).unwrap().len() < 1 << 20);

    assert!(!unfinished.exists());
    let folder = audit.path("e.pitser.values");
    let files = || {
        let files = fs::read_dir(&folder).unwrap();
        let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        files.sort_by_key(|file| (file.as_os_str().len(), file.clone()));
        files
    };
    let [first, second] = files().try_into().unwrap();
    // As canonical bytes: a letter for the type, and the text.
    assert!(fs::read(&first).unwrap()[1..] == *long[0].as_bytes());
    let found = |code: i32| audit.run(VERIFY).exits(code).json();
    let counted = |matching: u64, missing: u64, unknown: u64| {
        let files = &found(0)["files"];
        let names = ["matching", "missing", "unknown"];
        assert_eq!(
            names.map(|name| files[name].as_u64().unwrap()),
            [matching, missing, unknown]
        );
    };
    counted(2, 0, 0);
    let name = first.file_name().unwrap().to_str().unwrap();
    audit
        .run(&format!("{} --show", VERIFY.replace(" --json", "")))
        .exits(0)
        .says(&format!("note = (in a file of its own: {name})"))
        .says("2 values in e.pitser.values");

    // What stands there is believed no more than the file.
    fs::write(&second, format!("t{}", long[0])).unwrap();
    let report = found(1);
    assert_eq!(report["code"], "EVD-02", "{report}");
    let text = report["steps"].to_string();
    assert!(
        text.contains("is not the value of column note that was sealed"),
        "{text}"
    );
    fs::remove_file(&second).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &second).unwrap();
    audit.run(VERIFY).exits(3).says("not a file");
    fs::remove_file(&second).unwrap();
    fs::write(folder.join("9999.1"), "planted").unwrap();
    counted(1, 1, 1);

    // Another export leaves nothing of it behind, and nothing else away.
    audit
        .run(&export)
        .exits(3)
        .says("e.pitser is there already");
    fs::write(folder.join("notes.txt"), "mine").unwrap();
    audit.run(EXPORT).exits(0);
    assert_eq!(files().len(), 3);
    counted(2, 0, 0);
    fs::rename(&folder, audit.path("elsewhere")).unwrap();
    counted(0, 2, 0);
    let elsewhere = format!("{VERIFY} --values elsewhere");
    assert_eq!(
        audit.run(&elsewhere).exits(0).json()["files"]["matching"],
        2
    );
}
