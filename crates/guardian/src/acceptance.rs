//! Somebody answers for a finding (docs/findings.md, spec 61 §4.6): the request and its
//! answer. The running guardian alone is asked, for it knows what is open.

use crate::approver::Token;
use pitser_trail::erasure::{ErasureError, check_text};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// Findings that one request may name, at most.
pub const MAX_FINDINGS: usize = 1000;

/// What an approver asks.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Shows who asks.
    pub token: Token,
    /// Trail lines of the findings.
    pub findings: Vec<u64>,
    /// Why they need nobody's attention any more; kept in the vault.
    pub reason: String,
}

impl Asked {
    /// Whether it can be looked at.
    pub(crate) fn check(&self) -> Result<(), String> {
        check_text(&self.reason).map_err(|error: ErasureError| error.to_string())?;
        let distinct: BTreeSet<_> = self.findings.iter().collect();
        if distinct.is_empty() || distinct.len() != self.findings.len() {
            return Err("name each finding once, and at least one".into());
        }
        match self.findings.len() <= MAX_FINDINGS {
            true => Ok(()),
            false => Err(format!("name at most {MAX_FINDINGS} findings at a time")),
        }
    }
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Asked(private)")
    }
}

/// Done: the lines are on disk, and sealed with the next block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// What was accepted, in the order that was asked for.
    pub accepted: Vec<Line>,
    /// By whom.
    pub by: String,
}

/// One finding that was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Its line.
    pub finding: u64,
    /// The line that accepts it.
    pub line: u64,
}
