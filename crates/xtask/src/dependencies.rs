//! Licences, sources and versions of other people's crates.
//!
//! `deny.toml` is the one list of what is allowed, shared with cargo-deny; this
//! check needs neither that tool nor a network. It leaves out advisories.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::Complaint;
use crate::workspace::{RELEASE_FEATURES, RELEASE_TARGET, Trouble, Workspace, linked, read};

/// The parts of `deny.toml` that are checked here too.
#[derive(Debug, Deserialize)]
struct Policy {
    licenses: Licences,
    sources: Sources,
    bans: Bans,
}

#[derive(Debug, Deserialize)]
struct Licences {
    allow: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Bans {
    deny: Vec<Ban>,
    /// Versions that may be linked beside another one: `name@version`.
    skip: Vec<Ban>,
}

#[derive(Debug, Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

pub(crate) fn check(workspace: &Workspace) -> Result<Vec<Complaint>, Trouble> {
    let text = read(&workspace.root.join("deny.toml"))?;
    let policy: Policy =
        toml::from_str(&text).map_err(|e| Trouble::Syntax("deny.toml".into(), e.to_string()))?;
    let mut found = Vec::new();
    for package in workspace.foreign() {
        let place = format!("{} {}", package.name, package.version);
        let mut complain = |what: String| found.push(Complaint::new(&place, what));
        match package.license.as_deref().map(|l| allowed(l, &policy)) {
            None => complain("states no licence".into()),
            Some(Err(why)) => complain(why),
            Some(Ok(())) => {}
        }
        let source = package.source.as_deref().unwrap_or_default();
        let known = |url: &String| source.strip_prefix("registry+") == Some(url.as_str());
        if !policy.sources.allow_registry.iter().any(known) {
            complain(format!("comes from {source}"));
        }
        if let Some(ban) = policy.bans.deny.iter().find(|b| b.name == package.name) {
            complain(format!("is barred: {}", ban.reason));
        }
    }
    found.extend(twice_in_the_binary(&policy.bans.skip)?);
    Ok(found)
}

/// The binary links one version of each crate. Build scripts, macros and tests
/// may use another: that costs build time alone.
fn twice_in_the_binary(skip: &[Ban]) -> Result<Vec<Complaint>, Trouble> {
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, version) in linked("pitser", RELEASE_FEATURES, RELEASE_TARGET)? {
        let skipped = format!("{name}@{}", version.trim_start_matches('v'));
        if skip.iter().all(|skip| skip.name != skipped) {
            versions.entry(name).or_default().push(version);
        }
    }
    versions.retain(|_, versions| versions.len() > 1);
    let complaints = versions.into_iter().map(|(name, versions)| {
        let versions = versions.join(" and ");
        Complaint::new(name, format!("is linked twice into `pitser`: {versions}"))
    });
    Ok(complaints.collect())
}

fn allowed(expression: &str, policy: &Policy) -> Result<(), String> {
    match Spdx::satisfied(expression, &policy.licenses.allow) {
        Some(true) => Ok(()),
        Some(false) => Err(format!("is under {expression}, which is not allowed")),
        None => Err(format!(
            "states a licence that cannot be read: {expression}"
        )),
    }
}

/// An SPDX licence expression, judged while it is read:
///
/// ```text
/// any  = all { ("OR" | "/") all }        "/" is crates.io's older spelling
/// all  = one { "AND" one }
/// one  = "(" any ")" | name [ "WITH" exception ]
/// ```
struct Spdx<'a> {
    words: std::iter::Peekable<std::vec::IntoIter<String>>,
    allow: &'a [String],
}

impl<'a> Spdx<'a> {
    /// Whether the licences in `allow` suffice; `None` if this is no expression.
    fn satisfied(expression: &str, allow: &'a [String]) -> Option<bool> {
        let spaced = expression
            .replace('(', " ( ")
            .replace(')', " ) ")
            .replace('/', " OR ");
        let words: Vec<String> = spaced.split_whitespace().map(str::to_owned).collect();
        let mut this = Self {
            words: words.into_iter().peekable(),
            allow,
        };
        let satisfied = this.any(MAX_DEPTH)?;
        this.words.next().is_none().then_some(satisfied)
    }

    fn any(&mut self, depth: usize) -> Option<bool> {
        let mut satisfied = self.all(depth)?;
        while self.takes("OR") {
            satisfied |= self.all(depth)?;
        }
        Some(satisfied)
    }

    fn all(&mut self, depth: usize) -> Option<bool> {
        let mut satisfied = self.one(depth)?;
        while self.takes("AND") {
            satisfied &= self.one(depth)?;
        }
        Some(satisfied)
    }

    fn one(&mut self, depth: usize) -> Option<bool> {
        if self.takes("(") {
            let satisfied = self.any(depth.checked_sub(1)?)?;
            return self.takes(")").then_some(satisfied);
        }
        let mut name = self.name()?;
        if self.takes("WITH") {
            name = format!("{name} WITH {}", self.name()?);
        }
        Some(self.allow.contains(&name))
    }

    fn name(&mut self) -> Option<String> {
        self.words
            .next()
            .filter(|word| !["(", ")", "AND", "OR", "WITH"].contains(&word.as_str()))
    }

    fn takes(&mut self, word: &str) -> bool {
        self.words.next_if(|next| next == word).is_some()
    }
}

/// Of brackets; far more than any real expression has.
const MAX_DEPTH: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_allowed_licence_suffices() {
        check("MIT", Some(true));
        check("MIT OR GPL-3.0", Some(true));
        check("GPL-3.0/MIT", Some(true));
        check("Unlicense OR MIT", Some(true));
    }

    #[test]
    fn each_of_several_is_needed() {
        check("MIT AND GPL-3.0", Some(false));
        check("(MIT OR GPL-3.0) AND Zlib", Some(true));
        check("MIT OR GPL-3.0 AND GPL-2.0", Some(true));
        check("GPL-3.0 OR MIT AND GPL-2.0", Some(false));
    }

    #[test]
    fn an_exception_makes_another_licence() {
        check("Apache-2.0 WITH LLVM-exception", Some(false));
        check("Apache-2.0 WITH LLVM-exception OR Zlib", Some(true));
    }

    #[test]
    fn nonsense_is_refused() {
        for nonsense in ["", "MIT OR", "(MIT", "MIT)", "MIT Zlib", "AND", "MIT WITH"] {
            check(nonsense, None);
        }
        check(&"(".repeat(10_000), None);
    }

    #[track_caller]
    fn check(expression: &str, expected: Option<bool>) {
        let allow = ["MIT".to_owned(), "Zlib".to_owned()];
        assert_eq!(Spdx::satisfied(expression, &allow), expected);
    }
}
