//! What the catalogue says about the tables, and about what we installed.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    TRIGGER, UNREADABLE, UNSAID_PRINTED, ask, body, flag, letter, literal, number, string,
};
use crate::postgres::error::quote;
use crate::postgres::slot::text;
use crate::postgres::version::Version;
use crate::postgres::wire::Field;
use crate::postgres::{Connection, Name, PgError, spelled};

/// A table of the database that could be guarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its schema, as the catalogue spells it.
    pub schema: String,
    /// Its name, as the catalogue spells it.
    pub table: String,
    /// `schema.table`, spelled as in [`crate::Change::table`].
    pub name: String,
    /// Whether it is the root of partitions.
    pub partitioned: bool,
    /// Whether its changes are not logged, so that nobody can follow them.
    pub unlogged: bool,
    /// The columns of its replica identity, or under `REPLICA IDENTITY FULL`
    /// of its primary key, in the table's order. Empty if there are none:
    /// then its rows can be followed only if [`full`](Self::full) is set.
    pub key: Vec<String>,
    /// Its columns, without generated ones, in order.
    pub columns: Vec<String>,
    /// Whether it has `REPLICA IDENTITY FULL`.
    pub full: bool,
    /// Whether some column's values can be stored out of line: without `full`,
    /// an update that leaves such a value alone cannot be read.
    pub toastable: bool,
    /// About how many rows it has, as of the last `ANALYZE`; 0 if unknown.
    pub rows_estimate: u64,
}

impl Found {
    /// As SQL takes it.
    pub(super) fn sql(&self) -> String {
        sql(&self.schema, &self.table)
    }
}

/// A table with its object number.
pub(super) struct Listed {
    pub(super) oid: u32,
    pub(super) found: Found,
}

/// Every table that could be guarded, by name.
pub(super) fn listed(connection: &mut Connection) -> Result<Vec<Listed>, PgError> {
    let rows = ask(
        connection,
        "WITH RECURSIVE part(root, oid) AS ( \
           SELECT c.oid, c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
           WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't' \
             AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pitser') \
           UNION ALL \
           SELECT p.root, i.inhrelid FROM part p JOIN pg_inherits i ON i.inhparent = p.oid \
             JOIN pg_class c ON c.oid = i.inhrelid AND c.relispartition), \
         size(root, tuples) AS ( \
           SELECT p.root, sum(greatest(c.reltuples, 0)) FROM part p \
             JOIN pg_class c ON c.oid = p.oid AND c.relkind <> 'p' GROUP BY 1) \
         SELECT c.oid, n.nspname, c.relname, c.relkind, c.relpersistence, c.relreplident, \
           coalesce(s.tuples, 0)::bigint, a.attname, a.attstorage <> 'p', \
           a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) \
         FROM (SELECT DISTINCT root FROM part) r JOIN pg_class c ON c.oid = r.root \
         JOIN pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN size s ON s.root = c.oid \
         LEFT JOIN pg_attribute a ON a.attrelid = c.oid \
           AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' \
         LEFT JOIN pg_index i ON i.indrelid = c.oid AND CASE c.relreplident \
           WHEN 'd' THEN i.indisprimary AND i.indimmediate \
           WHEN 'i' THEN i.indisreplident \
           WHEN 'f' THEN i.indisprimary AND i.indimmediate ELSE false END \
         ORDER BY n.nspname, c.relname, a.attnum",
    )?;
    let mut listed: Vec<Listed> = rows
        .chunk_by(|a, b| a.first() == b.first())
        .map(table)
        .collect::<Result<_, _>>()?;
    listed.sort_by(|a, b| a.found.name.cmp(&b.found.name));
    Ok(listed)
}

/// Names of the tables that could be guarded, and are not in the publication.
pub(super) fn unguarded(
    connection: &mut Connection,
    publication: &Name,
) -> Result<Vec<String>, PgError> {
    let rows = ask(
        connection,
        &format!(
            "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't' \
               AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pitser') \
               AND NOT EXISTS (SELECT FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid \
                 WHERE p.pubname = '{publication}' AND r.prrelid = c.oid) \
             ORDER BY 1, 2"
        ),
    )?;
    rows.iter()
        .map(|row| Ok(spelled(&string(row, 0)?, &string(row, 1)?)))
        .collect()
}

/// A table from the rows of its columns; one row without a column if it has none.
fn table(rows: &[Vec<Field>]) -> Result<Listed, PgError> {
    let first = rows.first().ok_or(UNREADABLE)?;
    let (schema, table) = (string(first, 1)?, string(first, 2)?);
    let named = |row: &&Vec<Field>| row.get(7).is_some_and(Option::is_some);
    let columns: Vec<&Vec<Field>> = rows.iter().filter(named).collect();
    let key = columns.iter().filter(|row| flag(row, 9));
    Ok(Listed {
        oid: number(first, 0)?,
        found: Found {
            name: spelled(&schema, &table),
            schema,
            table,
            partitioned: letter(first, 3)? == 'p',
            unlogged: letter(first, 4)? == 'u',
            full: letter(first, 5)? == 'f',
            rows_estimate: number(first, 6)?,
            key: key.map(|row| string(row, 7)).collect::<Result<_, _>>()?,
            toastable: columns.iter().any(|row| flag(row, 8)),
            columns: columns
                .iter()
                .map(|row| string(row, 7))
                .collect::<Result<_, _>>()?,
        },
    })
}

/// The server, our role on it, and what is installed that is no table's.
pub(super) struct Server {
    pub(super) version: Version,
    pub(super) role: String,
    pub(super) database: String,
    pub(super) superuser: bool,
    pub(super) encoding: String,
    /// Whether the role may make schemas and publications here.
    pub(super) may_create: bool,
    /// The number of schema `pitser`.
    pub(super) schema: Option<u32>,
    /// Whether that schema holds something that we did not make.
    pub(super) strangers: bool,
    /// Whether `pitser.installed` is there.
    pub(super) remembers: bool,
    /// Whether the publication is written down in it.
    pub(super) recorded: bool,
    /// Whether it says that nobody is to be attributed.
    pub(super) unattributed: bool,
    /// The number and owner of `pitser.attribute()`.
    pub(super) attribute: Option<u32>,
    pub(super) attribute_owner: Option<String>,
    /// Whether that is the function as we make it.
    pub(super) attribute_sound: bool,
    pub(super) publication: Option<Kept>,
}

/// The publication as it is.
pub(super) struct Kept {
    pub(super) all_tables: bool,
    pub(super) options_sound: bool,
    /// Whether it publishes whole schemas.
    pub(super) schemas: bool,
}

impl Server {
    /// Whose rights `pitser.attribute()` has, or will have.
    pub(super) fn definer(&self) -> &str {
        self.attribute_owner.as_ref().unwrap_or(&self.role)
    }
}

/// Asks for all of that.
///
/// Whoever owns the schema or the function can undo or abuse what we do: they
/// must be ours, or between superusers a superuser's.
pub(super) fn server(connection: &mut Connection, publication: &Name) -> Result<Server, PgError> {
    let rows = ask(
        connection,
        &format!(
            "SELECT {}, r.rolname, current_database(), r.rolsuper, \
           getdatabaseencoding(), has_database_privilege(current_database(), 'CREATE'), n.oid, \
           EXISTS (SELECT FROM pg_class WHERE relnamespace = n.oid \
               AND relname NOT IN ('installed', 'installed_pkey')) \
             OR EXISTS (SELECT FROM pg_proc WHERE pronamespace = n.oid AND oid IS DISTINCT FROM f.oid) \
             OR EXISTS (SELECT FROM pg_type WHERE typnamespace = n.oid AND typrelid = 0 AND typelem = 0), \
           t.oid, f.oid, fo.rolname, \
           f.prosrc, f.prosecdef AND f.proconfig = '{{\"search_path=pg_catalog, pg_temp\"}}' \
             AND f.prolang = (SELECT oid FROM pg_language WHERE lanname = 'plpgsql') \
             AND NOT EXISTS (SELECT FROM aclexplode(coalesce(f.proacl, acldefault('f', f.proowner))) \
               WHERE grantee = 0), \
           no.rolname, no.oid = r.oid OR (r.rolsuper AND no.rolsuper), \
           tow.rolname, tow.oid = r.oid OR (r.rolsuper AND tow.rolsuper), \
           fo.oid = r.oid OR (r.rolsuper AND fo.rolsuper) \
         FROM pg_roles r LEFT JOIN pg_namespace n ON n.nspname = 'pitser' \
         LEFT JOIN pg_class t ON t.relnamespace = n.oid AND t.relname = 'installed' \
         LEFT JOIN pg_proc f ON f.pronamespace = n.oid AND f.proname = 'attribute' AND f.pronargs = 0 \
         LEFT JOIN pg_roles no ON no.oid = n.nspowner \
         LEFT JOIN pg_roles tow ON tow.oid = t.relowner \
         LEFT JOIN pg_roles fo ON fo.oid = f.proowner \
         WHERE r.rolname = current_user",
            Version::COLUMN
        ),
    )?;
    let row = rows.first().ok_or(UNREADABLE)?;
    let whose = [
        ("schema pitser", 13),
        ("table pitser.installed", 15),
        ("function pitser.attribute()", 10),
    ];
    for ((object, owner), ours) in whose.into_iter().zip([14, 16, 17]) {
        if let Some(owner) = maybe(row, owner)
            && !flag(row, ours)
        {
            return Err(PgError::Foreign {
                object: object.to_owned(),
                owner,
            });
        }
    }
    let encoding = string(row, 4)?;
    let mut server = Server {
        version: Version::read(&string(row, 0)?)?,
        role: string(row, 1)?,
        database: string(row, 2)?,
        superuser: flag(row, 3),
        may_create: flag(row, 5),
        schema: maybe_number(row, 6)?,
        strangers: flag(row, 7),
        remembers: maybe(row, 8).is_some(),
        recorded: false,
        unattributed: false,
        attribute: maybe_number(row, 9)?,
        attribute_owner: maybe(row, 10),
        attribute_sound: maybe(row, 11).is_some_and(|source| source == body(&encoding))
            && flag(row, 12),
        publication: None,
        encoding,
    };
    if server.remembers {
        let recorded = ask(
            connection,
            &format!(
                "SELECT kind FROM pitser.installed \
                 WHERE kind IN ('publication', 'attribution') AND object = '{publication}'"
            ),
        )?;
        let is_there = |kind| {
            recorded
                .iter()
                .any(|row| maybe(row, 0).as_deref() == Some(kind))
        };
        server.recorded = is_there("publication");
        server.unattributed = is_there("attribution");
    }
    server.publication = kept(connection, server.version, publication)?;
    Ok(server)
}

fn kept(
    connection: &mut Connection,
    version: Version,
    publication: &Name,
) -> Result<Option<Kept>, PgError> {
    let schemas = match version.has_column_lists() {
        true => "EXISTS (SELECT FROM pg_publication_namespace WHERE pnpubid = p.oid)",
        false => "false",
    };
    let generated = match version.sends_generated_columns() {
        true => "AND p.pubgencols = 'n'",
        false => "",
    };
    let rows = ask(
        connection,
        &format!(
            "SELECT p.puballtables, p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate \
               AND p.pubviaroot {generated}, {schemas} FROM pg_publication p WHERE p.pubname = '{publication}'"
        ),
    )?;
    Ok(rows.first().map(|row| Kept {
        all_tables: flag(row, 0),
        options_sound: flag(row, 1),
        schemas: flag(row, 2),
    }))
}

/// What a publication says of its tables, by their numbers.
pub(super) type Publication = BTreeMap<u32, Published>;

/// How one table is published.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Published {
    /// Whether some rows are left out.
    pub(super) filtered: bool,
    /// The columns that are published; empty for all.
    pub(super) columns: BTreeSet<String>,
}

/// The tables of the publication as it is.
pub(super) fn published(
    connection: &mut Connection,
    server: &Server,
    publication: &Name,
) -> Result<Publication, PgError> {
    let (filtered, columns) = match server.version.has_column_lists() {
        true => ("r.prqual IS NOT NULL", "a.attnum = ANY (r.prattrs::int2[])"),
        false => ("false", "false"),
    };
    let rows = ask(
        connection,
        &format!(
            "SELECT r.prrelid, {filtered}, a.attname FROM pg_publication p \
             JOIN pg_publication_rel r ON r.prpubid = p.oid \
             LEFT JOIN pg_attribute a ON a.attrelid = r.prrelid AND {columns} \
             WHERE p.pubname = '{publication}'"
        ),
    )?;
    let mut tables = Publication::new();
    for row in &rows {
        let table = tables.entry(number(row, 0)?).or_default();
        table.filtered = flag(row, 1);
        table.columns.extend(maybe(row, 2));
    }
    Ok(tables)
}

/// Which other publications of ours are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Others {
    All,
    /// Those whose tables have our trigger.
    Attributed,
}

/// The numbers of the tables in other publications of ours.
pub(super) fn other_publications(
    connection: &mut Connection,
    server: &Server,
    publication: &Name,
    which: Others,
) -> Result<Vec<u32>, PgError> {
    if !server.remembers {
        return Ok(Vec::new());
    }
    let attributed = match which {
        Others::All => "",
        Others::Attributed => {
            "AND NOT EXISTS (SELECT FROM pitser.installed o \
             WHERE o.kind = 'attribution' AND o.object = i.object)"
        }
    };
    let rows = ask(
        connection,
        &format!(
            "SELECT DISTINCT r.prrelid FROM pitser.installed i \
             JOIN pg_publication p ON p.pubname = i.object \
             JOIN pg_publication_rel r ON r.prpubid = p.oid \
             WHERE i.kind = 'publication' AND i.object <> '{publication}' {attributed}"
        ),
    )?;
    rows.iter().map(|row| number(row, 0)).collect()
}

/// A table that statements on guarded rows may name: a guarded table, one of
/// its partitions, or a table that it inherits from.
pub(super) struct Relation {
    pub(super) oid: u32,
    /// The guarded table that it belongs to; `None` for one inherited from.
    pub(super) root: Option<u32>,
    schema: String,
    table: String,
    pub(super) kind: char,
    pub(super) persistence: char,
    /// `relreplident`: `d`, `i`, `f` or `n`.
    pub(super) identity: char,
    /// The index that identifies its rows, if one was chosen.
    pub(super) identity_index: Option<String>,
    /// Whether an index identifies its rows.
    pub(super) keyed: bool,
    /// The names of the columns of that index, or of the primary key under `REPLICA IDENTITY
    /// FULL`, in a stable order.
    pub(super) key: Option<String>,
    /// Whether it has generated columns.
    pub(super) generates: bool,
    /// Whether that index, or the primary key, has a generated column: such a
    /// column is not replicated.
    pub(super) generated_key: bool,
    pub(super) owner: String,
    /// Whether our role may alter it.
    pub(super) owned: bool,
    /// Whether our role is a member of its owner, perhaps without its rights.
    pub(super) member: bool,
    /// Whether its owner is a superuser.
    pub(super) of_superuser: bool,
    /// What our role may read of it.
    pub(super) reading: Reading,
    pub(super) trigger: TriggerState,
}

/// What a role may read of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    /// Whether it may look into the schema.
    usage: bool,
    /// Whether it may read the table.
    select: bool,
    /// Whether a policy decides which rows it sees.
    policed: bool,
}

impl Reading {
    /// For `c` of `pg_class`.
    pub(super) const COLUMNS: &str = "has_schema_privilege(c.relnamespace, 'USAGE'), \
        has_table_privilege(c.oid, 'SELECT'), row_security_active(c.oid)";

    /// From those columns, the first at `place`.
    pub(super) fn read(row: &[Field], place: usize) -> Self {
        Self {
            usage: flag(row, place),
            select: flag(row, place + 1),
            policed: flag(row, place + 2),
        }
    }

    /// The first statement that is missing before `role` sees every row.
    pub(super) fn grant(self, role: &str, schema: &str, table: &str) -> Option<String> {
        let (role, table) = (quote(role), sql(schema, table));
        if !self.usage {
            Some(format!("GRANT USAGE ON SCHEMA {} TO {role}", quote(schema)))
        } else if !self.select {
            Some(format!("GRANT SELECT ON {table} TO {role}"))
        } else {
            self.policed.then(|| format!("ALTER ROLE {role} BYPASSRLS"))
        }
    }
}

/// Our trigger on a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TriggerState {
    Sound,
    /// As we make it, but it does not fire always.
    Silenced,
    /// There is none, or one that is not as we make it.
    Other,
}

impl Relation {
    pub(super) fn name(&self) -> String {
        spelled(&self.schema, &self.table)
    }

    /// As SQL takes it.
    pub(super) fn sql(&self) -> String {
        sql(&self.schema, &self.table)
    }

    /// The statement that lets `role` read all of its rows, if it may not.
    pub(super) fn reading_grant(&self, role: &str) -> Option<String> {
        self.reading.grant(role, &self.schema, &self.table)
    }

    /// Whether rows of its own are captured.
    pub(super) fn holds_rows(&self) -> bool {
        self.root.is_some() && matches!(self.kind, 'r' | 'p') && self.persistence == 'p'
    }

    /// Whether our trigger belongs on it.
    pub(super) fn can_trigger(&self) -> bool {
        matches!(self.kind, 'r' | 'p')
    }

    /// From one row of the catalogue.
    fn read(row: &[Field]) -> Result<Self, PgError> {
        Ok(Self {
            oid: number(row, 0)?,
            root: maybe_number(row, 1)?,
            schema: string(row, 2)?,
            table: string(row, 3)?,
            kind: letter(row, 4)?,
            persistence: letter(row, 5)?,
            identity: letter(row, 6)?,
            identity_index: maybe(row, 7),
            keyed: flag(row, 8),
            generated_key: flag(row, 9),
            owner: string(row, 10)?,
            owned: flag(row, 11),
            member: flag(row, 14),
            of_superuser: flag(row, 15),
            reading: Reading::read(row, 16),
            generates: flag(row, 19),
            key: maybe(row, 20),
            trigger: match (flag(row, 12), maybe(row, 13).as_deref()) {
                (true, Some("A")) => TriggerState::Sound,
                (true, _) => TriggerState::Silenced,
                (false, _) => TriggerState::Other,
            },
        })
    }
}

/// The columns of a [`Relation`], for `c` of `pg_class` and a root.
fn relation_columns(server: &Server) -> String {
    let attribute = server.attribute.unwrap_or_default();
    format!(
        "n.nspname, c.relname, c.relkind, c.relpersistence, c.relreplident, \
         (SELECT x.relname FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid \
           WHERE i.indrelid = c.oid AND i.indisreplident), \
         EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND CASE c.relreplident \
           WHEN 'd' THEN i.indisprimary AND i.indimmediate \
           WHEN 'i' THEN i.indisreplident ELSE false END), \
         EXISTS (SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid \
             AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) \
           WHERE i.indrelid = c.oid AND a.attgenerated <> '' AND CASE c.relreplident \
             WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END), \
         pg_get_userbyid(c.relowner), pg_has_role(c.relowner, 'USAGE'), \
         t.tgfoid = {attribute} AND t.tgtype = 62 AND t.tgnargs = 0 AND t.tgattr = '' \
           AND t.tgconstraint = 0 AND pg_get_expr(t.tgqual, t.tgrelid) = {}, \
         t.tgenabled, pg_has_role(c.relowner, 'MEMBER'), \
         (SELECT r.rolsuper FROM pg_roles r WHERE r.oid = c.relowner), {}, \
         EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 \
           AND NOT a.attisdropped AND a.attgenerated <> ''), \
         (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attname) FROM pg_index i \
           JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) \
           WHERE i.indrelid = c.oid AND CASE c.relreplident \
             WHEN 'i' THEN i.indisreplident ELSE i.indisprimary AND i.indimmediate END)",
        literal(UNSAID_PRINTED),
        Reading::COLUMNS
    )
}

fn relation_joins() -> String {
    format!(
        "JOIN pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN pg_trigger t ON t.tgrelid = c.oid AND t.tgname = '{TRIGGER}'"
    )
}

/// These tables with their partitions and with what they inherit from, each
/// once, by name.
pub(super) fn relations(
    connection: &mut Connection,
    server: &Server,
    tables: &[u32],
) -> Result<Vec<Relation>, PgError> {
    if tables.is_empty() {
        return Ok(Vec::new());
    }
    let list: Vec<String> = tables.iter().map(u32::to_string).collect();
    let (columns, joins) = (relation_columns(server), relation_joins());
    let rows = ask(
        connection,
        &format!(
            "WITH RECURSIVE given(oid) AS (SELECT unnest('{{{}}}'::oid[])), \
             down(root, oid) AS (SELECT oid, oid FROM given UNION \
               SELECT d.root, i.inhrelid FROM down d JOIN pg_inherits i ON i.inhparent = d.oid \
                 JOIN pg_class c ON c.oid = i.inhrelid AND c.relispartition), \
             up(oid) AS (SELECT oid FROM given UNION \
               SELECT i.inhparent FROM up u JOIN pg_inherits i ON i.inhrelid = u.oid), \
             every(root, oid) AS (SELECT root, oid FROM down UNION ALL \
               SELECT NULL, oid FROM up WHERE oid NOT IN (SELECT oid FROM down)) \
             SELECT c.oid, e.root, {columns} FROM every e JOIN pg_class c ON c.oid = e.oid {joins} \
             ORDER BY n.nspname, c.relname, c.oid",
            list.join(",")
        ),
    )?;
    rows.iter().map(|row| Relation::read(row)).collect()
}

/// Every table that has our trigger.
pub(super) fn triggered(
    connection: &mut Connection,
    server: &Server,
) -> Result<Vec<Relation>, PgError> {
    let Some(attribute) = server.attribute else {
        return Ok(Vec::new());
    };
    let (columns, joins) = (relation_columns(server), relation_joins());
    let rows = ask(
        connection,
        &format!(
            "SELECT c.oid, NULL, {columns} FROM pg_class c {joins} WHERE t.tgfoid = {attribute} \
             ORDER BY n.nspname, c.relname, c.oid"
        ),
    )?;
    rows.iter().map(|row| Relation::read(row)).collect()
}

/// A table whose replica identity we altered.
pub(super) struct Altered {
    /// As it is written down.
    pub(super) object: String,
    /// What it was: `d`, `n`, or `i` and the index.
    pub(super) before: String,
    /// The table, if it is still there.
    pub(super) relation: Option<Relation>,
    /// Whether that index is still there and could be used.
    pub(super) index_there: bool,
}

/// Every table whose replica identity we altered.
pub(super) fn altered(
    connection: &mut Connection,
    server: &Server,
) -> Result<Vec<Altered>, PgError> {
    if !server.remembers {
        return Ok(Vec::new());
    }
    let (columns, joins) = (relation_columns(server), relation_joins());
    let rows = ask(
        connection,
        &format!(
            "SELECT r.oid, NULL, r.*, i.object, i.before, EXISTS (SELECT FROM pg_index x \
               JOIN pg_class xc ON xc.oid = x.indexrelid \
               WHERE x.indrelid = r.oid AND xc.relname = substr(i.before, 3) \
                 AND x.indisunique AND x.indisvalid AND x.indimmediate) \
             FROM pitser.installed i LEFT JOIN (SELECT {columns}, c.oid, \
               format('\"%s\".\"%s\"', replace(n.nspname, '\"', '\"\"'), \
                 replace(c.relname, '\"', '\"\"')) AS object \
               FROM pg_class c {joins} WHERE c.relkind IN ('r', 'p')) r ON r.object = i.object \
             WHERE i.kind = 'replica identity' ORDER BY i.object"
        ),
    )?;
    // After the relation's columns come two of the subquery's own.
    const OWN: usize = 23;
    rows.iter()
        .map(|row| {
            Ok(Altered {
                object: string(row, OWN)?,
                before: string(row, OWN + 1)?,
                index_there: flag(row, OWN + 2),
                relation: match maybe(row, 0) {
                    Some(_) => Some(Relation::read(row)?),
                    None => None,
                },
            })
        })
        .collect()
}

/// The functions that we took from PUBLIC and that are still taken, as SQL
/// names them.
pub(super) fn revoked(
    connection: &mut Connection,
    server: &Server,
) -> Result<Vec<String>, PgError> {
    if !server.remembers {
        return Ok(Vec::new());
    }
    let rows = ask(
        connection,
        "SELECT object FROM pitser.installed WHERE kind = 'revoke' ORDER BY object",
    )?;
    let ours: BTreeSet<String> = rows
        .iter()
        .map(|row| string(row, 0))
        .collect::<Result<_, _>>()?;
    let taken = emitters(connection, server)?.into_iter();
    Ok(taken
        .filter(|emitter| !emitter.public && ours.contains(&emitter.signature))
        .map(|emitter| emitter.signature)
        .collect())
}

/// A function that writes logical messages.
pub(super) struct Emitter {
    /// As SQL names it.
    pub(super) signature: String,
    /// Whether everybody may call it.
    pub(super) public: bool,
    /// Whether our trigger's function may call it.
    pub(super) ours: bool,
    /// Other roles that may, without being superusers.
    pub(super) others: Vec<String>,
}

/// The functions that write logical messages: two, with other arguments from
/// version 17 on.
pub(super) fn emitters(
    connection: &mut Connection,
    server: &Server,
) -> Result<Vec<Emitter>, PgError> {
    let definer = literal(server.definer());
    let rows = ask(
        connection,
        &format!(
            "SELECT p.oid, 'pg_catalog.pg_logical_emit_message(' || oidvectortypes(p.proargtypes) || ')', \
               bool_or(a.grantee = 0), has_function_privilege({definer}, p.oid, 'EXECUTE'), r.rolname \
             FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a \
             LEFT JOIN pg_roles r ON r.oid = a.grantee AND NOT r.rolsuper AND r.rolname <> {definer} \
             WHERE p.proname = 'pg_logical_emit_message' AND p.pronamespace = 'pg_catalog'::regnamespace \
               AND a.privilege_type = 'EXECUTE' \
             GROUP BY p.oid, r.rolname ORDER BY 2, r.rolname"
        ),
    )?;
    rows.chunk_by(|a, b| a.first() == b.first())
        .map(|rows| {
            let first = rows.first().ok_or(UNREADABLE)?;
            Ok(Emitter {
                signature: string(first, 1)?,
                public: rows.iter().any(|row| flag(row, 2)),
                ours: flag(first, 3),
                others: rows.iter().filter_map(|row| maybe(row, 4)).collect(),
            })
        })
        .collect()
}

/// What else is in the database that capture does not see.
pub(super) struct OpenEnds {
    pub(super) large_objects: bool,
    /// Subscriptions that apply changes here.
    pub(super) subscriptions: Vec<String>,
}

pub(super) fn open_ends(connection: &mut Connection) -> Result<OpenEnds, PgError> {
    let rows = ask(
        connection,
        "SELECT EXISTS (SELECT FROM pg_largeobject_metadata), s.subname \
         FROM (VALUES (1)) one LEFT JOIN pg_subscription s \
           ON s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()) \
         ORDER BY s.subname",
    )?;
    Ok(OpenEnds {
        large_objects: rows.first().is_some_and(|row| flag(row, 0)),
        subscriptions: rows.iter().filter_map(|row| maybe(row, 1)).collect(),
    })
}

fn sql(schema: &str, table: &str) -> String {
    format!("{}.{}", quote(schema), quote(table))
}

fn maybe(row: &[Field], place: usize) -> Option<String> {
    row.get(place).and_then(text).map(str::to_owned)
}

fn maybe_number(row: &[Field], place: usize) -> Result<Option<u32>, PgError> {
    match row.get(place).and_then(text) {
        Some(text) => text.parse().map(Some).map_err(|_| UNREADABLE),
        None => Ok(None),
    }
}
