//! How answers are shown: text that reads like evidence, or one JSON object.
//!
//! ```text
//! record     matches   SHA-256:9f2c…
//! calendar   matches   2026-03-14T09:26:53Z
//! published  waiting   next publication 2026-04-15
//! unconfirmed: all checks so far agree
//! ```

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::time::{Duration, Instant};

use pitser_ksi::hash::Imprint;
use serde::Serialize;

use crate::outcome::{Exit, Failure, Outcome};
use crate::tree::Map;

/// The choice between text and JSON, for commands that have an answer.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Form {
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

impl Form {
    /// Prints facts that are no judgement.
    pub(crate) fn show(self, facts: &Map) -> Result<(), Failure> {
        if self.json {
            print_json(facts)
        } else {
            print(&facts.to_string())
        }
    }
}

/// What an examination came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// Everything asked for holds.
    Intact,
    /// Nothing contradicts it; something needed to confirm it is missing.
    Unconfirmed,
    /// Tampering is shown.
    Broken,
}

impl Verdict {
    fn as_str(self) -> &'static str {
        match self {
            Self::Intact => "intact",
            Self::Unconfirmed => "unconfirmed",
            Self::Broken => "broken",
        }
    }

    fn style(self) -> &'static str {
        match self {
            Self::Intact => GREEN,
            Self::Unconfirmed => YELLOW,
            Self::Broken => RED,
        }
    }
}

impl From<Verdict> for Exit {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Intact => Self::Intact,
            Verdict::Unconfirmed => Self::Unconfirmed,
            Verdict::Broken => Self::Broken,
        }
    }
}

/// How one step of an examination ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// It holds.
    Matches,
    /// It can neither be confirmed nor contradicted.
    Waiting,
    /// It does not hold.
    Broken,
}

impl State {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Matches => "matches",
            Self::Waiting => "waiting",
            Self::Broken => "broken",
        }
    }

    fn style(self) -> &'static str {
        match self {
            Self::Matches => GREEN,
            Self::Waiting => YELLOW,
            Self::Broken => RED,
        }
    }
}

/// One step of an examination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Step {
    /// One word.
    pub(crate) name: &'static str,
    /// How it ended.
    pub(crate) state: State,
    /// What was seen.
    pub(crate) text: String,
}

impl Step {
    pub(crate) fn new(name: &'static str, state: State, text: impl Into<String>) -> Self {
        Self {
            name,
            state,
            text: text.into(),
        }
    }
}

/// A verdict, and what it rests on. In JSON the members of `details` stand
/// beside the others.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Judgement {
    /// The outcome.
    pub(crate) verdict: Verdict,
    /// Stable code, unless intact.
    pub(crate) code: Option<String>,
    /// The verdict in words, without the word itself.
    pub(crate) summary: String,
    /// What was looked at, in order.
    pub(crate) steps: Vec<Step>,
    /// Facts for programs.
    #[serde(flatten)]
    pub(crate) details: Map,
    /// Text for people, after the verdict.
    #[serde(skip)]
    pub(crate) remarks: String,
}

impl Judgement {
    /// Prints the judgement; its verdict decides the exit code.
    pub(crate) fn show(&self, form: Form) -> Outcome {
        if form.json {
            print_json(self)?;
        } else {
            print(&self.text(may_colour(io::stdout().is_terminal())))?;
        }
        Ok(self.verdict.into())
    }

    fn text(&self, colour: bool) -> String {
        let width = self
            .steps
            .iter()
            .map(|step| step.name.len())
            .max()
            .unwrap_or(0);
        let mut text = String::new();
        for Step {
            name,
            state,
            text: seen,
        } in &self.steps
        {
            let state = paint(colour, state.style(), &format!("{:7}", state.as_str()));
            let _ = writeln!(text, "{name:width$}  {state}   {}", one_line(seen));
        }
        let verdict = paint(colour, self.verdict.style(), self.verdict.as_str());
        let code = self
            .code
            .as_ref()
            .map(|code| format!("{code} "))
            .unwrap_or_default();
        let _ = writeln!(text, "{verdict}: {code}{}", one_line(&self.summary));
        text + &self.remarks
    }
}

/// An imprint as people compare it, and as `--hash` takes it.
pub(crate) fn imprint(imprint: &Imprint) -> String {
    let digest = data_encoding::HEXLOWER.encode(imprint.digest());
    format!("{}:{digest}", imprint.algorithm())
}

/// A number of things: "1 line", "2 lines".
pub(crate) fn plural<N: std::fmt::Display + PartialEq + From<u8>>(count: N, thing: &str) -> String {
    let ending = if count == N::from(1) { "" } else { "s" };
    format!("{count} {thing}{ending}")
}

/// Text from a file or a service, made harmless for a terminal: control
/// characters and those that reorder text are shown as escapes.
pub(crate) fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\n' => clean.push(letter),
            _ if letter.is_control() || REORDERING.contains(&letter) => {
                clean.extend(letter.escape_unicode());
            }
            _ => clean.push(letter),
        }
    }
    clean
}

/// As [`clean()`], for text that is to stay within its line: what breaks a line is shown
/// as an escape, too, so that no text looks like a line of ours.
pub(crate) fn one_line(text: &str) -> String {
    clean(text)
        .replace('\n', "\\n")
        .replace('\u{2028}', "\\u{2028}")
        .replace('\u{2029}', "\\u{2029}")
}

/// Writes to the standard output. A reader that has gone is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    print_bytes(text.as_bytes())
}

/// As [`print()`], for bytes.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Service(format!(
            "cannot write to the standard output: {e}"
        ))),
        _ => Ok(()),
    }
}

/// Prints `value` as one line of JSON.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let json = serde_json::to_string(value).map_err(Failure::service)?;
    print(&(json + "\n"))
}

/// How far a long piece of work is, on standard error: a moving line on a
/// terminal, a plain one now and then elsewhere.
pub(crate) struct Progress {
    bar: indicatif::ProgressBar,
    what: &'static str,
    began: Instant,
    /// When the next plain line is due; `None` on a terminal.
    next: Option<Instant>,
}

impl Progress {
    const LINE_EVERY: Duration = Duration::from_secs(10);

    /// Counts things of this name.
    pub(crate) fn new(what: &'static str) -> Self {
        let terminal = io::stderr().is_terminal();
        let bar = indicatif::ProgressBar::no_length();
        if let Ok(style) =
            indicatif::ProgressStyle::with_template("{spinner} {human_pos} {msg}, {per_sec}")
        {
            bar.set_style(style);
        }
        bar.set_message(what);
        Self {
            bar,
            what,
            began: Instant::now(),
            next: (!terminal).then(|| Instant::now() + Self::LINE_EVERY),
        }
    }

    /// So many are done.
    pub(crate) fn set(&mut self, done: u64) {
        self.set_of(done, None);
    }

    /// So many are done, of about so many where that is known.
    pub(crate) fn set_of(&mut self, done: u64, about: Option<u64>) {
        if let Some(about) = about
            && self.bar.length() != Some(about)
        {
            self.bar.set_length(about);
            if let Ok(style) = indicatif::ProgressStyle::with_template(
                "{spinner} {human_pos} of about {human_len} {msg}, {per_sec}, {eta} left",
            ) {
                self.bar.set_style(style);
            }
        }
        self.bar.set_position(done);
        if self.next.is_some_and(|next| Instant::now() >= next) {
            eprintln!("{}", how_far(done, about, self.what, self.began.elapsed()));
            self.next = Some(Instant::now() + Self::LINE_EVERY);
        }
    }

    /// Takes the moving line away.
    pub(crate) fn finish(self) {
        self.bar.finish_and_clear();
    }
}

/// How far something is after `took`, as a plain line.
fn how_far(done: u64, about: Option<u64>, what: &str, took: Duration) -> String {
    let Some(about) = about else {
        return format!("{done} {what}");
    };
    let rate = done as f64 / took.as_secs_f64().max(0.001);
    let left = match about.checked_sub(done) {
        Some(left) if done > 0 => format!(", about {:.0} s left", left as f64 / rate),
        // The estimate was too low, or nothing is known yet.
        _ => String::new(),
    };
    format!("{done} of about {about} {what}, {rate:.0} a second{left}")
}

/// Whether a stream may be coloured: a terminal, and nobody objects
/// (no-color.org).
pub(crate) fn may_colour(is_terminal: bool) -> bool {
    let objected = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    is_terminal && !objected && !dumb
}

fn paint(colour: bool, style: &str, text: &str) -> String {
    if colour {
        format!("{style}{text}{RESET}")
    } else {
        text.to_owned()
    }
}

const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const RED: &str = "\x1b[1;31m";
const RESET: &str = "\x1b[0m";

/// Characters that change the order in which others are shown (Unicode UAX #9).
const REORDERING: [char; 12] = [
    '\u{061c}', '\u{200e}', '\u{200f}', '\u{202a}', '\u{202b}', '\u{202c}', '\u{202d}', '\u{202e}',
    '\u{2066}', '\u{2067}', '\u{2068}', '\u{2069}',
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_line_says_how_far_it_is() {
        let after = |done, about| how_far(done, about, "rows", Duration::from_secs(10));
        assert_eq!(after(500, None), "500 rows");
        assert_eq!(
            after(500, Some(1500)),
            "500 of about 1500 rows, 50 a second, about 20 s left"
        );
        // The estimate was too low.
        assert_eq!(after(500, Some(400)), "500 of about 400 rows, 50 a second");
        assert_eq!(after(0, Some(400)), "0 of about 400 rows, 0 a second");
    }

    #[test]
    fn reads_like_evidence() {
        let judgement = Judgement {
            verdict: Verdict::Unconfirmed,
            code: Some("GEN-02".into()),
            summary: "all checks so far agree".into(),
            steps: vec![
                Step::new("calendar", State::Matches, "2026-03-14T09:26:53Z"),
                Step::new("published", State::Waiting, "next publication 2026-04-15"),
            ],
            details: Map::new().with("file", "a.ksig"),
            remarks: String::new(),
        };
        assert_eq!(
            judgement.text(false),
            "calendar   matches   2026-03-14T09:26:53Z\n\
             published  waiting   next publication 2026-04-15\n\
             unconfirmed: GEN-02 all checks so far agree\n"
        );
        assert!(judgement.text(true).contains("\x1b[33mwaiting\x1b[0m"));
        let json = serde_json::to_value(&judgement).unwrap();
        assert_eq!(json["verdict"], "unconfirmed");
        assert_eq!(json["steps"][1]["state"], "waiting");
        assert_eq!(json["file"], "a.ksig");
    }

    #[test]
    fn a_file_cannot_drive_the_terminal() {
        assert_eq!(
            clean("a\x1b[2Jb\u{202e}c\r\nõ"),
            "a\\u{1b}[2Jb\\u{202e}c\\u{d}\nõ"
        );
        assert_eq!(
            one_line("a\x1b[2Jb\r\nc\u{2028}d\u{2029}e\u{85}õ"),
            "a\\u{1b}[2Jb\\u{d}\\nc\\u{2028}d\\u{2029}e\\u{85}õ"
        );
    }

    #[test]
    fn what_was_seen_stays_on_its_line() {
        let judgement = Judgement {
            verdict: Verdict::Broken,
            code: Some("TRL-01".into()),
            summary: "a\nintact: all".into(),
            steps: vec![Step::new("files", State::Broken, "b\nintact: all")],
            details: Map::new(),
            remarks: String::new(),
        };
        assert_eq!(
            judgement.text(false),
            "files  broken    b\\nintact: all\nbroken: TRL-01 a\\nintact: all\n"
        );
    }
}
