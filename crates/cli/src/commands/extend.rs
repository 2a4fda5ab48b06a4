//! `pitser extend`: leads a signature to a publication.

use std::path::PathBuf;

use pitser_ksi::publication::{PublicationData, PublicationRecord};
use pitser_ksi::signature::Signature;
use pitser_ksi::time::Second;

use super::sign::facts;
use crate::files::{self, STANDARD};
use crate::outcome::{Exit, Failure, Outcome};
use crate::output::{self, Form};
use crate::service::{self, Credentials};
use crate::tree::Map;
use crate::trust::{self, PublicationsArgs};

/// The command's arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The signature
    signature: PathBuf,
    /// The extending service, such as ksi+tcp://USER:KEY@HOST:PORT or https://USER:KEY@HOST;
    /// up to three times: all are asked, and the first good answer counts
    #[arg(short = 'X', long = "extender", value_name = "URI", required = true)]
    extenders: Vec<String>,
    #[command(flatten)]
    publications: PublicationsArgs,
    /// Lead it to this publication instead of the next one in the publications file
    #[arg(long, value_name = "CODE", value_parser = trust::code, required_unless_present = "location")]
    publication: Option<PublicationData>,
    #[command(flatten)]
    credentials: Credentials,
    /// Where to write the new signature; - for the standard output [default: NAME.ext.ksig]
    #[arg(short, long, value_name = "OUT.ksig")]
    output: Option<PathBuf>,
    /// Replace an existing file, also the signature itself
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    form: Form,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Outcome {
    let path = &args.signature;
    let signature = Signature::decode(&files::read(path)?)
        .map_err(|e| Failure::Input(format!("{}: not a signature: {e}", path.display())))?;
    let signed_at = signature.aggregation_time();
    let record = match args.record(signed_at)? {
        Target::Publication(record) => record,
        Target::NotYet { newest } => return not_yet(signed_at, newest, args.form),
    };
    let client = args.credentials.client(&args.extenders)?;
    let extended =
        service::ask(async { Ok(client.extend(&signature, None, Some(&record)).await?) })?;
    let output = args.output.clone().unwrap_or_else(|| default_output(path));
    files::write(&output, extended.as_bytes(), args.force)?;
    if output.as_os_str() != STANDARD {
        args.form.show(&facts(&extended, &output))?;
    }
    Ok(Exit::Intact)
}

/// Where to extend to.
enum Target {
    Publication(PublicationRecord),
    /// Nothing that late is published.
    NotYet {
        newest: Option<Second>,
    },
}

impl Args {
    fn record(&self, signed_at: Second) -> Result<Target, Failure> {
        let file = self.publications.load(&self.credentials)?;
        if let Some(file) = &file
            && self.publications.trusts_somebody()
            && let Err(doubt) = self.publications.judge(file)?
        {
            return Err(Failure::Input(format!(
                "the publications file is not believed: {doubt}"
            )));
        }
        if let Some(data) = self.publication {
            // The file may know where the same publication was printed.
            let listed = file.as_ref().and_then(|file| file.at_time(data.time));
            let record = listed.filter(|record| record.data == data).cloned();
            return Ok(Target::Publication(record.unwrap_or_else(|| data.into())));
        }
        let nearest = file
            .as_ref()
            .and_then(|file| file.nearest(signed_at))
            .cloned();
        Ok(match nearest {
            Some(record) => Target::Publication(record),
            None => Target::NotYet {
                newest: file
                    .as_ref()
                    .and_then(|file| file.latest())
                    .map(|record| record.data.time),
            },
        })
    }
}

/// Nothing is wrong: the signature is younger than the newest publication.
fn not_yet(signed_at: Second, newest: Option<Second>, form: Form) -> Outcome {
    let newest_text = match newest {
        Some(newest) => format!("the newest publication is that of {newest}"),
        None => "nothing is published yet".to_owned(),
    };
    if form.json {
        let facts = Map::new()
            .with("verdict", "unconfirmed")
            .with("signed_at", signed_at)
            .maybe("newest_publication", newest);
        form.show(&facts)?;
    } else {
        output::print(&format!(
            "unconfirmed: signed at {signed_at}, and {newest_text}; \
             extend after the next one\n"
        ))?;
    }
    Ok(Exit::Unconfirmed)
}

/// `report.ksig` becomes `report.ext.ksig`.
fn default_output(signature: &std::path::Path) -> PathBuf {
    if signature.as_os_str() == STANDARD {
        return STANDARD.into();
    }
    match signature.extension() {
        Some(extension) if extension == "ksig" => signature.with_extension("ext.ksig"),
        _ => files::appended(signature, ".ext.ksig"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_extended_signature() {
        for (from, to) in [
            ("a.pdf.ksig", "a.pdf.ext.ksig"),
            ("a.sig", "a.sig.ext.ksig"),
            ("-", "-"),
        ] {
            assert_eq!(default_output(from.as_ref()), PathBuf::from(to));
        }
    }
}
