//! A calendar that holds one second of somebody's, and nothing else of note.

use pitser_ksi::chain::{CalendarChain, Side};
use pitser_ksi::hash::{Algorithm, Imprint, hash, node};
use pitser_ksi::publication::PublicationData;
use pitser_ksi::signature::Signature;
use pitser_ksi::time::Second;

/// All seconds from 1970 on (spec §3.2). All leaves but one are alike, so that
/// subtrees without that one depend on their size alone.
pub(crate) struct Calendar {
    /// The second that differs, and its leaf.
    pub(crate) at: Second,
    pub(crate) leaf: Imprint,
    /// The algorithm of all steps above leaves that are alike.
    pub(crate) algorithm: Algorithm,
}

impl Calendar {
    /// The calendar in which `signature` was sealed.
    pub(crate) fn around(signature: &Signature) -> Self {
        Self {
            at: signature.aggregation_time(),
            leaf: signature.aggregation_output(),
            algorithm: Algorithm::Sha256,
        }
    }

    /// One that knows of something else in the second of `signature`.
    pub(crate) fn contradicting(signature: &Signature) -> Self {
        Self {
            leaf: hash(Algorithm::Sha256, &[b"something else"]),
            ..Self::around(signature)
        }
    }

    /// The newest second, a day after the one of note.
    pub(crate) fn head(&self) -> Second {
        self.at.plus(86_400)
    }

    /// The root at second `to`.
    pub(crate) fn publication(&self, to: Second) -> PublicationData {
        PublicationData {
            time: to,
            imprint: self.chain(self.at, to).output(),
        }
    }

    /// The path from second `from` to the root at `to`.
    pub(crate) fn chain(&self, from: Second, to: Second) -> CalendarChain {
        assert!(from == self.at && from <= to, "only one second is of note");
        let (mut lo, mut span, mut links) = (0, to.0, Vec::new());
        while let Some(log) = span.checked_ilog2() {
            let left = 1 << log;
            if from.0 < lo + left {
                links.push((Side::Left, self.alike(span - left)));
                span = left - 1;
            } else {
                links.push((Side::Right, self.alike(left - 1)));
                lo += left;
                span -= left;
            }
        }
        links.reverse();
        CalendarChain {
            publication_time: to,
            aggregation_time: Some(from),
            input: self.leaf,
            links,
        }
    }

    /// The root of `span + 1` leaves that are all alike.
    fn alike(&self, span: u64) -> Imprint {
        let Some(log) = span.checked_ilog2() else {
            return Imprint::zero(self.algorithm);
        };
        let perfect = (0..log).fold(Imprint::zero(self.algorithm), |root, _| {
            node(self.algorithm, root.as_bytes(), root.as_bytes(), 0xff)
        });
        let right = self.alike(span - (1 << log));
        node(self.algorithm, perfect.as_bytes(), right.as_bytes(), 0xff)
    }
}
