//! Marks of the messages that were taken: what the map's store remembers beside the
//! leaves and the marks of the replay (`pitser_evidence::marks`).
//!
//! ```text
//! message    H("message\0" ‖ position)        it was taken, and is not taken again
//! ```

use pitser_evidence::codec::Bytes32;
use pitser_evidence::line::{Line, Op};
use pitser_evidence::marks::mark;
use pitser_evidence::state::State;
use pitser_evidence::store::{Pages, Storage, Tree};

/// Takes a line that was just applied.
///
/// # Errors
/// What the storage says.
pub(crate) fn follow<P: Pages>(state: &mut State<Tree<P>>, line: &Line) -> Result<(), P::Error> {
    match line.op {
        Op::Read => state.storage_mut().mark(&message(&line.pos)),
        _ => Ok(()),
    }
}

/// The mark of a message, by the position that its lines have.
pub(crate) fn message(position: &str) -> Bytes32 {
    mark(&[b"message\0", position.as_bytes()])
}
