//! Heads, and the witnesses that cosign them.
//!
//! Each witness is asked on a thread of its own, one question at a time, and
//! its answer comes back as a command: capture and sealing wait for nobody. A
//! head is kept as soon as a quorum has cosigned it; lines that come later are
//! added. A new head is not begun before the old one has its quorum, or all
//! witnesses have answered, so that slow ones are heard at all.

use super::{Command, Ended, Session, StartError, Worker};
use crate::status::WitnessStatus;
use pitser_evidence::Code;
use pitser_ksi::time::Second;
use pitser_monitor::Finding;
use pitser_tlog::note::SignatureLine;
use pitser_witness::{Answer, Asker, Ballot, Peer, SubmitError as CosignError};
use std::sync::mpsc::Sender;
use std::time::Duration;
use tokio::sync::oneshot;

/// One witness, and what is shown of it. Outlives sessions.
pub(super) struct Cosigner {
    asker: Asker,
    pub(super) shown: WitnessStatus,
}

/// The newest heads of one session.
#[derive(Default)]
pub(super) struct Heads {
    /// Blocks under the head that was kept last.
    kept: u64,
    /// The newest head that witnesses were asked about.
    open: Option<Ballot>,
    /// Another one is wanted as soon as this one is decided.
    wanted: bool,
    /// Who waits for so many blocks to be cosigned.
    waiting: Vec<(u64, Reply)>,
}

/// How long witnesses have to say what they cosigned last.
const CONSULTATION: Duration = Duration::from_secs(2);

type Reply = oneshot::Sender<Result<u64, String>>;

impl Cosigner {
    /// `number` is what its answers are sent back with.
    pub(super) fn start(
        peer: Peer,
        number: usize,
        commands: Sender<Command>,
    ) -> Result<Self, StartError> {
        let answered = move |answer| {
            let answer = Command::Cosigned {
                witness: number,
                answer,
            };
            commands.send(answer).is_ok()
        };
        let asker = Asker::start(peer, &format!("witness-{number}"), answered)
            .map_err(StartError::Thread)?;
        let shown = WitnessStatus {
            name: asker.name().to_owned(),
            ..WitnessStatus::default()
        };
        Ok(Self { asker, shown })
    }

    /// An answer that nobody can judge now: the trail is not open.
    pub(super) fn forget(&mut self) {
        self.asker.forget();
    }
}

impl Worker {
    /// Shows a head that the quorum has cosigned as the newest one.
    fn show_cosigned(&self, head: &Ballot) {
        let Some(at) = head.cosigned_at() else {
            return;
        };
        self.publish.send_modify(|s| {
            s.witnessed = head.size();
            s.witnessed_at = Some(Second(at).to_string());
        });
    }
}

impl Heads {
    /// Replies to those who wait for no more than `size` blocks.
    fn answer(&mut self, size: u64, reply: &Result<u64, String>) {
        for (_, waiting) in self.waiting.extract_if(.., |(blocks, _)| *blocks <= size) {
            // Whoever waited may be gone.
            let _ = waiting.send(reply.clone());
        }
    }

    fn answer_kept(&mut self) {
        self.answer(self.kept, &Ok(self.kept));
    }
}

impl Session {
    /// Has the newest head cosigned, unless it is, or will be.
    pub(super) fn cosign(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        let size = self.trail.blocks();
        if size == 0 || size == self.heads.kept {
            self.heads.answer_kept();
            return Ok(());
        }
        let quorum = worker.parts.tuning.witness_quorum;
        if let Some(open) = &self.heads.open
            && !open.is_decided()
        {
            self.heads.wanted |= size > open.size();
            return Ok(());
        }
        self.heads.wanted = false;
        let witnesses = worker.cosigners.len();
        let head = self.trail.sign_head();
        worker.report(&head, size);
        self.heads.open = Some(Ballot::new(head, size, witnesses, quorum));
        for witness in 0..worker.cosigners.len() {
            // One that is still busy with an older head is asked when it is back.
            if !worker.cosigners[witness].asker.is_busy() {
                self.ask(worker, witness)?;
            }
        }
        self.decide(worker)
    }

    /// Shows how far the trail was cosigned before this start: whoever waits for witnesses that
    /// do not answer sees for how long they have not.
    pub(super) fn recall_head(&self, worker: &Worker) {
        let Some((note, size)) = self.trail.kept_head() else {
            return;
        };
        let keys = worker.cosigners.iter().map(|c| c.asker.key());
        let kept = Ballot::kept(note, size, keys, worker.parts.tuning.witness_quorum);
        worker.show_cosigned(&kept);
    }

    /// Asks the witnesses whether this trail is what they cosigned last, before
    /// anything is written to it. Waits for those that answer in a moment.
    ///
    /// # Errors
    /// [`StartError::Behind`].
    pub(super) fn consult(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        self.is_consulting = true;
        self.cosign(worker)?;
        let until = std::time::Instant::now() + CONSULTATION;
        while !self.is_head_decided() {
            let left = until.saturating_duration_since(std::time::Instant::now());
            match worker.inbox.recv_timeout(left) {
                Ok(Command::Cosigned { witness, answer }) => self.heard(worker, witness, answer)?,
                Ok(Command::Stop { reply, .. }) => {
                    return Err(Ended::Stopped(Some(reply)));
                }
                Ok(other) => self.postponed.push(other),
                Err(_) => break,
            }
        }
        self.is_consulting = false;
        self.resume_postponed(worker);
        Ok(())
    }

    /// Replies when `blocks` blocks are cosigned, or cannot be.
    pub(super) fn when_cosigned(&mut self, blocks: u64, reply: Reply) {
        self.heads.waiting.push((blocks, reply));
    }

    /// Whether nothing more is to be expected about the newest head.
    pub(super) fn is_head_decided(&self) -> bool {
        let open = self.heads.open.as_ref();
        !self.heads.wanted && open.is_none_or(Ballot::is_decided)
    }

    /// An answer of a witness.
    pub(super) fn heard(
        &mut self,
        worker: &mut Worker,
        witness: usize,
        answer: Answer,
    ) -> Result<(), Ended> {
        let Some(cosigner) = worker.cosigners.get_mut(witness) else {
            return Ok(());
        };
        let Some((size, line)) = cosigner.asker.hear(self.trail.log(), answer) else {
            return Ok(());
        };
        self.note_answer(worker, witness, size, line)?;
        let open = self.heads.open.as_ref();
        if open.is_some_and(|open| open.awaits(witness)) {
            self.ask(worker, witness)?;
        }
        self.decide(worker)
    }

    fn ask(&mut self, worker: &mut Worker, witness: usize) -> Result<(), Ended> {
        let Some(open) = &self.heads.open else {
            return Ok(());
        };
        let (asker, size) = (&mut worker.cosigners[witness].asker, open.size());
        match asker.ask(self.trail.log(), open.note()) {
            Ok(()) => Ok(()),
            Err(error) => self.note_answer(worker, witness, size, Err(error)),
        }
    }

    /// What a witness says about a head of `size` blocks.
    fn note_answer(
        &mut self,
        worker: &mut Worker,
        witness: usize,
        size: u64,
        line: Result<SignatureLine, CosignError>,
    ) -> Result<(), Ended> {
        let cosigner = &mut worker.cosigners[witness];
        let open = self.heads.open.as_mut().filter(|open| open.size() == size);
        let name = cosigner.shown.name.clone();
        let error = match line {
            Ok(line) => {
                cosigner.shown.size = size;
                cosigner.shown.trouble = None;
                let at = open.and_then(|open| open.cosigned(witness, cosigner.asker.key(), line));
                if let Some(at) = at {
                    cosigner.shown.cosigned_at = Some(Second(at).to_string());
                    self.keep_head(worker)?;
                }
                return Ok(());
            }
            Err(error) => error,
        };
        cosigner.shown.trouble = Some(error.to_string());
        if let Some(open) = open {
            open.refused(witness, format!("{name}: {error}"));
        }
        let code = match &error {
            CosignError::Forked { .. } => Code::TrailForked,
            CosignError::Ahead { .. } => Code::TrailShort,
            _ => return Ok(()),
        };
        let text = format!("witness {name}: {error}");
        if self.is_consulting {
            return Err(StartError::Behind(format!("{code} {text}")).into());
        }
        self.finding(worker, Finding::general(code, text))?;
        Ok(self.trail.commit()?)
    }

    /// Keeps the open head if enough have cosigned it, or nobody has to.
    fn keep_head(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        let quorum = worker.parts.tuning.witness_quorum;
        let Some(open) = &self.heads.open else {
            return Ok(());
        };
        let is_nobody_asked = quorum == 0 && open.is_complete();
        if !open.is_cosigned() && !is_nobody_asked {
            return Ok(());
        }
        self.trail.store_head(open.note())?;
        if open.cosignatures() > 0 {
            worker.report(open.note(), open.size());
        }
        self.heads.kept = open.size();
        worker.show_cosigned(open);
        Ok(())
    }

    /// Draws the conclusions, once nothing more has to be waited for.
    fn decide(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        let quorum = worker.parts.tuning.witness_quorum;
        let open = self.heads.open.as_ref();
        let Some(open) = open.filter(|open| open.is_decided()) else {
            return Ok(());
        };
        let (size, cosigned) = (open.size(), open.cosignatures());
        if cosigned < quorum {
            let text = format!(
                "{cosigned} of {quorum} required witnesses cosigned ({})",
                open.refusals().join("; ")
            );
            tracing::warn!(source = %worker.parts.source.name, "{text}");
            self.heads.answer(size, &Err(text.clone()));
            worker.uncosigned = Some(text);
            // It is tried again when the next one is due, and is not held for open.
            self.heads.open = None;
        } else {
            if self.heads.kept != size {
                self.keep_head(worker)?;
            }
            worker.uncosigned = None;
        }
        self.show(worker);
        self.heads.answer_kept();
        match std::mem::take(&mut self.heads.wanted) {
            true => self.cosign(worker),
            false => Ok(()),
        }
    }
}
