//! Machines that need a restart are restarted, where that is allowed: the last rung.
//!
//! What it promises:
//! * off unless the controller's configuration and the agent's both say yes;
//! * never while something runs there or is out there, one machine of the cluster at a time, no more of them in a day than
//!   `reboots_per_day`, and never again within a day for a cause that a restart did not mend;
//! * what was asked for is on record before it is asked for, so that a restarted controller knows of it; the agent, which has a
//!   record of its own, has the last word;
//! * from the question on nothing is planned there; a machine that does not go down, or does not come back, is told of once.
//!
//! The rules are in [`rules::keeps_from_restart`].
//!
//! ```text
//!  needs a restart ──idle, wanted, allowed──▶ asked ──▶ back in another boot
//!        ▲                                      │├─refused──▶ again after a pause, three times; then a person's
//!        │                                      │├─still there after `GO_DOWN_MS`──▶ the command was lost: as if refused;
//!        └──────────────────────────────────────┘│                                   or it does not go down: a person's
//!                                                └─not back after `reboot_return_ms`──▶ a person's
//! ```

use super::{
    effect::Command,
    event::Now,
    machine::Machine,
    rules::{self, Consent, Keeps, Others, RestartFacts},
    state::{Job, Node},
};
use crate::model::{
    Fault, JobState, LinkKind, Mode, NodeId, Restart, RestartCause, RestartOutcome, Severity, clipped,
};

/// Restarts kept on a node's record: of each of the two causes one that was made within a day, and the refusals of the boot.
pub(super) const MOST_KEPT: usize = 2 * (1 + rules::MOST_REFUSALS as usize);

/// Of an agent's sentence: a node's record has to fit a value of the ledger, 6 KiB.
pub(super) const MOST_REFUSAL_BYTES: usize = 250;

const DAY_MS: u64 = 24 * 3_600_000;

/// A machine that was told to restart and is still connected after this long does not go down: services have minutes to end.
const GO_DOWN_MS: u64 = 5 * 60_000;

/// What a machine's agent says of restarting it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum MayRestart {
    /// Nothing: it is of a version that cannot.
    #[default]
    Unknown,
    /// Its configuration does not let it.
    No,
    /// It may, and would refuse now: a sentence.
    Refuses(String),
    /// It would.
    Yes,
}

impl Node {
    /// The restart that it was told to make in this boot, if it has neither refused nor failed to go down.
    fn restart_under_way(&self) -> Option<&Restart> {
        self.restarts.last().filter(|restart| {
            restart.boot_id == self.facts.boot_id
                && matches!(restart.outcome, RestartOutcome::Asked | RestartOutcome::Missing)
        })
    }

    /// Its connection is there.
    fn is_in_session(&self) -> bool {
        self.session.is_some()
    }

    /// Why it takes no work, while it is to restart.
    pub(super) fn restart_sentence(&self) -> Option<String> {
        self.restart_under_way().map(|_| "it was told to restart, and is about to go down".to_owned())
    }

    fn refusals(&self, cause: RestartCause) -> impl Iterator<Item = &Restart> {
        let of_boot = self.restarts.iter().filter(|restart| restart.boot_id == self.facts.boot_id);
        of_boot.filter(move |restart| restart.cause == cause && restart.outcome.is_refusal())
    }

    /// Restarts within a day that were made, as far as is known here.
    fn recent_restarts(&self, now: Now) -> impl Iterator<Item = &Restart> {
        let is_recent = move |restart: &&Restart| now.unix_ms.saturating_sub(restart.asked_unix_ms) < DAY_MS;
        self.restarts.iter().filter(|restart| !restart.outcome.is_refusal()).filter(is_recent)
    }
}

impl Machine {
    pub(super) fn on_may_restart(&mut self, id: &NodeId, may_restart: MayRestart) {
        if let Some(node) = self.nodes.get_mut(id) {
            node.facts.may_restart = may_restart;
        }
    }

    /// Asks for the restarts that are due, and looks after those that were asked for.
    pub(super) fn mind_restarts(&mut self, now: Now) {
        let concerned = self.nodes.values().filter(|node| {
            node.restart_cause().is_some() || node.idle_since_mono_ms.is_some() || !node.restarts.is_empty()
        });
        let ids: Vec<NodeId> = concerned.map(|node| node.id.clone()).collect();
        for id in ids {
            self.look_after_restart(now, &id);
            if !self.policy.reboots {
                continue;
            }
            let is_idle =
                self.nodes.get(&id).is_some_and(|node| node.restart_cause().is_some()) && self.is_idle(&id);
            let Some(node) = self.nodes.get_mut(&id) else { continue };
            node.idle_since_mono_ms = is_idle.then(|| node.idle_since_mono_ms.unwrap_or(now.mono_ms));
            // What is not on record must not be asked for.
            if self.storage_problem.is_none()
                && let Some((cause, None)) = self.restart_ruling(now, &id)
            {
                self.ask_for_restart(now, &id, cause);
            }
        }
    }

    /// What a node needs a restart for, and what keeps it from one. `None` where it needs none, or is about to have it.
    pub(super) fn restart_ruling(&self, now: Now, id: &NodeId) -> Option<(RestartCause, Option<Keeps>)> {
        let node = self.nodes.get(id).filter(|node| node.restart_under_way().is_none())?;
        let cause = node.restart_cause()?;
        let last_refusal = node.refusals(cause).last().map(|refusal| refusal.asked_unix_ms);
        let facts = RestartFacts {
            consent: match node.facts.may_restart {
                MayRestart::Unknown => Consent::NotTold,
                MayRestart::No => Consent::NotAllowed,
                MayRestart::Refuses(_) => Consent::Refuses,
                MayRestart::Yes => Consent::Given,
            },
            is_drained: node.draining,
            is_same_again: node.recent_restarts(now).any(|restart| restart.cause == cause),
            refusals: u32::try_from(node.refusals(cause).count()).unwrap_or(u32::MAX),
            since_refusal_ms: last_refusal.map_or(u64::MAX, |at| now.unix_ms.saturating_sub(at)),
            is_wanted: self.would_help(node, cause),
            idle_ms: node.idle_since_mono_ms.map(|since| now.mono_ms.saturating_sub(since)),
            others: self.others_of(id),
            restarts_in_a_day: self.restarts_in_a_day(now),
        };
        Some((cause, rules::keeps_from_restart(facts, &self.policy)))
    }

    pub(super) fn restarts_in_a_day(&self, now: Now) -> u32 {
        let restarts = self.nodes.values().map(|node| node.recent_restarts(now).count()).sum::<usize>();
        u32::try_from(restarts).unwrap_or(u32::MAX)
    }

    /// The others: one that is away with work may come back with it, and one that was restarted has to come back first.
    fn others_of(&self, id: &NodeId) -> Others {
        let others = || self.nodes.values().filter(|node| node.id != *id);
        let outcome = |wanted: &RestartOutcome| {
            others().filter_map(Node::restart_under_way).any(|restart| restart.outcome == *wanted)
        };
        if outcome(&RestartOutcome::Missing) {
            Others::Missing
        } else if outcome(&RestartOutcome::Asked) {
            Others::Restarting
        } else if others().any(|node| {
            // One that was given up is waited for no longer.
            !node.is_in_session() && !node.silence.is_answered() && self.holds_something(&node.id)
        }) {
            Others::Unheard
        } else {
            Others::Heard
        }
    }

    fn is_idle(&self, id: &NodeId) -> bool {
        let is_settled = |node: &Node| {
            node.session.as_ref().is_some_and(|session| {
                session.replaying.is_none() && session.unsettled.iter().all(|result| result.settled)
            })
        };
        self.nodes.get(id).is_some_and(is_settled) && !self.holds_something(id)
    }

    /// Workers, rows, a test of a link, or launches of which a restarted controller does not know yet what became of them. Of jobs that
    /// are over, too: a worker that nobody wants any more is still one.
    fn holds_something(&self, id: &NodeId) -> bool {
        self.tries_a_link(id)
            || self.jobs.values().any(|job| {
                job.workers.contains_key(id)
                    || job.leases.values().any(|lease| lease.node == *id)
                    || (!job.record.state.is_over()
                        && job.record.launches.iter().any(|launch| launch.node == *id))
            })
    }

    /// Whether a job that may run now would have something of it.
    fn would_help(&self, node: &Node, cause: RestartCause) -> bool {
        let waits = |job: &&Job| {
            job.record.state == JobState::Active && job.closed.is_none() && job.rows_waiting() > 0
        };
        let mut waiting = self.open_jobs.iter().filter_map(|id| self.jobs.get(id)).filter(waits);
        match cause {
            RestartCause::StrandedMemory => waiting.next().is_some(),
            RestartCause::RdmaStartsUsedUp => {
                let has_rdma = |link: &crate::model::Link| {
                    link.kind == LinkKind::Rdma && link.end_at(&node.id).is_some()
                };
                self.policy.gang_rdma && self.links.iter().any(has_rdma) && waiting.any(is_sharded)
            }
        }
    }

    fn ask_for_restart(&mut self, now: Now, id: &NodeId, cause: RestartCause) {
        let command_id = self.command_id();
        let Some(node) = self.nodes.get_mut(id) else { return };
        let Some((_, reason)) = node.needs_reboot() else { return };
        // Behind the semicolon it says what a person should do.
        let reason = reason.split(';').next().unwrap_or_default().to_owned();
        let boot_id = node.facts.boot_id.clone();
        node.restarts.push(Restart {
            cause,
            boot_id: boot_id.clone(),
            asked_unix_ms: now.unix_ms,
            outcome: RestartOutcome::Asked,
        });
        if node.restarts.len() > MOST_KEPT {
            // One that was made counts for a day; a refusal of the other cause is told.
            let refusal = node.restarts.iter().position(|restart| restart.outcome.is_refusal());
            node.restarts.remove(refusal.unwrap_or(0));
        }
        node.restart_command = Some(command_id);
        node.restart_asked_mono_ms = now.mono_ms;
        node.idle_since_mono_ms = None;
        self.record_node(id);
        self.send(id, Command::RestartMachine { command_id, boot_id, cause, reason: reason.clone() });
        let action = "the machine is being restarted; nothing is planned there until it is back";
        self.redirect_need(id, action);
        self.emit(
            Severity::Warning,
            "restart-asked",
            Some(id),
            None,
            format!("{id} is being restarted: {reason}"),
        );
    }

    /// Whether this command was the one to restart that is not answered yet. It is now.
    fn is_answer_to_restart(&mut self, id: &NodeId, command_id: u64) -> bool {
        let node = self.nodes.get_mut(id).filter(|node| node.restart_command == Some(command_id));
        node.is_some_and(|node| node.restart_command.take().is_some())
    }

    /// Returns whether the command was one to restart.
    pub(super) fn on_restart_refused(&mut self, id: &NodeId, command_id: u64, problem: &str) -> bool {
        if !self.is_answer_to_restart(id, command_id) {
            return false;
        }
        let problem = clipped(problem, MOST_REFUSAL_BYTES).to_owned();
        self.end_restart(id, RestartOutcome::Refused(problem.clone()));
        self.redirect_need(id, &format!("it is not restarted by itself: {problem}"));
        let message = format!("{id} refuses to restart: {problem}");
        self.emit(Severity::Warning, "restart-refused", Some(id), None, message);
        true
    }

    /// What was to be asked could not be written down, so that nobody was asked. It is, when it can be.
    pub(super) fn on_restart_withheld(&mut self, id: &NodeId, command_id: u64) {
        if !self.is_answer_to_restart(id, command_id) {
            return;
        }
        if let Some(node) = self.nodes.get_mut(id) {
            node.restarts.pop();
        }
        self.record_node(id);
        let action = "the controller cannot write down that it is restarted, and tries again";
        self.redirect_need(id, action);
        self.emit(
            Severity::Warning,
            "restart-withheld",
            Some(id),
            None,
            format!("{id} is not restarted yet: {action}"),
        );
    }

    /// One that was told to restart and did not go down, or did not come back.
    fn look_after_restart(&mut self, now: Now, id: &NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        let Some(restart) = node.restart_under_way() else { return };
        // By the clock that nobody sets; of a restart that an earlier controller asked for, since this one began to listen.
        let since_ms = now.mono_ms.saturating_sub(node.restart_asked_mono_ms);
        let is_told = restart.outcome == RestartOutcome::Missing;
        let minutes = now.unix_ms.saturating_sub(restart.asked_unix_ms) / 60_000;
        if node.is_in_session() && since_ms >= GO_DOWN_MS {
            // Its agent has on record what it was told. One that would restart now was told nothing.
            let (outcome, what) = match node.facts.may_restart {
                MayRestart::Yes => {
                    let lost = "the command did not reach its agent";
                    (RestartOutcome::Refused(lost.to_owned()), format!("{lost}; it is tried again"))
                }
                _ => (RestartOutcome::Stays, "restart it by hand".to_owned()),
            };
            self.end_restart(id, outcome);
            let message =
                format!("{id} was told to restart {minutes} minutes ago, and is still there: {what}");
            self.redirect_need(id, &message);
            self.emit(Severity::Warning, "restart-failed", Some(id), None, message);
        } else if !node.is_in_session() && !is_told && since_ms >= self.policy.reboot_return_ms {
            self.end_restart(id, RestartOutcome::Missing);
            let message = format!(
                "{id} was told to restart {minutes} minutes ago, and has not come back: see that it has power, and whether its disk \
                 waits to be unlocked (FileVault); no other machine is restarted until it is back"
            );
            self.redirect_need(id, &message);
            self.emit(Severity::Error, "restart-missing", Some(id), None, message);
        }
    }

    fn end_restart(&mut self, id: &NodeId, outcome: RestartOutcome) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        let Some((last, before)) = node.restarts.split_last_mut() else { return };
        if outcome.is_refusal() {
            // The newest says why. Of those before it, it is enough to know how many there were.
            let refusals = before.iter_mut().filter(|restart| restart.outcome.is_refusal());
            refusals.for_each(|restart| restart.outcome = RestartOutcome::Refused(String::new()));
        }
        last.outcome = outcome;
        self.record_node(id);
    }

    /// It is back in another boot than `ended`. What was refused in that one counts no more.
    pub(super) fn note_restarted(&mut self, now: Now, id: &NodeId, ended: &str) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        node.restart_command = None;
        node.idle_since_mono_ms = None;
        let before = node.restarts.len();
        let asked = node.restarts.last().filter(|restart| restart.boot_id == ended).cloned();
        node.restarts.retain(|restart| !restart.outcome.is_refusal());
        if before != node.restarts.len() {
            self.record_node(id);
        }
        if let Some(asked) = asked.filter(|asked| !asked.outcome.is_refusal()) {
            let seconds = now.unix_ms.saturating_sub(asked.asked_unix_ms) / 1_000;
            let message =
                format!("{id} is back, {seconds} s after it was told to restart for {}", asked.cause.words());
            self.emit(Severity::Info, "restart-done", Some(id), None, message);
        }
    }

    fn redirect_need(&mut self, id: &NodeId, action: &str) {
        self.incidents.redirect(action, |incident| {
            incident.fault == Fault::NeedsReboot && incident.node.as_ref() == Some(id)
        });
    }

    /// What keeps a node from being restarted by itself, in a sentence.
    pub(super) fn keeps_sentence(&self, now: Now, node: &Node, keeps: Keeps) -> String {
        match keeps {
            Keeps::Off => "restarts are off in the controller's configuration (reboots.enabled)".to_owned(),
            Keeps::NotTold => {
                "its agent does not say that it may; install the same Nightshift there and allow it"
                    .to_owned()
            }
            Keeps::NotAllowed => {
                "its agent is not allowed to ([reboot] allow = true in the configuration there)".to_owned()
            }
            Keeps::Drained => {
                format!("somebody drained it and may be at it; `clusterctl undrain {}`", node.id)
            }
            Keeps::SameAgain
                if node.restarts.last().is_some_and(|last| last.outcome == RestartOutcome::Stays) =>
            {
                "it was told to restart, and did not go down; restart it by hand".to_owned()
            }
            Keeps::SameAgain => {
                "it was restarted for the same within a day, and that did not last: somebody has to look"
                    .to_owned()
            }
            Keeps::Refused | Keeps::RefusedLately => {
                let last = node.restarts.iter().rev().find_map(|restart| restart.outcome.refusal());
                let last = last.unwrap_or("for no reason that is known");
                if keeps == Keeps::Refused {
                    format!(
                        "it was refused {} times, and is not tried again; the last time: {last}",
                        rules::MOST_REFUSALS
                    )
                } else {
                    format!(
                        "it was refused, and is tried again within {} minutes: {last}",
                        rules::REFUSAL_PAUSE_MS / 60_000
                    )
                }
            }
            Keeps::WouldRefuse => match &node.facts.may_restart {
                MayRestart::Refuses(problem) => problem.clone(),
                _ => "its agent would refuse".to_owned(),
            },
            Keeps::NotWanted => match node.restart_cause() {
                Some(RestartCause::RdmaStartsUsedUp) => {
                    "no job waits that would use RDMA there now".to_owned()
                }
                _ => "no job waits that may run now".to_owned(),
            },
            Keeps::Busy if !node.is_in_session() => "it is not connected".to_owned(),
            Keeps::Busy => "something is at work there, or on its way from there".to_owned(),
            Keeps::OtherMissing => "another machine was restarted and has not come back".to_owned(),
            Keeps::OtherRestarting => "another machine is being restarted, and they go one by one".to_owned(),
            Keeps::OtherUnheard => "a node that has work is not heard".to_owned(),
            Keeps::TooMany => format!(
                "{} restarts within a day are as many as there may be (reboots.per_day)",
                self.restarts_in_a_day(now)
            ),
            Keeps::Settling => format!(
                "it has to be idle for {} s first (reboots.settle_ms)",
                self.policy.reboot_settle_ms.div_ceil(1_000)
            ),
        }
    }
}

/// Whether it runs, or is to run, as a gang.
fn is_sharded(job: &Job) -> bool {
    let asked = job.record.spec.mode.is_some_and(|mode| mode != Mode::Independent);
    asked || job.plan.as_ref().is_some_and(|plan| plan.mode != Mode::Independent)
}
