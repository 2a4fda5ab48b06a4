//! Several nodes that keep one calendar, in front of etcd.
//!
//! In scope: who may write the next second ([`Cluster::append`]), how every node
//! comes to have all of them, where old ones go, how the publications file gets
//! around, which registration of the fleet comes next. Elsewhere: rounds, answers, the calendar's files.
//!
//! ```text
//!            ┌ leader: rounds ─► append ─► etcd: compare head and leader, put both
//!  clients ──┤                                │ watch, in order
//!            └ followers: extend, publish  ◄──┴─► every node's own calendar, whole
//!                                             │ older than an hour
//!                                             └─► tiles on an object store
//! ```
//!
//! What keeps a second from being written twice is not the lease but one
//! transaction: it compares the revision of `head` with the one that the writer
//! knows, the revision of `leader` with the one he won, and asks that the second is
//! not there. So seconds are a chain, and a leader that was paused, cut off or
//! replaced cannot write. The lease only decides how soon another node takes over.
//!
//! When etcd's answer does not come, the same transaction is sent again, to another
//! member too, until it is known what became of it: done (now, or by an earlier
//! copy) or impossible. Reading alone would not do, as the first copy could still
//! be on its way. Nothing is answered or written before that is known.

mod archive;
mod config;
mod error;
mod etcd;
mod fleet;
mod found;
mod keys;
mod lead;
mod node;
mod publications;
mod replica;
mod tiles;
mod turns;

pub use config::{ClusterConfig, ClusterLogin, ClusterTls};
pub use error::{AppendError, ClusterError, Roots};
pub use etcd::EtcdError;
pub(crate) use node::Start;
pub use node::{Cluster, Role, Term};
pub use tiles::{TILE_SECONDS, TileError};
pub(crate) use turns::Turns;
