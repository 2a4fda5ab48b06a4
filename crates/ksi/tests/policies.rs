//! The published policy vectors: every row of the test pack's tables that is
//! about keys, publications and the calendar gives the code it names.
//!
//! Rows that need the live extender of the pack's makers are skipped, counted,
//! and the counts asserted, so that none drops out unseen.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{read, text};
use pitser_ksi::chain::CalendarChain;
use pitser_ksi::hash::Imprint;
use pitser_ksi::pki::TrustAnchors;
use pitser_ksi::policy::{Context, Extend, ExtendError, Policy, Verdict, verify};
use pitser_ksi::publication::PublicationData;
use pitser_ksi::publications_file::PublicationsFile;
use pitser_ksi::signature::Signature;
use pitser_ksi::time::Second;
use pitser_ksi::tlv::Reader;

const PACK_FILE: &str = "policy-verification-signatures/resources/publications-file-resigned.bin";
const PACK_ANCHOR: &str = "policy-verification-signatures/resources/cert-file-for-deprecated-algorithm-in-calendar-chain.pem";
/// The pack's signers expired in July 2026.
const MID_2024: Second = Second(1_717_200_000);

#[test]
fn valid_signatures() {
    check(
        "valid-signatures/signature-results.csv",
        Counts { run: 8, live: 2 },
    );
}

#[test]
fn invalid_signatures() {
    check(
        "invalid-signatures/invalid-signature-results.csv",
        Counts { run: 0, live: 0 },
    );
}

#[test]
fn policy_signatures() {
    let table = "policy-verification-signatures/policy-verification-results.csv";
    check(table, Counts { run: 17, live: 1 });
}

#[test]
fn internal_signatures() {
    check(
        "internal-policy-signatures/internal-policy-results.csv",
        Counts { run: 0, live: 0 },
    );
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    run: usize,
    live: usize,
}

fn check(table: &str, expected: Counts) {
    let folder = table.split_once('/').unwrap().0;
    let (mut counts, mut wrong) = (Counts::default(), Vec::new());
    for line in text(&format!("test_pack/{table}"))
        .lines()
        .filter(|line| !line.starts_with('#'))
    {
        let row = Row::read(folder, line);
        match row.policy() {
            None => continue,
            Some(_) if row.needs_live_extender() => counts.live += 1,
            Some(policy) => {
                counts.run += 1;
                let (got, verdict) = row.verify(policy);
                if got != row.code {
                    wrong.push(format!(
                        "{} {policy:?}: {verdict:?}, not {:?}",
                        row.file, row.code
                    ));
                }
            }
        }
    }
    assert_eq!(wrong, [""; 0], "{table}");
    assert_eq!(counts, expected, "{table}");
}

/// A line of the table; see the pack's README for the columns.
struct Row<'a> {
    folder: &'a str,
    file: &'a str,
    policy: &'a str,
    code: &'a str,
    level: u8,
    document: &'a str,
    aggregation_output: &'a str,
    calendar_output: &'a str,
    aggregation_time: &'a str,
    publication_time: &'a str,
    publication: &'a str,
    extending_allowed: bool,
    reply: &'a str,
    publications: &'a str,
    anchor: &'a str,
}

impl<'a> Row<'a> {
    fn read(folder: &'a str, line: &'a str) -> Self {
        let columns: Vec<_> = line.split(';').collect();
        let [
            file,
            policy,
            code,
            _message,
            level,
            document,
            aggregation_output,
            calendar_output,
            aggregation_time,
            publication_time,
            publication,
            extending,
            reply,
            publications,
            anchor,
            ..,
        ] = columns[..]
        else {
            panic!("too few columns: {line}");
        };
        Self {
            folder,
            file,
            policy,
            code,
            level: level.parse().unwrap(),
            document,
            aggregation_output,
            calendar_output,
            aggregation_time,
            publication_time,
            publication,
            extending_allowed: extending == "true",
            reply,
            publications,
            anchor,
        }
    }

    /// The policy, if it is one of those under test here.
    fn policy(&self) -> Option<Policy> {
        match self.policy {
            "key" => Some(Policy::Key),
            "calendar" => Some(Policy::Calendar),
            "userPublication" => Some(Policy::UserPublication),
            "publicationsFile" => Some(Policy::PublicationsFile),
            "internal" | "parsing" | "not-implemented" => None,
            other => panic!("{}: unknown policy {other}", self.file),
        }
    }

    fn needs_live_extender(&self) -> bool {
        self.reply.is_empty() && (self.extending_allowed || self.policy == "calendar")
    }

    fn verify(&self, policy: Policy) -> (String, Verdict) {
        let signature = Signature::decode(&self.resource(self.file)).unwrap();
        self.compare(&signature);
        let publications = self.publications_file();
        let reply = (!self.reply.is_empty()).then(|| Reply(self.resource(self.reply)));
        let given = PublicationData::from_code(self.publication).ok();
        let context = Context {
            document: (self.code == "GEN-01").then(|| self.document.parse().unwrap()),
            level: self.level,
            publications: Some(&publications),
            user_publication: given.filter(|_| policy == Policy::UserPublication),
            extender: reply.as_ref().map(|reply| reply as &dyn Extend),
            extending_allowed: self.extending_allowed,
            ..Context::new(policy)
        };
        let verdict = verify(&signature, &context);
        let code = verdict
            .code()
            .map_or(String::new(), |code| code.to_string());
        assert_eq!(
            code == "GEN-02",
            matches!(verdict, Verdict::Unconfirmed { .. })
        );
        (code, verdict)
    }

    /// The columns that tell what the signature says.
    fn compare(&self, signature: &Signature) {
        let imprint = |text: &str| text.to_lowercase().parse::<Imprint>().ok();
        let time = |text: &str| text.parse().ok().map(Second);
        let calendar = signature.calendar();
        let same = |stated: Option<Imprint>, actual: Option<Imprint>| {
            assert!(
                stated.is_none() || stated == actual,
                "{}: {stated:?} {actual:?}",
                self.file
            );
        };
        if self.code.is_empty() {
            same(imprint(self.document), Some(signature.input()));
            same(
                imprint(self.aggregation_output),
                Some(signature.aggregation_output()),
            );
            same(
                imprint(self.calendar_output),
                calendar.map(CalendarChain::output),
            );
            let times = [
                (
                    time(self.aggregation_time),
                    Some(signature.aggregation_time()),
                ),
                (
                    time(self.publication_time),
                    calendar.map(|chain| chain.publication_time),
                ),
            ];
            for (stated, actual) in times {
                assert!(stated.is_none() || stated == actual, "{}", self.file);
            }
        }
    }

    /// The row's publications file, or the pack's own, verified.
    fn publications_file(&self) -> PublicationsFile {
        let pick = |own: &str, default| match own {
            "" => read(&format!("test_pack/{default}")),
            _ => self.resource(own),
        };
        let file = PublicationsFile::decode(&pick(self.publications, PACK_FILE)).unwrap();
        let mut anchors = TrustAnchors::new();
        anchors
            .add_pem_or_der(&pick(self.anchor, PACK_ANCHOR))
            .unwrap();
        let publisher = ["email=publications@guardtime.com".parse().unwrap()];
        file.verify(&anchors, &publisher, MID_2024).unwrap();
        file
    }

    fn resource(&self, path: &str) -> Vec<u8> {
        read(&format!("test_pack/{}/{path}", self.folder))
    }
}

/// A canned extender reply, PDU version 1 or 2; whatever is asked, this is the answer.
struct Reply(Vec<u8>);

impl Extend for Reply {
    fn extend(&self, _: Second, _: Option<Second>) -> Result<CalendarChain, ExtendError> {
        let pdu = Reader::new(&self.0).element().unwrap();
        let payload = pdu
            .children()
            .flatten()
            .find(|child| [0x02, 0x0302].contains(&child.tag));
        let chain = payload
            .unwrap()
            .children()
            .flatten()
            .find(|child| child.tag == 0x0802);
        match chain {
            Some(chain) => Ok(CalendarChain::decode(&chain).unwrap()),
            None => Err(ExtendError("the reply holds no calendar chain".into())),
        }
    }
}
