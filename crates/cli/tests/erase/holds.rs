//! Whoever sets or lifts a hold is killed, a command before one of its system calls, a
//! running guardian at any moment: the hold stands or does not, by the trail, and what was
//! answered is so.
//!
//! `SEED=17 cargo test -p pitser --test erase hold` replays a failure's choices.

use crate::common::Choices;
use crate::killed::{is_watched, under_strace};
use crate::site::Site;
use pitser_trail::Layout;
use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const ROUNDS: u64 = 16;

/// Calls by which a line and what it commits to get to the disk.
const CALLS: &str = "write,pwrite64,fsync,fdatasync,rename,unlink,ftruncate";

fn change(site: &Site, patient: &str, sets: bool) -> Command {
    let what = if sets { "add" } else { "remove" };
    let token = site.path("jaan.token");
    let mut command = site.command(&["hold", what, "--patient", patient]);
    command
        .args(["--reason", "court case 2-26-117", "--token"])
        .arg(token)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// The names of a change's calls, in their order.
fn calls(site: &Site, sets: bool) -> Vec<String> {
    let log = site.path("calls");
    let args = ["-f", "-e", &format!("trace={CALLS}"), "-e", "signal=none"];
    let mut watched = under_strace(&args, &log, &change(site, "pt-2", sets));
    assert!(watched.status().unwrap().success());
    let text = fs::read_to_string(log).unwrap();
    let is_begun = |line: &&str| !line.contains("resumed>") && line.contains('(');
    let name = |line: &str| {
        line.split([' ', '('])
            .find(|word| CALLS.split(',').any(|it| it == *word))
            .map(str::to_owned)
    };
    text.lines().filter(is_begun).filter_map(name).collect()
}

#[test]
fn killed_in_the_middle_a_hold_stands_or_was_never_set() {
    if !is_watched() {
        println!("skipped: without strace nobody is killed at a call");
        return;
    }
    let site = Site::new("");
    site.run(&["guard", "init"]).exits(0);
    let guardian = site.guard();
    site.scans_clean();
    guardian.stop();
    let mut choices = Choices::seeded();
    let rehearsed = [true, false].map(|sets| calls(&site, sets));
    let (mut stands, mut killed) = (false, 0);
    for round in 0..ROUNDS {
        let of_it = &rehearsed[usize::from(stands)];
        let at = usize::try_from(choices.below(of_it.len() as u64)).unwrap();
        let call = &of_it[at];
        let times = of_it[..=at].iter().filter(|it| *it == call).count();
        let inject = format!("inject={call}:signal=KILL:when={times}");
        let args = ["-f", "-e", &format!("trace={call}"), "-e", &inject];
        let mut dying = under_strace(&args, &site.path("killed"), &change(&site, "pt-1", !stands));
        let is_answered = dying.status().unwrap().success();
        killed += u64::from(!is_answered);
        // Shown where the test fails.
        println!("round {round}: killed before {call} number {times}, answered: {is_answered}");

        let listed = site
            .run_as("mari", &["hold", "list", "--json"])
            .exits(0)
            .json();
        let now = listed["holds"].as_array().unwrap().len() == 1;
        assert!(!is_answered || now != stands, "what was answered is so");
        let history = site.history("pt-1");
        let count = |op: &str| history.iter().filter(|it| it["line"]["op"] == op).count();
        assert_eq!(
            count("hold") - count("release"),
            usize::from(now),
            "{history:?}"
        );
        if now {
            let hold = &listed["holds"][0];
            assert_eq!(
                (&hold[0], &hold[1]["by"]),
                (&"pt-1".into(), &"Jaan Tamm".into())
            );
            assert_eq!(hold[1]["reason"], "court case 2-26-117");
        }
        let ask = [
            "erase",
            "--patient",
            "pt-1",
            "--basis",
            "GDPR art. 17(1)(d)",
        ];
        site.run_as("mari", &ask).exits(if now { 3 } else { 0 });
        stands = now;
    }
    assert!(killed > 0, "nobody was killed");
    println!("{killed} of {ROUNDS} were killed");
    // The last block gets its seal.
    site.guard().stop();
    site.run(&["trail", "verify"]).exits(0);
}

/// Who sets and lifts holds of one patient, over and over.
struct Approver {
    who: &'static str,
    patient: &'static str,
    /// Whether one stands, as far as he was answered.
    stands: bool,
    /// What he asked for last, if he had no answer.
    unanswered: Option<bool>,
    /// Lines that set a hold, by the answers, and how many lifted one.
    set: Vec<u64>,
    lifted: usize,
}

impl Approver {
    fn of(who: &'static str, patient: &'static str) -> Self {
        Self {
            who,
            patient,
            stands: false,
            unanswered: None,
            set: Vec::new(),
            lifted: 0,
        }
    }

    /// Asks until he is told to stop, or has no answer.
    fn ask(&mut self, site: &Site, answers: &AtomicU64, stop: &AtomicBool) {
        while self.unanswered.is_none() && !stop.load(Ordering::Relaxed) {
            let sets = !self.stands;
            let what = if sets { "add" } else { "remove" };
            let ask = ["hold", what, "--json", "--patient", self.patient];
            let why = ["--reason", "court case 2-26-117"];
            let said = site.run_as(self.who, &[&ask[..], &why].concat());
            assert_ne!(
                said.code, 3,
                "refused, with stands = {}: {said:?}",
                self.stands
            );
            if said.code != 0 {
                self.unanswered = Some(sets);
                return;
            }
            let line = said.json()["hold"]["line"].as_u64().unwrap();
            match sets {
                true => self.set.push(line),
                false => self.lifted += 1,
            }
            self.stands = sets;
            answers.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What was answered is on record, and what was not is so or is not: then he knows.
    fn is_right(&mut self, site: &Site) {
        let history = site.history(self.patient);
        let of = |op: &str| {
            let lines = history.iter().map(|entry| &entry["line"]);
            let lines = lines.filter(|line| line["op"] == op);
            lines
                .map(|line| line["seq"].as_u64().unwrap())
                .collect::<Vec<_>>()
        };
        let (set, lifted) = (of("hold"), of("release"));
        let stands = set.len() > lifted.len();
        match self.unanswered.take() {
            None => assert_eq!(stands, self.stands, "{history:?}"),
            Some(true) if stands => self.set.extend(set.last()),
            Some(false) if !stands => self.lifted += 1,
            Some(_) => {}
        }
        assert_eq!(
            (&set, lifted.len()),
            (&self.set, self.lifted),
            "{history:?}"
        );
        self.stands = stands;

        let listed = site.run_as(self.who, &["hold", "list", "--json"]);
        let listed = listed.exits(0).json();
        let holds = listed["holds"].as_array().unwrap().iter();
        let holds = holds.filter(|hold| hold[0] == self.patient);
        let lines: Vec<_> = holds.map(|hold| hold[1]["line"].as_u64()).collect();
        let expected = stands.then(|| set.last().copied());
        assert_eq!(lines, Vec::from_iter(expected));
        let ask = [
            "erase",
            "--patient",
            self.patient,
            "--basis",
            "GDPR art. 17(1)(d)",
        ];
        let refused = site.run_as(self.who, &ask);
        match stands {
            true => drop(refused.exits(3).says("a legal hold stands")),
            false => drop(refused.exits(0)),
        }
    }
}

#[test]
fn killed_at_any_moment_a_guardian_has_the_holds_that_it_answered() {
    let site = Site::new("");
    site.run(&["guard", "init"]).exits(0);
    let mut choices = Choices::seeded();
    let mut approvers = [Approver::of("mari", "pt-1"), Approver::of("jaan", "pt-2")];
    let mut unanswered = 0;
    for round in 0..ROUNDS {
        let guardian = site.guard();
        let (answers, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let (until, later) = (choices.below(8), choices.below(30_000));
        std::thread::scope(|scope| {
            for approver in &mut approvers {
                scope.spawn(|| approver.ask(&site, &answers, &stop));
            }
            while answers.load(Ordering::Relaxed) < until {
                std::thread::yield_now();
            }
            let reached = Instant::now();
            while reached.elapsed() < Duration::from_micros(later) {
                std::hint::spin_loop();
            }
            guardian.kill();
            stop.store(true, Ordering::Relaxed);
        });
        // Shown where the test fails.
        println!("round {round}: killed {later} us after answer {until}");
        let waiting = approvers.iter().filter(|it| it.unanswered.is_some());
        unanswered += waiting.count();
        // By the next guardian, or by whoever asks while there is none.
        let guardian = (choices.below(2) == 0).then(|| site.guard());
        approvers.iter_mut().for_each(|it| it.is_right(&site));
        if let Some(guardian) = guardian {
            guardian.kill();
        }
        let verified = site.run(&["trail", "verify"]);
        assert!(matches!(verified.code, 0 | 2), "{verified:?}");
    }
    assert!(unanswered > 0, "nobody was kept waiting");
    println!("{unanswered} had no answer");
    // The last block gets its seal.
    site.guard().stop();
    site.run(&["trail", "verify"]).exits(0);
    approvers.iter_mut().for_each(|it| it.is_right(&site));
}

#[test]
fn in_a_trail_of_before_a_hold_is_said_to_be_not_on_record() {
    let site = Site::new("");
    site.run(&["guard", "init"]).exits(0);
    let layout = Layout::new(site.path("guard/h"));
    let text = fs::read_to_string(layout.segment(0)).unwrap();
    let older = text.replace("\"rules\":17", "\"rules\":16");
    assert_ne!(older, text);
    fs::write(layout.segment(0), &older).unwrap();
    fs::remove_dir_all(layout.map()).unwrap();
    let add = [
        "hold",
        "add",
        "--patient",
        "pt-1",
        "--reason",
        "court case 2-26-117",
    ];
    site.run_as("jaan", &add)
        .exits(0)
        .says("It is not on record");
    site.run_as("mari", &["hold", "list"])
        .exits(0)
        .says("by Jaan Tamm (not on record)");
    let remove = ["hold", "remove", "--patient", "pt-1"];
    site.run_as("mari", &remove).exits(0).says("lifted hold");
    assert_eq!(fs::read_to_string(layout.segment(0)).unwrap(), older);
}
