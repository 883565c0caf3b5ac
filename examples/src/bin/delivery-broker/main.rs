//! A broker between a delivery app and a partner who fulfils: the seed of imperative callbacks, played to its end.
#![expect(clippy::print_stdout, reason = "a program for people")]
#![expect(clippy::print_stderr, reason = "a program for people")]

mod broker;
mod parties;
mod post;
mod story;

use clap::{Parser, Subcommand};
use std::{process::ExitCode, time::Duration};
use tracing_subscriber::filter::LevelFilter;

/// A broker between a delivery app and a partner who fulfils orders, all three over real sockets.
///
/// It opens two regions, takes each region's orders, asks the partner (who has five seconds), tells the app, and waits for
/// the grant. It ends by itself.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Kills the broker's process in the middle and starts it again: the same story, to the same end
    #[arg(long)]
    crash: bool,
    /// How long the partner has, in seconds
    #[arg(long, default_value_t = 5.0, global = true, value_name = "SECONDS")]
    limit: f64,
    /// What is logged to stderr: off, error, warn, info, debug, trace
    #[arg(long, global = true, default_value = "error")]
    log: LevelFilter,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// The broker's own process
    Broker(broker::Arguments),
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { crash, limit, log, command } = Arguments::parse();
    tracing_subscriber::fmt().with_max_level(log).with_writer(std::io::stderr).init();
    let Ok(limit) = Duration::try_from_secs_f64(limit) else {
        eprintln!("delivery-broker: the limit is no time");
        return ExitCode::FAILURE;
    };
    let ended = match command {
        None => story::play(crash, limit).await,
        Some(Command::Broker(arguments)) => broker::run(arguments, limit).await,
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("delivery-broker: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("  because: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}
