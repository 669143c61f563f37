//! Variables and files by which MLX finds its peers, exactly as in FIELD-NOTES 1. Pure.
//!
//! `JACCL_*` twins would override these, and `MLX_METAL_FAST_SYNCH` can wedge the GPU (FIELD-NOTES 1); neither is ever set,
//! and nothing of the agent's own environment comes through (`worker::process`).

use std::{ffi::OsString, path::Path};

use super::launch::{Fabric, Launch};

/// A variable of a worker's environment.
pub type Variable = (&'static str, OsString);

/// What MLX is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// To be set.
    pub variables: Vec<Variable>,
    /// To be written before the start: name within the launch's directory, and content.
    pub files: Vec<(&'static str, String)>,
}

/// The environment of a rank whose files will lie in `dir`.
#[must_use]
pub fn of(launch: &Launch, dir: &Path) -> Environment {
    let mut variables: Vec<Variable> = vec![("MLX_RANK", launch.init.rank.to_string().into())];
    let file = match &launch.fabric {
        Fabric::Ring(hosts) => {
            variables.push(("MLX_HOSTFILE", dir.join(HOSTS).into()));
            let hosts: Vec<Vec<String>> =
                hosts.iter().map(|addresses| addresses.iter().map(ToString::to_string).collect()).collect();
            (HOSTS, serde_json::json!(hosts).to_string())
        }
        Fabric::Jaccl { devices, coordinator, ring } => {
            variables.push(("MLX_IBV_DEVICES", dir.join(DEVICES).into()));
            variables.push(("MLX_JACCL_COORDINATOR", coordinator.to_string().into()));
            variables.extend(ring.then(|| ("MLX_JACCL_RING", "1".into())));
            (DEVICES, serde_json::json!(devices).to_string())
        }
    };
    Environment { variables, files: vec![file] }
}

const HOSTS: &str = "hosts.json";
const DEVICES: &str = "devices.json";

#[cfg(test)]
mod tests {
    use nightshift_proto::v1::Backend;

    use super::*;
    use crate::gang::{
        launch::{
            prepare,
            tests::{KEY, gang, mac},
        },
        starts::StartBudget,
    };

    fn golden(backend: Backend) -> String {
        let launch = prepare(&gang(backend), KEY, mac(&StartBudget::default())).unwrap();
        let Environment { variables, files } = of(&launch, Path::new("/state/gangs/j7-e4-r1"));
        let mut lines: Vec<String> =
            variables.iter().map(|(name, value)| format!("{name}={}", value.display())).collect();
        lines.extend(files.iter().map(|(name, text)| format!("{name}: {text}")));
        lines.join("\n")
    }

    #[test]
    fn each_backend_as_in_the_table() {
        assert_eq!(
            golden(Backend::Ring),
            "MLX_RANK=1\nMLX_HOSTFILE=/state/gangs/j7-e4-r1/hosts.json\n\
             hosts.json: [[\"10.0.0.1:47003\"],[\"10.0.0.2:47003\"],[\"10.0.0.3:47003\"]]"
        );
        let jaccl = "MLX_RANK=1\nMLX_IBV_DEVICES=/state/gangs/j7-e4-r1/devices.json\n\
             MLX_JACCL_COORDINATOR=192.168.1.10:47002\n";
        let matrix = "devices.json: [[null,\"rdma_en5\",\"rdma_en6\"],[\"rdma_en5\",null,\"rdma_en6\"],[\"rdma_en5\",\"rdma_en6\",null]]";
        assert_eq!(golden(Backend::Jaccl), format!("{jaccl}{matrix}"));
        assert_eq!(golden(Backend::JacclRing), format!("{jaccl}MLX_JACCL_RING=1\n{matrix}"));
    }
}
