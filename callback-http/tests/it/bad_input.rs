//! What a client may get wrong: told where and why, nothing run, nothing stored.

use crate::shop::{Opening, Reply, Shop};
use callback_core::{ErrorKind, Phase, Policy, Resolver, RpcError, async_trait};
use callback_dispatch::{MemoryOutbox, Submission, TaskState, Violations};
use http::StatusCode;
use serde_json::{Value, json};
use std::{io, net::IpAddr};

const PARSE: i64 = RpcError::PARSE;
const REQUEST: i64 = RpcError::INVALID_REQUEST;
const PARAMS: i64 = RpcError::INVALID_PARAMS;

#[track_caller]
fn judge(sent: &str, reply: &Reply, id: &Value, code: i64, pointer: &str, reason: &str) {
    let status = match code {
        PARSE | REQUEST => StatusCode::BAD_REQUEST,
        _ => StatusCode::OK,
    };
    assert_eq!(reply.status, status, "{sent}: {reply:?}");
    assert_eq!(reply.headers["content-type"], "application/json");
    error_is(sent, &reply.json(), id, code, pointer, reason);
}

#[track_caller]
fn error_is(sent: &str, answer: &Value, id: &Value, code: i64, pointer: &str, reason: &str) {
    let names: Vec<&str> = answer.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(names, ["error", "id", "jsonrpc"], "{sent}");
    assert_eq!((&answer["jsonrpc"], &answer["id"]), (&json!("2.0"), id), "{sent}");
    let (error, data) = (&answer["error"], &answer["error"]["data"]);
    assert_eq!((&error["code"], &data["pointer"]), (&json!(code), &json!(pointer)), "{sent}: {answer}");
    assert!(error["message"].is_string(), "{sent}: {answer}");
    let said = data["reason"].as_str().unwrap_or_else(|| panic!("{sent}: {answer}"));
    assert!(said.contains(reason), "{sent}: {said}");
}

/// A body, and the id, code, pointer and reason of its answer.
type Row<'a> = (&'a str, Value, i64, &'a str, &'a str);

async fn refused(table: &[Row<'_>]) {
    let outbox = MemoryOutbox::new();
    let shop = Opening::on(outbox.clone()).open().await;
    for (body, id, code, pointer, reason) in table {
        judge(body, &shop.post(body).await, id, *code, pointer, reason);
    }
    shop.nothing_came_of_it(outbox).await;
}

#[tokio::test]
async fn what_validators_refuse_is_told_with_every_violation() {
    let outbox = MemoryOutbox::new();
    let shop = Opening::on(outbox.clone()).worker(|worker| {
        let order = |submission: &Submission<'_>| match &submission.content["params"]["orderId"] {
            Value::String(_) => Ok(()),
            _ => Err(Violations::at("/params/orderId", "must be a string").and("/params", "needs a customer")),
        };
        let method = |submission: &Submission<'_>| match (submission.operation, submission.callback) {
            ("Order.run", Some(_)) => Ok(()),
            _ => Err(Violations::at("/method", "is not for callbacks")),
        };
        worker.validator(order).validator(method)
    });
    let shop = shop.open().await;
    let call = r#"{"jsonrpc":"2.0","id":1,"method":"Order.list","params":{"orderId":7,"$rpc.callback":"%CALLBACK%"}}"#;
    let alone = shop.post(call).await;
    judge(call, &alone, &json!(1), PARAMS, "/params/orderId", "must be a string");
    let places = |answer: &Value| {
        let all = answer["error"]["data"]["violations"].as_array().expect("a list").iter();
        all.map(|it| (it["pointer"].clone(), it["reason"].clone())).collect::<Vec<_>>()
    };
    let expected = [
        (json!("/params/orderId"), json!("must be a string")),
        (json!("/params"), json!("needs a customer")),
        (json!("/method"), json!("is not for callbacks")),
    ];
    assert_eq!(places(&alone.json()), expected);
    let batch = shop.post(&format!("[{call}]")).await;
    assert_eq!(places(&batch.json()[0])[0], (json!("/0/params/orderId"), json!("must be a string")));
    shop.nothing_came_of_it(outbox).await;
}

/// Sends each DSN, given as JSON, in both places, under a policy that opens nothing.
async fn no_dsn(table: &[(String, &str)]) {
    let outbox = MemoryOutbox::new();
    let shop = Opening::under(Policy::default(), outbox.clone()).open().await;
    for (dsn, reason) in table {
        let flat = format!(r#"{{"id":1,"method":"echo","params":{{"$rpc.callback":{dsn}}}}}"#);
        judge(dsn, &shop.post(&flat).await, &json!(1), PARAMS, "/params/$rpc.callback", reason);
        let nested = format!(r#"{{"id":"a","method":"echo","params":{{"$RPC":{{"callback":{dsn}}}}}}}"#);
        let reply = shop.post(&nested).await;
        judge(dsn, &reply, &json!("a"), PARAMS, "/params/$RPC/callback", reason);
        assert!(!format!("{reply:?}").contains("planted"), "{reply:?}");
    }
    shop.nothing_came_of_it(outbox).await;
}

fn quoted(dsn: &str) -> String {
    json!(dsn).to_string()
}

#[tokio::test]
async fn a_dsn_of_an_unknown_scheme_is_refused() {
    no_dsn(&[
        (quoted("redis://127.0.0.1/0"), "no sink serves the scheme `redis`; registered: `http`, `https`"),
        (quoted("kafka://a:9092,b:9092/orders"), "`callback-kafka`"),
        (quoted("amqps://me:planted@a/v?queue=planted"), "`callback-amqp`"),
        (quoted("wss://example.com/"), "`callback-ws`"),
        (quoted("session://planted"), "`callback-ws`"),
        (quoted("file:///etc/passwd"), "no sink serves"),
        (quoted("javascript:alert(1)"), "`scheme://`"),
    ])
    .await;
}

#[tokio::test]
async fn a_blocked_address_is_refused_however_it_is_spelled() {
    let addresses = [
        ("127.0.0.1", "loopback"),
        ("127.1", "loopback"),
        ("2130706433", "loopback"),
        ("0177.0.0.1", "loopback"),
        ("0x7f000001", "loopback"),
        ("0x7f.0.0.1", "loopback"),
        ("[::1]", "loopback"),
        ("[::ffff:127.0.0.1]", "loopback"),
        ("[::ffff:7f00:1]", "loopback"),
        ("[64:ff9b::7f00:1]", "loopback"),
        ("localhost", "loopback"),
        ("10.0.0.1", "not open"),
        ("172.31.255.255", "not open"),
        ("192.168.1.1", "not open"),
        ("100.64.0.1", "not open"),
        ("169.254.169.254", "not open"),
        ("[fd00:ec2::254]", "not open"),
        ("169.254.0.1", "not open"),
        ("224.0.0.1", "not open"),
        ("255.255.255.255", "not open"),
        ("192.0.2.1", "not open"),
        ("198.18.0.1", "not open"),
        ("240.0.0.1", "not open"),
        ("0.0.0.0", "not open"),
        ("[::]", "not open"),
        ("[fc00::1]", "not open"),
        ("[fe80::1]", "not open"),
        ("[ff02::1]", "not open"),
        ("[2002:7f00:1::]", "not open"),
        ("[2001:0:7f00:1::]", "not open"),
        ("[64:ff9b:1::a00:1]", "not open"),
        ("[2001:db8::1]", "not open"),
    ];
    let mut table = Vec::new();
    for (address, reason) in addresses {
        table.push((quoted(&format!("https://me:planted@{address}/?key=planted")), reason));
        table.push((quoted(&format!("http://{address}:8080/")), reason));
    }
    table.push((quoted("http://example.com/"), "plain http is not open to this host"));
    table.push((quoted("https://example.com:22/"), "port 22"));
    no_dsn(&table).await;
}

#[tokio::test]
async fn a_text_that_is_no_dsn_is_refused() {
    let long = quoted(&format!("https://example.com/{}", "x".repeat(3_000 - 20)));
    no_dsn(&[
        (long, "more than 2048 bytes"),
        (quoted("https://example.com/\u{0}"), "control characters"),
        (quoted("https://example.com/\r\nx: y"), "control characters"),
        (quoted("https://exam\tple.com/"), "control characters"),
        (quoted("https://example.com/\u{7f}"), "control characters"),
        (quoted("https://example.com/\u{85}"), "control characters"),
        (quoted("https://example.com/a b"), "spaces"),
        (quoted("https://example.com/#planted"), "fragment"),
        (quoted("https://example.com\\@planted/"), "backslash"),
        (quoted("https://example.com/%zz"), "`%`"),
        (quoted("https://example.com/ä"), "ASCII"),
        (quoted("https://a:b@c:planted@example.com/"), "`%40`"),
        (quoted("https:///path"), "host is missing"),
        (quoted("https://example.com:99999/"), ""),
        (quoted("https://a,b/"), "several hosts"),
        (quoted("example.com"), "`scheme://`"),
        (quoted(""), "empty"),
        ("null".to_owned(), "expected a DSN"),
        ("false".to_owned(), "expected a DSN"),
        ("1".to_owned(), "expected a DSN"),
        ("[]".to_owned(), "expected a DSN"),
        (r#"{"url":"https://example.com/"}"#.to_owned(), "expected a DSN"),
        (r#""\ud800""#.to_owned(), ""),
        ("true".to_owned(), "no topic"),
    ])
    .await;
}

/// Answers every name with a public address and a private one.
#[derive(Debug)]
struct Mixed;

#[async_trait]
impl Resolver for Mixed {
    async fn resolve(&self, _name: &str) -> io::Result<Vec<IpAddr>> {
        Ok(vec![IpAddr::from([8, 8, 8, 8]), IpAddr::from([127, 0, 0, 1])])
    }
}

/// What a name resolves to is known when it is dialled: nothing leaves, and the result is kept as a dead letter.
#[tokio::test]
async fn a_name_that_resolves_to_a_mix_is_refused_when_it_is_dialled() {
    let policy = Policy::default().allow("hook.example".parse().expect("a rule")).resolver(Mixed);
    let shop = Opening::under(policy, MemoryOutbox::new()).open().await;
    let dsn = format!("http://hook.example:{}/", shop.receiver.port());
    let id = shop.post(&format!(r#"{{"id":1,"method":"echo","params":{{"$rpc.callback":"{dsn}"}}}}"#)).await.task();
    let id = id.parse().expect("a task's id");
    let task = shop.dispatcher.wait(id).await.expect("readable").expect("known");
    assert_eq!(task.state(), TaskState::Dead);
    let letter = shop.dispatcher.dead_letters().get(id).await.expect("readable").expect("kept");
    let attempts: Vec<_> = letter.attempts.iter().map(|attempt| (attempt.kind, attempt.phase)).collect();
    assert_eq!(attempts, [(ErrorKind::Forbidden, Phase::Policy)]);
    assert_eq!(shop.receiver.connections(), 0);
}

#[tokio::test]
async fn an_option_that_nobody_knows_is_refused() {
    let one = json!(1);
    refused(&[
        (
            r#"{"id":1,"method":"echo","params":{"$rpc.callback":"%CALLBACK%","$rpc.retries":3}}"#,
            one.clone(),
            PARAMS,
            "/params/$rpc.retries",
            "callback, timeout, rayId, ignoreCache",
        ),
        (r#"{"id":1,"method":"echo","params":{"$rpc.":1}}"#, one.clone(), PARAMS, "/params/$rpc.", "unknown option"),
        (
            r#"{"id":1,"method":"echo","params":{"$rpc.Callback":"%CALLBACK%"}}"#,
            one.clone(),
            PARAMS,
            "/params/$rpc.Callback",
            "unknown option",
        ),
        (
            r#"{"id":1,"method":"echo","params":{"$rpc":{"callback":"%CALLBACK%","a/b~":1}}}"#,
            one.clone(),
            PARAMS,
            "/params/$rpc/a~1b~0",
            "unknown option",
        ),
        (r#"{"id":1,"method":"echo","params":{"$rpc":[]}}"#, one.clone(), PARAMS, "/params/$rpc", "expected an object"),
        (r#"{"id":1,"method":"echo","params":{"$rpc":null}}"#, one, PARAMS, "/params/$rpc", "expected an object"),
    ])
    .await;
}

#[tokio::test]
async fn an_option_that_is_given_twice_is_refused() {
    let one = json!(1);
    let twice = "given twice";
    refused(&[
        (
            r#"{"id":1,"method":"echo","params":{"$rpc.callback":"%CALLBACK%","$rpc.callback":"%CALLBACK%"}}"#,
            one.clone(),
            PARAMS,
            "/params/$rpc.callback",
            twice,
        ),
        (
            r#"{"id":1,"method":"echo","params":{"$rpc.callback":"%CALLBACK%","$RPC.callback":"%CALLBACK%"}}"#,
            one.clone(),
            PARAMS,
            "/params/$RPC.callback",
            twice,
        ),
        (
            r#"{"id":1,"method":"echo","params":{"$rpc.callback":"%CALLBACK%","$rpc":{"callback":"%CALLBACK%"}}}"#,
            one.clone(),
            PARAMS,
            "/params/$rpc/callback",
            twice,
        ),
        (
            r#"{"id":1,"method":"echo","params":{"$rpc":{"callback":"%CALLBACK%","callback":"%CALLBACK%"}}}"#,
            one.clone(),
            PARAMS,
            "/params/$rpc/callback",
            twice,
        ),
        (
            r#"{"id":1,"method":"echo","params":{"$rpc.\u0063allback":"%CALLBACK%","$rpc.callback":"%CALLBACK%"}}"#,
            one,
            PARAMS,
            "/params/$rpc.callback",
            twice,
        ),
    ])
    .await;
}

#[tokio::test]
async fn a_value_that_an_option_cannot_have_is_refused() {
    let outbox = MemoryOutbox::new();
    let shop = Opening::on(outbox.clone()).open().await;
    let long = quoted(&"x".repeat(129));
    for (option, value, reason) in [
        ("timeout", "9.99", "10 to 120"),
        ("timeout", "0", "10 to 120"),
        ("timeout", "-10", "10 to 120"),
        ("timeout", "120.001", "10 to 120"),
        ("timeout", "1e400", "10 to 120"),
        ("timeout", "\"30\"", "10 to 120"),
        ("timeout", "null", "10 to 120"),
        ("rayId", "\"\"", "1 to 128"),
        ("rayId", &*long, "1 to 128"),
        ("rayId", "\"\\n\"", "printable ASCII"),
        ("rayId", "\"\u{e4}\"", "printable ASCII"),
        ("rayId", "true", "printable ASCII"),
        ("ignoreCache", "1", "true or false"),
        ("ignoreCache", "\"true\"", "true or false"),
        ("ignoreCache", "null", "true or false"),
    ] {
        let body =
            format!(r#"{{"id":1,"method":"echo","params":{{"$rpc.callback":"%CALLBACK%","$rpc.{option}":{value}}}}}"#);
        judge(&body, &shop.post(&body).await, &json!(1), PARAMS, &format!("/params/$rpc.{option}"), reason);
    }
    shop.nothing_came_of_it(outbox).await;
}

#[tokio::test]
async fn a_request_that_is_none_is_refused() {
    let null = Value::Null;
    refused(&[
        (r#"{"jsonrpc":"1.0","id":1,"method":"echo"}"#, json!(1), REQUEST, "/jsonrpc", "\"2.0\""),
        (r#"{"jsonrpc":2.0,"id":"a","method":"echo"}"#, json!("a"), REQUEST, "/jsonrpc", "\"2.0\""),
        (r#"{"jsonrpc":null,"id":1,"method":"echo"}"#, json!(1), REQUEST, "/jsonrpc", "\"2.0\""),
        (r#"{"jsonrpc":"1.0","method":"echo"}"#, null.clone(), REQUEST, "/jsonrpc", "\"2.0\""),
        (r#"{"id":1}"#, json!(1), REQUEST, "/method", "expected a string"),
        (r#"{"id":1,"method":7}"#, json!(1), REQUEST, "/method", "expected a string"),
        (r#"{"id":true,"method":"echo"}"#, null.clone(), REQUEST, "/id", "a string, a number or null"),
        (r#"{"id":[1],"method":"echo"}"#, null.clone(), REQUEST, "/id", "a string, a number or null"),
        (r#"{"id":123456789012345678901,"method":"echo"}"#, null.clone(), REQUEST, "/id", "beyond 64 bits"),
        (r#"{"id":1,"method":"echo","params":"a"}"#, json!(1), PARAMS, "/params", "an object or an array"),
        (r#"{"id":1,"id":2,"method":"echo"}"#, null.clone(), REQUEST, "/id", "given twice"),
        (r#"{"id":1,"method":"a","method":"b"}"#, json!(1), REQUEST, "/method", "given twice"),
        (r#"{"id":1,"method":"echo","params":{},"params":{}}"#, json!(1), REQUEST, "/params", "given twice"),
        (r#"{"id":1,"method":"echo","params":{"a":1,"a":2}}"#, json!(1), PARAMS, "/params/a", "given twice"),
        ("{}", null.clone(), REQUEST, "/method", "expected a string"),
        ("1", null.clone(), REQUEST, "", "expected an object"),
        ("null", null.clone(), REQUEST, "", "expected an object"),
        ("\"a\"", null.clone(), REQUEST, "", "expected an object"),
        ("[]", null, REQUEST, "", "empty batch"),
    ])
    .await;
}

#[tokio::test]
async fn a_body_that_is_no_json_is_refused() {
    let null = Value::Null;
    let deep = format!(r#"{{"id":1,"method":"echo","params":{}1{}}}"#, "[".repeat(127), "]".repeat(127));
    let deeper = "[".repeat(1 << 19);
    let objects = r#"{"a":"#.repeat(100_000);
    refused(&[
        ("", null.clone(), PARSE, "", ""),
        (" ", null.clone(), PARSE, "", ""),
        ("{", null.clone(), PARSE, "", ""),
        (r#"{"id":1,"method":"echo"} x"#, null.clone(), PARSE, "", ""),
        (r#"{'id':1}"#, null.clone(), PARSE, "", ""),
        (r#"{"id":1,"method":"echo","params":{"a":NaN}}"#, null.clone(), PARSE, "", ""),
        ("{\"id\":1,\"method\":\"a\nb\"}", null.clone(), PARSE, "", "control character"),
        ("\u{feff}{\"id\":1,\"method\":\"echo\"}", null.clone(), PARSE, "", ""),
        (&deep, null.clone(), PARSE, "", "nested deeper than 127 levels"),
        (&deeper, null.clone(), PARSE, "", "nested deeper than 127 levels"),
        (&objects, null, PARSE, "", "nested deeper than 127 levels"),
    ])
    .await;

    let outbox = MemoryOutbox::new();
    let shop = Opening::on(outbox.clone()).open().await;
    for body in
        [&b"{\"id\":1,\"method\":\"\xff\"}"[..], b"\xff\xfe{\0}\0", b"{\"id\":\"\xed\xa0\x80\",\"method\":\"a\"}"]
    {
        let reply = shop.send(&[("content-type", "application/json")], body).await;
        judge("no UTF-8", &reply, &Value::Null, PARSE, "", "no UTF-8 text");
    }
    shop.nothing_came_of_it(outbox).await;
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused() {
    let outbox = MemoryOutbox::new();
    let shop = Opening::on(outbox.clone()).open().await;
    let padding = "x".repeat(2 << 20);
    let body =
        format!(r#"{{"id":1,"method":"echo","params":{{"$rpc.callback":"{}","a":"{padding}"}}}}"#, shop.callback());
    let reply = shop.send(&[("content-type", "application/json")], body).await;
    assert_eq!(reply.status, StatusCode::PAYLOAD_TOO_LARGE);
    error_is("2 MiB", &reply.json(), &Value::Null, REQUEST, "", "larger than 1048576 bytes");
    shop.nothing_came_of_it(outbox).await;
}

/// Seen from within: no length is announced, and what lies beyond the limit is not read.
#[tokio::test]
async fn a_body_without_an_announced_length_is_read_to_the_limit_only() {
    let shop = Shop::open().await;
    let mut stream = tokio::net::TcpStream::connect(shop.address()).await.expect("connected");
    let head = "POST /rpc HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(1 << 16));
    tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.expect("written");
    // Seventeen chunks are more than the limit; an end never comes.
    for _ in 0..17 {
        tokio::io::AsyncWriteExt::write_all(&mut stream, chunk.as_bytes()).await.expect("written");
    }
    let mut answer = [0; 12];
    let read = tokio::io::AsyncReadExt::read_exact(&mut stream, &mut answer);
    tokio::time::timeout(crate::receiver::PATIENCE, read).await.expect("it answers").expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 413");
    assert!(shop.methods.seen().is_empty());
}

#[tokio::test]
async fn a_notification_that_is_wrong_is_not_answered_and_not_run() {
    let outbox = MemoryOutbox::new();
    let shop = Opening::on(outbox.clone()).open().await;
    for body in [
        r#"{"method":"echo","params":{"$rpc.callback":"no dsn"}}"#,
        r#"{"method":"echo","params":{"$rpc.other":1}}"#,
        r#"{"method":"echo","params":{"a":1,"a":2}}"#,
    ] {
        let reply = shop.post(body).await;
        assert_eq!((reply.status, reply.body.len()), (StatusCode::NO_CONTENT, 0), "{body}");
    }
    shop.nothing_came_of_it(outbox).await;
}

#[tokio::test]
async fn an_item_of_a_batch_is_refused_in_its_own_place() {
    let outbox = MemoryOutbox::new();
    let shop = Opening::on(outbox.clone()).open().await;
    let reply = shop.post("[1]").await;
    assert_eq!(reply.status, StatusCode::OK);
    let answers = reply.json();
    assert_eq!(answers.as_array().map(Vec::len), Some(1));
    error_is("[1]", &answers[0], &Value::Null, REQUEST, "/0", "expected an object");

    let reply = shop
        .post(
            r#"[{"jsonrpc":"1.0","id":1,"method":"echo"},{"id":2,"method":"echo","params":{"$rpc.callback":"no dsn"}},
            [],{"id":3,"method":"echo","params":{"$rpc":{"timeout":1}}},
            {"id":4,"method":"echo","params":{"$rpc.callback":"redis://planted/"}}]"#,
        )
        .await;
    assert_eq!(reply.status, StatusCode::OK);
    let answers = reply.json();
    assert_eq!(answers.as_array().map(Vec::len), Some(5));
    let answer =
        |id: Value| answers.as_array().into_iter().flatten().find(|answer| answer["id"] == id).expect("answered");
    error_is("version", answer(json!(1)), &json!(1), REQUEST, "/0/jsonrpc", "\"2.0\"");
    error_is("dsn", answer(json!(2)), &json!(2), PARAMS, "/1/params/$rpc.callback", "no spaces");
    error_is("array", answer(Value::Null), &Value::Null, REQUEST, "/2", "expected an object");
    error_is("timeout", answer(json!(3)), &json!(3), PARAMS, "/3/params/$rpc/timeout", "10 to 120");
    error_is("scheme", answer(json!(4)), &json!(4), PARAMS, "/4/params/$rpc.callback", "no sink serves");

    let many = format!("[{}1]", "1,".repeat(1_000));
    judge("1,001 items", &shop.post(&many).await, &Value::Null, REQUEST, "", "1001 items");
    shop.nothing_came_of_it(outbox).await;
}

/// A callback in what cannot be read is never a silent synchronous call.
#[tokio::test]
async fn a_body_with_a_content_coding_is_refused_unread() {
    let outbox = MemoryOutbox::new();
    let shop = Opening::on(outbox.clone()).open().await;
    let body = json!({ "id": 1, "method": "echo", "params": { "$rpc.callback": shop.callback() } }).to_string();
    let json = ("content-type", "application/json");
    let reply = shop.send(&[json, ("content-encoding", "gzip")], body).await;
    assert_eq!(reply.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(reply.headers["accept-encoding"], "identity");
    error_is("gzip", &reply.json(), &Value::Null, REQUEST, "", "content coding");
    shop.nothing_came_of_it(outbox).await;

    // What is not read here is the service's own.
    let shop = Shop::open().await;
    let coded = shop.send(&[("content-type", "text/plain"), ("content-encoding", "gzip")], "coded").await;
    assert_eq!(coded.body, "no JSON");
    assert_eq!(shop.methods.only().text(), "coded");
}
