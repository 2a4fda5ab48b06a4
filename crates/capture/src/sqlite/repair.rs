//! The statement that puts a record back as it was sealed.

use super::table::{Table, member};
use super::{SqliteError, expose_literal, quote};
use crate::event::{Cell, Key, Row};

/// One statement without its semicolon; `None` if nothing differs, or if a
/// sealed cell has no SQL form.
pub(super) fn statement(
    table: &Table,
    key: &Key,
    sealed: Option<&Row>,
    live: Option<&Row>,
) -> Result<Option<String>, SqliteError> {
    super::snapshot::check_key_length(table, key.cells().len())?;
    Ok(match (sealed, live) {
        (None, None) => None,
        (None, Some(_)) => {
            condition(table, key).map(|at| format!("DELETE FROM {} WHERE {at}", quote(&table.name)))
        }
        (Some(sealed), None) => insert(table, sealed),
        (Some(sealed), Some(live)) => update(table, key, sealed, live),
    })
}

fn condition(table: &Table, key: &Key) -> Option<String> {
    let names = table.key_names();
    let parts: Option<Vec<String>> = names
        .iter()
        .zip(key.cells())
        .map(|(name, cell)| {
            Some(format!(
                "{} IS {}",
                member(&quote(&table.name), name),
                expose_literal(cell)?
            ))
        })
        .collect();
    Some(parts?.join(" AND "))
}

fn insert(table: &Table, sealed: &Row) -> Option<String> {
    let cells: Vec<(&str, &Cell)> = sealed
        .iter()
        .filter(|(name, _)| table.is_writable(name))
        .collect();
    let names: Vec<String> = cells.iter().map(|(name, _)| quote(name)).collect();
    let values: Option<Vec<String>> = cells.iter().map(|(_, cell)| expose_literal(cell)).collect();
    Some(format!(
        "INSERT INTO {}({}) VALUES({})",
        quote(&table.name),
        names.join(", "),
        values?.join(", ")
    ))
}

fn update(table: &Table, key: &Key, sealed: &Row, live: &Row) -> Option<String> {
    let changed =
        |(name, cell): &(&str, &Cell)| table.is_writable(name) && live.get(name) != Some(cell);
    let set: Option<Vec<String>> = sealed
        .iter()
        .filter(changed)
        .map(|(name, cell)| Some(format!("{} = {}", quote(name), expose_literal(cell)?)))
        .collect();
    let set = set.filter(|set| !set.is_empty())?;
    Some(format!(
        "UPDATE {} SET {} WHERE {}",
        quote(&table.name),
        set.join(", "),
        condition(table, key)?
    ))
}
