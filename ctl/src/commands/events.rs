//! `clusterctl events`

use nightshift_proto::v1;

use super::JobId;
use crate::{
    App,
    error::{Error, Result},
    exit::Exit,
    output::{Style, human, views::EventView},
};

/// Arguments of `events`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Stay and show new events as they come
    #[arg(long, short)]
    follow: bool,
    /// Begin with the newest N events
    #[arg(long, short = 'n', value_name = "N", default_value_t = 100)]
    tail: u32,
    /// Only events of this node
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Only events of this job
    #[arg(long, value_name = "JOB")]
    job: Option<JobId>,
}

/// Shows events; with `-f` until Ctrl-C, across restarts of the controller.
pub async fn run(args: Args, app: &mut App) -> Result<Exit> {
    let mut client = app.connect().await?;
    let mut request = v1::GetEventsRequest {
        // The protocol's 0 means "the default".
        tail: args.tail.max(1),
        follow: args.follow,
        node_id: args.node.unwrap_or_default(),
        job_id: args.job.map_or(0, |id| id.0),
    };
    let mut shown_seq = 0;
    let mut shown_any = false;
    loop {
        let lost = match client.events(request.clone()).await {
            Ok(mut events) => loop {
                match events.next().await {
                    Ok(Some(event)) if event.seq > shown_seq || event.seq == 0 => {
                        shown_seq = event.seq;
                        shown_any = true;
                        app.output.item(&EventView::from(event), human::events::event)?;
                    }
                    // Seen before the connection broke.
                    Ok(Some(_)) => {}
                    Ok(None) => break None,
                    Err(e) => break Some(e),
                }
            },
            Err(e) => Some(e),
        };
        match lost {
            None if !args.follow => break,
            Some(e) if !args.follow || !matches!(e, Error::Lost { .. }) => return Err(e),
            _ => {}
        }
        app.output.note("The controller went away; waiting for it to come back.");
        client.reconnect().await?;
        // Enough to bridge what happened meanwhile.
        request.tail = request.tail.max(100);
    }
    if !shown_any && !app.output.is_json() {
        app.output.value(&(), |(), screen| {
            human::text(&screen.sentence("", "Nothing has happened yet.", Style::Plain))
        })?;
    }
    Ok(Exit::Ok)
}
