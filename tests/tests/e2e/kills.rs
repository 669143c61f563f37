//! SIGKILL at random moments, real MLX: every row exactly once, and greedy answers to the byte those of a night in which
//! nothing happened.

use std::{env, time::Duration};

use nightshift_proto::v1::JobState;
use nightshift_tests::{
    answers::Answers,
    cluster::Cluster,
    control::{self, rows_done},
    models, process,
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

/// What programs may say of a violent night. Nothing else may be warned about.
const EXPECTED: &[&str] = &["worker", "session", "controller", "node", "leftover", "agent"];

const NEEDS: &[Need] = &[Need::Runtime, Need::Linux];

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("kills::a_worker", NEEDS, || night("worker", Victim::Worker)),
        case("kills::an_agent", NEEDS, || night("agent", Victim::Agent)),
        case("kills::the_controller", NEEDS, || night("controller", Victim::Controller)),
        case("kills::everything_at_once", NEEDS, || night("everything", Victim::Everything)),
        case("kills::anything_in_turn", NEEDS, || night("anything", Victim::Any)),
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
    let mut cluster = Cluster::builder(name).agents(2).allow(EXPECTED).start().await;
    let input = input();
    let job = cluster.control().submit(control::spec("hurt", models::llama()), input.jsonl()).await;
    for strike in 0..STRIKES {
        // The moment: somewhere in this strike's third of the first four fifths of the job, and a little later.
        let share = ROWS as u64 * 4 / 5 / STRIKES;
        let rows = rng.range(strike * share, (strike + 1) * share);
        let late = Duration::from_millis(rng.range(0, 300));
        let now = cluster
            .control()
            .wait_job(job.job_id, &format!("{rows} rows before strike {strike}"), wait::LONG, |job| {
                rows_done(job) >= rows
            })
            .await;
        tokio::time::sleep(late).await;
        if now.state() == JobState::Completed {
            break;
        }
        let victim = match victim {
            Victim::Any => {
                *rng.pick(&[Victim::Worker, Victim::Agent, Victim::Controller, Victim::Everything])
            }
            other => other,
        };
        self::strike(&mut cluster, victim, rng).await;
    }
    let job = cluster.control().wait_completed(job.job_id, wait::LONG).await;
    let answers = cluster.answers(&job, &input);
    answers.assert_same_as(expected);
    assert_eq!(job.rows_succeeded, ROWS as u64, "the job counts what is in its files");
    cluster.finish().await;
}

async fn strike(cluster: &mut Cluster, victim: Victim, rng: &mut Rng) {
    match victim {
        Victim::Worker => {
            let workers = wait::eventually("a worker to kill", wait::SOON, async || {
                let workers = cluster.workers();
                if workers.is_empty() { Err("no worker process".to_owned()) } else { Ok(workers) }
            })
            .await;
            process::send(rng.pick(&workers).pid, Signal::SIGKILL);
        }
        Victim::Agent => {
            let node = rng.pick(&cluster.agent_names()).clone();
            cluster.kill_agent(&node).await;
            tokio::time::sleep(Duration::from_millis(rng.range(0, 1500))).await;
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
