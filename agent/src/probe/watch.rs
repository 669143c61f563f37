//! The thread that keeps the newest observation at hand.
//!
//! It has a thread of its own because reading `/proc` and asking a file system for its free space can block, and
//! neither heartbeats nor results may wait for that.
//!
//! It looks at the interfaces as soon as the kernel says that something about them has changed (see [`changes`]), and once
//! a second whatever the kernel says; when they differ from the last observation, or the interval has passed, it observes
//! everything. A lost carrier is so observed within some milliseconds; where the kernel tells nothing, within a second.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{
    Observation, Probe,
    changes::{self, Changes},
};
use crate::util;

/// A lost carrier is to be seen within a second (DESIGN, faults and answers), also where nobody tells of it.
const LINK_POLL: Duration = Duration::from_secs(1);

/// A look that somebody in this process asks for is taken this soon.
const WANTED_WITHIN: Duration = Duration::from_millis(100);

/// From a look that was asked for to the next: one change makes several messages, a port that flaps makes hundreds a second,
/// and none of that may take a worker's processor time. The first of them is answered at once.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// Used until the controller names another.
const DEFAULT_INTERVAL_MS: u64 = 10_000;

/// The newest observation, and how often there is a new one. The thread ends within a second after the last clone, and
/// whatever subscribed, is gone.
#[derive(Debug, Clone)]
pub struct Handle {
    newest: watch::Receiver<Arc<Observation>>,
    interval_ms: Arc<AtomicU64>,
    look_soon: Arc<AtomicBool>,
}

impl Handle {
    /// The newest observation; wakes whoever waits for changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Observation>> {
        self.newest.clone()
    }

    /// Observe everything as soon as the thread can.
    pub fn look_soon(&self) {
        self.look_soon.store(true, Ordering::Relaxed);
    }

    /// Observe everything this often, and not more often than every second.
    pub fn set_interval(&self, interval: Duration) {
        let interval_ms = u64::try_from(interval.max(LINK_POLL).as_millis()).unwrap_or(u64::MAX);
        self.interval_ms.store(interval_ms, Ordering::Relaxed);
    }
}

/// Observes once, then starts the thread, which looks when `changes` says so. Without them it only looks regularly, and says
/// so in the log.
///
/// # Errors
/// When the system gives no thread.
pub fn run(
    mut probe: Box<dyn Probe>,
    changes: Result<Box<dyn Changes>, changes::Error>,
) -> io::Result<Handle> {
    let (publish, newest) = watch::channel(Arc::new(probe.observe()));
    let interval_ms = Arc::new(AtomicU64::new(DEFAULT_INTERVAL_MS));
    let look_soon = Arc::new(AtomicBool::new(false));
    let handle = Handle { newest, interval_ms: Arc::clone(&interval_ms), look_soon: Arc::clone(&look_soon) };
    let mut alarm = Alarm::new(changes);
    thread::Builder::new().name("probe".to_owned()).spawn(move || {
        let mut observed_at = Instant::now();
        let mut looked_at = Instant::now();
        loop {
            let told = alarm.wait();
            if publish.is_closed() {
                return;
            }
            if told {
                probe.on_change();
            }
            let is_wanted = look_soon.swap(false, Ordering::Relaxed);
            let interval = Duration::from_millis(interval_ms.load(Ordering::Relaxed));
            let due = is_wanted || observed_at.elapsed() >= interval;
            let is_time = told || looked_at.elapsed() >= LINK_POLL;
            if is_time {
                looked_at = Instant::now();
            }
            let mut moved = || probe.interfaces().is_ok_and(|now| now != publish.borrow().interfaces);
            if due || (is_time && moved()) || probe.has_news() {
                observed_at = Instant::now();
                publish.send_replace(Arc::new(probe.observe()));
            }
            if told {
                thread::sleep(LOOK_PAUSE);
            }
        }
    })?;
    Ok(handle)
}

/// What the thread waits for.
struct Alarm(Option<Box<dyn Changes>>);

impl Alarm {
    fn new(changes: Result<Box<dyn Changes>, changes::Error>) -> Self {
        Self(changes.inspect_err(report).ok())
    }

    /// Waits for a change, for a moment at most. Returns whether somebody told of one.
    fn wait(&mut self) -> bool {
        let Some(changes) = &mut self.0 else {
            thread::sleep(WANTED_WITHIN);
            return false;
        };
        changes.wait(WANTED_WITHIN).unwrap_or_else(|error| {
            report(&error);
            self.0 = None;
            false
        })
    }
}

fn report(error: &changes::Error) {
    tracing::warn!(
        error = util::chain(error),
        "a lost link is seen up to a second late until the agent starts anew, because nobody tells of it"
    );
}

#[cfg(test)]
mod tests {
    use std::sync::{atomic::AtomicUsize, mpsc};

    use nix::errno::Errno;

    use super::*;
    use crate::probe::Interface;

    /// A machine whose cable somebody else pulls.
    struct Scripted {
        cable: Arc<AtomicBool>,
        looks: Arc<AtomicUsize>,
    }

    impl Scripted {
        fn new(cable: &Arc<AtomicBool>) -> Box<Self> {
            Box::new(Self { cable: Arc::clone(cable), looks: Arc::default() })
        }
    }

    impl Probe for Scripted {
        fn observe(&mut self) -> Observation {
            Observation { interfaces: self.interfaces().unwrap(), ..Default::default() }
        }

        fn interfaces(&mut self) -> Result<Vec<Interface>, String> {
            self.looks.fetch_add(1, Ordering::Relaxed);
            let carrier = Some(self.cable.load(Ordering::Relaxed));
            Ok(vec![Interface { name: "en5".into(), carrier, ..Default::default() }])
        }
    }

    /// Tells what it is told to, and without that nothing, however long that takes.
    struct Told(mpsc::Receiver<Result<bool, changes::Error>>);

    impl Changes for Told {
        fn wait(&mut self, _: Duration) -> Result<bool, changes::Error> {
            self.0.recv().unwrap_or(Ok(true))
        }
    }

    const NONE: changes::Error = changes::Error { what: "read", source: Errno::EBADF };

    async fn lost_carrier(newest: &mut watch::Receiver<Arc<Observation>>) {
        newest.wait_for(|seen| seen.interfaces[0].carrier == Some(false)).await.unwrap();
    }

    #[tokio::test]
    async fn a_lost_carrier_is_observed_without_waiting_for_the_interval() {
        let cable = Arc::new(AtomicBool::new(true));
        let handle = run(Scripted::new(&cable), Err(NONE)).unwrap();
        handle.set_interval(Duration::from_secs(3600));
        let mut newest = handle.subscribe();
        assert_eq!(newest.borrow_and_update().interfaces[0].carrier, Some(true));
        cable.store(false, Ordering::Relaxed);
        newest.changed().await.unwrap();
        assert_eq!(newest.borrow().interfaces[0].carrier, Some(false));
    }

    #[tokio::test]
    async fn a_lost_carrier_that_is_told_of_is_observed_without_waiting_for_the_next_look() {
        let cable = Arc::new(AtomicBool::new(true));
        let (tell, told) = mpsc::sync_channel(1);
        let mut newest = run(Scripted::new(&cable), Ok(Box::new(Told(told)))).unwrap().subscribe();
        cable.store(false, Ordering::Relaxed);
        tell.send(Ok(true)).unwrap();
        lost_carrier(&mut newest).await;
    }

    #[tokio::test]
    async fn where_nobody_tells_any_more_it_looks_by_itself() {
        let cable = Arc::new(AtomicBool::new(true));
        let (tell, told) = mpsc::sync_channel(1);
        let mut newest = run(Scripted::new(&cable), Ok(Box::new(Told(told)))).unwrap().subscribe();
        tell.send(Err(NONE)).unwrap();
        // It is not asked again: its receiver is gone.
        while tell.send(Ok(false)).is_ok() {
            tokio::task::yield_now().await;
        }
        cable.store(false, Ordering::Relaxed);
        lost_carrier(&mut newest).await;
    }

    #[test]
    fn a_storm_of_changes_is_looked_at_in_steps() {
        let (cable, (_, told)) = (Arc::new(AtomicBool::new(true)), mpsc::sync_channel(1));
        let probe = Scripted::new(&cable);
        let looks = Arc::clone(&probe.looks);
        let began = Instant::now();
        let _handle = run(probe, Ok(Box::new(Told(told)))).unwrap();
        // The first is of the first observation, the second is answered at once.
        while looks.load(Ordering::Relaxed) < 2 + 4 {
            thread::yield_now();
        }
        assert!(began.elapsed() >= 4 * LOOK_PAUSE, "{:?}", began.elapsed());
    }
}
