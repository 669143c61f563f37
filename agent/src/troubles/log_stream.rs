//! Follows `log stream`: starts it, reads its lines, and starts it again when it ends.

use std::{path::PathBuf, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::Command,
    sync::mpsc,
};

use super::Sign;
use crate::probe::parse::mac::unified_log::{PREDICATE, gpu_line};

/// A line of the log is some kilobytes; what is longer is none that matters.
const MOST_LINE_BYTES: u64 = 64 << 10;

/// From an end of the tool to its next start, doubled with each end.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// However often it ends: it is evidence, and a minute of it may be missing.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// One that ran for so long has not failed, and begins anew with the first pause.
const RAN_WELL: Duration = Duration::from_secs(60);

/// After this the tool ends by itself: of an agent that was killed it would else be left for ever, as it hears of that only when it has
/// something to say.
const TOOL_LIMIT: &str = "10m";

/// Follows the log with this tool until nobody takes its signs any more.
pub async fn follow(tool: PathBuf, signs: mpsc::Sender<Sign>) {
    let mut pause = FIRST_PAUSE;
    let mut told = false;
    loop {
        let begun = tokio::time::Instant::now();
        let ended = tokio::select! {
            () = signs.closed() => return,
            ended = once(&tool, &signs) => ended,
        };
        if begun.elapsed() >= RAN_WELL {
            (pause, told) = (FIRST_PAUSE, false);
        } else if !told {
            let problem = ended.err().map_or_else(|| "it ended".to_owned(), |error| error.to_string());
            tracing::warn!(
                tool = %tool.display(), problem,
                "the system's log cannot be followed now, so that a restart of the GPU is seen by its counter only"
            );
            told = true;
        }
        tokio::select! {
            () = signs.closed() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn once(tool: &PathBuf, signs: &mpsc::Sender<Sign>) -> std::io::Result<()> {
    let mut child = Command::new(tool)
        .args([
            "stream",
            "--style",
            "ndjson",
            "--level",
            "default",
            "--timeout",
            TOOL_LIMIT,
            "--predicate",
            PREDICATE,
        ])
        .env_clear()
        .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // Of the agent's group, with which launchd ends it.
        .kill_on_drop(true)
        .spawn()?;
    let Some(stdout) = child.stdout.take() else { return Ok(()) };
    let mut reader = BufReader::new(stdout);
    let mut line = Vec::new();
    let mut is_rest = false;
    loop {
        line.clear();
        let n = (&mut reader).take(MOST_LINE_BYTES).read_until(b'\n', &mut line).await?;
        if n == 0 {
            return child.wait().await.map(drop);
        }
        let is_whole = line.ends_with(b"\n");
        let was_rest = std::mem::replace(&mut is_rest, !is_whole);
        if was_rest || !is_whole {
            continue;
        }
        if let Some(line) = gpu_line(&String::from_utf8_lossy(&line))
            && signs.send(Sign::Line(line)).await.is_err()
        {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::probe::parse::mac::unified_log::GpuLine;

    fn tool(dir: &Path, script: &str) -> PathBuf {
        let path = dir.join("log");
        crate::scripts::write(&path, script);
        path
    }

    #[tokio::test]
    async fn lines_of_the_gpu_come_out_and_a_tool_that_ends_is_started_again() {
        let dir = tempfile::tempdir().unwrap();
        let long = "x".repeat(200_000);
        let script = format!(
            "echo \"$*\" >> '{0}/arguments'\necho 'Filtering the log data'\necho '{{\"eventMessage\":\"GPURestartSignaled {long}\"}}'\n\
             echo '{{\"eventMessage\":\"GPURestartSignaled\"}}'",
            dir.path().display()
        );
        let (signs, mut taken) = mpsc::channel(4);
        let following = tokio::spawn(follow(tool(dir.path(), &script), signs));
        for _ in 0..2 {
            assert_eq!(taken.recv().await, Some(Sign::Line(GpuLine::Restart)));
        }
        let asked = fs::read_to_string(dir.path().join("arguments")).unwrap();
        assert!(asked.lines().count() >= 2, "it was started again");
        assert!(asked.starts_with(
            "stream --style ndjson --level default --timeout 10m --predicate eventMessage CONTAINS"
        ));
        drop(taken);
        following.await.unwrap();
    }

    #[tokio::test]
    async fn a_tool_that_is_followed_is_ended_with_whoever_follows() {
        let dir = tempfile::tempdir().unwrap();
        let script = format!(
            "echo $$ > '{}/pid'\necho '{{\"eventMessage\":\"GPURestartSignaled\"}}'\nexec sleep 600",
            dir.path().display()
        );
        let (signs, mut taken) = mpsc::channel(1);
        let following = tokio::spawn(follow(tool(dir.path(), &script), signs));
        taken.recv().await.unwrap();
        let pid: u32 = fs::read_to_string(dir.path().join("pid")).unwrap().trim().parse().unwrap();
        assert!(crate::sys::process_start(pid).is_some());
        drop(taken);
        following.await.unwrap();
        while crate::sys::process_start(pid).is_some() {
            tokio::task::yield_now().await;
        }
    }
}
