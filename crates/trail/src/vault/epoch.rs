//! The epoch key: between the master key and the keys of compartments, in a file of
//! its own beside `keys.db`, so that neither opens anything without the other.
//!
//! ```text
//! epoch-000001.key   "PITSERE1" ‖ nonce:24 ‖ the key, sealed under the master key:48
//! ```
//! `keys.db` says which epoch its keys are wrapped under. A file of a later one was
//! made for an erasure that did not come to be; a file of an earlier one shows that an
//! erasure is done in `keys.db`, but that its traces were perhaps not wiped yet. One that
//! a crash has left under another name, `….key.new~`, is destroyed with them.

use super::VaultError;
use super::aead::{self, NONCE_LEN};
use crate::disk::{self, At};
use pitser_evidence::commit::Key;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"PITSERE1";
const FILE_LEN: usize = MAGIC.len() + NONCE_LEN + 32 + aead::TAG_LEN;

/// One epoch and its key.
#[derive(Clone)]
pub(super) struct Epoch {
    pub(super) number: u64,
    pub(super) key: Key,
}

impl Epoch {
    /// The key of a vault that is begun, or was about to be.
    pub(super) fn first(
        folder: &Path,
        master: &Key,
        nonce: [u8; NONCE_LEN],
    ) -> Result<Self, VaultError> {
        match Self::numbers(folder)?[..] {
            [] => Self::create(folder, 1, master, nonce),
            [1] => Self::open(folder, 1, master),
            [.., other] => Err(VaultError::Epoch(path(folder, other))),
        }
    }

    /// Makes the key of an epoch; its file is durable on return.
    pub(super) fn create(
        folder: &Path,
        number: u64,
        master: &Key,
        nonce: [u8; NONCE_LEN],
    ) -> Result<Self, VaultError> {
        let key = Key::new(crate::keys::random()?);
        let mut sealed = *key.expose();
        let tag = aead::seal(master, &nonce, &label(number), &mut sealed);
        let bytes = [&MAGIC[..], &nonce, &sealed, &tag].concat();
        disk::replace(&path(folder, number), &bytes)?;
        Ok(Self { number, key })
    }

    /// Reads the key of an epoch.
    pub(super) fn open(folder: &Path, number: u64, master: &Key) -> Result<Self, VaultError> {
        let bytes = Self::stored(folder, number)?;
        let key = bytes
            .strip_prefix(MAGIC)
            .filter(|_| bytes.len() == FILE_LEN)
            .and_then(|rest| rest.split_first_chunk())
            .and_then(|(nonce, sealed)| aead::open(master, nonce, &label(number), sealed.to_vec()))
            .and_then(|key| key.try_into().ok())
            .map(Key::new)
            .ok_or_else(|| VaultError::Sealed(path(folder, number)))?;
        Ok(Self { number, key })
    }

    /// The key of an epoch as it is kept, sealed.
    pub(super) fn stored(folder: &Path, number: u64) -> Result<Vec<u8>, VaultError> {
        let path = path(folder, number);
        match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Err(VaultError::Epoch(path)),
            read => Ok(read.at(&path, "cannot read")?),
        }
    }

    /// Keeps the key of an epoch, sealed as it is, durably.
    pub(super) fn store(folder: &Path, number: u64, sealed: &[u8]) -> Result<(), VaultError> {
        Ok(disk::keep(&path(folder, number), sealed)?)
    }

    /// Epochs that have a file, ascending.
    pub(super) fn numbers(folder: &Path) -> Result<Vec<u64>, VaultError> {
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(folder).at(folder, "cannot list")? {
            let name = entry.at(folder, "cannot list")?.file_name();
            let number: Option<u64> = name
                .to_str()
                .and_then(|name| name.strip_prefix("epoch-")?.strip_suffix(".key"))
                .and_then(|number| number.parse().ok());
            numbers.extend(number);
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Overwrites the file of an epoch, and removes it.
    pub(super) fn destroy(folder: &Path, number: u64) -> Result<(), VaultError> {
        Ok(disk::destroy(&path(folder, number))?)
    }
}

fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("epoch-{number:06}.key"))
}

fn label(number: u64) -> [u8; 13] {
    let mut label = *b"epoch\0\0\0\0\0\0\0\0";
    label[5..].copy_from_slice(&number.to_be_bytes());
    label
}
