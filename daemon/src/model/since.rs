//! From when a report tells, as a person says it.

use jiff::{SignedDuration, Timestamp, tz::TimeZone};

use super::window::{ParseWindowError, TimeOfDay};

/// Unless said otherwise: from one morning to the next.
const DEFAULT_MS: u64 = 24 * 3_600_000;

/// No day is longer, with the clock put back in it.
const LONGEST_DAY_MS: u64 = 26 * 3_600_000;

/// Why a beginning was not taken. Each says what would be right.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SinceError {
    /// Neither a span, a time of day nor a moment.
    #[error(
        "\"{0}\" is no beginning of a report; write how far to go back, for example 12h, a time of day, for example 18:00 \
         (the last one), or a moment with its offset, for example 2026-11-20T18:00:00+01:00"
    )]
    NotAMoment(String),
    /// A time that no day has.
    #[error(transparent)]
    NoSuchTime(ParseWindowError),
    /// It is yet to come.
    #[error("{0} is yet to come; a report tells of what has been")]
    ToCome(String),
}

/// The moment that is meant: of a span so long ago, of a time of day the last one on the clock of `zone`. Nothing said is
/// 24 hours.
///
/// # Errors
/// When it is none of them, or is yet to come.
pub fn since(text: &str, now_unix_ms: u64, zone: &TimeZone) -> Result<u64, SinceError> {
    let text = text.trim();
    let not_a_moment = || SinceError::NotAMoment(text.to_owned());
    if text.is_empty() {
        return Ok(now_unix_ms.saturating_sub(DEFAULT_MS));
    }
    match text.parse::<TimeOfDay>() {
        Ok(time) => last_before(time, now_unix_ms, zone).ok_or_else(not_a_moment),
        Err(ParseWindowError::NotATime(_)) => {
            if let Ok(span) = text.parse::<SignedDuration>() {
                let span_ms =
                    u64::try_from(span.as_millis()).map_err(|_| SinceError::ToCome(text.to_owned()))?;
                return Ok(now_unix_ms.saturating_sub(span_ms));
            }
            let moment = text.parse::<Timestamp>().map_err(|_| not_a_moment())?;
            match u64::try_from(moment.as_millisecond()).unwrap_or(0) {
                at if at > now_unix_ms => Err(SinceError::ToCome(text.to_owned())),
                at => Ok(at),
            }
        }
        Err(error) => Err(SinceError::NoSuchTime(error)),
    }
}

fn last_before(time: TimeOfDay, now_unix_ms: u64, zone: &TimeZone) -> Option<u64> {
    let mut last = time.next_after(now_unix_ms.saturating_sub(LONGEST_DAY_MS), zone)?;
    while let Some(next) = time.next_after(last, zone).filter(|next| *next <= now_unix_ms) {
        last = next;
    }
    Some(last).filter(|last| *last <= now_unix_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(text: &str) -> u64 {
        u64::try_from(text.parse::<Timestamp>().unwrap().as_millisecond()).unwrap()
    }

    #[test]
    fn spans_times_of_day_and_moments_are_taken() {
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let of = |text: &str, now: &str| since(text, ms(now), &zone).map_err(|error| error.to_string());
        let morning = "2026-01-11T07:00:00Z";
        assert_eq!(of("", morning), Ok(ms("2026-01-10T07:00:00Z")));
        assert_eq!(of("12h", morning), Ok(ms("2026-01-10T19:00:00Z")));
        assert_eq!(of("1h30m", morning), Ok(ms("2026-01-11T05:30:00Z")));
        assert_eq!(
            of("18:00", morning),
            Ok(ms("2026-01-10T17:00:00Z")),
            "yesterday's, on the clock of Berlin"
        );
        assert_eq!(of("07:59", morning), Ok(ms("2026-01-11T06:59:00Z")), "today's");
        assert_eq!(of("08:00", morning), Ok(ms("2026-01-11T07:00:00Z")), "this moment");
        assert_eq!(of("18:00", "2026-10-25T17:30:00Z"), Ok(ms("2026-10-25T17:00:00Z")), "autumn's long day");
        assert_eq!(of("2026-01-10T18:00:00+01:00", morning), Ok(ms("2026-01-10T17:00:00Z")));
        assert_eq!(of("1000000h", morning), Ok(0));
    }

    #[test]
    fn everything_else_is_refused_with_what_would_be_right() {
        let of = |text: &str| {
            since(text, ms("2026-01-11T07:00:00Z"), &TimeZone::UTC).map_err(|error| error.to_string())
        };
        for garbage in ["yesterday", "12", "2026-01-10", "12:00-13:00"] {
            let refusal = of(garbage).unwrap_err();
            assert!(
                refusal.starts_with(&format!("\"{garbage}\" is no beginning of a report; write how far")),
                "{refusal}"
            );
        }
        assert!(of("24:00").unwrap_err().contains("write 00:00"));
        for to_come in ["-5m", "2026-01-12T00:00:00Z"] {
            assert!(
                of(to_come).unwrap_err().ends_with("is yet to come; a report tells of what has been"),
                "{to_come}"
            );
        }
    }
}
