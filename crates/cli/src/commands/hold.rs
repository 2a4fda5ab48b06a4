//! `pitser hold`: legal holds against erasure (docs/erasure.md).

use super::erase::{Asking, text};
use crate::outcome::{Exit, Outcome};
use crate::output::{clean, print, print_json};
use pitser_guardian::erasure::Ask;
use serde_json::Value;

/// Arguments of `pitser hold`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Let nobody erase a patient, until the hold is lifted: a line of the trail
    Add {
        /// The patient's identifier in the database
        #[arg(long, value_name = "ID")]
        patient: String,
        /// Why; the trail commits to it, and the vault keeps it
        #[arg(long, value_name = "TEXT")]
        reason: String,
        #[command(flatten)]
        asking: Asking,
    },
    /// Lift a hold: another line of the trail
    Remove {
        /// The patient's identifier in the database
        #[arg(long, value_name = "ID")]
        patient: String,
        /// Which one, by its line, if several stand for the patient
        #[arg(long, value_name = "LINE")]
        line: Option<u64>,
        /// Why; the trail commits to it, and the vault keeps it
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        #[command(flatten)]
        asking: Asking,
    },
    /// Show all holds
    List {
        #[command(flatten)]
        asking: Asking,
    },
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> Outcome {
    let (asking, ask) = match args.command {
        Command::Add {
            patient,
            reason,
            asking,
        } => (asking, Ask::AddHold { patient, reason }),
        Command::Remove {
            patient,
            line,
            reason,
            asking,
        } => {
            let ask = Ask::RemoveHold {
                patient,
                line,
                reason,
            };
            (asking, ask)
        }
        Command::List { asking } => (asking, Ask::Holds {}),
    };
    let is_removal = matches!(ask, Ask::RemoveHold { .. });
    let answer = asking.ask(ask, None).await?;
    if asking.json {
        print_json(&answer)?;
        return Ok(Exit::Intact);
    }
    let what = if is_removal { "lifted " } else { "" };
    let hold = &answer["hold"];
    if hold.is_object() {
        print(&clean(&format!("{what}{}\n", describe(hold))))?;
        if hold["line"].is_null() {
            print(NOT_ON_RECORD)?;
        }
    }
    for held in answer["holds"].as_array().into_iter().flatten() {
        let line = format!("{}  {}\n", text(&held[0]), describe(&held[1]));
        print(&clean(&line))?;
    }
    Ok(Exit::Intact)
}

const NOT_ON_RECORD: &str = "\
It is not on record: the vault alone says it, as in every trail that was begun before holds had lines of their own.
Whoever may write there can take a hold away without a trace. Keep the order, and who was told of it, elsewhere.
";

fn describe(hold: &Value) -> String {
    let place = match hold["line"].as_u64() {
        Some(line) => format!("line {line}"),
        None => "not on record".into(),
    };
    format!(
        "hold of {} by {} ({place}): {}",
        text(&hold["at"]),
        text(&hold["by"]),
        text(&hold["reason"])
    )
}
