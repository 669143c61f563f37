//! `route -n get ADDRESS` (FIELD-NOTES 5): over which interface an address is reached.

use super::ports::is_interface_name;

/// The interface; `None` when the text names none.
#[must_use]
pub fn interface(text: &str) -> Option<&str> {
    let named = text.lines().find_map(|line| line.trim().strip_prefix("interface:"))?;
    Some(named.trim()).filter(|name| is_interface_name(name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::probe::parse::mutated::mutated;

    const DIRECT: &str = "   route to: 10.99.0.2\ndestination: 10.99.0.0\n       mask: 255.255.255.252\n  interface: en3\n\
        \u{20}     flags: <UP,DONE,CLONING>\n recvpipe  sendpipe  ssthresh\n       0         0         0\n";

    #[test]
    fn the_interface_is_named() {
        assert_eq!(interface(DIRECT), Some("en3"));
        assert_eq!(interface("  gateway: 192.168.1.1\n  interface: en0\n"), Some("en0"));
    }

    #[test]
    fn without_a_route_there_is_none() {
        for text in
            ["", "route: writing to routing socket: not in table\n", "  interface:\n", "  interface: -x\n"]
        {
            assert_eq!(interface(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_panics(text in prop_oneof![any::<String>(), mutated(DIRECT)]) {
            prop_assert!(interface(&text).is_none_or(is_interface_name));
        }
    }
}
