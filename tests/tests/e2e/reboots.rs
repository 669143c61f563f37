//! A scripted Mac whose killed worker left its memory wired: restarted once, and back at work, where that is allowed; left alone
//! where it is not. The workers are real, and what would restart the machine is a script.

use std::{fs, path::PathBuf};

use nightshift_proto::v1::{Job, JobSpec};
use nightshift_tests::{
    cluster::Cluster,
    control,
    dirs::TestDir,
    mac::Mac,
    models, process,
    rows::Input,
    runtime,
    suite::{Case, Need, case},
    wait,
};
use nix::sys::signal::Signal;

const NEEDS: &[Need] = &[Need::Runtime, Need::Linux];

const NODE: &str = "m1";

/// Enough to be at work when the worker stands still.
const ROWS: usize = 40;

const MAX_TOKENS: u32 = 40;

/// A worker that takes no step for three seconds is ended. How long its memory and its machine are given is short, too.
const QUICK: &str = "[agents]\nobservation_interval_ms = 1000\n\
    [jobs]\ncheckpoint_interval_ms = 200\n\
    [recovery]\nstep_budget_ms = 3000\nleast_step_budget_ms = 3000\nstop_grace_ms = 500\nrestart_base_ms = 100\n\
    [reboots]\nsettle_ms = 500\n";

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("reboots::a_mac_whose_memory_is_lost_is_restarted_once_and_works_again", NEEDS, restarted),
        case("reboots::a_mac_is_not_restarted_unless_both_configurations_allow_it", NEEDS, left_alone),
    ]
}

struct Night {
    cluster: Cluster,
    mac: Mac,
    dir: TestDir,
    input: Input,
}

impl Night {
    async fn start(name: &str, config: &str, agent_config: &str) -> Self {
        let dir = TestDir::new(&format!("{name}-mac"));
        let mac = Mac::new(dir.sub(NODE), NODE);
        mac.apply();
        fs::write(dir.path().join("agent.toml"), agent_config).expect("a configuration can be written");
        let cluster = Cluster::builder(name).config(config).allow(&["WARN *"]).start().await;
        let mut night = Self { cluster, mac, dir, input: Input::chat(ROWS, MAX_TOKENS, 20_261_127) };
        night.start_agent();
        night.cluster.control().wait_ready(1).await;
        night
    }

    fn agent_config(&self) -> PathBuf {
        self.dir.path().join("agent.toml")
    }

    fn start_agent(&mut self) {
        let mut command = self.cluster.agent_command(NODE, &runtime::ensure().dir);
        command.arg("--config").arg(self.agent_config()).arg("--scripted-mac").arg(self.mac.dir());
        self.cluster.start_agent_with(NODE, command);
    }

    /// Its worker stands still amid its rows, has to be killed, and leaves 60 GB behind.
    async fn lose_memory(&mut self) -> Job {
        let spec = JobSpec { max_batch_rows: 4, ..control::spec("night", models::tiny("llama", &[])) };
        let job = self.cluster.control().submit(spec, self.input.jsonl()).await;
        let job = self.cluster.control().wait_rows(job.job_id, 4).await;
        // What is wired while a worker runs says nothing.
        self.mac.wired_bytes = 60_000_000_000;
        self.mac.apply();
        for worker in self.cluster.workers() {
            process::send(worker.pid, Signal::SIGSTOP);
        }
        let event = self.cluster.control().wait_event("needs-reboot").await;
        assert!(
            event.message.starts_with("m1 needs a reboot: 55.0 GB of its memory did not come back"),
            "{event:?}"
        );
        job
    }

    /// What `explain` says of restarting it, when that holds these words.
    async fn explained(&self, words: &str) {
        wait::eventually(&format!("explain to say {words:?}"), wait::SOON, async || {
            let said = self.cluster.ctl(&["explain", NODE]).await.told();
            if said.contains(words) { Ok(()) } else { Err(said) }
        })
        .await;
    }
}

async fn restarted() {
    let config = format!("{QUICK}enabled = true\n");
    let mut night = Night::start("reboots-restarted", &config, "[reboot]\nallow = true\n").await;
    let job = night.lose_memory().await;
    let mac = night.mac.clone();
    wait::until("the machine to be restarted", wait::SOON, || mac.restarts() == "shutdown -r now\n").await;
    night.explained("it was told to restart, and is about to go down").await;
    // Killed at this moment or any other, its agent does not do it again.
    night.cluster.kill_agent(NODE).await;
    night.start_agent();
    // It has come back, and was told nothing again.
    wait::eventually("its agent to be connected again", wait::SOON, async || {
        let events = night.cluster.control().events(1_000).await;
        let connected = events.iter().filter(|event| event.kind == "node-connected").count();
        if connected >= 2 { Ok(()) } else { Err(format!("{connected} times")) }
    })
    .await;
    night.explained("it was told to restart, and is about to go down").await;
    night.cluster.kill_agent(NODE).await;
    night.cluster.kill_controller().await;
    night.cluster.start_controller().await;

    night.mac.boot = "M1-BOOT-2".to_owned();
    night.mac.wired_bytes = 5_000_000_000;
    night.mac.apply();
    night.start_agent();
    let done = night.cluster.control().wait_event("restart-done").await;
    assert!(
        done.message.ends_with("after it was told to restart for memory that a killed worker left wired"),
        "{done:?}"
    );
    let job = night.cluster.control().wait_completed(job.job_id, wait::LONG).await;
    assert_eq!(job.rows_succeeded, ROWS as u64);
    let _ = night.cluster.answers(&job, &night.input);
    let needs = night.cluster.control().incidents("needs-reboot").await;
    let ends: Vec<&str> = needs.iter().map(|incident| incident.outcome.as_str()).collect();
    assert_eq!(ends, ["the machine was restarted"], "{needs:#?}");
    assert_eq!(night.mac.restarts(), "shutdown -r now\n", "once");
    night.cluster.finish().await;
}

async fn left_alone() {
    let mut night = Night::start("reboots-left-alone", QUICK, "").await;
    let job = night.lose_memory().await;
    night.explained("restarts are off in the controller's configuration (reboots.enabled)").await;
    // The controller alone cannot have it.
    fs::write(night.cluster.config_path(), format!("{QUICK}enabled = true\n")).expect("it can be written");
    night.explained("its agent is not allowed to ([reboot] allow = true").await;
    // Nor can both, while nobody would be there to unlock the disk.
    fs::write(night.agent_config(), "[reboot]\nallow = true\n").expect("it can be written");
    night.mac.file_vault = true;
    night.mac.apply();
    night.cluster.stop_agent(NODE).await;
    night.start_agent();
    night.explained("it is not restarted by itself: FileVault is on").await;
    let doctor = night.cluster.ctl(&["doctor"]).await.told();
    assert!(doctor.contains("It may be restarted by itself, and would not be: FileVault is on"), "{doctor}");

    night.mac.wired_bytes = 5_000_000_000;
    night.mac.apply();
    let job = night.cluster.control().wait_completed(job.job_id, wait::LONG).await;
    assert_eq!(job.rows_succeeded, ROWS as u64);
    assert_eq!(night.mac.restarts(), "");
    night.cluster.finish().await;
}
