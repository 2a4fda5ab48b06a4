//! One log of several nodes: they have one key, so they must agree on what it says.
//!
//! Registrations are numbered, and somebody outside says which one is number n. A node
//! judges a registration by those that it has, brings what follows from it as the next
//! one, takes what the others brought meanwhile, and judges again. Whatever it signs
//! begins what the others sign.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::Notify;

use super::{Fleet, FleetError};

/// Who decides the order of registrations when several nodes are one authority. Every
/// call blocks, and says in words why it failed.
pub(crate) trait Order: Send + Sync {
    /// Events from number `from` on, in order; not always all, and none if there are
    /// none.
    fn since(&self, from: u64) -> Result<Vec<Value>, String>;

    /// Makes `event` number `at`, unless there is one, or the one before it is not
    /// `after`; whether it is number `at` now. Kept by all once this is `Ok`.
    fn append(&self, at: u64, after: Option<&Value>, event: &Value) -> Result<bool, String>;
}

/// The order, as far as this node is in touch with whoever decides it.
#[derive(Default)]
pub(super) struct Shared {
    /// Locked for as long as it is asked, and before [`Fleet::inner`], never while
    /// that is locked. `None`: not in touch.
    order: Mutex<Option<Arc<dyn Order>>>,
    /// There may be something to take from it, or it is to be asked again.
    bell: Notify,
}

/// The right to ask: one registration of a node at a time, so that it competes with
/// other nodes alone.
pub(super) type Turn<'a> = MutexGuard<'a, Option<Arc<dyn Order>>>;

impl Shared {
    pub(super) fn turn(&self) -> Turn<'_> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings `event` as number `at`, and takes whatever was brought by then. Whether
    /// it is this one that is number `at`, the ledger says afterwards.
    pub(super) fn propose(
        &self,
        fleet: &Fleet,
        turn: &mut Turn<'_>,
        (at, after): (u64, Option<&Value>),
        event: &Value,
    ) -> Result<bool, FleetError> {
        let Some(order) = turn.clone() else {
            return Err(away("this node is not in touch with it"));
        };
        let is_taken = order.append(at, after, event).map_err(away);
        let outcome = is_taken.and_then(|is_taken| {
            fleet.catch_up(&*order)?;
            Ok(is_taken)
        });
        if outcome.is_err() {
            // Others who wait for their turn do not wait for this too.
            **turn = None;
            self.bell.notify_one();
        }
        outcome
    }
}

impl Fleet {
    /// Takes what is not here yet, and signs it.
    fn catch_up(&self, order: &dyn Order) -> Result<(), FleetError> {
        loop {
            let (count, newest) = {
                let inner = self.inner();
                (inner.events, inner.newest.clone())
            };
            // The newest one that is here comes again, for comparison.
            let known = count.saturating_sub(1);
            let mut events = order.since(known).map_err(away)?.into_iter();
            if let Some(ours) = newest {
                match events.next() {
                    Some(theirs) if theirs == ours => {}
                    Some(_) => return Err(self.apart(known)),
                    None => return Err(away("it lacks registrations that this node has")),
                }
            }
            let is_all = events.len() == 0;
            let mut inner = self.inner();
            let kept = events.try_for_each(|event| self.keep(&mut inner, &event));
            // Also what came before a failure, this time or the last.
            self.sign(&mut inner)?;
            kept?;
            if is_all {
                return Ok(());
            }
        }
    }

    fn apart(&self, number: u64) -> FleetError {
        FleetError::Apart {
            dir: self.dir.clone(),
            number,
        }
    }
}

#[cfg(feature = "cluster")]
impl Fleet {
    /// Says that there may be something to take.
    pub(crate) fn ring(&self) {
        if let Some(shared) = &self.shared {
            shared.bell.notify_one();
        }
    }

    /// Until [`Fleet::ring`] was called since this returned last, or a registration
    /// failed.
    pub(crate) async fn rung(&self) {
        match &self.shared {
            Some(shared) => shared.bell.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Takes what other nodes brought; before that, the first time and after a failure,
    /// sees that all nodes have one log. After an error this node registers nothing.
    /// Blocks.
    ///
    /// # Errors
    /// [`FleetError`]; [`FleetError::passes`] says whether another attempt may help.
    pub(crate) fn follow(&self, order: &Arc<dyn Order>) -> Result<(), FleetError> {
        let Some(shared) = &self.shared else {
            return Ok(());
        };
        let mut turn = shared.turn();
        let outcome = match turn.take() {
            Some(_) => self.catch_up(&**order),
            None => self.join(&**order),
        };
        if outcome.is_ok() {
            *turn = Some(Arc::clone(order));
        }
        self.inner().away = outcome.as_ref().err().map(ToString::to_string);
        outcome
    }

    /// Registers nothing from now on. Blocks.
    pub(crate) fn leave(&self) {
        if let Some(shared) = &self.shared {
            *shared.turn() = None;
            self.inner().away = Some(away("this node left the cluster").to_string());
        }
    }

    /// Compares all that is here, brings what the others lack, and takes the rest.
    fn join(&self, order: &dyn Order) -> Result<(), FleetError> {
        let ours = self.inner().registrations.events()?;
        let mut common = 0;
        while common < ours.len() {
            let theirs = order.since(common as u64).map_err(away)?;
            if theirs.is_empty() {
                break;
            }
            for (ours, theirs) in ours[common..].iter().zip(&theirs) {
                if ours != theirs {
                    return Err(self.apart(common as u64));
                }
                common += 1;
            }
        }
        // Those of a founder, or of a node whose etcd was restored from an old snapshot.
        for (at, event) in ours.iter().enumerate().skip(common) {
            let after = at.checked_sub(1).map(|before| &ours[before]);
            if !order.append(at as u64, after, event).map_err(away)? {
                return Err(away("another node registers just now"));
            }
        }
        self.catch_up(order)
    }
}

impl FleetError {
    /// Whether nothing is wrong with either log, and another attempt may help.
    #[cfg(feature = "cluster")]
    pub(crate) fn passes(&self) -> bool {
        matches!(self, Self::Away { .. } | Self::Io { .. })
    }
}

pub(super) fn away(reason: impl Into<String>) -> FleetError {
    FleetError::Away {
        reason: reason.into(),
    }
}

/// How often other nodes may come first.
pub(super) const ATTEMPTS: usize = 16;

#[cfg(test)]
#[cfg(feature = "cluster")]
mod tests {
    use std::fs;

    use pitser_client::fleet::{Registration, system_id};
    use pitser_ksi::hash::{Algorithm, hash};
    use pitser_ksi::time::Second;
    use pitser_tlog::note::SigningKey;
    use serde_json::json;
    use tempfile::TempDir;

    use super::super::Registered;
    use super::*;
    use crate::cluster::ClusterConfig;
    use crate::config::Config;

    /// What etcd does, without one.
    #[derive(Default)]
    struct Memory {
        events: Mutex<Vec<Value>>,
        is_away: Mutex<bool>,
    }

    impl Memory {
        fn events(&self) -> MutexGuard<'_, Vec<Value>> {
            self.events.lock().unwrap()
        }

        fn answers(&self) -> Result<(), String> {
            match *self.is_away.lock().unwrap() {
                true => Err("nothing was heard".to_owned()),
                false => Ok(()),
            }
        }
    }

    impl Order for Memory {
        fn since(&self, from: u64) -> Result<Vec<Value>, String> {
            self.answers()?;
            // A page is short, so that there are many.
            Ok(self
                .events()
                .iter()
                .skip(from as usize)
                .take(3)
                .cloned()
                .collect())
        }

        fn append(&self, at: u64, after: Option<&Value>, event: &Value) -> Result<bool, String> {
            let mut events = self.events();
            let before = at.checked_sub(1).and_then(|at| events.get(at as usize));
            if events.len() as u64 == at && before == after {
                events.push(event.clone());
            }
            let is_taken = events.get(at as usize) == Some(event);
            // It may be done before the answer is lost.
            self.answers()?;
            Ok(is_taken)
        }
    }

    struct Node {
        dir: TempDir,
        fleet: Arc<Fleet>,
    }

    impl Node {
        fn new() -> Self {
            let dir = TempDir::new().unwrap();
            fs::write(dir.path().join("log-key"), "07".repeat(32)).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            fs::set_permissions(dir.path().join("log-key"), mode).unwrap();
            Self {
                fleet: Self::open(&dir, true),
                dir,
            }
        }

        fn open(dir: &TempDir, is_clustered: bool) -> Arc<Fleet> {
            let mut config = Config::new(dir.path());
            let cluster = || ClusterConfig::new("a", Vec::new(), "file:///none");
            config.cluster = is_clustered.then(cluster);
            Fleet::open(&config).unwrap()
        }

        fn register(&self, origin: &str, genesis: &str) -> Result<Registered, FleetError> {
            register(&self.fleet, origin, genesis)
        }

        fn file(&self) -> Vec<u8> {
            fs::read(self.dir.path().join("fleet/registrations")).unwrap()
        }

        fn head(&self) -> Option<String> {
            let inner = self.fleet.inner();
            let signed = inner.checkpoint.as_ref()?;
            assert_eq!(signed.size, inner.tree.size());
            Some(signed.note.to_string())
        }
    }

    fn register(fleet: &Fleet, origin: &str, genesis: &str) -> Result<Registered, FleetError> {
        let key = SigningKey::from_seed(origin, &[1; 32]).unwrap();
        let registration = Registration {
            key: key.verifier(),
            genesis: hash(Algorithm::Sha256, &[genesis.as_bytes()]),
            system: system_id(origin),
            begun_at: Second(1),
        };
        let note = registration.sign(&key).unwrap();
        fleet.register(&registration, &note, "anon", Second(2), &|_| true)
    }

    fn proved(registered: Result<Registered, FleetError>) -> u64 {
        match registered {
            Ok(Registered::Proof(proof)) => proof.index(),
            other => panic!("{other:?}"),
        }
    }

    fn order() -> (Arc<Memory>, Arc<dyn Order>) {
        let memory = Arc::new(Memory::default());
        (Arc::clone(&memory), memory)
    }

    #[test]
    fn nodes_that_register_at_once_have_one_log() {
        let (memory, order) = order();
        let nodes = [Node::new(), Node::new(), Node::new()];
        std::thread::scope(|scope| {
            for (number, node) in nodes.iter().enumerate() {
                node.fleet.follow(&order).unwrap();
                for trail in 0..10 {
                    scope.spawn(move || {
                        proved(node.register(&format!("h.example/{number}-{trail}"), "genesis"));
                    });
                }
            }
        });
        for node in &nodes {
            node.fleet.follow(&order).unwrap();
            assert_eq!(node.head(), nodes[0].head());
            assert_eq!(node.fleet.inner().tree.size(), 30);
        }
        for node in &nodes {
            // Another one of a name that another node registered.
            let other = node.register("h.example/1-1", "another");
            assert!(matches!(other, Ok(Registered::Taken(_))), "{other:?}");
        }
        assert_eq!(memory.events().len(), 31);
    }

    #[test]
    fn what_a_founder_has_is_brought_along_and_another_history_is_refused() {
        let (memory, order) = order();
        let founder = Node::new();
        let alone = Node::open(&founder.dir, false);
        for trail in 0..8 {
            proved(register(&alone, &format!("h.example/{trail}"), "genesis"));
        }
        let founder = Node {
            fleet: Node::open(&founder.dir, true),
            dir: founder.dir,
        };
        founder.fleet.follow(&order).unwrap();
        assert_eq!(memory.events().len(), 8);
        let other = Node::new();
        other.fleet.follow(&order).unwrap();
        assert_eq!(other.head(), founder.head());

        // etcd forgets some of it, all nodes come back; nothing is lost.
        memory.events().truncate(5);
        let lacking = other.fleet.follow(&order).unwrap_err();
        assert!(lacking.passes(), "{lacking}");
        other.fleet.follow(&order).unwrap();
        assert_eq!(memory.events().len(), 8);

        let stranger = Node::new();
        let alone = Node::open(&stranger.dir, false);
        proved(register(&alone, "h.example/0", "another"));
        // Its newest one is the same as theirs.
        proved(register(&alone, "h.example/1", "genesis"));
        let stranger = Node {
            fleet: Node::open(&stranger.dir, true),
            dir: stranger.dir,
        };
        let before = stranger.file();
        for _ in 0..2 {
            let apart = stranger.fleet.follow(&order);
            assert!(
                matches!(apart, Err(FleetError::Apart { number: 0, .. })),
                "{apart:?}"
            );
        }
        let refused = stranger.register("h.example/new", "genesis");
        assert!(
            matches!(refused, Err(FleetError::Away { .. })),
            "{refused:?}"
        );
        assert_eq!((stranger.file(), memory.events().len()), (before, 8));
    }

    #[test]
    fn a_node_that_is_not_in_touch_registers_nothing() {
        let (memory, order) = order();
        let node = Node::new();
        let is_away = |registered| matches!(registered, Err(FleetError::Away { .. }));
        assert!(is_away(node.register("h.example/0", "genesis")));
        node.fleet.follow(&order).unwrap();
        *memory.is_away.lock().unwrap() = true;
        assert!(is_away(node.register("h.example/0", "genesis")));
        // It is in the order all the same, and will be heard of.
        assert_eq!((node.head(), memory.events().len()), (None, 1));
        assert!(node.fleet.follow(&order).unwrap_err().passes());
        *memory.is_away.lock().unwrap() = false;
        assert!(is_away(node.register("h.example/1", "genesis")));
        node.fleet.follow(&order).unwrap();
        assert_eq!(proved(node.register("h.example/1", "genesis")), 1);
        assert_eq!(proved(node.register("h.example/0", "genesis")), 0);
        assert_eq!(memory.events().len(), 2);
        node.fleet.leave();
        assert!(is_away(node.register("h.example/2", "genesis")));
    }

    #[test]
    fn what_means_nothing_is_not_kept() {
        for bad in [
            json!(1),
            json!({ "kind": "moved", "user": "a", "origin": "h.example/9" }),
        ] {
            let (memory, order) = order();
            let node = Node::new();
            node.fleet.follow(&order).unwrap();
            proved(node.register("h.example/0", "genesis"));
            let good = {
                let other = Node::new();
                other.fleet.follow(&order).unwrap();
                proved(other.register("h.example/good", "genesis"));
                other
            };
            memory.events().push(bad);
            for _ in 0..2 {
                let unfit = node.fleet.follow(&order);
                assert!(
                    matches!(unfit, Err(FleetError::Unfit { number: 2 })),
                    "{unfit:?}"
                );
            }
            let told = node.fleet.list(Second(2), true)["log"]["away"].to_string();
            assert!(told.contains("event 2 of the fleet"), "{told}");
            let refused = node.register("h.example/1", "genesis");
            assert!(
                matches!(refused, Err(FleetError::Away { .. })),
                "{refused:?}"
            );
            // What came before it is kept and signed, and nothing else.
            assert_eq!((node.file(), node.head()), (good.file(), good.head()));
            // What was registered is still shown, also after a start.
            proved(node.register("h.example/0", "genesis"));
            proved(register(
                &Node::open(&node.dir, true),
                "h.example/0",
                "genesis",
            ));
        }
    }

    #[test]
    fn a_registration_that_others_precede_again_and_again_is_put_off() {
        /// Somebody else is always first.
        struct Busy(Memory);

        impl Order for Busy {
            fn since(&self, from: u64) -> Result<Vec<Value>, String> {
                self.0.since(from)
            }

            fn append(&self, at: u64, after: Option<&Value>, _: &Value) -> Result<bool, String> {
                let origin = format!("h.example/other-{at}");
                let key = SigningKey::from_seed(&origin, &[1; 32]).unwrap();
                let registration = Registration {
                    key: key.verifier(),
                    genesis: hash(Algorithm::Sha256, &[b"genesis"]),
                    system: system_id(&origin),
                    begun_at: Second(1),
                };
                let note = registration.sign(&key).unwrap().to_string();
                let other = json!({ "kind": "registered", "at": 2, "user": "b", "note": note });
                self.0.append(at, after, &other).map(|_| false)
            }
        }

        let order: Arc<dyn Order> = Arc::new(Busy(Memory::default()));
        let node = Node::new();
        node.fleet.follow(&order).unwrap();
        let refused = node.register("h.example/0", "genesis");
        assert!(
            matches!(refused, Err(FleetError::Away { .. })),
            "{refused:?}"
        );
        // One attempt took the turn alone.
        assert_eq!(node.fleet.inner().tree.size(), ATTEMPTS as u64 - 1);
    }
}
