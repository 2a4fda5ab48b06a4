//! Two approvers erase a patient, as they do it at their terminals: with the guardian
//! running, on the folder of one that is stopped, and with either killed meanwhile.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

#[path = "../common/mod.rs"]
mod common;
mod holds;
mod killed;
mod site;

use common::Said;
use site::{Site, is_in};

#[test]
fn two_people_erase_a_patient_while_the_guardian_runs() {
    let site = Site::new("");
    site.run(&["guard", "init"]).exits(0);
    let guardian = site.guard();
    site.scans_clean();
    assert_eq!(site.history("pt-1")[0]["row"]["note"], "tpressure 120");

    // Who asks must say so, and be an approver.
    let look = ["erase", "--patient", "pt-1", "--dry-run"];
    site.run(&look).exits(3).says("--token FILE");
    std::fs::write(site.path("stranger.token"), "AAAA").unwrap();
    site.run_as("stranger", &look)
        .exits(3)
        .says("no approver's");
    let shown = site.run_as("mari", &look).exits(0);
    let shown = shown.says("database   1 row of the patient");
    shown.says("hold       none").says("backup");
    site.run_as("mari", &["erase", "--patient", "pt-1"])
        .exits(3)
        .says("--basis");

    // One person is not enough, nor two beside a legal hold.
    let code = site.request("mari", "pt-1");
    let confirm = ["erase", "--confirm", &code];
    site.run_as("mari", &confirm)
        .exits(3)
        .says("another person");
    site.run_as(
        "jaan",
        &[
            "hold",
            "add",
            "--patient",
            "pt-1",
            "--reason",
            "court case 2-26-117",
        ],
    )
    .exits(0)
    .says("by Jaan Tamm (line ");
    site.run_as("mari", &["hold", "list"])
        .exits(0)
        .says("pt-1  hold of");
    site.run_as("jaan", &confirm)
        .exits(3)
        .says("a legal hold stands");
    let remove = ["hold", "remove", "--patient", "pt-1"];
    site.run_as("jaan", &remove).exits(3).says("say why");
    let remove = [&remove[..], &["--reason", "the case is closed"]].concat();
    site.run_as("jaan", &remove).exits(0).says("lifted hold");
    site.run_as("jaan", &["erase", "--confirm", &code, "--dry-run"])
        .exits(0)
        .says("identifier pt-1")
        .says("asked by   Mari Maasikas");
    site.run_as(
        "jaan",
        &["erase", "--confirm", &code, "--by", "Mari Maasikas"],
    )
    .exits(3)
    .says("not that of an [[approver]]");
    assert!(
        !site.history("pt-1")[0]["row"].is_null(),
        "nothing is done yet"
    );
    site.run_as("jaan", &confirm)
        .exits(0)
        .says("decided by Mari Maasikas, Jaan Tamm");

    // Nothing opens any more, and nothing is found wrong with that.
    site.scans_clean();
    let lines = site.history("pt-1");
    assert_eq!(lines.len(), 4);
    assert!(lines[0]["row"].is_null());
    // Who set the hold and who lifted it, and why, is on record for good.
    let decided = [
        ("hold", "court case 2-26-117"),
        ("release", "the case is closed"),
    ];
    for (line, (op, why)) in lines[1..].iter().zip(decided) {
        assert_eq!(
            (&line["line"]["op"], &line["reason"]),
            (&op.into(), &why.into())
        );
        assert_eq!(line["person"], "Jaan Tamm");
    }
    assert_eq!(lines[3]["line"]["op"], "erase");
    assert_eq!(lines[3]["line"]["erase"]["basis"], "GDPR art. 17(1)(d)");
    assert_eq!(lines[3]["deciders"][0], "Mari Maasikas");
    site.run_as("mari", &["erase", "--patient", "pt-1", "--basis", "again"])
        .exits(3)
        .says("nothing to erase");

    // The row that was left in the database comes back under another key.
    site.update(1, "pressure 121");
    site.scans_clean();
    let lines = site.history("pt-1");
    assert_eq!(
        (lines.len(), lines[4]["row"]["note"].as_str()),
        (5, Some("tpressure 121"))
    );
    assert!(lines[0]["row"].is_null());
    assert_eq!(lines[0]["line"]["patient"], lines[4]["line"]["patient"]);
    assert_eq!(site.history("pt-2")[0]["row"]["note"], "tpressure 80");
    guardian.stop();
    let verified = site.run(&["trail", "verify"]);
    assert!(verified.code == 0 || verified.code == 2, "{verified:?}");
    site.run(&["inspect", "guard/h/trail/000000.jsonl"])
        .exits(0)
        .says("erase");
    assert!(!is_in(&site.path("guard"), b"Mari Maasikas"));
}

#[test]
fn two_people_erase_a_patient_while_no_guardian_runs() {
    let site = Site::new("");
    site.run(&["guard", "init"]).exits(0);
    let guardian = site.guard();
    site.scans_clean();
    guardian.stop();
    let code = site.request("jaan", "pt-2");
    site.run_as("mari", &["erase", "--confirm", &code]).exits(0);
    assert!(site.history("pt-2")[0]["row"].is_null());
    let guardian = site.guard();
    site.scans_clean();
    site.update(1, "pressure 122");
    site.scans_clean();
    guardian.stop();
    let lines = site.history("pt-2");
    assert_eq!(
        (lines.len(), lines[1]["deciders"][1].as_str()),
        (2, Some("Mari Maasikas"))
    );
    assert!(
        lines[1]["sealed_at"].is_string(),
        "its line is sealed like any other"
    );
    assert_eq!(site.history("pt-1").len(), 2);
}

#[test]
fn the_master_key_may_be_a_credential() {
    let site = Site::new("vault_key = \"credential:master\"\n");
    site.run(&["guard", "init"]).exits(4).says("master");
    std::fs::write(site.path("master"), "5e".repeat(32)).unwrap();
    site.run(&["guard", "init"]).exits(0);
    let guardian = site.guard();
    site.scans_clean();
    // A command that systemd did not start does what needs no key.
    let alone = |args: &str| -> Said {
        let mut command = site.command(&args.split(' ').collect::<Vec<_>>());
        command.env_remove("CREDENTIALS_DIRECTORY");
        command.output().unwrap().into()
    };
    alone("guard status").exits(0).says("guarding");
    alone("guard scan").exits(0).says("2 rows compared");
    guardian.stop();
    alone("trail verify").exits(0);
    for needs in ["history --patient pt-1", "guard init", "guard run"] {
        alone(needs)
            .exits(3)
            .says("vault_key: systemd has handed over no credentials");
    }
    assert!(!site.path("guard/h/vault.key").exists());
    assert_eq!(site.history("pt-1")[0]["row"]["note"], "tpressure 120");
    std::fs::write(site.path("master"), "5f".repeat(32)).unwrap();
    site.run(&["history", "--patient", "pt-1"])
        .exits(4)
        .says("does not open with this master key");
}
