//! The newest lines of the agent and of each worker.
//!
//! Bounds: a line is at most [`MAX_LINE_BYTES`] long, a source keeps [`MAX_LINES`] lines and [`MAX_BYTES`] of text, and
//! there are at most [`MAX_SOURCES`] sources, of which the oldest closed one makes room. Together that is 8 MiB at the
//! worst. Following is a broadcast: whoever is too slow loses the oldest lines and is told how many, and never slows a
//! worker down.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::broadcast;

use crate::util;

/// A longer line is cut: log lines are read by people, and a binary dump must not push out everything else.
pub const MAX_LINE_BYTES: usize = 4 * 1024;
/// Lines kept of one source.
pub const MAX_LINES: usize = 1_000;
/// Text kept of one source.
pub const MAX_BYTES: usize = 256 * 1024;
/// Sources kept: the agent, its tests of links (one for all), every worker running, and the last few gone.
pub const MAX_SOURCES: usize = 32;
/// Lines a follower may lag behind before it loses the oldest.
const FOLLOW_LINES: usize = 1_024;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// When it was read.
    pub unix_ms: u64,
    /// `agent`, `link-test`, or `j7/e3/r0` for a worker.
    pub source: Arc<str>,
    /// The worker's job; `None` for the agent.
    pub job_id: Option<u64>,
    /// The text, without its end of line.
    pub text: String,
}

/// Which lines are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// The agent's own.
    Agent,
    /// Those of all workers.
    Workers,
    /// Those of the workers of one job.
    Job(u64),
}

impl Filter {
    fn wants(self, job_id: Option<u64>) -> bool {
        match self {
            Self::Agent => job_id.is_none(),
            Self::Workers => job_id.is_some(),
            Self::Job(job) => job_id == Some(job),
        }
    }
}

/// All sources. Cheap to clone; clones share the lines.
#[derive(Clone)]
pub struct LogStore(Arc<Shared>);

struct Shared {
    rings: Mutex<VecDeque<Arc<Ring>>>,
    live: broadcast::Sender<Arc<Line>>,
}

struct Ring {
    source: Arc<str>,
    job_id: Option<u64>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    lines: VecDeque<Arc<Line>>,
    bytes: usize,
    closed: bool,
}

impl fmt::Debug for LogStore {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("LogStore").finish_non_exhaustive()
    }
}

impl Default for LogStore {
    fn default() -> Self {
        let (live, _) = broadcast::channel(FOLLOW_LINES);
        Self(Arc::new(Shared { rings: Mutex::default(), live }))
    }
}

impl LogStore {
    /// A source of its own, closed when dropped; its lines stay until newer sources need the room. `job_id` is `None`
    /// for the agent.
    #[must_use]
    pub fn open(&self, name: &str, job_id: Option<u64>) -> Source {
        let ring = Arc::new(Ring { source: name.into(), job_id, kept: Mutex::default() });
        let mut rings = lock(&self.0.rings);
        if rings.len() >= MAX_SOURCES
            && let Some(oldest) = rings.iter().position(|ring| lock(&ring.kept).closed)
        {
            rings.remove(oldest);
        }
        rings.push_back(Arc::clone(&ring));
        Source { ring, live: self.0.live.clone() }
    }

    /// The newest `max_lines` lines that `filter` wants, oldest first.
    #[must_use]
    pub fn tail(&self, filter: Filter, max_lines: usize) -> Vec<Arc<Line>> {
        let rings: Vec<_> =
            lock(&self.0.rings).iter().filter(|ring| filter.wants(ring.job_id)).cloned().collect();
        let mut lines: Vec<_> = rings
            .iter()
            .flat_map(|ring| lock(&ring.kept).lines.iter().cloned().collect::<Vec<_>>())
            .collect();
        // Stable: lines of one source within the same millisecond keep their order.
        lines.sort_by_key(|line| line.unix_ms);
        lines.split_off(lines.len().saturating_sub(max_lines))
    }

    /// Lines from now on.
    #[must_use]
    pub fn follow(&self, filter: Filter) -> Follower {
        Follower { filter, lines: self.0.live.subscribe() }
    }
}

/// Where one source's lines go in.
pub struct Source {
    ring: Arc<Ring>,
    live: broadcast::Sender<Arc<Line>>,
}

impl fmt::Debug for Source {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Source").field("source", &self.ring.source).finish_non_exhaustive()
    }
}

impl Source {
    /// Adds a line.
    pub fn push(&self, text: &str) {
        let line = Arc::new(Line {
            unix_ms: util::unix_ms(),
            source: Arc::clone(&self.ring.source),
            job_id: self.ring.job_id,
            text: util::clip(text, MAX_LINE_BYTES),
        });
        {
            let mut kept = lock(&self.ring.kept);
            kept.bytes += line.text.len();
            kept.lines.push_back(Arc::clone(&line));
            while kept.lines.len() > MAX_LINES || kept.bytes > MAX_BYTES {
                let Some(oldest) = kept.lines.pop_front() else { break };
                kept.bytes -= oldest.text.len();
            }
        }
        // Nobody following is no error.
        let _ = self.live.send(line);
    }

    /// The newest `max_lines` lines of this source, oldest first.
    #[must_use]
    pub fn tail(&self, max_lines: usize) -> Vec<String> {
        let kept = lock(&self.ring.kept);
        kept.lines
            .iter()
            .skip(kept.lines.len().saturating_sub(max_lines))
            .map(|line| line.text.clone())
            .collect()
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        lock(&self.ring.kept).closed = true;
    }
}

/// Receives lines as they come.
#[derive(Debug)]
pub struct Follower {
    filter: Filter,
    lines: broadcast::Receiver<Arc<Line>>,
}

impl Follower {
    /// The next lines, at least one and at most `max_lines`, and how many were lost before them. `None` once the store
    /// is gone. Nothing is lost when the returned future is dropped before it is done.
    pub async fn next(&mut self, max_lines: usize) -> Option<(u64, Vec<Arc<Line>>)> {
        let mut lost = 0;
        let mut lines = Vec::new();
        while lines.is_empty() {
            match self.lines.recv().await {
                Ok(line) if self.filter.wants(line.job_id) => lines.push(line),
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(count)) => lost += count,
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
        while lines.len() < max_lines {
            match self.lines.try_recv() {
                Ok(line) if self.filter.wants(line.job_id) => lines.push(line),
                Ok(_) => {}
                Err(broadcast::error::TryRecvError::Lagged(count)) => lost += count,
                Err(_) => break,
            }
        }
        Some((lost, lines))
    }
}

/// A poisoned ring still holds whole lines: a panic elsewhere must not take the evidence with it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(lines: &[Arc<Line>]) -> Vec<&str> {
        lines.iter().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn a_ring_is_bounded_in_lines_in_bytes_and_in_the_length_of_a_line() {
        let store = LogStore::default();
        let source = store.open("agent", None);
        for n in 0..MAX_LINES + 5 {
            source.push(&n.to_string());
        }
        let lines = store.tail(Filter::Agent, usize::MAX);
        assert_eq!((lines.len(), lines[0].text.as_str()), (MAX_LINES, "5"));

        for _ in 0..200 {
            source.push(&"x".repeat(10 * MAX_LINE_BYTES));
        }
        let lines = store.tail(Filter::Agent, usize::MAX);
        assert!(lines.iter().map(|line| line.text.len()).sum::<usize>() <= MAX_BYTES);
        assert!(lines.iter().all(|line| line.text.len() <= MAX_LINE_BYTES + "…".len()));
    }

    #[test]
    fn a_tail_is_of_the_sources_asked_for() {
        let store = LogStore::default();
        let (agent, seven, eight) =
            (store.open("agent", None), store.open("j7/e1/r0", Some(7)), store.open("j8/e2/r0", Some(8)));
        agent.push("a");
        seven.push("s1");
        eight.push("e1");
        seven.push("s2");
        assert_eq!(texts(&store.tail(Filter::Agent, 10)), ["a"]);
        assert_eq!(texts(&store.tail(Filter::Job(7), 1)), ["s2"]);
        assert_eq!(store.tail(Filter::Workers, 10).len(), 3);
        assert_eq!(seven.tail(1), ["s2"]);
    }

    #[test]
    fn a_closed_source_keeps_its_lines_until_the_room_is_needed() {
        let store = LogStore::default();
        store.open("j1/e1/r0", Some(1)).push("last words");
        assert_eq!(store.tail(Filter::Workers, 10).len(), 1);
        let _open: Vec<_> = (0..MAX_SOURCES).map(|n| store.open(&format!("j2/e{n}/r0"), Some(2))).collect();
        assert_eq!(store.tail(Filter::Job(1), 10).len(), 0);
    }

    #[tokio::test]
    async fn a_slow_follower_loses_the_oldest_and_is_told() {
        let store = LogStore::default();
        let source = store.open("j1/e1/r0", Some(1));
        let mut follower = store.follow(Filter::Job(1));
        for n in 0..FOLLOW_LINES + 10 {
            source.push(&n.to_string());
        }
        let (lost, lines) = follower.next(2).await.unwrap();
        assert_eq!(lost, 10);
        assert_eq!(texts(&lines), ["10", "11"]);
    }
}
