//! A publications file that was made elsewhere, and whether it may follow the newest.
//!
//! It counts only if the pinned certificate's key signed it, if it keeps everything
//! that was published and only adds, and if every publication in it is this
//! calendar's root at a second that has ended.

use pitser_ksi::error::DecodeError;
use pitser_ksi::pki::PkiError;
use pitser_ksi::publication::PublicationData;
use pitser_ksi::publications_file::PublicationsFile;
use pitser_ksi::time::Second;
use serde_json::{Value, json};

use crate::calendar::{CalendarError, CalendarReader};
use crate::signatory::Signatory;

/// What came of a publications file that was handed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandedIn {
    /// What it adds, in order of time.
    pub added: Vec<PublicationData>,
    /// How many publications it has.
    pub publications: usize,
    /// False if it is the newest file already.
    pub is_new: bool,
}

impl HandedIn {
    /// The same for programs: `new`, `publications`, and of each that it adds `second`
    /// and `code`.
    pub fn facts(&self) -> Value {
        let one = |data: &PublicationData| json!({ "second": data.time.to_string(), "code": data.to_code() });
        json!({
            "new": self.is_new,
            "publications": self.publications,
            "added": self.added.iter().map(one).collect::<Vec<_>>(),
        })
    }
}

/// What a file that is handed in is held against.
pub(crate) struct Examiner<'a> {
    pub(crate) calendar: &'a CalendarReader,
    /// The certificate of this calendar's key, DER.
    pub(crate) own_der: &'a [u8],
    pub(crate) signatory: &'a Signatory,
    pub(crate) now: Second,
}

impl Examiner<'_> {
    /// Looks at everything that speaks against `file` following `newest`.
    pub(crate) fn examine(
        &self,
        newest: Option<&PublicationsFile>,
        file: &PublicationsFile,
    ) -> Result<HandedIn, Refusal> {
        let is_new = newest.is_none_or(|newest| newest.encode() != file.encode());
        self.signatory.verify(file).map_err(Refusal::Signer)?;
        let made_at = file.created_at();
        if made_at > self.now.plus(CLOCK_SLACK_S) {
            let now = self.now;
            return Err(Refusal::FromTheFuture { made_at, now });
        }
        if !file
            .certificates()
            .iter()
            .any(|one| one.der == self.own_der)
        {
            return Err(Refusal::WithoutOurs);
        }
        let added = match newest {
            Some(newest) if made_at < newest.created_at() => {
                let newest = newest.created_at();
                return Err(Refusal::Older { made_at, newest });
            }
            Some(newest) => added(newest, file)?,
            None => publications(file)?,
        };
        for record in file.publications() {
            agree(self.calendar, &record.data)?;
        }
        Ok(HandedIn {
            added,
            publications: file.publications().len(),
            is_new,
        })
    }
}

/// What `file` publishes beyond `newest`, of which it must keep everything, in order of
/// time.
pub(crate) fn added(
    newest: &PublicationsFile,
    file: &PublicationsFile,
) -> Result<Vec<PublicationData>, Refusal> {
    let mut added = publications(file)?;
    let known = publications(newest)?;
    for data in &known {
        let at = data.time;
        match added.binary_search_by_key(&at, |data| data.time) {
            Ok(found) if added[found] == *data => {}
            Ok(_) => return Err(Refusal::Altered { at }),
            Err(_) => return Err(Refusal::Lacks { at }),
        }
    }
    let kept = |der: &[u8]| file.certificates().iter().any(|one| one.der == der);
    if !newest.certificates().iter().all(|one| kept(&one.der)) {
        return Err(Refusal::LacksCertificate);
    }
    let is_new = |data: &PublicationData| {
        known
            .binary_search_by_key(&data.time, |known| known.time)
            .is_err()
    };
    added.retain(is_new);
    match (added.first(), known.last()) {
        (Some(first), Some(latest)) if first.time < latest.time => {
            Err(Refusal::Backdated { at: first.time })
        }
        _ => Ok(added),
    }
}

/// All publications of `file` in order of time; no two may be of one second.
fn publications(file: &PublicationsFile) -> Result<Vec<PublicationData>, Refusal> {
    let mut all: Vec<_> = file
        .publications()
        .iter()
        .map(|record| record.data)
        .collect();
    all.sort_by_key(|data| data.time);
    match all.windows(2).find(|pair| pair[0].time == pair[1].time) {
        Some(pair) => Err(Refusal::Twice { at: pair[0].time }),
        None => Ok(all),
    }
}

/// Whether `data` is the calendar's root of its second.
fn agree(calendar: &CalendarReader, data: &PublicationData) -> Result<(), Refusal> {
    let at = data.time;
    match calendar.root_at(at) {
        Ok(root) if root == data.imprint => Ok(()),
        Ok(_) | Err(CalendarError::BeforeGenesis { .. }) => Err(Refusal::Contradiction { at }),
        Err(CalendarError::Beyond { head, .. }) => Err(Refusal::NotEnded { at, head }),
        Err(e) => Err(Refusal::Calendar(e)),
    }
}

/// Why a publications file that was handed in does not count. Nothing has changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Something else was handed in.
    #[error("this is no publications file: {0}; hand in what `pitser authority compose` wrote")]
    Malformed(DecodeError),
    /// Somebody else signed it, or it was altered.
    #[error(
        "it is not signed by the key of the pinned publications certificate: {0}. Compose it \
         with that key"
    )]
    Signer(PkiError),
    /// A publication is missing.
    #[error(
        "it lacks the publication of {at}: it is an older file, or was made from one. Compose it \
         again from the newest, publications.bin of this authority"
    )]
    Lacks {
        /// The second of the publication.
        at: Second,
    },
    /// A publication has another root.
    #[error(
        "it says something else about {at} than was published. Compose it again from the newest \
         file, publications.bin of this authority, and find out who altered the other"
    )]
    Altered {
        /// The second of the publication.
        at: Second,
    },
    /// A certificate of the newest file is missing.
    #[error(
        "it lacks a certificate of the newest file, without which older signatures could not be \
         verified. Compose it again from publications.bin of this authority"
    )]
    LacksCertificate,
    /// The certificate of the calendar's key is missing.
    #[error(
        "it does not list the certificate of this authority's calendar, so nobody could verify \
         signatures by it. Compose it again with --calendar-certificate, data/certificate.pem of \
         this authority"
    )]
    WithoutOurs,
    /// It was made before the newest file.
    #[error(
        "it was made at {made_at}, and the newest file at {newest}: hand in the later one, or set \
         the clock of the machine that composes right"
    )]
    Older {
        /// When it was made, by its own word.
        made_at: Second,
        /// When the newest file was.
        newest: Second,
    },
    /// It claims to be made in time to come.
    #[error(
        "it was made at {made_at} by its own word, and it is {now} here: set the clock of the \
         machine that composes right, and compose it again"
    )]
    FromTheFuture {
        /// When it was made, by its own word.
        made_at: Second,
        /// What this authority's clock shows.
        now: Second,
    },
    /// A new publication is before one that is known.
    #[error(
        "it adds a publication of {at}, which is before the newest one: publications come in \
         order. Compose it with `pitser authority publish --due`'s code"
    )]
    Backdated {
        /// The second of the publication.
        at: Second,
    },
    /// Two publications are of one second.
    #[error("it has two publications of {at}; compose it again with one of them")]
    Twice {
        /// The second of both.
        at: Second,
    },
    /// A publication is not what the calendar says.
    #[error(
        "its publication of {at} is not the root of this calendar. If the code was carried \
         rightly, one of the two was altered: do not publish it, run `pitser authority audit`"
    )]
    Contradiction {
        /// The second of the publication.
        at: Second,
    },
    /// A publication is of a second that the calendar does not have.
    #[error(
        "it publishes {at}, a second that has not ended here yet (the newest is {}); hand it in \
         later",
        head.map_or_else(|| "none".to_owned(), |head| head.to_string())
    )]
    NotEnded {
        /// The second of the publication.
        at: Second,
        /// The calendar's newest second.
        head: Option<Second>,
    },
    /// The calendar could not be read.
    #[error(transparent)]
    Calendar(CalendarError),
}

/// How far the clock of the machine that composes may be ahead: nobody keeps the time
/// of a machine without a network to the second.
const CLOCK_SLACK_S: u64 = 3600;
