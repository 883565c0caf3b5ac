//! What a broker can hardly be made to do: librdkafka's mock of a cluster does it.

use crate::support::{attempt, attempt_within, cluster, message, sink, to, until};
use callback_core::{ErrorKind, Evidence, Sink};
use callback_kafka::KafkaSink;
use rdkafka::{
    mocking::MockCluster,
    producer::DefaultProducerContext,
    types::{RDKafkaApiKey, RDKafkaRespErr},
};
use std::time::Duration;
use tokio::time::timeout;

type Mock = MockCluster<'static, DefaultProducerContext>;

fn mock() -> (Mock, KafkaSink) {
    let mock = MockCluster::new(1).expect("a mock");
    mock.create_topic("t", 1, 1).expect("a topic");
    let sink = sink(cluster(&mock.bootstrap_servers()));
    (mock, sink)
}

/// What a message comes to.
async fn send(sink: &KafkaSink) -> Result<Evidence, ErrorKind> {
    let message = message("a");
    let result = sink.deliver(&to("t"), &message, &attempt(1, &message)).await;
    result.map(|receipt| receipt.evidence().clone()).map_err(|error| error.kind())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_the_broker_means_what_the_table_says() {
    for (error, kind) in [
        (RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_RECORD, ErrorKind::Refused),
        (RDKafkaRespErr::RD_KAFKA_RESP_ERR_POLICY_VIOLATION, ErrorKind::Refused),
        (RDKafkaRespErr::RD_KAFKA_RESP_ERR_THROTTLING_QUOTA_EXCEEDED, ErrorKind::Throttled),
        (RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, ErrorKind::Unauthorized),
        // The record is small: another one of its batch may have been too large.
        (RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, ErrorKind::Unavailable),
    ] {
        let (mock, sink) = mock();
        mock.request_errors(RDKafkaApiKey::Produce, &[error]);
        assert_eq!(send(&sink).await, Err(kind), "{error:?}");
        sink.close().await.expect("closed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_by_itself_is_not_noticed() {
    for error in [
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR__TRANSPORT,
    ] {
        let (mock, sink) = mock();
        mock.request_errors(RDKafkaApiKey::Produce, &[error]);
        assert_eq!(send(&sink).await, Ok(Evidence::Offset { partition: 0, offset: 0 }), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_had_already_is_delivered() {
    let (mock, sink) = mock();
    let error = RDKafkaRespErr::RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER;
    mock.request_errors(RDKafkaApiKey::Produce, &[error]);
    assert_eq!(send(&sink).await, Ok(Evidence::Offset { partition: 0, offset: -1 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_fatal_error_the_producer_is_replaced() {
    let (mock, sink) = mock();
    let message = message("a");
    sink.deliver(&to("t"), &message, &attempt(1, &message)).await.expect("delivered");
    // The first is taken for a lost sequence, and is fatal for an idempotent producer.
    mock.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER]);
    let error = sink.deliver(&to("t"), &message, &attempt(2, &message)).await.expect_err("a fatal error");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
    let receipt = sink.deliver(&to("t"), &message, &attempt(3, &message)).await.expect("by another producer");
    assert!(matches!(receipt.evidence(), Evidence::Offset { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fatal_error_is_told_by_its_cause() {
    let (mock, sink) = mock();
    let error = RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED;
    mock.request_errors(RDKafkaApiKey::InitProducerId, &[error]);
    assert_eq!(send(&sink).await, Err(ErrorKind::Unauthorized));
    assert_eq!(send(&sink).await, Ok(Evidence::Offset { partition: 0, offset: 0 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_nobody_waits_for_is_started_all_the_same() {
    let (_mock, sink) = mock();
    let message = message("a");
    let over = attempt_within(Duration::ZERO, 1, &message);
    let error = sink.deliver(&to("t"), &message, &over).await.expect_err("the deadline is over");
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{}", error.chain());
    assert!(send(&sink).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_attempt_takes_the_receipt_of_one_that_came_too_late() {
    let (mock, sink) = mock();
    let (first, late) = (message("first"), message("late"));
    sink.deliver(&to("t"), &first, &attempt(1, &first)).await.expect("delivered");
    mock.broker_round_trip_time(-1, Duration::from_millis(700)).expect("slow");
    let soon = attempt_within(Duration::from_millis(100), 1, &late);
    let error = sink.deliver(&to("t"), &late, &soon).await.expect_err("the broker is slow");
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{}", error.chain());
    let receipt = sink.deliver(&to("t"), &late, &attempt(2, &late)).await.expect("delivered");
    assert_eq!(receipt.evidence(), &Evidence::Offset { partition: 0, offset: 1 });
    // Nothing was sent by the second attempt: the next message is the third.
    let next = message("next");
    let receipt = sink.deliver(&to("t"), &next, &attempt(1, &next)).await.expect("delivered");
    assert_eq!(receipt.evidence(), &Evidence::Offset { partition: 0, offset: 2 });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_attempt_is_joined_too() {
    let (mock, sink) = mock();
    mock.broker_round_trip_time(-1, Duration::from_millis(200)).expect("slow");
    let message = message("a");
    let (dsn, first) = (to("t"), attempt(1, &message));
    let dropped = timeout(Duration::from_millis(100), sink.deliver(&dsn, &message, &first));
    dropped.await.expect_err("it is dropped");
    sink.deliver(&to("t"), &message, &attempt(2, &message)).await.expect("delivered");
    let receipt = sink.deliver(&to("t"), &message, &attempt(3, &message)).await.expect("sent again");
    assert_eq!(receipt.evidence(), &Evidence::Offset { partition: 0, offset: 1 });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_finds_no_place_in_time_is_throttled() {
    let mock = MockCluster::new(1).expect("a mock");
    mock.create_topic("t", 1, 1).expect("a topic");
    let sink = sink(cluster(&mock.bootstrap_servers()).in_flight(1));
    mock.broker_down(-1).expect("down");
    let (first, second) = (message("first"), message("second"));
    let soon = |message| attempt_within(Duration::from_millis(100), 1, message);
    let error = sink.deliver(&to("t"), &first, &soon(&first)).await.expect_err("the broker is down");
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{}", error.chain());
    // The first holds its place until its report comes.
    let error = sink.deliver(&to("t"), &second, &soon(&second)).await.expect_err("there is no place");
    assert_eq!(error.kind(), ErrorKind::Throttled, "{}", error.chain());
    mock.broker_up(-1).expect("up");
    until(async || sink.deliver(&to("t"), &second, &attempt(2, &second)).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_throttles() {
    let mock = MockCluster::new(1).expect("a mock");
    mock.create_topic("t", 1, 1).expect("a topic");
    let sink = sink(cluster(&mock.bootstrap_servers()).setting("queue.buffering.max.kbytes", "1"));
    mock.broker_down(-1).expect("down");
    let large = message("x".repeat(2_000));
    let mut kinds = Vec::new();
    for body in [large.clone(), large] {
        let message = body.to_builder().id(callback_core::MessageId::new()).build().expect("valid");
        let soon = attempt_within(Duration::from_millis(100), 1, &message);
        kinds.push(sink.deliver(&to("t"), &message, &soon).await.map(drop).map_err(|error| error.kind()));
    }
    assert_eq!(kinds.last(), Some(&Err(ErrorKind::Throttled)), "{kinds:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn close_says_what_it_could_not_flush() {
    let mock = MockCluster::new(1).expect("a mock");
    mock.create_topic("t", 1, 1).expect("a topic");
    let sink = sink(cluster(&mock.bootstrap_servers()).delivery_timeout(Duration::from_secs(60)));
    mock.broker_down(-1).expect("down");
    for message in [message("a"), message("b")] {
        let soon = attempt_within(Duration::from_millis(100), 1, &message);
        sink.deliver(&to("t"), &message, &soon).await.expect_err("the broker is down");
    }
    let error = sink.close().await.expect_err("the broker is down");
    assert_eq!(error.chain(), "unavailable: 2 messages could not be flushed");
    sink.close().await.expect("nothing is left");
}
