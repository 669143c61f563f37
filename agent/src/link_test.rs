//! Tries a link to another node: one of two ranks that have no model, and sums of which the answer is known (link_test.py).
//!
//! Promises: one test at a time on a node, so that two do not share what they measure; it takes no longer than its limit, and no
//! process of it outlives it; what says nothing of the link, such as a runtime that is not ready, is told as a test that was not
//! made; a test over RDMA is one of the starts of this boot ([`starts`](crate::gang::starts)), counted before it is made.

use std::{
    os::unix::process::ExitStatusExt as _,
    process::ExitStatus,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nightshift_proto::v1::{self, ExitClass, LinkTestOutcome};
use nix::sys::signal::Signal;
use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, ChildStdin},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    gang::{self, Launch},
    logging::Source,
    runtime,
    worker::{
        Key,
        faults::{Evidence, Scan, classify},
        log,
        process::{Group, Process},
        protocol::{Command, Event, Fatal, GangInit, Measured},
        reader::Reader,
    },
};

/// The job of tests. Jobs begin at 1, so that no worker has the name of one.
pub const NO_JOB: u64 = 0;

/// Where the controller names no limit: Python and MLX are imported in seconds, even on a machine that is busy, and then the ranks
/// have half a minute to meet and a quarter for the sums.
const DEFAULT_LIMIT: Duration = Duration::from_secs(60);

/// Nobody needs longer; a confused controller cannot keep the place for other tests.
const MAX_LIMIT: Duration = Duration::from_secs(300);

/// Once the process has closed its output, for it to be gone.
const LAST_LIMIT: Duration = Duration::from_secs(5);

/// For what was killed to be gone, and again for the end of its log. It takes milliseconds; what hangs in the kernel is not waited for.
const KILL_LIMIT: Duration = Duration::from_secs(1);

/// A test that can be made.
#[derive(Debug)]
pub struct Planned {
    /// Comes back in the answer.
    pub request_id: u64,
    /// Under which its files lie.
    pub key: Key,
    /// What its rank needs.
    pub launch: Launch,
    limit: Duration,
}

/// The rank here as it is to be started, or why there will be none.
///
/// # Errors
/// One sentence for the controller.
pub fn plan(test: &v1::TestLink, runtime: &runtime::Status, node: gang::Node<'_>) -> Result<Planned, String> {
    if !runtime.ready {
        let problem = runtime.problem.as_deref().unwrap_or("it is not ready");
        return Err(format!("the Python runtime cannot run workers: {problem}"));
    }
    let gang = test.gang.as_ref().ok_or("the command names no ranks")?;
    if gang.world_size != 2 {
        return Err(format!("a link is tried by two ranks, and the command names {}", gang.world_size));
    }
    let key = Key { job_id: NO_JOB, epoch: test.request_id, rank: test.rank };
    let launch = gang::prepare(gang, key, node)?;
    let limit = match test.limit_ms {
        0 => DEFAULT_LIMIT,
        ms => Duration::from_millis(ms).min(MAX_LIMIT),
    };
    Ok(Planned { request_id: test.request_id, key, launch, limit })
}

/// The answer where nothing was tried.
#[must_use]
pub fn not_made(request_id: u64, problem: String) -> v1::LinkTested {
    v1::LinkTested { request_id, outcome: LinkTestOutcome::NotMade.into(), problem, ..Default::default() }
}

/// Sees a started rank to its end. `None` when `stop` was cancelled before. Whichever it is, its process is gone then; dropped
/// before, be it at once, this ends it.
pub fn run(
    planned: Planned,
    process: Process,
    log: Arc<Source>,
    stop: CancellationToken,
) -> impl Future<Output = Option<v1::LinkTested>> + Send {
    let Planned { request_id, launch, limit, .. } = planned;
    let mut rank = Rank::new(process, log);
    async move {
        tokio::select! {
            ended = rank.see_out(&launch.init, limit) => Some(answer(request_id, ended)),
            () = stop.cancelled() => {
                rank.end().await;
                None
            }
        }
    }
}

/// How a test ended: with what was measured, or with what went wrong.
type End = Result<Measured, (ExitClass, String)>;

fn answer(request_id: u64, ended: End) -> v1::LinkTested {
    match ended {
        Ok(Measured { round_trip_us, bytes_per_s }) => v1::LinkTested {
            request_id,
            outcome: LinkTestOutcome::Passed.into(),
            problem: String::new(),
            round_trip_us,
            bytes_per_s,
        },
        Err((ExitClass::LinkFault | ExitClass::Apart | ExitClass::CanaryFailed, problem)) => v1::LinkTested {
            request_id,
            outcome: LinkTestOutcome::Failed.into(),
            problem,
            ..Default::default()
        },
        Err((_, problem)) => not_made(request_id, problem),
    }
}

/// What a rank said, up to the end of its output or to what is not of the protocol, and how it ended then.
#[derive(Debug, Default)]
struct Words {
    measured: Option<Measured>,
    fatal: Option<Fatal>,
    fault: Option<String>,
    status: Option<ExitStatus>,
}

/// A started rank. Dropped, it ends with all it has started.
struct Rank {
    child: Child,
    /// `None` once it has ended in order: the number may be another's then.
    group: Option<Group>,
    stdin: ChildStdin,
    stdout: Reader,
    logged: JoinHandle<()>,
    scan: Arc<Mutex<Scan>>,
}

impl Drop for Rank {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Rank {
    fn new(process: Process, log: Arc<Source>) -> Self {
        let Process { child, group, stdin, stdout, stderr } = process;
        let scan: Arc<Mutex<Scan>> = Arc::default();
        let logged = tokio::spawn(log::read(stderr, log, Arc::clone(&scan)));
        Self { child, group: Some(group), stdin, stdout, logged, scan }
    }

    async fn see_out(&mut self, init: &GangInit, limit: Duration) -> End {
        let Ok(words) = timeout(limit, self.converse(init)).await else {
            self.end().await;
            return Err((ExitClass::Killed, self.too_late(limit)));
        };
        let Words { measured, fatal, fault, status } = words;
        if let Some(measured) = measured
            && status.is_some_and(|status| status.success())
            && fatal.is_none()
            && fault.is_none()
        {
            self.group = None;
            return Ok(measured);
        }
        self.end().await;
        let evidence = Evidence {
            fault: fault.as_deref(),
            fatal: fatal.as_ref(),
            exit_code: status.and_then(|status| status.code()),
            signal: status.and_then(|status| status.signal()),
            ..Evidence::default()
        };
        Err(classify(&evidence, &self.scan.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    async fn converse(&mut self, init: &GangInit) -> Words {
        let told = Command::TestLink { gang: init, rank: init.rank, world_size: init.world_size }.to_line();
        // A process that does not take it is ending, which is seen below.
        let _ = self.stdin.write_all(&told).await;
        let mut words = Words::default();
        while let Some(batch) = self.stdout.next().await {
            for event in batch.events {
                match event {
                    Ok(Event::Measured(found)) => words.measured = Some(found),
                    Ok(Event::Fatal(found)) => words.fatal = Some(found),
                    Ok(_) => {}
                    Err(problem) => words.fault = Some(problem),
                }
            }
            // What speaks another language goes on for ever, perhaps.
            if words.fault.is_some() {
                return words;
            }
        }
        words.status = timeout(LAST_LIMIT, self.child.wait()).await.ok().and_then(Result::ok);
        words
    }

    /// All that a rank does has bounds of its own, with words of their own: that none of them came says nothing of the link, but that
    /// the machine was too busy, or that something hangs.
    fn too_late(&self, limit: Duration) -> String {
        let scan = self.scan.lock().unwrap_or_else(PoisonError::into_inner);
        let logged = scan.first_error().map(|error| format!("; the first error in its log: {error}"));
        format!("it was not done within {:.0} s{}", limit.as_secs_f64(), logged.unwrap_or_default())
    }

    /// Ends it now. Its log is whole then.
    async fn end(&mut self) {
        self.kill();
        let _ = timeout(KILL_LIMIT, self.child.wait()).await;
        // The log ends with the last process of the group.
        let _ = timeout(KILL_LIMIT, &mut self.logged).await;
    }

    /// No model is in memory, so there is nothing to be gentle with.
    fn kill(&self) {
        if let Some(group) = self.group {
            group.signal(Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use nightshift_proto::v1::{Backend, Mode, Peer};

    use super::*;
    use crate::{
        gang::starts::StartBudget,
        logging::LogStore,
        worker::process::{Launcher, LauncherOptions},
    };

    fn test(backend: Backend) -> v1::TestLink {
        let peer = |rank: u32, node: &str| Peer {
            rank,
            node_id: node.to_owned(),
            addresses: vec![format!("10.0.0.{}:47001", rank + 1)],
            control_addresses: vec!["10.0.0.1:47000".to_owned()],
            rdma_devices: if rank == 0 {
                vec![String::new(), "rdma_en5".into()]
            } else {
                vec!["rdma_en4".into(), String::new()]
            },
            ..Default::default()
        };
        let gang = v1::Gang {
            mode: Mode::Tensor.into(),
            backend: backend.into(),
            world_size: 2,
            peers: vec![peer(0, "n1"), peer(1, "n2")],
            coordinator: "192.168.1.1:47002".to_owned(),
            rendezvous_timeout_ms: 30_000,
            secret: vec![7; 32],
            canary: None,
        };
        v1::TestLink { request_id: 9, gang: Some(gang), rank: 1, limit_ms: 0 }
    }

    static NO_STARTS: StartBudget = StartBudget { boot_id: None, used: 0 };

    fn mac() -> gang::Node<'static> {
        gang::Node { node_id: "n2", macos: true, starts: &NO_STARTS }
    }

    fn ready() -> runtime::Status {
        runtime::Status { ready: true, ..Default::default() }
    }

    #[test]
    fn a_test_is_planned_like_a_rank_and_over_rdma_counts_as_one() {
        let ring = plan(&test(Backend::Ring), &ready(), mac()).unwrap();
        assert_eq!((ring.request_id, ring.key.to_string().as_str()), (9, "j0/e9/r1"));
        assert_eq!((ring.limit, ring.launch.counts()), (DEFAULT_LIMIT, false));
        assert!(plan(&test(Backend::Jaccl), &ready(), mac()).unwrap().launch.counts());
        let endless = v1::TestLink { limit_ms: u64::MAX, ..test(Backend::Ring) };
        assert_eq!(plan(&endless, &ready(), mac()).unwrap().limit, MAX_LIMIT);
    }

    #[test]
    fn what_cannot_be_tried_is_said() {
        let unfit = runtime::Status { problem: Some("no MLX".into()), ..Default::default() };
        let of_three = {
            let mut test = test(Backend::Ring);
            test.gang.as_mut().unwrap().world_size = 3;
            test
        };
        let spent = StartBudget { boot_id: None, used: 5 };
        let cases = [
            (plan(&test(Backend::Ring), &unfit, mac()), "the Python runtime cannot run workers: no MLX"),
            (plan(&v1::TestLink::default(), &ready(), mac()), "the command names no ranks"),
            (plan(&of_three, &ready(), mac()), "a link is tried by two ranks, and the command names 3"),
            (
                plan(&test(Backend::Jaccl), &ready(), gang::Node { macos: false, ..mac() }),
                "jaccl needs RDMA over Thunderbolt, which only macOS has: use ring",
            ),
            (
                plan(&test(Backend::Jaccl), &ready(), gang::Node { starts: &spent, ..mac() }),
                "all 5 RDMA (jaccl) starts of this boot are used up, and each can cost resources that only a restart of \
                 the machine brings back: use ring until then",
            ),
        ];
        for (planned, says) in cases {
            assert_eq!(planned.map(|planned| planned.key).unwrap_err(), says);
        }
    }

    /// Request 9, rank 1, over ring.
    pub(crate) fn planned(limit_ms: u64) -> Planned {
        plan(&v1::TestLink { limit_ms, ..test(Backend::Ring) }, &ready(), mac()).unwrap()
    }

    /// Starts a shell in the place of Python.
    pub(crate) fn launcher(dir: &Path, script: &str) -> Launcher {
        let words = ["/bin/sh", "-c", script].map(str::to_owned);
        Launcher::new(LauncherOptions {
            python: dir,
            code_dir: dir,
            dir,
            hf_home: None,
            hf_hub_offline: None,
            command: Some(&words),
            account: None,
        })
    }

    async fn tried(script: &str, limit_ms: u64) -> v1::LinkTested {
        let dir = tempfile::tempdir().unwrap();
        let process = launcher(dir.path(), script).start(&[]).unwrap();
        let log = Arc::new(LogStore::default().open("link-test", None));
        run(planned(limit_ms), process, log, CancellationToken::new()).await.unwrap()
    }

    const MEASURED: &str = r#"echo '{"ev":"measured","round_trip_us":35,"bytes_per_s":8000}'"#;

    fn ended(tested: &v1::LinkTested) -> (LinkTestOutcome, &str) {
        (tested.outcome(), tested.problem.as_str())
    }

    #[tokio::test]
    async fn a_rank_that_measures_and_ends_in_order_has_passed() {
        // It is told what to do first.
        let tested = tried(&format!("read line; case $line in *test_link*) {MEASURED};; esac"), 0).await;
        let passed = v1::LinkTested {
            request_id: 9,
            outcome: LinkTestOutcome::Passed.into(),
            problem: String::new(),
            round_trip_us: 35,
            bytes_per_s: 8000,
        };
        assert_eq!(tested, passed);
    }

    #[tokio::test]
    async fn faults_of_the_link_fail_it_and_others_say_nothing_of_it() {
        use LinkTestOutcome::{Failed, NotMade};
        let fatal = |class: &str| {
            format!(r#"echo '{{"ev":"fatal","class":"{class}","message":"so it is"}}'; exit 3"#)
        };
        let cases = [
            (fatal("link_fault"), Failed, "so it is"),
            (fatal("apart"), Failed, "so it is"),
            (fatal("canary_failed"), Failed, "so it is"),
            (fatal("crashed"), NotMade, "so it is"),
            // After it has measured, too.
            (format!("{MEASURED}; {}", fatal("link_fault")), Failed, "so it is"),
            (format!("{MEASURED}; exit 1"), NotMade, "ended with exit code 1"),
            (
                "echo rubbish; exec sleep 600".to_owned(),
                NotMade,
                "the worker wrote a line that is not of the protocol (expected value at line 1 column 1): rubbish",
            ),
            ("exit 0".to_owned(), NotMade, "ended by itself without being asked to"),
            (
                "echo '[ring] connection to a peer was lost' >&2; kill -SEGV $$".to_owned(),
                Failed,
                "[ring] connection to a peer was lost",
            ),
        ];
        for (script, outcome, problem) in cases {
            let tested = tried(&script, 0).await;
            assert_eq!((tested.request_id, ended(&tested)), (9, (outcome, problem)), "{script}");
        }
    }

    #[tokio::test]
    async fn one_that_does_not_end_is_ended_with_all_it_started_and_says_nothing_of_the_link() {
        let dir = tempfile::tempdir().unwrap();
        let pids = dir.path().join("pids");
        let script = format!(
            "echo '[ring] waits' >&2; sleep 600 & echo $! > {0}; echo $$ >> {0}; wait",
            pids.display()
        );
        // The limit is also the time in which the shell writes them, on a machine that may be busy.
        for limit_s in [1, 5, 25, 125] {
            let tested = tried(&script, 1_000 * limit_s).await;
            let written = std::fs::read_to_string(&pids).unwrap_or_default();
            let pids: Vec<_> = written.lines().filter_map(|pid| pid.parse().ok()).collect();
            for pid in &pids {
                let pid = nix::unistd::Pid::from_raw(*pid);
                // Gone, or a zombie until its parent looks; what is killed runs no more.
                let gone = async {
                    while runs(pid) {
                        tokio::task::yield_now().await
                    }
                };
                timeout(Duration::from_secs(30), gone).await.unwrap();
            }
            if pids.len() == 2 {
                let said =
                    format!("it was not done within {limit_s} s; the first error in its log: [ring] waits");
                assert_eq!(ended(&tested), (LinkTestOutcome::NotMade, said.as_str()));
                return;
            }
        }
        panic!("two minutes are not enough for a shell to begin");
    }

    #[tokio::test]
    async fn one_that_is_stopped_gives_no_answer_and_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let process = launcher(dir.path(), "exec sleep 600").start(&[]).unwrap();
        let pid = nix::unistd::Pid::from_raw(process.group.leader().try_into().unwrap());
        let stop = CancellationToken::new();
        stop.cancel();
        let log = Arc::new(LogStore::default().open("link-test", None));
        assert_eq!(run(planned(0), process, log, stop).await, None);
        assert!(!runs(pid));
    }

    #[cfg(target_os = "linux")]
    fn runs(pid: nix::unistd::Pid) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
    }

    #[cfg(not(target_os = "linux"))]
    fn runs(pid: nix::unistd::Pid) -> bool {
        nix::sys::signal::kill(pid, None).is_ok()
    }
}
