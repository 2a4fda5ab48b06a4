//! `pitser inspect`: what a file says. Nothing is judged.

mod ksi;
mod logsig;
mod trail;

use std::path::PathBuf;

use crate::files;
use crate::kind::{self, Kind};
use crate::outcome::{Exit, Failure, Outcome};
use crate::output::Form;
use crate::tree::Map;

pub(super) use trail::line;

/// The command's arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Any file of ours; - for the standard input
    file: PathBuf,
    #[command(flatten)]
    form: Form,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Outcome {
    let bytes = files::read(&args.file)?;
    let name = args.file.display();
    let Some(kind) = Kind::of(&bytes) else {
        return Err(Failure::Input(format!(
            "{name}: not a file we know; those are {}",
            kind::KNOWN
        )));
    };
    let facts = describe(kind, &bytes)
        .map_err(|why| Failure::Input(format!("{name}: recognised as {kind}, but: {why}")))?;
    args.form.show(&facts)?;
    Ok(Exit::Intact)
}

/// What `bytes` say, or why they are not what they seem to be, with the place.
fn describe(kind: Kind, bytes: &[u8]) -> Result<Map, String> {
    let head = Map::new().with("kind", kind.to_string());
    match kind {
        Kind::Signature => ksi::signature(head, bytes),
        Kind::PublicationsFile => ksi::publications(head, bytes),
        Kind::PublicationCode => ksi::publication_code(head, bytes),
        Kind::Message(tag) => ksi::message(head, tag, bytes),
        Kind::Certificate => ksi::certificates(head, bytes),
        Kind::Log(format) => logsig::describe(head, format, bytes),
        Kind::Evidence => trail::evidence(head, bytes),
        Kind::TrailLines => trail::lines(head, bytes),
        Kind::Anchors => trail::anchors(head, bytes),
        Kind::Note => trail::note(head, bytes),
    }
}

/// The text of any error.
fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Bytes that were recognised as text.
fn utf8(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|e| format!("not UTF-8 text at byte {}", e.valid_up_to()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Every published vector is described, or refused with a reason; none panics.
    #[test]
    fn all_vectors() {
        let mut described = 0;
        for area in ["ksi", "logsig", "tlog", "balp"] {
            let root = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../../testdata")
                .join(area);
            described += visit(&root);
        }
        assert!(described > 150, "{described}");
    }

    fn visit(path: &Path) -> usize {
        if path.is_dir() {
            let entries = std::fs::read_dir(path).unwrap();
            return entries.map(|entry| visit(&entry.unwrap().path())).sum();
        }
        let bytes = std::fs::read(path).unwrap();
        let described = Kind::of(&bytes).map(|kind| describe(kind, &bytes));
        // Whatever it holds, it must also print.
        match described {
            Some(Ok(facts)) => {
                assert!(!facts.to_string().is_empty(), "{}", path.display());
                1
            }
            _ => 0,
        }
    }

    #[test]
    fn every_cut_of_a_file_is_survived() {
        for name in [
            "ksi/tlv/ok-sig-2014-04-30.1.ksig",
            "ksi/pdu/extend_response.tlv",
            "tlog/note-peterneumann.note",
        ] {
            let bytes = std::fs::read(
                Path::new(env!("CARGO_MANIFEST_DIR"))
                    .join("../../testdata")
                    .join(name),
            )
            .unwrap();
            for length in 0..bytes.len() {
                let cut = &bytes[..length];
                let described = Kind::of(cut).map(|kind| describe(kind, cut));
                assert!(
                    !matches!(described, Some(Ok(_))) || name.contains("note"),
                    "{name}, {length} bytes"
                );
            }
        }
    }
}
