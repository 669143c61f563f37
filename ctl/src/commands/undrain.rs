//! `clusterctl undrain NODE`

use crate::{
    App,
    error::Result,
    exit::Exit,
    output::{Style, human, text::sentence, views::NodeView},
};

/// Arguments of `undrain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The node
    node: String,
}

/// Takes a drained node back into service.
pub async fn run(args: Args, app: &mut App) -> Result<Exit> {
    let view = NodeView::from(app.connect().await?.drain(&args.node, false).await?);
    app.output.value(&view, |view, screen| {
        let text = match (view.state, &view.detail) {
            ("ready", _) => format!("Node {} takes work again.", view.id),
            (state, Some(detail)) => {
                format!("Node {} is no longer drained, but {state}: {}", view.id, sentence(detail))
            }
            (state, None) => format!("Node {} is no longer drained, but {state}.", view.id),
        };
        human::text(&screen.sentence("", &text, Style::Plain))
    })?;
    Ok(Exit::Ok)
}
