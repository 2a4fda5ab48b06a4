//! Verification policies: what a signature proves to somebody (spec §6).
//!
//! | policy            | relies on                                                   |
//! |-------------------|-------------------------------------------------------------|
//! | internal          | the signature alone: it does not contradict itself          |
//! | key               | a certificate in a verified publications file               |
//! | calendar          | an extender, asked now                                      |
//! | publications file | a publication in a verified publications file               |
//! | user publication  | a publication that the caller brings: hash functions only   |
//! | general           | the first of user publication; publications file; key       |
//!
//! Every policy starts with the internal rules. A rule passes, fails with a
//! stable [`Code`], or cannot be decided (`GEN-02`) for a [`Reason`]; the first
//! that does not pass ends the policy. The general policy goes on to the next
//! way of proof after "cannot be decided", never after a failure.

mod calendar;
mod general;
mod internal;
mod key;
mod publications_file;
mod user_publication;

use crate::{
    chain::CalendarChain, hash::Imprint, publication::PublicationData,
    publications_file::PublicationsFile, signature::Signature, time::Second,
};
use core::fmt;
use thiserror::Error;

/// What `context` makes of `signature`.
#[must_use]
pub fn verify(signature: &Signature, context: &Context<'_>) -> Verdict {
    let mut examination = Examination {
        signature,
        context,
        checks: None,
    };
    examination.verdict()
}

/// As [`verify`], with every rule that was looked at, in order.
#[must_use]
pub fn examine(signature: &Signature, context: &Context<'_>) -> Report {
    let mut examination = Examination {
        signature,
        context,
        checks: Some(Vec::new()),
    };
    Report {
        verdict: examination.verdict(),
        checks: examination.checks.unwrap_or_default(),
    }
}

/// Which rules to apply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The signature does not contradict itself or the document.
    Internal,
    /// Internal, and the service's key signed the calendar.
    Key,
    /// Internal, and an extender's calendar agrees.
    Calendar,
    /// Internal, and a publication in the publications file covers it.
    PublicationsFile,
    /// Internal, and the caller's publication covers it.
    UserPublication,
    /// The strongest of user publication, publications file and key that the
    /// context allows.
    #[default]
    General,
}

/// Everything that verification may know besides the signature.
#[derive(Clone, Copy, Default)]
pub struct Context<'a> {
    /// Which rules to apply.
    pub policy: Policy,
    /// The imprint of the document; without it, only the signature is judged.
    pub document: Option<Imprint>,
    /// The level at which the document was signed; 0 unless it is the root of a
    /// local tree.
    pub level: u8,
    /// A publications file whose own signature has been verified already.
    pub publications: Option<&'a PublicationsFile>,
    /// A publication from a source the verifier trusts, such as a newspaper.
    pub user_publication: Option<PublicationData>,
    /// Whom to ask for calendar chains.
    pub extender: Option<&'a dyn Extend>,
    /// Whether the policies built on publications may ask the extender. The
    /// calendar policy always does.
    pub extending_allowed: bool,
}

impl Context<'_> {
    /// A context that knows nothing but which rules to apply.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Context {
            policy,
            ..Context::default()
        }
    }
}

/// A source of calendar chains.
pub trait Extend {
    /// The chain from second `from` to the root of second `to`, or to the newest
    /// root if `to` is `None`. What it returns is checked, not believed.
    ///
    /// # Errors
    /// Why there is none, to be shown to the user.
    fn extend(&self, from: Second, to: Option<Second>) -> Result<CalendarChain, ExtendError>;
}

/// Why an extender gave no chain.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct ExtendError(pub String);

/// The answer of [`verify`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All rules of the policy hold.
    Intact {
        /// The second in which the input was signed.
        signed_at: Second,
    },
    /// Nothing contradicts the signature, but the policy cannot be decided.
    Unconfirmed {
        /// `GEN-02`.
        code: Code,
        /// What is missing.
        reason: Reason,
    },
    /// Signature, document or anchors contradict each other.
    Broken {
        /// Stable, safe to alert on.
        code: Code,
        /// The rule that failed.
        step: Step,
    },
}

impl Verdict {
    /// Whether all rules hold.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        matches!(self, Verdict::Intact { .. })
    }

    /// The code, unless intact.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Verdict::Intact { .. } => None,
            Verdict::Unconfirmed { code, .. } | Verdict::Broken { code, .. } => Some(*code),
        }
    }
}

/// The answer of [`examine`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The outcome.
    pub verdict: Verdict,
    /// The rules looked at, in order; those that do not apply are left out.
    pub checks: Vec<Check>,
}

/// A rule and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The rule.
    pub step: Step,
    /// What came of it.
    pub outcome: Outcome,
}

/// A rule: what it is about, and what it demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The part of the proof that the rule looks at.
    pub part: Part,
    /// What must hold, as a statement: "output of each chain is the next one's input".
    pub rule: &'static str,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.part, self.rule)
    }
}

/// The parts of a proof, from the document to the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The document against the signature's input.
    Document,
    /// The aggregation chains.
    Aggregation,
    /// The calendar chain.
    Calendar,
    /// The service's signature on the calendar.
    Authentication,
    /// A publication.
    Publication,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Document => "document",
            Part::Aggregation => "aggregation",
            Part::Calendar => "calendar",
            Part::Authentication => "authentication",
            Part::Publication => "publication",
        })
    }
}

/// What came of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It holds.
    Passed,
    /// It does not hold.
    Failed(Code),
    /// It cannot be decided.
    Undecided(Reason),
}

impl Outcome {
    /// `Passed` if `holds`, otherwise `Failed` with `code`.
    pub(crate) fn passed_if(holds: bool, code: Code) -> Outcome {
        if holds {
            Outcome::Passed
        } else {
            Outcome::Failed(code)
        }
    }
}

/// Why a policy cannot be decided.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Reason {
    /// The signature ends at the aggregation.
    #[error("the signature has no calendar chain")]
    NoCalendarChain,
    /// The signature carries no signature of the service.
    #[error("the signature has no calendar authentication record")]
    NoAuthentication,
    /// No verified publications file was given.
    #[error("no trusted publications file is at hand")]
    NoPublicationsFile,
    /// The publications file does not have the certificate of the signing key.
    #[error("the publications file does not have the certificate of the signing key")]
    UnknownCertificate,
    /// No publication covers the signature yet.
    #[error("no trusted publication covers the signature yet")]
    NoPublication,
    /// The publication needed is there, but leads nowhere without an extender.
    #[error("extending is not allowed, or no extender is at hand")]
    NoExtender,
    /// The extender was asked in vain.
    #[error("the extender failed: {0}")]
    Extender(#[from] ExtendError),
    /// A hash function in the calendar was no longer to be relied on.
    #[error("a hash algorithm in the calendar chain was deprecated at publication time")]
    DeprecatedAlgorithm,
    /// The rule needs an algorithm that is not built in.
    #[error("an algorithm of the proof is not supported")]
    UnsupportedAlgorithm,
}

/// Codes of failed rules, as all KSI tools show them. Displays as "INT-03".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Code {
    /// The document differs.
    Gen01,
    /// Cannot be decided.
    Gen02,
    /// The document stands at a higher level than was signed.
    Gen03,
    /// The document was hashed by another algorithm.
    Gen04,
    /// Aggregation chains do not lead into each other.
    Int01,
    /// Aggregation chains name different times.
    Int02,
    /// The calendar chain starts from another hash.
    Int03,
    /// The calendar chain starts from another time.
    Int04,
    /// The shape of the calendar chain belongs to another time.
    Int05,
    /// The authentication record names another time.
    Int06,
    /// The publication record names another time.
    Int07,
    /// The authentication record names another root.
    Int08,
    /// The publication record names another root.
    Int09,
    /// The shape of an aggregation chain is not what its index says.
    Int10,
    /// Metadata could be mistaken for a hash.
    Int11,
    /// The chain indexes do not continue each other.
    Int12,
    /// The input's algorithm was deprecated at signing time.
    Int13,
    /// An algorithm inside the RFC 3161 record was deprecated.
    Int14,
    /// A chain's algorithm was deprecated.
    Int15,
    /// An algorithm in the calendar chain is obsolete.
    Int16,
    /// The output algorithm of the RFC 3161 record was deprecated.
    Int17,
    /// The signature on the calendar does not verify.
    Key02,
    /// The certificate was not valid when the input was signed.
    Key03,
    /// The extended calendar has another root.
    Pub01,
    /// The extended calendar has another publication time.
    Pub02,
    /// The extended calendar starts from another hash.
    Pub03,
    /// The signature's publication is not the caller's.
    Pub04,
    /// The signature's publication is not that of the publications file.
    Pub05,
    /// The extended calendar has another root.
    Cal01,
    /// The extended calendar starts from another hash.
    Cal02,
    /// The extended calendar starts from another time.
    Cal03,
    /// The extended calendar tells another history.
    Cal04,
}

impl Code {
    /// The code and what it means.
    fn row(self) -> (&'static str, &'static str) {
        match self {
            Code::Gen01 => ("GEN-01", "the document is not what was signed"),
            Code::Gen02 => ("GEN-02", "verification cannot be decided"),
            Code::Gen03 => (
                "GEN-03",
                "the document's level is higher than what was signed",
            ),
            Code::Gen04 => ("GEN-04", "the document was hashed with another algorithm"),
            Code::Int01 => ("INT-01", "aggregation chains do not lead into each other"),
            Code::Int02 => ("INT-02", "aggregation chains name different times"),
            Code::Int03 => ("INT-03", "the calendar chain starts from another hash"),
            Code::Int04 => ("INT-04", "the calendar chain starts from another time"),
            Code::Int05 => (
                "INT-05",
                "the calendar chain's shape belongs to another time",
            ),
            Code::Int06 => ("INT-06", "the authentication record names another time"),
            Code::Int07 => ("INT-07", "the publication record names another time"),
            Code::Int08 => ("INT-08", "the authentication record names another root"),
            Code::Int09 => ("INT-09", "the publication record names another root"),
            Code::Int10 => (
                "INT-10",
                "an aggregation chain's shape is not what its index says",
            ),
            Code::Int11 => ("INT-11", "metadata could be mistaken for a hash"),
            Code::Int12 => ("INT-12", "chain indexes do not continue each other"),
            Code::Int13 => (
                "INT-13",
                "the input's hash algorithm was deprecated when signed",
            ),
            Code::Int14 => (
                "INT-14",
                "an RFC 3161 hash algorithm was deprecated when signed",
            ),
            Code::Int15 => (
                "INT-15",
                "an aggregation hash algorithm was deprecated when signed",
            ),
            Code::Int16 => ("INT-16", "a calendar hash algorithm is obsolete"),
            Code::Int17 => (
                "INT-17",
                "the RFC 3161 output algorithm was deprecated when signed",
            ),
            Code::Key02 => ("KEY-02", "the signature on the calendar does not verify"),
            Code::Key03 => (
                "KEY-03",
                "the certificate was not valid when the input was signed",
            ),
            Code::Pub01 => ("PUB-01", "the extended calendar has another root"),
            Code::Pub02 => (
                "PUB-02",
                "the extended calendar has another publication time",
            ),
            Code::Pub03 => ("PUB-03", "the extended calendar starts from another hash"),
            Code::Pub04 => ("PUB-04", "the signature's publication is not the one given"),
            Code::Pub05 => (
                "PUB-05",
                "the signature's publication is not in the publications file",
            ),
            Code::Cal01 => ("CAL-01", "the extended calendar has another root"),
            Code::Cal02 => ("CAL-02", "the extended calendar starts from another hash"),
            Code::Cal03 => ("CAL-03", "the extended calendar starts from another time"),
            Code::Cal04 => ("CAL-04", "the extended calendar tells another history"),
        }
    }

    /// The code as text, such as "INT-03".
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.row().0
    }

    /// What the code means, as half a sentence.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        self.row().1
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A policy at work: looks at rule after rule and writes down what it saw.
pub(crate) struct Examination<'a> {
    pub(crate) signature: &'a Signature,
    pub(crate) context: &'a Context<'a>,
    /// `None` if nobody is going to read them.
    checks: Option<Vec<Check>>,
}

impl Examination<'_> {
    fn verdict(&mut self) -> Verdict {
        match apply(self.context.policy, self) {
            Ok(()) => Verdict::Intact {
                signed_at: self.signature.aggregation_time(),
            },
            Err(Stop::Broken { code, step }) => Verdict::Broken { code, step },
            Err(Stop::Unconfirmed { code, reason }) => Verdict::Unconfirmed { code, reason },
        }
    }

    /// Writes down the outcome of a rule; the policy goes on only if it passed.
    pub(crate) fn record(
        &mut self,
        part: Part,
        rule: &'static str,
        outcome: Outcome,
    ) -> Result<(), Stop> {
        let step = Step { part, rule };
        self.write_down(step, &outcome);
        match outcome {
            Outcome::Passed => Ok(()),
            Outcome::Failed(code) => Err(Stop::Broken { code, step }),
            Outcome::Undecided(reason) => Err(Stop::Unconfirmed {
                code: Code::Gen02,
                reason,
            }),
        }
    }

    /// The value a rule asks for; its absence is written down, its presence not.
    pub(crate) fn need<T>(
        &mut self,
        part: Part,
        rule: &'static str,
        value: Option<T>,
        reason: Reason,
    ) -> Result<T, Stop> {
        match value {
            Some(value) => Ok(value),
            None => Err(self.undecided(part, rule, reason)),
        }
    }

    /// Writes down a rule that cannot be decided; the policy ends with the result.
    pub(crate) fn undecided(&mut self, part: Part, rule: &'static str, reason: Reason) -> Stop {
        let outcome = Outcome::Undecided(reason.clone());
        self.write_down(Step { part, rule }, &outcome);
        Stop::Unconfirmed {
            code: Code::Gen02,
            reason,
        }
    }

    fn write_down(&mut self, step: Step, outcome: &Outcome) {
        if let Some(checks) = &mut self.checks {
            let outcome = outcome.clone();
            checks.push(Check { step, outcome });
        }
    }
}

/// Why a policy ends early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Broken { code: Code, step: Step },
    Unconfirmed { code: Code, reason: Reason },
}

fn apply(policy: Policy, examination: &mut Examination<'_>) -> Result<(), Stop> {
    internal::check(examination)?;
    match policy {
        Policy::Internal => Ok(()),
        Policy::Key => key::check(examination),
        Policy::Calendar => calendar::check(examination),
        Policy::PublicationsFile => publications_file::check(examination),
        Policy::UserPublication => user_publication::check(examination),
        Policy::General => general::check(examination),
    }
}
