//! The list of trails: for programs as JSON, for people as a page.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use data_encoding::HEXLOWER;
use pitser_ksi::hash::Imprint;
use pitser_ksi::time::Second;
use serde_json::{Value, json};

use super::Fleet;
use super::ledger::{Contradiction, Trail};
use crate::publicity::escaped;

/// What metrics say of the fleet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) registered: usize,
    pub(crate) silent: usize,
    /// Trails with two heads that contradict each other, by length or by root.
    pub(crate) forked: usize,
    /// Other trails that were brought for a registered origin.
    pub(crate) refused: usize,
}

impl Fleet {
    pub(crate) fn counts(&self, now: Second) -> Counts {
        let inner = self.inner();
        let mut counts = Counts::default();
        for (_, trail) in inner.ledger.trails() {
            counts.registered += 1;
            counts.silent += usize::from(self.is_silent(trail, now));
            counts.forked += usize::from(trail.forked.is_some() || trail.shrunk.is_some());
            counts.refused += trail.refused.len();
        }
        counts
    }

    fn is_silent(&self, trail: &Trail, now: Second) -> bool {
        now.since(trail.heard_at()) > self.config.silent_s
    }

    /// Every trail by its name. Operators also see logins and how long ago it was heard
    /// of; everything else anybody may see.
    pub(super) fn list(&self, now: Second, is_operator: bool) -> Value {
        let counts = self.counts(now);
        let inner = self.inner();
        let mut databases: BTreeMap<&[u8], Vec<&str>> = BTreeMap::new();
        for (origin, trail) in inner.ledger.trails() {
            let system = trail.registration.system.as_bytes();
            databases.entry(system).or_default().push(origin);
        }
        let trails = inner.ledger.trails().map(|(origin, trail)| {
            let mut facts = self.facts(origin, trail);
            let same = &databases[trail.registration.system.as_bytes()];
            let same = same.iter().filter(|other| **other != origin);
            facts["same_database_as"] = same.copied().collect();
            if is_operator {
                facts["user"] = trail.user.as_str().into();
                facts["seen_at"] = trail.seen_at.map(|at| at.to_string()).into();
                facts["seen_age_s"] = now.since(trail.heard_at()).into();
                facts["silent"] = self.is_silent(trail, now).into();
            }
            facts
        });
        let trails: Vec<Value> = trails.collect();
        let mut list = json!({
            "log": {
                "key": self.key().to_string(),
                "size": inner.checkpoint.as_ref().map_or(0, |signed| signed.size),
                "witnessed": inner.witnessed.as_ref().map_or(0, |signed| signed.size),
            },
            "registered": counts.registered,
            "forked": counts.forked,
            "refused": counts.refused,
            "trails": trails,
        });
        if is_operator {
            list["now"] = now.to_string().into();
            list["silent"] = counts.silent.into();
            list["silent_s"] = self.config.silent_s.into();
            list["log"]["troubles"] = inner.troubles.clone().into();
            list["log"]["away"] = inner.away.clone().into();
        }
        list
    }

    fn facts(&self, origin: &str, trail: &Trail) -> Value {
        let hex = |imprint: &Imprint| HEXLOWER.encode(imprint.as_bytes());
        let contradiction = |found: &Option<Contradiction>| {
            let found = found.as_ref()?;
            let at = found.at.to_string();
            Some(json!({ "at": at, "held": found.held, "other": found.other }))
        };
        let refused = trail.refused.iter().map(|other| {
            let at = other.at.to_string();
            json!({ "genesis": other.genesis, "at": at, "entry": other.entry })
        });
        json!({
            "origin": origin,
            "key": trail.registration.key.to_string(),
            "genesis": hex(&trail.registration.genesis),
            "system": hex(&trail.registration.system),
            "begun_at": trail.registration.begun_at.to_string(),
            "registered_at": trail.registered_at.to_string(),
            "entry": trail.entry,
            "size": trail.head.as_ref().map_or(0, |head| head.size),
            "witnessed": trail.witnessed.as_ref().map_or(0, |seen| seen.size),
            "witnessed_by": trail.witnessed.as_ref().map_or(0, |seen| seen.by),
            "witnesses": self.witnesses.len(),
            "refused": refused.collect::<Vec<_>>(),
            "forked": contradiction(&trail.forked),
            "shrunk": contradiction(&trail.shrunk),
        })
    }
}

/// The list as a page.
pub(super) fn page(list: &Value) -> String {
    let text = |value: &Value| escaped(value.as_str().unwrap_or("never"));
    let is_operator = list["now"].is_string();
    let mut out = String::from(HEAD);
    let _ = write!(
        out,
        "<p>{} registered, {} forked or shrunk, {} refused as another trail of a name that is taken",
        list["registered"], list["forked"], list["refused"]
    );
    if is_operator {
        let silent_s = &list["silent_s"];
        let _ = write!(
            out,
            ", {} silent for more than {silent_s} s",
            list["silent"]
        );
    }
    out += ".</p><table><thead><tr><th>Trail<th>Blocks<th>Witnessed<th>Begun<th>Entry<th>Genesis";
    out += match is_operator {
        true => "<th>User<th>Last seen<th>Trouble</thead>\n",
        false => "<th>Trouble</thead>\n",
    };
    for trail in list["trails"].as_array().into_iter().flatten() {
        let trouble = troubles(trail);
        let class = if trouble.is_empty() { "" } else { " class=bad" };
        let _ = write!(
            out,
            "<tr{class}><td>{}<td>{}<td>{} by {} of {}<td>{}<td>{}<td><code>{}</code>",
            text(&trail["origin"]),
            trail["size"],
            trail["witnessed"],
            trail["witnessed_by"],
            trail["witnesses"],
            text(&trail["begun_at"]),
            trail["entry"],
            text(&trail["genesis"]),
        );
        if is_operator {
            let _ = write!(
                out,
                "<td>{}<td>{}",
                text(&trail["user"]),
                text(&trail["seen_at"])
            );
        }
        let _ = writeln!(out, "<td>{}", escaped(&trouble.join("; ")));
    }
    let log = &list["log"];
    let _ = writeln!(
        out,
        "</table><p>Every registration, also a refused one, is an entry of a public log: \
         <code>{}</code>, {} entries, {} of them witnessed. <a href=\"/fleet/log/checkpoint\">Checkpoint</a>, \
         <a href=\"/fleet.json\">the same as JSON</a>.</p></main></html>",
        text(&log["key"]),
        log["size"],
        log["witnessed"],
    );
    out
}

/// What is wrong with a trail in the list, in words.
fn troubles(trail: &Value) -> Vec<String> {
    let mut troubles = Vec::new();
    let at = |found: &Value| found["at"].as_str().unwrap_or_default().to_owned();
    if trail["forked"].is_object() {
        let at = at(&trail["forked"]);
        troubles.push(format!("FORKED: two trails of one length, {at}"));
    }
    if trail["shrunk"].is_object() {
        let at = at(&trail["shrunk"]);
        troubles.push(format!("SHRUNK: it was longer before {at}"));
    }
    for other in trail["refused"].as_array().into_iter().flatten() {
        let genesis = other["genesis"].as_str().unwrap_or_default();
        troubles.push(format!(
            "ANOTHER TRAIL of this name was begun, {}, entry {}, genesis {genesis}",
            at(other),
            other["entry"]
        ));
    }
    for other in trail["same_database_as"].as_array().into_iter().flatten() {
        let other = other.as_str().unwrap_or_default();
        troubles.push(format!("{other} guards the same database"));
    }
    if trail["silent"] == true {
        troubles.push(format!("silent for {} s", trail["seen_age_s"]));
    }
    troubles
}

const HEAD: &str = "<!doctype html><html lang=en><meta charset=utf-8>\
<meta name=viewport content=\"width=device-width\"><title>Fleet</title><style>\
body{font:15px/1.4 system-ui,sans-serif;margin:2rem}main{max-width:90rem;margin:auto}\
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #ccc;\
vertical-align:top}code{font-size:12px;word-break:break-all}.bad td{background:#fdecea}\
@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}.bad td{background:#411}a{color:#9cf}}\
</style><main><h1>Fleet</h1>\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_others_are_only_text_on_the_page() {
        let trail = json!({
            "origin": "<script>alert(1)</script>/'&\"", "size": 7, "witnessed": 0, "witnessed_by": 0,
            "witnesses": 1, "begun_at": "x", "entry": 0, "genesis": "01", "refused": [],
            "same_database_as": ["<b>"], "forked": null, "shrunk": null,
        });
        let page = page(&json!({ "trails": [trail], "log": { "key": "k" } }));
        assert!(
            !page.contains("<script>") && !page.contains("<b>"),
            "{page}"
        );
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;/&#39;&amp;&quot;"));
        assert!(page.contains("guards the same database"), "{page}");
        assert!(!page.contains("<th>User"), "{page}");
    }
}
