//! The lines of a segment as Parquet, one row for each, for those who want to count and
//! look without this program. It proves nothing: the lines do.
//!
//! | column | type | |
//! |---|---|---|
//! | `seq`, `event` | 64-bit integer | position, and that of the event's first line |
//! | `hash` | text | the line's hash, hexadecimal |
//! | `at` | timestamp, microseconds, UTC | the engine's time |
//! | `op`, `source`, `pos` | text | what happened, which input reports it, place in the source |
//! | `table`, `key`, `patient` | text | the record and whose it is, as commitments; empty where a line has none |
//! | `row`, `raw` | text | commitments to the row after the event, to the message |
//! | `actor_binding`, `actor_person`, `actor_role`, `actor_app`, `actor_client` | text | who did it |
//! | `purpose` | text | purpose of use |
//! | `columns` | text | names of the columns that changed, as a JSON list |
//! | `tx` | 64-bit integer | the engine's transaction |
//! | `prev`, `patient_prev` | 64-bit integer | `seq` of the line before of this record, of this patient |
//! | `finding_code`, `finding_text`, `finding_about` | text, text, 64-bit integer | of a finding |
//! | `accepts` | 64-bit integer | of an acceptance: the finding's line |
//! | `releases` | 64-bit integer | of the end of a hold: the hold's line |
//! | `gap_from`, `gap_to` | text | of a gap |
//! | `block` | 64-bit integer | of a checkpoint: the block that it ends |

use std::io::Write;
use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::column::writer::ColumnWriter;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::errors::{ParquetError, Result};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use pitser_evidence::codec::Digest;
use pitser_evidence::line::Line;

/// Writes the rows of `lines`, at most [`ROWS`] in memory at a time.
///
/// # Errors
/// [`ParquetError`], also for a line that is none.
pub(super) fn write(lines: &[u8], out: &mut (impl Write + Send)) -> Result<()> {
    let declared: Vec<String> = COLUMNS.iter().map(Column::declaration).collect();
    let schema = parse_message_type(&format!("message line {{ {} }}", declared.concat()))?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_created_by(concat!("pitser ", env!("CARGO_PKG_VERSION")).to_owned())
        .build();
    let mut writer = SerializedFileWriter::new(out, Arc::new(schema), Arc::new(properties))?;
    let mut rows = Vec::new();
    for bytes in lines.split_inclusive(|&b| b == b'\n') {
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let line = Line::decode(bytes).map_err(|e| ParquetError::General(e.to_string()))?;
        rows.push((line, Line::hash(bytes)));
        if rows.len() == ROWS {
            write_group(&mut writer, &rows)?;
            rows.clear();
        }
    }
    if !rows.is_empty() {
        write_group(&mut writer, &rows)?;
    }
    writer.close()?;
    Ok(())
}

type Row = (Line, Digest);

fn write_group<W: Write + Send>(writer: &mut SerializedFileWriter<W>, rows: &[Row]) -> Result<()> {
    let mut group = writer.next_row_group()?;
    for column in COLUMNS {
        let Some(mut open) = group.next_column()? else {
            return Err(ParquetError::General("a column is missing".into()));
        };
        match (&column.get, open.untyped()) {
            (Get::Int(get), ColumnWriter::Int64ColumnWriter(_)) => {
                let (values, levels) = columnar(rows, get);
                let typed = open.typed::<Int64Type>();
                typed.write_batch(&values, column.levels(&levels), None)?;
            }
            (Get::Text(get), ColumnWriter::ByteArrayColumnWriter(_)) => {
                let (values, levels) = columnar(rows, |row| get(row).map(text));
                let typed = open.typed::<ByteArrayType>();
                typed.write_batch(&values, column.levels(&levels), None)?;
            }
            _ => return Err(ParquetError::General(format!("column {}", column.name))),
        }
        open.close()?;
    }
    group.close()?;
    Ok(())
}

fn text(value: String) -> ByteArray {
    value.into_bytes().into()
}

/// The values that there are, and for each row whether there is one.
fn columnar<T>(rows: &[Row], get: impl Fn(&Row) -> Option<T>) -> (Vec<T>, Vec<i16>) {
    let values: Vec<Option<T>> = rows.iter().map(get).collect();
    let levels = values.iter().map(|value| i16::from(value.is_some()));
    let levels = levels.collect();
    (values.into_iter().flatten().collect(), levels)
}

/// A column: its name, and what a line has there.
struct Column {
    name: &'static str,
    logical: &'static str,
    is_always: bool,
    get: Get,
}

enum Get {
    Int(fn(&Row) -> Option<i64>),
    Text(fn(&Row) -> Option<String>),
}

impl Column {
    const fn int(name: &'static str, get: fn(&Row) -> Option<i64>) -> Self {
        Self {
            name,
            logical: "",
            is_always: false,
            get: Get::Int(get),
        }
    }

    const fn text(name: &'static str, get: fn(&Row) -> Option<String>) -> Self {
        Self {
            name,
            logical: " (STRING)",
            is_always: false,
            get: Get::Text(get),
        }
    }

    /// Every line has one.
    const fn always(self) -> Self {
        Self {
            is_always: true,
            ..self
        }
    }

    fn declaration(&self) -> String {
        let repetition = if self.is_always {
            "REQUIRED"
        } else {
            "OPTIONAL"
        };
        let physical = match self.get {
            Get::Int(_) => "INT64",
            Get::Text(_) => "BYTE_ARRAY",
        };
        let (name, logical) = (self.name, self.logical);
        format!("{repetition} {physical} {name}{logical}; ")
    }

    fn levels<'a>(&self, levels: &'a [i16]) -> Option<&'a [i16]> {
        (!self.is_always).then_some(levels)
    }
}

/// Numbers of lines are below 2^53 (chapter 30 §3).
fn int(number: u64) -> Option<i64> {
    i64::try_from(number).ok()
}

const COLUMNS: &[Column] = &[
    Column::int("seq", |(line, _)| int(line.seq)).always(),
    Column::int("event", |(line, _)| int(line.event)).always(),
    Column::text("hash", |(_, hash)| Some(hash.to_string())).always(),
    Column {
        name: "at",
        logical: " (TIMESTAMP(MICROS,true))",
        is_always: true,
        get: Get::Int(|(line, _)| int(line.at.micros())),
    },
    Column::text("op", |(line, _)| Some(line.op.as_str().to_owned())).always(),
    Column::text("source", |(line, _)| Some(line.source.clone())).always(),
    Column::text("pos", |(line, _)| Some(line.pos.clone())).always(),
    Column::text("table", |(line, _)| line.table.clone()),
    Column::text("key", |(line, _)| line.key.map(|key| key.to_string())),
    Column::text("patient", |(line, _)| line.patient.map(|it| it.to_string())),
    Column::text("row", |(line, _)| line.row.map(|row| row.to_string())),
    Column::text("raw", |(line, _)| line.raw.map(|raw| raw.to_string())),
    Column::text("actor_binding", |(line, _)| {
        line.actor.as_ref().map(|it| format!("{:?}", it.binding))
    }),
    Column::text("actor_person", |(line, _)| {
        line.actor.as_ref()?.person.map(|it| it.to_string())
    }),
    Column::text("actor_role", |(line, _)| line.actor.as_ref()?.role.clone()),
    Column::text("actor_app", |(line, _)| line.actor.as_ref()?.app.clone()),
    Column::text("actor_client", |(line, _)| {
        line.actor.as_ref()?.client.clone()
    }),
    Column::text("purpose", |(line, _)| line.purpose.clone()),
    Column::text("columns", |(line, _)| {
        serde_json::to_string(line.columns.as_ref()?).ok()
    }),
    Column::int("tx", |(line, _)| line.tx.and_then(int)),
    Column::int("prev", |(line, _)| line.prev.and_then(|it| int(it.seq))),
    Column::int("patient_prev", |(line, _)| {
        line.patient_prev.and_then(|it| int(it.seq))
    }),
    Column::text("finding_code", |(line, _)| {
        line.finding.as_ref().map(|it| it.code.to_string())
    }),
    Column::text("finding_text", |(line, _)| {
        line.finding.as_ref().map(|it| it.text.clone())
    }),
    Column::int("finding_about", |(line, _)| {
        line.finding.as_ref()?.about.and_then(int)
    }),
    Column::int("accepts", |(line, _)| {
        int(line.accept.as_ref()?.finding.seq)
    }),
    Column::int("releases", |(line, _)| int(line.release.as_ref()?.hold.seq)),
    Column::text("gap_from", |(line, _)| {
        line.gap.as_ref().map(|it| it.from.clone())
    }),
    Column::text("gap_to", |(line, _)| {
        line.gap.as_ref().map(|it| it.to.clone())
    }),
    Column::int("block", |(line, _)| {
        line.checkpoint.as_ref().and_then(|it| int(it.block))
    }),
];

/// Rows of a row group.
const ROWS: usize = 1 << 15;

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::Field;
    use pitser_evidence::Code;
    use pitser_evidence::codec::Bytes32;
    use pitser_evidence::line::{
        Acceptance, Actor, Binding, Finding, Gap, Op, Patient, Prev, Release, Timestamp,
    };

    use super::*;

    #[test]
    fn a_long_segment_is_several_row_groups() {
        let many = ROWS as u64 + 5;
        let mut lines = Vec::new();
        for seq in 1..=many {
            let at = Timestamp::from_micros(seq * 1_000_001).unwrap();
            let mut line = Line::new(Op::Read, seq, at, "ehr", seq.to_string());
            line.tx = (seq % 2 == 0).then_some(seq);
            lines.extend(line.encode());
            lines.push(b'\n');
        }
        let mut out = Vec::new();
        write(&lines, &mut out).unwrap();
        assert!(out.len() < lines.len());
        let reader = SerializedFileReader::new(Bytes::from(out)).unwrap();
        let groups = reader.metadata().row_groups();
        let rows: Vec<i64> = groups.iter().map(|group| group.num_rows()).collect();
        assert_eq!(rows, [ROWS as i64, 5]);
        for (row, seq) in reader.get_row_iter(None).unwrap().zip(1..) {
            let shown = row.unwrap().to_string();
            assert!(shown.starts_with(&format!("{{seq: {seq}, ")), "{shown}");
        }
    }

    /// Columns that few lines have, each where its line has it and nowhere else.
    #[test]
    fn what_a_line_is_about_is_a_column() {
        let prev = |seq| Prev {
            hash: Digest::of(&[]),
            seq,
        };
        let line = |op, seq| Line::new(op, seq, Timestamp::from_micros(seq).unwrap(), "ehr", "1");
        let decided = |op, seq| Line {
            actor: Some(Actor {
                app: None,
                binding: Binding::B,
                client: None,
                person: Some(Digest::of(&[b"who"])),
                role: None,
            }),
            patient: Some(Patient::Pseudonym(Bytes32([7; 32]))),
            raw: Some(Digest::of(&[b"why"])),
            ..line(op, seq)
        };
        let finding = Line {
            finding: Some(
                Finding {
                    about: Some(4),
                    code: Code::Unattributed,
                    text: "by nobody".into(),
                }
                .into(),
            ),
            ..line(Op::Finding, 5)
        };
        let accept = Line {
            accept: Some(Acceptance { finding: prev(5) }.into()),
            ..decided(Op::Accept, 6)
        };
        let gap = Line {
            gap: Some(
                Gap {
                    from: "1".into(),
                    to: "2".into(),
                }
                .into(),
            ),
            ..line(Op::Gap, 7)
        };
        let release = Line {
            release: Some(Release { hold: prev(8) }.into()),
            ..decided(Op::Release, 9)
        };
        let lines = [finding, accept, gap, decided(Op::Hold, 8), release];
        let bytes = lines.iter().flat_map(|line| {
            let mut bytes = line.encode();
            bytes.push(b'\n');
            bytes
        });
        let mut out = Vec::new();
        write(&bytes.collect::<Vec<u8>>(), &mut out).unwrap();
        let reader = SerializedFileReader::new(Bytes::from(out)).unwrap();
        let rare = |name: &str| {
            ["finding_", "accepts", "releases", "gap_"]
                .iter()
                .any(|rare| name.starts_with(rare))
        };
        let shown = reader.get_row_iter(None).unwrap().map(|row| {
            let row = row.unwrap();
            let columns = row.get_column_iter();
            let columns = columns.filter(|(name, value)| rare(name) && **value != Field::Null);
            let columns = columns.map(|(name, value)| format!("{name} {value}"));
            columns.collect::<Vec<_>>().join(", ")
        });
        assert_eq!(
            shown.collect::<Vec<_>>(),
            [
                r#"finding_code "ACT-01", finding_text "by nobody", finding_about 4"#,
                "accepts 5",
                r#"gap_from "1", gap_to "2""#,
                "",
                "releases 8",
            ]
        );
    }

    #[test]
    fn what_is_no_line_is_refused() {
        assert!(write(b"{}\n", &mut Vec::new()).is_err());
    }
}
