//! A row on its way from unfinished to durable.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::ids::{JobId, RowIx};

/// What is known of an unfinished row: enough to go on from there on any node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Checkpoint {
    /// All tokens generated so far, from the first.
    pub tokens: Vec<u32>,
    /// For rows that asked for logprobs: a JSON array with one entry a token; empty otherwise.
    pub logprobs_json: Vec<u8>,
    /// They are tokens of the job's fallback model, and of no use to its own.
    #[serde(default)]
    pub by_fallback: bool,
}

/// A row's outcome, about to be made durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FinishedRow {
    /// The job it belongs to.
    pub job: JobId,
    /// Its place in the input.
    pub row: RowIx,
    /// 200 goes to `results.jsonl`, everything else to `errors.jsonl`.
    pub status_code: u16,
    /// The response body: one JSON object without a line break.
    pub body: Bytes,
    /// Becomes `response.request_id`.
    pub request_id: String,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens generated.
    pub completion_tokens: u32,
}
