//! Taking lines out of a log, each with its own proof.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use pitser_ksi::logsig::{
    Block, Excerpt, ExcerptBlock, ExtractError, Format, Lines, extract, record_signature,
};
use pitser_ksi::signature::Signature;

use super::beside;
use super::stream::{Blocks, LogLines};
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
    let (format, taken) = take(&path, &args)?;
    let base = args.output.clone().unwrap_or_else(|| args.log.clone());
    let written = if args.ksig {
        write_signatures(&base, &taken, args.force)?
    } else {
        write_excerpt(&base, taken, format == Format::LogSignature11, args.force)?
    };
    args.form.show(&Map::new().list("written", written))?;
    Ok(Exit::Intact)
}

/// What was taken from one block.
struct Taken {
    /// Which lines, counted from 1.
    numbers: Vec<u64>,
    proof: ExcerptBlock,
    /// Each with a line end.
    text: Vec<u8>,
}

/// Reads no further than the last line that is wanted.
fn take(signature: &Path, args: &Args) -> Result<(Format, Vec<Taken>), Failure> {
    let mut blocks = Blocks::open(signature)?;
    let mut log = LogLines::open(&args.log)?;
    let mut taken = Vec::new();
    let mut first = 1;
    while let Some(beyond) = args.lines.beyond(first) {
        let Some(block) = blocks.next()? else {
            return Err(Failure::Input(format!(
                "line {beyond} is in no block: the log signature covers {} lines",
                first - 1
            )));
        };
        let block = block.get();
        taken.extend(take_from(&block, first, &mut log, &args.lines)?);
        first += block.line_count();
    }
    Ok((blocks.format(), taken))
}

fn take_from(
    block: &Block<'_>,
    first: u64,
    log: &mut LogLines<'_>,
    wanted: &Ranges,
) -> Result<Option<Taken>, Failure> {
    let count = block.line_count();
    if !wanted.meet(first, first.saturating_add(count)) {
        let skipped = log.skip(count)?;
        return if skipped == count {
            Ok(None)
        } else {
            Err(refused(first, ExtractError::Altered))
        };
    }
    let stretch = log
        .take_all(count)?
        .ok_or_else(|| refused(first, ExtractError::Altered))?;
    let extracted = extract(block, &mut Lines::new(&stretch), |line| {
        wanted.contains(first + line)
    });
    let Some(extracted) = extracted.map_err(|e| refused(first, e))? else {
        return Ok(None);
    };
    let mut text = Vec::new();
    for line in &extracted.lines {
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    Ok(Some(Taken {
        numbers: (first..first + count)
            .filter(|line| wanted.contains(*line))
            .collect(),
        proof: extracted.block,
        text,
    }))
}

fn write_excerpt(
    base: &Path,
    taken: Vec<Taken>,
    is_legacy: bool,
    force: bool,
) -> Result<Vec<String>, Failure> {
    let (mut text, mut blocks) = (Vec::new(), Vec::new());
    for taken in taken {
        text.extend(taken.text);
        blocks.push(taken.proof);
    }
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

fn write_signatures(base: &Path, taken: &[Taken], force: bool) -> Result<Vec<String>, Failure> {
    let mut written = Vec::new();
    for Taken { numbers, proof, .. } in taken {
        let signature = Signature::decode(&proof.signature).map_err(Failure::input)?;
        for (number, record) in numbers.iter().zip(&proof.records) {
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

    /// Whether a line from `first` up to but without `end` is asked for.
    fn meet(&self, first: u64, end: u64) -> bool {
        self.0
            .iter()
            .any(|range| *range.start() < end && first <= *range.end())
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
        assert!(some.meet(1, 4) && !some.meet(1, 3) && !some.meet(4, 17) && some.meet(20, 99));
        assert_eq!((some.beyond(20), some.beyond(21)), (Some(20), None));
    }
}
