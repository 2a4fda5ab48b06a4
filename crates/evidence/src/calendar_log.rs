//! Whether a second of the calendar was witnessed (docs/spec/51-calendar-log.md §5).
//!
//! A seal says that something was there in a certain second, by the word of the
//! authority until a publication is printed. The authority's calendar is a log as
//! well: if the entry of that second stands in it under a head that independent
//! witnesses cosigned, the authority can no longer exchange what it says.
//!
//! The entry is never taken from the proof. It is computed from the seal's own
//! calendar chain, or, for a publication, compared with the publication.

use crate::anchors::{CalendarLogAnchor, trusted};
use pitser_ksi::calendar_entry::CalendarEntry;
use pitser_ksi::chain::CalendarChain;
use pitser_ksi::publication::PublicationData;
use pitser_ksi::time::Second;
use pitser_tlog::checkpoint::{CheckpointError, QuorumError};
use pitser_tlog::merkle::leaf_hash;
use pitser_tlog::note::SignatureError;
use pitser_tlog::proof::{LogProof, LogProofError};
use std::collections::BTreeMap;

/// A second that a quorum of witnesses has seen in the calendar's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witnessed {
    /// The second.
    pub second: Second,
    /// By when so many had cosigned a head that covers it: since then at the
    /// latest nobody can exchange what the log says of it.
    pub cosigned_at: Second,
    /// The witnesses that cosigned, by their names, in the order of their times.
    pub witnesses: Vec<String>,
}

/// Why a second does not count as witnessed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotWitnessed {
    /// Fewer witnesses than required: nothing is contradicted.
    #[error("{found} of {required} required witnesses cosigned")]
    TooFew {
        /// Distinct trusted witnesses that cosigned.
        found: usize,
        /// How many must.
        required: usize,
    },
    /// The proof is of a log that this verifier does not know.
    #[error("the proof is of another log than that of your anchors")]
    OtherLog,
    /// There is no proof for this second.
    #[error("there is no proof that {second} was witnessed")]
    NoProof {
        /// The second asked about.
        second: Second,
    },
    /// The calendar's log begins later.
    #[error("{second} is before the calendar's log begins, {genesis}")]
    BeforeGenesis {
        /// The second asked about.
        second: Second,
        /// The second of entry 0.
        genesis: Second,
    },
    /// The proof does not show what it is brought for.
    #[error("{0}")]
    Contradicted(String),
}

/// The proofs that an evidence file brings, by their seconds.
#[derive(Debug)]
pub struct Proofs<'a> {
    log: &'a CalendarLogAnchor,
    by_index: BTreeMap<u64, LogProof>,
}

impl<'a> Proofs<'a> {
    /// Reads the proofs, to be judged by `log`; nothing is verified yet.
    ///
    /// # Errors
    /// A sentence, if one of them is unreadable or they are not in the order of
    /// their seconds, each of which may be there once.
    pub fn read(log: &'a CalendarLogAnchor, texts: &[String]) -> Result<Self, String> {
        let mut by_index = BTreeMap::new();
        for (number, text) in texts.iter().enumerate() {
            let proof = LogProof::parse(text.as_bytes())
                .map_err(|e| format!("proof {number} is unreadable: {e}"))?;
            let index = proof.index();
            if by_index
                .last_key_value()
                .is_some_and(|(last, _)| *last >= index)
            {
                return Err(format!("proof {number} is not in the order of seconds"));
            }
            by_index.insert(index, proof);
        }
        Ok(Self { log, by_index })
    }

    /// Whether the second was witnessed in which `chain` starts; see [`check_second`].
    ///
    /// # Errors
    /// [`NotWitnessed`].
    pub fn second(&self, chain: &CalendarChain) -> Result<Witnessed, NotWitnessed> {
        check_second(chain, self.of(chain.time())?, self.log)
    }

    /// Whether the second of `publication` was; see [`check_publication`].
    ///
    /// # Errors
    /// [`NotWitnessed`].
    pub fn publication(&self, publication: &PublicationData) -> Result<Witnessed, NotWitnessed> {
        check_publication(publication, self.of(publication.time)?, self.log)
    }

    fn of(&self, second: Second) -> Result<&LogProof, NotWitnessed> {
        let genesis = self.log.genesis;
        let Some(index) = second.0.checked_sub(genesis.0) else {
            return Err(NotWitnessed::BeforeGenesis { second, genesis });
        };
        let proof = self.by_index.get(&index);
        proof.ok_or(NotWitnessed::NoProof { second })
    }
}

/// Judges `proof` for the second in which `chain`, the calendar chain of a
/// signature, starts. The signature itself is to be verified besides.
///
/// # Errors
/// [`NotWitnessed`]: a verdict on the proof, not a failure to look.
pub fn check_second(
    chain: &CalendarChain,
    proof: &LogProof,
    log: &CalendarLogAnchor,
) -> Result<Witnessed, NotWitnessed> {
    let entry = CalendarEntry::of_chain(chain).ok_or_else(|| {
        NotWitnessed::Contradicted("the calendar chain does not prove its own second".into())
    })?;
    check_entry(&entry, proof, log)
}

/// Judges `proof` for the second of a publication: that the calendar whose root
/// was published is the one that witnesses saw. The entry stands in the proof's
/// extra data, and must say what the publication says.
///
/// # Errors
/// [`NotWitnessed`]: a verdict on the proof, not a failure to look.
pub fn check_publication(
    publication: &PublicationData,
    proof: &LogProof,
    log: &CalendarLogAnchor,
) -> Result<Witnessed, NotWitnessed> {
    let contradicted = |text: String| NotWitnessed::Contradicted(text);
    let entry = CalendarEntry::decode(proof.extra())
        .map_err(|e| contradicted(format!("the proof has no entry beside it: {e}")))?;
    if entry.time() != publication.time || entry.calendar() != publication.imprint {
        return Err(contradicted(
            "the entry beside the proof is not that of the publication".into(),
        ));
    }
    check_entry(&entry, proof, log)
}

fn check_entry(
    entry: &CalendarEntry,
    proof: &LogProof,
    log: &CalendarLogAnchor,
) -> Result<Witnessed, NotWitnessed> {
    let contradicted = |text: &str| Err(NotWitnessed::Contradicted(text.into()));
    let (second, genesis) = (entry.time(), log.genesis);
    let Some(index) = second.0.checked_sub(genesis.0) else {
        return Err(NotWitnessed::BeforeGenesis { second, genesis });
    };
    if proof.index() != index {
        return contradicted("the proof is of another second");
    }
    let witnesses = trusted(&log.witnesses, proof.head());
    let leaf = leaf_hash(&entry.encode());
    let quorum = proof
        .verify(leaf, &log.key, &witnesses, log.quorum as usize)
        .map_err(judge)?;
    let cosigned_at = Second(quorum.cosigned_at);
    // One entry a second: the size of the head is a time, too.
    let newest = genesis.plus(quorum.checkpoint.size().saturating_sub(1));
    if cosigned_at.plus(TOLERANCE_S) < newest {
        return contradicted(
            "it was cosigned before its newest second: a clock or a witness is wrong",
        );
    }
    Ok(Witnessed {
        second,
        cosigned_at,
        witnesses: quorum.witnesses,
    })
}

fn judge(error: LogProofError) -> NotWitnessed {
    match error {
        LogProofError::Quorum(QuorumError::TooFew { found, required }) => {
            NotWitnessed::TooFew { found, required }
        }
        LogProofError::Quorum(QuorumError::Checkpoint(
            CheckpointError::Signature(SignatureError::Missing) | CheckpointError::OtherOrigin,
        )) => NotWitnessed::OtherLog,
        LogProofError::Inclusion(e) => {
            NotWitnessed::Contradicted(format!("the log says something else of this second: {e}"))
        }
        error => NotWitnessed::Contradicted(error.to_string()),
    }
}

/// By how many seconds the clocks of witnesses may be behind the calendar's.
const TOLERANCE_S: u64 = 60;
