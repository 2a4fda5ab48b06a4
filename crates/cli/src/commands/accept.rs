//! `pitser guard accept`: somebody answers for findings, named by their lines, or chosen by
//! what they have in common.

use crate::outcome::{Exit, Failure, Outcome};
use crate::output::{self, Progress, plural, print, print_json};
use crate::trust::instant;
use pitser_evidence::Code;
use pitser_evidence::line::Timestamp;
use pitser_guardian::acceptance::{Asked, AskedOf, Choice, Counted, MAX_FINDINGS, Portion, Tally};
use serde_json::{Value, json};
use std::io::{self, BufRead};
use std::str::FromStr;

/// Arguments of `pitser guard accept`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Trail line of a finding, as `guard status` shows it, or from one line to another
    /// (`1200-1300`): the findings in between that are open
    #[arg(
        long = "finding",
        value_name = "LINE",
        num_args = 1..,
        required_unless_present_any = ["code", "table"]
    )]
    findings: Vec<Range>,
    /// All open findings of this code, such as ACT-01
    #[arg(long, value_parser = code)]
    code: Option<Code>,
    /// All open findings about this table, as `guard status` names it
    #[arg(long, value_name = "TABLE")]
    table: Option<String>,
    /// None after this line, or found after this time, such as 2026-03-14T09:26:53Z
    #[arg(long, value_name = "LINE|TIME", value_parser = until)]
    until: Option<Until>,
    /// Why nobody has to look at them any more; kept in the vault, the trail commits to it
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// The approver's name: a check that the token is that person's
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Show what would be accepted, accept nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask before findings are accepted that were not named one by one
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    asking: super::erase::Asking,
}

/// Lines from one to another, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Range(u64, u64);

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| {
            let number: Result<u64, _> = text.parse();
            number.map_err(|_| "not a line such as 1200, or lines such as 1200-1300".to_owned())
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (number(first)?, number(last)?) {
            (first, last) if first <= last => Ok(Self(first, last)),
            (first, last) => Err(format!("line {last} is before line {first}")),
        }
    }
}

/// The end of a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    Line(u64),
    Time(Timestamp),
}

fn until(text: &str) -> Result<Until, String> {
    if let Ok(line) = text.parse() {
        return Ok(Until::Line(line));
    }
    let second = instant(text).map_err(|_| {
        "neither a line such as 1300 nor an instant such as 2026-03-14T09:26:53Z".to_owned()
    })?;
    // The whole second: statuses show no more of an instant.
    let last = second.0.saturating_mul(1_000_000).saturating_add(999_999);
    let last = Timestamp::from_micros(last);
    last.map(Until::Time).map_err(|error| error.to_string())
}

fn code(text: &str) -> Result<Code, String> {
    let known = Code::ALL.iter().find(|code| code.as_str() == text);
    known
        .copied()
        .ok_or_else(|| "not a finding code such as ACT-01".to_owned())
}

/// Runs the command.
pub(super) async fn run(args: Args) -> Outcome {
    match args.named() {
        Some(findings) => accept_named(args, findings).await,
        None => accept_chosen(&args).await,
    }
}

/// Findings that are all named one by one: all are accepted, or none.
async fn accept_named(args: Args, findings: Vec<u64>) -> Outcome {
    let (by, reason) = (args.by.as_deref(), args.reason);
    let asked = |token| Asked {
        token,
        findings,
        reason,
    };
    let answer = args.asking.of_findings("", by, asked).await?;
    if args.asking.json {
        print_json(&answer)?;
        return Ok(Exit::Intact);
    }
    let by = answer["by"].as_str().unwrap_or_default();
    for accepted in answer["accepted"].as_array().into_iter().flatten() {
        let line = format!(
            "accepted   the finding of line {} by {by}\nline       {}, sealed with the next block\n",
            accepted["finding"], accepted["line"]
        );
        print(&output::clean(&line))?;
    }
    Ok(Exit::Intact)
}

/// Findings by what they have in common: shown first, then accepted portion by portion.
async fn accept_chosen(args: &Args) -> Outcome {
    if args.asking.json && !args.yes && !args.dry_run {
        let why = "with --json nobody is asked: say --dry-run, look, and then --yes";
        return Err(Failure::Input(why.into()));
    }
    let choices = args.choices();
    let mut seen = Done::default();
    let mut bar = Progress::new("findings looked at");
    for choice in &choices {
        args.each_portion(choice, None, &mut seen, |done| {
            bar.set(done.found.count());
        })
        .await?;
    }
    bar.finish();
    let (count, last) = (seen.found.count(), seen.last());
    let (would, by) = (seen.json(), seen.by.clone());
    let shown = seen.describe("would accept");
    if count == 0 {
        return Err(Failure::Input(format!(
            "no open finding is among them that anybody can answer for. `pitser guard status` lists what is open\n{shown}"
        )));
    }
    if !args.asking.json {
        print(&output::clean(&shown))?;
    }
    if args.dry_run {
        if args.asking.json {
            print_json(&json!({ "by": by, "would_accept": would }))?;
        }
        return Ok(Exit::Intact);
    }
    if !args.yes && !confirmed(count)? {
        return Err(Failure::Input("nothing was accepted".into()));
    }
    let mut done = Done::default();
    let mut bar = Progress::new("findings accepted");
    for choice in &choices {
        // What was found since was not shown.
        let choice = Choice {
            until: choice.until.min(last),
            ..choice.clone()
        };
        if choice.from > choice.until {
            continue;
        }
        let outcome = args
            .each_portion(&choice, Some(&args.reason), &mut done, |done| {
                bar.set_of(done.found.count(), Some(count));
            })
            .await;
        if let Err(failure) = outcome {
            let so_far = done.found.count();
            tracing::warn!(
                "{} of {count} were accepted and stay so: the same command goes on with the others",
                plural(so_far, "finding")
            );
            return Err(failure);
        }
    }
    bar.finish();
    if args.asking.json {
        print_json(&json!({
            "by": done.by, "accepted": done.json(),
            "first_line": done.lines.map(|it| it.0), "last_line": done.lines.map(|it| it.1),
        }))?;
        return Ok(Exit::Intact);
    }
    let accepted = plural(done.found.count(), "finding");
    let lines = done.lines.unwrap_or_default();
    print(&output::clean(&format!(
        "accepted   {accepted} by {}\nlines      {} to {}, sealed with their blocks\n",
        done.by, lines.0, lines.1
    )))?;
    Ok(Exit::Intact)
}

/// Asks whoever sits there.
fn confirmed(count: u64) -> Result<bool, Failure> {
    let accept = plural(count, "finding");
    print(&format!(
        "Accept {accept}? Nobody has to look at them any more. [yes/no] "
    ))?;
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.map_err(Failure::service)?;
    Ok(["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()))
}

impl Args {
    /// The lines, if each is named by itself and nothing else is said.
    fn named(&self) -> Option<Vec<u64>> {
        let is_plain = self.code.is_none()
            && self.table.is_none()
            && self.until.is_none()
            && !self.dry_run
            && self.findings.len() <= MAX_FINDINGS
            && self.findings.iter().all(|range| range.0 == range.1);
        is_plain.then(|| self.findings.iter().map(|range| range.0).collect())
    }

    /// What is to be looked at, in the order of the lines, none of them twice.
    fn choices(&self) -> Vec<Choice> {
        let (until, until_at) = match self.until {
            Some(Until::Line(line)) => (line, None),
            Some(Until::Time(at)) => (LAST, Some(at)),
            None => (LAST, None),
        };
        let ranges = match self.findings.is_empty() {
            true => vec![Range(0, LAST)],
            false => joined(&self.findings),
        };
        let choice = |range: Range| Choice {
            from: range.0,
            until: range.1.min(until),
            until_at,
            code: self.code,
            table: self.table.clone(),
        };
        let choices = ranges.into_iter().map(choice);
        choices.filter(|it| it.from <= it.until).collect()
    }

    /// Has a choice looked at to its end, or accepted where there is a reason.
    async fn each_portion(
        &self,
        choice: &Choice,
        reason: Option<&str>,
        done: &mut Done,
        mut progress: impl FnMut(&Done),
    ) -> Result<(), Failure> {
        let mut next = Some(choice.from);
        while let Some(from) = next {
            let asked = |token| AskedOf {
                token,
                of: Choice {
                    from,
                    ..choice.clone()
                },
                reason: reason.map(str::to_owned),
            };
            let by = self.by.as_deref();
            let answer = self.asking.of_findings("/portion", by, asked).await?;
            let portion: Portion = serde_json::from_value(answer).map_err(Failure::service)?;
            next = portion.next.filter(|next| *next > from);
            done.add(portion);
            progress(done);
        }
        Ok(())
    }
}

/// Ranges in their order, those that touch as one.
fn joined(ranges: &[Range]) -> Vec<Range> {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable();
    let mut joined: Vec<Range> = Vec::new();
    for range in sorted {
        match joined.last_mut() {
            Some(last) if range.0 <= last.1.saturating_add(1) => last.1 = last.1.max(range.1),
            _ => joined.push(range),
        }
    }
    joined
}

/// The last number that a line can have: canonical JSON has none above.
const LAST: u64 = (1 << 53) - 1;

/// All portions so far.
#[derive(Default)]
struct Done {
    by: String,
    found: Tally,
    left: Tally,
    lines: Option<(u64, u64)>,
}

impl Done {
    fn add(&mut self, portion: Portion) {
        self.by = portion.by;
        for counted in portion.found {
            self.found.merge(counted);
        }
        for counted in portion.left {
            self.left.merge(counted);
        }
        if let Some((first, last)) = portion.lines {
            let begun = self.lines.map_or(first, |lines| lines.0);
            self.lines = Some((begun, last));
        }
    }

    /// The line of the last finding.
    fn last(&self) -> u64 {
        self.found.counted().map(|it| it.last).max().unwrap_or(0)
    }

    fn json(&self) -> Value {
        let list = |tally: &Tally| json!(tally.counted().collect::<Vec<_>>());
        json!({
            "count": self.found.count(), "findings": list(&self.found), "left": list(&self.left),
        })
    }

    fn describe(&self, what: &str) -> String {
        let line = |it: &Counted| {
            let table = it.table.as_deref().unwrap_or("-");
            let lines = match it.count {
                1 => format!("line {}", it.first),
                _ => format!("lines {} to {}", it.first, it.last),
            };
            format!("  {} {} {table}, {lines}\n", it.count, it.code)
        };
        let mut out = String::new();
        if self.found.count() > 0 {
            out += &format!(
                "{what} {}, by {}\n",
                plural(self.found.count(), "finding"),
                self.by
            );
            out.extend(self.found.counted().map(line));
        }
        if self.left.count() > 0 {
            out += "stay open, for nobody can answer for them\n";
            out.extend(self.left.counted().map(line));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_range(text: &str, expected: Option<(u64, u64)>) {
        let range: Result<Range, _> = text.parse();
        assert_eq!(range.ok(), expected.map(|(a, b)| Range(a, b)), "{text}");
    }

    #[test]
    fn a_line_or_lines_from_one_to_another() {
        check_range("7", Some((7, 7)));
        check_range("1200-1300", Some((1200, 1300)));
        for wrong in [
            "", "-", "7-", "-7", "9-7", "1-2-3", "7 - 9", "+7x", "ACT-01",
        ] {
            check_range(wrong, None);
        }
    }

    #[test]
    fn ranges_that_touch_are_looked_at_once() {
        let ranges = [(10, 20), (1, 3), (21, 30), (4, 4), (15, 16), (40, 40)];
        let joined = joined(&ranges.map(|(a, b)| Range(a, b)));
        assert_eq!(joined, [Range(1, 4), Range(10, 30), Range(40, 40)]);
    }

    #[test]
    fn an_end_is_a_line_or_a_whole_second() {
        assert_eq!(until("1300"), Ok(Until::Line(1300)));
        let last: Timestamp = "2026-03-14T09:26:53.999999Z".parse().unwrap();
        assert_eq!(until("2026-03-14T09:26:53Z"), Ok(Until::Time(last)));
        assert!(until("yesterday").is_err());
    }
}
