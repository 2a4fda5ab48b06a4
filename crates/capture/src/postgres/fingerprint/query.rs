//! The one query.

use crate::postgres::Name;
use crate::postgres::install::TRIGGER;
use crate::postgres::version::Version;

/// Rows of `(kind, schema, name, part, facts, stamp)`.
///
/// `made_of` are the types that columns have, and those that these are made of: a domain of
/// its base, an array of its elements, a composite of its attributes, a range of its bounds.
/// The system's own, below 16384, are made of none of those.
///
/// Facts are words, mostly `name=value`; stamps are numbers. What `VACUUM`,
/// `ANALYZE` and `CREATE INDEX` write in place leaves `xmin` alone; what they
/// write there (`reltuples`, `relhasindex`) is not among the facts.
pub(super) fn query(version: Version, permitted: bool, publication: &Name, slot: &Name) -> String {
    let (columns, filter, schemas) = match version.has_column_lists() {
        true => (
            "coalesce(replace(r.prattrs::text, ' ', ','), 'all')",
            "coalesce(left(encode(sha256(convert_to(r.prqual::text, getdatabaseencoding())), 'hex'), 32), 'none')",
            "(SELECT concat(count(*), '.', sum(s.xmin::text::bigint)) FROM pg_publication_namespace s WHERE s.pnpubid = p.oid)",
        ),
        false => ("'all'", "'none'", "'0'"),
    };
    let generated = match version.sends_generated_columns() {
        true => ", ' generated=', p.pubgencols",
        false => "",
    };
    let failover = match version.has_failover_slots() {
        true => ", ' failover=', s.failover",
        false => "",
    };
    let system = match permitted {
        true => {
            "UNION ALL SELECT 'system', NULL, 'identifier', NULL, system_identifier::text, '' FROM pg_control_system()"
        }
        false => "",
    };
    format!(
        "WITH RECURSIVE pub AS ( \
           SELECT p.*, p.xmin AS stamp FROM pg_publication p WHERE p.pubname = '{publication}'), \
         rel(oid, parent, stamp) AS ( \
           SELECT r.prrelid, 0::oid, ''::text FROM pub p JOIN pg_publication_rel r ON r.prpubid = p.oid \
           UNION ALL \
           SELECT i.inhrelid, i.inhparent, i.xmin::text FROM rel JOIN pg_inherits i ON i.inhparent = rel.oid \
             JOIN pg_class c ON c.oid = i.inhrelid AND c.relispartition), \
         guarded AS ( \
           SELECT c.*, c.xmin AS stamp, n.nspname, t.relfilenode AS toast \
           FROM (SELECT DISTINCT oid FROM rel) r JOIN pg_class c ON c.oid = r.oid \
           JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_class t ON t.oid = c.reltoastrelid), \
         made_of(oid) AS ( \
           SELECT a.atttypid FROM guarded g JOIN pg_attribute a ON a.attrelid = g.oid AND a.attnum > 0 AND a.atttypid >= 16384 \
           UNION SELECT part.oid FROM made_of m JOIN pg_type y ON y.oid = m.oid CROSS JOIN LATERAL ( \
             SELECT y.typbasetype UNION ALL SELECT y.typelem \
             UNION ALL SELECT a.atttypid FROM pg_attribute a WHERE y.typrelid <> 0 AND a.attrelid = y.typrelid AND a.attnum > 0 \
             UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE y.oid IN (r.rngtypid, r.rngmultitypid)) part(oid) \
           WHERE part.oid >= 16384), \
         power(oid) AS ( \
           SELECT oid FROM pg_roles WHERE rolsuper \
             OR rolname IN ('pg_execute_server_program', 'pg_write_server_files') \
           UNION SELECT m.member FROM power JOIN pg_auth_members m ON m.roleid = power.oid) \
         SELECT 'publication', NULL, p.pubname, NULL, \
           concat('owner=', p.pubowner, ' all=', p.puballtables, ' insert=', p.pubinsert, ' update=', p.pubupdate, \
             ' delete=', p.pubdelete, ' truncate=', p.pubtruncate, ' root=', p.pubviaroot, ' schemas=', {schemas}{generated}), \
           concat(p.oid, '.', p.stamp) FROM pub p \
         UNION ALL SELECT 'published', n.nspname, c.relname, NULL, \
           concat('table=', c.oid, ' columns=', {columns}, ' filter=', {filter}), concat(r.oid, '.', r.xmin) \
         FROM pub p JOIN pg_publication_rel r ON r.prpubid = p.oid JOIN pg_class c ON c.oid = r.prrelid \
         JOIN pg_namespace n ON n.oid = c.relnamespace \
         UNION ALL SELECT 'partition', g.nspname, g.relname, NULL, concat('table=', g.oid, ' parent=', r.parent), r.stamp \
         FROM rel r JOIN guarded g ON g.oid = r.oid WHERE r.parent <> 0 \
         UNION ALL SELECT 'heir', n.nspname, c.relname, NULL, \
           concat('guarded=', c.oid IN (SELECT oid FROM rel), ' parents=', string_agg(i.inhparent::text, ',' ORDER BY i.inhparent)), \
           sum(i.xmin::text::bigint)::text \
         FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid AND NOT c.relispartition \
         JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE i.inhparent IN (SELECT oid FROM rel) GROUP BY c.oid, n.nspname, c.relname \
         UNION ALL SELECT v.kind, g.nspname, g.relname, NULL, v.facts, v.stamp FROM guarded g \
         CROSS JOIN LATERAL (VALUES \
           ('table', concat('oid=', g.oid, ' kind=', g.relkind, ' persistence=', g.relpersistence, \
               ' identity=', g.relreplident, ' owner=', g.relowner, ' method=', g.relam, ' rules=', g.relhasrules, \
               ' row_security=', g.relrowsecurity, ' forced=', g.relforcerowsecurity), ''), \
           ('storage', '', concat(g.stamp, '.', g.relfilenode, '.', g.toast))) v(kind, facts, stamp) \
         UNION ALL SELECT 'columns', g.nspname, g.relname, NULL, a.facts, a.stamp FROM guarded g \
         CROSS JOIN LATERAL ( \
           SELECT concat(count(*), chr(10), string_agg(concat(a.attnum, ':', a.atttypid, ':', a.atttypmod, ':', \
               a.attcollation, ':', a.attnotnull, ':', a.attgenerated, ':', a.attname, chr(9), \
               format_type(a.atttypid, a.atttypmod)), chr(10) ORDER BY a.attnum)) AS facts, \
             coalesce(left(encode(sha256(convert_to(string_agg(a.xmin::text, '.' ORDER BY a.attnum), \
               'SQL_ASCII')), 'hex'), 16), '') AS stamp \
           FROM pg_attribute a WHERE a.attrelid = g.oid AND a.attnum > 0 AND NOT a.attisdropped) a \
         UNION ALL SELECT 'key', g.nspname, g.relname, NULL, \
           concat('columns=', replace(i.indkey::text, ' ', ','), ' count=', i.indnkeyatts, \
             ' sound=', i.indisvalid AND i.indisready AND i.indisunique AND i.indimmediate, \
             CASE WHEN NOT i.indimmediate THEN ' deferred=t' END), \
           concat(coalesce((SELECT k.oid FROM pg_constraint k WHERE k.conrelid = g.oid AND k.conindid = i.indexrelid \
               AND k.contype IN ('p', 'u')), 0), CASE g.relreplident WHEN 'i' THEN concat('.', i.indexrelid, '.', i.xmin) END) \
         FROM guarded g JOIN pg_index i ON i.indrelid = g.oid \
           AND CASE g.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END \
         UNION ALL SELECT 'trigger', g.nspname, g.relname, t.tgname, \
           concat('ours=', t.tgname = '{TRIGGER}', ' enabled=', t.tgenabled, ' type=', t.tgtype, ' function=', t.tgfoid), \
           concat(t.oid, '.', t.xmin) \
         FROM guarded g JOIN pg_trigger t ON t.tgrelid = g.oid AND NOT t.tgisinternal \
         UNION ALL SELECT 'policy', g.nspname, g.relname, y.polname, concat('command=', y.polcmd), concat(y.oid, '.', y.xmin) \
         FROM guarded g JOIN pg_policy y ON y.polrelid = g.oid \
         UNION ALL SELECT 'rule', g.nspname, g.relname, w.rulename, \
           concat('event=', w.ev_type, ' enabled=', w.ev_enabled), concat(w.oid, '.', w.xmin) \
         FROM guarded g JOIN pg_rewrite w ON w.ev_class = g.oid \
         UNION ALL SELECT 'labels', n.nspname, y.typname, NULL, \
           left(encode(sha256(convert_to(string_agg(e.enumlabel, chr(10) ORDER BY e.enumsortorder, e.oid), \
             getdatabaseencoding())), 'hex'), 32), \
           concat(sum(e.xmin::text::bigint), '.', sum(e.oid::bigint)) \
         FROM pg_type y JOIN pg_namespace n ON n.oid = y.typnamespace JOIN pg_enum e ON e.enumtypid = y.oid \
         WHERE y.oid IN (SELECT oid FROM made_of) GROUP BY n.nspname, y.typname \
         UNION ALL SELECT 'attributes', n.nspname, y.typname, NULL, \
           concat('(', string_agg(concat(a.attname, ' ', format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum), ')'), \
           left(encode(sha256(convert_to(string_agg(concat(a.atttypid, '.', a.xmin), ' ' ORDER BY a.attnum), \
             'SQL_ASCII')), 'hex'), 16) \
         FROM pg_type y JOIN pg_namespace n ON n.oid = y.typnamespace \
         JOIN pg_attribute a ON a.attrelid = y.typrelid AND a.attnum > 0 AND NOT a.attisdropped \
         WHERE y.typrelid <> 0 AND y.oid IN (SELECT oid FROM made_of) GROUP BY n.nspname, y.typname \
         UNION ALL SELECT 'function', n.nspname, concat(f.proname, '(', oidvectortypes(f.proargtypes), ')'), NULL, \
           concat('owner=', f.proowner, ' definer=', f.prosecdef, ' language=', f.prolang, ' text=', \
             left(encode(sha256(convert_to(concat_ws(chr(10), f.prosrc, f.proconfig), getdatabaseencoding())), 'hex'), 32), \
             ' granted=', (SELECT string_agg(a.grantee::text, ',' ORDER BY a.grantee) \
               FROM aclexplode(coalesce(f.proacl, acldefault('f', f.proowner))) a)), \
           concat(f.oid, '.', f.xmin) \
         FROM pg_proc f JOIN pg_namespace n ON n.oid = f.pronamespace WHERE n.nspname = 'pitser' \
         UNION ALL SELECT 'schema', NULL, n.nspname, NULL, \
           concat('owner=', n.nspowner, ' granted=', (SELECT string_agg(concat(a.grantee, ':', a.privilege_type), ',' \
               ORDER BY a.grantee, a.privilege_type) FROM aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a)), \
           concat(n.oid, '.', n.xmin) FROM pg_namespace n WHERE n.nspname = 'pitser' \
         UNION ALL SELECT 'emitter', NULL, concat('pg_logical_emit_message(', oidvectortypes(f.proargtypes), ')'), NULL, \
           coalesce((SELECT string_agg(CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END, ' ' \
             ORDER BY a.grantee) FROM aclexplode(coalesce(f.proacl, acldefault('f', f.proowner))) a), ''), \
           concat(f.oid, '.', f.xmin) \
         FROM pg_proc f WHERE f.proname = 'pg_logical_emit_message' AND f.pronamespace = 'pg_catalog'::regnamespace \
         UNION ALL SELECT 'role', NULL, r.rolname, NULL, \
           concat('superuser=', r.rolsuper, ' replication=', r.rolreplication, ' member=', r.oid IN (SELECT oid FROM power)), '' \
         FROM pg_roles r WHERE r.rolname !~ '^pg_' AND (r.rolsuper OR r.rolreplication OR r.oid IN (SELECT oid FROM power)) \
         UNION ALL SELECT 'default', NULL, concat_ws(' ', \
             'database ' || (SELECT quote_ident(d.datname) FROM pg_database d WHERE d.oid = s.setdatabase), \
             'role ' || (SELECT quote_ident(r.rolname) FROM pg_roles r WHERE r.oid = s.setrole)), NULL, \
           string_agg(CASE WHEN c.setting ~ '^pitser\\.' THEN split_part(c.setting, '=', 1) ELSE c.setting END, ' ' \
             ORDER BY c.setting), '' \
         FROM pg_db_role_setting s CROSS JOIN LATERAL unnest(s.setconfig) c(setting) \
         WHERE s.setdatabase IN (0, (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())) \
           AND c.setting ~ '^(pitser\\.|session_replication_role=|session_preload_libraries=|local_preload_libraries=)' \
         GROUP BY s.setdatabase, s.setrole \
         UNION ALL SELECT 'setting', NULL, v.name, NULL, coalesce(current_setting(v.name, true), 'absent'), '' \
         FROM (VALUES ('wal_level'), ('max_slot_wal_keep_size'), ('idle_replication_slot_timeout'), \
           ('session_replication_role'), ('fsync'), ('full_page_writes'), ('data_checksums')) v(name) \
         UNION ALL SELECT 'slot', NULL, s.slot_name, NULL, \
           concat('plugin=', s.plugin, ' type=', s.slot_type, ' database=', s.datoid, ' temporary=', s.temporary, \
             ' two_phase=', s.two_phase{failover}), '' \
         FROM pg_replication_slots s WHERE s.slot_name = '{slot}' \
         UNION ALL SELECT 'system', NULL, 'database', NULL, concat(d.oid, ' ', d.datname), '' \
         FROM pg_database d WHERE d.datname = current_database() \
         UNION ALL SELECT 'system', NULL, 'timeline', NULL, substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8), '' \
         UNION ALL SELECT 'system', NULL, 'version', NULL, current_setting('server_version_num'), '' \
         {system}"
    )
}
