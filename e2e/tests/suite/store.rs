//! What is kept in buckets of an S3 server, in the cluster's network, with signatures, and away for a while: results that are too large for a status,
//! and the audit log.

mod audit;

use std::net::TcpListener;
use std::path::PathBuf;

use crate::harness::disturb::{kill_operator, leader, listen, upgrade};
use crate::harness::{OPERATOR_NAMESPACE, Script, Tenant, admin, assert_end, eventually, status, tenant};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};
use paddock_crds::{ConditionType, Phase, Reason, ScriptRun};
use paddock_e2e::cluster::layout::NODE_ADDRESS;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinHandle;

const SECRET: &str = "result-store";

/// An S3 server that keeps its buckets in a folder.
struct Bucket {
    folder: PathBuf,
    port: u16,
    service: S3Service,
    serving: JoinHandle<()>,
}

impl Bucket {
    fn open(folder: PathBuf) -> Self {
        for bucket in ["results", "audit"] {
            std::fs::create_dir_all(folder.join(bucket)).unwrap();
        }
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(&folder).unwrap());
        builder.set_auth(SimpleAuth::from_single("access", "secret"));
        let service = builder.build();
        let listener = listen(0);
        let port = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(serve(listener, service.clone()));
        Self { folder, port, service, serving }
    }

    /// Takes the server away: whoever connects is refused.
    async fn close(&mut self) {
        self.serving.abort();
        let _ = (&mut self.serving).await;
    }

    fn reopen(&mut self) {
        self.serving = tokio::spawn(serve(listen(self.port), self.service.clone()));
    }

    fn object(&self, run: &ScriptRun) -> Option<Vec<u8>> {
        std::fs::read(self.folder.join(path(run))).ok()
    }
}

fn path(run: &ScriptRun) -> String {
    format!("results/runs/{}/{}.json", run.namespace().unwrap(), run.uid().unwrap())
}

async fn serve(listener: TcpListener, service: S3Service) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    // Connections end with the task that owns this set.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        let service = service.clone();
        connections.spawn(async move {
            let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).await;
        });
    }
}

fn store_at(url: &str, secret: &str, large_result: &str) {
    upgrade(&[
        format!("resultStore.url={url}"),
        format!("resultStore.secretName={secret}"),
        format!("baseline.output.largeResult={large_result}"),
        format!("audit.url={}", if url.is_empty() { "" } else { "s3://audit/log" }),
        format!("audit.secretName={secret}"),
    ]);
}

async fn give_keys(client: &Client, bucket: &Bucket) {
    let api: Api<Secret> = Api::namespaced(client.clone(), OPERATOR_NAMESPACE);
    let keys = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": SECRET },
        "stringData": {
            "AWS_ENDPOINT": format!("http://{NODE_ADDRESS}:{}", bucket.port), "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "access", "AWS_SECRET_ACCESS_KEY": "secret",
        },
    });
    api.patch(SECRET, &PatchParams::apply("e2e").force(), &Patch::Apply(&keys)).await.unwrap();
}

/// A result of about 100 KiB, with a key of a cloud in it that is put together where it is written.
fn large(number: u32) -> Script {
    let text = format!(
        "import json, os\nkey = 'AK' + 'IA' + 'QX7PLM2NVB3RT4WZ'\n\
         json.dump({{'number': {number}, 'key': key, 'rows': ['x' * 100] * 1000}}, open(os.environ['PADDOCK_RESULT'], 'w'))"
    );
    Script::python(&text)
}

/// Thousands of writes of one byte, as of a bar of progress, beside a result that is almost as large as any can be.
const DOTS: &str = "
import os
open(os.environ['PADDOCK_RESULT'], 'w').write('\"' + 'x' * 2000000 + '\"')
for _ in range(13000):
    os.write(1, b'.')
    os.write(2, b'.')
";

fn assert_stored(bucket: &Bucket, run: &ScriptRun, number: u32) {
    assert_end(run, &Phase::Succeeded, &Reason::Succeeded);
    let result = status(run).result.unwrap();
    assert_eq!((result.output, result.output_error), (None, None));
    let reference = result.reference.unwrap();
    let object = bucket.object(run).expect("an object in the bucket");
    assert_eq!(reference.url, format!("s3://{}", path(run)));
    assert_eq!(reference.bytes, i64::try_from(object.len()).unwrap());
    assert!(reference.sha256.ends_with(&hex(&Sha256::digest(&object))), "{}", reference.sha256);
    let value: Value = serde_json::from_slice(&object).unwrap();
    assert_eq!((&value["number"], value["rows"].as_array().unwrap().len()), (&json!(number), 1000));
    assert!(!String::from_utf8(object).unwrap().contains("AKIA"), "the key is in the bucket");
    assert_eq!(result.redactions.iter().map(|redaction| redaction.count).sum::<i64>(), 1);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_too_large_for_a_status_and_the_audit_log_are_in_their_buckets() {
    let folder = std::env::temp_dir().join(format!("paddock-s3-{}", std::process::id()));
    let bucket = Bucket::open(folder.clone());
    let client = admin().await;
    // What a test that failed may have left: an operator that has read other keys.
    store_at("", "", "Refuse");
    give_keys(&client, &bucket).await;
    store_at("s3://results/runs", SECRET, "Store");
    leader(&client).await;
    tenant("store", |tenant| async move {
        let mut bucket = bucket;
        assert_stored(&bucket, &tenant.run(large(1)).await, 1);
        let told = status(&tenant.run(Script::python(DOTS)).await).result.unwrap();
        assert_eq!((told.output_error, told.reference.map(|reference| reference.bytes)), (None, Some(2_000_002)));
        Box::pin(a_store_that_is_away_is_waited_for(&tenant, &mut bucket)).await;
    })
    .await;
    audit::what_runs_connect_to_is_in_the_log(&folder).await;
    audit::a_copy_of_the_log_can_be_verified(&folder).await;
    store_at("", "", "Refuse");
    let secrets: Api<Secret> = Api::namespaced(client.clone(), OPERATOR_NAMESPACE);
    for name in [SECRET, audit::SECRET] {
        secrets.delete(name, &DeleteParams::default()).await.unwrap();
    }
    audit::forget(&client).await;
    leader(&client).await;
    std::fs::remove_dir_all(folder).unwrap();
}

/// Also by the next leader, when the one that had the result is killed.
async fn a_store_that_is_away_is_waited_for(tenant: &Tenant, bucket: &mut Bucket) {
    bucket.close().await;
    let run = tenant.create(large(2)).await;
    let pod = format!("sr-{}", run.uid().unwrap());
    eventually("the script has ended", || async {
        let phase = tenant.pods().get(&pod).await.map_err(|error| error.to_string())?.status.and_then(|status| status.phase);
        if phase.as_deref() == Some("Succeeded") { Ok(()) } else { Err(format!("{phase:?}")) }
    })
    .await;
    kill_operator(&tenant.client).await;
    leader(&tenant.client).await;
    let before = tenant.runs().get(&run.name_any()).await.unwrap();
    assert!(!status(&before).is_true(&ConditionType::ResultReady), "{:?}", before.status);
    let held = audit::a_run_is_not_admitted(tenant).await;
    bucket.reopen();
    assert_stored(bucket, &tenant.finished(&run).await, 2);
    audit::the_lives_of_both_are_in_the_log(&bucket.folder, &run, &tenant.finished(&held).await).await;
}
