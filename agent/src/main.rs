//! `cluster-agent`: the command line. Everything it does is in the library.

mod commands;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::Parser as _;

/// Two threads: one may be busy with a large message while the other sends a heartbeat. What blocks has threads of its
/// own.
const RUNTIME_THREADS: usize = 2;

/// For epochs, leftovers and locks, which wait for the disk one at a time.
const BLOCKING_THREADS: usize = 4;

fn main() -> ExitCode {
    let arguments = commands::Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(commands::run(arguments)),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            // Nowhere left to say that stderr is closed.
            let _ = writeln!(io::stderr().lock(), "cluster-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
