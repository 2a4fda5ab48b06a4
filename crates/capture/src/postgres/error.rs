//! What can go wrong between us and a PostgreSQL server, and what to do about it.

use std::io;

use thiserror::Error;

use super::pgoutput::DecodeError;
use super::{Lsn, SslMode};

/// Why the server could not be asked. A slot that is missing or was moved is
/// no error: that is an answer (`slot::State`).
///
/// Messages hold names of roles, tables and slots, never a password or a value.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PgError {
    /// The connection string cannot be read. Nothing of it is repeated here.
    #[error("the database URL {0}; it is written postgres://user:password@host:5432/database")]
    Url(&'static str),
    /// An option of the URL is unknown or cannot be. Its value is not repeated here.
    #[error("the database URL's option {name} {problem}")]
    Option {
        /// The option's name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A file that an option of the URL names cannot be used.
    #[error("the file of {option} in the database URL {problem}")]
    File {
        /// The option's name.
        option: &'static str,
        /// What is wrong with the file.
        problem: String,
    },
    /// The server has no TLS, and we may not go on without.
    #[error(
        "the server at {host} offers no TLS, which sslmode={mode} asks for: set ssl = on in \
         postgresql.conf or, where the network is trusted, add ?sslmode=disable to the database URL"
    )]
    NoTls {
        /// The server's host.
        host: String,
        /// How much was asked for.
        mode: SslMode,
    },
    /// The server's certificate is not one that we may believe.
    #[error("the certificate of the server at {host} {problem}")]
    Certificate {
        /// The server's host.
        host: String,
        /// What is wrong with it, and what to do.
        problem: &'static str,
    },
    /// The server has other TLS with its client than we have with our server.
    #[error(
        "the server at {host} is not at the other end of our TLS: somebody stands between, or a \
         proxy that opens it; connect to the server itself, with sslmode=verify-full"
    )]
    Intercepted {
        /// The server's host.
        host: String,
    },
    /// The two sides do not come to terms about TLS.
    #[error("TLS with the server failed: {problem}")]
    Tls {
        /// Why.
        problem: String,
    },
    /// A slot or publication name that the server would not take.
    #[error(
        "{name:?} cannot name a slot or publication: use 1 to 63 of a-z, 0-9 and _, a letter first"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// Nothing answers there.
    #[error(
        "no PostgreSQL answers at {host}:{port} ({kind}): are host and port right, is it running, and listening there?"
    )]
    Unreachable {
        /// The host that was tried.
        host: String,
        /// The port that was tried.
        port: u16,
        /// What the operating system said.
        kind: io::ErrorKind,
    },
    /// The connection broke, or the server closed it without a word.
    #[error("the connection to the server was lost ({0})")]
    Lost(io::ErrorKind),
    /// The server is starting, stopping or recovering.
    #[error("the server takes no connections now: {message}")]
    NotNow {
        /// The server's words.
        message: String,
    },
    /// Wrong password, or a role that does not exist.
    #[error("PostgreSQL refused the password of {user:?}: check user and password in the URL")]
    Password {
        /// The role.
        user: String,
    },
    /// The server wants a password and the URL has none.
    #[error("PostgreSQL wants a password for {user:?} and the URL has none")]
    NoPassword {
        /// The role.
        user: String,
    },
    /// `pg_hba.conf` lets this role in from nowhere near us.
    #[error("pg_hba.conf does not let us in, add a line for this role and address: {message}")]
    Hba {
        /// The server's words.
        message: String,
    },
    /// The server wants a password sent in a way that gives it away.
    #[error(
        "PostgreSQL asks for the password {how}, which would give it away; set \
         password_encryption = 'scram-sha-256', set the role's password again, and write \
         scram-sha-256 in pg_hba.conf"
    )]
    WeakAuthentication {
        /// In clear, or as MD5.
        how: &'static str,
    },
    /// Kerberos, SSPI, a certificate: methods that we do not speak.
    #[error(
        "PostgreSQL asks for an authentication that pitser does not speak (code {code}); use scram-sha-256"
    )]
    Authentication {
        /// The protocol's number of the method.
        code: u32,
    },
    /// The server could not prove that it knows the password either.
    #[error(
        "the server at this address could not prove that it knows the password: is it the right one?"
    )]
    Impostor,
    /// There is no such database.
    #[error("{message}: correct its name at the end of the URL, or create it")]
    NoDatabase {
        /// The server's words.
        message: String,
    },
    /// The role may not do this.
    #[error("{message}; a superuser grants it: {grant}")]
    Permission {
        /// The server's words.
        message: String,
        /// The statement that a database administrator runs.
        grant: String,
    },
    /// The write-ahead log holds too little.
    #[error(
        "wal_level is {found}, changes cannot be read from it. Set these two lines in \
         postgresql.conf and restart the server:\nwal_level = logical\nmax_replication_slots = 10"
    )]
    WalLevel {
        /// What it is set to.
        found: String,
    },
    /// All slots are taken.
    #[error(
        "all replication slots are in use: raise max_replication_slots in postgresql.conf and restart, \
         or drop one that nobody reads (SELECT slot_name, active FROM pg_replication_slots)"
    )]
    NoFreeSlot,
    /// All connections are taken.
    #[error("the server has no connection to spare (max_connections, max_wal_senders): {message}")]
    TooManyConnections {
        /// The server's words.
        message: String,
    },
    /// Another process reads the slot.
    #[error(
        "slot {slot:?} is read by another process, perhaps a second guardian: stop that one first"
    )]
    SlotBusy {
        /// The slot.
        slot: String,
    },
    /// Transactions are open that a new slot has to wait for.
    #[error(
        "slot {slot:?} cannot be made before the transactions end that are open now: see who keeps one \
         open (SELECT pid, usename, xact_start FROM pg_stat_activity WHERE xact_start IS NOT NULL)"
    )]
    OpenTransactions {
        /// The slot.
        slot: String,
    },
    /// A slot of that name exists already.
    #[error("slot {slot:?} exists already: go on from it, or drop it first")]
    SlotExists {
        /// The slot.
        slot: String,
    },
    /// Streaming would skip changes that were never made durable (`CAP-01`).
    #[error("slot {slot:?} stands at {confirmed}, beyond {durable}: changes between are lost")]
    SlotMoved {
        /// The slot.
        slot: String,
        /// Where the slot stands.
        confirmed: Lsn,
        /// What was asked for.
        durable: Lsn,
    },
    /// There is no such slot, or the server dropped the log that it needs (`CAP-01`).
    #[error("slot {slot:?} is {what}: changes since the last one are lost")]
    SlotGone {
        /// The slot.
        slot: String,
        /// Missing or invalid.
        what: &'static str,
    },
    /// There is no such publication, or it was made after the slot.
    #[error("publication {publication:?} is missing, or was made after the slot")]
    NoPublication {
        /// The publication.
        publication: String,
    },
    /// Rows without a key cannot be told apart over time.
    #[error(
        "table {table} has no key, so its rows cannot be followed: give it a primary key, or take \
         the whole row as its key (ALTER TABLE {table} REPLICA IDENTITY FULL)"
    )]
    NoKey {
        /// The table.
        table: String,
    },
    /// The publication does not hold this table.
    #[error("table {table:?} is not guarded")]
    NotGuarded {
        /// The name that was asked for.
        table: String,
    },
    /// The key has another number of columns.
    #[error("the key of {table} has {wanted} columns, not {given}")]
    KeyLength {
        /// The table.
        table: String,
        /// Columns of the table's key.
        wanted: usize,
        /// Words given.
        given: usize,
    },
    /// Acknowledging would give up changes that were never handed out.
    #[error("cannot acknowledge {upto}: only {position} was reached")]
    AckAhead {
        /// What was to be acknowledged.
        upto: Lsn,
        /// The highest that was handed out.
        position: Lsn,
    },
    /// The server cannot hand out a change, whatever is tried: its transaction can only be
    /// left out. The server's words are not repeated, since they may hold a value.
    #[error(
        "the server cannot send the transaction that was committed at {commit} (SQLSTATE {code}): {}",
        unsent(code)
    )]
    Unsendable {
        /// Where its commit record begins.
        commit: Lsn,
        /// Five characters, PostgreSQL's appendix A.
        code: String,
    },
    /// The same of a row that is there.
    #[error(
        "the server cannot send a row of table {table} (SQLSTATE {code}): {}",
        unsent(code)
    )]
    UnsendableRow {
        /// Its table.
        table: String,
        /// Five characters, PostgreSQL's appendix A.
        code: String,
    },
    /// The server waited for a lock for too long.
    #[error(
        "another session holds a lock that a question of ours waits for, on a table of schema pitser or the catalogue: \
         look for it in pg_locks, and end it if it has no business there"
    )]
    LockTimeout,
    /// Anything else that the server refused.
    #[error("PostgreSQL: {message} (SQLSTATE {code})")]
    Server {
        /// Five characters, PostgreSQL's appendix A.
        code: String,
        /// The server's words.
        message: String,
    },
    /// The server said something that its protocol does not allow here.
    #[error("this is not PostgreSQL's protocol: {0}")]
    Protocol(&'static str),
    /// A replicated change cannot be read.
    #[error("a replicated change cannot be read: {0}")]
    Decode(#[from] DecodeError),
    /// Tables that are to be guarded and whose rows cannot be told apart.
    #[error(
        "no key, so their rows cannot be followed: {}. Give each a primary key, or take the whole \
         row as its key (keyless = \"full\" in the configuration, or ALTER TABLE ... REPLICA IDENTITY FULL)",
        tables.join(", ")
    )]
    NoKeys {
        /// All of them.
        tables: Vec<String>,
    },
    /// Somebody works on a table that has to be altered, or read.
    #[error(
        "table {table} is locked by another transaction, for longer than can be waited for: nothing was \
         changed; try again when it has ended"
    )]
    Locked {
        /// The table.
        table: String,
    },
    /// A table was stored anew before it was read.
    #[error(
        "table {table} was rewritten (ALTER TABLE, TRUNCATE, VACUUM FULL) before its rows could be read: it will be \
         read again"
    )]
    Rewritten {
        /// The table.
        table: String,
    },
    /// What is asked for cannot be guarded in that way.
    #[error("{what}")]
    Unfit {
        /// What does not fit, and what would.
        what: String,
    },
    /// A server that is older than what we know.
    #[error("this is PostgreSQL {found}; 14 is the oldest that can be guarded")]
    Version {
        /// The server's version.
        found: String,
    },
    /// A standby decodes nothing for us.
    #[error("this server is a standby: attach to its primary")]
    Standby,
    /// An object with one of our names that is not of our making.
    #[error(
        "{object} belongs to {owner:?}: do this as {owner:?} if that is who installed pitser; \
         otherwise find out who made it, and drop it"
    )]
    Foreign {
        /// The object.
        object: String,
        /// Whose it is.
        owner: String,
    },
}

impl PgError {
    /// Whether it is the configuration that is wrong, whatever the server says.
    pub fn is_configuration(&self) -> bool {
        matches!(
            self,
            Self::Url(_) | Self::Option { .. } | Self::File { .. } | Self::Name { .. }
        )
    }

    /// Whether trying again later, with nothing changed by anybody, may help.
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Lost(_)
                | Self::NotNow { .. }
                | Self::TooManyConnections { .. }
                | Self::SlotBusy { .. }
                | Self::OpenTransactions { .. }
                | Self::Locked { .. }
                | Self::Rewritten { .. }
        )
    }
}

impl From<io::Error> for PgError {
    fn from(error: io::Error) -> Self {
        Self::Lost(error.kind())
    }
}

/// What was being done when the server refused; decides what to advise.
#[derive(Clone, Copy, Debug)]
pub(super) enum Doing<'a> {
    Connecting { user: &'a str },
    Asking { user: &'a str },
    Publishing { user: &'a str, database: &'a str },
    MakingSlot { user: &'a str, slot: &'a str },
    Streaming { slot: &'a str, publication: &'a str },
}

/// The fields of an error message that we use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: String,
    pub(super) message: String,
}

impl Refusal {
    /// Reads an `ErrorResponse`: `(field:1 ‖ text ‖ 0)* ‖ 0`.
    pub(super) fn read(body: &[u8]) -> Self {
        let field = |wanted: u8| {
            body.split(|byte| *byte == 0)
                .find_map(|field| field.strip_prefix(&[wanted]))
                .map(|text| String::from_utf8_lossy(text).into_owned())
        };
        Self {
            code: field(b'C').unwrap_or_else(|| "?????".to_owned()),
            message: field(b'M').unwrap_or_else(|| "no reason given".to_owned()),
        }
    }

    /// The error that says what to do. Goes by SQLSTATE alone: the server's
    /// words may be in any language.
    pub(super) fn explain(self, doing: Doing<'_>) -> PgError {
        let Self { code, message } = self;
        match (code.as_str(), doing) {
            ("28P01", Doing::Connecting { user }) => PgError::Password {
                user: user.to_owned(),
            },
            ("28000", _) => PgError::Hba { message },
            ("3D000", _) => PgError::NoDatabase { message },
            ("42501", _) => PgError::Permission {
                message,
                grant: grant(doing),
            },
            ("53400", Doing::MakingSlot { .. }) => PgError::NoFreeSlot,
            ("53300", _) => PgError::TooManyConnections { message },
            ("57P01" | "57P02" | "57P03" | "57P05", _) => PgError::NotNow { message },
            ("55006", Doing::Streaming { slot, .. }) => PgError::SlotBusy {
                slot: slot.to_owned(),
            },
            ("55P03", Doing::MakingSlot { slot, .. }) => PgError::OpenTransactions {
                slot: slot.to_owned(),
            },
            ("55P03", _) => PgError::LockTimeout,
            ("42710", Doing::MakingSlot { slot, .. }) => PgError::SlotExists {
                slot: slot.to_owned(),
            },
            ("42704", Doing::Streaming { publication, .. }) => PgError::NoPublication {
                publication: publication.to_owned(),
            },
            ("55000", Doing::Streaming { slot, .. }) => PgError::SlotGone {
                slot: slot.to_owned(),
                what: "no longer valid",
            },
            _ => PgError::Server { code, message },
        }
    }
}

/// What may be wrong with a value that the server does not send.
fn unsent(code: &str) -> &'static str {
    match code.get(..2) {
        Some("22") => "a value does not convert to UTF-8, or is none of its type; correct it",
        Some("54" | "XX") => {
            "a row is longer than 1 GB as text (500 MB as bytea), or damaged; keep such values in parts, or outside \
             of guarded tables"
        }
        _ => "a value cannot be printed; see the server's log",
    }
}

/// Whether the server refused something for what it is, and will so whenever it is asked:
/// not for what is short, missing, or somebody's command.
pub(super) fn is_of_data(code: &str) -> bool {
    let class = code.get(..2).unwrap_or_default();
    !matches!(class, "08" | "25" | "28" | "40" | "53" | "55" | "57" | "58")
}

fn grant(doing: Doing<'_>) -> String {
    match doing {
        Doing::Connecting { user } | Doing::MakingSlot { user, .. } => {
            format!("ALTER ROLE {} REPLICATION", quote(user))
        }
        Doing::Publishing { user, database } => format!(
            "GRANT CREATE ON DATABASE {} TO {user}, and make {user} an owner of the tables (GRANT owner TO {user})",
            quote(database),
            user = quote(user),
        ),
        Doing::Asking { user } => format!(
            "GRANT SELECT ON that table TO {user} (where a policy hides rows: ALTER ROLE {user} BYPASSRLS)",
            user = quote(user),
        ),
        Doing::Streaming { .. } => "ALTER ROLE ... REPLICATION for the role in the URL".to_owned(),
    }
}

/// An identifier as SQL takes it, whatever characters it has.
pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_fields_that_it_uses() {
        let body = b"SFATAL\0VFATAL\0C28P01\0Mno such thing\0Fauth.c\0\0";
        let refusal = Refusal::read(body);
        assert_eq!(
            (refusal.code.as_str(), refusal.message.as_str()),
            ("28P01", "no such thing")
        );
    }

    #[test]
    fn reads_any_bytes() {
        for body in [&b""[..], b"\0", b"C", b"M\xFF\0", b"\0\0\0"] {
            let refusal = Refusal::read(body);
            assert!(!refusal.code.contains('\0') && !refusal.message.contains('\0'));
        }
    }

    #[test]
    fn only_what_passes_by_itself_is_passing() {
        let refused = |code: &str| {
            Refusal {
                code: code.to_owned(),
                message: "m".to_owned(),
            }
            .explain(Doing::Connecting { user: "pitser" })
        };
        assert!(refused("57P03").is_passing() && refused("57P01").is_passing());
        assert!(!refused("28P01").is_passing() && !refused("42501").is_passing());
        assert!(!refused("XX000").is_passing());
    }
}
