//! Judging a block's seal, a KSI-compatible signature, by a verifier's anchors.

use crate::anchors::Anchors;
use pitser_ksi::hash::Imprint;
use pitser_ksi::pki::{Constraint, TrustAnchors};
use pitser_ksi::policy::{self, Context, Policy, Reason, Verdict};
use pitser_ksi::publication::PublicationData;
use pitser_ksi::publications_file::PublicationsFile;
use pitser_ksi::signature::Signature;
use pitser_ksi::time::Second;

/// What a seal is worth to this verifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seal {
    /// A publication that the verifier trusts covers it: only hash functions
    /// are relied on.
    Published {
        /// When the block was sealed.
        at: Second,
    },
    /// The authority's key signed the calendar: to be relied on until the
    /// next publication replaces it.
    Keyed {
        /// When the block was sealed.
        at: Second,
    },
    /// Consistent in itself; what would confirm it is missing.
    Waiting(String),
    /// Contradicts itself, its block, or the anchors.
    Broken(String),
}

/// What seals are judged by.
#[derive(Debug, Default)]
pub struct SealKeys {
    codes: Vec<PublicationData>,
    publications: Option<PublicationsFile>,
    no_publications: Option<String>,
}

impl SealKeys {
    /// Nothing: seals are checked for consistency alone.
    pub fn none() -> Self {
        Self::default()
    }

    /// The publication codes in `anchors`, and the given publications file if
    /// its signer is one whom `anchors` name, judged at `at`.
    pub fn new(anchors: Option<&Anchors>, publications: Option<&[u8]>, at: Second) -> Self {
        let Some(anchors) = anchors else {
            return Self::none();
        };
        let codes = anchors.publications.iter().map(|p| p.code).collect();
        let (publications, no_publications) =
            match publications.map(|bytes| trusted(anchors, bytes, at)) {
                None => (None, None),
                Some(Ok(file)) => (Some(file), None),
                Some(Err(why)) => (None, Some(why)),
            };
        Self {
            codes,
            publications,
            no_publications,
        }
    }
}

impl SealKeys {
    /// Whether one of the trusted publications covers second `at`.
    pub(crate) fn covers(&self, at: Second) -> bool {
        let publications = self
            .publications
            .iter()
            .flat_map(|file| file.publications());
        let publications = publications.map(|record| record.data.time);
        let codes = self.codes.iter().map(|code| code.time);
        codes.chain(publications).any(|time| time >= at)
    }
}

/// Judges `signature` as the seal on `root` at `level`.
pub fn check(signature: &[u8], root: Imprint, level: u8, keys: &SealKeys) -> Seal {
    let signature = match Signature::decode(signature) {
        Ok(signature) => signature,
        Err(e) => return Seal::Broken(format!("not a signature: {e}")),
    };
    let at = signature.aggregation_time();
    let judge = |policy: Policy, user_publication: Option<PublicationData>| {
        let context = Context {
            document: Some(root),
            level,
            publications: keys.publications.as_ref(),
            user_publication,
            ..Context::new(policy)
        };
        policy::verify(&signature, &context)
    };
    if let Verdict::Broken { code, step } = judge(Policy::Internal, None) {
        return Seal::Broken(format!("{code}, {step}"));
    }
    let published = signature.publication().map(|record| record.data);
    let code = keys
        .codes
        .iter()
        .find(|code| published.is_some_and(|data| data.time == code.time));
    let (by_key, verdict) = if let Some(code) = code {
        (false, judge(Policy::UserPublication, Some(*code)))
    } else if published.is_some() {
        (false, judge(Policy::PublicationsFile, None))
    } else {
        (true, judge(Policy::Key, None))
    };
    match verdict {
        Verdict::Intact { .. } if by_key => Seal::Keyed { at },
        Verdict::Intact { .. } => Seal::Published { at },
        Verdict::Unconfirmed { reason, .. } => Seal::Waiting(waiting(&reason, keys)),
        Verdict::Broken { code, step } => Seal::Broken(format!("{code}, {step}")),
    }
}

/// When `signature` was made, if it can be read.
pub fn time(signature: &[u8]) -> Option<Second> {
    Signature::decode(signature)
        .ok()
        .map(|s| s.aggregation_time())
}

fn waiting(reason: &Reason, keys: &SealKeys) -> String {
    match (&keys.no_publications, reason) {
        (Some(why), _) => format!("the publications file is not to be trusted: {why}"),
        (None, Reason::NoPublicationsFile) => "no publication of yours covers it".into(),
        (None, reason) => reason.to_string(),
    }
}

fn trusted(anchors: &Anchors, bytes: &[u8], at: Second) -> Result<PublicationsFile, String> {
    let file = PublicationsFile::decode(bytes).map_err(|e| e.to_string())?;
    let mut last = "your anchors name no authority".to_owned();
    for authority in &anchors.authorities {
        let trust = TrustAnchors::from_pem(&authority.certificate).map_err(|e| e.to_string())?;
        let constraints: Vec<Constraint> = authority
            .constraints
            .iter()
            .map(|c| c.parse())
            .collect::<Result<_, _>>()
            .map_err(|e| format!("{e}"))?;
        match file.verify(&trust, &constraints, at) {
            Ok(()) => return Ok(file),
            Err(e) => last = e.to_string(),
        }
    }
    Err(last)
}
