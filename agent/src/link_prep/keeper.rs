//! Keeps the ports of this cluster prepared, or says what they lack, as the policy says.
//!
//! It looks when something about the ports has changed and every half minute besides, on a thread that may block; a port the bridge
//! takes after a restart is so taken back within seconds, without anybody being there.

use std::{
    fs::{self, TryLockError},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    held::{self, Held},
    known,
    pace::{Looked, Pace},
    plan::{Plan, Step, Wanted},
    run::{Journal, prepare, propose, wanted},
};
use crate::{
    probe::{
        self, Interface, Observation,
        mac::tools::Tools,
        observation::{Thunderbolt, ThunderboltPort},
    },
    util,
};

/// What may be done to ports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Nothing, and nothing is said of what they lack.
    Observe,
    /// What they lack is said, with the commands; a person runs them.
    #[default]
    Suggest,
    /// The commands are run.
    Apply,
}

/// How the ports are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// Ports of this cluster with a cable, but those that are held.
    pub ports: usize,
    /// Interfaces of ports that a person has reset by hand: they are left as they are.
    pub held: Vec<String>,
    /// What they lack, as commands. Of [`Policy::Apply`] none, unless it went wrong.
    pub lacks: Vec<String>,
    /// Ports that are left as they are, and why.
    pub refused: Vec<String>,
    /// Why it could not be seen or done.
    pub problem: Option<String>,
    /// It is not tried again until something changes.
    pub given_up: bool,
}

/// What it needs.
#[derive(Debug)]
pub struct Options {
    /// What may be done.
    pub policy: Policy,
    /// Of the system.
    pub tools: Tools,
    /// Where the journal is.
    pub state_dir: PathBuf,
    /// Whether changing the network is this process's to do.
    pub may_change: bool,
    /// The buses of this cluster.
    pub known: watch::Receiver<Vec<String>>,
    /// Has the ports.
    pub probe: probe::watch::Handle,
}

/// What a look rests on.
#[derive(Debug, Clone, PartialEq)]
struct Basis {
    thunderbolt: Thunderbolt,
    interfaces: Vec<Interface>,
    wanted: Vec<Wanted>,
    /// What the file of held ports says, as it is.
    held: Option<Vec<u8>>,
}

impl Basis {
    fn of(seen: &Observation, known: &[String], held: Option<Vec<u8>>) -> Option<Self> {
        let thunderbolt = seen.thunderbolt.clone()?;
        let mut wanted = wanted(&thunderbolt, |uuid| known.iter().any(|known| known == uuid));
        wanted.retain(|port| !has_network_of_its_own(seen, &thunderbolt, port));
        let is_port = |interface: &&Interface| {
            thunderbolt.ports.iter().any(|port| {
                [&port.interface, &port.bridge].into_iter().flatten().any(|name| *name == interface.name)
            })
        };
        let interfaces = seen.interfaces.iter().filter(is_port).cloned().collect();
        Some(Self { thunderbolt, interfaces, wanted, held })
    }
}

/// Whether somebody has given the port a network already: it is theirs, and works or is told of by the cable's flaws.
fn has_network_of_its_own(seen: &Observation, thunderbolt: &Thunderbolt, port: &Wanted) -> bool {
    let taken = |of: &ThunderboltPort| of.interface.as_ref() == Some(&port.interface) && of.bridge.is_some();
    let interface = seen.interfaces.iter().find(|interface| interface.name == port.interface && interface.up);
    let addresses = interface.into_iter().flat_map(|interface| &interface.addresses);
    let mut foreign = addresses
        .filter_map(|address| address.split('/').next()?.parse::<Ipv4Addr>().ok())
        .filter(|address| !address.is_link_local() && *address != port.address);
    !thunderbolt.ports.iter().any(taken) && foreign.next().is_some()
}

/// Starts it, until `stop`.
#[must_use]
pub fn run(options: Options, stop: CancellationToken) -> watch::Receiver<Arc<State>> {
    let (publish, state) = watch::channel(Arc::default());
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = keep(options, &publish) => {}
        }
    });
    state
}

async fn keep(options: Options, publish: &watch::Sender<Arc<State>>) {
    let Options { policy, mut tools, state_dir, may_change, mut known, probe } = options;
    let mut observations = probe.subscribe();
    let mut pace = Pace::default();
    let mut saved = known.borrow().clone();
    let mut held_before = None;
    loop {
        let now = Instant::now();
        let told = known.borrow_and_update().clone();
        let seen = Arc::clone(&observations.borrow_and_update());
        if told != saved {
            saved.clone_from(&told);
            save(&state_dir, told.clone()).await;
        }
        let held = tokio::fs::read(held::path(&state_dir)).await.ok();
        heed(&mut pace, &mut held_before, &held);
        let basis = Basis::of(&seen, &told, held).filter(|basis| !basis.wanted.is_empty());
        let is_cabled = basis.is_some() && policy != Policy::Observe;
        let mut due = None;
        match basis {
            None => {
                tell(publish, State::default());
            }
            Some(_) if policy == Policy::Observe => {}
            Some(basis) => {
                due = pace.due(now, &basis);
                if due.is_some_and(|due| due <= now) {
                    let cabled = basis.wanted.len();
                    let job = Job {
                        policy,
                        state_dir: state_dir.clone(),
                        may_change,
                        seen,
                        wanted: basis.wanted.clone(),
                    };
                    let done = tokio::task::spawn_blocking(move || {
                        let outcome = job.run(&mut tools);
                        (tools, outcome)
                    });
                    let Ok((given_back, outcome)) = done.await else { return };
                    tools = given_back;
                    let how = match (&outcome.problem, outcome.changed) {
                        (Some(_), _) => Looked::Failed,
                        (None, true) => Looked::Changed,
                        (None, false) => Looked::Fine,
                    };
                    pace.looked(Instant::now(), basis, how);
                    let fight = pace.fights_until(Instant::now()).map(|_| FIGHT.to_owned());
                    if outcome.changed {
                        probe.look_soon();
                    }
                    let state = outcome.state();
                    let problem = state.problem.clone().or(fight);
                    let ports = cabled - state.held.len();
                    let state = State { ports, given_up: pace.has_given_up(), problem, ..state };
                    tell(publish, state);
                    continue;
                }
            }
        }
        tokio::select! {
            changed = observations.changed() => if changed.is_err() { return },
            // No more can be told once the session is gone, and what is known stays.
            Ok(()) = known.changed() => {}
            () = sleep_until(due) => {}
            () = tokio::time::sleep(HELD_POLL), if is_cabled => {}
        }
    }
}

/// A person has held or released ports since `before`, who may have ended what was fought over, and waits to see what comes of it.
fn heed(pace: &mut Pace<Basis>, before: &mut Option<Vec<u8>>, held: &Option<Vec<u8>>) {
    if before != held {
        pace.forget_fight();
        before.clone_from(held);
    }
}

/// What is as it was wakes nobody.
fn tell(publish: &watch::Sender<Arc<State>>, state: State) {
    publish.send_if_modified(|before| {
        let differs = **before != state;
        *before = Arc::new(state);
        differs
    });
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

async fn save(state_dir: &Path, known: Vec<String>) {
    let path = known::path(state_dir);
    let saved = tokio::task::spawn_blocking(move || known::save(&path, &known)).await;
    if let Ok(Err(error)) = saved {
        tracing::warn!(%error, "which ports are this cluster's cannot be kept: after a restart the controller must tell first");
    }
}

/// What is said of ports that do not stay as they are made.
const FIGHT: &str = "something else on this machine takes back what is prepared, again and again; it is left to it for ten minutes";

/// One look, with what it needs.
#[derive(Debug)]
struct Job {
    policy: Policy,
    state_dir: PathBuf,
    may_change: bool,
    seen: Arc<Observation>,
    wanted: Vec<Wanted>,
}

#[derive(Debug, Default)]
struct Outcome {
    lacks: Vec<String>,
    refused: Vec<String>,
    held: Vec<String>,
    problem: Option<String>,
    changed: bool,
}

impl Outcome {
    fn failed(problem: String) -> Self {
        Self { problem: Some(problem), ..Self::default() }
    }

    fn state(self) -> State {
        let Self { lacks, refused, held, problem, changed: _ } = self;
        State { lacks, refused, held, problem, ..State::default() }
    }
}

impl Job {
    fn run(&self, tools: &mut Tools) -> Outcome {
        let exo = self.seen.preflight.as_ref().is_some_and(|preflight| preflight.exo_daemon == Some(true));
        if exo {
            // It undoes what is done; the check of its own says what to do about it.
            return Outcome::default();
        }
        let outcome = match self.policy {
            Policy::Observe => Ok(Outcome::default()),
            Policy::Apply if self.may_change => lock(&self.state_dir).and_then(|_lock| self.apply(tools)),
            Policy::Suggest | Policy::Apply => self.propose(tools),
        };
        outcome.unwrap_or_else(Outcome::failed)
    }

    fn apply(&self, tools: &mut Tools) -> Result<Outcome, String> {
        // Under the lock: a person who holds a port now waits for it, and what was held before is seen.
        let (held, wanted) = self.without_held()?;
        let journal = Journal::open(&self.state_dir.join(JOURNAL), self.seen.boot_id.as_deref());
        let prepared = journal.and_then(|mut journal| prepare(tools, &mut journal, &wanted));
        Ok(match prepared {
            Ok(Plan { steps, refused }) => {
                Outcome { refused, held, changed: !steps.is_empty(), ..Outcome::default() }
            }
            Err(error) => Outcome { held, ..Outcome::failed(util::chain(&error)) },
        })
    }

    fn propose(&self, tools: &mut Tools) -> Result<Outcome, String> {
        let (held, wanted) = self.without_held()?;
        Ok(match propose(tools, &wanted) {
            Ok(Plan { steps, refused }) => {
                let lacks = steps.iter().map(Step::command_line).collect();
                Outcome { lacks, refused, held, ..Outcome::default() }
            }
            Err(error) => Outcome { held, ..Outcome::failed(util::chain(&error)) },
        })
    }

    /// The interfaces of ports that are held, and the ports that are not.
    fn without_held(&self) -> Result<(Vec<String>, Vec<Wanted>), String> {
        let held = Held::open(&held::path(&self.state_dir)).map_err(|error| util::chain(&error))?;
        let is_held = |port: &Wanted| held.holds(&port.interface, self.seen.thunderbolt.as_ref());
        let (held, free): (Vec<_>, Vec<_>) = self.wanted.iter().cloned().partition(is_held);
        Ok((held.into_iter().map(|port| port.interface).collect(), free))
    }
}

/// A person who resets or prepares ports by hand sees in `doctor` what came of it while still looking there; nothing tells of the
/// file.
const HELD_POLL: Duration = Duration::from_secs(1);

/// What was changed in this boot, in the state directory.
pub const JOURNAL: &str = "link-prep.json";

/// A second in all: a process that is being started holds the lock of the one that starts it for a moment longer.
const LOCK_TRIES: u32 = 20;

/// Between two tries for the lock.
const LOCK_WAIT: Duration = Duration::from_millis(50);

/// Held while ports are changed: two at once would not know of one another's changes.
///
/// # Errors
/// One sentence.
pub fn lock(state_dir: &Path) -> Result<fs::File, String> {
    let path = state_dir.join("link-prep.lock");
    let file = fs::File::create(&path).map_err(|error| format!("cannot make {}: {error}", path.display()))?;
    let mut tries_left = LOCK_TRIES;
    while let Err(error) = file.try_lock() {
        tries_left -= 1;
        if tries_left == 0 {
            return Err(match error {
                TryLockError::WouldBlock => "another `cluster-agent` is at work on the ports".to_owned(),
                TryLockError::Error(error) => format!("cannot lock {}: {error}", path.display()),
            });
        }
        thread::sleep(LOCK_WAIT);
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        link_prep::{
            run::reset,
            tests::{Machine, port},
        },
        probe::observation::Preflight,
    };

    fn job(machine: &Machine, policy: Policy, may_change: bool) -> Job {
        let seen = Observation { boot_id: Some("boot-1".to_owned()), ..Observation::default() };
        let state_dir = machine.path().to_owned();
        Job { policy, state_dir, may_change, seen: Arc::new(seen), wanted: port() }
    }

    fn look(machine: &mut Machine, policy: Policy, may_change: bool) -> Outcome {
        job(machine, policy, may_change).run(&mut machine.tools)
    }

    #[test]
    fn each_policy_does_what_it_says_and_no_more() {
        let mut machine = Machine::new();
        let observed = look(&mut machine, Policy::Observe, true);
        assert!(observed.lacks.is_empty() && observed.problem.is_none());
        for (policy, may_change) in [(Policy::Suggest, true), (Policy::Apply, false)] {
            let suggested = look(&mut machine, policy, may_change);
            assert_eq!(
                suggested.lacks.first().map(String::as_str),
                Some("sudo ifconfig bridge0 deletem en6")
            );
            assert!(!suggested.changed && suggested.problem.is_none());
        }
        assert_eq!(machine.calls(), [""; 0], "nothing was changed so far");
        let applied = look(&mut machine, Policy::Apply, true);
        assert!(applied.changed && applied.lacks.is_empty(), "{applied:?}");
        assert_eq!(machine.calls()[0], "ifconfig bridge0 deletem en6");
        let again = look(&mut machine, Policy::Apply, true);
        assert!(!again.changed && again.problem.is_none(), "{again:?}");
        assert!(look(&mut machine, Policy::Suggest, true).lacks.is_empty());
        let journal = Journal::open(&machine.path().join(JOURNAL), Some("boot-1")).unwrap();
        assert!(!journal.done().is_empty(), "and it can be taken back");
    }

    #[test]
    fn what_goes_wrong_is_said_and_nothing_is_done_beside_somebody_else() {
        let mut machine = Machine::new();
        fs::write(machine.path().join("refuses"), "").unwrap();
        let refused = look(&mut machine, Policy::Apply, true);
        assert!(
            refused.problem.as_ref().unwrap().contains("`sudo ifconfig bridge0 deletem en6` failed"),
            "{refused:?}"
        );
        fs::remove_file(machine.path().join("refuses")).unwrap();
        let held = lock(machine.path()).unwrap();
        let beside = look(&mut machine, Policy::Apply, true);
        assert_eq!(beside.problem.as_deref(), Some("another `cluster-agent` is at work on the ports"));
        drop(held);
        let mut beside_exo = job(&machine, Policy::Apply, true);
        let preflight = Preflight { exo_daemon: Some(true), ..Preflight::default() };
        beside_exo.seen = Arc::new(Observation { preflight: Some(preflight), ..Observation::default() });
        let calls = machine.calls();
        let outcome = beside_exo.run(&mut machine.tools);
        assert!(!outcome.changed && outcome.problem.is_none());
        assert_eq!(machine.calls(), calls);
    }

    #[test]
    fn a_port_that_a_person_has_reset_is_left_as_it_is_until_it_is_released() {
        let mut machine = Machine::new();
        assert!(look(&mut machine, Policy::Apply, true).changed);
        let mut held = Held::open(&held::path(machine.path())).unwrap();
        held.hold(["en6"], None).unwrap();
        let mut journal = Journal::open(&machine.path().join(JOURNAL), Some("boot-1")).unwrap();
        reset(&mut machine.tools, &mut journal).unwrap();
        let calls = machine.calls();
        for policy in [Policy::Apply, Policy::Suggest] {
            let outcome = look(&mut machine, policy, true);
            assert_eq!((outcome.changed, outcome.lacks.len(), outcome.problem.as_ref()), (false, 0, None));
            assert_eq!(outcome.state().held, ["en6"]);
        }
        assert_eq!(machine.calls(), calls);
        held.release(["en6"], None).unwrap();
        let outcome = look(&mut machine, Policy::Apply, true);
        assert!(outcome.changed && outcome.held.is_empty(), "{outcome:?}");
        // Nobody knows what it says, and nothing is done against it.
        fs::write(held::path(machine.path()), "torn").unwrap();
        let outcome = look(&mut machine, Policy::Apply, true);
        assert!(outcome.problem.unwrap().contains("link-held.json cannot be read"));
    }

    #[test]
    fn a_port_with_a_network_of_somebody_elses_is_left_to_them() {
        let port = &port()[0];
        let of = |up, addresses: &[&str], bridge: Option<&str>| {
            let interface = Interface {
                name: port.interface.clone(),
                up,
                addresses: addresses.iter().map(ToString::to_string).collect(),
                ..Interface::default()
            };
            let interfaces = vec![interface];
            let own = ThunderboltPort {
                interface: Some(port.interface.clone()),
                bridge: bridge.map(str::to_owned),
                ..ThunderboltPort::default()
            };
            let thunderbolt = Thunderbolt { ports: vec![own], ..Thunderbolt::default() };
            has_network_of_its_own(&Observation { interfaces, ..Observation::default() }, &thunderbolt, port)
        };
        assert!(of(true, &["fe80::1/64", "10.99.0.1/30"], None));
        assert!(!of(true, &["fe80::1/64", "169.254.7.7/16"], None), "what a system gives itself is none");
        assert!(!of(true, &[&format!("{}/30", port.address)], None), "that one is ours");
        assert!(!of(true, &["10.99.0.1/30"], Some("bridge0")), "a bridge has taken it");
        assert!(!of(false, &["10.99.0.1/30"], None));
    }

    #[test]
    fn what_a_person_says_of_ports_ends_a_fight_over_them() {
        let thunderbolt = Some(Thunderbolt::default());
        let seen = Observation { thunderbolt, ..Observation::default() };
        let basis = Basis::of(&seen, &[], None).unwrap();
        let (now, mut pace, mut before) = (Instant::now(), Pace::default(), None);
        while pace.fights_until(now).is_none() {
            pace.looked(now, basis.clone(), Looked::Changed);
        }
        heed(&mut pace, &mut before, &None);
        assert!(pace.fights_until(now).is_some(), "nobody has said anything");
        let held = Some(b"[en6]".to_vec());
        heed(&mut pace, &mut before, &held);
        assert_eq!(pace.fights_until(now), None);
        while pace.fights_until(now).is_none() {
            pace.looked(now, basis.clone(), Looked::Changed);
        }
        heed(&mut pace, &mut before, &held);
        assert!(pace.fights_until(now).is_some(), "it was heeded once");
        heed(&mut pace, &mut before, &None);
        assert_eq!(pace.fights_until(now), None, "released");
    }

    #[test]
    fn a_look_rests_on_the_ports_and_their_interfaces_alone() {
        let mut seen = Observation::default();
        assert_eq!(Basis::of(&seen, &[], None), None);
        let of = |name: &str| Interface { name: name.to_owned(), ..Interface::default() };
        let thunderbolt = crate::probe::observation::ThunderboltPort {
            interface: Some("en3".into()),
            ..Default::default()
        };
        seen.thunderbolt = Some(Thunderbolt { ports: vec![thunderbolt], ..Thunderbolt::default() });
        seen.interfaces = vec![of("en0"), of("en3")];
        let before = Basis::of(&seen, &[], None).unwrap();
        seen.interfaces[0].up = true;
        assert_eq!(Basis::of(&seen, &[], None).unwrap(), before, "en0 is none of its ports");
        seen.interfaces[1].up = true;
        assert_ne!(Basis::of(&seen, &[], None).unwrap(), before);
        let before = Basis::of(&seen, &[], None).unwrap();
        assert_ne!(Basis::of(&seen, &[], Some(b"[]".to_vec())).unwrap(), before);
    }
}
