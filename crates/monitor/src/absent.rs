//! Records of a table that have a row by the trail and were not met: a part of them at a
//! time, however many there are.

use crate::met::AllMet;
use pitser_capture::SourceError;
use pitser_evidence::codec::Bytes32;

/// Records of one table that were not met.
#[derive(Debug)]
pub(crate) struct Absent {
    table: String,
    met: AllMet,
    hidden: Option<SourceError>,
    /// So many of them are found together.
    most: usize,
    /// They are found in so many parts, which is a power of two, by their first bytes;
    /// none before it is known how many there are.
    parts: Option<u32>,
    /// The part that is found next.
    part: u32,
    found: Vec<(Bytes32, u64)>,
}

/// A first byte is one of so many.
const BYTES: u32 = 256;

impl Absent {
    /// Of a table whose records were met but for these: about `most` are in memory at a
    /// time, if there are no more than 256 times as many. `hidden`: why some may not have been
    /// shown.
    pub(crate) fn new(
        table: String,
        met: AllMet,
        hidden: Option<SourceError>,
        most: usize,
    ) -> Self {
        Self {
            table,
            met,
            hidden,
            most,
            parts: None,
            part: 0,
            found: Vec::new(),
        }
    }

    /// The table.
    pub(crate) fn table(&self) -> &str {
        &self.table
    }

    /// Why it may be that they were not shown.
    pub(crate) fn hidden(self) -> Option<SourceError> {
        self.hidden
    }

    /// Whether it may be that they were not shown.
    pub(crate) fn is_hidden(&self) -> bool {
        self.hidden.is_some()
    }

    /// One of them and the line of its row; `None` after the last. `each` shows all records
    /// of the table that have a row, with its line.
    ///
    /// # Errors
    /// Those of `each`.
    pub(crate) fn next<E>(
        &mut self,
        each: impl Fn(&mut dyn FnMut(&Bytes32, u64)) -> Result<(), E>,
    ) -> Result<Option<(Bytes32, u64)>, E> {
        loop {
            if let Some(found) = self.found.pop() {
                return Ok(Some(found));
            }
            // Gives back the memory of the part before.
            self.found = Vec::new();
            if self.parts.is_some_and(|parts| self.part >= parts) {
                return Ok(None);
            }
            self.find(&each)?;
        }
    }

    /// Finds those of the next part.
    fn find<E>(
        &mut self,
        each: impl Fn(&mut dyn FnMut(&Bytes32, u64)) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(parts) = self.parts else {
            let mut count = 0;
            let (met, most, found) = (&self.met, self.most, &mut self.found);
            each(&mut |record, seq| {
                if !met.contains(record) {
                    count += 1;
                    if count <= most {
                        found.push((*record, seq));
                    }
                }
            })?;
            let is_all = count <= most;
            self.parts = Some(if is_all { 1 } else { parts_of(count, most) });
            self.part = u32::from(is_all);
            if !is_all {
                self.found = Vec::new();
            }
            return Ok(());
        };
        let (met, part, found) = (&self.met, self.part, &mut self.found);
        each(&mut |record, seq| {
            let of = u32::from(record.0[0]) * parts / BYTES;
            if of == part && !met.contains(record) {
                found.push((*record, seq));
            }
        })?;
        self.part += 1;
        Ok(())
    }
}

/// In how many parts `count` are found so that about `most` are in each.
fn parts_of(count: usize, most: usize) -> u32 {
    let parts = count.div_ceil(most.max(1)).next_power_of_two();
    u32::try_from(parts).unwrap_or(BYTES).min(BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::met::Met;
    use pitser_evidence::codec::Digest;
    use std::cell::Cell;
    use std::collections::BTreeSet;
    use std::convert::Infallible;

    fn record(number: u64) -> Bytes32 {
        let digest = Digest::of(&[&number.to_be_bytes()]);
        Bytes32(digest.0.digest().try_into().unwrap())
    }

    /// Of 10,000 records each third was met. How many visits the others take, and how many
    /// of them are in memory at most.
    fn find(most: usize) -> (usize, usize) {
        let mut met = Met::new();
        (0..10_000)
            .step_by(3)
            .for_each(|number| met.insert(&record(number)));
        let mut absent = Absent::new("entry".into(), met.all(), None, most);
        let visits = Cell::new(0);
        let mut largest = 0;
        let mut named = BTreeSet::new();
        let each = |visit: &mut dyn FnMut(&Bytes32, u64)| {
            visits.set(visits.get() + 1);
            (0..10_000).for_each(|number| visit(&record(number), number));
            Ok::<(), Infallible>(())
        };
        while let Ok(Some((of, number))) = absent.next(each) {
            largest = largest.max(absent.found.len() + 1);
            assert_eq!(of, record(number));
            assert!(named.insert(number), "{number} is named twice");
        }
        assert!((0..10_000).all(|number| named.contains(&number) != number.is_multiple_of(3)));
        (visits.get(), largest)
    }

    #[test]
    fn few_are_found_at_once() {
        assert_eq!(find(6_666), (1, 6_666));
    }

    #[test]
    fn many_are_found_in_parts_and_each_is_named_once() {
        // One visit to count them, and one for each part.
        let (visits, largest) = find(1_000);
        assert_eq!(visits, 1 + 8);
        assert!(largest <= 1_000, "{largest}");
        let (visits, largest) = find(1);
        assert_eq!(visits, 1 + 256);
        assert!(largest < 60, "{largest}");
    }
}
