//! Changes that no trigger of a SQLite table sees.

use rusqlite::Connection;

/// Runs a statement with no trigger of `table` seeing it, all in one transaction.
pub(crate) fn past_triggers(db: &Connection, table: &str, change: &str) {
    let triggers = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?1";
    let mut triggers = db.prepare(triggers).unwrap();
    let triggers = triggers.query_map([table], |row| Ok((row.get(0)?, row.get(1)?)));
    let triggers: Vec<(String, String)> = triggers.unwrap().map(Result::unwrap).collect();
    let mut sql = String::from("BEGIN IMMEDIATE;");
    for (name, _) in &triggers {
        sql += &format!("DROP TRIGGER \"{name}\";");
    }
    sql += &format!("{change};");
    for (_, trigger) in &triggers {
        sql += &format!("{trigger};");
    }
    db.execute_batch(&(sql + "COMMIT")).unwrap();
}
