//! Which crate may use which.
//!
//! **Invariant:** a crate uses only crates above it in [`LAYERS`], in its tests too.

use crate::Complaint;
use crate::workspace::{BROWSER_TARGET, RELEASE_TARGET, Trouble, Workspace, linked};

/// A crate of ours and which of ours it may use.
struct Layer {
    name: &'static str,
    uses: Uses,
}

/// What a crate may use among those above it.
#[derive(Clone, Copy)]
enum Uses {
    /// Any of them.
    Above,
    /// These alone, for the reason given.
    Only(&'static [&'static str], &'static str),
}

/// Our crates, from the ground up.
const LAYERS: [Layer; 14] = [
    layer("pitser-ksi", Uses::Only(&[], "formats stand alone")),
    layer("pitser-tlog", Uses::Only(&[], "formats stand alone")),
    layer("pitser-evidence", Uses::Above),
    layer("pitser-disk", Uses::Only(&[], "files alone")),
    layer("pitser-client", Uses::Above),
    layer(
        "pitser-witness",
        Uses::Only(&["pitser-tlog", "pitser-disk"], "it hears of heads alone"),
    ),
    layer("pitser-authority", NO_ROWS),
    layer("pitser-trail", Uses::Above),
    layer("pitser-capture", Uses::Above),
    layer("pitser-monitor", Uses::Above),
    layer("pitser-guardian", Uses::Above),
    layer("pitser-web", Uses::Above),
    layer("pitser", Uses::Above),
    layer("xtask", Uses::Only(&[], "it judges the others")),
];

const NO_ROWS: Uses = Uses::Only(
    &[
        "pitser-ksi",
        "pitser-tlog",
        "pitser-disk",
        "pitser-client",
        "pitser-witness",
    ],
    "it never hears of rows",
);

/// Crates of others that some of ours must not link.
struct Barred {
    ours: &'static [&'static str],
    target: &'static str,
    crates: &'static [&'static str],
    why: &'static str,
}

const BARRED: [Barred; 2] = [
    Barred {
        ours: &["pitser-ksi", "pitser-tlog", "pitser-evidence"],
        target: BROWSER_TARGET,
        crates: &[
            "getrandom",
            "libsqlite3-sys",
            "mio",
            "ring",
            "socket2",
            "tokio",
        ],
        why: "it does no I/O and makes no randomness, and builds for a browser",
    },
    Barred {
        ours: &["pitser-trail"],
        target: RELEASE_TARGET,
        crates: &["axum", "hyper", "mio", "socket2", "tokio"],
        why: "it opens no socket",
    },
];

const fn layer(name: &'static str, uses: Uses) -> Layer {
    Layer { name, uses }
}

pub(crate) fn check(workspace: &Workspace) -> Result<Vec<Complaint>, Trouble> {
    let mut found = Vec::new();
    for package in workspace.ours() {
        let own = package.dependencies.iter().filter(|d| d.path.is_some());
        let uses: Vec<&str> = own.map(|d| d.name.as_str()).collect();
        found.extend(out_of_order(&package.name, &uses));
    }
    for barred in &BARRED {
        for ours in barred.ours {
            for (name, _) in linked(ours, "", barred.target)? {
                if barred.crates.contains(&name.as_str()) {
                    let what = format!("links `{name}` on {}: {}", barred.target, barred.why);
                    found.push(Complaint::new(*ours, what));
                }
            }
        }
    }
    Ok(found)
}

fn out_of_order(name: &str, uses: &[&str]) -> Vec<Complaint> {
    let Some(place) = LAYERS.iter().position(|layer| layer.name == name) else {
        return vec![Complaint::new(name, "has no place in the order of crates")];
    };
    let refused = |used: &&&str| match LAYERS[place].uses {
        Uses::Only(allowed, _) => !allowed.contains(used),
        Uses::Above => !LAYERS[..place].iter().any(|layer| layer.name == **used),
    };
    let why = match LAYERS[place].uses {
        Uses::Only(_, why) => why,
        Uses::Above => "a crate uses only those above it",
    };
    let refused = uses.iter().filter(refused);
    refused
        .map(|used| Complaint::new(name, format!("uses `{used}`: {why}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_may_use_those_above_it() {
        check("pitser-trail", &["pitser-ksi", "pitser-evidence"], 0);
    }

    #[test]
    fn a_crate_below_it_is_refused() {
        check("pitser-trail", &["pitser-ksi", "pitser-guardian"], 1);
    }

    #[test]
    fn the_ground_stands_alone() {
        check("pitser-tlog", &["pitser-ksi"], 1);
    }

    #[test]
    fn the_authority_never_hears_of_rows() {
        check("pitser-authority", &["pitser-client", "pitser-evidence"], 1);
    }

    #[test]
    fn a_new_crate_must_be_given_its_place() {
        check("pitser-surprise", &[], 1);
    }

    #[track_caller]
    fn check(name: &str, uses: &[&str], complaints: usize) {
        let found = out_of_order(name, uses);
        assert_eq!(found.len(), complaints, "{found:?}");
    }
}
