//! Killed at random moments, the service loses nothing that it acknowledged.

use crate::service::{Config, NoAnswer, Receiver, call, free_address, send_to};
use serde_json::Value;
use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Semaphore, task::JoinSet, time::sleep};

const REQUESTS: usize = 2_000;
const KILLS: usize = 20;
/// How many requests may be sent in one life, so that all lives have some.
const A_LIFE: usize = REQUESTS / KILLS;

#[derive(Default)]
struct Ledger {
    next: AtomicUsize,
    sent: Mutex<HashSet<String>>,
    acknowledged: Mutex<HashSet<String>>,
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::print_stdout, reason = "the figures are part of the proof")]
async fn what_was_acknowledged_arrives_through_twenty_kills() {
    let folder = tempfile::tempdir().expect("a folder");
    let receiver = Receiver::start().await;
    let mut config = Config::new(folder.path());
    config.listen = free_address();
    let ledger = Arc::new(Ledger::default());
    let allowed = Arc::new(Semaphore::new(0));
    let mut senders = JoinSet::new();
    for _ in 0..16 {
        senders.spawn(send(Arc::clone(&ledger), Arc::clone(&allowed), config.listen, receiver.url()));
    }

    let mut kills = 0;
    while kills < KILLS || ledger.next.load(Ordering::SeqCst) < REQUESTS {
        let service = config.start();
        allowed.add_permits(A_LIFE);
        // The moment is random, as is what the process is at then: no signal could name it.
        sleep(Duration::from_millis(20 + random() % 180)).await;
        service.kill();
        kills += 1;
    }
    let _service = config.start();
    allowed.close();
    while senders.join_next().await.is_some() {}

    let acknowledged = ledger.acknowledged.lock().expect("not poisoned").clone();
    receiver.until(|arrived| acknowledged.iter().all(|id| arrived.contains_key(id))).await;
    let (arrived, sent) = (receiver.all(), ledger.sent.lock().expect("not poisoned"));
    let duplicated = arrived.values().filter(|bodies| bodies.len() > 1).count();
    let lost = acknowledged.iter().filter(|id| !arrived.contains_key(*id)).count();
    let is_report = |body: &Value| body["error"]["code"] == -32012;
    let reported = arrived.values().filter(|bodies| bodies.iter().any(is_report)).count();
    let wrong = |id: &str, body: &Value| body["result"]["orderId"] != id && body["error"]["code"] != -32012;
    let unacknowledged = arrived.keys().filter(|id| !acknowledged.contains(*id)).count();
    println!(
        "lost {lost} duplicated {duplicated} unacknowledged {unacknowledged} reported {reported} restarts {kills} sent {} acknowledged {}",
        sent.len(),
        acknowledged.len()
    );
    assert_eq!(lost, 0);
    assert!(arrived.keys().all(|id| sent.contains(id)), "what arrives was sent");
    assert!(!arrived.iter().any(|(id, bodies)| bodies.iter().any(|body| wrong(id, body))), "each is its own result");
    // In a life in which suspects run alone, a kill can meet one of them.
    assert!(reported <= kills, "{reported} were reported as interrupted");
    assert!(acknowledged.len() >= REQUESTS / 2, "{} of {REQUESTS} were acknowledged", acknowledged.len());
}

/// Sends requests, each once, until all are sent.
async fn send(ledger: Arc<Ledger>, allowed: Arc<Semaphore>, service: std::net::SocketAddr, callback: String) {
    while ledger.next.load(Ordering::SeqCst) < REQUESTS {
        let Ok(permit) = allowed.acquire().await else { return };
        permit.forget();
        let id = format!("request-{}", ledger.next.fetch_add(1, Ordering::SeqCst));
        let body = call(&id, "OrderService.processOrder", &callback);
        ledger.sent.lock().expect("not poisoned").insert(id.clone());
        loop {
            match send_to(service, "/rpc", &body).await {
                Ok((200, answer)) => {
                    let answer: Value = serde_json::from_str(&answer).expect("JSON");
                    if answer["result"]["callback"]["status"] == true {
                        ledger.acknowledged.lock().expect("not poisoned").insert(id);
                    }
                    break;
                }
                Ok(_) | Err(NoAnswer::Unknown) => break,
                // Nobody listens: the next life is on its way.
                Err(NoAnswer::NotSent) => sleep(Duration::from_millis(5)).await,
            }
        }
    }
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the system has randomness");
    u64::from_le_bytes(bytes)
}
