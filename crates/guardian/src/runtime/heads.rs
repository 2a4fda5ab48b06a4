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
use pitser_tlog::note::{Note, SignatureLine};
use pitser_tlog::witness_protocol::Refusal;
use pitser_witness::{Exchange, Heard, Peer, Question, SubmitError as CosignError};
use std::collections::BTreeSet;
use std::sync::mpsc::{Sender, channel};
use tokio::sync::oneshot;

/// One witness, and the thread that asks it. Outlives sessions.
pub(super) struct Cosigner {
    exchange: Exchange,
    questions: Sender<Vec<u8>>,
    /// What it has not answered yet.
    asked: Option<Question>,
    pub(super) shown: WitnessStatus,
}

/// The newest heads of one session.
#[derive(Default)]
pub(super) struct Heads {
    /// Blocks under the head that was kept last.
    kept: u64,
    /// The newest head that witnesses were asked about.
    open: Option<Open>,
    /// Another one is wanted as soon as this one is decided.
    wanted: bool,
    /// Who waits for so many blocks to be cosigned.
    waiting: Vec<(u64, Reply)>,
}

type Reply = oneshot::Sender<Result<u64, String>>;

/// A head, and who has not answered yet.
struct Open {
    note: Note,
    size: u64,
    unanswered: BTreeSet<usize>,
    /// What those who cosigned state, in Unix seconds.
    times: Vec<u64>,
    refusals: Vec<String>,
}

impl Cosigner {
    /// `number` is what its answers are sent back with.
    pub(super) fn start(
        peer: Peer,
        number: usize,
        commands: Sender<Command>,
    ) -> Result<Self, StartError> {
        let name = peer.name().to_owned();
        let (exchange, witness) = peer.into_parts();
        let (questions, asked) = channel::<Vec<u8>>();
        let ask = move || {
            for body in asked {
                let answer = witness.add_checkpoint(&body);
                let answer = Command::Cosigned {
                    witness: number,
                    answer,
                };
                if commands.send(answer).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name(format!("witness-{number}"))
            .spawn(ask)
            .map_err(StartError::Thread)?;
        Ok(Self {
            exchange,
            questions,
            asked: None,
            shown: WitnessStatus {
                name,
                ..WitnessStatus::default()
            },
        })
    }

    /// An answer that nobody can judge now: the trail is not open.
    pub(super) fn forget(&mut self) {
        self.asked = None;
    }

    fn send(&mut self, question: Question) -> Result<(), CosignError> {
        let sent = self.questions.send(question.body().to_vec());
        sent.map_err(|_| Refusal::Unavailable {
            reason: "nobody asks it any more".to_owned(),
        })?;
        self.asked = Some(question);
        Ok(())
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

impl Open {
    fn is_cosigned(&self, quorum: usize) -> bool {
        self.times.len() >= quorum.max(1)
    }

    fn is_decided(&self, quorum: usize) -> bool {
        self.is_cosigned(quorum) || self.unanswered.is_empty()
    }

    /// When the quorum had cosigned: the earliest time by which so many had.
    fn cosigned_at(&self, quorum: usize) -> Option<Second> {
        let mut times = self.times.clone();
        times.sort_unstable();
        times.get(quorum.max(1) - 1).copied().map(Second)
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
            && !open.is_decided(quorum)
        {
            self.heads.wanted |= size > open.size;
            return Ok(());
        }
        self.heads.wanted = false;
        self.heads.open = Some(Open {
            note: self.trail.sign_head(),
            size,
            unanswered: (0..worker.cosigners.len()).collect(),
            times: Vec::new(),
            refusals: Vec::new(),
        });
        for witness in 0..worker.cosigners.len() {
            // One that is still busy with an older head is asked when it is back.
            if worker.cosigners[witness].asked.is_none() {
                self.ask(worker, witness)?;
            }
        }
        self.decide(worker)
    }

    /// Replies when `blocks` blocks are cosigned, or cannot be.
    pub(super) fn when_cosigned(&mut self, blocks: u64, reply: Reply) {
        self.heads.waiting.push((blocks, reply));
    }

    /// Whether nothing more is to be expected about the newest head.
    pub(super) fn is_head_decided(&self, worker: &Worker) -> bool {
        let quorum = worker.parts.tuning.witness_quorum;
        let open = self.heads.open.as_ref();
        !self.heads.wanted && open.is_none_or(|open| open.is_decided(quorum))
    }

    /// An answer of a witness.
    pub(super) fn heard(
        &mut self,
        worker: &mut Worker,
        witness: usize,
        answer: Result<Vec<SignatureLine>, Refusal>,
    ) -> Result<(), Ended> {
        let Some(cosigner) = worker.cosigners.get_mut(witness) else {
            return Ok(());
        };
        let Some(asked) = cosigner.asked.take() else {
            return Ok(());
        };
        let size = asked.size();
        let heard = cosigner.exchange.hear(self.trail.log(), asked, answer);
        let line = match heard {
            Ok(Heard::Corrected(question)) => match cosigner.send(question) {
                Ok(()) => return Ok(()),
                Err(error) => Err(error),
            },
            Ok(Heard::Cosigned(line)) => Ok(line),
            Err(error) => Err(error),
        };
        self.note_answer(worker, witness, size, line)?;
        let open = self.heads.open.as_ref();
        if open.is_some_and(|open| open.unanswered.contains(&witness)) {
            self.ask(worker, witness)?;
        }
        self.decide(worker)
    }

    fn ask(&mut self, worker: &mut Worker, witness: usize) -> Result<(), Ended> {
        let Some(open) = &self.heads.open else {
            return Ok(());
        };
        let (cosigner, size) = (&mut worker.cosigners[witness], open.size);
        let question = cosigner.exchange.ask(self.trail.log(), &open.note);
        match question.and_then(|question| cosigner.send(question)) {
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
        let open = self.heads.open.as_mut().filter(|open| open.size == size);
        let name = cosigner.shown.name.clone();
        let error = match line {
            Ok(line) => {
                cosigner.shown.size = size;
                cosigner.shown.trouble = None;
                if let Some(open) = open {
                    open.unanswered.remove(&witness);
                    if open.note.add(line).is_ok()
                        && let Ok(at) = open.note.cosigned_at(cosigner.exchange.key())
                    {
                        cosigner.shown.cosigned_at = Some(Second(at).to_string());
                        open.times.push(at);
                        self.keep_head(worker)?;
                    }
                }
                return Ok(());
            }
            Err(error) => error,
        };
        cosigner.shown.trouble = Some(error.to_string());
        if let Some(open) = open {
            open.unanswered.remove(&witness);
            open.refusals.push(format!("{name}: {error}"));
        }
        let code = match &error {
            CosignError::Forked { .. } => Code::TrailForked,
            CosignError::Ahead { .. } => Code::TrailShort,
            _ => return Ok(()),
        };
        let text = format!("witness {name}: {error}");
        self.finding(worker, Finding::general(code, text))?;
        Ok(self.trail.commit()?)
    }

    /// Keeps the open head if enough have cosigned it, or nobody has to.
    fn keep_head(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        let quorum = worker.parts.tuning.witness_quorum;
        let Some(open) = &self.heads.open else {
            return Ok(());
        };
        let is_nobody_asked = quorum == 0 && open.unanswered.is_empty();
        if !open.is_cosigned(quorum) && !is_nobody_asked {
            return Ok(());
        }
        self.trail.store_head(&open.note)?;
        self.heads.kept = open.size;
        if let Some(at) = open.cosigned_at(quorum) {
            let size = open.size;
            worker.publish.send_modify(|s| {
                s.witnessed = size;
                s.witnessed_at = Some(at.to_string());
            });
        }
        Ok(())
    }

    /// Draws the conclusions, once nothing more has to be waited for.
    fn decide(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        let quorum = worker.parts.tuning.witness_quorum;
        let open = self.heads.open.as_ref();
        let Some(open) = open.filter(|open| open.is_decided(quorum)) else {
            return Ok(());
        };
        let (size, cosigned) = (open.size, open.times.len());
        if cosigned < quorum {
            let text = format!(
                "{cosigned} of {quorum} required witnesses cosigned ({})",
                open.refusals.join("; ")
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
