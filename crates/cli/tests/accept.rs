//! An approver answers for findings, as it is done at a terminal beside a running
//! guardian: what everybody is shown then, after restarts, and when it happens again.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod common;
#[allow(dead_code, reason = "each test program uses its part")]
#[path = "erase/site.rs"]
mod site;

use common::Said;
use common::triggers::past_triggers;
use rusqlite::Connection;
use serde_json::Value;
use site::{Site, is_in};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

const REASON: &str = "the nightly import, ticket 4711";

/// A guarded database; of the approvers, Mari may answer for findings, and Peeter
/// might until a few years ago.
fn site() -> Site {
    let site = Site::new("");
    let path = site.path("pitser.toml");
    let text = fs::read_to_string(&path).unwrap();
    let name = "name = \"Mari Maasikas\"\n";
    let text = text.replace(name, &format!("{name}may = [\"erase\", \"accept\"]\n"));
    let new = [
        "erase",
        "--new-token",
        "peeter.token",
        "--by",
        "Peeter Paju",
    ];
    let peeter = site.run(&new).exits(0).out;
    let over = "may = [\"accept\"]\nuntil = \"2024-02-29\"\n";
    fs::write(&path, text + &peeter + over).unwrap();
    site.run(&["guard", "init"]).exits(0);
    site
}

/// Somebody changes the row of a patient past the application.
fn change(site: &Site, note: &str) {
    let db = Connection::open(site.path("hospital.db")).unwrap();
    db.execute("UPDATE entry SET note = ?1 WHERE id = 1", [note])
        .unwrap();
    // The scan begins when everything before it is in the trail.
    site.scans_clean();
}

/// What `guard status` says: its exit code, and the findings.
fn findings(site: &Site) -> (i32, Vec<Value>) {
    let said = site.run(&["guard", "status", "--json"]);
    let findings = said.json()["sources"][0]["findings"].clone();
    (said.code, findings.as_array().unwrap().clone())
}

fn line(finding: &Value) -> String {
    finding["line"].as_u64().unwrap().to_string()
}

fn accept(site: &Site, who: &str, line: &str, reason: &str) -> Said {
    let args = ["guard", "accept", "--finding", line, "--reason", reason];
    site.run_as(who, &args)
}

/// The body that the guardian's address answers with.
fn get(site: &Site, path: &str) -> String {
    let config = fs::read_to_string(site.path("pitser.toml")).unwrap();
    let listen = config.split("listen = \"").nth(1).unwrap();
    let listen = listen.split('"').next().unwrap();
    let mut stream = TcpStream::connect(listen).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {listen}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A site with thousands of findings of one cause answers for them at once: after it was
/// shown which, in portions, and for none that nobody can answer for.
#[test]
fn thousands_of_findings_are_accepted_by_what_they_have_in_common() {
    const CHANGES: u64 = 2500;
    let site = site();
    let guardian = site.guard();
    let db = Connection::open(site.path("hospital.db")).unwrap();
    db.busy_timeout(std::time::Duration::from_secs(60)).unwrap();
    db.pragma_update(None, "synchronous", "OFF").unwrap();
    for note in 0..CHANGES {
        db.execute("UPDATE entry SET note = ?1 WHERE id = 1", [note])
            .unwrap();
    }
    site.scans_clean();
    past_triggers(&db, "entry", "UPDATE entry SET note = 'x' WHERE id = 2");
    site.run(&["guard", "scan"]).exits(1).says("ROW-01");
    let choose = |more: &[&str]| {
        let args = ["guard", "accept", "--reason", REASON];
        site.run_as("mari", &[&args[..], more].concat())
    };
    let open = || {
        let said = site.run(&["guard", "status", "--json"]).exits(1);
        let source = &said.json()["sources"][0];
        let listed = source["findings"].as_array().unwrap();
        let listed = listed.iter().filter(|it| it["open"] == true).count() as u64;
        let more = source["more_findings"].as_array().unwrap();
        listed
            + more
                .iter()
                .filter_map(|it| it["open"].as_u64())
                .sum::<u64>()
    };
    assert_eq!(open(), CHANGES + 1);

    // What is refused, and what is only shown.
    choose(&["--code", "ROW-01"])
        .exits(3)
        .says("not as it was sealed");
    choose(&["--code", "ACT-01", "--table", "visit"])
        .exits(3)
        .says("no open finding");
    let all = ["--code", "ACT-01", "--table", "entry"];
    let shown = choose(&[&all[..], &["--dry-run", "--json"]].concat()).exits(0);
    let shown = shown.json()["would_accept"].clone();
    assert_eq!(shown["count"], CHANGES);
    let (first, last) = (
        &shown["findings"][0]["first"],
        &shown["findings"][0]["last"],
    );
    let (first, last) = (first.as_u64().unwrap(), last.as_u64().unwrap());
    choose(&["--finding", "0-9999999", "--dry-run"])
        .exits(0)
        .says(&format!("{CHANGES} ACT-01 entry, lines {first} to {last}"))
        .says("stay open, for nobody can answer for them\n  1 ROW-01 entry");
    // Nobody says yes.
    choose(&all).exits(3).says("nothing was accepted");
    choose(&[&all[..], &["--json"]].concat())
        .exits(3)
        .says("--dry-run");
    let jaan = [&["guard", "accept", "--reason", REASON, "--yes"], &all[..]].concat();
    site.run_as("jaan", &jaan).exits(3).says("may not decide");
    assert_eq!(open(), CHANGES + 1);

    // Some by their lines, some by where they end, then the others.
    let finding = |number: u64| {
        let lines = format!("{first}-{last}");
        let said = choose(&[
            "--finding",
            &lines,
            "--until",
            &number.to_string(),
            "--dry-run",
            "--json",
        ]);
        said.json()["would_accept"]["count"].as_u64()
    };
    let middle = (first + last) / 2;
    let half = finding(middle).unwrap();
    assert!(half > CHANGES / 3 && half < CHANGES);
    let lines = format!("{first}-{middle}");
    let done = choose(&["--finding", &lines, "--yes"]).exits(0);
    done.says(&format!("accepted   {half} findings by Mari Maasikas"));
    assert_eq!(open(), CHANGES + 1 - half);
    let done = choose(&[&all[..], &["--until", "2000-01-01T00:00:00Z", "--yes"]].concat());
    done.exits(3).says("no open finding");
    let until = last.to_string();
    let done = choose(&[&all[..], &["--until", &until, "--yes", "--json"]].concat());
    let done = done.exits(0).json();
    assert_eq!(done["accepted"]["count"], CHANGES - half);
    assert_eq!(done["by"], "Mari Maasikas");
    assert_eq!(open(), 1);
    guardian.stop();
    site.run(&["trail", "verify"]).exits(0);

    // Whoever reads the trail anew comes to the same.
    site.run(&["trail", "rebuild"]).exits(0);
    let guardian = site.guard();
    site.run(&["guard", "scan"]).exits(1).says("ROW-01");
    assert_eq!(open(), 1);
    choose(&all).exits(3).says("no open finding");
    guardian.stop();
}

/// Ten more than are listed.
#[test]
fn of_very_many_findings_all_are_counted_and_any_is_accepted() {
    let site = site();
    let _guardian = site.guard();
    let db = Connection::open(site.path("hospital.db")).unwrap();
    db.busy_timeout(std::time::Duration::from_secs(60)).unwrap();
    for note in 0..210 {
        db.execute("UPDATE entry SET note = ?1 WHERE id = 1", [note])
            .unwrap();
    }
    site.scans_clean();
    let more = || {
        let said = site.run(&["guard", "status", "--json"]).exits(1);
        said.json()["sources"][0]["more_findings"][0].clone()
    };
    let counted = more();
    assert_eq!(
        (&counted["code"], &counted["open"]),
        (&"ACT-01".into(), &10.into())
    );
    let lines = format!(
        "in lines {} to {}",
        counted["first_line"], counted["last_line"]
    );
    site.run(&["guard", "status"])
        .exits(1)
        .says(&format!("and 10 more ACT-01 entry, {lines}"));
    assert!(get(&site, "/").contains("210 open findings"));
    let first = counted["first_line"].as_u64().unwrap().to_string();
    accept(&site, "mari", &first, REASON)
        .exits(0)
        .says("by Mari Maasikas");
    accept(&site, "mari", &first, REASON)
        .exits(3)
        .says("accepted before");
    assert_eq!(more()["open"], 9);
    assert!(get(&site, "/").contains("209 open findings"));
}

#[test]
fn an_accepted_finding_is_on_record_and_needs_nobody_any_more() {
    let site = site();
    let guardian = site.guard();
    change(&site, "pressure 121");
    let (code, found) = findings(&site);
    assert_eq!((code, found.len()), (1, 1), "{found:?}");
    assert_eq!(found[0]["code"], "ACT-01");
    assert!(get(&site, "/").contains("1 open finding"));
    assert!(get(&site, "/").contains("pitser guard accept --source h"));
    let first = line(&found[0]);

    // Not without a token, nor with one that has not this power; not without a reason.
    let bare = ["guard", "accept", "--finding", &first, "--reason", REASON];
    site.run(&bare).exits(3).says("--token FILE");
    accept(&site, "jaan", &first, REASON)
        .exits(3)
        .says("Jaan Tamm may not decide this: add \"accept\" to `may`");
    accept(&site, "peeter", &first, REASON)
        .exits(3)
        .says("the token of Peeter Paju was good until 2024-02-29");
    fs::write(site.path("stranger.token"), "AAAA").unwrap();
    accept(&site, "stranger", &first, REASON)
        .exits(3)
        .says("no approver's");
    let another = [&bare[..], &["--by", "Jaan Tamm"]].concat();
    site.run_as("mari", &another).exits(3).says("not that of");
    accept(&site, "mari", &first, " ")
        .exits(3)
        .says("1 to 500 bytes");
    // Lines that are no findings, and those that are not there.
    for other in ["0", "4", "999999", "18446744073709551615"] {
        accept(&site, "mari", other, REASON)
            .exits(3)
            .says("it is no finding");
    }
    let both = [&bare[..4], &["0"], &bare[4..]].concat();
    site.run_as("mari", &both).exits(3).says("line 0");
    assert_eq!(findings(&site), (1, found));

    let done = accept(&site, "mari", &first, REASON)
        .exits(0)
        .says("by Mari Maasikas");
    let by = done.out.split("line       ").nth(1).unwrap();
    let by: u64 = by.split(',').next().unwrap().parse().unwrap();
    accept(&site, "mari", &first, REASON)
        .exits(3)
        .says(&format!("accepted before, by line {by}"));

    // Nobody is asked to look at it, and everybody is told who said so.
    let told = |site: &Site| {
        let (code, found) = findings(site);
        assert_eq!((code, found.len()), (0, 1), "{found:?}");
        assert_eq!(found[0]["open"], false);
        let accepted = &found[0]["accepted"];
        assert_eq!(accepted["line"], by);
        assert_eq!(accepted["by"], "Mari Maasikas");
        assert_eq!(accepted["reason"], REASON);
        let metrics = get(site, "/metrics");
        let count = |name: &str| format!("pitser_findings_{name}{{source=\"h\",code=\"ACT-01\"}}");
        assert!(metrics.contains(&(count("open") + " 0\n")), "{metrics}");
        assert!(metrics.contains(&(count("total") + " 1\n")), "{metrics}");
        let page = get(site, "/");
        assert!(!page.contains("open finding"), "{page}");
        assert!(page.contains("Mari Maasikas") && page.contains(REASON));
    };
    told(&site);
    site.run(&["guard", "status"])
        .exits(0)
        .says("by Mari Maasikas: the nightly import");
    guardian.stop();
    let guardian = site.guard();
    told(&site);

    // It stays in the patient's list, who is shown both.
    let history = ["history", "--patient", "pt-1"];
    site.run(&history).exits(0).says(&format!(
        "answers for the finding of line {first}: {REASON}"
    ));
    let lines = site.history("pt-1");
    let last = lines.last().unwrap();
    assert_eq!(last["line"]["accept"]["finding"]["seq"].to_string(), first);
    assert_eq!(
        (&last["person"], &last["reason"]),
        (&Value::from("Mari Maasikas"), &Value::from(REASON))
    );
    site.run(&["evidence", "export", "--patient", "pt-1", "-o", "e.pitser"])
        .exits(0);
    let verified = site.run(&["verify", "e.pitser", "--show"]).exits(2);
    verified.says(&format!(
        "answers for the finding of line {first}: {REASON}"
    ));

    // When it happens again it is another finding; an answer survives a power cut.
    change(&site, "pressure 122");
    let (code, found) = findings(&site);
    assert_eq!((code, found.len()), (1, 2), "{found:?}");
    assert!(found[1]["accepted"].is_null());
    accept(&site, "mari", &line(&found[1]), REASON).exits(0);
    guardian.kill();
    let guardian = site.guard();
    let (code, found) = findings(&site);
    assert_eq!((code, found.len()), (0, 2), "{found:?}");
    guardian.stop();
    site.run(&["trail", "verify"]).exits(0);
    site.run(&["trail", "rebuild"]).exits(0);
    let guardian = site.guard();
    assert_eq!(findings(&site), (0, found));
    guardian.stop();
    // Neither who nor why stands in clear in any file.
    for secret in [REASON, "Mari Maasikas"] {
        assert!(!is_in(&site.path("guard"), secret.as_bytes()));
    }
}

#[test]
fn nobody_answers_for_a_row_that_is_not_as_it_was_sealed() {
    let site = site();
    let guardian = site.guard();
    change(&site, "pressure 121");
    let db = Connection::open(site.path("hospital.db")).unwrap();
    past_triggers(
        &db,
        "entry",
        "UPDATE entry SET note = 'pressure 60' WHERE id = 1",
    );
    site.run(&["guard", "scan"]).exits(1).says("ROW-01");
    let (_, found) = findings(&site);
    let of_code = |code: &str| line(found.iter().find(|it| it["code"] == code).unwrap());
    let (event, row) = (of_code("ACT-01"), of_code("ROW-01"));
    accept(&site, "mari", &row, REASON)
        .exits(3)
        .says("the row is not as it was sealed");
    // Together with one that could be accepted: none is.
    let both = ["guard", "accept", "--finding", &event, &row];
    let both = [&both[..], &["--reason", REASON]].concat();
    site.run_as("mari", &both).exits(3);
    assert_eq!(findings(&site).1, found);
    accept(&site, "mari", &event, REASON).exits(0);
    site.run(&["guard", "scan"]).exits(1).says("ROW-01");
    // As it was sealed again, the finding closes by itself, and is nobody's to accept.
    past_triggers(
        &db,
        "entry",
        "UPDATE entry SET note = 'pressure 121' WHERE id = 1",
    );
    site.scans_clean();
    accept(&site, "mari", &row, REASON).exits(3).says("closed");
    assert_eq!(findings(&site).0, 0);
    guardian.stop();
}

/// The patient is erased in between: whoever sees that finding sees who answered for it.
#[test]
fn a_finding_about_somebody_who_was_erased_is_accepted_in_the_same_list() {
    let site = site();
    let guardian = site.guard();
    change(&site, "pressure 121");
    let (_, found) = findings(&site);
    let code = site.request("mari", "pt-1");
    site.run_as("jaan", &["erase", "--confirm", &code]).exits(0);
    let first = line(&found[0]);
    accept(&site, "mari", &first, REASON).exits(0);
    let (code, found) = findings(&site);
    assert_eq!(code, 0, "{found:?}");
    let (by, why) = (Value::from("Mari Maasikas"), Value::from(REASON));
    assert_eq!(found[0]["accepted"]["by"], by);
    // That brings nobody back: there is no key to destroy.
    let again = [
        "erase",
        "--patient",
        "pt-1",
        "--basis",
        "GDPR art. 17(1)(d)",
    ];
    site.run_as("mari", &again)
        .exits(3)
        .says("there is nothing to erase");
    let accepted = |site: &Site| {
        let lines = site.history("pt-1");
        let last = lines.last().unwrap();
        assert_eq!(last["line"]["accept"]["finding"]["seq"].to_string(), first);
        assert_eq!((&last["person"], &last["reason"]), (&by, &why));
        let ops: Vec<_> = lines.iter().map(|it| &it["line"]["op"]).collect();
        assert_eq!(&ops[ops.len() - 3..], ["finding", "erase", "accept"]);
    };
    accepted(&site);
    guardian.stop();
    accepted(&site);
    site.run(&["trail", "verify"]).exits(0);
    let guardian = site.guard();
    assert_eq!(findings(&site), (0, found));
    guardian.stop();
    let export = ["evidence", "export", "--patient", "pt-1", "-o", "e.pitser"];
    site.run(&export).exits(0);
    site.run(&["verify", "e.pitser"]).exits(2);
}
