//! Is the database still what the trail says? Live rows against the map,
//! and the findings and incidents that come of it.
//!
//! In scope: comparing a snapshot of the guarded tables with the state of the
//! trail, naming rows and columns that differ, keeping track of what is open.
//! Elsewhere: when to look (`guardian`), whom to tell (`web`, `cli`), reading
//! rows (`capture`), opening commitments (`trail`). This crate reads no clock.

mod absent;
mod columns;
mod finding;
mod incidents;
mod met;
mod newest;
mod rows;
mod scan;

pub use columns::{Columns, Versions};
pub use finding::{
    Finding, NotAccepted, OF_LIVE_ROWS, can_accept, can_close, key_cells, key_of, show_key,
};
pub use incidents::{Accepted, Incident, Incidents, Noted};
pub use newest::{KEPT, KEPT_BYTES, KEPT_EARLIER, Keep, Kind, More, Newest};
pub use rows::Lines;
pub use scan::{
    Expected, Found, Judge, Look, ScanTable, Sealed, Suspects, Touched, expected, look,
};
