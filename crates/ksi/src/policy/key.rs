//! The key policy: the service's key signed the calendar root (spec §6).
//!
//! It relies on the publications file for the certificate, and on RSA. A
//! publication, once there is one, makes do without either.

use super::{
    Code, Examination, Outcome,
    Part::{Authentication, Calendar},
    Reason, Stop,
};
use crate::{
    chain::{CalendarChain, Side},
    pki::Certificate,
};

/// Applies all rules in order.
pub(super) fn check(examination: &mut Examination<'_>) -> Result<(), Stop> {
    let (signature, context) = (examination.signature, examination.context);
    let chain = examination.need(
        Calendar,
        "there is a calendar chain",
        signature.calendar(),
        Reason::NoCalendarChain,
    )?;
    algorithms(examination, chain)?;
    let record = examination.need(
        Authentication,
        "there is an authentication record",
        signature.authentication(),
        Reason::NoAuthentication,
    )?;
    let publications = examination.need(
        Authentication,
        "there is a publications file",
        context.publications,
        Reason::NoPublicationsFile,
    )?;
    let listed = publications.certificate(&record.signature().certificate_id);
    let certificate = examination.need(
        Authentication,
        "certificate is in the publications file",
        listed.and_then(|der| Certificate::from_der(der).ok()),
        Reason::UnknownCertificate,
    )?;
    examination.record(
        Authentication,
        "certificate was valid when signed",
        Outcome::passed_if(
            certificate.is_valid_at(signature.aggregation_time()),
            Code::Key03,
        ),
    )?;
    let signed = record.signature();
    let outcome = if !certificate.has_supported_key() {
        Outcome::Undecided(Reason::UnsupportedAlgorithm)
    } else {
        let verified = certificate.verify_rsa(&signed.oid, record.signed_bytes(), &signed.value);
        Outcome::passed_if(verified.is_ok(), Code::Key02)
    };
    examination.record(
        Authentication,
        "signature is by the certificate's key",
        outcome,
    )
}

/// No algorithm on the way up was deprecated when the chain was published: a
/// left link's sibling decides the algorithm of its step.
pub(super) fn algorithms(
    examination: &mut Examination<'_>,
    chain: &CalendarChain,
) -> Result<(), Stop> {
    let at = chain.publication_time;
    let sound = chain
        .siblings(Side::Left)
        .all(|sibling| !sibling.algorithm().is_deprecated(at));
    let outcome = if sound {
        Outcome::Passed
    } else {
        Outcome::Undecided(Reason::DeprecatedAlgorithm)
    };
    examination.record(Calendar, "algorithms were not deprecated", outcome)
}
