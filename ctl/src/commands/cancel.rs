//! `clusterctl cancel ID`

use std::io::{self, BufRead, Write};

use super::JobId;
use crate::{
    App,
    error::{Error, Result},
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
        if !ask(&question)? {
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

/// Anything but yes is no.
fn ask(question: &str) -> Result<bool> {
    let mut stderr = io::stderr().lock();
    stderr.write_all(question.as_bytes()).and_then(|()| stderr.flush()).map_err(Error::write)?;
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|e| Error::local(format!("Cannot read the answer: {e}.")))?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
