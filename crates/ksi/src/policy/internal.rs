//! The internal policy: signature and document agree with themselves and each
//! other (spec §6). The order of the rules decides which code a signature with
//! several faults gets; it is that of libksi.

use super::{
    Code::{self, *},
    Examination, Outcome,
    Part::{self, *},
    Stop,
};
use crate::{
    chain::{AggregationChain, CalendarChain, Metadata, Sibling, Side, shape},
    hash::Algorithm,
    publication::PublicationData,
    signature::{Rfc3161Record, Roots},
    time::Second,
};

/// Applies all rules in order.
pub(super) fn check(examination: &mut Examination<'_>) -> Result<(), Stop> {
    document(examination)?;
    algorithms(examination)?;
    let roots = aggregation(examination)?;
    calendar(examination, &roots)
}

/// The document is what was signed, at a level that was signed.
fn document(examination: &mut Examination<'_>) -> Result<(), Stop> {
    let (signature, context) = (examination.signature, examination.context);
    let mut rules = Rules {
        examination,
        part: Document,
    };
    if let Some(document) = context.document {
        let input = signature.input();
        rules.hold(
            "algorithm is that of the signed hash",
            Gen04,
            document.algorithm() == input.algorithm(),
        )?;
        rules.hold("hash is what was signed", Gen01, document == input)?;
    }
    rules.hold(
        "level is within what was signed",
        Gen03,
        context.level <= signature.input_level_max(),
    )
}

/// What was hashed before the lowest chain could be relied on at that time.
fn algorithms(examination: &mut Examination<'_>) -> Result<(), Stop> {
    let signature = examination.signature;
    let good = |algorithm: Algorithm, at: Second| !algorithm.is_deprecated(at);
    let mut rules = Rules {
        examination,
        part: Aggregation,
    };
    // Should the two contradict each other, common clients look at the calendar.
    let signed_at = signature
        .calendar()
        .map_or(signature.aggregation_time(), CalendarChain::time);
    rules.hold(
        "algorithm of the signed hash was not deprecated",
        Int13,
        good(signature.input().algorithm(), signed_at),
    )?;
    let Some(record) = signature.rfc3161() else {
        return Ok(());
    };
    let lowest = &signature.aggregation_chains()[0];
    let at = record.aggregation_time;
    rules.hold(
        "RFC 3161 algorithms were not deprecated",
        Int14,
        good(record.attr_algorithm, at) && good(record.tst_algorithm, at),
    )?;
    rules.hold(
        "RFC 3161 output algorithm was not deprecated",
        Int17,
        good(lowest.input.algorithm(), at),
    )?;
    rules.hold(
        "RFC 3161 output is the first chain's input",
        Int01,
        record.output(lowest.input.algorithm()) == lowest.input,
    )
}

/// The aggregation chains lead from the input to one root, in one second. Returns
/// where all chains lead.
fn aggregation(examination: &mut Examination<'_>) -> Result<Roots, Stop> {
    let signature = examination.signature;
    let (chains, record) = (signature.aggregation_chains(), signature.rfc3161());
    let mut rules = Rules {
        examination,
        part: Aggregation,
    };
    rules.hold(
        "metadata is not mistakable for a hash",
        Int11,
        chains.iter().all(is_unambiguous),
    )?;
    rules.hold(
        "algorithms were not deprecated",
        Int15,
        chains.iter().all(is_current),
    )?;
    rules.hold(
        "chain indexes continue each other",
        Int12,
        indexes_continue(record, chains),
    )?;
    rules.hold("chains name one time", Int02, times_agree(record, chains))?;
    let roots = signature.roots();
    let inputs_above = chains.iter().skip(1).map(|chain| &chain.input);
    rules.hold(
        "each chain's output is the next one's input",
        Int01,
        roots
            .aggregation
            .iter()
            .zip(inputs_above)
            .all(|(output, input)| output == input),
    )?;
    rules.hold(
        "shape of each chain is what its index says",
        Int10,
        chains.iter().all(has_shape),
    )?;
    Ok(roots)
}

/// The calendar chain starts from the aggregation's root, and its own root is
/// what the anchor says.
fn calendar(examination: &mut Examination<'_>, roots: &Roots) -> Result<(), Stop> {
    let signature = examination.signature;
    let Some(calendar) = signature.calendar() else {
        return Ok(());
    };
    let time = signature.aggregation_time();
    let mut rules = Rules {
        examination,
        part: Calendar,
    };
    rules.hold(
        "starts from the aggregation's root",
        Int03,
        roots.aggregation.last() == Some(&calendar.input),
    )?;
    rules.hold(
        "starts from the aggregation's time",
        Int04,
        calendar.time() == time,
    )?;
    rules.hold(
        "shape is that of its time",
        Int05,
        calendar.time_from_shape() == Some(time),
    )?;
    rules.hold(
        "algorithms are not obsolete",
        Int16,
        has_no_obsolete_link(calendar),
    )?;
    if let Some(record) = signature.authentication() {
        rules.part = Authentication;
        rules.anchor(calendar, roots, record.data(), [Int08, Int06])?;
    }
    if let Some(record) = signature.publication() {
        rules.part = Publication;
        rules.anchor(calendar, roots, &record.data, [Int09, Int07])?;
    }
    Ok(())
}

/// Rules about one part of the proof.
struct Rules<'e, 'a> {
    examination: &'e mut Examination<'a>,
    part: Part,
}

impl Rules<'_, '_> {
    fn hold(&mut self, rule: &'static str, code: Code, holds: bool) -> Result<(), Stop> {
        self.examination
            .record(self.part, rule, Outcome::passed_if(holds, code))
    }

    fn anchor(
        &mut self,
        calendar: &CalendarChain,
        roots: &Roots,
        data: &PublicationData,
        [wrong_root, wrong_time]: [Code; 2],
    ) -> Result<(), Stop> {
        self.hold(
            "names the calendar's root",
            wrong_root,
            roots.calendar == Some(data.imprint),
        )?;
        self.hold(
            "names the calendar's time",
            wrong_time,
            data.time == calendar.publication_time,
        )
    }
}

fn is_unambiguous(chain: &AggregationChain) -> bool {
    chain.links.iter().all(|link| match &link.sibling {
        Sibling::Metadata(encoded) => Metadata::is_unambiguous(encoded),
        Sibling::Imprint(_) | Sibling::LegacyId(_) => true,
    })
}

fn is_current(chain: &AggregationChain) -> bool {
    !chain.algorithm.is_deprecated(chain.aggregation_time)
}

fn indexes_continue(record: Option<&Rfc3161Record>, chains: &[AggregationChain]) -> bool {
    record.is_none_or(|record| record.index == chains[0].index)
        && chains.windows(2).all(|pair| {
            let [lower, upper] = pair else { return false };
            lower
                .index
                .split_last()
                .is_some_and(|(_, rest)| rest == upper.index)
        })
}

fn times_agree(record: Option<&Rfc3161Record>, chains: &[AggregationChain]) -> bool {
    let time = chains[0].aggregation_time;
    record.is_none_or(|record| record.aggregation_time == time)
        && chains.iter().all(|chain| chain.aggregation_time == time)
}

fn has_shape(chain: &AggregationChain) -> bool {
    shape(&chain.links).as_ref() == chain.index.last()
}

fn has_no_obsolete_link(calendar: &CalendarChain) -> bool {
    calendar
        .siblings(Side::Left)
        .all(|sibling| !sibling.algorithm().is_obsolete(calendar.publication_time))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::Signature;

    /// Whether the index rules hold for a published signature, whose metadata
    /// would be found fault with first.
    fn check(name: &str, continues: bool, shaped: bool) {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/ksi/tlv");
        let bytes = std::fs::read(format!("{folder}/{name}.ksig")).unwrap();
        let signature = Signature::decode(&bytes).unwrap();
        let chains = signature.aggregation_chains();
        assert_eq!(
            indexes_continue(signature.rfc3161(), chains),
            continues,
            "{name}"
        );
        assert_eq!(chains.iter().all(has_shape), shaped, "{name}");
    }

    #[test]
    fn chain_indexes() {
        check("chain-index-ok", true, true);
        check("chain-index-prefix", false, false);
        check("chain-index-prefixes", true, false);
        check("chain-index-suffix", true, false);
    }
}
