//! The objects that capture puts into a guarded database
//! (docs/spec/60-sqlite-capture.md §2).

use rusqlite::{Connection, OptionalExtension};

use super::table::{Given, Table, UniqueColumn, member};
use super::{SqliteError, quote};

/// One object of `sqlite_schema`, wanted or present.
struct Object {
    kind: String,
    name: String,
    /// To the letter: SQLite keeps the text of a `CREATE` as it was given.
    sql: String,
}

impl Object {
    fn new(kind: &str, name: impl Into<String>, sql: impl Into<String>) -> Self {
        Self {
            kind: kind.to_owned(),
            name: name.into(),
            sql: sql.into(),
        }
    }

    fn drop_sql(&self) -> String {
        format!("DROP {} {}", self.kind, quote(&self.name))
    }
}

/// The statements that turn the database's present state into the wanted one;
/// empty once installed.
pub(super) fn plan(
    db: &Connection,
    tables: &[Table],
    system: &str,
) -> Result<Vec<String>, SqliteError> {
    let present = present(db)?;
    let mut wanted = base_objects();
    refuse_foreign(&present, &wanted)?;
    let mut shapes = Shapes::read(db, &present)?;
    for table in tables {
        let shape = shapes.of(table);
        wanted.push(notes_table(table));
        wanted.extend(triggers(table, shape));
    }

    let outrun = outrun(db, tables)?;
    let (kept, stale): (Vec<&Object>, Vec<&Object>) = present.iter().partition(|object| {
        let same = |other: &&Object| other.name == object.name && other.sql == object.sql;
        wanted.iter().any(|other| same(&other)) && !outrun.contains(&object.name)
    });
    let mut plan: Vec<String> = stale.iter().map(|object| object.drop_sql()).collect();
    let is_kept = |object: &&Object| kept.iter().any(|other| other.name == object.name);
    plan.extend(
        wanted
            .iter()
            .filter(|object| !is_kept(object))
            .map(|object| object.sql.clone()),
    );
    if !has(&present, "pitser_meta") {
        plan.push(format!(
            "INSERT INTO pitser_meta(name, value) VALUES('schema', '{SCHEMA}')"
        ));
        plan.push(format!(
            "INSERT INTO pitser_meta(name, value) VALUES('system', '{system}')"
        ));
    }
    plan.extend(shapes.added);
    Ok(plan)
}

fn has(objects: &[Object], name: &str) -> bool {
    objects.iter().any(|object| object.name == name)
}

/// The statements that leave nothing of ours behind.
pub(super) fn plan_removal(db: &Connection) -> Result<Vec<String>, SqliteError> {
    // Triggers and views go before the tables that they name.
    const ORDER: [&str; 4] = ["trigger", "view", "index", "table"];
    let mut present = present(db)?;
    present.sort_by_key(|object| ORDER.iter().position(|kind| *kind == object.kind));
    Ok(present.iter().map(Object::drop_sql).collect())
}

/// Every object that has one of our names.
fn present(db: &Connection) -> Result<Vec<Object>, SqliteError> {
    let mut query = db.prepare(
        "SELECT type, name, coalesce(sql, '') FROM sqlite_schema \
         WHERE name LIKE 'pitser\\_%' ESCAPE '\\' ORDER BY rowid",
    )?;
    let objects = query.query_map([], |row| {
        Ok(Object {
            kind: row.get(0)?,
            name: row.get(1)?,
            sql: row.get(2)?,
        })
    })?;
    let mut present: Vec<Object> = objects.collect::<Result<_, _>>()?;
    let base = base_objects();
    present.retain(|object| {
        has(&base, &object.name)
            || PER_TABLE
                .iter()
                .any(|prefix| object.name.starts_with(prefix))
    });
    Ok(present)
}

/// Tables that hold what is not sealed yet are as we make them, or not ours to drop.
fn refuse_foreign(present: &[Object], base: &[Object]) -> Result<(), SqliteError> {
    let holds_data = |object: &&Object| DATA_TABLES.contains(&object.name.as_str());
    for object in present.iter().filter(holds_data) {
        if !base
            .iter()
            .any(|ours| ours.name == object.name && ours.sql == object.sql)
        {
            return Err(SqliteError::Foreign {
                object: object.name.clone(),
            });
        }
    }
    Ok(())
}

/// SQLite runs the newest trigger first. Ours must be the newest, so that what
/// another trigger does comes after the change that set it off.
fn outrun(db: &Connection, tables: &[Table]) -> Result<Vec<String>, SqliteError> {
    let mut query = db.prepare(
        "SELECT ours.name FROM sqlite_schema AS ours JOIN sqlite_schema AS theirs \
         ON theirs.tbl_name = ours.tbl_name COLLATE NOCASE AND theirs.rowid > ours.rowid \
         WHERE ours.type = 'trigger' AND theirs.type = 'trigger' AND ours.tbl_name = ?1 COLLATE NOCASE \
         AND ours.name LIKE 'pitser\\_%' ESCAPE '\\' AND theirs.name NOT LIKE 'pitser\\_%' ESCAPE '\\'",
    )?;
    let mut names = Vec::new();
    for table in tables {
        let rows = query.query_map([&table.name], |row| row.get(0))?;
        names.extend(rows.collect::<Result<Vec<String>, _>>()?);
    }
    Ok(names)
}

/// Column lists that outbox rows refer to; a list is never changed or removed,
/// so that rows written before a schema change stay readable.
struct Shapes {
    /// Id, table, columns, key places; the newest of a table counts.
    known: Vec<(i64, String, String, String)>,
    /// Statements that add what is missing.
    added: Vec<String>,
}

impl Shapes {
    fn read(db: &Connection, present: &[Object]) -> Result<Self, SqliteError> {
        let mut known = Vec::new();
        if has(present, "pitser_shape") {
            let mut query =
                db.prepare("SELECT id, tbl, columns, key FROM pitser_shape ORDER BY id")?;
            let rows = query.query_map([], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })?;
            known = rows.collect::<Result<_, _>>()?;
        }
        Ok(Self {
            known,
            added: Vec::new(),
        })
    }

    /// The number of the table's present shape, planned if there is none yet.
    fn of(&mut self, table: &Table) -> i64 {
        let columns = json(&*table.columns);
        let key = json(&table.key);
        let newest = self
            .known
            .iter()
            .rev()
            .find(|(_, name, _, _)| *name == table.name);
        if let Some((id, _, _, _)) = newest.filter(|(_, _, c, k)| *c == columns && *k == key) {
            return *id;
        }
        let id = self.known.last().map_or(0, |(id, _, _, _)| *id) + 1;
        self.added.push(format!(
            "INSERT INTO pitser_shape(id, tbl, columns, key) VALUES({id}, {}, {}, {})",
            text(&table.name),
            text(&columns),
            text(&key)
        ));
        self.known.push((id, table.name.clone(), columns, key));
        id
    }
}

fn json<T: serde::Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).expect("strings and numbers always serialise")
}

fn text(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

/// The installed system id, if capture is installed.
pub(super) fn system(db: &Connection) -> Result<Option<String>, SqliteError> {
    if !has(&present(db)?, "pitser_meta") {
        return Ok(None);
    }
    Ok(db
        .query_row(
            "SELECT value FROM pitser_meta WHERE name = 'system'",
            [],
            |row| row.get(0),
        )
        .optional()?)
}

/// Drops the notes of statements that are over. For a writer only.
pub(super) fn clear_notes(db: &Connection, table: &Table) -> Result<(), SqliteError> {
    let name = notes_name(table);
    if db.table_exists(None, &*name)? {
        db.execute(&format!("DELETE FROM {}", quote(&name)), [])?;
    }
    Ok(())
}

fn base_objects() -> Vec<Object> {
    vec![
        Object::new(
            "table",
            "pitser_meta",
            "CREATE TABLE pitser_meta(name TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL)",
        ),
        Object::new(
            "table",
            "pitser_shape",
            "CREATE TABLE pitser_shape(id INTEGER PRIMARY KEY, tbl TEXT NOT NULL, columns TEXT NOT NULL, key TEXT NOT NULL)",
        ),
        Object::new(
            "table",
            "pitser_outbox",
            "CREATE TABLE pitser_outbox(id INTEGER PRIMARY KEY AUTOINCREMENT, \
             at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%f000Z', 'now')), \
             kind TEXT NOT NULL, shape INTEGER, old TEXT, new TEXT, \
             actor TEXT, app TEXT, role TEXT, client TEXT, purpose TEXT)",
        ),
        Object::new(
            "index",
            "pitser_mark",
            "CREATE INDEX pitser_mark ON pitser_outbox(id) WHERE kind IN ('begin', 'end')",
        ),
        Object::new(
            "view",
            "pitser_begin",
            "CREATE VIEW pitser_begin AS SELECT NULL AS actor, NULL AS app, NULL AS role, \
             NULL AS client, NULL AS purpose WHERE 0",
        ),
        Object::new(
            "trigger",
            "pitser_begin_write",
            "CREATE TRIGGER pitser_begin_write INSTEAD OF INSERT ON pitser_begin BEGIN \
             INSERT INTO pitser_outbox(kind, actor, app, role, client, purpose) \
             VALUES('begin', NEW.actor, NEW.app, NEW.role, NEW.client, NEW.purpose); END",
        ),
        Object::new(
            "view",
            "pitser_end",
            "CREATE VIEW pitser_end AS SELECT NULL AS done WHERE 0",
        ),
        Object::new(
            "trigger",
            "pitser_end_write",
            "CREATE TRIGGER pitser_end_write INSTEAD OF INSERT ON pitser_end BEGIN \
             INSERT INTO pitser_outbox(kind) VALUES('end'); END",
        ),
    ]
}

/// Rows that a statement may be about to replace. Without
/// `PRAGMA recursive_triggers`, which is the application's to set, `REPLACE`
/// deletes rows without a word to delete triggers; so a `BEFORE` trigger notes
/// the rows that stand in the way, and an `AFTER` trigger sees which are gone.
fn notes_table(table: &Table) -> Object {
    let places: Vec<String> = (0..table.locator.len()).map(|n| format!("at{n}")).collect();
    let name = notes_name(table);
    let places = places.join(", ");
    let sql = format!(
        "CREATE TABLE {}(cause TEXT, key TEXT, old TEXT, {places})",
        quote(&name)
    );
    Object::new("table", name, sql)
}

fn notes_name(table: &Table) -> String {
    format!("pitser_notes_{}", table.name)
}

/// The six triggers of a guarded table. Those on `UPDATE OF` cost an ordinary
/// update nothing: SQLite compiles them into statements that set such a column.
fn triggers(table: &Table, shape: i64) -> Vec<Object> {
    let sql = TriggerSql::new(table, shape);
    let t = quote(&table.name);
    let trigger = |kind: &str, when: String, body: &[String]| {
        let name = format!("pitser_{kind}_{}", table.name);
        let sql = format!(
            "CREATE TRIGGER {} {when} BEGIN {}; END",
            quote(&name),
            body.join("; ")
        );
        Object::new("trigger", name, sql)
    };
    let moved = sql.differs(&table.key_names());
    vec![
        trigger(
            "before_insert",
            format!("BEFORE INSERT ON {t}"),
            &sql.before_insert(),
        ),
        trigger(
            "insert",
            format!("AFTER INSERT ON {t}"),
            &sql.after_insert(),
        ),
        trigger(
            "before_update",
            sql.before_update_when(),
            &sql.before_update(),
        ),
        trigger(
            "update",
            format!("AFTER UPDATE ON {t} WHEN NOT ({moved})"),
            &sql.after_update(),
        ),
        trigger(
            "move",
            format!(
                "AFTER UPDATE OF {} ON {t} WHEN {moved}",
                names_of(&table.key_names())
            ),
            &sql.after_move(),
        ),
        trigger(
            "delete",
            format!("AFTER DELETE ON {t}"),
            &sql.after_delete(),
        ),
    ]
}

/// For `UPDATE OF`, which goes by the names that a statement uses: an integer
/// key may be set by any name of the rowid. Names that do not exist do no harm.
fn names_of(columns: &[String]) -> String {
    let columns = columns.iter().map(|name| quote(name));
    columns
        .chain(["rowid", "oid", "_rowid_"].map(str::to_owned))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Builds the statements inside a table's triggers. Aliases: `t` the table's
/// own rows, `n` notes.
struct TriggerSql<'a> {
    table: &'a Table,
    shape: i64,
    t: String,
    notes: String,
}

impl<'a> TriggerSql<'a> {
    fn new(table: &'a Table, shape: i64) -> Self {
        Self {
            table,
            shape,
            t: quote(&table.name),
            notes: quote(&notes_name(table)),
        }
    }

    fn before_insert(&self) -> Vec<String> {
        // A note whose row still stands was left by a statement that is over
        // (INSERT OR IGNORE, DO NOTHING, DO UPDATE).
        let mut body = vec![format!(
            "DELETE FROM {} WHERE cause = 'insert' AND NOT {}",
            self.notes,
            self.gone(&self.notes)
        )];
        body.extend(self.note_all("insert", "1"));
        body
    }

    fn before_update(&self) -> Vec<String> {
        let other = format!("NOT ({})", self.same_place("t", "OLD"));
        self.note_all("update", &other)
    }

    /// Notes the rows that agree with NEW on any unique column set.
    fn note_all(&self, cause: &str, other: &str) -> Vec<String> {
        let nulls: Vec<String> = self
            .table
            .defaults
            .iter()
            .map(|name| format!("{} IS NULL", member("NEW", name)))
            .collect();
        let mut notes = Vec::new();
        for set in &self.table.unique {
            notes.push(self.note(cause, set.iter(), other));
            let is_computed = |column: &&UniqueColumn| column.given == Given::Computed;
            if !nulls.is_empty() && set.iter().any(|column| is_computed(&column)) {
                // From a default nobody knows yet: whatever it comes to.
                let known = set.iter().filter(|column| !is_computed(column));
                let other = format!("{other} AND ({})", nulls.join(" OR "));
                notes.push(self.note(cause, known, &other));
            }
        }
        notes
    }

    fn after_insert(&self) -> Vec<String> {
        vec![
            self.report_replaced(&format!("n.key <> {}", self.key("NEW"))),
            self.report_new("insert", &self.noted_image()),
            format!(
                "DELETE FROM {} WHERE key = {} OR {}",
                self.notes,
                self.key("NEW"),
                self.gone(&self.notes)
            ),
        ]
    }

    /// The key is as before.
    fn after_update(&self) -> Vec<String> {
        vec![
            format!(
                "UPDATE {} SET old = {}, {} WHERE {}",
                self.notes,
                self.row("NEW"),
                self.note_moves(),
                self.own_note()
            ),
            self.report_replaced("1"),
            self.report_new("update", &self.row("OLD")),
            format!(
                "DELETE FROM {} WHERE {}",
                self.notes,
                self.gone(&self.notes)
            ),
        ]
    }

    /// The key is another: the old record goes, and a record comes to be,
    /// perhaps in the place of one.
    fn after_move(&self) -> Vec<String> {
        let new_key = self.key("NEW");
        vec![
            format!("DELETE FROM {} WHERE {}", self.notes, self.own_note()),
            self.report_replaced(&format!("n.key <> {new_key}")),
            self.report_old(),
            self.report_new("insert", &self.noted_image()),
            format!(
                "DELETE FROM {} WHERE key = {new_key} OR {}",
                self.notes,
                self.gone(&self.notes)
            ),
        ]
    }

    fn after_delete(&self) -> Vec<String> {
        vec![
            self.report_old(),
            format!("DELETE FROM {} WHERE {}", self.notes, self.own_note()),
        ]
    }

    /// Only an update that sets a unique column can run into another row.
    fn before_update_when(&self) -> String {
        if self.table.any_column_may_conflict {
            return format!("BEFORE UPDATE ON {}", self.t);
        }
        let mut names: Vec<String> = self
            .table
            .unique
            .iter()
            .flatten()
            .map(|c| c.name.clone())
            .collect();
        names.sort_unstable();
        names.dedup();
        format!(
            "BEFORE UPDATE OF {} ON {} WHEN {}",
            names_of(&names),
            self.t,
            self.differs(&names)
        )
    }

    /// Whether OLD and NEW differ in one of these columns, to the byte.
    fn differs(&self, columns: &[String]) -> String {
        columns
            .iter()
            .map(|name| {
                let (old, new) = (member("OLD", name), member("NEW", name));
                format!("{old} COLLATE BINARY IS NOT {new} OR typeof({old}) <> typeof({new})")
            })
            .collect::<Vec<_>>()
            .join(" OR ")
    }

    /// Notes the rows that agree with NEW on these columns, if `other` holds.
    fn note<'c>(
        &self,
        cause: &str,
        set: impl Iterator<Item = &'c UniqueColumn>,
        other: &str,
    ) -> String {
        let places: Vec<String> = (0..self.table.locator.len())
            .map(|n| format!("at{n}"))
            .collect();
        let located: Vec<String> = self.table.locator.iter().map(|c| member("t", c)).collect();
        let agrees = set.map(|c| {
            format!(
                "{} = {} COLLATE {}",
                member("t", &c.name),
                c.new_sql(),
                quote(&c.collation)
            )
        });
        let conditions: Vec<String> = agrees.chain([other.to_owned()]).collect();
        format!(
            "INSERT INTO {}(cause, key, old, {}) SELECT '{cause}', {key}, {row}, {} FROM {} AS t \
             WHERE {} AND NOT EXISTS (SELECT 1 FROM {} AS n WHERE n.key = {key})",
            self.notes,
            places.join(", "),
            located.join(", "),
            self.t,
            conditions.join(" AND "),
            self.notes,
            key = self.key("t"),
            row = self.row("t"),
        )
    }

    /// A delete event for each noted row that is gone, if `which` holds.
    fn report_replaced(&self, which: &str) -> String {
        format!(
            "INSERT INTO pitser_outbox(kind, shape, old) SELECT 'delete', {}, n.old FROM {} AS n \
             WHERE {which} AND {} ORDER BY n.rowid",
            self.shape,
            self.notes,
            self.gone("n")
        )
    }

    fn report_old(&self) -> String {
        format!(
            "INSERT INTO pitser_outbox(kind, shape, old) VALUES('delete', {}, {})",
            self.shape,
            self.row("OLD")
        )
    }

    /// An event with the row as it is stored now: read from the table, so that
    /// the newest event always shows what a later scan will find.
    fn report_new(&self, kind: &str, old: &str) -> String {
        format!(
            "INSERT INTO pitser_outbox(kind, shape, old, new) SELECT '{kind}', {}, {old}, {} FROM {} AS t WHERE {}",
            self.shape,
            self.row("t"),
            self.t,
            self.same_place("t", "NEW")
        )
    }

    /// The image of the row that NEW's key named before, if it was replaced.
    fn noted_image(&self) -> String {
        format!(
            "(SELECT n.old FROM {} AS n WHERE n.key = {})",
            self.notes,
            self.key("NEW")
        )
    }

    /// Whether no row stands where `notes` says, under the key that it says.
    fn gone(&self, notes: &str) -> String {
        let at: Vec<String> = self
            .table
            .locator
            .iter()
            .enumerate()
            .map(|(n, column)| format!("{} IS {notes}.at{n}", member("t", column)))
            .collect();
        let mut here = at.join(" AND ");
        if !self.table.located_by_integer_key {
            here.push_str(&format!(" AND {} = {notes}.key", self.key("t")));
        }
        format!("NOT EXISTS (SELECT 1 FROM {} AS t WHERE {here})", self.t)
    }

    fn same_place(&self, left: &str, right: &str) -> String {
        self.table
            .locator
            .iter()
            .map(|column| format!("{} IS {}", member(left, column), member(right, column)))
            .collect::<Vec<_>>()
            .join(" AND ")
    }

    /// The note about the row that OLD was.
    fn own_note(&self) -> String {
        let at: Vec<String> = self
            .table
            .locator
            .iter()
            .enumerate()
            .map(|(n, column)| format!("at{n} IS {}", member("OLD", column)))
            .collect();
        format!("key = {} AND {}", self.key("OLD"), at.join(" AND "))
    }

    fn note_moves(&self) -> String {
        self.table
            .locator
            .iter()
            .enumerate()
            .map(|(n, column)| format!("at{n} = {}", member("NEW", column)))
            .collect::<Vec<_>>()
            .join(", ")
    }

    fn row(&self, alias: &str) -> String {
        self.table.row_sql(alias)
    }

    fn key(&self, alias: &str) -> String {
        self.table.key_sql(alias)
    }
}

/// Version of everything that this module installs.
const SCHEMA: u32 = 1;

/// How the names of objects begin that each guarded table has.
const PER_TABLE: [&str; 7] = [
    "pitser_notes_",
    "pitser_before_insert_",
    "pitser_insert_",
    "pitser_before_update_",
    "pitser_update_",
    "pitser_move_",
    "pitser_delete_",
];

/// Never dropped by an installation: they hold what is not sealed yet.
const DATA_TABLES: [&str; 3] = ["pitser_meta", "pitser_shape", "pitser_outbox"];
