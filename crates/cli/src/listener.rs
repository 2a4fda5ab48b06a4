//! Who listens at a loopback address: while no guardian does, any user of this machine can,
//! and would be given the tokens that approvers send it.
//!
//! Linux says whose a socket is, in `/proc/net/tcp` and `tcp6`. Where it does not, as for a
//! port that leads into a container, nothing is known and nothing refused.

use crate::outcome::Failure;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Refuses to send a secret over a connection from `ours` to `theirs`, unless who is there
/// is the owner of `data`, which is a guardian's, or could read the secret anyhow: root, or
/// this process's own user. Elsewhere than on a guardian's machine, or beyond this one,
/// nobody knows whom to expect.
pub(crate) fn check(ours: SocketAddr, theirs: SocketAddr, data: &Path) -> Result<(), Failure> {
    let Ok(owner) = fs::metadata(data).map(|it| it.uid()) else {
        return Ok(());
    };
    // Those who may write there; the folder itself may be somebody else's.
    let within = fs::read_dir(data).into_iter().flatten().flatten();
    let within = within.filter_map(|entry| Some(entry.metadata().ok()?.uid()));
    if !theirs.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(fs::read_to_string);
    let tables: Vec<String> = tables.into_iter().flatten().collect();
    let sockets = tables.iter().flat_map(|table| table.lines());
    let sockets: Vec<Socket> = sockets.filter_map(Socket::read).collect();
    let own = [0, owner, rustix::process::geteuid().as_raw()];
    let known: Vec<u32> = own.into_iter().chain(within).collect();
    match stranger(&sockets, ours, theirs, &known) {
        None => Ok(()),
        Some(uid) => Err(Failure::Service(format!(
            "what listens at {theirs} is no guardian of {}: it belongs to user {uid}, and that folder to user {owner}. \
             Nothing was sent to it. Find out what it is, and start `pitser guard run` in its place; if it leads to \
             the guardian, do this as user {uid}",
            data.display()
        ))),
    }
}

/// Whose one of the sockets is that the connection leads to, if that is none of `known`.
fn stranger(
    sockets: &[Socket],
    ours: SocketAddr,
    theirs: SocketAddr,
    known: &[u32],
) -> Option<u32> {
    let (ours, theirs) = (canonical(ours), canonical(theirs));
    let listening = |ip: IpAddr| {
        let at = SocketAddr::new(ip, theirs.port());
        let all = sockets.iter();
        all.filter(move |it| it.is_listening && it.local == at)
    };
    // One at the very address goes before those at all addresses.
    let mut exact = listening(theirs.ip()).peekable();
    let any = ["0.0.0.0", "::"].map(|ip| ip.parse::<IpAddr>().ok());
    let any = any.into_iter().flatten().flat_map(listening);
    let any = any.filter(|_| exact.peek().is_none());
    let listening: Vec<&Socket> = any.collect();
    // Whoever took the connection may have ceased to listen. Until somebody does, it belongs
    // to nobody, which is shown as root.
    let taken = sockets.iter();
    let taken = taken.filter(|it| !it.is_listening && it.local == theirs && it.remote == ours);
    let mut uids = listening.into_iter().chain(exact).chain(taken);
    uids.find_map(|it| (!known.contains(&it.uid)).then_some(it.uid))
}

/// One row of `/proc/net/tcp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Socket {
    local: SocketAddr,
    remote: SocketAddr,
    is_listening: bool,
    uid: u32,
}

impl Socket {
    /// `0: 0100007F:1B9E 00000000:0000 0A 00000000:00000000 00:00000000 00000000 998 …`; the
    /// heading is none.
    fn read(row: &str) -> Option<Self> {
        const LISTENING: &str = "0A";
        let mut words = row.split_ascii_whitespace().skip(1);
        let (local, remote) = (address(words.next()?)?, address(words.next()?)?);
        Some(Self {
            local,
            remote,
            is_listening: words.next()? == LISTENING,
            uid: words.nth(3)?.parse().ok()?,
        })
    }
}

/// `0100007F:1B9E`: words of four bytes, each as a number of this machine, and the port.
#[expect(clippy::host_endian_bytes, reason = "the system writes the words so")]
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let word = |at: usize| {
        let word = u32::from_str_radix(ip.get(at * 8..at * 8 + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let ip = match ip.len() {
        8 => IpAddr::from(word(0)?),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            IpAddr::from(bytes)
        }
        _ => return None,
    };
    let port = u16::from_str_radix(port, 16).ok()?;
    Some(canonical(SocketAddr::new(ip, port)))
}

/// An IPv4 address that is written as an IPv6 one is itself.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    const GUARDIAN: u32 = 998;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn listens(local: &str, uid: u32) -> Socket {
        Socket {
            local: at(local),
            remote: at("0.0.0.0:0"),
            is_listening: true,
            uid,
        }
    }

    fn taken(uid: u32) -> Socket {
        Socket {
            local: at("127.0.0.1:7070"),
            remote: at("127.0.0.1:50000"),
            is_listening: false,
            uid,
        }
    }

    #[track_caller]
    fn is_stranger(sockets: &[Socket], expected: Option<u32>) {
        let (ours, theirs) = (at("127.0.0.1:50000"), at("127.0.0.1:7070"));
        let found = stranger(sockets, ours, theirs, &[0, GUARDIAN, 1000]);
        assert_eq!(found, expected, "{sockets:?}");
    }

    #[test]
    fn whoever_is_not_known_is_a_stranger() {
        is_stranger(&[], None);
        for known in [0, GUARDIAN, 1000] {
            is_stranger(&[listens("127.0.0.1:7070", known)], None);
        }
        is_stranger(&[listens("127.0.0.1:7070", 1001)], Some(1001));
        is_stranger(&[listens("0.0.0.0:7070", 1001)], Some(1001));
        is_stranger(&[listens("[::]:7070", 1001)], Some(1001));
        // Another address, another port, a connection of somebody else's.
        is_stranger(&[listens("127.0.0.2:7070", 1001)], None);
        is_stranger(&[listens("127.0.0.1:7071", 1001)], None);
        let other = Socket {
            remote: at("127.0.0.1:50001"),
            ..taken(1001)
        };
        is_stranger(&[other], None);
        // IPv6 alone has another one there.
        let guardian = listens("127.0.0.1:7070", GUARDIAN);
        is_stranger(&[listens("[::]:7070", 1001), guardian], None);
        // It listens no more.
        is_stranger(&[taken(1001)], Some(1001));
        is_stranger(&[guardian, taken(GUARDIAN)], None);
        is_stranger(&[guardian, taken(0)], None);
    }

    #[test]
    fn a_heading_is_no_row() {
        let heading =
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid";
        assert_eq!(Socket::read(heading), None);
        assert_eq!(Socket::read(""), None);
    }

    /// What the system says of a socket of ours, of either family.
    #[test]
    fn the_system_says_whose_a_socket_is() {
        let own = rustix::process::geteuid().as_raw();
        for (listen, connect) in [
            ("127.0.0.1:0", "127.0.0.1"),
            ("[::]:0", "127.0.0.1"),
            ("[::1]:0", "::1"),
        ] {
            // A machine may have no IPv6.
            let Ok(listener) = TcpListener::bind(listen) else {
                continue;
            };
            let port = listener.local_addr().unwrap().port();
            let ip: IpAddr = connect.parse().unwrap();
            let Ok(stream) = TcpStream::connect((ip, port)) else {
                continue;
            };
            let (ours, theirs) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
            let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(fs::read_to_string);
            let tables: Vec<String> = tables.into_iter().flatten().collect();
            let sockets = tables.iter().flat_map(|table| table.lines());
            let sockets: Vec<Socket> = sockets.filter_map(Socket::read).collect();
            let nobody = own.wrapping_add(1);
            let found = stranger(&sockets, ours, theirs, &[nobody]);
            assert_eq!(found, Some(own), "{listen}");
            assert_eq!(stranger(&sockets, ours, theirs, &[own, 0]), None);
            check(ours, theirs, Path::new("/")).unwrap();
            drop(listener);
        }
    }
}
