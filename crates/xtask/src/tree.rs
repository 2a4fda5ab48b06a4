//! Checks of the files themselves: manifests, paths, words, links, origins.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Complaint;
use crate::workspace::{Trouble, Workspace, read};

/// Folders at the top that hold nothing of ours: git's, and what `.gitignore` names.
const NOT_OURS: [&str; 3] = [".git", "target", "pitser-demo"];

/// The file by which a tool says that a folder can be made again, as cargo does.
const CACHE_MARK: &str = "CACHEDIR.TAG";

/// Where build machines keep things; a path below one of these works nowhere else.
const MACHINE_FOLDERS: [&str; 5] = ["root", "home", "Users", "work", "builds"];

/// Other people's files, kept byte for byte whatever they say.
const UNCHANGED: &str = "testdata";

/// Every crate of ours takes the workspace's lints, or it escapes them all.
pub(crate) fn manifests(workspace: &Workspace) -> Result<Vec<Complaint>, Trouble> {
    let mut found = Vec::new();
    for package in workspace.ours() {
        let manifest = read(&package.manifest_path)?;
        let mut complain = |what| {
            found.push(Complaint::new(
                workspace.shown(&package.manifest_path),
                what,
            ))
        };
        if !manifest.contains("[lints]\nworkspace = true\n") {
            complain("does not take the workspace's lints");
        }
        if !manifest.contains("publish") {
            complain("does not say whether it is published");
        }
    }
    Ok(found)
}

/// Every folder of test data says where it is from and under which licence.
pub(crate) fn origins(workspace: &Workspace) -> Result<Vec<Complaint>, Trouble> {
    let mut found = Vec::new();
    for folder in entries(&workspace.root.join(UNCHANGED))? {
        if !folder.is_dir() {
            continue;
        }
        let readme = read(&folder.join("README.md")).unwrap_or_default();
        let readme = readme.to_lowercase();
        let mut complain = |what| found.push(Complaint::new(workspace.shown(&folder), what));
        if !["origin", "made by"].iter().any(|w| readme.contains(w)) {
            complain("its README.md does not say where it is from");
        }
        if !["licence", "apache-2.0"].iter().any(|w| readme.contains(w)) {
            complain("its README.md tells no licence");
        }
    }
    Ok(found)
}

/// No file names a build machine's folder, nor one of `words` in any case.
pub(crate) fn words(workspace: &Workspace, words: &[String]) -> Result<Vec<Complaint>, Trouble> {
    let words: Vec<String> = words.iter().map(|word| word.to_lowercase()).collect();
    let mut found = Vec::new();
    for file in files(workspace)? {
        let bytes = fs::read(&file).map_err(|e| Trouble::Read(file.clone(), e))?;
        let shown = workspace.shown(&file);
        for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let line = String::from_utf8_lossy(line);
            let mut complain =
                |what| found.push(Complaint::new(format!("{shown}:{}", index + 1), what));
            if let Some(folder) = machine_folder(&line)
                && !shown.starts_with(UNCHANGED)
            {
                complain(format!("names a path below /{folder}"));
            }
            let line = line.to_lowercase();
            for word in words.iter().filter(|word| line.contains(word.as_str())) {
                complain(format!("has the word `{word}`"));
            }
        }
    }
    Ok(found)
}

/// Every relative link in a Markdown file leads somewhere.
pub(crate) fn links(workspace: &Workspace) -> Result<Vec<Complaint>, Trouble> {
    let mut found = Vec::new();
    let files = files(workspace)?;
    let pages = files
        .iter()
        .filter(|file| file.extension().is_some_and(|end| end == "md"));
    for page in pages {
        let text = read(page)?;
        for target in relative_links(&text) {
            let folder = page.parent().unwrap_or(page);
            if !folder.join(target).exists() {
                let what = format!("links to {target}, which is not there");
                found.push(Complaint::new(workspace.shown(page), what));
            }
        }
    }
    Ok(found)
}

/// The folder of [`MACHINE_FOLDERS`] below which `line` names a path.
fn machine_folder(line: &str) -> Option<&'static str> {
    MACHINE_FOLDERS.into_iter().find(|folder| {
        let folder = format!("/{folder}/");
        line.match_indices(&folder).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            !before.is_some_and(|c| c.is_alphanumeric() || "._-/}>)*".contains(c))
        })
    })
}

/// The targets of `[…](target)`, without addresses, anchors and code blocks.
fn relative_links(text: &str) -> Vec<&str> {
    let mut code = false;
    let mut targets = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            code = !code;
        }
        if code {
            continue;
        }
        for rest in line.split("](").skip(1) {
            let target = rest.split([')', '#', ' ']).next().unwrap_or_default();
            if !target.is_empty() && !target.contains(':') {
                targets.push(target);
            }
        }
    }
    targets
}

/// Every file of the tree, sorted.
fn files(workspace: &Workspace) -> Result<Vec<PathBuf>, Trouble> {
    let mut files = Vec::new();
    let mut waiting = entries(&workspace.root)?;
    waiting.retain(|path| !NOT_OURS.iter().any(|name| path.ends_with(name)));
    while let Some(path) = waiting.pop() {
        if path.is_symlink() {
            continue;
        }
        if !path.is_dir() {
            files.push(path);
        } else if !path.join(CACHE_MARK).exists() {
            waiting.extend(entries(&path)?);
        }
    }
    files.sort();
    Ok(files)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, Trouble> {
    let trouble = |e| Trouble::Read(folder.to_owned(), e);
    fs::read_dir(folder)
        .map_err(trouble)?
        .map(|entry| entry.map(|entry| entry.path()).map_err(trouble))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machines_path_is_noticed() {
        for before in ["", "see ", "\"", "=", "`", "file://"] {
            check_path(&format!("{before}/{}/pitser", "home"), before != "file://");
        }
    }

    #[test]
    fn a_page_of_a_site_is_no_machines_path() {
        for before in ["https://example.org", "..", "crates"] {
            check_path(&format!("{before}/{}/pitser", "work"), false);
        }
    }

    #[test]
    fn links_are_found() {
        let text = "[a](b/c.md) [d](https://e) [f](#g) [h](i.md#j)\n```\n[k](l)\n```\n[m](n)";
        assert_eq!(relative_links(text), ["b/c.md", "i.md", "n"]);
    }

    #[track_caller]
    fn check_path(line: &str, noticed: bool) {
        assert_eq!(machine_folder(line).is_some(), noticed, "{line}");
    }
}
