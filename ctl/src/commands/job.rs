//! `clusterctl job ID`

use super::JobId;
use crate::{
    App,
    error::Result,
    exit::Exit,
    output::{human, views::JobView},
};

/// Arguments of `job`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job, for example j7
    id: JobId,
}

/// Shows one job.
pub async fn run(args: Args, app: &mut App) -> Result<Exit> {
    let view = JobView::from(app.connect().await?.job(args.id.0).await?);
    app.output.value(&view, human::jobs::job)?;
    Ok(Exit::Ok)
}
