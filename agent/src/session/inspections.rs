//! Answers questions about models, off the session's way.
//!
//! Promises: at most [`MAX_AT_ONCE`] are looked at together, whatever sessions come and go; at most 64 wait, and
//! more are answered at once that they cannot; heartbeats and commands wait for none of them.

use std::{path::PathBuf, sync::Arc};

use nightshift_proto::v1::{self, agent_message::Body};
use tokio::{sync::Semaphore, task::JoinSet};

use super::outgoing::{Closed, Sender};
use crate::model::{self, Place};

/// Each reads a disk; more at once are no faster.
pub const MAX_AT_ONCE: usize = 4;

/// A controller asks each node once a model.
const MAX_WAITING: usize = 64;

/// Looks at models. Cheap to clone; the bound holds for all clones together.
#[derive(Debug, Clone)]
pub struct Inspector {
    roots: Arc<[PathBuf]>,
    place: Arc<Place>,
    permits: Arc<Semaphore>,
}

impl Inspector {
    /// Of models under these roots (any, when there are none), found as from `place`.
    #[must_use]
    pub fn new(roots: Vec<PathBuf>, place: Place) -> Self {
        Self { roots: roots.into(), place: Arc::new(place), permits: Arc::new(Semaphore::new(MAX_AT_ONCE)) }
    }

    async fn inspect(self, name: String) -> v1::ModelReport {
        let failed = |problem: String| v1::ModelReport { problem, ..v1::ModelReport::default() };
        let Ok(permit) = self.permits.acquire_owned().await else {
            return failed("this agent is ending".to_owned());
        };
        let (roots, place) = (self.roots, self.place);
        let inspected = tokio::task::spawn_blocking(move || {
            // Held by the thread: it reads on where nobody waits for it any more.
            let _permit = permit;
            model::inspect(&name, &roots, &place)
        });
        inspected.await.unwrap_or_else(|error| failed(format!("the model could not be looked at: {error}")))
    }
}

/// The questions of one session; they end with it.
#[derive(Debug)]
pub struct Inspections {
    inspector: Inspector,
    sender: Sender,
    tasks: JoinSet<()>,
}

impl Inspections {
    /// For a session.
    #[must_use]
    pub fn new(inspector: Inspector, sender: Sender) -> Self {
        Self { inspector, sender, tasks: JoinSet::new() }
    }

    /// Takes a question up.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn take(&mut self, request: v1::InspectModel) -> Result<(), Closed> {
        while self.tasks.try_join_next().is_some() {}
        let v1::InspectModel { request_id, model } = request;
        if self.tasks.len() >= MAX_AT_ONCE + MAX_WAITING {
            let problem =
                format!("{} questions about models wait on this node: ask again later", self.tasks.len());
            let report = v1::ModelReport { model, problem, ..v1::ModelReport::default() };
            return self.sender.send(answer(request_id, report)).await;
        }
        let (inspector, sender) = (self.inspector.clone(), self.sender.clone());
        self.tasks.spawn(async move {
            let report = inspector.inspect(model).await;
            // A session that is gone asks again.
            let _ = sender.send(answer(request_id, report)).await;
        });
        Ok(())
    }
}

fn answer(request_id: u64, report: v1::ModelReport) -> Body {
    Body::ModelInspected(v1::ModelInspected { request_id, report: Some(report) })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures_util::StreamExt as _;

    use super::*;
    use crate::session::outgoing;

    async fn next(stream: &mut outgoing::Outgoing) -> (u64, String) {
        match stream.next().await.unwrap().body {
            Some(Body::ModelInspected(inspected)) => {
                (inspected.request_id, inspected.report.unwrap().problem)
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn every_question_is_answered_and_too_many_at_once() {
        let inspector = Inspector::new(Vec::new(), Place { base: "/".into(), ..Place::default() });
        // Nothing is looked at while these are taken.
        let permits = Arc::clone(&inspector.permits);
        let held = permits.acquire_many(MAX_AT_ONCE as u32).await.unwrap();
        let (sender, mut stream) = outgoing::channel();
        let mut inspections = Inspections::new(inspector, sender);
        let most = (MAX_AT_ONCE + MAX_WAITING) as u64;
        for request_id in 0..=most {
            inspections.take(v1::InspectModel { request_id, model: "/nonexistent".into() }).await.unwrap();
        }
        assert_eq!(
            next(&mut stream).await,
            (most, "68 questions about models wait on this node: ask again later".to_owned())
        );
        drop(held);
        let mut answers = BTreeMap::new();
        while answers.len() < most as usize {
            answers.extend([next(&mut stream).await]);
        }
        assert!(answers.values().all(|problem| problem.starts_with("there is no model directory")));
        inspections.take(v1::InspectModel { request_id: 99, model: String::new() }).await.unwrap();
        assert_eq!(next(&mut stream).await, (99, "no model is named".to_owned()));
    }
}
