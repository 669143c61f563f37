//! The promises, tested: `crash` against simulated crashes at every step, `faults` against failing disks and stores,
//! `damage` against lost and changed files, `real` with sled and files, `speed` by hand.

mod crash;
mod damage;
mod faults;
mod helpers;
mod model;
mod real;
mod records;
mod speed;

use bytes::Bytes;

use crate::model::{Fault, FinishedRow, Incident, JobId, JobRecord, RowIx};

/// A job's record with defaults for everything.
fn job_record(job: u64, rows_total: u32) -> JobRecord {
    serde_json::from_value(serde_json::json!({
        "id": job,
        "spec": {"name": format!("job {job}"), "model": "tiny", "submission_id": format!("s{job}")},
        "rows_total": rows_total,
        "state": "active",
        "created_unix_ms": 1_000 + job,
    }))
    .unwrap()
}

/// An incident, recognisable by `mark`, with about so many bytes of evidence.
fn incident(id: u64, mark: u64, evidence_bytes: usize) -> Incident {
    Incident {
        id,
        fault: Fault::WorkerExited,
        node: Some("a".into()),
        job: Some(JobId(1)),
        opened_unix_ms: 1,
        times: 1,
        last_unix_ms: mark,
        closed_unix_ms: None,
        summary: "it ended".to_owned(),
        action: "it was started again".to_owned(),
        outcome: String::new(),
        evidence: vec!["e".repeat(400); evidence_bytes / 400],
        rows_requeued: 3,
        tokens_saved: 4,
        tokens_lost: 2,
        noticed_after_ms: Some(90),
        first_token_after_ms: None,
        start_ms: None,
        went_on_as: String::new(),
    }
}

/// An answer (200) or an error, recognisable by `mark`.
fn finished(job: u64, row: u32, status_code: u16, mark: u64) -> FinishedRow {
    let body = if status_code == 200 {
        format!(
            r#"{{"mark":{mark},"usage":{{"prompt_tokens":{},"completion_tokens":{}}}}}"#,
            row + 1,
            mark % 50
        )
    } else {
        format!(
            r#"{{"error":{{"message":"mark {mark}"}},"usage":{{"prompt_tokens":{},"completion_tokens":0}}}}"#,
            row + 1
        )
    };
    FinishedRow {
        job: JobId(job),
        row: RowIx(row),
        status_code,
        body: Bytes::from(body),
        request_id: format!("req-{mark}"),
        prompt_tokens: row + 1,
        completion_tokens: if status_code == 200 { (mark % 50) as u32 } else { 0 },
    }
}
