//! What people and monitoring see.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::store::{Head, Store, StoreError};
use crate::witness::{Log, Witness};

/// What a witness knows at one moment.
pub(super) struct Survey {
    key: String,
    name: String,
    logs: Vec<(Log, Option<Head>)>,
    /// Origins of logs that were seen to fork.
    forked: Vec<String>,
    latest_at: Option<u64>,
    clock_behind_s: u64,
    now: u64,
}

pub(super) fn survey<S: Store>(witness: &Witness<S>, now: u64) -> Result<Survey, StoreError> {
    let (store, key) = (witness.store(), witness.verifier());
    let logs = store.logs()?.into_iter();
    let logs = logs.map(|log| {
        let head = store.head(&log.origin)?;
        Ok((log, head))
    });
    Ok(Survey {
        name: key.name().to_owned(),
        key: key.to_string(),
        logs: logs.collect::<Result<_, StoreError>>()?,
        forked: store.forks()?.into_iter().map(|fork| fork.origin).collect(),
        latest_at: store.latest_at()?,
        clock_behind_s: witness.clock_behind_s(now)?.unwrap_or(0),
        now,
    })
}

impl Survey {
    /// Prometheus text. Names are stable.
    pub(super) fn metrics(&self, answered: &BTreeMap<u16, u64>, connections: usize) -> String {
        let mut out = String::new();
        let mut family = |name: &str, kind: &str, help: &str, samples: &str| {
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{samples}");
        };
        let mut by_status = String::new();
        for (status, count) in answered {
            let _ = writeln!(
                by_status,
                "pitser_witness_requests_total{{status=\"{status}\"}} {count}"
            );
        }
        family(
            "pitser_witness_requests_total",
            "counter",
            "Requests for a cosignature, by the status of the answer.",
            &by_status,
        );
        let newest_s = self.latest_at.map(|at| {
            (
                "pitser_witness_cosigned_timestamp_seconds",
                "Time of the newest cosignature.",
                at,
            )
        });
        let gauges = [
            (
                "pitser_witness_logs",
                "Watched logs.",
                self.logs.len() as u64,
            ),
            (
                "pitser_witness_forked_logs",
                "Logs that have signed two roots of one size.",
                self.forked.len() as u64,
            ),
            (
                "pitser_witness_connections",
                "Open connections.",
                connections as u64,
            ),
            (
                "pitser_witness_clock_behind_seconds",
                "By how much the clock is behind the newest cosignature beyond what is tolerated; nothing is cosigned then.",
                self.clock_behind_s,
            ),
        ];
        for (name, help, value) in gauges.into_iter().chain(newest_s) {
            family(name, "gauge", help, &format!("{name} {value}\n"));
        }
        out
    }

    /// A page for people, without a script.
    pub(super) fn page(&self) -> String {
        let mut rows = String::new();
        for (log, head) in self.logs.iter().take(PAGE_LOGS) {
            let (size, age) = match head {
                Some(head) => (head.size.to_string(), age(self.now, head.cosigned_at)),
                None => ("none yet".to_owned(), String::new()),
            };
            let state = match self.forked.contains(&log.origin) {
                true => "<strong>has forked</strong>",
                false => "",
            };
            let origin = escape(&log.origin);
            let _ = writeln!(
                rows,
                "<tr><td>{origin}</td><td>{size}</td><td>{age}</td><td>{state}</td></tr>"
            );
        }
        let left = self.logs.len().saturating_sub(PAGE_LOGS);
        if left > 0 {
            let _ = writeln!(rows, "<tr><td>and {left} more</td></tr>");
        }
        let warning = match self.clock_behind_s {
            0 => String::new(),
            behind => format!(
                "<p><strong>CLK-01: this machine's clock is {behind} s behind the newest cosignature. \
                 Nothing is cosigned until it is set right.</strong></p>"
            ),
        };
        let (name, key) = (escape(&self.name), escape(&self.key));
        format!(
            "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n<title>{name}</title>\n\
             <style>body{{font:1rem/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}\
             code{{overflow-wrap:anywhere}}td,th{{text-align:left;padding:.2rem 1rem .2rem 0}}\
             strong{{color:#a00}}</style>\n\
             <h1>{name}</h1>\n{warning}\
             <p>A witness. It cosigns the newest head of each log below as long as that log only \
             grows, and keeps the proof if one does not. It sees sizes and hashes, and no record.</p>\n\
             <p>Its key, for anchors and for whoever wants a log cosigned:<br><code>{key}</code></p>\n\
             <p>Compare this with what its operator has published elsewhere: whoever could change \
             this page could change the key on it.</p>\n\
             <table><tr><th>log</th><th>entries</th><th>cosigned</th><th></th></tr>\n{rows}</table>\n\
             </html>\n"
        )
    }
}

/// "12 s ago", for people.
fn age(now: u64, at: u64) -> String {
    match now.saturating_sub(at) {
        s if s < 120 => format!("{s} s ago"),
        s if s < 7200 => format!("{} min ago", s / 60),
        s if s < 172_800 => format!("{} h ago", s / 3600),
        s => format!("{} days ago", s / 86_400),
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            _ => escaped.push(letter),
        }
    }
    escaped
}

/// Logs that the page lists.
const PAGE_LOGS: usize = 2000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_cannot_change_the_page() {
        assert_eq!(
            escape("<img onerror=\"x\">&"),
            "&lt;img onerror=&quot;x&quot;&gt;&amp;"
        );
    }

    #[test]
    fn ages_are_rounded_down() {
        for (seconds, told) in [
            (0, "0 s ago"),
            (119, "119 s ago"),
            (120, "2 min ago"),
            (7200, "2 h ago"),
            (172_800, "2 days ago"),
        ] {
            assert_eq!(age(1_000_000, 1_000_000 - seconds), told);
        }
        assert_eq!(age(5, 9), "0 s ago");
    }
}
