//! Judging a publications file.

use pitser_ksi::publications_file::PublicationsFile;

use super::{Args, unsound};
use crate::outcome::Outcome;
use crate::output::{Judgement, State, Step, Verdict, plural};
use crate::tree::Map;

/// Judges the publications file in `bytes`.
pub(super) fn run(bytes: &[u8], args: &Args) -> Outcome {
    let name = args.file.display();
    let file = PublicationsFile::decode(bytes)
        .map_err(|e| unsound(&args.file, "publications file", e, bytes.len()))?;
    let contents = format!(
        "{} and {}, made {}",
        plural(file.publications().len(), "publication"),
        plural(file.certificates().len(), "certificate"),
        file.created_at()
    );
    let newest = file.latest().map(|record| record.data.time);
    let (verdict, code, signer, summary) = match args.trust.publications.judge(&file)? {
        Ok(()) => {
            let newest = newest.map_or("no publication yet".into(), |at| format!("up to {at}"));
            let signer = (
                State::Matches,
                "signed by whom you trust, as your constraint demands".into(),
            );
            (Verdict::Intact, None, signer, newest)
        }
        Err(doubt) if doubt.shows_tampering() => {
            let signer = (State::Broken, format!("{FORGED} {doubt}"));
            (
                Verdict::Broken,
                Some(FORGED),
                signer,
                "it is not what its signer signed".into(),
            )
        }
        Err(doubt) => {
            let signer = (State::Waiting, doubt.to_string());
            (
                Verdict::Unconfirmed,
                Some("GEN-02"),
                signer,
                "whose it is cannot be confirmed".into(),
            )
        }
    };
    let judgement = Judgement {
        verdict,
        code: code.map(str::to_owned),
        summary,
        steps: vec![
            Step::new("contents", State::Matches, contents),
            Step::new("signer", signer.0, signer.1),
        ],
        details: Map::new()
            .with("file", name.to_string())
            .with("kind", "publications file")
            .with("created_at", file.created_at())
            .maybe("newest_publication", newest),
        remarks: String::new(),
    };
    judgement.show(args.form)
}

/// The publications file's own signature does not fit. No KSI-compatible rule
/// has a code for it, because there a file like this is merely not used.
const FORGED: &str = "PKI-01";
