//! Publications on their way to the world: sheets, feed, hook, schedule.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use common::{GENESIS, World, config, init, tick};
use pitser_authority::publicity::{Hook, Issuer, Sheet};
use pitser_authority::{Authority, AuthorityHandle, Config, ManualClock, Micros, Second, Subject};
use pitser_ksi::hash::{Algorithm, hash};
use pitser_ksi::publication::PublicationData;
use pitser_ksi::publications_file::PublicationsFile;
use roxmltree::{Document, Node};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const ATOM: &str = "http://www.w3.org/2005/Atom";

fn publication() -> PublicationData {
    PublicationData {
        time: Second(1_797_292_800),
        imprint: hash(Algorithm::Sha256, &[b"a root"]),
    }
}

fn issuer(name: &str) -> Issuer {
    Issuer {
        name: name.to_owned(),
        constraint: "email=publications@pitser.example".to_owned(),
        fingerprint: "ab".repeat(32),
    }
}

/// What a phone would read off dark rectangles `(x, y, width)`, one square high.
fn scanned(dark: &[(usize, usize, usize)]) -> String {
    const SCALE: usize = 4;
    const SIDE: usize = 60;
    let is_dark = |x: usize, y: usize| {
        let is_in = |&(from, row, length): &(usize, usize, usize)| {
            row == y && (from..from + length).contains(&x)
        };
        dark.iter().any(is_in)
    };
    let grey = |x: usize, y: usize| {
        if is_dark(x / SCALE, y / SCALE) {
            0
        } else {
            255
        }
    };
    decoded(SIDE * SCALE, SIDE * SCALE, grey)
}

fn decoded(width: usize, height: usize, grey: impl FnMut(usize, usize) -> u8) -> String {
    let mut image = rqrr::PreparedImage::prepare_from_greyscale(width, height, grey);
    let grids = image.detect_grids();
    assert_eq!(grids.len(), 1, "one QR code on the page");
    grids[0].decode().unwrap().1
}

#[test]
fn a_page_in_html_is_whole_and_its_qr_code_has_the_code() {
    let (data, issuer) = (publication(), issuer("Time & <b>Places</b> \"Ltd\""));
    let html = Sheet::new(data, &issuer).html();
    for outside in ["src=", "href=", "url(", "<script", "<link", "@import"] {
        assert!(!html.contains(outside), "{outside}");
    }
    assert!(html.contains("Time &amp; &lt;b&gt;Places&lt;/b&gt; &quot;Ltd&quot;"));
    assert!(html.contains("15 December 2026"), "{html}");
    let code = data.to_code();
    assert!(html.contains(&format!("CODE={code}\n")), "to be copied");

    // As somebody copies the large letters, with their line breaks.
    let large = html.split_once("<p id=\"code\"").unwrap().1;
    let large = large
        .split_once('>')
        .unwrap()
        .1
        .split_once("</p>")
        .unwrap()
        .0;
    let large = large.replace("<span>", "").replace("</span>", "");
    assert_eq!(PublicationData::from_code(&large), Ok(data));

    let svg = &html[html.find("<svg").unwrap()..html.find("</svg>").unwrap() + 6];
    let svg = Document::parse(svg).unwrap();
    let mut paths = svg.descendants().filter_map(|it| it.attribute("d"));
    let path = paths.next_back();
    let squares: Vec<_> = path.unwrap().split_terminator('z').map(square).collect();
    assert_eq!(scanned(&squares), code);
}

/// `M4 5h7v1h-7` as x, y and width.
fn square(path: &str) -> (usize, usize, usize) {
    let (x, rest) = path.strip_prefix('M').unwrap().split_once(' ').unwrap();
    let (y, rest) = rest.split_once('h').unwrap();
    let (width, rest) = rest.split_once('v').unwrap();
    assert_eq!(rest, format!("1h-{width}"));
    (
        x.parse().unwrap(),
        y.parse().unwrap(),
        width.parse().unwrap(),
    )
}

#[test]
fn a_page_in_pdf_has_its_objects_where_the_table_says() {
    let issuer = issuer("Institute (of) \\ time");
    let pdf = Sheet::new(publication(), &issuer).pdf();
    assert_eq!(
        pdf,
        Sheet::new(publication(), &issuer).pdf(),
        "the same again"
    );
    let text = String::from_utf8(pdf).unwrap();
    let start = text.rsplit_once("startxref\n").unwrap().1;
    let start: usize = start.split_once('\n').unwrap().0.parse().unwrap();
    let table: Vec<_> = text[start..].lines().collect();
    assert_eq!(table[0], "xref");
    let count: usize = table[1].strip_prefix("0 ").unwrap().parse().unwrap();
    for (number, line) in table[3..2 + count].iter().enumerate() {
        let at: usize = line[..10].parse().unwrap();
        let expected = format!("{} 0 obj\n", number + 1);
        assert!(text[at..].starts_with(&expected), "{line}");
    }
    let length = text.split_once("/Length ").unwrap().1;
    let (length, rest) = length.split_once(" >>\nstream\n").unwrap();
    let stream = rest.split_once("endstream").unwrap().0;
    assert_eq!(stream.len(), length.parse::<usize>().unwrap());
}

#[test]
fn a_page_in_pdf_is_read_as_text_and_scanned_as_paper() {
    let dir = TempDir::new().unwrap();
    let (data, pdf) = (publication(), dir.path().join("sheet.pdf"));
    // As long as names get, on the narrowest page.
    let name = "Nationales Institut für die öffentliche Zeit, ihre Beglaubigung und Bewahrung ";
    let issuer = issuer(&name.repeat(3));
    let sheet = Sheet::new(data, &issuer).with_url("https://time.pitser.example/");
    fs::write(&pdf, sheet.pdf()).unwrap();
    let Some(text) = output("pdftotext", &["-layout", pdf.to_str().unwrap(), "-"]) else {
        return;
    };
    let text = String::from_utf8(text).unwrap();
    assert_eq!(text.matches('\u{c}').count(), 1, "one page");
    assert!(text.contains("Institut für die öffentliche Zeit"), "{text}");
    assert!(text.contains(&format!("CODE={}", data.to_code())), "{text}");
    assert!(text.contains("https://time.pitser.example/publications.bin"));
    let large: Vec<_> = text.lines().filter(|line| is_groups(line)).collect();
    assert_eq!(
        PublicationData::from_code(&large.concat()),
        Ok(data),
        "{text}"
    );

    let picture = output("pdftoppm", &["-gray", "-r", "100", pdf.to_str().unwrap()]).unwrap();
    let (width, height, grey) = pgm(&picture);
    let code = decoded(width, height, |x, y| grey[y * width + x]);
    assert_eq!(code, data.to_code());
}

/// Three groups of six letters, and nothing else.
fn is_groups(line: &str) -> bool {
    let line = line.trim();
    let is_letter = |byte: u8| byte.is_ascii_uppercase() || (b'2'..=b'7').contains(&byte);
    line.len() >= 20 && line.bytes().all(|byte| byte == b'-' || is_letter(byte))
}

/// What a program of another package says; none, said aloud, if it is not there.
fn output(program: &str, arguments: &[&str]) -> Option<Vec<u8>> {
    match Command::new(program).args(arguments).output() {
        Ok(output) => {
            assert!(output.status.success(), "{output:?}");
            Some(output.stdout)
        }
        Err(e) => {
            eprintln!("skipped: {program}: {e}");
            None
        }
    }
}

/// Width, height and greys of a binary PGM picture.
fn pgm(picture: &[u8]) -> (usize, usize, &[u8]) {
    let mut rest = picture;
    let mut words = Vec::new();
    while words.len() < 4 {
        let end = rest.iter().position(u8::is_ascii_whitespace).unwrap();
        words.push(std::str::from_utf8(&rest[..end]).unwrap().to_owned());
        rest = &rest[end + 1..];
    }
    assert_eq!((words[0].as_str(), words[3].as_str()), ("P5", "255"));
    (words[1].parse().unwrap(), words[2].parse().unwrap(), rest)
}

/// Status, headers and body of GET `path`.
async fn get(address: SocketAddr, path: &str) -> (u16, String, Vec<u8>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: it\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|it| it == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    (
        head[9..12].parse().unwrap(),
        head,
        answer[end + 4..].to_vec(),
    )
}

fn only<'a>(node: Node<'a, 'a>, name: &str) -> Node<'a, 'a> {
    let mut found = node.children().filter(|it| it.has_tag_name((ATOM, name)));
    let first = found.next().unwrap_or_else(|| panic!("no {name}"));
    assert!(found.next().is_none(), "two of {name}");
    first
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_tells_readers_of_each_publication_and_leads_to_its_pages() {
    let world = World::new().await;
    let http = world.authority.http_address().unwrap();
    let (status, _, empty) = get(http, "/publications.atom").await;
    assert_eq!(status, 200);
    let empty = String::from_utf8(empty).unwrap();
    let id = feed_id(&empty);
    assert_eq!(get(http, "/publications/latest").await.0, 404);

    let mut published = Vec::new();
    for _ in 0..60 {
        world.tick().await;
        published.push(world.authority.publish().await.unwrap());
    }
    let (_, head, feed) = get(http, "/publications.atom").await;
    assert!(head.contains("application/atom+xml"), "{head}");
    let feed = String::from_utf8(feed).unwrap();
    assert_eq!(feed_id(&feed), id, "ids stay");
    let document = Document::parse(&feed).unwrap();
    let root = document.root_element();
    let newest = published.last().unwrap();
    assert_eq!(
        only(root, "updated").text(),
        Some(newest.data.time.to_string().as_str())
    );
    assert!(
        only(root, "author")
            .children()
            .any(|it| it.has_tag_name((ATOM, "name")))
    );

    let entries: Vec<_> = root
        .children()
        .filter(|it| it.has_tag_name((ATOM, "entry")))
        .collect();
    assert_eq!(entries.len(), 50, "the newest");
    let mut ids = vec![id];
    for (entry, of) in entries.iter().zip(published.iter().rev()) {
        ids.push(only(*entry, "id").text().unwrap().to_owned());
        only(*entry, "title");
        assert_eq!(
            only(*entry, "updated").text(),
            Some(of.data.time.to_string().as_str())
        );
        let told = |class: &str| {
            let mut all = entry.descendants();
            let found = all.find(|it| it.attribute("class") == Some(class)).unwrap();
            found.text().unwrap().to_owned()
        };
        assert_eq!(told("code"), of.code);
        assert_eq!(told("second"), of.data.time.0.to_string());
        let digest = of.data.imprint.digest().iter();
        let digest: String = digest.map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(told("root"), format!("SHA-256:{digest}"));
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 51, "each has its own id");

    for (link, kind) in [("alternate", "text/html"), ("related", "application/pdf")] {
        let mut links = entries[7].children();
        let found = links.find(|it| it.attribute("rel") == Some(link)).unwrap();
        assert_eq!(found.attribute("type"), Some(kind));
        let (status, head, page) = get(http, found.attribute("href").unwrap()).await;
        assert_eq!(status, 200);
        assert!(head.contains(kind), "{head}");
        let code = if link == "alternate" {
            &published[52].code
        } else {
            "%PDF-1.4"
        };
        assert!(String::from_utf8(page).unwrap().contains(code), "{link}");
    }
    let (status, head, _) = get(http, "/publications/latest.pdf").await;
    let target = format!("location: /publications/{}.pdf", newest.data.time.0);
    assert!(status == 302 && head.contains(&target), "{head}");
    for nothing in [
        "0",
        "1.html",
        "+1.html",
        "%2e%2e",
        "",
        "latest.txt",
        "99999999999999999999.pdf",
    ] {
        assert_eq!(
            get(http, &format!("/publications/{nothing}")).await.0,
            404,
            "{nothing}"
        );
    }
    world.authority.shutdown().await.unwrap();
}

fn feed_id(feed: &str) -> String {
    let document = Document::parse(feed).unwrap();
    let id = only(document.root_element(), "id")
        .text()
        .unwrap()
        .to_owned();
    let uuid = id.strip_prefix("urn:uuid:").unwrap();
    assert!(uuid.len() == 36 && &uuid[14..15] == "8", "{uuid}");
    id
}

/// An authority whose hook writes into a pipe that the test reads.
struct Heard {
    dir: TempDir,
    lines: Option<BufReader<File>>,
}

impl Heard {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        init(&dir);
        let pipe = dir.path().join("pipe");
        assert!(
            Command::new("mkfifo")
                .arg(&pipe)
                .status()
                .unwrap()
                .success()
        );
        // Open at both ends, so that neither waits for the other nor meets an end.
        let file = File::options().read(true).write(true).open(&pipe).unwrap();
        Self {
            dir,
            lines: Some(BufReader::new(file)),
        }
    }

    fn config(&self, before: &str) -> Config {
        let mut config = config(&self.dir);
        let script = format!("{before}; cat > \"$0/pipe\"");
        let dir = self.dir.path().to_str().unwrap();
        config.publicity.hook = Some(Hook::new(["/bin/sh", "-c", &script, dir]));
        config.operations.monitor = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        config
    }

    async fn start(&self, config: Config, now: Second) -> (Arc<ManualClock>, AuthorityHandle) {
        let clock = Arc::new(ManualClock::new(Micros::boundary(now)));
        let authority = Authority::start(config, Arc::clone(&clock)).await.unwrap();
        (clock, authority)
    }

    /// What the hook was told next, while seconds pass.
    async fn next(&mut self, clock: &ManualClock, authority: &AuthorityHandle) -> Value {
        let mut lines = self.lines.take().unwrap();
        let reading = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            lines.read_line(&mut line).unwrap();
            (lines, serde_json::from_str(&line).unwrap())
        });
        let (lines, told) = tokio::select! {
            read = reading => read.unwrap(),
            () = async { loop { tick(clock, authority).await } } => unreachable!(),
        };
        self.lines = Some(lines);
        told
    }
}

/// Lets seconds pass until the hook's status is as `wanted`.
async fn hook_is(
    clock: &ManualClock,
    authority: &AuthorityHandle,
    wanted: impl Fn(&Value) -> bool,
) -> Value {
    loop {
        tick(clock, authority).await;
        let status = get(authority.monitor_address().unwrap(), "/status").await.2;
        let status: Value = serde_json::from_slice(&status).unwrap();
        if wanted(&status["hook"]) {
            return status["hook"].clone();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_is_told_again_until_it_succeeds_and_after_a_restart() {
    let mut heard = Heard::new();
    let once = "test -e \"$0/sorry\" || { touch \"$0/sorry\"; echo sorry >&2; exit 3; }";
    let config = heard.config(once);
    let (clock, authority) = heard.start(config.clone(), GENESIS).await;
    tick(&clock, &authority).await;
    let first = authority.publish().await.unwrap();
    // Publishing and signing go on meanwhile.
    tick(&clock, &authority).await;
    let second = authority.publish().await.unwrap();
    for of in [&first, &second] {
        let told = heard.next(&clock, &authority).await;
        assert_eq!(told["code"], *of.code, "in order");
        assert_eq!(told["second"], of.data.time.0);
        let file = fs::read(told["file"].as_str().unwrap()).unwrap();
        assert!(
            PublicationsFile::decode(&file)
                .unwrap()
                .at_time(of.data.time)
                .is_some()
        );
    }
    let state = hook_is(&clock, &authority, |hook| hook["owed"] == 0).await;
    assert_eq!(
        (&state["failed"], &state["succeeded"]),
        (&1.into(), &2.into())
    );
    assert_eq!(state["trouble"], Value::Null);
    authority.shutdown().await.unwrap();

    // One that cannot be started: then the authority ends, and is started with the other.
    let mut broken = config.clone();
    broken.publicity.hook = Some(Hook::new(["/nowhere/hook"]));
    let (clock, authority) = heard.start(broken, clock.now_second()).await;
    tick(&clock, &authority).await;
    let third = authority.publish().await.unwrap();
    let state = hook_is(&clock, &authority, |hook| hook["trouble"].is_string()).await;
    let trouble = state["trouble"].as_str().unwrap();
    assert!(
        trouble.contains("/nowhere/hook cannot be started"),
        "{trouble}"
    );
    assert_eq!(state["owed"], 1);
    authority.shutdown().await.unwrap();

    let (clock, authority) = heard.start(config, clock.now_second()).await;
    let told = heard.next(&clock, &authority).await;
    assert_eq!(
        told["code"], *third.code,
        "what was missed is made up for, nothing else"
    );
    hook_is(&clock, &authority, |hook| hook["owed"] == 0).await;
    authority.shutdown().await.unwrap();
}

trait Now {
    fn now_second(&self) -> Second;
}

impl Now for ManualClock {
    fn now_second(&self) -> Second {
        pitser_authority::Clock::now(self).ended()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_hangs_holds_up_nothing_and_is_stopped() {
    let heard = Heard::new();
    let mut config = heard.config("sleep 1000");
    config.publicity.hook.as_mut().unwrap().timeout = std::time::Duration::from_millis(50);
    let (clock, authority) = heard.start(config, GENESIS).await;
    tick(&clock, &authority).await;
    authority.publish().await.unwrap();
    let state = hook_is(&clock, &authority, |hook| {
        hook["failed"].as_u64() >= Some(2)
    })
    .await;
    assert!(
        state["trouble"]
            .as_str()
            .unwrap()
            .contains("did not end within")
    );
    assert_eq!(state["announced"], Value::Null);
    // And one in the middle of it does not hold up the end.
    authority.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_hook_is_not_run_for_what_was_published_before_it() {
    let mut heard = Heard::new();
    let (clock, authority) = heard.start(config(&heard.dir), GENESIS).await;
    tick(&clock, &authority).await;
    authority.publish().await.unwrap();
    authority.shutdown().await.unwrap();

    let (clock, authority) = heard.start(heard.config("true"), clock.now_second()).await;
    tick(&clock, &authority).await;
    let newer = authority.publish().await.unwrap();
    assert_eq!(heard.next(&clock, &authority).await["code"], *newer.code);
    authority.shutdown().await.unwrap();

    let announced = heard.dir.path().join("announced");
    fs::write(&announced, "yesterday\n").unwrap();
    let again = Authority::start(heard.config("true"), ManualClock::new(Micros(0))).await;
    assert!(again.is_err(), "the clock is refused before, or the file");
    let now = Micros::boundary(clock.now_second());
    let refused = Authority::start(heard.config("true"), ManualClock::new(now)).await;
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("it is no number; write the second"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fifteenth_is_published_and_made_up_for_when_it_was_missed() {
    // 2026-03-15T00:00:00Z
    const FIFTEENTH: Second = Second(1_773_532_800);
    let dir = TempDir::new().unwrap();
    let subject = Subject {
        email: "publications@pitser.example".to_owned(),
        ..Subject::default()
    };
    let genesis = Second(FIFTEENTH.0 - 5);
    Authority::init(dir.path(), genesis, &subject).unwrap();
    let seconds = |file: &[u8]| -> Vec<Second> {
        let file = PublicationsFile::decode(file).unwrap();
        file.publications().iter().map(|it| it.data.time).collect()
    };
    let run = async |now: Second, ticks: u64| {
        let mut config = config(&dir);
        config.publicity.monthly_on = Some(15);
        let clock = Arc::new(ManualClock::new(Micros::boundary(now)));
        let authority = Authority::start(config, Arc::clone(&clock)).await.unwrap();
        for _ in 0..ticks {
            tick(&clock, &authority).await;
        }
        // A round is reported before its publication is made, but before the next round.
        authority.shutdown().await.unwrap();
        seconds(&fs::read(Path::new(dir.path()).join("publications.bin")).unwrap())
    };
    assert_eq!(run(genesis, 12).await, [FIFTEENTH]);
    // A month later nothing ran on that day, nor for five days after.
    let later = FIFTEENTH.plus(36 * 86_400);
    let made_up = run(later, 4).await;
    assert_eq!(made_up.len(), 2, "{made_up:?}");
    assert!(
        made_up[1] >= later && made_up[1] <= later.plus(1),
        "{made_up:?}"
    );
    assert_eq!(run(later.plus(100), 4).await, made_up, "once");
}
