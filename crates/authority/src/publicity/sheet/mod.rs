//! One publication on one page: to be hung up, filed at a notary's, pasted into a
//! newspaper.
//!
//! In scope: what the page says, in HTML ([`html`]) and PDF ([`pdf`]); neither loads
//! anything from elsewhere. Both say the same, and depend on nothing but the
//! publication and its issuer: whoever makes the page again gets the same bytes.

mod html;
mod pdf;
mod qr;

use pitser_ksi::publication::PublicationData;
use pitser_ksi::time::Second;

use super::Issuer;

/// The page about one publication.
///
/// ```
/// # use pitser_authority::publicity::{Issuer, Sheet};
/// # use pitser_ksi::publication::PublicationData;
/// # fn example(certificate_pem: &str, data: PublicationData) -> Result<(), Box<dyn std::error::Error>> {
/// let issuer = Issuer::new(certificate_pem, "email=publications@example.org")?;
/// let sheet = Sheet::new(data, &issuer).with_url("https://time.example.org");
/// std::fs::write("sheet.pdf", sheet.pdf())?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Sheet<'a> {
    data: PublicationData,
    issuer: &'a Issuer,
    url: Option<&'a str>,
}

impl<'a> Sheet<'a> {
    /// The page about `data`.
    pub fn new(data: PublicationData, issuer: &'a Issuer) -> Self {
        Self {
            data,
            issuer,
            url: None,
        }
    }

    /// Also tells where the service is reached.
    #[must_use]
    pub fn with_url(self, url: &'a str) -> Self {
        Self {
            url: Some(url.trim_end_matches('/')),
            ..self
        }
    }

    /// As one HTML file without anything outside it.
    pub fn html(&self) -> String {
        html::page(self)
    }

    /// As a PDF of one page of A4. Letters that Western European fonts lack are
    /// shown as question marks; the HTML has them all.
    pub fn pdf(&self) -> Vec<u8> {
        pdf::document(self)
    }

    fn title(&self) -> String {
        format!("Publication of {}", long_time(self.data.time))
    }

    /// What the code is.
    fn lead(&self) -> String {
        format!(
            "This code fixes the calendar of {} up to and including this second. Nothing signed \
             before it can be altered, added or taken away any more without the code becoming \
             another one.",
            self.issuer.name
        )
    }

    fn sections(&self) -> Vec<Section> {
        let text = |text: &str| Part::Text(text.to_owned());
        vec![
            Section {
                heading: "To verify with this page alone",
                parts: vec![
                    text(
                        "A signature that was extended to this publication needs no network, no \
                         certificate and no key: the file, the signature and the code suffice.",
                    ),
                    Part::Commands(vec![
                        format!("CODE={}", self.data.to_code()),
                        "pitser verify letter.txt.ext.ksig --document letter.txt --publication $CODE".into(),
                    ]),
                    text(
                        "One that was not extended yet is led here first, by any service that keeps \
                         this calendar:",
                    ),
                    Part::Commands(vec![
                        "pitser extend letter.txt.ksig -X ksi+tcp://USER:KEY@HOST:PORT --publication $CODE"
                            .into(),
                    ]),
                ],
            },
            Section {
                heading: "What it proves",
                parts: vec![text(
                    "That the very document existed in the second that its signature names, and \
                     has not changed since. This rests on hash functions alone, not on anybody\u{2019}s \
                     word: not even the authority can pretend otherwise.",
                )],
            },
            Section {
                heading: "What it does not prove",
                parts: vec![text(
                    "Who wrote the document, or whether it is true. Anything about later seconds. And \
                     not that this page is genuine: compare the code with one that reached you on \
                     another way, such as a newspaper, a notary or somebody else\u{2019}s copy.",
                )],
            },
            Section {
                heading: "Typing the code",
                parts: vec![text(
                    "It has the letters A to Z and the digits 2 to 7. Dashes, spaces and small letters \
                     do not matter, and a checksum finds typing errors. The QR code holds the same.",
                )],
            },
        ]
    }

    /// Names and values for those who want to know exactly.
    fn facts(&self) -> Vec<(&'static str, String)> {
        let mut facts = vec![
            (
                "Second",
                format!("{} ({})", self.data.time.0, self.data.time),
            ),
            ("Calendar root", root(&self.data)),
            ("Published by", self.issuer.constraint.clone()),
            (
                "Certificate",
                format!("SHA-256:{}", self.issuer.fingerprint),
            ),
        ];
        if let Some(url) = self.url {
            facts.push(("Publications", format!("{url}/publications.bin")));
        }
        facts
    }
}

/// The root as other programs write hashes.
pub(super) fn root(data: &PublicationData) -> String {
    let digest = data.imprint.digest().iter();
    let digest: String = digest.map(|byte| format!("{byte:02x}")).collect();
    format!("{}:{digest}", data.imprint.algorithm())
}

struct Section {
    heading: &'static str,
    parts: Vec<Part>,
}

enum Part {
    Text(String),
    /// Lines to be typed.
    Commands(Vec<String>),
}

/// The code's groups in lines of three, each but the last with the dash that follows.
fn code_lines(code: &str) -> Vec<String> {
    let groups: Vec<_> = code.split('-').collect();
    let lines = groups.chunks(GROUPS_A_LINE).map(|line| line.join("-"));
    let mut lines: Vec<_> = lines.map(|line| line + "-").collect();
    if let Some(last) = lines.last_mut() {
        last.pop();
    }
    lines
}

/// Such as "15 December 2026, 00:00:00 UTC".
pub(super) fn long_time(at: Second) -> String {
    format!("{}, {} UTC", long_date(at), time_of_day(at))
}

fn long_date(at: Second) -> String {
    let (year, month, day) = at.date();
    let name = usize::try_from(month)
        .ok()
        .and_then(|month| MONTHS.get(month.checked_sub(1)?));
    format!("{day} {} {year}", name.unwrap_or(&""))
}

fn time_of_day(at: Second) -> String {
    let s = at.0 % 86_400;
    format!("{:02}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const GROUPS_A_LINE: usize = 3;
