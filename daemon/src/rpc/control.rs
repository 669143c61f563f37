//! The control service: what `clusterctl` and other clients ask.

use std::{collections::BTreeMap, path::PathBuf, pin::Pin, time::Duration};

use jiff::tz::TimeZone;
use nightshift_proto::v1::{self, control_service_server::ControlService, submit_chunk::Part};
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{convert, plan};
use crate::{
    driver::{self, Refusal},
    intake::{self, Intake},
    ledger::EventFilter,
    model::{self, EventRecord, JobId, NodeId, Severity},
    recovery::RefusedRequest,
};

/// Pieces of an upload that wait for the validator: keeps it busy without holding the upload in memory.
const UPLOAD_CHUNKS: usize = 8;
/// A follower's messages under way.
const STREAM_MESSAGES: usize = 16;
/// Results are sent in pieces of at most this size.
const RESULTS_CHUNK_BYTES: usize = 256 * 1024;
/// A follower looks at most this often, however fast things change.
const FOLLOW_PAUSE: Duration = Duration::from_millis(20);
/// Watchers are told at most this often.
const MIN_WATCH_INTERVAL_MS: u64 = 100;
/// How long nodes may take to read a model's headers: hundreds of files on a slow disk.
const MODEL_REPORT_LIMIT: Duration = Duration::from_secs(20);
/// Events in one reading.
const EVENTS_READ: usize = 1_000;

pub(super) struct Control {
    pub(super) driver: driver::Handle,
    pub(super) state_dir: PathBuf,
    pub(super) limits: watch::Receiver<intake::Limits>,
    pub(super) zone: TimeZone,
    pub(super) cancel: CancellationToken,
}

type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn status_of(refusal: Refusal) -> Status {
    match &refusal {
        Refusal::Stopping => Status::unavailable(refusal.to_string()),
        Refusal::Refused(RefusedRequest::NoSuchJob(_) | RefusedRequest::NoSuchNode(_)) => {
            Status::not_found(refusal.to_string())
        }
        Refusal::Refused(_) | Refusal::NameInUse(_) => Status::failed_precondition(refusal.to_string()),
        Refusal::NotRecorded(source) => {
            Status::resource_exhausted(format!("{refusal}: {}", driver::chain(source)))
        }
    }
}

#[tonic::async_trait]
impl ControlService for Control {
    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::ClusterStatus>, Status> {
        self.driver.status().await.map(Response::new).map_err(status_of)
    }

    async fn submit(
        &self,
        request: Request<Streaming<v1::SubmitChunk>>,
    ) -> Result<Response<v1::SubmitReply>, Status> {
        let mut upload = request.into_inner();
        let Some(v1::SubmitChunk { part: Some(Part::Spec(spec)) }) = upload.message().await? else {
            return Err(Status::invalid_argument("the first message of a submission must be its spec"));
        };
        if spec.model.is_empty() {
            return Err(Status::invalid_argument("a submission must name a model"));
        }
        if let Some(job) = self.driver.submitted(spec.submission_id.clone()).await.map_err(status_of)? {
            return Ok(accepted(job));
        }
        let spec = match convert::job_spec(spec, driver::unix_ms(), &self.zone) {
            Ok(spec) => spec,
            Err(problem) => return Ok(rejected(not_about_a_line(problem))),
        };
        match self.stage(upload).await? {
            Ok(staged) => match self.driver.submit(spec, staged).await {
                Ok(job) => Ok(accepted(job)),
                Err(Refusal::NotRecorded(error)) if error.is_disk_full() => {
                    Ok(rejected(not_about_a_line(driver::chain(&error))))
                }
                Err(refusal) => Err(status_of(refusal)),
            },
            Err(rejection) => Ok(rejected(rejection)),
        }
    }

    async fn get_report(
        &self,
        request: Request<v1::GetReportRequest>,
    ) -> Result<Response<v1::Report>, Status> {
        let since = model::since(&request.into_inner().since, driver::unix_ms(), &self.zone);
        let since_unix_ms = since.map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.driver.report(since_unix_ms).await.map(Response::new).map_err(status_of)
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::Explanation>, Status> {
        let v1::ExplainRequest { job_id, node_id } = request.into_inner();
        let explained = match (job_id, node_id.as_str()) {
            (0, "") => return Err(Status::invalid_argument("a job or a node must be named")),
            (0, node) => self.driver.explain_node(NodeId::from(node)).await,
            (job, _) => self.driver.explain_job(JobId(job)).await,
        };
        explained.map(Response::new).map_err(status_of)
    }

    async fn diagnose(
        &self,
        request: Request<v1::DiagnoseRequest>,
    ) -> Result<Response<v1::Diagnosis>, Status> {
        let v1::DiagnoseRequest { node_id } = request.into_inner();
        let node = (!node_id.is_empty()).then(|| NodeId::from(node_id.as_str()));
        self.driver.diagnose(node).await.map(Response::new).map_err(status_of)
    }

    async fn list_jobs(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsReply>, Status> {
        let jobs = self.driver.jobs(request.into_inner().all).await.map_err(status_of)?;
        Ok(Response::new(v1::ListJobsReply { jobs }))
    }

    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Result<Response<v1::Job>, Status> {
        self.driver.job(JobId(request.into_inner().job_id)).await.map(Response::new).map_err(status_of)
    }

    type WatchJobsStream = Outgoing<v1::WatchJobsReply>;

    async fn watch_jobs(
        &self,
        request: Request<v1::WatchJobsRequest>,
    ) -> Result<Response<Self::WatchJobsStream>, Status> {
        let v1::WatchJobsRequest { job_id, interval_ms } = request.into_inner();
        if job_id != 0 {
            self.driver.job(JobId(job_id)).await.map_err(status_of)?;
        }
        let interval = Duration::from_millis(interval_ms.max(MIN_WATCH_INTERVAL_MS));
        let (driver, mut changes) = (self.driver.clone(), self.driver.changes());
        Ok(self.stream(async move |sender| {
            let mut last = None;
            loop {
                let jobs = if job_id == 0 {
                    driver.jobs(false).await
                } else {
                    driver.job(JobId(job_id)).await.map(|job| vec![job])
                };
                let jobs = jobs.map_err(status_of)?;
                let nodes = driver.nodes().await.map_err(status_of)?;
                let over = jobs.iter().all(|job| job.finished_unix_ms > 0);
                let seen: Vec<_> = jobs.iter().map(|job| (job.job_id, job.clone())).collect();
                if last.as_ref() != Some(&seen) {
                    send(&sender, v1::WatchJobsReply { jobs, nodes }).await?;
                    last = Some(seen);
                }
                if over {
                    return Ok(());
                }
                tokio::time::sleep(interval).await;
                changed(&sender, &mut changes).await?;
            }
        }))
    }

    type GetResultsStream = Outgoing<v1::ResultsChunk>;

    async fn get_results(
        &self,
        request: Request<v1::GetResultsRequest>,
    ) -> Result<Response<Self::GetResultsStream>, Status> {
        let v1::GetResultsRequest { job_id, follow, errors } = request.into_inner();
        let job = JobId(job_id);
        let files = self.driver.job_files(job).await.map_err(status_of)?;
        let path = files.dir.join(if errors { "errors.jsonl" } else { "results.jsonl" });
        let (driver, mut changes) = (self.driver.clone(), self.driver.changes());
        Ok(self.stream(async move |sender| {
            let mut position = 0;
            loop {
                let files = driver.job_files(job).await.map_err(status_of)?;
                let durable = if errors { files.errors_bytes } else { files.results_bytes };
                while position < durable {
                    let data = read_lines(path.clone(), position, durable).await?;
                    position += data.len() as u64;
                    send(&sender, v1::ResultsChunk { data: data.into() }).await?;
                }
                if !follow || files.over {
                    return Ok(());
                }
                tokio::time::sleep(FOLLOW_PAUSE).await;
                changed(&sender, &mut changes).await?;
            }
        }))
    }

    async fn pause_job(&self, request: Request<v1::JobRequest>) -> Result<Response<v1::Job>, Status> {
        self.driver.pause(JobId(request.into_inner().job_id)).await.map(Response::new).map_err(status_of)
    }

    async fn resume_job(&self, request: Request<v1::JobRequest>) -> Result<Response<v1::Job>, Status> {
        self.driver.resume(JobId(request.into_inner().job_id)).await.map(Response::new).map_err(status_of)
    }

    async fn cancel_job(&self, request: Request<v1::JobRequest>) -> Result<Response<v1::Job>, Status> {
        let v1::JobRequest { job_id, now } = request.into_inner();
        self.driver.cancel(JobId(job_id), now).await.map(Response::new).map_err(status_of)
    }

    async fn list_nodes(
        &self,
        _: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesReply>, Status> {
        let nodes = self.driver.nodes().await.map_err(status_of)?;
        Ok(Response::new(v1::ListNodesReply { nodes }))
    }

    async fn drain_node(&self, request: Request<v1::DrainNodeRequest>) -> Result<Response<v1::Node>, Status> {
        let v1::DrainNodeRequest { node_id, drain } = request.into_inner();
        self.driver.drain(NodeId::from(node_id.as_str()), drain).await.map(Response::new).map_err(status_of)
    }

    type GetEventsStream = Outgoing<v1::Event>;

    async fn get_events(
        &self,
        request: Request<v1::GetEventsRequest>,
    ) -> Result<Response<Self::GetEventsStream>, Status> {
        let v1::GetEventsRequest { tail, follow, node_id, job_id } = request.into_inner();
        let mut filter = EventFilter {
            node: (!node_id.is_empty()).then(|| NodeId::from(node_id.as_str())),
            job: (job_id != 0).then_some(JobId(job_id)),
            tail: if tail == 0 { 100 } else { tail as usize },
            after_seq: None,
        };
        let (driver, mut changes) = (self.driver.clone(), self.driver.changes());
        Ok(self.stream(async move |sender| {
            loop {
                let events = driver.ledger().read_events(filter.clone()).await;
                let events = events.map_err(|error| Status::internal(driver::chain(&error)))?;
                for event in events {
                    filter.after_seq = Some(event.seq);
                    send(&sender, event_message(event)).await?;
                }
                if !follow {
                    return Ok(());
                }
                filter.after_seq = filter.after_seq.or(Some(0));
                filter.tail = EVENTS_READ;
                tokio::time::sleep(FOLLOW_PAUSE).await;
                changed(&sender, &mut changes).await?;
            }
        }))
    }

    type GetLogsStream = Outgoing<v1::LogLines>;

    async fn get_logs(
        &self,
        request: Request<v1::GetLogsRequest>,
    ) -> Result<Response<Self::GetLogsStream>, Status> {
        let lines = self.driver.logs(request.into_inner()).await.map_err(status_of)?;
        let cancel = self.cancel.clone();
        let lines = ReceiverStream::new(lines).map(Ok);
        Ok(Response::new(Box::pin(until(lines, cancel))))
    }

    async fn plan(&self, request: Request<v1::PlanRequest>) -> Result<Response<v1::PlanReply>, Status> {
        let request = request.into_inner();
        if request.model.is_empty() {
            return Err(Status::invalid_argument("a plan must name a model"));
        }
        if !request.nodes.is_empty() {
            return Ok(Response::new(plan::offline(&request)));
        }
        let view = self.driver.plan_view().await.map_err(status_of)?;
        let reports = self.model_reports(request.model.clone()).await?;
        Ok(Response::new(plan::live(&request, &view, &reports)))
    }
}

impl Control {
    /// What every connected node says about a model, as far as they say it in time.
    async fn model_reports(&self, model: String) -> Result<BTreeMap<NodeId, v1::ModelReport>, Status> {
        let mut reports = self.driver.ask_about_model(model).await.map_err(status_of)?;
        let mut found = BTreeMap::new();
        let all = async {
            while let Some((node, report)) = reports.recv().await {
                found.insert(node, report);
            }
        };
        // Whoever has not answered by then is left out of the plan, by name.
        let _ = tokio::time::timeout(MODEL_REPORT_LIMIT, all).await;
        Ok(found)
    }

    /// Runs a producer beside the call; it ends with the client's interest, its own end, or the controller's.
    fn stream<T, F>(
        &self,
        produce: impl FnOnce(mpsc::Sender<Result<T, Status>>) -> F,
    ) -> Response<Outgoing<T>>
    where
        T: Send + 'static,
        F: Future<Output = Result<(), Status>> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(STREAM_MESSAGES);
        let producer = produce(sender.clone());
        let cancel = self.cancel.clone();
        tokio::spawn(async move {
            let end = tokio::select! {
                () = cancel.cancelled() => Err(Status::unavailable("the controller is stopping")),
                () = sender.closed() => return,
                end = producer => end,
            };
            if let Err(status) = end {
                // Nobody to tell when the client is gone.
                let _ = sender.send(Err(status)).await;
            }
        });
        Response::new(Box::pin(ReceiverStream::new(receiver)))
    }

    /// Feeds an upload to the validator, which runs on a thread of its own because it writes and syncs files.
    async fn stage(
        &self,
        mut upload: Streaming<v1::SubmitChunk>,
    ) -> Result<Result<intake::Staged, v1::Rejection>, Status> {
        let (chunks, mut incoming) = mpsc::channel::<bytes::Bytes>(UPLOAD_CHUNKS);
        let (state_dir, limits) = (self.state_dir.clone(), *self.limits.borrow());
        let validator = tokio::task::spawn_blocking(move || -> Result<intake::Staged, intake::Refused> {
            let mut intake = Intake::begin(&state_dir, limits).map_err(intake::Refused::Failed)?;
            while let Some(chunk) = incoming.blocking_recv() {
                intake.push(&chunk).map_err(intake::Refused::Failed)?;
            }
            intake.finish()
        });
        let broken_off = loop {
            match upload.message().await {
                // The client's word that this was all. The end of the stream alone could be the end of the client.
                Ok(Some(v1::SubmitChunk { part: Some(Part::Data(data)) })) if data.is_empty() => break None,
                Ok(Some(v1::SubmitChunk { part: Some(Part::Data(data)) })) => {
                    if chunks.send(data).await.is_err() {
                        // The validator gave up; it says why below.
                        break None;
                    }
                }
                Ok(Some(_)) => {
                    break Some(Status::invalid_argument("a submission has one spec, and data after it"));
                }
                Ok(None) => {
                    break Some(Status::aborted(
                        "the upload ended before its closing empty message; nothing was kept",
                    ));
                }
                Err(status) => break Some(status),
            }
        };
        if let Some(status) = broken_off {
            // What was staged must not become a job: the validator's outcome is dropped, and its directory with it.
            drop(chunks);
            let _ = validator.await;
            return Err(status);
        }
        drop(chunks);
        match validator.await {
            Ok(Ok(staged)) => Ok(Ok(staged)),
            Ok(Err(intake::Refused::Rejected(rejection))) => Ok(Err(rejection_message(rejection))),
            Ok(Err(intake::Refused::Failed(error))) if error.is_disk_full() => {
                Ok(Err(not_about_a_line(driver::chain(&error))))
            }
            Ok(Err(intake::Refused::Failed(error))) => {
                Err(Status::internal(format!("the submission was not kept: {}", driver::chain(&error))))
            }
            Err(join) => Err(Status::internal(format!("the validator ended unexpectedly: {join}"))),
        }
    }
}

async fn send<T>(sender: &mpsc::Sender<Result<T, Status>>, message: T) -> Result<(), Status> {
    sender.send(Ok(message)).await.map_err(|_| Status::cancelled("the client is gone"))
}

async fn changed<T>(
    sender: &mpsc::Sender<Result<T, Status>>,
    changes: &mut watch::Receiver<u64>,
) -> Result<(), Status> {
    tokio::select! {
        () = sender.closed() => Err(Status::cancelled("the client is gone")),
        changed = changes.changed() => changed.map_err(|_| Status::unavailable("the controller is stopping")),
    }
}

fn until<T: Send + 'static>(
    stream: impl Stream<Item = Result<T, Status>> + Send + 'static,
    cancel: CancellationToken,
) -> impl Stream<Item = Result<T, Status>> + Send {
    futures_util::StreamExt::take_until(stream, cancel.cancelled_owned())
}

/// Whole lines from `from`, about a chunk's worth, never past `durable`.
async fn read_lines(path: PathBuf, from: u64, durable: u64) -> Result<Vec<u8>, Status> {
    let read = tokio::task::spawn_blocking(move || -> std::io::Result<Vec<u8>> {
        use std::os::unix::fs::FileExt as _;
        let file = std::fs::File::open(path)?;
        let mut wanted = RESULTS_CHUNK_BYTES;
        loop {
            let size = usize::try_from(durable - from).unwrap_or(usize::MAX).min(wanted);
            let mut data = vec![0; size];
            file.read_exact_at(&mut data, from)?;
            // A line longer than the chunk makes the chunk longer: lines are never cut.
            match data.iter().rposition(|byte| *byte == b'\n') {
                Some(end) => {
                    data.truncate(end + 1);
                    return Ok(data);
                }
                None if size as u64 == durable - from => return Ok(data),
                None => wanted = wanted.saturating_mul(2),
            }
        }
    });
    match read.await {
        Ok(Ok(data)) => Ok(data),
        Ok(Err(error)) => Err(Status::internal(format!("the results cannot be read: {error}"))),
        Err(join) => Err(Status::internal(format!("the results cannot be read: {join}"))),
    }
}

fn accepted(job: v1::Job) -> Response<v1::SubmitReply> {
    Response::new(v1::SubmitReply { outcome: Some(v1::submit_reply::Outcome::Accepted(job)) })
}

fn rejected(rejection: v1::Rejection) -> Response<v1::SubmitReply> {
    Response::new(v1::SubmitReply { outcome: Some(v1::submit_reply::Outcome::Rejected(rejection)) })
}

fn not_about_a_line(problem: String) -> v1::Rejection {
    v1::Rejection { problem, ..Default::default() }
}

fn rejection_message(rejection: intake::Rejection) -> v1::Rejection {
    let errors = rejection.errors.into_iter();
    v1::Rejection {
        errors: errors.map(|error| v1::LineError { line: error.line, problem: error.problem }).collect(),
        error_count: rejection.error_count,
        problem: rejection.problem.unwrap_or_default(),
    }
}

fn event_message(record: EventRecord) -> v1::Event {
    let severity = match record.event.severity {
        Severity::Info => v1::Severity::Info,
        Severity::Warning => v1::Severity::Warning,
        Severity::Error => v1::Severity::Error,
    };
    v1::Event {
        seq: record.seq,
        unix_ms: record.unix_ms,
        severity: severity.into(),
        kind: record.event.kind,
        node_id: record.event.node.map(|node| node.to_string()).unwrap_or_default(),
        job_id: record.event.job.map_or(0, |job| job.0),
        message: record.event.message,
    }
}
