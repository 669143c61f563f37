//! Random faults for hours: nothing lost, nothing doubled, nothing leaked.
//!
//! Three nodes in network namespaces run job after job, in turn in every mode, while faults strike at random: links that are
//! cut, swallow everything or flap, ways to the controller that break, agents, workers and the controller that are killed,
//! machines that start anew, workers that stop, a disk that fills. Each job must end with every row once and the answers
//! of an undisturbed run. The controller is killed in the first third only, and the agent of n1 never, so that their memory
//! and descriptors can be watched over the rest.
//!
//! `NIGHTSHIFT_SOAK_S` says for how long (45), `NIGHTSHIFT_SOAK_PAUSE_S` how long from strike to strike (5); the soak of a
//! release is `NIGHTSHIFT_SOAK_S=10800 NIGHTSHIFT_SOAK_PAUSE_S=20`. `NIGHTSHIFT_SEED` repeats a run's choices.
//!
//! With `NIGHTSHIFT_SOAK_DIR` it keeps its cluster in that directory. When it is ended there, or killed with every program
//! of its cluster, as by a power cut, the next run goes on: over the same ledger, with the job that was in work, until all
//! runs together are as long as asked, and it checks the jobs of all of them. Memory and descriptors are judged within each run,
//! for a process that is started anew begins from little, and would hide what the one before it had gathered.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nightshift_proto::v1::{Job, JobSpec, JobState, ListJobsRequest, Mode};
use nightshift_tests::{
    answers::Answers,
    cluster::Cluster,
    netns::Net,
    process, procfs,
    rng::Rng,
    rows::Input,
    runtime,
    suite::{Case, Need, case},
    wait,
};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::{
    disk_full::SmallDisk,
    sharded::{ONE_AT_A_TIME, spec},
};

const NEEDS: &[Need] = &[Need::Runtime, Need::Linux, Need::Netns, Need::Mount];

const NODES: usize = 3;

/// The node whose agent is left alone.
const WATCHED: &str = "n1";

/// The job that the others are compared with.
const UNDISTURBED: &str = "undisturbed";

/// Rows of each job.
const ROWS: usize = 30;

const MAX_TOKENS: u32 = 40;

/// More than the model needs whole.
const AMPLE_MIB: u64 = 1_000;

/// What memory may grow by from the second third to the last, beside a tenth: the ledger's store has a buffer of 8 MiB for the end
/// of its log, of which the system counts as much as was written to. It fills for an hour, and begins anew.
const SLACK_BYTES: f64 = 8e6;

/// Below this, caches still fill up, and what is seen says nothing about the hours after.
const LONG_ENOUGH: Duration = Duration::from_secs(1_200);

/// How often memory and descriptors are looked at.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// How often a soak that can be gone on with writes down how far it is.
const KEEP: Duration = Duration::from_secs(10);

/// How often a long soak tells how it goes.
const TELL: Duration = Duration::from_secs(600);

/// What descriptors may differ by: connections and pipes of workers that come and go.
const SLACK_DESCRIPTORS: f64 = 12.0;

pub(crate) fn cases() -> Vec<Case> {
    vec![case("soak::random_faults_lose_nothing_double_nothing_and_leak_nothing", NEEDS, soak)]
}

/// The name of the soak's jobs.
fn soaked(number: usize) -> String {
    format!("soak-{number}")
}

fn seconds(name: &str, default: u64) -> Duration {
    let given = env::var(name).ok().and_then(|text| text.parse().ok());
    Duration::from_secs(given.unwrap_or(default))
}

struct Soak {
    cluster: Cluster,
    disk: SmallDisk,
    rng: Rng,
    kept: Option<PathBuf>,
    boots: BTreeMap<String, u32>,
    /// What is broken now, and when it is mended.
    broken: Vec<(Instant, Broken)>,
    strikes: BTreeMap<String, u32>,
}

/// How far the runs before this one have come.
#[derive(Serialize, Deserialize, Default)]
struct Progress {
    elapsed_ms: u64,
    jobs_done: usize,
    boots: BTreeMap<String, u32>,
    strikes: BTreeMap<String, u32>,
    controller: Watch,
    agent: Watch,
}

impl Progress {
    fn of(kept: Option<&Path>) -> Self {
        let Some(text) = kept.and_then(|dir| fs::read(dir.join("progress.json")).ok()) else {
            return Self::default();
        };
        serde_json::from_slice(&text).expect("progress.json is what a soak has written")
    }

    fn keep(&self, dir: &Path) {
        let (fresh, path) = (dir.join("progress.json.new"), dir.join("progress.json"));
        fs::write(&fresh, serde_json::to_vec(self).expect("progress is JSON"))
            .expect("progress can be written");
        fs::rename(fresh, path).expect("progress can be put in place");
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Broken {
    Link(String),
    Way(String),
    Disk(PathBuf),
}

/// What a process holds, from time to time: when, bytes, descriptors.
#[derive(Serialize, Deserialize, Default, Debug)]
struct Watch(Vec<(Duration, f64, f64)>);

impl Watch {
    fn look(&mut self, at: Duration, pid: u32) {
        if self.0.last().is_some_and(|last| at < last.0 + BETWEEN_LOOKS) {
            return;
        }
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |entries| entries.count());
        if let Some(bytes) = procfs::resident_bytes(pid) {
            self.0.push((at, bytes as f64, descriptors as f64));
        }
    }

    fn last(&self) -> String {
        self.0.last().map_or_else(String::new, |(_, bytes, descriptors)| {
            format!("{:.1} MB and {descriptors:.0} descriptors", bytes / 1e6)
        })
    }

    /// The middle of what was seen between two moments.
    fn median(&self, from: Duration, to: Duration, of: impl Fn(&(Duration, f64, f64)) -> f64) -> f64 {
        let mut seen: Vec<f64> = self.0.iter().filter(|look| look.0 >= from && look.0 < to).map(of).collect();
        seen.sort_by(f64::total_cmp);
        seen.get(seen.len() / 2).copied().unwrap_or(0.0)
    }

    /// Judges one process: what was seen from a moment on, of which the controller's first third may have kills in it.
    fn assert_flat(&self, who: &str, from: Duration, to: Duration) {
        let length = to.saturating_sub(from);
        let third = length / 3;
        let thirds = |of: fn(&(Duration, f64, f64)) -> f64| {
            (self.median(from + third, from + 2 * third, of), self.median(from + 2 * third, to, of))
        };
        let looks = self.0.iter().filter(|look| look.0 >= from + 2 * third && look.0 < to).count();
        assert!(looks > 0, "{who} was not looked at in the last third");
        let (bytes, descriptors) = (thirds(|look| look.1), thirds(|look| look.2));
        eprintln!(
            "{who}: {:.1} MB then {:.1} MB, {:.0} descriptors then {:.0}",
            bytes.0 / 1e6,
            bytes.1 / 1e6,
            descriptors.0,
            descriptors.1
        );
        if length < LONG_ENOUGH {
            return;
        }
        assert!(bytes.1 <= bytes.0 * 1.1 + SLACK_BYTES, "{who} grows: {:?}", self.0);
        assert!(
            descriptors.1 <= descriptors.0 + SLACK_DESCRIPTORS,
            "{who} opens more and more: {:?}",
            self.0
        );
    }
}

async fn soak() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let (length, pause) = (seconds("NIGHTSHIFT_SOAK_S", 45), seconds("NIGHTSHIFT_SOAK_PAUSE_S", 5));
    let seed = env::var("NIGHTSHIFT_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("soak: NIGHTSHIFT_SEED={seed}");
    let kept = env::var_os("NIGHTSHIFT_SOAK_DIR").map(|dir| {
        fs::create_dir_all(&dir).expect("the soak's directory can be made");
        // Under another name of the same place the disk of the run before would not be found, and a new one laid over it.
        Path::new(&dir).canonicalize().expect("a directory that was made has a path")
    });
    let disk = kept.as_ref().map_or_else(|| SmallDisk::mount("soak"), |dir| SmallDisk::at(&dir.join("disk")));
    let config = format!(
        "[gangs]\nnetworks = [\"{}\"]\nsettle_ms = 500\nlink_settle_ms = 500\n\
         [jobs]\nprefill_step_tokens = 64\ncheckpoint_interval_ms = 300\n\
         [recovery]\nrestart_base_ms = 200\nrestart_cap_ms = 2000\nstep_budget_ms = 10000\nstop_grace_ms = 2000\n\
         climb_settle_ms = 3000\npenalty_half_life_ms = 20000\nmost_settle_ms = 10000\n\
         [limits]\ndisk_reserve_bytes = 8388608\n",
        Net::ADDRESSES
    );
    let mut builder = Cluster::builder("soak")
        .agents(NODES)
        .on_a_net()
        .controller_state(disk.path())
        .memory_budget_mib(AMPLE_MIB)
        .config(&config)
        .allow(&["WARN *", "ERROR *"]);
    if let Some(dir) = &kept {
        builder = builder.dir(&dir.join("cluster"));
    }
    let mut soak = Soak {
        cluster: builder.start().await,
        disk,
        rng: Rng::new(seed),
        kept,
        boots: BTreeMap::new(),
        broken: Vec::new(),
        strikes: BTreeMap::new(),
    };
    soak.run(length, pause).await;
    soak.cluster.finish().await;
}

impl Soak {
    async fn run(&mut self, length: Duration, pause: Duration) {
        let input = Input::chat(ROWS, MAX_TOKENS, 20_261_126);
        let mut progress = Progress::of(self.kept.as_deref());
        self.boots = progress.boots.clone();
        self.strikes = progress.strikes.clone();
        let before = Duration::from_millis(progress.elapsed_ms);
        let modes = [Mode::Pipeline, Mode::Independent, Mode::Tensor];
        let jobs = self.jobs().await;
        let undisturbed = match jobs.get(UNDISTURBED) {
            Some(job) => job.clone(),
            None => self.submit(UNDISTURBED, Mode::Independent, &input).await,
        };
        let undisturbed = self.cluster.control().wait_completed(undisturbed.job_id, wait::LONG).await;
        let undisturbed = self.cluster.answers(&undisturbed, &input);
        // The last was perhaps submitted after progress was last written down.
        while jobs.contains_key(&soaked(progress.jobs_done + 1)) {
            progress.jobs_done += 1;
        }
        let mut running = match jobs.get(&soaked(progress.jobs_done)) {
            Some(job) => job.clone(),
            None => {
                self.submit(&soaked(progress.jobs_done), modes[progress.jobs_done % modes.len()], &input)
                    .await
            }
        };

        let started = Instant::now();
        let (mut next_strike, mut next_telling, mut next_keeping) =
            (started + pause, started + TELL, started);
        while before + started.elapsed() < length {
            let at = before + started.elapsed();
            self.mend(|at| at <= Instant::now()).await;
            if Instant::now() >= next_strike {
                next_strike += pause;
                // One that finds nothing to hurt leaves it to another.
                while !self.strike(at < length / 3).await {}
            }
            progress.controller.look(at, self.cluster.controller_mut().pid());
            progress.agent.look(at, self.cluster.agent_mut(WATCHED).pid());
            if Instant::now() >= next_telling {
                next_telling += TELL;
                let (strikes, minutes) = (self.strikes.values().sum::<u32>(), at.as_secs() / 60);
                eprintln!(
                    "soak: {minutes} min, {} jobs, {strikes} strikes, clusterd {}, cluster-agent {}",
                    progress.jobs_done,
                    progress.controller.last(),
                    progress.agent.last()
                );
            }
            if let Some(job) = self.ended(&running).await {
                self.check(&job, &input, &undisturbed);
                progress.jobs_done += 1;
                let mode = modes[progress.jobs_done % modes.len()];
                running = self.submit(&soaked(progress.jobs_done), mode, &input).await;
            }
            if let Some(dir) = self.kept.as_deref().filter(|_| Instant::now() >= next_keeping) {
                next_keeping += KEEP;
                progress.elapsed_ms =
                    u64::try_from(at.as_millis()).expect("a soak of fewer than millions of years");
                (progress.boots, progress.strikes) = (self.boots.clone(), self.strikes.clone());
                progress.keep(dir);
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        // Nobody looks at the processes after this.
        let to = before + started.elapsed();
        self.mend(|_| true).await;
        wait::eventually("the last job to end", wait::LONG, async || {
            self.ended(&running).await.ok_or_else(|| format!("{running:?}"))
        })
        .await;
        self.cluster.control().wait_ready(NODES).await;
        let jobs = self.jobs().await;
        for number in 0..=progress.jobs_done {
            let job = jobs.get(&soaked(number));
            let job = job.unwrap_or_else(|| panic!("job {} is not in the ledger", soaked(number)));
            self.check(job, &input, &undisturbed);
        }
        eprintln!("soak: {} jobs of {ROWS} rows through {:?}", progress.jobs_done + 1, self.strikes);
        progress.controller.assert_flat("clusterd", before, to);
        progress.agent.assert_flat("cluster-agent", before, to);
    }

    /// All jobs, by name.
    async fn jobs(&self) -> BTreeMap<String, Job> {
        let asked = ListJobsRequest { all: true };
        let reply = self.cluster.control().raw().list_jobs(asked).await.expect("the jobs can be listed");
        let jobs = reply.into_inner().jobs.into_iter();
        let mut by_name = BTreeMap::new();
        for job in jobs {
            let name = job.spec.clone().unwrap_or_default().name;
            let id = job.job_id;
            let other: Option<Job> = by_name.insert(name, job);
            assert!(other.is_none(), "j{id} was submitted before: {other:?}");
        }
        by_name
    }

    /// A full disk refuses jobs, so that is mended first.
    async fn submit(&mut self, name: &str, mode: Mode, input: &Input) -> Job {
        self.make_room().await;
        let asked = JobSpec { mode: mode.into(), ..spec(name) };
        self.cluster.control().submit(asked, input.jsonl()).await
    }

    /// The job, when it has ended. A person resumes one that was paused for its faults.
    async fn ended(&self, job: &Job) -> Option<Job> {
        let status = self.cluster.control().try_status().await.ok()?;
        let now = status.jobs.into_iter().find(|now| now.job_id == job.job_id)?;
        match now.state() {
            JobState::Completed => Some(now),
            JobState::Failed | JobState::Cancelled => panic!("j{} ended: {}", now.job_id, now.detail),
            JobState::Paused => {
                self.cluster.control().resume(now.job_id).await;
                None
            }
            _ => None,
        }
    }

    fn check(&self, job: &Job, input: &Input, undisturbed: &Answers) {
        let answers = self.cluster.answers(job, input);
        assert_eq!(answers.succeeded(), input.len(), "every row of j{} is answered once", job.job_id);
        answers.assert_same_as(undisturbed);
    }

    /// Mends the full disk, whether or not it is time.
    async fn make_room(&mut self) {
        let is_disk = |broken: &Broken| matches!(broken, Broken::Disk(_));
        let (full, left) =
            std::mem::take(&mut self.broken).into_iter().partition(|(_, broken)| is_disk(broken));
        self.broken = full;
        self.mend(|_| true).await;
        self.broken = left;
    }

    /// Mends what it is time for.
    async fn mend(&mut self, is_time: impl Fn(Instant) -> bool) {
        let (due, left) = std::mem::take(&mut self.broken).into_iter().partition(|(at, _)| is_time(*at));
        self.broken = left;
        for (_, broken) in due {
            match broken {
                Broken::Link(node) => self.cluster.net().heal(&node),
                Broken::Way(node) => self.cluster.let_back(&node),
                Broken::Disk(ballast) => fs::remove_file(ballast).expect("the ballast can be removed"),
            }
        }
    }

    /// Strikes once; false where what was drawn finds nothing to hurt.
    async fn strike(&mut self, is_early: bool) -> bool {
        let node = format!("n{}", self.rng.range(1, NODES as u64 + 1));
        let until = Instant::now() + Duration::from_millis(self.rng.range(500, 9_000));
        let workers = self.cluster.workers();
        let is_broken = |broken: &Broken| self.broken.iter().any(|(_, other)| other == broken);
        let kinds = [
            "link cut",
            "link black",
            "way cut",
            "agent killed",
            "reboot",
            "worker killed",
            "worker stopped",
            "disk full",
            "controller killed",
        ];
        let kind = *self.rng.pick(&kinds);
        match kind {
            "link cut" | "link black" if !is_broken(&Broken::Link(node.clone())) => {
                if kind == "link cut" {
                    self.cluster.net().cut(&node);
                } else {
                    self.cluster.net().black_hole(&node);
                }
                self.broken.push((until, Broken::Link(node)));
            }
            "way cut" if !is_broken(&Broken::Way(node.clone())) => {
                self.cluster.cut_off(&node);
                self.broken.push((until, Broken::Way(node)));
            }
            "agent killed" | "reboot" if node != WATCHED => {
                self.cluster.kill_agent(&node).await;
                if kind == "reboot" {
                    let of_node = format!("/agents/{node}/");
                    for worker in workers.iter().filter(|worker| worker.command.contains(&of_node)) {
                        process::send(worker.pid, Signal::SIGKILL);
                    }
                    *self.boots.entry(node.clone()).or_default() += 1;
                }
                let mut command = self.cluster.agent_command(&node, &runtime::ensure().dir);
                if let Some(boots) = self.boots.get(&node) {
                    command.args(["--boot-id", &format!("boot-{boots}")]);
                }
                self.cluster.start_agent_with(&node, command);
            }
            "worker killed" | "worker stopped" if !workers.is_empty() => {
                let signal = if kind == "worker killed" { Signal::SIGKILL } else { Signal::SIGSTOP };
                process::send(self.rng.pick(&workers).pid, signal);
            }
            "disk full" if !self.broken.iter().any(|(_, broken)| matches!(broken, Broken::Disk(_))) => {
                let ballast = self.disk.fill();
                self.broken.push((until, Broken::Disk(ballast)));
            }
            "controller killed" if is_early => {
                self.cluster.kill_controller().await;
                self.cluster.spawn_controller();
                // On a full disk it waits for room.
                self.make_room().await;
                self.cluster.wait_served().await;
            }
            _ => return false,
        }
        *self.strikes.entry(kind.to_owned()).or_default() += 1;
        true
    }
}
