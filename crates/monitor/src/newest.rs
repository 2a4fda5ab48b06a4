//! Which findings are kept in memory: the newest of each code and table. The others are
//! counted, and stand in the trail.
//!
//! Whoever can change rows can have as many findings written as he likes; what is kept
//! of them, and written with each commit of the map, is bounded all the same.

use pitser_evidence::Code;
use std::collections::{BTreeMap, BTreeSet};

/// Open findings of one code and table that are kept, at most.
pub const KEPT: usize = 200;
/// Earlier ones, which are accepted or no longer found, of one code and table.
pub const KEPT_EARLIER: usize = 50;
/// Bytes of all open ones that are kept, about, and of all earlier ones.
pub const KEPT_BYTES: usize = 1 << 20;

/// Findings of one code about one table, or about none.
pub type Kind = (Code, Option<String>);

/// A finding that can be kept.
pub trait Keep {
    /// How large it is, in bytes.
    fn weight(&self) -> usize;

    /// Whether it may be one that is only counted. One that would be found anew for that
    /// may not; of these there are few.
    fn may_go(&self) -> bool;
}

/// Findings that are not kept, of one code and table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct More {
    /// Those that are open.
    pub open: u64,
    /// Those that are not.
    pub earlier: u64,
    /// Those that are open have lines from here on.
    pub first: u64,
    /// And up to here.
    pub last: u64,
}

/// Findings by their lines: the newest ones, and how many more there are.
#[derive(Debug)]
pub struct Newest<T> {
    open: Shelves<T>,
    earlier: Shelves<T>,
    more: BTreeMap<Kind, More>,
}

impl<T> Default for Newest<T> {
    fn default() -> Self {
        Self {
            open: Shelves::new(KEPT),
            earlier: Shelves::new(KEPT_EARLIER),
            more: BTreeMap::new(),
        }
    }
}

impl<T: Keep> Newest<T> {
    /// Adds an open finding. Gives those that are only counted from now on.
    pub fn open(&mut self, kind: &Kind, line: u64, item: T) -> Vec<(Kind, u64, T)> {
        let gone = self.open.put(kind, line, item);
        for (kind, line, _) in &gone {
            self.more_of(kind).hide(*line);
        }
        gone
    }

    /// The finding of a line is open no more; `false` if it is not kept as an open one.
    pub fn end(&mut self, line: u64, change: impl FnOnce(&mut T)) -> bool {
        let Some((kind, mut item)) = self.open.take(line) else {
            return false;
        };
        change(&mut item);
        self.put_earlier(&kind, line, item);
        true
    }

    /// The same of one that was only counted, and is kept now that it is open no more.
    pub fn end_counted(&mut self, kind: &Kind, line: u64, item: Option<T>) {
        self.less(kind);
        match item {
            Some(item) => self.put_earlier(kind, line, item),
            None => self.more_of(kind).earlier += 1,
        }
    }

    /// Adds a finding that is open no more.
    pub fn put_earlier(&mut self, kind: &Kind, line: u64, item: T) {
        for (kind, ..) in self.earlier.put(kind, line, item) {
            self.more_of(&kind).earlier += 1;
        }
    }

    /// Keeps an open finding that was only counted, as [`Newest::open`] does.
    pub fn show(&mut self, kind: &Kind, line: u64, item: T) -> Vec<(Kind, u64, T)> {
        self.less(kind);
        self.open(kind, line, item)
    }

    /// No open finding of a kind is only counted whose line is `line` or comes after it;
    /// if there can be none before either, the count was wrong and is corrected.
    pub fn passed(&mut self, kind: &Kind, line: u64) {
        if let Some(more) = self.more.get_mut(kind) {
            match line.checked_sub(1).filter(|last| *last >= more.first) {
                Some(last) => more.last = last,
                None => more.open = 0,
            }
        }
        self.tidy(kind);
    }

    /// Of the open findings of a kind that are not kept, those of other lines are open no
    /// more.
    pub fn end_all_but(&mut self, kind: &Kind, lines: impl Iterator<Item = u64>) {
        let more = self.more_of(kind);
        let before = std::mem::take(&mut more.open);
        for line in lines {
            more.hide(line);
        }
        more.earlier += before.saturating_sub(more.open);
        self.tidy(kind);
    }

    /// Forgets a kept finding of that kind that `is_same`; another one takes its place.
    pub fn replace(&mut self, kind: &Kind, is_same: impl Fn(&T) -> bool) {
        let (open, earlier) = (self.open.of(kind), self.earlier.of(kind));
        let mut same = open.chain(earlier).filter(|(_, item)| is_same(item));
        if let Some(line) = same.next().map(|(line, _)| line) {
            drop(same);
            let _ = self.open.take(line).or_else(|| self.earlier.take(line));
        }
    }

    /// Whether there is room for several of those that are only counted.
    pub fn has_room(&self, kind: &Kind) -> bool {
        self.open.len(kind) < KEPT / 2 && self.open.bytes < KEPT_BYTES / 2
    }

    /// The kept finding of a line, and whether it is open.
    pub fn get(&self, line: u64) -> Option<(&Kind, &T, bool)> {
        let open = self.open.get(line).map(|(kind, item)| (kind, item, true));
        let earlier = || self.earlier.get(line).map(|(k, item)| (k, item, false));
        open.or_else(earlier)
    }

    /// All kinds that there are any findings of.
    pub fn kinds(&self) -> BTreeSet<Kind> {
        let kept = self.open.kinds.keys().chain(self.earlier.kinds.keys());
        kept.chain(self.more.keys()).cloned().collect()
    }

    /// Kept open findings of a kind, oldest first.
    pub fn open_of(&self, kind: &Kind) -> impl DoubleEndedIterator<Item = (u64, &T)> {
        self.open.of(kind)
    }

    /// Kept earlier findings of a kind, oldest first.
    pub fn earlier_of(&self, kind: &Kind) -> impl DoubleEndedIterator<Item = (u64, &T)> {
        self.earlier.of(kind)
    }

    /// The same as [`Newest::open_of`], to be changed in what has no weight.
    pub fn open_of_mut(&mut self, kind: &Kind) -> impl Iterator<Item = &mut T> {
        self.open.of_mut(kind)
    }

    /// The same of all kept open findings.
    pub fn all_open_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.open.all_mut()
    }

    /// All kept open findings.
    pub fn all_open(&self) -> impl Iterator<Item = (&Kind, u64, &T)> {
        self.open.all()
    }

    /// All kept earlier findings.
    pub fn all_earlier(&self) -> impl Iterator<Item = (&Kind, u64, &T)> {
        self.earlier.all()
    }

    /// How many of each kind are not kept.
    pub fn more(&self) -> impl Iterator<Item = (&Kind, &More)> {
        self.more.iter()
    }

    /// How many of a kind are not kept.
    pub fn more_than(&self, kind: &Kind) -> More {
        self.more.get(kind).copied().unwrap_or_default()
    }

    /// Says how many of a kind are not kept, as [`Newest::more`] once gave it.
    pub fn set_more(&mut self, kind: Kind, more: More) {
        self.more.insert(kind, more);
    }

    fn more_of(&mut self, kind: &Kind) -> &mut More {
        if !self.more.contains_key(kind) {
            self.more.insert(kind.clone(), More::default());
        }
        self.more.get_mut(kind).expect("it was just inserted")
    }

    fn less(&mut self, kind: &Kind) {
        if let Some(more) = self.more.get_mut(kind) {
            more.open = more.open.saturating_sub(1);
        }
        self.tidy(kind);
    }

    fn tidy(&mut self, kind: &Kind) {
        if let Some(more) = self.more.get_mut(kind)
            && more.open == 0
        {
            (more.first, more.last) = (0, 0);
            if more.earlier == 0 {
                self.more.remove(kind);
            }
        }
    }
}

impl More {
    fn hide(&mut self, line: u64) {
        let is_first = self.open == 0;
        self.open += 1;
        self.first = if is_first { line } else { self.first.min(line) };
        self.last = if is_first { line } else { self.last.max(line) };
    }
}

/// Findings of all kinds, each kind in the order of their lines.
#[derive(Debug)]
struct Shelves<T> {
    kinds: BTreeMap<Kind, Shelf<T>>,
    /// Of one kind.
    most: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Shelf<T> {
    items: BTreeMap<u64, T>,
    bytes: usize,
}

impl<T> Shelves<T> {
    fn new(most: usize) -> Self {
        Self {
            kinds: BTreeMap::new(),
            most,
            bytes: 0,
        }
    }

    fn len(&self, kind: &Kind) -> usize {
        self.kinds.get(kind).map_or(0, |shelf| shelf.items.len())
    }

    fn get(&self, line: u64) -> Option<(&Kind, &T)> {
        let mut kinds = self.kinds.iter();
        kinds.find_map(|(kind, shelf)| Some((kind, shelf.items.get(&line)?)))
    }

    fn of(&self, kind: &Kind) -> impl DoubleEndedIterator<Item = (u64, &T)> {
        let shelf = self.kinds.get(kind).into_iter();
        shelf.flat_map(|shelf| shelf.items.iter().map(|(line, item)| (*line, item)))
    }

    fn of_mut(&mut self, kind: &Kind) -> impl Iterator<Item = &mut T> {
        let shelf = self.kinds.get_mut(kind).into_iter();
        shelf.flat_map(|shelf| shelf.items.values_mut())
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut T> {
        let shelves = self.kinds.values_mut();
        shelves.flat_map(|shelf| shelf.items.values_mut())
    }

    fn all<'a>(&'a self) -> impl Iterator<Item = (&'a Kind, u64, &'a T)> {
        let of = |kind, shelf: &'a Shelf<T>| {
            let items = shelf.items.iter();
            items.map(move |(line, item)| (kind, *line, item))
        };
        let kinds = self.kinds.iter();
        kinds.flat_map(move |(kind, shelf)| of(kind, shelf))
    }
}

impl<T: Keep> Shelves<T> {
    /// Puts a finding there. Gives those for which there is no place.
    fn put(&mut self, kind: &Kind, line: u64, item: T) -> Vec<(Kind, u64, T)> {
        self.take(line);
        let weight = item.weight();
        if !self.kinds.contains_key(kind) {
            let shelf = Shelf {
                items: BTreeMap::new(),
                bytes: 0,
            };
            self.kinds.insert(kind.clone(), shelf);
        }
        let shelf = self.kinds.get_mut(kind).expect("it was just inserted");
        shelf.items.insert(line, item);
        shelf.bytes += weight;
        self.bytes += weight;
        let mut gone = Vec::new();
        if self.len(kind) > self.most {
            gone.extend(self.take_oldest(kind));
        }
        while self.bytes > KEPT_BYTES {
            let shelves = self.kinds.iter();
            let may = shelves.filter(|(_, shelf)| shelf.items.values().any(Keep::may_go));
            let heaviest = may.max_by_key(|(_, shelf)| shelf.bytes);
            let Some(kind) = heaviest.map(|(kind, _)| kind.clone()) else {
                break;
            };
            gone.extend(self.take_oldest(&kind));
        }
        gone
    }

    /// Takes the oldest finding of a kind that may go.
    fn take_oldest(&mut self, kind: &Kind) -> Option<(Kind, u64, T)> {
        let items = &self.kinds.get(kind)?.items;
        let (line, _) = items.iter().find(|(_, item)| item.may_go())?;
        let line = *line;
        let (kind, item) = self.take(line)?;
        Some((kind, line, item))
    }

    fn take(&mut self, line: u64) -> Option<(Kind, T)> {
        let mut kinds = self.kinds.iter_mut();
        let (kind, shelf) = kinds.find(|(_, shelf)| shelf.items.contains_key(&line))?;
        let item = shelf.items.remove(&line)?;
        shelf.bytes -= item.weight();
        self.bytes -= item.weight();
        let kind = kind.clone();
        if shelf.items.is_empty() {
            self.kinds.remove(&kind);
        }
        Some((kind, item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Item {
        weight: usize,
        may_go: bool,
    }

    impl Keep for Item {
        fn weight(&self) -> usize {
            self.weight
        }

        fn may_go(&self) -> bool {
            self.may_go
        }
    }

    const ITEM: Item = Item {
        weight: 100,
        may_go: true,
    };

    fn kind(table: &str) -> Kind {
        (Code::Unattributed, Some(table.into()))
    }

    fn shown(newest: &Newest<Item>, kind: &Kind) -> Vec<u64> {
        newest.open_of(kind).map(|(line, _)| line).collect()
    }

    #[test]
    fn the_newest_are_kept_and_all_are_counted() {
        let (mut newest, entry) = (Newest::default(), kind("entry"));
        let most = KEPT as u64;
        for line in 1..=1000 {
            newest.open(&entry, line, ITEM);
        }
        assert_eq!(
            shown(&newest, &entry),
            (1001 - most..=1000).collect::<Vec<_>>()
        );
        let more = newest.more_than(&entry);
        let expected = (1000 - most, 1, 1000 - most);
        assert_eq!((more.open, more.first, more.last), expected);
        // One that is kept ends, and one that is counted.
        assert!(newest.end(1000, |_| {}));
        assert!(!newest.end(1, |_| {}));
        newest.end_counted(&entry, 1, Some(ITEM));
        assert_eq!(newest.more_than(&entry).open, 1000 - most - 1);
        let earlier: Vec<u64> = newest.earlier_of(&entry).map(|(line, _)| line).collect();
        assert_eq!(earlier, [1, 1000]);
    }

    #[test]
    fn those_that_are_counted_come_back_when_there_is_room() {
        let (mut newest, entry) = (Newest::default(), kind("entry"));
        let most = KEPT as u64;
        for line in 1..=most + 2 {
            newest.open(&entry, line * 10, ITEM);
        }
        assert!(!newest.has_room(&entry));
        for line in 3..=most + 2 {
            assert!(newest.end(line * 10, |_| {}));
        }
        assert!(newest.has_room(&entry));
        assert_eq!(newest.more_than(&entry).last, 20);
        newest.show(&entry, 20, ITEM);
        newest.passed(&entry, 20);
        assert_eq!(newest.more_than(&entry).last, 19);
        newest.show(&entry, 10, ITEM);
        assert_eq!(shown(&newest, &entry), [10, 20]);
        assert_eq!(newest.more_than(&entry).open, 0);
        let earlier = newest.earlier_of(&entry).count();
        assert_eq!(earlier, KEPT_EARLIER);
        let counted = newest.more_than(&entry).earlier;
        assert_eq!(counted + earlier as u64, most, "none is lost");
    }

    #[test]
    fn a_count_that_the_trail_does_not_bear_out_is_corrected() {
        let (mut newest, entry) = (Newest::<Item>::default(), kind("entry"));
        let more = More {
            open: 5,
            earlier: 0,
            first: 10,
            last: 12,
        };
        newest.set_more(entry.clone(), more);
        for line in [12, 11] {
            newest.passed(&entry, line);
            assert_eq!(newest.more_than(&entry).open, 5);
        }
        newest.passed(&entry, 10);
        assert_eq!(newest.more().count(), 0);
    }

    /// However many kinds there are, and however long a text somebody has made.
    #[test]
    fn all_together_are_bounded_and_the_largest_kind_gives_way() {
        let mut newest = Newest::default();
        newest.open(&kind("small"), 1, ITEM);
        let large = Item {
            weight: 64 << 10,
            may_go: true,
        };
        for line in 2..=1000 {
            newest.open(&kind(&format!("large {}", line % 3)), line, large.clone());
        }
        let weight: usize = newest.all_open().map(|(_, _, item)| item.weight).sum();
        assert!(weight <= KEPT_BYTES, "{weight}");
        assert_eq!(shown(&newest, &kind("small")), [1]);
        let counted: u64 = newest.more().map(|(_, more)| more.open).sum();
        assert_eq!(counted + newest.all_open().count() as u64, 1000);
    }

    #[test]
    fn what_would_be_found_anew_is_always_kept() {
        let (mut newest, entry) = (Newest::default(), kind("entry"));
        let stays = Item {
            may_go: false,
            ..ITEM
        };
        newest.open(&entry, 1, stays);
        for line in 2..=1000 {
            newest.open(&entry, line, ITEM);
        }
        assert_eq!(shown(&newest, &entry).first(), Some(&1));
        assert_eq!(newest.more_than(&entry).first, 2);
    }
}
