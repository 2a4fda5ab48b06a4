//! An authority on loopback whose clock is moved by the test.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file is a crate and uses a part of this"
)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use pitser_authority::{
    Authority, AuthorityHandle, Clock, Config, ManualClock, Micros, Subject, User,
};
use pitser_client::{Client, Endpoint, Options};
use pitser_ksi::hash::hash;
use pitser_ksi::pki::{Constraint, TrustAnchors};
use pitser_ksi::publications_file::PublicationsFile;
use pitser_ksi::{Algorithm, Imprint, Second};
use tempfile::TempDir;

/// The genesis of every authority here: 2026-03-14T09:26:53Z.
pub const GENESIS: Second = Second(1_773_480_413);

pub struct World {
    pub dir: TempDir,
    pub clock: Arc<ManualClock>,
    pub authority: AuthorityHandle,
}

impl World {
    pub async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        init(&dir);
        Self::start(dir, Micros::boundary(GENESIS)).await
    }

    pub async fn start(dir: TempDir, now: Micros) -> Self {
        let clock = Arc::new(ManualClock::new(now));
        let authority = Authority::start(config(&dir), Arc::clone(&clock))
            .await
            .unwrap();
        Self {
            dir,
            clock,
            authority,
        }
    }

    /// Moves the clock to the next boundary and waits until that second is durable.
    pub async fn tick(&self) {
        tick(&self.clock, &self.authority).await;
    }

    pub async fn ticks(&self, seconds: u64) {
        for _ in 0..seconds {
            self.tick().await;
        }
    }

    /// Lets seconds pass as fast as they can while `work` is being done.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            done = work => done,
            () = async { loop { self.tick().await } } => unreachable!("seconds never end"),
        }
    }

    /// Until so many requests wait for their round, while the clock stands still.
    pub async fn until_waiting(&self, requests: usize) {
        while self.authority.waiting() < requests {
            tokio::task::yield_now().await;
        }
    }

    pub fn tcp(&self) -> Client {
        self.tcp_as("anon", "anon")
    }

    pub fn tcp_as(&self, user: &str, key: &str) -> Client {
        let uri = format!("ksi+tcp://{user}:{key}@{}", self.authority.tcp_address());
        Client::new(Endpoint::parse(&uri).unwrap(), Options::default())
    }

    pub fn http(&self) -> Client {
        let address = self.authority.http_address().unwrap();
        let uri = format!("http://anon:anon@{address}/gt-signingservice");
        Client::new(Endpoint::parse(&uri).unwrap(), Options::default())
    }

    pub fn publications_uri(&self) -> String {
        format!(
            "http://{}/publications.bin",
            self.authority.http_address().unwrap()
        )
    }

    /// The publications file, verified as an outsider would.
    pub fn verified_publications(&self) -> PublicationsFile {
        let file = PublicationsFile::decode(&self.authority.publications_file()).unwrap();
        self.verify(&file);
        file
    }

    pub fn verify(&self, file: &PublicationsFile) {
        let anchors = TrustAnchors::from_pem(self.authority.certificate_pem()).unwrap();
        let constraint: Constraint = self.authority.constraint().parse().unwrap();
        file.verify(&anchors, &[constraint], self.clock.now().ended())
            .unwrap();
    }
}

pub async fn tick(clock: &ManualClock, authority: &AuthorityHandle) {
    let next = clock.now().ended().plus(1);
    let mut rounds = authority.rounds();
    clock.set(Micros::boundary(next));
    rounds.wait_for(|round| round.second >= next).await.unwrap();
}

pub fn init(dir: &TempDir) {
    let subject = Subject {
        email: "publications@pitser.example".to_owned(),
        ..Subject::default()
    };
    Authority::init(dir.path(), GENESIS, &subject).unwrap();
}

pub fn config(dir: &TempDir) -> Config {
    let mut config = Config::new(dir.path()).with_user(User::new("anon", "anon"));
    config.publish_every_s = 0;
    config.with_user(User {
        max_level: 3,
        ..User::new("low", "other")
    })
}

pub fn document(number: u64) -> Imprint {
    hash(Algorithm::Sha256, &[&number.to_be_bytes()])
}
