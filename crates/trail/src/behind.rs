//! Bytes that are made durable on a thread of their own, while whoever gave them goes
//! on: a disk takes milliseconds, and the kernel its time to copy.
//!
//! They are written in the order in which they were given. After one that failed no
//! other is written: what came later may rely on it.

use crate::disk::{At, DiskError};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// The thread. It is waited for when this is dropped.
#[derive(Debug)]
pub(crate) struct Behind {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// Where in a file bytes go.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Spot {
    /// The end of a file that was opened to append.
    End,
    /// So many bytes from its beginning.
    At(u64),
}

#[derive(Debug)]
struct Job {
    file: File,
    path: PathBuf,
    spot: Spot,
    bytes: Arc<Vec<u8>>,
    written: Sender<Result<(), DiskError>>,
}

/// Bytes on their way to the disk.
#[derive(Debug)]
pub(crate) struct Flight {
    path: PathBuf,
    bytes: Arc<Vec<u8>>,
    written: Receiver<Result<(), DiskError>>,
}

impl Behind {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the machine has none for it; `path` is whose bytes it would have written.
    pub(crate) fn start(path: &Path) -> Result<Self, DiskError> {
        let (jobs, waiting) = channel();
        let thread = std::thread::Builder::new().name("pitser-disk".into());
        let thread = thread.spawn(move || work(&waiting));
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread.at(path, "cannot start a thread that writes")?),
        })
    }

    /// Gives bytes to be written to a file, and to be made durable.
    ///
    /// # Errors
    /// If the file cannot be shared with the thread.
    pub(crate) fn send(
        &self,
        (file, path): (&File, &Path),
        spot: Spot,
        bytes: Vec<u8>,
    ) -> Result<Flight, DiskError> {
        let bytes = Arc::new(bytes);
        let (written, result) = channel();
        let job = Job {
            file: file.try_clone().at(path, "cannot open again")?,
            path: path.to_owned(),
            spot,
            bytes: Arc::clone(&bytes),
            written,
        };
        // That the thread has ended is told by the flight.
        let _ = self.jobs.as_ref().map(|jobs| jobs.send(job));
        Ok(Flight {
            path: path.to_owned(),
            bytes,
            written: result,
        })
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Flight {
    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Waits until they are durable, and gives their memory back, emptied.
    ///
    /// # Errors
    /// [`DiskError`] if they are not.
    pub(crate) fn land(self) -> Result<Vec<u8>, DiskError> {
        let gone = || Err(io::Error::other("what was to be written before it failed"));
        let told = self.written.recv();
        told.unwrap_or_else(|_| gone().at(&self.path, "cannot write"))?;
        let mut bytes = Arc::try_unwrap(self.bytes).unwrap_or_default();
        bytes.clear();
        Ok(bytes)
    }
}

fn work(jobs: &Receiver<Job>) {
    for job in jobs {
        let written = job.write();
        let has_failed = written.is_err();
        let Job {
            bytes,
            written: told,
            ..
        } = job;
        // Its memory is to be used again by whoever is told.
        drop(bytes);
        let _ = told.send(written);
        if has_failed {
            return;
        }
    }
}

impl Job {
    fn write(&self) -> Result<(), DiskError> {
        let mut file = &self.file;
        let written = match self.spot {
            Spot::End => file.write_all(&self.bytes),
            Spot::At(offset) => file.write_all_at(&self.bytes, offset),
        };
        written.at(&self.path, "cannot write")?;
        file.sync_data().at(&self.path, "cannot make durable")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;

    #[test]
    fn what_was_given_is_written_in_its_order_and_its_memory_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines");
        let appended = OpenOptions::new().append(true).create(true).open(&path);
        let file = appended.unwrap();
        let behind = Behind::start(&path).unwrap();
        let given = |bytes: &[u8]| behind.send((&file, &path), Spot::End, bytes.to_vec());
        let flights = [given(b"one ").unwrap(), given(b"two").unwrap()];
        assert_eq!(
            flights.each_ref().map(Flight::bytes),
            [&b"one "[..], b"two"]
        );
        for flight in flights {
            let spare = flight.land().unwrap();
            assert!(spare.is_empty() && spare.capacity() >= 3);
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"one two");
    }

    #[test]
    fn after_what_failed_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (full, path) = (Path::new("/dev/full"), dir.path().join("lines"));
        let device = OpenOptions::new().write(true).open(full).unwrap();
        let lines = File::create(&path).unwrap();
        let behind = Behind::start(&path).unwrap();
        let first = behind.send((&device, full), Spot::End, b"content".to_vec());
        let second = behind.send((&lines, &path), Spot::At(0), b"line".to_vec());
        assert!(first.unwrap().land().unwrap_err().is_full());
        let error = second.unwrap().land().unwrap_err();
        assert!(error.to_string().contains("before it failed"), "{error}");
        drop(behind);
        assert_eq!(std::fs::read(&path).unwrap(), b"");
    }
}
