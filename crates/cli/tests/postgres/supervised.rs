//! A guardian that somebody started who wants to know how it is (sd_notify(3)).

use std::os::unix::net::UnixDatagram;
use std::time::Instant;

use crate::hospital::SOURCE;
use crate::world::{PATIENCE, World, signal};

/// What it tells, one message after the other.
struct Supervisor(UnixDatagram);

impl Supervisor {
    fn hears(&self) -> String {
        let mut message = [0; 1024];
        let length = self.0.recv(&mut message).expect("it tells something");
        String::from_utf8(message[..length].to_vec()).unwrap()
    }

    /// Those that come before this one.
    fn hears_until(&self, last: &str) -> Vec<String> {
        let began = Instant::now();
        let mut before = Vec::new();
        loop {
            assert!(began.elapsed() < PATIENCE, "never {last}: {before:?}");
            match self.hears() {
                it if it == last => return before,
                it => before.push(it),
            }
        }
    }
}

#[test]
fn a_watchdog_hears_nothing_of_a_guardian_that_hangs() {
    let Some(mut world) = World::hospital("scan_every_s = 0", SOURCE) else {
        return;
    };
    world.stop_guardian();
    let socket = world.dir.path().join("notify");
    let supervisor = Supervisor(UnixDatagram::bind(&socket).unwrap());
    supervisor.0.set_read_timeout(Some(PATIENCE)).unwrap();
    world.guard_with(&[
        ("NOTIFY_SOCKET", socket.to_str().unwrap()),
        ("WATCHDOG_USEC", "6000000"),
    ]);
    let guards = "STATUS=hospital: guarding";
    let first = supervisor.hears_until(guards);
    assert_eq!(first[0], "READY=1");
    assert!(first.contains(&"WATCHDOG=1".to_owned()), "{first:?}");

    // The database answers no more, and the guardian waits for it.
    let session = world.psql(
        "postgres",
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'pitser' AND backend_type = 'client backend'",
    );
    signal("-STOP", &session);
    supervisor.hears_until("STATUS=hospital: the guardian hangs: nobody is guarding this source");
    signal("-CONT", &session);
    let later = supervisor.hears_until(guards);
    assert_eq!(later[0], "WATCHDOG=1", "not before it gets on: {later:?}");

    world.stop_guardian();
    supervisor.hears_until("STOPPING=1");
}
