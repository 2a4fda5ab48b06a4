//! What SQLite says about a guarded table, and why it may be refused.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension};

use super::{SqliteError, TableSpec, quote, value};

/// A table that can be guarded.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// As the schema spells it.
    pub(super) name: String,
    /// Stored columns, in table order; virtual generated columns are left out.
    pub(super) columns: Arc<[String]>,
    /// Indexes into `columns`, in key order.
    pub(super) key: Vec<usize>,
    /// Columns that find a row again at once: an unshadowed name of the rowid,
    /// or the primary key of a table without one.
    pub(super) locator: Vec<String>,
    /// Column sets of which no two rows may agree: candidates for `REPLACE`.
    pub(super) unique: Vec<Vec<UniqueColumn>>,
    /// A unique index depends on more than its columns: it has a condition, an
    /// expression, or a generated column.
    pub(super) any_column_may_conflict: bool,
    /// The locator is the key, and the key is the rowid.
    pub(super) located_by_integer_key: bool,
    /// Columns of which a null may be replaced by their default.
    pub(super) defaults: Vec<String>,
    /// Columns that SQLite computes and no statement may set.
    generated: Vec<String>,
    /// Key columns that hold integers, in key order.
    integer_key: Vec<bool>,
}

/// A column of a unique index, with the index's own collation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UniqueColumn {
    pub(super) name: String,
    pub(super) collation: String,
    pub(super) given: Given,
}

/// What a column gets that a statement says nothing else about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Given {
    /// What the statement says.
    Said,
    /// For a null this expression, if the conflict is resolved by `REPLACE`. Triggers
    /// that run before see the null.
    Default(String),
    /// Computed from other columns: triggers that run before do not see it if one of
    /// those gets its default.
    Computed,
}

impl Table {
    /// Looks the table up, without regard to letter case, as SQLite does.
    pub(super) fn inspect(db: &Connection, spec: &TableSpec) -> Result<Self, SqliteError> {
        let name = resolve(db, &spec.name)?;
        let columns = stored_columns(db, &name)?;
        let key = primary_key(&name, &columns)?;
        let locator = locator(db, &name, &columns, &key)?;
        let mut any_column_may_conflict = false;
        let mut unique = Vec::new();
        for (index, partial) in unique_indexes(db, &name)? {
            let indexed = index_columns(db, &index)?;
            any_column_may_conflict |= partial || indexed.contains(&None);
            let mut named: Vec<UniqueColumn> = indexed.into_iter().flatten().collect();
            if named.is_empty() {
                return Err(SqliteError::UniqueExpression { table: name, index });
            }
            for one in &mut named {
                let column = columns.iter().find(|column| column.name == one.name);
                // One that is not stored is computed too.
                one.given = column.map_or(Given::Computed, Column::given);
            }
            any_column_may_conflict |= named.iter().any(|one| one.given == Given::Computed);
            unique.push(named);
        }
        if !is_without_rowid(db, &name)? {
            // The rowid is unique too, under whichever name reaches it; where
            // the primary key has an index of its own, this is not the key.
            unique.push(
                locator
                    .iter()
                    .map(|name| UniqueColumn::binary(name))
                    .collect(),
            );
        }
        Ok(Self {
            located_by_integer_key: is_rowid_alias(db, &name)?,
            defaults: columns
                .iter()
                .filter(|column| matches!(column.given(), Given::Default(_)))
                .map(|column| column.name.clone())
                .collect(),
            integer_key: key.iter().map(|&at| columns[at].is_integer()).collect(),
            generated: columns
                .iter()
                .filter(|c| c.is_generated)
                .map(|c| c.name.clone())
                .collect(),
            columns: columns.iter().map(|column| column.name.clone()).collect(),
            name,
            key,
            locator,
            unique,
            any_column_may_conflict,
        })
    }

    /// Names of the key columns, in key order.
    pub(super) fn key_names(&self) -> Vec<String> {
        self.key
            .iter()
            .map(|&at| self.columns[at].clone())
            .collect()
    }

    /// SQL for the transit form of the whole row, columns taken from `alias`.
    pub(super) fn row_sql(&self, alias: &str) -> String {
        value::encode_sql(
            &self
                .columns
                .iter()
                .map(|name| member(alias, name))
                .collect::<Vec<_>>(),
        )
    }

    /// SQL for the transit form of the key, columns taken from `alias`.
    pub(super) fn key_sql(&self, alias: &str) -> String {
        value::encode_sql(
            &self
                .key_names()
                .iter()
                .map(|name| member(alias, name))
                .collect::<Vec<_>>(),
        )
    }

    /// Whether a statement may set the column.
    pub(super) fn is_writable(&self, column: &str) -> bool {
        self.columns.iter().any(|name| name == column)
            && !self.generated.iter().any(|name| name == column)
    }

    /// The cell that a person means by `text` in the key column `at`.
    pub(super) fn key_cell(&self, at: usize, text: &str) -> crate::event::Cell {
        match text.parse() {
            Ok(number) if self.integer_key[at] => value::integer(number),
            _ => value::text(text),
        }
    }
}

impl UniqueColumn {
    fn binary(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            collation: "BINARY".to_owned(),
            given: Given::Said,
        }
    }

    /// What a row that `NEW` becomes has here.
    pub(super) fn new_sql(&self) -> String {
        let new = member("NEW", &self.name);
        match &self.given {
            Given::Default(default) => format!("coalesce({new}, {default})"),
            Given::Said | Given::Computed => new,
        }
    }
}

/// `alias."column"`.
pub(super) fn member(alias: &str, column: &str) -> String {
    format!("{alias}.{}", quote(column))
}

struct Column {
    name: String,
    declared: String,
    /// Place in the primary key, from 1; 0 outside it.
    in_key: u16,
    is_generated: bool,
    is_not_null: bool,
    /// As the schema spells it, without parentheses around it.
    default: Option<String>,
}

impl Column {
    fn given(&self) -> Given {
        match &self.default {
            _ if self.is_generated => Given::Computed,
            Some(default) if self.is_not_null => Given::Default(default_sql(default)),
            _ => Given::Said,
        }
    }

    /// SQLite's rule for INTEGER affinity (datatype3.html §3.1).
    fn is_integer(&self) -> bool {
        self.declared.to_ascii_uppercase().contains("INT")
    }
}

/// A default as an expression that means the same beside columns. SQLite takes a single
/// name after `DEFAULT` for a string, however it is quoted.
fn default_sql(default: &str) -> String {
    let default = default.trim();
    let inside = |open: char, close: char| {
        let inside = default.strip_prefix(open)?.strip_suffix(close)?;
        Some(inside.replace(&format!("{close}{close}"), &close.to_string()))
    };
    let is_bare = |name: &str| {
        let is_part = |c: char| c == '_' || c == '$' || c.is_alphanumeric() || !c.is_ascii();
        !name.starts_with(|c: char| c.is_ascii_digit()) && name.chars().all(is_part)
    };
    let quoted = inside('"', '"')
        .or_else(|| inside('`', '`'))
        .or_else(|| inside('[', ']'));
    let name = match quoted {
        Some(name) => name,
        // Of its own line: it may end with a comment.
        None if !is_bare(default) => return format!("({default}\n)"),
        None => match &*default.to_ascii_uppercase() {
            "TRUE" => return "1".to_owned(),
            "FALSE" => return "0".to_owned(),
            keyword if KEYWORDS.contains(&keyword) => return keyword.to_owned(),
            _ => default.to_owned(),
        },
    };
    format!("'{}'", name.replace('\'', "''"))
}

/// Words after `DEFAULT` that are no names, and mean the same anywhere.
const KEYWORDS: [&str; 4] = ["NULL", "CURRENT_DATE", "CURRENT_TIME", "CURRENT_TIMESTAMP"];

fn resolve(db: &Connection, wanted: &str) -> Result<String, SqliteError> {
    let table = || wanted.to_owned();
    let lower = wanted.to_ascii_lowercase();
    if lower.starts_with("sqlite_") || lower.starts_with("pitser_") {
        return Err(SqliteError::Reserved { table: table() });
    }
    let found: Option<(String, String, String)> = db
        .query_row(
            "SELECT name, type, coalesce(sql, '') FROM sqlite_schema \
             WHERE lower(name) = lower(?1) AND type IN ('table', 'view')",
            [wanted],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .optional()?;
    match found {
        None => Err(SqliteError::NoSuchTable { table: table() }),
        Some((_, kind, _)) if kind == "view" => Err(SqliteError::NotATable {
            table: table(),
            what: "a view",
        }),
        Some((_, _, sql)) if is_virtual(&sql) => Err(SqliteError::NotATable {
            table: table(),
            what: "a virtual table",
        }),
        Some((name, _, _)) => Ok(name),
    }
}

fn is_virtual(sql: &str) -> bool {
    sql.split_ascii_whitespace()
        .nth(1)
        .is_some_and(|word| word.eq_ignore_ascii_case("VIRTUAL"))
}

fn stored_columns(db: &Connection, table: &str) -> Result<Vec<Column>, SqliteError> {
    const VIRTUAL_GENERATED: i64 = 2;
    let mut query = db.prepare(
        "SELECT name, type, pk, hidden <> 0, \"notnull\", dflt_value FROM pragma_table_xinfo(?1) \
         WHERE hidden <> ?2 ORDER BY cid",
    )?;
    let columns = query.query_map(rusqlite::params![table, VIRTUAL_GENERATED], |row| {
        Ok(Column {
            name: row.get(0)?,
            declared: row.get(1)?,
            in_key: row.get(2)?,
            is_generated: row.get(3)?,
            is_not_null: row.get(4)?,
            default: row.get(5)?,
        })
    })?;
    Ok(columns.collect::<Result<_, _>>()?)
}

fn primary_key(table: &str, columns: &[Column]) -> Result<Vec<usize>, SqliteError> {
    let mut key: Vec<usize> = (0..columns.len())
        .filter(|&at| columns[at].in_key > 0)
        .collect();
    key.sort_by_key(|&at| columns[at].in_key);
    if key.is_empty() {
        return Err(SqliteError::NoPrimaryKey {
            table: table.to_owned(),
        });
    }
    Ok(key)
}

fn locator(
    db: &Connection,
    table: &str,
    columns: &[Column],
    key: &[usize],
) -> Result<Vec<String>, SqliteError> {
    let shadowed = |name: &str| {
        columns
            .iter()
            .any(|column| column.name.eq_ignore_ascii_case(name))
    };
    let key_columns = || key.iter().map(|&at| columns[at].name.clone()).collect();
    if is_without_rowid(db, table)? || is_rowid_alias(db, table)? {
        return Ok(key_columns());
    }
    let rowid = ["rowid", "oid", "_rowid_"]
        .into_iter()
        .find(|name| !shadowed(name));
    Ok(rowid.map_or_else(key_columns, |name| vec![name.to_owned()]))
}

fn is_without_rowid(db: &Connection, table: &str) -> Result<bool, SqliteError> {
    let mut query = db.prepare("SELECT wr FROM pragma_table_list(?1) WHERE schema = 'main'")?;
    Ok(query
        .query_row([table], |row| row.get(0))
        .optional()?
        .unwrap_or(false))
}

/// An `INTEGER PRIMARY KEY`: the one kind of key that has no index of its own.
fn is_rowid_alias(db: &Connection, table: &str) -> Result<bool, SqliteError> {
    let mut query =
        db.prepare("SELECT count(*) = 0 FROM pragma_index_list(?1) WHERE origin = 'pk'")?;
    Ok(query.query_row([table], |row| row.get(0))?)
}

/// Unique indexes, and whether they have a condition. A row that conflicts
/// under a condition agrees on the columns without it too: a superset of the
/// conflicts does no harm, since only rows that are gone are reported.
fn unique_indexes(db: &Connection, table: &str) -> Result<Vec<(String, bool)>, SqliteError> {
    let mut list = db
        .prepare("SELECT name, partial FROM pragma_index_list(?1) WHERE \"unique\" ORDER BY seq")?;
    let indexes = list.query_map([table], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(indexes.collect::<Result<_, _>>()?)
}

/// The columns of an index; `None` stands for an expression.
fn index_columns(db: &Connection, index: &str) -> Result<Vec<Option<UniqueColumn>>, SqliteError> {
    let mut query =
        db.prepare("SELECT name, coll FROM pragma_index_xinfo(?1) WHERE \"key\" ORDER BY seqno")?;
    let columns = query.query_map([index], |row| {
        let (name, collation): (Option<String>, String) = (row.get(0)?, row.get(1)?);
        Ok(name.map(|name| UniqueColumn {
            collation,
            ..UniqueColumn::binary(&name)
        }))
    })?;
    Ok(columns.collect::<Result<_, _>>()?)
}
