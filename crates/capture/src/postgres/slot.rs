//! Publications and slots: what the server keeps for us.
//!
//! The publication comes first: a slot decodes with the catalogue as it was,
//! and a publication made after it does not exist for the changes in between.

use super::error::Doing;
use super::wire::Field;
use super::{Connection, Lsn, Name, PgError};

/// A slot that was just made. While this lives its snapshot can be used: the
/// rows in it, and then the stream from the consistent point, miss nothing and
/// tell nothing twice.
#[derive(Debug)]
pub struct Created<'c> {
    consistent_point: Lsn,
    snapshot: String,
    /// The next command on this connection would end the snapshot.
    _held: &'c mut Connection,
}

impl Created<'_> {
    /// Where the stream begins.
    pub fn consistent_point(&self) -> Lsn {
        self.consistent_point
    }

    /// The snapshot's name, for `SET TRANSACTION SNAPSHOT` in another session.
    pub fn snapshot(&self) -> &str {
        &self.snapshot
    }
}

/// How a slot stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Everything after what is durable here is still to be had.
    Sound {
        /// Where the slot stands.
        confirmed: Lsn,
    },
    /// Somebody moved it over changes that we have not (`CAP-01`).
    Moved {
        /// Where it stands now.
        confirmed: Lsn,
    },
    /// There is no such slot for this database (`CAP-01`).
    Missing,
    /// The server dropped the log that the slot needs (`CAP-01`).
    Lost,
}

/// Makes a slot for `pgoutput` on a replication connection.
///
/// Waits for the transactions that are open in the whole cluster to end, up
/// to any length of time.
///
/// # Errors
/// [`PgError::WalLevel`], [`PgError::NoFreeSlot`], [`PgError::SlotExists`],
/// [`PgError::Permission`].
pub fn create<'c>(replication: &'c mut Connection, slot: &Name) -> Result<Created<'c>, PgError> {
    let (consistent_point, snapshot) = make(replication, slot)?;
    Ok(Created {
        consistent_point,
        snapshot,
        _held: replication,
    })
}

/// As [`create`], and calls `held_up` once if it waits for more than a moment.
///
/// # Errors
/// As [`create`].
pub fn create_telling<'c>(
    replication: &'c mut Connection,
    slot: &Name,
    held_up: impl FnOnce(&PgError),
) -> Result<Created<'c>, PgError> {
    replication.query("SET lock_timeout = '2s'")?;
    match make(replication, slot) {
        Err(why @ PgError::OpenTransactions { .. }) => held_up(&why),
        made => {
            let (consistent_point, snapshot) = made?;
            return Ok(Created {
                consistent_point,
                snapshot,
                _held: replication,
            });
        }
    }
    replication.query("SET lock_timeout = 0")?;
    create(replication, slot)
}

/// As [`create`], but waits for half a minute at most, and gives no snapshot.
///
/// # Errors
/// As [`create`], and [`PgError::OpenTransactions`].
pub fn create_soon(replication: &mut Connection, slot: &Name) -> Result<Lsn, PgError> {
    replication.query("SET lock_timeout = '30s'")?;
    Ok(make(replication, slot)?.0)
}

/// Where the stream of the new slot begins, and its snapshot's name.
fn make(replication: &mut Connection, slot: &Name) -> Result<(Lsn, String), PgError> {
    check_wal_level(replication)?;
    let user = replication.user().to_owned();
    let doing = Doing::MakingSlot {
        user: &user,
        slot: slot.as_str(),
    };
    let rows = replication.query_doing(&making(slot), doing)?;
    let cell = |place: usize| text(rows.first()?.get(place)?);
    match (cell(1), cell(2)) {
        (Some(point), Some(snapshot)) => Ok((point.parse()?, snapshot.to_owned())),
        _ => Err(PgError::Protocol("a new slot without its snapshot")),
    }
}

/// The command that makes a slot, in the older spelling of `(SNAPSHOT 'export')`: version
/// 14 knows no other.
pub fn making(slot: &Name) -> String {
    format!("CREATE_REPLICATION_SLOT {slot} LOGICAL pgoutput EXPORT_SNAPSHOT")
}

/// How the slot stands, if everything before `durable` is durable here.
///
/// # Errors
/// Those of a query.
pub fn state(sql: &mut Connection, slot: &Name, durable: Lsn) -> Result<State, PgError> {
    let rows = sql.query(&format!(
        "SELECT confirmed_flush_lsn, wal_status FROM pg_catalog.pg_replication_slots \
         WHERE slot_name = '{slot}' AND plugin = 'pgoutput' AND database = current_database()"
    ))?;
    let Some(row) = rows.first() else {
        return Ok(State::Missing);
    };
    let (Some(confirmed), status) = (row.first().and_then(text), row.get(1).and_then(text)) else {
        return Ok(State::Lost);
    };
    let confirmed = confirmed.parse()?;
    Ok(match status {
        Some("lost") => State::Lost,
        _ if confirmed > durable => State::Moved { confirmed },
        _ => State::Sound { confirmed },
    })
}

/// Whether some process reads the slot now.
///
/// # Errors
/// Those of a query.
pub fn is_read(sql: &mut Connection, slot: &Name) -> Result<bool, PgError> {
    let found = sql.query(&format!(
        "SELECT 1 FROM pg_catalog.pg_replication_slots WHERE slot_name = '{slot}' AND active"
    ))?;
    Ok(!found.is_empty())
}

/// Whether the server's process that reads the slot is at work: it waits neither for more of
/// the log nor for whom it sends it to.
///
/// # Errors
/// Those of a query.
pub(super) fn is_at_work(sql: &mut Connection, slot: &Name) -> Result<bool, PgError> {
    let found = sql.query(&format!(
        "SELECT 1 FROM pg_catalog.pg_replication_slots s \
         JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid \
         WHERE s.slot_name = '{slot}' \
           AND coalesce(a.wait_event_type, '') NOT IN ('Activity', 'Client')"
    ))?;
    Ok(!found.is_empty())
}

/// The log that the server keeps for a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Bytes of it.
    pub bytes: u64,
    /// Bytes that may still be written before the server drops what the slot
    /// needs (`max_slot_wal_keep_size`); `None`: any number.
    pub left_bytes: Option<i64>,
}

/// Of the log that may be kept, this part has to be left: an eighth.
const LEAST_LEFT: u64 = 8;

impl Kept {
    /// What to do about it, if the server will soon drop the log.
    pub fn danger(&self, slot: &Name) -> Option<String> {
        let left = self.left_bytes?;
        let all = self.bytes.saturating_add_signed(left);
        if u64::try_from(left).is_ok_and(|left| left > all / LEAST_LEFT) {
            return None;
        }
        Some(format!(
            "the server keeps {} MB of log for slot {slot} and will drop it soon (max_slot_wal_keep_size): raise that \
             setting now, and find out why the guardian does not keep up",
            self.bytes >> 20
        ))
    }
}

/// What the server keeps for the slot; `None` if there is no such slot, or
/// nothing is kept for it.
///
/// # Errors
/// Those of a query.
pub fn kept(sql: &mut Connection, slot: &Name) -> Result<Option<Kept>, PgError> {
    let rows = sql.query(&format!(
        "SELECT pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), restart_lsn), safe_wal_size \
         FROM pg_catalog.pg_replication_slots WHERE slot_name = '{slot}' AND restart_lsn IS NOT NULL"
    ))?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let number = |place: usize| row.get(place).and_then(text);
    let bytes = number(0).and_then(|bytes| bytes.parse::<i64>().ok());
    Ok(bytes.map(|bytes| Kept {
        bytes: u64::try_from(bytes).unwrap_or(0),
        left_bytes: number(1).and_then(|left| left.parse().ok()),
    }))
}

/// Whether the cluster has a slot of this name, whoever made it.
///
/// # Errors
/// Those of a query.
pub fn exists(sql: &mut Connection, slot: &Name) -> Result<bool, PgError> {
    let found = sql.query(&format!(
        "SELECT 1 FROM pg_catalog.pg_replication_slots WHERE slot_name = '{slot}'"
    ))?;
    Ok(!found.is_empty())
}

/// Moves a slot past all that was committed before `upto`, which nobody will be told.
///
/// # Errors
/// [`PgError::SlotBusy`], [`PgError::Permission`].
pub(super) fn advance(
    sql: &mut Connection,
    slot: &Name,
    publication: &Name,
    upto: Lsn,
) -> Result<(), PgError> {
    let doing = Doing::Streaming {
        slot: slot.as_str(),
        publication: publication.as_str(),
    };
    let advance = format!("SELECT pg_catalog.pg_replication_slot_advance('{slot}', '{upto}')");
    sql.query_doing(&advance, doing)?;
    Ok(())
}

/// Drops a slot of this database that nobody reads; none is no error.
///
/// # Errors
/// [`PgError::Permission`]; [`PgError::Server`] while somebody reads the slot.
pub fn drop(sql: &mut Connection, slot: &Name) -> Result<(), PgError> {
    sql.query(&format!(
        "SELECT pg_catalog.pg_drop_replication_slot(slot_name) \
         FROM pg_catalog.pg_replication_slots \
         WHERE slot_name = '{slot}' AND database = current_database()"
    ))?;
    Ok(())
}

/// Asked before the slot is made, since the server's refusal says it in the
/// server's own language only.
fn check_wal_level(sql: &mut Connection) -> Result<(), PgError> {
    let rows = sql.query("SHOW wal_level")?;
    match rows.first().and_then(|row| text(row.first()?)) {
        Some("logical") => Ok(()),
        found => Err(PgError::WalLevel {
            found: found.unwrap_or("unknown").to_owned(),
        }),
    }
}

/// A field of the catalogue; `None` for null.
pub(super) fn text(field: &Field) -> Option<&str> {
    std::str::from_utf8(field.as_ref()?).ok()
}
