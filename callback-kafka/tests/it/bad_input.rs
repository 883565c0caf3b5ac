//! What a client may not ask for. No broker is needed: nothing is sent.

use crate::support::{attempt, cluster, dsn, message, sink};
use callback_core::{DsnErrorKind, ErrorKind, Phase, Sink};

#[track_caller]
fn check(text: &str, kind: DsnErrorKind, words: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (sink, dsn, message) = (sink(cluster("127.0.0.1:1")), dsn(text), message("a"));
    let error = sink.check(&dsn).expect_err("it cannot be sent to");
    assert_eq!(error.kind(), kind, "{text}: {error}");
    assert!(error.to_string().contains(words), "{text}: {error}");
    assert!(!error.to_string().contains("planted"), "{text}: {error}");
    let expected = if kind == DsnErrorKind::Forbidden { ErrorKind::Forbidden } else { ErrorKind::Refused };
    let error = runtime.block_on(sink.deliver(&dsn, &message, &attempt(1, &message))).expect_err("nothing is sent");
    assert_eq!((error.kind(), error.phase()), (expected, Some(Phase::Policy)), "{text}: {}", error.chain());
}

#[test]
fn an_unknown_parameter_is_an_error_that_lists_the_known_ones() {
    check("kafka:///t?routing_key=planted", DsnErrorKind::Invalid, "\"routing_key\"; known are `key`, `partition`");
}

#[test]
fn a_property_of_librdkafka_cannot_be_set_by_a_dsn() {
    for property in ["plugin.library.paths", "acks", "ssl.ca.location", "bootstrap.servers", "sasl.password"] {
        check(&format!("kafka:///t?{property}=planted"), DsnErrorKind::Invalid, property);
    }
}

#[test]
fn an_invalid_topic_is_an_error() {
    for topic in ["", "..", "a%2Fb", "a/b", &"x".repeat(250)] {
        check(&format!("kafka:///{topic}"), DsnErrorKind::Invalid, "topic");
    }
}

#[test]
fn a_broker_that_is_not_registered_is_forbidden() {
    check("kafka://attacker.example:9092/t", DsnErrorKind::Forbidden, "registered clusters only");
    check("kafka://127.0.0.1:1,127.0.0.1:2/t", DsnErrorKind::Forbidden, "registered clusters only");
    check("kafka+sasl://user:planted@127.0.0.1:1/t", DsnErrorKind::Invalid, "the operator's");
}
