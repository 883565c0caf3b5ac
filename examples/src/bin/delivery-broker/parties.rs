//! The other two: the delivery app, and the partner who fulfils. Their callbacks go out through a dispatcher each.

use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use callback_core::{BoxError, Dsn, Policy, Rule, Schedule, Signer};
use callback_dispatch::{Dispatcher, Event, Lane, MemoryOutbox};
use callback_examples::Server;
use callback_http::HttpSink;
use serde_json::{Value, json};
use std::{
    collections::HashSet,
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::{mpsc, oneshot};

/// What each region orders: what the partner wants is granted, but for the last, which the app revokes.
const ORDERS: [&str; 3] = ["soup", "nothing he likes", "cake"];

/// A party: a server, and a dispatcher for its callbacks.
pub(crate) struct Party {
    pub(crate) url: String,
    server: Server,
    dispatcher: Dispatcher,
}

/// Told when the broker accepts an order; answered when the app may go on.
pub(crate) type Accepted = (String, oneshot::Sender<()>);

#[derive(Clone)]
struct App {
    dispatcher: Dispatcher,
    /// Regions that are open, and orders that are granted: what is asked for twice is done once.
    known: Arc<Mutex<HashSet<String>>>,
    accepted: mpsc::Sender<Accepted>,
}

impl Party {
    /// The delivery app: opens regions, sends their orders, grants.
    pub(crate) async fn app(signer: Signer, accepted: mpsc::Sender<Accepted>) -> Result<Self, BoxError> {
        let dispatcher = dispatcher(signer).await?;
        let app = App { dispatcher: dispatcher.clone(), known: Arc::default(), accepted };
        let routes = Router::new().route("/region", post(open)).route("/accept", post(accept)).with_state(app);
        Self::start(routes, dispatcher).await
    }

    /// The partner: wants soup and cake, and is silent otherwise.
    pub(crate) async fn partner(signer: Signer) -> Result<Self, BoxError> {
        let dispatcher = dispatcher(signer).await?;
        let routes = Router::new().route("/order", post(consider)).with_state(dispatcher.clone());
        Self::start(routes, dispatcher).await
    }

    async fn start(routes: Router, dispatcher: Dispatcher) -> Result<Self, BoxError> {
        let server = Server::start((Ipv4Addr::LOCALHOST, 0).into(), routes).await?;
        Ok(Self { url: format!("http://{}", server.address()), server, dispatcher })
    }

    pub(crate) async fn stop(self) {
        self.server.stop().await;
        self.dispatcher.close(Duration::from_secs(1)).await;
    }
}

/// A receiver that is away for a moment is tried again soon.
async fn dispatcher(signer: Signer) -> Result<Dispatcher, BoxError> {
    let sink = HttpSink::builder().policy(Policy::default().allow(Rule::loopback())).build()?;
    let builder = Dispatcher::builder(MemoryOutbox::new()).sink(sink).signer(signer);
    let builder = builder.schedule(Schedule::new(vec![Duration::from_millis(200); 300])?);
    Ok(builder.lane(Lane::default().breaker(1_000, Duration::from_millis(200))).start().await?)
}

async fn open(State(app): State<App>, Json(body): Json<Value>) -> Result<StatusCode, StatusCode> {
    let region = text(&body, "/region")?.to_owned();
    let webhook: Dsn = text(&body, "/webhook_url")?.parse().map_err(|_| StatusCode::BAD_REQUEST)?;
    if app.is_new(format!("region {region}")) {
        println!("  app      {region}: open");
        for (number, what) in ORDERS.into_iter().enumerate() {
            let order = json!({ "id": format!("{region}-{}", number + 1), "what": what });
            app.send(Event::to(webhook.clone(), "order.placed", order).ordering_key(&*region)).await?;
        }
        app.send(Event::to(webhook, "region.closed", json!({})).ordering_key(&*region)).await?;
    }
    Ok(StatusCode::ACCEPTED)
}

async fn accept(State(app): State<App>, Json(body): Json<Value>) -> Result<StatusCode, StatusCode> {
    let order = text(&body, "/order")?.to_owned();
    let callback: Dsn = text(&body, "/callback_url")?.parse().map_err(|_| StatusCode::BAD_REQUEST)?;
    if app.is_new(format!("order {order}")) {
        // On a task of its own: whoever asked may be dead by then.
        tokio::spawn(async move {
            let (go_on, may_go_on) = oneshot::channel();
            let _ = app.accepted.send((order.clone(), go_on)).await;
            let _ = may_go_on.await;
            let what = if order.ends_with("-3") { "grant.revoked" } else { "grant.given" };
            println!("  app      {order}: {what}");
            app.send(Event::to(callback, what, json!({ "order": order }))).await
        });
    }
    Ok(StatusCode::ACCEPTED)
}

async fn consider(State(dispatcher): State<Dispatcher>, Json(body): Json<Value>) -> Result<StatusCode, StatusCode> {
    let (id, what) = (text(&body, "/order/id")?, text(&body, "/order/what")?);
    let callback: Dsn = text(&body, "/callback")?.parse().map_err(|_| StatusCode::BAD_REQUEST)?;
    if what != ORDERS[1] {
        println!("  partner  {id}: yes");
        let event = Event::to(callback, "fulfilment.yes", json!({ "order": id }));
        dispatcher.publish(event).await.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    }
    Ok(StatusCode::ACCEPTED)
}

impl App {
    fn is_new(&self, what: String) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(what)
    }

    async fn send(&self, event: Event) -> Result<(), StatusCode> {
        self.dispatcher.publish(event).await.map(drop).map_err(|_| StatusCode::SERVICE_UNAVAILABLE)
    }
}

fn text<'a>(body: &'a Value, pointer: &str) -> Result<&'a str, StatusCode> {
    body.pointer(pointer).and_then(Value::as_str).ok_or(StatusCode::BAD_REQUEST)
}
