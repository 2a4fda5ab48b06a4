//! A folder that loses power, runs full and rots, by a seed.

use super::folder::{Folder, Grows};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::rc::Rc;

/// Small numbers that follow from a seed (SplitMix64).
#[derive(Debug, Clone)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Below `bound`, which is not 0.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// What goes wrong with the n-th operation that changes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is not done, or in part; nothing works any more.
    PowerLoss,
    /// It is not done, or in part; others work.
    Full,
}

#[derive(Debug, Clone)]
pub(super) struct SimFolder(Rc<RefCell<Disk>>);

#[derive(Debug, Clone)]
struct Disk {
    files: BTreeMap<u64, Content>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    /// Changes of names since they were last made durable.
    renamed: Vec<(String, Option<u64>)>,
    next: u64,
    operations: u64,
    fault: Option<(u64, Fault)>,
    is_off: bool,
    random: Random,
}

#[derive(Debug, Clone, Default)]
struct Content {
    bytes: Vec<u8>,
    durable: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct SimFile {
    disk: Rc<RefCell<Disk>>,
    number: u64,
}

impl SimFolder {
    pub(super) fn new(seed: u64) -> Self {
        Self(Rc::new(RefCell::new(Disk {
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            renamed: Vec::new(),
            next: 0,
            operations: 0,
            fault: None,
            is_off: false,
            random: Random(seed),
        })))
    }

    /// The operation with this number, counted from the first on, fails.
    pub(super) fn fail(&self, operation: u64, fault: Fault) {
        self.0.borrow_mut().fault = Some((operation, fault));
    }

    pub(super) fn operations(&self) -> u64 {
        self.0.borrow().operations
    }

    /// What is there after the power came back: all that was durable, and of
    /// the rest some.
    pub(super) fn after_power_loss(&self) -> Self {
        let mut disk = self.0.borrow().clone();
        let kept = disk.random.below(disk.renamed.len() as u64 + 1) as usize;
        disk.names = disk.durable_names.clone();
        for (name, file) in disk.renamed.drain(..).take(kept) {
            match file {
                Some(file) => disk.names.insert(name, file),
                None => disk.names.remove(&name),
            };
        }
        disk.durable_names = disk.names.clone();
        for content in disk.files.values_mut() {
            content.lose(&mut disk.random);
        }
        (disk.fault, disk.is_off, disk.operations) = (None, false, 0);
        Self(Rc::new(RefCell::new(disk)))
    }

    /// The same files without faults.
    pub(super) fn repaired(&self) -> Self {
        let mut disk = self.0.borrow().clone();
        (disk.fault, disk.is_off) = (None, false);
        Self(Rc::new(RefCell::new(disk)))
    }

    /// Changes the bytes of a file behind everybody's back.
    pub(super) fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut disk = self.0.borrow_mut();
        let file = disk.names[name];
        let content = disk.files.get_mut(&file).unwrap();
        change(&mut content.bytes);
        content.durable.clone_from(&content.bytes);
    }

    pub(super) fn len(&self, name: &str) -> u64 {
        let disk = self.0.borrow();
        disk.files[&disk.names[name]].bytes.len() as u64
    }
}

impl Content {
    fn lose(&mut self, random: &mut Random) {
        let common = self.durable.len().min(self.bytes.len());
        if random.below(2) == 0 || self.bytes.len() < self.durable.len() {
            self.bytes.clone_from(&self.durable);
            return;
        }
        let rest = self.bytes.len() - common;
        self.bytes
            .truncate(common + random.below(rest as u64 + 1) as usize);
        // The length may have come to disk before the bytes.
        let torn = random.below((self.bytes.len() - common) as u64 + 1) as usize;
        let start = self.bytes.len() - torn;
        self.bytes[start..].fill(0);
        self.durable.clone_from(&self.bytes);
    }
}

impl Disk {
    /// Counts an operation. `Err` if it fails, with the part of it that is done, in 1/256.
    fn operate(&mut self) -> Result<(), (u64, io::Error)> {
        if self.is_off {
            return Err((0, off()));
        }
        self.operations += 1;
        match self.fault {
            Some((operation, fault)) if operation == self.operations => {
                self.is_off = fault == Fault::PowerLoss;
                let error = match fault {
                    Fault::PowerLoss => off(),
                    Fault::Full => io::ErrorKind::StorageFull.into(),
                };
                Err((self.random.below(257), error))
            }
            _ => Ok(()),
        }
    }

    fn name(&mut self, name: &str, file: Option<u64>) {
        match file {
            Some(file) => self.names.insert(name.to_owned(), file),
            None => self.names.remove(name),
        };
        self.renamed.push((name.to_owned(), file));
    }

    fn add(&mut self, name: &str) -> u64 {
        let file = self.next;
        self.next += 1;
        self.files.insert(file, Content::default());
        self.name(name, Some(file));
        file
    }
}

fn off() -> io::Error {
    io::Error::other("the power is off")
}

fn failed<T>(result: Result<T, (u64, io::Error)>) -> io::Result<T> {
    result.map_err(|(_, error)| error)
}

impl SimFolder {
    fn file(&self, number: u64) -> SimFile {
        SimFile {
            disk: Rc::clone(&self.0),
            number,
        }
    }
}

impl Folder for SimFolder {
    type File = SimFile;

    fn create(&self, name: &str) -> io::Result<SimFile> {
        let mut disk = self.0.borrow_mut();
        failed(disk.operate())?;
        let number = disk.add(name);
        Ok(self.file(number))
    }

    fn open(&self, name: &str) -> io::Result<Option<SimFile>> {
        let number = self.0.borrow().names.get(name).copied();
        Ok(number.map(|number| self.file(number)))
    }

    fn reopen(&self, name: &str, len: u64) -> io::Result<SimFile> {
        let mut disk = self.0.borrow_mut();
        failed(disk.operate())?;
        let number = match disk.names.get(name).copied() {
            Some(number) => number,
            None => disk.add(name),
        };
        let content = disk.files.get_mut(&number).unwrap();
        if (content.bytes.len() as u64) < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        content.bytes.truncate(len as usize);
        Ok(self.file(number))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        failed(disk.operate())?;
        let file = disk.names[from];
        // As one change: both or none survive.
        disk.names.remove(from);
        disk.name(to, Some(file));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        failed(disk.operate())?;
        disk.name(name, None);
        Ok(())
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.0.borrow().names.keys().cloned().collect())
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        failed(disk.operate())?;
        disk.renamed.clear();
        disk.durable_names = disk.names.clone();
        Ok(())
    }

    fn path(&self) -> &Path {
        Path::new("sim")
    }
}

impl Grows for SimFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.disk.borrow_mut();
        let done = disk.operate();
        let part = match &done {
            Ok(()) => bytes.len(),
            Err((part, _)) => bytes.len() * *part as usize / 256,
        };
        let content = disk.files.get_mut(&self.number).unwrap();
        content.bytes.extend_from_slice(&bytes[..part]);
        failed(done)
    }

    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        let disk = self.disk.borrow();
        if disk.is_off {
            return Err(off());
        }
        let at = at as usize;
        let there = disk.files[&self.number].bytes.get(at..at + bytes.len());
        bytes.copy_from_slice(there.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.disk.borrow().files[&self.number].bytes.len() as u64)
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.disk.borrow_mut();
        failed(disk.operate())?;
        let content = disk.files.get_mut(&self.number).unwrap();
        content.durable.clone_from(&content.bytes);
        Ok(())
    }
}
