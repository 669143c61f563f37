//! A controller made of canned data, on a free port.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use nightshift_proto::v1::{
    self,
    control_service_server::{ControlService, ControlServiceServer},
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

use super::canned;

/// What the controller knows and what it was asked.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) status: v1::ClusterStatus,
    pub(crate) events: Vec<v1::Event>,
    pub(crate) logs: Vec<v1::LogLine>,
    pub(crate) results: Vec<&'static str>,
    /// Snapshots of `WatchJobs`, one after the other; the stream then ends.
    pub(crate) snapshots: Vec<v1::WatchJobsReply>,
    /// Answers to `Submit`; without any, the upload is accepted.
    pub(crate) submit_reply: Option<v1::SubmitReply>,
    /// The answer to `Plan`; without one, no node knows the model.
    pub(crate) plan: Option<v1::PlanReply>,
    /// What `Explain` says of every job and node.
    pub(crate) rulings: Vec<v1::Ruling>,
    /// The answer to `Diagnose` of any node there is.
    pub(crate) diagnosis: v1::Diagnosis,
    /// The answer to `GetReport`.
    pub(crate) report: v1::Report,
    /// So many `Submit` calls are cut off before an answer.
    pub(crate) cut_submissions: u32,
    /// Streams break after so many messages, the first time.
    pub(crate) break_stream_after: Option<usize>,
    pub(crate) submissions: Mutex<Vec<(v1::JobSpec, Vec<u8>)>>,
    pub(crate) planned: Mutex<Vec<v1::PlanRequest>>,
    pub(crate) asked: Mutex<Vec<String>>,
    pub(crate) breaks: AtomicU32,
    pub(crate) cuts: AtomicU32,
}

impl World {
    pub(crate) fn healthy() -> Self {
        World { status: canned::healthy_status(), ..World::default() }
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn note(&self, what: String) {
        self.asked.lock().unwrap().push(what);
    }

    fn job(&self, job_id: u64) -> Result<v1::Job, Status> {
        let known = self.status.jobs.iter().find(|job| job.job_id == job_id);
        known.cloned().ok_or_else(|| Status::not_found(format!("there is no job j{job_id}")))
    }

    /// The messages, with a break in the middle if one is due.
    fn stream<T: Send + 'static>(&self, messages: Vec<T>) -> Replies<T> {
        let breaks = self.break_stream_after.filter(|_| self.breaks.fetch_add(1, Ordering::SeqCst) == 0);
        match breaks {
            Some(after) => {
                let broken = stream::iter([Err(Status::unavailable("stopping"))]);
                Box::pin(stream::iter(messages.into_iter().take(after).map(Ok)).chain(broken))
            }
            None => Box::pin(stream::iter(messages.into_iter().map(Ok))),
        }
    }
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Debug, Clone)]
struct Service(Arc<World>);

#[tonic::async_trait]
impl ControlService for Service {
    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::ClusterStatus>, Status> {
        Ok(Response::new(self.0.status.clone()))
    }

    async fn submit(
        &self,
        request: Request<Streaming<v1::SubmitChunk>>,
    ) -> Result<Response<v1::SubmitReply>, Status> {
        let mut chunks = request.into_inner();
        let mut spec = None;
        let mut data = Vec::new();
        let is_cut = self.0.cuts.fetch_add(1, Ordering::SeqCst) < self.0.cut_submissions;
        let mut is_whole = false;
        while let Some(chunk) = chunks.message().await? {
            match chunk.part {
                Some(v1::submit_chunk::Part::Data(d)) if d.is_empty() => is_whole = true,
                Some(v1::submit_chunk::Part::Spec(s)) => spec = Some(s),
                Some(v1::submit_chunk::Part::Data(d)) => data.extend_from_slice(&d),
                None => {}
            }
        }
        if !is_whole {
            return Err(Status::cancelled("cut off"));
        }
        let spec = spec.ok_or_else(|| Status::invalid_argument("no spec"))?;
        self.0.submissions.lock().unwrap().push((spec.clone(), data));
        if is_cut {
            // The task of this call dies, and with it the connection's stream: no status reaches the client.
            panic!("cut off, as the test wants it");
        }
        let accepted = v1::Job { spec: Some(spec), rows_total: 36, ..canned::queued_job() };
        Ok(Response::new(self.0.submit_reply.clone().unwrap_or(v1::SubmitReply {
            outcome: Some(v1::submit_reply::Outcome::Accepted(v1::Job { detail: String::new(), ..accepted })),
        })))
    }

    async fn get_report(
        &self,
        request: Request<v1::GetReportRequest>,
    ) -> Result<Response<v1::Report>, Status> {
        let since = request.into_inner().since;
        self.0.note(format!("report since={since:?}"));
        match since.as_str() {
            "yesterday" => Err(Status::invalid_argument("\"yesterday\" is no beginning of a report")),
            _ => Ok(Response::new(self.0.report.clone())),
        }
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::Explanation>, Status> {
        let v1::ExplainRequest { job_id, node_id } = request.into_inner();
        let about = if node_id.is_empty() {
            v1::explanation::About::Job(self.0.job(job_id)?)
        } else {
            let node = self.0.status.nodes.iter().find(|node| node.node_id == node_id).cloned();
            let node = node.ok_or_else(|| Status::not_found(format!("there is no node {node_id}")))?;
            v1::explanation::About::Node(node)
        };
        Ok(Response::new(v1::Explanation { about: Some(about), rulings: self.0.rulings.clone() }))
    }

    async fn diagnose(
        &self,
        request: Request<v1::DiagnoseRequest>,
    ) -> Result<Response<v1::Diagnosis>, Status> {
        let v1::DiagnoseRequest { node_id } = request.into_inner();
        self.0.note(format!("diagnose node={node_id:?}"));
        if !node_id.is_empty() && self.0.status.nodes.iter().all(|node| node.node_id != node_id) {
            return Err(Status::not_found(format!("there is no node {node_id}")));
        }
        Ok(Response::new(self.0.diagnosis.clone()))
    }

    async fn list_jobs(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsReply>, Status> {
        let all = request.into_inner().all;
        let finished = v1::JobState::Completed as i32;
        let jobs = self.0.status.jobs.iter().filter(|job| all || job.state != finished).cloned().collect();
        Ok(Response::new(v1::ListJobsReply { jobs }))
    }

    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Result<Response<v1::Job>, Status> {
        self.0.job(request.into_inner().job_id).map(Response::new)
    }

    type WatchJobsStream = Replies<v1::WatchJobsReply>;

    async fn watch_jobs(
        &self,
        request: Request<v1::WatchJobsRequest>,
    ) -> Result<Response<Self::WatchJobsStream>, Status> {
        let job_id = request.into_inner().job_id;
        if job_id != 0 {
            self.0.job(job_id)?;
        }
        Ok(Response::new(self.0.stream(self.0.snapshots.clone())))
    }

    type GetResultsStream = Replies<v1::ResultsChunk>;

    async fn get_results(
        &self,
        request: Request<v1::GetResultsRequest>,
    ) -> Result<Response<Self::GetResultsStream>, Status> {
        let request = request.into_inner();
        self.0.job(request.job_id)?;
        self.0.note(format!("results follow={} errors={}", request.follow, request.errors));
        let chunks = self.0.results.iter().map(|data| v1::ResultsChunk { data: (*data).into() }).collect();
        Ok(Response::new(self.0.stream(chunks)))
    }

    async fn pause_job(&self, request: Request<v1::JobRequest>) -> Result<Response<v1::Job>, Status> {
        let job = self.0.job(request.into_inner().job_id)?;
        if job.state == v1::JobState::Completed as i32 {
            return Err(Status::failed_precondition("Job j6 has ended; there is nothing to pause."));
        }
        Ok(Response::new(v1::Job { state: v1::JobState::Paused.into(), eta_ms: None, ..job }))
    }

    async fn resume_job(&self, request: Request<v1::JobRequest>) -> Result<Response<v1::Job>, Status> {
        self.0.job(request.into_inner().job_id).map(Response::new)
    }

    async fn cancel_job(&self, request: Request<v1::JobRequest>) -> Result<Response<v1::Job>, Status> {
        let request = request.into_inner();
        self.0.note(format!("cancel now={}", request.now));
        let job = self.0.job(request.job_id)?;
        Ok(Response::new(v1::Job { state: v1::JobState::Cancelling.into(), eta_ms: None, ..job }))
    }

    async fn list_nodes(
        &self,
        _: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesReply>, Status> {
        Ok(Response::new(v1::ListNodesReply { nodes: self.0.status.nodes.clone() }))
    }

    async fn drain_node(&self, request: Request<v1::DrainNodeRequest>) -> Result<Response<v1::Node>, Status> {
        let request = request.into_inner();
        let node = self.0.status.nodes.iter().find(|node| node.node_id == request.node_id).cloned();
        let node = node.ok_or_else(|| Status::not_found(format!("There is no node {}.", request.node_id)))?;
        let state = if request.drain { v1::NodeState::Draining.into() } else { node.state };
        Ok(Response::new(v1::Node { state, ..node }))
    }

    async fn plan(&self, request: Request<v1::PlanRequest>) -> Result<Response<v1::PlanReply>, Status> {
        let request = request.into_inner();
        let reply = self.0.plan.clone().unwrap_or_else(|| canned::no_such_model(&request.model));
        self.0.planned.lock().unwrap().push(request);
        Ok(Response::new(reply))
    }

    type GetEventsStream = Replies<v1::Event>;

    async fn get_events(
        &self,
        request: Request<v1::GetEventsRequest>,
    ) -> Result<Response<Self::GetEventsStream>, Status> {
        let request = request.into_inner();
        self.0
            .note(format!("events tail={} node={:?} job={}", request.tail, request.node_id, request.job_id));
        let events = self.0.stream(self.0.events.clone());
        // A follower stays connected.
        let events: Replies<v1::Event> =
            if request.follow { Box::pin(events.chain(stream::pending())) } else { events };
        Ok(Response::new(events))
    }

    type GetLogsStream = Replies<v1::LogLines>;

    async fn get_logs(
        &self,
        request: Request<v1::GetLogsRequest>,
    ) -> Result<Response<Self::GetLogsStream>, Status> {
        let request = request.into_inner();
        self.0.note(format!(
            "logs node={:?} job={} tail={}",
            request.node_id, request.job_id, request.tail_lines
        ));
        if request.job_id == 0 && self.0.status.nodes.iter().all(|node| node.node_id != request.node_id) {
            return Err(Status::not_found(format!("There is no node {}.", request.node_id)));
        }
        let lines = v1::LogLines { request_id: 1, lines: self.0.logs.clone(), end: true };
        Ok(Response::new(self.0.stream(vec![lines])))
    }
}

/// Serves until it is dropped.
#[derive(Debug)]
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    pub(crate) world: Arc<World>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Fake {
    pub(crate) fn start(world: World) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let world = Arc::new(world);
        let service = ControlServiceServer::new(Service(Arc::clone(&world)));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        Fake { address, world, runtime: Some(runtime) }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}
