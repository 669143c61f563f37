//! `clusterctl logs NODE|JOB`

use nightshift_proto::v1;

use super::JobId;
use crate::{
    App,
    client::Client,
    error::{Error, Result},
    exit::Exit,
    output::{human, views::LogLineView},
};

/// Arguments of `logs`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["target", "node", "job"]))]
pub struct Args {
    /// A node (its agent's log) or a job (its workers' logs); j7 is a job unless a node is called that
    #[arg(value_name = "NODE|JOB")]
    target: Option<String>,
    /// The log of this node's agent
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// The logs of this job's workers
    #[arg(long, value_name = "JOB")]
    job: Option<JobId>,
    /// Stay and show new lines as they come
    #[arg(long, short)]
    follow: bool,
    /// Begin with the newest N lines
    #[arg(long, short = 'n', value_name = "N", default_value_t = 100)]
    tail: u32,
}

/// Shows a log; with `-f` until Ctrl-C.
pub async fn run(args: Args, app: &mut App) -> Result<Exit> {
    let mut client = app.connect().await?;
    let (node_id, job_id) = match (args.node, args.job, args.target) {
        (Some(node), _, _) => (node, 0),
        (_, Some(job), _) => (String::new(), job.0),
        (_, _, Some(target)) => resolve(&target, &mut client).await?,
        (None, None, None) => {
            return Err(Error::Usage { message: "Name a node or a job.".to_owned(), hint: None });
        }
    };
    let request = v1::GetLogsRequest { node_id, job_id, tail_lines: args.tail, follow: args.follow };
    let mut logs = client.logs(request).await?;
    let mut shown_any = false;
    while let Some(lines) = logs.next().await? {
        for line in lines.lines {
            shown_any = true;
            app.output
                .item(&LogLineView::from(line), |view, screen| vec![human::events::log_line(view, screen)])?;
        }
        if lines.end {
            break;
        }
    }
    if !shown_any {
        app.output.note("There are no lines.");
    }
    Ok(Exit::Ok)
}

/// What a bare name means: the node of that name if there is one, else the job of that id.
async fn resolve(target: &str, client: &mut Client) -> Result<(String, u64)> {
    let Ok(job) = target.parse::<JobId>() else { return Ok((target.to_owned(), 0)) };
    let is_node = client.nodes().await?.iter().any(|node| node.node_id == target);
    Ok(if is_node { (target.to_owned(), 0) } else { (String::new(), job.0) })
}
