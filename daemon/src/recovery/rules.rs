//! The recovery rules, in one place. [`answer`] is the table: a fault and what is known of it on the left, what to do
//! on the right; [`answer_to_silence`] is the one of silent nodes, [`keeps_from_restart`] the one of
//! machines that need a restart. To change a rule, change a line here and the test that states
//! it below.

mod budgets;
mod reboots;
mod silence;

use std::fmt;

pub use budgets::silence_budget_ms;
pub use reboots::{
    Consent, Keeps, MOST_REFUSALS, Others, REFUSAL_PAUSE_MS, RestartFacts, keeps_from_restart,
};
pub use silence::{Sight, SilenceAnswer, SilenceFacts, answer_to_silence};

use super::event::{ExitClass, WorkerPhase, WorkerSettings};
use crate::{model::Fault, planner::Network};

/// Every number the rules depend on. All of it comes from configuration and can change while the controller runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Without a word for this long, a node's rows go to others. Five missed heartbeats.
    pub node_silent_ms: u64,
    /// The same for a node whose machine another node still sees. Its workers go on, so moving its rows costs the most there and
    /// saves the least: as long as a switch takes to start, and an agent to be started anew and find its way back
    /// (`adopt_grace_ms`). A gang that computes has longer.
    pub node_seen_silent_ms: u64,
    /// How long a restarted controller waits for the workers it had before it gives their rows to others. Longer than
    /// an agent's longest reconnect pause (5 s) plus its spool.
    pub adopt_grace_ms: u64,
    /// The first pause before a failed worker is started again; doubles with each failure in a row.
    pub restart_base_ms: u64,
    /// The longest such pause.
    pub restart_cap_ms: u64,
    /// After so many failures in a row without one finished row, the job is paused for a person.
    pub failures_before_pause: u32,
    /// How long a model may take to load when it is not known how long it takes: a terabyte from a slow disk.
    pub load_budget_ms: u64,
    /// How long one step may take when it is not known how long it takes: a long prompt on a large model.
    pub step_budget_ms: u64,
    /// How long one step may take at the least, however short steps are: a machine is busy with something else at times.
    pub least_step_budget_ms: u64,
    /// Between SIGTERM and SIGKILL; a large model takes its time to give memory back (FIELD-NOTES 4).
    pub stop_grace_ms: u64,
    /// How long workers may finish what they had begun when their job's window closes. Most answers are done by then; whoever
    /// wants the machine back in the morning waits two minutes and no more. The rest keep their checkpoints.
    pub window_drain_ms: u64,
    /// Rows generated together, when the job does not say.
    pub max_batch_rows: u32,
    /// Rows whose prompts are processed together.
    pub prefill_batch_rows: u32,
    /// Prompt tokens in one step, when the job does not say.
    pub prefill_step_tokens: u32,
    /// Between checkpoints: the most a crash can cost.
    pub checkpoint_interval_ms: u64,
    /// Tokens a row may generate when neither it nor the job says.
    pub default_max_tokens: u32,
    /// So many GPU faults of a node within the window, and it is left alone for a while.
    pub gpu_faults_before_quarantine: u32,
    /// The window in which they count. Shorter than a night, so that the evening's fault is forgiven by the morning.
    pub gpu_fault_window_ms: u64,
    /// How long such a node takes no work. What a GPU restart leaves behind is over in minutes; a heat problem is not.
    pub quarantine_ms: u64,
    /// How long a link that has failed must carry before a gang is planned over it; doubled for each failure that is not
    /// forgotten yet. Cables are plugged in twice, and addresses come late.
    pub link_settle_ms: u64,
    /// The longest such time: a link that works again is in use again the same night.
    pub most_settle_ms: u64,
    /// The same of RDMA over which a gang was lost, so that it is left alone for an hour the first time. A try costs one of the few
    /// starts of a boot and a load, and what wedges a port is seldom gone in minutes (FIELD-NOTES 2): some tries a night.
    pub rdma_settle_ms: u64,
    /// How long a better way to run a job must have been there before the job changes to it; doubled for each change that is
    /// not forgotten. A change costs every worker's load.
    pub climb_settle_ms: u64,
    /// In which half of what is remembered of failures is forgotten.
    pub penalty_half_life_ms: u64,
    /// So much wired memory more than the least of this boot, after a worker had to be killed, and no model is loaded there
    /// until the machine was restarted. macOS itself wires and unwires some gigabytes.
    pub stranded_bytes: u64,
    /// Whether machines that need a restart are restarted, where their agents' configuration allows it, too.
    pub reboots: bool,
    /// How long such a machine must have been idle: memory that the system is slow to give back comes back meanwhile.
    pub reboot_settle_ms: u64,
    /// Restarts of machines of this cluster within a day. What needs more has a cause that a restart does not mend.
    pub reboots_per_day: u32,
    /// A machine that was told to restart and is not back after this long needs a person. A Mac takes some minutes.
    pub reboot_return_ms: u64,
    /// A node not seen for this long is no longer listed.
    pub forget_node_ms: u64,
    /// Networks that ranks may talk over; no others, but for the cables between nodes.
    pub gang_networks: Vec<Network>,
    /// Whether ranks may talk by RDMA.
    pub gang_rdma: bool,
    /// Whether the Macs of a gang must have the same build of macOS.
    pub gang_same_os: bool,
    /// How long the ranks of a gang may take to find one another. MLX's own tries end after about 31 s (FIELD-NOTES 1).
    pub gang_rendezvous_ms: u64,
    /// How long the nodes and links must stay as they are before a gang is planned over them.
    pub gang_settle_ms: u64,
    /// The first port that ranks listen on.
    pub gang_first_port: u16,
    /// How many ports there are for them.
    pub gang_ports: u16,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            // With the ticks it takes to see it, five seconds.
            node_silent_ms: 4_800,
            node_seen_silent_ms: 15_000,
            adopt_grace_ms: 15_000,
            restart_base_ms: 500,
            restart_cap_ms: 60_000,
            failures_before_pause: 5,
            load_budget_ms: 30 * 60_000,
            step_budget_ms: 120_000,
            // With the reports and ticks it takes to see it, ten seconds.
            least_step_budget_ms: 9_500,
            stop_grace_ms: 20_000,
            window_drain_ms: 120_000,
            max_batch_rows: 8,
            prefill_batch_rows: 8,
            prefill_step_tokens: 2_048,
            checkpoint_interval_ms: 5_000,
            default_max_tokens: 512,
            gpu_faults_before_quarantine: 3,
            gpu_fault_window_ms: 3_600_000,
            quarantine_ms: 3_600_000,
            link_settle_ms: 5_000,
            most_settle_ms: 600_000,
            rdma_settle_ms: 1_800_000,
            climb_settle_ms: 60_000,
            penalty_half_life_ms: 1_800_000,
            stranded_bytes: 4 << 30,
            reboots: false,
            reboot_settle_ms: 120_000,
            reboots_per_day: 2,
            reboot_return_ms: 15 * 60_000,
            forget_node_ms: 7 * 24 * 3_600_000,
            gang_networks: Vec::new(),
            gang_rdma: true,
            gang_same_os: true,
            gang_rendezvous_ms: 60_000,
            gang_settle_ms: 2_000,
            gang_first_port: 47_000,
            gang_ports: 1_000,
        }
    }
}

/// What is known when a worker is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExitFacts {
    /// How it ended.
    pub class: ExitClass,
    /// Whether the machine had asked it to end.
    pub asked: bool,
    /// Failures in a row on this node, this one included, since a row of it last became durable.
    pub failures_in_a_row: u32,
    /// The same over all nodes of the job.
    pub failures_of_job: u32,
    /// GPU faults of this node within the window, this one included; 0 for other ends.
    pub gpu_faults: u32,
    /// Whether the crash brought the search for a row that ends its workers closer to its end.
    pub narrowed: bool,
}

/// What to do about a worker that is gone. Its rows are always handed out again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Nothing: it was to end.
    Nothing,
    /// Start another one there after a pause.
    RestartAfter {
        /// The pause.
        pause_ms: u64,
    },
    /// Do not use this node for anything for a while.
    Quarantine {
        /// How long.
        for_ms: u64,
    },
    /// Do not use this node for this job again.
    BarNode,
    /// Pause the job until a person has looked.
    PauseJob,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing to do"),
            Self::RestartAfter { pause_ms } => {
                write!(f, "its rows were handed out again; restart after {:.1} s", *pause_ms as f64 / 1e3)
            }
            Self::Quarantine { for_ms } => write!(
                f,
                "its rows were handed out again; the node is left alone for {} minutes",
                for_ms / 60_000
            ),
            Self::BarNode => f.write_str("the node is not used for this job any more"),
            Self::PauseJob => f.write_str("the job was paused: trying again has not helped"),
        }
    }
}

/// The table for workers that are gone. Read from the top; the first line that fits holds.
#[must_use]
pub fn answer(facts: ExitFacts, policy: &Policy) -> Answer {
    use ExitClass::{Apart, GpuFault, Leftover, LinkFault, ModelUnreadable, ModelUnsupported, Orderly};
    match facts {
        ExitFacts { asked: true, .. } => Answer::Nothing,
        ExitFacts { class: ModelUnreadable | ModelUnsupported, .. } => Answer::BarNode,
        // The worker is not to blame for the end of its agent, so there is nothing to back off from.
        ExitFacts { class: Leftover | Orderly, .. } => Answer::RestartAfter { pause_ms: 0 },
        // A network that is away for an hour comes back by itself, and a try loads nothing: with the pause at its cap and
        // the time for the meeting, one in two minutes.
        ExitFacts { class: Apart | LinkFault, failures_in_a_row, .. } => {
            Answer::RestartAfter { pause_ms: pause_ms(failures_in_a_row, policy) }
        }
        ExitFacts { class: GpuFault, gpu_faults, .. }
            if gpu_faults >= policy.gpu_faults_before_quarantine.max(1) =>
        {
            Answer::Quarantine { for_ms: policy.quarantine_ms }
        }
        // The search ends after a few crashes, and then the night goes on.
        ExitFacts { narrowed: true, .. } => Answer::RestartAfter { pause_ms: policy.restart_base_ms },
        ExitFacts { failures_of_job, .. } if failures_of_job >= policy.failures_before_pause => {
            Answer::PauseJob
        }
        ExitFacts { failures_in_a_row, .. } => {
            Answer::RestartAfter { pause_ms: pause_ms(failures_in_a_row, policy) }
        }
    }
}

/// The pause before the next start: base, twice that, four times that … up to the cap.
#[must_use]
pub fn pause_ms(failures_in_a_row: u32, policy: &Policy) -> u64 {
    let doublings = failures_in_a_row.saturating_sub(1).min(32);
    policy.restart_base_ms.saturating_mul(1 << doublings).min(policy.restart_cap_ms)
}

/// What kind of fault the end of a worker is.
#[must_use]
pub fn fault_of(class: ExitClass, was_hung: bool) -> Fault {
    match class {
        _ if was_hung => Fault::WorkerSilent,
        ExitClass::ModelUnreadable | ExitClass::ModelUnsupported => Fault::ModelUnusable,
        ExitClass::GpuFault => Fault::GpuFault,
        ExitClass::OutOfMemory => Fault::OutOfMemory,
        ExitClass::LinkFault | ExitClass::Apart => Fault::LinkFault,
        ExitClass::Leftover => Fault::AgentRestarted,
        ExitClass::Orderly
        | ExitClass::SpawnFailed
        | ExitClass::Signalled
        | ExitClass::Crashed
        | ExitClass::Killed
        | ExitClass::CanaryFailed => Fault::WorkerExited,
    }
}

/// Prompt tokens in one step, at the least: below it a prompt takes for ever, and no GPU step is short of time.
const MIN_PREFILL_STEP_TOKENS: u32 = 128;

/// How a worker is set up on a node where others before it failed: half of everything for each GPU fault within the window
/// (a shorter step is one that does not time out), half of the rows for each time memory ran out in this job.
#[must_use]
pub fn eased(settings: WorkerSettings, gpu_faults: u32, out_of_memory: u32) -> WorkerSettings {
    let halved =
        |number: u32, times: u32, least: u32| number.checked_shr(times).unwrap_or(0).max(least.min(number));
    let max_batch_rows = halved(settings.max_batch_rows, gpu_faults.saturating_add(out_of_memory), 1);
    WorkerSettings {
        max_batch_rows,
        prefill_batch_rows: settings.prefill_batch_rows.min(max_batch_rows),
        prefill_step_tokens: halved(settings.prefill_step_tokens, gpu_faults, MIN_PREFILL_STEP_TOKENS),
        ..settings
    }
}

/// What a node's budget is taken to be, of 100, where memory ran out although the rows were already halved down to one: the
/// count was too low there, so the model is spread over more nodes.
#[must_use]
pub fn trusted_percent(out_of_memory: u32, max_batch_rows: u32) -> u64 {
    let halvings_to_one = max_batch_rows.max(1).next_power_of_two().trailing_zeros();
    let beyond = out_of_memory.saturating_sub(halvings_to_one);
    100_u64.saturating_sub(u64::from(beyond) * 20).max(20)
}

/// Whether the next worker after this end is set up more gently than the one before. A GPU is in quarantine before there is
/// nothing left to ease.
#[must_use]
pub fn can_ease(class: ExitClass, out_of_memory: u32, settings: WorkerSettings) -> bool {
    match class {
        ExitClass::GpuFault => true,
        ExitClass::OutOfMemory => {
            let least = trusted_percent(u32::MAX, 1);
            trusted_percent(out_of_memory, settings.max_batch_rows) > least
        }
        _ => false,
    }
}

/// Whether an end brings the job closer to being paused. A network and the end of an agent say nothing about the job; a
/// search that gets closer, or a gentler try, is no failure yet.
#[must_use]
pub fn counts_against_job(class: ExitClass, narrowed: bool, can_ease: bool) -> bool {
    !matches!(class, ExitClass::Leftover | ExitClass::Apart | ExitClass::LinkFault) && !narrowed && !can_ease
}

/// How long a model takes to load, where no load of it has been seen.
pub(super) const UNKNOWN_LOAD_MS: u64 = 120_000;

/// How many times what loading takes must be left to do: a way that is twice as fast saves half of it.
const LOADS_TO_BE_WORTH_IT: u64 = 2;

/// Whether so many rows are worth loading the model again for a better way to run them; if so, how long they would take as
/// they run now. `held_ms` is how long the job has run so at least: where not one row was finished meanwhile, a batch of
/// them takes longer than that.
#[must_use]
pub fn worth_loading_again(
    rows_left: u64,
    rows_per_s: Option<f64>,
    held_ms: u64,
    batch_rows: u32,
    load_ms: u64,
) -> Option<u64> {
    let left_ms = match rows_per_s.filter(|speed| *speed > 0.0) {
        Some(speed) => (rows_left as f64 / speed * 1e3) as u64,
        None => held_ms.saturating_mul(rows_left.div_ceil(u64::from(batch_rows.max(1)))),
    };
    (left_ms >= load_ms.saturating_mul(LOADS_TO_BE_WORTH_IT)).then_some(left_ms)
}

/// Whether this end of one rank is why another one lost it. One that was told to end and did is not.
#[must_use]
pub fn explains_a_lost_rank(class: ExitClass) -> bool {
    use ExitClass::{CanaryFailed, Crashed, GpuFault, OutOfMemory, Signalled};
    matches!(class, CanaryFailed | Crashed | GpuFault | OutOfMemory | Signalled)
}

/// Whether this end of a rank over RDMA is a reason to go on without RDMA. A port that is wedged shows itself in many ways: ranks that
/// do not meet, that hang, that break with no word of why, or that compute something else (FIELD-NOTES 2); an agent refuses a start
/// that its boot has none left for. Over TCP the same nodes go on, so that a wrong guess costs speed and no more.
#[must_use]
pub fn speaks_against_rdma(class: ExitClass, was_hung: bool) -> bool {
    use ExitClass::{Apart, CanaryFailed, Crashed, LinkFault, SpawnFailed};
    was_hung || matches!(class, Apart | CanaryFailed | Crashed | LinkFault | SpawnFailed)
}

/// Whether an end that nobody asked for is worth an incident.
#[must_use]
pub fn is_fault(class: ExitClass, asked: bool) -> bool {
    !asked && class != ExitClass::Orderly
}

/// How many rows a worker may hold: its batch, and as many again, so that a batch that ends all at once is full again
/// at once. When no more rows wait than the batches of all workers take, nothing is handed out ahead, and what is
/// left is shared evenly: a slow node must not hoard the end of the night.
#[must_use]
pub fn window_rows(batch_rows: u32, waiting_rows: u32, held_rows: u32, workers: u32) -> u32 {
    let workers = workers.max(1);
    if waiting_rows > batch_rows.saturating_mul(workers) {
        return batch_rows.saturating_mul(2);
    }
    let even_share = waiting_rows.saturating_add(held_rows).div_ceil(workers);
    even_share.min(batch_rows.saturating_mul(2)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(class: ExitClass) -> ExitFacts {
        ExitFacts {
            class,
            asked: false,
            failures_in_a_row: 1,
            failures_of_job: 1,
            gpu_faults: 0,
            narrowed: false,
        }
    }

    #[test]
    fn the_table_of_worker_exits() {
        let policy = Policy::default();
        let restart = |pause_ms| Answer::RestartAfter { pause_ms };
        let rows = [
            (ExitFacts { asked: true, ..facts(ExitClass::Killed) }, Answer::Nothing),
            (ExitFacts { asked: true, ..facts(ExitClass::Crashed) }, Answer::Nothing),
            (facts(ExitClass::ModelUnreadable), Answer::BarNode),
            (facts(ExitClass::ModelUnsupported), Answer::BarNode),
            (facts(ExitClass::Leftover), restart(0)),
            (facts(ExitClass::Orderly), restart(0)),
            (facts(ExitClass::Crashed), restart(500)),
            (facts(ExitClass::Signalled), restart(500)),
            (facts(ExitClass::Killed), restart(500)),
            (facts(ExitClass::OutOfMemory), restart(500)),
            (facts(ExitClass::GpuFault), restart(500)),
            (facts(ExitClass::LinkFault), restart(500)),
            (facts(ExitClass::SpawnFailed), restart(500)),
            (
                ExitFacts { failures_in_a_row: 2, failures_of_job: 2, ..facts(ExitClass::Crashed) },
                restart(1_000),
            ),
            (
                ExitFacts { failures_in_a_row: 4, failures_of_job: 4, ..facts(ExitClass::Crashed) },
                restart(4_000),
            ),
            (ExitFacts { gpu_faults: 2, ..facts(ExitClass::GpuFault) }, restart(500)),
            (
                ExitFacts { gpu_faults: 3, failures_of_job: 9, ..facts(ExitClass::GpuFault) },
                Answer::Quarantine { for_ms: 3_600_000 },
            ),
            (
                ExitFacts {
                    narrowed: true,
                    failures_in_a_row: 9,
                    failures_of_job: 9,
                    ..facts(ExitClass::Crashed)
                },
                restart(500),
            ),
            (ExitFacts { failures_of_job: 5, ..facts(ExitClass::Crashed) }, Answer::PauseJob),
            (ExitFacts { failures_of_job: 5, ..facts(ExitClass::LinkFault) }, restart(500)),
            (
                ExitFacts { failures_in_a_row: 99, failures_of_job: 5, ..facts(ExitClass::Apart) },
                restart(60_000),
            ),
        ];
        for (facts, expected) in rows {
            assert_eq!(answer(facts, &policy), expected, "{facts:?}");
        }
    }

    #[test]
    fn every_fault_halves_and_nothing_falls_to_zero() {
        let settings = WorkerSettings {
            max_batch_rows: 8,
            prefill_batch_rows: 8,
            prefill_step_tokens: 2_048,
            ..WorkerSettings::default()
        };
        let of = |gpu_faults, out_of_memory| {
            let eased = eased(settings, gpu_faults, out_of_memory);
            (eased.max_batch_rows, eased.prefill_batch_rows, eased.prefill_step_tokens)
        };
        assert_eq!(of(0, 0), (8, 8, 2_048));
        assert_eq!(of(1, 0), (4, 4, 1_024));
        assert_eq!(of(2, 0), (2, 2, 512));
        assert_eq!(of(0, 1), (4, 4, 2_048), "smaller steps do not save memory by much");
        assert_eq!(of(1, 1), (2, 2, 1_024));
        assert_eq!(of(u32::MAX, u32::MAX), (1, 1, 128));
        let small = WorkerSettings { prefill_step_tokens: 16, ..settings };
        assert_eq!(eased(small, 1, 0).prefill_step_tokens, 16, "never more than was asked for");
    }

    #[test]
    fn a_budget_is_believed_until_one_row_alone_does_not_fit() {
        assert_eq!(trusted_percent(0, 8), 100);
        assert_eq!(trusted_percent(3, 8), 100, "8, 4, 2, 1 rows");
        assert_eq!(trusted_percent(4, 8), 80);
        assert_eq!(trusted_percent(99, 8), 20);
        assert_eq!(trusted_percent(1, 1), 80);
    }

    #[test]
    fn what_has_another_way_left_does_not_count_against_the_job() {
        let settings = WorkerSettings { max_batch_rows: 4, ..WorkerSettings::default() };
        assert!(can_ease(ExitClass::GpuFault, 0, settings));
        let eases: Vec<bool> =
            (1..8).map(|times| can_ease(ExitClass::OutOfMemory, times, settings)).collect();
        assert_eq!(eases, [true, true, true, true, true, false, false]);
        assert!(!can_ease(ExitClass::Crashed, 0, settings));
        let counts = [
            (ExitClass::Crashed, false, false, true),
            (ExitClass::OutOfMemory, false, false, true),
            (ExitClass::OutOfMemory, false, true, false),
            (ExitClass::Crashed, true, false, false),
            (ExitClass::Leftover, false, false, false),
            (ExitClass::Apart, false, false, false),
            (ExitClass::LinkFault, false, false, false),
        ];
        for (class, narrowed, eased, expected) in counts {
            assert_eq!(counts_against_job(class, narrowed, eased), expected, "{class:?} {narrowed} {eased}");
        }
    }

    #[test]
    fn the_table_of_ends_that_speak_against_rdma() {
        let rows = [
            (ExitClass::Apart, true),
            (ExitClass::CanaryFailed, true),
            (ExitClass::Crashed, true),
            (ExitClass::LinkFault, true),
            (ExitClass::SpawnFailed, true),
            (ExitClass::GpuFault, false),
            (ExitClass::Killed, false),
            (ExitClass::Leftover, false),
            (ExitClass::ModelUnreadable, false),
            (ExitClass::ModelUnsupported, false),
            (ExitClass::Orderly, false),
            (ExitClass::OutOfMemory, false),
            (ExitClass::Signalled, false),
        ];
        for (class, expected) in rows {
            assert_eq!(speaks_against_rdma(class, false), expected, "{class:?}");
            assert!(speaks_against_rdma(class, true), "{class:?} that hung");
        }
    }

    #[test]
    fn a_model_is_loaded_again_only_for_enough_rows() {
        assert_eq!(worth_loading_again(100, Some(1.0), 60_000, 8, 50_000), Some(100_000));
        assert_eq!(worth_loading_again(99, Some(1.0), 60_000, 8, 50_000), None);
        assert_eq!(worth_loading_again(17, None, 60_000, 8, 90_000), Some(180_000), "three batches");
        assert_eq!(worth_loading_again(16, None, 60_000, 8, 90_000), None);
        assert_eq!(worth_loading_again(1, Some(0.0), 60_000, 0, 30_000), Some(60_000));
        assert_eq!(worth_loading_again(u64::MAX, Some(1e-9), u64::MAX, 1, u64::MAX), Some(u64::MAX));
    }

    #[test]
    fn pauses_double_up_to_the_cap() {
        let policy = Policy::default();
        let pauses: Vec<u64> = (1..=9).map(|failures| pause_ms(failures, &policy)).collect();
        assert_eq!(pauses, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]);
        assert_eq!(pause_ms(u32::MAX, &policy), 60_000);
    }

    #[test]
    fn a_worker_is_kept_a_batch_ahead_until_the_rows_run_out() {
        assert_eq!(window_rows(8, 1_000, 0, 2), 16, "plenty: a batch and one ahead");
        assert_eq!(window_rows(8, 16, 0, 2), 8, "just enough for both: no more than an even share");
        assert_eq!(window_rows(8, 5, 0, 2), 3, "five rows, two workers: three and two");
        assert_eq!(window_rows(8, 1, 15, 2), 8);
        assert_eq!(window_rows(8, 0, 0, 0), 1);
        assert_eq!(window_rows(u32::MAX, u32::MAX, u32::MAX, u32::MAX), 1, "no overflow");
    }
}
