//! Where results go that are too large for a status: a folder or a bucket, through `object_store`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload};
use paddock_crds::StoredResult;
use url::Url;

use crate::script_run::job::hash;

/// Longest time that one attempt may take.
const PUT_LIMIT: Duration = Duration::from_secs(10);

/// See the module.
pub(crate) struct ResultStore {
    store: Arc<dyn ObjectStore>,
    root: Path,
    url: Url,
}

impl ResultStore {
    /// `url` is `file:///FOLDER` or `s3://BUCKET/PREFIX`; `options` are those of `object_store`, such as `aws_endpoint`. Nothing is asked yet.
    pub(crate) fn open(url: &str, options: &[(String, String)]) -> Result<Self> {
        // The HTTP client asks for a process-wide provider of TLS. That there is one already is no error.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = Url::parse(url).with_context(|| format!("the URL of the result store cannot be read: {url}"))?;
        let options = options.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let (store, root) = object_store::parse_url_opts(&url, options).context("the result store cannot be used")?;
        Ok(Self { store: store.into(), root, url })
    }

    /// Stores the result of a run. To do it again is to write the same once more.
    pub(crate) async fn put(&self, namespace: &str, uid: &str, bytes: Vec<u8>) -> Result<StoredResult> {
        let name = format!("{namespace}/{uid}.json");
        let length = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        let sha256 = hash(&bytes);
        let path = Path::parse(format!("{}/{name}", self.root)).context("the result has no path in the store")?;
        let put = self.store.put(&path, PutPayload::from(bytes));
        tokio::time::timeout(PUT_LIMIT, put).await.context("the store does not answer")?.context("the store does not take the result")?;
        let base = self.url.as_str().trim_end_matches('/');
        Ok(StoredResult { url: format!("{base}/{name}"), bytes: length, sha256 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_takes_a_result_again_and_again() {
        let folder = std::env::temp_dir().join(format!("paddock-store-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let store = ResultStore::open(&format!("file://{}/results", folder.display()), &[]).unwrap();
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
        for url in ["results", "ftp://x/y", "s3://"] {
            assert!(ResultStore::open(url, &[]).is_err(), "{url}");
        }
    }

    mod s3 {
        use std::net::SocketAddr;

        use hyper_util::rt::{TokioExecutor, TokioIo};
        use hyper_util::server::conn::auto::Builder;
        use s3s::auth::SimpleAuth;
        use s3s::service::S3ServiceBuilder;

        use super::*;

        /// A server that keeps its buckets in `folder` and checks signatures.
        async fn serve(folder: &std::path::Path) -> SocketAddr {
            let files = s3s_fs::FileSystem::new(folder).unwrap();
            let mut builder = S3ServiceBuilder::new(files);
            builder.set_auth(SimpleAuth::from_single("access", "secret"));
            let service = builder.build();
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(async move {
                while let Ok((socket, _)) = listener.accept().await {
                    let service = service.clone();
                    tokio::spawn(async move {
                        let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).await;
                    });
                }
            });
            address
        }

        fn open(address: SocketAddr, secret: &str, bucket: &str) -> ResultStore {
            let options = [
                ("aws_endpoint", format!("http://{address}")),
                ("aws_allow_http", "true".into()),
                ("aws_region", "us-east-1".into()),
                ("aws_access_key_id", "access".into()),
                ("aws_secret_access_key", secret.into()),
            ];
            ResultStore::open(&format!("s3://{bucket}/runs"), &options.map(|(key, value)| (key.to_owned(), value))).unwrap()
        }

        #[tokio::test]
        async fn a_bucket_takes_a_result_from_who_may_write_to_it() {
            let folder = std::env::temp_dir().join(format!("paddock-s3-{}", std::process::id()));
            std::fs::create_dir_all(folder.join("results")).unwrap();
            let address = serve(&folder).await;
            let large = format!("[\"{}\"]", "x".repeat(2 << 20)).into_bytes();
            let stored = open(address, "secret", "results").put("team", "uid-1", large.clone()).await.unwrap();
            assert_eq!(stored.url, "s3://results/runs/team/uid-1.json");
            assert_eq!(std::fs::read(folder.join("results/runs/team/uid-1.json")).unwrap(), large);
            assert!(open(address, "wrong", "results").put("team", "uid-2", b"1".to_vec()).await.is_err());
            std::fs::remove_dir_all(&folder).unwrap();
        }
    }
}
