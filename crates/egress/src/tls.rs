//! Certificates of the gateway and of the operator, which know each other by one authority.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// The files of a folder as a Secret of type `kubernetes.io/tls` has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// `tls.crt`: the certificate.
    pub chain: Vec<u8>,
    /// `tls.key`: its key.
    pub key: Vec<u8>,
    /// `ca.crt`: who has issued the other side's certificate.
    pub authority: Vec<u8>,
}

impl Files {
    /// Reads them.
    pub fn read(folder: &Path) -> Result<Self> {
        let read = |name: &str| std::fs::read(folder.join(name)).with_context(|| format!("cannot read {}", folder.join(name).display()));
        Ok(Self { chain: read("tls.crt")?, key: read("tls.key")?, authority: read("ca.crt")? })
    }

    /// For sandboxes, which have a token instead of a certificate.
    pub fn for_sandboxes(&self) -> Result<Arc<ServerConfig>> {
        let mut config = builder()?.with_no_client_auth().with_single_cert(self.chain()?, self.key()?)?;
        // A run connects anew for each tunnel, and from the second on without certificates and signatures. Nothing is kept here for that: what the
        // run shows is sealed with a key of this process, made with the certificate. A session opens nothing: each tunnel asks with its token.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.ticketer = rustls::crypto::ring::Ticketer::new()?;
        config.send_tls13_tickets = 1;
        Ok(Arc::new(config))
    }

    /// For the operator, which must show a certificate of this authority.
    pub fn for_the_operator(&self) -> Result<Arc<ServerConfig>> {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), provider()).build().context("ca.crt")?;
        Ok(Arc::new(builder()?.with_client_cert_verifier(verifier).with_single_cert(self.chain()?, self.key()?)?))
    }

    /// The operator's own, towards a gateway whose certificate is of this authority.
    pub fn of_the_operator(&self) -> Result<Arc<ClientConfig>> {
        let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&rustls::version::TLS13])?;
        Ok(Arc::new(builder.with_root_certificates(self.roots()?).with_client_auth_cert(self.chain()?, self.key()?)?))
    }

    fn roots(&self) -> Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&self.authority) {
            roots.add(certificate.context("ca.crt")?).context("ca.crt")?;
        }
        Ok(roots)
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>> {
        CertificateDer::pem_slice_iter(&self.chain).collect::<Result<_, _>>().context("tls.crt")
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_slice(&self.key).context("tls.key")
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn builder() -> Result<rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier>> {
    Ok(ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&rustls::version::TLS13])?)
}
