//! Judging a signature.

use pitser_ksi::hash::Imprint;
use pitser_ksi::pki::Certificate;
use pitser_ksi::policy::{self, Check, Code, Outcome as Rule, Part, Policy, Reason, Report};
use pitser_ksi::signature::Signature;

use super::{Args, unsound};
use crate::files;
use crate::outcome::Outcome;
use crate::output::{self, Judgement, State, Step, Verdict, plural};
use crate::tree::Map;
use crate::trust::Trust;

/// Judges the signature in `bytes`.
pub(super) fn run(bytes: &[u8], args: &Args) -> Outcome {
    let name = args.file.display();
    let signature =
        Signature::decode(bytes).map_err(|e| unsound(&args.file, "signature", e, bytes.len()))?;
    let document = match (&args.document, args.hash) {
        (Some(path), _) => Some(files::hash(path, signature.input().algorithm())?),
        (None, imprint) => imprint,
    };
    let trust = args.trust.load()?;
    let case = Case {
        signature: &signature,
        trust: &trust,
        document,
        level: args.level,
    };
    let report = case.examine();
    let mut judgement = case.judge(&report);
    judgement.details = Map::new()
        .with("file", name.to_string())
        .with("kind", "signature")
        .with("signed_at", signature.aggregation_time())
        .list("identities", signature.identities())
        .with("input", signature.input())
        .list("checks", report.checks.iter().map(check));
    judgement.show(args.form)
}

/// A signature, what it is to be of, and what may be relied on.
pub(crate) struct Case<'a> {
    pub(crate) signature: &'a Signature,
    pub(crate) trust: &'a Trust,
    pub(crate) document: Option<Imprint>,
    pub(crate) level: u8,
}

impl Case<'_> {
    /// Applies the policy. An extender is asked once for each time this is called.
    pub(crate) fn examine(&self) -> Report {
        policy::examine(self.signature, &self.context())
    }

    fn context(&self) -> policy::Context<'_> {
        policy::Context {
            document: self.document,
            level: self.level,
            ..self.trust.context()
        }
    }

    /// The judgement on what the examination found, without details.
    fn judge(&self, report: &Report) -> Judgement {
        let (verdict, code, summary) = match &report.verdict {
            policy::Verdict::Intact { signed_at } => (
                Verdict::Intact,
                None,
                format!("signed at {signed_at}; {}", self.proof(report)),
            ),
            policy::Verdict::Unconfirmed { code, reason } => (
                Verdict::Unconfirmed,
                Some(*code),
                format!("all checks so far agree; {}", self.missing(reason)),
            ),
            policy::Verdict::Broken { code, .. } => {
                (Verdict::Broken, Some(*code), code.meaning().to_owned())
            }
        };
        Judgement {
            verdict,
            code: code.map(|code| code.to_string()),
            summary,
            steps: self.steps(report),
            details: Map::new(),
            remarks: String::new(),
        }
    }

    fn steps(&self, report: &Report) -> Vec<Step> {
        let own = self.own_checks(report);
        let mut steps: Vec<_> = PARTS
            .iter()
            .filter_map(|part| self.step(*part, &report.checks, own))
            .collect();
        if let Some(doubt) = &self.trust.doubt {
            steps.push(Step::new(
                "anchors",
                State::Waiting,
                format!("publications file: {doubt}"),
            ));
        }
        steps
    }

    /// What the policy looked at beyond the internal rules, with which all of
    /// them begin.
    fn own_checks<'r>(&self, report: &'r Report) -> &'r [Check] {
        let context = policy::Context {
            policy: Policy::Internal,
            ..self.context()
        };
        let internal = policy::examine(self.signature, &context).checks.len();
        report.checks.get(internal..).unwrap_or_default()
    }

    /// One line a part, for the last thing that was seen of it.
    fn step(&self, part: Part, all: &[Check], own: &[Check]) -> Option<Step> {
        let name = name(part);
        let last = |checks: &[Check]| {
            checks
                .iter()
                .rfind(|check| check.step.part == part)
                .cloned()
        };
        let Check { step, outcome } = last(all)?;
        if part == Part::Document && self.document.is_none() && outcome == Rule::Passed {
            let text = "none given: the signature is judged by itself";
            return Some(Step::new(name, State::Waiting, text));
        }
        // That an anchor names the calendar's root says nothing about whose it is.
        let is_anchor = matches!(part, Part::Publication | Part::Authentication);
        if is_anchor && outcome == Rule::Passed && last(own).is_none() {
            return self
                .unasked(part)
                .map(|text| Step::new(name, State::Waiting, text));
        }
        Some(match outcome {
            Rule::Passed => Step::new(name, State::Matches, self.found(part)),
            Rule::Undecided(reason) => Step::new(name, State::Waiting, self.missing(&reason)),
            Rule::Failed(code) => {
                let facts = self.contradiction(code).unwrap_or_default();
                let text = format!("{code} {}; violated: {}", code.meaning(), step.rule);
                Step::new(name, State::Broken, text + &facts)
            }
        })
    }

    /// The facts that contradict each other, where the signature names them.
    fn contradiction(&self, code: Code) -> Option<String> {
        let signature = self.signature;
        Some(match code {
            Code::Gen03 => format!(
                "; it was signed for level {} at most",
                signature.input_level_max()
            ),
            Code::Gen04 => format!("; that is {}", signature.input().algorithm()),
            Code::Key03 => {
                let id = &signature.authentication()?.signature().certificate_id;
                let listed = self.trust.publications.as_ref()?.certificate(id)?;
                let certificate = Certificate::from_der(listed).ok()?;
                format!(
                    "; that of {} is valid from {} until {}, and it was signed at {}",
                    certificate.subject(),
                    certificate.valid_from(),
                    certificate.valid_until(),
                    signature.aggregation_time()
                )
            }
            _ => return None,
        })
    }

    /// An anchor that the signature carries and the policy does not rely on.
    fn unasked(&self, part: Part) -> Option<String> {
        let by_publication = matches!(
            self.trust.policy,
            Policy::General | Policy::PublicationsFile | Policy::UserPublication
        );
        match part {
            // Where a publication is to be the proof, a key adds nothing.
            Part::Authentication if by_publication => None,
            Part::Authentication => Some(format!(
                "{}, which this policy does not verify",
                self.signer()
            )),
            _ => Some(format!(
                "{}, which this policy compares with nothing",
                self.publication()
            )),
        }
    }

    /// What a part that holds is about.
    fn found(&self, part: Part) -> String {
        let signature = self.signature;
        match part {
            Part::Document => {
                let level = Some(self.level).filter(|level| *level > 0);
                let level = level
                    .map(|level| format!(" at level {level}"))
                    .unwrap_or_default();
                output::imprint(&signature.input()) + &level
            }
            Part::Aggregation => {
                let chains = signature.aggregation_chains();
                let links: usize = chains.iter().map(|chain| chain.links.len()).sum();
                let by: Vec<_> = signature.identities().collect();
                let by = match by.join(", ") {
                    nobody if nobody.is_empty() => nobody,
                    somebody => format!(", by {somebody}"),
                };
                format!(
                    "{} in {}{by}",
                    plural(links, "step"),
                    plural(chains.len(), "chain"),
                )
            }
            Part::Calendar => match signature.calendar() {
                Some(chain) => format!(
                    "{} under the root of {}",
                    chain.time(),
                    chain.publication_time
                ),
                None => signature.aggregation_time().to_string(),
            },
            Part::Authentication => self.signer(),
            Part::Publication => self.publication(),
        }
    }

    fn signer(&self) -> String {
        let Some(record) = self.signature.authentication() else {
            return String::new();
        };
        let id = &record.signature().certificate_id;
        let subject = self
            .trust
            .publications
            .as_ref()
            .and_then(|file| Certificate::from_der(file.certificate(id)?).ok())
            .map_or(String::new(), |certificate| {
                format!(" of {}", certificate.subject())
            });
        format!(
            "certificate {}{subject}",
            data_encoding::HEXLOWER.encode(id)
        )
    }

    fn publication(&self) -> String {
        let own = self.signature.publication();
        let Some(record) = own else {
            return "an extender's chain leads to the publication".to_owned();
        };
        let listed = self
            .trust
            .publications
            .as_ref()
            .and_then(|file| file.at_time(record.data.time));
        // Those in the signature itself are anybody's word.
        let listed = listed.filter(|listed| listed.data == record.data);
        match listed.and_then(|listed| listed.references.first()) {
            Some(reference) => format!("{}, {reference}", record.data.time),
            None => record.data.time.to_string(),
        }
    }

    /// What an intact verdict rests on.
    pub(crate) fn proof(&self, report: &Report) -> &'static str {
        let own = self.own_checks(report);
        let by_key = own
            .last()
            .is_some_and(|check| check.step.part == Part::Authentication);
        match self.trust.policy {
            Policy::Internal => "it does not contradict itself, and more was not asked",
            Policy::Calendar => "the extender's calendar agrees",
            _ if by_key => {
                "the authority's key vouches for it until it is extended to a publication"
            }
            _ if self.trust.publication.is_some() => {
                "it leads to the publication you gave: hash functions alone are relied on"
            }
            _ => "it leads to a publication of the publications file",
        }
    }

    /// What is missing, and what to do about it.
    pub(crate) fn missing(&self, reason: &Reason) -> String {
        match reason {
            Reason::NoPublicationsFile if self.trust.doubt.is_some() => {
                "the publications file is not believed".to_owned()
            }
            Reason::NoPublicationsFile => {
                "give a trusted publications file: -P, --trust and --constraint".to_owned()
            }
            Reason::NoExtender if self.trust.policy == Policy::Calendar => {
                "this policy asks an extender: give one with -X".to_owned()
            }
            Reason::NoExtender => {
                "a publication covers it: extend it first, or give an extender with -X".to_owned()
            }
            Reason::NoPublication => {
                let newest = self
                    .trust
                    .publications
                    .as_ref()
                    .and_then(|file| file.latest());
                let given = self.trust.publication.map(|data| data.time);
                match (given, newest) {
                    (Some(time), _) => {
                        format!("the publication of {time}, which was given, does not cover it")
                    }
                    (None, Some(record)) => {
                        format!(
                            "no publication covers it yet; the newest is that of {}",
                            record.data.time
                        )
                    }
                    (None, None) => "no publication covers it yet".to_owned(),
                }
            }
            reason => reason.to_string(),
        }
    }
}

/// A rule and what came of it, for programs.
fn check(Check { step, outcome }: &Check) -> Map {
    let (state, code, why) = match outcome {
        Rule::Passed => (State::Matches, None, None),
        Rule::Failed(code) => (State::Broken, Some(*code), Some(code.meaning().to_owned())),
        Rule::Undecided(reason) => (State::Waiting, Some(Code::Gen02), Some(reason.to_string())),
    };
    Map::new()
        .with("part", step.part.to_string())
        .with("rule", step.rule)
        .with("state", state.as_str())
        .maybe("code", code.map(Code::as_str))
        .maybe("why", why)
}

const PARTS: [Part; 5] = [
    Part::Document,
    Part::Aggregation,
    Part::Calendar,
    Part::Publication,
    Part::Authentication,
];

fn name(part: Part) -> &'static str {
    match part {
        Part::Document => "document",
        Part::Aggregation => "aggregation",
        Part::Calendar => "calendar",
        Part::Authentication => "key",
        Part::Publication => "published",
    }
}
