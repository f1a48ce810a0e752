//! The network namespace of the cluster. It is joined to the machine by one veth pair and has no default route, so that no packet of a
//! pod can leave the machine. Bridge, iptables rules and ipsets live and die with it.

use anyhow::Result;

use super::command::{call, succeeds};
use super::layout::{HOST_ADDRESS, HOST_LINK, Layout, NAME, NODE_ADDRESS, NODE_ADDRESS_IPV6, NODE_LINK, SERVICE_CIDR};

/// Makes the namespace and the pair.
pub fn create() -> Result<()> {
    call("ip", &["netns", "add", NAME])?;
    call("ip", &["link", "add", HOST_LINK, "type", "veth", "peer", "name", NODE_LINK, "netns", NAME])?;
    call("ip", &["address", "add", &format!("{HOST_ADDRESS}/30"), "dev", HOST_LINK])?;
    call("ip", &["link", "set", HOST_LINK, "up"])?;
    inside(&["ip", "address", "add", &format!("{NODE_ADDRESS}/30"), "dev", NODE_LINK])?;
    // Nobody else is on this link who could have the address.
    inside(&["ip", "address", "add", &format!("{NODE_ADDRESS_IPV6}/64"), "dev", NODE_LINK, "nodad"])?;
    inside(&["ip", "link", "set", NODE_LINK, "up"])?;
    inside(&["ip", "link", "set", "lo", "up"])?;
    // What the API server sends to a Service needs a way before kube-proxy gives it another. At its end nobody answers for these addresses.
    inside(&["ip", "route", "add", SERVICE_CIDR, "dev", NODE_LINK, "src", NODE_ADDRESS])?;
    for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding", "bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"] {
        inside(&["sh", "-c", &format!("echo 1 > /proc/sys/net/{switch}")])?;
    }
    Ok(())
}

/// Runs a command in the namespace.
pub fn inside(words: &[&str]) -> Result<String> {
    let namespace = format!("--net={}", Layout::network_namespace().display());
    call("nsenter", &[&[namespace.as_str(), "--"], words].concat())
}

/// Takes everything away; harmless when nothing is there.
pub fn remove() {
    succeeds(std::process::Command::new("ip").args(["link", "delete", HOST_LINK]));
    succeeds(std::process::Command::new("ip").args(["netns", "delete", NAME]));
}
