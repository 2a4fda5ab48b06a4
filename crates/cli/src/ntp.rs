//! Whether the machine's clock follows a time source, as far as somebody tells.
//!
//! The kernel knows, but only a system call tells, and none of our dependencies makes
//! it. systemd-timesyncd touches a file at every synchronisation; chrony answers
//! `chronyc -c tracking`, whose last field is the leap status.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::UNIX_EPOCH;

use pitser_ksi::time::Second;

/// Who tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// Whatever runs on this machine.
    Machine,
    /// A file that is touched at every synchronisation.
    File(PathBuf),
    /// Nobody is asked.
    None,
}

/// Whether the clock follows a time source at `now`; `None`: nobody tells. Reads files
/// and may start a process.
pub(crate) fn synchronised(source: &Source, now: Second) -> Option<bool> {
    match source {
        Source::None => None,
        Source::File(path) => Some(touched(path, now).unwrap_or(false)),
        Source::Machine => touched(Path::new(TIMESYNCD), now).or_else(chrony),
    }
}

/// Whether a file was touched not long before `now`; `None` if there is none.
fn touched(path: &Path, now: Second) -> Option<bool> {
    let at = fs::metadata(path).and_then(|it| it.modified()).ok()?;
    let at = at.duration_since(UNIX_EPOCH).ok()?.as_secs();
    Some(now.since(Second(at)) <= RECENT_S)
}

fn chrony() -> Option<bool> {
    let told = Command::new("chronyc")
        .args(["-c", "tracking"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    told.status
        .success()
        .then(|| parse_tracking(&told.stdout))?
}

/// Fields by commas; the last is `Normal`, `Insert second`, `Delete second` or
/// `Not synchronised`.
fn parse_tracking(told: &[u8]) -> Option<bool> {
    let line = std::str::from_utf8(told).ok()?.lines().next()?;
    match line.rsplit(',').next()? {
        "Normal" | "Insert second" | "Delete second" => Some(true),
        "Not synchronised" => Some(false),
        _ => None,
    }
}

const TIMESYNCD: &str = "/run/systemd/timesync/synchronized";
/// timesyncd polls at least every 2048 s; three of them may fail.
const RECENT_S: u64 = 3 * 2048;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_tells_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("synchronized");
        let source = Source::File(path.clone());
        assert_eq!(synchronised(&source, Second(0)), Some(false));
        fs::write(&path, "").unwrap();
        let touched_at = fs::metadata(&path).unwrap().modified().unwrap();
        let at = Second(touched_at.duration_since(UNIX_EPOCH).unwrap().as_secs());
        assert_eq!(synchronised(&source, at), Some(true));
        assert_eq!(synchronised(&source, at.plus(RECENT_S + 1)), Some(false));
        assert_eq!(synchronised(&Source::None, at), None);
    }

    #[test]
    fn chrony_tells_in_its_last_field() {
        let line = |status: &str| {
            format!(
                "C0A80001,ntp.example,3,1700000000.1,0.1,0.2,0.3,-1.0,0.0,0.1,0.1,0.1,64.2,{status}\n"
            )
        };
        for (status, expected) in [
            ("Normal", Some(true)),
            ("Insert second", Some(true)),
            ("Not synchronised", Some(false)),
            ("something new", None),
        ] {
            assert_eq!(
                parse_tracking(line(status).as_bytes()),
                expected,
                "{status}"
            );
        }
        assert_eq!(parse_tracking(b""), None);
    }
}
