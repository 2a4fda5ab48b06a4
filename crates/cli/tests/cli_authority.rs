//! An authority as its operator runs it: the built binary, from `init` to SIGTERM.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use common::{Said, pitser, run};
use data_encoding::BASE64;
use pitser_ksi::hash::{Algorithm, hash};
use pitser_ksi::pdu::{
    AggregationRequest, AggregationRequestPayload, AggregationResponse, AggregationResponsePayload,
    Header, SignRequest, frame_len,
};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use serde_json::Value;

/// Makes an authority in `dir` that listens on free ports, for user `hospital`; its key.
fn init(dir: &Path) -> String {
    run(
        dir,
        "authority init --dir auth --email publications@example.org",
    )
    .exits(0)
    .says("pitser authority run --config auth/authority.toml");
    edit(dir, |text| {
        text.replace("127.0.0.1:3332", "127.0.0.1:0")
            .replace("127.0.0.1:8080", "127.0.0.1:0")
            .replace("127.0.0.1:7090", "127.0.0.1:0")
    });
    add(dir, "hospital", "")
}

fn edit(dir: &Path, change: impl FnOnce(String) -> String) {
    let path = dir.join("auth/authority.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, change(text)).unwrap();
}

/// Adds a user; returns the key.
fn add(dir: &Path, login: &str, bounds: &str) -> String {
    let args = format!("authority user add {login} {bounds} --config {CONFIG} --json");
    let added = run(dir, &args.replace("  ", " ")).exits(0).json();
    added["key"].as_str().unwrap().to_owned()
}

const CONFIG: &str = "auth/authority.toml";

/// A running authority, which ends with this value.
struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    facts: Value,
}

impl Running {
    fn start(dir: &Path, change: impl FnOnce(&mut Command)) -> Self {
        let mut command = pitser(dir);
        command
            .args(["authority", "run", "--json", "--config", CONFIG])
            .env_remove("NOTIFY_SOCKET")
            .stdout(Stdio::piped());
        change(&mut command);
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut running = Self {
            child,
            lines,
            facts: Value::Null,
        };
        running.facts = running.event("listening");
        running
    }

    /// Where it listens, without the scheme.
    fn at(&self, name: &str) -> String {
        let address = self.facts[name].as_str().unwrap();
        address.split_once("://").unwrap().1.to_owned()
    }

    /// The next thing that it tells, which must be this.
    #[track_caller]
    fn event(&mut self, expected: &str) -> Value {
        let line = self.lines.next().expect("it runs").unwrap();
        let event: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(event["event"], expected, "{line}");
        event
    }

    fn send(&self, signal: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status().unwrap();
        assert!(sent.success());
    }

    /// SIGTERM; the exit code after its last word.
    fn stop(mut self) -> Option<i32> {
        self.send("-TERM");
        self.event("stopped");
        self.child.wait().unwrap().code()
    }

    fn get(&self, listener: &str, path: &str) -> String {
        let mut stream = TcpStream::connect(self.at(listener)).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn waiting(&self) -> u64 {
        let page = self.get("monitor", "/status");
        let status: Value = serde_json::from_str(page.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        status["waiting"].as_u64().unwrap()
    }

    /// Signs `file` of `dir` over TCP.
    fn sign(&self, dir: &Path, file: &str, login: &str, key: &str) -> Said {
        let service = format!("ksi+tcp://{login}:{key}@{}", self.at("tcp"));
        run(dir, &format!("sign {file} --force -S {service}"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_authority_from_its_first_day_to_its_audit() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let key = init(dir);
    fs::write(dir.join("a"), "hello").unwrap();
    let at = |command: &str| run(dir, &format!("authority {command} --config {CONFIG}"));

    at("status").exits(4).says("pitser authority run");
    at("audit").exits(2).says("nothing is published");
    let mut running = Running::start(dir, |_| {});
    running.sign(dir, "a", "hospital", "wrong").exits(4);
    running.sign(dir, "a", "hospital", &key).exits(0);
    let status = at("status --json").exits(0).json();
    assert_eq!(status["ready"], true, "{status}");
    assert_eq!(status["signatures"], 1, "{status}");

    // Users are read again while it runs.
    let limited = add(dir, "clinic", "--per-day 1 --max-level 3");
    running.sign(dir, "a", "clinic", &limited).exits(4);
    running.send("-HUP");
    assert_eq!(running.event("reloaded")["users"], 2);
    running.sign(dir, "a", "clinic", &limited).exits(0);
    running
        .sign(dir, "a", "clinic", &limited)
        .exits(4)
        .says("quota");
    at("user disable hospital").exits(0);
    running.send("-HUP");
    assert_eq!(running.event("reloaded")["users"], 1);
    running.sign(dir, "a", "hospital", &key).exits(4);
    at("user enable hospital").exits(0);
    // A file that cannot be read changes nothing.
    let users = fs::read(dir.join("auth/users")).unwrap();
    fs::write(dir.join("auth/users"), "rubbish\n").unwrap();
    running.send("-HUP");
    let event = running.event("not reloaded");
    assert!(
        event["reason"].as_str().unwrap().contains("users:1"),
        "{event}"
    );
    fs::write(dir.join("auth/users"), users).unwrap();
    running.send("-HUP");
    running.event("reloaded");
    running.sign(dir, "a", "hospital", &key).exits(0);

    let published = at("publish --json").exits(0).json();
    assert_eq!(published["new"], true);
    let code = published["code"].as_str().unwrap();
    at("audit").exits(0).says("intact: the calendar up to");
    at(&format!("audit --publication {code}")).exits(0);
    let trust = format!(
        "-P http://{}/publications.bin --trust auth/data/certificate.pem --constraint email=publications@example.org",
        running.at("http")
    );
    let service = format!("ksi+tcp://hospital:{key}@{}", running.at("tcp"));
    run(dir, &format!("extend a.ksig -X {service} {trust}")).exits(0);
    run(dir, &format!("verify a.ext.ksig --document a {trust}")).exits(0);
    assert_eq!(running.stop(), Some(0));

    // Nobody runs: the same commands, offline.
    at("status").exits(4);
    let again = at("publish --json").exits(0).json();
    // It may have stopped within the second that it published.
    let is_new = again["second"].as_str() > published["second"].as_str();
    assert_eq!(again["new"], is_new, "{again}");
    let audit = at("audit --json").exits(0).json();
    assert_eq!(audit["verdict"], "intact");
    assert_eq!(audit["publications"], 1 + u64::from(is_new));
    let elsewhere =
        "AAAAAA-CTJR3I-AANBWU-RY76YF-7TH2M5-KGEZVA-WLLRGD-3GKYBG-AM5WWV-4MCLSP-XPRDDI-UFMHBA";
    at(&format!("audit --publication {elsewhere}"))
        .exits(1)
        .says("PUB-01");

    // One bit of one second that was published. What starts with it computes nodes
    // from it before it looks at publications, so all files come back from the copy.
    let calendar = dir.join("auth/data/calendar");
    let files = fs::read_dir(&calendar).unwrap().map(|file| {
        let path = file.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        (path, bytes)
    });
    let copy: Vec<_> = files.collect();
    let leaves = calendar.join("level-00");
    let mut bytes = fs::read(&leaves).unwrap();
    bytes[20] ^= 1;
    fs::write(&leaves, &bytes).unwrap();
    let audit = at("audit --json");
    assert_eq!(audit.code, 1, "{audit:?}");
    assert_eq!(audit.json()["verdict"], "broken");
    let wrong = running_fails(dir);
    assert!(
        wrong.contains("does not lead to its own publication"),
        "{wrong}"
    );
    for (path, bytes) in &copy {
        fs::write(path, bytes).unwrap();
    }
    at("audit").exits(0);
    let publications = dir.join("auth/data/publications.bin");
    let bytes = fs::read(&publications).unwrap();
    fs::write(&publications, &bytes[..bytes.len() / 2]).unwrap();
    at("audit").exits(1).says("PKI-01");
}

/// What `run` says when it does not start.
fn running_fails(dir: &Path) -> String {
    run(dir, &format!("authority run --config {CONFIG}"))
        .exits(4)
        .err
}

#[test]
fn what_was_accepted_is_answered_before_it_stops() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let key = init(dir);
    let mut running = Running::start(dir, |_| {});
    let (mut stream, mut sent) = (TcpStream::connect(running.at("tcp")).unwrap(), 0);
    // A round may end between the request and the look at it: then another request.
    while running.waiting() == 0 {
        sent += 1;
        stream.write_all(&request(sent, &key)).unwrap();
    }
    running.send("-TERM");
    for _ in 0..sent {
        let answer = AggregationResponse::decode(&read_pdu(&mut stream)).unwrap();
        assert!(answer.verify_mac(key.as_bytes()));
        let [AggregationResponsePayload::Result(result)] = &answer.pdu.payloads[..] else {
            panic!("{answer:?}");
        };
        assert_eq!(result.status.0, 0, "{result:?}");
    }
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "and then it is closed");
    running.event("stopped");
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
}

fn request(request_id: u64, key: &str) -> Vec<u8> {
    let request = AggregationRequest::new(
        Header::new("hospital"),
        AggregationRequestPayload::Sign(SignRequest {
            request_id,
            input: hash(Algorithm::Sha256, &[b"hello"]),
            level: 0,
        }),
    );
    request.encode(key.as_bytes(), Algorithm::Sha256).unwrap()
}

fn read_pdu(stream: &mut TcpStream) -> Vec<u8> {
    let mut answer = vec![0; 4];
    stream.read_exact(&mut answer).unwrap();
    answer.resize(frame_len(&answer).unwrap().unwrap(), 0);
    stream.read_exact(&mut answer[4..]).unwrap();
    answer
}

/// Thousands of requests with a wrong key are some lines, in JSON, without a name.
#[test]
fn a_flood_of_strangers_does_not_fill_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    init(dir);
    let mut running = Running::start(dir, |command| {
        command
            .args(["--log-format", "json", "-v"])
            .stderr(Stdio::piped());
    });
    let mut stream = TcpStream::connect(running.at("tcp")).unwrap();
    for number in 0..5_000 {
        stream.write_all(&request(number, "guess")).unwrap();
        let answer = AggregationResponse::decode(&read_pdu(&mut stream)).unwrap();
        assert!(
            matches!(&answer.pdu.payloads[..], [AggregationResponsePayload::Error(e)] if e.status.0 == 0x0102)
        );
    }
    drop(stream);
    let page = running.get("monitor", "/metrics");
    assert!(page.contains(r#"reason="authentication"} 5000"#), "{page}");
    let mut log = running.child.stderr.take().unwrap();
    assert_eq!(running.stop(), Some(0));
    let mut text = String::new();
    log.read_to_string(&mut text).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    let told: Vec<_> = lines
        .iter()
        .filter(|line| !line["refused"].is_null())
        .collect();
    assert!(!told.is_empty() && lines.len() < 50, "{text}");
    let last = told.last().unwrap();
    assert_eq!(last["level"], "WARN");
    assert!(
        last["refused"]
            .as_str()
            .unwrap()
            .starts_with("authentication "),
        "{last}"
    );
}

#[test]
fn systemd_hears_how_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    init(dir);
    let path = dir.join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let running = Running::start(dir, |command| {
        command
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "10000000")
            .env_remove("WATCHDOG_PID");
    });
    let heard = || {
        let mut bytes = [0; 64];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    };
    assert_eq!(heard(), "READY=1");
    assert_eq!(heard(), "WATCHDOG=1");
    assert_eq!(heard(), "WATCHDOG=1");
    assert_eq!(running.stop(), Some(0));
    let mut last = heard();
    while last == "WATCHDOG=1" {
        last = heard();
    }
    assert_eq!(last, "STOPPING=1");
}

/// A restart would sign with whatever the clock shows: so it stays, extends, and says that
/// it does not sign, until a person has looked.
#[test]
fn a_clock_fault_ends_signing_and_not_the_service() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let key = init(dir);
    fs::write(dir.join("a"), "hello").unwrap();
    let running = Running::start(dir, |_| {});
    running.sign(dir, "a", "hospital", &key).exits(0);
    assert_eq!(running.stop(), Some(0));

    edit(dir, |text| {
        text.replace("max_outage_s = 7776000", "max_outage_s = 4")
    });
    let mut running = Running::start(dir, |_| {});
    // More seconds go by than may be filled: as if the clock had jumped.
    running.send("-STOP");
    std::thread::sleep(std::time::Duration::from_secs(6));
    running.send("-CONT");
    let event = running.event("not signing");
    assert!(
        event["reason"].as_str().unwrap().starts_with("CLK-01"),
        "{event}"
    );
    running
        .sign(dir, "a", "hospital", &key)
        .exits(4)
        .says("CLK-01");
    let service = format!("ksi+tcp://hospital:{key}@{}", running.at("tcp"));
    run(
        dir,
        &format!("verify a.ksig --policy calendar -X {service}"),
    )
    .exits(0);
    let status = run(dir, &format!("authority status --config {CONFIG}"));
    assert!(
        status.code == 1 && status.out.contains("CLK-01"),
        "{status:?}"
    );
    assert!(running.get("http", "/health").starts_with("HTTP/1.0 503"));
    running.send("-HUP");
    running.event("reloaded");
    running.send("-TERM");
    assert_eq!(running.child.wait().unwrap().code(), Some(4));
}

#[test]
fn https_and_a_credential_of_systemd() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let key = init(dir);
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let pem = |kind: &str, der: &[u8]| {
        let text = BASE64.encode(der);
        format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n")
    };
    fs::write(dir.join("auth/tls.pem"), pem("CERTIFICATE", cert.der())).unwrap();
    let private = pem("PRIVATE KEY", &signing_key.serialize_der());
    fs::write(dir.join("auth/tls-key.pem"), private).unwrap();
    fs::create_dir(dir.join("credentials")).unwrap();
    fs::rename(dir.join("auth/users-key"), dir.join("credentials/key")).unwrap();
    // systemd gives it to the service's user by an access list, which shows as a group's right.
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::Permissions::from_mode(0o440);
    fs::set_permissions(dir.join("credentials/key"), mode).unwrap();
    edit(dir, |text| {
        text.replace(
            "# https       = \"0.0.0.0:8443\"",
            "https = \"127.0.0.1:0\"",
        )
        .replace(
            "# certificate = \"tls/fullchain.pem\"",
            "certificate = \"tls.pem\"",
        )
        .replace("# key         = \"tls/key.pem\"", "key = \"tls-key.pem\"")
        .replace("\"users-key\"", "\"credential:key\"")
    });
    run(dir, &format!("authority user list --config {CONFIG}"))
        .exits(3)
        .says("LoadCredential=");
    let running = Running::start(dir, |command| {
        command.env("CREDENTIALS_DIRECTORY", dir.join("credentials"));
    });
    let port = running.at("https").rsplit_once(':').unwrap().1.to_owned();
    fs::write(dir.join("a"), "hello").unwrap();
    let service = format!("https://hospital:{key}@localhost:{port}");
    run(dir, &format!("sign a -S {service}"))
        .exits(4)
        .says("--tls-ca");
    run(dir, &format!("sign a -S {service} --tls-ca auth/tls.pem")).exits(0);
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn a_key_and_certificate_that_were_made_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    init(dir);
    let brought = "--key auth/data/signing-key.pem --certificate auth/data/certificate.pem";
    run(dir, &format!("authority init --dir b {brought}"))
        .exits(3)
        .says("--constraint");
    let wrong = "--constraint email=other@example.org";
    run(dir, &format!("authority init --dir b {brought} {wrong}"))
        .exits(3)
        .says("does not match");
    assert!(!dir.join("b/authority.toml").exists());
    let right = "--constraint email=publications@example.org";
    run(dir, &format!("authority init --dir b {brought} {right}")).exits(0);
    let same = |name: &str| {
        let read = |folder: &str| fs::read(dir.join(folder).join(name)).unwrap();
        read("auth/data") == read("b/data")
    };
    assert!(same("signing-key.pem") && same("certificate.pem") && same("constraint"));

    run(dir, "authority init --dir c --email c@example.org").exits(0);
    let mixed = brought.replace("auth/data/certificate", "c/data/certificate");
    let constraint = "--constraint email=c@example.org";
    run(dir, &format!("authority init --dir d {mixed} {constraint}"))
        .exits(3)
        .says("for another key");
}

#[test]
fn wrong_input_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    run(dir, "authority run --config absent.toml")
        .exits(3)
        .says("pitser authority init");
    init(dir);
    run(dir, "authority init --dir auth --email a@example.org")
        .exits(3)
        .says("already");
    let user = |args: &str| run(dir, &format!("authority user {args} --config {CONFIG}"));
    user("add hospital").exits(3).says("already");
    user("add a/b").exits(3).says("cannot be a login");
    user("add b --rate 0").exits(3).says("user disable");
    user("add b --algorithms SHA-1")
        .exits(3)
        .says("no longer secure");
    user("remove nobody").exits(3).says("user list");
    user("set hospital --rate 5 --algorithms SHA-256,SHA-512").exits(0);
    user("list")
        .exits(0)
        .says("hospital  up to level 20, 5 a second, SHA-256 or SHA-512");
    user("set hospital --rate none --algorithms any").exits(0);
    user("list").exits(0).says("hospital  up to level 20\n");
    // In the folder itself all paths are bare names.
    let here = dir.join("auth");
    run(&here, "authority user add other").exits(0).says("key ");
    run(&here, "authority user remove other").exits(0);
    user("remove hospital").exits(0);
    user("list").exits(0).says("nobody");

    fs::set_permissions(
        dir.join("auth/users-key"),
        std::os::unix::fs::PermissionsExt::from_mode(0o644),
    )
    .unwrap();
    user("list").exits(3).says("chmod 600");
    edit(dir, |text| text.replace("idle_s", "idel_s"));
    run(dir, &format!("authority run --config {CONFIG}"))
        .exits(3)
        .says("authority.toml:")
        .says("Did you mean `idle_s`?");
}

#[test]
fn an_aggregator_signs_below_an_authority() {
    let (above, below) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (above, below) = (above.path(), below.path());
    let key = init(above);
    let authority = Running::start(above, |_| ());
    let service = format!("ksi+tcp://{}", authority.at("tcp"));

    let begin = format!("authority init --dir auth --below {service}");
    run(below, &begin)
        .exits(3)
        .says("Give --login, and our key in PITSER_KEY");
    assert!(!below.join("auth").exists(), "nothing was made");
    let begin = format!("{begin} --login hospital");
    let begun = pitser(below)
        .args(begin.split(' '))
        .env("PITSER_KEY", &key)
        .output();
    let begun = Said::from(begun.unwrap()).exits(0);
    assert!(!begun.out.contains(&key), "{begun:?}");
    let kept = below.join("auth/parent-key");
    assert_eq!(fs::read_to_string(&kept).unwrap(), key);
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&kept).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    edit(below, |text| {
        ["3332", "8080", "7090"].iter().fold(text, |text, port| {
            text.replace(&format!(" = \"127.0.0.1:{port}\""), " = \"127.0.0.1:0\"")
        })
    });
    let ward = add(below, "ward", "");
    let aggregator = Running::start(below, |_| ());
    assert_eq!(aggregator.facts["log"], Value::Null);

    fs::write(below.join("a.txt"), "hello").unwrap();
    aggregator
        .sign(below, "a.txt", "ward", &ward)
        .exits(0)
        .says("by         ward, hospital");
    let trust = format!(
        "-P http://{}/publications.bin --trust {} --constraint email=publications@example.org",
        authority.at("http"),
        above.join("auth/data/certificate.pem").display(),
    );
    run(
        below,
        &format!("verify a.txt.ksig --document a.txt {trust}"),
    )
    .exits(0)
    .says("2 chains, by ward, hospital");
    run(below, &format!("authority status --config {CONFIG}")).exits(0);
    run(below, &format!("authority publish --config {CONFIG}")).exits(4);
    assert!(aggregator.get("http", "/publications.bin").contains("404"));

    // Without the one above: refused with words, and said by `status`.
    drop(authority);
    aggregator
        .sign(below, "a.txt", "ward", &ward)
        .exits(4)
        .says("the service above");
    run(below, &format!("authority status --config {CONFIG}"))
        .exits(2)
        .says("the service above");
    assert_eq!(aggregator.stop(), Some(0));
}
