//! Reads a worker's stderr: for people, and for the first error in it.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::{faults::Scan, lines::Splitter};
use crate::logging::{Source, store::MAX_LINE_BYTES};

/// Reads to the end.
pub async fn read(stderr: impl AsyncRead + Send + 'static, log: Arc<Source>, scan: Arc<Mutex<Scan>>) {
    let mut pipe: Pin<Box<dyn AsyncRead + Send>> = Box::pin(stderr);
    let mut splitter = Splitter::new(MAX_LINE_BYTES);
    let take = |line: &[u8]| {
        let text = String::from_utf8_lossy(line);
        // Progress bars rewrite their line: only what stands there in the end matters.
        let text = text.trim_end().rsplit('\r').next().unwrap_or_default();
        if !text.is_empty() {
            scan.lock().unwrap_or_else(PoisonError::into_inner).line(text);
            log.push(text);
        }
    };
    while matches!(pipe.read_buf(splitter.space()).await, Ok(count) if count > 0) {
        loop {
            match splitter.next_line() {
                Ok(Some(line)) => take(&line),
                Ok(None) => break,
                // A line without an end is taken in pieces.
                Err(_) => take(&splitter.take_rest()),
            }
        }
    }
    take(&splitter.take_rest());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logging::LogStore;

    #[tokio::test]
    async fn progress_bars_leave_one_line_and_endless_lines_do_not_grow() {
        let logs = LogStore::default();
        let source = Arc::new(logs.open("j1/e1/r0", Some(1)));
        let mut text = b"1%\r50%\r100%\n\n  \nlast words".to_vec();
        text.splice(0..0, vec![b'x'; 3 * MAX_LINE_BYTES]);
        read(std::io::Cursor::new(text), Arc::clone(&source), Arc::default()).await;
        let lines = source.tail(100);
        assert!(lines.iter().all(|line| line.len() <= MAX_LINE_BYTES + "…".len()));
        assert_eq!(lines[lines.len() - 2..], ["100%", "last words"]);
    }
}
