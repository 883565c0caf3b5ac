//! The whole story: two parties here, the broker in a process of its own.

use crate::parties::{Accepted, Party};
use callback_core::{BoxError, Signer};
use sqlx::{SqlitePool, sqlite::SqliteConnectOptions};
use std::{env, net::TcpListener, path::Path, process::ExitStatus, time::Duration};
use tokio::{
    process::{Child, Command},
    sync::mpsc,
    time::timeout,
};

/// How long the story may take beyond the partner's limits.
const PATIENCE: Duration = Duration::from_secs(60);

const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Plays it; an error unless everything was settled, and settled once.
pub(crate) async fn play(crash: bool, limit: Duration) -> Result<(), BoxError> {
    let folder = tempfile::Builder::new().prefix("delivery-broker-").tempdir()?;
    let store = folder.path().join("broker.db");
    let signer: Signer = KEY.parse()?;
    let (accepted, mut orders) = mpsc::channel(16);
    let (app, partner) = (Party::app(signer.clone(), accepted).await?, Party::partner(signer).await?);
    let listen = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let broker = || -> Result<Child, BoxError> {
        let mut command = Command::new(env::current_exe()?);
        command.args(["broker", "--listen", &listen, "--app", &app.url, "--partner", &partner.url]);
        command.arg("--store").arg(&store).args(["--limit", &limit.as_secs_f64().to_string()]);
        Ok(command.env("DELIVERY_BROKER_KEY", KEY).kill_on_drop(true).spawn()?)
    };

    println!("the broker opens two regions; their orders come, the partner is asked, the app grants");
    let mut process = broker()?;
    let mut to_kill = crash;
    let story = async {
        loop {
            tokio::select! {
                ended = process.wait() => return Ok::<ExitStatus, BoxError>(ended?),
                Some((order, go_on)) = orders.recv() => {
                    let told: Accepted = (order, go_on);
                    if to_kill {
                        to_kill = false;
                        process.kill().await?;
                        println!("  ------   the broker is killed while it waits for the grant of {}", told.0);
                        process = broker()?;
                    }
                    // The grant goes to whoever listens there by then.
                    let _ = told.1.send(());
                }
            }
        }
    };
    let ended = timeout(PATIENCE + 4 * limit, story).await.map_err(|_| "the story does not end")??;
    if !ended.success() {
        return Err(format!("the broker ended with {ended}").into());
    }
    app.stop().await;
    partner.stop().await;
    settled(&store).await
}

/// What the broker's database says in the end.
async fn settled(store: &Path) -> Result<(), BoxError> {
    let pool = SqlitePool::connect_with(SqliteConnectOptions::new().filename(store).read_only(true)).await?;
    let delivered: Vec<String> = sqlx::query_scalar("SELECT id FROM delivery ORDER BY id").fetch_all(&pool).await?;
    let sql = "SELECT name FROM callback_inbox WHERE state = 2 ORDER BY name";
    let refused: Vec<String> = sqlx::query_scalar(sql).fetch_all(&pool).await?;
    let open: i64 = sqlx::query_scalar("SELECT count(*) FROM callback_expectation").fetch_one(&pool).await?;
    println!("delivered: {}; refused: {}; still open: {open}", delivered.join(", "), refused.join(", "));
    if delivered != ["north-1", "south-1"] || refused != ["grant-north-3", "grant-south-3"] || open != 0 {
        return Err("that is not how the story ends".into());
    }
    Ok(())
}
