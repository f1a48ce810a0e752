//! The key that signs the log, and the salt of its hashes: in a Secret beside the operator, made once, or brought by an administrator.

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use paddock_audit::{Salt, Signer};
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::made_once::get_or_make;

/// Name of the Secret. A log that goes on under another key is another log.
pub(crate) const SECRET: &str = "paddock-audit";
/// The private key of Ed25519: 32 bytes.
const SEED: &str = "seed";
/// 32 bytes.
const SALT: &str = "salt";
/// The name of the log. It holds for as long as the Secret does, wherever that is brought to.
const ORIGIN: &str = "origin";
/// What others verify by: not read by the operator.
const VERIFIER: &str = "verifier";

/// What is in the Secret.
pub(crate) struct Keys {
    pub(crate) signer: Signer,
    pub(crate) salt: Salt,
    pub(crate) origin: String,
}

/// Reads the keys, or makes them if there are none, for a log of this name, as [`get_or_make`] does. A Secret that holds none is an error.
pub(crate) async fn keys(client: &Client, namespace: &str, origin: &str) -> Result<Keys> {
    let (mut seed, mut salt) = ([0; 32], [0; 32]);
    let filled = SystemRandom::new().fill(&mut seed).and_then(|()| SystemRandom::new().fill(&mut salt));
    filled.ok().context("the system has no random bytes")?;
    let fields = fields(&seed, &salt, origin).with_context(|| format!("{origin} can be the name of no log"))?;
    let secret = get_or_make(client, namespace, (SECRET, "the key of the audit log"), || fields.clone()).await;
    read(&secret).with_context(|| format!("the Secret {SECRET} in {namespace} lacks {SEED} or {SALT}, of 32 bytes each, or {ORIGIN}"))
}

fn read(secret: &Secret) -> Option<Keys> {
    let field = |name: &str| secret.data.as_ref()?.get(name).map(|bytes| bytes.0.as_slice());
    let origin = std::str::from_utf8(field(ORIGIN)?).ok()?.trim().to_owned();
    let salt = Salt::new(field(SALT)?.try_into().ok()?);
    Some(Keys { signer: Signer::new(&origin, field(SEED)?)?, salt, origin })
}

fn fields(seed: &[u8; 32], salt: &[u8; 32], origin: &str) -> Option<Vec<(&'static str, Vec<u8>)>> {
    let verifier = Signer::new(origin, seed)?.verifier().to_string();
    Some(vec![(SEED, seed.to_vec()), (SALT, salt.to_vec()), (ORIGIN, origin.into()), (VERIFIER, verifier.into_bytes())])
}

#[cfg(test)]
mod tests {
    use http::Method;
    use k8s_openapi::ByteString;
    use serde_json::json;

    use super::*;
    use crate::fake_api::{client, expect};
    use crate::made_once::render;

    const PATH: &str = "/api/v1/namespaces/paddock-system/secrets/paddock-audit";

    #[test]
    fn keys_read_back_and_anything_else_is_none() {
        let secret = render(SECRET, fields(&[1; 32], &[2; 32], "paddock.dev/audit/x").unwrap());
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
