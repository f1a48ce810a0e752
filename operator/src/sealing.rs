//! The key that runners seal to. It lies in a Secret beside the operator; what is sealed lies in sandbox namespaces and on nodes.

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use paddock_protocol::SealingKey;

use crate::made_once::get_or_make;

/// Name of the Secret. A key that changed under runs in flight would make their results unreadable.
pub(crate) const SECRET: &str = "paddock-sealing-key";
const FIELD: &str = "key";

/// Reads the key, or makes one if there is none, as [`get_or_make`] does. A Secret that holds no key is an error.
pub(crate) async fn key(client: &Client, namespace: &str) -> Result<SealingKey> {
    let secret = get_or_make(client, namespace, (SECRET, "the sealing key"), || fields(&SealingKey::generate())).await;
    read(&secret).with_context(|| format!("the Secret {SECRET} in {namespace} holds no key of 32 bytes under {FIELD:?}"))
}

fn read(secret: &Secret) -> Option<SealingKey> {
    SealingKey::from_bytes(&secret.data.as_ref()?.get(FIELD)?.0)
}

fn fields(key: &SealingKey) -> Vec<(&'static str, Vec<u8>)> {
    vec![(FIELD, key.as_bytes().to_vec())]
}

#[cfg(test)]
mod tests {
    use http::Method;
    use k8s_openapi::ByteString;
    use serde_json::json;

    use super::*;
    use crate::fake_api::{client, expect};
    use crate::made_once::render;

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
        let stored = serde_json::to_value(render(SECRET, fields(&theirs))).unwrap();
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
        assert_eq!(read(&render(SECRET, fields(&key))), Some(key.clone()));
        let mut short = render(SECRET, fields(&key));
        short.data.as_mut().unwrap().insert(FIELD.into(), ByteString(vec![0; 31]));
        assert_eq!(read(&short), None);
        assert_eq!(read(&Secret::default()), None);
    }
}
