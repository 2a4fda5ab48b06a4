//! Chains climbed side by side.
//!
//! Each step of a chain needs the one before it, so the processor waits. The chains
//! of a signature all state the hash that they start from: two of them are climbed
//! at a time, and each hides what the other waits for.

use super::{AggregationChain, CALENDAR_LEVEL, CalendarChain, Link, Side, rise};
use crate::hash::{Algorithm, Imprint, Kernel, Node, two_nodes};
use core::slice::Iter;

/// Somewhere on the way up a chain.
pub(crate) struct Climber<'c> {
    reached: Imprint,
    /// Of the next step, unless a calendar link says otherwise.
    algorithm: Algorithm,
    way: Way<'c>,
}

/// The links ahead.
enum Way<'c> {
    Aggregation(Iter<'c, Link>, u8),
    Calendar(Iter<'c, (Side, Imprint)>),
}

impl<'c> Climber<'c> {
    /// At the input of `chain`, whose levels stay within 255 from `level` on.
    pub(crate) fn of_aggregation(chain: &'c AggregationChain, level: u8) -> Self {
        Self {
            reached: chain.input,
            algorithm: chain.algorithm,
            way: Way::Aggregation(chain.links.iter(), level),
        }
    }

    /// At the input of `chain`.
    pub(crate) fn of_calendar(chain: &'c CalendarChain) -> Self {
        Self {
            reached: chain.input,
            algorithm: chain.input.algorithm(),
            way: Way::Calendar(chain.links.iter()),
        }
    }

    /// The root, once the climber is there.
    pub(crate) fn reached(&self) -> Imprint {
        self.reached
    }

    /// Goes the rest of the way alone.
    pub(crate) fn climb(&mut self) -> Imprint {
        while let Some(step) = self.next() {
            self.reached = step.from(&self.reached).hash();
        }
        self.reached
    }

    fn ahead(&self) -> usize {
        match &self.way {
            Way::Aggregation(links, _) => links.len(),
            Way::Calendar(links) => links.len(),
        }
    }

    fn next(&mut self) -> Option<Step<'c>> {
        let (side, sibling, level) = match &mut self.way {
            Way::Aggregation(links, level) => {
                let link = links.next()?;
                *level = rise(*level, link, 0).expect("the levels stay within 255");
                (link.side, link.sibling.as_bytes(), *level)
            }
            Way::Calendar(links) => {
                let (side, sibling) = links.next()?;
                if *side == Side::Left {
                    self.algorithm = sibling.algorithm();
                }
                (*side, sibling.as_bytes(), CALENDAR_LEVEL)
            }
        };
        Some(Step {
            algorithm: self.algorithm,
            side,
            sibling,
            level,
        })
    }
}

/// Brings all `climbers` to their roots, two at a time, those with the longest way
/// first. No allocation.
pub(crate) fn climb_abreast(climbers: &mut [Climber<'_>]) {
    let kernel = Kernel::best();
    let mut pair = [None; 2];
    loop {
        for i in 0..2 {
            let finished = pair[i].is_none_or(|climber: usize| climbers[climber].ahead() == 0);
            if finished {
                pair[i] = longest_way(climbers, pair[1 - i]);
            }
        }
        match pair {
            [Some(first), Some(second)] => {
                let both = climbers.get_disjoint_mut([first, second]);
                climb_two(kernel, both.expect("they are not the same"));
            }
            [Some(last), None] | [None, Some(last)] => _ = climbers[last].climb(),
            [None, None] => return,
        }
    }
}

/// The climber with the longest way ahead, if anyone but `other` has one.
fn longest_way(climbers: &[Climber<'_>], other: Option<usize>) -> Option<usize> {
    (0..climbers.len())
        .filter(|&climber| Some(climber) != other && climbers[climber].ahead() > 0)
        .max_by_key(|&climber| climbers[climber].ahead())
}

/// Goes on until one of them is there.
fn climb_two(kernel: Kernel, [first, second]: [&mut Climber<'_>; 2]) {
    for _ in 0..first.ahead().min(second.ahead()) {
        let (Some(one), Some(other)) = (first.next(), second.next()) else {
            return;
        };
        let nodes = [one.from(&first.reached), other.from(&second.reached)];
        [first.reached, second.reached] = two_nodes(kernel, nodes);
    }
}

/// A step that does not know yet where it starts from.
struct Step<'c> {
    algorithm: Algorithm,
    side: Side,
    sibling: &'c [u8],
    level: u8,
}

impl<'c> Step<'c> {
    fn from<'n>(&self, reached: &'n Imprint) -> Node<'n>
    where
        'c: 'n,
    {
        let (left, right) = self.side.arrange(reached.as_bytes(), self.sibling);
        Node {
            algorithm: self.algorithm,
            left,
            right,
            level: self.level,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chain::{Metadata, Sibling, climb},
        hash,
        time::Second,
    };

    /// Imprints by several algorithms, metadata and legacy ids.
    fn link(number: usize) -> Link {
        let imprint = |algorithm| Sibling::Imprint(hash::hash(algorithm, &[&[number as u8]]));
        let sibling = match number % 11 {
            2 => Sibling::Metadata(Metadata::default().encode()),
            5 => Sibling::LegacyId([3; 29]),
            7 => imprint(Algorithm::Sha512),
            _ => imprint(Algorithm::Sha256),
        };
        Link {
            side: if number.is_multiple_of(3) {
                Side::Left
            } else {
                Side::Right
            },
            correction: (number % 4) as u8,
            sibling,
        }
    }

    fn chain(number: usize, length: usize) -> AggregationChain {
        let algorithm = match number % 5 {
            3 => Algorithm::Sha1,
            _ => Algorithm::Sha256,
        };
        AggregationChain {
            aggregation_time: Second(0),
            index: Vec::new(),
            input_data: None,
            input: hash::hash(algorithm, &[b"input"]),
            algorithm,
            links: (number..number + length).map(link).collect(),
        }
    }

    #[test]
    fn nobody_gets_lost() {
        for count in 0..9 {
            for seed in 0..20 {
                let length = |i: usize| (i * 7 + seed * 5) % 23;
                let chains: Vec<_> = (0..count).map(|i| chain(i + seed, length(i))).collect();
                let calendar = CalendarChain {
                    publication_time: Second(0),
                    aggregation_time: None,
                    input: hash::hash(Algorithm::Sha256, &[b"second"]),
                    links: (seed..2 * seed)
                        .map(|i| (link(i).side, hash::hash(Algorithm::ALL[i % 9], &[])))
                        .collect(),
                };
                let mut climbers: Vec<_> = chains
                    .iter()
                    .map(|chain| Climber::of_aggregation(chain, 3))
                    .chain([Climber::of_calendar(&calendar)])
                    .collect();
                climb_abreast(&mut climbers);
                let roots = climbers.iter().map(Climber::reached);
                let expected = chains
                    .iter()
                    .map(|chain| {
                        climb(chain.algorithm, chain.input, 3, &chain.links)
                            .unwrap()
                            .0
                    })
                    .chain([calendar.output()]);
                assert!(roots.eq(expected), "{count} of {seed}");
            }
        }
    }
}
