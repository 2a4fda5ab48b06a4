//! The calendar policy: an extender, asked now, tells the same history
//! (spec §6). It relies on the extender.

use super::{Code, Examination, Outcome, Part::Calendar, Reason, Stop};
use crate::{
    chain::{CalendarChain, Side},
    time::Second,
};

/// Applies all rules in order.
pub(super) fn check(examination: &mut Examination<'_>) -> Result<(), Stop> {
    let signature = examination.signature;
    let own = signature.calendar();
    let extended = extend(examination, own.map(|chain| chain.publication_time))?;
    if let Some(own) = own {
        if signature.publication().is_some() {
            let same = extended.output() == own.output();
            hold(
                examination,
                "extender agrees on the root",
                Code::Cal01,
                same,
            )?;
        } else {
            let same = extended.siblings(Side::Right).eq(own.siblings(Side::Right));
            hold(
                examination,
                "extender agrees on the past",
                Code::Cal04,
                same,
            )?;
        }
    }
    let same = extended.input == signature.aggregation_output();
    hold(
        examination,
        "extender agrees on the hash",
        Code::Cal02,
        same,
    )?;
    let same = is_of(&extended, signature.aggregation_time());
    hold(
        examination,
        "extender agrees on the time",
        Code::Cal03,
        same,
    )
}

/// The extender's chain from the signature's second to `to`, or to the newest root.
pub(super) fn extend(
    examination: &mut Examination<'_>,
    to: Option<Second>,
) -> Result<CalendarChain, Stop> {
    const RULE: &str = "extender has a chain";
    let extender = examination.context.extender;
    let extender = examination.need(Calendar, RULE, extender, Reason::NoExtender)?;
    extender
        .extend(examination.signature.aggregation_time(), to)
        .map_err(|error| examination.undecided(Calendar, RULE, error.into()))
}

/// Whether `chain` starts at second `at`, by its own word and by its shape.
pub(super) fn is_of(chain: &CalendarChain, at: Second) -> bool {
    chain.time() == at && chain.time_from_shape() == Some(at)
}

fn hold(
    examination: &mut Examination<'_>,
    rule: &'static str,
    code: Code,
    holds: bool,
) -> Result<(), Stop> {
    examination.record(Calendar, rule, Outcome::passed_if(holds, code))
}
