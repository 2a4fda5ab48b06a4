//! What `pitser guard init` does to a database, and how it is undone
//! (docs/spec/62-postgres-capture.md §2).
//!
//! [`plan`] compares the catalogue with what is wanted and gives the statements
//! in between, so that nothing is run twice and everything can be shown first.
//! [`install`] runs them in one transaction. The slot is made afterwards
//! ([`slot::create`](super::slot::create)).

mod catalogue;
mod run;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::encoding::Encoding;
use super::error::quote;
use super::slot::text;
use super::version::Version;
use super::wire::Field;
use super::{Connection, Name, PgError};
use catalogue::{
    Altered, Emitter, Listed, Others, Publication, Published, Reading, Relation, Server,
    TriggerState, emitters,
};
use run::{Draft, Mode};

pub use catalogue::Found;

/// Everything that can be guarded: ordinary tables and partitioned ones (not
/// their partitions), by name. Temporary tables, the system's and our own are
/// left out.
///
/// # Errors
/// Those of a query.
pub fn tables(sql: &mut Connection) -> Result<Vec<Found>, PgError> {
    let listed = catalogue::listed(sql)?;
    Ok(listed.into_iter().map(|listed| listed.found).collect())
}

/// Names of the tables that could be guarded and are not in the publication, in
/// a stable order.
///
/// # Errors
/// Those of a query.
pub fn unguarded(sql: &mut Connection, publication: &Name) -> Result<Vec<String>, PgError> {
    catalogue::unguarded(sql, publication)
}

/// What is to be installed.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The publication that the slot will read.
    pub publication: &'a Name,
    /// The slot that will read it.
    pub slot: &'a Name,
    /// The tables to guard.
    pub tables: &'a [Wanted],
    /// Set `REPLICA IDENTITY FULL` on every wanted table that has it not yet,
    /// look-up tables excepted.
    pub full: bool,
    /// Put a trigger on every table that says who is acting. Without it the
    /// server's work on a transaction is about a quarter less, and nobody is
    /// named.
    pub attribution: bool,
}

/// A table that is to be guarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The table, as [`tables`] found it.
    pub found: Found,
    /// Publish only these columns (a look-up table; PostgreSQL 15 and newer).
    /// They must hold the key. `None`: all.
    pub columns: Option<Vec<String>>,
    /// Set `REPLICA IDENTITY FULL` on it: a table without a key takes its
    /// whole row as the key.
    pub full: bool,
}

/// What is to be done, and what cannot be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In order; none ends in a semicolon. Empty once everything is installed.
    /// They are meant for one transaction that begins with [`PREAMBLE`].
    pub statements: Vec<String>,
    /// For the administrator: what could not be closed, and how it can be.
    pub notes: Vec<String>,
    /// What capture does not see; to be sealed into the trail.
    pub uncovered: Vec<String>,
}

/// What the transaction that runs a [`Plan`] begins with: operators are the
/// system's, whatever the role's `search_path`, and nobody waits for long.
pub const PREAMBLE: [&str; 2] = [
    "SET LOCAL search_path = pg_catalog, pg_temp",
    "SET LOCAL lock_timeout = '5s'",
];

/// The statements that are missing between the database as it is and as it is
/// wanted.
///
/// # Errors
/// [`PgError::NoKeys`] with all such tables; [`PgError::Permission`] with the
/// statements that grant what is missing; [`PgError::Unfit`];
/// [`PgError::Foreign`].
pub fn plan(sql: &mut Connection, request: &Request<'_>) -> Result<Plan, PgError> {
    Ok(draft(sql, request)?.plan)
}

/// Runs the [`plan`] in one transaction, and says what it was.
///
/// It waits for one table at a time and holds no other lock meanwhile, so that
/// no transaction of the application can be made the victim of a deadlock.
///
/// # Errors
/// As [`plan`]; [`PgError::Locked`] with the table that somebody works on.
/// After an error nothing has changed.
pub fn install(sql: &mut Connection, request: &Request<'_>) -> Result<Plan, PgError> {
    run::in_one_transaction(sql, |sql| draft(sql, request))
}

/// The statements that take everything of ours out again and put back what
/// was altered, as far as it is there. The first drops the slot, if there is
/// one; it takes effect at once, the others belong in one transaction.
///
/// While another publication of ours is in the database, what that one needs
/// stays.
///
/// # Errors
/// [`PgError::Foreign`], and those of a query.
pub fn plan_removal(
    sql: &mut Connection,
    slot: &Name,
    publication: &Name,
) -> Result<Vec<String>, PgError> {
    let mut statements = drop_slot(sql, slot)?;
    statements.extend(removal(sql, publication)?.plan.statements);
    Ok(statements)
}

/// Runs [`plan_removal`], and says what it was.
///
/// # Errors
/// As [`plan_removal`]; [`PgError::SlotBusy`] while a guardian reads the slot,
/// before anything was changed; [`PgError::Locked`], when only the slot is gone.
pub fn uninstall(
    sql: &mut Connection,
    slot: &Name,
    publication: &Name,
) -> Result<Vec<String>, PgError> {
    // Refuses before the slot is gone, not after.
    removal(sql, publication)?;
    let mut statements = drop_slot(sql, slot)?;
    let doing = super::error::Doing::Streaming {
        slot: slot.as_str(),
        publication: publication.as_str(),
    };
    for statement in &statements {
        sql.query_doing(statement, doing)?;
    }
    let done = run::in_one_transaction(sql, |sql| removal(sql, publication))?;
    statements.extend(done.statements);
    Ok(statements)
}

/// Whether this server can be guarded by this role, before anything is done.
///
/// # Errors
/// [`PgError::Version`], [`PgError::Standby`], [`PgError::WalLevel`],
/// [`PgError::Permission`], and [`PgError::NoFreeSlot`] unless `slot` is there.
pub fn check(sql: &mut Connection, slot: &Name) -> Result<(), PgError> {
    Version::ask(sql)?;
    let rows = ask(
        sql,
        &format!(
            "SELECT pg_is_in_recovery(), current_setting('wal_level'), \
               r.rolsuper OR r.rolreplication, current_user, \
               (SELECT count(*) < current_setting('max_replication_slots')::int \
                  OR count(*) FILTER (WHERE slot_name = '{slot}') > 0 FROM pg_replication_slots) \
             FROM pg_roles r WHERE r.rolname = current_user"
        ),
    )?;
    let row = rows.first().ok_or(UNREADABLE)?;
    if flag(row, 0) {
        return Err(PgError::Standby);
    }
    let level = string(row, 1)?;
    if level != "logical" {
        return Err(PgError::WalLevel { found: level });
    }
    if !flag(row, 2) {
        let role = string(row, 3)?;
        return Err(PgError::Permission {
            message: format!("role {role:?} may not replicate"),
            grant: format!("ALTER ROLE {} REPLICATION", quote(&role)),
        });
    }
    match flag(row, 4) {
        true => Ok(()),
        false => Err(PgError::NoFreeSlot),
    }
}

/// What to say of a server that is newer than those that capture was tested with.
///
/// # Errors
/// [`PgError::Version`] for one that is too old, otherwise those of a query.
pub fn untested(sql: &mut Connection) -> Result<Option<String>, PgError> {
    Ok(Version::ask(sql)?.untested())
}

/// How long, or for how much log, the server waits for a guardian that is away, unless
/// it does for ever.
fn impatience(sql: &mut Connection) -> Result<Vec<String>, PgError> {
    // The first is there from version 18 on.
    let rows = sql.query(
        "SELECT nullif(current_setting('idle_replication_slot_timeout', true), '0'), \
           nullif(current_setting('max_slot_wal_keep_size'), '-1')",
    )?;
    let row = rows.first().ok_or(UNREADABLE)?;
    let told = |place, what: fn(&str) -> String| {
        let limit = row.get(place).and_then(text)?;
        Some(format!(
            "{}: what is committed until it is back is then missing (CAP-01)",
            what(limit)
        ))
    };
    let idle = told(0, |limit| {
        format!(
            "the server gives up a guardian that is away for {limit} (idle_replication_slot_timeout)"
        )
    });
    let much = told(1, |limit| {
        format!(
            "the server gives up a guardian that is away while {limit} of log are written (max_slot_wal_keep_size)"
        )
    });
    Ok(idle.into_iter().chain(much).collect())
}

/// Which database this is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The number that `initdb` gave to the cluster.
    pub system: u64,
    /// Its timeline: one higher after each promotion or point-in-time recovery.
    pub timeline: u32,
    /// The database's object number.
    pub database: u32,
    /// The database's name.
    pub database_name: String,
    /// The server's version, as in `150006`.
    pub version: u32,
}

/// Asks which database this is.
///
/// # Errors
/// [`PgError::Permission`] where `pg_control_system` was revoked and this is no
/// connection for replication.
pub fn identity(sql: &mut Connection) -> Result<Identity, PgError> {
    let system = system_identifier(sql)?;
    let rows = ask(
        sql,
        "SELECT substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8), oid, datname, \
           current_setting('server_version_num') \
         FROM pg_database WHERE datname = current_database()",
    )?;
    let row = rows.first().ok_or(UNREADABLE)?;
    Ok(Identity {
        system,
        timeline: u32::from_str_radix(&string(row, 0)?, 16).map_err(|_| UNREADABLE)?,
        database: number(row, 1)?,
        database_name: string(row, 2)?,
        version: number(row, 3)?,
    })
}

/// The statement that lets our role read all rows of a table; `None` if it may.
pub(super) fn missing_right(
    sql: &mut Connection,
    schema: &str,
    table: &str,
) -> Result<Option<String>, PgError> {
    let rows = ask(
        sql,
        &format!(
            "SELECT current_user, {} FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = {} AND c.relname = {}",
            Reading::COLUMNS,
            literal(schema),
            literal(table)
        ),
    )?;
    let row = rows.first().ok_or(UNREADABLE)?;
    let role = string(row, 0)?;
    Ok(Reading::read(row, 1).grant(&role, schema, table))
}

pub(super) fn system_identifier(sql: &mut Connection) -> Result<u64, PgError> {
    match ask(sql, "SELECT system_identifier FROM pg_control_system()") {
        Ok(rows) => {
            let signed: i64 = number(rows.first().ok_or(UNREADABLE)?, 0)?;
            Ok(signed.cast_unsigned())
        }
        Err(refused @ PgError::Permission { .. }) => match sql.query("IDENTIFY_SYSTEM") {
            Ok(rows) => number(rows.first().ok_or(UNREADABLE)?, 0),
            Err(_) => Err(refused),
        },
        Err(other) => Err(other),
    }
}

pub(super) const TRIGGER: &str = "pitser_attribution";
pub(super) const UNREADABLE: PgError = PgError::Protocol("a catalogue that cannot be read");

/// When a statement on a guarded table has to say who is acting: when its
/// transaction has not said so yet. A savepoint's rollback takes the setting
/// and the message back together.
const UNSAID: &str = "coalesce(pg_catalog.current_setting('pitser.said', true), '') IS DISTINCT FROM \
     coalesce(pg_catalog.pg_current_xact_id_if_assigned()::pg_catalog.text, 'none')";

/// `UNSAID` as the server prints it.
const UNSAID_PRINTED: &str = "(COALESCE(current_setting('pitser.said'::text, true), ''::text) IS DISTINCT FROM \
     COALESCE((pg_current_xact_id_if_assigned())::text, 'none'::text))";

/// The body of `pitser.attribute()`. Reports the session's role, not the one
/// that `SET ROLE` or this function's owner lends. The two texts that the
/// application chooses are cut: 2,000 characters are at most 12,000 bytes of
/// JSON, far below the longest message that is read.
fn body(encoding: &str) -> String {
    let said = "json_build_object(\
       'role', session_user, \
       'app', nullif(current_setting('application_name'), ''), \
       'client', host(inet_client_addr()), \
       'person', nullif(left(current_setting('pitser.actor', true), 1000), ''), \
       'purpose', nullif(left(current_setting('pitser.purpose', true), 1000), ''))::text";
    // A message's bytes are handed out as they are: they have to be UTF-8.
    let said = match encoding {
        "UTF8" | "SQL_ASCII" => said.to_owned(),
        _ => format!("convert_to({said}, 'UTF8')"),
    };
    format!(
        "BEGIN PERFORM pg_logical_emit_message(true, 'pitser', {said}); \
         PERFORM set_config('pitser.said', pg_current_xact_id()::text, true); RETURN NULL; END"
    )
}

fn draft(sql: &mut Connection, request: &Request<'_>) -> Result<Draft, PgError> {
    let server = catalogue::server(sql, request.publication)?;
    let listed = catalogue::listed(sql)?;
    let wanted = resolve(request, &server, &listed)?;
    let published: Vec<u32> = wanted.keys().copied().collect();
    let relations = catalogue::relations(sql, &server, &published)?;
    refuse(&server, &wanted, &relations)?;
    let emitters = emitters(sql, &server)?;
    let mut draft = Draft::default();
    draft.plan.notes.extend(server.version.untested());
    draft.plan.notes.extend(impatience(sql)?);
    base(&server, request, &mut draft);
    let left = Left {
        relations: &relations,
        attribution: request.attribution,
        forget: true,
    };
    retire(sql, &server, request.publication, &left, &mut draft)?;
    identities(&wanted, &relations, &mut draft);
    if request.attribution {
        for relation in relations.iter().filter(|relation| relation.can_trigger()) {
            trigger(relation, &mut draft);
        }
        refuse_silence(&server, &emitters)?;
    }
    revoke(&server, &emitters, &mut draft);
    publish(sql, &server, request, &wanted, &relations, &mut draft)?;
    let open = catalogue::open_ends(sql)?;
    draft.plan.uncovered = uncovered(request, &server, &listed, &relations, &emitters, open);
    Ok(draft)
}

/// A wanted table as the catalogue has it now.
struct Guarded<'a> {
    found: &'a Found,
    columns: Option<&'a [String]>,
    /// Whether it is to have `REPLICA IDENTITY FULL`.
    full: bool,
}

/// The wanted tables by object number; without those that cannot be published.
fn resolve<'a>(
    request: &Request<'a>,
    server: &Server,
    listed: &'a [Listed],
) -> Result<BTreeMap<u32, Guarded<'a>>, PgError> {
    let mut wanted = BTreeMap::new();
    for table in request.tables {
        let is_it = |listed: &&Listed| {
            listed.found.schema == table.found.schema && listed.found.table == table.found.table
        };
        let Some(listed) = listed.iter().find(is_it) else {
            return Err(unfit(format!("there is no table {}", table.found.name)));
        };
        let columns = table.columns.as_deref();
        if let Some(columns) = columns {
            fits(server, &listed.found, columns, table.full)?;
        }
        let full = table.full || listed.found.full || (request.full && columns.is_none());
        let guarded = Guarded {
            found: &listed.found,
            columns,
            full,
        };
        if !listed.found.unlogged {
            wanted.insert(listed.oid, guarded);
        }
    }
    match wanted.is_empty() {
        true => Err(unfit("there is no table to guard".to_owned())),
        false => Ok(wanted),
    }
}

/// Refuses a column list that PostgreSQL would take, and then refuse the
/// application's updates because of it.
fn fits(server: &Server, found: &Found, columns: &[String], full: bool) -> Result<(), PgError> {
    let name = &found.name;
    if !server.version.has_column_lists() {
        return Err(unfit(format!(
            "table {name}: publishing some of its columns, for a rule that looks something up there, needs \
             PostgreSQL 15: name it under `tables`, and not under `exclude`, to guard all of it"
        )));
    }
    if let Some(unknown) = columns
        .iter()
        .find(|column| !found.columns.contains(column))
    {
        return Err(unfit(format!(
            "table {name} has no column {unknown:?} to publish"
        )));
    }
    if full || found.full {
        return Err(unfit(format!(
            "table {name}: with REPLICA IDENTITY FULL all columns must be published"
        )));
    }
    match found.key.iter().find(|column| !columns.contains(column)) {
        Some(key) => Err(unfit(format!(
            "table {name}: column {key:?} of its key must be published too"
        ))),
        None => Ok(()),
    }
}

fn unfit(what: String) -> PgError {
    PgError::Unfit { what }
}

/// Everything that would stop the statements half-way, or the application after them.
fn refuse(
    server: &Server,
    wanted: &BTreeMap<u32, Guarded<'_>>,
    relations: &[Relation],
) -> Result<(), PgError> {
    let keyless = |relation: &&Relation| {
        let full = relation
            .root
            .is_none_or(|root| wanted.get(&root).is_some_and(|wanted| wanted.full));
        relation.holds_rows() && !relation.keyed && !full && relation.identity != 'f'
    };
    let keyless: BTreeSet<String> = relations
        .iter()
        .filter(keyless)
        .map(Relation::name)
        .collect();
    if !keyless.is_empty() {
        let tables = keyless.into_iter().collect();
        return Err(PgError::NoKeys { tables });
    }
    for relation in relations.iter().filter(|relation| relation.holds_rows()) {
        let name = relation.name();
        if relation.generated_key {
            return Err(unfit(format!(
                "table {name}: its key has a generated column, and generated columns are not replicated"
            )));
        }
        let wanted = relation.root.and_then(|root| wanted.get(&root));
        let full = relation.identity == 'f' || wanted.is_some_and(|wanted| wanted.full);
        if full && relation.generates && server.version.sends_generated_columns() {
            return Err(unfit(format!(
                "table {name}: it has generated columns, which are not published, and with REPLICA IDENTITY FULL \
                 PostgreSQL {} would refuse the application's updates: give it a primary key as its replica \
                 identity, or exclude it",
                server.version
            )));
        }
        let root = relations.iter().find(|it| Some(it.oid) == relation.root);
        let is_leaf = relation.kind == 'r' && !full;
        if let Some(root) = root.filter(|root| is_leaf && root.key != relation.key) {
            let columns = |relation: &Relation| relation.key.clone().unwrap_or_default();
            return Err(unfit(format!(
                "partition {name}: its replica identity ({}) is not that of {} ({}), by which its changes are told: \
                 ALTER TABLE {} REPLICA IDENTITY USING INDEX, or DEFAULT, so that both have the same columns",
                columns(relation),
                root.name(),
                columns(root),
                relation.sql(),
            )));
        }
        if relation.identity == 'f' && wanted.is_some_and(|wanted| wanted.columns.is_some()) {
            return Err(unfit(format!(
                "table {name}: with REPLICA IDENTITY FULL all columns must be published"
            )));
        }
    }
    let not_owned: Vec<&Relation> = relations
        .iter()
        .filter(|found| found.can_trigger() && !found.owned)
        .collect();
    if !not_owned.is_empty() {
        return Err(not_ours(server, &not_owned));
    }
    if !server.may_create && (server.schema.is_none() || server.publication.is_none()) {
        return Err(PgError::Permission {
            message: format!("role {:?} may create nothing in this database", server.role),
            grant: format!(
                "GRANT CREATE ON DATABASE {} TO {}",
                quote(&server.database),
                quote(&server.role)
            ),
        });
    }
    for relation in relations.iter().filter(|relation| relation.holds_rows()) {
        if let Some(grant) = relation.reading_grant(&server.role) {
            return Err(PgError::Permission {
                message: format!(
                    "role {:?} may not read all rows of {}",
                    server.role,
                    relation.name()
                ),
                grant,
            });
        }
    }
    Ok(())
}

/// The refusal that says how the role comes to own these tables.
fn not_ours(server: &Server, tables: &[&Relation]) -> PgError {
    let role = &server.role;
    let names = |tables: &[&Relation]| {
        let names: Vec<String> = tables.iter().map(|found| found.name()).collect();
        names.join(", ")
    };
    let of_superuser: Vec<&Relation> = tables.iter().copied().filter(|t| t.of_superuser).collect();
    if let Some(first) = of_superuser.first() {
        // To be a member of a superuser is to be one.
        return unfit(format!(
            "role {role:?} does not own {}, and their owner {:?} is a superuser, whose rights no \
             guardian needs: run `pitser guard init` with {:?} in the URL, and for `pitser guard run` as \
             {role:?} let it read what is guarded, as in GRANT SELECT ON {} TO {}",
            names(&of_superuser),
            first.owner,
            first.owner,
            first.sql(),
            quote(role)
        ));
    }
    let grants: BTreeSet<String> = tables
        .iter()
        .map(|found| {
            let grant = format!("GRANT {} TO {}", quote(&found.owner), quote(role));
            match (server.version.grants_inherit(), found.member) {
                (true, _) => format!("{grant} WITH INHERIT TRUE"),
                (false, true) => format!("ALTER ROLE {} INHERIT", quote(role)),
                (false, false) => grant,
            }
        })
        .collect();
    PgError::Permission {
        message: format!("role {role:?} does not own {}", names(tables)),
        grant: grants.into_iter().collect::<Vec<_>>().join("; "),
    }
}

/// Our schema, what it remembers, and the function that says who is acting.
fn base(server: &Server, request: &Request<'_>, draft: &mut Draft) {
    if server.schema.is_none() {
        draft.run("CREATE SCHEMA pitser");
        draft.run("REVOKE ALL ON SCHEMA pitser FROM PUBLIC");
    }
    if !server.remembers {
        draft.run(
            "CREATE TABLE pitser.installed(kind pg_catalog.text, object pg_catalog.text, \
             before pg_catalog.text NOT NULL, PRIMARY KEY (kind, object))",
        );
        draft.run("REVOKE ALL ON TABLE pitser.installed FROM PUBLIC");
    }
    if request.attribution == server.unattributed {
        let publication = literal(request.publication.as_str());
        draft.run(match request.attribution {
            true => format!(
                "DELETE FROM pitser.installed WHERE kind = 'attribution' AND object = {publication}"
            ),
            false => format!(
                "INSERT INTO pitser.installed(kind, object, before) VALUES ('attribution', {publication}, 'off')"
            ),
        });
    }
    if request.attribution && (server.attribute.is_none() || !server.attribute_sound) {
        draft.run(format!(
            "CREATE OR REPLACE FUNCTION pitser.attribute() RETURNS trigger LANGUAGE plpgsql \
             SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $pitser${}$pitser$",
            body(&server.encoding)
        ));
        draft.run("REVOKE ALL ON FUNCTION pitser.attribute() FROM PUBLIC");
    }
}

/// What a publication goes on to need.
struct Left<'a> {
    relations: &'a [Relation],
    /// Whether they have our trigger.
    attribution: bool,
    /// Whether what was put back is struck from our memory.
    forget: bool,
}

/// Takes our triggers from tables that are not to have them any more, and puts
/// the replica identities of those that are no longer wanted back; what another
/// publication of ours needs, stays.
fn retire(
    sql: &mut Connection,
    server: &Server,
    publication: &Name,
    left: &Left<'_>,
    draft: &mut Draft,
) -> Result<(), PgError> {
    let other = catalogue::other_publications(sql, server, publication, Others::All)?;
    let others = catalogue::relations(sql, server, &other)?;
    let attributed = catalogue::other_publications(sql, server, publication, Others::Attributed)?;
    let attributed = catalogue::relations(sql, server, &attributed)?;
    let numbers = |relations: &[Relation], more: &[Relation]| -> BTreeSet<u32> {
        relations.iter().chain(more).map(|it| it.oid).collect()
    };
    let needed = numbers(left.relations, &others);
    let speaking = match left.attribution {
        true => numbers(left.relations, &attributed),
        false => numbers(&[], &attributed),
    };
    for relation in catalogue::triggered(sql, server)? {
        if !speaking.contains(&relation.oid) {
            draft.lock(&relation, Mode::Everybody);
            draft.run(format!("DROP TRIGGER {TRIGGER} ON {}", relation.sql()));
        }
    }
    if server.attribute.is_some() && !left.attribution && attributed.is_empty() {
        draft.run("DROP FUNCTION pitser.attribute()");
    }
    for altered in catalogue::altered(sql, server)? {
        if altered
            .relation
            .as_ref()
            .is_none_or(|relation| !needed.contains(&relation.oid))
        {
            put_back(&altered, draft);
            if left.forget {
                draft.run(format!(
                    "DELETE FROM pitser.installed WHERE kind = 'replica identity' AND object = {}",
                    literal(&altered.object)
                ));
            }
        }
    }
    Ok(())
}

fn put_back(altered: &Altered, draft: &mut Draft) {
    // Whoever changed it after us knows better.
    if let Some(relation) = altered.relation.as_ref().filter(|now| now.identity == 'f') {
        let before = match altered.before.split_once(' ') {
            Some(("i", index)) if altered.index_there => format!("USING INDEX {}", quote(index)),
            None if altered.before == "n" => "NOTHING".to_owned(),
            _ => "DEFAULT".to_owned(),
        };
        draft.lock(relation, Mode::Everybody);
        draft.run(format!(
            "ALTER TABLE ONLY {} REPLICA IDENTITY {before}",
            relation.sql()
        ));
    }
}

/// `REPLICA IDENTITY FULL`, on partitions too: theirs decides what is logged.
fn identities(wanted: &BTreeMap<u32, Guarded<'_>>, relations: &[Relation], draft: &mut Draft) {
    for relation in relations {
        let wanted = relation.root.and_then(|root| wanted.get(&root));
        let full = wanted.is_some_and(|wanted| wanted.full);
        let alterable = matches!(relation.kind, 'r' | 'p');
        if !full || relation.identity == 'f' || !alterable {
            continue;
        }
        let before = match &relation.identity_index {
            Some(index) if relation.identity == 'i' => format!("i {index}"),
            _ => relation.identity.to_string(),
        };
        draft.run(remember("replica identity", &relation.sql(), &before));
        draft.lock(relation, Mode::Everybody);
        draft.run(format!(
            "ALTER TABLE ONLY {} REPLICA IDENTITY FULL",
            relation.sql()
        ));
    }
}

/// The first word counts: it is what was there before we came.
fn remember(kind: &str, object: &str, before: &str) -> String {
    format!(
        "INSERT INTO pitser.installed(kind, object, before) VALUES ('{kind}', {}, {}) ON CONFLICT DO NOTHING",
        literal(object),
        literal(before)
    )
}

fn trigger(relation: &Relation, draft: &mut Draft) {
    let table = relation.sql();
    if relation.trigger == TriggerState::Other {
        draft.lock(relation, Mode::Writers);
        draft.run(format!(
            "CREATE OR REPLACE TRIGGER {TRIGGER} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table} \
             FOR EACH STATEMENT WHEN ({UNSAID}) EXECUTE FUNCTION pitser.attribute()"
        ));
    }
    if relation.trigger != TriggerState::Sound {
        draft.lock(relation, Mode::Writers);
        draft.run(format!(
            "ALTER TABLE ONLY {table} ENABLE ALWAYS TRIGGER {TRIGGER}"
        ));
    }
}

/// Refuses a trigger whose function could not say anything.
fn refuse_silence(server: &Server, emitters: &[Emitter]) -> Result<(), PgError> {
    let Some(denied) = emitters.iter().find(|emitter| !emitter.ours) else {
        return Ok(());
    };
    let definer = server.definer();
    Err(PgError::Permission {
        message: format!(
            "role {definer:?} may not call {}, and every write to a guarded table would fail",
            denied.signature
        ),
        grant: format!(
            "GRANT EXECUTE ON FUNCTION {} TO {}",
            denied.signature,
            quote(definer)
        ),
    })
}

/// Keeps others from writing messages in our name, as far as we may.
fn revoke(server: &Server, emitters: &[Emitter], draft: &mut Draft) {
    let open: Vec<&Emitter> = emitters.iter().filter(|emitter| emitter.public).collect();
    if open.is_empty() {
        return;
    }
    if server.superuser {
        for emitter in &open {
            let signature = &emitter.signature;
            draft.run(remember("revoke", signature, "PUBLIC"));
            draft.run(format!(
                "REVOKE EXECUTE ON FUNCTION {signature} FROM PUBLIC"
            ));
        }
        draft.plan.notes.push(
            "An application that calls pg_logical_emit_message itself needs GRANT EXECUTE on it \
             for its role from now on"
                .to_owned(),
        );
        return;
    }
    let statements: Vec<String> = open
        .iter()
        .flat_map(|emitter| {
            let signature = &emitter.signature;
            [
                format!(
                    "GRANT EXECUTE ON FUNCTION {signature} TO {}",
                    quote(server.definer())
                ),
                format!("REVOKE EXECUTE ON FUNCTION {signature} FROM PUBLIC"),
            ]
        })
        .collect();
    draft.plan.notes.push(format!(
        "Anybody who can log in may write messages in our name. A superuser closes this, in database \
         {}: {}",
        quote(&server.database),
        statements.join("; ")
    ));
}

fn publish(
    sql: &mut Connection,
    server: &Server,
    request: &Request<'_>,
    wanted: &BTreeMap<u32, Guarded<'_>>,
    relations: &[Relation],
    draft: &mut Draft,
) -> Result<(), PgError> {
    let generated = match server.version.sends_generated_columns() {
        true => ", publish_generated_columns = none",
        false => "",
    };
    let options = format!(
        "publish = 'insert, update, delete, truncate', publish_via_partition_root = true{generated}"
    );
    let name = quote(request.publication.as_str());
    let is_wanted: Publication = wanted
        .iter()
        .map(|(oid, table)| {
            let columns = table.columns.unwrap_or_default();
            let published = Published {
                filtered: false,
                columns: columns.iter().cloned().collect(),
            };
            (*oid, published)
        })
        .collect();
    let list: Vec<String> = wanted
        .values()
        .map(|table| {
            let columns = table.columns.map(|columns| {
                let columns: Vec<String> = columns.iter().map(|column| quote(column)).collect();
                format!(" ({})", columns.join(", "))
            });
            format!("ONLY {}{}", table.found.sql(), columns.unwrap_or_default())
        })
        .collect();
    let list = list.join(", ");
    let mut kept = server.publication.as_ref();
    if kept.is_some_and(|kept| kept.all_tables) {
        draft.run(format!("DROP PUBLICATION {name}"));
        kept = None;
    }
    // Tables whose changes are published otherwise from now on, if any statement is needed.
    let altered: Option<BTreeSet<u32>> = match kept {
        None => {
            draft.run(format!(
                "CREATE PUBLICATION {name} FOR TABLE {list} WITH ({options})"
            ));
            Some(is_wanted.keys().copied().collect())
        }
        Some(kept) => {
            if !kept.options_sound {
                draft.run(format!("ALTER PUBLICATION {name} SET ({options})"));
            }
            let has = catalogue::published(sql, server, request.publication)?;
            let is_set = kept.schemas || has != is_wanted;
            if is_set {
                draft.run(format!("ALTER PUBLICATION {name} SET TABLE {list}"));
            }
            let is_other = |(oid, published): &(&u32, &Published)| {
                !kept.options_sound || has.get(oid) != Some(published)
            };
            let altered = is_wanted.iter().filter(is_other).map(|(oid, _)| *oid);
            (is_set || !kept.options_sound).then(|| altered.collect())
        }
    };
    for relation in relations.iter().filter(|it| it.can_trigger()) {
        match (&altered, relation.root) {
            // A transaction that wrote to one of these before is decoded by the catalogue of
            // then, even if it commits after: nobody would be told its changes.
            (Some(altered), Some(root)) if altered.contains(&root) => {
                draft.lock(relation, Mode::Writers);
            }
            (Some(_), _) if is_wanted.contains_key(&relation.oid) => {
                draft.lock(relation, Mode::Maintenance);
            }
            _ => {}
        }
    }
    if !server.recorded {
        draft.run(remember(
            "publication",
            request.publication.as_str(),
            "none",
        ));
    }
    Ok(())
}

/// What nobody sees, in plain words: sealed, so that nothing more is claimed.
fn uncovered(
    request: &Request<'_>,
    server: &Server,
    listed: &[Listed],
    relations: &[Relation],
    emitters: &[Emitter],
    open: catalogue::OpenEnds,
) -> Vec<String> {
    let mut list = Vec::new();
    for Listed { found, .. } in listed {
        let wanted = request
            .tables
            .iter()
            .find(|table| table.found.schema == found.schema && table.found.table == found.table);
        match wanted {
            None => list.push(format!("table {}", found.name)),
            Some(_) if found.unlogged => list.push(format!("table {}: it is unlogged", found.name)),
            Some(Wanted {
                columns: Some(columns),
                ..
            }) => {
                let left_out = found.columns.iter().filter(|name| !columns.contains(name));
                let left_out: Vec<&str> = left_out.map(String::as_str).collect();
                if !left_out.is_empty() {
                    let names = left_out.join(", ");
                    list.push(format!("table {}: columns {names}", found.name));
                }
            }
            Some(_) => {}
        }
    }
    for relation in relations {
        match (relation.kind, relation.persistence) {
            ('f', _) => list.push(format!("partition {}: a foreign table", relation.name())),
            (_, 'u') => list.push(format!("partition {}: it is unlogged", relation.name())),
            _ => {}
        }
    }
    list.push(match open.large_objects {
        true => "large objects (the database has some)".to_owned(),
        false => "large objects".to_owned(),
    });
    if !server.superuser && emitters.iter().any(|emitter| emitter.public) {
        list.push("logical messages with our prefix by any login".to_owned());
    }
    let others: BTreeSet<&String> = emitters
        .iter()
        .flat_map(|emitter| &emitter.others)
        .collect();
    for role in others {
        list.push(format!("logical messages with our prefix by role {role}"));
    }
    for subscription in open.subscriptions {
        list.push(format!(
            "who makes the changes that subscription {subscription} applies"
        ));
    }
    if !request.attribution {
        list.push("who makes changes: attribution is off".to_owned());
    }
    list.push("reads that no application reports".to_owned());
    list.push("schema changes as they happen: no event trigger is installed".to_owned());
    list
}

fn drop_slot(sql: &mut Connection, slot: &Name) -> Result<Vec<String>, PgError> {
    let known = ask(
        sql,
        &format!(
            "SELECT 1 FROM pg_replication_slots \
             WHERE slot_name = '{slot}' AND database = current_database()"
        ),
    )?;
    let drop = format!("SELECT pg_catalog.pg_drop_replication_slot('{slot}')");
    Ok(known.first().map(|_| drop).into_iter().collect())
}

fn removal(sql: &mut Connection, publication: &Name) -> Result<Draft, PgError> {
    let server = catalogue::server(sql, publication)?;
    let mut draft = Draft::default();
    if server.publication.is_some() {
        draft.run(format!("DROP PUBLICATION {}", quote(publication.as_str())));
    }
    let others = catalogue::other_publications(sql, &server, publication, Others::All)?;
    let shared = !others.is_empty();
    let nothing = Left {
        relations: &[],
        attribution: false,
        forget: shared,
    };
    retire(sql, &server, publication, &nothing, &mut draft)?;
    if shared {
        if server.recorded {
            draft.run(format!(
                "DELETE FROM pitser.installed WHERE kind IN ('publication', 'word', 'attribution') AND object = {}",
                literal(publication.as_str())
            ));
        }
        return Ok(draft);
    }
    for signature in catalogue::revoked(sql, &server)? {
        draft.run(format!("GRANT EXECUTE ON FUNCTION {signature} TO PUBLIC"));
    }
    if server.remembers {
        draft.run("DROP TABLE pitser.installed");
    }
    if server.schema.is_some() && !server.strangers {
        draft.run("DROP SCHEMA pitser");
    }
    Ok(draft)
}

/// Runs a question whose names and operators are the system's.
pub(super) fn ask(sql: &mut Connection, query: &str) -> Result<Vec<Vec<Field>>, PgError> {
    Encoding::names(sql, &format!("{}; {query}", PREAMBLE[0]))
}

pub(super) fn string(row: &[Field], place: usize) -> Result<String, PgError> {
    let found = row.get(place).and_then(text);
    found.map(str::to_owned).ok_or(UNREADABLE)
}

pub(super) fn number<T: std::str::FromStr>(row: &[Field], place: usize) -> Result<T, PgError> {
    string(row, place)?.parse().map_err(|_| UNREADABLE)
}

/// Whether a truth value is true; null is not.
pub(super) fn flag(row: &[Field], place: usize) -> bool {
    row.get(place).and_then(text) == Some("t")
}

fn letter(row: &[Field], place: usize) -> Result<char, PgError> {
    string(row, place)?.chars().next().ok_or(UNREADABLE)
}

/// A text constant, safe whatever `standard_conforming_strings` is.
pub(super) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    match quoted.contains('\\') {
        true => format!("E'{}'", quoted.replace('\\', "\\\\")),
        false => format!("'{quoted}'"),
    }
}
