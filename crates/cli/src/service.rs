//! Talking to services: addresses, credentials, authorities, the runtime.

use std::future::Future;
use std::path::{Path, PathBuf};

use pitser_client::{Client, ClientError, Endpoint, Key, Options, Roots, Transport};
use tokio::runtime::{Builder, Runtime};

use crate::outcome::Failure;

/// Who asks, and whom to believe. Options win over what the address says.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Credentials {
    /// Login at the service, unless the address has it: ksi+tcp://USER:KEY@HOST:PORT
    #[arg(long, env = "PITSER_USER", value_name = "NAME")]
    user: Option<String>,
    /// Its secret; better given in PITSER_KEY, which no list of processes shows
    #[arg(
        long,
        env = "PITSER_KEY",
        hide_env_values = true,
        value_name = "SECRET"
    )]
    key: Option<Secret>,
    /// PEM file of the authorities that alone may vouch for https:// addresses, or of the
    /// service's own certificate [default: the authorities that this machine trusts]
    #[arg(long, env = "PITSER_TLS_CA", value_name = "FILE.pem")]
    tls_ca: Option<PathBuf>,
}

/// A secret from the command line or the environment; `Debug` hides it.
#[derive(Clone)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl From<String> for Secret {
    fn from(secret: String) -> Self {
        Self(secret)
    }
}

impl From<&str> for Secret {
    fn from(secret: &str) -> Self {
        Self(secret.to_owned())
    }
}

impl Credentials {
    /// The service at `uri`, asked by whom these credentials and the address name.
    pub(crate) fn endpoint(&self, uri: &str) -> Result<Endpoint, Failure> {
        let endpoint = Endpoint::parse(uri).map_err(Failure::input)?;
        let user = self
            .user
            .clone()
            .unwrap_or_else(|| endpoint.user().to_owned());
        let key = self.key().unwrap_or_else(|| endpoint.key().clone());
        // Nobody asks a file.
        let is_known = !user.is_empty() || endpoint.transport() == Transport::File;
        if !is_known || key.expose().is_empty() {
            return Err(Failure::Input(format!(
                "{endpoint} wants to know who asks: give --user, and the key in PITSER_KEY or --key, \
                 or both in the address, as in ksi+tcp://USER:KEY@HOST:PORT"
            )));
        }
        Ok(endpoint.with_credentials(user, key))
    }

    /// A client of the services at `uris`, which connects when it is first used.
    pub(crate) fn client(&self, uris: &[String]) -> Result<Client, Failure> {
        let endpoints = endpoints(uris, |uri| self.endpoint(uri))?;
        Client::of(endpoints, &self.options()?).map_err(Failure::input)
    }

    /// How services are talked to.
    pub(crate) fn options(&self) -> Result<Options, Failure> {
        options(self.tls_ca.as_deref())
    }

    /// The secret, if one was given beside the address.
    pub(crate) fn key(&self) -> Option<Key> {
        self.key
            .as_ref()
            .map(|secret| Key::new(secret.expose().as_bytes()))
    }
}

/// How services are talked to, with the authorities of this file, if one is given.
pub(crate) fn options(tls_ca: Option<&Path>) -> Result<Options, Failure> {
    let mut options = Options::default();
    if let Some(path) = tls_ca {
        options.roots = Roots::read(path).map_err(Failure::input)?;
    }
    Ok(options)
}

/// Reads the addresses of services. Where there are several, an error says which
/// is wrong; it does not repeat it, for it may hold a key.
pub(crate) fn endpoints(
    uris: &[String],
    read: impl Fn(&str) -> Result<Endpoint, Failure>,
) -> Result<Vec<Endpoint>, Failure> {
    let which = |index: usize, failure: Failure| match uris.len() {
        1 => failure,
        count => Failure::Input(format!("address {} of {count}: {failure}", index + 1)),
    };
    uris.iter()
        .enumerate()
        .map(|(index, uri)| read(uri).map_err(|failure| which(index, failure)))
        .collect()
}

/// The process's asynchronous part.
pub(crate) fn runtime() -> Result<Runtime, Failure> {
    Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Failure::service)
}

/// Asks services. What is still under way then is not waited for: of several,
/// one may hang in a name server that does not answer.
pub(crate) fn ask<T>(task: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = runtime()?;
    let answer = runtime.block_on(task);
    runtime.shutdown_background();
    answer
}

/// Runs one task to its end.
pub(crate) fn block_on<T>(task: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    runtime()?.block_on(task)
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Endpoint(_)
            | ClientError::Roots(_)
            | ClientError::Request(_)
            | ClientError::Read { .. }
            | ClientError::Backwards { .. }
            | ClientError::Elsewhere { .. } => Self::input(error),
            ClientError::Broken { .. } => Self::Tampered(error.to_string()),
            _ => Self::service(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(user: Option<&str>, key: Option<&str>) -> Credentials {
        Credentials {
            user: user.map(Into::into),
            key: key.map(Into::into),
            tls_ca: None,
        }
    }

    #[test]
    fn options_win_over_the_address() {
        let endpoint = credentials(Some("b"), Some("k2"))
            .endpoint("ksi+tcp://a:k1@h:1")
            .unwrap();
        assert_eq!(
            (endpoint.user(), endpoint.key().expose()),
            ("b", &b"k2"[..])
        );
        let endpoint = credentials(None, None)
            .endpoint("ksi+tcp://a:k1@h:1")
            .unwrap();
        assert_eq!(
            (endpoint.user(), endpoint.key().expose()),
            ("a", &b"k1"[..])
        );
    }

    #[test]
    fn nobody_asks_without_a_name() {
        let failure = credentials(Some("a"), None)
            .endpoint("ksi+tcp://h:1")
            .unwrap_err();
        assert_eq!(failure.code(), 3);
        assert!(failure.to_string().contains("PITSER_KEY"), "{failure}");
    }

    #[test]
    fn of_several_addresses_the_wrong_one_is_told() {
        let uris = |uris: &[&str]| uris.iter().map(|&uri| uri.to_owned()).collect::<Vec<_>>();
        let refused = |list: &[&str]| {
            let failure = credentials(None, None).client(&uris(list)).unwrap_err();
            assert_eq!(failure.code(), 3);
            failure.to_string()
        };
        let told = refused(&["ksi+tcp://a:b@h", "ksi+tcp://a:hush@h:x"]);
        assert!(told.starts_with("address 2 of 2: the port"), "{told}");
        let told = refused(&["ksi+tcp://a:b@h", "ksi+tcp://a:b@h:3332"]);
        assert!(told.contains("twice"), "{told}");
        let told = refused(&[
            "http://a:b@1",
            "http://a:b@2",
            "http://a:b@3",
            "http://a:b@4",
        ]);
        assert!(told.contains("one to three"), "{told}");
    }

    #[test]
    fn a_secret_is_not_printed() {
        assert!(!format!("{:?}", credentials(None, Some("hush"))).contains("hush"));
    }
}
