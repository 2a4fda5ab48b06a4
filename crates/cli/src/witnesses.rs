//! Who cosigns heads, as configuration files have it: `[[witness]]`, and how many
//! of them must have done so.

use std::fmt;

use pitser_tlog::note::VerifierKey;
use pitser_witness::Prefix;
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

/// One `[[witness]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Witness {
    pub(crate) name: Option<String>,
    url: Hidden,
    key: String,
}

impl Witness {
    /// Where it is asked, and the key that its cosignatures verify under.
    pub(crate) fn parse(&self) -> Result<(Prefix, VerifierKey), String> {
        if self.name.as_ref().is_some_and(String::is_empty) {
            return Err("name: it is empty".into());
        }
        parse(&self.url.0, &self.key)
    }
}

/// Reads where a witness is asked, and its key.
pub(crate) fn parse(url: &str, key: &str) -> Result<(Prefix, VerifierKey), String> {
    let prefix = url.parse().map_err(|e| format!("url: {e}"))?;
    let key: VerifierKey = key.parse().map_err(|e| format!("key: {e}"))?;
    if !key.algorithm().cosigns() {
        return Err("key: this is the key of a log or an auditor, not of a witness".into());
    }
    Ok((prefix, key))
}

/// Checks all of a file's witnesses, and the quorum, which is called `name` there.
pub(crate) fn check(
    witnesses: &[Witness],
    name: &str,
    quorum: Option<usize>,
) -> Result<(), String> {
    let mut keys: Vec<Vec<u8>> = Vec::new();
    for (at, witness) in witnesses.iter().enumerate() {
        let what = format!("[[witness]] {}", at + 1);
        let (_, key) = witness.parse().map_err(|e| format!("{what}: {e}"))?;
        if keys.iter().any(|known| known == key.public_key()) {
            return Err(format!(
                "{what}: key: another one has it, and a key counts once"
            ));
        }
        keys.push(key.public_key().to_vec());
    }
    let all = keys.len();
    match quorum {
        Some(0) if all > 0 => Err(format!(
            "{name} is 0: a head that nobody has cosigned would count"
        )),
        Some(quorum) if quorum > all => Err(format!(
            "{name} is {quorum}, but there are {all} [[witness]] blocks: no head could ever count"
        )),
        _ => Ok(()),
    }
}

/// How many of `all` witnesses must have cosigned: more than half, unless something
/// else is said. Two such quorums have a witness in common.
pub(crate) fn quorum(all: usize, said: Option<usize>) -> usize {
    let majority = match all {
        0 => 0,
        all => all / 2 + 1,
    };
    said.unwrap_or(majority)
}

/// A text that nobody is shown: a secret, or an address that may hold one.
#[derive(Clone)]
pub(crate) struct Hidden(pub(crate) Zeroizing<String>);

impl<'de> Deserialize<'de> for Hidden {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hidden(..)")
    }
}
