#![expect(clippy::missing_errors_doc, reason = "a clause fails when it is skipped, or the sink breaks it")]
//! What a sink says of a Dsn before anybody relies on it.

use super::{
    Fault, Harness, Skip, Unproved,
    probe::{Probe, attempt, plain},
    prove::ensure,
};
use crate::{Dsn, DsnError, Sink};
use std::{sync::Arc, thread};

/// A parameter that no sink knows, and its value, which is nobody's business.
const UNKNOWN: (&str, &str) = ("conformance-unknown", "planted-in-a-value");

/// The schemes are lower case, the harness's Dsn has one of them, and passes `check`.
pub async fn the_sink_serves_its_dsn<H: Harness>(harness: &H) -> Result<(), Unproved> {
    let probe = Probe::new(harness);
    let schemes: Vec<String> = probe.sink.schemes().iter().map(|&scheme| scheme.to_owned()).collect();
    for scheme in &schemes {
        let parsed: Result<Dsn, DsnError> = format!("{scheme}://conformance").parse();
        let kept = parsed.is_ok_and(|dsn| dsn.scheme() == scheme);
        ensure!(kept, "`{scheme}` is no scheme in lower case");
    }
    let scheme = probe.dsn.scheme();
    ensure!(schemes.iter().any(|known| known == scheme), "`{scheme}` is none of the sink's schemes");
    if let Err(error) = check_elsewhere(&probe, &probe.dsn)? {
        return Err(Unproved::Broken(format!("`check` refuses the Dsn that the sink delivers to: {error}")));
    }
    Ok(())
}

/// `check` needs no runtime, does not wait for a far end that is out of reach, and sends it nothing.
pub async fn check_asks_nobody<H: Harness>(harness: &H) -> Result<(), Unproved> {
    let probe = Probe::new(harness);
    // A far end that cannot be made to fail shows the rest.
    for fault in [None, Some(Fault::Stall), Some(Fault::Outage)] {
        if let Some(fault) = fault
            && harness.inject(fault).await.is_err()
        {
            continue;
        }
        let (sink, dsn) = (Arc::clone(&probe.sink), probe.dsn.clone());
        let checked = tokio::task::spawn_blocking(move || check_on_a_thread(&*sink, &dsn));
        let checked = probe.in_time("`check`", 1, checked).await?;
        let checked = checked.map_err(|_| Unproved::Broken("`check` panics where no runtime is".to_owned()))?;
        if let Err(error) = checked {
            return Err(Unproved::Broken(format!("`check` depends on the far end: {error}")));
        }
        harness.heal().await;
    }
    ensure!(harness.received().await.is_empty(), "`check` sent something");
    Ok(())
}

/// A Dsn of a scheme that the sink does not serve is an error in `check`, and in `deliver` one that is not retried.
pub async fn a_foreign_scheme_is_an_error<H: Harness>(harness: &H) -> Result<(), Unproved> {
    let probe = Probe::new(harness);
    let own = probe.dsn.expose().split_once("://").map_or("", |(_, rest)| rest);
    let mut foreign: Vec<String> = ["https", "amqp", "kafka", "memory", "file", "conformance-foreign"]
        .into_iter()
        .filter(|scheme| !probe.sink.schemes().contains(scheme))
        .map(|scheme| format!("{scheme}://conformance.example/"))
        .collect();
    foreign.push(format!("conformance-foreign://{own}"));
    for dsn in foreign.into_iter().filter_map(|text| text.parse::<Dsn>().ok()) {
        let scheme = dsn.scheme().to_owned();
        ensure!(check_elsewhere(&probe, &dsn)?.is_err(), "`check` passes the foreign scheme `{scheme}`");
        let elsewhere = Probe { harness, sink: Arc::clone(&probe.sink), dsn };
        match elsewhere.deliver(&plain(), attempt(1, probe.soon())).await? {
            Ok(_) => return Err(Unproved::Broken(format!("a Dsn of the foreign scheme `{scheme}` is delivered to"))),
            Err(error) => {
                ensure!(!error.is_temporary(), "the foreign scheme `{scheme}` is told as {}", error.chain());
            }
        }
    }
    Ok(())
}

/// A parameter that the sink does not know is an error in `check`, which names it and hides its value.
pub async fn an_unknown_parameter_is_named<H: Harness>(harness: &H) -> Result<(), Unproved> {
    let (probe, (name, value)) = (Probe::new(harness), UNKNOWN);
    let begin = if probe.dsn.query().is_some() { '&' } else { '?' };
    let dsn = format!("{}{begin}{name}={value}", probe.dsn.expose());
    let dsn = dsn.parse().map_err(|error| Skip::because(format!("the Dsn takes no parameter: {error}")))?;
    match check_elsewhere(&probe, &dsn)? {
        Ok(()) => Err(Unproved::Broken("`check` passes a parameter that nobody knows".to_owned())),
        Err(error) => {
            let text = format!("{error} {error:?}");
            ensure!(text.contains(name), "the error does not name the parameter: {error}");
            ensure!(!text.contains(value), "the error repeats a parameter's value");
            Ok(())
        }
    }
}

/// Asks on a thread that has no runtime, where a panic is no end.
fn check_elsewhere<H: Harness>(probe: &Probe<'_, H>, dsn: &Dsn) -> Result<Result<(), DsnError>, Unproved> {
    let checked = thread::scope(|scope| scope.spawn(|| probe.sink.check(dsn)).join());
    checked.map_err(|_| Unproved::Broken("`check` panics".to_owned()))
}

fn check_on_a_thread(sink: &impl Sink, dsn: &Dsn) -> Result<(), DsnError> {
    let checked = thread::scope(|scope| scope.spawn(|| sink.check(dsn)).join());
    checked.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
