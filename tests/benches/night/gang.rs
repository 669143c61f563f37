//! What a gang costs, in speed and at its start. Two ranks over MLX's ring on this machine, a controller and two agents
//! around them, against two ranks as one writes them by hand (`bare_gang.py`: mlx-lm's own cut of the same model, the
//! same batch and settings), turn by turn in one run; both must give the same answers. Each rank, and the agent beside it,
//! has a processor of its own, as it has a Mac of its own: left to the scheduler, where the threads of two ranks happen to
//! lie moves the speed of either kind by a tenth from one start to the next.
//!
//! The start is that of the very gangs whose speed is measured. Formation is what remains of the time between the
//! controller's events `gang-starting` and the last rank's `worker-ready` without
//! - the load of the slowest rank, as the ranks report it (in the agents' logs: the line that says they are ready);
//! - what any worker spends before it can do anything: `worker-starting` to `worker-ready` less the load, of independent
//!   workers with the same model in the same run. Their load has the import of MLX in it and that of a rank has not, since
//!   ranks meet before they load; so this import, some tenths of a second, is counted as formation.
//!
//! So processes that wait for one another, MLX's group, the known sums and the canary prompt are formation, and whatever
//! agents and controller do late.

use std::{fs, path::Path};

use nightshift_proto::v1::{Event, Job, JobSpec, Mode};
use nightshift_tests::{cluster::Cluster, control, logs, models, ports, procfs, rows::Input, wait};

use crate::{
    speed::{self, BATCH_ROWS, Finished, speed, texts},
    table::{Bound, Table, median},
};

/// An architecture that mlx-lm cuts into a pipeline itself, and layers large enough that a step is more than its transfers.
const SHAPE: &[&str] = &["--dtype", "float32", "--layers", "8", "--hidden", "512"];

/// Ports of the ranks: apart from those of [`ports::free`], and below those of outgoing connections.
const CONFIG: &str =
    "[gangs]\nnetworks = [\"127.0.0.0/8\"]\nfirst_port = 30200\nports = 1000\nsettle_ms = 500\n";

/// Every row generates so many tokens, unless the model ends it before.
const MAX_TOKENS: u32 = 32;

/// The modes, and their names in `bare_gang.py`.
const MODES: [(Mode, &str); 2] = [(Mode::Pipeline, "pipeline"), (Mode::Tensor, "tensor")];

pub(crate) async fn measure(table: &mut Table, quick: bool) {
    let (batches, rounds) = if quick { (2, 2) } else { (6, 5) };
    let mut cluster = Cluster::builder("bench-gang").agents(2).config(CONFIG).start().await;
    for (core, agent) in cluster.agent_names().into_iter().enumerate() {
        procfs::keep_on_core(cluster.agent_mut(&agent).pid(), core);
    }
    let model = models::tiny("qwen3_moe", SHAPE);
    let input = speed::input(batches * BATCH_ROWS as usize, MAX_TOKENS);
    let file = cluster.path().join("input.jsonl");
    fs::write(&file, input.jsonl()).expect("the input can be written");
    // As many rows, so that a worker is started on each node, and next to no work.
    let short = speed::input(input.len(), 1);

    let mut speeds = MODES.map(|_| Speeds::default());
    let (mut gangs, mut workers) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        for ((mode, name), speeds) in MODES.into_iter().zip(&mut speeds) {
            let bare = bare(&model, &file, cluster.path(), name).await;
            let (job, supervised) = supervised(&cluster, &model, &input, mode).await;
            assert_eq!(texts(&supervised), texts(&bare), "{name}: the same calls give the same answers");
            speeds.add(speed(&bare), speed(&supervised));
            let ranks = starts(&cluster, &job).await;
            assert_eq!(ranks.len(), 2, "{ranks:?}");
            gangs.push(ranks);
        }
        let (job, _) = supervised(&cluster, &model, &short, Mode::Independent).await;
        workers.extend(starts(&cluster, &job).await);
    }
    for ((_, name), speeds) in MODES.into_iter().zip(speeds) {
        speeds.report(table, name);
    }
    report_starts(table, &gangs, &workers);
    cluster.finish().await;
}

/// Tokens a second, round by round.
#[derive(Debug, Default)]
struct Speeds {
    bare: Vec<f64>,
    supervised: Vec<f64>,
    ratios: Vec<f64>,
}

impl Speeds {
    fn add(&mut self, bare: f64, supervised: f64) {
        self.bare.push(bare);
        self.supervised.push(supervised);
        self.ratios.push(supervised / bare);
    }

    fn report(mut self, table: &mut Table, mode: &str) {
        let line = |what: &str| format!("gang: {mode}, {what}");
        table.add(&line("bare script, median"), median(&mut self.bare), "tokens/s", Bound::None);
        table.add(&line("supervised, median"), median(&mut self.supervised), "tokens/s", Bound::None);
        let ratio = median(&mut self.ratios);
        table.add(&line("ratio, median of interleaved rounds"), ratio, "x", Bound::AtLeast(0.95));
    }
}

/// Two ranks by hand.
async fn bare(model: &Path, input: &Path, dir: &Path, mode: &str) -> Vec<Finished> {
    let hosts = dir.join("hosts.json");
    let addresses = [ports::free(), ports::free()].map(|port| [format!("127.0.0.1:{port}")]);
    fs::write(&hosts, serde_json::json!(addresses).to_string()).expect("the hosts' file can be written");
    let rank = |rank: &str| {
        let mut command = speed::script("bare_gang.py", model, input);
        command.arg(mode).env("MLX_RANK", rank).env("MLX_HOSTFILE", &hosts);
        speed::run_script(command)
    };
    let (finished, nothing) = tokio::join!(rank("0"), rank("1"));
    assert!(nothing.is_empty(), "rank 0 prints the answers");
    finished
}

/// The same as a job. Comes back when its ranks are gone: what comes next has the machine for itself.
async fn supervised(cluster: &Cluster, model: &Path, input: &Input, mode: Mode) -> (Job, Vec<Finished>) {
    let spec =
        JobSpec { max_batch_rows: BATCH_ROWS, mode: mode.into(), ..control::spec(mode.as_str_name(), model) };
    let (job, finished) = speed::run_job(cluster, spec, input).await;
    assert_eq!(job.mode(), mode);
    wait::until("the workers of a finished job to end", wait::SOON, || cluster.workers().is_empty()).await;
    (job, finished)
}

/// How a worker, or a rank, came to be ready.
#[derive(Clone, Copy, Debug)]
struct Start {
    /// From the controller's order to the word that it was ready.
    ready_ms: f64,
    load_ms: f64,
    /// [`PARTS`], of a rank.
    parts_ms: [f64; 3],
}

/// The parts of a rank's start that an agent notes, and what they are.
const PARTS: [(&str, &str); 3] = [
    ("rendezvous_ms", "ranks finding one another"),
    ("form_ms", "MLX's group"),
    ("canary_ms", "canary prompt (rank 0)"),
];

/// The starts of a job's workers, of which there was one a node.
async fn starts(cluster: &Cluster, job: &Job) -> Vec<Start> {
    assert_eq!(job.rows_requeued, 0, "all were started once");
    let events = cluster.control().events(1_000).await;
    let of_job = || events.iter().filter(|event| event.job_id == job.job_id);
    let ready = of_job().filter(|event| event.kind == "worker-ready");
    let start = |ready: &Event| {
        // A gang's is no node's: the order goes to all of them.
        let order = of_job()
            .find(|event| {
                event.kind == "gang-starting"
                    || event.kind == "worker-starting" && event.node_id == ready.node_id
            })
            .expect("a worker that is ready was started");
        let log = cluster.path().join("logs").join(&ready.node_id);
        let said = logs::matching(&log, &format!("key=j{}/e*the worker is ready", job.job_id));
        let line = said.first().expect("the agent notes that a worker is ready");
        Start {
            ready_ms: ready.unix_ms.saturating_sub(order.unix_ms) as f64,
            load_ms: field(line, "load_ms").expect("the agent notes how long a load took"),
            parts_ms: PARTS.map(|(name, _)| field(line, name).unwrap_or_default()),
        }
    };
    ready.map(start).collect()
}

/// The number in `… name=12 …`.
fn field(line: &str, name: &str) -> Option<f64> {
    line.split_ascii_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

fn report_starts(table: &mut Table, gangs: &[Vec<Start>], workers: &[Start]) {
    let slowest = |gang: &[Start], of: &dyn Fn(&Start) -> f64| gang.iter().map(of).fold(0.0, f64::max);
    let of_gangs =
        |of: &dyn Fn(&Start) -> f64| gangs.iter().map(|gang| slowest(gang, of)).collect::<Vec<_>>();
    let alone_ms =
        median(&mut workers.iter().map(|start| start.ready_ms - start.load_ms).collect::<Vec<_>>());
    let ready_ms = of_gangs(&|start| start.ready_ms);
    let load_ms = of_gangs(&|start| start.load_ms);
    let mut formation_s: Vec<f64> = ready_ms
        .iter()
        .zip(&load_ms)
        .map(|(ready_ms, load_ms)| (ready_ms - load_ms - alone_ms) / 1e3)
        .collect();
    let mut show = |what: &str, mut figures: Vec<f64>| {
        table.add(&format!("gang: {what}, median"), median(&mut figures), "ms", Bound::None);
    };
    show("from the order to the last rank being ready", ready_ms);
    show("load, of the slowest rank", load_ms);
    show("an independent worker's start without its load", vec![alone_ms]);
    for (index, (_, what)) in PARTS.into_iter().enumerate() {
        show(what, of_gangs(&|start| start.parts_ms[index]));
    }
    let what = "gang: formation without load, median of launches";
    table.add(what, median(&mut formation_s), "s", Bound::AtMost(1.0));
}
