//! What is counted while it runs, and how monitors are told (Prometheus text).
//!
//! Counters are plain atomics, added to without order; what comes in batches is
//! counted a batch at a time. Labels are names of this program's own and the logins
//! of configured users: nothing that a stranger sends.

use std::fmt::{Display, Write as _};
use std::sync::atomic::{AtomicI8, AtomicU64, Ordering};
use std::time::Duration;

use pitser_ksi::pdu::Status;
use pitser_ksi::time::Second;

use crate::fleet::Counts;
use crate::log::LogStatus;

/// Counters of a running authority.
#[derive(Debug, Default)]
pub struct Metrics {
    aggregator: ByStatus,
    extender: ByStatus,
    refused: [Count; Reason::ALL.len()],
    rounds: Count,
    durations: Histogram,
    open: [Count; Transport::ALL.len()],
    closed: [Count; Transport::ALL.len()],
    received_bytes: Count,
    sent_bytes: Count,
    clock: Clock,
}

/// One number that only grows, on a cache line of its own: cores that count different
/// things do not wait for each other.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Count(AtomicU64);

impl Count {
    fn add(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Where a connection came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Http,
    Https,
    Monitor,
    Admin,
}

impl Transport {
    const ALL: [Self; 5] = [
        Self::Tcp,
        Self::Http,
        Self::Https,
        Self::Monitor,
        Self::Admin,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Https => "https",
            Self::Monitor => "monitor",
            Self::Admin => "admin",
        }
    }
}

/// Why something was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Unknown user or wrong key.
    Authentication,
    /// No message of the protocol, or a malformed one.
    Malformed,
    /// More than one message may ask for.
    TooMuch,
    Level,
    Algorithm,
    Rate,
    Quota,
    RoundFull,
    /// Nothing is signed now: clock, shutdown, or a failure of ours.
    NotSigning,
    /// An extension to where the calendar does not reach.
    OutOfRange,
    /// A peer has all the connections that one may have.
    PeerConnections,
    /// A peer and this service found no common TLS, or it took too long.
    Tls,
}

impl Reason {
    const ALL: [Self; 12] = [
        Self::Authentication,
        Self::Malformed,
        Self::TooMuch,
        Self::Level,
        Self::Algorithm,
        Self::Rate,
        Self::Quota,
        Self::RoundFull,
        Self::NotSigning,
        Self::OutOfRange,
        Self::PeerConnections,
        Self::Tls,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Authentication => "authentication",
            Self::Malformed => "malformed",
            Self::TooMuch => "too_much",
            Self::Level => "level",
            Self::Algorithm => "algorithm",
            Self::Rate => "rate",
            Self::Quota => "quota",
            Self::RoundFull => "round_full",
            Self::NotSigning => "not_signing",
            Self::OutOfRange => "out_of_range",
            Self::PeerConnections => "peer_connections",
            Self::Tls => "tls",
        }
    }
}

/// Answers by status (spec service §5); what is no status of ours counts together.
#[derive(Debug, Default)]
struct ByStatus([Count; STATUSES.len() + 1]);

const STATUSES: [u64; 13] = [
    0, 0x0101, 0x0102, 0x0103, 0x0104, 0x0105, 0x0106, 0x0107, 0x0200, 0x0201, 0x0202, 0x0300,
    0x0301,
];

impl ByStatus {
    fn add(&self, status: Status, by: u64) {
        let known = STATUSES.iter().position(|one| *one == status.0);
        self.0[known.unwrap_or(STATUSES.len())].add(by);
    }

    fn each(&self) -> impl Iterator<Item = (String, u64)> {
        let names = STATUSES.iter().map(|status| format!("{status:#06x}"));
        let names = names.chain(["other".to_owned()]);
        names.zip(self.0.iter().map(Count::get))
    }
}

/// How long rounds took, from being taken up until their signatures were ready.
#[derive(Debug, Default)]
struct Histogram {
    /// Not cumulated; the last is beyond all bounds.
    buckets: [Count; BOUNDS_MS.len() + 1],
    sum_us: Count,
}

const BOUNDS_MS: [u64; 11] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000];

impl Histogram {
    fn observe(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_MS.iter().position(|bound| us <= bound * 1000);
        self.buckets[bucket.unwrap_or(BOUNDS_MS.len())].add(1);
        self.sum_us.add(us);
    }
}

/// What the machine says of its clock; not known until told.
#[derive(Debug)]
struct Clock(AtomicI8);

impl Default for Clock {
    fn default() -> Self {
        Self(AtomicI8::new(UNKNOWN))
    }
}

const UNKNOWN: i8 = -1;

impl Metrics {
    /// Says whether the machine's clock follows a time source; `None`: nobody tells.
    pub fn set_clock_synchronised(&self, synchronised: Option<bool>) {
        let value = synchronised.map_or(UNKNOWN, i8::from);
        self.clock.0.store(value, Ordering::Relaxed);
    }

    /// Whether the machine's clock follows a time source, if anybody tells.
    pub fn clock_synchronised(&self) -> Option<bool> {
        match self.clock.0.load(Ordering::Relaxed) {
            UNKNOWN => None,
            value => Some(value == 1),
        }
    }

    /// Signatures so far.
    pub fn signatures(&self) -> u64 {
        self.aggregator.0[0].get()
    }

    /// A round of `asked` requests is answered, of which `signed` by a signature.
    pub(crate) fn round(&self, asked: usize, signed: usize, took: Duration) {
        self.rounds.add(1);
        self.aggregator.add(Status::OK, signed as u64);
        self.lost(asked.saturating_sub(signed));
        self.durations.observe(took);
    }

    /// So many accepted requests got no signature, by a failure of ours.
    pub(crate) fn lost(&self, requests: usize) {
        self.aggregator.add(Status::INTERNAL_ERROR, requests as u64);
        self.refused[Reason::NotSigning as usize].add(requests as u64);
    }

    /// The aggregator refused one request.
    pub(crate) fn not_signed(&self, status: Status, reason: Reason) {
        self.aggregator.add(status, 1);
        self.refused(reason);
    }

    /// The extender answered one request.
    pub(crate) fn extended(&self, status: Status) {
        self.extender.add(status, 1);
        if !status.is_ok() {
            self.refused(Reason::OutOfRange);
        }
    }

    /// The extender refused a message.
    pub(crate) fn not_extended(&self, status: Status, reason: Reason) {
        self.extender.add(status, 1);
        self.refused(reason);
    }

    pub(crate) fn refused(&self, reason: Reason) {
        self.refused[reason as usize].add(1);
    }

    pub(crate) fn opened(&self, transport: Transport) {
        self.open[transport as usize].add(1);
    }

    pub(crate) fn closed(&self, transport: Transport) {
        self.closed[transport as usize].add(1);
    }

    /// Connections that are open.
    fn connections(&self, transport: Transport) -> u64 {
        let (open, closed) = (&self.open, &self.closed);
        // Closed first: it cannot then exceed what was opened.
        let closed = closed[transport as usize].get();
        open[transport as usize].get().saturating_sub(closed)
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.received_bytes.add(bytes as u64);
    }

    pub(crate) fn sent(&self, bytes: usize) {
        self.sent_bytes.add(bytes as u64);
    }

    /// All refusals so far, by reason.
    pub(crate) fn refusals(&self) -> Vec<(&'static str, u64)> {
        let each = Reason::ALL.iter().zip(&self.refused);
        each.map(|(reason, count)| (reason.name(), count.get()))
            .collect()
    }

    /// Everything, in Prometheus' text format 0.0.4.
    pub(crate) fn text(&self, state: &State) -> String {
        let mut out = Text(String::new());
        self.of_requests(&mut out);
        self.of_rounds(&mut out);
        self.of_transports(&mut out);
        state.of_calendar(&mut out);
        if let Some(log) = &state.log {
            of_log(log, &mut out);
        }
        state.of_hook(&mut out);
        if let Some(synchronised) = self.clock_synchronised() {
            let help = "1 while the machine's clock follows a time source.";
            out.one(
                "pitser_clock_synchronised",
                "gauge",
                help,
                u8::from(synchronised),
            );
        }
        state.of_fleet(&mut out);
        state.of_users(&mut out);
        out.0
    }

    fn of_requests(&self, out: &mut Text) {
        let name = "pitser_authority_requests_total";
        out.family(name, "counter", "Answers, by status code.");
        for (service, counts) in [
            ("aggregator", &self.aggregator),
            ("extender", &self.extender),
        ] {
            for (status, count) in counts.each() {
                out.sample(name, &[("service", service), ("status", &status)], count);
            }
        }
        let help = "Signatures made.";
        out.one(
            "pitser_authority_signatures_total",
            "counter",
            help,
            self.signatures(),
        );
        let help = "Calendar chains found.";
        out.one(
            "pitser_authority_extensions_total",
            "counter",
            help,
            self.extender.0[0].get(),
        );
        let name = "pitser_authority_refused_total";
        out.family(name, "counter", "What was refused, by reason.");
        for (reason, count) in self.refusals() {
            out.sample(name, &[("reason", reason)], count);
        }
    }

    fn of_rounds(&self, out: &mut Text) {
        let help = "Rounds with requests that were closed.";
        out.one(
            "pitser_authority_rounds_total",
            "counter",
            help,
            self.rounds.get(),
        );
        let name = "pitser_authority_round_duration_seconds";
        out.family(
            name,
            "histogram",
            "From taking a round up until its signatures are ready.",
        );
        let mut all = 0;
        let bucket = format!("{name}_bucket");
        for (bound, count) in BOUNDS_MS.iter().zip(&self.durations.buckets) {
            all += count.get();
            let bound = (*bound as f64 / 1000.0).to_string();
            out.sample(&bucket, &[("le", &bound)], all);
        }
        all += self.durations.buckets[BOUNDS_MS.len()].get();
        out.sample(&bucket, &[("le", "+Inf")], all);
        let sum_us = self.durations.sum_us.get();
        out.sample(&format!("{name}_sum"), &[], sum_us as f64 / 1e6);
        out.sample(&format!("{name}_count"), &[], all);
    }

    fn of_transports(&self, out: &mut Text) {
        let name = "pitser_authority_connections";
        out.family(name, "gauge", "Connections that are open.");
        for transport in Transport::ALL {
            let count = self.connections(transport);
            out.sample(name, &[("transport", transport.name())], count);
        }
        let name = "pitser_authority_connections_total";
        out.family(name, "counter", "Connections that were let in.");
        for transport in Transport::ALL {
            let count = self.open[transport as usize].get();
            out.sample(name, &[("transport", transport.name())], count);
        }
        for (name, help, count) in [
            (
                "pitser_authority_received_bytes_total",
                "Bytes of messages that came in.",
                &self.received_bytes,
            ),
            (
                "pitser_authority_sent_bytes_total",
                "Bytes of answers that went out.",
                &self.sent_bytes,
            ),
        ] {
            out.one(name, "counter", help, count.get());
        }
    }
}

/// What is looked up when somebody asks.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) is_signing: bool,
    pub(crate) waiting: usize,
    pub(crate) head: Option<Second>,
    pub(crate) now: Second,
    /// Of the calendar's log, if the calendar is ours.
    pub(crate) log: Option<LogStatus>,
    pub(crate) publications: usize,
    pub(crate) published_at: Option<Second>,
    /// Since when a publication waits for a key that is kept elsewhere, if one does;
    /// `None`: the key is here.
    pub(crate) due_since: Option<Option<Second>>,
    /// Runs of the hook that succeeded and that failed, and publications that wait
    /// for one.
    pub(crate) hook: Option<(u64, u64, usize)>,
    /// Registered trails; an aggregator has none.
    pub(crate) fleet: Option<Counts>,
    /// Configured users, and their requests that came into a round.
    pub(crate) users: Vec<(String, u64)>,
}

impl State {
    fn of_calendar(&self, out: &mut Text) {
        let help = "1 while requests are taken.";
        out.one(
            "pitser_authority_signing",
            "gauge",
            help,
            u8::from(self.is_signing),
        );
        let help = "Requests that wait for their round.";
        out.one("pitser_authority_waiting", "gauge", help, self.waiting);
        if let Some(head) = self.head {
            let help = "The calendar's newest second.";
            out.one(
                "pitser_calendar_head_timestamp_seconds",
                "gauge",
                help,
                head.0,
            );
            let help = "How long ago the calendar's newest second ended.";
            out.one(
                "pitser_calendar_head_age_seconds",
                "gauge",
                help,
                self.now.since(head),
            );
        }
        let help = "Publications in the publications file.";
        out.one(
            "pitser_authority_publications",
            "gauge",
            help,
            self.publications,
        );
        if let Some(at) = self.published_at {
            let help = "The newest published second.";
            out.one(
                "pitser_authority_published_timestamp_seconds",
                "gauge",
                help,
                at.0,
            );
        }
        if let Some(since) = self.due_since {
            let help = "How long a publication has been waiting for the key elsewhere; 0: none is.";
            out.one(
                "pitser_authority_publication_due_seconds",
                "gauge",
                help,
                since.map_or(0, |since| self.now.since(since).max(1)),
            );
        }
    }

    fn of_hook(&self, out: &mut Text) {
        let Some((succeeded, failed, owed)) = self.hook else {
            return;
        };
        let name = "pitser_authority_hook_runs_total";
        out.family(name, "counter", "Runs of the command after publications.");
        out.sample(name, &[("result", "succeeded")], succeeded);
        out.sample(name, &[("result", "failed")], failed);
        let help = "Publications that the command has not succeeded for yet.";
        out.one("pitser_authority_hook_owed", "gauge", help, owed);
    }

    fn of_fleet(&self, out: &mut Text) {
        let Some(fleet) = &self.fleet else { return };
        for (name, help, count) in [
            (
                "pitser_fleet_registered",
                "Trails that are registered.",
                fleet.registered,
            ),
            (
                "pitser_fleet_silent",
                "Registered trails that were not heard of for too long.",
                fleet.silent,
            ),
            (
                "pitser_fleet_forked",
                "Registered trails that contradict a head of theirs.",
                fleet.forked,
            ),
            (
                "pitser_fleet_refused",
                "Other trails that claimed a registered name.",
                fleet.refused,
            ),
        ] {
            out.one(name, "gauge", help, count);
        }
    }

    fn of_users(&self, out: &mut Text) {
        let name = "pitser_authority_user_requests_total";
        out.family(
            name,
            "counter",
            "Requests of a configured user that came into a round.",
        );
        for (login, count) in &self.users {
            out.sample(name, &[("login", login)], count);
        }
    }
}

fn of_log(log: &LogStatus, out: &mut Text) {
    let help = "Entries under the newest checkpoint of the calendar's log.";
    out.one("pitser_log_size", "gauge", help, log.size);
    if log.quorum == 0 {
        return;
    }
    let help = "Entries under the newest checkpoint that a quorum of witnesses cosigned.";
    out.one("pitser_log_witnessed_size", "gauge", help, log.witnessed);
    let help = "By how many seconds the newest witnessed checkpoint is behind.";
    out.one("pitser_log_behind_seconds", "gauge", help, log.behind_s());
    let name = "pitser_log_witness_size";
    let help = "Entries under the newest checkpoint that a witness cosigned since the start.";
    out.family(name, "gauge", help);
    for witness in &log.witnesses {
        out.sample(name, &[("witness", &witness.name)], witness.size);
    }
}

struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.0 += &format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0 += name;
        for (at, (label, value)) in labels.iter().enumerate() {
            self.0.push(if at == 0 { '{' } else { ',' });
            let _ = write!(self.0, "{label}=\"");
            for letter in value.chars() {
                match letter {
                    '\\' => self.0 += "\\\\",
                    '"' => self.0 += "\\\"",
                    '\n' => self.0 += "\\n",
                    letter => self.0.push(letter),
                }
            }
            self.0.push('"');
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::LogWitnessStatus;

    #[test]
    fn says_what_was_counted() {
        let metrics = Metrics::default();
        metrics.round(3, 3, Duration::from_millis(7));
        metrics.round(9, 2, Duration::from_secs(9));
        metrics.not_signed(Status::OVER_QUOTA, Reason::Quota);
        metrics.not_signed(Status(0x0999), Reason::Malformed);
        metrics.extended(Status::OK);
        metrics.extended(Status::TIME_TOO_NEW);
        metrics.opened(Transport::Tcp);
        metrics.opened(Transport::Tcp);
        metrics.closed(Transport::Tcp);
        metrics.received(40);
        metrics.set_clock_synchronised(Some(false));
        let state = State {
            is_signing: true,
            waiting: 4,
            head: Some(Second(100)),
            now: Second(101),
            log: Some(LogStatus {
                size: 9,
                witnessed: 7,
                quorum: 1,
                witnesses: vec![LogWitnessStatus {
                    name: "notary.example/w".to_owned(),
                    size: 7,
                    ..LogWitnessStatus::default()
                }],
                ..LogStatus::default()
            }),
            publications: 2,
            published_at: None,
            due_since: Some(Some(Second(41))),
            hook: Some((3, 1, 2)),
            fleet: Some(Counts {
                registered: 6,
                silent: 2,
                forked: 1,
                refused: 3,
            }),
            users: vec![("a\"b".to_owned(), 5)],
        };
        let text = metrics.text(&state);
        for line in [
            "# TYPE pitser_authority_requests_total counter",
            r#"pitser_authority_requests_total{service="aggregator",status="0x0000"} 5"#,
            r#"pitser_authority_requests_total{service="aggregator",status="0x0105"} 1"#,
            r#"pitser_authority_requests_total{service="aggregator",status="0x0200"} 7"#,
            r#"pitser_authority_requests_total{service="aggregator",status="other"} 1"#,
            r#"pitser_authority_requests_total{service="extender",status="0x0106"} 1"#,
            r#"pitser_authority_refused_total{reason="quota"} 1"#,
            r#"pitser_authority_refused_total{reason="out_of_range"} 1"#,
            r#"pitser_authority_round_duration_seconds_bucket{le="0.005"} 0"#,
            r#"pitser_authority_round_duration_seconds_bucket{le="0.01"} 1"#,
            r#"pitser_authority_round_duration_seconds_bucket{le="2"} 1"#,
            r#"pitser_authority_round_duration_seconds_bucket{le="+Inf"} 2"#,
            "pitser_authority_round_duration_seconds_sum 9.007",
            "pitser_authority_signatures_total 5",
            r#"pitser_authority_connections{transport="tcp"} 1"#,
            "pitser_authority_received_bytes_total 40",
            "pitser_calendar_head_age_seconds 1",
            "pitser_clock_synchronised 0",
            "pitser_authority_publication_due_seconds 60",
            "pitser_log_behind_seconds 2",
            r#"pitser_log_witness_size{witness="notary.example/w"} 7"#,
            r#"pitser_authority_hook_runs_total{result="failed"} 1"#,
            "pitser_authority_hook_owed 2",
            "pitser_fleet_registered 6",
            "pitser_fleet_silent 2",
            "pitser_fleet_forked 1",
            "pitser_fleet_refused 3",
            r#"pitser_authority_user_requests_total{login="a\"b"} 5"#,
        ] {
            assert!(text.lines().any(|one| one == line), "{line}\n{text}");
        }
        metrics.set_clock_synchronised(None);
        assert!(!metrics.text(&state).contains("pitser_clock_synchronised"));
    }

    #[test]
    fn every_reason_and_transport_has_its_place() {
        for (at, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, at);
        }
        for (at, transport) in Transport::ALL.iter().enumerate() {
            assert_eq!(*transport as usize, at);
        }
    }
}
