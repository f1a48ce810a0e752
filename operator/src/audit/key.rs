//! The key that signs the log, and the salt of its hashes: in a Secret beside the operator, made once, or brought by an administrator.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use paddock_audit::{Salt, Signer};
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::error::{Error, within};
use crate::names::{MANAGED_BY, MANAGER};

/// Name of the Secret.
pub(crate) const SECRET: &str = "paddock-audit";
/// The private key of Ed25519: 32 bytes.
const SEED: &str = "seed";
/// 32 bytes.
const SALT: &str = "salt";
/// The name of the log. It holds for as long as the Secret does, wherever that is brought to.
const ORIGIN: &str = "origin";
/// What others verify by: not read by the operator.
const VERIFIER: &str = "verifier";
/// Pause before the API server is asked again.
const RETRY_EVERY: Duration = Duration::from_secs(2);

/// What is in the Secret.
pub(crate) struct Keys {
    pub(crate) signer: Signer,
    pub(crate) salt: Salt,
    pub(crate) origin: String,
}

/// Reads the keys, or makes them if there are none, for a log of this name. Waits for an API server that answers; a Secret that holds none is an
/// error. Only the leader may call this.
pub(crate) async fn keys(client: &Client, namespace: &str, origin: &str) -> Result<Keys> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    loop {
        match secret(&api, origin).await {
            Ok(secret) => {
                let what = format!("the Secret {SECRET} in {namespace} lacks {SEED} or {SALT}, of 32 bytes each, or {ORIGIN}");
                return read(&secret).context(what);
            }
            Err(error) => tracing::warn!(error = error.chain(), "cannot get the key of the audit log"),
        }
        tokio::time::sleep(RETRY_EVERY).await;
    }
}

async fn secret(api: &Api<Secret>, origin: &str) -> Result<Secret, Error> {
    const WHAT: &str = "the key of the audit log";
    if let Some(secret) = within(WHAT, api.get_opt(SECRET)).await?.map_err(Error::read(WHAT))? {
        return Ok(secret);
    }
    let (mut seed, mut salt) = ([0; 32], [0; 32]);
    let filled = SystemRandom::new().fill(&mut seed).and_then(|()| SystemRandom::new().fill(&mut salt));
    let rendered = filled.ok().and_then(|()| render(&seed, &salt, origin));
    let rendered = rendered.ok_or_else(|| Error::Process { source: std::io::Error::other("no key can be made") })?;
    let made = within(WHAT, api.create(&PostParams::default(), &rendered)).await?.map_err(Error::write(WHAT))?;
    tracing::info!(secret = SECRET, "made a key for the audit log");
    Ok(made)
}

fn read(secret: &Secret) -> Option<Keys> {
    let field = |name: &str| secret.data.as_ref()?.get(name).map(|bytes| bytes.0.as_slice());
    let origin = std::str::from_utf8(field(ORIGIN)?).ok()?.trim().to_owned();
    let salt = Salt::new(field(SALT)?.try_into().ok()?);
    Some(Keys { signer: Signer::new(&origin, field(SEED)?)?, salt, origin })
}

fn render(seed: &[u8; 32], salt: &[u8; 32], origin: &str) -> Option<Secret> {
    let verifier = Signer::new(origin, seed)?.verifier().to_string();
    let fields = [(SEED, seed.to_vec()), (SALT, salt.to_vec()), (ORIGIN, origin.into()), (VERIFIER, verifier.into_bytes())];
    Some(Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.into()),
            labels: Some(BTreeMap::from([(MANAGED_BY.to_owned(), MANAGER.to_owned())])),
            ..ObjectMeta::default()
        },
        data: Some(fields.into_iter().map(|(name, bytes)| (name.to_owned(), ByteString(bytes))).collect()),
        // A log that goes on under another key is another log.
        immutable: Some(true),
        type_: Some("Opaque".into()),
        ..Secret::default()
    })
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::json;

    use super::*;
    use crate::fake_api::{client, expect};

    const PATH: &str = "/api/v1/namespaces/paddock-system/secrets/paddock-audit";

    #[test]
    fn keys_read_back_and_anything_else_is_none() {
        let secret = render(&[1; 32], &[2; 32], "paddock.dev/audit/x").unwrap();
        let keys = read(&secret).unwrap();
        let verifier = std::str::from_utf8(&secret.data.as_ref().unwrap()[VERIFIER].0).unwrap().to_owned();
        assert_eq!((keys.origin.as_str(), keys.signer.verifier().to_string()), ("paddock.dev/audit/x", verifier));
        for lacking in [SEED, SALT, ORIGIN] {
            let mut secret = secret.clone();
            secret.data.as_mut().unwrap().insert(lacking.into(), ByteString(Vec::new()));
            assert!(read(&secret).is_none(), "{lacking}");
        }
    }

    #[tokio::test]
    async fn a_secret_that_holds_no_key_is_an_error_and_none_is_made_over_it() {
        let broken = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": SECRET }, "data": { "seed": "AAAA" } });
        let (client, fake) = client(vec![expect(Method::GET, PATH, 200, broken)]);
        let error = keys(&client, "paddock-system", "x").await.err().expect("no key");
        assert!(error.to_string().contains("lacks seed or salt"), "{error}");
        fake.finished().await;
    }
}
