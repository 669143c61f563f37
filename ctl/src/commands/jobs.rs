//! `clusterctl jobs`

use serde::Serialize;

use crate::{
    App,
    error::Result,
    exit::Exit,
    output::{human, views::JobView},
};

/// Arguments of `jobs`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show finished jobs too
    #[arg(long, short)]
    all: bool,
}

#[derive(Debug, Serialize)]
struct JobsView {
    jobs: Vec<JobView>,
}

/// Lists jobs.
pub async fn run(args: Args, app: &mut App) -> Result<Exit> {
    let jobs = app.connect().await?.jobs(args.all).await?;
    let view = JobsView { jobs: jobs.into_iter().map(JobView::from).collect() };
    app.output.value(&view, |view, screen| human::jobs::jobs(&view.jobs, args.all, screen))?;
    Ok(Exit::Ok)
}
