//! Where a service listens.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::authority::AuthorityError;
use crate::config::Config;
use crate::service::http::admin::Admin;
use crate::service::http::tls::Tls;
use crate::service::http::{self, Door};
use crate::service::{Service, tcp};

/// The sockets of a service that starts.
pub(crate) struct Listeners {
    tcp: TcpListener,
    doors: Vec<(TcpListener, Door)>,
    pub(crate) tls: Option<Arc<Tls>>,
    admin: Option<Admin>,
    pub(crate) addresses: Addresses,
}

/// Where a service listens.
#[derive(Debug, Clone)]
pub(crate) struct Addresses {
    pub(crate) tcp: SocketAddr,
    pub(crate) http: Option<SocketAddr>,
    pub(crate) https: Option<SocketAddr>,
    pub(crate) monitor: Option<SocketAddr>,
}

impl Listeners {
    pub(crate) async fn bind(config: &Config) -> Result<Self, AuthorityError> {
        let (tcp, tcp_address) = bind("TCP", config.tcp).await?;
        let mut addresses = Addresses {
            tcp: tcp_address,
            http: None,
            https: None,
            monitor: None,
        };
        let mut doors = Vec::new();
        if let Some(address) = config.http {
            let (listener, address) = bind("HTTP", address).await?;
            addresses.http = Some(address);
            doors.push((listener, Door::Http));
        }
        let operations = &config.operations;
        let mut tls = None;
        if let Some(https) = &operations.https {
            let loaded = Arc::new(Tls::load(https)?);
            let (listener, address) = bind("HTTPS", https.address).await?;
            addresses.https = Some(address);
            doors.push((listener, Door::Https(Arc::clone(&loaded))));
            tls = Some(loaded);
        }
        if let Some(address) = operations.monitor {
            let (listener, address) = bind("monitors", address).await?;
            addresses.monitor = Some(address);
            doors.push((listener, Door::Monitor));
        }
        let admin = operations.admin.as_deref().map(|path| {
            Admin::bind(path).map_err(|source| AuthorityError::Admin {
                path: path.to_owned(),
                source,
            })
        });
        Ok(Self {
            tcp,
            doors,
            tls,
            admin: admin.transpose()?,
            addresses,
        })
    }

    /// Serves until `stop` turns true.
    pub(crate) fn serve(
        self,
        service: &Arc<Service>,
        stop: &watch::Receiver<bool>,
    ) -> Vec<JoinHandle<()>> {
        let tcp = tcp::serve(self.tcp, Arc::clone(service), stop.clone());
        let mut servers = vec![tokio::spawn(tcp)];
        for (listener, door) in self.doors {
            let served = http::serve(listener, door, Arc::clone(service), stop.clone());
            servers.push(tokio::spawn(served));
        }
        if let Some(admin) = self.admin {
            let served = admin.serve(Arc::clone(service), stop.clone());
            servers.push(tokio::spawn(served));
        }
        servers
    }
}

/// A listener, and its address with the real port.
async fn bind(
    protocol: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), AuthorityError> {
    let bound = async {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    bound.await.map_err(|source| AuthorityError::Bind {
        protocol,
        address,
        source,
    })
}
