//! The bounds Nightshift is built to, measured: `cargo bench -p nightshift-tests`.
//!
//! Prints one line a figure with its bound and a verdict; `--quick` (or `NIGHTSHIFT_BENCH_QUICK=1`) takes smaller sizes,
//! `--check` makes a missed bound the exit code, and a word selects the parts whose name holds it (`planner`,
//! `controller`, `supervision`, `gang`, `idle`, `latency`,
//! `recovery`). A wrong answer is a failure always: what is counted here is also checked.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints")]

use std::{env, process::ExitCode};

use nightshift_tests::suite::Need;
use table::Table;

mod controller;
mod gang;
mod idle;
mod latency;
mod planner;
mod recovery;
mod speed;
mod supervision;
mod table;

fn main() -> ExitCode {
    // cargo adds --bench of its own.
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let quick = arguments.iter().any(|argument| argument == "--quick")
        || env::var("NIGHTSHIFT_BENCH_QUICK").is_ok_and(|value| value != "0");
    let check = arguments.iter().any(|argument| argument == "--check");
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with("--")).collect();
    let selected = |part: &str| wanted.is_empty() || wanted.iter().any(|word| part.contains(word.as_str()));

    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no tokio runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut table = Table::new(quick);
    runtime.block_on(async {
        if selected("planner") {
            planner::measure(&mut table, quick);
        }
        if selected("controller") {
            controller::measure(&mut table, quick).await;
        }
        for part in
            ["idle", "latency", "recovery", "supervision", "gang"].into_iter().filter(|part| selected(part))
        {
            let needs: &[Need] = match part {
                "recovery" => &[Need::Linux, Need::Runtime, Need::Netns],
                _ => &[Need::Linux, Need::Runtime],
            };
            if let Some(reason) = needs.iter().find_map(|need| need.missing()) {
                table.skipped(part, &reason);
                continue;
            }
            match part {
                "idle" => idle::measure(&mut table, quick).await,
                "latency" => latency::measure(&mut table, quick).await,
                "recovery" => recovery::measure(&mut table, quick).await,
                "gang" => gang::measure(&mut table, quick).await,
                _ => supervision::measure(&mut table, quick).await,
            }
        }
    });
    table.print();
    if check && table.missed() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
