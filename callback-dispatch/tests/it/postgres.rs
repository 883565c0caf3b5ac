//! What only an outbox in PostgreSQL has: several processes at once, and servers that refuse.

use crate::support::{CustomSink, Gate, Home, Schema, accept, dsn, echo, ended, event, in_time, receipt, start};
use callback_core::{MemorySink, TaskId};
use callback_dispatch::{AcceptError, Attach, Dispatcher, Interrupted, PostgresOutbox, Task, TaskState, Work};
use serde_json::{Value, json};
use sqlx::{Connection, Executor};
use std::{
    env,
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};

/// A schema of the test's own, with nothing in it.
async fn schema() -> Option<Schema> {
    let Some(Home::Postgres(schema)) = Home::postgres() else { return None };
    schema.stranger().await;
    Some(schema)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dispatchers_that_share_a_database_send_each_message_once() {
    const EVENTS: usize = 600;
    let Some(schema) = schema().await else { return };
    in_time(async {
        let mut stranger = schema.stranger().await;
        let mut dispatchers = Vec::new();
        for _ in 0..3 {
            let sink = MemorySink::new();
            dispatchers.push((start(Dispatcher::builder(schema.connect().await).sink(sink.clone())).await, sink));
        }
        let mut transaction = stranger.begin().await.expect("a transaction");
        for number in 0..EVENTS {
            let stored = dispatchers[0].0.publish_in(&mut transaction, event("memory://events", json!(number))).await;
            stored.expect("published");
        }
        transaction.commit().await.expect("committed");
        let mut sent = Vec::new();
        while sent.len() < EVENTS {
            for (dispatcher, sink) in &dispatchers {
                dispatcher.wake();
                sent.extend(sink.take("events").iter().filter_map(|it| it.message.json::<usize>().ok()));
            }
            tokio::task::yield_now().await;
        }
        for (dispatcher, sink) in dispatchers {
            dispatcher.close(Duration::from_secs(10)).await;
            assert_eq!(sink.take("events").len(), 0, "more was sent than there is");
        }
        sent.sort_unstable();
        assert_eq!(sent, (0..EVENTS).collect::<Vec<_>>());
    })
    .await;
}

/// A process with a local sink, and what its clients are given.
async fn hub(schema: &Schema) -> (Dispatcher, tokio::sync::mpsc::UnboundedReceiver<Value>) {
    let (sender, given) = tokio::sync::mpsc::unbounded_channel();
    let sink = CustomSink::new(move |given| {
        let _ = sender.send(given.message.json().unwrap_or_default());
        async { Ok(receipt()) }
    });
    (start(Dispatcher::builder(schema.connect().await).local_sink(sink)).await, given)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_to_a_client_is_sent_by_the_process_that_it_is_connected_to() {
    let Some(schema) = schema().await else { return };
    in_time(async {
        let attach = |secret| Attach::new(Duration::from_secs(600)).secret([secret; 32]);
        let session = dsn("custom://session");
        let ((one, mut to_one), (two, mut to_two)) = (hub(&schema).await, hub(&schema).await);
        let sinkless = start(Dispatcher::builder(schema.connect().await).sink(MemorySink::new())).await;
        let attachment = one.attach(&session, attach(1)).await.expect("attached");
        // Whoever accepts it, and whoever finds it.
        let mut stranger = schema.stranger().await;
        for number in 0..40 {
            let event = event("custom://session", json!(number));
            match number % 4 {
                0 => drop(one.publish(event).await.expect("published")),
                1 => drop(two.publish(event).await.expect("published")),
                _ => {
                    let mut transaction = stranger.begin().await.expect("a transaction");
                    one.publish_in(&mut transaction, event).await.expect("published");
                    transaction.commit().await.expect("committed");
                }
            }
            sinkless.wake();
            two.wake();
        }
        let mut all = Vec::new();
        for _ in 0..40 {
            all.push(to_one.recv().await.expect("a message"));
        }
        all.sort_by_key(Value::as_u64);
        assert_eq!(all, (0..40).map(Value::from).collect::<Vec<_>>());
        assert!(to_two.try_recv().is_err(), "it is not connected there");

        // It comes to another process, while the first has it still.
        let moved = two.resume(&session, [1; 32], attach(2)).await.expect("attached again");
        let worker = two.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
        let id = accept(&worker, 40, "custom://session").await;
        assert_eq!(ended(&two, id).await.state(), TaskState::Delivered);
        assert_eq!(to_two.recv().await, Some(json!(40)));
        drop(attachment);

        // And its process dies.
        two.close(Duration::from_secs(5)).await;
        moved.lost().await;
        one.publish(event("custom://session", json!(41))).await.expect("published");
        let _back = one.resume(&session, [2; 32], attach(3)).await.expect("attached again");
        assert_eq!(to_one.recv().await, Some(json!(41)));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_process_that_is_not_heard_of_are_away() {
    let Some(schema) = schema().await else { return };
    in_time(async {
        let (gate, mut watch) = Gate::new();
        let dead = Dispatcher::builder(schema.connect().await).local_sink(CustomSink::behind(&gate)).start();
        let dead = dead.await.expect("started");
        let attach = Attach::new(Duration::from_secs(600)).secret([1; 32]);
        let session = dsn("custom://session");
        let _attachment = dead.attach(&session, attach).await.expect("attached");
        dead.publish(event("custom://session", json!(1))).await.expect("published");
        watch.came().await;
        let over = "UPDATE callback_process SET alive_until = now() - interval '1 second'";
        schema.stranger().await.execute(over).await.expect("writable");
        // A new process gives back what the dead had.
        let (other, mut given) = hub(&schema).await;
        let _back = other.resume(&session, [1; 32], attach.secret([2; 32])).await.expect("attached again");
        assert_eq!(given.recv().await, Some(json!(1)));
    })
    .await;
}

#[tokio::test]
async fn what_the_database_refuses_is_not_run() {
    let Some(schema) = schema().await else { return };
    in_time(async {
        let dispatcher = start(Dispatcher::builder(schema.connect().await)).await;
        let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
        let mut stranger = schema.stranger().await;
        let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
                      $$ BEGIN RAISE EXCEPTION 'refused'; END $$; \
                      CREATE TRIGGER refuse BEFORE INSERT ON callback_outbox FOR EACH ROW EXECUTE FUNCTION refuse()";
        stranger.execute(refuse).await.expect("writable");
        let refused = worker.accept(Work::new(json!(1))).await;
        let Err(AcceptError::Outbox(error)) = &refused else { panic!("{refused:?}") };
        assert!(!error.is_unknown() && !error.is_locked(), "{error:?}");
        stranger.execute("DROP TRIGGER refuse ON callback_outbox").await.expect("writable");
        let id = worker.accept(Work::new(json!(2))).await.expect("the service is alive").id();
        assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Completed);
    })
    .await;
}

#[tokio::test]
async fn a_transaction_that_is_open_on_a_key_holds_back_this_key_alone() {
    let Some(schema) = schema().await else { return };
    in_time(async {
        let (gate, mut watch) = Gate::new();
        let builder = Dispatcher::builder(schema.connect().await).sink(CustomSink::behind(&gate));
        let dispatcher = start(builder.sink(MemorySink::new())).await;
        let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
        let in_order = |number: u32| event("custom://a", json!(number)).ordering_key("key");
        dispatcher.publish(in_order(0)).await.expect("published");
        assert_eq!(watch.came().await, 0);

        let mut stranger = schema.stranger().await;
        let mut open = stranger.begin().await.expect("a transaction");
        dispatcher.publish_in(&mut open, in_order(1)).await.expect("published");
        worker.accept_in(&mut open, Work::new(json!(1)).idempotency_key("request")).await.expect("accepted");
        // The step of the first waits for the key, and so does whatever else is of it.
        gate.open(3);
        watch.left().await;
        let mut later = Box::pin(dispatcher.publish(in_order(2)));
        let mut same = Box::pin(worker.accept(Work::new(json!(1)).idempotency_key("request")));
        for number in 0..20 {
            assert!(futures_util::poll!(&mut later).is_pending());
            assert!(futures_util::poll!(&mut same).is_pending());
            let id = accept(&worker, number, "memory://results").await;
            assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Delivered);
        }
        assert!(dispatcher.health().await.is_well());
        watch.assert_nobody();

        open.commit().await.expect("committed");
        later.await.expect("published");
        same.await.expect("it is known");
        assert_eq!((watch.came().await, watch.came().await), (json!(1), json!(2)));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_expires_is_dropped_where_it_goes_on() {
    let Some(schema) = schema().await else { return };
    in_time(async {
        let (gate, mut watch) = Gate::new();
        let running = start(Dispatcher::builder(schema.connect().await)).await;
        let worker = running.worker("gate", Interrupted::RunAgain).run(gate.handler()).expect("registered");
        let others = [start(Dispatcher::builder(schema.connect().await)).await];
        let id = worker.accept(Work::new(json!(1)).expires_in(Duration::from_secs(1))).await.expect("accepted").id();
        watch.came().await;
        watch.left().await;
        assert_eq!(ended(&running, id).await.state(), TaskState::Expired);
        drop(others);
    })
    .await;
}

#[tokio::test]
async fn a_step_that_the_database_refuses_holds_up_nothing_else() {
    let Some(schema) = schema().await else { return };
    in_time(async {
        let sink = MemorySink::new();
        let dispatcher = start(Dispatcher::builder(schema.connect().await).sink(sink.clone())).await;
        let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
        let mut stranger = schema.stranger().await;
        let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
                      $$ BEGIN RAISE EXCEPTION 'refused'; END $$; \
                      CREATE TRIGGER refuse BEFORE UPDATE ON callback_outbox FOR EACH ROW \
                      WHEN (OLD.destination = 'memory://refused' AND NEW.stage = 11) EXECUTE FUNCTION refuse()";
        stranger.execute(refuse).await.expect("writable");
        let refused = accept(&worker, 0, "memory://refused").await;
        sink.next("refused").await;
        for number in 1..20 {
            let id = accept(&worker, number, "memory://results").await;
            assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Delivered);
        }
        let health = dispatcher.health().await;
        assert!(health.is_well() && health.waiting_writes == 1, "{health:?}");
        stranger.execute("DROP TRIGGER refuse ON callback_outbox").await.expect("writable");
        assert_eq!(ended(&dispatcher, refused).await.state(), TaskState::Delivered);
        assert!(sink.take("refused").is_empty(), "it is sent once");
    })
    .await;
}

#[tokio::test]
async fn a_pool_of_the_users_own_stays_open() {
    let Some(schema) = schema().await else { return };
    in_time(async {
        let pool = sqlx::PgPool::connect(&schema.url()).await.expect("a pool");
        let outbox = PostgresOutbox::with_pool(pool.clone()).await.expect("the outbox can be opened");
        let dispatcher = start(Dispatcher::builder(outbox).sink(MemorySink::new())).await;
        dispatcher.publish(event("memory://events", json!(1))).await.expect("published");
        dispatcher.close(Duration::from_secs(10)).await;
        let stored: i64 = sqlx::query_scalar("SELECT count(*) FROM callback_outbox WHERE stage = 11")
            .fetch_one(&pool)
            .await
            .expect("the pool is open");
        assert_eq!(stored, 1);
    })
    .await;
}

#[tokio::test]
async fn neither_errors_nor_the_outbox_tell_the_password() {
    let error = PostgresOutbox::connect("postgres://user:hunter2@127.0.0.1:1/none").await.expect_err("nobody listens");
    assert!(!format!("{error:?} {error}").contains("hunter2"), "{error:?}");
    let error = PostgresOutbox::connect("hunter2").await.expect_err("no URL");
    assert!(!format!("{error:?} {error}").contains("hunter2"), "{error:?}");
    let Some(schema) = schema().await else { return };
    let url = schema.url().replace("callback@", "callback:hunter2@");
    let outbox = PostgresOutbox::connect(&url).await.expect("the outbox can be opened");
    assert!(!format!("{outbox:?}").contains("hunter2"));
}

/// Set in the process that is killed or stopped: the URL of the outbox.
const OTHER: &str = "CALLBACK_TEST_OTHER_PROCESS";

/// Short, since it has to end; what is checked does not depend on it.
const LEASE: Duration = Duration::from_secs(1);

/// The other process: it accepts a task and works until it is told to end.
#[expect(clippy::print_stdout, reason = "its parent listens")]
async fn other_process(url: &str) {
    let outbox = PostgresOutbox::builder().lease(LEASE).connect(url).await.expect("the outbox can be opened");
    let sink = MemorySink::new();
    let dispatcher = start(Dispatcher::builder(outbox).sink(sink.clone())).await;
    let (told_over, over) = tokio::sync::watch::channel(());
    let handler = move |task: Task| {
        let told_over = told_over.clone();
        async move {
            println!("began {}", task.id());
            let line = tokio::task::spawn_blocking(|| std::io::stdin().lines().next());
            line.await.expect("a thread").expect("a line").expect("readable");
            let _ = told_over.send(());
            Ok::<_, Value>(json!("of the other"))
        }
    };
    let worker = dispatcher.worker("slow", Interrupted::RunAgain).run(handler).expect("registered");
    let work = Work::new(json!(1)).callback(dsn("memory://results"));
    worker.accept(work).await.expect("accepted");
    let mut over = over;
    over.changed().await.expect("the handler ends");
    dispatcher.close(Duration::from_secs(10)).await;
    println!("sent {}", sink.take("results").len());
}

struct Other {
    child: Child,
    told: Lines<BufReader<tokio::net::unix::pipe::Receiver>>,
}

impl Other {
    fn start(test: &str, url: &str) -> Self {
        let mut child = Command::new(env::current_exe().expect("the test's own path"))
            .args([test, "--exact", "--nocapture"])
            .env(OTHER, url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let output = std::os::fd::OwnedFd::from(child.stdout.take().expect("piped"));
        let output = tokio::net::unix::pipe::Receiver::from_owned_fd(output).expect("a pipe");
        Self { child, told: BufReader::new(output).lines() }
    }

    /// What it says after this word.
    async fn tells(&mut self, word: &str) -> String {
        loop {
            let line = self.told.next_line().await.expect("readable").expect("it goes on");
            if let Some((_, rest)) = line.split_once(word) {
                return rest.trim().to_owned();
            }
        }
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().expect("kill runs");
        assert!(sent.success());
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A second process on the outbox, which has the first one's work once that is not heard of any more.
async fn take_over(schema: &Schema, id: TaskId) -> (Dispatcher, MemorySink) {
    let outbox = PostgresOutbox::builder().lease(LEASE).connect(&schema.url()).await.expect("the outbox can be opened");
    let sink = MemorySink::new();
    let dispatcher = start(Dispatcher::builder(outbox).sink(sink.clone())).await;
    let handler = |_: Task| async { Ok::<_, Value>(json!("of this one")) };
    dispatcher.worker("slow", Interrupted::RunAgain).run(handler).expect("registered");
    let task = ended(&dispatcher, id).await;
    assert_eq!((task.state(), task.runs()), (TaskState::Delivered, 2));
    assert_eq!(sink.next("results").await.message.json::<String>().expect("text"), "of this one");
    (dispatcher, sink)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_process_had_in_hand_is_done_by_another() {
    if let Ok(url) = env::var(OTHER) {
        return other_process(&url).await;
    }
    let Some(schema) = schema().await else { return };
    in_time(async {
        let name = "postgres::what_a_killed_process_had_in_hand_is_done_by_another";
        let mut other = Other::start(name, &schema.url());
        let id = other.tells("began ").await.parse().expect("an id");
        other.signal("-KILL");
        take_over(&schema, id).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_stopped_process_does_later_does_not_count() {
    if let Ok(url) = env::var(OTHER) {
        return other_process(&url).await;
    }
    let Some(schema) = schema().await else { return };
    in_time(async {
        let name = "postgres::what_a_stopped_process_does_later_does_not_count";
        let mut other = Other::start(name, &schema.url());
        let id = other.tells("began ").await.parse().expect("an id");
        other.signal("-STOP");
        let (dispatcher, sink) = take_over(&schema, id).await;

        other.signal("-CONT");
        std::io::Write::write_all(&mut other.child.stdin.take().expect("piped"), b"end\n").expect("it listens");
        assert_eq!(other.tells("sent ").await, "0");
        let task = ended(&dispatcher, id).await;
        assert_eq!((task.state(), task.runs()), (TaskState::Delivered, 2));
        assert_eq!(sink.take("results").len(), 0, "it is delivered once");
    })
    .await;
}
