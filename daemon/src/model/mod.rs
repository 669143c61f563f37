//! Plain data of the world: identifiers, nodes, jobs, rows, incidents, events. No behaviour beyond keeping itself
//! consistent, no I/O.

mod deadline;
mod event;
mod fallback;
mod forecast;
mod ids;
mod incident;
mod job;
mod learned;
mod link;
mod link_record;
mod plan;
mod restart;
mod row;
mod rowset;
mod rung;
mod since;
mod thunderbolt;
mod window;
mod words;
mod work;

pub use deadline::{DeadlineError, deadline};
pub use event::{EventDraft, EventRecord, Severity};
pub use fallback::{FallbackPolicy, ParseFallbackError};
pub use forecast::{Forecast, Obstacle, Outlook, Pacing, forecast};
pub use ids::{Epoch, JobId, NodeId, ParseJobIdError, RowIx, WorkerKey};
pub use incident::{Fault, Incident};
pub use job::{
    AloneAt, JobRecord, JobSpec, JobState, Launch, NodeRecord, Quarantine, ReplayedJob, RowCrashes,
    RowLengths, last_part,
};
pub use learned::{KnownAnswer, Lap, LearnedModel, Measurement, PREFILL_SIZES, Pace, Way};
pub use link::{Backend, Link, LinkEnd, LinkKind, LinkName};
pub use link_record::{LinkPace, LinkRecord};
pub use plan::{Mode, Plan, Reason};
pub use restart::{Restart, RestartCause, RestartOutcome};
pub use row::{Checkpoint, FinishedRow};
pub use rowset::RowSet;
pub use rung::Rung;
pub use since::{SinceError, since};
pub use thunderbolt::{Cable, CableClass, CableEnd, Flaw, Port, PortPeer, Stranger, Thunderbolt};
pub use window::{Night, ParseWindowError, TimeOfDay, Window};
pub use words::{clipped, said_once};
pub use work::{NodeWork, WayWork, Work};
