//! By when a job should be done, as a person says it.

use jiff::{Timestamp, tz::TimeZone};

use super::window::{ParseWindowError, TimeOfDay};

/// Why a deadline was not taken. Each says what would be right.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DeadlineError {
    /// Neither a time of day nor a moment.
    #[error(
        "\"{0}\" is no deadline; write a time of day, for example 07:00, or a moment with its offset, for example \
         2026-11-21T07:00:00+01:00"
    )]
    NotAMoment(String),
    /// A time that no day has.
    #[error(transparent)]
    NoSuchTime(ParseWindowError),
    /// It is over.
    #[error("the deadline {0} has passed; give one that is still to come")]
    Passed(String),
}

/// The moment that is meant: of a time of day the next one on the clock of `zone`.
///
/// # Errors
/// When it is neither a time of day nor an RFC 3339 moment, or has passed.
pub fn deadline(text: &str, now_unix_ms: u64, zone: &TimeZone) -> Result<u64, DeadlineError> {
    let text = text.trim();
    let not_a_moment = || DeadlineError::NotAMoment(text.to_owned());
    match text.parse::<TimeOfDay>() {
        Ok(time) => time.next_after(now_unix_ms, zone).ok_or_else(not_a_moment),
        Err(ParseWindowError::NotATime(_)) => {
            let moment = text.parse::<Timestamp>().map_err(|_| not_a_moment())?;
            u64::try_from(moment.as_millisecond())
                .ok()
                .filter(|deadline| *deadline > now_unix_ms)
                .ok_or_else(|| DeadlineError::Passed(text.to_owned()))
        }
        Err(error) => Err(DeadlineError::NoSuchTime(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(text: &str) -> u64 {
        u64::try_from(text.parse::<Timestamp>().unwrap().as_millisecond()).unwrap()
    }

    #[test]
    fn a_time_of_day_is_the_next_one_and_a_moment_is_itself() {
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let of = |text: &str, now: &str| deadline(text, ms(now), &zone).map_err(|error| error.to_string());
        assert_eq!(of("07:00", "2026-01-10T21:00:00Z"), Ok(ms("2026-01-11T06:00:00Z")));
        assert_eq!(of(" 7:00 ", "2026-01-11T06:00:00Z"), Ok(ms("2026-01-12T06:00:00Z")), "not now");
        assert_eq!(of("02:30", "2026-03-28T12:00:00Z"), Ok(ms("2026-03-29T01:00:00Z")), "left out in spring");
        assert_eq!(of("2026-01-12T07:00:00+01:00", "2026-01-10T21:00:00Z"), Ok(ms("2026-01-12T06:00:00Z")));
        assert_eq!(
            of("2026-01-09T07:00:00Z", "2026-01-10T21:00:00Z").unwrap_err(),
            "the deadline 2026-01-09T07:00:00Z has passed; give one that is still to come"
        );
        assert_eq!(
            of("24:00", "2026-01-10T21:00:00Z").unwrap_err(),
            "24:00 is no time of day; for midnight write 00:00"
        );
        for garbage in ["", "tomorrow", "7", "2026-01-12", "2026-01-12T07:00:00"] {
            let refusal = of(garbage, "2026-01-10T21:00:00Z").unwrap_err();
            assert!(
                refusal.starts_with(&format!("\"{garbage}\" is no deadline; write a time of day")),
                "{refusal}"
            );
        }
    }
}
