//! The way into a worker.
//!
//! A worker that is stopped or busy does not read, and nothing else may wait for it: lines queue up here, bounded in
//! bytes, and a task of its own writes them. Past the bound the worker is not merely slow.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{io::AsyncWriteExt as _, process::ChildStdin, sync::mpsc};

/// What may wait: a few times the controller's look-ahead, even with rows of the largest size.
const MAX_WAITING_BYTES: usize = 256 * 1024 * 1024;

/// Lines that may wait; each holds many rows.
const MAX_WAITING_LINES: usize = 16 * 1024;

/// The worker does not read what it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the worker does not read its commands: {MAX_WAITING_BYTES} bytes wait")]
pub struct Stuck;

/// Where lines go in. Dropping it closes the worker's stdin once what waits is written.
#[derive(Debug)]
pub struct Writer {
    lines: mpsc::Sender<Vec<u8>>,
    waiting_bytes: Arc<AtomicUsize>,
}

impl Writer {
    /// Starts the task that writes.
    #[must_use]
    pub fn start(mut stdin: ChildStdin) -> Self {
        let (lines, mut waiting) = mpsc::channel::<Vec<u8>>(MAX_WAITING_LINES);
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        let bytes = Arc::clone(&waiting_bytes);
        tokio::spawn(async move {
            while let Some(line) = waiting.recv().await {
                // A broken pipe means that the process is ending, which is noticed elsewhere; what waits is drained so
                // that nobody takes the worker for stuck meanwhile.
                let _ = stdin.write_all(&line).await;
                bytes.fetch_sub(line.len(), Ordering::Relaxed);
            }
        });
        Self { lines, waiting_bytes }
    }

    /// Queues a line.
    ///
    /// # Errors
    /// [`Stuck`] when too much waits already.
    pub fn write(&self, line: Vec<u8>) -> Result<(), Stuck> {
        let len = line.len();
        if self.waiting_bytes.fetch_add(len, Ordering::Relaxed) + len > MAX_WAITING_BYTES {
            return Err(Stuck);
        }
        self.lines.try_send(line).map_err(|_| Stuck)
    }
}
