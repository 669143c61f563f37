//! Macs on a Thunderbolt cable, from what their tools say to the way a job runs: the agents and the tools are those of scripted
//! Macs, the ranks are real, and the cable is a link between network namespaces. There is no RDMA here, so that a gang over it fails
//! as one does on a Mac whose port is wedged.

use std::path::Path;

use nightshift_proto::v1::{Job, JobSpec, Mode};
use nightshift_tests::{
    cluster::{Cluster, ClusterBuilder},
    control::rows_done,
    dirs::TestDir,
    mac::{Mac, plug},
    netns::INTERFACE,
    rows::Input,
    suite::{Case, Need, case},
    wait,
};

use crate::sharded::{self, ONE_AT_A_TIME, spec};

pub(crate) const NEEDS: &[Need] = &[Need::Runtime, Need::Linux, Need::Netns];

pub(crate) const NAMES: [&str; 2] = ["n1", "n2"];

/// Rows enough to go down the ladder, to pay for loading again, and to go on for a while.
const ROWS: usize = 60;

const MAX_TOKENS: u32 = 30;

/// More than the model needs whole.
const AMPLE_MIB: u64 = 1_000;

pub(crate) fn cases() -> Vec<Case> {
    vec![case("cables::down_the_ladder_from_rdma_and_up_again", NEEDS, ladder)]
}

pub(crate) struct Macs {
    pub(crate) dir: TestDir,
    pub(crate) macs: [Mac; 2],
    pub(crate) cluster: Cluster,
}

impl Macs {
    /// Two Macs on one cable, which is ready for RDMA as far as anybody can tell. `gangs` are lines of that section.
    pub(crate) async fn start(
        name: &str,
        gangs: &str,
        more: impl FnOnce(ClusterBuilder) -> ClusterBuilder,
    ) -> Self {
        let dir = TestDir::new(&format!("{name}-macs"));
        let mut macs = NAMES.map(|name| Mac::new(dir.sub(name), name));
        let [a, b] = &mut macs;
        plug(a, b);
        for (mac, last) in macs.iter_mut().zip(1..) {
            INTERFACE.clone_into(&mut mac.ports[0].interface);
            mac.ports[0].address = Some(format!("10.77.0.{last}/24"));
            mac.network = Some(format!("192.168.77.{last}/24"));
            mac.apply();
        }
        let recovery = "[recovery]\nclimb_settle_ms = 1000\nstop_grace_ms = 3000\n";
        let builder = sharded::builder(name, &format!("link_settle_ms = 500\n{gangs}"), recovery)
            .memory_budget_mib(AMPLE_MIB)
            .scripted_macs(dir.path())
            .on_a_net()
            .allow(&["WARN *"]);
        let cluster = more(builder).start().await;
        let macs = Self { dir, macs, cluster };
        macs.add_networks();
        macs
    }

    /// What the scripted Macs say of their network, made so.
    fn add_networks(&self) {
        for (name, mac) in NAMES.iter().zip(&self.macs) {
            let address = mac.network.clone().expect("it has one");
            let mut command = self.cluster.net().command(name, Path::new("ip"));
            let output = command.args(["address", "add", &address, "dev", "lo"]).output();
            assert!(output.expect("ip can be started").status.success(), "{address} on {name}");
        }
    }

    pub(crate) fn change(&mut self, change: impl FnOnce(&mut [Mac; 2])) {
        change(&mut self.macs);
        self.macs.iter().for_each(Mac::apply);
    }

    pub(crate) async fn wait_for(
        &self,
        job: &Job,
        what: &str,
        is_so: impl Fn(&Job) -> bool,
    ) -> (Job, String) {
        let done = rows_done(job);
        let goes_on = |job: &Job| {
            is_so(job) && rows_done(job) > done && job.workers.iter().any(|worker| worker.active_rows > 0)
        };
        let job = self.cluster.control().wait_job(job.job_id, what, wait::LONG, goes_on).await;
        let reasons = job.plan_reasons.join("\n");
        (job, reasons)
    }
}

pub(crate) fn assert_told(reasons: &str, parts: &[&str]) {
    for part in parts {
        assert!(reasons.contains(part), "{part} in\n{reasons}");
    }
}

async fn ladder() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let told = [
        "WARN RDMA over the cable of n1 and n2 did not pass its test*kind=\"link-unproven\"",
        "WARN the cable of n1 and n2 is down*kind=\"link-down\"",
    ];
    let mut macs = Macs::start("cables-ladder", "", |builder| builder.expect(&told)).await;
    let input = Input::chat(ROWS, MAX_TOKENS, 20_261_126);
    let asked = JobSpec { mode: Mode::Pipeline.into(), ..spec("cables") };
    let job = macs.cluster.control().submit(asked, input.jsonl()).await;

    // RDMA comes first, without a word of configuration; there is none, which its test finds out, and the first gang goes over the
    // cable by TCP, which has passed.
    let sharded = |job: &Job| job.mode() == Mode::Pipeline && job.workers.len() == 2;
    let (job, reasons) = macs.wait_for(&job, "a pipeline over the cable", sharded).await;
    let left_alone =
        "not by RDMA over the cable of n1 and n2: it did not pass its test, and is left alone for ";
    assert_told(&reasons, &["ring (TCP over Thunderbolt)", left_alone]);
    let faults = macs.cluster.control().incidents("link-unproven").await;
    assert_eq!(nightshift_tests::control::times(&faults), 1, "{faults:#?}");
    assert!(faults[0].summary.contains("jaccl"), "{faults:#?}");
    assert_eq!(macs.cluster.control().incidents("link-fault").await.len(), 0, "no gang was lost over it");
    let told = macs.cluster.ctl(&["explain", "n1"]).await.stdout;
    assert!(told.contains("(cable): it passed its test"), "{told}");

    // The cable is pulled: the port of each says so, and nothing is left between them.
    let before = macs.macs.clone();
    macs.cluster.net().cut("n2");
    macs.change(|macs| {
        for mac in macs {
            mac.ports[0].plugged = None;
        }
    });
    let alone = |job: &Job| job.mode() == Mode::Independent && job.workers.len() == 2;
    let (job, reasons) = macs.wait_for(&job, "two workers with whole models", alone).await;
    assert_told(&reasons, &["pipeline was asked for, and is not to be had"]);
    let lost = macs.cluster.control().incidents("link-down").await;
    assert_eq!(lost.len(), 1, "{lost:#?}");
    assert!(lost[0].summary.starts_with("the cable of n1 and n2 is down: "), "{lost:#?}");

    // It is plugged in again, and its address takes a while.
    macs.cluster.net().heal("n2");
    macs.change(|macs| {
        *macs = before.clone();
        macs[1].ports[0].address = None;
    });
    wait::eventually("the ladder to say what it waits for", wait::SOON, async || {
        let told = macs.cluster.ctl(&["explain", "j1"]).await.stdout;
        let waits = "over the cable of n1 and n2: link0 of n2 has no IPv4 address of its own yet";
        if told.contains(waits) { Ok(()) } else { Err(told) }
    })
    .await;
    macs.change(|macs| *macs = before.clone());
    let (job, reasons) = macs.wait_for(&job, "a pipeline again", sharded).await;
    assert_told(&reasons, &["changed from independent workers to a pipeline over ring (Thunderbolt)"]);

    let job = macs.cluster.control().wait_completed(job.job_id, wait::LONG).await;
    let answers = macs.cluster.answers(&job, &input);
    assert_eq!(answers.succeeded(), input.len());
    let undisturbed = JobSpec { mode: Mode::Independent.into(), ..spec("undisturbed") };
    let job = macs.cluster.control().submit(undisturbed, input.jsonl()).await;
    let job = macs.cluster.control().wait_completed(job.job_id, wait::LONG).await;
    answers.assert_same_as(&macs.cluster.answers(&job, &input));
    let Macs { cluster, dir, .. } = macs;
    cluster.finish().await;
    drop(dir);
}
