//! What the ledger must have kept, and whether it did.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::finished;
use crate::{
    ledger::{
        Core, Error, EventFilter, Limits, Replay, Reply, Request,
        sim::{SimDisk, SimKv, World},
    },
    model::{
        Checkpoint, Epoch, EventDraft, FinishedRow, Incident, JobId, JobRecord, JobState, LearnedModel,
        NodeRecord, RowIx, Severity,
    },
};

/// Something a test does to the ledger.
#[derive(Clone, Debug)]
pub(super) enum Action {
    CreateJob {
        rows_total: u32,
    },
    /// Job (by order of creation), row, whether it succeeded.
    Commit(Vec<(usize, u32, bool)>),
    Checkpoint {
        job: usize,
        row: u32,
        tokens: usize,
        with_logprobs: bool,
    },
    PutJob {
        job: usize,
        over: bool,
    },
    PutModel,
    /// With so many bytes of evidence.
    PutIncident(usize),
    PutNode {
        draining: bool,
    },
    Events(usize),
    Flush,
}

pub(super) type SimCore = Core<SimDisk, SimKv>;

/// Values that may be there after a crash: the last one acknowledged, or one tried since.
#[derive(Clone, Debug)]
struct Candidates<T> {
    acknowledged: Option<T>,
    tried: Vec<T>,
}

impl<T> Default for Candidates<T> {
    fn default() -> Self {
        Self { acknowledged: None, tried: Vec::new() }
    }
}

impl<T: Clone + PartialEq + std::fmt::Debug> Candidates<T> {
    fn attempt(&mut self, value: T) {
        self.tried.push(value);
    }

    fn acknowledge(&mut self, value: T) {
        // What was tried after it may still have got in.
        let tried_before = self.tried.iter().position(|tried| *tried == value).map_or(0, |index| index + 1);
        self.tried.drain(..tried_before);
        self.acknowledged = Some(value);
    }

    fn check(&self, found: Option<&T>, what: &str) {
        let allowed = match found {
            None => self.acknowledged.is_none(),
            Some(found) => self.acknowledged.as_ref() == Some(found) || self.tried.contains(found),
        };
        assert!(allowed, "{what}: found {found:?}, expected {self:?}");
    }
}

/// What was asked and what was acknowledged.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    pub(super) world: Option<World>,
    jobs: BTreeMap<JobId, Candidates<JobRecord>>,
    /// Jobs in the order of their creation, acknowledged ones only.
    created: Vec<JobId>,
    next_job: u64,
    rows: BTreeMap<(JobId, RowIx), Candidates<(u16, u64)>>,
    /// Every checkpoint ever tried for a row.
    checkpoints: BTreeMap<(JobId, RowIx), Vec<Checkpoint>>,
    node: Candidates<NodeRecord>,
    learned: Candidates<LearnedModel>,
    incident: Candidates<Incident>,
    highest_seq: u64,
    next_mark: u64,
}

pub(super) const LIMITS: Limits = Limits { disk_reserve_bytes: 1_000, max_events: 5 };

impl Model {
    pub(super) fn new(world: &World) -> Self {
        Self { world: Some(world.clone()), next_job: 1, next_mark: 1, ..Self::default() }
    }

    pub(super) fn world(&self) -> &World {
        self.world.as_ref().unwrap()
    }

    pub(super) fn open(&self) -> Result<(SimCore, Replay), Error> {
        Core::open(SimDisk::new(self.world()), SimKv::new(self.world()), LIMITS, 1_700_000_000_000)
    }

    /// Does a group of actions. Errors are the test's business unless `must_succeed`.
    pub(super) fn run(&mut self, core: &mut SimCore, actions: &[Action], must_succeed: bool) {
        let requests: Vec<_> = actions.iter().filter_map(|action| self.request(core, action)).collect();
        let copies: Vec<_> = requests.iter().map(copy).collect();
        for (request, reply) in copies.into_iter().zip(core.run(requests, 1_700_000_000_000)) {
            match reply {
                Ok(reply) => self.acknowledge(request, reply),
                Err(error) => assert!(!must_succeed, "{request:?} failed: {error:?}"),
            }
        }
    }

    fn request(&mut self, core: &mut SimCore, action: &Action) -> Option<Request> {
        let job = |index: &usize| self.created.get(index % self.created.len().max(1)).copied();
        match action {
            Action::CreateJob { rows_total } => {
                let id = JobId(self.next_job);
                self.next_job += 1;
                let staging = format!(".incoming-{}", id.0);
                self.world().stage(&staging, *rows_total).ok()?;
                let record = super::job_record(id.0, *rows_total);
                self.jobs.entry(id).or_default().attempt(record.clone());
                Some(Request::CreateJob { staging, record })
            }
            Action::Commit(rows) => {
                let rows: Vec<_> = rows
                    .iter()
                    .filter_map(|(index, row, succeeds)| Some((job(index)?, *row, *succeeds)))
                    .collect();
                let rows: Vec<_> =
                    rows.into_iter().map(|(job, row, succeeds)| self.row(job, row, succeeds)).collect();
                (!rows.is_empty()).then_some(Request::Commit(rows))
            }
            Action::Checkpoint { job: index, row, tokens, with_logprobs } => {
                let job = job(index)?;
                let row = RowIx(row % self.rows_total(job));
                let checkpoint = Checkpoint {
                    tokens: (0..*tokens as u32).collect(),
                    logprobs_json: if *with_logprobs { vec![b'1'; tokens * 2] } else { Vec::new() },
                    by_fallback: tokens % 3 == 1,
                };
                self.checkpoints.entry((job, row)).or_default().push(checkpoint.clone());
                Some(Request::PutCheckpoints(job, vec![(row, checkpoint)]))
            }
            Action::PutJob { job: index, over } => {
                let id = job(index)?;
                let job = self.jobs.get_mut(&id)?;
                let last = job.tried.last().or(job.acknowledged.as_ref())?;
                let mut record = last.clone();
                record.epoch = Epoch(record.epoch.0 + 1);
                record.rows_requeued += 1;
                if *over {
                    record.state = JobState::Cancelled;
                }
                job.attempt(record.clone());
                Some(Request::PutJob(record))
            }
            Action::PutModel => {
                let mut model = LearnedModel::new("f");
                model.updated_unix_ms = self.next_mark;
                self.next_mark += 1;
                self.learned.attempt(model.clone());
                Some(Request::PutModel(model))
            }
            Action::PutIncident(evidence_bytes) => {
                let incident = super::incident(1, self.next_mark, *evidence_bytes);
                self.next_mark += 1;
                self.incident.attempt(incident.clone());
                Some(Request::PutIncident(Box::new(incident)))
            }
            Action::PutNode { draining } => {
                let record = NodeRecord {
                    id: "a".into(),
                    draining: *draining,
                    last_seen_unix_ms: self.next_mark,
                    boot_id: "b".into(),
                    gpu_faults_unix_ms: vec![1, 2],
                    quarantine: None,
                    links: Vec::new(),
                    restarts: Vec::new(),
                };
                self.next_mark += 1;
                self.node.attempt(record.clone());
                Some(Request::PutNode(record))
            }
            Action::Events(count) => {
                let draft = EventDraft {
                    severity: Severity::Info,
                    kind: "test".into(),
                    node: None,
                    job: None,
                    message: "m".into(),
                };
                Some(Request::AppendEvents(vec![draft; *count], 1))
            }
            Action::Flush => {
                let _ = core.flush();
                None
            }
        }
    }

    fn row(&mut self, job: JobId, row: u32, succeeds: bool) -> FinishedRow {
        let row = row % self.rows_total(job);
        let status_code = if succeeds { 200 } else { 500 };
        let mark = self.next_mark;
        self.next_mark += 1;
        self.rows.entry((job, RowIx(row))).or_default().attempt((status_code, mark));
        finished(job.0, row, status_code, mark)
    }

    fn rows_total(&self, job: JobId) -> u32 {
        let job = &self.jobs[&job];
        job.acknowledged.as_ref().or(job.tried.last()).unwrap().rows_total
    }

    fn acknowledge(&mut self, request: Request, reply: Reply) {
        match (request, reply) {
            (Request::CreateJob { record, .. }, Reply::Done) => {
                self.created.push(record.id);
                self.jobs.get_mut(&record.id).unwrap().acknowledge(record);
            }
            (Request::PutJob(record), Reply::Done) => {
                self.jobs.get_mut(&record.id).unwrap().acknowledge(record)
            }
            (Request::PutNode(record), Reply::Done) => self.node.acknowledge(record),
            (Request::PutModel(model), Reply::Done) => self.learned.acknowledge(model),
            (Request::PutIncident(incident), Reply::Done) => self.incident.acknowledge(*incident),
            (Request::PutCheckpoints(..), Reply::Done) => {}
            (Request::Commit(rows), Reply::Committed(committed)) => {
                let duplicates: u32 = committed.jobs.iter().map(|job| job.duplicates).sum();
                let mut dropped = 0;
                for row in rows {
                    let found = (duplicates > 0).then(|| self.found(row.job, row.row)).flatten();
                    let candidates = self.rows.get_mut(&(row.job, row.row)).unwrap();
                    let mark = mark_of(std::str::from_utf8(&row.body).unwrap());
                    if candidates.acknowledged.is_some() {
                        dropped += 1;
                    } else if duplicates == 0 {
                        candidates.acknowledge((row.status_code, mark));
                    } else {
                        // Whether this one or an earlier attempt got in, the file tells.
                        candidates.acknowledged = found;
                        assert!(candidates.acknowledged.is_some(), "an acknowledged row is not in the files");
                    }
                }
                assert!(
                    dropped <= duplicates,
                    "{dropped} known rows came again and {duplicates} were counted"
                );
            }
            (Request::AppendEvents(drafts, _), Reply::Events(events)) => {
                assert_eq!(drafts.len(), events.len());
                for event in events {
                    assert!(event.seq > self.highest_seq, "event {} after {}", event.seq, self.highest_seq);
                    self.highest_seq = event.seq;
                }
            }
            (request, reply) => panic!("{request:?} was answered with {reply:?}"),
        }
    }

    fn found(&self, job: JobId, row: RowIx) -> Option<(u16, u64)> {
        ["results", "errors"].iter().find_map(|file| {
            let text = self.world().read(&format!("jobs/{job}/{file}.jsonl"))?;
            let text = String::from_utf8(text).unwrap();
            let id = format!("\"batch_req_{job}_{row}\"");
            let line = text.lines().find(|line| line.contains(&id))?;
            let value: Value = serde_json::from_str(line).unwrap();
            Some((value["response"]["status_code"].as_u64().unwrap() as u16, mark_of(line)))
        })
    }

    /// Compares a replay and the files with what must and what may be there, and goes on from what is.
    pub(super) fn check(&mut self, replay: &Replay) {
        let world = self.world().clone();
        let found: BTreeMap<_, _> = replay.jobs.iter().map(|job| (job.record.id, job)).collect();
        for (id, candidates) in &self.jobs {
            let record = found.get(id).map(|job| &job.record);
            candidates.check(record, &format!("the record of {id}"));
        }
        assert!(found.keys().all(|id| self.jobs.contains_key(id)), "jobs from nowhere");
        assert!(found.keys().all(|id| *id < replay.next_job), "a number would be given out twice");
        let mut directories = world.list("jobs");
        directories.sort_by_key(|name| name.trim_start_matches('j').parse::<u64>().unwrap_or(0));
        assert_eq!(
            directories,
            found.keys().map(ToString::to_string).collect::<Vec<_>>(),
            "directories of jobs"
        );
        for (id, job) in &found {
            self.check_job(&world, *id, job);
        }
        match replay.nodes.as_slice() {
            [] => self.node.check(None, "the node"),
            [node] => self.node.check(Some(node), "the node"),
            more => panic!("{more:?}"),
        }
        match replay.models.as_slice() {
            [] => self.learned.check(None, "what was learned"),
            [model] => self.learned.check(Some(model), "what was learned"),
            more => panic!("{more:?}"),
        }
        match replay.incidents.as_slice() {
            [] => self.incident.check(None, "the incident"),
            [incident] => self.incident.check(Some(incident), "the incident"),
            more => panic!("{more:?}"),
        }
        // What is there now counts as acknowledged: it must not go away again.
        self.created = found.keys().copied().collect();
        for (id, job) in found {
            self.jobs.insert(id, Candidates { acknowledged: Some(job.record.clone()), tried: Vec::new() });
        }
        let known = self.created.clone();
        self.jobs.retain(|id, _| known.contains(id));
        self.rows.retain(|(id, _), _| known.contains(id));
        self.next_job = self.next_job.max(replay.next_job.0);
        self.node = Candidates { acknowledged: replay.nodes.first().cloned(), tried: Vec::new() };
        self.learned = Candidates { acknowledged: replay.models.first().cloned(), tried: Vec::new() };
        self.incident = Candidates { acknowledged: replay.incidents.first().cloned(), tried: Vec::new() };
    }

    fn check_job(&mut self, world: &World, id: JobId, job: &crate::model::ReplayedJob) {
        let (mut seen, mut tokens) = (BTreeSet::new(), (0, 0));
        let mut counts = [0, 0];
        for (file, of_results) in [("results", true), ("errors", false)] {
            let bytes = world.read(&format!("jobs/{id}/{file}.jsonl")).unwrap_or_default();
            let recorded = if of_results { job.results_bytes } else { job.errors_bytes };
            assert_eq!(bytes.len() as u64, recorded, "{id}: the length of {file} and the ledger");
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.is_empty() || text.ends_with('\n'), "{id}: {file} ends in the middle of a line");
            for line in text.lines() {
                let value: Value = serde_json::from_str(line).unwrap();
                let row = value["id"].as_str().and_then(|id| id.rsplit('_').next()).unwrap().parse().unwrap();
                assert_eq!(value["custom_id"], format!("row-{row}"));
                assert!(value["error"].is_null());
                let status = value["response"]["status_code"].as_u64().unwrap() as u16;
                assert_eq!(status == 200, of_results, "{id}: {line} in {file}");
                assert!(seen.insert(RowIx(row)), "{id}: row {row} has two answers");
                assert!(job.done.contains(RowIx(row)), "{id}: row {row} has an answer and is not done");
                let candidates = self.rows.get_mut(&(id, RowIx(row))).expect("a row nobody committed");
                let answer = (status, mark_of(line));
                candidates.check(Some(&answer), &format!("{id}: row {row}"));
                *candidates = Candidates { acknowledged: Some(answer), tried: Vec::new() };
                counts[usize::from(of_results)] += 1;
                tokens.0 += value["response"]["body"]["usage"]["prompt_tokens"].as_u64().unwrap();
                tokens.1 += value["response"]["body"]["usage"]["completion_tokens"].as_u64().unwrap();
            }
        }
        assert_eq!(seen.len() as u32, job.done.len(), "{id}: rows done and answers in the files");
        assert_eq!(counts, [job.rows_failed, job.rows_succeeded], "{id}: counts");
        assert_eq!(tokens, (job.prompt_tokens, job.completion_tokens), "{id}: tokens");
        for ((of, row), candidates) in &self.rows {
            if *of == id && candidates.acknowledged.is_some() {
                assert!(seen.contains(row), "{id}: the acknowledged row {row} is gone");
            }
        }
        for (row, checkpoint) in &job.checkpoints {
            assert!(
                !job.done.contains(*row) && !job.record.state.is_over(),
                "{id}: a checkpoint nobody needs"
            );
            let tried = self.checkpoints.get(&(id, *row)).expect("a checkpoint nobody put");
            assert!(tried.contains(checkpoint), "{id}: row {row} has a checkpoint that was never put");
        }
    }

    /// Finishes every job, to see that the ledger still works.
    pub(super) fn finish_everything(&mut self, core: &mut SimCore) {
        for index in 0..self.created.len() {
            let rows =
                (0..self.rows_total(self.created[index])).map(|row| (index, row, row % 3 != 0)).collect();
            self.run(core, &[Action::Commit(rows)], true);
        }
        self.run(core, &[Action::Events(3), Action::PutNode { draining: true }], true);
        let events =
            core.run(vec![Request::ReadEvents(EventFilter { tail: 3, ..EventFilter::default() })], 0);
        let Some(Ok(Reply::Events(events))) = events.into_iter().next() else { panic!("no events") };
        assert_eq!(events.last().map(|event| event.seq), Some(self.highest_seq));
        assert_eq!(events.len(), 3);
    }
}

fn mark_of(text: &str) -> u64 {
    let digits = text.split_once("\"mark\":").or_else(|| text.split_once("mark ")).unwrap().1;
    digits.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

fn copy(request: &Request) -> Request {
    match request {
        Request::CreateJob { staging, record } => {
            Request::CreateJob { staging: staging.clone(), record: record.clone() }
        }
        Request::PutJob(record) => Request::PutJob(record.clone()),
        Request::Commit(rows) => Request::Commit(rows.clone()),
        Request::PutCheckpoints(job, checkpoints) => Request::PutCheckpoints(*job, checkpoints.clone()),
        Request::PutNode(record) => Request::PutNode(record.clone()),
        Request::PutModel(model) => Request::PutModel(model.clone()),
        Request::PutIncident(incident) => Request::PutIncident(incident.clone()),
        Request::AppendEvents(events, unix_ms) => Request::AppendEvents(events.clone(), *unix_ms),
        Request::ReadEvents(filter) => Request::ReadEvents(filter.clone()),
    }
}
