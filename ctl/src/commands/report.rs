//! `clusterctl report`: the morning page.

use crate::{
    App,
    error::Result,
    exit::Exit,
    output::{human, views::ReportView},
};

const AFTER_HELP: &str = "\
The page is Markdown. Into a file or a pipe its lines are not broken:
  clusterctl report > morning.md

Speeds are tokens written a second while rows were at work; what a gang does counts for
the node of its rank 0. Numbers of a job are of all of it, also of what was done before
the time of the report.";

/// Arguments of `report`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Tell from then on: a span (12h), a time (the last 18:00 on the controller's clock) or a moment
    /// (2026-11-20T18:00:00+01:00) [default: 24h]
    #[arg(long, value_name = "WHEN", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    since: Option<String>,
}

/// Prints the page.
pub async fn run(args: Args, app: &mut App) -> Result<Exit> {
    let report = app.connect().await?.report(args.since.unwrap_or_default()).await?;
    app.output.value(&ReportView::from(report), human::report::report)?;
    Ok(Exit::Ok)
}
