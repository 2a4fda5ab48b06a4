//! A sample of rows that an auditor has opened: which lines they are, what is shown of
//! each, and whether the line is about that record and that patient
//! (docs/spec/34-audit.md §7).
//!
//! ```text
//! alpha  = "pitser/v1/audit-sample" 00 ‖ origin 00 ‖ genesis:33 ‖ size:8 ‖ log root:32
//! output = VRF(auditor's sampling key, alpha)                                    32 bytes
//! draw i = first 8 bytes of H("pitser/v1/audit-draw" 00 ‖ output ‖ range:1 ‖ i:8)
//! seq    = first + draw mod (next - first)
//! ```
//! Nobody foresees the output without the auditor's key, and the auditor cannot choose
//! it once the head is there: the proof shows everybody that he did not.

use crate::codec::{Blob, Bytes32, Digest};
use crate::commit::{Key, column_leaf, commit_table_key, patient_alpha, record_key, row_root};
use crate::file::{OpenColumn, Subject};
use crate::line::{Genesis, Line, Op, Patient, TableGenesis};
use crate::vrf::{PROOF_LEN, PublicKey};
use pitser_ksi::hash::{Algorithm, hash};
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

/// Rows that one question may ask for.
pub const MAX_ROWS: usize = 64;
/// Bytes of an answer to such a question.
pub const MAX_ANSWER: usize = 8 << 20;
/// Steps from a row to the one that names its patient.
const MAX_STEPS: usize = 16;
/// The last change is among so many lines at the end: a block's last line comes after it, and
/// perhaps findings.
const LAST: u64 = 8;
/// Lines about a row through which a patient is found that are read back, from its newest
/// one, for each row of a sample.
const MAX_BACK: usize = 4096;

/// What a sample is drawn from: a trail up to a cosigned head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drawn {
    /// Name of the trail.
    pub origin: String,
    /// Hash of its genesis line.
    pub genesis: Digest,
    /// Blocks under the head.
    pub size: u64,
    /// Root of the log at that size.
    pub log_root: [u8; 32],
}

impl Drawn {
    /// What is given to the VRF.
    pub fn alpha(&self) -> Vec<u8> {
        [
            b"pitser/v1/audit-sample\0",
            self.origin.as_bytes(),
            b"\0",
            self.genesis.0.as_bytes(),
            &self.size.to_be_bytes(),
            &self.log_root,
        ]
        .concat()
    }
}

/// The lines of a range of the trail that the VRF's `output` draws, one after the
/// other, without end; none if the range is empty. `number` tells ranges apart.
pub fn draws(output: &[u8; 32], number: u8, range: Range<u64>) -> impl Iterator<Item = u64> {
    let output = *output;
    let lines = range.end.saturating_sub(range.start);
    (0u64..).map_while(move |draw| {
        let label: &[u8] = b"pitser/v1/audit-draw\0";
        let parts = [label, &output, &[number], &draw.to_be_bytes()];
        let digest = hash(Algorithm::Sha256, &parts);
        let drawn = u64::from_be_bytes(*digest.digest().first_chunk()?);
        Some(range.start + drawn.checked_rem(lines)?)
    })
}

/// A question: rows by the `seq` of the lines that commit to them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// At most [`MAX_ROWS`], each once.
    pub rows: Vec<u64>,
}

/// The answer to a [`Question`], row by row.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shown {
    /// In the order of the question.
    pub rows: Vec<ShownRow>,
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shown({} rows, private)", self.rows.len())
    }
}

/// What is shown of one row.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ShownRow {
    /// Its key and its patient.
    Opened(Box<OpenedRow>),
    /// Nothing: the patient was erased.
    Erased {
        /// By this line.
        line: u64,
    },
    /// Nothing.
    Refused {
        /// Why.
        why: String,
    },
}

/// Key and patient of a row, opened.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenedRow {
    /// All columns of the row in the table's order; those of the key and of the patient
    /// are open, the others are leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<Vec<OpenColumn>>,
    /// The key's canonical values, in key order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Vec<Blob>>,
    /// The key's columns, where they are not those that the genesis names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_columns: Option<Vec<String>>,
    /// How the live row compares, by the guardian's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<Live>,
    /// The mapping from tables to patients that the line was written under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapping: Option<String>,
    /// The patient's identifier, and the proof that the line's pseudonym is its.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patient: Option<Subject>,
    /// The key that the line's record key is computed under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table_key: Option<Bytes32>,
    /// The rows through which the patient was found, one after the other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub via: Vec<Via>,
}

impl fmt::Debug for OpenedRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OpenedRow(private)")
    }
}

/// A row through which another's patient was found.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Via {
    /// As in [`OpenedRow::columns`].
    pub columns: Vec<OpenColumn>,
    /// As in [`OpenedRow::key_columns`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_columns: Option<Vec<String>>,
    /// The line that commits to it.
    pub line: u64,
}

/// How the live row compares with the newest line of its record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Live {
    /// When all live rows were compared last (RFC 3339); absent if they were not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compared_at: Option<String>,
    /// The line asked about still is the newest of its record that commits to a row.
    pub is_newest: bool,
    /// What was found to be wrong with the live row.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wrong: Vec<String>,
}

/// What is wrong with an opened row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    /// A value does not open what the line commits to.
    Opening(&'static str),
    /// The line is about another record or another patient than the row.
    Other(&'static str),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Opening(text) | Self::Other(text)) = self;
        f.write_str(text)
    }
}

/// What a comparison came to that found nothing wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Compared {
    /// What could not be compared; nothing, if key and patient both are the row's.
    pub kept: Vec<&'static str>,
    /// The row is not shown, or not the column in it that leads to its patient, or not the
    /// mapping that says which one that is: nothing says whose row it is.
    pub is_shut: bool,
}

/// What an opened row was compared with.
pub struct Trail<'a> {
    /// Its genesis.
    pub genesis: &'a Genesis,
    /// The hash of the mapping that the line's block was closed under.
    pub mapping: Option<Digest>,
    /// How many lines of it are known.
    pub lines: u64,
    /// Lines by `seq`.
    pub line: &'a mut dyn FnMut(u64) -> Option<Line>,
    /// The last line about a record, by its table and key: what its leaf in the map says.
    pub last: &'a mut dyn FnMut(&str, &Bytes32) -> Option<u64>,
}

impl fmt::Debug for Trail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trail({})", self.genesis.origin)
    }
}

/// Compares a line that commits to a row with what is shown of that row.
///
/// # Errors
/// [`Wrong`].
pub fn compare(line: &Line, shown: &OpenedRow, trail: &mut Trail<'_>) -> Result<Compared, Wrong> {
    let mut kept = Vec::new();
    let mut is_shut = shown.columns.is_none();
    let genesis = trail.genesis;
    let table = genesis.tables.iter();
    let table = table.clone().find(|t| Some(&t.name) == line.table.as_ref());
    let columns = match &shown.columns {
        Some(columns) => Some(Columns::open(columns, line)?),
        None => {
            kept.push("the row is not opened, so that its key and its patient are the site's word");
            None
        }
    };
    kept.extend(compare_key(line, shown, table, columns.as_ref())?);
    let identifier = identifier(line, shown.patient.as_ref(), genesis)?;
    if let Some(columns) = columns {
        let named = line.table.as_deref().unwrap_or_default();
        match Mapping::of(trail, shown) {
            Some(mapping) => {
                // Rows of a table that no mapping knows could be anybody's, and very many.
                is_shut = mapping.path(named).is_none_or(|path| {
                    let (column, _) = way(path);
                    column.is_some_and(|column| columns.value(column).is_none())
                });
                let found = Found {
                    line,
                    identifier,
                    mapping: &mapping,
                    via: &shown.via,
                    back: Cell::new(MAX_BACK),
                };
                kept.extend(found.through(named, &columns, trail, 0)?);
            }
            None => {
                is_shut = true;
                kept.push("how its patient is found was changed, and is not shown");
            }
        }
    }
    Ok(Compared { kept, is_shut })
}

/// The columns of a row that are open, all of them under its commitment.
struct Columns<'a>(&'a [OpenColumn]);

impl<'a> Columns<'a> {
    fn open(columns: &'a [OpenColumn], line: &Line) -> Result<Self, Wrong> {
        let mut names = HashSet::new();
        if columns.len() > usize::from(u16::MAX)
            || columns
                .iter()
                .any(|c| c.name.len() > usize::from(u16::MAX) || !names.insert(&c.name))
        {
            return Err(Wrong::Opening("its columns are not those of a row"));
        }
        let leaf = |column: &OpenColumn| match (&column.hidden, &column.nonce) {
            (Some(leaf), None) => Ok(leaf.0),
            (None, Some(nonce)) => Ok(column_leaf(nonce, &column.name, column.bytes())),
            _ => Err(Wrong::Opening("a column is neither open nor kept back")),
        };
        let leaves = columns.iter().map(|c| Ok((c.name.as_str(), leaf(c)?)));
        let leaves = leaves.collect::<Result<Vec<_>, Wrong>>()?;
        match line.row == Some(row_root(leaves)) {
            true => Ok(Self(columns)),
            false => Err(Wrong::Opening("the row shown is not the one committed to")),
        }
    }

    /// An open column's value; the inner `None` is NULL.
    fn value(&self, name: &str) -> Option<Option<&'a [u8]>> {
        let column = self.0.iter().find(|column| column.name == name)?;
        column.nonce.is_some().then(|| column.bytes())
    }
}

/// Whether the line's key is that of the row.
fn compare_key(
    line: &Line,
    shown: &OpenedRow,
    table: Option<&TableGenesis>,
    columns: Option<&Columns<'_>>,
) -> Result<Option<&'static str>, Wrong> {
    let Some(cells) = &shown.key else {
        return Ok(Some("the key is not shown"));
    };
    let mut kept = None;
    match (&shown.table_key, table) {
        (Some(key), table) => {
            let key = Key::new(key.0);
            let name = line.table.as_deref().unwrap_or_default();
            if table.is_some_and(|table| commit_table_key(name, &key) != table.table_key) {
                return Err(Wrong::Opening(
                    "the table's key is not the one in the genesis",
                ));
            }
            let cells = cells.iter().map(|cell| cell.0.as_slice());
            if line.key != Some(record_key(&key, cells)) {
                return Err(Wrong::Other("it is about another record than the row"));
            }
            if table.is_none() {
                kept = Some("its table is not in the genesis, and neither is the table's key");
            }
        }
        (None, _) => kept = Some("the table's key is kept, so that the key is the site's word"),
    }
    let named = KeyColumns::of(table, shown.key_columns.as_deref());
    let (Some(named), Some(columns)) = (named, columns) else {
        return Ok(kept);
    };
    if named.columns.len() != cells.len() {
        return Err(Wrong::Other("its key is not the row's"));
    }
    for (name, cell) in named.columns.iter().zip(cells) {
        match columns.value(name) {
            // NULL is no bytes in a key.
            Some(value) if value.unwrap_or_default() == cell.0 => {}
            Some(_) => return Err(Wrong::Other("its key is not the row's")),
            None => return Ok(kept.or(Some("a column of the key is not opened"))),
        }
    }
    Ok(kept.or(named.kept))
}

/// Which columns are a table's key.
struct KeyColumns<'a> {
    columns: &'a [String],
    /// What is the site's word about that.
    kept: Option<&'static str>,
}

impl<'a> KeyColumns<'a> {
    /// Those that the site names, or those of the genesis.
    fn of(table: Option<&'a TableGenesis>, shown: Option<&'a [String]>) -> Option<Self> {
        let first = table.map(|table| table.key.as_slice());
        let columns = shown.or(first)?;
        let kept = "its table had another key when the trail began: which columns are its key is the site's word";
        Some(Self {
            columns,
            kept: (Some(columns) != first).then_some(kept),
        })
    }
}

/// The identifier behind the line's pseudonym, if the line names a patient.
fn identifier<'a>(
    line: &Line,
    subject: Option<&'a Subject>,
    genesis: &Genesis,
) -> Result<Option<&'a str>, Wrong> {
    let Some(Patient::Pseudonym(pseudonym)) = line.patient else {
        return Ok(None);
    };
    let subject = subject.ok_or(Wrong::Opening("the patient is not shown"))?;
    let alpha = patient_alpha(&genesis.origin, &subject.id);
    let proof: Option<&[u8; PROOF_LEN]> = subject.proof.0.as_slice().try_into().ok();
    let proved = proof.and_then(|proof| PublicKey(genesis.vrf_key.0).verify(&alpha, proof));
    match proved == Some(pseudonym.0) {
        true => Ok(Some(&subject.id)),
        false => Err(Wrong::Other(
            "its pseudonym is not that of the patient shown",
        )),
    }
}

/// The hash of the mapping that a trail begins with (docs/spec/32-blocks.md §1).
pub fn first_mapping(genesis: &Genesis) -> Digest {
    Digest::of(&[Mapping::first(genesis).text().as_bytes()])
}

/// How the patients of tables are found, as text (chapter 32 §1).
struct Mapping(Vec<(String, String)>);

impl Mapping {
    /// The one that the line's block was closed under, if the genesis or the answer
    /// has it.
    fn of(trail: &Trail<'_>, shown: &OpenedRow) -> Option<Self> {
        let first = Self::first(trail.genesis);
        let wanted = trail.mapping?;
        if Digest::of(&[first.text().as_bytes()]) == wanted {
            return Some(first);
        }
        let text = shown.mapping.as_ref()?;
        let rows = text.lines().map(|line| line.split_once('\t'));
        let rows = rows.map(|row| row.map(|(table, path)| (table.to_owned(), path.to_owned())));
        let shown = Self(rows.collect::<Option<_>>()?);
        let is_wanted = shown.text() == *text && Digest::of(&[text.as_bytes()]) == wanted;
        is_wanted.then_some(shown)
    }

    fn first(genesis: &Genesis) -> Self {
        let tables = genesis.tables.iter();
        let rows = tables.map(|t| (t.name.clone(), t.patient.clone()));
        Self(rows.collect())
    }

    fn text(&self) -> String {
        let rows = self.0.iter();
        rows.map(|(table, path)| format!("{table}\t{path}\n"))
            .collect()
    }

    fn path(&self, table: &str) -> Option<&str> {
        let mut rows = self.0.iter();
        let row = rows.find(|(name, _)| name == table);
        row.map(|(_, path)| path.as_str())
    }
}

/// The column of a row that leads to its patient, unless it has none, and the table that
/// it leads to, if it does not name him.
fn way(path: &str) -> (Option<&str>, Option<&str>) {
    match path.split_once(" -> ") {
        Some((column, target)) => (Some(column), Some(target)),
        None => (Some(path).filter(|path| *path != "none"), None),
    }
}

/// The patient that the line names, and what he has to be found by.
struct Found<'a> {
    line: &'a Line,
    identifier: Option<&'a str>,
    mapping: &'a Mapping,
    via: &'a [Via],
    /// Lines that may still be read back.
    back: Cell<usize>,
}

impl Found<'_> {
    /// Follows the mapping from an opened row of `table` to the patient's identifier.
    fn through(
        &self,
        table: &str,
        columns: &Columns<'_>,
        trail: &mut Trail<'_>,
        step: usize,
    ) -> Result<Option<&'static str>, Wrong> {
        const OTHER: Wrong = Wrong::Other("it is about another patient than the row");
        let Some(path) = self.mapping.path(table) else {
            return Ok(Some("its table is not in the mapping"));
        };
        let (Some(column), target) = way(path) else {
            return match self.line.patient {
                None => Ok(None),
                Some(_) => Err(OTHER),
            };
        };
        let Some(value) = columns.value(column) else {
            return Ok(Some("the column that names the patient is not opened"));
        };
        let value = value.filter(|value| value.len() > 1);
        let Some(target) = target else {
            // A cell's value without its type letter; what is no text is no identifier.
            let named = value.and_then(|value| std::str::from_utf8(&value[1..]).ok());
            return match named == self.identifier {
                true => Ok(None),
                false => Err(OTHER),
            };
        };
        let Some(value) = value else {
            return match self.line.patient {
                None => Ok(None),
                Some(_) => Err(OTHER),
            };
        };
        let Some(via) = self.via.get(step).filter(|_| step < MAX_STEPS) else {
            return Ok(Some(
                "the row through which its patient is found is not shown",
            ));
        };
        self.step(target, value, via, trail, step)
    }

    /// Over to the row of `table` whose key is `key`.
    fn step(
        &self,
        table: &str,
        key: &[u8],
        via: &Via,
        trail: &mut Trail<'_>,
        step: usize,
    ) -> Result<Option<&'static str>, Wrong> {
        if via.line >= trail.lines && self.may_go_on(trail) {
            return Ok(Some(
                "the row through which its patient is found is of its transaction, whose end is not known yet",
            ));
        }
        let Some(line) = (trail.line)(via.line).filter(|l| l.table.as_deref() == Some(table))
        else {
            return Err(Wrong::Opening(
                "the row through which its patient is found has no such line",
            ));
        };
        let columns = Columns::open(&via.columns, &line)?;
        let mut tables = trail.genesis.tables.iter();
        let first = tables.find(|t| t.name == table);
        let Some(named) = KeyColumns::of(first, via.key_columns.as_deref()) else {
            return Ok(Some(
                "the table through which its patient is found is not in the genesis",
            ));
        };
        let is_this_row = match named.columns {
            [named] => columns.value(named) == Some(Some(key)),
            _ => false,
        };
        if !is_this_row {
            return Err(Wrong::Opening(
                "its patient is found through another row than the one shown",
            ));
        }
        let aged = self.is_newest(&line, trail)?;
        let kept = self.through(table, &columns, trail, step + 1)?;
        Ok(kept.or(named.kept).or(aged))
    }

    /// Whether the transaction of the line that was drawn may go on behind the lines that are
    /// known: it is that of the last change among them.
    fn may_go_on(&self, trail: &mut Trail<'_>) -> bool {
        let behind = (1..=LAST).filter_map(|back| trail.lines.checked_sub(back));
        let mut last = behind.filter_map(|seq| (trail.line)(seq));
        self.line.tx.is_some() && last.any(|line| line.tx == self.line.tx)
    }

    /// Whether a line through which the patient is found was the newest that says what its
    /// record's row is: at the line that was drawn, or at the end of its transaction.
    fn is_newest(&self, via: &Line, trail: &mut Trail<'_>) -> Result<Option<&'static str>, Wrong> {
        const OLDER: Wrong = Wrong::Opening(
            "the row through which its patient is found was another one by then than the one shown",
        );
        let kept =
            Some("whether the row through which its patient is found was the newest is not known");
        let is_before = |other: &Line| other.seq <= self.line.seq;
        let is_of_same = |other: &Line| other.tx.is_some() && other.tx == self.line.tx;
        if !is_before(via) && !is_of_same(via) {
            return Err(OLDER);
        }
        let (Some(table), Some(key)) = (&via.table, &via.key) else {
            return Ok(kept);
        };
        let mut next = (trail.last)(table, key);
        // A line points to its record's line before it, and to none after it.
        while let Some(seq) = next.filter(|seq| *seq > via.seq) {
            let Some(left) = self.back.get().checked_sub(1) else {
                return Ok(kept);
            };
            self.back.set(left);
            let Some(later) = (trail.line)(seq) else {
                return Ok(kept);
            };
            let says_what_it_is = later.row.is_some() || later.op == Op::Delete;
            let counts = is_before(&later) || !is_before(via) && is_of_same(&later);
            if says_what_it_is && counts {
                return Err(OLDER);
            }
            next = later.prev.map(|prev| prev.seq);
        }
        Ok(kept.filter(|_| next != Some(via.seq)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::LineNonce;
    use crate::line::{Prev, Timestamp};
    use crate::vrf::SecretKey;
    use std::collections::HashMap;

    const ORIGIN: &str = "hospital.example/ehr";

    /// A trail of `person` (whose patient it is itself) and `entry` (whose patient is
    /// found through a person), with everything that its operator knows.
    struct World {
        genesis: Genesis,
        vrf: SecretKey,
        lines: HashMap<u64, Line>,
    }

    fn table(name: &str, patient: &str, table_key: &Key) -> TableGenesis {
        TableGenesis {
            columns: vec!["id".into(), "who".into(), "note".into()],
            key: vec!["id".into()],
            name: name.into(),
            patient: patient.into(),
            table_key: commit_table_key(name, table_key),
        }
    }

    fn table_key(name: &str) -> Key {
        Key::new([name.len() as u8; 32])
    }

    impl World {
        fn new() -> Self {
            let vrf = SecretKey::from_seed(&[4; 32]);
            let genesis = Genesis {
                log_key: String::new(),
                origin: ORIGIN.into(),
                predecessor: "none".into(),
                rules: None,
                salt: Bytes32([0; 32]),
                system: "x".into(),
                tables: vec![
                    table("entry", "who -> person", &table_key("entry")),
                    table("person", "who", &table_key("person")),
                    table("ward", "none", &table_key("ward")),
                ],
                timeline: 1,
                uncovered: Vec::new(),
                vrf_key: Bytes32(vrf.public().0),
            };
            Self {
                genesis,
                vrf,
                lines: HashMap::new(),
            }
        }

        fn subject(&self, id: &str) -> Subject {
            let (_, proof) = self.vrf.prove(&patient_alpha(ORIGIN, id));
            Subject {
                id: id.into(),
                proof: Blob(proof.to_vec()),
            }
        }

        /// A line about `patient` that commits to a row, and that row with key and
        /// patient open.
        fn row(
            &mut self,
            seq: u64,
            table: &str,
            row: [Option<&str>; 3],
            patient: Option<&str>,
        ) -> (Line, OpenedRow) {
            let nonce = LineNonce::new(&Key::new([9; 32]), ORIGIN, 1, seq);
            let names = ["id", "who", "note"];
            let columns = names.iter().zip(row).map(|(name, value)| {
                let (secret, value) = (nonce.column(name), value.map(str::as_bytes));
                match *name {
                    "note" => OpenColumn {
                        bytes: None,
                        hidden: Some(Bytes32(column_leaf(&secret, name, value))),
                        name: (*name).into(),
                        nonce: None,
                        value: None,
                    },
                    _ => OpenColumn::open(name, secret, value),
                }
            });
            let columns: Vec<_> = columns.collect();
            let leaves = names.iter().zip(row).map(|(name, value)| {
                let value = value.map(str::as_bytes);
                (*name, column_leaf(&nonce.column(name), name, value))
            });
            let key = row[0].unwrap().as_bytes();
            let at: Timestamp = "2026-03-14T09:26:53.000000Z".parse().unwrap();
            let pseudonym = |id| self.vrf.prove(&patient_alpha(ORIGIN, id)).0;
            let mut line = Line::new(Op::Update, seq, at, "db", "1");
            line.table = Some(table.into());
            line.key = Some(record_key(&table_key(table), [key]));
            line.row = Some(row_root(leaves));
            line.patient = patient.map(|id| Patient::Pseudonym(Bytes32(pseudonym(id))));
            self.insert(&mut line);
            let shown = OpenedRow {
                columns: Some(columns),
                key: Some(vec![Blob(key.to_vec())]),
                patient: patient.map(|id| self.subject(id)),
                table_key: Some(Bytes32(*table_key(table).expose())),
                ..OpenedRow::default()
            };
            (line, shown)
        }

        /// A line, after those of its record before it.
        fn insert(&mut self, line: &mut Line) {
            let before = self.last(&line.table, &line.key, line.seq);
            line.prev = before.map(|seq| Prev {
                hash: Line::hash(&self.lines[&seq].encode()),
                seq,
            });
            self.lines.insert(line.seq, line.clone());
        }

        /// The last line before `end` about a record.
        fn last(&self, table: &Option<String>, key: &Option<Bytes32>, end: u64) -> Option<u64> {
            let lines = self.lines.values();
            let of = lines.filter(|line| line.table == *table && line.key == *key);
            of.map(|line| line.seq).filter(|seq| *seq < end).max()
        }

        fn mapping(&self) -> Digest {
            let text = "entry\twho -> person\nperson\twho\nward\tnone\n";
            Digest::of(&[text.as_bytes()])
        }

        fn compare(&self, line: &Line, shown: &OpenedRow) -> Result<Vec<&'static str>, Wrong> {
            self.compare_under(self.mapping(), line, shown)
        }

        fn compare_under(
            &self,
            mapping: Digest,
            line: &Line,
            shown: &OpenedRow,
        ) -> Result<Vec<&'static str>, Wrong> {
            Ok(self.compared(mapping, line, shown)?.kept)
        }

        fn compared(
            &self,
            mapping: Digest,
            line: &Line,
            shown: &OpenedRow,
        ) -> Result<Compared, Wrong> {
            let mut trail = Trail {
                genesis: &self.genesis,
                mapping: Some(mapping),
                lines: self.lines.keys().max().map_or(0, |last| last + 1),
                line: &mut |seq| self.lines.get(&seq).cloned(),
                last: &mut |table, key| self.last(&Some(table.to_owned()), &Some(*key), u64::MAX),
            };
            // As it comes over the wire.
            let json = serde_json::to_vec(shown).unwrap();
            compare(line, &serde_json::from_slice(&json).unwrap(), &mut trail)
        }

        /// An entry of person 7, with the row through which its patient is found.
        fn entry(&mut self, patient: Option<&str>) -> (Line, OpenedRow) {
            let person = [Some("i7"), Some("tpt-1"), Some("tx")];
            let (_, via) = self.row(1, "person", person, Some("pt-1"));
            let (line, mut shown) =
                self.row(2, "entry", [Some("i1"), Some("i7"), Some("tx")], patient);
            shown.via = vec![via_line(1, via)];
            (line, shown)
        }
    }

    fn via_line(line: u64, shown: OpenedRow) -> Via {
        Via {
            columns: shown.columns.unwrap(),
            key_columns: None,
            line,
        }
    }

    const PERSON: [Option<&str>; 3] = [Some("i7"), Some("tpt-1"), Some("tsecret")];

    #[track_caller]
    fn is_other<T: fmt::Debug>(compared: Result<T, Wrong>) {
        assert!(matches!(compared, Err(Wrong::Other(_))), "{compared:?}");
    }

    #[track_caller]
    fn does_not_open<T: fmt::Debug>(compared: Result<T, Wrong>) {
        assert!(matches!(compared, Err(Wrong::Opening(_))), "{compared:?}");
    }

    #[test]
    fn key_and_patient_are_the_rows() {
        let mut world = World::new();
        let (line, shown) = world.row(1, "person", PERSON, Some("pt-1"));
        assert_eq!(world.compare(&line, &shown), Ok(vec![]));
        let nobody = [Some("i8"), None, Some("tx")];
        let (line, shown) = world.row(2, "person", nobody, None);
        assert_eq!(world.compare(&line, &shown), Ok(vec![]));
        let (line, shown) = world.row(3, "ward", PERSON, None);
        assert_eq!(world.compare(&line, &shown), Ok(vec![]));
        let (line, shown) = world.entry(Some("pt-1"));
        assert_eq!(world.compare(&line, &shown), Ok(vec![]));
        let json = serde_json::to_string(&shown).unwrap();
        assert!(!json.contains("secret"), "{json}");
    }

    #[test]
    fn a_line_about_another_patient_is_found() {
        let mut world = World::new();
        for patient in [Some("pt-2"), None] {
            let (line, shown) = world.row(1, "person", PERSON, patient);
            is_other(world.compare(&line, &shown));
        }
        let (line, shown) = world.row(1, "ward", PERSON, Some("pt-1"));
        is_other(world.compare(&line, &shown));
        let (line, shown) = world.entry(Some("pt-2"));
        is_other(world.compare(&line, &shown));
        // Nor with the right name, or somebody else's proof.
        let (line, mut shown) = world.row(1, "person", PERSON, Some("pt-2"));
        shown.patient = Some(world.subject("pt-1"));
        is_other(world.compare(&line, &shown));
        shown.patient.as_mut().unwrap().proof = world.subject("pt-2").proof;
        is_other(world.compare(&line, &shown));
        shown.patient.as_mut().unwrap().proof = Blob(Vec::new());
        is_other(world.compare(&line, &shown));
    }

    #[test]
    fn a_line_about_another_record_is_found() {
        let mut world = World::new();
        let (mut line, shown) = world.row(1, "person", PERSON, Some("pt-1"));
        line.key = Some(record_key(&table_key("person"), [&b"i8"[..]]));
        is_other(world.compare(&line, &shown));
        // With the cells of the line: then they are not the row's.
        let mut fitting = shown.clone();
        fitting.key = Some(vec![Blob(b"i8".to_vec())]);
        is_other(world.compare(&line, &fitting));
        // Under a key that was made up for it.
        let (line, mut shown) = world.row(1, "person", PERSON, Some("pt-1"));
        shown.table_key = Some(Bytes32([1; 32]));
        does_not_open(world.compare(&line, &shown));
    }

    #[test]
    fn what_is_shown_is_what_was_committed_to() {
        let mut world = World::new();
        let (line, shown) = world.row(1, "person", PERSON, Some("pt-1"));
        let changed = |change: fn(&mut Vec<OpenColumn>)| {
            let mut shown = shown.clone();
            change(shown.columns.as_mut().unwrap());
            shown
        };
        for wrong in [
            changed(|columns| columns[1].value = Some("tpt-2".into())),
            changed(|columns| columns.swap(0, 1)),
            changed(|columns| drop(columns.pop())),
            changed(|columns| columns[2].name = "who".into()),
            changed(|columns| columns[2].nonce = columns[1].nonce),
            changed(|columns| columns[2].hidden = None),
            changed(|columns| columns.push(columns[0].clone())),
        ] {
            does_not_open(world.compare(&line, &wrong));
        }
        let mut nobody = shown.clone();
        nobody.patient = None;
        does_not_open(world.compare(&line, &nobody));
        let (line, shown) = world.entry(Some("pt-1"));
        let mut wrong = shown.clone();
        wrong.via[0].line = 2;
        does_not_open(world.compare(&line, &wrong));
        wrong.via[0].line = 99;
        does_not_open(world.compare(&line, &wrong));
        // The row of another person, whose patient the line is about.
        let other = [Some("i9"), Some("tpt-2"), Some("tx")];
        let (_, via) = world.row(3, "person", other, Some("pt-2"));
        let (line, mut wrong) = world.row(
            2,
            "entry",
            [Some("i1"), Some("i7"), Some("tx")],
            Some("pt-2"),
        );
        wrong.via = vec![via_line(3, via)];
        does_not_open(world.compare(&line, &wrong));
    }

    /// A person whose row named `pt-1` in line 1 and `pt-2` in line 2, and an entry of hers
    /// in line 3. In line 4 the person's row names `pt-3`, in the same transaction or later.
    struct Moved {
        world: World,
        rows: HashMap<u64, OpenedRow>,
    }

    impl Moved {
        fn new() -> Self {
            let mut world = World::new();
            let named = [(1, "tpt-1"), (2, "tpt-2"), (4, "tpt-3")];
            let rows = named.map(|(seq, who)| {
                let row = [Some("i7"), Some(who), Some("tx")];
                (seq, world.row(seq, "person", row, Some(&who[1..])).1)
            });
            let rows = rows.into();
            Self { world, rows }
        }

        /// The entry as a line about `patient`, led to through the person's row of a line.
        fn entry(&mut self, patient: &str, via: u64) -> Result<Vec<&'static str>, Wrong> {
            self.entry_of(None, patient, via)
        }

        fn entry_of(
            &mut self,
            tx: Option<u64>,
            patient: &str,
            via: u64,
        ) -> Result<Vec<&'static str>, Wrong> {
            let row = [Some("i1"), Some("i7"), Some("tx")];
            let (mut line, mut shown) = self.world.row(3, "entry", row, Some(patient));
            line.tx = tx;
            shown.via = vec![via_line(via, self.rows[&via].clone())];
            self.world.compare(&line, &shown)
        }
    }

    #[test]
    fn a_row_that_was_another_one_by_then_leads_to_nobody() {
        let mut moved = Moved::new();
        assert_eq!(moved.entry("pt-2", 2), Ok(vec![]));
        does_not_open(moved.entry("pt-1", 1));
        does_not_open(moved.entry("pt-3", 4));
        // It may be the one at the end of the transaction, or at the line.
        moved.world.lines.get_mut(&4).unwrap().tx = Some(9);
        assert_eq!(moved.entry_of(Some(9), "pt-3", 4), Ok(vec![]));
        assert_eq!(moved.entry_of(Some(9), "pt-2", 2), Ok(vec![]));
        does_not_open(moved.entry_of(Some(9), "pt-1", 1));
        does_not_open(moved.entry_of(Some(8), "pt-3", 4));
        // And there it is the last one.
        let row = [Some("i7"), Some("tpt-4"), Some("tx")];
        moved.world.row(5, "person", row, Some("pt-4"));
        moved.world.lines.get_mut(&5).unwrap().tx = Some(9);
        does_not_open(moved.entry_of(Some(9), "pt-3", 4));
    }

    /// An auditor's lines end with a block, and a transaction may be longer.
    #[test]
    fn what_comes_later_in_a_transaction_may_not_be_known_yet() {
        let Moved { mut world, rows } = Moved::new();
        world.lines.remove(&4);
        let row = [Some("i1"), Some("i7"), Some("tx")];
        let (mut line, mut shown) = world.row(3, "entry", row, Some("pt-3"));
        shown.via = vec![via_line(4, rows[&4].clone())];
        line.tx = Some(9);
        world.lines.get_mut(&3).unwrap().tx = Some(9);
        let kept = world.compare(&line, &shown).unwrap();
        assert!(kept[0].contains("whose end is not known yet"), "{kept:?}");
        // One that has ended by then does not go on.
        world.lines.get_mut(&3).unwrap().tx = Some(10);
        does_not_open(world.compare(&line, &shown));
        line.tx = None;
        does_not_open(world.compare(&line, &shown));
    }

    #[test]
    fn a_row_that_was_gone_by_then_leads_to_nobody() {
        let mut moved = Moved::new();
        let mut gone = moved.world.lines[&2].clone();
        (gone.op, gone.row) = (Op::Delete, None);
        moved.world.insert(&mut gone);
        does_not_open(moved.entry("pt-1", 1));
        // What says nothing of the row does not count.
        let mut read = moved.world.lines[&2].clone();
        read.op = Op::Read;
        moved.world.insert(&mut read);
        assert_eq!(moved.entry("pt-1", 1), Ok(vec![]));
    }

    #[test]
    fn what_stands_behind_too_many_lines_is_not_known() {
        let mut moved = Moved::new();
        let mut read = moved.world.lines[&4].clone();
        (read.op, read.row) = (Op::Read, None);
        let most = MAX_BACK as u64;
        let mut before = 4;
        // With that of line 4, as many as are read.
        for seq in 5..4 + most {
            let hash = Digest::of(&[]);
            read.prev = Some(Prev { hash, seq: before });
            (read.seq, before) = (seq, seq);
            moved.world.lines.insert(seq, read.clone());
        }
        assert_eq!(moved.entry("pt-2", 2), Ok(vec![]));
        read.prev = Some(Prev {
            hash: Digest::of(&[]),
            seq: before,
        });
        read.seq += 1;
        moved.world.lines.insert(read.seq, read.clone());
        let kept = moved.entry("pt-2", 2).unwrap();
        assert!(kept[0].contains("is not known"), "{kept:?}");
        assert_eq!(moved.entry("pt-1", 1).unwrap().len(), 1);
    }

    #[test]
    fn what_is_kept_back_is_said() {
        let mut world = World::new();
        let (line, shown) = world.row(1, "person", PERSON, Some("pt-1"));
        let kept = |change: fn(&mut OpenedRow)| {
            let mut shown = shown.clone();
            change(&mut shown);
            world.compare(&line, &shown).unwrap().len()
        };
        assert_eq!(kept(|shown| shown.table_key = None), 1);
        assert_eq!(kept(|shown| shown.key = None), 1);
        assert_eq!(kept(|shown| shown.columns = None), 1);
        let (line, mut shown) = world.entry(Some("pt-1"));
        shown.via.clear();
        assert_eq!(world.compare(&line, &shown).unwrap().len(), 1);
    }

    /// A site that opens a row and nothing that leads to its patient has opened nothing.
    #[test]
    fn what_says_whose_row_it_is_may_not_be_kept_back() {
        fn close(shown: &mut OpenedRow, name: &str) {
            let mut columns = shown.columns.iter_mut().flatten();
            let column = columns.find(|column| column.name == name).unwrap();
            let nonce = column.nonce.take().unwrap();
            let leaf = column_leaf(&nonce, name, column.bytes());
            (column.hidden, column.bytes, column.value) = (Some(Bytes32(leaf)), None, None);
        }
        let mut world = World::new();
        let (line, shown) = world.row(1, "person", PERSON, Some("pt-1"));
        let (entry, led) = world.entry(Some("pt-1"));
        type Change = fn(&mut OpenedRow);
        let cases: [(&Line, &OpenedRow, Change, bool); 6] = [
            (&line, &shown, |_| {}, false),
            (&line, &shown, |shown| shown.key = None, false),
            (&line, &shown, |shown| shown.table_key = None, false),
            (&line, &shown, |shown| shown.columns = None, true),
            (&line, &shown, |shown| close(shown, "who"), true),
            (&entry, &led, |shown| close(shown, "who"), true),
        ];
        for (line, shown, change, is_shut) in cases {
            let mut shown = shown.clone();
            change(&mut shown);
            let compared = world.compared(world.mapping(), line, &shown).unwrap();
            assert_eq!(compared.is_shut, is_shut, "{:?}", compared.kept);
        }
        // Nor may a row stand under a name that nobody has said how to read.
        let mut elsewhere = line.clone();
        elsewhere.table = Some("person2".into());
        let compared = world.compared(world.mapping(), &elsewhere, &shown).unwrap();
        assert!(compared.is_shut, "{:?}", compared.kept);
        // Nor may the mapping, where it is not that of the genesis.
        let text = "entry\twho -> person\nperson\twho\nward\tnone\nx\tnone\n";
        let other = Digest::of(&[text.as_bytes()]);
        let mut shown = shown;
        for (mapping, is_shut) in [(None, true), (Some("x\tnone\n"), true), (Some(text), false)] {
            shown.mapping = mapping.map(str::to_owned);
            let compared = world.compared(other, &line, &shown).unwrap();
            assert_eq!(compared.is_shut, is_shut, "{:?}", compared.kept);
        }
    }

    #[test]
    fn a_key_that_was_changed_since_is_the_sites_word() {
        let mut world = World::new();
        // From here on the key of `person` is `who`.
        let keyed = |line: &mut Line, shown: &mut OpenedRow| {
            line.key = Some(record_key(&table_key("person"), [&b"tpt-1"[..]]));
            shown.key = Some(vec![Blob(b"tpt-1".to_vec())]);
            shown.key_columns = Some(vec!["who".into()]);
        };
        let (mut line, mut shown) = world.row(1, "person", PERSON, Some("pt-1"));
        keyed(&mut line, &mut shown);
        assert_eq!(world.compare(&line, &shown).unwrap().len(), 1);
        let with = |columns: Option<&[&str]>| {
            let columns = columns.map(|it| it.iter().map(|name| (*name).to_owned()).collect());
            OpenedRow {
                key_columns: columns,
                ..shown.clone()
            }
        };
        // It holds something else, or is another number of columns.
        for columns in [None, Some(&["id"][..]), Some(&["who", "who"]), Some(&[])] {
            is_other(world.compare(&line, &with(columns)));
        }
        // Nothing is compared with a column that is kept back.
        assert_eq!(
            world.compare(&line, &with(Some(&["note"]))).unwrap().len(),
            1
        );
        // Those of the genesis are nobody's word.
        let (line, mut shown) = world.row(2, "person", PERSON, Some("pt-1"));
        shown.key_columns = Some(vec!["id".into()]);
        assert_eq!(world.compare(&line, &shown), Ok(vec![]));

        // The row through which a patient is found.
        let (_, via) = world.row(3, "person", PERSON, Some("pt-1"));
        let entry = [Some("i1"), Some("tpt-1"), Some("tx")];
        let (line, mut shown) = world.row(4, "entry", entry, Some("pt-1"));
        shown.via = vec![via_line(3, via)];
        does_not_open(world.compare(&line, &shown));
        shown.via[0].key_columns = Some(vec!["who".into()]);
        assert_eq!(world.compare(&line, &shown).unwrap().len(), 1);
        shown.via[0].key_columns = Some(vec!["who".into(), "id".into()]);
        does_not_open(world.compare(&line, &shown));
    }

    #[test]
    fn what_is_no_text_names_nobody() {
        let mut world = World::new();
        let nonce = LineNonce::new(&Key::new([9; 32]), ORIGIN, 1, 1);
        for (who, named) in [(&b"t\xff\xfe"[..], false), (b"tpt-1", true), (b"t", false)] {
            let row = [("id", &b"i7"[..]), ("who", who)];
            let columns =
                row.map(|(name, value)| OpenColumn::open(name, nonce.column(name), Some(value)));
            let leaves = row
                .map(|(name, value)| (name, column_leaf(&nonce.column(name), name, Some(value))));
            let (mut line, mut shown) = world.row(1, "person", PERSON, None);
            line.row = Some(row_root(leaves));
            shown.columns = Some(columns.to_vec());
            let compared = world.compare(&line, &shown);
            match named {
                true => is_other(compared),
                false => assert_eq!(compared, Ok(vec![])),
            }
        }
    }

    #[test]
    fn a_mapping_that_was_changed_since_is_the_one_that_was_sealed() {
        let mut world = World::new();
        let (line, mut shown) = world.row(1, "ward", PERSON, Some("pt-1"));
        let text = "entry\twho -> person\nperson\twho\nward\twho\n";
        let now = Digest::of(&[text.as_bytes()]);
        assert_eq!(world.compare_under(now, &line, &shown).unwrap().len(), 1);
        shown.mapping = Some(text.into());
        assert_eq!(world.compare_under(now, &line, &shown), Ok(vec![]));
        // The site's word for another one is worth nothing.
        is_other(world.compare(&line, &shown));
    }

    #[test]
    fn draws_are_spread_and_repeatable() {
        let drawn = Drawn {
            origin: ORIGIN.into(),
            genesis: Digest::of(&[b"genesis"]),
            size: 7,
            log_root: [3; 32],
        };
        let (output, proof) = SecretKey::from_seed(&[1; 32]).prove(&drawn.alpha());
        let public = SecretKey::from_seed(&[1; 32]).public();
        assert_eq!(public.verify(&drawn.alpha(), &proof), Some(output));
        let of = |range: Range<u64>, number| {
            draws(&output, number, range).take(1000).collect::<Vec<_>>()
        };
        assert_eq!(of(5..5, 0), [0; 0]);
        assert_eq!(of(5..6, 0), [5; 1000]);
        let drawn = of(100..110, 0);
        assert_eq!(drawn, of(100..110, 0));
        assert_ne!(drawn, of(100..110, 1));
        let mut all = drawn;
        all.sort_unstable();
        all.dedup();
        assert_eq!(all, (100..110).collect::<Vec<_>>());
    }
}
