//! Links that are lost while a gang computes over them: the gang is down within its bound, and its job goes on when they
//! carry again. The nodes are in network namespaces ([`nightshift_tests::netns`]).

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::SocketAddr,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use nightshift_proto::v1::{Job, JobSpec, Mode};
use nightshift_tests::{
    netns::Net,
    procfs,
    suite::{Case, Need, case},
    wait,
};

use crate::sharded::{self, ONE_AT_A_TIME, a_rank_at_work, end, input, spec};

const BARE: &[Need] = &[Need::Linux, Need::Netns];
const NEEDS: &[Need] = &[Need::Runtime, Need::Linux, Need::Netns];

/// `[recovery] step_budget_ms` here. A step of the tiny model takes milliseconds, on a busy machine a second.
const STEP_BUDGET: Duration = Duration::from_secs(10);

/// `[recovery] stop_grace_ms` here: a rank that is blocked in MLX hears no SIGTERM, however long it is given.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// `[gangs] rendezvous_ms` here: short, so that a gang that cannot meet is seen to give up; several times what one that can
/// takes on two busy cores.
const RENDEZVOUS: Duration = Duration::from_secs(10);

/// What everything but the budgets may take: reports every 250 ms, the ledger, signals, on two busy cores.
const MARGIN: Duration = Duration::from_secs(5);

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("links::a_black_hole_swallows_packets_and_shows_no_sign", BARE, swallowed),
        case("links::what_a_killed_run_left_is_removed", BARE, swept),
        case("links::a_black_holed_gang_is_down_within_its_bound_and_its_job_goes_on", NEEDS, || {
            black_holed("pipeline", Mode::Pipeline)
        }),
        case("links::so_is_a_gang_in_tensor_mode", NEEDS, || black_holed("tensor", Mode::Tensor)),
    ]
}

async fn swallowed() {
    let net = Net::new(2);
    let at = |node, port| SocketAddr::from((net.address(node), port));
    let listener = net.listen("n2", at("n2", 7001));
    let mut one = net.connect("n1", at("n2", 7001));
    let (mut other, from) = listener.accept().expect("what was connected can be accepted");
    assert_eq!(from.ip(), net.address("n1"), "over the link");
    let carrier = || {
        let file = Path::new("/sys/class/net/link0/carrier");
        let output = net.command("n2", Path::new("cat")).arg(file).output().expect("cat can be started");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(carrier(), "1");

    net.black_hole("n2");
    assert_eq!(carrier(), "1", "no sign");
    one.write_all(b"x").expect("the kernel takes it");
    // As long as a hundred packets need, so that one which was merely slow is not taken for a lost one.
    other.set_read_timeout(Some(Duration::from_millis(100))).expect("a limit can be set");
    let nothing = other.read(&mut [0]).expect_err("nothing arrives, not even an end");
    assert!(matches!(nothing.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{nothing}");

    net.heal("n2");
    other.set_read_timeout(Some(wait::SOON)).expect("a limit can be set");
    assert_eq!(other.read(&mut [0]).expect("it was sent again"), 1, "late, and not lost to the connection");
    net.cut("n2");
    assert_eq!(carrier(), "0", "a cut cable is seen");
    net.heal("n2");
    assert_eq!(carrier(), "1");
}

async fn swept() {
    // Whoever makes a network sweeps, other cases too: it becomes a leftover when its maker ends, and not before.
    let mut maker = Command::new("sleep").arg("300").spawn().expect("sleep can be started");
    let start_ticks = procfs::seen(maker.id()).expect("it runs").start_ticks;
    let namespace = format!("nightshift-test-{}-{start_ticks}-0-n1", maker.id());
    ip(&["netns", "add", &namespace]);
    let inhabitant = Command::new("ip").args(["netns", "exec", &namespace, "sleep", "300"]).spawn();
    let mut inhabitant = inhabitant.expect("ip can be started");
    let number = inhabitant.id().to_string();
    wait::until("a program in the namespace, under the number it was started with", wait::SOON, || {
        ip(&["netns", "pids", &namespace]).trim() == number
    })
    .await;
    drop(Net::new(1));
    assert!(ip(&["netns", "list"]).contains(&namespace), "its maker lives");

    maker.kill().expect("it can be killed");
    maker.wait().expect("it can be waited for");
    let net = Net::new(1);
    assert!(!ip(&["netns", "list"]).contains(&namespace));
    assert!(!inhabitant.wait().expect("it can be waited for").success(), "ended by a signal");

    let command = net.command("n1", Path::new("true"));
    let own =
        command.get_args().nth(2).and_then(|name| name.to_str()).expect("`ip netns exec NAME`").to_owned();
    assert!(ip(&["netns", "list"]).contains(&own));
    drop(net);
    assert!(!ip(&["netns", "list"]).contains(&own), "a network takes its namespaces with it");
}

fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().expect("ip can be started");
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Node n2 falls silent on the network of the ranks, and on no other: both agents go on talking to the controller, no
/// interface is down, no connection breaks. Only the steps that do not come tell (FIELD-NOTES 2).
async fn black_holed(name: &str, mode: Mode) {
    let _alone = ONE_AT_A_TIME.lock().await;
    let silent =
        "WARN the worker of j1 on n* (epoch 1) took no step for * s; it is ended kind=\"worker-silent\"";
    let ended = "WARN the worker of j1 on n* was ended by SIGKILL*kind=\"worker-silent\"";
    let told =
        "WARN the worker of j1 on n* took no step, and ended when it was told to*kind=\"worker-silent\"";
    let apart = "WARN the worker of j1 on n* exited with status 3: rank * within 10 s*restart after *kind=\"link-fault\"";
    let gangs = format!("networks = [\"{}\"]\nrendezvous_ms = {}\n", Net::ADDRESSES, RENDEZVOUS.as_millis());
    let (step_budget_ms, stop_grace_ms) = (STEP_BUDGET.as_millis(), STOP_GRACE.as_millis());
    let recovery =
        format!("[recovery]\nstep_budget_ms = {step_budget_ms}\nstop_grace_ms = {stop_grace_ms}\n");
    let cluster = sharded::builder(&format!("links-{name}"), &gangs, &recovery)
        .on_a_net()
        .expect(&[silent, apart])
        .allow(&[ended, told])
        .start()
        .await;
    let input = input();
    let asked = JobSpec { mode: mode.into(), ..spec(name) };
    let job = cluster.control().submit(asked, input.jsonl()).await;
    let _ = a_rank_at_work(&cluster, &job, 0, 3).await;
    let reasons = cluster.control().job(job.job_id).await.plan_reasons.join("\n");
    assert!(reasons.contains("ring (TCP over an allowed network)"), "{reasons}");
    let ranks = cluster.workers();
    assert_eq!(ranks.len(), 2);

    cluster.net().black_hole("n2");
    let struck = Instant::now();
    let _ = cluster.control().wait_event("worker-silent").await;
    let noticed = struck.elapsed();
    assert!(noticed < STEP_BUDGET + MARGIN, "that no steps came was noticed after {noticed:?} only");
    wait::until("both ranks to be gone", wait::SOON, || {
        ranks.iter().all(|rank| procfs::seen(rank.pid).as_ref() != Some(rank))
    })
    .await;
    let down = struck.elapsed();
    assert!(down < STEP_BUDGET + STOP_GRACE + MARGIN, "the gang was down after {down:?} only");

    // The planner cannot see a black hole: the next gang is of the same two nodes, and they do not meet.
    let _ = cluster.control().wait_event("link-fault").await;
    let gave_up = struck.elapsed();
    cluster.net().heal("n2");
    let meets = |job: &Job| job.epoch > 2 && job.workers.iter().any(|worker| worker.active_rows > 0);
    cluster.control().wait_job(job.job_id, "a gang that meets", wait::LONG, meets).await;
    let at_work = struck.elapsed();
    let job = end(&cluster, &job, &input).await;
    assert_eq!(job.epoch, 3, "one try while the nodes were apart, and one after");
    assert!(job.rows_requeued > 0);
    if std::env::var_os("NIGHTSHIFT_TIMES").is_some() {
        eprintln!(
            "{name}: noticed {noticed:.1?}, down {down:.1?}, a try given up {gave_up:.1?}, at work again {at_work:.1?}, \
             done {:.1?} after the black hole",
            struck.elapsed()
        );
    }
    cluster.finish().await;
}
