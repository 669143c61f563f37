//! What supervision costs: a worker under agent and controller against a bare script with the same mlx-lm calls, batch
//! and model (`bare.py`), turn by turn in one run; and against the loop of single generations that one writes first.
//! The model is tiny, so its steps are short and everything around them weighs most.

use std::fs;

use nightshift_proto::v1::JobSpec;
use nightshift_tests::{cluster::Cluster, control, models};

use crate::{
    speed::{self, BATCH_ROWS, speed},
    table::{Bound, Table, median},
};

/// Every row generates so many tokens, unless the model ends it before.
const MAX_TOKENS: u32 = 128;

pub(crate) async fn measure(table: &mut Table, quick: bool) {
    let (rows, rounds) = if quick { (64, 3) } else { (256, 7) };
    let cluster = Cluster::builder("bench-supervision").agents(1).start().await;
    let model = models::llama();
    let input = speed::input(rows, MAX_TOKENS);
    let file = cluster.path().join("input.jsonl");
    fs::write(&file, input.jsonl()).expect("the input can be written");

    let (mut bare, mut supervised, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let without = speed(&speed::run_script(speed::script("bare.py", &model, &file)).await);
        let spec = JobSpec { max_batch_rows: BATCH_ROWS, ..control::spec("supervised", &model) };
        let with = speed(&speed::run_job(&cluster, spec, &input).await.1);
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
    let mut one_by_one = speed::script("bare.py", &model, &few);
    one_by_one.arg("--single");
    let single = speed(&speed::run_script(one_by_one).await);

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
