//! The lines that are printed.

use std::fmt;

/// What a figure has to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bar {
    /// Nothing.
    None,
    /// This, or more.
    AtLeast(f64),
    /// This, or less.
    AtMost(f64),
    /// This, or less, on a disk that is faster than this one.
    NotJudged(f64),
}

impl Bar {
    fn is_missed_by(self, value: f64) -> bool {
        match self {
            Self::None | Self::NotJudged(_) => false,
            // What is no number misses every bar.
            Self::AtLeast(bar) => value.is_nan() || value < bar,
            Self::AtMost(bar) => value.is_nan() || value > bar,
        }
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("-"),
            Self::AtLeast(bar) => write!(f, ">={bar}"),
            Self::AtMost(bar) => write!(f, "<={bar}"),
            Self::NotJudged(bar) => write!(f, "<={bar} (not judged: the disk is too slow)"),
        }
    }
}

/// Prints the figures of one suite as they come, and counts the bars that are missed.
#[derive(Debug)]
pub(crate) struct Report {
    suite: &'static str,
    missed: usize,
}

impl Report {
    pub(crate) const fn new(suite: &'static str) -> Self {
        Self { suite, missed: 0 }
    }

    /// How many bars were missed.
    pub(crate) const fn missed(&self) -> usize {
        self.missed
    }

    /// Prints a figure.
    #[expect(clippy::print_stdout, reason = "the figures are what the program is for")]
    pub(crate) fn figure(&mut self, name: &str, value: f64, unit: &str, bar: Bar) {
        let is_missed = bar.is_missed_by(value);
        self.missed += usize::from(is_missed);
        println!("{}", line(self.suite, name, value, unit, bar));
    }

    /// Tells whoever watches what is being measured.
    #[expect(clippy::print_stderr, reason = "a run takes minutes")]
    pub(crate) fn progress(&self, text: impl fmt::Display) {
        eprintln!("# {}: {text}", self.suite);
    }
}

fn line(suite: &str, name: &str, value: f64, unit: &str, bar: Bar) -> String {
    let decimals = match value.abs() {
        large if large >= 1_000.0 => 0,
        middle if middle >= 100.0 => 1,
        _ => 3,
    };
    let mark = if bar.is_missed_by(value) { " MISSED" } else { "" };
    format!("{suite:<10} {name:<24} {value:>10.decimals$} {unit:<6} {bar}{mark}")
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    percentile(&values, 0.5)
}

/// The value of sorted ones that this share does not exceed; the default where there are none.
pub(crate) fn percentile<T: Copy + Default>(sorted: &[T], share: f64) -> T {
    let place = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(place).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_suite_figure_value_unit_and_bar() {
        let fields = |bar| line("dispatch", "sink_ratio", 0.9314, "ratio", bar).split_whitespace().collect::<String>();
        assert_eq!(fields(Bar::None), "dispatchsink_ratio0.931ratio-");
        assert_eq!(fields(Bar::AtLeast(0.9)), "dispatchsink_ratio0.931ratio>=0.9");
        assert_eq!(fields(Bar::AtLeast(0.94)), "dispatchsink_ratio0.931ratio>=0.94MISSED");
        assert_eq!(fields(Bar::AtMost(0.9)), "dispatchsink_ratio0.931ratio<=0.9MISSED");
    }

    #[test]
    fn a_bar_that_is_not_judged_is_not_missed() {
        assert!(!Bar::NotJudged(10.0).is_missed_by(11.0));
        assert!(Bar::AtMost(10.0).is_missed_by(f64::NAN));
        assert!(!Bar::AtMost(10.0).is_missed_by(10.0));
    }

    #[test]
    fn the_median_of_five_is_the_third() {
        assert!((median(vec![5.0, 1.0, 4.0, 2.0, 3.0]) - 3.0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<u32> = (1..=100).collect();
        assert_eq!((percentile(&values, 0.50), percentile(&values, 0.99)), (51, 100));
        assert_eq!(percentile::<u32>(&[], 0.5), 0);
    }
}
