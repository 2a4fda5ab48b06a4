//! The user publication policy: the calendar leads to a root that the caller
//! brings, from a newspaper for instance (spec §6). It relies on hash functions
//! only.

use super::{
    Code, Examination, Outcome, Part::Publication, Reason, Stop, calendar, key::algorithms,
};
use crate::publication::PublicationData;

/// Applies all rules in order.
pub(super) fn check(examination: &mut Examination<'_>) -> Result<(), Stop> {
    let (signature, context) = (examination.signature, examination.context);
    let trusted = examination.need(
        Publication,
        "a publication is given",
        context.user_publication,
        Reason::NoPublication,
    )?;
    match signature.publication() {
        Some(own) if own.data.time == trusted.time => {
            let same = own.data.imprint == trusted.imprint;
            let rule = "signature's publication is the one given";
            examination.record(Publication, rule, Outcome::passed_if(same, Code::Pub04))?;
            own_algorithms(examination)
        }
        _ => leads_to(examination, &trusted),
    }
}

/// As [`algorithms`], of the signature's own calendar chain.
pub(super) fn own_algorithms(examination: &mut Examination<'_>) -> Result<(), Stop> {
    let chain = examination.need(
        Publication,
        "there is a calendar chain",
        examination.signature.calendar(),
        Reason::NoCalendarChain,
    )?;
    algorithms(examination, chain)
}

/// The extender has a chain from the signature to `trusted`.
///
/// The extender is not believed: only a chain that ends in the trusted root can
/// pass, and finding another one means breaking the hash function.
pub(super) fn leads_to(
    examination: &mut Examination<'_>,
    trusted: &PublicationData,
) -> Result<(), Stop> {
    let (signature, context) = (examination.signature, examination.context);
    let signed_at = signature.aggregation_time();
    examination.need(
        Publication,
        "publication is not older than the signature",
        (trusted.time >= signed_at).then_some(()),
        Reason::NoPublication,
    )?;
    examination.need(
        Publication,
        "extending is allowed",
        context.extending_allowed.then_some(()),
        Reason::NoExtender,
    )?;
    let extended = calendar::extend(examination, Some(trusted.time))?;
    algorithms(examination, &extended)?;
    for (rule, code, holds) in [
        (
            "extended calendar has the published root",
            Code::Pub01,
            extended.output() == trusted.imprint,
        ),
        (
            "extended calendar has both times",
            Code::Pub02,
            extended.publication_time == trusted.time && calendar::is_of(&extended, signed_at),
        ),
        (
            "extended calendar starts from the aggregation's root",
            Code::Pub03,
            extended.input == signature.aggregation_output(),
        ),
    ] {
        examination.record(Publication, rule, Outcome::passed_if(holds, code))?;
    }
    Ok(())
}
