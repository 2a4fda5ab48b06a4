//! The vault's master key behind a real PKCS#11 token, SoftHSM. Skipped, and said so,
//! where there is none.

#![cfg(feature = "pkcs11")]
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod common;

use common::port::free_address;
use common::{Process, Said, first_line, pitser};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const MODULES: [&str; 3] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
];
const PIN: &str = "4711-hospital";
/// How PKCS#11 tools make a key that stays in its token.
const SAFE: &str = "--sensitive --private --usage-decrypt";

/// A database of one patient, and a token of its own.
struct Site {
    dir: tempfile::TempDir,
    module: &'static str,
    listen: String,
}

impl Site {
    /// With one key in the token, and nothing initialised; `None` where there is no SoftHSM.
    fn new() -> Option<Self> {
        let module = MODULES.into_iter().find(|path| Path::new(path).exists());
        let tools = ["softhsm2-util", "pkcs11-tool"]
            .iter()
            .all(|tool| Command::new(tool).arg("--help").output().is_ok());
        let Some(module) = module.filter(|_| tools) else {
            eprintln!("skipped: there is no SoftHSM with pkcs11-tool");
            return None;
        };
        let site = Self {
            dir: tempfile::tempdir().unwrap(),
            module,
            listen: free_address().to_string(),
        };
        fs::create_dir(site.path("tokens")).unwrap();
        let tokens = site.path("tokens");
        let settings = format!("directories.tokendir = {}\n", tokens.display());
        fs::write(site.path("softhsm2.conf"), settings).unwrap();
        fs::write(site.path("pin"), format!("{PIN}\n")).unwrap();
        let init = format!("--init-token --free --label hospital --pin {PIN} --so-pin 47110815");
        site.tool("softhsm2-util", &init);
        site.make_key("vault", "AES:32", SAFE);
        site.configure(&site.token(""));
        let db = rusqlite::Connection::open(site.path("hospital.db")).unwrap();
        db.execute_batch(
            "CREATE TABLE entry (id INTEGER PRIMARY KEY, patient TEXT, note TEXT);
             INSERT INTO entry VALUES (1, 'pt-1', 'pressure 120')",
        )
        .unwrap();
        Some(site)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn tool(&self, tool: &str, args: &str) {
        let mut command = Command::new(tool);
        command
            .args(args.split(' '))
            .env("SOFTHSM2_CONF", self.path("softhsm2.conf"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    fn pkcs11_tool(&self, args: &str) {
        let login = format!("--token-label hospital --login --pin {PIN}");
        let args = format!("--module {} {login} {args}", self.module);
        self.tool("pkcs11-tool", &args);
    }

    fn make_key(&self, label: &str, key_type: &str, how: &str) {
        self.pkcs11_tool(&format!(
            "--keygen --key-type {key_type} --label {label} --id 01 {how}"
        ));
    }

    /// What names the token in the configuration; `but` replaces lines of the same keys.
    fn token(&self, but: &str) -> String {
        let usual = format!(
            "pkcs11 = \"{}\"\ntoken = \"hospital\"\nkey = \"vault\"\npin_file = \"credential:pin\"\n",
            self.module
        );
        let key = |line: &str| line.split(' ').next().unwrap().to_owned();
        let stays = |line: &&str| but.is_empty() || key(line) != key(but);
        let usual: Vec<&str> = usual.lines().filter(stays).collect();
        format!("[source.vault_token]\n{}\n{but}\n", usual.join("\n"))
    }

    fn configure(&self, more: &str) {
        let config = format!(
            "[authority]\naggregator = \"embedded\"\n\
             [guard]\ndata = \"guard\"\nlisten = \"{}\"\nscan_every_s = 0\nwitness_every_s = 1\n\
             [[source]]\nname = \"h\"\nkind = \"sqlite\"\nurl = \"hospital.db\"\ntables = [\"*\"]\n\
             [source.patient]\nentry = \"patient\"\n{more}",
            self.listen
        );
        fs::write(self.path("pitser.toml"), config).unwrap();
    }

    fn command(&self, args: &str) -> Command {
        let mut command = pitser(self.dir.path());
        command
            .args(args.split(' '))
            .env_remove("PITSER_CONFIG")
            .env("SOFTHSM2_CONF", self.path("softhsm2.conf"))
            .env("CREDENTIALS_DIRECTORY", self.dir.path());
        command
    }

    /// Whatever is said, no PIN and no master key is.
    #[track_caller]
    fn run(&self, args: &str) -> Said {
        let said: Said = self.command(args).output().unwrap().into();
        let all = format!("{said:?}");
        assert!(!all.contains(PIN) && !all.contains(WRONG), "{all}");
        said
    }

    fn guard(&self) -> Process {
        let mut child = self
            .command("guard run")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let line = first_line(&mut child);
        assert!(line.starts_with("guarding"), "{line}");
        Process(child)
    }

    /// A trail with its baseline.
    fn begin(&self) {
        self.run("guard init").exits(0);
        let guardian = self.guard();
        self.run("guard scan").exits(0).says("1 rows compared");
        guardian.stop();
    }

    #[track_caller]
    fn opens(&self) {
        let said = self.run("history --patient pt-1 --json").exits(0).json();
        assert_eq!(said["lines"][0]["row"]["note"], "tpressure 120");
    }

    #[track_caller]
    fn opens_not(&self, why: &str) {
        self.run("history --patient pt-1").exits(4).says(why);
    }

    fn wrapped(&self) -> PathBuf {
        self.path("guard/h/vault.key.wrapped")
    }
}

const WRONG: &str = "not-this-one";

/// Whether any file below `dir` has these digits, or the bytes that they stand for.
fn is_in(dir: &Path, digits: &str) -> bool {
    let bytes = data_encoding::HEXLOWER.decode(digits.as_bytes()).unwrap();
    let has = |all: &[u8], part: &[u8]| all.windows(part.len()).any(|it| it == part);
    fs::read_dir(dir).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return is_in(&path, digits);
        }
        let all = fs::read(path).unwrap();
        has(&all, &bytes) || has(&all, digits.as_bytes())
    })
}

#[test]
fn a_trail_begins_goes_on_and_is_opened_with_the_token() {
    let Some(site) = Site::new() else { return };
    site.begin();
    assert!(!site.path("guard/h/vault.key").exists());
    let guardian = site.guard();
    site.run("guard scan").exits(0).says("1 rows compared");
    guardian.stop();
    site.opens();
    site.run("trail rebuild").exits(0);
    site.opens();

    // The wrapped file alone, or the token alone, opens nothing.
    site.configure("");
    site.opens_not("name that token under [source.vault_token]");
    let wrapped = fs::read(site.wrapped()).unwrap();
    fs::remove_file(site.wrapped()).unwrap();
    site.configure(&site.token(""));
    site.opens_not("restore this file from your backup");
    fs::write(site.wrapped(), wrapped).unwrap();
    site.opens();
}

#[test]
fn what_is_wrong_with_the_token_is_said() {
    let Some(site) = Site::new() else { return };
    // Before anything is begun.
    fs::write(site.path("pin"), WRONG).unwrap();
    site.run("guard init")
        .exits(4)
        .says("this is not the PIN of token \"hospital\"")
        .says("more than one is left");
    assert!(!site.path("guard/h/trail").exists());
    fs::write(site.path("pin"), PIN).unwrap();
    site.begin();

    fs::write(site.path("pin"), WRONG).unwrap();
    site.opens_not("this is not the PIN of token \"hospital\"");
    site.run("guard run").exits(4).says("this is not the PIN");
    site.run("trail rebuild")
        .exits(4)
        .says("this is not the PIN");
    fs::write(site.path("pin"), "\n").unwrap();
    site.opens_not("there is no PIN in it");
    fs::remove_file(site.path("pin")).unwrap();
    site.opens_not("the token's PIN cannot be read");
    // Who recomputes the trail needs no key.
    let verified = site.run("trail verify");
    assert!(matches!(verified.code, 0 | 2), "{verified:?}");
    fs::write(site.path("pin"), PIN).unwrap();

    let with = |but: &str| site.configure(&site.token(but));
    with("token = \"nowhere\"");
    site.opens_not("there is no token \"nowhere\"");
    site.opens_not("but \"hospital\"");
    with("key = \"nothing\"");
    site.opens_not("has no AES key \"nothing\"");
    with("pkcs11 = \"/nowhere/lib.so\"");
    site.opens_not("/nowhere/lib.so");
    let no_module = std::env::current_exe().unwrap();
    with(&format!("pkcs11 = \"{}\"", no_module.display()));
    site.opens_not("names the library of the token's maker");
    with("pkcs11 = \"libsofthsm2.so\"");
    site.run("history --patient pt-1")
        .exits(3)
        .says("write the library's whole path");
    with("");
    site.opens();
    fs::remove_dir_all(site.path("tokens")).unwrap();
    fs::create_dir(site.path("tokens")).unwrap();
    site.opens_not("but none at all");
}

#[test]
fn another_key_or_another_file_opens_nothing() {
    let Some(site) = Site::new() else { return };
    site.begin();
    let good = fs::read(site.wrapped()).unwrap();
    // Each byte of the file, those of the form and those of IV, key and tag.
    for at in (0..good.len()).step_by(5) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(site.wrapped(), bad).unwrap();
        site.opens_not("vault.key.wrapped");
    }
    fs::write(site.wrapped(), [&good[..], b" "].concat()).unwrap();
    site.opens_not("not as a token's keeper wrote it");
    fs::write(site.wrapped(), &good).unwrap();
    site.opens();

    site.pkcs11_tool("--delete-object --type secrkey --label vault");
    site.opens_not("has no AES key \"vault\"");
    site.make_key("vault", "AES:32", SAFE);
    site.opens_not("does not open with key \"vault\"");
    site.make_key("vault", "AES:32", SAFE);
    site.opens_not("several AES keys \"vault\"");
}

#[test]
fn a_key_that_may_leave_its_token_wraps_nothing() {
    let Some(site) = Site::new() else { return };
    site.make_key("loose", "AES:32", "--extractable --usage-decrypt");
    site.make_key("short", "AES:16", SAFE);
    for (key, why) in [
        ("loose", "may leave its token"),
        ("short", "is not of 256 bits"),
    ] {
        site.configure(&site.token(&format!("key = \"{key}\"")));
        site.run("guard init").exits(4).says(why);
        assert!(!site.path("guard/h/trail").exists());
    }
}

#[test]
fn the_key_of_a_trail_that_is_there_moves_to_the_token() {
    let Some(site) = Site::new() else { return };
    site.configure("");
    site.begin();
    site.run("trail rewrap").exits(3).says("no token");
    let own = site.path("guard/h/vault.key");
    let backup = site.path("safe.key");
    fs::copy(&own, &backup).unwrap();
    site.configure(&site.token(""));
    site.opens_not("`pitser trail rewrap` has the token wrap it");

    // A key that is not the vault's is not wrapped.
    fs::write(site.path("other.key"), "5e".repeat(32)).unwrap();
    site.run("trail rewrap --from other.key")
        .exits(4)
        .says("does not open with this master key");
    assert!(own.exists() && !site.wrapped().exists());

    site.run("trail rewrap")
        .exits(0)
        .says("vault.key.wrapped")
        .says("destroy it in all backups");
    let key = fs::read_to_string(&backup).unwrap();
    assert!(!is_in(&site.path("guard"), key.trim_end()));
    site.opens();
    site.run("trail rewrap").exits(0);
    site.opens();
    let guardian = site.guard();
    site.run("guard scan").exits(0).says("1 rows compared");
    let busy = site.run("trail rewrap --from safe.key");
    busy.exits(3).says("another pitser writes this trail");
    guardian.stop();

    // A token that is lost: another one, and the copy from the safe.
    site.pkcs11_tool("--delete-object --type secrkey --label vault");
    site.make_key("vault", "AES:32", SAFE);
    site.opens_not("does not open with key \"vault\"");
    let said = site.run("trail rewrap --from safe.key --json").exits(0);
    assert!(said.json()["removed"].is_null());
    assert!(backup.exists());
    site.opens();
}
