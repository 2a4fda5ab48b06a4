//! Runs fuzz targets without a fuzzer: over the committed corpus, and over what
//! some damage makes of it. So what the fuzzer found once stays found.
//!
//! Tests of several crates include this file: folders are those of the crate.

use std::{
    collections::BTreeSet,
    fmt::Display,
    fs,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// A test for each target, and one that none is left out.
macro_rules! replay {
    ($($name:ident,)*) => {
        $(#[test] fn $name() { replay::check(stringify!($name), targets::$name); })*

        #[test]
        fn no_target_is_left_out() {
            replay::are_all(&[$(stringify!($name)),*]);
        }
    };
}

/// Damaged inputs that each target is given; the fuzzer does the rest.
const DAMAGED: u64 = 10_000;

/// The names of all targets, as the files tell them, are `names`.
pub(crate) fn are_all(names: &[&str]) {
    let of_files = |folder: &str| -> BTreeSet<String> {
        let entries = entries(&fuzz().join(folder));
        let names = entries.iter().filter_map(|path| path.file_stem()?.to_str());
        names.map(str::to_owned).collect()
    };
    let expected: BTreeSet<String> = names.iter().map(|&name| name.into()).collect();
    assert_eq!(of_files("corpus"), expected);
    assert_eq!(of_files("fuzz_targets"), expected);
}

pub(crate) fn check(name: &str, target: fn(&[u8])) {
    // Targets measure the memory of the whole process.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);

    let corpus: Vec<Vec<u8>> = entries(&fuzz().join("corpus").join(name))
        .iter()
        .map(|path| {
            let bytes = fs::read(path).expect("it was listed");
            run(target, &bytes, &path.display());
            bytes
        })
        .collect();
    run(target, &[], &"nothing");
    for seed in 0..DAMAGED {
        let bytes = damaged(&corpus, &mut Random(seed));
        run(target, &bytes, &format_args!("{name}, seed {seed}"));
    }
}

/// Runs `target`. An input that it panics over is kept: it belongs in the corpus.
fn run(target: fn(&[u8]), bytes: &[u8], what: &dyn Display) {
    if let Err(cause) = panic::catch_unwind(AssertUnwindSafe(|| target(bytes))) {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("finding");
        fs::write(&kept, bytes).expect("cargo made that folder");
        eprintln!("found by {what}: {}", kept.display());
        panic::resume_unwind(cause);
    }
}

/// One of `corpus`, changed in a few places.
fn damaged(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = random.one_of(corpus).clone();
    for _ in 0..=random.below(3) {
        let (at, end) = random.range(bytes.len());
        match random.below(8) {
            0..=2 if at < bytes.len() => bytes[at] = random.below(256) as u8,
            3 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            4 => bytes.truncate(end),
            5 => drop(bytes.drain(at..end)),
            6 => {
                let twice = bytes[at..end].to_vec();
                bytes.splice(at..at, twice);
            }
            _ => {
                let other = random.one_of(corpus);
                let (from, to) = random.range(other.len());
                bytes.splice(at..end, other[from..to].iter().copied());
            }
        }
    }
    bytes
}

/// SplitMix64: the same numbers for the same seed, everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }

    fn one_of<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// A stretch of `len` bytes, more often short than long.
    fn range(&mut self, len: usize) -> (usize, usize) {
        let at = self.below(len + 1);
        let longest = 1 << self.below(12);
        (at, (at + self.below(longest) + 1).min(len))
    }
}

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// What lies in a folder, sorted.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<_> = fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("it can be listed").path())
        .collect();
    entries.sort();
    entries
}
