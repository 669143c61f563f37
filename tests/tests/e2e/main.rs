//! The promises of a night, kept by the real programs and real MLX on this machine.
//!
//! `cargo test -p nightshift-tests --test e2e NAME` runs the cases whose name holds NAME. Environment:
//!
//! * `NIGHTSHIFT_KILL_ROUNDS` rounds of each kill case (2), `NIGHTSHIFT_SEED` repeats a run's choices;
//! * `NIGHTSHIFT_AWAY_S` how long the controller stays away (10);
//! * `NIGHTSHIFT_KEEP` keeps the directories of cases that passed, too; `NIGHTSHIFT_TIMES` tells how long each took;
//! * `NIGHTSHIFT_RUNTIME_DIR`, `NIGHTSHIFT_BIN_DIR` an installed runtime and programs built elsewhere.

#![expect(clippy::print_stderr, reason = "a kill case tells its seed, a case of links its times")]

use std::process::ExitCode;

use nightshift_tests::suite;

mod architectures;
mod away;
mod bad_input;
mod bad_models;
mod cables;
mod cli;
mod crashes;
mod disk_full;
mod fields;
mod gangs;
mod generic_client;
mod kills;
mod ladder;
mod links;
mod mac_nights;
mod macs;
mod matrix;
mod memory;
mod plans;
mod reboots;
mod reload;
mod sampling;
mod screens;
mod sharded;
mod soak;
mod steering;
mod uploads;
mod windows;
mod worker_units;

fn main() -> ExitCode {
    // The cheap ones first: a broken build is told within seconds.
    suite::run(
        [
            generic_client::cases(),
            steering::cases(),
            bad_input::cases(),
            uploads::cases(),
            reload::cases(),
            windows::cases(),
            disk_full::cases(),
            cli::cases(),
            macs::cases(),
            reboots::cases(),
            screens::cases(),
            plans::cases(),
            worker_units::cases(),
            bad_models::cases(),
            fields::cases(),
            architectures::cases(),
            memory::cases(),
            crashes::cases(),
            gangs::cases(),
            links::cases(),
            ladder::cases(),
            cables::cases(),
            mac_nights::cases(),
            matrix::cases(),
            soak::cases(),
            sampling::cases(),
            away::cases(),
            kills::cases(),
        ]
        .into_iter()
        .flatten()
        .collect(),
    )
}
