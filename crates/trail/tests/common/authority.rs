//! An authority that seals blocks, for tests of closed segments.

use pitser_authority::{Authority, AuthorityHandle, Config, Micros, User};
use pitser_client::{Client, Endpoint};
use pitser_ksi::pki::Subject;
use pitser_trail::Trail;
use std::path::Path;

#[allow(
    clippy::disallowed_methods,
    reason = "a test is where the clock comes from"
)]
fn micros() -> u64 {
    let now = std::time::SystemTime::now();
    let since = now.duration_since(std::time::UNIX_EPOCH).unwrap();
    since.as_micros() as u64
}

/// One with its data in `dir`, and a client of it.
pub(crate) async fn start(dir: &Path) -> (AuthorityHandle, Client) {
    let clock = || Micros(micros());
    let subject = Subject {
        email: "publications@test.example".into(),
        ..Subject::default()
    };
    Authority::init(dir, clock().ended(), &subject).unwrap();
    let mut config = Config::new(dir).with_user(User::new("anon", "anon"));
    config.tcp = "127.0.0.1:0".parse().unwrap();
    config.http = None;
    let authority = Authority::start(config, clock).await.unwrap();
    let uri = format!("ksi+tcp://anon:anon@{}", authority.tcp_address());
    let client = Client::connect(Endpoint::parse(&uri).unwrap());
    (authority, client.await.unwrap())
}

/// Has the blocks that wait sealed.
#[allow(dead_code, reason = "each test program uses its part")]
pub(crate) async fn seal(trail: &mut Trail, client: &Client) {
    let waiting: Vec<_> = trail.unsealed().cloned().collect();
    for block in waiting {
        let seal = client.sign(block.root, block.level).await.unwrap();
        trail.add_seal(block.block, &seal.encode()).unwrap();
    }
}
