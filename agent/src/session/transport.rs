//! The thread that carries the connection to the controller, so that a slow agent does not accuse its node.
//!
//! The socket, its HTTP/2 and the heartbeats (see [`super::outgoing`]) live on this thread, on a runtime of its own. Nothing
//! else does, and nothing here waits for a disk, a worker or a lock of the agent's. However long the agent's own runtime is
//! held up, heartbeats are made and sent on time, and pings of the controller are answered.
//!
//! Not covered: a process that is stopped, or gets no processor time at all, is silent. All other messages are made by the
//! agent's runtime and wait for it; so does the Welcome, with which heartbeats begin. A heartbeat waits behind what is on its
//! way through the same connection, while the controller does not read. And with debug logging the libraries used here write
//! to the log, which may be on a slow disk.

use std::{convert::Infallible, future::Future, io, thread};

use tokio::{
    runtime::{Builder, Handle},
    sync::mpsc,
};

/// The thread; it ends, and what it carries is cut, when the last clone is gone.
#[derive(Debug, Clone)]
pub struct Transport {
    runtime: Handle,
    _keep: mpsc::Sender<Infallible>,
}

/// The thread has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the thread of the connection has ended")]
pub struct Gone;

/// Starts the thread.
///
/// # Errors
/// When the system gives no thread, or nothing to wait for sockets with.
pub fn start() -> io::Result<Transport> {
    // Blocking threads are for the names of hosts; there is one controller.
    let runtime = Builder::new_current_thread().max_blocking_threads(1).enable_all().build()?;
    let handle = runtime.handle().clone();
    let (keep, mut kept) = mpsc::channel::<Infallible>(1);
    thread::Builder::new().name("connection".to_owned()).spawn(move || {
        runtime.block_on(kept.recv());
    })?;
    Ok(Transport { runtime: handle, _keep: keep })
}

impl Transport {
    /// Does something on the thread, to its end even where nobody waits for it any more.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Gone> {
        self.runtime.spawn(work).await.map_err(|_| Gone)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, Barrier, mpsc::sync_channel},
        time::Duration,
    };

    use futures_util::StreamExt as _;
    use nightshift_proto::v1::agent_message::Body;
    use tokio::time::timeout;

    use super::*;
    use crate::session::outgoing::{self, Outgoing};

    /// Only ends a test that hangs.
    const LIMIT: Duration = Duration::from_secs(60);

    /// Reads the stream as the transport does, up to a heartbeat with such a lag.
    async fn read_until(transport: &Transport, mut stream: Outgoing, fits: fn(u64) -> bool) -> Outgoing {
        let read = transport.run(async move {
            while let Some(message) = stream.next().await {
                if matches!(message.body, Some(Body::Heartbeat(heartbeat)) if fits(heartbeat.lag_ms)) {
                    break;
                }
            }
            stream
        });
        timeout(LIMIT, read).await.expect("no such heartbeat came").unwrap()
    }

    #[tokio::test]
    async fn heartbeats_leave_and_tell_of_it_while_all_threads_of_the_agent_are_blocked() {
        const THREADS: usize = 2;
        let agent =
            Builder::new_multi_thread().worker_threads(THREADS).max_blocking_threads(1).build().unwrap();
        let (sender, stream) = agent.spawn(async { outgoing::channel() }).await.unwrap();
        sender.start_heartbeats(Duration::from_millis(10)).await.unwrap();

        let all_in = Arc::new(Barrier::new(THREADS + 1));
        let gates: Vec<_> = (0..THREADS)
            .map(|_| {
                let (gate, opened) = sync_channel::<()>(0);
                let all_in = Arc::clone(&all_in);
                agent.spawn(async move {
                    all_in.wait();
                    opened.recv()
                });
                gate
            })
            .collect();
        all_in.wait();

        let transport = start().unwrap();
        let stream = read_until(&transport, stream, |lag_ms| lag_ms >= 300).await;
        drop(gates);
        let _ = read_until(&transport, stream, |lag_ms| lag_ms < 100).await;
        agent.shutdown_background();
    }

    #[tokio::test]
    async fn the_thread_ends_with_its_last_owner_and_cuts_what_it_carries() {
        let transport = start().unwrap();
        let runtime = transport.runtime.clone();
        let carried = runtime.spawn(std::future::pending::<()>());
        drop(transport.clone());
        assert_eq!(transport.run(async { 7 }).await, Ok(7));
        drop(transport);
        assert!(timeout(LIMIT, carried).await.expect("it is still carried").unwrap_err().is_cancelled());
    }
}
