//! An observation as a person reads it.

use std::fmt::Write as _;

use super::{
    Interface, Observation,
    observation::{FileVault, Preflight, Rdma, RdmaPortState, ThunderboltPort},
};

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
    if let Some(thunderbolt) = &seen.thunderbolt {
        line("rdma", &rdma(&thunderbolt.rdma));
        for of in &thunderbolt.ports {
            line(&format!("port {}", of.receptacle), &port(of));
        }
    }
    if let Some(preflight) = &seen.preflight {
        line("settings", &settings(preflight));
        preflight.scheduled_stops.iter().for_each(|stop| line("scheduled", stop));
    }
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

fn rdma(rdma: &Rdma) -> String {
    let switch = rdma.enabled.map_or_else(unknown, |on| if on { "on" } else { "off" }.to_owned());
    match (rdma.protection_domains_held, rdma.protection_domains_most) {
        (Some(held), Some(most)) => format!("{switch}, {held} of {most} protection domains held"),
        (Some(held), None) => format!("{switch}, {held} protection domains held"),
        (None, _) => switch,
    }
}

fn port(port: &ThunderboltPort) -> String {
    let mut words = vec![text(&port.interface)];
    if let Some(bridge) = &port.bridge {
        words.push(format!("taken by {bridge}"));
    }
    let speed =
        port.speed_bits_per_s.map_or_else(String::new, |bits| format!(" at {} Gb/s", bits / 1_000_000_000));
    words.extend(port.devices.iter().map(|device| format!("{device}{speed}")));
    for peer in &port.peers {
        let behind = if peer.behind_device { " behind it" } else { "" };
        let model = peer.hardware_model.as_deref().unwrap_or("a Mac");
        let offers = match peer.rdma {
            Some(true) => "with RDMA",
            Some(false) => "without RDMA",
            None => "RDMA unknown",
        };
        words.push(format!("{model}{behind}{} {offers}", if peer.behind_device { "" } else { &speed }));
    }
    match port.plugged {
        Some(false) => words.push("nothing plugged in".to_owned()),
        None => words.push("plug unknown".to_owned()),
        Some(true) => {}
    }
    match (port.rdma_listed, port.rdma_state) {
        (Some(false), _) => words.push("no RDMA device".to_owned()),
        (_, Some(RdmaPortState::Active)) => words.push("RDMA active".to_owned()),
        (_, Some(RdmaPortState::Initializing)) => words.push("RDMA coming up".to_owned()),
        (_, Some(RdmaPortState::Down)) => words.push("RDMA down".to_owned()),
        (_, None) => words.push("RDMA state unknown".to_owned()),
    }
    words.join(", ")
}

fn settings(preflight: &Preflight) -> String {
    let switch = |name: &str, value: Option<bool>| {
        format!("{name} {}", value.map_or("unknown", |on| if on { "on" } else { "off" }))
    };
    let sleep = match (preflight.sleep_disabled, preflight.sleep_min) {
        (Some(true), _) | (_, Some(0)) => "never sleeps".to_owned(),
        (_, Some(minutes)) => format!("sleeps after {minutes} min"),
        (_, None) => "sleep unknown".to_owned(),
    };
    let file_vault = preflight.file_vault.map(|state| state != FileVault::Off);
    [
        sleep,
        switch("restart after power loss", preflight.auto_restart),
        switch("FileVault", file_vault),
        switch("automatic macOS updates", preflight.installs_macos),
        switch("low power mode", preflight.low_power_mode),
    ]
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
