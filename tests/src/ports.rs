//! Ports for controllers.

use std::{
    net::TcpListener,
    sync::atomic::{AtomicU16, Ordering},
};

/// A port nobody listens on, below the range from which systems take the local ends of outgoing connections: an agent
/// that dials a stopped controller's port from that range would sooner or later be connected to itself.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn free() -> u16 {
    const FIRST: u16 = 18_000;
    const COUNT: u16 = 12_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test programs that run side by side begin at different places.
    let start = (std::process::id() % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(7, Ordering::Relaxed);
        let port = FIRST + (start.wrapping_add(step)) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port in {FIRST}..{}", FIRST + COUNT);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_and_not_given_twice() {
        let ports: Vec<u16> = (0..20).map(|_| free()).collect();
        let different: std::collections::BTreeSet<&u16> = ports.iter().collect();
        assert_eq!(different.len(), ports.len());
        assert!(
            ports.iter().all(|port| *port < 32_768),
            "below the range of outgoing connections: {ports:?}"
        );
    }
}
