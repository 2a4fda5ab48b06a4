//! `pitser trail copy`: a backup of a trail beside its writer.

use super::trail::Which;
use crate::outcome::{Exit, Failure, Outcome};
use crate::output::{Form, Progress, plural, print};
use crate::tree::Map;
use pitser_trail::copy::{self, Copied, CopyError, CopyOptions, copy};
use std::path::PathBuf;

/// Arguments of `pitser trail copy`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder for the copy: a new one, or that of the copy before, to which what came since is added
    target: PathBuf,
    /// Folder of the trail; without it, the one that the configuration names
    dir: Option<PathBuf>,
    #[command(flatten)]
    which: Which,
    /// Leave out keys.json, vault.key and vault.key.wrapped, of which you keep a copy elsewhere: without them
    /// nobody opens what the copy holds, and no guardian goes on with it
    #[arg(long)]
    without_keys: bool,
    #[command(flatten)]
    form: Form,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Outcome {
    let layout = args.which.layout_in(args.dir.as_deref())?;
    let options = CopyOptions {
        without_keys: args.without_keys,
    };
    let mut shown = Shown::default();
    let copied = copy(&layout, &args.target, options, &mut |told| shown.tell(told));
    shown.finish();
    let copied = copied.map_err(failure)?;
    match args.form.json {
        true => args.form.show(&facts(args, copied))?,
        false => print(&text(args, copied))?,
    }
    Ok(Exit::Intact)
}

fn facts(args: &Args, copied: Copied) -> Map {
    Map::new()
        .with("target", args.target.display().to_string())
        .with("lines", copied.lines)
        .with("blocks", copied.blocks)
        .with("sealed_blocks", copied.sealed)
        .with("replayed_blocks", copied.replayed)
        .with("copied_bytes", copied.bytes)
        .with("keys", copied.has_keys)
}

fn text(args: &Args, copied: Copied) -> String {
    let waiting = copied.blocks - copied.sealed;
    format!(
        "{} has {} in {}{}\nreplayed   {}, copied {} bytes\n{}",
        args.target.display(),
        plural(copied.lines, "line"),
        plural(copied.blocks, "block"),
        match waiting {
            0 => String::new(),
            waiting => format!(", of which {waiting} without a seal yet"),
        },
        plural(copied.replayed, "block"),
        copied.bytes,
        match (copied.has_keys, args.without_keys) {
            (false, _) => "the secret keys are not in it\n",
            (true, false) => "the secret keys are in it: whoever has it opens what it holds\n",
            (true, true) =>
                "secret keys are in it that somebody else put there, and that stay: take them away before others get it\n",
        }
    )
}

fn failure(error: CopyError) -> Failure {
    match error {
        CopyError::Read(error) => Failure::reading(&error),
        // Their texts begin with the code.
        error @ (CopyError::Shorter { .. } | CopyError::Forked(_)) => {
            Failure::Tampered(error.to_string())
        }
        error @ (CopyError::Locked(_) | CopyError::Inside(_) | CopyError::Other(_)) => {
            Failure::input(error)
        }
        error => Failure::service(error),
    }
}

/// How far it is: bytes first, then lines.
#[derive(Default)]
struct Shown {
    bytes: Option<Progress>,
    lines: Option<Progress>,
}

impl Shown {
    fn tell(&mut self, told: copy::Progress) {
        match told {
            copy::Progress::Copied(bytes) => {
                let shown = self.bytes.get_or_insert_with(|| Progress::new("bytes"));
                shown.set(bytes);
            }
            copy::Progress::Replayed(lines) => {
                let shown = self.lines.get_or_insert_with(|| Progress::new("lines"));
                shown.set(lines);
            }
        }
    }

    fn finish(self) {
        [self.bytes, self.lines]
            .into_iter()
            .flatten()
            .for_each(Progress::finish);
    }
}
