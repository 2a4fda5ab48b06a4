//! An append-only file of events that survives a crash.
//!
//! ```text
//! line = hex(SHA-256(json)[..8]) " " json "\n"
//! ```
//!
//! A crash can leave part of the last line, which is cut off when the file is
//! opened: whoever wrote it was not answered yet. Anything else that does not fit is
//! damage, and nothing is done to the file then; but where lines are not synced one
//! by one, power loss can take any of them, so they are left out ([`Care`]).

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use pitser_disk::{Access, replace};
use pitser_ksi::hash::{Algorithm, hash};
use serde_json::Value;

use super::{FleetError, io_error};

/// What becomes of lines that do not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Care {
    /// Nothing may be missing.
    Strict,
    /// What is missing comes again.
    Lenient,
}

#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    /// Bytes that are whole lines.
    len: u64,
    /// Making some of them durable failed: the system takes them for written.
    is_unsure: bool,
}

impl Journal {
    /// Opens the file, or makes an empty one; its events in their order.
    pub(super) fn open(path: &Path, care: Care) -> Result<(Self, Vec<Value>), FleetError> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                replace(path, b"", Access::Everybody).map_err(io_error("create", path))?;
                Vec::new()
            }
            Err(e) => return Err(io_error("read", path)(e)),
        };
        let (mut events, mut len) = (Vec::new(), 0);
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            match read(line) {
                Some(event) => events.push(event),
                // Only what was written last can be torn.
                None if len + line.len() == text.len() && !line.ends_with(b"\n") => break,
                None if care == Care::Lenient => {
                    tracing::warn!(path = %path.display(), "a damaged line is left out");
                }
                None => {
                    return Err(FleetError::Damaged {
                        path: path.to_owned(),
                        line: events.len() + 1,
                    });
                }
            }
            len += line.len();
        }
        let mut options = OpenOptions::new();
        let file = options.append(true).open(path);
        let mut journal = Self {
            path: path.to_owned(),
            file: file.map_err(io_error("open", path))?,
            len: len as u64,
            is_unsure: false,
        };
        // A crash may have left lines in the system's memory alone.
        write_again(path).map_err(io_error("write", path))?;
        if len < text.len() {
            tracing::warn!(path = %path.display(), "the end was torn by a crash, and is cut off");
            journal.cut().map_err(io_error("cut", path))?;
        }
        Ok((journal, events))
    }

    /// All events that are there, from the file.
    #[cfg(feature = "cluster")]
    pub(super) fn events(&self) -> Result<Vec<Value>, FleetError> {
        let text = fs::read(&self.path).map_err(io_error("read", &self.path))?;
        let whole = usize::try_from(self.len)
            .ok()
            .and_then(|len| text.get(..len));
        let damaged = |line| FleetError::Damaged {
            path: self.path.clone(),
            line,
        };
        let lines = whole
            .ok_or_else(|| damaged(1))?
            .split_inclusive(|byte| *byte == b'\n');
        let events = lines.enumerate();
        events
            .map(|(at, line)| read(line).ok_or_else(|| damaged(at + 1)))
            .collect()
    }

    /// Bytes of the file.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Appends one event; `is_durable`: it survives power loss once this is `Ok`,
    /// otherwise only the end of the process.
    ///
    /// # Errors
    /// [`FleetError::Io`]; the event is not there.
    pub(super) fn append(&mut self, event: &Value, is_durable: bool) -> Result<(), FleetError> {
        let line = written(event);
        let mut outcome = self.file.write_all(line.as_bytes());
        if is_durable {
            outcome = outcome.and_then(|()| self.sync());
        }
        if let Err(error) = outcome {
            // Should this fail too, the next line makes it a damaged one: say so then.
            let _ = self.cut();
            return Err(io_error("write", &self.path)(error));
        }
        self.len += line.len() as u64;
        Ok(())
    }

    /// Replaces everything by these events, durably.
    pub(super) fn replace(
        &mut self,
        events: impl Iterator<Item = Value>,
    ) -> Result<(), FleetError> {
        let text: String = events.map(|event| written(&event)).collect();
        replace(&self.path, text.as_bytes(), Access::Everybody)
            .map_err(io_error("write", &self.path))?;
        let file = OpenOptions::new().append(true).open(&self.path);
        self.file = file.map_err(io_error("open", &self.path))?;
        self.len = text.len() as u64;
        self.is_unsure = false;
        Ok(())
    }

    fn cut(&mut self) -> io::Result<()> {
        self.file.set_len(self.len)?;
        self.sync()
    }

    fn sync(&mut self) -> io::Result<()> {
        match std::mem::replace(&mut self.is_unsure, true) {
            true => write_again(&self.path)?,
            false => self.file.sync_data()?,
        }
        self.is_unsure = false;
        Ok(())
    }
}

/// Another handle: to this one a write anywhere is a write at the end.
fn write_again(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    pitser_disk::write_again(&file, 0)
}

fn written(event: &Value) -> String {
    let json = event.to_string();
    format!("{} {json}\n", checksum(json.as_bytes()))
}

fn read(line: &[u8]) -> Option<Value> {
    let line = line.strip_suffix(b"\n")?;
    let (sum, json) = line.split_at_checked(CHECKSUM_DIGITS)?;
    let json = json.strip_prefix(b" ")?;
    let is_whole = checksum(json).as_bytes() == sum;
    is_whole.then(|| serde_json::from_slice(json).ok())?
}

fn checksum(json: &[u8]) -> String {
    let hash = hash(Algorithm::Sha256, &[json]);
    HEXLOWER.encode(&hash.digest()[..CHECKSUM_DIGITS / 2])
}

const CHECKSUM_DIGITS: usize = 16;

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn whatever_a_crash_leaves_of_the_last_line_is_cut_off() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, events) = Journal::open(&path, Care::Strict).unwrap();
        assert!(events.is_empty());
        for number in 0..3 {
            journal.append(&json!({ "number": number }), true).unwrap();
        }
        let whole = fs::read(&path).unwrap();
        let second = whole.len() / 3 * 2;
        for len in second..whole.len() {
            fs::write(&path, &whole[..len]).unwrap();
            let (mut journal, events) = Journal::open(&path, Care::Strict).unwrap();
            assert_eq!(events.len(), 2, "{len}");
            journal.append(&json!({ "number": 2 }), false).unwrap();
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn damage_is_not_taken_for_a_crash() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, _) = Journal::open(&path, Care::Strict).unwrap();
        for number in 0..3 {
            journal.append(&json!({ "number": number }), true).unwrap();
        }
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut altered = whole.clone();
            altered[at] ^= 1;
            fs::write(&path, &altered).unwrap();
            match Journal::open(&path, Care::Strict) {
                Err(FleetError::Damaged { .. }) => {
                    assert_eq!(fs::read(&path).unwrap(), altered, "nothing was done to it");
                    let (_, rest) = Journal::open(&path, Care::Lenient).unwrap();
                    assert!((1..=2).contains(&rest.len()), "{at}: {rest:?}");
                }
                // Without its line feed the last line looks torn.
                Ok((_, events)) => assert_eq!((events.len(), at), (2, whole.len() - 1)),
                Err(e) => panic!("{at}: {e}"),
            }
        }
    }

    #[test]
    fn a_replaced_journal_goes_on() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, _) = Journal::open(&path, Care::Strict).unwrap();
        journal.append(&json!(1), true).unwrap();
        journal.replace([json!(2), json!(3)].into_iter()).unwrap();
        journal.append(&json!(4), true).unwrap();
        let (again, events) = Journal::open(&path, Care::Strict).unwrap();
        assert_eq!(events, [json!(2), json!(3), json!(4)]);
        #[cfg(feature = "cluster")]
        assert_eq!(journal.events().unwrap(), events);
        assert_eq!(again.len(), journal.len());
    }
}
