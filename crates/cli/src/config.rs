//! `pitser.toml`: read strictly, with errors that name file, line and a way out.

use crate::outcome::Failure;
use pitser_guardian::config::{Kind, Source, Tuning};
use serde::Deserialize;
use std::path::{Path, PathBuf};

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
    /// The folder of the file: relative paths start here.
    #[serde(skip)]
    pub(crate) dir: PathBuf,
}

/// `[authority]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Authority {
    /// Aggregator URI, or `embedded`.
    pub(crate) aggregator: String,
    /// Extender URI; the aggregator's if absent.
    pub(crate) extender: Option<String>,
    /// Where the publications file is.
    pub(crate) publications: Option<String>,
}

impl Authority {
    /// True if the authority runs inside the guardian's own process.
    pub(crate) fn is_embedded(&self) -> bool {
        self.aggregator == "embedded"
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
    cosign_every_s: Option<u64>,
    seal_alarm_s: Option<u64>,
    many_patients: Option<usize>,
    segment_mib: Option<u64>,
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
        let text = std::fs::read_to_string(path).map_err(|e| {
            Failure::Input(format!(
                "{}: {e}. Name the configuration with --config, or write one: `pitser guard example > pitser.toml`",
                path.display()
            ))
        })?;
        let mut config = Self::parse(&path.display().to_string(), &text)?;
        config.dir = path.parent().unwrap_or(Path::new(".")).to_owned();
        config.guard.data = config.dir.join(&config.guard.data);
        for source in &mut config.sources {
            source.dir.clone_from(&config.dir);
            if source.kind == Kind::Sqlite {
                source.url = config.dir.join(&source.url).display().to_string();
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
        Ok(config)
    }

    /// How guardians work.
    pub(crate) fn tuning(&self) -> Tuning {
        let guard = &self.guard;
        let default = Tuning::new(&guard.organisation, &guard.data);
        Tuning {
            close_before_ms: guard.close_before_ms.unwrap_or(default.close_before_ms),
            heartbeat_s: guard.heartbeat_s.unwrap_or(default.heartbeat_s),
            scan_every_s: guard.scan_every_s.unwrap_or(default.scan_every_s),
            cosign_every_s: guard.cosign_every_s.unwrap_or(default.cosign_every_s),
            seal_alarm_s: guard.seal_alarm_s.unwrap_or(default.seal_alarm_s),
            many_patients: guard.many_patients.unwrap_or(default.many_patients),
            segment_bytes_max: guard
                .segment_mib
                .map_or(default.segment_bytes_max, |mib| mib << 20),
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

/// A TOML error with file, line, and what was probably meant.
fn explain(name: &str, text: &str, error: &toml::de::Error) -> String {
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
            "organisation",
            "data",
            "listen",
            "close_before_ms",
            "heartbeat_s",
            "scan_every_s",
            "cosign_every_s",
            "seal_alarm_s",
            "many_patients",
            "segment_mib",
            "name",
            "kind",
            "url",
            "tables",
            "exclude",
            "patient",
            "resources",
        ] {
            assert!(EXAMPLE.contains(key), "{key} is not in pitser.toml");
        }
    }

    #[track_caller]
    fn refused(find: &str, replace: &str, expected: &str) {
        let text = EXAMPLE.replacen(find, replace, 1);
        assert_ne!(text, EXAMPLE);
        let error = Config::parse("pitser.toml", &text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
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
        let error = Config::parse("pitser.toml", "[authority]\naggregater = \"x\"\n")
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("pitser.toml:2:"), "{error}");
    }
}
