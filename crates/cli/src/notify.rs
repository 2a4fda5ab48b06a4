//! What systemd is told of a service (sd_notify(3)): datagrams on the socket that it
//! names in the environment. Without one, nothing is told.

use std::env;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Whoever started this process and wants to know how it is.
pub(crate) struct Supervisor(Option<Line>);

struct Line {
    socket: UnixDatagram,
    to: SocketAddr,
    watchdog: Option<Duration>,
}

impl Supervisor {
    /// The one that the environment names.
    pub(crate) fn from_environment() -> Self {
        let line = env::var_os("NOTIFY_SOCKET").and_then(|name| {
            let to = address(name.as_bytes())?;
            let socket = UnixDatagram::unbound().ok()?;
            // A supervisor that does not read must not hold up a round.
            socket.set_nonblocking(true).ok()?;
            let ours = |pid: String| pid == std::process::id().to_string();
            let is_ours = env::var("WATCHDOG_PID").map_or(true, ours);
            let period = env::var("WATCHDOG_USEC").ok().filter(|_| is_ours);
            let period = period.and_then(|it| it.parse().ok());
            Some(Line {
                socket,
                to,
                watchdog: period.map(Duration::from_micros),
            })
        });
        Self(line)
    }

    /// It serves.
    pub(crate) fn ready(&self) {
        self.tell("READY=1");
    }

    /// How long a watchdog waits for word that we get on before it restarts us; `None` if
    /// there is none.
    pub(crate) fn watchdog(&self) -> Option<Duration> {
        self.0.as_ref()?.watchdog
    }

    /// It gets on. If a watchdog waits for this and does not hear it, it restarts us.
    pub(crate) fn alive(&self) {
        if self.watchdog().is_some() {
            self.tell("WATCHDOG=1");
        }
    }

    /// How it is, in one line, for whoever asks the supervisor.
    pub(crate) fn status(&self, words: &str) {
        self.tell(&format!("STATUS={}", words.replace('\n', " ")));
    }

    /// It ends, after what it has accepted is answered.
    pub(crate) fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    fn tell(&self, state: &str) {
        if let Some(line) = &self.0
            && let Err(e) = line.socket.send_to_addr(state.as_bytes(), &line.to)
        {
            tracing::debug!(error = %e, state, "the supervisor was not told");
        }
    }
}

/// A path, or, after an `@`, a name that is in no file system.
fn address(name: &[u8]) -> Option<SocketAddr> {
    match name.split_first()? {
        (b'@', name) => SocketAddr::from_abstract_name(name).ok(),
        (b'/', _) => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name)).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 64];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    #[test]
    fn tells_by_path_and_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let abstract_name = format!("pitser-notify-test-{}", std::process::id());
        let by_name = SocketAddr::from_abstract_name(&abstract_name).unwrap();
        for (name, socket) in [
            (path.to_str().unwrap().to_owned(), UnixDatagram::bind(&path)),
            (
                format!("@{abstract_name}"),
                UnixDatagram::bind_addr(&by_name),
            ),
        ] {
            let socket = socket.unwrap();
            let line = |watchdog| {
                Supervisor(Some(Line {
                    socket: UnixDatagram::unbound().unwrap(),
                    to: address(name.as_bytes()).unwrap(),
                    watchdog,
                }))
            };
            line(None).alive();
            line(None).ready();
            assert_eq!(heard(&socket), "READY=1");
            let watched = line(Some(Duration::from_secs(5)));
            watched.alive();
            assert_eq!(heard(&socket), "WATCHDOG=1");
            watched.status("two\nlines");
            assert_eq!(heard(&socket), "STATUS=two lines");
            watched.stopping();
            assert_eq!(heard(&socket), "STOPPING=1");
        }
        assert!(address(b"").is_none());
        assert!(address(b"relative").is_none());
    }
}
