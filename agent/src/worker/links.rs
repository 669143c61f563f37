//! What an error of MLX's distributed backends means, and what helps. From FIELD-NOTES 2; what stands there as another
//! operator's report is not checked by us, and is worded as what it may be.

/// What a person can do about an error text of a link, in one sentence; `None` for texts of nothing known.
#[must_use]
pub fn hint(text: &str) -> Option<&'static str> {
    let sign = SIGNS.iter().find(|sign| text.contains(sign.text))?;
    let by_errno = errno(text).and_then(|errno| sign.by_errno.iter().find(|(number, _)| *number == errno));
    Some(by_errno.map_or(sign.hint, |(_, hint)| hint))
}

struct Sign {
    text: &'static str,
    hint: &'static str,
    /// Where the number says more. Numbers are macOS's, where these come from, with Linux's own for TCP.
    by_errno: &'static [(u32, &'static str)],
}

const fn sign(text: &'static str, hint: &'static str) -> Sign {
    Sign { text, hint, by_errno: &[] }
}

/// 65 from a LaunchAgent; 61 and 111: macOS's and Linux's "connection refused"; 60 and 110: "timed out".
const CONNECT: &[(u32, &str)] = &[
    (
        65,
        "macOS keeps this process off the local network (Local Network privacy): run the agent as a LaunchDaemon",
    ),
    (61, REFUSED),
    (111, REFUSED),
    (60, UNREACHABLE),
    (110, UNREACHABLE),
];
const REFUSED: &str =
    "the peer was reached and nothing listens there: its rank has not started or has ended; see its log";
const UNREACHABLE: &str =
    "the peer cannot be reached at that address: see whether the link is up at both ends";

/// On the way of a queue pair to RTR (and INIT, RTS, which are mostly passed where RTR is).
const QUEUE_PAIR: &[(u32, &str)] = &[
    (
        22,
        "the port has no IPv4 address yet, or a bridge still owns it: see `ifconfig` of the port and of bridge0",
    ),
    (60, "the peer cannot be reached on that link: see whether RDMA is on and the port active at both ends"),
    (16, "RDMA resources are stale or used up: trying again does not help, restarting the machine does"),
    (
        96,
        "protection domains are used up, or a bridge has captured the port: take it out of the bridge, or restart the machine",
    ),
];

/// In the order in which they are looked for: the more telling first.
const SIGNS: [Sign; 17] = [
    Sign {
        text: "[ring] Couldn't connect (error:",
        hint: "the next rank of the ring did not answer for half a minute: see its log, and the link to it",
        by_errno: CONNECT,
    },
    sign(
        "[ring] connection to a peer was lost",
        "another rank has ended or cannot be reached any more: the rank that ended first says why",
    ),
    sign(
        "[ring] Too many send/recv errors",
        "the connection to another rank broke: the rank that ended first says why",
    ),
    sign(
        "[jaccl] Couldn't allocate protection domain",
        "the port is down, or this boot's protection domains are used up: see `ibv_devinfo`; only a restart gives them back",
    ),
    sign(
        "[jaccl] Couldn't create completion queue",
        "this boot's RDMA resources may be used up: only a restart of the machine gives them back",
    ),
    Sign {
        text: "[jaccl] Creating the queue pair failed with",
        hint: "this boot's RDMA resources may be used up: only a restart of the machine gives them back",
        by_errno: QUEUE_PAIR,
    },
    Sign {
        text: "[jaccl] Changing queue pair to",
        hint: "the RDMA link to another rank could not be set up: see `ibv_devinfo` and the port's addresses at both ends",
        by_errno: QUEUE_PAIR,
    },
    sign(
        "[jaccl] Register memory region failed",
        "a device takes about a hundred memory regions: fewer or larger transfers, or a restart where earlier runs left some",
    ),
    sign(
        "[jaccl] Could not find device",
        "the device is not there: names may change at a restart, and RDMA may be off (`rdma_ctl status`)",
    ),
    sign(
        "[jaccl] No IPv4-mapped GID for this device",
        "the port has no IPv4 address yet: it can take minutes to appear, and a bridge may still own the port",
    ),
    Sign {
        text: "[jaccl] Couldn't connect (error:",
        hint: "rank 0's side channel did not answer: see its log, and whether the coordinator's address can be reached",
        by_errno: CONNECT,
    },
    sign(
        "[jaccl] Send failed with error code",
        "an RDMA transfer failed: the peer has ended or the cable was touched; the rank that ended first says why",
    ),
    sign(
        "[jaccl] Recv failed with error code",
        "an RDMA transfer failed: the peer has ended or the cable was touched; the rank that ended first says why",
    ),
    sign(
        "Recv failed with errno=2",
        "this is aftermath: an earlier error, of this rank or of another, says why",
    ),
    Sign {
        text: "Couldn't bind socket (error:",
        hint: "this rank cannot listen on its address",
        by_errno: &[
            (49, NO_ADDRESS),
            (99, NO_ADDRESS),
            (48, "something else listens on the rank's port already"),
            (98, "something else listens on the rank's port already"),
        ],
    },
    sign(
        "Cannot initialize jaccl distributed backend",
        "this machine has no RDMA: it is off (`rdma_ctl status`), or not of this hardware; use ring",
    ),
    sign("errno 60", "this is mostly aftermath of a lost peer: the rank that ended first says why"),
];
const NO_ADDRESS: &str =
    "the rank's address is not one of this machine (any more): see whether the port still has it";

/// The number behind "errno", "(error:" or "error code".
fn errno(text: &str) -> Option<u32> {
    let behind = ["errno=", "errno ", "(error: ", "error code "]
        .iter()
        .filter_map(|word| Some(&text[text.find(word)? + word.len()..]))
        .next()?;
    let digits = behind.bytes().take_while(u8::is_ascii_digit).count();
    behind[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (text, the beginning of its hint)
    const GOLDEN: [(&str, &str); 34] = [
        ("RuntimeError: [ring] Couldn't connect (error: 61)", "the peer was reached and nothing listens"),
        ("[ring] Couldn't connect (error: 111)", "the peer was reached and nothing listens"),
        ("[ring] Couldn't connect (error: 60)", "the peer cannot be reached at that address"),
        ("[ring] Couldn't connect (error: 110)", "the peer cannot be reached at that address"),
        ("[ring] Couldn't connect (error: 65)", "macOS keeps this process off the local network"),
        ("[ring] Couldn't connect (error: 7)", "the next rank of the ring did not answer"),
        ("RuntimeError: [ring] connection to a peer was lost", "another rank has ended or cannot be reached"),
        ("[ring] Too many send/recv errors", "the connection to another rank broke"),
        (
            "[jaccl] Couldn't allocate protection domain",
            "the port is down, or this boot's protection domains",
        ),
        ("[jaccl] Couldn't create completion queue", "this boot's RDMA resources may be used up"),
        (
            "[jaccl] Creating the queue pair failed with 'Cannot allocate memory'",
            "this boot's RDMA resources may",
        ),
        (
            "[jaccl] Creating the queue pair failed with errno 16. Thunderbolt RDMA",
            "RDMA resources are stale",
        ),
        (
            "[jaccl] Changing queue pair to INIT failed with errno 22",
            "the port has no IPv4 address yet, or a bridge",
        ),
        (
            "[jaccl] Changing queue pair to INIT failed with errno 96",
            "protection domains are used up, or a bridge",
        ),
        (
            "[jaccl] Changing queue pair to RTR failed with errno 22",
            "the port has no IPv4 address yet, or a bridge",
        ),
        (
            "[jaccl] Changing queue pair to RTR failed with errno 60",
            "the peer cannot be reached on that link",
        ),
        ("[jaccl] Changing queue pair to RTR failed with errno 16", "RDMA resources are stale or used up"),
        (
            "[jaccl] Changing queue pair to RTR failed with errno 96",
            "protection domains are used up, or a bridge",
        ),
        (
            "[jaccl] Changing queue pair to RTR failed with errno 5",
            "the RDMA link to another rank could not be set up",
        ),
        (
            "[jaccl] Changing queue pair to RTS failed with errno 22",
            "the port has no IPv4 address yet, or a bridge",
        ),
        ("[jaccl] Register memory region failed", "a device takes about a hundred memory regions"),
        ("[jaccl] Could not find device rdma_en5", "the device is not there"),
        (
            "[jaccl] No IPv4-mapped GID for this device.",
            "the port has no IPv4 address yet: it can take minutes",
        ),
        ("[jaccl] Couldn't connect (error: 60)", "the peer cannot be reached at that address"),
        ("[jaccl] Couldn't connect (error: 61)", "the peer was reached and nothing listens"),
        ("[jaccl] Couldn't connect (error: 1)", "rank 0's side channel did not answer"),
        ("[jaccl] Send failed with error code 12", "an RDMA transfer failed"),
        ("[jaccl] Recv failed with error code 12", "an RDMA transfer failed"),
        ("Recv failed with errno=2", "this is aftermath"),
        ("Couldn't bind socket (error: 49)", "the rank's address is not one of this machine"),
        ("Couldn't bind socket (error: 48)", "something else listens on the rank's port"),
        ("Couldn't bind socket (error: 13)", "this rank cannot listen on its address"),
        ("ValueError: Cannot initialize jaccl distributed backend.", "this machine has no RDMA"),
        ("OSError: errno 60", "this is mostly aftermath"),
    ];

    #[test]
    fn every_known_text_has_its_hint() {
        for (text, begins) in GOLDEN {
            let found = hint(text).unwrap_or_default();
            assert!(found.starts_with(begins), "{text}: {found}");
        }
        for other in ["KeyError: 'lm_head'", "", "[jaccl]", "errno ", "(error: 99999999999999999999)"] {
            assert_eq!(hint(other), None, "{other}");
        }
    }

    #[test]
    fn the_number_is_read_wherever_it_stands() {
        for (text, number) in [
            ("errno 22", Some(22)),
            ("with errno=2.", Some(2)),
            ("(error: 61)", Some(61)),
            ("error code 12", Some(12)),
            ("errno é", None),
            ("none", None),
        ] {
            assert_eq!(errno(text), number, "{text}");
        }
    }
}
