//! `dead-letters` beside a running service.

use crate::service::{Config, call};
use axum::{Router, extract::State, http::StatusCode, routing::post};
use callback_examples::Server;
use std::{
    net::Ipv4Addr,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};
use tokio::sync::mpsc;

/// What the program says, and whether it ended well.
fn dead_letters(store: &Path, arguments: &[&str]) -> (bool, String) {
    let program = Command::new(env!("CARGO_BIN_EXE_dead-letters")).arg(store).args(arguments).output();
    let output = program.expect("the program was built");
    let said = if output.status.success() { output.stdout } else { output.stderr };
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// The lines of `list`, once there are so many.
fn listed(store: &Path, count: usize) -> Vec<String> {
    for _ in 0..1_000 {
        let (well, said) = dead_letters(store, &["list"]);
        assert!(well, "{said}");
        let lines: Vec<String> = said.lines().map(str::to_owned).collect();
        if lines.len() == count {
            return lines;
        }
    }
    panic!("there are never {count} dead letters");
}

type Answer = (Arc<AtomicU16>, mpsc::UnboundedSender<u16>);

async fn answer_by(State((answer, told)): State<Answer>) -> StatusCode {
    let status = answer.load(Ordering::SeqCst);
    let _ = told.send(status);
    StatusCode::from_u16(status).expect("a status")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_up_is_listed_shown_replayed_and_purged() {
    let folder = tempfile::tempdir().expect("a folder");
    let answer = Arc::new(AtomicU16::new(400));
    let (sender, mut answers) = mpsc::unbounded_channel();
    let router = Router::new().route("/callback", post(answer_by));
    let router = router.with_state((Arc::clone(&answer), sender));
    let receiver = Server::start((Ipv4Addr::LOCALHOST, 0).into(), router).await.expect("a free port");
    let host = receiver.address();
    let config = Config::new(folder.path());
    let service = config.start();
    for order in ["order-1", "order-2", "order-3", "order-4"] {
        let url = format!("http://{host}/callback?key=planted");
        service.post(&call(order, "OrderService.processOrder", &url)).await;
    }
    let store = &config.store;
    let lines = listed(store, 4);
    assert!(lines.iter().all(|line| line.contains("callback.rpc.completed") && line.contains("refused")), "{lines:?}");
    assert!(!lines.concat().contains("planted"), "{lines:?}");

    let ids: Vec<&str> = lines.iter().filter_map(|line| line.split(' ').next()).collect();
    let (well, said) = dead_letters(store, &["show", ids[0]]);
    assert!(well && said.contains("in the phase answer: refused (status 400)"), "{said}");

    answer.store(204, Ordering::SeqCst);
    assert_eq!(dead_letters(store, &["replay", ids[0]]), (true, "replayed\n".into()));
    let (well, said) = dead_letters(store, &["replay", ids[1], "--as-new"]);
    assert!(well && said.starts_with("replayed as ") && !said.contains(ids[1]), "{said}");
    for expected in [400, 400, 400, 400, 204, 204] {
        assert_eq!(answers.recv().await, Some(expected));
    }
    listed(store, 2);
    let (well, said) = dead_letters(store, &["replay", ids[0]]);
    assert!(!well && said.contains("there is no such dead letter"), "{said}");

    answer.store(400, Ordering::SeqCst);
    let (well, said) = dead_letters(store, &["replay-host", &format!("http://{host}")]);
    assert_eq!((well, &*said), (true, "2 replayed\n"));
    listed(store, 2);
    assert_eq!(dead_letters(store, &["purge"]), (true, "0 purged\n".into()));
    assert_eq!(dead_letters(store, &["purge", "--days", "0"]), (true, "2 purged\n".into()));
    listed(store, 0);
}

#[test]
fn a_wrong_argument_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = folder.path().join("orders.db");
    let (well, said) = dead_letters(&store, &["list"]);
    assert!(!well && said.contains("there is no store"), "{said}");
    assert!(!store.exists());
    std::fs::write(&store, "no database, but a text that is long enough to be taken for one by its size")
        .expect("written");
    let (well, said) = dead_letters(&store, &["list"]);
    assert!(!well && said.contains("because"), "{said}");
    for arguments in [["show", "no id"], ["replay-host", "no host"], ["purge", "soon"]] {
        let (well, said) = dead_letters(&store, &arguments);
        assert!(!well && said.contains(arguments[1]), "{said}");
    }
    let (well, help) = dead_letters(&store, &["--help"]);
    assert!(well && ["list", "show", "replay", "replay-host", "purge"].iter().all(|it| help.contains(it)), "{help}");
}
