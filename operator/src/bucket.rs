//! A folder or a bucket that the operator writes to, through `object_store`.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{Certificate, ClientOptions, ObjectStore, ObjectStoreScheme, RetryConfig};
use url::Url;

/// Environment variable with further authorities.
pub(crate) const AUTHORITIES: &str = "CA_CERTIFICATES";

/// How to reach a bucket, beside its URL: what the environment says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Access {
    /// Options of `object_store`, such as `aws_endpoint`; they apply to S3.
    pub(crate) options: Vec<(String, String)>,
    /// Authorities that may sign the server's certificate beside those that browsers trust: a text of PEM blocks.
    pub(crate) authorities: Option<String>,
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Bucket {
    pub(crate) store: Arc<dyn ObjectStore>,
    root: Path,
    is_a_folder: bool,
}

impl Bucket {
    /// `url` is `file:///FOLDER` or `s3://BUCKET/PREFIX`; `what` names it in errors. Nothing is asked yet.
    pub(crate) fn open(what: &str, url: &str, access: &Access) -> Result<Self> {
        // The HTTP client asks for a process-wide provider of TLS. That there is one already is no error.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = Url::parse(url).with_context(|| format!("the URL of {what} cannot be read: {url}"))?;
        let (scheme, root) = ObjectStoreScheme::parse(&url).with_context(|| format!("{what} cannot be used"))?;
        let store: Arc<dyn ObjectStore> = match scheme {
            ObjectStoreScheme::Local => Arc::new(LocalFileSystem::new()),
            ObjectStoreScheme::AmazonS3 => Arc::new(s3(&url, access).with_context(|| format!("{what} cannot be used"))?),
            _ => bail!("{what} cannot be used: its URL begins with neither s3:// nor file://"),
        };
        Ok(Self { store, root, is_a_folder: scheme == ObjectStoreScheme::Local })
    }

    /// Whether its files can be exchanged for the ones that were read: a folder knows no such thing.
    pub(crate) fn is_a_folder(&self) -> bool {
        self.is_a_folder
    }

    /// Any other, for tests.
    #[cfg(test)]
    pub(crate) fn of(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, root: Path::default(), is_a_folder: false }
    }

    /// The path of what is named so below the URL.
    pub(crate) fn path(&self, name: &str) -> Result<Path> {
        let whole = if self.root.as_ref().is_empty() { name.to_owned() } else { format!("{}/{name}", self.root) };
        Path::parse(&whole).with_context(|| format!("{name} has no path in the bucket"))
    }
}

fn s3(url: &Url, access: &Access) -> Result<AmazonS3> {
    // The image holds no certificates, so the system's are not asked for.
    let mut client = ClientOptions::new().with_no_system_certificates(true);
    for root in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
        client = client.with_root_certificate(Certificate::from_der(root).context("a root certificate cannot be used")?);
    }
    let own = access.authorities.as_ref().map(|pem| Certificate::from_pem_bundle(pem.as_bytes())).transpose();
    for certificate in own.with_context(|| format!("{AUTHORITIES} holds no certificates"))?.into_iter().flatten() {
        client = client.with_root_certificate(certificate);
    }
    // Whoever asks tries again, which is counted and logged as everywhere.
    let once = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let mut builder = AmazonS3Builder::new().with_url(url.as_str()).with_client_options(client).with_retry(once);
    for (name, value) in &access.options {
        // What else of the environment begins with AWS_ is not for this client.
        if let Ok(key) = name.parse() {
            builder = builder.with_config(key, value);
        }
    }
    Ok(builder.build()?)
}
