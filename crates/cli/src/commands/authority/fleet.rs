//! `pitser authority fleet`: the trails that guardians have registered.

use std::fmt::Write as _;
use std::net::SocketAddr;

use serde_json::Value;

use super::ask::shown;
use super::config::Place;
use crate::outcome::{Exit, Failure, Outcome};
use crate::output::{self, Form, plural, print, print_json};

/// Arguments of `pitser authority fleet`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// Ask at this monitor address, whatever the configuration says
    #[arg(long, value_name = "ADDRESS")]
    monitor: Option<SocketAddr>,
    #[command(flatten)]
    form: Form,
}

/// Runs the command.
pub(super) fn run(args: &Args) -> Outcome {
    let (status, list) = shown(&args.place, args.monitor, "/fleet.json")?;
    if status != 200 || !list["trails"].is_array() {
        return Err(Failure::Service(format!(
            "the authority does not show its fleet (HTTP {status})"
        )));
    }
    if args.form.json {
        print_json(&list)?;
    } else {
        print(&output::clean(&text(&list)))?;
    }
    let is = |name: &str| list[name].as_u64().unwrap_or(0) > 0;
    Ok(match (is("forked") || is("refused"), is("silent")) {
        (true, _) => Exit::Broken,
        (false, true) => Exit::Unconfirmed,
        (false, false) => Exit::Intact,
    })
}

fn text(list: &Value) -> String {
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let mut out = String::new();
    for trail in list["trails"].as_array().into_iter().flatten() {
        let string = |name: &str| trail[name].as_str().unwrap_or("never");
        let witnessed = match number(&trail["witnessed_by"]) {
            0 => "not witnessed".to_owned(),
            by => format!(
                "{} witnessed by {by} of {}",
                number(&trail["witnessed"]),
                number(&trail["witnesses"])
            ),
        };
        let seen = match trail["seen_at"].as_str() {
            Some(_) => format!("seen {} s ago", number(&trail["seen_age_s"])),
            None => "no head yet".to_owned(),
        };
        let _ = writeln!(
            out,
            "{}\n  {}, {witnessed}, {seen}, user {}\n  genesis {} of {}, entry {}",
            string("origin"),
            plural(number(&trail["size"]), "block"),
            string("user"),
            string("genesis"),
            string("begun_at"),
            number(&trail["entry"]),
        );
        troubles(&mut out, trail);
    }
    let log = &list["log"];
    let _ = writeln!(
        out,
        "{} registered, {} silent, {} shrunk or forked, {} refused; log of {}, {} witnessed",
        number(&list["registered"]),
        number(&list["silent"]),
        number(&list["forked"]),
        number(&list["refused"]),
        plural(number(&log["size"]), "registration"),
        number(&log["witnessed"]),
    );
    for trouble in log["troubles"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "  not cosigned: {}", trouble.as_str().unwrap_or(""));
    }
    if let Some(away) = log["away"].as_str() {
        let _ = writeln!(out, "  this node registers nothing: {away}");
    }
    out
}

fn troubles(out: &mut String, trail: &Value) {
    let at = |found: &Value| found["at"].as_str().unwrap_or("").to_owned();
    for (name, what) in [
        (
            "forked",
            "FORKED: another trail of the same length was sent",
        ),
        ("shrunk", "SHRUNK: it was longer before"),
    ] {
        if trail[name].is_object() {
            let _ = writeln!(out, "  {what}, {}; --json has both heads", at(&trail[name]));
        }
    }
    for other in trail["refused"].as_array().into_iter().flatten() {
        let _ = writeln!(
            out,
            "  ANOTHER TRAIL of this name was begun and refused, {}, entry {}, genesis {}",
            at(other),
            other["entry"],
            other["genesis"].as_str().unwrap_or("")
        );
    }
    for other in trail["same_database_as"].as_array().into_iter().flatten() {
        let other = other.as_str().unwrap_or("");
        let _ = writeln!(out, "  the same database as {other}");
    }
    if trail["silent"] == true {
        let _ = writeln!(out, "  SILENT for {} s", trail["seen_age_s"]);
    }
}
