//! Lives of a process: what one leaves, the next one finishes, without a request.

use crate::support::{CustomSink, Gate, Home, accept, dsn, echo, ended, event, killed, lived, receipt, start, task};
use callback_core::{MemorySink, Message, Problem, Schedule, SinkError, TaskId};
use callback_dispatch::{Dispatcher, Failure, Interrupted, Outcome, Task, TaskState, Work, Worker};
use serde_json::{Value, json};
use std::{collections::BTreeSet, future::pending, time::Duration};
use tokio::sync::mpsc;

over_lives_on_each_outbox!(
    what_was_running_runs_again_and_sees_the_same,
    what_was_waiting_is_run,
    what_was_being_delivered_is_delivered_without_its_worker,
    what_waited_for_a_retry_goes_on_counting,
    work_of_a_missing_worker_waits_for_it,
    what_is_left_unfinished_three_times_is_reported,
    suspects_run_one_at_a_time_so_that_no_other_is_blamed,
    suspects_hold_up_neither_what_is_new_nor_another_workers,
    what_must_not_run_again_is_reported,
    what_had_not_begun_is_run_though_it_may_run_but_once,
    a_task_may_say_itself_what_becomes_of_it,
    what_is_deferred_is_completed_in_another_life,
    what_has_ended_is_left_alone,
    handles_that_are_dropped_leave_their_work_to_the_next_life,
);

/// What a handler can see of a task.
#[derive(Debug, PartialEq)]
struct Seen {
    id: TaskId,
    operation: String,
    payload: callback_core::Payload,
    headers: Vec<(String, String)>,
    customer: Option<Value>,
    owner: Option<String>,
    correlation_id: Option<String>,
    accepted_at: std::time::SystemTime,
}

impl Seen {
    fn of(task: &Task) -> Self {
        Self {
            id: task.id(),
            operation: task.operation().to_owned(),
            payload: task.payload().clone(),
            headers: task.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            customer: task.extension("customer").cloned(),
            owner: task.owner().map(str::to_owned),
            correlation_id: task.correlation_id().map(str::to_owned),
            accepted_at: task.accepted_at(),
        }
    }
}

#[track_caller]
fn check_interrupted(message: &Message) {
    assert_eq!((message.event_type(), message.content_type()), ("callback.task.failed", Problem::CONTENT_TYPE));
    let problem: Value = message.json().expect("a problem");
    assert_eq!(problem["title"], Failure::Interrupted.to_string());
}

/// A life with a worker `gate` that holds what it is given.
async fn begin(
    home: &Home,
    sink: &MemorySink,
    gate: &Gate,
    interrupted: Interrupted,
    concurrency: usize,
) -> (Dispatcher, Worker) {
    let dispatcher = start(home.builder().await.sink(sink.clone())).await;
    let worker = dispatcher.worker("gate", interrupted).concurrency(concurrency);
    let worker = worker.run(gate.handler()).expect("registered");
    (dispatcher, worker)
}

fn what_was_running_runs_again_and_sees_the_same(home: &Home) {
    let first = killed(async {
        let (sender, mut tasks) = mpsc::unbounded_channel();
        let dispatcher = start(home.builder().await.sink(MemorySink::new())).await;
        let handler = move |task: Task| {
            let _ = sender.send((task.runs(), Seen::of(&task)));
            pending::<Outcome>()
        };
        let worker = dispatcher.worker("seeing", Interrupted::RunAgain).run(handler).expect("registered");
        let work = Work::new(json!({ "orderId": "12345" }))
            .callback(dsn("memory://results"))
            .operation("Order.process")
            .owner("acme")
            .correlation_id("ray")
            .header("x-tenant", "7")
            .header("X-Tenant", "8")
            .extension("customer", json!({ "id": 7 }))
            .pass_on("x-request-id", "r-1");
        worker.accept(work).await.expect("accepted");
        (tasks.recv().await.expect("it runs"), (dispatcher, worker))
    });
    assert_eq!((first.0, &first.1.owner), (1, &Some("acme".to_owned())));

    lived(async {
        let (sender, mut tasks) = mpsc::unbounded_channel();
        let sink = MemorySink::new();
        let dispatcher = start(home.builder().await.sink(sink.clone())).await;
        let handler = move |task: Task| {
            let _ = sender.send((task.runs(), Seen::of(&task)));
            echo(task)
        };
        let _worker = dispatcher.worker("seeing", Interrupted::RunAgain).run(handler).expect("registered");
        assert_eq!(tasks.recv().await, Some((2, first.1)));
        let message = sink.next("results").await.message;
        assert_eq!((message.header("x-request-id"), message.correlation_id()), (Some("r-1"), Some("ray")));
        let task = ended(&dispatcher, message.id().as_str().parse().expect("a task's id")).await;
        assert_eq!(task.state(), TaskState::Delivered);
    });
}

fn what_was_waiting_is_run(home: &Home) {
    let ids = killed(async {
        let (gate, mut watch) = Gate::new();
        let life = begin(home, &MemorySink::new(), &gate, Interrupted::RunAgain, 1).await;
        let mut ids = BTreeSet::new();
        // One runs, some wait in memory, and some in the store.
        for number in 0..9 {
            ids.insert(accept(&life.1, number, "memory://results").await.to_string());
        }
        watch.came().await;
        (ids, life)
    });
    lived(async {
        let (sink, (gate, _watch)) = (MemorySink::new(), Gate::new());
        gate.open(100);
        let _life = begin(home, &sink, &gate, Interrupted::RunAgain, 1).await;
        let mut arrived = BTreeSet::new();
        while arrived.len() < ids.len() {
            arrived.insert(sink.next("results").await.message.id().to_string());
        }
        assert_eq!(arrived, ids);
    });
}

fn what_was_being_delivered_is_delivered_without_its_worker(home: &Home) {
    let ids = killed(async {
        let (sender, mut attempts) = mpsc::unbounded_channel();
        let sink = CustomSink::new(move |given| {
            let _ = sender.send(given.message.id().to_string());
            pending()
        });
        let dispatcher = start(home.builder().await.sink(sink)).await;
        let worker = dispatcher.worker("echo", Interrupted::Report).run(echo).expect("registered");
        accept(&worker, "result", "custom://a").await;
        dispatcher.publish(event("custom://b", json!("event"))).await.expect("published");
        let ids = [attempts.recv().await.expect("an attempt"), attempts.recv().await.expect("an attempt")];
        (BTreeSet::from(ids), (dispatcher, worker))
    });
    lived(async {
        let (sender, mut attempts) = mpsc::unbounded_channel();
        let sink = CustomSink::new(move |given| {
            let _ = sender.send((given.message.id().to_string(), given.attempt.number()));
            async { Ok(receipt()) }
        });
        let _dispatcher = start(home.builder().await.sink(sink)).await;
        let mut arrived = BTreeSet::new();
        for _ in &ids {
            let (id, number) = attempts.recv().await.expect("an attempt");
            // Nothing was stored of the attempt that the crash cut short.
            assert_eq!(number, 1);
            arrived.insert(id);
        }
        assert_eq!(arrived, ids);
    });
}

fn what_waited_for_a_retry_goes_on_counting(home: &Home) {
    let schedule = || Schedule::new([Duration::from_millis(1); 2]).expect("valid");
    killed(async {
        let (sender, mut attempts) = mpsc::unbounded_channel();
        let sink = CustomSink::new(move |given| {
            let number = given.attempt.number();
            let _ = sender.send(number);
            async move { if number == 1 { Err(SinkError::unavailable("down")) } else { pending().await } }
        });
        let dispatcher = start(home.builder().await.sink(sink).schedule(schedule())).await;
        dispatcher.publish(event("custom://a", json!(1))).await.expect("published");
        assert_eq!((attempts.recv().await, attempts.recv().await), (Some(1), Some(2)));
        ((), dispatcher)
    });
    lived(async {
        let (sender, mut attempts) = mpsc::unbounded_channel();
        let sink = CustomSink::new(move |given| {
            let _ = sender.send(given.attempt.number());
            async { Err(SinkError::unavailable("down")) }
        });
        let dispatcher = start(home.builder().await.sink(sink).schedule(schedule())).await;
        assert_eq!((attempts.recv().await, attempts.recv().await), (Some(2), Some(3)));
        let letter = loop {
            let page = dispatcher.dead_letters().list(&Default::default()).await.expect("readable");
            match page.items.into_iter().next() {
                Some(letter) => break letter,
                None => tokio::task::yield_now().await,
            }
        };
        let numbers: Vec<u32> = letter.attempts.iter().map(|attempt| attempt.number).collect();
        assert_eq!(numbers, [1, 2, 3]);
    });
}

fn work_of_a_missing_worker_waits_for_it(home: &Home) {
    let id = killed(async {
        let (gate, mut watch) = Gate::new();
        let life = begin(home, &MemorySink::new(), &gate, Interrupted::RunAgain, 1).await;
        let id = accept(&life.1, "waits", "memory://results").await;
        watch.came().await;
        (id, life)
    });
    lived(async {
        let (sink, (gate, mut watch)) = (MemorySink::new(), Gate::new());
        let dispatcher = start(home.builder().await.sink(sink.clone())).await;
        let other = dispatcher.worker("other", Interrupted::RunAgain).run(gate.handler()).expect("registered");
        accept(&other, "other", "memory://others").await;
        gate.open(2);
        assert_eq!(watch.came().await, "other");
        sink.next("others").await;
        assert_eq!(task(&dispatcher, id).await.state(), TaskState::Accepted);
        watch.assert_nobody();

        let _worker = dispatcher.worker("gate", Interrupted::RunAgain).run(gate.handler()).expect("registered");
        assert_eq!(watch.came().await, "waits");
        assert_eq!(sink.next("results").await.message.id().to_string(), id.to_string());
    });
}

fn what_is_left_unfinished_three_times_is_reported(home: &Home) {
    for life in 1..=3 {
        killed(async {
            let (sender, mut tasks) = mpsc::unbounded_channel();
            let dispatcher = start(home.builder().await.sink(MemorySink::new())).await;
            let handler = move |task: Task| {
                let _ = sender.send(task.runs());
                pending::<Outcome>()
            };
            let worker = dispatcher.worker("fatal", Interrupted::RunAgain).run(handler).expect("registered");
            if life == 1 {
                accept(&worker, "fatal", "memory://results").await;
            }
            assert_eq!(tasks.recv().await, Some(life));
            ((), (dispatcher, worker))
        });
    }
    lived(async {
        let (sink, (gate, mut watch)) = (MemorySink::new(), Gate::new());
        let dispatcher = start(home.builder().await.sink(sink.clone())).await;
        let worker = dispatcher.worker("fatal", Interrupted::RunAgain).run(gate.handler()).expect("registered");
        check_interrupted(&sink.next("results").await.message);
        watch.assert_nobody();
        // The process lives, and so does the worker.
        gate.open(1);
        accept(&worker, "next", "memory://results").await;
        assert_eq!(sink.next("results").await.message.json::<Value>().expect("JSON"), "next");
    });
}

fn suspects_run_one_at_a_time_so_that_no_other_is_blamed(home: &Home) {
    // Three lives end while four tasks are in hand: all four are suspects then.
    for life in 1..=3 {
        killed(async {
            let (sender, mut tasks) = mpsc::unbounded_channel();
            let dispatcher = start(home.builder().await.sink(MemorySink::new())).await;
            let handler = move |task: Task| {
                let _ = sender.send(task.runs());
                pending::<Outcome>()
            };
            let worker = dispatcher.worker("crowd", Interrupted::RunAgain).run(handler).expect("registered");
            if life == 1 {
                for number in 0..4 {
                    accept(&worker, number, "memory://results").await;
                }
            }
            // In the third life only the one that runs alone has begun.
            for _ in 0..if life == 3 { 1 } else { 4 } {
                assert_eq!(tasks.recv().await, Some(life));
            }
            ((), (dispatcher, worker))
        });
    }
    lived(async {
        let sink = MemorySink::new();
        let dispatcher = start(home.builder().await.sink(sink.clone())).await;
        let _worker = dispatcher.worker("crowd", Interrupted::RunAgain).run(echo).expect("registered");
        let mut interrupted = 0;
        for _ in 0..4 {
            interrupted += usize::from(sink.next("results").await.message.event_type() == "callback.task.failed");
        }
        assert_eq!(interrupted, 1, "the one that ran when the process ended");
    });
}

fn suspects_hold_up_neither_what_is_new_nor_another_workers(home: &Home) {
    // As many as a worker has in memory.
    const CROWD: usize = 8;
    for life in 1..=2 {
        killed(async {
            let (sender, mut tasks) = mpsc::unbounded_channel();
            let dispatcher = start(home.builder().await.sink(MemorySink::new())).await;
            let mut workers = Vec::new();
            for name in ["one", "two"] {
                let sender = sender.clone();
                let handler = move |task: Task| {
                    let _ = sender.send(task.runs());
                    pending::<Outcome>()
                };
                let worker = dispatcher.worker(name, Interrupted::RunAgain).concurrency(2);
                let worker = worker.run(handler).expect("registered");
                for _ in 0..if life == 1 { CROWD } else { 0 } {
                    accept(&worker, name, "memory://old").await;
                }
                workers.push(worker);
            }
            for _ in 0..4 {
                tasks.recv().await.expect("it runs");
            }
            // All that a crash will find is in hand.
            while dispatcher.health().await.in_hand < 2 * CROWD {
                tokio::task::yield_now().await;
            }
            ((), (dispatcher, workers))
        });
    }
    lived(async {
        let sink = MemorySink::new();
        let dispatcher = start(home.builder().await.sink(sink.clone())).await;
        let hangs = |task: Task| async move {
            if task.runs() > 1 {
                pending::<()>().await;
            }
            echo(task).await
        };
        let one = dispatcher.worker("one", Interrupted::RunAgain).concurrency(2).run(hangs).expect("registered");
        let _two = dispatcher.worker("two", Interrupted::RunAgain).concurrency(2).run(echo).expect("registered");
        for number in 0..CROWD {
            accept(&one, number, "memory://new").await;
            sink.next("new").await;
        }
        for _ in 0..CROWD {
            sink.next("old").await;
        }
        dispatcher.close(Duration::ZERO).await;
    });
}

fn what_must_not_run_again_is_reported(home: &Home) {
    let id = killed(async {
        let (gate, mut watch) = Gate::new();
        let life = begin(home, &MemorySink::new(), &gate, Interrupted::Report, 1).await;
        let id = accept(&life.1, "charge a card", "memory://results").await;
        watch.came().await;
        (id, life)
    });
    lived(async {
        let (sink, (gate, mut watch)) = (MemorySink::new(), Gate::new());
        let (dispatcher, _worker) = begin(home, &sink, &gate, Interrupted::Report, 1).await;
        let message = sink.next("results").await.message;
        assert_eq!(message.id().to_string(), id.to_string());
        check_interrupted(&message);
        assert!(ended(&dispatcher, id).await.outcome().is_some_and(Outcome::is_failed));
        watch.assert_nobody();
    });
}

fn what_had_not_begun_is_run_though_it_may_run_but_once(home: &Home) {
    let (begun, waiting) = killed(async {
        let (gate, mut watch) = Gate::new();
        let life = begin(home, &MemorySink::new(), &gate, Interrupted::Report, 1).await;
        let begun = accept(&life.1, "begun", "memory://begun").await;
        assert_eq!(watch.came().await, "begun");
        let waiting = accept(&life.1, "waiting", "memory://waiting").await;
        ((begun, waiting), life)
    });
    lived(async {
        let (sink, (gate, mut watch)) = (MemorySink::new(), Gate::new());
        // In any order: the report may wait behind the run that is held, if they share a permit.
        let _life = begin(home, &sink, &gate, Interrupted::Report, 2).await;
        let message = sink.next("begun").await.message;
        assert_eq!(message.id().to_string(), begun.to_string());
        check_interrupted(&message);
        assert_eq!(watch.came().await, "waiting");
        gate.open(1);
        let message = sink.next("waiting").await.message;
        assert_eq!((message.id().to_string(), &message.body()[..]), (waiting.to_string(), &b"\"waiting\""[..]));
    });
}

fn a_task_may_say_itself_what_becomes_of_it(home: &Home) {
    killed(async {
        let (gate, mut watch) = Gate::new();
        let life = begin(home, &MemorySink::new(), &gate, Interrupted::RunAgain, 2).await;
        accept(&life.1, "again", "memory://again").await;
        let work = Work::new(json!("report")).callback(dsn("memory://report")).interrupted(Interrupted::Report);
        life.1.accept(work).await.expect("accepted");
        watch.came().await;
        watch.came().await;
        ((), life)
    });
    lived(async {
        let (sink, (gate, _watch)) = (MemorySink::new(), Gate::new());
        gate.open(2);
        let _life = begin(home, &sink, &gate, Interrupted::RunAgain, 2).await;
        check_interrupted(&sink.next("report").await.message);
        assert_eq!(sink.next("again").await.message.json::<Value>().expect("JSON"), "again");
    });
}

fn what_is_deferred_is_completed_in_another_life(home: &Home) {
    let id = killed(async {
        let dispatcher = start(home.builder().await.sink(MemorySink::new())).await;
        let (sender, mut runs) = mpsc::unbounded_channel();
        let handler = move |task: Task| {
            let _ = sender.send(task.id());
            async { Outcome::deferred() }
        };
        let worker = dispatcher.worker("deferring", Interrupted::Report).run(handler).expect("registered");
        let id = accept(&worker, "elsewhere", "memory://results").await;
        assert_eq!(runs.recv().await, Some(id));
        dispatcher.close(Duration::from_secs(30)).await;
        (id, (dispatcher, worker))
    });
    lived(async {
        let (sink, (gate, mut watch)) = (MemorySink::new(), Gate::new());
        let dispatcher = start(home.builder().await.sink(sink.clone())).await;
        let _worker = dispatcher.worker("deferring", Interrupted::Report).run(gate.handler()).expect("registered");
        assert_eq!(task(&dispatcher, id).await.state(), TaskState::Running);
        dispatcher.complete(id, Outcome::completed(json!("done"))).await.expect("completed");
        assert_eq!(sink.next("results").await.message.json::<Value>().expect("JSON"), "done");
        watch.assert_nobody();
    });
}

fn what_has_ended_is_left_alone(home: &Home) {
    let (delivered, completed, dead, cancelled) = killed(async {
        let sink = MemorySink::new();
        sink.fail("refused", SinkError::refused("no"));
        let dispatcher = start(home.builder().await.sink(sink.clone())).await;
        let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
        let delivered = accept(&worker, 1, "memory://results").await;
        let completed = worker.accept(Work::new(json!(2))).await.expect("accepted").id();
        let dead = accept(&worker, 3, "memory://refused").await;
        for id in [delivered, completed, dead] {
            ended(&dispatcher, id).await;
        }
        let (gate, mut watch) = Gate::new();
        let worker = dispatcher.worker("gate", Interrupted::RunAgain).run(gate.handler()).expect("registered");
        let cancelled = accept(&worker, 4, "memory://results").await;
        watch.came().await;
        dispatcher.cancel(cancelled).await.expect("cancelled");
        ((delivered, completed, dead, cancelled), (dispatcher, worker))
    });
    lived(async {
        let (sink, (gate, mut watch)) = (MemorySink::new(), Gate::new());
        let (dispatcher, worker) = begin(home, &sink, &gate, Interrupted::RunAgain, 1).await;
        let _echo = dispatcher.worker("echo", Interrupted::RunAgain).run(gate.handler()).expect("registered");
        // What is accepted in this life comes after whatever the former one left.
        gate.open(1);
        accept(&worker, "next", "memory://results").await;
        assert_eq!(watch.came().await, "next");
        assert_eq!(sink.next("results").await.message.json::<Value>().expect("JSON"), "next");
        assert!(sink.take("refused").is_empty());
        for (id, state) in [
            (delivered, TaskState::Delivered),
            (completed, TaskState::Completed),
            (dead, TaskState::Dead),
            (cancelled, TaskState::Cancelled),
        ] {
            assert_eq!(task(&dispatcher, id).await.state(), state);
        }
    });
}

fn handles_that_are_dropped_leave_their_work_to_the_next_life(home: &Home) {
    let id = lived(async {
        let (gate, mut watch) = Gate::new();
        let (dispatcher, worker) = begin(home, &MemorySink::new(), &gate, Interrupted::RunAgain, 1).await;
        let id = accept(&worker, "left", "memory://results").await;
        watch.came().await;
        drop(dispatcher);
        // A worker's handle keeps the engine alive.
        accept(&worker, "waiting", "memory://results").await;
        drop(worker);
        assert_eq!(watch.left().await, "left");
        watch.assert_nobody();
        id
    });
    lived(async {
        let (sink, (gate, _watch)) = (MemorySink::new(), Gate::new());
        gate.open(2);
        let _life = begin(home, &sink, &gate, Interrupted::RunAgain, 1).await;
        let arrived = [sink.next("results").await.message, sink.next("results").await.message];
        assert!(arrived.iter().any(|message| message.id().to_string() == id.to_string()));
    });
}
