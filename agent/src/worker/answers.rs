//! Answers as they go into the spool.

use bytes::Bytes;
use nightshift_proto::v1::RowResult;

use super::{Key, machine::RefusedRow, protocol::RowAnswer};
use crate::util;

/// A body past this is no answer: the controller takes messages of twice that size at most.
const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;

/// What a worker answered.
#[must_use]
pub fn of_worker(key: Key, answer: RowAnswer) -> RowResult {
    let result = RowResult {
        worker: Some(key.to_proto()),
        row: answer.row,
        attempt: answer.attempt,
        status_code: answer.status,
        prompt_tokens: answer.prompt_tokens,
        completion_tokens: answer.completion_tokens,
        resumed_tokens: answer.resumed_tokens,
        emitted_unix_ms: util::unix_ms(),
        ..Default::default()
    };
    let len = answer.body.get().len();
    if len > MAX_BODY_BYTES {
        let problem = format!("the answer has {len} bytes, and {MAX_BODY_BYTES} are taken");
        return RowResult { status_code: 500, body: error_body("server_error", &problem), ..result };
    }
    RowResult { body: Bytes::from(String::from(Box::<str>::from(answer.body))), ..result }
}

/// What a row is answered that no worker may see.
#[must_use]
pub fn of_refusal(key: Key, row: RefusedRow) -> RowResult {
    RowResult {
        worker: Some(key.to_proto()),
        row: row.row,
        attempt: row.attempt,
        status_code: 400,
        body: error_body("invalid_request_error", &row.problem),
        emitted_unix_ms: util::unix_ms(),
        ..Default::default()
    }
}

fn error_body(kind: &str, message: &str) -> Bytes {
    let error = serde_json::json!({"error": {"message": message, "type": kind, "param": null, "code": null}});
    Bytes::from(error.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;

    #[test]
    fn an_answer_too_large_for_any_message_is_the_rows_failure() {
        let key = Key { job_id: 1, epoch: 1, rank: 0 };
        let answer = |len: usize| RowAnswer {
            row: 1,
            attempt: 1,
            status: 200,
            prompt_tokens: 1,
            completion_tokens: 1,
            resumed_tokens: 0,
            body: RawValue::from_string(format!("{{\"a\":\"{}\"}}", "x".repeat(len))).unwrap(),
        };
        let large = of_worker(key, answer(MAX_BODY_BYTES));
        assert!(large.status_code == 500 && large.body.len() < 300);
        assert_eq!(of_worker(key, answer(10)).body.len(), 18);
    }
}
