//! Published signatures are read, judged and refused as their makers say.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use pitser_ksi::{
    Imprint, Second, Signature,
    policy::{Context, Policy, Verdict, verify},
    publication::PublicationData,
};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// A row of the pack's CSV files, whose columns `testdata/ksi/README.md` describes.
struct Row {
    file: PathBuf,
    columns: Vec<String>,
}

impl Row {
    fn column(&self, number: usize) -> &str {
        self.columns.get(number - 1).map_or("", String::as_str)
    }

    fn policy(&self) -> &str {
        self.column(2)
    }

    fn code(&self) -> &str {
        self.column(3)
    }

    fn imprint(&self, number: usize) -> Option<Imprint> {
        parse(self.column(number))
    }

    fn second(&self, number: usize) -> Option<Second> {
        parse(self.column(number)).map(Second)
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(&self.file).unwrap()
    }

    fn signature(&self) -> Signature {
        Signature::decode(&self.bytes()).unwrap_or_else(|e| panic!("{}: {e}", self.file.display()))
    }
}

fn parse<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> Option<T> {
    (!text.is_empty()).then(|| text.parse().unwrap())
}

fn testdata(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../testdata/ksi")
        .join(path)
}

/// Every row of every CSV file.
fn pack() -> Vec<Row> {
    let csv_files = [
        "internal-policy-signatures/internal-policy-results.csv",
        "invalid-signatures/invalid-signature-results.csv",
        "policy-verification-signatures/policy-verification-results.csv",
        "valid-signatures/signature-results.csv",
    ];
    let rows = |csv_file: &str| {
        let csv_file = testdata("test_pack").join(csv_file);
        let text = fs::read_to_string(&csv_file).unwrap();
        let lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let row = |line: &str| {
            let columns: Vec<String> = line.split(';').map(|c| c.trim().to_owned()).collect();
            Row {
                file: csv_file.with_file_name(&columns[0]),
                columns,
            }
        };
        lines.map(row).collect::<Vec<_>>()
    };
    csv_files.into_iter().flat_map(rows).collect()
}

/// The rows that are not about decoding: their signatures are well formed.
fn well_formed() -> impl Iterator<Item = Row> {
    pack()
        .into_iter()
        .filter(|row| !matches!(row.policy(), "parsing" | "not-implemented"))
}

fn files_in(folder: &str) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(testdata(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths
}

fn internal(signature: &Signature, document: Option<Imprint>, level: u8) -> Verdict {
    verify(
        signature,
        &Context {
            document,
            level,
            ..Context::new(Policy::Internal)
        },
    )
}

#[test]
fn malformed_signatures_are_refused() {
    let rows: Vec<_> = pack()
        .into_iter()
        .filter(|row| row.policy() == "parsing")
        .collect();
    assert_eq!(rows.len(), 105);
    for row in rows {
        let decoded = Signature::decode(&row.bytes());
        assert!(decoded.is_err(), "{} was accepted", row.file.display());
    }
}

#[test]
fn the_internal_policy_finds_the_expected_code() {
    let rows: Vec<_> = well_formed()
        .filter(|row| row.policy() == "internal")
        .collect();
    assert_eq!(rows.len(), 117);
    for row in rows {
        let verdict = internal(
            &row.signature(),
            row.imprint(6),
            parse(row.column(5)).unwrap_or(0),
        );
        let code = verdict.code().map_or("", |code| code.as_str());
        assert_eq!(code, row.code(), "{}: {verdict:?}", row.file.display());
        assert!(!matches!(verdict, Verdict::Unconfirmed { .. }));
    }
}

/// Signatures that fail, or pass, for reasons outside themselves.
#[test]
fn what_other_policies_judge_is_intact_in_itself() {
    let rows: Vec<_> = well_formed()
        .filter(|row| row.policy() != "internal")
        .collect();
    assert_eq!(rows.len(), 28);
    for row in rows {
        let verdict = internal(&row.signature(), None, 0);
        assert!(verdict.is_intact(), "{}: {verdict:?}", row.file.display());
    }
}

#[test]
fn the_contents_are_those_listed() {
    let mut compared = 0;
    for row in well_formed().filter(|row| row.code().is_empty()) {
        let (signature, file) = (row.signature(), row.file.display());
        let calendar = signature.calendar();
        let mut check = |what: &str, listed: Option<String>, found: Option<String>| {
            if listed.is_some() {
                assert_eq!(found, listed, "{what} of {file}");
                compared += 1;
            }
        };
        let text = |imprint: Option<Imprint>| imprint.map(|imprint| imprint.to_string());
        check("input", text(row.imprint(6)), text(Some(signature.input())));
        check(
            "aggregation",
            text(row.imprint(7)),
            text(Some(signature.aggregation_output())),
        );
        check(
            "calendar root",
            text(row.imprint(8)),
            text(calendar.map(|chain| chain.output())),
        );
        let time = |second: Option<Second>| second.map(|second| second.to_string());
        check(
            "time",
            time(row.second(9)),
            time(Some(signature.aggregation_time())),
        );
        check(
            "published",
            time(row.second(10)),
            time(calendar.map(|c| c.publication_time)),
        );
        let own = calendar.map(|chain| PublicationData {
            time: chain.publication_time,
            imprint: chain.output(),
        });
        // Otherwise the code is that of another publication, to be extended to.
        let own_publication = row.policy() != "userPublication" && row.column(12) != "true";
        if own_publication {
            check(
                "code",
                parse(row.column(11)),
                own.map(|data| data.to_code()),
            );
        }
    }
    assert_eq!(compared, 173, "not all listed values were compared");
}

#[test]
fn publication_codes_lead_back() {
    let codes: BTreeSet<String> = well_formed()
        .filter_map(|row| parse(row.column(11)))
        .collect();
    assert!(codes.len() > 5);
    for code in codes {
        let data = PublicationData::from_code(&code).unwrap();
        assert_eq!(data.to_code(), code);
    }
}

#[test]
fn good_signature_files_are_intact() {
    // Made to test the rules about chain indexes; their metadata is not trustworthy.
    const OTHER_RULES: &str = "chain-index-";
    // Answers of a service rather than signatures; `tests/pdu.rs` reads them.
    const ANSWERS: [&str; 2] = [
        "ok-sig-2016-05-09.1-lvl4.ksig",
        "ok-sig-2016-05-09.2-lvl5.ksig",
    ];
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    let signatures: Vec<_> = files_in("tlv")
        .into_iter()
        .filter(|path| name(path).ends_with(".ksig"))
        .filter(|path| !name(path).starts_with(OTHER_RULES) && !ANSWERS.contains(&&*name(path)))
        .collect();
    assert_eq!(signatures.len(), 19);
    for path in signatures {
        let bytes = fs::read(&path).unwrap();
        let signature = Signature::decode(&bytes).unwrap();
        assert_eq!(signature.encode(), bytes, "{}", path.display());
        let verdict = internal(&signature, None, 0);
        assert!(verdict.is_intact(), "{}: {verdict:?}", path.display());
    }
}

#[test]
fn signatures_are_written_as_they_were_read() {
    for row in well_formed() {
        let (bytes, signature) = (row.bytes(), row.signature());
        assert_eq!(signature.encode(), bytes, "{}", row.file.display());
        assert_eq!(
            Signature::from_result(signature.children(), 0),
            Ok(signature)
        );
    }
}

/// Leaves nothing out that verification looks at.
#[test]
fn signatures_can_be_rebuilt_from_their_parts() {
    for row in well_formed() {
        let signature = row.signature();
        let rebuilt = Signature::new(
            signature.aggregation_chains(),
            signature.calendar(),
            signature.anchor(),
        )
        .unwrap();
        assert_eq!(rebuilt.aggregation_chains(), signature.aggregation_chains());
        assert_eq!(rebuilt.anchor(), signature.anchor());
        let time = |signature: &Signature| signature.calendar().map(|chain| chain.time());
        assert_eq!(time(&rebuilt), time(&signature), "{}", row.file.display());
    }
}
