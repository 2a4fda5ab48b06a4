//! What can go wrong with a store, and what to do next.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

/// Why a store cannot be used. No text holds a credential, nor what a store says
/// beyond its status and error code.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No address of a store.
    #[error("object store {url:?}: write file:///folder, or s3://bucket/prefix")]
    Url {
        /// What was given, without what may be a password.
        url: String,
    },
    /// S3 is not part of this program.
    #[error(
        "object store {url}: this pitser was built without S3; build it with `--features s3`, or \
         name a folder: file:///folder"
    )]
    NotBuilt {
        /// What was given.
        url: String,
    },
    /// What is configured for S3 cannot be used.
    #[error("object store {url}: {problem}")]
    S3 {
        /// The store.
        url: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A file of credentials cannot be used.
    #[error("{}: {problem}", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do; never the content.
        problem: String,
    },
    /// There is no such object.
    #[error("object {object} is not in object store {store}; restore it from a copy")]
    Missing {
        /// The object.
        object: String,
        /// The store.
        store: String,
    },
    /// An object is longer than what was put there can be.
    #[error(
        "object {object} in object store {store} is longer than {max} bytes: it is not what was \
         written there; restore it from a copy"
    )]
    TooLong {
        /// The object.
        object: String,
        /// The store.
        store: String,
        /// What it may have, in bytes.
        max: usize,
    },
    /// The store refuses, fails or is not there.
    #[error("cannot {action} object store {store}: {object}{problem}; {advice}")]
    Failed {
        /// What was tried, as a verb.
        action: &'static str,
        /// The object and a colon, or nothing.
        object: String,
        /// The store.
        store: String,
        /// What happened.
        problem: String,
        /// What to do.
        advice: &'static str,
    },
    /// The store did not answer in time.
    #[error(
        "cannot {action} object store {store}: {object} took longer than {waited:?}; is it up, and \
         the network to it?"
    )]
    TimedOut {
        /// What was tried, as a verb.
        action: &'static str,
        /// The object.
        object: String,
        /// The store.
        store: String,
        /// How long was waited.
        waited: Duration,
    },
}

impl StoreError {
    /// Whether it may be otherwise when it is tried again, with nothing changed here.
    #[must_use]
    pub fn passes(&self) -> bool {
        matches!(
            self,
            Self::Missing { .. } | Self::Failed { .. } | Self::TimedOut { .. }
        )
    }

    pub(super) fn url(url: &str) -> Self {
        // Whoever writes a key into an address shall not find it in a log.
        let shown = match url.find(['@', '?']) {
            Some(_) => url.split("://").next().unwrap_or_default().to_owned() + "://…",
            None => url.to_owned(),
        };
        Self::Url { url: shown }
    }

    pub(super) fn failed(
        action: &'static str,
        object: &str,
        store: &str,
        source: &object_store::Error,
    ) -> Self {
        let Trouble { problem, advice } = trouble(source);
        let object = match object {
            "" => String::new(),
            object => format!("{object}: "),
        };
        Self::Failed {
            action,
            object,
            store: store.to_owned(),
            problem,
            advice,
        }
    }
}

/// What happened and what to do, from the depths of an error of `object_store`.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{problem}; {advice}")]
pub(super) struct Trouble {
    pub(super) problem: String,
    pub(super) advice: &'static str,
}

/// The innermost cause: what is wrapped around it repeats the address and counts attempts.
fn trouble(error: &object_store::Error) -> Trouble {
    let mut cause: &(dyn Error + 'static) = error;
    loop {
        if let Some(trouble) = cause.downcast_ref::<Trouble>() {
            return trouble.clone();
        }
        match cause.source() {
            Some(source) => cause = source,
            None => break,
        }
    }
    Trouble {
        problem: cause.to_string(),
        advice: match cause.is::<std::io::Error>() {
            true => "is the folder there and writable?",
            false => "its log may say more",
        },
    }
}
