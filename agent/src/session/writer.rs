//! The outgoing half of a session: what is sent, and in which order.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use nightshift_proto::v1::{self, agent_message::Body};
use tokio::sync::watch;

use super::{Boot, conversation::Error, feed, outgoing::Sender};
use crate::{
    probe::Observation,
    spool::{self, Cursor},
};

/// Results in one message (with [`MAX_BYTES`]): what one group commit of the controller takes.
const MAX_RESULTS: usize = 256;

/// Bytes of results in one message.
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// See the module.
#[derive(Debug)]
pub struct Writer {
    /// Into the stream.
    pub sender: Sender,
    /// Events of supervisor and workers.
    pub feed: feed::Receiver,
    /// Results.
    pub spool: spool::Handle,
    /// Observations.
    pub observations: watch::Receiver<Arc<Observation>>,
    /// Told with them.
    pub boot: Boot,
    /// The highest number sent in this session, for the incoming half: more cannot be acknowledged.
    pub sent_through: Arc<AtomicU64>,
    /// Where to go on.
    pub cursor: Cursor,
}

impl Writer {
    /// Sends what is spooled, says so, and goes on with what comes. Returns when the supervisor has ended and everything
    /// it left has been sent.
    ///
    /// # Errors
    /// When the stream is closed or the spool cannot be read.
    pub async fn run(mut self) -> Result<(), Error> {
        let mut last_seq = self.spool.last_seq();
        let spooled = *last_seq.borrow_and_update();
        self.send_results(spooled).await?;
        self.send(Body::SpoolReplayed(v1::SpoolReplayed {})).await?;
        loop {
            let next_seq = self.cursor.next_seq;
            tokio::select! {
                found = last_seq.wait_for(|last| *last >= next_seq) => {
                    let through = *found.map_err(|_| spool::Closed)?;
                    self.send_results(through).await?;
                }
                event = self.feed.next() => match event {
                    Some(event) => self.send_event(event).await?,
                    None => return self.send_rest().await,
                },
                changed = self.observations.changed() => {
                    changed.map_err(|_| Error::Internal("the probe has ended"))?;
                    self.send_observation().await?;
                }
                // What became of the ports does not wait for the next look at the machine.
                Ok(()) = self.boot.links.changed() => self.send_observation().await?,
            }
        }
    }

    async fn send_observation(&mut self) -> Result<(), Error> {
        let observation = self.boot.with(&self.observations.borrow_and_update());
        self.send(Body::Observation(observation)).await
    }

    async fn send_event(&mut self, event: feed::Outbound) -> Result<(), Error> {
        self.send_results(event.after_seq).await?;
        self.send(event.body).await
    }

    async fn send_rest(mut self) -> Result<(), Error> {
        while let Some(event) = self.feed.try_next() {
            self.send_event(event).await?;
        }
        let last = *self.spool.last_seq().borrow();
        self.send_results(last).await
    }

    /// Sends results up to this number, as far as they are not sent.
    async fn send_results(&mut self, through: u64) -> Result<(), Error> {
        while self.cursor.next_seq <= through {
            let batch = self.spool.read(self.cursor, MAX_RESULTS, MAX_BYTES).await?;
            self.cursor = batch.cursor;
            let Some(last) = batch.results.last() else { return Ok(()) };
            // Before it is sent, because the answer may come before this task goes on.
            self.sent_through.fetch_max(last.spool_seq, Ordering::Relaxed);
            self.send(Body::RowResults(v1::RowResults { results: batch.results })).await?;
        }
        Ok(())
    }

    async fn send(&self, body: Body) -> Result<(), Error> {
        Ok(self.sender.send(body).await?)
    }
}
