//! Facts in the order in which they are told: one description that is printed
//! for people and written as JSON for programs.

use std::fmt::{self, Write as _};

use pitser_ksi::hash::Imprint;
use pitser_ksi::time::Second;
use serde::ser::{Serialize, SerializeMap as _, Serializer};

use crate::output;

/// Named facts, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Map(Vec<(&'static str, Tree)>);

/// A fact: a value, a list, or more named facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tree {
    Text(String),
    Number(u64),
    /// A number of hundredths, shown as a decimal.
    Hundredths(u64),
    Flag(bool),
    List(Vec<Tree>),
    Map(Map),
    /// Named facts, none of them nested, that are printed on one line.
    Line(Map),
}

impl Map {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds a fact.
    #[must_use]
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<Tree>) -> Self {
        self.0.push((name, value.into()));
        self
    }

    /// Adds a fact, if there is one.
    #[must_use]
    pub(crate) fn maybe(self, name: &'static str, value: Option<impl Into<Tree>>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// Adds a list.
    #[must_use]
    pub(crate) fn list<T: Into<Tree>>(
        self,
        name: &'static str,
        values: impl IntoIterator<Item = T>,
    ) -> Self {
        self.with(
            name,
            Tree::List(values.into_iter().map(Into::into).collect()),
        )
    }

    fn lines(&self, indent: usize, out: &mut String) {
        let is_short = |tree: &Tree| !matches!(tree, Tree::List(_) | Tree::Map(_));
        let short = self.0.iter().filter(|(_, tree)| is_short(tree));
        let width = short.map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, tree) in &self.0 {
            let name = name.replace('_', " ");
            match tree {
                Tree::List(list) if list.is_empty() => {
                    let _ = writeln!(out, "{:indent$}{name:width$}  none", "");
                }
                Tree::List(list) => {
                    let _ = writeln!(out, "{:indent$}{name}", "");
                    list.iter().for_each(|item| item.bullet(indent + 2, out));
                }
                Tree::Map(map) => {
                    let _ = writeln!(out, "{:indent$}{name}", "");
                    map.lines(indent + 2, out);
                }
                value => {
                    let _ = writeln!(out, "{:indent$}{name:width$}  {}", "", value.value());
                }
            }
        }
    }
}

impl Tree {
    /// One item of a list; its first line starts with a dash.
    fn bullet(&self, indent: usize, out: &mut String) {
        match self {
            Tree::Map(map) => {
                let from = out.len();
                map.lines(indent + 2, out);
                // The first line is indented by at least two spaces, unless there is none.
                if out.len() > from {
                    out.replace_range(from + indent..from + indent + 1, "-");
                }
            }
            Tree::List(list) => list.iter().for_each(|item| item.bullet(indent + 2, out)),
            value => {
                let _ = writeln!(out, "{:indent$}- {}", "", value.value());
            }
        }
    }

    fn value(&self) -> String {
        match self {
            Tree::Text(text) => output::one_line(text),
            Tree::Number(number) => number.to_string(),
            Tree::Hundredths(number) => format!("{}.{:02}", number / 100, number % 100),
            Tree::Flag(flag) => if *flag { "yes" } else { "no" }.to_owned(),
            Tree::Line(Map(facts)) => {
                let fact = |(name, tree): &(&str, Tree)| {
                    format!("{} {}", name.replace('_', " "), tree.value())
                };
                facts.iter().map(fact).collect::<Vec<_>>().join("  ")
            }
            Tree::List(_) | Tree::Map(_) => String::new(),
        }
    }
}

impl fmt::Display for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.lines(0, &mut text);
        f.write_str(&text)
    }
}

impl Serialize for Map {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, tree) in &self.0 {
            map.serialize_entry(name, tree)?;
        }
        map.end()
    }
}

impl Serialize for Tree {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Tree::Text(text) => serializer.serialize_str(text),
            Tree::Number(number) => serializer.serialize_u64(*number),
            Tree::Hundredths(number) => serializer.serialize_f64(*number as f64 / 100.0),
            Tree::Flag(flag) => serializer.serialize_bool(*flag),
            Tree::List(list) => serializer.collect_seq(list),
            Tree::Map(map) | Tree::Line(map) => map.serialize(serializer),
        }
    }
}

impl From<&str> for Tree {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Tree {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&String> for Tree {
    fn from(text: &String) -> Self {
        Self::Text(text.clone())
    }
}

impl From<u64> for Tree {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<u8> for Tree {
    fn from(number: u8) -> Self {
        Self::Number(number.into())
    }
}

impl From<u32> for Tree {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<usize> for Tree {
    fn from(number: usize) -> Self {
        Self::Number(number as u64)
    }
}

impl From<bool> for Tree {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<Second> for Tree {
    fn from(second: Second) -> Self {
        Self::Text(second.to_string())
    }
}

impl From<&Imprint> for Tree {
    fn from(imprint: &Imprint) -> Self {
        Self::Text(output::imprint(imprint))
    }
}

impl From<Imprint> for Tree {
    fn from(imprint: Imprint) -> Self {
        Self::from(&imprint)
    }
}

impl From<Map> for Tree {
    fn from(map: Map) -> Self {
        Self::Map(map)
    }
}

/// Bytes, as lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> Tree {
    Tree::Text(data_encoding::HEXLOWER.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_description_two_forms() {
        let link = Map::new().with("side", "left").with("level", 1_u64);
        let links = [
            Tree::Map(link.clone()),
            Tree::Map(Map::new()),
            Tree::Line(link),
        ];
        let facts = Map::new()
            .with("signed_at", Second(0))
            .list("links", links)
            .list("names", Vec::<String>::new())
            .list("ids", ["a\nb"])
            .maybe("absent", None::<u64>)
            .with("more", Map::new().with("flag", true));
        assert_eq!(
            facts.to_string(),
            "signed at  1970-01-01T00:00:00Z\n\
             links\n  - side   left\n    level  1\n  - side left  level 1\n\
             names      none\n\
             ids\n  - a\\nb\n\
             more\n  flag  yes\n"
        );
        assert_eq!(
            serde_json::to_string(&facts).unwrap(),
            r#"{"signed_at":"1970-01-01T00:00:00Z","links":[{"side":"left","level":1},{},{"side":"left","level":1}],"names":[],"ids":["a\nb"],"more":{"flag":true}}"#
        );
    }
}
