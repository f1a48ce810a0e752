//! The key that runners seal to. It lies in a Secret beside the operator; what is sealed lies in sandbox namespaces and on nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use paddock_protocol::SealingKey;

use crate::error::{Error, within};
use crate::names::{MANAGED_BY, MANAGER};

/// Name of the Secret.
pub(crate) const SECRET: &str = "paddock-sealing-key";
const FIELD: &str = "key";

/// Pause before the API server is asked again.
const RETRY_EVERY: Duration = Duration::from_secs(2);

/// Reads the key, or makes one if there is none. Waits for an API server that answers; a Secret that holds no key is an error.
/// Only the leader may call this: of two that make one, one would seal to a key that is gone.
pub(crate) async fn key(client: &Client, namespace: &str) -> Result<SealingKey> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    loop {
        match secret(&api).await {
            Ok(secret) => {
                return read(&secret)
                    .with_context(|| format!("the Secret {SECRET} in {namespace} holds no key of 32 bytes under {FIELD:?}"));
            }
            Err(error) => tracing::warn!(error = error.chain(), "cannot get the sealing key"),
        }
        tokio::time::sleep(RETRY_EVERY).await;
    }
}

async fn secret(api: &Api<Secret>) -> Result<Secret, Error> {
    const WHAT: &str = "the sealing key";
    if let Some(secret) = within(WHAT, api.get_opt(SECRET)).await?.map_err(Error::read(WHAT))? {
        return Ok(secret);
    }
    let made = within(WHAT, api.create(&PostParams::default(), &render(&SealingKey::generate()))).await?.map_err(Error::write(WHAT))?;
    tracing::info!(secret = SECRET, "made a new sealing key");
    Ok(made)
}

fn read(secret: &Secret) -> Option<SealingKey> {
    SealingKey::from_bytes(&secret.data.as_ref()?.get(FIELD)?.0)
}

fn render(key: &SealingKey) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.into()),
            labels: Some(BTreeMap::from([(MANAGED_BY.to_owned(), MANAGER.to_owned())])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(FIELD.to_owned(), ByteString(key.as_bytes().to_vec()))])),
        // A key that changed under runs in flight would make their results unreadable.
        immutable: Some(true),
        type_: Some("Opaque".into()),
        ..Secret::default()
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::json;

    use super::*;
    use crate::fake_api::{client, expect};

    const PATH: &str = "/api/v1/namespaces/paddock-system/secrets/paddock-sealing-key";

    #[tokio::test]
    async fn a_secret_that_holds_no_key_is_an_error_and_none_is_made_over_it() {
        let broken = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": SECRET }, "data": { "key": "AAAA" } });
        let (client, fake) = client(vec![expect(Method::GET, PATH, 200, broken)]);
        let error = key(&client, "paddock-system").await.expect_err("no key");
        assert!(error.to_string().contains("holds no key of 32 bytes"), "{error}");
        fake.finished().await;
    }

    #[tokio::test]
    async fn a_key_that_another_made_meanwhile_or_an_api_server_that_is_away_is_asked_again() {
        let theirs = SealingKey::generate();
        let stored = serde_json::to_value(render(&theirs)).unwrap();
        let (client, fake) = client(vec![
            expect(Method::GET, PATH, 404, json!("none")),
            expect(Method::POST, "/api/v1/namespaces/paddock-system/secrets", 409, json!("already there")),
            expect(Method::GET, PATH, 503, json!("not ready")),
            expect(Method::GET, PATH, 200, stored),
        ]);
        tokio::time::pause();
        assert_eq!(key(&client, "paddock-system").await.unwrap(), theirs);
        fake.finished().await;
    }

    #[test]
    fn a_key_reads_back_and_anything_else_is_none() {
        let key = SealingKey::generate();
        assert_eq!(read(&render(&key)), Some(key.clone()));
        let mut short = render(&key);
        short.data.as_mut().unwrap().insert(FIELD.into(), ByteString(vec![0; 31]));
        assert_eq!(read(&short), None);
        assert_eq!(read(&Secret::default()), None);
    }
}
