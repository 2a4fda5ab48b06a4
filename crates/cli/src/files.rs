//! Reading and writing files, with errors that say what to do.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use pitser_disk::Access;
use pitser_evidence::file::MAX_FILE;
use pitser_ksi::hash::{Algorithm, Hasher, Imprint};

use crate::outcome::Failure;
use crate::output;

/// Stands for the standard input or output.
pub(crate) const STANDARD: &str = "-";

/// All bytes of `path`; `-` is the standard input. Longer than any file that we read as
/// a whole it may not be: it is not read then.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    read_at_most(path, MAX_FILE as u64)
}

fn read_at_most(path: &Path, max: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let mut file = open(path)?.take(max + 1);
    file.read_to_end(&mut bytes)
        .map_err(|e| unreadable(path, &e))?;
    match bytes.len() as u64 > max {
        true => Err(Failure::Input(format!(
            "{}: longer than {max} bytes, more than is read as a whole; `pitser log` reads logs and their \
             signatures piece by piece",
            path.display()
        ))),
        false => Ok(bytes),
    }
}

/// Writes a new file that its owner alone may read, durably.
pub(crate) fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let created = pitser_disk::create(path, bytes, Access::Owner);
    created.map_err(|e| Failure::Service(format!("{}: {e}", path.display())))
}

/// The secret file that key `name` of a configuration in folder `dir` has, and whether
/// somebody else guards it: `credential:NAME` is one that systemd hands over.
pub(crate) fn guarded(
    dir: &Path,
    name: &str,
    file: impl AsRef<Path>,
) -> Result<(PathBuf, bool), Failure> {
    match secret(dir, name, file)? {
        Secret::File(path) => Ok((path, false)),
        Secret::Handed(path) => Ok((path, true)),
        Secret::Absent(why) => Err(Failure::Input(why)),
    }
}

/// Where a secret is that a configuration names.
pub(crate) enum Secret {
    /// In a file.
    File(PathBuf),
    /// In a file that systemd has handed over.
    Handed(PathBuf),
    /// systemd has handed over nothing: it did not start this process. With what to do.
    Absent(String),
}

impl Secret {
    /// The file, or why there is none.
    pub(crate) fn path(self) -> Result<PathBuf, String> {
        match self {
            Self::File(path) | Self::Handed(path) => Ok(path),
            Self::Absent(why) => Err(why),
        }
    }
}

/// The secret that key `name` of a configuration in folder `dir` has.
pub(crate) fn secret(dir: &Path, name: &str, file: impl AsRef<Path>) -> Result<Secret, Failure> {
    let file = file.as_ref();
    let named = file
        .to_str()
        .and_then(|file| file.strip_prefix("credential:"));
    let Some(handed) = named else {
        return Ok(Secret::File(dir.join(file)));
    };
    if handed.is_empty() || handed.contains('/') {
        return Err(Failure::Input(format!(
            "{name}: a credential's name is the name of a file, no path"
        )));
    }
    Ok(match std::env::var_os("CREDENTIALS_DIRECTORY") {
        Some(folder) => Secret::Handed(Path::new(&folder).join(handed)),
        None => Secret::Absent(format!(
            "{name}: systemd has handed over no credentials. A unit gets them by LoadCredential=, and a command that \
             you run by `systemd-run --pipe -p LoadCredential=...` (docs/erasure.md, \"The keys\")"
        )),
    })
}

/// All of `path`, which must be UTF-8 text.
pub(crate) fn read_text(path: &Path) -> Result<String, Failure> {
    String::from_utf8(read(path)?).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Failure::Input(format!("{}: not UTF-8 text at byte {at}", path.display()))
    })
}

/// Whether a file begins with `magic`.
pub(crate) fn starts_with(path: &Path, magic: &[u8]) -> Result<bool, Failure> {
    let mut head = Vec::new();
    open(path)?
        .take(magic.len() as u64)
        .read_to_end(&mut head)
        .map_err(|e| unreadable(path, &e))?;
    Ok(head == magic)
}

/// The imprint of a document, whatever its size; `-` is the standard input.
pub(crate) fn hash(path: &Path, algorithm: Algorithm) -> Result<Imprint, Failure> {
    let mut hasher = Hasher::new(algorithm);
    read_through(path, |bytes| hasher.update(bytes))?;
    Ok(hasher.finish())
}

/// Hands over a document piece by piece, whatever its size, and gives its length in bytes;
/// `-` is the standard input.
pub(crate) fn read_through(path: &Path, mut take: impl FnMut(&[u8])) -> Result<u64, Failure> {
    let mut source = open(path)?;
    let mut buffer = vec![0; 64 * 1024];
    let mut read = 0;
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return Ok(read),
            Ok(length) => {
                take(&buffer[..length]);
                read += length as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(unreadable(path, &e)),
        }
    }
}

/// The folder of the values that stand beside an evidence file.
pub(crate) fn values_of(evidence: &Path) -> PathBuf {
    appended(evidence, ".values")
}

/// Writes a file as a whole, durably; `-` is the standard output. A file that
/// is there already is replaced only with `force`.
pub(crate) fn write(path: &Path, bytes: &[u8], force: bool) -> Result<(), Failure> {
    let mut file = NewFile::create(path, force)?;
    file.write(bytes)?;
    file.finish()
}

/// A file that is written piece by piece and bears its name only once it is whole
/// and durable; dropped before, it leaves nothing. `-` is the standard output.
#[derive(Debug)]
pub(crate) struct NewFile {
    path: PathBuf,
    target: Target,
}

#[derive(Debug)]
enum Target {
    Standard,
    /// A device or a pipe: there is nothing to take the place of.
    Stream(BufWriter<File>),
    /// Under another name in the same folder.
    Beside {
        name: PathBuf,
        file: BufWriter<File>,
        force: bool,
    },
    Done,
}

impl NewFile {
    /// Nothing is seen of it yet. A file that is there already is replaced only
    /// with `force`, and its permissions and links to it stay.
    pub(crate) fn create(path: &Path, force: bool) -> Result<Self, Failure> {
        let mut new = Self {
            path: path.to_owned(),
            target: Target::Standard,
        };
        if path.as_os_str() != STANDARD {
            new.open(force).map_err(|e| new.failure(&e))?;
        }
        Ok(new)
    }

    fn open(&mut self, force: bool) -> io::Result<()> {
        let open = |path: &Path, create: bool| {
            let file = OpenOptions::new().write(true).create_new(create).open(path);
            file.map(|file| BufWriter::with_capacity(BUFFER, file))
        };
        let there = fs::metadata(&self.path).ok();
        if there
            .as_ref()
            .is_some_and(|it| !it.is_file() && !it.is_dir())
        {
            self.target = Target::Stream(open(&self.path, false)?);
            return Ok(());
        }
        if there.is_some() {
            if !force {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            self.path = self.path.canonicalize()?;
        }
        let (name, file) = self.beside(|path| open(path, true))?;
        if let Some(there) = there {
            file.get_ref().set_permissions(there.permissions())?;
        }
        self.target = Target::Beside { name, file, force };
        Ok(())
    }

    /// A file beside it that nobody has. One that has its name may be left by a process that
    /// was killed and had the same number, as in a container each first one has.
    fn beside<T>(&self, open: impl Fn(&Path) -> io::Result<T>) -> io::Result<(PathBuf, T)> {
        let process = std::process::id();
        let mut nth = 0;
        loop {
            let name = match nth {
                0 => appended(&self.path, &format!(".{process}.new")),
                _ => appended(&self.path, &format!(".{process}-{nth}.new")),
            };
            match open(&name) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && nth < LEFT_OVER => nth += 1,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(io::Error::other(format!(
                        "{} and {LEFT_OVER} like it are left by runs that were killed: remove them",
                        name.display()
                    )));
                }
                opened => return Ok((name, opened?)),
            }
        }
    }

    /// Appends `bytes`.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let written = match &mut self.target {
            Target::Standard => return output::print_bytes(bytes),
            Target::Stream(file) | Target::Beside { file, .. } => file.write_all(bytes),
            Target::Done => Ok(()),
        };
        written.map_err(|e| self.failure(&e))
    }

    /// Makes it durable, then visible: whoever reads the path sees the old file or
    /// the new one.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        self.give_name().map_err(|e| self.failure(&e))
    }

    fn give_name(&mut self) -> io::Result<()> {
        let (name, file, force) = match &mut self.target {
            Target::Standard | Target::Done => return Ok(()),
            Target::Stream(file) => return file.flush(),
            Target::Beside { name, file, force } => (name, file, *force),
        };
        file.flush()?;
        file.get_ref().sync_all()?;
        match force {
            true => fs::rename(&*name, &self.path)?,
            false => pitser_disk::give_new_name(name, &self.path)?,
        }
        self.target = Target::Done;
        pitser_disk::sync_folder_of(&self.path)
    }

    fn failure(&self, error: &io::Error) -> Failure {
        let path = self.path.display();
        match error.kind() {
            io::ErrorKind::AlreadyExists => Failure::Input(format!(
                "{path} is there already; choose another name with -o, or --force to replace it"
            )),
            _ => Failure::Service(format!("cannot write {path}: {error}")),
        }
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Target::Beside { name, .. } = &self.target {
            // Half a file would pass for one; there is nobody left to tell.
            let _ = fs::remove_file(name);
        }
    }
}

/// So many files that others left are passed over.
const LEFT_OVER: u32 = 100;

/// Bytes written at once.
const BUFFER: usize = 256 * 1024;

/// `path` with `suffix` appended to its name.
pub(crate) fn appended(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
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

/// The data folder; a temporary one goes away with this value.
pub(crate) struct Folder {
    pub(crate) path: PathBuf,
    is_temporary: bool,
}

impl Folder {
    pub(crate) fn kept(path: &Path) -> Result<Self, Failure> {
        fs::create_dir_all(path).map_err(|e| {
            Failure::Input(format!(
                "cannot use {}: {e}; choose another --dir",
                path.display()
            ))
        })?;
        let path = path.canonicalize().map_err(Failure::service)?;
        Ok(Self {
            path,
            is_temporary: false,
        })
    }

    /// A new folder that nobody else can look into.
    pub(crate) fn temporary() -> Result<Self, Failure> {
        use std::os::unix::fs::DirBuilderExt as _;
        let mut random = [0; 8];
        getrandom::getrandom(&mut random)
            .map_err(|e| Failure::Service(format!("no random bytes: {e}")))?;
        let name = format!("pitser-{}", data_encoding::HEXLOWER.encode(&random));
        let path = std::env::temp_dir().join(name);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|e| {
                Failure::Service(format!("cannot make {}: {e}; give a --dir", path.display()))
            })?;
        Ok(Self {
            path,
            is_temporary: true,
        })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.is_temporary
            && let Err(e) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(folder = %self.path.display(), error = %e, "the temporary folder stays behind");
        }
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
        let mut half = NewFile::create(&path, true).unwrap();
        half.write(b"half").unwrap();
        drop(half);
        assert_eq!(read(&path).unwrap(), b"three");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_run_left_is_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.ksig");
        let left = appended(&path, &format!(".{}.new", std::process::id()));
        fs::write(&left, b"half").unwrap();
        write(&path, b"one", false).unwrap();
        assert_eq!(read(&path).unwrap(), b"one");
        assert_eq!(read(&left).unwrap(), b"half");
    }

    #[test]
    fn no_more_is_read_than_may_be() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("five");
        write(&path, b"bytes", false).unwrap();
        assert_eq!(read_at_most(&path, 5).unwrap(), b"bytes");
        // One that has no end, too.
        for path in [&path, Path::new("/dev/zero")] {
            let refused = read_at_most(path, 4).unwrap_err();
            assert_eq!(refused.code(), 3);
            assert!(refused.to_string().contains("longer than 4"), "{refused}");
        }
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

    #[test]
    fn a_temporary_folder_goes_away() {
        let folder = Folder::temporary().unwrap();
        let path = folder.path.clone();
        assert!(path.is_dir());
        drop(folder);
        assert!(!path.exists());
    }
}
