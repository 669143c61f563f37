//! `--output json`: the views as they are.
//!
//! | command | stdout |
//! | --- | --- |
//! | `status` | one [`StatusView`](super::views::StatusView) |
//! | `report` | one [`ReportView`](super::views::ReportView) |
//! | `jobs` | `{"jobs":[`[`JobView`](super::views::JobView)`, …]}` |
//! | `job`, `cancel`, `pause`, `resume` | one `JobView` |
//! | `explain` | one [`ExplainView`](super::views::ExplainView) |
//! | `doctor` | one [`DoctorView`](super::views::DoctorView) |
//! | `nodes` | `{"nodes":[`[`NodeView`](super::views::NodeView)`, …]}` |
//! | `drain`, `undrain` | one `NodeView` |
//! | `submit` | one [`SubmitView`](super::views::SubmitView), for a refusal too (exit code 1); with `--watch`, one line, and then the lines of `watch` |
//! | `plan` | one [`PlanView`](super::views::PlanView), for a refusal too (exit code 1) |
//! | `watch` | JSON Lines: a [`SnapshotView`](super::views::SnapshotView) per change |
//! | `events` | JSON Lines: an [`EventView`](super::views::EventView) each |
//! | `logs` | JSON Lines: a [`LogLineView`](super::views::LogLineView) each |
//! | `results` | JSON Lines in OpenAI Batch output form, as without the option |
//! | `demo` | one object: what was run, what was killed, how it was survived |
//! | `completions` | the script, as without the option |
//! | an error | nothing; stderr has `{"error":{"kind","message","hint","tried"}}` |

use serde::Serialize;

/// A single value, for reading and for programs alike.
pub fn value(view: &impl Serialize) -> String {
    // Views are plain data with string keys: serialising them cannot fail.
    serde_json::to_string_pretty(view).unwrap_or_default() + "\n"
}

/// One line of JSON Lines.
pub fn line(view: &impl Serialize) -> String {
    serde_json::to_string(view).unwrap_or_default() + "\n"
}
