//! One stretch of guarding between two failures: opening, waiting, deciding what is due.

use super::accept::patient_id;
use super::rekey::Rekeyed;
use super::rules::Rules;
use super::transaction::Transaction;
use super::{
    Collected, Command, Due, Ended, FORGOTTEN, Heads, POLL, POSITION, SECOND_US, Session,
    StartError, SubmitError, Waiting, Worker,
};
use crate::config::Tuning;
use crate::init::{self, InitError};
use crate::patients::Owner;
use crate::sealer::Wanted;
use pitser_capture::{Cell, Position, Row};
use pitser_evidence::codec::{Bytes32, Digest};
use pitser_evidence::line::Patient;
use pitser_monitor::Sealed;
use pitser_trail::{PatientId, Trail, TrailError};
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

/// What somebody is told who wanted everything to be taken first.
pub(super) const NOT_ALL_TAKEN: &str = "the database is slow to tell what was committed before: nothing is done \
    until all of that is in the trail. Try again in a minute; `pitser guard status` says how far it is behind";
/// How long a stream may take to tell what was committed, in microseconds.
const PATIENCE_US: u64 = 10 * SECOND_US;

impl Session {
    pub(super) fn open(worker: &mut Worker) -> Result<Self, StartError> {
        let parts = &worker.parts;
        let mut source = init::open_guarded(&parts.source)?;
        // Whoever stands by reads and writes nothing before the other one ends.
        source.free()?;
        let layout = parts.tuning.layout(&parts.source);
        let (mut trail, mut collected, recovery) = Trail::open::<Collected>(layout)?;
        if recovery != pitser_trail::Recovery::default() {
            tracing::warn!(source = %parts.source.name, ?recovery, "the trail's end was mended after a crash");
        }
        trail.set_segment_limits(parts.tuning.segments);
        init::check_identity(&source.identity()?, trail.genesis(), &parts.source)?;
        let Rules {
            patients,
            actors,
            unfit,
            ..
        } = Rules::of_trail(&parts.source, source.shapes(), trail.layout())?;
        worker
            .publish
            .send_modify(|s| s.mapping = patients.mapping());
        let now = (parts.clock)();
        let told = collected.position.or(collected.genesis_position);
        let told = told.ok_or_else(|| InitError::NoPosition(parts.source.name.clone()))?;
        let kept = |name: &str| -> Option<Position> {
            let text = std::fs::read_to_string(trail.layout().dir().join(name)).ok()?;
            text.trim_end().parse().ok()
        };
        if let Some(upto) = kept(FORGOTTEN) {
            source.has_forgotten(upto);
        }
        let kept = kept(POSITION);
        let position = kept.map_or(told, |kept: Position| kept.max(told));
        let mut session = Self {
            unfit,
            mapping: Digest::of(&[patients.mapping().as_bytes()]),
            fingerprint: source.fingerprint()?,
            more: false,
            unshown: false,
            heads: Heads::default(),
            incidents: super::findings::incidents(&mut trail, &mut collected)?,
            logged: super::Logged::default(),
            counted_rows: Arc::default(),
            position,
            kept: position,
            unbaselined: Vec::new(),
            reading: None,
            aside: HashSet::new(),
            baselined: None,
            is_new: !collected.first.is_empty(),
            gone: collected.gone,
            begun: Vec::new(),
            sealed: collected.fingerprint,
            newest_tx: collected.newest_tx,
            is_consulting: false,
            is_in_danger: false,
            live: collected.live,
            rekeyed: Rekeyed::new(),
            rekeyed_again: HashSet::new(),
            columns: super::columns::remembered(trail.layout()),
            asked: None,
            asked_keys: None,
            unread: None,
            untold: HashSet::new(),
            unguarded: BTreeSet::new(),
            events: collected.events,
            copies: HashMap::new(),
            open: Transaction::after(collected.written),
            committed_at: None,
            is_ahead: false,
            waiting: VecDeque::new(),
            open_times: Vec::new(),
            latencies: VecDeque::new(),
            recent: VecDeque::new(),
            settling: Vec::new(),
            closed_at: now,
            opened_at: now,
            closing_us: 0,
            ack_due: None,
            forgotten: None,
            scan_due: false,
            scan_after: None,
            scanning: None,
            scan_replies: Vec::new(),
            postponed: Vec::new(),
            next: Due {
                seen: now,
                close: 0,
                scan: 0,
                fingerprint: now + SECOND_US,
                word: 0,
                cosign: now,
                commit: now,
                progress: 0,
                more: 0,
            },
            has_begun: false,
            word_refused: false,
            source,
            trail,
            queue: super::Queue::default(),
            patients,
            actors,
        };
        if session.source.is_stream() {
            session.pass_over(worker);
            // From here on nobody else can.
            session.begun = session.source.poll(session.position, 0)?;
        }
        session.next.close = session.close_time(&worker.parts.tuning, now);
        session.next.scan = session.scan_time(&worker.parts.tuning, now);
        session.unbaselined = session.lacking();
        session.rekeyed = session.remembered_keys();
        // What happened before this session is not known.
        session.rekeyed_again = session.rekeyed.keys().cloned().collect();
        session.scan_due = session.unbaselined.is_empty();
        session.learn_owners()?;
        for block in session.trail.unsealed() {
            let wanted = Wanted::of(&session.trail, block);
            // Only the oldest is asked for how long it waits, and the others are younger.
            let closed_at = match session.waiting.is_empty() {
                true => session.trail.line(block.first_seq + block.count - 1)?,
                false => None,
            };
            let closed_at = closed_at.map(|line| line.at.micros());
            session.waiting.push_back(Waiting {
                block: block.block,
                since: closed_at.map_or(now, |at| at.min(now)),
                times: Vec::new(),
            });
            worker.seals.as_ref().map(|seals| seals.send(wanted));
        }
        session.recall_head(worker);
        session.show(worker);
        Ok(session)
    }

    /// Records that other tables find their patients and people through, from
    /// the vault.
    pub(super) fn learn_owners(&mut self) -> Result<(), StartError> {
        let shapes = self.source.shapes().iter().map(|shape| shape.name.clone());
        let mut targets: Vec<String> = shapes
            .filter(|table| self.patients.is_target(table) || self.actors.is_lookup(table))
            .collect();
        targets.sort_by_key(|table| self.patients.steps(table));
        for table in targets {
            let records = self
                .trail
                .state()
                .records(&table, |record, leaf| leaf.row.is_some().then_some(*record));
            let known: Vec<Bytes32> = records.map_err(TrailError::from)?;
            for record in known {
                let sealed = Sealed::of(&mut self.trail, &table, &record)?;
                let content = sealed.map(|sealed| sealed.content);
                let row = content.as_ref().and_then(|content| content.row.as_ref());
                let owner = self.owner(&table, &record, row)?;
                let Some([cell]) = content.as_ref().and_then(|it| it.key.as_deref()) else {
                    let key = || self.trail.keys().table(&table);
                    self.patients.learn_closed(&table, key, record, owner);
                    continue;
                };
                self.patients.learn(&table, cell, owner);
                self.actors.learn(&table, cell, |label| {
                    let mut row = row.into_iter().flat_map(pitser_trail::Row::iter);
                    let (_, value) = row.find(|(name, _)| *name == label)?;
                    crate::patients::identifier(value?)
                });
            }
        }
        Ok(())
    }

    /// Whose a record is by the trail. If that could not be told when its line was
    /// written, it may follow from the row that the vault has.
    fn owner(
        &mut self,
        table: &str,
        record: &Bytes32,
        row: Option<&pitser_trail::Row>,
    ) -> Result<Owner, TrailError> {
        let known = self.trail.state().record(table, record)?;
        let known = known.and_then(|record| record.patient);
        if let (Some(Patient::Unknown), Some(row)) = (known, row) {
            let row = Row {
                columns: Arc::clone(&row.names),
                cells: row.iter().map(|(_, value)| Cell::from(value)).collect(),
            };
            return Ok(self.patients.of(table, &row));
        }
        let is_nobodys = known.is_none();
        Ok(match patient_id(&mut self.trail, known)? {
            Some(PatientId::Id(id)) => Owner::Patient(id),
            Some(PatientId::Pseudonym(pseudonym)) => Owner::Pseudonym(pseudonym),
            None if is_nobodys => Owner::Nobody,
            // Erased, or never known.
            None | Some(PatientId::Erased(_) | PatientId::Many | PatientId::Unknown) => {
                Owner::Unknown
            }
        })
    }

    /// Begins to write, after everything that speaks against it was looked at.
    pub(super) fn begin(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        if worker.stood_by {
            self.consult(worker)?;
            worker.stood_by = false;
        }
        let sealed = self.sealed.take();
        self.compare_fingerprint(worker, sealed)?;
        self.tell_unfit(worker)?;
        self.compare_age(worker)
    }

    pub(super) fn run(&mut self, worker: &mut Worker) -> Ended {
        let Err(ended) = self.guard(worker);
        self.log_counted(worker, u64::MAX);
        ended
    }

    fn guard(&mut self, worker: &mut Worker) -> Result<Infallible, Ended> {
        worker.pulse.beat((worker.parts.clock)());
        self.begin(worker)?;
        self.has_begun = true;
        self.show(worker);
        if !self.begun.is_empty() {
            // Before anything that the rows show: it may say that we are ahead of them.
            self.capture(worker)?;
        }
        self.baseline(worker)?;
        self.accused(worker)?;
        loop {
            self.turn(worker)?;
            // Tables may come to be guarded meanwhile.
            self.baseline(worker)?;
        }
    }

    /// Waits for the next thing to do, and does it.
    pub(super) fn turn(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        let now = (worker.parts.clock)();
        let due = self.next.close.saturating_sub(now);
        let wait = if self.more {
            Duration::ZERO
        } else {
            POLL.min(Duration::from_micros(due))
        };
        match worker.inbox.recv_timeout(wait) {
            Ok(command) => {
                self.command(worker, command)?;
                while let Ok(more) = worker.inbox.try_recv() {
                    self.command(worker, more)?;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(Ended::Stopped(None)),
        }
        self.capture(worker)?;
        self.regular(worker)
    }

    /// Takes everything that was committed so far, and has it sealed and
    /// cosigned, if that is done in time.
    fn finish(&mut self, worker: &mut Worker, patience: Duration) -> Result<(), Ended> {
        if let Err(Ended::Failed(error)) = self.capture_all(worker) {
            // What is in the trail can be sealed all the same.
            tracing::warn!(source = %worker.parts.source.name, error = error.words(), "stopping before everything was taken");
        }
        if self.trail.open_lines() > 0 {
            self.close(worker)?;
        }
        let until = std::time::Instant::now() + patience;
        while self.trail.unsealed().next().is_some() {
            let left = until.saturating_duration_since(std::time::Instant::now());
            match worker.inbox.recv_timeout(left) {
                Ok(Command::Seal(outcome)) => self.seal(worker, outcome)?,
                Ok(Command::Cosigned { witness, answer }) => self.heard(worker, witness, answer)?,
                Ok(_) => {}
                Err(_) => return Ok(()),
            }
        }
        if patience.is_zero() {
            return Ok(());
        }
        self.cosign(worker)?;
        while !self.is_head_decided() {
            let left = until.saturating_duration_since(std::time::Instant::now());
            match worker.inbox.recv_timeout(left) {
                Ok(Command::Cosigned { witness, answer }) => self.heard(worker, witness, answer)?,
                Ok(_) => {}
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    /// Takes everything that was committed so far, however much it is; what is
    /// committed meanwhile can wait, or there might be no end to it. `false` if the
    /// database is slow to tell all of it.
    pub(super) fn capture_all(&mut self, worker: &mut Worker) -> Result<bool, Ended> {
        let newest = self.source.newest()?;
        let until = (worker.parts.clock)() + PATIENCE_US;
        self.capture(worker)?;
        while self.position < newest && (self.more || self.source.is_stream()) {
            if (worker.parts.clock)() > until && !self.more {
                tracing::warn!(source = %worker.parts.source.name, "the stream is slow to tell what was committed");
                break;
            }
            self.capture(worker)?;
            self.regular(worker)?;
        }
        self.commit(worker)?;
        Ok(self.position >= newest)
    }

    pub(super) fn regular(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        let tuning = worker.parts.tuning.clone();
        let now = (worker.parts.clock)();
        worker.pulse.beat(now);
        self.look_at_clock(now);
        if now >= self.next.fingerprint {
            self.next.fingerprint = now + SECOND_US;
            self.compare_fingerprint(worker, None)?;
            self.notice_unguarded(worker)?;
            self.notice_backlog(worker)?;
            if worker.outage.is_some() {
                // It lasts, and may be shown by now.
                self.show(worker);
            }
            if now >= self.next.word {
                self.renew_word(worker)?;
            }
        }
        // Rows that have no line yet are not unknown ones.
        if self.scanning.is_none()
            && self.unbaselined.is_empty()
            && !self.is_rekeying()
            && (self.scan_due || now >= self.next.scan || !self.scan_replies.is_empty())
            && self.has_caught_up()?
        {
            self.scan_due = false;
            self.next.scan = self.scan_time(&tuning, now);
            self.start_scan(worker)?;
        }
        self.judge_scan(worker)?;
        self.log_counted(worker, now);
        if !self.more && now >= self.next.more {
            self.show_more(worker, now)?;
        }
        self.acknowledge()?;
        if now >= self.next.close {
            self.next.close = self.close_time(&tuning, now);
            let idle =
                now.saturating_sub(self.closed_at) >= tuning.heartbeat_s.saturating_mul(SECOND_US);
            if self.trail.open_lines() > 0 || idle {
                self.close(worker)?;
            } else {
                self.keep_position()?;
            }
        }
        if now >= self.next.cosign {
            self.next.cosign = now + tuning.cosign_every_s.max(1) * SECOND_US;
            self.cosign(worker)?;
        }
        Ok(())
    }

    /// The next instant just before a second ends.
    ///
    /// Early enough for the block to reach the authority in this second, by
    /// how long closing took lately.
    pub(super) fn close_time(&self, tuning: &Tuning, now: u64) -> u64 {
        let before = (tuning.close_before_ms * 1000)
            .max(self.closing_us * 2)
            .min(SECOND_US / 2);
        (now + before) / SECOND_US * SECOND_US + SECOND_US - before
    }

    pub(super) fn scan_time(&self, tuning: &Tuning, now: u64) -> u64 {
        match tuning.scan_every_s {
            0 => u64::MAX,
            every => now + every * SECOND_US,
        }
    }

    pub(super) fn command(&mut self, worker: &mut Worker, command: Command) -> Result<(), Ended> {
        match command {
            // Whoever sent it has gone, and comes again if it matters.
            Command::Submit { reply, .. } if reply.is_closed() => Ok(()),
            Command::Submit { raw, reply, place } => {
                // What was committed before the event was sent comes before it,
                // as far as the source has told it by now.
                let until = (worker.parts.clock)() + SECOND_US;
                while self.capture(worker)? && (worker.parts.clock)() < until {}
                let (answer, ended) = match self.submit(worker, &raw) {
                    Ok(answer) => (answer, Ok(())),
                    Err(ended) => (Err(SubmitError::Unavailable(ended.why())), Err(ended)),
                };
                drop(place);
                let _ = reply.send(answer);
                ended
            }
            Command::Scan { reply } => {
                self.scan_replies.push(reply);
                Ok(())
            }
            Command::Expect {
                pass,
                table,
                records,
                reply,
            } => {
                if self.scanning.as_ref().is_some_and(|p| p.number == pass) {
                    let mut expected = Vec::with_capacity(records.len());
                    for record in &records {
                        expected.push(pitser_monitor::expected(&mut self.trail, &table, record)?);
                    }
                    // A pass that was given up does not wait for the answer.
                    let _ = reply.send(expected);
                }
                Ok(())
            }
            Command::Suspects {
                pass,
                suspects,
                reply,
            } => {
                // Whoever is not waited for gives up.
                let scanning = self.scanning.as_mut().filter(|it| it.number == pass);
                if let Some(scanning) = scanning {
                    scanning.suspects = Some((suspects, reply));
                }
                Ok(())
            }
            Command::Looked { pass, seen } => {
                if self.scanning.as_ref().is_some_and(|p| p.number == pass) {
                    self.looked(worker, pass, seen)?;
                }
                Ok(())
            }
            Command::Settle { reply } => {
                if !self.capture_all(worker)? {
                    let _ = reply.send(Err(NOT_ALL_TAKEN.into()));
                    return Ok(());
                }
                if self.trail.open_lines() > 0 {
                    self.close(worker)?;
                }
                self.settling.push((self.trail.blocks(), reply));
                self.settled(worker)
            }
            Command::Erasure { asked, reply } => self.erasure(worker, &asked, reply),
            Command::Accept { asked, reply } => self.accept(worker, &asked, reply),
            Command::AcceptOf { asked, reply } => self.accept_of(worker, &asked, reply),
            Command::Seal(outcome) => self.seal(worker, outcome),
            Command::Cosigned { witness, answer } => self.heard(worker, witness, answer),
            Command::Fleet(told) => {
                worker.told(told);
                self.accused(worker)
            }
            Command::Accused(code, text) => {
                worker.accuse(code, text);
                self.accused(worker)
            }
            Command::Stop { patience, reply } => {
                if let Err(Ended::Failed(error)) = self.finish(worker, patience) {
                    tracing::warn!(source = %worker.parts.source.name, error = error.words(), "the last block was not finished");
                }
                Err(Ended::Stopped(Some(reply)))
            }
        }
    }
}
