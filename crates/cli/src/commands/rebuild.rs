//! `pitser trail rebuild`: make the map and the index anew from the segments.

use crate::config::Config;
use crate::outcome::{Exit, Failure, Outcome};
use crate::output::{Progress, plural, print, print_json};
use pitser_guardian::rebuild;
use pitser_trail::Layout;
use serde_json::json;
use std::path::PathBuf;

/// Arguments of `pitser trail rebuild`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the trail; without it, the one that the configuration names
    dir: Option<PathBuf>,
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
    let layout = match &args.dir {
        Some(dir) => Layout::new(dir),
        None => {
            let config = Config::read(&args.config)?;
            let source = config.source(args.source.as_deref())?;
            config.tuning().layout(source)
        }
    };
    let mut progress = Progress::new("lines");
    let rebuilt = rebuild(layout, &mut |lines| progress.set(lines));
    progress.finish();
    let rebuilt = rebuilt.map_err(|error| match error {
        pitser_trail::TrailError::Read(error) => Failure::reading(&error),
        pitser_trail::TrailError::Locked(_) => Failure::input(error),
        error => Failure::service(error),
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
