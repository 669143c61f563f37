//! `clusterctl`: see and steer a Nightshift cluster from a terminal or a script.
//!
//! ```text
//! cli ── commands/* ── client ── (gRPC) ── clusterd
//!            │
//!            ├── install: look, plan, run   (launchd, systemd)
//!            ├── siblings ── (stdin, stdout) ── clusterd, cluster-agent   (`plan --nodes`)
//!            └── output: views ─┬─ human  (sentences, tables; stdout)
//!                               └─ json   (--output json; stdout)
//! ```
//!
//! What a script may rely on: [`exit`] (exit codes), [`output::views`] and [`output::json`] (shapes). A command is one
//! file of [`commands`]; it asks the controller, makes a view, and hands the view to [`output::Output`].

#![forbid(unsafe_code)]

use std::process::ExitCode;

pub mod cli;
pub mod client;
pub mod commands;
pub mod error;
pub mod exit;
mod install;
pub mod output;
mod siblings;

use client::{ADDRESS_VARIABLE, Address, Client};
use error::{Error, Result};
use exit::Exit;
use output::Output;

/// What every command is given.
#[derive(Debug)]
pub struct App {
    /// Where to print.
    pub output: Output,
    address: Result<Address, Option<Error>>,
    /// Whether the command line names it.
    names_address: bool,
}

impl App {
    fn new(global: &cli::Global) -> Self {
        let env = std::env::var(ADDRESS_VARIABLE).ok();
        App {
            output: Output::new(global.output, global.color),
            address: Address::choose(global.controller.as_deref(), env.as_deref()).map_err(Some),
            names_address: global.controller.is_some(),
        }
    }

    /// The address on the command line, where there is one.
    fn given_address(&mut self) -> Result<Option<String>> {
        match &mut self.address {
            _ if !self.names_address => Ok(None),
            Ok(address) => Ok(Some(address.as_str().to_owned())),
            Err(e) => Err(e.take().unwrap_or_else(unusable)),
        }
    }

    /// Connects to the controller that was named. An address that makes no sense is reported here, so that commands
    /// that need no controller do not stumble over it.
    pub async fn connect(&mut self) -> Result<Client> {
        match &mut self.address {
            Ok(address) => Client::connect(address).await,
            Err(e) => Err(e.take().unwrap_or_else(unusable)),
        }
    }
}

fn unusable() -> Error {
    Error::local("The address of the controller is not usable.")
}

/// The program.
pub fn main() -> ExitCode {
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(exit) => return exit.into(),
    };
    let mut app = App::new(&cli.global);
    // One thread for the connection beside the one that writes: a slow reader of our stdout must not keep the
    // connection from answering keep-alives.
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            app.output.error(&Error::local(format!("Cannot start: {e}.")));
            return Exit::Failed.into();
        }
    };
    let exit = match runtime.block_on(cli.command.run(&mut app)) {
        Ok(exit) => exit,
        Err(Error::ReaderGone) => Exit::Ok,
        Err(Error::Interrupted) => Exit::Interrupted,
        Err(e) => {
            app.output.error(&e);
            e.exit()
        }
    };
    // A thread that still reads a terminal for us would be waited for.
    runtime.shutdown_background();
    exit.into()
}
