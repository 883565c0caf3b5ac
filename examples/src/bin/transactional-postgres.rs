//! An order and the event that tells of it, stored in one transaction of PostgreSQL: both, or neither.
//!
//! `DATABASE_URL` names the database, `postgres://user:password@host/database`. The tables `orders` and `callback_…` are
//! made where they are missing, and stay.
#![expect(clippy::print_stdout, reason = "a program for people")]

use callback_core::MemorySink;
use callback_dispatch::{Dispatcher, Event, PostgresOutbox};
use serde_json::json;
use sqlx::PgPool;
use std::{env, error::Error, time::Duration};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url =
        env::var("DATABASE_URL").map_err(|_| "DATABASE_URL is not set: postgres://user:password@host/database")?;
    // The outbox lives in the shop's own database, and uses its pool.
    let pool = PgPool::connect(&url).await?;
    let table = "CREATE TABLE IF NOT EXISTS orders (id BIGINT GENERATED ALWAYS AS IDENTITY, article TEXT NOT NULL)";
    sqlx::raw_sql(table).execute(&pool).await?;
    let outbox = PostgresOutbox::with_pool(pool.clone()).await?;

    let sink = MemorySink::new();
    let dispatcher = Dispatcher::builder(outbox).sink(sink.clone()).start().await?;

    let id = place_order(&pool, &dispatcher, "a teapot").await?;
    // What is committed is found within a second, by any process; this has it sent at once.
    dispatcher.wake();
    println!("order {id}, sent: {:?}", sink.next("warehouse").await.message.json::<serde_json::Value>()?);

    let refused = place_order(&pool, &dispatcher, "").await.expect_err("an order names an article");
    println!("refused: {refused}");

    dispatcher.close(Duration::from_secs(10)).await;
    println!("events sent since: {}", sink.take("warehouse").len());
    Ok(())
}

async fn place_order(pool: &PgPool, dispatcher: &Dispatcher, article: &str) -> Result<i64, Box<dyn Error>> {
    let mut transaction = pool.begin().await?;
    let sql = "INSERT INTO orders (article) VALUES ($1) RETURNING id";
    let id: i64 = sqlx::query_scalar(sql).bind(article).fetch_one(&mut *transaction).await?;
    let event = Event::to("memory://warehouse".parse()?, "order.placed", json!({ "order": id, "article": article }));
    dispatcher.publish_in(&mut transaction, event).await?;
    if article.is_empty() {
        // Dropped without a commit: neither the order nor the event was ever there.
        return Err("an order without an article".into());
    }
    transaction.commit().await?;
    Ok(id)
}
