//! An authority whose publications key is on another machine: every step of the
//! ceremony by the built binary, and everything that must not be taken.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use common::{Process, Said, run};
use pitser_authority::BroughtKey;
use pitser_authority::ceremony::{Composition, Old, PublicationsKey};
use pitser_ksi::hash::{Algorithm, hash};
use pitser_ksi::publication::PublicationData;
use pitser_ksi::publications_file::PublicationsFile;
use pitser_ksi::time::Second;
use serde_json::Value;

const EMAIL: &str = "publications@pitser.example";
const CONFIG: &str = "--config auth/authority.toml";

/// The folders of two machines: `auth`, and `vault`, where the publications key is.
struct Ceremony {
    dir: tempfile::TempDir,
    user_key: String,
}

impl Ceremony {
    /// An authority that pins the vault's certificate, and publishes at even seconds.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        // Some RSA key and certificate: those of an authority that never runs.
        run(dir, &format!("authority init --dir vault --email {EMAIL}")).exits(0);
        let init = "authority init --dir auth --email time@pitser.example";
        let pin = "--publications-certificate vault/data/certificate.pem";
        run(dir, &format!("{init} {pin}"))
            .exits(3)
            .says("--publications-constraint");
        run(
            dir,
            &format!("{init} {pin} --publications-constraint email=other@pitser.example"),
        )
        .exits(3)
        .says("does not match");
        let constraint = format!("--publications-constraint email={EMAIL}");
        run(dir, &format!("{init} {pin} {constraint}"))
            .exits(0)
            .says("publications-certificate.pem: verifiers trust it, with --constraint email=publications@")
            .says("compose --first");
        let path = dir.join("auth/authority.toml");
        let hook = format!(
            "every_s = 2\nhook = [\"/bin/sh\", \"-c\", \"cat >> {}\"]",
            dir.join("told").display()
        );
        let text = fs::read_to_string(&path).unwrap();
        let text = text
            .replace(":3332\"", ":0\"")
            .replace(":8080\"", ":0\"")
            .replace(":7090\"", ":0\"")
            .replace("every_s = 86400", &hook);
        fs::write(path, text).unwrap();
        let user = run(dir, &format!("authority user add hospital --json {CONFIG}"));
        let user_key = user.exits(0).json()["key"].as_str().unwrap().to_owned();
        Self {
            dir: folder,
            user_key,
        }
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }

    #[track_caller]
    fn authority(&self, command: &str) -> Said {
        run(self.dir(), &format!("authority {command} {CONFIG}"))
    }

    /// `pitser authority compose` with the vault's key.
    #[track_caller]
    fn compose(&self, args: &str) -> Said {
        let key = "--key vault/data/signing-key.pem --certificate vault/data/certificate.pem";
        let command = format!("authority compose {args} {key} --constraint email={EMAIL}");
        run(self.dir(), &command)
    }

    /// The first file, handed in.
    fn begin(&self) {
        let certificate = "--calendar-certificate auth/data/certificate.pem";
        self.compose(&format!("--first {certificate} -o first.bin"))
            .exits(0)
            .says("adds     certificate of")
            .says("0 publications");
        self.authority("publish --file first.bin")
            .exits(0)
            .says("is taken: 0 publications");
    }

    /// What `publish --due` says as soon as the schedule waits for something.
    fn due(&self, running: &Running) -> Value {
        loop {
            let due = self.authority("publish --due --json").exits(0).json();
            if due["due"] == true {
                return due;
            }
            // An answer takes until the end of a second.
            running.sign(self);
        }
    }

    /// A file by the vault's key that no operator would compose.
    fn forged(&self, name: &str, old: &str, publication: PublicationData, now: Second) {
        let vault = |name: &str| fs::read_to_string(self.dir().join("vault/data").join(name));
        let certificate = vault("certificate.pem").unwrap();
        let pem = vault("signing-key.pem").unwrap();
        let key = PublicationsKey::open(&BroughtKey::Pem(&pem), &certificate).unwrap();
        let old = PublicationsFile::decode(&fs::read(self.dir().join(old)).unwrap()).unwrap();
        let constraint = format!("email={EMAIL}");
        let composition = Composition {
            old: Some(Old {
                file: &old,
                certificate_pem: &certificate,
                constraint: &constraint,
            }),
            publications: &[publication],
            certificates: Vec::new(),
            constraint: &constraint,
            now,
        };
        let file = composition.sign(&key).unwrap();
        fs::write(self.dir().join(name), file.encode()).unwrap();
    }

    fn stored(&self) -> Vec<u8> {
        fs::read(self.dir().join("auth/data/publications.bin")).unwrap()
    }
}

struct Running {
    process: Process,
    facts: Value,
}

impl Running {
    fn start(ceremony: &Ceremony) -> Self {
        let command = format!("authority run --json {CONFIG}");
        let (process, line) = Process::start(ceremony.dir(), &command);
        let facts = serde_json::from_str(&line).unwrap();
        Self { process, facts }
    }

    fn service(&self, ceremony: &Ceremony) -> String {
        let tcp = self.facts["tcp"].as_str().unwrap();
        let user = format!("ksi+tcp://hospital:{}@", ceremony.user_key);
        tcp.replace("ksi+tcp://", &user)
    }

    fn sign(&self, ceremony: &Ceremony) {
        fs::write(ceremony.dir().join("letter"), "dear time").unwrap();
        let sign = format!("sign letter --force -S {}", self.service(ceremony));
        run(ceremony.dir(), &sign).exits(0);
    }

    /// The body of a page.
    fn get(&self, listener: &str, path: &str) -> Vec<u8> {
        let address = self.facts[listener].as_str().unwrap();
        let address = address.split_once("://").unwrap().1;
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        answer.split_off(end + 4)
    }
}

/// A pipe that the hook writes into, open at both ends so that neither waits.
fn pipe(ceremony: &Ceremony) -> BufReader<File> {
    let path = ceremony.dir().join("told");
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(made.unwrap().success());
    BufReader::new(File::options().read(true).write(true).open(path).unwrap())
}

fn next_code(told: &mut BufReader<File>) -> Value {
    let mut line = String::new();
    told.read_line(&mut line).unwrap();
    let told: Value = serde_json::from_str(&line).unwrap();
    told["code"].clone()
}

fn files_under(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.metadata().unwrap() {
            it if it.is_dir() => files.extend(files_under(&path)),
            it if it.is_file() => files.push(path),
            _ => {}
        }
    }
    files
}

#[test]
fn a_publication_goes_to_the_key_and_comes_back_as_a_file() {
    let ceremony = Ceremony::new();
    let dir = ceremony.dir();
    // Without a publications file nobody could verify what it signs.
    ceremony
        .authority("run")
        .exits(4)
        .says("compose --first")
        .says("publish --file");
    ceremony.authority("publish --due").exits(3);
    ceremony
        .compose("--first -o first.bin")
        .exits(3)
        .says("--calendar-certificate");
    ceremony.begin();
    ceremony
        .authority("publish --file first.bin")
        .exits(0)
        .says("newest publications file already");
    ceremony.authority("publish").exits(3).says("publish --due");

    let mut told = pipe(&ceremony);
    let running = Running::start(&ceremony);
    running.sign(&ceremony);
    let due = ceremony.due(&running);
    let code = due["code"].as_str().unwrap();
    let second = PublicationData::from_code(code).unwrap().time;
    assert_eq!(second.0 % 2, 0, "not what the schedule asked for");
    let status = ceremony.authority("status --json").json();
    assert!(status["due"]["code"].is_string(), "{status}");
    ceremony
        .authority("status")
        .says("due        a publication since");
    let metrics = String::from_utf8(running.get("monitor", "/metrics")).unwrap();
    let waits = |line: &str| {
        line.strip_prefix("pitser_authority_publication_due_seconds ")
            .is_some_and(|value| value != "0")
    };
    assert!(metrics.lines().any(waits), "{metrics}");
    ceremony
        .authority("publish")
        .exits(3)
        .says("the publications key is not here");
    assert_eq!(ceremony.stored(), fs::read(dir.join("first.bin")).unwrap());

    // On the other machine.
    ceremony
        .compose(&format!("--old first.bin --code {code} -o next.bin"))
        .exits(0)
        .says("0 publications")
        .says(&format!("adds     {second}"))
        .says(code);
    // And back.
    let taken = ceremony
        .authority("publish --file next.bin --json")
        .exits(0);
    let taken = taken.json();
    assert_eq!(taken["new"], true);
    assert_eq!(taken["added"][0]["code"], code);
    // It is announced as the authority's own would be.
    let next = fs::read(dir.join("next.bin")).unwrap();
    assert_eq!(running.get("http", "/publications.bin"), next);
    assert_eq!(next_code(&mut told), code);
    let feed = String::from_utf8(running.get("http", "/publications.atom")).unwrap();
    assert!(feed.contains(code), "{feed}");
    let page = running.get("http", &format!("/publications/{}.html", second.0));
    assert!(String::from_utf8(page).unwrap().contains(EMAIL));
    ceremony.authority("sheet -o page.pdf").exits(0);

    // A verifier trusts the key elsewhere, and by it the calendar's.
    let trust = format!("--trust vault/data/certificate.pem --constraint email={EMAIL}");
    running.sign(&ceremony);
    let http = running.facts["http"].as_str().unwrap();
    let file = format!("-P {http}/publications.bin {trust}");
    run(
        dir,
        &format!("verify letter.ksig --document letter --policy key {file}"),
    )
    .exits(0);
    let calendars = "--trust auth/data/certificate.pem --constraint email=time@pitser.example";
    let distrusted = format!("-P {http}/publications.bin {calendars}");
    let verify = format!("verify letter.ksig --document letter --policy key {distrusted}");
    assert_ne!(run(dir, &verify).code, 0);
    let due = ceremony.due(&running);
    let code = due["code"].as_str().unwrap();
    ceremony
        .compose(&format!("--old next.bin --code {code} -o third.bin"))
        .exits(0)
        .says("1 publication");
    ceremony.authority("publish --file third.bin").exits(0);
    assert_eq!(next_code(&mut told), code);
    ceremony
        .authority("audit")
        .exits(0)
        .says("2 publications met");
    running.process.stop();

    // What is on the authority's machine, down to the last file.
    let key = fs::read_to_string(dir.join("vault/data/signing-key.pem")).unwrap();
    let lines: Vec<&str> = key.lines().filter(|line| line.len() == 64).collect();
    let der = data_encoding::BASE64.decode(lines.concat().as_bytes());
    let der = der.unwrap();
    // Past the header and the modulus, which the certificate has too.
    let private = &der[der.len() - 256..];
    let files = files_under(&dir.join("auth"));
    assert!(files.len() > 10);
    for path in files {
        let bytes = fs::read(&path).unwrap();
        let has = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
        let line = lines[lines.len() / 2].as_bytes();
        assert!(!has(line) && !has(private), "{}", path.display());
    }
}

#[test]
fn what_may_not_count_is_refused_and_changes_nothing() {
    let ceremony = Ceremony::new();
    ceremony.begin();
    let running = Running::start(&ceremony);
    running.sign(&ceremony);
    let due = ceremony.due(&running);
    let code = due["code"].as_str().unwrap();
    let data = PublicationData::from_code(code).unwrap();
    ceremony
        .compose(&format!("--old first.bin --code {code} -o next.bin"))
        .exits(0);
    ceremony.authority("publish --file next.bin").exits(0);
    let stored = ceremony.stored();
    let refused = |name: &str, reason: &str| {
        ceremony
            .authority(&format!("publish --file {name}"))
            .exits(3)
            .says(reason);
        assert_eq!(ceremony.stored(), stored, "{name}");
        assert_eq!(running.get("http", "/publications.bin"), stored, "{name}");
    };

    // By the authority's own key, which is what somebody who owns the node has.
    let own = "--key auth/data/signing-key.pem --certificate auth/data/certificate.pem";
    let later = ceremony.due(&running);
    let later = later["code"].as_str().unwrap();
    let compose = format!(
        "authority compose --old next.bin --old-certificate vault/data/certificate.pem --code {later} {own}"
    );
    run(
        ceremony.dir(),
        &format!("{compose} --constraint email=time@pitser.example -o own.bin"),
    )
    .exits(3)
    .says("the old file is not signed");
    let certificate = "--calendar-certificate auth/data/certificate.pem";
    let first = format!("authority compose --first {certificate} --code {code} --code {later}");
    run(
        ceremony.dir(),
        &format!("{first} {own} --constraint email=time@pitser.example -o own.bin"),
    )
    .exits(0);
    refused("own.bin", "not signed by the key of the pinned");

    // An older file, once more.
    refused("first.bin", "not taken");
    // One that lacks what was published.
    ceremony
        .compose(&format!("--old first.bin --code {later} -o lacks.bin"))
        .exits(0);
    refused("lacks.bin", "it lacks the publication of");
    // One that says something else about it, and one about another second.
    let false_root = |time: Second| PublicationData {
        time,
        imprint: hash(Algorithm::Sha256, &[b"another calendar"]),
    };
    let forged = false_root(data.time).to_code();
    ceremony
        .compose(&format!("--old next.bin --code {forged} -o altered.bin"))
        .exits(1)
        .says("PUB-01");
    ceremony
        .compose(&format!("--old first.bin --code {forged} -o altered.bin"))
        .exits(0);
    refused("altered.bin", "something else about");
    let later = PublicationData::from_code(later).unwrap();
    let forged = false_root(later.time).to_code();
    ceremony
        .compose(&format!("--old next.bin --code {forged} -o forged.bin"))
        .exits(0);
    refused("forged.bin", "is not the root of this calendar");
    // Of a second that is still to come, by a clock that is ahead.
    let to_come = false_root(later.time.plus(600));
    let ask = format!("--old next.bin --code {} -o ahead.bin", to_come.to_code());
    ceremony.compose(&ask).exits(3).says("clock");
    ceremony.forged("ahead.bin", "next.bin", to_come, to_come.time);
    refused("ahead.bin", "has not ended here yet");
    ceremony.forged("far.bin", "next.bin", later, later.time.plus(86_400));
    refused("far.bin", "made at");
    // Without the calendar's certificate nobody could verify a signature.
    let other = "--calendar-certificate vault/data/certificate.pem";
    ceremony
        .compose(&format!("--first {other} --code {code} -o certificate.bin"))
        .exits(0);
    refused("certificate.bin", "does not list the certificate of this");
    // Earlier than what is published.
    let earlier = false_root(Second(data.time.0 - 1)).to_code();
    ceremony
        .compose(&format!("--old next.bin --code {earlier} -o earlier.bin"))
        .exits(3)
        .says("publications come in order");
    ceremony
        .compose(&format!("--old next.bin --code {code} -o again.bin"))
        .exits(3)
        .says("already");
    let both = format!("--old first.bin --code {earlier} --code {code} -o earlier.bin");
    ceremony.compose(&both).exits(0);
    refused("earlier.bin", "before the newest one");
    // Every bit of it counts; and what is no such file at all.
    let next = fs::read(ceremony.dir().join("lacks.bin")).unwrap();
    let mut flipped = next.clone();
    flipped[next.len() / 2] ^= 1;
    fs::write(ceremony.dir().join("flipped.bin"), flipped).unwrap();
    refused("flipped.bin", "not taken");
    fs::write(ceremony.dir().join("rubbish.bin"), "rubbish").unwrap();
    refused("rubbish.bin", "no publications file");
    running.process.stop();

    // The same while nobody runs.
    ceremony
        .authority("publish --file forged.bin")
        .exits(3)
        .says("is not the root of this calendar");
    assert_eq!(ceremony.stored(), stored);
}

#[test]
fn a_kill_between_any_two_steps_loses_nothing() {
    let ceremony = Ceremony::new();
    ceremony.begin();
    let mut told = pipe(&ceremony);
    let running = Running::start(&ceremony);
    running.sign(&ceremony);
    let due = ceremony.due(&running);
    // Between the code and the file.
    running.process.kill();
    let code = due["code"].as_str().unwrap();
    ceremony
        .compose(&format!("--old first.bin --code {code} -o next.bin"))
        .exits(0);
    // Handed in while nobody runs, and announced by the next who does.
    ceremony
        .authority("publish --file next.bin")
        .exits(0)
        .says(code);
    let running = Running::start(&ceremony);
    assert_eq!(next_code(&mut told), code);
    // Between handing in and everything after it.
    let due = ceremony.due(&running);
    let code = due["code"].as_str().unwrap();
    ceremony
        .compose(&format!("--old next.bin --code {code} -o third.bin"))
        .exits(0);
    ceremony.authority("publish --file third.bin").exits(0);
    running.process.kill();
    let stored = ceremony.stored();
    assert_eq!(stored, fs::read(ceremony.dir().join("third.bin")).unwrap());
    let running = Running::start(&ceremony);
    assert_eq!(next_code(&mut told), code);
    assert_eq!(running.get("http", "/publications.bin"), stored);
    // What fell due meanwhile is asked for still.
    let again = ceremony.due(&running);
    assert!(again["second"].as_str() > due["second"].as_str(), "{again}");
    ceremony.authority("audit").exits(0);
    running.process.stop();

    // Who loses the pinned certificate does not sign in that key's place.
    for name in ["publications-certificate.pem", "publications-constraint"] {
        fs::remove_file(ceremony.dir().join("auth/data").join(name)).unwrap();
    }
    ceremony
        .authority("publish")
        .exits(4)
        .says("put publications-certificate.pem");
    assert_eq!(ceremony.stored(), stored);
}

/// The witness says on the vault's machine what the authority cannot say for itself.
#[test]
fn the_key_signs_nothing_that_no_witness_saw() {
    let ceremony = Ceremony::new();
    let dir = ceremony.dir();
    ceremony.begin();
    let made = run(dir, "witness init --dir w --name notary.example/w").exits(0);
    let is_key = |word: &&str| word.starts_with("notary.example/w+");
    let key = made.out.split_whitespace().find(is_key).unwrap();
    let (_notary, line) = Process::start(dir, "witness run --dir w --listen 127.0.0.1:0 --json");
    let notary: Value = serde_json::from_str(&line).unwrap();
    let path = dir.join("auth/authority.toml");
    let block = format!(
        "\n[[witness]]\nname = \"notary\"\nurl = \"http://{}\"\nkey = \"{key}\"\n",
        notary["address"].as_str().unwrap()
    );
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text + &block).unwrap();
    let running = Running::start(&ceremony);
    let log = running.facts["log"].as_str().unwrap();
    let genesis = ceremony.authority("status --json").json()["genesis"].clone();
    let genesis = genesis.as_str().unwrap();
    let add = format!("witness add-log --dir w {log} --calendar-genesis {genesis}");
    run(dir, &add).exits(0);
    let anchors = format!(
        "version = 1\nwitness_quorum = 0\n[calendar_log]\nkey = \"{log}\"\ngenesis = \"{genesis}\"\n\
         quorum = 1\n[[calendar_log.witness]]\nkey = \"{key}\"\n",
    );
    fs::write(dir.join("anchors.toml"), anchors).unwrap();

    running.sign(&ceremony);
    let due = ceremony.due(&running);
    let code = due["code"].as_str().unwrap();
    let second = PublicationData::from_code(code).unwrap().time;
    ceremony
        .authority("publish --due")
        .exits(0)
        .says("take /log/proof/");
    let prove = |name: &str, second: u64| {
        let proof = running.get("http", &format!("/log/proof/{second}?wait=25"));
        fs::write(dir.join(name), proof).unwrap();
    };
    prove("right.proof", second.0);
    prove("other.proof", second.0 - 1);
    let ask = |code: &str, proof: &str| {
        let proof = format!("--anchors anchors.toml --proof {proof}");
        ceremony.compose(&format!(
            "--old first.bin --code {code} {proof} -o next.bin"
        ))
    };
    ask(code, "other.proof")
        .exits(3)
        .says("no proof")
        .says(&format!("/log/proof/{second}", second = second.0));
    let forged = PublicationData {
        time: second,
        imprint: hash(Algorithm::Sha256, &[b"another calendar"]),
    };
    ask(&forged.to_code(), "right.proof")
        .exits(1)
        .says("PUB-01")
        .says("Do not sign it");
    assert!(!dir.join("next.bin").exists());
    ask(code, "right.proof").exits(0);
    ceremony.authority("publish --file next.bin").exits(0);
    running.process.stop();
}

#[test]
fn the_key_may_be_in_a_device() {
    let ceremony = Ceremony::new();
    let dir = ceremony.dir();
    if std::process::Command::new("openssl")
        .arg("version")
        .output()
        .is_err()
    {
        eprintln!("skipped: there is no openssl");
        return;
    }
    let script = "while read -r request digest_info; do\n\
                  printf 'signature %s\\n' \"$(printf %s \"$digest_info\" | base64 -d | \
                  openssl pkeyutl -sign -inkey \"$1\" | base64 -w0)\"\ndone\n";
    fs::write(dir.join("signer.sh"), script).unwrap();
    let compose = |key: &str| {
        let signer = format!("--signer /bin/sh --signer {}/signer.sh", dir.display());
        let signer = format!("{signer} --signer {}/{key}", dir.display());
        let first = "--first --calendar-certificate auth/data/certificate.pem -o first.bin";
        let certificate = "--certificate vault/data/certificate.pem";
        let args = format!("{first} {signer} {certificate} --constraint email={EMAIL}");
        run(dir, &format!("authority compose {args}"))
    };
    compose("auth/data/signing-key.pem")
        .exits(3)
        .says("two pairs");
    compose("vault/data/signing-key.pem").exits(0);
    ceremony.authority("publish --file first.bin").exits(0);
}

#[test]
fn an_authority_with_its_own_key_takes_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    run(dir, &format!("authority init --dir auth --email {EMAIL}")).exits(0);
    let hand_in = format!("authority publish --file auth/data/publications.bin {CONFIG}");
    run(dir, &hand_in)
        .exits(3)
        .says("signs its publications file itself");
    run(dir, &format!("authority publish --due {CONFIG}"))
        .exits(3)
        .says("signs its publications file itself");
    // Half of what is pinned is no reason to sign oneself.
    fs::write(dir.join("auth/data/publications-constraint"), "CN=x\n").unwrap();
    run(dir, &format!("authority publish {CONFIG}"))
        .exits(4)
        .says("publications-certificate.pem");
}
