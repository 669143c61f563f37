//! The exit codes of `clusterctl`. They are public API: scripts may rely on them, and a change is a breaking change.
//!
//! | code | `status` | `doctor` | `plan` | `watch`, `submit --watch` | everything else |
//! | --- | --- | --- | --- | --- | --- |
//! | 0 | healthy | nothing will end a night | it fits | every job followed has completed | done |
//! | 1 | degraded: something needs a person's eye | something will, or may at any time | it does not fit, or there is nothing to plan with | a job failed or was cancelled | refused or failed; nothing was changed unless said |
//! | 2 | unreachable | unreachable | unreachable | unreachable, or lost for longer than it waits | unreachable, or the connection broke |
//! | 64 | the command line is wrong | same | same | same | same |
//! | 130 | — | — | stopped with Ctrl-C | left with Ctrl-C; the jobs go on | stopped with Ctrl-C |
//!
//! A reader that goes away (`clusterctl results j7 | head`) is no error: the exit code is 0.

use std::process::ExitCode;

/// How a run of `clusterctl` ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done; for `status`: healthy; for `plan`: it fits.
    Ok,
    /// Refused or failed; for `status`: degraded; for `plan`: it does not fit.
    Failed,
    /// No controller answered, or the connection to it broke.
    Unreachable,
    /// The command line is wrong (`EX_USAGE` of sysexits.h).
    Usage,
    /// Stopped by a person (128 + SIGINT, as shells have it).
    Interrupted,
}

impl Exit {
    /// The number the shell sees.
    pub fn code(self) -> u8 {
        match self {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Unreachable => 2,
            Exit::Usage => 64,
            Exit::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

/// What `clusterctl --help` says about them.
pub(crate) const HELP: &str = "\
Exit codes:
  0    done; status: healthy; doctor: nothing will end a night; plan: it fits
  1    refused or failed; status: degraded; doctor: something will; plan: it does not fit
  2    the controller is unreachable
  64   wrong usage
  130  stopped with Ctrl-C";
