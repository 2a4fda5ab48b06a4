//! A node: follows etcd, and says when it leads.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{EventType, GetOptions, KeyValue, Txn, TxnOp, TxnOpResponse};
use pitser_ksi::hash::Imprint;
use pitser_ksi::time::Second;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::config::ClusterConfig;
use super::error::{AppendError, ClusterError};
use super::etcd::{Etcd, EtcdError, PATIENCE};
use super::keys::{Charter, Entry, Keys, decode_root, tile_of};
use super::lead::Lead;
use super::publications::Shared;
use super::replica::{Applied, Replica};
use super::tiles::{TILE_SECONDS, Tiles};
use crate::calendar::{Calendar, CalendarReader};
use crate::clock::{Clock, Micros};
use crate::fleet::Fleet;
use crate::handover::HandedIn;
use crate::identity::Identity;
use crate::publications::{Publications, Published};

/// What a node begins with.
pub(crate) struct Start {
    pub(crate) config: ClusterConfig,
    pub(crate) calendar: Arc<Mutex<Calendar>>,
    pub(crate) identity: Arc<Identity>,
    pub(crate) publications: Arc<Publications>,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) clock: Arc<dyn Clock>,
    /// A node whose clock is further ahead of the others' does not lead.
    pub(crate) max_clock_jump: Duration,
}

/// What this node may do.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Role {
    /// It extends and shows publications, and signs nothing.
    Following {
        /// The node that leads, if one is known to.
        leader: Option<String>,
    },
    /// It writes the seconds.
    Leading(Term),
    /// It does not take part any more, for this reason.
    Failed(Arc<ClusterError>),
}

/// The time from winning an election to losing the lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Term {
    /// etcd's revision of the election, which every write is fenced with.
    pub(super) token: i64,
    /// The newest second when the term began, or the one before the genesis.
    pub head: Second,
}

/// This node's part in a cluster. Dropping it leaves the cluster.
#[derive(Debug)]
pub struct Cluster {
    node: Arc<Node>,
    tasks: Vec<JoinHandle<()>>,
}

/// What the tasks of a node share.
pub(super) struct Node {
    pub(super) config: ClusterConfig,
    pub(super) etcd: Etcd,
    pub(super) keys: Keys,
    pub(super) tiles: Tiles,
    pub(super) replica: Replica,
    pub(super) publications: Shared,
    pub(super) fleet: Arc<Fleet>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) role: watch::Sender<Role>,
    /// Held while a second is written.
    pub(super) lead: tokio::sync::Mutex<Option<Lead>>,
    /// Why this node must not lead, if so.
    barred: watch::Sender<Option<String>>,
    charter: Charter,
    max_clock_jump: Duration,
    /// The time by the clock of who led last.
    others: Mutex<Option<Others>>,
}

/// The least late of a leader's entries, and when it arrived here.
struct Others {
    leader: i64,
    showed: Micros,
    at: Instant,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("config", &self.config)
            .field("role", &*self.role.borrow())
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// Joins; goes on in the background until this is dropped. A node that cannot
    /// reach etcd waits for it, following.
    pub(crate) fn join(start: Start) -> Result<Self, ClusterError> {
        let replica = Replica::new(start.calendar);
        let genesis = replica.reader().genesis();
        let node = Arc::new(Node {
            etcd: Etcd::new(&start.config)?,
            keys: Keys::new(&start.config.prefix),
            tiles: Tiles::open(&start.config.object_store, &start.config.s3)?,
            replica,
            publications: Shared::new(start.publications),
            fleet: start.fleet,
            clock: start.clock,
            role: watch::Sender::new(Role::Following { leader: None }),
            lead: tokio::sync::Mutex::new(None),
            barred: watch::Sender::new(None),
            charter: Charter {
                genesis,
                certificate: start.identity.certificate_digest(),
            },
            max_clock_jump: start.max_clock_jump,
            others: Mutex::new(None),
            config: start.config,
        });
        let tasks = vec![
            tokio::spawn(Arc::clone(&node).run()),
            tokio::spawn(Arc::clone(&node).archive()),
            tokio::spawn(Arc::clone(&node).follow_fleet()),
        ];
        Ok(Self { node, tasks })
    }

    /// What this node may do; changes as the cluster does.
    pub fn role(&self) -> watch::Receiver<Role> {
        self.node.role.subscribe()
    }

    /// The newest second that is durable here, as it grows.
    pub fn heads(&self) -> watch::Receiver<Second> {
        self.node.replica.heads()
    }

    /// This node's calendar.
    pub fn reader(&self) -> CalendarReader {
        self.node.replica.reader().clone()
    }

    /// Writes the root of second `at`; once `Ok`, it is on most members of etcd and
    /// in this node's calendar, and survives power loss at any of them.
    ///
    /// Seconds between the head and `at` become zero leaves.
    ///
    /// # Errors
    /// [`AppendError`]; the term has ended then, unless it is
    /// [`AppendError::WriteOnce`].
    pub async fn append(&self, term: Term, at: Second, root: Imprint) -> Result<(), AppendError> {
        self.node.append(term, at, root).await
    }

    /// Publishes the newest second, if this node leads.
    pub(crate) async fn publish(&self, now: Second) -> Result<Published, ClusterError> {
        self.node.publish(now).await
    }

    /// Hands a publications file that was made elsewhere to all nodes.
    pub(crate) async fn hand_in(
        &self,
        bytes: Vec<u8>,
        now: Second,
    ) -> Result<HandedIn, ClusterError> {
        self.node.hand_in(bytes, now).await
    }

    /// Gives up the lead, so that another node, or this one again, can take it.
    pub async fn resign(&self) {
        self.node.resign().await;
    }

    /// Gives up the lead for good, for a reason that the next start may cure.
    pub async fn bar(&self, reason: String) {
        self.node.barred.send_replace(Some(reason));
        self.node.resign().await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// The cluster at one revision of etcd.
pub(super) struct Snapshot {
    pub(super) revision: i64,
    pub(super) charter: Option<KeyValue>,
    /// The newest entry and the revision that wrote it.
    pub(super) head: Option<(Entry, i64)>,
    pub(super) leader: Option<KeyValue>,
    /// The first second in no tile, and the revision that says so.
    pub(super) tiled: (Second, i64),
    pub(super) publications: Option<KeyValue>,
}

impl Node {
    async fn run(self: Arc<Self>) {
        let mut told = None;
        loop {
            match self.follow().await {
                Ok(()) => told = None,
                Err(e) if e.passes() => {
                    let reason = e.to_string();
                    if told.as_ref() != Some(&reason) {
                        tracing::warn!(node = self.config.node, error = reason, "not in touch");
                    }
                    told = Some(reason);
                    self.etcd.avoid_preferred();
                    sleep(RETRY).await;
                }
                Err(e) => {
                    tracing::error!(node = self.config.node, error = %e, "left the cluster");
                    self.role.send_replace(Role::Failed(Arc::new(e)));
                    self.fleet.ring();
                    self.resign().await;
                    return;
                }
            }
        }
    }

    /// Looks at everything once, then at every change; until something was missed.
    async fn follow(self: &Arc<Self>) -> Result<(), ClusterError> {
        let snapshot = self.snapshot().await?;
        if !self.take_over(&snapshot).await? {
            return Ok(());
        }
        let mut leader = snapshot.leader.as_ref().map(KeyValue::create_revision);
        // What was told of leaders up to here is known, and may be told again.
        let mut told = snapshot.revision;
        let mut events = self
            .etcd
            .watch(self.keys.all(), snapshot.revision + 1)
            .await?;
        let mut barred = self.barred.subscribe();
        loop {
            let mut wait = SILENCE;
            if leader.is_none() {
                match self.fitness() {
                    Fitness::Fit => {
                        leader = self.campaign().await?;
                        told = told.max(leader.unwrap_or(told));
                    }
                    Fitness::In(delay) => wait = wait.min(delay),
                    Fitness::Unfit => {}
                }
            }
            let answer = tokio::select! {
                answer = timeout(wait, events.message()) => answer,
                _ = barred.changed() => continue,
            };
            let answer = match answer {
                Ok(Ok(Some(answer))) if !answer.canceled() => answer,
                Err(_) if wait < SILENCE => continue,
                // A second passes every second: this member is cut off, or compacted
                // what it should have told, or there is no leader. Look again.
                _ => {
                    self.etcd.avoid_preferred();
                    return Ok(());
                }
            };
            for event in answer.events() {
                let Some(pair) = event.kv() else { continue };
                if pair.key() == self.keys.leader().as_bytes() {
                    if pair.mod_revision() <= told {
                        continue;
                    }
                    let is_put = event.event_type() == EventType::Put;
                    leader = is_put.then(|| pair.create_revision());
                    self.note_leader(is_put.then_some(pair));
                } else if !self.change(event.event_type(), pair, leader).await? {
                    return Ok(());
                }
            }
        }
    }

    /// Follows one change; false if something before it was missed.
    async fn change(
        &self,
        kind: EventType,
        pair: &KeyValue,
        leader: Option<i64>,
    ) -> Result<bool, ClusterError> {
        if pair.key().starts_with(self.keys.fleet().as_bytes()) {
            self.fleet.ring();
            return Ok(true);
        }
        if kind != EventType::Put {
            return Ok(true);
        }
        if pair.key() == self.keys.head().as_bytes() {
            let entry = self.entry(pair)?;
            self.note_time(entry.at, leader);
            let applied = self.replica.apply(entry).await?;
            tracing::debug!(
                target: HISTORY, node = self.config.node, at = entry.at.0, root = %entry.root, "read"
            );
            return Ok(applied == Applied::Whole);
        }
        if pair.key() == self.keys.publications().as_bytes() {
            self.adopt(pair).await?;
        }
        Ok(true)
    }

    /// All that stands beside the seconds, at one revision.
    pub(super) async fn snapshot(&self) -> Result<Snapshot, ClusterError> {
        let names = [
            self.keys.charter(),
            self.keys.head(),
            self.keys.leader(),
            self.keys.tiled(),
            self.keys.publications(),
        ];
        let gets: Vec<TxnOp> = names
            .iter()
            .map(|key| TxnOp::get(key.as_str(), None))
            .collect();
        let deadline = Instant::now() + PATIENCE;
        let answer = self.etcd.txn(Txn::new().and_then(gets), deadline).await?;
        let revision = answer.header().map_or(0, |header| header.revision());
        let mut found = answer.op_responses().into_iter().map(first_of);
        let [charter, head, leader, tiled, publications] =
            std::array::from_fn(|_| found.next().flatten());
        let head = match head {
            Some(pair) => Some((self.entry(&pair)?, pair.mod_revision())),
            None => None,
        };
        let tiled = match tiled {
            Some(pair) => {
                let digits = pair.value_str().ok().and_then(|text| text.parse().ok());
                let at = digits.ok_or_else(|| malformed(self.keys.tiled()))?;
                (Second(at), pair.mod_revision())
            }
            None => (Second(tile_of(self.charter.genesis) * TILE_SECONDS), 0),
        };
        Ok(Snapshot {
            revision,
            charter,
            head,
            leader,
            tiled,
            publications,
        })
    }

    /// Brings this node to a snapshot; false if it is old already.
    pub(super) async fn take_over(&self, snapshot: &Snapshot) -> Result<bool, ClusterError> {
        let prefix = || self.config.prefix.clone();
        let charter = snapshot
            .charter
            .as_ref()
            .ok_or_else(|| ClusterError::NotFounded { prefix: prefix() })?;
        if Charter::decode(charter.value()).as_ref() != Some(&self.charter) {
            return Err(ClusterError::Stranger { prefix: prefix() });
        }
        if !self.catch_up(snapshot).await? {
            return Ok(false);
        }
        if let Some(pair) = &snapshot.publications {
            self.adopt(pair).await?;
        }
        self.fleet.ring();
        self.note_leader(snapshot.leader.as_ref());
        Ok(true)
    }

    /// Brings this node's calendar to the snapshot's head: by tiles, then by what
    /// etcd still has. False if the snapshot is old already.
    async fn catch_up(&self, snapshot: &Snapshot) -> Result<bool, ClusterError> {
        let ours = self.replica.head();
        let Some((head, _)) = snapshot.head else {
            let before_genesis = Second(self.charter.genesis.0.saturating_sub(1));
            return match ours > before_genesis {
                true => Err(ClusterError::Ahead {
                    ours,
                    theirs: before_genesis,
                }),
                false => Ok(true),
            };
        };
        // Whoever leads has what it wrote after the snapshot was taken.
        if ours > head.at {
            let now = self.snapshot().await?.head.map_or(head.at, |(e, _)| e.at);
            return match ours > now {
                true => Err(ClusterError::Ahead { ours, theirs: now }),
                false => Ok(false),
            };
        }
        if ours == head.at {
            self.replica.agrees(head.at, head.root).await?;
            return Ok(true);
        }
        while self.replica.head().plus(1) < snapshot.tiled.0 {
            self.take_tile(tile_of(self.replica.head().plus(1))).await?;
        }
        self.take_seconds(snapshot, head).await
    }

    async fn take_tile(&self, index: u64) -> Result<(), ClusterError> {
        let key = self.keys.tile(index);
        let found = self.etcd.range(key.clone(), format!("{key}\0"), 1).await?;
        let digest = found.kvs().first().map(KeyValue::value);
        let digest = digest
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| malformed(key))?;
        let leaves = self.tiles.get(index, &digest).await?;
        let (first, ours) = (index * TILE_SECONDS, self.replica.head());
        let known = ours.plus(1).0.saturating_sub(first).min(TILE_SECONDS) as usize;
        if let Some(last) = known.checked_sub(1) {
            self.replica.agrees(ours, leaves[last]).await?;
        }
        self.replica.extend(leaves[known..].to_vec()).await
    }

    /// Reads seconds from etcd, as long as none of them moves to a tile meanwhile.
    async fn take_seconds(&self, snapshot: &Snapshot, head: Entry) -> Result<bool, ClusterError> {
        let (tiled, tiled_revision) = snapshot.tiled;
        loop {
            // The newest that is here, too, for comparison.
            let from = self.replica.head().max(tiled);
            let options = GetOptions::new()
                .with_range(self.keys.second(head.at.plus(1)))
                .with_limit(PAGE);
            let same = [etcd_client::Compare::mod_revision(
                self.keys.tiled(),
                etcd_client::CompareOp::Equal,
                tiled_revision,
            )];
            let get = [TxnOp::get(self.keys.second(from), Some(options))];
            let deadline = Instant::now() + PATIENCE;
            let txn = Txn::new().when(same).and_then(get);
            let answer = self.etcd.txn(txn, deadline).await?;
            if !answer.succeeded() {
                return Ok(false);
            }
            let Some(TxnOpResponse::Get(page)) = answer.op_responses().into_iter().next() else {
                return Err(malformed(self.keys.second(from)));
            };
            let seconds = page
                .kvs()
                .iter()
                .map(|pair| self.second(pair))
                .collect::<Result<Vec<_>, _>>()?;
            let reached = match seconds.last() {
                Some((last, _)) if page.more() => *last,
                _ => head.at,
            };
            self.replica.follow(from, seconds, reached).await?;
            if reached == head.at {
                self.replica.agrees(head.at, head.root).await?;
                return Ok(true);
            }
        }
    }

    fn second(&self, pair: &KeyValue) -> Result<(Second, Imprint), ClusterError> {
        self.keys
            .second_of(pair.key())
            .zip(decode_root(pair.value()))
            .ok_or_else(|| malformed(String::from_utf8_lossy(pair.key()).into_owned()))
    }

    fn entry(&self, pair: &KeyValue) -> Result<Entry, ClusterError> {
        Entry::decode(pair.value()).ok_or_else(|| malformed(self.keys.head()))
    }

    async fn adopt(&self, pair: &KeyValue) -> Result<(), ClusterError> {
        self.publications
            .adopt(pair.value().to_vec(), pair.mod_revision())
            .await
    }

    /// Says who leads, unless it is this node: it says so itself when it is ready.
    pub(super) fn note_leader(&self, leader: Option<&KeyValue>) {
        self.role.send_if_modified(|role| match (&role, leader) {
            (Role::Failed(_), _) => false,
            (Role::Leading(term), Some(pair)) if pair.create_revision() == term.token => false,
            // Whatever this node still writes is fenced; say so early.
            _ => {
                let name = leader.map(|pair| String::from_utf8_lossy(pair.value()).into_owned());
                *role = Role::Following { leader: name };
                true
            }
        });
    }

    /// Remembers what the leader's clock shows, by the least late of its entries.
    fn note_time(&self, at: Second, leader: Option<i64>) {
        let Some(leader) = leader else { return };
        let now = Instant::now();
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let known = others.as_ref().filter(|known| known.leader == leader);
        let showed = Micros::boundary(at);
        if known.is_none_or(|known| known.showed.plus(now - known.at) < showed) {
            *others = Some(Others {
                leader,
                showed,
                at: now,
            });
        }
    }

    pub(super) fn is_barred(&self) -> bool {
        self.barred.borrow().is_some()
    }

    /// Whether this node may lead, going by its clock.
    fn fitness(&self) -> Fitness {
        if self.is_barred() {
            return Fitness::Unfit;
        }
        let now = self.clock.now();
        let head = Micros::boundary(self.replica.head());
        if head > now {
            return Fitness::In(head.since(now));
        }
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(others) = &*others {
            let expected = others.showed.plus(others.at.elapsed());
            if now.since(expected) > self.max_clock_jump {
                tracing::error!(
                    node = self.config.node, %now, %expected,
                    "CLK-01: this clock is ahead of the others', so this node does not lead; set it \
                     right. If it is right (the machines slept), start the node again"
                );
                return Fitness::Unfit;
            }
        }
        Fitness::Fit
    }
}

enum Fitness {
    Fit,
    /// When the clock has come to the calendar's head.
    In(Duration),
    Unfit,
}

pub(super) fn first_of(answer: TxnOpResponse) -> Option<KeyValue> {
    match answer {
        TxnOpResponse::Get(mut found) => found.take_kvs().into_iter().next(),
        _ => None,
    }
}

pub(super) fn malformed(key: String) -> ClusterError {
    EtcdError::Malformed { key }.into()
}

/// Where a node's reads and writes of seconds are told, at level debug.
pub(super) const HISTORY: &str = "pitser_authority::history";
/// Seconds that are read from etcd at a time.
const PAGE: i64 = 4096;
/// Entries come every second; longer silence is looked into.
const SILENCE: Duration = Duration::from_millis(2500);
/// When nothing answers there is no event to wait for.
const RETRY: Duration = Duration::from_millis(100);
