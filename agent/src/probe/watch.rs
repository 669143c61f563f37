//! The thread that keeps the newest observation at hand.
//!
//! It has a thread of its own because reading `/proc` and asking a file system for its free space can block, and
//! neither heartbeats nor results may wait for that. Once a second it looks at the interfaces only; when those differ
//! from the last observation, or the interval has passed, it observes everything.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{Observation, Probe};

/// A lost carrier is to be seen within a second (DESIGN, faults and answers).
const LINK_POLL: Duration = Duration::from_secs(1);

/// Used until the controller names another.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);

/// Asks for interval changes that may wait; one a session is usual.
const MAX_REQUESTS: usize = 8;

/// The newest observation, and how often there is a new one. The thread ends when the last clone is gone.
#[derive(Debug, Clone)]
pub struct Handle {
    newest: watch::Receiver<Arc<Observation>>,
    intervals: mpsc::SyncSender<Duration>,
}

impl Handle {
    /// The newest observation; wakes whoever waits for changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Observation>> {
        self.newest.clone()
    }

    /// Observe everything this often.
    pub fn set_interval(&self, interval: Duration) {
        // A full queue means that the thread is stuck in a probe; it will keep the interval it has.
        let _ = self.intervals.try_send(interval.max(LINK_POLL));
    }
}

/// Observes once, then starts the thread.
///
/// # Errors
/// When the system gives no thread.
pub fn run(mut probe: Box<dyn Probe>) -> io::Result<Handle> {
    let (publish, newest) = watch::channel(Arc::new(probe.observe()));
    let (intervals, requests) = mpsc::sync_channel(MAX_REQUESTS);
    thread::Builder::new().name("probe".to_owned()).spawn(move || {
        let mut interval = DEFAULT_INTERVAL;
        let mut observed_at = Instant::now();
        loop {
            match requests.recv_timeout(LINK_POLL) {
                Ok(wanted) => interval = wanted,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let due = observed_at.elapsed() >= interval;
            let mut moved = || probe.interfaces().is_ok_and(|now| now != publish.borrow().interfaces);
            if due || moved() {
                observed_at = Instant::now();
                publish.send_replace(Arc::new(probe.observe()));
            }
        }
    })?;
    Ok(Handle { newest, intervals })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::probe::Interface;

    /// A machine whose cable somebody else pulls.
    struct Scripted(Arc<AtomicBool>);

    impl Probe for Scripted {
        fn observe(&mut self) -> Observation {
            Observation { interfaces: self.interfaces().unwrap(), ..Default::default() }
        }

        fn interfaces(&mut self) -> Result<Vec<Interface>, String> {
            let carrier = Some(self.0.load(Ordering::Relaxed));
            Ok(vec![Interface { name: "en5".into(), carrier, ..Default::default() }])
        }
    }

    #[tokio::test]
    async fn a_lost_carrier_is_observed_without_waiting_for_the_interval() {
        let cable = Arc::new(AtomicBool::new(true));
        let handle = run(Box::new(Scripted(Arc::clone(&cable)))).unwrap();
        handle.set_interval(Duration::from_secs(3600));
        let mut newest = handle.subscribe();
        assert_eq!(newest.borrow_and_update().interfaces[0].carrier, Some(true));
        cable.store(false, Ordering::Relaxed);
        newest.changed().await.unwrap();
        assert_eq!(newest.borrow().interfaces[0].carrier, Some(false));
    }
}
