//! A real Kubernetes with gVisor on one Linux machine: etcd, the control plane, a kubelet, containerd, runc, runsc, CNI plugins and a
//! NetworkPolicy controller, all built from pinned Go modules.
//!
//! Everything lives in one network namespace and one cgroup of its own, so that taking the cluster away is removing those two.

pub mod cgroup;
pub mod command;
pub mod component;
pub mod config;
pub mod images;
pub mod layout;
pub mod lifecycle;
pub mod network;
pub mod pki;
pub mod process;
pub mod requirements;
