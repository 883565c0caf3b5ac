//! The sink keeps the contract, against an axum server of its own behind a network that fails.

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
    serve,
};
use callback_core::{
    Dsn, Policy, Resolver, Rule, async_trait,
    conformance::{Fault, Harness, Proxy, Received, Skip},
};
use callback_http::HttpSink;
use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{net::TcpListener, task::JoinSet};

/// A receiver that takes everything until it is told what to answer instead.
#[derive(Default)]
struct Receiver {
    received: Mutex<Vec<Received>>,
    answer: Mutex<Option<(StatusCode, Option<Duration>)>>,
}

struct Webhook {
    receiver: Arc<Receiver>,
    proxy: Proxy,
    _serving: JoinSet<io::Result<()>>,
}

async fn hook(State(receiver): State<Arc<Receiver>>, headers: HeaderMap, body: Bytes) -> Response {
    match *receiver.answer.lock().unwrap_or_else(PoisonError::into_inner) {
        Some((status, Some(wait))) => (status, [(header::RETRY_AFTER, wait.as_secs().to_string())]).into_response(),
        Some((status, None)) => status.into_response(),
        None => {
            let id = headers["webhook-id"].to_str().expect("visible").parse().expect("an id");
            let headers = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().expect("visible")));
            let received = Received::new(id, body).with_headers(headers);
            receiver.received.lock().unwrap_or_else(PoisonError::into_inner).push(received);
            StatusCode::ACCEPTED.into_response()
        }
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

fn with(policy: Policy) -> HttpSink {
    HttpSink::builder().policy(policy).build().expect("a sink")
}

impl Webhook {
    fn answer(&self, answer: Option<(StatusCode, Option<Duration>)>) {
        *self.receiver.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer;
    }

    fn dsn_at(&self, host: &str) -> Dsn {
        let port = self.proxy.address().port();
        let dsn = format!("http://planted-user:planted-password@{host}:{port}/hook?token=planted-value");
        dsn.parse().expect("valid")
    }
}

#[async_trait]
impl Harness for Webhook {
    type Sink = HttpSink;

    async fn start() -> Result<Self, Skip> {
        let receiver = Arc::new(Receiver::default());
        let app = Router::new().route("/hook", post(hook)).with_state(Arc::clone(&receiver));
        let app = app.layer(axum::extract::DefaultBodyLimit::disable());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let proxy = Proxy::start(listener.local_addr().expect("bound").to_string()).await.expect("a free port");
        let mut serving = JoinSet::new();
        serving.spawn(async move { serve(listener, app).await });
        Ok(Self { receiver, proxy, _serving: serving })
    }

    fn sink(&self) -> HttpSink {
        with(Policy::default().allow(Rule::loopback()))
    }

    fn dsn(&self) -> Dsn {
        self.dsn_at("127.0.0.1")
    }

    async fn received(&self) -> Vec<Received> {
        self.receiver.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn inject(&self, fault: Fault) -> Result<(), Skip> {
        match fault {
            Fault::Refuse => self.answer(Some((StatusCode::BAD_REQUEST, None))),
            Fault::Throttle(wait) => self.answer(Some((StatusCode::TOO_MANY_REQUESTS, wait))),
            _ => return self.proxy.inject(fault),
        }
        Ok(())
    }

    async fn heal(&self) {
        self.answer(None);
        self.proxy.heal();
    }

    fn skip(&self, clause: &str) -> Option<Skip> {
        (clause == "an_unknown_parameter_is_named").then(|| Skip::because("the query is the receiver's"))
    }

    fn forbidden(&self) -> Result<(HttpSink, Dsn), Skip> {
        Ok((with(Policy::default()), self.dsn()))
    }

    fn forbidden_at_connect(&self) -> Result<(HttpSink, Dsn), Skip> {
        Ok((with(Policy::default().allow(rule("hook.example")).resolver(Here)), self.dsn_at("hook.example")))
    }

    async fn connections(&self) -> Option<usize> {
        Some(self.proxy.connections().await.expect("a port"))
    }
}

callback_core::conformance!(Webhook);
