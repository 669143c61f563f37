//! The way of events from supervisor and workers into the session, where they wait for their place in the stream.

use nightshift_proto::v1::{self, agent_message::Body};
use tokio::sync::mpsc;

/// Events that may wait. Progress that finds no place is not sent (its successor will be); events of workers and
/// answers to commands wait with the supervisor, which takes no more commands meanwhile.
const MAX_WAITING: usize = 64;

/// An event and its place among the results.
#[derive(Debug)]
pub struct Outbound {
    /// Not before the result of this number has been sent; 0 for at once.
    pub after_seq: u64,
    /// What to send.
    pub body: Body,
}

/// Makes a feed for one session.
#[must_use]
pub fn channel() -> (Sender, Receiver) {
    let (sender, receiver) = mpsc::channel(MAX_WAITING);
    (Sender(sender), Receiver(receiver))
}

/// Events go in here.
#[derive(Debug, Clone)]
pub struct Sender(mpsc::Sender<Outbound>);

/// A place for one event.
#[derive(Debug)]
pub struct Place<'a>(mpsc::Permit<'a, Outbound>);

impl Sender {
    /// A place, if there is one now.
    #[must_use]
    pub fn try_reserve(&self) -> Option<Place<'_>> {
        self.0.try_reserve().ok().map(Place)
    }

    /// A place, as soon as there is one; `None` when the session is over.
    pub async fn reserve(&self) -> Option<Place<'_>> {
        self.0.reserve().await.ok().map(Place)
    }
}

impl Place<'_> {
    /// Takes the place.
    pub fn put(self, event: Outbound) {
        self.0.send(event);
    }

    /// Takes the place for a report, which waits for no result.
    pub fn progress(self, progress: v1::Progress) {
        self.put(Outbound { after_seq: 0, body: Body::Progress(progress) });
    }
}

/// Events come out here.
#[derive(Debug)]
pub struct Receiver(mpsc::Receiver<Outbound>);

impl Receiver {
    /// The next event; `None` when no more will come.
    pub async fn next(&mut self) -> Option<Outbound> {
        self.0.recv().await
    }

    /// The next event, if there is one now.
    pub fn try_next(&mut self) -> Option<Outbound> {
        self.0.try_recv().ok()
    }
}
