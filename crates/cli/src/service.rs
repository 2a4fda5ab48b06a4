//! Talking to services: addresses, credentials, the runtime.

use std::future::Future;

use pitser_client::{Client, ClientError, Endpoint, Key, Options};
use tokio::runtime::{Builder, Runtime};

use crate::outcome::Failure;

/// Who asks. Options win over what the address says.
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
        if user.is_empty() || key.expose().is_empty() {
            return Err(Failure::Input(format!(
                "{endpoint} wants to know who asks: give --user, and the key in PITSER_KEY or --key, \
                 or both in the address, as in ksi+tcp://USER:KEY@HOST:PORT"
            )));
        }
        Ok(endpoint.with_credentials(user, key))
    }

    /// A client of the service at `uri`, which connects when it is first used.
    pub(crate) fn client(&self, uri: &str) -> Result<Client, Failure> {
        Ok(Client::new(self.endpoint(uri)?, Options::default()))
    }

    /// The secret, if one was given beside the address.
    pub(crate) fn key(&self) -> Option<Key> {
        self.key
            .as_ref()
            .map(|secret| Key::new(secret.expose().as_bytes()))
    }
}

/// The process's asynchronous part.
pub(crate) fn runtime() -> Result<Runtime, Failure> {
    Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Failure::service)
}

/// Runs one task to its end.
pub(crate) fn block_on<T>(task: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    runtime()?.block_on(task)
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Endpoint(_) | ClientError::Request(_) | ClientError::Backwards { .. } => {
                Self::input(error)
            }
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
    fn a_secret_is_not_printed() {
        assert!(!format!("{:?}", credentials(None, Some("hush"))).contains("hush"));
    }
}
