//! Real faults, real MLX, nodes in network namespaces: every fault against every way of running, on two and on three nodes.
//! Each strike falls amid the rows of a job of its own; the job ends with every row once and the very answers of an
//! undisturbed run, and the fault stands in the books with what it cost and how the job went on.
//!
//! `NIGHTSHIFT_MATRIX=all` plays all of it (about an hour); without it, a choice of what no other case plays.

use std::{collections::BTreeMap, fs, time::Duration};

use nightshift_proto::v1::{Incident, Job, JobSpec, Mode};
use nightshift_tests::{
    answers::Answers,
    cgroup::Squeeze,
    cluster::Cluster,
    control::rows_done,
    faults::CLASSIFIED,
    netns::Net,
    process,
    procfs::Seen,
    rows::Input,
    runtime,
    suite::{Case, Need, case},
    wait,
};
use nix::sys::signal::Signal;

use crate::{
    disk_full::SmallDisk,
    sharded::{ONE_AT_A_TIME, model, spec},
};

const NEEDS: &[Need] = &[Need::Runtime, Need::Linux, Need::Netns, Need::Mount];

/// Rows of each job: enough for a strike amid them and for a while after it.
const ROWS: usize = 24;

/// The longest answer.
const MAX_TOKENS: u32 = 40;

/// What the controller does in minutes, it does here in seconds.
const CONFIG: &str = "[jobs]\nprefill_step_tokens = 64\ncheckpoint_interval_ms = 300\n\
    [recovery]\nrestart_base_ms = 200\nstep_budget_ms = 10000\nstop_grace_ms = 2000\nclimb_settle_ms = 1500\n\
    gpu_faults_before_quarantine = 100\npenalty_half_life_ms = 2000\nmost_settle_ms = 10000\n";

/// More than the model needs whole, so that there is every rung of the ladder.
const AMPLE_MIB: u64 = 1_000;

/// A fault, and how it is played.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Strike {
    LinkDownAndUp,
    /// Ten times in a minute.
    LinkFlaps,
    /// The node's way to the controller is broken, and comes back.
    CutOffAndBack,
    AgentKilled,
    /// All processes of the node are gone, and it comes back with another boot id.
    Rebooted,
    WorkerKilled,
    WorkerStopped,
    /// Ends with these of the words that are classified.
    LastWords(usize),
    /// The kernel ends it for want of memory.
    MemoryPressure,
    DiskFull,
    ControllerKilled,
    /// A worker and the link of another node.
    WorkerAndLink,
    /// An agent and the controller.
    AgentAndController,
}

use Strike::{
    AgentAndController, AgentKilled, ControllerKilled, CutOffAndBack, DiskFull, LastWords, LinkDownAndUp,
    LinkFlaps, MemoryPressure, Rebooted, WorkerAndLink, WorkerKilled, WorkerStopped,
};

/// All of them.
fn all_strikes() -> Vec<Strike> {
    let others = [
        LinkDownAndUp,
        LinkFlaps,
        CutOffAndBack,
        AgentKilled,
        Rebooted,
        WorkerKilled,
        WorkerStopped,
        MemoryPressure,
        DiskFull,
        ControllerKilled,
        WorkerAndLink,
        AgentAndController,
    ];
    others.into_iter().chain((0..CLASSIFIED.len()).map(LastWords)).collect()
}

impl Strike {
    /// The faults of which one must stand in the books, where a job of this mode feels it at all.
    fn faults(self, mode: Mode) -> &'static [&'static str] {
        let is_gang = mode != Mode::Independent;
        match self {
            LinkDownAndUp | LinkFlaps if is_gang => &["link-down", "link-fault", "worker-exited"],
            LinkDownAndUp | LinkFlaps => &[],
            CutOffAndBack => &["node-silent"],
            AgentKilled | AgentAndController => &["agent-restarted", "worker-exited", "link-fault"],
            Rebooted => &["node-rebooted"],
            WorkerKilled | WorkerAndLink => &["worker-exited", "link-fault", "link-down"],
            WorkerStopped => &["worker-silent"],
            LastWords(which) => std::slice::from_ref(&CLASSIFIED[which].fault),
            MemoryPressure => &["out-of-memory"],
            DiskFull => &["disk-full"],
            // It costs nothing that would be one.
            ControllerKilled => &[],
        }
    }
}

pub(crate) fn cases() -> Vec<Case> {
    let all = std::env::var_os("NIGHTSHIFT_MATRIX").is_some_and(|value| value == "all");
    let strikes = move |choice: &[Strike]| if all { all_strikes() } else { choice.to_vec() };
    let mut cases = vec![
        case("matrix::two_nodes_independent", NEEDS, move || {
            night("two-independent", 2, Mode::Independent, strikes(&[Rebooted, MemoryPressure]))
        }),
        case("matrix::two_nodes_pipeline", NEEDS, move || {
            night("two-pipeline", 2, Mode::Pipeline, strikes(&[CutOffAndBack, WorkerAndLink]))
        }),
        case("matrix::three_nodes_tensor", NEEDS, move || {
            night("three-tensor", 3, Mode::Tensor, strikes(&[AgentAndController, DiskFull]))
        }),
    ];
    if all {
        let more = [
            ("two_nodes_tensor", 2, Mode::Tensor),
            ("three_nodes_independent", 3, Mode::Independent),
            ("three_nodes_pipeline", 3, Mode::Pipeline),
        ];
        cases.extend(more.into_iter().map(|(name, nodes, mode)| {
            case(&format!("matrix::{name}"), NEEDS, move || night(name, nodes, mode, all_strikes()))
        }));
    }
    cases
}

struct Arena {
    cluster: Cluster,
    disk: SmallDisk,
    mode: Mode,
    /// Restarts of machines, by node.
    boots: BTreeMap<String, u32>,
}

async fn night(name: &str, nodes: usize, mode: Mode, strikes: Vec<Strike>) {
    let _alone = ONE_AT_A_TIME.lock().await;
    let disk = SmallDisk::mount(&format!("matrix-{name}"));
    let config = format!(
        "[gangs]\nnetworks = [\"{}\"]\nsettle_ms = 500\nlink_settle_ms = 500\n{CONFIG}\
         [limits]\ndisk_reserve_bytes = 8388608\n",
        Net::ADDRESSES
    );
    let cluster = Cluster::builder(&format!("matrix-{name}"))
        .agents(nodes)
        .on_a_net()
        .inject_faults()
        .controller_state(disk.path())
        .memory_budget_mib(AMPLE_MIB)
        .config(&config)
        .allow(&["WARN *", "ERROR *"])
        .start()
        .await;
    let mut arena = Arena { cluster, disk, mode, boots: BTreeMap::new() };
    let input = Input::chat(ROWS, MAX_TOKENS, 20_261_125);
    let job = arena.submit("undisturbed", Mode::Independent, &input).await;
    let job = arena.cluster.control().wait_completed(job.job_id, wait::LONG).await;
    let undisturbed = arena.cluster.answers(&job, &input);
    for strike in strikes {
        if strike == MemoryPressure && nightshift_tests::cgroup::missing().is_some() {
            eprintln!("{name}: {strike:?} is left out: {:?}", nightshift_tests::cgroup::missing());
            continue;
        }
        arena.endure(name, strike, &input, &undisturbed).await;
    }
    arena.cluster.finish().await;
}

impl Arena {
    async fn submit(&self, name: &str, mode: Mode, input: &Input) -> Job {
        let asked = JobSpec { mode: mode.into(), ..spec(name) };
        assert_eq!(asked.model, model().to_string_lossy());
        self.cluster.control().submit(asked, input.jsonl()).await
    }

    async fn endure(&mut self, name: &str, strike: Strike, input: &Input, undisturbed: &Answers) {
        let started = std::time::Instant::now();
        let before = self.newest_incident().await;
        let job = self.submit(&format!("{strike:?}"), self.mode, input).await;
        let ranks = match self.mode {
            Mode::Independent => 1,
            _ => 2,
        };
        let mode = self.mode;
        let at_work = move |job: &Job| {
            rows_done(job) >= 2
                && job.mode() == mode
                && job.workers.len() >= ranks
                && job.workers.iter().any(|worker| worker.active_rows > 0)
        };
        let job = self.cluster.control().wait_job(job.job_id, "amid its rows", wait::LONG, at_work).await;
        self.play(strike, &job).await;
        let done = self.cluster.control().wait_completed(job.job_id, wait::LONG).await;
        let answers = self.cluster.answers(&done, input);
        assert_eq!(answers.succeeded(), input.len(), "{strike:?}: every row is answered once");
        answers.assert_same_as(undisturbed);
        self.cluster.control().wait_ready(self.cluster.agent_names().len()).await;

        let expected = strike.faults(self.mode);
        let incidents: Vec<Incident> = self.cluster.control().status().await.incidents;
        let of_strike: Vec<&Incident> = incidents
            .iter()
            .filter(|incident| incident.incident_id > before || incident.last_unix_ms >= job.created_unix_ms)
            .collect();
        let found = of_strike.iter().find(|incident| expected.contains(&incident.fault.as_str()));
        assert!(expected.is_empty() || found.is_some(), "{strike:?} stands in no book: {of_strike:#?}");
        let told = of_strike.iter().map(|incident| {
            format!(
                "{} (went on with {:?}, first token after {:?} ms of which {:?} ms to start, {} rows again, {} tokens \
                 lost, {} kept)",
                incident.fault,
                incident.went_on_as,
                incident.first_token_after_ms,
                incident.start_ms,
                incident.rows_requeued,
                incident.tokens_lost,
                incident.tokens_saved
            )
        });
        let told: Vec<String> = told.collect();
        eprintln!("{name}: {strike:?} in {:.1?}: {}", started.elapsed(), told.join("; "));
        self.check_report(strike, &done, &of_strike).await;
    }

    /// The morning page has the job whole, and each fault with how the job went on and what it cost.
    async fn check_report(&self, strike: Strike, job: &Job, of_strike: &[&Incident]) {
        let report = self.cluster.ctl(&["report", "--output", "json"]).await.json();
        let name = format!("j{}", job.job_id);
        let reported =
            report["jobs"].as_array().into_iter().flatten().find(|other| other["job"]["id"] == *name);
        let reported = reported.unwrap_or_else(|| panic!("{name} is not in {report:#}"));
        for list in ["work", "ways"] {
            let parts = reported[list].as_array().into_iter().flatten();
            let rows: u64 = parts.filter_map(|part| part["rows"].as_u64()).sum();
            // Who did what is written once a minute: a controller that dies may lose the last of it.
            let may_lose = matches!(strike, ControllerKilled | AgentAndController);
            assert!(rows == job.rows_total || (may_lose && rows < job.rows_total), "{list} of {reported:#}");
        }
        for incident in of_strike {
            let on_page = report["incidents"].as_array().into_iter().flatten();
            let on_page = on_page.filter(|other| other["id"] == incident.incident_id).collect::<Vec<_>>();
            let [page] = on_page[..] else {
                panic!("{incident:#?} is {} times in {report:#}", on_page.len())
            };
            assert_eq!(page["fault"], incident.fault, "{page:#}");
            assert_eq!(page["went_on_as"].as_str().unwrap_or_default(), incident.went_on_as, "{page:#}");
            assert_eq!(page["rows_requeued"], incident.rows_requeued, "{page:#}");
            assert_eq!(page["tokens_lost"], incident.tokens_lost, "{page:#}");
            assert_eq!(page["tokens_saved"], incident.tokens_saved, "{page:#}");
            // Whatever ended a launch of the job says how it went on.
            let ended_a_launch = incident.job_id == job.job_id && incident.rows_requeued > 0;
            assert!(!ended_a_launch || !incident.went_on_as.is_empty(), "{page:#}");
        }
    }

    async fn newest_incident(&self) -> u64 {
        let incidents = self.cluster.control().status().await.incidents;
        incidents.iter().map(|incident| incident.incident_id).max().unwrap_or(0)
    }

    /// A worker of the job, the last one where there are several: not rank 0 of a gang.
    fn victim(&self, job: &Job) -> (String, Seen) {
        let worker = job.workers.iter().max_by_key(|worker| worker.worker.map_or(0, |id| id.rank));
        let worker = worker.expect("a job at work has workers");
        let seen = self.cluster.workers().into_iter().find(|seen| seen.pid == worker.pid);
        (worker.node_id.clone(), seen.expect("its process is there"))
    }

    async fn wait_for(&self, fault: &str, since: u64) {
        wait::eventually(&format!("an incident {fault}"), wait::SOON, async || {
            let found = self.cluster.control().incidents(fault).await;
            let is_new = found.iter().any(|i| i.incident_id > since || i.closed_unix_ms == 0);
            if is_new { Ok(()) } else { Err(format!("{found:#?}")) }
        })
        .await;
    }

    async fn play(&mut self, strike: Strike, job: &Job) {
        let before = self.newest_incident().await;
        let (node, victim) = self.victim(job);
        match strike {
            LinkDownAndUp => {
                self.cluster.net().cut(&node);
                if self.mode != Mode::Independent {
                    let since = job.epoch;
                    let other = |job: &Job| job.epoch > since || rows_done(job) == job.rows_total;
                    self.cluster.control().wait_job(job.job_id, "another launch", wait::LONG, other).await;
                }
                self.cluster.net().heal(&node);
            }
            LinkFlaps => {
                for _ in 0..10 {
                    self.cluster.net().cut(&node);
                    tokio::time::sleep(Duration::from_secs(2)).await;
                    self.cluster.net().heal(&node);
                    tokio::time::sleep(Duration::from_secs(4)).await;
                }
            }
            CutOffAndBack => {
                self.cluster.cut_off(&node);
                self.wait_for("node-silent", before).await;
                self.cluster.let_back(&node);
            }
            AgentKilled => {
                self.cluster.kill_agent(&node).await;
                self.start_agent(&node);
            }
            Rebooted => {
                self.cluster.kill_agent(&node).await;
                for worker in self.workers_on(job, &node) {
                    process::send(worker.pid, Signal::SIGKILL);
                }
                *self.boots.entry(node.clone()).or_default() += 1;
                self.start_agent(&node);
            }
            WorkerKilled => process::send(victim.pid, Signal::SIGKILL),
            WorkerStopped => process::send(victim.pid, Signal::SIGSTOP),
            LastWords(which) => {
                let words = CLASSIFIED[which];
                self.cluster.inject(&node, &[words.fault_of_worker()]);
                self.wait_for(words.fault, before).await;
                self.cluster.inject(&node, &[]);
            }
            MemoryPressure => {
                let squeeze = Squeeze::on(victim.pid);
                self.wait_for("out-of-memory", before).await;
                drop(squeeze);
            }
            DiskFull => {
                let ballast = self.disk.fill();
                self.wait_for("disk-full", before).await;
                fs::remove_file(ballast).expect("the ballast can be removed");
            }
            ControllerKilled => {
                self.cluster.kill_controller().await;
                self.cluster.start_controller().await;
            }
            WorkerAndLink => {
                let other = self.cluster.agent_names().into_iter().find(|name| *name != node);
                let other = other.expect("there are two nodes");
                process::send(victim.pid, Signal::SIGKILL);
                self.cluster.net().cut(&other);
                tokio::time::sleep(Duration::from_secs(3)).await;
                self.cluster.net().heal(&other);
            }
            AgentAndController => {
                self.cluster.kill_agent(&node).await;
                self.cluster.kill_controller().await;
                self.cluster.start_controller().await;
                self.start_agent(&node);
            }
        }
    }

    fn workers_on(&self, job: &Job, node: &str) -> Vec<Seen> {
        let pids: Vec<u32> =
            job.workers.iter().filter(|worker| worker.node_id == node).map(|worker| worker.pid).collect();
        self.cluster.workers().into_iter().filter(|seen| pids.contains(&seen.pid)).collect()
    }

    fn agent_command(&self, node: &str) -> std::process::Command {
        let mut command = self.cluster.agent_command(node, &runtime::ensure().dir);
        if let Some(boots) = self.boots.get(node) {
            command.args(["--boot-id", &format!("boot-{boots}")]);
        }
        command
    }

    fn start_agent(&mut self, node: &str) {
        let command = self.agent_command(node);
        self.cluster.start_agent_with(node, command);
    }
}
