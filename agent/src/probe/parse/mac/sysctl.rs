//! `sysctl name …`: a line a name (FIELD-NOTES 4).

/// The value of a name; `None` where it is not among the lines.
#[must_use]
pub fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

/// A whole number.
#[must_use]
pub fn number(text: &str, name: &str) -> Option<u64> {
    value(text, name)?.parse().ok()
}

/// Of `vm.swapusage`, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Swap {
    /// Its size now; macOS makes it larger as it needs.
    pub total_bytes: u64,
    /// Of that, used.
    pub used_bytes: u64,
}

/// Parses `total = 7168.00M  used = 6119.06M  free = 1048.94M  (encrypted)`.
#[must_use]
pub fn swap(text: &str) -> Option<Swap> {
    let swap = value(text, "vm.swapusage")?;
    let amount = |name: &str| {
        let (_, rest) = swap.split_once(&format!("{name} = "))?;
        bytes(rest.split_ascii_whitespace().next()?)
    };
    Some(Swap { total_bytes: amount("total")?, used_bytes: amount("used")? })
}

/// The same as the kernel hands it out: `struct xsw_usage` of `<sys/sysctl.h>`, which begins with total, available and used
/// bytes, 64 bits each.
#[must_use]
pub fn swap_usage(bytes: &[u8]) -> Option<Swap> {
    let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let (total_bytes, used_bytes) = (number(0)?, number(16)?);
    (used_bytes <= total_bytes).then_some(Swap { total_bytes, used_bytes })
}

/// `6119.06M`
fn bytes(text: &str) -> Option<u64> {
    const MOST_BYTES: f64 = (1_u64 << 60) as f64;
    let unit = match text.chars().last()? {
        'K' => 1_u64 << 10,
        'M' => 1 << 20,
        'G' => 1 << 30,
        _ => return None,
    };
    let number: f64 = text[..text.len() - 1].parse().ok()?;
    let bytes = number * unit as f64;
    (0.0..=MOST_BYTES).contains(&bytes).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::probe::parse::mutated::mutated;

    const STUDIO: &str = "hw.memsize: 137438953472\niogpu.wired_limit_mb: 102400\n\
        kern.bootsessionuuid: 0A1B2C3D-0000-4000-8000-000000000001\nkern.osversion: 25D125\n\
        vm.swapusage: total = 2048.00M  used = 1.50M  free = 2046.50M  (encrypted)\n";

    #[test]
    fn values_are_read_by_their_whole_name() {
        assert_eq!(number(STUDIO, "hw.memsize"), Some(137_438_953_472));
        assert_eq!(value(STUDIO, "kern.osversion"), Some("25D125"));
        assert_eq!(value(STUDIO, "kern.os"), None);
        assert_eq!(number(STUDIO, "kern.osversion"), None);
        assert_eq!(value("sysctl: unknown oid 'iogpu.wired_limit_mb'\n", "iogpu.wired_limit_mb"), None);
    }

    #[test]
    fn swap_is_in_bytes() {
        assert_eq!(swap(STUDIO), Some(Swap { total_bytes: 2_048 << 20, used_bytes: 3 << 19 }));
        let large = swap("vm.swapusage: total = 2.00G  used = 512.00K  free = 1.00G\n");
        assert_eq!(large, Some(Swap { total_bytes: 2 << 30, used_bytes: 512 << 10 }));
        assert_eq!(swap("vm.swapusage: total = 0.00M  used = 0.00M  free = 0.00M\n").unwrap().total_bytes, 0);
    }

    #[test]
    fn half_of_it_or_another_unit_is_not_known() {
        for text in [
            "vm.swapusage: total = 2048.00M\n",
            "vm.swapusage: total = 2048.00Q  used = 1.50M\n",
            "vm.swapusage: total = -1.00M  used = 1.50M\n",
            "vm.swapusage: total = NaNM  used = 1.50M\n",
            "",
        ] {
            assert_eq!(swap(text), None, "{text}");
        }
    }

    #[test]
    fn the_kernel_s_own_form_is_read() {
        let form = |total: u64, used: u64| {
            let numbers = [total, total.saturating_sub(used), used, 16_384];
            numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>()
        };
        let swap = Swap { total_bytes: 2 << 30, used_bytes: 5 << 20 };
        assert_eq!(swap_usage(&form(2 << 30, 5 << 20)), Some(swap));
        assert_eq!(swap_usage(&form(5, 6)), None, "more used than there is");
        assert_eq!(swap_usage(&form(5, 4)[..23]), None);
    }

    proptest! {
        #[test]
        fn no_answer_panics(text in prop_oneof![any::<String>(), mutated(STUDIO)], name in ".{0,20}") {
            let _ = (value(&text, &name), number(&text, "hw.memsize"), swap(&text));
        }
    }
}
