//! Founding a cluster: one node's calendar becomes everybody's.
//!
//! A cluster is never founded by itself: when etcd has lost its data, a node with
//! an old calendar would found it anew, and write seconds again that others have.

use std::path::Path;

use etcd_client::{Compare, CompareOp, DeleteOptions, Txn, TxnOp};
use pitser_ksi::time::Second;
use serde_json::Value;
use tokio::time::Instant;

use super::config::ClusterConfig;
use super::error::ClusterError;
use super::etcd::{Etcd, PATIENCE};
use super::keys::{Charter, Entry, Keys, tile_of};
use super::node::Cluster;
use super::replica::head_of;
use super::tiles::{TILE_SECONDS, Tiles};
use crate::authority::CALENDAR;
use crate::calendar::{Calendar, CalendarReader, zero_leaf};
use crate::fleet::registrations;
use crate::identity::Identity;
use crate::publications::Publications;
use crate::signer::SignerCommand;

impl Cluster {
    /// Makes the calendar, certificate, publications and fleet of the authority in `dir` the
    /// beginning of a cluster. The authority must not be running. `signer`: as in
    /// [`crate::Config::signer`].
    ///
    /// Interrupted, it can be done again. Takes a while for a long calendar: 135 kB
    /// are written to the object store for every 4096 seconds.
    ///
    /// # Errors
    /// [`ClusterError::AlreadyFounded`] if there is a cluster under the prefix.
    pub async fn found(
        config: &ClusterConfig,
        dir: &Path,
        signer: Option<&SignerCommand>,
    ) -> Result<(), ClusterError> {
        let calendar = Calendar::open(&dir.join(CALENDAR))?.reader();
        let identity =
            Identity::open(dir, signer).map_err(|e| ClusterError::Identity(Box::new(e)))?;
        let founder = Founder {
            etcd: Etcd::new(config)?,
            keys: Keys::new(&config.prefix),
            tiles: Tiles::open(&config.object_store, &config.s3)?,
            config,
            calendar,
        };
        let charter = Charter {
            genesis: founder.calendar.genesis(),
            certificate: identity.certificate_digest(),
        };
        let publications = Publications::read(dir)?.encode().to_vec();
        let registrations = registrations(dir).map_err(|e| ClusterError::Fleet(Box::new(e)))?;
        founder.clear().await?;
        founder.write_registrations(&registrations).await?;
        let tiled = founder.write_tiles().await?;
        founder.write_seconds(tiled).await?;
        founder.finish(&charter, tiled, publications).await
    }
}

struct Founder<'a> {
    etcd: Etcd,
    keys: Keys,
    tiles: Tiles,
    config: &'a ClusterConfig,
    calendar: CalendarReader,
}

impl Founder<'_> {
    /// Removes what an interrupted founding left.
    async fn clear(&self) -> Result<(), ClusterError> {
        let all = DeleteOptions::new().with_prefix();
        self.unfounded(vec![TxnOp::delete(self.keys.all(), Some(all))])
            .await
    }

    /// Returns the first second that is in no tile.
    async fn write_tiles(&self) -> Result<Second, ClusterError> {
        let mut first = Second(tile_of(self.calendar.genesis()) * TILE_SECONDS);
        let head = head_of(&self.calendar);
        while first.plus(TILE_SECONDS).plus(self.config.keep_s) <= head {
            let leaves = (first.0..first.0 + TILE_SECONDS)
                .map(|at| match Second(at) {
                    at if at < self.calendar.genesis() => Ok(zero_leaf()),
                    at => self.calendar.leaf(at),
                })
                .collect::<Result<Vec<_>, _>>()?;
            let index = tile_of(first);
            let digest = self.tiles.put(index, &leaves).await?;
            self.unfounded(vec![TxnOp::put(self.keys.tile(index), digest, None)])
                .await?;
            first = first.plus(TILE_SECONDS);
        }
        Ok(first)
    }

    /// Another node that has none would begin a log of its own with the first one.
    async fn write_registrations(&self, events: &[Value]) -> Result<(), ClusterError> {
        for (events, first) in events.chunks(BATCH).zip((0..).step_by(BATCH)) {
            let puts = events.iter().zip(first..).map(|(event, number)| {
                TxnOp::put(self.keys.registration(number), event.to_string(), None)
            });
            self.unfounded(puts.collect()).await?;
        }
        Ok(())
    }

    async fn write_seconds(&self, from: Second) -> Result<(), ClusterError> {
        let mut puts = Vec::new();
        let first = from.max(self.calendar.genesis()).0;
        for at in (first..=head_of(&self.calendar).0).map(Second) {
            let root = self.calendar.leaf(at)?;
            if root != zero_leaf() {
                puts.push(TxnOp::put(self.keys.second(at), root.as_bytes(), None));
            }
            if puts.len() == BATCH {
                self.unfounded(std::mem::take(&mut puts)).await?;
            }
        }
        self.unfounded(puts).await
    }

    /// The charter comes last: without it there is no cluster.
    async fn finish(
        &self,
        charter: &Charter,
        tiled: Second,
        publications: Vec<u8>,
    ) -> Result<(), ClusterError> {
        let mut puts = vec![
            TxnOp::put(self.keys.charter(), charter.to_string(), None),
            TxnOp::put(self.keys.tiled(), tiled.0.to_string(), None),
            TxnOp::put(self.keys.publications(), publications, None),
        ];
        if let Some(at) = self.calendar.head() {
            let entry = Entry {
                at,
                previous: Second(at.0.saturating_sub(1)),
                root: self.calendar.leaf(at)?,
            };
            puts.push(TxnOp::put(self.keys.head(), entry.encode(), None));
        }
        self.unfounded(puts).await
    }

    /// Does so much, if there is no cluster yet.
    async fn unfounded(&self, work: Vec<TxnOp>) -> Result<(), ClusterError> {
        let key = self.keys.charter();
        let txn = Txn::new()
            .when([Compare::create_revision(key.as_str(), CompareOp::Equal, 0)])
            .and_then(work);
        let answer = self.etcd.txn(txn, Instant::now() + PATIENCE).await?;
        if answer.succeeded() {
            return Ok(());
        }
        Err(ClusterError::AlreadyFounded {
            prefix: self.config.prefix.clone(),
        })
    }
}

/// etcd takes at most 128 operations at a time.
const BATCH: usize = 100;
