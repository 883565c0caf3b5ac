//! The process dies: at each step, and at random moments.

use crate::{Setting, process::Start, report::Finding, trial::Trial};
use callback_core::BoxError;
use std::{
    hash::{BuildHasher, RandomState},
    thread::sleep,
    time::{Duration, Instant},
};

/// A point of the engine at which it dies.
struct Step {
    name: &'static str,
    /// Whether it need not be reached more than once in a life.
    once: bool,
    why: &'static str,
}

const NEVER: &str = "";
const UNKNOWN: &str = "the receiver had taken it, and the mark was not stored: the next start must try again";

/// All points, in the order in which a task meets them.
const STEPS: &[Step] = &[
    Step { name: "before-recovery", once: true, why: NEVER },
    Step { name: "after-recovery", once: true, why: NEVER },
    Step { name: "before-insert-commit", once: false, why: UNKNOWN },
    Step { name: "after-insert", once: false, why: UNKNOWN },
    Step { name: "after-claim", once: true, why: UNKNOWN },
    Step { name: "after-run-mark", once: false, why: UNKNOWN },
    Step { name: "before-run", once: false, why: UNKNOWN },
    Step { name: "after-run", once: false, why: UNKNOWN },
    Step { name: "after-result", once: false, why: UNKNOWN },
    Step { name: "before-attempt", once: false, why: UNKNOWN },
    Step { name: "after-attempt", once: false, why: UNKNOWN },
    Step { name: "before-mark-commit", once: false, why: UNKNOWN },
    Step { name: "after-mark", once: false, why: UNKNOWN },
];

/// Dies at every step boundary, with work waiting from an earlier life and new work coming in.
pub(crate) fn at_each_step(setting: &Setting) -> Result<Vec<Finding>, BoxError> {
    let times = if setting.quick { 1 } else { 5 };
    STEPS.iter().map(|step| at_step(setting, step, times)).collect()
}

fn at_step(setting: &Setting, step: &Step, times: usize) -> Result<Finding, BoxError> {
    let mut trial = Trial::new(setting)?;
    while trial.times < times {
        // A life that leaves something in each state: waiting for a retry, and in hand.
        trial.receiver.set_down(true);
        let before = trial.receiver.arrivals().turned_away.len();
        let mut service = trial.start(Start::default())?;
        trial.send(&mut service, 8, 100);
        trial.answers(&mut service);
        trial.turned_away(before + 8)?;
        trial.send(&mut service, 4, 100);
        let said = service.kill()?;
        trial.note_all(&said);
        trial.receiver.set_down(false);

        let failpoint = format!("{}:{}", step.name, if step.once { 1 } else { trial.times + 1 });
        let service = trial.begin(Start { failpoint: Some(&failpoint), ..Start::default() })?;
        if let Some(mut service) = service.ready()? {
            // One after the other: those that come together are stored together.
            for _ in 0..16 {
                trial.send(&mut service, 1, 100);
                trial.answers(&mut service);
            }
            let said = service.last_words().map_err(|error| format!("{failpoint}: {error}"))?;
            trial.note_all(&said);
        }
        trial.times += 1;
    }
    let mut service = trial.start(Start::default())?;
    trial.send(&mut service, 1, 100);
    trial.answers(&mut service);
    let done = format!("the process aborts at `{}`", step.name);
    trial.finish(service, Finding { fault: "kill-at-step", done, why: step.why, ..Finding::default() })
}

/// SIGKILL at random moments, and a start, many times under load.
pub(crate) fn at_random(setting: &Setting) -> Result<Vec<Finding>, BoxError> {
    let kills = if setting.quick { 10 } else { 200 };
    let (mut trial, begun) = (Trial::new(setting)?, Instant::now());
    while trial.times < kills && begun.elapsed() < setting.limit {
        let mut service = trial.begin(Start::default())?;
        if trial.times % 5 == 4 {
            // While it starts.
            sleep(Duration::from_millis(random() % 40));
        } else {
            trial.load(&mut service, Duration::from_millis(30 + random() % 300), 500);
        }
        let said = service.kill()?;
        trial.note_all(&said);
        trial.times += 1;
    }
    let service = trial.start(Start::default())?;
    let done = "SIGKILL at a random moment under load, each fifth during the start".to_owned();
    let finding = Finding { fault: "kill-random", done, why: UNKNOWN, ..Finding::default() };
    Ok(vec![trial.finish(service, finding)?])
}

/// A number that nobody foresees: each hasher of the standard library has keys of its own.
fn random() -> u64 {
    RandomState::new().hash_one(())
}
