//! What an address is, by the registries of IANA for special-purpose addresses (RFC 6890).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// What an address is. Only [`Class::Global`] is dialled without being allowed by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A global unicast address.
    Global,
    /// `0.0.0.0/8`, `::`: this host.
    Unspecified,
    /// `127.0.0.0/8`, `::1`.
    Loopback,
    /// RFC 1918, `fc00::/7`, `fec0::/10`.
    Private,
    /// `100.64.0.0/10`, behind the NAT of a carrier; some clouds have their services there.
    Shared,
    /// `169.254.0.0/16`, `fe80::/10`: here are the metadata services of clouds.
    LinkLocal,
    /// Multicast and broadcast.
    Multicast,
    /// An IPv4 address within an IPv6 address: mapped, compatible, NAT64, 6to4, Teredo.
    Embedded,
    /// For documentation, benchmarks, protocols, or the future.
    Reserved,
}

impl fmt::Display for Class {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Global => "a global address",
            Self::Unspecified => "an unspecified address",
            Self::Loopback => "a loopback address",
            Self::Private => "a private address",
            Self::Shared => "a shared address",
            Self::LinkLocal => "a link-local address",
            Self::Multicast => "a multicast address",
            Self::Embedded => "an address within an address",
            Self::Reserved => "a reserved address",
        })
    }
}

/// The class of an address.
pub fn class(address: IpAddr) -> Class {
    match address {
        IpAddr::V4(address) => class_v4(address),
        IpAddr::V6(address) => class_v6(address),
    }
}

fn class_v4(address: Ipv4Addr) -> Class {
    match address.octets() {
        [0, ..] => Class::Unspecified,
        [127, ..] => Class::Loopback,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Class::Private,
        [100, 64..=127, ..] => Class::Shared,
        [169, 254, ..] => Class::LinkLocal,
        [224..=239, ..] | [255, 255, 255, 255] => Class::Multicast,
        // Protocol assignments, documentation (three nets), the relays of 6to4, benchmarks, the future.
        [192, 0, 0 | 2, _] | [198, 51, 100, _] | [203, 0, 113, _] | [192, 88, 99, _] | [198, 18 | 19, ..] | [240..=255, ..] => {
            Class::Reserved
        }
        _ => Class::Global,
    }
}

fn class_v6(address: Ipv6Addr) -> Class {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Class::Unspecified,
        [0, 0, 0, 0, 0, 0, 0, 1] => Class::Loopback,
        // Compatible and mapped; NAT64, by RFC 6052 and RFC 8215; Teredo; 6to4.
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] | [0x64, 0xff9b, ..] | [0x2001, 0, ..] | [0x2002, ..] => {
            Class::Embedded
        }
        [0xfc00..=0xfdff | 0xfec0..=0xfeff, ..] => Class::Private,
        [0xfe80..=0xfebf, ..] => Class::LinkLocal,
        [0xff00..=0xffff, ..] => Class::Multicast,
        // Protocol assignments (ORCHID and benchmarks among them) and documentation lie within what is global otherwise.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Class::Reserved,
        [0x2000..=0x3fff, ..] => Class::Global,
        _ => Class::Reserved,
    }
}

/// Which addresses are dialled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// What is allowed beside global addresses: whatever one of these allows.
    pub allowed: Vec<ByName>,
    /// The cluster's pods, Services and nodes, which may have global addresses.
    pub denied: Vec<IpNet>,
}

/// Nets that are allowed by name, as several policies say it: an address is allowed if there is one, and each of them names it. A net names what
/// is not global, or of the cluster, only if it lies wholly among that: who writes `0.0.0.0/0` means the world, and who writes `10.0.0.0/8` a
/// company's net, and not the cluster within it. What two say is not what both have in common: that is smaller, and would name more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByName(pub Vec<Vec<IpNet>>);

impl ByName {
    fn allows(&self, address: IpAddr, names: impl Fn(&IpNet) -> bool) -> bool {
        !self.0.is_empty() && self.0.iter().all(|nets| nets.iter().any(|net| net.contains(&address) && names(net)))
    }
}

impl Addresses {
    /// `Err` with what is wrong with it.
    pub fn check(&self, address: IpAddr) -> Result<(), String> {
        if let Some(net) = self.denied.iter().find(|net| net.contains(&address)) {
            let is_allowed = self.allowed.iter().any(|allowed| allowed.allows(address, |named| net.contains(named)));
            return if is_allowed { Ok(()) } else { Err(format!("{address} is of the cluster ({net})")) };
        }
        match class(address) {
            Class::Global => Ok(()),
            // What is within it is what would have to be named.
            Class::Embedded => Err(format!("{address} is {}", Class::Embedded)),
            own if self.allowed.iter().any(|allowed| allowed.allows(address, |named| lies_in(named, own))) => Ok(()),
            other => Err(format!("{address} is {other}")),
        }
    }
}

/// Whether a net lies wholly among the addresses of a class that it touches and that is not global: all the blocks of a class are apart from each
/// other, so that the ends of a net that is wider than a block, or the beginning of its upper half, are not of its class.
fn lies_in(net: &IpNet, own: Class) -> bool {
    let upper_half = net.subnets(net.prefix_len() + 1).ok().and_then(|mut halves| halves.nth(1));
    let is_own = |address| class(address) == own;
    is_own(net.network()) && is_own(net.broadcast()) && upper_half.is_none_or(|half| is_own(half.network()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    #[rstest]
    #[case::dns("8.8.8.8", Class::Global)]
    #[case::next_to_private("11.0.0.0", Class::Global)]
    #[case::next_to_private_172("172.32.0.0", Class::Global)]
    #[case::next_to_private_192("192.169.0.0", Class::Global)]
    #[case::next_to_shared("100.128.0.0", Class::Global)]
    #[case::six("2606:4700::1111", Class::Global)]
    #[case::last_global("3ffe:ffff::1", Class::Global)]
    #[case::zero("0.0.0.0", Class::Unspecified)]
    #[case::this_net("0.1.2.3", Class::Unspecified)]
    #[case::any("::", Class::Unspecified)]
    #[case::loopback("127.255.255.254", Class::Loopback)]
    #[case::loopback_six("::1", Class::Loopback)]
    #[case::ten("10.255.255.255", Class::Private)]
    #[case::hundred_seventy_two("172.31.255.255", Class::Private)]
    #[case::hundred_ninety_two("192.168.0.1", Class::Private)]
    #[case::unique_local("fd00::1", Class::Private)]
    #[case::unique_local_first("fc00::1", Class::Private)]
    #[case::site_local("fec0::1", Class::Private)]
    #[case::carrier("100.100.100.200", Class::Shared)]
    #[case::metadata("169.254.169.254", Class::LinkLocal)]
    #[case::metadata_six("fd00:ec2::254", Class::Private)]
    #[case::link_local("fe80::1", Class::LinkLocal)]
    #[case::multicast("224.0.0.1", Class::Multicast)]
    #[case::broadcast("255.255.255.255", Class::Multicast)]
    #[case::multicast_six("ff02::1", Class::Multicast)]
    #[case::mapped("::ffff:169.254.169.254", Class::Embedded)]
    #[case::mapped_global("::ffff:8.8.8.8", Class::Embedded)]
    #[case::compatible("::127.0.0.1", Class::Embedded)]
    #[case::translated("::ffff:0:127.0.0.1", Class::Embedded)]
    #[case::nat64("64:ff9b::7f00:1", Class::Embedded)]
    #[case::local_nat64("64:ff9b:1::a00:1", Class::Embedded)]
    #[case::six_to_four("2002:7f00:1::", Class::Embedded)]
    #[case::teredo("2001::1", Class::Embedded)]
    #[case::protocol_assignments("192.0.0.170", Class::Reserved)]
    #[case::documentation_one("192.0.2.1", Class::Reserved)]
    #[case::documentation_two("198.51.100.1", Class::Reserved)]
    #[case::documentation_three("203.0.113.1", Class::Reserved)]
    #[case::relay("192.88.99.1", Class::Reserved)]
    #[case::benchmark("198.19.255.255", Class::Reserved)]
    #[case::future("240.0.0.1", Class::Reserved)]
    #[case::benchmark_six("2001:2::1", Class::Reserved)]
    #[case::orchid("2001:20::1", Class::Reserved)]
    #[case::documentation_six("2001:db8::1", Class::Reserved)]
    #[case::documentation_six_two("3fff::1", Class::Reserved)]
    #[case::discard("100::1", Class::Reserved)]
    #[case::segment_routing("5f00::1", Class::Reserved)]
    #[case::unassigned("4000::1", Class::Reserved)]
    fn every_address_has_its_class(#[case] address: &str, #[case] expected: Class) {
        assert_eq!(class(address.parse().unwrap()), expected);
    }

    fn by_name(nets: Value) -> ByName {
        serde_json::from_value(nets).unwrap()
    }

    #[rstest]
    #[case::nobody_says_anything(json!([]), "10.1.2.3", false)]
    #[case::one_says_nothing(json!([["10.0.0.0/8"], []]), "10.1.2.3", false)]
    #[case::both(json!([["10.0.0.0/8"], ["192.168.0.0/16", "10.1.0.0/16"]]), "10.1.2.3", true)]
    #[case::one(json!([["10.0.0.0/8"], ["10.1.0.0/16"]]), "10.2.2.3", false)]
    #[case::who_means_the_world_names_nothing_private(json!([["0.0.0.0/0"], ["10.1.0.0/16"]]), "10.1.2.3", false)]
    #[case::who_means_a_company_does_not_name_pods(json!([["10.0.0.0/8"], ["10.244.0.0/16"]]), "10.244.1.1", false)]
    #[case::both_name_pods(json!([["10.244.0.0/16"], ["10.244.1.0/24"]]), "10.244.1.1", true)]
    fn what_each_of_several_names_is_allowed(#[case] nets: Value, #[case] address: &str, #[case] expected: bool) {
        let addresses = Addresses { allowed: vec![by_name(nets)], denied: vec!["10.244.0.0/16".parse().unwrap()] };
        assert_eq!(addresses.check(address.parse().unwrap()).is_ok(), expected);
    }

    #[rstest]
    #[case::the_world("0.0.0.0/0", "8.8.8.8", true)]
    #[case::the_world_is_not_a_private_net("0.0.0.0/0", "10.1.2.3", false)]
    #[case::nor_metadata("0.0.0.0/0", "169.254.169.254", false)]
    #[case::half_of_it("128.0.0.0/1", "192.168.0.1", false)]
    #[case::what_begins_and_ends_global("160.0.0.0/4", "172.16.0.1", false)]
    #[case::private("10.0.0.0/8", "10.1.2.3", true)]
    #[case::private_and_pods("10.0.0.0/8", "10.244.1.1", false)]
    #[case::pods_by_name("10.244.0.0/16", "10.244.1.1", true)]
    #[case::one_pod("10.244.1.1/32", "10.244.1.1", true)]
    #[case::another_pod("10.244.1.1/32", "10.244.1.2", false)]
    #[case::nodes("34.0.0.0/8", "34.1.2.3", false)]
    #[case::nodes_by_name("34.1.0.0/16", "34.1.2.3", true)]
    #[case::beside_nodes("34.0.0.0/8", "34.2.2.3", true)]
    #[case::metadata("169.254.169.254/32", "169.254.169.254", true)]
    #[case::loopback("127.0.0.0/8", "127.0.0.1", true)]
    #[case::multicast_and_the_future("224.0.0.0/3", "224.0.0.1", false)]
    #[case::multicast("224.0.0.0/4", "224.0.0.1", true)]
    #[case::six("::/0", "fd00::1", false)]
    #[case::private_six("fd00::/8", "fd00::1", true)]
    #[case::hidden_by_name("::ffff:0:0/96", "::ffff:10.244.1.1", false)]
    #[case::translated_by_name("64:ff9b::/96", "64:ff9b::af4:101", false)]
    #[case::hidden("0.0.0.0/0", "::ffff:10.1.2.3", false)]
    fn a_net_allows_what_it_names(#[case] allowed: &str, #[case] address: &str, #[case] expected: bool) {
        let denied = ["10.244.0.0/16", "34.1.0.0/16"].map(|net| net.parse().unwrap()).into();
        let addresses = Addresses { allowed: vec![by_name(json!([[allowed]]))], denied };
        assert_eq!(addresses.check(address.parse().unwrap()).is_ok(), expected);
    }

    proptest! {
        #[test]
        fn a_net_that_lies_in_a_class_that_is_not_global_has_no_other_address(
            (bits, bits_within) in any::<(u32, u32)>(),
            (wide, within) in any::<(u128, u128)>(),
            prefix in 0_u8..=128,
        ) {
            let four = IpNet::new(IpAddr::V4(bits.into()), prefix / 4).unwrap().trunc();
            let six = IpNet::new(IpAddr::V6(wide.into()), prefix).unwrap().trunc();
            for net in [four, six] {
                let address: IpAddr = match net {
                    IpNet::V4(net) => Ipv4Addr::from(u32::from(net.network()) | (u32::from(net.hostmask()) & bits_within)).into(),
                    IpNet::V6(net) => Ipv6Addr::from(u128::from(net.network()) | (u128::from(net.hostmask()) & within)).into(),
                };
                let own = class(net.network());
                prop_assert!(own == Class::Global || !lies_in(&net, own) || class(address) == own, "{net} has {address}, {:?} and {own:?}", class(address));
            }
        }
    }

    #[test]
    fn what_is_not_global_must_be_allowed_by_name_and_so_must_what_is_of_the_cluster() {
        let addresses = Addresses {
            allowed: vec![by_name(json!([["10.1.0.0/16"]]))],
            denied: vec!["10.0.0.0/8".parse().unwrap(), "34.0.0.0/8".parse().unwrap()],
        };
        let check = |address: &str| addresses.check(address.parse().unwrap());
        assert_eq!(check("10.1.2.3"), Ok(()));
        assert_eq!(check("10.2.2.3"), Err("10.2.2.3 is of the cluster (10.0.0.0/8)".into()));
        assert_eq!(check("34.1.1.1"), Err("34.1.1.1 is of the cluster (34.0.0.0/8)".into()));
        assert_eq!(check("169.254.169.254"), Err("169.254.169.254 is a link-local address".into()));
        assert_eq!(check("8.8.8.8"), Ok(()));
        // An address that hides another is not allowed by what allows the other.
        assert!(check("::ffff:10.1.2.3").is_err());
    }
}
