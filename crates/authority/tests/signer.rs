//! A signing key that this process never sees, behind a real program.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use common::{GENESIS, World, config, document, init, tick};
use pitser_authority::{
    Allowance, Authority, AuthorityError, Brought, BroughtKey, Config, ManualClock, Micros,
    SignerCommand, User,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A pair as `authority init` makes it; its key is used by programs alone.
struct Pair(TempDir);

impl Pair {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        init(&dir);
        Self(dir)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.0.path().join(name)).unwrap()
    }

    /// A program of the shell's that does `first`, then signs with openssl.
    fn command(&self, first: &str) -> SignerCommand {
        let script = format!(
            "{first}\n\
             while read -r request digest_info; do\n\
             printf 'signature %s\\n' \"$(printf %s \"$digest_info\" | base64 -d | \
             openssl pkeyutl -sign -inkey \"$0\" | base64 -w0)\"\n\
             done"
        );
        let key = self.path("signing-key.pem");
        SignerCommand::new(["/bin/sh", "-c", &script, &key])
    }

    fn init_with(&self, dir: &Path, signer: &SignerCommand) -> Result<(), AuthorityError> {
        let constraint = self.text("constraint");
        let brought = Brought {
            key: BroughtKey::Behind(signer),
            certificate_pem: &self.text("certificate.pem"),
            constraint: constraint.trim(),
        };
        Authority::init_with(dir, GENESIS, &brought)
    }

    /// An authority that signs by `signer`; it has been started once with `sound`.
    /// One that each start answers what a file says before it works, and tells its number in
    /// `pid`; and that file.
    fn moody(&self) -> (String, SignerCommand) {
        let (mood, pid) = (self.path("mood"), self.path("pid"));
        let command = self.command(&format!(
            "echo $$ > {pid}; while test -s {mood} && read -r line; do . {mood}; done"
        ));
        (mood, command)
    }

    async fn world(&self, sound: &SignerCommand, signer: SignerCommand) -> World {
        self.world_with(sound, signer, |_| {}).await
    }

    async fn world_with(
        &self,
        sound: &SignerCommand,
        signer: SignerCommand,
        change: impl FnOnce(&mut Config),
    ) -> World {
        let dir = TempDir::new().unwrap();
        self.init_with(dir.path(), sound).unwrap();
        assert!(!dir.path().join("signing-key.pem").exists());
        let clock = Arc::new(ManualClock::new(Micros::boundary(GENESIS)));
        let mut config = config(&dir);
        config.signer = Some(signer);
        change(&mut config);
        config.operations.monitor = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        let authority = Authority::start(config, Arc::clone(&clock)).await.unwrap();
        World {
            dir,
            clock,
            authority,
        }
    }
}

fn is_there(program: &str) -> bool {
    let is_there = Command::new(program).arg("--help").output().is_ok();
    if !is_there {
        eprintln!("skipped: there is no {program}");
    }
    is_there
}

fn kill(pid: &str) {
    let killed = Command::new("kill").args(["-9", pid]).status();
    assert!(killed.unwrap().success());
}

/// Signs, publishes, and verifies both as outsiders do.
async fn signs(world: &World, number: u64) {
    let signature = world
        .run(world.tcp().sign(document(number), 0))
        .await
        .unwrap();
    let published = world.authority.publish().await.unwrap();
    let file = world.verified_publications();
    let record = file.at_time(published.data.time).unwrap();
    world
        .tcp()
        .extend(&signature, None, Some(record))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_signs_every_second_and_is_started_again_when_it_ends() {
    if !is_there("openssl") {
        return;
    }
    let pair = Pair::new();
    let starts = pair.path("starts");
    let counted = pair.command(&format!("echo $$ >> {starts}"));
    let world = pair.world(&counted, counted.clone()).await;
    signs(&world, 1).await;
    signs(&world, 2).await;
    let pids = || -> Vec<String> {
        let text = fs::read_to_string(&starts).unwrap();
        text.lines().map(str::to_owned).collect()
    };
    let before = pids();
    let last = before.last().unwrap();
    kill(last);
    signs(&world, 3).await;
    assert_eq!(
        pids().len(),
        before.len() + 1,
        "one program, many signatures"
    );
    world.authority.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_fails_costs_its_round_and_no_other() {
    if !is_there("openssl") {
        return;
    }
    let pair = Pair::new();
    let (mood, moody) = pair.moody();
    let mut moody_and_quick = moody.clone();
    moody_and_quick.timeout = Duration::from_millis(500);
    let world = pair.world(&moody, moody_and_quick).await;
    signs(&world, 1).await;
    let wrong = "echo signature AAAA";
    for (number, mood_now) in [
        "echo error the token was pulled out",
        "echo hello",
        "exec sleep 60",
        wrong,
        "exit 1",
    ]
    .iter()
    .enumerate()
    {
        fs::write(&mood, format!("{mood_now}\n")).unwrap();
        // The one that runs works; the next does not.
        kill(pair.text("pid").trim());
        let refused = world
            .run(world.tcp().sign(document(10 + number as u64), 0))
            .await;
        let refused = refused.unwrap_err().to_string();
        let expected = match *mood_now {
            "echo error the token was pulled out" => "refused: the token was pulled out",
            "echo hello" => "answered neither",
            "exec sleep 60" => "no answer within 500 ms",
            "exit 1" => "the signer ended",
            _ => "does not verify with the certificate",
        };
        assert!(refused.contains(expected), "{mood_now}: {refused}");
        fs::remove_file(&mood).unwrap();
        // What merely refused goes on and works.
        signs(&world, 20 + number as u64).await;
    }
    world.authority.shutdown().await.unwrap();
}

/// Whoever asks while the device is away has asked in vain, and paid nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_round_without_signatures_costs_nobodys_quota() {
    if !is_there("openssl") {
        return;
    }
    let pair = Pair::new();
    let (mood, moody) = pair.moody();
    let two_a_day = |config: &mut Config| {
        let allowance = Allowance {
            per_day: Some(2),
            ..Allowance::default()
        };
        config.users = vec![User {
            allowance,
            ..User::new("anon", "anon")
        }];
    };
    let world = pair.world_with(&moody, moody.clone(), two_a_day).await;
    fs::write(&mood, "echo error the token was pulled out\n").unwrap();
    kill(pair.text("pid").trim());
    let sign = async |number| {
        let signed = world.run(world.tcp().sign(document(number), 0)).await;
        signed.map_err(|error| error.to_string())
    };
    for number in 0..5 {
        let refused = sign(number).await.unwrap_err();
        assert!(refused.contains("the token was pulled out"), "{refused}");
    }
    fs::remove_file(&mood).unwrap();
    for number in 5..7 {
        sign(number).await.unwrap();
    }
    let refused = sign(7).await.unwrap_err();
    assert!(refused.contains("day's 2 signatures"), "{refused}");
    world.authority.shutdown().await.unwrap();
}

/// On one thread, so that whoever waited for the device would hold up everything.
#[tokio::test]
async fn a_device_that_takes_its_time_holds_up_no_question() {
    if !is_there("openssl") {
        return;
    }
    let pair = Pair::new();
    let (slow, asked, pid) = (pair.path("slow"), pair.path("asked"), pair.path("pid"));
    let slowly = pair.command(&format!(
        "echo $$ > {pid}; while test -s {slow} && read -r line; do touch {asked}; exec sleep 600; done"
    ));
    let mut patient = slowly.clone();
    patient.timeout = Duration::from_secs(600);
    let world = pair.world(&slowly, patient).await;
    world.tick().await;
    fs::write(&slow, "yes").unwrap();
    kill(pair.text("pid").trim());
    let World {
        authority, clock, ..
    } = world;
    let authority = Arc::new(authority);
    let publishing = tokio::spawn({
        let authority = Arc::clone(&authority);
        async move { authority.publish().await }
    });
    while !Path::new(&asked).exists() {
        tokio::task::yield_now().await;
    }
    tick(&clock, &authority).await;
    let http = authority.http_address().unwrap();
    for path in ["/publications.atom", "/publications.bin", "/ready"] {
        assert!(get(http, path).await.starts_with("HTTP/1.1 200"), "{path}");
    }
    let monitor = authority.monitor_address().unwrap();
    for path in ["/status", "/metrics"] {
        assert!(get(monitor, path).await.contains("publications"), "{path}");
    }
    assert!(!publishing.is_finished());
    fs::remove_file(&slow).unwrap();
    kill(pair.text("pid").trim());
    let refused = publishing.await.unwrap().unwrap_err().to_string();
    assert!(refused.contains("the signer ended"), "{refused}");
    authority.publish().await.unwrap();
    Arc::into_inner(authority)
        .unwrap()
        .shutdown()
        .await
        .unwrap();
}

/// The answer to GET `path`, as far as it is text.
async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: it\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn what_cannot_sign_is_found_before_anything_is_made() {
    if !is_there("openssl") {
        return;
    }
    let (pair, other) = (Pair::new(), Pair::new());
    for (signer, expected) in [
        (other.command("true"), "they are of two pairs"),
        (
            SignerCommand::new(["/nowhere/signer"]),
            "/nowhere/signer cannot be started",
        ),
        (SignerCommand::new(["/bin/true"]), "the signer ended"),
        (SignerCommand::new([""; 0]), "name a program"),
    ] {
        let dir = TempDir::new().unwrap();
        let refused = pair.init_with(dir.path(), &signer).unwrap_err().to_string();
        assert!(refused.contains(expected), "{refused}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

/// The device that everybody has: SoftHSM, by `contrib/pkcs11-signer.sh`.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_a_pkcs11_device_signs() {
    let modules = [
        "/usr/lib/softhsm/libsofthsm2.so",
        "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
        "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    ];
    let module = modules.iter().find(|path| Path::new(path).exists());
    let (Some(module), true, true) = (module, is_there("softhsm2-util"), is_there("pkcs11-tool"))
    else {
        eprintln!("skipped: there is no SoftHSM with pkcs11-tool");
        return;
    };
    let pair = Pair::new();
    let tokens = pair.path("tokens");
    fs::create_dir(&tokens).unwrap();
    let settings = pair.path("softhsm2.conf");
    fs::write(&settings, format!("directories.tokendir = {tokens}\n")).unwrap();
    fs::write(pair.path("pin"), "4711\n").unwrap();
    let key = pair.path("signing-key.pem");
    let token = "--token publications --pin 4711";
    let import = format!("--import {key} {token} --id 0a --label signing");
    let new = "--init-token --free --label publications --pin 4711 --so-pin 4712";
    for arguments in [new, &import] {
        let mut command = Command::new("softhsm2-util");
        command
            .args(arguments.split(' '))
            .env("SOFTHSM2_CONF", &settings);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    fs::remove_file(key).unwrap();

    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../contrib/pkcs11-signer.sh");
    let signer = SignerCommand::new([
        "/usr/bin/env",
        &format!("SOFTHSM2_CONF={settings}"),
        &format!("PIN_FILE={}", pair.path("pin")),
        script.to_str().unwrap(),
        module,
        "publications",
        "0a",
    ]);
    let world = pair.world(&signer, signer.clone()).await;
    signs(&world, 1).await;
    signs(&world, 2).await;
    world.authority.shutdown().await.unwrap();
}
