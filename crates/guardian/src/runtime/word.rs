//! A word that the database and the trail's folder both have, and that changes: by
//! it an old copy of the database is known, however far its log has gone since.

use super::{Ended, SECOND_US, Session, Worker};
use crate::init::InitError;
use pitser_capture::Word;
use pitser_evidence::Code;
use pitser_monitor::Finding;
use pitser_trail::TrailError;

/// The file beside the trail: the words that the database may have, a line each.
pub(crate) const FILE: &str = "word";
/// How often it changes, in microseconds: a copy that is younger than that is not
/// known by it.
const EVERY_US: u64 = 60 * SECOND_US;

/// Words are numbered as they follow each other.
fn number(word: &str) -> u64 {
    let number = word.split(' ').next();
    number.and_then(|n| n.parse().ok()).unwrap_or(0)
}

impl Session {
    /// Whether the database is the one that we heard last, or an old copy of it: what was
    /// committed since is gone from that, and what it did instead was not told.
    pub(super) fn compare_age(&mut self, worker: &Worker) -> Result<(), Ended> {
        // Whoever has the newest word may write it into a copy.
        let next = self.source.next_transaction()?;
        if self.has_old_word()? || next.is_some_and(|next| next <= self.newest_tx) {
            let at = self.position;
            let text = "the database is an older copy of itself, which went on from there: what it had since is lost, \
                        and what it did instead was not told";
            let finding = Finding::general(Code::DatabaseRewound, text);
            self.gap(worker, (at, at), None, Some(finding))?;
            self.trail.commit()?;
        }
        self.renew_word(worker)
    }

    fn has_old_word(&mut self) -> Result<bool, Ended> {
        let ours = self.words();
        let newest = ours.iter().map(|word| number(word)).max();
        Ok(match self.source.word()? {
            _ if ours.is_empty() => false,
            Word::Forbidden => false,
            Word::Absent => true,
            // One that we do not know yet is another guardian's, whose trail this
            // is a copy of.
            Word::Is(word) => Some(number(&word)) <= newest && !ours.contains(&word),
        })
    }

    /// Has both know another word. The file has the old and the new one until the
    /// database has the new.
    pub(super) fn renew_word(&mut self, worker: &Worker) -> Result<(), Ended> {
        self.next.word = (worker.parts.clock)() + EVERY_US;
        let now = match self.source.word()? {
            Word::Forbidden => return self.word_is_refused(worker),
            Word::Absent => String::new(),
            Word::Is(word) => word,
        };
        let mut random = [0; 16];
        getrandom::getrandom(&mut random).map_err(|e| InitError::Random(e.to_string()))?;
        let random: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let new = format!("{} {random}", number(&now).saturating_add(1));
        self.keep_words(&[&now, &new])?;
        match self.source.set_word(&new)? {
            true => {
                self.word_refused = false;
                self.keep_words(&[&new])
            }
            false => {
                self.keep_words(&[&now])?;
                self.word_is_refused(worker)
            }
        }
    }

    /// Tells that there can be no new word any more: whoever wants to put an old copy in the
    /// database's place might see to that first. A role that never had one is not told of.
    fn word_is_refused(&mut self, worker: &Worker) -> Result<(), Ended> {
        if self.word_refused || self.words().is_empty() {
            return Ok(());
        }
        let text = "the database takes no new word of the guardian's any more, by which an old copy of it would be \
                    known at once: it is read-only, or a right on pitser.installed was taken from the guardian's role. \
                    Give both back; until then an old copy is known by the numbers of its transactions and by a scan";
        // Not about a line: it is the same until somebody has answered for it.
        self.finding(worker, Finding::general(Code::CaptureWeakened, text))?;
        self.word_refused = true;
        self.trail.commit()?;
        self.show(worker);
        Ok(())
    }

    fn words(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.trail.layout().dir().join(FILE));
        let text = text.unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// None of them is empty afterwards.
    fn keep_words(&self, words: &[&str]) -> Result<(), Ended> {
        let words = words.iter().filter(|word| !word.is_empty());
        let text: String = words.map(|word| format!("{word}\n")).collect();
        let path = self.trail.layout().dir().join(FILE);
        pitser_trail::disk::replace(&path, text.as_bytes()).map_err(TrailError::from)?;
        Ok(())
    }
}
