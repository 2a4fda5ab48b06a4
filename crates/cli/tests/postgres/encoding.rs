//! Databases whose values are not all text, and values that the server cannot send.

use pitser_evidence::line::Op;
use serde_json::Value;

use crate::tamper::unseen;
use crate::world::World;

const SOURCE: &str = "tables = [\"public.*\"]\n";

/// `code table key` of what is found, sorted.
fn wrong(world: &World) -> Vec<String> {
    let found = world.scan();
    let text = |f: &Value, name: &str| f[name].as_str().unwrap_or_default().to_owned();
    let shown = found.iter().map(|f| {
        let [code, table, key] = ["code", "table", "key"].map(|name| text(f, name));
        format!("{code} {table} {key}")
    });
    let mut shown: Vec<String> = shown.collect();
    shown.sort_unstable();
    shown
}

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
    assert_eq!(wrong(&world), Vec::<String>::new());
    unseen(
        &world,
        "\"õppija\"",
        "UPDATE õppija SET märkus = convert_from('\\x4a83'::bytea, 'WIN1257') WHERE id = 2",
    );
    assert_eq!(wrong(&world), ["ROW-01 public.õppija 2"]);
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
    assert_eq!(wrong(&world), Vec::<String>::new());
    unseen(
        &world,
        "entry",
        "UPDATE entry SET note = convert_from('\\x4a83'::bytea, 'SQL_ASCII') WHERE id = 2",
    );
    assert_eq!(wrong(&world), ["ROW-01 public.entry 2"]);
    world.stop_guardian();
    world.run("trail verify").exits(0);
    assert_eq!(kept(&world, "note"), [each, each, each].concat());
}

/// In an encoding that only the server can convert, it refuses a transaction with such a
/// value, and nothing that comes after it could ever be told.
#[test]
fn a_transaction_that_the_server_cannot_send() {
    let Some(mut world) = World::encoded("clinic", "EUC_JP") else {
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
        wrong(&world),
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

/// As text a value of 500 MB is longer than anything that PostgreSQL sends.
#[test]
fn a_value_that_is_too_large_to_be_sent() {
    let Some(mut world) = World::new("clinic") else {
        return;
    };
    world.psql(
        "postgres",
        "CREATE TABLE scan (id int PRIMARY KEY, image bytea)",
    );
    world.configure("scan_every_s = 0", SOURCE);
    world.run("guard init").exits(0);
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
    assert_eq!(wrong(&world), Vec::<String>::new());
    world.stop_guardian();
    world.run("trail verify").exits(0);
}
