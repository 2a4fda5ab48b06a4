//! Prometheus text (spec 61 §5): names are stable, values are of each source.

use std::fmt::{Display, Write};
use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use pitser_evidence::Code;
use pitser_guardian::{AlertStatus, SourceState, Status};

use crate::Guarded;
use crate::api::VERSION;
use crate::site::Site;

pub(crate) async fn metrics<G: Guarded>(State(site): State<Arc<Site<G>>>) -> Response {
    let headers = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (headers, text(&site.statuses())).into_response()
}

fn text(statuses: &[Status]) -> String {
    let mut out = Text(String::new());
    out.family("pitser_build_info", "gauge", "Version of this software.");
    out.sample("pitser_build_info", &[("version", VERSION)], 1);
    let mut each = |name, kind, help, value: &dyn Fn(&Status) -> Option<f64>| {
        out.family(name, kind, help);
        for status in statuses {
            if let Some(value) = value(status) {
                out.sample(name, &[("source", &status.name)], value);
            }
        }
    };
    for (name, kind, help, value) in PLAIN {
        each(name, kind, help, value);
    }
    latency(&mut out, statuses);
    findings(&mut out, statuses);
    alerts(&mut out, statuses);
    out.0
}

type Plain = (
    &'static str,
    &'static str,
    &'static str,
    &'static dyn Fn(&Status) -> Option<f64>,
);

/// Metrics with one value a source.
const PLAIN: &[Plain] = &[
    (
        "pitser_guarding",
        "gauge",
        "1 while the source is guarded.",
        &|s| Some(f64::from(s.state == SourceState::Guarding)),
    ),
    (
        "pitser_events_total",
        "counter",
        "Trail lines about records, reads and findings.",
        &|s| number(s.events),
    ),
    ("pitser_lines_total", "counter", "All trail lines.", &|s| {
        number(s.lines)
    }),
    ("pitser_blocks_total", "counter", "Closed blocks.", &|s| {
        number(s.blocks)
    }),
    (
        "pitser_blocks_unsealed",
        "gauge",
        "Blocks that wait for their seal.",
        &|s| number(s.unsealed),
    ),
    (
        "pitser_blocks_witnessed",
        "gauge",
        "Blocks under the newest cosigned head.",
        &|s| number(s.witnessed),
    ),
    (
        "pitser_patients",
        "gauge",
        "Patients with a list in the map.",
        &|s| number(s.patients),
    ),
    (
        "pitser_rows_verified",
        "gauge",
        "Rows that the last complete scan compared.",
        &|s| number(s.rows_verified),
    ),
    (
        "pitser_log_kept_bytes",
        "gauge",
        "Log that the database keeps until it is captured.",
        &|s| s.log_kept_bytes.and_then(number),
    ),
    (
        "pitser_sealed_timestamp_seconds",
        "gauge",
        "Time of the newest seal; 0 if there is none.",
        &|s| instant(s.sealed_up_to.as_ref()),
    ),
    (
        "pitser_witnessed_timestamp_seconds",
        "gauge",
        "When the newest head was cosigned; 0 if none was.",
        &|s| instant(s.witnessed_at.as_ref()).filter(|_| !s.witnesses.is_empty()),
    ),
    (
        "pitser_verified_timestamp_seconds",
        "gauge",
        "When the last complete scan ended; 0 if none did since the start.",
        &|s| instant(s.verified_up_to.as_ref()),
    ),
];

fn latency(out: &mut Text, statuses: &[Status]) {
    let name = "pitser_seal_latency_seconds";
    out.family(name, "gauge", "From a change to its seal, newest events.");
    for status in statuses {
        let Some(latency) = &status.seal_latency_ms else {
            continue;
        };
        for (quantile, ms) in [("0.5", latency.p50), ("0.99", latency.p99)] {
            let labels = [("source", status.name.as_str()), ("quantile", quantile)];
            out.sample(name, &labels, ms as f64 / 1000.0);
        }
    }
}

/// Every code of every source, also those that nothing was found of: an alert
/// on a rise needs the zero before it.
fn findings(out: &mut Text, statuses: &[Status]) {
    let open = |status: &Status, code: &str| status.open_findings(|it| it == code);
    let all = |status: &Status, code: &str| status.all_findings(|it| it == code);
    let name = "pitser_findings_total";
    out.family(name, "counter", "Findings so far.");
    by_code(out, name, statuses, all);
    let name = "pitser_findings_open";
    out.family(name, "gauge", "Findings that still hold.");
    by_code(out, name, statuses, open);
}

fn by_code(out: &mut Text, name: &str, statuses: &[Status], number: impl Fn(&Status, &str) -> u64) {
    for status in statuses {
        for code in Code::ALL {
            let labels = [("source", status.name.as_str()), ("code", code.as_str())];
            out.sample(name, &labels, number(status, code.as_str()));
        }
    }
}

/// Nothing if no receiver is configured.
fn alerts(out: &mut Text, statuses: &[Status]) {
    for (name, kind, help, value) in ALERTS {
        if statuses.iter().any(|status| !status.alerts.is_empty()) {
            out.family(name, kind, help);
        }
        for status in statuses {
            for alert in &status.alerts {
                let labels = [
                    ("source", status.name.as_str()),
                    ("endpoint", alert.endpoint.as_str()),
                ];
                out.sample(name, &labels, value(alert));
            }
        }
    }
}

type OfAlerts = (
    &'static str,
    &'static str,
    &'static str,
    fn(&AlertStatus) -> u64,
);

/// Metrics with one value for each source and receiver.
const ALERTS: [OfAlerts; 3] = [
    (
        "pitser_alert_deliveries_total",
        "counter",
        "Messages about findings that a receiver took.",
        |a| a.delivered,
    ),
    (
        "pitser_alert_failures_total",
        "counter",
        "Attempts at delivering one that failed.",
        |a| a.failed,
    ),
    (
        "pitser_alerts_waiting",
        "gauge",
        "Messages that are due and not delivered.",
        |a| a.waiting,
    ),
];

fn number(value: u64) -> Option<f64> {
    Some(value as f64)
}

/// 0 while there is none: of a metric that is absent no comparison is true, and an alarm
/// that compares its age would be silent.
fn instant(rfc3339: Option<&String>) -> Option<f64> {
    let Some(rfc3339) = rfc3339 else {
        return Some(0.0);
    };
    let at: Timestamp = rfc3339.parse().ok()?;
    Some(at.as_second() as f64)
}

struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.0 += &format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0 += name;
        for (at, (label, value)) in labels.iter().enumerate() {
            self.0.push(if at == 0 { '{' } else { ',' });
            self.0 += label;
            self.0 += "=\"";
            for c in value.chars() {
                match c {
                    '\\' => self.0 += "\\\\",
                    '"' => self.0 += "\\\"",
                    '\n' => self.0 += "\\n",
                    c => self.0.push(c),
                }
            }
            self.0.push('"');
        }
        let _ = writeln!(self.0, "}} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pitser_guardian::{FindingStatus, MoreStatus};

    fn finding(code: &str, open: bool) -> FindingStatus {
        FindingStatus {
            code: code.into(),
            table: None,
            key: None,
            columns: Vec::new(),
            at: "2026-03-14T09:26:53Z".into(),
            found_at_us: 0,
            text: String::new(),
            open,
            line: None,
            accepted: None,
        }
    }

    #[test]
    fn says_what_is_known() {
        let status = Status {
            name: "e\"h\\r\n".into(),
            state: SourceState::Guarding,
            events: 12,
            sealed_up_to: Some("1970-01-01T00:01:40Z".into()),
            findings: vec![finding("ROW-01", true), finding("ROW-01", false)],
            more_findings: vec![MoreStatus {
                code: "ACT-01".into(),
                table: Some("entry".into()),
                open: 299_800,
                earlier: 3,
                first_line: Some(7),
                last_line: Some(599_598),
            }],
            alerts: vec![AlertStatus {
                endpoint: "https://a.example#12345678".into(),
                delivered: 3,
                failed: 2,
                waiting: 1,
                trouble: None,
            }],
            ..Status::default()
        };
        let text = text(&[status]);
        for line in [
            "# TYPE pitser_events_total counter",
            r#"pitser_guarding{source="e\"h\\r\n"} 1"#,
            r#"pitser_events_total{source="e\"h\\r\n"} 12"#,
            r#"pitser_sealed_timestamp_seconds{source="e\"h\\r\n"} 100"#,
            r#"pitser_verified_timestamp_seconds{source="e\"h\\r\n"} 0"#,
            r#"pitser_findings_total{source="e\"h\\r\n",code="ROW-01"} 2"#,
            r#"pitser_findings_open{source="e\"h\\r\n",code="ROW-01"} 1"#,
            r#"pitser_findings_open{source="e\"h\\r\n",code="TRL-04"} 0"#,
            r#"pitser_findings_total{source="e\"h\\r\n",code="ACT-01"} 299803"#,
            r#"pitser_findings_open{source="e\"h\\r\n",code="ACT-01"} 299800"#,
            "# TYPE pitser_alerts_waiting gauge",
            r#"pitser_alert_deliveries_total{source="e\"h\\r\n",endpoint="https://a.example#12345678"} 3"#,
            r#"pitser_alert_failures_total{source="e\"h\\r\n",endpoint="https://a.example#12345678"} 2"#,
            r#"pitser_alerts_waiting{source="e\"h\\r\n",endpoint="https://a.example#12345678"} 1"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        // Nobody is to cosign.
        let absent = "pitser_witnessed_timestamp_seconds{";
        assert!(!text.contains(absent), "{text}");
    }
}
