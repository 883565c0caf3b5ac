#![expect(clippy::missing_errors_doc, reason = "a clause fails when it is skipped, or the sink breaks it")]
//! What must never be printed.

use super::{
    Fault, Harness, Skip, Unproved,
    log::Log,
    probe::{Probe, attempt, build, message},
    prove::ensure,
};
use crate::{Dsn, Message, Sink};
use std::{
    error::Error,
    fmt::Write,
    time::{Duration, Instant},
};
use tracing::dispatcher;

const BODY: &str = "planted-in-the-body";
const HEADER: &str = "planted-in-a-header";

/// Neither errors nor the sink's `Debug` hold a password, a query value, a header value or a body, whatever fails.
pub async fn no_secret_is_printed<H: Harness>(harness: &H) -> Result<(), Unproved> {
    let probe = Probe::new(harness);
    let printed = fail_in_every_way(&probe).await?;
    search(&probe, &printed, "printed")
}

/// No event and no span of `tracing` holds such a secret either, whatever fails, down to the level of debugging.
///
/// It is shown on the kit's own runtime alone: what threads of the sink's own log is not heard.
pub async fn no_secret_is_logged<H: Harness>(harness: &H) -> Result<(), Unproved> {
    let probe = Probe::new(harness);
    fail_in_every_way(&probe).await?;
    let logged = dispatcher::get_default(|current| current.downcast_ref::<Log>().map(Log::text));
    search(&probe, &logged.ok_or_else(|| Skip::because("this is not the kit's own runtime"))?, "logged")
}

/// Delivers in good order and under each fault, too late, and closed; gives what was printed of it.
async fn fail_in_every_way<H: Harness>(probe: &Probe<'_, H>) -> Result<String, Unproved> {
    let mut printed = format!("{:?}", probe.sink);
    let wait = Duration::from_secs(1);
    let faults = [Fault::Refuse, Fault::Throttle(None), Fault::Throttle(Some(wait)), Fault::Stall, Fault::Outage];
    for fault in [None].into_iter().chain(faults.map(Some)).chain([Some(Fault::Disconnect)]) {
        if let Some(fault) = fault
            && probe.harness.inject(fault).await.is_err()
        {
            continue;
        }
        print(&mut printed, probe, probe.soon()).await?;
        probe.harness.heal().await;
    }
    let now = Instant::now();
    print(&mut printed, probe, now.checked_sub(wait).unwrap_or(now)).await?;
    if let Err(error) = probe.sink.close().await {
        print_error(&mut printed, &error);
    }
    print(&mut printed, probe, probe.soon()).await?;
    Ok(printed)
}

fn search<H: Harness>(probe: &Probe<'_, H>, text: &str, how: &str) -> Result<(), Unproved> {
    let mut secrets = probe.harness.secrets();
    secrets.extend(secrets_of(&probe.dsn));
    secrets.extend([BODY.to_owned(), HEADER.to_owned()]);
    for secret in secrets {
        ensure!(!text.contains(&secret), "`{secret}` is {how}: {text}");
    }
    Ok(())
}

fn planted() -> Message {
    build(message(BODY).header("x-conformance", HEADER))
}

async fn print<H: Harness>(printed: &mut String, probe: &Probe<'_, H>, deadline: Instant) -> Result<(), Unproved> {
    if let Err(error) = probe.deliver(&planted(), attempt(1, deadline)).await? {
        print_error(printed, &error);
    }
    let _ = write!(printed, " {:?}", probe.sink);
    Ok(())
}

/// Every level of an error, in both forms.
fn print_error(printed: &mut String, error: &dyn Error) {
    let mut level = Some(error);
    while let Some(error) = level {
        let _ = write!(printed, " {error} {error:?}");
        level = error.source();
    }
}

/// User, password and query values, as written and decoded, that are long enough to be told from other text.
fn secrets_of(dsn: &Dsn) -> Vec<String> {
    let values = dsn.query().unwrap_or_default().split('&').filter_map(|parameter| Some(parameter.split_once('=')?.1));
    let mut secrets: Vec<String> = values.map(str::to_owned).collect();
    secrets.extend([dsn.username(), dsn.password()].into_iter().flatten().map(str::to_owned));
    secrets.retain(|secret| secret.len() >= 8);
    secrets
}
