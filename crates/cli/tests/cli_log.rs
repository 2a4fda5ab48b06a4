//! Log signatures on the command line.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;

use common::{Dev, files, run, testdata};

#[test]
fn a_log_from_signing_to_a_proof_of_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut dev = Dev::start(dir, 2);
    let (service, trust) = (dev.service.clone(), dev.trust.clone());
    let lines: Vec<_> = (1..=10).map(|line| format!("line {line}\n")).collect();
    fs::write(dir.join("a.log"), lines.concat()).unwrap();

    let signed = run(
        dir,
        &format!("log sign a.log -S {service} --level 3 --json"),
    )
    .exits(0)
    .json();
    assert_eq!(
        (&signed["blocks"], &signed["signed_now"]),
        (&3.into(), &3.into())
    );
    run(dir, "log verify a.log").exits(2).says("seals  waiting");
    let judgement = run(dir, &format!("log verify a.log {trust} --json"))
        .exits(0)
        .json();
    assert_eq!(judgement["lines"], 10);
    let signed_at = judgement["blocks"][2]["signed_at"]
        .as_str()
        .unwrap()
        .to_owned();

    // Whatever is done to the log is named.
    let check = |text: &str, code, told: &str| {
        fs::write(dir.join("b.log"), text).unwrap();
        fs::copy(dir.join("a.log.logsig"), dir.join("b.log.logsig")).unwrap();
        run(dir, &format!("verify b.log.logsig {trust}"))
            .exits(code)
            .says(told);
    };
    check(
        &lines.concat().replace("line 7", "line 8"),
        1,
        "TRL-01 line 7 is not what was signed",
    );
    check(&lines[..9].concat(), 1, "TRL-02 line 10 is missing");
    check(
        &(lines.concat() + "line 11\n"),
        2,
        "1 line from line 11 on in no block",
    );

    // One line leaves, with its own proof.
    run(dir, "log extract a.log -l 3,9-10").exits(0);
    assert_eq!(
        fs::read_to_string(dir.join("a.log.excerpt")).unwrap(),
        "line 3\nline 9\nline 10\n"
    );
    run(dir, &format!("log verify a.log.excerpt {trust}"))
        .exits(0)
        .says("3 lines in 2 blocks");
    fs::write(dir.join("a.log.excerpt"), "line 3\nline 7\nline 10\n").unwrap();
    run(dir, &format!("log verify a.log.excerpt {trust}"))
        .exits(1)
        .says("line 2 is not");
    run(dir, "log extract a.log -l 11 -o x")
        .exits(3)
        .says("covers 10 lines");
    run(dir, "log extract a.log -l 9 --ksig").exits(0);
    fs::write(dir.join("nine"), "line 9").unwrap();
    run(
        dir,
        &format!("verify a.log.line.9.ksig --document nine {trust}"),
    )
    .exits(0);

    dev.published(&signed_at);
    run(dir, &format!("log extend a.log -X {service} {trust}")).exits(0);
    run(
        dir,
        &format!("log verify a.log {trust} --policy publications-file"),
    )
    .exits(0)
    .says("leads to a publication");
}

#[test]
fn a_service_that_is_away_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("a.log"), "one\ntwo\n").unwrap();
    run(dir, "log sign a.log -S ksi+tcp://a:b@127.0.0.1:1")
        .exits(4)
        .says("1 of 1 blocks");
    run(dir, "log verify a.log --policy internal")
        .exits(2)
        .says("not signed yet");
    let dev = Dev::start(dir, 0);
    run(dir, &format!("log sign a.log -S {}", dev.service)).exits(0);
    run(dir, &format!("log verify a.log {}", dev.trust)).exits(0);
}

/// What the vectors' makers say of them, see `crates/ksi/tests/logsig.rs`.
#[test]
fn published_logs() {
    let broken = [
        "testlog-interlink-first-rec-time-changed-2.logsig",
        "testlog-interlink-n-1-rec-time-changed-1.logsig",
        "large-line-skipping.logsig",
    ];
    let mut seen = 0;
    for path in files(&testdata("logsig")) {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let Some(log) = path.to_str().unwrap().strip_suffix(".logsig") else {
            continue;
        };
        let expected = match name.as_str() {
            name if broken.contains(&name) => 1,
            "totally-unsigned.logsig" => 2,
            _ => 0,
        };
        run(
            path.parent().unwrap(),
            &format!("log verify {log} --policy internal"),
        )
        .exits(expected);
        seen += 1;
    }
    assert!(seen >= 10, "{seen}");
}
