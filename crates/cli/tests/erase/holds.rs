//! Whoever sets or lifts a hold is killed before one of its system calls: the hold stands
//! or does not, by the trail, and what was answered is so.
//!
//! `SEED=17 cargo test -p pitser --test erase hold` replays a failure's choices.

use crate::common::Choices;
use crate::killed::{is_watched, under_strace};
use crate::site::Site;
use pitser_trail::Layout;
use std::fs;
use std::process::{Command, Stdio};

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
