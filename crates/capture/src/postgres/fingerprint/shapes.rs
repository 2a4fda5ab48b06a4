//! The guarded tables as a fingerprint has them.

use std::collections::{BTreeMap, BTreeSet};

use super::drift::{Column, Entries, Entry, Object, key_numbers, shape};
use crate::source::Shape;

pub(super) fn shapes(entries: &Entries) -> Vec<Shape> {
    let published = entries.iter().filter_map(|(key, value)| {
        let Object { kind, name, .. } = Object::parse(key);
        (kind == "published").then_some((name, Entry::parse(value)))
    });
    published
        .filter_map(|(name, published)| of_table(entries, name, published))
        .collect()
}

fn of_table(entries: &Entries, name: &str, published: Entry<'_>) -> Option<Shape> {
    let entry = |kind: &str| {
        let value = entries.get(&format!("{kind}\t{name}"))?;
        Some(Entry::parse(value))
    };
    let mut columns = shape(entry("columns")?);
    columns.retain(|_, column| !is_generated(column));
    if let Some(listed) = published.fact("columns").filter(|listed| *listed != "all") {
        let listed = numbers(listed);
        columns.retain(|number, _| listed.contains(number));
    }
    let identity = entry("table")?.fact("identity")?;
    let index = entry("key").filter(|index| match identity {
        // One that is checked at the commit alone identifies nothing.
        "d" => index.fact("sound") == Some("t"),
        // Before this was told, it was taken for one all the same.
        "f" => index.fact("deferred").is_none(),
        "i" => true,
        _ => false,
    });
    let keyless = identity == "f" && index.is_none();
    let key = index.map(|index| key_of(index, &columns));
    let numbers = columns.keys().copied().collect();
    let columns: Vec<String> = columns.values().map(|it| it.name.to_owned()).collect();
    Some(Shape {
        name: name.to_owned(),
        key: match keyless {
            true => columns.clone(),
            false => key.unwrap_or_default(),
        },
        columns,
        numbers,
        keyless,
    })
}

/// Names of an index's columns, in the table's order; those that it only carries along
/// are none of the key.
fn key_of(index: Entry<'_>, columns: &BTreeMap<u32, Column<'_>>) -> Vec<String> {
    let listed = key_numbers(index);
    let named = columns.iter().filter(|(number, _)| listed.contains(number));
    named.map(|(_, column)| column.name.to_owned()).collect()
}

/// `number:type:modifier:collation:not null:generated`, of which the last is `s`, `v` or
/// nothing.
fn is_generated(column: &Column<'_>) -> bool {
    !column.facts.ends_with(':')
}

fn numbers(list: &str) -> BTreeSet<u32> {
    list.split(',').filter_map(|it| it.parse().ok()).collect()
}
