//! What an operator decides about a cluster.

use std::path::PathBuf;

use pitser_client::store::S3Options;

use crate::config::Secret;

/// How a node takes part in a cluster. [`ClusterConfig::new`] has the defaults.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// Client addresses of etcd's members, `http://` or `https://`.
    pub endpoints: Vec<String>,
    /// What this node is called; no two nodes may share a name.
    pub node: String,
    /// What all keys of the cluster begin with.
    pub prefix: String,
    /// Where old seconds go, the same for all nodes: `file:///folder`, or
    /// `s3://bucket/prefix` with the feature `s3`.
    pub object_store: String,
    /// How a bucket is reached; a folder takes nothing of it.
    pub s3: S3Options,
    /// How long the others wait for a leader that is gone, in whole seconds. etcd
    /// raises it to one and a half times its election timeout.
    pub lease_s: u32,
    /// Seconds leave etcd when they are older than this.
    pub keep_s: u64,
    /// Certificates for `https://`.
    pub tls: Option<ClusterTls>,
    /// etcd's user, if it asks for one.
    pub login: Option<ClusterLogin>,
}

impl ClusterConfig {
    /// A node `node` in front of etcd at `endpoints`.
    pub fn new(
        node: impl Into<String>,
        endpoints: Vec<String>,
        object_store: impl Into<String>,
    ) -> Self {
        Self {
            endpoints,
            node: node.into(),
            prefix: "/pitser".to_owned(),
            object_store: object_store.into(),
            s3: S3Options::default(),
            lease_s: 2,
            keep_s: 3600,
            tls: None,
            login: None,
        }
    }
}

/// PEM files for talking to etcd.
#[derive(Debug, Clone)]
pub struct ClusterTls {
    /// The authority that vouches for etcd's certificates.
    pub ca: PathBuf,
    /// This node's own certificate and key, if etcd asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// A user of etcd. `Debug` hides the password.
#[derive(Debug, Clone)]
pub struct ClusterLogin {
    /// The name.
    pub user: String,
    /// The password.
    pub password: Secret,
}
