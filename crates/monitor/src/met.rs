//! Which records a pass over the rows has met: sixteen bytes for each, however many
//! there are.

use pitser_evidence::codec::Bytes32;

/// Records that were met.
///
/// A record's key is an HMAC, so that its first half tells it from all others.
#[derive(Debug)]
pub(crate) struct Met {
    /// By the first byte: none of them is copied whole while it grows.
    parts: Vec<Vec<u128>>,
}

/// The same, to be asked.
#[derive(Debug)]
pub(crate) struct AllMet(Met);

impl Met {
    pub(crate) fn new() -> Self {
        Self {
            parts: vec![Vec::new(); 256],
        }
    }

    /// Notes a record, perhaps not for the first time.
    pub(crate) fn insert(&mut self, record: &Bytes32) {
        self.parts[usize::from(record.0[0])].push(half(record));
    }

    /// After the last one.
    pub(crate) fn all(mut self) -> AllMet {
        self.parts.iter_mut().for_each(|part| part.sort_unstable());
        AllMet(self)
    }
}

impl AllMet {
    /// Whether a record was met.
    pub(crate) fn contains(&self, record: &Bytes32) -> bool {
        let part = &self.0.parts[usize::from(record.0[0])];
        part.binary_search(&half(record)).is_ok()
    }
}

fn half(record: &Bytes32) -> u128 {
    let (half, _) = record
        .0
        .split_first_chunk()
        .expect("32 bytes are more than 16");
    u128::from_be_bytes(*half)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pitser_evidence::codec::Digest;

    fn record(number: u32) -> Bytes32 {
        let digest = Digest::of(&[&number.to_be_bytes()]);
        Bytes32(digest.0.digest().try_into().unwrap())
    }

    #[test]
    fn those_that_were_met_are_known_and_no_others() {
        let mut met = Met::new();
        // Half of them, in no order, some twice.
        for number in (0..3000).rev().chain(0..100) {
            met.insert(&record(2 * number));
        }
        let met = met.all();
        for number in 0..6000 {
            let is_met = met.contains(&record(number));
            assert_eq!(is_met, number.is_multiple_of(2), "{number}");
        }
    }
}
