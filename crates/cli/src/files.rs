//! Reading and writing files, with errors that say what to do.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use pitser_ksi::hash::{Algorithm, Hasher, Imprint};

use crate::outcome::Failure;
use crate::output;

/// Stands for the standard input or output.
pub(crate) const STANDARD: &str = "-";

/// All bytes of `path`; `-` is the standard input.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    open(path)?
        .read_to_end(&mut bytes)
        .map_err(|e| unreadable(path, &e))?;
    Ok(bytes)
}

/// All of `path`, which must be UTF-8 text.
pub(crate) fn read_text(path: &Path) -> Result<String, Failure> {
    String::from_utf8(read(path)?).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Failure::Input(format!("{}: not UTF-8 text at byte {at}", path.display()))
    })
}

/// The imprint of a document, whatever its size; `-` is the standard input.
pub(crate) fn hash(path: &Path, algorithm: Algorithm) -> Result<Imprint, Failure> {
    let mut source = open(path)?;
    let mut hasher = Hasher::new(algorithm);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(length) => hasher.update(&buffer[..length]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(unreadable(path, &e)),
        }
    }
}

/// Writes a file as a whole, durably; `-` is the standard output. A file that
/// is there already is replaced only with `force`.
pub(crate) fn write(path: &Path, bytes: &[u8], force: bool) -> Result<(), Failure> {
    if path.as_os_str() == STANDARD {
        return output::print_bytes(bytes);
    }
    let written = if force {
        replace(path, bytes)
    } else {
        create(path, bytes)
    };
    written.map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => Failure::Input(format!(
            "{} is there already; choose another name with -o, or --force to replace it",
            path.display()
        )),
        _ => Failure::Service(format!("cannot write {}: {e}", path.display())),
    })
}

/// `path` with `suffix` appended to its name.
pub(crate) fn appended(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if written.is_err() {
        // Half a file would pass for one; the error that matters is the first.
        let _ = fs::remove_file(path);
    }
    written
}

/// Whoever reads `path` sees the old file or the new one.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = appended(path, &format!(".{}.new", std::process::id()));
    create(&beside, bytes)?;
    fs::rename(&beside, path).inspect_err(|_| _ = fs::remove_file(&beside))
}

fn open(path: &Path) -> Result<Box<dyn Read>, Failure> {
    if path.as_os_str() == STANDARD {
        return Ok(Box::new(io::stdin().lock()));
    }
    let file = File::open(path).map_err(|e| unreadable(path, &e))?;
    Ok(Box::new(file))
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let text = format!("cannot read {}: {error}", path.display());
    match error.kind() {
        io::ErrorKind::NotFound
        | io::ErrorKind::PermissionDenied
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory => Failure::Input(text),
        _ => Failure::Service(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_overwritten_unless_forced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.ksig");
        write(&path, b"one", false).unwrap();
        let refusal = write(&path, b"two", false).unwrap_err();
        assert_eq!(refusal.code(), 3);
        assert!(refusal.to_string().contains("--force"), "{refusal}");
        assert_eq!(read(&path).unwrap(), b"one");
        write(&path, b"three", true).unwrap();
        assert_eq!(read(&path).unwrap(), b"three");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn hashes_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("big");
        let bytes = vec![7; 200_000];
        write(&path, &bytes, false).unwrap();
        let expected = pitser_ksi::hash::hash(Algorithm::Sha512, &[&bytes]);
        assert_eq!(hash(&path, Algorithm::Sha512).unwrap(), expected);
        assert_eq!(
            hash(&dir.path().join("absent"), Algorithm::Sha512)
                .unwrap_err()
                .code(),
            3
        );
    }
}
