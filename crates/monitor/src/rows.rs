//! Wrong rows whose findings are only counted: sixteen bytes for each and at most a quarter
//! more, since somebody may have put an old backup there, and then all rows are wrong.

use std::ops::Range;

/// Of one kind, the findings of rows that are only counted: what each is in brief, its line,
/// and whether it was met since [`Rows::begin`].
#[derive(Debug, Default)]
pub(crate) struct Rows {
    /// In the order of their briefs, as are the entries of each. None is empty.
    pages: Vec<Vec<Entry>>,
    len: usize,
}

/// | brief:80 | line:47 | met:1 |
///
/// A brief is of a digest over a key that the database does not know: 80 bits tell one from
/// ten million others but for one case in 2^56. 2^47 lines would take some 10^16 bytes.
#[derive(Debug, Clone, Copy)]
struct Entry(u128);

const MET: u128 = 1;
/// Bits of line and mark.
const REST: u32 = 48;
/// Entries of a page, at most.
const PAGE: usize = 1024;

impl Entry {
    fn new(brief: u128, line: u64, is_met: bool) -> Self {
        let line = u128::from(line) << 1 & !(u128::MAX << REST);
        Self(short(brief) << REST | line | u128::from(is_met))
    }

    fn brief(self) -> u128 {
        self.0 >> REST
    }

    fn line(self) -> u64 {
        let line = (self.0 & !(u128::MAX << REST)) >> 1;
        line.try_into().expect("47 bits are fewer than 64")
    }

    fn is_met(self) -> bool {
        self.0 & MET != 0
    }
}

/// What is kept of a brief.
fn short(brief: u128) -> u128 {
    brief >> REST
}

impl Rows {
    /// Whether a finding is one of them; it is met then.
    pub(crate) fn meet(&mut self, brief: u128) -> bool {
        let (page, at) = self.find(brief);
        let page = self.pages.get_mut(page);
        let entry = page.and_then(|page| page.get_mut(at.ok()?));
        entry.is_some_and(|entry| {
            entry.0 |= MET;
            true
        })
    }

    /// Adds a finding, in the place of the same one before.
    pub(crate) fn insert(&mut self, brief: u128, line: u64, is_met: bool) {
        let entry = Entry::new(brief, line, is_met);
        let (nth, at) = self.find(brief);
        let Some(page) = self.pages.get_mut(nth) else {
            self.len = 1;
            return self.pages.push(vec![entry]);
        };
        match at {
            Ok(at) => page[at] = entry,
            Err(at) => {
                if page.len() == page.capacity() {
                    // Doubling would leave up to half of it empty.
                    page.reserve_exact((page.len() / 4).max(4));
                }
                page.insert(at, entry);
                self.len += 1;
            }
        }
        if page.len() > PAGE {
            let behind = page.split_off(PAGE / 2);
            page.shrink_to_fit();
            self.pages.insert(nth + 1, behind);
        }
    }

    pub(crate) fn remove(&mut self, brief: u128) {
        if let (nth, Ok(at)) = self.find(brief) {
            self.pages[nth].remove(at);
            self.len -= 1;
            if self.pages[nth].is_empty() {
                self.pages.remove(nth);
            }
        }
    }

    /// None of them is met from now on, until it is.
    pub(crate) fn begin(&mut self) {
        for entry in self.pages.iter_mut().flatten() {
            entry.0 &= !MET;
        }
    }

    /// Drops those that were not met.
    pub(crate) fn retain_met(&mut self) {
        for page in &mut self.pages {
            page.retain(|entry| entry.is_met());
            page.shrink_to(page.len() + page.len() / 4);
        }
        self.pages.retain(|page| !page.is_empty());
        self.pages.shrink_to_fit();
        self.len = self.pages.iter().map(Vec::len).sum();
    }

    /// Their lines, in no order.
    pub(crate) fn lines(&self) -> impl Iterator<Item = u64> {
        self.pages.iter().flatten().map(|entry| entry.line())
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// The page that a finding is in, or would be, and where there.
    fn find(&self, brief: u128) -> (usize, Result<usize, usize>) {
        let brief = short(brief);
        let begins = |page: &Vec<Entry>| page.first().is_some_and(|it| it.brief() <= brief);
        let page = self.pages.partition_point(begins).saturating_sub(1);
        let at = match self.pages.get(page) {
            Some(page) => page.binary_search_by_key(&brief, |entry| entry.brief()),
            None => Err(0),
        };
        (page, at)
    }
}

/// Numbers of lines. Findings of rows that one scan found follow one another, and so do
/// their lines: of millions there are a few runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lines(Vec<Range<u64>>);

impl Lines {
    /// Whether a line is one of them.
    pub fn contains(&self, line: u64) -> bool {
        let behind = self.0.partition_point(|run| run.start <= line);
        let run = behind.checked_sub(1).and_then(|last| self.0.get(last));
        run.is_some_and(|run| line < run.end)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|run| run.end - run.start).sum()
    }
}

impl FromIterator<u64> for Lines {
    /// From lines in any order.
    fn from_iter<I: IntoIterator<Item = u64>>(lines: I) -> Self {
        let mut lines: Vec<u64> = lines.into_iter().collect();
        lines.sort_unstable();
        let mut runs: Vec<Range<u64>> = Vec::new();
        for line in lines {
            match runs.last_mut() {
                Some(run) if line < run.end => {}
                Some(run) if line == run.end => run.end += 1,
                _ => runs.push(line..line + 1),
            }
        }
        runs.shrink_to_fit();
        Self(runs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pitser_evidence::codec::Digest;
    use std::collections::BTreeMap;

    fn brief(number: u64) -> u128 {
        let digest = Digest::of(&[&number.to_be_bytes()]);
        u128::from_be_bytes(*digest.0.digest().first_chunk().unwrap())
    }

    /// Against a map, over more than are in one page.
    #[test]
    fn they_are_known_by_their_briefs_with_their_lines() {
        let (mut rows, mut known) = (Rows::default(), BTreeMap::new());
        for number in 0..5000 {
            let line = number * 7 % 5000;
            rows.insert(brief(number), line, false);
            known.insert(number, line);
            // The same again, by another line.
            if number % 5 == 0 {
                rows.insert(brief(number / 2), number + 9000, false);
                known.insert(number / 2, number + 9000);
            }
            if number % 3 == 0 {
                rows.remove(brief(number));
                known.remove(&number);
            }
        }
        assert!(rows.pages.len() > 3);
        let lines = |rows: &Rows| {
            let mut lines: Vec<u64> = rows.lines().collect();
            lines.sort_unstable();
            lines
        };
        let expected = |known: &BTreeMap<u64, u64>| {
            let mut lines: Vec<u64> = known.values().copied().collect();
            lines.sort_unstable();
            lines
        };
        assert_eq!(lines(&rows), expected(&known));
        // Half of them are met.
        rows.begin();
        for number in (0..6000).filter(|number| number % 2 == 0) {
            assert_eq!(
                rows.meet(brief(number)),
                known.contains_key(&number),
                "{number}"
            );
        }
        rows.retain_met();
        known.retain(|number, _| number % 2 == 0);
        assert_eq!((lines(&rows), rows.len()), (expected(&known), known.len()));
        // Those are met no more.
        rows.begin();
        rows.retain_met();
        assert!(rows.is_empty());
    }

    #[test]
    fn a_quarter_is_empty_at_most() {
        let mut rows = Rows::default();
        (0..100_000).for_each(|number| rows.insert(brief(number), number, true));
        let capacity = |rows: &Rows| rows.pages.iter().map(Vec::capacity).sum::<usize>();
        assert!(capacity(&rows) <= 125_000, "{}", capacity(&rows));
        // After most of them were mended, as little.
        rows.begin();
        (0..10_000).for_each(|number| assert!(rows.meet(brief(number))));
        rows.retain_met();
        assert!(capacity(&rows) <= 12_500, "{}", capacity(&rows));
    }

    #[test]
    fn an_entry_has_its_line_to_the_last_bit() {
        let last = (1 << 47) - 1;
        for line in [0, 1, last] {
            for is_met in [false, true] {
                let entry = Entry::new(u128::MAX, line, is_met);
                assert_eq!((entry.line(), entry.is_met()), (line, is_met));
                assert_eq!(entry.brief(), short(u128::MAX));
            }
        }
    }

    #[test]
    fn lines_that_follow_one_another_are_a_run() {
        let lines: Lines = [9, 4, 5, 3, 9, 11, 10].into_iter().collect();
        assert_eq!(lines.0, [3..6, 9..12]);
        let all: Vec<u64> = (0..20).filter(|line| lines.contains(*line)).collect();
        assert_eq!(all, [3, 4, 5, 9, 10, 11]);
        assert_eq!((lines.count(), lines.is_empty()), (6, false));
        let none: Lines = std::iter::empty().collect();
        assert!(none.is_empty() && !none.contains(0));
    }
}
