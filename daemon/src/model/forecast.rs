//! When a job will be done, from what is left, how fast it goes and when it may work.
//!
//! An estimate says no more than is known: the speed is taken to stay as it is, and only the hours of the window count.
//! What a worker needs to load its model anew each night is not in it.

use jiff::tz::TimeZone;

use super::{
    ids::JobId,
    window::{Night, Window},
};

/// Nights looked ahead. The speed of a few minutes says nothing of what comes in two months.
const MOST_NIGHTS: usize = 60;
/// The same for jobs without a window.
const MOST_MS: u64 = 60 * 24 * 3_600_000;

/// What is to be said of a job's end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outlook {
    /// By its speed.
    Known(Forecast),
    /// There is nothing to base a forecast on.
    Unknown(Obstacle),
    /// The same, but for this: nothing is done before its deadline.
    Late {
        /// Why no more is known.
        obstacle: Obstacle,
        /// Rows that will not be done at the deadline: all there are.
        rows_left: u64,
    },
}

/// When a job will be done at the speed it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Forecast {
    /// When its last row will be. `None`: not within two months.
    pub finish_unix_ms: Option<u64>,
    /// Rows that will not be done at the deadline; 0 when all will. `None` without a deadline, or when it has passed.
    pub rows_left_at_deadline: Option<u64>,
}

/// Why a job's end cannot be forecast.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Obstacle {
    /// It has worked for less than a minute, counted from the first row it finished since it last began.
    TooEarly,
    /// No worker is at work on it.
    NotRunning,
    /// It waits for its window.
    OutsideWindow,
    /// Another job goes first.
    Behind(JobId),
    /// It is held back.
    Paused,
}

/// What a forecast is made of.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Pacing {
    /// Without an answer or an error.
    pub rows_left: u64,
    /// Above 0.
    pub rows_per_s: f64,
    /// Without one, it works at any time.
    pub window: Option<Window>,
    /// By when it should be done.
    pub deadline_unix_ms: Option<u64>,
}

/// Forecasts. Pure: the time and the clock's zone are given.
#[must_use]
pub fn forecast(now_unix_ms: u64, pacing: Pacing, zone: &TimeZone) -> Forecast {
    let Pacing { rows_left, rows_per_s, window, deadline_unix_ms } = pacing;
    let needed_ms = match rows_left as f64 * 1e3 / rows_per_s {
        needed_ms if needed_ms >= 0.0 && needed_ms < MOST_MS as f64 => Some(needed_ms as u64),
        // Too long, or no speed at all.
        _ => None,
    };
    let finish_unix_ms = needed_ms.and_then(|needed_ms| match window {
        None => Some(now_unix_ms.saturating_add(needed_ms)),
        Some(window) => finish_within(window, now_unix_ms, needed_ms, zone),
    });
    let coming = deadline_unix_ms.filter(|deadline| *deadline > now_unix_ms);
    let rows_left_at_deadline = coming.map(|deadline| {
        if finish_unix_ms.is_some_and(|finish| finish <= deadline) {
            return 0;
        }
        let work_ms = match window {
            None => deadline - now_unix_ms,
            Some(window) => open_ms(window, now_unix_ms, deadline, zone),
        };
        let done = (work_ms as f64 / 1e3 * rows_per_s).max(0.0) as u64;
        // Rounding must not make it look as if it were in time.
        rows_left.saturating_sub(done).max(1)
    });
    Forecast { finish_unix_ms, rows_left_at_deadline }
}

/// What is left of each night from now on.
fn nights_from(window: Window, now_unix_ms: u64, zone: &TimeZone) -> impl Iterator<Item = Night> {
    let night_from = move |unix_ms: u64| {
        let night = window.night(unix_ms, zone)?;
        Some(Night { opens_unix_ms: night.opens_unix_ms.max(unix_ms), ..night })
    };
    std::iter::successors(night_from(now_unix_ms), move |night| night_from(night.closes_unix_ms))
        .take(MOST_NIGHTS)
}

fn finish_within(window: Window, now_unix_ms: u64, mut needed_ms: u64, zone: &TimeZone) -> Option<u64> {
    for night in nights_from(window, now_unix_ms, zone) {
        let open_ms = night.closes_unix_ms - night.opens_unix_ms;
        if needed_ms <= open_ms {
            return Some(night.opens_unix_ms + needed_ms);
        }
        needed_ms -= open_ms;
    }
    None
}

/// For how long the window is open between two moments.
fn open_ms(window: Window, from_unix_ms: u64, until_unix_ms: u64, zone: &TimeZone) -> u64 {
    nights_from(window, from_unix_ms, zone)
        .take_while(|night| night.opens_unix_ms < until_unix_ms)
        .map(|night| night.closes_unix_ms.min(until_unix_ms) - night.opens_unix_ms)
        .sum()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;

    const MINUTE_MS: u64 = 60_000;

    fn berlin() -> TimeZone {
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
    }

    fn ms(text: &str) -> u64 {
        u64::try_from(text.parse::<Timestamp>().unwrap().as_millisecond()).unwrap()
    }

    /// Of a job that does a row each second.
    fn told(
        now: &str,
        rows_left: u64,
        window: Option<&str>,
        deadline: Option<&str>,
    ) -> (Option<String>, Option<u64>) {
        let pacing = Pacing {
            rows_left,
            rows_per_s: 1.0,
            window: window.map(|text| text.parse().unwrap()),
            deadline_unix_ms: deadline.map(ms),
        };
        let forecast = forecast(ms(now), pacing, &berlin());
        let moment = |ms: u64| Timestamp::from_millisecond(i64::try_from(ms).unwrap()).unwrap().to_string();
        (forecast.finish_unix_ms.map(moment), forecast.rows_left_at_deadline)
    }

    fn at(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn without_a_window_it_goes_on_until_it_is_done() {
        let now = "2026-01-10T21:00:00Z";
        assert_eq!(told(now, 3_600, None, None), (at("2026-01-10T22:00:00Z"), None));
        assert_eq!(
            told(now, 3_600, None, Some("2026-01-10T22:00:00Z")),
            (at("2026-01-10T22:00:00Z"), Some(0))
        );
        assert_eq!(
            told(now, 3_600, None, Some("2026-01-10T21:50:00Z")),
            (at("2026-01-10T22:00:00Z"), Some(600))
        );
        assert_eq!(told(now, 3_600, None, Some(now)).1, None, "it has passed");
    }

    #[test]
    fn with_a_window_only_its_hours_count() {
        let night = Some("22:00-07:00");
        let hours = |hours: u64| hours * 3_600;
        // 22:00 in Berlin.
        let now = "2026-01-10T21:00:00Z";
        assert_eq!(told(now, hours(9), night, None).0, at("2026-01-11T06:00:00Z"), "to the last minute");
        assert_eq!(
            told(now, hours(10), night, None).0,
            at("2026-01-11T22:00:00Z"),
            "an hour of the next night"
        );
        assert_eq!(told(now, hours(28), night, None).0, at("2026-01-13T22:00:00Z"), "the fourth night");
        assert_eq!(
            told(now, hours(10), night, Some("2026-01-11T06:00:00Z")),
            (at("2026-01-11T22:00:00Z"), Some(3_600))
        );
        assert_eq!(
            told("2026-01-10T12:00:00Z", hours(1), night, Some("2026-01-10T20:00:00Z")),
            (at("2026-01-10T22:00:00Z"), Some(3_600)),
            "not one row before it opens"
        );
        assert_eq!(
            told("2026-03-28T21:00:00Z", hours(8), night, None).0,
            at("2026-03-29T05:00:00Z"),
            "the short night of spring"
        );
    }

    #[test]
    fn what_takes_months_or_for_ever_has_no_moment() {
        let of = |rows_left, rows_per_s, window: Option<&str>| {
            let window = window.map(|text| text.parse().unwrap());
            let deadline_unix_ms = Some(ms("2026-01-11T06:00:00Z"));
            let pacing = Pacing { rows_left, rows_per_s, window, deadline_unix_ms };
            forecast(ms("2026-01-10T21:00:00Z"), pacing, &berlin())
        };
        assert_eq!(of(u64::MAX, 1.0, None).finish_unix_ms, None);
        assert_eq!(of(10_000_000, 1.0, Some("22:00-22:01")).finish_unix_ms, None);
        for nonsense in [0.0, -1.0, f64::NAN] {
            let forecast = of(5, nonsense, None);
            assert_eq!((forecast.finish_unix_ms, forecast.rows_left_at_deadline), (None, Some(5)));
        }
        assert_eq!(of(0, 1.0, None).rows_left_at_deadline, Some(0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Against a job that does a row in each minute in which its window is open.
        #[test]
        fn a_forecast_is_what_a_walk_through_every_minute_finds(
            rows_left in 1_u64..2_000,
            opens in 0_u16..1_440,
            closes in 0_u16..1_440,
            start in 0_u64..5_000,
            deadline in proptest::option::of(1_u64..5_000),
        ) {
            prop_assume!(opens != closes);
            let zone = berlin();
            let clock = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
            let window: Window = format!("{}-{}", clock(opens), clock(closes)).parse().unwrap();
            // Around the change of the clock in spring.
            let now = ms("2026-03-27T00:00:00Z") + start * MINUTE_MS;
            let deadline_unix_ms = deadline.map(|minutes| now + minutes * MINUTE_MS);
            let pacing = Pacing { rows_left, rows_per_s: 1.0 / 60.0, window: Some(window), deadline_unix_ms };
            let found = forecast(now, pacing, &zone);

            let (mut left, mut at, mut left_at_deadline) = (rows_left, now, None);
            while at < now + 61 * 24 * 60 * MINUTE_MS && (left > 0 || deadline_unix_ms > Some(at)) {
                left -= u64::from(left > 0 && window.is_open(at, &zone));
                at += MINUTE_MS;
                if left == 0 && left_at_deadline.is_none() && deadline_unix_ms.is_some_and(|deadline| at <= deadline) {
                    left_at_deadline = Some(0);
                }
                if deadline_unix_ms == Some(at) {
                    left_at_deadline.get_or_insert(left);
                }
                if left == 0 && at >= deadline_unix_ms.unwrap_or(0) {
                    break;
                }
            }
            // A millisecond of rounding.
            let near = |one: u64, other: u64| one.abs_diff(other) <= 1;
            let in_doubt = left_at_deadline.zip(found.rows_left_at_deadline);
            prop_assert!(in_doubt.is_none_or(|(walked, found)| near(walked, found)), "{in_doubt:?}");
            prop_assert_eq!(found.rows_left_at_deadline.is_some(), deadline.is_some());
            if let Some(finish) = found.finish_unix_ms && deadline.is_none() {
                prop_assert_eq!(left, 0);
                prop_assert!(near(finish, at), "{finish} {at}");
            }
        }
    }
}
