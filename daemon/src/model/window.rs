//! The hours of the night in which a job may work, by the clock of a place.
//!
//! Promises: an end of a window is the first moment at which the clock shows its time or a later one. So one that falls
//! into the hour that spring leaves out is the moment of the jump, and one that autumn has twice is the first of the two.
//! Nights never overlap, and one that the jump swallows whole is none.

use std::{fmt, str::FromStr};

use jiff::{
    Timestamp, ToSpan as _,
    civil::{self, Date},
    tz::{AmbiguousOffset, TimeZone},
};
use serde::{Deserialize, Serialize};

/// Days before a moment at which a night that lasts until then can have begun: the day before, and one more where the clock
/// was put back over midnight.
const DAYS_BACK: i64 = 2;
/// Nights looked at for one that is not over: every day has one, but for those that a jump of the clock swallows.
const NIGHTS_TRIED: usize = 16;
/// Changes of the clock looked at around a time that it leaves out: the jump itself, and those that change names only.
const CHANGES_TRIED: usize = 8;

/// A time of day by the clock, to the minute.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct TimeOfDay {
    /// Since midnight; below 24 × 60.
    minute_of_day: u16,
}

/// Why a time or a window was not understood. Each says what would be right.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ParseWindowError {
    /// Not two times with a dash.
    #[error(
        "\"{0}\" is no window; write when it opens and when it closes on the 24-hour clock, for example 22:00-07:00"
    )]
    NotAWindow(String),
    /// Not a time.
    #[error("\"{0}\" is no time of day; write hours and minutes on the 24-hour clock, for example 07:00")]
    NotATime(String),
    /// An hour or a minute that no day has.
    #[error("{0} is no time of day; hours go from 00 to 23 and minutes from 00 to 59")]
    OutOfRange(String),
    /// The day ends where the next one begins.
    #[error("24:00 is no time of day; for midnight write 00:00")]
    EndOfDay,
    /// It would be open always, or never.
    #[error(
        "the window {0} opens and closes at the same time; for a job that may run at any time give no window"
    )]
    Empty(String),
}

impl FromStr for TimeOfDay {
    type Err = ParseWindowError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let not_a_time = || ParseWindowError::NotATime(text.to_owned());
        let (hour, minute) = text.split_once(':').ok_or_else(not_a_time)?;
        let number = |part: &str, least_digits: usize| {
            let is_number =
                (least_digits..=2).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| part.parse::<u16>().ok()).flatten().ok_or_else(not_a_time)
        };
        match (number(hour, 1)?, number(minute, 2)?) {
            (24, 0) => Err(ParseWindowError::EndOfDay),
            (hour @ 0..24, minute @ 0..60) => Ok(Self { minute_of_day: hour * 60 + minute }),
            _ => Err(ParseWindowError::OutOfRange(text.to_owned())),
        }
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.minute_of_day / 60, self.minute_of_day % 60)
    }
}

impl TimeOfDay {
    /// What the clock shows at a moment, its seconds left out.
    #[must_use]
    pub fn at(unix_ms: u64, zone: &TimeZone) -> Self {
        let time = zone.to_datetime(timestamp(unix_ms)).time();
        let minute_of_day = i16::from(time.hour()) * 60 + i16::from(time.minute());
        Self { minute_of_day: u16::try_from(minute_of_day).unwrap_or(0) }
    }

    /// The first moment after this one at which the clock shows this time, or leaves it out.
    #[must_use]
    pub fn next_after(self, unix_ms: u64, zone: &TimeZone) -> Option<u64> {
        days_around(unix_ms, zone)
            .filter_map(|day| self.on(day, zone))
            .take(NIGHTS_TRIED)
            .find(|at| *at > unix_ms)
    }

    /// The first moment at which the clock shows this time of this day or a later one.
    fn on(self, day: Date, zone: &TimeZone) -> Option<u64> {
        let (hour, minute) = (self.minute_of_day / 60, self.minute_of_day % 60);
        let time = civil::Time::new(i8::try_from(hour).ok()?, i8::try_from(minute).ok()?, 0, 0).ok()?;
        let wanted = day.to_datetime(time);
        let moment = match zone.to_ambiguous_timestamp(wanted).offset() {
            AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(wanted).ok()?,
            AmbiguousOffset::Fold { before, .. } => before.to_timestamp(wanted).ok()?,
            AmbiguousOffset::Gap { after, .. } => {
                let before_jump = after.to_timestamp(wanted).ok()?;
                let changes =
                    zone.following(before_jump).take(CHANGES_TRIED).map(|change| change.timestamp());
                changes.into_iter().find(|at| zone.to_datetime(*at) >= wanted)?
            }
        };
        Some(u64::try_from(moment.as_millisecond()).unwrap_or(0))
    }
}

/// From when to when a job may work each night, or each day.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Window {
    opens: TimeOfDay,
    closes: TimeOfDay,
}

/// One opening of a window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Night {
    /// From this moment on.
    pub opens_unix_ms: u64,
    /// Before this one.
    pub closes_unix_ms: u64,
}

impl FromStr for Window {
    type Err = ParseWindowError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let not_a_window = || ParseWindowError::NotAWindow(text.trim().to_owned());
        let (opens, closes) = text.split_once('-').ok_or_else(not_a_window)?;
        let time = |text: &str| {
            text.parse::<TimeOfDay>().map_err(|error| match error {
                ParseWindowError::NotATime(_) => not_a_window(),
                other => other,
            })
        };
        let window = Self { opens: time(opens)?, closes: time(closes)? };
        if window.opens == window.closes {
            Err(ParseWindowError::Empty(window.to_string()))
        } else {
            Ok(window)
        }
    }
}

impl TryFrom<String> for Window {
    type Error = ParseWindowError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Window> for String {
    fn from(window: Window) -> Self {
        window.to_string()
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.opens, self.closes)
    }
}

impl Window {
    /// When it opens, by the clock.
    #[must_use]
    pub fn opens(self) -> TimeOfDay {
        self.opens
    }

    /// When it closes, by the clock.
    #[must_use]
    pub fn closes(self) -> TimeOfDay {
        self.closes
    }

    /// Whether a job may work at this moment.
    #[must_use]
    pub fn is_open(self, unix_ms: u64, zone: &TimeZone) -> bool {
        self.closes_at(unix_ms, zone).is_some()
    }

    /// When it closes, if it is open.
    #[must_use]
    pub fn closes_at(self, unix_ms: u64, zone: &TimeZone) -> Option<u64> {
        let night = self.night(unix_ms, zone)?;
        (night.opens_unix_ms <= unix_ms).then_some(night.closes_unix_ms)
    }

    /// The first opening after this moment. `None` only at the end of the calendar.
    #[must_use]
    pub fn next_opening(self, unix_ms: u64, zone: &TimeZone) -> Option<u64> {
        self.nights(unix_ms, zone).map(|night| night.opens_unix_ms).find(|opens| *opens > unix_ms)
    }

    /// The night that is on, or else the next one.
    #[must_use]
    pub fn night(self, unix_ms: u64, zone: &TimeZone) -> Option<Night> {
        self.nights(unix_ms, zone).find(|night| night.closes_unix_ms > unix_ms)
    }

    /// Nights in order, from one that is over by then.
    fn nights(self, unix_ms: u64, zone: &TimeZone) -> impl Iterator<Item = Night> {
        days_around(unix_ms, zone).take(NIGHTS_TRIED).filter_map(move |day| {
            let last_day = if self.closes > self.opens { day } else { day.tomorrow().ok()? };
            let night = Night {
                opens_unix_ms: self.opens.on(day, zone)?,
                closes_unix_ms: self.closes.on(last_day, zone)?,
            };
            (night.opens_unix_ms < night.closes_unix_ms).then_some(night)
        })
    }
}

/// Days in order, from before every night that a moment can be in.
fn days_around(unix_ms: u64, zone: &TimeZone) -> impl Iterator<Item = Date> {
    let today = zone.to_datetime(timestamp(unix_ms)).date();
    let first = today.saturating_sub(DAYS_BACK.days());
    std::iter::successors(Some(first), |day| day.tomorrow().ok())
}

fn timestamp(unix_ms: u64) -> Timestamp {
    i64::try_from(unix_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE_MS: u64 = 60_000;
    const DAY_MINUTES: u16 = 24 * 60;

    fn berlin() -> TimeZone {
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
    }

    fn ms(text: &str) -> u64 {
        u64::try_from(text.parse::<Timestamp>().unwrap().as_millisecond()).unwrap()
    }

    fn window(text: &str) -> Window {
        text.parse().unwrap()
    }

    #[test]
    fn windows_are_read_and_printed() {
        for (text, printed) in [
            ("22:00-07:00", "22:00-07:00"),
            (" 9:30 - 17:05 ", "09:30-17:05"),
            ("00:00-00:01", "00:00-00:01"),
        ] {
            assert_eq!(window(text).to_string(), printed);
        }
        let json = serde_json::to_string(&window("22:00-07:00")).unwrap();
        assert_eq!(json, "\"22:00-07:00\"");
        assert_eq!(serde_json::from_str::<Window>(&json).unwrap(), window("22:00-07:00"));
        assert!(serde_json::from_str::<Window>("\"22-7\"").is_err());
    }

    #[test]
    fn what_is_no_window_is_refused_with_what_would_be_right() {
        let refusal = |text: &str| text.parse::<Window>().unwrap_err().to_string();
        assert_eq!(
            refusal("07:00-07:00"),
            "the window 07:00-07:00 opens and closes at the same time; for a job that may run at any time give no window"
        );
        assert_eq!(refusal("22:00-24:00"), "24:00 is no time of day; for midnight write 00:00");
        assert_eq!(
            refusal("25:10-07:00"),
            "25:10 is no time of day; hours go from 00 to 23 and minutes from 00 to 59"
        );
        assert_eq!(
            refusal("22:60-07:00"),
            "22:60 is no time of day; hours go from 00 to 23 and minutes from 00 to 59"
        );
        for garbage in [
            "",
            "night",
            "22:00",
            "22-7",
            "22:00-",
            "22:0-07:00",
            "+2:00-07:00",
            "22:00–07:00",
            "1:00-2:00-3:00",
        ] {
            assert_eq!(
                refusal(garbage),
                format!(
                    "\"{garbage}\" is no window; write when it opens and when it closes on the 24-hour clock, for example \
                     22:00-07:00"
                )
            );
        }
        assert!("7pm".parse::<TimeOfDay>().unwrap_err().to_string().contains("for example 07:00"));
    }

    #[test]
    fn a_window_over_midnight_is_open_on_both_sides_of_it() {
        let night = window("22:00-07:00");
        let zone = berlin();
        let open = |text: &str| night.is_open(ms(text), &zone);
        assert!(!open("2026-01-10T20:59:59.999Z"));
        assert!(
            open("2026-01-10T21:00:00Z") && open("2026-01-10T23:30:00Z") && open("2026-01-11T05:59:59.999Z")
        );
        assert!(!open("2026-01-11T06:00:00Z"));
        assert_eq!(night.closes_at(ms("2026-01-10T21:00:00Z"), &zone), Some(ms("2026-01-11T06:00:00Z")));
        assert_eq!(night.closes_at(ms("2026-01-11T06:00:00Z"), &zone), None);
        assert_eq!(night.next_opening(ms("2026-01-10T12:00:00Z"), &zone), Some(ms("2026-01-10T21:00:00Z")));
        assert_eq!(night.next_opening(ms("2026-01-10T21:00:00Z"), &zone), Some(ms("2026-01-11T21:00:00Z")));
        let day = window("09:00-17:00");
        assert!(
            day.is_open(ms("2026-01-10T08:00:00Z"), &zone) && !day.is_open(ms("2026-01-10T16:00:00Z"), &zone)
        );
    }

    #[test]
    fn an_opening_that_spring_leaves_out_is_the_moment_of_the_jump() {
        // 2026-03-29: 02:00 is followed by 03:00, at 01:00 UTC.
        let zone = berlin();
        let noon_before = ms("2026-03-28T12:00:00Z");
        assert_eq!(window("02:30-07:00").next_opening(noon_before, &zone), Some(ms("2026-03-29T01:00:00Z")));
        assert_eq!(
            window("22:00-02:30").night(ms("2026-03-28T21:00:00Z"), &zone).unwrap().closes_unix_ms,
            ms("2026-03-29T01:00:00Z")
        );
        assert_eq!(
            window("02:10-02:50").next_opening(ms("2026-03-28T12:00:00Z"), &zone),
            Some(ms("2026-03-30T00:10:00Z")),
            "a night that is left out whole is none"
        );
        assert_eq!(
            window("22:00-07:00").closes_at(ms("2026-03-28T21:00:00Z"), &zone),
            Some(ms("2026-03-29T05:00:00Z")),
            "eight hours"
        );
    }

    #[test]
    fn a_time_that_autumn_has_twice_is_the_first_of_the_two() {
        // 2026-10-25: 03:00 is followed by 02:00, at 01:00 UTC.
        let zone = berlin();
        let early = window("02:30-07:00");
        assert_eq!(early.next_opening(ms("2026-10-24T12:00:00Z"), &zone), Some(ms("2026-10-25T00:30:00Z")));
        assert!(early.is_open(ms("2026-10-25T01:10:00Z"), &zone), "the second 02:10 is after the opening");
        assert_eq!(early.closes_at(ms("2026-10-25T00:30:00Z"), &zone), Some(ms("2026-10-25T06:00:00Z")));
        let late = window("22:00-02:30");
        assert_eq!(late.closes_at(ms("2026-10-24T20:00:00Z"), &zone), Some(ms("2026-10-25T00:30:00Z")));
        assert!(!late.is_open(ms("2026-10-25T01:10:00Z"), &zone), "closed once is closed for the night");
    }

    #[test]
    fn a_time_of_day_comes_next() {
        let zone = berlin();
        let seven: TimeOfDay = "07:00".parse().unwrap();
        assert_eq!(seven.next_after(ms("2026-01-10T05:59:00Z"), &zone), Some(ms("2026-01-10T06:00:00Z")));
        assert_eq!(seven.next_after(ms("2026-01-10T06:00:00Z"), &zone), Some(ms("2026-01-11T06:00:00Z")));
        assert_eq!(TimeOfDay::at(ms("2026-01-10T06:00:59Z"), &zone), seven);
    }

    #[test]
    fn the_ends_of_the_calendar_are_no_panic() {
        for unix_ms in [0, 1, u64::MAX, u64::MAX / 2] {
            let _ = window("22:00-07:00").is_open(unix_ms, &berlin());
            let _ = window("22:00-07:00").next_opening(unix_ms, &berlin());
        }
    }

    /// Zones whose clocks jump by an hour, by half of one, at midnight, backwards in summer, and never.
    const ZONES: [&str; 6] = [
        "CET-1CEST,M3.5.0,M10.5.0/3",
        "EST5EDT,M3.2.0,M11.1.0",
        "<+1030>-10:30<+11>-11,M10.1.0,M4.1.0",
        "CST5CDT,M3.2.0/0,M11.1.0/1",
        "IST-1GMT0,M10.5.0,M3.5.0/1",
        "UTC0",
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        /// Against a walk through every minute with one clock that is never put back: what it shows at most so far.
        #[test]
        fn openings_and_closings_are_those_of_a_walk_through_every_minute(
            zone in 0..ZONES.len(),
            change in 0_usize..2,
            times in (0_u16..DAY_MINUTES, 0_u16..DAY_MINUTES).prop_filter("a window", |(a, b)| a != b),
            near in proptest::option::of(0_u16..240),
        ) {
            let zone = TimeZone::posix(ZONES[zone]).unwrap();
            let new_year: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
            let change = zone.following(new_year).nth(change).map_or(new_year, |change| change.timestamp());
            // Half of the windows open in the small hours, where clocks change.
            let opens = near.filter(|minute| *minute != times.1).unwrap_or(times.0);
            let window = Window {
                opens: TimeOfDay { minute_of_day: opens },
                closes: TimeOfDay { minute_of_day: times.1 },
            };
            let within = |shown: civil::DateTime| {
                let shown = u16::try_from(i16::from(shown.hour()) * 60 + i16::from(shown.minute())).unwrap();
                if window.opens < window.closes {
                    (window.opens.minute_of_day..window.closes.minute_of_day).contains(&shown)
                } else {
                    shown >= window.opens.minute_of_day || shown < window.closes.minute_of_day
                }
            };
            let start = u64::try_from(change.as_millisecond()).unwrap() - 26 * 60 * MINUTE_MS;
            let mut most_shown = zone.to_datetime(timestamp(start));
            let mut walked = Vec::new();
            for minute in 0..54 * 60 {
                let at = start + minute * MINUTE_MS;
                most_shown = most_shown.max(zone.to_datetime(timestamp(at)));
                let open = within(most_shown);
                prop_assert_eq!(window.is_open(at, &zone), open, "{} at {}", window, timestamp(at));
                walked.push((at, open));
            }
            for pair in walked.windows(2) {
                let [(before, was_open), (at, open)] = [pair[0], pair[1]];
                if open && !was_open {
                    prop_assert_eq!(window.next_opening(before, &zone), Some(at));
                } else if was_open && !open {
                    prop_assert_eq!(window.closes_at(before, &zone), Some(at));
                }
            }
        }
    }
}
