//! What the command line understands, and what it calls for it.
//!
//! Exit codes: 0 done, 1 failed (one sentence on stderr), 2 wrong usage. `runtime check` ends with 1 when the runtime is
//! not fit.

mod link;

use std::{
    env,
    ffi::OsString,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use link::Link;
use nightshift_agent::{
    agent,
    checks::{self, Beside, Check},
    config::{self, Overrides, Settings},
    link_prep::keeper::Policy,
    logging::{self, LogStore},
    model,
    paths::Surroundings,
    probe::{self, Observation},
    runtime,
};
use prost::Message as _;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Watch this machine and run its MLX workers for the Nightshift controller.
#[derive(Debug, Parser)]
#[command(name = "cluster-agent", version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent until it is told to end.
    Run(Run),
    /// Install, check or use the workers' Python runtime.
    #[command(subcommand)]
    Runtime(Runtime),
    /// Print what this machine says about itself.
    Probe(Probe),
    /// Print what a model on this machine consists of; reads no weights.
    Model(Model),
    /// Prepare the Thunderbolt ports of this Mac for other Macs.
    #[command(subcommand)]
    Link(Link),
}

#[derive(Debug, Args)]
struct Model {
    /// A directory, or a name of the model hub that is in its cache here.
    #[arg(value_name = "DIR|NAME")]
    model: String,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Write the report as agents send it.
    #[arg(long, hide = true, conflicts_with = "json")]
    protobuf: bool,
}

#[derive(Debug, Args)]
struct Run {
    /// Read settings from this TOML file; flags override it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Dial the controller here [default: 127.0.0.1:7400].
    #[arg(long, value_name = "ADDRESS")]
    controller: Option<String>,
    /// Keep the agent's state here.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Name this node, uniquely in the cluster [default: the host's name].
    #[arg(long, value_name = "NAME")]
    node_id: Option<String>,
    /// Use the Python runtime here: the virtual environment itself.
    #[arg(long, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
    /// What a model may take of this machine's memory; without it, three quarters, or what the GPU driver allows.
    #[arg(long, value_name = "MIB")]
    memory_budget_mib: Option<u64>,
    /// Start workers as this user, when the agent is root.
    #[arg(long, value_name = "NAME")]
    worker_user: Option<String>,
    /// Of the Thunderbolt ports that lead to other nodes, say what they lack, do it, or neither [default: suggest].
    #[arg(long, value_name = "POLICY", value_enum)]
    link_policy: Option<Policy>,
    /// Log into daily files here, 14 of them kept, and not to stderr.
    #[arg(long, value_name = "DIR")]
    log_dir: Option<PathBuf>,
    #[arg(long, hide = true)]
    boot_id: Option<String>,
    #[arg(long, hide = true, value_name = "DIR")]
    scripted_mac: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Runtime {
    /// Make the virtual environment with MLX and mlx-lm, unless it is there.
    Install {
        #[command(flatten)]
        at: RuntimeDir,
        /// Build it with this interpreter [default: the newest that is found].
        #[arg(long, value_name = "PATH")]
        python: Option<PathBuf>,
    },
    /// Import MLX in it and compare versions.
    Check {
        #[command(flatten)]
        at: RuntimeDir,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Make a model directory with random weights, for tests and the demo.
    TinyModel {
        #[command(flatten)]
        at: RuntimeDir,
        #[command(flatten)]
        model: Shape,
    },
}

#[derive(Debug, Args)]
struct RuntimeDir {
    /// Where the runtime is: the virtual environment itself [default: $NIGHTSHIFT_RUNTIME_DIR, or a place of its own].
    #[arg(long, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
}

/// The options of `tiny_model.py`, which has the defaults.
#[derive(Debug, Args)]
struct Shape {
    /// Give it the shape of this architecture.
    #[arg(long, value_parser = ["llama", "qwen3", "qwen3_moe", "gpt_oss", "deepseek_v3", "glm4_moe"])]
    arch: String,
    /// Make it here; must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Layers.
    #[arg(long, value_name = "N")]
    layers: Option<u32>,
    /// Hidden size.
    #[arg(long, value_name = "N")]
    hidden: Option<u32>,
    /// Tokens of the vocabulary.
    #[arg(long, value_name = "N")]
    vocab: Option<u32>,
    /// Longest context, in tokens.
    #[arg(long, value_name = "N")]
    max_position: Option<u32>,
    /// Experts, where the architecture has them.
    #[arg(long, value_name = "N")]
    moe_experts: Option<u32>,
    /// Draw the weights from this seed.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Type of the weights.
    #[arg(long, value_parser = ["float32", "bfloat16", "float16"])]
    dtype: Option<String>,
    /// Leave the chat template out.
    #[arg(long)]
    no_chat_template: bool,
}

impl Shape {
    fn into_arguments(self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> =
            vec!["--arch".into(), self.arch.into(), "--out".into(), self.out.into()];
        let options = [
            ("--layers", self.layers.map(|value| value.to_string())),
            ("--hidden", self.hidden.map(|value| value.to_string())),
            ("--vocab", self.vocab.map(|value| value.to_string())),
            ("--max-position", self.max_position.map(|value| value.to_string())),
            ("--moe-experts", self.moe_experts.map(|value| value.to_string())),
            ("--seed", self.seed.map(|value| value.to_string())),
            ("--dtype", self.dtype),
        ];
        for (name, value) in options.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            arguments.extend([name.into(), value.into()]);
        }
        arguments.extend(self.no_chat_template.then(|| "--no-chat-template".into()));
        arguments
    }
}

impl RuntimeDir {
    fn resolve(self) -> Result<PathBuf, config::Error> {
        config::runtime_dir(self.runtime_dir, &Surroundings::here())
    }
}

#[derive(Debug, Args)]
struct Probe {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[arg(long, hide = true)]
    boot_id: Option<String>,
    #[arg(long, hide = true, value_name = "DIR")]
    scripted_mac: Option<PathBuf>,
}

/// Carries a command out.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Run(arguments) => run_agent(arguments).await,
        Command::Runtime(Runtime::Install { at, python }) => install(at.resolve()?, python).await,
        Command::Runtime(Runtime::Check { at, json }) => check(at.resolve()?, json).await,
        Command::Runtime(Runtime::TinyModel { at, model }) => {
            runtime::tiny_model::make(&at.resolve()?, &model.into_arguments()).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Probe(arguments) => print_probe(arguments),
        Command::Model(arguments) => print_model(&arguments),
        Command::Link(command) => link::run(command),
    }
}

async fn run_agent(arguments: Run) -> anyhow::Result<ExitCode> {
    let file = arguments.config.as_deref().map(Overrides::read).transpose()?.unwrap_or_default();
    let flags = Overrides {
        controller: arguments.controller,
        state_dir: arguments.state_dir,
        node_id: arguments.node_id,
        runtime_dir: arguments.runtime_dir,
        memory_budget_mib: arguments.memory_budget_mib,
        worker_user: arguments.worker_user,
        link_policy: arguments.link_policy,
        log_dir: arguments.log_dir,
        boot_id: arguments.boot_id,
        scripted_mac: arguments.scripted_mac,
        ..Overrides::default()
    };
    let given = flags.over(file);
    let (log_dir, log_filter) = (given.log_dir.clone(), given.log_filter.clone());
    let settings = Settings::resolve(given, &Surroundings::here())?;

    let logs = LogStore::default();
    let _guard = logging::setup::init(log_dir.as_deref(), log_filter.as_deref(), &logs)?;
    let stop = CancellationToken::new();
    let ending = stop.clone();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("asked to end");
        ending.cancel();
    });
    let ended = agent::run(settings, logs, stop).await;
    if let Err(error) = &ended
        && log_dir.is_some()
    {
        // On stderr it is said anyway, at the very end.
        tracing::error!("{}", nightshift_agent::util::chain(error));
    }
    Ok(ended.map(|()| ExitCode::SUCCESS)?)
}

async fn install(dir: PathBuf, python: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let outcome = runtime::install(&dir, python.as_deref(), &mut |words| {
        // Progress that nobody can read is no reason to stop.
        let _ = writeln!(io::stderr().lock(), "{words}");
    })
    .await?;
    let (runtime::install::Outcome::AlreadyReady(status) | runtime::install::Outcome::Installed(status)) =
        outcome;
    writeln!(io::stdout().lock(), "{}", describe(&status))?;
    Ok(ExitCode::SUCCESS)
}

async fn check(dir: PathBuf, json: bool) -> anyhow::Result<ExitCode> {
    let status = runtime::check(&dir).await;
    let text = if json { serde_json::to_string(&status)? } else { describe(&status) };
    writeln!(io::stdout().lock(), "{text}")?;
    Ok(if status.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn describe(status: &runtime::Status) -> String {
    match &status.problem {
        Some(problem) => format!("The runtime is not ready: {problem}."),
        None => {
            let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "?".to_owned());
            format!(
                "The runtime is ready: Python {}, MLX {}, mlx-lm {} ({}).",
                version(&status.python_version),
                version(&status.mlx_version),
                version(&status.mlx_lm_version),
                status.python.display()
            )
        }
    }
}

/// What `probe --json` prints.
#[derive(Debug, Serialize)]
struct Probed<'a> {
    #[serde(flatten)]
    observation: &'a Observation,
    checks: &'a [Check],
}

fn print_probe(arguments: Probe) -> anyhow::Result<ExitCode> {
    let state_dir = Surroundings::here().state_dir().unwrap_or_else(|| PathBuf::from("/"));
    // Before the agent first ran its directory is not there, but the disk it will be on is.
    let existing = state_dir.ancestors().find(|dir| dir.exists()).unwrap_or(&state_dir).to_owned();
    let Probe { boot_id, scripted_mac, .. } = arguments;
    let options = probe::Options { state_dir: existing, boot_id, scripted_mac };
    let mut probe = probe::native(options).context("cannot start the probe")?;
    probe.settle();
    let seen = probe.observe();
    let checks = checks::checks(&seen, &Beside::default());
    let text = if arguments.json {
        serde_json::to_string(&Probed { observation: &seen, checks: &checks })?
    } else {
        format!("{}\n{}", probe::text::describe(&seen), checks::describe(&checks))
    };
    writeln!(io::stdout().lock(), "{}", text.trim_end()).context("cannot write to stdout")?;
    Ok(ExitCode::SUCCESS)
}

/// Of any directory a person names: where workers may load from is no concern here.
fn print_model(arguments: &Model) -> anyhow::Result<ExitCode> {
    let place = model::Place::of_workers(env::current_dir()?, None, None);
    let found = model::find(&arguments.model, &[], &place)?;
    let mut out = io::stdout().lock();
    let written = if arguments.protobuf {
        out.write_all(&found.report.encode_to_vec())
    } else {
        let summary = model::text::summary(&found);
        let text =
            if arguments.json { serde_json::to_string(&summary)? } else { model::text::describe(&summary) };
        writeln!(out, "{text}")
    };
    written.and_then(|()| out.flush()).context("cannot write to stdout")?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Arguments::command().debug_assert();
    }
}
