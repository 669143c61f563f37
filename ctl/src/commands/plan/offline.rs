//! A plan without a controller: `cluster-agent` reads the model, `clusterd` plans.

use std::path::Path;

use nightshift_proto::v1;
use prost::Message;

use super::nodes_file::Machines;
use crate::{
    error::{Error, Result},
    output::text::{capital, clean, sentence},
    siblings::{self, Limits},
};

const HOW_TO_BUILD: &str = "--nodes needs cluster-agent and clusterd on this machine. Build all three programs with: cargo build --release";

/// Plans for machines one does not have yet.
pub(super) async fn plan(request: v1::PlanRequest, machines: Machines) -> Result<v1::PlanReply> {
    // Both first: a model is not read for nothing.
    let cluster_agent = siblings::find("cluster-agent", HOW_TO_BUILD)?;
    let clusterd = siblings::find("clusterd", HOW_TO_BUILD)?;

    let answer =
        siblings::ask(&cluster_agent, ["model", &request.model, "--protobuf"], &[], Limits::DEFAULT).await?;
    let report: v1::ModelReport = decode(&cluster_agent, &answer)?;
    if !report.problem.is_empty() {
        return Err(Error::local_hint(
            capital(&sentence(&clean(&report.problem))),
            "--model names a directory on this machine, or a model this machine has from the model hub.",
        ));
    }
    let request = v1::PlanRequest {
        nodes: machines.nodes,
        nodes_have_rdma: machines.rdma,
        report: Some(report),
        ..request
    };
    let answer =
        siblings::ask(&clusterd, ["offline-plan"], &request.encode_to_vec(), Limits::DEFAULT).await?;
    decode(&clusterd, &answer)
}

fn decode<M: Message + Default>(program: &Path, answer: &[u8]) -> Result<M> {
    // A message without any content is one too, but none that means something here.
    if answer.is_empty() {
        return Err(siblings::makes_no_sense(program, "it is empty"));
    }
    M::decode(answer).map_err(|e| siblings::makes_no_sense(program, e))
}
