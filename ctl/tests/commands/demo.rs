//! How the demo fails and how it is left; how it goes well is tested with the real programs (crate nightshift-tests).

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use super::{bench::Bench, program::ended};

/// An agent whose runtime is there, and a controller that does `clusterd`.
fn with_controller(clusterd: &str) -> Bench {
    let bench = Bench::new();
    bench
        .program("cluster-agent", r#"[ "$2" = check ] && echo '{"ready":true,"mlx_version":"0.0"}'; exit 0"#);
    bench.program("clusterd", clusterd);
    bench
}

fn demo(bench: &Bench, args: &[&str]) -> Command {
    bench.clusterctl(&[&["demo"], args].concat())
}

#[test]
fn without_its_siblings_it_says_how_to_build_them() {
    let bench = Bench::new();
    let ended = ended(demo(&bench, &[]));
    assert_eq!((ended.code, ended.stdout.as_str()), (1, ""));
    let here = bench.path().canonicalize().unwrap();
    insta::assert_snapshot!(ended.stderr.replace(here.to_str().unwrap(), "DIR"), @r"
    error: The program clusterd is neither beside clusterctl (DIR) nor in PATH.
    hint:  Build all three programs with: cargo build --release   Then run: target/release/clusterctl demo
    ");
    assert_eq!(bench.left_in_tmp(), 0);
}

#[test]
fn a_controller_that_ends_is_reported_with_its_log_and_everything_is_kept() {
    let bench = with_controller("echo first; echo the ledger is on fire >&2; exit 3");
    let ended = ended(demo(&bench, &[]));
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("   the ledger is on fire\n"), "{}", ended.stderr);
    assert!(ended.stderr.contains("error: clusterd ended by itself (exit code 3)."), "{}", ended.stderr);
    assert!(ended.stderr.contains("Everything is kept in "), "{}", ended.stderr);
    assert_eq!(bench.left_in_tmp(), 1);
}

#[test]
fn ctrl_c_ends_what_was_started_and_removes_the_directory() {
    let bench = with_controller("cd \"$(dirname \"$4\")\" && echo $$ > pid; exec sleep 600");
    let mut child = demo(&bench, &[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let dir = loop {
        let line = lines.next().unwrap().unwrap();
        if let Some((_, dir)) = line.split_once(" on this machine, in ") {
            break dir.trim_end_matches('.').to_owned();
        }
    };
    let pid_file = Path::new(&dir).join("pid");
    let pid = loop {
        match fs::read_to_string(&pid_file) {
            Ok(text) if text.ends_with('\n') => break text.trim().parse::<i32>().unwrap(),
            _ => std::thread::yield_now(),
        }
    };
    let ctl = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(ctl, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None).is_err(), "clusterd still runs");
    assert_eq!(bench.left_in_tmp(), 0);
}

#[test]
fn a_directory_in_use_is_refused() {
    let bench = with_controller("exit 0");
    let ended = ended(demo(&bench, &["--dir", "."]));
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains(" is not empty."), "{}", ended.stderr);
}

#[test]
fn an_install_that_fails_is_an_error() {
    let bench = with_controller("exit 0");
    bench.program(
        "cluster-agent",
        r#"[ "$2" = check ] && echo '{"ready":false,"problem":"no Python"}'; [ "$2" = install ] && echo downloading >&2 && exit 1; exit 0"#,
    );
    let ended = ended(demo(&bench, &[]));
    assert_eq!(ended.code, 1);
    assert!(ended.stdout.contains("The Python runtime is not there yet (no Python)."), "{}", ended.stdout);
    assert!(ended.stderr.contains("downloading\n"), "{}", ended.stderr);
    assert!(ended.stderr.contains("error: The Python runtime could not be installed."), "{}", ended.stderr);
}
