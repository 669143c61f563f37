//! What a person should know and do before a night.

use nightshift_proto::v1;
use serde::Serialize;

use super::text;

/// `doctor`.
#[derive(Debug, Clone, Serialize)]
pub struct DoctorView {
    /// How many things will end a night, or may at any time.
    pub fails: usize,
    /// How many things a night may suffer from.
    pub warns: usize,
    /// In order of name.
    pub nodes: Vec<NodeDoctorView>,
    /// Thunderbolt cables between nodes.
    pub cables: Vec<CableView>,
    /// What concerns several nodes.
    pub cluster: Vec<CheckView>,
}

/// One node.
#[derive(Debug, Clone, Serialize)]
pub struct NodeDoctorView {
    /// Its name.
    pub id: String,
    /// For example "Mac16,9".
    pub hardware_model: Option<String>,
    /// For example "macos 25D125".
    pub system: Option<String>,
    /// What was looked at, in the order in which it is to be mended.
    pub checks: Vec<CheckView>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckView {
    /// A stable word, for example "sleep".
    pub id: String,
    /// "ok", "warn", "fail".
    pub level: &'static str,
    /// What was seen, in a sentence.
    pub seen: String,
    /// What to do next.
    pub next_step: Option<String>,
}

/// A Thunderbolt cable between two nodes.
#[derive(Debug, Clone, Serialize)]
pub struct CableView {
    /// The one end.
    pub a: CableEndView,
    /// The other end.
    pub b: CableEndView,
    /// What it can be used for: "rdma", "tcp", "down".
    pub class: &'static str,
    /// Why it is not better, the first to mend first.
    pub flaws: Vec<FlawView>,
}

/// One end of a cable.
#[derive(Debug, Clone, Serialize)]
pub struct CableEndView {
    /// Whose it is.
    pub node: String,
    /// In which receptacle.
    pub port: u32,
}

/// Why a cable is not better.
#[derive(Debug, Clone, Serialize)]
pub struct FlawView {
    /// In a sentence.
    pub sentence: String,
    /// What to do about it.
    pub next_step: Option<String>,
}

impl CableView {
    /// As bad as a check of that level. A cable that only TCP goes over serves, more slowly.
    pub fn level(&self) -> &'static str {
        match self.class {
            "rdma" if self.flaws.is_empty() => "ok",
            _ => "warn",
        }
    }
}

impl From<v1::Diagnosis> for DoctorView {
    fn from(diagnosis: v1::Diagnosis) -> Self {
        let checks = |checks: Vec<v1::Check>| checks.into_iter().map(CheckView::from).collect::<Vec<_>>();
        let nodes = diagnosis.nodes.into_iter().map(|node| NodeDoctorView {
            id: node.node_id,
            hardware_model: text(node.hardware_model),
            system: text(node.system),
            checks: checks(node.checks),
        });
        let nodes: Vec<NodeDoctorView> = nodes.collect();
        let cables: Vec<CableView> = diagnosis.cables.into_iter().map(CableView::from).collect();
        let cluster = checks(diagnosis.cluster);
        let levels = || {
            let of_checks =
                nodes.iter().flat_map(|node| &node.checks).chain(&cluster).map(|check| check.level);
            of_checks.chain(cables.iter().map(CableView::level))
        };
        let count = |level: &str| levels().filter(|other| *other == level).count();
        DoctorView { fails: count("fail"), warns: count("warn"), nodes, cables, cluster }
    }
}

impl From<v1::Check> for CheckView {
    fn from(check: v1::Check) -> Self {
        let level = match check.level() {
            v1::CheckLevel::Ok => "ok",
            v1::CheckLevel::Warn => "warn",
            v1::CheckLevel::Fail => "fail",
            v1::CheckLevel::Unspecified => "unknown",
        };
        CheckView { id: check.id, level, seen: check.seen, next_step: text(check.next_step) }
    }
}

impl From<v1::Cable> for CableView {
    fn from(cable: v1::Cable) -> Self {
        let class = match cable.class() {
            v1::CableClass::Rdma => "rdma",
            v1::CableClass::Tcp => "tcp",
            v1::CableClass::Down => "down",
            v1::CableClass::Unspecified => "unknown",
        };
        let flaws = cable.flaws.into_iter();
        let flaws = flaws.map(|flaw| FlawView { sentence: flaw.sentence, next_step: text(flaw.next_step) });
        CableView {
            a: CableEndView { node: cable.a_node_id, port: cable.a_receptacle },
            b: CableEndView { node: cable.b_node_id, port: cable.b_receptacle },
            class,
            flaws: flaws.collect(),
        }
    }
}
