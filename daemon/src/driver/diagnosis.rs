//! What a person should know and do before a night. Each agent judges its own machine; here is what joins several: cables, versions,
//! clocks, models. Reads, never changes.

use std::collections::BTreeMap;

use nightshift_proto::v1;

use super::{Display, Driver, Refusal};
use crate::{
    model::{Cable, JobId, JobState, NodeId, Stranger, Thunderbolt, said_once},
    planner::{Interface, NodePorts, cables, strangers},
    recovery::{MayRestart, RefusedRequest, Ruling},
    rpc::{cables as rpc_cables, nodes},
};

/// Clocks further apart than this make the times of a night's events hard to read; NTP keeps them within some milliseconds.
const CLOCKS_APART_MS: u64 = 2_000;

/// Checks taken from one agent; it has some twenty.
const MOST_CHECKS: usize = 64;

impl Driver {
    pub(super) fn diagnose(&self, only: Option<NodeId>) -> Result<v1::Diagnosis, Refusal> {
        if let Some(node) = only.as_ref().filter(|node| self.machine.node(node).is_none()) {
            return Err(RefusedRequest::NoSuchNode(node.clone()).into());
        }
        let now = self.now();
        let none = Display::default();
        let nodes: Vec<Seen<'_>> = self
            .machine
            .nodes()
            .map(|node| {
                let display = self.displays.get(&node.id).unwrap_or(&none);
                Seen {
                    node: &node.id,
                    silent: node.session.is_none().then(|| node.unusable(now)).flatten(),
                    observation: display.observation.as_ref(),
                    runtime: display.runtime.as_ref(),
                    agent_version: &display.agent_version,
                    clock_ahead_ms: display.clock_ahead_ms,
                    thunderbolt: rpc_cables::thunderbolt(display.observation.as_ref()),
                    interfaces: &node.facts.interfaces,
                    may_restart: self.machine.policy().reboots.then_some(&node.facts.may_restart),
                }
            })
            .collect();
        let open = self.machine.jobs().filter(|job| job.record.state == JobState::Active);
        let rulings = open.flat_map(|job| {
            let rulings = self.machine.explain_job(now, job.record.id).unwrap_or_default();
            // A job without a node may wait for its window, its turn or a node that is off: that is for `explain`.
            let of_model = rulings.into_iter().filter(|ruling| match ruling.rule {
                "model" => true,
                "plan" => ruling.holds,
                _ => false,
            });
            of_model.map(|ruling| (job.record.id, ruling))
        });
        let models: Vec<(JobId, Ruling)> = rulings.collect();
        Ok(diagnosis(&nodes, &models, only.as_ref()))
    }
}

/// What is known of a node.
struct Seen<'a> {
    node: &'a NodeId,
    /// Why it is not connected, where it is not.
    silent: Option<String>,
    observation: Option<&'a v1::Observation>,
    runtime: Option<&'a v1::RuntimeStatus>,
    agent_version: &'a str,
    clock_ahead_ms: Option<i64>,
    thunderbolt: Thunderbolt,
    interfaces: &'a [Interface],
    /// Whether its agent would restart the machine, where machines are restarted at all.
    may_restart: Option<&'a MayRestart>,
}

fn diagnosis(nodes: &[Seen<'_>], models: &[(JobId, Ruling)], only: Option<&NodeId>) -> v1::Diagnosis {
    let is_connected = |node: &NodeId| nodes.iter().any(|seen| seen.node == node && seen.silent.is_none());
    let all: Vec<NodePorts<'_>> = nodes
        .iter()
        .map(|Seen { node, thunderbolt, interfaces, .. }| NodePorts { node, thunderbolt, interfaces })
        .collect();
    // What a silent node said of its cables is from before; that it is no stranger still holds.
    let connected: Vec<NodePorts<'_>> = all.iter().filter(|of| is_connected(of.node)).copied().collect();
    let concerns = |node: &NodeId| only.is_none_or(|only| only == node);
    let seen_cables = cables(&connected);
    let uncabled = seen_cables.is_empty().then(|| without_cables(&connected)).flatten();
    let cables = seen_cables.into_iter().filter(|cable| concerns(&cable.a.node) || concerns(&cable.b.node));
    let is_told = |stranger: &Stranger| is_connected(&stranger.at.node) && concerns(&stranger.at.node);
    let strangers: Vec<Stranger> = strangers(&all).into_iter().filter(is_told).collect();
    let mut cluster = parity(nodes);
    // A cable to a stranger is one that is seen.
    cluster.extend(uncabled.filter(|_| strangers.is_empty()));
    cluster.extend(strangers.iter().map(of_stranger));
    cluster.extend(models.iter().map(of_model));
    v1::Diagnosis {
        nodes: nodes.iter().filter(|seen| concerns(seen.node)).map(of_node).collect(),
        cables: cables.map(|cable: Cable| rpc_cables::cable(&cable)).collect(),
        cluster,
    }
}

fn check(
    id: &str,
    level: v1::CheckLevel,
    seen: impl Into<String>,
    next_step: impl Into<String>,
) -> v1::Check {
    v1::Check { id: id.to_owned(), level: level.into(), seen: seen.into(), next_step: next_step.into() }
}

fn of_node(seen: &Seen<'_>) -> v1::NodeDiagnosis {
    let observed = seen.observation;
    let text = |of: fn(&v1::Observation) -> &str| observed.map(of).unwrap_or_default();
    let system = [text(|seen| &seen.os_name), text(|seen| &seen.os_build)].join(" ").trim().to_owned();
    let mut checks = vec![match &seen.silent {
        None => check("connection", v1::CheckLevel::Ok, "it is connected", ""),
        Some(why) => check(
            "connection",
            v1::CheckLevel::Fail,
            format!("it is not connected: {why}; all below is from before"),
            format!("see that {} is on and `cluster-agent` runs there", seen.node),
        ),
    }];
    checks.push(match nodes::runtime_problem(seen.runtime) {
        None => check("runtime", v1::CheckLevel::Ok, "the Python runtime is ready", ""),
        Some(problem) => {
            // The agent's words end with what to do, for whoever reads only them.
            let seen = problem.strip_suffix("; run `cluster-agent runtime install`").unwrap_or(&problem);
            check("runtime", v1::CheckLevel::Fail, seen, "run `cluster-agent runtime install` there")
        }
    });
    if let Some(ahead_ms) = seen.clock_ahead_ms.filter(|ms| ms.unsigned_abs() > CLOCKS_APART_MS) {
        let way = if ahead_ms > 0 { "ahead of" } else { "behind" };
        checks.push(check(
            "clock",
            v1::CheckLevel::Warn,
            format!("its clock is {:.1} s {way} the controller's", ahead_ms.unsigned_abs() as f64 / 1e3),
            "set both by the network (on a Mac: `sudo sntp -sS time.apple.com`)",
        ));
    }
    checks.extend(observed.iter().flat_map(|seen| &seen.checks).take(MOST_CHECKS).cloned());
    checks.extend(seen.may_restart.and_then(of_restarts));
    v1::NodeDiagnosis {
        node_id: seen.node.to_string(),
        hardware_model: text(|seen| &seen.hardware_model).to_owned(),
        system,
        checks,
    }
}

/// Nothing of an agent that has not said, or cannot.
fn of_restarts(may_restart: &MayRestart) -> Option<v1::Check> {
    let of = |level, seen: &str, next_step| check("restarts", level, seen, next_step);
    Some(match may_restart {
        MayRestart::Unknown => return None,
        MayRestart::Yes => of(v1::CheckLevel::Ok, "it is restarted by itself when nothing else helps", ""),
        MayRestart::No => {
            of(v1::CheckLevel::Ok, "it is never restarted by itself: its agent is not allowed to", "")
        }
        MayRestart::Refuses(problem) => of(
            v1::CheckLevel::Warn,
            &format!("it may be restarted by itself, and would not be: {problem}"),
            "mend that, or know that this node stays out for the night when it needs a restart",
        ),
    })
}

/// Whether all nodes have the same of what a gang needs the same of.
fn parity(nodes: &[Seen<'_>]) -> Vec<v1::Check> {
    type Of = for<'a> fn(&Seen<'a>) -> Option<&'a str>;
    let rows: [(&str, &str, Of, &str); 4] = [
        (
            "os-parity",
            "builds of macOS",
            // A kernel of Linux is no matter to a gang.
            |seen| seen.observation.filter(|seen| seen.os_name == "macos").map(|seen| seen.os_build.as_str()),
            "bring all nodes to the same build before a gang runs on them",
        ),
        (
            "mlx-parity",
            "versions of MLX",
            |seen| seen.runtime.map(|runtime| runtime.mlx_version.as_str()),
            "run `cluster-agent runtime install` on each node with the same Nightshift",
        ),
        (
            "mlx-lm-parity",
            "versions of mlx-lm",
            |seen| seen.runtime.map(|runtime| runtime.mlx_lm_version.as_str()),
            "run `cluster-agent runtime install` on each node with the same Nightshift",
        ),
        (
            "agent-parity",
            "versions of cluster-agent",
            |seen| Some(seen.agent_version),
            "install the same Nightshift on each node",
        ),
    ];
    let connected: Vec<&Seen<'_>> = nodes.iter().filter(|seen| seen.silent.is_none()).collect();
    if connected.len() < 2 {
        return Vec::new();
    }
    let rows = rows.into_iter().filter_map(|(id, what, of, next_step)| {
        let said: BTreeMap<&NodeId, &str> = connected
            .iter()
            .filter_map(|seen| Some((seen.node, of(seen)?)))
            .filter(|(_, it)| !it.is_empty())
            .collect();
        let grouped = said_once(said.iter().map(|(node, it)| (*node, *it)));
        match grouped.as_slice() {
            [] => None,
            [(_, one)] => {
                Some(check(id, v1::CheckLevel::Ok, format!("all nodes have the same {what}: {one}"), ""))
            }
            several => {
                let told: Vec<String> =
                    several.iter().map(|(nodes, it)| format!("{it} on {nodes}")).collect();
                let seen = format!("the {what} differ: {}", told.join("; "));
                Some(check(id, v1::CheckLevel::Warn, seen, next_step))
            }
        }
    });
    rows.collect()
}

/// Nobody tells of a cable, neither that it is there nor what is wrong with it: it may be out, or never was in.
fn without_cables(connected: &[NodePorts<'_>]) -> Option<v1::Check> {
    let with_ports = connected.iter().filter(|of| !of.thunderbolt.ports.is_empty()).count();
    (with_ports > 1).then(|| {
        check(
            "no-cable",
            v1::CheckLevel::Warn,
            "no Thunderbolt cable between nodes is seen, so that a model runs whole on each node, or over a network that is allowed \
             for it",
            "if there is to be one, look at both plugs of it, and that it goes from Mac to Mac; what a Mac sees is in \
             `cluster-agent probe`",
        )
    })
}

fn of_stranger(stranger: &Stranger) -> v1::Check {
    let model = stranger.hardware_model.as_deref().unwrap_or("a Mac");
    check(
        "stranger",
        v1::CheckLevel::Warn,
        format!("on the cable of {} is {model}, which is no node of this cluster", stranger.at),
        "install and start `cluster-agent` there, if it is to work with the others",
    )
}

fn of_model((job, ruling): &(JobId, Ruling)) -> v1::Check {
    let seen = format!("{job}: {}", ruling.sentence);
    if ruling.holds {
        return check(ruling.rule, v1::CheckLevel::Ok, seen, "");
    }
    check(
        ruling.rule,
        v1::CheckLevel::Fail,
        seen,
        "put the same files at the same place on every node that is to run it",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct Mac {
        node: NodeId,
        silent: Option<String>,
        observation: v1::Observation,
        runtime: v1::RuntimeStatus,
        agent_version: String,
        clock_ahead_ms: Option<i64>,
        interfaces: Vec<Interface>,
        may_restart: Option<MayRestart>,
    }

    /// On one cable with the Mac whose bus is `peer`.
    fn mac(node: &str, own: &str, peer: &str, address: &str) -> Mac {
        let port = v1::ThunderboltPort {
            receptacle: 1,
            interface: "en3".into(),
            domain_uuid: own.into(),
            plugged: Some(true),
            bridged: Some(false),
            rdma_device: "rdma_en3".into(),
            rdma_listed: Some(true),
            rdma_state: v1::RdmaPortState::Active.into(),
            peers: vec![v1::ThunderboltPeer {
                domain_uuid: peer.into(),
                hardware_model: "Mac17,6".into(),
                rdma: Some(true),
                behind_device: false,
            }],
            ..v1::ThunderboltPort::default()
        };
        let rdma = Some(v1::Rdma { enabled: Some(true), ..v1::Rdma::default() });
        let sleep = check(
            "sleep",
            v1::CheckLevel::Fail,
            "it goes to sleep after 1 minutes",
            "run `sudo pmset -a sleep 0`",
        );
        Mac {
            node: node.into(),
            silent: None,
            observation: v1::Observation {
                os_name: "macos".into(),
                os_build: "25D125".into(),
                hardware_model: "Mac16,9".into(),
                thunderbolt: Some(v1::Thunderbolt { ports: vec![port], rdma }),
                checks: vec![sleep],
                ..v1::Observation::default()
            },
            runtime: v1::RuntimeStatus {
                ready: true,
                mlx_version: "0.32.4".into(),
                mlx_lm_version: "0.32.2".into(),
                ..v1::RuntimeStatus::default()
            },
            agent_version: "0.1.0".to_owned(),
            clock_ahead_ms: Some(3),
            interfaces: vec![Interface {
                name: "en3".to_owned(),
                usable: true,
                loopback: false,
                addresses: vec![address.to_owned()],
            }],
            may_restart: None,
        }
    }

    fn pair() -> Vec<Mac> {
        vec![mac("a", "A1", "B1", "10.99.0.1/30"), mac("b", "B1", "A1", "10.99.0.2/30")]
    }

    fn told(macs: &[Mac], models: &[(JobId, Ruling)], only: Option<&str>) -> v1::Diagnosis {
        let seen: Vec<Seen<'_>> = macs
            .iter()
            .map(|mac| Seen {
                node: &mac.node,
                silent: mac.silent.clone(),
                observation: Some(&mac.observation),
                runtime: Some(&mac.runtime),
                agent_version: &mac.agent_version,
                clock_ahead_ms: mac.clock_ahead_ms,
                thunderbolt: rpc_cables::thunderbolt(Some(&mac.observation)),
                interfaces: &mac.interfaces,
                may_restart: mac.may_restart.as_ref(),
            })
            .collect();
        diagnosis(&seen, models, only.map(NodeId::from).as_ref())
    }

    /// What is not well of the cluster, in words.
    fn of_cluster(macs: &[Mac]) -> Vec<String> {
        let found = told(macs, &[], None).cluster;
        found
            .into_iter()
            .filter(|check| check.level() != v1::CheckLevel::Ok)
            .map(|check| check.seen)
            .collect()
    }

    fn of_a(macs: &[Mac]) -> Vec<(String, v1::CheckLevel, String)> {
        let checks = told(macs, &[], None).nodes.remove(0).checks;
        checks.into_iter().map(|check| (check.id.clone(), check.level(), check.seen)).collect()
    }

    #[test]
    fn a_node_is_told_with_what_its_agent_checked() {
        let diagnosis = told(&pair(), &[], None);
        let node = &diagnosis.nodes[0];
        let head = (node.node_id.as_str(), node.hardware_model.as_str(), node.system.as_str());
        assert_eq!(head, ("a", "Mac16,9", "macos 25D125"));
        let ids: Vec<_> = node.checks.iter().map(|check| check.id.as_str()).collect();
        assert_eq!(ids, ["connection", "runtime", "sleep"]);
        assert_eq!(diagnosis.cables.len(), 1);
        assert_eq!(diagnosis.cables[0].class(), v1::CableClass::Rdma);
        assert_eq!(of_cluster(&pair()), [""; 0]);
    }

    #[test]
    fn what_is_wrong_with_a_node_is_said_first() {
        let mut macs = pair();
        macs[0].silent = Some("no word from it for 60 s".to_owned());
        macs[0].runtime = v1::RuntimeStatus {
            problem: "mlx is missing; run `cluster-agent runtime install`".into(),
            ..v1::RuntimeStatus::default()
        };
        macs[0].clock_ahead_ms = Some(-7_400);
        let found = of_a(&macs);
        let fail = v1::CheckLevel::Fail;
        assert_eq!(found[0].1, fail);
        assert!(found[0].2.contains("no word from it for 60 s"), "{}", found[0].2);
        assert_eq!(found[1], ("runtime".to_owned(), fail, "mlx is missing".to_owned()));
        assert_eq!(found[2].2, "its clock is 7.4 s behind the controller's");
        macs[0].clock_ahead_ms = Some(2_001);
        assert_eq!(of_a(&macs)[2].2, "its clock is 2.0 s ahead of the controller's");
        macs[0].clock_ahead_ms = Some(2_000);
        assert_eq!(of_a(&macs)[2].0, "sleep");
        assert_eq!(told(&macs, &[], None).cables, [], "what it said of its cables is from before");
        assert_eq!(of_cluster(&macs), [""; 0], "and no stranger has come to the other end of its cable");
    }

    #[test]
    fn a_disk_that_would_keep_a_machine_down_is_told_where_machines_are_restarted() {
        let mut macs = pair();
        let of_restarts = |macs: &[Mac]| {
            of_a(macs).into_iter().find(|(id, ..)| id == "restarts").map(|(_, level, seen)| (level, seen))
        };
        assert_eq!(of_restarts(&macs), None, "they are off");
        macs[0].may_restart = Some(MayRestart::Refuses("FileVault is on".to_owned()));
        let seen = "it may be restarted by itself, and would not be: FileVault is on".to_owned();
        assert_eq!(of_restarts(&macs), Some((v1::CheckLevel::Warn, seen)));
        for well in [MayRestart::Yes, MayRestart::No] {
            macs[0].may_restart = Some(well);
            assert_eq!(of_restarts(&macs).unwrap().0, v1::CheckLevel::Ok);
        }
        macs[0].may_restart = Some(MayRestart::Unknown);
        assert_eq!(of_restarts(&macs), None, "it has not said");
    }

    #[test]
    fn whatever_differs_among_nodes_is_told_with_who_has_what() {
        let mut macs = pair();
        macs.push(mac("c", "C1", "C9", "10.99.0.9/30"));
        macs[2].observation.thunderbolt = None;
        macs[1].observation.os_build = "25D126".to_owned();
        macs[2].runtime.mlx_version = "0.31.0".to_owned();
        macs[0].agent_version = "0.0.9".to_owned();
        assert_eq!(
            of_cluster(&macs),
            [
                "the builds of macOS differ: 25D125 on a, c; 25D126 on b",
                "the versions of MLX differ: 0.32.4 on a, b; 0.31.0 on c",
                "the versions of cluster-agent differ: 0.0.9 on a; 0.1.0 on b, c",
            ]
        );
        macs[1].observation.os_name = "linux".to_owned();
        assert_eq!(of_cluster(&macs).len(), 2, "a kernel of Linux is no matter");
        macs[2].silent = Some("gone".to_owned());
        assert_eq!(of_cluster(&macs).len(), 1, "nor is what a silent node had");
        let alone = told(&macs[..1], &[], None).cluster;
        assert!(
            alone.iter().all(|check| !check.id.ends_with("-parity")),
            "one node differs from nobody: {alone:?}"
        );
    }

    #[test]
    fn cables_strangers_and_models_have_their_lines() {
        let mut macs = pair();
        macs[1].observation.thunderbolt.as_mut().unwrap().rdma =
            Some(v1::Rdma { enabled: Some(false), ..v1::Rdma::default() });
        let extra = v1::ThunderboltPort {
            receptacle: 2,
            domain_uuid: "A2".into(),
            peers: vec![v1::ThunderboltPeer {
                domain_uuid: "X".into(),
                hardware_model: "Mac15,3".into(),
                ..Default::default()
            }],
            ..v1::ThunderboltPort::default()
        };
        macs[0].observation.thunderbolt.as_mut().unwrap().ports.push(extra);
        let ruling =
            |holds| Ruling { rule: "model", holds, sentence: "m: b: it does not have it".to_owned() };
        let diagnosis = told(&macs, &[(JobId(1), ruling(true)), (JobId(2), ruling(false))], None);
        let cable = &diagnosis.cables[0];
        assert_eq!(
            (cable.class(), cable.flaws[0].sentence.as_str()),
            (v1::CableClass::Tcp, "RDMA is off on b")
        );
        assert!(cable.flaws[0].next_step.contains("rdma_ctl enable"));
        let lines: Vec<_> = diagnosis
            .cluster
            .iter()
            .map(|check| (check.id.as_str(), check.level(), check.seen.as_str()))
            .collect();
        let (ok, warn, fail) = (v1::CheckLevel::Ok, v1::CheckLevel::Warn, v1::CheckLevel::Fail);
        assert!(
            lines.contains(&(
                "stranger",
                warn,
                "on the cable of a (port 2) is Mac15,3, which is no node of this cluster"
            )),
            "{lines:?}"
        );
        assert!(lines.contains(&("model", ok, "j1: m: b: it does not have it")));
        assert!(lines.contains(&("model", fail, "j2: m: b: it does not have it")));
    }

    #[test]
    fn macs_without_any_cable_are_told_so_once() {
        let mut macs = pair();
        macs.push(mac("c", "C1", "C9", "10.99.0.9/30"));
        let no_cable = |macs: &[Mac], only: Option<&str>| {
            told(macs, &[], only).cluster.iter().filter(|check| check.id == "no-cable").count()
        };
        assert_eq!(no_cable(&macs, None), 0, "two of them have one");
        for mac in &mut macs {
            mac.observation.thunderbolt.as_mut().unwrap().ports[0].peers.clear();
        }
        assert_eq!((no_cable(&macs, None), no_cable(&macs, Some("c"))), (1, 1));
        let stranger = v1::ThunderboltPeer { domain_uuid: "X".into(), ..Default::default() };
        macs[0].observation.thunderbolt.as_mut().unwrap().ports[0].peers.push(stranger);
        assert_eq!(no_cable(&macs, None), 0, "there is one, to somebody else");
        macs[0].observation.thunderbolt.as_mut().unwrap().ports[0].peers.clear();
        macs[1].observation.thunderbolt = None;
        macs[2].silent = Some("gone".to_owned());
        assert_eq!(no_cable(&macs, None), 0, "who has no ports has no use for a cable");
    }

    #[test]
    fn of_one_node_only_what_concerns_it_is_told() {
        let mut macs = pair();
        macs.push(mac("c", "C1", "C9", "10.99.0.9/30"));
        let names = |only: &str| -> Vec<String> {
            told(&macs, &[], Some(only)).nodes.into_iter().map(|node| node.node_id).collect()
        };
        assert_eq!(names("c"), ["c"]);
        assert_eq!(told(&macs, &[], Some("c")).cables, []);
        assert_eq!(told(&macs, &[], Some("b")).cables.len(), 1, "it is the other end's, too");
        let strangers = |only: &str| {
            told(&macs, &[], Some(only)).cluster.iter().filter(|check| check.id == "stranger").count()
        };
        assert_eq!((strangers("c"), strangers("b")), (1, 0));
    }

    #[test]
    fn what_an_agent_says_is_bounded() {
        let mut macs = pair();
        let sleep = macs[0].observation.checks[0].clone();
        macs[0].observation.checks = vec![sleep; 10_000];
        let ports = &mut macs[0].observation.thunderbolt.as_mut().unwrap().ports;
        ports[0].interface = "x".repeat(1 << 20);
        let port = ports[0].clone();
        *ports = vec![port; 40];
        assert_eq!(of_a(&macs).len(), 2 + MOST_CHECKS);
        let thunderbolt = rpc_cables::thunderbolt(Some(&macs[0].observation));
        assert_eq!(thunderbolt.ports.len(), 32);
        assert!(thunderbolt.ports[0].interface.as_ref().unwrap().len() < 10_000);
    }
}
