use super::{super::options::pointer, *};
use std::time::Duration;

/// The body that the method gets when `members` are its params.
#[track_caller]
fn check_taken(members: &str, rest: &str) {
    let call = params(members);
    assert!(call.had_options());
    assert_eq!(call.body(), &format!(r#"{{"id":7,"method":"m","params":{rest}}}"#));
}

#[test]
fn flat_and_nested_options_are_the_same() {
    let all = |call: &Call| {
        let options = call.options();
        let Some(Target::Dsn(dsn)) = &options.callback else { panic!("a Dsn") };
        assert_eq!(dsn.expose(), "https://example.com/cb");
        assert_eq!(options.timeout, Some(Duration::from_millis(10_500)));
        assert_eq!(options.ray_id.as_deref(), Some("ray 1"));
        assert!(options.ignore_cache);
    };
    for members in [
        r#"{"$rpc.callback":"https://example.com/cb","$rpc.timeout":10.5,"$rpc.rayId":"ray 1","$rpc.ignoreCache":true}"#,
        r#"{"$rpc":{"callback":"https://example.com/cb","timeout":10.5,"rayId":"ray 1","ignoreCache":true}}"#,
        r#"{"$RPC":{"callback":"https:\/\/example.com/cb"},"$Rpc.timeout":1.05e1,"$rpc":{"rayId":"ray\u00201"},"$rPC.ignoreCache":true}"#,
        r#"{"\u0024rpc.callback":"https://example.com/cb","$rpc\u002etimeout":10.5,"\u0024rpc":{"ray\u0049d":"ray 1","ignoreCache":true}}"#,
    ] {
        check_taken(members, "{}");
        all(&params(members));
    }
    assert_eq!(params(r#"{"$rpc.callback":true}"#).options().callback, Some(Target::Topic));
    assert_eq!(*params(r#"{"$rpc":{}}"#).options(), RpcOptions::default());
}

#[test]
fn only_options_are_taken_out() {
    check_taken(r#"{"$rpc.callback":true}"#, "{}");
    check_taken(r#"{ "$rpc" : { } }"#, "{}");
    check_taken(
        r#"{"b":1.50, "$rpc.timeout":10, "a" : [ 1, 2 ],"\u0063":"\/"}"#,
        r#"{"b":1.50,"a":[ 1, 2 ],"\u0063":"\/"}"#,
    );
    check_taken(r#"{"$rpc.rayId":"x","callback":"mine","$rpcs":1}"#, r#"{"callback":"mine","$rpcs":1}"#);
    let call = call(r#"{"x":1e5,"params":{"$rpc.rayId":"x"}, "method":"m","y":{ "z":1 }}"#);
    assert_eq!(call.body(), r#"{"x":1e5,"params":{},"method":"m","y":{ "z":1 }}"#);
    assert!(call.is_notification());
}

#[test]
fn an_option_has_its_own_values() {
    let wrong = [
        ("callback", &["false", "null", "1", "{}", "[]", r#""""#, r#""no dsn""#, r#""\ud800""#][..]),
        ("timeout", &["9.999", "120.001", "-10", "1e999", "null", r#""30""#, "true", "[30]"]),
        ("rayId", &[r#""""#, r#""é""#, r#""a\nb""#, "1.5", "1e5", "null", "true", "{}"]),
        ("ignoreCache", &["0", "1", "null", r#""true""#]),
        ("Callback", &[r#""https://example.com""#]),
        ("", &["1"]),
        ("a/b", &["1"]),
    ];
    for (name, values) in wrong {
        for value in values {
            check_params(&format!(r#"{{"$rpc.{name}":{value}}}"#), &pointer("/params", &format!("$rpc.{name}")));
            check_params(&format!(r#"{{"$RPC":{{"{name}":{value}}}}}"#), &pointer("/params/$RPC", name));
        }
    }
    check_params(&format!(r#"{{"$rpc.rayId":"{}"}}"#, "a".repeat(129)), "/params/$rpc.rayId");
    for nested in ["null", "true", "[]", r#""https://example.com""#] {
        check_params(&format!(r#"{{"$rpc":{nested}}}"#), "/params/$rpc");
    }

    assert_eq!(params(r#"{"$rpc.timeout":10}"#).options().timeout, Some(Duration::from_secs(10)));
    assert_eq!(params(r#"{"$rpc.timeout":120.0}"#).options().timeout, Some(Duration::from_secs(120)));
    assert_eq!(
        params(r#"{"$rpc.rayId":-12345678901234567890123}"#).options().ray_id.as_deref(),
        Some("-12345678901234567890123")
    );
    let longest = "~".repeat(128);
    assert_eq!(params(&format!(r#"{{"$rpc.rayId":"{longest}"}}"#)).options().ray_id.as_ref(), Some(&longest));
    assert!(!params(r#"{"$rpc.ignoreCache":false}"#).options().ignore_cache);
}

#[test]
fn an_option_is_given_once() {
    check_params(r#"{"$rpc.callback":true,"$rpc.callback":true}"#, "/params/$rpc.callback");
    check_params(r#"{"$RPC.callback":true,"$rpc.callback":true}"#, "/params/$rpc.callback");
    check_params(r#"{"$rpc.callback":true,"$rpc":{"callback":true}}"#, "/params/$rpc/callback");
    check_params(r#"{"$rpc":{"callback":true},"$rpc.callback":true}"#, "/params/$rpc.callback");
    check_params(r#"{"$rpc":{"callback":true,"callback":true}}"#, "/params/$rpc/callback");
    check_params(r#"{"$rpc":{"timeout":10},"$RPC":{"timeout":10}}"#, "/params/$RPC/timeout");
    check_params(r#"{"$rpc.ignoreCache":false,"$rpc":{"ignoreCache":false}}"#, "/params/$rpc/ignoreCache");
}

#[test]
fn an_unknown_option_is_told_the_known_ones_and_a_bad_dsn_its_reason() {
    let reason = |members: &str| {
        let rejected = parse(format!(r#"{{"id":7,"method":"m","params":{members}}}"#)).expect_err("a refusal");
        rejected.error().data.as_ref().expect("data")["reason"].as_str().expect("a reason").to_owned()
    };
    let unknown = reason(r#"{"$rpc.priority":1}"#);
    assert!(["callback", "timeout", "rayId", "ignoreCache"].iter().all(|name| unknown.contains(name)), "{unknown}");
    let error = "https://user:hunter2@exa mple.com/".parse::<crate::Dsn>().expect_err("no Dsn");
    let told = reason(r#"{"$rpc.callback":"https://user:hunter2@exa mple.com/"}"#);
    assert_eq!(told, error.to_string());
    assert!(!told.contains("hunter2"));
}
