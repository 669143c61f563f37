//! The thread that reads a worker's stdout.
//!
//! There is a line for every step of the model, hundreds a second with a small one, and each wakeup of a reader costs
//! time that the model would have had. So this thread reads, and then naps: meanwhile lines collect in the pipe, and a
//! worker that writes finds nobody to wake. Steps alone disturb nobody else either, their newest is left where the
//! worker's task finds it when it reports. An answer waits for the end of a nap at most.
//!
//! When the task does not take what was read, the thread waits, the pipe fills, and the worker is held up.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::mpsc;

use super::{
    lines::{READ_BYTES, Splitter},
    protocol::{self, Event, Step},
};

/// Between two reads: little against the 100 ms in which an answer is to be durable, and a step of a model that is worth
/// running takes longer.
const NAP: Duration = Duration::from_millis(4);

/// How often to look whether anybody still listens, when nothing comes.
const LOOK_MS: u16 = 1_000;

/// Batches that may wait; each is what one read brought.
const MAX_BATCHES: usize = 2;

/// What came at once.
#[derive(Debug)]
pub struct Batch {
    /// When it was read.
    pub at: Instant,
    /// In order; the last may be what is wrong with the line behind the others.
    pub events: Vec<Result<Event, String>>,
}

/// What has been read.
#[derive(Debug)]
pub struct Reader {
    batches: mpsc::Receiver<Batch>,
    newest: Arc<Mutex<Option<(Step, Instant)>>>,
}

impl Reader {
    /// Starts the thread. It ends when the pipe does, or soon after this is dropped.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(stdout: OwnedFd, max_line_bytes: usize) -> io::Result<Self> {
        let (sender, batches) = mpsc::channel(MAX_BATCHES);
        let newest = Arc::new(Mutex::new(None));
        let thread = Thread {
            pipe: stdout.into(),
            splitter: Splitter::new(max_line_bytes),
            sender,
            newest: Arc::clone(&newest),
            broken: false,
        };
        thread::Builder::new().name("worker-stdout".to_owned()).spawn(move || thread.run())?;
        Ok(Self { batches, newest })
    }

    /// The next events that are more than steps; `None` at the end. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Batch> {
        self.batches.recv().await
    }

    /// The newest step that came without other events, and when, if there was one since the last time.
    #[must_use]
    pub fn newest_step(&self) -> Option<(Step, Instant)> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

struct Thread {
    pipe: File,
    splitter: Splitter,
    sender: mpsc::Sender<Batch>,
    newest: Arc<Mutex<Option<(Step, Instant)>>>,
    /// A line was not of the protocol: what follows is only drained.
    broken: bool,
}

impl Thread {
    fn run(mut self) {
        let mut chunk = vec![0; READ_BYTES];
        while !self.sender.is_closed() {
            let mut wanted = [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)];
            if !matches!(poll(&mut wanted, PollTimeout::from(LOOK_MS)), Ok(ready) if ready > 0) {
                continue;
            }
            match self.pipe.read(&mut chunk) {
                Ok(0) => return,
                Ok(len) => {
                    self.splitter.space().extend_from_slice(&chunk[..len]);
                    let batch = self.lines();
                    if self.pass_on(batch).is_none() {
                        return;
                    }
                    if len < READ_BYTES / 2 {
                        thread::sleep(NAP);
                    }
                }
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => {
                    tracing::error!(%error, "a worker's stdout cannot be read");
                    return;
                }
            }
        }
    }

    fn lines(&mut self) -> Batch {
        let mut events = Vec::new();
        loop {
            let event = match self.splitter.next_line() {
                Ok(None) => break,
                Ok(Some(_)) if self.broken => continue,
                Ok(Some(line)) => protocol::parse(&line).map_err(|malformed| malformed.to_string()),
                Err(too_long) => {
                    self.splitter.take_rest();
                    if self.broken {
                        break;
                    }
                    Err(too_long.to_string())
                }
            };
            self.broken = event.is_err();
            events.push(event);
        }
        Batch { at: Instant::now(), events }
    }

    /// `None` when nobody listens any more.
    fn pass_on(&self, batch: Batch) -> Option<()> {
        let newest = || self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if batch.events.iter().all(|event| matches!(event, Ok(Event::Step(_)))) {
            if let Some(Ok(Event::Step(step))) = batch.events.last() {
                *newest() = Some((*step, batch.at));
            }
            return Some(());
        }
        // The batch has a newer one in it, or brings news that are newer.
        *newest() = None;
        self.sender.blocking_send(batch).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeWriter, Write as _, pipe};

    use super::*;

    fn start(max_line_bytes: usize) -> (PipeWriter, Reader) {
        let (read, write) = pipe().unwrap();
        (write, Reader::start(read.into(), max_line_bytes).unwrap())
    }

    fn step(n: u64) -> String {
        format!(
            "{{\"ev\":\"step\",\"n\":{n},\"phase\":\"decode\",\"active\":1,\"waiting\":0,\"prompt_tokens\":0,\"generated_tokens\":0,\"peak_memory_bytes\":0}}\n"
        )
    }

    fn names(batch: &Batch) -> Vec<String> {
        let name = |event: &Result<Event, String>| match event {
            Ok(Event::Step(step)) => format!("step {}", step.n),
            Ok(Event::Idle(idle)) => format!("idle {}", idle.n),
            Ok(other) => format!("{other:?}"),
            Err(problem) => problem.clone(),
        };
        batch.events.iter().map(name).collect()
    }

    #[tokio::test]
    async fn steps_alone_wake_nobody_and_the_newest_is_found() {
        let (mut write, mut reader) = start(1000);
        write.write_all(format!("{}{}", step(1), step(2)).as_bytes()).unwrap();
        let newest = loop {
            match reader.newest_step() {
                Some((step, _)) if step.n == 2 => break step,
                _ => tokio::task::yield_now().await,
            }
        };
        assert_eq!(newest.n, 2);
        assert!(reader.newest_step().is_none(), "it is news only once");
        write.write_all(format!("{}{{\"ev\":\"idle\",\"n\":3}}\n", step(3)).as_bytes()).unwrap();
        assert_eq!(names(&reader.next().await.unwrap()), ["step 3", "idle 3"]);
        drop(write);
        assert!(reader.next().await.is_none());
    }

    #[tokio::test]
    async fn behind_a_broken_line_everything_is_drained_and_nothing_is_told() {
        let (mut write, mut reader) = start(100);
        write.write_all(&[b'x'; 150]).unwrap();
        let said = names(&reader.next().await.unwrap());
        assert_eq!(said, ["a line is longer than 100 bytes"]);
        // More than the pipe holds: it is read, or this would not return.
        let rest = tokio::task::spawn_blocking(move || {
            for _ in 0..5_000 {
                write.write_all(b"{\"ev\":\"idle\",\"n\":3}\n").unwrap();
            }
        });
        rest.await.unwrap();
        assert!(reader.next().await.is_none());
    }

    #[tokio::test]
    async fn what_nobody_takes_holds_the_writer_up() {
        let (mut write, mut reader) = start(1000);
        let lines = 20_000_u64;
        let writing = tokio::task::spawn_blocking(move || {
            for n in 0..lines {
                writeln!(write, "{{\"ev\":\"idle\",\"n\":{n}}}").unwrap();
            }
        });
        let first = reader.next().await.unwrap();
        assert!(!writing.is_finished(), "two batches and a pipe do not hold them all");
        let mut count = first.events.len() as u64;
        while let Some(batch) = reader.next().await {
            count += batch.events.len() as u64;
        }
        writing.await.unwrap();
        assert_eq!(count, lines);
    }
}
