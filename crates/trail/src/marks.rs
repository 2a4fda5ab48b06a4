//! Marks: what the map's store remembers of earlier lines beside the leaves, in
//! constant time and without the lines (docs/spec/30-trail.md §3, rule 14).
//!
//! ```text
//! message    H("message\0" ‖ position)        it was taken, and is not taken again
//! finding    H("finding\0" ‖ seq:8 ‖ hash:33) line `seq` is a finding
//! accepted   H("accepted\0" ‖ seq:8)          somebody answers for it
//! ```

use pitser_evidence::codec::{Bytes32, Digest};
use pitser_evidence::line::{Line, Op};
use pitser_evidence::state::{ApplyError, State, StateError};
use pitser_evidence::store::{Pages, Tree};
use pitser_ksi::hash::{Algorithm, hash};

/// Takes a line that was just applied: its marks are made.
///
/// # Errors
/// [`ApplyError::Line`] if it accepts what is no finding before it, or one that was
/// accepted before; [`ApplyError::Storage`].
pub(crate) fn follow<P: Pages>(
    state: &mut State<Tree<P>>,
    line: &Line,
    line_hash: Digest,
) -> Result<(), ApplyError<P::Error>> {
    let marks = match (line.op, line.accept.as_deref()) {
        (Op::Read, _) => message(&line.pos),
        (Op::Finding, _) => finding(line.seq, line_hash),
        (_, Some(accept)) => {
            let known = finding(accept.finding.seq, accept.finding.hash);
            let accepted = accepted(accept.finding.seq);
            let storage = state.storage();
            let what = match (is_marked(storage, &known)?, is_marked(storage, &accepted)?) {
                (true, false) => None,
                (false, _) => Some("it accepts a line that is no finding of this trail"),
                (true, true) => Some("it accepts a finding that was accepted before"),
            };
            if let Some(what) = what {
                let seq = line.seq;
                return Err(StateError { seq, what }.into());
            }
            accepted
        }
        _ => return Ok(()),
    };
    let marked = state.storage_mut().mark(&marks);
    marked.map_err(ApplyError::Storage)
}

fn is_marked<P: Pages>(storage: &Tree<P>, mark: &Bytes32) -> Result<bool, ApplyError<P::Error>> {
    storage.is_marked(mark).map_err(ApplyError::Storage)
}

/// The mark of a message, by the position that its lines have.
pub(crate) fn message(position: &str) -> Bytes32 {
    mark(&[b"message\0", position.as_bytes()])
}

fn finding(seq: u64, line_hash: Digest) -> Bytes32 {
    let imprint = line_hash.0.as_bytes();
    mark(&[b"finding\0", &seq.to_be_bytes(), imprint])
}

fn accepted(seq: u64) -> Bytes32 {
    mark(&[b"accepted\0", &seq.to_be_bytes()])
}

fn mark(parts: &[&[u8]]) -> Bytes32 {
    let hash = hash(Algorithm::Sha256, parts);
    let mut mark = [0; 32];
    mark.copy_from_slice(hash.digest());
    Bytes32(mark)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pitser_evidence::line::{Acceptance, Prev, Timestamp};

    fn line(op: Op, seq: u64) -> Line {
        let at = Timestamp::from_micros(0).unwrap();
        Line::new(op, seq, at, "guardian", "1")
    }

    fn take(state: &mut State, line: &Line) -> Result<(), &'static str> {
        match follow(state, line, Line::hash(&line.encode())) {
            Ok(()) => Ok(()),
            Err(ApplyError::Line(error)) => Err(error.what),
            Err(ApplyError::Storage(never)) => match never {},
        }
    }

    #[test]
    fn only_a_finding_before_is_accepted_and_only_once() {
        let mut state = State::new();
        let found = line(Op::Finding, 5);
        let accept = |seq: u64, of: &Line| Line {
            accept: Some(Box::new(Acceptance {
                finding: Prev {
                    hash: Line::hash(&of.encode()),
                    seq: of.seq,
                },
            })),
            ..line(Op::Accept, seq)
        };
        let no_finding = Err("it accepts a line that is no finding of this trail");
        assert_eq!(
            take(&mut state, &accept(4, &found)),
            no_finding,
            "it comes later"
        );
        let update = line(Op::Update, 3);
        assert_eq!(take(&mut state, &update), Ok(()));
        assert_eq!(take(&mut state, &accept(6, &update)), no_finding);
        assert_eq!(take(&mut state, &found), Ok(()));
        // The right line, with another hash; its bytes under another number.
        let mut other = accept(6, &found);
        other.accept.as_mut().unwrap().finding.hash = Digest::of(&[b"other"]);
        assert_eq!(take(&mut state, &other), no_finding);
        let mut other = accept(6, &found);
        other.accept.as_mut().unwrap().finding.seq = 4;
        assert_eq!(take(&mut state, &other), no_finding);
        assert_eq!(take(&mut state, &accept(6, &found)), Ok(()));
        assert_eq!(
            take(&mut state, &accept(7, &found)),
            Err("it accepts a finding that was accepted before")
        );
    }
}
