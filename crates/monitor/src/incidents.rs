//! Incidents: findings and their lives. Known in full are the newest of each code and
//! table; the others are counted, and the trail has their lines.

use crate::finding::{Finding, NotAccepted, can_accept, can_close};
use crate::newest::{KEPT, Keep, Kind, More, Newest};
use crate::rows::{Lines, Rows};
use pitser_evidence::Code;
use std::collections::{BTreeMap, BTreeSet};

/// An incident: a finding and its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incident {
    /// What was found.
    pub finding: Finding,
    /// When it was first found, in microseconds since 1970.
    pub found_at: u64,
    /// The finding's own trail line.
    pub line: u64,
    /// False once a later check no longer finds it, or somebody answers for it.
    pub open: bool,
    /// Who answers for it, if somebody does.
    pub accepted: Option<Accepted>,
    /// It was found since the newest scan began.
    is_met: bool,
}

/// Somebody has looked into a finding and answers for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The acceptance's own trail line.
    pub line: u64,
    /// When, in microseconds since 1970.
    pub at: u64,
    /// Who; `None` if that cannot be opened any more.
    pub by: Option<String>,
    /// Why; `None` if that cannot be opened any more.
    pub reason: Option<String>,
}

impl Incident {
    fn open(finding: Finding, found_at: u64, line: u64) -> Self {
        Self {
            finding,
            found_at,
            line,
            open: true,
            accepted: None,
            is_met: true,
        }
    }

    fn accepted(finding: Finding, found_at: u64, line: u64, by: Accepted) -> Self {
        Self {
            open: false,
            accepted: Some(by),
            ..Self::open(finding, found_at, line)
        }
    }
}

impl Keep for Incident {
    fn weight(&self) -> usize {
        let columns: usize = self.finding.columns.iter().map(String::len).sum();
        BASE + columns + self.finding.text.len()
    }

    fn may_go(&self) -> bool {
        self.finding.may_be_counted()
    }
}

/// What an incident takes besides its texts, about.
const BASE: usize = 400;

/// Whether a finding belongs into the trail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noted {
    /// It is new.
    New,
    /// The trail tells of it already.
    Known,
    /// Only its record's list in the trail can say.
    Ask,
}

/// All incidents of a source.
#[derive(Debug, Default)]
pub struct Incidents {
    newest: Newest<Incident>,
    /// Findings of rows that are only counted, by [`Finding::brief`]. After a start they
    /// are fewer than are counted, until a scan has looked.
    rows: BTreeMap<Kind, Rows>,
}

impl Incidents {
    /// Those that the trail tells of.
    pub fn new(newest: Newest<Incident>) -> Self {
        Self {
            newest,
            rows: BTreeMap::new(),
        }
    }

    /// A scan begins: what is not noted or found from now on is not found again.
    pub fn begin_scan(&mut self) {
        for incident in self.newest.all_open_mut() {
            incident.is_met = false;
        }
        self.rows.values_mut().for_each(Rows::begin);
    }

    /// Looks whether something that is found now is new.
    pub fn note(&mut self, finding: &Finding) -> Noted {
        let kind = finding.kind();
        let mut open = self.newest.open_of_mut(&kind);
        if let Some(incident) = open.find(|it| it.finding.is_same(finding)) {
            // Of an event, which may be told again after a start, the trail alone says what may
            // be shown: somebody may have been erased.
            if !finding.is_event() {
                let key = &mut incident.finding.key;
                *key = key.take().or_else(|| finding.key.clone());
            }
            incident.is_met = true;
            return Noted::Known;
        }
        drop(open);
        // The same event is not found anew because somebody answered for it.
        let mut earlier = self.newest.earlier_of(&kind).map(|(_, it)| it);
        if finding.is_event() && earlier.any(|it| it.finding.is_same(finding)) {
            return Noted::Known;
        }
        if !finding.is_of_row() {
            return Noted::New;
        }
        let mut known = 0;
        if let Some(rows) = self.rows.get_mut(&kind) {
            if rows.meet(finding.brief()) {
                return Noted::Known;
            }
            known = rows.len();
        }
        match self.newest.more_than(&kind).open > known as u64 {
            true => Noted::Ask,
            false => Noted::New,
        }
    }

    /// A finding that is new has trail line `line`.
    pub fn found(&mut self, finding: Finding, found_at: u64, line: u64) {
        let kind = finding.kind();
        self.newest
            .replace(&kind, |it| it.finding.is_same(&finding));
        let incident = Incident::open(finding, found_at, line);
        let counted = self.newest.open(&kind, line, incident);
        self.remember(counted);
    }

    /// A finding of a row, after [`Noted::Ask`], was in the trail already.
    pub fn found_again(&mut self, finding: &Finding, line: u64) {
        let rows = self.rows.entry(finding.kind()).or_default();
        rows.insert(finding.brief(), line, true);
    }

    /// Whether the finding of trail line `line` may be accepted now; `None` if it is not
    /// kept, and the trail has to be asked.
    ///
    /// # Errors
    /// [`NotAccepted`].
    pub fn may_accept(&self, line: u64) -> Option<Result<(), NotAccepted>> {
        let (_, incident, is_open) = self.newest.get(line)?;
        Some(match &incident.accepted {
            Some(accepted) => Err(NotAccepted::Before(Some(accepted.line))),
            None if !is_open => Err(NotAccepted::Closed),
            None => can_accept(incident.finding.code),
        })
    }

    /// Adds one that was accepted earlier.
    pub fn accepted(&mut self, finding: Finding, found_at: u64, line: u64, by: Accepted) {
        let kind = finding.kind();
        let incident = Incident::accepted(finding, found_at, line, by);
        self.newest.put_earlier(&kind, line, incident);
    }

    /// The finding of trail line `line` is accepted by a line of the trail: it is open
    /// no more. `false` if it is not kept.
    pub fn accept(&mut self, line: u64, accepted: &Accepted) -> bool {
        self.newest.end(line, |incident| {
            incident.open = false;
            incident.accepted = Some(accepted.clone());
        })
    }

    /// The same for a finding that was only counted, as its line tells it.
    pub fn accept_counted(&mut self, finding: Finding, found_at: u64, line: u64, by: Accepted) {
        let kind = finding.kind();
        let incident = Incident::accepted(finding, found_at, line, by);
        self.newest.end_counted(&kind, line, Some(incident));
    }

    /// After a scan: whatever was not found again in the tables that it could read is
    /// closed. Gives lines of others that are open and only counted, for which there is
    /// room again; [`Incidents::show`] is to be told of them.
    pub fn settle(&mut self, is_judged: impl Fn(&str) -> bool) -> Vec<u64> {
        let is_settled =
            |(code, table): &Kind| can_close(*code) && table.as_deref().is_some_and(&is_judged);
        let mut closed = Vec::new();
        for (kind, line, incident) in self.newest.all_open() {
            if is_settled(kind) && !incident.is_met {
                closed.push(line);
            }
        }
        for line in closed {
            self.newest.end(line, |incident| incident.open = false);
        }
        let counted = self.newest.more().map(|(kind, _)| kind);
        let kinds: Vec<Kind> = counted.filter(|kind| is_settled(kind)).cloned().collect();
        let mut wanted = Vec::new();
        for kind in kinds {
            let rows = self.rows.entry(kind.clone()).or_default();
            rows.retain_met();
            self.newest.end_all_but(&kind, rows.lines());
            if self.newest.has_room(&kind) {
                let mut last = BTreeSet::new();
                for line in rows.lines() {
                    last.insert(line);
                    if last.len() > KEPT / 2 {
                        last.pop_first();
                    }
                }
                wanted.extend(last.into_iter().rev());
            }
            if rows.is_empty() {
                self.rows.remove(&kind);
            }
        }
        wanted
    }

    /// Whether the finding of a line is kept, open or not.
    pub fn is_kept(&self, line: u64) -> bool {
        self.newest.get(line).is_some()
    }

    /// Whether any finding of this kind is open.
    pub fn has_open(&self, kind: &Kind) -> bool {
        self.newest.open_of(kind).next().is_some() || self.newest.more_than(kind).open > 0
    }

    /// Whether the finding of a line, which is of this kind, is open: of one that is only
    /// counted, also if it may be, before a scan has looked after a start.
    pub fn is_open(&self, kind: &Kind, line: u64) -> bool {
        if let Some((_, _, is_open)) = self.newest.get(line) {
            return is_open;
        }
        let rows = self.rows.get(kind);
        let known = rows.map_or(0, Rows::len) as u64;
        rows.is_some_and(|rows| rows.lines().any(|it| it == line))
            || self.newest.more_than(kind).open > known
    }

    /// Of one kind that is no longer kept in full, and of which there is room for some
    /// that are only counted: where the trail is to be read backwards from.
    pub fn wanted(&self) -> Option<(Kind, u64)> {
        let mut more = self.newest.more();
        let wanted = more
            .find(|(kind, more)| more.open > 0 && !can_close(kind.0) && self.newest.has_room(kind));
        wanted.map(|(kind, more)| (kind.clone(), more.last))
    }

    /// The trail was read backwards up to `line`, where no finding of that kind is that
    /// is still only counted.
    pub fn passed(&mut self, kind: &Kind, line: u64) {
        self.newest.passed(kind, line);
    }

    /// Keeps an open finding that was only counted, as its line tells it.
    pub fn show(&mut self, finding: Finding, found_at: u64, line: u64) {
        let kind = finding.kind();
        if let Some(rows) = self.rows.get_mut(&kind) {
            rows.remove(finding.brief());
        }
        let incident = Incident::open(finding, found_at, line);
        let counted = self.newest.show(&kind, line, incident);
        self.remember(counted);
    }

    /// Those that are kept, open and not, in the order in which they were found.
    pub fn kept(&self) -> Vec<&Incident> {
        let (open, earlier) = (self.newest.all_open(), self.newest.all_earlier());
        let mut all: Vec<_> = open.chain(earlier).map(|(_, _, it)| it).collect();
        all.sort_by_key(|incident| (incident.found_at, incident.line));
        all
    }

    /// How many of each code and table are only counted.
    pub fn more(&self) -> impl Iterator<Item = (&Kind, &More)> {
        self.newest.more()
    }

    /// The first and the last line of the open findings of the kinds that `is_wanted`.
    pub fn open_between(&self, is_wanted: impl Fn(&Kind) -> bool) -> Option<(u64, u64)> {
        let kept = self.newest.all_open().filter(|(kind, ..)| is_wanted(kind));
        let kept = kept.map(|(_, line, _)| (line, line));
        let more = self
            .newest
            .more()
            .filter(|(kind, more)| more.open > 0 && is_wanted(kind));
        let more = more.map(|(_, more)| (more.first, more.last));
        kept.chain(more)
            .reduce(|one, other| (one.0.min(other.0), one.1.max(other.1)))
    }

    /// How many are open of these codes.
    pub fn open(&self, codes: &[Code]) -> u64 {
        let is_it = |kind: &Kind| codes.contains(&kind.0);
        let kept = self.newest.all_open().filter(|(kind, ..)| is_it(kind));
        let more = self.newest.more().filter(|(kind, _)| is_it(kind));
        kept.count() as u64 + more.map(|(_, more)| more.open).sum::<u64>()
    }

    /// Lines of findings of rows that are open and only counted.
    pub fn counted_rows(&self) -> Lines {
        self.rows.values().flat_map(Rows::lines).collect()
    }

    /// Remembers rows whose incidents are only counted from now on.
    fn remember(&mut self, counted: Vec<(Kind, u64, Incident)>) {
        for (kind, line, incident) in counted {
            if incident.finding.is_of_row() {
                let rows = self.rows.entry(kind).or_default();
                rows.insert(incident.finding.brief(), line, incident.is_met);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pitser_capture::{Cell, Key};
    use pitser_evidence::codec::Bytes32;

    impl Incidents {
        /// As a guardian does it: a new one gets a line.
        fn tell(&mut self, finding: &Finding, line: u64) -> bool {
            let is_new = self.note(finding) == Noted::New;
            if is_new {
                self.found(finding.clone(), line, line);
            }
            is_new
        }

        fn scanned(&mut self, findings: &[Finding]) -> Vec<u64> {
            self.begin_scan();
            for finding in findings {
                assert_eq!(self.note(finding), Noted::Known);
            }
            self.settle(|_| true)
        }
    }

    fn finding(code: Code, about: u64) -> Finding {
        Finding {
            table: Some("entry".into()),
            about: Some(about),
            record: Some(Bytes32([1; 32])),
            ..Finding::general(code, "x")
        }
    }

    /// A wrong row, each of another record.
    fn row(number: u64) -> Finding {
        let mut record = [0; 32];
        record[..8].copy_from_slice(&number.to_be_bytes());
        Finding {
            record: Some(Bytes32(record)),
            ..finding(Code::RowDiffers, 4)
        }
    }

    fn accepted(line: u64) -> Accepted {
        Accepted {
            line,
            at: 9,
            by: Some("Mari Maasikas".into()),
            reason: Some("the nightly import".into()),
        }
    }

    #[test]
    fn a_wrong_row_is_one_incident_until_it_is_mended() {
        let mut incidents = Incidents::default();
        let wrong = finding(Code::RowDiffers, 4);
        assert!(incidents.tell(&wrong, 1));
        assert!(!incidents.tell(&wrong, 2));
        incidents.scanned(std::slice::from_ref(&wrong));
        assert!(incidents.kept()[0].open);
        incidents.scanned(&[]);
        assert!(!incidents.kept()[0].open);
        assert!(
            incidents.tell(&wrong, 3),
            "a mended row that is wrong again is a new incident"
        );
        assert_eq!(incidents.kept().len(), 1, "in the place of the one before");
    }

    #[test]
    fn an_accepted_event_stays_accepted_and_the_next_one_is_new() {
        let mut incidents = Incidents::default();
        let first = finding(Code::Unattributed, 4);
        assert_eq!(incidents.may_accept(5), None);
        assert!(incidents.tell(&first, 5));
        assert_eq!(incidents.may_accept(5), Some(Ok(())));
        assert!(incidents.accept(5, &accepted(6)));
        assert!(!incidents.kept()[0].open);
        let before = NotAccepted::Before(Some(6));
        assert_eq!(incidents.may_accept(5), Some(Err(before)));
        assert!(!incidents.accept(5, &accepted(7)));
        let by = incidents.kept()[0].accepted.as_ref().map(|it| it.line);
        assert_eq!(by, Some(6));
        assert!(!incidents.tell(&first, 8), "it is the same event");
        assert!(incidents.tell(&finding(Code::Unattributed, 8), 9));
        let clocks = Finding::general(Code::ClockDisagrees, "x");
        assert!(incidents.tell(&clocks, 10));
        incidents.accept(10, &accepted(11));
        assert!(
            incidents.tell(&clocks, 12),
            "what has no event of its own is found again"
        );
    }

    #[test]
    fn nobody_answers_for_a_row_that_is_wrong_or_for_the_trail() {
        for code in Code::ALL {
            let mut incidents = Incidents::default();
            assert!(incidents.tell(&finding(*code, 4), 5));
            let may = incidents.may_accept(5).unwrap().is_ok();
            let code = code.as_str();
            let is_event = ["ACT-", "CAP-"].iter().any(|area| code.starts_with(area))
                || ["ROW-04", "SEAL-01", "CLK-01"].contains(&code);
            assert_eq!(may, is_event, "{code}");
        }
        let mut incidents = Incidents::default();
        incidents.tell(&finding(Code::RowDiffers, 4), 5);
        incidents.scanned(&[]);
        assert_eq!(incidents.may_accept(5), Some(Err(NotAccepted::Closed)));
    }

    #[test]
    fn each_unattributed_change_is_an_incident_that_scans_do_not_close() {
        let mut incidents = Incidents::default();
        assert!(incidents.tell(&finding(Code::Unattributed, 4), 5));
        assert!(incidents.tell(&finding(Code::Unattributed, 6), 7));
        incidents.scanned(&[]);
        assert!(incidents.kept().iter().all(|incident| incident.open));
    }

    #[test]
    fn only_tables_that_were_read_are_settled() {
        let mut incidents = Incidents::default();
        assert!(incidents.tell(&row(1), 5));
        let other = Finding {
            table: Some("other".into()),
            ..row(1)
        };
        assert!(incidents.tell(&other, 6));
        incidents.begin_scan();
        incidents.settle(|table| table != "other");
        let open: Vec<u64> = incidents
            .kept()
            .iter()
            .filter(|it| it.open)
            .map(|it| it.line)
            .collect();
        assert_eq!(open, [6]);
    }

    /// A transaction that is told again after an erasure brings nobody's key back.
    #[test]
    fn an_event_that_is_told_again_shows_what_the_trail_shows() {
        let mut incidents = Incidents::default();
        let told = |key| Finding {
            about: Some(5),
            key,
            ..Finding::general(Code::Unattributed, "update without an attributed actor")
        };
        assert!(incidents.tell(&told(None), 10));
        let key = Key::new(vec![Cell::new(b"t1")]);
        assert_eq!(incidents.note(&told(Some(key))), Noted::Known);
        assert_eq!(incidents.kept()[0].finding.key, None);
    }

    /// The authority is away on Monday, and again on Friday.
    #[test]
    fn blocks_that_are_unsealed_are_told_of_each_outage() {
        let mut incidents = Incidents::default();
        let unsealed = |first_line| Finding {
            about: Some(first_line),
            ..Finding::general(Code::Unsealed, "the authority does not answer")
        };
        assert!(incidents.tell(&unsealed(5), 10));
        assert_eq!(incidents.note(&unsealed(5)), Noted::Known);
        assert!(incidents.tell(&unsealed(90), 100));
        assert_eq!(incidents.open(&[Code::Unsealed]), 2);
        // As long as it lasts, nobody can answer for it in advance.
        let by = Accepted {
            line: 101,
            at: 0,
            by: None,
            reason: None,
        };
        assert!(incidents.accept(100, &by));
        assert_eq!(incidents.note(&unsealed(90)), Noted::New);
    }

    /// Far more than are kept: each is told once, the count is exact, and what was
    /// mended is closed, whether it is kept or not.
    #[test]
    fn rows_that_are_only_counted_are_known_and_closed_as_others_are() {
        let mut incidents = Incidents::default();
        let wrong: Vec<Finding> = (1..=1000).map(row).collect();
        for (line, finding) in (1..).zip(&wrong) {
            assert!(incidents.tell(finding, line));
        }
        assert_eq!(incidents.scanned(&wrong), [0; 0]);
        for finding in &wrong {
            assert_eq!(incidents.note(finding), Noted::Known);
        }
        assert_eq!(incidents.open(&[Code::RowDiffers]), 1000);
        assert_eq!(incidents.kept().len(), KEPT);
        // The first 300 and the last 150 are mended.
        let wanted = incidents.scanned(&wrong[300..850]);
        assert_eq!(incidents.open(&[Code::RowDiffers]), 550);
        // Those are earlier ones, whether they were kept or not.
        let more = incidents.newest.more_than(&wrong[0].kind());
        assert_eq!((more.open, more.earlier), (500, 400));
        assert_eq!(incidents.kept().len(), 100);
        // There is room again, for the newest of those that are counted.
        assert_eq!(wanted.first(), Some(&800));
        for line in wanted {
            let finding = wrong[usize::try_from(line).unwrap() - 1].clone();
            incidents.show(finding, line, line);
        }
        assert_eq!(incidents.open(&[Code::RowDiffers]), 550);
        assert!(incidents.kept().iter().any(|it| it.open && it.line == 800));
        // One that was only counted, and mended, is a new incident.
        assert!(incidents.tell(&wrong[0], 2000));
        assert_eq!(incidents.counted_rows().count(), 400);
    }

    /// After a start the trail alone says which of those that are counted are which.
    #[test]
    fn after_a_start_the_trail_is_asked_until_a_scan_has_looked() {
        let mut newest = Newest::default();
        let more = More {
            open: 3,
            earlier: 0,
            first: 1,
            last: 9,
        };
        newest.set_more(row(1).kind(), more);
        let mut incidents = Incidents::new(newest);
        assert_eq!(incidents.note(&row(1)), Noted::Ask);
        incidents.found_again(&row(1), 7);
        assert_eq!(incidents.note(&row(1)), Noted::Known);
        assert_eq!(incidents.open(&[Code::RowDiffers]), 3);
        assert_eq!(incidents.scanned(&[row(1)]), [7]);
        assert_eq!(incidents.open(&[Code::RowDiffers]), 1);
        assert_eq!(incidents.newest.more_than(&row(1).kind()).earlier, 2);
        incidents.scanned(&[]);
        let more = incidents.newest.more_than(&row(1).kind());
        assert_eq!((more.open, more.earlier), (0, 3));
        assert_eq!(incidents.note(&row(2)), Noted::New);
    }
}
