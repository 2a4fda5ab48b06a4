//! What happened to the seconds, and whether it may have.
//!
//! The calendar is to be a register for every second that is written once, below
//! a head that only grows. The checker takes what every node and client saw, with
//! times of one clock, and names the first thing that no such calendar can do.

#![allow(clippy::result_large_err, reason = "made once, to be shown")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

/// Something that was seen. Times are nanoseconds of the one machine's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub time_ns: u64,
    pub by: String,
    pub kind: Kind,
    pub at: u64,
    /// Hexadecimal digits of the root.
    pub root: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A node is about to write a second.
    Write,
    /// It was told that it is written.
    Written,
    /// It was told that it cannot be.
    Refused,
    /// It could not find out.
    Unknown,
    /// A node came to have a second; these grow.
    Read,
    /// A client got a signature in that second.
    Signed,
}

impl Kind {
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "write" => Self::Write,
            "written" => Self::Written,
            "refused" => Self::Refused,
            "unknown" => Self::Unknown,
            "read" => Self::Read,
            _ => return None,
        })
    }
}

/// What no calendar that is written once can do.
#[derive(Debug, PartialEq, Eq)]
pub enum Violation {
    /// A second has two roots.
    TwoRoots { at: u64, one: Event, other: Event },
    /// Somebody saw a root before anybody wrote it.
    FromNowhere(Event),
    /// A root was seen whose writer was told that it is not there.
    Undead { refused: Event, seen: Event },
    /// A second was begun after a later one was finished, and was written.
    OutOfOrder { earlier: Event, later: Event },
    /// A node that had a second later had only an earlier one.
    Backwards { before: Event, after: Event },
    /// What was finished or signed is not in a node's calendar in the end.
    Lost { seen: Event, by: String },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:#?}")
    }
}

/// Checks everything that was seen. `finals` is, for each node, the root of every
/// second of its calendar; all of them have come as far as `reached`.
pub fn check(
    events: &[Event],
    finals: &BTreeMap<String, BTreeMap<u64, String>>,
    reached: u64,
) -> Result<(), Violation> {
    let mut events: Vec<&Event> = events.iter().collect();
    events.sort_by_key(|event| event.time_ns);
    one_root(&events)?;
    written_before_seen(&events)?;
    in_order(&events)?;
    forwards(&events)?;
    kept(&events, finals, reached)
}

fn is_seen(event: &&Event) -> bool {
    matches!(event.kind, Kind::Written | Kind::Read | Kind::Signed)
}

fn one_root(events: &[&Event]) -> Result<(), Violation> {
    let mut roots: HashMap<u64, &Event> = HashMap::new();
    for event in events.iter().copied().filter(is_seen) {
        let known = roots.entry(event.at).or_insert(event);
        if known.root != event.root {
            return Err(Violation::TwoRoots {
                at: event.at,
                one: (*known).clone(),
                other: event.clone(),
            });
        }
    }
    Ok(())
}

/// What is seen was begun before, and not only by those who were told that it did
/// not happen.
fn written_before_seen(events: &[&Event]) -> Result<(), Violation> {
    let key = |event: &Event| (event.at, event.root.clone());
    let mut writes: HashMap<(u64, String), usize> = HashMap::new();
    let mut refused: HashMap<(u64, String), Vec<&Event>> = HashMap::new();
    for event in events.iter().copied() {
        match event.kind {
            Kind::Write => *writes.entry(key(event)).or_default() += 1,
            Kind::Refused => refused.entry(key(event)).or_default().push(event),
            _ => {}
        }
    }
    let mut begun = HashSet::new();
    for event in events.iter().copied() {
        if event.kind == Kind::Write {
            begun.insert(key(event));
        }
        if !is_seen(&event) {
            continue;
        }
        if !begun.contains(&key(event)) {
            return Err(Violation::FromNowhere(event.clone()));
        }
        match refused.get(&key(event)) {
            Some(refused) if refused.len() == writes[&key(event)] => {
                return Err(Violation::Undead {
                    refused: refused[0].clone(),
                    seen: event.clone(),
                });
            }
            _ => {}
        }
    }
    Ok(())
}

/// A write that began when a later second was finished cannot succeed.
fn in_order(events: &[&Event]) -> Result<(), Violation> {
    let mut newest: Option<&Event> = None;
    let mut begun: HashMap<(&str, u64), Option<&Event>> = HashMap::new();
    for event in events {
        match event.kind {
            Kind::Write => _ = begun.insert((&event.by, event.at), newest),
            Kind::Written => {
                let known = begun.remove(&(event.by.as_str(), event.at)).flatten();
                if let Some(later) = known.filter(|known| known.at >= event.at) {
                    return Err(Violation::OutOfOrder {
                        earlier: (*event).clone(),
                        later: later.clone(),
                    });
                }
                if newest.is_none_or(|newest| newest.at < event.at) {
                    newest = Some(event);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn forwards(events: &[&Event]) -> Result<(), Violation> {
    let mut newest: HashMap<&str, &Event> = HashMap::new();
    for event in events.iter().filter(|event| event.kind == Kind::Read) {
        if let Some(before) = newest.insert(&event.by, event)
            && before.at > event.at
        {
            return Err(Violation::Backwards {
                before: before.clone(),
                after: (*event).clone(),
            });
        }
    }
    Ok(())
}

fn kept(
    events: &[&Event],
    finals: &BTreeMap<String, BTreeMap<u64, String>>,
    reached: u64,
) -> Result<(), Violation> {
    for (node, seconds) in finals {
        for event in events.iter().copied().filter(is_seen) {
            let found = seconds.get(&event.at);
            if found != Some(&event.root) && (found.is_some() || event.at <= reached) {
                return Err(Violation::Lost {
                    seen: event.clone(),
                    by: node.clone(),
                });
            }
        }
    }
    Ok(())
}

mod tests {
    use super::*;

    fn history(text: &str) -> Vec<Event> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        lines
            .zip(1..)
            .map(|(line, time_ns)| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let kind = match words[1] {
                    "signed" => Kind::Signed,
                    name => Kind::parse(name).unwrap(),
                };
                Event {
                    time_ns,
                    by: words[0].to_owned(),
                    kind,
                    at: words[2].parse().unwrap(),
                    root: words[3].to_owned(),
                }
            })
            .collect()
    }

    fn finals(seconds: &[(u64, &str)]) -> BTreeMap<String, BTreeMap<u64, String>> {
        let seconds = seconds.iter().map(|(at, root)| (*at, (*root).to_owned()));
        BTreeMap::from([("a".to_owned(), seconds.collect())])
    }

    fn verdict(text: &str, seconds: &[(u64, &str)]) -> Result<(), Violation> {
        check(&history(text), &finals(seconds), 9)
    }

    #[test]
    fn the_checker_lets_pass_what_may_happen() {
        let good = "
            a write 1 x
            a written 1 x
            b read 1 x
            client signed 1 x
            a write 2 y
            a unknown 2 y
            b read 2 y
            a write 3 z
            b write 3 w
            a refused 3 z
            b written 3 w
            a read 3 w
            b read 3 w";
        assert_eq!(verdict(good, &[(1, "x"), (2, "y"), (3, "w")]), Ok(()));
        // What is unknown need not have happened.
        let lost = "
            a write 1 x
            a unknown 1 x
            b write 1 y
            b written 1 y";
        assert_eq!(verdict(lost, &[(1, "y")]), Ok(()));
    }

    #[test]
    fn the_checker_notices_two_roots() {
        for seen in ["b read 1 y", "client signed 1 y", "b written 1 y"] {
            let text = format!("a write 1 x\nb write 1 y\na written 1 x\n{seen}");
            let found = verdict(&text, &[(1, "x")]);
            assert!(
                matches!(found, Err(Violation::TwoRoots { at: 1, .. })),
                "{found:?}"
            );
        }
    }

    #[test]
    fn the_checker_notices_what_nobody_wrote() {
        for text in ["b read 1 x\na write 1 x", "a write 1 y\nclient signed 1 x"] {
            let found = verdict(text, &[(1, "x")]);
            assert!(matches!(found, Err(Violation::FromNowhere(_))), "{found:?}");
        }
    }

    #[test]
    fn the_checker_notices_what_was_refused_and_is_there() {
        let text = "a write 1 x\na refused 1 x\nb read 1 x";
        let found = verdict(text, &[(1, "x")]);
        assert!(matches!(found, Err(Violation::Undead { .. })), "{found:?}");
        // Seen before it was refused is as bad.
        let text = "a write 1 x\nb read 1 x\na refused 1 x";
        let found = verdict(text, &[(1, "x")]);
        assert!(matches!(found, Err(Violation::Undead { .. })), "{found:?}");
    }

    #[test]
    fn the_checker_notices_a_second_between_finished_ones() {
        let text = "
            a write 5 x
            a written 5 x
            b write 4 y
            b written 4 y";
        let found = verdict(text, &[(4, "y"), (5, "x")]);
        assert!(
            matches!(found, Err(Violation::OutOfOrder { .. })),
            "{found:?}"
        );
    }

    #[test]
    fn the_checker_notices_a_node_that_goes_back() {
        let text = "
            a write 1 x
            a written 1 x
            a write 2 y
            a written 2 y
            b read 2 y
            b read 1 x";
        let found = verdict(text, &[(1, "x"), (2, "y")]);
        assert!(
            matches!(found, Err(Violation::Backwards { .. })),
            "{found:?}"
        );
    }

    #[test]
    fn the_checker_notices_what_is_gone_in_the_end() {
        let text = "a write 1 x\na written 1 x\nclient signed 1 x";
        for seconds in [&[(1, "zero")][..], &[]] {
            let found = verdict(text, seconds);
            assert!(matches!(found, Err(Violation::Lost { .. })), "{found:?}");
        }
    }
}
