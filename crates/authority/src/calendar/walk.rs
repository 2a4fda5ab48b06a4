//! A walk through the calendar, second by second, with the root that it had in
//! each: what its log's entries are made of (spec calendar log §1).
//!
//! The root of one second costs O(log t) reads; a walk carries the right edge of
//! the tree along instead and reads leaves alone, many at a time.

use pitser_ksi::calendar_entry::CalendarEntry;
use pitser_ksi::hash::Imprint;
use pitser_ksi::time::Second;

use super::tree::{self, Nodes};
use super::{CalendarError, CalendarReader};

/// Goes through the seconds of a calendar in their order.
#[derive(Debug)]
pub struct Walk {
    reader: CalendarReader,
    /// The second that comes next; as many leaves lie left of it.
    next: Second,
    /// Roots of the perfect trees over the leaves before `next`, largest first.
    edge: Vec<Imprint>,
}

impl CalendarReader {
    /// A walk that begins with second `from`, which may be the one after the head.
    ///
    /// # Errors
    /// [`CalendarError::BeforeGenesis`], [`CalendarError::Beyond`].
    pub fn walk(&self, from: Second) -> Result<Walk, CalendarError> {
        match from == self.genesis() {
            true => {}
            false => self.covered(Second(from.0.saturating_sub(1)))?,
        }
        let (mut edge, mut before) = (Vec::new(), 0);
        for level in (0..64u8).rev().filter(|level| from.0 >> level & 1 == 1) {
            edge.push(self.files.node(level, before >> level)?);
            before += 1 << level;
        }
        Ok(Walk {
            reader: self.clone(),
            next: from,
            edge,
        })
    }
}

impl Walk {
    /// The second that comes next.
    pub fn next(&self) -> Second {
        self.next
    }

    /// The entries of the next seconds up to the calendar's head, at most `most`
    /// of them; none if there are no more by now. One read, and as many hashes
    /// an entry as the second has one bits, 17 on average.
    ///
    /// # Errors
    /// [`CalendarError`]; the walk stands where it stood.
    pub fn take(&mut self, most: u64) -> Result<Vec<CalendarEntry>, CalendarError> {
        let Some(head) = self.reader.head().filter(|head| *head >= self.next) else {
            return Ok(Vec::new());
        };
        let count = (head.since(self.next) + 1).min(most);
        let leaves = self.reader.files.row(0, self.next.0, count)?;
        Ok(leaves.into_iter().map(|leaf| self.pass(leaf)).collect())
    }

    fn pass(&mut self, leaf: Imprint) -> CalendarEntry {
        let at = self.next;
        let mut node = leaf;
        for _ in 0..at.0.trailing_ones() {
            let left = self.edge.pop().expect("one node for each one bit");
            node = tree::parent(&left, &node);
        }
        self.edge.push(node);
        self.next = at.plus(1);
        let from_the_right = self.edge.iter().rev().copied();
        let root = from_the_right
            .reduce(|right, left| tree::parent(&left, &right))
            .expect("a node was just pushed");
        CalendarEntry::new(at, leaf, root).expect("a calendar holds SHA-256 alone")
    }
}
