//! The stream of messages to the controller, with heartbeats woven in.
//!
//! A heartbeat is made at the moment the transport asks for a message, not before: its lag is then all the lateness there
//! was, of this process's scheduling and of a stream that did not drain alike, and no queue of stale ones builds up.
//! Heartbeats go before whatever else waits.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::Stream;
use nightshift_proto::v1::{AgentMessage, Heartbeat, agent_message::Body};
use tokio::{
    sync::mpsc,
    time::{Instant, Sleep, sleep_until},
};

use crate::util;

/// Messages on their way into the transport. Few, because each may hold 4 MiB of results, and what waits here has been
/// taken from where it could still be overtaken.
const MAX_WAITING: usize = 4;

/// Makes the stream and the way into it.
#[must_use]
pub fn channel() -> (Sender, Outgoing) {
    let (items, waiting) = mpsc::channel(MAX_WAITING);
    (Sender(items), Outgoing { waiting, next: None })
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
}

impl Outgoing {
    fn poll_heartbeat(&mut self, cx: &mut Context<'_>) -> Poll<Heartbeat> {
        let Some((sleep, interval)) = &mut self.next else { return Poll::Pending };
        ready!(sleep.as_mut().poll(cx));
        let (due, now) = (sleep.deadline(), Instant::now());
        let lag = now.duration_since(due);
        // Those that were missed are not made up for: one late heartbeat says it all.
        let next = if lag < *interval { due + *interval } else { now + *interval };
        sleep.as_mut().reset(next);
        let lag_ms = u64::try_from(lag.as_millis()).unwrap_or(u64::MAX);
        Poll::Ready(Heartbeat { sent_unix_ms: util::unix_ms(), lag_ms })
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
