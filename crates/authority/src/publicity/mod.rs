//! Publications made known: a sheet for print, a feed, a command that is run, and
//! when to publish.
//!
//! In scope: what is shown of a publications file and to whom it is handed.
//! Elsewhere: making and storing the file (`publications.rs`). Nothing here holds
//! up a round or a publication: it looks at the file that is there.
//!
//! | request                          | answer                                  |
//! |----------------------------------|-----------------------------------------|
//! | `/publications.atom`             | the newest publications, RFC 4287       |
//! | `/publications/SECOND.html`      | a sheet for print                       |
//! | `/publications/SECOND.pdf`       | the same as PDF, one page of A4         |
//! | `/publications/latest[.html .pdf]` | the newest one's address              |

mod feed;
mod hook;
mod issuer;
mod schedule;
mod sheet;

use std::sync::{Arc, Mutex, PoisonError};

use pitser_ksi::pki::PkiError;
use pitser_ksi::publication::PublicationData;
use pitser_ksi::publications_file::PublicationsFile;
use pitser_ksi::time::Second;

pub use hook::Hook;
pub(crate) use hook::{Announced, Herald, HookState};
pub use issuer::Issuer;
pub(crate) use schedule::Schedule;
pub use sheet::Sheet;

use crate::publications::Publications;
use crate::signatory::Signatory;

/// What happens around publications, besides the period of
/// [`crate::Config::publish_every_s`].
#[derive(Debug, Clone, Default)]
pub struct PublicityConfig {
    /// Also publish at 00:00:00 UTC on this day of each month, 1 to 28.
    pub monthly_on: Option<u8>,
    /// Run after each publication.
    pub hook: Option<Hook>,
    /// Where the world reaches this service's HTTP, such as `https://time.example.org`:
    /// for links in the feed and on sheets.
    pub url: Option<String>,
}

/// What a running authority shows of its publications.
pub(crate) struct Publicity {
    publications: Arc<Publications>,
    issuer: Issuer,
    genesis: Second,
    url: Option<String>,
    pub(crate) hook: Option<Arc<HookState>>,
    /// The newest file, read. Locked for a comparison, or while it is read.
    read: Mutex<Option<Read>>,
}

/// A file as it is stored, and what it says.
type Read = (Arc<[u8]>, Arc<PublicationsFile>);

/// What a request for something of this module is answered.
pub(crate) enum Page {
    Html(String),
    Pdf(Vec<u8>),
    Atom(String),
    /// It is at this path.
    At(String),
    /// There is no such thing; one line.
    None(&'static str),
}

impl Publicity {
    pub(crate) fn new(
        publications: Arc<Publications>,
        signatory: &Signatory,
        genesis: Second,
        config: &PublicityConfig,
        hook: Option<Arc<HookState>>,
    ) -> Result<Self, PkiError> {
        let url = config.url.as_deref().map(|url| url.trim_end_matches('/'));
        Ok(Self {
            publications,
            issuer: Issuer::new(&signatory.certificate_pem, &signatory.constraint)?,
            genesis,
            url: url.map(str::to_owned),
            hook,
            read: Mutex::new(None),
        })
    }

    /// How many publications there are, and the newest. Unlike the publications'
    /// own, this waits for no signature that is being made.
    pub(crate) fn summary(&self) -> (usize, Option<PublicationData>) {
        self.file().map_or((0, None), |file| {
            let latest = file.latest().map(|record| record.data);
            (file.publications().len(), latest)
        })
    }

    /// Whether `path` is answered here.
    pub(crate) fn has(path: &str) -> bool {
        path == FEED || path.starts_with(SHEETS)
    }

    /// Answers a request. Computes for up to some milliseconds.
    pub(crate) fn answer(&self, path: &str) -> Page {
        let Some(file) = self.file() else {
            return Page::None("the publications file cannot be read\n");
        };
        if path == FEED {
            return Page::Atom(self.feed(&file));
        }
        let name = path.strip_prefix(SHEETS).unwrap_or_default();
        let (stem, format) = match name.rsplit_once('.') {
            Some((stem, "html")) => (stem, Format::Html),
            Some((stem, "pdf")) => (stem, Format::Pdf),
            _ => (name, Format::Html),
        };
        if stem == "latest" {
            return match file.latest() {
                Some(latest) => Page::At(sheet_path(latest.data.time, format)),
                None => Page::None("nothing is published yet\n"),
            };
        }
        // One spelling for each sheet: digits, without a sign or zeros before them.
        let second = stem.parse().ok().filter(|at: &u64| at.to_string() == stem);
        let record = second.and_then(|at| file.at_time(Second(at)));
        match record {
            Some(record) => self.sheet(Sheet::new(record.data, &self.issuer), format),
            None => Page::None(
                "no such publication: /publications/latest, or SECOND.html and SECOND.pdf with the \
                 seconds since 1970 of one in /publications.atom\n",
            ),
        }
    }

    fn sheet(&self, sheet: Sheet<'_>, format: Format) -> Page {
        let sheet = match &self.url {
            Some(url) => sheet.with_url(url),
            None => sheet,
        };
        match format {
            Format::Html => Page::Html(sheet.html()),
            Format::Pdf => Page::Pdf(sheet.pdf()),
        }
    }

    fn feed(&self, file: &PublicationsFile) -> String {
        let feed = feed::Feed {
            issuer: &self.issuer,
            genesis: self.genesis,
            url: self.url.as_deref().unwrap_or_default(),
        };
        feed.write(file)
    }

    /// The newest file; read once, whoever asks.
    fn file(&self) -> Option<Arc<PublicationsFile>> {
        let bytes = self.publications.file();
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        match &*read {
            Some((of, file)) if Arc::ptr_eq(of, &bytes) => Some(Arc::clone(file)),
            _ => {
                let file = Arc::new(PublicationsFile::decode(&bytes).ok()?);
                *read = Some((bytes, Arc::clone(&file)));
                Some(file)
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Format {
    Html,
    Pdf,
}

fn sheet_path(second: Second, format: Format) -> String {
    let extension = match format {
        Format::Html => "html",
        Format::Pdf => "pdf",
    };
    format!("{SHEETS}{}.{extension}", second.0)
}

/// `text` in XML or HTML, in an element or between quotation marks.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            // XML has no place for them.
            '\0'..='\x1f' | '\u{7f}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => out.push(' '),
            letter => out.push(letter),
        }
    }
    out
}

const FEED: &str = "/publications.atom";
const SHEETS: &str = "/publications/";
