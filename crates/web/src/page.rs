//! The status page: one file, no requests to anywhere else, complete without
//! JavaScript. The server alone writes HTML; the script replaces what changed.

use std::fmt;
use std::fmt::Write;
use std::sync::{Arc, LazyLock};

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use data_encoding::BASE64;
use pitser_guardian::{
    AcceptedStatus, BlockStatus, FindingStatus, MoreStatus, SourceState, Status,
};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::Guarded;
use crate::api::VERSION;
use crate::events::{event, stream};
use crate::site::Site;
use crate::words::{self, Tone, Verdict, count, grouped, verdict};

/// GET `/`.
pub(crate) async fn page<G: Guarded>(State(site): State<Arc<Site<G>>>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY.as_str()),
    ];
    (headers, document(&site.statuses())).into_response()
}

/// GET `/live`: the changing parts of the page, as they change. Not an API.
pub(crate) async fn live<G: Guarded>(State(site): State<Arc<Site<G>>>) -> Response {
    let mut sent = String::new();
    stream(site, move |statuses| {
        let json = serde_json::to_string(&Parts::of(statuses)).expect("three strings");
        if json == sent {
            return String::new();
        }
        sent = json;
        event("page", &sent)
    })
}

const TEMPLATE: &str = include_str!("page.html");

/// Nothing but the page's own style and script, by their hashes.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; style-src {}; script-src {}; img-src data:; connect-src 'self'; \
         form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        hash_of("<style>", "</style>"),
        hash_of("<script>", "</script>"),
    )
});

fn hash_of(open: &str, close: &str) -> String {
    let (_, rest) = TEMPLATE.split_once(open).unwrap_or_default();
    let (text, _) = rest.split_once(close).unwrap_or_default();
    format!("'sha256-{}'", BASE64.encode(&Sha256::digest(text)))
}

fn document(statuses: &[Status]) -> String {
    let parts = Parts::of(statuses);
    let mut page = String::with_capacity(TEMPLATE.len() + parts.main.len() + 1024);
    let mut rest = TEMPLATE;
    // One pass: what is filled in is not looked at again.
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").unwrap_or((after, ""));
        page += before;
        match name {
            "title" => page += &Text(&parts.title).to_string(),
            "icon" => page += &Text(&parts.icon).to_string(),
            "main" => page += &parts.main,
            "version" => page += VERSION,
            other => debug_assert!(false, "{other:?} is not known"),
        }
        rest = after;
    }
    page + rest
}

/// What changes. `main` is HTML, the others are text.
#[derive(Serialize)]
struct Parts {
    title: String,
    icon: String,
    main: String,
}

impl Parts {
    fn of(statuses: &[Status]) -> Self {
        let verdicts: Vec<_> = statuses.iter().map(verdict).collect();
        let worst = verdicts.iter().map(|v| v.tone).max().unwrap_or(Tone::Wait);
        let mut main = String::new();
        let written = write_main(&mut main, statuses, &verdicts);
        debug_assert!(written.is_ok(), "a String takes everything");
        Self {
            title: title(statuses, worst),
            icon: icon(worst),
            main,
        }
    }
}

fn title(statuses: &[Status], worst: Tone) -> String {
    let open: u64 = statuses.iter().map(|s| s.open_findings(|_| true)).sum();
    let say = match worst {
        Tone::Good => "Intact".to_owned(),
        _ if open > 0 => count(open, "finding", "findings"),
        Tone::Wait => "Not checked".to_owned(),
        Tone::Bad => "Look here".to_owned(),
    };
    match statuses {
        [status] => format!("{say} · {} · Pitser", status.name),
        _ => format!("{say} · Pitser"),
    }
}

/// A seal in the colour of `tone`, for the browser's tab.
fn icon(tone: Tone) -> String {
    let (colour, mark) = match tone {
        Tone::Good => ("%230a7a5e", GOOD_MARK),
        Tone::Wait => ("%23b87514", WAIT_MARK),
        Tone::Bad => ("%23c2352b", BAD_MARK),
    };
    format!(
        "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 64 64'>\
         <circle cx='32' cy='32' r='30' fill='{colour}'/>\
         <path d='{mark}' fill='none' stroke='white' stroke-width='6' stroke-linecap='round' \
         stroke-linejoin='round'/></svg>"
    )
}

const GOOD_MARK: &str = "M20 33l9 9 16-19";
const WAIT_MARK: &str = "M32 19v14l8 7";
const BAD_MARK: &str = "M32 18v17M32 45v.5";

fn write_main(out: &mut String, statuses: &[Status], verdicts: &[Verdict]) -> fmt::Result {
    if statuses.len() > 1 {
        overview(out, statuses, verdicts)?;
    }
    for (at, (status, verdict)) in statuses.iter().zip(verdicts).enumerate() {
        source(out, at, status, verdict)?;
    }
    Ok(())
}

/// With several sources: which one needs somebody.
fn overview(out: &mut String, statuses: &[Status], verdicts: &[Verdict]) -> fmt::Result {
    out.write_str(r#"<nav class="overview" aria-label="Sources"><ul>"#)?;
    for (at, (status, verdict)) in statuses.iter().zip(verdicts).enumerate() {
        write!(
            out,
            r##"<li class="{tone}"><a href="#s{at}">{seal}<span><b>{name}</b> {sentence}</span></a></li>"##,
            tone = tone_class(verdict.tone),
            seal = Seal(verdict.tone),
            name = Text(&status.name),
            sentence = Text(&verdict.sentence),
        )?;
    }
    out.write_str("</ul></nav>")
}

fn source(out: &mut String, at: usize, status: &Status, verdict: &Verdict) -> fmt::Result {
    write!(
        out,
        r#"<article class="source {tone}" id="s{at}" aria-labelledby="s{at}-name">"#,
        tone = tone_class(verdict.tone)
    )?;
    head(out, at, status, verdict)?;
    findings(out, at, status)?;
    reach(out, status)?;
    chain(out, at, status)?;
    figures(out, status)?;
    genesis(out, status)?;
    out.write_str("</article>")
}

fn head(out: &mut String, at: usize, status: &Status, verdict: &Verdict) -> fmt::Result {
    write!(
        out,
        r#"<section class="verdict">{seal}<div class="say"><h2 id="s{at}-name"><span>{name}</span> <code>{origin}</code></h2><p class="sentence" role="status">{sentence}</p>"#,
        seal = Seal(verdict.tone),
        name = Text(&status.name),
        origin = Text(&status.origin),
        sentence = Text(&verdict.sentence),
    )?;
    for note in &verdict.notes {
        write!(
            out,
            r#"<p class="note">{}</p>"#,
            Text(&shortened(note, 600))
        )?;
    }
    out.write_str(r#"<div class="checked">"#)?;
    match &status.verified_up_to {
        Some(checked) => write!(
            out,
            "<p>Last checked {}: {}, column by column.</p>",
            Moment(checked),
            count(status.rows_verified, "record", "records"),
        )?,
        None => out.write_str("<p>Not checked yet.</p>")?,
    }
    if status.state == SourceState::Guarding {
        write!(
            out,
            r#"<form method="post" action="/api/scan/{}"><button>Check now</button></form>"#,
            Segment(&status.name)
        )?;
    }
    out.write_str("</div></div></section>")
}

// --- findings ----------------------------------------------------------------

/// Findings that are shown; the others are in `/api/status`.
const SHOWN: usize = 30;
/// What a finding says is its heading, up to so many characters.
const HEADING: usize = 110;

fn findings(out: &mut String, at: usize, status: &Status) -> fmt::Result {
    let listed = |open: bool| {
        let newest_first = status.findings.iter().rev();
        newest_first.filter(move |f| f.open == open).take(SHOWN)
    };
    let open = status.open_findings(|_| true);
    if open > 0 {
        let heading = count(open, "open finding", "open findings");
        write!(
            out,
            r#"<section class="findings" aria-labelledby="s{at}-open"><h3 id="s{at}-open">{heading}</h3>"#
        )?;
        cards(out, &status.name, listed(true), open)?;
        for more in status.more_findings.iter().filter(|more| more.open > 0) {
            let (first, last) = (more.first_line, more.last_line);
            let lines = format!(
                ", in lines {} to {}",
                grouped(first.unwrap_or_default()),
                grouped(last.unwrap_or_default())
            );
            counted(out, more, more.open, &lines)?;
        }
        out.write_str("</section>")?;
    }
    let closed = status.all_findings(|_| true) - open;
    if closed > 0 {
        let heading = count(closed, "earlier finding", "earlier findings");
        write!(
            out,
            r#"<details class="findings"><summary>{heading}, no longer found or accepted; all still in the trail</summary>"#
        )?;
        cards(out, &status.name, listed(false), closed)?;
        for more in status.more_findings.iter().filter(|it| it.earlier > 0) {
            counted(out, more, more.earlier, "")?;
        }
        out.write_str("</details>")?;
    }
    Ok(())
}

/// The newest of a number of findings.
fn cards<'a>(
    out: &mut String,
    source: &str,
    findings: impl Iterator<Item = &'a FindingStatus>,
    number: u64,
) -> fmt::Result {
    out.write_str(r#"<ol class="cards">"#)?;
    let mut shown = 0;
    for finding in findings {
        card(out, source, finding)?;
        shown += 1;
    }
    out.write_str("</ol>")?;
    match number.saturating_sub(shown) {
        0 => Ok(()),
        more => write!(
            out,
            r#"<p class="more">And {} more: see <a href="/api/status">/api/status</a>.</p>"#,
            grouped(more)
        ),
    }
}

/// So many findings that are not listed anywhere but in the trail, and where there.
fn counted(out: &mut String, more: &MoreStatus, number: u64, lines: &str) -> fmt::Result {
    let of = match &more.table {
        Some(table) => format!(" about table {}", shortened(table, 80)),
        None => String::new(),
    };
    write!(
        out,
        r#"<p class="more">Of these, {} <code class="code">{}</code>{} are listed in the trail alone{lines}.</p>"#,
        grouped(number),
        Text(&more.code),
        Text(&of),
    )
}

fn card(out: &mut String, source: &str, finding: &FindingStatus) -> fmt::Result {
    let kind = if finding.code.starts_with("ACT") || finding.code.starts_with("SEAL-01") {
        "wait"
    } else {
        "bad"
    };
    let meaning = words::meaning(&finding.code);
    let (heading, text) = match words::sentence_of(&finding.text) {
        text if text.is_empty() => (meaning, None),
        text if text.chars().count() <= HEADING => (text, None),
        text => (meaning, Some(text)),
    };
    write!(
        out,
        r#"<li class="card {kind}"><div class="cardhead"><h4><code class="code">{code}</code> {heading}</h4>{at}</div>"#,
        code = Text(&finding.code),
        heading = Text(heading.trim_end_matches('.')),
        at = Moment(&finding.at),
    )?;
    if finding.table.is_some() || !finding.columns.is_empty() {
        out.write_str(r#"<dl class="where">"#)?;
        if let Some(table) = &finding.table {
            fact(out, "Table", &Code(&shortened(table, 80)))?;
        }
        if let Some(key) = &finding.key {
            fact(out, "Record", &Code(&shortened(key, 120)))?;
        }
        if !finding.columns.is_empty() {
            fact(out, "Columns", &Columns(&finding.columns))?;
        }
        if let Some(line) = finding.line {
            fact(out, "Trail line", &grouped(line))?;
        }
        out.write_str("</dl>")?;
    }
    if let Some(text) = text {
        write!(
            out,
            r#"<p class="text">{}</p>"#,
            Text(&shortened(&text, 400))
        )?;
    }
    if let Some(accepted) = &finding.accepted {
        return answered(out, accepted);
    }
    let advice = Text(words::advice(&finding.code));
    write!(out, r#"<p class="next"><b>What to do</b> {advice}</p>"#)?;
    if let Some(shown) = words::command(finding) {
        command(out, &shown)?;
    }
    if let Some(shown) = words::accept_command(source, finding) {
        out.write_str(
            r#"<p class="next">Once it is explained, an approver says so, for the record:</p>"#,
        )?;
        command(out, &shown)?;
    }
    out.write_str("</li>")
}

fn command(out: &mut String, command: &str) -> fmt::Result {
    write!(
        out,
        r#"<p class="command"><code>{0}</code><button type="button" class="copy" data-copy="{0}">Copy</button></p>"#,
        Text(command)
    )
}

/// The end of a card that needs nobody any more.
fn answered(out: &mut String, accepted: &AcceptedStatus) -> fmt::Result {
    let gone = "(not to be opened any more)";
    write!(
        out,
        r#"<p class="next"><b>Accepted</b> {at} by {by}, trail line {line}: {reason}</p></li>"#,
        at = Moment(&accepted.at),
        by = Text(&shortened(accepted.by.as_deref().unwrap_or(gone), 120)),
        line = grouped(accepted.line),
        reason = Text(&shortened(accepted.reason.as_deref().unwrap_or(gone), 500)),
    )
}

fn fact(out: &mut String, name: &str, value: &dyn fmt::Display) -> fmt::Result {
    write!(out, "<div><dt>{name}</dt><dd>{value}</dd></div>")
}

// --- how far, how many ---------------------------------------------------------

fn reach(out: &mut String, status: &Status) -> fmt::Result {
    out.write_str(r#"<section class="panel"><h3>How far it reaches</h3><dl class="reach">"#)?;
    let witnessed = count(status.witnessed, "block", "blocks");
    let witnessed = format!("{witnessed} under a head that others cosigned");
    for (name, at, tells, lacks) in [
        (
            "Sealed up to",
            &status.sealed_up_to,
            "signed into the calendar of that second",
            "no block has been sealed",
        ),
        (
            "Witnessed up to",
            &status.witnessed_at,
            &witnessed,
            "no head has been cosigned by others",
        ),
        (
            "Verified up to",
            &status.verified_up_to,
            "live rows compared with the trail",
            "no complete check has been made",
        ),
    ] {
        match at {
            Some(at) => write!(
                out,
                "<div><dt>{name}</dt><dd>{}<small>{tells}</small></dd></div>",
                clock(at)
            )?,
            None => write!(
                out,
                r#"<div class="none"><dt>{name}</dt><dd><b>not yet</b><small>{lacks}</small></dd></div>"#
            )?,
        }
    }
    out.write_str("</dl></section>")
}

/// Time of day, large; date; and where the script says how long ago that is.
fn clock(at: &str) -> String {
    match at.split_once('T') {
        Some((date, time)) => format!(
            r#"<time datetime="{0}"><b>{1}</b> <span>{2} UTC</span></time><i class="ago" data-at="{0}"></i>"#,
            Text(at),
            Text(time.trim_end_matches('Z')),
            Text(date),
        ),
        None => format!("<b>{}</b>", Text(at)),
    }
}

fn chain(out: &mut String, at: usize, status: &Status) -> fmt::Result {
    let (Some(newest), Some(oldest)) = (status.recent.first(), status.recent.last()) else {
        return Ok(());
    };
    let waiting = match status.unsealed {
        0 => "all sealed".to_owned(),
        unsealed => count(unsealed, "waits for its seal", "wait for their seals"),
    };
    write!(
        out,
        r#"<section class="panel"><h3>Newest blocks <span>{waiting}</span></h3><ol class="chain">"#
    )?;
    for block in status.recent.iter().rev() {
        link(out, at, block)?;
    }
    write!(
        out,
        r#"</ol><p class="ends"><span>block {}</span><span>block {} · {} · {}</span></p></section>"#,
        grouped(oldest.block),
        grouped(newest.block),
        count(newest.lines, "line", "lines"),
        match &newest.sealed_at {
            Some(sealed_at) => format!("sealed {}", Moment(sealed_at)),
            None => "waits for its seal".to_owned(),
        }
    )
}

fn link(out: &mut String, at: usize, block: &BlockStatus) -> fmt::Result {
    let (class, tells) = match &block.sealed_at {
        Some(sealed_at) => ("sealed", format!("sealed {}", Plain(sealed_at))),
        None => ("waiting", "waits for its seal".to_owned()),
    };
    let tells = format!(
        "Block {}, {}, {tells}",
        grouped(block.block),
        count(block.lines, "line", "lines")
    );
    // Doubling the lines makes a bar one step higher.
    let height = (block.lines.max(1).ilog2() + 1).min(10);
    write!(
        out,
        r#"<li id="s{at}-b{number}" class="{class} h{height}" title="{tells}"><span>{tells}</span></li>"#,
        number = block.block,
        tells = Text(&tells),
    )
}

fn figures(out: &mut String, status: &Status) -> fmt::Result {
    out.write_str(r#"<section class="panel"><h3>In the trail</h3><dl class="figures">"#)?;
    let (p50, p99) = match &status.seal_latency_ms {
        Some(latency) => (milliseconds(latency.p50), milliseconds(latency.p99)),
        None => ("–".into(), "–".into()),
    };
    for (name, value) in [
        ("events", grouped(status.events)),
        ("blocks", grouped(status.blocks)),
        ("patients", grouped(status.patients)),
        ("change to seal, half within", p50),
        ("change to seal, 99 % within", p99),
    ] {
        fact(out, name, &value)?;
    }
    out.write_str("</dl></section>")
}

fn milliseconds(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        _ => format!("{} min", grouped(ms / 60_000)),
    }
}

fn genesis(out: &mut String, status: &Status) -> fmt::Result {
    if status.genesis.is_empty() {
        return Ok(());
    }
    write!(
        out,
        r#"<section class="panel genesis"><h3>Genesis</h3><p>Write this hash down where nobody here can change it: whoever holds it knows which trail is the true one.</p><p class="command"><code>{0}</code><button type="button" class="copy" data-copy="{0}">Copy</button></p></section>"#,
        Text(&status.genesis)
    )
}

// --- small things ---------------------------------------------------------------

fn tone_class(tone: Tone) -> &'static str {
    match tone {
        Tone::Good => "good",
        Tone::Wait => "wait",
        Tone::Bad => "bad",
    }
}

/// The first `most` characters.
fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Text in HTML, in an element or a quoted attribute.
struct Text<'a>(&'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                // A terminal's or a parser's business, never a name's.
                c if c.is_control() => f.write_str("\u{fffd}")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// A name from the database. Isolated: its direction of writing is its own.
struct Code<'a>(&'a str);

impl fmt::Display for Code<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<bdi><code>{}</code></bdi>", Text(self.0))
    }
}

struct Columns<'a>(&'a [String]);

impl fmt::Display for Columns<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 12;
        for column in self.0.iter().take(MOST) {
            write!(f, "{} ", Code(&shortened(column, 80)))?;
        }
        match self.0.len().checked_sub(MOST) {
            None | Some(0) => Ok(()),
            Some(more) => write!(f, "and {more} more"),
        }
    }
}

/// A segment of a URL's path, in a quoted attribute.
struct Segment<'a>(&'a str);

impl fmt::Display for Segment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                    f.write_char(byte.into())?;
                }
                _ => write!(f, "%{byte:02X}")?,
            }
        }
        Ok(())
    }
}

/// `2026-03-14 09:26:53 UTC`
struct Plain<'a>(&'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.strip_suffix('Z').and_then(|t| t.split_once('T')) {
            Some((date, time)) => write!(f, "{date} {time} UTC"),
            None => f.write_str(self.0),
        }
    }
}

/// An instant that the script turns into "4 seconds ago".
struct Moment<'a>(&'a str);

impl fmt::Display for Moment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = Plain(self.0).to_string();
        write!(
            f,
            r#"<time datetime="{}" data-rel>{}</time>"#,
            Text(self.0),
            Text(&plain)
        )
    }
}

/// The mark of a verdict: a ring of sixty seconds around it.
struct Seal(Tone);

impl fmt::Display for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.0 {
            Tone::Good => GOOD_MARK,
            Tone::Wait => WAIT_MARK,
            Tone::Bad => BAD_MARK,
        };
        write!(
            f,
            r#"<svg class="seal" viewBox="0 0 64 64" aria-hidden="true"><circle class="ticks" cx="32" cy="32" r="29" pathLength="60"/><circle class="disc" cx="32" cy="32" r="24"/><path class="mark" d="{mark}"/></svg>"#
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "<img src=x onerror=alert(1)>\"'&\r\n{{main}}";

    fn hostile() -> Status {
        Status {
            name: HOSTILE.into(),
            origin: HOSTILE.into(),
            state: SourceState::Guarding,
            trouble: Some(HOSTILE.into()),
            sealed_up_to: Some(HOSTILE.into()),
            verified_up_to: Some(HOSTILE.into()),
            witnessed_at: Some(format!("T{HOSTILE}")),
            genesis: HOSTILE.into(),
            recent: vec![BlockStatus {
                block: 1,
                lines: u64::MAX,
                sealed_at: Some(HOSTILE.into()),
            }],
            findings: vec![FindingStatus {
                code: HOSTILE.into(),
                table: Some(HOSTILE.into()),
                key: Some(HOSTILE.into()),
                columns: vec![HOSTILE.into(); 20],
                at: HOSTILE.into(),
                found_at_us: 0,
                text: HOSTILE.repeat(100),
                open: true,
                line: Some(1),
                accepted: None,
            }],
            ..Status::default()
        }
    }

    fn accepted() -> FindingStatus {
        FindingStatus {
            open: false,
            accepted: Some(AcceptedStatus {
                line: 9,
                at: HOSTILE.into(),
                by: Some(HOSTILE.into()),
                reason: Some(HOSTILE.into()),
            }),
            ..hostile().findings.remove(0)
        }
    }

    #[test]
    fn nothing_from_outside_becomes_markup() {
        let mut first = hostile();
        first.findings.push(accepted());
        let page = document(&[first, hostile()]);
        assert!(page.contains("&lt;img src=x onerror=alert(1)&gt;&quot;&#39;&amp;"));
        assert!(!page.contains("<img"), "{page}");
        assert!(!page.contains('\r'), "{page}");
        assert_eq!(page.matches("<article").count(), 2, "{page}");
        assert!(
            page.contains("{{main}}"),
            "what is filled in is not looked at again"
        );
    }

    #[test]
    fn every_place_in_the_template_is_filled() {
        let page = document(&[Status::default()]);
        assert!(!page.contains("{{"), "{page}");
        for text in ["<title>", "<main", "Guarding is starting."] {
            assert!(page.contains(text), "{text}");
        }
    }

    /// The policy holds only if there is nothing inline beside the two blocks.
    #[test]
    fn the_policy_fits_the_page() {
        let page = document(&[hostile()]);
        for (open, count) in [
            ("<style", 1),
            ("<script", 1),
            (" style=", 0),
            (" onclick", 0),
        ] {
            assert_eq!(page.matches(open).count(), count, "{open}");
        }
        for outside in ["http:", "https:", "//cdn", "@import", "url("] {
            let page = page.replace("http://www.w3.org/2000/svg", "");
            assert!(!page.contains(outside), "{outside}");
        }
        let empty = BASE64.encode(&Sha256::digest(""));
        assert!(!POLICY.contains(&empty), "{}", *POLICY);
    }

    #[test]
    fn who_answers_for_a_finding_stands_in_the_place_of_advice() {
        let mut finding = FindingStatus {
            code: "ACT-01".into(),
            ..hostile().findings.remove(0)
        };
        let page = |finding: &FindingStatus| {
            document(&[Status {
                name: "ehr".into(),
                findings: vec![finding.clone()],
                ..Status::default()
            }])
        };
        let command = "pitser guard accept --source ehr --finding 1 --reason &#39;WHY&#39;";
        assert!(page(&finding).contains(command));
        finding.accepted = accepted().accepted;
        finding.open = false;
        let closed = page(&finding);
        assert!(closed.contains("<b>Accepted</b>"), "{closed}");
        assert!(!closed.contains("What to do") && !closed.contains("guard accept"));
        // A row that is wrong is nobody's to answer for.
        let row = FindingStatus {
            code: "ROW-01".into(),
            accepted: None,
            open: true,
            ..finding
        };
        assert!(!page(&row).contains("guard accept"));
    }

    #[test]
    fn long_lists_are_cut_and_counted() {
        let finding = hostile().findings.remove(0);
        let status = Status {
            findings: vec![finding; SHOWN + 1234],
            ..Status::default()
        };
        let page = document(&[status]);
        assert_eq!(page.matches(r#"<li class="card"#).count(), SHOWN);
        assert!(page.contains("And 1,234 more"));
        assert!(page.contains("and 8 more"), "columns");
    }

    #[test]
    fn findings_that_are_only_counted_are_told_with_their_lines() {
        let more = |open, earlier| MoreStatus {
            code: "ACT-01".into(),
            table: Some(HOSTILE.into()),
            open,
            earlier,
            first_line: Some(7),
            last_line: Some(599_598),
        };
        let status = Status {
            findings: vec![hostile().findings.remove(0)],
            more_findings: vec![more(299_800, 0), more(0, 1233)],
            ..Status::default()
        };
        let page = document(&[status]);
        for text in [
            "299,801 open findings",
            "And 299,800 more",
            "Of these, 299,800",
            "in lines 7 to 599,598",
            "1,233 earlier findings",
            "Of these, 1,233",
        ] {
            assert!(page.contains(text), "{text}");
        }
        assert!(!page.contains("<img src=x"), "names are escaped");
    }

    #[test]
    fn paths_are_escaped() {
        assert_eq!(Segment("ehr").to_string(), "ehr");
        assert_eq!(Segment("a/b?\"õ").to_string(), "a%2Fb%3F%22%C3%B5");
    }
}
