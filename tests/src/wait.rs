//! Waiting for conditions. Deadlines are generous, since the machine may be busy; a condition met early costs nothing.

use std::time::{Duration, Instant};

/// How often a condition is looked at. Short against everything waited for, long against what a look costs.
const POLL: Duration = Duration::from_millis(20);

/// For things that take milliseconds on an idle machine.
pub const SOON: Duration = Duration::from_secs(60);

/// For whole jobs.
pub const LONG: Duration = Duration::from_secs(240);

/// Looks until `probe` gives a value.
///
/// # Panics
/// When it has given none `within` that time: with `what` was waited for and what the last look saw.
pub async fn eventually<T>(
    what: &str,
    within: Duration,
    mut probe: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let started = Instant::now();
    loop {
        let seen = match probe().await {
            Ok(value) => return value,
            Err(seen) => seen,
        };
        assert!(started.elapsed() < within, "waited {within:?} for {what}; last seen: {seen}");
        tokio::time::sleep(POLL).await;
    }
}

/// Looks until `probe` is true; `seen` describes what is there when it never is.
///
/// # Panics
/// As [`eventually`].
pub async fn until(what: &str, within: Duration, mut probe: impl FnMut() -> bool) {
    eventually(what, within, async || if probe() { Ok(()) } else { Err("not so".to_owned()) }).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_condition_is_looked_at_until_it_holds() {
        let mut looks = 0;
        let value = eventually("three looks", SOON, async || {
            looks += 1;
            if looks == 3 { Ok(looks) } else { Err(format!("{looks} looks")) }
        })
        .await;
        assert_eq!(value, 3);
    }

    #[tokio::test]
    #[should_panic(expected = "waited 1ms for the moon; last seen: clouds")]
    async fn what_was_seen_last_is_told() {
        eventually("the moon", Duration::from_millis(1), async || Err::<(), _>("clouds".to_owned())).await;
    }
}
