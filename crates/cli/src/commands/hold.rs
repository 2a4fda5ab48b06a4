//! `pitser hold`: legal holds against erasure.

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
    /// Let nobody erase a patient, until the hold is removed
    Add {
        /// The patient's identifier in the database
        #[arg(long, value_name = "ID")]
        patient: String,
        /// Why; kept in the vault
        #[arg(long, value_name = "TEXT")]
        reason: String,
        #[command(flatten)]
        asking: Asking,
    },
    /// Lift a hold
    Remove {
        /// The patient's identifier in the database
        #[arg(long, value_name = "ID")]
        patient: String,
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
        Command::Remove { patient, asking } => (asking, Ask::RemoveHold { patient }),
        Command::List { asking } => (asking, Ask::Holds {}),
    };
    let is_removal = matches!(ask, Ask::RemoveHold { .. });
    let answer = asking.ask(ask, None).await?;
    if asking.json {
        print_json(&answer)?;
        return Ok(Exit::Intact);
    }
    let what = if is_removal { "lifted " } else { "" };
    if answer["hold"].is_object() {
        print(&clean(&format!("{what}{}\n", describe(&answer["hold"]))))?;
    }
    for held in answer["holds"].as_array().into_iter().flatten() {
        let line = format!("{}  {}\n", text(&held[0]), describe(&held[1]));
        print(&clean(&line))?;
    }
    Ok(Exit::Intact)
}

fn describe(hold: &Value) -> String {
    format!(
        "hold of {} by {}: {}",
        text(&hold["at"]),
        text(&hold["by"]),
        text(&hold["reason"])
    )
}
