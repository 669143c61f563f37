//! The worker's own tests, in its own language, run by its own runtime.

use std::{path::Path, process::Command};

use nightshift_tests::{
    process, runtime,
    suite::{Case, Need, case},
};

const WORKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../agent/src/worker");

pub(crate) fn cases() -> Vec<Case> {
    vec![case("worker_units::python_unit_tests_pass", &[Need::Runtime], unit_tests)]
}

async fn unit_tests() {
    let worker = Path::new(WORKER);
    assert!(worker.join("tests").is_dir(), "{} has no tests", worker.display());
    let mut command = Command::new(runtime::ensure().python);
    command.args(["-B", "-m", "unittest", "discover", "-s", "tests", "-v"]).current_dir(worker);
    let outcome = process::run(command).await.expect_code(0);
    // unittest says "Ran 0 tests" and exits 0 in older Pythons.
    assert!(!outcome.stderr.contains("Ran 0 tests"), "no test was found:\n{}", outcome.stderr);
}
