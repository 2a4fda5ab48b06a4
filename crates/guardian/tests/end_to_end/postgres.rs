//! The whole path over a real PostgreSQL: what one patient takes home is
//! intact, and says nothing about another.

use super::harness::Server;
use super::*;
use pitser_guardian::approver::{Approver, Power, Refused, Token};
use pitser_guardian::config::Attribution;
use pitser_guardian::erasure::{Answer, Ask, Asked};

const SCHEMA: &str = "
    CREATE TABLE staff (id int PRIMARY KEY, login text);
    CREATE TABLE patient (id int PRIMARY KEY, name text, write_uid int, write_date timestamptz);
    CREATE TABLE observation (id int PRIMARY KEY, patient int, value text, write_uid int, write_date timestamptz);
    INSERT INTO staff VALUES (7, 'dr.tamm');
    INSERT INTO patient VALUES (1, 'Jüri'), (2, 'Jaan');
    INSERT INTO observation VALUES (10, 1, '120 mmHg'), (20, 2, 'secret of Jaan');";

const CHANGES: &str = "
    UPDATE observation SET value = '130 mmHg', write_uid = 7, write_date = now() WHERE id = 10;
    UPDATE observation SET value = 'another secret of Jaan' WHERE id = 20;
    UPDATE observation SET patient = 1, value = '140 mmHg', write_uid = 7, write_date = now() WHERE id = 20;";

fn site(server: &Server) -> Site {
    let dir = tempfile::tempdir().unwrap();
    let path = |table: &str, path: &str| (table.to_owned(), path.to_owned());
    let url = server.url("postgres");
    let source = Source {
        // Without column lists, what rules look up has to be guarded whole.
        exclude: match server.since_15() {
            true => vec!["public.staff".into()],
            false => Vec::new(),
        },
        patient: [
            path("public.patient", "id"),
            path("public.observation", "patient"),
        ]
        .into(),
        actor: [path("*", "write_uid -> public.staff.login")].into(),
        ..Source::new("hospital", Kind::Postgres, &url, &["public.*"])
    };
    let tuning = Tuning {
        scan_every_s: 0,
        cosign_every_s: 1,
        witness_quorum: 1,
        ..Tuning::new("test.example", dir.path().join("guard"))
    };
    Site {
        dir,
        source,
        tuning,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_hospitals_server_to_a_verified_evidence_file() {
    let Some(server) = Server::start(&[], &[]) else {
        return;
    };
    let mut sql = server.sql();
    sql.query(SCHEMA).unwrap();
    let site = site(&server);
    let (authority, client) = authority(&site.dir.path().join("authority")).await;
    let genesis = install(&site).unwrap().genesis.unwrap();
    let (guardian, witness) = site.start(Some(client.clone()));
    for statement in CHANGES.split(';').filter(|s| !s.trim().is_empty()) {
        sql.query(statement).unwrap();
    }
    guardian.settle().await.unwrap();
    let found: Vec<_> = guardian
        .status()
        .findings
        .iter()
        .map(|f| (f.code.clone(), f.key.clone()))
        .collect();
    assert_eq!(found, [("ACT-02".to_owned(), Some("20".to_owned()))]);
    assert_eq!(guardian.scan().await.unwrap().findings, []);
    guardian.settle().await.unwrap();

    let code = authority.publish().await.unwrap().code;
    let evidence = export(&site, &client, &authority, &witness, &genesis, "1").await;
    let anchors = anchors(&authority, &genesis, &code, witness);
    let bytes = evidence.encode();
    let evidence = Evidence::decode(&bytes).unwrap();
    let report = verify(&evidence, Some(&anchors), second());
    assert_eq!(report.verdict, Verdict::Intact, "{report:#?}");
    let ops: Vec<_> = evidence.lines.iter().map(|l| l.line.op.as_str()).collect();
    assert_eq!(ops.join(" "), "baseline baseline update relink update");

    let text = String::from_utf8(bytes).unwrap();
    assert!(text.contains("Jüri") && text.contains("140 mmHg"));
    assert!(!text.contains("Jaan"), "only what became the patient's own");
    let report = verify(&evidence, None, second());
    assert_eq!(report.verdict, Verdict::Unconfirmed);
    guardian.stop().await;
    authority.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_of_an_erased_patient_is_intact_and_opens_nothing() {
    let Some(server) = Server::start(&[], &[]) else {
        return;
    };
    let mut sql = server.sql();
    sql.query(SCHEMA).unwrap();
    let mut site = site(&server);
    site.tuning.approvers = ["Mari", "Jaan"]
        .map(|name| Approver {
            name: name.into(),
            token_sha256: Token::new(name).hash(),
            may: vec![Power::Erase],
            until: None,
        })
        .into();
    let (authority, client) = authority(&site.dir.path().join("authority")).await;
    let genesis = install(&site).unwrap().genesis.unwrap();
    let (guardian, witness) = site.start(Some(client.clone()));
    guardian.settle().await.unwrap();
    let ask = async |token: &str, ask: Ask| {
        let asked = Asked {
            token: Token::new(token),
            ask,
        };
        guardian.erasure(asked).await
    };
    let request = Ask::Request {
        patient: "1".into(),
        basis: "GDPR art. 17(1)(d)".into(),
    };
    let Ok(Answer::Requested { code, plan, .. }) = ask("Mari", request).await else {
        panic!("not taken");
    };
    assert_eq!((plan.lines, plan.live_rows), (2, 2));
    let confirm = || Ask::Confirm { code: code.clone() };
    assert!(matches!(
        ask("Mari", confirm()).await,
        Err(Refused::Rule(_))
    ));
    assert!(matches!(
        ask("nobody", confirm()).await,
        Err(Refused::Unknown)
    ));
    assert!(matches!(
        ask("Jaan", confirm()).await,
        Ok(Answer::Erased(_))
    ));
    status_with(&guardian, "guards again", |s| {
        s.state == SourceState::Guarding
    })
    .await;

    // What the database still does goes on being captured and compared.
    sql.query("UPDATE observation SET value = '150 mmHg', write_uid = 7, write_date = now() WHERE id = 10")
        .unwrap();
    guardian.settle().await.unwrap();
    assert_eq!(guardian.scan().await.unwrap().findings, []);
    assert_eq!(guardian.status().findings, []);
    guardian.settle().await.unwrap();

    let code = authority.publish().await.unwrap().code;
    let mut texts = Vec::new();
    for (patient, ops) in [
        ("1", "baseline baseline erase update"),
        ("2", "baseline baseline"),
    ] {
        let evidence = export(&site, &client, &authority, &witness, &genesis, patient).await;
        let told: Vec<_> = evidence.lines.iter().map(|l| l.line.op.as_str()).collect();
        assert_eq!(told.join(" "), ops);
        let bytes = evidence.encode();
        texts.push(String::from_utf8(bytes.clone()).unwrap());
        let anchors = anchors(&authority, &genesis, &code, witness.clone());
        let evidence = Evidence::decode(&bytes).unwrap();
        let report = verify(&evidence, Some(&anchors), second());
        assert_eq!(report.verdict, Verdict::Intact, "{report:#?}");
    }
    assert!(!texts[0].contains("Jüri") && !texts[0].contains("120 mmHg"));
    assert!(
        texts[0].contains("150 mmHg"),
        "who comes back has a new key"
    );
    assert!(texts[1].contains("secret of Jaan"));
    guardian.stop().await;
    authority.shutdown().await.unwrap();
}

/// A guarded server with these tables, as the rules of [`site`] say, and whoever
/// changes its rows. Nothing is sealed.
struct Guarded {
    guardian: Handle,
    site: Site,
    sql: pitser_capture::postgres::Connection,
    server: Server,
}

impl Guarded {
    fn new(settings: &[&str], schema: &str, change: impl FnOnce(&mut Site)) -> Option<Self> {
        let server = Server::start(settings, &[])?;
        let mut sql = server.sql();
        sql.query(schema).unwrap();
        let mut site = site(&server);
        change(&mut site);
        install(&site).unwrap();
        let (guardian, _) = site.start(None);
        Some(Self {
            guardian,
            site,
            sql,
            server,
        })
    }

    /// From now on commits wait for this standby, or for none.
    fn standby(&mut self, name: &str) {
        let set = format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'");
        self.sql.query("SET synchronous_commit = local").unwrap();
        self.sql.query(&set).unwrap();
        self.sql.query("SELECT pg_reload_conf()").unwrap();
    }

    /// Returns once a commit waits for its standby.
    fn committing(&mut self) {
        let waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        while self.sql.query(waiting).unwrap().is_empty() {
            std::thread::yield_now();
        }
    }

    /// Everything that was found up to now, after a look at every row.
    async fn found(&self) -> Vec<(String, Option<String>)> {
        let limit = Duration::from_secs(30);
        let scanned = tokio::time::timeout(limit, self.guardian.scan()).await;
        scanned.expect("a scan ends").unwrap();
        let findings = self.guardian.status().findings.into_iter();
        findings.map(|f| (f.code, f.key)).collect()
    }

    /// Who did what to this table, by the trail: the person and the binding.
    fn actors(&self, table: &str) -> Vec<(Option<String>, String)> {
        let layout = self.site.tuning.layout(&self.site.source);
        let keys = pitser_trail::Keys::open(&layout).unwrap();
        let mut vault =
            pitser_trail::Vault::open_read_only(&layout.vault(), keys.master()).unwrap();
        let mut actors = Vec::new();
        pitser_trail::read(&layout, None, |line, _| {
            if let (Some(actor), true) = (&line.actor, line.table.as_deref() == Some(table)) {
                actors.push((line.seq, format!("{:?}", actor.binding)));
            }
        })
        .unwrap();
        let mut person = |seq| {
            vault
                .get(seq)
                .unwrap()
                .and_then(|(_, content)| content.person)
        };
        actors
            .into_iter()
            .map(|(seq, binding)| (person(seq), binding))
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_added_alters_no_row() {
    let Some(mut guarded) = Guarded::new(&[], SCHEMA, |_| {}) else {
        return;
    };
    guarded
        .sql
        .query("ALTER TABLE patient ADD COLUMN born date DEFAULT '2000-01-01'")
        .unwrap();
    let changed = |s: &pitser_guardian::Status| s.findings.iter().any(|f| f.code == "CAP-05");
    status_with(&guarded.guardian, "a new column", changed).await;
    // Its rows are looked at, and one of them is written with the new column.
    guarded
        .sql
        .query(
            "UPDATE patient SET name = 'Jüri II', write_uid = 7, write_date = now() WHERE id = 1",
        )
        .unwrap();
    assert_eq!(guarded.found().await, [("CAP-05".to_owned(), None)]);
    // What is altered beside it, past capture, is found all the same.
    guarded
        .sql
        .query(
            "BEGIN; ALTER PUBLICATION pitser_hospital DROP TABLE ONLY patient;
             UPDATE patient SET name = 'forged' WHERE id = 2;
             ALTER PUBLICATION pitser_hospital ADD TABLE ONLY patient; COMMIT",
        )
        .unwrap();
    let found = guarded.found().await;
    assert!(
        found.contains(&("ROW-01".to_owned(), Some("2".to_owned()))),
        "{found:?}"
    );
    guarded.guardian.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_without_an_image_is_nobodys_for_an_old_name_in_it() {
    let schema = "
        CREATE TABLE staff (id int PRIMARY KEY, login text);
        CREATE TABLE patient (id int PRIMARY KEY);
        CREATE TABLE observation (id int PRIMARY KEY, patient int, pulse int, write_uid int, write_date timestamptz);
        INSERT INTO staff VALUES (7, 'dr.tamm');
        INSERT INTO observation VALUES (10, 1, 60, 7, '2026-01-01');";
    let Some(mut guarded) = Guarded::new(&[], schema, |site| site.source.vault = false) else {
        return;
    };
    guarded
        .sql
        .query("UPDATE observation SET pulse = 90 WHERE id = 10")
        .unwrap();
    let found = guarded.found().await;
    assert_eq!(found, [("ACT-02".to_owned(), Some("10".to_owned()))]);
    assert_eq!(
        guarded.actors("public.observation"),
        [(None, "D".to_owned())]
    );
    guarded.guardian.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_waits_for_a_standby_is_no_alteration() {
    let Some(mut guarded) = Guarded::new(&[], SCHEMA, |_| {}) else {
        return;
    };
    guarded.standby("nobody");
    let mut writer = guarded.server.sql();
    let before = guarded.guardian.status().events;
    let writes = std::thread::spawn(move || {
        writer.query(
            "INSERT INTO observation VALUES (30, 1, 'new', 7, now());
             UPDATE observation SET value = 'other', write_uid = 7, write_date = now() WHERE id = 10;
             DELETE FROM observation WHERE id = 20",
        )
    });
    status_with(&guarded.guardian, "captured", |s| s.events >= before + 3).await;
    let found = guarded.found().await;
    let rows: Vec<_> = found
        .iter()
        .filter(|(code, _)| code.starts_with("ROW"))
        .collect();
    assert!(rows.is_empty(), "{rows:?}");
    guarded.standby("");
    writes.join().unwrap().unwrap();
    guarded.guardian.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fingerprint_that_was_lost_hides_nothing() {
    let Some(mut guarded) = Guarded::new(&[], SCHEMA, |_| {}) else {
        return;
    };
    assert_eq!(guarded.found().await, []);
    guarded.guardian.stop().await;
    let layout = guarded.site.tuning.layout(&guarded.site.source);
    std::fs::remove_file(layout.dir().join("fingerprint.json")).unwrap();
    guarded
        .sql
        .query("ALTER TABLE observation DISABLE TRIGGER pitser_attribution")
        .unwrap();
    let (guardian, _) = guarded.site.start(None);
    guarded.guardian = guardian;
    let found = guarded.found().await;
    assert_eq!(found, [("CAP-03".to_owned(), None)]);
    guarded.guardian.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_goes_while_its_baseline_is_taken_is_not_missed_later() {
    let schema = format!(
        "{SCHEMA} CREATE TABLE later (id int PRIMARY KEY); INSERT INTO later VALUES (1), (2)"
    );
    let exclude = |site: &mut Site| site.source.exclude.push("public.later".into());
    let Some(mut guarded) = Guarded::new(&[], &schema, exclude) else {
        return;
    };
    guarded.guardian.stop().await;
    guarded.site.source.exclude.pop();
    install(&guarded.site).unwrap();
    // In the log, and hidden from every snapshot, until there is no standby any more.
    guarded.standby("nobody");
    let mut writer = guarded.server.sql();
    let deletes = std::thread::spawn(move || writer.query("DELETE FROM later WHERE id = 1"));
    guarded.committing();
    let (guardian, _) = guarded.site.start(None);
    guarded.guardian = guardian;
    status_with(&guarded.guardian, "guards", |s| {
        s.state == SourceState::Guarding
    })
    .await;
    guarded.standby("");
    deletes.join().unwrap().unwrap();
    let found = guarded.found().await;
    let rows: Vec<_> = found
        .iter()
        .filter(|(code, _)| code.starts_with("ROW"))
        .collect();
    assert!(rows.is_empty(), "{rows:?}");
    guarded.guardian.stop().await;
}

/// More changes than are looked at together.
const LONG: &str = "INSERT INTO observation SELECT n, 1, 'x' FROM generate_series(1001, 3500) n";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_long_transaction_is_told_once_at_its_end() {
    let Some(mut guarded) = Guarded::new(&[], SCHEMA, |_| {}) else {
        return;
    };
    guarded.sql.query(LONG).unwrap();
    assert_eq!(
        guarded.found().await,
        [("ACT-02".to_owned(), Some("1001".to_owned()))]
    );
    let finding = guarded.guardian.status().findings.remove(0);
    assert!(finding.text.contains("(and 2499 more"), "{}", finding.text);
    guarded.guardian.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_row_of_a_long_transaction_speaks_for_its_first() {
    let Some(mut guarded) = Guarded::new(&[], SCHEMA, |_| {}) else {
        return;
    };
    let stamped =
        "UPDATE patient SET name = 'Jüri II', write_uid = 7, write_date = now() WHERE id = 1";
    guarded
        .sql
        .query(&format!("BEGIN; {LONG}; {stamped}; COMMIT"))
        .unwrap();
    assert_eq!(guarded.found().await, []);
    let actors = guarded.actors("public.observation");
    let named = |row: usize| actors[row] == (Some("dr.tamm".to_owned()), "C".to_owned());
    assert!(named(actors.len() - 1), "{:?}", actors.last());
    // Written before anybody was named, and never upgraded.
    assert_eq!(actors[0], (None, "D".to_owned()));
    guarded.guardian.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_takes_a_large_value_along() {
    let Some(mut guarded) = Guarded::new(&[], SCHEMA, |_| {}) else {
        return;
    };
    guarded
        .sql
        .query(
            "ALTER TABLE observation ALTER value SET STORAGE EXTERNAL;
             INSERT INTO observation VALUES (40, 1, repeat('long ', 2000), 7, now())",
        )
        .unwrap();
    guarded
        .sql
        .query("UPDATE observation SET id = 41, write_uid = 7, write_date = now() WHERE id = 40")
        .unwrap();
    let found = guarded.found().await;
    let bad: Vec<_> = found.iter().filter(|(code, _)| code != "CAP-05").collect();
    assert!(bad.is_empty(), "{bad:?}");
    guarded.guardian.stop().await;
}

/// Stops a guardian, and waits until it has let go of its files.
async fn stopped(guardian: &Handle) {
    guardian.stop().await;
    status_with(guardian, "stopped", |s| s.state == SourceState::Stopped).await;
}

/// Copies a trail's folder to another machine, as it were.
fn copied(site: &Site, name: &str) -> Site {
    let data = site.dir.path().join(name);
    let from = site.tuning.data.clone();
    let done = std::process::Command::new("cp")
        .arg("-a")
        .args([&from, &data])
        .status();
    assert!(done.unwrap().success());
    Site {
        dir: tempfile::tempdir().unwrap(),
        source: site.source.clone(),
        tuning: Tuning {
            data,
            ..site.tuning.clone()
        },
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over_unless_its_copy_is_short() {
    let Some(server) = Server::start(&[], &[]) else {
        return;
    };
    let mut sql = server.sql();
    sql.query(SCHEMA).unwrap();
    let site = site(&server);
    install(&site).unwrap();
    let (peer, key) = site.witness("notary.example", 9);
    let witness: Arc<dyn Cosign> = Arc::from(peer.into_parts().1);
    let start = |site: &Site| {
        Guardian::start(Parts {
            source: site.source.clone(),
            tuning: site.tuning.clone(),
            client: None,
            witnesses: vec![Peer::new(Box::new(Arc::clone(&witness)), key.clone())],
            fleet: None,
            clock: clock(),
        })
        .unwrap()
    };
    let cosigned = |s: &pitser_guardian::Status| s.blocks > 0 && s.witnesses[0].size == s.blocks;
    let first = start(&site);
    status_with(&first, "cosigned", cosigned).await;
    stopped(&first).await;
    let short = copied(&site, "short");

    let first = start(&site);
    let named = "UPDATE patient SET name = 'X', write_uid = 7, write_date = now() WHERE id = 1";
    let before = first.status().blocks;
    sql.query(named).unwrap();
    let more = |s: &pitser_guardian::Status| s.blocks > before && cosigned(s);
    status_with(&first, "cosigned again", more).await;
    stopped(&first).await;
    let whole = copied(&site, "whole");
    let first = start(&site);

    // Both wait, and write nothing.
    let lines = |site: &Site| {
        let segment = site.tuning.layout(&site.source).segment(0);
        std::fs::read(segment).unwrap()
    };
    let written = (lines(&short), lines(&whole));
    let is_waiting = |s: &pitser_guardian::Status| {
        s.trouble
            .as_ref()
            .is_some_and(|t| t.contains("read by another process"))
    };
    let second = start(&short);
    status_with(&second, "waits", is_waiting).await;
    first.stop().await;
    let is_refused = |s: &pitser_guardian::Status| {
        s.state == SourceState::Damaged && s.trouble.as_ref().is_some_and(|t| t.contains("TRL-03"))
    };
    status_with(&second, "refuses", is_refused).await;
    second.stop().await;
    assert_eq!((lines(&short), lines(&whole)), written);

    let first = start(&site);
    let second = start(&whole);
    status_with(&second, "waits", is_waiting).await;
    first.stop().await;
    status_with(&second, "guards", |s| s.state == SourceState::Guarding).await;
    let before = second.status().events;
    sql.query(named).unwrap();
    status_with(&second, "captured", |s| s.events > before).await;
    assert_eq!(second.scan().await.unwrap().findings, []);
    // A server writes of itself now and then, and the first guardian may have
    // acknowledged that since the copy was made: the second cannot know then that
    // nothing is missing between.
    let is_past_the_copy = |f: &pitser_guardian::FindingStatus| {
        f.code == "CAP-01" && f.text.contains("it was moved or made anew")
    };
    let mut found = second.status().findings;
    found.retain(|finding| !is_past_the_copy(finding));
    assert_eq!(found, []);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_will_soon_drop_its_log_is_a_finding() {
    let Some(mut guarded) = Guarded::new(&["max_wal_size = '1GB'"], SCHEMA, |_| {}) else {
        return;
    };
    guarded.guardian.stop().await;
    guarded
        .sql
        .query("ALTER SYSTEM SET max_slot_wal_keep_size = '64MB'")
        .unwrap();
    guarded.sql.query("SELECT pg_reload_conf()").unwrap();
    // A transaction that is open keeps the slot where it is.
    let mut open = guarded.server.sql();
    open.query("BEGIN; INSERT INTO patient VALUES (3, 'open', 7, now())")
        .unwrap();
    let (guardian, _) = guarded.site.start(None);
    guarded.guardian = guardian;
    status_with(&guarded.guardian, "shows what is kept", |s| {
        s.log_kept_bytes.is_some()
    })
    .await;
    let is_told = |s: &pitser_guardian::Status| {
        let danger = |f: &pitser_guardian::FindingStatus| f.text.contains("will drop it soon");
        s.findings.iter().any(|f| f.code == "CAP-03" && danger(f))
    };
    let mut shown = guarded.guardian.watch();
    while !is_told(&shown.borrow_and_update()) {
        // Some three megabytes of log, and a look at it.
        guarded
            .sql
            .query("CREATE TABLE filler AS SELECT repeat(md5(n::text), 20) FROM generate_series(1, 4000) n; DROP TABLE filler")
            .unwrap();
        shown.changed().await.unwrap();
    }
    open.query("COMMIT").unwrap();
    guarded.guardian.stop().await;
}

/// The codes of all that was found.
fn codes(found: &[(String, Option<String>)]) -> Vec<&str> {
    found.iter().map(|(code, _)| code.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn attribution_can_be_switched_off_and_on_but_not_unnoticed() {
    let off = |site: &mut Site| {
        site.source.attribution = Attribution::Off;
        site.source.actor.clear();
        site.source.exclude.clear();
    };
    let Some(mut guarded) = Guarded::new(&[], SCHEMA, off) else {
        return;
    };
    // Nobody is named, and that is no finding.
    guarded.sql.query(CHANGES).unwrap();
    assert_eq!(guarded.found().await, []);
    assert_eq!(guarded.actors("public.observation"), []);
    guarded.guardian.stop().await;

    guarded.site.source.attribution = Attribution::Trigger;
    install(&guarded.site).unwrap();
    (guarded.guardian, _) = guarded.site.start(None);
    assert_eq!(codes(&guarded.found().await), ["CAP-05"]);
    guarded
        .sql
        .query("UPDATE observation SET value = 'x' WHERE id = 10")
        .unwrap();
    assert_eq!(codes(&guarded.found().await), ["CAP-05"]);
    let by_role = (None, "D".to_owned());
    assert_eq!(guarded.actors("public.observation"), [by_role]);

    // Somebody takes the trigger away: capture is weakened, and so is each change.
    guarded
        .sql
        .query("DROP TRIGGER pitser_attribution ON observation")
        .unwrap();
    status_with(&guarded.guardian, "notices", |s| {
        s.findings.iter().any(|f| f.code == "CAP-03")
    })
    .await;
    guarded
        .sql
        .query("UPDATE observation SET value = 'y' WHERE id = 10")
        .unwrap();
    let found = guarded.found().await;
    assert!(codes(&found).contains(&"ACT-01"), "{found:?}");
    guarded.guardian.stop().await;

    // The guardian's own configuration says so: that is in the trail as well.
    guarded.site.source.attribution = Attribution::Off;
    (guarded.guardian, _) = guarded.site.start(None);
    let is_told = |text: &str| text.contains("attribution is off");
    status_with(&guarded.guardian, "notices", |s| {
        s.findings
            .iter()
            .any(|f| f.code == "CAP-03" && is_told(&f.text))
    })
    .await;
    guarded.guardian.stop().await;
}

/// A table that lacks a right, or is locked for longer than is waited for, keeps no other
/// from being judged in the same scan. It takes a minute, as long as is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn one_table_that_cannot_be_read_blinds_no_other() {
    let Some(server) = Server::start(&[], &[]) else {
        return;
    };
    let mut sql = server.sql();
    sql.query(SCHEMA).unwrap();
    let reader = "CREATE ROLE reader LOGIN REPLICATION PASSWORD 'secret'; GRANT SELECT ON patient, staff TO reader";
    sql.query(reader).unwrap();
    let mut site = site(&server);
    install(&site).unwrap();
    site.source.url = format!(
        "postgres://reader:secret@127.0.0.1:{}/postgres",
        server.port()
    );
    let forge = |id: u32| {
        let sql = format!(
            "BEGIN; ALTER PUBLICATION pitser_hospital DROP TABLE ONLY patient;
             UPDATE patient SET name = 'forged' WHERE id = {id};
             ALTER PUBLICATION pitser_hospital ADD TABLE ONLY patient; COMMIT"
        );
        server.sql().query(&sql).unwrap();
    };
    let forged = |scan: &pitser_guardian::ScanSummary| -> Vec<String> {
        let rows = scan.findings.iter().filter(|f| f.code == "ROW-01");
        rows.map(|f| f.key.clone().unwrap()).collect()
    };
    let unread = |scan: &pitser_guardian::ScanSummary, what: &str| {
        let [unread] = &scan.unread[..] else {
            panic!("{:?}", scan.unread)
        };
        assert_eq!(unread.table, "public.observation");
        assert!(unread.why.contains(what), "{unread:?}");
    };
    forge(2);
    let (guardian, _) = site.start(None);
    let scan = guardian.scan().await.unwrap();
    assert_eq!(forged(&scan), ["2"]);
    unread(
        &scan,
        "GRANT SELECT ON \"public\".\"observation\" TO \"reader\"",
    );
    let status = guardian.status();
    assert_eq!(status.unread, scan.unread);
    assert!(status.verified_up_to.is_none(), "not all was looked at");
    let lacks = |f: &pitser_guardian::FindingStatus| {
        f.code == "CAP-03" && f.table.as_deref() == Some("public.observation")
    };
    assert!(status.findings.iter().any(lacks), "{:?}", status.findings);

    sql.query("GRANT SELECT ON observation TO reader").unwrap();
    sql.query("BEGIN; LOCK TABLE observation IN ACCESS EXCLUSIVE MODE")
        .unwrap();
    forge(1);
    let scan = guardian.scan().await.unwrap();
    assert_eq!(forged(&scan), ["2", "1"]);
    unread(&scan, "is locked");

    sql.query("COMMIT").unwrap();
    let scan = guardian.scan().await.unwrap();
    assert_eq!((forged(&scan).len(), scan.unread.len()), (2, 0));
    let status = guardian.status();
    assert!(status.unread.is_empty() && status.verified_up_to.is_some());
    guardian.stop().await;
}

/// Whoever keeps all passes from coming to their end has something to hide.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_cannot_be_compared_for_long_are_a_finding() {
    let Some(server) = Server::start(&[], &[]) else {
        return;
    };
    let mut sql = server.sql();
    sql.query(SCHEMA).unwrap();
    sql.query(
        "CREATE ROLE reader LOGIN REPLICATION PASSWORD 'secret'; GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader",
    )
    .unwrap();
    let mut site = site(&server);
    site.tuning.unwatched_alarm_s = 2;
    install(&site).unwrap();
    let port = server.port();
    site.source.url = format!("postgres://reader:secret@127.0.0.1:{port}/postgres");
    let (guardian, _) = site.start(None);
    guarding(&guardian).await;
    guardian.scan().await.unwrap();
    let told = |s: &Status| {
        let mut found = s.findings.iter().filter(|f| f.code == "CAP-03");
        found.any(|f| f.text.starts_with("rows are not compared any more, since "))
    };
    assert!(!told(&guardian.status()));
    sql.query("ALTER ROLE reader CONNECTION LIMIT 1").unwrap();
    guardian.scan().await.unwrap_err();
    let status = status_with(&guardian, "CAP-03", told).await;
    assert_eq!(status.state, SourceState::Guarding);
    // It is done without anybody asking for it.
    let before = status.verified_up_to;
    sql.query("ALTER ROLE reader CONNECTION LIMIT -1").unwrap();
    status_with(&guardian, "a scan", |s| s.verified_up_to != before).await;
    guardian.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_attribution_a_row_may_still_name_its_writer() {
    let off = |site: &mut Site| site.source.attribution = Attribution::Off;
    let Some(mut guarded) = Guarded::new(&[], SCHEMA, off) else {
        return;
    };
    for statement in CHANGES.split(';').filter(|s| !s.trim().is_empty()) {
        guarded.sql.query(statement).unwrap();
    }
    let found = guarded.found().await;
    assert_eq!(found, [("ACT-02".to_owned(), Some("20".to_owned()))]);
    // One line of the first update, three of the one that gave the row to another
    // patient; the one between names nobody.
    let tamm = (Some("dr.tamm".to_owned()), "C".to_owned());
    let told = guarded.actors("public.observation");
    assert_eq!(told, vec![tamm; 4]);
    guarded.guardian.stop().await;
}

#[test]
fn rules_about_sessions_need_attribution() {
    let Some(server) = Server::start(&[], &[]) else {
        return;
    };
    server.sql().query(SCHEMA).unwrap();
    let mut site = site(&server);
    site.source.attribution = Attribution::Off;
    site.source.application.roles = vec!["ward".into()];
    let error = install(&site).unwrap_err();
    assert!(error.is_configuration(), "{error}");
    assert!(error.to_string().contains("attribution"), "{error}");
}
