//! The general policy: the strongest proof that the context allows (spec §6).
//!
//! A publication that the caller brings stands alone: falling back from it to
//! something weaker would not be what was asked for. Otherwise the publications
//! file decides, and before its next publication the key.

use super::{Examination, Stop, key, publications_file, user_publication};

/// Applies the first policy that decides.
pub(super) fn check(examination: &mut Examination<'_>) -> Result<(), Stop> {
    if examination.context.user_publication.is_some() {
        return user_publication::check(examination);
    }
    match publications_file::check(examination) {
        // Without an authentication record the key cannot decide either, and
        // what the publications file lacks is the better answer.
        Err(Stop::Unconfirmed { .. }) if examination.signature.authentication().is_some() => {
            key::check(examination)
        }
        decided => decided,
    }
}
