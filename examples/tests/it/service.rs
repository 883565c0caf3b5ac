//! The `order-service` program, a client and a receiver.

use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::post};
use callback_examples::Server;
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    time::timeout,
};

pub(crate) const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A running `order-service serve`; killed when dropped.
pub(crate) struct Service {
    process: Child,
    pub(crate) address: SocketAddr,
}

pub(crate) struct Config {
    pub(crate) store: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) arguments: Vec<&'static str>,
}

impl Config {
    /// Callbacks to loopback are open, work takes 20 ms.
    pub(crate) fn new(folder: &Path) -> Self {
        let arguments = vec!["--allow", "127.0.0.0/8", "--work", "20", "--secret", SECRET];
        Self { store: folder.join("orders.db"), listen: (Ipv4Addr::LOCALHOST, 0).into(), arguments }
    }

    pub(crate) fn argument(mut self, name: &'static str, value: &'static str) -> Self {
        self.arguments.extend([name, value]);
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_order-service"));
        command.arg("serve").args(["--listen", &self.listen.to_string()]);
        command.arg("--store").arg(format!("sqlite:{}", self.store.display())).args(&self.arguments);
        command
    }

    /// Starts the service and waits until it listens.
    #[track_caller]
    pub(crate) fn start(&self) -> Service {
        // SIGXFSZ is ignored, so that a file's limit is an error that the program sees.
        let mut shell = Command::new("sh");
        let program = self.command();
        shell.args(["-c", "trap '' XFSZ; exec \"$@\"", "sh"]).arg(program.get_program()).args(program.get_args());
        let mut process = shell.stdout(Stdio::piped()).spawn().expect("the program was built");
        let mut line = String::new();
        let output = process.stdout.take().expect("piped");
        BufReader::new(output).read_line(&mut line).expect("readable");
        let address = line.split(['/', ' ']).find_map(|word| word.parse().ok());
        Service { address: address.unwrap_or_else(|| panic!("an address in {line:?}")), process }
    }

    /// Starts the service where it cannot start; its status and what it said.
    pub(crate) fn fail(&self) -> (ExitStatus, String) {
        let output = self.command().output().expect("the program was built");
        (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

impl Service {
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it ended");
    }

    /// SIGTERM; how it ended.
    pub(crate) fn terminate(mut self) -> ExitStatus {
        let kill = Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status();
        assert!(kill.expect("kill is there").success());
        self.process.wait().expect("it ended")
    }

    /// Sends a body to `/rpc`: status and body of the answer.
    pub(crate) async fn post(&self, body: &str) -> (u16, Value) {
        let (status, body) = send_to(self.address, "/rpc", body).await.expect("answered");
        (status, serde_json::from_str(&body).unwrap_or(Value::Null))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Why a request has no answer.
pub(crate) enum NoAnswer {
    /// Nobody was connected to: nothing was sent.
    NotSent,
    /// The connection broke: it may have been accepted.
    Unknown,
}

impl std::fmt::Debug for NoAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotSent => "not sent",
            Self::Unknown => "unknown",
        })
    }
}

pub(crate) async fn send_to(service: SocketAddr, path: &str, body: &str) -> Result<(u16, String), NoAnswer> {
    let mut connection = TcpStream::connect(service).await.map_err(|_| NoAnswer::NotSent)?;
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: {service}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    );
    let mut answer = String::new();
    connection.write_all(request.as_bytes()).await.map_err(|_| NoAnswer::Unknown)?;
    connection.read_to_string(&mut answer).await.map_err(|_| NoAnswer::Unknown)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(NoAnswer::Unknown)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(NoAnswer::Unknown)?;
    Ok((status, body.to_owned()))
}

pub(crate) fn call(id: &str, method: &str, callback: &str) -> String {
    json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": { "orderId": id, "$rpc.callback": callback } })
        .to_string()
}

/// A webhook receiver that takes everything; by the callback's JSON-RPC id.
pub(crate) struct Receiver {
    server: Server,
    arrived: Arc<Arrived>,
}

#[derive(Default)]
struct Arrived {
    bodies: Mutex<HashMap<String, Vec<Value>>>,
    changed: Notify,
}

impl Receiver {
    pub(crate) async fn start() -> Self {
        let arrived = Arc::new(Arrived::default());
        let router = Router::new().route("/callback", post_route()).with_state(Arc::clone(&arrived));
        let server = Server::start((Ipv4Addr::LOCALHOST, 0).into(), router).await.expect("a free port");
        Self { server, arrived }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/callback", self.server.address())
    }

    /// Waits until the callbacks are such; fails after 60 s.
    pub(crate) async fn until(&self, enough: impl Fn(&HashMap<String, Vec<Value>>) -> bool + Send + Sync) {
        let waiting = async {
            loop {
                let changed = self.arrived.changed.notified();
                if enough(&self.arrived.bodies.lock().expect("not poisoned")) {
                    return;
                }
                changed.await;
            }
        };
        timeout(Duration::from_secs(60), waiting).await.expect("the callbacks arrive");
    }

    /// The callback with this id.
    pub(crate) async fn callback(&self, id: &str) -> Value {
        self.until(|arrived| arrived.contains_key(id)).await;
        self.all()[id][0].clone()
    }

    pub(crate) fn all(&self) -> HashMap<String, Vec<Value>> {
        self.arrived.bodies.lock().expect("not poisoned").clone()
    }
}

fn post_route() -> axum::routing::MethodRouter<Arc<Arrived>> {
    post(async |State(arrived): State<Arc<Arrived>>, body: Bytes| {
        let body: Value = serde_json::from_slice(&body).expect("a callback is JSON");
        let id = body["id"].as_str().unwrap_or_default().to_owned();
        arrived.bodies.lock().expect("not poisoned").entry(id).or_default().push(body);
        arrived.changed.notify_waiters();
        StatusCode::NO_CONTENT
    })
}

/// A port that nobody has, for a service that is to come back at the same address.
pub(crate) fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("bound")
}
