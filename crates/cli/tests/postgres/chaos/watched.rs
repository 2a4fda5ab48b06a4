//! What the model of a disk says of a small process, whose calls are known.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use super::disk::{Disk, Fault, is_there, strace};
use crate::common::Choices;

/// Where the watched test below writes.
const FOLDER: &str = "WATCHED_FOLDER";

/// Not a test: what `what_was_not_synced_is_lost` watches.
#[test]
#[ignore = "runs under strace, as a process of another test"]
fn watched() {
    use std::io::Write;
    let Ok(folder) = std::env::var(FOLDER) else {
        return;
    };
    let path = |name: &str| Path::new(&folder).join(name);
    let sync_folder = || fs::File::open(&folder).unwrap().sync_all().unwrap();
    let mut kept = fs::File::create(path("kept")).unwrap();
    kept.write_all(b"durable").unwrap();
    kept.sync_data().unwrap();
    fs::write(path("new"), b"replaced").unwrap();
    fs::File::open(path("new")).unwrap().sync_all().unwrap();
    fs::rename(path("new"), path("renamed")).unwrap();
    // The third of its kind, and the first that fails.
    let mut refused = fs::File::create(path("refused")).unwrap();
    refused.write_all(b"before ").unwrap();
    refused.sync_data().unwrap();
    refused.write_all(b"lost ").unwrap();
    refused.sync_data().unwrap_err();
    refused.write_all(b"after").unwrap();
    refused.sync_data().unwrap();
    fs::create_dir(path("folder")).unwrap();
    fs::write(path("unsynced"), [7; 10_000]).unwrap();
    sync_folder();
    kept.write_all(b" and not").unwrap();
    fs::write(path("folder/unnamed"), b"x").unwrap();
    fs::File::open(path("folder/unnamed"))
        .unwrap()
        .sync_all()
        .unwrap();
    fs::write(path("late"), b"x").unwrap();
    fs::remove_file(path("renamed")).unwrap();
}

#[test]
fn what_was_not_synced_is_lost() {
    if !is_there() {
        eprintln!("skipped: no strace here, or it may not watch processes");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (folder, log) = (dir.path().join("folder"), dir.path().join("log"));
    fs::create_dir(&folder).unwrap();
    let before = Disk::of(&folder, dir.path());
    let mut process = strace(&log, Some((Fault::Refusal, "fdatasync", 3)));
    process.arg(std::env::current_exe().unwrap());
    process.args(["--ignored", "--exact", "chaos::watched::watched"]);
    let output = process.env(FOLDER, &folder).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut disk = before;
    disk.replay(&log);
    disk.check();
    // Whatever the choices: what was synced is there.
    let mut seen = HashMap::<&str, Vec<bool>>::new();
    for seed in 1..200 {
        disk.cut_power(&mut Choices(seed));
        let kept = fs::read(folder.join("kept")).unwrap();
        assert!(kept.starts_with(b"durable"));
        // What failed once is not made durable by what succeeds later.
        let refused = fs::read(folder.join("refused")).unwrap();
        assert!(refused.starts_with(b"before ") && refused.ends_with(b"after"));
        seen.entry("refused")
            .or_default()
            .push(&refused[7..12] == b"lost ");
        seen.entry("kept").or_default().push(kept.len() > 7);
        if let Ok(renamed) = fs::read(folder.join("renamed")) {
            assert_eq!(renamed, b"replaced");
        }
        assert!(!folder.join("new").exists());
        for name in ["renamed", "late", "folder/unnamed"] {
            seen.entry(name)
                .or_default()
                .push(folder.join(name).exists());
        }
        let unsynced = fs::read(folder.join("unsynced")).unwrap();
        seen.entry("unsynced")
            .or_default()
            .push(unsynced == [7; 10_000]);
        let zeroes = unsynced.contains(&0) && unsynced.contains(&7);
        seen.entry("zeroes").or_default().push(zeroes);
    }
    for (name, seen) in seen {
        let times = seen.iter().filter(|there| **there).count();
        assert!(times > 0 && times < seen.len(), "{name}: {times}");
    }
}
