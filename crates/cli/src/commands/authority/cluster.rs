//! `[cluster]` of `authority.toml`, and `pitser authority found`.

use std::path::{Path, PathBuf};

use pitser_authority::Config as Service;
use serde::Deserialize;

use super::config::Place;
use crate::outcome::{Failure, Outcome};
use crate::store::S3;

/// Arguments of `pitser authority found`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
}

/// `[cluster]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(
    not(feature = "cluster"),
    expect(dead_code, reason = "read, and then refused")
)]
pub(super) struct Cluster {
    endpoints: Vec<String>,
    node: String,
    object_store: String,
    s3: Option<S3>,
    prefix: Option<String>,
    lease_s: Option<u32>,
    keep_s: Option<u64>,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    user: Option<String>,
    password_file: Option<PathBuf>,
}

impl Cluster {
    pub(super) fn check(&self) -> Result<(), String> {
        let is_url = |url: &String| url.starts_with("http://") || url.starts_with("https://");
        if self.endpoints.is_empty() || !self.endpoints.iter().all(is_url) {
            return Err(
                "cluster.endpoints: give the client address of every etcd member, \
                        http:// or https://"
                    .into(),
            );
        }
        let is_tls = self.endpoints[0].starts_with("https://");
        if self
            .endpoints
            .iter()
            .any(|url| url.starts_with("https://") != is_tls)
        {
            return Err("cluster.endpoints: all http:// or all https://".into());
        }
        if is_tls != self.ca.is_some() {
            return Err("cluster.ca: give it with https:// endpoints, and only with them".into());
        }
        if self.certificate.is_some() != self.key.is_some()
            || (self.certificate.is_some() && !is_tls)
        {
            return Err(
                "cluster.certificate and key: give both or none, and only with https://".into(),
            );
        }
        if self.user.is_some() != self.password_file.is_some() {
            return Err("cluster.user and password_file: give both or none".into());
        }
        if self.node.is_empty() || self.node.len() > 64 {
            return Err("cluster.node has 1 to 64 bytes".into());
        }
        if self.lease_s == Some(0) {
            return Err("cluster.lease_s is 0: nobody could lead".into());
        }
        Ok(())
    }
}

/// What a build without the feature says.
#[cfg(not(feature = "cluster"))]
fn missing() -> Failure {
    Failure::Input(
        "[cluster]: this pitser was built without it; build it with `--features cluster`, or take \
         the section out to run alone"
            .into(),
    )
}

/// Makes the service a node, if the configuration says so.
pub(super) fn join(
    service: &mut Service,
    cluster: Option<&Cluster>,
    dir: &Path,
) -> Result<(), Failure> {
    let Some(cluster) = cluster else {
        return Ok(());
    };
    #[cfg(feature = "cluster")]
    {
        service.cluster = Some(with::config(cluster, dir)?);
        Ok(())
    }
    #[cfg(not(feature = "cluster"))]
    {
        let _ = (service, cluster, dir);
        Err(missing())
    }
}

/// Runs `found`.
pub(super) async fn found(args: &Args) -> Outcome {
    let config = args.place.read()?;
    #[cfg(feature = "cluster")]
    {
        with::found(&config).await
    }
    #[cfg(not(feature = "cluster"))]
    {
        let _ = config;
        Err(missing())
    }
}

#[cfg(feature = "cluster")]
mod with {
    use std::path::Path;

    use pitser_authority::cluster;
    use pitser_authority::cluster::{ClusterConfig, ClusterError, ClusterLogin, ClusterTls};
    use zeroize::Zeroizing;

    use super::Cluster;
    use crate::commands::authority::config::Config;
    use crate::files;
    use crate::outcome::{Exit, Failure, Outcome};
    use crate::output::{self, print};
    use crate::store::s3_options;

    pub(super) fn config(cluster: &Cluster, dir: &Path) -> Result<ClusterConfig, Failure> {
        let mut config = ClusterConfig::new(
            &cluster.node,
            cluster.endpoints.clone(),
            &cluster.object_store,
        );
        config.s3 = s3_options(
            &cluster.object_store,
            cluster.s3.as_ref(),
            "cluster.s3",
            dir,
        )?;
        if let Some(prefix) = &cluster.prefix {
            config.prefix.clone_from(prefix);
        }
        config.lease_s = cluster.lease_s.unwrap_or(config.lease_s);
        config.keep_s = cluster.keep_s.unwrap_or(config.keep_s);
        config.tls = cluster.ca.as_ref().map(|ca| ClusterTls {
            ca: dir.join(ca),
            identity: cluster
                .certificate
                .as_ref()
                .zip(cluster.key.as_ref())
                .map(|(certificate, key)| (dir.join(certificate), dir.join(key))),
        });
        if let (Some(user), Some(file)) = (&cluster.user, &cluster.password_file) {
            let password = Zeroizing::new(files::read_text(&dir.join(file))?);
            config.login = Some(ClusterLogin {
                user: user.clone(),
                password: password.trim().as_bytes().to_vec().into(),
            });
        }
        Ok(config)
    }

    pub(super) async fn found(config: &Config) -> Outcome {
        let service = config.service()?;
        let Some(cluster) = &service.cluster else {
            return Err(Failure::Input(format!(
                "{} has no [cluster]; add it first",
                config.path.display()
            )));
        };
        cluster::Cluster::found(cluster, &service.dir, service.signer.as_ref())
            .await
            .map_err(|e| match e {
                ClusterError::AlreadyFounded { .. } => Failure::input(e),
                _ => Failure::service(e),
            })?;
        let text = format!(
            "founded under {}\n\nGive every other node a copy of {} (it holds the signing key) and \
             this configuration with a cluster.node of its own.\nThen, on each: pitser authority run\n",
            cluster.prefix,
            service.dir.display(),
        );
        print(&output::clean(&text))?;
        Ok(Exit::Intact)
    }
}
