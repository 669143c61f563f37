//! The command line.

use std::ffi::OsString;

use clap::{Args, Parser, Subcommand, error::ErrorKind};

use crate::{
    App, commands,
    error::{Error, Result},
    exit::{self, Exit},
    output::{ColorChoice, Format, Output},
};

/// See and steer a Nightshift cluster.
#[derive(Debug, Parser)]
#[command(name = "clusterctl", version, max_term_width = 100, after_help = exit::HELP)]
pub struct Cli {
    /// Options every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Controller to talk to [env: NIGHTSHIFT_CONTROLLER] [default: 127.0.0.1:7400]
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub controller: Option<String>,
    /// Print for people, or one JSON value (JSON Lines where output streams)
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "human|json",
        hide_possible_values = true
    )]
    pub output: Format,
    /// Colour the output; `auto` heeds NO_COLOR and CLICOLOR_FORCE
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "auto|always|never",
        hide_possible_values = true
    )]
    pub color: ColorChoice,
}

/// The commands, in the order of `--help`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show nodes, jobs and incidents on one screen
    Status(commands::status::Args),
    /// Write the morning page: what was done, what went wrong, what to do today; as Markdown
    Report(commands::report::Args),
    /// Submit a job: a file of rows, or of prompts
    Submit(Box<commands::submit::Args>),
    /// Say where a model fits and how it would run, here or on machines you do not have yet
    Plan(commands::plan::Args),
    /// List jobs
    Jobs(commands::jobs::Args),
    /// Show one job
    Job(commands::job::Args),
    /// Say why a job or a node is where it is, rule by rule
    Explain(commands::explain::Args),
    /// Look before a night: what is to be mended on which machine and cable, with the next step
    Doctor(commands::doctor::Args),
    /// Watch jobs live until they end
    Watch(commands::watch::Args),
    /// Print the results of a job as JSON Lines, also while it runs
    Results(commands::results::Args),
    /// Cancel a job; the rows answered so far are kept
    Cancel(commands::cancel::Args),
    /// Pause a job at the next row boundary
    Pause(commands::pause::Args),
    /// Go on with a paused job
    Resume(commands::resume::Args),
    /// Show the log of a node's agent or of a job's workers
    Logs(commands::logs::Args),
    /// Show what happened in the cluster
    Events(commands::events::Args),
    /// List nodes
    Nodes(commands::nodes::Args),
    /// Give a node no more work; what it is generating is finished
    Drain(commands::drain::Args),
    /// Take a drained node back into service
    Undrain(commands::undrain::Args),
    /// Make services of the programs on this machine, or bring them up to date
    #[command(
        after_help = "With --controller, a new configuration of the agent says that its controller is there."
    )]
    Install(commands::install::Args),
    /// Take these services away
    Uninstall(commands::install::UninstallArgs),
    /// Run a whole night in a minute: start a throw-away cluster, break it, see it heal
    Demo(commands::demo::Args),
    /// Print a completion script for a shell
    Completions(commands::completions::Args),
}

impl Command {
    /// Does it.
    pub async fn run(self, app: &mut App) -> Result<Exit> {
        match self {
            Command::Status(args) => commands::status::run(args, app).await,
            Command::Report(args) => commands::report::run(args, app).await,
            Command::Submit(args) => commands::submit::run(*args, app).await,
            Command::Plan(args) => commands::plan::run(args, app).await,
            Command::Jobs(args) => commands::jobs::run(args, app).await,
            Command::Job(args) => commands::job::run(args, app).await,
            Command::Explain(args) => commands::explain::run(args, app).await,
            Command::Doctor(args) => commands::doctor::run(args, app).await,
            Command::Watch(args) => commands::watch::run(args, app).await,
            Command::Results(args) => commands::results::run(args, app).await,
            Command::Cancel(args) => commands::cancel::run(args, app).await,
            Command::Pause(args) => commands::pause::run(args, app).await,
            Command::Resume(args) => commands::resume::run(args, app).await,
            Command::Logs(args) => commands::logs::run(args, app).await,
            Command::Events(args) => commands::events::run(args, app).await,
            Command::Nodes(args) => commands::nodes::run(args, app).await,
            Command::Drain(args) => commands::drain::run(args, app).await,
            Command::Undrain(args) => commands::undrain::run(args, app).await,
            Command::Install(args) => commands::install::run(args, app).await,
            Command::Uninstall(args) => commands::install::uninstall(args, app).await,
            Command::Demo(args) => commands::demo::run(args, app).await,
            Command::Completions(args) => commands::completions::run(args, app),
        }
    }
}

/// Parses the command line. Help and version are printed here; so is what is wrong, with [`Exit::Usage`].
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, Exit> {
    let args: Vec<OsString> = args.into_iter().collect();
    Cli::try_parse_from(&args).map_err(|e| match e.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Nobody is left to tell when stdout is closed.
            let _ = e.print();
            Exit::Ok
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = e.print();
            Exit::Usage
        }
        _ if wants_json(&args) => {
            let text = e.render().to_string();
            let message = text.split("\n\n").next().unwrap_or(&text).trim_start_matches("error: ");
            let usage = Error::Usage {
                message: message.to_owned(),
                hint: Some("For more information, try --help.".to_owned()),
            };
            Output::new(Format::Json, ColorChoice::Never).error(&usage);
            Exit::Usage
        }
        _ => {
            let _ = e.print();
            Exit::Usage
        }
    })
}

/// Whether a command line that did not parse asked for JSON.
fn wants_json(args: &[OsString]) -> bool {
    args.iter().any(|arg| arg == "--output=json")
        || args.windows(2).any(|pair| pair[0] == "--output" && pair[1] == "json")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
