//! What a difference means.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::Drift;

pub(super) type Entries = BTreeMap<String, String>;

pub(super) fn compare(was: &Entries, now: &Entries) -> Vec<Drift> {
    if was == now {
        return Vec::new();
    }
    let (was, mut drifts) = renamed(was, now);
    let keys: BTreeSet<&String> = was.keys().chain(now.keys()).collect();
    let is_switched = |key: &&&String| {
        Object::parse(key).kind == ATTRIBUTION && was.contains_key(**key) != now.contains_key(**key)
    };
    let is_switched = keys.iter().any(|key| is_switched(&key));
    let mut touched = Vec::new();
    for key in keys {
        let sides = (was.get(key), now.get(key));
        if sides.0 == sides.1 {
            continue;
        }
        let object = Object::parse(key);
        // That the table came or went is said of the publication or its root.
        if object.is_of_table() && object.table_there(&was) != object.table_there(now) {
            continue;
        }
        let (before, after) = (
            sides.0.map(|it| Entry::parse(it)),
            sides.1.map(|it| Entry::parse(it)),
        );
        // That our triggers came or went with the switch is said of the switch.
        if is_switched && before.is_some() != after.is_some() && object.attributes(before.or(after))
        {
            continue;
        }
        if let Some(found) = object.judge(before, after, now) {
            let list = match (object.kind, found.code) {
                ("storage" | "key", TOUCHED) => &mut touched,
                _ => &mut drifts,
            };
            list.push(found);
        }
    }
    // Whatever else was found on a table explains that it was written to.
    let explained: BTreeSet<Option<String>> =
        drifts.iter().map(|drift| drift.table.clone()).collect();
    touched.retain(|drift| !explained.contains(&drift.table));
    drifts.extend(touched);
    drifts
}

/// The earlier entries under the names that their tables have now, and the
/// tables that have another one.
fn renamed(was: &Entries, now: &Entries) -> (Entries, Vec<Drift>) {
    let (before, after) = (numbers(was), numbers(now));
    let mut drifts = Vec::new();
    let mut names: BTreeMap<&str, String> = BTreeMap::new();
    for (number, name) in &before {
        match after.get(number) {
            Some(other) if other == name => {}
            Some(other) => {
                names.insert(name, (*other).to_owned());
                drifts.push(Drift {
                    code: SCHEMA,
                    table: Some((*other).to_owned()),
                    text: format!(
                        "table {name} is now called {other}: guard it under this name, or rename it back"
                    ),
                });
            }
            // Gone, and another guarded table took its name.
            None if after
                .iter()
                .any(|(oid, other)| other == name && before.contains_key(oid)) =>
            {
                names.insert(name, format!("{name} (before)"));
            }
            None => {}
        }
    }
    let translated = was.iter().map(|(key, value)| {
        let object = Object::parse(key);
        let name = match object.is_of_table() || matches!(object.kind, "published" | "partition") {
            true => names.get(object.name),
            false => None,
        };
        let key = name.map_or_else(|| key.clone(), |name| object.key_as(name));
        (key, value.clone())
    });
    (translated.collect(), drifts)
}

/// The tables' names by their object numbers.
fn numbers(entries: &Entries) -> BTreeMap<&str, &str> {
    entries
        .iter()
        .filter_map(|(key, value)| {
            let object = Object::parse(key);
            let number = value.split(' ').next()?.strip_prefix("oid=")?;
            (object.kind == "table").then_some((number, object.name))
        })
        .collect()
}

/// The key of an entry.
pub(super) struct Object<'a> {
    pub(super) kind: &'a str,
    pub(super) name: &'a str,
    part: Option<&'a str>,
}

/// The value of an entry.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    facts: &'a str,
    stamp: &'a str,
}

impl<'a> Entry<'a> {
    pub(super) fn parse(value: &'a str) -> Self {
        let (facts, stamp) = value.rsplit_once('\t').unwrap_or((value, ""));
        Self { facts, stamp }
    }

    pub(super) fn fact(&self, name: &str) -> Option<&'a str> {
        self.facts
            .split(' ')
            .find_map(|fact| fact.strip_prefix(name)?.strip_prefix('='))
    }
}

impl<'a> Object<'a> {
    pub(super) fn parse(key: &'a str) -> Self {
        let mut parts = key.splitn(3, '\t');
        let mut next = || parts.next().unwrap_or_default();
        let (kind, name) = (next(), next());
        Self {
            kind,
            name,
            part: parts.next(),
        }
    }

    fn key_as(&self, name: &str) -> String {
        let part = self.part.map(|part| format!("\t{part}"));
        format!("{}\t{name}{}", self.kind, part.unwrap_or_default())
    }

    /// Whether this is something of a guarded table, or the table itself.
    fn is_of_table(&self) -> bool {
        matches!(
            self.kind,
            "table" | "storage" | "columns" | "key" | "trigger" | "policy" | "rule"
        )
    }

    /// Whether this, as it is or was, is there to say who acts.
    fn attributes(&self, entry: Option<Entry<'_>>) -> bool {
        match self.kind {
            "trigger" => entry.and_then(|it| it.fact("ours")) == Some("t"),
            "function" => self.name == "pitser.attribute()",
            _ => false,
        }
    }

    fn table_there(&self, entries: &Entries) -> bool {
        entries.contains_key(&format!("table\t{}", self.name))
    }

    /// What it means that this object was so and is now so, among all that is there now.
    fn judge(
        &self,
        was: Option<Entry<'_>>,
        now: Option<Entry<'_>>,
        all: &Entries,
    ) -> Option<Drift> {
        let name = self.name;
        let (code, text) = match self.kind {
            "system" => self.system(was, now),
            "publication" => self.relied_on("publication", was, now),
            "published" => published(name, was, now),
            "partition" => partition(name, was, now, all),
            "heir" => heir(name, now),
            "table" => table(name, was?, now?),
            "storage" => storage(name, was?, now?),
            "columns" => columns(name, was?, now?),
            "key" => match (was, now) {
                (Some(was), Some(now)) if was.facts == now.facts => remade_key(name, was, now)?,
                _ => key(name, now),
            },
            "trigger" => self.trigger(was, now),
            "policy" | "rule" => {
                let part = self.part.unwrap_or_default();
                let how = how(was, now);
                let text = format!("{} {part} on table {name} was {how}", self.kind);
                (SCHEMA, text)
            }
            // Used by a guarded table for the first or the last time: its columns say so.
            "labels" | "attributes" if was.is_none() || now.is_none() => return None,
            "labels" => (
                SCHEMA,
                format!(
                    "the labels of type {name} were {}: old values may read otherwise now, scan",
                    verb(was, now)
                ),
            ),
            "attributes" => {
                let facts = |entry: Option<Entry<'_>>| entry.map_or("", |it| it.facts).to_owned();
                let text = format!(
                    "the attributes of type {name} were {}: old values may read otherwise now, scan. Before: {}; now: {}",
                    verb(was, now),
                    facts(was),
                    facts(now)
                );
                (SCHEMA, text)
            }
            ATTRIBUTION if now.is_some() => (
                WEAKENED,
                "attribution is off in the guardian's configuration: lines do not say who acted from here on, \
                 unless the rows do. Switch it on again unless you meant it"
                    .to_owned(),
            ),
            ATTRIBUTION => (
                SCHEMA,
                "attribution was switched on in the guardian's configuration: lines say who acted from here on"
                    .to_owned(),
            ),
            "function" => self.relied_on("function", was, now),
            "schema" => self.relied_on("schema", was, now),
            "emitter" => emitter(name, was, now),
            "role" => role(name, was, now),
            "default" => default(name, was, now),
            "setting" => {
                let value = |entry: Option<Entry<'_>>| {
                    entry.map_or("absent".to_owned(), |it| it.facts.to_owned())
                };
                let (was, now) = (value(was), value(now));
                (
                    WEAKENED,
                    format!(
                        "setting {name} went from {was} to {now}: put it back unless you meant it"
                    ),
                )
            }
            "slot" => match (was, now) {
                (None, Some(_)) => (TOUCHED, format!("slot {name} was made")),
                (Some(was), Some(now)) if now.facts == was.facts.replace("failover=f", "failover=t") => {
                    (TOUCHED, format!("slot {name} is kept by standbys too now"))
                }
                _ => self.relied_on("slot", was, now),
            },
            _ => (
                SCHEMA,
                format!("{} {name} was {}", self.kind, verb(was, now)),
            ),
        };
        let of_table =
            self.is_of_table() || matches!(self.kind, "published" | "partition" | "heir");
        Some(Drift {
            code,
            table: of_table.then(|| name.to_owned()),
            text,
        })
    }

    fn system(&self, was: Option<Entry<'_>>, now: Option<Entry<'_>>) -> (&'static str, String) {
        let value =
            |entry: Option<Entry<'_>>| entry.map_or("unknown".to_owned(), |it| it.facts.to_owned());
        let (was, now) = (value(was), value(now));
        match self.name {
            "version" => (
                TOUCHED,
                format!("the server's version went from {was} to {now}"),
            ),
            "timeline" => (
                OTHER,
                format!(
                    "the timeline went from {was} to {now}: the server was promoted, or restored to an earlier moment"
                ),
            ),
            name => (
                OTHER,
                format!(
                    "this is another database ({name} {now}, before {was}): find out who replaced it"
                ),
            ),
        }
    }

    /// An object that capture is made of: nobody else has business with it.
    fn relied_on(
        &self,
        what: &str,
        was: Option<Entry<'_>>,
        now: Option<Entry<'_>>,
    ) -> (&'static str, String) {
        let (name, how) = (self.name, how(was, now));
        (
            WEAKENED,
            format!("{what} {name} was {how}: scan, find out who did it, and run guard init again"),
        )
    }

    fn trigger(&self, was: Option<Entry<'_>>, now: Option<Entry<'_>>) -> (&'static str, String) {
        let (table, part) = (self.name, self.part.unwrap_or_default());
        let ours = [was, now]
            .into_iter()
            .flatten()
            .any(|entry| entry.fact("ours") == Some("t"));
        let how = how(was, now);
        match ours {
            true => (
                WEAKENED,
                format!("trigger {part} on table {table} was {how}: run guard init again"),
            ),
            false => (SCHEMA, format!("trigger {part} on table {table} was {how}")),
        }
    }
}

/// The kind of the entry that is there while nobody is to be attributed.
pub(super) const ATTRIBUTION: &str = "attribution";

const OTHER: &str = "CAP-02";
const WEAKENED: &str = "CAP-03";
const SCHEMA: &str = "CAP-05";
const TOUCHED: &str = "";

fn verb(was: Option<Entry<'_>>, now: Option<Entry<'_>>) -> &'static str {
    match (was, now) {
        (None, _) => "added",
        (_, None) => "dropped",
        (Some(was), Some(now)) if was.facts == now.facts => "changed, and looks as before",
        _ => "changed",
    }
}

/// The same, with the facts that differ.
fn how(was: Option<Entry<'_>>, now: Option<Entry<'_>>) -> String {
    let verb = verb(was, now);
    match (was, now) {
        (Some(was), Some(now)) if was.facts != now.facts => {
            format!("{verb} ({})", differing(was, now))
        }
        _ => verb.to_owned(),
    }
}

fn differing(was: Entry<'_>, now: Entry<'_>) -> String {
    let differing: Vec<String> = now
        .facts
        .split(' ')
        .filter_map(|fact| fact.split_once('='))
        .filter(|(name, value)| was.fact(name) != Some(*value))
        .map(|(name, value)| format!("{name} {} -> {value}", was.fact(name).unwrap_or("none")))
        .collect();
    differing.join(", ")
}

fn published(name: &str, was: Option<Entry<'_>>, now: Option<Entry<'_>>) -> (&'static str, String) {
    match (was, now) {
        (None, _) => (
            SCHEMA,
            format!("table {name} was added to the publication: guard it, or take it out"),
        ),
        (_, None) => (
            WEAKENED,
            format!(
                "table {name} is no longer in the publication: put it back (guard init), then scan"
            ),
        ),
        (Some(was), Some(now)) if was.facts == now.facts => (
            WEAKENED,
            format!(
                "table {name} was out of the publication, or published otherwise, and is in it as before: scan it"
            ),
        ),
        (Some(was), Some(now)) => (
            WEAKENED,
            format!(
                "table {name} is published otherwise ({}): run guard init again",
                differing(was, now)
            ),
        ),
    }
}

fn partition(
    name: &str,
    was: Option<Entry<'_>>,
    now: Option<Entry<'_>>,
    all: &Entries,
) -> (&'static str, String) {
    match (was, now) {
        (None, _) => match unlogged(name, all) {
            Some(why) => (
                WEAKENED,
                format!("partition {name} was added, and {why}, and scan"),
            ),
            None => (
                SCHEMA,
                format!(
                    "partition {name} was added: run guard init, and scan for rows that it brought along"
                ),
            ),
        },
        (_, None) => (
            WEAKENED,
            format!(
                "partition {name} was dropped or detached: its rows left without being deleted"
            ),
        ),
        _ => (
            WEAKENED,
            format!("partition {name} was detached and attached again: scan it"),
        ),
    }
}

/// Why the log holds nothing of a partition, or less than its root promises, and what to do.
fn unlogged(name: &str, all: &Entries) -> Option<String> {
    let table = |name: &str| {
        all.get(&format!("table\t{name}"))
            .map(|it| Entry::parse(it))
    };
    let fact = |fact: &str| table(name).and_then(|it| it.fact(fact));
    if fact("kind") == Some("f") {
        return Some("is a foreign table: its rows are stored elsewhere and nothing of them is captured; detach it".to_owned());
    }
    if fact("persistence") == Some("u") {
        return Some("is unlogged: nothing of its rows is captured; make it logged".to_owned());
    }
    let root = root(name, all)?;
    // Its own partitions hold its rows.
    let holds_rows = fact("kind") == Some("r");
    let says_less = fact("identity") != Some("f") && identity(name, all) != identity(root, all);
    (holds_rows && says_less).then(|| {
        format!(
            "its replica identity says less than that of {root}: what is changed there may be told without its old \
             row or under no key; run guard init"
        )
    })
}

/// The published table that a partition belongs to.
fn root<'a>(name: &'a str, all: &'a Entries) -> Option<&'a str> {
    let names = numbers(all);
    let mut root = name;
    // As deep as there are tables: whatever the catalogue says, it ends.
    for _ in 0..names.len() {
        let Some(entry) = all.get(&format!("partition\t{root}")) else {
            return Some(root);
        };
        let parent = Entry::parse(entry).fact("parent")?;
        root = names.get(parent)?;
    }
    None
}

/// The names of the columns by which a table's rows are told apart in the log; `None` for all.
fn identity<'a>(name: &str, all: &'a Entries) -> Option<BTreeSet<&'a str>> {
    let entry = |kind: &str| {
        all.get(&format!("{kind}\t{name}"))
            .map(|it| Entry::parse(it))
    };
    let identity = entry("table")?.fact("identity")?;
    let key = entry("key").filter(|_| matches!(identity, "d" | "i"));
    let listed = key.map(|key| key_numbers(key)).unwrap_or_default();
    let columns = entry("columns").map(shape).unwrap_or_default();
    let names = columns.iter().filter(|(number, _)| listed.contains(number));
    (identity != "f").then(|| names.map(|(_, column)| column.name).collect())
}

/// The numbers of an index's columns, without those that it only carries along.
pub(super) fn key_numbers(index: Entry<'_>) -> BTreeSet<u32> {
    let count = index.fact("count").and_then(|count| count.parse().ok());
    let listed = index.fact("columns").unwrap_or_default().split(',');
    let listed = listed.take(count.unwrap_or(usize::MAX));
    listed.filter_map(|number| number.parse().ok()).collect()
}

/// A table that inherits from a guarded one: whoever reads that reads its rows too.
fn heir(name: &str, now: Option<Entry<'_>>) -> (&'static str, String) {
    match now.map(|now| now.fact("guarded") == Some("t")) {
        Some(false) => (
            WEAKENED,
            format!(
                "table {name} inherits from a guarded table: its rows show there, and nothing of them is captured; guard \
                 it too, or end that it inherits"
            ),
        ),
        Some(true) => (
            TOUCHED,
            format!("table {name} inherits from a guarded table, and is guarded itself"),
        ),
        None => (
            TOUCHED,
            format!("table {name} inherits from no guarded table any more"),
        ),
    }
}

fn table(name: &str, was: Entry<'_>, now: Entry<'_>) -> (&'static str, String) {
    const RELIED_ON: [&str; 3] = ["oid", "persistence", "identity"];
    let weakened = RELIED_ON
        .iter()
        .any(|fact| was.fact(fact) != now.fact(fact));
    let changed = differing(was, now);
    match weakened {
        true => (
            WEAKENED,
            format!(
                "table {name} is no longer captured as before ({changed}): run guard init again"
            ),
        ),
        false => (SCHEMA, format!("table {name} was altered ({changed})")),
    }
}

/// Nothing but the stamp: the row in `pg_class`, the file, the file of large values.
fn storage(name: &str, was: Entry<'_>, now: Entry<'_>) -> (&'static str, String) {
    let files = |entry: Entry<'_>| {
        entry
            .stamp
            .split_once('.')
            .map(|(_, files)| files.to_owned())
    };
    let text = match files(was) == files(now) {
        true => format!("table {name} was altered, and looks as before: scan it"),
        false => format!("table {name} was rewritten or emptied: scan it"),
    };
    (TOUCHED, text)
}

fn columns(name: &str, was: Entry<'_>, now: Entry<'_>) -> (&'static str, String) {
    if was.facts == now.facts {
        let text = format!(
            "a column of table {name} was altered, and looks as before: its values may be others, scan it"
        );
        return (SCHEMA, text);
    }
    let (was, now) = (shape(was), shape(now));
    let numbers: BTreeSet<u32> = was.keys().chain(now.keys()).copied().collect();
    let changes: Vec<String> = numbers
        .into_iter()
        .filter_map(|number| match (was.get(&number), now.get(&number)) {
            (None, Some(now)) => Some(format!("{} {} added", now.name, now.kind)),
            (Some(was), None) => Some(format!("{} {} dropped", was.name, was.kind)),
            (Some(was), Some(now)) if was.name != now.name => {
                Some(format!("{} is now called {}", was.name, now.name))
            }
            (Some(was), Some(now)) if was.kind != now.kind => {
                Some(format!("{} {} -> {}", now.name, was.kind, now.kind))
            }
            (Some(was), Some(now)) if was.facts != now.facts => {
                Some(format!("{} has another constraint or collation", now.name))
            }
            _ => None,
        })
        .collect();
    let text = format!(
        "columns of table {name} were changed ({}): scan it. Before: {}; now: {}",
        changes.join(", "),
        listed(&was),
        listed(&now)
    );
    (SCHEMA, text)
}

/// A column as the fingerprint has it.
pub(super) struct Column<'a> {
    /// Its type's number and modifier, collation, not null, generated.
    pub(super) facts: &'a str,
    pub(super) name: &'a str,
    /// Its type in words.
    kind: &'a str,
}

/// A table's columns by their numbers.
pub(super) fn shape(entry: Entry<'_>) -> BTreeMap<u32, Column<'_>> {
    entry.facts.split('\n').skip(1).filter_map(column).collect()
}

/// Reads `number:type:modifier:collation:not null:generated:name TAB type`.
fn column(line: &str) -> Option<(u32, Column<'_>)> {
    let (number, rest) = line.split_once(':')?;
    let (at, _) = rest.match_indices(':').nth(4)?;
    let facts = &rest[..at];
    let (name, kind) = rest[at + 1..].rsplit_once('\t')?;
    Some((number.parse().ok()?, Column { facts, name, kind }))
}

/// `(id integer, note text)`.
fn listed(shape: &BTreeMap<u32, Column<'_>>) -> String {
    let columns = shape.values();
    let columns: Vec<String> = columns
        .map(|column| format!("{} {}", column.name, column.kind))
        .collect();
    format!("({})", columns.join(", "))
}

fn key(name: &str, now: Option<Entry<'_>>) -> (&'static str, String) {
    match now {
        Some(now) if now.fact("sound") == Some("t") => (
            SCHEMA,
            format!("table {name} has another key: its records are identified otherwise now"),
        ),
        _ => (
            WEAKENED,
            format!(
                "table {name} has no key any more: its rows cannot be followed, unless it has REPLICA IDENTITY FULL, where \
                 the whole row is the key then; give it one, and scan"
            ),
        ),
    }
}

/// A key that is as it was, and may not have been between. Its constraint is another one only
/// if it was dropped; an index without one is another after `REINDEX CONCURRENTLY`, too.
fn remade_key(name: &str, was: Entry<'_>, now: Entry<'_>) -> Option<(&'static str, String)> {
    // Before there was a stamp.
    if was.stamp.is_empty() || now.stamp.is_empty() {
        return None;
    }
    let constraint = |entry: Entry<'_>| entry.stamp.split('.').next().map(str::to_owned);
    Some(match constraint(was) == constraint(now) {
        true => (
            TOUCHED,
            format!(
                "the index that is the key of table {name} was altered or made anew, and looks as before: scan it"
            ),
        ),
        false => (
            SCHEMA,
            format!(
                "table {name} had no key or another one for a while, and has its key again: what was changed \
                 meanwhile may have been told under another key, scan it"
            ),
        ),
    })
}

fn emitter(name: &str, was: Option<Entry<'_>>, now: Option<Entry<'_>>) -> (&'static str, String) {
    let roles = |entry: Option<Entry<'_>>| -> BTreeSet<String> {
        let facts = entry.map(|entry| entry.facts.split(' ').map(str::to_owned));
        facts.into_iter().flatten().collect()
    };
    let (before, after) = (roles(was), roles(now));
    let new: Vec<&str> = after.difference(&before).map(String::as_str).collect();
    match (new.is_empty(), before == after) {
        (false, _) => (
            WEAKENED,
            format!(
                "{} may call {name} now, and write messages in our name: revoke it, or run guard init again",
                new.join(" and ")
            ),
        ),
        (true, true) => (
            WEAKENED,
            format!(
                "somebody may have been allowed to call {name} for a while: messages of that time may be forged"
            ),
        ),
        (true, false) => (TOUCHED, format!("fewer roles than before may call {name}")),
    }
}

fn role(name: &str, was: Option<Entry<'_>>, now: Option<Entry<'_>>) -> (&'static str, String) {
    let has = |entry: Option<Entry<'_>>, fact: &str| {
        entry.is_some_and(|entry| entry.fact(fact) == Some("t"))
    };
    let gained: Vec<&str> = [
        ("superuser", "is a superuser"),
        ("replication", "may replicate, and so drop or advance slots"),
        (
            "member",
            "may become a superuser, or write files and run programs as the server",
        ),
    ]
    .into_iter()
    .filter(|(fact, _)| has(now, fact) && !has(was, fact))
    .map(|(_, text)| text)
    .collect();
    match gained.as_slice() {
        [] => (TOUCHED, format!("role {name} may do less than before")),
        _ => (
            WEAKENED,
            format!(
                "role {name} {} now: take it away unless you meant it",
                gained.join(", and ")
            ),
        ),
    }
}

fn default(name: &str, was: Option<Entry<'_>>, now: Option<Entry<'_>>) -> (&'static str, String) {
    let now = now.map(|entry| entry.facts);
    let was = was.map(|entry| entry.facts);
    match now {
        None => (
            TOUCHED,
            format!(
                "sessions ({name}) no longer start with {}",
                was.unwrap_or_default()
            ),
        ),
        Some(now) => (
            WEAKENED,
            format!("sessions ({name}) now start with {now}: reset it unless you meant it"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(list: &[(&str, &str)]) -> Entries {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        list.iter().map(owned).collect()
    }

    #[track_caller]
    fn check(was: &[(&str, &str)], now: &[(&str, &str)], expected: &[(&str, &str)]) {
        let drifts = compare(&entries(was), &entries(now));
        let found: Vec<(&str, &str)> = drifts
            .iter()
            .map(|drift| (drift.code, drift.text.split(':').next().unwrap()))
            .collect();
        assert_eq!(found, expected);
    }

    const VISIT: [(&str, &str); 3] = [
        ("published\tp.visit", "table=1 columns=all filter=none\t7.7"),
        (
            "table\tp.visit",
            "oid=1 persistence=p identity=d owner=10\t",
        ),
        ("storage\tp.visit", "\t7.1.2"),
    ];

    #[test]
    fn another_cluster_or_timeline() {
        check(
            &[
                ("system\tidentifier", "1\t"),
                ("system\ttimeline", "1\t"),
                ("system\tversion", "150001\t"),
            ],
            &[
                ("system\tidentifier", "2\t"),
                ("system\ttimeline", "2\t"),
                ("system\tversion", "150002\t"),
            ],
            &[
                (
                    "CAP-02",
                    "this is another database (identifier 2, before 1)",
                ),
                ("CAP-02", "the timeline went from 1 to 2"),
                ("", "the server's version went from 150001 to 150002"),
            ],
        );
    }

    #[test]
    fn a_table_that_took_anothers_name() {
        let bed = [
            ("published\tp.bed", "table=2 columns=all filter=none\t8.7"),
            ("table\tp.bed", "oid=2 persistence=p identity=d owner=10\t"),
        ];
        // `bed` is gone and `visit` is called so now, without its trigger.
        let was = [
            &VISIT[..],
            &bed,
            &[("trigger\tp.visit\tpitser_attribution", "ours=t\t1.1")],
        ]
        .concat();
        let now = [
            ("published\tp.bed", "table=1 columns=all filter=none\t7.7"),
            ("table\tp.bed", "oid=1 persistence=p identity=d owner=10\t"),
            ("storage\tp.bed", "\t7.1.2"),
        ];
        check(
            &was,
            &now,
            &[
                ("CAP-05", "table p.visit is now called p.bed"),
                (
                    "CAP-03",
                    "table p.bed (before) is no longer in the publication",
                ),
                (
                    "CAP-03",
                    "trigger pitser_attribution on table p.bed was dropped",
                ),
            ],
        );
    }

    #[test]
    fn another_table_of_the_same_name() {
        let mut now = VISIT;
        now[0].1 = "table=3 columns=all filter=none\t9.9";
        now[1].1 = "oid=3 persistence=p identity=d owner=10\t";
        check(
            &VISIT,
            &now,
            &[
                (
                    "CAP-03",
                    "table p.visit is published otherwise (table 1 -> 3)",
                ),
                (
                    "CAP-03",
                    "table p.visit is no longer captured as before (oid 1 -> 3)",
                ),
            ],
        );
    }

    #[test]
    fn what_else_was_found_explains_the_touch() {
        let mut now = VISIT;
        now[2].1 = "\t9.1.2";
        check(
            &VISIT,
            &now,
            &[("", "table p.visit was altered, and looks as before")],
        );
        now[2].1 = "\t9.3.2";
        check(
            &VISIT,
            &now,
            &[("", "table p.visit was rewritten or emptied")],
        );
        now[1].1 = "oid=1 persistence=p identity=d owner=11\t";
        check(
            &VISIT,
            &now,
            &[("CAP-05", "table p.visit was altered (owner 10 -> 11)")],
        );
    }

    #[test]
    fn a_key_is_noticed_that_was_gone_unless_the_look_before_could_not_tell() {
        #[track_caller]
        fn key(was: &str, now: &str, expected: &[(&str, &str)]) {
            let value = |stamp: &str| format!("columns=1 count=1 sound=t\t{stamp}");
            let (was, now) = (value(was), value(now));
            let of = |value| [&VISIT[..], &[("key\tp.visit", value)]].concat();
            check(&of(&was), &of(&now), expected);
        }
        let again = "table p.visit had no key or another one for a while, and has its key again";
        let anew = "the index that is the key of table p.visit was altered or made anew, and looks as before";
        key("", "16390", &[]);
        key("16390", "", &[]);
        key("16390", "16391", &[("CAP-05", again)]);
        key("0.16390.700", "0.16392.701", &[("", anew)]);
        key("16390.16391.700", "16390.16392.701", &[("", anew)]);
    }

    #[test]
    fn less_power_is_no_finding() {
        check(
            &[
                ("role\tx", "superuser=t replication=t member=t\t"),
                ("emitter\te", "PUBLIC postgres\t1.1"),
            ],
            &[
                ("role\tx", "superuser=f replication=t member=f\t"),
                ("emitter\te", "postgres\t1.2"),
            ],
            &[
                ("", "fewer roles than before may call e"),
                ("", "role x may do less than before"),
            ],
        );
    }
}
