//! What is done for every link, leaf or rule allocates nothing: a signature costs as
//! many allocations with sixty links as with two, and a tree's memory can be used
//! again.
//!
//! The counter counts for all threads, so this file has a single test.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::alloc::System;

use pitser_ksi::{
    Algorithm, Imprint, Second, Signature,
    chain::{AggregationChain, CalendarChain, Link, Sibling, Side, shape},
    hash::hash,
    policy::{Context, Policy, verify},
    publication::{PublicationData, PublicationRecord},
    signature::Anchor,
    tree::TreeBuilder,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static COUNTER: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Allocations, new and grown, in the quietest of a few tries.
fn allocations<T>(mut work: impl FnMut() -> T) -> usize {
    let tries = (0..5).map(|_| {
        let region = Region::new(COUNTER);
        std::hint::black_box(work());
        let change = region.change();
        change.allocations + change.reallocations
    });
    tries.min().unwrap()
}

fn imprint(number: usize) -> Imprint {
    hash(Algorithm::Sha256, &[&number.to_be_bytes()])
}

fn side(number: usize) -> Side {
    if number % 3 == 1 {
        Side::Left
    } else {
        Side::Right
    }
}

/// `chains` aggregation chains of `links` links each, and a calendar chain of as many.
fn signature(chains: usize, links: usize) -> Vec<u8> {
    let time = (1 << links) - 1;
    let mut input = imprint(0);
    let mut index = vec![1; chains];
    let mut all = Vec::new();
    for number in 0..chains {
        let link = |i| Link {
            side: side(i),
            correction: 0,
            sibling: Sibling::Imprint(imprint(i)),
        };
        let links: Vec<_> = (0..links).map(link).collect();
        index[chains - number - 1] = shape(&links).unwrap();
        all.push(AggregationChain {
            aggregation_time: Second(time),
            index: Vec::new(),
            input_data: None,
            input,
            algorithm: Algorithm::Sha256,
            links,
        });
        input = all[number].output(0).unwrap().0;
    }
    // The levels go on from chain to chain, and so do the inputs.
    let mut level = 0;
    for number in 0..chains {
        all[number].index = index[..chains - number].to_vec();
        let (output, reached) = all[number].output(level).unwrap();
        level = reached;
        input = output;
        if let Some(above) = all.get_mut(number + 1) {
            above.input = output;
        }
    }
    let calendar = CalendarChain {
        publication_time: Second(time),
        aggregation_time: Some(Second(time)),
        input,
        links: (0..links).map(|i| (Side::Right, imprint(i))).collect(),
    };
    let record = PublicationRecord::from(PublicationData {
        time: Second(time),
        imprint: calendar.output(),
    });
    let anchor = Anchor::Publication(record);
    let signature = Signature::new(&all, Some(&calendar), Some(&anchor)).unwrap();
    signature.encode()
}

fn decoded_and_verified(bytes: &[u8]) -> usize {
    allocations(|| {
        let signature = Signature::decode(bytes).unwrap();
        let verdict = verify(&signature, &Context::new(Policy::Internal));
        assert!(verdict.is_intact(), "{verdict:?}");
    })
}

fn no_allocation_per_link() {
    for chains in 1..=4 {
        let few = decoded_and_verified(&signature(chains, 2));
        for links in [3, 10, 40, 60] {
            let many = decoded_and_verified(&signature(chains, links));
            assert_eq!(many, few, "{chains} chains of {links} links");
        }
        // The bytes, a list of chains that may grow, the calendar's links, two lists of
        // roots; for each chain its links and its index.
        assert!(few <= 6 + 2 * chains, "{few} for {chains} chains");
    }
}

fn no_allocation_per_leaf_of_a_recycled_tree() {
    let build = |mut tree: TreeBuilder, leaves: usize| {
        (0..leaves).for_each(|i| _ = tree.push(imprint(i), 0).unwrap());
        tree.finish().unwrap()
    };
    let mut kept = Some(build(TreeBuilder::new(Algorithm::Sha256), 5000));
    let counts = [5000, 4000].map(|leaves| {
        allocations(|| {
            let tree = build(kept.take().unwrap().recycle(), leaves);
            kept = Some(tree);
        })
    });
    // What closing makes: the levels that are left over, and their joins.
    assert!(counts.iter().all(|&count| count < 16), "{counts:?}");
    let tree = kept.unwrap();
    assert_eq!(allocations(|| tree.path(77).count()), 0);
}

#[test]
fn what_is_done_often_allocates_nothing() {
    no_allocation_per_link();
    no_allocation_per_leaf_of_a_recycled_tree();
}
