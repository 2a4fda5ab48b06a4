//! `pitser audit follow`: the replay of a trail in a folder, or at a running guardian.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pitser_client::site::Site as Way;
use pitser_client::{Endpoint, publications_file};
use pitser_evidence::audit::Statement;
use pitser_evidence::{Anchors, Code};
use pitser_guardian::archive::StoreArchive;
use pitser_guardian::audit as look;
use pitser_guardian::audit::{
    AuditError, Audited, Auditor, Doubt, Given, Judge, Look, Places, RemoteError, Sampled,
    SealCounts, Site,
};
use pitser_trail::{Layout, ReadError, disk};
use tokio::runtime::{Handle, Runtime};

use super::{Place, failure, head_beside};
use crate::outcome::{Exit, Failure, Outcome};
use crate::output::{self, Form, Judgement, Progress, State, Step, Verdict, plural};
use crate::signals::stop_requested;
use crate::store::s3_options;
use crate::tree::Map;
use crate::{clock, files, service};

/// Arguments of `pitser audit follow`.
#[derive(Debug, clap::Args)]
pub(crate) struct Follow {
    /// Address of the guardian, http:// or https://; or the folder of the trail, or a copy of it, where nothing
    /// is written
    #[arg(value_name = "URL|TRAIL-DIR")]
    trail: String,
    /// What you trust: the trail's genesis hash, its witnesses, publications
    #[arg(long, value_name = "FILE")]
    anchors: PathBuf,
    #[command(flatten)]
    place: Place,
    /// Where the newest statement goes; the head that it is about is put beside it, as FILE.head
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Look again every so many seconds, until stopped; a guardian is asked for its next head as it comes
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
    /// [default: the copy in the trail's folder, or the guardian's]
    #[arg(short = 'P', long, value_name = "FILE|URI")]
    publications: Option<String>,
    /// Your secret key, if it is not the file `key` in your folder
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Name of the trail at the address, if your anchors have several
    #[arg(long, value_name = "ORIGIN")]
    origin: Option<String>,
    /// Rows that are opened at the address and compared with their lines; 0: none
    #[arg(long, value_name = "ROWS", default_value_t = 20, value_parser = clap::value_parser!(u8).range(0..=64))]
    sample: u8,
    /// Seconds between two samples, however often the trail is looked at
    #[arg(long, value_name = "SECONDS", default_value_t = 24 * 60 * 60)]
    sample_every: u64,
    /// Of a hundred rows of a sample, so many may be refused; with more, nothing is signed until a sample is opened
    #[arg(long, value_name = "PERCENT", default_value_t = 10, value_parser = clap::value_parser!(u8).range(0..=100))]
    refusals_at_most: u8,
    /// PEM file of the authorities that alone may vouch for https:// addresses
    /// [default: the authorities that this machine trusts]
    #[arg(long, env = "PITSER_TLS_CA", value_name = "FILE.pem")]
    tls_ca: Option<PathBuf>,
    #[command(flatten)]
    form: Form,
}

/// Runs the command.
pub(super) fn run(args: &Follow) -> Outcome {
    let anchors = Anchors::from_toml(&files::read_text(&args.anchors)?)
        .map_err(|e| Failure::Input(format!("{}: {e}", args.anchors.display())))?;
    let mut auditor = Auditor::open(&args.place.dir, args.key.as_deref()).map_err(failure)?;
    let runtime = service::runtime()?;
    let trail = Trail::of(args, &anchors, runtime.handle())?;
    let outcome = match args.every {
        None => once(args, &trail, &mut auditor, &anchors, 0),
        Some(seconds) => again_and_again(args, &trail, &mut auditor, &anchors, seconds, &runtime),
    };
    // A guardian that hangs is not waited for.
    runtime.shutdown_background();
    outcome
}

fn again_and_again(
    args: &Follow,
    trail: &Trail,
    auditor: &mut Auditor,
    anchors: &Anchors,
    seconds: u64,
    runtime: &Runtime,
) -> Outcome {
    let mut stop = runtime.spawn(stop_requested());
    let mut wait_s = 0;
    loop {
        let pause = match once(args, trail, auditor, anchors, wait_s) {
            // The guardian says when there is more.
            Ok(Exit::Intact) if matches!(trail, Trail::Site(_)) => 0,
            Ok(Exit::Intact | Exit::Unconfirmed) => seconds,
            // Whoever watches must see this, and look.
            Ok(Exit::Broken) => return Ok(Exit::Broken),
            // A guardian or a mount that is away, a full disk: they may come back.
            Err(failure @ Failure::Service(_)) => {
                tracing::warn!(%failure, "the trail could not be looked at; trying again");
                seconds
            }
            Err(failure) => return Err(failure),
        };
        wait_s = seconds.min(LONGEST_WAIT_S);
        let stopped = runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(pause), &mut stop)
                .await
                .is_ok()
        });
        if stopped {
            return Ok(Exit::Intact);
        }
    }
}

/// Seconds that a guardian is asked to wait for its next head: whoever stops us waits for
/// the answer, too.
const LONGEST_WAIT_S: u64 = 10;

/// Where the trail is.
enum Trail {
    Folder(Layout),
    Site(Box<Site>),
}

impl Trail {
    fn of(args: &Follow, anchors: &Anchors, runtime: &Handle) -> Result<Self, Failure> {
        let is_address = args.trail.starts_with("http://") || args.trail.starts_with("https://");
        match is_address {
            true => site(args, anchors, runtime).map(|site| Self::Site(Box::new(site))),
            false => layout(args).map(Self::Folder),
        }
    }
}

fn site(args: &Follow, anchors: &Anchors, runtime: &Handle) -> Result<Site, Failure> {
    if args.archive.is_some() {
        let why = "--archive: a guardian fetches archived segments itself";
        return Err(Failure::Input(why.into()));
    }
    let endpoint = Endpoint::parse(&args.trail).map_err(Failure::input)?;
    let options = service::options(args.tls_ca.as_deref())?;
    let way = Way::new(endpoint, options)
        .ok_or_else(|| Failure::Input("a guardian answers at http:// or https://".into()))?;
    let mut origins: Vec<_> = anchors.trails.iter().map(|trail| &trail.origin).collect();
    origins.dedup();
    let origin = match (&args.origin, &origins[..]) {
        (Some(origin), _) => origin,
        (None, [origin]) => origin,
        (None, []) => {
            let why = "your anchors have no [[trail]]: its name and the hash of its genesis line are to be learnt \
                       from its register";
            return Err(Failure::Input(why.into()));
        }
        (None, _) => {
            let why =
                "your anchors have several trails: name the one at this address with --origin";
            return Err(Failure::Input(why.into()));
        }
    };
    Ok(Site::new(way, origin, clock::shared(), runtime.clone()))
}

/// One look at the trail, and its answer.
fn once(
    args: &Follow,
    trail: &Trail,
    auditor: &mut Auditor,
    anchors: &Anchors,
    wait_s: u64,
) -> Outcome {
    let publications = publications(args, trail)?;
    let judge = Judge {
        anchors,
        publications: publications.as_deref(),
        anew: args.anew,
        clock: &clock::now,
    };
    let audited = match trail {
        Trail::Folder(layout) => {
            let mut progress = Progress::new("lines");
            let audited = auditor.follow(layout, judge, &mut |lines| progress.set(lines));
            progress.finish();
            audited
        }
        Trail::Site(site) => {
            let look = Look {
                wait_s,
                publications: args.publications.is_none(),
                rows: args.sample.into(),
                rows_every_s: args.sample_every,
                refusals_at_most: args.refusals_at_most,
            };
            let (mut bytes, mut lines) = (Progress::new("bytes"), Progress::new("lines"));
            let audited = auditor.follow_site(site, look, judge, &mut |what, done| match what {
                look::Step::Bytes => bytes.set(done),
                look::Step::Lines => lines.set(done),
            });
            bytes.finish();
            lines.finish();
            audited
        }
    };
    let audited = match audited {
        Ok(audited) => audited,
        Err(error) => return refused(error)?.show(args.form),
    };
    if let Some(path) = &args.output {
        hand_over(path, &audited)?;
    }
    let given = match trail {
        Trail::Site(site) => Some(auditor.hand_over(site, &audited.signed).map_err(failure)?),
        Trail::Folder(_) => None,
    };
    match given {
        Some(Given::Not(RemoteError::Refused {
            status: 409, why, ..
        })) => contradicted(&audited, why).show(args.form),
        given => signed(&audited, given.as_ref(), auditor).show(args.form),
    }
}

fn layout(args: &Follow) -> Result<Layout, Failure> {
    let layout = Layout::new(&args.trail);
    let Some(url) = &args.archive else {
        return Ok(layout);
    };
    let options = s3_options(url, None, "archive", Path::new("."))?;
    let cache = args.place.dir.join("archive-cache");
    Ok(layout.with_archive_cached(StoreArchive::new(url, Ok(options)), cache, ARCHIVE_CACHE))
}

/// Bytes of archived segments that are kept once they were fetched: each is read once.
const ARCHIVE_CACHE: u64 = 64 << 20;

/// The publications file that was named, or the copy in the trail's folder. Whether it
/// is believed is for the anchors to say.
fn publications(args: &Follow, trail: &Trail) -> Result<Option<Vec<u8>>, Failure> {
    match &args.publications {
        Some(uri) if uri.contains("://") || uri.starts_with("file:") => {
            let options = service::options(args.tls_ca.as_deref())?;
            service::ask(async { Ok(publications_file(uri, &options).await?) }).map(Some)
        }
        Some(path) => files::read(Path::new(path)).map(Some),
        None => Ok(match trail {
            Trail::Folder(layout) => fs::read(layout.publications()).ok(),
            Trail::Site(_) => None,
        }),
    }
}

/// The head first: a statement that is there has its head beside it.
fn hand_over(path: &Path, audited: &Audited) -> Result<(), Failure> {
    let signed = &audited.signed;
    disk::replace(&head_beside(path), signed.head.as_bytes()).map_err(Failure::service)?;
    disk::replace(path, signed.note.as_bytes()).map_err(Failure::service)
}

fn signed(audited: &Audited, given: Option<&Given>, auditor: &Auditor) -> Judgement {
    let statement = &audited.signed.statement;
    let Audited {
        is_new,
        lines,
        replayed,
        seals,
        ..
    } = audited;
    let mut steps = vec![
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
    if audited.mappings.count > 0 {
        steps.push(mapping_step(&audited.mappings));
    }
    if audited.holes.count > 0 {
        steps.push(holes_step(&audited.holes));
    }
    if let Some(namesake) = &audited.namesake {
        steps.push(namesake_step(namesake));
    }
    let mut details = Map::new();
    let mut remarks = String::new();
    if let Some(sampled) = &audited.sampled {
        steps.push(sample_step(sampled));
        remarks.push_str(&sample_remarks(sampled));
        details = sample_details(sampled);
    }
    if let Some(given) = given {
        steps.push(given_step(given));
    }
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
        details: details
            .with("given", matches!(given, Some(Given::Taken)))
            .with("mapping_changes", audited.mappings.count)
            .list("mapping_changed", audited.mappings.first.iter().copied())
            .with("holes", audited.holes.count)
            .list("hole_lines", audited.holes.first.iter().copied())
            .maybe(
                "namesake",
                audited.namesake.as_ref().map(|of| of.genesis.to_string()),
            )
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
        remarks,
    }
}

/// `3, 5 and 2 more`
fn named(places: &Places) -> String {
    let first: Vec<String> = places.first.iter().map(u64::to_string).collect();
    let more = places.count - places.first.len() as u64;
    let more = match more {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more}", first.join(", "))
}

fn mapping_step(changes: &Places) -> Step {
    let blocks = named(changes);
    let text =
        format!("the site changed how a row's patient is found with block {blocks}: ask why");
    Step::new("mapping", State::Waiting, text)
}

fn holes_step(holes: &Places) -> Step {
    let lines = named(holes);
    let text = format!(
        "the trail says itself that capture was interrupted or weakened, in line {lines}: what happened meanwhile may be \
         in no patient's list. Ask why"
    );
    Step::new("capture", State::Waiting, text)
}

fn namesake_step(namesake: &Statement) -> Step {
    let text = format!(
        "you have signed {} of another trail of this name, which begins with {}, the last time at {}: one was begun anew \
         under the name of the other. Ask why, and keep what you have of both",
        plural(namesake.size, "block"),
        namesake.genesis,
        namesake.made_at
    );
    Step::new("namesake", State::Waiting, text)
}

fn given_step(given: &Given) -> Step {
    match given {
        Given::Taken => Step::new("given", State::Matches, "the guardian has the statement"),
        Given::Not(error) => Step::new("given", State::Waiting, error.to_string()),
    }
}

fn sample_step(sampled: &Sampled) -> Step {
    let rows = sampled.asked.len();
    let text = format!(
        "{rows} rows drawn: {} opened and as in their lines, {} opened in part, {} erased, {} refused",
        sampled.agreed,
        sampled.partly.len(),
        sampled.erased,
        sampled.refused.len()
    );
    let text = match sampled.live + sampled.live_wrong.len() as u64 {
        0 => text,
        live => format!(
            "{text}; {} of {live} live rows as sealed, by the guardian's word",
            sampled.live
        ),
    };
    match sampled.partly.is_empty() && sampled.refused.is_empty() {
        true => Step::new("sample", State::Matches, text),
        false => Step::new("sample", State::Waiting, text),
    }
}

/// What a sample leaves to be asked about, a line for each row.
fn sample_remarks(sampled: &Sampled) -> String {
    let of = |what: &'static str, rows: &[(u64, String)]| {
        let lines = rows
            .iter()
            .map(move |(row, why)| format!("line {row} {what}: {}\n", output::one_line(why)));
        lines.collect::<String>()
    };
    let refused = of("is not opened", &sampled.refused);
    let partly = of("is opened in part", &sampled.partly);
    let live = of(
        "has another live row, by the guardian's word",
        &sampled.live_wrong,
    );
    format!("{refused}{partly}{live}")
}

fn sample_details(sampled: &Sampled) -> Map {
    let rows = |rows: &[(u64, String)]| rows.iter().map(|(row, _)| *row).collect::<Vec<_>>();
    Map::new()
        .list("sampled", sampled.asked.iter().copied())
        .with("sample_agreed", sampled.agreed)
        .list("sample_partly", rows(&sampled.partly))
        .with("sample_erased", sampled.erased)
        .list("sample_refused", rows(&sampled.refused))
        .with("sample_live", sampled.live)
        .list("sample_live_wrong", rows(&sampled.live_wrong))
}

/// The guardian has another trail than the one that it served.
fn contradicted(audited: &Audited, why: String) -> Judgement {
    Judgement {
        verdict: Verdict::Broken,
        code: Some(Code::TrailForked.to_string()),
        summary: format!(
            "the guardian does not take the statement about the trail that it served: {why}"
        ),
        steps: Vec::new(),
        details: Map::new().with("note", &audited.signed.note),
        remarks: "Keep the auditor's folder as it is: it has the trail that was served.\n".into(),
    }
}

fn told(seals: &SealCounts) -> String {
    let met = seals.published + seals.keyed + seals.unconfirmed;
    if met == 0 {
        return format!("none has come since; {} to come", seals.waiting);
    }
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
    let mut judgement = Judgement {
        verdict,
        code,
        summary,
        steps: Vec::new(),
        details: Map::new(),
        remarks: remarks.into(),
    };
    if let AuditError::Waiting(Doubt::Refused { sampled, at_most }) = &error {
        judgement.steps.push(sample_step(sampled));
        judgement.details = sample_details(sampled).with("refusals_at_most", u64::from(*at_most));
        judgement.remarks.insert_str(0, &sample_remarks(sampled));
    }
    judgement.details = judgement.details.with("signed", false);
    Ok(judgement)
}
