//! The stream of messages to the controller, with heartbeats woven in.
//!
//! A heartbeat is made at the moment the transport asks for a message, not before: its lateness is then all there was, of
//! the transport's thread and of a stream that did not drain alike, and no queue of stale ones builds up. Heartbeats go
//! before whatever else waits. Each tells how late it is itself, or how late the agent's runtime is (see
//! [`super::runtime_lag`]), whichever is more. They end with an agent that does not go on at all, because it holds rows that
//! others could answer.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::Stream;
use nightshift_proto::v1::{AgentMessage, Heartbeat, agent_message::Body};
use tokio::{
    runtime::Handle,
    sync::mpsc,
    time::{Instant, Sleep, sleep_until},
};

use super::runtime_lag::Gauge;
use crate::util;

/// Messages on their way into the transport. Few, because each may hold 4 MiB of results, and what waits here has been
/// taken from where it could still be overtaken.
const MAX_WAITING: usize = 4;

/// An agent that has been held up for this long gives no sign of life any more. A disk that spins up, or is busy with
/// somebody else's files, holds a write up for some seconds; after a minute nobody knows whether it will ever go on.
const STUCK: Duration = Duration::from_secs(60);

/// Makes the stream and the way into it. Heartbeats tell how late the runtime is that this is called on.
///
/// # Panics
/// Outside of a runtime.
#[must_use]
pub fn channel() -> (Sender, Outgoing) {
    channel_of(Gauge::new(Handle::current()))
}

fn channel_of(agent: Gauge) -> (Sender, Outgoing) {
    let (items, waiting) = mpsc::channel(MAX_WAITING);
    (Sender(items), Outgoing { waiting, next: None, agent })
}

/// The session is over: the transport has dropped the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stream to the controller is closed")]
pub struct Closed;

#[derive(Debug)]
enum Item {
    Message(Box<AgentMessage>),
    StartHeartbeats(Duration),
    Finish,
}

/// Messages go in here.
#[derive(Debug, Clone)]
pub struct Sender(mpsc::Sender<Item>);

impl Sender {
    /// Sends a message, waiting for its place.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn send(&self, body: Body) -> Result<(), Closed> {
        self.put(Item::Message(Box::new(AgentMessage { body: Some(body) }))).await
    }

    /// Heartbeats from here on, at this interval.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn start_heartbeats(&self, interval: Duration) -> Result<(), Closed> {
        self.put(Item::StartHeartbeats(interval)).await
    }

    /// Ends the stream behind what has been sent, in order.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn finish(&self) -> Result<(), Closed> {
        self.put(Item::Finish).await
    }

    /// Returns when the transport has dropped the stream.
    pub async fn closed(&self) {
        self.0.closed().await;
    }

    async fn put(&self, item: Item) -> Result<(), Closed> {
        self.0.send(item).await.map_err(|_| Closed)
    }
}

/// What the transport reads.
#[derive(Debug)]
pub struct Outgoing {
    waiting: mpsc::Receiver<Item>,
    next: Option<(Pin<Box<Sleep>>, Duration)>,
    agent: Gauge,
}

impl Outgoing {
    fn poll_heartbeat(&mut self, cx: &mut Context<'_>) -> Poll<Heartbeat> {
        loop {
            let Some((sleep, interval)) = &mut self.next else { return Poll::Pending };
            ready!(sleep.as_mut().poll(cx));
            let (due, now) = (sleep.deadline(), Instant::now());
            let late = now.duration_since(due);
            // Those that were missed are not made up for: one late heartbeat says it all.
            let next = if late < *interval { due + *interval } else { now + *interval };
            sleep.as_mut().reset(next);
            let held_up = self.agent.read();
            if held_up < STUCK {
                let lag_ms = u64::try_from(late.max(held_up).as_millis()).unwrap_or(u64::MAX);
                return Poll::Ready(Heartbeat { sent_unix_ms: util::unix_ms(), lag_ms });
            }
        }
    }
}

impl Stream for Outgoing {
    type Item = AgentMessage;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<AgentMessage>> {
        loop {
            if let Poll::Ready(heartbeat) = self.poll_heartbeat(cx) {
                return Poll::Ready(Some(AgentMessage { body: Some(Body::Heartbeat(heartbeat)) }));
            }
            match ready!(self.waiting.poll_recv(cx)) {
                Some(Item::Message(message)) => return Poll::Ready(Some(*message)),
                Some(Item::StartHeartbeats(interval)) => {
                    self.next = Some((Box::pin(sleep_until(Instant::now() + interval)), interval));
                }
                Some(Item::Finish) | None => {
                    self.next = None;
                    self.waiting.close();
                    return Poll::Ready(None);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use nightshift_proto::v1::SpoolReplayed;
    use tokio::{runtime::Builder, time::timeout};

    use super::*;

    fn heartbeat(message: Option<AgentMessage>) -> Heartbeat {
        match message.and_then(|message| message.body) {
            Some(Body::Heartbeat(heartbeat)) => heartbeat,
            other => panic!("{other:?} is no heartbeat"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_heartbeat_says_how_late_it_is_and_comes_first() {
        let (sender, mut stream) = channel();
        sender.start_heartbeats(Duration::from_secs(1)).await.unwrap();
        assert_eq!(heartbeat(stream.next().await).lag_ms, 0);
        sender.send(Body::SpoolReplayed(SpoolReplayed {})).await.unwrap();
        // The transport did not ask for 3.5 s.
        tokio::time::sleep(Duration::from_millis(3_500)).await;
        assert!((2_490..=2_510).contains(&heartbeat(stream.next().await).lag_ms));
        assert!(matches!(stream.next().await.unwrap().body, Some(Body::SpoolReplayed(_))));
        assert_eq!(heartbeat(stream.next().await).lag_ms, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_does_not_go_on_falls_silent_until_it_does() {
        let agent = Builder::new_current_thread().build().unwrap();
        // Nobody drives it yet.
        let (sender, mut stream) = channel_of(Gauge::new(agent.handle().clone()));
        sender.start_heartbeats(Duration::from_secs(1)).await.unwrap();
        for seconds in 1..60 {
            assert_eq!(heartbeat(stream.next().await).lag_ms, seconds * 1_000);
        }
        assert!(timeout(Duration::from_secs(3_600), stream.next()).await.is_err());
        // What was said meanwhile still goes out.
        sender.send(Body::SpoolReplayed(SpoolReplayed {})).await.unwrap();
        assert!(matches!(stream.next().await.unwrap().body, Some(Body::SpoolReplayed(_))));
        let once = std::thread::spawn(move || {
            agent.block_on(tokio::task::yield_now());
            agent
        });
        let agent = once.join().unwrap();
        heartbeat(stream.next().await);
        agent.shutdown_background();
    }

    #[tokio::test(start_paused = true)]
    async fn the_stream_ends_behind_what_was_sent() {
        let (sender, mut stream) = channel();
        sender.start_heartbeats(Duration::from_secs(1)).await.unwrap();
        sender.send(Body::SpoolReplayed(SpoolReplayed {})).await.unwrap();
        sender.finish().await.unwrap();
        assert!(matches!(stream.next().await.unwrap().body, Some(Body::SpoolReplayed(_))));
        assert!(stream.next().await.is_none());
        assert_eq!(sender.send(Body::SpoolReplayed(SpoolReplayed {})).await, Err(Closed));
    }
}
