//! Whether answers hold what was asked for: each by the authority's certificate,
//! a whole round also against what the server counted.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use pitser_client::Options;
use pitser_ksi::hash::Imprint;
use pitser_ksi::pdu::{AggregationResponse, AggregationResponsePayload};
use pitser_ksi::pki::{Constraint, TrustAnchors};
use pitser_ksi::policy::{Context, Policy, verify};
use pitser_ksi::publications_file::PublicationsFile;
use pitser_ksi::signature::Signature;

use super::super::server::Authority;
use super::load::KEY;
use crate::clock;
use crate::outcome::Failure;

/// What was to be signed, and the answer as it came.
pub(super) type Sampled = (Imprint, Vec<u8>);

/// Knows whom to believe.
#[derive(Clone)]
pub(super) struct Checker {
    publications: Arc<PublicationsFile>,
}

/// Answers that are verified while others come.
pub(super) struct Meanwhile(JoinHandle<Result<u64, Failure>>);

impl Checker {
    /// Reads the authority's publications file and verifies it by its certificate.
    pub(super) async fn new(authority: &Authority) -> Result<Self, Failure> {
        let uri = authority.text("publications");
        let bytes = pitser_client::publications_file(uri, &Options::default()).await;
        let file = PublicationsFile::decode(&bytes.map_err(Failure::service)?);
        let file = file.map_err(Failure::service)?;
        let pem = std::fs::read_to_string(authority.text("certificate"));
        let anchors = TrustAnchors::from_pem(&pem.map_err(Failure::service)?);
        let constraint: Result<Constraint, _> = authority.text("constraint").parse();
        file.verify(
            &anchors.map_err(Failure::service)?,
            &[constraint.map_err(Failure::service)?],
            clock::now(),
        )
        .map_err(Failure::service)?;
        Ok(Self {
            publications: Arc::new(file),
        })
    }

    /// Verifies what is sent, on a thread of its own.
    pub(super) fn meanwhile(&self) -> (Sender<Sampled>, Meanwhile) {
        let (samples, queue): (_, Receiver<Sampled>) = channel();
        let checker = self.clone();
        let work = move || {
            let mut verified = 0;
            for (document, answer) in queue {
                checker.check(document, &answer, Policy::Key)?;
                verified += 1;
            }
            Ok(verified)
        };
        (samples, Meanwhile(thread::spawn(work)))
    }

    /// Verifies a whole round, which the server says has `told` requests; returns
    /// how many it had.
    pub(super) fn check_round(&self, answers: &[Sampled], told: u64) -> Result<u64, Failure> {
        let count = answers.len() as u64;
        if count != told {
            return Err(Failure::Service(format!(
                "a round of {told} requests, the authority says, but {count} of its answers came"
            )));
        }
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let part = answers.len().div_ceil(cores).max(1);
        let roots = thread::scope(|scope| {
            let check_all = |answers: &[Sampled]| -> Result<Vec<Imprint>, Failure> {
                let mut roots = Vec::new();
                for (document, answer) in answers {
                    let signature = self.check(*document, answer, Policy::Internal)?;
                    roots.push(signature.aggregation_output());
                    roots.dedup();
                }
                Ok(roots)
            };
            let parts: Vec<_> = answers
                .chunks(part)
                .map(|answers| scope.spawn(move || check_all(answers)))
                .collect();
            let mut roots = Vec::new();
            for part in parts {
                let checked = part.join();
                roots.extend(checked.map_err(|_| Failure::Service("a check failed".into()))??);
            }
            Ok::<_, Failure>(roots)
        })?;
        if roots.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(Failure::Service("a round has two roots".into()));
        }
        Ok(count)
    }

    fn check(
        &self,
        document: Imprint,
        answer: &[u8],
        policy: Policy,
    ) -> Result<Signature, Failure> {
        let received = AggregationResponse::decode(answer).map_err(Failure::service)?;
        if !received.verify_mac(KEY) {
            return Err(Failure::Service("an answer with a wrong MAC".into()));
        }
        let result = received
            .pdu
            .payloads
            .iter()
            .find_map(|payload| match payload {
                AggregationResponsePayload::Result(result) => Some(result),
                _ => None,
            });
        let result = result.ok_or_else(|| Failure::Service("an answer without result".into()))?;
        let signature = Signature::from_result(&result.signature, 0).map_err(Failure::service)?;
        let context = Context {
            document: Some(document),
            publications: Some(&self.publications),
            ..Context::new(policy)
        };
        let verdict = verify(&signature, &context);
        if verdict.is_intact() {
            Ok(signature)
        } else {
            Err(Failure::Service(format!(
                "a signature that does not hold: {verdict:?}"
            )))
        }
    }
}

impl Meanwhile {
    /// How many were verified, once all senders are gone.
    pub(super) fn finish(self) -> Result<u64, Failure> {
        let checked = self.0.join();
        checked.map_err(|_| Failure::Service("a check failed".into()))?
    }
}
