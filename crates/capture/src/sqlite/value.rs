//! A value's canonical bytes, and how a row travels from trigger to reader.
//!
//! ```text
//! canonical   t ‖ the text's bytes, as stored (UTF-8 is not checked by SQLite)
//!             b ‖ the blob's bytes
//!             i ‖ decimal, "-" only if negative, no leading zeros
//!             r ‖ shortest decimal that reads back as the same double
//! in transit  cells joined by ","; n, t ‖ HEX, b ‖ HEX, i ‖ decimal, r ‖ quote()
//! ```
//!
//! The canonical real is not what `quote` prints: its digits differ from one
//! version of SQLite to the next, and the application's version runs the
//! triggers. Infinities are `9.0e+999` and `-9.0e+999`; zero has no sign.

use data_encoding::HEXUPPER;

use crate::event::Cell;

/// SQL for the transit form of these column expressions.
///
/// A balanced tree of `||`, since SQLite limits an expression's depth and
/// tables may have 2,000 columns. Only functions that SQLite has had since
/// version 3.0: the triggers run in whichever version the application uses.
pub(super) fn encode_sql(columns: &[String]) -> String {
    match columns {
        [] => "''".to_owned(),
        [column] => format!(
            "CASE typeof({column}) \
             WHEN 'text' THEN 't'||hex(CAST({column} AS BLOB)) \
             WHEN 'blob' THEN 'b'||hex({column}) \
             WHEN 'integer' THEN 'i'||{column} \
             WHEN 'real' THEN 'r'||quote({column}) \
             ELSE 'n' END"
        ),
        _ => {
            let (left, right) = columns.split_at(columns.len() / 2);
            format!("({}||','||{})", encode_sql(left), encode_sql(right))
        }
    }
}

/// Reads the transit form of `count` cells; `None` if our SQL did not write it.
pub(super) fn decode(transit: &str, count: usize) -> Option<Vec<Cell>> {
    let mut parts = transit.split(',');
    let cells: Option<Vec<Cell>> = parts.by_ref().take(count).map(decode_cell).collect();
    cells.filter(|cells| cells.len() == count && parts.next().is_none())
}

fn decode_cell(part: &str) -> Option<Cell> {
    if part == "n" {
        return Some(Cell::NULL);
    }
    let (letter, rest) = part.split_at_checked(1)?;
    let letter = letter.as_bytes()[0];
    let value = match letter {
        b't' | b'b' => HEXUPPER.decode(rest.as_bytes()).ok()?,
        b'i' => canonical_integer(rest)?.into_bytes(),
        b'r' => canonical_real(rest)?.into_bytes(),
        _ => return None,
    };
    Some(Cell::lettered(letter, &value))
}

fn canonical_integer(digits: &str) -> Option<String> {
    let value: i64 = digits.parse().ok()?;
    Some(value.to_string()).filter(|canonical| canonical == digits)
}

fn canonical_real(quoted: &str) -> Option<String> {
    // As older versions of SQLite quote what is infinite.
    match quoted {
        "Inf" => return Some(INFINITY.to_owned()),
        "-Inf" => return Some(format!("-{INFINITY}")),
        _ => {}
    }
    let plain = quoted
        .bytes()
        .all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
    let value: f64 = quoted.parse().ok().filter(|_| plain)?;
    Some(print_real(value))
}

/// A double as SQL reads it back.
fn print_real(value: f64) -> String {
    match value {
        v if v == f64::INFINITY => INFINITY.to_owned(),
        v if v == f64::NEG_INFINITY => format!("-{INFINITY}"),
        0.0 => "0.0".to_owned(),
        v => format!("{v:?}"),
    }
}

/// A text cell.
pub fn text(value: &str) -> Cell {
    Cell::lettered(b't', value.as_bytes())
}

/// An integer cell.
pub fn integer(value: i64) -> Cell {
    Cell::lettered(b'i', value.to_string().as_bytes())
}

/// The cell as an SQL literal that stores exactly this value again; `None` if
/// the bytes are not the canonical form of any SQLite value.
///
/// For repair statements that a person reads: it shows the value.
pub fn expose_literal(cell: &Cell) -> Option<String> {
    let Some(bytes) = cell.expose() else {
        return Some("NULL".to_owned());
    };
    let (letter, value) = bytes.split_first()?;
    match letter {
        b't' => Some(text_literal(value)),
        b'b' => Some(format!("x'{}'", HEXUPPER.encode(value))),
        b'i' => canonical_integer(std::str::from_utf8(value).ok()?).map(literal_integer),
        b'r' => canonical_real(std::str::from_utf8(value).ok()?),
        _ => None,
    }
}

/// Readable where that is exact, hexadecimal otherwise.
fn text_literal(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) if !text.chars().any(char::is_control) => {
            format!("'{}'", text.replace('\'', "''"))
        }
        _ => format!("CAST(x'{}' AS TEXT)", HEXUPPER.encode(value)),
    }
}

/// SQL has no literal for the least integer: it reads as minus a real.
fn literal_integer(digits: String) -> String {
    if digits == i64::MIN.to_string() {
        "(-9223372036854775807-1)".to_owned()
    } else {
        digits
    }
}

const INFINITY: &str = "9.0e+999";

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;

    /// Stores the literal, sends it through the SQL and back, stores the
    /// canonical form's own literal, and expects the same cell again.
    #[track_caller]
    fn check(literal: &str, canonical: Option<&[u8]>) {
        let db = Connection::open_in_memory().unwrap();
        let sql = encode_sql(&["x".to_owned()]);
        let carry = |literal: &str| {
            let transit: String = db
                .query_row(
                    &format!("SELECT {sql} FROM (SELECT {literal} AS x)"),
                    [],
                    |r| r.get(0),
                )
                .unwrap();
            decode(&transit, 1).unwrap().remove(0)
        };
        let cell = carry(literal);
        assert_eq!(cell.expose(), canonical, "{literal}");
        assert_eq!(
            carry(&expose_literal(&cell).unwrap()).expose(),
            canonical,
            "{literal} again"
        );
    }

    #[test]
    fn null() {
        check("NULL", None);
    }
    #[test]
    fn empty_text() {
        check("''", Some(b"t"));
    }
    #[test]
    fn text_with_quote_and_comma() {
        check("'a''b,c'", Some(b"ta'b,c"));
    }
    #[test]
    fn emoji() {
        check("'Jõeäär 🩺'", Some("tJõeäär 🩺".as_bytes()));
    }
    #[test]
    fn nul_in_text() {
        check("CAST(x'610062' AS TEXT)", Some(b"ta\0b"));
    }
    #[test]
    fn invalid_utf8_in_text() {
        check("CAST(x'FFC3' AS TEXT)", Some(b"t\xFF\xC3"));
    }
    #[test]
    fn empty_blob() {
        check("x''", Some(b"b"));
    }
    #[test]
    fn blob() {
        check("x'00FF2C'", Some(b"b\x00\xFF\x2C"));
    }
    #[test]
    fn zero() {
        check("0", Some(b"i0"));
    }
    #[test]
    fn least_integer() {
        check("(-9223372036854775807-1)", Some(b"i-9223372036854775808"));
    }
    #[test]
    fn greatest_integer() {
        check("9223372036854775807", Some(b"i9223372036854775807"));
    }
    #[test]
    fn integer_beyond_doubles() {
        check("9007199254740993", Some(b"i9007199254740993"));
    }
    #[test]
    fn one_and_a_half() {
        check("1.5", Some(b"r1.5"));
    }
    #[test]
    fn whole_real() {
        check("1.0", Some(b"r1.0"));
    }
    #[test]
    fn tenth() {
        check("0.1", Some(b"r0.1"));
    }
    #[test]
    fn tenth_plus_fifth() {
        check("0.1+0.2", Some(b"r0.30000000000000004"));
    }
    #[test]
    fn huge() {
        check("1e308", Some(b"r1e308"));
    }
    #[test]
    fn greatest_real() {
        check("1.7976931348623157e308", Some(b"r1.7976931348623157e308"));
    }
    #[test]
    fn least_normal() {
        check("2.2250738585072014e-308", Some(b"r2.2250738585072014e-308"));
    }
    #[test]
    fn infinity() {
        check("9e999", Some(b"r9.0e+999"));
    }
    #[test]
    fn minus_infinity() {
        check("-9e999", Some(b"r-9.0e+999"));
    }
    #[test]
    fn infinity_as_older_versions_quote_it() {
        for (transit, bytes) in [("rInf", "r9.0e+999"), ("r-Inf", "r-9.0e+999")] {
            let cells = decode(transit, 1).unwrap();
            assert_eq!(cells[0].expose(), Some(bytes.as_bytes()));
        }
    }
    #[test]
    fn minus_zero() {
        check("-0.0", Some(b"r0.0"));
    }

    #[test]
    fn refuses_what_our_sql_never_writes() {
        for transit in [
            "", "x", "n,", "t0", "tab", "i", "i+1", "i01", "i1.0", "rNaN", "rinf", "r", "n,n", "é",
        ] {
            assert_eq!(decode(transit, 1), None, "{transit:?}");
        }
    }

    #[test]
    fn two_thousand_columns_stay_within_the_expression_depth() {
        let db = Connection::open_in_memory().unwrap();
        let names: Vec<String> = (0..2000).map(|n| format!("c{n}")).collect();
        db.execute_batch(&format!(
            "CREATE TABLE t({}); INSERT INTO t(c7) VALUES('x')",
            names.join(",")
        ))
        .unwrap();
        let transit: String = db
            .query_row(&format!("SELECT {} FROM t", encode_sql(&names)), [], |r| {
                r.get(0)
            })
            .unwrap();
        let cells = decode(&transit, 2000).unwrap();
        assert_eq!(cells[7], text("x"));
        assert!(cells[8].is_null());
    }
}
