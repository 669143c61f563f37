//! Runs the real program.

use std::{
    ffi::OsStr,
    io::Write,
    process::{Command, Stdio},
};

use super::fake::Fake;

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn json(&self) -> serde_json::Value {
        assert_eq!(self.stderr, "");
        serde_json::from_str(&self.stdout).expect("stdout is exactly one JSON value")
    }

    pub(crate) fn json_lines(&self) -> Vec<serde_json::Value> {
        self.stdout
            .lines()
            .map(|line| serde_json::from_str(line).expect("every line is a JSON value"))
            .collect()
    }
}

/// `clusterctl` with an environment of its own: no colour, UTC, no terminal.
pub(crate) fn command(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clusterctl"));
    command.args(args).env_clear().env("TZ", "UTC").stdin(Stdio::null());
    command
}

pub(crate) fn run(args: &[&str]) -> Ended {
    ended(command(args))
}

/// Against a controller of canned data.
pub(crate) fn ask(fake: &Fake, args: &[&str]) -> Ended {
    let address = fake.address.to_string();
    ended(command(["--controller", &address].iter().chain(args)))
}

/// With something on standard input.
pub(crate) fn ask_with_input(fake: &Fake, args: &[&str], input: &[u8]) -> Ended {
    let address = fake.address.to_string();
    let mut command = command(["--controller", &address].iter().chain(args));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    of(child.wait_with_output().unwrap())
}

pub(crate) fn ended(mut command: Command) -> Ended {
    of(command.output().unwrap())
}

fn of(output: std::process::Output) -> Ended {
    Ended {
        code: output.status.code().expect("ended by itself"),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}
