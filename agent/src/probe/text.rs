//! An observation as a person reads it.

use std::fmt::Write as _;

use super::{Interface, Observation};

/// One line a fact; what is not known is said to be.
#[must_use]
pub fn describe(seen: &Observation) -> String {
    let memory = &seen.memory;
    let gpu = match &seen.gpu {
        Some(gpu) if gpu.present => gpu.name.clone(),
        Some(_) => "none".to_owned(),
        None => unknown(),
    };
    let facts = [
        ("system", format!("{} {} ({})", seen.os_name, text(&seen.os_build), seen.arch)),
        ("hardware", text(&seen.hardware_model)),
        ("boot", text(&seen.boot_id)),
        ("processors", seen.cpu_count.map_or_else(unknown, |count| count.to_string())),
        ("load", seen.load_1m.map_or_else(unknown, |load| format!("{load:.2}"))),
        ("memory", format!("{} of {} available", bytes(memory.available_bytes), bytes(memory.total_bytes))),
        ("swap", format!("{} of {} used", bytes(memory.swap_used_bytes), bytes(memory.swap_total_bytes))),
        (
            "pressure",
            memory
                .pressure_some_avg10_percent
                .map_or_else(unknown, |share| format!("{share:.1} % of the last 10 s")),
        ),
        ("gpu", gpu),
        ("disk", format!("{} available", bytes(seen.disk_available_bytes))),
    ];
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing into a string cannot fail.
        let _ = writeln!(out, "{name:<12}{value}");
    };
    facts.iter().for_each(|(name, value)| line(name, value));
    seen.interfaces.iter().for_each(|interface| line(&interface.name, &link(interface)));
    seen.problems.iter().for_each(|problem| line("problem", problem));
    out
}

fn link(interface: &Interface) -> String {
    let carrier = match interface.carrier {
        Some(true) => "carrier",
        Some(false) => "no carrier",
        None => "carrier unknown",
    };
    let state = if interface.up { "up" } else { "down" };
    [state, carrier]
        .into_iter()
        .chain(interface.addresses.iter().map(String::as_str))
        .collect::<Vec<_>>()
        .join(", ")
}

fn text(value: &Option<String>) -> String {
    value.clone().unwrap_or_else(unknown)
}

fn unknown() -> String {
    "unknown".to_owned()
}

fn bytes(value: Option<u64>) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
    value.map_or_else(unknown, |bytes| format!("{:.1} GB", bytes as f64 / 1e9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_said() {
        let text = describe(&Observation::default());
        assert!(text.contains("memory      unknown of unknown available"), "{text}");
    }
}
