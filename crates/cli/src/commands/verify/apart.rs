//! Values that stand in files beside an evidence file, compared with what it commits to.

use std::fs;
use std::path::Path;

use pitser_evidence::Evidence;
use pitser_evidence::apart::{self, Apart};

use crate::files;
use crate::outcome::Failure;
use crate::output::{State, Step, one_line, plural};
use crate::tree::{Map, Tree};

/// What is beside an evidence file.
pub(super) struct Compared<'p> {
    folder: &'p Path,
    /// Files with what was sealed, and their bytes.
    same: u64,
    bytes: u64,
    /// Values whose file is not there.
    missing: u64,
    /// Files that bear the name of a value, and are of none.
    strange: u64,
    /// The first value whose file has something else.
    other: Option<String>,
}

/// Compares the files in `folder` with what the evidence says of them; `None` if it says
/// nothing of any.
pub(super) fn compare<'p>(
    evidence: &Evidence,
    folder: &'p Path,
) -> Result<Option<Compared<'p>>, Failure> {
    let mut compared = Compared {
        folder,
        same: 0,
        bytes: 0,
        missing: 0,
        strange: named(folder),
        other: None,
    };
    let mut is_none = true;
    for part in evidence.apart() {
        is_none = false;
        let path = folder.join(part.file_name());
        // Whoever packed the folder may have put something without an end there.
        match fs::symlink_metadata(&path) {
            Ok(there) if there.is_file() => {}
            Ok(_) => return Err(Failure::Input(format!("{}: not a file", path.display()))),
            Err(_) => {
                compared.missing += 1;
                continue;
            }
        }
        compared.strange = compared.strange.saturating_sub(1);
        let mut check = part.check();
        let bytes = files::read_through(&path, |bytes| check.update(bytes))?;
        match check.matches() {
            true => {
                compared.same += 1;
                compared.bytes += bytes;
            }
            false => {
                compared.other.get_or_insert_with(|| what(&part, &path));
            }
        }
    }
    Ok((!is_none).then_some(compared))
}

fn what(part: &Apart<'_>, path: &Path) -> String {
    let (seq, path) = (part.seq, path.display());
    let what = match part.column {
        Some((_, name)) => format!("the value of column {}", one_line(name)),
        None => "the message".to_owned(),
    };
    format!("line {seq}: {path} is not {what} that was sealed")
}

/// How many files in a folder bear the name of a value.
fn named(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let named = files.filter(|file| file.file_name().to_str().is_some_and(apart::is_file_name));
    named.count() as u64
}

impl Compared<'_> {
    /// Whether a file has something else than was sealed.
    pub(super) fn is_broken(&self) -> bool {
        self.other.is_some()
    }

    pub(super) fn step(&self) -> Step {
        if let Some(other) = &self.other {
            return Step::new("files", State::Broken, format!("EVD-02 {other}"));
        }
        let folder = self.folder.display();
        let mut text = match self.same {
            0 => format!("no value stands in {folder}"),
            same => format!(
                "{} in {folder}, {} bytes, what was sealed",
                plural(same, "value"),
                self.bytes
            ),
        };
        if self.missing > 0 {
            text += &format!("; {} not there", self.missing);
        }
        if self.strange > 0 {
            text += &format!(
                "; {} there of which the evidence says nothing",
                plural(self.strange, "file")
            );
        }
        Step::new("files", State::Matches, text)
    }

    pub(super) fn details(&self) -> Tree {
        Tree::Map(
            Map::new()
                .with("folder", self.folder.display().to_string())
                .with("matching", self.same)
                .with("bytes", self.bytes)
                .with("missing", self.missing)
                .with("unknown", self.strange),
        )
    }
}
