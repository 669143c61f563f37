//! From the moment the worker emits a result to the moment its line is durable and can be read: real worker, agent,
//! controller and disk. The worker is watched from inside its own process (`tap.py`), so that pipe and agent count too.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use nightshift_proto::v1::{GetResultsRequest, JobSpec};
use nightshift_tests::{
    cluster::Cluster,
    control, models,
    rows::Input,
    runtime::{self, Runtime},
    wait,
};
use tokio_stream::StreamExt as _;

use crate::table::{Bound, Table, median};

pub(crate) async fn measure(table: &mut Table, quick: bool) {
    let mut cluster = Cluster::builder("bench-latency").start().await;
    let (tapped, notes) = tapped_runtime(&runtime::ensure(), &cluster.path().join("tapped"));
    let command = cluster.agent_command("n1", &tapped);
    cluster.start_agent_with("n1", command);
    cluster.control().wait_ready(1).await;

    let input = Input::chat(if quick { 100 } else { 400 }, 60, 11);
    let spec = JobSpec { max_batch_rows: 4, ..control::spec("latency", models::llama()) };
    let job = cluster.control().submit(spec, input.jsonl()).await;
    let request = GetResultsRequest { job_id: job.job_id, follow: true, errors: false };
    let mut stream =
        cluster.control().raw().get_results(request).await.expect("results can be followed").into_inner();
    // When each line could be read. Rows and lines are joined by the custom id, which ends in the row's number.
    let mut durable: BTreeMap<usize, u128> = BTreeMap::new();
    while let Some(chunk) = stream.next().await {
        let data = chunk.expect("the stream of results does not break").data;
        let now = unix_ns();
        for line in data.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let row: serde_json::Value = serde_json::from_slice(line).expect("a line is JSON");
            let id =
                row["custom_id"].as_str().and_then(|id| id.strip_prefix("row-")).expect("a row has its id");
            durable.insert(id.parse().expect("an id ends in its number"), now);
        }
    }
    cluster.control().wait_completed(job.job_id, wait::LONG).await;
    let mut delays_ms: Vec<f64> = fs::read_to_string(notes)
        .expect("the watched worker has made its notes")
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(row, at)| Some((durable.get(&row.parse::<usize>().ok()?)?, at.parse::<u128>().ok()?)))
        .map(|(durable, emitted)| durable.saturating_sub(emitted) as f64 / 1e6)
        .collect();
    assert!(
        delays_ms.len() * 10 > input.len() * 9,
        "only {} of {} rows were seen",
        delays_ms.len(),
        input.len()
    );
    let middle = median(&mut delays_ms);
    table.add("latency: emitted by the worker to durable, median", middle, "ms", Bound::AtMost(100.0));
    table.add("latency: the same, 99th percentile", delays_ms[delays_ms.len() * 99 / 100], "ms", Bound::None);
    cluster.finish().await;
}

/// A runtime like the given one, whose Python watches what a worker writes. Gives its directory and the notes' file.
fn tapped_runtime(runtime: &Runtime, dir: &Path) -> (PathBuf, PathBuf) {
    fs::create_dir_all(dir.join("bin")).expect("a directory can be made");
    for entry in fs::read_dir(&runtime.dir).expect("the runtime is a directory").flatten() {
        if entry.file_name() != "bin" {
            symlink(entry.path(), dir.join(entry.file_name())).expect("a link can be made");
        }
    }
    let tap = dir.join("tap.py");
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/night/tap.py"), &tap)
        .expect("a file can be copied");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in\n*/worker-code/*) exec '{python}' -E -s -B -u '{tap}' \"$@\" ;;\n*) exec '{python}' \"$@\" ;;\nesac\n",
        python = runtime.python.display(),
        tap = tap.display()
    );
    let python = dir.join("bin/python");
    fs::write(&python, script).expect("a script can be written");
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).expect("a script can be made executable");
    (dir.to_owned(), dir.join("tap.py.notes"))
}

fn unix_ns() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}
