//! `clusterctl report`: the page, on a terminal and in a file, and its JSON.

use nightshift_ctl::output::{Screen, human, text::width, views::ReportView};
use nightshift_proto::v1;

use super::{
    canned::{self, NOW_MS},
    fake::{Fake, World},
    program::ask,
};

const HOUR_MS: u64 = 3_600_000;

fn work(node: &str, rows: u64, busy_ms: u64) -> v1::NodeWork {
    v1::NodeWork {
        node_id: node.into(),
        rows,
        prompt_tokens: rows * 40,
        completion_tokens: rows * 250,
        busy_ms,
    }
}

fn way(way: &str, rows: u64) -> v1::WayWork {
    v1::WayWork { way: way.into(), rows }
}

fn night() -> v1::Report {
    let spec = v1::JobSpec {
        fallback_model: "/models/small".into(),
        fallback_policy: "after 10m".into(),
        ..canned::completed_job().spec.unwrap()
    };
    let done = v1::Job {
        spec: Some(spec),
        rows_total: 1_200,
        rows_succeeded: 1_198,
        rows_failed: 2,
        rows_by_fallback: 300,
        rows_requeued: 12,
        prompt_tokens: 48_000,
        completion_tokens: 300_000,
        created_unix_ms: NOW_MS - 20 * HOUR_MS,
        finished_unix_ms: NOW_MS - 12 * HOUR_MS,
        deadline_unix_ms: NOW_MS - 11 * HOUR_MS,
        ..canned::completed_job()
    };
    let node = |name: &str, state: v1::NodeState, detail: &str, work, incidents| v1::ReportedNode {
        node_id: name.into(),
        state: state.into(),
        detail: detail.into(),
        work: Some(work),
        incidents,
        quarantined_until_unix_ms: 0,
    };
    let quarantined = v1::ReportedNode {
        quarantined_until_unix_ms: NOW_MS + HOUR_MS / 2,
        ..node(
            "studio",
            v1::NodeState::NotReady,
            "it is in quarantine for 30 more minutes: 3 GPU faults within 60 minutes",
            work("studio", 200, HOUR_MS / 4),
            1,
        )
    };
    v1::Report {
        since_unix_ms: NOW_MS - 24 * HOUR_MS,
        until_unix_ms: NOW_MS,
        verdict: "1 job is done, 1 waits: 1,198 rows answered, 2 ended with an error.".into(),
        to_do: vec![
            "Nothing runs job j8: no node holds the model. It goes on by itself as soon as it can: look at mini-3.".into(),
            "Look at the 2 rows of job j6 that ended with an error: clusterctl results j6 --errors.".into(),
        ],
        jobs: vec![
            v1::ReportedJob {
                job: Some(done),
                work: vec![work("mini-1", 1_000, 2 * HOUR_MS), work("studio", 200, HOUR_MS / 4)],
                ways: vec![
                    way("a pipeline over ring (Thunderbolt)", 900),
                    way("independent workers with the fallback model", 300),
                ],
            },
            v1::ReportedJob { job: Some(canned::queued_job()), work: vec![], ways: vec![] },
        ],
        jobs_left_out: 0,
        nodes: vec![
            node("mini-1", v1::NodeState::Ready, "", work("mini-1", 1_000, 2 * HOUR_MS), 1),
            node("mini-3", v1::NodeState::Silent, "no word from it for 720 s", work("mini-3", 0, 0), 0),
            quarantined,
        ],
        incidents: vec![
            canned::incident(),
            v1::Incident {
                incident_id: 13,
                fault: "gpu-fault".into(),
                node_id: "studio".into(),
                job_id: 6,
                opened_unix_ms: NOW_MS - HOUR_MS,
                summary: "the worker of j6 on studio failed".into(),
                action: "restart after 0.5 s".into(),
                evidence: vec!["[METAL] <kIOGPUCommandBufferCallbackErrorTimeout> **".into()],
                ..v1::Incident::default()
            },
        ],
    }
}

fn quiet() -> v1::Report {
    v1::Report {
        since_unix_ms: NOW_MS - 24 * HOUR_MS,
        until_unix_ms: NOW_MS,
        verdict: "There was nothing to do.".into(),
        ..v1::Report::default()
    }
}

fn human(report: v1::Report, columns: Option<usize>) -> String {
    let text = human::report::report(&ReportView::from(report), &Screen::plain(columns));
    if let Some(columns) = columns {
        for line in text.lines() {
            assert!(width(line) <= columns, "wider than {columns}: {line:?}");
        }
    }
    text
}

#[test]
fn a_night() {
    insta::assert_snapshot!("wide", human(night(), Some(100)));
    insta::assert_snapshot!("narrow", human(night(), Some(60)));
    insta::assert_snapshot!("file", human(night(), None));
}

#[test]
fn a_quiet_night() {
    insta::assert_snapshot!("quiet", human(quiet(), Some(80)));
}

#[test]
fn every_width_is_kept() {
    for columns in 24..140 {
        human(night(), Some(columns));
    }
}

#[test]
fn json_shape() {
    let fake = Fake::start(World { report: night(), ..World::default() });
    let ended = ask(&fake, &["report", "--since", "12h", "--output", "json"]);
    assert_eq!(ended.code, 0);
    assert_eq!(fake.world.asked(), [r#"report since="12h""#]);
    insta::assert_json_snapshot!("json", ended.json());
}

#[test]
fn a_beginning_that_is_none_is_refused_by_the_controller() {
    let fake = Fake::start(World { report: quiet(), ..World::default() });
    let ended = ask(&fake, &["report"]);
    assert_eq!(ended.code, 0);
    assert!(
        ended.stdout.starts_with("# Nightshift, 2026-11-19 18:30 to 2026-11-20 18:30\n"),
        "{}",
        ended.stdout
    );
    let ended = ask(&fake, &["report", "--since", "yesterday"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (1, ""));
    assert_eq!(ended.stderr, "error: \"yesterday\" is no beginning of a report.\n");
}
