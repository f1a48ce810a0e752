//! Name servers, as a sandbox and whoever examines it ask them.

use std::net::{IpAddr, SocketAddr};

/// Where they listen.
const PORT: u16 = 53;

/// A question for the servers of the root, which every name server answers, if only with a refusal (RFC 1035, 4.1).
pub const ROOT_QUESTION: [u8; 17] = [0x50, 0x44, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];

/// Those that a resolv.conf(5) names.
pub fn name_servers(resolver: &str) -> Vec<SocketAddr> {
    let named = resolver.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok());
    named.map(|server| SocketAddr::new(server, PORT)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_address_is_no_name_server() {
        let named: Vec<String> =
            name_servers("search svc\nnameserver 10.0.0.1\n nameserver fd00::1\nnameserver x\n").iter().map(ToString::to_string).collect();
        assert_eq!(named, ["10.0.0.1:53", "[fd00::1]:53"]);
    }
}
