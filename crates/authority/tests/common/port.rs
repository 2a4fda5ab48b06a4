//! Ports for servers that are started, killed and started again.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A loopback address where nobody listens. Not one that the system gives to whoever asks
/// for any (from 32768 on): between two starts of a server it might be the end of
/// somebody's connection.
pub(crate) fn free_address() -> SocketAddr {
    static TRIED: AtomicUsize = AtomicUsize::new(0);
    // Programs beside this one begin elsewhere.
    let first = (std::process::id() as usize).wrapping_mul(97);
    loop {
        let nth = first.wrapping_add(TRIED.fetch_add(1, Ordering::Relaxed));
        let port = 20_000 + u16::try_from(nth % 12_000).expect("below 12,000");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
