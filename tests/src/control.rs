//! The control service as the cases use it: requests that outlive a restart of the controller, and waits on jobs.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use nightshift_proto::{
    MAX_MESSAGE_BYTES,
    v1::{
        ClusterStatus, DrainNodeRequest, Event, GetEventsRequest, GetJobRequest, GetResultsRequest,
        GetStatusRequest, Incident, Job, JobRequest, JobSpec, JobState, Node, NodeState, Rejection,
        SubmitChunk, control_service_client::ControlServiceClient, submit_chunk, submit_reply,
    },
};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use crate::wait;

/// How large a piece of a submission is. Well below the message limit.
const CHUNK_BYTES: usize = 256 * 1024;

/// How long a single request may take; a controller that needs longer for one hangs.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);

/// A client of one controller.
#[derive(Clone, Debug)]
pub struct Control {
    client: ControlServiceClient<Channel>,
}

impl Control {
    /// A client of the controller at `address` ("ip:port"); connects when first used, and again when it must.
    ///
    /// # Panics
    /// When the address is none.
    #[must_use]
    pub fn new(address: &str) -> Self {
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .expect("the controller's address is one")
            .connect_timeout(Duration::from_secs(5))
            .connect_lazy();
        Self { client: ControlServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES) }
    }

    /// The generated client, for what has no short form here.
    #[must_use]
    pub fn raw(&self) -> ControlServiceClient<Channel> {
        self.client.clone()
    }

    /// The status, if the controller answers now.
    ///
    /// # Errors
    /// What the request ended with.
    pub async fn try_status(&self) -> Result<ClusterStatus, Status> {
        let mut client = self.raw();
        bounded(client.get_status(GetStatusRequest {})).await
    }

    /// The status.
    pub async fn status(&self) -> ClusterStatus {
        retried("the cluster's status", async || self.try_status().await).await
    }

    /// Submits a job that must be accepted.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn submit(&self, spec: JobSpec, input: Bytes) -> Job {
        match self.try_submit(spec, pieces(input)).await {
            Ok(job) => job,
            Err(rejection) => panic!("the submission was refused: {rejection:#?}"),
        }
    }

    /// Submits a job whose input arrives in these pieces.
    ///
    /// # Errors
    /// The controller's refusal.
    ///
    /// # Panics
    /// When the request itself fails.
    pub async fn try_submit(
        &self,
        spec: JobSpec,
        input: impl Stream<Item = Bytes> + Send + 'static,
    ) -> Result<Job, Rejection> {
        let first = SubmitChunk { part: Some(submit_chunk::Part::Spec(spec)) };
        let data = |data| SubmitChunk { part: Some(submit_chunk::Part::Data(data)) };
        // An empty piece in the input would end it; the one at the end says that it is complete.
        let rest = input.filter(|piece| !piece.is_empty()).chain(tokio_stream::once(Bytes::new())).map(data);
        let reply = self
            .raw()
            .submit(tokio_stream::once(first).chain(rest))
            .await
            .expect("a submission is answered, be it by a refusal")
            .into_inner();
        match reply.outcome {
            Some(submit_reply::Outcome::Accepted(job)) => Ok(job),
            Some(submit_reply::Outcome::Rejected(rejection)) => Err(rejection),
            None => panic!("the answer to a submission says neither yes nor no"),
        }
    }

    /// A job.
    pub async fn job(&self, job_id: u64) -> Job {
        retried("a job", async || {
            let mut client = self.raw();
            bounded(client.get_job(GetJobRequest { job_id })).await
        })
        .await
    }

    /// Waits until the job is as wanted.
    ///
    /// # Panics
    /// When it is not `within` that time, or can no longer become so because it has failed.
    pub async fn wait_job(
        &self,
        job_id: u64,
        what: &str,
        within: Duration,
        mut wanted: impl FnMut(&Job) -> bool,
    ) -> Job {
        let job = wait::eventually(&format!("job j{job_id}: {what}"), within, async || {
            let job = self.job(job_id).await;
            if wanted(&job) || job.state() == JobState::Failed { Ok(job) } else { Err(sketch(&job)) }
        })
        .await;
        assert!(wanted(&job), "waited for job j{job_id}: {what}, but it failed: {}", job.detail);
        job
    }

    /// Waits until every row has an answer or an error.
    pub async fn wait_completed(&self, job_id: u64, within: Duration) -> Job {
        self.wait_job(job_id, "all rows answered", within, |job| job.state() == JobState::Completed).await
    }

    /// Waits until that many rows are done.
    pub async fn wait_rows(&self, job_id: u64, rows: u64) -> Job {
        self.wait_job(job_id, &format!("{rows} rows done"), wait::LONG, |job| rows_done(job) >= rows).await
    }

    /// Waits until that many nodes are ready.
    pub async fn wait_ready(&self, nodes: usize) -> Vec<Node> {
        wait::eventually(&format!("{nodes} ready nodes"), wait::SOON, async || {
            let seen = self.status().await.nodes;
            let ready = seen.iter().filter(|node| node.state() == NodeState::Ready).count();
            if ready >= nodes {
                return Ok(seen);
            }
            Err(seen
                .iter()
                .map(|node| format!("{} {}: {}", node.node_id, node.state().as_str_name(), node.detail))
                .collect::<Vec<_>>()
                .join("; "))
        })
        .await
    }

    /// Pauses a job.
    ///
    /// # Panics
    /// When the controller refuses.
    pub async fn pause(&self, job_id: u64) -> Job {
        let mut client = self.raw();
        bounded(client.pause_job(JobRequest { job_id, now: false })).await.expect("a job can be paused")
    }

    /// Takes a pause back.
    ///
    /// # Panics
    /// When the controller refuses.
    pub async fn resume(&self, job_id: u64) -> Job {
        let mut client = self.raw();
        bounded(client.resume_job(JobRequest { job_id, now: false })).await.expect("a job can be resumed")
    }

    /// Cancels a job; `now` does not wait for the rows being generated.
    ///
    /// # Panics
    /// When the controller refuses.
    pub async fn cancel(&self, job_id: u64, now: bool) -> Job {
        let mut client = self.raw();
        bounded(client.cancel_job(JobRequest { job_id, now })).await.expect("a job can be cancelled")
    }

    /// Takes a node out of service, or back into it.
    ///
    /// # Panics
    /// When the controller refuses.
    pub async fn drain(&self, node_id: &str, drain: bool) -> Node {
        let mut client = self.raw();
        let request = DrainNodeRequest { node_id: node_id.to_owned(), drain };
        bounded(client.drain_node(request)).await.expect("a node can be drained")
    }

    /// The newest events, oldest first or newest first as the controller has it.
    ///
    /// # Panics
    /// When they cannot be read.
    pub async fn events(&self, tail: u32) -> Vec<Event> {
        let request = GetEventsRequest { tail, follow: false, node_id: String::new(), job_id: 0 };
        let stream = self.raw().get_events(request).await.expect("events can be read").into_inner();
        stream.map(|event| event.expect("the stream of events does not break")).collect().await
    }

    /// Waits for an event of this kind and gives it.
    pub async fn wait_event(&self, kind: &str) -> Event {
        wait::eventually(&format!("an event \"{kind}\""), wait::SOON, async || {
            let events = self.events(1000).await;
            let kinds: Vec<String> = events.iter().map(|event| event.kind.clone()).collect();
            events.into_iter().find(|event| event.kind == kind).ok_or_else(|| format!("events {kinds:?}"))
        })
        .await
    }

    /// Incidents of this fault, open and closed.
    pub async fn incidents(&self, fault: &str) -> Vec<Incident> {
        self.status().await.incidents.into_iter().filter(|incident| incident.fault == fault).collect()
    }

    /// The results (or errors) that are durable now.
    ///
    /// # Panics
    /// When they cannot be read.
    pub async fn results(&self, job_id: u64, errors: bool) -> Bytes {
        let request = GetResultsRequest { job_id, follow: false, errors };
        let mut stream = self.raw().get_results(request).await.expect("results can be read").into_inner();
        let mut all = BytesMut::new();
        while let Some(chunk) = stream.next().await {
            all.extend_from_slice(&chunk.expect("the stream of results does not break").data);
        }
        all.freeze()
    }
}

/// Rows that have an answer or an error.
#[must_use]
pub fn rows_done(job: &Job) -> u64 {
    job.rows_succeeded + job.rows_failed
}

/// A job in one line.
#[must_use]
pub fn sketch(job: &Job) -> String {
    format!(
        "{} ({}): {} + {} failed of {}, {} in flight, epoch {}, workers {:?}",
        job.state().as_str_name(),
        job.detail,
        job.rows_succeeded,
        job.rows_failed,
        job.rows_total,
        job.rows_in_flight,
        job.epoch,
        job.workers.iter().map(|worker| (worker.node_id.as_str(), worker.pid)).collect::<Vec<_>>()
    )
}

/// A specification with the controller's defaults for everything else.
#[must_use]
pub fn spec(name: &str, model: impl AsRef<std::path::Path>) -> JobSpec {
    JobSpec {
        name: name.to_owned(),
        model: model.as_ref().to_string_lossy().into_owned(),
        ..JobSpec::default()
    }
}

/// A whole input in pieces of a bounded size.
pub fn pieces(input: Bytes) -> impl Stream<Item = Bytes> + Send + 'static {
    let mut rest = input;
    let pieces =
        std::iter::from_fn(move || (!rest.is_empty()).then(|| rest.split_to(rest.len().min(CHUNK_BYTES))));
    tokio_stream::iter(pieces)
}

async fn bounded<T>(request: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(REQUEST_LIMIT, request).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!("no answer in {REQUEST_LIMIT:?}"))),
    }
}

/// Asks until the controller is there to answer; any other failure ends the case.
async fn retried<T>(what: &str, mut ask: impl AsyncFnMut() -> Result<T, Status>) -> T {
    wait::eventually(what, wait::SOON, async || match ask().await {
        Ok(value) => Ok(value),
        // `Unknown` is what tonic makes of a connection that breaks in the middle of an answer.
        Err(status) if matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled) => {
            Err(status.to_string())
        }
        Err(status) => panic!("{what}: the controller answered {status}"),
    })
    .await
}

/// How often all of these happened: the same fault again within minutes is the same incident.
#[must_use]
pub fn times(incidents: &[Incident]) -> usize {
    incidents.iter().map(|incident| incident.times as usize).sum()
}
