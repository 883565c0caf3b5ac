//! The cases of the Autobahn test suite, on both ends of ours: sockets as they are opened, limited and closed here, which echo.
//!
//! Autobahn's own runner needs Python 2. `kosoku`, which `CALLBACK_TEST_AUTOBAHN` names, runs the same cases; without it the
//! tests are skipped, but not in CI. What is left out is said beside each test.

use crate::{
    connection::{complaint, say_goodbye},
    dial::Dialler,
    tls,
    upgrade::{Terms, accept},
};
use callback_core::{Policy, Rule};
use futures_util::{SinkExt, StreamExt};
use hyper::{
    Request, Response,
    body::Incoming,
    header::{HeaderValue, SEC_WEBSOCKET_PROTOCOL},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use std::{convert::Infallible, env, ffi::OsString, io::Write, path::Path, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, BufReader},
    net::TcpListener,
    process::{Child, Command},
    time::timeout,
};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message as Frame};

/// The largest message of the suite.
const LARGEST: usize = 16 << 20;

/// What the whole suite may take.
const PATIENCE: Duration = Duration::from_secs(600);

fn program(test: &str) -> Option<OsString> {
    let program = env::var_os("CALLBACK_TEST_AUTOBAHN");
    if program.is_none() {
        assert!(env::var_os("CI").is_none(), "CALLBACK_TEST_AUTOBAHN is not set: scripts/test sets it");
        let line = format!("skipped: {test}: CALLBACK_TEST_AUTOBAHN is not set; scripts/test sets it\n");
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
    program
}

/// Starts kosoku for some of its cases; its reports go to a folder.
fn suite(program: OsString, mode: &str, address: &str, folder: &Path, cases: &[&str]) -> Child {
    let mut command = Command::new(program);
    command.args(["--mode", mode, "--outdir"]).arg(folder).stdin(Stdio::null());
    for case in cases {
        command.args(["--include", case]);
    }
    command.arg(address).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command.spawn().expect("CALLBACK_TEST_AUTOBAHN names kosoku")
}

/// Echoes until the peer closes, or breaks the rules; then says goodbye as every connection does.
async fn echo<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut WebSocketStream<S>) {
    let code = loop {
        match socket.next().await {
            Some(Ok(frame @ (Frame::Text(_) | Frame::Binary(_)))) => {
                if socket.send(frame).await.is_err() {
                    break None;
                }
            }
            Some(Ok(Frame::Close(_))) | None => break None,
            Some(Ok(_)) => {}
            Some(Err(error)) => break complaint(&error).1,
        }
    };
    say_goodbye(socket, code).await;
}

/// Takes a socket in. The suite offers no subprotocol, and without one nobody is let in.
async fn serve(mut request: Request<Incoming>) -> Result<Response<String>, Infallible> {
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("callback.v1"));
    Ok(match accept(&mut request, Terms { subprotocols: &["callback.v1"], origins: None }) {
        Err(refusal) => refusal.answer(),
        Ok(upgrade) => {
            let mut answer = upgrade.answer();
            answer.headers_mut().remove(SEC_WEBSOCKET_PROTOCOL);
            tokio::spawn(async move {
                if let Ok(mut socket) = upgrade.open(LARGEST).await {
                    echo(&mut socket).await;
                }
            });
            answer
        }
    })
}

async fn listen(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(serve));
        tokio::spawn(connection.with_upgrades());
    }
}

/// Without 12 and 13, which are about compression: it is not negotiated.
#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_a_peer_opens_passes_the_cases_of_autobahn() {
    let Some(program) = program("a_socket_that_a_peer_opens_passes_the_cases_of_autobahn") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = format!("ws://{}", listener.local_addr().expect("an address"));
    let server = tokio::spawn(listen(listener));
    let cases = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*"];
    let suite = suite(program, "fuzzingclient", &address, folder.path(), &cases);
    let output = timeout(PATIENCE, suite.wait_with_output()).await.expect("in time").expect("an output");
    server.abort();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.ends_with("\n301 cases passed\n"), "{text}");
}

/// Without 12 and 13, as above, and without those of 9 whose messages are larger than any that a sink reads.
#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_a_sink_opens_passes_the_cases_of_autobahn() {
    let Some(program) = program("a_socket_that_a_sink_opens_passes_the_cases_of_autobahn") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let cases = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.1.1", "9.2.1", "9.7.*", "9.8.*", "10.*"];
    let mut suite = suite(program, "fuzzingserver", "127.0.0.1:0", folder.path(), &cases);
    let mut said = BufReader::new(suite.stderr.take().expect("a pipe")).lines();
    let line = said.next_line().await.expect("a line").expect("it listens");
    let address = line.split_once("ws://").expect("an address").1.trim().to_owned();
    let policy = Policy::default().allow(Rule::loopback());
    let dialler = Dialler { policy, tls: tls::config(None).expect("TLS"), origin: None, allow_unsigned: true };
    let open = async |path: &str| {
        let dsn = format!("ws://{address}{path}").parse().expect("a Dsn");
        dialler.open(&dsn).await.expect("a socket").0
    };
    let mut count = open("/getCaseCount").await;
    let count: u32 = match count.next().await {
        Some(Ok(Frame::Text(text))) => text.parse().expect("a number"),
        other => panic!("{other:?}"),
    };
    for case in 1..=count {
        echo(&mut open(&format!("/runCase?case={case}&agent=callback-ws")).await).await;
    }
    echo(&mut open("/updateReports?agent=callback-ws").await).await;
    let output = timeout(PATIENCE, suite.wait_with_output()).await.expect("in time").expect("an output");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut failures = String::new();
    while let Ok(Some(line)) = said.next_line().await {
        failures += &line;
        failures += "\n";
    }
    assert!(output.status.success(), "{text}{failures}");
    assert!(text.ends_with(&format!("\n{count} cases passed\n")), "{text}");
}
