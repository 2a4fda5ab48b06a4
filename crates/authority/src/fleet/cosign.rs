//! The thread that brings the fleet log's checkpoints to the witnesses.
//!
//! Registrations are rare, so they are asked one after the other, each for as long as
//! its way allows; nobody waits for any of them. What failed is tried again.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::Duration;

use pitser_tlog::merkle::LogTree;
use pitser_tlog::note::Note;
use pitser_witness::Peer;

use super::Fleet;
use crate::log::LogWitness;

pub(super) struct Cosigner {
    pub(super) fleet: Weak<Fleet>,
    pub(super) grown: Receiver<()>,
    pub(super) peers: Vec<Peer>,
}

impl Cosigner {
    pub(super) fn peers(witnesses: &[LogWitness]) -> Vec<Peer> {
        let peer = |one: &LogWitness| Peer::new(Box::new(Arc::clone(&one.way)), one.key.clone());
        witnesses.iter().map(peer).collect()
    }

    /// Until the fleet is gone.
    pub(super) fn run(mut self) {
        loop {
            let Some((tree, note)) = self.fleet.upgrade().and_then(|fleet| fleet.newest()) else {
                // Nothing is registered yet, or nobody is there any more.
                match self.grown.recv() {
                    Ok(()) => continue,
                    Err(_) => return,
                }
            };
            let is_done = self.ask(&tree, note);
            let heard = match is_done {
                true => self
                    .grown
                    .recv()
                    .map_err(|_| RecvTimeoutError::Disconnected),
                false => self.grown.recv_timeout(AGAIN),
            };
            if let Err(RecvTimeoutError::Disconnected) = heard {
                return;
            }
            while self.grown.try_recv().is_ok() {}
        }
    }

    /// Whether all have cosigned.
    fn ask(&mut self, tree: &LogTree, mut note: Note) -> bool {
        let mut troubles = Vec::new();
        let mut cosigned = 0;
        for peer in &mut self.peers {
            match peer.cosign(tree, &note) {
                Ok(line) => cosigned += usize::from(note.add(line).is_ok()),
                Err(error) => troubles.push(format!("{}: {error}", peer.name())),
            }
        }
        let is_done = troubles.is_empty();
        if let Some(fleet) = self.fleet.upgrade() {
            fleet.cosigned(tree.size(), note, cosigned, troubles);
        }
        is_done
    }
}

/// After a failure.
const AGAIN: Duration = Duration::from_secs(60);
