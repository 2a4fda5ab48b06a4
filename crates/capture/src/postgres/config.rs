//! Where the database is, and as whom.

use std::fmt;

use zeroize::Zeroizing;

use super::PgError;

/// A parsed `postgres://user:password@host:port/database`.
///
/// `Debug` shows no password.
#[derive(Clone)]
pub struct Config {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The role.
    pub user: String,
    /// The database.
    pub database: String,
    password: Option<Zeroizing<Vec<u8>>>,
}

impl Config {
    /// Reads a URL. Port 5432 and the user's own database may be left out;
    /// reserved characters are written `%XX`. Options (`?...`) are refused, so
    /// that none, `sslmode` first, is believed to be in force when it is not.
    ///
    /// # Errors
    /// [`PgError::Url`].
    pub fn parse(url: &str) -> Result<Self, PgError> {
        let rest = url
            .strip_prefix("postgres://")
            .or_else(|| url.strip_prefix("postgresql://"))
            .ok_or(PgError::Url("does not begin with postgres://"))?;
        if rest.contains(['?', '#']) {
            return Err(PgError::Url("has options, of which none is known yet"));
        }
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, place) = authority
            .rsplit_once('@')
            .ok_or(PgError::Url("names no user"))?;
        let (user, password) = match user.split_once(':') {
            Some((user, password)) => (user, Some(Zeroizing::new(unescape(password)?))),
            None => (user, None),
        };
        let (host, port) = host_and_port(place)?;
        let user = name(user)?;
        if host.is_empty() || user.is_empty() {
            return Err(PgError::Url("names no user or no host"));
        }
        let database = match database {
            "" => user.clone(),
            given => name(given)?,
        };
        Ok(Self {
            host,
            port,
            user,
            database,
            password,
        })
    }

    /// The password, for the handshake alone.
    pub(super) fn expose_password(&self) -> Option<&[u8]> {
        self.password.as_ref().map(|password| password.as_slice())
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            host,
            port,
            user,
            database,
            password: _,
        } = self;
        write!(f, "postgres://{user}@{host}:{port}/{database}")
    }
}

/// `host`, `host:port`, `[::1]`, `[::1]:port`.
fn host_and_port(place: &str) -> Result<(String, u16), PgError> {
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest
                .split_once(']')
                .ok_or(PgError::Url("has a [ without a ]"))?;
            let port = match after {
                "" => None,
                _ => Some(
                    after
                        .strip_prefix(':')
                        .ok_or(PgError::Url("has no : before its port"))?,
                ),
            };
            (host.to_owned(), port)
        }
        None => match place.split_once(':') {
            Some((host, port)) => (name(host)?, Some(port)),
            None => (name(place)?, None),
        },
    };
    let port = port.map_or(Ok(5432), str::parse);
    Ok((
        host,
        port.map_err(|_| PgError::Url("has a port that is no number"))?,
    ))
}

fn name(escaped: &str) -> Result<String, PgError> {
    String::from_utf8(unescape(escaped)?)
        .ok()
        .filter(|name| !name.contains('\0'))
        .ok_or(PgError::Url("has a name that is not text"))
}

fn unescape(escaped: &str) -> Result<Vec<u8>, PgError> {
    let mut parts = escaped.split('%');
    let mut out = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part
            .split_at_checked(2)
            .ok_or(PgError::Url("has a % that is not followed by two digits"))?;
        let byte = data_encoding::HEXUPPER_PERMISSIVE
            .decode(digits.as_bytes())
            .map_err(|_| PgError::Url("has a % that is not followed by two digits"))?;
        out.extend_from_slice(&byte);
        out.extend_from_slice(rest.as_bytes());
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(url: &str, shown: &str, password: Option<&str>) {
        let config = Config::parse(url).unwrap();
        assert_eq!(format!("{config:?}"), shown);
        assert_eq!(config.expose_password(), password.map(str::as_bytes));
    }

    #[test]
    fn reads_what_people_write() {
        check("postgres://a@h", "postgres://a@h:5432/a", None);
        check("postgresql://a:b@h:1/d", "postgres://a@h:1/d", Some("b"));
        check(
            "postgres://a:p%40%2f%C3%B5@h/d",
            "postgres://a@h:5432/d",
            Some("p@/õ"),
        );
        check("postgres://a:p@x@h/d", "postgres://a@h:5432/d", Some("p@x"));
        check("postgres://a@[::1]:5433/d", "postgres://a@::1:5433/d", None);
    }

    #[test]
    fn refuses_the_rest_without_repeating_it() {
        for wrong in [
            "",
            "mysql://a@h",
            "postgres://h/d",
            "postgres://@h",
            "postgres://a@",
            "postgres://a@h:x",
            "postgres://a@h:70000",
            "postgres://a:secret%4@h",
            "postgres://a:secret%zz@h",
            "postgres://a@[::1",
            "postgres://a@[::1]5",
            "postgres://a%00@h",
            "postgres://a:secret@h/d?sslmode=require",
        ] {
            let error = Config::parse(wrong).unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
