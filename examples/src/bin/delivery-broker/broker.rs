//! The broker: what people write, with callbacks awaited in the middle of it.

use crate::post::post;
use callback_core::BoxError;
use callback_http::HttpReceiver;
use callback_receive::{Delivery, ReceiveError, Receiver, SqliteInbox};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::{SqlitePool, sqlite::SqliteConnectOptions};
use std::{path::PathBuf, time::Duration};
use tokio::{task::JoinSet, time::timeout};

const REGIONS: [&str; 2] = ["north", "south"];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The broker's database: its inbox, and its own table
    #[arg(long)]
    store: PathBuf,
    /// Where it listens
    #[arg(long)]
    listen: String,
    /// The delivery app
    #[arg(long)]
    app: String,
    /// The partner who fulfils
    #[arg(long)]
    partner: String,
    /// Key that all callbacks are signed with
    #[arg(long, env = "DELIVERY_BROKER_KEY", hide_env_values = true)]
    key: String,
}

#[derive(Clone, Serialize, Deserialize)]
struct Order {
    id: String,
    what: String,
}

#[derive(Clone)]
struct Broker {
    receiver: Receiver,
    /// On the inbox's own file.
    pool: SqlitePool,
    app: String,
    partner: String,
    limit: Duration,
}

/// Runs until both regions are closed and every grant is settled.
pub(crate) async fn run(arguments: Arguments, limit: Duration) -> Result<(), BoxError> {
    let Arguments { store, listen, app, partner, key } = arguments;
    let inbox = SqliteInbox::open(store).await?;
    let pool = SqlitePool::connect_with(
        SqliteConnectOptions::new().filename(inbox.path()).busy_timeout(Duration::from_secs(10)),
    );
    let pool = pool.await?;
    sqlx::raw_sql("CREATE TABLE IF NOT EXISTS delivery (id TEXT NOT NULL)").execute(&pool).await?;
    let http = HttpReceiver::bind(&listen, &format!("http://{listen}/callbacks")).await?;
    let receiver = Receiver::builder().inbox(inbox).verifier(key.parse()?).open(http).await?;
    let broker = Broker { receiver: receiver.clone(), pool, app, partner, limit };

    let mut working = JoinSet::new();
    for region in REGIONS {
        working.spawn(broker.clone().region(region));
    }
    while let Some(ended) = working.join_next().await {
        ended??;
    }
    Ok(receiver.close(Duration::from_secs(5)).await?)
}

impl Broker {
    /// Every order of a region, until it is closed.
    async fn region(self, region: &str) -> Result<(), BoxError> {
        let mut orders = self.receiver.expect(format!("orders-{region}")).await?;
        if orders.is_resumed() {
            say(format_args!("{region}: goes on where it stopped"));
        }
        // Whether a former life came so far nobody knows; the app opens a region once.
        let open = json!({ "region": region, "webhook_url": orders.url() });
        post(&format!("{}/region", self.app), &open).await?;
        while let Some(delivery) = orders.next().await {
            if delivery.message().event_type() == "region.closed" {
                delivery.accept().await?;
                break;
            }
            let order: Order = match delivery.json() {
                Ok(order) => order,
                Err(error) => {
                    // It would come again after every restart: so it is put aside.
                    delivery.refuse(format!("this is no order: {error}")).await?;
                    continue;
                }
            };
            self.order(region, &order).await?;
            // Not before: after a crash the order comes again, and what is asked for twice is done once.
            delivery.accept().await?;
        }
        say(format_args!("{region}: closed"));
        Ok(orders.finish().await?)
    }

    /// One order: the partner has his time, and the app has the last word.
    async fn order(&self, region: &str, order: &Order) -> Result<(), BoxError> {
        let Order { id, what } = order;
        if self.is_delivered(id).await? {
            say(format_args!("{region}: {id} is settled already"));
            return Ok(self.receiver.expect(format!("grant-{id}")).await?.finish().await?);
        }
        let mut fulfilment = self.receiver.spawn();
        post(&format!("{}/order", self.partner), &json!({ "order": order, "callback": fulfilment.url() })).await?;
        let Ok(Some(yes)) = timeout(self.limit, fulfilment.next()).await else {
            say(format_args!("{region}: {id} ({what}): the partner is silent"));
            return Ok(());
        };
        yes.accept().await?;
        say(format_args!("{region}: {id} ({what}): the partner wants it"));

        // This one outlives the process.
        let mut granted = self.receiver.expect(format!("grant-{id}")).expires_in(Duration::from_secs(600)).await?;
        post(&format!("{}/accept", self.app), &json!({ "order": id, "callback_url": granted.url() })).await?;
        if let Some(grant) = granted.next().await {
            self.settle(region, id, grant).await?;
        }
        Ok(granted.finish().await?)
    }

    async fn settle(&self, region: &str, id: &str, grant: Delivery) -> Result<(), BoxError> {
        if grant.message().event_type() == "grant.revoked" {
            say(format_args!("{region}: {id}: revoked, too late"));
            return Ok(grant.refuse("too late, it is on the road").await?);
        }
        // The grant is taken and its effect stored in one transaction: once, whatever happens.
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query("INSERT INTO delivery (id) VALUES (?)").bind(id).execute(&mut *transaction).await?;
        match grant.accept_in(&mut transaction).await {
            Ok(_) => transaction.commit().await?,
            Err(ReceiveError::AlreadyAccepted) => transaction.rollback().await?,
            Err(error) => return Err(error.into()),
        }
        say(format_args!("{region}: {id}: granted"));
        Ok(())
    }

    async fn is_delivered(&self, id: &str) -> Result<bool, sqlx::Error> {
        let sql = "SELECT EXISTS (SELECT 1 FROM delivery WHERE id = ?)";
        sqlx::query_scalar(sql).bind(id).fetch_one(&self.pool).await
    }
}

fn say(what: std::fmt::Arguments<'_>) {
    println!("  broker   {what}");
}
