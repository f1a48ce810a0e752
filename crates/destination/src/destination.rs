//! What a run asks to connect to, as its author writes it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::authority::{Authority, Host, parse_port};
use crate::pattern::{BadPattern, HostPattern};

/// The port of TLS where none is written.
const TLS_PORT: u16 = 443;
/// The port of plain HTTP where none is written.
pub(crate) const HTTP_PORT: u16 = 80;

/// `HOST`, `HOST:PORT`, `http://HOST`, `http://HOST:PORT`, or `tcp://NET:PORT`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// Where to.
    pub to: Reach,
    /// At this port.
    pub port: u16,
}

/// Names or addresses, and with them what is spoken there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reach {
    /// Hosts by their names, over TLS.
    Hosts(HostPattern),
    /// Hosts by their names, over HTTP that nothing protects.
    Plain(HostPattern),
    /// Addresses, over whatever the script speaks.
    Net(IpNet),
}

/// Why a text is no destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadDestination {
    /// The port is missing where there is no usual one, or is none.
    #[error("a port of 1 to 65535 is missing")]
    Port,
    /// Another scheme than `tcp` and `http`.
    #[error("a host is written without a scheme, with http:// where nothing protects what is said, and addresses with tcp://")]
    Scheme,
    /// An address is written like a host.
    #[error("addresses are written with tcp://, as in tcp://192.0.2.0/24:5432")]
    Address,
    /// What stands behind `tcp://` is neither an address nor a net.
    #[error("behind tcp:// stands an address or a net, one of IPv6 in brackets, and a port")]
    Net,
    /// No net as policies write it.
    #[error("a net is written ADDRESS/PREFIX")]
    Cidr,
    /// A net with bits of a host in it: it is not clear what is meant.
    #[error("the net has bits beyond its prefix")]
    HostBits,
    /// The name is none.
    #[error(transparent)]
    Pattern(#[from] BadPattern),
}

impl Destination {
    /// Reads what a person wrote.
    pub fn parse(text: &str) -> Result<Self, BadDestination> {
        if let Some(rest) = text.strip_prefix("tcp://") {
            let (net, port) = rest.rsplit_once(':').ok_or(BadDestination::Port)?;
            return Ok(Self { to: Reach::Net(parse_net(net)?), port: parse_port(port).map_err(|_| BadDestination::Port)? });
        }
        if let Some(rest) = text.strip_prefix("http://") {
            let (hosts, port) = hosts_and_port(rest, HTTP_PORT)?;
            return Ok(Self { to: Reach::Plain(hosts), port });
        }
        if text.contains("://") {
            return Err(BadDestination::Scheme);
        }
        let (hosts, port) = hosts_and_port(text, TLS_PORT)?;
        Ok(Self { to: Reach::Hosts(hosts), port })
    }
}

fn hosts_and_port(text: &str, usual: u16) -> Result<(HostPattern, u16), BadDestination> {
    if text.starts_with('[') || text.parse::<IpAddr>().is_ok() || text.parse::<IpNet>().is_ok() {
        return Err(BadDestination::Address);
    }
    let (hosts, port) = match text.rsplit_once(':') {
        Some((hosts, port)) => (hosts, parse_port(port).map_err(|_| BadDestination::Port)?),
        None => (text, usual),
    };
    if hosts.parse::<Ipv4Addr>().is_ok() {
        return Err(BadDestination::Address);
    }
    Ok((HostPattern::parse(hosts)?, port))
}

fn parse_net(text: &str) -> Result<IpNet, BadDestination> {
    let read = |text: &str| text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| BadDestination::Net);
    let net = match text.strip_prefix('[') {
        Some(inner) => read(inner.strip_suffix(']').ok_or(BadDestination::Net)?).ok().filter(|net| net.addr().is_ipv6()),
        None => read(text).ok().filter(|net| net.addr().is_ipv4()),
    };
    let net = net.ok_or(BadDestination::Net)?;
    if net.addr() == net.network() { Ok(net) } else { Err(BadDestination::HostBits) }
}

/// What a proxy is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A tunnel, in which is said what the proxy does not read.
    Tunnel,
    /// An answer to a request for `http://`.
    Http,
}

impl Destination {
    /// What would have to be asked for, so that a proxy may be asked for this. Addresses are reached by tunnels alone.
    pub fn of(authority: &Authority, way: Way) -> Self {
        let to = match (&authority.host, way) {
            (Host::Name(name), Way::Tunnel) => Reach::Hosts(HostPattern::Exact(name.clone())),
            (Host::Name(name), Way::Http) => Reach::Plain(HostPattern::Exact(name.clone())),
            (Host::Address(address), _) => Reach::Net((*address).into()),
        };
        Self { to, port: authority.port }
    }
}

impl Reach {
    /// Reads a net as policies write it, `ADDRESS/PREFIX`.
    pub fn of_cidr(text: &str) -> Result<Self, BadDestination> {
        let net: IpNet = text.parse().map_err(|_| BadDestination::Cidr)?;
        if net.addr() == net.network() { Ok(Self::Net(net)) } else { Err(BadDestination::HostBits) }
    }

    /// Whether it means this host, reached this way.
    pub fn has(&self, host: &Host, way: Way) -> bool {
        match (self, host, way) {
            (Self::Hosts(hosts), Host::Name(name), Way::Tunnel) | (Self::Plain(hosts), Host::Name(name), Way::Http) => hosts.matches(name),
            (Self::Net(net), Host::Address(address), Way::Tunnel) => net.contains(address),
            (Self::Hosts(_) | Self::Plain(_) | Self::Net(_), ..) => false,
        }
    }

    /// The names that it means, if it means names.
    pub fn hosts(&self) -> Option<&HostPattern> {
        match self {
            Self::Hosts(hosts) | Self::Plain(hosts) => Some(hosts),
            Self::Net(_) => None,
        }
    }

    /// Whether it means everything that `other` means.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Hosts(own), Self::Hosts(other)) | (Self::Plain(own), Self::Plain(other)) => own.covers(other),
            (Self::Net(own), Self::Net(other)) => own.contains(other),
            // What a name leads to is not known here, and what is spoken is not the same.
            (Self::Hosts(_) | Self::Plain(_) | Self::Net(_), _) => false,
        }
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hosts(hosts) => write!(formatter, "{hosts}"),
            Self::Plain(hosts) => write!(formatter, "http://{hosts}"),
            Self::Net(net) => {
                let is_one = net.prefix_len() == net.max_prefix_len();
                match (net.addr(), is_one) {
                    (IpAddr::V4(address), true) => write!(formatter, "tcp://{address}"),
                    (IpAddr::V6(address), true) => write!(formatter, "tcp://[{address}]"),
                    (IpAddr::V4(_), false) => write!(formatter, "tcp://{net}"),
                    (IpAddr::V6(_), false) => write!(formatter, "tcp://[{net}]"),
                }
            }
        }
    }
}

/// In one spelling, whatever its author chose: the port is always there.
impl fmt::Display for Destination {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.to, self.port)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::host::BadHost;

    #[rstest]
    #[case::host("api.example.com", Ok("api.example.com:443"))]
    #[case::port("api.example.com:8443", Ok("api.example.com:8443"))]
    #[case::wide("*.Example.com.", Ok("*.example.com:443"))]
    #[case::letters("b\u{fc}cher.example:443", Ok("xn--bcher-kva.example:443"))]
    #[case::plain("http://API.example.com", Ok("http://api.example.com:80"))]
    #[case::plain_port("http://*.example.com:8080", Ok("http://*.example.com:8080"))]
    #[case::plain_path("http://api.example.com/", Err(BadDestination::Pattern(BadPattern::Host(BadHost::Character))))]
    #[case::plain_user("http://a@api.example.com", Err(BadDestination::Pattern(BadPattern::Host(BadHost::Character))))]
    #[case::plain_address("http://192.0.2.7:80", Err(BadDestination::Address))]
    #[case::plain_six("http://[2001:db8::1]", Err(BadDestination::Address))]
    #[case::plain_twice("http://http://a.example.com", Err(BadDestination::Port))]
    #[case::net("tcp://192.0.2.0/24:5432", Ok("tcp://192.0.2.0/24:5432"))]
    #[case::address("tcp://192.0.2.7:5432", Ok("tcp://192.0.2.7:5432"))]
    #[case::net_of_one("tcp://192.0.2.7/32:5432", Ok("tcp://192.0.2.7:5432"))]
    #[case::six("tcp://[2001:db8::/32]:5432", Ok("tcp://[2001:db8::/32]:5432"))]
    #[case::one_of_six("tcp://[2001:db8:0::1]:5432", Ok("tcp://[2001:db8::1]:5432"))]
    #[case::everything_of_six("tcp://[::/0]:1", Ok("tcp://[::/0]:1"))]
    #[case::empty("", Err(BadDestination::Pattern(BadPattern::Host(BadHost::Length))))]
    #[case::star("*", Err(BadDestination::Pattern(BadPattern::Star)))]
    #[case::public_suffix("*.co.uk", Err(BadDestination::Pattern(BadPattern::PublicSuffix)))]
    #[case::url("https://api.example.com", Err(BadDestination::Scheme))]
    #[case::upper_scheme("TCP://192.0.2.7:1", Err(BadDestination::Scheme))]
    #[case::path("api.example.com/x", Err(BadDestination::Pattern(BadPattern::Host(BadHost::Character))))]
    #[case::port_zero("api.example.com:0", Err(BadDestination::Port))]
    #[case::no_port_after_all("api.example.com:", Err(BadDestination::Port))]
    #[case::two_ports("api.example.com:1:2", Err(BadDestination::Pattern(BadPattern::Host(BadHost::Character))))]
    #[case::bare_address("192.0.2.7", Err(BadDestination::Address))]
    #[case::bare_address_and_port("192.0.2.7:443", Err(BadDestination::Address))]
    #[case::bare_net("192.0.2.0/24", Err(BadDestination::Address))]
    #[case::bare_six("2001:db8::1", Err(BadDestination::Address))]
    #[case::bare_six_in_brackets("[2001:db8::1]:443", Err(BadDestination::Address))]
    #[case::net_without_port("tcp://192.0.2.0/24", Err(BadDestination::Port))]
    #[case::six_without_brackets("tcp://2001:db8::1:5432", Err(BadDestination::Net))]
    #[case::four_in_brackets("tcp://[192.0.2.7]:5432", Err(BadDestination::Net))]
    #[case::name_over_tcp("tcp://db.example.com:5432", Err(BadDestination::Net))]
    #[case::host_bits("tcp://192.0.2.7/24:5432", Err(BadDestination::HostBits))]
    #[case::octal("tcp://0300.0.2.7:5432", Err(BadDestination::Net))]
    #[case::zone("tcp://[fe80::1%eth0]:1", Err(BadDestination::Net))]
    fn a_destination_is_read_in_one_way_or_not_at_all(#[case] text: &str, #[case] expected: Result<&str, BadDestination>) {
        assert_eq!(Destination::parse(text).map(|one| one.to_string()), expected.map(str::to_owned));
    }

    #[rstest]
    #[case("api.example.com:8443", Way::Tunnel, "api.example.com:8443")]
    #[case("api.example.com:80", Way::Http, "http://api.example.com:80")]
    #[case("192.0.2.7:5432", Way::Tunnel, "tcp://192.0.2.7:5432")]
    #[case("[2001:db8::1]:5432", Way::Tunnel, "tcp://[2001:db8::1]:5432")]
    fn what_a_proxy_was_asked_for_can_be_asked_for(#[case] asked: &str, #[case] way: Way, #[case] expected: &str) {
        let authority = Authority::parse(asked).unwrap();
        let destination = Destination::of(&authority, way);
        assert_eq!((destination.to_string().as_str(), Destination::parse(expected)), (expected, Ok(destination.clone())));
        for other in [Way::Tunnel, Way::Http] {
            assert_eq!(destination.to.has(&authority.host, other), other == way);
        }
    }

    #[test]
    fn an_address_is_never_asked_for_over_http() {
        let authority = Authority::parse("192.0.2.7:80").unwrap();
        assert!(!Destination::of(&authority, Way::Http).to.has(&authority.host, Way::Http));
    }

    fn reach(text: &str) -> Reach {
        Destination::parse(&format!("{text}:1")).unwrap().to
    }

    #[rstest]
    #[case::four("10.20.0.0/16", Ok("tcp://10.20.0.0/16"))]
    #[case::one("10.20.0.7/32", Ok("tcp://10.20.0.7"))]
    #[case::six("2001:db8::/32", Ok("tcp://[2001:db8::/32]"))]
    #[case::no_prefix("10.20.0.7", Err(BadDestination::Cidr))]
    #[case::host_bits("10.20.0.7/16", Err(BadDestination::HostBits))]
    #[case::name("example.com/8", Err(BadDestination::Cidr))]
    #[case::brackets("[2001:db8::]/32", Err(BadDestination::Cidr))]
    fn a_net_of_a_policy(#[case] text: &str, #[case] expected: Result<&str, BadDestination>) {
        assert_eq!(Reach::of_cidr(text).map(|reach| reach.to_string()), expected.map(str::to_owned));
    }

    #[rstest]
    #[case("*.example.com", "api.example.com", true)]
    #[case("api.example.com", "*.example.com", false)]
    #[case("tcp://10.0.0.0/8", "tcp://10.1.0.0/16", true)]
    #[case("tcp://10.1.0.0/16", "tcp://10.0.0.0/8", false)]
    #[case("tcp://10.0.0.0/8", "tcp://10.0.0.1", true)]
    #[case("tcp://0.0.0.0/0", "tcp://[::/0]", false)]
    #[case("tcp://[::/0]", "tcp://10.0.0.1", false)]
    #[case("tcp://0.0.0.0/0", "api.example.com", false)]
    #[case("*.example.com", "tcp://10.0.0.1", false)]
    #[case("http://*.example.com", "http://api.example.com", true)]
    #[case("http://api.example.com", "http://*.example.com", false)]
    #[case("*.example.com", "http://api.example.com", false)]
    #[case("http://*.example.com", "api.example.com", false)]
    #[case("tcp://0.0.0.0/0", "http://api.example.com", false)]
    fn what_a_reach_covers(#[case] one: &str, #[case] other: &str, #[case] expected: bool) {
        assert_eq!(reach(one).covers(&reach(other)), expected);
    }

    fn any_reach() -> impl Strategy<Value = Reach> {
        let four = (any::<[u8; 1]>(), 0_u8..=10).prop_map(|([last], prefix)| {
            let net = IpNet::new(IpAddr::from([10, last, 0, 0]), prefix).unwrap();
            Reach::Net(net.trunc())
        });
        let names = prop::sample::select(vec!["example.com", "*.example.com", "a.example.com", "*.a.example.com", "b.a.example.com"]);
        let plain = names.clone().prop_map(|name| reach(&format!("http://{name}")));
        prop_oneof![four, names.prop_map(reach), plain]
    }

    proptest! {
        #[test]
        fn what_covers_has_all_that_the_other_has(one in any_reach(), other in any_reach(), last in any::<u8>()) {
            let hosts = [format!("10.{last}.0.0:1"), "b.a.example.com:1".to_owned()].map(|text| Authority::parse(&text).unwrap().host);
            for host in hosts {
                for way in [Way::Tunnel, Way::Http] {
                    prop_assert!(!one.covers(&other) || !other.has(&host, way) || one.has(&host, way));
                }
            }
            prop_assert!(one.covers(&one));
        }

        #[test]
        fn what_is_written_is_read_back(to in any_reach(), port in 1_u16..) {
            let written = Destination { to, port };
            prop_assert_eq!(Destination::parse(&written.to_string()), Ok(written));
        }

        #[test]
        fn whatever_is_written_ends_in_an_answer(text in "\\PC{0,60}|(tcp://|http://)?[\\[\\]0-9a-f:./*-]{0,40}") {
            if let Ok(read) = Destination::parse(&text) {
                prop_assert_eq!(Destination::parse(&read.to_string()), Ok(read));
            }
        }
    }
}
