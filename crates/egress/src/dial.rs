//! From a name to a connection: looked up once, every answer checked, and dialled at an address that was checked.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::future::BoxFuture;
use hickory_resolver::TokioResolver;
use paddock_destination::{Addresses, Authority, Host, HostName};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::ask::Refusal;

/// For the look-up, and for each address that is dialled.
const PATIENCE: Duration = Duration::from_secs(5);
/// Addresses of one name that are dialled.
const MOST_ADDRESSES: usize = 4;

/// What tells the addresses of a name.
pub trait Resolve: Send + Sync {
    /// All of them; `None` if there are none, or nobody says.
    fn resolve<'a>(&'a self, name: &'a HostName) -> BoxFuture<'a, Option<Vec<IpAddr>>>;
}

impl Resolve for TokioResolver {
    fn resolve<'a>(&'a self, name: &'a HostName) -> BoxFuture<'a, Option<Vec<IpAddr>>> {
        // With the dot at its end no search list is tried.
        Box::pin(async move { Some(self.lookup_ip(format!("{name}.")).await.ok()?.iter().collect()) })
    }
}

/// Connects.
pub async fn dial(to: &Authority, addresses: &Addresses, resolver: &dyn Resolve) -> Result<(TcpStream, IpAddr), Refusal> {
    let found = match &to.host {
        Host::Address(address) => vec![*address],
        Host::Name(name) => timeout(PATIENCE, resolver.resolve(name)).await.ok().flatten().ok_or(Refusal::NotResolved)?,
    };
    if found.is_empty() {
        return Err(Refusal::NotResolved);
    }
    // One bad answer refuses all: whoever answers so wants to be dialled somewhere else next time.
    for address in &found {
        addresses.check(*address).map_err(Refusal::Address)?;
    }
    for address in found.into_iter().take(MOST_ADDRESSES) {
        if let Ok(Ok(stream)) = timeout(PATIENCE, TcpStream::connect(SocketAddr::new(address, to.port))).await {
            let _ = stream.set_nodelay(true);
            return Ok((stream, address));
        }
    }
    Err(Refusal::NotConnected)
}
