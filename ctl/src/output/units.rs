//! Numbers in human words: counts, sizes, durations, speeds, moments.

use jiff::{Timestamp, tz::TimeZone};

/// `1234567` → "1,234,567".
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A size in binary units, as memory is sold: "61.4 GiB", "350 MiB", "12 bytes".
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} bytes");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    // 999.5 would show as "1000".
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 99.95 && (value * 10.0).round() % 10.0 != 0.0 {
        format!("{value:.1} {}", UNITS[unit])
    } else {
        format!("{value:.0} {}", UNITS[unit])
    }
}

/// A size in decimal gigabytes, as models are measured, without the unit: "132.1", "1,036.0"; "<0.1" where it would
/// round to nothing.
pub fn gigabytes(bytes: u64) -> String {
    let tenths = bytes / TENTH_GB + u64::from(bytes % TENTH_GB >= TENTH_GB / 2);
    match (bytes, tenths) {
        (0, _) => "0".to_owned(),
        (_, 0) => "<0.1".to_owned(),
        (_, tenths) => format!("{}.{}", count(tenths / 10), tenths % 10),
    }
}

/// What is free, or with a minus what is missing. That is rounded up: with so much more it fits.
pub fn signed_gigabytes(bytes: i64) -> String {
    match u64::try_from(bytes) {
        Ok(free) => gigabytes(free),
        Err(_) => format!("-{}", missing_gigabytes(bytes)),
    }
}

/// The missing part of a negative number, rounded up.
pub fn missing_gigabytes(bytes: i64) -> String {
    gigabytes(bytes.min(0).unsigned_abs().div_ceil(TENTH_GB) * TENTH_GB)
}

const TENTH_GB: u64 = 100_000_000;

/// A measured span: "0.4 s", "42 s", "3 min 20 s", "1 h 5 min", "2 days 4 h".
pub fn duration(ms: u64) -> String {
    let s = ms / 1000;
    if ms < 9_950 {
        return format!("{:.1} s", ms as f64 / 1000.0);
    }
    let two = |a: u64, a_unit: &str, b: u64, b_unit: &str| match b {
        0 => format!("{a} {a_unit}"),
        _ => format!("{a} {a_unit} {b} {b_unit}"),
    };
    match s {
        0..60 => format!("{s} s"),
        60..3_600 => two(s / 60, "min", s % 60, "s"),
        3_600..86_400 => two(s / 3_600, "h", s % 3_600 / 60, "min"),
        _ => two(s / 86_400, if s < 172_800 { "day" } else { "days" }, s % 86_400 / 3_600, "h"),
    }
}

/// A forecast, no finer than it can be: "about 40 s", "about 3 min", "about 1 h 20 min".
pub fn about(ms: u64) -> String {
    let s = ms.div_ceil(1000);
    match s {
        0..5 => "a few seconds".to_owned(),
        // Steps of 5 s, then of a minute, then of 5 minutes: the forecast moves by more than that anyway.
        5..55 => format!("about {} s", s.div_ceil(5) * 5),
        55..3_570 => format!("about {} min", (s + 30) / 60),
        _ => format!("about {}", duration((s + 150) / 300 * 300_000)),
    }
}

/// How long ago, in one unit: "just now", "40 s ago", "3 min ago", "5 h ago", "2 days ago".
pub fn ago(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..2 => "just now".to_owned(),
        2..120 => format!("{s} s ago"),
        120..7_200 => format!("{} min ago", s / 60),
        7_200..172_800 => format!("{} h ago", s / 3_600),
        _ => format!("{} days ago", s / 86_400),
    }
}

/// A speed: "1,204", "41.5", "4.2"; empty when there is none.
pub fn rate(per_s: f64) -> String {
    if !per_s.is_finite() || per_s <= 0.0 {
        String::new()
    } else if per_s >= 99.95 {
        count(per_s.round() as u64)
    } else {
        format!("{per_s:.1}")
    }
}

/// A whole percentage that says 100 only when everything is done.
pub fn percent(part: u64, whole: u64) -> u64 {
    if whole == 0 { 0 } else { (part as f64 * 100.0 / whole as f64).floor() as u64 }
}

/// A moment for a person: "18:12" today, "Nov 19 18:12" this year, "2025-11-19 18:12" before.
pub fn moment(at: Timestamp, now: Timestamp, tz: &TimeZone) -> String {
    let (at, now) = (at.to_zoned(tz.clone()), now.to_zoned(tz.clone()));
    let form = if at.date() == now.date() {
        "%H:%M"
    } else if at.year() == now.year() {
        "%b %-d %H:%M"
    } else {
        "%Y-%m-%d %H:%M"
    };
    at.strftime(form).to_string()
}

/// A moment to come: "05:40" when it is the next one, else as [`moment`].
pub fn coming(at: Timestamp, now: Timestamp, tz: &TimeZone) -> String {
    let ahead_ms = at.as_millisecond().saturating_sub(now.as_millisecond());
    if (0..UNMISTAKABLE_MS).contains(&ahead_ms) {
        at.to_zoned(tz.clone()).strftime("%H:%M").to_string()
    } else {
        moment(at, now, tz)
    }
}

/// A time of day that is less than this ahead is not taken for that of another day; the rest of a day is for clocks that
/// change in the night, and for doubt.
const UNMISTAKABLE_MS: i64 = 18 * 3_600_000;

/// The time of a line in a log, to the second: "18:12:03" today, "Nov 19 18:12:03" before.
pub fn log_moment(at: Timestamp, now: Timestamp, tz: &TimeZone) -> String {
    let (at, now) = (at.to_zoned(tz.clone()), now.to_zoned(tz.clone()));
    let form = if at.date() == now.date() { "%H:%M:%S" } else { "%b %-d %H:%M:%S" };
    at.strftime(form).to_string()
}

/// The time of a line in a file or pipe, where "today" means nothing: "2026-11-20 18:12:03.120".
pub fn full_moment(at: Timestamp, tz: &TimeZone) -> String {
    at.to_zoned(tz.clone()).strftime("%Y-%m-%d %H:%M:%S.%3f").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_grouped() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_000), "1,000");
        assert_eq!(count(1_234_567), "1,234,567");
    }

    #[test]
    fn sizes_are_binary_and_short() {
        assert_eq!(bytes(12), "12 bytes");
        assert_eq!(bytes(1024), "1 KiB");
        assert_eq!(bytes(350 * 1024 * 1024), "350 MiB");
        assert_eq!(bytes(128 << 30), "128 GiB");
        assert_eq!(bytes((61 << 30) + (412 << 20)), "61.4 GiB");
        assert_eq!(bytes((1 << 30) - 1), "1 GiB");
    }

    #[test]
    fn gigabytes_are_decimal_and_never_hide_what_is_missing() {
        assert_eq!(gigabytes(0), "0");
        assert_eq!(gigabytes(1), "<0.1");
        assert_eq!(gigabytes(49_999_999), "<0.1");
        assert_eq!(gigabytes(50_000_000), "0.1");
        assert_eq!(gigabytes(132_149_999_999), "132.1");
        assert_eq!(gigabytes(1_036_000_000_000), "1,036.0");
        assert_eq!(gigabytes(u64::MAX), "18,446,744,073.7");
        assert_eq!(signed_gigabytes(4_200_000_000), "4.2");
        assert_eq!(signed_gigabytes(-1), "-0.1");
        assert_eq!(signed_gigabytes(-12_300_000_001), "-12.4");
        assert_eq!(missing_gigabytes(-12_300_000_000), "12.3");
        assert_eq!(missing_gigabytes(i64::MIN), "9,223,372,036.9");
    }

    #[test]
    fn durations_have_at_most_two_parts() {
        assert_eq!(duration(0), "0.0 s");
        assert_eq!(duration(430), "0.4 s");
        assert_eq!(duration(42_900), "42 s");
        assert_eq!(duration(200_000), "3 min 20 s");
        assert_eq!(duration(180_000), "3 min");
        assert_eq!(duration(3_900_000), "1 h 5 min");
        assert_eq!(duration(187_200_000), "2 days 4 h");
    }

    #[test]
    fn forecasts_are_no_finer_than_they_can_be() {
        assert_eq!(about(300), "a few seconds");
        assert_eq!(about(38_000), "about 40 s");
        assert_eq!(about(55_000), "about 1 min");
        assert_eq!(about(185_000), "about 3 min");
        assert_eq!(about(3_600_000), "about 1 h");
        assert_eq!(about(4_810_000), "about 1 h 20 min");
    }

    #[test]
    fn percent_never_flatters() {
        assert_eq!(percent(1999, 2000), 99);
        assert_eq!(percent(2000, 2000), 100);
        assert_eq!(percent(0, 0), 0);
    }

    #[test]
    fn moments_say_only_what_is_needed() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let now = at("2026-11-20T18:30:00Z");
        let tz = TimeZone::UTC;
        assert_eq!(moment(at("2026-11-20T18:12:00Z"), now, &tz), "18:12");
        assert_eq!(moment(at("2026-11-09T08:02:00Z"), now, &tz), "Nov 9 08:02");
        assert_eq!(moment(at("2025-11-09T08:02:00Z"), now, &tz), "2025-11-09 08:02");
        assert_eq!(coming(at("2026-11-21T05:40:00Z"), now, &tz), "05:40", "the next one");
        assert_eq!(coming(at("2026-11-21T18:00:00Z"), now, &tz), "Nov 21 18:00");
        assert_eq!(coming(at("2026-11-20T18:12:00Z"), now, &tz), "18:12");
        assert_eq!(full_moment(at("2026-11-20T18:12:03.120Z"), &tz), "2026-11-20 18:12:03.120");
    }
}
