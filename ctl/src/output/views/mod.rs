//! What `clusterctl` knows, in the shape it shows it: one set of views, printed as JSON as they are and rendered for
//! people by [`super::human`].
//!
//! The JSON shapes are public API. Rules that hold for all of them:
//! * every field is always there; what is not known or does not apply is `null` (never 0), lists may be empty;
//! * units stand at the end of a name (`_ms`, `_bytes`, `_per_s`), moments end in `_at` and are RFC 3339 in UTC with
//!   milliseconds;
//! * jobs are named `"j7"`, states and phases are lower-case words; a value this version does not know is `"unknown"`;
//! * fields may be added in later versions, never renamed or removed.

use jiff::Timestamp;
use nightshift_proto::v1;
use serde::{Serialize, Serializer};

mod cluster;
mod doctor;
mod explain;
mod install;
mod job;
mod node;
mod plan;
mod report;

pub use cluster::{
    ControllerView, DoctorCountView, EventView, IncidentView, LineErrorView, LogLineView, SnapshotView,
    StatusView, SubmitView,
};
pub use doctor::{CableEndView, CableView, CheckView, DoctorView, FlawView, NodeDoctorView};
pub use explain::{ExplainView, RulingView};
pub use install::{InstallView, ServiceView, StepView};
pub use job::{ForecastView, JobView, WorkerView};
pub use node::{ConditionView, GpuView, InterfaceView, MachineView, NodeView, RuntimeView};
pub use plan::{AlternativeView, ModelSizeView, PartView, PlanView, ReasonView, WeightsView};
pub use report::{ReportView, ReportedJobView, ReportedNodeView, WayView, WorkView};

/// A moment; in JSON an RFC 3339 string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct At(pub Timestamp);

impl At {
    /// From the protocol's milliseconds since 1970, where 0 means "not".
    pub fn from_unix_ms(ms: u64) -> Option<Self> {
        if ms == 0 {
            return None;
        }
        i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).map(At)
    }
}

impl Serialize for At {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:.3}", self.0))
    }
}

/// A job's id as people write it.
pub fn job_name(job_id: u64) -> String {
    format!("j{job_id}")
}

/// How a model is spread over nodes, in a word; none before that is decided.
fn mode_word(mode: v1::Mode) -> Option<&'static str> {
    match mode {
        v1::Mode::Unspecified => None,
        v1::Mode::Independent => Some("independent"),
        v1::Mode::Pipeline => Some("pipeline"),
        v1::Mode::Tensor => Some("tensor"),
    }
}

/// The protocol leaves texts empty where there is nothing to say.
fn text(text: String) -> Option<String> {
    if text.is_empty() { None } else { Some(text) }
}

/// The protocol leaves numbers 0 where there is none.
fn nonzero<T: Default + PartialEq>(n: T) -> Option<T> {
    if n == T::default() { None } else { Some(n) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_rfc3339_with_milliseconds_and_zero_is_none() {
        let at = At::from_unix_ms(1_795_199_400_250).unwrap();
        assert_eq!(serde_json::to_string(&at).unwrap(), "\"2026-11-20T18:30:00.250Z\"");
        let whole = At::from_unix_ms(1_795_199_400_000).unwrap();
        assert_eq!(serde_json::to_string(&whole).unwrap(), "\"2026-11-20T18:30:00.000Z\"");
        assert_eq!(At::from_unix_ms(0), None);
        assert_eq!(At::from_unix_ms(u64::MAX), None);
    }
}
