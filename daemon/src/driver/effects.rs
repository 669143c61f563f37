//! Carries out what the machine decided, in its order.

use std::collections::VecDeque;

use bytes::Bytes;
use nightshift_proto::v1::{self, controller_message::Body};

use super::{Connection, Driver, Message, chain};
use crate::{
    ledger::{self, InputReader},
    model::{Epoch, EventDraft, FinishedRow, Incident, JobId, JobRecord, NodeId, RowIx, Severity, WorkerKey},
    notify,
    recovery::{
        Command, CommittedRow, Effect, Event, ExitClass, JobTotals, Now, ResultHead, RowGrant, SessionId,
        WorkerExit,
    },
    rpc::convert,
};

/// Incidents that wait for room on the disk: as many as the ledger keeps.
const MOST_UNWRITTEN_INCIDENTS: usize = 500;

/// Rows are sent in messages of about this size, so that a batch of long prompts stays below the message limit.
const ROWS_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

impl Driver {
    pub(super) async fn carry_out(
        &mut self,
        now: Now,
        effects: Vec<Effect>,
        heads: &[ResultHead],
        bodies: &[Bytes],
        queue: &mut VecDeque<Event>,
    ) {
        let mut drafts = Vec::new();
        for effect in effects {
            match effect {
                Effect::RecordJob(record) => self.record_job(*record, queue).await,
                Effect::RecordNode(record) => {
                    let id = record.id.clone();
                    match self.ledger.put_node(record).await {
                        Ok(()) => _ = self.unrecorded_nodes.remove(&id),
                        Err(error) => {
                            tracing::warn!(error = %chain(&error), "a node's record was not written");
                            self.unrecorded_nodes.insert(id);
                        }
                    }
                }
                Effect::RecordModel(model) => {
                    if let Err(error) = self.ledger.put_model(*model).await {
                        tracing::warn!(error = %chain(&error), "what was learned of a model was not written");
                    }
                }
                Effect::RecordIncident(incident) => self.record_incident(*incident).await,
                Effect::Send { node, session, command } => self.send(&node, session, command, queue),
                Effect::CloseSession { node, session, reason } => {
                    tracing::info!(%node, reason, "closing the connection");
                    self.drop_connection(&node, session);
                }
                Effect::Commit { node, indices } => self.commit(node, &indices, heads, bodies),
                Effect::SaveCheckpoints { job, rows } => self.save_checkpoints(job, &rows),
                Effect::FailRows { job, rows } => self.fail_rows(job, &rows),
                Effect::Emit(draft) => {
                    log(&draft);
                    if let Some(message) = notify::Message::of_event(&draft, now.unix_ms) {
                        self.notify.tell(message);
                    }
                    drafts.push(draft);
                }
                Effect::JobOver(job) => {
                    self.inputs.remove(&job);
                }
            }
        }
        if !drafts.is_empty()
            && let Err(error) = self.ledger.append_events(drafts, now.unix_ms).await
        {
            tracing::debug!(error = %chain(&error), "events were not kept; they are in this log");
        }
    }

    /// A ledger that never answers again is not waited for: the controller ends, is started anew by whatever keeps it
    /// running, and finds everything that was acknowledged.
    fn note_if_stuck(&mut self, error: &ledger::Error) {
        if error.is_stuck() {
            self.stuck.get_or_insert_with(|| chain(error));
        }
    }

    /// A record that cannot be written is owed: it is tried again with every tick, and until then nothing that
    /// depends on it goes out.
    async fn record_job(&mut self, record: JobRecord, queue: &mut VecDeque<Event>) {
        let id = record.id;
        match self.ledger.put_job(record).await {
            Ok(()) => {
                self.unrecorded.remove(&id);
            }
            Err(error) => {
                self.note_if_stuck(&error);
                self.unrecorded.insert(id);
                queue.push_back(Event::StorageFailed { problem: chain(&error) });
            }
        }
    }

    /// An incident that cannot be written is owed, too: a full disk is one itself.
    async fn record_incident(&mut self, incident: Incident) {
        let id = incident.id;
        match self.ledger.put_incident(incident.clone()).await {
            Ok(()) => {
                self.unwritten_incidents.remove(&id);
            }
            Err(error @ ledger::Error::TooLarge { .. }) => {
                tracing::warn!(error = %chain(&error), "an incident was not written; it is in this log");
            }
            Err(error) => {
                self.note_if_stuck(&error);
                tracing::debug!(id, error = %chain(&error), "an incident is not written yet");
                self.unwritten_incidents.insert(id, incident);
                if self.unwritten_incidents.len() > MOST_UNWRITTEN_INCIDENTS {
                    self.unwritten_incidents.pop_first();
                }
            }
        }
    }

    /// Tries again what is owed.
    pub(super) async fn write_owed_incidents(&mut self) {
        for incident in std::mem::take(&mut self.unwritten_incidents).into_values() {
            self.record_incident(incident).await;
        }
    }

    fn send(&mut self, node: &NodeId, session: SessionId, command: Command, queue: &mut VecDeque<Event>) {
        let messages = match command {
            Command::StartWorker { command_id, worker, model, settings, gang } => {
                if self.unrecorded.contains(&worker.job) {
                    queue.push_back(not_started(node, worker));
                    return;
                }
                let gang = gang.map(|gang| convert::gang(&gang, self.gang_secret(worker)));
                // What a whole model answers is worth knowing when it is sharded one day.
                let canary = gang.is_none().then(v1::Canary::default);
                vec![Body::StartWorker(v1::StartWorker {
                    command_id,
                    worker: Some(convert::worker_id(worker)),
                    model,
                    options: Some(convert::options(settings)),
                    gang,
                    canary,
                })]
            }
            Command::InspectModel { model } => {
                let request_id = self.questions.number_for_the_machine(&model);
                vec![Body::InspectModel(v1::InspectModel { request_id, model })]
            }
            Command::LookAt { request_id, of, addresses } => {
                let addresses = addresses.iter().map(ToString::to_string).collect();
                vec![Body::LookAtNode(v1::LookAtNode { request_id, node_id: of.to_string(), addresses })]
            }
            Command::TestLink { request_id, rank, gang, limit_ms } => {
                // No job has this number, so no worker has this name.
                let of_test = WorkerKey { job: JobId(0), epoch: Epoch(request_id), rank };
                let gang = Some(convert::gang(&gang, self.gang_secret(of_test)));
                vec![Body::TestLink(v1::TestLink { request_id, gang, rank, limit_ms })]
            }
            Command::StopWorker { command_id, worker, mode, grace_ms, reason, ask_for_stack } => {
                vec![Body::StopWorker(v1::StopWorker {
                    command_id,
                    worker: Some(convert::worker_id(worker)),
                    mode: convert::stop_mode(mode).into(),
                    grace_ms,
                    reason,
                    ask_for_stack,
                })]
            }
            Command::GrantRows { worker, rows } => match self.rows_messages(worker, &rows) {
                Ok(messages) => messages,
                Err(error) => {
                    let problem = format!("its input cannot be read: {}", chain(&error));
                    queue.push_back(Event::InputUnreadable { job: worker.job, problem });
                    return;
                }
            },
            Command::CancelRows { worker, rows } => vec![Body::CancelRows(v1::CancelRows {
                worker: Some(convert::worker_id(worker)),
                rows: rows.into_iter().map(|row| row.0).collect(),
            })],
            Command::RestartMachine { command_id, boot_id, cause, reason } => {
                // What is not on record could be asked for again by the next controller.
                if self.unrecorded_nodes.contains(node) {
                    queue.push_back(Event::CommandWithheld { node: node.clone(), command_id });
                    return;
                }
                let cause = convert::restart_cause(cause).into();
                vec![Body::RestartMachine(v1::RestartMachine { command_id, boot_id, cause, reason })]
            }
            Command::Drain { draining } => vec![Body::Drain(v1::Drain { draining })],
            Command::AckResults { through_spool_seq } => {
                vec![Body::AckResults(v1::AckResults { through_spool_seq })]
            }
        };
        for body in messages {
            self.send_body(node, session, body, queue);
        }
    }

    /// What the ranks of one launch know one another by: made by chance when the first of them is started, the same for
    /// all of them, and never used again.
    fn gang_secret(&mut self, worker: WorkerKey) -> [u8; 32] {
        let launch = (worker.job, worker.epoch);
        match &self.gang_secret {
            Some((of, secret)) if *of == launch => *secret,
            _ => {
                let mut secret = [0; 32];
                // Without chance the ranks of a gang cannot trust one another; they refuse an all-zero secret.
                if let Err(error) = getrandom::fill(&mut secret) {
                    tracing::error!(%error, "the system gives no random numbers");
                }
                self.gang_secret = Some((launch, secret));
                secret
            }
        }
    }

    /// Hands a message to the connection. An agent that does not keep up loses its connection, not the driver's time.
    pub(super) fn send_body(
        &mut self,
        node: &NodeId,
        session: SessionId,
        body: Body,
        queue: &mut VecDeque<Event>,
    ) {
        let Some(connection) = self.connections.get(node).filter(|c| c.session == session) else { return };
        if connection.outbox.try_send(Ok(v1::ControllerMessage { body: Some(body) })).is_err() {
            if !connection.closed.is_cancelled() {
                tracing::info!(%node, "the agent does not take messages; closing its connection");
            }
            self.drop_connection(node, session);
            queue.push_back(Event::SessionLost { node: node.clone(), session });
        }
    }

    fn rows_messages(&mut self, worker: WorkerKey, grants: &[RowGrant]) -> Result<Vec<Body>, ledger::Error> {
        let Some(job) = self.machine.job(worker.job) else { return Ok(Vec::new()) };
        if !self.inputs.contains_key(&worker.job) {
            let reader = InputReader::open(&self.ledger.job_dir(worker.job), job.record.rows_total)?;
            self.inputs.insert(worker.job, reader);
        }
        let Some(input) = self.inputs.get(&worker.job) else { return Ok(Vec::new()) };
        let mut messages = Vec::new();
        let mut rows = Vec::with_capacity(grants.len());
        let mut size = 0;
        for grant in grants {
            let checkpoint = job.resume_point(grant.row, worker.epoch).cloned().unwrap_or_default();
            let row = v1::Row {
                row: grant.row.0,
                attempt: grant.attempt,
                request: input.read(grant.row)?,
                resume_tokens: checkpoint.tokens,
                resume_logprobs_json: checkpoint.logprobs_json,
            };
            let row_size =
                row.request.len() + row.resume_tokens.len() * 5 + row.resume_logprobs_json.len() + 64;
            if size + row_size > ROWS_MESSAGE_BYTES && !rows.is_empty() {
                messages.push(rows_body(worker, std::mem::take(&mut rows)));
                size = 0;
            }
            size += row_size;
            rows.push(row);
        }
        messages.push(rows_body(worker, rows));
        Ok(messages)
    }

    /// Hands results to the ledger without waiting: the group they land in is synced once for all of them. As many are
    /// under way at most as rows are out.
    fn commit(&self, node: NodeId, indices: &[usize], heads: &[ResultHead], bodies: &[Bytes]) {
        let chosen = indices.iter().filter_map(|index| Some((heads.get(*index)?, bodies.get(*index)?)));
        let (mut rows, mut finished) = (Vec::with_capacity(indices.len()), Vec::with_capacity(indices.len()));
        for (head, body) in chosen {
            rows.push(CommittedRow {
                spool_seq: head.spool_seq,
                job: head.worker.job,
                row: head.row,
                status_code: head.status_code,
                prompt_tokens: head.prompt_tokens,
                completion_tokens: head.completion_tokens,
            });
            finished.push(FinishedRow {
                job: head.worker.job,
                row: head.row,
                status_code: head.status_code,
                body: body.clone(),
                request_id: format!(
                    "{}-{}-{}-{}",
                    head.worker.job, head.row, head.worker.epoch, head.attempt
                ),
                prompt_tokens: head.prompt_tokens,
                completion_tokens: head.completion_tokens,
            });
        }
        let (ledger, to_self) = (self.ledger.clone(), self.to_self.clone());
        tokio::spawn(async move {
            let outcome = ledger.commit(finished).await;
            // A failure to send means that the driver has ended; the results are on disk or in the agent's spool.
            let _ = to_self.send(Message::CommitDone { node, rows, outcome }).await;
        });
    }

    /// Makes errors of rows that no worker answered durable, in the form of a worker's error.
    fn fail_rows(&self, job: JobId, failing: &[(RowIx, String)]) {
        let (mut rows, mut finished) = (Vec::new(), Vec::new());
        for (row, why) in failing {
            let body = serde_json::json!({ "error": {
                "message": why, "type": "server_error", "param": null, "code": "ends_its_worker",
            }});
            rows.push(CommittedRow {
                spool_seq: 0,
                job,
                row: *row,
                status_code: 500,
                prompt_tokens: 0,
                completion_tokens: 0,
            });
            finished.push(FinishedRow {
                job,
                row: *row,
                status_code: 500,
                body: Bytes::from(body.to_string()),
                request_id: format!("{job}-{row}-failed"),
                prompt_tokens: 0,
                completion_tokens: 0,
            });
        }
        let (ledger, to_self) = (self.ledger.clone(), self.to_self.clone());
        tokio::spawn(async move {
            let outcome = ledger.commit(finished).await;
            let _ = to_self.send(Message::FailuresDone { rows, outcome }).await;
        });
    }

    pub(super) async fn on_failures_done(
        &mut self,
        rows: Vec<CommittedRow>,
        outcome: Result<ledger::Committed, ledger::Error>,
    ) {
        let event = match outcome {
            Ok(committed) => Event::FailuresStored { rows, totals: totals(&committed) },
            Err(error) => {
                self.note_if_stuck(&error);
                Event::StorageFailed { problem: chain(&error) }
            }
        };
        self.apply(event, &[]).await;
    }

    pub(super) async fn on_commit_done(
        &mut self,
        node: NodeId,
        rows: Vec<CommittedRow>,
        outcome: Result<ledger::Committed, ledger::Error>,
    ) {
        let event = match outcome {
            Ok(committed) => Event::Committed { node, rows, totals: totals(&committed) },
            Err(error) => {
                self.note_if_stuck(&error);
                Event::CommitFailed { node, rows, problem: chain(&error) }
            }
        };
        self.apply(event, &[]).await;
    }

    /// Checkpoints save work, not correctness: they are written beside the results, and one that is lost costs tokens.
    fn save_checkpoints(&self, job: JobId, rows: &[RowIx]) {
        let Some(known) = self.machine.job(job) else { return };
        let checkpoints: Vec<_> =
            rows.iter().filter_map(|row| Some((*row, known.checkpoint(*row)?.clone()))).collect();
        let ledger = self.ledger.clone();
        tokio::spawn(async move {
            if let Err(error) = ledger.put_checkpoints(job, checkpoints).await {
                tracing::debug!(%job, error = %chain(&error), "checkpoints were not written");
            }
        });
    }

    pub(super) fn drop_connection(&mut self, node: &NodeId, session: SessionId) {
        if self.connections.get(node).is_some_and(|connection| connection.session == session)
            && let Some(Connection { closed, .. }) = self.connections.remove(node)
        {
            closed.cancel();
            self.logs.node_gone(node);
            self.questions.node_gone(node);
        }
    }
}

fn totals(committed: &ledger::Committed) -> Vec<JobTotals> {
    let totals = committed.jobs.iter().map(|job| JobTotals {
        job: job.job,
        results_bytes: job.results_bytes,
        errors_bytes: job.errors_bytes,
        rows_succeeded: job.rows_succeeded,
        rows_failed: job.rows_failed,
        rows_by_fallback: job.rows_by_fallback,
    });
    totals.collect()
}

fn rows_body(worker: WorkerKey, rows: Vec<v1::Row>) -> Body {
    Body::Rows(v1::Rows { worker: Some(convert::worker_id(worker)), rows })
}

fn not_started(node: &NodeId, worker: WorkerKey) -> Event {
    let exit = WorkerExit {
        worker,
        class: ExitClass::SpawnFailed,
        status: "was not started".to_owned(),
        first_error: "its launch could not be recorded".to_owned(),
        log_tail: Vec::new(),
        started_rows: Vec::new(),
        killed_while_loaded: false,
        quiet_ms: None,
    };
    Event::WorkerExited { node: node.clone(), exit }
}

fn log(draft: &EventDraft) {
    let (kind, message) = (&draft.kind, &draft.message);
    match draft.severity {
        Severity::Info => tracing::info!(kind, "{message}"),
        Severity::Warning => tracing::warn!(kind, "{message}"),
        Severity::Error => tracing::error!(kind, "{message}"),
    }
}
