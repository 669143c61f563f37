//! How long a worker may go without a step before it counts as hung.

use super::{Policy, WorkerPhase};
use crate::model::Pace;

/// How many times what a step takes at the slowest it may take before it counts as hung.
const STEP_FACTOR: u64 = 5;
/// The same of loading: a model that is in the page cache loads ten times as fast as one that is not.
const LOAD_FACTOR: u64 = 10;
/// Loading is given this much at the least: a disk may be busy.
const LEAST_LOAD_BUDGET_MS: u64 = 120_000;
/// A step is given this much at the most, however often it was cut off before.
const MOST_STEP_BUDGET_MS: u64 = 30 * 60_000;
/// Before so many steps of generation have been seen, their time is not known: the first ones compile.
const ENOUGH_DECODE: u32 = 32;
/// The same of prompts, which differ more.
const ENOUGH_PREFILL: u32 = 8;

/// How long a worker may go without a step. `hangs` were answered in a row: each doubles what is given, because a step that
/// takes its time on a large model looks the same from here, and must not be cut off for ever. `prefill_tokens` are the most it may
/// read in one step.
#[must_use]
pub fn silence_budget_ms(
    phase: WorkerPhase,
    pace: Option<&Pace>,
    prefill_tokens: u64,
    hangs: u32,
    policy: &Policy,
) -> u64 {
    let unknown = policy.step_budget_ms;
    let step = |learned_ms: Option<u64>| {
        learned_ms.map_or(unknown, |ms| ms.saturating_mul(STEP_FACTOR).max(policy.least_step_budget_ms))
    };
    let budget_ms = match phase {
        WorkerPhase::Starting | WorkerPhase::Loading => {
            return match pace.map_or(0, |pace| pace.load_ms) {
                0 => policy.load_budget_ms,
                ms => ms
                    .saturating_mul(LOAD_FACTOR)
                    .max(LEAST_LOAD_BUDGET_MS)
                    .saturating_add(policy.gang_rendezvous_ms)
                    .saturating_mul(1 << hangs.min(4))
                    .min(policy.load_budget_ms),
            };
        }
        WorkerPhase::Prefill => {
            let known = pace.filter(|pace| pace.prefill_seen >= ENOUGH_PREFILL);
            // What is not known from steps as large is too long, and never longer than where nothing is known.
            step(known.and_then(|pace| pace.prefill_step_ms(prefill_tokens)))
                .min(unknown.max(policy.least_step_budget_ms))
        }
        WorkerPhase::Idle | WorkerPhase::Decode | WorkerPhase::Stopping => {
            let known = pace.filter(|pace| pace.decode_seen >= ENOUGH_DECODE);
            step(known.map(|pace| pace.decode_step_us / 1_000))
        }
    };
    budget_ms.saturating_mul(1 << hangs.min(8)).min(MOST_STEP_BUDGET_MS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Mode, PREFILL_SIZES, Way};

    #[test]
    fn the_table_of_budgets() {
        use WorkerPhase::{Decode, Idle, Loading, Prefill, Starting};
        let policy = Policy::default();
        let way = Way { mode: Mode::Independent, backend: None, ranks: 1 };
        let pace = |load_ms, decode_step_us, tokens: u64, ms, seen| {
            let mut prefill_ms = [0; PREFILL_SIZES];
            prefill_ms[tokens.ilog2() as usize] = ms;
            Pace { way, load_ms, decode_step_us, decode_seen: seen, prefill_ms, prefill_seen: seen }
        };
        let quick = pace(3_000, 30_000, 2_048, 2_048, 100);
        let slow = pace(100_000, 6_000_000, 2_048, 20_480, 100);
        let short_prompts = pace(3_000, 30_000, 64, 500, 100);
        let hardly_any = pace(3_000, 30_000, 2, 500, 100);
        let new = pace(0, 30_000, 2_048, 2_048, 3);
        let rows = [
            (Starting, None, 0, 1_800_000),
            (Loading, Some(&new), 0, 1_800_000),
            (Loading, Some(&quick), 0, 120_000 + 60_000),
            (Loading, Some(&slow), 0, 1_000_000 + 60_000),
            (Loading, Some(&quick), 2, 4 * 180_000),
            (Loading, Some(&slow), 9, 1_800_000),
            (Decode, None, 0, 120_000),
            (Decode, Some(&new), 0, 120_000),
            (Decode, Some(&quick), 0, 9_500),
            (Idle, Some(&quick), 0, 9_500),
            (Decode, Some(&slow), 0, 30_000),
            (Decode, Some(&slow), 1, 60_000),
            (Decode, Some(&slow), 99, 1_800_000),
            (Prefill, None, 0, 120_000),
            (Prefill, Some(&new), 0, 120_000),
            // A step of 2,048 tokens takes 2 s or 20 s.
            (Prefill, Some(&quick), 0, 10_240),
            (Prefill, Some(&slow), 0, 102_400),
            // 500 ms for each 64 tokens of them.
            (Prefill, Some(&short_prompts), 0, 80_000),
            (Prefill, Some(&hardly_any), 0, 120_000),
            (Prefill, Some(&hardly_any), 1, 240_000),
        ];
        for (phase, pace, hangs, expected) in rows {
            let budget = silence_budget_ms(phase, pace, 2_048, hangs, &policy);
            assert_eq!(budget, expected, "{phase:?} {pace:?} {hangs}");
        }
    }
}
