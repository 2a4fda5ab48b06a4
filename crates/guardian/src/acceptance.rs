//! Somebody answers for findings (docs/findings.md, spec 61 §4.6): the requests and their
//! answers. The running guardian alone is asked, for it knows what is open.
//!
//! Findings are named one by one, and accepted all or none; or chosen by what they have in
//! common, and accepted portion by portion, so that capture never waits for long.

use crate::approver::Token;
use pitser_evidence::Code;
use pitser_evidence::line::Timestamp;
use pitser_monitor::{Kind, can_accept};
use pitser_trail::erasure::{ErasureError, check_text};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Findings that one request may name or accept, at most.
pub const MAX_FINDINGS: usize = 1000;

/// What an approver asks about findings that he names.
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
        check_reason(&self.reason)?;
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

/// What an approver asks about the open findings of a choice, from one line on.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskedOf {
    /// Shows who asks.
    pub token: Token,
    /// Which ones.
    pub of: Choice,
    /// Why they need nobody's attention any more; kept in the vault. Without it nothing
    /// is accepted: the answer tells what would be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl AskedOf {
    /// Whether it can be looked at.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.reason.as_deref().map_or(Ok(()), check_reason)?;
        if self.of.from > self.of.until {
            return Err(format!(
                "there is no line from {} to {}",
                self.of.from, self.of.until
            ));
        }
        let code = self.of.code.map_or(Ok(()), can_accept);
        code.map_err(|why| format!("{}: {why}", self.of.code.map_or("", Code::as_str)))
    }
}

impl fmt::Debug for AskedOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AskedOf(private)")
    }
}

/// Findings by what they have in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// In this line of the trail, or after it.
    pub from: u64,
    /// In this line, or before it.
    pub until: u64,
    /// Found by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_at: Option<Timestamp>,
    /// Of this code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// About this table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
}

impl Choice {
    /// Whether findings of that code and table are among them.
    pub(crate) fn has_kind(&self, (code, table): &Kind) -> bool {
        self.code.is_none_or(|it| it == *code) && (self.table.is_none() || self.table == *table)
    }

    /// Whether one that was found at that time is among them.
    pub(crate) fn has_time(&self, at: Timestamp) -> bool {
        self.until_at.is_none_or(|until| at <= until)
    }
}

/// A portion of a choice was looked at. What was accepted of it is on disk, and sealed
/// with the next block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Portion {
    /// Who asks.
    pub by: String,
    /// Findings that were accepted, or would be.
    pub found: Vec<Counted>,
    /// Open ones that nobody can answer for.
    pub left: Vec<Counted>,
    /// The first and the last line that accepts one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<(u64, u64)>,
    /// Where the next portion begins; `None` after the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// How many findings there are of one code and table, and between which lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Their code.
    pub code: Code,
    /// The table that they are about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// How many.
    pub count: u64,
    /// The first one's line.
    pub first: u64,
    /// The last one's line.
    pub last: u64,
}

/// Findings counted by code and table, as one portion after the other is looked at.
#[derive(Debug, Default)]
pub struct Tally(BTreeMap<Kind, Counted>);

impl Tally {
    /// One more, in this line.
    pub(crate) fn add(&mut self, kind: Kind, line: u64) {
        let (code, table) = kind.clone();
        self.merge(Counted {
            code,
            table,
            count: 1,
            first: line,
            last: line,
        });
    }

    /// What a portion has.
    pub fn merge(&mut self, more: Counted) {
        match self.0.get_mut(&(more.code, more.table.clone())) {
            Some(counted) => {
                counted.count += more.count;
                counted.first = counted.first.min(more.first);
                counted.last = counted.last.max(more.last);
            }
            None => drop(self.0.insert((more.code, more.table.clone()), more)),
        }
    }

    /// How many there are together.
    pub fn count(&self) -> u64 {
        self.0.values().map(|counted| counted.count).sum()
    }

    /// Each code and table.
    pub fn counted(&self) -> impl Iterator<Item = &Counted> {
        self.0.values()
    }

    /// The same, to be sent.
    pub(crate) fn into_counted(self) -> Vec<Counted> {
        self.0.into_values().collect()
    }
}

fn check_reason(reason: &str) -> Result<(), String> {
    check_text(reason).map_err(|error: ErasureError| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_counted_by_code_and_table_over_all_portions() {
        let kind = |table: &str| (Code::Unattributed, Some(table.to_owned()));
        let (mut all, mut next) = (Tally::default(), Tally::default());
        all.add(kind("entry"), 7);
        all.add(kind("visit"), 8);
        next.add(kind("entry"), 12);
        next.add(kind("entry"), 10);
        next.into_counted().into_iter().for_each(|it| all.merge(it));
        assert_eq!(all.count(), 4);
        let told = all.into_counted();
        let told: Vec<_> = told
            .iter()
            .map(|it| (it.count, it.first, it.last))
            .collect();
        assert_eq!(told, [(3, 7, 12), (1, 8, 8)]);
    }

    #[test]
    fn a_choice_has_a_range_and_no_code_that_nobody_can_answer_for() {
        let asked = |from, code| AskedOf {
            token: Token::new("mari"),
            of: Choice {
                from,
                until: 10,
                until_at: None,
                code,
                table: None,
            },
            reason: None,
        };
        assert_eq!(asked(10, Some(Code::Unattributed)).check(), Ok(()));
        assert!(asked(11, None).check().is_err());
        let row = asked(0, Some(Code::RowMissing)).check().unwrap_err();
        assert!(
            row.starts_with("ROW-02: the row is not as it was sealed"),
            "{row}"
        );
    }
}
