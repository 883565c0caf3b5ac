//! An order and the event that tells of it, stored in one transaction of an SQLite file: both, or neither.
#![expect(clippy::print_stdout, reason = "a program for people")]

use callback_core::MemorySink;
use callback_dispatch::{Dispatcher, Event, SqliteOutbox};
use serde_json::json;
use sqlx::{SqlitePool, sqlite::SqliteConnectOptions};
use std::{error::Error, time::Duration};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    // The outbox lives in the shop's own database, and the shop has a pool of its own on that file.
    let outbox = SqliteOutbox::open(folder.path().join("shop.db")).await?;
    let pool = SqlitePool::connect_with(SqliteConnectOptions::new().filename(outbox.path())).await?;
    sqlx::raw_sql("CREATE TABLE orders (id INTEGER PRIMARY KEY, article TEXT NOT NULL)").execute(&pool).await?;

    let sink = MemorySink::new();
    let dispatcher = Dispatcher::builder(outbox).sink(sink.clone()).start().await?;

    place_order(&pool, &dispatcher, "a teapot").await?;
    // What is committed is found within a second; this has it sent at once.
    dispatcher.wake();
    println!("sent: {:?}", sink.next("warehouse").await.message.json::<serde_json::Value>()?);

    let refused = place_order(&pool, &dispatcher, "").await.expect_err("an order names an article");
    println!("refused: {refused}");

    let orders: i64 = sqlx::query_scalar("SELECT count(*) FROM orders").fetch_one(&pool).await?;
    dispatcher.close(Duration::from_secs(10)).await;
    println!("orders: {orders}, events sent since: {}", sink.take("warehouse").len());
    Ok(())
}

async fn place_order(pool: &SqlitePool, dispatcher: &Dispatcher, article: &str) -> Result<(), Box<dyn Error>> {
    // IMMEDIATE takes the write lock at once. Be short: while it is held, nobody else is accepted.
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
    let sql = "INSERT INTO orders (article) VALUES (?) RETURNING id";
    let id: i64 = sqlx::query_scalar(sql).bind(article).fetch_one(&mut *transaction).await?;
    let event = Event::to("memory://warehouse".parse()?, "order.placed", json!({ "order": id, "article": article }));
    dispatcher.publish_in(&mut transaction, event).await?;
    if article.is_empty() {
        // Dropped without a commit: neither the order nor the event was ever there.
        return Err("an order without an article".into());
    }
    transaction.commit().await?;
    Ok(())
}
