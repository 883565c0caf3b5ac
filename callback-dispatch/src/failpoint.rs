//! Points at which a test lets the process die.

#[cfg(all(feature = "failpoints", not(debug_assertions)))]
compile_error!("feature `failpoints` lets a process die on demand: it is for debug builds alone");

/// Ends the process here, by an abort, if `CALLBACK_FAILPOINT=name:nth` names this point and this is the nth time.
#[cfg(feature = "failpoints")]
pub(crate) fn reach(name: &str) {
    use std::sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    };
    static ARMED: OnceLock<Option<Failpoint>> = OnceLock::new();
    static REACHED: AtomicU64 = AtomicU64::new(0);
    let armed = ARMED.get_or_init(|| Failpoint::parse(&std::env::var("CALLBACK_FAILPOINT").ok()?));
    let Some(armed) = armed.as_ref().filter(|armed| armed.name == name) else { return };
    if REACHED.fetch_add(1, Ordering::SeqCst) + 1 == armed.nth {
        std::process::abort();
    }
}

/// Does nothing: without the feature there are no such points.
#[cfg(not(feature = "failpoints"))]
pub(crate) const fn reach(_name: &str) {}

#[cfg(feature = "failpoints")]
#[derive(Debug, PartialEq, Eq)]
struct Failpoint {
    name: String,
    nth: u64,
}

#[cfg(feature = "failpoints")]
impl Failpoint {
    fn parse(text: &str) -> Option<Self> {
        let (name, nth) = text.split_once(':')?;
        Some(Self { name: name.to_owned(), nth: nth.parse().ok()? })
    }
}

#[cfg(all(test, feature = "failpoints"))]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_named_with_the_time_at_which_it_counts() {
        let nth = |text| Failpoint::parse(text).map(|point| (point.name, point.nth));
        assert_eq!(nth("after-run:3"), Some(("after-run".to_owned(), 3)));
        assert_eq!(nth("after-run"), None);
        assert_eq!(nth("after-run:often"), None);
    }
}
