//! `pitser history`: the life of a record, or of everything about a patient.

use crate::config::Config;
use crate::outcome::{Exit, Failure, Outcome, unreadable};
use crate::output::{one_line, print};
use pitser_capture::sqlite;
use pitser_evidence::line::{Line, Op};
use pitser_trail::export::{Entry, Exporter};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Arguments of `pitser history`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Table of the record
    #[arg(required_unless_present = "patient")]
    table: Option<String>,
    /// Key of the record; for a key of several columns, all of them in order
    #[arg(required_unless_present = "patient")]
    key: Vec<String>,
    /// Everything about this patient instead
    #[arg(long, value_name = "ID", conflicts_with_all = ["table", "key"])]
    patient: Option<String>,
    /// Configuration file
    #[arg(long, default_value = "pitser.toml", env = "PITSER_CONFIG")]
    config: PathBuf,
    /// Which source, if there are several
    #[arg(long)]
    source: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Outcome {
    let config = Config::read(&args.config)?;
    let source = config.source(args.source.as_deref())?;
    let mut exporter = Exporter::open(config.tuning().layout(source)).map_err(unreadable)?;
    let entries = match (&args.patient, &args.table) {
        (Some(patient), _) => exporter.patient_history(patient),
        (None, Some(table)) => {
            let table = full_name(&exporter, table);
            let cells = key_cells(&exporter, &table, &args.key)?;
            exporter.record_history(&table, &cells)
        }
        (None, None) => {
            return Err(Failure::Input(
                "name a table and a key, or --patient ID".into(),
            ));
        }
    };
    let entries = entries.map_err(unreadable)?;
    let mut open = BTreeSet::new();
    let mut between = "";
    if args.json {
        print(r#"{"lines":["#)?;
    }
    for entry in entries {
        let entry = entry.map_err(unreadable)?;
        match args.json {
            true => print(&format!("{between}{}", as_json(&entry)))?,
            false => print(&as_text(&entry))?,
        }
        between = ",";
        if entry.line.op == Op::Finding {
            open.insert(entry.line.seq);
        }
        if let Some(accept) = &entry.line.accept {
            open.remove(&accept.finding.seq);
        }
    }
    if args.json {
        print("]}\n")?;
    }
    Ok(match open.is_empty() {
        true => Exit::Intact,
        false => Exit::Broken,
    })
}

/// A table's name in the trail: in PostgreSQL, `public.` need not be said.
fn full_name(exporter: &Exporter, table: &str) -> String {
    let genesis = exporter.genesis();
    let has = |name: &str| {
        let mut tables = genesis.iter().flat_map(|genesis| &genesis.tables);
        tables.any(|table| table.name == name)
    };
    let full = format!("public.{table}");
    match !has(table) && has(&full) {
        true => full,
        false => table.to_owned(),
    }
}

/// The canonical values of a key as a person spells it. Text first; a number
/// where no record has the text.
fn key_cells(exporter: &Exporter, table: &str, words: &[String]) -> Result<Vec<Vec<u8>>, Failure> {
    let known = exporter
        .genesis()
        .map(|g| g.tables.clone())
        .unwrap_or_default();
    if let Some(guarded) = known.iter().find(|t| t.name == table)
        && guarded.key.len() != words.len()
    {
        return Err(Failure::Input(format!(
            "the key of {table} is ({}): give {} values",
            guarded.key.join(", "),
            guarded.key.len()
        )));
    }
    let as_text: Vec<_> = words.iter().map(|w| bytes(&sqlite::text(w))).collect();
    let as_numbers: Option<Vec<_>> = words
        .iter()
        .map(|w| w.parse().ok().map(|n| bytes(&sqlite::integer(n))))
        .collect();
    let has_text = exporter.has_record(table, &as_text).map_err(unreadable)?;
    Ok(match as_numbers {
        Some(numbers) if !has_text => numbers,
        _ => as_text,
    })
}

fn bytes(cell: &pitser_capture::Cell) -> Vec<u8> {
    cell.expose().unwrap_or_default().to_vec()
}

/// One line for people: when, what, where, who, and how far it is proved.
fn as_text(entry: &Entry) -> String {
    let line = &entry.line;
    let person = entry.content.as_ref().and_then(|c| c.person.clone());
    let mut out = format!(
        "{}  {:<8} {}",
        line.at,
        line.op.as_str(),
        line.table.as_deref().unwrap_or("-")
    );
    if let Some(columns) = line.columns.as_ref().filter(|c| !c.is_empty()) {
        out += &format!(" [{}]", columns.join(", "));
    }
    if let Some(actor) = &line.actor {
        let who = person
            .or_else(|| actor.role.clone())
            .unwrap_or_else(|| "?".into());
        out += &format!(
            "  by {who} via {} (binding {:?})",
            actor.app.as_deref().unwrap_or("?"),
            actor.binding
        );
    }
    if let Some(finding) = &line.finding {
        out += &format!("  {} {}", finding.code, finding.text);
    }
    if let Some(accept) = &line.accept {
        out += &format!("  answers for the finding of line {}", accept.finding.seq);
    }
    if let Some(release) = &line.release {
        out += &format!("  lifts the hold of line {}", release.hold.seq);
    }
    if let Some(reason) = reason(entry) {
        out += &format!(": {reason}");
    }
    if let Some(erase) = &line.erase {
        out += &format!("  on the basis: {}", erase.basis);
    }
    let deciders = entry.content.as_ref().and_then(|c| c.deciders.as_ref());
    if let Some([first, second]) = deciders {
        out += &format!("  decided by {first}, {second}");
    }
    let (line, proof) = (line.seq, proof(entry));
    format!("{}\n    line {line} · {proof}\n", one_line(&out))
}

/// Why somebody decided what the line says, as far as it opens.
fn reason(entry: &Entry) -> Option<String> {
    let raw = entry.content.as_ref()?.raw.as_ref();
    let raw = raw.filter(|_| entry.line.op.is_answered_for())?;
    Some(String::from_utf8_lossy(raw).into_owned())
}

fn proof(entry: &Entry) -> String {
    let Some(block) = entry.block else {
        return "in the open block, not sealed yet".into();
    };
    let sealed = match entry.sealed_at {
        Some(at) => format!("sealed {at}"),
        None => "waiting for its seal".into(),
    };
    let witnessed = if entry.witnessed {
        ", under a cosigned head"
    } else {
        ""
    };
    let published = if entry.published { ", published" } else { "" };
    format!("block {block}, {sealed}{witnessed}{published}")
}

fn as_json(entry: &Entry) -> Value {
    json!({
        "line": line_json(&entry.line),
        "deciders": entry.content.as_ref().and_then(|c| c.deciders.clone()),
        "reason": reason(entry),
        "person": entry.content.as_ref().and_then(|c| c.person.clone()),
        "row": entry.content.as_ref().and_then(|c| c.row.as_ref()).map(|row| {
            row.iter()
                .map(|(name, value)| (name.to_owned(), value.map_or(Value::Null, |v| String::from_utf8_lossy(v).into())))
                .collect::<serde_json::Map<_, _>>()
        }),
        "block": entry.block,
        "sealed_at": entry.sealed_at.map(|t| t.to_string()),
        "witnessed": entry.witnessed,
        "published": entry.published,
    })
}

fn line_json(line: &Line) -> Value {
    serde_json::from_slice(&line.encode()).unwrap_or(Value::Null)
}
