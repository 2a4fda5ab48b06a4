//! The stream, the old row in it and a query must print a value alike, whatever
//! its type: rows are compared byte for byte.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::{World, changes, name, show};
use pitser_capture::postgres::{Connection, Snapshot};
use pitser_capture::{Key, Op, Row};

/// Types that the test makes, and extensions that come with the server.
const TYPES: &str = "
    CREATE SCHEMA ward;
    CREATE TYPE ward.mood AS ENUM ('well', 'very ill', 'õ''\"');
    CREATE DOMAIN ward.pulse AS int CHECK (VALUE > 0);
    CREATE DOMAIN ward.codes AS text[];
    CREATE TYPE ward.dose AS (amount numeric, unit text, mood ward.mood);
    CREATE DOMAIN ward.sound_dose AS ward.dose CHECK ((VALUE).amount >= 0);
    CREATE TYPE ward.course AS (name text, doses ward.dose[]);
    CREATE TYPE ward.float_range AS RANGE (subtype = float8);
    CREATE TABLE ward.bed (id int PRIMARY KEY, label text);
    CREATE FUNCTION ward.nothing(int) RETURNS int LANGUAGE sql AS 'SELECT 1';
    CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE EXTENSION ltree; CREATE EXTENSION cube;
    CREATE EXTENSION isn; CREATE EXTENSION seg; CREATE EXTENSION intarray; CREATE EXTENSION lo";

/// Each type, and expressions for its values.
const VALUES: &[(&str, &[&str])] = &[
    ("bool", &["true", "false"]),
    ("int2", &["-32768"]),
    ("int4", &["2147483647"]),
    ("int8", &["-9223372036854775808"]),
    (
        "float4",
        &[
            "'NaN'",
            "'-Infinity'",
            "'-0'",
            "1e-45::float4",
            "3.4028235e38",
            "0.1::float4",
            "16777217",
        ],
    ),
    (
        "float8",
        &[
            "'NaN'",
            "'Infinity'",
            "'-0'",
            "5e-324",
            "1.7976931348623157e308",
            "0.1::float8 + 0.2::float8",
            "1e15",
            "1e16",
            "123456789012345680",
        ],
    ),
    (
        "numeric",
        &[
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "1.50",
            "-0.000",
            "1e-16383",
            "10::numeric ^ 1000",
            "0.1 + 0.2",
        ],
    ),
    ("numeric(6,2)", &["1.005", "'NaN'"]),
    ("money", &["1234.5", "-0.01", "'92233720368547758.07'"]),
    (
        "text",
        &["''", "E'J\u{f5}e\\n,\\t\"\\\\'", "repeat('õ', 5000)"],
    ),
    ("varchar(3)", &["'ab'"]),
    ("char(4)", &["'ab'"]),
    ("\"char\"", &["'x'", "''"]),
    ("name", &["'somebody'"]),
    (
        "bytea",
        &["''", "'\\x00ff5c27'", "decode(repeat('00ff', 4000), 'hex')"],
    ),
    (
        "date",
        &[
            "'2026-03-14'",
            "'0044-03-15 BC'",
            "'infinity'",
            "'-infinity'",
            "'5874897-12-31'",
        ],
    ),
    ("time", &["'24:00:00'", "'09:26:53.589793'"]),
    ("timetz", &["'24:00:00+15:59:59'", "'09:26:53-07'"]),
    (
        "timestamp",
        &[
            "'infinity'",
            "'2026-03-14 09:26:53.000001'",
            "'4713-01-01 00:00:00 BC'",
        ],
    ),
    (
        "timestamptz",
        &[
            "'2026-03-14 09:26:53.5+02'",
            "'1000-01-01 00:00:00+00'",
            "'-infinity'",
            "'294276-12-31 23:59:59.999999+00'",
        ],
    ),
    (
        "interval",
        &[
            "'1 month -2 days 3:04:05'",
            "'-1 year -2 mons +3 days -04:05:06.789'",
            "'0'",
            "'178000000 years'",
            "'-0.000001 seconds'",
        ],
    ),
    ("uuid", &["'6E5D3C2B-0000-0000-0000-0123456789AB'"]),
    ("json", &["'{\"b\" : 1,  \"a\":[1.0,2e3]}'"]),
    (
        "jsonb",
        &[
            "'{\"b\":1.50,\"a\":{\"\u{f5}\":[null,true,\"\\u00f5\"]}}'",
            "'1e2'",
            "'\"x\"'",
        ],
    ),
    ("jsonpath", &["'$.a[*] ? (@ > 1)'"]),
    ("xml", &["'<a b=\"1\"/>x'", "'<?xml version=\"1.0\"?><a/>'"]),
    ("bit(3)", &["B'101'"]),
    ("varbit", &["B''", "B'1010101'"]),
    (
        "inet",
        &["'10.0.0.7'", "'10.0.0.7/8'", "'::ffff:1.2.3.4/100'"],
    ),
    ("cidr", &["'10.0.0.0/8'"]),
    ("macaddr", &["'08-00-2b-01-02-03'"]),
    ("macaddr8", &["'08002b:0102030405'"]),
    ("point", &["'(0.1,-0)'"]),
    ("line", &["'{1,2,0.3}'"]),
    ("lseg", &["'((0,0),(1,1.1))'"]),
    ("box", &["'((0,0),(1,1))'"]),
    ("path", &["'[(0,0),(1,1)]'", "'((0,0),(1,1))'"]),
    ("polygon", &["'((0,0),(1,1),(0,1))'"]),
    ("circle", &["'<(0,0),0.5>'"]),
    (
        "tsvector",
        &["to_tsvector('english', 'The fat cats')", "'a:1A b:2'"],
    ),
    ("tsquery", &["to_tsquery('english', 'fat & (cat | !rat)')"]),
    ("pg_lsn", &["'16/B374D848'"]),
    ("pg_snapshot", &["'10:20:10,14,15'"]),
    ("txid_snapshot", &["'10:20:10,14,15'"]),
    ("xid", &["'4294967295'"]),
    ("xid8", &["'18446744073709551615'"]),
    ("cid", &["'7'"]),
    ("tid", &["'(0,1)'"]),
    ("oid", &["4294967295"]),
    ("oidvector", &["'1 2 3'"]),
    ("int2vector", &["'1 2'"]),
    ("regclass", &["'ward.bed'", "'pg_class'", "4294967294"]),
    ("regtype", &["'ward.mood'", "'int4'"]),
    ("regproc", &["'ward.nothing'"]),
    ("regprocedure", &["'ward.nothing(int)'"]),
    ("regoper", &["'pg_catalog.||/'"]),
    ("regoperator", &["'+(int,int)'"]),
    ("regrole", &["'postgres'"]),
    ("regnamespace", &["'ward'"]),
    ("regconfig", &["'english'"]),
    ("regdictionary", &["'simple'"]),
    ("regcollation", &["'\"C\"'"]),
    ("aclitem", &["'postgres=r/postgres'"]),
    (
        "int[]",
        &["'{1,NULL}'", "'{}'", "'[0:1][2:3]={{1,2},{3,4}}'"],
    ),
    (
        "text[]",
        &["ARRAY['a,b', '', 'NULL', NULL, '\"', E'\\\\', ' ']"],
    ),
    ("bytea[]", &["ARRAY['\\x00'::bytea]"]),
    ("float8[]", &["'{NaN,-0,5e-324,0.1}'"]),
    ("timestamptz[]", &["'{2026-03-14 09:26:53+02,infinity}'"]),
    ("ward.mood", &["'very ill'", "'õ''\"'"]),
    ("ward.mood[]", &["'{well,\"very ill\"}'"]),
    ("ward.pulse", &["60"]),
    ("ward.pulse[]", &["'{60,NULL}'"]),
    ("ward.codes", &["'{a,b}'"]),
    (
        "ward.dose",
        &["ROW(1.50, 'mg, \"x\"', 'well')", "ROW(NULL, '', NULL)"],
    ),
    ("ward.sound_dose", &["ROW(0, 'ml', NULL)"]),
    (
        "ward.dose[]",
        &["ARRAY[ROW(1, 'a', 'well')::ward.dose, NULL]"],
    ),
    (
        "ward.course",
        &["ROW('x', ARRAY[ROW(1, 'a', 'well')::ward.dose])"],
    ),
    ("ward.bed", &["ROW(1, 'window')"]),
    ("int4range", &["'[1,5]'", "'empty'", "'(,)'"]),
    ("numrange", &["'(1.50,]'"]),
    ("tstzrange", &["'[2026-03-14 09:26:53+02,infinity)'"]),
    ("daterange", &["'[2026-01-01,2026-01-31]'"]),
    (
        "ward.float_range",
        &["'[5e-324,0.1)'", "'[-0,0.30000000000000004]'"],
    ),
    ("int4multirange", &["'{[1,3],[5,9)}'", "'{}'"]),
    (
        "tstzmultirange",
        &["'{[2026-03-14 09:26:53+02,2026-03-15 00:00:00+02)}'"],
    ),
    ("ward.float_multirange", &["'{[0.1,0.2]}'"]),
    ("hstore", &["'b=>1, a=>NULL, \"c d\"=>\"\\\"\"'"]),
    ("citext", &["'Ärge'"]),
    ("ltree", &["'Top.Science.Astronomy'"]),
    ("lquery", &["'Top.*{1,2}.!a'"]),
    ("cube", &["'(0.1,2),(3,4)'"]),
    ("isbn13", &["'978-0-393-04002-9'"]),
    ("seg", &["'0.1 .. 1.50'"]),
    ("query_int", &["'1&(2|3)'"]),
    ("lo", &["17"]),
    ("refcursor", &["'c'"]),
];

/// What roles and databases may have set, in the hope that values look otherwise.
const HOSTILE: &str = "
    ALTER ROLE postgres SET datestyle = 'SQL, DMY';
    ALTER ROLE postgres SET intervalstyle = 'sql_standard';
    ALTER DATABASE postgres SET timezone = 'Asia/Kathmandu';
    ALTER DATABASE postgres SET extra_float_digits = -15;
    ALTER ROLE postgres SET bytea_output = 'escape';
    ALTER ROLE postgres SET xmloption = 'document';
    ALTER ROLE postgres SET client_encoding = 'LATIN1';
    ALTER ROLE postgres SET quote_all_identifiers = on;
    ALTER ROLE postgres SET array_nulls = off;
    ALTER ROLE postgres SET default_text_search_config = 'simple';
    ALTER ROLE postgres SET search_path = ward, public";

/// The rows of the one table, by their keys.
fn rows(world: &World) -> BTreeMap<Key, Row> {
    let mut snapshot = Snapshot::open(&world.server.config()).unwrap();
    let table = snapshot.tables(&name()).unwrap().remove(0);
    let mut rows = BTreeMap::new();
    snapshot
        .scan(&table, 3, |chunk| {
            rows.extend(chunk);
            ControlFlow::Continue(())
        })
        .unwrap();
    rows
}

#[test]
fn every_type_is_printed_alike_by_stream_and_scan() {
    let columns: Vec<String> = VALUES
        .iter()
        .enumerate()
        .map(|(n, (kind, _))| format!("c{n} {kind}"))
        .collect();
    let schema = format!(
        "{TYPES}; CREATE TABLE every(id int PRIMARY KEY, n int, {}); ALTER TABLE every REPLICA IDENTITY FULL",
        columns.join(", ")
    );
    let Some(mut world) = World::new(&schema, &["every"]) else {
        return;
    };
    let most = VALUES.iter().map(|(_, values)| values.len()).max().unwrap();
    let mut inserts: Vec<String> = Vec::new();
    for id in 0..=most {
        // The last row has nothing but nulls.
        let value = |values: &[&str]| (*values.get(id).unwrap_or(&"NULL")).to_owned();
        let values: Vec<String> = VALUES
            .iter()
            .map(|(kind, values)| format!("({})::{kind}", value(values)))
            .collect();
        inserts.push(format!(
            "INSERT INTO every VALUES ({id}, 0, {})",
            values.join(", ")
        ));
    }
    let mut stream = world.stream(world.start);
    for insert in &inserts {
        world.run(insert);
    }
    let created = changes(&mut stream, inserts.len());
    let queried = rows(&world);
    // From now on sessions that begin would print nearly everything otherwise.
    world.run(HOSTILE);
    world.sql = Connection::open_application(&world.server.config()).unwrap();
    drop(stream);
    let mut stream = super::restarted(&world, created.last().unwrap().pos);
    world.run("UPDATE public.every SET n = 1");
    let updated = changes(&mut stream, 1);
    let hostile = rows(&world);
    assert_eq!(created.len(), queried.len());

    let with_n = |row: &Row, n: &str| -> Vec<String> {
        assert_eq!(show(row.get("n").unwrap()), n);
        let cells = row.iter().filter(|(name, _)| *name != "n");
        cells.map(|(_, cell)| show(cell)).collect()
    };
    for (created, updated) in created.iter().zip(&updated) {
        assert_eq!((created.op, updated.op), (Op::Create, Op::Update));
        let of = |rows: &BTreeMap<Key, Row>, n| with_n(&rows[&created.key], n);
        let told = with_n(created.new.as_ref().unwrap(), "0");
        let others = [
            ("a query", of(&queried, "0")),
            ("the old row", with_n(updated.old.as_ref().unwrap(), "0")),
            ("the new row", with_n(updated.new.as_ref().unwrap(), "1")),
            ("a query with other settings", of(&hostile, "1")),
        ];
        for (who, other) in others {
            let kinds = VALUES.iter().map(|(kind, _)| kind);
            for (kind, (one, other)) in kinds.zip(told[1..].iter().zip(&other[1..])) {
                assert_eq!(one, other, "{kind} by {who}");
            }
        }
    }
    let known: usize = VALUES.iter().map(|(_, values)| values.len()).sum();
    let told = created
        .iter()
        .flat_map(|change| &change.new.as_ref().unwrap().cells[2..]);
    assert_eq!(told.filter(|cell| !cell.is_null()).count(), known);
}
