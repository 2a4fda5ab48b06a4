//! Leading: winning, keeping the lease, writing seconds, losing.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp, TxnOpResponse};
use pitser_ksi::hash::Imprint;
use pitser_ksi::time::Second;
use rand_core::{OsRng, RngCore};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::error::{AppendError, ClusterError};
use super::etcd::{Etcd, PATIENCE};
use super::keys::{Entry, decode_root};
use super::node::{HISTORY, Node, Role, Term, first_of};
use crate::calendar::zero_leaf;
use crate::publications::{PublicationsError, Published};

/// What a leader knows that others do not.
pub(super) struct Lead {
    pub(super) token: i64,
    lease: i64,
    /// The newest second, and the revision that wrote it.
    head: Second,
    head_revision: i64,
    /// Until when the lease lasts, at least.
    valid_until: watch::Receiver<Instant>,
    /// When a second was written last.
    progress: watch::Sender<Instant>,
    keeper: JoinHandle<()>,
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Node {
    /// Tries to become the leader. Returns who leads now, by the revision of the
    /// election.
    pub(super) async fn campaign(self: &Arc<Self>) -> Result<Option<i64>, ClusterError> {
        let lease = i64::from(OsRng.next_u32()) << 16 | i64::from(OsRng.next_u32() & 0xffff) | 1;
        let asked_at = Instant::now();
        let ttl = self.etcd.grant(lease, self.config.lease_s).await?;
        let ttl = ttl - ttl / 10; // two clocks may run at slightly different rates
        let key = self.keys.leader();
        let put = PutOptions::new().with_lease(lease);
        let txn = Txn::new()
            .when([Compare::create_revision(key.as_str(), CompareOp::Equal, 0)])
            .and_then([
                TxnOp::put(key.as_str(), self.config.node.as_str(), Some(put)),
                TxnOp::get(key.as_str(), None),
            ])
            .or_else([TxnOp::get(key.as_str(), None)]);
        let answer = self.etcd.txn(txn, asked_at + ttl).await?;
        let leader = answer
            .op_responses()
            .into_iter()
            .filter_map(first_of)
            .next();
        let Some(leader) = leader else {
            return Ok(None);
        };
        let token = leader.create_revision();
        if leader.lease() != lease {
            self.note_leader(Some(&leader));
            self.etcd.revoke(lease).await?;
            return Ok(Some(token));
        }
        tracing::debug!(node = self.config.node, token, "elected");
        let (renewed, valid_until) = watch::channel(asked_at + ttl);
        let (progress, progressed) = watch::channel(Instant::now());
        let keeping = Arc::clone(self).keep(token, lease, ttl, renewed, progressed);
        let lead = Lead {
            token,
            lease,
            head: Second(0),
            head_revision: 0,
            valid_until,
            progress,
            keeper: tokio::spawn(keeping),
        };
        match self.assume(lead).await {
            Ok(true) => Ok(Some(token)),
            // Better that somebody leads who can.
            outcome => {
                let _ = self.etcd.revoke(lease).await;
                outcome.map(|_| None)
            }
        }
    }

    /// Brings this node to where the calendar was when it was elected, or later;
    /// only then it leads.
    async fn assume(&self, mut lead: Lead) -> Result<bool, ClusterError> {
        let token = lead.token;
        loop {
            let snapshot = self.snapshot().await?;
            let leads = snapshot.leader.as_ref().map(|pair| pair.create_revision());
            if leads != Some(token) {
                return Ok(false);
            }
            if !self.take_over(&snapshot).await? {
                continue;
            }
            lead.head = self.replica.head();
            lead.head_revision = snapshot.head.map_or(0, |(_, revision)| revision);
            let term = Term {
                token,
                head: lead.head,
            };
            let mut place = self.lead.lock().await;
            // Looked at under the lock: whoever bars this node takes the lead away next.
            if self.is_barred() {
                return Ok(false);
            }
            *place = Some(lead);
            self.role.send_replace(Role::Leading(term));
            tracing::info!(node = self.config.node, head = %term.head, "leads");
            return Ok(true);
        }
    }

    /// Renews the lease until that fails, then stops leading.
    async fn keep(
        self: Arc<Self>,
        token: i64,
        lease: i64,
        ttl: Duration,
        renewed: watch::Sender<Instant>,
        progressed: watch::Receiver<Instant>,
    ) {
        let renewing = renew(&self.etcd, lease, ttl, &renewed);
        tokio::select! {
            () = renewing => {}
            // Whatever hangs here, others may do better.
            () = stall(progressed) => tracing::error!(
                node = self.config.node,
                "no second was written for {STALL:?}: giving the lead away"
            ),
        }
        self.stop_leading(token);
        let _ = self.etcd.revoke(lease).await;
    }

    /// Leads no more as far as this node is concerned.
    fn stop_leading(&self, token: i64) {
        let stopped = self.role.send_if_modified(|role| match role {
            Role::Leading(term) if term.token == token => {
                *role = Role::Following { leader: None };
                true
            }
            _ => false,
        });
        if stopped {
            tracing::warn!(node = self.config.node, "leads no more");
        }
    }

    /// Gives the lead back, if this node has it, so that another can take it at once.
    pub(super) async fn resign(&self) {
        if let Some(lead) = self.lead.lock().await.take() {
            self.stop_leading(lead.token);
            let lease = lead.lease;
            drop(lead);
            if let Err(e) = self.etcd.revoke(lease).await {
                tracing::debug!(error = %e, "the lease is left to run out");
            }
        }
    }

    pub(super) async fn append(
        &self,
        term: Term,
        at: Second,
        root: Imprint,
    ) -> Result<(), AppendError> {
        let node = &self.config.node;
        tracing::debug!(target: HISTORY, node, at = at.0, %root, "write");
        let outcome = self.append_led(term, at, root).await;
        match &outcome {
            Ok(()) => tracing::debug!(target: HISTORY, node, at = at.0, %root, "written"),
            Err(AppendError::Unknown { .. }) => {
                tracing::debug!(target: HISTORY, node, at = at.0, %root, "unknown");
            }
            Err(_) => tracing::debug!(target: HISTORY, node, at = at.0, %root, "refused"),
        }
        outcome
    }

    async fn append_led(&self, term: Term, at: Second, root: Imprint) -> Result<(), AppendError> {
        let mut place = self.lead.lock().await;
        let Some(lead) = place.as_mut().filter(|lead| lead.token == term.token) else {
            return Err(AppendError::NotLeading);
        };
        // Paused for long: whatever is sent now would be refused.
        if Instant::now() >= *lead.valid_until.borrow() {
            let lead = place.take();
            drop(place);
            self.lose(lead).await;
            return Err(AppendError::NotLeading);
        }
        if at <= lead.head {
            let known = self.replica.agrees(at, root).await;
            return known.map_err(|_| AppendError::WriteOnce {
                at,
                head: lead.head,
            });
        }
        let entry = Entry {
            at,
            previous: lead.head,
            root,
        };
        let written = match self.write(lead, entry).await {
            Ok(written) => match self.replica.apply(entry).await {
                Ok(_) => Ok(written),
                Err(e) => Err(e.into()),
            },
            Err(e) => Err(e),
        };
        let written = match written {
            Ok(written) => written,
            Err(e) => {
                // What became of it is the next leader's to find out.
                let lead = place.take();
                drop(place);
                self.lose(lead).await;
                return Err(e);
            }
        };
        match written {
            Some(revision) => {
                lead.head = at;
                lead.head_revision = revision;
                lead.progress.send_replace(Instant::now());
            }
            // It is written, and was the last that this node may write.
            None => {
                let lead = place.take();
                drop(place);
                self.lose(lead).await;
            }
        }
        Ok(())
    }

    async fn lose(&self, lead: Option<Lead>) {
        let Some(lead) = lead else { return };
        self.stop_leading(lead.token);
        let (etcd, lease) = (self.etcd.clone(), lead.lease);
        drop(lead);
        // Not waited for: clients are.
        tokio::spawn(async move { etcd.revoke(lease).await });
    }

    /// Writes one entry to etcd, and finds out whether it is there. Returns its
    /// revision, or nothing if it is there but the lead is lost.
    async fn write(&self, lead: &Lead, entry: Entry) -> Result<Option<i64>, AppendError> {
        let txn = self.transaction(lead, entry);
        let give_up_at = Instant::now() + 2 * Duration::from_secs(self.config.lease_s.into());
        loop {
            let deadline = give_up_at.min(*lead.valid_until.borrow());
            let attempt = deadline.min(Instant::now() + PATIENCE);
            match self.etcd.txn(txn.clone(), attempt).await {
                Ok(answer) if answer.succeeded() => {
                    return Ok(answer.header().map(|header| header.revision()));
                }
                Ok(answer) => return self.look_back(lead, entry, answer.op_responses()),
                Err(e) if Instant::now() >= give_up_at.min(*lead.valid_until.borrow()) => {
                    tracing::warn!(node = self.config.node, at = %entry.at, error = %e, "unconfirmed");
                    return Err(AppendError::Unknown { at: entry.at });
                }
                Err(_) => sleep(RETRY).await,
            }
        }
    }

    /// The transaction that writes `entry` if nobody else wrote or leads. It can be
    /// sent any number of times.
    fn transaction(&self, lead: &Lead, entry: Entry) -> Txn {
        let (head, leader) = (self.keys.head(), self.keys.leader());
        let second = self.keys.second(entry.at);
        let mut puts = vec![TxnOp::put(head.as_str(), entry.encode(), None)];
        if entry.root != zero_leaf() {
            puts.push(TxnOp::put(second.as_str(), entry.root.as_bytes(), None));
        }
        Txn::new()
            .when([
                Compare::mod_revision(head.as_str(), CompareOp::Equal, lead.head_revision),
                Compare::create_revision(leader.as_str(), CompareOp::Equal, lead.token),
                Compare::create_revision(second.as_str(), CompareOp::Equal, 0),
            ])
            .and_then(puts)
            .or_else([
                TxnOp::get(head, None),
                TxnOp::get(leader, None),
                TxnOp::get(second, None),
            ])
    }

    /// The transaction found another state: was that an earlier copy of itself?
    fn look_back(
        &self,
        lead: &Lead,
        entry: Entry,
        found: Vec<TxnOpResponse>,
    ) -> Result<Option<i64>, AppendError> {
        let mut found = found.into_iter().map(first_of);
        let [head, leader, second] = std::array::from_fn(|_| found.next().flatten());
        let leads = leader.is_some_and(|pair| pair.create_revision() == lead.token);
        let newest = head.as_ref().and_then(|pair| Entry::decode(pair.value()));
        if let Some(pair) = head.filter(|_| leads && newest == Some(entry)) {
            return Ok(Some(pair.mod_revision()));
        }
        if entry.root == zero_leaf() {
            // Whoever wrote a second without requests wrote the same.
            let may_be_there = newest.is_some_and(|newest| newest.at >= entry.at);
            return Err(match may_be_there {
                true => AppendError::Unknown { at: entry.at },
                false => AppendError::NotLeading,
            });
        }
        // The root of a round holds what this node alone knows, so it is the writer.
        match second.and_then(|pair| decode_root(pair.value())) {
            Some(root) if root == entry.root => Ok(None),
            _ => Err(AppendError::NotLeading),
        }
    }

    /// Publishes the newest second, to all nodes.
    pub(super) async fn publish(&self, now: Second) -> Result<Published, ClusterError> {
        let token = match &*self.role.borrow() {
            Role::Leading(term) => term.token,
            _ => return Err(PublicationsError::NotLeading.into()),
        };
        let (draft, revision) = self.publications.draft(now).await?;
        let Some(bytes) = draft.file else {
            return Ok(draft.published);
        };
        let leads = Compare::create_revision(self.keys.leader(), CompareOp::Equal, token);
        let revision = self
            .replace_publications(&bytes, revision, Some(leads))
            .await?
            .ok_or(PublicationsError::NotLeading)?;
        self.publications.adopt(bytes, revision).await?;
        Ok(draft.published)
    }
}

/// Renews `lease` until it is gone, or may be.
async fn renew(etcd: &Etcd, lease: i64, ttl: Duration, renewed: &watch::Sender<Instant>) {
    loop {
        let valid_until = *renewed.borrow();
        let asked_at = Instant::now();
        if asked_at >= valid_until {
            return;
        }
        match etcd.renew(lease, valid_until).await {
            Ok(true) => {
                renewed.send_replace(asked_at + ttl);
                sleep_until(asked_at + ttl / 4).await;
            }
            Ok(false) => return,
            Err(_) => sleep(RETRY).await,
        }
    }
}

/// Completes when nothing has progressed for [`STALL`].
async fn stall(mut progressed: watch::Receiver<Instant>) {
    while tokio::time::timeout(STALL, progressed.changed())
        .await
        .is_ok()
    {
        // The end of it is the end of the term, and of whoever waits for this.
        if progressed.has_changed().is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// A leader writes every second.
const STALL: Duration = Duration::from_secs(5);
/// When nothing answers there is no event to wait for.
const RETRY: Duration = Duration::from_millis(50);
