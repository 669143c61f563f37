//! `clusterctl drain NODE`

use crate::{
    App,
    error::Result,
    exit::Exit,
    output::{Style, human, views::NodeView},
};

/// Arguments of `drain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The node
    node: String,
}

/// Gives a node no more work.
pub async fn run(args: Args, app: &mut App) -> Result<Exit> {
    let view = NodeView::from(app.connect().await?.drain(&args.node, true).await?);
    app.output.value(&view, |view, screen| {
        let held: u32 = view.workers.iter().map(|worker| worker.held_rows).sum();
        let rest = match held {
            0 => "It holds no rows now.".to_owned(),
            1 => "It still finishes 1 row it holds.".to_owned(),
            n => format!("It still finishes what it has begun of the {n} rows it holds."),
        };
        let text = format!(
            "Node {} takes no more work. {rest} Take it back with: clusterctl undrain {}",
            view.id, view.id
        );
        human::text(&screen.sentence("", &text, Style::Plain))
    })?;
    Ok(Exit::Ok)
}
