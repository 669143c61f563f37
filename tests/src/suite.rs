//! Runs end-to-end cases in the way of `cargo test`, and decides at run time which of them this machine can run: a case
//! that cannot is counted as ignored, with the reason, never as passed.

use std::{
    env, fmt,
    future::Future,
    path::Path,
    pin::Pin,
    process::ExitCode,
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::{netns, runtime};

/// No case takes this long; one that does hangs somewhere its own deadlines do not reach.
const CASE_LIMIT: Duration = Duration::from_secs(900);

/// A round of kills takes ten seconds on an idle machine; on a busy one, some of them four times as long.
const ROUND_LIMIT: Duration = Duration::from_secs(120);

/// The jobs that a soak has begun are played to their ends after it, and other cases of the same run wait for it.
const SOAK_LIMIT_PER_SECOND: Duration = Duration::from_secs(2);

/// The whole matrix takes an hour on an idle machine, and its last arena waits for all others.
const MATRIX_LIMIT: Duration = Duration::from_secs(4 * 3600);

/// What a case needs of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// The Python runtime with MLX, or a Python to make it with.
    Runtime,
    /// `/proc`.
    Linux,
    /// The right to mount a file system.
    Mount,
    /// Network namespaces that links join: root on Linux, and the command `ip`.
    Netns,
}

impl Need {
    /// Why the need is not met on this machine.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Linux if Path::new("/proc/self/stat").exists() => None,
            Self::Linux => Some("this system has no /proc".to_owned()),
            Self::Mount if !nix::unistd::geteuid().is_root() => {
                Some("only root can mount the small file system this needs".to_owned())
            }
            Self::Mount if !cfg!(target_os = "linux") => {
                Some("the small file system is a Linux tmpfs".to_owned())
            }
            Self::Mount => None,
            Self::Netns => netns::missing(),
            Self::Runtime => runtime::missing(),
        }
    }
}

type Running = Pin<Box<dyn Future<Output = ()>>>;

/// One case: a name, what it needs, and what it does.
pub struct Case {
    name: String,
    needs: &'static [Need],
    body: Box<dyn FnOnce() -> Running + Send>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("name", &self.name).field("needs", &self.needs).finish_non_exhaustive()
    }
}

/// A case that panics when its promise is broken.
pub fn case<F>(name: &str, needs: &'static [Need], body: impl FnOnce() -> F + Send + 'static) -> Case
where
    F: Future<Output = ()> + 'static,
{
    Case { name: name.to_owned(), needs, body: Box::new(move || Box::pin(body())) }
}

/// Runs the cases that the command line selects, with the arguments and the output of `cargo test`.
#[must_use]
pub fn run(cases: Vec<Case>) -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = cases.into_iter().map(trial).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Longer where more was asked for: more rounds of kills, a longer soak, the whole matrix. Cases that wait for one another wait
/// within their limits.
fn case_limit() -> Duration {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
    let kills = ROUND_LIMIT.saturating_mul(number("NIGHTSHIFT_KILL_ROUNDS"));
    let soak = SOAK_LIMIT_PER_SECOND.saturating_mul(number("NIGHTSHIFT_SOAK_S"));
    let is_whole = env::var("NIGHTSHIFT_MATRIX").is_ok_and(|what| what == "all");
    let matrix = if is_whole { MATRIX_LIMIT } else { Duration::ZERO };
    CASE_LIMIT + kills + soak + matrix
}

fn trial(case: Case) -> Trial {
    let Case { name, needs, body } = case;
    Trial::ignorable_test(name.clone(), move || {
        if let Some(reason) = needs.iter().find_map(|need| need.missing()) {
            // On the machine that decides whether a change lands, silence would be a lie.
            if env::var_os("CI").is_some() && needs.contains(&Need::Runtime) {
                return Err(Failed::from(format!("cannot be run here: {reason}")));
            }
            return Ok(Completion::ignored_with(reason));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|error| Failed::from(format!("no tokio runtime: {error}")))?;
        let started = Instant::now();
        let limit = case_limit();
        let outcome = runtime.block_on(async { tokio::time::timeout(limit, body()).await });
        if env::var_os("NIGHTSHIFT_TIMES").is_some() {
            eprintln!("took {:6.1} s: {name}", started.elapsed().as_secs_f64());
        }
        runtime.shutdown_timeout(Duration::from_secs(5));
        outcome
            .map(|()| Completion::Completed)
            .map_err(|_| Failed::from(format!("{name} was still running after {limit:?} and was given up")))
    })
}
