//! Workers that have ended, until the controller has been told.
//!
//! A session can break with an event already written to it. Exits are therefore kept a little longer than it takes to
//! notice a dead connection, and told once more in the next session; the controller knows the worker by its key.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use nightshift_proto::v1::{self, agent_message::Body, worker_event::Event};

use crate::{session::feed::Outbound, worker::task::Departure};

/// Newest exits kept; a node that has more has one story to tell many times.
const MAX_DEPARTED: usize = 100;

/// Tokens kept with them. Past it the oldest lose theirs, and are generated again.
const MAX_CHECKPOINT_TOKENS: usize = 16 * 1024 * 1024;

/// An event sent this long ago in a session that still lives has arrived: HTTP/2 keep-alive ends a dead one in 10 s.
pub const ARRIVES_WITHIN: Duration = Duration::from_secs(15);

/// See the module.
#[derive(Debug, Default)]
pub struct Departed {
    kept: VecDeque<(Departure, Option<Instant>)>,
}

impl Departed {
    /// Keeps one that has not been told.
    pub fn keep(&mut self, departure: Departure) {
        self.kept.push_back((departure, None));
        while self.kept.len() > MAX_DEPARTED {
            self.kept.pop_front();
        }
        let mut tokens = 0;
        for (departure, _) in self.kept.iter_mut().rev() {
            tokens += departure.checkpoints.iter().map(tokens_of).sum::<usize>();
            if tokens > MAX_CHECKPOINT_TOKENS {
                departure.checkpoints.clear();
            }
        }
    }

    /// The events of all that were not told, which count as told from `now` on.
    pub fn tell(&mut self, now: Instant) -> Vec<Outbound> {
        let untold = self.kept.iter_mut().filter(|(_, told)| told.is_none());
        untold
            .flat_map(|(departure, told)| {
                *told = Some(now);
                events(departure)
            })
            .collect()
    }

    /// The session has ended `now`: what may not have arrived is to be told again.
    pub fn session_ended(&mut self, now: Instant) {
        self.forget_arrived(now);
        self.kept.iter_mut().for_each(|(_, told)| *told = None);
    }

    /// The session lives `now`: what was told long enough ago has arrived.
    pub fn forget_arrived(&mut self, now: Instant) {
        self.kept.retain(|(_, told)| told.is_none_or(|at| now.duration_since(at) < ARRIVES_WITHIN));
    }

    /// Whether anything is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }
}

/// Tokens first, then the exit, both behind the worker's last answer.
fn events(departure: &Departure) -> Vec<Outbound> {
    let after_seq = departure.after_seq;
    let exited = v1::WorkerEvent {
        worker: Some(departure.key.to_proto()),
        event: Some(Event::Exited(departure.exited.clone())),
    };
    let checkpoints = departure.checkpoints.iter().cloned().map(Body::Progress);
    checkpoints.chain([Body::WorkerEvent(exited)]).map(|body| Outbound { after_seq, body }).collect()
}

fn tokens_of(progress: &v1::Progress) -> usize {
    // A logprobs entry weighs like the tokens its bytes would hold.
    progress.checkpoints.iter().map(|row| row.tokens.len() + row.logprobs_json.len() / 4).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::Key;

    fn departure(epoch: u64) -> Departure {
        Departure {
            key: Key { job_id: 1, epoch, rank: 0 },
            exited: v1::WorkerExited::default(),
            checkpoints: vec![v1::Progress::default()],
            after_seq: epoch,
        }
    }

    #[test]
    fn an_exit_is_told_once_a_session_until_it_has_surely_arrived() {
        let now = Instant::now();
        let mut departed = Departed::default();
        departed.keep(departure(1));
        assert_eq!(departed.tell(now).len(), 2);
        assert_eq!(departed.tell(now).len(), 0);
        departed.session_ended(now + Duration::from_secs(1));
        assert_eq!(departed.tell(now).len(), 2, "the session broke soon after");
        departed.session_ended(now + ARRIVES_WITHIN);
        assert!(departed.is_empty());
    }

    #[test]
    fn the_newest_are_kept() {
        let mut departed = Departed::default();
        (0..MAX_DEPARTED as u64 + 5).for_each(|epoch| departed.keep(departure(epoch)));
        let told = departed.tell(Instant::now());
        assert_eq!((told.len(), told[0].after_seq), (2 * MAX_DEPARTED, 5));
    }
}
