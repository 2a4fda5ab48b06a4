//! The published policy vectors: every row of the test pack's tables that is
//! about keys, publications and the calendar gives the code it names.
//!
//! Rows that need a live extender ask one of our own, which holds the signature's
//! second in a small calendar: the history that the signature tells, or another
//! one where the row expects a contradiction. The rows are counted, so that none
//! drops out unseen.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::calendar::Calendar;
use common::{own_publications, read, text};
use pitser_ksi::chain::CalendarChain;
use pitser_ksi::hash::{Algorithm, Imprint};
use pitser_ksi::pdu::{
    ExtendQuery, ExtendRequest, ExtendRequestPayload, ExtendResponse, ExtendResponsePayload,
    ExtendResult, Header, Pdu, Status,
};
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
        Counts { canned: 8, live: 2 },
    );
}

#[test]
fn invalid_signatures() {
    check(
        "invalid-signatures/invalid-signature-results.csv",
        Counts { canned: 0, live: 0 },
    );
}

#[test]
fn policy_signatures() {
    let table = "policy-verification-signatures/policy-verification-results.csv";
    check(
        table,
        Counts {
            canned: 17,
            live: 1,
        },
    );
}

#[test]
fn internal_signatures() {
    check(
        "internal-policy-signatures/internal-policy-results.csv",
        Counts { canned: 0, live: 0 },
    );
}

/// How many rows were judged, with what is in the pack and with our own extender.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    canned: usize,
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
        let Some(policy) = row.policy() else {
            continue;
        };
        let (got, verdict) = if row.needs_live_extender() {
            counts.live += 1;
            row.verify_live(policy)
        } else {
            counts.canned += 1;
            row.verify_canned(policy)
        };
        if got != row.code {
            let expected = row.code;
            wrong.push(format!(
                "{} {policy:?}: {verdict:?}, not {expected:?}",
                row.file
            ));
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

    /// With the pack's own reply and publications file.
    fn verify_canned(&self, policy: Policy) -> (String, Verdict) {
        let reply = (!self.reply.is_empty()).then(|| Reply(self.resource(self.reply)));
        let extender = reply.as_ref().map(|reply| reply as &dyn Extend);
        self.verify(policy, extender, &self.publications_file())
    }

    /// With an extender of our own, and a publications file about its calendar.
    fn verify_live(&self, policy: Policy) -> (String, Verdict) {
        let signature = self.signature();
        let extender = Extender {
            calendar: if self.code.is_empty() {
                Calendar::around(&signature)
            } else {
                Calendar::contradicting(&signature)
            },
            own: signature
                .calendar()
                .filter(|_| self.code.is_empty())
                .cloned(),
        };
        let publications = extender.publications_file();
        self.verify(policy, Some(&extender), &publications)
    }

    fn verify(
        &self,
        policy: Policy,
        extender: Option<&dyn Extend>,
        publications: &PublicationsFile,
    ) -> (String, Verdict) {
        let signature = self.signature();
        self.compare(&signature);
        let given = PublicationData::from_code(self.publication).ok();
        let context = Context {
            document: (!self.document.is_empty()).then(|| self.document.parse().unwrap()),
            level: self.level,
            publications: Some(publications),
            user_publication: given.filter(|_| policy == Policy::UserPublication),
            extender,
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

    fn signature(&self) -> Signature {
        Signature::decode(&self.resource(self.file)).unwrap()
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

/// An extender as its clients see it: it is asked, and answers, in messages.
struct Extender {
    calendar: Calendar,
    /// The history that the signature itself tells, as far as it does.
    own: Option<CalendarChain>,
}

impl Extender {
    /// What it says to a request.
    fn answer(&self, request: &[u8]) -> Vec<u8> {
        let received = ExtendRequest::decode(request).unwrap();
        assert!(received.verify_mac(KEY));
        let [ExtendRequestPayload::Extend(query)] = received.pdu.payloads[..] else {
            panic!("one request to extend: {received:?}");
        };
        let to = query.publication_time.unwrap_or(self.calendar.head());
        let own = self
            .own
            .clone()
            .filter(|chain| chain.publication_time == to);
        let result = ExtendResult {
            request_id: query.request_id,
            status: Status::OK,
            message: None,
            calendar_last: Some(self.calendar.head()),
            calendar: Some(own.unwrap_or_else(|| self.calendar.chain(query.aggregation_time, to))),
        };
        let answer: ExtendResponse = Pdu::new(
            Header::new("extender"),
            ExtendResponsePayload::Result(result),
        );
        answer.encode(KEY, Algorithm::Sha256).unwrap()
    }

    fn publications_file(&self) -> PublicationsFile {
        let publication = self.calendar.publication(self.calendar.head());
        let (file, anchors) = own_publications(publication, MID_2024);
        let publisher = ["email=publications@example.org".parse().unwrap()];
        file.verify(&anchors, &publisher, MID_2024).unwrap();
        file
    }
}

impl Extend for Extender {
    fn extend(&self, from: Second, to: Option<Second>) -> Result<CalendarChain, ExtendError> {
        let query = ExtendQuery {
            request_id: 1,
            aggregation_time: from,
            publication_time: to,
        };
        let request: ExtendRequest =
            Pdu::new(Header::new("anon"), ExtendRequestPayload::Extend(query));
        let answer = self.answer(&request.encode(KEY, Algorithm::Sha256).unwrap());
        let received = ExtendResponse::decode(&answer).unwrap();
        assert!(received.verify_mac(KEY));
        let [ExtendResponsePayload::Result(result)] = &received.pdu.payloads[..] else {
            panic!("one result: {received:?}");
        };
        Ok(result.calendar.clone().unwrap())
    }
}

const KEY: &[u8] = b"anon";
