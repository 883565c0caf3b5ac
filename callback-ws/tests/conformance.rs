//! The sink keeps the contract under each subprotocol, against a server behind a network that fails.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use callback_core::{
    Attempt, Dsn, DsnError, Message, MessageId, Policy, Receipt, Resolver, Rule, Sink, SinkError, async_trait,
    conformance::{Fault, Harness, Proxy, Received, Skip},
};
use callback_ws::WsSink;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Map, Value, json};
use std::{
    io,
    marker::PhantomData,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_tungstenite::{
    accept_hdr_async,
    tungstenite::{
        Message as Frame,
        handshake::server::{Request, Response},
        protocol::CloseFrame,
    },
};

/// What a server picks, and how it reads and answers a frame.
trait Picks: Send + Sync + 'static {
    const SUBPROTOCOL: Option<&str>;

    /// Whether a message cannot be told from another but by its body, so that the id is put before it.
    const IS_BARE: bool = false;

    fn read(frame: &Frame) -> Received;

    fn answer(id: &MessageId, answer: Answer) -> Option<Frame>;
}

/// What the far end makes of a message.
#[derive(Clone, Copy, Default)]
enum Answer {
    #[default]
    Accept,
    Refuse,
    Throttle(Option<Duration>),
}

struct CallbackV1;

impl Picks for CallbackV1 {
    const SUBPROTOCOL: Option<&str> = Some("callback.v1");

    fn read(frame: &Frame) -> Received {
        let mut frame = object(frame);
        let body = match (frame.remove("body"), frame.remove("body_base64")) {
            (Some(Value::String(text)), None) => text.into_bytes(),
            (None, Some(Value::String(text))) => BASE64_STANDARD.decode(text).expect("base64"),
            _ => panic!("a frame has one body"),
        };
        let mut headers = match frame.remove("headers") {
            Some(Value::Object(headers)) => headers,
            _ => Map::new(),
        };
        let id = text(&frame["id"]).parse().expect("an id");
        for (name, value) in frame {
            let name = match &*name {
                "id" => "webhook-id".to_owned(),
                "eventid" => "ce-id".to_owned(),
                "timestamp" | "signature" => format!("webhook-{name}"),
                "attempt" => "callback-attempt".to_owned(),
                "traceparent" => name,
                "datacontenttype" => "content-type".to_owned(),
                _ => format!("ce-{name}"),
            };
            headers.insert(name, value);
        }
        Received::new(id, body).with_headers(headers.iter().map(|(name, value)| (name, text(value))))
    }

    fn answer(id: &MessageId, answer: Answer) -> Option<Frame> {
        let answer = match answer {
            Answer::Accept => json!({ "ack": id }),
            Answer::Refuse => json!({ "nack": id, "kind": "refused", "reason": "planted-reason" }),
            Answer::Throttle(None) => json!({ "nack": id, "kind": "later" }),
            Answer::Throttle(Some(wait)) => json!({ "nack": id, "kind": "later", "retryAfter": wait.as_secs() }),
        };
        Some(Frame::text(answer.to_string()))
    }
}

struct CloudEvents;

impl Picks for CloudEvents {
    const SUBPROTOCOL: Option<&str> = Some("cloudevents.json");

    fn read(frame: &Frame) -> Received {
        let mut frame = object(frame);
        let body = BASE64_STANDARD.decode(text(&frame["data_base64"])).expect("base64");
        frame.remove("data_base64");
        let id = text(&frame["webhookid"]).parse().expect("an id");
        let headers = frame.iter().map(|(name, value)| {
            let name = match &**name {
                "webhookid" => "webhook-id".to_owned(),
                "webhooktimestamp" => "webhook-timestamp".to_owned(),
                "webhooksignature" => "webhook-signature".to_owned(),
                "callbackattempt" => "callback-attempt".to_owned(),
                "xrequestid" => "x-request-id".to_owned(),
                "traceparent" => "traceparent".to_owned(),
                "datacontenttype" => "content-type".to_owned(),
                _ => format!("ce-{name}"),
            };
            (name, text(value))
        });
        Received::new(id, body).with_headers(headers)
    }

    fn answer(_id: &MessageId, answer: Answer) -> Option<Frame> {
        by_closing(answer)
    }
}

struct Bare;

impl Picks for Bare {
    const SUBPROTOCOL: Option<&str> = None;

    const IS_BARE: bool = true;

    fn read(frame: &Frame) -> Received {
        let bytes = frame.clone().into_data();
        let at = bytes.iter().position(|byte| *byte == b'\n').expect("an id");
        let id = std::str::from_utf8(&bytes[..at]).expect("an id").parse().expect("an id");
        Received::new(id, bytes.slice(at + 1..))
    }

    fn answer(_id: &MessageId, answer: Answer) -> Option<Frame> {
        by_closing(answer)
    }
}

/// Accepted is what was read.
fn by_closing(answer: Answer) -> Option<Frame> {
    let code = match answer {
        Answer::Accept => return None,
        Answer::Refuse => 1008,
        Answer::Throttle(_) => 1013,
    };
    Some(Frame::Close(Some(CloseFrame { code: code.into(), reason: "planted-reason".into() })))
}

fn object(frame: &Frame) -> Map<String, Value> {
    serde_json::from_str(frame.to_text().expect("a text")).expect("an object")
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)
}

#[derive(Default)]
struct Server {
    received: Mutex<Vec<Received>>,
    answer: Mutex<Answer>,
}

struct Far<P> {
    server: Arc<Server>,
    proxy: Proxy,
    _serving: JoinSet<()>,
    picks: PhantomData<P>,
}

#[expect(clippy::result_large_err, reason = "the callback's type is tungstenite's")]
async fn serve<P: Picks>(stream: TcpStream, server: Arc<Server>) {
    let pick = |_: &Request, mut response: Response| {
        if let Some(name) = P::SUBPROTOCOL {
            response.headers_mut().insert("sec-websocket-protocol", name.parse().expect("a header"));
        }
        Ok(response)
    };
    let Ok(mut socket) = accept_hdr_async(stream, pick).await else { return };
    while let Some(Ok(frame)) = socket.next().await {
        if !(frame.is_text() || frame.is_binary()) {
            continue;
        }
        let received = P::read(&frame);
        let answer = *server.answer.lock().unwrap_or_else(PoisonError::into_inner);
        let answered = P::answer(&id_of(&received), answer);
        if matches!(answer, Answer::Accept) {
            server.received.lock().unwrap_or_else(PoisonError::into_inner).push(received);
        }
        if let Some(answered) = answered {
            let _ = socket.send(answered).await;
        }
    }
}

fn id_of(received: &Received) -> MessageId {
    // `Received` shows its parts in `Debug` alone.
    let text = format!("{received:?}");
    let start = text.find("MessageId(").expect("an id") + "MessageId(".len();
    let end = start + text[start..].find(')').expect("an id");
    text[start..end].parse().expect("an id")
}

/// Puts the id before the body where nothing else would carry it.
#[derive(Debug)]
struct Tagged {
    sink: WsSink,
    is_bare: bool,
}

#[async_trait]
impl Sink for Tagged {
    fn schemes(&self) -> &[&str] {
        self.sink.schemes()
    }

    fn check(&self, dsn: &Dsn) -> Result<(), DsnError> {
        self.sink.check(dsn)
    }

    async fn deliver(&self, dsn: &Dsn, message: &Message, attempt: &Attempt) -> Result<Receipt, SinkError> {
        if !self.is_bare {
            return self.sink.deliver(dsn, message, attempt).await;
        }
        let mut body = format!("{}\n", message.id()).into_bytes();
        body.extend_from_slice(message.body());
        let message = message.to_builder().payload(body).build().expect("valid");
        self.sink.deliver(dsn, &message, attempt).await
    }

    async fn close(&self) -> Result<(), SinkError> {
        self.sink.close().await
    }
}

/// Every name is this machine.
#[derive(Debug)]
struct Here;

#[async_trait]
impl Resolver for Here {
    async fn resolve(&self, _name: &str) -> io::Result<Vec<IpAddr>> {
        Ok(vec![Ipv4Addr::LOCALHOST.into()])
    }
}

fn rule(text: &str) -> Rule {
    text.parse().expect("a rule")
}

impl<P: Picks> Far<P> {
    fn with(policy: Policy) -> Tagged {
        let builder = WsSink::builder().policy(policy);
        let builder = if P::IS_BARE { builder.allow_unsigned() } else { builder };
        Tagged { sink: builder.build().expect("a sink"), is_bare: P::IS_BARE }
    }

    fn answer(&self, answer: Answer) {
        *self.server.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer;
    }

    fn dsn_at(&self, host: &str) -> Dsn {
        let port = self.proxy.address().port();
        let dsn = format!("ws://planted-user:planted-password@{host}:{port}/hook?token=planted-value");
        dsn.parse().expect("valid")
    }
}

#[async_trait]
impl<P: Picks> Harness for Far<P> {
    type Sink = Tagged;

    async fn start() -> Result<Self, Skip> {
        let server = Arc::new(Server::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let proxy = Proxy::start(listener.local_addr().expect("bound").to_string()).await.expect("a free port");
        let (mut serving, shared) = (JoinSet::new(), Arc::clone(&server));
        serving.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve::<P>(stream, Arc::clone(&shared)));
            }
        });
        Ok(Self { server, proxy, _serving: serving, picks: PhantomData })
    }

    fn sink(&self) -> Tagged {
        Self::with(Policy::default().allow(Rule::loopback()))
    }

    fn dsn(&self) -> Dsn {
        self.dsn_at("127.0.0.1")
    }

    async fn received(&self) -> Vec<Received> {
        self.server.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn inject(&self, fault: Fault) -> Result<(), Skip> {
        match fault {
            Fault::Refuse => self.answer(Answer::Refuse),
            Fault::Throttle(Some(_)) if P::SUBPROTOCOL != Some("callback.v1") => {
                return Err(Skip::because("a close code says nothing of time"));
            }
            Fault::Throttle(wait) => self.answer(Answer::Throttle(wait)),
            _ => return self.proxy.inject(fault),
        }
        Ok(())
    }

    async fn heal(&self) {
        self.answer(Answer::Accept);
        self.proxy.heal();
    }

    fn skip(&self, clause: &str) -> Option<Skip> {
        (clause == "an_unknown_parameter_is_named").then(|| Skip::because("the query is the receiver's"))
    }

    fn forbidden(&self) -> Result<(Tagged, Dsn), Skip> {
        Ok((Self::with(Policy::default()), self.dsn()))
    }

    fn forbidden_at_connect(&self) -> Result<(Tagged, Dsn), Skip> {
        Ok((Self::with(Policy::default().allow(rule("hook.example")).resolver(Here)), self.dsn_at("hook.example")))
    }

    async fn connections(&self) -> Option<usize> {
        Some(self.proxy.connections().await.expect("a port"))
    }

    fn secrets(&self) -> Vec<String> {
        vec!["planted-reason".to_owned()]
    }
}

/// A client of a hub, behind the same network, that comes back whenever it lost its connection.
#[cfg(feature = "server")]
mod hub {
    use super::{Answer, CallbackV1, Picks, id_of};
    use callback_core::{
        Dsn, async_trait,
        conformance::{Fault, Harness, Proxy, Received, Skip},
    };
    use callback_dispatch::{Dispatcher, MemoryOutbox};
    use callback_ws::Hub;
    use futures_util::{SinkExt, StreamExt};
    use serde_json::{Value, json};
    use std::{
        net::SocketAddr,
        sync::{Arc, Mutex, PoisonError},
        time::Duration,
    };
    use tokio::{
        net::{TcpListener, TcpStream},
        sync::watch,
        task::JoinSet,
        time::sleep,
    };
    use tokio_tungstenite::{
        client_async,
        tungstenite::{Message as Frame, client::IntoClientRequest},
    };

    #[derive(Default)]
    struct Client {
        received: Mutex<Vec<Received>>,
        answer: Mutex<Answer>,
    }

    impl Client {
        fn answer(&self, frame: &Frame) -> Frame {
            let received = CallbackV1::read(frame);
            let answer = *self.answer.lock().unwrap_or_else(PoisonError::into_inner);
            let answered = CallbackV1::answer(&id_of(&received), answer).expect("always one");
            if matches!(answer, Answer::Accept) {
                self.received.lock().unwrap_or_else(PoisonError::into_inner).push(received);
            }
            answered
        }

        /// One connection: what it was told last, if anything.
        async fn converse(
            &self,
            address: SocketAddr,
            secret: &mut Value,
            told: &watch::Sender<Option<Value>>,
        ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            let mut request = "ws://hub.example/session".into_client_request()?;
            request.headers_mut().insert("sec-websocket-protocol", "callback.v1".parse()?);
            let (mut socket, _) = client_async(request, TcpStream::connect(address).await?).await?;
            socket.send(Frame::text(json!({ "resume": secret }).to_string())).await?;
            let welcome: Value = serde_json::from_str(socket.next().await.ok_or("closed")??.to_text()?)?;
            *secret = welcome["resume"].clone();
            told.send_replace(Some(welcome));
            while let Some(frame) = socket.next().await {
                let frame = frame?;
                if frame.is_text() {
                    socket.send(self.answer(&frame)).await?;
                }
            }
            Ok(())
        }
    }

    pub(super) struct Far {
        client: Arc<Client>,
        hub: Hub,
        _dispatcher: Dispatcher,
        proxy: Proxy,
        told: watch::Receiver<Option<Value>>,
        _tasks: JoinSet<()>,
    }

    impl Far {
        fn set(&self, answer: Answer) {
            *self.client.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer;
        }

        fn welcome(&self) -> Value {
            self.told.borrow().clone().expect("it was told")
        }
    }

    #[async_trait]
    impl Harness for Far {
        type Sink = Hub;

        async fn start() -> Result<Self, Skip> {
            let hub = Hub::new();
            let dispatcher = Dispatcher::builder(MemoryOutbox::new()).local_sink(hub.clone()).start();
            let dispatcher = dispatcher.await.expect("started");
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let proxy = Proxy::start(listener.local_addr().expect("bound").to_string()).await.expect("a free port");
            let router = axum::Router::new().nest("/session", hub.router(&dispatcher));
            let (client, mut tasks) = (Arc::new(Client::default()), JoinSet::new());
            tasks.spawn(async move { axum::serve(listener, router).await.expect("served") });
            let (sender, mut told) = watch::channel(None);
            let (one, address) = (Arc::clone(&client), proxy.address());
            tasks.spawn(async move {
                let mut secret = Value::Null;
                loop {
                    // It comes back, however it ended.
                    let _ = one.converse(address, &mut secret, &sender).await;
                    sleep(Duration::from_millis(10)).await;
                }
            });
            told.wait_for(Option::is_some).await.expect("it begins");
            Ok(Self { client, hub, _dispatcher: dispatcher, proxy, told, _tasks: tasks })
        }

        fn sink(&self) -> Hub {
            self.hub.clone()
        }

        fn dsn(&self) -> Dsn {
            self.welcome()["session"].as_str().expect("a text").parse().expect("valid")
        }

        async fn received(&self) -> Vec<Received> {
            self.client.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
        }

        async fn inject(&self, fault: Fault) -> Result<(), Skip> {
            match fault {
                Fault::Refuse => self.set(Answer::Refuse),
                Fault::Throttle(wait) => self.set(Answer::Throttle(wait)),
                _ => return self.proxy.inject(fault),
            }
            Ok(())
        }

        async fn heal(&self) {
            self.set(Answer::Accept);
            self.proxy.heal();
        }

        fn skip(&self, clause: &str) -> Option<Skip> {
            (clause == "an_unknown_parameter_is_named").then(|| Skip::because("a session has no parameters"))
        }

        fn secrets(&self) -> Vec<String> {
            let secret = self.welcome()["resume"].as_str().expect("a text").to_owned();
            let parts = secret.split('.').map(ToOwned::to_owned);
            parts.chain(["planted-reason".to_owned()]).collect()
        }
    }

    callback_core::conformance!(Far);
}

mod callback_v1 {
    callback_core::conformance!(crate::Far<crate::CallbackV1>);
}

mod cloudevents_json {
    callback_core::conformance!(crate::Far<crate::CloudEvents>);
}

mod no_subprotocol {
    callback_core::conformance!(crate::Far<crate::Bare>);
}
