//! Ten thousand clients, in a process of their own: so the memory that is measured is the server's.

use super::Count;
use callback_core::{BoxError, Dsn};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use std::{
    env,
    io::{self, BufRead, BufReader, Read, Write},
    net::SocketAddr,
    process::{self, Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};
use tokio::{
    net::TcpStream,
    runtime,
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{interval, timeout},
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{Message as Frame, client::IntoClientRequest, protocol::WebSocketConfig},
};

/// How many of them are opening their sockets at once.
const OPENING: usize = 64;

/// How often it is told how many messages have arrived.
const TOLD_EVERY: Duration = Duration::from_millis(10);

/// How long a round may go on without a word of them.
const PATIENCE: Duration = Duration::from_secs(60);

/// The process of the clients. It ends when this is dropped.
pub(super) struct Clients {
    process: Child,
    said: mpsc::UnboundedReceiver<Said>,
    arrived: usize,
}

enum Said {
    Session(Dsn),
    Arrived(usize),
}

impl Said {
    fn read(line: &str) -> Option<Self> {
        match line.split_once(' ')? {
            ("session", dsn) => dsn.parse().ok().map(Self::Session),
            ("arrived", count) => count.parse().ok().map(Self::Arrived),
            _ => None,
        }
    }
}

impl Clients {
    /// Starts so many clients of a server at this address.
    pub(super) fn start(address: SocketAddr, Count(clients): Count) -> io::Result<Self> {
        let mut process = Command::new(env::current_exe()?)
            .args(["--play", &address.to_string(), &clients.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = process.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let (sender, said) = mpsc::unbounded_channel();
        thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            for said in lines.filter_map(|line| Said::read(&line)) {
                if sender.send(said).is_err() {
                    return;
                }
            }
        });
        Ok(Self { process, said, arrived: 0 })
    }

    /// The session that one of them has begun.
    pub(super) async fn session(&mut self) -> Result<Dsn, BoxError> {
        loop {
            match self.next().await? {
                Some(Said::Session(dsn)) => return Ok(dsn),
                Some(Said::Arrived(_)) => {}
                None => return Err("the clients have ended".into()),
            }
        }
    }

    /// Waits until so many messages have arrived in all.
    pub(super) async fn arrived(&mut self, Count(messages): Count) -> Result<(), BoxError> {
        while self.arrived < messages {
            match self.next().await? {
                Some(Said::Arrived(count)) => self.arrived = count,
                Some(Said::Session(_)) => {}
                None => return Err("the clients have ended".into()),
            }
        }
        Ok(())
    }

    /// How many messages had arrived when all connections were closed.
    pub(super) async fn end(mut self) -> Result<usize, BoxError> {
        while let Some(said) = self.next().await? {
            if let Said::Arrived(count) = said {
                self.arrived = count;
            }
        }
        Ok(self.arrived)
    }

    async fn next(&mut self) -> Result<Option<Said>, BoxError> {
        timeout(PATIENCE, self.said.recv()).await.map_err(|_elapsed| "the clients say nothing any more".into())
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Is the clients: begins sessions, and acknowledges everything until all connections are closed.
pub(crate) fn play(address: SocketAddr, clients: usize) -> Result<(), BoxError> {
    thread::spawn(|| {
        // Whoever has started this process is gone.
        let _ = io::stdin().read_to_end(&mut Vec::new());
        process::exit(1);
    });
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (arrived, opening, mut all) = (Arc::default(), Arc::new(Semaphore::new(OPENING)), JoinSet::new());
        for _ in 0..clients {
            let (arrived, opening) = (Arc::clone(&arrived), Arc::clone(&opening));
            all.spawn(async move {
                let permit = opening.acquire_owned().await?;
                let socket = begin(address).await?;
                drop(permit);
                acknowledge(socket, &arrived).await
            });
        }
        let (mut often, mut told) = (interval(TOLD_EVERY), 0);
        loop {
            let is_over = tokio::select! {
                ended = all.join_next() => ended.transpose()?.transpose()?.is_none(),
                _ = often.tick() => false,
            };
            let count = arrived.load(Ordering::Relaxed);
            if count != told {
                told = count;
                tell(format_args!("arrived {count}"))?;
            }
            if is_over {
                return Ok(());
            }
        }
    })
}

type Socket = WebSocketStream<TcpStream>;

async fn begin(address: SocketAddr) -> Result<Socket, BoxError> {
    #[derive(Deserialize)]
    struct Welcome {
        session: String,
    }
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut request = format!("ws://{address}/").into_client_request()?;
    request.headers_mut().insert("sec-websocket-protocol", http::HeaderValue::from_static("callback.v1"));
    let config = WebSocketConfig::default().read_buffer_size(4 << 10).write_buffer_size(4 << 10);
    let (mut socket, _) = client_async_with_config(request, stream, Some(config)).await?;
    socket.send(Frame::text(r#"{"resume":null}"#)).await?;
    let welcome = socket.next().await.ok_or("closed")??;
    let Welcome { session } = serde_json::from_str(welcome.to_text()?)?;
    tell(format_args!("session {session}"))?;
    Ok(socket)
}

async fn acknowledge(mut socket: Socket, arrived: &AtomicUsize) -> Result<(), BoxError> {
    #[derive(Deserialize)]
    struct Id<'a> {
        id: &'a str,
    }
    while let Some(frame) = socket.next().await {
        if let Frame::Text(text) = frame? {
            let Id { id } = serde_json::from_str(&text)?;
            socket.send(Frame::text(format!(r#"{{"ack":"{id}"}}"#))).await?;
            arrived.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

fn tell(line: std::fmt::Arguments<'_>) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{line}")
}
