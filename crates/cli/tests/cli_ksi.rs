//! Signatures on the command line: from a document to a printed code, what is
//! told when something is wrong, and the published vectors.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use common::{Dev, Said, files, pitser, run, testdata};

#[test]
fn from_a_document_to_a_printed_code() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut dev = Dev::start(dir, 2);
    let (service, trust) = (dev.service.clone(), dev.trust.clone());
    fs::write(dir.join("a.txt"), "hello").unwrap();

    let signed = run(dir, &format!("sign a.txt -S {service} --json"))
        .exits(0)
        .json();
    assert_eq!(
        (&signed["by"], &signed["written"]),
        (&"anon".into(), &"a.txt.ksig".into())
    );
    let signed_at = signed["signed_at"].as_str().unwrap().to_owned();

    // Nobody is trusted yet; then the authority's key is.
    run(dir, "verify a.txt.ksig --document a.txt")
        .exits(2)
        .says("unconfirmed: GEN-02");
    run(dir, &format!("verify a.txt.ksig --document a.txt {trust}"))
        .exits(0)
        .says("key          matches")
        .says("the authority's key vouches");

    let code = dev.published(&signed_at);
    run(dir, &format!("extend a.txt.ksig -X {service} {trust}"))
        .exits(0)
        .says("a.txt.ext.ksig");
    run(
        dir,
        &format!("verify a.txt.ext.ksig --document a.txt {trust}"),
    )
    .exits(0)
    .says("published    matches");
    let own = run(dir, "inspect a.txt.ext.ksig --json").exits(0).json();
    let own = own["anchor"]["code"].as_str().unwrap();

    // With a code that the verifier brings, no file and no service is needed.
    let offline = format!("verify a.txt.ext.ksig --document a.txt --publication {own}");
    run(dir, &offline).exits(0).says("hash functions alone");
    let judgement = run(dir, &format!("{offline} --json")).exits(0).json();
    assert_eq!(
        (&judgement["verdict"], &judgement["code"]),
        (&"intact".into(), &().into())
    );
    assert_eq!(judgement["steps"][0]["name"], "document");
    assert_eq!(judgement["signed_at"], signed_at.as_str());
    run(dir, &format!("verify a.txt.ksig --publication {code}"))
        .exits(2)
        .says("extend it first");
    run(
        dir,
        &format!("verify a.txt.ksig --publication {code} -X {service}"),
    )
    .exits(0)
    .says("hash functions alone");
    run(
        dir,
        &format!("verify a.txt.ksig --policy calendar -X {service}"),
    )
    .exits(0)
    .says("the extender's calendar agrees");

    // One letter of the document, and one bit of the signature.
    fs::write(dir.join("b.txt"), "hellO").unwrap();
    let broken = run(
        dir,
        &format!("verify a.txt.ext.ksig --document b.txt {trust} --json"),
    )
    .exits(1);
    assert_eq!(
        (&broken.json()["verdict"], &broken.json()["code"]),
        (&"broken".into(), &"GEN-01".into())
    );
    let mut bytes = fs::read(dir.join("a.txt.ext.ksig")).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(dir.join("bit.ksig"), &bytes).unwrap();
    run(dir, &format!("verify bit.ksig --document a.txt {trust}"))
        .exits(1)
        .says("broken: INT-09");

    let (code, last) = dev.stop();
    assert_eq!((code, last["event"].as_str()), (Some(0), Some("stopped")));
}

#[test]
fn a_policy_claims_no_more_than_it_looked_at() {
    let vectors = testdata("ksi/tlv");
    run(
        &vectors,
        "verify ok-sig-2014-04-30.1-extended.ksig --policy internal",
    )
    .exits(0)
    .says("published    waiting")
    .says("compares with nothing")
    .says("more was not asked");
    run(
        &vectors,
        "verify ok-sig-2014-04-30.1.ksig --policy internal",
    )
    .exits(0)
    .says("key          waiting")
    .says("does not verify");
}

/// Whoever reads a contradiction learns which facts contradict each other.
#[test]
fn contradictions_are_told_with_their_facts() {
    let vectors = testdata("ksi/tlv");
    let verify = |options: &str| {
        run(
            &vectors,
            &format!("verify ok-sig-2014-04-30.1.ksig {options}"),
        )
    };
    verify("--level 3")
        .exits(1)
        .says("document  broken    GEN-03")
        .says("it was signed for level 0 at most");
    verify("--hash SHA-1:0000000000000000000000000000000000000000")
        .exits(1)
        .says("that is SHA-256");
    verify("--policy calendar")
        .exits(2)
        .says("this policy asks an extender: give one with -X");
    let pack = testdata("ksi/test_pack/policy-verification-signatures");
    run(
        &pack,
        "verify policy-verification-signature-aggregation-time-before-cert-time-KEY-03.ksig \
         -P resources/publications-file-resigned.bin --at 2024-06-01T00:00:00Z \
         --trust resources/cert-file-for-deprecated-algorithm-in-calendar-chain.pem \
         --constraint email=publications@guardtime.com",
    )
    .exits(1)
    .says("broken: KEY-03")
    .says("is valid from 20")
    .says("and it was signed at 2023-01-11T09:42:28Z");
}

#[test]
fn the_publications_file_is_judged_too() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut dev = Dev::start(dir, 1);
    dev.published("");
    let http = dev.publications.strip_prefix("http://").unwrap();
    let (address, path) = http.split_once('/').unwrap();
    let file = get(address, path);
    fs::write(dir.join("p.bin"), &file).unwrap();
    let whose = dev.trust.split_once(" --").unwrap().1;
    run(dir, &format!("verify p.bin --{whose}"))
        .exits(0)
        .says("intact: up to");
    run(dir, "verify p.bin").exits(2).says("--trust");
    run(
        dir,
        &format!("verify p.bin --{whose} --constraint CN=Somebody"),
    )
    .exits(2)
    .says("CN=Somebody");
    run(
        dir,
        &format!("verify p.bin --{whose} --at 2000-01-01T00:00:00Z"),
    )
    .exits(2)
    .says("is valid from");
    let mut forged = file;
    forged[20] ^= 1;
    fs::write(dir.join("p.bin"), &forged).unwrap();
    run(dir, &format!("verify p.bin --{whose}"))
        .exits(1)
        .says("broken: PKI-01");
    // A file that is not believed is not used, and says so.
    fs::write(dir.join("a"), "").unwrap();
    run(dir, &format!("sign a -S {}", dev.service)).exits(0);
    run(dir, &format!("verify a.ksig -P p.bin --{whose}"))
        .exits(2)
        .says("anchors");
    run(
        dir,
        &format!("extend a.ksig -X {} -P p.bin --{whose}", dev.service),
    )
    .exits(3)
    .says("not believed");
}

/// A file over HTTP/1.0: the body is what follows the empty line.
fn get(address: &str, path: &str) -> Vec<u8> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET /{path} HTTP/1.0\r\nHost: {address}\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let body = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap()
        + 4;
    answer.split_off(body)
}

#[test]
fn what_goes_wrong_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let dev = Dev::start(dir, 0);
    fs::write(dir.join("a.txt"), "hello").unwrap();
    fs::write(dir.join("garbage"), [0x88, 0x00, 0x00, 0x07, 0x88, 0x01]).unwrap();

    run(
        dir,
        &format!("sign a.txt -S ksi+tcp://anon:wrong@{}", dev.tcp),
    )
    .exits(4)
    .says("check name and HMAC key of user \"anon\"");
    assert!(!dir.join("a.txt.ksig").exists());
    run(dir, &format!("sign a.txt -S ksi+tcp://{}", dev.tcp))
        .exits(3)
        .says("PITSER_KEY");
    run(dir, "sign a.txt -S ftp://x")
        .exits(3)
        .says("ksi+tcp://");
    run(dir, "sign a.txt").exits(3).says("--service");
    run(dir, &format!("sign absent -S {}", dev.service))
        .exits(3)
        .says("absent");
    run(dir, "sign a.txt -S ksi+tcp://a:b@127.0.0.1:1")
        .exits(4)
        .says("is it running");
    run(
        dir,
        &format!(
            "sign --hash SHA-1:{} -o x -S {}",
            "00".repeat(20),
            dev.service
        ),
    )
    .exits(3)
    .says("SHA-256");
    run(
        dir,
        &format!(
            "sign --hash 01{} --level 3 -o x -S {}",
            "00".repeat(32),
            dev.service
        ),
    )
    .exits(0);
    let whole = fs::read(dir.join("x")).unwrap();
    fs::write(dir.join("cut"), &whole[..whole.len() / 2]).unwrap();
    run(dir, "verify cut")
        .exits(3)
        .says("truncated element at byte 0")
        .says(&format!("The file has {} bytes", whole.len() / 2));
    run(
        dir,
        &format!(
            "verify x --policy internal --hash 01{} --level 3",
            "00".repeat(32)
        ),
    )
    .exits(0);
    run(
        dir,
        &format!(
            "verify x --policy internal --hash 01{} --level 4",
            "00".repeat(32)
        ),
    )
    .exits(1)
    .says("GEN-03");

    run(dir, &format!("sign a.txt -S {}", dev.service)).exits(0);
    run(dir, &format!("sign a.txt -S {}", dev.service))
        .exits(3)
        .says("--force");
    run(dir, &format!("sign a.txt -S {} --force", dev.service)).exits(0);
    run(
        dir,
        &format!("extend a.txt.ksig -X {} {}", dev.service, dev.trust),
    )
    .exits(2)
    .says("nothing is published yet");

    run(dir, "verify garbage").exits(3).says("at byte");
    run(dir, "verify a.txt").exits(3).says("neither");
    run(dir, "inspect a.txt")
        .exits(3)
        .says("publications files");
    run(dir, "verify absent").exits(3).says("absent");
    run(dir, "verify a.txt.ksig --publication AAAAAA")
        .exits(3)
        .says("publication code");
    run(dir, "verify a.txt.ksig --policy user-publication")
        .exits(3)
        .says("--publication");
    run(dir, "verify a.txt.ksig --at yesterday")
        .exits(3)
        .says("2026-03-14T09:26:53Z");
    run(dir, "frobnicate").exits(3);
    run(dir, "--version").exits(0).says("pitser ");
    run(dir, "verify --help").exits(0).says("--anchors");

    run(dir, &format!("dev --listen {} --http 127.0.0.1:0", dev.tcp))
        .exits(4)
        .says("another program uses this port")
        .says("--listen 127.0.0.1:0");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    run(
        dir,
        &format!(
            "dev --listen 127.0.0.1:0 --http {}",
            taken.local_addr().unwrap()
        ),
    )
    .exits(4)
    .says("--http 127.0.0.1:0");
}

#[test]
fn a_key_need_not_stand_on_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let dev = Dev::start(dir, 0);
    fs::write(dir.join("a"), "").unwrap();
    let said = pitser(dir)
        .args(["sign", "a", "--service", &format!("ksi+tcp://{}", dev.tcp)])
        .env("PITSER_USER", "anon")
        .env("PITSER_KEY", "anon")
        .output()
        .unwrap();
    common::Said::from(said).exits(0).says("anon");
    let help = pitser(dir)
        .args(["sign", "--help"])
        .env("PITSER_KEY", "hush-hush")
        .output()
        .unwrap();
    assert!(!String::from_utf8(help.stdout).unwrap().contains("hush"));
}

#[test]
fn a_kept_folder_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("a"), "").unwrap();
    let args = "dev --json --listen 127.0.0.1:0 --http 127.0.0.1:0 --publish-every 0 --dir kept";
    let certificate = || fs::read(dir.join("kept/certificate.pem")).unwrap();
    let start = || {
        let mut child = pitser(dir)
            .args(args.split(' '))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(
            &mut std::io::BufReader::new(child.stdout.take().unwrap()),
            &mut line,
        )
        .unwrap();
        assert!(line.contains("listening"), "{line}");
        child.kill().unwrap();
        child.wait().unwrap();
        certificate()
    };
    // Killed outright, and still the same authority afterwards.
    assert_eq!(start(), start());
}

/// Every file is described or refused; a panic would be exit code 101.
#[test]
fn all_vectors_are_inspected() {
    let mut described = 0;
    for path in files(&testdata("ksi")) {
        let said = run(
            Path::new("."),
            &format!("inspect --json {}", path.display()),
        );
        match said.code {
            0 => {
                assert!(said.json()["kind"].is_string());
                described += 1;
            }
            _ => drop(said.exits(3)),
        }
    }
    assert!(described > 150, "{described}");
}

/// Months after a publications file was made, its signer's certificate ends.
#[test]
fn an_expired_publisher_is_told_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let pack = testdata("ksi/test_pack/policy-verification-signatures/resources");
    let trust = "--trust cert-file-for-deprecated-algorithm-in-calendar-chain.pem --constraint email=publications@guardtime.com";
    let verify = |at: &str| {
        let args = format!("verify publications-file-resigned.bin {trust} --at {at}");
        let said = pitser(dir.path())
            .current_dir(&pack)
            .args(args.split(' '))
            .output();
        common::Said::from(said.unwrap())
    };
    verify("2026-07-10T09:31:51Z").exits(0);
    verify("2026-07-10T09:31:52Z")
        .exits(2)
        .says("expired at 2026-07-10T09:31:51Z, and 2026-07-10T09:31:52Z is later")
        .says("--at takes an instant");
}

/// The tables of the test pack, on the command line: same codes, and exit codes
/// that fit them. Rows that need a live extender are in `cli_extender.rs`.
#[test]
fn the_test_pack() {
    let pack = testdata("ksi/test_pack");
    let (mut rows, mut wrong) = (0, Vec::new());
    for folder in fs::read_dir(&pack)
        .unwrap()
        .map(|entry| entry.unwrap().path())
    {
        for table in files(&folder)
            .iter()
            .filter(|path| path.extension().is_some_and(|e| e == "csv"))
        {
            for line in fs::read_to_string(table)
                .unwrap()
                .lines()
                .filter(|line| !line.starts_with('#'))
            {
                let columns: Vec<_> = line.split(';').collect();
                if let Some((args, code)) = command(&columns) {
                    rows += 1;
                    let said = pitser(&folder).args(&args).output().unwrap();
                    let said = common::Said::from(said);
                    let told = match said.code {
                        0..=2 => said.json()["code"].as_str().unwrap_or_default().to_owned(),
                        _ => "parsing".to_owned(),
                    };
                    let exit = match code {
                        "" => 0,
                        "GEN-02" => 2,
                        "parsing" => 3,
                        _ => 1,
                    };
                    if (told.as_str(), said.code) != (code, exit) {
                        wrong.push(format!(
                            "{}: {told} instead of {code}: {said:?}",
                            columns[0]
                        ));
                    }
                }
            }
        }
    }
    assert_eq!(wrong, [""; 0]);
    assert!(rows > 100, "{rows}");
}

/// The command of a row and the code it must tell; see the vectors' README.
fn command<'a>(columns: &[&'a str]) -> Option<(Vec<String>, &'a str)> {
    let [
        file,
        policy,
        code,
        _,
        level,
        document,
        ..,
        publication,
        extending,
        reply,
        publications,
        anchor,
    ] = columns[..15]
    else {
        panic!("too few columns");
    };
    let (name, code) = match policy {
        "not-implemented" => return None,
        "parsing" => ("internal", "parsing"),
        "publicationsFile" => ("publications-file", code),
        "userPublication" => ("user-publication", code),
        name => (name, code),
    };
    let wants_extender = extending == "true" || name == "calendar";
    if wants_extender && reply.is_empty() && code != "parsing" && name != "internal" {
        return None;
    }
    let mut args: Vec<String> = ["verify", "--json", file, "--policy", name, "--level", level]
        .into_iter()
        .map(Into::into)
        .collect();
    let mut add = |option: &str, value: &str| args.extend([option.to_owned(), value.to_owned()]);
    if code == "GEN-01" {
        add("--hash", document);
    }
    if name == "user-publication" {
        add("--publication", publication);
    }
    if wants_extender && !reply.is_empty() {
        add("--extender-reply", reply);
    }
    if ["key", "publications-file"].contains(&name) {
        let own = |own: &'a str, default: &'a str| if own.is_empty() { default } else { own };
        add(
            "-P",
            own(
                publications,
                "../policy-verification-signatures/resources/publications-file-resigned.bin",
            ),
        );
        add("--trust", own(anchor, PACK_ANCHOR));
        add("--constraint", "email=publications@guardtime.com");
        // The pack's signers expired in July 2026.
        add("--at", "2024-06-01T00:00:00Z");
    }
    Some((args, code))
}

const PACK_ANCHOR: &str = "../policy-verification-signatures/resources/cert-file-for-deprecated-algorithm-in-calendar-chain.pem";

#[test]
fn many_documents_are_one_request() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let dev = Dev::start(dir, 0);
    let names: Vec<_> = (1..=5).map(|number| format!("{number}.txt")).collect();
    for name in &names {
        fs::write(dir.join(name), name).unwrap();
    }
    let files = names.join(" ");
    for options in [
        "",
        " --mask",
        " --client-id ward-7",
        " --mask --client-id ward-7",
    ] {
        let sign = format!("sign {files} -S {} --force --json{options}", dev.service);
        let said = run(dir, &sign).exits(0).json();
        assert_eq!(said["signatures"].as_array().unwrap().len(), 5);
        for name in &names {
            let said = run(
                dir,
                &format!("verify {name}.ksig --document {name} {} --json", dev.trust),
            )
            .exits(0)
            .json();
            let by = said.to_string();
            assert_eq!(by.contains("ward-7"), options.contains("ward-7"), "{by}");
        }
        run(dir, "verify 1.txt.ksig --document 2.txt --policy internal")
            .exits(1)
            .says("GEN-01");
    }
    // With masks, two signatures over the same documents have nothing in common.
    let sign = |options: &str| {
        let command = format!("sign 1.txt 2.txt{options} -S {} --force", dev.service);
        run(dir, &command).exits(0);
        run(dir, "inspect 1.txt.ksig --json").json()["aggregation_chains"][0]["links"].to_string()
    };
    assert_eq!(sign(""), sign(""));
    assert_ne!(sign(" --mask"), sign(" --mask"));

    fs::create_dir(dir.join("signatures")).unwrap();
    run(
        dir,
        &format!("sign 1.txt 2.txt -o signatures -S {}", dev.service),
    )
    .exits(0);
    assert!(dir.join("signatures/2.txt.ksig").exists());
    run(dir, &format!("sign 1.txt 2.txt -S {}", dev.service))
        .exits(3)
        .says("1.txt.ksig is there already");
    run(
        dir,
        &format!("sign 1.txt 2.txt -o x.ksig -S {}", dev.service),
    )
    .exits(3)
    .says("no folder");
}

#[test]
fn shells_and_man_know_the_commands() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        run(dir.path(), &format!("completions {shell}"))
            .exits(0)
            .says("integrate");
    }
    run(dir.path(), "man").exits(0).says(".TH pitser 1");
    run(dir.path(), "man -o pages").exits(0);
    let page = fs::read_to_string(dir.path().join("pages/pitser-log-sign.1")).unwrap();
    assert!(
        page.contains("--state") || page.contains("\\-\\-state"),
        "{page}"
    );
    run(dir.path(), "completions tcsh").exits(3).says("bash");
}

/// The published example: it is about patient pt-3, as its reader must be told.
#[test]
fn evidence_says_whom_it_is_about_and_as_of_when() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for file in ["evidence-pt-3.json", "anchors.toml"] {
        fs::copy(testdata("pitser").join(file), dir.join(file)).unwrap();
    }
    let verify = "verify evidence-pt-3.json --anchors anchors.toml --at 1970-01-01T00:00:30Z";
    let about = "captured about patient \"pt-3\" from the trail's genesis, 1970-01-01T00:00:01";
    let said = run(dir, verify).exits(0).says(about);
    said.says("to 1970-01-01T00:00:1");
    let asked = |id: &str, more: &str| {
        let mut command = pitser(dir);
        command.args(verify.split(' ')).args(["--patient", id]);
        let said: Said = command
            .args(more.split_whitespace())
            .output()
            .unwrap()
            .into();
        said
    };
    asked("pt-3", "").exits(0).says("as asked");
    // What is not looked at is not taken in silence.
    let zero = format!("SHA-256:{}", "0".repeat(64));
    for ignored in [
        "--policy internal",
        &format!("--hash {zero}"),
        "--document anchors.toml",
        "-X ksi+tcp://a:b@h:1",
        "-P nowhere",
    ] {
        asked("pt-3", ignored).exits(3).says("--anchors");
    }
    let report = asked("pt-3", "--json").exits(0).json();
    assert_eq!(report["patient"], "pt-3");
    assert!(
        report["as_of"]
            .as_str()
            .unwrap()
            .starts_with("1970-01-01T00:00:1")
    );
    // What looks like it is not it.
    for other in ["pt-1", "pt-3 ", "PT-3", "pt-3\u{200b}"] {
        let said = asked(other, "").exits(1).says("EVD-03");
        let told = format!("about \"pt-3\", not about {other:?}");
        said.says(&told);
    }
    run(dir, "verify anchors.toml --patient pt-3")
        .exits(3)
        .says("--patient is about an evidence file");
}

/// The published example without the first two lines of `*unknown`.
#[test]
fn evidence_says_what_is_left_out_of_it_and_the_verifier_has_to_agree() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for file in ["evidence-partial.json", "anchors-partial.toml"] {
        fs::copy(testdata("pitser").join(file), dir.join(file)).unwrap();
    }
    let verify =
        "verify evidence-partial.json --anchors anchors-partial.toml --at 1970-01-01T00:00:30Z";
    let since = |at: &str| format!("{verify} --shared-since 1970-01-01T00:00:{at}Z");
    let left_out = "the first 2 lines of *unknown, up to line 10, all sealed by 1970-01-01T00:00:09Z, are not in this file";
    run(dir, verify)
        .exits(2)
        .says(left_out)
        .says("--shared-since");
    run(dir, &since("08")).exits(2).says(left_out);
    run(dir, &since("09"))
        .exits(0)
        .says(&format!("not claimed: anything about reads of many or unknown patients that are not shown: {left_out}"))
        .says("but for what is not in this file");
    for command in [verify.to_owned(), since("09")] {
        let report = run(dir, &format!("{command} --json")).json();
        let told = serde_json::json!([{
            "list": "*unknown", "lines": 2, "up_to": 10, "sealed_by": "1970-01-01T00:00:09Z",
        }]);
        assert_eq!(report["left_out"], told);
    }
    run(
        dir,
        "verify anchors-partial.toml --shared-since 1970-01-01T00:00:09Z",
    )
    .exits(3)
    .says("--shared-since is about an evidence file");
}
