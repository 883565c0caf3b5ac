#![doc = include_str!("../README.md")]

#[cfg(feature = "amqp")]
mod amqp;
mod bare;
mod dispatch;
mod fan_out;
mod isolation;
#[cfg(feature = "kafka")]
mod kafka;
#[cfg(feature = "postgres")]
mod postgres;
mod receive;
mod receiver;
mod report;
mod scale;
#[cfg(feature = "sessions")]
mod sessions;
mod stand_in;
mod system;
#[cfg(feature = "ws")]
mod ws;

use callback_core::BoxError;
use clap::{Parser, builder::PossibleValuesParser};
use report::Report;
use std::{path::PathBuf, process::ExitCode};

/// One group of figures, run by its name.
struct Suite {
    name: &'static str,
    run: fn(&Setting, &mut Report) -> Result<(), BoxError>,
}

/// All suites, in the order in which they run.
const SUITES: &[Suite] = &[
    Suite { name: "dispatch", run: dispatch::run },
    Suite { name: "fan_out", run: fan_out::run },
    Suite { name: "isolation", run: isolation::run },
    Suite { name: "scale", run: scale::run },
    Suite { name: "receive", run: receive::run },
    #[cfg(feature = "amqp")]
    Suite { name: "amqp", run: amqp::run },
    #[cfg(feature = "kafka")]
    Suite { name: "kafka", run: kafka::run },
    #[cfg(feature = "postgres")]
    Suite { name: "postgres", run: postgres::run },
    #[cfg(feature = "sessions")]
    Suite { name: "sessions", run: sessions::run },
    #[cfg(feature = "ws")]
    Suite { name: "ws", run: ws::run },
];

/// How every suite is run.
struct Setting {
    rounds: usize,
    /// How long a round should take, in seconds: it says how many messages a round has.
    seconds: f64,
    /// Where databases are put.
    folder: PathBuf,
}

/// Measures the workspace against bare clients, and prints one line a figure: suite, figure, value, unit, bar.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The suites to run; all, if none is named.
    #[arg(value_name = "SUITE", value_parser = PossibleValuesParser::new(SUITES.iter().map(|suite| suite.name)))]
    suites: Vec<String>,

    /// Measures three rounds of one second each instead of five of three and a half.
    #[arg(long)]
    quick: bool,

    /// Ends with status 1 if a bar is missed.
    #[arg(long)]
    check: bool,

    /// Where databases are put; it must be a real disk.
    #[arg(long, value_name = "PATH", default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,

    /// Plays the clients of the suite `sessions`.
    #[cfg(feature = "sessions")]
    #[arg(long, hide = true, num_args = 2, value_names = ["ADDRESS", "CLIENTS"])]
    play: Option<Vec<String>>,
}

impl Setting {
    /// Whether less is measured, to see that it can be.
    fn is_quick(&self) -> bool {
        self.rounds < 5
    }
}

fn main() -> Result<ExitCode, BoxError> {
    let arguments = Arguments::parse();
    #[cfg(feature = "sessions")]
    if let Some([address, clients]) = arguments.play.as_deref() {
        sessions::play(address.parse()?, clients.parse()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (rounds, seconds) = if arguments.quick { (3, 1.0) } else { (5, 3.5) };
    let setting = Setting { rounds, seconds, folder: arguments.dir };
    let mut missed = 0;
    for suite in SUITES {
        if arguments.suites.is_empty() || arguments.suites.iter().any(|name| name == suite.name) {
            let mut report = Report::new(suite.name);
            (suite.run)(&setting, &mut report)?;
            missed += report.missed();
        }
    }
    Ok(if arguments.check && missed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
