//! Who is given one patient's evidence, and knows the identifiers of a whole
//! population, learns of nobody but its subject whether the trail knows him.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod world;

use pitser_evidence::Evidence;
use pitser_evidence::codec::Bytes32;
use pitser_evidence::commit::{
    Key, column_leaf, commit_person, commit_raw, patient_alpha, record_key,
};
use pitser_evidence::line::Patient;
use pitser_evidence::map::patient_map_key;
use pitser_evidence::vrf::PublicKey;
use serde_json::Value;
use sha2::{Digest as _, Sha256, Sha512};
use std::collections::HashSet;
use world::World;

const POPULATION: u32 = 100_000;
const SUBJECT: &str = "pt-2";

/// What the attacker reads: every 32 bytes in a row that stand anywhere in the file,
/// as text, hexadecimal or base64, every text, and every nonce that was disclosed.
#[derive(Default)]
struct Read {
    windows: HashSet<[u8; 32]>,
    texts: HashSet<String>,
    nonces: Vec<(Bytes32, String)>,
}

impl Read {
    fn of(evidence: &Evidence) -> Self {
        let mut read = Self::default();
        read.value(&serde_json::from_slice(&evidence.encode()).unwrap());
        for opening in evidence.lines.iter().filter_map(|line| line.open.as_ref()) {
            let columns = opening.columns.iter().flatten();
            let named = columns.filter_map(|column| Some((column.nonce?, column.name.clone())));
            read.nonces.extend(named);
            let person = opening.person.iter().map(|person| person.nonce);
            let raw = opening.raw.iter().map(|raw| raw.nonce);
            let rest = person.chain(raw).map(|nonce| (nonce, String::new()));
            read.nonces.extend(rest);
        }
        read
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::String(text) => self.text(text),
            Value::Array(all) => all.iter().for_each(|value| self.value(value)),
            Value::Object(all) => all.values().for_each(|value| self.value(value)),
            _ => {}
        }
    }

    fn text(&mut self, text: &str) {
        self.texts.insert(text.to_owned());
        for word in text.split_whitespace().chain([text]) {
            self.bytes(word.as_bytes());
            for encoding in [data_encoding::HEXLOWER, data_encoding::BASE64] {
                if let Ok(bytes) = encoding.decode(word.as_bytes()) {
                    self.bytes(&bytes);
                }
            }
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let windows = bytes.windows(32);
        self.windows
            .extend(windows.map(|window| <[u8; 32]>::try_from(window).unwrap()));
    }

    /// Whether anything that can be computed of an identifier stands in the file.
    fn holds(&self, evidence: &Evidence, id: &str) -> bool {
        let cell = format!("t{id}");
        let alpha = patient_alpha(&evidence.origin, id);
        let genesis = evidence.genesis.genesis.as_ref().unwrap();
        let sha256 = |bytes: &[u8]| -> [u8; 32] { Sha256::digest(bytes).into() };
        let mut guesses = vec![
            sha256(id.as_bytes()),
            sha256(cell.as_bytes()),
            sha256(&alpha),
            *Sha512::digest(&alpha).first_chunk().unwrap(),
            patient_map_key(&Patient::Pseudonym(Bytes32(sha256(id.as_bytes())))),
        ];
        for public in [genesis.salt.0, genesis.vrf_key.0, [0; 32]] {
            let key = Key::new(public);
            guesses.push(key.derive(&[id.as_bytes()]));
            guesses.push(key.derive(&[&alpha]));
            guesses.push(record_key(&key, [id.as_bytes()]).0);
            guesses.push(record_key(&key, [cell.as_bytes()]).0);
        }
        for (nonce, name) in &self.nonces {
            guesses.push(column_leaf(nonce, name, Some(cell.as_bytes())));
            for commitment in [commit_person(nonce, id), commit_raw(nonce, id.as_bytes())] {
                guesses.push(commitment.0.digest().try_into().unwrap());
            }
        }
        self.texts.contains(id)
            || self.texts.contains(&cell)
            || guesses.iter().any(|guess| self.windows.contains(guess))
    }
}

#[test]
fn evidence_confirms_nobody_but_its_subject() {
    let evidence = World::new().evidence(SUBJECT);
    let read = Read::of(&evidence);
    assert!(read.windows.len() > 1000 && !read.nonces.is_empty());
    let key = PublicKey(evidence.genesis.genesis.as_ref().unwrap().vrf_key.0);
    let proof = evidence.subject.proof.0.as_slice().try_into().unwrap();
    let confirmed = |numbers: std::ops::Range<u32>| -> Vec<String> {
        let ids = numbers.map(|number| format!("pt-{}", number + 1));
        let is_confirmed = |id: &String| {
            let proved = key
                .verify(&patient_alpha(&evidence.origin, id), proof)
                .is_some();
            // Whoever is proved is found in clear as well: the attack works.
            assert_eq!(read.holds(&evidence, id), proved, "{id}");
            proved
        };
        ids.filter(is_confirmed).collect()
    };
    let half = POPULATION / 2;
    let all = std::thread::scope(|scope| {
        let first = scope.spawn(|| confirmed(0..half));
        let second = confirmed(half..POPULATION);
        [first.join().unwrap(), second].concat()
    });
    // Another patient of this trail, pt-1, is among those who were tried.
    assert_eq!(all, [SUBJECT]);
}
