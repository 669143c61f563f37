//! `clusterctl watch [ID]`

use std::{collections::BTreeMap, io, pin::pin};

use jiff::Timestamp;
use nightshift_proto::v1;

use super::JobId;
use crate::{
    App,
    client::Client,
    error::{Error, Result},
    exit::Exit,
    output::{
        Output, Style, human,
        live::{Live, interrupted},
        views::{At, JobView, NodeView, SnapshotView},
    },
};

/// On a terminal: often enough to look alive, seldom enough to read.
const LIVE_INTERVAL_MS: u64 = 250;

/// In a pipe every change is a line that stays.
const PIPE_INTERVAL_MS: u64 = 1_000;

/// Arguments of `watch`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job, for example j7; without it, all that are not finished
    id: Option<JobId>,
}

/// Watches until the jobs end.
pub async fn run(args: Args, app: &mut App) -> Result<Exit> {
    let client = app.connect().await?;
    follow(args.id, client, &app.output).await
}

/// Follows one job, or all unfinished ones, until they end or a person leaves. A controller that goes away is waited
/// for. Used by `submit --watch` too.
pub(crate) async fn follow(id: Option<JobId>, mut client: Client, output: &Output) -> Result<Exit> {
    let mut picture = Picture::new(output);
    let ended = {
        let mut stop = pin!(interrupted());
        tokio::select! {
            ended = follow_jobs(id, &mut client, &mut picture) => ended,
            () = &mut stop => Err(Error::Interrupted),
        }
    };
    picture.finish();
    if let Err(Error::Interrupted) = ended {
        if output.is_live() {
            // The terminal has echoed ^C.
            output.raw(b"\n")?;
        }
        output.note("The jobs go on; come back with: clusterctl watch");
    }
    let jobs = ended?;
    if jobs.is_empty() {
        if !output.is_json() {
            output.raw(b"No job is running or waiting.\n")?;
        }
        return Ok(Exit::Ok);
    }
    let all_completed = jobs.values().all(|job| job.state == "completed");
    Ok(if all_completed { Exit::Ok } else { Exit::Failed })
}

/// Shows snapshots until every followed job has ended; returns the jobs as they ended, by id.
async fn follow_jobs(
    id: Option<JobId>,
    client: &mut Client,
    picture: &mut Picture<'_>,
) -> Result<BTreeMap<u64, JobView>> {
    let interval_ms = if picture.is_live() { LIVE_INTERVAL_MS } else { PIPE_INTERVAL_MS };
    let mut jobs: BTreeMap<u64, JobView> = BTreeMap::new();
    loop {
        let end = watch_stream(id, interval_ms, client, picture, &mut jobs).await;
        match end {
            Ok(true) => return Ok(jobs),
            // The controller ended the stream before the jobs ended: it is stopping.
            Ok(false) | Err(Error::Lost { .. }) => {}
            Err(e) => return Err(e),
        }
        picture.lost()?;
        client.reconnect().await?;
    }
}

/// Shows one stream of snapshots; true when there is nothing left to follow.
async fn watch_stream(
    id: Option<JobId>,
    interval_ms: u64,
    client: &mut Client,
    picture: &mut Picture<'_>,
    jobs: &mut BTreeMap<u64, JobView>,
) -> Result<bool> {
    let mut snapshots = client.watch(id.map_or(0, |id| id.0), interval_ms).await?;
    while let Some(reply) = snapshots.next().await? {
        let v1::WatchJobsReply { jobs: seen, nodes } = reply;
        let seen: BTreeMap<u64, JobView> =
            seen.into_iter().map(|job| (job.job_id, JobView::from(job))).collect();
        // A job that ended between two snapshots may be missing from "all unfinished": ask how it ended.
        for (id, known) in jobs.iter_mut() {
            if !seen.contains_key(id) && !known.is_finished() {
                *known = JobView::from(client.job(*id).await?);
            }
        }
        jobs.extend(seen);
        let is_over = jobs.values().all(JobView::is_finished);
        if jobs.is_empty() {
            return Ok(true);
        }
        picture.show(SnapshotView {
            at: At(Timestamp::now()),
            jobs: jobs.values().cloned().collect(),
            nodes: nodes.into_iter().map(NodeView::from).collect(),
        })?;
        if is_over {
            return Ok(true);
        }
    }
    // The stream of a single job ends with it; the end itself may have come after the last snapshot.
    let mut is_news = false;
    for (id, known) in jobs.iter_mut() {
        if !known.is_finished() {
            *known = JobView::from(client.job(*id).await?);
            is_news |= known.is_finished();
        }
    }
    if is_news {
        picture.show(SnapshotView {
            at: At(Timestamp::now()),
            jobs: jobs.values().cloned().collect(),
            nodes: Vec::new(),
        })?;
    }
    Ok(!jobs.is_empty() && jobs.values().all(JobView::is_finished))
}

/// Bars in place, a line per change, or JSON Lines.
struct Picture<'a> {
    output: &'a Output,
    live: Option<Live<io::Stdout>>,
    /// What was last said of each job, so that a pipe gets changes only.
    said: BTreeMap<String, String>,
    last: Option<SnapshotView>,
}

impl<'a> Picture<'a> {
    fn new(output: &'a Output) -> Self {
        let live = output.is_live().then(|| Live::new(io::stdout()));
        Picture { output, live, said: BTreeMap::new(), last: None }
    }

    fn is_live(&self) -> bool {
        self.live.is_some()
    }

    fn show(&mut self, snapshot: SnapshotView) -> Result<()> {
        let screen = self.output.screen();
        if self.output.is_json() {
            return self.output.item(&snapshot, |_, _| Vec::new());
        }
        if let Some(live) = &mut self.live {
            live.draw(&human::watch::frame(&snapshot, &screen))?;
            self.last = Some(snapshot);
            return Ok(());
        }
        for job in &snapshot.jobs {
            let key = change_key(job);
            if self.said.get(&job.id) != Some(&key) {
                self.output.raw(format!("{}\n", human::watch::change_line(job, &screen)).as_bytes())?;
                self.said.insert(job.id.clone(), key);
            }
        }
        Ok(())
    }

    /// Says that the controller is away.
    fn lost(&mut self) -> Result<()> {
        let text =
            "The controller went away; workers go on with the rows they hold. Waiting for it to come back.";
        match (&mut self.live, &self.last) {
            (Some(live), Some(last)) => {
                let screen = self.output.screen();
                let mut lines = human::watch::frame(last, &screen);
                lines.push(screen.paint(Style::Warn, &screen.clip(text)));
                live.draw(&lines)
            }
            _ => {
                self.output.note(text);
                Ok(())
            }
        }
    }

    /// Leaves the last picture and, under it, how each job ended.
    fn finish(&mut self) {
        let Some(mut live) = self.live.take() else { return };
        live.finish();
        let ended = self.last.iter().flat_map(|last| &last.jobs).filter(|job| job.is_finished());
        for job in ended {
            let screen = self.output.screen();
            let lines =
                screen.sentence("", &human::jobs::job_sentence(job), human::jobs::state_style(job.state));
            // The picture above already shows it; a terminal that is gone cannot be told.
            let _ = self.output.raw(human::text(&lines).as_bytes());
        }
    }
}

/// What must differ for a pipe to get another line: speeds and forecasts alone are no change.
fn change_key(job: &JobView) -> String {
    format!("{} {} {} {:?}", job.state, job.rows_succeeded, job.rows_failed, job.detail)
}
