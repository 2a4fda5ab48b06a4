//! PostgreSQL's frontend/backend protocol 3.0, as much of it as replication needs.
//!
//! ```text
//! every message     tag:1 ‖ length:32 (of itself and the body) ‖ body
//! inside CopyData   'w' ‖ start:64 ‖ end:64 ‖ time:64 ‖ one pgoutput message
//!                   'k' ‖ end:64 ‖ time:64 ‖ reply wanted:8
//!              we:  'r' ‖ written:64 ‖ flushed:64 ‖ applied:64 ‖ time:64 ‖ reply wanted:8
//! ```

use std::fmt;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::frontend;

use super::encoding::Encoding;
use super::error::{Doing, Refusal};
use super::tls::{self, Binding, Transport};
use super::{Config, Lsn, PgError};

/// The settings under which every value is printed (DESIGN §4), in the order
/// in which they are sent, and what else is not theirs to choose: they override what role and
/// database have set.
const SESSION: [(&str, &str); 10] = [
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO"),
    ("TimeZone", "UTC"),
    ("IntervalStyle", "iso_8601"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    ("xmloption", "content"),
    // A look at the catalogue is a long query that takes a moment, once a second: compiling
    // it takes twenty times as long.
    ("jit", "off"),
    // Questions may be far apart.
    ("idle_session_timeout", "0"),
];

/// A baseline is one transaction, and the server decodes another's in one of its own: both
/// last as long as they must. Before version 17 there is no such limit, and no such setting.
const LONG_TRANSACTIONS: &str = "SET transaction_timeout = 0";

/// The `client_encoding` under which the server converts nothing.
pub(super) const RAW: &str = "SQL_ASCII";

/// What the server says of itself where all bytes are text.
const ANY_BYTES: &[u8] = b"server_encoding\0SQL_ASCII\0";

/// That of every session but while it hands out rows as bytes.
pub(super) const CONVERTED: &str = "SET client_encoding = UTF8";

/// How names of tables, types and functions are found, and stand in values (`regclass` and
/// its like): whoever owns the database gives sessions a `search_path`, and could have
/// ours, which may be a superuser's, run functions of his own.
const NAMES: [(&str, &str); 2] = [
    ("search_path", "pg_catalog, pg_temp"),
    ("quote_all_identifiers", "off"),
];

/// Longest message before we are let in, bytes: greetings are short.
const GREETING_LIMIT: usize = 1 << 16;
/// Longest message afterwards, bytes: PostgreSQL builds none beyond 1 GiB.
const MESSAGE_LIMIT: usize = 1 << 30;
/// Most rounds of key derivation that a server may ask for; its default is 4,096.
const MOST_ROUNDS: u32 = 1_000_000;

/// A session with the server, blocking, for ordinary SQL or for replication.
///
/// Dropping it ends the session.
pub struct Connection {
    transport: Transport,
    received: BytesMut,
    chunk: Box<[u8]>,
    /// The last receipt was little: we keep up with what comes.
    is_drained: bool,
    /// Longest message that is accepted now, bytes.
    limit: usize,
    /// The timeout that the socket has now; `None` before the first is set.
    wait: Option<Option<Duration>>,
    /// How long each answer may take now.
    patience: Duration,
    /// How long a query may be silent; `None`: any time.
    silence: Option<Duration>,
    /// How long a whole question may take; `None`: any time.
    longest: Option<Duration>,
    /// When nothing more is waited for: whoever sends a byte now and then is not silent.
    until: Option<Instant>,
    user: String,
    database: String,
    /// The server's major version, by its own word; 0 if it gives none.
    major: u32,
    /// How names are to be asked for, where they may be no text, or once one was none.
    names: Option<Encoding>,
}

/// One column of an answer: null, or the server's text.
pub type Field = Option<Bytes>;

/// How much may come as an answer.
#[derive(Clone, Copy)]
struct Most {
    rows: usize,
    bytes: usize,
}

/// What a question about the catalogue is answered by at most.
const ANSWER: Most = Most {
    rows: 1 << 22,
    bytes: MESSAGE_LIMIT,
};
const TOO_MUCH: PgError = PgError::Protocol("more rows than were asked for");

/// One message: its tag and its body.
pub(super) struct Frame {
    pub(super) tag: u8,
    pub(super) body: Bytes,
}

/// Bytes received at once, below which there is hardly more to be had at once.
const LITTLE: usize = 1 << 10;

/// What the server sends while it streams.
pub(super) enum Streamed {
    /// One message of the output plugin.
    Data { message: Bytes },
    /// Everything up to here was sent; `reply` if the server wants an answer.
    Keepalive { end: Lsn, reply: bool },
    /// Nothing within the time allowed.
    Quiet,
}

impl Connection {
    /// How long to wait for a connection, for all answers while it is set up,
    /// and for the server to take what is sent. A query may take any time, unless
    /// [`Connection::silent_for`] says otherwise. The URL's `connect_timeout` holds in its place until the session is open.
    pub const PATIENCE: Duration = Duration::from_secs(30);

    /// Opens a session for ordinary SQL, in which names without a schema are the system's,
    /// whatever `search_path` role and database have.
    ///
    /// # Errors
    /// Those of [`PgError`] about reaching the server and being let in.
    pub fn open(config: &Config) -> Result<Self, PgError> {
        Self::start(config, &NAMES)
    }

    /// Opens a session as an application has one, which makes tables where its
    /// `search_path` says: to give a database something to do.
    ///
    /// # Errors
    /// As [`Connection::open`].
    pub fn open_application(config: &Config) -> Result<Self, PgError> {
        Self::start(config, &[])
    }

    /// Opens a session for replication, which also takes ordinary SQL.
    ///
    /// # Errors
    /// As [`Connection::open`], and [`PgError::Permission`] for a role that is
    /// neither superuser nor has `REPLICATION`.
    pub fn open_replication(config: &Config) -> Result<Self, PgError> {
        let [path, quotes] = NAMES;
        Self::start(config, &[("replication", "database"), path, quotes])
    }

    /// From now on a query during which the server says nothing for so long is
    /// [`PgError::Lost`], and so is the session: a server that is frozen, or cut
    /// off, must not hold up whoever has other things to do.
    #[must_use]
    pub fn silent_for(mut self, longest: Duration) -> Self {
        self.silence = Some(longest);
        self
    }

    /// As [`Self::silent_for`], and the server gives up a question after twice as long, and
    /// after a third of it if all that it does is to wait for a lock. So whoever holds one
    /// does not hold us, and no session of ours stays behind to wait for it. After three
    /// times as long we do, whatever the server says meanwhile.
    ///
    /// # Errors
    /// As [`Self::query`]; [`PgError::LockTimeout`] from then on.
    pub fn answering_within(self, longest: Duration) -> Result<Self, PgError> {
        let mut connection = self.silent_for(longest);
        connection.query(&format!(
            "SET lock_timeout = {}; SET statement_timeout = {}",
            longest.as_millis() / 3,
            longest.as_millis() * 2
        ))?;
        connection.longest = Some(longest * 3);
        Ok(connection)
    }

    /// Runs statements that take no arguments; the rows of all, as text.
    ///
    /// # Errors
    /// What the server refused, or the connection's end.
    pub fn query(&mut self, sql: &str) -> Result<Vec<Vec<Field>>, PgError> {
        let user = self.user.clone();
        self.query_doing(sql, Doing::Asking { user: &user })
    }

    /// The same, of which so many rows at most can be the answer, of any size.
    ///
    /// # Errors
    /// As [`Self::query`]; [`PgError::Protocol`] for more rows.
    pub(super) fn query_at_most(
        &mut self,
        sql: &str,
        rows: usize,
    ) -> Result<Vec<Vec<Field>>, PgError> {
        let user = self.user.clone();
        let most = Most {
            rows,
            bytes: usize::MAX,
        };
        self.query_for(sql, Doing::Asking { user: &user }, most)
    }

    /// The role that this session runs as.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The database that this session is in.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// How names are asked for, if not in UTF-8.
    pub(super) fn names(&self) -> Option<Encoding> {
        self.names.clone()
    }

    /// From now on names come as this encoding has them.
    pub(super) fn set_names(&mut self, encoding: Encoding) {
        self.names = Some(encoding);
    }

    fn start(config: &Config, mode: &[(&str, &str)]) -> Result<Self, PgError> {
        let until = Instant::now() + config.patience();
        let (transport, binding) = Transport::open(config, until)?;
        let mut connection = Self {
            transport,
            received: BytesMut::new(),
            chunk: vec![0; 1 << 16].into(),
            is_drained: false,
            limit: GREETING_LIMIT,
            wait: None,
            patience: config.patience(),
            silence: None,
            longest: None,
            until: Some(until),
            user: config.user.clone(),
            database: config.database.clone(),
            major: 0,
            names: None,
        };
        let who = [
            ("user", config.user.as_str()),
            ("database", config.database.as_str()),
            ("application_name", "pitser"),
        ];
        connection.send(|out| {
            frontend::startup_message(
                who.into_iter().chain(SESSION).chain(mode.iter().copied()),
                out,
            )
        })?;
        connection.authenticate(config, &binding)?;
        connection.limit = MESSAGE_LIMIT;
        connection.patience = Self::PATIENCE;
        connection.until = None;
        if connection.major >= 17 {
            connection.silence = Some(Self::PATIENCE);
            connection.query(LONG_TRANSACTIONS)?;
            connection.silence = None;
        }
        Ok(connection)
    }

    /// Everything from the first message to the first `ReadyForQuery`.
    fn authenticate(&mut self, config: &Config, binding: &Binding) -> Result<(), PgError> {
        let mut scram = Scram::Unasked;
        loop {
            let frame = self.answer()?;
            match frame.tag {
                b'R' => scram = self.prove(config, binding, scram, frame.body)?,
                b'E' => {
                    let doing = Doing::Connecting { user: &config.user };
                    let refusal = Refusal::read(&frame.body);
                    // A wrong password has another code: this is the binding.
                    let unbound = matches!(scram, Scram::Asked(_) | Scram::Answered(_))
                        && refusal.code == "28000";
                    return Err(match binding {
                        Binding::Tls { .. } if unbound => PgError::Intercepted {
                            host: config.host.clone(),
                        },
                        _ => refusal.explain(doing),
                    });
                }
                b'S' => {
                    self.major = major(&frame.body).unwrap_or(self.major);
                    if *frame.body == *ANY_BYTES {
                        self.names = Some(Encoding::Bytes);
                    }
                }
                b'K' | b'N' => {}
                b'Z' if matches!(scram, Scram::LetIn) => return Ok(()),
                _ => return Err(PgError::Protocol("an unexpected message while logging in")),
            }
        }
    }

    /// One authentication message: what was asked, what we answer.
    fn prove(
        &mut self,
        config: &Config,
        binding: &Binding,
        scram: Scram,
        mut body: Bytes,
    ) -> Result<Scram, PgError> {
        let code = body
            .try_get_u32()
            .map_err(|_| PgError::Protocol("an authentication request without a kind"))?;
        match (code, scram) {
            (0, Scram::Unasked | Scram::Proved) => Ok(Scram::LetIn),
            (0, _) => Err(PgError::Impostor),
            (3, _) => Err(PgError::WeakAuthentication { how: "in clear" }),
            (5, _) => Err(PgError::WeakAuthentication {
                how: "as an MD5 hash",
            }),
            (10, Scram::Unasked) => self.begin_scram(config, binding, &body),
            (11, Scram::Asked(mut exchange)) => {
                if rounds(&body).is_none_or(|rounds| rounds > MOST_ROUNDS) {
                    return Err(PgError::Protocol("an unreasonable password challenge"));
                }
                exchange
                    .update(&body)
                    .map_err(|_| PgError::Protocol("a password challenge that cannot be read"))?;
                self.send(|out| frontend::sasl_response(exchange.message(), out))?;
                Ok(Scram::Answered(exchange))
            }
            (12, Scram::Answered(mut exchange)) => {
                exchange.finish(&body).map_err(|_| PgError::Impostor)?;
                Ok(Scram::Proved)
            }
            (10..=12, _) => Err(PgError::Protocol("a password exchange out of order")),
            (code, _) => Err(PgError::Authentication { code }),
        }
    }

    fn begin_scram(
        &mut self,
        config: &Config,
        binding: &Binding,
        offered: &[u8],
    ) -> Result<Scram, PgError> {
        let (mechanism, binding) = mechanism(offered, binding, &config.host)?;
        let password = config
            .expose_password()?
            .ok_or_else(|| PgError::NoPassword {
                user: config.user.clone(),
            })?;
        let exchange = ScramSha256::new(&password, binding);
        self.send(|out| frontend::sasl_initial_response(mechanism, exchange.message(), out))?;
        Ok(Scram::Asked(Box::new(exchange)))
    }

    pub(super) fn query_doing(
        &mut self,
        sql: &str,
        doing: Doing<'_>,
    ) -> Result<Vec<Vec<Field>>, PgError> {
        self.query_for(sql, doing, ANSWER)
    }

    fn query_for(
        &mut self,
        sql: &str,
        doing: Doing<'_>,
        most: Most,
    ) -> Result<Vec<Vec<Field>>, PgError> {
        self.send(|out| frontend::query(sql, out))?;
        self.until = self.longest.map(|longest| Instant::now() + longest);
        let answered = self.answers(doing, most);
        self.until = None;
        if matches!(answered, Err(PgError::Protocol(_))) {
            // What else it sends is no answer to anything.
            self.limit = 0;
        }
        answered
    }

    /// The answers to a question, up to the last one.
    fn answers(&mut self, doing: Doing<'_>, most: Most) -> Result<Vec<Vec<Field>>, PgError> {
        let mut rows = Vec::new();
        let mut left = most.bytes;
        let mut refusal: Option<Refusal> = None;
        loop {
            let frame = match (self.read_frame(self.silence), &refusal) {
                // A fatal refusal ends the session: it says more than the end does.
                (Err(PgError::Lost(_)), Some(refusal)) => {
                    return Err(refusal.clone().explain(doing));
                }
                (frame, _) => frame?.ok_or(PgError::Lost(ErrorKind::TimedOut))?,
            };
            match frame.tag {
                b'D' => {
                    let size = left.checked_sub(frame.body.len());
                    left = size.filter(|_| rows.len() < most.rows).ok_or(TOO_MUCH)?;
                    rows.push(data_row(frame.body)?);
                }
                b'E' => refusal = Some(Refusal::read(&frame.body)),
                b'T' | b'C' | b'I' | b'N' | b'S' | b'A' => {}
                b'Z' => break,
                _ => return Err(PgError::Protocol("an unexpected answer to a query")),
            }
        }
        match refusal {
            Some(refusal) => Err(refusal.explain(doing)),
            None => Ok(rows),
        }
    }

    /// Sends a replication command that turns the session into a stream.
    pub(super) fn copy_both(&mut self, command: &str, doing: Doing<'_>) -> Result<(), PgError> {
        self.send(|out| frontend::query(command, out))?;
        loop {
            let frame = self.answer()?;
            match frame.tag {
                b'W' => return Ok(()),
                b'E' => return Err(Refusal::read(&frame.body).explain(doing)),
                b'N' | b'S' | b'A' => {}
                _ => {
                    return Err(PgError::Protocol(
                        "an unexpected answer to START_REPLICATION",
                    ));
                }
            }
        }
    }

    /// The next thing on a stream, waiting up to `wait` for its next bytes.
    pub(super) fn streamed(
        &mut self,
        wait: Duration,
        doing: Doing<'_>,
    ) -> Result<Streamed, PgError> {
        const SHORT: PgError = PgError::Protocol("a replication message that is too short");
        loop {
            let Some(Frame { tag, mut body }) = self.read_frame(Some(wait))? else {
                return Ok(Streamed::Quiet);
            };
            match tag {
                b'd' => {}
                b'E' => return Err(Refusal::read(&body).explain(doing)),
                b'c' | b'C' => {
                    return Err(PgError::NotNow {
                        message: "it ended the stream".to_owned(),
                    });
                }
                b'N' | b'S' | b'A' => continue,
                _ => return Err(PgError::Protocol("an unexpected message in a stream")),
            }
            match body.try_get_u8().map_err(|_| SHORT)? {
                b'w' if body.len() >= 24 => {
                    body.advance(24);
                    return Ok(Streamed::Data { message: body });
                }
                b'k' if body.len() >= 17 => {
                    let end = Lsn(body.get_u64());
                    body.advance(8);
                    let reply = body.get_u8() != 0;
                    return Ok(Streamed::Keepalive { end, reply });
                }
                b'w' | b'k' => return Err(SHORT),
                _ => return Err(PgError::Protocol("an unknown replication message")),
            }
        }
    }

    /// Tells the server that everything up to `flushed` is durable here.
    /// The time in it is left at zero: this crate has no clock.
    pub(super) fn status(&mut self, flushed: Lsn) -> Result<(), PgError> {
        let mut status = [0; 34];
        status[0] = b'r';
        // A living server answers at once.
        status[33] = 1;
        for place in [1, 9, 17] {
            status[place..place + 8].copy_from_slice(&flushed.0.to_be_bytes());
        }
        self.send(|out| {
            frontend::CopyData::new(&status[..])?.write(out);
            Ok(())
        })
    }

    fn send(
        &mut self,
        build: impl FnOnce(&mut BytesMut) -> std::io::Result<()>,
    ) -> Result<(), PgError> {
        let mut out = BytesMut::new();
        build(&mut out).map_err(|_| PgError::Protocol("text with a zero byte cannot be sent"))?;
        self.transport.send(&out).map_err(|error| tls::lost(&error))
    }

    /// A message that must come in time.
    fn answer(&mut self) -> Result<Frame, PgError> {
        self.read_frame(Some(self.patience))?
            .ok_or(PgError::Lost(ErrorKind::TimedOut))
    }

    /// The next message; `None` if `wait` passed without a byte. What was
    /// received of it by then is kept. A `wait` of zero is for what has arrived
    /// already: nothing is asked of the socket while that gives little at a time.
    fn read_frame(&mut self, wait: Option<Duration>) -> Result<Option<Frame>, PgError> {
        loop {
            if let Some(frame) = take_frame(&mut self.received, self.limit)? {
                return Ok(Some(frame));
            }
            if wait == Some(Duration::ZERO) && self.is_drained {
                return Ok(None);
            }
            let left = self.until.map(|until| until - Instant::now());
            if left == Some(Duration::ZERO) {
                return Err(PgError::Lost(ErrorKind::TimedOut));
            }
            let wait = wait.map_or(left, |wait| Some(left.map_or(wait, |left| wait.min(left))));
            // A zero timeout would mean none at all.
            let least = wait.map(|wait| wait.max(Duration::from_millis(1)));
            if self.wait != Some(least) {
                self.transport.set_timeout(least)?;
                self.wait = Some(least);
            }
            match self.transport.receive(&mut self.chunk) {
                Ok(0) => return Err(PgError::Lost(ErrorKind::UnexpectedEof)),
                Ok(count) => {
                    self.is_drained = count < LITTLE;
                    self.received.extend_from_slice(&self.chunk[..count]);
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => return Ok(None),
                    ErrorKind::Interrupted => {}
                    _ => return Err(tls::lost(&error)),
                },
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The server notices a closed socket as well; this is politeness.
        let _ = self.send(|out| {
            frontend::terminate(out);
            Ok(())
        });
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("user", &self.user)
            .field("database", &self.database)
            .finish_non_exhaustive()
    }
}

/// How far a password exchange is.
enum Scram {
    Unasked,
    Asked(Box<ScramSha256>),
    Answered(Box<ScramSha256>),
    /// The server has proved itself; now it may let us in.
    Proved,
    LetIn,
}

/// The mechanism to take of those offered, and what is said about binding it to
/// the TLS session. The server refuses us if this tells it that somebody between
/// changed its offer (RFC 5802 §6).
fn mechanism(
    offered: &[u8],
    binding: &Binding,
    host: &str,
) -> Result<(&'static str, ChannelBinding), PgError> {
    let offers = |wanted: &str| {
        let mut names = offered.split(|byte| *byte == 0);
        names.any(|name| name == wanted.as_bytes())
    };
    let (plain, plus) = (offers(SCRAM_SHA_256), offers(SCRAM_SHA_256_PLUS));
    match (binding, plus) {
        (
            Binding::Tls {
                hash: Some(hash), ..
            },
            true,
        ) => Ok((
            SCRAM_SHA_256_PLUS,
            ChannelBinding::tls_server_end_point(hash.clone()),
        )),
        // Somebody between us has TLS with the server, and we have none.
        (Binding::Clear, true) => Err(PgError::Protocol(
            "an offer to bind the password to TLS where there is no TLS",
        )),
        // Whoever shows such a certificate unverified might want just that.
        (
            Binding::Tls {
                is_tolerated: false,
                ..
            },
            true,
        ) => Err(PgError::Certificate {
            host: host.to_owned(),
            problem: "has a signature (as Ed25519) that gives no hash to bind the password to: add \
                      sslmode=verify-full and sslrootcert=PATH to the database URL",
        }),
        _ if !plain => Err(PgError::Authentication { code: 10 }),
        // A server that has no TLS with whoever is between us offers none either, and
        // believes that.
        (
            Binding::Tls {
                is_tolerated: false,
                ..
            },
            false,
        ) => Err(PgError::Certificate {
            host: host.to_owned(),
            problem: "is not verified, and the password cannot be bound to it: somebody may stand between, or a proxy \
                      that opens TLS. Add sslmode=verify-full and sslrootcert=PATH to the database URL",
        }),
        // "We could, and you did not offer": a server that did refuses.
        (Binding::Tls { .. }, false) => Ok((SCRAM_SHA_256, ChannelBinding::unrequested())),
        // "We cannot".
        (Binding::Clear | Binding::Tls { .. }, _) => {
            Ok((SCRAM_SHA_256, ChannelBinding::unsupported()))
        }
    }
}

/// Takes one whole message from the front, if there is one.
fn take_frame(received: &mut BytesMut, limit: usize) -> Result<Option<Frame>, PgError> {
    let Some((&[tag, a, b, c, d], _)) = received.split_first_chunk() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if length < 4 || length > limit {
        return Err(PgError::Protocol("a message of an impossible length"));
    }
    if received.len() <= length {
        return Ok(None);
    }
    let mut body = received.split_to(1 + length).freeze();
    body.advance(5);
    Ok(Some(Frame { tag, body }))
}

/// `count:16 ‖ (length:32, -1 for null ‖ bytes)*`
fn data_row(mut body: Bytes) -> Result<Vec<Field>, PgError> {
    const BAD: PgError = PgError::Protocol("a row that cannot be read");
    let count = body.try_get_u16().map_err(|_| BAD)?;
    let mut cells = Vec::new();
    for _ in 0..count {
        cells.push(match body.try_get_i32().map_err(|_| BAD)? {
            -1 => None,
            length => {
                let length = usize::try_from(length).map_err(|_| BAD)?;
                if length > body.len() {
                    return Err(BAD);
                }
                Some(body.split_to(length))
            }
        });
    }
    Ok(cells)
}

/// The rounds that a SCRAM challenge asks for: `r=...,s=...,i=4096`.
fn rounds(challenge: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(challenge).ok()?;
    text.split(',')
        .find_map(|part| part.strip_prefix("i="))?
        .parse()
        .ok()
}

/// The major version in a `ParameterStatus` that tells of it: `name 0 value 0`.
fn major(body: &[u8]) -> Option<u32> {
    let value = body.strip_prefix(b"server_version\0")?;
    let digits = value.iter().take_while(|byte| byte.is_ascii_digit());
    std::str::from_utf8(&value[..digits.count()])
        .ok()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_comes_out_when_it_is_whole() {
        let whole = [b"Z\0\0\0\x05I".as_slice(), b"N\0\0\0\x04"].concat();
        for cut in 0..6 {
            let mut received = BytesMut::from(&whole[..cut]);
            assert!(take_frame(&mut received, 100).unwrap().is_none(), "{cut}");
        }
        let mut received = BytesMut::from(&whole[..]);
        let first = take_frame(&mut received, 100).unwrap().unwrap();
        assert_eq!((first.tag, &first.body[..]), (b'Z', &b"I"[..]));
        let second = take_frame(&mut received, 100).unwrap().unwrap();
        assert_eq!(
            (second.tag, second.body.len(), received.len()),
            (b'N', 0, 0)
        );
    }

    #[test]
    fn impossible_lengths_are_refused_at_once() {
        for header in [*b"D\0\0\0\x03", *b"D\xFF\xFF\xFF\xFF", *b"D\0\x01\0\0"] {
            assert!(take_frame(&mut BytesMut::from(&header[..]), 1000).is_err());
        }
    }

    #[test]
    fn a_challenge_says_how_many_rounds() {
        assert_eq!(rounds(b"r=abc,s=QSXCR+Q6sek8bf92,i=4096"), Some(4096));
        assert_eq!(rounds(b"r=abc,i=-1"), None);
        assert_eq!(rounds(b"r=i=5"), None);
        assert_eq!(rounds(b"\xFF"), None);
    }

    /// Logs in, with a password, to a server that says this whatever it hears.
    fn log_in(answers: Vec<Vec<u8>>) -> PgError {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut heard = [0; 4096];
            for answer in answers {
                assert_ne!(socket.read(&mut heard).unwrap(), 0);
                socket.write_all(&answer).unwrap();
            }
            // Until the client has gone.
            while socket.read(&mut heard).is_ok_and(|count| count > 0) {}
        });
        let config = Config::parse(&format!(
            "postgres://a:hunter@127.0.0.1:{port}/d?sslmode=disable"
        ))
        .unwrap();
        let error = Connection::open(&config).unwrap_err();
        server.join().unwrap();
        error
    }

    #[test]
    fn a_server_that_falls_silent_holds_nobody_up() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut heard = [0; 4096];
            assert_ne!(socket.read(&mut heard).unwrap(), 0);
            let ready = [&authentication(0, b"")[..], b"Z\0\0\0\x05I"].concat();
            socket.write_all(&ready).unwrap();
            // Until the client has gone.
            while socket.read(&mut heard).is_ok_and(|count| count > 0) {}
        });
        let url = format!("postgres://a@127.0.0.1:{port}/d?sslmode=disable");
        let connection = Connection::open(&Config::parse(&url).unwrap()).unwrap();
        let mut connection = connection.silent_for(Duration::from_millis(1));
        let error = connection.query("SELECT 1").unwrap_err();
        assert!(error.is_passing(), "{error}");
        drop(connection);
        server.join().unwrap();
    }

    /// A byte now and then is not silence, and holds nobody up either.
    #[test]
    fn a_server_that_drips_is_given_up() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            for ready in [false, true] {
                let (mut socket, _) = listener.accept().unwrap();
                let mut heard = [0; 4096];
                assert_ne!(socket.read(&mut heard).unwrap(), 0);
                if ready {
                    let ready = [&authentication(0, b"")[..], b"Z\0\0\0\x05I"].concat();
                    socket.write_all(&ready).unwrap();
                }
                // A notice that says nothing, until the client has gone.
                let mut drip = b"N\0\0\0\x05\0".iter().cycle();
                while socket.write_all(&[*drip.next().unwrap()]).is_ok() {
                    std::thread::park_timeout(Duration::from_millis(1));
                }
            }
        });
        let url = format!("postgres://a@127.0.0.1:{port}/d?sslmode=disable&connect_timeout=1");
        let config = Config::parse(&url).unwrap();
        let error = Connection::open(&config).unwrap_err();
        assert!(
            matches!(error, PgError::Lost(ErrorKind::TimedOut)),
            "{error}"
        );
        let mut connection = Connection::open(&config).unwrap();
        connection.longest = Some(Duration::from_millis(50));
        let error = connection.query("SELECT 1").unwrap_err();
        assert!(
            matches!(error, PgError::Lost(ErrorKind::TimedOut)),
            "{error}"
        );
        drop(connection);
        server.join().unwrap();
    }

    #[test]
    fn more_rows_than_were_asked_for_are_refused() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut heard = [0; 4096];
            let row: &[u8] = b"D\0\0\0\x06\0\0";
            let end: &[u8] = b"Z\0\0\0\x05I";
            let greeting = [&authentication(0, b"")[..], end].concat();
            let answers = [
                greeting,
                [row, row, end].concat(),
                [row, row, row, end].concat(),
            ];
            for answer in answers {
                assert_ne!(socket.read(&mut heard).unwrap(), 0);
                socket.write_all(&answer).unwrap();
            }
            // Until the client has gone.
            while socket.read(&mut heard).is_ok_and(|count| count > 0) {}
        });
        let url = format!("postgres://a@127.0.0.1:{port}/d?sslmode=disable");
        let connection = Connection::open(&Config::parse(&url).unwrap()).unwrap();
        let mut connection = connection.silent_for(Duration::from_secs(10));
        assert_eq!(connection.query_at_most("FETCH 2", 2).unwrap().len(), 2);
        let refused = |error: PgError| assert!(matches!(error, PgError::Protocol(_)), "{error}");
        refused(connection.query_at_most("FETCH 2", 2).unwrap_err());
        // Nor is what is left of it the answer to another question.
        refused(connection.query("SELECT 1").unwrap_err());
        drop(connection);
        server.join().unwrap();
    }

    fn authentication(code: u32, rest: &[u8]) -> Vec<u8> {
        let body = [&code.to_be_bytes(), rest].concat();
        let length = u32::try_from(4 + body.len()).unwrap();
        [b"R", &length.to_be_bytes()[..], &body].concat()
    }

    #[test]
    fn a_server_that_does_not_know_the_password_is_not_believed() {
        let scram = authentication(10, b"SCRAM-SHA-256\0\0");
        let challenge = authentication(11, b"r=abc,s=QSXCR+Q6sek8bf92,i=4096");
        let endless = authentication(11, b"r=abc,s=QSXCR+Q6sek8bf92,i=4294967295");
        let let_in = authentication(0, b"");
        assert!(matches!(
            log_in(vec![scram.clone(), let_in]),
            PgError::Impostor
        ));
        assert!(matches!(
            log_in(vec![scram.clone(), challenge.clone()]),
            PgError::Protocol(_)
        ));
        assert!(matches!(log_in(vec![scram, endless]), PgError::Protocol(_)));
        assert!(matches!(log_in(vec![challenge]), PgError::Protocol(_)));
    }

    #[test]
    fn the_password_is_never_sent_in_a_way_that_gives_it_away() {
        let weak = |code| {
            matches!(
                log_in(vec![authentication(code, b"salt")]),
                PgError::WeakAuthentication { .. }
            )
        };
        assert!(weak(3) && weak(5));
        let other = authentication(10, b"SCRAM-SHA-999\0\0");
        assert!(matches!(
            log_in(vec![other]),
            PgError::Authentication { code: 10 }
        ));
        assert!(matches!(
            log_in(vec![authentication(7, b"")]),
            PgError::Authentication { code: 7 }
        ));
    }

    /// Of what was offered: the mechanism and the header that says what is bound.
    fn choice(offered: &[&str], binding: &Binding) -> Option<(&'static str, String)> {
        let offered = [offered.join("\0").as_bytes(), b"\0\0"].concat();
        let (name, binding) = mechanism(&offered, binding, "h").ok()?;
        let exchange = ScramSha256::new(b"hunter", binding);
        let said = std::str::from_utf8(exchange.message()).unwrap();
        Some((name, said.split("n=").next().unwrap().to_owned()))
    }

    #[test]
    fn the_password_is_bound_to_the_session_wherever_it_can_be() {
        let (plain, plus) = ("SCRAM-SHA-256", "SCRAM-SHA-256-PLUS");
        let tls = |hash: Option<Vec<u8>>, is_tolerated| Binding::Tls { hash, is_tolerated };
        let hash = Some(vec![7; 32]);
        let (bound, unverified) = (tls(hash.clone(), true), tls(hash, false));
        let chosen = |name, header: &str| Some((name, header.to_owned()));
        for offered in [&[plus, plain][..], &[plain, plus], &[plus], &["X", plus]] {
            let expected = chosen(plus, "p=tls-server-end-point,,");
            assert_eq!(choice(offered, &bound), expected, "{offered:?}");
            assert_eq!(choice(offered, &unverified), expected, "{offered:?}");
        }
        // "y" says that we could: where the offer was taken out on the way, the
        // server knows better and refuses.
        for binding in [bound.clone(), tls(None, true)] {
            assert_eq!(choice(&[plain], &binding), chosen(plain, "y,,"));
        }
        assert_eq!(
            choice(&[plus, plain], &tls(None, true)),
            chosen(plain, "n,,")
        );
        assert_eq!(choice(&[plus], &tls(None, true)), None);
        // But where it has no TLS with whoever took it out, and shows any certificate.
        for binding in [unverified, tls(None, false)] {
            assert_eq!(choice(&[plain], &binding), None);
        }
        assert_eq!(choice(&[plus, plain], &tls(None, false)), None);
        assert_eq!(choice(&[plain], &Binding::Clear), chosen(plain, "n,,"));
        // Somebody has stripped TLS off the way to us, not off their own.
        assert_eq!(choice(&[plus, plain], &Binding::Clear), None);
        for binding in [Binding::Clear, bound] {
            assert_eq!(choice(&["SCRAM-SHA-256-PLU"], &binding), None);
        }
    }

    #[test]
    fn what_is_not_postgresql_is_refused() {
        let said = |answer: &[u8]| log_in(vec![answer.to_vec()]).to_string();
        assert!(said(b"HTTP/1.1 400 Bad Request\r\n\r\n").contains("not PostgreSQL"));
        assert!(said(b"Z\0\0\0\x05I").contains("not PostgreSQL"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = data_row(Bytes::from(bytes.clone()));
            let _ = rounds(&bytes);
            let mut received = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = take_frame(&mut received, 100) {}
        }
    }
}
