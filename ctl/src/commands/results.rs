//! `clusterctl results ID`

use super::JobId;
use crate::{
    App,
    client::Client,
    error::{Error, Result},
    exit::Exit,
    output::{text::plural, units, views::JobView},
};

/// Arguments of `results`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job, for example j7
    id: JobId,
    /// Stay and print rows as they become durable, until the job ends
    #[arg(long, short)]
    follow: bool,
    /// Print the rows that ended with an error instead
    #[arg(long)]
    errors: bool,
}

/// Copies the results file of a job to stdout, byte for byte (OpenAI Batch output form, JSON Lines, whatever
/// `--output` says). With `-f` it survives restarts of the controller: a results file only ever grows by whole durable
/// lines, so what was printed is skipped and the rest follows.
pub async fn run(args: Args, app: &mut App) -> Result<Exit> {
    let mut client = app.connect().await?;
    let mut printed_bytes = 0;
    loop {
        match copy(&args, &mut client, app, &mut printed_bytes).await {
            Ok(()) if !args.follow => break,
            // The stream of a follower ends with its job, or with a controller that stops in an orderly way.
            Ok(()) => match client.job(args.id.0).await.map(JobView::from) {
                Ok(job) if job.is_finished() => break,
                Ok(_) | Err(Error::Lost { .. } | Error::Unreachable { .. }) => {}
                Err(e) => return Err(e),
            },
            Err(Error::Lost { .. }) if args.follow => {}
            Err(e) => return Err(e),
        }
        app.output.note("The controller went away; waiting for it to come back.");
        client.reconnect().await?;
    }
    // A person who reads an unfinished file should know.
    if !args.follow
        && app.output.shows_progress()
        && let Ok(job) = client.job(args.id.0).await.map(JobView::from)
        && !job.is_finished()
    {
        app.output.note(&format!(
            "The job goes on: {} of {} done so far. Stay with it: clusterctl results {} -f",
            units::count(job.rows_done()),
            plural(job.rows_total, "row", "rows"),
            job.id
        ));
    }
    Ok(Exit::Ok)
}

async fn copy(args: &Args, client: &mut Client, app: &App, printed_bytes: &mut u64) -> Result<()> {
    let mut chunks = client.results(args.id.0, args.follow, args.errors).await?;
    let mut seen_bytes = 0;
    while let Some(chunk) = chunks.next().await? {
        let data = chunk.data;
        let skip = printed_bytes.saturating_sub(seen_bytes).min(data.len() as u64);
        seen_bytes += data.len() as u64;
        if let Some(fresh) = data.get(skip as usize..).filter(|fresh| !fresh.is_empty()) {
            app.output.raw(fresh)?;
            *printed_bytes = seen_bytes;
        }
    }
    Ok(())
}
