//! The service, for any client and receiver.

use crate::brokers;
use callback_core::{BoxError, Dsn, Keys, Policy, Rule, Signer};
use callback_examples::{OrderService, Settings, Store};
use callback_http::HttpSink;
use callback_ws::WsSink;
use std::{io::Write, net::SocketAddr, sync::Arc, time::Duration};
use tokio::signal::unix::{SignalKind, signal};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Where to listen; port 0 takes a free one
    #[arg(long, env = "ORDER_SERVICE_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    listen: SocketAddr,

    /// Where accepted orders live: sqlite:PATH or memory:
    #[arg(long, env = "ORDER_SERVICE_STORE", default_value = "sqlite:orders.db")]
    store: Store,

    /// Signs the callbacks: whsec_… (shared) or whsk_… (Ed25519); several, separated by spaces, while rotating
    #[arg(long, env = "ORDER_SERVICE_SECRET", hide_env_values = true, value_name = "KEY")]
    secret: Option<Signer>,

    /// Opens addresses or hosts to callbacks, over plain http and ws too: 127.0.0.0/8, *.example.com; default: public, https and wss only
    #[arg(long, env = "ORDER_SERVICE_ALLOW", value_delimiter = ',', num_args = 1.., value_name = "RULE")]
    allow: Vec<Rule>,

    #[command(flatten)]
    brokers: brokers::Brokers,

    /// Where results go of those who ask for "$rpc.callback": true, as a DSN
    #[arg(long, env = "ORDER_SERVICE_TOPIC", value_name = "DSN")]
    topic: Option<Dsn>,

    /// How long processing an order takes, in milliseconds
    #[arg(long, env = "ORDER_SERVICE_WORK", default_value_t = 500, value_name = "MS")]
    work: u64,

    /// How long orders and callbacks in flight may take to end after SIGTERM, in milliseconds
    #[arg(long, env = "ORDER_SERVICE_GRACE", default_value_t = 10_000, value_name = "MS")]
    grace: u64,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), BoxError> {
    let keys = arguments.secret.map_or_else(Keys::new, Keys::from);
    if keys.is_shared_secret() {
        eprintln!("note: one shared secret signs for every receiver, so each can forge to the others: for development");
    } else if keys.public_keys().is_empty() {
        eprintln!("note: without --secret callbacks are not signed");
    }
    let policy = arguments.allow.into_iter().fold(Policy::default(), Policy::allow);
    let settings = Settings {
        listen: arguments.listen,
        store: arguments.store.clone(),
        keys,
        work: Duration::from_millis(arguments.work),
        topic: arguments.topic,
    };
    let mut sinks = brokers::sinks(arguments.brokers)?;
    sinks.push(Arc::new(HttpSink::builder().policy(policy.clone()).build()?));
    sinks.push(Arc::new(WsSink::builder().policy(policy).allow_unsigned().build()?));
    // Before the service says that it is there: a signal must find somebody.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let service = OrderService::start(settings, sinks).await?;
    say(&format!("listening on http://{}/rpc, storing in {}", service.address(), arguments.store));
    say(&format!("a page for browsers is at http://{}/", service.address()));

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    say("closing");
    service.stop(Duration::from_millis(arguments.grace)).await;
    Ok(())
}

/// Tells whoever watches. That nobody does is no reason to stop.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
