//! Tries a link to another node: one of two ranks that have no model, and sums of which the answer is known (link_test.py).
//!
//! Promises: one test at a time on a node, so that two do not share what they measure; it takes no longer than its limit, and no
//! process of it outlives it; what says nothing of the link, such as a runtime that is not ready, is told as a test that was not
//! made; a test over RDMA is one of the starts of this boot ([`starts`](crate::gang::starts)), counted before it is made.

use std::{
    io,
    os::unix::process::ExitStatusExt as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nightshift_proto::v1::{self, ExitClass, LinkTestOutcome};
use nix::sys::signal::Signal;
use tokio::{io::AsyncWriteExt as _, time::timeout};

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
    },
};

/// Where the controller names no limit: Python and MLX are imported in seconds, even on a machine that is busy, and then the ranks
/// have half a minute to meet and a quarter for the sums.
const DEFAULT_LIMIT: Duration = Duration::from_secs(60);

/// Nobody needs longer; a confused controller cannot keep the place for other tests.
const MAX_LIMIT: Duration = Duration::from_secs(300);

/// Once the process has closed its output, for it to be gone.
const LAST_LIMIT: Duration = Duration::from_secs(5);

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
    // Jobs begin at 1, so that no worker has this name.
    let key = Key { job_id: 0, epoch: test.request_id, rank: test.rank };
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

/// Sees a started rank to its end. Dropped before, it ends the process.
pub async fn run(planned: Planned, process: io::Result<Process>, log: Source) -> v1::LinkTested {
    let Planned { request_id, launch, limit, .. } = planned;
    let process = match process {
        Ok(process) => process,
        Err(error) => return not_made(request_id, format!("the process could not be started: {error}")),
    };
    let ended = timeout(limit, converse(process, &launch.init, log)).await.unwrap_or_else(|_| {
        let limit_s = limit.as_secs_f64();
        End {
            measured: None,
            why: Some((ExitClass::Apart, format!("it was not done within {limit_s:.0} s"))),
        }
    });
    ended.answer(request_id)
}

/// How a test ended.
#[derive(Debug)]
struct End {
    measured: Option<Measured>,
    /// What went wrong.
    why: Option<(ExitClass, String)>,
}

impl End {
    fn answer(self, request_id: u64) -> v1::LinkTested {
        match (self.measured, self.why) {
            (Some(Measured { round_trip_us, bytes_per_s }), None) => v1::LinkTested {
                request_id,
                outcome: LinkTestOutcome::Passed.into(),
                problem: String::new(),
                round_trip_us,
                bytes_per_s,
            },
            (_, why) => {
                let (class, problem) =
                    why.unwrap_or((ExitClass::Crashed, "it ended without a word".to_owned()));
                let outcome = match class {
                    ExitClass::LinkFault | ExitClass::Apart | ExitClass::CanaryFailed => {
                        LinkTestOutcome::Failed
                    }
                    _ => LinkTestOutcome::NotMade,
                };
                v1::LinkTested { request_id, outcome: outcome.into(), problem, ..Default::default() }
            }
        }
    }
}

/// Ends what is left of a test with it. No model is in memory, so there is nothing to be gentle with.
struct Left(Option<Group>);

impl Drop for Left {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            group.signal(Signal::SIGKILL);
        }
    }
}

async fn converse(process: Process, init: &GangInit, log: Source) -> End {
    let Process { mut child, group, mut stdin, mut stdout, stderr } = process;
    let mut left = Left(Some(group));
    let scan: Arc<Mutex<Scan>> = Arc::default();
    let logged = tokio::spawn(log::read(stderr, Arc::new(log), Arc::clone(&scan)));
    let told = Command::TestLink { gang: init, rank: init.rank, world_size: init.world_size }.to_line();
    // A process that does not take it is ending, which is seen below.
    let _ = stdin.write_all(&told).await;
    let (mut measured, mut fatal, mut fault) = (None::<Measured>, None::<Fatal>, None::<String>);
    while let Some(batch) = stdout.next().await {
        for event in batch.events {
            match event {
                Ok(Event::Measured(found)) => measured = Some(found),
                Ok(Event::Fatal(found)) => fatal = Some(found),
                Ok(_) => {}
                Err(problem) => fault = Some(problem),
            }
        }
        // What speaks another language goes on for ever, perhaps.
        if fault.is_some() {
            break;
        }
    }
    let status = timeout(LAST_LIMIT, child.wait()).await;
    if let Ok(Ok(status)) = &status
        && status.success()
        && fatal.is_none()
        && fault.is_none()
        && measured.is_some()
    {
        left.0 = None;
        return End { measured, why: None };
    }
    // The log ends with the last process of the group.
    drop(left);
    let _ = timeout(LAST_LIMIT, logged).await;
    let status = status.ok().and_then(Result::ok);
    let evidence = Evidence {
        fault: fault.as_deref(),
        fatal: fatal.as_ref(),
        exit_code: status.and_then(|status| status.code()),
        signal: status.and_then(|status| status.signal()),
        ..Evidence::default()
    };
    let why = classify(&evidence, &scan.lock().unwrap_or_else(PoisonError::into_inner));
    End { measured: None, why: Some(why) }
}

#[cfg(test)]
mod tests {
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

    /// A shell in the place of Python.
    async fn tried(script: &str, limit_ms: u64) -> v1::LinkTested {
        let dir = tempfile::tempdir().unwrap();
        let words = ["/bin/sh", "-c", script].map(str::to_owned);
        let launcher = Launcher::new(LauncherOptions {
            python: dir.path(),
            code_dir: dir.path(),
            dir: dir.path(),
            hf_home: None,
            hf_hub_offline: None,
            command: Some(&words),
            account: None,
        });
        let planned = plan(&v1::TestLink { limit_ms, ..test(Backend::Ring) }, &ready(), mac()).unwrap();
        run(planned, launcher.start(&[]), LogStore::default().open("link test", None)).await
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
    async fn one_that_does_not_end_is_ended_with_all_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let pids = dir.path().join("pids");
        let script = format!("sleep 600 & echo $! > {0}; echo $$ >> {0}; wait", pids.display());
        let tested = tried(&script, 1_500).await;
        assert_eq!(ended(&tested), (LinkTestOutcome::Failed, "it was not done within 2 s"));
        for pid in std::fs::read_to_string(pids).unwrap().lines() {
            let pid = nix::unistd::Pid::from_raw(pid.parse().unwrap());
            // Gone, or a zombie until its parent looks; what is killed runs no more.
            let gone = async {
                while runs(pid) {
                    tokio::task::yield_now().await
                }
            };
            timeout(Duration::from_secs(30), gone).await.unwrap();
        }
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
