//! `clusterd`: the controller of Nightshift.

#![deny(unsafe_code)]

mod memory;

use std::{io::IsTerminal as _, net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Parser;
use nightshift_daemon::{config::Config, service, watch_config::Overlay};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// The controller of Nightshift: keeps the job ledger, hands out rows, and keeps the night going.
#[derive(Debug, Parser)]
#[command(name = "clusterd", version)]
struct Args {
    /// Read this configuration file, and read it again when it changes
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Keep ledger, jobs and results here
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Listen on this address (loopback only); port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Log to daily files in this directory in place of the terminal
    #[arg(long, value_name = "DIR")]
    log_dir: Option<PathBuf>,
    /// Print the configuration in force, with defaults, and end
    #[arg(long)]
    print_config: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Read a PlanRequest from stdin and write the PlanReply to stdout, both encoded; what `clusterctl plan --nodes` runs
    #[command(hide = true)]
    OfflinePlan,
}

/// A model's report is a few hundred kilobytes; whatever is longer than a message of the protocol is none.
const MOST_REQUEST_BYTES: u64 = nightshift_proto::MAX_MESSAGE_BYTES as u64;

fn offline_plan() -> anyhow::Result<()> {
    use std::io::{Read as _, Write as _};

    use prost::Message as _;

    let mut bytes = Vec::new();
    std::io::stdin()
        .take(MOST_REQUEST_BYTES + 1)
        .read_to_end(&mut bytes)
        .context("cannot read the request from stdin")?;
    anyhow::ensure!(
        bytes.len() as u64 <= MOST_REQUEST_BYTES,
        "the request on stdin is longer than {MOST_REQUEST_BYTES} bytes"
    );
    let request = nightshift_proto::v1::PlanRequest::decode(bytes.as_slice()).context(
        "what is on stdin is no PlanRequest: this command is for clusterctl, run `clusterctl plan --help`",
    )?;
    let reply = nightshift_daemon::rpc::plan_offline(&request).encode_to_vec();
    std::io::stdout().write_all(&reply).context("cannot write the plan")
}

fn main() -> ExitCode {
    memory::give_large_blocks_back();
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write as _;
            // Nothing is left to tell when stderr is gone too.
            let _ = writeln!(std::io::stderr(), "clusterd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    if let Some(Command::OfflinePlan) = args.command {
        return offline_plan();
    }
    let overlay = Overlay { listen: args.listen, state_dir: args.state_dir };
    let mut config = Config::load(args.config.as_deref())?;
    overlay.apply(&mut config);
    config.validate()?;
    if args.print_config {
        use std::io::Write as _;
        std::io::stdout()
            .write_all(config.to_annotated_toml().as_bytes())
            .context("cannot print the configuration")?;
        return Ok(());
    }
    let _flush_at_end = start_logging(&config, args.log_dir.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // Waiting for disks and sockets is all it does; two threads keep a slow call from holding up the driver.
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let ended: anyhow::Result<()> = runtime.block_on(async {
        let cancel = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        let stop = cancel.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("asked to stop");
            stop.cancel();
        });
        service::run(service::Options { config, config_file: args.config, overlay }, cancel).await?;
        Ok(())
    });
    if let Err(error) = &ended
        && args.log_dir.is_some()
    {
        // On stderr it is said anyway, at the very end.
        tracing::error!("{error:#}");
    }
    ended
}

/// As a service, stderr is a file that nobody rotates and that each failed start writes a line to.
const STDERR_MAX_BYTES: i64 = 1 << 20;

/// Empties the file that stderr is, when it has become too long. What it said is in the log, too, but for the oldest.
fn bound_stderr() {
    let stderr = std::io::stderr();
    let is_long = nix::sys::stat::fstat(&stderr).is_ok_and(|stat| {
        let kind = nix::sys::stat::SFlag::from_bits_truncate(stat.st_mode);
        kind.contains(nix::sys::stat::SFlag::S_IFREG) && stat.st_size > STDERR_MAX_BYTES
    });
    if is_long {
        // It is as long as before then, and the next start tries again.
        let _ = nix::unistd::ftruncate(&stderr, 0);
    }
}

/// Human lines on a terminal or into whatever stderr is; files, one a day and a bounded number, as a service.
fn start_logging(
    config: &Config,
    log_dir: Option<&std::path::Path>,
) -> anyhow::Result<Option<tracing_appender::non_blocking::WorkerGuard>> {
    if log_dir.is_some() {
        bound_stderr();
    }
    let filter = EnvFilter::try_new(&config.controller.log_filter)
        .with_context(|| format!("controller.log_filter = {:?} is refused", config.controller.log_filter))?;
    let Some(dir) = log_dir else {
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
            .with_target(false)
            .init();
        return Ok(None);
    };
    std::fs::create_dir_all(dir)
        .with_context(|| format!("cannot make the log directory {}", dir.display()))?;
    let files = tracing_appender::rolling::Builder::new()
        .rotation(tracing_appender::rolling::Rotation::DAILY)
        .filename_prefix("clusterd")
        .filename_suffix("log")
        .max_log_files(config.controller.log_files.max(1))
        .build(dir)
        .with_context(|| format!("cannot log to {}", dir.display()))?;
    let (writer, guard) = tracing_appender::non_blocking(files);
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(false)
        .with_target(false)
        .init();
    Ok(Some(guard))
}
