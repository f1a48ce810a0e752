//! What a script takes for its HTTP proxy: it listens on loopback, and carries each connection over TLS to the gateway, with the run's token that
//! the script never sees. It decides nothing: what may be reached the gateway knows.
//!
//! One thread serves all connections. It must neither end nor wait for any of them, whatever the script does.

mod head;
mod tunnel;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::system;
use tunnel::Tunnel;

/// Connections at once. More wait until one has ended.
const MOST: usize = 64;

/// Where the gateway is, and how it is known.
pub(crate) struct Gateway {
    address: SocketAddr,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
}

impl Gateway {
    /// `authority` is the certificate, as PEM, of who has issued the gateway's, which is one for `name`.
    pub(crate) fn new(address: SocketAddr, name: &str, authority: &str) -> io::Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(authority.as_bytes()) {
            roots.add(certificate.map_err(io::Error::other)?).map_err(io::Error::other)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
        let mut tls = builder.map_err(io::Error::other)?.with_root_certificates(roots).with_no_client_auth();
        // Of one gateway: what the last connections left, so that the next needs no certificate.
        tls.resumption = rustls::client::Resumption::in_memory_sessions(1);
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        Ok(Self { address, name, tls: Arc::new(tls) })
    }

    /// Whether it answers, and proves to be the gateway, within `patience` for each of the two.
    pub(crate) fn answers(&self, patience: Duration) -> bool {
        let ask = || -> io::Result<()> {
            let mut socket = TcpStream::connect_timeout(&self.address, patience)?;
            socket.set_read_timeout(Some(patience))?;
            socket.set_write_timeout(Some(patience))?;
            let mut tls = ClientConnection::new(self.tls.clone(), self.name.clone()).map_err(io::Error::other)?;
            while tls.is_handshaking() {
                tls.complete_io(&mut socket)?;
            }
            Ok(())
        };
        ask().is_ok()
    }
}

/// A proxy that listens.
pub(crate) struct Proxy {
    listener: TcpListener,
    gateway: Gateway,
    token: String,
}

impl Proxy {
    pub(crate) fn new(gateway: Gateway, token: String) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, gateway, token })
    }

    /// As clients are told it: `http://127.0.0.1:PORT`.
    pub(crate) fn url(&self) -> io::Result<String> {
        Ok(format!("http://{}", self.listener.local_addr()?))
    }

    /// Serves for as long as the process lives.
    pub(crate) fn serve(self) {
        let mut tunnels: Vec<Tunnel> = Vec::new();
        loop {
            self.wait(&tunnels);
            // Most have nothing to do, and find that out by themselves.
            tunnels.retain_mut(|tunnel| tunnel.advance(&self.gateway, &self.token).is_ok_and(|goes_on| goes_on));
            while tunnels.len() < MOST {
                let Ok((script, _)) = self.listener.accept() else { break };
                tunnels.extend(Tunnel::new(script));
            }
        }
    }

    fn wait(&self, tunnels: &[Tunnel]) {
        let mut polled = Vec::with_capacity(1 + 2 * tunnels.len());
        if tunnels.len() < MOST {
            polled.push(PollFd::new(system::borrow(&self.listener), PollFlags::POLLIN));
        }
        for tunnel in tunnels {
            let [script, there] = tunnel.waits_for();
            for (socket, flags) in [(Some(&tunnel.script), script), (tunnel.there.as_ref(), there)] {
                // A socket that is broken, and that nobody wants anything of, would wake for ever.
                if let Some(socket) = socket.filter(|_| !flags.is_empty()) {
                    polled.push(PollFd::new(system::borrow(socket), flags));
                }
            }
        }
        let _ = poll(&mut polled, PollTimeout::NONE);
    }
}

#[cfg(test)]
pub(crate) mod tests;
