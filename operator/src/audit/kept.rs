//! The last checkpoint, kept in the cluster: whoever may write to the bucket and not here cannot put the log back to an earlier state unnoticed.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use paddock_audit::{CHECKPOINT, Verifier};

use crate::error::{Error, within};
use crate::names::{MANAGED_BY, MANAGER};

/// Name of the ConfigMap.
const NAME: &str = "paddock-audit";
const WHAT: &str = "the checkpoint of the audit log";

/// How many entries the log has had at least. Whoever takes the ConfigMap away says that an earlier state is all right.
pub(super) async fn entries(client: &Client, namespace: &str, verifier: &Verifier) -> Result<u64> {
    let Some(kept) = get(client, namespace).await? else { return Ok(0) };
    let note = kept.data.unwrap_or_default().remove(CHECKPOINT).unwrap_or_default();
    let checkpoint = verifier.open(note.as_bytes()).with_context(|| format!("the ConfigMap {NAME} has no checkpoint of this log"))?;
    Ok(checkpoint.size)
}

/// Keeps this one.
pub(super) async fn put(client: &Client, namespace: &str, note: &str) -> Result<()> {
    let stored = get(client, namespace).await?;
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let wanted = ConfigMap {
        metadata: ObjectMeta {
            name: Some(NAME.into()),
            labels: Some([(MANAGED_BY.to_owned(), MANAGER.to_owned())].into()),
            resource_version: stored.as_ref().and_then(|stored| stored.metadata.resource_version.clone()),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(CHECKPOINT.to_owned(), note.to_owned())])),
        ..ConfigMap::default()
    };
    match stored {
        Some(_) => within(WHAT, api.replace(NAME, &PostParams::default(), &wanted)).await?,
        None => within(WHAT, api.create(&PostParams::default(), &wanted)).await?,
    }
    .map_err(Error::write(WHAT))?;
    Ok(())
}

async fn get(client: &Client, namespace: &str) -> Result<Option<ConfigMap>> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    Ok(within(WHAT, api.get_opt(NAME)).await?.map_err(Error::read(WHAT))?)
}

#[cfg(test)]
mod tests {
    use http::Method;
    use paddock_audit::Signer;
    use serde_json::json;

    use super::*;
    use crate::fake_api::{client, expect};

    const PATH: &str = "/api/v1/namespaces/paddock-system/configmaps/paddock-audit";

    #[tokio::test]
    async fn what_is_kept_is_a_checkpoint_of_this_log_or_an_error() {
        let signer = Signer::new("log", &[1; 32]).unwrap();
        let map = |note: &str| json!({ "metadata": { "name": NAME }, "data": { "checkpoint": note } });
        let (client, fake) = client(vec![
            expect(Method::GET, PATH, 404, json!("none")),
            expect(Method::GET, PATH, 200, map(&signer.sign(7, [0; 32]))),
            expect(Method::GET, PATH, 200, map("7")),
        ]);
        let entries = async || entries(&client, "paddock-system", &signer.verifier()).await;
        assert_eq!(entries().await.unwrap(), 0);
        assert_eq!(entries().await.unwrap(), 7);
        assert!(entries().await.is_err());
        fake.finished().await;
    }

    #[tokio::test]
    async fn one_that_is_there_is_replaced() {
        let there = json!({ "metadata": { "name": NAME, "resourceVersion": "5" }, "data": {} });
        let (client, fake) = client(vec![
            expect(Method::GET, PATH, 404, json!("none")),
            expect(Method::POST, "/api/v1/namespaces/paddock-system/configmaps", 201, there.clone()).holding("a note"),
            expect(Method::GET, PATH, 200, there.clone()),
            expect(Method::PUT, PATH, 200, there).holding("\"resourceVersion\":\"5\""),
        ]);
        put(&client, "paddock-system", "a note").await.unwrap();
        put(&client, "paddock-system", "a note").await.unwrap();
        fake.finished().await;
    }
}
