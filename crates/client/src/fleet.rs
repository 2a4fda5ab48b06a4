//! The fleet of an authority: trails that are registered there, and their heads
//! (docs/spec/52-fleet.md).
//!
//! ```text
//! registration = a note by the trail's key over
//!                "pitser fleet registration 1\n"
//!                "origin " name "\n" "key " vkey "\n" "genesis " imprint "\n"
//!                "system " imprint "\n" "begun " seconds "\n"
//! entry        = "pitser fleet entry 1\n" ("registered" | "refused") "\n"
//!                seconds "\n\n" registration
//! Authorization: Pitser hex(login) " " microseconds " " hex(code)
//! code         = HMAC-SHA-256(key, "pitser fleet 1\n" call "\n" microseconds "\n" body)
//! ```
//!
//! Imprints are lower-case hexadecimal, numbers decimal without leading zeroes.
//! Nothing here names a patient, a table or a row.

use std::fmt;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use hyper::body::Bytes;
use pitser_ksi::hash::{Algorithm, HmacKey, Imprint, hash};
use pitser_ksi::time::Second;
use pitser_tlog::checkpoint::Checkpoint;
use pitser_tlog::error::DecodeError;
use pitser_tlog::merkle::{leaf_hash, verify_inclusion};
use pitser_tlog::note::{Algorithm as KeyAlgorithm, Note, SigningKey, VerifierKey};
use pitser_tlog::proof::{LogProof, MAX_PROOF_BYTES};
use tokio::time::Instant;

use crate::endpoint::{Endpoint, Transport};
use crate::error::{Asked, ClientError, quoted};
use crate::http::HttpService;
use crate::options::Options;
use crate::service;

/// Longest registration, in bytes.
pub const MAX_REGISTRATION_BYTES: usize = 2048;

/// Longest head with its cosignatures, in bytes.
pub const MAX_HEAD_BYTES: usize = 16 * 1024;

/// What a guardian states about a trail that it has begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The key of the trail's log; its name is the trail's origin.
    pub key: VerifierKey,
    /// Hash of the genesis line.
    pub genesis: Imprint,
    /// Stands for the database's own identity ([`system_id`]): two trails with the
    /// same one guard the same database.
    pub system: Imprint,
    /// When the trail was begun, by the guardian's clock.
    pub begun_at: Second,
}

/// Stands for the identity that a database gives itself.
pub fn system_id(system: &str) -> Imprint {
    let parts: [&[u8]; 2] = [b"pitser fleet system 1\n", system.as_bytes()];
    hash(Algorithm::Sha256, &parts)
}

impl Registration {
    /// The trail's name.
    pub fn origin(&self) -> &str {
        self.key.name()
    }

    /// The note that is sent.
    ///
    /// # Errors
    /// None with a key that has a name of usual length.
    pub fn sign(&self, key: &SigningKey) -> Result<Note, DecodeError> {
        Note::sign(&self.to_string(), key)
    }

    /// Reads a note and verifies its one signature, by the key that it names.
    ///
    /// # Errors
    /// [`NoRegistration`].
    pub fn open(bytes: &[u8]) -> Result<(Self, Note), NoRegistration> {
        if bytes.len() > MAX_REGISTRATION_BYTES {
            return Err(NoRegistration("it is too long"));
        }
        let note = Note::parse(bytes).map_err(|_| NoRegistration("it is no signed note"))?;
        let registration = Self::parse(note.text()).ok_or(NoRegistration("its text is none"))?;
        if note.signatures().len() != 1 {
            return Err(NoRegistration("it has other signatures than the trail's"));
        }
        note.verify(&registration.key)
            .map_err(|_| NoRegistration("the trail's key did not sign it"))?;
        Ok((registration, note))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let mut field = |name: &str| lines.next()?.strip_prefix(name);
        field(REGISTRATION)?;
        let origin = field("origin ")?;
        let key: VerifierKey = field("key ")?.parse().ok()?;
        let registration = Self {
            genesis: imprint(field("genesis ")?)?,
            system: imprint(field("system ")?)?,
            begun_at: Second(field("begun ")?.parse().ok()?),
            key,
        };
        let is_exact = registration.to_string() == text && registration.origin() == origin;
        let signs = registration.key.algorithm() == KeyAlgorithm::Ed25519;
        (is_exact && signs).then_some(registration)
    }
}

impl fmt::Display for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |imprint: &Imprint| HEXLOWER.encode(imprint.as_bytes());
        let (genesis, system) = (hex(&self.genesis), hex(&self.system));
        write!(
            f,
            "{REGISTRATION}\norigin {}\nkey {}\ngenesis {genesis}\nsystem {system}\nbegun {}\n",
            self.origin(),
            self.key,
            self.begun_at.0
        )
    }
}

fn imprint(hex: &str) -> Option<Imprint> {
    let bytes = HEXLOWER.decode(hex.as_bytes()).ok()?;
    let imprint = Imprint::from_bytes(&bytes).ok()?;
    (imprint.algorithm() == Algorithm::Sha256).then_some(imprint)
}

/// Why bytes are no registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no registration of a trail: {0}")]
pub struct NoRegistration(&'static str);

/// What became of a registration, as the fleet's log has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// The first of its origin.
    Registered,
    /// Another trail has the origin already.
    Refused,
}

/// One entry of the fleet's log.
pub fn entry(judgement: Judgement, at: Second, registration: &Note) -> Vec<u8> {
    let word = match judgement {
        Judgement::Registered => "registered",
        Judgement::Refused => "refused",
    };
    format!("{ENTRY}\n{word}\n{}\n\n{registration}", at.0).into_bytes()
}

/// What is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// `POST /fleet/register`
    Register,
    /// `POST /fleet/head`
    Head,
}

impl Call {
    /// The last part of its path.
    pub fn name(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Head => "head",
        }
    }
}

/// Who asks, and proof that it is they: the header `Authorization`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Login id at the authority.
    pub login: String,
    /// When it is asked, in microseconds since 1970: each time later than before.
    pub at_us: u64,
    code: Imprint,
}

impl Credentials {
    /// Those of `login`, whose key is `key`, for one request.
    pub fn new(login: &str, key: &HmacKey, call: Call, at_us: u64, body: &[u8]) -> Self {
        Self {
            login: login.to_owned(),
            at_us,
            code: code(key, call, at_us, body),
        }
    }

    /// Reads the header's value.
    pub fn parse(header: &str) -> Option<Self> {
        let mut words = header.strip_prefix(SCHEME)?.split(' ');
        let login = HEXLOWER.decode(words.next()?.as_bytes()).ok()?;
        let credentials = Self {
            login: String::from_utf8(login).ok()?,
            at_us: words.next()?.parse().ok()?,
            code: Imprint::new(
                Algorithm::Sha256,
                &HEXLOWER.decode(words.next()?.as_bytes()).ok()?,
            )?,
        };
        (words.next().is_none() && credentials.to_string() == header).then_some(credentials)
    }

    /// Whether whoever holds `key` asks this. Takes as long for every code.
    pub fn are_of(&self, key: &HmacKey, call: Call, body: &[u8]) -> bool {
        code(key, call, self.at_us, body).ct_eq(&self.code)
    }
}

impl fmt::Display for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let login = HEXLOWER.encode(self.login.as_bytes());
        let code = HEXLOWER.encode(self.code.digest());
        write!(f, "{SCHEME}{login} {} {code}", self.at_us)
    }
}

fn code(key: &HmacKey, call: Call, at_us: u64, body: &[u8]) -> Imprint {
    let head = format!("pitser fleet 1\n{}\n{at_us}\n", call.name());
    key.mac(Algorithm::Sha256, &[head.as_bytes(), body])
}

/// The way to an authority's fleet. Cloning it keeps the connection.
#[derive(Clone)]
pub struct Fleet {
    endpoint: Endpoint,
    options: Options,
    key: HmacKey,
    log_key: Option<VerifierKey>,
    server: Arc<HttpService>,
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Fleet")
            .field(&self.endpoint.to_string())
            .finish()
    }
}

impl Fleet {
    /// The fleet of the authority at `endpoint`, `https://USER:KEY@HOST`; nothing is
    /// connected yet. `None` if that is no address of HTTP.
    pub fn new(endpoint: Endpoint, options: Options) -> Option<Self> {
        let is_http = matches!(endpoint.transport(), Transport::Http | Transport::Https);
        is_http.then(|| Self {
            key: HmacKey::new(endpoint.key().expose()),
            log_key: None,
            server: Arc::new(HttpService::new(&endpoint, &options)),
            endpoint,
            options,
        })
    }

    /// The same, whose log has this key: proofs are believed under it alone.
    #[must_use]
    pub fn with_log_key(mut self, key: VerifierKey) -> Self {
        self.log_key = Some(key);
        self
    }

    /// Registers a trail, at `at_us` microseconds since 1970: the entry's place in
    /// the fleet's log. The proof leads to its checkpoint; who signed that is
    /// verified if the log's key is known ([`Fleet::with_log_key`]).
    ///
    /// # Errors
    /// [`FleetError`].
    pub async fn register(&self, registration: &Note, at_us: u64) -> Result<LogProof, FleetError> {
        let body = registration.to_string();
        let answer = self.post(Call::Register, at_us, body.clone()).await?;
        let unfit = |reason: &str| FleetError::Unfit {
            service: self.endpoint.to_string(),
            reason: reason.to_owned(),
        };
        let proof = LogProof::parse(&answer).map_err(|_| unfit("it is no proof"))?;
        match check(&proof, &body, self.log_key.as_ref()) {
            Ok(()) => Ok(proof),
            Err(reason) => Err(unfit(reason)),
        }
    }

    /// Sends a head, at `at_us` microseconds since 1970.
    ///
    /// # Errors
    /// [`FleetError`].
    pub async fn head(&self, head: &Note, at_us: u64) -> Result<(), FleetError> {
        self.post(Call::Head, at_us, head.to_string())
            .await
            .map(drop)
    }

    async fn post(&self, call: Call, at_us: u64, body: String) -> Result<Bytes, FleetError> {
        let prefix = self.endpoint.path().unwrap_or("").trim_end_matches('/');
        let path = format!("{prefix}/fleet/{}", call.name());
        let credentials = Credentials::new(
            self.endpoint.user(),
            &self.key,
            call,
            at_us,
            body.as_bytes(),
        );
        let deadline = Instant::now() + self.options.answer_timeout;
        let header = credentials.to_string();
        let sent = self
            .server
            .post_note(&path, &header, body.into(), MAX_PROOF_BYTES, deadline)
            .await;
        let answer = sent
            .map_err(|fault| service::error(&self.endpoint, &self.options, Asked::Fleet, fault))?;
        let status = answer.status.as_u16();
        if answer.status.is_success() {
            return Ok(answer.body);
        }
        let text = String::from_utf8_lossy(&answer.body);
        let line: String = text
            .lines()
            .next()
            .unwrap_or_default()
            .chars()
            .filter(|letter| !letter.is_control())
            .take(MAX_WORDS)
            .collect();
        Err(match (status, line.split_once(": ")) {
            (409, Some(("taken", reason))) => FleetError::Taken(reason.to_owned()),
            (409, Some(("shrunk", reason))) => FleetError::Shrunk(reason.to_owned()),
            (409, Some(("forked", reason))) => FleetError::Forked(reason.to_owned()),
            (404, Some(("unknown", _))) => FleetError::Unknown,
            _ => FleetError::Refused {
                service: self.endpoint.to_string(),
                status,
                reason: line,
            },
        })
    }
}

/// Whether a proof is about this registration, and leads to its checkpoint; under
/// this key, if one is known.
fn check(
    proof: &LogProof,
    registration: &str,
    key: Option<&VerifierKey>,
) -> Result<(), &'static str> {
    let entry = proof.extra();
    let is_ours = std::str::from_utf8(entry)
        .ok()
        .and_then(|entry| entry.strip_prefix(ENTRY)?.strip_prefix("\nregistered\n"))
        .and_then(|rest| rest.split_once("\n\n"))
        .is_some_and(|(_, note)| note == registration);
    if !is_ours {
        return Err("it is about another registration");
    }
    let head = match key {
        Some(key) => Checkpoint::open(proof.head(), key.name(), key)
            .map_err(|_| "its checkpoint is not signed by the fleet's key")?,
        None => {
            Checkpoint::parse(proof.head().text()).map_err(|_| "its checkpoint is malformed")?
        }
    };
    let (leaf, path) = (leaf_hash(entry), proof.path());
    verify_inclusion(leaf, proof.index(), head.size(), path, head.root())
        .map_err(|_| "its proof does not lead to its checkpoint")
}

/// Why a trail is not registered, or its head not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FleetError {
    /// The authority was not reached, or there is none.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Another trail of this origin is registered.
    #[error("another trail of this origin is registered: {0}")]
    Taken(String),
    /// The authority has seen a longer trail.
    #[error("the authority has seen more of this trail: {0}")]
    Shrunk(String),
    /// The authority has seen another trail of this length.
    #[error("the authority has seen another trail: {0}")]
    Forked(String),
    /// The authority does not know this origin: it must be registered first.
    #[error("the authority does not know this trail")]
    Unknown,
    /// Something else is in the way.
    #[error("{service} answered HTTP {status}{}", quoted(reason))]
    Refused {
        /// Who.
        service: String,
        /// The HTTP status.
        status: u16,
        /// In its words.
        reason: String,
    },
    /// What it answered is not what was asked for.
    #[error("an answer from {service} does not fit the request: {reason}")]
    Unfit {
        /// Who.
        service: String,
        /// Why.
        reason: String,
    },
}

impl FleetError {
    /// Whether it is not the trail that is wrong, and asking later may help.
    pub fn is_passing(&self) -> bool {
        !matches!(self, Self::Taken(_) | Self::Shrunk(_) | Self::Forked(_))
    }
}

const REGISTRATION: &str = "pitser fleet registration 1";
const ENTRY: &str = "pitser fleet entry 1";
const SCHEME: &str = "Pitser ";
/// Characters of a service's sentence that are repeated.
const MAX_WORDS: usize = 300;

#[cfg(test)]
mod tests {
    use pitser_tlog::merkle::LogTree;

    use super::*;

    fn registration() -> (Registration, SigningKey) {
        let key = SigningKey::from_seed("hospital.example/ehr", &[1; 32]).unwrap();
        let registration = Registration {
            key: key.verifier(),
            genesis: hash(Algorithm::Sha256, &[b"genesis"]),
            system: system_id("7312"),
            begun_at: Second(1_773_480_413),
        };
        (registration, key)
    }

    #[test]
    fn a_registration_is_read_as_it_was_written() {
        let (registration, key) = registration();
        let note = registration.sign(&key).unwrap();
        let (read, again) = Registration::open(note.to_string().as_bytes()).unwrap();
        assert_eq!((read, again), (registration, note));
    }

    #[test]
    fn every_altered_byte_of_a_registration_is_noticed() {
        let (registration, key) = registration();
        let note = registration.sign(&key).unwrap().to_string().into_bytes();
        for at in 0..note.len() {
            let mut altered = note.clone();
            altered[at] ^= 1;
            assert!(Registration::open(&altered).is_err(), "byte {at}");
        }
        assert!(Registration::open(&vec![b'\n'; MAX_REGISTRATION_BYTES + 1]).is_err());
    }

    #[test]
    fn a_registration_under_another_name_or_by_a_stranger_is_none() {
        let (registration, key) = registration();
        let text = registration.to_string();
        let renamed = text.replacen("origin hospital", "origin hospice", 1);
        let note = Note::sign(&renamed, &key).unwrap();
        assert!(Registration::open(note.to_string().as_bytes()).is_err());
        let stranger = SigningKey::from_seed("hospital.example/ehr", &[2; 32]).unwrap();
        let note = Note::sign(&text, &stranger).unwrap();
        let error = Registration::open(note.to_string().as_bytes()).unwrap_err();
        assert!(error.to_string().contains("did not sign"), "{error}");
    }

    #[test]
    fn a_proof_must_be_of_this_registration_and_under_the_known_key() {
        let (registration, key) = registration();
        let note = registration.sign(&key).unwrap();
        let authority = SigningKey::from_seed("authority.example/fleet", &[3; 32]).unwrap();
        let prove = |judgement, altered: bool| {
            let entry = entry(judgement, Second(1_773_480_500), &note);
            let mut tree = LogTree::new();
            tree.push(leaf_hash(b"another"));
            tree.push(leaf_hash(if altered { b"altered" } else { &entry }));
            let head = Checkpoint::new(authority.name(), 2, tree.root()).unwrap();
            let path = tree.inclusion_proof(1, 2).unwrap();
            let proof = LogProof::new(1, path, head.sign(&authority).unwrap()).unwrap();
            proof.with_extra(entry).unwrap()
        };
        let (text, known) = (note.to_string(), authority.verifier());
        let good = prove(Judgement::Registered, false);
        assert_eq!(check(&good, &text, Some(&known)), Ok(()));
        assert_eq!(check(&good, &text, None), Ok(()));
        let other = SigningKey::from_seed("authority.example/fleet", &[4; 32]).unwrap();
        assert!(check(&good, &text, Some(&other.verifier())).is_err());
        assert!(check(&good, &text.replace("begun 1", "begun 2"), None).is_err());
        assert!(check(&prove(Judgement::Refused, false), &text, None).is_err());
        assert!(check(&prove(Judgement::Registered, true), &text, None).is_err());
    }

    #[test]
    fn credentials_are_for_one_call_one_moment_and_one_body() {
        let key = HmacKey::new(b"secret");
        let made = Credentials::new("õpetaja", &key, Call::Head, 17, b"body");
        let read = Credentials::parse(&made.to_string()).unwrap();
        assert_eq!(read, made);
        assert!(read.are_of(&key, Call::Head, b"body"));
        assert!(!read.are_of(&key, Call::Register, b"body"));
        assert!(!read.are_of(&key, Call::Head, b"bodY"));
        assert!(!read.are_of(&HmacKey::new(b"other"), Call::Head, b"body"));
        let later = made.to_string().replacen(" 17 ", " 18 ", 1);
        let later = Credentials::parse(&later).unwrap();
        assert!(!later.are_of(&key, Call::Head, b"body"));
        for bad in ["", "Pitser ", "Pitser 61 1", "Pitser 61 01 00", "Basic x"] {
            assert_eq!(Credentials::parse(bad), None, "{bad}");
        }
    }
}
