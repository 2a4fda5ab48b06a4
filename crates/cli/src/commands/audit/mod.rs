//! `pitser audit`: somebody who is not the operator replays a trail and signs what
//! came out; the operator puts that into evidence (docs/audit.md).

mod follow;

use std::path::{Path, PathBuf};

use pitser_evidence::Code;
use pitser_guardian::audit::{AuditError, Auditor, NotTaken, Proper};
use pitser_tlog::note::VerifierKey;
use pitser_trail::ReadError;
use zeroize::Zeroizing;

use crate::config::Config;
use crate::files;
use crate::outcome::{Exit, Failure, Outcome, unreadable};
use crate::output::{Form, print};
use crate::tree::Map;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make an auditor's key and memory
    Init(Init),
    /// Replay a trail up to its newest cosigned head, and sign its log and map; exit code 1 if it
    /// is not what it says, 2 if something is missing, and then nothing is signed
    Follow(Box<follow::Follow>),
    /// For the operator: take an auditor's statement, which evidence will have from now on
    Give(Box<Give>),
}

#[derive(Debug, clap::Args)]
struct Place {
    /// The auditor's folder: the key, what it has signed, the maps of the trails
    #[arg(long, value_name = "DIR", env = "PITSER_AUDITOR")]
    dir: PathBuf,
}

/// Arguments of `pitser audit init`.
#[derive(Debug, clap::Args)]
pub(crate) struct Init {
    #[command(flatten)]
    place: Place,
    /// The key's name, such as chamber.example/auditor: a name in a domain of yours
    #[arg(long, value_name = "NAME")]
    name: String,
}

/// Arguments of `pitser audit give`.
#[derive(Debug, clap::Args)]
pub(crate) struct Give {
    /// The statement, with the head that it is about beside it as NOTE.head
    #[arg(value_name = "NOTE")]
    note: PathBuf,
    /// The auditor's key, as `audit init` printed it
    #[arg(long, value_name = "VKEY")]
    key: VerifierKey,
    /// Configuration file
    #[arg(long, default_value = "pitser.toml", env = "PITSER_CONFIG")]
    config: PathBuf,
    /// Which source, if there are several
    #[arg(long)]
    source: Option<String>,
    #[command(flatten)]
    form: Form,
}

/// Runs the command.
pub(crate) fn run(command: Command) -> Outcome {
    match command {
        Command::Init(args) => init(&args),
        Command::Follow(args) => follow::run(&args),
        Command::Give(args) => give(&args),
    }
}

fn init(args: &Init) -> Outcome {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::getrandom(&mut *seed)
        .map_err(|e| Failure::Service(format!("no random bytes: {e}")))?;
    let key = Auditor::create(&args.place.dir, &args.name, &seed).map_err(failure)?;
    let auditor = Auditor::open(&args.place.dir, None).map_err(failure)?;
    print(&format!(
        "auditor  {}\nkey      {key}\nsamples  {}\n\n\
         Publish the key where people would look for it: verifiers put it into their anchors, as [[auditor]].\n\
         With the other one they see that you did not choose the rows that you have opened.\n\
         Operators put it into their configuration, as [[auditor]], to let you follow over HTTP.\n\
         Then: pitser audit follow URL|TRAIL-DIR --anchors ANCHORS.toml --dir {}\n",
        key.name(),
        auditor.sampling_key(),
        args.place.dir.display(),
    ))?;
    Ok(Exit::Intact)
}

fn give(args: &Give) -> Outcome {
    let config = Config::read(&args.config)?;
    let layout = config
        .tuning()
        .layout(config.source(args.source.as_deref())?);
    let head_path = head_beside(&args.note);
    let (note, head) = (files::read(&args.note)?, files::read(&head_path)?);
    let proper = Proper::new(&layout, &args.key, &note, &head).map_err(|error| match error {
        NotTaken::Head => Failure::Input(format!("{}: {error}", head_path.display())),
        NotTaken::Statement(what) => Failure::Input(format!("{}: {what}", args.note.display())),
        NotTaken::Forked { .. } => Failure::Tampered(format!("{} {error}", Code::TrailForked)),
        NotTaken::Trail(error) => unreadable(error),
        NotTaken::Disk(error) => Failure::service(error),
    })?;
    proper.take(&layout).map_err(Failure::service)?;
    let statement = &proper.statement;
    args.form.show(
        &Map::new()
            .with("auditor", args.key.name())
            .with("origin", &statement.origin)
            .with("blocks", statement.size)
            .with("made_at", statement.made_at.to_string()),
    )?;
    Ok(Exit::Intact)
}

/// Where the head is that the statement in `note` is about.
fn head_beside(note: &Path) -> PathBuf {
    let mut name = note.as_os_str().to_owned();
    name.push(".head");
    name.into()
}

fn failure(error: AuditError) -> Failure {
    match error {
        AuditError::Trail(ReadError::Elsewhere(path)) => Failure::Input(format!(
            "{}: this segment is in the operator's archive; name it with --archive",
            path.display()
        )),
        AuditError::Trail(error) => Failure::reading(&error),
        AuditError::Contradiction { .. } => Failure::Tampered(error.to_string()),
        AuditError::Waiting(_) | AuditError::Folder { .. } => Failure::input(error),
        AuditError::Disk(_) | AuditError::Map(_) | AuditError::Remote(_) => Failure::service(error),
    }
}
