//! The configured rules (whose rows are, who writes them) and the tables as they are.
//!
//! Somebody may rename or drop a column that a rule leads through. Capture does not end
//! for that: what a rule cannot tell any more is not claimed (a line whose patient cannot
//! be told is in the list `*unknown`), and each such rule is a finding until it fits
//! again. Rules that never fitted are the configuration's fault, and refused.

use super::{Ended, Session, Worker};
use crate::actors::Actors;
use crate::config::Source;
use crate::init::InitError;
use crate::patients::Patients;
use pitser_capture::Shape;
use pitser_evidence::Code;
use pitser_monitor::Finding;
use pitser_trail::{Layout, TrailError};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The file beside the trail: the rules, as they are configured, that fitted the tables
/// last.
const FILE: &str = "rules.json";

/// The rules as far as they fit.
pub(super) struct Rules {
    pub(super) patients: Patients,
    pub(super) actors: Actors,
    /// Those that do not, by the table that they are about, if it is one.
    pub(super) unfit: BTreeMap<Option<String>, String>,
    /// The first of them.
    error: Option<InitError>,
}

impl Rules {
    pub(super) fn of(source: &Source, shapes: &[Shape]) -> Self {
        let (patients, paths) = Patients::fitting(source, shapes);
        let (actors, writers) = Actors::fitting(source, shapes);
        let mut unfit: BTreeMap<Option<String>, String> = BTreeMap::new();
        let mut note = |table: Option<&str>, text: String| {
            let texts = unfit.entry(table.map(str::to_owned)).or_default();
            if !texts.is_empty() {
                texts.push_str(". Also: ");
            }
            texts.push_str(&text);
        };
        for path in &paths {
            let text = match shapes.iter().any(|shape| shape.name == path.table) {
                true => format!(
                    "{path}. Lines of its rows, and of those that find their patients through it, are in the list \
                     *unknown"
                ),
                // Whether another table is this one, nobody could say.
                false => {
                    format!("{path}. Lines of rows that are under another name now have no patient")
                }
            };
            note(Some(&path.table), text);
        }
        for rule in &writers {
            let text = format!("{rule}. Lines do not say by it who wrote a row");
            note(rule.table(), text);
        }
        let path = paths.into_iter().next().map(InitError::from);
        let error = path.or_else(|| writers.into_iter().next().map(InitError::from));
        Self {
            patients,
            actors,
            unfit,
            error,
        }
    }

    /// The same, for a guardian that begins.
    ///
    /// # Errors
    /// Rules that do not fit, unless these very ones did before: then it is the tables
    /// that were changed.
    pub(super) fn of_trail(
        source: &Source,
        shapes: &[Shape],
        layout: &Layout,
    ) -> Result<Self, InitError> {
        let mut rules = Self::of(source, shapes);
        let path = file(layout);
        let configured = configured(source);
        let have_fitted = std::fs::read(&path).is_ok_and(|kept| kept == configured);
        match rules.error.take() {
            Some(error) if !have_fitted => return Err(error),
            None if !have_fitted => {
                pitser_trail::disk::replace(&path, &configured).map_err(TrailError::from)?;
            }
            _ => {}
        }
        Ok(rules)
    }
}

impl Session {
    /// Says which rules do not fit the tables any more.
    pub(super) fn tell_unfit(&mut self, worker: &Worker) -> Result<(), Ended> {
        for (table, text) in self.unfit.clone() {
            let text = format!(
                "the configuration does not fit the tables any more: {text}. Put the table back as it was, or correct \
                 the configuration and start the guardian again"
            );
            // Not about a line: it is the same until somebody has answered for it.
            let finding = Finding {
                table,
                ..Finding::general(Code::SchemaChanged, text)
            };
            self.finding(worker, finding)?;
        }
        Ok(())
    }
}

fn file(layout: &Layout) -> PathBuf {
    layout.dir().join(FILE)
}

fn configured(source: &Source) -> Vec<u8> {
    let rules = serde_json::json!({
        "actor": source.actor,
        "log": source.application.log,
        "patient": source.patient,
        "stamp": source.stamp,
    });
    serde_json::to_vec(&rules).expect("strings")
}
