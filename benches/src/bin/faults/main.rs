//! Breaks a service on purpose, and counts what it lost of what it had acknowledged, and what came twice.

mod clock;
mod disk;
mod kill;
mod postgres;
mod process;
mod receiver;
mod report;
mod server;
mod service;
mod trial;

use callback_core::BoxError;
use clap::{Parser, Subcommand, builder::PossibleValuesParser};
use report::Finding;
use std::{io::Write, path::PathBuf, process::ExitCode, time::Duration};

/// One way to break a service, run by its name.
struct Fault {
    name: &'static str,
    make: fn(&Setting) -> Result<Vec<Finding>, BoxError>,
}

/// All faults, in the order in which they are made.
const FAULTS: &[Fault] = &[
    Fault { name: "kill-at-step", make: kill::at_each_step },
    Fault { name: "kill-random", make: kill::at_random },
    Fault { name: "disk-full", make: disk::full },
    Fault { name: "clock", make: clock::set },
    Fault { name: "postgres-restart", make: postgres::restart },
    Fault { name: "postgres-cut", make: postgres::cut },
    Fault { name: "three-processes", make: postgres::three_processes },
];

/// How every fault is made.
struct Setting {
    quick: bool,
    /// How long one fault under load goes on at most.
    limit: Duration,
    /// Where databases are put.
    folder: PathBuf,
}

/// Breaks a service in many ways, and counts what was lost of what it had acknowledged.
///
/// Prints a line a finding, and as its last line `lost N duplicated N accepted N faults N`. Exits with 1 if anything was
/// lost, or delivered though it was refused; with 2 if a fault could not be made.
#[derive(Parser)]
#[command(name = "callback-faults", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// The faults to make; all, if none is named.
    #[arg(value_name = "FAULT", value_parser = PossibleValuesParser::new(FAULTS.iter().map(|fault| fault.name)))]
    faults: Vec<String>,

    /// Makes each fault a few times: under a minute in all.
    #[arg(long)]
    quick: bool,

    /// Ends a fault that is made again and again under load after so many seconds.
    #[arg(long, value_name = "N", default_value_t = 600)]
    seconds: u64,

    /// Writes the findings into docs/faults.md, or into another file, as a table.
    #[arg(long, value_name = "PATH", num_args = 0..=1, require_equals = true, default_missing_value = "docs/faults.md")]
    write: Option<PathBuf>,

    /// Where databases are put; it must be a real disk.
    #[arg(long, value_name = "PATH", default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// The service that is broken.
    #[command(hide = true)]
    Service(service::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ended = match arguments.command {
        Some(Command::Service(arguments)) => service::run(&arguments).map(|()| ExitCode::SUCCESS),
        None => make(&arguments),
    };
    ended.unwrap_or_else(|error| {
        let _ = writeln!(std::io::stderr(), "callback-faults: {error}");
        ExitCode::from(2)
    })
}

fn make(arguments: &Arguments) -> Result<ExitCode, BoxError> {
    let limit = Duration::from_secs(arguments.seconds);
    let setting = Setting { quick: arguments.quick, limit, folder: arguments.dir.clone() };
    let mut findings = Vec::new();
    for fault in FAULTS {
        if arguments.faults.is_empty() || arguments.faults.iter().any(|name| name == fault.name) {
            let made = (fault.make)(&setting).map_err(|error| format!("{} could not be made: {error}", fault.name))?;
            for finding in made {
                report::print(&finding)?;
                findings.push(finding);
            }
        }
    }
    if let Some(path) = &arguments.write {
        std::fs::write(path, report::page(&findings))?;
    }
    report::print_total(&findings)?;
    Ok(if findings.iter().any(Finding::is_wrong) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
