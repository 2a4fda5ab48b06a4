//! `pitser trail rebuild`: make the map and the index anew from the segments.

use super::trail::Which;
use crate::outcome::{Exit, Failure, Outcome};
use crate::output::{Progress, plural, print, print_json};
use pitser_guardian::rebuild;
use serde_json::json;
use std::path::PathBuf;

/// Arguments of `pitser trail rebuild`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the trail; without it, the one that the configuration names
    dir: Option<PathBuf>,
    #[command(flatten)]
    which: Which,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Outcome {
    let layout = args.which.layout_in(args.dir.as_deref())?;
    let mut progress = Progress::new("lines");
    let rebuilt = rebuild(layout, &mut |lines| progress.set(lines));
    progress.finish();
    let rebuilt = rebuilt.map_err(|error| match error {
        pitser_trail::TrailError::Locked(_) => Failure::input(error),
        error => Failure::opening(error),
    })?;
    if args.json {
        print_json(&json!({
            "lines": rebuilt.lines, "blocks": rebuilt.blocks,
            "patients": rebuilt.patients, "bytes": rebuilt.bytes,
        }))?;
    } else {
        print(&format!(
            "map and index made anew from {} in {}; {} patients, {} bytes\n",
            plural(rebuilt.lines, "line"),
            plural(rebuilt.blocks, "block"),
            rebuilt.patients,
            rebuilt.bytes,
        ))?;
    }
    Ok(Exit::Intact)
}
