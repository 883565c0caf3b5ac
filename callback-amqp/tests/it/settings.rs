//! Several clusters behind one sink.

use crate::broker::{deliver, own, shared};
use callback_amqp::AmqpSink;
use callback_core::Dsn;

#[tokio::test]
async fn each_name_reaches_its_own_cluster() {
    let (Some(one), Some(two)) = (shared(), own().await) else { return };
    let (side_one, side_two) = (one.side("").await, two.side("").await);
    let (queue_one, queue_two) = (side_one.queue().await, side_two.queue().await);
    let builder = AmqpSink::builder().default_cluster(one.cluster()).cluster("two", two.cluster());
    let sink = builder.build().expect("a sink");
    for (dsn, side, queue) in [("amqp:///", &side_one, &queue_one), ("amqp://two/", &side_two, &queue_two)] {
        let dsn: Dsn = format!("{dsn}?queue={queue}").parse().expect("a Dsn");
        deliver(&sink, &dsn).await.expect("delivered");
        assert!(side.next(queue).await.is_some(), "{dsn}");
    }
}
