//! Why a worker ended: from what was asked of it, how it ended, and what its log says.
//!
//! A burst of failures is read from its first line: the later ones are aftermath (FIELD-NOTES 2). The strings are those
//! of FIELD-NOTES 2 and 3.

use nightshift_proto::v1::ExitClass;

use super::{
    links,
    protocol::{Fatal, FatalClass},
};
use crate::util;

/// Evidence is a sentence, not a dump.
const MAX_ERROR_BYTES: usize = 500;

/// What in a log line tells the class. The first that matches counts: Metal reports missing memory inside of "Command
/// buffer execution failed" too, so memory stands before the GPU.
const SIGNS: [(ExitClass, &[&str]); 3] = [
    (
        ExitClass::OutOfMemory,
        &[
            "[malloc] Unable to allocate",
            "[metal::malloc]",
            "Attempting to allocate",
            "Insufficient Memory",
            "kIOGPUCommandBufferCallbackErrorOutOfMemory",
            "std::bad_alloc",
            "MemoryError",
        ],
    ),
    (
        ExitClass::GpuFault,
        &[
            "[METAL]",
            "Command buffer execution failed",
            "kIOGPUCommandBufferCallbackError",
            "Execution of the command buffer was aborted",
            "Caused GPU Timeout Error",
            "Caused GPU Hang Error",
        ],
    ),
    (
        ExitClass::LinkFault,
        &["[ring]", "[jaccl]", "Couldn't bind socket (error:", "Cannot initialize jaccl distributed backend"],
    ),
];

/// Signals by which a process ends over its own error rather than over somebody else's decision.
const OWN_SIGNALS: [nix::libc::c_int; 7] = [
    nix::libc::SIGABRT,
    nix::libc::SIGSEGV,
    nix::libc::SIGBUS,
    nix::libc::SIGILL,
    nix::libc::SIGFPE,
    nix::libc::SIGTRAP,
    nix::libc::SIGSYS,
];

/// Reads the log as it comes and remembers the first error.
#[derive(Debug, Default)]
pub struct Scan {
    first_known: Option<(ExitClass, String)>,
    first_any: Option<String>,
}

impl Scan {
    /// Takes the next line.
    pub fn line(&mut self, line: &str) {
        if self.first_known.is_none()
            && let Some(class) = class_of(line)
        {
            self.first_known = Some((class, util::clip(line.trim(), MAX_ERROR_BYTES)));
        }
        if self.first_any.is_none() && names_an_error(line) {
            self.first_any = Some(util::clip(line.trim(), MAX_ERROR_BYTES));
        }
    }

    /// The first error so far: one that is known, or else any.
    #[must_use]
    pub fn first_error(&self) -> Option<&str> {
        self.first_known.as_ref().map(|(_, line)| line).or(self.first_any.as_ref()).map(String::as_str)
    }
}

/// All that is known about an end.
#[derive(Debug, Default)]
pub struct Evidence<'a> {
    /// Whether it was asked to end.
    pub asked: bool,
    /// Whether this agent sent SIGTERM.
    pub terminated: bool,
    /// Whether this agent sent SIGKILL.
    pub killed: bool,
    /// What the worker did against the protocol.
    pub fault: Option<&'a str>,
    /// What the worker said ended it.
    pub fatal: Option<&'a Fatal>,
    /// Its exit code.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the system ended processes for want of memory while it ran.
    pub memory_kills: bool,
}

/// Class and first error.
#[must_use]
pub fn classify(evidence: &Evidence<'_>, log: &Scan) -> (ExitClass, String) {
    let how = || match (evidence.exit_code, evidence.signal) {
        (_, Some(signal)) => format!("ended by {}", signal_name(signal)),
        (Some(0), _) => "ended by itself without being asked to".to_owned(),
        (Some(code), _) => format!("ended with exit code {code}"),
        _ => "ended, and the system does not say how".to_owned(),
    };
    if let Some(fault) = evidence.fault {
        return (ExitClass::Crashed, fault.to_owned());
    }
    if evidence.killed && evidence.signal == Some(nix::libc::SIGKILL) {
        return (ExitClass::Killed, "it did not stop within its grace".to_owned());
    }
    let by_our_signal = evidence.terminated && evidence.signal == Some(nix::libc::SIGTERM);
    if evidence.asked && (evidence.exit_code == Some(0) || by_our_signal) {
        return (ExitClass::Orderly, String::new());
    }
    if let Some(fatal) = evidence.fatal {
        return (class_of_fatal(fatal.class), util::clip(&fatal.message, MAX_ERROR_BYTES));
    }
    let own_end = evidence.signal.is_none_or(|signal| OWN_SIGNALS.contains(&signal));
    if !own_end && evidence.signal == Some(nix::libc::SIGKILL) && evidence.memory_kills {
        return (ExitClass::OutOfMemory, "the system ended it because memory had run out".to_owned());
    }
    if !own_end {
        return (ExitClass::Signalled, how());
    }
    match &log.first_known {
        // An error that was survived long ago explains no clean exit.
        Some((class, line)) if evidence.exit_code != Some(0) => (*class, line.clone()),
        _ => (ExitClass::Crashed, log.first_error().map_or_else(how, str::to_owned)),
    }
}

/// What an error text tells without anything else: its class, and, for faults of links, what it means and what helps.
/// `None` for a text of nothing known.
#[must_use]
pub fn explain(text: &str) -> Option<(ExitClass, Option<&'static str>)> {
    class_of(text).map(|class| (class, links::hint(text).filter(|_| class == ExitClass::LinkFault)))
}

fn class_of(line: &str) -> Option<ExitClass> {
    SIGNS.iter().find(|(_, signs)| signs.iter().any(|sign| line.contains(sign))).map(|(class, _)| *class)
}

fn class_of_fatal(class: FatalClass) -> ExitClass {
    match class {
        FatalClass::ModelUnreadable => ExitClass::ModelUnreadable,
        FatalClass::ModelUnsupported => ExitClass::ModelUnsupported,
        FatalClass::OutOfMemory => ExitClass::OutOfMemory,
        FatalClass::GpuFault => ExitClass::GpuFault,
        FatalClass::LinkFault => ExitClass::LinkFault,
        FatalClass::Apart => ExitClass::Apart,
        FatalClass::CanaryFailed => ExitClass::CanaryFailed,
        FatalClass::Crashed => ExitClass::Crashed,
    }
}

/// Whether a line names an error: the last line of a Python traceback (`ValueError: …`), the runtimes' last words, or one
/// of the known signs.
fn names_an_error(line: &str) -> bool {
    let line = line.trim();
    let exception = line.split_once(':').map_or(line, |(name, _)| name);
    let python = !exception.is_empty()
        && exception.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._".contains(&byte))
        && ["Error", "Exception", "Interrupt", "Exit"].iter().any(|end| exception.ends_with(end));
    python
        || class_of(line).is_some()
        || [
            "libc++abi: terminating",
            "terminate called",
            "Fatal Python error",
            "Segmentation fault",
            "Recv failed with",
        ]
        .iter()
        .any(|words| line.starts_with(words))
        || ["error:", "ERROR"].iter().any(|words| line.starts_with(words))
}

fn signal_name(signal: i32) -> String {
    nix::sys::signal::Signal::try_from(signal)
        .map_or_else(|_| format!("signal {signal}"), |name| name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(log: &str) -> Scan {
        let mut scan = Scan::default();
        log.lines().for_each(|line| scan.line(line));
        scan
    }

    const GPU: &str = "libc++abi: terminating due to uncaught exception of type std::runtime_error: [METAL] Command buffer execution failed: ";

    #[test]
    fn known_strings_tell_the_class() {
        use ExitClass::{Crashed, GpuFault, LinkFault, OutOfMemory};
        let metal = |words: &str| format!("{GPU}{words}");
        let table: Vec<(String, ExitClass)> = vec![
            ("[ring] Couldn't connect (error: 61)".into(), LinkFault),
            ("RuntimeError: [ring] connection to a peer was lost".into(), LinkFault),
            ("[ring] Too many send/recv errors".into(), LinkFault),
            ("[jaccl] Couldn't allocate protection domain".into(), LinkFault),
            ("[jaccl] Couldn't create completion queue".into(), LinkFault),
            ("[jaccl] Creating the queue pair failed with errno 16. Thunderbolt RDMA".into(), LinkFault),
            ("[jaccl] Changing queue pair to RTR failed with errno 60".into(), LinkFault),
            ("[jaccl] Register memory region failed".into(), LinkFault),
            ("[jaccl] Could not find device rdma_en5".into(), LinkFault),
            ("[jaccl] No IPv4-mapped GID for this device.".into(), LinkFault),
            ("[jaccl] Couldn't connect (error: 60)".into(), LinkFault),
            ("[jaccl] Recv failed with error code 12".into(), LinkFault),
            ("Couldn't bind socket (error: 49)".into(), LinkFault),
            ("ValueError: Cannot initialize jaccl distributed backend.".into(), LinkFault),
            ("RuntimeError: [malloc] Unable to allocate 8589934592 bytes.".into(), OutOfMemory),
            ("[metal::malloc] Resource limit (499000) exceeded.".into(), OutOfMemory),
            (metal("Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"), OutOfMemory),
            (metal("Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout)"), GpuFault),
            (metal("Caused GPU Hang Error (00000003:kIOGPUCommandBufferCallbackErrorHang)"), GpuFault),
            (metal("Ignored (for causing prior/excessive GPU errors) (00000004:kIOGPUCommandBufferCallbackErrorSubmissionsIgnored)"), GpuFault),
            (metal("Discarded (victim of GPU error/recovery) (00000005:kIOGPUCommandBufferCallbackErrorInnocentVictim)"), GpuFault),
            (metal("Impacting Interactivity (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)"), GpuFault),
            ("Execution of the command buffer was aborted due to an error during execution. Ignored (for causing prior/excessive GPU errors)".into(), GpuFault),
            ("KeyError: 'lm_head'".into(), Crashed),
        ];
        for (line, class) in table {
            for (exit_code, signal) in [(Some(1), None), (None, Some(nix::libc::SIGABRT))] {
                let evidence = Evidence { exit_code, signal, ..Default::default() };
                let (found, error) = classify(&evidence, &scan(&line));
                assert_eq!((found, error), (class, line.clone()));
            }
        }
    }

    #[test]
    fn a_kill_is_for_memory_only_where_the_system_says_so() {
        let killed = |memory_kills, killed| {
            let signal = Some(nix::libc::SIGKILL);
            classify(&Evidence { signal, memory_kills, killed, ..Default::default() }, &scan("")).0
        };
        assert_eq!(killed(true, false), ExitClass::OutOfMemory);
        assert_eq!(killed(false, false), ExitClass::Signalled);
        assert_eq!(killed(true, true), ExitClass::Killed, "that was us");
    }

    #[test]
    fn a_text_alone_tells_class_and_meaning() {
        use ExitClass::{GpuFault, LinkFault, OutOfMemory};
        for (text, class, hinted) in [
            ("[jaccl] Changing queue pair to RTR failed with errno 22", LinkFault, true),
            ("[ring] connection to a peer was lost", LinkFault, true),
            ("Couldn't bind socket (error: 49)", LinkFault, true),
            ("[ring] something new", LinkFault, false),
            ("[malloc] Unable to allocate 60 bytes, errno 60", OutOfMemory, false),
            ("[METAL] Command buffer execution failed: Caused GPU Hang Error", GpuFault, false),
        ] {
            let (found, hint) = explain(text).unwrap();
            assert_eq!((found, hint.is_some()), (class, hinted), "{text}");
        }
        assert_eq!(explain("KeyError: 'lm_head'"), None);
    }

    #[test]
    fn a_failed_canary_has_a_class_of_its_own() {
        let fatal = Fatal { class: FatalClass::CanaryFailed, message: "rank 1: wrong".into() };
        let evidence = Evidence { exit_code: Some(3), fatal: Some(&fatal), ..Default::default() };
        let found = classify(&evidence, &scan("RuntimeError: [ring] connection to a peer was lost"));
        assert_eq!(found, (ExitClass::CanaryFailed, "rank 1: wrong".to_owned()));
    }

    #[test]
    fn the_first_error_counts_and_the_rest_is_aftermath() {
        let log = "loading\nTraceback (most recent call last):\n  File \"x\"\n\
            RuntimeError: [jaccl] Changing queue pair to RTR failed with errno 22\n\
            Recv failed with errno=2\nRuntimeError: [malloc] Unable to allocate 1 bytes\n";
        let (class, error) = classify(&Evidence { exit_code: Some(1), ..Default::default() }, &scan(log));
        assert_eq!(class, ExitClass::LinkFault);
        assert_eq!(error, "RuntimeError: [jaccl] Changing queue pair to RTR failed with errno 22");
    }

    #[test]
    fn what_was_asked_and_what_was_done_come_before_the_log() {
        let log = scan("RuntimeError: [malloc] Unable to allocate 1 bytes");
        let fatal = Fatal { class: FatalClass::ModelUnsupported, message: "no such architecture".into() };
        let cases = [
            (Evidence { asked: true, exit_code: Some(0), ..Default::default() }, ExitClass::Orderly, ""),
            (
                Evidence { asked: true, terminated: true, signal: Some(15), ..Default::default() },
                ExitClass::Orderly,
                "",
            ),
            (
                Evidence { asked: true, killed: true, signal: Some(9), ..Default::default() },
                ExitClass::Killed,
                "it did not stop within its grace",
            ),
            (
                Evidence {
                    fault: Some("it wrote rubbish"),
                    killed: true,
                    signal: Some(9),
                    ..Default::default()
                },
                ExitClass::Crashed,
                "it wrote rubbish",
            ),
            (
                Evidence { exit_code: Some(3), fatal: Some(&fatal), ..Default::default() },
                ExitClass::ModelUnsupported,
                "no such architecture",
            ),
            (Evidence { signal: Some(9), ..Default::default() }, ExitClass::Signalled, "ended by SIGKILL"),
            (Evidence { signal: Some(15), ..Default::default() }, ExitClass::Signalled, "ended by SIGTERM"),
            (
                Evidence { exit_code: Some(0), ..Default::default() },
                ExitClass::Crashed,
                "RuntimeError: [malloc] Unable to allocate 1 bytes",
            ),
            (
                Evidence { asked: true, exit_code: Some(1), ..Default::default() },
                ExitClass::OutOfMemory,
                "RuntimeError: [malloc] Unable to allocate 1 bytes",
            ),
        ];
        for (evidence, class, error) in cases {
            assert_eq!(classify(&evidence, &log), (class, error.to_owned()), "{evidence:?}");
        }
        let silent = classify(&Evidence { exit_code: Some(7), ..Default::default() }, &Scan::default());
        assert_eq!(silent, (ExitClass::Crashed, "ended with exit code 7".to_owned()));
    }

    #[test]
    fn ordinary_lines_name_no_error() {
        for line in [
            "Fetching 9 files",
            "Traceback (most recent call last):",
            "  File \"a.py\", line 3",
            "0 errors",
            "Error rate: 0.1",
        ] {
            assert!(!names_an_error(line), "{line}");
        }
        for line in ["ValueError: x", "mlx_lm.utils.ModelError: x", "KeyboardInterrupt", "error: no space"] {
            assert!(names_an_error(line), "{line}");
        }
    }
}
