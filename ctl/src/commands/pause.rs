//! `clusterctl pause ID`

use super::JobId;
use crate::{
    App,
    error::Result,
    exit::Exit,
    output::{Style, human, views::JobView},
};

/// Arguments of `pause`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job, for example j7
    id: JobId,
}

/// Pauses a job: no more rows of it are handed out.
pub async fn run(args: Args, app: &mut App) -> Result<Exit> {
    let view = JobView::from(app.connect().await?.pause(args.id.0).await?);
    app.output.value(&view, |view, screen| {
        let mut text = human::jobs::job_sentence(view);
        if view.state == "paused" {
            text.push_str(&format!(" Go on with: clusterctl resume {}", view.id));
        }
        human::text(&screen.sentence("", &text, Style::Plain))
    })?;
    Ok(Exit::Ok)
}
