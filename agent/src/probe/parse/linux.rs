//! Parsers of `/proc` and `/sys` (kernel documentation: `filesystems/proc.rst`, `accounting/psi.rst`,
//! `ABI/testing/sysfs-class-net`).

/// Of `/proc/meminfo`, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemInfo {
    /// `MemTotal`.
    pub total_bytes: Option<u64>,
    /// `MemAvailable`.
    pub available_bytes: Option<u64>,
    /// `Unevictable` counts what is locked into memory: the nearest Linux has to wired memory.
    pub unevictable_bytes: Option<u64>,
    /// `SwapTotal`.
    pub swap_total_bytes: Option<u64>,
    /// `SwapFree`.
    pub swap_free_bytes: Option<u64>,
}

/// Parses `/proc/meminfo`.
#[must_use]
pub fn meminfo(text: &str) -> MemInfo {
    let value = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let mut words = rest.split_ascii_whitespace();
        let number: u64 = words.next()?.parse().ok()?;
        // The kernel always writes kB; another unit would be another quantity.
        (words.next() == Some("kB")).then(|| number.checked_mul(1024)).flatten()
    };
    MemInfo {
        total_bytes: value("MemTotal"),
        available_bytes: value("MemAvailable"),
        unevictable_bytes: value("Unevictable"),
        swap_total_bytes: value("SwapTotal"),
        swap_free_bytes: value("SwapFree"),
    }
}

/// Of `/proc/pressure/memory`, in percent of the last 10 s.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// Some task waited.
    pub some_avg10_percent: Option<f64>,
    /// All tasks waited.
    pub full_avg10_percent: Option<f64>,
}

/// Parses `/proc/pressure/memory`.
#[must_use]
pub fn pressure(text: &str) -> Pressure {
    let value = |kind: &str| {
        let mut words = text
            .lines()
            .map(str::split_ascii_whitespace)
            .find_map(|mut words| (words.next()? == kind).then_some(words))?;
        let number: f64 = words.find_map(|word| word.strip_prefix("avg10="))?.parse().ok()?;
        (0.0..=100.0).contains(&number).then_some(number)
    };
    Pressure { some_avg10_percent: value("some"), full_avg10_percent: value("full") }
}

/// Parses the first number of `/proc/loadavg`.
#[must_use]
pub fn loadavg_1m(text: &str) -> Option<f64> {
    let number: f64 = text.split_ascii_whitespace().next()?.parse().ok()?;
    (number.is_finite() && number >= 0.0).then_some(number)
}

/// Parses `/proc/sys/kernel/random/boot_id`.
#[must_use]
pub fn boot_id(text: &str) -> Option<String> {
    let id = text.trim();
    let fits = id.len() == 36 && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    fits.then(|| id.to_owned())
}

/// Parses `/sys/class/net/<name>/carrier`.
#[must_use]
pub fn carrier(text: &str) -> Option<bool> {
    match text.trim() {
        "1" => Some(true),
        "0" => Some(false),
        _ => None,
    }
}

/// Parses `/sys/class/net/<name>/operstate` as far as it settles the carrier where the carrier itself cannot be read,
/// which is so while the interface is administratively down.
#[must_use]
pub fn operstate_carrier(text: &str) -> Option<bool> {
    match text.trim() {
        "up" => Some(true),
        "lowerlayerdown" | "notpresent" => Some(false),
        _ => None,
    }
}

/// Parses `/sys/class/net/<name>/speed`, which is in Mbit/s and -1 when the driver does not know.
#[must_use]
pub fn speed_bits_per_s(text: &str) -> Option<u64> {
    let megabits: i64 = text.trim().parse().ok()?;
    u64::try_from(megabits).ok().filter(|speed| *speed > 0)?.checked_mul(1_000_000)
}

/// Of `/proc/<pid>/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessStat {
    /// `Z` for a process that has ended and is only not collected yet.
    pub state: char,
    /// Its process group.
    pub group: i32,
    /// Clock ticks after boot at which it started.
    pub start_ticks: u64,
}

/// Parses `/proc/<pid>/stat`. The program's name stands in parentheses and may itself hold spaces and parentheses, so
/// fields are counted from the last one.
#[must_use]
pub fn process_stat(text: &str) -> Option<ProcessStat> {
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let group = fields.nth(1)?.parse().ok()?;
    // Field 22 of the whole line; `state` is field 3, the group field 5.
    let start_ticks = fields.nth(16)?.parse().ok()?;
    Some(ProcessStat { state, group, start_ticks })
}

/// `oom_kill` of `/proc/vmstat`.
#[must_use]
pub fn memory_kills(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::probe::parse::mutated::mutated;

    const MEMINFO: &str = "MemTotal:       24683520 kB\nMemFree:          303024 kB\nMemAvailable:   24100000 kB\n\
        Unevictable:          16 kB\nSwapTotal:       2097148 kB\nSwapFree:        1048574 kB\n";
    const PRESSURE: &str =
        "some avg10=1.25 avg60=0.10 avg300=0.00 total=123\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=7\n";
    const STAT: &str = "4242 (py (thon) 3) S 1 4240 4240 0 -1 4194560 100 0 0 0 3 1 0 0 20 0 5 0 987654 1000 200 18446744073709551615\n";

    #[test]
    fn meminfo_is_in_bytes() {
        let info = meminfo(MEMINFO);
        assert_eq!(info.total_bytes, Some(24_683_520 * 1024));
        assert_eq!(info.available_bytes, Some(24_100_000 * 1024));
        assert_eq!(info.swap_free_bytes, Some(1_048_574 * 1024));
        assert_eq!(info.unevictable_bytes, Some(16 * 1024));
    }

    #[test]
    fn what_is_missing_is_not_zero() {
        let info = meminfo(
            "MemTotal: lots\nMemAvailable: 5 MB\nSwapTotals: 5 kB\nSwapFree: 99999999999999999999 kB\n",
        );
        assert_eq!(info, MemInfo::default());
        assert_eq!(pressure(""), Pressure::default());
        assert_eq!(pressure("some avg10=NaN\nfull avg10=101"), Pressure::default());
        assert_eq!(loadavg_1m("inf 0 0"), None);
        assert_eq!(carrier(""), None);
        assert_eq!(speed_bits_per_s("-1\n"), None);
        assert_eq!(speed_bits_per_s("0\n"), None);
        assert_eq!(boot_id("not-a-boot-id"), None);
    }

    #[test]
    fn small_files() {
        assert_eq!(
            pressure(PRESSURE),
            Pressure { some_avg10_percent: Some(1.25), full_avg10_percent: Some(0.5) }
        );
        assert_eq!(loadavg_1m("0.42 0.30 0.20 1/200 4242\n"), Some(0.42));
        assert_eq!(carrier("1\n"), Some(true));
        assert_eq!(operstate_carrier("lowerlayerdown\n"), Some(false));
        assert_eq!(operstate_carrier("unknown\n"), None);
        assert_eq!(speed_bits_per_s("10000\n"), Some(10_000_000_000));
        assert!(boot_id("0b4e1c3a-0b4e-4c3a-8b4e-0b4e1c3a0b4e\n").is_some());
    }

    #[test]
    fn a_program_may_have_any_name() {
        assert_eq!(process_stat(STAT), Some(ProcessStat { state: 'S', group: 4240, start_ticks: 987_654 }));
        assert_eq!(process_stat("4242 (x) S 1 4240"), None);
    }

    proptest! {
        #[test]
        fn no_input_panics(text in prop_oneof![
            any::<String>(), mutated(MEMINFO), mutated(PRESSURE), mutated(STAT)
        ]) {
            let _ = meminfo(&text);
            let pressure = pressure(&text);
            prop_assert!(pressure.some_avg10_percent.is_none_or(|share| (0.0..=100.0).contains(&share)));
            prop_assert!(loadavg_1m(&text).is_none_or(f64::is_finite));
            let _ = (boot_id(&text), carrier(&text), operstate_carrier(&text), speed_bits_per_s(&text));
            let _ = process_stat(&text);
        }

        #[test]
        fn a_cut_file_gives_the_true_values_or_none(at in 0..MEMINFO.len()) {
            let (whole, cut) = (meminfo(MEMINFO), meminfo(&MEMINFO[..at]));
            prop_assert!(cut.total_bytes.is_none() || cut.total_bytes == whole.total_bytes);
            prop_assert!(cut.swap_free_bytes.is_none() || cut.swap_free_bytes == whole.swap_free_bytes);
        }
    }

    #[test]
    fn memory_kills_are_read_and_missing_ones_are_unknown() {
        assert_eq!(memory_kills("pgfault 1\noom_kill 12\nnuma_hit 3\n"), Some(12));
        assert_eq!(memory_kills("oom_killer 4\npgfault 1\n"), None);
        assert_eq!(memory_kills("oom_kill x\n"), None);
    }
}
