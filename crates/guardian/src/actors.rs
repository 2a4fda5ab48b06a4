//! Who changed a row, and whether it was the application: what the engine's
//! own attribution says, and what the row, its transaction and the
//! application's log table say beside it.
//!
//! | the engine says | the row or its transaction says | actor | finding |
//! |---|---|---|---|
//! | nothing | anything | none | `ACT-01` |
//! | nothing, and need not | a person, written by this transaction | the person, binding C | none |
//! | nothing, and need not | nobody | none | `ACT-02`, where the row should have said |
//! | role, program, a person | | the person, binding as the engine has it | unless a rule is broken: none |
//! | role, program | a person, written by this transaction | the person, binding C | none |
//! | role, program | nobody | the role, binding D | `ACT-02`, where the row should have said |
//! | a role or program that is not the application's | anything | the role, binding D | `ACT-02` |

use crate::config::{Application, Attribution, Source, matches};
use crate::patients::unknown_table;
use pitser_capture::event::{Actor, Binding, Change, Op, Person};
use pitser_capture::{Cell, Row, Shape};
use pitser_evidence::Code;
use std::collections::{BTreeMap, HashMap};

/// A rule about actors that does not fit the tables.
#[derive(Debug, thiserror::Error)]
#[error("source.{section}.\"{pattern}\" = \"{text}\": {why}")]
pub struct ActorError {
    section: &'static str,
    pattern: String,
    text: String,
    why: String,
}

impl ActorError {
    /// The table that the rule is about, if it is one.
    pub(crate) fn table(&self) -> Option<&str> {
        let is_one = self.section != "application" && !self.pattern.contains('*');
        is_one.then_some(&self.pattern)
    }
}

/// What is known of those who write, and the rules about them.
#[derive(Debug, Default)]
pub(crate) struct Actors {
    rules: BTreeMap<String, Rule>,
    application: Application,
    /// The engine need not say who acts.
    unattributed: bool,
    /// Look-up tables: the label column, and for each key its label.
    people: HashMap<String, People>,
}

/// How rows of one table name who wrote them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    /// Columns that name the writer of an existing row; the first that is not
    /// null counts.
    writers: Vec<String>,
    /// Columns that name the creator of a new row, looked at first.
    creators: Vec<String>,
    /// The column that every write by the application changes.
    stamp: Option<String>,
    /// The look-up table, if the columns hold its keys.
    people: Option<String>,
}

#[derive(Debug, Default)]
struct People {
    label: String,
    names: HashMap<Vec<u8>, String>,
}

/// What the changes of one transaction say together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Witness {
    /// The number of the transaction.
    tx: u64,
    /// The application wrote into its log table, as this person.
    logged: Option<Option<String>>,
    /// A row that names who wrote it, by this very transaction.
    stamped: Option<String>,
}

/// Who did it, and what may be wrong with that.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Judged {
    pub(crate) actor: Option<Actor>,
    pub(crate) doubt: Option<Doubt>,
}

/// What is wrong with a change, unless its transaction says more until it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Doubt {
    pub(crate) code: Code,
    /// Each by itself is enough.
    reasons: Vec<Reason>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Reason {
    unless: Unless,
    text: String,
}

/// What would take a reason away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unless {
    /// Nothing.
    Never,
    /// An entry in the application's log table.
    Logged,
    /// A row that names who wrote it.
    Stamped,
}

impl Doubt {
    fn certain(code: Code, text: String) -> Self {
        let unless = Unless::Never;
        Self {
            code,
            reasons: vec![Reason { unless, text }],
        }
    }

    /// Why it is a finding, by everything that its transaction said.
    pub(crate) fn stands(&self, witness: &Witness) -> Option<&str> {
        let is_left = |reason: &&Reason| match reason.unless {
            Unless::Never => true,
            Unless::Logged => witness.logged.is_none(),
            Unless::Stamped => witness.stamped.is_none(),
        };
        let left = self.reasons.iter().find(is_left)?;
        Some(&left.text)
    }

    /// Whether the same would take both away: one stands for the other then.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        let needs = |doubt: &Self| doubt.reasons.iter().map(|r| r.unless).collect::<Vec<_>>();
        self.code == other.code && needs(self) == needs(other)
    }
}

impl Actors {
    /// Reads the configured rules for `tables`.
    pub(crate) fn new(source: &Source, tables: &[Shape]) -> Result<Self, ActorError> {
        match Self::fitting(source, tables) {
            (this, wrong) if wrong.is_empty() => Ok(this),
            (_, mut wrong) => Err(wrong.swap_remove(0)),
        }
    }

    /// The same as far as the rules fit the tables, and those that do not.
    pub(crate) fn fitting(source: &Source, tables: &[Shape]) -> (Self, Vec<ActorError>) {
        let mut this = Self {
            application: source.application.clone(),
            unattributed: source.attribution == Attribution::Off,
            ..Self::default()
        };
        let mut errors = Vec::new();
        if this.unattributed {
            errors.extend(no_session_rules(&source.application).err());
        }
        for (pattern, text) in &source.actor {
            if let Err(why) = this.read_rule(source, pattern, text, tables) {
                errors.push(ActorError {
                    section: "actor",
                    pattern: pattern.clone(),
                    text: text.clone(),
                    why,
                });
            }
        }
        for (pattern, text) in &source.stamp {
            let known = tables.iter().find(|shape| shape.name == *pattern);
            let why = match known {
                None if pattern.contains('*') => continue,
                None => unknown_table(pattern, tables),
                Some(shape) if text == "none" || shape.columns.contains(text) => continue,
                Some(_) => format!("table {pattern} has no such column"),
            };
            errors.push(ActorError {
                section: "stamp",
                pattern: pattern.clone(),
                text: text.clone(),
                why,
            });
        }
        let is_there = |log: &String| tables.iter().any(|shape| shape.name == *log);
        if let Some(log) = this.application.log.take_if(|log| !is_there(log)) {
            errors.push(ActorError {
                section: "application",
                pattern: "log".into(),
                text: log,
                why: "there is no table of this name".into(),
            });
        }
        for shape in tables {
            let text = most_specific(&source.actor, &shape.name);
            if let Some(rule) = text.and_then(|text| Rule::of(shape, text, &source.stamp)) {
                this.rules.insert(shape.name.clone(), rule);
            }
        }
        (this, errors)
    }

    /// Compares one rule with the tables, and takes in where it looks people up.
    fn read_rule(
        &mut self,
        source: &Source,
        pattern: &str,
        text: &str,
        tables: &[Shape],
    ) -> Result<(), String> {
        if let Some(lookup) = Lookup::parse(text)?.1 {
            let known = tables.iter().find(|shape| shape.name == lookup.table);
            let shape = known.ok_or_else(|| format!("there is no table {}", lookup.table))?;
            if shape.key.len() != 1 {
                return Err(format!("{} has no key of one column", shape.name));
            }
            if !shape.columns.contains(&lookup.label) {
                return Err(format!("{} has no column {}", shape.name, lookup.label));
            }
            let people = self.people.entry(lookup.table).or_default();
            if !people.label.is_empty() && people.label != lookup.label {
                return Err("another rule names another column of that table".into());
            }
            people.label = lookup.label;
        }
        let named = tables.iter().find(|shape| shape.name == pattern);
        if named.is_none() && !pattern.contains('*') {
            return Err(unknown_table(pattern, tables));
        }
        match named.is_none_or(|shape| Rule::of(shape, text, &source.stamp).is_some()) {
            true => Ok(()),
            false => Err(format!("table {pattern} has no such column")),
        }
    }

    /// Tables that the rules need to see, and of which columns alone:
    /// look-up tables and the log table.
    pub(crate) fn needed(source: &Source) -> Vec<Needed> {
        let mut needed: Vec<Needed> = Vec::new();
        for text in source.actor.values() {
            let Ok((_, Some(lookup))) = Lookup::parse(text) else {
                continue;
            };
            needed.push(Needed {
                table: lookup.table,
                column: Some(lookup.label),
            });
        }
        needed.extend(source.application.log.iter().map(|table| Needed {
            table: table.clone(),
            column: None,
        }));
        needed
    }

    /// Columns of a table that the rules look at.
    pub(crate) fn columns(source: &Source, shape: &Shape) -> Vec<String> {
        let text = most_specific(&source.actor, &shape.name);
        let rule = text.and_then(|text| Rule::of(shape, text, &source.stamp));
        rule.into_iter()
            .flat_map(|rule| {
                let names = rule.writers.into_iter().chain(rule.creators);
                names.chain(rule.stamp).collect::<Vec<_>>()
            })
            .collect()
    }

    /// Whether rows of this table say who somebody is: the vault must keep them.
    pub(crate) fn is_lookup(&self, table: &str) -> bool {
        self.people.contains_key(table)
    }

    /// Remembers what a row of a look-up table says; `None`: the row is gone.
    /// The last label stays known: later deletes may still name it.
    pub(crate) fn learn(
        &mut self,
        table: &str,
        key: &[u8],
        label: impl FnOnce(&str) -> Option<String>,
    ) {
        if let Some(people) = self.people.get_mut(table)
            && let Some(label) = label(&people.label)
        {
            people.names.insert(key.to_vec(), label);
        }
    }

    /// As [`Actors::learn`], from a row.
    pub(crate) fn learn_row(&mut self, table: &str, key: &[u8], row: &Row) {
        self.learn(table, key, |label| row.get(label).and_then(shown));
    }

    /// Whether it takes the version that a change replaces to see what it says.
    pub(crate) fn compares(&self, change: &Change) -> bool {
        change.op == Op::Update && self.rules.contains_key(&change.table)
    }

    /// What a change adds to what its transaction says. `changed` are the columns
    /// that it changed, where that is known.
    pub(crate) fn witness(
        &self,
        witness: &mut Witness,
        change: &Change,
        changed: Option<&[String]>,
    ) {
        if witness.tx != change.tx {
            *witness = Witness {
                tx: change.tx,
                ..Witness::default()
            };
        }
        let person = self.stamped(change, changed);
        if self.application.log.as_ref() == Some(&change.table) && change.op == Op::Create {
            let known = witness.logged.take().flatten();
            witness.logged = Some(known.or(person.clone()));
        }
        if witness.stamped.is_none() {
            witness.stamped = person;
        }
    }

    /// Who did it, by everything that is known, and whether it looks like the
    /// application. `changed` and `witness` as in [`Actors::witness`]; what the
    /// transaction says later can still take the doubt away.
    pub(crate) fn judge(
        &self,
        change: &Change,
        changed: Option<&[String]>,
        witness: &Witness,
    ) -> Judged {
        let said = match &change.actor {
            Some(said) => said,
            None if self.unattributed => &UNKNOWN,
            None => {
                let text = format!("{} without an attributed actor", word(change.op));
                return Judged {
                    actor: None,
                    doubt: Some(Doubt::certain(Code::Unattributed, text)),
                };
            }
        };
        let stranger = self.stranger(said);
        let mut actor = said.clone();
        if stranger.is_some() && actor.person.is_some() {
            // An assertion counts from the application alone.
            actor.person = None;
            actor.binding = Binding::D;
        } else if stranger.is_none() && actor.person.is_none() {
            let row = self.stamped(change, changed);
            let logged = || witness.logged.clone().flatten();
            let person = row.or_else(logged).or_else(|| witness.stamped.clone());
            if let Some(person) = person {
                actor.person = Some(Person::new(person));
                actor.binding = Binding::C;
            }
        }
        let outside =
            |why: String| format!("{} from outside the application: {why}", word(change.op));
        let doubt = match stranger {
            Some(why) => Some(Doubt::certain(Code::OutsideApplication, outside(why))),
            None => {
                let reasons = self.unseen(change, said, witness).into_iter();
                let reasons: Vec<Reason> = reasons
                    .map(|(unless, why)| Reason {
                        unless,
                        text: outside(why),
                    })
                    .collect();
                (!reasons.is_empty()).then_some(Doubt {
                    code: Code::OutsideApplication,
                    reasons,
                })
            }
        };
        Judged {
            doubt,
            actor: Some(actor).filter(|actor| *actor != UNKNOWN),
        }
    }

    /// Why a session is not the application's.
    fn stranger(&self, said: &Actor) -> Option<String> {
        let Application { roles, names, .. } = &self.application;
        let role = said.role.as_deref().unwrap_or_default();
        let app = said.app.as_deref().unwrap_or_default();
        if !roles.is_empty() && !roles.iter().any(|known| known == role) {
            return Some(format!("the role is {role}"));
        }
        if !names.is_empty() && !names.iter().any(|pattern| matches(pattern, app)) {
            return Some("the program is not the application's".into());
        }
        None
    }

    /// What the application would have left behind in the transaction, and did
    /// not so far.
    fn unseen(&self, change: &Change, said: &Actor, witness: &Witness) -> Vec<(Unless, String)> {
        let Application { roles, names, log } = &self.application;
        let mut unseen = Vec::new();
        // Applications log what they change and delete; a new row tells of itself.
        let tells = change.op == Op::Create && self.stamped(change, None).is_some();
        if let Some(log) = log
            && witness.logged.is_none()
            && !tells
        {
            let why = format!("{log} has no entry in its transaction");
            unseen.push((Unless::Logged, why));
        }
        let gone = change.new.is_none();
        let by_session = !roles.is_empty() || !names.is_empty() || log.is_some();
        if let Some(rule) = self.rules.get(&change.table)
            && said.person.is_none()
            && witness.stamped.is_none()
            && !(gone && by_session)
        {
            let why = match gone {
                true => "nobody is named in its transaction".to_owned(),
                false => format!("{} was not written anew", rule.asked(change.op)),
            };
            unseen.push((Unless::Stamped, why));
        }
        unseen
    }

    /// Whom the row names as its writer, if this change wrote that.
    fn stamped(&self, change: &Change, changed: Option<&[String]>) -> Option<String> {
        let rule = self.rules.get(&change.table)?;
        let row = change.new.as_ref()?;
        let fresh = change.op != Op::Update || rule.is_fresh(changed);
        self.named(rule, change, row).filter(|_| fresh)
    }

    fn named(&self, rule: &Rule, change: &Change, row: &Row) -> Option<String> {
        let creators = rule.creators.iter().filter(|_| change.op == Op::Create);
        let cell = creators
            .chain(&rule.writers)
            .filter_map(|column| row.get(column))
            .find(|cell| !cell.is_null())?;
        match &rule.people {
            None => shown(cell),
            Some(table) => {
                let people = self.people.get(table);
                let known = people.and_then(|people| people.names.get(cell.expose()?));
                // Somebody who is not known yet is still named, by number.
                known
                    .cloned()
                    .or_else(|| Some(format!("{table} {}", shown(cell)?)))
            }
        }
    }
}

/// Somebody of whom nothing is known.
const UNKNOWN: Actor = Actor {
    role: None,
    app: None,
    client: None,
    person: None,
    binding: Binding::E,
};

/// Refuses rules about sessions where nobody says whose session it was.
fn no_session_rules(application: &Application) -> Result<(), ActorError> {
    let Application { roles, names, .. } = application;
    let rules = [("roles", roles), ("names", names)];
    match rules.into_iter().find(|(_, given)| !given.is_empty()) {
        None => Ok(()),
        Some((rule, given)) => Err(ActorError {
            section: "application",
            pattern: rule.to_owned(),
            text: given.join(", "),
            why: "with attribution = \"off\" nobody says which role or program acted".to_owned(),
        }),
    }
}

/// A table that is guarded because the rules look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Needed {
    pub(crate) table: String,
    /// The column that names people; `None` for the log table.
    pub(crate) column: Option<String>,
}

/// `-> table.column`.
struct Lookup {
    table: String,
    label: String,
}

impl Lookup {
    /// Column names, and where their values lead.
    fn parse(text: &str) -> Result<(Vec<String>, Option<Self>), String> {
        let (columns, target) = match text.split_once("->") {
            None => (text, None),
            Some((columns, target)) => (columns, Some(target.trim())),
        };
        let columns: Vec<String> = columns.split(',').map(|c| c.trim().to_owned()).collect();
        if columns.iter().any(String::is_empty) {
            return Err("a column name is missing".into());
        }
        let lookup = target.map(|target| match target.rsplit_once('.') {
            Some((table, label)) if !table.is_empty() && !label.is_empty() => Ok(Self {
                table: table.to_owned(),
                label: label.to_owned(),
            }),
            _ => Err("after -> comes table.column".to_owned()),
        });
        Ok((columns, lookup.transpose()?))
    }
}

impl Rule {
    /// The rule for a table; `None` if it has none of the columns.
    fn of(shape: &Shape, text: &str, stamps: &BTreeMap<String, String>) -> Option<Self> {
        let (columns, lookup) = Lookup::parse(text).ok()?;
        let has = |name: &String| shape.columns.contains(name);
        let writers: Vec<String> = columns.into_iter().filter(has).collect();
        // Tryton and Odoo write create_uid once and write_uid on each change.
        let sibling = |name: &String| {
            let sibling = name
                .strip_prefix("write_")
                .map(|rest| format!("create_{rest}"));
            sibling.filter(has)
        };
        let creators: Vec<String> = writers.iter().filter_map(sibling).collect();
        let stamp = match most_specific(stamps, &shape.name) {
            Some("none") => None,
            Some(column) => Some(column.to_owned()).filter(has),
            None => writers.iter().find_map(|writer| {
                let (stem, _) = writer.rsplit_once('_')?;
                let candidates = ["date", "at", "time", "on"].map(|end| format!("{stem}_{end}"));
                candidates.into_iter().find(has)
            }),
        };
        (!writers.is_empty()).then_some(Self {
            writers,
            creators,
            stamp,
            people: lookup.map(|lookup| lookup.table),
        })
    }

    /// Whether an update wrote the columns that name its writer. Where no stamp
    /// is known, the same person writing twice looks like nobody writing, and
    /// the row is believed; so it is where nothing is known to compare it with.
    fn is_fresh(&self, changed: Option<&[String]>) -> bool {
        let (Some(stamp), Some(changed)) = (&self.stamp, changed) else {
            return true;
        };
        let mut written = self.writers.iter().chain([stamp]);
        written.any(|column| changed.contains(column))
    }

    /// The column that a change of this kind should have written.
    fn asked(&self, op: Op) -> &str {
        let creator = self.creators.first().filter(|_| op == Op::Create);
        creator.or(self.writers.first()).map_or("", String::as_str)
    }
}

/// The text of the pattern that fits a table best: its own name, else the
/// longest pattern.
fn most_specific<'a>(patterns: &'a BTreeMap<String, String>, table: &str) -> Option<&'a str> {
    if let Some(exact) = patterns.get(table) {
        return Some(exact);
    }
    patterns
        .iter()
        .filter(|(pattern, _)| matches(pattern, table))
        .max_by_key(|(pattern, _)| pattern.len())
        .map(|(_, text)| text.as_str())
}

/// A value without its type letter, if it is not empty.
fn shown(cell: &Cell) -> Option<String> {
    let text = std::str::from_utf8(cell.expose()?.get(1..)?).ok()?;
    (!text.is_empty()).then(|| text.to_owned())
}

fn word(op: Op) -> &'static str {
    match op {
        Op::Create => "create",
        Op::Update => "update",
        Op::Delete => "delete",
        Op::Truncate => "truncate",
        Op::Baseline => "baseline",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Kind;
    use pitser_capture::{Key, Position};

    const COLUMNS: [&str; 5] = ["id", "note", "create_uid", "write_uid", "write_date"];

    fn shape(name: &str, columns: &[&str]) -> Shape {
        Shape {
            name: name.to_owned(),
            columns: columns.iter().map(|c| (*c).to_owned()).collect(),
            numbers: Vec::new(),
            key: vec!["id".to_owned()],
            keyless: false,
        }
    }

    fn shapes() -> Vec<Shape> {
        vec![
            shape("public.visit", &COLUMNS),
            shape("public.journal", &COLUMNS),
            shape("public.ward", &["id", "name"]),
            shape("public.staff", &["id", "login"]),
        ]
    }

    fn source() -> Source {
        let mut source = Source::new("h", Kind::Postgres, "postgres://a@h", &["*"]);
        let rule = "write_uid -> public.staff.login".to_owned();
        source.actor.insert("*".to_owned(), rule);
        source
    }

    fn actors(source: &Source) -> Actors {
        let mut actors = Actors::new(source, &shapes()).unwrap();
        actors.learn("public.staff", b"t2", |_| Some("dr.tamm".to_owned()));
        actors
    }

    /// Cells separated by spaces, `-` for null.
    fn row(cells: &str) -> Row {
        let cell = |text: &str| match text {
            "-" => Cell::NULL,
            text => Cell::new(format!("t{text}").into_bytes()),
        };
        Row {
            columns: COLUMNS.map(str::to_owned).into(),
            cells: cells.split(' ').map(cell).collect(),
        }
    }

    /// The columns that differ from [`BEFORE`].
    fn changed(change: &Change) -> Option<Vec<String>> {
        let new = change.new.as_ref()?;
        Some(crate::translate::changed_columns(&row(BEFORE), new))
    }

    fn session(role: &str, app: &str, person: Option<&str>) -> Actor {
        Actor {
            role: Some(role.to_owned()),
            app: Some(app.to_owned()),
            client: None,
            person: person.map(Person::new),
            binding: if person.is_some() {
                Binding::C
            } else {
                Binding::D
            },
        }
    }

    fn change(table: &str, op: Op, new: Option<&str>) -> Change {
        Change {
            pos: Position::Outbox(1),
            tx: 7,
            at: "2026-03-14T09:26:53.000000Z".to_owned(),
            table: table.to_owned(),
            op,
            key: Key::new(vec![Cell::new(*b"t1")]),
            keyless: false,
            old: None,
            new: new.map(row),
            unsent: Vec::new(),
            actor: Some(session("ehr", "ehr", None)),
            purpose: None,
        }
    }

    const BEFORE: &str = "1 cough 1 2 monday";

    /// What becomes of the last of these changes of one transaction:
    /// `person binding`, and the finding's code.
    #[track_caller]
    fn check(source: &Source, changes: &[Change], expected: (&str, Option<&str>)) {
        let actors = actors(source);
        let mut witness = Witness::default();
        for change in changes {
            actors.witness(&mut witness, change, changed(change).as_deref());
        }
        let last = changes.last().unwrap();
        let Judged { actor, doubt } = actors.judge(last, changed(last).as_deref(), &witness);
        let shown = actor.map_or_else(
            || "nobody".to_owned(),
            |actor| {
                let person = actor.person.as_ref().map_or("-", |person| person.expose());
                format!("{person} {:?}", actor.binding)
            },
        );
        let code = doubt.map(|doubt| {
            assert!(doubt.stands(&witness).is_some(), "{doubt:?}");
            doubt.code.as_str()
        });
        assert_eq!((shown.as_str(), code), expected);
    }

    #[test]
    fn what_is_said_later_in_the_transaction_takes_a_doubt_away() {
        let mut source = source();
        source.application.log = Some("public.journal".to_owned());
        let actors = actors(&source);
        let update = |new| change("public.visit", Op::Update, Some(new));
        let doubt = |change: &Change| {
            let judged = actors.judge(change, changed(change).as_deref(), &Witness::default());
            judged.doubt
        };
        let (silent, other) = (update("1 fever 1 2 monday"), update("1 worse 1 2 monday"));
        let doubted = doubt(&silent).unwrap();
        assert!(doubted.is_like(&doubt(&other).unwrap()));
        let ward = doubt(&change("public.ward", Op::Delete, None)).unwrap();
        assert!(!doubted.is_like(&ward), "it needs no writer");

        let mut witness = Witness::default();
        let mut hear = |change: Change| {
            actors.witness(&mut witness, &change, changed(&change).as_deref());
            let why = |doubt: &Doubt| doubt.stands(&witness).map(str::to_owned);
            (why(&doubted), why(&ward))
        };
        let (why, of_ward) = hear(silent);
        assert!(why.unwrap().contains("public.journal has no entry"));
        assert!(of_ward.is_some());
        let (why, of_ward) = hear(change("public.journal", Op::Create, Some("5 x - - -")));
        assert!(why.unwrap().contains("write_uid was not written anew"));
        assert_eq!(of_ward, None);
        let (why, _) = hear(update("1 fever 1 2 tuesday"));
        assert_eq!(why, None);
    }

    #[test]
    fn a_row_that_names_its_writer_anew() {
        let update = |new| change("public.visit", Op::Update, Some(new));
        let tamm = ("dr.tamm C", None);
        check(&source(), &[update("1 fever 1 2 tuesday")], tamm);
        check(
            &source(),
            &[update("1 fever 1 9 monday")],
            ("public.staff 9 C", None),
        );
        check(
            &source(),
            &[update("1 fever 1 2 monday")],
            ("- D", Some("ACT-02")),
        );
        check(
            &source(),
            &[update("1 fever 1 - monday")],
            ("- D", Some("ACT-02")),
        );
        // Written twice in one transaction, with one time.
        let twice = [update("1 fever 1 2 tuesday"), update("1 worse 1 2 monday")];
        check(&source(), &twice, tamm);
    }

    #[test]
    fn a_new_row_names_its_creator() {
        let create = |new| change("public.visit", Op::Create, Some(new));
        check(&source(), &[create("1 fever 2 - -")], ("dr.tamm C", None));
        check(
            &source(),
            &[create("1 fever - - -")],
            ("- D", Some("ACT-02")),
        );
    }

    #[test]
    fn a_deleted_row_is_spoken_for_by_its_transaction() {
        let delete = change("public.visit", Op::Delete, None);
        let update = change("public.visit", Op::Update, Some("1 fever 1 2 tuesday"));
        check(
            &source(),
            std::slice::from_ref(&delete),
            ("- D", Some("ACT-02")),
        );
        check(
            &source(),
            &[update.clone(), delete.clone()],
            ("dr.tamm C", None),
        );
        // Of another transaction.
        let other = Change { tx: 8, ..delete };
        check(&source(), &[update, other], ("- D", Some("ACT-02")));
    }

    #[test]
    fn a_table_without_such_columns_and_a_person_whom_the_engine_reports() {
        let ward = change("public.ward", Op::Delete, None);
        check(&source(), std::slice::from_ref(&ward), ("- D", None));
        let mut named = change("public.visit", Op::Update, Some(BEFORE));
        named.actor = Some(session("ehr", "ehr", Some("EE1")));
        check(&source(), std::slice::from_ref(&named), ("EE1 C", None));
        named.actor = None;
        check(&source(), &[named], ("nobody", Some("ACT-01")));
    }

    #[test]
    fn sessions_that_are_not_the_applications() {
        let mut source = source();
        source.application.roles = vec!["ehr".to_owned()];
        source.application.names = vec!["ehr *".to_owned()];
        let stamped = |role: &str, app: &str| Change {
            actor: Some(session(role, app, Some("EE1"))),
            ..change("public.visit", Op::Update, Some("1 fever 1 2 tuesday"))
        };
        check(&source, &[stamped("ehr", "ehr 5")], ("EE1 C", None));
        let stranger = ("- D", Some("ACT-02"));
        check(&source, &[stamped("eve", "ehr 5")], stranger);
        check(&source, &[stamped("ehr", "psql")], stranger);
        // By session alone, a delete needs no row that names anybody.
        let mut delete = change("public.visit", Op::Delete, None);
        delete.actor = Some(session("ehr", "ehr 5", None));
        check(&source, &[delete], ("- D", None));
    }

    #[test]
    fn the_applications_own_log() {
        let mut source = source();
        source.application.log = Some("public.journal".to_owned());
        let silent = change("public.ward", Op::Delete, None);
        check(
            &source,
            std::slice::from_ref(&silent),
            ("- D", Some("ACT-02")),
        );
        let entry = change("public.journal", Op::Create, Some("5 x 2 - -"));
        check(
            &source,
            &[entry.clone(), silent.clone()],
            ("dr.tamm C", None),
        );
        // A new row that names its creator needs none, one that does not does.
        let created = change("public.visit", Op::Create, Some("1 fever 2 - -"));
        check(&source, &[created], ("dr.tamm C", None));
        let created = change("public.visit", Op::Create, Some("1 fever - - -"));
        check(&source, &[created], ("- D", Some("ACT-02")));
        let nameless = change("public.journal", Op::Create, Some("5 x - - -"));
        check(&source, &[nameless, silent], ("- D", None));
    }

    #[test]
    fn stamps_can_be_named_or_done_without() {
        let same = change("public.visit", Op::Update, Some("1 new 1 2 monday"));
        let mut source = source();
        source.stamp.insert("public.visit".into(), "note".into());
        check(&source, std::slice::from_ref(&same), ("dr.tamm C", None));
        source.stamp.insert("public.visit".into(), "none".into());
        check(&source, &[same], ("dr.tamm C", None));
    }

    #[test]
    fn rules_that_do_not_fit_are_named() {
        let refused = |pattern: &str, text: &str, expected: &str| {
            let mut source = source();
            source.actor.insert(pattern.to_owned(), text.to_owned());
            let error = Actors::new(&source, &shapes()).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(text), "{error}");
        };
        refused("public.visit", "nobody", "no such column");
        refused(
            "*",
            "write_uid -> public.people.login",
            "no table public.people",
        );
        refused("*", "write_uid -> public.staff.name", "no column name");
        refused("*", "write_uid -> staff", "table.column");
        refused("*", " -> public.staff.login", "column name is missing");
        let mut source = source();
        source.application.log = Some("public.diary".to_owned());
        let error = Actors::new(&source, &shapes()).unwrap_err().to_string();
        assert!(error.contains("public.diary"), "{error}");
    }

    #[test]
    fn what_the_rules_look_at() {
        let mut source = source();
        source.application.log = Some("public.journal".to_owned());
        let needed = Actors::needed(&source);
        let tables: Vec<_> = needed.iter().map(|n| n.table.as_str()).collect();
        assert_eq!(tables, ["public.staff", "public.journal"]);
        let columns = Actors::columns(&source, &shapes()[1]);
        assert_eq!(columns, ["write_uid", "create_uid", "write_date"]);
    }
}
