//! What the sources of a crate may name.
//!
//! The scan reads Rust's tokens, so comments and strings do not count, and it
//! follows `mod` declarations from the crate's root, so that code under
//! `#[cfg(test)]` does not count either. It sees paths, not types: a name that
//! comes in through somebody else's re-export goes unseen.

use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::Complaint;
use crate::workspace::{Package, Trouble, Workspace, read};

/// Paths that some crates must not name.
struct Rule {
    crates: Crates,
    /// `a::b` bars every path in which `a::b` occurs.
    paths: &'static [&'static str],
    why: &'static str,
}

enum Crates {
    These(&'static [&'static str]),
    AllBut(&'static [&'static str]),
}

const RULES: [Rule; 4] = [
    Rule {
        crates: Crates::These(&["pitser-ksi", "pitser-tlog", "pitser-evidence"]),
        paths: &[
            "std::fs",
            "std::net",
            "std::os",
            "std::process",
            "std::thread",
            "Instant",
            "OsRng",
            "getrandom",
            "tokio",
        ],
        why: "this crate does no I/O, reads no clock and makes no randomness",
    },
    Rule {
        crates: Crates::These(&["pitser-trail"]),
        paths: &["std::net", "tokio"],
        why: "this crate opens no socket",
    },
    Rule {
        crates: Crates::AllBut(&["pitser", "xtask"]),
        paths: &["SystemTime", "Timestamp::now", "Zoned::now"],
        why: "only `cli` reads the clock",
    },
    Rule {
        crates: Crates::AllBut(&["pitser", "xtask"]),
        paths: &["std::env"],
        why: "only `cli` reads the environment",
    },
];

pub(crate) fn check(workspace: &Workspace) -> Result<Vec<Complaint>, Trouble> {
    let mut found = Vec::new();
    for package in workspace.ours() {
        let rules: Vec<&Rule> = RULES.iter().filter(|r| r.concerns(package)).collect();
        if rules.is_empty() {
            continue;
        }
        let source = package.folder().join("src");
        let mut waiting = vec![Module::root(&source)];
        while let Some(module) = waiting.pop() {
            let names = names(&read(&module.file)?, &workspace.shown(&module.file))?;
            for path in &names.paths {
                let place = || format!("{}:{}", workspace.shown(&module.file), path.line);
                let broken = rules.iter().filter(|rule| rule.bars(&path.segments));
                found.extend(broken.map(|rule| {
                    let path = path.segments.join("::");
                    Complaint::new(place(), format!("names `{path}`: {}", rule.why))
                }));
            }
            for name in &names.modules {
                waiting.push(module.child(name));
            }
        }
    }
    Ok(found)
}

impl Rule {
    fn concerns(&self, package: &Package) -> bool {
        let name = package.name.as_str();
        match self.crates {
            Crates::These(crates) => crates.contains(&name),
            Crates::AllBut(crates) => !crates.contains(&name),
        }
    }

    fn bars(&self, path: &[String]) -> bool {
        self.paths.iter().any(|barred| {
            let barred: Vec<&str> = barred.split("::").collect();
            path.windows(barred.len()).any(|part| part == barred)
        })
    }
}

/// A source file, and the folder of the files that it declares.
struct Module {
    file: PathBuf,
    children: PathBuf,
}

impl Module {
    fn root(source: &Path) -> Self {
        let library = source.join("lib.rs");
        let file = if library.exists() {
            library
        } else {
            source.join("main.rs")
        };
        Self {
            file,
            children: source.to_owned(),
        }
    }

    fn child(&self, name: &str) -> Self {
        let children = self.children.join(name);
        let beside = children.with_extension("rs");
        let file = if beside.exists() {
            beside
        } else {
            children.join("mod.rs")
        };
        Self { file, children }
    }
}

/// What one file names outside its tests.
#[derive(Default)]
struct Names {
    paths: Vec<Named>,
    /// The modules that it declares and that live in files of their own.
    modules: Vec<String>,
}

struct Named {
    /// `use a::{b, c::d}` is `a::b` and `a::c::d`.
    segments: Vec<String>,
    line: usize,
}

fn names(source: &str, file: &str) -> Result<Names, Trouble> {
    let tokens: TokenStream = source
        .parse()
        .map_err(|e: proc_macro2::LexError| Trouble::Syntax(file.to_owned(), e.to_string()))?;
    let mut names = Names::default();
    names.read(tokens, &[]);
    Ok(names)
}

impl Names {
    /// Reads a stream of items, of expressions or of a `use` group after `prefix`.
    fn read(&mut self, stream: TokenStream, prefix: &[String]) {
        let tokens: Vec<TokenTree> = stream.into_iter().collect();
        let mut at = 0;
        // Only the first path after `{` or `,` continues the prefix; `as` renames do not.
        let mut continues = true;
        while at < tokens.len() {
            if is_test_attribute(&tokens[at..]) {
                at = after_item(&tokens, at);
                continue;
            }
            match &tokens[at] {
                TokenTree::Ident(word) if word == "mod" => self.declare(&tokens[at..]),
                TokenTree::Ident(_) => {
                    let start = if continues { prefix } else { &[] };
                    continues = false;
                    at = self.path(&tokens, at, start);
                    continue;
                }
                TokenTree::Punct(mark) if mark.as_char() == ',' => continues = true,
                TokenTree::Group(group) => self.read(group.stream(), &[]),
                _ => {}
            }
            at += 1;
        }
    }

    /// Takes the path that starts at `at`; returns where it ends.
    fn path(&mut self, tokens: &[TokenTree], at: usize, prefix: &[String]) -> usize {
        let line = tokens[at].span().start().line;
        let mut segments = prefix.to_vec();
        segments.push(tokens[at].to_string());
        let mut end = at + 1;
        while is_mark(tokens.get(end), ':') && is_mark(tokens.get(end + 1), ':') {
            match tokens.get(end + 2) {
                Some(TokenTree::Ident(word)) => segments.push(word.to_string()),
                Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                    self.read(group.stream(), &segments);
                    return end + 3;
                }
                _ => break,
            }
            end += 3;
        }
        self.paths.push(Named { segments, line });
        end
    }

    /// Notes `mod name;`, whose source is in another file.
    fn declare(&mut self, tokens: &[TokenTree]) {
        if let [_, TokenTree::Ident(name), end, ..] = tokens
            && is_mark(Some(end), ';')
        {
            self.modules.push(name.to_string());
        }
    }
}

/// Whether an attribute starts here that keeps its item out of a normal build:
/// `#[cfg(test)]` or `#[cfg(all(test, …))]`.
fn is_test_attribute(tokens: &[TokenTree]) -> bool {
    let [mark, TokenTree::Group(attribute), ..] = tokens else {
        return false;
    };
    if !is_mark(Some(mark), '#') {
        return false;
    }
    let text: String = attribute.stream().to_string().split_whitespace().collect();
    text == "cfg(test)" || text.starts_with("cfg(all(test,")
}

/// Where the item that starts at `at` ends: after its `;` or its braces.
fn after_item(tokens: &[TokenTree], at: usize) -> usize {
    let ends = |token: &TokenTree| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        _ => is_mark(Some(token), ';'),
    };
    let length = tokens[at..].iter().position(ends);
    length.map_or(tokens.len(), |length| at + length + 1)
}

fn is_mark(token: Option<&TokenTree>, mark: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_path_is_seen() {
        check("fn f() { std::fs::read(x); }", &["std::fs"]);
    }

    #[test]
    fn a_group_is_taken_apart() {
        check("use std::{fmt, io::{self, Read}, fs as f};", &["std::fs"]);
    }

    #[test]
    fn a_macro_hides_nothing() {
        check("m!(SystemTime::now());", &["SystemTime"]);
    }

    #[test]
    fn comments_and_strings_do_not_count() {
        check("/* std::fs */ const A: &str = \"std::fs\"; // tokio", &[]);
    }

    #[test]
    fn tests_do_not_count() {
        check("#[cfg(test)] mod t { use std::fs; } fn f() {}", &[]);
        check("#[cfg(test)] #[allow(x)] fn f() -> [u8; 2] { tokio }", &[]);
        check("#[cfg(test)] use std::fs; use tokio::x;", &["tokio"]);
    }

    #[test]
    fn code_for_other_builds_counts() {
        check("#[cfg(not(test))] use std::fs;", &["std::fs"]);
    }

    #[test]
    fn a_longer_name_is_another_name() {
        check("use std::fsync; fn tokio_free(my_tokio: u8) {}", &[]);
    }

    #[test]
    fn declared_files_are_followed_and_test_files_are_not() {
        let source = "mod a; pub(crate) mod b; mod c { } #[cfg(test)] mod tests;";
        let found = names(source, "a test").expect("it is Rust");
        assert_eq!(found.modules, ["a", "b"]);
    }

    #[test]
    fn a_line_is_told() {
        let found = names("\n\nuse tokio;", "a test").expect("it is Rust");
        let tokio = found.paths.iter().find(|path| path.segments == ["tokio"]);
        assert_eq!(tokio.map(|path| path.line), Some(3));
    }

    #[track_caller]
    fn check(source: &str, barred: &[&str]) {
        let rule = Rule {
            crates: Crates::AllBut(&[]),
            paths: &["std::fs", "SystemTime", "tokio"],
            why: "a test",
        };
        let found = names(source, "a test").expect("it is Rust");
        let found: Vec<String> = found
            .paths
            .iter()
            .filter(|path| rule.bars(&path.segments))
            .map(|path| path.segments.join("::"))
            .collect();
        assert_eq!(found.len(), barred.len(), "{found:?}");
        for (found, barred) in found.iter().zip(barred) {
            assert!(found.contains(barred), "{found} for {barred}");
        }
    }
}
