//! Services on the command line: over HTTPS, several at a time, from a file.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/tls.rs"]
mod tls;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use common::{Dev, Said, pitser, run};
use pitser_ksi::hash::{Algorithm, hash};
use pitser_ksi::pdu::{
    AggregationRequest, AggregationRequestPayload, Header, SignRequest, frame_len,
};
use tls::Proxy;

#[test]
fn over_https_from_a_document_to_a_publication() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut dev = Dev::start(dir, 2);
    let http = dev.publications.strip_prefix("http://").unwrap();
    let http = http.split_once('/').unwrap().0.parse().unwrap();
    let proxy = Proxy::start(dir, http);
    let service = format!("https://anon:anon@localhost:{}", proxy.port);
    let publications = format!("https://localhost:{}/publications.bin", proxy.port);
    fs::write(dir.join("a.txt"), "hello").unwrap();

    run(dir, &format!("sign a.txt -S {service}"))
        .exits(4)
        .says("issued by nobody that is trusted here")
        .says("--tls-ca");
    let signed = run(
        dir,
        &format!("sign a.txt -S {service} --tls-ca ca.pem --json"),
    )
    .exits(0)
    .json();
    // What this machine trusts, as OpenSSL is told it.
    let by_environment = pitser(dir)
        .args(["sign", "a.txt", "--force", "-S", &service])
        .env("SSL_CERT_FILE", dir.join("ca.pem"))
        .output()
        .unwrap();
    Said::from(by_environment).exits(0);

    dev.published(signed["signed_at"].as_str().unwrap());
    dev.published(signed["signed_at"].as_str().unwrap());
    let trust = dev.trust.replace(&dev.publications, &publications);
    run(dir, &format!("extend a.txt.ksig -X {service} {trust}"))
        .exits(4)
        .says("--tls-ca");
    let with_ca = format!("-X {service} {trust} --tls-ca ca.pem");
    run(dir, &format!("extend a.txt.ksig {with_ca}")).exits(0);
    run(
        dir,
        &format!("verify a.txt.ksig --policy calendar {with_ca}"),
    )
    .exits(0);
    run(
        dir,
        &format!("verify a.txt.ext.ksig {trust} --tls-ca ca.pem"),
    )
    .exits(0)
    .says("published    matches");

    let plain = format!("https://anon:anon@{}", dev.tcp);
    run(dir, &format!("sign a.txt --force -S {plain}"))
        .exits(4)
        .says("no secure connection");
    run(
        dir,
        &format!("sign a.txt --force -S {service} --tls-ca absent.pem"),
    )
    .exits(3)
    .says("absent.pem");
    run(
        dir,
        &format!("sign a.txt --force -S {service} --tls-ca a.txt"),
    )
    .exits(3)
    .says("holds no certificate");
}

#[test]
fn the_first_good_answer_of_several_services_counts() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let dev = Dev::start(dir, 0);
    let live = &dev.service;
    let dead = "ksi+tcp://a:b@127.0.0.1:1";
    let stranger = format!("ksi+tcp://anon:wrong@{}", dev.tcp);
    fs::write(dir.join("a"), "hello").unwrap();
    fs::write(dir.join("a.log"), "one\ntwo\n").unwrap();

    // One signature would take the other's place.
    for folder in ["x", "y", "o"] {
        fs::create_dir(dir.join(folder)).unwrap();
        fs::write(dir.join(folder).join("r.txt"), folder).unwrap();
    }
    run(dir, &format!("sign x/r.txt y/r.txt -o o --force -S {live}"))
        .exits(3)
        .says("two files would have the signature o/r.txt.ksig");
    assert!(!dir.join("o/r.txt.ksig").exists());
    run(dir, &format!("sign a -S {dead} -S {live}"))
        .exits(0)
        .says("a.ksig");
    run(
        dir,
        &format!("verify a.ksig --policy calendar -X {dead} -X {live}"),
    )
    .exits(0);
    run(dir, &format!("log sign a.log -S {dead} -S {live}")).exits(0);

    run(dir, &format!("sign a --force -S {dead} -S {stranger}"))
        .exits(4)
        .says("none of 2 services gave a good answer: the service at")
        .says("check name and HMAC key of user \"anon\"; cannot connect to the service at 127.0.0.1:1");
    run(dir, &format!("sign a --force -S {live} -S {live}"))
        .exits(3)
        .says("twice");
    run(
        dir,
        &format!("sign a --force -S {dead} -S {dead} -S {dead} -S {dead}"),
    )
    .exits(3)
    .says("one to three");
    let said = run(
        dir,
        &format!("sign a --force -S {live} -S ksi+tcp://a:hush@h:port"),
    );
    assert!(!said.err.contains("hush"), "{said:?}");
    said.exits(3).says("address 2 of 2: the port");
}

/// A request is carried to the service by hand, and its answer back.
#[test]
fn an_answer_may_come_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let dev = Dev::start(dir, 0);
    fs::write(dir.join("a"), "hello").unwrap();
    fs::write(dir.join("b"), "hallo").unwrap();
    let request = AggregationRequest::new(
        Header::new("anon"),
        AggregationRequestPayload::Sign(SignRequest {
            request_id: 4711,
            input: hash(Algorithm::Sha256, &[b"hello"]),
            level: 0,
        }),
    );
    let mut stream = TcpStream::connect(&dev.tcp).unwrap();
    let request = request.encode(b"anon", Algorithm::Sha256).unwrap();
    stream.write_all(&request).unwrap();
    let mut answer = vec![0; 4];
    stream.read_exact(&mut answer).unwrap();
    answer.resize(frame_len(&answer).unwrap().unwrap(), 0);
    stream.read_exact(&mut answer[4..]).unwrap();
    fs::write(dir.join("answer.tlv"), answer).unwrap();

    run(dir, "sign a -S file:answer.tlv --key anon").exits(0);
    run(dir, &format!("verify a.ksig --document a {}", dev.trust)).exits(0);
    run(dir, "sign b -S file:answer.tlv --key anon")
        .exits(4)
        .says("GEN-01");
    run(dir, "sign b -S file:answer.tlv --key other")
        .exits(4)
        .says("not authenticated");
    run(dir, "sign b -S file:answer.tlv")
        .exits(3)
        .says("PITSER_KEY");
    run(dir, "sign b -S file:absent.tlv --key anon")
        .exits(3)
        .says("cannot read absent.tlv");
}

#[test]
fn a_broken_signature_is_not_extended() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let dev = Dev::start(dir, 0);
    fs::write(dir.join("a"), "hello").unwrap();
    run(dir, &format!("sign a -S {}", dev.service)).exits(0);
    // Of 2014: what is broken is not even told that this is too early.
    let code =
        "AAAAAA-CTJR3I-AANBWU-RY76YF-7TH2M5-KGEZVA-WLLRGD-3GKYBG-AM5WWV-4MCLSP-XPRDDI-UFMHBA";
    let mut bytes = fs::read(dir.join("a.ksig")).unwrap();
    // One bit of the input hash: the chain leads elsewhere.
    let input = hash(Algorithm::Sha256, &[b"hello"]);
    let at = bytes.windows(33).position(|part| part == input.as_bytes());
    bytes[at.unwrap() + 5] ^= 1;
    fs::write(dir.join("b.ksig"), bytes).unwrap();
    let publication = format!("--publication {code}");
    let said = run(
        dir,
        &format!("extend b.ksig -X {} {publication}", dev.service),
    );
    assert!(
        said.code == 1 && said.err.starts_with("pitser: INT-03"),
        "{said:?}"
    );
}

#[test]
fn the_bench_counts_and_verifies_what_it_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let command = "bench authority --rate 2000 --paced 500 --seconds 4 --connections 3 --json";
    let facts = run(dir.path(), command).exits(0).json();
    let number = |name: &str| facts[name].as_f64().unwrap();
    assert_eq!(number("refused"), 0.0);
    // A hundredth of both loads, and a whole round.
    assert!((50.0..=150.0).contains(&number("verified")), "{facts:#}");
    assert!(number("verified_round") > 0.0, "{facts:#}");
    for name in ["signatures_per_s", "server_cpu_us", "floor_us", "rss_mb"] {
        assert!(number(name) > 0.0, "{name}: {facts:#}");
    }
    let latency = &facts["latency_ms"];
    assert!(latency["p50"].as_u64() <= latency["p99"].as_u64());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn the_bench_of_access_lists_has_them_verified() {
    let dir = tempfile::tempdir().unwrap();
    let command = "bench access --lines 3000 --patients 60 --block 170 --asked 3 --json";
    let facts = run(dir.path(), command).exits(0).json();
    let number = |name: &str| facts[name].as_u64().unwrap();
    assert_eq!((number("lines"), number("blocks")), (3000, 18), "{facts:#}");
    assert_eq!((number("list_lines"), number("verified")), (50, 6));
    assert!(number("list_bytes") > 50_000, "{facts:#}");
    for name in ["opened_once_ms", "opened_each_time_ms"] {
        assert!(facts[name]["p50"].as_f64() <= facts[name]["p99"].as_f64());
        assert!(facts[name]["p50"].as_f64().unwrap() > 0.0, "{facts:#}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
