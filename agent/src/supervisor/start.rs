//! May this worker be started, and what is it told? Pure, but for a look at the file system where models are confined to
//! certain directories.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nightshift_proto::v1;

use crate::{
    gang::{self, Launch},
    runtime,
    worker::{Key, protocol},
};

/// Where the controller leaves an option open (0).
const DEFAULT_OPTIONS: v1::WorkerOptions = v1::WorkerOptions {
    max_batch_rows: 8,
    prefill_batch_rows: 8,
    prefill_step_tokens: 2048,
    checkpoint_interval_ms: 5_000,
    default_max_tokens: 512,
};

/// How things stand on the node.
#[derive(Debug)]
pub struct Circumstances<'a> {
    /// Whether the controller wants no new workers here.
    pub draining: bool,
    /// Whether the agent is ending.
    pub ending: bool,
    /// Whether the machine is about to restart.
    pub restarting: bool,
    /// Workers running now.
    pub running: &'a [Key],
    /// See [`crate::config::Settings`].
    pub max_workers: usize,
    /// The highest launch of the job so far.
    pub highest_epoch: u64,
    /// Whether workers can run.
    pub runtime: &'a runtime::Status,
    /// See [`crate::config::Settings`].
    pub model_roots: &'a [PathBuf],
    /// What a gang's rank depends on.
    pub node: gang::Node<'a>,
}

/// What is to be done about a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Start it, with these words.
    Start(Box<Start>),
    /// It runs already: the command came twice.
    Running,
    /// No, and why.
    Refuse(String),
}

/// A worker to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Which.
    pub key: Key,
    /// What it is told first.
    pub init: protocol::Init,
    /// What the controller wanted, defaults filled in.
    pub options: v1::WorkerOptions,
    /// `None` for an independent worker.
    pub launch: Option<Launch>,
}

/// Decides.
#[must_use]
pub fn decide(start: &v1::StartWorker, now: &Circumstances<'_>) -> Decision {
    let Some(id) = &start.worker else {
        return Decision::Refuse("the command names no worker".to_owned());
    };
    let key = Key::from_proto(id);
    if now.running.contains(&key) {
        return Decision::Running;
    }
    if let Some(problem) = obstacle(start, key, now) {
        return Decision::Refuse(problem);
    }
    let launch = match start.gang.as_ref().map(|gang| gang::prepare(gang, key, now.node)).transpose() {
        Ok(launch) => launch,
        Err(problem) => return Decision::Refuse(problem),
    };
    let canary = match start.canary.as_ref().map(gang::canary).transpose() {
        Ok(canary) => canary.filter(|_| launch.is_none()),
        Err(problem) => return Decision::Refuse(problem),
    };
    let options = with_defaults(start.options);
    let init = init(start, key, options, launch.as_ref(), canary);
    Decision::Start(Box::new(Start { key, init, options, launch }))
}

fn obstacle(start: &v1::StartWorker, key: Key, now: &Circumstances<'_>) -> Option<String> {
    if now.ending {
        return Some("this agent is ending".to_owned());
    }
    if now.restarting {
        return Some("this machine is restarting".to_owned());
    }
    if now.draining {
        return Some("this node is draining".to_owned());
    }
    let same_launch = |other: &&Key| (other.job_id, other.epoch) == (key.job_id, key.epoch);
    if let Some(other) = now.running.iter().find(same_launch) {
        return Some(format!(
            "rank {} of launch {} of job j{} runs on this node, and a node has one rank of a gang",
            other.rank, key.epoch, key.job_id
        ));
    }
    if key.epoch <= now.highest_epoch {
        return Some(format!(
            "launch {} of job j{} is not newer than launch {}, which was started here",
            key.epoch, key.job_id, now.highest_epoch
        ));
    }
    if start.gang.is_none() && key.rank != 0 {
        return Some(format!("rank {} belongs to a gang, and the command names none", key.rank));
    }
    if now.running.len() >= now.max_workers {
        return Some(format!(
            "{} workers run on this node, and max_workers is {}",
            now.running.len(),
            now.max_workers
        ));
    }
    if !now.runtime.ready {
        let problem = now.runtime.problem.as_deref().unwrap_or("it is not ready");
        return Some(format!("the Python runtime cannot run workers: {problem}"));
    }
    if start.model.is_empty() {
        return Some("the command names no model".to_owned());
    }
    outside(Path::new(&start.model), now.model_roots)
}

/// Why this model is not under one of the roots, if there are any. Links are followed first, or they would lead out.
#[must_use]
pub fn outside(model: &Path, roots: &[PathBuf]) -> Option<String> {
    if roots.is_empty() {
        return None;
    }
    let within = fs::canonicalize(model).is_ok_and(|model| {
        roots.iter().any(|root| fs::canonicalize(root).is_ok_and(|root| model.starts_with(root)))
    });
    (!within).then(|| {
        let roots = roots.iter().map(|root| root.display().to_string()).collect::<Vec<_>>().join(", ");
        format!("{} is not a model directory under model_roots ({roots})", model.display())
    })
}

fn with_defaults(given: Option<v1::WorkerOptions>) -> v1::WorkerOptions {
    let given = given.unwrap_or_default();
    let or = |value: u32, default: u32| if value == 0 { default } else { value };
    v1::WorkerOptions {
        max_batch_rows: or(given.max_batch_rows, DEFAULT_OPTIONS.max_batch_rows),
        prefill_batch_rows: or(given.prefill_batch_rows, DEFAULT_OPTIONS.prefill_batch_rows),
        prefill_step_tokens: or(given.prefill_step_tokens, DEFAULT_OPTIONS.prefill_step_tokens),
        checkpoint_interval_ms: if given.checkpoint_interval_ms == 0 {
            DEFAULT_OPTIONS.checkpoint_interval_ms
        } else {
            given.checkpoint_interval_ms
        },
        default_max_tokens: or(given.default_max_tokens, DEFAULT_OPTIONS.default_max_tokens),
    }
}

fn init(
    start: &v1::StartWorker,
    key: Key,
    options: v1::WorkerOptions,
    launch: Option<&Launch>,
    canary: Option<protocol::CanaryInit>,
) -> protocol::Init {
    let job = format!("j{}", key.job_id);
    protocol::Init {
        protocol: protocol::VERSION,
        model: start.model.clone(),
        max_batch_rows: options.max_batch_rows,
        prefill_batch_rows: options.prefill_batch_rows,
        prefill_step_tokens: options.prefill_step_tokens,
        checkpoint_interval_ms: options.checkpoint_interval_ms,
        default_max_tokens: options.default_max_tokens,
        seed_base: job.clone(),
        job,
        rank: key.rank,
        world_size: launch.map_or(1, |launch| launch.init.world_size),
        gang: launch.map(|launch| launch.init.clone()),
        canary,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gang::{launch, starts::StartBudget};

    fn start(epoch: u64) -> v1::StartWorker {
        v1::StartWorker {
            command_id: 1,
            worker: Some(v1::WorkerId { job_id: 7, epoch, rank: 0 }),
            model: "/models/tiny".into(),
            ..Default::default()
        }
    }

    fn ready() -> runtime::Status {
        runtime::Status { ready: true, ..Default::default() }
    }

    static NO_STARTS: StartBudget = StartBudget { boot_id: None, used: 0 };

    fn well(runtime: &runtime::Status) -> Circumstances<'_> {
        Circumstances {
            draining: false,
            ending: false,
            restarting: false,
            running: &[],
            max_workers: 2,
            highest_epoch: 3,
            runtime,
            model_roots: &[],
            node: gang::Node { node_id: "n2", macos: false, starts: &NO_STARTS },
        }
    }

    #[test]
    fn a_newer_launch_starts_with_defaults_filled_in() {
        let runtime = ready();
        let Decision::Start(to_start) = decide(&start(4), &well(&runtime)) else { panic!() };
        let Start { key, init, options, launch } = *to_start;
        assert_eq!((key.epoch, init.job.as_str(), init.max_batch_rows), (4, "j7", 8));
        assert_eq!((options, launch, init.gang, init.world_size), (DEFAULT_OPTIONS, None, None, 1));
    }

    fn rank(epoch: u64, backend: v1::Backend) -> v1::StartWorker {
        let worker = Some(v1::WorkerId { job_id: 7, epoch, rank: 1 });
        v1::StartWorker { worker, gang: Some(launch::tests::gang(backend)), ..start(epoch) }
    }

    #[test]
    fn a_rank_starts_once_on_a_node_and_with_its_gang() {
        let runtime = ready();
        let Decision::Start(to_start) = decide(&rank(4, v1::Backend::Ring), &well(&runtime)) else {
            panic!()
        };
        let init = &to_start.init;
        assert_eq!((to_start.key.rank, init.rank, init.world_size), (1, 1, 3));
        assert_eq!(init.gang.as_ref(), to_start.launch.as_ref().map(|launch| &launch.init));

        let refusal = |command: &v1::StartWorker, running: &[Key], highest_epoch| match decide(
            command,
            &Circumstances { running, highest_epoch, ..well(&runtime) },
        ) {
            Decision::Refuse(problem) => problem,
            other => panic!("{other:?}"),
        };
        let lead = Key { job_id: 7, epoch: 4, rank: 0 };
        assert_eq!(
            refusal(&rank(4, v1::Backend::Ring), &[lead], 4),
            "rank 0 of launch 4 of job j7 runs on this node, and a node has one rank of a gang"
        );
        assert_eq!(
            refusal(&rank(4, v1::Backend::Ring), &[], 4),
            "launch 4 of job j7 is not newer than launch 4, which was started here"
        );
        assert_eq!(
            refusal(&rank(4, v1::Backend::Jaccl), &[], 3),
            "jaccl needs RDMA over Thunderbolt, which only macOS has: use ring"
        );
        let alone = v1::StartWorker { gang: None, ..rank(4, v1::Backend::Ring) };
        assert_eq!(refusal(&alone, &[], 3), "rank 1 belongs to a gang, and the command names none");
    }

    #[test]
    fn each_obstacle_is_named() {
        let (runtime, unfit) =
            (ready(), runtime::Status { problem: Some("no MLX".into()), ..Default::default() });
        let others = [1, 2].map(|epoch| Key { job_id: 1, epoch, rank: 0 });
        let roots = [PathBuf::from("/nonexistent")];
        let gang = v1::StartWorker { gang: Some(v1::Gang::default()), ..start(4) };
        let cases = [
            (start(4), Circumstances { draining: true, ..well(&runtime) }, "this node is draining"),
            (start(4), Circumstances { ending: true, ..well(&runtime) }, "this agent is ending"),
            (start(4), Circumstances { restarting: true, ..well(&runtime) }, "this machine is restarting"),
            (
                start(3),
                well(&runtime),
                "launch 3 of job j7 is not newer than launch 3, which was started here",
            ),
            (gang, well(&runtime), "the gang names no backend"),
            (
                start(4),
                Circumstances { running: &others, ..well(&runtime) },
                "2 workers run on this node, and max_workers is 2",
            ),
            (start(4), well(&unfit), "the Python runtime cannot run workers: no MLX"),
            (v1::StartWorker { worker: None, ..start(4) }, well(&runtime), "the command names no worker"),
            (
                v1::StartWorker { model: String::new(), ..start(4) },
                well(&runtime),
                "the command names no model",
            ),
            (
                start(4),
                Circumstances { model_roots: &roots, ..well(&runtime) },
                "/models/tiny is not a model directory under model_roots (/nonexistent)",
            ),
        ];
        for (command, now, says) in cases {
            assert_eq!(decide(&command, &now), Decision::Refuse(says.to_owned()));
        }
    }

    #[test]
    fn a_repeated_command_is_no_second_start() {
        let runtime = ready();
        let running = [Key { job_id: 7, epoch: 3, rank: 0 }];
        let now = Circumstances { running: &running, draining: true, ..well(&runtime) };
        assert_eq!(decide(&start(3), &now), Decision::Running);
    }

    #[test]
    fn links_do_not_lead_out_of_the_roots() {
        let dir = tempfile::tempdir().unwrap();
        let (root, elsewhere) = (dir.path().join("models"), dir.path().join("secret"));
        fs::create_dir_all(root.join("a")).unwrap();
        fs::create_dir(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, root.join("b")).unwrap();
        assert_eq!(outside(&root.join("a"), std::slice::from_ref(&root)), None);
        assert!(outside(&root.join("b"), std::slice::from_ref(&root)).is_some());
        assert!(outside(&root.join("../secret"), std::slice::from_ref(&root)).is_some());
    }
}
