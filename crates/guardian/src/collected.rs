//! What a guardian keeps from all lines of its trail, without reading them
//! again at each start.

use crate::runtime::Written;
use pitser_capture::Position;
use pitser_evidence::codec::{Blob, Bytes32, Digest};
use pitser_evidence::line::{Line, Op};
use pitser_trail::Gather;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashSet};

/// What every line of the trail is asked for when it is opened.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) position: Option<Position>,
    pub(crate) genesis_position: Option<Position>,
    /// Tables whose rows all have their line.
    pub(crate) live: HashSet<String>,
    pub(crate) events: u64,
    /// Lines of findings, and those that accept them.
    pub(crate) findings: Vec<Line>,
    pub(crate) fingerprint: Option<Digest>,
    /// Tables that the trail was begun with.
    pub(crate) first: Vec<String>,
    /// Records that were deleted before their table's baseline was complete.
    pub(crate) gone: HashSet<(String, Bytes32)>,
    /// What there is of the last transaction.
    pub(crate) written: Written,
}

/// [`Collected`] as it is made durable. A changed form has another name.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    position: Option<String>,
    genesis_position: Option<String>,
    live: BTreeSet<String>,
    events: u64,
    findings: Vec<Blob>,
    fingerprint: Option<Digest>,
    first: Vec<String>,
    gone: Vec<(String, Bytes32)>,
    written: Written,
}

impl Saved {
    fn collected(self) -> Option<Collected> {
        // `None` within `Some` is a position that was none.
        let position = |text: Option<String>| match text {
            Some(text) => text.parse().ok().map(Some),
            None => Some(None),
        };
        let findings = self.findings.iter().map(|line| Line::decode(&line.0).ok());
        Some(Collected {
            position: position(self.position)?,
            genesis_position: position(self.genesis_position)?,
            live: self.live.into_iter().collect(),
            events: self.events,
            findings: findings.collect::<Option<_>>()?,
            fingerprint: self.fingerprint,
            first: self.first,
            gone: self.gone.into_iter().collect(),
            written: self.written,
        })
    }
}

impl Gather for Collected {
    const FORM: &'static str = "guardian 3";

    fn save(&self) -> Vec<u8> {
        let position = |position: &Option<Position>| position.as_ref().map(Position::to_string);
        let saved = Saved {
            position: position(&self.position),
            genesis_position: position(&self.genesis_position),
            live: self.live.iter().cloned().collect(),
            events: self.events,
            findings: self.findings.iter().map(|l| Blob(l.encode())).collect(),
            fingerprint: self.fingerprint,
            first: self.first.clone(),
            gone: self.gone.iter().cloned().collect(),
            written: self.written.clone(),
        };
        serde_json::to_vec(&saved).expect("it has only numbers, text and bytes")
    }

    fn load(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice::<Saved>(bytes).ok()?.collected()
    }

    fn line(&mut self, line: &Line) {
        match line.op {
            Op::Genesis => {
                self.genesis_position = line.pos.parse().ok();
                let tables = line.genesis.iter().flat_map(|genesis| &genesis.tables);
                self.first = tables.map(|table| table.name.clone()).collect();
            }
            Op::Live => match &line.table {
                Some(table) => drop(self.live.insert(table.clone())),
                None => self.live.extend(std::mem::take(&mut self.first)),
            },
            Op::Finding | Op::Accept => self.findings.push(line.clone()),
            Op::Ddl => self.fingerprint = line.ddl.as_ref().map(|d| d.after),
            Op::Delete => {
                if let (Some(table), Some(record)) = (&line.table, line.key)
                    && !self.live.contains(table)
                {
                    self.gone.insert((table.clone(), record));
                }
            }
            _ => {}
        }
        if line.op != Op::Read
            && let Ok(position) = line.pos.parse()
        {
            self.written.note(line, position);
            self.position = Some(position);
        }
        self.events += u64::from(!matches!(line.op, Op::Checkpoint | Op::Genesis | Op::Live));
    }
}
