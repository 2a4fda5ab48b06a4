//! `pitser audit`: somebody who is not the operator replays a trail and signs what
//! came out; the operator puts that into evidence (docs/audit.md).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pitser_client::publications_file;
use pitser_evidence::Anchors;
use pitser_evidence::audit::Statement;
use pitser_guardian::archive::StoreArchive;
use pitser_guardian::audit::{AuditError, Audited, Auditor, Judge, SealCounts};
use pitser_tlog::checkpoint::Checkpoint;
use pitser_tlog::note::{Note, VerifierKey};
use pitser_trail::export::Exporter;
use pitser_trail::{Layout, ReadError, disk};
use zeroize::Zeroizing;

use crate::config::Config;
use crate::outcome::{Exit, Failure, Outcome, unreadable};
use crate::output::{Form, Judgement, Progress, State, Step, Verdict, plural, print};
use crate::service::Credentials;
use crate::signals::stop_requested;
use crate::store::s3_options;
use crate::tree::Map;
use crate::{clock, files, service};

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make an auditor's key and memory
    Init(Init),
    /// Replay a trail up to its newest cosigned head, and sign its log and map; exit code 1 if it
    /// is not what it says, 2 if something is missing, and then nothing is signed
    Follow(Box<Follow>),
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

/// Arguments of `pitser audit follow`.
#[derive(Debug, clap::Args)]
pub(crate) struct Follow {
    /// Folder of the trail, or a copy of it; nothing is written there
    #[arg(value_name = "TRAIL-DIR")]
    trail: PathBuf,
    /// What you trust: the trail's genesis hash, its witnesses, publications
    #[arg(long, value_name = "FILE")]
    anchors: PathBuf,
    #[command(flatten)]
    place: Place,
    /// Where the newest statement goes; the head that it is about is put beside it, as FILE.head
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Look again every so many seconds, until stopped
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    every: Option<u64>,
    /// Replay from the genesis on, whatever was replayed before; each time
    #[arg(long)]
    anew: bool,
    /// Where the operator's archived segments are: file:///FOLDER or s3://BUCKET/PREFIX, reached as the
    /// variables of AWS's programs say
    #[arg(long, value_name = "URL")]
    archive: Option<String>,
    /// Publications file that seals are judged by: a path or an address
    /// [default: the copy in the trail's folder]
    #[arg(short = 'P', long, value_name = "FILE|URI")]
    publications: Option<String>,
    #[command(flatten)]
    credentials: Credentials,
    #[command(flatten)]
    form: Form,
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
        Command::Follow(args) => follow(&args),
        Command::Give(args) => give(&args),
    }
}

fn init(args: &Init) -> Outcome {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::getrandom(&mut *seed)
        .map_err(|e| Failure::Service(format!("no random bytes: {e}")))?;
    let key = Auditor::create(&args.place.dir, &args.name, &seed).map_err(failure)?;
    print(&format!(
        "auditor  {}\nkey      {key}\n\n\
         Publish the key where people would look for it: verifiers put it into their anchors, as [[auditor]].\n\
         Then: pitser audit follow TRAIL-DIR --anchors ANCHORS.toml --dir {}\n",
        key.name(),
        args.place.dir.display(),
    ))?;
    Ok(Exit::Intact)
}

fn follow(args: &Follow) -> Outcome {
    let anchors = Anchors::from_toml(&files::read_text(&args.anchors)?)
        .map_err(|e| Failure::Input(format!("{}: {e}", args.anchors.display())))?;
    let mut auditor = Auditor::open(&args.place.dir).map_err(failure)?;
    let Some(seconds) = args.every else {
        return once(args, &mut auditor, &anchors);
    };
    let runtime = service::runtime()?;
    let mut stop = runtime.spawn(stop_requested());
    loop {
        match once(args, &mut auditor, &anchors) {
            Ok(Exit::Intact | Exit::Unconfirmed) => {}
            // Whoever watches must see this, and look.
            Ok(Exit::Broken) => return Ok(Exit::Broken),
            // A mount that is away, a full disk: they may come back.
            Err(failure @ Failure::Service(_)) => {
                tracing::warn!(%failure, "the trail could not be looked at; trying again");
            }
            Err(failure) => return Err(failure),
        }
        let stopped = runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(seconds), &mut stop)
                .await
                .is_ok()
        });
        if stopped {
            return Ok(Exit::Intact);
        }
    }
}

/// One look at the trail, and its answer.
fn once(args: &Follow, auditor: &mut Auditor, anchors: &Anchors) -> Outcome {
    let layout = layout(args)?;
    let publications = publications(args, &layout)?;
    let judge = Judge {
        anchors,
        publications: publications.as_deref(),
        anew: args.anew,
        clock: &clock::now,
    };
    let mut progress = Progress::new("lines");
    let audited = auditor.follow(&layout, judge, &mut |lines| progress.set(lines));
    progress.finish();
    match audited {
        Ok(audited) => {
            if let Some(path) = &args.output {
                hand_over(path, &audited)?;
            }
            signed(&audited, auditor).show(args.form)
        }
        Err(error) => refused(error)?.show(args.form),
    }
}

fn layout(args: &Follow) -> Result<Layout, Failure> {
    let layout = Layout::new(&args.trail);
    let Some(url) = &args.archive else {
        return Ok(layout);
    };
    let options = s3_options(url, None, "archive", Path::new("."))?;
    let cache = args.place.dir.join("archive-cache");
    Ok(layout.with_archive_cached(StoreArchive::new(url, options), cache, ARCHIVE_CACHE))
}

/// Bytes of archived segments that are kept once they were fetched: each is read once.
const ARCHIVE_CACHE: u64 = 64 << 20;

/// The publications file that was named, or the copy in the trail's folder. Whether it
/// is believed is for the anchors to say.
fn publications(args: &Follow, layout: &Layout) -> Result<Option<Vec<u8>>, Failure> {
    match &args.publications {
        Some(uri) if uri.contains("://") || uri.starts_with("file:") => {
            let options = args.credentials.options()?;
            service::ask(async { Ok(publications_file(uri, &options).await?) }).map(Some)
        }
        Some(path) => files::read(Path::new(path)).map(Some),
        None => Ok(fs::read(layout.publications()).ok()),
    }
}

/// The head first: a statement that is there has its head beside it.
fn hand_over(path: &Path, audited: &Audited) -> Result<(), Failure> {
    let signed = &audited.signed;
    disk::replace(&head_beside(path), signed.head.as_bytes()).map_err(Failure::service)?;
    disk::replace(path, signed.note.as_bytes()).map_err(Failure::service)
}

/// Where the head is that the statement in `note` is about.
fn head_beside(note: &Path) -> PathBuf {
    let mut name = note.as_os_str().to_owned();
    name.push(".head");
    name.into()
}

fn signed(audited: &Audited, auditor: &Auditor) -> Judgement {
    let statement = &audited.signed.statement;
    let Audited {
        is_new,
        lines,
        replayed,
        seals,
        ..
    } = audited;
    let steps = vec![
        Step::new("genesis", State::Matches, statement.genesis.to_string()),
        Step::new(
            "head",
            State::Matches,
            format!("{}, cosigned", plural(statement.size, "block")),
        ),
        Step::new(
            "lines",
            State::Matches,
            format!(
                "{lines} lines follow from each other; {} replayed now",
                plural(*replayed, "block")
            ),
        ),
        Step::new("seals", State::Matches, told(seals)),
        Step::new("map", State::Matches, statement.map_root.to_string()),
    ];
    let name = auditor.verifier().name().to_owned();
    let what = match is_new {
        true => "signed now",
        false => "signed before, and unchanged since",
    };
    Judgement {
        verdict: Verdict::Intact,
        code: None,
        summary: format!("every line up to this head was replayed; {what} by {name}"),
        steps,
        details: Map::new()
            .with("origin", &statement.origin)
            .with("block", statement.block)
            .with("lines", *lines)
            .with("replayed_blocks", *replayed)
            .with("signed", *is_new)
            .with("map_root", statement.map_root.to_string())
            .with("seals_published", seals.published)
            .with("seals_keyed", seals.keyed)
            .with("seals_unconfirmed", seals.unconfirmed)
            .with("unsealed", seals.waiting)
            .with("note", &audited.signed.note),
        remarks: String::new(),
    }
}

fn told(seals: &SealCounts) -> String {
    let met = seals.published + seals.keyed + seals.unconfirmed;
    format!(
        "{met} fit their blocks: {} under your publications, {} under the authority's key, {} that your anchors do \
         not reach; {} to come",
        seals.published, seals.keyed, seals.unconfirmed, seals.waiting
    )
}

/// What kept the auditor from signing, as a judgement if it is one.
fn refused(error: AuditError) -> Result<Judgement, Failure> {
    let (verdict, code, summary) = match &error {
        AuditError::Waiting(doubt) => (Verdict::Unconfirmed, None, doubt.to_string()),
        AuditError::Contradiction { code, text } => {
            (Verdict::Broken, Some(code.to_string()), text.clone())
        }
        AuditError::Trail(ReadError::Damaged(damage)) => {
            let line = damage.line.map(|line| format!(" line {line}"));
            let (path, line) = (damage.path.display(), line.unwrap_or_default());
            let text = format!("{path}{line}: {}", damage.text);
            (Verdict::Broken, Some(damage.code.to_string()), text)
        }
        _ => return Err(failure(error)),
    };
    let remarks = match verdict {
        Verdict::Broken => {
            "Nothing was signed. Keep these files and the auditor's folder as they are: they are evidence.\n"
        }
        _ => "Nothing was signed.\n",
    };
    Ok(Judgement {
        verdict,
        code,
        summary,
        steps: Vec::new(),
        details: Map::new().with("signed", false),
        remarks: remarks.into(),
    })
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
        AuditError::Disk(_) | AuditError::Map(_) => Failure::service(error),
    }
}

fn give(args: &Give) -> Outcome {
    let config = Config::read(&args.config)?;
    let layout = config
        .tuning()
        .layout(config.source(args.source.as_deref())?);
    let (note, statement) = signed_by(&args.note, &args.key)?;
    let head_path = head_beside(&args.note);
    let head_text = files::read_text(&head_path)?;
    let exporter = Exporter::open(layout.clone()).map_err(unreadable)?;
    let log_key = exporter.keys().log().verifier();
    if log_key.public_key() == args.key.public_key() {
        return Err(Failure::Input(
            "--key: this is the trail's own key, which never counts as an auditor's".into(),
        ));
    }
    let head = Note::parse(head_text.as_bytes()).ok().and_then(|note| {
        let head = Checkpoint::open(&note, log_key.name(), &log_key).ok()?;
        (head.size() == statement.size && *head.root() == statement.log_root).then_some(head)
    });
    if head.is_none() {
        return Err(Failure::Input(format!(
            "{}: this is not the head of this trail that the statement is about: \
             `pitser audit follow -o` puts it beside the statement",
            head_path.display()
        )));
    }
    let stated = (statement.genesis, statement.log_root, statement.map_root);
    if exporter.roots(statement.size).map_err(unreadable)? != Some(stated) {
        return Err(Failure::Tampered(format!(
            "TRL-04 {} replayed another trail than the one here: its log or map of {} is not ours. Keep both",
            args.key.name(),
            plural(statement.size, "block")
        )));
    }
    // The head first: without it the statement is of no use.
    disk::replace(&layout.audited(), head_text.as_bytes()).map_err(Failure::service)?;
    disk::replace(&layout.audit(), note.to_string().as_bytes()).map_err(Failure::service)?;
    args.form.show(
        &Map::new()
            .with("auditor", args.key.name())
            .with("origin", &statement.origin)
            .with("blocks", statement.size)
            .with("made_at", statement.made_at.to_string()),
    )?;
    Ok(Exit::Intact)
}

/// The statement in a file, if `key` signed it.
fn signed_by(path: &Path, key: &VerifierKey) -> Result<(Note, Statement), Failure> {
    let wrong = |what: String| Failure::Input(format!("{}: {what}", path.display()));
    let note = Note::parse(&files::read(path)?).map_err(|e| wrong(e.to_string()))?;
    let statement = Statement::parse(note.text()).map_err(|e| wrong(e.to_string()))?;
    note.verify(key)
        .map_err(|e| wrong(format!("not signed by {}: {e}", key.name())))?;
    Ok((note, statement))
}
