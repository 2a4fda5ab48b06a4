//! The `pgoutput` plugin's messages, protocol 1 with logical messages.
//!
//! Integers are big-endian; texts end in a zero byte.
//!
//! ```text
//! B  commit:64 ‖ time:64 ‖ xid:32                              begin
//! C  flags:8 ‖ commit:64 ‖ end:64 ‖ time:64                    commit
//! A  xid:32 ‖ its part's xid:32                                stream abort
//! O  commit:64 ‖ name                                          origin
//! R  id:32 ‖ schema ‖ table ‖ identity:8 ‖ n:16 ‖              relation
//!      n × (flags:8 (1: key) ‖ name ‖ type:32 ‖ modifier:32)
//! Y  id:32 ‖ schema ‖ name                                     type
//! I  id:32 ‖ 'N' tuple                                         insert
//! U  id:32 ‖ ['K' tuple | 'O' tuple] ‖ 'N' tuple               update
//! D  id:32 ‖ ('K' tuple | 'O' tuple)                           delete
//! T  n:32 ‖ options:8 ‖ n × id:32                              truncate
//! M  flags:8 (1: transactional) ‖ at:64 ‖ prefix ‖ n:32 ‖ n bytes
//!
//! tuple   n:16 ‖ n × ('n' null | 'u' unchanged, not sent | 't' length:32 ‖ text)
//! ```
//!
//! Times are microseconds since 2000-01-01T00:00:00Z. Nothing is allocated by
//! a count that the bytes behind it do not bear out.

use std::fmt;

use super::Lsn;
use super::encoding::Encoding;

/// Most columns that PostgreSQL allows in a table.
const MOST_COLUMNS: usize = 1600;

/// Most tables that are emptied at once.
const MOST_TABLES: u32 = 1 << 20;

/// One message of the output plugin, borrowed from its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message<'a> {
    /// A committed transaction begins.
    Begin {
        /// Where its commit record stands.
        commit: Lsn,
        /// When it was committed, microseconds since 2000-01-01T00:00:00Z.
        time: i64,
        /// Its number, without the epoch.
        xid: u32,
    },
    /// The transaction ends.
    Commit {
        /// Where its commit record stands.
        commit: Lsn,
        /// The first byte after it: acknowledge this.
        end: Lsn,
    },
    /// A transaction that was never told was rolled back. Version 18 says so of some that
    /// it had put into files, though nobody asked for transactions that are under way.
    StreamAbort,
    /// The transaction was replicated here from another server.
    Origin,
    /// A table as the changes after it have it.
    Relation(Relation),
    /// A type that is not built in. Values are text: it says nothing to us.
    Type,
    /// A row came to be.
    Insert {
        /// The table.
        relation: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// A row has a new version.
    Update {
        /// The table.
        relation: u32,
        /// The version before, or its key.
        old: Option<Old<'a>>,
        /// The version after.
        new: Tuple<'a>,
    },
    /// A row is gone.
    Delete {
        /// The table.
        relation: u32,
        /// The row, or its key.
        old: Old<'a>,
    },
    /// Tables were emptied.
    Truncate {
        /// The tables.
        relations: Vec<u32>,
    },
    /// What `pg_logical_emit_message` wrote.
    Logical {
        /// Whether it came with its transaction's commit.
        transactional: bool,
        /// Whose message it is.
        prefix: &'a str,
        /// What it says.
        content: Payload<'a>,
    },
}

/// A table, as of the changes that follow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// Its number in the stream.
    pub id: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub table: String,
    /// Whether updates and deletes carry the whole old row.
    pub full: bool,
    /// Its columns, without generated ones, in order.
    pub columns: Vec<String>,
    /// Places in `columns` of those that identify a row; with `full`, all.
    pub key: Vec<usize>,
}

/// The version of a row before a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Old<'a> {
    /// Only the columns of the key mean anything; the others are null.
    Key(Tuple<'a>),
    /// The whole row.
    Row(Tuple<'a>),
}

/// One column of a tuple. `Debug` shows lengths only.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// Null.
    Null,
    /// A large value that the update did not touch, and that was not sent.
    Unchanged,
    /// PostgreSQL's text output.
    Text(&'a [u8]),
}

/// The columns of a row.
pub type Tuple<'a> = Vec<Value<'a>>;

/// A logical message's content; `Debug` shows its length only.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Payload<'a>(pub &'a [u8]);

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Unchanged => f.write_str("unchanged"),
            Self::Text(bytes) => write!(f, "[{}]", bytes.len()),
        }
    }
}

impl fmt::Debug for Payload<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}]", self.0.len())
    }
}

/// What could not be read, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} at byte {at}")]
pub struct DecodeError {
    /// What is wrong.
    pub kind: DecodeErrorKind,
    /// Where, in bytes from the message's beginning.
    pub at: usize,
}

/// What can be wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeErrorKind {
    /// The message ends too early.
    #[error("unexpected end")]
    End,
    /// Bytes are left over.
    #[error("unexpected bytes after the end")]
    Trailing,
    /// No message begins so.
    #[error("unknown message {:?}", char::from(*.0))]
    Message(u8),
    /// No part of a message begins so.
    #[error("unknown mark {:?}", char::from(*.0))]
    Mark(u8),
    /// More columns than a table may have.
    #[error("too many columns")]
    Columns,
    /// More tables than anybody empties at once.
    #[error("too many tables")]
    Tables,
    /// A row of another shape than its table, or of a table never described.
    #[error("a row that does not fit its table")]
    Shape,
    /// Messages in an order that the protocol does not allow.
    #[error("a message out of order")]
    Order,
}

/// Reads one message.
///
/// # Errors
/// [`DecodeError`], for any bytes that are not exactly one message.
pub fn decode(bytes: &[u8]) -> Result<Message<'_>, DecodeError> {
    decode_in(bytes, &Encoding::Sent)
}

/// The same, of a stream whose names come in another encoding.
pub(super) fn decode_in<'a>(
    bytes: &'a [u8],
    encoding: &Encoding,
) -> Result<Message<'a>, DecodeError> {
    let mut input = Reader { bytes, at: 0 };
    let message = match input.u8()? {
        b'B' => Message::Begin {
            commit: input.lsn()?,
            time: input.u64()?.cast_signed(),
            xid: input.u32()?,
        },
        b'C' => {
            input.u8()?;
            let (commit, end) = (input.lsn()?, input.lsn()?);
            input.u64()?;
            Message::Commit { commit, end }
        }
        b'A' => {
            // The transaction, and which part of it.
            input.u32()?;
            input.u32()?;
            Message::StreamAbort
        }
        b'O' => {
            input.lsn()?;
            input.text()?;
            Message::Origin
        }
        b'R' => Message::Relation(input.relation(encoding)?),
        b'Y' => {
            input.u32()?;
            input.text()?;
            input.text()?;
            Message::Type
        }
        b'I' => {
            let relation = input.u32()?;
            input.mark(b'N')?;
            let new = input.tuple()?;
            Message::Insert { relation, new }
        }
        b'U' => input.update()?,
        b'D' => Message::Delete {
            relation: input.u32()?,
            old: input.old()?,
        },
        b'T' => input.truncate()?,
        b'M' => {
            let transactional = input.u8()? & 1 == 1;
            input.lsn()?;
            // One that is no UTF-8 is somebody else's.
            let prefix = std::str::from_utf8(input.text()?).unwrap_or_default();
            let content = Payload(input.counted()?);
            Message::Logical {
                transactional,
                prefix,
                content,
            }
        }
        other => return Err(fail(DecodeErrorKind::Message(other), 0)),
    };
    if input.at == bytes.len() {
        Ok(message)
    } else {
        Err(fail(DecodeErrorKind::Trailing, input.at))
    }
}

const fn fail(kind: DecodeErrorKind, at: usize) -> DecodeError {
    DecodeError { kind, at }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn relation(&mut self, encoding: &Encoding) -> Result<Relation, DecodeError> {
        let id = self.u32()?;
        let schema = match self.name(encoding)? {
            none if none.is_empty() => "pg_catalog".to_owned(),
            given => given,
        };
        let table = self.name(encoding)?;
        let full = self.u8()? == b'f';
        let count = self.columns()?;
        let (mut columns, mut key) = (Vec::new(), Vec::new());
        for place in 0..count {
            if self.u8()? & 1 == 1 {
                key.push(place);
            }
            columns.push(self.name(encoding)?);
            self.u32()?;
            self.u32()?;
        }
        Ok(Relation {
            id,
            schema,
            table,
            full,
            columns,
            key,
        })
    }

    fn update(&mut self) -> Result<Message<'a>, DecodeError> {
        let relation = self.u32()?;
        let old = match self.bytes.get(self.at) {
            Some(b'N') => None,
            _ => Some(self.old()?),
        };
        self.mark(b'N')?;
        let new = self.tuple()?;
        Ok(Message::Update { relation, old, new })
    }

    fn old(&mut self) -> Result<Old<'a>, DecodeError> {
        let at = self.at;
        match self.u8()? {
            b'K' => self.tuple().map(Old::Key),
            b'O' => self.tuple().map(Old::Row),
            other => Err(fail(DecodeErrorKind::Mark(other), at)),
        }
    }

    fn truncate(&mut self) -> Result<Message<'a>, DecodeError> {
        let at = self.at;
        let count = self.u32()?;
        if count > MOST_TABLES {
            return Err(fail(DecodeErrorKind::Tables, at));
        }
        self.u8()?;
        let mut relations = Vec::new();
        for _ in 0..count {
            relations.push(self.u32()?);
        }
        Ok(Message::Truncate { relations })
    }

    fn tuple(&mut self) -> Result<Tuple<'a>, DecodeError> {
        let count = self.columns()?;
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            let at = self.at;
            values.push(match self.u8()? {
                b'n' => Value::Null,
                b'u' => Value::Unchanged,
                b't' => Value::Text(self.counted()?),
                other => return Err(fail(DecodeErrorKind::Mark(other), at)),
            });
        }
        Ok(values)
    }

    fn columns(&mut self) -> Result<usize, DecodeError> {
        let at = self.at;
        let count = usize::from(u16::from_be_bytes(self.array()?));
        if count > MOST_COLUMNS {
            return Err(fail(DecodeErrorKind::Columns, at));
        }
        Ok(count)
    }

    fn mark(&mut self, wanted: u8) -> Result<(), DecodeError> {
        let at = self.at;
        match self.u8()? {
            found if found == wanted => Ok(()),
            other => Err(fail(DecodeErrorKind::Mark(other), at)),
        }
    }

    fn name(&mut self, encoding: &Encoding) -> Result<String, DecodeError> {
        let name = encoding.name(self.text()?);
        Ok(name.into_owned())
    }

    /// Bytes up to a zero byte, which is behind them.
    fn text(&mut self) -> Result<&'a [u8], DecodeError> {
        let rest = &self.bytes[self.at..];
        let length = rest
            .iter()
            .position(|byte| *byte == 0)
            .ok_or(fail(DecodeErrorKind::End, self.bytes.len()))?;
        self.at += length + 1;
        Ok(&rest[..length])
    }

    fn counted(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = self.u32()? as usize;
        self.take(length)
    }

    fn lsn(&mut self) -> Result<Lsn, DecodeError> {
        self.u64().map(Lsn)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let bytes = self.take(N)?;
        Ok(bytes.try_into().expect("take returns N bytes"))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let taken = self.bytes[self.at..]
            .get(..count)
            .ok_or(fail(DecodeErrorKind::End, self.bytes.len()))?;
        self.at += count;
        Ok(taken)
    }
}

#[cfg(test)]
pub(super) mod tests;
