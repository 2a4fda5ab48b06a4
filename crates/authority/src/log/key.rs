//! The log's key: `log-key`, 64 hexadecimal digits and a line feed, the seed of
//! an Ed25519 key (RFC 8032), readable by the owner alone. Its name is the
//! configured origin.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use data_encoding::HEXLOWER;
use pitser_disk::{Access, replace};
use pitser_tlog::note::SigningKey;
use rand_core::{OsRng, RngCore};
use zeroize::Zeroizing;

use super::{LogError, io_error};

const KEY_FILE: &str = "log-key";

/// Makes a key in the data folder `dir`, unless there is one.
pub(crate) fn create_key(dir: &Path) -> Result<(), LogError> {
    let path = dir.join(KEY_FILE);
    match path.try_exists() {
        Ok(false) => {}
        Ok(true) => return Ok(()),
        Err(e) => return Err(io_error("look at", &path)(e)),
    }
    let mut seed = Zeroizing::new([0; 32]);
    OsRng.fill_bytes(&mut *seed);
    let mut text = Zeroizing::new(HEXLOWER.encode(&*seed));
    text.push('\n');
    replace(&path, text.as_bytes(), Access::Owner).map_err(io_error("write", &path))
}

/// The key in `dir` under the name `origin`. An authority that was made before
/// calendars had logs gets one now.
pub(crate) fn open_key(dir: &Path, origin: &str) -> Result<SigningKey, LogError> {
    let path = dir.join(KEY_FILE);
    let mode = match fs::metadata(&path) {
        Ok(found) => found.permissions().mode(),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            create_key(dir)?;
            0o600
        }
        Err(e) => return Err(io_error("read", &path)(e)),
    };
    if mode & 0o077 != 0 {
        return Err(LogError::Exposed { path });
    }
    let text = fs::read_to_string(&path)
        .map(Zeroizing::new)
        .map_err(io_error("read", &path))?;
    let seed = HEXLOWER.decode(text.trim_end().as_bytes());
    // Whatever is wrong with it, it is not shown.
    let seed = seed.map(Zeroizing::new).ok();
    let Some(seed) = seed
        .as_ref()
        .and_then(|seed| seed.as_slice().try_into().ok())
    else {
        return Err(LogError::BadKey { path });
    };
    SigningKey::from_seed(origin, seed)
        .map_err(|e| LogError::Config(format!("the origin {origin:?} names no key: {e}")))
}
