//! Requests of an auditor to a guardian, signed with his key (docs/spec/64-audit-http.md §2).
//!
//! ```text
//! Authorization: Pitser-Audit <milliseconds since 1970> <nonce> <signature>
//!
//! signed text:
//! pitser-audit-request/1
//! <origin of the trail>
//! <method> <target>
//! <SHA-256 of the body>
//! <milliseconds since 1970>
//! <nonce>
//! ```
//! Hash and nonce (16 random bytes) are lower-case hexadecimal, the signature is base64.
//! The text begins otherwise than every other text that the key signs. The origin stands
//! in it so that nobody who is asked can put the same question to another guardian.

use std::collections::{HashMap, VecDeque};
use std::fmt;

use data_encoding::{BASE64, HEXLOWER};
use pitser_evidence::codec::Digest;
use pitser_tlog::note::{SignatureLine, SigningKey, VerifierKey};
use serde::Deserialize;

/// How far the auditor's clock and the guardian's may be apart, in milliseconds.
pub(super) const CLOCKS_MS: u64 = 60_000;
/// Nonces that are remembered at a time; more requests within two minutes are refused.
const NONCES: usize = 16_384;
const SCHEME: &str = "Pitser-Audit ";
const FIRST_LINE: &str = "pitser-audit-request/1";

/// An auditor whom a guardian answers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admitted {
    /// What he is called in the guardian's log.
    pub name: String,
    /// His public key, as `pitser audit init` printed it.
    #[serde(deserialize_with = "key")]
    pub key: VerifierKey,
    /// Whether he is given the keys of tables with the rows that he has opened: without
    /// one he cannot compare a record's key, with it he can test every key that he guesses.
    #[serde(default = "yes")]
    pub table_keys: bool,
    /// Rows that are opened for him in a day, at most; 0: none.
    #[serde(default = "rows")]
    pub rows_per_day: u64,
}

fn yes() -> bool {
    true
}

fn rows() -> u64 {
    200
}

fn key<'de, D: serde::Deserializer<'de>>(from: D) -> Result<VerifierKey, D::Error> {
    let key: VerifierKey = String::deserialize(from)?
        .parse()
        .map_err(serde::de::Error::custom)?;
    match key.algorithm().cosigns() {
        false => Ok(key),
        true => Err(serde::de::Error::custom(
            "this is a witness's key; an auditor's is of type 01",
        )),
    }
}

/// A request as it is signed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Signed<'a> {
    /// Name of the trail.
    pub(super) origin: &'a str,
    /// `GET` or `POST`.
    pub(super) method: &'a str,
    /// Path and query, from `/audit/` on.
    pub(super) target: &'a str,
    /// The body.
    pub(super) body: &'a [u8],
}

impl Signed<'_> {
    fn text(&self, at_ms: u64, nonce: &str) -> String {
        let Self {
            origin,
            method,
            target,
            ..
        } = self;
        let body = Digest::of(&[self.body]);
        let body = HEXLOWER.encode(body.0.digest());
        format!("{FIRST_LINE}\n{origin}\n{method} {target}\n{body}\n{at_ms}\n{nonce}\n")
    }

    /// The header that goes with it.
    pub(super) fn authorize(&self, key: &SigningKey, at_ms: u64, nonce: &[u8; 16]) -> String {
        let nonce = HEXLOWER.encode(nonce);
        let line = key.sign(&self.text(at_ms, &nonce));
        let signature = BASE64.encode(line.signature());
        format!("{SCHEME}{at_ms} {nonce} {signature}")
    }
}

/// A header as it came.
struct Credentials {
    at_ms: u64,
    nonce: [u8; 16],
    signature: Vec<u8>,
}

impl Credentials {
    fn parse(header: &str) -> Option<Self> {
        let mut words = header.strip_prefix(SCHEME)?.split(' ');
        let at = words.next()?;
        let at_ms: u64 = at.parse().ok()?;
        let nonce = HEXLOWER.decode(words.next()?.as_bytes()).ok()?;
        let signature = BASE64.decode(words.next()?.as_bytes()).ok()?;
        (words.next().is_none() && at_ms.to_string() == at && signature.len() == 64).then_some(
            Self {
                at_ms,
                nonce: nonce.try_into().ok()?,
                signature,
            },
        )
    }
}

/// Lets the requests of auditors pass, each once.
pub(super) struct Gate {
    origin: String,
    /// Nothing that was signed before is answered: what was answered before a restart
    /// is forgotten.
    began_ms: u64,
    /// Nonces with their times, in the order in which they came, of each auditor by place:
    /// none has room that another can take.
    seen: HashMap<usize, VecDeque<(u64, [u8; 16])>>,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seen: usize = self.seen.values().map(VecDeque::len).sum();
        write!(f, "Gate({}, {seen} seen)", self.origin)
    }
}

impl Gate {
    pub(super) fn new(origin: String, now_ms: u64) -> Self {
        Self {
            origin,
            began_ms: now_ms,
            seen: HashMap::new(),
        }
    }

    /// The place among `auditors` of the one who signed a request that was not answered
    /// before. All keys are tried: how long it takes does not tell whose it is.
    pub(super) fn admit(
        &mut self,
        auditors: &[Admitted],
        signed: Signed<'_>,
        header: &str,
        now_ms: u64,
    ) -> Option<usize> {
        let credentials = Credentials::parse(header)?;
        let signed = Signed {
            origin: &self.origin,
            ..signed
        };
        let text = signed.text(credentials.at_ms, &HEXLOWER.encode(&credentials.nonce));
        let mut who = None;
        for (place, auditor) in auditors.iter().enumerate() {
            if is_signed(&auditor.key, &text, &credentials.signature) {
                who = Some(place);
            }
        }
        let who = who?;
        let at_ms = credentials.at_ms;
        if at_ms <= self.began_ms || at_ms.abs_diff(now_ms) > CLOCKS_MS {
            return None;
        }
        // A nonce is kept while what it came with could be sent again.
        let old = |(at, _): &(u64, [u8; 16])| at.saturating_add(CLOCKS_MS) < now_ms;
        let seen = self.seen.entry(who).or_default();
        seen.retain(|seen| !old(seen));
        let is_known = seen.iter().any(|(_, nonce)| *nonce == credentials.nonce);
        if is_known || seen.len() >= NONCES {
            return None;
        }
        seen.push_back((at_ms, credentials.nonce));
        Some(who)
    }
}

fn is_signed(key: &VerifierKey, text: &str, signature: &[u8]) -> bool {
    let bytes = [key.id().as_bytes().as_slice(), signature].concat();
    let line = format!("\u{2014} {} {}\n", key.name(), BASE64.encode(&bytes));
    SignatureLine::parse(&line).is_ok_and(|line| key.verify(text, &line).is_ok())
}

/// 16 random bytes.
pub(super) fn nonce() -> Result<[u8; 16], getrandom::Error> {
    let mut nonce = [0; 16];
    getrandom::getrandom(&mut nonce)?;
    Ok(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_773_480_413_000;

    fn auditor(seed: u8) -> (SigningKey, Admitted) {
        let key = SigningKey::from_seed("auditor.example/a", &[seed; 32]).unwrap();
        let admitted = Admitted {
            name: "a".into(),
            key: key.verifier(),
            table_keys: true,
            rows_per_day: 1,
        };
        (key, admitted)
    }

    fn asked<'a>() -> Signed<'a> {
        Signed {
            origin: "hospital.example/ehr",
            method: "GET",
            target: "/audit/ehr/state?known=0&wait=0&from=0",
            body: b"",
        }
    }

    fn gate() -> Gate {
        Gate::new("hospital.example/ehr".into(), NOW - 100_000)
    }

    #[test]
    fn what_an_auditor_signed_passes_once() {
        let ((_, other), (key, admitted)) = (auditor(1), auditor(2));
        let auditors = [other, admitted];
        let header = asked().authorize(&key, NOW, &[7; 16]);
        let mut gate = gate();
        assert_eq!(gate.admit(&auditors, asked(), &header, NOW), Some(1));
        assert_eq!(gate.admit(&auditors, asked(), &header, NOW), None);
        // Also later, while it would be fresh enough.
        let later = NOW + CLOCKS_MS;
        assert_eq!(gate.admit(&auditors, asked(), &header, later), None);
        let header = asked().authorize(&key, NOW, &[8; 16]);
        assert_eq!(gate.admit(&auditors, asked(), &header, later), Some(1));
        let next = asked().authorize(&key, later + 1, &[9; 16]);
        assert_eq!(gate.admit(&auditors, asked(), &next, later + 1), Some(1));
        assert_eq!(
            gate.seen[&1].len(),
            1,
            "what cannot come again is forgotten"
        );
    }

    #[test]
    fn no_auditor_takes_the_room_of_another() {
        let ((loud, first), (quiet, second)) = (auditor(1), auditor(2));
        let auditors = [first, second];
        let mut gate = gate();
        let mut ask = |key: &SigningKey, number: usize| {
            let mut nonce = [0; 16];
            nonce[..8].copy_from_slice(&number.to_be_bytes());
            let header = asked().authorize(key, NOW, &nonce);
            gate.admit(&auditors, asked(), &header, NOW)
        };
        for number in 0..NONCES {
            assert_eq!(ask(&loud, number), Some(0));
        }
        assert_eq!(ask(&loud, NONCES), None);
        assert_eq!(ask(&quiet, 1), Some(1));
    }

    #[test]
    fn nothing_else_passes() {
        let (key, admitted) = auditor(2);
        let auditors = [admitted];
        let header = asked().authorize(&key, NOW, &[7; 16]);
        let refused = |signed: Signed<'_>, header: &str, now| {
            assert_eq!(
                gate().admit(&auditors, signed, header, now),
                None,
                "{header}"
            );
        };
        refused(asked(), "", NOW);
        refused(asked(), &header.replacen("Pitser-Audit", "Bearer", 1), NOW);
        refused(asked(), &format!("{header} x"), NOW);
        refused(asked(), &header.replacen(' ', " 0", 1), NOW);
        refused(asked(), &header, NOW + CLOCKS_MS + 1);
        refused(asked(), &header, NOW - CLOCKS_MS - 1);
        let target = "/audit/ehr/publications";
        refused(Signed { target, ..asked() }, &header, NOW);
        refused(
            Signed {
                method: "POST",
                ..asked()
            },
            &header,
            NOW,
        );
        refused(
            Signed {
                body: b"x",
                ..asked()
            },
            &header,
            NOW,
        );
        let (stranger, _) = auditor(3);
        refused(asked(), &asked().authorize(&stranger, NOW, &[7; 16]), NOW);
        for at in 0..header.len() {
            let mut bytes = header.clone().into_bytes();
            bytes[at] ^= 1;
            refused(asked(), &String::from_utf8_lossy(&bytes), NOW);
        }
        assert_eq!(gate().admit(&[], asked(), &header, NOW), None);
    }

    #[test]
    fn a_question_to_one_trail_is_none_to_another() {
        let (key, admitted) = auditor(2);
        let header = asked().authorize(&key, NOW, &[7; 16]);
        let mut gate = Gate::new("other.example/ehr".into(), NOW - 100_000);
        assert_eq!(gate.admit(&[admitted], asked(), &header, NOW), None);
    }

    #[test]
    fn what_was_signed_before_a_restart_is_not_answered_after_it() {
        let (key, admitted) = auditor(2);
        let header = asked().authorize(&key, NOW, &[7; 16]);
        let mut gate = Gate::new("hospital.example/ehr".into(), NOW);
        assert_eq!(gate.admit(&[admitted], asked(), &header, NOW + 5), None);
    }
}
