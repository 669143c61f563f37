//! An agent with nothing to do: what it takes of the machine while it waits for the night.

use std::time::{Duration, Instant};

use nightshift_tests::{cluster::Cluster, procfs};

use crate::table::{Bound, Table};

pub(crate) async fn measure(table: &mut Table, quick: bool) {
    let mut cluster = Cluster::builder("bench-idle").agents(1).start().await;
    let pid = cluster.agent_mut("n1").pid();
    // Past the start: the runtime check and the first full observation are not what is asked about.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = procfs::cpu_time(pid).expect("the agent runs");
    let started = Instant::now();
    tokio::time::sleep(Duration::from_secs(if quick { 20 } else { 60 })).await;
    let used = procfs::cpu_time(pid).expect("the agent runs") - before;
    let share = used.as_secs_f64() / started.elapsed().as_secs_f64() * 100.0;
    let resident = procfs::resident_bytes(pid).expect("the agent runs") as f64 / 1e6;
    table.add("agent: idle, share of a core", share, "%", Bound::AtMost(1.0));
    table.add("agent: idle, resident memory", resident, "MB", Bound::AtMost(30.0));
    cluster.finish().await;
}
