//! `clusterctl completions SHELL`

use clap::CommandFactory;
use clap_complete::Shell;

use crate::{App, cli::Cli, error::Result, exit::Exit};

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell to complete in
    shell: Shell,
}

/// Prints a completion script.
pub fn run(args: Args, app: &mut App) -> Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "clusterctl", &mut script);
    app.output.raw(&script)?;
    Ok(Exit::Ok)
}
