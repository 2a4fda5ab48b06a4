//! The newest publications as an Atom feed (RFC 4287), for readers and scripts.
//!
//! Ids are UUIDs of version 8 (RFC 9562 §5.8) from hashes, so that they stay the same
//! whatever address the feed is read at, and over a change of certificate.

use pitser_ksi::hash::{Algorithm, hash};
use pitser_ksi::publication::PublicationRecord;
use pitser_ksi::publications_file::PublicationsFile;
use pitser_ksi::time::Second;

use super::sheet::{long_time, root};
use super::{FEED, Format, Issuer, escaped, sheet_path};

pub(super) struct Feed<'a> {
    pub(super) issuer: &'a Issuer,
    /// When the calendar begins; with the issuer it tells one calendar from another.
    pub(super) genesis: Second,
    /// What precedes a path in links; empty if only the reader knows.
    pub(super) url: &'a str,
}

impl Feed<'_> {
    /// The newest publications of `file`, newest first.
    pub(super) fn write(&self, file: &PublicationsFile) -> String {
        let mut records: Vec<_> = file.publications().iter().collect();
        records.sort_by_key(|record| std::cmp::Reverse(record.data.time));
        records.truncate(MAX_ENTRIES);
        let updated = records.first().map_or(self.genesis, |it| it.data.time);
        let name = escaped(&self.issuer.name);
        let email = self.issuer.email().map(escaped);
        let email = email.map_or(String::new(), |it| format!("<email>{it}</email>"));
        let url = escaped(self.url);
        let mut out = format!(
            "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n\
             <feed xmlns=\"http://www.w3.org/2005/Atom\" xml:lang=\"en\">\n\
             \x20 <id>{}</id>\n\
             \x20 <title>Publications of {name}</title>\n\
             \x20 <updated>{updated}</updated>\n\
             \x20 <author><name>{name}</name>{email}</author>\n\
             \x20 <generator version=\"{}\">Pitser</generator>\n\
             \x20 <link rel=\"self\" type=\"application/atom+xml\" href=\"{url}{FEED}\"/>\n\
             \x20 <link rel=\"related\" type=\"application/octet-stream\" title=\"publications file\" \
             href=\"{url}/publications.bin\"/>\n",
            self.id(None),
            env!("CARGO_PKG_VERSION"),
        );
        for record in records {
            out += &self.entry(record);
        }
        out + "</feed>\n"
    }

    fn entry(&self, record: &PublicationRecord) -> String {
        let data = &record.data;
        let (at, code) = (data.time, data.to_code());
        let url = escaped(self.url);
        let (html, pdf) = (sheet_path(at, Format::Html), sheet_path(at, Format::Pdf));
        let printed: String = record
            .references
            .iter()
            .map(|text| format!("<dt>Printed in</dt><dd>{}</dd>", escaped(text)))
            .collect();
        format!(
            "  <entry>\n\
             \x20   <id>{}</id>\n\
             \x20   <title>Publication of {}</title>\n\
             \x20   <updated>{at}</updated>\n\
             \x20   <published>{at}</published>\n\
             \x20   <link rel=\"alternate\" type=\"text/html\" href=\"{url}{html}\"/>\n\
             \x20   <link rel=\"related\" type=\"application/pdf\" title=\"sheet for print\" \
             href=\"{url}{pdf}\"/>\n\
             \x20   <summary>{code}</summary>\n\
             \x20   <content type=\"xhtml\"><div xmlns=\"http://www.w3.org/1999/xhtml\"><dl>\
             <dt>Code</dt><dd><code class=\"code\">{code}</code></dd>\
             <dt>Second</dt><dd><time class=\"second\" datetime=\"{at}\">{}</time></dd>\
             <dt>Root</dt><dd><code class=\"root\">{}</code></dd>\
             {printed}</dl></div></content>\n\
             \x20 </entry>\n",
            self.id(Some(at)),
            long_time(at),
            at.0,
            root(data),
        )
    }

    /// Of the feed, or of the publication of a second.
    fn id(&self, second: Option<Second>) -> String {
        let of = format!(
            "pitser publications v1\n{}\n{}\n{}",
            self.issuer.constraint,
            self.genesis.0,
            second.map_or(String::new(), |at| at.0.to_string()),
        );
        let digest = hash(Algorithm::Sha256, &[of.as_bytes()]);
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&digest.digest()[..16]);
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
        format!(
            "urn:uuid:{}-{}-{}-{}-{}",
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..]
        )
    }
}

/// A reader that looks once a year misses no monthly publication.
const MAX_ENTRIES: usize = 50;
