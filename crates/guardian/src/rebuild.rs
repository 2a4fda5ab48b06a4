//! Making anew what is derived from a trail's segments.

use crate::collected::Collected;
use pitser_trail::{Layout, Trail, TrailError};

/// What was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rebuilt {
    /// Lines of the trail.
    pub lines: u64,
    /// Its blocks.
    pub blocks: u64,
    /// Patients in the map.
    pub patients: u64,
    /// What the map and the index take on disk, in bytes.
    pub bytes: u64,
}

/// Makes the map and the index of a trail anew from its segments. No guardian
/// may be running. `progress` is told the number of lines that were read.
///
/// # Errors
/// [`TrailError`]; what is derived is then made at the next start.
pub fn rebuild(layout: Layout, progress: &mut dyn FnMut(u64)) -> Result<Rebuilt, TrailError> {
    let (trail, _, _) = Trail::rebuild::<Collected>(layout, progress)?;
    Ok(Rebuilt {
        lines: trail.state().next_seq(),
        blocks: trail.blocks(),
        patients: trail.state().patients(),
        bytes: trail.map_bytes(),
    })
}
