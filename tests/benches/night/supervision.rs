//! What supervision costs: a worker under agent and controller against a bare script with the same mlx-lm calls, batch
//! and model (`bare.py`), turn by turn in one run; and against the loop of single generations that one writes first.
//! The model is tiny, so its steps are short and everything around them weighs most.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use nightshift_proto::v1::{GetResultsRequest, JobSpec};
use nightshift_tests::{cluster::Cluster, control, models, rng::Rng, rows::Input, runtime, wait};
use serde_json::{Value, json};
use tokio_stream::StreamExt as _;

use crate::table::{Bound, Table, median};

/// Rows generated together.
const BATCH_ROWS: u32 = 8;

/// Every row generates so many tokens, unless the model ends it before.
const MAX_TOKENS: u32 = 128;

pub(crate) async fn measure(table: &mut Table, quick: bool) {
    let (rows, rounds) = if quick { (64, 3) } else { (256, 7) };
    let cluster = Cluster::builder("bench-supervision").agents(1).start().await;
    let model = models::llama();
    let input = input(rows);
    let file = cluster.path().join("input.jsonl");
    fs::write(&file, input.jsonl()).expect("the input can be written");

    let (mut bare, mut supervised, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let without = bare_speed(&model, &file, &[]).await;
        let with = supervised_speed(&cluster, &model, &input).await;
        bare.push(without);
        supervised.push(with);
        ratios.push(with / without);
    }
    let few = cluster.path().join("few.jsonl");
    let first: String = fs::read_to_string(&file)
        .expect("the input can be read")
        .lines()
        .take(rows / 4)
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(&few, first).expect("the input can be written");
    let single = bare_speed(&model, &few, &["--single"]).await;

    let with = median(&mut supervised);
    table.add("supervision: bare script, median", median(&mut bare), "tokens/s", Bound::None);
    table.add("supervision: under agent and controller, median", with, "tokens/s", Bound::None);
    table.add(
        "supervision: ratio, median of interleaved rounds",
        median(&mut ratios),
        "x",
        Bound::AtLeast(0.98),
    );
    table.add("supervision: against a loop of single generations", with / single, "x", Bound::AtLeast(3.0));
    cluster.finish().await;
}

fn input(rows: usize) -> Input {
    let mut rng = Rng::new(17);
    let mut input = Input::new();
    for number in 0..rows {
        let prompt = "one more time ".repeat(rng.range(1, 12) as usize);
        input.chat_row(
            &format!("row-{number:06}"),
            &prompt,
            json!({"max_tokens": MAX_TOKENS, "temperature": 0}),
        );
    }
    input
}

/// Tokens a second from the first finished row to the last, by a script without Nightshift.
async fn bare_speed(model: &Path, input: &Path, options: &[&str]) -> f64 {
    let mut command = Command::new(runtime::ensure().python);
    command
        .args(["-E", "-s", "-B", "-u", concat!(env!("CARGO_MANIFEST_DIR"), "/benches/night/bare.py")])
        .arg(model)
        .arg(input)
        .arg(BATCH_ROWS.to_string())
        .args(options)
        .stderr(Stdio::inherit());
    let outcome = nightshift_tests::process::run(command).await.expect_code(0);
    let finished = outcome.stdout.lines().map(|line| {
        let row: Value = serde_json::from_str(line).expect("the script prints JSON lines");
        (row["at"].as_f64().expect("a time"), row["tokens"].as_f64().expect("a count"))
    });
    speed(finished)
}

/// The same, of a worker with everything around it.
async fn supervised_speed(cluster: &Cluster, model: &Path, input: &Input) -> f64 {
    let spec = JobSpec { max_batch_rows: BATCH_ROWS, ..control::spec("supervised", model) };
    let job = cluster.control().submit(spec, input.jsonl()).await;
    let request = GetResultsRequest { job_id: job.job_id, follow: true, errors: false };
    let mut stream =
        cluster.control().raw().get_results(request).await.expect("results can be followed").into_inner();
    let started = Instant::now();
    let mut finished = Vec::new();
    while let Some(chunk) = stream.next().await {
        let data = chunk.expect("the stream of results does not break").data;
        let at = started.elapsed().as_secs_f64();
        for line in data.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let row: Value = serde_json::from_slice(line).expect("a line is JSON");
            let tokens =
                row["response"]["body"]["usage"]["completion_tokens"].as_f64().expect("a count of tokens");
            finished.push((at, tokens));
        }
    }
    let done = cluster.control().wait_completed(job.job_id, wait::LONG).await;
    assert_eq!(done.rows_succeeded, input.len() as u64);
    speed(finished.into_iter())
}

/// Both runs are measured from the end of their first batch, so that neither start nor load counts. Which rows share a
/// step is the same in both, so what the others have generated by then is, too.
fn speed(finished: impl Iterator<Item = (f64, f64)>) -> f64 {
    let rows: Vec<(f64, f64)> = finished.collect();
    let (first, rest) = rows.split_at(BATCH_ROWS as usize);
    let (start, end) =
        (first[first.len() - 1].0, rest.last().expect("more rows than one batch were finished").0);
    rest.iter().map(|(_, tokens)| tokens).sum::<f64>() / (end - start)
}
