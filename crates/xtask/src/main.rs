//! `cargo x`: checks of this tree that no compiler makes.
//!
//! In scope: which crate may use which ([`layers`]), what the sources may name
//! ([`sources`]), dependencies' licences and versions ([`dependencies`]), stray
//! words and paths ([`tree`]). Each is a test as well: `cargo test` runs them all.
//! Elsewhere: formatting, lints, tests and documentation, which `.ci/run` calls.

mod dependencies;
mod layers;
mod sources;
mod tree;
mod workspace;

use std::env;
use std::fmt;
use std::process::ExitCode;

use crate::workspace::{Trouble, Workspace};

const USAGE: &str = "\
usage: cargo x arch              crates use only what is below them; pure crates stay pure
       cargo x licences          licences, versions and sources of dependencies, by deny.toml
       cargo x words [WORD]...   no build machine's path, and none of these words, in any file
       cargo x all               the three above, without words of your own";

/// One thing that is wrong, and where.
#[derive(Debug, PartialEq, Eq)]
struct Complaint {
    /// A path from the root, with a line where there is one, or a crate's name.
    place: String,
    what: String,
}

impl Complaint {
    fn new(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            place: place.into(),
            what: what.into(),
        }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words = arguments.get(1..).unwrap_or_default();
    let found = match arguments.first().map(String::as_str) {
        Some("arch") if words.is_empty() => architecture(),
        Some("licences") if words.is_empty() => licences(),
        Some("words") => stray_words(words),
        Some("all") if words.is_empty() => everything(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(3);
        }
    };
    match found {
        Ok(complaints) if complaints.is_empty() => ExitCode::SUCCESS,
        Ok(complaints) => {
            for complaint in complaints {
                println!("{complaint}");
            }
            ExitCode::FAILURE
        }
        Err(trouble) => {
            eprintln!("cargo x: {trouble}");
            ExitCode::from(4)
        }
    }
}

fn everything() -> Result<Vec<Complaint>, Trouble> {
    let mut found = architecture()?;
    found.extend(licences()?);
    found.extend(stray_words(&[])?);
    Ok(found)
}

fn architecture() -> Result<Vec<Complaint>, Trouble> {
    let workspace = Workspace::load()?;
    let mut found = layers::check(&workspace)?;
    found.extend(sources::check(&workspace)?);
    found.extend(tree::manifests(&workspace)?);
    Ok(found)
}

fn licences() -> Result<Vec<Complaint>, Trouble> {
    let workspace = Workspace::load()?;
    let mut found = dependencies::check(&workspace)?;
    found.extend(tree::origins(&workspace)?);
    Ok(found)
}

fn stray_words(words: &[String]) -> Result<Vec<Complaint>, Trouble> {
    let workspace = Workspace::load()?;
    let mut found = tree::words(&workspace, words)?;
    found.extend(tree::links(&workspace)?);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_use_only_what_is_below_them() {
        nothing_is_wrong(architecture());
    }

    #[test]
    fn dependencies_are_free_and_single() {
        nothing_is_wrong(licences());
    }

    #[test]
    fn no_file_names_a_build_machine() {
        nothing_is_wrong(stray_words(&[]));
    }

    fn nothing_is_wrong(found: Result<Vec<Complaint>, Trouble>) {
        let found = found.expect("cargo and the tree can be read");
        let lines: Vec<String> = found.iter().map(Complaint::to_string).collect();
        assert!(found.is_empty(), "\n{}", lines.join("\n"));
    }
}
