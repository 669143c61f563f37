//! `clusterctl demo`: a whole night in a minute, on this machine, in a directory that is thrown away.
//!
//! ```text
//! find programs → Python runtime → model → clusterd + two agents → submit
//!   → at 1/3 of the rows: SIGKILL a worker        → rows handed out again, new worker
//!   → at 2/3: SIGKILL clusterd, start it again    → workers adopted, nothing forgotten
//!   → every row has exactly one answer → results on disk → everything stopped
//! ```
//!
//! It ends only processes it has started: its own children, and a worker only after making sure that its parent is one of
//! the demo's agents. Ctrl-C stops everything at any time. When something fails, the directory stays and the ends of the
//! logs are shown.

use std::{
    path::{Path, PathBuf},
    pin::pin,
};

use super::submit::{resolve_model, upload::Source};
use crate::{
    App,
    error::{Error, Result},
    exit::Exit,
    output::live::interrupted,
};

mod cluster;
mod daemon;
mod outcome;
mod programs;
mod rows;
mod stage;
mod story;

use cluster::Cluster;
use stage::Stage;

/// Rows of the demo unless `--rows` says otherwise: enough that killing something hits rows in all stages.
const DEFAULT_ROWS: u32 = 48;

/// Where the results go when the throw-away directory goes, in the current directory.
const RESULTS_NAME: &str = "nightshift-demo-results.jsonl";
const ERRORS_NAME: &str = "nightshift-demo-errors.jsonl";

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Keep the directory with ledger, results and logs
    #[arg(long)]
    keep: bool,
    /// Work in this directory, which must be empty or not exist yet; implies --keep
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Answer with this model (a directory, or a name on the model hub) instead of a tiny random one
    #[arg(long, value_name = "PATH|NAME")]
    model: Option<String>,
    /// Answer these prompts, one a line, instead of the built-in ones
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// How many rows [default: 48, or all of --prompts]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rows: Option<u32>,
    /// Longest answer [default: 256; the tiny model gets more, so that there is something to see]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
    /// Kill nothing
    #[arg(long)]
    no_faults: bool,
}

/// What the demo was asked to do, checked.
#[derive(Debug)]
struct Plan {
    dir: PathBuf,
    keep: bool,
    /// Absolute path or hub name; none: make a tiny one.
    model: Option<String>,
    prompts: Option<PathBuf>,
    rows: Option<u32>,
    max_tokens: Option<u32>,
    faults: bool,
}

/// Runs the demo.
pub async fn run(args: Args, app: &mut App) -> Result<Exit> {
    if let Some(prompts) = &args.prompts {
        Source::open(prompts)?;
    }
    let programs = programs::Programs::find()?;
    let dir = make_directory(args.dir.as_deref())?;
    let plan = Plan {
        keep: args.keep || args.dir.is_some(),
        dir,
        model: args.model.as_deref().map(resolve_model),
        prompts: args.prompts,
        rows: args.rows,
        max_tokens: args.max_tokens,
        faults: !args.no_faults,
    };
    let mut stage = Stage::new(&app.output);
    let mut cluster = Cluster::new(&plan.dir, programs);

    let told = {
        let mut stop = pin!(interrupted());
        tokio::select! {
            told = story::tell(&plan, &mut cluster, &mut stage) => told,
            () = &mut stop => Err(Error::Interrupted),
        }
    };
    // A second Ctrl-C ends the gentle stop; what still runs is killed when `cluster` goes.
    let stopped = {
        let mut stop = pin!(interrupted());
        if matches!(told, Err(Error::Interrupted)) {
            stage.say("Stopping everything that was started.")?;
        }
        tokio::select! {
            () = cluster.stop() => true,
            () = &mut stop => false,
        }
    };
    stage.finish();
    match told {
        Ok(outcome) => {
            let outcome = outcome.settle(&plan)?;
            let verified = outcome.is_verified();
            outcome.show(&app.output)?;
            Ok(if verified { Exit::Ok } else { Exit::Failed })
        }
        Err(Error::Interrupted) => {
            if stopped && !plan.keep {
                remove(&plan.dir);
            }
            Err(Error::Interrupted)
        }
        Err(error) => {
            stage.log_tails(&cluster);
            Err(Error::local_hint(
                error.to_string(),
                format!(
                    "{}Everything is kept in {} (the ends of the logs are above).",
                    error.hint().map(|hint| format!("{hint} ")).unwrap_or_default(),
                    plan.dir.display()
                ),
            ))
        }
    }
}

/// The directory to work in: the one that was named, if nothing can be lost in it, or a new one nobody else may enter.
fn make_directory(named: Option<&Path>) -> Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    let dir = match named {
        Some(dir) => std::path::absolute(dir).map_err(|e| cannot_make(dir, &e))?,
        None => {
            let id = super::submit::submission_id()?;
            std::env::temp_dir().join(format!("nightshift-demo-{}", id.get(..8).unwrap_or(&id)))
        }
    };
    let is_used = std::fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_some());
    if is_used {
        return Err(Error::local_hint(
            format!("{} is not empty.", dir.display()),
            "Name a directory that is empty or does not exist; the demo does not mix with anything else.",
        ));
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|e| cannot_make(&dir, &e))?;
    Ok(dir)
}

fn cannot_make(dir: &Path, e: &std::io::Error) -> Error {
    Error::local(format!("Cannot make the directory {}: {e}.", dir.display()))
}

/// Removes the throw-away directory. What cannot be removed is a nuisance, not a failure.
fn remove(dir: &Path) {
    let _ = std::fs::remove_dir_all(dir);
}
