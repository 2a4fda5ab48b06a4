//! What a guardian shows of itself. Names are in clear: for those who run it.

use pitser_evidence::Code;
use pitser_monitor::{Lines, can_accept};
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// One source, as `guard status --json` and the status page show it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Status {
    /// Configured name.
    pub name: String,
    /// Name of the trail.
    pub origin: String,
    /// How it is going.
    pub state: SourceState,
    /// Why, if it is not `guarding`.
    pub trouble: Option<String>,
    /// Blocks wait for a seal that the authority was asked for in vain.
    pub seal_delayed: bool,
    /// How far the rows that were there before are written, while they are.
    pub baseline: Option<BaselineStatus>,
    /// The source's position that the trail covers.
    pub position: String,
    /// Bytes of log that the database keeps until we have taken it, where it says so.
    pub log_kept_bytes: Option<u64>,
    /// Lines about records, reads and findings (checkpoints not counted).
    pub events: u64,
    /// All lines.
    pub lines: u64,
    /// Closed blocks.
    pub blocks: u64,
    /// Blocks that wait for their seal.
    pub unsealed: u64,
    /// When the newest sealed block was sealed (RFC 3339).
    pub sealed_up_to: Option<String>,
    /// When the last complete scan ended (RFC 3339).
    pub verified_up_to: Option<String>,
    /// Rows that it compared.
    pub rows_verified: u64,
    /// Blocks under the newest cosigned head.
    pub witnessed: u64,
    /// When the quorum had cosigned that head, as the witnesses say (RFC 3339).
    pub witnessed_at: Option<String>,
    /// The witnesses, in the order of the configuration.
    pub witnesses: Vec<WitnessStatus>,
    /// What the authority's fleet has of this trail, if one is configured.
    pub fleet: Option<FleetStatus>,
    /// Patients with a list in the map.
    pub patients: u64,
    /// Hash of the genesis line.
    pub genesis: String,
    /// The trail was opened since the start: its findings are among those that are shown.
    #[serde(skip)]
    pub is_opened: bool,
    /// Milliseconds from a change to its seal, of the newest blocks.
    pub seal_latency_ms: Option<Latency>,
    /// The newest blocks, newest first.
    pub recent: Vec<BlockStatus>,
    /// Tables that the last scan could not read to their end: what it did not see of them
    /// is not judged.
    pub unread: Vec<UnreadStatus>,
    /// What was found, oldest first: the newest of each code and table.
    pub findings: Vec<FindingStatus>,
    /// How much more there is of each code and table, if there is more.
    pub more_findings: Vec<MoreStatus>,
    /// Lines of findings of rows that are open and only counted, for auditors.
    #[serde(skip)]
    pub counted_rows: Arc<Lines>,
    /// The newest complete pass over the live rows has seen all lines before this one.
    #[serde(skip)]
    pub compared_before: u64,
    /// How findings are delivered to receivers, if any are configured.
    pub alerts: Vec<AlertStatus>,
    /// The mapping from tables to patients (spec 32 §1), for auditors.
    #[serde(skip)]
    pub mapping: String,
}

impl Status {
    /// How a source stands whose guardian shows `shown`, and whose thread has been at its
    /// newest step for so long. What it said last does not hold once it is gone, or hangs.
    pub fn seen(shown: &watch::Receiver<Self>, at_one_step: Option<Duration>) -> Self {
        let is_gone = shown.has_changed().is_err();
        let mut status = shown.borrow().clone();
        if is_gone && status.state != SourceState::Stopped {
            status.state = SourceState::Stopped;
            status.trouble = Some("the guardian ended without a word; restart it".into());
        } else if let Some(age) = at_one_step.filter(|age| *age >= STUCK) {
            status.state = SourceState::Stuck;
            status.trouble = Some(format!(
                "the guardian's thread has been at one step for {} s, and what is shown here is as old; if it \
                 stays so, look at its disk, and restart it",
                age.as_secs()
            ));
        }
        status
    }

    /// How many findings are open whose code `is_wanted`, listed or only counted.
    pub fn open_findings(&self, is_wanted: impl Fn(&str) -> bool) -> u64 {
        let listed = self.findings.iter();
        let listed = listed.filter(|it| it.open && is_wanted(&it.code)).count();
        let more = self.more_findings.iter().filter(|it| is_wanted(&it.code));
        listed as u64 + more.map(|it| it.open).sum::<u64>()
    }

    /// How many findings there are whose code `is_wanted`, open or not.
    pub fn all_findings(&self, is_wanted: impl Fn(&str) -> bool) -> u64 {
        let listed = self.findings.iter().filter(|it| is_wanted(&it.code));
        let more = self.more_findings.iter().filter(|it| is_wanted(&it.code));
        listed.count() as u64 + more.map(|it| it.open + it.earlier).sum::<u64>()
    }
}

/// A witness, as one source knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct WitnessStatus {
    /// What it is called.
    pub name: String,
    /// Blocks under the newest head that it has cosigned since the start.
    pub size: u64,
    /// When it did, as it says (RFC 3339).
    pub cosigned_at: Option<String>,
    /// Why it did not cosign the newest head that it was asked about.
    pub trouble: Option<String>,
}

/// A trail in the authority's fleet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FleetStatus {
    /// Its place in the fleet's log, once it is registered.
    pub entry: Option<u64>,
    /// Blocks under the newest head that was taken since the start.
    pub size: u64,
    /// When it was (RFC 3339).
    pub sent_at: Option<String>,
    /// Why nothing is taken, or what the authority holds against the trail.
    pub trouble: Option<String>,
}

/// How a source is going.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceState {
    /// Not there yet.
    #[default]
    Starting,
    /// Rows that were there before are being written.
    Baseline,
    /// All is well.
    Guarding,
    /// The database cannot be reached; capture goes on when it can.
    DatabaseUnavailable,
    /// The trail cannot be written; capture goes on when it can.
    TrailUnavailable,
    /// The trail was damaged: a person must look.
    Damaged,
    /// The guardian's thread hangs. It cannot say so itself: whoever shows a status does, by
    /// [`crate::Handle::at_one_step`].
    Stuck,
    /// Stopped.
    Stopped,
}

/// Rows that were there before they were guarded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BaselineStatus {
    /// Rows that were read since this start; those that have their line are passed over.
    pub rows: u64,
    /// About how many there are in all; null if the database does not say.
    pub about: Option<u64>,
}

impl SourceState {
    /// What it means, in a few words for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Starting => "guarding is starting",
            Self::Baseline => "the records that were there before are being written down",
            Self::Guarding => "guarding",
            Self::DatabaseUnavailable => "the database cannot be reached",
            Self::TrailUnavailable => "the trail cannot be written",
            Self::Damaged => "the trail on disk is damaged",
            Self::Stuck => "the guardian hangs: nobody is guarding this source",
            Self::Stopped => "nobody is guarding this source",
        }
    }
}

/// A step that is under way for so long does not end by itself: whoever waits for the
/// database gives up sooner.
const STUCK: Duration = Duration::from_secs(120);

/// How long it takes from a change to its seal.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    /// Half of the events are faster, in milliseconds.
    pub p50: u64,
    /// All but one in a hundred are faster, in milliseconds.
    pub p99: u64,
}

/// One block on the status page.
#[derive(Debug, Clone, Serialize)]
pub struct BlockStatus {
    /// Its number.
    pub block: u64,
    /// Lines in it.
    pub lines: u64,
    /// When it was sealed (RFC 3339); `None` while it waits.
    pub sealed_at: Option<String>,
}

/// One finding, as scripts read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FindingStatus {
    /// Stable code.
    pub code: String,
    /// Table, if it concerns one.
    pub table: Option<String>,
    /// Key of the record, in clear.
    pub key: Option<String>,
    /// Columns that differ or changed.
    pub columns: Vec<String>,
    /// When it was found (RFC 3339).
    pub at: String,
    /// The same, in microseconds since 1970.
    pub found_at_us: u64,
    /// One sentence.
    pub text: String,
    /// False once a later scan no longer finds it, or somebody answers for it.
    pub open: bool,
    /// Its own line in the trail.
    pub line: Option<u64>,
    /// Who answers for it, if somebody does.
    pub accepted: Option<AcceptedStatus>,
}

impl FindingStatus {
    /// Whether somebody could answer for it now.
    pub fn can_be_accepted(&self) -> bool {
        let known = Code::ALL.iter().find(|code| code.as_str() == self.code);
        self.open && self.line.is_some() && known.is_some_and(|code| can_accept(*code).is_ok())
    }
}

/// Findings of one code and table that are not listed; the trail has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MoreStatus {
    /// Stable code.
    pub code: String,
    /// Table, if they concern one.
    pub table: Option<String>,
    /// Those that are open.
    pub open: u64,
    /// Those that are not.
    pub earlier: u64,
    /// Those that are open have lines from here on.
    pub first_line: Option<u64>,
    /// And up to here.
    pub last_line: Option<u64>,
}

/// A table that a scan could not read to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnreadStatus {
    /// Its name.
    pub table: String,
    /// Why, and what to do.
    pub why: String,
}

/// Somebody has looked into a finding and answers for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AcceptedStatus {
    /// The line of the trail that says so.
    pub line: u64,
    /// When (RFC 3339).
    pub at: String,
    /// Who; null if the vault does not open it any more.
    pub by: Option<String>,
    /// Why; null if the vault does not open it any more.
    pub reason: Option<String>,
}

/// Deliveries of one source's findings to one receiver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AlertStatus {
    /// Scheme and host of its address, and a digest of the whole.
    pub endpoint: String,
    /// Messages delivered since the start.
    pub delivered: u64,
    /// Attempts that failed since the start.
    pub failed: u64,
    /// Messages that are due and not delivered.
    pub waiting: u64,
    /// Why nothing is delivered, once that has lasted a while.
    pub trouble: Option<String>,
}
