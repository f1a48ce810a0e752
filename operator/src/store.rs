//! Where results go that are too large for a status: a folder or a bucket, through `object_store`.

use std::time::Duration;

use anyhow::{Context as _, Result};
use object_store::{ObjectStoreExt as _, PutPayload};
use paddock_crds::StoredResult;

use crate::bucket::{Access, Bucket};
use crate::script_run::job::hash;

/// Longest time that one attempt may take.
const PUT_LIMIT: Duration = Duration::from_secs(10);

/// See the module.
pub(crate) struct ResultStore {
    bucket: Bucket,
    url: String,
}

impl ResultStore {
    /// `url` is `file:///FOLDER` or `s3://BUCKET/PREFIX`. Nothing is asked yet.
    pub(crate) fn open(url: &str, access: &Access) -> Result<Self> {
        let bucket = Bucket::open("the result store", url, access)?;
        Ok(Self { bucket, url: url.trim_end_matches('/').to_owned() })
    }

    /// Stores the result of a run. To do it again is to write the same once more.
    pub(crate) async fn put(&self, namespace: &str, uid: &str, bytes: Vec<u8>) -> Result<StoredResult> {
        let name = format!("{namespace}/{uid}.json");
        let length = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        let sha256 = hash(&bytes);
        let path = self.bucket.path(&name)?;
        let put = self.bucket.store.put(&path, PutPayload::from(bytes));
        tokio::time::timeout(PUT_LIMIT, put).await.context("the store does not answer")?.context("the store does not take the result")?;
        Ok(StoredResult { url: format!("{}/{name}", self.url), bytes: length, sha256 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_takes_a_result_again_and_again() {
        let folder = std::env::temp_dir().join(format!("paddock-store-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let store = ResultStore::open(&format!("file://{}/results", folder.display()), &Access::default()).unwrap();
        for _ in 0..2 {
            let stored = store.put("team", "uid-1", b"[1]".to_vec()).await.unwrap();
            assert_eq!((stored.bytes, stored.sha256.len()), (3, 64));
            assert!(stored.url.ends_with("/results/team/uid-1.json"), "{}", stored.url);
            assert_eq!(std::fs::read(stored.url.strip_prefix("file://").unwrap()).unwrap(), b"[1]");
        }
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(store.put("team", "uid-1", b"[1]".to_vec()).await.is_err() || std::fs::remove_dir_all(&folder).is_ok());
    }

    #[test]
    fn what_is_no_store_is_said_at_the_start() {
        for url in ["results", "ftp://x/y", "https://x/y", "s3://"] {
            assert!(ResultStore::open(url, &Access::default()).is_err(), "{url}");
        }
    }

    mod s3 {
        use std::net::SocketAddr;
        use std::path::PathBuf;
        use std::sync::Arc;

        use hyper_util::rt::{TokioExecutor, TokioIo};
        use hyper_util::server::conn::auto::Builder;
        use rcgen::{CertifiedKey, generate_simple_self_signed};
        use rustls::ServerConfig;
        use rustls::pki_types::PrivateKeyDer;
        use s3s::auth::SimpleAuth;
        use s3s::service::S3ServiceBuilder;
        use tokio_rustls::TlsAcceptor;

        use super::*;

        struct Server {
            folder: PathBuf,
            address: SocketAddr,
            /// Its certificate, by which it is its own authority.
            pem: String,
        }

        impl Drop for Server {
            fn drop(&mut self) {
                let _ = std::fs::remove_dir_all(&self.folder);
            }
        }

        /// A server that keeps the bucket `results` in a folder, checks signatures, and speaks TLS.
        async fn serve(name: &str) -> Server {
            let _ = rustls::crypto::ring::default_provider().install_default();
            let folder = std::env::temp_dir().join(format!("paddock-s3-{name}-{}", std::process::id()));
            std::fs::create_dir_all(folder.join("results")).unwrap();
            let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(&folder).unwrap());
            builder.set_auth(SimpleAuth::from_single("access", "secret"));
            let service = builder.build();
            let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
            let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
            let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![cert.der().clone()], key).unwrap();
            let acceptor = TlsAcceptor::from(Arc::new(config));
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(async move {
                while let Ok((socket, _)) = listener.accept().await {
                    let (service, acceptor) = (service.clone(), acceptor.clone());
                    tokio::spawn(async move {
                        if let Ok(stream) = acceptor.accept(socket).await {
                            let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
                        }
                    });
                }
            });
            Server { folder, address, pem: cert.pem() }
        }

        fn open(address: SocketAddr, secret: &str, authorities: Option<&str>) -> ResultStore {
            let options = [
                ("aws_endpoint", format!("https://{address}")),
                ("aws_region", "us-east-1".into()),
                ("aws_access_key_id", "access".into()),
                ("aws_secret_access_key", secret.into()),
                ("aws_pager", "less".into()),
            ];
            let options = options.map(|(key, value)| (key.to_owned(), value)).to_vec();
            ResultStore::open("s3://results/runs", &Access { options, authorities: authorities.map(ToOwned::to_owned) }).unwrap()
        }

        #[tokio::test]
        async fn a_bucket_takes_a_result_from_who_may_write_to_it() {
            let server = serve("keys").await;
            let large = format!("[\"{}\"]", "x".repeat(2 << 20)).into_bytes();
            let stored = open(server.address, "secret", Some(&server.pem)).put("team", "uid-1", large.clone()).await.unwrap();
            assert_eq!(stored.url, "s3://results/runs/team/uid-1.json");
            assert_eq!(std::fs::read(server.folder.join("results/runs/team/uid-1.json")).unwrap(), large);
            let error = open(server.address, "wrong", Some(&server.pem)).put("team", "uid-2", b"1".to_vec()).await.unwrap_err();
            assert!(format!("{error:#}").contains("SignatureDoesNotMatch"), "{error:#}");
        }

        #[tokio::test]
        async fn a_server_that_no_known_authority_vouches_for_gets_nothing() {
            let server = serve("authority").await;
            open(server.address, "secret", None).put("team", "uid-1", b"1".to_vec()).await.unwrap_err();
            assert!(!server.folder.join("results/runs").exists());
        }

        #[test]
        fn authorities_that_cannot_be_read_are_told_at_the_start() {
            let broken = "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n";
            assert!(ResultStore::open("s3://results", &Access { authorities: Some(broken.into()), ..Access::default() }).is_err());
        }
    }
}
