//! How the rest of the controller talks to the driver.

use std::{fmt, path::PathBuf};

use nightshift_proto::v1;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{Message, NodeReport, requests::Request};
use crate::{
    config::Config,
    intake::Staged,
    ledger,
    model::{EventDraft, JobId, JobSpec, NodeId},
    recovery::{RefusedRequest, SessionId},
    rpc::plan::PlanView,
};

/// Talks to the driver. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    inbox: mpsc::Sender<Message>,
    changed: watch::Receiver<u64>,
    ledger: ledger::Handle,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("driver::Handle")
    }
}

/// Why the driver did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The controller is stopping.
    #[error("the controller is stopping")]
    Stopping,
    /// The request does not fit the state.
    #[error(transparent)]
    Refused(#[from] RefusedRequest),
    /// The job could not be recorded.
    #[error("the job could not be recorded, and nothing of it was kept")]
    NotRecorded(#[source] ledger::Error),
    /// Another agent with this name is connected.
    #[error(
        "another agent is connected as node {0}; give one of them another node_id (if it is the same machine, it is \
         taken in once the old connection has ended)"
    )]
    NameInUse(NodeId),
}

/// An agent's first message, and the way back to it.
pub struct OpenSession {
    /// Its name, checked.
    pub node: NodeId,
    /// What it said.
    pub hello: Box<v1::Hello>,
    /// Messages to it.
    pub outbox: mpsc::Sender<Result<v1::ControllerMessage, tonic::Status>>,
    /// Cancelled when the connection is to end.
    pub closed: CancellationToken,
    pub(super) reply: oneshot::Sender<Result<SessionId, Refusal>>,
}

impl fmt::Debug for OpenSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpenSession({})", self.node)
    }
}

/// The right to speak for a node over one connection.
#[derive(Clone, Debug)]
pub struct SessionTicket {
    node: NodeId,
    session: SessionId,
    inbox: mpsc::Sender<Message>,
}

impl SessionTicket {
    /// Passes on what the agent says; waits when the driver is busy.
    ///
    /// # Errors
    /// When the controller is stopping.
    pub async fn say(&self, body: v1::agent_message::Body) -> Result<(), Refusal> {
        let message = Message::Agent { node: self.node.clone(), session: self.session, body: Box::new(body) };
        self.inbox.send(message).await.map_err(|_| Refusal::Stopping)
    }

    /// The connection ended.
    pub async fn close(self) {
        // When the driver is gone, so is its memory of the connection.
        let _ = self.inbox.send(Message::Closed { node: self.node, session: self.session }).await;
    }
}

/// Where a job's files are, and how much of them is durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JobFiles {
    /// The job's directory.
    pub dir: PathBuf,
    /// Durable length of `results.jsonl`.
    pub results_bytes: u64,
    /// Durable length of `errors.jsonl`.
    pub errors_bytes: u64,
    /// Nothing will be added.
    pub over: bool,
}

impl Handle {
    pub(super) fn new(
        inbox: mpsc::Sender<Message>,
        changed: watch::Receiver<u64>,
        ledger: ledger::Handle,
    ) -> Self {
        Self { inbox, changed, ledger }
    }

    /// Tells when something may have changed.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }

    /// The ledger, for reading events.
    #[must_use]
    pub fn ledger(&self) -> &ledger::Handle {
        &self.ledger
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.inbox.send(Message::Request(request(reply))).await.map_err(|_| Refusal::Stopping)?;
        answer.await.map_err(|_| Refusal::Stopping)
    }

    /// Takes an agent in.
    ///
    /// # Errors
    /// When another agent has its name, or the controller is stopping.
    pub async fn open_session(
        &self,
        node: NodeId,
        hello: v1::Hello,
        outbox: mpsc::Sender<Result<v1::ControllerMessage, tonic::Status>>,
        closed: CancellationToken,
    ) -> Result<SessionTicket, Refusal> {
        let (reply, answer) = oneshot::channel();
        let open = OpenSession { node: node.clone(), hello: Box::new(hello), outbox, closed, reply };
        self.inbox.send(Message::Open(open)).await.map_err(|_| Refusal::Stopping)?;
        let session = answer.await.map_err(|_| Refusal::Stopping)??;
        Ok(SessionTicket { node, session, inbox: self.inbox.clone() })
    }

    /// Everything on one screen.
    ///
    /// # Errors
    /// When the controller is stopping.
    pub async fn status(&self) -> Result<v1::ClusterStatus, Refusal> {
        self.ask(Request::Status).await
    }

    /// What happened since a moment.
    ///
    /// # Errors
    /// When the controller is stopping.
    pub async fn report(&self, since_unix_ms: u64) -> Result<v1::Report, Refusal> {
        self.ask(|reply| Request::Report { since_unix_ms, reply }).await
    }

    /// Why a job is where it is.
    ///
    /// # Errors
    /// When there is none, or the controller is stopping.
    pub async fn explain_job(&self, job: JobId) -> Result<v1::Explanation, Refusal> {
        self.ask(|reply| Request::ExplainJob { job, reply }).await?
    }

    /// Why a node does or does not work.
    ///
    /// # Errors
    /// When there is none, or the controller is stopping.
    pub async fn explain_node(&self, node: NodeId) -> Result<v1::Explanation, Refusal> {
        self.ask(|reply| Request::ExplainNode { node, reply }).await?
    }

    /// What a person should know and do before a night, of one node or of all.
    ///
    /// # Errors
    /// When there is no such node, or the controller is stopping.
    pub async fn diagnose(&self, node: Option<NodeId>) -> Result<v1::Diagnosis, Refusal> {
        self.ask(|reply| Request::Diagnose { node, reply }).await?
    }

    /// Jobs, oldest first.
    ///
    /// # Errors
    /// When the controller is stopping.
    pub async fn jobs(&self, finished_too: bool) -> Result<Vec<v1::Job>, Refusal> {
        self.ask(|reply| Request::Jobs { finished_too, reply }).await
    }

    /// One job.
    ///
    /// # Errors
    /// When there is none, or the controller is stopping.
    pub async fn job(&self, job: JobId) -> Result<v1::Job, Refusal> {
        self.ask(|reply| Request::Job { job, reply }).await?
    }

    /// A job's files.
    ///
    /// # Errors
    /// When there is no such job, or the controller is stopping.
    pub async fn job_files(&self, job: JobId) -> Result<JobFiles, Refusal> {
        self.ask(|reply| Request::JobFiles { job, reply }).await?
    }

    /// All nodes.
    ///
    /// # Errors
    /// When the controller is stopping.
    pub async fn nodes(&self) -> Result<Vec<v1::Node>, Refusal> {
        self.ask(Request::Nodes).await
    }

    /// Makes a job of what was staged; durable on return. The same submission made again is the same job.
    ///
    /// # Errors
    /// When it cannot be recorded; then nothing of it is kept.
    pub async fn submit(&self, spec: JobSpec, staged: Staged) -> Result<v1::Job, Refusal> {
        self.ask(|reply| Request::Submit { spec: Box::new(spec), staged: Box::new(staged), reply }).await?
    }

    /// The job an earlier try of this submission made, if it got that far.
    ///
    /// # Errors
    /// When the controller is stopping.
    pub async fn submitted(&self, submission_id: String) -> Result<Option<v1::Job>, Refusal> {
        self.ask(|reply| Request::Submitted { submission_id, reply }).await
    }

    /// Holds a job back.
    ///
    /// # Errors
    /// When there is no such job, or it is not in a state for that.
    pub async fn pause(&self, job: JobId) -> Result<v1::Job, Refusal> {
        self.ask(|reply| Request::Pause { job, reply }).await?
    }

    /// Lets a job go on.
    ///
    /// # Errors
    /// When there is no such job, or it is not in a state for that.
    pub async fn resume(&self, job: JobId) -> Result<v1::Job, Refusal> {
        self.ask(|reply| Request::Resume { job, reply }).await?
    }

    /// Ends a job.
    ///
    /// # Errors
    /// When there is no such job, or it is over.
    pub async fn cancel(&self, job: JobId, now: bool) -> Result<v1::Job, Refusal> {
        self.ask(|reply| Request::Cancel { job, now, reply }).await?
    }

    /// Takes a node out of service, or back in.
    ///
    /// # Errors
    /// When there is no such node.
    pub async fn drain(&self, node: NodeId, drain: bool) -> Result<v1::Node, Refusal> {
        self.ask(|reply| Request::Drain { node, drain, reply }).await?
    }

    /// Log lines of a node or of a job's workers.
    ///
    /// # Errors
    /// When there is no such node or job.
    pub async fn logs(&self, wanted: v1::GetLogsRequest) -> Result<mpsc::Receiver<v1::LogLines>, Refusal> {
        self.ask(|reply| Request::Logs { wanted, reply }).await?
    }

    /// Nodes, links and settings as a plan needs them.
    pub(crate) async fn plan_view(&self) -> Result<PlanView, Refusal> {
        self.ask(Request::PlanView).await
    }

    /// What each connected node says about a model; the channel closes when all have answered or are gone.
    pub(crate) async fn ask_about_model(&self, model: String) -> Result<mpsc::Receiver<NodeReport>, Refusal> {
        self.ask(|reply| Request::AskAboutModel { model, reply }).await?
    }

    /// The configuration file changed and was found good.
    pub async fn config_changed(&self, config: Config) {
        let _ = self.inbox.send(Message::ConfigChanged(Box::new(config))).await;
    }

    /// Something people should be able to read afterwards.
    pub async fn note(&self, draft: EventDraft) {
        let _ = self.inbox.send(Message::Note(draft)).await;
    }
}
