//! Files in `/Library/Logs/DiagnosticReports` (FIELD-NOTES 3): a line of JSON with the kind of the report, then a JSON object.
//!
//! They come late or not at all: evidence, never something to wait for.

use serde_json::Value;

/// Processes taken from one report.
const MOST_KILLED: usize = 64;

/// Characters of a panic's first line that are kept.
const MOST_PANIC_CHARS: usize = 300;

/// One report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// When, as the report writes it; local time with its offset.
    pub timestamp: Option<String>,
    /// For example `macOS 26.3 (25D125)`.
    pub os_version: Option<String>,
    /// One for each incident.
    pub incident_id: Option<String>,
    /// What it tells.
    pub tells: Tells,
}

/// What a report tells of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Tells {
    /// The GPU was restarted.
    GpuRestart {
        /// Whose work it had at that time.
        process: Option<String>,
        /// For example `firmware-detected lockup`.
        reason: Option<String>,
    },
    /// Processes were ended for want of memory.
    Jetsam {
        /// Those that were ended.
        killed: Vec<Killed>,
        /// The largest of all.
        largest: Option<String>,
    },
    /// The system stopped.
    Panic {
        /// The first line.
        summary: Option<String>,
        /// The boot it ended.
        boot_session_uuid: Option<String>,
    },
    /// Nothing that matters here.
    #[default]
    Other,
}

/// A process that was ended for want of memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Killed {
    /// Its name.
    pub process: String,
    /// Its process id.
    pub pid: Option<u32>,
    /// For example `vm-compressor-space-shortage`.
    pub reason: String,
    /// What it had resident.
    pub resident_bytes: Option<u64>,
}

/// `bug_type` of the kinds of reports.
const GPU_RESTART: u64 = 284;
const JETSAM: u64 = 298;
const PANIC: u64 = 210;

/// The report; `None` when the text is none.
#[must_use]
pub fn report(text: &str) -> Option<Report> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let first = values.next()?.ok()?;
    // The kind stands in the first line, and in some excerpts in the body.
    let body = values.next().and_then(Result::ok).unwrap_or_else(|| first.clone());
    let kind = number_at(&first, "bug_type").or_else(|| number_at(&body, "bug_type"))?;
    let either = |key: &str| text_at(&first, key).or_else(|| text_at(&body, key));
    Some(Report {
        timestamp: either("timestamp"),
        os_version: either("os_version"),
        incident_id: either("incident_id"),
        tells: match kind {
            GPU_RESTART => gpu_restart(&body),
            JETSAM => jetsam(&body),
            PANIC => panic_of(&body),
            _ => Tells::Other,
        },
    })
}

fn gpu_restart(body: &Value) -> Tells {
    let reason = body.get("analysis").and_then(|analysis| text_at(analysis, "restart_reason_desc"));
    Tells::GpuRestart { process: text_at(body, "process_name"), reason }
}

fn jetsam(body: &Value) -> Tells {
    let page_bytes = body
        .get("memoryStatus")
        .and_then(|status| number_at(status, "pageSize"))
        .or_else(|| number_at(body, "pageSize"));
    let processes = body.get("processes").and_then(Value::as_array);
    // All processes are listed; those that were ended have a reason.
    let killed = processes.into_iter().flatten().filter_map(|process| {
        let pages = number_at(process, "rpages");
        Some(Killed {
            process: text_at(process, "name")?,
            pid: number_at(process, "pid").and_then(|pid| u32::try_from(pid).ok()),
            reason: text_at(process, "reason")?,
            resident_bytes: pages.zip(page_bytes).and_then(|(pages, bytes)| pages.checked_mul(bytes)),
        })
    });
    Tells::Jetsam { killed: killed.take(MOST_KILLED).collect(), largest: text_at(body, "largestProcess") }
}

fn panic_of(body: &Value) -> Tells {
    let text = text_at(body, "panicString").unwrap_or_default();
    let first = text.lines().next().map(|line| line.chars().take(MOST_PANIC_CHARS).collect::<String>());
    let boot = text.lines().find_map(|line| line.trim().strip_prefix("Boot session UUID:"));
    Tells::Panic {
        summary: first.filter(|line| !line.is_empty()),
        boot_session_uuid: boot.map(|uuid| uuid.trim().to_owned()).filter(|uuid| !uuid.is_empty()),
    }
}

fn text_at(value: &Value, key: &str) -> Option<String> {
    value.get(key)?.as_str().filter(|text| !text.is_empty()).map(ToOwned::to_owned)
}

/// A number, or one written as text.
fn number_at(value: &Value, key: &str) -> Option<u64> {
    let value = value.get(key)?;
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::probe::parse::mutated::mutated;

    const GPU: &str = r#"{"bug_type":"284","timestamp":"2026-11-26 02:00:01.00 +0100","os_version":"macOS 26.3 (25D125)","incident_id":"I-1"}
{ "process_name": "python3.13", "analysis": { "signature": 579, "restart_reason": 4, "restart_reason_desc": "firmware-detected lockup" } }"#;

    const MEMORY: &str = r#"{"bug_type":"298","timestamp":"2026-11-26 03:00:01.00 +0100","incident_id":"I-2"}
{ "memoryStatus": { "pageSize": 16384 }, "largestProcess": "python3.13", "processes": [
  { "pid": 88, "name": "python3.13", "rpages": 6000000, "reason": "vm-compressor-space-shortage", "killDelta": 7 },
  { "pid": 1, "name": "launchd", "rpages": 900 }, { "name": "x", "reason": "" }, 5 ] }"#;

    const PANICKED: &str = r#"{"bug_type":"210","os_version":"macOS 26.4 (25E246)","incident_id":"I-3"}
{ "panicString": "panic(cpu 7 caller 0xfffffe00): \"completeMemory() prepare count underflow\" @IOGPUMemory.cpp:550\nDebugger message: panic\nBoot session UUID: 0A1B2C3D-0000-4000-8000-000000000001\niBoot version: x" }"#;

    #[test]
    fn a_gpu_restart_names_the_process_and_the_reason() {
        let report = report(GPU).unwrap();
        let tells = Tells::GpuRestart {
            process: Some("python3.13".to_owned()),
            reason: Some("firmware-detected lockup".to_owned()),
        };
        assert_eq!((report.tells, report.incident_id.as_deref()), (tells, Some("I-1")));
        assert_eq!(report.os_version.as_deref(), Some("macOS 26.3 (25D125)"));
    }

    #[test]
    fn of_all_processes_those_with_a_reason_were_ended() {
        let Tells::Jetsam { killed, largest } = report(MEMORY).unwrap().tells else { panic!("memory") };
        let expected = Killed {
            process: "python3.13".to_owned(),
            pid: Some(88),
            reason: "vm-compressor-space-shortage".to_owned(),
            resident_bytes: Some(6_000_000 * 16_384),
        };
        assert_eq!((killed, largest.as_deref()), (vec![expected], Some("python3.13")));
    }

    #[test]
    fn a_panic_names_the_boot_it_ended() {
        let Tells::Panic { summary, boot_session_uuid } = report(PANICKED).unwrap().tells else {
            panic!("panic")
        };
        assert!(summary.unwrap().contains("prepare count underflow"));
        assert_eq!(boot_session_uuid.as_deref(), Some("0A1B2C3D-0000-4000-8000-000000000001"));
    }

    #[test]
    fn other_reports_and_other_files_say_nothing() {
        assert_eq!(report(r#"{"bug_type":"309","app_name":"Safari"}{}"#).unwrap().tells, Tells::Other);
        for text in ["", "panic(cpu 7)", "{}", r#"{"bug_type":"two"}"#, "[1]", r#"{"bug_type":-284}"#] {
            assert_eq!(report(text), None, "{text}");
        }
    }

    /// A file that is read while it is written.
    #[test]
    fn half_a_report_says_what_it_holds() {
        let cut = GPU.split_once('\n').unwrap().0;
        let tells = Tells::GpuRestart { process: None, reason: None };
        assert_eq!(report(cut).unwrap().tells, tells);
        let (head, _) = MEMORY.split_once("\"processes\"").unwrap();
        assert_eq!(report(head).unwrap().tells, Tells::Jetsam { killed: Vec::new(), largest: None });
    }

    proptest! {
        #[test]
        fn no_file_panics(
            text in prop_oneof![any::<String>(), mutated(GPU), mutated(MEMORY), mutated(PANICKED)]
        ) {
            if let Some(Tells::Panic { summary: Some(summary), .. }) = report(&text).map(|report| report.tells) {
                prop_assert!(summary.chars().count() <= MOST_PANIC_CHARS);
            }
        }
    }
}
