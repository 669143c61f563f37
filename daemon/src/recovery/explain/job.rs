//! The rules on a job.

use std::collections::BTreeSet;

use super::{Ruling, names, plural};
use crate::{
    model::{FallbackPolicy, JobState, Mode, NodeId, Pace, Reason, said_once},
    recovery::{
        Now,
        event::WorkerPhase,
        jobs::state_word,
        ladder::span,
        machine::Machine,
        models::ModelWord,
        rules,
        state::{Job, Node, Worker},
        workers::most_prefill_tokens,
    },
};

/// Suspected rows that are named; of a batch there are a few.
const NAMED_ROWS: usize = 8;

impl Machine {
    pub(super) fn rulings_on_job(&self, now: Now, job: &Job) -> Vec<Ruling> {
        let mut rulings = vec![state(job)];
        if job.record.state.is_over() {
            rulings.extend(ways(job));
            return rulings;
        }
        rulings.push(rows(job));
        rulings.push(self.storage());
        rulings.push(window(job));
        rulings.extend(adoption(now, job));
        rulings.push(self.turn(job));
        rulings.extend(self.models_of(job));
        rulings.extend(plan(job));
        rulings.extend(self.links_unused(now, job));
        rulings.extend(self.place_on_ladder(now, job));
        rulings.push(self.fallback(now, job));
        rulings.extend(barred(now, job));
        rulings.extend(self.memory(job));
        rulings.push(self.failures(job));
        rulings.extend(suspects(job));
        rulings.extend(job.workers.values().map(|worker| self.step_budget(now, job, worker)));
        rulings.extend(ways(job));
        if let Some(parked) = &job.parked {
            let since = span(now.unix_ms.saturating_sub(parked.since_unix_ms));
            let sentence = format!("nothing has run it for {since}: {}", parked.why);
            rulings.push(Ruling::keeps("parked", sentence));
        }
        rulings
    }

    fn storage(&self) -> Ruling {
        match &self.storage_problem {
            None => Ruling::holds("storage", "results can be stored"),
            Some(problem) => Ruling::keeps(
                "storage",
                format!("results cannot be stored, so no rows are handed out: {problem}"),
            ),
        }
    }

    /// Of a job that is sharded, or was asked to be: the links that it would do without now. What its plan says of links is as old
    /// as its workers, and may have been mended since, or be another thing by now.
    fn links_unused(&self, now: Now, job: &Job) -> Vec<Ruling> {
        let is_asked_for = job.record.spec.mode.is_some_and(|mode| mode != Mode::Independent);
        let is_sharded = job.rung().is_some_and(|rung| rung.backend.is_some());
        let was_told = job.plan.iter().flat_map(|plan| &plan.reasons).any(|reason| is_of_links(reason.rule));
        if job.record.state != JobState::Active || !(is_asked_for || is_sharded || was_told) {
            return Vec::new();
        }
        let model = &job.record.spec.model;
        let has_it = |node: &&Node| {
            node.session.is_some() && self.models.word_on(model, &node.id).fingerprint().is_some()
        };
        let nodes: BTreeSet<NodeId> =
            self.nodes.values().filter(has_it).map(|node| node.id.clone()).collect();
        let unused = self.unused_links(now, &nodes).into_iter();
        unused.map(|reason| Ruling::keeps(reason.rule, reason.text)).collect()
    }

    fn turn(&self, job: &Job) -> Ruling {
        if !job.workers.is_empty() {
            return Ruling::holds("turn", "it has its turn: it is at work");
        }
        let Some(first) = self.goes_first(job) else {
            return Ruling::holds("turn", "no other job is at work where it could be");
        };
        let theirs = self.jobs.get(&first).map_or(0, |other| other.record.spec.priority);
        let ours = job.record.spec.priority;
        let why = if theirs > ours {
            format!("its priority {theirs} is above {ours}")
        } else if theirs == ours && first < job.record.id {
            "it is older".to_owned()
        } else {
            "it has its model loaded, and only a higher priority takes nodes away".to_owned()
        };
        Ruling::keeps("turn", format!("{first} goes first: {why}"))
    }

    /// What nodes said of its model.
    fn models_of(&self, job: &Job) -> Vec<Ruling> {
        let spec = &job.record.spec;
        let models = [
            Some(("model", &spec.model)),
            spec.fallback_model.as_ref().map(|model| ("fallback-model", model)),
        ];
        let mut rulings = Vec::new();
        for (rule, model) in models.into_iter().flatten() {
            let connected: Vec<&NodeId> =
                self.nodes.values().filter(|node| node.session.is_some()).map(|node| &node.id).collect();
            let said: Vec<(&NodeId, ModelWord<'_>)> =
                connected.iter().map(|node| (*node, self.models.word_on(model, node))).collect();
            let kinds: BTreeSet<&str> = said.iter().filter_map(|(_, word)| word.fingerprint()).collect();
            let spoken: Vec<String> = said.iter().map(|(_, word)| word.words(kinds.len())).collect();
            let words = said_once(said.iter().zip(&spoken).map(|((node, _), words)| (*node, words.as_str())));
            let told: Vec<String> =
                words.into_iter().map(|(nodes, words)| format!("{nodes}: {words}")).collect();
            let sentence = match told.is_empty() {
                true => format!("no node is connected that could say anything of {model}"),
                false => format!("{model}: {}", told.join("; ")),
            };
            let somebody_has_it = said.iter().any(|(_, word)| word.fingerprint().is_some());
            // Where nobody could count it, a worker is tried, and says what is wrong.
            let is_counted = somebody_has_it || !job.workers.is_empty();
            rulings.push(Ruling::new(rule, is_counted, sentence));
        }
        rulings
    }

    fn place_on_ladder(&self, now: Now, job: &Job) -> Vec<Ruling> {
        let mut rulings = Vec::new();
        let id = job.record.id;
        match (job.rung(), job.why_here()) {
            (None, _) => rulings.push(Ruling::new(
                "rung",
                job.closed.is_some() || job.record.state != JobState::Active,
                "it is on no rung of the ladder: it has no worker that is to go on",
            )),
            (Some(rung), None) => {
                let asked_for = job.record.spec.mode.is_none_or(|mode| mode == rung.mode);
                let sentence = match asked_for && !rung.fallback {
                    true => format!("it runs as {rung}, as it would by itself"),
                    // Why is not kept beyond the controller that chose it.
                    false => format!("it runs as {rung}: so a controller before this one chose"),
                };
                rulings.push(Ruling::new("rung", asked_for && !rung.fallback, sentence));
            }
            (Some(rung), Some(why)) => {
                let is_up = why.rule == "climbed";
                rulings.push(Ruling::new("rung", is_up, format!("it runs as {rung}: {}", why.text)));
            }
        }
        if job.ladder.climb.is_some() {
            let sentence =
                "it is changing to a better way: its workers end with checkpoints, and it starts anew";
            rulings.push(Ruling::keeps("climbing", sentence));
        }
        if let Some(up) = self.way_up(now, id) {
            let waits_ms = up.settle_ms.saturating_sub(up.held_ms);
            let held = format!("{} has been possible for {}", up.to, span(up.held_ms));
            let asked = self.asked_of(&self.links_of_ideal(id));
            let first = asked.map_or_else(String::new, |name| format!("; {name} is tried before that"));
            let sentence = match (waits_ms, up.left_ms) {
                (0, Some(left_ms)) => format!(
                    "{held}; what is left takes {} as it runs now, which pays for loading ({}){first}",
                    span(left_ms),
                    span(up.load_ms)
                ),
                (0, None) => format!(
                    "{held}, but the rows left do not pay for loading the model again, about {}",
                    span(up.load_ms)
                ),
                (ms, _) => format!("{held}; it must hold for {} more before the job changes to it", span(ms)),
            };
            rulings.push(Ruling::keeps("better-rung", sentence));
        }
        let penalty = job.ladder.penalty(now, &self.policy);
        if penalty >= 0.1 {
            let settle_ms = job.ladder.settle_ms(now, &self.policy);
            let sentence = format!(
                "changes of late count as {penalty:.1}: a better way must hold for {} before the next one, in place of {}",
                span(settle_ms),
                span(self.policy.climb_settle_ms)
            );
            rulings.push(Ruling::keeps("change-penalty", sentence));
        }
        rulings
    }

    fn fallback(&self, now: Now, job: &Job) -> Ruling {
        let rule = "fallback";
        let spec = &job.record.spec;
        let Some(model) = &spec.fallback_model else {
            return Ruling::holds(rule, "it has no fallback model: where its own cannot run, it waits");
        };
        if job.rung().is_some_and(|rung| rung.fallback) {
            return Ruling::keeps(rule, format!("{model} answers in place of its own model"));
        }
        let wait_ms = match spec.fallback_policy {
            FallbackPolicy::Never => {
                return Ruling::holds(rule, format!("{model} is never used: that was asked for"));
            }
            FallbackPolicy::AtOnce => 0,
            FallbackPolicy::AfterMs(ms) => ms,
        };
        match job.ladder.stranded_ms(now) {
            None => Ruling::holds(
                rule,
                format!("{model} would answer once its own model could not run for {}", span(wait_ms)),
            ),
            Some(ms) if ms < wait_ms => Ruling::keeps(
                rule,
                format!(
                    "its own model could not run for {}; in {} {model} takes over",
                    span(ms),
                    span(wait_ms - ms)
                ),
            ),
            Some(ms) => Ruling::keeps(
                rule,
                format!(
                    "its own model could not run for {}, and {model} has not got a node either",
                    span(ms)
                ),
            ),
        }
    }

    /// Where memory ran out.
    fn memory(&self, job: &Job) -> Vec<Ruling> {
        let max_batch_rows = job.record.spec.settings(&self.policy).max_batch_rows;
        let failed = job.out_of_memory.iter().filter(|(_, times)| **times > 0);
        let told = failed.map(|(node, times)| {
            let rows = rules::eased(job.record.spec.settings(&self.policy), 0, *times).max_batch_rows;
            let trusted = rules::trusted_percent(*times, max_batch_rows);
            let sentence = format!(
                "memory ran out {} on {node}: {} together there, and {trusted} % of its budget are counted on",
                plural(u64::from(*times), "time", "times"),
                plural(rows.into(), "row", "rows")
            );
            Ruling::keeps("memory", sentence)
        });
        told.collect()
    }

    fn failures(&self, job: &Job) -> Ruling {
        let most = self.policy.failures_before_pause;
        let sentence = match job.failures_of_job {
            0 => format!("no failure since a row was last finished; {most} in a row pause it"),
            failures => {
                format!("{failures} of {most} failures in a row without a finished row; then it is paused")
            }
        };
        Ruling::new("failures", job.failures_of_job == 0, sentence)
    }

    fn step_budget(&self, now: Now, job: &Job, worker: &Worker) -> Ruling {
        let rule = "step-budget";
        let node = &worker.node;
        if worker.stopping.is_some() {
            return Ruling::holds(rule, format!("the worker on {node} is ending"));
        }
        let quiet_ms = now.mono_ms.saturating_sub(worker.last_step_mono_ms);
        let budget_ms = self.silence_budget_ms(job, worker);
        let from = learned_from(worker.phase, self.pace_of(job, worker), most_prefill_tokens(job, worker));
        let hangs = match job.hangs_in_a_row {
            0 => String::new(),
            hangs => {
                format!("; doubled {} for workers that took no step", plural(hangs.into(), "time", "times"))
            }
        };
        let sentence = format!(
            "the worker on {node} ({}) took its last step {} ago and may take {}: {from}{hangs}",
            phase_word(worker.phase),
            span(quiet_ms),
            span(budget_ms)
        );
        Ruling::new(rule, quiet_ms <= budget_ms, sentence)
    }
}

fn state(job: &Job) -> Ruling {
    let record = &job.record;
    let word = state_word(record.state);
    let detail = if record.detail.is_empty() { String::new() } else { format!(": {}", record.detail) };
    match record.state {
        JobState::Active => Ruling::holds("state", format!("it is to run{detail}")),
        JobState::Completed => Ruling::holds("state", format!("it is complete{detail}")),
        JobState::Paused if job.paused_by_faults() => Ruling::keeps(
            "state",
            format!("the rules have paused it{detail}; `clusterctl resume {}`", record.id),
        ),
        JobState::Paused => {
            Ruling::keeps("state", format!("it is {word}{detail}; `clusterctl resume {}`", record.id))
        }
        JobState::Cancelling | JobState::Cancelled | JobState::Failed => {
            Ruling::keeps("state", format!("it is {word}{detail}"))
        }
    }
}

fn rows(job: &Job) -> Ruling {
    let (done, total) = (job.done.len(), job.record.rows_total);
    let (held, waiting) = (job.leases.len(), job.rows_waiting());
    let sentence = format!("{done} of {total} rows are done, {held} are with workers, {waiting} wait");
    Ruling::holds("rows", sentence)
}

fn window(job: &Job) -> Ruling {
    match (job.record.spec.window, job.window_words()) {
        (None, _) => Ruling::holds("window", "it may run at any time"),
        (Some(window), None) => Ruling::holds("window", format!("its window {window} is open")),
        (Some(_), Some(words)) => Ruling::keeps("window", words),
    }
}

fn adoption(now: Now, job: &Job) -> Option<Ruling> {
    let adopting = job.adopting.as_ref()?;
    let left = span(adopting.until_mono_ms.saturating_sub(now.mono_ms));
    let sentence = format!(
        "a controller before this one had workers on {}: for {left} at most they are waited for before rows are handed out",
        names(&adopting.waiting)
    );
    Some(Ruling::keeps("adoption", sentence))
}

/// Reasons of a plan that keep a job from more.
fn keeps(rule: &str) -> bool {
    matches!(
        rule,
        "asking"
            | "did-not-meet"
            | "down-the-ladder"
            | "fewer-rows"
            | "less-prefill"
            | "no-meeting-place"
            | "not-on"
            | "refused"
            | "settling"
            | "too-small"
    )
}

/// Reasons of a plan that lines of their own tell as they are now.
fn is_of_links(rule: &str) -> bool {
    matches!(rule, "cable" | "link-test" | "link-unsettled" | "rdma-starts" | "versions")
}

fn plan(job: &Job) -> Vec<Ruling> {
    let Some(plan) = job.plan.as_ref().filter(|_| job.record.state == JobState::Active) else {
        return Vec::new();
    };
    let mode = plan.mode.word();
    let over = plan.backend.map(|backend| format!(" over {}", backend.word())).unwrap_or_default();
    let planned = match plan.nodes.is_empty() {
        true => "the plan gives it no node now".to_owned(),
        false => format!("the plan is {mode}{over} on {}", names(&plan.nodes)),
    };
    let mut rulings = vec![Ruling::new("plan", !plan.nodes.is_empty(), planned)];
    // What lines of their own tell: the one above, its window, its rung, its fallback model.
    let is_told = |reason: &&Reason| {
        matches!(reason.rule, "nodes" | "window" | "climbing" | "fallback" | "fallback-later")
            || is_of_links(reason.rule)
            || job.why_here() == Some(*reason)
    };
    let others = plan.reasons.iter().filter(|reason| !is_told(reason));
    rulings.extend(others.map(|reason| Ruling::new(reason.rule, !keeps(reason.rule), reason.text.clone())));
    rulings
}

/// Nodes it does not use.
fn barred(now: Now, job: &Job) -> Vec<Ruling> {
    let mut rulings = Vec::new();
    for (unfit, what) in [(&job.unfit, ""), (&job.fallback_unfit, "its fallback model ")] {
        for (node, why) in unfit {
            let sentence = format!("{what}not on {node} until somebody resumes it: {why}");
            rulings.push(Ruling::keeps("barred-node", sentence));
        }
    }
    for (node, backoff) in &job.backoff {
        let left_ms = backoff.not_before_mono_ms.saturating_sub(now.mono_ms);
        if backoff.failures_in_a_row == 0 && left_ms == 0 {
            continue;
        }
        let failures = plural(backoff.failures_in_a_row.into(), "failure", "failures");
        let sentence = match left_ms {
            0 => format!("{failures} in a row on {node}; it may be tried there now"),
            ms => format!("{failures} in a row on {node}; the next try there is in {}", span(ms)),
        };
        rulings.push(Ruling::new("back-off", left_ms == 0, sentence));
    }
    rulings
}

fn suspects(job: &Job) -> Option<Ruling> {
    let suspects: Vec<String> =
        job.crashes.suspects().map(|(row, crashes)| format!("row {row} ({crashes} crashes)")).collect();
    if suspects.is_empty() {
        return None;
    }
    let more = match suspects.len().saturating_sub(NAMED_ROWS) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let named: Vec<&str> = suspects.iter().take(NAMED_ROWS).map(String::as_str).collect();
    let sentence = format!(
        "in work at crashes, and tried apart from the others until the one at fault is found: {}{more}",
        named.join(", ")
    );
    Some(Ruling::keeps("suspected-rows", sentence))
}

/// How it ran so far.
fn ways(job: &Job) -> Option<Ruling> {
    let ways = &job.record.work.ways;
    let told: Vec<String> =
        ways.iter().map(|way| format!("{} as {}", plural(way.rows, "row", "rows"), way.rung)).collect();
    (!told.is_empty()).then(|| Ruling::holds("history", format!("finished so far: {}", told.join(", "))))
}

fn phase_word(phase: WorkerPhase) -> &'static str {
    match phase {
        WorkerPhase::Starting => "starting",
        WorkerPhase::Loading => "loading",
        WorkerPhase::Idle => "idle",
        WorkerPhase::Prefill => "reading prompts",
        WorkerPhase::Decode => "writing",
        WorkerPhase::Stopping => "ending",
    }
}

/// What a budget is made from.
fn learned_from(phase: WorkerPhase, pace: Option<&Pace>, prefill_tokens: u64) -> String {
    let unknown = "it is not known yet how long it takes this model".to_owned();
    let Some(pace) = pace else { return unknown };
    match phase {
        WorkerPhase::Starting | WorkerPhase::Loading => match pace.load_ms {
            0 => unknown,
            ms => format!("loading has taken {}", span(ms)),
        },
        WorkerPhase::Prefill => match pace.prefill_step_ms(prefill_tokens) {
            None => unknown,
            Some(ms) => format!(
                "{ms} ms to read {prefill_tokens} tokens of prompts, learned from {}",
                plural(pace.prefill_seen.into(), "step", "steps")
            ),
        },
        WorkerPhase::Idle | WorkerPhase::Decode | WorkerPhase::Stopping => match pace.decode_seen {
            0 => unknown,
            seen => format!(
                "{} ms a step, learned from {}",
                pace.decode_step_us / 1_000,
                plural(seen.into(), "step", "steps")
            ),
        },
    }
}
