//! `clusterctl plan --model M`: where a model fits and how it would run.
//!
//! ```text
//! --model ──────────────┬─ controller: Plan ──────────────────────────────┬─ view
//! --model, --nodes FILE ┴─ cluster-agent model ── clusterd offline-plan ──┘
//! ```
//!
//! Starts nothing and changes nothing. With `--nodes` it asks the programs beside this one in place of a controller, so
//! that a cluster can be planned before it is bought.

use std::path::PathBuf;

use nightshift_proto::v1;

use super::{
    mode::{MOST_CONTEXT_TOKENS, ModeChoice},
    submit::resolve_model,
};
use crate::{
    App,
    error::{Error, Result},
    exit::Exit,
    output::{
        human,
        text::{capital, clean, sentence},
        views::PlanView,
    },
};

mod nodes_file;
mod offline;

const AFTER_HELP: &str = "\
Machines you do not have yet, for --nodes:
  rdma = true              # if RDMA joins every pair of them
  [[node]]
  name = \"studio\"
  memory_gib = 128
  wired_limit_mb = 122880  # if iogpu.wired_limit_mb is to be set
  count = 2                # studio-1 and studio-2
(budget_gib = 100 says how much a model may take, in place of what follows from the memory.)

Exit codes: 0 it fits, 1 it does not fit or cannot be told, 2 the controller is unreachable.

Examples:
  clusterctl plan --model mlx-community/Qwen3-235B-A22B-4bit
  clusterctl plan --model /models/Kimi-K2 --nodes four-studios.toml --context 16384 --rows 4";

/// Arguments of `plan`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// A model directory, or a name on the model hub
    #[arg(long, value_name = "DIR|NAME")]
    model: String,
    /// Plan for rows of this many tokens, prompt and answer together [default: 4096]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MOST_CONTEXT_TOKENS))]
    context: Option<u64>,
    /// Plan for this many rows generated together by a worker or a gang [default: the controller's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MOST_ROWS))]
    rows: Option<u32>,
    /// Plan for this mode and no other
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "auto|independent|pipeline|tensor",
        hide_possible_values = true
    )]
    mode: ModeChoice,
    /// Plan for the machines in this file instead of the cluster's; needs no controller
    #[arg(long, value_name = "FILE")]
    nodes: Option<PathBuf>,
}

/// A hundred times what a GPU gains from: beyond, it is a slip of the finger.
const MOST_ROWS: i64 = 1_000_000;

/// Plans; the exit code says whether it fits.
pub async fn run(args: Args, app: &mut App) -> Result<Exit> {
    let request = v1::PlanRequest {
        model: resolve_model(&args.model),
        context_tokens: args.context.unwrap_or(0),
        rows: args.rows.unwrap_or(0),
        mode: v1::Mode::from(args.mode).into(),
        ..v1::PlanRequest::default()
    };
    let reply = match &args.nodes {
        Some(file) => offline::plan(request, nodes_file::read(file)?).await?,
        None => app.connect().await?.plan(request).await?,
    };
    if !reply.problem.is_empty() {
        return Err(nothing_to_plan_with(&reply));
    }
    let view = PlanView::new(reply, args.mode.into(), args.nodes.map(|file| file.display().to_string()));
    app.output.value(&view, human::plan::plan)?;
    Ok(if view.fits { Exit::Ok } else { Exit::Failed })
}

fn nothing_to_plan_with(reply: &v1::PlanReply) -> Error {
    let untold = reply.left_out.iter().filter(|reason| !reply.problem.contains(&reason.text));
    let left_out: Vec<String> = untold.map(|reason| capital(&sentence(&clean(&reason.text)))).collect();
    Error::Refused {
        message: capital(&sentence(&clean(&reply.problem))),
        hint: (!left_out.is_empty()).then(|| left_out.join(" ")),
    }
}
