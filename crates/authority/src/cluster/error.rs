//! What can go wrong in a cluster, and who is to do something about it.

use pitser_ksi::hash::Imprint;
use pitser_ksi::time::Second;

use super::etcd::EtcdError;
use super::tiles::TileError;
use crate::calendar::CalendarError;
use crate::fleet::FleetError;
use crate::identity::IdentityError;
use crate::publications::PublicationsError;

/// Why this node cannot take part, or could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// etcd cannot be asked; a node waits until it can.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// The object store fails, or a tile is damaged.
    #[error(transparent)]
    Tiles(#[from] TileError),
    /// This node's calendar cannot be read or written.
    #[error(transparent)]
    Calendar(#[from] CalendarError),
    /// The signing key or certificate cannot be used.
    #[error(transparent)]
    Identity(Box<IdentityError>),
    /// The publications file contradicts the calendar, or cannot be stored.
    #[error(transparent)]
    Publications(#[from] PublicationsError),
    /// The fleet's registrations cannot be read.
    #[error(transparent)]
    Fleet(Box<FleetError>),
    /// Nothing stands under the prefix.
    #[error(
        "etcd holds no cluster under {prefix}; found it once, on the node whose calendar is to be \
         continued. If there was one, etcd has lost it: restore etcd from a snapshot first"
    )]
    NotFounded {
        /// The prefix.
        prefix: String,
    },
    /// There is a cluster under the prefix already.
    #[error(
        "etcd holds a cluster under {prefix} already; start the node, or choose another prefix"
    )]
    AlreadyFounded {
        /// The prefix.
        prefix: String,
    },
    /// The nodes do not belong together.
    #[error(
        "the cluster under {prefix} was founded with another calendar or certificate; give every \
         node a copy of the founder's data folder"
    )]
    Stranger {
        /// The prefix.
        prefix: String,
    },
    /// etcd has forgotten what this node knows.
    #[error(
        "this node's calendar is at {ours}, but the cluster's at {theirs}: etcd was restored from \
         an old snapshot, or the prefix is another cluster's. Signing on would write seconds twice"
    )]
    Ahead {
        /// This node's newest second.
        ours: Second,
        /// The cluster's.
        theirs: Second,
    },
    /// Two roots of one second.
    #[error(
        "second {at} is {} in this node's calendar and {} in the cluster; one of them was altered. \
         Compare both with the publications before anything is deleted",
        roots.ours, roots.theirs
    )]
    Contradiction {
        /// The second.
        at: Second,
        /// Both of them.
        roots: Box<Roots>,
    },
    /// The runtime ended.
    #[error("the node was interrupted by the end of the program")]
    Interrupted,
}

/// What one second is to two calendars.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roots {
    /// What this node has.
    pub ours: Imprint,
    /// What etcd or a tile has.
    pub theirs: Imprint,
}

impl ClusterError {
    pub(super) fn contradiction(at: Second, ours: Imprint, theirs: Imprint) -> Self {
        Self::Contradiction {
            at,
            roots: Box::new(Roots { ours, theirs }),
        }
    }

    /// Whether waiting may help: everything else takes somebody to look at it.
    pub(super) fn passes(&self) -> bool {
        match self {
            Self::Etcd(EtcdError::NoAnswer { .. }) => true,
            Self::Tiles(TileError::Store(e)) => e.passes(),
            _ => false,
        }
    }
}

/// Why a second was not appended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// Another node leads, or nobody does; the second is not this node's to write.
    #[error("this node does not lead any more; ask the other nodes")]
    NotLeading,
    /// The lease ended before etcd said what became of the second. It may be in the
    /// calendar, and is then found by the node that leads next.
    #[error("etcd did not confirm second {at} in time; ask the other nodes")]
    Unknown {
        /// The second.
        at: Second,
    },
    /// The clock is behind: that second is written.
    #[error(
        "CLK-01: second {at} is already in the calendar, whose head is {head}; is the clock behind?"
    )]
    WriteOnce {
        /// The second asked for.
        at: Second,
        /// The newest one.
        head: Second,
    },
    /// The calendar of this node cannot go on.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}
