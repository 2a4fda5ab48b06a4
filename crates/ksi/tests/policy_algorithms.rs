//! Hash algorithms on the way to a root: a root published after an algorithm's
//! end proves nothing over steps that use it (spec §6). Not decided, rather than
//! broken: another, newer way of proof may do.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::calendar::Calendar;
use pitser_ksi::chain::{AggregationChain, CalendarChain, Link, Sibling, Side};
use pitser_ksi::hash::{Algorithm, Imprint, hash};
use pitser_ksi::policy::{Context, Extend, ExtendError, Policy, Reason, Verdict, verify};
use pitser_ksi::publication::{
    AuthenticationRecord, PublicationData, PublicationRecord, SignatureData,
};
use pitser_ksi::signature::{Anchor, Signature};
use pitser_ksi::time::Second;

const SHA1_ENDS: Second = Second(1_467_331_200);
const SIGNED: Second = Second(SHA1_ENDS.0 - 1000);

/// A calendar whose steps of one kind use SHA-1.
struct World {
    chain: CalendarChain,
}

impl World {
    /// A left link's sibling is the right child, which decides the algorithm.
    fn new(published: Second, side: Side) -> Self {
        let calendar = Calendar {
            at: SIGNED,
            leaf: aggregation().output(0).unwrap().0,
            algorithm: Algorithm::Sha256,
        };
        let mut chain = calendar.chain(SIGNED, published);
        for (own, sibling) in &mut chain.links {
            if *own == side {
                *sibling = hash(Algorithm::Sha1, &[b"sibling"]);
            }
        }
        assert!(chain.siblings(side).next().is_some());
        Self { chain }
    }

    fn root(&self) -> PublicationData {
        PublicationData {
            time: self.chain.publication_time,
            imprint: self.chain.output(),
        }
    }

    fn signature(&self, anchor: Option<Anchor>) -> Signature {
        Signature::new(&[aggregation()], Some(&self.chain), anchor.as_ref()).unwrap()
    }
}

/// Answers with what is to be extended to, whatever is asked.
impl Extend for World {
    fn extend(&self, _: Second, _: Option<Second>) -> Result<CalendarChain, ExtendError> {
        Ok(self.chain.clone())
    }
}

fn aggregation() -> AggregationChain {
    AggregationChain {
        aggregation_time: SIGNED,
        index: vec![3],
        input_data: None,
        input: Imprint::zero(Algorithm::Sha256),
        algorithm: Algorithm::Sha256,
        links: vec![Link {
            side: Side::Left,
            correction: 0,
            sibling: Sibling::Imprint(Imprint::zero(Algorithm::Sha256)),
        }],
    }
}

/// Whether the policy has nothing against the algorithms, in each second around
/// the end of SHA-1.
fn check(judge: impl Fn(&World) -> Verdict, sound: impl Fn(&Verdict) -> bool) {
    for (published, side, good) in [
        (Second(SHA1_ENDS.0 - 1), Side::Left, true),
        (SHA1_ENDS, Side::Left, false),
        (SHA1_ENDS.plus(1), Side::Left, false),
        (SHA1_ENDS.plus(1_000_000), Side::Left, false),
        (SHA1_ENDS, Side::Right, true),
        (SHA1_ENDS.plus(1_000_000), Side::Right, true),
    ] {
        let verdict = judge(&World::new(published, side));
        let deprecated = matches!(
            &verdict,
            Verdict::Unconfirmed {
                reason: Reason::DeprecatedAlgorithm,
                ..
            }
        );
        assert_eq!(deprecated, !good, "{published} {side:?}: {verdict:?}");
        assert_eq!(sound(&verdict), good, "{published} {side:?}: {verdict:?}");
    }
}

#[test]
fn inside_a_signature_they_contradict_nothing() {
    for side in [Side::Left, Side::Right] {
        let world = World::new(SHA1_ENDS.plus(1_000_000), side);
        let anchor = Anchor::Publication(PublicationRecord::from(world.root()));
        let signature = world.signature(Some(anchor));
        assert!(verify(&signature, &Context::new(Policy::Internal)).is_intact());
    }
}

/// They are looked at before it is asked whose key it was.
#[test]
fn below_a_key() {
    let signature = SignatureData {
        oid: "1.2.840.113549.1.1.11".into(),
        value: vec![1; 256],
        certificate_id: vec![1; 4],
        repository: None,
    };
    let judge = |world: &World| {
        let record = AuthenticationRecord::new(world.root(), signature.clone());
        let signature = world.signature(Some(Anchor::Authentication(record)));
        verify(&signature, &Context::new(Policy::Key))
    };
    check(judge, |verdict| {
        matches!(
            verdict,
            Verdict::Unconfirmed {
                reason: Reason::NoPublicationsFile,
                ..
            }
        )
    });
}

#[test]
fn below_a_publication_of_the_signature() {
    let judge = |world: &World| {
        let anchor = Anchor::Publication(PublicationRecord::from(world.root()));
        let context = Context {
            user_publication: Some(world.root()),
            ..Context::new(Policy::UserPublication)
        };
        verify(&world.signature(Some(anchor)), &context)
    };
    check(judge, Verdict::is_intact);
}

#[test]
fn below_a_publication_that_is_extended_to() {
    let judge = |world: &World| {
        let context = Context {
            user_publication: Some(world.root()),
            extender: Some(world),
            extending_allowed: true,
            ..Context::new(Policy::UserPublication)
        };
        verify(&world.signature(None), &context)
    };
    check(judge, Verdict::is_intact);
}

/// The calendar policy believes the extender, who vouches for the steps.
#[test]
fn below_an_extenders_root() {
    for published in [Second(SHA1_ENDS.0 - 1), SHA1_ENDS.plus(1)] {
        let world = World::new(published, Side::Left);
        let context = Context {
            extender: Some(&world),
            ..Context::new(Policy::Calendar)
        };
        assert!(verify(&world.signature(None), &context).is_intact());
    }
}
