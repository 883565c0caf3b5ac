//! The online store of the JSON-RPC seed: orders are acknowledged at once, and their results come by callback.
#![expect(clippy::print_stdout, reason = "a program for people")]
#![expect(clippy::print_stderr, reason = "a program for people")]

mod brokers;
mod demo;
mod serve;

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use tracing_subscriber::filter::LevelFilter;

/// An online store whose orders are acknowledged at once, and whose results come by callback.
///
/// Without a command it shows itself: it starts the service and a webhook receiver, sends an order as a client would,
/// prints what goes over the wire, and ends.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// What is logged to stderr: off, error, warn, info, debug, trace
    #[arg(long, global = true, env = "ORDER_SERVICE_LOG", default_value = "warn")]
    log: LevelFilter,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serves POST /rpc, POST /orders and a page for browsers until SIGTERM or Ctrl-C
    Serve(serve::Arguments),
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt().with_max_level(arguments.log).with_writer(std::io::stderr).init();
    let ended = match arguments.command {
        None => demo::run().await,
        Some(Command::Serve(arguments)) => serve::run(arguments).await,
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("order-service: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("  because: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}
