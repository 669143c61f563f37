//! With real processes: what is delivered, and that one that hangs or fails delays nobody and is ended.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Handle, Kind, Message, channel, run};
use crate::{
    config::Notify,
    model::{EventDraft, JobId, Severity},
};

/// Far longer than any of it takes.
const LONG: Duration = Duration::from_secs(60);

fn message(text: &str) -> Message {
    Message {
        kind: Kind::JobCompleted,
        severity: Severity::Info,
        unix_ms: 1_795_199_400_000,
        node: Some("a".into()),
        job: Some(JobId(7)),
        text: text.to_owned(),
        left_out: 0,
    }
}

fn shell(script: &str) -> Notify {
    let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    Notify { command, min_interval_s: 0, timeout_s: 1, ..Notify::default() }
}

struct Running {
    handle: Handle,
    news: mpsc::Receiver<EventDraft>,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn start(settings: Notify) -> Running {
    let (handle, inbox) = channel(settings);
    let (sender, news) = mpsc::channel(100);
    let cancel = CancellationToken::new();
    let note = move |draft| {
        let sender = sender.clone();
        async move { sender.send(draft).await.unwrap() }
    };
    let task = tokio::spawn(run(inbox, note, cancel.clone()));
    Running { handle, news, cancel, task }
}

impl Running {
    async fn stop(self) {
        self.cancel.cancel();
        tokio::time::timeout(LONG, self.task).await.expect("it stops at once").unwrap();
    }
}

/// Looks until a file has so many whole lines.
async fn lines(path: &Path, count: usize) -> Vec<String> {
    let deadline = Instant::now() + LONG;
    loop {
        let text = fs::read_to_string(path).unwrap_or_default();
        // What comes after the last of them is still being written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let lines: Vec<String> = whole.lines().map(str::to_owned).collect();
        if lines.len() >= count {
            return lines;
        }
        assert!(Instant::now() < deadline, "{} has only {lines:?}", path.display());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn out_file(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("out")
}

#[tokio::test]
async fn a_command_gets_the_message_on_stdin_and_its_heart_in_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let out = out_file(&dir);
    let script = format!(
        "cat >> {0}; echo \" $NIGHTSHIFT_KIND $NIGHTSHIFT_JOB $NIGHTSHIFT_NODE $NIGHTSHIFT_TEXT\" >> {0}",
        out.display()
    );
    let running = start(shell(&script));
    running.handle.tell(message("it is done"));
    running.handle.tell(Message { kind: Kind::JobCancelled, ..message("not asked for") });
    running.handle.tell(message("and another"));
    let lines = lines(&out, 2).await;
    let (json, environment) = lines[0].split_once("} ").unwrap();
    let json: serde_json::Value = serde_json::from_str(&format!("{json}}}")).unwrap();
    assert_eq!((json["job"].as_str(), json["text"].as_str()), (Some("j7"), Some("it is done")));
    assert_eq!(environment, "job-completed j7 a it is done");
    assert!(lines[1].ends_with("and another"), "{lines:?}");
    running.stop().await;
}

#[tokio::test]
async fn one_that_hangs_delays_nobody_and_is_ended_with_its_children() {
    let dir = tempfile::tempdir().unwrap();
    let out = out_file(&dir);
    // The child's child is the one that must not be left over.
    let script = format!("sleep 600 & echo $! >> {}; echo busy >&2; wait", out.display());
    let mut running = start(shell(&script));
    let began = Instant::now();
    for number in 0..10_000 {
        running.handle.tell(message(&number.to_string()));
    }
    assert!(began.elapsed() < Duration::from_secs(1), "telling never waits: {:?}", began.elapsed());
    let sleeper = lines(&out, 1).await[0].parse::<i32>().unwrap();
    let failed = tokio::time::timeout(LONG, running.news.recv()).await.unwrap().unwrap();
    assert_eq!((failed.kind.as_str(), failed.severity), ("notify-failed", Severity::Warning));
    assert!(
        failed.message.contains("/bin/sh took longer than 1 s and was ended: busy"),
        "{}",
        failed.message
    );
    let deadline = Instant::now() + LONG;
    // One that is a zombie of somebody else's has ended, too.
    let is_alive = || {
        let state = fs::read_to_string(format!("/proc/{sleeper}/stat")).unwrap_or_default();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(sleeper), None).is_ok() && !state.contains(") Z ")
    };
    while is_alive() {
        assert!(Instant::now() < deadline, "the child's child is left over");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    running.stop().await;
}

#[tokio::test]
async fn a_row_of_failures_is_one_warning_and_one_word_when_it_works_again() {
    let dir = tempfile::tempdir().unwrap();
    let out = out_file(&dir);
    let script = format!("echo tried >> {}; echo no such printer >&2; exit 3", out.display());
    let mut running = start(shell(&script));
    for _ in 0..3 {
        running.handle.tell(message("x"));
    }
    lines(&out, 3).await;
    let failed = running.news.recv().await.unwrap();
    assert!(failed.message.contains("ended with exit status: 3: no such printer"), "{}", failed.message);
    running.handle.configure(shell("true"));
    running.handle.tell(message("y"));
    let works = tokio::time::timeout(LONG, running.news.recv()).await.unwrap().unwrap();
    assert_eq!(works.kind, "notify-works", "nothing was said in between");
    running.handle.configure(Notify { command: vec!["/no/such/program".to_owned()], ..shell("true") });
    running.handle.tell(message("z"));
    let failed = tokio::time::timeout(LONG, running.news.recv()).await.unwrap().unwrap();
    assert!(failed.message.contains("/no/such/program cannot be started"), "{}", failed.message);
    running.stop().await;
}

#[tokio::test]
async fn stopping_ends_a_delivery_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let out = out_file(&dir);
    let settings = Notify { timeout_s: 600, ..shell(&format!("echo begun >> {}; sleep 600", out.display())) };
    let running = start(settings);
    running.handle.tell(message("x"));
    lines(&out, 1).await;
    running.stop().await;
}
