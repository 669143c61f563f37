//! Thousands of nights in virtual time: the real recovery machine, planner and ledger against simulated nodes, links, clocks
//! and disks.
//!
//! A night is eight hours. Jobs arrive, faults strike (`faults.rs`), the controller crashes amid writes of its ledger, whose
//! disk then holds what a real one could (`nightshift_daemon::ledger::sim`). After each event the promises are checked
//! (`checks.rs`); in its last part nothing strikes any more, and every job must end with every row.
//!
//! * `cargo test -p nightshift-tests --test sim` plays 2,000 nights, after those of `regressions.txt`;
//! * `NIGHTSHIFT_SEEDS=100000` plays as many, `NIGHTSHIFT_SEEDS=20000..30000` a part of them; `NIGHTSHIFT_SEED=17` plays one,
//!   and writes its whole trace;
//! * a night that fails tells its seed and the end of its trace.
//!
//! What ticks a hundred times in ten calm seconds ticks once here, right after everybody alive was heard; around whatever
//! happens, the clock is fine. Checkpoints are a minute apart, not five seconds.

mod agent;
mod checks;
mod controller;
mod faults;
mod night;
mod planted;
mod worlds;

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use night::Night;
use planted::Planted;

/// Played in every test run.
const SEEDS: u64 = 2_000;

/// Lines of a failed night's trace that are printed.
const TRACE_LINES: usize = 60;

/// Nights a planted bug may hide in.
const SEEDS_FOR_A_BUG: u64 = 300;

/// Why a night failed, and the end of its trace; none is kept where no line of it is wanted, which is a tenth of the time.
fn play(seed: u64, planted: Planted, trace_lines: usize) -> Result<Night, String> {
    let mut night = Night::new(seed, planted, trace_lines > 0);
    match catch_unwind(AssertUnwindSafe(|| night.run())) {
        Ok(()) => Ok(night),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            let trace =
                night.trace.iter().rev().take(trace_lines).rev().cloned().collect::<Vec<_>>().join("\n");
            Err(format!("{trace}\nseed {seed}: {}", text.unwrap_or_default()))
        }
    }
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// The nights to play.
fn seeds() -> Range<u64> {
    let Ok(asked) = std::env::var("NIGHTSHIFT_SEEDS") else { return 0..SEEDS };
    let number = |text: &str| {
        text.parse().unwrap_or_else(|_| panic!("NIGHTSHIFT_SEEDS={asked} is no number or range"))
    };
    match asked.split_once("..") {
        Some((from, to)) => number(from)..number(to),
        None => 0..number(&asked),
    }
}

/// Nights that failed once.
fn regressions() -> Vec<u64> {
    let lines = include_str!("regressions.txt").lines();
    lines
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .collect()
}

#[test]
fn no_night_breaks_a_promise() {
    if let Some(seed) = variable("NIGHTSHIFT_SEED") {
        let outcome = play(seed, Planted::None, usize::MAX);
        let trace = match &outcome {
            Ok(night) => night.trace.join("\n"),
            Err(text) => text.clone(),
        };
        eprintln!("{trace}");
        assert!(outcome.is_ok(), "seed {seed} fails");
        return;
    }
    // What a failed night says is printed here once, not by each thread as it panics.
    std::panic::set_hook(Box::new(|_| {}));
    let seeds: Vec<u64> = regressions().into_iter().chain(seeds()).collect();
    let (next, failed) = (AtomicU64::new(0), Mutex::new(Vec::<(u64, String)>::new()));
    let totals = Mutex::new(night::Totals::default());
    let threads = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let at = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap();
                    let Some(seed) = seeds.get(at).filter(|_| failed.lock().unwrap().len() < 5) else {
                        return;
                    };
                    match play(*seed, Planted::None, 0) {
                        Ok(night) => totals.lock().unwrap().add(&night.totals),
                        Err(text) => {
                            let with_trace = play(*seed, Planted::None, TRACE_LINES).err();
                            failed.lock().unwrap().push((*seed, with_trace.unwrap_or(text)));
                        }
                    }
                }
            });
        }
    });
    let _ = std::panic::take_hook();
    let mut failed = failed.into_inner().unwrap();
    failed.sort();
    if let Some((seed, text)) = failed.first() {
        let others: Vec<u64> = failed.iter().skip(1).map(|(seed, _)| *seed).collect();
        panic!(
            "{text}\nreplay it: NIGHTSHIFT_SEED={seed} cargo test -p nightshift-tests --test sim; others: {others:?}"
        );
    }
    let totals = totals.into_inner().unwrap();
    eprintln!("{} nights: {totals:?}", seeds.len());
    // A simulator in which nothing happens would promise much.
    if seeds.len() as u64 >= SEEDS {
        let never = totals.what_never_happened();
        assert!(never.is_empty(), "in so many nights there was never: {never:?}");
    }
}

#[test]
fn the_same_seed_is_the_same_night() {
    for seed in [1, 2, 3, 50] {
        let trace = |_| play(seed, Planted::None, TRACE_LINES).unwrap_or_else(|text| panic!("{text}")).trace;
        assert_eq!(trace(0), trace(1), "seed {seed}");
    }
}

/// The simulator is worth something only if it catches what it is there for.
#[test]
fn every_planted_bug_is_caught() {
    let mut missed = Vec::new();
    for bug in Planted::ALL {
        let caught = (0..SEEDS_FOR_A_BUG).find_map(|seed| Some((seed, play(seed, *bug, 0).err()?)));
        match caught {
            Some((seed, text)) => {
                let last = text.lines().last().unwrap_or_default().chars().take(160).collect::<String>();
                eprintln!("{bug:?}: caught after {} nights: {last}", seed + 1);
            }
            None => missed.push(*bug),
        }
    }
    assert!(missed.is_empty(), "not caught in {SEEDS_FOR_A_BUG} nights: {missed:?}");
}
