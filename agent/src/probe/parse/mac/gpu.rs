//! `ioreg -r -d 1 -w 0 -c IOAccelerator` (FIELD-NOTES 3): the GPU and how often it was restarted.

/// The GPU as its driver shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accelerator {
    /// For example `Apple M4 Max`.
    pub model: Option<String>,
    /// GPU cores.
    pub cores: Option<u32>,
    /// Restarts since boot. Only its growth says something.
    pub recovery_count: Option<u64>,
    /// Memory its clients have in use.
    pub in_use_bytes: Option<u64>,
}

/// The accelerator; `None` when the text shows none.
#[must_use]
pub fn accelerator(text: &str) -> Option<Accelerator> {
    // Of several, the first: Apple silicon has one.
    let start = text.find("+-o ")?;
    let node = &text[start..];
    let end = node[1..].find("+-o ").map_or(node.len(), |end| end + 1);
    let node = &node[..end];
    Some(Accelerator {
        model: after(node, "\"model\" = ").and_then(quoted).map(ToOwned::to_owned),
        cores: after(node, "\"gpu-core-count\" = ").and_then(number),
        recovery_count: statistic(node, "recoveryCount"),
        in_use_bytes: statistic(node, "In use system memory"),
    })
}

/// A number of `"PerformanceStatistics" = {"name"=1,…}`, which stands on one line.
fn statistic(node: &str, name: &str) -> Option<u64> {
    let statistics = after(node, "\"PerformanceStatistics\" = {")?;
    let statistics = statistics.split(['}', '\n']).next()?;
    let (_, value) = statistics.split_once(&format!("\"{name}\"="))?;
    number(value)
}

fn after<'a>(text: &'a str, mark: &str) -> Option<&'a str> {
    text.split_once(mark).map(|(_, rest)| rest)
}

fn quoted(text: &str) -> Option<&str> {
    let (value, _) = text.strip_prefix('"')?.split_once('"')?;
    (!value.is_empty() && !value.contains('\n')).then_some(value)
}

fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::probe::parse::mutated::mutated;

    const M4: &str = "+-o AGXAcceleratorG16G  <class AGXAcceleratorG16G, id 0x10000050b, registered, matched, retain 51>\n\
        \u{20}   {\n      \"vendor-id\" = <6b100000>\n\
        \u{20}     \"PerformanceStatistics\" = {\"In use system memory (driver)\"=0,\"recoveryCount\"=2,\
        \"Device Utilization %\"=21,\"In use system memory\"=351141888}\n\
        \u{20}     \"model\" = \"Apple M4\"\n      \"gpu-core-count\" = 10\n    }\n";

    #[test]
    fn restarts_and_memory_in_use_are_read() {
        let expected = Accelerator {
            model: Some("Apple M4".to_owned()),
            cores: Some(10),
            recovery_count: Some(2),
            in_use_bytes: Some(351_141_888),
        };
        assert_eq!(accelerator(M4), Some(expected));
    }

    #[test]
    fn a_driver_that_does_not_count_leaves_it_unknown() {
        let quiet = M4.replace("\"recoveryCount\"=2,", "");
        assert_eq!(accelerator(&quiet).unwrap().recovery_count, None);
        let odd = M4.replace("\"recoveryCount\"=2", "\"recoveryCount\"=-1");
        assert_eq!(accelerator(&odd).unwrap().recovery_count, None);
        let outside = "+-o A <>\n  \"recoveryCount\"=5\n";
        assert_eq!(accelerator(outside), Some(Accelerator::default()));
    }

    #[test]
    fn without_an_accelerator_there_is_none() {
        for text in ["", "\n", "ioreg: error", "{ \"model\" = \"Apple M4\" }"] {
            assert_eq!(accelerator(text), None, "{text}");
        }
    }

    #[test]
    fn the_first_of_two_counts() {
        let two = format!("{M4}{}", M4.replace("\"recoveryCount\"=2", "\"recoveryCount\"=9"));
        assert_eq!(accelerator(&two).unwrap().recovery_count, Some(2));
        let only_the_second_counts = format!("+-o First <>\n{M4}");
        assert_eq!(accelerator(&only_the_second_counts), Some(Accelerator::default()));
    }

    proptest! {
        #[test]
        fn no_answer_panics(text in prop_oneof![any::<String>(), mutated(M4)]) {
            let _ = accelerator(&text);
        }
    }
}
