//! Log signatures on the command line.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;
use std::io::Write as _;
use std::path::Path;

use common::{Dev, files, run, testdata};
use pitser_ksi::logsig::{BlockReader, Seal, encode_unsigned, signed_root};

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
    run(
        dir,
        &format!("log verify a.log.excerpt --after a.log {trust}"),
    )
    .exits(3)
    .says("--after says nothing about an excerpt");
    run(dir, "verify a.log.logsig --level 1")
        .exits(3)
        .says("--level says nothing");
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

fn append(path: &Path, text: &str) {
    let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// `count` lines that begin with `name`.
fn lines(name: &str, count: usize) -> String {
    (1..=count).map(|line| format!("{name} {line}\n")).collect()
}

#[test]
fn a_log_is_signed_now_and_later() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let log = dir.join("a.log");
    fs::write(&log, lines("early", 9)).unwrap();
    let unsigned = run(dir, "log sign a.log --level 3 --json").exits(2).json();
    assert_eq!(
        (
            &unsigned["blocks"],
            &unsigned["unsigned"],
            &unsigned["lines_added"]
        ),
        (&3.into(), &3.into(), &9.into())
    );

    // What waits is signed, and what was written since.
    let dev = Dev::start(dir, 0);
    let sign = format!("log sign a.log --level 3 --json -S {}", dev.service);
    append(&log, &lines("late", 6));
    let signed = run(dir, &sign).exits(0).json();
    assert_eq!(
        (
            &signed["blocks"],
            &signed["signed_now"],
            &signed["lines_added"]
        ),
        (&5.into(), &5.into(), &6.into())
    );
    let judged = run(dir, &format!("log verify a.log {} --json", dev.trust))
        .exits(0)
        .json();
    assert_eq!(judged["lines"], 15);
    assert_eq!(judged["last_leaf"], signed["last_leaf"]);

    // With nothing new the file is left alone.
    let before = fs::metadata(dir.join("a.log.logsig"))
        .unwrap()
        .modified()
        .unwrap();
    let again = run(dir, &sign).exits(0).json();
    assert_eq!(
        (&again["signed_now"], &again["lines_added"]),
        (&0.into(), &0.into())
    );
    let after = fs::metadata(dir.join("a.log.logsig"))
        .unwrap()
        .modified()
        .unwrap();
    assert_eq!(before, after);
    assert_eq!(again["last_leaf"], signed["last_leaf"]);
}

#[test]
fn nothing_goes_on_from_an_altered_block() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("a.log"), lines("line", 7)).unwrap();
    run(dir, "log sign a.log --level 3").exits(2);
    let before = fs::read(dir.join("a.log.logsig")).unwrap();
    for altered in [
        lines("line", 7).replace("line 6", "line 9"),
        lines("line", 6),
    ] {
        fs::write(dir.join("a.log"), altered).unwrap();
        run(dir, "log sign a.log --level 3")
            .exits(1)
            .says("TRL-01 a.log: the lines of its last block are not what was signed");
    }
    assert_eq!(fs::read(dir.join("a.log.logsig")).unwrap(), before);
    let names = |name: &str| {
        fs::read_dir(dir)
            .unwrap()
            .filter(|it| {
                let it = it.as_ref().unwrap().file_name();
                it.to_str().unwrap().contains(name)
            })
            .count()
    };
    assert_eq!(names(".new"), 0, "nothing half made stays");

    // Without the log, what waits can still be signed.
    let dev = Dev::start(dir, 0);
    fs::remove_file(dir.join("a.log")).unwrap();
    run(dir, &format!("log sign a.log -S {}", dev.service)).exits(0);
    fs::write(dir.join("a.log"), lines("line", 7)).unwrap();
    run(dir, &format!("log verify a.log {}", dev.trust)).exits(0);
}

#[test]
fn a_rotated_log_is_one_chain() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (day, count) in [("mon", 5), ("tue", 8), ("wed", 1)] {
        fs::write(dir.join(format!("{day}.log")), lines(day, count)).unwrap();
        run(
            dir,
            &format!("log sign {day}.log --level 3 --state log.ksistate"),
        )
        .exits(2);
    }
    let state = fs::read(dir.join("log.ksistate")).unwrap();
    assert!(state.starts_with(b"KSISTAT10\x01\x20"), "{state:x?}");
    let last = run(dir, "log verify wed.log --policy internal --json")
        .exits(2)
        .json()["last_leaf"]
        .as_str()
        .unwrap()
        .to_owned();
    let verify = |args: &str| run(dir, &format!("log verify {args} --policy internal"));
    verify("mon.log")
        .exits(2)
        .says("each block goes on from the one before\n");
    verify("tue.log").exits(2).says("goes on from another log");
    verify("tue.log --after mon.log")
        .exits(2)
        .says("the first from the log before");
    verify("wed.log --after tue.log").exits(2);
    // A day is missing.
    verify("wed.log --after mon.log")
        .exits(1)
        .says("TRL-02 block 1 goes on from");
    // The state, and the leaf itself, say the same.
    fs::write(dir.join("thu.log"), lines("thu", 2)).unwrap();
    run(dir, &format!("log sign thu.log --after {last}")).exits(2);
    verify("thu.log --after log.ksistate").exits(2);
    verify(&format!("thu.log --after {last}")).exits(2);
    verify("thu.log --after nothing.there")
        .exits(3)
        .says("nothing.there");
    fs::write(dir.join("log.ksistate"), b"KSISTAT10\x01\x20short").unwrap();
    verify("thu.log --after log.ksistate")
        .exits(3)
        .says("truncated");
}

/// The state has gone on to another log, when what waited in this one is signed.
#[test]
fn an_older_log_that_is_signed_again_breaks_no_chain() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let sign = |day: &str| run(dir, &format!("log sign {day}.log --state log.ksistate"));
    for day in ["mon", "tue", "wed"] {
        fs::write(dir.join(format!("{day}.log")), lines(day, 3)).unwrap();
    }
    sign("mon").exits(2);
    let monday = fs::read(dir.join("log.ksistate")).unwrap();
    sign("tue").exits(2);
    let tuesday = fs::read(dir.join("log.ksistate")).unwrap();
    append(&dir.join("mon.log"), "late\n");
    sign("mon").exits(2).says("it is that of another log");
    assert_eq!(fs::read(dir.join("log.ksistate")).unwrap(), tuesday);
    // One that was signed, when the state could not be written.
    fs::write(dir.join("log.ksistate"), monday).unwrap();
    sign("tue").exits(2);
    assert_eq!(fs::read(dir.join("log.ksistate")).unwrap(), tuesday);
    // One that grew, and was signed without it: it stands at a block in the middle.
    for text in ["grown\n", "grown again\n"] {
        append(&dir.join("tue.log"), text);
        run(dir, "log sign tue.log").exits(2);
    }
    append(&dir.join("tue.log"), "and again\n");
    sign("tue").exits(2);
    assert_ne!(fs::read(dir.join("log.ksistate")).unwrap(), tuesday);
    sign("wed").exits(2);
    run(dir, "log verify wed.log --after tue.log --policy internal")
        .exits(2)
        .says("the first from the log before");
    // It has its beginning.
    run(dir, "log sign wed.log --after mon.log")
        .exits(3)
        .says("does not go on from mon.log");
    run(dir, "log sign wed.log --after tue.log").exits(2);
}

/// What is written to it may come in parts.
#[test]
fn half_a_line_is_not_signed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("a.log"), "one\ntwo\nuser=an").unwrap();
    run(dir, "log sign a.log")
        .exits(2)
        .says("lines added     2")
        .says("no line end yet");
    append(&dir.join("a.log"), "na\nfour\r");
    run(dir, "log sign a.log").exits(2).says("no line end yet");
    append(&dir.join("a.log"), "\nfive");
    run(dir, "log sign a.log").exits(2);
    run(dir, "log verify a.log --policy internal")
        .exits(2)
        .says("1 line from line 5 on in no block");
    run(dir, "log sign a.log --closed").exits(2);
    run(dir, "log verify a.log --policy internal")
        .exits(2)
        .says("5 lines in");
    fs::write(dir.join("b.log"), "half").unwrap();
    run(dir, "log sign b.log").exits(3).says("--closed");
    run(dir, "log sign b.log --closed").exits(2);
}

#[test]
fn a_log_may_come_by_a_pipe() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("a.log"), lines("line", 5)).unwrap();
    let feed = |args: &str| -> common::Said {
        let log = fs::File::open(dir.join("a.log")).unwrap();
        let words = args.split(' ');
        common::pitser(dir)
            .args(words)
            .stdin(log)
            .output()
            .unwrap()
            .into()
    };
    feed("log sign -").exits(3).says("-o");
    feed("log sign - -o piped.logsig").exits(2);
    run(dir, "log verify a.log piped.logsig --policy internal")
        .exits(2)
        .says("5 lines in 1 block");
}

/// Every kind of stored hashes gives the same proof; only with some of them can a
/// line be taken out of a block in which another was altered.
#[test]
fn stored_hashes_spare_the_other_lines() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let dev = Dev::start(dir, 0);
    for store in ["none", "records", "tree", "all"] {
        fs::write(dir.join("a.log"), lines("line", 9)).unwrap();
        let out = format!("{store}.logsig");
        run(
            dir,
            &format!("log sign a.log --store {store} -o {out} -S {}", dev.service),
        )
        .exits(0);
        fs::write(
            dir.join("a.log"),
            lines("line", 9).replace("line 2", "line 8"),
        )
        .unwrap();
        let extract = run(dir, &format!("log extract a.log {out} -l 7 -o {store}"));
        if store == "none" {
            extract
                .exits(3)
                .says("pitser log verify shows what is wrong");
            continue;
        }
        extract.exits(0);
        run(dir, &format!("log verify {store}.excerpt {}", dev.trust)).exits(0);
        run(dir, &format!("log extract a.log {out} -l 2 -o x"))
            .exits(3)
            .says("the lines are not those that were signed");
    }
}

/// As `rsyslog` leaves it while signatures are pending.
#[test]
fn parts_are_judged_signed_and_joined() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let dev = Dev::start(dir, 0);
    fs::write(dir.join("a.log"), lines("line", 12)).unwrap();
    run(dir, &format!("log sign a.log --level 3 -S {}", dev.service)).exits(0);
    let whole = fs::read(dir.join("a.log.logsig")).unwrap();
    let blocks: Vec<_> = BlockReader::new(&whole)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let mut parts = [b"LOG12BLK".to_vec(), b"LOG12SIG".to_vec()];
    for (number, block) in blocks.iter().enumerate() {
        let Seal::Signature(signature) = block.seal.seal else {
            panic!("unsigned")
        };
        let root = signed_root(signature).unwrap();
        parts[0].extend(block.unsealed_bytes());
        parts[0].extend(encode_unsigned(block.seal.count, &root, None).unwrap());
        if number != 1 {
            parts[1].extend(block.seal.bytes);
        }
    }
    fs::remove_file(dir.join("a.log.logsig")).unwrap();
    let folder = dir.join("a.log.logsig.parts");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("blocks.dat"), &parts[0]).unwrap();
    fs::write(folder.join("block-signatures.dat"), &parts[1]).unwrap();

    run(dir, &format!("log verify a.log {}", dev.trust))
        .exits(2)
        .says("2 of 3 confirmed; block 2: not signed yet");
    let joined = run(dir, "log integrate a.log -o joined.logsig --json")
        .exits(2)
        .json();
    assert_eq!(
        (&joined["signed_blocks"], &joined["unsigned_blocks"]),
        (&2.into(), &1.into())
    );
    // Signing joins them too, and adds what is missing.
    run(dir, &format!("log sign a.log -S {}", dev.service)).exits(0);
    run(dir, &format!("log verify a.log {}", dev.trust)).exits(0);

    // A seal of another log is not dropped silently.
    fs::write(
        folder.join("block-signatures.dat"),
        [&parts[1][..], blocks[0].seal.bytes].concat(),
    )
    .unwrap();
    run(dir, "log integrate a.log -o again.logsig")
        .exits(3)
        .says("belongs to no block that is left");
    assert!(!dir.join("again.logsig").exists());
}

#[test]
fn what_is_wrong_with_a_log_signature_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("a.log"), lines("line", 12)).unwrap();
    run(dir, "log sign a.log --level 3").exits(2);
    let whole = fs::read(dir.join("a.log.logsig")).unwrap();
    let verify = |signature: &[u8]| {
        fs::write(dir.join("a.log.logsig"), signature).unwrap();
        run(dir, "log verify a.log --policy internal")
    };
    let cut = whole.len() - 10;
    verify(&whole[..cut])
        .exits(3)
        .says(&format!("truncated element at byte {cut}"))
        .says("is cut off");
    verify(b"LOGSIG13 and more").exits(3).says("LOGSIG12");
    verify(b"LOG12SIG").exits(3).says("pitser log integrate");
    verify(&whole);
    append(&dir.join("a.log"), "one too many\n");
    run(dir, "log verify a.log --policy internal")
        .exits(2)
        .says("1 line from line 13 on in no block: added after signing");
    run(dir, "log extract a.log -l 13")
        .exits(3)
        .says("line 13 is in no block: the log signature covers 12 lines");
    run(dir, "log verify absent.log")
        .exits(3)
        .says("absent.log.logsig");
}

#[test]
fn the_bench_runs_its_commands() {
    let dir = tempfile::tempdir().unwrap();
    let said = run(dir.path(), "bench verify --lines 2000 --rounds 1 --json");
    let facts = said.exits(0).json();
    assert_eq!(facts["lines"], 2000);
    assert!(facts["verify_lines_per_s"].as_u64().unwrap() > 0);
    for store in ["none", "records", "tree"] {
        assert!(facts["extract_ms"][store].as_f64().unwrap() > 0.0);
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// What nobody signed is not what was signed.
#[test]
fn a_log_without_a_block_is_not_intact() {
    let dir = tempfile::tempdir().unwrap();
    for magic in ["LOGSIG12", "RECSIG12"] {
        let log = dir.path().join("log");
        std::fs::write(&log, "").unwrap();
        std::fs::write(dir.path().join("log.logsig"), magic).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_pitser"));
        command
            .current_dir(dir.path())
            .args(["verify", "log.logsig", "--policy", "internal"]);
        let told = command.output().unwrap();
        let out = String::from_utf8(told.stdout).unwrap();
        assert_eq!(told.status.code(), Some(2), "{out}");
        assert!(out.contains("nothing is signed here"), "{out}");
    }
}
