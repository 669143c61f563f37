//! `cluster-agent`: the command line. Everything it does is in the library.

mod commands;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::Parser as _;

/// For epochs, leftovers and locks, which wait for the disk one at a time, and beside them as many inspections of models as
/// there may be at once, each of which reads for seconds where a disk is slow.
const BLOCKING_THREADS: usize = 4 + nightshift_agent::session::inspections::MAX_AT_ONCE;

fn main() -> ExitCode {
    let arguments = commands::Arguments::parse();
    // One thread: a step of a worker then wakes one thread once, which is what supervision costs while a model runs. What
    // can block (disks, probes) has threads of its own, and so has what must not wait (the connection with its heartbeats).
    let runtime = tokio::runtime::Builder::new_current_thread()
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
