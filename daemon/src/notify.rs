//! Tells a person of chosen transitions while nobody looks: runs a command, or posts to an address, for each.
//!
//! Never load-bearing. The driver hands messages over without waiting and goes on; what does not fit is counted, not kept.
//! One delivery at a time, each within a time limit, after which everything it started is ended. Deliveries that fail change
//! nothing else: one warning for a row of failures, and one word when it works again. What was waiting when the controller
//! stops is not told; it is in the events, as is everything that was left out.
//!
//! ```text
//! driver ──try_send──▶ inbox (bounded) ──▶ limiter (folds bursts) ──▶ one delivery: command, webhook
//! ```

mod deliver;
mod limiter;
mod message;
mod watch;

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, watch as latest};
use tokio_util::sync::CancellationToken;

pub use limiter::Limiter;
pub use message::{Kind, Message};
pub use watch::{JobStanding, Need, NodeStanding, Watch};

use crate::{
    config::Notify,
    model::{EventDraft, Severity},
};

/// Messages on their way from the driver. The task takes them at once, so more wait only when the machine is stuck.
const INBOX_MESSAGES: usize = 64;

/// The driver's end: hands messages over and never waits.
#[derive(Clone, Debug)]
pub struct Handle {
    inbox: mpsc::Sender<Message>,
    settings: latest::Sender<Notify>,
    lost: Arc<AtomicU64>,
}

/// The task's end.
#[derive(Debug)]
pub struct Inbox {
    messages: mpsc::Receiver<Message>,
    settings: latest::Receiver<Notify>,
    lost: Arc<AtomicU64>,
}

/// Both ends.
#[must_use]
pub fn channel(settings: Notify) -> (Handle, Inbox) {
    let (inbox, messages) = mpsc::channel(INBOX_MESSAGES);
    let settings = latest::Sender::new(settings);
    let lost = Arc::new(AtomicU64::new(0));
    let receiver = settings.subscribe();
    (Handle { inbox, settings, lost: Arc::clone(&lost) }, Inbox { messages, settings: receiver, lost })
}

impl Handle {
    /// Whether anybody is told anything.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.settings.borrow().is_on()
    }

    /// Hands a message over, if its kind is wanted.
    pub fn tell(&self, message: Message) {
        let is_wanted = {
            let settings = self.settings.borrow();
            settings.is_on() && settings.on.contains(&message.kind)
        };
        if is_wanted && self.inbox.try_send(message).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Other settings, from now on.
    pub fn configure(&self, settings: Notify) {
        self.settings.send_replace(settings);
    }
}

type Delivery = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// Delivers until `cancel` is cancelled. `note` is told, once each, when deliveries begin to fail and when they work again.
pub async fn run<F>(inbox: Inbox, note: impl Fn(EventDraft) -> F + Send, cancel: CancellationToken)
where
    F: Future<Output = ()> + Send,
{
    let Inbox { mut messages, mut settings, lost } = inbox;
    let clock = Instant::now();
    let mono_ms = || u64::try_from(clock.elapsed().as_millis()).unwrap_or(u64::MAX);
    let mut limiter = Limiter::new(settings.borrow_and_update().min_interval_s * 1_000);
    let mut delivery: Option<Delivery> = None;
    let mut is_failing = false;
    loop {
        if delivery.is_none() {
            limiter.note_left_out(lost.swap(0, Ordering::Relaxed));
            if let Some(message) = limiter.take(mono_ms()) {
                let settings = settings.borrow().clone();
                delivery = Some(Box::pin(async move { deliver::deliver(&settings, &message).await }));
            }
        }
        let wait = limiter.due_in_ms(mono_ms()).filter(|_| delivery.is_none()).map(Duration::from_millis);
        tokio::select! {
            () = cancel.cancelled() => return,
            message = messages.recv() => match message {
                Some(message) => limiter.push(message),
                None => return,
            },
            changed = settings.changed() => match changed {
                Ok(()) => limiter.set_min_interval_ms(settings.borrow_and_update().min_interval_s * 1_000),
                Err(_) => return,
            },
            outcome = ended(&mut delivery) => {
                delivery = None;
                let now_failing = outcome.is_err();
                if now_failing != is_failing {
                    is_failing = now_failing;
                    note(news(outcome)).await;
                }
            }
            () = slept(wait) => {}
        }
    }
}

/// The end of the delivery under way; never, without one.
async fn ended(delivery: &mut Option<Delivery>) -> Result<(), String> {
    match delivery {
        Some(delivery) => delivery.await,
        None => std::future::pending().await,
    }
}

/// The end of a wait; never, without one.
async fn slept(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

fn news(outcome: Result<(), String>) -> EventDraft {
    let (severity, kind, message) = match outcome {
        Ok(()) => (Severity::Info, "notify-works", "notifications are delivered again".to_owned()),
        Err(problem) => (
            Severity::Warning,
            "notify-failed",
            format!(
                "a notification was not delivered: {problem}; the night goes on without, look at [notify]"
            ),
        ),
    };
    EventDraft { severity, kind: kind.to_owned(), node: None, job: None, message }
}

#[cfg(test)]
mod tests;
