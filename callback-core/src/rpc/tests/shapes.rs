use super::*;

#[test]
fn requests_are_read_strictly_and_written_with_a_version() {
    let read = |text: &str| serde_json::from_str::<RpcRequest>(text);
    let request = read(r#"{"id":null,"method":"m","x":1}"#).expect("a request");
    assert_eq!(request, RpcRequest { id: Some(RpcId::Null), method: "m".to_owned(), params: None });
    assert_eq!(serde_json::to_string(&request).expect("JSON"), r#"{"jsonrpc":"2.0","id":null,"method":"m"}"#);
    let notification = read(r#"{"jsonrpc":"2.0","method":"m","params":[1]}"#).expect("a request");
    assert!(notification.is_notification());
    assert_eq!(serde_json::to_string(&notification).expect("JSON"), r#"{"jsonrpc":"2.0","method":"m","params":[1]}"#);
    for wrong in [
        r#"{"jsonrpc":"1.0","method":"m"}"#,
        r#"{"jsonrpc":null,"method":"m"}"#,
        r#"{"id":true,"method":"m"}"#,
        r#"{"id":1}"#,
        r#"{"id":1,"method":"m","params":1}"#,
        r#"{"id":1,"method":"m","method":"n"}"#,
        r#"["2.0",1,"m",{}]"#,
    ] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn responses_have_a_result_or_an_error() {
    let read = |text: &str| serde_json::from_str::<RpcResponse>(text);
    assert_eq!(read(r#"{"id":1,"result":null}"#).expect("a response"), RpcResponse::success(1, Value::Null));
    let failure = read(r#"{"jsonrpc":"2.0","id":null,"error":{"code":-1,"message":"no"}}"#).expect("a response");
    assert_eq!(failure, RpcResponse::failure(RpcId::Null, RpcError::new(-1, "no")));
    assert_eq!(
        serde_json::to_string(&failure).expect("JSON"),
        r#"{"jsonrpc":"2.0","id":null,"error":{"code":-1,"message":"no"}}"#,
    );
    for wrong in NO_RESPONSES {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}

const NO_RESPONSES: [&str; 14] = [
    "{}",
    "1",
    "[]",
    r#"[{"id":1,"result":1}]"#,
    r#"{"result":1}"#,
    r#"{"id":1}"#,
    r#"{"id":1,"result":1,"result":2}"#,
    r#"{"id":1,"result":null,"error":{"code":1,"message":""}}"#,
    r#"{"id":1,"error":null}"#,
    r#"{"id":1,"error":"no"}"#,
    r#"{"id":1,"error":{"code":1.5,"message":""}}"#,
    r#"{"id":1,"error":{"code":1}}"#,
    r#"{"id":1,"error":[1,"no"]}"#,
    r#"{"jsonrpc":"1.0","id":1,"result":1}"#,
];

#[test]
fn an_answer_is_a_response_with_this_id() {
    let read = |body: &'static [u8]| RpcAnswer::read(&1.into(), &Bytes::from_static(body));
    for wrong in NO_RESPONSES {
        assert_eq!(read(wrong.as_bytes()), Err(InvalidAnswer::NoResponse), "{wrong}");
    }
    for wrong in [&b""[..], b"<html></html>", b"\xff", b"{\"id\":1,\"result\":\"\xff\"}"] {
        assert_eq!(read(wrong), Err(InvalidAnswer::NoJson));
    }
    for wrong in
        [r#"{"id":2,"result":1}"#, r#"{"id":"1","result":1}"#, r#"{"id":null,"result":1}"#, r#"{"id":[],"result":1}"#]
    {
        assert_eq!(read(wrong.as_bytes()), Err(InvalidAnswer::OtherId), "{wrong}");
    }

    let right = "\n{ \"result\" : {\"n\": 1.50}, \"id\":1,\"jsonrpc\":\"2.0\", \"x\":1 } ";
    let answer = read(right.as_bytes()).expect("an answer");
    assert!(!answer.is_error());
    assert_eq!(answer.into_body(), right);
    let error = read(br#"{"jsonrpc":"2.0","id":1,"error":{"code":-5,"message":"no","data":[1]}}"#);
    assert!(error.expect("an answer").is_error());
    let without_version = read(br#" { "id":1,"result":null}"#).expect("an answer");
    assert_eq!(without_version.into_body(), r#"{"jsonrpc":"2.0", "id":1,"result":null}"#);
}

#[test]
fn an_id_is_printed_and_echoed_as_it_is() {
    for (text, printed) in [
        ("null", "null"),
        ("1", "1"),
        ("-5", "-5"),
        ("1.5", "1.5"),
        (r#""a b""#, "a b"),
        ("18446744073709551615", "18446744073709551615"),
    ] {
        let call = call(&format!(r#"{{"id":{text},"method":"m"}}"#));
        let id = call.id().expect("an id");
        assert_eq!(id.to_string(), printed);
        assert_eq!(serde_json::to_string(id).expect("JSON"), text);
    }
    assert!(call(r#"{"id":-0,"method":"m"}"#).id().is_some());
}

#[test]
fn debug_prints_neither_params_nor_results() {
    let params = serde_json::json!({ "$rpc.callback": "https://user:planted@example.com/" });
    let error = RpcError::new(1, "m").with_data("planted");
    let text = format!(
        "{:?} {:?} {:?}",
        RpcRequest::new(1, "m", params),
        RpcResponse::success(1, "planted"),
        RpcResponse::failure(1, error),
    );
    assert!(!text.contains("planted"), "{text}");
}

#[test]
fn an_id_and_a_method_are_short() {
    for (id, method, pointer) in [("x".repeat(1_025), "m".into(), "/id"), ("x".into(), "m".repeat(1_025), "/method")] {
        let body = serde_json::json!({ "id": id, "method": method }).to_string();
        let rejected = Incoming::parse(&body.into()).expect_err("too long");
        assert_eq!(rejected.error().data.as_ref().expect("data")["pointer"], pointer);
    }
    let body = serde_json::json!({ "id": "x".repeat(1_024), "method": "m".repeat(1_024) }).to_string();
    assert!(Incoming::parse(&body.into()).is_ok());
}
