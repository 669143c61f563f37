//! `clusterctl explain JOB|NODE`

use super::JobId;
use crate::{
    App,
    error::{Error, Result},
    exit::Exit,
    output::{human, views::ExplainView},
};

/// Arguments of `explain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A job, for example j7, or the name of a node
    #[arg(value_name = "JOB|NODE", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    about: String,
}

/// Says why it is where it is. A node whose name looks like a job's id is meant where there is no such job.
pub async fn run(args: Args, app: &mut App) -> Result<Exit> {
    let mut client = app.connect().await?;
    let of_job = match args.about.parse::<JobId>() {
        Ok(id) => Some(client.explain_job(id.0).await),
        Err(_) => None,
    };
    let explanation = match of_job {
        Some(Err(no_such_job @ Error::NotFound { .. })) => {
            client.explain_node(&args.about).await.map_err(|error| match error {
                Error::NotFound { .. } => no_such_job,
                other => other,
            })?
        }
        Some(answer) => answer?,
        None => client.explain_node(&args.about).await?,
    };
    app.output.value(&ExplainView::from(explanation), human::explain::explain)?;
    Ok(Exit::Ok)
}
