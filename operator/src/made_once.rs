//! Secrets of the operator's own that are made once, by the first leader, and never changed.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};

use crate::error::{Error, within};
use crate::names::{MANAGED_BY, MANAGER};

/// Pause before the API server is asked again.
const RETRY_EVERY: Duration = Duration::from_secs(2);

/// Reads the Secret, or makes it with these fields if there is none; `what` names it in errors. Waits for an API server that answers. Only the leader
/// may call this: of two that make one, one would go by a Secret that is gone.
pub(crate) async fn get_or_make(
    client: &Client,
    namespace: &str,
    (name, what): (&str, &'static str),
    fields: impl Fn() -> Vec<(&'static str, Vec<u8>)>,
) -> Secret {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    loop {
        match get_or_try(&api, (name, what), &fields).await {
            Ok(secret) => return secret,
            Err(error) => tracing::warn!(error = error.chain(), secret = name, "a Secret of the operator cannot be had"),
        }
        tokio::time::sleep(RETRY_EVERY).await;
    }
}

async fn get_or_try(
    api: &Api<Secret>,
    (name, what): (&str, &'static str),
    fields: &impl Fn() -> Vec<(&'static str, Vec<u8>)>,
) -> Result<Secret, Error> {
    if let Some(secret) = within(what, api.get_opt(name)).await?.map_err(Error::read(what))? {
        return Ok(secret);
    }
    let made = within(what, api.create(&PostParams::default(), &render(name, fields()))).await?.map_err(Error::write(what))?;
    tracing::info!(secret = name, "made a Secret of the operator");
    Ok(made)
}

pub(crate) fn render(name: &str, fields: Vec<(&'static str, Vec<u8>)>) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(name.into()),
            labels: Some(BTreeMap::from([(MANAGED_BY.to_owned(), MANAGER.to_owned())])),
            ..ObjectMeta::default()
        },
        data: Some(fields.into_iter().map(|(field, bytes)| (field.to_owned(), ByteString(bytes))).collect()),
        immutable: Some(true),
        type_: Some("Opaque".into()),
        ..Secret::default()
    }
}
