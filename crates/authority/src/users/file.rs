//! The file of users, with their keys encrypted.
//!
//! ```text
//! pitser users 1
//! key 5f3c9a0b1d2e4f60                                           which key file opens it
//! hospital level=20 rate=200 day=- month=500000 hash=SHA-256,SHA-512 enabled 8mB3…
//! ```
//! One line a user, fields separated by one space, `-` for no bound. The last field
//! is base64 of nonce (24 bytes) ‖ XChaCha20-Poly1305 of the user's key; the fields
//! before it, and the first line, are authenticated with it. So a copy of the file
//! is of no use without the key file, and without it nobody raises a quota, puts one
//! user's key on another or enables a user again, either. That a line was taken out,
//! or the whole file put back, it does not show.
//!
//! The key file is one line, `pitser-users-key-1 ` and 64 hexadecimal digits.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use data_encoding::{BASE64, HEXLOWER};
use pitser_disk::{Access, replace};
use pitser_ksi::hash::{Algorithm, hash};
use rand_core::{OsRng, RngCore};
use zeroize::Zeroizing;

use super::Allowance;
use crate::config::{MAX_LEVEL, Secret, User};

const VERSION: &str = "pitser users 1";
const KEY_VERSION: &str = "pitser-users-key-1 ";
const NONCE_LEN: usize = 24;
/// Longest file that is read, in bytes; some 40,000 users.
const MAX_LEN: u64 = 8 << 20;
/// Longest key of a user, in bytes.
pub const MAX_KEY_LEN: usize = 255;
/// Longest login in a file, in bytes.
pub const MAX_LOGIN_LEN: usize = 64;

/// A user as the file knows them.
#[derive(Debug, Clone)]
pub struct Record {
    /// Who, with which key, and how much.
    pub user: User,
    /// False: refused like somebody unknown, until enabled again.
    pub is_enabled: bool,
}

/// What the keys of users are encrypted with. `Debug` hides it.
#[derive(Clone)]
pub struct FileKey(Zeroizing<[u8; 32]>);

impl FileKey {
    /// A new one.
    pub fn generate() -> Self {
        let mut key = Zeroizing::new([0; 32]);
        OsRng.fill_bytes(&mut *key);
        Self(key)
    }

    /// Writes a new key file, readable by its owner alone. The caller makes sure
    /// that there is none: an old one opens what nothing else opens.
    ///
    /// # Errors
    /// The operating system's.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let digits = Zeroizing::new(HEXLOWER.encode(&*self.0));
        let text = Zeroizing::new(format!("{KEY_VERSION}{}\n", *digits));
        replace(path, text.as_bytes(), Access::Owner)
    }

    /// Reads a key file. `guarded_elsewhere` says that somebody else sees to it
    /// that nobody reads it, as systemd does for credentials; otherwise only its
    /// owner may have access to it.
    ///
    /// # Errors
    /// [`FileError`]; it never shows the content.
    pub fn read(path: &Path, guarded_elsewhere: bool) -> Result<Self, FileError> {
        let text = Zeroizing::new(read_capped(path, 1024)?);
        let mode = fs::metadata(path)
            .map_err(io_error("read", path))?
            .permissions()
            .mode();
        if mode & 0o077 != 0 && !guarded_elsewhere {
            return Err(FileError::Exposed {
                path: path.to_owned(),
            });
        }
        Self::parse(&text).ok_or_else(|| FileError::NoKey {
            path: path.to_owned(),
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let digits = text.trim_end().strip_prefix(KEY_VERSION)?;
        let bytes = Zeroizing::new(HEXLOWER.decode(digits.as_bytes()).ok()?);
        let mut key = Zeroizing::new([0; 32]);
        if bytes.len() != key.len() {
            return None;
        }
        key.copy_from_slice(&bytes);
        Some(Self(key))
    }

    /// What names this key in a file, and tells nothing of it.
    fn id(&self) -> String {
        let digest = hash(Algorithm::Sha256, &[b"pitser users key id", &*self.0]);
        HEXLOWER.encode(&digest.digest()[..8])
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&*self.0).into())
    }
}

impl fmt::Debug for FileKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FileKey(..)")
    }
}

/// Reads the file at `path`, which `key` opens.
///
/// # Errors
/// [`FileError`], with the line where there is one.
pub fn read(path: &Path, key: &FileKey) -> Result<Vec<Record>, FileError> {
    let text = read_capped(path, MAX_LEN)?;
    parse(&text, key).map_err(|(line, what)| FileError::Line {
        path: path.to_owned(),
        line,
        what,
    })
}

/// Replaces the file at `path`, durably and as a whole; readable by its owner alone.
///
/// # Errors
/// [`FileError::Login`], [`FileError::Key`]: nothing was written.
/// [`FileError::Io`]: it is as it was.
pub fn write(path: &Path, records: &[Record], key: &FileKey) -> Result<(), FileError> {
    let text = encode(records, key)?;
    replace(path, text.as_bytes(), Access::Owner).map_err(io_error("write", path))
}

fn encode(records: &[Record], key: &FileKey) -> Result<String, FileError> {
    let mut text = format!("{VERSION}\nkey {}\n", key.id());
    for record in records {
        let user = &record.user;
        if !is_login(&user.login) {
            return Err(FileError::Login {
                login: user.login.clone(),
            });
        }
        if user.key.expose().is_empty() || user.key.expose().len() > MAX_KEY_LEN {
            return Err(FileError::Key);
        }
        let shown = shown(record);
        let mut nonce = [0; NONCE_LEN];
        OsRng.fill_bytes(&mut nonce);
        let authenticated = authenticated(&shown);
        let payload = Payload {
            msg: user.key.expose(),
            aad: authenticated.as_bytes(),
        };
        // It fails for messages of 2^38 bytes alone.
        let sealed = key.cipher().encrypt(XNonce::from_slice(&nonce), payload);
        let sealed = sealed.map_err(|_| FileError::Key)?;
        let sealed = BASE64.encode(&[&nonce[..], &sealed].concat());
        text += &format!("{shown} {sealed}\n");
    }
    Ok(text)
}

fn shown(Record { user, is_enabled }: &Record) -> String {
    let bound = |bound: Option<u64>| bound.map_or("-".to_owned(), |bound| bound.to_string());
    let allowance = &user.allowance;
    let names: Vec<_> = allowance.algorithms.iter().map(|one| one.name()).collect();
    format!(
        "{} level={} rate={} day={} month={} hash={} {}",
        user.login,
        user.max_level,
        bound(allowance.rate.map(u64::from)),
        bound(allowance.per_day),
        bound(allowance.per_month),
        if names.is_empty() {
            "-".to_owned()
        } else {
            names.join(",")
        },
        if *is_enabled { "enabled" } else { "disabled" },
    )
}

fn authenticated(shown: &str) -> String {
    format!("{VERSION}\n{shown}")
}

/// Fails with the number of the line, counted from 1, and what is wrong with it.
fn parse(text: &str, key: &FileKey) -> Result<Vec<Record>, (usize, &'static str)> {
    let mut lines = (1..).zip(text.lines());
    if lines.next().is_none_or(|(_, line)| line != VERSION) {
        return Err((1, "this is no file of users, or one of another version"));
    }
    let (_, opened_by) = lines
        .next()
        .ok_or((2, "the name of the key file is missing"))?;
    if opened_by.strip_prefix("key ") != Some(&key.id()) {
        return Err((
            2,
            "another key file opens this; name that one in the configuration",
        ));
    }
    let mut records: Vec<Record> = Vec::new();
    for (number, line) in lines {
        let record = parse_line(line, key).map_err(|what| (number, what))?;
        if records
            .iter()
            .any(|one| one.user.login == record.user.login)
        {
            return Err((number, "this user has a line already; remove one"));
        }
        records.push(record);
    }
    Ok(records)
}

fn parse_line(line: &str, key: &FileKey) -> Result<Record, &'static str> {
    let malformed = "this is no line of a user; restore the file from a copy";
    let (shown, sealed) = line.rsplit_once(' ').ok_or(malformed)?;
    let (mut user, is_enabled) = parse_shown(shown).ok_or(malformed)?;
    let sealed = BASE64.decode(sealed.as_bytes()).map_err(|_| malformed)?;
    let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN).ok_or(malformed)?;
    let authenticated = authenticated(shown);
    let payload = Payload {
        msg: sealed,
        aad: authenticated.as_bytes(),
    };
    let opened = key.cipher().decrypt(XNonce::from_slice(nonce), payload);
    user.key = Secret::from(opened.map_err(
        |_| "this line was altered by hand; restore the file, and use `pitser authority user`",
    )?);
    Ok(Record { user, is_enabled })
}

fn parse_shown(shown: &str) -> Option<(User, bool)> {
    let mut fields = shown.split(' ');
    let login = fields.next().filter(|login| is_login(login))?;
    let mut named = |name: &str| fields.next()?.strip_prefix(name)?.strip_prefix('=');
    let max_level = named("level")?
        .parse()
        .ok()
        .filter(|level| *level <= MAX_LEVEL)?;
    let rate = bound(named("rate")?)?;
    let per_day = bound(named("day")?)?;
    let per_month = bound(named("month")?)?;
    let algorithms = match named("hash")? {
        "-" => Vec::new(),
        names => names
            .split(',')
            .map(Algorithm::from_name)
            .collect::<Option<_>>()?,
    };
    let is_enabled = match fields.next()? {
        "enabled" => true,
        "disabled" => false,
        _ => return None,
    };
    let user = User {
        max_level,
        allowance: Allowance {
            rate: rate.map(u32::try_from).transpose().ok()?,
            per_day,
            per_month,
            algorithms,
        },
        ..User::new(login, Vec::new())
    };
    fields.next().is_none().then_some((user, is_enabled))
}

/// `None` if it is malformed.
fn bound(text: &str) -> Option<Option<u64>> {
    match text {
        "-" => Some(None),
        digits => digits.parse().ok().map(Some),
    }
}

/// Whether a login can stand in a file, a URI and a log without quoting.
pub fn is_login(login: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_@".contains(&byte);
    !login.is_empty() && login.len() <= MAX_LOGIN_LEN && login.bytes().all(plain)
}

fn read_capped(path: &Path, most: u64) -> Result<String, FileError> {
    use std::io::Read as _;
    let read = || {
        let mut text = String::new();
        let file = fs::File::open(path)?;
        let length = file.take(most + 1).read_to_string(&mut text)? as u64;
        if length > most {
            return Err(io::Error::other("it is too long for what it should be"));
        }
        Ok(text)
    };
    read().map_err(io_error("read", path))
}

/// Why the users cannot be read or written. Never shows a key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// A line is not what was written.
    #[error("{}:{line}: {what}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong, and what to do.
        what: &'static str,
    },
    /// Others than the owner can read the key file.
    #[error("{} can be read by others; chmod 600 it, and consider all users' keys known", path.display())]
    Exposed {
        /// The key file.
        path: PathBuf,
    },
    /// The key file holds something else.
    #[error("{} is no key file of users; name the one that `pitser authority init` wrote", path.display())]
    NoKey {
        /// The key file.
        path: PathBuf,
    },
    /// A login that cannot stand in the file.
    #[error(
        "a login has 1 to {MAX_LOGIN_LEN} letters, digits and . - _ @, which {login:?} has not"
    )]
    Login {
        /// The login.
        login: String,
    },
    /// A user's key that cannot stand in the file.
    #[error("a user's key has 1 to {MAX_KEY_LEN} bytes")]
    Key,
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError::Io {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<Record> {
        let bounded = User {
            max_level: 3,
            allowance: Allowance {
                rate: Some(200),
                per_day: None,
                per_month: Some(500_000),
                algorithms: vec![Algorithm::Sha256, Algorithm::Sha512],
            },
            ..User::new("hospital.example", "s3cret")
        };
        vec![
            Record {
                user: bounded,
                is_enabled: true,
            },
            Record {
                user: User::new("clinic", "other"),
                is_enabled: false,
            },
        ]
    }

    fn same(a: &[Record], b: &[Record]) -> bool {
        let fields = |one: &Record| (shown(one), one.user.key.expose().to_vec());
        a.iter().map(fields).eq(b.iter().map(fields))
    }

    #[test]
    fn what_is_written_is_read_and_hides_the_keys() {
        let key = FileKey::generate();
        let text = encode(&records(), &key).unwrap();
        assert!(same(&parse(&text, &key).unwrap(), &records()));
        assert!(!text.contains("s3cret"));
        assert!(!text.contains(&BASE64.encode(b"s3cret")));
        assert!(text.contains(
            "hospital.example level=3 rate=200 day=- month=500000 hash=SHA-256,SHA-512 enabled "
        ));
        let again = encode(&records(), &key).unwrap();
        assert_ne!(text, again, "nonces are never used twice");
        let shown = format!("{:?} {key:?}", records());
        assert!(
            !shown.contains("s3cret") && !shown.contains("115, 51"),
            "{shown}"
        );
    }

    #[test]
    fn another_key_file_opens_nothing() {
        let text = encode(&records(), &FileKey::generate()).unwrap();
        let other = FileKey::generate();
        let (line, what) = parse(&text, &other).unwrap_err();
        assert!(line == 2 && what.contains("another key file"), "{what}");
        // Not even when the file says that it does.
        let forged = text.replacen(
            text.lines().nth(1).unwrap(),
            &format!("key {}", other.id()),
            1,
        );
        assert_eq!(parse(&forged, &other).unwrap_err().0, 3);
    }

    /// Exempt: nothing. Every byte of every line counts.
    #[test]
    fn no_byte_can_be_changed() {
        let key = FileKey::generate();
        let text = encode(&records(), &key).unwrap();
        for at in 0..text.len() - 1 {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let Ok(changed) = String::from_utf8(bytes) else {
                continue;
            };
            let read = parse(&changed, &key);
            assert!(read.is_err(), "byte {at}: {changed}");
        }
    }

    #[test]
    fn a_bound_or_a_key_is_not_moved_to_another_line() {
        let key = FileKey::generate();
        let text = encode(&records(), &key).unwrap();
        let raised = text.replace("month=500000", "month=-");
        assert_eq!(parse(&raised, &key).unwrap_err().0, 3);
        let enabled = text.replace("disabled", "enabled");
        assert_eq!(parse(&enabled, &key).unwrap_err().0, 4);
        let twice = format!("{text}{}\n", text.lines().nth(2).unwrap());
        assert_eq!(parse(&twice, &key).unwrap_err().0, 5);
    }

    #[test]
    fn logins_need_no_quoting() {
        for login in ["", "a b", "a\n", "ü", &"x".repeat(65)] {
            assert!(!is_login(login), "{login:?}");
            let record = Record {
                user: User::new(login, "k"),
                is_enabled: true,
            };
            assert!(encode(&[record], &FileKey::generate()).is_err());
        }
    }

    #[test]
    fn a_key_file_that_others_can_read_is_refused() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("users-key");
        let key = FileKey::generate();
        key.write(&path).unwrap();
        assert_eq!(FileKey::read(&path, false).unwrap().id(), key.id());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = FileKey::read(&path, false).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
        assert!(FileKey::read(&path, true).is_ok());
        fs::write(&path, "something else").unwrap();
        let error = FileKey::read(&path, true).unwrap_err();
        assert!(matches!(error, FileError::NoKey { .. }), "{error}");
    }
}
