//! Is the runtime fit to run workers?
//!
//! [`check`] imports what a worker imports: seconds, and certain. [`glance`] only asks the interpreter which versions it
//! has: milliseconds, for the agent's start. What it does not see, the first worker says.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use nightshift_proto::v1;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::{
    interpreter,
    marker::{self, Kind},
    requirements,
};
use crate::{util, worker::account::Account};

/// Importing takes 2 s on a quiet machine (FIELD-NOTES 1); a cold disk and busy processors are allowed for.
const CHECK_LIMIT: Duration = Duration::from_secs(120);

/// For an interpreter to say its versions.
const GLANCE_LIMIT: Duration = Duration::from_secs(20);

/// Prints one JSON object; with an argument, after importing what a worker imports.
const SCRIPT: &str = "
import json, sys
from importlib.metadata import version
answer = {'python_version': '%d.%d.%d' % sys.version_info[:3]}
try:
    answer['mlx_version'] = version('mlx')
    answer['mlx_lm_version'] = version('mlx-lm')
    if sys.argv[1:]:
        import mlx.core, mlx_lm
except Exception as error:
    answer['problem'] = '%s: %s' % (type(error).__name__, error)
print(json.dumps(answer))
";

/// What `cluster-agent runtime check --json` prints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Whether workers can run.
    pub ready: bool,
    /// Of the runtime's interpreter.
    pub python_version: Option<String>,
    /// As installed.
    pub mlx_version: Option<String>,
    /// As installed.
    pub mlx_lm_version: Option<String>,
    /// The runtime's interpreter.
    pub python: PathBuf,
    /// When not ready: what is wrong and what to do.
    pub problem: Option<String>,
}

impl Status {
    /// Of a runtime that workers cannot use, for this reason.
    #[must_use]
    pub fn unfit(dir: &Path, problem: String) -> Self {
        Self { python: interpreter(dir), problem: Some(problem), ..Self::default() }
    }

    /// The message of the session protocol.
    #[must_use]
    pub fn to_proto(&self) -> v1::RuntimeStatus {
        v1::RuntimeStatus {
            ready: self.ready,
            python_version: self.python_version.clone().unwrap_or_default(),
            mlx_version: self.mlx_version.clone().unwrap_or_default(),
            mlx_lm_version: self.mlx_lm_version.clone().unwrap_or_default(),
            problem: self.problem.clone().unwrap_or_default(),
        }
    }
}

/// What the script prints.
#[derive(Debug, Default, Deserialize)]
struct Answer {
    python_version: Option<String>,
    mlx_version: Option<String>,
    mlx_lm_version: Option<String>,
    problem: Option<String>,
}

/// Imports MLX and mlx-lm in the runtime of `dir` and compares their versions with the pinned ones.
pub async fn check(dir: &Path) -> Status {
    look(dir, &["import"], CHECK_LIMIT, None).await
}

/// The same without importing, and without trusting an installation that was broken off or made from other
/// requirements. As this user, where one is given: whoever owns the interpreter may put anything in its place.
pub async fn glance(dir: &Path, account: Option<&Account>) -> Status {
    let problem = match marker::kind(dir) {
        Ok(Kind::Ready(marker)) if marker.requirements_hash != requirements::hash() => {
            "the runtime was made by another version of cluster-agent; run `cluster-agent runtime install`"
                .to_owned()
        }
        Ok(Kind::Broken) => {
            "the installation of the runtime was broken off; run `cluster-agent runtime install`".to_owned()
        }
        Ok(Kind::Ready(_) | Kind::Vacant | Kind::Foreign) => {
            return look(dir, &[], GLANCE_LIMIT, account).await;
        }
        Err(error) => format!("the runtime in {} cannot be read: {error}", dir.display()),
    };
    Status::unfit(dir, problem)
}

async fn look(dir: &Path, arguments: &[&str], limit: Duration, account: Option<&Account>) -> Status {
    let python = interpreter(dir);
    if !python.exists() {
        return Status::unfit(
            dir,
            format!("there is no runtime in {}; run `cluster-agent runtime install`", dir.display()),
        );
    }
    let output = match run(&python, arguments, limit, account).await {
        Ok(output) => output,
        Err(problem) => return Status::unfit(dir, format!("{problem}; run `cluster-agent runtime install`")),
    };
    let answer: Answer = serde_json::from_str(output.trim()).unwrap_or_else(|_| Answer {
        problem: Some(format!("it says {:?}", util::clip(output.trim(), 200))),
        ..Answer::default()
    });
    let problem = answer.problem.map(|problem| format!("MLX cannot be used: {problem}")).or_else(|| {
        let (mlx, mlx_lm) = (answer.mlx_version.as_deref(), answer.mlx_lm_version.as_deref());
        different("mlx", mlx).or_else(|| different("mlx-lm", mlx_lm))
    });
    Status {
        ready: problem.is_none(),
        python_version: answer.python_version,
        mlx_version: answer.mlx_version,
        mlx_lm_version: answer.mlx_lm_version,
        python,
        problem: problem.map(|problem| format!("{problem}; run `cluster-agent runtime install`")),
    }
}

fn different(package: &str, found: Option<&str>) -> Option<String> {
    let wanted = requirements::version(package);
    (found != wanted).then(|| {
        format!("{package} is {} and {} is wanted", found.unwrap_or("absent"), wanted.unwrap_or("another"))
    })
}

async fn run(
    python: &Path,
    arguments: &[&str],
    limit: Duration,
    account: Option<&Account>,
) -> Result<String, String> {
    let mut command = Command::new(python);
    command.args(["-E", "-s", "-B", "-c", SCRIPT]).args(arguments).kill_on_drop(true);
    if let Some(account) = account {
        command.uid(account.uid).gid(account.gid).current_dir("/");
    }
    let output = tokio::time::timeout(limit, command.output())
        .await
        .map_err(|_| format!("{} did not answer within {} s", python.display(), limit.as_secs()))?
        .map_err(|error| format!("{} does not run: {error}", python.display()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    Err(format!("{} ended with {}: {}", python.display(), output.status, util::clip(said, 200)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::runtime::python::tests::fake;

    async fn check_with(script: &str) -> Status {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        fake(&dir.path().join("bin"), "python", script);
        check(dir.path()).await
    }

    #[tokio::test]
    async fn versions_are_compared() {
        let good = check_with(
            r#"echo '{"python_version":"3.11.7","mlx_version":"0.32.4","mlx_lm_version":"0.32.2"}'"#,
        )
        .await;
        assert!(good.ready, "{good:?}");
        let other = check_with(
            r#"echo '{"python_version":"3.11.7","mlx_version":"0.31.0","mlx_lm_version":"0.32.2"}'"#,
        )
        .await;
        assert_eq!(
            other.problem.as_deref(),
            Some("mlx is 0.31.0 and 0.32.4 is wanted; run `cluster-agent runtime install`")
        );
    }

    #[tokio::test]
    async fn each_way_of_being_unfit_is_said() {
        for (script, says) in [
            (r#"echo '{"problem":"ImportError: no mlx"}'"#, "MLX cannot be used: ImportError: no mlx"),
            ("echo hello", "it says \"hello\""),
            ("echo 'dyld: missing' >&2; exit 1", "ended with exit status: 1: dyld: missing"),
        ] {
            let status = check_with(script).await;
            assert!(!status.ready && status.problem.as_ref().unwrap().contains(says), "{status:?}");
        }
        let absent = check(Path::new("/nonexistent")).await;
        assert!(absent.problem.unwrap().starts_with("there is no runtime in /nonexistent"));
    }
}
