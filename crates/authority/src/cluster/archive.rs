//! Moving old seconds from etcd to tiles.
//!
//! | crash                                  | afterwards                                    |
//! |----------------------------------------|-----------------------------------------------|
//! | before the tile is stored              | its seconds are in etcd; it is written later  |
//! | between the tile and the transaction   | both; the next leader finds the same tile     |
//! | after the transaction                  | the tile alone, vouched for by its digest     |

use std::sync::Arc;

use etcd_client::{Compare, CompareOp, DeleteOptions, Txn, TxnOp};
use pitser_ksi::time::Second;
use tokio::time::Instant;

use super::error::ClusterError;
use super::etcd::PATIENCE;
use super::keys::tile_of;
use super::node::{Node, Role, Snapshot};
use super::tiles::TILE_SECONDS;

impl Node {
    /// While this node leads, moves what is old enough whenever a second passes.
    pub(super) async fn archive(self: Arc<Self>) {
        let mut heads = self.replica.heads();
        // Before this head there is nothing to do.
        let mut due_at = Second(0);
        while heads.changed().await.is_ok() {
            let head = *heads.borrow_and_update();
            let Role::Leading(term) = *self.role.borrow() else {
                continue;
            };
            if head < due_at {
                continue;
            }
            match self.archive_until(term.token, head).await {
                Ok(due) => due_at = due,
                Err(e) => {
                    tracing::error!(error = %e, "old seconds stay in etcd; trying again");
                    due_at = head.plus(RETRY_S);
                }
            }
        }
    }

    /// Moves every whole tile that is old enough; says at which head the next one is.
    async fn archive_until(&self, token: i64, head: Second) -> Result<Second, ClusterError> {
        loop {
            let snapshot = self.snapshot().await?;
            let (first, _) = snapshot.tiled;
            let due_at = first.plus(TILE_SECONDS).plus(self.config.keep_s);
            let leads = snapshot.leader.as_ref().map(|pair| pair.create_revision());
            if head < due_at || leads != Some(token) {
                return Ok(due_at);
            }
            self.move_tile(token, &snapshot).await?;
        }
    }

    async fn move_tile(&self, token: i64, snapshot: &Snapshot) -> Result<(), ClusterError> {
        let (first, revision) = snapshot.tiled;
        let (index, end) = (tile_of(first), first.plus(TILE_SECONDS));
        let leaves = self.replica.leaves(first, TILE_SECONDS).await?;
        let digest = self.tiles.put(index, &leaves).await?;
        let range = DeleteOptions::new().with_range(self.keys.second(end));
        // Sent twice, the second finds that `tiled` has moved on.
        let txn = Txn::new()
            .when([
                Compare::mod_revision(self.keys.tiled(), CompareOp::Equal, revision),
                Compare::create_revision(self.keys.leader(), CompareOp::Equal, token),
            ])
            .and_then([
                TxnOp::put(self.keys.tile(index), digest, None),
                TxnOp::put(self.keys.tiled(), end.0.to_string(), None),
                TxnOp::delete(self.keys.second(first), Some(range)),
            ]);
        self.etcd.txn(txn, Instant::now() + PATIENCE).await?;
        tracing::info!(index, "an hour of seconds moved to a tile");
        Ok(())
    }
}

const RETRY_S: u64 = 60;
