//! Everything that can go wrong between a new user, a guardian and a real
//! PostgreSQL, as the person at the terminal meets it: exit codes, messages
//! that say what to do, and a guardian that goes on by itself, with nothing
//! lost and nothing told twice.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod common;
#[path = "../../capture/tests/postgres/harness.rs"]
mod harness;

use common::port::{self, free_address};
use common::{Said, pitser, run};
use harness::Server;
use pitser_capture::postgres::{Config, Connection};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Long enough for a machine that does much else.
const DEADLINE: Duration = Duration::from_secs(120);
const EMBEDDED: &str = "embedded";

// ---------------------------------------------------------------- refusals

#[test]
fn refusals() {
    let settings = ["wal_level = replica", "max_replication_slots = 1"];
    let Some(server) = Server::start(&settings, &[]) else {
        return;
    };
    let mut sql = server.sql();
    sql.query(
        "CREATE TABLE entry (id int PRIMARY KEY, patient text, note text);
         INSERT INTO entry VALUES (1, 'pt-1', 'a'), (2, 'pt-2', 'b');
         CREATE TABLE nurse (id int PRIMARY KEY, login text);",
    )
    .unwrap();
    connections(&server);
    the_server_s_settings(&server);
    // The server was restarted.
    let mut sql = server.sql();
    configurations(&server);
    open_transactions_and_no_folder(&server, &mut sql);
    nothing_is_left_behind(&server, &mut sql);
}

/// What is wrong with the URL, and what with the server that it names.
fn connections(server: &Server) {
    let refuses = |url: &str, code: i32, parts: &[&str]| {
        let site = Site::new(url, "");
        site.refuses("guard init", code, parts);
        site.refuses("guard init --dry-run", code, parts);
        site.refuses("guard uninstall", code, parts);
    };
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = nobody.local_addr().unwrap().port();
    drop(nobody);
    let check = ["refused the password", "check user and password"];
    refuses(&url(server, "postgres:secret", "postgres"), 4, &check);
    refuses(&url(server, "nobody:secret", "postgres"), 4, &check);
    refuses(
        &url(server, "postgres", "postgres"),
        4,
        &["wants a password", "the URL has none"],
    );
    refuses(
        &server.url("nosuch"),
        4,
        &["\"nosuch\" does not exist", "correct its name"],
    );
    refuses(
        &format!("postgres://pitser:secret@127.0.0.1:{closed}/postgres"),
        4,
        &["no PostgreSQL answers at 127.0.0.1", "is it running"],
    );
    let written = "it is written postgres://user:password@host:5432/database";
    for wrong in [
        "hospital",
        "mysql://pitser:secret@127.0.0.1/hospital",
        "postgres://pitser:secret@127.0.0.1:x/hospital",
    ] {
        refuses(wrong, 3, &["the database URL", written]);
    }
    let site = Site::new("postgres://pitser:secret@127.0.0.1/hospital", "");
    site.edit("\"postgres\"", "\"sqlite\"");
    site.refuses(
        "guard init",
        3,
        &["source \"h\"", "kind = \"postgres\"", "pitser.toml"],
    );
}

/// What the server is not set up for, and that doing what is said helps.
fn the_server_s_settings(server: &Server) {
    let site = Site::new(&server.url("postgres"), "");
    let lines = [
        "wal_level is replica",
        "postgresql.conf and restart",
        "\nwal_level = logical\n",
        "\nmax_replication_slots = ",
    ];
    site.refuses("guard init", 4, &lines);
    site.refuses("guard init --dry-run", 4, &lines);
    server
        .sql()
        .query("ALTER SYSTEM SET wal_level = logical")
        .unwrap();
    server.restart();
    let mut sql = server.sql();
    sql.query("SELECT pg_create_physical_replication_slot('standby')")
        .unwrap();
    site.refuses(
        "guard init",
        4,
        &["max_replication_slots", "pg_replication_slots"],
    );
    sql.query("SELECT pg_drop_replication_slot('standby')")
        .unwrap();
}

/// What does not fit the tables, before anything is changed.
fn configurations(server: &Server) {
    let refuses = |find: &str, replace: &str, parts: &[&str]| {
        let site = Site::new(&server.url("postgres"), "");
        site.edit(find, replace);
        site.refuses("guard init", 3, parts);
        site.refuses("guard init --dry-run", 3, parts);
    };
    let below = |section: &str, line: &str, parts: &[&str]| {
        let extra = format!("keyless = \"refuse\"\n[source.{section}]\n{line}\n");
        refuses("keyless = \"refuse\"\n", &extra, parts);
    };
    refuses(
        "\"public.*\"",
        "\"entry\"",
        &["tables = [\"entry\"]", "it has public.entry, public.nurse"],
    );
    below(
        "patient",
        "\"public.entry\" = \"pateint\"",
        &["public.entry has no column pateint"],
    );
    below(
        "patient",
        "\"public.entry\" = \"patient -> public.ward.id\"",
        &["public.ward is not guarded"],
    );
    below(
        "patient",
        "\"entry\" = \"patient\"",
        &["did you mean public.entry?"],
    );
    below(
        "actor",
        "\"public.visit\" = \"note\"",
        &["source.actor.\"public.visit\"", "no guarded table"],
    );
    below(
        "actor",
        "\"public.entry\" = \"writer\"",
        &["public.entry has no such column"],
    );
    below(
        "actor",
        "\"public.entry\" = \"note -> public.doctor.login\"",
        &["there is no table public.doctor"],
    );
    below(
        "actor",
        "\"public.entry\" = \"note -> public.nurse.name\"",
        &["public.nurse has no column name"],
    );
    below(
        "application",
        "log = \"public.log\"",
        &["there is no table public.log"],
    );
    let named = "use 1 to 63 of a-z, 0-9 and _";
    below_source(server, "slot = \"My-Slot\"", &["\"My-Slot\"", named]);
    below_source(server, "publication = \"My-Slot\"", &["\"My-Slot\"", named]);
}

fn below_source(server: &Server, line: &str, parts: &[&str]) {
    let site = Site::new(&server.url("postgres"), line);
    site.refuses("guard init", 3, parts);
}

/// A slot is made once all transactions that were open have ended: whoever
/// waits for that is told. And it goes again if no trail can be begun.
fn open_transactions_and_no_folder(server: &Server, sql: &mut Connection) {
    let site = Site::new(&server.url("postgres"), "");
    site.edit("data = \"data\"", "data = \"pitser.toml/data\"");
    let mut other = server.sql();
    other
        .query("CREATE TEMPORARY TABLE t (); BEGIN; INSERT INTO t DEFAULT VALUES")
        .unwrap();
    let mut init = pitser(site.dir());
    let init = init.args(["guard", "init"]).stderr(Stdio::piped());
    let mut init = Guardian(init.spawn().unwrap());
    let mut err = BufReader::new(init.0.stderr.take().unwrap()).lines();
    let told = err.next().unwrap().unwrap();
    for part in ["waiting", "\"pitser_h\"", "pg_stat_activity"] {
        assert!(told.contains(part), "{told}");
    }
    other.query("COMMIT").unwrap();
    let last = err.next().unwrap().unwrap();
    assert!(last.contains("pitser.toml/data"), "{last}");
    assert_eq!(init.0.wait().unwrap().code(), Some(4));
    let slots = sql.query("SELECT FROM pg_replication_slots").unwrap();
    assert!(slots.is_empty());
    run(site.dir(), "guard uninstall").exits(0);
}

/// How many statements `guard init` says that it runs, or would.
fn statements(said: &str) -> u32 {
    let (before, _) = said.split_once(" statements").unwrap();
    let (_, number) = before.rsplit_once(' ').unwrap();
    number.parse().unwrap()
}

/// From a dry run to `uninstall`, and to a second beginning on the old trail.
fn nothing_is_left_behind(server: &Server, sql: &mut Connection) {
    sql.query("CREATE TABLE loose (note text)").unwrap();
    let before = traces(server, sql);
    let site = Site::new(&server.url("postgres"), "");
    // A capital letter and a dash, which a slot's name cannot have.
    site.edit("name = \"h\"", "name = \"Ward-7\"");
    site.refuses(
        "guard init",
        4,
        &["public.loose", "primary key", "keyless = \"full\""],
    );
    site.edit("keyless = \"refuse\"", "keyless = \"full\"");
    site.refuses("guard run", 3, &["Ward-7", "`pitser guard init` first"]);
    let planned = run(site.dir(), "guard init --dry-run")
        .exits(0)
        .says("CREATE_REPLICATION_SLOT pitser_ward_7 ")
        .says("a new trail would begin");
    let planned = statements(&planned.out);
    assert_eq!(traces(server, sql), before, "a dry run changes nothing");
    assert!(!site.dir().join("data").exists());

    let installed = run(site.dir(), "guard init").exits(0).says("genesis");
    assert_eq!(statements(&installed.out), planned);
    let installed = traces(server, sql);
    assert_ne!(installed, before);
    assert!(installed.contains("pitser_ward_7"), "{installed}");
    run(site.dir(), "guard init")
        .exits(0)
        .says("0 statements run: everything was in place");
    run(site.dir(), "guard init --dry-run")
        .exits(0)
        .says("0 statements, its trail goes on");
    assert_eq!(traces(server, sql), installed);

    let guardian = site.start();
    sql.query(
        "INSERT INTO loose VALUES ('x'), ('y'); UPDATE loose SET note = 'z' WHERE note = 'y';
         DELETE FROM loose WHERE note = 'x'",
    )
    .unwrap();
    let of_loose = |op: &str| {
        let is = |line: &&Value| line["op"] == op && line["table"] == "public.loose";
        site.lines().iter().filter(is).count()
    };
    // The update of a row that is its own key is a delete and a create.
    site.until("all changes of the table without a key", |_| {
        (of_loose("create"), of_loose("delete")) == (3, 2)
    });
    run(site.dir(), "guard scan").exits(0).says("3 rows");

    let busy = ["pitser_ward_7", "read by another process", "stop"];
    site.refuses("guard uninstall", 4, &busy);
    run(site.dir(), "guard init")
        .exits(0)
        .says("everything was in place")
        .says("A guardian is running on this trail");
    assert_eq!(traces(server, sql), installed);
    guardian.stop();

    run(site.dir(), "guard uninstall --dry-run")
        .exits(0)
        .says("would be removed");
    assert_eq!(traces(server, sql), installed);
    run(site.dir(), "guard uninstall")
        .exits(0)
        .says("were removed; the trail stays");
    assert_eq!(traces(server, sql), before, "everything is as it was");
    run(site.dir(), "guard uninstall")
        .exits(0)
        .says("nothing of ours is in the database");
    site.refuses("guard run", 3, &["`pitser guard init` first"]);

    // While nobody captured.
    sql.query("UPDATE entry SET note = 'c' WHERE id = 1")
        .unwrap();
    let gap = "The trail goes on with a gap";
    run(site.dir(), "guard init --dry-run").exits(0).says(gap);
    assert!(site.lines().iter().all(|line| line["op"] != "gap"));
    run(site.dir(), "guard init").exits(0).says(gap);
    let second = run(site.dir(), "guard init").exits(0);
    assert!(!second.out.contains(gap), "{second:?}");
    sql.query("UPDATE entry SET note = 'd' WHERE id = 2")
        .unwrap();
    let guardian = site.start();
    site.until("the scan", |s| {
        has(s, "CAP-01", "") && has(s, "ROW-01", "1")
    });
    run(site.dir(), "guard status")
        .exits(1)
        .says("moved or made anew");
    let codes = site.codes();
    assert_eq!(codes.get("CAP-01"), Some(&1), "{codes:?}");
    assert_eq!(
        codes.get("ROW-01"),
        Some(&1),
        "what was changed after init is captured: {codes:?}"
    );
    assert_eq!(site.count("gap"), 1);
    guardian.stop();

    // A slot whose trail is gone is no beginning.
    fs::remove_dir_all(site.dir().join("data")).unwrap();
    let stale = ["pitser_ward_7", "pg_drop_replication_slot"];
    site.refuses("guard init --dry-run", 4, &stale);
    site.refuses("guard init", 4, &stale);
    assert!(!site.dir().join("data").exists());
}

/// All that init changes in a database.
fn traces(server: &Server, sql: &mut Connection) -> String {
    let rows = sql
        .query(
            "SELECT 'slot ' || slot_name FROM pg_replication_slots
             UNION ALL SELECT 'publication ' || pubname FROM pg_publication
             UNION ALL SELECT 'identity ' || relname || relreplident::text FROM pg_class
               WHERE relnamespace = 'public'::regnamespace
             UNION ALL SELECT 'right ' || p.oid::regprocedure || ' ' || a::text
               FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
               WHERE p.proname = 'pg_logical_emit_message'
             ORDER BY 1",
        )
        .unwrap();
    let rows = rows.iter().map(|row| text(&row[0]) + "\n");
    server.schema("postgres") + &rows.collect::<String>()
}

// ------------------------------------------------------------------ rights

#[test]
fn rights() {
    let Some(server) = Server::start(&[], &[]) else {
        return;
    };
    the_ladder_of_rights(&server);
    a_role_that_only_reads(&server);
}

/// Each refusal names one statement; running exactly those leads to a guarded
/// database, and they are no more than is needed.
fn the_ladder_of_rights(server: &Server) {
    let mut sql = server.sql();
    sql.query(
        "CREATE ROLE app LOGIN PASSWORD 'app'; CREATE SCHEMA clinic;
         CREATE TABLE clinic.entry (id int PRIMARY KEY, note text); INSERT INTO clinic.entry VALUES (1, 'a');
         ALTER TABLE clinic.entry OWNER TO app; REVOKE SELECT ON clinic.entry FROM app;
         ALTER TABLE clinic.entry ENABLE ROW LEVEL SECURITY; ALTER TABLE clinic.entry FORCE ROW LEVEL SECURITY;
         CREATE POLICY newer ON clinic.entry USING (id > 1);
         CREATE ROLE pitser LOGIN NOINHERIT PASSWORD 'secret'",
    )
    .unwrap();
    let site = Site::new(&url(server, "pitser:secret", "postgres"), "");
    site.edit("public.*", "clinic.*");
    let mut granted = Vec::new();
    let done = loop {
        let said = run(site.dir(), "guard init");
        if said.code == 0 {
            break said;
        }
        let said = site.checked(said, 4, &["a superuser grants it: "]);
        let (_, grant) = said.err.split_once("grants it: ").unwrap();
        assert!(
            !granted.contains(&grant.trim().to_owned()),
            "running it does not help: {said:?}"
        );
        sql.query(grant).unwrap();
        granted.push(grant.trim().to_owned());
    };
    let owning: &[&str] = match server.version() < 16 {
        true => &[
            "GRANT \"app\" TO \"pitser\"",
            "ALTER ROLE \"pitser\" INHERIT",
        ],
        false => &["GRANT \"app\" TO \"pitser\" WITH INHERIT TRUE"],
    };
    assert_eq!(granted[0], "ALTER ROLE \"pitser\" REPLICATION");
    assert_eq!(granted[1..=owning.len()], *owning);
    assert_eq!(
        granted[1 + owning.len()..],
        [
            "GRANT CREATE ON DATABASE \"postgres\" TO \"pitser\"",
            "GRANT USAGE ON SCHEMA \"clinic\" TO \"pitser\"",
            "GRANT SELECT ON \"clinic\".\"entry\" TO \"pitser\"",
            "ALTER ROLE \"pitser\" BYPASSRLS",
        ]
    );
    done.says("baseline 1 rows")
        .says("A superuser closes this, in database \"postgres\"");
    let guardian = site.start();
    sql.query("UPDATE clinic.entry SET note = 'b'").unwrap();
    site.until("the update", |_| site.count("update") == 1);
    run(site.dir(), "guard scan")
        .exits(0)
        .says("1 rows compared");
    guardian.stop();
    run(site.dir(), "guard uninstall").exits(0);
}

/// Who guards need not be who installed: it replicates and reads, no more.
fn a_role_that_only_reads(server: &Server) {
    server.sql().query("CREATE DATABASE records").unwrap();
    let config = Config::parse(&server.url("records")).unwrap();
    let mut sql = Connection::open_application(&config).unwrap();
    sql.query(
        "CREATE TABLE entry (id int PRIMARY KEY, note text); INSERT INTO entry VALUES (1, 'a');
         CREATE ROLE reader LOGIN REPLICATION PASSWORD 'secret'",
    )
    .unwrap();
    let (reader, superuser) = (
        url(server, "reader:secret", "records"),
        server.url("records"),
    );
    let site = Site::new(&reader, "");
    // To be a member of a superuser is to be one: that is never asked for.
    let said = site.refuses(
        "guard init",
        4,
        &["\"postgres\" is a superuser", "GRANT SELECT ON"],
    );
    assert!(!said.err.contains("GRANT \"postgres\""), "{said:?}");
    site.edit(&reader, &superuser);
    run(site.dir(), "guard init").exits(0);
    site.edit(&superuser, &reader);
    let guardian = site.start();
    let grant = "GRANT SELECT ON \"public\".\"entry\" TO \"reader\"";
    site.until("the missing right", |s| {
        s["trouble"].as_str().is_some_and(|t| t.contains(grant))
    });
    site.refuses("guard scan", 4, &[grant]);
    site.until("the finding", |s| {
        let mut findings = s["findings"].as_array().unwrap().iter();
        findings.any(|f| f["code"] == "CAP-03" && f["text"].as_str().unwrap().contains(grant))
    });
    sql.query(grant).unwrap();
    run(site.dir(), "guard scan")
        .exits(0)
        .says("1 rows compared");
    sql.query("UPDATE entry SET note = 'b'").unwrap();
    site.until("the update", |_| site.count("update") == 1);
    guardian.stop();
}

// ----------------------------------------------------------------- outages

#[test]
fn outages() {
    let Some(server) = Server::start(&["synchronous_commit = on"], &[]) else {
        return;
    };
    server
        .sql()
        .query("CREATE TABLE entry (id int PRIMARY KEY, version int NOT NULL DEFAULT 0)")
        .unwrap();
    let site = Site::new(&server.url("postgres"), "");
    let port = free_address().port();
    site.edit(EMBEDDED, &format!("ksi+tcp://anon:anon@127.0.0.1:{port}"));
    run(site.dir(), "guard init").exits(0);
    let (committed, commits) = channel();
    let stop = AtomicBool::new(false);
    let (guardian, _authority) = thread::scope(|scope| {
        let _stops = OnDrop(|| stop.store(true, Ordering::Relaxed));
        scope.spawn(|| application(&server, &committed, &stop));
        let goes_on = |by: u32| {
            // Those from before count no more.
            while commits.try_recv().is_ok() {}
            for _ in 0..by {
                commits.recv_timeout(DEADLINE).unwrap();
            }
        };
        let guardian = site.start();

        // Without an authority lines go on, and blocks wait.
        site.until("blocks that wait", |s| {
            s["unsealed"].as_u64() > Some(0)
                && s["state"] == "guarding"
                && s["trouble"]
                    .as_str()
                    .is_some_and(|t| t.contains("authority"))
        });
        let now = site.lines().len();
        site.until("lines without an authority", |_| site.lines().len() > now);
        let authority = authority(site.dir(), port);
        site.until("all seals", |s| {
            s["unsealed"] == 0 && s["sealed_up_to"].is_string() && s["trouble"].is_null()
        });

        server.restart();
        goes_on(20);
        server.crash_and_restart();
        goes_on(20);
        site.until("guarding", |s| s["state"] == "guarding");
        // Fails if the guardian holds it up.
        server.stop();
        site.until("the outage", |s| {
            s["state"] == "database-unavailable"
                && s["trouble"]
                    .as_str()
                    .is_some_and(|t| t.contains("no PostgreSQL answers"))
        });
        run(site.dir(), "guard status")
            .exits(2)
            .says("database-unavailable")
            .says("trouble");
        site.refuses("guard scan", 4, &["no PostgreSQL answers"]);
        server.start_again();
        goes_on(20);
        site.until("guarding again", |s| s["state"] == "guarding");
        (guardian, authority)
    });
    guardian.settled(&site, &server);
}

/// Inserts and updates, three rows a transaction, through every outage.
fn application(server: &Server, committed: &Sender<()>, stop: &AtomicBool) {
    let mut next = 1;
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut sql) = Connection::open_application(&server.config()) else {
            thread::park_timeout(Duration::from_millis(10));
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            // What became of the last one is not always known.
            let transaction = format!(
                "BEGIN; INSERT INTO entry SELECT g, 0 FROM generate_series({next}, {next} + 1) g; \
                 UPDATE entry SET version = version + 1 WHERE id = {next} - 5; COMMIT"
            );
            next += 2;
            if sql.query(&transaction).is_err() {
                break;
            }
            // Counted by nobody once the test is over.
            let _ = committed.send(());
        }
    }
}

impl Guardian {
    /// Stops it; then its trail tells of each row and each change once.
    fn settled(self, site: &Site, server: &Server) {
        self.stop();
        let rows = server
            .sql()
            .query("SELECT count(*), sum(version) FROM entry")
            .unwrap();
        let number = |place: usize| text(&rows[0][place]).parse::<usize>().unwrap();
        assert!(number(0) > 100, "too little happened");
        assert_eq!(
            (site.count("create"), site.count("update")),
            (number(0), number(1))
        );
        assert_eq!(site.count("gap") + site.count("finding"), 0);
        run(site.dir(), "trail verify").exits(0);
        let _again = site.start();
        run(site.dir(), "guard scan")
            .exits(0)
            .says(&format!("{} rows compared", number(0)));
    }
}

/// `pitser dev` at this port.
fn authority(dir: &Path, port: u16) -> Guardian {
    let args = format!("dev --listen 127.0.0.1:{port} --http 127.0.0.1:0");
    let mut command = pitser(dir);
    command.args(args.split(' ')).stdout(Stdio::null());
    Guardian(command.spawn().unwrap())
}

// ------------------------------------------------------------------- slots

#[test]
fn slots() {
    let Some(server) = Server::start(&[], &[]) else {
        return;
    };
    let mut sql = server.sql();
    sql.query(
        "CREATE TABLE entry (id int PRIMARY KEY, note text);
         INSERT INTO entry SELECT g, 'a' FROM generate_series(1, 9) g",
    )
    .unwrap();
    let site = Site::new(&server.url("postgres"), "");
    run(site.dir(), "guard init").exits(0);
    let guardian = site.start();
    two_guardians(&site, &mut sql);
    guardian.stop();

    // Behind the guardian's back: the slot is moved over what happened.
    sql.query(
        "UPDATE entry SET note = 'b' WHERE id = 1; DELETE FROM entry WHERE id = 2;
         INSERT INTO entry VALUES (10, 'b')",
    )
    .unwrap();
    sql.query("SELECT pg_replication_slot_advance('pitser_h', pg_current_wal_lsn())")
        .unwrap();
    let guardian = site.start();
    site.until("the gap and what is in it", |s| {
        has(s, "CAP-01", "")
            && has(s, "ROW-01", "1")
            && has(s, "ROW-02", "2")
            && has(s, "ROW-03", "10")
    });
    run(site.dir(), "guard status --json").exits(1);
    assert_eq!(site.count("gap"), 1);
    guardian.stop();

    // The slot is dropped.
    sql.query(
        "UPDATE entry SET note = 'b' WHERE id = 3; DELETE FROM entry WHERE id = 4;
         INSERT INTO entry VALUES (11, 'b')",
    )
    .unwrap();
    sql.query("SELECT pg_drop_replication_slot('pitser_h')")
        .unwrap();
    let guardian = site.start();
    site.until("the second gap and what is in it", |s| {
        has(s, "ROW-01", "3") && has(s, "ROW-02", "4") && has(s, "ROW-03", "11")
    });
    assert_eq!((site.count("gap"), site.codes()["CAP-01"]), (2, 2));
    run(site.dir(), "guard status").exits(1).says("was missing");
    sql.query("UPDATE entry SET note = 'c' WHERE id = 5")
        .unwrap();
    site.until("what happens from then on", |_| site.count("update") == 2);

    // It can be stopped, and started, while there is no server.
    server.stop();
    site.until("the outage", |s| s["state"] == "database-unavailable");
    guardian.stop();
    let guardian = site.start();
    site.until("the server's absence", |s| {
        s["state"] == "database-unavailable"
            && s["trouble"]
                .as_str()
                .is_some_and(|t| t.contains("no PostgreSQL answers"))
    });
    server.start_again();
    site.until("guarding", |s| s["state"] == "guarding");
    guardian.stop();
    site.edit("p%40ss", "secret");
    site.refuses("guard run", 4, &["refused the password"]);
}

/// Neither the same trail nor the same slot has two guardians, and the first
/// one does not notice.
fn two_guardians(site: &Site, sql: &mut Connection) {
    site.refuses("guard run", 4, &["in use by another process", "stop"]);
    let copy = Site::new("", "");
    let args = ["-r", "data", "pitser.toml"];
    let copied = || {
        let mut cp = Command::new("cp");
        cp.current_dir(site.dir()).args(args).arg(copy.dir());
        cp.status().unwrap().success()
    };
    // Files get other names while they are copied: then it fails, once or twice.
    assert!((0..10).any(|_| copied()));
    copy.edit(&site.listen, &copy.listen);
    let second = copy.start();
    copy.until("the busy slot", |s| {
        s["state"] == "database-unavailable"
            && s["trouble"]
                .as_str()
                .is_some_and(|t| t.contains("read by another process"))
    });
    sql.query("UPDATE entry SET note = 'z' WHERE id = 9")
        .unwrap();
    site.until("the first one's work", |s| {
        s["state"] == "guarding" && site.count("update") == 1
    });
    drop(second);
    // A new trail cannot begin on it either.
    let other = Site::new(&site.url(), "");
    other.refuses(
        "guard init",
        4,
        &["slot pitser_h is there already", "slot = \"...\""],
    );
}

// -------------------------------------------------------------------- disk

#[test]
fn full_disk() {
    let Some(server) = Server::start(&[], &[]) else {
        return;
    };
    let mut sql = server.sql();
    sql.query("CREATE TABLE entry (id int PRIMARY KEY, note text)")
        .unwrap();
    let site = Site::new(&server.url("postgres"), "");
    run(site.dir(), "guard init").exits(0);
    // A write beyond the limit fails as it does on a full disk.
    let limited = "trap '' XFSZ; ulimit -S -f 600; exec \"$0\" guard run";
    let mut bash = Command::new("bash");
    bash.args(["-c", limited, env!("CARGO_BIN_EXE_pitser")])
        .current_dir(site.dir());
    let guardian = Guardian::ready(bash);
    let insert = |sql: &mut Connection, from: u32| {
        sql.query(&format!(
            "INSERT INTO entry SELECT g, repeat('x', 500) FROM generate_series({from}, {from} + 999) g"
        ))
        .unwrap();
    };
    insert(&mut sql, 1);
    insert(&mut sql, 1001);
    site.until("a full disk", |s| {
        s["state"] == "trail-unavailable" && s["trouble"].as_str().is_some_and(|t| !t.is_empty())
    });
    insert(&mut sql, 2001);
    let room = Command::new("prlimit")
        .args(["--fsize=unlimited", "--pid", &guardian.0.id().to_string()])
        .status()
        .unwrap();
    assert!(room.success());
    site.until("everything captured", |s| {
        s["state"] == "guarding" && site.count("create") >= 3000 && s["unsealed"] == 0
    });
    run(site.dir(), "guard scan")
        .exits(0)
        .says("3000 rows compared");
    guardian.stop();
    assert_eq!(site.count("create"), 3000);
    assert_eq!(site.count("gap"), 0);
    run(site.dir(), "trail verify").exits(0);
}

// ------------------------------------------------------------------- tools

/// A folder with a configuration and what comes of it.
struct Site {
    dir: tempfile::TempDir,
    listen: String,
}

impl Site {
    /// Guards `public.*` of a database; `extra` are more lines of the source.
    fn new(url: &str, extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listen = free_address().to_string();
        let config = format!(
            "[authority]\naggregator = \"{EMBEDDED}\"\n[guard]\ndata = \"data\"\nlisten = \"{listen}\"\n\
             [[source]]\nname = \"h\"\nkind = \"postgres\"\nurl = \"{url}\"\ntables = [\"public.*\"]\n\
             {extra}\nkeyless = \"refuse\"\n"
        );
        fs::write(dir.path().join("pitser.toml"), config).unwrap();
        Self { dir, listen }
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }

    #[track_caller]
    fn edit(&self, find: &str, replace: &str) {
        let path = self.dir().join("pitser.toml");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(find), "no {find} in {text}");
        fs::write(path, text.replace(find, replace)).unwrap();
    }

    fn url(&self) -> String {
        let text = fs::read_to_string(self.dir().join("pitser.toml")).unwrap();
        let (_, rest) = text.split_once("url = \"").unwrap();
        rest.split_once('"').unwrap().0.to_owned()
    }

    /// Runs a command that has to be refused, and judges what it says.
    #[track_caller]
    fn refuses(&self, args: &str, code: i32, parts: &[&str]) -> Said {
        // If it is not refused, it ends all the same.
        let said = Command::new("timeout")
            .args(["60", env!("CARGO_BIN_EXE_pitser")])
            .args(args.split(' '))
            .current_dir(self.dir())
            .env("TMPDIR", self.dir())
            .output()
            .unwrap();
        self.checked(said.into(), code, parts)
    }

    /// A message for a person: these parts, and nothing that is not theirs.
    #[track_caller]
    fn checked(&self, said: Said, code: i32, parts: &[&str]) -> Said {
        let said = said.exits(code);
        for part in parts {
            assert!(said.err.contains(part), "no {part:?} in {said:?}");
        }
        for secret in ["secret", "p@ss", "p%40ss", "pt-1"] {
            assert!(!said.err.contains(secret), "{secret} in {said:?}");
        }
        for dump in ["Error {", "Some(", "Err(", " { ", "::"] {
            assert!(!said.err.contains(dump), "{dump} in {said:?}");
        }
        assert!(said.err.len() < 500, "a long message: {said:?}");
        said
    }

    /// Starts a guardian, and waits until it says that it guards.
    fn start(&self) -> Guardian {
        let mut command = pitser(self.dir());
        command.args(["guard", "run"]);
        Guardian::ready(command)
    }

    fn status(&self) -> Value {
        let said = run(self.dir(), "guard status --json");
        assert!(said.code <= 2, "{said:?}");
        said.json()["sources"][0].clone()
    }

    /// Asks for the status until it is as wanted.
    #[track_caller]
    fn until(&self, what: &str, wanted: impl Fn(&Value) -> bool) {
        awaited(what, || {
            let status = self.status();
            wanted(&status) || {
                eprintln!(
                    "waiting for {what}: {} {}",
                    status["state"], status["trouble"]
                );
                false
            }
        });
    }

    /// How often each finding was told.
    fn codes(&self) -> BTreeMap<String, usize> {
        let mut codes = BTreeMap::new();
        for finding in self.status()["findings"].as_array().unwrap() {
            let code = finding["code"].as_str().unwrap().to_owned();
            *codes.entry(code).or_default() += 1;
        }
        codes
    }

    /// Whole lines of the trail.
    fn lines(&self) -> Vec<Value> {
        let folders = fs::read_dir(self.dir().join("data")).unwrap();
        let mut segments: Vec<_> = folders
            .map(|folder| folder.unwrap().path().join("trail"))
            .filter(|trail| trail.is_dir())
            .flat_map(|trail| common::files(&trail))
            .filter(|path| path.extension().is_some_and(|e| e == "jsonl"))
            .collect();
        segments.sort();
        let text: String = segments
            .iter()
            .map(|s| fs::read_to_string(s).unwrap())
            .collect();
        // The last one may be under way.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let lines = whole.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn count(&self, op: &str) -> usize {
        self.lines().iter().filter(|line| line["op"] == op).count()
    }
}

/// A process that ends with the test.
struct Guardian(Child);

impl Guardian {
    fn ready(mut command: Command) -> Self {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut guardian = Self(child.unwrap());
        let mut line = String::new();
        let out = guardian.0.stdout.as_mut().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        assert!(line.starts_with("guarding"), "{line:?}");
        guardian
    }

    /// Asks it to end, as a service manager does.
    fn stop(mut self) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs something also when a test fails.
struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Whether a finding about this key, or about none, is open.
fn has(status: &Value, code: &str, key: &str) -> bool {
    status["findings"]
        .as_array()
        .unwrap()
        .iter()
        .any(|finding| {
            let about = finding["key"].as_str().unwrap_or_default();
            finding["code"] == code && finding["open"] == true && about == key
        })
}

#[track_caller]
fn awaited(what: &str, mut there: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !there() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        thread::yield_now();
    }
}

/// Somebody's URL, `user:password`, of a database.
fn url(server: &Server, who: &str, database: &str) -> String {
    format!("postgres://{who}@127.0.0.1:{}/{database}", server.port())
}

fn text(field: &pitser_capture::postgres::Field) -> String {
    String::from_utf8(field.as_deref().unwrap().to_vec()).unwrap()
}
