//! One message: its id, its body and its signature (spec 63 §2).
//!
//! ```text
//! webhook-id        "msg_" ‖ first 32 hexadecimal digits of
//!                   H("pitser-alert-v1" ‖ each part as len:8 ‖ bytes)
//! webhook-signature "v1," ‖ base64(HMAC(secret, id ‖ "." ‖ timestamp ‖ "." ‖ body))
//! ```

use crate::status::FindingStatus;
use data_encoding::{BASE64, HEXLOWER};
use hmac::{Hmac, Mac};
use pitser_ksi::time::Second;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::fmt;
use zeroize::Zeroizing;

/// The secret of one receiver, for HMAC-SHA-256 by Standard Webhooks. `Debug`
/// hides it, and its bytes are wiped when it is dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

/// Why a text is no secret. It never repeats the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// It does not begin as such secrets do.
    #[error("the secret does not begin with whsec_")]
    Prefix,
    /// The rest is not base64.
    #[error("the secret is not whsec_ and base64")]
    Encoding,
    /// Too short to protect anything, or longer than the standard has it.
    #[error("the secret holds {0} bytes; Standard Webhooks wants 24 to 64")]
    Length(usize),
}

impl Secret {
    /// Reads `whsec_` and the base64 of 24 to 64 bytes.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let text = text.strip_prefix("whsec_").ok_or(SecretError::Prefix)?;
        let bytes = BASE64.decode(text.as_bytes()).map(Zeroizing::new);
        let bytes = bytes.map_err(|_| SecretError::Encoding)?;
        match bytes.len() {
            24..=64 => Ok(Self(bytes)),
            other => Err(SecretError::Length(other)),
        }
    }

    /// The value of `webhook-signature`.
    pub(crate) fn sign(&self, id: &str, timestamp: Second, body: &[u8]) -> String {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(format!("{id}.{}.", timestamp.0).as_bytes());
        mac.update(body);
        format!("v1,{}", BASE64.encode(&mac.finalize().into_bytes()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Something is wrong.
    Opened,
    /// A later check no longer finds it.
    Closed,
    /// Somebody answers for it.
    Accepted,
    /// There are more than are told one by one.
    More,
    /// None of those is open any more.
    NoMore,
}

impl Kind {
    /// The member `type` of the body.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "finding.opened",
            Self::Closed => "finding.closed",
            Self::Accepted => "finding.accepted",
            Self::More => "finding.more",
            Self::NoMore => "finding.no_more",
        }
    }
}

/// An id that the same parts always give, and other parts never.
pub(crate) fn id_of(parts: &[&[u8]]) -> String {
    format!("msg_{}", digest_of(parts))
}

/// 32 hexadecimal digits over `parts`, each with its length.
pub(crate) fn digest_of(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    hash.update(b"pitser-alert-v1");
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    HEXLOWER.encode(&hash.finalize()[..16])
}

/// The body about `finding`; its key stays out unless `keys`.
pub(crate) fn finding_body(
    kind: Kind,
    at: Second,
    (source, origin): (&str, &str),
    finding: &FindingStatus,
    keys: bool,
) -> Vec<u8> {
    let data = Data {
        source,
        origin,
        code: &finding.code,
        table: finding.table.as_deref(),
        key: finding.key.as_deref().filter(|_| keys),
        columns: &finding.columns,
        at: &finding.at,
        text: &finding.text,
        line: finding.line,
        accepted: finding.accepted.as_ref().map(|accepted| Accepted {
            at: &accepted.at,
            by: accepted.by.as_deref(),
            line: accepted.line,
        }),
    };
    body(kind.as_str(), at, &data)
}

/// The body of a test message.
pub(crate) fn test_body(at: Second) -> Vec<u8> {
    let text = "a test: nothing was found, and nothing has to be done";
    body("test", at, &serde_json::json!({ "text": text }))
}

fn body(kind: &str, at: Second, data: &impl Serialize) -> Vec<u8> {
    let body = Body {
        kind,
        timestamp: at.to_string(),
        data,
    };
    serde_json::to_vec(&body).expect("texts, lists and numbers")
}

#[derive(Serialize)]
struct Body<'a, D> {
    #[serde(rename = "type")]
    kind: &'a str,
    timestamp: String,
    data: &'a D,
}

#[derive(Serialize)]
struct Data<'a> {
    source: &'a str,
    origin: &'a str,
    code: &'a str,
    table: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    columns: &'a [String],
    at: &'a str,
    text: &'a str,
    line: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted: Option<Accepted<'a>>,
}

/// Who answers for it. Why stays at the guardian: it may be about anything.
#[derive(Serialize)]
struct Accepted<'a> {
    at: &'a str,
    by: Option<&'a str>,
    line: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published vector of Standard Webhooks and of Svix, where it comes from.
    #[test]
    fn signs_the_published_vector() {
        let secret = Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature = secret.sign(
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            Second(1_614_265_330),
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn secrets_are_read_strictly_and_never_shown() {
        check("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", SecretError::Prefix);
        check("whsec_not base64", SecretError::Encoding);
        check("whsec_c2hvcnQ=", SecretError::Length(5));
        let secret = Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        assert_eq!(format!("{secret:?}"), "Secret(..)");
    }

    #[track_caller]
    fn check(text: &str, expected: SecretError) {
        let error = Secret::parse(text).unwrap_err();
        assert_eq!(error, expected);
        let shown = format!("{error} {error:?}");
        assert!(
            !shown.contains(text.trim_start_matches("whsec_")),
            "{shown}"
        );
    }

    #[test]
    fn parts_cannot_run_into_each_other() {
        assert_eq!(id_of(&[b"ab", b"c"]), id_of(&[b"ab", b"c"]));
        assert_ne!(id_of(&[b"ab", b"c"]), id_of(&[b"a", b"bc"]));
    }

    #[test]
    fn a_body_has_the_key_only_when_it_was_asked_for() {
        let finding = FindingStatus {
            code: "ROW-01".into(),
            table: Some("patient".into()),
            key: Some("38001085718".into()),
            columns: vec!["name".into()],
            at: "2026-03-14T09:26:53Z".into(),
            found_at_us: 1_773_480_413_000_000,
            text: "a live row differs from its sealed version".into(),
            open: true,
            line: Some(7),
            accepted: None,
        };
        let body = |keys| {
            let at = Second(1_773_480_413);
            let names = ("h", "hospital.example/h");
            String::from_utf8(finding_body(Kind::Opened, at, names, &finding, keys)).unwrap()
        };
        assert_eq!(
            body(false),
            r#"{"type":"finding.opened","timestamp":"2026-03-14T09:26:53Z","data":{"source":"h","origin":"hospital.example/h","code":"ROW-01","table":"patient","columns":["name"],"at":"2026-03-14T09:26:53Z","text":"a live row differs from its sealed version","line":7}}"#
        );
        assert!(body(true).contains(r#""key":"38001085718""#));
    }
}
