//! Who the gateway and the operator know each other by: an authority of the operator's own, kept in a Secret, that issues both certificates.
//!
//! The next authority is announced long before it is used: the gateway trusts it, and so do sandboxes, which are told once, when they are made.

use std::collections::BTreeMap;

use anyhow::Result;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use paddock_egress::tls::Files;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::NAME;
use crate::error::{Error, within};
use crate::names::{MANAGED_BY, MANAGER};
use crate::script_run::job::hash;
use crate::webhook::rotation::{Act, Certificate, Certificates, act_after};
use crate::webhook::set_validity;

/// The authority, with its key. Only the operator reads it.
pub(crate) const AUTHORITY: &str = "paddock-egress-authority";
/// The gateway's certificate, which its pods mount.
pub(crate) const SECRET: &str = "paddock-egress";
/// Which authority has issued it, by the hash of its certificate.
const ISSUED_BY: &str = "paddock.dev/issued-by";
/// An authority is used for two thirds of this.
const LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 90);
/// Longer than any run may take.
const ANNOUNCEMENT: SignedDuration = SignedDuration::from_hours(24 * 8);
const WHAT: &str = "the certificates of the egress gateway";

/// What the operator and sandboxes go by.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Trusted {
    /// Certificates of the authorities that may have issued the gateway's, as PEM.
    pub(crate) bundle: String,
    /// Of the operator.
    pub(crate) chain: String,
    pub(crate) key: String,
    /// By which the operator's own was issued.
    issued_by: String,
}

impl Trusted {
    /// For the operator's connections.
    pub(crate) fn files(&self) -> Files {
        Files { chain: self.chain.clone().into(), key: self.key.clone().into(), authority: self.bundle.clone().into() }
    }
}

/// Makes what is not there, and exchanges what is too old. Only the leader may do this. `known` is what was answered before.
pub(crate) async fn keep(client: &Client, namespace: &str, known: Option<Trusted>, now: Timestamp) -> Result<Trusted> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let stored = get(&api, AUTHORITY).await?;
    let fields = stored.as_ref().and_then(|secret| secret.data.clone()).unwrap_or_default();
    let mut authorities = Certificates::of(&fields);
    // What cannot issue anything is as if it were not there.
    authorities.current = authorities.current.filter(|current| issuer(current).is_ok());
    authorities.next = authorities.next.filter(|next| issuer(next).is_ok());
    let act = act_after(&authorities, LIFETIME, ANNOUNCEMENT, now);
    if act != Act::Keep {
        let made = matches!(act, Act::Make | Act::Announce).then(|| make(now)).transpose()?;
        authorities = authorities.after(act, made);
        put(&api, AUTHORITY, stored.as_ref(), authorities.fields(), None).await?;
        tracing::info!(act = format!("{act:?}"), "the authority of the egress gateway");
    }
    let current = authorities.current.as_ref().ok_or_else(|| anyhow::anyhow!("there is no authority"))?;
    keep_the_gateways(&api, current, &authorities.bundle(), now).await?;
    let (bundle, issued_by) = (authorities.bundle(), hash(current.chain.as_bytes()));
    if let Some(known) = known.filter(|known| known.issued_by == issued_by) {
        return Ok(Trusted { bundle, ..known });
    }
    let (chain, key) = issue("paddock-operator", current, now)?;
    Ok(Trusted { bundle, chain, key, issued_by })
}

/// The certificate that is mounted: of the current authority, beside all that the gateway is to trust.
async fn keep_the_gateways(api: &Api<Secret>, current: &Certificate, bundle: &str, now: Timestamp) -> Result<()> {
    let stored = get(api, SECRET).await?;
    let issued_by = hash(current.chain.as_bytes());
    let data = stored.as_ref().and_then(|secret| secret.data.clone()).unwrap_or_default();
    let is_of_it =
        stored.as_ref().is_some_and(|secret| secret.metadata.annotations.as_ref().and_then(|all| all.get(ISSUED_BY)) == Some(&issued_by));
    let field = |name: &str| data.get(name).map(|bytes| bytes.0.clone()).unwrap_or_default();
    let files = Files { chain: field("tls.crt"), key: field("tls.key"), authority: field("ca.crt") };
    let is_usable = is_of_it && files.for_the_operator().is_ok();
    if is_usable && files.authority == bundle.as_bytes() {
        return Ok(());
    }
    let (chain, key) =
        if is_usable { (files.chain, files.key) } else { issue(NAME, current, now).map(|(chain, key)| (chain.into(), key.into()))? };
    let fields = [("tls.crt", chain), ("tls.key", key), ("ca.crt", bundle.as_bytes().to_vec())];
    let fields = fields.into_iter().map(|(name, bytes)| (name.to_owned(), ByteString(bytes))).collect();
    put(api, SECRET, stored.as_ref(), fields, Some(issued_by)).await?;
    tracing::info!("the certificate of the egress gateway is another");
    Ok(())
}

async fn get(api: &Api<Secret>, name: &str) -> Result<Option<Secret>> {
    Ok(within(WHAT, api.get_opt(name)).await?.map_err(Error::read(WHAT))?)
}

async fn put(
    api: &Api<Secret>,
    name: &str,
    stored: Option<&Secret>,
    data: BTreeMap<String, ByteString>,
    issued_by: Option<String>,
) -> Result<()> {
    let metadata = ObjectMeta {
        name: Some(name.into()),
        labels: Some([(MANAGED_BY.to_owned(), MANAGER.to_owned())].into()),
        annotations: issued_by.map(|hash| [(ISSUED_BY.to_owned(), hash)].into()),
        resource_version: stored.and_then(|secret| secret.metadata.resource_version.clone()),
        ..ObjectMeta::default()
    };
    let type_ = stored.map_or_else(|| Some("Opaque".into()), |secret| secret.type_.clone());
    let secret = Secret { metadata, type_, data: Some(data), ..Secret::default() };
    match stored {
        Some(_) => within(WHAT, api.replace(name, &PostParams::default(), &secret)).await?.map_err(Error::write(WHAT))?,
        None => within(WHAT, api.create(&PostParams::default(), &secret)).await?.map_err(Error::write(WHAT))?,
    };
    Ok(())
}

/// An authority is known by its key alone: all of them have the same name.
fn authority(now: Timestamp) -> Result<CertificateParams> {
    let mut parameters = CertificateParams::new(Vec::new())?;
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.distinguished_name.push(DnType::CommonName, "paddock-egress-authority");
    set_validity(&mut parameters, LIFETIME, now)?;
    Ok(parameters)
}

fn make(now: Timestamp) -> Result<Certificate> {
    let key = KeyPair::generate()?;
    let certificate = authority(now)?.self_signed(&key)?;
    Ok(Certificate { chain: certificate.pem(), key: key.serialize_pem(), made: now })
}

fn issuer(of: &Certificate) -> Result<Issuer<'static, KeyPair>> {
    Ok(Issuer::new(authority(of.made)?, KeyPair::from_pem(&of.key)?))
}

/// Certificate and key, as PEM.
fn issue(name: &str, by: &Certificate, now: Timestamp) -> Result<(String, String)> {
    let key = KeyPair::generate()?;
    let mut parameters = CertificateParams::new(vec![name.to_owned()])?;
    set_validity(&mut parameters, LIFETIME, now)?;
    Ok((parameters.signed_by(&key, &issuer(by)?)?.pem(), key.serialize_pem()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(day: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + day * 86400).unwrap()
    }

    #[test]
    fn what_is_issued_is_of_its_authority() {
        let authority = make(at(0)).unwrap();
        let other = make(at(0)).unwrap();
        let (chain, key) = issue(NAME, &authority, at(1)).unwrap();
        let files = |bundle: &str| Files { chain: chain.clone().into(), key: key.clone().into(), authority: bundle.to_owned().into() };
        assert!(files(&authority.chain).for_the_operator().is_ok());
        assert!(files(&(authority.chain.clone() + &other.chain)).of_the_operator().is_ok());
        assert!(issuer(&Certificate { key: "no key".into(), ..authority }).is_err());
    }
}
