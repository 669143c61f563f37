//! `clusterctl nodes`

use serde::Serialize;

use crate::{
    App,
    error::Result,
    exit::Exit,
    output::{human, views::NodeView},
};

/// Arguments of `nodes`.
#[derive(Debug, clap::Args)]
pub struct Args {}

#[derive(Debug, Serialize)]
struct NodesView {
    nodes: Vec<NodeView>,
}

/// Lists nodes.
pub async fn run(_args: Args, app: &mut App) -> Result<Exit> {
    let nodes = app.connect().await?.nodes().await?;
    let view = NodesView { nodes: nodes.into_iter().map(NodeView::from).collect() };
    app.output.value(&view, |view, screen| human::nodes::nodes(&view.nodes, screen))?;
    Ok(Exit::Ok)
}
