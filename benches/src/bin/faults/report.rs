//! What the faults came to: a line each, and a page.

use std::io::{self, Write};

/// What became of one fault.
#[derive(Debug, Default)]
pub(crate) struct Finding {
    pub(crate) fault: &'static str,
    /// What was done.
    pub(crate) done: String,
    /// How often.
    pub(crate) times: usize,
    /// Requests whose acknowledgment arrived.
    pub(crate) accepted: usize,
    /// Requests that were refused with an error.
    pub(crate) refused: usize,
    /// Acknowledged, and neither delivered nor dead in the end.
    pub(crate) lost: usize,
    /// Deliveries beyond the first of each id.
    pub(crate) duplicated: usize,
    /// Delivered as a report that the work was interrupted.
    pub(crate) reported: usize,
    /// Given up: kept as dead letters.
    pub(crate) dead: usize,
    /// Delivered though the request was refused.
    pub(crate) wrong: usize,
    /// Why a duplicate is to be expected here, or none.
    pub(crate) why: &'static str,
}

impl Finding {
    pub(crate) fn is_wrong(&self) -> bool {
        self.lost > 0 || self.wrong > 0
    }
}

/// Prints one finding.
pub(crate) fn print(finding: &Finding) -> io::Result<()> {
    let Finding { fault, done, times, accepted, refused, lost, duplicated, reported, dead, wrong, .. } = finding;
    writeln!(
        io::stdout().lock(),
        "{fault}: {done}: times {times} accepted {accepted} refused {refused} lost {lost} duplicated {duplicated} \
         reported {reported} dead {dead} wrong {wrong}"
    )
}

/// Prints the last line.
pub(crate) fn print_total(findings: &[Finding]) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{}", total(findings))
}

fn total(findings: &[Finding]) -> String {
    let sum = |figure: fn(&Finding) -> usize| findings.iter().map(figure).sum::<usize>();
    format!(
        "lost {} duplicated {} accepted {} faults {}",
        sum(|it| it.lost),
        sum(|it| it.duplicated),
        sum(|it| it.accepted),
        sum(|it| it.times)
    )
}

/// The findings as a page for people.
pub(crate) fn page(findings: &[Finding]) -> String {
    let mut page = String::from(HEAD);
    for finding in findings {
        let Finding { fault, done, times, accepted, refused, lost, duplicated, reported, dead, wrong: _, why } =
            finding;
        let why = if *duplicated > 0 { *why } else { "" };
        page.push_str(&format!(
            "| {fault} | {done} | {times} | {accepted} | {refused} | {lost} | {duplicated} | {reported} | {dead} | {why} |\n"
        ));
    }
    page.push_str(&format!("\nAll together: `{}`.\n", total(findings)));
    page
}

const HEAD: &str = "# Faults

`scripts/faults --seconds 60 --write` made these faults, and wrote this page. A service (a `Dispatcher` with an `HttpSink`, and two workers: one
whose work is run again after a crash, one whose work is reported as interrupted) is a process of its own; the program sends
it requests, breaks it, starts it again, and counts at a webhook receiver what arrives, by `webhook-id`. A request is
*accepted* once its acknowledgment has arrived. *Lost* is what was accepted, and after the last start was neither delivered nor
kept as a dead letter. *Duplicated* are the deliveries that a receiver answered with 204 beyond the first of each id.
*Reported* arrived as a message that its work was interrupted. What is delivered though its request was refused fails the run;
there was none. Delivery is at least once: a receiver knows a duplicate by its `webhook-id`.

| fault | what was done | times | accepted | refused | lost | duplicated | reported | dead | why a duplicate |
|---|---|---:|---:|---:|---:|---:|---:|---:|---|
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_sums_up() {
        let finding = |lost, accepted| Finding { lost, accepted, times: 2, duplicated: 1, ..Finding::default() };
        assert_eq!(total(&[finding(0, 5), finding(1, 6)]), "lost 1 duplicated 2 accepted 11 faults 4");
        assert!(!finding(0, 5).is_wrong() && finding(1, 5).is_wrong());
    }

    #[test]
    fn only_duplicates_are_explained() {
        let of = |duplicated| page(&[Finding { duplicated, why: "it was cut off", ..Finding::default() }]);
        assert!(of(1).contains("it was cut off") && !of(0).contains("it was cut off"));
    }
}
