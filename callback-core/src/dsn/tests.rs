use super::*;
use proptest::prelude::*;
use std::collections::HashSet;

#[track_caller]
fn dsn(text: &str) -> Dsn {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[track_caller]
fn hosts(text: &str, expected: &[&str]) {
    let hosts: Vec<String> = dsn(text).hosts().iter().map(ToString::to_string).collect();
    assert_eq!(hosts, expected, "{text}");
}

#[track_caller]
fn refused(text: &str, reason: &str) {
    let error = text.parse::<Dsn>().expect_err(text);
    assert_eq!(error.kind(), DsnErrorKind::Invalid);
    assert!(error.to_string().contains(reason), "{text:?} is refused because: {error}");
}

#[test]
fn the_parts_are_as_written() {
    let dsn = dsn("HTTPS://us%65r:p%40ss@ExAmple.com:8443/a%2Fb/?x=%20&y");
    assert_eq!(dsn.scheme(), "https");
    assert_eq!(dsn.authority(), "ExAmple.com:8443");
    assert_eq!((dsn.username(), dsn.password()), (Some("user"), Some("p@ss")));
    assert_eq!((dsn.path(), dsn.query()), ("/a%2Fb/", Some("x=%20&y")));
    assert_eq!(dsn.decoded_path().as_deref(), Ok("/a/b/"));
    assert_eq!(dsn.url().map(Url::as_str), Some("https://example.com:8443/a%2Fb/?x=%20&y"));
    assert_eq!(dsn.to_string(), "https://***:***@example.com:8443/a%2Fb/?x=***&***");
    assert_eq!(format!("{dsn:?}"), format!("Dsn({dsn})"));
}

#[test]
fn what_is_absent_is_absent() {
    let bare = dsn("wss://example.com");
    assert_eq!((bare.path(), bare.query(), bare.username(), bare.password()), ("", None, None, None));
    assert_eq!(dsn("wss://example.com?").query(), Some(""));
    assert_eq!(dsn("kafka:///topic").hosts(), []);
    assert_eq!(dsn("file:///tmp/out").path(), "/tmp/out");
    assert_eq!(dsn("amqp://").path(), "");
    assert!(dsn("amqp://host").url().is_none());
    assert_eq!(dsn("https://:token@example.com").username(), Some(""));
}

#[test]
fn a_cluster_has_a_name_that_is_no_address() {
    let (long, longer) = ("n".repeat(63), "n".repeat(64));
    for name in ["a", "7up", "orders-2_eu", "-", &long] {
        assert!(Dsn::is_cluster_name(name), "{name}");
        assert_eq!(dsn(&format!("amqp://{name}/")).authority(), name);
        hosts(&format!("kafka://{name}/topic"), &[name]);
    }
    for name in ["", "A", "a.b", "7", "127", "0x7f", "[::1]", "a:1", "a/b", "a@b", "a,b", "a%62", "ä", "xn--", &longer]
    {
        assert!(!Dsn::is_cluster_name(name), "{name}");
    }
}

#[test]
fn kafka_has_several_hosts() {
    hosts("kafka://b1:9092,[2001:db8::1]:9093,127.1/topic?key=a,b", &["b1:9092", "[2001:db8::1]:9093", "127.0.0.1"]);
    hosts("kafka+sasl+ssl://user:pass@b1,b2/topic", &["b1", "b2"]);
    refused("kafka://b1,,b2/topic", "host is empty");
    refused("amqp://b1,b2/", "several hosts");
    refused("https://a.example,b.example/", "several hosts");
}

#[test]
fn every_spelling_of_an_address_is_that_address_in_every_scheme() {
    for scheme in ["http", "https", "ws", "wss", "amqp", "amqps", "kafka", "custom"] {
        for spelling in [
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "0177.0.0.1",
            "0177.0.0.1.",
            "①②⑦.0.0.1",
            "１２７.0.0.1",
            "127。0。0。1",
            "%31%32%37.1",
        ] {
            hosts(&format!("{scheme}://{spelling}/"), &["127.0.0.1"]);
        }
        hosts(&format!("{scheme}://[::FFFF:127.0.0.1]:80/"), &["[::ffff:7f00:1]:80"]);
    }
}

#[test]
fn names_are_ascii_and_lower_case() {
    hosts("amqp://BÜCHER.example:5672/", &["xn--bcher-kva.example:5672"]);
    hosts("https://bücher.example/", &["xn--bcher-kva.example"]);
    hosts("https://example.com./", &["example.com."]);
    hosts("custom://under_score/", &["under_score"]);
}

#[test]
fn a_session_is_its_address() {
    let dsn = dsn("session://kR3_mZ0-wq");
    assert_eq!((dsn.authority(), dsn.hosts().len()), ("kR3_mZ0-wq", 0));
    assert_eq!(dsn.to_string(), "session://***");
    for text in [
        "session://",
        "session://a/",
        "session://a?b",
        "session://a.b",
        "session://u@a",
        "session://a:1",
        "session://ä",
    ] {
        assert!(text.parse::<Dsn>().is_err(), "{text}");
    }
    refused(&format!("session://{}", "a".repeat(129)), "1 to 128");
}

#[test]
fn what_two_parsers_read_differently_is_refused() {
    refused("", "empty");
    refused("example.com", "scheme://");
    refused("https:example.com", "scheme://");
    refused("https:/example.com", "scheme://");
    refused("1http://example.com", "scheme://");
    refused("ht_tp://example.com", "scheme://");
    refused("https:///example.com", "host is missing");
    refused("https://", "host is missing");
    refused("https://:443/", "host is empty");
    refused("https://good.example\\@evil.example/", "backslash");
    refused("https://a@b@example.com/", "%40");
    refused("https://@example.com/", "empty");
    refused("https://a%3Ab@example.com/", "colon");
    refused("https://a%0Ab@example.com/", "control");
    refused("https://%ff@example.com/", "UTF-8");
    refused("https://ü@example.com/", "percent-encoded");
    refused("https://example.com/ü", "percent-encoded");
    refused("https://example.com/a#b", "fragment");
    refused("https://exam\tple.com/", "control");
    refused(" https://example.com/", "spaces");
    refused("https://example.com/\u{3000}", "spaces");
    refused("https://example.com/%zz", "hexadecimal");
    refused("https://example.com:0/", "port");
    refused("https://example.com:65536/", "port");
    refused("https://example.com:+80/", "port");
    refused("https://example.com:/", "port");
    refused("https://2001:db8::1/", "brackets");
    refused("https://[2001:db8::1]x/", "brackets");
    refused("https://[fe80::1%25eth0]/", "not valid");
    refused("https://1.2.3.256/", "not valid");
    refused("https://a..b/", "host name");
    refused("https://a*b/", "host name");
    refused("https://exa%2Fmple.com/", "not valid");
    refused("https://a／b/", "not valid");
    refused(&format!("https://example.com/{}", "a".repeat(Dsn::MAX_LEN)), "2048");
}

#[test]
fn the_longest_dsn_is_taken() {
    let text = format!("https://example.com/{}", "a".repeat(Dsn::MAX_LEN - "https://example.com/".len()));
    assert_eq!(dsn(&text).expose(), text);
}

#[test]
fn the_case_of_the_scheme_makes_no_difference() {
    let set: HashSet<Dsn> = [dsn("KAFKA://b/T"), dsn("kafka://b/T"), dsn("kafka://b/t")].into();
    assert_eq!(set.len(), 2);
}

#[test]
fn json_is_parsed_and_its_error_holds_no_secret() {
    assert_eq!(serde_json::from_str::<Dsn>(r#""wss://example.com/a""#).unwrap(), dsn("wss://example.com/a"));
    let error = serde_json::from_str::<Dsn>(r#""wss://user:hunter2@example.com:0""#).unwrap_err();
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

/// Texts that look like a Dsn, with each part mostly good.
fn structured() -> impl Strategy<Value = String> {
    let scheme = prop_oneof![
        9 => "https?|wss?|amqps?|kafka(\\+ssl)?|memory|session|x-own|HTTPS",
        1 => "[a-zA-Z+.-]{0,5}",
    ];
    let userinfo = prop_oneof![6 => "", 3 => "[a-z%]{1,3}(:[a-z0-9]{0,3}(%4[0-9a-f])?)?@", 1 => "\\PC{0,4}@"];
    let host = prop_oneof![
        4 => "[a-z0-9]{1,5}(\\.[a-z0-9_-]{1,4}){0,2}\\.?",
        2 => "(0x)?[0-9a-f]{1,3}(\\.[0-9]{1,3}){0,3}",
        2 => "\\[(::)?[0-9a-f]{1,4}(:[0-9a-f]{0,4}){1,7}\\]",
        1 => "[a-c](\\.example)?(:1)?,[d-f]:2,[g-i]\\.example",
        1 => "\\PC{0,6}",
    ];
    let port = prop_oneof![2 => "", 1 => ":[0-9]{0,6}"];
    let path = "(/[a-z0-9./]{0,8}(%[0-9a-f]{2})?){0,2}";
    let query = "(\\?([a-z]{0,2}=?(%[0-9a-f]{2})?[a-z0-9+]{0,2}&?){0,3})?";
    (scheme, userinfo, host, port, path, query)
        .prop_map(|(scheme, user, host, port, path, query)| format!("{scheme}://{user}{host}{port}{path}{query}"))
}

proptest! {
    #[test]
    fn any_text_is_a_dsn_or_an_error(text in prop_oneof![any::<String>(), structured()]) {
        let Ok(dsn) = text.parse::<Dsn>() else { return Ok(()) };
        prop_assert_eq!(dsn.expose().parse(), Ok(dsn.clone()));
        prop_assert_eq!(dsn.destination().as_str().parse(), Ok(dsn.destination()));
        let _ = (dsn.path(), dsn.query(), dsn.params().finish(), dsn.decoded_path());
        if let Some(url) = dsn.url() {
            prop_assert_eq!(url.host_str(), Some(&*dsn.hosts()[0].host.to_string()));
            prop_assert_eq!((url.username(), url.password()), ("", None));
        }
        for HostPort { host, .. } in dsn.hosts() {
            prop_assert_eq!(&Host::parse(&host.to_string()).unwrap(), host);
        }
    }

    #[test]
    fn no_secret_is_shown(
        secret in "Secret[A-Za-z0-9_-]{8,16}",
        scheme in "https|wss|amqps|kafka|x-own",
        broken in prop_oneof![Just(""), Just("%"), Just("#"), Just("@"), Just(" "), Just("\u{e4}")],
    ) {
        let texts = [
            format!("{scheme}://user:{secret}@example.com/path?token={secret}&{secret}"),
            format!("{scheme}://{secret}@example.com/path?a=b={secret}{broken}"),
            format!("{scheme}://user:{secret}{broken}@example.com/path"),
            format!("{scheme}://user:{broken}{secret}@example.com:99999/path"),
            format!("session://{secret}{broken}"),
        ];
        for text in texts {
            let shown = match text.parse::<Dsn>() {
                Ok(dsn) => format!("{dsn} {dsn:?} {:?} {:?}", dsn.destination(), dsn.params().take::<u8>("token")),
                Err(error) => format!("{error} {error:?}"),
            };
            prop_assert!(!shown.contains(&secret), "{} in {}", secret, shown);
        }
    }
}

#[test]
fn what_a_url_would_rewrite_is_refused() {
    for rest in ["/a/./b", "/a/../c", "/%2e%2E/a", "/a`{b}", "/?a='", "/?a=\"", "/?a=<>"] {
        refused(&format!("https://example.com{rest}"), "percent-encoded already");
    }
    for rest in ["", "/", "/?", "?a=b", "/a//b;c=d/~*'()!$@:^|[]", "/?x=%c3%A4&y=a+b&&z&[]={}|`^~*()!$@:/?"] {
        let text = format!("https://example.com{rest}");
        assert_eq!(text.parse::<Dsn>().expect("valid").expose(), text);
    }
}
