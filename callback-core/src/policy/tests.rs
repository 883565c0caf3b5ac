use super::*;
use proptest::prelude::*;

const OPEN: &str = "open";

fn policy(allow: &[&str], deny: &[&str]) -> Policy {
    let policy = allow.iter().fold(Policy::default(), |policy, rule| policy.allow(rule.parse().unwrap()));
    deny.iter().fold(policy, |policy, rule| policy.deny(rule.parse().unwrap()))
}

#[track_caller]
fn check(policy: &Policy, dsn: &str, expected: &str) {
    let verdict = policy.judge(&dsn.parse().unwrap());
    assert_eq!(verdict.map_or_else(|forbidden| forbidden.to_string(), |()| OPEN.to_owned()), expected, "{dsn}");
}

#[track_caller]
fn check_address(policy: &Policy, dsn: &str, address: &str, expected: &str) {
    let dsn: Dsn = dsn.parse().unwrap();
    let verdict = policy.judge_address(dsn.scheme(), &dsn.hosts()[0].host, address.parse().unwrap());
    assert_eq!(
        verdict.map_or_else(|forbidden| forbidden.to_string(), |()| OPEN.to_owned()),
        expected,
        "{dsn} {address}"
    );
}

#[test]
fn by_default_encrypted_schemes_are_open_to_public_addresses() {
    let policy = Policy::default();
    check(&policy, "https://example.com/", OPEN);
    check(&policy, "wss://example.com:8443/", OPEN);
    check(&policy, "https://8.8.8.8/", OPEN);
    check(&policy, "https://[2606:4700::1111]/", OPEN);
    check(&policy, "session://kR3mZ0wq", OPEN);
    check(&policy, "memory://42", OPEN);
    check(&policy, "file:///tmp/out", OPEN);
    check(&policy, "http://example.com/", "plain http is not open to this host");
    check(&policy, "ws://8.8.8.8/", "plain ws is not open to this host");
    check(&policy, "amqp:///?queue=q", "amqp is open to registered clusters only");
    check(&policy, "amqps://broker.example/", "amqp is open to registered clusters only");
    check(&policy, "kafka+ssl://broker.example/topic", "kafka is open to registered clusters only");
}

#[test]
fn no_spelling_of_a_private_address_passes() {
    for host in [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "017700000001",
        "0177.1",
        "127.0.0.1.",
        "①②⑦.0.0.1",
        "１２７.０.０.１",
        "127。0。0。1",
        "%31%32%37.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::127.0.0.1]",
        "localhost",
        "LocalHost.",
        "a.localhost",
    ] {
        for scheme in ["http", "https", "ws", "wss", "redis"] {
            check(&Policy::default(), &format!("{scheme}://{host}/"), "loopback addresses are not open");
        }
    }
    for (host, class) in [
        ("[::127.0.0.1]", "IPv4-compatible"),
        ("[2002:7f00:1::]", "6to4"),
        ("[2001:0:7f00:1::]", "Teredo"),
        ("[64:ff9b:1::7f00:1]", "local NAT64"),
        ("169.254.169.254", "cloud metadata"),
        ("0xa9fea9fe", "cloud metadata"),
        ("0", "unspecified"),
        ("192.168.1", "private"),
        ("[fd00::1]", "private"),
        ("[fe80::1]", "link-local"),
    ] {
        check(&Policy::default(), &format!("https://{host}/"), &format!("{class} addresses are not open"));
    }
}

#[test]
fn an_address_rule_opens_plain_http_to_what_it_names() {
    let policy = policy(&["10.0.0.0/8"], &[]);
    check(&policy, "http://10.1.2.3/", OPEN);
    check(&policy, "https://10.1.2.3/", OPEN);
    check(&policy, "ws://[::ffff:10.1.2.3]/", OPEN);
    check(&policy, "http://[64:ff9b::10.1.2.3]/", "private addresses are not open");
    check(&policy, "http://8.8.8.8/", "plain http is not open to this host");
    check(&policy, "http://192.168.0.1/", "private addresses are not open");
    check(&policy, "http://localhost/", "loopback addresses are not open");

    // What a name resolves to is known at connect only.
    check(&policy, "http://name.example/", OPEN);
    check_address(&policy, "http://name.example/", "10.1.2.3", OPEN);
    check_address(&policy, "http://name.example/", "8.8.8.8", "plain http is not open to this host");
    check_address(&policy, "https://name.example/", "8.8.8.8", OPEN);
    check_address(&policy, "https://name.example/", "192.168.0.1", "private addresses are not open");
}

#[test]
fn a_host_rule_opens_plain_http_and_no_private_address() {
    let policy = policy(&["*.partner.example"], &[]);
    check(&policy, "http://a.partner.example/", OPEN);
    check(&policy, "http://partner.example/", "plain http is not open to this host");
    check_address(&policy, "http://a.partner.example/", "8.8.8.8", OPEN);
    check_address(&policy, "http://a.partner.example/", "10.1.2.3", "private addresses are not open");
    check_address(&policy, "https://a.partner.example/", "127.0.0.1", "loopback addresses are not open");
}

#[test]
fn a_scheme_rule_opens_the_scheme_to_public_addresses() {
    let policy = policy(&["http:", "amqp:", "kafka:"], &[]);
    check(&policy, "http://example.com/", OPEN);
    check(&policy, "http://127.0.0.1/", "loopback addresses are not open");
    check(&policy, "ws://example.com/", "plain ws is not open to this host");
    check(&policy, "amqp://broker.example/", OPEN);
    check(&policy, "amqp://127.1/", "loopback addresses are not open");
    check(&policy, "amqps://broker.example/", "amqp is open to registered clusters only");
    check(&policy, "kafka://broker.example/topic", "kafka is open to registered clusters only");
}

#[test]
fn loopback_is_opened_for_tests() {
    let policy = Policy::default().allow(Rule::loopback());
    for host in ["127.0.0.1:8080", "[::1]:8080", "localhost:8080", "a.localhost", "[::ffff:127.0.0.1]"] {
        check(&policy, &format!("http://{host}/"), OPEN);
        check(&policy, &format!("wss://{host}/"), OPEN);
    }
    check_address(&policy, "http://localhost/", "10.0.0.1", "private addresses are not open");
}

#[test]
fn metadata_is_opened_by_its_own_address_alone() {
    let wide = policy(&["0.0.0.0/0", "::/0", "169.254.0.0/16"], &[]);
    check(&wide, "http://169.254.1.1/", OPEN);
    check(&wide, "http://169.254.169.254/", "cloud metadata addresses are not open");
    check(&wide, "http://[::ffff:169.254.169.254]/", "cloud metadata addresses are not open");
    check(&wide, "http://[fd00:ec2::254]/", "cloud metadata addresses are not open");
    check(&policy(&["169.254.169.254"], &[]), "http://169.254.169.254/", OPEN);
}

#[test]
fn deny_wins() {
    let policy = policy(
        &["http:", "10.0.0.0/8", "a.example"],
        &["10.1.0.0/16", "8.8.8.0/24", "a.example", "*.b.example", "wss:", ":8443", "custom:"],
    );
    check(&policy, "http://10.2.0.1/", OPEN);
    check(&policy, "http://10.1.0.1/", "the address is closed by a rule");
    check(&policy, "https://[::ffff:8.8.8.8]/", "the address is closed by a rule");
    check(&policy, "https://[64:ff9b::808:808]/", "the address is closed by a rule");
    check(&policy, "https://A.example./", "the host is closed by a rule");
    check(&policy, "https://c.b.example/", "the host is closed by a rule");
    check(&policy, "wss://example.com/", "the scheme `wss` is closed by a rule");
    check(&policy, "custom://anything/", "the scheme `custom` is closed by a rule");
    check(&policy, "https://example.com:8443/", "port 8443 is closed by a rule");
    check_address(&policy, "https://example.com/", "8.8.8.8", "the address is closed by a rule");
    check_address(&policy, "https://a.example/", "9.9.9.9", "the host is closed by a rule");
    check(&Policy::default().deny(":443".parse().unwrap()), "https://example.com/", "port 443 is closed by a rule");
}

#[test]
fn a_port_of_another_service_is_opened_by_a_port_rule() {
    check(&Policy::default(), "https://example.com:22/", "port 22 belongs to another service and is not open");
    check(&Policy::default(), "redis://example.com:6379/", OPEN);
    check(&policy(&[":22"], &[]), "https://example.com:22/", OPEN);
}

#[test]
fn a_closed_policy_is_a_list_of_what_is_open() {
    let policy = Policy::closed().allow("partner.example".parse().unwrap());
    check(&policy, "https://partner.example/", OPEN);
    check(&policy, "https://example.com/", "https is not open to this host");
    check(&policy, "session://kR3mZ0wq", "the scheme `session` is not open");
    check_address(&policy, "https://partner.example/", "127.0.0.1", "loopback addresses are not open");
}

#[test]
fn a_forbidden_dsn_says_so_by_its_kind() {
    let forbidden = Policy::default().judge(&"https://127.0.0.1/".parse().unwrap()).unwrap_err();
    let error = DsnError::from(forbidden.clone());
    assert_eq!((error.kind(), error.to_string()), (crate::DsnErrorKind::Forbidden, forbidden.to_string()));
}

/// Base and prefix of what RFC 1918, RFC 1122, RFC 3927 and RFC 6598 set aside.
const PRIVATE: &[(u32, u32)] =
    &[(0x0a00_0000, 8), (0x7f00_0000, 8), (0xa9fe_0000, 16), (0xac10_0000, 12), (0xc0a8_0000, 16), (0x6440_0000, 10)];

proptest! {
    #[test]
    fn no_private_address_passes_by_default(
        net in prop::sample::select(PRIVATE),
        low in any::<u32>(),
        scheme in "https?|wss?|custom",
    ) {
        let (base, prefix) = net;
        let address = base | low >> prefix;
        let dotted = Ipv4Addr::from(address);
        let [a, b, ..] = dotted.octets();
        for host in [
            dotted.to_string(), address.to_string(), format!("{address:#x}"), format!("0{address:o}"),
            format!("{a}.{b:#x}.{}", address & 0xffff), format!("[::ffff:{dotted}]"), format!("[::{dotted}]"),
            format!("[64:ff9b::{dotted}]"), format!("[2002:{:x}:{:x}::1]", address >> 16, address & 0xffff),
        ] {
            let dsn: Dsn = format!("{scheme}://{host}/").parse().unwrap();
            prop_assert!(Policy::default().judge(&dsn).is_err(), "{}", dsn);
        }
        for ip in [IpAddr::from(dotted), dotted.to_ipv6_mapped().into(), dotted.to_ipv6_compatible().into()] {
            prop_assert!(Policy::default().judge_address(&scheme, &Host::Domain("example.com".into()), ip).is_err());
        }
    }
}
