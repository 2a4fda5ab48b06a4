//! The machine's clock: the one place that reads it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Microseconds since 1970; 0 on a machine whose clock stands before that.
#[allow(
    clippy::disallowed_methods,
    reason = "the binary owns the clock; everything else is handed it"
)]
pub(crate) fn micros() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// The clock, for those who are handed one.
pub(crate) fn shared() -> pitser_guardian::Clock {
    std::sync::Arc::new(micros)
}

/// Seconds since 1970.
pub(crate) fn now() -> pitser_ksi::time::Second {
    pitser_ksi::time::Second(micros() / 1_000_000)
}
