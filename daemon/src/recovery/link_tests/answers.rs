//! What the two ends of a test tell, and what follows from it for the link.

use super::{
    ANSWER_LIMIT_MS, MOST_NOT_MADE, Running, SLOW_PERCENT, evidence_of,
    standing::{Standing, under_which},
};
use crate::{
    model::{Epoch, Fault, JobId, LinkName, LinkPace, NodeId, Severity},
    recovery::{
        event::{LinkTestResult, Now, SessionId},
        incidents::Opening,
        ladder::span,
        machine::Machine,
    },
};

/// After a test that could not be made. What is in the way is another test, or a runtime that is being looked at.
const PAUSE_MS: u64 = 5_000;

/// And how often one is made even so: what was in the way may be gone.
const LONG_PAUSE_MS: u64 = 10 * 60_000;

/// After tests with which a machine went down: it happens twice more in a night at the most.
const FATAL_PAUSE_MS: u64 = 3 * 3_600_000;

impl Machine {
    /// A node tells how a test ended there. Returns whether that was the last word of it.
    pub(in crate::recovery) fn on_link_tested(
        &mut self,
        now: Now,
        node: &NodeId,
        session: SessionId,
        request_id: u64,
        result: LinkTestResult,
    ) -> bool {
        let Some(test) = self.link_tests.running.get_mut(&request_id) else { return false };
        let Some(end) = [&test.name.a, &test.name.b].into_iter().position(|of| of == node) else {
            return false;
        };
        if test.sessions[end] != session {
            return false;
        }
        test.results[end] = Some(result);
        let [Some(of_a), Some(of_b)] = test.results.clone() else { return false };
        let Some(test) = self.link_tests.running.remove(&request_id) else { return false };
        match verdict(&test.name, of_a, of_b) {
            LinkTestResult::Passed(pace) => {
                self.note_survived(&test.name);
                self.on_link_passed(now, &test.name, test.under, Some(pace));
            }
            LinkTestResult::Failed(why) => {
                self.note_survived(&test.name);
                self.on_link_failed(now, &test.name, why);
            }
            LinkTestResult::NotMade(why) => self.on_link_not_tried(now, &test.name, why),
        }
        self.mind_link_tests(now);
        true
    }

    /// All ranks of a launch are ready, so that its links have carried the known sums.
    pub(in crate::recovery) fn note_links_of_gang(&mut self, now: Now, job: JobId, epoch: Epoch) {
        let names = self.gang_mut(job, epoch).map(|gang| gang.computes_over()).unwrap_or_default();
        for name in names {
            if let Some((a, b)) = self.nodes.get(&name.a).zip(self.nodes.get(&name.b)) {
                let under = under_which(a, b);
                self.on_link_passed(now, &name, under, None);
            }
        }
        self.mind_link_tests(now);
    }

    fn on_link_passed(&mut self, now: Now, name: &LinkName, under: u32, pace: Option<LinkPace>) {
        self.link_tests.asked_for.remove(name);
        let Some(standing) = self.standing_mut(name) else { return };
        let was_known = standing.record.passed_in == Some(under) && !standing.record.doubted;
        let had_failed = standing.failed.take().is_some();
        standing.not_made = 0;
        standing.obstacle = None;
        let record = &mut standing.record;
        record.passed_in = Some(under);
        record.doubted = false;
        record.went_down = 0;
        let best = record.best;
        if pace.is_some() || !was_known {
            // A gang that stands has measured nothing, and what was measured was in another boot or before a fault.
            record.pace = pace;
        }
        if let Some(pace) = pace {
            record.best = Some(best.map_or(pace, |best| best.better_of(pace)));
        }
        if was_known && pace.is_none() {
            return;
        }
        record.tried_unix_ms = now.unix_ms;
        self.record_node(&name.a);
        // A plan may use it again.
        self.links_version += u64::from(had_failed);
        let evidence = evidence_of(name);
        self.incidents.close(now, "the link has passed its test", |incident| {
            incident.fault == Fault::LinkUnproven && incident.evidence.first() == Some(&evidence)
        });
        let Some(pace) = pace else { return };
        let message = format!("{name} has passed its test: {pace}");
        match best.filter(|best| best.is_much_better_than(pace, SLOW_PERCENT)) {
            Some(best) => {
                let message =
                    format!("{message}; it was once {best}: look at the cable and at what else uses it");
                self.emit(Severity::Warning, "link-slow", Some(&name.a), None, message);
            }
            None => self.emit(Severity::Info, "link-passed", Some(&name.a), None, message),
        }
    }

    /// Machines at its ends went down in so many tests like this one.
    pub(super) fn on_link_fatal(&mut self, now: Now, name: &LinkName, times: u8) {
        let Some(standing) = self.standing_mut(name) else { return };
        standing.answered_for = times;
        standing.not_before_mono_ms = now.mono_ms + FATAL_PAUSE_MS;
        let why =
            format!("a machine at one of its ends went down in each of the last {times} tests of this kind");
        self.on_link_failed(now, name, why);
    }

    fn on_link_failed(&mut self, now: Now, name: &LinkName, why: String) {
        self.link_tests.is_calm = false;
        let Some(standing) = self.standing_mut(name) else { return };
        standing.failed = Some(why.clone());
        standing.not_made = 0;
        standing.obstacle = None;
        standing.record.doubted = true;
        standing.record.passed_in = None;
        standing.record.tried_unix_ms = now.unix_ms;
        self.links_version += 1;
        self.record_node(&name.a);
        self.hold_against(now, name);
        self.settle_links(now);
        let paused_ms = self.standing_mut(name).map_or(0, |standing| standing.not_before_mono_ms);
        let again = span(self.settles_in_ms(now, name).max(paused_ms.saturating_sub(now.mono_ms)));
        let summary = format!("{name} did not pass its test: {why}");
        let action = format!("no job runs over it before it has passed; it is tried again in {again}");
        self.emit(
            Severity::Warning,
            Fault::LinkUnproven.word(),
            Some(&name.a),
            None,
            format!("{summary}; {action}"),
        );
        let opening = Opening {
            node: Some(name.a.clone()),
            summary,
            action,
            evidence: vec![evidence_of(name), why],
            ..Opening::default()
        };
        self.incidents.open(now, Fault::LinkUnproven, opening);
    }

    /// Both machines are there to tell how a test ended.
    fn note_survived(&mut self, name: &LinkName) {
        if let Some(standing) = self.standing_mut(name) {
            standing.end_under_way();
            standing.forgive();
        }
    }

    fn on_link_not_tried(&mut self, now: Now, name: &LinkName, why: String) {
        if self.standing_mut(name).is_some_and(Standing::end_under_way) {
            self.record_node(&name.a);
        }
        let Some(standing) = self.standing_mut(name) else { return };
        standing.not_made = standing.not_made.saturating_add(1);
        let is_given_up = standing.not_made >= MOST_NOT_MADE;
        let is_news = standing.not_made == MOST_NOT_MADE;
        standing.not_before_mono_ms = now.mono_ms + if is_given_up { LONG_PAUSE_MS } else { PAUSE_MS };
        standing.obstacle = Some(why.clone());
        let has_failed = standing.failed.is_some();
        if is_news {
            let what = if has_failed {
                "it did not pass before, and no job runs over it until it does"
            } else {
                "jobs do not wait for that any more, and the next gang over it is its test"
            };
            let message = format!("{name} could not be tried {MOST_NOT_MADE} times in a row ({why}): {what}");
            self.emit(Severity::Warning, "link-not-tried", Some(&name.a), None, message);
        }
    }

    /// Those whose answers are lost, or do not come.
    pub(super) fn give_up_link_tests(&mut self, now: Now) {
        let is_lost = |test: &Running| {
            let session =
                |id: &NodeId| self.nodes.get(id).and_then(|node| node.session.as_ref()).map(|of| of.id);
            [&test.name.a, &test.name.b].map(session) != test.sessions.map(Some)
        };
        let is_late = |test: &Running| now.mono_ms >= test.since_mono_ms + ANSWER_LIMIT_MS;
        let over: Vec<(u64, bool)> = self
            .link_tests
            .running
            .iter()
            .filter(|(_, test)| is_lost(test) || is_late(test))
            .map(|(id, test)| (*id, is_lost(test)))
            .collect();
        for (request_id, is_lost) in over {
            let Some(test) = self.link_tests.running.remove(&request_id) else { continue };
            let ends = [&test.name.a, &test.name.b];
            if is_lost {
                // It is tried anew when the node is back. Whether the test has taken its machine down is known then.
                let is_gone = |(at, id): &(usize, &NodeId)| {
                    let session = self.nodes.get(*id).and_then(|node| node.session.as_ref());
                    session.map(|session| session.id) != Some(test.sessions[*at])
                };
                let gone = ends.into_iter().enumerate().filter(is_gone).map(|(_, id)| id.clone()).collect();
                if let Some(standing) = self.standing_mut(&test.name) {
                    standing.not_before_mono_ms = now.mono_ms + PAUSE_MS;
                    standing.unheard = gone;
                }
            } else {
                let silent = ends.into_iter().zip(&test.results).filter(|(_, result)| result.is_none());
                let who: Vec<&str> = silent.map(|(node, _)| node.as_str()).collect();
                let (who, seconds) = (who.join(" and "), ANSWER_LIMIT_MS / 1_000);
                self.on_link_not_tried(now, &test.name, format!("{who} did not answer within {seconds} s"));
            }
        }
    }
}

/// What both ends say together. That one could not try says that the other tried alone.
fn verdict(name: &LinkName, of_a: LinkTestResult, of_b: LinkTestResult) -> LinkTestResult {
    use LinkTestResult::{Failed, NotMade, Passed};
    let at = |node: &NodeId, why: String| format!("{node}: {why}");
    match (of_a, of_b) {
        (NotMade(why), _) => NotMade(at(&name.a, why)),
        (_, NotMade(why)) => NotMade(at(&name.b, why)),
        (Failed(a), Failed(b)) if a == b => Failed(a),
        (Failed(a), Failed(b)) => Failed(format!("{}; {}", at(&name.a, a), at(&name.b, b))),
        (Failed(why), Passed(_)) => Failed(at(&name.a, why)),
        (Passed(_), Failed(why)) => Failed(at(&name.b, why)),
        (Passed(a), Passed(b)) => Passed(a.worse_of(b)),
    }
}
