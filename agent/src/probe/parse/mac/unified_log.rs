//! Lines of `log stream --style ndjson` that tell of the GPU (FIELD-NOTES 3).

use serde_json::Value;

/// What a line of the log says of the GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GpuLine {
    /// The driver restarts the GPU.
    Restart,
    /// A process lost what it had on the GPU to a restart: it need not be the one at fault.
    Victim {
        /// Name of its program.
        process: String,
        /// Its process id.
        pid: u32,
    },
}

/// What to ask the log for.
pub const PREDICATE: &str =
    "eventMessage CONTAINS \"GPURestartSignaled\" OR eventMessage CONTAINS \"InnocentVictim\"";

/// What a line says; `None` for a line that says nothing of the GPU, as the one with which the tool greets.
#[must_use]
pub fn gpu_line(line: &str) -> Option<GpuLine> {
    let value: Value = serde_json::from_str(line).ok()?;
    let message = value.get("eventMessage")?.as_str()?;
    if message.contains("GPURestartSignaled") {
        return Some(GpuLine::Restart);
    }
    if !message.contains("InnocentVictim") {
        return None;
    }
    let path = value.get("processImagePath")?.as_str()?;
    let process = path.rsplit('/').next().filter(|name| !name.is_empty())?.to_owned();
    let pid = value.get("processID")?.as_u64().and_then(|pid| u32::try_from(pid).ok())?;
    Some(GpuLine::Victim { process, pid })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::probe::parse::mutated::mutated;

    const RESTART: &str = r#"{"timestamp":"2026-11-26 02:00:00.433120+0100","processID":0,"processImagePath":"\/kernel",
        "eventMessage":"IOGPUScheduler::signalHardwareError(eRestartRequest): GPURestartSignaled stampIdx=61 type=1"}"#;
    const VICTIM: &str = r#"{"processID":7431,"processImagePath":"\/opt\/venv\/bin\/python3.13",
        "eventMessage":"Execution of the command buffer was aborted: Discarded (victim of GPU error\/recovery) (00000005:kIOGPUCommandBufferCallbackErrorInnocentVictim)"}"#;

    #[test]
    fn a_restart_and_its_victims_are_told_apart() {
        assert_eq!(gpu_line(RESTART), Some(GpuLine::Restart));
        let victim = GpuLine::Victim { process: "python3.13".to_owned(), pid: 7_431 };
        assert_eq!(gpu_line(VICTIM), Some(victim));
    }

    #[test]
    fn other_lines_say_nothing() {
        for line in [
            "",
            "Filtering the log data using \"eventMessage CONTAINS \\\"GPURestartSignaled\\\"\"",
            r#"{"eventMessage":"GPURestartEnd"}"#,
            r#"{"eventMessage":7}"#,
            r#"{"eventMessage":null,"processID":1}"#,
            "[]",
        ] {
            assert_eq!(gpu_line(line), None, "{line}");
        }
    }

    #[test]
    fn a_victim_without_a_name_or_number_is_none() {
        for line in [
            r#"{"eventMessage":"InnocentVictim","processID":5}"#,
            r#"{"eventMessage":"InnocentVictim","processImagePath":"/x/","processID":5}"#,
            r#"{"eventMessage":"InnocentVictim","processImagePath":"/x/y","processID":-5}"#,
        ] {
            assert_eq!(gpu_line(line), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_line_panics(text in prop_oneof![any::<String>(), mutated(RESTART), mutated(VICTIM)]) {
            let _ = gpu_line(&text);
        }
    }
}
