//! `pitser authority sheet`: a publication on a page for print.

use std::path::PathBuf;

use pitser_authority::Authority;
use pitser_authority::publicity::Sheet;
use pitser_ksi::publication::PublicationRecord;
use pitser_ksi::publications_file::PublicationsFile;
use pitser_ksi::time::Second;

use super::config::Place;
use crate::files;
use crate::outcome::{Exit, Failure, Outcome};
use crate::trust::instant;

/// Arguments of `pitser authority sheet`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// Whose page: RFC 3339, seconds since 1970, or newest
    #[arg(long, value_name = "SECOND", default_value = "newest", value_parser = which)]
    second: Which,
    /// What to make
    #[arg(long, value_enum, default_value_t = Format::Pdf)]
    format: Format,
    /// Where to write it, - for the standard output
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace the file if it is there
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    Html,
    Pdf,
}

#[derive(Debug, Clone, Copy)]
enum Which {
    Newest,
    At(Second),
}

fn which(text: &str) -> Result<Which, String> {
    match (text, text.parse()) {
        ("newest", _) => Ok(Which::Newest),
        (_, Ok(seconds)) => Ok(Which::At(Second(seconds))),
        _ => instant(text).map(Which::At),
    }
}

/// Runs the command.
pub(super) fn run(args: &Args) -> Outcome {
    let config = args.place.read()?;
    let (file, issuer) = Authority::published(&config.data()).map_err(Failure::service)?;
    let record = find(&file, args.second)?;
    let mut sheet = Sheet::new(record.data, &issuer);
    if let Some(url) = config.url() {
        sheet = sheet.with_url(url);
    }
    let bytes = match args.format {
        Format::Html => sheet.html().into_bytes(),
        Format::Pdf => sheet.pdf(),
    };
    files::write(&args.output, &bytes, args.force)?;
    Ok(Exit::Intact)
}

fn find(file: &PublicationsFile, which: Which) -> Result<&PublicationRecord, Failure> {
    let found = match which {
        Which::Newest => file.latest(),
        Which::At(second) => file.at_time(second),
    };
    found.ok_or_else(|| {
        let newest = file.latest().map(|newest| newest.data.time);
        Failure::Input(match (which, newest) {
            (Which::At(second), Some(newest)) => {
                format!("{second} was not published; the newest publication is of {newest}")
            }
            _ => "nothing was published yet; `pitser authority publish` does".to_owned(),
        })
    })
}
