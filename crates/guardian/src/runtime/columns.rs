//! What the columns of the guarded tables were called when rows were sealed: rows are
//! compared by it, and large values that an update leaves alone are found by it.

use super::{Ended, Session};
use pitser_capture::{Change, Shape};
use pitser_monitor::{Columns, Sealed};
use pitser_trail::{Layout, TrailError};
use std::path::PathBuf;
use std::sync::Arc;

/// The file beside the trail: columns of tables whose columns have changed, as they were
/// and are, with their numbers. Without it rows are compared by the names that are left.
const FILE: &str = "columns.json";

/// A table and names of its columns.
pub(super) type Named = (String, Arc<[String]>);

/// What a guardian before this one remembered.
pub(super) fn remembered(layout: &Layout) -> Columns {
    let text = std::fs::read(file(layout)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

fn file(layout: &Layout) -> PathBuf {
    layout.dir().join(FILE)
}

impl Session {
    /// Remembers what columns were called in `before`, in tables that have others now.
    pub(super) fn note_columns(&mut self, before: &[Shape]) -> Result<(), Ended> {
        let is_new = self.columns.note(before, self.source.shapes());
        self.keep_columns(is_new)
    }

    fn keep_columns(&self, is_new: bool) -> Result<(), Ended> {
        if is_new {
            let text = serde_json::to_vec(&self.columns).expect("numbers and strings");
            let path = file(self.trail.layout());
            pitser_trail::disk::replace(&path, &text).map_err(TrailError::from)?;
        }
        Ok(())
    }

    /// Asks which columns a change is of that has other ones than the row before it: the
    /// catalogue is looked at each second only.
    pub(super) fn learn_columns(&mut self, change: &Change, sealed: &Sealed) -> Result<(), Ended> {
        let (Some(row), Some(names)) = (&change.new, sealed.content.names()) else {
            return Ok(());
        };
        if row.columns == *names || self.columns.of(&change.table).knows(&row.columns) {
            return Ok(());
        }
        let named = (change.table.clone(), Arc::clone(&row.columns));
        // Whoever asks again learns no more.
        if self.asked.as_ref() == Some(&named) {
            return Ok(());
        }
        self.asked = Some(named);
        let now = self.source.fingerprint()?;
        let before = self.source.shapes_in(&self.fingerprint);
        match before.zip(self.source.shapes_in(&now)) {
            Some((before, now)) => {
                let is_new = self.columns.note(&before, &now);
                self.keep_columns(is_new)
            }
            None => Ok(()),
        }
    }
}
