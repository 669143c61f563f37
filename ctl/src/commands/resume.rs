//! `clusterctl resume ID`

use super::JobId;
use crate::{
    App,
    error::Result,
    exit::Exit,
    output::{Style, human, views::JobView},
};

/// Arguments of `resume`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job, for example j7
    id: JobId,
}

/// Goes on with a paused job.
pub async fn run(args: Args, app: &mut App) -> Result<Exit> {
    let view = JobView::from(app.connect().await?.resume(args.id.0).await?);
    app.output.value(&view, |view, screen| {
        human::text(&screen.sentence("", &human::jobs::job_sentence(view), Style::Plain))
    })?;
    Ok(Exit::Ok)
}
