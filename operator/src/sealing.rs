//! The key that runners seal to. It lies in a Secret beside the operator; what is sealed lies in sandbox namespaces and on nodes.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use paddock_protocol::SealingKey;

use crate::error::{code, within};
use crate::names::{MANAGED_BY, MANAGER};

/// Name of the Secret.
pub(crate) const SECRET: &str = "paddock-sealing-key";
const FIELD: &str = "key";

/// Reads the key, or makes one if there is none. Only the leader may call this: of two that make one, one would seal to a key that is gone.
pub(crate) async fn key(client: &Client, namespace: &str) -> Result<SealingKey> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let what = || format!("the Secret {SECRET} in {namespace}");
    if let Some(secret) = within("the sealing key", api.get_opt(SECRET)).await?.with_context(|| format!("cannot read {}", what()))? {
        return read(&secret).with_context(|| format!("{} holds no key of 32 bytes under {FIELD:?}", what()));
    }
    let key = SealingKey::generate();
    match within("the sealing key", api.create(&PostParams::default(), &render(&key))).await? {
        Ok(_) => {
            tracing::info!(secret = SECRET, "made a new sealing key");
            Ok(key)
        }
        Err(error) if code(&error) == Some(409) => {
            let secret = within("the sealing key", api.get(SECRET)).await?.with_context(|| format!("cannot read {}", what()))?;
            read(&secret).with_context(|| format!("{} holds no key of 32 bytes under {FIELD:?}", what()))
        }
        Err(error) => Err(error).with_context(|| format!("cannot create {}", what())),
    }
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
    use super::*;

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
