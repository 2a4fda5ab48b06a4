//! `pitser authority audit`: the whole calendar computed again, against everything
//! that was published.

use std::path::PathBuf;

use pitser_authority::calendar::{Audit, CalendarError, CalendarReader};
use pitser_authority::{Authority, AuthorityError, Examined, PublicationsError};
use pitser_ksi::pki::{Constraint, TrustAnchors};
use pitser_ksi::publication::PublicationData;
use pitser_ksi::publications_file::PublicationsFile;

use super::config::Place;
use crate::outcome::{Failure, Outcome};
use crate::output::{Form, Judgement, Progress, State, Step, Verdict, plural};
use crate::tree::Map;
use crate::trust::code;
use crate::{clock, files};

/// Arguments of `pitser authority audit`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// Another copy of the publications file, as somebody has kept it
    #[arg(short = 'P', long = "publications", value_name = "FILE")]
    copies: Vec<PathBuf>,
    /// A publication code, as it was printed
    #[arg(long, value_name = "CODE", value_parser = code)]
    publication: Vec<PublicationData>,
    #[command(flatten)]
    form: Form,
}

/// Runs the command.
pub(super) fn run(args: &Args) -> Outcome {
    let config = args.place.read()?;
    let mut published = args.publication.clone();
    for path in &args.copies {
        let file = PublicationsFile::decode(&files::read(path)?)
            .map_err(|e| Failure::Input(format!("{}: {e}", path.display())))?;
        published.extend(file.publications().iter().map(|record| record.data));
    }
    let examined = match Authority::examine(&config.data()) {
        Ok(examined) => examined,
        Err(AuthorityError::Calendar(e @ CalendarError::Corrupt { .. })) => {
            return broken("CAL-01", e.to_string(), Vec::new(), Map::new()).show(args.form);
        }
        Err(AuthorityError::Publications(e @ PublicationsError::Malformed { .. })) => {
            return broken("PKI-01", e.to_string(), Vec::new(), Map::new()).show(args.form);
        }
        Err(e @ AuthorityError::Calendar(CalendarError::NotACalendar { .. })) => {
            return Err(Failure::input(e));
        }
        Err(e) => return Err(Failure::service(e)),
    };
    let records = examined.publications.publications();
    published.extend(records.iter().map(|record| record.data));
    published.sort_by(|a, b| (a.time, a.imprint.as_bytes()).cmp(&(b.time, b.imprint.as_bytes())));
    published.dedup();

    let mut progress = Progress::new("bytes of calendar");
    let audit = examined.calendar.audit(|done, _| progress.set(done));
    progress.finish();
    let audit = audit.map_err(Failure::service)?;
    judge(&examined, &audit, &published)?.show(args.form)
}

fn judge(
    examined: &Examined,
    audit: &Audit,
    published: &[PublicationData],
) -> Result<Judgement, Failure> {
    let head = examined.calendar.head();
    let newest = published.last().map(|data| data.time);
    let details = Map::new()
        .with("seconds", audit.seconds)
        .with("sealed_seconds", audit.sealed_seconds)
        .with("nodes", audit.nodes)
        .maybe("head", head)
        .with("publications", published.len() as u64)
        .maybe("newest_publication", newest);
    let mut steps = Vec::new();
    if let Some(fault) = &audit.fault {
        steps.push(Step::new("calendar", State::Broken, fault));
        return Ok(broken("CAL-01", fault.clone(), steps, details));
    }
    let text = format!(
        "{}, {} of them with requests, {} computed again",
        plural(audit.seconds, "second"),
        audit.sealed_seconds,
        plural(audit.nodes, "node")
    );
    steps.push(Step::new("calendar", State::Matches, text));

    for data in published {
        if let Some(fault) = contradiction(&examined.calendar, data)? {
            steps.push(Step::new("published", State::Broken, &fault));
            return Ok(broken("PUB-01", fault, steps, details));
        }
    }
    if let Some(fault) = forged(examined)? {
        steps.push(Step::new("file", State::Broken, &fault));
        return Ok(broken("PKI-01", fault, steps, details));
    }
    steps.push(Step::new(
        "file",
        State::Matches,
        "signed by this authority",
    ));
    let (Some(head), Some(newest)) = (head, newest) else {
        let text = "nothing is published: nobody else could tell if this calendar was another one";
        steps.push(Step::new("published", State::Waiting, text));
        return Ok(Judgement {
            verdict: Verdict::Unconfirmed,
            code: None,
            summary: "all checks so far agree".into(),
            steps,
            details,
            remarks: String::new(),
        });
    };
    let text = format!(
        "{} met, up to {newest}",
        plural(published.len(), "publication")
    );
    steps.push(Step::new("published", State::Matches, text));
    if head > newest {
        let text = format!(
            "{} after the newest publication: on this machine's word until the next one",
            plural(head.since(newest), "second")
        );
        steps.push(Step::new("since", State::Waiting, text));
    }
    Ok(Judgement {
        verdict: Verdict::Intact,
        code: None,
        summary: format!("the calendar up to {newest} is the one that was published"),
        steps,
        details,
        remarks: String::new(),
    })
}

/// How the calendar contradicts a publication, if it does.
fn contradiction(
    calendar: &CalendarReader,
    data: &PublicationData,
) -> Result<Option<String>, Failure> {
    match calendar.root_at(data.time) {
        Ok(root) if root == data.imprint => Ok(None),
        Ok(_) => Ok(Some(format!(
            "the calendar's root at {} is another one than was published",
            data.time
        ))),
        Err(CalendarError::Beyond { .. } | CalendarError::BeforeGenesis { .. }) => {
            Ok(Some(format!(
                "the calendar does not reach {}, which was published",
                data.time
            )))
        }
        Err(e) => Err(Failure::service(e)),
    }
}

/// What is wrong with the signature of the publications file, if anything.
fn forged(examined: &Examined) -> Result<Option<String>, Failure> {
    let anchors = TrustAnchors::from_pem(&examined.certificate_pem).map_err(Failure::input)?;
    let constraint: Constraint = examined.constraint.parse().map_err(Failure::input)?;
    // As of the file's own time: a certificate that has expired since says nothing
    // against what it signed.
    let at = examined.publications.created_at().min(clock::now());
    let verified = examined.publications.verify(&anchors, &[constraint], at);
    Ok(verified
        .err()
        .map(|e| format!("the publications file is not by this authority: {e}")))
}

fn broken(code: &str, summary: String, steps: Vec<Step>, details: Map) -> Judgement {
    Judgement {
        verdict: Verdict::Broken,
        code: Some(code.into()),
        summary,
        steps,
        details,
        remarks: "Keep these files as they are: they are evidence. Do not sign with them; restore a copy \
                  that passes this audit.\n"
            .into(),
    }
}
