//! What the status page says: one sentence a source, and advice a finding.
//!
//! A sentence never says more than was checked: records are as they were
//! sealed *at the last check*, and only while somebody is guarding.

use std::collections::HashSet;

use pitser_evidence::Code;
use pitser_guardian::{FindingStatus, SourceState, Status};

/// How a source looks at a glance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tone {
    /// Checked, and as it should be.
    Good,
    /// Not known, or in need of a look.
    Wait,
    /// Something was tampered with, or nobody is guarding.
    Bad,
}

/// What is said of a source.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) tone: Tone,
    /// One sentence.
    pub(crate) sentence: String,
    /// Further sentences, each a paragraph.
    pub(crate) notes: Vec<String>,
}

/// What is said of `status`.
pub(crate) fn verdict(status: &Status) -> Verdict {
    let (tone, sentence) = worst(status);
    let mut notes = Vec::new();
    if status.state != SourceState::Guarding && sentence != state_words(status.state) {
        notes.push(state_words(status.state));
    }
    if let Some(trouble) = &status.trouble {
        notes.push(sentence_of(trouble));
    }
    if let Some(baseline) = &status.baseline {
        let read = count(baseline.rows, "record was read", "records were read");
        let of = baseline.about.map_or(String::new(), |about| {
            format!(", of about {}", grouped(about))
        });
        notes.push(format!("Since this start {read}{of}."));
    }
    if status.seal_delayed {
        let blocks = count(status.unsealed, "block waits", "blocks wait");
        notes.push(format!(
            "{blocks} for a seal. Nothing is lost: each is sealed as soon as the authority answers."
        ));
    }
    Verdict {
        tone,
        sentence,
        notes,
    }
}

/// What a state means, as a sentence, and what comes next.
pub(crate) fn state_words(state: SourceState) -> String {
    let next = match state {
        SourceState::DatabaseUnavailable | SourceState::TrailUnavailable => {
            " Capture goes on where it was when it can."
        }
        SourceState::Damaged => " A person must look.",
        _ => "",
    };
    sentence_of(state.words()) + next
}

/// What to do about a finding of that code.
pub(crate) fn advice(code: &str) -> &'static str {
    let Some(code) = known(code) else {
        return "See the manual.";
    };
    match code {
        Code::RowDiffers => {
            "Look at the record’s history, find out who had access to the database at that time, \
             and restore the sealed values. Do not save the record as it is: that would seal the \
             wrong values as new ones."
        }
        Code::RowMissing => {
            "Look at the record’s history, and restore it. What it held was sealed, and is in the \
             vault."
        }
        Code::RowUnknown => {
            "Find out where the row came from. If it belongs there, enter it through the \
             application; if not, remove it."
        }
        Code::RowReplaced => {
            "Somebody wrote to the row past the application before this change, which sealed what it \
             left of that. Look at the record’s history, and have what is wrong entered anew."
        }
        Code::CaptureGap => {
            "Changes were lost before they were captured. Find out who touched the outbox; the \
             full check that follows shows which records differ."
        }
        Code::DatabaseRewound => {
            "If you restored a backup, write down why; the full check shows what it took back. If \
             you did not, somebody put an older database in place."
        }
        Code::CaptureWeakened => {
            "Put capture back, and find out who changed it. The full check that follows shows what \
             was changed meanwhile."
        }
        Code::Truncated => "If nobody was meant to empty the table, restore it from the vault.",
        Code::SchemaChanged => {
            "If this was a planned upgrade, prepare the source again, so that what is new is \
             guarded too. If not, find out who did it."
        }
        Code::Unattributed => {
            "Ask who made this change. Applications name the actor in the same transaction; a \
             change without one was made by something else."
        }
        Code::OutsideApplication => {
            "Ask who works on the database past the application, and why. The change itself is in \
             the trail."
        }
        Code::ReadOutsideRules => "Ask the reader why. The read itself is in the trail.",
        Code::LineAltered | Code::BlockMissing | Code::TrailShort | Code::TrailForked => {
            "Somebody tampered with the trail itself. Leave its folder and the database as they \
             are, copy both, and compare them with the witnesses’ heads and an earlier copy."
        }
        Code::Unsealed => {
            "Check that the authority can be reached from here. Nothing is lost: blocks are sealed \
             as soon as it answers, and their delay shows."
        }
        Code::SealInvalid => {
            "Keep the seal and its block as they are, and verify them on another machine."
        }
        Code::ClockDisagrees => {
            "Compare the clocks of this machine, the database and the authority with a time server."
        }
        Code::EvidenceAltered | Code::OpeningInvalid | Code::SubjectMismatch => {
            "Ask whoever handed out the evidence file for a new one."
        }
    }
}

/// The command that shows more, if there is one. Safe to paste into a POSIX
/// shell, whatever a table or a key is called.
pub(crate) fn command(finding: &FindingStatus) -> Option<String> {
    match known(&finding.code)? {
        Code::RowDiffers
        | Code::RowMissing
        | Code::RowReplaced
        | Code::Unattributed
        | Code::OutsideApplication => {
            let (table, key) = (finding.table.as_ref()?, finding.key.as_ref()?);
            Some(format!("pitser history {} {}", shell(table)?, shell(key)?))
        }
        Code::CaptureWeakened | Code::SchemaChanged => Some("pitser guard init --dry-run".into()),
        Code::LineAltered | Code::BlockMissing | Code::TrailShort | Code::TrailForked => {
            Some("pitser trail verify".into())
        }
        _ => None,
    }
}

/// How an approver answers for a finding, if that is possible. Safe to paste, too.
pub(crate) fn accept_command(source: &str, finding: &FindingStatus) -> Option<String> {
    let line = finding.line.filter(|_| finding.can_be_accepted())?;
    let source = shell(source)?;
    Some(format!(
        "pitser guard accept --source {source} --finding {line} --reason 'WHY'"
    ))
}

/// What a code means, as a heading.
pub(crate) fn meaning(code: &str) -> String {
    known(code).map_or_else(
        || "Something is wrong".to_owned(),
        |code| capitalised(code.meaning()),
    )
}

/// With a capital and a full stop; nothing stays nothing.
pub(crate) fn sentence_of(text: &str) -> String {
    let text = capitalised(text.trim());
    match text.is_empty() || text.ends_with(['.', '!', '?', '…']) {
        true => text,
        false => text + ".",
    }
}

/// `2,734`
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 block`, `2,734 blocks`
pub(crate) fn count(number: u64, one: &str, many: &str) -> String {
    format!(
        "{} {}",
        grouped(number),
        if number == 1 { one } else { many }
    )
}

/// The gravest thing that can be said.
fn worst(status: &Status) -> (Tone, String) {
    let open = |codes: &[Code]| {
        status.open_findings(|code| codes.iter().any(|wanted| wanted.as_str() == code))
    };
    if let Some(sentence) = rows(status) {
        return (Tone::Bad, sentence);
    }
    let met = open(&[Code::RowReplaced]);
    if met > 0 {
        let changes = count(met, "change met a record", "changes met records");
        let sentence = format!("{changes} written to behind the application’s back before.");
        return (Tone::Bad, sentence);
    }
    if open(TRAIL) > 0 {
        let sentence = "The trail itself was tampered with.";
        return (Tone::Bad, sentence.into());
    }
    let state = state_words(status.state);
    if matches!(
        status.state,
        SourceState::Damaged | SourceState::Stuck | SourceState::Stopped
    ) {
        return (Tone::Bad, state);
    }
    if open(CAPTURE) > 0 {
        let sentence = "Capture was tampered with: changes may be missing from the trail.";
        return (Tone::Bad, sentence.into());
    }
    if status.state != SourceState::Guarding {
        return (Tone::Wait, state);
    }
    if open(&[Code::Unsealed]) > 0 {
        let sentence = "Changes are captured, but have waited too long for their seal.";
        return (Tone::Wait, sentence.into());
    }
    let nameless = open(&[Code::Unattributed]);
    let others = status.open_findings(|_| true);
    match (nameless, others, &status.verified_up_to) {
        (1.., _, _) if nameless == others => {
            let changes = count(nameless, "change was made", "changes were made");
            (Tone::Wait, format!("{changes} by nobody we know."))
        }
        (_, 1.., _) => {
            let findings = count(others, "finding needs", "findings need");
            (Tone::Wait, format!("{findings} a look."))
        }
        _ if status.seal_delayed => {
            let sentence = "Changes are captured, but wait for their seal.";
            (Tone::Wait, sentence.into())
        }
        (_, _, None) => (
            Tone::Wait,
            "Every change is being sealed. The first full check is still to come.".into(),
        ),
        (_, _, Some(_)) if status.trouble.is_some() => {
            let rows = count(status.rows_verified, "record", "records");
            let sentence = format!("The last check compared {rows}. Not all is well since.");
            (Tone::Wait, sentence)
        }
        (_, _, Some(_)) => (Tone::Good, intact(status.rows_verified)),
    }
}

fn intact(rows: u64) -> String {
    match rows {
        0 => "There are no records yet. Each will be sealed as it comes.".into(),
        1 => "The one record is as it was sealed.".into(),
        _ => format!("All {} records are as they were sealed.", grouped(rows)),
    }
}

/// Counts records, not findings, as far as these are listed: one record may have several.
fn rows(status: &Status) -> Option<String> {
    let records = |code: Code| {
        let listed = status.findings.iter();
        let listed = listed.filter(|f| f.open && f.code == code.as_str());
        let records: HashSet<_> = listed.map(|f| (&f.table, &f.key)).collect();
        let more = status.more_findings.iter();
        let more = more.filter(|more| more.code == code.as_str());
        records.len() as u64 + more.map(|more| more.open).sum::<u64>()
    };
    let mut parts = Vec::new();
    for (code, verb) in [
        (Code::RowDiffers, "changed"),
        (Code::RowMissing, "removed"),
        (Code::RowUnknown, "inserted"),
    ] {
        let number = records(code);
        if number > 0 {
            let noun = match (parts.is_empty(), number) {
                (true, 1) => " record was",
                (true, _) => " records were",
                (false, _) => "",
            };
            parts.push(format!("{}{noun} {verb}", grouped(number)));
        }
    }
    let last = parts.pop()?;
    let what = match parts.is_empty() {
        true => last,
        false => format!("{} and {last}", parts.join(", ")),
    };
    Some(format!("{what} behind the application’s back."))
}

fn known(code: &str) -> Option<Code> {
    Code::ALL
        .iter()
        .copied()
        .find(|known| known.as_str() == code)
}

/// A word of a POSIX shell that means `text` itself; `None` for what a terminal
/// or a reader could take for something else.
fn shell(text: &str) -> Option<String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./,:@%+".contains(c);
    if text.is_empty() || text.starts_with('-') || !text.chars().all(is_readable) {
        return None;
    }
    match text.chars().all(is_plain) {
        true => Some(text.to_owned()),
        false => Some(format!("'{}'", text.replace('\'', r"'\''"))),
    }
}

/// Letters of any script, digits, spaces, punctuation of ASCII: nothing that
/// turns the direction of writing, or that cannot be seen.
fn is_readable(c: char) -> bool {
    c == ' ' || c.is_ascii_graphic() || c.is_alphanumeric()
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(char::to_uppercase);
    first.into_iter().flatten().chain(chars).collect()
}

const TRAIL: &[Code] = &[
    Code::LineAltered,
    Code::BlockMissing,
    Code::TrailShort,
    Code::TrailForked,
    Code::SealInvalid,
];

const CAPTURE: &[Code] = &[
    Code::CaptureGap,
    Code::DatabaseRewound,
    Code::CaptureWeakened,
];

#[cfg(test)]
mod tests {
    use super::*;
    use pitser_guardian::{BaselineStatus, MoreStatus};

    fn finding(code: &str, key: &str, open: bool) -> FindingStatus {
        FindingStatus {
            code: code.into(),
            table: Some("observation".into()),
            key: Some(key.into()),
            columns: Vec::new(),
            at: "2026-03-14T09:26:53Z".into(),
            found_at_us: 0,
            text: String::new(),
            open,
            line: None,
            accepted: None,
        }
    }

    fn guarding(rows: u64, findings: Vec<FindingStatus>) -> Status {
        Status {
            state: SourceState::Guarding,
            verified_up_to: Some("2026-03-14T09:26:53Z".into()),
            rows_verified: rows,
            findings,
            ..Status::default()
        }
    }

    fn check(status: &Status, tone: Tone, sentence: &str) {
        let verdict = verdict(status);
        assert_eq!((verdict.tone, verdict.sentence.as_str()), (tone, sentence));
    }

    #[test]
    fn intact() {
        let all = "All 2,734 records are as they were sealed.";
        check(&guarding(2734, vec![]), Tone::Good, all);
        let mended = guarding(2734, vec![finding("ROW-01", "1", false)]);
        check(&mended, Tone::Good, all);
        let one = "The one record is as it was sealed.";
        check(&guarding(1, vec![]), Tone::Good, one);
        let none = "There are no records yet. Each will be sealed as it comes.";
        check(&guarding(0, vec![]), Tone::Good, none);
    }

    /// What is not listed counts as what is.
    #[test]
    fn those_that_are_only_counted_count() {
        let more = |code: &str, open| MoreStatus {
            code: code.into(),
            table: None,
            open,
            earlier: 9,
            first_line: None,
            last_line: None,
        };
        let with = |more| Status {
            more_findings: vec![more],
            ..guarding(9, vec![finding("ACT-01", "1", true)])
        };
        let rows = "299,800 records were changed behind the application’s back.";
        check(&with(more("ROW-01", 299_800)), Tone::Bad, rows);
        let changes = "299,801 changes were made by nobody we know.";
        check(&with(more("ACT-01", 299_800)), Tone::Wait, changes);
        let others = "3 findings need a look.";
        check(&with(more("CAP-05", 2)), Tone::Wait, others);
        let one = "1 change was made by nobody we know.";
        check(&with(more("CAP-05", 0)), Tone::Wait, one);
    }

    #[test]
    fn records_are_counted_once() {
        let row = |code, key| finding(code, key, true);
        for (findings, sentence) in [
            (
                vec![row("ROW-01", "1"), row("ROW-01", "1"), row("ROW-01", "2")],
                "2 records were changed behind the application’s back.",
            ),
            (
                vec![row("ROW-02", "1")],
                "1 record was removed behind the application’s back.",
            ),
            (
                vec![row("ROW-01", "1"), row("ROW-02", "2"), row("ROW-03", "3")],
                "1 record was changed, 1 removed and 1 inserted behind the application’s back.",
            ),
            (
                vec![row("ROW-01", "1"), row("ACT-01", "9"), row("TRL-01", "")],
                "1 record was changed behind the application’s back.",
            ),
            (
                vec![row("ROW-04", "1"), row("ROW-04", "1"), row("ACT-01", "9")],
                "2 changes met records written to behind the application’s back before.",
            ),
        ] {
            check(&guarding(9, findings), Tone::Bad, sentence);
        }
    }

    #[test]
    fn trouble_is_never_good() {
        // A block is nearly always under way.
        let trouble = |seal_delayed| Status {
            trouble: Some("connection refused".into()),
            unsealed: 1,
            seal_delayed,
            ..guarding(2734, vec![])
        };
        let waits = "Changes are captured, but wait for their seal.";
        check(&trouble(true), Tone::Wait, waits);
        assert_eq!(verdict(&trouble(true)).notes.len(), 2);
        let before_the_first_check = Status {
            verified_up_to: None,
            ..trouble(true)
        };
        check(&before_the_first_check, Tone::Wait, waits);
        let since = "The last check compared 2,734 records. Not all is well since.";
        check(&trouble(false), Tone::Wait, since);
        assert_eq!(verdict(&trouble(false)).notes.len(), 1);
    }

    /// No state but a guarded, checked one without findings is ever good.
    #[test]
    fn only_what_was_checked_is_good() {
        use SourceState::*;
        for state in [
            Starting,
            Baseline,
            DatabaseUnavailable,
            TrailUnavailable,
            Damaged,
            Stuck,
            Stopped,
        ] {
            let status = Status {
                state,
                ..guarding(5, vec![])
            };
            let tone = match state {
                Damaged | Stuck | Stopped => Tone::Bad,
                _ => Tone::Wait,
            };
            check(&status, tone, &state_words(state));
        }
        let unchecked = Status {
            verified_up_to: None,
            ..guarding(0, vec![])
        };
        assert_eq!(verdict(&unchecked).tone, Tone::Wait);
        for code in Code::ALL {
            let status = guarding(5, vec![finding(code.as_str(), "1", true)]);
            assert_ne!(verdict(&status).tone, Tone::Good, "{code}");
        }
        let unknown = guarding(5, vec![finding("NEW-99", "1", true)]);
        check(&unknown, Tone::Wait, "1 finding needs a look.");
    }

    #[test]
    fn a_finding_does_not_hide_that_nobody_guards() {
        let status = Status {
            state: SourceState::DatabaseUnavailable,
            trouble: Some("no such file".into()),
            ..guarding(5, vec![finding("ROW-01", "1", true)])
        };
        let notes = [
            "The database cannot be reached. Capture goes on where it was when it can.",
            "No such file.",
        ];
        assert_eq!(verdict(&status).notes, notes);
    }

    #[test]
    fn how_far_a_baseline_is_is_told() {
        let told = |rows, about| {
            let status = Status {
                state: SourceState::Baseline,
                baseline: Some(BaselineStatus { rows, about }),
                ..guarding(5, vec![])
            };
            verdict(&status).notes
        };
        let about = "Since this start 1,400,000 records were read, of about 9,000,000.";
        assert_eq!(told(1_400_000, Some(9_000_000)), [about]);
        assert_eq!(told(1, None), ["Since this start 1 record was read."]);
    }

    #[test]
    fn commands_are_safe_to_paste() {
        for (key, command) in [
            ("42", Some("pitser history observation 42")),
            ("7f3a-11,2", Some("pitser history observation 7f3a-11,2")),
            (
                "$(reboot); 'x'",
                Some(r"pitser history observation '$(reboot); '\''x'\'''"),
            ),
            ("Jõeäär 1", Some("pitser history observation 'Jõeäär 1'")),
            ("-rf", None),
            ("", None),
            ("1\nreboot", None),
            ("1\u{1b}[2J", None),
            ("1\u{202e}2", None),
        ] {
            let shown = super::command(&finding("ROW-01", key, true));
            assert_eq!(shown.as_deref(), command, "{key:?}");
        }
    }

    #[test]
    fn numbers() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
