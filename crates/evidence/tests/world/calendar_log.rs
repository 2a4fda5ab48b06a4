//! The log of the small calendar, and three notaries who watch it.

use super::authority::Calendar;
use pitser_evidence::anchors::{CalendarLogAnchor, KeyAnchor};
use pitser_ksi::calendar_entry::CalendarEntry;
use pitser_ksi::time::Second;
use pitser_tlog::checkpoint::Checkpoint;
use pitser_tlog::merkle::{LogTree, leaf_hash};
use pitser_tlog::note::{CosigningKey, Note, SigningKey};
use pitser_tlog::proof::LogProof;

/// The second of entry 0.
pub(crate) const GENESIS: u64 = 3;

/// When the notaries see a head: so many seconds after its newest second.
pub(crate) const SEEN_AFTER: [u64; 3] = [1, 2, 4];

pub(crate) fn key() -> SigningKey {
    SigningKey::from_seed("authority.example/calendar", &[41; 32]).unwrap()
}

pub(crate) fn notary(number: u8) -> CosigningKey {
    CosigningKey::from_seed(&format!("notary.example/{number}"), &[50 + number; 32]).unwrap()
}

/// Two of the three are enough.
pub(crate) fn anchor() -> CalendarLogAnchor {
    CalendarLogAnchor {
        key: key().verifier(),
        genesis: Second(GENESIS),
        quorum: 2,
        witnesses: (0..3)
            .map(|n| KeyAnchor::new(notary(n).verifier()))
            .collect(),
    }
}

/// The log up to a second, and its head.
pub(crate) struct Log {
    entries: Vec<CalendarEntry>,
    tree: LogTree,
    pub(crate) head: Note,
}

impl Log {
    pub(crate) fn new(calendar: &Calendar, newest: u64) -> Self {
        let entry = |at: u64| {
            let root = calendar.publication(at).imprint;
            CalendarEntry::new(Second(at), calendar.leaf(at), root).unwrap()
        };
        Self::of((GENESIS..=newest).map(entry).collect())
    }

    pub(crate) fn of(entries: Vec<CalendarEntry>) -> Self {
        let tree: LogTree = entries.iter().map(|e| leaf_hash(&e.encode())).collect();
        let head = Checkpoint::new(key().name(), tree.size(), tree.root()).unwrap();
        let mut head = head.sign(&key()).unwrap();
        let newest = GENESIS + tree.size() - 1;
        for (number, after) in (0..3).zip(SEEN_AFTER) {
            let line = notary(number).cosign(head.text(), newest + after);
            head.add(line).unwrap();
        }
        Self {
            entries,
            tree,
            head,
        }
    }

    pub(crate) fn proof(&self, second: u64) -> LogProof {
        let index = second - GENESIS;
        let path = self.tree.inclusion_proof(index, self.tree.size()).unwrap();
        let entry = self.entries[usize::try_from(index).unwrap()].encode();
        let proof = LogProof::new(index, path, self.head.clone()).unwrap();
        proof.with_extra(entry.to_vec()).unwrap()
    }
}
