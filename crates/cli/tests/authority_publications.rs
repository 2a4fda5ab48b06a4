//! An operator whose key is behind a program prints a publication, and a stranger
//! verifies a document by what stands on the paper.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{first_line, pitser, run};
use serde_json::Value;

/// `pitser authority run`, ended with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A key and a certificate by openssl, and a program that signs with it.
fn hand_over_key(dir: &Path) -> bool {
    let arguments = "req -x509 -newkey rsa:2048 -nodes -keyout elsewhere.pem -out certificate.pem \
                     -days 30 -subj /CN=Time/emailAddress=time@pitser.example";
    let made = Command::new("openssl")
        .current_dir(dir)
        .args(arguments.split_whitespace())
        .output();
    let Ok(made) = made else {
        eprintln!("skipped: there is no openssl");
        return false;
    };
    assert!(made.status.success(), "{made:?}");
    let script = "while read -r request digest_info; do\n\
                  printf 'signature %s\\n' \"$(printf %s \"$digest_info\" | base64 -d | \
                  openssl pkeyutl -sign -inkey \"$1\" | base64 -w0)\"\ndone\n";
    fs::write(dir.join("signer.sh"), script).unwrap();
    true
}

/// Free ports, only on demand, and a hook that writes into `told`.
fn configure(dir: &Path) {
    let path = dir.join("time/authority.toml");
    let hook = format!(
        "hook = [\"/bin/sh\", \"-c\", \"cat > {}\"]\nurl = \"https://time.pitser.example\"",
        dir.join("told").display()
    );
    let text = fs::read_to_string(&path).unwrap();
    let text = text
        .replace(":3332\"", ":0\"")
        .replace(":8080\"", ":0\"")
        .replace(":7090\"", ":0\"")
        .replace("every_s = 86400", &format!("every_s = 0\n{hook}"));
    fs::write(path, text).unwrap();
}

#[test]
fn from_a_key_elsewhere_to_a_printed_page_and_back_to_a_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    if !hand_over_key(dir) {
        return;
    }
    let at = dir.display();
    let constraint = "--constraint email=time@pitser.example";
    let signer = format!("--signer /bin/sh --signer {at}/signer.sh --signer {at}/elsewhere.pem");
    run(dir, &format!("authority init --dir time {signer}"))
        .exits(3)
        .says("--certificate");
    run(dir, "authority init --dir time --email a@b.example --certificate certificate.pem --constraint CN=x")
        .exits(3)
        .says("give --key or --signer");
    let brought = format!("--certificate certificate.pem {constraint}");
    run(
        dir,
        &format!("authority init --dir time {signer} {brought}"),
    )
    .exits(0)
    .says("behind /bin/sh");
    assert!(!dir.join("time/data/signing-key.pem").exists());
    configure(dir);
    let place = "--config time/authority.toml";
    run(dir, &format!("authority sheet {place} -o page.pdf"))
        .exits(3)
        .says("nothing was published yet");

    let key = run(dir, &format!("authority user add hospital --json {place}")).exits(0);
    let key = key.json()["key"].as_str().unwrap().to_owned();
    let pipe = dir.join("told");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    // Open at both ends, so that neither waits for the other.
    let told = File::options().read(true).write(true).open(&pipe).unwrap();
    let mut child = pitser(dir)
        .args(format!("authority run --json {place}").split(' '))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let listening = first_line(&mut child);
    let _running = Running(child);
    let listening: Value = serde_json::from_str(&listening).unwrap();
    let tcp = listening["tcp"].as_str().unwrap();
    let service = tcp.replace("ksi+tcp://", &format!("ksi+tcp://hospital:{key}@"));
    fs::write(dir.join("letter.txt"), "dear time").unwrap();
    run(dir, &format!("sign letter.txt -S {service}")).exits(0);
    let published = run(dir, &format!("authority publish --json {place}")).exits(0);
    let published = published.json();

    // The hook hears of it, and says so; its success is told a moment later.
    let mut line = String::new();
    BufReader::new(told).read_line(&mut line).unwrap();
    let told: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(told["code"], published["code"]);
    assert_eq!(told["time"], published["second"]);
    run(dir, &format!("authority status {place}")).says("hook       told ");

    let second = published["second"].as_str().unwrap();
    for which in ["newest", second, &told["second"].to_string()] {
        let page = format!("authority sheet --second {which} --format html --force -o page.html");
        run(dir, &format!("{page} {place}")).exits(0);
    }
    run(
        dir,
        &format!("authority sheet --second 17 -o page.pdf {place}"),
    )
    .exits(3)
    .says("the newest publication is of");
    run(dir, &format!("authority sheet -o page.pdf {place}")).exits(0);
    assert!(
        fs::read(dir.join("page.pdf"))
            .unwrap()
            .starts_with(b"%PDF-1.4")
    );
    run(dir, &format!("authority sheet -o page.pdf {place}")).exits(3);

    // All that the stranger has is paper, and what stands there is what is typed.
    let page = fs::read_to_string(dir.join("page.html")).unwrap();
    let typed = |begin: &str| {
        let (_, rest) = page.split_once(begin).unwrap();
        format!("{begin}{}", rest.split(['\n', '<']).next().unwrap())
    };
    let code = typed("CODE=").replace("CODE=", "");
    assert_eq!(*code, published["code"]);
    for (begin, verdict) in [("pitser extend", ""), ("pitser verify", "intact")] {
        let command = typed(begin)
            .replace("ksi+tcp://USER:KEY@HOST:PORT", &service)
            .replace("$CODE", &code);
        run(dir, command.strip_prefix("pitser ").unwrap())
            .exits(0)
            .says(verdict);
    }
}
