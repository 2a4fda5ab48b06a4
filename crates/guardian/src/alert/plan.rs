//! What an endpoint still has to be told: what a guardian shows, less what was
//! told already (spec 63 §3). Pure: nothing here waits, sends or reads a clock.
//!
//! | file `alert-<16 hex>.json`, JSON | |
//! |---|---|
//! | `format` | `pitser-alert-1` |
//! | `trails` | for each origin: |
//! | `trails.*.genesis` | the trail that the rest is about; another trail begins anew |
//! | `trails.*.upto` | the newest line whose finding was told |
//! | `trails.*.lives` | for each line whose finding can close: `told`, how many messages (odd: told as open), and what a closing says; of those that are only counted by now, the newest |
//! | `trails.*.together` | of each code and table of which more were told than one by one: the last `line` that was told so, and how many messages about it were (odd: told as open) |
//! | `trails.*.unlined` | digests of findings told without a line |

use super::message::{Kind, digest_of, finding_body, id_of};
use crate::config::matches;
use crate::status::{FindingStatus, MoreStatus, SourceState, Status};
use pitser_evidence::Code;
use pitser_ksi::time::Second;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What one endpoint was told, of all trails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Memory {
    format: String,
    trails: BTreeMap<String, Told>,
}

/// What was told of one trail.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    genesis: String,
    upto: Option<u64>,
    lives: BTreeMap<u64, Life>,
    /// Of files before there were any, none is known.
    #[serde(default)]
    together: Vec<Together>,
    unlined: BTreeSet<String>,
}

/// Findings of one code and table that were told as one message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Together {
    code: String,
    table: Option<String>,
    /// The last of them.
    line: u64,
    told: u32,
}

/// A finding that can close: enough of it to say so once the guardian no
/// longer shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Life {
    told: u32,
    code: String,
    table: Option<String>,
    at: String,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            format: FORMAT.into(),
            trails: BTreeMap::new(),
        }
    }
}

impl Memory {
    /// Reads what [`Self::encode`] gave.
    ///
    /// # Errors
    /// A sentence that says why it cannot be used.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let memory: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        match memory.format.as_str() {
            FORMAT => Ok(memory),
            other => Err(format!("its format is {other:?}, not {FORMAT}")),
        }
    }

    /// The bytes of the file.
    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("maps with texts and numbers as keys")
    }

    /// Remembers that `event` was delivered.
    pub(crate) fn tell(&mut self, event: &Event) {
        let told = self.trails.entry(event.origin.clone()).or_default();
        if told.genesis != event.genesis {
            *told = Told {
                genesis: event.genesis.clone(),
                ..Told::default()
            };
        }
        let finding = &event.finding;
        let Some(line) = finding.line else {
            told.unlined.insert(digest(finding));
            return;
        };
        told.upto = told.upto.max(Some(line));
        if matches!(event.kind, Kind::More | Kind::NoMore) {
            let (code, table) = (&finding.code, &finding.table);
            told.together
                .retain(|it| (&it.code, &it.table) != (code, table));
            told.together.push(Together {
                code: code.clone(),
                table: table.clone(),
                line,
                told: event.nth,
            });
            if told.together.len() > COUNTED {
                let ended = told.together.iter().position(|it| !it.is_open());
                ended.map(|oldest| told.together.remove(oldest));
            }
            return;
        }
        if event.is_last {
            told.lives.remove(&line);
        } else if event.nth > 1 || can_close(&finding.code) {
            let life = Life {
                told: event.nth,
                code: finding.code.clone(),
                table: finding.table.clone(),
                at: finding.at.clone(),
            };
            told.lives.insert(line, life);
        }
    }

    /// Drops what nothing more has to be told of: what was told as closed and is shown no
    /// longer, what was told without a line and has one by now, and the oldest of very many
    /// that are only counted.
    pub(crate) fn tidy(&mut self, status: &Status) {
        let told = self.trails.get_mut(&status.origin);
        let is_it = |told: &&mut Told| told.genesis == status.genesis && status.is_opened;
        let Some(told) = told.filter(is_it) else {
            return;
        };
        let lives = &mut told.lives;
        if lives.len() > COUNTED || lives.values().any(|life| !life.is_open()) {
            let shown = lines(status);
            lives.retain(|line, life| life.is_open() || shown.contains(line));
            let counted = lives.iter().filter(|(line, life)| {
                !shown.contains(line) && life.is_open() && life.is_counted(**line, status)
            });
            let counted: Vec<u64> = counted.map(|(line, _)| *line).collect();
            for line in &counted[..counted.len().saturating_sub(COUNTED)] {
                lives.remove(line);
            }
        }
        let has_lines = matches!(status.state, SourceState::Guarding | SourceState::Baseline);
        if has_lines && !told.unlined.is_empty() {
            let shown: BTreeSet<String> = status.findings.iter().map(digest).collect();
            told.unlined.retain(|digest| shown.contains(digest));
        }
    }

    fn of(&self, status: &Status) -> Option<&Told> {
        let told = self.trails.get(&status.origin)?;
        (told.genesis == status.genesis).then_some(told)
    }
}

impl Told {
    /// How many messages about `finding` were delivered.
    fn count(&self, finding: &FindingStatus) -> u32 {
        let Some(line) = finding.line else {
            return u32::from(self.unlined.contains(&digest(finding)));
        };
        match self.lives.get(&line) {
            Some(life) => life.told,
            // A restart gives a line to findings that had shown none.
            None => u32::from(
                Some(line) <= self.upto
                    || (!self.unlined.is_empty() && self.unlined.contains(&digest(finding))),
            ),
        }
    }
}

/// One message that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) kind: Kind,
    /// The same over retries and restarts.
    pub(crate) id: String,
    /// Which of the watched sources.
    pub(crate) source: usize,
    name: String,
    origin: String,
    genesis: String,
    finding: FindingStatus,
    at: Second,
    /// Which message about this finding it is, from 1, or about those up to its line that
    /// are told together.
    nth: u32,
    /// The finding is shown no longer: there is no more to come.
    is_last: bool,
}

impl Event {
    /// The bytes to send.
    pub(crate) fn body(&self, keys: bool) -> Vec<u8> {
        let names = (self.name.as_str(), self.origin.as_str());
        finding_body(self.kind, self.at, names, &self.finding, keys)
    }

    /// The same without anything that somebody else chose: names in the database, and texts
    /// that have them.
    pub(crate) fn bare_body(&self) -> Vec<u8> {
        let finding = FindingStatus {
            table: None,
            key: None,
            columns: Vec::new(),
            text: "the receiver has refused the message itself: the trail's line says more"
                .to_owned(),
            accepted: None,
            ..self.finding.clone()
        };
        let bare = Self {
            finding,
            ..self.clone()
        };
        bare.body(false)
    }
}

/// How far what a guardian shows of a source can be believed.
///
/// A guardian that starts, or goes on after a failure, shows every finding of
/// its trail as open until the next scan has looked. Only a finding that was
/// told as closed needs this care: it must be told again if it is back, and
/// must not if nobody has looked.
#[derive(Debug)]
pub(crate) struct Sight {
    verified: Option<String>,
    /// What `verified_up_to` says while only the trail speaks.
    unlooked: Option<Option<String>>,
    closed: BTreeSet<u64>,
    is_fresh: bool,
}

impl Default for Sight {
    fn default() -> Self {
        Self {
            verified: None,
            unlooked: Some(None),
            closed: BTreeSet::new(),
            is_fresh: false,
        }
    }
}

impl Sight {
    /// Takes a status that was not seen before; or, if that [is fresh](Self::is_fresh),
    /// the same once more, after a while without another.
    pub(crate) fn observe(&mut self, status: &Status) {
        let lines = |open: bool| {
            let chosen = status.findings.iter().filter(move |f| f.open == open);
            chosen.filter_map(|f| f.line)
        };
        // A finding that is back has a new line, unless the trail was read again.
        if !self.closed.is_empty() && lines(true).any(|line| self.closed.contains(&line)) {
            self.unlooked = Some(status.verified_up_to.clone());
        }
        self.closed = lines(false).collect();
        self.is_fresh = self.verified != status.verified_up_to;
        self.verified.clone_from(&status.verified_up_to);
        if !self.is_fresh && self.unlooked.as_ref() != Some(&self.verified) {
            self.unlooked = None;
        }
    }

    /// True if a scan has just ended: a guardian shows its time just before
    /// what it found.
    pub(crate) fn is_fresh(&self) -> bool {
        self.is_fresh
    }

    /// True if somebody has looked at what is shown as open.
    fn is_confirmed(&self) -> bool {
        !self.is_fresh && self.unlooked.is_none()
    }
}

/// What an endpoint wants to hear.
#[derive(Debug, Clone)]
pub(crate) struct Choice(Vec<String>);

impl Choice {
    /// Codes that fit one of `patterns`.
    pub(crate) fn new(patterns: Vec<String>) -> Self {
        Self(patterns)
    }

    fn wants(&self, code: &str) -> bool {
        self.0.iter().any(|pattern| matches(pattern, code))
    }
}

/// What is due to an endpoint from one source.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Due {
    /// The first messages, in the order of the trail.
    pub(crate) events: Vec<Event>,
    /// All of them.
    pub(crate) count: u64,
}

/// What `memory` lacks of `status`: at most `limit` events, and how many in all.
pub(crate) fn due(
    memory: &Memory,
    (source, status, sight): (usize, &Status, &Sight),
    choice: &Choice,
    now: Second,
    limit: usize,
) -> Due {
    // Nobody could say which trail it is.
    if status.state == SourceState::Starting || status.genesis.is_empty() {
        return Due::default();
    }
    let none = Told::default();
    let told = memory.of(status).unwrap_or(&none);
    // Before a trail was opened, its findings are not shown, and not gone.
    let mut steps = match status.is_opened {
        true => gone(told, status, choice),
        false => Vec::new(),
    };
    // Found faster than it could be told, or before anybody was to be told.
    let more = status.more_findings.iter();
    let more = more.filter(|it| choice.wants(&it.code) && it.last_line > told.upto);
    steps.extend(more.map(Step::more));
    for finding in status.findings.iter().filter(|f| choice.wants(&f.code)) {
        let count = told.count(finding);
        let mut push = |nth, kind| steps.push(Step::shown(finding, nth, kind));
        let end = match finding.accepted {
            Some(_) => Kind::Accepted,
            None => Kind::Closed,
        };
        match (count, finding.open) {
            (0, true) => push(1, Kind::Opened),
            // It opened and closed since we last could tell.
            (0, false) => {
                push(1, Kind::Opened);
                push(2, end);
            }
            (n, false) if n % 2 == 1 => push(n + 1, end),
            (n, true) if n % 2 == 0 && sight.is_confirmed() => push(n + 1, Kind::Opened),
            _ => {}
        }
    }
    let together = told.together.iter().filter(|it| choice.wants(&it.code));
    steps.extend(together.filter_map(|it| it.next(status, told, sight)));
    // Stable, and nearly sorted already; what has no line comes last.
    steps.sort_by_key(|step| step.line.unwrap_or(u64::MAX));
    let count = steps.len() as u64;
    let events = steps.into_iter().take(limit);
    Due {
        events: events.map(|s| s.event(source, status, now)).collect(),
        count,
    }
}

/// Closings of findings that are shown no longer: they closed and came back,
/// as new findings, before we could tell.
fn gone<'a>(told: &'a Told, status: &Status, choice: &Choice) -> Vec<Step<'a>> {
    let open = |life: &Life| life.is_open() && choice.wants(&life.code);
    if !told.lives.values().any(open) {
        return Vec::new();
    }
    let shown = lines(status);
    let gone = told.lives.iter().filter(|(line, life)| {
        open(life) && !shown.contains(line) && !life.is_counted(**line, status)
    });
    gone.map(|(line, life)| Step {
        line: Some(*line),
        nth: life.told + 1,
        kind: Kind::Closed,
        about: About::Gone(life),
    })
    .collect()
}

struct Step<'a> {
    line: Option<u64>,
    nth: u32,
    kind: Kind,
    about: About<'a>,
}

enum About<'a> {
    Shown(&'a FindingStatus),
    Gone(&'a Life),
    More(&'a MoreStatus),
    NoMore(&'a Together),
}

impl<'a> Step<'a> {
    fn shown(finding: &'a FindingStatus, nth: u32, kind: Kind) -> Self {
        Self {
            line: finding.line,
            nth,
            kind,
            about: About::Shown(finding),
        }
    }

    fn more(more: &'a MoreStatus) -> Self {
        Self {
            line: more.last_line,
            nth: 1,
            kind: Kind::More,
            about: About::More(more),
        }
    }

    /// The message's number, by which its id differs from others about its line: of those
    /// told together it counts down from 0.
    fn number(&self) -> u32 {
        match self.kind {
            Kind::More | Kind::NoMore => 1_u32.wrapping_sub(self.nth),
            _ => self.nth,
        }
    }

    fn event(&self, source: usize, status: &Status, now: Second) -> Event {
        let (finding, is_last) = match self.about {
            About::Shown(finding) => (finding.clone(), false),
            About::Gone(life) => (life.finding(self.line), true),
            About::More(more) => (counted(more, self.line, now), false),
            About::NoMore(together) => (together.none(now), false),
        };
        let opened_at = Second(finding.found_at_us / 1_000_000);
        let identity = match finding.line {
            Some(line) => line.to_string(),
            None => digest(&finding),
        };
        let parts = [
            status.origin.as_bytes(),
            status.genesis.as_bytes(),
            finding.code.as_bytes(),
            identity.as_bytes(),
            &self.number().to_be_bytes(),
        ];
        Event {
            kind: self.kind,
            id: id_of(&parts),
            source,
            name: status.name.clone(),
            origin: status.origin.clone(),
            genesis: status.genesis.clone(),
            at: match self.kind {
                Kind::Opened if self.nth == 1 => opened_at,
                _ => now,
            },
            finding,
            nth: self.nth,
            is_last,
        }
    }
}

impl Together {
    fn is_open(&self) -> bool {
        self.told % 2 == 1
    }

    /// The message that is due about them, if there are no newer ones to tell of: none of
    /// them is open any more, or after a start some are again.
    fn next<'a>(&'a self, status: &'a Status, told: &Told, sight: &Sight) -> Option<Step<'a>> {
        let is_it =
            |code: &str, table: &Option<String>| (code, table) == (&*self.code, &self.table);
        let mut more = status.more_findings.iter();
        let more = more.find(|it| is_it(&it.code, &it.table) && it.open > 0);
        let about = match (more, self.is_open()) {
            // Those that came later were told one by one, or will be.
            (Some(more), false) if sight.is_confirmed() && more.last_line <= told.upto => {
                About::More(more)
            }
            (None, true) if status.is_opened => {
                let listed = status.findings.iter();
                let mut listed = listed.filter(|it| it.open && it.line <= Some(self.line));
                if listed.any(|it| it.line.is_some() && is_it(&it.code, &it.table)) {
                    return None;
                }
                About::NoMore(self)
            }
            _ => return None,
        };
        Some(Step {
            line: Some(self.line),
            nth: self.told + 1,
            kind: match about {
                About::NoMore(_) => Kind::NoMore,
                _ => Kind::More,
            },
            about,
        })
    }

    /// What is told when none of them is open any more.
    fn none(&self, now: Second) -> FindingStatus {
        FindingStatus {
            code: self.code.clone(),
            table: self.table.clone(),
            key: None,
            columns: Vec::new(),
            at: now.to_string(),
            found_at_us: 0,
            text: format!(
                "no such finding up to line {} of the trail is open any more, told one by one or not",
                self.line
            ),
            open: false,
            line: Some(self.line),
            accepted: None,
        }
    }
}

/// Lines of the findings that are shown one by one.
fn lines(status: &Status) -> BTreeSet<u64> {
    status.findings.iter().filter_map(|f| f.line).collect()
}

impl Life {
    fn is_open(&self) -> bool {
        self.told % 2 == 1
    }

    /// Whether it may be one of those that are open and only counted.
    fn is_counted(&self, line: u64, status: &Status) -> bool {
        status.more_findings.iter().any(|more| {
            (&more.code, &more.table) == (&self.code, &self.table)
                && more.first_line.is_some_and(|first| first <= line)
                && more.last_line.is_some_and(|last| line <= last)
        })
    }

    fn finding(&self, line: Option<u64>) -> FindingStatus {
        FindingStatus {
            code: self.code.clone(),
            table: self.table.clone(),
            key: None,
            columns: Vec::new(),
            at: self.at.clone(),
            found_at_us: 0,
            text: "it closed, and was found again as a new finding".into(),
            open: false,
            line,
            accepted: None,
        }
    }
}

/// What is told of findings that are only counted.
fn counted(more: &MoreStatus, line: Option<u64>, now: Second) -> FindingStatus {
    FindingStatus {
        code: more.code.clone(),
        table: more.table.clone(),
        key: None,
        columns: Vec::new(),
        at: now.to_string(),
        found_at_us: 0,
        text: format!(
            "{} more findings are open, in lines {} to {} of the trail, and are not told one by one",
            more.open,
            more.first_line.unwrap_or_default(),
            more.last_line.unwrap_or_default()
        ),
        open: true,
        line,
        accepted: None,
    }
}

/// A finding without a line, by what it says.
fn digest(finding: &FindingStatus) -> String {
    let table = finding.table.as_deref().unwrap_or_default();
    let columns = finding.columns.join("\0");
    let parts = [&finding.code, table, &columns, &finding.text];
    digest_of(&parts.map(str::as_bytes))
}

fn can_close(code: &str) -> bool {
    let known = Code::ALL.iter().find(|known| known.as_str() == code);
    known.is_some_and(|code| pitser_monitor::can_close(*code))
}

const FORMAT: &str = "pitser-alert-1";
/// Of a trail, findings that were told one by one and are only counted by now, whose closing
/// would still be told: whoever can change rows can have any number of them written.
const COUNTED: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::AcceptedStatus;

    /// An endpoint and a guardian that shows things, without a network.
    struct World {
        memory: Memory,
        sight: Sight,
        choice: Choice,
        status: Status,
    }

    impl World {
        fn new() -> Self {
            Self {
                memory: Memory::default(),
                sight: Sight::default(),
                choice: Choice::new(vec!["*".into()]),
                status: Status {
                    name: "h".into(),
                    origin: "test.example/h".into(),
                    genesis: "abc".into(),
                    state: SourceState::Guarding,
                    is_opened: true,
                    ..Status::default()
                },
            }
        }

        fn shows(&mut self, findings: &[FindingStatus]) {
            self.status.findings = findings.to_vec();
            self.sight.observe(&self.status);
        }

        fn scanned(&mut self, at: &str, findings: &[FindingStatus]) {
            self.status.verified_up_to = Some(at.into());
            // As a guardian does it: the time first, then what was found.
            self.sight.observe(&self.status);
            self.tidy_shows(findings);
        }

        fn tidy_shows(&mut self, findings: &[FindingStatus]) {
            self.shows(findings);
            self.memory.tidy(&self.status);
        }

        fn due(&self) -> Due {
            let about = (0, &self.status, &self.sight);
            due(&self.memory, about, &self.choice, Second(9), 10_000)
        }

        /// Delivers everything, and says it in short: `+7` opened, `-7` closed.
        fn told(&mut self) -> Vec<String> {
            let due = self.due();
            assert_eq!(due.count, due.events.len() as u64);
            for event in &due.events {
                self.memory.tell(event);
            }
            assert_eq!(self.due().count, 0, "what was told is told");
            due.events.iter().map(short).collect()
        }

        /// The process ends and another begins: only the file stays.
        fn restart(&mut self, findings: &[FindingStatus]) {
            self.memory = Memory::decode(&self.memory.encode()).unwrap();
            self.sight = Sight::default();
            self.status.verified_up_to = None;
            self.shows(findings);
        }
    }

    fn short(event: &Event) -> String {
        let sign = match event.kind {
            Kind::Opened => '+',
            Kind::Closed => '-',
            Kind::Accepted => '=',
            Kind::More => '*',
            Kind::NoMore => '/',
        };
        match event.finding.line {
            Some(line) => format!("{sign}{line}"),
            None => format!("{sign}{}", event.finding.text),
        }
    }

    fn finding(code: &str, line: u64, open: bool) -> FindingStatus {
        FindingStatus {
            code: code.into(),
            table: Some("entry".into()),
            key: Some("1".into()),
            columns: vec!["note".into()],
            at: "1970-01-01T00:00:01Z".into(),
            found_at_us: 1_000_000,
            text: "wrong".into(),
            open,
            line: Some(line),
            accepted: None,
        }
    }

    fn row(line: u64, open: bool) -> FindingStatus {
        finding("ROW-01", line, open)
    }

    fn unlined(code: &str, text: &str) -> FindingStatus {
        FindingStatus {
            line: None,
            text: text.into(),
            ..finding(code, 0, true)
        }
    }

    #[test]
    fn openings_and_closings_are_told_once_in_the_trails_order() {
        let mut world = World::new();
        world.shows(&[row(9, true), finding("ACT-01", 3, true)]);
        assert_eq!(world.told(), ["+3", "+9"]);
        world.scanned("a", &[finding("ACT-01", 3, true), row(9, false)]);
        assert_eq!(world.told(), ["-9"]);
        world.shows(&[finding("ACT-01", 3, true), row(9, false), row(12, true)]);
        assert_eq!(world.told(), ["+12"]);
    }

    #[test]
    fn what_opened_and_closed_unheard_is_told_as_both() {
        let mut world = World::new();
        world.shows(&[row(5, false), row(8, true)]);
        assert_eq!(world.told(), ["+5", "-5", "+8"]);
    }

    fn accepted(line: u64, by: u64) -> FindingStatus {
        FindingStatus {
            open: false,
            accepted: Some(AcceptedStatus {
                line: by,
                at: "1970-01-01T00:00:08Z".into(),
                by: Some("Mari Maasikas".into()),
                reason: Some("the nightly import".into()),
            }),
            ..finding("ACT-01", line, false)
        }
    }

    fn more(code: &str, open: u64, first: u64, last: u64) -> MoreStatus {
        MoreStatus {
            code: code.into(),
            table: Some("entry".into()),
            open,
            earlier: 0,
            first_line: Some(first),
            last_line: Some(last),
        }
    }

    /// Far more than can be told one by one: how many is told once, in the trail's order.
    #[test]
    fn those_that_are_only_counted_are_told_as_one() {
        let mut world = World::new();
        world.status.more_findings = vec![more("ACT-01", 900, 4, 1000)];
        world.shows(&[finding("CAP-01", 3, true), finding("ACT-01", 1001, true)]);
        let event = &world.due().events[1];
        let body = String::from_utf8(event.body(true)).unwrap();
        assert!(body.contains(r#""type":"finding.more""#), "{body}");
        let text = "900 more findings are open, in lines 4 to 1000 of the trail";
        assert!(body.contains(text), "{body}");
        assert_eq!(world.told(), ["+3", "*1000", "+1001"]);
        // One that was told becomes one that is only counted; others are told as such.
        let shown = [finding("CAP-01", 3, true), finding("ACT-01", 1002, true)];
        world.status.more_findings = vec![more("ACT-01", 901, 4, 1001)];
        world.restart(&shown);
        assert_eq!(world.told(), ["+1002"]);
        // It is kept again, and accepted: the last message about it.
        world.shows(&[accepted(900, 1003)]);
        assert_eq!(world.told(), ["=900"]);
    }

    /// Whoever was told of many is told when none of them is open, however they ended.
    #[test]
    fn that_none_of_very_many_is_open_any_more_is_told_once() {
        let mut world = World::new();
        world.status.more_findings = vec![more("ROW-01", 900, 4, 1000), more("ACT-01", 7, 1, 8)];
        world.shows(&[row(1001, true)]);
        assert_eq!(world.told(), ["*8", "*1000", "+1001"]);
        // Fewer are open, and some of them are listed by now.
        world.status.more_findings = vec![more("ROW-01", 1, 4, 4)];
        world.scanned("a", &[row(900, true), row(1001, true)]);
        let body = String::from_utf8(world.due().events[0].body(true)).unwrap();
        assert!(body.contains(r#""type":"finding.no_more""#), "{body}");
        let text = "no such finding up to line 8 of the trail is open any more";
        assert!(body.contains(text), "{body}");
        assert_eq!(world.told(), ["/8"]);
        // The last that was counted is mended; one that is listed is not.
        world.status.more_findings = Vec::new();
        world.scanned("b", &[row(900, true), row(1001, true)]);
        assert_eq!(world.told(), [""; 0]);
        world.scanned("c", &[row(900, false), row(1001, true)]);
        assert_eq!(world.told(), ["-900", "/1000"], "1001 was told for itself");
        // Newer ones are told as such, and end as such.
        world.status.more_findings = vec![more("ROW-01", 9, 1100, 1200)];
        world.scanned("d", &[row(1001, true)]);
        assert_eq!(world.told(), ["*1200"]);
        world.status.more_findings = Vec::new();
        world.scanned("e", &[row(1001, true)]);
        assert_eq!(world.told(), [""; 0], "1001 is one of them");
        world.scanned("f", &[]);
        assert_eq!(world.told(), ["-1001", "/1200"]);
    }

    /// After a start all that the trail tells of are counted as open until a scan has looked.
    #[test]
    fn very_many_that_are_back_are_told_again_once_a_scan_has_looked() {
        let mut world = World::new();
        world.status.more_findings = vec![more("ROW-01", 900, 4, 1000)];
        world.shows(&[row(1001, true)]);
        let first = world.due().events[0].id.clone();
        assert_eq!(world.told(), ["*1000", "+1001"]);
        world.status.is_opened = false;
        world.status.more_findings = Vec::new();
        world.restart(&[]);
        assert_eq!(world.told(), [""; 0], "nobody has read the trail yet");
        world.status.is_opened = true;
        world.scanned("a", &[row(1001, false)]);
        let none = world.due().events[0].id.clone();
        assert_eq!(world.told(), ["/1000", "-1001"]);
        world.status.more_findings = vec![more("ROW-01", 900, 4, 1000)];
        world.restart(&[row(1001, true)]);
        assert_eq!(world.told(), [""; 0]);
        world.scanned("b", &[row(1001, true)]);
        let again = world.due().events[0].id.clone();
        assert_eq!(world.told(), ["*1000", "+1001"]);
        world.status.more_findings = Vec::new();
        world.scanned("c", &[row(1001, false)]);
        let ids = [first, none, again, world.due().events[0].id.clone()];
        assert_eq!(BTreeSet::from(ids).len(), 4);
        assert_eq!(world.told(), ["/1000", "-1001"]);
    }

    #[test]
    fn of_very_many_kinds_that_ended_the_newest_are_remembered() {
        let mut world = World::new();
        for nth in 1..=2 * COUNTED as u64 {
            let mut more = more("ACT-01", 7, nth, nth);
            more.table = Some(format!("table {nth}"));
            world.status.more_findings = vec![more];
            world.shows(&[]);
            assert_eq!(world.told(), [format!("*{nth}")]);
            world.status.more_findings = Vec::new();
            world.shows(&[]);
            assert_eq!(world.told(), [format!("/{nth}")]);
        }
        let together = &world.memory.trails["test.example/h"].together;
        assert_eq!(together.len(), COUNTED);
        assert!(together.iter().all(|it| it.line > COUNTED as u64));
    }

    #[test]
    fn a_memory_from_before_there_was_anything_told_together_is_read() {
        let text = r#"{"format":"pitser-alert-1","trails":{"test.example/h":{"genesis":"abc","upto":7,"lives":{},"unlined":[]}}}"#;
        let memory = Memory::decode(text.as_bytes()).unwrap();
        assert_eq!(memory.trails["test.example/h"].upto, Some(7));
    }

    #[test]
    fn a_finding_that_is_only_counted_is_not_closed_for_that() {
        let mut world = World::new();
        world.shows(&[row(5, true), row(6, true)]);
        assert_eq!(world.told(), ["+5", "+6"]);
        world.status.more_findings = vec![more("ROW-01", 1, 5, 5)];
        world.scanned("a", &[row(6, true)]);
        assert_eq!(world.told(), [""; 0]);
        world.status.more_findings = Vec::new();
        world.scanned("b", &[row(6, true)]);
        assert_eq!(world.told(), ["-5"]);
    }

    /// Each is told before it is only counted: what is remembered of them is bounded, what is
    /// told of them is right.
    #[test]
    fn of_very_many_that_were_told_the_newest_are_remembered() {
        let (mut world, number, shown) = (World::new(), 3 * COUNTED as u64, 200);
        for last in 1..=number {
            let counted = last.saturating_sub(shown);
            world.status.more_findings = match counted {
                0 => Vec::new(),
                _ => vec![more("ROW-01", counted, 1, counted)],
            };
            let rows: Vec<_> = (counted + 1..=last).map(|line| row(line, true)).collect();
            world.tidy_shows(&rows);
            assert_eq!(world.told(), [format!("+{last}")]);
        }
        let lives = |world: &World| world.memory.trails["test.example/h"].lives.len();
        let most = COUNTED + usize::try_from(shown).unwrap();
        assert!(lives(&world) <= most + 1, "{}", lives(&world));
        // All but the last ten are mended: what is remembered of them is told as closed.
        world.status.more_findings = Vec::new();
        let rows: Vec<_> = (number - 9..=number).map(|line| row(line, true)).collect();
        world.scanned("a", &rows);
        let closed = world.told();
        assert_eq!(closed.len(), most - 10);
        assert!(closed.iter().all(|it| it.starts_with('-')));
        world.tidy_shows(&rows);
        assert_eq!(lives(&world), 10);
        // One that is forgotten is not told as open again, and closes once it is shown.
        world.shows(&[row(1, true)]);
        assert!(!world.told().contains(&"+1".into()));
        world.scanned("b", &[row(1, false)]);
        assert_eq!(world.told(), ["-1"]);
    }

    #[test]
    fn what_was_told_without_a_line_is_forgotten_once_all_have_theirs() {
        let mut world = World::new();
        for nth in 0..100 {
            let text = format!("nothing is captured since {nth}");
            world.status.state = SourceState::DatabaseUnavailable;
            world.tidy_shows(&[unlined("CAP-03", &text)]);
            assert_eq!(world.told(), [format!("+{text}")]);
            world.tidy_shows(&[unlined("CAP-03", &text)]);
            assert_eq!(world.told(), [""; 0]);
            world.status.state = SourceState::Guarding;
            world.tidy_shows(&[]);
        }
        assert!(world.memory.trails["test.example/h"].unlined.is_empty());
    }

    #[test]
    fn who_answers_for_a_finding_is_told_once_also_over_restarts() {
        let mut world = World::new();
        world.shows(&[finding("ACT-01", 3, true)]);
        assert_eq!(world.told(), ["+3"]);
        world.shows(&[accepted(3, 4)]);
        let body = String::from_utf8(world.due().events[0].body(false)).unwrap();
        assert!(body.contains(r#""type":"finding.accepted""#), "{body}");
        let by = r#""accepted":{"at":"1970-01-01T00:00:08Z","by":"Mari Maasikas","line":4}"#;
        assert!(body.contains(by), "{body}");
        assert!(!body.contains("nightly"), "why stays at the guardian");
        assert_eq!(world.told(), ["=3"]);
        let now = [accepted(3, 4), finding("ACT-01", 6, true)];
        world.restart(&now);
        assert_eq!(world.told(), ["+6"]);
        world.scanned("a", &[accepted(3, 4), accepted(6, 7), accepted(8, 9)]);
        assert_eq!(world.told(), ["=6", "+8", "=8"]);
    }

    #[test]
    fn a_restart_repeats_nothing_and_loses_nothing() {
        let mut world = World::new();
        world.shows(&[finding("ACT-01", 3, true), row(5, true)]);
        assert_eq!(world.told(), ["+3", "+5"]);
        let now = [
            finding("ACT-01", 3, true),
            row(5, true),
            finding("CAP-01", 6, true),
        ];
        world.restart(&now);
        assert_eq!(world.told(), ["+6"]);
    }

    /// After a start all findings of the trail look open until a scan has
    /// looked: those that were told as closed are not opened again for that.
    #[test]
    fn a_closed_finding_is_not_reopened_by_a_restart() {
        let mut world = World::new();
        world.shows(&[row(5, true)]);
        world.scanned("a", &[row(5, false)]);
        assert_eq!(world.told(), ["+5", "-5"]);
        world.restart(&[row(5, true)]);
        assert_eq!(world.told(), [""; 0]);
        world.scanned("b", &[row(5, false)]);
        assert_eq!(world.told(), [""; 0]);
        // Nor when the same guardian reads its trail again after a failure.
        world.shows(&[row(5, true)]);
        assert_eq!(world.told(), [""; 0]);
        world.shows(&[row(5, true)]);
        assert_eq!(world.told(), [""; 0]);
        world.scanned("c", &[row(5, false)]);
        assert_eq!(world.told(), [""; 0]);
    }

    /// Between a scan's end and what it found, the time of the one is shown with
    /// the findings of before.
    #[test]
    fn the_time_of_a_scan_alone_reopens_nothing() {
        let mut world = World::new();
        world.shows(&[row(5, false)]);
        assert_eq!(world.told(), ["+5", "-5"]);
        world.restart(&[row(5, true)]);
        world.status.verified_up_to = Some("b".into());
        world.shows(&[row(5, true)]);
        assert!(world.sight.is_fresh());
        assert_eq!(world.told(), [""; 0]);
        world.shows(&[row(5, false)]);
        assert_eq!(world.told(), [""; 0]);
    }

    /// The row was mended and told so; while the guardian was down it was made
    /// wrong in the same way, which gets no new line.
    #[test]
    fn a_finding_that_came_back_during_a_stop_is_told_after_the_scan() {
        let mut world = World::new();
        world.shows(&[row(5, true)]);
        world.scanned("a", &[row(5, false)]);
        assert_eq!(world.told(), ["+5", "-5"]);
        world.restart(&[row(5, true)]);
        assert_eq!(world.told(), [""; 0], "nobody has looked yet");
        world.scanned("b", &[row(5, true)]);
        let again = world.due().events[0].id.clone();
        assert_eq!(world.told(), ["+5"]);
        world.scanned("c", &[row(5, false)]);
        assert_ne!(world.due().events[0].id, again);
        assert_eq!(world.told(), ["-5"]);
    }

    #[test]
    fn a_finding_replaced_by_a_new_one_is_closed_first() {
        let mut world = World::new();
        world.shows(&[row(5, true)]);
        assert_eq!(world.told(), ["+5"]);
        world.scanned("a", &[row(8, true)]);
        let event = world.due().events.remove(0);
        assert_eq!(event.finding.table.as_deref(), Some("entry"));
        assert_eq!(world.told(), ["-5", "+8"]);
        world.restart(&[row(8, true)]);
        assert_eq!(world.told(), [""; 0]);
        assert_eq!(world.memory.trails["test.example/h"].lives.len(), 1);
    }

    #[test]
    fn a_finding_that_gets_its_line_at_a_restart_is_not_told_again() {
        let mut world = World::new();
        world.shows(&[
            unlined("CAP-03", "a trigger is gone"),
            finding("ACT-01", 7, true),
        ]);
        assert_eq!(world.told(), ["+7", "+a trigger is gone"]);
        let lined = FindingStatus {
            line: Some(8),
            ..unlined("CAP-03", "a trigger is gone")
        };
        world.restart(&[finding("ACT-01", 7, true), lined]);
        assert_eq!(world.told(), [""; 0]);
    }

    #[test]
    fn ids_are_stable_and_differ() {
        let mut world = World::new();
        world.shows(&[row(5, false), row(6, true), finding("ROW-02", 7, true)]);
        let ids = |world: &World| -> Vec<String> {
            world.due().events.into_iter().map(|e| e.id).collect()
        };
        let before = ids(&world);
        let distinct: BTreeSet<_> = before.iter().collect();
        assert_eq!(distinct.len(), 4);
        let shown = world.status.findings.clone();
        world.restart(&shown);
        assert_eq!(ids(&world), before);
        world.status.origin = "test.example/other".into();
        assert!(ids(&world).iter().all(|id| !before.contains(id)));
    }

    #[test]
    fn another_trail_under_the_same_name_begins_anew() {
        let mut world = World::new();
        world.shows(&[row(5, true)]);
        world.told();
        world.status.genesis = "def".into();
        world.restart(&[row(3, true)]);
        assert_eq!(world.told(), ["+3"]);
    }

    #[test]
    fn only_wanted_codes_are_told() {
        let mut world = World::new();
        world.choice = Choice::new(vec!["ROW-*".into(), "CAP-03".into()]);
        world.shows(&[
            finding("ACT-01", 1, true),
            row(2, true),
            unlined("CAP-03", "a"),
            unlined("CAP-01", "b"),
        ]);
        assert_eq!(world.told(), ["+2", "+a"]);
    }

    #[test]
    fn a_limit_cuts_the_list_and_not_the_count() {
        let mut world = World::new();
        let all: Vec<_> = (0..10).map(|line| row(line, true)).collect();
        world.shows(&all);
        let about = (0, &world.status, &world.sight);
        let due = due(&world.memory, about, &world.choice, Second(9), 3);
        assert_eq!((due.events.len(), due.count), (3, 10));
    }

    #[test]
    fn a_guardian_that_has_not_begun_closes_nothing() {
        let mut world = World::new();
        world.shows(&[row(5, true)]);
        world.told();
        world.status.state = SourceState::Starting;
        world.restart(&[]);
        assert_eq!(world.told(), [""; 0]);
    }

    /// The database is down when the guardian starts: that is told, and nothing is said of
    /// what the trail holds.
    #[test]
    fn an_outage_is_told_before_the_trail_was_opened() {
        let mut world = World::new();
        let known = [row(5, true), row(6, true), finding("ACT-01", 7, true)];
        world.shows(&known);
        world.told();
        world.scanned("a", &[row(5, true), row(6, false), known[2].clone()]);
        assert_eq!(world.told(), ["-6"]);
        world.status.state = SourceState::DatabaseUnavailable;
        world.status.is_opened = false;
        let outage = unlined("CAP-03", "nothing is captured");
        world.restart(std::slice::from_ref(&outage));
        world.tidy_shows(&[outage]);
        assert_eq!(world.told(), ["+nothing is captured"]);
        world.status.state = SourceState::Guarding;
        world.status.is_opened = true;
        world.tidy_shows(&known);
        world.scanned("b", &[row(5, true), row(6, false), known[2].clone()]);
        assert_eq!(world.told(), [""; 0]);
    }

    #[test]
    fn a_memory_of_another_version_is_refused() {
        let text = r#"{"format":"pitser-alert-2","trails":{}}"#;
        let error = Memory::decode(text.as_bytes()).unwrap_err();
        assert!(error.contains("pitser-alert-2"), "{error}");
        assert!(Memory::decode(b"{").is_err());
    }
}
