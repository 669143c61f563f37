//! How late the agent's runtime is, measured from outside of it.
//!
//! A question goes to the runtime as a task of its own. The time until that task has run, or has waited so far, is what
//! everything else there has to wait for, too. There is one question at a time.

use std::time::Duration;

use tokio::{
    runtime::Handle,
    sync::oneshot::{self, error::TryRecvError},
    time::Instant,
};

/// So long without a heartbeat costs a node its rows (the controller's default): the log says how near it came to that.
const WORTH_TELLING: Duration = Duration::from_secs(5);

/// Measures one runtime.
#[derive(Debug)]
pub struct Gauge {
    runtime: Handle,
    question: Question,
}

#[derive(Debug)]
struct Question {
    asked: Instant,
    answer: oneshot::Receiver<Duration>,
}

impl Gauge {
    /// Measures this runtime from now on.
    #[must_use]
    pub fn new(runtime: Handle) -> Self {
        Self { question: Question::ask(&runtime), runtime }
    }

    /// How late the runtime was to answer the last question, or is by now. Answered, it is asked anew.
    pub fn read(&mut self) -> Duration {
        let lag = match self.question.answer.try_recv() {
            Ok(lag) => lag,
            Err(TryRecvError::Empty) => return self.question.asked.elapsed(),
            // It is shut down: nothing waits for it.
            Err(TryRecvError::Closed) => Duration::ZERO,
        };
        self.question = Question::ask(&self.runtime);
        lag
    }
}

impl Question {
    fn ask(runtime: &Handle) -> Self {
        let asked = Instant::now();
        let (reply, answer) = oneshot::channel();
        runtime.spawn(async move {
            let lag = asked.elapsed();
            if lag >= WORTH_TELLING {
                tracing::info!(
                    held_up_ms = lag.as_millis(),
                    "the agent could not go on for a while: its disk was slow, or it got no processor time"
                );
            }
            // Where nobody reads it, the session is over.
            let _ = reply.send(lag);
        });
        Self { asked, answer }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{runtime::Builder, time::sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_runtime_that_runs_is_not_late() {
        let mut gauge = Gauge::new(Handle::current());
        for _ in 0..3 {
            sleep(Duration::from_secs(1)).await;
            assert_eq!(gauge.read(), Duration::ZERO);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_runtime_that_does_not_run_is_as_late_as_the_question_is_old() {
        // Nobody drives it.
        let stuck = Builder::new_current_thread().build().unwrap();
        let mut gauge = Gauge::new(stuck.handle().clone());
        for seconds in 1..=3 {
            sleep(Duration::from_secs(1)).await;
            assert_eq!(gauge.read().as_secs(), seconds);
        }
        stuck.shutdown_background();
        assert_eq!(gauge.read(), Duration::ZERO);
    }
}
