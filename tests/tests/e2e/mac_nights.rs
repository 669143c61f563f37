//! What happens to Macs while they work for a job: an update of one after the other, and a restart of a GPU. The agents and the
//! tools are those of scripted Macs, the ranks are real.

use nightshift_proto::v1::{Job, JobSpec, Mode};
use nightshift_tests::{
    control,
    faults::{End, Fault},
    rows::Input,
    suite::{Case, case},
    wait,
};

use crate::{
    cables::{Macs, NAMES, NEEDS, assert_told},
    sharded::{ONE_AT_A_TIME, spec},
};

/// Rows enough for a gang, for two nodes of which each is fast alone while both come back, and for a gang that pays.
const ROWS: usize = 60;

const MAX_TOKENS: u32 = 30;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("mac_nights::an_update_of_one_after_the_other_keeps_them_apart_in_between", NEEDS, update),
        case("mac_nights::a_gpu_restart_that_everything_tells_of_is_one_incident", NEEDS, gpu_restart),
    ]
}

impl Macs {
    /// An update, which restarts the machine.
    async fn update(&mut self, index: usize) {
        self.cluster.kill_agent(NAMES[index]).await;
        self.change(|macs| {
            let mac = &mut macs[index];
            mac.os_build = "25D201".to_owned();
            mac.boot = format!("{}-BOOT-2", NAMES[index]);
        });
        self.cluster.start_agent(NAMES[index]);
    }

    async fn ctl_says(&self, arguments: &[&str], part: &str) {
        wait::eventually(&format!("{arguments:?} to say {part}"), wait::SOON, async || {
            let told = self.cluster.ctl(arguments).await.stdout;
            if told.contains(part) { Ok(()) } else { Err(told) }
        })
        .await;
    }

    /// The rest of the job, and the answers of an undisturbed one.
    async fn end(self, job: &Job, input: &Input) {
        let job = self.cluster.control().wait_completed(job.job_id, wait::LONG).await;
        let answers = self.cluster.answers(&job, input);
        assert_eq!(answers.succeeded(), input.len(), "every row once");
        let undisturbed = JobSpec { mode: Mode::Independent.into(), ..spec("undisturbed") };
        let job = self.cluster.control().submit(undisturbed, input.jsonl()).await;
        let job = self.cluster.control().wait_completed(job.job_id, wait::LONG).await;
        answers.assert_same_as(&self.cluster.answers(&job, input));
        let Self { cluster, dir, .. } = self;
        cluster.finish().await;
        drop(dir);
    }
}

async fn update() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let mut macs = Macs::start("mac-nights-update", "rdma = false\n", |builder| builder).await;
    let input = Input::chat(ROWS, MAX_TOKENS, 20_261_127);
    let asked = JobSpec { mode: Mode::Pipeline.into(), ..spec("update") };
    let job = macs.cluster.control().submit(asked, input.jsonl()).await;
    let sharded = |job: &Job| job.mode() == Mode::Pipeline && job.workers.len() == 2;
    let (job, _) = macs.wait_for(&job, "a pipeline", sharded).await;

    macs.update(1).await;
    let alone = |job: &Job| job.mode() == Mode::Independent && job.workers.len() == 2;
    let (job, reasons) = macs.wait_for(&job, "each alone", alone).await;
    assert_told(&reasons, &["pipeline was asked for, and is not to be had"]);
    let explained = macs.cluster.ctl(&["explain", "j1"]).await.stdout;
    let apart = "Nodes with different versions make no gang: macOS 25D125, MLX ";
    assert_told(&explained, &[apart, "; macOS 25D201, MLX "]);
    assert_told(&macs.cluster.ctl(&["nodes"]).await.stdout, &["macos 25D125", "macos 25D201"]);
    macs.ctl_says(&["doctor"], "The builds of macOS differ: 25D125 on n1; 25D201 on n2.").await;

    macs.update(0).await;
    let (job, reasons) = macs.wait_for(&job, "a pipeline again", sharded).await;
    assert_told(&reasons, &["changed from independent workers to a pipeline over ring (Thunderbolt)"]);
    macs.ctl_says(&["doctor", "--all"], "all nodes have the same builds of macOS: 25D201").await;
    let explained = macs.cluster.ctl(&["explain", "j1"]).await.stdout;
    assert!(!explained.contains("different versions"), "{explained}");
    macs.end(&job, &input).await;
}

async fn gpu_restart() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let told = ["WARN the worker of j1 on n1*kind=\"gpu-fault\""];
    let mut macs = Macs::start("mac-nights-gpu", "", |builder| builder.inject_faults().expect(&told)).await;
    let input = Input::chat(ROWS * 2 / 3, MAX_TOKENS, 20_261_128);
    let asked = JobSpec { mode: Mode::Independent.into(), ..spec("gpu") };
    let job = macs.cluster.control().submit(asked, input.jsonl()).await;
    let both = |job: &Job| job.workers.len() == 2 && job.workers.iter().all(|worker| worker.active_rows > 0);
    let (job, _) = macs.wait_for(&job, "both at work", both).await;
    let on_first =
        |job: &Job| job.workers.iter().find(|worker| worker.node_id == "n1").map(|worker| worker.pid);
    let pid = on_first(&job).expect("both are at work");

    // The counter, the log, the worker itself, and after a while a report.
    let error =
        "Discarded (victim of GPU error/recovery) (00000005:kIOGPUCommandBufferCallbackErrorInnocentVictim)";
    macs.change(|[a, _]| a.gpu_restarts = 1);
    macs.macs[0].log("python3.13", pid, error);
    let ends = format!("RuntimeError: [METAL] Command buffer execution failed: {error}");
    macs.cluster.inject("n1", &[Fault::new(&ends, End::Exit(1))]);
    let back = |job: &Job| job.workers.len() == 2 && on_first(job).is_some_and(|now| now != pid);
    let (job, _) = macs.wait_for(&job, "another worker in its place", back).await;
    macs.macs[0].report_gpu("I-1", "python3.13", "firmware-detected lockup");
    macs.ctl_says(&["doctor", "n1"], "(firmware-detected lockup)").await;

    let faults = macs.cluster.control().incidents("gpu-fault").await;
    assert_eq!((faults.len(), control::times(&faults)), (1, 1), "{faults:#?}");
    let rose = "the driver's counter of GPU restarts rose from 0 to 1";
    assert!(faults[0].evidence.iter().any(|line| line == rose), "{faults:#?}");
    assert!(faults[0].rows_requeued > 0, "{faults:#?}");
    let job = macs.cluster.control().wait_completed(job.job_id, wait::LONG).await;
    let faults = macs.cluster.control().incidents("gpu-fault").await;
    assert_eq!((faults.len(), control::times(&faults)), (1, 1), "{faults:#?}");
    assert!(faults[0].closed_unix_ms > 0, "{faults:#?}");
    macs.end(&job, &input).await;
}
