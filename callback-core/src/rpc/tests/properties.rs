use super::*;
use proptest::{collection::vec, prelude::*};
use std::time::Duration;

/// A JSON text of moderate depth, with white space where JSON allows some.
fn json_text() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|value| value.to_string()),
        any::<i64>().prop_map(|value| value.to_string()),
        "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,9})?([eE][+-]?[0-9]{1,4})?",
        any::<String>().prop_map(|text| Value::from(text).to_string()),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let array = vec(inner.clone(), 0..4).prop_map(|items| format!("[ {} ]", items.join(" ,\n")));
        prop_oneof![array, members(inner).prop_map(|members| object(&members))]
    })
}

/// Members with names that differ from each other and stand nowhere under `$rpc`.
fn members(value: impl Strategy<Value = String>) -> impl Strategy<Value = Vec<String>> {
    vec(("\\PC{0,6}", value), 0..5).prop_map(|members| {
        let named = members.into_iter().enumerate();
        named.map(|(index, (name, value))| format!("{}:{value}", Value::from(format!("{index}{name}")))).collect()
    })
}

fn object(members: &[String]) -> String {
    format!("{{{}}}", members.join(","))
}

proptest! {
    #[test]
    fn no_bytes_panic(body in vec(any::<u8>(), 0..200)) {
        let _ = Incoming::parse(&body.clone().into());
        let _ = RpcAnswer::read(&RpcId::Null, &body.into());
    }

    #[test]
    fn no_tokens_panic(tokens in vec(prop::sample::select(vec![
        "{", "}", "[", "]", ",", ":", "\"", "\\u0024", "\\ud800", "$rpc", ".callback", "\"id\"", "\"method\"", "\"params\"",
        "\"$rpc\"", "\"$rpc.timeout\"", "null", "true", "10", "1e999", " ", "\u{e9}",
    ]), 0..40)) {
        let _ = parse(tokens.concat());
    }

    #[test]
    fn params_without_options_are_sent_on_as_they_are(members in members(json_text())) {
        let text = format!(r#"{{ "id":1,"method":"m", "params": {} }}"#, object(&members));
        let call = call(&text);
        prop_assert!(!call.had_options());
        prop_assert_eq!(call.body(), &text);
    }

    #[test]
    fn taking_options_out_leaves_the_rest(
        members in members(json_text()),
        places in prop::array::uniform4(any::<prop::sample::Index>()),
    ) {
        let mut more = members.clone();
        let options = [r#""$rpc.callback":true"#, r#""$RPC.timeout": 30"#, r#""$rpc":{"rayId":"r"}"#, r#""\u0024rpc.ignoreCache":true"#];
        for (option, place) in options.into_iter().zip(places) {
            more.insert(place.index(more.len() + 1), option.to_owned());
        }
        let call = params(&object(&more));
        prop_assert_eq!(call.body(), &format!(r#"{{"id":7,"method":"m","params":{}}}"#, object(&members)));
        prop_assert!(call.options().ignore_cache && call.options().timeout == Some(Duration::from_secs(30)));
    }
}
