//! `clusterctl cancel ID`

use super::{JobId, confirm};
use crate::{
    App,
    error::Result,
    exit::Exit,
    output::{Style, human, text::plural, units, views::JobView},
};

/// Arguments of `cancel`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job, for example j7
    id: JobId,
    /// Do not wait for the rows being generated
    #[arg(long)]
    now: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// Cancels a job, after asking when a person is there to answer.
pub async fn run(args: Args, app: &mut App) -> Result<Exit> {
    let mut client = app.connect().await?;
    if !args.yes && app.output.can_ask() {
        let job = JobView::from(client.job(args.id.0).await?);
        let question = format!(
            "Cancel job {} with {} of {} done? Answers so far are kept. [y/N] ",
            job.id,
            units::count(job.rows_done()),
            plural(job.rows_total, "row", "rows")
        );
        if !confirm::ask(&question)? {
            app.output.note("Nothing was cancelled.");
            return Ok(Exit::Failed);
        }
    }
    let view = JobView::from(client.cancel(args.id.0, args.now).await?);
    app.output.value(&view, |view, screen| {
        human::text(&screen.sentence("", &human::jobs::job_sentence(view), Style::Plain))
    })?;
    Ok(Exit::Ok)
}
