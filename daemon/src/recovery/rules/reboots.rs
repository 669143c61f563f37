//! The table for machines that need a restart: whether one is asked for, and what keeps it from being asked for.
//!
//! A restart is the last thing that helps and the dearest mistake, so that the table says no to whatever is not clearly yes. It is
//! worth it where a job waits that may run now and the machine does nothing: memory that is lost keeps every model from it. RDMA
//! starts that are used up only make gangs slower, and a gang that runs over TCP is not stopped for them: such a machine is
//! restarted only when nothing runs on it anyway while a job is there that would use RDMA.

use super::Policy;

/// So often an agent may refuse, for one cause in one boot, before a person is needed.
pub const MOST_REFUSALS: u32 = 3;

/// After a refusal: what an agent refuses for seldom changes within minutes.
pub const REFUSAL_PAUSE_MS: u64 = 10 * 60_000;

/// What is known of a machine that needs a restart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RestartFacts {
    /// What its agent says.
    pub consent: Consent,
    /// A person told it to take no work: somebody may be at it.
    pub is_drained: bool,
    /// It was restarted for the same cause within a day.
    pub is_same_again: bool,
    /// Of its agent, for this cause, in this boot.
    pub refusals: u32,
    /// Since the last of them.
    pub since_refusal_ms: u64,
    /// A job is there that may run now, and that the restart would help.
    pub is_wanted: bool,
    /// Since when it has been connected without a worker, a row or a result under way; `None` while it is not so.
    pub idle_ms: Option<u64>,
    /// How the others are.
    pub others: Others,
    /// Restarts of machines of this cluster within a day.
    pub restarts_in_a_day: u32,
}

/// Whether an agent would restart its machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Consent {
    /// It has not said, or is of a version that cannot.
    NotTold,
    /// Its configuration does not let it.
    NotAllowed,
    /// It may, and would refuse now.
    Refuses,
    /// It would.
    Given,
}

/// The other nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Others {
    /// Those that have work are heard.
    Heard,
    /// One that has work is not: its job is in the air.
    Unheard,
    /// One is being restarted.
    Restarting,
    /// One was restarted and has not come back.
    Missing,
}

/// What keeps a machine from being restarted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keeps {
    /// The controller's configuration.
    Off,
    /// Its agent, which does not say that it may.
    NotTold,
    /// Its agent's configuration.
    NotAllowed,
    /// Somebody drained it.
    Drained,
    /// A restart did not help.
    SameAgain,
    /// Its agent refused too often.
    Refused,
    /// Its agent would refuse.
    WouldRefuse,
    /// No job would have anything of it now.
    NotWanted,
    /// Something is at work there.
    Busy,
    /// Another one did not come back.
    OtherMissing,
    /// Another one is being restarted.
    OtherRestarting,
    /// Another one that has work is not heard.
    OtherUnheard,
    /// There were as many as there may be.
    TooMany,
    /// Its agent has refused a moment ago.
    RefusedLately,
    /// It has been idle for a moment only: what the system is slow to give back may still come.
    Settling,
}

/// The table. Read from the top; the first line that fits holds. `None`: a restart is asked for.
#[must_use]
pub fn keeps_from_restart(facts: RestartFacts, policy: &Policy) -> Option<Keeps> {
    let keeps = match facts {
        _ if !policy.reboots => Keeps::Off,
        RestartFacts { consent: Consent::NotTold, .. } => Keeps::NotTold,
        RestartFacts { consent: Consent::NotAllowed, .. } => Keeps::NotAllowed,
        RestartFacts { is_drained: true, .. } => Keeps::Drained,
        RestartFacts { is_same_again: true, .. } => Keeps::SameAgain,
        RestartFacts { refusals, .. } if refusals >= MOST_REFUSALS => Keeps::Refused,
        RestartFacts { consent: Consent::Refuses, .. } => Keeps::WouldRefuse,
        RestartFacts { is_wanted: false, .. } => Keeps::NotWanted,
        RestartFacts { idle_ms: None, .. } => Keeps::Busy,
        RestartFacts { others: Others::Missing, .. } => Keeps::OtherMissing,
        RestartFacts { others: Others::Restarting, .. } => Keeps::OtherRestarting,
        RestartFacts { others: Others::Unheard, .. } => Keeps::OtherUnheard,
        RestartFacts { restarts_in_a_day, .. } if restarts_in_a_day >= policy.reboots_per_day => {
            Keeps::TooMany
        }
        RestartFacts { refusals: 1.., since_refusal_ms, .. } if since_refusal_ms < REFUSAL_PAUSE_MS => {
            Keeps::RefusedLately
        }
        RestartFacts { idle_ms: Some(idle_ms), .. } if idle_ms < policy.reboot_settle_ms => Keeps::Settling,
        RestartFacts { consent: Consent::Given, idle_ms: Some(_), others: Others::Heard, .. } => return None,
    };
    Some(keeps)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything says yes.
    const YES: RestartFacts = RestartFacts {
        consent: Consent::Given,
        is_drained: false,
        is_same_again: false,
        refusals: 0,
        since_refusal_ms: 0,
        is_wanted: true,
        idle_ms: Some(120_000),
        others: Others::Heard,
        restarts_in_a_day: 1,
    };

    #[test]
    fn the_table_of_restarts() {
        let policy = Policy { reboots: true, ..Policy::default() };
        assert_eq!((policy.reboot_settle_ms, policy.reboots_per_day), (120_000, 2));
        let rows = [
            (YES, None),
            (RestartFacts { consent: Consent::NotAllowed, ..YES }, Some(Keeps::NotAllowed)),
            (RestartFacts { is_drained: true, ..YES }, Some(Keeps::Drained)),
            (RestartFacts { is_same_again: true, ..YES }, Some(Keeps::SameAgain)),
            (RestartFacts { refusals: 3, since_refusal_ms: u64::MAX, ..YES }, Some(Keeps::Refused)),
            (RestartFacts { refusals: 2, since_refusal_ms: 600_000, ..YES }, None),
            (RestartFacts { refusals: 2, since_refusal_ms: 599_999, ..YES }, Some(Keeps::RefusedLately)),
            (RestartFacts { refusals: 1, since_refusal_ms: 599_999, ..YES }, Some(Keeps::RefusedLately)),
            (RestartFacts { consent: Consent::Refuses, ..YES }, Some(Keeps::WouldRefuse)),
            (RestartFacts { is_wanted: false, ..YES }, Some(Keeps::NotWanted)),
            (RestartFacts { idle_ms: None, ..YES }, Some(Keeps::Busy)),
            (RestartFacts { idle_ms: Some(0), ..YES }, Some(Keeps::Settling)),
            (RestartFacts { idle_ms: Some(119_999), ..YES }, Some(Keeps::Settling)),
            (RestartFacts { others: Others::Missing, ..YES }, Some(Keeps::OtherMissing)),
            (RestartFacts { others: Others::Restarting, ..YES }, Some(Keeps::OtherRestarting)),
            (RestartFacts { others: Others::Unheard, ..YES }, Some(Keeps::OtherUnheard)),
            (RestartFacts { restarts_in_a_day: 2, ..YES }, Some(Keeps::TooMany)),
            (RestartFacts { restarts_in_a_day: u32::MAX, ..YES }, Some(Keeps::TooMany)),
            // What only a person can change is told before what changes by itself.
            (RestartFacts { is_same_again: true, idle_ms: None, ..YES }, Some(Keeps::SameAgain)),
            (RestartFacts { consent: Consent::NotAllowed, refusals: 3, ..YES }, Some(Keeps::NotAllowed)),
            (RestartFacts { consent: Consent::Refuses, is_wanted: false, ..YES }, Some(Keeps::WouldRefuse)),
        ];
        for (facts, expected) in rows {
            assert_eq!(keeps_from_restart(facts, &policy), expected, "{facts:?}");
        }
    }

    #[test]
    fn by_default_nothing_is_restarted() {
        assert_eq!(keeps_from_restart(YES, &Policy::default()), Some(Keeps::Off));
    }
}
