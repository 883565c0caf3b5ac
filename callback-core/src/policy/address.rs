//! Which addresses are public.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The class of an address that is not public; `None` for one that is.
pub(super) fn class(address: IpAddr) -> Option<&'static str> {
    let address = canonical(address);
    if is_metadata(address) {
        return Some("cloud metadata");
    }
    let found = CLASSES.iter().find(|(net, _)| net.contains(&address)).map(|(_, class)| *class);
    // IANA has given out 2000::/3 and nothing else as global unicast.
    found.or_else(|| (address.is_ipv6() && !GLOBAL_UNICAST.contains(&address)).then_some("reserved"))
}

/// The IPv4 address that an IPv6 address leads to, if it does (RFC 4291 §2.5.5.2, RFC 6052 §2.1).
pub(super) fn canonical(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) if NAT64.contains(&v6) => {
            let [.., a, b, c, d] = v6.octets();
            Ipv4Addr::new(a, b, c, d).into()
        }
        _ => address.to_canonical(),
    }
}

/// Where clouds serve credentials to the machine that asks.
pub(super) fn is_metadata(address: IpAddr) -> bool {
    METADATA.contains(&canonical(address))
}

const METADATA: [IpAddr; 9] = [
    v4(169, 254, 169, 254),                    // AWS, Azure, Google, and most others
    v4(169, 254, 170, 2),                      // AWS ECS
    v4(169, 254, 170, 23),                     // AWS EKS
    v4(100, 100, 100, 200),                    // Alibaba
    v4(168, 63, 129, 16),                      // Azure's wire server, in the public range
    v4(192, 0, 0, 192),                        // Oracle
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]), // AWS
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23]),  // AWS EKS
    v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254]),  // Google
];

const NAT64: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);
const GLOBAL_UNICAST: IpNet = IpNet::new_assert(v6([0x2000, 0, 0, 0, 0, 0, 0, 0]), 3);

/// The IANA special-purpose registries for IPv4 and IPv6 (RFC 6890, as of 2025), where not globally reachable, with
/// multicast (RFC 5771, RFC 4291), site-local (RFC 3879), 6to4 (RFC 7526), and Teredo (RFC 4380).
const CLASSES: [(IpNet, &str); 33] = [
    (net4(0, 0, 0, 0, 32), "unspecified"),
    (net4(0, 0, 0, 0, 8), "reserved"),
    (net4(10, 0, 0, 0, 8), "private"),
    (net4(100, 64, 0, 0, 10), "carrier-grade NAT"),
    (net4(127, 0, 0, 0, 8), "loopback"),
    (net4(169, 254, 0, 0, 16), "link-local"),
    (net4(172, 16, 0, 0, 12), "private"),
    (net4(192, 0, 0, 0, 24), "reserved"),
    (net4(192, 0, 2, 0, 24), "documentation"),
    (net4(192, 88, 99, 0, 24), "reserved"),
    (net4(192, 168, 0, 0, 16), "private"),
    (net4(198, 18, 0, 0, 15), "benchmarking"),
    (net4(198, 51, 100, 0, 24), "documentation"),
    (net4(203, 0, 113, 0, 24), "documentation"),
    (net4(224, 0, 0, 0, 4), "multicast"),
    (net4(255, 255, 255, 255, 32), "broadcast"),
    (net4(240, 0, 0, 0, 4), "reserved"),
    (net6([0; 8], 128), "unspecified"),
    (net6([0, 0, 0, 0, 0, 0, 0, 1], 128), "loopback"),
    (net6([0; 8], 96), "IPv4-compatible"),
    (net6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48), "local NAT64"),
    (net6([0x100, 0, 0, 0, 0, 0, 0, 0], 64), "discard-only"),
    (net6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32), "Teredo"),
    (net6([0x2001, 2, 0, 0, 0, 0, 0, 0], 48), "benchmarking"),
    (net6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), "reserved"),
    (net6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32), "documentation"),
    (net6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), "6to4"),
    (net6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), "documentation"),
    (net6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16), "segment routing"),
    (net6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7), "private"),
    (net6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), "link-local"),
    (net6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10), "site-local"),
    (net6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), "multicast"),
];

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6([a, b, c, d, e, f, g, h]: [u16; 8]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h))
}

const fn net4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix))
}

const fn net6(segments: [u16; 8], prefix: u8) -> IpNet {
    IpNet::new_assert(v6(segments), prefix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(address: &str, expected: &str) {
        let found = class(address.parse().unwrap()).unwrap_or("public");
        assert_eq!(found, expected, "{address}");
    }

    #[test]
    fn every_block_is_closed_from_its_first_to_its_last_address() {
        for (first, last, expected) in [
            ("0.0.0.1", "0.255.255.255", "reserved"),
            ("10.0.0.0", "10.255.255.255", "private"),
            ("100.64.0.0", "100.127.255.255", "carrier-grade NAT"),
            ("127.0.0.0", "127.255.255.255", "loopback"),
            ("169.254.0.0", "169.254.255.255", "link-local"),
            ("172.16.0.0", "172.31.255.255", "private"),
            ("192.0.0.0", "192.0.0.255", "reserved"),
            ("192.0.2.0", "192.0.2.255", "documentation"),
            ("192.88.99.0", "192.88.99.255", "reserved"),
            ("192.168.0.0", "192.168.255.255", "private"),
            ("198.18.0.0", "198.19.255.255", "benchmarking"),
            ("198.51.100.0", "198.51.100.255", "documentation"),
            ("203.0.113.0", "203.0.113.255", "documentation"),
            ("224.0.0.0", "239.255.255.255", "multicast"),
            ("240.0.0.0", "255.255.255.254", "reserved"),
            ("::2", "::ffff:ffff", "IPv4-compatible"),
            ("64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff", "local NAT64"),
            ("100::", "100::ffff:ffff:ffff:ffff", "discard-only"),
            ("2001::", "2001:0:ffff:ffff:ffff:ffff:ffff:ffff", "Teredo"),
            ("2001:10::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", "reserved"),
            ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "documentation"),
            ("2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "6to4"),
            ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", "documentation"),
            ("5f00::", "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "segment routing"),
            ("fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "private"),
            ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "link-local"),
            ("fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "site-local"),
            ("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "multicast"),
            ("0:0:0:0:1::", "ff::", "reserved"),
            ("4000::", "5eff::", "reserved"),
        ] {
            check(first, expected);
            check(last, expected);
        }
        check("0.0.0.0", "unspecified");
        check("255.255.255.255", "broadcast");
        check("::", "unspecified");
        check("::1", "loopback");
    }

    #[test]
    fn what_lies_beside_a_block_is_public() {
        for address in [
            "1.0.0.0",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "191.255.255.255",
            "192.0.1.0",
            "192.0.3.0",
            "192.88.98.255",
            "192.88.100.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "198.51.101.0",
            "203.0.114.0",
            "223.255.255.255",
            "2000::",
            "2001:200::",
            "2001:db9::",
            "2003::",
            "2606:4700::1111",
            "3ffe::",
            "3fff:1000::",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
        ] {
            check(address, "public");
        }
    }

    #[test]
    fn cloud_metadata_is_closed_even_where_its_block_is_public() {
        for address in METADATA {
            assert_eq!(class(address), Some("cloud metadata"), "{address}");
        }
        check("::ffff:169.254.169.254", "cloud metadata");
        check("64:ff9b::a83f:8110", "cloud metadata");
    }

    proptest! {
        /// The standard library's own predicates, those that are stable, as a second opinion.
        #[test]
        fn no_private_address_is_public(bits in any::<u32>(), high in any::<u128>()) {
            let v4 = Ipv4Addr::from(bits);
            let special = v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_unspecified();
            let closed = special || v4.is_multicast() || v4.is_broadcast() || v4.is_documentation();
            let in_v6 = |prefix: u128| IpAddr::from(Ipv6Addr::from(prefix | u128::from(bits)));
            for address in [IpAddr::from(v4), v4.to_ipv6_mapped().into(), in_v6(0x64_ff9b << 96)] {
                prop_assert!(!closed || class(address).is_some(), "{}", address);
                prop_assert_eq!(class(address), class(v4.into()));
            }
            prop_assert!(class(v4.to_ipv6_compatible().into()).is_some());
            prop_assert!(class(in_v6(0x2002 << 112)).is_some() && class(in_v6(0x64_ff9b_0001 << 80)).is_some());

            for bits in [high, high | 0xfc << 120, high >> 10 | 0x3fa << 118] {
                let v6 = Ipv6Addr::from(bits);
                let closed = v6.is_unique_local() || v6.is_unicast_link_local() || v6.is_multicast() || v6.is_loopback();
                prop_assert!(!closed || class(v6.into()).is_some(), "{}", v6);
            }
        }
    }
}
