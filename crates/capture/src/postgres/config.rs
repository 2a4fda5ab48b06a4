//! Where the database is, as whom, and how what is sent is protected.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zeroize::Zeroizing;

use super::PgError;

/// A parsed `postgres://user:password@host:port/database?option=value&...`.
///
/// `Debug` shows neither a password nor an option's value.
#[derive(Clone)]
pub struct Config {
    /// Host name or address; the directory of a unix socket if it begins with `/`.
    pub host: String,
    /// TCP port; for a unix socket the number in its file's name.
    pub port: u16,
    /// The role.
    pub user: String,
    /// The database.
    pub database: String,
    password: Option<Zeroizing<Vec<u8>>>,
    options: Options,
}

/// What may follow the `?`.
#[derive(Clone, Default)]
struct Options {
    ssl_mode: Option<SslMode>,
    roots: Option<Roots>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    passfile: Option<PathBuf>,
    connect_timeout: Option<Duration>,
    /// The directory of a unix socket.
    socket: Option<String>,
}

/// How much protection a connection must have, least first; as libpq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS if the server offers it; neither its certificate nor its refusal is
    /// doubted, so this is for paths that nobody else can reach.
    Prefer,
    /// TLS, with whoever answers: against listeners, not against impostors.
    /// With `sslrootcert` it is [`SslMode::VerifyCa`], as in libpq.
    Require,
    /// TLS with a server whose certificate `sslrootcert` vouches for, whatever
    /// name is in it.
    VerifyCa,
    /// TLS with a server whose certificate is vouched for and names the host.
    VerifyFull,
}

/// Whose word about a server's certificate is taken.
#[derive(Clone)]
pub(super) enum Roots {
    /// The authorities that this machine trusts.
    System,
    /// Those of a PEM file.
    File(PathBuf),
}

impl Config {
    /// Reads a URL. Port 5432 and the user's own database may be left out;
    /// reserved characters are written `%XX`. The options are those of libpq:
    ///
    /// | option | |
    /// |---|---|
    /// | `sslmode` | a [`SslMode`]: `disable`, `prefer`, `require`, `verify-ca`, `verify-full` |
    /// | `sslrootcert` | a PEM file of authorities (or the server's own certificate), or `system` |
    /// | `sslcert`, `sslkey` | PEM files: our certificate, and its key, which nobody else may read |
    /// | `passfile` | a file of `host:port:database:user:password` lines, which nobody else may read |
    /// | `host` | the directory of a unix socket, as in `postgres://user@/db?host=/run/postgresql` |
    /// | `connect_timeout` | seconds to wait for a connection, and for each answer until let in |
    ///
    /// All others are refused, so that none is believed to be in force when it
    /// is not. Relative paths are meant from the current directory;
    /// [`Config::parse_in`] takes another. Files are read at each connection.
    ///
    /// # Errors
    /// [`PgError::Url`], [`PgError::Option`].
    pub fn parse(url: &str) -> Result<Self, PgError> {
        Self::parse_in(url, Path::new(""))
    }

    /// As [`Config::parse`], with relative paths meant from the directory `base`.
    ///
    /// # Errors
    /// As [`Config::parse`].
    pub fn parse_in(url: &str, base: &Path) -> Result<Self, PgError> {
        let rest = url
            .strip_prefix("postgres://")
            .or_else(|| url.strip_prefix("postgresql://"))
            .ok_or(PgError::Url("does not begin with postgres://"))?;
        let (place, options) = rest.split_once('?').unwrap_or((rest, ""));
        // A password's own ? or # would let its rest pass for something to repeat.
        if rest.contains('#') || options.contains('@') {
            return Err(PgError::Url(
                "has a reserved character (one of # ? @) that is not written %XX",
            ));
        }
        let (authority, database) = place.split_once('/').unwrap_or((place, ""));
        let (user, place) = authority
            .rsplit_once('@')
            .ok_or(PgError::Url("names no user"))?;
        let (user, password) = match user.split_once(':') {
            Some((user, password)) => (user, Some(Zeroizing::new(unescape(password)?))),
            None => (user, None),
        };
        let (host, port) = host_and_port(place)?;
        let user = name(user)?;
        let mut options = Options::parse(options, base)?;
        let host = match (host.as_str(), options.socket.take()) {
            ("", Some(directory)) => directory,
            (_, Some(_)) => return Err(wrong("host", "says a second time where the server is")),
            (_, None) => host,
        };
        if host.is_empty() || user.is_empty() {
            return Err(PgError::Url("names no user or no host"));
        }
        let database = match database {
            "" => user.clone(),
            given => name(given)?,
        };
        let config = Self {
            host,
            port,
            user,
            database,
            password,
            options,
        };
        config.check()?;
        Ok(config)
    }

    /// How much protection the connection must have. Without `sslmode`:
    /// [`SslMode::Prefer`] on this machine (loopback addresses, `localhost`, unix
    /// sockets) and [`SslMode::VerifyFull`] elsewhere, or wherever `sslrootcert`
    /// is given.
    pub fn ssl_mode(&self) -> SslMode {
        let options = &self.options;
        match (options.ssl_mode, &options.roots) {
            (Some(SslMode::Require), Some(_)) => SslMode::VerifyCa,
            (Some(given), _) => given,
            (None, None) if self.is_local() => SslMode::Prefer,
            (None, _) => SslMode::VerifyFull,
        }
    }

    /// The directory of the unix socket, if this is one.
    pub(super) fn socket(&self) -> Option<&Path> {
        self.host.starts_with('/').then(|| Path::new(&self.host))
    }

    /// Whose word about the server's certificate is taken, if it is verified.
    pub(super) fn roots(&self) -> &Roots {
        self.options.roots.as_ref().unwrap_or(&Roots::System)
    }

    /// The files of our certificate and its key.
    pub(super) fn client(&self) -> Option<(&Path, &Path)> {
        let Options {
            certificate, key, ..
        } = &self.options;
        Some((certificate.as_deref()?, key.as_deref()?))
    }

    /// How long to wait for a connection, and for each answer until let in.
    pub(super) fn patience(&self) -> Duration {
        let given = self.options.connect_timeout;
        given.unwrap_or(super::Connection::PATIENCE)
    }

    /// The password, for the handshake alone: the URL's, or that of `passfile`.
    pub(super) fn expose_password(&self) -> Result<Option<Zeroizing<Vec<u8>>>, PgError> {
        let Some(path) = &self.options.passfile else {
            return Ok(self.password.clone());
        };
        let lines = read_private("passfile", path)?;
        let hosts = match self.host.as_str() {
            // What libpq calls its default directory, here and there.
            "/tmp" | "/run/postgresql" | "/var/run/postgresql" => vec![&self.host, "localhost"],
            host => vec![host],
        };
        let port = self.port.to_string();
        let found = hosts
            .into_iter()
            .find_map(|host| passfile_entry(&lines, [host, &port, &self.database, &self.user]));
        match found {
            Some(password) => Ok(Some(password)),
            None => Err(PgError::File {
                option: "passfile",
                problem: "has no line for this host, port, database and user".to_owned(),
            }),
        }
    }

    fn is_local(&self) -> bool {
        let loopback = |address: IpAddr| address.is_loopback();
        self.socket().is_some()
            || self.host.eq_ignore_ascii_case("localhost")
            || self.host.parse().is_ok_and(loopback)
    }

    /// Refuses options that would not do what they seem to.
    fn check(&self) -> Result<(), PgError> {
        let options = &self.options;
        let named = |given: bool, option: &'static str| given.then_some(option);
        let checked = named(options.roots.is_some(), "sslrootcert");
        let presented = named(options.certificate.is_some(), "sslcert")
            .or_else(|| named(options.key.is_some(), "sslkey"));
        let files = checked.or(presented);
        let mode = named(options.ssl_mode > Some(SslMode::Prefer), "sslmode");
        let system = matches!(options.roots, Some(Roots::System));
        match (self.ssl_mode(), files, checked) {
            _ if self.socket().is_some() && mode.or(files).is_some() => Err(wrong(
                mode.or(files).unwrap_or_default(),
                "asks for TLS, which a unix socket does not have",
            )),
            (SslMode::Disable, Some(option), _) => {
                Err(wrong(option, "is of no use with sslmode=disable"))
            }
            (SslMode::Prefer, _, Some(option)) => Err(wrong(
                option,
                "is not looked at with sslmode=prefer: write sslmode=verify-full",
            )),
            (SslMode::VerifyCa, _, None) => Err(wrong(
                "sslmode",
                "verify-ca needs sslrootcert=PATH, the authority's certificate",
            )),
            (SslMode::VerifyCa, _, Some(option)) if system => Err(wrong(
                option,
                "system needs sslmode=verify-full: these authorities vouch for anybody's server",
            )),
            _ if options.certificate.is_some() != options.key.is_some() => Err(wrong(
                presented.unwrap_or_default(),
                "needs the other of sslcert and sslkey",
            )),
            _ if options.passfile.is_some() && self.password.is_some() => Err(wrong(
                "passfile",
                "is not looked at when the URL has a password: leave one out",
            )),
            _ => Ok(()),
        }
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
            options: _,
        } = self;
        let host = host.replace('/', "%2F");
        write!(f, "postgres://{user}@{host}:{port}/{database}")
    }
}

impl fmt::Display for SslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        })
    }
}

impl Options {
    /// `name=value&name=value`, each name once.
    fn parse(text: &str, base: &Path) -> Result<Self, PgError> {
        let mut options = Self::default();
        let mut seen = Vec::new();
        for option in text.split('&').filter(|_| !text.is_empty()) {
            let (key, value) = option
                .split_once('=')
                .ok_or(PgError::Url("has an option without a ="))?;
            let plain = |b: u8| b.is_ascii_lowercase() || b == b'_';
            if key.is_empty() || key.len() > LONGEST_OPTION || !key.bytes().all(plain) {
                return Err(PgError::Url("has an option whose name cannot be one"));
            }
            if seen.contains(&key) {
                return Err(wrong(key, "is there twice"));
            }
            seen.push(key);
            let value = name(value)?;
            if value.is_empty() {
                return Err(wrong(key, "is empty"));
            }
            options.set(key, value, base)?;
        }
        Ok(options)
    }

    fn set(&mut self, option: &str, value: String, base: &Path) -> Result<(), PgError> {
        let path = || base.join(&value);
        match option {
            "sslmode" => self.ssl_mode = Some(ssl_mode(&value)?),
            "sslrootcert" if value == "system" => self.roots = Some(Roots::System),
            "sslrootcert" => self.roots = Some(Roots::File(path())),
            "sslcert" => self.certificate = Some(path()),
            "sslkey" => self.key = Some(path()),
            "passfile" => self.passfile = Some(path()),
            "connect_timeout" => self.connect_timeout = Some(seconds(&value)?),
            "host" if value.starts_with('/') => self.socket = Some(value),
            "host" => {
                return Err(wrong(
                    option,
                    "takes the directory of a unix socket, from / on; a host's name stands after the @",
                ));
            }
            "application_name" => {
                return Err(wrong(
                    option,
                    "is always pitser, so that its sessions are known",
                ));
            }
            "user" | "password" | "port" | "dbname" => {
                return Err(wrong(option, "is written before the ?"));
            }
            _ => {
                return Err(wrong(
                    option,
                    "is not known; these are: sslmode, sslrootcert, sslcert, sslkey, passfile, \
                     host, connect_timeout",
                ));
            }
        }
        Ok(())
    }
}

/// Longest name of an option that is repeated in an error, bytes.
const LONGEST_OPTION: usize = 40;
/// Longest `connect_timeout`, seconds.
const LONGEST_TIMEOUT: u64 = 3600;
/// Longest file that an option may name, bytes; a bundle of all authorities has 250,000.
const LONGEST_FILE: u64 = 1 << 24;

fn wrong(option: &str, problem: &'static str) -> PgError {
    PgError::Option {
        name: option.to_owned(),
        problem,
    }
}

fn ssl_mode(value: &str) -> Result<SslMode, PgError> {
    [
        SslMode::Disable,
        SslMode::Prefer,
        SslMode::Require,
        SslMode::VerifyCa,
        SslMode::VerifyFull,
    ]
    .into_iter()
    .find(|mode| mode.to_string() == value)
    .ok_or_else(|| {
        wrong(
            "sslmode",
            "is one of disable, prefer, require, verify-ca, verify-full",
        )
    })
}

fn seconds(value: &str) -> Result<Duration, PgError> {
    Some(value)
        .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|digits| digits.parse().ok())
        .filter(|seconds| (1..=LONGEST_TIMEOUT).contains(seconds))
        .map(Duration::from_secs)
        .ok_or_else(|| {
            wrong(
                "connect_timeout",
                "is a whole number of seconds, from 1 to 3600",
            )
        })
}

/// The whole file that an option names. Its path, being the option's value, is
/// in no error.
pub(super) fn read(option: &'static str, path: &Path) -> Result<Zeroizing<Vec<u8>>, PgError> {
    read_if(option, path, |_, _| true)
}

/// As [`read`], for a file with a secret: refused as by libpq if anybody but
/// its owner may read it. A file of root's may be for a group to read.
pub(super) fn read_private(
    option: &'static str,
    path: &Path,
) -> Result<Zeroizing<Vec<u8>>, PgError> {
    let barred = |owner| match (owner, option) {
        (0, "sslkey") => 0o037,
        _ => 0o077,
    };
    read_if(option, path, |owner, mode| mode & barred(owner) == 0)
}

fn read_if(
    option: &'static str,
    path: &Path,
    closed: impl Fn(u32, u32) -> bool,
) -> Result<Zeroizing<Vec<u8>>, PgError> {
    let problem = |problem: String| PgError::File { option, problem };
    let unreadable = |error: std::io::Error| problem(format!("cannot be read ({})", error.kind()));
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(problem("is no plain file".to_owned()));
    }
    if !closed(metadata.uid(), metadata.mode()) {
        return Err(problem(
            "is open to others than its owner: chmod 600".to_owned(),
        ));
    }
    if metadata.len() > LONGEST_FILE {
        return Err(problem("is longer than 16 MiB".to_owned()));
    }
    // Room for all of it at once: a vector that grows leaves copies behind.
    let room = usize::try_from(metadata.len()).unwrap_or_default() + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(LONGEST_FILE)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    Ok(bytes)
}

/// The password of the first line of `host:port:database:user:password` that
/// fits. `*` fits anything, `\` takes the next character as it is.
fn passfile_entry(lines: &[u8], wanted: [&str; 4]) -> Option<Zeroizing<Vec<u8>>> {
    let fitting = |line: &[u8]| {
        let mut fields = line;
        for wanted in wanted {
            let (field, raw, rest) = passfile_field(fields);
            if raw != b"*" && **field != *wanted.as_bytes() {
                return None;
            }
            fields = rest?;
        }
        let (password, ..) = passfile_field(fields);
        Some(password).filter(|password| !password.is_empty())
    };
    lines
        .split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .filter(|line| !line.starts_with(b"#"))
        .find_map(fitting)
}

/// A field, the same as it is written, and what follows its colon.
type PassfileField<'a> = (Zeroizing<Vec<u8>>, &'a [u8], Option<&'a [u8]>);

fn passfile_field(line: &[u8]) -> PassfileField<'_> {
    let mut field = Zeroizing::new(Vec::with_capacity(line.len()));
    let mut place = 0;
    while let Some(&byte) = line.get(place) {
        match (byte, line.get(place + 1)) {
            (b':', _) => break,
            (b'\\', Some(&escaped)) => {
                field.push(escaped);
                place += 1;
            }
            _ => field.push(byte),
        }
        place += 1;
    }
    let (raw, rest) = line.split_at(place);
    (field, raw, rest.get(1..))
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
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(url: &str, shown: &str, password: Option<&str>) {
        let config = Config::parse(url).unwrap();
        assert_eq!(format!("{config:?}"), shown);
        let found = config.expose_password().unwrap();
        assert_eq!(
            found.as_ref().map(|found| found.as_slice()),
            password.map(str::as_bytes)
        );
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
        check("postgres://a@h/d?", "postgres://a@h:5432/d", None);
        for url in [
            "postgres://a@%2Frun%2Fpg/d",
            "postgres://a@/d?host=/run/pg",
            "postgres://a@/d?host=%2Frun%2Fpg&sslmode=prefer",
        ] {
            check(url, "postgres://a@%2Frun%2Fpg:5432/d", None);
        }
        check(
            "postgres://a:b@:7?host=/run/pg",
            "postgres://a@%2Frun%2Fpg:7/a",
            Some("b"),
        );
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
            // Passwords whose reserved characters are not written %XX.
            "postgres://a:b?secret@h/d",
            "postgres://a:b?secret=c@h/d",
            "postgres://a:b@h?secret=c@h/d",
            "postgres://a:b#secret@h/d",
            "postgres://a:secret@h/d#",
            "postgres://a:secret@h/d?sslmode",
            "postgres://a:secret@h/d?Secret=1",
            "postgres://a:secret@h/d?=secret",
            "postgres://a:secret@h/d?&",
        ] {
            let error = Config::parse(wrong).unwrap_err();
            let said = error.to_string().to_lowercase();
            assert!(!said.contains("secret"), "{error}");
        }
    }

    /// The option is refused by its name, and its value is not repeated.
    #[track_caller]
    fn refuses(options: &str, named: &str) {
        for place in ["postgres://a@db.example/d?", "postgres://a@127.0.0.1/d?"] {
            let error = Config::parse(&format!("{place}{options}")).unwrap_err();
            assert!(
                matches!(&error, PgError::Option { name, .. } if name == named),
                "{error}"
            );
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn options_that_would_not_do_what_they_seem_to() {
        refuses("keepalives=1", "keepalives");
        refuses("channel_binding=secret", "channel_binding");
        refuses("application_name=secret", "application_name");
        refuses("password=secret", "password");
        refuses("sslmode=secret", "sslmode");
        refuses("sslmode=allow", "sslmode");
        refuses("sslmode=Require", "sslmode");
        refuses("sslmode=", "sslmode");
        refuses("sslmode=prefer&sslmode=prefer", "sslmode");
        refuses("sslmode=verify-ca", "sslmode");
        refuses("sslmode=verify-ca&sslrootcert=system", "sslrootcert");
        refuses("sslmode=require&sslrootcert=system", "sslrootcert");
        refuses("sslmode=prefer&sslrootcert=secret", "sslrootcert");
        refuses("sslmode=disable&sslrootcert=secret", "sslrootcert");
        refuses("sslmode=disable&sslcert=secret&sslkey=secret", "sslcert");
        refuses("sslcert=secret", "sslcert");
        refuses("sslkey=secret", "sslkey");
        refuses("host=/secret", "host");
        refuses("host=secret", "host");
        for seconds in ["0", "-1", "+1", "1s", "3601", "99999999999999999999"] {
            refuses(&format!("connect_timeout={seconds}"), "connect_timeout");
        }
        let passfile = "postgres://a:b@h?passfile=secret";
        assert!(Config::parse(passfile).is_err());
        // A unix socket has no TLS to ask for.
        for options in [
            "sslmode=require",
            "sslrootcert=system",
            "sslcert=c&sslkey=k",
        ] {
            let url = format!("postgres://a@%2Frun/d?{options}");
            assert!(Config::parse(&url).is_err(), "{options}");
        }
    }

    #[track_caller]
    fn mode(url: &str, mode: SslMode) {
        assert_eq!(Config::parse(url).unwrap().ssl_mode(), mode, "{url}");
    }

    #[test]
    fn the_network_is_distrusted_unless_the_url_says_otherwise() {
        use SslMode::*;
        for host in ["localhost", "LocalHost", "127.0.0.1", "127.9.9.9", "[::1]"] {
            mode(&format!("postgres://a@{host}:1/d"), Prefer);
            mode(&format!("postgres://a@{host}/d?sslrootcert=ca"), VerifyFull);
        }
        mode("postgres://a@/d?host=/run", Prefer);
        for host in [
            "db.example",
            "localhost.example",
            "127.0.0.1.example",
            "10.0.0.1",
            "[::2]",
            "128.0.0.1",
        ] {
            mode(&format!("postgres://a@{host}/d"), VerifyFull);
            mode(&format!("postgres://a@{host}/d?sslmode=disable"), Disable);
        }
        mode("postgres://a@h?sslmode=require", Require);
        mode("postgres://a@h?sslmode=require&sslrootcert=c", VerifyCa);
        mode("postgres://a@h?sslmode=verify-ca&sslrootcert=c", VerifyCa);
        mode("postgres://a@h?sslmode=verify-full", VerifyFull);
        mode("postgres://a@h?sslrootcert=system", VerifyFull);
    }

    #[test]
    fn relative_paths_are_meant_from_the_base() {
        let url =
            "postgres://a@h?sslrootcert=ca.pem&sslcert=/abs/c&sslkey=keys/k&connect_timeout=7";
        let config = Config::parse_in(url, Path::new("/etc/pitser")).unwrap();
        assert!(
            matches!(config.roots(), Roots::File(path) if path == Path::new("/etc/pitser/ca.pem"))
        );
        let expected = (Path::new("/abs/c"), Path::new("/etc/pitser/keys/k"));
        assert_eq!(config.client(), Some(expected));
        assert_eq!(config.patience(), Duration::from_secs(7));
        let plain = Config::parse("postgres://a@h?sslrootcert=ca.pem").unwrap();
        assert!(matches!(plain.roots(), Roots::File(path) if path == Path::new("ca.pem")));
    }

    /// The password that such a file has for `u` in database `d` at `h:5432`.
    fn entry(lines: &str) -> Option<String> {
        passfile_entry(lines.as_bytes(), ["h", "5432", "d", "u"])
            .map(|found| String::from_utf8(found.to_vec()).unwrap())
    }

    #[test]
    fn the_first_line_that_fits_has_the_password() {
        let found = |lines| entry(lines).unwrap();
        assert_eq!(found("h:5432:d:u:secret"), "secret");
        assert_eq!(found("*:*:*:*:secret\r\n"), "secret");
        assert_eq!(
            found("# h:5432:d:u:no\n\nx:*:*:*:no\nh:*:d:*:a\n*:*:*:*:b"),
            "a"
        );
        assert_eq!(found(r"h:5432:d:u:a\:b\\c\d"), r"a:b\cd");
        assert_eq!(found("h:5432:d:u:a:b"), "a");
        assert_eq!(found(r"\h:5432:d:u:a"), "a");
        for none in [
            "",
            "h:5432:d:u",
            "h:5432:d:u:",
            r"\*:*:*:*:secret",
            "**:*:*:*:secret",
            "h:543:d:u:secret",
            "H:5432:d:u:secret",
            " h:5432:d:u:secret",
        ] {
            assert_eq!(entry(none), None, "{none:?}");
        }
    }

    #[test]
    fn a_file_of_secrets_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passfile");
        fs::write(&path, "*:*:*:*:hunter\nlocalhost:1:*:*:x").unwrap();
        let open = |options: &str| {
            let url = format!("postgres://a@h?passfile=passfile{options}");
            let config = Config::parse_in(&url, dir.path()).unwrap();
            config.expose_password()
        };
        for (mode, private) in [
            (0o600, true),
            (0o400, true),
            (0o640, false),
            (0o604, false),
            (0o620, false),
            (0o601, false),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            match open("") {
                Ok(password) => assert!(private && **password.unwrap() == *b"hunter", "{mode:o}"),
                Err(error) => {
                    assert!(
                        !private && error.to_string().contains("passfile"),
                        "{error}"
                    );
                    assert!(!error.to_string().contains("hunter"), "{error}");
                }
            }
        }
        fs::remove_file(&path).unwrap();
        assert!(matches!(open(""), Err(PgError::File { .. })));
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        assert!(matches!(open(""), Err(PgError::File { .. })));
    }

    #[test]
    fn a_socket_in_the_usual_directory_is_localhost_in_a_passfile() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passfile");
        fs::write(&path, "localhost:*:*:*:hunter").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let found = |socket: &str| {
            let url = format!("postgres://a@/d?host={socket}&passfile=passfile");
            let config = Config::parse_in(&url, dir.path()).unwrap();
            config.expose_password().is_ok()
        };
        assert!(found("/tmp") && found("/var/run/postgresql") && !found("/srv/pg"));
    }

    /// Every byte that is not a letter or digit as `%XX`.
    fn escape(text: &str) -> String {
        text.bytes()
            .map(|byte| match byte.is_ascii_alphanumeric() {
                true => char::from(byte).to_string(),
                false => format!("%{byte:02x}"),
            })
            .collect()
    }

    /// A passfile's field.
    fn guard(field: &str) -> String {
        field.replace('\\', r"\\").replace(':', r"\:")
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_options_end_in_a_panic_or_in_an_error_that_repeats_a_value(
            options in "[a-z_=&%/?0-9.]{0,12}",
            known in proptest::sample::select(vec![
                "sslmode", "sslrootcert", "sslcert", "sslkey", "passfile", "host",
                "connect_timeout", "application_name", "keepalives",
            ]),
            more in "[ -~õ]{0,20}",
        ) {
            for options in [
                format!("{options}&{known}=HUNTER{more}"),
                format!("{known}=HUNTER{more}&{options}"),
                format!("{options}HUNTER{more}"),
            ] {
                if let Err(error) = Config::parse(&format!("postgres://a:HUNTER@h/d?{options}")) {
                    prop_assert!(!error.to_string().contains("HUNTER"), "{error}");
                    prop_assert!(!format!("{error:?}").contains("HUNTER"), "{error:?}");
                }
            }
        }

        #[test]
        fn a_path_comes_out_as_it_was_escaped(path in "/[^\0]{1,30}", other in "[^\0]{1,30}") {
            prop_assume!(other != "system");
            let (socket, roots) = (escape(&path), escape(&other));
            let url = format!("postgres://a@/d?connect_timeout=3&host={socket}");
            let config = Config::parse(&url).unwrap();
            prop_assert_eq!(config.socket(), Some(Path::new(&path)));
            let url = format!("postgres://a@h/d?sslrootcert={roots}");
            let config = Config::parse_in(&url, Path::new("/base")).unwrap();
            let expected = Path::new("/base").join(&other);
            prop_assert!(matches!(config.roots(), Roots::File(path) if *path == expected));
        }

        #[test]
        fn a_password_comes_out_of_the_line_that_it_went_into(
            host in "[^\0\r\n]{1,9}", user in "[^\0\r\n]{1,9}", password in "[^\0\r\n]{1,20}",
            noise in "[^\0]{0,30}",
        ) {
            let wanted = [host.as_str(), "5432", "d", &user];
            let line = format!("{}:5432:d:{}:{}\n", guard(&host), guard(&user), guard(&password));
            // A wildcard, a comment or our own line among the noise would come first.
            prop_assume!(!host.starts_with('#') && !noise.contains(':'));
            let lines = format!("{noise}\n{line}");
            let found = passfile_entry(lines.as_bytes(), wanted);
            prop_assert_eq!(found.map(|found| found.to_vec()), Some(password.into_bytes()));
            prop_assert!(passfile_entry(lines.as_bytes(), [&host, "5433", "d", &user]).is_none());
        }
    }
}
