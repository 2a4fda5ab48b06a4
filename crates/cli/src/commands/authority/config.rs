//! `authority.toml`: read strictly, with errors that name file, line and a way out.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pitser_authority::publicity::{Hook, PublicityConfig};
use pitser_authority::users::file::{self, FileKey, Record};
use pitser_authority::{
    Config as Service, FleetConfig, Https, Limits, LogWitness, Operations, SignerCommand, User,
};
use pitser_client::{Client, Endpoint, Key, Options};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::cluster::{self, Cluster};
use crate::config::explain;
use crate::files;
use crate::ntp::Source;
use crate::outcome::Failure;
use crate::witnesses::{self, Witness};

/// The commented example with every key; a test keeps it complete.
pub(super) const EXAMPLE: &str = include_str!("example.toml");

/// Where the configuration is.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Place {
    /// Configuration file
    #[arg(
        long,
        value_name = "FILE",
        default_value = "authority.toml",
        env = "PITSER_AUTHORITY"
    )]
    config: PathBuf,
}

impl Place {
    /// Reads it.
    pub(super) fn read(&self) -> Result<Config, Failure> {
        Config::read(&self.config)
    }
}

/// A whole configuration file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    data: PathBuf,
    machine_id: Option<String>,
    listen: Listen,
    users: Users,
    parent: Option<Above>,
    #[serde(default)]
    publish: Publish,
    signer: Option<Signer>,
    #[serde(default)]
    log: Log,
    #[serde(default)]
    fleet: Fleet,
    #[serde(rename = "witness", default)]
    witnesses: Vec<Witness>,
    #[serde(default)]
    limits: Bounds,
    #[serde(default)]
    clock: Clock,
    pub(super) cluster: Option<Cluster>,
    /// The folder of the file: relative paths start here.
    #[serde(skip)]
    dir: PathBuf,
    /// The file itself, for advice.
    #[serde(skip)]
    pub(super) path: PathBuf,
}

/// `[listen]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listen {
    tcp: SocketAddr,
    http: Option<SocketAddr>,
    https: Option<SocketAddr>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    monitor: Option<SocketAddr>,
    admin: Option<PathBuf>,
}

/// `[users]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Users {
    file: PathBuf,
    key_file: String,
}

/// `[parent]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Above {
    services: Vec<String>,
    user: String,
    key_file: String,
}

/// `[log]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Log {
    origin: Option<String>,
    quorum: Option<usize>,
}

/// `[fleet]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fleet {
    origins_per_user: Option<usize>,
    silent_s: Option<u64>,
}

/// `[publish]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Publish {
    every_s: Option<u64>,
    monthly_on: Option<u8>,
    hook: Option<Vec<String>>,
    hook_timeout_s: Option<u64>,
    url: Option<String>,
}

/// `[signer]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signer {
    command: Vec<String>,
    timeout_ms: Option<u64>,
}

/// `[limits]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bounds {
    requests_per_round: Option<usize>,
    connections: Option<usize>,
    connections_of_peer: Option<usize>,
    pipeline: Option<usize>,
    idle_s: Option<u64>,
    taken_within_s: Option<u64>,
}

/// `[clock]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Clock {
    max_jump_s: Option<u64>,
    max_outage_s: Option<u64>,
    source: Option<String>,
    grace_ms: Option<u64>,
}

impl Config {
    fn read(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Failure::Input(format!(
                "{}: {e}. Name the configuration with --config, or make an authority with \
                 `pitser authority init --dir DIR`",
                path.display()
            ))
        })?;
        let mut config = Self::parse(&path.display().to_string(), &text)?;
        config.dir = path.parent().unwrap_or(Path::new("")).to_owned();
        config.path = path.to_owned();
        Ok(config)
    }

    fn parse(name: &str, text: &str) -> Result<Self, Failure> {
        let config: Self =
            toml::from_str(text).map_err(|e| Failure::Input(explain(name, text, &e)))?;
        config
            .check()
            .map_err(|e| Failure::Input(format!("{name}: {e}")))?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let listen = &self.listen;
        let pair = listen.certificate.is_some() && listen.key.is_some();
        match listen.https {
            Some(_) if !pair => {
                return Err("listen.https: give certificate and key too, in PEM".into());
            }
            None if listen.certificate.is_some() || listen.key.is_some() => {
                return Err(
                    "listen.certificate and key are for HTTPS: give listen.https, or take them out"
                        .into(),
                );
            }
            _ => {}
        }
        if let Some(cluster) = &self.cluster {
            cluster.check()?;
        }
        self.publish.check()?;
        if self.clock.max_jump_s == Some(0) {
            return Err("clock.max_jump_s is 0: any second would be a jump".into());
        }
        if let Some(signer) = &self.signer {
            is_command("signer.command", &signer.command)?;
            if signer.timeout_ms == Some(0) {
                return Err("signer.timeout_ms is 0: nothing would be signed".into());
            }
        }
        let limits = &self.limits;
        for (name, value) in [
            ("requests_per_round", limits.requests_per_round),
            ("connections", limits.connections),
            ("connections_of_peer", limits.connections_of_peer),
            ("pipeline", limits.pipeline),
            ("idle_s", limits.idle_s.map(|it| it as usize)),
            (
                "taken_within_s",
                limits.taken_within_s.map(|it| it as usize),
            ),
        ] {
            if value == Some(0) {
                return Err(format!("limits.{name} is 0: nobody would be served"));
            }
        }
        if limits.idle_s.is_some_and(|idle_s| idle_s < 5) {
            return Err(
                "limits.idle_s is below 5: a connection is silent for more than a second \
                        while it waits for its round"
                    .into(),
            );
        }
        if limits
            .connections
            .is_some_and(|most| most > MAX_CONNECTIONS)
            || limits.pipeline.is_some_and(|most| most > MAX_CONNECTIONS)
        {
            return Err(format!(
                "limits.connections and limits.pipeline are at most {MAX_CONNECTIONS}"
            ));
        }
        if self
            .machine_id
            .as_ref()
            .is_some_and(|id| id.is_empty() || id.len() > 64)
        {
            return Err("machine_id has 1 to 64 bytes".into());
        }
        if self.clock.grace_ms.is_some_and(|grace_ms| grace_ms > 500) {
            return Err("clock.grace_ms is at most 500: answers wait for it".into());
        }
        if let Some(parent) = &self.parent {
            parent.endpoints("-")?;
        }
        witnesses::check(&self.witnesses, "log.quorum", self.log.quorum)
    }

    /// The data folder.
    pub(super) fn data(&self) -> PathBuf {
        self.dir.join(&self.data)
    }

    /// The admin socket.
    pub(super) fn admin(&self) -> PathBuf {
        match &self.listen.admin {
            Some(path) => self.dir.join(path),
            None => self.data().join("admin.sock"),
        }
    }

    /// What tells whether the clock is right.
    pub(super) fn time_source(&self) -> Source {
        match self.clock.source.as_deref() {
            None | Some("auto") => Source::Machine,
            Some("none") => Source::None,
            Some(path) => Source::File(self.dir.join(path)),
        }
    }

    /// How the service runs, alone or as a node of a cluster; for nobody yet.
    pub(super) fn service(&self) -> Result<Service, Failure> {
        let mut service = self.service_alone();
        if self.cluster.is_some() && self.parent.is_some() {
            return Err(Failure::Input(format!(
                "{}: parent and cluster: an aggregator below others has no calendar to share; take \
                 one of the sections out",
                self.path.display()
            )));
        }
        cluster::join(&mut service, self.cluster.as_ref(), &self.dir)?;
        Ok(service)
    }

    fn service_alone(&self) -> Service {
        let mut service = Service::new(self.data());
        let listen = &self.listen;
        service.tcp = listen.tcp;
        service.http = listen.http;
        if let Some(id) = &self.machine_id {
            service.machine_id.clone_from(id);
        }
        let or = |value: Option<u64>, default| value.unwrap_or(default);
        service.publish_every_s = or(self.publish.every_s, service.publish_every_s);
        service.max_outage_s = or(self.clock.max_outage_s, service.max_outage_s);
        service.grace = Duration::from_millis(self.clock.grace_ms.unwrap_or(0));
        if let Some(seconds) = self.clock.max_jump_s {
            service.max_clock_jump = Duration::from_secs(seconds);
        }
        service.limits = self.limits.limits();
        if let Some(origin) = &self.log.origin {
            service.log.origin.clone_from(origin);
        }
        service.log.quorum = witnesses::quorum(self.witnesses.len(), self.log.quorum);
        let known = self.witnesses.iter().filter_map(|one| one.parse().ok());
        service.log.witnesses = known
            .map(|(prefix, key)| LogWitness::http(key, prefix))
            .collect();
        service.signer = self.signer();
        service.publicity = self.publish.publicity();
        let default = FleetConfig::default();
        service.fleet = FleetConfig {
            origins_per_user: self
                .fleet
                .origins_per_user
                .unwrap_or(default.origins_per_user),
            silent_s: or(self.fleet.silent_s, default.silent_s),
        };
        service.operations = Operations {
            https: self.https(),
            monitor: listen.monitor,
            admin: Some(self.admin()),
            spent: Some(self.data().join("spent")),
        };
        service
    }

    /// What signs, if the key is not in the data folder.
    pub(super) fn signer(&self) -> Option<SignerCommand> {
        let signer = self.signer.as_ref()?;
        let mut command = SignerCommand::new(&signer.command);
        if let Some(ms) = signer.timeout_ms {
            command.timeout = Duration::from_millis(ms);
        }
        Some(command)
    }

    /// Where the world reaches the service, if that is known.
    pub(super) fn url(&self) -> Option<&str> {
        self.publish.url.as_deref()
    }

    fn https(&self) -> Option<Https> {
        let listen = &self.listen;
        Some(Https {
            address: listen.https?,
            certificate: self.dir.join(listen.certificate.as_ref()?),
            key: self.dir.join(listen.key.as_ref()?),
        })
    }

    /// The services above, if this is an aggregator.
    pub(super) fn parent(&self) -> Result<Option<Client>, Failure> {
        let Some(parent) = &self.parent else {
            return Ok(None);
        };
        if !self.witnesses.is_empty() {
            return Err(Failure::Input(format!(
                "{}: an aggregator has no calendar to be witnessed: take out the [[witness]] \
                 blocks, or [parent]",
                self.path.display()
            )));
        }
        let (path, _) = files::guarded(&self.dir, "parent.key_file", &parent.key_file)?;
        let key = Zeroizing::new(files::read_text(&path)?);
        let wrong = |e: String| Failure::Input(format!("{}: {e}", self.path.display()));
        let endpoints = parent.endpoints(key.trim_end()).map_err(wrong)?;
        let client = Client::of(endpoints, &Options::default());
        client
            .map(Some)
            .map_err(|e| wrong(format!("parent.services: {e}")))
    }

    /// The file of users.
    pub(super) fn users_file(&self) -> PathBuf {
        self.dir.join(&self.users.file)
    }

    /// The key file of users, and whether somebody else guards it.
    pub(super) fn users_key(&self) -> Result<(PathBuf, bool), Failure> {
        files::guarded(&self.dir, "users.key_file", &self.users.key_file)
    }

    /// Everybody in the file of users.
    pub(super) fn records(&self) -> Result<Vec<Record>, Failure> {
        let (path, guarded) = self.users_key()?;
        let key = FileKey::read(&path, guarded).map_err(Failure::input)?;
        file::read(&self.users_file(), &key).map_err(Failure::input)
    }

    /// Who may ask.
    pub(super) fn enabled_users(&self) -> Result<Vec<User>, Failure> {
        let enabled = self.records()?.into_iter().filter(|one| one.is_enabled);
        Ok(enabled.map(|one| one.user).collect())
    }
}

impl Above {
    fn endpoints(&self, key: &str) -> Result<Vec<Endpoint>, String> {
        if self.user.is_empty() {
            return Err("parent.user is empty: it is who this aggregator is above".into());
        }
        if self.services.is_empty() {
            return Err("parent.services is empty: name one to three".into());
        }
        if key.is_empty() {
            return Err("parent.key_file: the file is empty".into());
        }
        let endpoint = |service: &String| {
            let endpoint = Endpoint::parse(service);
            let endpoint = endpoint.map_err(|e| format!("parent.services: {e}"))?;
            Ok(endpoint.with_credentials(&self.user, Key::new(key.as_bytes())))
        };
        self.services.iter().map(endpoint).collect()
    }
}

impl Publish {
    fn check(&self) -> Result<(), String> {
        if self.monthly_on.is_some_and(|day| !(1..=28).contains(&day)) {
            return Err("publish.monthly_on is a day that every month has: 1 to 28".into());
        }
        match &self.hook {
            Some(hook) => is_command("publish.hook", hook)?,
            None if self.hook_timeout_s.is_some() => {
                return Err("publish.hook_timeout_s is for publish.hook: give that too".into());
            }
            None => {}
        }
        if self.hook_timeout_s == Some(0) {
            return Err("publish.hook_timeout_s is 0: the hook would never succeed".into());
        }
        let is_web = |url: &String| url.starts_with("https://") || url.starts_with("http://");
        if self.url.as_ref().is_some_and(|url| !is_web(url)) {
            return Err("publish.url begins with https:// or http://".into());
        }
        Ok(())
    }

    fn publicity(&self) -> PublicityConfig {
        let hook = self.hook.as_ref().map(|command| {
            let mut hook = Hook::new(command);
            if let Some(seconds) = self.hook_timeout_s {
                hook.timeout = Duration::from_secs(seconds);
            }
            hook
        });
        PublicityConfig {
            monthly_on: self.monthly_on,
            hook,
            url: self.url.clone(),
        }
    }
}

/// No shell looks for it, so its place has to be said.
fn is_command(name: &str, command: &[String]) -> Result<(), String> {
    match command.first() {
        Some(program) if program.starts_with('/') => Ok(()),
        _ => Err(format!(
            "{name} is a list: the program's whole path, then its arguments, each by itself"
        )),
    }
}

impl Bounds {
    fn limits(&self) -> Limits {
        let default = Limits::default();
        Limits {
            requests_per_round: self
                .requests_per_round
                .unwrap_or(default.requests_per_round),
            connections: self.connections.unwrap_or(default.connections),
            connections_of_peer: self
                .connections_of_peer
                .unwrap_or(default.connections_of_peer),
            pipeline: self.pipeline.unwrap_or(default.pipeline),
            idle: self.idle_s.map_or(default.idle, Duration::from_secs),
            taken_within: self
                .taken_within_s
                .map_or(default.taken_within, Duration::from_secs),
        }
    }
}

const MAX_CONNECTIONS: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    /// The example, with the keys that are commented out.
    fn complete() -> String {
        let commented = [
            "https",
            "certificate",
            "key",
            "admin",
            "endpoints",
            "node",
            "object_store",
            "keep_s",
            "prefix",
            "lease_s",
            "ca",
            "user",
            "password_file",
            "[cluster]",
            "[parent]",
            "services",
            "user",
            "key_file",
            "[[witness]]",
            "name",
            "url",
            "quorum",
            "monthly_on",
            "hook",
            "hook_timeout_s",
            "url",
            "[signer]",
            "command",
            "timeout_ms",
            "[cluster.s3]",
            "endpoint",
            "region",
            "path_style",
            "allow_http",
            "credentials_file",
        ];
        let line = |line: &str| match line.strip_prefix("# ") {
            Some(bare) if commented.contains(&bare.split('=').next().unwrap().trim()) => {
                format!("{bare}\n")
            }
            _ => format!("{line}\n"),
        };
        EXAMPLE.lines().map(line).collect()
    }

    #[test]
    fn the_example_has_every_key_and_the_defaults() {
        let parse = |text: &str| Config::parse("authority.toml", text).unwrap();
        let (example, complete) = (parse(EXAMPLE), parse(&complete()));
        let bare = parse(
            "data = 'data'\nlisten.tcp = '127.0.0.1:3332'\nusers = { file = 'users', key_file = 'users-key' }",
        );
        let shown = |config: &Config| {
            let service = config.service_alone();
            format!(
                "{:?} {:?} {} {:?} {} {} {:?} {:?}",
                service.limits,
                service.grace,
                service.publish_every_s,
                service.max_clock_jump,
                service.max_outage_s,
                service.machine_id,
                config.time_source(),
                config.admin(),
            )
        };
        assert_eq!(shown(&bare), shown(&example));
        assert_eq!(shown(&bare), shown(&complete));
        let all = format!("{complete:?}");
        assert!(!all.contains("None"), "the example lacks a key: {all}");
    }

    #[track_caller]
    fn refused(from: &str, to: &str, expected: &str) {
        assert!(EXAMPLE.contains(from), "{from}");
        let text = EXAMPLE.replacen(from, to, 1);
        let error = Config::parse("authority.toml", &text).unwrap_err();
        assert_eq!(error.code(), 3);
        let error = error.to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn errors_say_line_and_what_to_do() {
        refused("idle_s", "idle_seconds", "authority.toml:");
        refused("idle_s", "idle_seconds", "Did you mean `idle_s`?");
        refused("monitor =", "monitr =", "Did you mean `monitor`?");
        refused("idle_s = 60", "idle_s = 0", "limits.idle_s is 0");
        refused("idle_s = 60", "idle_s = 1", "idle_s is below 5");
        refused("max_jump_s = 30", "max_jump_s = 0", "max_jump_s is 0");
        refused("grace_ms = 0", "grace_ms = 900", "grace_ms is at most 500");
        let line = EXAMPLE
            .lines()
            .position(|line| line.contains("127.0.0.1:3332"));
        let place = format!("authority.toml:{}", line.unwrap() + 1);
        refused("\"127.0.0.1:3332\"", "\"localhost\"", &place);
        refused("# https  ", "https  ", "certificate and key");
        refused("# key  ", "key  ", "give listen.https");
        refused("# monthly_on = 15", "monthly_on = 31", "1 to 28");
        refused(
            "# hook = [\"/usr",
            "hook = [\"usr",
            "publish.hook is a list",
        );
        refused("# hook_timeout_s", "hook_timeout_s", "give that too");
        refused("# url = \"https://", "url = \"", "https:// or http://");
    }

    #[test]
    fn relative_paths_start_at_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("authority.toml");
        std::fs::write(&path, complete()).unwrap();
        let config = Config::read(&path).unwrap();
        assert_eq!(config.data(), dir.path().join("data"));
        assert_eq!(
            config.users_key().unwrap(),
            (dir.path().join("users-key"), false)
        );
        let https = config.service_alone().operations.https.unwrap();
        assert_eq!(https.key, dir.path().join("tls/key.pem"));
    }
}
