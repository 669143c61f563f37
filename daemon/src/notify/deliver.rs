//! One delivery: the command, then the address. Each is a process of its own in a group of its own, so that whatever it
//! started ends with it when its time is over.

use std::{ffi::OsStr, io, process::Stdio, sync::Arc, time::Duration};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, ChildStderr, Command},
    sync::Mutex,
    time::timeout,
};

use super::Message;
use crate::config::Notify;

/// Of what a failed command wrote to stderr: enough for its error, and no more than fits an event.
const MOST_STDERR_BYTES: usize = 1_000;

/// A child of the command may hold its stderr open for ever.
const STDERR_GRACE: Duration = Duration::from_millis(200);

/// Delivers a message to whoever is configured.
pub(super) async fn deliver(settings: &Notify, message: &Message) -> Result<(), String> {
    let limit = Duration::from_secs(settings.timeout_s);
    let body = message.to_json();
    let mut problems = Vec::new();
    if let [program, arguments @ ..] = settings.command.as_slice() {
        let mut command = Command::new(program);
        command.args(arguments).envs(environment(message));
        if let Err(problem) = run(command, body.as_bytes(), limit).await {
            problems.push(format!("{program} {problem}"));
        }
    }
    if !settings.webhook.is_empty()
        && let Err(problem) = run(curl(settings), body.as_bytes(), limit + STDERR_GRACE).await
    {
        // The address may hold a secret.
        problems.push(format!("the webhook: curl {problem}"));
    }
    if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
}

/// For commands that need no JSON. A zero byte cannot stand in an environment.
fn environment(message: &Message) -> [(&'static str, String); 4] {
    [
        ("NIGHTSHIFT_KIND", message.kind.word().to_owned()),
        ("NIGHTSHIFT_JOB", message.job.map(|job| job.to_string()).unwrap_or_default()),
        ("NIGHTSHIFT_NODE", message.node.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("NIGHTSHIFT_TEXT", message.text.replace('\0', " ")),
    ]
}

fn curl(settings: &Notify) -> Command {
    let mut command = Command::new("curl");
    // Its first argument must be the one that leaves the configuration of whoever runs the controller out.
    command.args(["--disable", "--silent", "--show-error", "--fail", "--proto", "=http,https", "--max-time"]);
    command.arg(settings.timeout_s.to_string());
    command.args([
        "--header",
        "Content-Type: application/json",
        "--data-binary",
        "@-",
        "--output",
        "/dev/null",
    ]);
    command.args([OsStr::new("--url"), OsStr::new(&settings.webhook)]);
    command
}

/// Everything a process started, ended with SIGKILL unless it ended by itself.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may be gone already.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// Runs it with `body` on standard input; why it failed, as the end of a sentence that begins with its name.
async fn run(mut command: Command, body: &[u8], limit: Duration) -> Result<(), String> {
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot be started: {error}"))?;
    let group = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
    let mut guard = Group(group);
    let said = Arc::new(Mutex::new(Vec::new()));
    let reader = child.stderr.take().map(|stderr| tokio::spawn(read(stderr, Arc::clone(&said))));
    let ended = timeout(limit, feed_and_wait(&mut child, body)).await;
    let outcome = match ended {
        Ok(Ok(status)) => {
            guard.0 = None;
            if status.success() { Ok(()) } else { Err(format!("ended with {status}")) }
        }
        Ok(Err(error)) => Err(format!("cannot be waited for: {error}")),
        Err(_) => Err(format!("took longer than {} s and was ended", limit.as_secs())),
    };
    drop(guard);
    if let Some(mut reader) = reader
        && timeout(STDERR_GRACE, &mut reader).await.is_err()
    {
        reader.abort();
    }
    let said = said.lock().await;
    let said = String::from_utf8_lossy(&said).split_whitespace().collect::<Vec<_>>().join(" ");
    outcome.map_err(|problem| if said.is_empty() { problem } else { format!("{problem}: {said}") })
}

async fn feed_and_wait(child: &mut Child, body: &[u8]) -> io::Result<std::process::ExitStatus> {
    if let Some(mut stdin) = child.stdin.take() {
        // A command that does not read it is free not to.
        let _ = stdin.write_all(body).await;
    }
    child.wait().await
}

/// Reads to the end, so that the writer is never kept waiting, and keeps the beginning.
async fn read(mut stderr: ChildStderr, said: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = [0; 1_024];
    while let Ok(read @ 1..) = stderr.read(&mut buffer).await {
        let mut said = said.lock().await;
        let room = MOST_STDERR_BYTES.saturating_sub(said.len()).min(read);
        said.extend_from_slice(&buffer[..room]);
    }
}
