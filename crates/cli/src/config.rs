//! `pitser.toml`: read strictly, with errors that name file, line and a way out.

use crate::files;
use crate::outcome::Failure;
use crate::service;
use crate::store::{S3, s3_options};
use crate::witnesses::{self, Hidden, Witness};
use pitser_client::fleet::Fleet;
use pitser_client::{Client, Endpoint, Options};
use pitser_evidence::Code;
use pitser_guardian::alert::{Alert as Receiver, Secret, Url};
use pitser_guardian::approver::Approver;
use pitser_guardian::archive::StoreArchive;
use pitser_guardian::audit::Admitted;
use pitser_guardian::config::{
    Archive, Attribution, Kind, MANY_PATIENTS_MAX, Source, Tuning, VaultToken, matches,
};
use pitser_trail::archive::CACHE_BYTES;
use pitser_trail::{SegmentLimits, VaultKey};
use pitser_witness::{HttpWitness, Peer};
use serde::Deserialize;
use std::fmt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Auditors of one guardian.
const AUDITORS: usize = 16;

/// The commented example with every key; a test keeps it complete.
pub(crate) const EXAMPLE: &str = include_str!("../../../pitser.toml");

/// A whole configuration file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The timestamping service.
    pub(crate) authority: Authority,
    /// The guardian.
    pub(crate) guard: Guard,
    /// Guarded databases.
    #[serde(rename = "source")]
    pub(crate) sources: Vec<Source>,
    /// Who is told of findings.
    #[serde(rename = "alert", default)]
    alerts: Vec<Alert>,
    /// Where closed segments move.
    archive: Option<ArchiveSection>,
    /// Where that is, ready to be asked.
    #[serde(skip)]
    store: Option<Archive>,
    /// Who cosigns heads.
    #[serde(rename = "witness", default)]
    witnesses: Vec<Witness>,
    /// Who may have patients erased, or answer for findings.
    #[serde(rename = "approver", default)]
    approvers: Vec<Approver>,
    /// Auditors who may ask for the trails over HTTP.
    #[serde(rename = "auditor", default)]
    auditors: Vec<Admitted>,
    /// The folder of the file: relative paths start here.
    #[serde(skip)]
    pub(crate) dir: PathBuf,
}

/// `[authority]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Authority {
    /// Aggregator URIs, or `embedded`.
    aggregator: Addresses,
    /// Extender URIs; the aggregators' if absent.
    extender: Option<Addresses>,
    /// Where the publications file is.
    pub(crate) publications: Option<String>,
    /// Where the log of its calendar is: evidence gets proofs from there.
    pub(crate) calendar_log: Option<String>,
    /// Where trails are registered and heads are sent, with user and key.
    fleet: Option<Hidden>,
    /// The key of the fleet's log.
    fleet_key: Option<String>,
    /// The authorities that may vouch for `https://` addresses.
    ca: Option<PathBuf>,
}

/// One address, or a list of them. They may hold keys.
#[derive(Clone, Deserialize)]
#[serde(
    untagged,
    expecting = "an address must be a text, or a list of one to three"
)]
enum Addresses {
    One(String),
    Several(Vec<String>),
}

impl Addresses {
    fn as_slice(&self) -> &[String] {
        match self {
            Self::One(address) => std::slice::from_ref(address),
            Self::Several(addresses) => addresses,
        }
    }
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Addresses({} of them)", self.as_slice().len())
    }
}

impl Authority {
    /// True if the authority runs inside the guardian's own process.
    pub(crate) fn is_embedded(&self) -> bool {
        self.aggregator.as_slice() == ["embedded"]
    }

    fn client(&self, dir: &Path, key: &str, addresses: &Addresses) -> Result<Client, Failure> {
        let read = |uri: &str| Endpoint::parse(uri).map_err(Failure::input);
        let wrong = |failure: Failure| Failure::Input(format!("authority.{key}: {failure}"));
        let endpoints = service::endpoints(addresses.as_slice(), read).map_err(wrong)?;
        let options = self.options(dir)?;
        Client::of(endpoints, &options).map_err(|e| wrong(Failure::input(e)))
    }

    fn fleet(&self, dir: &Path) -> Result<Option<Fleet>, Failure> {
        let Some(address) = &self.fleet else {
            return Ok(None);
        };
        let wrong = |what: &dyn fmt::Display| Failure::Input(format!("authority.fleet: {what}"));
        let endpoint = Endpoint::parse(&address.0).map_err(|e| wrong(&e))?;
        if endpoint.user().is_empty() {
            return Err(wrong(&"name the user and the key: https://USER:KEY@HOST"));
        }
        let fleet = Fleet::new(endpoint, self.options(dir)?);
        let fleet = fleet.ok_or_else(|| wrong(&"the address begins with https:// or http://"))?;
        let Some(key) = &self.fleet_key else {
            return Ok(Some(fleet));
        };
        let key = key.parse();
        let key = key.map_err(|e| Failure::Input(format!("authority.fleet_key: {e}")))?;
        Ok(Some(fleet.with_log_key(key)))
    }

    fn options(&self, dir: &Path) -> Result<Options, Failure> {
        let ca = self.ca.as_ref().map(|ca| dir.join(ca));
        service::options(ca.as_deref())
            .map_err(|failure| Failure::Input(format!("authority.ca: {failure}")))
    }
}

/// `[guard]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Guard {
    /// First part of each trail's origin.
    #[serde(default = "organisation")]
    pub(crate) organisation: String,
    /// Folder of trails, maps and vaults.
    pub(crate) data: PathBuf,
    /// Address of status page and API.
    #[serde(default = "listen")]
    pub(crate) listen: String,
    close_before_ms: Option<u64>,
    heartbeat_s: Option<u64>,
    scan_every_s: Option<u64>,
    #[serde(alias = "cosign_every_s")]
    witness_every_s: Option<u64>,
    witness_quorum: Option<usize>,
    seal_alarm_s: Option<u64>,
    unwatched_alarm_s: Option<u64>,
    many_patients: Option<usize>,
    segment_mib: Option<u64>,
    segment_s: Option<u64>,
    /// As an `[[alert]]` with nothing but this address.
    webhook: Option<Hidden>,
}

impl Guard {
    /// Whoever writes the largest number there is means never, and would get the opposite.
    fn check_numbers(&self) -> Result<(), String> {
        const DECADE_S: u64 = 10 * 366 * 86_400;
        const TIB_MIB: u64 = 1 << 20;
        for (name, value, most) in [
            ("close_before_ms", self.close_before_ms, 500),
            ("heartbeat_s", self.heartbeat_s, DECADE_S),
            ("scan_every_s", self.scan_every_s, DECADE_S),
            ("witness_every_s", self.witness_every_s, DECADE_S),
            ("seal_alarm_s", self.seal_alarm_s, DECADE_S),
            ("unwatched_alarm_s", self.unwatched_alarm_s, DECADE_S),
            ("segment_mib", self.segment_mib, TIB_MIB),
            ("segment_s", self.segment_s, DECADE_S),
        ] {
            if let Some(value) = value.filter(|value| *value > most) {
                return Err(format!("guard.{name}: {value} is too much: at most {most}"));
            }
        }
        Ok(())
    }
}

/// `[archive]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ArchiveSection {
    store: String,
    cache_mib: Option<u64>,
    s3: Option<S3>,
}

impl ArchiveSection {
    /// The store, not asked yet.
    fn open(&self, dir: &Path) -> Result<Archive, Failure> {
        let absent = self.s3.as_ref().map(|s3| s3.absent("archive.s3", dir));
        let s3 = match absent.transpose()?.flatten() {
            Some(why) => Err(why),
            None => Ok(s3_options(
                &self.store,
                self.s3.as_ref(),
                "archive.s3",
                dir,
            )?),
        };
        Ok(Archive {
            store: StoreArchive::new(&self.store, s3),
            cache_bytes_max: self.cache_mib.map_or(CACHE_BYTES, |mib| mib << 20),
        })
    }
}

/// One `[[alert]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Alert {
    url: Hidden,
    secret: Option<Hidden>,
    secret_file: Option<PathBuf>,
    codes: Option<Vec<String>>,
    #[serde(default)]
    keys: bool,
    ca: Option<PathBuf>,
}

impl Alert {
    fn of(url: Hidden) -> Self {
        Self {
            url,
            secret: None,
            secret_file: None,
            codes: None,
            keys: false,
            ca: None,
        }
    }

    /// The receiver, its secret still unread if that is in a file.
    fn receiver(&self, dir: &Path) -> Result<Receiver, String> {
        let mut receiver = Receiver::new(Url::parse(&self.url.0).map_err(|e| format!("url: {e}"))?);
        if self.codes.as_ref().is_some_and(Vec::is_empty) {
            return Err(
                "codes: with an empty list it would be told nothing: name codes, as in [\"ROW-*\"], or leave codes out \
                 for all"
                    .into(),
            );
        }
        for pattern in self.codes.iter().flatten() {
            if !Code::ALL.iter().any(|code| matches(pattern, code.as_str())) {
                return Err(format!(
                    "codes: no finding has the code {pattern:?}; there are {}",
                    Code::ALL
                        .iter()
                        .map(|c| c.as_str())
                        .collect::<Vec<_>>()
                        .join(", ")
                ));
            }
        }
        if let Some(codes) = &self.codes {
            receiver.codes.clone_from(codes);
        }
        if self.secret.is_some() && self.secret_file.is_some() {
            return Err("secret and secret_file: give one of them".into());
        }
        if let Some(secret) = &self.secret {
            receiver.secret = Some(Secret::parse(&secret.0).map_err(|e| format!("secret: {e}"))?);
        }
        receiver.keys = self.keys;
        receiver.ca = self.ca.as_ref().map(|ca| dir.join(ca));
        Ok(receiver)
    }

    fn read_secret(&self, dir: &Path) -> Result<Option<Secret>, String> {
        let Some(file) = &self.secret_file else {
            return Ok(None);
        };
        let file = dir.join(file);
        let wrong = |why: String| format!("secret_file: {}: {why}", file.display());
        let text = std::fs::read_to_string(&file).map(Zeroizing::new);
        let text = text.map_err(|e| wrong(e.to_string()))?;
        let secret = Secret::parse(text.trim()).map_err(|e| wrong(e.to_string()))?;
        Ok(Some(secret))
    }
}

fn organisation() -> String {
    "localhost".into()
}

fn listen() -> String {
    "127.0.0.1:7070".into()
}

impl Config {
    /// Reads a configuration file.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        // It may hold secrets.
        let text = std::fs::read_to_string(path).map(Zeroizing::new);
        let text = text.map_err(|e| {
            Failure::Input(format!(
                "{}: {e}. Name the configuration with --config, or write one: `pitser guard example > pitser.toml`",
                path.display()
            ))
        })?;
        let mut config = Self::parse(&path.display().to_string(), &text)?;
        config.dir = path.parent().unwrap_or(Path::new(".")).to_owned();
        config.guard.data = config.dir.join(&config.guard.data);
        let archive = config.archive.as_ref();
        config.store = archive.map(|it| it.open(&config.dir)).transpose()?;
        for source in &mut config.sources {
            source.dir.clone_from(&config.dir);
            if source.kind == Kind::Sqlite {
                source.url = config.dir.join(&source.url).display().to_string();
            }
            if let Some(VaultKey::File(path)) = &source.vault_key {
                let key = files::secret(&config.dir, "vault_key", path)?.path();
                source.vault_key = Some(key.map_or_else(VaultKey::Absent, VaultKey::File));
            }
            if let Some(token) = &mut source.vault_token {
                set_keeper(token, &config.dir)?;
            }
        }
        Ok(config)
    }

    fn parse(name: &str, text: &str) -> Result<Self, Failure> {
        let config: Self =
            toml::from_str(text).map_err(|e| Failure::Input(explain(name, text, &e)))?;
        if config.sources.is_empty() {
            return Err(Failure::Input(format!(
                "{name}: there is no [[source]]: nothing to guard"
            )));
        }
        for (index, source) in config.sources.iter().enumerate() {
            let valid = !source.name.is_empty()
                && source
                    .name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
            if !valid {
                return Err(Failure::Input(format!(
                    "{name}: source name {:?} must be letters, digits, - and _: it names a folder and a trail",
                    source.name
                )));
            }
            // A URL may hold a password, and a path is repeated in messages.
            if source.kind == Kind::Sqlite && source.url.contains("://") {
                return Err(Failure::Input(format!(
                    "{name}: source {:?} is of kind \"sqlite\", but its url is none of a file: write its path, \
                     or kind = \"postgres\" if that is what it is",
                    source.name
                )));
            }
            if source.kind == Kind::Sqlite && source.attribution == Attribution::Off {
                return Err(Failure::Input(format!(
                    "{name}: source {:?} is of kind \"sqlite\", whose triggers are what captures: attribution = \"off\" \
                     is for kind = \"postgres\"",
                    source.name
                )));
            }
            check_vault_key(source)
                .map_err(|e| Failure::Input(format!("{name}: source {:?}: {e}", source.name)))?;
            if config.sources[..index]
                .iter()
                .any(|other| other.name == source.name)
            {
                return Err(Failure::Input(format!(
                    "{name}: two sources are named {:?}",
                    source.name
                )));
            }
        }
        config
            .receivers()
            .and_then(|_| config.check_witnesses())
            .and_then(|()| config.check_approvers())
            .and_then(|()| config.check_auditors())
            .and_then(|()| config.check_many_patients())
            .and_then(|()| config.guard.check_numbers())
            .map_err(|e| Failure::Input(format!("{name}: {e}")))?;
        Ok(config)
    }

    /// A client of the aggregators, which connects when it is first used.
    pub(crate) fn aggregator(&self) -> Result<Client, Failure> {
        let authority = &self.authority;
        authority.client(&self.dir, "aggregator", &authority.aggregator)
    }

    /// A client of the extenders, which connects when it is first used.
    pub(crate) fn extender(&self) -> Result<Client, Failure> {
        let authority = &self.authority;
        match &authority.extender {
            Some(extender) => authority.client(&self.dir, "extender", extender),
            None => self.aggregator(),
        }
    }

    /// Where trails are registered, if anywhere.
    pub(crate) fn fleet(&self) -> Result<Option<Fleet>, Failure> {
        self.authority.fleet(&self.dir)
    }

    /// How services are talked to.
    pub(crate) fn options(&self) -> Result<Options, Failure> {
        self.authority.options(&self.dir)
    }

    /// Who is told of findings.
    pub(crate) fn alerts(&self) -> Result<Vec<Receiver>, Failure> {
        let mut receivers = self.receivers().map_err(Failure::Input)?;
        for ((what, alert), receiver) in self.all_alerts().iter().zip(&mut receivers) {
            let secret = alert.read_secret(&self.dir);
            let secret = secret.map_err(|e| Failure::Input(format!("{what}: {e}")))?;
            receiver.secret = receiver.secret.take().or(secret);
        }
        Ok(receivers)
    }

    fn receivers(&self) -> Result<Vec<Receiver>, String> {
        let mut receivers: Vec<Receiver> = Vec::new();
        for (what, alert) in self.all_alerts() {
            let receiver = alert
                .receiver(&self.dir)
                .map_err(|e| format!("{what}: {e}"))?;
            if receivers.iter().any(|other| other.url == receiver.url) {
                return Err(format!("{what}: url: another one has the same address"));
            }
            receivers.push(receiver);
        }
        Ok(receivers)
    }

    /// Who cosigns the heads of one source; each source has its own way to them.
    pub(crate) fn witnesses(&self) -> Result<Vec<Peer>, Failure> {
        let peers = self.witnesses.iter().map(|witness| {
            let (prefix, key) = witness.parse().map_err(Failure::Input)?;
            let peer = Peer::new(Box::new(HttpWitness::new(prefix)), key);
            Ok(match &witness.name {
                Some(name) => peer.named(name),
                None => peer,
            })
        });
        peers.collect()
    }

    fn check_witnesses(&self) -> Result<(), String> {
        let quorum = self.guard.witness_quorum;
        witnesses::check(&self.witnesses, "guard.witness_quorum", quorum)
    }

    /// An audit event's lines stand in one block.
    fn check_many_patients(&self) -> Result<(), String> {
        match self.guard.many_patients {
            Some(many) if many > MANY_PATIENTS_MAX => Err(format!(
                "guard.many_patients: {many} is too many: at most {MANY_PATIENTS_MAX}, so that the lines of an audit \
                 event fit one block"
            )),
            _ => Ok(()),
        }
    }

    /// Two approvers are two people.
    fn check_approvers(&self) -> Result<(), String> {
        for (at, approver) in self.approvers.iter().enumerate() {
            let what = format!("[[approver]] {}", at + 1);
            let before = &self.approvers[..at];
            if approver.name.trim().is_empty() {
                return Err(format!("{what}: name: it is empty"));
            }
            if before.iter().any(|other| other.name == approver.name) {
                return Err(format!("{what}: name: another one is called so"));
            }
            let same = |other: &Approver| other.token_sha256 == approver.token_sha256;
            if before.iter().any(same) {
                return Err(format!(
                    "{what}: token_sha256: another one has the same token"
                ));
            }
        }
        Ok(())
    }

    /// Each auditor's key is tried for each request.
    fn check_auditors(&self) -> Result<(), String> {
        if self.auditors.len() > AUDITORS {
            return Err(format!("[[auditor]]: there are more than {AUDITORS}"));
        }
        for (at, auditor) in self.auditors.iter().enumerate() {
            let what = format!("[[auditor]] {}", at + 1);
            let before = &self.auditors[..at];
            if auditor.name.trim().is_empty() {
                return Err(format!("{what}: name: it is empty"));
            }
            let same = |other: &Admitted| other.key.public_key() == auditor.key.public_key();
            if before.iter().any(same) {
                return Err(format!("{what}: key: another one has it"));
            }
        }
        Ok(())
    }

    fn witness_quorum(&self) -> usize {
        witnesses::quorum(self.witnesses.len(), self.guard.witness_quorum)
    }

    /// With what each is called in errors.
    fn all_alerts(&self) -> Vec<(String, Alert)> {
        let short = self.guard.webhook.iter().cloned().map(Alert::of);
        let short = short.map(|alert| ("guard.webhook".to_owned(), alert));
        let long = self.alerts.iter().cloned().enumerate();
        let long = long.map(|(at, alert)| (format!("[[alert]] {}", at + 1), alert));
        short.chain(long).collect()
    }

    /// How guardians work.
    pub(crate) fn tuning(&self) -> Tuning {
        let guard = &self.guard;
        let default = Tuning::new(&guard.organisation, &guard.data);
        Tuning {
            close_before_ms: guard.close_before_ms.unwrap_or(default.close_before_ms),
            heartbeat_s: guard.heartbeat_s.unwrap_or(default.heartbeat_s),
            scan_every_s: guard.scan_every_s.unwrap_or(default.scan_every_s),
            cosign_every_s: guard.witness_every_s.unwrap_or(default.cosign_every_s),
            witness_quorum: self.witness_quorum(),
            seal_alarm_s: guard.seal_alarm_s.unwrap_or(default.seal_alarm_s),
            unwatched_alarm_s: guard.unwatched_alarm_s.unwrap_or(default.unwatched_alarm_s),
            many_patients: guard.many_patients.unwrap_or(default.many_patients),
            segments: SegmentLimits {
                bytes: guard
                    .segment_mib
                    .map_or(default.segments.bytes, |mib| mib << 20),
                age_s: guard.segment_s.unwrap_or(default.segments.age_s),
            },
            archive: self.store.clone(),
            approvers: self.approvers.clone(),
            auditors: self.auditors.clone(),
            ..default
        }
    }

    /// The source of a name, or the only one.
    pub(crate) fn source(&self, name: Option<&str>) -> Result<&Source, Failure> {
        match name {
            Some(name) => self.sources.iter().find(|s| s.name == name).ok_or_else(|| {
                let names: Vec<_> = self.sources.iter().map(|s| s.name.as_str()).collect();
                Failure::Input(format!(
                    "no source is named {name:?}; there is {}",
                    names.join(", ")
                ))
            }),
            None if self.sources.len() == 1 => Ok(&self.sources[0]),
            None => Err(Failure::Input(
                "several sources are configured: name one with --source".into(),
            )),
        }
    }
}

/// The master key has one place. What a token's library is must not depend on where a
/// loader looks first.
fn check_vault_key(source: &Source) -> Result<(), &'static str> {
    match (&source.vault_token, &source.vault_key) {
        (Some(_), Some(_)) => Err("vault_key and vault_token: give one of them"),
        (Some(token), None) if !token.pkcs11.is_absolute() => {
            Err("vault_token.pkcs11: write the library's whole path, beginning with /")
        }
        _ => Ok(()),
    }
}

/// Has a token's key asked for where this program can do so.
fn set_keeper(token: &mut VaultToken, dir: &Path) -> Result<(), Failure> {
    let pin = files::secret(dir, "vault_token.pin_file", &token.pin_file)?.path();
    if let Ok(path) = &pin {
        token.pin_file.clone_from(path);
    }
    #[cfg(feature = "pkcs11")]
    {
        token.keeper = Some(std::sync::Arc::new(crate::token::TokenKeeper::new(
            token, pin,
        )));
    }
    Ok(())
}

/// A TOML error with file, line, and what was probably meant.
pub(crate) fn explain(name: &str, text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map_or(1, |span| {
        1 + text[..span.start.min(text.len())].matches('\n').count()
    });
    let message = error.message();
    let mut quoted = message.split('`').skip(1).step_by(2);
    let advice = match (message.starts_with("unknown field"), quoted.next()) {
        (true, Some(wrong)) => quoted
            .map(|known| (strsim::jaro_winkler(wrong, known), known))
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .filter(|(similarity, _)| *similarity > 0.7)
            .map_or_else(String::new, |(_, known)| {
                format!(". Did you mean `{known}`?")
            }),
        _ => String::new(),
    };
    format!("{name}:{line}: {message}{advice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_valid_and_names_every_key() {
        let config = Config::parse("pitser.toml", EXAMPLE).unwrap();
        assert_eq!(config.sources.len(), 1);
        for key in [
            "aggregator",
            "extender",
            "publications",
            "ca  ",
            "fleet",
            "fleet_key",
            "organisation",
            "data",
            "listen",
            "close_before_ms",
            "heartbeat_s",
            "scan_every_s",
            "witness_every_s",
            "witness_quorum",
            "witness]]",
            "key ",
            "seal_alarm_s",
            "unwatched_alarm_s",
            "many_patients",
            "segment_mib",
            "segment_s",
            "archive",
            "store",
            "cache_mib",
            "archive.s3",
            "endpoint",
            "region",
            "path_style",
            "allow_http",
            "credentials_file",
            "webhook",
            "alert",
            "url",
            "secret",
            "secret_file",
            "codes",
            "keys",
            "ca ",
            "name",
            "kind",
            "url",
            "tables",
            "exclude",
            "patient",
            "resources",
            "fhir_bases",
            "vault",
            "keyless",
            "replica_identity",
            "attribution",
            "system",
            "slot",
            "publication",
            "source.actor",
            "source.stamp",
            "source.application",
            "roles",
            "names",
            "log",
            "vault_key",
            "source.vault_token",
            "pkcs11",
            "token  ",
            "key    ",
            "pin_file",
            "approver",
            "token_sha256",
            "until  ",
            "auditor]]",
            "table_keys",
            "rows_per_day",
        ] {
            assert!(EXAMPLE.contains(key), "{key} is not in pitser.toml");
        }
    }

    #[test]
    fn triggers_that_capture_cannot_be_left_out() {
        let kind = "kind    = \"sqlite\"";
        assert!(EXAMPLE.contains(kind));
        let text = EXAMPLE.replacen(kind, &format!("{kind}\nattribution = \"off\""), 1);
        let error = Config::parse("pitser.toml", &text).unwrap_err().to_string();
        assert!(error.contains("attribution"), "{error}");
    }

    #[test]
    fn no_audit_event_can_have_more_lines_than_a_block() {
        let with = |many: usize| {
            let text = EXAMPLE.replacen(
                "many_patients   = 10",
                &format!("many_patients = {many}"),
                1,
            );
            Config::parse("pitser.toml", &text)
        };
        let config = with(MANY_PATIENTS_MAX).unwrap();
        assert_eq!(config.tuning().many_patients, MANY_PATIENTS_MAX);
        let error = with(MANY_PATIENTS_MAX + 1).unwrap_err().to_string();
        assert!(
            error.contains("guard.many_patients: 1513 is too many: at most 1512"),
            "{error}"
        );
    }

    /// The example with the keys of alerts no longer commented out.
    fn with_alerts() -> String {
        let keys = ["[[alert]]", "url", "secret_file", "codes", "keys", "ca"];
        let (before, alerts) = EXAMPLE.split_once("# One block for each receiver").unwrap();
        let line = |line: &str| match line.strip_prefix("# ") {
            Some(bare) if keys.contains(&bare.split(" =").next().unwrap().trim()) => {
                format!("{bare}\n")
            }
            _ => format!("{line}\n"),
        };
        let alerts: String = alerts.lines().skip(1).map(line).collect();
        before.replace("# webhook ", "webhook ") + &alerts
    }

    #[test]
    fn the_alert_that_is_commented_out_is_valid() {
        let config = Config::parse("pitser.toml", &with_alerts()).unwrap();
        let shown = format!("{config:?}");
        assert!(!shown.contains("127.0.0.1:9000/pitser"), "{shown}");
        let receivers = config.receivers().unwrap();
        let labels: Vec<_> = receivers.iter().map(|r| r.url.to_string()).collect();
        assert_eq!(labels, ["http://127.0.0.1:9000", "https://alerts.example"]);
        assert_eq!(receivers[0].codes, ["*"]);
        assert!(!receivers[0].keys && !receivers[1].keys);
        let error = config.alerts().unwrap_err().to_string();
        assert!(error.starts_with("[[alert]] 1: secret_file: "), "{error}");
    }

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[track_caller]
    fn alert_refused(alert: &str, expected: &str) {
        let text = format!("{EXAMPLE}\n[[alert]]\n{alert}\n");
        let error = Config::parse("pitser.toml", &text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(
            !error.contains("T0KEN") && !error.contains(&SECRET[6..]),
            "{error}"
        );
    }

    #[test]
    fn mistakes_in_alerts_are_named_without_their_secrets() {
        alert_refused(
            "url = \"https://u:T0KEN@a.example/\"",
            "[[alert]] 1: url: the address holds a user",
        );
        alert_refused("url = \"a.example/T0KEN\"", "http:// or https://");
        alert_refused(
            "url = \"https://a.example/T0KEN\"\ncodes = [\"ATC-*\"]",
            "ROW-01",
        );
        alert_refused(
            "url = \"https://a.example/T0KEN\"\ncodes = []",
            "[[alert]] 1: codes: with an empty list it would be told nothing",
        );
        alert_refused(
            &format!(
                "url = \"https://a.example/T0KEN\"\nsecret = \"{}\"",
                &SECRET[6..]
            ),
            "secret: the secret does not begin with whsec_",
        );
        alert_refused(
            &format!("url = \"https://a.example/\"\nsecret = \"{SECRET}\"\nsecret_file = \"x\""),
            "give one of them",
        );
        alert_refused(
            "url = \"https://a.example/T0KEN\"\n[[alert]]\nurl = \"https://A.example:443/T0KEN\"",
            "[[alert]] 2: url: another one has the same address",
        );
        alert_refused(
            "url = \"https://a.example/\"\nsecrets = \"x\"",
            "Did you mean `secret`?",
        );
    }

    #[test]
    fn a_secret_may_stand_in_a_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("hook.secret"), format!("{SECRET}\n")).unwrap();
        let alert = "[[alert]]\nurl = \"https://a.example/\"\nsecret_file = \"hook.secret\"\n";
        let path = dir.path().join("pitser.toml");
        std::fs::write(&path, format!("{EXAMPLE}\n{alert}")).unwrap();
        let config = Config::read(&path).unwrap();
        assert!(config.alerts().unwrap()[0].secret.is_some());
        std::fs::write(dir.path().join("hook.secret"), &SECRET[6..]).unwrap();
        let error = config.alerts().unwrap_err().to_string();
        assert!(
            error.contains("hook.secret: the secret does not"),
            "{error}"
        );
        assert!(!error.contains(&SECRET[6..]), "{error}");
    }

    const WITNESS: &str =
        "ministry.example/witness+8b24a322+BIE5dw6ofRdfVqNUZsNMfszLjYqRtO43ol32D1uPybOU";

    fn with_witnesses(guard: &str, witnesses: &str) -> Result<Config, Failure> {
        let text = EXAMPLE.replacen("[guard]\n", &format!("[guard]\n{guard}\n"), 1);
        Config::parse("pitser.toml", &format!("{text}\n{witnesses}\n"))
    }

    fn witness(url: &str, key: &str) -> String {
        format!("[[witness]]\nurl = \"{url}\"\nkey = \"{key}\"\n")
    }

    #[test]
    fn a_quorum_is_more_than_half() {
        let second =
            "university.example/witness+193f6718+BO1JKMYo0cLG6ukDOJBZlWEpWSc6XGP5NjbBRhSshzfR";
        let one = witness("http://a.example", WITNESS);
        let two = one.clone() + &witness("http://b.example:7081/w", second);
        let quorum = |guard, witnesses: &str| {
            let config = with_witnesses(guard, witnesses).unwrap();
            (
                config.witnesses().unwrap().len(),
                config.tuning().witness_quorum,
            )
        };
        assert_eq!(quorum("", ""), (0, 0));
        assert_eq!(quorum("", &one), (1, 1));
        assert_eq!(quorum("", &two), (2, 2));
        assert_eq!(quorum("witness_quorum = 1", &two), (2, 1));
        let config = with_witnesses("", &format!("{one}name = \"ministry\"")).unwrap();
        assert_eq!(config.witnesses().unwrap()[0].name(), "ministry");
        assert_eq!(config.tuning().cosign_every_s, 10);
    }

    #[track_caller]
    fn witness_refused(guard: &str, witnesses: &str, expected: &str) {
        let error = with_witnesses(guard, witnesses).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("T0KEN"), "{error}");
    }

    #[test]
    fn mistakes_in_witnesses_are_named() {
        let good = witness("http://a.example", WITNESS);
        witness_refused(
            "",
            &witness("http://u:T0KEN@a.example", WITNESS),
            "[[witness]] 1: url: a witness's address has no user",
        );
        witness_refused("", &witness("a.example/T0KEN", WITNESS), "http://");
        witness_refused("", &witness("http://a.example", "x+y+z"), "key: ");
        witness_refused(
            "",
            &witness(
                "http://a.example",
                "auditor.example+85ad085f+AYqI4910CfGV/VLbLTy6XXLKZwm/HZQSG/N0iAG0D29c",
            ),
            "key: ",
        );
        witness_refused(
            "",
            &(good.clone() + &witness("http://b.example", WITNESS)),
            "[[witness]] 2: key: another one has it",
        );
        witness_refused("witness_quorum = 2", &good, "no head could ever count");
        witness_refused("witness_quorum = 1", "", "no head could ever count");
        witness_refused("witness_quorum = 0", &good, "nobody has cosigned");
        witness_refused("", &format!("{good}keys = 1"), "Did you mean `key`?");
    }

    #[test]
    fn mistakes_in_auditors_are_named() {
        let key = "auditor.example/health+9bfffeca+AYmgdWbhVJIheknz+4OuvFWtF/iV+tgkEM1ysuxKHXAK";
        let block = |more: &str| format!("[[auditor]]\nname = \"chamber\"\n{more}\n");
        let read = |text: &str| Config::parse("pitser.toml", &format!("{EXAMPLE}\n{text}"));
        let good = block(&format!("key = \"{key}\""));
        let auditors = read(&good).unwrap().tuning().auditors;
        assert_eq!((auditors.len(), auditors[0].rows_per_day), (1, 200));
        assert!(auditors[0].table_keys);
        for (text, expected) in [
            (block(""), "missing field `key`"),
            (block("key = \"x\""), "pitser.toml:"),
            (block(&format!("key = \"{WITNESS}\"")), "a witness's key"),
            (good.replace("chamber", " "), "name: it is empty"),
            (good.repeat(2), "[[auditor]] 2: key: another one has it"),
            (
                good.clone() + "tablekeys = true",
                "Did you mean `table_keys`?",
            ),
        ] {
            let error = read(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[track_caller]
    fn refused(find: &str, replace: &str, expected: &str) {
        let text = EXAMPLE.replacen(find, replace, 1);
        assert_ne!(text, EXAMPLE);
        let error = Config::parse("pitser.toml", &text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    /// What comes of these addresses.
    fn aggregator(toml: &str) -> Result<usize, String> {
        let written = "\"ksi+tcp://anon:anon@127.0.0.1:3332\"";
        let text = EXAMPLE.replacen(written, toml, 1);
        let config = Config::parse("pitser.toml", &text).map_err(|e| e.to_string())?;
        assert!(!format!("{config:?}").contains("hunter2"));
        match config.aggregator() {
            Ok(client) => Ok(client.endpoints().count()),
            Err(failure) => Err(failure.to_string()),
        }
    }

    #[test]
    fn an_authority_may_have_three_addresses() {
        assert_eq!(aggregator("\"https://a:hunter2@h\""), Ok(1));
        let three = "[\"https://a:hunter2@h\", \"ksi+tcp://a:b@h\", \"http://a:b@i\"]";
        assert_eq!(aggregator(three), Ok(3));
        let refused = |toml: &str, expected: &str| {
            let error = aggregator(toml).unwrap_err();
            assert!(
                error.contains(expected) && !error.contains("hunter2"),
                "{error}"
            );
        };
        refused(
            "[\"https://a:b@h\", \"https://a:hunter2@h:x\"]",
            "authority.aggregator: address 2 of 2: the port",
        );
        refused("[]", "authority.aggregator: 0 services are named");
        refused("3", "an address must be a text, or a list of one to three");
        let text = EXAMPLE.replacen("[guard]", "ca = \"absent.pem\"\n[guard]", 1);
        let config = Config::parse("pitser.toml", &text).unwrap();
        let error = config.aggregator().unwrap_err().to_string();
        assert!(error.starts_with("authority.ca: absent.pem: "), "{error}");
    }

    #[test]
    fn mistakes_are_named_with_line_and_remedy() {
        refused("listen ", "lissten ", "Did you mean `listen`?");
        refused("[guard]", "[gaurd]", "Did you mean `guard`?");
        refused("kind ", "kin ", "Did you mean `kind`?");
        refused("\"sqlite\"", "\"sqlight\"", "unknown variant");
        refused(
            "name    = \"hospital\"",
            "name    = \"../etc\"",
            "letters, digits",
        );
        refused(
            "\"hospital.db\"",
            "\"postgres://pitser:secret@db/hospital\"",
            "kind = \"postgres\"",
        );
        let error = Config::parse("pitser.toml", "[authority]\naggregater = \"x\"\n")
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("pitser.toml:2:"), "{error}");
    }
}
