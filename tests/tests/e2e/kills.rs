//! SIGKILL at random moments, real MLX: every row exactly once, and greedy answers to the byte those of a night in which
//! nothing happened. SIGTERM, which asks for the same in order, costs as little and is not even worth a warning.

use std::{collections::BTreeSet, env, time::Duration};

use nightshift_proto::v1::{Job, JobSpec, JobState};
use nightshift_tests::{
    answers::Answers,
    cluster::Cluster,
    control::{self, rows_done},
    models, process,
    procfs::{self, Seen},
    rng::{self, Rng},
    rows::Input,
    suite::{Case, Need, case},
    wait,
};
use nix::sys::signal::Signal;
use tokio::sync::OnceCell;

/// Enough work that three strikes fall into it, little enough for many rounds.
const ROWS: usize = 160;

/// The longest answer.
const MAX_TOKENS: u32 = 120;

/// Strikes a round.
const STRIKES: u64 = 3;

/// An agent takes a second to be back, on a busy machine several. That a silent node's rows go to others is another
/// case's subject; here it would make the logs a matter of chance.
const CONFIG: &str =
    "[recovery]\nnode_silent_ms = 60000\nnode_seen_silent_ms = 60000\nadopt_grace_ms = 60000\n";

/// What the controller must say when a worker is killed.
const WORKER_KILLED: &str = "WARN the worker of j* on n* was ended by SIGKILL*; its rows were handed out again; \
                             restart after * s kind=\"worker-exited\"";

/// What it must say when an agent is killed, and its worker with it.
const AGENT_KILLED: &str =
    "WARN the worker of j1 (epoch *) on n* ended while n* was away kind=\"worker-vanished\"";

/// What it says if that worker had rows.
const ROWS_LOST: &str = "WARN * rows of j1 were lost with a worker on n* and are handed out again (* of their tokens \
                         are kept) kind=\"rows-requeued\"";

const NEEDS: &[Need] = &[Need::Runtime, Need::Linux];

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("kills::a_worker", NEEDS, || night("worker", Victim::Worker)),
        case("kills::an_agent", NEEDS, || night("agent", Victim::Agent)),
        case("kills::the_controller", NEEDS, || night("controller", Victim::Controller)),
        case("kills::everything_at_once", NEEDS, || night("everything", Victim::Everything)),
        case("kills::anything_in_turn", NEEDS, || night("anything", Victim::Any)),
        case("kills::long_rows_go_on_from_their_checkpoints", NEEDS, checkpoints),
        case("kills::asked_to_end_each_program_does_so_in_order", NEEDS, asked),
    ]
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Victim {
    Worker,
    Agent,
    Controller,
    Everything,
    Any,
}

/// The answers of a night in which nothing happened; made once for all cases.
async fn undisturbed() -> &'static Answers {
    static ANSWERS: OnceCell<Answers> = OnceCell::const_new();
    ANSWERS
        .get_or_init(async || {
            let cluster = Cluster::builder("kills-undisturbed").agents(2).start().await;
            let input = input();
            let job = cluster.control().submit(control::spec("quiet", models::llama()), input.jsonl()).await;
            let job = cluster.control().wait_completed(job.job_id, wait::LONG).await;
            assert_eq!(job.rows_requeued, 0, "a quiet night gives no row twice");
            let answers = cluster.answers(&job, &input);
            assert_eq!(answers.succeeded(), ROWS);
            cluster.finish().await;
            answers
        })
        .await
}

fn input() -> Input {
    Input::chat(ROWS, MAX_TOKENS, 20_261_120)
}

async fn night(name: &str, victim: Victim) {
    let rounds: u64 =
        env::var("NIGHTSHIFT_KILL_ROUNDS").map_or(2, |text| text.parse().expect("a number of rounds"));
    let seed = rng::run_seed();
    eprintln!("kills::{name}: {rounds} rounds, NIGHTSHIFT_SEED={seed}");
    let expected = undisturbed().await;
    for round in 0..rounds {
        let mut rng = Rng::new(seed.wrapping_add(round.wrapping_mul(0x1_0000_0001)) ^ victim as u64);
        one_round(&format!("kills-{name}-{round}"), victim, &mut rng, expected).await;
    }
}

async fn one_round(name: &str, victim: Victim, rng: &mut Rng, expected: &Answers) {
    let builder = Cluster::builder(name).agents(2).config(CONFIG);
    let mut cluster = match victim {
        Victim::Worker => builder.expect(&[WORKER_KILLED]),
        Victim::Agent => builder.expect(&[AGENT_KILLED]).allow(&[ROWS_LOST]),
        Victim::Controller => builder,
        // A controller that comes back finds the workers it had on record gone.
        Victim::Everything => builder.allow(&[AGENT_KILLED]),
        Victim::Any => builder.allow(&[WORKER_KILLED, AGENT_KILLED, ROWS_LOST]),
    }
    .start()
    .await;
    let input = input();
    let job = cluster.control().submit(control::spec("hurt", models::llama()), input.jsonl()).await;
    let mut strikes = 0;
    for strike in 0..STRIKES {
        // The moment: somewhere in this strike's third of the first four fifths of the job, and a little later.
        let share = ROWS as u64 * 4 / 5 / STRIKES;
        let rows = rng.range(strike * share, (strike + 1) * share);
        if wait_moment(&cluster, &job, rows, rng).await == JobState::Completed {
            break;
        }
        let victim = match victim {
            Victim::Any => {
                *rng.pick(&[Victim::Worker, Victim::Agent, Victim::Controller, Victim::Everything])
            }
            other => other,
        };
        self::strike(&mut cluster, victim, rng).await;
        strikes += 1;
    }
    let (job, _) = end(&cluster, &job, &input, expected).await;
    match victim {
        Victim::Worker => {
            let incidents = cluster.control().incidents("worker-exited").await;
            assert_eq!(control::times(&incidents), strikes, "every kill is counted: {incidents:#?}");
            assert!(incidents.iter().all(|incident| incident.closed_unix_ms > 0), "over: {incidents:#?}");
            let requeued: u64 = incidents.iter().map(|incident| incident.rows_requeued).sum();
            assert_eq!(job.rows_requeued, requeued, "the job counts what its incidents cost");
        }
        Victim::Controller => {
            assert_eq!((job.epoch, job.rows_requeued), (2, 0), "the workers lived on: {job:#?}");
            cluster.assert_generated_once(&job);
        }
        Victim::Agent | Victim::Everything | Victim::Any => {}
    }
    cluster.finish().await;
}

/// Waits until so many rows are done, and then a random moment.
async fn wait_moment(cluster: &Cluster, job: &Job, rows: u64, rng: &mut Rng) -> JobState {
    let what = format!("{rows} rows before the next strike");
    let now =
        cluster.control().wait_job(job.job_id, &what, wait::LONG, |job| rows_done(job) >= rows).await.state();
    tokio::time::sleep(Duration::from_millis(rng.range(0, 300))).await;
    now
}

/// The job's end: every row once, all with the answers of the quiet night, and its workers gone without a stray.
async fn end(cluster: &Cluster, job: &Job, input: &Input, expected: &Answers) -> (Job, Answers) {
    let job = cluster.control().wait_completed(job.job_id, wait::LONG).await;
    let answers = cluster.answers(&job, input);
    assert_eq!(answers.succeeded(), input.len(), "every row is answered with 200");
    answers.assert_same_as(expected);
    assert_eq!(
        (job.rows_succeeded, job.rows_failed, job.rows_in_flight),
        (input.len() as u64, 0, 0),
        "the job counts what is in its files"
    );
    wait::eventually("the workers to end with their job", wait::SOON, async || {
        let left = cluster.workers();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:#?}")) }
    })
    .await;
    (job, answers)
}

async fn strike(cluster: &mut Cluster, victim: Victim, rng: &mut Rng) {
    match victim {
        Victim::Worker => {
            let victim = a_worker(cluster, rng).await;
            process::send(victim.pid, Signal::SIGKILL);
            gone(&victim).await;
        }
        Victim::Agent => {
            let node = rng.pick(&cluster.agent_names()).clone();
            cluster.kill_agent(&node).await;
            if rng.range(0, 2) == 0 {
                tokio::time::sleep(Duration::from_millis(rng.range(0, 1500))).await;
            } else {
                // Its workers end by themselves, without a successor that ends them.
                let theirs = format!("/agents/{node}/");
                let left = || cluster.workers().iter().any(|worker| worker.command.contains(&theirs));
                wait::until("the workers of a killed agent to end", wait::SOON, || !left()).await;
            }
            cluster.start_agent(&node);
        }
        Victim::Controller => {
            cluster.kill_controller().await;
            tokio::time::sleep(Duration::from_millis(rng.range(0, 1500))).await;
            cluster.start_controller().await;
        }
        Victim::Everything | Victim::Any => {
            let nodes = cluster.kill_all().await;
            cluster.start_controller().await;
            for node in nodes {
                cluster.start_agent(&node);
            }
        }
    }
}

/// One of the workers alive; waits for one where there is none just now.
async fn a_worker(cluster: &Cluster, rng: &mut Rng) -> Seen {
    let workers = wait::eventually("a worker", wait::SOON, async || {
        let workers = cluster.workers();
        if workers.is_empty() { Err("no worker process".to_owned()) } else { Ok(workers) }
    })
    .await;
    rng.pick(&workers).clone()
}

/// Waits until a process has ended, so that it is not struck twice.
async fn gone(process: &Seen) {
    let is_there = || procfs::seen(process.pid).is_some_and(|found| found.start_ticks == process.start_ticks);
    wait::until("the process to be gone", wait::SOON, || !is_there()).await;
}

/// Rows of some seconds, checkpoints five times a second: what a killed worker had generated is kept for the next one, and
/// the text does not show where one ended and the other began.
async fn checkpoints() {
    let seed = rng::run_seed();
    eprintln!("kills::checkpoints: NIGHTSHIFT_SEED={seed}");
    let mut rng = Rng::new(seed);
    let config = format!("{CONFIG}[jobs]\ncheckpoint_interval_ms = 200\n");
    let mut cluster = Cluster::builder("kills-checkpoints").agents(2).config(&config).start().await;
    let input = Input::chat(8, 900, 5);
    let spec = |name: &str| JobSpec { max_batch_rows: 4, ..control::spec(name, models::llama()) };
    let quiet = cluster.control().submit(spec("quiet"), input.jsonl()).await;
    let quiet = cluster.control().wait_completed(quiet.job_id, wait::LONG).await;
    let expected = cluster.answers(&quiet, &input);

    cluster.expect(&[WORKER_KILLED]);
    let hurt = cluster.control().submit(spec("hurt"), input.jsonl()).await;
    let mut struck = BTreeSet::new();
    let mut tokens_saved = 0;
    // A worker may be struck before its first checkpoint has arrived; not every time. Five strikes would pause the job.
    while struck.len() < 4 && (struck.len() < 2 || tokens_saved == 0) {
        let fresh = |job: &Job| -> Vec<u32> {
            let busy =
                job.workers.iter().filter(|worker| worker.active_rows > 0 && worker.tokens_per_s > 0.0);
            busy.map(|worker| worker.pid).filter(|pid| !struck.contains(pid)).collect()
        };
        let wanted = |job: &Job| !fresh(job).is_empty() || job.state() == JobState::Completed;
        let what = "a worker in the middle of rows";
        let job = cluster.control().wait_job(hurt.job_id, what, wait::SOON, wanted).await;
        if job.state() == JobState::Completed {
            break;
        }
        let pid = *rng.pick(&fresh(&job));
        tokio::time::sleep(Duration::from_millis(rng.range(300, 1000))).await;
        // It has ended with the job where the machine is fast.
        let Some(victim) = cluster.workers().into_iter().find(|worker| worker.pid == pid) else { continue };
        process::send(pid, Signal::SIGKILL);
        gone(&victim).await;
        struck.insert(pid);
        tokens_saved = wait::eventually("an incident a strike", wait::SOON, async || {
            let incidents = cluster.control().incidents("worker-exited").await;
            let saved = incidents.iter().map(|incident| incident.tokens_saved).sum();
            if control::times(&incidents) == struck.len() {
                Ok(saved)
            } else {
                Err(format!("{incidents:#?}"))
            }
        })
        .await;
    }
    assert!(tokens_saved > 0, "what was generated before a strike is kept");
    let (job, answers) = end(&cluster, &hurt, &input, &expected).await;
    assert!(answers.iter().any(|(_, answer)| answer.attempt > 1), "rows were answered by a second worker");
    assert_eq!(job.completion_tokens, quiet.completion_tokens, "kept tokens are counted once");
    cluster.finish().await;
}

/// SIGTERM to each program in turn, in the middle of a job. A worker gives back what it has generated; an agent ends its
/// workers, a controller leaves them alone, and both without a warning.
async fn asked() {
    let seed = rng::run_seed();
    eprintln!("kills::asked: NIGHTSHIFT_SEED={seed}");
    let mut rng = Rng::new(seed);
    let expected = undisturbed().await;
    let worker_left = "WARN the worker of j1 on n* exited with status 0: ended by itself without being asked to; its rows were \
                       handed out again; restart after 0.5 s kind=\"worker-exited\"";
    let mut cluster = Cluster::builder("kills-asked")
        .agents(2)
        .config(CONFIG)
        .expect(&[worker_left])
        // Between the end of an agent's worker and its own, another may be started there.
        .allow(&[AGENT_KILLED])
        .start()
        .await;
    let input = input();
    let job = cluster.control().submit(control::spec("asked", models::llama()), input.jsonl()).await;
    let share = ROWS as u64 * 4 / 5 / STRIKES;

    wait_moment(&cluster, &job, rng.range(1, share), &mut rng).await;
    let worker = a_worker(&cluster, &mut rng).await;
    process::send(worker.pid, Signal::SIGTERM);
    gone(&worker).await;
    let incident = wait::eventually("the incident", wait::SOON, async || {
        cluster.control().incidents("worker-exited").await.pop().ok_or_else(|| "none".to_owned())
    })
    .await;

    wait_moment(&cluster, &job, rng.range(share, 2 * share), &mut rng).await;
    let node = rng.pick(&cluster.agent_names()).clone();
    cluster.stop_agent(&node).await;
    let left = cluster.workers();
    assert!(left.len() <= 1, "an agent that ends takes its workers with it: {left:#?}");
    tokio::time::sleep(Duration::from_millis(rng.range(0, 1500))).await;
    cluster.start_agent(&node);

    wait_moment(&cluster, &job, rng.range(2 * share, 3 * share), &mut rng).await;
    let before = cluster.workers();
    cluster.stop_controller().await;
    tokio::time::sleep(Duration::from_millis(rng.range(0, 1500))).await;
    assert_eq!(cluster.workers(), before, "the workers are no concern of the controller's end");
    cluster.start_controller().await;

    let (job, _) = end(&cluster, &job, &input, expected).await;
    assert_eq!(job.rows_requeued, incident.rows_requeued, "what an agent gives back is not counted as lost");
    cluster.finish().await;
}
