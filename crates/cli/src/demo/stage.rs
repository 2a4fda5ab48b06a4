//! How the demo looks: a line for each step, bars for the long ones, and one
//! JSON object for scripts.

use crate::outcome::Failure;
use crate::output::may_colour;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pitser_evidence::{Report, StepState};
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const RED: &str = "\x1b[1;31m";
const DIM: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";

/// Where the demo is shown: standard output, or standard error beside `--json`.
pub(super) struct Stage {
    json: bool,
    colour: bool,
    terminal: bool,
}

/// A step that takes a while.
pub(super) struct Bar<'a> {
    stage: &'a Stage,
    name: &'static str,
    bar: ProgressBar,
    position: u64,
}

impl Stage {
    pub(super) fn new(json: bool) -> Self {
        let terminal = if json {
            std::io::stderr().is_terminal()
        } else {
            std::io::stdout().is_terminal()
        };
        let stage = Self {
            json,
            colour: may_colour(terminal),
            terminal,
        };
        stage.line("");
        stage
    }

    fn line(&self, text: &str) {
        if self.json {
            eprintln!("{text}");
        } else {
            println!("{text}");
        }
    }

    fn paint(&self, style: &str, text: &str) -> String {
        if self.colour {
            format!("{style}{text}{RESET}")
        } else {
            text.to_owned()
        }
    }

    /// A step that is done.
    pub(super) fn done(&self, name: &str, text: impl AsRef<str>) {
        self.line(&format!(
            "{} {name:<10} {}",
            self.paint(GREEN, "✓"),
            text.as_ref()
        ));
    }

    /// What an insider does.
    pub(super) fn attack(&self, name: &str, text: impl AsRef<str>) {
        self.line(&format!(
            "{} {name:<10} {}",
            self.paint(RED, "✗"),
            text.as_ref()
        ));
    }

    /// What the guardian says to it.
    pub(super) fn finding(&self, code: &str, text: impl AsRef<str>) {
        self.line(&format!(
            "{} {} {}",
            self.paint(YELLOW, "!"),
            self.paint(YELLOW, &format!("{code:<10}")),
            text.as_ref()
        ));
    }

    /// A step whose length is known.
    pub(super) fn bar(&self, name: &'static str, length: u64) -> Bar<'_> {
        let bar = ProgressBar::with_draw_target(Some(length), self.target());
        let style = ProgressStyle::with_template("  {prefix:<10} {bar:32.green/dim} {pos}/{len}");
        if let Ok(style) = style {
            bar.set_style(style.progress_chars("━━─"));
        }
        bar.set_prefix(name);
        Bar {
            stage: self,
            name,
            bar,
            position: 0,
        }
    }

    /// A step whose length is not known.
    pub(super) fn spinner(&self, name: &'static str, text: &str) -> Bar<'_> {
        let bar = ProgressBar::with_draw_target(None, self.target());
        if let Ok(style) = ProgressStyle::with_template("{spinner:.green} {prefix:<10} {msg}") {
            bar.set_style(style);
        }
        bar.set_prefix(name);
        bar.set_message(text.to_owned());
        bar.enable_steady_tick(Duration::from_millis(80));
        Bar {
            stage: self,
            name,
            bar,
            position: 0,
        }
    }

    fn target(&self) -> ProgressDrawTarget {
        match (self.terminal, self.json) {
            (false, _) => ProgressDrawTarget::hidden(),
            (true, true) => ProgressDrawTarget::stderr(),
            (true, false) => ProgressDrawTarget::stdout(),
        }
    }

    /// The examination of the evidence.
    pub(super) fn verdict(&self, report: &Report) {
        self.line("");
        for step in &report.steps {
            let (style, word) = match step.state {
                StepState::Matches => (GREEN, "matches"),
                StepState::Waiting => (YELLOW, "waiting"),
                StepState::Broken => (RED, "broken"),
            };
            self.line(&format!(
                "  {:<9} {} {}",
                step.name,
                self.paint(style, word),
                step.text
            ));
        }
        let verdict = report.verdict.as_str();
        let style = if verdict == "intact" { GREEN } else { RED };
        self.line(&format!("  {}", self.paint(style, verdict)));
    }

    /// What to try now.
    pub(super) fn invite(
        &self,
        url: &str,
        dir: &Path,
        evidence: &Path,
        anchors: &Path,
        record: &str,
        once: bool,
    ) {
        self.line("");
        self.line(&self.paint(DIM, "Try, here or on another machine:"));
        self.line(&format!(
            "  pitser verify {} --anchors {}",
            evidence.display(),
            anchors.display()
        ));
        let config = dir.join("pitser.toml");
        self.line(&format!(
            "  pitser history observation {record} --config {}",
            config.display()
        ));
        if once {
            self.line("");
        } else {
            self.line(&format!(
                "\nStill guarding. Status page: {url}   Stop with Ctrl-C.\n"
            ));
        }
    }

    /// The last line, for scripts.
    pub(super) fn summary(&self, summary: &serde_json::Value) {
        if self.json {
            println!("{summary}");
        }
    }
}

impl Bar<'_> {
    pub(super) fn set(&mut self, position: u64) {
        self.position = position;
        self.bar.set_position(position);
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    pub(super) fn finish(&self, text: impl AsRef<str>) {
        self.bar.finish_and_clear();
        self.stage.done(self.name, text);
    }
}

/// Posts one FHIR resource, as any application would.
///
/// # Errors
/// Unless the answer is 200 or 201.
pub(super) async fn post_json(
    address: SocketAddr,
    path: &str,
    body: String,
) -> Result<(), Failure> {
    let mut stream = TcpStream::connect(address)
        .await
        .map_err(Failure::service)?;
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/fhir+json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    stream
        .write_all(request.as_bytes())
        .await
        .map_err(Failure::service)?;
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .await
        .map_err(Failure::service)?;
    let status = answer.get(9..12).unwrap_or_default();
    if status == b"201" || status == b"200" {
        return Ok(());
    }
    let first = String::from_utf8_lossy(&answer);
    Err(Failure::Service(format!(
        "the guardian refused an audit event: {}",
        first.lines().next().unwrap_or_default()
    )))
}
