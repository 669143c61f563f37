//! What agents and people ask of the driver.

use std::collections::{BTreeSet, VecDeque};

use nightshift_proto::v1::{self, agent_message::Body as FromAgent, controller_message::Body as ToAgent};
use tokio::sync::{mpsc, oneshot};

use super::{
    Connection, Driver, NodeReport, Refusal,
    handle::{JobFiles, OpenSession},
};
use crate::{
    intake::Staged,
    model::{Epoch, JobId, JobRecord, JobSpec, JobState, NodeId, Work},
    recovery::{Event, RefusedRequest, Ruling, SessionId},
    rpc::{cables, convert, nodes, plan::PlanView},
};

type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

pub(super) enum Request {
    Status(oneshot::Sender<v1::ClusterStatus>),
    Report { since_unix_ms: u64, reply: oneshot::Sender<v1::Report> },
    ExplainJob { job: JobId, reply: Reply<v1::Explanation> },
    ExplainNode { node: NodeId, reply: Reply<v1::Explanation> },
    Diagnose { node: Option<NodeId>, reply: Reply<v1::Diagnosis> },
    Jobs { finished_too: bool, reply: oneshot::Sender<Vec<v1::Job>> },
    Job { job: JobId, reply: Reply<v1::Job> },
    JobFiles { job: JobId, reply: Reply<JobFiles> },
    Nodes(oneshot::Sender<Vec<v1::Node>>),
    Submit { spec: Box<JobSpec>, staged: Box<Staged>, reply: Reply<v1::Job> },
    Submitted { submission_id: String, reply: oneshot::Sender<Option<v1::Job>> },
    Pause { job: JobId, reply: Reply<v1::Job> },
    Resume { job: JobId, reply: Reply<v1::Job> },
    Cancel { job: JobId, now: bool, reply: Reply<v1::Job> },
    Drain { node: NodeId, drain: bool, reply: Reply<v1::Node> },
    Logs { wanted: v1::GetLogsRequest, reply: Reply<mpsc::Receiver<v1::LogLines>> },
    PlanView(oneshot::Sender<PlanView>),
    AskAboutModel { model: String, reply: Reply<mpsc::Receiver<NodeReport>> },
}

impl Driver {
    /// Answers a request. Whoever asked may have gone away meanwhile; that is no error.
    pub(super) async fn on_request(&mut self, request: Request) {
        match request {
            Request::Status(reply) => _ = reply.send(self.status_view()),
            Request::Report { since_unix_ms, reply } => _ = reply.send(self.report_view(since_unix_ms)),
            Request::ExplainJob { job, reply } => _ = reply.send(self.explain_job(job)),
            Request::ExplainNode { node, reply } => _ = reply.send(self.explain_node(node)),
            Request::Diagnose { node, reply } => _ = reply.send(self.diagnose(node)),
            Request::Jobs { finished_too, reply } => _ = reply.send(self.jobs_view(finished_too)),
            Request::Job { job, reply } => _ = reply.send(self.job_or_refusal(job)),
            Request::JobFiles { job, reply } => _ = reply.send(self.job_files(job)),
            Request::Nodes(reply) => _ = reply.send(self.nodes_view()),
            Request::Submit { spec, staged, reply } => _ = reply.send(self.submit(*spec, *staged).await),
            Request::Submitted { submission_id, reply } => {
                let found = self.find_submission(&submission_id);
                _ = reply.send(found.and_then(|job| self.job_or_refusal(job).ok()));
            }
            Request::Pause { job, reply } => {
                let may = self.machine.may_pause(job);
                _ = reply.send(self.steer(job, may, Event::Pause(job)).await);
            }
            Request::Resume { job, reply } => {
                let may = self.machine.may_resume(job);
                _ = reply.send(self.steer(job, may, Event::Resume(job)).await);
            }
            Request::Cancel { job, now, reply } => {
                let may = self.machine.may_cancel(job);
                _ = reply.send(self.steer(job, may, Event::Cancel { job, now }).await);
            }
            Request::Drain { node, drain, reply } => {
                let known = self.machine.node(&node).is_some();
                if known {
                    self.apply(Event::Drain { node: node.clone(), drain }, &[]).await;
                }
                let view = self.node_view(&node).filter(|_| known);
                _ = reply.send(view.ok_or_else(|| RefusedRequest::NoSuchNode(node).into()));
            }
            Request::Logs { wanted, reply } => _ = reply.send(self.open_logs(&wanted)),
            Request::PlanView(reply) => _ = reply.send(self.plan_view()),
            Request::AskAboutModel { model, reply } => {
                let reports = self.ask_about_model(&model);
                _ = reply.send(reports.ok_or_else(|| RefusedRequest::TooManyQuestions.into()));
            }
        }
    }

    async fn steer(
        &mut self,
        job: JobId,
        may: Result<(), RefusedRequest>,
        event: Event,
    ) -> Result<v1::Job, Refusal> {
        may?;
        self.apply(event, &[]).await;
        self.job_or_refusal(job)
    }

    fn job_or_refusal(&self, job: JobId) -> Result<v1::Job, Refusal> {
        self.job_view(job).ok_or_else(|| RefusedRequest::NoSuchJob(job).into())
    }

    fn explain_job(&self, id: JobId) -> Result<v1::Explanation, Refusal> {
        let job = self.job_or_refusal(id)?;
        let rulings = self.machine.explain_job(self.now(), id).unwrap_or_default();
        Ok(explanation(v1::explanation::About::Job(job), rulings))
    }

    fn explain_node(&self, id: NodeId) -> Result<v1::Explanation, Refusal> {
        let rulings = self.machine.explain_node(self.now(), &id);
        let told = self.node_view(&id).zip(rulings);
        let (node, rulings) = told.ok_or(RefusedRequest::NoSuchNode(id))?;
        Ok(explanation(v1::explanation::About::Node(node), rulings))
    }

    fn job_files(&self, id: JobId) -> Result<JobFiles, Refusal> {
        let job = self.machine.job(id).ok_or(RefusedRequest::NoSuchJob(id))?;
        Ok(JobFiles {
            dir: self.ledger.job_dir(id),
            results_bytes: job.results_bytes,
            errors_bytes: job.errors_bytes,
            over: job.record.state.is_over(),
        })
    }

    fn find_submission(&self, submission_id: &str) -> Option<JobId> {
        let same =
            |record: &&JobRecord| !submission_id.is_empty() && record.spec.submission_id == submission_id;
        self.machine.jobs().map(|job| &job.record).find(same).map(|record| record.id)
    }

    async fn submit(&mut self, spec: JobSpec, staged: Staged) -> Result<v1::Job, Refusal> {
        if let Some(job) = self.find_submission(&spec.submission_id) {
            return self.job_or_refusal(job);
        }
        let id = self.next_job;
        let record = JobRecord {
            id,
            spec,
            rows_total: staged.rows_total,
            lengths: staged.lengths,
            state: JobState::Active,
            detail: String::new(),
            created_unix_ms: self.now().unix_ms,
            started_unix_ms: None,
            finished_unix_ms: None,
            epoch: Epoch::default(),
            launches: Vec::new(),
            rows_requeued: 0,
            duplicate_results: 0,
            crashes: Vec::new(),
            work: Work::default(),
        };
        self.ledger.create_job(staged, record.clone()).await.map_err(Refusal::NotRecorded)?;
        self.next_job = JobId(id.0 + 1);
        self.apply(Event::JobAccepted(record), &[]).await;
        self.job_or_refusal(id)
    }

    pub(super) async fn on_open(&mut self, open: OpenSession) {
        let OpenSession { node, hello, outbox, closed, reply } = open;
        let other = self.machine.node(&node).filter(|known| {
            known.facts.agent_instance_id != hello.agent_instance_id && self.connections.contains_key(&node)
        });
        if other.is_some() {
            _ = reply.send(Err(Refusal::NameInUse(node)));
            return;
        }
        let session = SessionId(self.next_session);
        self.next_session += 1;
        let welcome = v1::Welcome {
            controller_instance_id: self.instance_id.clone(),
            heartbeat_interval_ms: self.config.agents.heartbeat_interval_ms,
            observation_interval_ms: self.config.agents.observation_interval_ms,
            progress_interval_ms: self.config.agents.progress_interval_ms,
            ledger_id: self.ledger_id.clone(),
        };
        if !hello.ledger_id.is_empty() && hello.ledger_id != self.ledger_id {
            // Its job numbers are another ledger's: taking its workers or results for ours would mix two nights up.
            tracing::info!(%node, "the agent served another ledger; it starts afresh with this one");
            // An agent that does not hear it asks again.
            _ = outbox.try_send(Ok(v1::ControllerMessage { body: Some(ToAgent::Welcome(welcome)) }));
            _ = reply.send(Ok(session));
            return;
        }
        let display = self.displays.entry(node.clone()).or_default();
        display.observation.clone_from(&hello.observation);
        display.told_ports.clear();
        display.runtime.clone_from(&hello.runtime);
        display.agent_version.clone_from(&hello.agent_version);
        display.memory_budget_bytes =
            hello.capabilities.as_ref().map_or(0, |capabilities| capabilities.memory_budget_bytes);
        if let Some(before) = self.connections.insert(node.clone(), Connection { session, outbox, closed }) {
            before.closed.cancel();
            self.logs.node_gone(&node);
            self.questions.node_gone(&node);
        }
        if reply.send(Ok(session)).is_err() {
            self.drop_connection(&node, session);
            return;
        }
        let mut queue = VecDeque::new();
        self.send_body(&node, session, ToAgent::Welcome(welcome), &mut queue);
        let facts = nodes::node_facts(&hello);
        let workers = hello.workers.iter().map(convert::reported_worker).collect();
        self.apply(Event::Hello { node, session, facts, workers }, &[]).await;
        for event in queue {
            self.apply(event, &[]).await;
        }
        self.tell_ports().await;
    }

    pub(super) async fn on_agent(&mut self, node: NodeId, session: SessionId, body: FromAgent) {
        if self.connections.get(&node).is_none_or(|connection| connection.session != session) {
            return;
        }
        self.apply(Event::Heard { node: node.clone(), session }, &[]).await;
        match body {
            // The second hello of a connection means nothing; that it was heard is noted above.
            FromAgent::Hello(_) => {}
            FromAgent::Heartbeat(heartbeat) => {
                let ahead_ms = i128::from(heartbeat.sent_unix_ms) - i128::from(self.now().unix_ms);
                let display = self.displays.entry(node).or_default();
                display.clock_ahead_ms = i64::try_from(ahead_ms).ok();
            }
            FromAgent::SpoolReplayed(_) => self.apply(Event::SpoolReplayed { node, session }, &[]).await,
            FromAgent::Observation(observation) => {
                let display = self.displays.entry(node.clone()).or_default();
                let memory = nodes::memory(Some(&observation), display.memory_budget_bytes);
                let interfaces = nodes::interfaces(Some(&observation));
                let thunderbolt = cables::thunderbolt(Some(&observation));
                let boot = nodes::boot(Some(&observation));
                let may_restart = nodes::may_restart(Some(&observation));
                display.observation = Some(observation);
                let observed = Event::Observed { node, memory, interfaces, thunderbolt, boot, may_restart };
                self.apply(observed, &[]).await;
                self.tell_ports().await;
            }
            FromAgent::WorkerEvent(event) => self.on_worker_event(node, event).await,
            FromAgent::Progress(progress) => {
                let footprint_bytes = progress.footprint_bytes;
                let news = convert::progress(progress);
                let display = self.displays.entry(node.clone()).or_default();
                display.footprint = footprint_bytes.map(|bytes| (news.worker, bytes));
                self.apply(Event::Progress { node, news }, &[]).await;
            }
            FromAgent::RowResults(results) => {
                let heads = results.results.iter().map(convert::result_head).collect();
                let bodies: Vec<_> = results.results.into_iter().map(|result| result.body).collect();
                self.apply(Event::Results { node, session, heads }, &bodies).await;
            }
            FromAgent::CommandResult(answer) if !answer.accepted => {
                let (command_id, problem) = (answer.command_id, answer.problem);
                tracing::info!(%node, command_id, problem, "the agent refused a command");
                self.apply(Event::CommandRefused { node, command_id, problem }, &[]).await;
            }
            FromAgent::CommandResult(_) => {}
            FromAgent::ModelInspected(inspected) => {
                if let Some(model) = self.questions.model_asked_for(inspected.request_id) {
                    let found = convert::model_found(inspected.report.unwrap_or_default());
                    self.apply(Event::ModelFound { node, session, model, found }, &[]).await;
                } else {
                    self.questions.answered(&node, inspected);
                }
            }
            FromAgent::NodeSeen(seen) => {
                if let Some(event) = convert::node_seen(node, &seen) {
                    self.apply(event, &[]).await;
                }
            }
            FromAgent::LinkTested(tested) => {
                let (request_id, result) = (tested.request_id, convert::link_test_result(&tested));
                self.apply(Event::LinkTested { node, session, request_id, result }, &[]).await;
            }
            FromAgent::LogLines(lines) => {
                let request_id = lines.request_id;
                if self.logs.deliver(&node, lines) {
                    self.end_logs(&node, request_id);
                }
            }
        }
    }

    async fn on_worker_event(&mut self, node: NodeId, event: v1::WorkerEvent) {
        let worker = convert::worker_key(event.worker);
        let event = match event.event {
            Some(v1::worker_event::Event::Started(started)) => {
                Event::WorkerStarted { node, worker, pid: started.pid }
            }
            Some(v1::worker_event::Event::Ready(ready)) => {
                let (load_ms, canary_tokens) = (ready.load_ms, ready.canary_tokens);
                Event::WorkerReady { node, worker, load_ms, canary_tokens }
            }
            Some(v1::worker_event::Event::Exited(exited)) => {
                Event::WorkerExited { node, exit: convert::worker_exit(worker, &exited) }
            }
            None => return,
        };
        self.apply(event, &[]).await;
    }

    fn open_logs(&mut self, wanted: &v1::GetLogsRequest) -> Result<mpsc::Receiver<v1::LogLines>, Refusal> {
        let nodes: BTreeSet<NodeId> = if wanted.job_id == 0 {
            let node = NodeId::from(wanted.node_id.as_str());
            if self.machine.node(&node).is_none() {
                return Err(RefusedRequest::NoSuchNode(node).into());
            }
            if !self.connections.contains_key(&node) {
                return Err(RefusedRequest::NodeAway(node).into());
            }
            [node].into()
        } else {
            if self.machine.job(JobId(wanted.job_id)).is_none() {
                return Err(RefusedRequest::NoSuchJob(JobId(wanted.job_id)).into());
            }
            self.connections.keys().cloned().collect()
        };
        for (id, nodes) in self.logs.abandoned() {
            for node in nodes {
                self.end_logs(&node, id);
            }
        }
        let Some((request_id, lines)) = self.logs.open(nodes.clone()) else {
            return Err(RefusedRequest::TooManyLogReaders.into());
        };
        let source = if wanted.job_id == 0 { v1::LogSource::Agent } else { v1::LogSource::Workers };
        for node in nodes {
            let request = v1::LogRequest {
                request_id,
                source: source.into(),
                job_id: wanted.job_id,
                tail_lines: wanted.tail_lines,
                follow: wanted.follow,
                cancel: false,
            };
            self.send_log_request(&node, request);
        }
        Ok(lines)
    }

    fn end_logs(&mut self, node: &NodeId, request_id: u64) {
        self.send_log_request(node, v1::LogRequest { request_id, cancel: true, ..Default::default() });
    }

    /// Best effort: a connection that cannot take it is found out by the next command.
    fn send_log_request(&self, node: &NodeId, request: v1::LogRequest) {
        if let Some(connection) = self.connections.get(node) {
            let message = v1::ControllerMessage { body: Some(ToAgent::LogRequest(request)) };
            _ = connection.outbox.try_send(Ok(message));
        }
    }
}

fn explanation(about: v1::explanation::About, rulings: Vec<Ruling>) -> v1::Explanation {
    let message = |ruling: Ruling| v1::Ruling {
        rule: ruling.rule.to_owned(),
        holds: ruling.holds,
        sentence: ruling.sentence,
    };
    v1::Explanation { about: Some(about), rulings: rulings.into_iter().map(message).collect() }
}
