//! Configuration files and command lines of the programs.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use super::component::{Programs, has_sys_resource};
use super::layout::{
    Layout, NAME, NODE_ADDRESS, NODE_ADDRESS_IPV6, POD_BRIDGE, POD_CIDR, POD_CIDR_IPV6, SERVICE_CIDR, SERVICE_CIDR_IPV6, port,
};

/// Image of the pause container.
pub const PAUSE_IMAGE: &str = "docker.io/paddock/pause:v1.36.3";

/// Every file with its content.
fn files(layout: &Layout, programs: &Programs) -> Result<Vec<(PathBuf, String)>> {
    let files = [
        ("containerd.toml", containerd(layout, programs)?),
        ("runsc.toml", "[runsc_config]\nplatform = \"systrap\"\n".to_owned()),
        ("runsc-nonet.toml", "[runsc_config]\nplatform = \"systrap\"\nnetwork = \"none\"\n".to_owned()),
        ("cni/10-pods.conflist", cni()),
        ("kubelet.yaml", kubelet(layout)),
        ("proxy.yaml", proxy(layout)),
        ("audit.yaml", AUDIT_POLICY.to_owned()),
        ("cluster.yaml", CLUSTER_OBJECTS.to_owned()),
    ];
    Ok(files.into_iter().map(|(name, content)| (layout.config(name), content)).collect())
}

/// Writes every file anew.
pub fn write(layout: &Layout, programs: &Programs) -> Result<()> {
    let _ = fs::remove_dir_all(layout.state.join("config"));
    for (path, content) in files(layout, programs)? {
        fs::create_dir_all(path.parent().context("a file lies in a folder")?)?;
        fs::write(path, content)?;
    }
    Ok(())
}

/// Stands for everything that the cluster is started with. A running cluster with another one is an old one.
pub fn fingerprint(layout: &Layout, programs: &Programs) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(programs.search_path());
    for (_, content) in files(layout, programs)? {
        hash.update(content);
    }
    for name in super::lifecycle::PROCESSES {
        hash.update(arguments(layout, name).join(" "));
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Who did what, without bodies: enough to hold the operator's RBAC and its number of writes against.
const AUDIT_POLICY: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: [system:kube-scheduler, system:kube-controller-manager, system:apiserver, system:kube-proxy, system:kube-router]
- level: None
  userGroups: [system:nodes]
- level: Metadata
";

const CLUSTER_OBJECTS: &str = "apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata:
  name: gvisor
handler: gvisor
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata:
  name: gvisor-nonet
handler: gvisor-nonet
";

fn containerd(layout: &Layout, programs: &Programs) -> Result<String> {
    let runtime = "plugins.'io.containerd.cri.v1.runtime'";
    let mut text = format!(
        "version = 3\nroot = '{root}'\nstate = '{state}'\ntemp = '{root}/tmp'\ndisabled_plugins = ['io.containerd.nri.v1.nri']\n\
         [grpc]\naddress = '{socket}'\n\
         [ttrpc]\naddress = '{socket}.ttrpc'\n\
         [plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = '{PAUSE_IMAGE}'\n\
         [{runtime}]\nrestrict_oom_score_adj = {restrict}\nnetns_mounts_under_state_dir = true\n\
         [{runtime}.cni]\nbin_dirs = ['{cni}']\nconf_dir = '{conf}'\n\
         [{runtime}.containerd]\ndefault_runtime_name = 'runc'\n\
         [{runtime}.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n\
         [{runtime}.containerd.runtimes.runc.options]\nBinaryName = '{runc}'\nSystemdCgroup = false\n",
        root = layout.state.join("containerd").display(),
        state = layout.run.join("containerd").display(),
        socket = layout.containerd_socket().display(),
        restrict = !has_sys_resource(),
        cni = programs.folder_of("bridge")?.display(),
        conf = layout.config("cni").display(),
        runc = programs.path("runc")?.display(),
    );
    for (handler, file) in [("gvisor", "runsc.toml"), ("gvisor-nonet", "runsc-nonet.toml")] {
        text += &format!(
            "[{runtime}.containerd.runtimes.{handler}]\nruntime_type = 'io.containerd.runsc.v1'\n\
             [{runtime}.containerd.runtimes.{handler}.options]\nTypeUrl = 'io.containerd.runsc.v1.options'\nConfigPath = '{}'\n",
            layout.config(file).display()
        );
    }
    Ok(text)
}

fn cni() -> String {
    format!(
        "{{\"cniVersion\":\"1.0.0\",\"name\":\"pods\",\"plugins\":[{{\"type\":\"bridge\",\"bridge\":\"{POD_BRIDGE}\",\"isGateway\":true,\
         \"ipMasq\":false,\"hairpinMode\":true,\"ipam\":{{\"type\":\"host-local\",\"dataDir\":\"/run/{NAME}/ipam\",\
         \"ranges\":[[{{\"subnet\":\"{POD_CIDR}\"}}],[{{\"subnet\":\"{POD_CIDR_IPV6}\"}}]],\
         \"routes\":[{{\"dst\":\"0.0.0.0/0\"}},{{\"dst\":\"::/0\"}}]}}}},\
         {{\"type\":\"portmap\",\"capabilities\":{{\"portMappings\":true}}}}]}}"
    )
}

fn kubelet(layout: &Layout) -> String {
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: '::'
port: {kubelet}
healthzBindAddress: {NODE_ADDRESS}
healthzPort: {health}
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true}}
  x509: {{clientCAFile: {pki}/ca.crt}}
authorization: {{mode: Webhook}}
cgroupDriver: cgroupfs
cgroupRoot: /{NAME}
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
containerRuntimeEndpoint: unix://{socket}
podLogsDir: {state}/pod-logs
volumePluginDir: {state}/volume-plugins
maxPods: 200
featureGates: {{KubeletCrashLoopBackOffMax: true}}
crashLoopBackOff: {{maxContainerRestartPeriod: 2s}}
serializeImagePulls: false
evictionHard: {{memory.available: 200Mi}}
imageGCHighThresholdPercent: 100
resolvConf: ''
clusterDomain: cluster.local
clusterDNS: [{NODE_ADDRESS}]
",
        kubelet = port::KUBELET,
        health = port::KUBELET_HEALTH,
        pki = layout.pki().display(),
        socket = layout.containerd_socket().display(),
        state = layout.state.display(),
    )
}

fn proxy(layout: &Layout) -> String {
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clusterCIDR: {POD_CIDR},{POD_CIDR_IPV6}
hostnameOverride: {NAME}
healthzBindAddress: {NODE_ADDRESS}:{health}
metricsBindAddress: {NODE_ADDRESS}:{metrics}
conntrack: {{maxPerCore: 0, min: 0}}
clientConnection: {{kubeconfig: {kubeconfig}}}
",
        health = port::PROXY_HEALTH,
        metrics = port::PROXY_METRICS,
        kubeconfig = layout.kubeconfig_of("proxy").display(),
    )
}

/// Command line of a process.
pub fn arguments(layout: &Layout, process: &str) -> Vec<String> {
    let pki = layout.pki().display().to_string();
    let state = layout.state.display().to_string();
    let lines = match process {
        "etcd" => format!(
            "--name=node --data-dir={state}/etcd
             --listen-client-urls=http://{NODE_ADDRESS}:{client} --advertise-client-urls=http://{NODE_ADDRESS}:{client}
             --listen-peer-urls=http://{NODE_ADDRESS}:{peer} --initial-advertise-peer-urls=http://{NODE_ADDRESS}:{peer}
             --initial-cluster=node=http://{NODE_ADDRESS}:{peer} --unsafe-no-fsync --log-level=warn",
            client = port::ETCD,
            peer = port::ETCD_PEER,
        ),
        "kube-apiserver" => format!(
            "--etcd-servers=http://{NODE_ADDRESS}:{etcd} --bind-address={NODE_ADDRESS} --advertise-address={NODE_ADDRESS} --secure-port={api}
             --service-cluster-ip-range={SERVICE_CIDR},{SERVICE_CIDR_IPV6} --client-ca-file={pki}/ca.crt
             --tls-cert-file={pki}/apiserver.crt --tls-private-key-file={pki}/apiserver.key
             --kubelet-client-certificate={pki}/apiserver-kubelet-client.crt --kubelet-client-key={pki}/apiserver-kubelet-client.key
             --kubelet-preferred-address-types=InternalIP --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction
             --service-account-issuer=https://kubernetes.default.svc --service-account-key-file={pki}/accounts.pub
             --service-account-signing-key-file={pki}/accounts.key --allow-privileged=true
             --audit-policy-file={audit} --audit-log-path={log} --audit-log-maxsize=200",
            etcd = port::ETCD,
            api = port::API,
            audit = layout.config("audit.yaml").display(),
            log = layout.audit_log().display(),
        ),
        "kube-controller-manager" => format!(
            "--kubeconfig={kubeconfig} --authentication-kubeconfig={kubeconfig} --authorization-kubeconfig={kubeconfig}
             --bind-address={NODE_ADDRESS} --secure-port={port} --leader-elect=false --use-service-account-credentials=true
             --service-account-private-key-file={pki}/accounts.key --root-ca-file={pki}/ca.crt
             --cluster-signing-cert-file={pki}/ca.crt --cluster-signing-key-file={pki}/ca.key
             --cluster-cidr={POD_CIDR},{POD_CIDR_IPV6} --allocate-node-cidrs=true
             --service-cluster-ip-range={SERVICE_CIDR},{SERVICE_CIDR_IPV6}",
            kubeconfig = layout.kubeconfig_of("controller-manager").display(),
            port = port::CONTROLLER_MANAGER,
        ),
        "kube-scheduler" => format!(
            "--kubeconfig={kubeconfig} --authentication-kubeconfig={kubeconfig} --authorization-kubeconfig={kubeconfig}
             --bind-address={NODE_ADDRESS} --secure-port={port} --leader-elect=false",
            kubeconfig = layout.kubeconfig_of("scheduler").display(),
            port = port::SCHEDULER,
        ),
        "containerd" => format!("--config={}", layout.config("containerd.toml").display()),
        "kubelet" => format!(
            "--config={} --kubeconfig={} --hostname-override={NAME} --node-ip={NODE_ADDRESS},{NODE_ADDRESS_IPV6} --root-dir={state}/kubelet --cert-dir={pki}/kubelet",
            layout.config("kubelet.yaml").display(),
            layout.kubeconfig_of("kubelet").display(),
        ),
        "kube-proxy" => format!("--config={}", layout.config("proxy.yaml").display()),
        "kube-router" => format!(
            "--kubeconfig={} --hostname-override={NAME} --run-router=false --run-firewall=true --run-service-proxy=false
             --service-cluster-ip-range={SERVICE_CIDR} --service-cluster-ip-range={SERVICE_CIDR_IPV6}
             --enable-ipv6=true --health-port={} --iptables-sync-period=1m --v=1",
            layout.kubeconfig_of("router").display(),
            port::ROUTER_HEALTH,
        ),
        _ => String::new(),
    };
    lines.split_whitespace().map(str::to_owned).collect()
}
