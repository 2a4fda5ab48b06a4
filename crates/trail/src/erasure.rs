//! Erasing a patient: a basis, two people who decide one after the other, and no
//! legal hold (docs/erasure.md).
//!
//! The first person's request is kept in the vault, sealed, by pseudonym. Who somebody is,
//! is for the caller to know: here two people are two different names.

use crate::disk::{At, DiskError};
use crate::hold::Hold;
use crate::layout::Layout;
use crate::vault::VaultError;
use crate::write::{Trail, TrailError};
use data_encoding::{BASE32_NOPAD, HEXLOWER};
use pitser_evidence::codec::Digest;
use pitser_evidence::line::{Patient, Timestamp};
use pitser_evidence::map::Leaf;
use pitser_evidence::store::Storage;
use serde::{Deserialize, Serialize};

/// A request must be confirmed within so many microseconds: a day.
pub const VALID_US: u64 = 24 * 3600 * 1_000_000;
/// Longest basis or reason, in bytes.
pub const MAX_TEXT: usize = 500;

/// A shorter identifier may stand in a basis by chance: `1` does in `art. 17(1)`.
const TELLING: usize = 4;

const REQUEST: &str = "request";

/// What erasing a patient would destroy, and what speaks against it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The patient's pseudonym, which stays in the lines.
    pub patient: Patient,
    /// Lines about the patient; all of them stay.
    pub lines: u64,
    /// Rows of the patient that are in the database by the last that was captured.
    pub live_rows: u64,
    /// Whether the vault has a key to destroy.
    pub has_key: bool,
    /// Why the patient may not be erased now: the oldest hold.
    pub hold: Option<Hold>,
    /// How many more stand.
    pub more_holds: u64,
}

/// What the first of two people asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Whom to erase.
    pub patient: Patient,
    /// On what legal basis.
    pub basis: String,
    /// Who asked.
    pub by: String,
    /// After this it counts no more.
    pub expires_at: Timestamp,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Erased {
    /// The line that says so.
    pub seq: u64,
    /// Whom.
    pub patient: Patient,
    /// On what legal basis.
    pub basis: String,
    /// Who decided, in this order.
    pub deciders: [String; 2],
}

/// Why nobody is erased.
#[derive(Debug, thiserror::Error)]
pub enum ErasureError {
    /// The trail or its vault.
    #[error(transparent)]
    Trail(#[from] TrailError),
    /// No line is about the patient.
    #[error(
        "the trail has no line about this patient. Is the identifier spelled as in the database?"
    )]
    UnknownPatient,
    /// There is no key: the patient was erased before, and nothing came since.
    #[error("there is nothing to erase: the patient's key was destroyed before")]
    Nothing,
    /// A hold stands.
    #[error("a legal hold stands since {}, set by {}: {}. `pitser hold remove` lifts it", .0.at, .0.by, .0.reason)]
    Held(Hold),
    /// There is none, or not of this patient, or not in this line.
    #[error("no such legal hold stands for this patient")]
    NoHold,
    /// Several stand, and it was not said which is meant.
    #[error("{} legal holds stand for this patient. Say which one: {}", .0.len(), places(.0))]
    Holds(Vec<Hold>),
    /// The basis or the reason cannot be written.
    #[error("say why in 1 to {MAX_TEXT} bytes, without line breaks")]
    Text,
    /// A basis stands in the trail for ever, in clear; the reason of a hold is never closed.
    #[error(
        "the basis or the reason names the patient, and would outlive the erasure: name the law or the case, not the person"
    )]
    Revealing,
    /// There is no such request.
    #[error(
        "no request waits under this code: it was misspelled, carried out, or is older than a day. Begin again with `pitser erase --patient`"
    )]
    NoRequest,
    /// The same person twice.
    #[error("{0} asked for this erasure: another person has to confirm it")]
    SamePerson(String),
}

impl From<VaultError> for ErasureError {
    fn from(error: VaultError) -> Self {
        Self::Trail(error.into())
    }
}

impl Trail {
    /// What erasing a patient would do.
    ///
    /// # Errors
    /// [`ErasureError::UnknownPatient`], or the trail cannot be read.
    pub fn plan_erasure(&mut self, identifier: &str) -> Result<Plan, ErasureError> {
        let (patient, leaf) = self.known(identifier)?;
        // Of the map alone: the patient's lines may be in an archive that is away, or lost,
        // and that keeps nobody from being erased.
        let live_rows = self.state().storage().rows_of(&patient);
        let live_rows = live_rows.map_err(TrailError::from)?;
        let has_key = self.vault().has_key(&patient.to_string())?;
        let mut holds = self.holds_against(&patient)?.into_iter();
        Ok(Plan {
            patient,
            lines: leaf.count,
            live_rows,
            has_key,
            hold: holds.next(),
            more_holds: holds.len() as u64,
        })
    }

    /// A patient about whom there are lines, and the leaf of their list.
    fn known(&self, identifier: &str) -> Result<(Patient, Leaf), ErasureError> {
        let patient = self.keys().pseudonym(identifier);
        let leaf = self.state().patient(&patient).map_err(TrailError::from)?;
        Ok((patient, leaf.ok_or(ErasureError::UnknownPatient)?))
    }

    /// Keeps the first person's request, durably, and gives the code under which
    /// another person confirms it. The code itself is kept nowhere.
    ///
    /// # Errors
    /// [`ErasureError`] says what speaks against it.
    pub fn request_erasure(
        &mut self,
        identifier: &str,
        basis: &str,
        by: &str,
        now: Timestamp,
    ) -> Result<(String, Request), ErasureError> {
        check_text(basis)?;
        if reveals(identifier, basis) {
            return Err(ErasureError::Revealing);
        }
        let (patient, _) = self.known(identifier)?;
        self.may_be_erased(patient)?;
        // Whoever confirms has a code alone.
        let seq = self.state().next_seq();
        self.vault()
            .compartment_or_new(&patient.to_string(), Some(identifier), seq)?;
        let expires_at = Timestamp::from_micros(now.micros() + VALID_US).unwrap_or(now);
        let request = Request {
            patient,
            basis: basis.to_owned(),
            by: by.to_owned(),
            expires_at,
        };
        let random: [u8; 10] = crate::keys::random().map_err(TrailError::from)?;
        let code = BASE32_NOPAD.encode(&random);
        let note = serde_json::to_vec(&request).expect("texts alone");
        self.vault()
            .set_note(REQUEST, &name_of(&code), Some(&note))?;
        Ok((code, request))
    }

    /// What waits under a code, for whoever is to confirm it; with the patient's
    /// identifier.
    ///
    /// # Errors
    /// [`ErasureError::NoRequest`].
    pub fn requested_erasure(
        &mut self,
        code: &str,
        now: Timestamp,
    ) -> Result<(Request, String), ErasureError> {
        let wanted = name_of(code);
        let found = self
            .requests(now)?
            .into_iter()
            .find(|(name, _)| *name == wanted);
        let (_, request) = found.ok_or(ErasureError::NoRequest)?;
        let identifier = self.vault().identifier(&request.patient.to_string())?;
        let identifier = identifier.ok_or(ErasureError::Nothing)?;
        Ok((request, identifier.to_string()))
    }

    /// Erases: the second person confirms the request under `code`. `pos` is the
    /// source's position so far.
    ///
    /// # Errors
    /// [`ErasureError`]; with [`ErasureError::Trail`], the trail is poisoned.
    pub fn confirm_erasure(
        &mut self,
        code: &str,
        by: &str,
        now: Timestamp,
        pos: &str,
    ) -> Result<Erased, ErasureError> {
        let (request, identifier) = self.requested_erasure(code, now)?;
        if request.by == by {
            return Err(ErasureError::SamePerson(request.by));
        }
        self.may_be_erased(request.patient)?;
        let deciders = [request.by, by.to_owned()];
        let when = (now, pos);
        let basis = request.basis.clone();
        let seq = self.erase(&identifier, basis, deciders.clone(), when)?;
        for (name, other) in self.requests(now)? {
            if other.patient == request.patient {
                self.vault().set_note(REQUEST, &name, None)?;
            }
        }
        Ok(Erased {
            seq,
            patient: request.patient,
            basis: request.basis,
            deciders,
        })
    }

    fn may_be_erased(&mut self, patient: Patient) -> Result<(), ErasureError> {
        if let Some(hold) = self.holds_against(&patient)?.into_iter().next() {
            return Err(ErasureError::Held(hold));
        }
        match self.vault().has_key(&patient.to_string())? {
            true => Ok(()),
            false => Err(ErasureError::Nothing),
        }
    }

    /// Requests that still count, by name; those that do not are removed.
    fn requests(&mut self, now: Timestamp) -> Result<Vec<(String, Request)>, VaultError> {
        let mut valid = Vec::new();
        for (name, note) in self.vault().notes(REQUEST)? {
            match serde_json::from_slice::<Request>(&note) {
                Ok(request) if request.expires_at >= now => valid.push((name, request)),
                _ => self.vault().set_note(REQUEST, &name, None)?,
            }
        }
        Ok(valid)
    }
}

/// What a code is kept as.
fn name_of(code: &str) -> String {
    let spelled = code.trim().to_ascii_uppercase();
    HEXLOWER.encode(Digest::of(&[spelled.as_bytes()]).0.digest())
}

/// Whether a basis or a reason can be written.
///
/// # Errors
/// [`ErasureError::Text`].
pub fn check_text(text: &str) -> Result<(), ErasureError> {
    let is_good =
        !text.trim().is_empty() && text.len() <= MAX_TEXT && !text.chars().any(char::is_control);
    is_good.then_some(()).ok_or(ErasureError::Text)
}

/// Whether a text names the patient.
pub(crate) fn reveals(identifier: &str, text: &str) -> bool {
    identifier.len() >= TELLING && text.contains(identifier)
}

/// Where holds are.
fn places(holds: &[Hold]) -> String {
    let place = |hold: &Hold| match hold.line {
        Some(line) => format!("line {line}"),
        None => "one in the vault alone, when the others are lifted".to_owned(),
    };
    holds.iter().map(place).collect::<Vec<_>>().join(", ")
}

/// Which lines erase whom, as it is noted beside a trail. Only a file that is not there says
/// nothing.
pub(crate) fn notes(trail: &Layout) -> Result<String, DiskError> {
    let path = trail.erasures();
    match std::fs::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        read => read.at(&path, "cannot read"),
    }
}

/// The lines in such notes, and whom they erase.
pub(crate) fn noted(notes: &str) -> impl Iterator<Item = (u64, &str)> {
    let notes = notes.lines().filter_map(|note| note.split_once(' '));
    notes.filter_map(|(seq, patient)| Some((seq.parse().ok()?, patient)))
}
