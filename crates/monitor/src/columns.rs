//! What the columns of the guarded tables were called. A line commits to a row by the names
//! that its columns had then; one that is called otherwise since is the same column.
//!
//! A name that is there before and after stands for what it did, whichever column has it
//! now: who gives one column another's name changes what is read under it.

use pitser_capture::{Row, Shape};
use pitser_evidence::codec::Digest;
use pitser_evidence::commit::{LineNonce, commit_row};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// So many versions of a table's columns are remembered: rows of older ones are compared
/// by the names that are left.
const VERSIONS: usize = 16;

/// What the columns of tables were called, of those whose columns have changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Columns(BTreeMap<String, Versions>);

/// The columns of one table as they were and are, the newest last; none if they are what
/// they always were.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Versions(Vec<Version>);

/// Columns in the table's order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Version(Vec<(u32, String)>);

static NONE: Versions = Versions(Vec::new());

impl Columns {
    /// Remembers tables whose columns are others than before; `true` if there are any that
    /// were not known.
    pub fn note(&mut self, before: &[Shape], now: &[Shape]) -> bool {
        let mut is_new = false;
        for now in now {
            let was = before.iter().find(|was| was.name == now.name);
            let was = was.and_then(Version::of);
            if let (Some(was), Some(is)) = (was, Version::of(now))
                && was != is
            {
                let versions = self.0.entry(now.name.clone()).or_default();
                is_new |= versions.add(was) | versions.add(is);
            }
        }
        is_new
    }

    /// Those of one table.
    pub fn of(&self, table: &str) -> &Versions {
        self.0.get(table).unwrap_or(&NONE)
    }

    /// Whether none have changed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Versions {
    /// `true` if it was not the newest one already.
    fn add(&mut self, version: Version) -> bool {
        if self.0.last() == Some(&version) {
            return false;
        }
        self.0.retain(|known| *known != version);
        self.0.push(version);
        let surplus = self.0.len().saturating_sub(VERSIONS);
        self.0.drain(..surplus);
        true
    }

    /// Whether a row opens a commitment, by the names that its columns have, or by those
    /// that they had; columns that were added since are left out of it then.
    pub fn open(&self, nonce: &LineNonce, sealed: &Digest, row: &Row) -> bool {
        let cells = row.iter().map(|(name, cell)| (name, cell.expose()));
        if commit_row(nonce, cells).1 == *sealed {
            return true;
        }
        let Some(live) = self.version(&row.columns) else {
            return false;
        };
        let mut former = self.0.iter().rev().filter(|former| *former != live);
        former.any(|former| {
            let cell = |(number, name): &'_ (u32, String)| {
                let place = live.place(*number)?;
                let is_anothers = live.0[place].1 != *name && live.number(name).is_some();
                (!is_anothers).then(|| row.cells.get(place))?
            };
            let cells = former.0.iter().map(|column| Some((column, cell(column)?)));
            let cells = cells.collect::<Option<Vec<_>>>();
            cells.is_some_and(|cells| {
                let cells = cells.iter();
                let cells = cells.map(|((_, name), cell)| (name.as_str(), cell.expose()));
                commit_row(nonce, cells).1 == *sealed
            })
        })
    }

    /// Which of the `sealed` columns each of the `live` ones is to be compared with; `None`
    /// if they are the same.
    pub(crate) fn called<'a>(
        &'a self,
        sealed: &'a [String],
        live: &[String],
    ) -> Option<Vec<Option<&'a str>>> {
        if sealed == live {
            return None;
        }
        let known = self.version(live).zip(self.version_with(sealed));
        let place_of = |name: &String| sealed.iter().position(|it| it == name);
        let called = |(place, name): (usize, &String)| {
            if let Some(same) = place_of(name) {
                return Some(sealed[same].as_str());
            }
            let (now, then) = known?;
            let former = &then.0[then.place(now.0[place].0)?].1;
            let is_free = !live.contains(former);
            (is_free && place_of(former).is_some()).then_some(former.as_str())
        };
        Some(live.iter().enumerate().map(called).collect())
    }

    /// What the `live` column of that place was called in a row of the `sealed` ones, be it
    /// another one's name now; `None` if it was not there.
    pub fn called_then<'a>(
        &'a self,
        sealed: &[String],
        live: &'a [String],
        place: usize,
    ) -> Option<&'a str> {
        if sealed != live
            && let (Some(now), Some(then)) = (self.version(live), self.version_with(sealed))
        {
            return Some(&then.0[then.place(now.0[place].0)?].1);
        }
        live.get(place).map(String::as_str)
    }

    /// Whether the table is known to have, or have had, these columns.
    pub fn knows(&self, names: &[String]) -> bool {
        self.version(names).is_some()
    }

    fn version(&self, names: &[String]) -> Option<&Version> {
        self.0.iter().rev().find(|version| version.is(names))
    }

    /// The version that a row of these columns is of, or the oldest that has more: others
    /// may not have been remembered.
    fn version_with(&self, names: &[String]) -> Option<&Version> {
        let has_all = |version: &&Version| names.iter().all(|it| version.number(it).is_some());
        self.version(names).or_else(|| self.0.iter().find(has_all))
    }
}

impl Version {
    /// `None` if the engine does not number columns.
    fn of(shape: &Shape) -> Option<Self> {
        let numbers = shape.numbers.iter().copied();
        let columns: Vec<_> = numbers.zip(shape.columns.iter().cloned()).collect();
        (!columns.is_empty()).then_some(Self(columns))
    }

    fn is(&self, names: &[String]) -> bool {
        self.0.iter().map(|(_, name)| name).eq(names)
    }

    fn place(&self, number: u32) -> Option<usize> {
        self.0.iter().position(|(it, _)| *it == number)
    }

    fn number(&self, name: &str) -> Option<u32> {
        let found = self.0.iter().find(|(_, it)| it == name);
        found.map(|(number, _)| *number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pitser_capture::Cell;
    use pitser_evidence::commit::Key;

    fn shape(columns: &[(u32, &str)]) -> Shape {
        Shape {
            name: "t".into(),
            columns: columns.iter().map(|(_, name)| (*name).into()).collect(),
            numbers: columns.iter().map(|(number, _)| *number).collect(),
            key: vec!["id".into()],
            keyless: false,
        }
    }

    /// The versions of a table that had these columns, one after the other.
    fn versions(all: &[&[(u32, &str)]]) -> Versions {
        let mut columns = Columns::default();
        for pair in all.windows(2) {
            columns.note(&[shape(pair[0])], &[shape(pair[1])]);
        }
        columns.of("t").clone()
    }

    fn row(cells: &[(&str, &str)]) -> Row {
        Row {
            columns: cells.iter().map(|(name, _)| (*name).to_owned()).collect(),
            cells: cells.iter().map(|(_, value)| Cell::new(value)).collect(),
        }
    }

    fn opens(versions: &Versions, sealed: &[(&str, &str)], live: &[(&str, &str)]) -> bool {
        let nonce = LineNonce::new(&Key::new([7; 32]), "o/s", 1, 3);
        let sealed = row(sealed);
        let cells = sealed.iter().map(|(name, cell)| (name, cell.expose()));
        let (_, sealed) = commit_row(&nonce, cells);
        versions.open(&nonce, &sealed, &row(live))
    }

    const SEALED: [(&str, &str); 2] = [("id", "1"), ("body", "long")];

    #[test]
    fn a_row_opens_by_the_names_that_its_columns_had() {
        let renamed = versions(&[
            &[(1, "id"), (2, "body")],
            &[(1, "id"), (2, "text")],
            &[(1, "id"), (2, "words"), (3, "more")],
        ]);
        assert!(opens(&renamed, &SEALED, &SEALED));
        assert!(opens(&renamed, &SEALED, &[("id", "1"), ("text", "long")]));
        let live = [("id", "1"), ("words", "long"), ("more", "x")];
        assert!(opens(&renamed, &SEALED, &live));
        // Without what is remembered, and where a value was altered.
        assert!(!opens(&NONE, &SEALED, &live));
        let forged = [("id", "1"), ("words", "LONG"), ("more", "x")];
        assert!(!opens(&renamed, &SEALED, &forged));
    }

    #[test]
    fn another_column_under_the_same_name_is_compared_by_its_name() {
        let was: &[_] = &[(1, "id"), (2, "dose"), (3, "weight")];
        let sealed = [("id", "1"), ("dose", "5"), ("weight", "70")];
        let swapped = versions(&[was, &[(1, "id"), (2, "weight"), (3, "dose")]]);
        let live = [("id", "1"), ("weight", "5"), ("dose", "70")];
        assert!(!opens(&swapped, &sealed, &live));
        let names = |cells: &[(&str, &str)]| row(cells).columns;
        let called = |versions: &Versions, live: &[(&str, &str)]| {
            let (sealed, live) = (names(&sealed), names(live));
            let called = versions.called(&sealed, &live).unwrap().into_iter();
            called.map(|it| it.map(str::to_owned)).collect::<Vec<_>>()
        };
        let some =
            |names: &[&str]| -> Vec<_> { names.iter().map(|it| Some((*it).into())).collect() };
        assert_eq!(called(&swapped, &live), some(&["id", "weight", "dose"]));
        // What a large value was called that is not sent is another question.
        let then = |at| {
            let (sealed, live) = (names(&sealed), names(&live));
            swapped.called_then(&sealed, &live, at).map(str::to_owned)
        };
        assert_eq!(then(1).unwrap(), "dose");
        assert_eq!(then(2).unwrap(), "weight");
        // One has the name of another that is gone, and one that of one that was renamed.
        let moved = versions(&[was, &[(1, "id"), (2, "mg"), (4, "weight")]]);
        let live = [("id", "1"), ("mg", "5"), ("weight", "70")];
        assert_eq!(called(&moved, &live), some(&["id", "dose", "weight"]));
        let taken = versions(&[was, &[(1, "id"), (2, "mg"), (3, "weight"), (4, "dose")]]);
        let live = [("id", "1"), ("mg", "5"), ("weight", "70"), ("dose", "9")];
        let mut wanted = some(&["id", "mg", "weight", "dose"]);
        wanted[1] = None;
        assert_eq!(called(&taken, &live), wanted);
        assert!(!opens(&taken, &sealed, &live));
    }

    #[test]
    fn rows_of_a_version_that_nobody_remembers() {
        // A column was added before anything was remembered.
        let known = versions(&[
            &[(1, "id"), (2, "body"), (3, "more")],
            &[(1, "id"), (2, "text"), (3, "more")],
        ]);
        let live = row(&[("id", ""), ("text", ""), ("more", "")]).columns;
        let sealed = row(&SEALED).columns;
        assert_eq!(known.called_then(&sealed, &live, 1), Some("body"));
        assert_eq!(known.called_then(&sealed, &live, 2), Some("more"));
        // By their names, if nobody knows more.
        assert_eq!(NONE.called_then(&sealed, &live, 1), Some("text"));
        assert!(known.knows(&live) && !known.knows(&sealed));
        let was_gone = row(&[("id", ""), ("other", "")]).columns;
        assert_eq!(
            known.called(&was_gone, &live).unwrap(),
            [Some("id"), None, None]
        );
        assert_eq!(known.called(&live, &live), None);
    }

    #[test]
    fn versions_are_remembered_once_and_are_not_too_many() {
        let mut columns = Columns::default();
        let named = |n: usize| shape(&[(1, "id"), (2, &format!("c{n}"))]);
        assert!(!columns.note(&[named(0)], &[named(0)]));
        assert!(columns.is_empty());
        assert!(columns.note(&[named(0)], &[named(1)]));
        assert!(columns.note(&[named(1)], &[named(0)]));
        assert!(!columns.note(&[], &[named(2)]));
        assert_eq!(columns.of("t").0.len(), 2);
        for n in 1..40 {
            columns.note(&[named(n)], &[named(n + 1)]);
        }
        let versions = columns.of("t");
        assert_eq!(versions.0.len(), VERSIONS);
        assert!(versions.knows(&named(40).columns) && !versions.knows(&named(3).columns));
        let kept = serde_json::to_string(&columns).unwrap();
        assert!(kept.starts_with(r#"{"t":[[[1,"id"],[2,"c"#), "{kept}");
        assert_eq!(serde_json::from_str::<Columns>(&kept).unwrap(), columns);
    }
}
