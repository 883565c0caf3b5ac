//! The clock leaps while messages wait for a retry.

use crate::{Setting, process::Start, report::Finding, trial::Trial};
use callback_core::BoxError;

const HOUR: i64 = 3_600;

/// One way in which the clock leaps.
struct Leap {
    done: &'static str,
    /// How far it is off, one after the other.
    offsets: &'static [i64],
    /// Whether the service is killed and started between the leaps.
    restart: bool,
}

const LEAPS: &[Leap] = &[
    Leap { done: "an hour ahead", offsets: &[HOUR], restart: false },
    Leap { done: "an hour back", offsets: &[-HOUR], restart: false },
    Leap { done: "an hour ahead, and back", offsets: &[HOUR, 0], restart: false },
    Leap { done: "an hour ahead and back, thrice", offsets: &[HOUR, 0, HOUR, 0, HOUR, 0], restart: false },
    Leap { done: "an hour back, between a kill and the start", offsets: &[-HOUR], restart: true },
    Leap { done: "an hour ahead, and back between a kill and the start", offsets: &[HOUR, 0], restart: true },
];

/// Messages must arrive within a minute or so, not an hour later.
pub(crate) fn set(setting: &Setting) -> Result<Vec<Finding>, BoxError> {
    LEAPS.iter().map(|leap| leaps(setting, leap)).collect()
}

fn leaps(setting: &Setting, leap: &Leap) -> Result<Finding, BoxError> {
    let mut trial = Trial::new(setting)?;
    let mut service = trial.start(Start::default())?;
    trial.receiver.set_down(true);
    for clock in leap.offsets {
        let before = trial.receiver.arrivals().turned_away.len();
        trial.send(&mut service, 20, 100);
        trial.answers(&mut service);
        trial.turned_away(before + 20)?;
        if leap.restart {
            let said = service.kill()?;
            trial.note_all(&said);
            service = trial.start(Start { clock: *clock, ..Start::default() })?;
        } else {
            service.say(&format!("clock {clock}"));
            service.outstanding += 1;
            trial.answers(&mut service);
        }
        trial.times += 1;
    }
    trial.receiver.set_down(false);
    let why = "";
    let finding = Finding { fault: "clock", done: leap.done.to_owned(), why, ..Finding::default() };
    trial.finish(service, finding)
}
