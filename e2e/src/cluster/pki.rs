//! Certificates and kubeconfigs. Everything is X.509 v3: rustls refuses v1.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};

use super::layout::{API_SERVICE_ADDRESS, Layout, NAME, NODE_ADDRESS, port};

/// User, group and file of each client.
const CLIENTS: [(&str, &str, &str); 7] = [
    ("admin", "kubernetes-admin", "system:masters"),
    ("controller-manager", "system:kube-controller-manager", ""),
    ("scheduler", "system:kube-scheduler", ""),
    ("kubelet", "system:node:paddock-devcluster", "system:nodes"),
    ("proxy", "system:kube-proxy", ""),
    ("router", "system:kube-router", "system:masters"),
    ("apiserver-kubelet-client", "kube-apiserver-kubelet-client", "system:masters"),
];

/// Makes everything that is missing. The files appear together or not at all.
pub fn create(layout: &Layout) -> Result<()> {
    if layout.pki().join(".complete").exists() {
        return Ok(());
    }
    let _ = fs::remove_dir_all(layout.pki());
    let folder = layout.pki();
    fs::create_dir_all(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;

    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::default();
    ca.distinguished_name.push(DnType::CommonName, NAME);
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign];
    let ca_pem = ca.self_signed(&ca_key)?.pem();
    fs::write(folder.join("ca.crt"), &ca_pem)?;
    fs::write(folder.join("ca.key"), ca_key.serialize_pem())?;
    let issuer = Issuer::new(ca, ca_key);

    let mut server = leaf("kube-apiserver", "", ExtendedKeyUsagePurpose::ServerAuth);
    server.subject_alt_names = vec![
        SanType::IpAddress(NODE_ADDRESS.parse()?),
        SanType::IpAddress(API_SERVICE_ADDRESS.parse()?),
        SanType::DnsName("kubernetes.default.svc".try_into()?),
    ];
    write_leaf(&folder, "apiserver", &server, &issuer)?;
    for (file, user, group) in CLIENTS {
        write_leaf(&folder, file, &leaf(user, group, ExtendedKeyUsagePurpose::ClientAuth), &issuer)?;
    }
    let accounts = KeyPair::generate()?;
    fs::write(folder.join("accounts.key"), accounts.serialize_pem())?;
    fs::write(folder.join("accounts.pub"), accounts.public_key_pem())?;
    for (file, ..) in CLIENTS {
        kubeconfig(layout, file)?;
    }
    fs::write(folder.join(".complete"), "")?;
    Ok(())
}

fn leaf(user: &str, group: &str, purpose: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, user);
    if !group.is_empty() {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![purpose];
    params
}

fn write_leaf(folder: &Path, file: &str, params: &CertificateParams, issuer: &Issuer<'_, KeyPair>) -> Result<()> {
    let key = KeyPair::generate()?;
    fs::write(folder.join(format!("{file}.crt")), params.signed_by(&key, issuer)?.pem())?;
    fs::write(folder.join(format!("{file}.key")), key.serialize_pem())?;
    Ok(())
}

fn kubeconfig(layout: &Layout, user: &str) -> Result<()> {
    let path = layout.kubeconfig_of(user);
    let folder = path.parent().context("a kubeconfig lies in a folder")?;
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    let pki = layout.pki();
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: {NAME}\n\
         clusters:\n- name: {NAME}\n  cluster:\n    server: https://{NODE_ADDRESS}:{port}\n    certificate-authority: {pki}/ca.crt\n\
         users:\n- name: {user}\n  user:\n    client-certificate: {pki}/{user}.crt\n    client-key: {pki}/{user}.key\n\
         contexts:\n- name: {NAME}\n  context:\n    cluster: {NAME}\n    user: {user}\n",
        port = port::API,
        pki = pki.display(),
    );
    fs::write(&path, text)?;
    Ok(())
}
