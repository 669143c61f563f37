//! Lines of `results.jsonl` and `errors.jsonl`: OpenAI Batch output rows (FIELD-NOTES 9), written and read back.
//!
//! The `id` carries job and row (`batch_req_j7_17`), so that a lost ledger can be rebuilt from the lines alone.

use std::{borrow::Cow, io::Write};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::json;
use crate::model::{FinishedRow, JobId, RowIx};

/// Levels a response body may be nested. Readers in other languages recurse; Python's stops at about a thousand.
const BODY_LEVELS_MAX: usize = 512;

/// Bytes a response body may have; far above what a message of the session protocol carries. Whoever reads lines back
/// may count on [`LINE_BYTES_MAX`].
const BODY_BYTES_MAX: usize = 48 << 20;

/// No line is longer, line break included.
pub(crate) const LINE_BYTES_MAX: usize = 64 << 20;

/// What stands in for a body that would break the file.
const BAD_BODY: &str = r#"{"error":{"message":"the worker's answer was not one JSON object on one line","type":"server_error","param":null,"code":"bad_response_body"}}"#;

/// A row's outcome in a form that can go into a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome<'a> {
    pub(crate) status_code: u16,
    body: &'a str,
}

/// A row's outcome; 500 when its body cannot go into the file.
pub(crate) fn outcome(row: &FinishedRow) -> Outcome<'_> {
    match check_body(&row.body) {
        Some(body) => Outcome { status_code: http_status(row.status_code), body },
        None => Outcome { status_code: 500, body: BAD_BODY },
    }
}

/// Writes a row's line. `custom_id` is the JSON string as it is in the input.
pub(crate) fn write(out: &mut Vec<u8>, row: &FinishedRow, outcome: Outcome<'_>, custom_id: &str) {
    let Outcome { status_code, body } = outcome;
    // Writing into a vector cannot fail, and a string always has a JSON form.
    let _ = write!(
        out,
        r#"{{"id":"batch_req_{}_{}","custom_id":{custom_id},"response":{{"status_code":{status_code},"request_id":"#,
        row.job, row.row
    );
    let _ = serde_json::to_writer(&mut *out, &row.request_id);
    let _ = write!(out, r#","body":{body}}},"error":null}}"#);
    out.push(b'\n');
}

/// A status a reader can make sense of; 0 is a row we gave up on.
fn http_status(status_code: u16) -> u16 {
    if (100..600).contains(&status_code) { status_code } else { 500 }
}

/// The body as text when it is one JSON object without a line break (a carriage return is one to many readers).
fn check_body(body: &[u8]) -> Option<&str> {
    if body.len() > BODY_BYTES_MAX {
        return None;
    }
    let text = std::str::from_utf8(body).ok()?;
    let whole = serde_json::from_str::<&RawValue>(text).ok()?.get();
    let one_line = !whole.bytes().any(|byte| byte == b'\n' || byte == b'\r');
    (whole.starts_with('{') && one_line && json::levels_at_most(body, BODY_LEVELS_MAX)).then_some(whole)
}

/// A line read back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Line {
    pub(crate) row: RowIx,
    pub(crate) status_code: u16,
    pub(crate) prompt_tokens: u32,
    pub(crate) completion_tokens: u32,
    /// Which model signed it; empty where none did.
    pub(crate) model: String,
}

/// Reads a line (without its line break) of the given job. `None`: it is not a line we wrote.
pub(crate) fn parse(line: &[u8], job: JobId) -> Option<Line> {
    let text = std::str::from_utf8(line).ok()?;
    let parsed: Written<'_> = serde_json::from_str(text).ok()?;
    let (of_job, row) = parsed.id.strip_prefix("batch_req_j")?.split_once('_')?;
    if of_job.parse() != Ok(job.0) || !parsed.response.body.get().starts_with('{') {
        return None;
    }
    let Body { usage, model } = serde_json::from_str(parsed.response.body.get()).unwrap_or_default();
    let Usage { prompt_tokens, completion_tokens } = usage.unwrap_or_default();
    let status_code = parsed.response.status_code;
    let row = RowIx(row.parse().ok()?);
    Some(Line { row, status_code, prompt_tokens, completion_tokens, model })
}

/// Which model signed an answer; empty where none did.
pub(crate) fn signature(body: &[u8]) -> String {
    serde_json::from_slice::<Body>(body).unwrap_or_default().model
}

/// The JSON string `custom_id` of an input row, as it is written there.
pub(crate) fn custom_id(input_line: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(input_line).ok()?;
    let row: InputRow<'_> = serde_json::from_str(text).ok()?;
    row.custom_id.map(RawValue::get).filter(|json| json.starts_with('"'))
}

#[derive(Deserialize)]
struct InputRow<'a> {
    #[serde(borrow)]
    custom_id: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Written<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    response: Response<'a>,
}

#[derive(Deserialize)]
struct Response<'a> {
    status_code: u16,
    #[serde(borrow)]
    body: &'a RawValue,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Body {
    usage: Option<Usage>,
    model: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn row(status_code: u16, body: &[u8]) -> FinishedRow {
        FinishedRow {
            job: JobId(7),
            row: RowIx(17),
            status_code,
            body: Bytes::copy_from_slice(body),
            request_id: "req_\"1\"".into(),
            prompt_tokens: 3,
            completion_tokens: 4,
        }
    }

    fn written(row: &FinishedRow) -> (String, u16) {
        let mut out = Vec::new();
        let outcome = outcome(row);
        write(&mut out, row, outcome, r#""a\u0062c""#);
        (String::from_utf8(out).unwrap(), outcome.status_code)
    }

    #[test]
    fn a_line_has_the_form_of_openai_batch_output() {
        let body = br#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}"#;
        let (line, status) = written(&row(200, body));
        assert_eq!(
            line,
            concat!(
                r#"{"id":"batch_req_j7_17","custom_id":"a\u0062c","response":{"status_code":200,"request_id":"req_\"1\"","#,
                r#""body":{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}},"error":null}"#,
                "\n"
            )
        );
        assert_eq!(status, 200);
        let expected = Line {
            row: RowIx(17),
            status_code: 200,
            prompt_tokens: 3,
            completion_tokens: 4,
            model: String::new(),
        };
        assert_eq!(parse(line.trim_end().as_bytes(), JobId(7)), Some(expected));
        assert_eq!(parse(line.trim_end().as_bytes(), JobId(8)), None, "a line of another job");
    }

    #[test]
    fn a_body_that_would_break_the_file_becomes_an_error() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        let bodies: [&[u8]; 9] = [
            b"",
            b"not json",
            b"[1]",
            b"\"text\"",
            b"{\"a\":\n1}",
            b"{\"a\":\r1}",
            b"{} {}",
            b"{\"a\":\"\xff\"}",
            deep.as_bytes(),
        ];
        for body in bodies {
            let (line, status) = written(&row(200, body));
            assert_eq!(status, 500);
            let value: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(value["response"]["status_code"], 500);
            assert_eq!(value["response"]["body"]["error"]["code"], "bad_response_body");
            assert_eq!(line.matches('\n').count(), 1);
        }
    }

    #[test]
    fn rows_given_up_get_a_status_readers_know() {
        assert_eq!(written(&row(0, br#"{"error":{"message":"m"}}"#)).1, 500);
        assert_eq!(written(&row(400, br#"{"error":{"message":"m"}}"#)).1, 400);
    }

    #[test]
    fn custom_ids_are_taken_as_they_are() {
        assert_eq!(
            custom_id(br#"{"body":{"custom_id":1},"custom_id":"\u00e4","x":[]}"#),
            Some(r#""\u00e4""#)
        );
        assert_eq!(custom_id(br#"{"custom_id":7}"#), None);
        assert_eq!(custom_id(b"rubbish"), None);
    }

    proptest! {
        #[test]
        fn any_body_makes_one_valid_line(body in prop::collection::vec(any::<u8>(), 0..60), status in any::<u16>()) {
            let mut out = Vec::new();
            let row = row(status, &body);
            let outcome = outcome(&row);
            write(&mut out, &row, outcome, "\"id\"");
            let line = parse(&out[..out.len() - 1], JobId(7));
            prop_assert_eq!(line.map(|l| (l.row, l.status_code)), Some((RowIx(17), outcome.status_code)));
        }

        #[test]
        fn parsing_never_panics(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&line, JobId(7));
            let _ = custom_id(&line);
        }
    }
}
