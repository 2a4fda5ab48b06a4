//! `pitser trail`: recompute a whole trail and name the first thing that is wrong;
//! move what is closed to an archive; copy it beside its writer; make map and index anew.

use super::{copy, rebuild};
use crate::config::Config;
use crate::files;
use crate::outcome::{Exit, Failure, Outcome};
use crate::output::{Form, Judgement, State, Step, Verdict, print};
use crate::tree::Map;
use pitser_tlog::checkpoint::Checkpoint;
use pitser_tlog::note::{Note, VerifierKey};
use pitser_trail::archive::{MoveError, MoveOptions, move_segments};
use pitser_trail::master::move_to_keeper;
use pitser_trail::{Layout, ReadError, TrailError, View, check};
use std::path::{Path, PathBuf};

/// Arguments of `pitser trail`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Recompute lines, blocks, interlinks, seals, log and map from the files
    Verify(Verify),
    /// Move closed segments, compressed, to the store that `[archive]` of the configuration names
    Archive(ArchiveArgs),
    /// Copy the whole trail, vault and keys too, while a guardian may write it: a backup that is a trail itself
    Copy(copy::Args),
    /// Have the token of `[source.vault_token]` wrap the vault's master key, which a file holds; no guardian
    /// may be running
    Rewrap(Rewrap),
    /// Make the map and the index anew from the lines; no guardian may be running
    Rebuild(rebuild::Args),
}

/// Which trail.
#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// Configuration file
    #[arg(long, default_value = "pitser.toml", env = "PITSER_CONFIG")]
    config: PathBuf,
    /// Which source, if there are several
    #[arg(long)]
    source: Option<String>,
}

impl Which {
    pub(super) fn layout(&self) -> Result<Layout, Failure> {
        let config = Config::read(&self.config)?;
        let source = config.source(self.source.as_deref())?;
        Ok(config.tuning().layout(source))
    }

    /// The trail in `dir`, if that is one: of the configuration its archive alone counts then,
    /// and only if some of the trail is in one.
    pub(super) fn layout_in(&self, dir: Option<&Path>) -> Result<Layout, Failure> {
        let Some(dir) = dir else {
            return self.layout();
        };
        let layout = Layout::new(dir);
        let mut numbers = layout.segment_numbers().unwrap_or_default().into_iter();
        let is_archived = numbers.any(|number| layout.receipt(number).exists());
        match is_archived && self.config.exists() {
            true => Ok(Config::read(&self.config)?.tuning().with_archive(layout)),
            false => Ok(layout),
        }
    }
}

#[derive(Debug, clap::Args)]
struct ArchiveArgs {
    #[command(flatten)]
    which: Which,
    /// How many of the newest closed segments stay here: at least one, with which the trail
    /// is opened while the archive is away
    #[arg(long, default_value_t = 1)]
    keep: usize,
    /// Write the same events as Parquet beside them
    #[arg(long)]
    parquet: bool,
    #[command(flatten)]
    form: Form,
}

#[derive(Debug, clap::Args)]
struct Rewrap {
    #[command(flatten)]
    which: Which,
    /// The file with the key, or credential:NAME; without it, vault.key in the trail's folder
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    #[command(flatten)]
    form: Form,
}

#[derive(Debug, clap::Args)]
struct Verify {
    /// Folder of the trail; without it, the one that the configuration names
    dir: Option<PathBuf>,
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    form: Form,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Outcome {
    match &args.command {
        Command::Verify(args) => verify(args),
        Command::Archive(args) => archive(args),
        Command::Copy(args) => copy::run(args),
        Command::Rewrap(args) => rewrap(args),
        Command::Rebuild(args) => rebuild::run(args),
    }
}

fn archive(args: &ArchiveArgs) -> Outcome {
    let options = MoveOptions {
        // Its last line and seal are what a trail goes on from.
        keep: args.keep.max(1),
        parquet: args.parquet,
    };
    let (mut segments, mut freed, mut stored) = (0u64, 0, 0);
    let moved = move_segments(&args.which.layout()?, options, |moved| {
        segments += 1;
        freed += moved.freed;
        stored += moved.stored;
        tracing::info!(segment = moved.segment, "moved to the archive");
    });
    match moved {
        Ok(()) => {}
        Err(MoveError::Read(error)) => return Err(Failure::reading(&error)),
        Err(
            error @ (MoveError::NoArchive
            | MoveError::Locked(_)
            | MoveError::Taken { .. }
            | MoveError::Parquet(_)),
        ) => {
            return Err(Failure::input(error));
        }
        Err(error) => return Err(Failure::service(error)),
    }
    let told = Map::new()
        .with("segments", segments)
        .with("freed_bytes", freed)
        .with("stored_bytes", stored);
    args.form.show(&told)?;
    Ok(Exit::Intact)
}

fn rewrap(args: &Rewrap) -> Outcome {
    // What somebody names on the command line starts here, not at the configuration.
    let here = Path::new("");
    let from = args.from.as_deref();
    let from = from.map(|file| files::guarded(here, "--from", file));
    let from = from.transpose()?.map(|(path, _)| path);
    let moved = move_to_keeper(&args.which.layout()?, from.as_deref());
    let moved = moved.map_err(|error| match error {
        error @ TrailError::Locked(_) => Failure::input(error),
        error => Failure::opening(error),
    })?;
    let mut told = Map::new().with("wrapped", moved.wrapped.display().to_string());
    if let Some(removed) = &moved.removed {
        told = told.with("removed", removed.display().to_string());
    }
    args.form.show(&told)?;
    if !args.form.json {
        print(REMAINS)?;
    }
    Ok(Exit::Intact)
}

/// What the command cannot do.
const REMAINS: &str = "\
Whoever has an old copy of the key file still opens every vault that it was for: destroy it in all backups and
snapshots, but for one copy out of reach, if the token has no backup of its own. The token's key and
vault.key.wrapped are needed together from now on: back up both.
";

fn verify(args: &Verify) -> Outcome {
    let layout = args.which.layout_in(args.dir.as_deref())?;
    match check(&layout) {
        Ok(view) => intact(&layout, &view).show(args.form),
        Err(ReadError::Damaged(damage)) => Judgement {
            verdict: Verdict::Broken,
            code: Some(damage.code.to_string()),
            summary: format!("{}{}: {}", damage.path.display(), damage.line.map(|l| format!(" line {l}")).unwrap_or_default(), damage.text),
            steps: Vec::new(),
            details: Map::new(),
            remarks: "Keep these files as they are: they are evidence. Restore the trail from its copy, and see docs/spec.\n".into(),
        }
        .show(args.form),
        Err(error) => Err(Failure::reading(&error)),
    }
}

fn intact(layout: &Layout, view: &View) -> Judgement {
    let blocks = view.log().size();
    let sealed = blocks - view.seals.waiting.len() as u64;
    let mut steps = vec![
        Step::new("genesis", State::Matches, view.genesis_hash.to_string()),
        Step::new(
            "lines",
            State::Matches,
            format!("{} lines follow from each other", view.state.next_seq()),
        ),
        Step::new(
            "blocks",
            State::Matches,
            format!("{blocks} blocks, each continuing the one before"),
        ),
        Step::new(
            "map",
            State::Matches,
            format!(
                "the root of every block follows; {} patients",
                view.state.patients()
            ),
        ),
    ];
    let seals = format!("{sealed} of {blocks} blocks are sealed, consistently with their roots");
    let all_sealed = sealed == blocks && view.tail.is_empty();
    steps.push(Step::new(
        "seals",
        if all_sealed {
            State::Matches
        } else {
            State::Waiting
        },
        seals,
    ));
    let head = head_step(layout, view);
    let contradicted = head.state == State::Broken;
    let has_head = head.state == State::Matches;
    // Somebody has put something else where the head was.
    let is_garbled = !has_head && layout.head().exists();
    steps.push(head);
    let verdict = if contradicted {
        Verdict::Broken
    } else if all_sealed && !is_garbled {
        Verdict::Intact
    } else {
        Verdict::Unconfirmed
    };
    Judgement {
        verdict,
        code: contradicted.then(|| "TRL-03".to_owned()),
        summary: match verdict {
            Verdict::Broken => "the trail is not what its own cosigned head says".into(),
            Verdict::Unconfirmed if is_garbled => {
                "consistent, but its head.note is not a head of this trail: take it from a copy, or from a witness"
                    .into()
            }
            Verdict::Unconfirmed => format!(
                "consistent; {} lines wait for a block or its seal",
                unsealed_lines(view)
            ),
            Verdict::Intact if has_head => {
                "the trail is consistent from its genesis to its end".into()
            }
            Verdict::Intact => "the trail is consistent from its genesis to its end. No cosigned head is kept here: \
                 that something was cut off at the end would not show"
                .into(),
        },
        steps,
        details: Map::new()
            .with("lines", view.state.next_seq())
            .with("blocks", blocks),
        remarks: String::new(),
    }
}

fn unsealed_lines(view: &View) -> u64 {
    let waiting = view.seals.waiting.iter();
    waiting.map(|leaf| leaf.count).sum::<u64>() + view.tail.len() as u64
}

/// The newest cosigned head against the log as recomputed.
fn head_step(layout: &Layout, view: &View) -> Step {
    let log_key: Option<VerifierKey> = view.state.genesis().and_then(|g| g.log_key.parse().ok());
    let bytes = match std::fs::read(layout.head()) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Step::new("head", State::Waiting, "no cosigned head is kept here");
        }
        Err(e) => {
            let text = format!("{} cannot be read: {e}", layout.head().display());
            return Step::new("head", State::Waiting, text);
        }
    };
    let head = Note::parse(&bytes).ok().and_then(|note| {
        let key = log_key?;
        Checkpoint::open(&note, key.name(), &key).ok()
    });
    let Some(head) = head else {
        let text = "head.note is not a head that this trail's key has signed";
        return Step::new("head", State::Waiting, text);
    };
    let size = head.size();
    let (state, text) = match view.log().root_at(size) {
        Ok(Some(root)) if root == *head.root() => (
            State::Matches,
            format!("the head over {size} blocks is a beginning of this trail"),
        ),
        Ok(Some(_)) => (
            State::Broken,
            "the cosigned head has another root: the trail was rewritten".to_owned(),
        ),
        Ok(None) => (
            State::Broken,
            format!(
                "witnesses have seen {size} blocks, there are {}",
                view.log().size()
            ),
        ),
        Err(error) => (State::Waiting, error.to_string()),
    };
    Step::new("head", state, text)
}
