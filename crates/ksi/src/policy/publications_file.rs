//! The publications file policy: the calendar leads to a publication of a
//! verified publications file (spec §6). It relies on that file's signature.

use super::{
    Code, Examination, Outcome,
    Part::Publication,
    Reason, Stop,
    user_publication::{leads_to, own_algorithms},
};
use crate::{publication::PublicationRecord, publications_file::PublicationsFile};

/// Applies all rules in order: first to the publication that the signature
/// carries, then, if that decides nothing, to the next one in the file.
pub(super) fn check(examination: &mut Examination<'_>) -> Result<(), Stop> {
    let file = examination.need(
        Publication,
        "there is a publications file",
        examination.context.publications,
        Reason::NoPublicationsFile,
    )?;
    match examination.signature.publication() {
        None => next(examination, file),
        Some(record) => match own(examination, record, file) {
            Err(Stop::Unconfirmed { .. }) => next(examination, file),
            decided => decided,
        },
    }
}

/// The signature's own publication is in the file.
fn own(
    examination: &mut Examination<'_>,
    record: &PublicationRecord,
    file: &PublicationsFile,
) -> Result<(), Stop> {
    let listed = examination.need(
        Publication,
        "signature's publication is in the publications file",
        file.at_time(record.data.time),
        Reason::NoPublication,
    )?;
    let same = record.data.imprint == listed.data.imprint;
    let rule = "signature's publication is that of the publications file";
    examination.record(Publication, rule, Outcome::passed_if(same, Code::Pub05))?;
    own_algorithms(examination)
}

/// The first publication that covers the signature is reached by extending.
fn next(examination: &mut Examination<'_>, file: &PublicationsFile) -> Result<(), Stop> {
    let nearest = examination.need(
        Publication,
        "publications file has a later publication",
        file.nearest(examination.signature.aggregation_time()),
        Reason::NoPublication,
    )?;
    leads_to(examination, &nearest.data)
}
