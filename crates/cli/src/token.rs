//! The vault's master key behind a PKCS#11 token: an AES key that the token made and
//! never gives away wraps it by AES-GCM (`CKM_AES_GCM`).
//!
//! ```text
//! {"version":1,"mechanism":"CKM_AES_GCM","iv":"24 digits","sealed":"96 digits"}
//! ```
//! `iv` and `sealed` are hexadecimal; `sealed` is 32 bytes and the tag of 16, and the
//! associated data is `pitser/v1/vault-key\0` followed by the trail's origin. The file
//! is accepted only if writing it gives the same bytes.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::AuthPin;
use data_encoding::HEXLOWER;
use pitser_evidence::commit::Key;
use pitser_guardian::config::VaultToken;
use pitser_trail::master::{Keeper, KeeperError};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

const MECHANISM: &str = "CKM_AES_GCM";
const IV_LEN: usize = 12;
const TAG_BITS: u64 = 128;
const KEY_LEN: usize = 32;
/// A file with a PIN is at most so many bytes.
const PIN_MAX: u64 = 1024;

/// What all keepers of this process share. One at a time has it, from C_Initialize to
/// C_Finalize, so that nobody meets another's login.
static SHARED: Mutex<Shared> = Mutex::new(Shared {
    libraries: BTreeMap::new(),
    wrong_pins: BTreeMap::new(),
});

struct Shared {
    /// They stay loaded: some do not bear being loaded twice.
    libraries: BTreeMap<PathBuf, Pkcs11>,
    wrong_pins: WrongPins,
}

/// By library and token, with why. Such a PIN is not tried again: a guardian that tries
/// to start again and again would lock the token.
type WrongPins = BTreeMap<(PathBuf, String), (Zeroizing<String>, String)>;

/// Who wraps and opens the master key of one source.
#[derive(Debug)]
pub(crate) struct TokenKeeper {
    config: VaultToken,
    pin: Result<PathBuf, String>,
    /// The key that was opened last, of which origin and from what. A guardian that
    /// opens its trail again, as after an outage of the database, needs no token for it.
    opened: Mutex<Option<(String, Vec<u8>, Key)>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wrapped {
    version: u8,
    mechanism: String,
    iv: String,
    sealed: String,
}

impl TokenKeeper {
    /// Nothing is loaded or asked yet. `pin` is the file with the PIN, or why there is none.
    pub(crate) fn new(config: &VaultToken, pin: Result<PathBuf, String>) -> Self {
        Self {
            config: config.clone(),
            pin,
            opened: Mutex::default(),
        }
    }

    /// What is done with the key, in a session that is logged in.
    fn with_key<T>(
        &self,
        act: impl FnOnce(&Session, ObjectHandle) -> Result<T, String>,
    ) -> Result<T, String> {
        let path = &self.config.pkcs11;
        let mut shared = held(&SHARED);
        let Shared {
            libraries,
            wrong_pins,
        } = &mut *shared;
        let library = match libraries.get(path) {
            Some(library) => library.clone(),
            None => libraries.entry(path.clone()).or_insert(load(path)?).clone(),
        };
        let flags = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
        let started = library.initialize(flags);
        started.map_err(|e| format!("{}: {}", path.display(), told(&e)))?;
        let library = Initialised(library);
        let (slot, info) = self.find_token(&library.0)?;
        let session = self.log_in(&library.0, slot, &info, wrong_pins)?;
        act(&session, self.find_key(&session)?)
    }

    fn find_token(&self, library: &Pkcs11) -> Result<(Slot, TokenInfo), String> {
        let wanted = &self.config.token;
        let slots = library.get_slots_with_initialized_token();
        let slots = slots.map_err(|e| self.failed("tokens cannot be listed", &e))?;
        let (mut found, mut others) = (Vec::new(), Vec::new());
        for slot in slots {
            let info = library.get_token_info(slot);
            let info = info.map_err(|e| self.failed("a token cannot be asked", &e))?;
            match info.label() == wanted {
                true => found.push((slot, info)),
                false => others.push(format!("{:?}", info.label())),
            }
        }
        match (found.len(), found.pop()) {
            (1, Some(found)) => Ok(found),
            (0, _) => Err(format!(
                "there is no token {wanted:?} behind {}, but {}. Is it plugged in, or the HSM within reach, and does \
                 this user see it?",
                self.config.pkcs11.display(),
                match others.is_empty() {
                    true => "none at all".into(),
                    false => others.join(", "),
                }
            )),
            _ => Err(format!(
                "several tokens are labelled {wanted:?}: take all but one away, or label them anew"
            )),
        }
    }

    fn log_in(
        &self,
        library: &Pkcs11,
        slot: Slot,
        info: &TokenInfo,
        wrong_pins: &mut WrongPins,
    ) -> Result<Session, String> {
        let VaultToken { pkcs11, token, .. } = &self.config;
        if info.user_pin_locked() {
            return Err(locked(token));
        }
        // The last try is a person's: a service that is started over and over would use it up.
        if info.user_pin_final_try() {
            return Err(format!(
                "token {token:?} allows one more try of the PIN, which pitser leaves to you: log in once by other \
                 means (`pkcs11-tool --login --test`), which sets the count back"
            ));
        }
        let pin = self.pin()?;
        let which = (pkcs11.clone(), token.clone());
        match wrong_pins.get(&which) {
            Some((wrong, why)) if *wrong == pin => {
                return Err(format!(
                    "{why}. It is not tried again until the file changes"
                ));
            }
            _ => {}
        }
        let session = library.open_ro_session(slot);
        let session =
            session.map_err(|e| self.failed(&format!("token {token:?} opens no session"), &e))?;
        match session.login(UserType::User, Some(&AuthPin::new(pin.as_str().into()))) {
            Ok(()) => Ok(session),
            Err(Error::Pkcs11(RvError::PinLocked, _)) => Err(locked(token)),
            Err(Error::Pkcs11(
                RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange,
                _,
            )) => {
                let why = format!(
                    "{}: this is not the PIN of token {token:?}. {}",
                    self.config.pin_file.display(),
                    tries_left(library.get_token_info(slot).ok().as_ref())
                );
                wrong_pins.insert(which, (pin, why.clone()));
                Err(why)
            }
            Err(e) => Err(self.failed(&format!("token {token:?} takes no login"), &e)),
        }
    }

    fn pin(&self) -> Result<Zeroizing<String>, String> {
        let file = self.pin.as_ref().map_err(Clone::clone)?;
        let path = file.display();
        let mut text = Zeroizing::new(String::with_capacity(PIN_MAX as usize));
        let read =
            std::fs::File::open(file).and_then(|file| file.take(PIN_MAX).read_to_string(&mut text));
        read.map_err(|e| format!("{path}: the token's PIN cannot be read: {e}"))?;
        match text.trim_end_matches(['\r', '\n']) {
            "" => Err(format!("{path}: there is no PIN in it")),
            pin => Ok(Zeroizing::new(pin.to_owned())),
        }
    }

    fn find_key(&self, session: &Session) -> Result<ObjectHandle, String> {
        let VaultToken { key, token, .. } = &self.config;
        let found = session.find_objects(&[
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Label(key.clone().into_bytes()),
        ]);
        let found = found.map_err(|e| self.failed("keys cannot be listed", &e))?;
        match found[..] {
            [found] => Ok(found),
            [] => Err(format!(
                "token {token:?} has no AES key {key:?}. If it was deleted, restore the token from its backup: \
                 without this key the vault's master key is lost. A new one is made by `pkcs11-tool --keygen \
                 --key-type AES:32 --label {key} --sensitive --private --usage-decrypt`"
            )),
            _ => Err(format!(
                "token {token:?} has several AES keys {key:?}: leave one, or label them anew"
            )),
        }
    }

    fn failed(&self, what: &str, error: &Error) -> String {
        format!("{}: {what}: {}", self.config.pkcs11.display(), told(error))
    }

    fn wrap_by(
        &self,
        session: &Session,
        key: ObjectHandle,
        aad: &[u8],
        master: &Key,
    ) -> Result<Wrapped, String> {
        let asked = [
            AttributeType::Sensitive,
            AttributeType::Extractable,
            AttributeType::ValueLen,
        ];
        let attributes = session.get_attributes(key, &asked);
        let attributes = attributes.map_err(|e| self.failed("the key cannot be asked", &e))?;
        let has = |attribute| attributes.contains(&attribute);
        if !has(Attribute::Sensitive(true)) || !has(Attribute::Extractable(false)) {
            return Err(format!(
                "the key {:?} may leave its token: make one that is sensitive and not extractable",
                self.config.key
            ));
        }
        if !has(Attribute::ValueLen((KEY_LEN as u64).into())) {
            return Err(format!(
                "the key {:?} is not of 256 bits: make one with --key-type AES:32",
                self.config.key
            ));
        }
        let mut iv = [0; IV_LEN];
        getrandom::getrandom(&mut iv)
            .map_err(|e| format!("the system gave no random numbers: {e}"))?;
        let sealed = {
            let params = gcm(&mut iv, aad)?;
            session.encrypt(&Mechanism::AesGcm(params), key, master.expose())
        };
        let sealed =
            sealed.map_err(|e| self.failed("the key does not encrypt by CKM_AES_GCM", &e))?;
        Ok(Wrapped {
            version: 1,
            mechanism: MECHANISM.into(),
            // A token that insists on an IV of its own has written it there.
            iv: HEXLOWER.encode(&iv),
            sealed: HEXLOWER.encode(&sealed),
        })
    }

    fn unwrap_by(
        &self,
        session: &Session,
        key: ObjectHandle,
        aad: &[u8],
        (mut iv, sealed): ([u8; IV_LEN], Vec<u8>),
    ) -> Result<Key, String> {
        let params = gcm(&mut iv, aad)?;
        let opened = session.decrypt(&Mechanism::AesGcm(params), key, &sealed);
        let opened = opened.map(Zeroizing::new).map_err(|e| {
            format!(
                "vault.key.wrapped does not open with key {:?} of token {:?} ({}): the file was altered or is another \
                 trail's, or the key is another. Restore the file from your backup, or name the token that wrapped it",
                self.config.key,
                self.config.token,
                told(&e)
            )
        })?;
        let opened: Result<[u8; KEY_LEN], _> = opened.as_slice().try_into();
        opened
            .map(Key::new)
            .map_err(|_| "vault.key.wrapped holds no key of 32 bytes".into())
    }
}

impl Keeper for TokenKeeper {
    fn wrap(&self, origin: &str, master: &Key) -> Result<Vec<u8>, KeeperError> {
        let aad = associated(origin);
        let wrapped = self.with_key(|session, key| self.wrap_by(session, key, &aad, master));
        Ok(wrapped.map_err(KeeperError)?.encode())
    }

    fn unwrap(&self, origin: &str, wrapped: &[u8]) -> Result<Key, KeeperError> {
        if let Some((known, bytes, key)) = &*held(&self.opened)
            && (known.as_str(), bytes.as_slice()) == (origin, wrapped)
        {
            return Ok(key.clone());
        }
        let parsed = Wrapped::parse(wrapped).ok_or_else(|| {
            KeeperError(
                "vault.key.wrapped is not as a token's keeper wrote it: it was altered, or is of a newer pitser. \
                 Restore it from your backup"
                    .into(),
            )
        })?;
        let aad = associated(origin);
        let key = self.with_key(|session, key| self.unwrap_by(session, key, &aad, parsed));
        let key = key.map_err(KeeperError)?;
        *held(&self.opened) = Some((origin.to_owned(), wrapped.to_owned(), key.clone()));
        Ok(key)
    }
}

impl Wrapped {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).expect("strings and a number");
        bytes.push(b'\n');
        bytes
    }

    /// IV and sealed key; `None` if a single byte is not as it was written.
    fn parse(bytes: &[u8]) -> Option<([u8; IV_LEN], Vec<u8>)> {
        let this: Self = serde_json::from_slice(bytes).ok()?;
        if this.version != 1 || this.mechanism != MECHANISM || this.encode() != bytes {
            return None;
        }
        let iv = HEXLOWER.decode(this.iv.as_bytes()).ok()?;
        let sealed = HEXLOWER.decode(this.sealed.as_bytes()).ok()?;
        Some((iv.try_into().ok()?, sealed))
    }
}

/// Ends the application's use of a library, on every way out.
struct Initialised(Pkcs11);

impl Drop for Initialised {
    fn drop(&mut self) {
        if let Err(error) = self.0.clone().finalize() {
            tracing::warn!(error = told(&error), "a PKCS#11 library does not end");
        }
    }
}

/// What is behind a lock is whole at any moment, also after a panic.
fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

fn load(path: &Path) -> Result<Pkcs11, String> {
    Pkcs11::new(path).map_err(|error| {
        let why = match error {
            Error::LibraryLoading(e) => e.to_string(),
            e => format!("{}: it is no PKCS#11 library: {}", path.display(), told(&e)),
        };
        format!("{why}. pkcs11 under [source.vault_token] names the library of the token's maker")
    })
}

fn associated(origin: &str) -> Vec<u8> {
    [b"pitser/v1/vault-key\0", origin.as_bytes()].concat()
}

fn gcm<'a>(iv: &'a mut [u8; IV_LEN], aad: &'a [u8]) -> Result<GcmParams<'a>, String> {
    GcmParams::new(iv, aad, TAG_BITS.into()).map_err(|e| told(&e))
}

fn locked(token: &str) -> String {
    format!("the PIN of token {token:?} is locked: its security officer sets a new one")
}

/// What the token says of its tries after one that was wrong. PKCS#11 has no number.
fn tries_left(info: Option<&TokenInfo>) -> &'static str {
    match info {
        Some(info) if info.user_pin_locked() => "It is locked now: its security officer unlocks it",
        Some(info) if info.user_pin_final_try() => "One try is left before it is locked",
        Some(info) if info.user_pin_count_low() => {
            "The token counts wrong tries and says that more than one is left"
        }
        _ => "The token does not say how many tries are left",
    }
}

/// Codes as PKCS#11 calls them; its explanations fill a page.
fn told(error: &Error) -> String {
    match error {
        Error::Pkcs11(code, function) => format!("{function:?} answers {code:?}"),
        other => other.to_string(),
    }
}
