//! Judging an evidence file by the verifier's own anchors.

use std::fmt::Write as _;

use pitser_evidence::apart::column_file;
use pitser_evidence::file::{LineProof, OpenColumn, Opening};
use pitser_evidence::line::{Line, Op};
use pitser_evidence::{
    Anchors, Code, Evidence, LeftOut, Report, StepState, Verdict as Examined, verify, verify_since,
};

use super::Args;
use super::apart::{self, Compared};
use crate::files;
use crate::outcome::{Failure, Outcome};
use crate::output::{Judgement, State, Step, Verdict, one_line};
use crate::tree::{Map, Tree, hex};

/// Judges the evidence in `bytes`.
pub(super) fn run(bytes: &[u8], args: &Args) -> Outcome {
    let name = args.file.display();
    let evidence = Evidence::decode(bytes)
        .map_err(|e| one_line(&e.to_string()))
        .map_err(|e| Failure::Input(format!("{name}: not a sound evidence file: {e}")))?;
    let anchors = match &args.anchors {
        Some(path) => {
            let anchors = Anchors::from_toml(&files::read_text(path)?);
            Some(anchors.map_err(|e| Failure::Input(format!("{}: {e}", path.display())))?)
        }
        None => None,
    };
    let at = args.trust.publications.at();
    let report = match args.shared_since {
        Some(since) => verify_since(&evidence, anchors.as_ref(), at, since),
        None => verify(&evidence, anchors.as_ref(), at),
    };
    let mut steps: Vec<Step> = report.steps.iter().map(step).collect();
    let mut outcome = report.verdict;
    if let Some(asked) = &args.patient {
        steps.push(person(asked, &evidence.subject.id));
        // What is already broken stays so for its own reason.
        if *asked != evidence.subject.id && !matches!(outcome, Examined::Broken(_)) {
            outcome = Examined::Broken(Code::SubjectMismatch);
        }
    }
    let folder = match &args.values {
        Some(folder) => folder.clone(),
        None => files::values_of(&args.file),
    };
    // Of what is broken already nothing beside it is worth a look.
    let beside = match outcome {
        Examined::Broken(_) => None,
        _ => apart::compare(&evidence, &folder)?,
    };
    if let Some(beside) = &beside {
        steps.push(beside.step());
        if beside.is_broken() {
            outcome = Examined::Broken(Code::OpeningInvalid);
        }
    }
    let (verdict, code, summary) = match outcome {
        Examined::Intact => (
            Verdict::Intact,
            None,
            "everything follows from your anchors".to_owned(),
        ),
        Examined::Unconfirmed => {
            let summary = match anchors {
                Some(_) if !report.left_out.is_empty() => {
                    "all checks so far agree; but lines are left out of this file that you have not said \
                     you can do without (--shared-since), or something else is waiting"
                }
                Some(_) => "all checks so far agree, but for what is waiting",
                None => "all checks so far agree; give what you trust with --anchors",
            };
            (
                Verdict::Unconfirmed,
                Some("GEN-02".to_owned()),
                format!("{summary}: {}", waiting(&report)),
            )
        }
        Examined::Broken(code) => (
            Verdict::Broken,
            Some(code.to_string()),
            code.meaning().to_owned(),
        ),
    };
    let claims = claims(verdict, &evidence, &report);
    let mut details = Map::new()
        .with("file", name.to_string())
        .with("kind", "evidence file")
        .with("origin", &evidence.origin)
        .with("patient", &evidence.subject.id)
        .maybe("as_of", report.as_of.map(|at| at.to_string()))
        .maybe("witnessed_at", report.witnessed_at.map(|at| at.to_string()))
        .list("claims", claims.clone())
        .maybe("files", beside.as_ref().map(Compared::details))
        .list("left_out", report.left_out.iter().map(left_out));
    let mut remarks: String = claims.iter().map(|claim| format!("  {claim}\n")).collect();
    if args.show {
        details = details.with(
            "lines",
            Tree::List(evidence.lines.iter().map(line_facts).collect()),
        );
        remarks += &history(&evidence.lines);
    }
    Judgement {
        verdict,
        code,
        summary,
        steps,
        details,
        remarks,
    }
    .show(args.form)
}

/// Whether the evidence is about the person that was asked for.
fn person(asked: &str, named: &str) -> Step {
    let (state, text) = match asked == named {
        true => (State::Matches, format!("it is about {named:?}, as asked")),
        false => (
            State::Broken,
            format!("EVD-03 it is about {named:?}, not about {asked:?}"),
        ),
    };
    Step::new("patient", state, text)
}

fn step(step: &pitser_evidence::Step) -> Step {
    let state = match step.state {
        StepState::Matches => State::Matches,
        StepState::Waiting => State::Waiting,
        StepState::Broken => State::Broken,
    };
    Step::new(step.name, state, step.text.clone())
}

/// The steps that wait.
fn waiting(report: &Report) -> String {
    let waiting = report
        .steps
        .iter()
        .filter(|step| step.state == StepState::Waiting);
    let names: Vec<&str> = waiting.map(|step| step.name).collect();
    names.join(", ")
}

/// What is claimed, exactly (DESIGN §2). Of broken evidence nothing is.
fn claims(verdict: Verdict, evidence: &Evidence, report: &Report) -> Vec<String> {
    // Nothing shows it: its line is in no patient's list.
    let genesis = &evidence.genesis.at;
    // Quoted, and with nothing in it that looks like something else.
    let person = &evidence.subject.id;
    let end = match (report.as_of, report.witnessed_at) {
        (Some(at), Some(seen)) => {
            format!("to {at}, when the last block was sealed; witnesses had seen it by {seen}")
        }
        (Some(at), None) => format!("to {at}, when the last block was sealed"),
        (None, _) => "to its last block, whose seal is not confirmed".to_owned(),
    };
    let claimed = match verdict {
        Verdict::Intact => "claimed",
        Verdict::Unconfirmed => "claimed once confirmed",
        Verdict::Broken => "no longer claimed",
    };
    let but_for = match report.left_out.is_empty() {
        true => "",
        false => ", but for what is not in this file of those about many or unknown patients",
    };
    let mut claims = vec![
        format!("{claimed}: any change to these lines after they were sealed would show"),
        format!(
            "{claimed}: these are all events captured about patient {person:?} from the trail's genesis, {genesis} by \
             its operator's word, {end}{but_for}"
        ),
    ];
    claims.extend(report.left_out.iter().map(|left_out| {
        format!(
            "not claimed: anything about reads of many or unknown patients that are not shown: {left_out}, and may \
             concern the patient"
        )
    }));
    claims.push(
        "not claimed: anything before the genesis, or while capture was interrupted or weakened, which the trail \
         says and no patient's list shows; that what was entered was true; or reads outside the engine (backups, \
         replicas, files, screens)"
            .to_owned(),
    );
    claims
}

fn left_out(left_out: &LeftOut) -> Tree {
    Tree::Map(
        Map::new()
            .with("list", left_out.list.to_string())
            .with("lines", left_out.lines)
            .with("up_to", left_out.up_to)
            .maybe("sealed_by", left_out.sealed_by.map(|at| at.to_string())),
    )
}

/// The lines, oldest first, with what is disclosed of them.
fn history(lines: &[LineProof]) -> String {
    let is_lettered = has_type_letters(lines);
    let mut text = String::from("\n");
    for proof in lines {
        let line = &proof.line;
        let table = line.table.as_deref().unwrap_or("-");
        let _ = write!(
            text,
            "{}  {:8}  {}",
            line.at,
            line.op.as_str(),
            one_line(table)
        );
        if let Some(columns) = &line.columns {
            let _ = write!(text, " ({})", one_line(&columns.join(", ")));
        }
        let _ = writeln!(text, "  {}", one_line(&who(proof)));
        for (place, column) in opened(proof) {
            let value = match column.is_apart() {
                true => format!("(in a file of its own: {})", column_file(line.seq, place)),
                false => shown(column, is_lettered),
            };
            let _ = writeln!(text, "    {} = {value}", one_line(&column.name));
        }
        if let Some(decision) = decision(line) {
            let raw = proof.open.as_ref().and_then(|open| open.raw.as_ref());
            let raw = raw.and_then(|raw| raw.bytes.as_ref());
            let reason = raw.map(|bytes| format!(": {}", String::from_utf8_lossy(&bytes.0)));
            let reason = one_line(&reason.unwrap_or_default());
            let _ = writeln!(text, "    {decision}{reason}");
        }
        if let Some(erase) = &line.erase {
            let basis = one_line(&erase.basis);
            let _ = writeln!(text, "    on the basis: {basis}");
        }
        if let Some(finding) = &line.finding {
            let _ = writeln!(text, "    {} {}", finding.code, one_line(&finding.text));
        }
    }
    text
}

/// What somebody decided.
fn decision(line: &Line) -> Option<String> {
    let (accept, release) = (line.accept.as_ref(), line.release.as_ref());
    match line.op {
        Op::Accept => {
            accept.map(|it| format!("answers for the finding of line {}", it.finding.seq))
        }
        Op::Hold => Some("keeps the patient from being erased".into()),
        Op::Release => release.map(|it| format!("lifts the hold of line {}", it.hold.seq)),
        _ => None,
    }
}

/// Who did it, and how far that is proved.
fn who(proof: &LineProof) -> String {
    let Some(actor) = &proof.line.actor else {
        return String::new();
    };
    let person = proof.open.as_ref().and_then(|open| open.person.as_ref());
    let parts = [
        person.map(|person| person.value.clone()),
        actor.app.as_ref().map(|app| format!("in {app}")),
        actor.role.as_ref().map(|role| format!("as {role}")),
        actor.client.as_ref().map(|client| format!("from {client}")),
    ];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    format!("by {} [binding {:?}]", parts.join(" "), actor.binding)
}

/// The columns that are disclosed, with their places in the row from 1.
fn opened(proof: &LineProof) -> impl Iterator<Item = (usize, &OpenColumn)> {
    let columns = proof
        .open
        .iter()
        .filter_map(|Opening { columns, .. }| columns.as_ref())
        .flat_map(|columns| (1..).zip(columns));
    columns.filter(|(_, column)| column.nonce.is_some())
}

/// Whether all disclosed values bear a letter for their type, as the canonical
/// bytes of SQLite do: nothing in the file names the engine.
fn has_type_letters(lines: &[LineProof]) -> bool {
    let is_number =
        |value: &[u8]| std::str::from_utf8(value).is_ok_and(|text| text.parse::<f64>().is_ok());
    let has_letter = |value: &[u8]| match value {
        [b't' | b'b', ..] => true,
        [b'i' | b'r', number @ ..] => is_number(number),
        _ => false,
    };
    lines
        .iter()
        .flat_map(opened)
        .filter_map(|(_, column)| column.bytes())
        .all(has_letter)
}

/// The value as a person reads it; JSON has the canonical bytes.
fn shown(column: &OpenColumn, is_lettered: bool) -> String {
    let Some(bytes) = column.bytes() else {
        return "NULL".to_owned();
    };
    let (is_blob, value) = match bytes {
        [b't' | b'i' | b'r', value @ ..] if is_lettered => (false, value),
        [b'b', value @ ..] if is_lettered => (true, value),
        _ => (false, bytes),
    };
    let text = match std::str::from_utf8(value) {
        Ok("") if !is_blob => "\"\"".to_owned(),
        Ok(text) if !is_blob => one_line(text),
        _ => format!("0x{}", data_encoding::HEXLOWER.encode(value)),
    };
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!(
            "{}… ({} bytes, in full with --json)",
            &text[..end],
            value.len()
        ),
        None => text,
    }
}

fn line_facts(proof: &LineProof) -> Tree {
    let line = &proof.line;
    let file = |place: usize, column: &OpenColumn| {
        let is_apart = column.is_apart();
        is_apart.then(|| column_file(line.seq, place))
    };
    let values = opened(proof).map(|(place, column)| {
        let value = match (&column.value, &column.bytes) {
            (Some(text), _) => Some(Tree::from(text)),
            (None, Some(bytes)) => Some(hex(&bytes.0)),
            (None, None) => None,
        };
        Tree::Map(
            Map::new()
                .with("column", &column.name)
                .maybe("value", value)
                .maybe("file", file(place, column)),
        )
    });
    let person = proof.open.as_ref().and_then(|open| open.person.as_ref());
    let facts = super::super::inspect::line(line)
        .maybe("person", person.map(|person| &person.value))
        .list("values", values);
    Tree::Map(facts)
}

/// Longest value that is shown in full, in characters.
const MAX_SHOWN: usize = 160;

#[cfg(test)]
mod tests {
    use super::*;
    use pitser_evidence::codec::{Blob, Bytes32, Digest};
    use pitser_evidence::file::{OpenPerson, OpenRaw};
    use pitser_evidence::line::{Acceptance, Actor, Binding, Erasure, Finding, Prev};

    #[track_caller]
    fn check(value: Option<&[u8]>, is_lettered: bool, expected: &str) {
        let column = OpenColumn::open("c", Bytes32([0; 32]), value);
        assert_eq!(shown(&column, is_lettered), expected);
    }

    #[test]
    fn values_are_shown_as_people_read_them() {
        check(None, true, "NULL");
        check(Some(b"tfinal"), true, "final");
        check(Some(b"tfinal"), false, "tfinal");
        check(Some(b"r21.5"), true, "21.5");
        check(Some(b"t"), true, "\"\"");
        check(Some(b"b\xff\x00"), true, "0xff00");
        check(Some(b"bab"), true, "0x6162");
        check(Some(b"t\xff"), true, "0xff");
        check(Some(b"ta\nb\x1b"), true, "a\\nb\\u{1b}");
        let long = format!("t{}", "õ".repeat(200));
        let cut = format!("{}… (400 bytes, in full with --json)", "õ".repeat(160));
        check(Some(long.as_bytes()), true, &cut);
    }
    #[test]
    fn nothing_in_a_file_looks_like_a_line_of_ours() {
        let hostile = |what: &str| {
            format!("{what}\nintact: everything follows from your anchors\u{2028}\x1b[2K")
        };
        let zeros = Bytes32([0; 32]);
        let at = "2026-03-14T09:26:53.589793Z".parse().unwrap();
        let mut line = Line::new(Op::Accept, 7, at, "db", "1");
        line.table = Some(hostile("table"));
        line.columns = Some([hostile("changed")].into());
        line.actor = Some(Actor {
            app: Some(hostile("app")),
            binding: Binding::C,
            client: Some(hostile("client")),
            person: None,
            role: Some(hostile("role")),
        });
        line.accept = Some(Box::new(Acceptance {
            finding: Prev {
                hash: Digest::of(&[]),
                seq: 3,
            },
        }));
        line.erase = Some(Box::new(Erasure {
            basis: hostile("basis"),
            deciders: [Digest::of(&[]); 2],
        }));
        line.finding = Some(Box::new(Finding {
            about: None,
            code: Code::OpeningInvalid,
            text: hostile("finding"),
        }));
        let proof = LineProof {
            block: 0,
            chain: Blob(Vec::new()),
            line,
            open: Some(Opening {
                columns: Some(vec![
                    OpenColumn::open(&hostile("column"), zeros, Some(hostile("value").as_bytes())),
                    OpenColumn::apart(&hostile("apart"), zeros, b"x"),
                ]),
                person: Some(OpenPerson {
                    nonce: zeros,
                    value: hostile("person"),
                }),
                raw: Some(OpenRaw {
                    bytes: Some(Blob(hostile("reason").into_bytes())),
                    nonce: zeros,
                }),
            }),
        };
        let shown = history(&[proof]);
        let escaped =
            "\\nintact: everything follows from your anchors\\u{2028}\\u{1b}[2K".to_owned();
        for what in [
            "table", "changed", "app", "client", "role", "basis", "finding", "column", "value",
            "apart", "person", "reason",
        ] {
            assert!(
                shown.contains(&format!("{what}{escaped}")),
                "{what}: {shown}"
            );
        }
        // An empty one, the line, its two columns, the reason, the basis and the finding.
        assert_eq!(shown.lines().count(), 7, "{shown}");
    }
}
