mod options;
mod properties;
mod shapes;

use super::*;
use crate::{Acknowledgment, TaskId};
use bytes::Bytes;
use serde_json::json;

/// Seed 1, as its author prints it: without `jsonrpc`.
const SEED: &str = r#"{
"id": "example_order",
"method": "OrderService.processOrder",
"params": {
"orderId": "12345",
"$rpc.callback": "https://example.com/order/callback"
}
}"#;

fn parse(text: impl Into<Bytes>) -> Result<Incoming, Rejected> {
    Incoming::parse(&text.into())
}

#[track_caller]
fn call(text: &str) -> Call {
    match parse(text.to_owned()) {
        Ok(Incoming::Single(call)) => call,
        other => panic!("{text}: {other:?}"),
    }
}

#[track_caller]
fn batch(text: &str) -> Vec<Result<Call, Rejected>> {
    match parse(text.to_owned()) {
        Ok(Incoming::Batch(items)) => items,
        other => panic!("{text}: {other:?}"),
    }
}

#[track_caller]
fn params(members: &str) -> Call {
    call(&format!(r#"{{"id":7,"method":"m","params":{members}}}"#))
}

#[track_caller]
fn check_rejected(rejected: Rejected, id: impl Into<RpcId>, code: i64, at: &str) {
    let response = rejected.into_response().expect("an answer");
    assert_eq!(response.id, id.into());
    let error = response.outcome.expect_err("an error");
    let data = error.data.expect("data");
    assert_eq!((error.code, data["pointer"].as_str()), (code, Some(at)), "{data}");
    assert!(!data["reason"].as_str().expect("a reason").is_empty());
}

/// `text` is refused with `code` at the pointer `at`, and its sender reads `id`.
#[track_caller]
fn check(text: impl Into<Bytes>, id: impl Into<RpcId>, code: i64, at: &str) {
    check_rejected(parse(text).expect_err("a refusal"), id, code, at);
}

#[track_caller]
fn check_params(members: &str, at: &str) {
    check(format!(r#"{{"id":7,"method":"m","params":{members}}}"#), 7, RpcError::INVALID_PARAMS, at);
}

#[test]
fn the_request_of_the_seed_gives_its_acknowledgment() {
    let call = call(SEED);
    let rest = r#"{"id":"example_order","method":"OrderService.processOrder","params":{"orderId":"12345"}}"#;
    assert_eq!(call.body(), rest);
    assert_eq!(call.method(), "OrderService.processOrder");
    let Some(Target::Dsn(dsn)) = call.options().callback.clone() else { panic!("a Dsn") };
    let id = TaskId::new();
    let response = Acknowledgment::new(id, Some(dsn)).to_rpc(call.id().cloned().expect("an id"));
    let expected = json!({
        "jsonrpc": "2.0",
        "id": "example_order",
        "result": {
            "callback": { "id": id, "url": "https://example.com/order/callback", "status": true, "data": [] }
        }
    });
    assert_eq!(serde_json::to_value(response).expect("JSON"), expected);
}

#[test]
fn what_is_no_json_cannot_be_read() {
    let nested =
        |depth: usize| format!(r#"{{"id":1,"method":"m","params":{}1{}}}"#, "[".repeat(depth), "]".repeat(depth));
    for body in [&b"\xff"[..], b"{\"id\":\"\xc3\x28\"}", b"", b" ", b"{", b"nul", b"{}x", b"{\"a\":01}", b"[1,]", b"[,"]
    {
        check(body, RpcId::Null, RpcError::PARSE, "");
    }
    check(nested(128), RpcId::Null, RpcError::PARSE, "");
    check(nested(127), RpcId::Null, RpcError::PARSE, "");
    check("[".repeat(200_000), RpcId::Null, RpcError::PARSE, "");
    check(nested(127).replace("\"m\"", r#""\\""#), RpcId::Null, RpcError::PARSE, "");
    let deepest = call(&nested(126));
    assert!(serde_json::from_slice::<RpcRequest>(deepest.body()).is_ok());
    call(&format!(r#"{{"id":"\"{}","method":"m"}}"#, "[".repeat(200)));
}

#[test]
fn the_envelope_is_judged() {
    let check = |text: &str, id: RpcId, at: &str| check(text.to_owned(), id, RpcError::INVALID_REQUEST, at);
    check("[]", RpcId::Null, "");
    check(" [ ] ", RpcId::Null, "");
    check("1", RpcId::Null, "");
    check(r#""text""#, RpcId::Null, "");
    check("null", RpcId::Null, "");
    check("{}", RpcId::Null, "/method");
    check(r#"{"jsonrpc":"1.0","id":"a","method":"m"}"#, "a".into(), "/jsonrpc");
    check(r#"{"jsonrpc":2.0,"id":1,"method":"m"}"#, 1.into(), "/jsonrpc");
    check(r#"{"jsonrpc":null,"method":"m"}"#, RpcId::Null, "/jsonrpc");
    check(r#"{"id":{},"method":"m"}"#, RpcId::Null, "/id");
    check(r#"{"id":[1],"method":"m"}"#, RpcId::Null, "/id");
    check(r#"{"id":true,"method":"m"}"#, RpcId::Null, "/id");
    check(r#"{"id":18446744073709551616,"method":"m"}"#, RpcId::Null, "/id");
    check(r#"{"id":1e999,"method":"m"}"#, RpcId::Null, "/id");
    check(r#"{"id":"\ud800","method":"m"}"#, RpcId::Null, "/id");
    check(r#"{"id":1}"#, 1.into(), "/method");
    check(r#"{"id":1,"method":null}"#, 1.into(), "/method");
    check(r#"{"id":1,"method":["m"]}"#, 1.into(), "/method");
    check(r#"{"id":1,"method":"m","method":"m"}"#, 1.into(), "/method");
    check(r#"{"id":1,"method":"m","params":{},"\u0070arams":{}}"#, 1.into(), "/params");
    check(r#"{"id":1,"method":"m","a/b~c":1,"a/b~c":1}"#, 1.into(), "/a~1b~0c");
    check(r#"{"id":1,"id":1,"method":"m"}"#, RpcId::Null, "/id");
    check(r#"{"id":1,"method":"m","\ud800":1}"#, RpcId::Null, "");
}

#[test]
fn params_are_an_object_or_an_array() {
    for wrong in ["1", "true", r#""text""#, r#"{"\udc00":1}"#] {
        check_params(wrong, "/params");
    }
    check_params(r#"{"a":1,"b":2,"a":3}"#, "/params/a");
    check_params(r#"{"a~/":1,"\u0061~/":3}"#, "/params/a~0~1");
    for right in
        ["null", "[]", "{}", r#"[{"$rpc.callback":"https://a"},1,1]"#, r#"{"callback":5,"rpc.callback":1,"$rpcs":{}}"#]
    {
        assert!(!params(right).had_options(), "{right}");
    }
    assert!(!call(r#"{"id":1,"method":"m"}"#).had_options());
}

#[test]
fn what_names_no_option_is_kept_to_the_byte() {
    let text = " { \"x\" : [1.50, 1E2 ],\t\"params\":{ \"\\u0061\" : 1.0e-7 , \"b\":{\"$rpc.callback\":1} },\"id\":null,\"method\":\"\\u006d\"}\n";
    let call = call(text);
    assert_eq!(call.body(), text);
    assert_eq!((call.id(), call.method(), call.is_notification()), (Some(&RpcId::Null), "m", false));
    let items = batch(&format!("[{text},{text}]"));
    assert_eq!(items[1].as_ref().expect("a call").body(), text.trim());
}

#[test]
fn a_batch_is_read_item_by_item() {
    let items = batch(
        r#"[ {"id":1,"method":"a","params":{"$rpc.callback":true}}, 1, {"id":2,"method":"b"} ,
            {"id":3,"method":"c","params":{"$rpc.callback":"no dsn"}}, {"method":"d"}, [], {"jsonrpc":"1.0","id":5,"method":"e"}]"#,
    );
    let [first, second, third, fourth, fifth, sixth, seventh] = <[_; 7]>::try_from(items).expect("seven");
    let [first, third, fifth] = [first, third, fifth].map(|item| item.expect("a call"));
    assert_eq!(first.options().callback, Some(Target::Topic));
    check_rejected(second.expect_err("no call"), RpcId::Null, RpcError::INVALID_REQUEST, "/1");
    check_rejected(fourth.expect_err("no Dsn"), 3, RpcError::INVALID_PARAMS, "/3/params/$rpc.callback");
    check_rejected(sixth.expect_err("no call"), RpcId::Null, RpcError::INVALID_REQUEST, "/5");
    check_rejected(seventh.expect_err("no version"), 5, RpcError::INVALID_REQUEST, "/6/jsonrpc");
    assert_eq!(join_batch([third.into_body(), fifth.into_body()]), r#"[{"id":2,"method":"b"},{"method":"d"}]"#);
    assert_eq!(join_batch::<&str>([]), "[]");

    let [one] = <[_; 1]>::try_from(batch("[1]")).expect("one");
    check_rejected(one.expect_err("no call"), RpcId::Null, RpcError::INVALID_REQUEST, "/0");
}

#[test]
fn a_batch_has_an_end() {
    let items = |count| join_batch(vec![r#"{"method":"m"}"#; count]);
    assert!(matches!(parse(items(Incoming::MAX_BATCH)), Ok(Incoming::Batch(calls)) if calls.len() == 1_000));
    check(items(Incoming::MAX_BATCH + 1), RpcId::Null, RpcError::INVALID_REQUEST, "");
}

#[test]
fn a_notification_is_told_nothing() {
    let rejected = parse(r#"{"method":"m","params":{"$rpc.callback":"no dsn"}}"#).expect_err("a refusal");
    assert_eq!(rejected.error().code, RpcError::INVALID_PARAMS);
    assert_eq!(rejected.into_response(), None);
    assert!(call(r#"{"method":"m","params":{"$rpc.callback":true}}"#).options().callback.is_some());
}

#[test]
fn debug_hides_bodies_and_dsns() {
    let call =
        call(r#"{"id":1,"method":"m","params":{"card":"4111","$rpc.callback":"https://user:hunter2@example.com/"}}"#);
    let debug = format!("{call:?}");
    assert!(!debug.contains("4111") && !debug.contains("hunter2"), "{debug}");
}
