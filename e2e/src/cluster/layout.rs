//! Where everything is: folders, addresses, ports. One cluster per machine.

use std::path::{Path, PathBuf};

/// Name of the network namespace, of the cgroup and of the node.
pub const NAME: &str = "paddock-devcluster";
/// Address of the node and of the API server, on the cluster's end of a veth pair.
pub const NODE_ADDRESS: &str = "10.215.0.1";
/// The machine's end of that pair. The namespace has no other way out.
pub const HOST_ADDRESS: &str = "10.215.0.2";
/// The same over IPv6: the node and its pods have both families.
pub const NODE_ADDRESS_IPV6: &str = "fd00:10:215::1";
/// Pods.
pub const POD_CIDR: &str = "10.213.0.0/24";
/// Pods, over IPv6.
pub const POD_CIDR_IPV6: &str = "fd00:10:213::/64";
/// Services: those that ask for nothing else have an address of this family alone.
pub const SERVICE_CIDR: &str = "10.214.0.0/24";
/// Services, over IPv6.
pub const SERVICE_CIDR_IPV6: &str = "fd00:10:214::/112";
/// The Service `default/kubernetes`.
pub const API_SERVICE_ADDRESS: &str = "10.214.0.1";
/// Bridge of the pods.
pub const POD_BRIDGE: &str = "pdk-pods";
/// Interfaces of the pair between machine and cluster.
pub const HOST_LINK: &str = "pdk-host";
/// The cluster's end.
pub const NODE_LINK: &str = "pdk-node";

/// Ports on [`NODE_ADDRESS`].
pub mod port {
    /// etcd, for clients.
    pub const ETCD: u16 = 23790;
    /// etcd, for peers.
    pub const ETCD_PEER: u16 = 23800;
    /// kube-apiserver.
    pub const API: u16 = 16443;
    /// kubelet.
    pub const KUBELET: u16 = 10250;
    /// kubelet health.
    pub const KUBELET_HEALTH: u16 = 21248;
    /// kube-controller-manager.
    pub const CONTROLLER_MANAGER: u16 = 21257;
    /// kube-scheduler.
    pub const SCHEDULER: u16 = 21259;
    /// kube-proxy health.
    pub const PROXY_HEALTH: u16 = 21256;
    /// kube-proxy metrics.
    pub const PROXY_METRICS: u16 = 21249;
    /// kube-router health.
    pub const ROUTER_HEALTH: u16 = 21244;
}

/// Folders of the cluster.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Root of this clone.
    pub clone: PathBuf,
    /// Built components and images; shared by all clones.
    pub cache: PathBuf,
    /// What outlives a restart: certificates, images, logs.
    pub state: PathBuf,
    /// What does not: sockets, records of processes.
    pub run: PathBuf,
}

impl Layout {
    /// The layout for the clone at `clone`. `cache` defaults to `$HOME/.cache/paddock`.
    pub fn new(clone: &Path, cache: Option<PathBuf>, home: &Path) -> Self {
        Self {
            clone: clone.to_owned(),
            cache: cache.unwrap_or_else(|| home.join(".cache/paddock")),
            state: PathBuf::from("/var/lib").join(NAME),
            run: PathBuf::from("/run").join(NAME),
        }
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig_of("admin")
    }

    /// The kubeconfig of one component.
    pub fn kubeconfig_of(&self, user: &str) -> PathBuf {
        self.state.join("kubeconfig").join(format!("{user}.yaml"))
    }

    /// Log of one process.
    pub fn log(&self, process: &str) -> PathBuf {
        self.state.join("log").join(format!("{process}.log"))
    }

    /// Audit log of the API server.
    pub fn audit_log(&self) -> PathBuf {
        self.state.join("log/audit.log")
    }

    /// Certificates and keys.
    pub fn pki(&self) -> PathBuf {
        self.state.join("pki")
    }

    /// Generated configuration.
    pub fn config(&self, file: &str) -> PathBuf {
        self.state.join("config").join(file)
    }

    /// Socket of containerd.
    pub fn containerd_socket(&self) -> PathBuf {
        self.run.join("containerd.sock")
    }

    /// The bind mount that keeps the network namespace.
    pub fn network_namespace() -> PathBuf {
        Path::new("/run/netns").join(NAME)
    }
}
