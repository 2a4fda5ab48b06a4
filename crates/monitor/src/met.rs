//! Which records a pass over the rows has met: six bytes for each and at most an eighth
//! more, however many there are.

use pitser_evidence::codec::Bytes32;

/// Records that were met.
///
/// A record's key is an HMAC under a key that the database does not know, so that its first
/// seven bytes tell it from ten million others but for one case in 2^32, and nobody can
/// choose which.
#[derive(Debug)]
pub(crate) struct Met {
    /// By the first byte: none of them is copied whole while it grows.
    parts: Vec<Vec<Rest>>,
}

/// What is kept of a record in its part.
type Rest = [u8; 6];

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
        let (part, rest) = split(record);
        let part = &mut self.parts[part];
        if part.len() == part.capacity() {
            // Doubling would leave up to half of it empty.
            part.reserve_exact((part.len() / 8).max(16));
        }
        part.push(rest);
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
        let (part, rest) = split(record);
        self.0.parts[part].binary_search(&rest).is_ok()
    }
}

/// The part that a record belongs to, and what is kept of it there.
fn split(record: &Bytes32) -> (usize, Rest) {
    let (part, rest) = record.0.split_first().expect("32 bytes are more than one");
    let (rest, _) = rest.split_first_chunk().expect("31 bytes are more than 6");
    (usize::from(*part), *rest)
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

    #[test]
    fn an_eighth_is_empty_at_most() {
        let mut met = Met::new();
        (0..100_000).for_each(|number| met.insert(&record(number)));
        let capacity: usize = met.parts.iter().map(Vec::capacity).sum();
        assert!(capacity < 115_000, "{capacity}");
    }
}
