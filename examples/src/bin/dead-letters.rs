//! Looks after what a service could not deliver, beside the running service.
#![expect(clippy::print_stdout, reason = "a program for people")]
#![expect(clippy::print_stderr, reason = "a program for people")]

use callback_core::{BoxError, Destination, TaskId};
use callback_dispatch::{DeadLetter, DeadLetterQuery, DeadLetters, SqliteOutbox};
use clap::{Parser, Subcommand};
use std::{
    error::Error,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime},
};

/// Lists, shows, replays and purges the messages that a service gave up.
///
/// Works on the store of a service that runs: what is replayed, the service finds within a second.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The service's SQLite file
    store: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists all dead letters, oldest first
    List,
    /// Shows one dead letter and its failed attempts
    Show { id: TaskId },
    /// Sends one dead letter again
    Replay {
        id: TaskId,
        /// Under a delivery id that no receiver knows: one that has the message takes it once more
        #[arg(long)]
        as_new: bool,
    },
    /// Sends all dead letters of a host again
    ReplayHost {
        /// A destination: `https://host:443`
        host: Destination,
    },
    /// Deletes old dead letters for good
    Purge {
        /// Those that were given up this many days ago or earlier
        #[arg(long, default_value_t = 30)]
        days: u64,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dead-letters: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("  because: {error}");
                cause = Error::source(error);
            }
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), BoxError> {
    // Opening creates what is missing, and a name that is mistyped is no empty store.
    if !arguments.store.is_file() {
        return Err(format!("there is no store {}", arguments.store.display()).into());
    }
    let letters = DeadLetters::new(SqliteOutbox::open(&arguments.store).await?);
    match arguments.command {
        Command::List => list(&letters).await?,
        Command::Show { id } => show(&letters.get(id).await?.ok_or(NONE)?),
        Command::Replay { id, as_new: false } => {
            if !letters.replay(id).await? {
                return Err(NONE.into());
            }
            println!("replayed");
        }
        Command::Replay { id, as_new: true } => {
            println!("replayed as {}", letters.replay_as_new(id).await?.ok_or(NONE)?);
        }
        Command::ReplayHost { host } => {
            println!("{} replayed", letters.replay_all(&DeadLetterQuery::default().destination(host)).await?);
        }
        Command::Purge { days } => {
            let age = Duration::from_secs(days.saturating_mul(86_400));
            let until = SystemTime::now().checked_sub(age).ok_or("so many days ago there was no time")?;
            println!("{} purged", letters.purge(&DeadLetterQuery::default().until(until)).await?);
        }
    }
    Ok(())
}

const NONE: &str = "there is no such dead letter";

async fn list(letters: &DeadLetters) -> Result<(), BoxError> {
    let mut query = DeadLetterQuery::default();
    loop {
        let page = letters.list(&query).await?;
        for letter in &page.items {
            let DeadLetter { id, dsn, kind, message, attempts, .. } = letter;
            println!("{id} {} {dsn} {kind} after {} attempts", message.event_type(), attempts.len());
        }
        let Some(next) = page.next else { return Ok(()) };
        query = query.after(next);
    }
}

fn show(letter: &DeadLetter) {
    println!("{} to {}", letter.message.event_type(), letter.dsn);
    for attempt in &letter.attempts {
        let since = SystemTime::now().duration_since(attempt.time).unwrap_or_default();
        println!(
            "attempt {}, {} s ago, took {} ms, failed in the phase {}: {}",
            attempt.number,
            since.as_secs(),
            attempt.took.as_millis(),
            attempt.phase,
            attempt.reason
        );
    }
}
