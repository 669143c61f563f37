//! Sampled rows with seeds: the same answers again, whatever was killed while they were made.

use nightshift_tests::{
    cluster::Cluster,
    control, models, process,
    rows::Input,
    suite::{Case, Need, case},
    wait,
};
use nix::sys::signal::Signal;

const NEEDS: &[Need] = &[Need::Runtime, Need::Linux];

pub(crate) fn cases() -> Vec<Case> {
    vec![case("sampling::seeded_rows_are_the_same_after_a_kill", NEEDS, seeded)]
}

async fn seeded() {
    let mut cluster = Cluster::builder("sampling").agents(2).start().await;
    let input = Input::sampled(100, 100, 3);
    let quiet = cluster.control().submit(control::spec("quiet", models::llama()), input.jsonl()).await;
    let quiet = cluster.control().wait_completed(quiet.job_id, wait::LONG).await;
    let expected = cluster.answers(&quiet, &input);
    assert_eq!(expected.succeeded(), input.len());

    cluster.expect(&["WARN the worker of j2 on * was ended by SIGKILL*kind=\"worker-exited\""]);
    let hurt = cluster.control().submit(control::spec("hurt", models::llama()), input.jsonl()).await;
    for rows in [10, 50] {
        cluster.control().wait_rows(hurt.job_id, rows).await;
        let victim = wait::eventually("a worker to kill", wait::SOON, async || {
            cluster.workers().pop().ok_or_else(|| "no worker process".to_owned())
        })
        .await;
        process::send(victim.pid, Signal::SIGKILL);
    }
    let hurt = cluster.control().wait_completed(hurt.job_id, wait::LONG).await;
    let answers = cluster.answers(&hurt, &input);
    answers.assert_same_as(&expected);
    let texts: std::collections::BTreeSet<&str> = answers.iter().map(|(_, answer)| answer.text()).collect();
    assert!(texts.len() > input.len() / 2, "sampling gives different rows different texts");
    cluster.finish().await;
}
