//! A trail's secret keys at rest, and the pseudonyms they make.

use crate::disk::{self, At, DiskError};
use crate::layout::Layout;
use crate::master::{self, KeeperError};
use crate::recent::Recent;
use pitser_evidence::codec::Bytes32;
use pitser_evidence::commit::{Key, patient_alpha};
use pitser_evidence::line::Patient;
use pitser_evidence::vrf;
use pitser_tlog::note::SigningKey;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

/// Everything secret about one trail, the vault's master key included.
pub struct Keys {
    origin: String,
    log: SigningKey,
    vrf: vrf::SecretKey,
    master: Key,
    tables: BTreeMap<String, Key>,
    inputs: Key,
    pseudonyms: RefCell<Recent<String, Patient, REMEMBERED>>,
}

/// Pseudonyms that stay in memory at least, and half of those that do at most: some hundred
/// bytes each, and a scalar multiplication for one that is not there. A nation's patients.
const REMEMBERED: usize = 1 << 20;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u8,
    origin: String,
    log_seed: Bytes32,
    vrf_seed: Bytes32,
    inputs: Bytes32,
    tables: BTreeMap<String, Bytes32>,
}

/// Why keys cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A file cannot be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A file is not what it should be. Its content is never shown.
    #[error(
        "{0}: not a key file of this trail. Restore it from your backup of the keys: without it nothing sealed can be opened"
    )]
    Unreadable(std::path::PathBuf),
    /// Who keeps the master key does not give it.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// A keeper is needed and none is configured.
    #[error("no token for the vault's master key is configured: write [source.vault_token]")]
    NoKeeper,
    /// The master key is to be opened by a keeper, who has not wrapped it.
    #[error(
        "{}: it is missing. If the vault's master key is in a file still, `pitser trail rewrap` has the token wrap it; \
         else restore this file from your backup: without it no content can be opened", .0.display()
    )]
    NotWrapped(std::path::PathBuf),
    /// The master key is wrapped, and nobody is configured who opens it.
    #[error(
        "{}: the vault's master key is wrapped by a token; name that token under [source.vault_token]", .0.display()
    )]
    Wrapped(std::path::PathBuf),
    /// The master key is in a file that this process cannot have, and why.
    #[error("{0}")]
    Absent(String),
    /// The system has no random numbers.
    #[error("the system gave no random numbers: {0}")]
    Random(getrandom::Error),
}

impl Keys {
    /// Makes new keys for the trail `origin` and stores them durably.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn create(layout: &Layout, origin: &str, tables: &[String]) -> Result<Self, KeyError> {
        let mut keyed = BTreeMap::new();
        for table in tables {
            keyed.insert(table.clone(), Bytes32(random()?));
        }
        let stored = Stored {
            version: 1,
            origin: origin.to_owned(),
            log_seed: Bytes32(random()?),
            vrf_seed: Bytes32(random()?),
            inputs: Bytes32(random()?),
            tables: keyed,
        };
        let json = serde_json::to_vec_pretty(&stored).expect("strings and maps with string keys");
        master::create(layout, origin)?;
        disk::replace(&layout.keys(), &json)?;
        Self::open(layout)
    }

    /// Reads the keys of a trail.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn open(layout: &Layout) -> Result<Self, KeyError> {
        let path = layout.keys();
        let unreadable = || KeyError::Unreadable(path.clone());
        let stored = stored(layout)?;
        let master = master::open(layout, &stored.origin)?;
        Ok(Self {
            log: SigningKey::from_seed(&stored.origin, &stored.log_seed.0)
                .map_err(|_| unreadable())?,
            vrf: vrf::SecretKey::from_seed(&stored.vrf_seed.0),
            master,
            tables: stored
                .tables
                .into_iter()
                .map(|(name, key)| (name, Key::new(key.0)))
                .collect(),
            inputs: Key::new(stored.inputs.0),
            origin: stored.origin,
            pseudonyms: RefCell::default(),
        })
    }

    /// Name of the trail.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The key that signs heads and evidence files.
    pub fn log(&self) -> &SigningKey {
        &self.log
    }

    /// The public half of the pseudonym key.
    pub fn vrf_public(&self) -> vrf::PublicKey {
        self.vrf.public()
    }

    /// The vault's master key.
    pub fn master(&self) -> &Key {
        &self.master
    }

    /// The HMAC key of a table. Resources that no guarded table holds, but
    /// that audit events may name, get keys derived from the inputs' key.
    pub fn table(&self, table: &str) -> Key {
        match self.tables.get(table) {
            Some(key) => key.clone(),
            None => Key::new(self.inputs.derive(&[b"table\0", table.as_bytes()])),
        }
    }

    /// Stable opaque name of a raw message from an input, for `pos`.
    pub fn message_id(&self, source: &str, raw: &[u8]) -> Bytes32 {
        Bytes32(
            self.inputs
                .derive(&[b"message\0", source.as_bytes(), b"\0", raw]),
        )
    }

    /// The pseudonym of a patient identifier. Those that were asked for lately are remembered.
    pub fn pseudonym(&self, identifier: &str) -> Patient {
        if let Some(known) = self.pseudonyms.borrow_mut().get(identifier) {
            return known;
        }
        let pseudonym = self.vrf.pseudonym(&patient_alpha(&self.origin, identifier));
        let patient = Patient::Pseudonym(Bytes32(pseudonym));
        self.pseudonyms
            .borrow_mut()
            .insert(identifier.to_owned(), patient);
        patient
    }

    /// Forgets an identifier that was looked up.
    pub(crate) fn forget(&self, identifier: &str) {
        self.pseudonyms.borrow_mut().remove(identifier);
    }

    /// The proof that a pseudonym belongs to an identifier.
    pub fn prove_pseudonym(&self, identifier: &str) -> [u8; vrf::PROOF_LEN] {
        self.vrf.prove(&patient_alpha(&self.origin, identifier)).1
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys(of {})", self.origin)
    }
}

/// The trail's name, without its keys.
pub(crate) fn origin(layout: &Layout) -> Result<String, KeyError> {
    stored(layout).map(|stored| stored.origin)
}

fn stored(layout: &Layout) -> Result<Stored, KeyError> {
    let path = layout.keys();
    let json = std::fs::read(&path).at(&path, "cannot read")?;
    serde_json::from_slice(&json).map_err(|_| KeyError::Unreadable(path))
}

/// Fresh random bytes from the system.
///
/// # Errors
/// [`KeyError::Random`].
pub(crate) fn random<const N: usize>() -> Result<[u8; N], KeyError> {
    let mut bytes = [0; N];
    getrandom::getrandom(&mut bytes).map_err(KeyError::Random)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys that remember a pseudonym that is none of these identifiers'.
    fn remembering(identifiers: impl Iterator<Item = String>) -> (Keys, Patient) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let keys = Keys::create(&layout, "test.example/keys", &[]).unwrap();
        let remembered = Patient::Pseudonym(Bytes32([7; 32]));
        let mut pseudonyms = keys.pseudonyms.borrow_mut();
        identifiers.for_each(|identifier| pseudonyms.insert(identifier, remembered));
        drop(pseudonyms);
        (keys, remembered)
    }

    #[test]
    fn identifiers_do_not_pile_up() {
        let (keys, remembered) = remembering((0..=2 * REMEMBERED).map(|n| n.to_string()));
        let newest = (2 * REMEMBERED).to_string();
        assert_eq!(keys.pseudonym(&newest), remembered);
        assert_ne!(keys.pseudonym("0"), remembered, "it is forgotten");
    }

    #[test]
    fn who_is_erased_is_forgotten() {
        let (keys, remembered) = remembering((0..=REMEMBERED).map(|n| n.to_string()));
        let newest = REMEMBERED.to_string();
        for identifier in ["0", &newest] {
            keys.forget(identifier);
            assert_ne!(keys.pseudonym(identifier), remembered, "{identifier}");
        }
        assert_eq!(keys.pseudonym("1"), remembered, "nobody else is");
    }
}
