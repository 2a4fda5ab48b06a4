//! The vault's master key, and the places where it may be.
//!
//! ```text
//! vault.key            in the trail's folder: 64 hexadecimal digits, made with the trail
//! a file elsewhere     the same, made by somebody else ([`Layout::with_vault_key`])
//! vault.key.wrapped    in the trail's folder, opened by a [`Keeper`] ([`Layout::with_keeper`])
//! ```
//! A keeper is a device that holds a key of its own and never gives it away. The
//! master key is made here, goes to the keeper once, and comes back each time that
//! the trail's keys are opened; it stands in no file.

use crate::disk::{self, At};
use crate::keys::{self, KeyError, random};
use crate::layout::{Layout, VaultKey};
use crate::vault::Vault;
use crate::write::{TrailError, take_lock};
use pitser_evidence::codec::Bytes32;
use pitser_evidence::commit::Key;
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// A wrapped key is at most so many bytes.
const WRAPPED_MAX: u64 = 4096;

/// Wraps the master key by a key that never leaves a device.
pub trait Keeper: fmt::Debug + Send + Sync {
    /// Wraps the master key of the trail `origin`: at most 4,096 bytes, which only
    /// [`Keeper::unwrap`] opens, and only for the same origin.
    ///
    /// # Errors
    /// [`KeeperError`].
    fn wrap(&self, origin: &str, master: &Key) -> Result<Vec<u8>, KeeperError>;

    /// Gives back what [`Keeper::wrap`] was given. Bytes that were altered, or
    /// belong to another trail, are an error, never another key.
    ///
    /// # Errors
    /// [`KeeperError`].
    fn unwrap(&self, origin: &str, wrapped: &[u8]) -> Result<Key, KeeperError>;
}

/// Why a keeper does not do it, and what to do; for people, without secrets.
#[derive(Debug, thiserror::Error)]
#[error("the vault's master key: {0}")]
pub struct KeeperError(pub String);

/// What [`move_to_keeper`] did.
#[derive(Debug)]
pub struct Moved {
    /// Where the wrapped key is now.
    pub wrapped: PathBuf,
    /// The file in the trail's folder that had the key, overwritten and removed.
    pub removed: Option<PathBuf>,
}

/// Has the keeper wrap and open a key that is for nothing, if there is a keeper: what
/// is wrong with it shows before a trail is begun.
///
/// # Errors
/// [`KeyError`].
pub fn try_keeper(layout: &Layout) -> Result<(), KeyError> {
    match layout.keeper() {
        Some(keeper) => wrap(keeper, "", &Key::new(random()?)).map(drop),
        None => Ok(()),
    }
}

/// Has the keeper wrap the master key of a trail that is there, and removes the file
/// that had it. The key is read from `from`, else from `vault.key` in the trail's
/// folder; `from` stays. Repeating it is harmless.
///
/// # Errors
/// [`TrailError`], if the key does not open the vault too; nothing is changed then.
pub fn move_to_keeper(layout: &Layout, from: Option<&Path>) -> Result<Moved, TrailError> {
    let keeper = layout.keeper().ok_or(KeyError::NoKeeper)?;
    let _lock = take_lock(layout)?;
    let origin = keys::origin(layout)?;
    let (own, wrapped) = (layout.vault_key(), layout.wrapped_key());
    if from.is_none() && !own.exists() && wrapped.exists() {
        open(layout, &origin)?;
        let removed = None;
        return Ok(Moved { wrapped, removed });
    }
    let master = read(from.unwrap_or(&own))?;
    Vault::open_read_only(&layout.vault(), &master)?;
    disk::replace(&wrapped, &wrap(keeper, &origin, &master)?)?;
    let removed = own.exists().then_some(own);
    if let Some(own) = &removed {
        disk::destroy(own)?;
    }
    Ok(Moved { wrapped, removed })
}

/// Makes the master key of the trail `origin`, unless it is there or somebody else's.
pub(crate) fn create(layout: &Layout, origin: &str) -> Result<(), KeyError> {
    if let Some(keeper) = layout.keeper() {
        let path = layout.wrapped_key();
        if !path.exists() {
            disk::replace(&path, &wrap(keeper, origin, &Key::new(random()?))?)?;
        }
    } else if layout.foreign_key().is_none() {
        let master = Zeroizing::new(format!("{}\n", Bytes32(random()?)));
        disk::replace(&layout.vault_key(), master.as_bytes())?;
    }
    Ok(())
}

/// The master key of the trail `origin`.
pub(crate) fn open(layout: &Layout, origin: &str) -> Result<Key, KeyError> {
    let Some(keeper) = layout.keeper() else {
        return match layout.foreign_key() {
            Some(VaultKey::File(path)) => read(path),
            Some(VaultKey::Absent(why)) => Err(KeyError::Absent(why.clone())),
            None if !layout.vault_key().exists() && layout.wrapped_key().exists() => {
                Err(KeyError::Wrapped(layout.wrapped_key()))
            }
            None => read(&layout.vault_key()),
        };
    };
    let path = layout.wrapped_key();
    let mut wrapped = Vec::new();
    match File::open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(KeyError::NotWrapped(path));
        }
        opened => opened.and_then(|file| file.take(WRAPPED_MAX).read_to_end(&mut wrapped)),
    }
    .at(&path, "cannot read")?;
    if layout.vault_key().exists() {
        tracing::warn!(
            file = %layout.vault_key().display(),
            "the vault's master key is in a file too, beside the one that the keeper opens; \
             `pitser trail rewrap` removes it"
        );
    }
    Ok(keeper.unwrap(origin, &wrapped)?)
}

/// Wraps a key, and sees that it can be had again.
fn wrap(keeper: &dyn Keeper, origin: &str, master: &Key) -> Result<Vec<u8>, KeyError> {
    let wrapped = keeper.wrap(origin, master)?;
    let opened = keeper.unwrap(origin, &wrapped)?;
    if opened.expose() != master.expose() || wrapped.len() as u64 > WRAPPED_MAX {
        let what = "what was wrapped does not come back as it was: nothing was written. Do not use this device";
        return Err(KeeperError(what.into()).into());
    }
    Ok(wrapped)
}

/// A master key that stands in a file.
fn read(path: &Path) -> Result<Key, KeyError> {
    let text = std::fs::read_to_string(path).map(Zeroizing::new);
    let text = text.at(path, "cannot read")?;
    let key: Result<Bytes32, _> = text.trim_end().parse();
    let key = key.map_err(|_| KeyError::Unreadable(path.to_owned()))?;
    Ok(Key::new(key.0))
}
