//! Databases whose values are not all text, and values that the server cannot send.

use pitser_evidence::line::Op;

use crate::tamper::unseen;
use crate::world::World;

const SOURCE: &str = "tables = [\"public.*\"]\n";

/// What the vault has of a column, by the records' order of coming.
fn kept(world: &World, column: &str) -> Vec<Vec<u8>> {
    let mut vault = world.vault();
    let lines = world.lines();
    let rows = lines.iter().filter(|line| line.row.is_some());
    let values = rows.map(|line| {
        let (_, content) = vault.get(line.seq).unwrap().unwrap();
        let row = content.row.unwrap();
        let (_, value) = row.iter().find(|(name, _)| *name == column).unwrap();
        value.unwrap().to_vec()
    });
    values.collect()
}

/// Guards a table of patients in a database of this encoding, one of whose notes is no
/// text, and adds such a one while guarding.
fn guarded(encoding: &str, names: (&str, &str), text: &str) -> Option<World> {
    let mut world = World::encoded("clinic", encoding)?;
    let (table, column) = names;
    let bytes = format!("convert_from('\\x4a81'::bytea, '{encoding}')");
    world.psql(
        "postgres",
        &format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, {column} text);
             INSERT INTO {table} VALUES (1, '{text}'), (2, {bytes})"
        ),
    );
    world.configure("scan_every_s = 0", SOURCE);
    world.run("guard init").exits(0).says("1 tables guarded");
    world.guard();
    world.psql(
        "postgres",
        &format!(
            "INSERT INTO {table} VALUES (3, '{text}'), (4, {bytes});
             UPDATE {table} SET id = id + 10 WHERE id > 2"
        ),
    );
    world.settle();
    Some(world)
}

#[test]
fn bytes_that_stand_for_no_character() {
    let names = ("õppija", "märkus");
    let Some(mut world) = guarded("WIN1257", names, "Jüri Õun €") else {
        return;
    };
    let text = "tJüri Õun €".as_bytes();
    let each = [text, b"bJ\x81"];
    assert_eq!(world.wrong(), Vec::<String>::new());
    unseen(
        &world,
        "\"õppija\"",
        "UPDATE õppija SET märkus = convert_from('\\x4a83'::bytea, 'WIN1257') WHERE id = 2",
    );
    assert_eq!(world.wrong(), ["ROW-01 public.õppija 2"]);
    world.kill_guardian();
    world.psql(
        "postgres",
        "INSERT INTO õppija VALUES (5, convert_from('\\xc481'::bytea, 'WIN1257')), (6, 'ā')",
    );
    world.guard();
    world.settle();
    world.stop_guardian();
    world.run("trail verify").exits(0);
    let kept = kept(&world, "märkus");
    assert_eq!(kept[..6], [each, each, each].concat());
    // In UTF-8 these bytes would be the other text.
    assert_eq!(kept[6..], [&b"b\xc4\x81"[..], "tā".as_bytes()]);
}

#[test]
fn bytes_of_any_encoding() {
    let Some(mut world) = guarded("SQL_ASCII", ("entry", "note"), "Jüri Õun €") else {
        return;
    };
    let each = ["tJüri Õun €".as_bytes(), b"tJ\x81"];
    assert_eq!(world.wrong(), Vec::<String>::new());
    unseen(
        &world,
        "entry",
        "UPDATE entry SET note = convert_from('\\x4a83'::bytea, 'SQL_ASCII') WHERE id = 2",
    );
    assert_eq!(world.wrong(), ["ROW-01 public.entry 2"]);
    world.stop_guardian();
    world.run("trail verify").exits(0);
    assert_eq!(kept(&world, "note"), [each, each, each].concat());
}

/// The log keeps the name for ever: whoever reads it must not end there each time.
#[test]
fn a_column_that_is_called_no_text_for_one_change() {
    let names = ("entry", "note");
    let Some(mut world) = guarded("WIN1257", names, "Jüri Õun €") else {
        return;
    };
    let no_text = "convert_from('\\x6e81'::bytea, 'WIN1257')";
    let rename = |world: &World, from: &str, to: &str| {
        let rename = format!("format('ALTER TABLE entry RENAME %I TO %I', {from}, {to})");
        world.psql("postgres", &format!("DO $$ BEGIN EXECUTE {rename}; END $$"));
    };
    rename(&world, "'note'", no_text);
    world.psql("postgres", "INSERT INTO entry VALUES (5, 'x')");
    rename(&world, no_text, "'note'");
    world.psql("postgres", "INSERT INTO entry VALUES (6, 'y')");
    world.settle();
    world.finding("CAP-05", "public.entry");
    let changes = world.lines();
    let rows: Vec<_> = changes.iter().filter(|line| line.row.is_some()).collect();
    assert_eq!(rows.len(), 8);
    assert_eq!(world.wrong(), Vec::<String>::new());
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

/// In encodings of several bytes, the same characters as the server's own, and for what is
/// none its bytes.
#[test]
fn bytes_that_stand_for_no_character_of_several_bytes() {
    for (encoding, text, no) in [
        ("EUC_JP", "日本語 ｱ 丂", "fdfe"),
        ("EUC_JIS_2004", "日本語 か゚", "a4fc"),
        ("EUC_CN", "中文", "fefe"),
        ("EUC_KR", "한국어", "fefe"),
        ("EUC_TW", "中文 乂", "fefe"),
    ] {
        let Some(mut world) = World::encoded("clinic", encoding) else {
            return;
        };
        let bytes = |hex: &str| format!("convert_from('\\x{hex}'::bytea, '{encoding}')");
        let no_text = bytes(no);
        world.psql(
            "postgres",
            &format!(
                "CREATE TABLE entry (id int PRIMARY KEY, note text);
                 INSERT INTO entry VALUES (1, '{text}'), (2, {no_text})"
            ),
        );
        world.configure("scan_every_s = 0", SOURCE);
        world.run("guard init").exits(0).says("1 tables guarded");
        world.guard();
        world.psql(
            "postgres",
            &format!("INSERT INTO entry VALUES (3, '{text}'), (4, {no_text})"),
        );
        world.settle();
        assert_eq!(world.wrong(), Vec::<String>::new(), "{encoding}");
        let forged = bytes(&format!("41{no}"));
        unseen(
            &world,
            "entry",
            &format!("UPDATE entry SET note = {forged} WHERE id = 2"),
        );
        assert_eq!(world.wrong(), ["ROW-01 public.entry 2"], "{encoding}");
        world.stop_guardian();
        world.run("trail verify").exits(0);
        let as_text = format!("t{text}").into_bytes();
        let as_bytes = [b"b", &*hex(no)].concat();
        let each = [as_text, as_bytes];
        assert_eq!(
            kept(&world, "note"),
            [&each[..], &each].concat(),
            "{encoding}"
        );
    }
}

fn hex(digits: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(byte).collect()
}

/// A database in which nobody can ask for the characters of its encoding: it lacks a
/// function for that.
fn of_unknown_characters() -> Option<World> {
    let world = World::encoded("clinic", "EUC_JP")?;
    world.psql(
        "postgres",
        "ALTER FUNCTION pg_catalog.to_hex(integer) RENAME TO no_hex;
         ALTER FUNCTION pg_catalog.to_hex(bigint) RENAME TO no_hex",
    );
    Some(world)
}

/// Where only the server can convert, it refuses a transaction with such a value, and
/// nothing that comes after it could ever be told.
#[test]
fn a_transaction_that_the_server_cannot_send() {
    let Some(mut world) = of_unknown_characters() else {
        return;
    };
    world.psql(
        "postgres",
        "CREATE TABLE entry (id int PRIMARY KEY, note text);
         CREATE TABLE ward (id int PRIMARY KEY, name text);
         INSERT INTO ward VALUES (1, 'A')",
    );
    world.configure("scan_every_s = 0", SOURCE);
    world.run("guard init").exits(0).says("2 tables guarded");
    world.guard();
    world.psql("postgres", "INSERT INTO entry VALUES (1, 'told')");
    world.psql(
        "postgres",
        "BEGIN;
         INSERT INTO entry VALUES (2, 'not told'), (3, convert_from('\\xfdfe'::bytea, 'EUC_JP'));
         UPDATE ward SET name = 'not told';
         COMMIT",
    );
    world.psql("postgres", "INSERT INTO entry VALUES (4, 'told')");
    let found = world.finding("CAP-01", "");
    let text = found["text"].as_str().unwrap();
    for part in [
        "passed over after 3 attempts",
        "SQLSTATE 22P05",
        "does not convert",
    ] {
        assert!(text.contains(part), "{text}");
    }
    world.status_when("goes on", |s| s["state"] == "guarding");
    world.settle();
    // The row is there still, and no scan can read it.
    let found = world.finding("CAP-03", "");
    let text = found["text"].as_str().unwrap();
    assert!(
        text.contains("cannot send a row of table public.entry"),
        "{text}"
    );
    assert_eq!(world.run("guard status").code, 1);
    world.psql("postgres", "DELETE FROM entry WHERE id = 3");
    world.settle();
    assert_eq!(
        world.wrong(),
        ["ROW-01 public.ward 1", "ROW-03 public.entry 2"]
    );
    world.kill_guardian();
    world.guard();
    world.psql("postgres", "INSERT INTO entry VALUES (5, 'told')");
    world.settle();
    world.stop_guardian();
    world.run("trail verify").exits(0);
    let lines = world.lines();
    let of = |op: Op| lines.iter().filter(|line| line.op == op).count();
    assert_eq!((of(Op::Create), of(Op::Gap)), (3, 1));
}

/// A guarded table of images.
fn of_images() -> Option<World> {
    let world = World::new("clinic")?;
    world.psql(
        "postgres",
        "CREATE TABLE scan (id int PRIMARY KEY, image bytea)",
    );
    world.configure("scan_every_s = 0", SOURCE);
    world.run("guard init").exits(0);
    Some(world)
}

/// As text a value of 500 MB is longer than anything that PostgreSQL sends.
#[test]
fn a_value_that_is_too_large_to_be_sent() {
    let Some(mut world) = of_images() else {
        return;
    };
    world.guard();
    world.psql(
        "postgres",
        "INSERT INTO scan SELECT 1, string_agg(part, '') FROM generate_series(1, 550), \
         (SELECT decode(repeat('00', 1000000), 'hex') AS part) one",
    );
    world.psql("postgres", "INSERT INTO scan VALUES (2, 'small')");
    let found = world.finding("CAP-01", "");
    let text = found["text"].as_str().unwrap();
    assert!(text.contains("longer than 1 GB as text"), "{text}");
    world.settle();
    let found = world.finding("CAP-03", "");
    let text = found["text"].as_str().unwrap();
    assert!(
        text.contains("cannot send a row of table public.scan"),
        "{text}"
    );
    world.psql("postgres", "DELETE FROM scan WHERE id = 1");
    world.settle();
    assert_eq!(world.wrong(), Vec::<String>::new());
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

/// A large value is hashed where it lies, whatever else is committed to with it.
#[test]
fn a_large_value_is_not_copied_about() {
    let Some(mut world) = of_images() else {
        return;
    };
    // Else the peak has also what is free already, and not yet given back: by chance.
    world.guard_with(&[("MIMALLOC_PURGE_DELAY", "0")]);
    world.psql("postgres", "INSERT INTO scan VALUES (1, 'small')");
    world.settle();
    let before = world.guardian_peak();
    world.psql(
        "postgres",
        "INSERT INTO scan SELECT 2, string_agg(part, '') FROM generate_series(1, 40), \
         (SELECT decode(repeat('00', 1000000), 'hex') AS part) one",
    );
    world.settle();
    let (grown, value) = (world.guardian_peak() - before, 80_000_000);
    println!(
        "grew by {} MB for a value of {} MB",
        grown >> 20,
        value >> 20
    );
    assert!(grown < value * 18 / 4, "{grown}");
    assert_eq!(world.wrong(), Vec::<String>::new());
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

/// One table whose rows cannot be read keeps no other from being guarded: neither when it
/// comes to be guarded, nor when it is given another key.
#[test]
fn a_table_that_cannot_be_read() {
    let Some(mut world) = of_unknown_characters() else {
        return;
    };
    world.psql(
        "postgres",
        "CREATE TABLE ward (id int PRIMARY KEY, n int NOT NULL, name text);
         INSERT INTO ward VALUES (1, 11, 'A')",
    );
    world.configure("scan_every_s = 0", SOURCE);
    world.run("guard init").exits(0).says("1 tables guarded");
    world.guard();
    let bad = "convert_from('\\xfdfe'::bytea, 'EUC_JP')";
    world.psql(
        "postgres",
        &format!(
            "CREATE TABLE entry (id int PRIMARY KEY, n int NOT NULL, note text);
             INSERT INTO entry VALUES (1, 11, 'there'), (2, 12, {bad})"
        ),
    );
    world.run("guard init").exits(0).says("2 tables guarded");
    let aside = |world: &World, count: usize| {
        let status = world.status_when("sets it aside", |s| {
            let all = s["findings"].as_array().unwrap().iter();
            let of = all.filter(|f| {
                let text = f["text"].as_str().unwrap();
                text.starts_with("the rows of table public.entry cannot be read")
            });
            of.count() == count && s["state"] == "guarding"
        });
        assert!(
            status["findings"]
                .to_string()
                .contains("cannot send a row of table public.entry")
        );
    };
    aside(&world, 1);
    // It is captured, and all else is compared as well.
    world.psql(
        "postgres",
        "INSERT INTO entry VALUES (3, 13, 'new'); UPDATE ward SET name = 'B'",
    );
    world.settle();
    unseen(&world, "ward", "UPDATE ward SET name = 'forged'");
    assert_eq!(world.wrong(), ["ROW-01 public.ward 1"]);
    let ops = |world: &World, key: u32| {
        let said = world.run(&format!("history public.entry {key} --json"));
        if said.code == 3 {
            return String::new();
        }
        let said = said.json();
        let lines = said["lines"].as_array().unwrap().iter();
        let ops = lines.map(|e| e["line"]["op"].as_str().unwrap().to_owned());
        ops.collect::<Vec<_>>().join(" ")
    };
    world.psql("postgres", "DELETE FROM entry WHERE id = 2");
    world.settle();
    world.eventually("reads it", |world| {
        assert_eq!(world.wrong(), ["ROW-01 public.ward 1"]);
        ops(world, 3) == "create" && ops(world, 1) == "baseline"
    });
    world.eventually("compares it", |world| {
        let lines = world.lines();
        let mut live = lines.iter().filter(|line| line.op == Op::Live);
        live.any(|line| line.table.as_deref() == Some("public.entry"))
    });
    // Past capture, for a change of it could not be told.
    unseen(
        &world,
        "entry",
        &format!("UPDATE entry SET note = {bad} WHERE id = 3"),
    );
    world.psql(
        "postgres",
        "ALTER TABLE entry DROP CONSTRAINT entry_pkey, ADD PRIMARY KEY (n);
         ALTER TABLE ward DROP CONSTRAINT ward_pkey, ADD PRIMARY KEY (n);
         UPDATE ward SET name = 'C'",
    );
    world.status_when("says so", |s| {
        let said = s["findings"].to_string();
        said.contains("table public.ward has another key")
    });
    world.settle();
    world.eventually("carries the other", |world| {
        world.wrong() == Vec::<String>::new()
    });
    unseen(
        &world,
        "entry",
        "UPDATE entry SET note = 'new' WHERE n = 13",
    );
    world.eventually("carries it", |world| {
        assert_eq!(world.wrong(), Vec::<String>::new());
        ops(world, 11) == "baseline" && ops(world, 13) == "baseline"
    });
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

/// What keeps a source from being captured, and does not pass by itself, is a finding.
#[test]
fn what_ends_the_capture_again_and_again() {
    let Some(mut world) = World::new("clinic") else {
        return;
    };
    world.psql(
        "postgres",
        "CREATE TABLE ward (id int PRIMARY KEY, name text);
         INSERT INTO ward VALUES (1, 'A')",
    );
    world.configure("scan_every_s = 0", SOURCE);
    world.run("guard init").exits(0);
    world.psql(
        "postgres",
        "CREATE ROLE guardian LOGIN REPLICATION PASSWORD 'p@ss/w:rd õ';
         GRANT SELECT ON ward TO guardian; GRANT ALL ON SCHEMA pitser TO guardian;
         GRANT ALL ON pitser.installed TO guardian",
    );
    let path = world.dir.path().join("pitser.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let other = text.replace("postgres://postgres:", "postgres://guardian:");
    assert_ne!(text, other);
    std::fs::write(&path, other).unwrap();
    world.guard();
    let function = "FUNCTION pg_wal_lsn_diff(pg_lsn, pg_lsn)";
    world.psql(
        "postgres",
        &format!("REVOKE EXECUTE ON {function} FROM PUBLIC; UPDATE ward SET name = 'B'"),
    );
    world.status_when("says so", |s| {
        let mut all = s["findings"].as_array().unwrap().iter();
        all.any(|f| {
            let text = f["text"].as_str().unwrap();
            f["code"] == "CAP-03"
                && text.starts_with("nothing is captured any more")
                && text.contains("pg_wal_lsn_diff")
        })
    });
    let said = world.run("guard status");
    assert!(said.code > 0, "{said:?}");
    world.psql(
        "postgres",
        &format!("GRANT EXECUTE ON {function} TO PUBLIC"),
    );
    world.status_when("goes on", |s| s["state"] == "guarding");
    world.settle();
    assert_eq!(world.wrong(), Vec::<String>::new());
    world.stop_guardian();
    world.run("trail verify").exits(0);
    let lines = world.lines();
    let of = |op: Op| lines.iter().filter(|line| line.op == op).count();
    assert_eq!((of(Op::Update), of(Op::Gap)), (1, 0));
}
