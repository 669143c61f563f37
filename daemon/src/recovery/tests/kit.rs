//! A machine with a clock, and short ways to say what happens to it.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::json;

use crate::{
    fit::{Dtype, ModelFacts, ModelFiles, NodeMemory, Tensor},
    model::{
        Epoch, EventDraft, JobId, JobRecord, JobSpec, JobState, Launch, NodeId, ReplayedJob, RowIx,
        RowLengths, RowSet, Rung, Work, WorkerKey,
    },
    planner::{Interface, Network},
    recovery::*,
};

const GB: u64 = 1_000_000_000;

pub(super) fn record(id: u64, rows_total: u32) -> JobRecord {
    JobRecord {
        id: JobId(id),
        spec: JobSpec { name: "test".to_owned(), model: "m".to_owned(), ..JobSpec::default() },
        rows_total,
        lengths: RowLengths::default(),
        state: JobState::Active,
        detail: String::new(),
        created_unix_ms: 0,
        started_unix_ms: None,
        finished_unix_ms: None,
        epoch: Epoch::default(),
        launches: Vec::new(),
        rows_requeued: 0,
        duplicate_results: 0,
        crashes: Vec::new(),
        work: Work::default(),
    }
}

pub(super) fn replayed(record: JobRecord, done: &[u32]) -> ReplayedJob {
    let mut set = RowSet::new(record.rows_total);
    for row in done {
        set.insert(RowIx(*row));
    }
    ReplayedJob {
        rows_succeeded: u64::from(set.len()),
        done: set,
        record,
        rows_failed: 0,
        rows_by_fallback: 0,
        prompt_tokens: 0,
        completion_tokens: 0,
        results_bytes: 0,
        errors_bytes: 0,
        checkpoints: Default::default(),
    }
}

/// An independent worker's launch.
pub(super) fn launch(node: &str, epoch: u64) -> Launch {
    Launch {
        node: node.into(),
        epoch: Epoch(epoch),
        rank: 0,
        world_size: 1,
        rung: Some(Rung::independent(false)),
    }
}

pub(super) fn facts(instance: &str) -> NodeFacts {
    NodeFacts { boot_id: "boot-1".to_owned(), agent_instance_id: instance.to_owned(), ..NodeFacts::default() }
}

/// Rules under which gangs may talk over 10.0.0.0/24.
pub(super) fn policy_with_a_network() -> Policy {
    Policy { gang_networks: vec![Network::parse("10.0.0.0/24").unwrap()], ..Policy::default() }
}

/// Eighty layers of a gigabyte.
pub(super) fn large_model() -> ModelFound {
    model_of("large", 80)
}

/// Four layers of a gigabyte.
pub(super) fn small_model() -> ModelFound {
    model_of("small", 4)
}

fn model_of(fingerprint: &str, layers: u64) -> ModelFound {
    let tensors = (0..layers).map(|index| Tensor {
        name: format!("model.layers.{index}.mlp.up_proj.weight"),
        dtype: Dtype::Bf16,
        bytes: GB,
    });
    let config = json!({
        "model_type": "llama", "num_hidden_layers": layers, "hidden_size": 1_024, "num_attention_heads": 8,
        "num_key_value_heads": 8, "intermediate_size": 1_024, "vocab_size": 1_000,
    });
    let facts = ModelFacts::new(&ModelFiles { config, tensors: tensors.collect() }).unwrap();
    ModelFound::Files { fingerprint: fingerprint.to_owned(), facts: Arc::new(facts) }
}

/// What a node with this address and so many gigabytes for a model says of itself.
pub(super) fn machine(address: &str, budget_gb: u64) -> NodeFacts {
    NodeFacts {
        memory: NodeMemory { configured_bytes: Some(budget_gb * GB), ..NodeMemory::default() },
        interfaces: vec![Interface {
            name: "en5".to_owned(),
            usable: true,
            loopback: false,
            addresses: vec![format!("{address}/24")],
        }],
        ..NodeFacts::default()
    }
}

pub(super) struct Kit {
    pub(super) machine: Machine,
    pub(super) now: Now,
    sessions: u64,
    pub(super) spool_seq: u64,
    /// What nodes find when they are asked about a model; nothing unless said here.
    pub(super) found: BTreeMap<String, ModelFound>,
    /// What every node finds of these models.
    pub(super) models: BTreeMap<String, ModelFound>,
    /// What nodes say of themselves beyond their names.
    pub(super) machines: BTreeMap<String, NodeFacts>,
    /// How long workers say they have loaded.
    pub(super) load_ms: u64,
    /// What workers answer to the canary prompt.
    pub(super) canary_tokens: Vec<u32>,
    /// Whether agents can try links.
    pub(super) tests_links: bool,
}

impl Kit {
    pub(super) fn new() -> Self {
        Self {
            machine: Machine::new(Policy::default()),
            now: Now { mono_ms: 0, unix_ms: 1_000_000 },
            sessions: 0,
            spool_seq: 0,
            found: BTreeMap::new(),
            models: BTreeMap::new(),
            machines: BTreeMap::new(),
            load_ms: 5,
            canary_tokens: Vec::new(),
            tests_links: false,
        }
    }

    pub(super) fn tell(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = self.machine.step(self.now, event);
        let mut next = 0;
        // Agents answer at once what they find of a model.
        while let Some(effect) = effects.get(next) {
            next += 1;
            if let Effect::Send { node, session, command: Command::InspectModel { model } } = effect {
                let found = self.models.get(model).or_else(|| self.found.get(node.as_str()));
                let found = found.cloned().unwrap_or(ModelFound::Problem);
                let answer =
                    Event::ModelFound { node: node.clone(), session: *session, model: model.clone(), found };
                effects.extend(self.machine.step(self.now, answer));
            }
        }
        effects
    }

    /// A node says this of itself.
    pub(super) fn observe(&mut self, node: &str, facts: NodeFacts) -> Vec<Effect> {
        let NodeFacts { memory, interfaces, thunderbolt, boot, may_restart, .. } = facts;
        let node = NodeId::from(node);
        self.tell(Event::Observed { node, memory, interfaces, thunderbolt, boot, may_restart })
    }

    /// Lets time pass in ticks; nodes named in `alive` keep sending heartbeats.
    pub(super) fn wait(&mut self, ms: u64, alive: &[(&str, SessionId)]) -> Vec<Effect> {
        let mut effects = Vec::new();
        for _ in 0..ms.div_ceil(100) {
            self.now.mono_ms += 100;
            self.now.unix_ms += 100;
            for (node, session) in alive {
                effects.extend(self.tell(Event::Heard { node: NodeId::from(*node), session: *session }));
            }
            effects.extend(self.tell(Event::Tick));
        }
        effects
    }

    pub(super) fn hello(
        &mut self,
        node: &str,
        instance: &str,
        workers: Vec<ReportedWorker>,
    ) -> (SessionId, Vec<Effect>) {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        let machine = self.machines.get(node).cloned().unwrap_or_default();
        let boot_id = Some(machine.boot_id.clone()).filter(|id| !id.is_empty());
        let boot_id = boot_id.unwrap_or(facts(instance).boot_id);
        let NodeFacts { memory, interfaces, thunderbolt, platform, versions, may_restart, .. } = machine;
        let tests_links = self.tests_links;
        let facts = NodeFacts {
            boot_id,
            memory,
            interfaces,
            thunderbolt,
            platform,
            versions,
            tests_links,
            may_restart,
            ..facts(instance)
        };
        let node = NodeId::from(node);
        let effects = self.tell(Event::Hello { node, session, facts, workers });
        (session, effects)
    }

    /// Hello and an empty spool.
    pub(super) fn connect(&mut self, node: &str) -> (SessionId, Vec<Effect>) {
        let (session, mut effects) = self.hello(node, "agent-1", Vec::new());
        effects.extend(self.replayed(node, session));
        (session, effects)
    }

    pub(super) fn replayed(&mut self, node: &str, session: SessionId) -> Vec<Effect> {
        self.tell(Event::SpoolReplayed { node: NodeId::from(node), session })
    }

    /// Lets the worker just started on `node` become ready.
    pub(super) fn ready(&mut self, node: &str, worker: WorkerKey) -> Vec<Effect> {
        let node = NodeId::from(node);
        let mut effects = self.tell(Event::WorkerStarted { node: node.clone(), worker, pid: 77 });
        let (load_ms, canary_tokens) = (self.load_ms, self.canary_tokens.clone());
        effects.extend(self.tell(Event::WorkerReady { node, worker, load_ms, canary_tokens }));
        effects
    }

    pub(super) fn result(
        &mut self,
        node: &str,
        session: SessionId,
        worker: WorkerKey,
        grant: RowGrant,
    ) -> Vec<Effect> {
        self.spool_seq += 1;
        self.result_again(node, session, worker, grant, self.spool_seq)
    }

    pub(super) fn result_again(
        &mut self,
        node: &str,
        session: SessionId,
        worker: WorkerKey,
        grant: RowGrant,
        spool_seq: u64,
    ) -> Vec<Effect> {
        let head = ResultHead {
            spool_seq,
            worker,
            row: grant.row,
            attempt: grant.attempt,
            status_code: 200,
            prompt_tokens: 1,
            completion_tokens: 2,
        };
        self.tell(Event::Results { node: NodeId::from(node), session, heads: vec![head] })
    }

    pub(super) fn committed(
        &mut self,
        node: &str,
        worker: WorkerKey,
        grant: RowGrant,
        spool_seq: u64,
    ) -> Vec<Effect> {
        let row = committed_row(worker, grant, spool_seq);
        let totals = JobTotals {
            job: worker.job,
            results_bytes: 100,
            errors_bytes: 0,
            rows_succeeded: u64::from(self.job(worker.job.0).done.len()) + 1,
            rows_failed: 0,
            rows_by_fallback: 0,
        };
        self.tell(Event::Committed { node: NodeId::from(node), rows: vec![row], totals: vec![totals] })
    }

    pub(super) fn exit(&mut self, node: &str, worker: WorkerKey, class: ExitClass) -> Vec<Effect> {
        let exit = WorkerExit {
            worker,
            class,
            status: "was ended by SIGKILL".to_owned(),
            first_error: String::new(),
            log_tail: Vec::new(),
            started_rows: Vec::new(),
            killed_while_loaded: false,
            quiet_ms: None,
        };
        self.tell(Event::WorkerExited { node: NodeId::from(node), exit })
    }

    pub(super) fn job(&self, id: u64) -> &Job {
        self.machine.job(JobId(id)).unwrap()
    }
}

/// What an agent says of a worker that generates these rows.
pub(super) fn reported(worker: WorkerKey, rows: &[RowGrant]) -> ReportedWorker {
    ReportedWorker {
        worker,
        pid: 77,
        phase: WorkerPhase::Decode,
        step: 9,
        settings: WorkerSettings { max_batch_rows: 8, ..WorkerSettings::default() },
        world_size: 1,
        rows: rows.iter().map(|grant| HeldRow { row: grant.row, attempt: grant.attempt }).collect(),
    }
}

pub(super) fn committed_row(worker: WorkerKey, grant: RowGrant, spool_seq: u64) -> CommittedRow {
    CommittedRow {
        spool_seq,
        job: worker.job,
        row: grant.row,
        status_code: 200,
        prompt_tokens: 1,
        completion_tokens: 2,
    }
}

/// Workers started by these effects, with their node.
pub(super) fn started(effects: &[Effect]) -> Vec<(String, WorkerKey)> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Send { node, command: Command::StartWorker { worker, .. }, .. } => {
                Some((node.to_string(), *worker))
            }
            _ => None,
        })
        .collect()
}

/// Workers told to stop.
pub(super) fn stopped(effects: &[Effect]) -> Vec<(String, WorkerKey, StopMode)> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Send { node, command: Command::StopWorker { worker, mode, .. }, .. } => {
                Some((node.to_string(), *worker, *mode))
            }
            _ => None,
        })
        .collect()
}

/// Rows handed to a node.
pub(super) fn granted(effects: &[Effect], to: &str) -> Vec<RowGrant> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Send { node, command: Command::GrantRows { rows, .. }, .. } if node.as_str() == to => {
                Some(rows.clone())
            }
            _ => None,
        })
        .flatten()
        .collect()
}

pub(super) fn rows(grants: &[RowGrant]) -> Vec<u32> {
    grants.iter().map(|grant| grant.row.0).collect()
}

pub(super) fn acks(effects: &[Effect]) -> Vec<u64> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Send { command: Command::AckResults { through_spool_seq }, .. } => {
                Some(*through_spool_seq)
            }
            _ => None,
        })
        .collect()
}

pub(super) fn commits(effects: &[Effect]) -> usize {
    effects.iter().filter(|effect| matches!(effect, Effect::Commit { .. })).count()
}

pub(super) fn events(effects: &[Effect]) -> Vec<&str> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Emit(EventDraft { kind, .. }) => Some(kind.as_str()),
            _ => None,
        })
        .collect()
}

/// Two nodes, each with a ready worker of a job with `rows` rows.
pub(super) fn two_at_work(rows: u32) -> (Kit, [(SessionId, WorkerKey, Vec<RowGrant>); 2]) {
    let mut kit = Kit::new();
    let (first, _) = kit.connect("a");
    let (second, _) = kit.connect("b");
    let effects = kit.tell(Event::JobAccepted(record(1, rows)));
    let workers = started(&effects);
    assert_eq!(workers.len(), 2);
    let grants_a = granted(&kit.ready("a", workers[0].1), "a");
    let grants_b = granted(&kit.ready("b", workers[1].1), "b");
    (kit, [(first, workers[0].1, grants_a), (second, workers[1].1, grants_b)])
}
