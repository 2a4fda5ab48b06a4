//! Questions that are far apart, beside a stream.

use super::{Config, Connection, PgError};

/// A session for questions. One that has ended meanwhile, by whoever drops what is idle on
/// the way or by an administrator, is opened again when something is asked.
#[derive(Debug)]
pub(super) struct Questions {
    config: Config,
    session: Option<Connection>,
}

impl Questions {
    /// # Errors
    /// Those of [`Connection::open`].
    pub(super) fn open(config: &Config) -> Result<Self, PgError> {
        Ok(Self {
            config: config.clone(),
            session: Some(session(config)?),
        })
    }

    /// Asks, and once more in a new session if the old one is over.
    ///
    /// # Errors
    /// Those of `question`, and of [`Connection::open`].
    pub(super) fn ask<T>(
        &mut self,
        question: impl Fn(&mut Connection) -> Result<T, PgError>,
    ) -> Result<T, PgError> {
        if let Some(mut session) = self.session.take() {
            match question(&mut session) {
                Err(PgError::Lost(_) | PgError::NotNow { .. }) => {}
                answer => {
                    self.session = Some(session);
                    return answer;
                }
            }
        }
        question(self.session.insert(session(&self.config)?))
    }
}

fn session(config: &Config) -> Result<Connection, PgError> {
    Connection::open(config)?.answering_within(Connection::PATIENCE)
}
