//! A store that fails, or thinks its process dead, while clients come and go.

use crate::{
    Attach, AttachError, Attachment, Dispatcher, Event, TokioClock,
    clock::Micros,
    engine::faulty::Faulty,
    outbox::{Attaching, AttachmentId, Store as _, Write},
};
use callback_core::{Dsn, MemorySink};
use std::{sync::atomic::Ordering, time::Duration};
use tokio::time::{sleep, timeout};

async fn begin(outbox: &Faulty) -> (Dispatcher, MemorySink) {
    let sink = MemorySink::new();
    let builder = Dispatcher::builder(outbox.clone()).local_sink(sink.clone()).clock(TokioClock::default());
    (builder.start().await.expect("started"), sink)
}

fn dsn(client: usize) -> Dsn {
    format!("memory://client-{client}").parse().expect("a valid Dsn")
}

const ATTACH: Attach = Attach::new(Duration::from_secs(600)).secret([1; 32]);

async fn attached(dispatcher: &Dispatcher, client: usize) -> Attachment {
    dispatcher.attach(&dsn(client), ATTACH).await.expect("attached")
}

async fn resumed(dispatcher: &Dispatcher, client: usize) -> Result<Attachment, AttachError> {
    dispatcher.resume(&dsn(client), [1; 32], ATTACH).await
}

/// How often such a write was stored.
fn stored(outbox: &Faulty, name: &str) -> usize {
    outbox.faults.stored().iter().filter(|stored| **stored == name).count()
}

#[tokio::test(start_paused = true)]
async fn who_is_attached_is_stored_together_with_the_others() {
    let outbox = Faulty::default();
    let (dispatcher, _sink) = begin(&outbox).await;
    let mut attachments = Vec::new();
    for client in 0..100 {
        attachments.push(attached(&dispatcher, client).await);
        sleep(Duration::from_millis(500)).await;
    }
    sleep(Duration::from_secs(400)).await;
    let before = stored(&outbox, "keep");
    sleep(Duration::from_secs(2_000)).await;
    let writes = stored(&outbox, "keep") - before;
    assert!((10..=12).contains(&writes), "{writes} writes in ten times a third of their time");
}

#[tokio::test(start_paused = true)]
async fn an_attachment_whose_answer_was_lost_is_let_go_of() {
    let outbox = Faulty::default();
    let (dispatcher, sink) = begin(&outbox).await;
    outbox.faults.lose("attach", |outbox, write| assert!(outbox.submit(write, Box::new(drop)).is_ok()));
    let unknown = dispatcher.attach(&dsn(1), ATTACH).await;
    assert!(matches!(unknown, Err(AttachError::Outbox(error)) if error.is_unknown()));
    dispatcher.publish(Event::to(dsn(1), "a.b", "text")).await.expect("published");
    sleep(Duration::from_secs(599)).await;
    let attachment = resumed(&dispatcher, 1).await.expect("it is kept");
    sink.next("client-1").await;
    drop(attachment);
    outbox.faults.lose("attach", |_, _| {});
    let unknown = resumed(&dispatcher, 1).await;
    assert!(matches!(unknown, Err(AttachError::Outbox(error)) if error.is_unknown()));
    sleep(Duration::from_secs(599)).await;
    drop(resumed(&dispatcher, 1).await.expect("it is kept"));
}

#[tokio::test(start_paused = true)]
async fn who_left_while_the_store_failed_is_away_when_it_heals() {
    let outbox = Faulty::default();
    let (dispatcher, _sink) = begin(&outbox).await;
    let (left, ended) = (attached(&dispatcher, 1).await, attached(&dispatcher, 2).await);
    let stays = attached(&dispatcher, 3).await;
    outbox.faults.fails.store(true, Ordering::SeqCst);
    drop(left);
    let end = tokio::spawn(ended.end());
    sleep(Duration::from_secs(1_000)).await;
    assert!(!end.is_finished(), "it is not stored");
    outbox.faults.fails.store(false, Ordering::SeqCst);
    end.await.expect("ended");
    assert!(matches!(resumed(&dispatcher, 2).await, Err(AttachError::Unknown)));
    // Its time begins when it is stored that it is away.
    sleep(Duration::from_secs(590)).await;
    drop(resumed(&dispatcher, 1).await.expect("it is kept"));
    sleep(Duration::from_secs(601)).await;
    assert!(matches!(resumed(&dispatcher, 1).await, Err(AttachError::Unknown)));
    drop(stays);
    drop(resumed(&dispatcher, 3).await.expect("it was attached all the time"));
}

#[tokio::test(start_paused = true)]
async fn a_process_that_was_thought_dead_takes_back_its_clients() {
    let outbox = Faulty::default();
    let (dispatcher, _sink) = begin(&outbox).await;
    let _attachment = attached(&dispatcher, 1).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!((stored(&outbox, "keep"), stored(&outbox, "rouse")), (0, 0));
    outbox.faults.lease.store(1, Ordering::SeqCst);
    sleep(Duration::from_secs(2)).await;
    // Others have put off what waited for it.
    assert_eq!((stored(&outbox, "keep"), stored(&outbox, "rouse")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn who_was_replaced_by_another_process_hears_of_it_within_a_third_of_its_time() {
    let outbox = Faulty::default();
    let (dispatcher, _sink) = begin(&outbox).await;
    let attachment = attached(&dispatcher, 1).await;
    let by_another = Attaching {
        dsn: dsn(1),
        id: AttachmentId::new(),
        presented: None,
        secret: None,
        now: Micros(0),
        until: Micros::NEVER,
        limit: 10,
    };
    assert!(outbox.inner.submit(Write::Attach(by_another), Box::new(drop)).is_ok());
    timeout(Duration::from_secs(201), attachment.lost()).await.expect("it has heard");
    // What was attempted here to no avail is due for the other.
    sleep(Duration::from_millis(10)).await;
    assert_eq!(stored(&outbox, "rouse"), 1);
    drop(attachment);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(stored(&outbox, "keep"), 1, "it is no more its own");
}
