//! `pitser evidence export`: one file about one patient, for an outsider.

use crate::config::Config;
use crate::files::{self, values_of};
use crate::outcome::{Exit, Failure, Outcome, unreadable};
use crate::output::{plural, print, print_json};
use crate::trust::instant;
use crate::{clock, seals};
use pitser_client::{ClientError, calendar_proof, publications_file};
use pitser_evidence::{Evidence, apart};
use pitser_ksi::publications_file::PublicationsFile;
use pitser_ksi::signature::Signature;
use pitser_ksi::time::Second;
use pitser_tlog::proof::LogProof;
use pitser_trail::export::{Asked, ExportError, Exporter};
use pitser_trail::{Layout, disk};
use serde_json::json;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::{fs, io};

/// Arguments of `pitser evidence`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Write everything that proves one patient's list of lines
    Export(Export),
}

#[derive(Debug, clap::Args)]
struct Export {
    /// The patient's identifier, as in the database
    #[arg(long, value_name = "ID")]
    patient: String,
    /// Where to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Configuration file
    #[arg(long, default_value = "pitser.toml", env = "PITSER_CONFIG")]
    config: PathBuf,
    /// Which source, if there are several
    #[arg(long)]
    source: Option<String>,
    /// Of the lists of reads of many or unknown patients, which stand in everybody's evidence,
    /// leave out what was sealed up to then. Whoever verifies has to agree with it
    #[arg(long, value_name = "RFC3339", value_parser = instant)]
    shared_since: Option<Second>,
    /// As of the newest cosigned head, also if an auditor has only signed an older one: then
    /// completeness cannot be confirmed yet
    #[arg(long)]
    newest: bool,
    /// Ask nobody, while the authority is away: seals go as they are, neither extended to a
    /// publication nor shown to be witnessed, so that they cannot all be confirmed yet
    #[arg(long)]
    offline: bool,
    /// Overwrite the file if it is there
    #[arg(long)]
    force: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> Outcome {
    let Command::Export(args) = args.command;
    let values = values_of(&args.output);
    for path in [&args.output, &values] {
        if path.exists() && !args.force {
            return Err(Failure::Input(format!(
                "{} is there already: name another file, or add --force",
                path.display()
            )));
        }
    }
    let config = Config::read(&args.config)?;
    let source = config.source(args.source.as_deref())?;
    let layout = config.tuning().layout(source);
    let (mut exporter, audit) = opened(&layout, args.newest).map_err(unreadable)?;
    let audited = audit.is_some();
    let after = exporter.blocks_after();
    let asked = Asked {
        patient: &args.patient,
        shared_since: args.shared_since,
    };
    let listed = exporter.list(asked).map_err(unreadable)?;
    let seals = exporter.seals(&listed).map_err(unreadable)?;
    let (publications, longer) = match args.offline {
        true => (None, HashMap::new()),
        false => extended(&config, seals).await.map_err(away)?,
    };
    let publications = publications.or_else(|| std::fs::read(layout.publications()).ok());
    let mut evidence = exporter
        .evidence_of(listed, audit, publications, |block, seal| {
            longer.get(&block).cloned().unwrap_or_else(|| seal.to_vec())
        })
        .map_err(unreadable)?;
    let witnessed = match args.offline {
        true => None,
        false => witnessed(&config, &exporter, &mut evidence)
            .await
            .map_err(away)?,
    };
    let file = evidence.encode_readable().map_err(Failure::input)?;
    let apart = write_apart(&evidence, &mut exporter, &values)?;
    disk::replace(&args.output, &file).map_err(Failure::service)?;
    let left_out = left_out(&evidence);
    let published = longer.len();
    if args.json {
        print_json(&json!({
            "path": args.output, "lines": evidence.lines.len(), "blocks": evidence.blocks.len(), "published": published,
            "audited": audited, "blocks_after": after,
            "apart": apart.as_ref().map(|Apart { files, bytes }| json!({ "folder": values, "files": files, "bytes": bytes })),
            "witnessed": witnessed.map(|seen| json!({ "seconds": seen.wanted, "proved": seen.proved })),
            "left_out": left_out.iter().map(|(list, lines)| json!({ "list": list, "lines": lines })).collect::<Vec<_>>(),
            "exported_at": clock::now().to_string(),
        }))?;
    } else {
        let witnessed = witnessed.map_or(String::new(), |seen| {
            let Seen { wanted, proved } = seen;
            format!("{proved} of {wanted} seconds of its seals and publications proved to be witnessed\n")
        });
        print(&format!(
            "{}: {} lines in {} blocks; {published} seals of the trail extended to a publication\n\
             {witnessed}{}{}{}Give it to whoever asks, and let them bring their own anchors: pitser verify {} --anchors ANCHORS.toml{}\n",
            args.output.display(),
            evidence.lines.len(),
            evidence.blocks.len(),
            as_of(audited, after),
            not_in_it(&left_out),
            beside(&values, apart.as_ref()),
            args.output.display(),
            since(args.shared_since.filter(|_| !left_out.is_empty())),
        ))?;
    }
    Ok(Exit::Intact)
}

/// What stands in files of its own.
struct Apart {
    files: usize,
    bytes: u64,
}

/// Writes what stands apart from the evidence into files of a folder, in place of those of
/// an earlier export, which stay until all are there; without any, there is no folder.
fn write_apart(
    evidence: &Evidence,
    exporter: &mut Exporter,
    folder: &Path,
) -> Result<Option<Apart>, Failure> {
    let failed = |e: io::Error| Failure::Service(format!("{}: {e}", folder.display()));
    let unfinished = files::appended(folder, ".unfinished");
    remove_earlier(&unfinished).map_err(failed)?;
    let written = write_into(&unfinished, evidence, exporter);
    if written.is_err() {
        // Nobody is to find the patient's contents there.
        remove_earlier(&unfinished).map_err(failed)?;
    }
    let written = written?;
    remove_earlier(folder).map_err(failed)?;
    if written.files == 0 {
        return Ok(None);
    }
    move_into(folder, &unfinished).map_err(failed)?;
    let any_file = folder.join("any");
    disk::sync_dir(&any_file).map_err(Failure::service)?;
    Ok(Some(written))
}

fn write_into(
    folder: &Path,
    evidence: &Evidence,
    exporter: &mut Exporter,
) -> Result<Apart, Failure> {
    let mut written = Apart { files: 0, bytes: 0 };
    for part in evidence.apart() {
        if written.files == 0 {
            disk::private_dir(folder).map_err(Failure::service)?;
        }
        let gone = || {
            let line = part.seq;
            Failure::Input(format!(
                "what line {line} commits to cannot be had any more: was the patient erased just now? Export once more"
            ))
        };
        let bytes = exporter.apart(&part).map_err(unreadable)?;
        let bytes = bytes.ok_or_else(gone)?;
        let path = folder.join(part.file_name());
        disk::replace(&path, &bytes).map_err(Failure::service)?;
        written.files += 1;
        written.bytes += bytes.len() as u64;
    }
    Ok(written)
}

/// Moves all files to a folder, where others may be.
fn move_into(folder: &Path, from: &Path) -> io::Result<()> {
    if !folder.exists() {
        return fs::rename(from, folder);
    }
    for file in fs::read_dir(from)? {
        let file = file?;
        fs::rename(file.path(), folder.join(file.file_name()))?;
    }
    fs::remove_dir(from)
}

/// Removes the files that an earlier export has left, and nothing else.
fn remove_earlier(folder: &Path) -> io::Result<()> {
    let files = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        files => files?,
    };
    for file in files {
        let file = file?;
        if file.file_name().to_str().is_some_and(apart::is_file_name) {
            fs::remove_file(file.path())?;
        }
    }
    match fs::remove_dir(folder) {
        Err(e) if e.kind() != io::ErrorKind::DirectoryNotEmpty => Err(e),
        _ => Ok(()),
    }
}

fn beside(folder: &Path, apart: Option<&Apart>) -> String {
    apart.map_or(String::new(), |Apart { files, bytes }| {
        format!(
            "{} for which it has no room in {}, {} MB: give them along with it, side by side\n",
            plural(*files as u64, "value"),
            folder.display(),
            bytes.div_ceil(1_000_000),
        )
    })
}

/// The trail as of what an auditor has signed, with the statement; else, or if
/// `newest` is asked for, as of the newest cosigned head.
fn opened(layout: &Layout, newest: bool) -> Result<(Exporter, Option<String>), ExportError> {
    match Exporter::open_audited(layout)? {
        Some((exporter, audit)) if !newest || exporter.blocks_after() == 0 => {
            Ok((exporter, Some(audit)))
        }
        _ => Ok((Exporter::open_at_head(layout.clone())?, None)),
    }
}

/// The shared lists that are not shown from their beginning, and how many of their lines.
fn left_out(evidence: &Evidence) -> Vec<(&'static str, u64)> {
    let lists = [
        ("*many", &evidence.map.many),
        ("*unknown", &evidence.map.unknown),
    ];
    let lists = lists.into_iter();
    lists
        .filter_map(|(list, entry)| Some((list, entry.before?)))
        .collect()
}

fn not_in_it(left_out: &[(&str, u64)]) -> String {
    let said = left_out.iter().map(|(list, lines)| {
        format!(
            "NOT IN IT: the first {} of {list}\n",
            plural(*lines, "line")
        )
    });
    said.collect()
}

/// What has to be said to `verify` for evidence that leaves something out.
fn since(shared_since: Option<Second>) -> String {
    shared_since.map_or(String::new(), |at| format!(" --shared-since {at}"))
}

fn as_of(audited: bool, after: u64) -> String {
    match (audited, after) {
        (false, _) => "No auditor has signed this head: completeness stays the operator's word (docs/audit.md)\n".into(),
        (true, 0) => "As of the newest head, which an auditor has signed\n".into(),
        (true, after) => format!(
            "As of the newest head that an auditor has signed; {} came after it (--newest takes them in)\n",
            plural(after, "block")
        ),
    }
}

/// What to do while the authority, or the calendar's log, does not answer.
fn away(failure: Failure) -> Failure {
    match failure {
        Failure::Service(text) => Failure::Service(format!(
            "{text}. Try again, or export with --offline: seals go as they are then, and cannot all be confirmed yet"
        )),
        other => other,
    }
}

/// The publications file and seals extended to its newest publication, if the
/// configuration says where they are.
async fn extended(
    config: &Config,
    seals: Vec<(u64, Vec<u8>)>,
) -> Result<(Option<Vec<u8>>, HashMap<u64, Vec<u8>>), Failure> {
    let (Some(uri), false) = (
        &config.authority.publications,
        config.authority.is_embedded(),
    ) else {
        return Ok((None, HashMap::new()));
    };
    let bytes = publications_file(uri, &config.options()?).await?;
    let file = PublicationsFile::decode(&bytes).map_err(Failure::service)?;
    let Some(record) = file.latest() else {
        return Ok((Some(bytes), HashMap::new()));
    };
    let client = config.extender()?;
    let longer = seals::extended(&client, seals, record).await?;
    Ok((Some(bytes), longer))
}

/// Seconds that evidence leads to.
struct Seen {
    wanted: usize,
    /// Those that the calendar's log has a proof for.
    proved: usize,
}

/// Puts in the proofs that seconds were witnessed, of all seals in the evidence
/// and of the publications that they lead to, if the configuration says where the
/// calendar's log is. What is not witnessed yet, or was before the log, has none:
/// the verdict says so then.
async fn witnessed(
    config: &Config,
    exporter: &Exporter,
    evidence: &mut Evidence,
) -> Result<Option<Seen>, Failure> {
    let Some(log) = &config.authority.calendar_log else {
        return Ok(None);
    };
    let mut seconds = BTreeSet::new();
    for seal in evidence
        .blocks
        .iter()
        .filter_map(|block| block.seal.as_ref())
    {
        let signature = Signature::decode(&seal.0).map_err(Failure::input)?;
        seconds.insert(signature.aggregation_time());
        seconds.extend(signature.publication().map(|record| record.data.time));
    }
    let options = config.options()?;
    let mut proofs = Vec::new();
    for second in &seconds {
        match calendar_proof(log, *second, WITNESS_WAIT_S, &options).await {
            Ok(bytes) => {
                let proof = LogProof::parse(&bytes)
                    .map_err(|e| Failure::Service(format!("{log}: no proof of {second}: {e}")))?;
                proofs.push(proof.to_string());
            }
            Err(ClientError::Http {
                status: 404 | 503, ..
            }) => {}
            Err(error) => return Err(Failure::service(error)),
        }
    }
    let seen = Seen {
        wanted: seconds.len(),
        proved: proofs.len(),
    };
    exporter.add_calendar(evidence, proofs);
    Ok(Some(seen))
}

/// How long the log may wait for its witnesses to see one second.
const WITNESS_WAIT_S: u64 = 3;
