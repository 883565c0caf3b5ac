//! A broker of a few lines, which does what no real one can be brought to do.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

pub(crate) const CHANNEL_OPEN: (u16, u16) = (20, 10);
pub(crate) const EXCHANGE_DECLARE: (u16, u16) = (40, 10);
pub(crate) const QUEUE_DECLARE: (u16, u16) = (50, 10);
pub(crate) const PUBLISH: (u16, u16) = (60, 40);

/// A method that the fake may answer otherwise than usual.
pub(crate) struct Asked {
    /// Class and method.
    pub(crate) method: (u16, u16),
    /// The exchange or queue that is declared; the routing key of a publish.
    pub(crate) name: String,
}

pub(crate) enum Answer {
    Usual,
    Silence,
    CloseChannel(u16),
    CloseConnection(u16),
}

/// Listens until it is dropped.
pub(crate) struct Fake {
    /// `amqp://…/`, with user and password.
    pub(crate) url: String,
    connections: Arc<AtomicUsize>,
    goodbye: Arc<Notify>,
    task: tokio::task::JoinHandle<()>,
}

impl Fake {
    pub(crate) async fn start(frame_max: u32, answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("amqp://a:b@{}/", listener.local_addr().expect("an address"));
        let (connections, answer) = (Arc::new(AtomicUsize::new(0)), Arc::new(answer));
        let goodbye = Arc::new(Notify::new());
        let (count, closed) = (Arc::clone(&connections), Arc::clone(&goodbye));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let (answer, closed) = (Arc::clone(&answer), Arc::clone(&closed));
                tokio::spawn(async move {
                    // It ends with an error when the client goes without a word.
                    if serve(stream, frame_max, &*answer).await.is_ok() {
                        closed.notify_one();
                    }
                });
            }
        });
        Self { url, connections, goodbye, task }
    }

    /// How many connections were made to it.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Resolves once a connection was closed in good order.
    pub(crate) async fn goodbye(&self) {
        self.goodbye.notified().await;
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    stream: TcpStream,
    frame_max: u32,
    answer: &(impl Fn(&Asked) -> Answer + Send + Sync),
) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    stream.read_exact(&mut [0; 8]).await?;
    send(&mut stream, 0, (10, 10), b"\x00\x09\x00\x00\x00\x00\x00\x00\x00\x05PLAIN\x00\x00\x00\x05en_US").await?;
    receive(&mut stream).await?;
    let tune = [&2047_u16.to_be_bytes()[..], &frame_max.to_be_bytes(), &[0, 0]].concat();
    send(&mut stream, 0, (10, 30), &tune).await?;
    // What was published last on each channel, and how many messages were.
    let mut published: HashMap<u16, (String, u64)> = HashMap::new();
    let mut missing: HashMap<u16, u64> = HashMap::new();
    // As RabbitMQ does, it reads nothing on a channel that it closed, until that is answered; afterwards a publish is an
    // error of the connection.
    let (mut open, mut closing) = (HashSet::new(), HashSet::new());
    loop {
        let (kind, channel, payload) = receive(&mut stream).await?;
        let asked = match kind {
            1 => {
                let method = (number(&payload, 0), number(&payload, 2));
                match method {
                    (10, 40) => send(&mut stream, 0, (10, 41), &[0]).await?,
                    (10, 50) => return send(&mut stream, 0, (10, 51), &[]).await,
                    (10, 51) => return Ok(()),
                    (20, 40) => send(&mut stream, channel, (20, 41), &[]).await?,
                    (85, 10) => send(&mut stream, channel, (85, 11), &[]).await?,
                    _ => {}
                }
                match method {
                    (20, 40 | 41) => {
                        open.remove(&channel);
                        closing.remove(&channel);
                        continue;
                    }
                    _ if closing.contains(&channel) => continue,
                    PUBLISH if !open.contains(&channel) => {
                        send(&mut stream, 0, (10, 50), &close(504)).await?;
                        continue;
                    }
                    CHANNEL_OPEN => {
                        open.insert(channel);
                        published.remove(&channel);
                        Asked { method, name: String::new() }
                    }
                    EXCHANGE_DECLARE | QUEUE_DECLARE => Asked { method, name: text(&payload, 6) },
                    PUBLISH => {
                        let key = text(&payload, 7 + usize::from(payload[6]));
                        published.entry(channel).or_default().0 = key;
                        continue;
                    }
                    _ => continue,
                }
            }
            2 | 3 if open.contains(&channel) && !closing.contains(&channel) => {
                let left = missing.entry(channel).or_default();
                *left = if kind == 2 {
                    u64::from_be_bytes(payload[4..12].try_into().expect("8 bytes"))
                } else {
                    *left - payload.len() as u64
                };
                if *left > 0 {
                    continue;
                }
                let (key, count) = published.entry(channel).or_default();
                *count += 1;
                Asked { method: PUBLISH, name: key.clone() }
            }
            _ => continue,
        };
        match answer(&asked) {
            Answer::Silence => {}
            Answer::Usual => {
                let (method, arguments) = match asked.method {
                    CHANNEL_OPEN => ((20, 11), vec![0; 4]),
                    EXCHANGE_DECLARE => ((40, 11), vec![]),
                    QUEUE_DECLARE => ((50, 11), vec![0; 9]),
                    _ => ((60, 80), [&published[&channel].1.to_be_bytes()[..], &[0]].concat()),
                };
                send(&mut stream, channel, method, &arguments).await?;
            }
            Answer::CloseChannel(code) => {
                closing.insert(channel);
                send(&mut stream, channel, (20, 40), &close(code)).await?;
            }
            Answer::CloseConnection(code) => send(&mut stream, 0, (10, 50), &close(code)).await?,
        }
    }
}

/// No text, and no method that is to blame.
fn close(code: u16) -> Vec<u8> {
    [&code.to_be_bytes()[..], &[0; 5]].concat()
}

fn number(payload: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([payload[at], payload[at + 1]])
}

fn text(payload: &[u8], at: usize) -> String {
    String::from_utf8_lossy(&payload[at + 1..][..usize::from(payload[at])]).into_owned()
}

async fn send(stream: &mut BufReader<TcpStream>, channel: u16, method: (u16, u16), arguments: &[u8]) -> io::Result<()> {
    let length = u32::try_from(arguments.len() + 4).expect("short");
    let mut frame = vec![1];
    frame.extend(channel.to_be_bytes());
    frame.extend(length.to_be_bytes());
    frame.extend(method.0.to_be_bytes());
    frame.extend(method.1.to_be_bytes());
    frame.extend(arguments);
    frame.push(0xce);
    stream.write_all(&frame).await
}

/// The next frame: its type, channel and payload.
async fn receive(stream: &mut BufReader<TcpStream>) -> io::Result<(u8, u16, Vec<u8>)> {
    let (kind, channel) = (stream.read_u8().await?, stream.read_u16().await?);
    let mut payload = vec![0; stream.read_u32().await? as usize + 1];
    stream.read_exact(&mut payload).await?;
    payload.pop();
    Ok((kind, channel, payload))
}
