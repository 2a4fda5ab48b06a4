//! Whoever carries out an erasure is killed at seeded moments of it: the running
//! guardian as soon as a step shows in its folder, and the command that works on a
//! stopped guardian's folder before one of its system calls.
//!
//! `SEED=17 cargo test -p pitser --test erase killed` replays a failure's choices.

use crate::common::{Choices, Process};
use crate::site::{Site, is_in};
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const KILLS: u64 = 12;

/// Calls by which an erasure gets to the disk.
const CALLS: &str = "openat,write,pwrite64,fsync,fdatasync,rename,unlink,ftruncate";

/// What an erasure leaves in the folder, in this order.
#[derive(Debug, Clone, Copy)]
enum Step {
    Asked,
    Noted,
    Written,
    KeyMade,
    KeyGone,
}

/// The trail's folder before an erasure: what must be gone afterwards, and how far
/// one has come since.
struct Before {
    folder: PathBuf,
    noted: u64,
    lines: u64,
    epoch: PathBuf,
    /// The patient's key and identifier as the vault keeps them, and the epoch key.
    secrets: [Vec<u8>; 3],
}

impl Before {
    fn of(site: &Site, pseudonym: &str) -> Self {
        let folder = site.path("guard/h");
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
        let db = Connection::open_with_flags(folder.join("vault/keys.db"), flags).unwrap();
        let (wrapped, identifier): (Vec<u8>, Vec<u8>) = db
            .query_row(
                "SELECT wrapped, identifier FROM compartment WHERE id = ?1",
                [pseudonym],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .unwrap();
        let epochs = epochs(&folder);
        assert_eq!(epochs.len(), 1, "an earlier erasure was finished");
        let epoch_key = fs::read(&epochs[0]).unwrap();
        Self {
            noted: len(&folder.join("erasures")),
            lines: len(&folder.join("trail/000000.jsonl")),
            epoch: epochs[0].clone(),
            secrets: [wrapped, identifier, epoch_key],
            folder,
        }
    }

    fn has_come_to(&self, step: Step) -> bool {
        match step {
            Step::Asked => true,
            Step::Noted => len(&self.folder.join("erasures")) > self.noted,
            Step::Written => len(&self.folder.join("trail/000000.jsonl")) > self.lines,
            Step::KeyMade => epochs(&self.folder).len() > 1 || self.has_come_to(Step::KeyGone),
            Step::KeyGone => !self.epoch.exists(),
        }
    }
}

fn len(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}

fn epochs(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.join("vault")).unwrap();
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "key"))
        .collect()
}

/// A command that works until it ends, or until it is killed.
struct Rounds {
    site: Site,
    choices: Choices,
    /// The calls of one erasure by the command, in their order; none without `strace`.
    calls: Vec<String>,
    guardian: Option<Process>,
}

impl Rounds {
    fn new() -> Self {
        let site = Site::new("");
        let db = Connection::open(site.path("hospital.db")).unwrap();
        for patient in 3..KILLS + 4 {
            let row = (patient, identifier(patient), format!("note {patient}"));
            db.execute("INSERT INTO entry VALUES (?1, ?2, ?3)", row)
                .unwrap();
        }
        site.run(&["guard", "init"]).exits(0);
        let guardian = site.guard();
        site.run(&["guard", "scan"]).exits(0);
        guardian.stop();
        Self {
            site,
            choices: Choices::seeded(),
            calls: Vec::new(),
            guardian: None,
        }
    }

    /// Erases a patient with nobody killed, and writes down by which calls.
    fn rehearse(&mut self, patient: u64) {
        let code = self.site.request("mari", &identifier(patient));
        let log = self.site.path("calls");
        let mut confirm = self.confirm(&code);
        if is_watched() {
            let args = ["-f", "-e", &format!("trace={CALLS}"), "-e", "signal=none"];
            confirm = under_strace(&args, &log, &confirm);
        }
        assert!(confirm.status().unwrap().success());
        let text = fs::read_to_string(log).unwrap_or_default();
        let call = |line: &str| line.split(' ').next().map(str::to_owned);
        let begins = text.lines().find(|line| line.contains("erasures.new"));
        let thread = begins.and_then(call).unwrap_or_default();
        let of_it = text.lines().filter(|line| {
            let is_resumed = line.contains("resumed>") || line.contains("+++");
            line.starts_with(&format!("{thread} ")) && !is_resumed
        });
        self.calls = of_it.map(str::to_owned).collect();
    }

    fn confirm(&self, code: &str) -> Command {
        let token = self.site.path("jaan.token");
        let mut command = self.site.command(&["erase", "--confirm", code, "--token"]);
        command
            .arg(token)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    /// Confirms the erasure, and kills who carries it out; says when.
    fn kill(&mut self, by_guardian: bool, code: &str, before: &Before) -> String {
        if let Some(guardian) = self.guardian.take_if(|_| !by_guardian) {
            guardian.stop();
        }
        if by_guardian {
            let guardian = self.guardian.take();
            let mut guardian = guardian.unwrap_or_else(|| self.site.guard());
            let mut asking = Process(self.confirm(code).spawn().unwrap());
            let told = self.kill_at_a_step(&mut guardian.0, Some(&mut asking.0), before);
            // Without a guardian it may do it itself.
            asking.0.wait().unwrap();
            return format!("the guardian {told}");
        }
        if self.calls.is_empty() {
            let mut command = Process(self.confirm(code).spawn().unwrap());
            return self.kill_at_a_step(&mut command.0, None, before);
        }
        let noted = |call: &String| call.contains("erasures.new");
        let first = self.calls.iter().position(noted).unwrap();
        let left = (self.calls.len() - first) as u64;
        let at = first + usize::try_from(self.choices.below(left)).unwrap();
        let name = |call: &str| call.split([' ', '(']).nth(1).unwrap().to_owned();
        let call = name(&self.calls[at]);
        let before = self.calls[..=at].iter();
        let times = before.filter(|other| name(other) == call).count();
        let inject = format!("inject={call}:signal=KILL:when={times}");
        let args = ["-f", "-e", &format!("trace={call}"), "-e", &inject];
        let log = self.site.path("killed");
        let status = under_strace(&args, &log, &self.confirm(code)).status();
        format!("before {call} number {times}, {}", status.unwrap())
    }

    fn kill_at_a_step(
        &mut self,
        worker: &mut Child,
        mut asking: Option<&mut Child>,
        before: &Before,
    ) -> String {
        const STEPS: [Step; 5] = [
            Step::Asked,
            Step::Noted,
            Step::Written,
            Step::KeyMade,
            Step::KeyGone,
        ];
        let step = STEPS[usize::try_from(self.choices.below(5)).unwrap()];
        let later = Duration::from_micros(self.choices.below(1500));
        let mut has_ended = || {
            let asking = asking.as_mut().map(|child| child.try_wait().unwrap());
            asking.flatten().is_some()
        };
        while !before.has_come_to(step) && !has_ended() && worker.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        let reached = Instant::now();
        while reached.elapsed() < later {
            std::hint::spin_loop();
        }
        worker.kill().unwrap();
        worker.wait().unwrap();
        format!("{} us after {step:?}", later.as_micros())
    }

    /// Of the erasure there is all or nothing once the trail is opened again, and
    /// where there is nothing it is carried out now. `true` if there was all.
    fn is_whole_or_has_not_begun(&mut self, patient: u64, code: &str, before: &Before) -> bool {
        let site = &self.site;
        if self.choices.below(2) == 0 {
            self.guardian = Some(site.guard());
        }
        let id = identifier(patient);
        let look = ["erase", "--patient", &id, "--dry-run", "--json"];
        let plan = site.run_as("mari", &look).exits(0).json();
        let is_erased = plan["plan"]["has_key"] == false;
        let lines = site.history(&id);
        assert_eq!(lines[0]["row"].is_null(), is_erased, "{lines:?}");
        assert_eq!(erasures(&lines).len(), usize::from(is_erased), "{lines:?}");
        let again = site.run_as("jaan", &["erase", "--confirm", code]);
        again.exits(if is_erased { 3 } else { 0 });

        let lines = site.history(&id);
        let erasures = erasures(&lines);
        assert_eq!(erasures.len(), 1, "{lines:?}");
        assert_eq!(erasures[0]["deciders"][0], "Mari Maasikas");
        assert_eq!(erasures[0]["deciders"][1], "Jaan Tamm");
        assert!(lines[0]["row"].is_null());
        for secret in &before.secrets {
            assert!(!is_in(&site.path("guard"), secret), "a key is left");
        }
        assert_eq!(epochs(&before.folder).len(), 1);
        is_erased
    }
}

fn identifier(patient: u64) -> String {
    format!("patient-{patient}")
}

fn erasures(lines: &[Value]) -> Vec<&Value> {
    let is_erasure = |entry: &&Value| entry["line"]["op"] == "erase";
    lines.iter().filter(is_erasure).collect()
}

/// Whether `strace` may watch processes here.
pub(crate) fn is_watched() -> bool {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-o", "/dev/null", "true"]);
    let ran = strace.stdout(Stdio::null()).stderr(Stdio::null()).status();
    let is_so = ran.is_ok_and(|status| status.success());
    if !is_so {
        println!("no strace: the command is killed when its steps show, too");
    }
    is_so
}

pub(crate) fn under_strace(args: &[&str], log: &Path, command: &Command) -> Command {
    let mut strace = Command::new("strace");
    strace.args(args).arg("-o").arg(log).arg("--");
    strace.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => strace.env(name, value),
            None => strace.env_remove(name),
        };
    }
    strace.current_dir(command.get_current_dir().unwrap());
    strace.stdout(Stdio::null()).stderr(Stdio::null());
    strace
}

#[test]
fn killed_in_the_middle_an_erasure_is_whole_or_has_not_begun() {
    let mut rounds = Rounds::new();
    let proof = |site: &Site, patient: u64| {
        let file = format!("{patient}.pitser");
        let export = ["evidence", "export", "--patient", &identifier(patient)];
        let out = ["-o", &file];
        site.run(&[&export[..], &out[..]].concat()).exits(0);
    };
    let judged = |site: &Site, patient: u64| {
        let said = site.run(&["verify", &format!("{patient}.pitser"), "--json"]);
        assert_ne!(said.code, 1, "{said:?}");
        said.json()
    };
    let proved = [3, 4, KILLS + 2];
    let before = proved.map(|patient| {
        proof(&rounds.site, patient);
        judged(&rounds.site, patient)
    });
    rounds.rehearse(KILLS + 3);
    let mut whole = 0;
    for round in 0..KILLS {
        let patient = round + 3;
        let id = identifier(patient);
        let look = ["erase", "--patient", &id, "--dry-run", "--json"];
        let plan = rounds.site.run_as("mari", &look).exits(0).json();
        let code = rounds.site.request("mari", &id);
        let pseudonym = plan["plan"]["patient"].as_str().unwrap();
        let folder = Before::of(&rounds.site, pseudonym);
        let when = rounds.kill(round % 2 == 0, &code, &folder);
        // Shown where the test fails.
        println!("round {round}: killed {when}");
        let was_whole = rounds.is_whole_or_has_not_begun(patient, &code, &folder);
        println!("round {round}: whole: {was_whole}");
        whole += u64::from(was_whole);
    }
    println!("{whole} of {KILLS} were whole");
    if let Some(guardian) = rounds.guardian.take() {
        guardian.stop();
    }
    let site = rounds.site;
    // The last block gets its seal.
    site.guard().stop();
    site.run(&["trail", "verify"]).exits(0);
    for patient in ["pt-1", "pt-2"] {
        assert!(!site.history(patient)[0]["row"].is_null());
    }
    // What was exported before the erasures is judged as it was, and so is what is
    // exported now.
    assert_eq!(proved.map(|patient| judged(&site, patient)), before);
    for patient in 3..KILLS + 4 {
        fs::remove_file(site.path(&format!("{patient}.pitser"))).ok();
        proof(&site, patient);
        judged(&site, patient);
    }
}
