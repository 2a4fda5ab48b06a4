//! What can be wrong before and while guarding, as the person at the terminal
//! meets it: exit code, and a message that says what to do.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

#[path = "../../trail/tests/common/copy_folder.rs"]
mod copy_folder;
#[path = "../../authority/tests/common/port.rs"]
mod port;
#[path = "../../guardian/tests/end_to_end/triggers.rs"]
mod triggers;

use copy_folder::copy_folder;
use port::free_address;
use rusqlite::Connection;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use triggers::past_triggers;

const CONFIG: &str = "[authority]\naggregator = \"embedded\"\n[guard]\ndata = \"guard\"\nlisten = \"127.0.0.1:0\"\n\
    [[source]]\nname = \"h\"\nkind = \"sqlite\"\nurl = \"hospital.db\"\ntables = [\"*\"]\n";

struct Site(tempfile::TempDir);

impl Site {
    fn new(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("pitser.toml"), config).unwrap();
        Self(dir)
    }

    fn with_database() -> Self {
        let site = Self::new(CONFIG);
        let db = Connection::open(site.path("hospital.db")).unwrap();
        db.execute_batch("CREATE TABLE entry (id INTEGER PRIMARY KEY, note TEXT); INSERT INTO entry VALUES (1, 'a')").unwrap();
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    #[track_caller]
    fn says(&self, args: &[&str], code: i32, parts: &[&str]) -> String {
        let output = pitser(self.0.path(), args);
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(output.status.code(), Some(code), "{text}");
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
        text
    }
}

fn pitser(dir: &Path, args: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_pitser"))
        .current_dir(dir)
        .args(args)
        .output()
        .unwrap()
}

/// A running guardian, and the first line that it says.
fn start(dir: &Path) -> (Child, String) {
    let mut guardian = Command::new(env!("CARGO_BIN_EXE_pitser"))
        .current_dir(dir)
        .args(["guard", "run"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(guardian.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    (guardian, line)
}

#[test]
fn configurations() {
    let site = Site::new(CONFIG);
    site.says(
        &["guard", "init", "--config", "other.toml"],
        3,
        &["other.toml", "pitser guard example"],
    );
    let site = Site::new(&CONFIG.replace("listen", "lisen"));
    site.says(
        &["guard", "run"],
        3,
        &["pitser.toml:5", "lisen", "Did you mean `listen`?"],
    );
    let site = Site::new(CONFIG);
    site.says(&["guard", "example"], 0, &["[[source]]", "scan_every_s"]);
}

#[test]
fn databases() {
    let site = Site::new(CONFIG);
    site.says(&["guard", "init"], 4, &["hospital.db"]);
    assert!(
        !site.path("hospital.db").exists(),
        "a database that is not there must not be made"
    );
    std::fs::write(
        site.path("hospital.db"),
        "this is a letter, not a database, and long enough to be sure",
    )
    .unwrap();
    site.says(&["guard", "init"], 4, &["not an SQLite database"]);

    let site = Site::with_database();
    site.says(&["guard", "run"], 3, &["pitser guard init"]);
    let plan = site.says(
        &["guard", "init", "--dry-run"],
        0,
        &["CREATE TRIGGER", "a new trail would begin"],
    );
    assert!(
        !site.path("guard").exists() && plan.contains("pitser_outbox"),
        "a dry run changes nothing"
    );
    site.says(&["guard", "init"], 0, &["genesis"]);
    site.says(&["guard", "init"], 0, &["0 statements run"]);
    site.says(&["guard", "uninstall"], 0, &["removed"]);
    let left: u32 = Connection::open(site.path("hospital.db"))
        .unwrap()
        .query_row(
            "SELECT count(*) FROM sqlite_schema WHERE name LIKE 'pitser%'",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(left, 0, "everything of ours is out again");

    let site = Site::with_database();
    Connection::open(site.path("hospital.db"))
        .unwrap()
        .execute_batch("CREATE TABLE loose (note TEXT)")
        .unwrap();
    site.says(&["guard", "init"], 4, &["loose", "primary key"]);
}

#[test]
fn trails() {
    let site = Site::with_database();
    site.says(&["trail", "verify"], 3, &["no trail", "pitser guard init"]);
    site.says(&["guard", "init"], 0, &[]);
    site.says(&["trail", "verify"], 2, &["unconfirmed", "1 lines wait"]);
    site.says(
        &["history", "entry", "1"],
        3,
        &["no line about this record"],
    );
    site.says(
        &["guard", "status"],
        4,
        &["no guardian answers", "pitser guard run"],
    );

    let segment = site.path("guard/h/trail/000000.jsonl");
    let whole = std::fs::read(&segment).unwrap();
    let mut edited = whole.clone();
    let at = whole.windows(9).position(|w| w == b"predecess").unwrap();
    edited[at] = b'P';
    std::fs::write(&segment, &edited).unwrap();
    site.says(
        &["trail", "verify"],
        1,
        &["broken: TRL-01", "000000.jsonl line 0"],
    );
    site.says(&["guard", "run"], 1, &["TRL-01", "they are evidence"]);
    std::fs::write(&segment, &whole).unwrap();
    site.says(&["trail", "verify"], 2, &["unconfirmed"]);
}

#[test]
fn another_database_under_the_same_name_is_not_taken_for_the_first() {
    let site = Site::with_database();
    site.says(&["guard", "init"], 0, &[]);
    std::fs::remove_file(site.path("hospital.db")).unwrap();
    let db = Connection::open(site.path("hospital.db")).unwrap();
    db.execute_batch("CREATE TABLE entry (id INTEGER PRIMARY KEY, note TEXT)")
        .unwrap();
    drop(db);
    site.says(&["guard", "run"], 3, &["pitser guard init"]);
    let to_do = [
        "CAP-02",
        "say so by system = \"sqlite:",
        "correct its url",
        "another source name",
    ];
    site.says(&["guard", "init"], 3, &to_do);
}

/// A source that nobody has is no source without findings.
#[test]
fn a_source_of_another_name_is_refused() {
    let site = Site::new(CONFIG);
    for command in ["scan", "status"] {
        let typo = ["guard", command, "--source", "hopsital"];
        site.says(&typo, 3, &["no source is named \"hopsital\"", "there is"]);
    }
}

/// A guardian that was not told of a source, and what else may answer at its address.
#[test]
fn a_source_that_nobody_guards_is_not_well() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let site = Site::with_database();
    let one = CONFIG.replace("127.0.0.1:0", &address);
    let two = format!(
        "{one}[[source]]\nname = \"other\"\nkind = \"sqlite\"\nurl = \"hospital.db\"\ntables = [\"*\"]\n"
    );
    std::fs::write(site.path("pitser.toml"), &one).unwrap();
    std::fs::write(site.path("two.toml"), &two).unwrap();
    let elsewhere = one.replace("[guard]", "[guard]\norganisation = \"else.example\"");
    std::fs::write(site.path("else.toml"), &elsewhere).unwrap();

    // Something else listens there.
    let stranger = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).unwrap();
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        stream.write_all(answer.as_bytes()).unwrap();
    });
    site.says(&["guard", "status"], 4, &["is no guardian"]);
    stranger.join().unwrap();

    site.says(&["guard", "init"], 0, &[]);
    let (mut guardian, line) = start(site.0.path());
    assert!(line.contains(&address), "it listens");
    let status = |config: &str, source: &[&str], code, parts: &[&str]| {
        let args = [&["guard", "status", "--config", config], source].concat();
        site.says(&args, code, parts)
    };
    status("pitser.toml", &[], 0, &["h (localhost/h)"]);
    let unguarded = "other (localhost/other)\n  state      not guarded";
    status("two.toml", &[], 2, &["h (localhost/h)", unguarded]);
    status("two.toml", &["--source", "h"], 0, &[]);
    status("two.toml", &["--source", "other"], 2, &[unguarded]);
    status("else.toml", &["--json"], 2, &["\"state\":\"not-guarded\""]);
    guardian.kill().unwrap();
    guardian.wait().unwrap();
}

/// Two databases under one guardian.
fn two_sources() -> (Site, String) {
    let address = free_address().to_string();
    let site = Site::with_database();
    let config = CONFIG.replace("127.0.0.1:0", &address);
    let two = format!(
        "{config}[[source]]\nname = \"other\"\nkind = \"sqlite\"\nurl = \"other.db\"\ntables = [\"*\"]\n"
    );
    std::fs::write(site.path("pitser.toml"), two).unwrap();
    std::fs::copy(site.path("hospital.db"), site.path("other.db")).unwrap();
    site.says(&["guard", "init"], 0, &[]);
    (site, address)
}

/// Waits until a source is in this state.
fn comes_to(address: &str, source: &str, state: &str) {
    let mut stream = TcpStream::connect(address).unwrap();
    let limit = Some(Duration::from_secs(60));
    stream.set_read_timeout(limit).unwrap();
    let request = format!("GET /api/events HTTP/1.1\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let (name, state) = (
        format!("\"name\":\"{source}\""),
        format!("\"state\":\"{state}\""),
    );
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    let found = lines.find(|line| line.contains(&name) && line.contains(&state));
    assert!(found.is_some(), "the guardian is gone");
}

/// What somebody does to one database, or to its trail, must leave the others guarded.
#[test]
fn a_source_that_cannot_be_opened_leaves_the_others_guarded() {
    type Harm = fn(&Site);
    let letter: Harm = |site| {
        let letter = "this is a letter, not a database, and long enough to be sure";
        std::fs::write(site.path("other.db"), letter).unwrap();
    };
    let missing: Harm = |site| std::fs::remove_file(site.path("other.db")).unwrap();
    let stripped: Harm = |site| {
        let db = Connection::open(site.path("other.db")).unwrap();
        db.execute_batch("DROP TABLE pitser_outbox").unwrap();
    };
    let replaced: Harm = |site| {
        std::fs::copy(site.path("hospital.db"), site.path("other.db")).unwrap();
    };
    let damaged: Harm = |site| {
        let segment = site.path("guard/other/trail/000000.jsonl");
        let text = std::fs::read_to_string(&segment).unwrap();
        let edited = text.replacen("predecess", "Predecess", 1);
        assert_ne!(text, edited);
        std::fs::write(segment, edited).unwrap();
    };
    let unavailable = "database-unavailable";
    for (harm, state, trouble) in [
        (letter, unavailable, "not an SQLite database"),
        (missing, unavailable, "other.db"),
        (stripped, unavailable, "pitser guard init"),
        (replaced, unavailable, "CAP-02"),
        (damaged, "damaged", "TRL-01"),
    ] {
        let (site, address) = two_sources();
        let kept = tempfile::tempdir().unwrap();
        copy_folder(site.0.path(), kept.path());
        harm(&site);
        let (mut guardian, line) = start(site.0.path());
        let told = "guarding h, and other as soon as it can be opened; status page";
        assert!(line.starts_with(told), "{line}");
        comes_to(&address, "h", "guarding");
        let parts = [
            "h (localhost/h)\n  state      guarding",
            &format!("other (localhost/other)\n  state      {state}"),
            trouble,
        ];
        site.says(&["guard", "status"], 2, &parts);
        site.says(&["guard", "status", "--source", "h"], 0, &[]);
        site.says(&["guard", "scan", "--source", "h"], 0, &["1 rows compared"]);

        // It is guarded as soon as that is mended.
        for file in ["other.db", "guard/other/trail/000000.jsonl"] {
            std::fs::copy(kept.path().join(file), site.path(file)).unwrap();
        }
        comes_to(&address, "other", "guarding");
        site.says(&["guard", "scan"], 0, &[]);
        guardian.kill().unwrap();
        guardian.wait().unwrap();
    }
}

/// Where nothing can be guarded, or the configuration is wrong, a supervisor sees it.
#[test]
fn a_guardian_that_can_guard_nothing_ends() {
    let (site, _) = two_sources();
    let config = site.path("pitser.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let wrong = format!("{text}[source.patient]\nentry = \"pasient\"\n");
    std::fs::write(&config, wrong).unwrap();
    site.says(&["guard", "run"], 3, &["no column pasient"]);
    std::fs::write(&config, text).unwrap();

    std::fs::remove_file(site.path("hospital.db")).unwrap();
    std::fs::remove_file(site.path("other.db")).unwrap();
    site.says(&["guard", "run"], 4, &["pitser: ", "hospital.db"]);
}

/// What is found in one source is told, whatever keeps another one from being looked at.
#[test]
fn a_source_that_cannot_be_scanned_hides_no_finding_of_another() {
    for (scanned, away) in [("h", "other"), ("other", "h")] {
        let file = |source| match source {
            "h" => "hospital.db",
            _ => "other.db",
        };
        let (site, address) = two_sources();
        std::fs::remove_file(site.path(file(away))).unwrap();
        let (mut guardian, _) = start(site.0.path());
        comes_to(&address, scanned, "guarding");
        let compared = format!("{scanned}: 1 rows compared");
        let not_compared = format!("{away}: not compared: the guardian at {address} cannot do it");
        site.says(
            &["guard", "scan"],
            4,
            &[&compared, &not_compared, "pitser: "],
        );
        let one = ["guard", "scan", "--source", away];
        let told = site.says(&one, 4, &["pitser: the guardian at"]);
        assert!(!told.contains("not compared"), "{told}");

        let db = Connection::open(site.path(file(scanned))).unwrap();
        past_triggers(&db, "entry", "UPDATE entry SET note = 'b'");
        drop(db);
        site.says(&["guard", "scan"], 1, &[&compared, "ROW-01", &not_compared]);
        let parts = [
            "\"code\":\"ROW-01\"",
            &format!("\"error\":\"the guardian at {address} cannot do it now"),
        ];
        site.says(&["guard", "scan", "--json"], 1, &parts);
        guardian.kill().unwrap();
        guardian.wait().unwrap();
    }
}

/// Run by the next test, as another user: listens, and says how much it was sent.
#[test]
fn a_stranger_listens() {
    if std::env::var_os(STRANGER).is_none() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    eprintln!("{}", listener.local_addr().unwrap());
    let (mut stream, _) = listener.accept().unwrap();
    let sent = stream.read(&mut [0; 1024]).unwrap();
    eprintln!("{sent} bytes");
}

const STRANGER: &str = "PITSER_TEST_STRANGER";

/// While no guardian runs, any user of the machine can listen where it would.
#[test]
fn a_token_is_not_sent_to_whoever_listens_there() {
    const NOBODY: u32 = 65534;
    let stranger = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_stranger_listens", "--nocapture"])
        .env(STRANGER, "")
        .current_dir("/")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .uid(NOBODY)
        .spawn();
    let Ok(mut stranger) = stranger else {
        println!("not run: only root can be another user");
        return;
    };
    let mut told = BufReader::new(stranger.stderr.take().unwrap()).lines();
    let address = told.next().unwrap().unwrap();

    let site = Site::with_database();
    let token = ["erase", "--new-token", "mari.token", "--by", "Mari"];
    let approver = site.says(&token, 0, &["token_sha256"]);
    let config = CONFIG.replace("127.0.0.1:0", &address);
    std::fs::write(site.path("pitser.toml"), config + &approver).unwrap();
    site.says(&["guard", "init"], 0, &[]);
    let accept = [
        "guard",
        "accept",
        "--finding",
        "7",
        "--reason",
        "seen",
        "--token",
        "mari.token",
    ];
    let parts = [
        &format!("what listens at {address} is no guardian of"),
        &format!("it belongs to user {NOBODY}, and that folder to user"),
        "Nothing was sent",
    ];
    site.says(&accept, 4, &parts);
    assert_eq!(told.next().unwrap().unwrap(), "0 bytes");
    stranger.wait().unwrap();
}
