//! Macs that are scripts, from their tools to a person's screen: real agents, controller and `clusterctl`.

use nightshift_tests::{
    cluster::Cluster,
    dirs::TestDir,
    mac::{Mac, plug},
    suite::{Case, case},
    wait,
};
use serde_json::Value;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("macs::what_happens_to_a_cable_is_told_with_what_to_do", &[], cable),
        case("macs::a_port_that_the_bridge_took_is_prepared_as_the_policy_says", &[], preparation),
        case("macs::a_port_that_a_person_has_reset_is_left_alone", &[], reset_by_hand),
        case("macs::a_machine_that_is_not_set_up_for_the_night_is_told", &[], machine),
    ]
}

/// Two Macs with a cable, each with an agent that has no Python runtime: nothing here runs a model.
pub(crate) struct Macs {
    pub(crate) cluster: Cluster,
    pub(crate) macs: [Mac; 2],
    pub(crate) dir: TestDir,
}

pub(crate) const NAMES: [&str; 2] = ["m1", "m2"];

impl Macs {
    async fn start(name: &str) -> Self {
        Self::start_with(name, "").await
    }

    pub(crate) async fn start_with(name: &str, config: &str) -> Self {
        let dir = TestDir::new(name);
        let mut macs = NAMES.map(|name| Mac::new(dir.sub(name), name));
        let [a, b] = &mut macs;
        plug(a, b);
        let cluster = Cluster::builder(name).config(config).allow(&["WARN *"]).start().await;
        let mut macs = Self { cluster, macs, dir };
        macs.apply();
        for index in 0..NAMES.len() {
            macs.start_agent(index);
        }
        macs
    }

    pub(crate) fn start_agent(&mut self, index: usize) {
        self.start_agent_with_policy(index, "suggest");
    }

    fn start_agent_with_policy(&mut self, index: usize, policy: &str) {
        let mut command = self.cluster.agent_command(NAMES[index], &self.dir.sub("no-runtime"));
        command.args(["--link-policy", policy, "--scripted-mac"]).arg(self.macs[index].dir());
        self.cluster.start_agent_with(NAMES[index], command);
    }

    /// `cluster-agent link` beside the agent of that Mac.
    async fn link(&self, index: usize, what: &str) -> nightshift_tests::process::Outcome {
        let mut command = self.cluster.command("cluster-agent");
        command.args(["link", what, "--scripted-mac"]).arg(self.macs[index].dir());
        command.arg("--state-dir").arg(self.cluster.path().join("agents").join(NAMES[index]));
        nightshift_tests::process::run(command).await
    }

    fn apply(&self) {
        self.macs.iter().for_each(Mac::apply);
    }

    pub(crate) fn change(&mut self, change: impl FnOnce(&mut [Mac; 2])) {
        change(&mut self.macs);
        self.apply();
    }

    async fn doctor(&self) -> Value {
        self.cluster.ctl(&["doctor", "--output", "json"]).await.json()
    }

    /// The cable, when it is said to be so.
    pub(crate) async fn cable_is(&self, class: &str, sentences: &[&str]) {
        wait::eventually(&format!("the cable to be {class} {sentences:?}"), wait::SOON, async || {
            let seen = self.doctor().await;
            let cables = seen["cables"].as_array().cloned().unwrap_or_default();
            let [cable] = cables.as_slice() else { return Err(format!("{cables:?}")) };
            let flaws = cable["flaws"].as_array().cloned().unwrap_or_default();
            let told: Vec<&str> = flaws.iter().filter_map(|flaw| flaw["sentence"].as_str()).collect();
            if cable["class"] == class && told == sentences { Ok(()) } else { Err(cable.to_string()) }
        })
        .await;
    }

    pub(crate) async fn there_is_no_cable(&self) {
        wait::eventually("no cable", wait::SOON, async || {
            let seen = self.doctor().await["cables"].clone();
            if seen == serde_json::json!([]) { Ok(()) } else { Err(seen.to_string()) }
        })
        .await;
    }

    /// The nodes of which a check is told, however it came out.
    pub(crate) async fn told_of(&self, id: &str) -> Vec<String> {
        let seen = self.doctor().await;
        let nodes = seen["nodes"].as_array().cloned().unwrap_or_default();
        let has_it = |node: &&Value| {
            node["checks"].as_array().is_some_and(|checks| checks.iter().any(|check| check["id"] == id))
        };
        nodes.iter().filter(has_it).filter_map(|node| node["id"].as_str()).map(str::to_owned).collect()
    }

    /// How many nodes are warned of something.
    async fn warned_of(&self, id: &str) -> usize {
        let seen = self.doctor().await;
        let nodes = seen["nodes"].as_array().cloned().unwrap_or_default();
        let checks = nodes.iter().filter_map(|node| node["checks"].as_array()).flatten();
        checks.filter(|check| check["id"] == id && check["level"] == "warn").count()
    }

    /// What a node's check says, when it is of that level.
    pub(crate) async fn check_is(&self, node: &str, id: &str, level: &str) -> String {
        self.check(node, id, level, |found, _| found == level).await
    }

    /// The same, when it says that.
    pub(crate) async fn check_says(&self, node: &str, id: &str, part: &str) -> String {
        self.check(node, id, part, |_, seen| seen.contains(part)).await
    }

    async fn check(&self, node: &str, id: &str, what: &str, is_it: impl Fn(&str, &str) -> bool) -> String {
        wait::eventually(&format!("{id} of {node} to be {what}"), wait::SOON, async || {
            let seen = self.doctor().await;
            let nodes = seen["nodes"].as_array().cloned().unwrap_or_default();
            let node = nodes.iter().find(|seen| seen["id"] == node).cloned().unwrap_or_default();
            let checks = node["checks"].as_array().cloned().unwrap_or_default();
            let check = checks.iter().find(|check| check["id"] == id).cloned().unwrap_or_default();
            let seen = check["seen"].as_str().unwrap_or_default().to_owned();
            let level = check["level"].as_str().unwrap_or_default();
            if is_it(level, &seen) { Ok(seen) } else { Err(node.to_string()) }
        })
        .await
    }
}

async fn cable() {
    let mut macs = Macs::start("mac-cable").await;
    macs.cable_is("rdma", &[]).await;

    // After a reboot the bridge takes the port: with it goes the address.
    macs.change(|[_, b]| b.ports[0].bridged = true);
    macs.cable_is("down", &["bridge0 of m2 has taken en3, and carries nothing itself"]).await;
    let mut command = macs.cluster.command("cluster-agent");
    command.args(["link", "plan", "--scripted-mac"]).arg(macs.macs[1].dir());
    let planned = nightshift_tests::process::run(command).await;
    // Which addresses follows from the two buses.
    let expected = "sudo ifconfig bridge0 deletem en3\nsudo ifconfig en3 inet 10.207.ADDRESS/30 alias\n";
    let address =
        planned.stdout.split("10.207.").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or_default();
    assert_eq!(planned.stdout, expected.replace("ADDRESS", address), "{}", planned.stderr);
    macs.change(|[_, b]| b.ports[0].bridged = false);
    macs.cable_is("rdma", &[]).await;

    // Somebody turns RDMA off at one end: the port of the other one goes down.
    macs.change(|[a, b]| {
        a.rdma = false;
        b.ports[0].plugged.as_mut().expect("it is plugged in").rdma = false;
    });
    macs.cable_is("tcp", &["RDMA is off on m1"]).await;
    macs.change(|[a, b]| {
        a.rdma = true;
        b.ports[0].plugged.as_mut().expect("it is plugged in").rdma = true;
    });
    macs.cable_is("rdma", &[]).await;

    // The cable comes out, and in again; its address takes a while.
    let before = macs.macs.clone();
    macs.change(|macs| {
        for mac in macs {
            mac.ports[0].plugged = None;
            mac.ports[0].address = None;
        }
    });
    macs.there_is_no_cable().await;
    macs.change(|macs| {
        *macs = before.clone();
        macs[0].ports[0].address = None;
    });
    macs.cable_is("down", &["en3 of m1 has no IPv4 address of its own yet"]).await;
    macs.change(|macs| *macs = before.clone());
    macs.cable_is("rdma", &[]).await;

    // `ibv_devinfo` hangs, which says something by itself.
    macs.change(|[a, _]| a.devinfo_hangs = true);
    macs.cable_is("tcp", &["not all is known of the RDMA of m1"]).await;
    let hangs = macs.check_is("m1", "tool-hangs", "fail").await;
    assert!(hangs.starts_with("ibv_devinfo does not answer"), "{hangs}");
    macs.change(|[a, _]| a.devinfo_hangs = false);
    macs.cable_is("rdma", &[]).await;

    // A Mac of before Thunderbolt 5 may say that RDMA is on, and has no devices for ever.
    macs.change(|[a, b]| {
        a.thunderbolt_5 = false;
        plug(a, b);
        a.ports[0].plugged.as_mut().expect("it is plugged in").gigabits_per_s = 40;
    });
    macs.cable_is(
        "tcp",
        &[
            "m1 has no rdma_en3 though RDMA is on",
            "the link runs at 40 Gb/s: the cable or one of the two Macs can do no more",
        ],
    )
    .await;
    macs.cluster.finish().await;
}

async fn preparation() {
    let mut macs = Macs::start("mac-preparation").await;
    macs.cable_is("rdma", &[]).await;

    // What lacks is told with the commands, and nothing is done.
    macs.change(|[_, b]| {
        b.ports[0].bridged = true;
        b.ports[0].address = None;
    });
    let told = macs.check_says("m2", "link-preparation", "would be prepared by").await;
    assert!(told.contains("sudo ifconfig bridge0 deletem en3; sudo ifconfig en3 inet 10.207."), "{told}");
    assert_eq!(macs.macs[1].changes(), "");

    // The next agent of this Mac may do it, and does it without a controller: it was told before which ports are the cluster's.
    macs.cluster.kill_agent("m2").await;
    macs.cluster.stop_controller().await;
    macs.start_agent_with_policy(1, "apply");
    let commands = wait::eventually("the port to be prepared", wait::SOON, async || {
        let changes = macs.macs[1].changes();
        if changes.contains("inet") { Ok(changes) } else { Err(changes) }
    })
    .await;
    assert!(commands.starts_with("ifconfig bridge0 deletem en3\n"), "{commands}");
    macs.cluster.start_controller().await;
    // This Mac does not do what it is told.
    macs.check_says("m2", "link-preparation", "the system does not do what it was told").await;
    let address =
        commands.split("inet ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default().to_owned();
    macs.change(|[_, b]| {
        b.ports[0].bridged = false;
        b.ports[0].address = Some(address);
    });
    macs.check_says("m2", "link-preparation", "the port to another node is prepared").await;
    macs.cluster.finish().await;
}

/// While the agent runs with leave to prepare ports.
async fn reset_by_hand() {
    let mut macs = Macs::start("mac-reset").await;
    macs.cable_is("rdma", &[]).await;
    macs.cluster.kill_agent("m2").await;
    let bridged = |macs: &mut [Mac; 2]| {
        macs[1].ports[0].bridged = true;
        macs[1].ports[0].address = None;
    };
    macs.change(bridged);
    macs.start_agent_with_policy(1, "apply");
    wait::eventually("the port to be prepared", wait::SOON, async || {
        let changes = macs.macs[1].changes();
        if changes.contains("alias") { Ok(()) } else { Err(changes) }
    })
    .await;
    let address = macs.macs[1]
        .changes()
        .split("inet ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .map(str::to_owned);
    macs.change(|[_, b]| {
        b.ports[0].bridged = false;
        b.ports[0].address = address;
    });
    macs.check_says("m2", "link-preparation", "the port to another node is prepared").await;

    // These tools note what they are told, and the test does it: a way back that is not gone is told, and the next try finds it gone.
    let reset = macs.link(1, "reset").await;
    assert!(reset.stdout.starts_with("# en3 is left alone from now on"), "{reset:?}");
    assert!(reset.stderr.contains("the system does not do what it was told"), "{reset:?}");
    macs.change(bridged);
    let reset = macs.link(1, "reset").await;
    assert_eq!(reset.code, Some(0), "{reset:?}");
    let changes = macs.macs[1].changes();
    assert!(changes.ends_with("-alias\nifconfig bridge0 addm en3\n"), "{changes}");
    let held = "en3 was reset by hand, and is not prepared until somebody does that by hand, too";
    macs.check_says("m2", "link-held", held).await;
    macs.cluster.kill_agent("m2").await;
    // A new controller knows what the new agent says, and nothing of what the last one said.
    macs.cluster.stop_controller().await;
    macs.cluster.start_controller().await;
    macs.start_agent_with_policy(1, "apply");
    macs.check_says("m2", "link-held", held).await;
    assert_eq!(macs.macs[1].changes(), changes, "neither that agent nor the next has changed anything");

    let applied = macs.link(1, "apply").await;
    let released = "# en3 was left alone since it was reset by hand, and is not any more\n";
    assert!(applied.stdout.starts_with(released), "{applied:?}");
    let by_hand = macs.macs[1].changes();
    wait::eventually("the agent to prepare it again", wait::SOON, async || {
        if macs.macs[1].changes().len() > by_hand.len() {
            Ok(())
        } else {
            Err(macs.doctor().await.to_string())
        }
    })
    .await;
    macs.cluster.finish().await;
}

async fn machine() {
    let mut macs = Macs::start("mac-machine").await;
    let sleeps = macs.check_is("m1", "sleep", "ok").await;
    assert_eq!(sleeps, "it never goes to sleep");
    macs.change(|[a, _]| {
        a.gpu_restarts = 2;
        a.sleep_min = 10;
    });
    let told = macs.check_is("m1", "gpu", "warn").await;
    assert!(told.starts_with("the GPU was restarted 2 times since boot"), "{told}");
    let event = macs.cluster.control().wait_event("gpu-restarted").await;
    assert!(event.message.ends_with("rose from 0 to 2"), "{event:?}");
    // The log tells at once whom it hit, and a report after a while why it was.
    macs.macs[0].log("python3.13", 7_431, "Discarded (victim of GPU error/recovery) (InnocentVictim)");
    macs.macs[0].report_gpu("I-1", "python3.13", "firmware-detected lockup");
    let whole = ", while python3.13 (pid 7431) used it (firmware-detected lockup)";
    let told = macs.check_says("m1", "gpu", whole).await;
    assert_eq!(told.matches("the last time on").count(), 1, "{told}");

    // An update of one of them, which reboots it. What changes rarely is looked at anew then, too.
    macs.cluster.kill_agent("m1").await;
    macs.change(|[a, _]| {
        a.os_build = "25D201".to_owned();
        a.boot = "M1-BOOT-2".to_owned();
        a.gpu_restarts = 0;
        a.forget_log();
    });
    macs.start_agent(0);
    assert_eq!(macs.check_is("m1", "sleep", "fail").await, "it goes to sleep after 10 minutes");
    macs.cable_is("rdma", &[]).await;
    let screen = macs.cluster.ctl(&["doctor"]).await;
    assert_eq!(screen.code, Some(1));
    let runtime = "The Python runtime is not installed";
    let screen: Vec<&str> = screen.stdout.lines().filter(|line| !line.contains(runtime)).collect();
    // Workers of these agents would run as whoever runs the test, and there is as much room as there is on its disk.
    let as_root = if nix::unistd::geteuid().is_root() { NAMES.len() } else { 0 };
    let short_of_room = macs.warned_of("disk").await;
    let warned = match 1 + as_root + short_of_room {
        1 => "1 thing".to_owned(),
        more => format!("{more} things"),
    };
    let expected = format!(
        "3 things will fail a night or may end it, and {warned} may make it worse.\n\nm1 (Mac16,9, macos 25D201)"
    );
    assert!(screen.join("\n").starts_with(&expected), "{screen:#?}");
    let told = screen.join("\n");
    for line in [
        "  FAIL  It goes to sleep after 10 minutes.\n        → Run `sudo pmset -a sleep 0`.",
        "  ok    m1 (port 1) and m2 (port 1): ready for RDMA",
        "  warn  The builds of macOS differ: 25D201 on m1; 25D125 on m2.\n        → Bring all nodes to the same build before a gang runs on them.",
    ] {
        assert!(told.contains(line), "{line}\nis not in\n{told}");
    }
    macs.cluster.finish().await;
}
