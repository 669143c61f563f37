//! What an agent tells of its node, as the recovery machine and the planner take it.

use core::net::IpAddr;

use nightshift_proto::v1;

use super::convert::clip;
use crate::{
    fit::NodeMemory,
    model::clipped,
    planner::Interface,
    recovery::{BootFacts, MayRestart, NodeFacts, Versions},
};

/// The longest name of a boot or of versions: a UUID has 36 letters, two versions and a build have no more.
const NAME_BYTES: usize = 100;

pub(crate) fn node_facts(hello: &v1::Hello) -> NodeFacts {
    NodeFacts {
        boot_id: hello.observation.as_ref().map(|seen| clip_name(&seen.boot_id)).unwrap_or_default(),
        agent_instance_id: hello.agent_instance_id.clone(),
        runtime_problem: runtime_problem(hello.runtime.as_ref()),
        memory: memory(
            hello.observation.as_ref(),
            hello.capabilities.as_ref().map_or(0, |capabilities| capabilities.memory_budget_bytes),
        ),
        interfaces: interfaces(hello.observation.as_ref()),
        thunderbolt: super::cables::thunderbolt(hello.observation.as_ref()),
        boot: boot(hello.observation.as_ref()),
        may_restart: may_restart(hello.observation.as_ref()),
        platform: platform(hello),
        versions: versions(hello),
        tests_links: hello.capabilities.as_ref().is_some_and(|capabilities| capabilities.tests_links),
    }
}

fn versions(hello: &v1::Hello) -> Versions {
    // A program of one's own in place of the worker has no versions to tell.
    let is_known = |runtime: &&v1::RuntimeStatus| runtime.ready && !runtime.mlx_version.is_empty();
    let runtime = hello.runtime.as_ref().filter(is_known);
    let of_mac =
        hello.observation.as_ref().filter(|seen| seen.os_name == "macos" && !seen.os_build.is_empty());
    Versions {
        runtime: runtime.map_or_else(String::new, |runtime| {
            clip_name(&format!("MLX {}, mlx-lm {}", runtime.mlx_version, runtime.mlx_lm_version))
        }),
        os: of_mac.map_or_else(String::new, |seen| clip_name(&format!("macOS {}", seen.os_build))),
    }
}

/// What results depend on besides the model: the runtime, and the machine with its operating system.
fn platform(hello: &v1::Hello) -> String {
    let (Some(runtime), Some(seen)) = (&hello.runtime, &hello.observation) else { return String::new() };
    if !runtime.ready {
        return String::new();
    }
    let parts =
        [&runtime.mlx_version, &runtime.mlx_lm_version, &seen.arch, &seen.hardware_model, &seen.os_build];
    clip(&parts.map(String::as_str).join(" "))
}

pub(crate) fn runtime_problem(runtime: Option<&v1::RuntimeStatus>) -> Option<String> {
    match runtime {
        Some(runtime) if runtime.ready => None,
        Some(runtime) if !runtime.problem.is_empty() => Some(clip(&runtime.problem)),
        _ => Some("its Python runtime is not ready".to_owned()),
    }
}

/// Of a boot or a version, which stand in records many times over.
fn clip_name(text: &str) -> String {
    clipped(text, NAME_BYTES).to_owned()
}

/// What an observation says about memory. What is wired now may be a model of ours, so it is not held against the node
/// here; the baseline of a boot is.
pub(crate) fn memory(seen: Option<&v1::Observation>, configured_bytes: u64) -> NodeMemory {
    let memory = seen.and_then(|seen| seen.memory);
    NodeMemory {
        total_bytes: memory.and_then(|memory| memory.total_bytes),
        gpu_working_set_bytes: memory.and_then(|memory| memory.gpu_working_set_bytes),
        wired_limit_bytes: None,
        has_metal: seen.is_some_and(|seen| seen.os_name == "macos"),
        configured_bytes: (configured_bytes > 0).then_some(configured_bytes),
        wired_bytes: 0,
    }
}

/// What an observation says about its boot.
pub(crate) fn boot(seen: Option<&v1::Observation>) -> BootFacts {
    // An agent that does not tell of kills is not waited for to do so.
    let silent = v1::MemoryDebt { kills_while_loaded: u32::MAX, ..v1::MemoryDebt::default() };
    let debt = seen.and_then(|seen| seen.memory_debt).unwrap_or(silent);
    let starts = seen.and_then(|seen| seen.rdma_starts).unwrap_or_default();
    BootFacts {
        stranded_bytes: debt.stranded_bytes,
        kills_while_loaded: debt.kills_while_loaded,
        rdma_starts: starts.used,
        most_rdma_starts: starts.most,
        gpu_restarts: seen.and_then(|seen| seen.gpu.as_ref()).and_then(|gpu| gpu.recovery_count),
    }
}

/// Whether its agent would restart the machine.
pub(crate) fn may_restart(seen: Option<&v1::Observation>) -> MayRestart {
    match seen.and_then(|seen| seen.restarts.as_ref()) {
        None => MayRestart::Unknown,
        Some(restarts) if !restarts.allowed => MayRestart::No,
        Some(restarts) if restarts.problem.is_empty() => MayRestart::Yes,
        Some(restarts) => MayRestart::Refuses(clip(&restarts.problem)),
    }
}

/// What an observation says about interfaces.
pub(crate) fn interfaces(seen: Option<&v1::Observation>) -> Vec<Interface> {
    let interfaces = seen.map_or(&[][..], |seen| seen.interfaces.as_slice());
    interfaces
        .iter()
        .map(|interface| Interface {
            name: interface.name.clone(),
            usable: interface.up && interface.carrier != Some(false),
            loopback: interface.loopback,
            addresses: interface.addresses.iter().filter(|text| is_plain(text)).cloned().collect(),
        })
        .collect()
}

/// Link-local addresses mean nothing without their interface, so ranks cannot be told them.
fn is_plain(address: &str) -> bool {
    let address = address.split('/').next().and_then(|text| text.parse::<IpAddr>().ok());
    match address {
        Some(IpAddr::V6(address)) => !address.is_unicast_link_local(),
        Some(IpAddr::V4(_)) => true,
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_agent_that_says_so_would_restart_its_machine() {
        let said = |allowed, problem: &str| {
            let restarts = Some(v1::Restarts { allowed, problem: problem.to_owned() });
            may_restart(Some(&v1::Observation { restarts, ..v1::Observation::default() }))
        };
        assert_eq!(may_restart(None), MayRestart::Unknown);
        assert_eq!(may_restart(Some(&v1::Observation::default())), MayRestart::Unknown);
        assert_eq!(said(false, "FileVault is on"), MayRestart::No);
        assert_eq!(said(true, "FileVault is on"), MayRestart::Refuses("FileVault is on".to_owned()));
        assert_eq!(said(true, ""), MayRestart::Yes);
    }

    #[test]
    fn a_platform_is_known_where_the_runtime_is_ready() {
        let mut hello = v1::Hello {
            runtime: Some(v1::RuntimeStatus {
                ready: true,
                mlx_version: "0.32.4".to_owned(),
                mlx_lm_version: "0.32.2".to_owned(),
                ..v1::RuntimeStatus::default()
            }),
            observation: Some(v1::Observation {
                arch: "arm64".to_owned(),
                hardware_model: "Mac17,6".to_owned(),
                os_build: "25D125".to_owned(),
                ..v1::Observation::default()
            }),
            ..v1::Hello::default()
        };
        assert_eq!(node_facts(&hello).platform, "0.32.4 0.32.2 arm64 Mac17,6 25D125");
        hello.runtime = None;
        assert_eq!(node_facts(&hello).platform, "");
    }

    #[test]
    fn what_a_node_says_of_itself_becomes_what_a_plan_needs() {
        let interface = |name: &str, up, carrier| v1::NetworkInterface {
            name: name.to_owned(),
            up,
            carrier,
            addresses: vec!["10.0.0.1/30".to_owned(), "fe80::1/64".to_owned(), "nonsense".to_owned()],
            ..v1::NetworkInterface::default()
        };
        let seen = v1::Observation {
            boot_id: "boot".to_owned(),
            memory: Some(v1::Memory { total_bytes: Some(64 << 30), ..v1::Memory::default() }),
            interfaces: vec![
                interface("en0", true, None),
                interface("en1", true, Some(false)),
                interface("en2", false, Some(true)),
            ],
            ..v1::Observation::default()
        };
        let found = interfaces(Some(&seen));
        let usable: Vec<bool> = found.iter().map(|interface| interface.usable).collect();
        assert_eq!(usable, [true, false, false]);
        assert_eq!(found[0].addresses, ["10.0.0.1/30"]);
        assert_eq!(memory(Some(&seen), 5).budget().unwrap().bytes, 5);
        assert_eq!(memory(Some(&seen), 0).budget().unwrap().limit_bytes, 48 << 30);
        assert_eq!(memory(None, 0).budget(), None);
    }
}
