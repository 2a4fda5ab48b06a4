//! What cargo knows about this workspace.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

/// Where releases run; another machine's own crates are not looked at.
pub(crate) const RELEASE_TARGET: &str = "x86_64-unknown-linux-gnu";
/// Features of `pitser` that releases turn on.
pub(crate) const RELEASE_FEATURES: &str = "cluster,ml-dsa,parquet,pkcs11,s3";
/// Where an auditor's verifier runs, in a browser.
pub(crate) const BROWSER_TARGET: &str = "wasm32-unknown-unknown";

/// Why the tree could not be looked at.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error("{0}: {1}")]
    Read(PathBuf, io::Error),
    #[error("cargo {0}: {1}")]
    Cargo(String, String),
    #[error("{0}: {1}")]
    Syntax(String, String),
}

/// The workspace with every crate of its dependency graph.
#[derive(Debug, Deserialize)]
pub(crate) struct Workspace {
    #[serde(rename = "workspace_root")]
    pub(crate) root: PathBuf,
    packages: Vec<Package>,
}

/// One crate, ours or another's.
#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    /// An SPDX expression.
    pub(crate) license: Option<String>,
    /// The registry; `None` for a path, which means ours.
    pub(crate) source: Option<String>,
    pub(crate) manifest_path: PathBuf,
    pub(crate) dependencies: Vec<Dependency>,
}

/// A dependency as a manifest states it: normal, build and dev alike.
#[derive(Debug, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// Set for a crate of this workspace.
    pub(crate) path: Option<PathBuf>,
}

impl Workspace {
    /// Asks cargo; `Cargo.lock` must be up to date.
    pub(crate) fn load() -> Result<Self, Trouble> {
        let targets = [
            "--filter-platform",
            RELEASE_TARGET,
            "--filter-platform",
            BROWSER_TARGET,
        ];
        // What a feature links must be allowed, too.
        let metadata = ["metadata", "--format-version", "1", "--all-features"];
        let json = cargo(&[&metadata[..], &targets].concat())?;
        serde_json::from_str(&json)
            .map_err(|e| Trouble::Syntax("cargo metadata".into(), e.to_string()))
    }

    pub(crate) fn ours(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|p| p.source.is_none())
    }

    pub(crate) fn foreign(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|p| p.source.is_some())
    }

    /// `path` as seen from the root, for a reader.
    pub(crate) fn shown(&self, path: &Path) -> String {
        let path = path.strip_prefix(&self.root).unwrap_or(path);
        path.display().to_string()
    }
}

impl Package {
    pub(crate) fn folder(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(&self.manifest_path)
    }
}

/// The crates that `package` links on `target`, itself included: `(name, version)`,
/// sorted. Features are those that it asks for alone, without its neighbours, and `features`.
pub(crate) fn linked(
    package: &str,
    features: &str,
    target: &str,
) -> Result<Vec<(String, String)>, Trouble> {
    let text = cargo(&[
        "tree",
        "--package",
        package,
        "--features",
        features,
        "--target",
        target,
        "--edges",
        "normal,no-proc-macro",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ])?;
    let mut crates: Vec<(String, String)> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?.to_owned(), words.next()?.to_owned()))
        })
        .collect();
    crates.sort();
    crates.dedup();
    Ok(crates)
}

pub(crate) fn read(path: &Path) -> Result<String, Trouble> {
    fs::read_to_string(path).map_err(|e| Trouble::Read(path.to_owned(), e))
}

fn cargo(arguments: &[&str]) -> Result<String, Trouble> {
    let trouble = |why: String| Trouble::Cargo(arguments.join(" "), why);
    let output = Command::new(env!("CARGO"))
        .arg("--locked")
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .map_err(|e| trouble(e.to_string()))?;
    if !output.status.success() {
        return Err(trouble(
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ));
    }
    String::from_utf8(output.stdout).map_err(|e| trouble(e.to_string()))
}
