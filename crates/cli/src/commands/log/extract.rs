//! Taking lines out of a log, each with its own proof.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use pitser_ksi::logsig::{
    BlockReader, Excerpt, ExtractError, Extracted, Format, Lines, extract, record_signature,
};
use pitser_ksi::signature::Signature;

use super::{beside, malformed, read};
use crate::files;
use crate::outcome::{Exit, Failure, Outcome};
use crate::output::Form;
use crate::tree::Map;

/// The command's arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The log
    log: PathBuf,
    /// Its log signature [default: LOG.logsig]
    signature: Option<PathBuf>,
    /// Which lines, counted from 1, such as 3,17-20
    #[arg(short, long, value_name = "LINES", value_parser = ranges)]
    lines: Ranges,
    /// Names of the results: BASE.excerpt and BASE.excerpt.logsig [default: LOG]
    #[arg(short, long, value_name = "BASE")]
    output: Option<PathBuf>,
    /// Write a plain signature for each line instead: BASE.line.N.ksig
    #[arg(long)]
    ksig: bool,
    /// Replace existing files
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    form: Form,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Outcome {
    let path = args.signature.clone().unwrap_or_else(|| beside(&args.log));
    let (format, file) = read(&path)?;
    let log = files::read(&args.log)?;
    let reader = BlockReader::new(&file).map_err(|e| malformed(&path, e))?;
    let mut lines = Lines::new(&log);
    let mut first = 1;
    let mut taken = Vec::new();
    for block in reader {
        let block = block.map_err(|e| malformed(&path, e))?;
        let wanted = |line: &u64| args.lines.contains(first + line);
        let extracted = extract(&block, &mut lines, wanted).map_err(|e| refused(first, e))?;
        if let Some(extracted) = extracted {
            let numbers =
                (first..first + block.line_count()).filter(|line| args.lines.contains(*line));
            taken.push((numbers.collect::<Vec<_>>(), extracted));
        }
        first += block.line_count();
    }
    if let Some(beyond) = args.lines.beyond(first) {
        return Err(Failure::Input(format!(
            "line {beyond} is in no block: the log signature covers {} lines",
            first - 1
        )));
    }
    let base = args.output.clone().unwrap_or_else(|| args.log.clone());
    let written = if args.ksig {
        write_signatures(&base, &taken, args.force)?
    } else {
        write_excerpt(&base, taken, format == Format::LogSignature11, args.force)?
    };
    args.form.show(&Map::new().list("written", written))?;
    Ok(Exit::Intact)
}

type Taken<'l> = (Vec<u64>, Extracted<'l>);

fn write_excerpt(
    base: &std::path::Path,
    taken: Vec<Taken<'_>>,
    is_legacy: bool,
    force: bool,
) -> Result<Vec<String>, Failure> {
    let mut text = Vec::new();
    for line in taken.iter().flat_map(|(_, extracted)| &extracted.lines) {
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    let blocks = taken
        .into_iter()
        .map(|(_, extracted)| extracted.block)
        .collect();
    let proof = Excerpt { blocks, is_legacy }
        .encode()
        .map_err(Failure::input)?;
    let excerpt = files::appended(base, ".excerpt");
    let signature = files::appended(&excerpt, super::SUFFIX);
    files::write(&excerpt, &text, force)?;
    files::write(&signature, &proof, force)?;
    Ok(vec![
        excerpt.display().to_string(),
        signature.display().to_string(),
    ])
}

fn write_signatures(
    base: &std::path::Path,
    taken: &[Taken<'_>],
    force: bool,
) -> Result<Vec<String>, Failure> {
    let mut written = Vec::new();
    for (numbers, extracted) in taken {
        let signature = Signature::decode(&extracted.block.signature).map_err(Failure::input)?;
        for (number, record) in numbers.iter().zip(&extracted.block.records) {
            let own = record_signature(&signature, record)
                .map_err(|e| Failure::Input(format!("line {number}: {e}")))?;
            let path = files::appended(base, &format!(".line.{number}.ksig"));
            files::write(&path, own.as_bytes(), force)?;
            written.push(path.display().to_string());
        }
    }
    Ok(written)
}

fn refused(first: u64, error: ExtractError) -> Failure {
    Failure::Input(format!(
        "the block that begins with line {first}: {error}; pitser log verify shows what is wrong"
    ))
}

/// Line numbers and ranges of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ranges(Vec<RangeInclusive<u64>>);

impl Ranges {
    fn contains(&self, line: u64) -> bool {
        self.0.iter().any(|range| range.contains(&line))
    }

    /// A line asked for that is not before `end`.
    fn beyond(&self, end: u64) -> Option<u64> {
        self.0
            .iter()
            .map(|range| *range.end())
            .find(|line| *line >= end)
    }
}

/// Reads `3,17-20`.
fn ranges(text: &str) -> Result<Ranges, String> {
    let number = |text: &str| text.trim().parse::<u64>().ok().filter(|number| *number > 0);
    let range = |text: &str| {
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        number(from)
            .zip(number(to))
            .filter(|(from, to)| from <= to)
            .map(|(from, to)| from..=to)
    };
    let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
    ranges
        .map(Ranges)
        .ok_or_else(|| "write line numbers from 1 on, such as 3,17-20".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_line_numbers() {
        assert_eq!(ranges("3,17-20"), Ok(Ranges(vec![3..=3, 17..=20])));
        for wrong in ["", "0", "5-3", "a", "1,,2", "-3"] {
            assert!(ranges(wrong).is_err(), "{wrong}");
        }
        let some = ranges("3,17-20").unwrap();
        assert!(some.contains(18) && !some.contains(4));
        assert_eq!((some.beyond(20), some.beyond(21)), (Some(20), None));
    }
}
