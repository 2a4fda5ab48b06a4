//! The order of the fleet's registrations, in etcd.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Compare, CompareOp, KeyValue, Txn, TxnOp};
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::etcd::{Etcd, EtcdError, PATIENCE};
use super::keys::Keys;
use super::node::{Node, Role, first_of};
use crate::fleet::Order;

/// Asks etcd from threads that may block.
struct Registrations {
    etcd: Etcd,
    keys: Keys,
    runtime: Handle,
}

impl Order for Registrations {
    fn since(&self, from: u64) -> Result<Vec<Value>, String> {
        // What follows the slash comes after all that begins with it.
        let end = format!("{}0", self.keys.fleet().trim_end_matches('/'));
        let page = self.etcd.range(self.keys.registration(from), end, PAGE);
        let page = self.runtime.block_on(page).map_err(|e| e.to_string())?;
        let events = page.kvs().iter().zip(from..);
        events
            .map(|(pair, number)| self.event(pair, number))
            .collect()
    }

    fn append(&self, at: u64, after: Option<&Value>, event: &Value) -> Result<bool, String> {
        let (key, json) = (self.keys.registration(at), event.to_string());
        let mut when = vec![
            // Nothing is registered where no cluster was founded.
            Compare::create_revision(self.keys.charter(), CompareOp::Greater, 0),
            Compare::create_revision(key.as_str(), CompareOp::Equal, 0),
        ];
        if let Some((after, number)) = after.zip(at.checked_sub(1)) {
            let before = self.keys.registration(number);
            when.push(Compare::value(before, CompareOp::Equal, after.to_string()));
        }
        let txn = Txn::new()
            .when(when)
            .and_then([TxnOp::put(key.as_str(), json.as_str(), None)])
            .or_else([TxnOp::get(key, None)]);
        let answer = self.etcd.txn(txn, Instant::now() + PATIENCE);
        let answer = self.runtime.block_on(answer).map_err(|e| e.to_string())?;
        if answer.succeeded() {
            return Ok(true);
        }
        let found = answer.op_responses().into_iter().next().and_then(first_of);
        // The question may have arrived twice.
        Ok(found.is_some_and(|pair| pair.value() == json.as_bytes()))
    }
}

impl Registrations {
    fn event(&self, pair: &KeyValue, number: u64) -> Result<Value, String> {
        let key = self.keys.registration(number);
        if pair.key() != key.as_bytes() {
            return Err(format!(
                "it has later ones than {key} without that one: restore etcd from a snapshot"
            ));
        }
        serde_json::from_slice(pair.value()).map_err(|_| EtcdError::Malformed { key }.to_string())
    }
}

impl Node {
    /// Takes what other nodes registered, whenever there may be something.
    pub(super) async fn follow_fleet(self: Arc<Self>) {
        let order: Arc<dyn Order> = Arc::new(Registrations {
            etcd: self.etcd.clone(),
            keys: self.keys.clone(),
            runtime: Handle::current(),
        });
        let mut told = None;
        loop {
            self.fleet.rung().await;
            loop {
                let (fleet, order) = (Arc::clone(&self.fleet), Arc::clone(&order));
                if matches!(*self.role.borrow(), Role::Failed(_)) {
                    let _ = spawn_blocking(move || fleet.leave()).await;
                    return;
                }
                let followed = spawn_blocking(move || fleet.follow(&order)).await;
                // It is interrupted by the end of the program alone.
                let Ok(Err(error)) = followed else {
                    told = None;
                    break;
                };
                let (reason, passes) = (error.to_string(), error.passes());
                if told.as_ref() != Some(&reason) {
                    let node = &self.config.node;
                    match passes {
                        true => tracing::warn!(node, error = reason, "registers no trails"),
                        false => tracing::error!(node, error = reason, "registers no trails"),
                    }
                }
                told = Some(reason);
                if !passes {
                    break;
                }
                sleep(AGAIN).await;
            }
        }
    }
}

/// Registrations that are read at a time.
const PAGE: i64 = 256;
/// After a failure that may pass.
const AGAIN: Duration = Duration::from_secs(1);
