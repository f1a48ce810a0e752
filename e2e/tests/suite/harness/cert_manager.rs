//! cert-manager's own controllers and cainjector, beside the cluster, for the tests that need certificates of it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use paddock_e2e::cluster::command::run;
use paddock_e2e::cluster::component;

use super::{kubectl, layout};

/// Where the Secrets of a ClusterIssuer are.
const NAMESPACE: &str = "cert-manager";

/// Makes certificates for as long as this is there. Then it is gone, with its kinds and all objects of them.
pub struct CertManager {
    process: Child,
    kinds: String,
}

impl CertManager {
    /// With the ClusterIssuer `cluster-ca`, whose authority signed itself.
    pub fn begin() -> Self {
        let program = component::build_one(&layout(), "cert-manager").unwrap();
        kubectl(&["create", "namespace", NAMESPACE], "").unwrap();
        let kinds = kinds();
        kubectl(&["apply", "--server-side", "--filename", &kinds], "").unwrap();
        kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "--filename", &kinds], "").unwrap();
        let log = File::create(layout().clone.join("target/cert-manager.log")).unwrap();
        let process = Command::new(program).arg(layout().kubeconfig()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let begun = Self { process, kinds };
        kubectl(&["create", "--filename", "-"], ISSUERS).unwrap();
        kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", "clusterissuer/cluster-ca"], "").unwrap();
        begun
    }
}

impl Drop for CertManager {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = kubectl(&["delete", "--ignore-not-found", "--filename", &self.kinds], "");
        let _ = kubectl(&["delete", "--ignore-not-found", "namespace", NAMESPACE], "");
    }
}

/// The kinds as the module carries them.
fn kinds() -> String {
    let folder: PathBuf = layout().clone.join("e2e/components/cert-manager");
    let mut list = Command::new("go");
    list.current_dir(folder).env("GOWORK", "off").args(["list", "-m", "-f", "{{.Dir}}", "github.com/cert-manager/cert-manager"]);
    let module = run(&mut list).unwrap();
    let crds = Path::new(module.trim()).join("deploy/crds");
    let of = |name: &str| crds.join(format!("cert-manager.io_{name}.yaml")).display().to_string();
    ["certificaterequests", "certificates", "clusterissuers", "issuers"].map(of).join(",")
}

const ISSUERS: &str = r"
apiVersion: cert-manager.io/v1
kind: ClusterIssuer
metadata: {name: of-itself}
spec: {selfSigned: {}}
---
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {name: cluster-ca, namespace: cert-manager}
spec:
  isCA: true
  commonName: cluster-ca
  secretName: cluster-ca
  privateKey: {algorithm: ECDSA}
  issuerRef: {name: of-itself, kind: ClusterIssuer}
---
apiVersion: cert-manager.io/v1
kind: ClusterIssuer
metadata: {name: cluster-ca}
spec: {ca: {secretName: cluster-ca}}
";
