//! What the map's store asks of a file system, so that tests can take its place.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A folder of files that grow and are never changed.
pub trait Folder: fmt::Debug {
    /// An open file.
    type File: Grows;

    /// A new file, without bytes, in place of one that has the name.
    ///
    /// # Errors
    /// What the system says.
    fn create(&self, name: &str) -> io::Result<Self::File>;

    /// An existing file, to read. `None` if there is none of the name.
    ///
    /// # Errors
    /// What the system says.
    fn open(&self, name: &str) -> io::Result<Option<Self::File>>;

    /// A file to go on with after its first `len` bytes; new if there is none.
    ///
    /// # Errors
    /// What the system says, and if the file is shorter.
    fn reopen(&self, name: &str, len: u64) -> io::Result<Self::File>;

    /// Gives a file another name, in place of one that has it.
    ///
    /// # Errors
    /// What the system says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file; it may be gone already.
    ///
    /// # Errors
    /// What the system says.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Names of all files.
    ///
    /// # Errors
    /// What the system says.
    fn names(&self) -> io::Result<Vec<String>>;

    /// Makes names durable: once `Ok`, they survive power loss.
    ///
    /// # Errors
    /// What the system says.
    fn sync(&self) -> io::Result<()>;

    /// Where the folder is, for messages.
    fn path(&self) -> &Path;
}

/// A file that grows.
pub trait Grows: fmt::Debug {
    /// Adds bytes at the end.
    ///
    /// # Errors
    /// What the system says; some of the bytes may be there then.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Fills `bytes` from `at` on.
    ///
    /// # Errors
    /// What the system says, and if the file is shorter.
    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()>;

    /// Length in bytes.
    ///
    /// # Errors
    /// What the system says.
    fn length(&self) -> io::Result<u64>;

    /// Makes the bytes durable: once `Ok`, they survive power loss.
    ///
    /// # Errors
    /// What the system says.
    fn sync(&self) -> io::Result<()>;
}

/// A folder of the operating system's.
#[derive(Debug, Clone)]
pub struct OsFolder(PathBuf);

impl OsFolder {
    /// The folder at `path`, which exists, or will before anything is written.
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }
}

impl Folder for OsFolder {
    type File = File;

    fn create(&self, name: &str) -> io::Result<File> {
        // Not truncated: a reader may have the old one open.
        self.remove(name)?;
        options().create_new(true).open(self.0.join(name))
    }

    fn open(&self, name: &str) -> io::Result<Option<File>> {
        match File::open(self.0.join(name)) {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn reopen(&self, name: &str, len: u64) -> io::Result<File> {
        let file = options().create(true).open(self.0.join(name))?;
        if file.metadata()?.len() < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        file.set_len(len)?;
        Ok(file)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.0.join(from), self.0.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.0.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(&self.0) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.append(true).read(true).mode(0o600);
    options
}

impl Grows for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        io::Write::write_all(self, bytes)
    }

    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.read_exact_at(bytes, at)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
