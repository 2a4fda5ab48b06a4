//! What an operator decides about a guarded source.

use crate::approver::Approver;
use crate::archive::StoreArchive;
use crate::audit::Admitted;
use crate::runtime::BLOCK_LINES;
use pitser_evidence::commit::Key;
use pitser_trail::VaultKey;
use pitser_trail::master::{Keeper, KeeperError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// One `[[source]]` of `pitser.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Name of the source; the last part of the trail's origin.
    pub name: String,
    /// Which engine.
    pub kind: Kind,
    /// Where the database is: the path of an SQLite file, or `postgres://…`.
    pub url: String,
    /// Tables to guard; `*` stands for any characters.
    pub tables: Vec<String>,
    /// Tables to leave out although `tables` names them.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// How the patient of a row is found: a column, or `column -> table.column`.
    #[serde(default)]
    pub patient: BTreeMap<String, String>,
    /// FHIR resource types and the tables that hold them, for audit events.
    #[serde(default)]
    pub resources: BTreeMap<String, String>,
    /// FHIR servers whose resources are this source's: what stands before `Patient/1` in
    /// absolute references of audit events. All others lead elsewhere.
    #[serde(default)]
    pub fhir_bases: Vec<String>,
    /// Which columns of a table's rows name who wrote them: tables by pattern,
    /// and `column`, `column, column` or `column -> table.column`.
    #[serde(default)]
    pub actor: BTreeMap<String, String>,
    /// The column that the application sets anew each time it writes a row:
    /// tables by pattern, and the column, or `none`. Where nothing is said, the
    /// actor column's sibling: `write_uid` has `write_date`.
    #[serde(default)]
    pub stamp: BTreeMap<String, String>,
    /// How changes by the application look; what looks different is `ACT-02`.
    #[serde(default)]
    pub application: Application,
    /// Whether the vault keeps the rows themselves, encrypted, or only what is
    /// needed to name a column that was altered.
    #[serde(default = "yes")]
    pub vault: bool,
    /// PostgreSQL: what becomes of tables without a key.
    #[serde(default)]
    pub keyless: Keyless,
    /// PostgreSQL: whether updates and deletes carry the row that they replace.
    #[serde(default)]
    pub replica_identity: ReplicaIdentity,
    /// PostgreSQL: how lines come to say who acted.
    #[serde(default)]
    pub attribution: Attribution,
    /// The file with the vault's master key; `vault.key` in the trail's folder if absent.
    #[serde(default)]
    pub vault_key: Option<VaultKey>,
    /// The PKCS#11 token that wraps the vault's master key, in place of that file.
    #[serde(default)]
    pub vault_token: Option<VaultToken>,
    /// Which database this is, if it is not the one any more that the trail was begun
    /// for: after an upgrade, or on another host (docs/upgrades.md).
    #[serde(default)]
    pub system: Option<String>,
    /// PostgreSQL: the replication slot's name; `pitser_NAME` if absent.
    pub slot: Option<String>,
    /// PostgreSQL: the publication's name; `pitser_NAME` if absent.
    pub publication: Option<String>,
    /// The folder where relative paths in `url` start.
    #[serde(skip)]
    pub dir: PathBuf,
}

fn yes() -> bool {
    true
}

impl Source {
    /// A source with nothing configured but what has no default.
    pub fn new(name: &str, kind: Kind, url: &str, tables: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            url: url.to_owned(),
            tables: tables.iter().map(|table| (*table).to_owned()).collect(),
            exclude: Vec::new(),
            patient: BTreeMap::new(),
            resources: BTreeMap::new(),
            fhir_bases: Vec::new(),
            actor: BTreeMap::new(),
            stamp: BTreeMap::new(),
            application: Application::default(),
            vault: true,
            keyless: Keyless::default(),
            replica_identity: ReplicaIdentity::default(),
            attribution: Attribution::default(),
            vault_key: None,
            vault_token: None,
            system: None,
            slot: None,
            publication: None,
            dir: PathBuf::new(),
        }
    }
}

/// `[source.vault_token]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaultToken {
    /// The token's library: an absolute path.
    pub pkcs11: PathBuf,
    /// The token's label.
    pub token: String,
    /// The label of its AES key.
    pub key: String,
    /// The file with the PIN.
    pub pin_file: PathBuf,
    /// Who speaks with the token.
    #[serde(skip)]
    pub keeper: Option<Arc<dyn Keeper>>,
}

/// In place of a keeper that a program cannot have.
#[derive(Debug)]
struct NoKeeper;

impl NoKeeper {
    fn error<T>() -> Result<T, KeeperError> {
        Err(KeeperError(
            "a token has it, and this program cannot speak with tokens. Use a pitser that is built with the cargo \
             feature pkcs11"
                .into(),
        ))
    }
}

impl Keeper for NoKeeper {
    fn wrap(&self, _: &str, _: &Key) -> Result<Vec<u8>, KeeperError> {
        Self::error()
    }

    fn unwrap(&self, _: &str, _: &[u8]) -> Result<Key, KeeperError> {
        Self::error()
    }
}

/// The engine of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An SQLite database file on this machine.
    Sqlite,
    /// A PostgreSQL database.
    Postgres,
}

/// What a change by the application looks like. Every rule that is given must
/// hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Application {
    /// Database roles that the application logs in as; empty: any.
    #[serde(default)]
    pub roles: Vec<String>,
    /// Names that it gives its sessions (`application_name`), `*` allowed;
    /// empty: any. Anybody can give that name.
    #[serde(default)]
    pub names: Vec<String>,
    /// The application's own log table, into which it writes in each
    /// transaction that changes or deletes something. A new row that names its
    /// creator needs no entry.
    pub log: Option<String>,
}

/// What becomes of tables that have no primary key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keyless {
    /// `guard init` refuses them by name.
    #[default]
    Refuse,
    /// The whole row is the key, under `REPLICA IDENTITY FULL`.
    Full,
}

/// Whether updates and deletes carry the row that they replace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplicaIdentity {
    /// As the tables have it.
    #[default]
    Keep,
    /// `guard init` sets `REPLICA IDENTITY FULL`, `uninstall` puts it back.
    Full,
}

/// How lines come to say who acted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Attribution {
    /// A trigger on each table says so; a change without it is `ACT-01`.
    #[default]
    Trigger,
    /// Nobody does, but for rows that name their writer. Transactions cost the
    /// server less.
    Off,
}

/// How a guardian works; the same for all its sources.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// The organisation; the first part of each trail's origin.
    pub organisation: String,
    /// The folder of trails, one below it for each source.
    pub data: PathBuf,
    /// A block closes this long before the second ends, in milliseconds.
    pub close_before_ms: u64,
    /// A block closes after this many seconds even without lines.
    pub heartbeat_s: u64,
    /// Live rows are compared this often, in seconds; 0: only on demand.
    pub scan_every_s: u64,
    /// Heads are cosigned this often, in seconds.
    pub cosign_every_s: u64,
    /// Witnesses that must have cosigned before a head counts.
    pub witness_quorum: usize,
    /// A block that waits longer for its seal is `SEAL-01`, in seconds.
    pub seal_alarm_s: u64,
    /// A database of which nothing could be captured for longer is `CAP-03`, in seconds.
    pub unwatched_alarm_s: u64,
    /// An event on more patients than this goes to the list `*many`; more than
    /// [`MANY_PATIENTS_MAX`] are as many.
    pub many_patients: usize,
    /// When the trail's files are closed.
    pub segments: pitser_trail::SegmentLimits,
    /// Where closed ones may have moved.
    pub archive: Option<Archive>,
    /// Who may have patients erased, or answer for findings.
    pub approvers: Vec<Approver>,
    /// Auditors who may ask for the trails over HTTP.
    pub auditors: Vec<Admitted>,
}

/// Records that an event may name for each of these patients, or it goes there too.
pub(crate) const RECORDS_PER_PATIENT: usize = 20;
/// The highest useful [`Tuning::many_patients`]: an event has a line for each record and
/// each patient, and one for whoever is not known, and all of them stand in one block.
pub const MANY_PATIENTS_MAX: usize = (BLOCK_LINES - 1) / (RECORDS_PER_PATIENT + 1);

/// Where archived segments are.
#[derive(Debug, Clone)]
pub struct Archive {
    /// The store.
    pub store: Arc<StoreArchive>,
    /// Bytes of fetched segments that are kept beside each trail, at most.
    pub cache_bytes_max: u64,
}

impl Tuning {
    /// The defaults for trails under `data`.
    pub fn new(organisation: impl Into<String>, data: impl Into<PathBuf>) -> Self {
        Self {
            organisation: organisation.into(),
            data: data.into(),
            close_before_ms: 80,
            heartbeat_s: 60,
            scan_every_s: 60,
            cosign_every_s: 10,
            witness_quorum: 0,
            seal_alarm_s: 300,
            unwatched_alarm_s: 60,
            many_patients: 10,
            segments: pitser_trail::SegmentLimits::default(),
            archive: None,
            approvers: Vec::new(),
            auditors: Vec::new(),
        }
    }

    /// Name of a source's trail.
    pub fn origin(&self, source: &Source) -> String {
        format!("{}/{}", self.organisation, source.name)
    }

    /// Folder of a source's trail.
    pub fn layout(&self, source: &Source) -> pitser_trail::Layout {
        let layout = pitser_trail::Layout::new(self.data.join(&source.name));
        let layout = match &source.vault_key {
            Some(key) => layout.with_vault_key(key.clone()),
            None => layout,
        };
        let layout = match &source.vault_token {
            Some(token) => {
                let keeper = token.keeper.clone();
                layout.with_keeper(keeper.unwrap_or_else(|| Arc::new(NoKeeper)))
            }
            None => layout,
        };
        self.with_archive(layout)
    }

    /// A trail of any folder, what is archived of it where this says.
    pub fn with_archive(&self, layout: pitser_trail::Layout) -> pitser_trail::Layout {
        match &self.archive {
            Some(archive) => layout.with_archive(archive.store.clone(), archive.cache_bytes_max),
            None => layout,
        }
    }
}

/// Whether a source's patterns name this table.
pub(crate) fn is_wanted(source: &Source, name: &str) -> bool {
    let fits = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, name));
    fits(&source.tables) && !fits(&source.exclude)
}

/// True if `name` fits `pattern`, in which `*` stands for any characters.
pub fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, rest)) => name.strip_prefix(head).is_some_and(|tail| {
            (0..=tail.len()).any(|at| tail.is_char_boundary(at) && matches(rest, &tail[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, Source, Tuning, VaultToken, matches};
    use pitser_trail::master::try_keeper;

    #[test]
    fn where_nobody_speaks_with_the_token_no_key_is_made_instead() {
        let mut source = Source::new("h", Kind::Sqlite, "h.db", &["*"]);
        source.vault_token = Some(VaultToken {
            pkcs11: "/lib.so".into(),
            token: "hospital".into(),
            key: "vault".into(),
            pin_file: "pin".into(),
            keeper: None,
        });
        let error = try_keeper(&Tuning::new("o", "nowhere").layout(&source)).unwrap_err();
        assert!(error.to_string().contains("feature pkcs11"), "{error}");
    }

    #[test]
    fn patterns() {
        for (pattern, name, fits) in [
            ("observation", "observation", true),
            ("observation", "observations", false),
            ("*", "anything", true),
            ("gnuhealth_*", "gnuhealth_patient", true),
            ("*_history", "party_history", true),
            ("*_history", "party_history_2", false),
            ("a*b*c", "aXbYbZc", true),
            ("õ*", "õunad", true),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }
}
