//! What a verifier brings along: publications and whose they are, a printed
//! code, an extender, the instant of the judgement.

use std::fmt;
use std::path::{Path, PathBuf};

use pitser_client::publications_file;
use pitser_ksi::chain::CalendarChain;
use pitser_ksi::error::DecodeError;
use pitser_ksi::pdu::{ExtendResponse, ExtendResponsePayload};
use pitser_ksi::pki::{Constraint, PkiError, TrustAnchors};
use pitser_ksi::policy::{Context, Extend, ExtendError, Policy};
use pitser_ksi::publication::PublicationData;
use pitser_ksi::publications_file::PublicationsFile;
use pitser_ksi::time::Second;
use tokio::runtime::Runtime;

use crate::outcome::Failure;
use crate::service::{self, Credentials};
use crate::{clock, files};

/// Where publications are, and whom they are believed from.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PublicationsArgs {
    /// Publications file: a path, or an https://, http:// or file:// address
    #[arg(short = 'P', long = "publications", value_name = "FILE|URI")]
    pub(crate) location: Option<String>,
    /// Certificates that may vouch for the publications file's signer, PEM or DER
    #[arg(long, value_name = "CERT.pem")]
    trust: Vec<PathBuf>,
    /// What the signer's certificate must say, such as email=publications@example.org
    #[arg(long, value_name = "NAME=VALUE")]
    constraint: Vec<Constraint>,
    /// Judge certificates at this instant instead of now
    #[arg(long, value_name = "RFC3339", value_parser = instant)]
    at: Option<Second>,
}

impl PublicationsArgs {
    /// The instant of the judgement.
    pub(crate) fn at(&self) -> Second {
        self.at.unwrap_or_else(clock::now)
    }

    /// Whether anybody is trusted to sign publications files.
    pub(crate) fn trusts_somebody(&self) -> bool {
        !self.trust.is_empty()
    }

    /// Fetches and reads the publications file, if one was named. It is not
    /// believed yet.
    pub(crate) fn load(&self, whom: &Credentials) -> Result<Option<PublicationsFile>, Failure> {
        let Some(location) = &self.location else {
            return Ok(None);
        };
        let bytes = if location.contains("://") || location.starts_with("file:") {
            let options = whom.options()?;
            service::ask(async { Ok(publications_file(location, &options).await?) })?
        } else {
            files::read(Path::new(location))?
        };
        PublicationsFile::decode(&bytes)
            .map(Some)
            .map_err(|e| Failure::Input(format!("publications file {location}: {e}")))
    }

    /// Judges a publications file's own signature.
    pub(crate) fn judge(&self, file: &PublicationsFile) -> Result<Result<(), Doubt>, Failure> {
        if self.trust.is_empty() {
            return Ok(Err(Doubt::Nobody));
        }
        let mut anchors = TrustAnchors::new();
        for path in &self.trust {
            anchors
                .add_pem_or_der(&files::read(path)?)
                .map_err(|e| Failure::Input(format!("--trust {}: {e}", path.display())))?;
        }
        Ok(file
            .verify(&anchors, &self.constraint, self.at())
            .map_err(Doubt::Pki))
    }
}

/// Why a publications file is not believed.
#[derive(Debug)]
pub(crate) enum Doubt {
    /// Nobody was named who could sign it.
    Nobody,
    /// Its signature, signer or certificates.
    Pki(PkiError),
}

impl Doubt {
    /// Whether the file is not what was signed, rather than signed by a stranger.
    pub(crate) fn shows_tampering(&self) -> bool {
        matches!(self, Self::Pki(PkiError::Digest | PkiError::Signature))
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nobody => f.write_str(
                "say whose it must be, with --trust CERT.pem and --constraint NAME=VALUE",
            ),
            Self::Pki(PkiError::NoConstraint) => {
                f.write_str("say whose it must be, with --constraint NAME=VALUE beside --trust")
            }
            Self::Pki(error @ PkiError::NotValid { .. }) => {
                write!(f, "{error}: --at takes an instant")
            }
            Self::Pki(error) => error.fmt(f),
        }
    }
}

/// Everything that judging a signature may rest on.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct TrustArgs {
    #[command(flatten)]
    pub(crate) publications: PublicationsArgs,
    /// A publication code from a source you trust, such as a newspaper
    #[arg(long, value_name = "CODE", value_parser = code)]
    publication: Option<PublicationData>,
    /// Extender to ask for calendar chains, such as ksi+tcp://USER:KEY@HOST:PORT; up to three
    /// times: all are asked, and the first good answer counts
    #[arg(short = 'X', long = "extender", value_name = "URI")]
    extenders: Vec<String>,
    /// An extender's answer from a file, in place of an extender
    #[arg(long, value_name = "FILE", conflicts_with = "extenders")]
    extender_reply: Option<PathBuf>,
    #[command(flatten)]
    credentials: Credentials,
    /// Which way of proof to demand
    #[arg(long, value_enum, default_value_t)]
    policy: PolicyName,
}

impl TrustArgs {
    /// Which options were given, but for `--at`.
    pub(crate) fn given(&self) -> impl Iterator<Item = (bool, &'static str)> {
        let PublicationsArgs {
            location,
            trust,
            constraint,
            at: _,
        } = &self.publications;
        [
            (location.is_some(), "--publications"),
            (!trust.is_empty(), "--trust"),
            (!constraint.is_empty(), "--constraint"),
            (self.publication.is_some(), "--publication"),
            (!self.extenders.is_empty(), "--extender"),
            (self.extender_reply.is_some(), "--extender-reply"),
            (self.policy != PolicyName::General, "--policy"),
        ]
        .into_iter()
    }
}

/// Names of policies on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum PolicyName {
    /// It does not contradict itself
    Internal,
    /// The authority's key, by a trusted publications file
    Key,
    /// An extender's calendar
    Calendar,
    /// A publication in a trusted publications file
    PublicationsFile,
    /// The publication given with --publication: hash functions alone
    UserPublication,
    /// The strongest of --publication, publications file and key
    #[default]
    General,
}

impl From<PolicyName> for Policy {
    fn from(name: PolicyName) -> Self {
        match name {
            PolicyName::Internal => Self::Internal,
            PolicyName::Key => Self::Key,
            PolicyName::Calendar => Self::Calendar,
            PolicyName::PublicationsFile => Self::PublicationsFile,
            PolicyName::UserPublication => Self::UserPublication,
            PolicyName::General => Self::General,
        }
    }
}

impl TrustArgs {
    /// Reads and fetches what the options name.
    pub(crate) fn load(&self) -> Result<Trust, Failure> {
        if self.policy == PolicyName::UserPublication && self.publication.is_none() {
            return Err(Failure::Input(
                "the policy user-publication wants a publication: give --publication CODE".into(),
            ));
        }
        let (mut publications, mut doubt) = (None, None);
        if let Some(file) = self.publications.load(&self.credentials)? {
            match self.publications.judge(&file)? {
                Ok(()) => publications = Some(file),
                Err(why) => doubt = Some(why),
            }
        }
        Ok(Trust {
            policy: self.policy.into(),
            publications,
            doubt,
            publication: self.publication,
            extender: self.extender()?,
        })
    }

    fn extender(&self) -> Result<Option<Extender>, Failure> {
        if let Some(path) = &self.extender_reply {
            let reply = files::read(path)?;
            let key = self.credentials.key();
            return canned(&reply, key.as_ref().map(|key| key.expose()))
                .map(|chain| Some(Extender::Canned(Box::new(chain))))
                .map_err(|why| {
                    Failure::Input(format!("--extender-reply {}: {why}", path.display()))
                });
        }
        if self.extenders.is_empty() {
            return Ok(None);
        }
        let client = self.credentials.client(&self.extenders)?;
        let runtime = service::runtime()?;
        let extender = runtime.block_on(async { client.blocking_extender() });
        Ok(Some(Extender::Live {
            extender,
            _runtime: Asking(Some(runtime)),
        }))
    }
}

/// What a judgement may rest on, at hand.
#[derive(Debug)]
pub(crate) struct Trust {
    pub(crate) policy: Policy,
    /// Believed.
    pub(crate) publications: Option<PublicationsFile>,
    /// Why the publications file that was named is not believed.
    pub(crate) doubt: Option<Doubt>,
    pub(crate) publication: Option<PublicationData>,
    extender: Option<Extender>,
}

impl Trust {
    /// For [`pitser_ksi::policy::verify`].
    pub(crate) fn context(&self) -> Context<'_> {
        Context {
            publications: self.publications.as_ref(),
            user_publication: self.publication,
            extender: self
                .extender
                .as_ref()
                .map(|extender| extender as &dyn Extend),
            extending_allowed: self.extender.is_some(),
            ..Context::new(self.policy)
        }
    }
}

/// Who is asked for calendar chains.
#[derive(Debug)]
enum Extender {
    /// A service, and what keeps its connection going.
    Live {
        extender: pitser_client::BlockingExtender,
        _runtime: Asking,
    },
    /// An answer that was given in advance.
    Canned(Box<Result<CalendarChain, ExtendError>>),
}

/// A runtime that is not waited for at its end, as in [`service::ask`].
#[derive(Debug)]
struct Asking(Option<Runtime>);

impl Drop for Asking {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Extend for Extender {
    fn extend(&self, from: Second, to: Option<Second>) -> Result<CalendarChain, ExtendError> {
        match self {
            Self::Live { extender, .. } => extender.extend(from, to),
            // Whether it answers the question is what the policy judges, as a
            // contradiction with the publication rather than for want of an answer.
            Self::Canned(chain) => (**chain).clone(),
        }
    }
}

/// The outcome that an extender's reply holds. With a key, the reply must be
/// authenticated by it; the chain is checked by the policy in any case.
fn canned(
    reply: &[u8],
    key: Option<&[u8]>,
) -> Result<Result<CalendarChain, ExtendError>, CannedError> {
    let received = ExtendResponse::decode(reply)?;
    if key.is_some_and(|key| !received.verify_mac(key)) {
        return Err(CannedError::Unauthenticated);
    }
    let refused = |status, message: Option<String>| {
        Err(ExtendError(format!(
            "{status}, {}",
            message.unwrap_or_default()
        )))
    };
    let outcome = received
        .pdu
        .payloads
        .into_iter()
        .find_map(|payload| match payload {
            ExtendResponsePayload::Error(error) => Some(refused(error.status, error.message)),
            ExtendResponsePayload::Result(result) => Some(match result.calendar {
                Some(chain) if result.status.is_ok() => Ok(chain),
                _ => refused(result.status, result.message),
            }),
            ExtendResponsePayload::Config(_) => None,
        });
    outcome.ok_or(CannedError::NoResult)
}

/// Why a file is not an extender's reply.
#[derive(Debug)]
enum CannedError {
    Malformed(DecodeError),
    Unauthenticated,
    NoResult,
}

impl From<DecodeError> for CannedError {
    fn from(error: DecodeError) -> Self {
        Self::Malformed(error)
    }
}

impl fmt::Display for CannedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(error) => error.fmt(f),
            Self::Unauthenticated => f.write_str("it is not authenticated with the given key"),
            Self::NoResult => f.write_str("it answers no request to extend"),
        }
    }
}

/// Reads an instant such as `2026-03-14T09:26:53Z`.
pub(crate) fn instant(text: &str) -> Result<Second, String> {
    let instant: jiff::Timestamp = text
        .parse()
        .map_err(|_| "not an instant such as 2026-03-14T09:26:53Z".to_owned())?;
    u64::try_from(instant.as_second())
        .map(Second)
        .map_err(|_| "before 1970".to_owned())
}

/// Reads a publication code.
pub(crate) fn code(text: &str) -> Result<PublicationData, String> {
    PublicationData::from_code(text).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_instants_in_any_zone() {
        assert_eq!(instant("2026-03-14T09:26:53Z"), Ok(Second(1_773_480_413)));
        assert_eq!(
            instant("2026-03-14T11:26:53+02:00"),
            Ok(Second(1_773_480_413))
        );
        assert!(instant("2026-03-14").is_err());
        assert!(instant("1969-12-31T23:59:59Z").is_err());
    }

    #[test]
    fn a_canned_reply_is_given_whatever_is_asked() {
        let reply = std::fs::read(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../testdata/ksi/pdu/ok-sig-2014-04-30.1-extend_response.tlv"
        ));
        let reply = reply.unwrap();
        let chain = canned(&reply, Some(b"anon")).unwrap().unwrap();
        let to = chain.publication_time;
        let extender = Extender::Canned(Box::new(Ok(chain.clone())));
        assert_eq!(extender.extend(chain.time(), Some(to)), Ok(chain.clone()));
        assert_eq!(extender.extend(chain.time(), Some(to.plus(1))), Ok(chain));
        assert!(matches!(
            canned(&reply, Some(b"other")),
            Err(CannedError::Unauthenticated)
        ));
        assert!(matches!(
            canned(&reply[1..], None),
            Err(CannedError::Malformed(_))
        ));
    }
}
