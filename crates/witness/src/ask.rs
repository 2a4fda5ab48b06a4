//! Asking a log's witnesses about its heads without ever waiting for one.
//!
//! Each witness is asked on a thread of its own, one question at a time
//! ([`Asker`]); its answer goes wherever the log wants it. A [`Ballot`] is one
//! head before all of them: it knows who has not answered, when enough have
//! cosigned, and why the others did not.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt;
use std::io;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use pitser_tlog::merkle::Nodes;
use pitser_tlog::note::{Note, SignatureLine, VerifierKey};
use pitser_tlog::witness_protocol::Refusal;

use crate::submit::{Exchange, Heard, Peer, Question, SubmitError};

/// What a witness says to one question. Nothing in it is verified yet.
pub type Answer = Result<Vec<SignatureLine>, Refusal>;

/// One witness, and the thread that asks it.
///
/// Dropping it ends the thread, without waiting, after the answer that it
/// perhaps still waits for.
pub struct Asker {
    name: String,
    exchange: Exchange,
    questions: Sender<Vec<u8>>,
    /// What the witness has not answered yet.
    asked: Option<Question>,
}

impl Asker {
    /// Starts the thread, called `thread`, which gives `answered` every answer
    /// until that returns false. Bring each of them to [`Asker::hear`].
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn start(
        peer: Peer,
        thread: &str,
        answered: impl Fn(Answer) -> bool + Send + 'static,
    ) -> io::Result<Self> {
        let name = peer.name().to_owned();
        let (exchange, witness) = peer.into_parts();
        let (questions, inbox) = channel::<Vec<u8>>();
        let ask = move || {
            for body in inbox {
                if !answered(witness.add_checkpoint(&body)) {
                    return;
                }
            }
        };
        thread::Builder::new().name(thread.to_owned()).spawn(ask)?;
        Ok(Self {
            name,
            exchange,
            questions,
            asked: None,
        })
    }

    /// What the witness is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The key that its cosignatures verify under.
    pub fn key(&self) -> &VerifierKey {
        self.exchange.key()
    }

    /// Whether it still has a question: one at a time.
    pub fn is_busy(&self) -> bool {
        self.asked.is_some()
    }

    /// Asks for a cosignature on `head`, proving consistency from `nodes`. To
    /// be called when it is not busy.
    ///
    /// # Errors
    /// [`SubmitError`]; nothing was asked.
    pub fn ask<N>(&mut self, nodes: &N, head: &Note) -> Result<(), SubmitError>
    where
        N: Nodes + ?Sized,
        N::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let question = self.exchange.ask(nodes, head)?;
        self.send(question)
    }

    /// Judges the answer that the thread brought: the size of the head that was
    /// asked about, and the verified cosignature. `None` if the witness knows
    /// better what it holds and has been asked once more, or if the question was
    /// forgotten meanwhile.
    pub fn hear<N>(
        &mut self,
        nodes: &N,
        answer: Answer,
    ) -> Option<(u64, Result<SignatureLine, SubmitError>)>
    where
        N: Nodes + ?Sized,
        N::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let asked = self.asked.take()?;
        let size = asked.size();
        let judged = match self.exchange.hear(nodes, asked, answer) {
            Ok(Heard::Cosigned(line)) => Ok(line),
            Ok(Heard::Corrected(question)) => match self.send(question) {
                Ok(()) => return None,
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        Some((size, judged))
    }

    /// Gives up the open question: nobody can judge its answer.
    pub fn forget(&mut self) {
        self.asked = None;
    }

    fn send(&mut self, question: Question) -> Result<(), SubmitError> {
        let sent = self.questions.send(question.body().to_vec());
        sent.map_err(|_| Refusal::Unavailable {
            reason: "nobody asks it any more".to_owned(),
        })?;
        self.asked = Some(question);
        Ok(())
    }
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asker")
            .field("name", &self.name)
            .field("exchange", &self.exchange)
            .field("asked", &self.asked.as_ref().map(Question::size))
            .finish_non_exhaustive()
    }
}

/// One head, and what the witnesses of its log say about it. Witnesses are
/// numbered from 0 in an order of the caller's.
#[derive(Debug, Clone)]
pub struct Ballot {
    note: Note,
    size: u64,
    quorum: usize,
    unanswered: BTreeSet<usize>,
    /// What those who cosigned state, in Unix seconds; a public key counts once.
    times: BTreeMap<Vec<u8>, u64>,
    refusals: Vec<String>,
}

impl Ballot {
    /// The head `note` of `size` entries, before so many `witnesses`, of which
    /// `quorum` are enough. A quorum of nobody is reached by one all the same:
    /// nothing is cosigned before somebody did.
    pub fn new(note: Note, size: u64, witnesses: usize, quorum: usize) -> Self {
        Self {
            note,
            size,
            quorum: quorum.max(1),
            unanswered: (0..witnesses).collect(),
            times: BTreeMap::new(),
            refusals: Vec::new(),
        }
    }

    /// A head that was kept, with what those `keys` state on it; nobody is asked any more.
    pub fn kept<'k>(
        note: Note,
        size: u64,
        keys: impl IntoIterator<Item = &'k VerifierKey>,
        quorum: usize,
    ) -> Self {
        let stated = |key: &VerifierKey| {
            let at = note.cosigned_at(key).ok()?;
            Some((key.public_key().to_vec(), at))
        };
        let times = keys.into_iter().filter_map(stated).collect();
        Self {
            times,
            ..Self::new(note, size, 0, quorum)
        }
    }

    /// The head with the cosignatures that came so far.
    pub fn note(&self) -> &Note {
        &self.note
    }

    /// Entries of the head.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether `witness` has said nothing about this head yet.
    pub fn awaits(&self, witness: usize) -> bool {
        self.unanswered.contains(&witness)
    }

    /// `witness` cosigned, under `key`: returns the time that it states, in
    /// Unix seconds, unless the line is not that key's on this head.
    pub fn cosigned(
        &mut self,
        witness: usize,
        key: &VerifierKey,
        line: SignatureLine,
    ) -> Option<u64> {
        self.unanswered.remove(&witness);
        self.note.add(line).ok()?;
        let at = self.note.cosigned_at(key).ok()?;
        self.times.insert(key.public_key().to_vec(), at);
        Some(at)
    }

    /// `witness` did not cosign, for this reason.
    pub fn refused(&mut self, witness: usize, reason: String) {
        self.unanswered.remove(&witness);
        self.refusals.push(reason);
    }

    /// Whether enough have cosigned.
    pub fn is_cosigned(&self) -> bool {
        self.times.len() >= self.quorum
    }

    /// Whether nothing that comes can change what this head is worth.
    pub fn is_decided(&self) -> bool {
        self.is_cosigned() || self.unanswered.is_empty()
    }

    /// Whether everybody has answered.
    pub fn is_complete(&self) -> bool {
        self.unanswered.is_empty()
    }

    /// How many have cosigned.
    pub fn cosignatures(&self) -> usize {
        self.times.len()
    }

    /// When the quorum had cosigned, in Unix seconds: the earliest time by which
    /// so many had.
    pub fn cosigned_at(&self) -> Option<u64> {
        let mut times: Vec<u64> = self.times.values().copied().collect();
        times.sort_unstable();
        times.get(self.quorum - 1).copied()
    }

    /// Why the others did not cosign, in the order of their answers.
    pub fn refusals(&self) -> &[String] {
        &self.refusals
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use pitser_tlog::checkpoint::Checkpoint;
    use pitser_tlog::merkle::{LogTree, leaf_hash};
    use pitser_tlog::note::{CosigningKey, SigningKey};

    use super::*;
    use crate::{ClockedWitness, Log, MemoryStore, Witness};

    const ORIGIN: &str = "calendar.example/calendar";

    fn tree(size: u64) -> LogTree {
        (0..size).map(|i| leaf_hash(&i.to_be_bytes())).collect()
    }

    fn head(tree: &LogTree) -> Note {
        let key = SigningKey::from_seed(ORIGIN, &[1; 32]).unwrap();
        let head = Checkpoint::new(ORIGIN, tree.size(), tree.root()).unwrap();
        head.sign(&key).unwrap()
    }

    fn witness(seed: u8, name: &str) -> CosigningKey {
        CosigningKey::from_seed(name, &[seed; 32]).unwrap()
    }

    #[test]
    fn a_quorum_counts_public_keys_and_takes_the_time_by_which_so_many_had() {
        let note = head(&tree(5));
        let mut ballot = Ballot::new(note.clone(), 5, 4, 2);
        let cosign = |ballot: &mut Ballot, number, key: &CosigningKey, at| {
            let line = key.cosign(note.text(), at);
            ballot.cosigned(number, &key.verifier(), line)
        };
        assert_eq!(cosign(&mut ballot, 0, &witness(2, "a"), 30), Some(30));
        // The same key under another name is the same witness.
        assert_eq!(cosign(&mut ballot, 1, &witness(2, "b"), 10), Some(10));
        assert!(!ballot.is_decided());
        assert_eq!(cosign(&mut ballot, 2, &witness(3, "c"), 20), Some(20));
        assert!(ballot.is_cosigned() && ballot.is_decided() && !ballot.is_complete());
        assert_eq!(ballot.cosigned_at(), Some(20));
        ballot.refused(3, "d: no".to_owned());
        assert!(ballot.is_complete());
        assert_eq!(ballot.refusals(), ["d: no"]);
    }

    #[test]
    fn a_line_of_another_head_does_not_count() {
        let mut ballot = Ballot::new(head(&tree(5)), 5, 1, 1);
        let key = witness(2, "a");
        let line = key.cosign(head(&tree(6)).text(), 9);
        assert_eq!(ballot.cosigned(0, &key.verifier(), line), None);
        assert!(ballot.is_decided() && !ballot.is_cosigned());
    }

    #[test]
    fn one_question_at_a_time_and_a_forgotten_one_is_not_judged() {
        let mut known = Witness::new(witness(2, "a"), MemoryStore::new());
        let log = SigningKey::from_seed(ORIGIN, &[1; 32]).unwrap().verifier();
        known.add_log(&Log::new(log)).unwrap();
        let key = known.verifier();
        let peer = Peer::new(Box::new(ClockedWitness::new(known, || 7)), key);
        let (answers, inbox) = mpsc::channel();
        let mut asker =
            Asker::start(peer, "asker", move |answer| answers.send(answer).is_ok()).unwrap();
        let small = tree(3);
        asker.ask(&small, &head(&small)).unwrap();
        assert!(asker.is_busy());
        asker.forget();
        assert!(asker.hear(&small, inbox.recv().unwrap()).is_none());
        // The witness holds 3 entries, which nobody heard: it corrects us once.
        let large = tree(9);
        asker.ask(&large, &head(&large)).unwrap();
        assert!(asker.hear(&large, inbox.recv().unwrap()).is_none());
        assert!(asker.is_busy());
        let (size, line) = asker.hear(&large, inbox.recv().unwrap()).unwrap();
        assert_eq!(size, 9);
        assert!(
            asker
                .key()
                .verify(head(&large).text(), &line.unwrap())
                .is_ok()
        );
        assert!(!asker.is_busy());
    }
}
