//! The JSON lines between agent and worker.
//!
//! A row's request and an answer's body pass through as they are: they are checked to be JSON and never rebuilt. The
//! event of a decode step is read in one pass without a copy, because there is one for every token.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::util;

/// The version both sides name.
pub const VERSION: u32 = 1;

/// How much of a bad line is shown as evidence.
const SHOWN_BYTES: usize = 200;

/// A line that is not of the protocol.
#[derive(Debug, thiserror::Error)]
#[error("the worker wrote a line that is not of the protocol ({reason}): {shown}")]
pub struct Malformed {
    reason: String,
    shown: String,
}

/// What a worker says.
#[derive(Debug)]
pub enum Event {
    /// First of all.
    Hello(Hello),
    /// The model is loaded.
    Ready(Ready),
    /// A step was made.
    Step(Step),
    /// There is nothing to do; said again every second.
    Idle(Idle),
    /// Generation of these rows has begun.
    Started(RowNumbers),
    /// Tokens of unfinished rows.
    Checkpoint(Checkpoint),
    /// A row is done.
    Result(RowAnswer),
    /// These rows are handed back.
    Returned(RowNumbers),
    /// These rows are gone, as asked.
    Cancelled(RowNumbers),
    /// What a link that was tried can do.
    Measured(Measured),
    /// The end, by an error.
    Fatal(Fatal),
    /// News of a kind that nothing here depends on.
    Other(String),
}

/// See [`Event::Hello`].
#[derive(Debug, Deserialize)]
pub struct Hello {
    /// Must be [`VERSION`].
    pub protocol: u32,
    /// Of Python.
    pub python: String,
    /// Of MLX.
    pub mlx: String,
    /// Of mlx-lm.
    pub mlx_lm: String,
}

/// See [`Event::Ready`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Ready {
    /// Time the load took.
    pub load_ms: u64,
    /// After loading.
    pub peak_memory_bytes: u64,
    /// Whether chat requests can be answered.
    pub has_chat_template: bool,
    /// As in config.json.
    pub model_type: String,
    /// Where it was asked for; at rank 0 of a gang always.
    #[serde(default)]
    pub canary: Option<CanaryAnswer>,
    /// Until the ranks of a gang had found one another.
    #[serde(default)]
    pub rendezvous_ms: u64,
    /// From then until MLX's group of them stood.
    #[serde(default)]
    pub form_ms: u64,
}

/// See [`Ready::canary`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct CanaryAnswer {
    /// Greedy tokens.
    pub tokens: Vec<u32>,
    /// How long the ranks of a gang took over it.
    #[serde(default)]
    pub prompt_ms: u64,
}

/// What kind of step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepPhase {
    /// Prompts were read.
    Prefill,
    /// Tokens were generated.
    Decode,
}

/// See [`Event::Step`]. Totals since the worker started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Step {
    /// Number of this step.
    pub n: u64,
    /// Its kind.
    pub phase: StepPhase,
    /// Rows in the batch.
    pub active: u32,
    /// Rows not begun.
    pub waiting: u32,
    /// Tokens read.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Of MLX's allocator.
    pub peak_memory_bytes: u64,
}

/// See [`Event::Idle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Idle {
    /// Steps so far.
    pub n: u64,
}

/// Some rows.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RowNumbers {
    /// Their numbers.
    pub rows: Vec<u32>,
}

/// See [`Event::Checkpoint`].
#[derive(Debug, Deserialize)]
pub struct Checkpoint {
    /// One entry a row.
    pub rows: Vec<CheckpointRow>,
}

/// Tokens of one row.
#[derive(Debug, Deserialize)]
pub struct CheckpointRow {
    /// Which.
    pub row: u32,
    /// Of which attempt.
    pub attempt: u32,
    /// Position of the first of `tokens` among all tokens of the answer, those it was resumed from included.
    pub offset: u32,
    /// From there on.
    pub tokens: Vec<u32>,
    /// One entry a token, for rows that asked for them.
    #[serde(default)]
    pub logprobs: Option<Vec<Box<RawValue>>>,
}

/// See [`Event::Result`].
#[derive(Debug, Deserialize)]
pub struct RowAnswer {
    /// Which.
    pub row: u32,
    /// Of which attempt.
    pub attempt: u32,
    /// As in HTTP.
    pub status: u32,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// Of these, how many came with the row.
    pub resumed_tokens: u32,
    /// A JSON object.
    pub body: Box<RawValue>,
}

/// See [`Event::Measured`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Measured {
    /// A sum of one number, the median.
    pub round_trip_us: u64,
    /// Exchanged in a large sum, the best of a few.
    pub bytes_per_s: u64,
}

/// What a worker thinks ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it, and `v1::ExitClass` documents each")]
pub enum FatalClass {
    ModelUnreadable,
    ModelUnsupported,
    OutOfMemory,
    GpuFault,
    LinkFault,
    Apart,
    CanaryFailed,
    Crashed,
}

/// See [`Event::Fatal`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Fatal {
    /// What kind of error.
    pub class: FatalClass,
    /// One sentence.
    pub message: String,
}

/// Reads a line.
///
/// # Errors
/// [`Malformed`], with the beginning of the line.
pub fn parse(line: &[u8]) -> Result<Event, Malformed> {
    parse_event(line).map_err(|reason| Malformed {
        reason,
        shown: util::clip(&String::from_utf8_lossy(&line[..line.len().min(2 * SHOWN_BYTES)]), SHOWN_BYTES),
    })
}

fn parse_event(line: &[u8]) -> Result<Event, String> {
    #[derive(Deserialize)]
    struct Kind {
        ev: String,
    }

    fn read<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Result<T, String> {
        serde_json::from_slice(line).map_err(|error| error.to_string())
    }

    if line.starts_with(br#"{"ev":"step""#) {
        return read(line).map(Event::Step);
    }
    match read::<Kind>(line)?.ev.as_str() {
        "hello" => read(line).map(Event::Hello),
        "ready" => read(line).map(Event::Ready),
        "step" => read(line).map(Event::Step),
        "idle" => read(line).map(Event::Idle),
        "started" => read(line).map(Event::Started),
        "checkpoint" => read::<Checkpoint>(line).and_then(check_logprobs).map(Event::Checkpoint),
        "result" => read::<RowAnswer>(line).and_then(check_body).map(Event::Result),
        "returned" => read(line).map(Event::Returned),
        "cancelled" => read(line).map(Event::Cancelled),
        "measured" => read(line).map(Event::Measured),
        "fatal" => read(line).map(Event::Fatal),
        other => Ok(Event::Other(util::clip(other, SHOWN_BYTES))),
    }
}

fn check_logprobs(checkpoint: Checkpoint) -> Result<Checkpoint, String> {
    let fits =
        |row: &CheckpointRow| row.logprobs.as_ref().is_none_or(|entries| entries.len() == row.tokens.len());
    match checkpoint.rows.iter().find(|row| !fits(row)) {
        Some(row) => Err(format!("row {} has not one logprobs entry a token", row.row)),
        None => Ok(checkpoint),
    }
}

fn check_body(answer: RowAnswer) -> Result<RowAnswer, String> {
    if answer.body.get().starts_with('{') { Ok(answer) } else { Err("the body is not an object".to_owned()) }
}

/// What a worker is told first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Init {
    /// [`VERSION`].
    pub protocol: u32,
    /// A directory, or a name on the hub.
    pub model: String,
    /// Rows generated together.
    pub max_batch_rows: u32,
    /// Rows whose prompts are read together.
    pub prefill_batch_rows: u32,
    /// Tokens of a prompt read in one step.
    pub prefill_step_tokens: u32,
    /// Between checkpoints.
    pub checkpoint_interval_ms: u64,
    /// Where a row gives no `max_tokens`.
    pub default_max_tokens: u32,
    /// For example `j7`.
    pub job: String,
    /// Seeds of rows are derived from it.
    pub seed_base: String,
    /// 0 for an independent worker.
    pub rank: u32,
    /// 1 for an independent worker.
    pub world_size: u32,
    /// Absent for an independent worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gang: Option<GangInit>,
    /// What an independent worker is to answer before it is ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryInit>,
}

/// What a rank is told about its gang (gang.py).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GangInit {
    /// `pipeline` or `tensor`.
    pub mode: &'static str,
    /// `ring`, `jaccl` or `jaccl-ring`.
    pub backend: &'static str,
    /// As in [`Init`].
    pub rank: u32,
    /// As in [`Init`].
    pub world_size: u32,
    /// First layer and end of each rank, in rank order; empty for `tensor`.
    pub layers: Vec<[u32; 2]>,
    /// "ip:port" where rank 0 listens, or is.
    pub control: String,
    /// By which ranks know one another.
    pub secret: Secret,
    /// How long they may take to find one another.
    pub rendezvous_timeout_ms: u64,
    /// `None`: as the worker thinks best.
    pub canary: Option<CanaryInit>,
}

/// See [`GangInit::canary`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CanaryInit {
    /// `None`: a prompt made from the size of the vocabulary.
    pub tokens: Option<Vec<u32>>,
    /// To generate.
    pub max_tokens: u32,
    /// What one node alone answered, where that is on record.
    pub expect: Option<Vec<u32>>,
}

/// Hexadecimal, and never in a log.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Of these bytes.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Secret(…)")
    }
}

/// A row on its way to the worker.
#[derive(Debug, Serialize)]
pub struct RowOrder<'a> {
    /// Which.
    pub row: u32,
    /// Which attempt.
    pub attempt: u32,
    /// The line of the input file.
    pub request: &'a RawValue,
    /// Of earlier attempts.
    pub tokens: &'a [u32],
    /// One entry a token, where the row asked for them.
    pub logprobs: Option<&'a [Box<RawValue>]>,
}

/// What a worker is told.
#[derive(Debug, Serialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum Command<'a> {
    /// First of all.
    Init(&'a Init),
    /// In its place: no model, only a link to try.
    #[serde(rename = "test_link")]
    TestLink {
        /// The two ranks.
        gang: &'a GangInit,
        /// As in `gang`.
        rank: u32,
        /// 2.
        world_size: u32,
    },
    /// Take these rows.
    Rows {
        /// Them.
        rows: &'a [RowOrder<'a>],
    },
    /// Forget these rows.
    Cancel {
        /// Their numbers.
        rows: &'a [u32],
    },
    /// Finish what is begun, then end.
    Finish,
    /// Hand everything back, then end.
    Checkpoint,
    /// To a rank: the gang is given up. Heard even by a rank that is blocked inside MLX.
    Abandon,
}

impl Command<'_> {
    /// The line, with its end.
    #[must_use]
    pub fn to_line(&self) -> Vec<u8> {
        // These types hold nothing that could fail to become JSON.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STEP: &str = r#"{"ev":"step","n":17,"phase":"decode","active":3,"waiting":2,"prompt_tokens":10,"generated_tokens":5,"peak_memory_bytes":99}"#;
    const RESULT: &str = r#"{"ev":"result","row":17,"attempt":1,"status":200,"prompt_tokens":4,"completion_tokens":2,"resumed_tokens":0,"body":{"a": 1.50,"b":"é"}}"#;
    const CHECKPOINT: &str = r#"{"ev":"checkpoint","rows":[{"row":17,"attempt":1,"offset":40,"tokens":[1,2],"logprobs":[{"x":1},null]}]}"#;

    #[test]
    fn every_event_is_read() {
        let Event::Step(step) = parse(STEP.as_bytes()).unwrap() else { panic!() };
        assert_eq!((step.n, step.phase, step.generated_tokens), (17, StepPhase::Decode, 5));
        let Event::Result(answer) = parse(RESULT.as_bytes()).unwrap() else { panic!() };
        assert_eq!(answer.body.get(), r#"{"a": 1.50,"b":"é"}"#, "the body passes through byte by byte");
        let Event::Checkpoint(checkpoint) = parse(CHECKPOINT.as_bytes()).unwrap() else { panic!() };
        assert_eq!(checkpoint.rows[0].logprobs.as_ref().unwrap()[0].get(), r#"{"x":1}"#);
        for (line, is) in [
            (
                r#"{"ev":"hello","protocol":1,"pid":3,"python":"3.11.7","mlx":"0.32.4","mlx_lm":"0.32.2"}"#,
                "Hello",
            ),
            (
                r#"{"ev":"ready","load_ms":3,"peak_memory_bytes":1,"has_chat_template":true,"model_type":"llama"}"#,
                "Ready",
            ),
            (
                r#"{"ev":"ready","load_ms":3,"peak_memory_bytes":1,"has_chat_template":true,"model_type":"llama","canary":{"tokens":[5,6],"all_reduce_ms":0.1,"prompt_ms":9},"rendezvous_ms":40,"form_ms":3}"#,
                "Ready(Ready { load_ms: 3, peak_memory_bytes: 1, has_chat_template: true, model_type: \"llama\", canary: Some(CanaryAnswer { tokens: [5, 6], prompt_ms: 9 }), rendezvous_ms: 40, form_ms: 3 })",
            ),
            (r#"{"ev":"loading","share":0.5}"#, "Other(\"loading\")"),
            (
                r#"{"ev":"measured","round_trip_us":35,"bytes_per_s":8000000000}"#,
                "Measured(Measured { round_trip_us: 35, bytes_per_s: 8000000000 })",
            ),
            (r#"{"ev":"fatal","class":"canary_failed","message":"no"}"#, "Fatal(Fatal { class: CanaryFailed"),
            (r#"{"n":3,"ev":"idle"}"#, "Idle"),
            (r#"{"ev":"started","rows":[1]}"#, "Started"),
            (r#"{"ev":"returned","rows":[1]}"#, "Returned"),
            (r#"{"ev":"cancelled","rows":[1]}"#, "Cancelled"),
            (r#"{"ev":"fatal","class":"out_of_memory","message":"no"}"#, "Fatal"),
        ] {
            assert!(format!("{:?}", parse(line.as_bytes()).unwrap()).starts_with(is));
        }
    }

    #[test]
    fn what_is_not_of_the_protocol_is_shown() {
        for (line, says) in [
            ("Loading weights…", "expected value"),
            (r#"{"event":"dance"}"#, "missing field `ev`"),
            (r#"{"ev":"step","n":-1}"#, "invalid"),
            (r#"{"ev":"result","row":1}"#, "missing field `attempt`"),
            (&RESULT.replace(r#"{"a": 1.50,"b":"é"}"#, "[]"), "the body is not an object"),
            (&CHECKPOINT.replace(",null", ""), "row 17 has not one logprobs entry a token"),
            (r#"{"ev":"fatal","class":"tired","message":"no"}"#, "unknown variant `tired`"),
        ] {
            let error = parse(line.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains(&line[..8]), "{error}");
        }
        let long = parse("x".repeat(10_000).as_bytes()).unwrap_err().to_string();
        assert!(long.len() < 400);
    }

    #[test]
    fn an_independent_worker_is_told_of_no_gang() {
        let init = Init {
            protocol: VERSION,
            model: "/m".into(),
            max_batch_rows: 1,
            prefill_batch_rows: 1,
            prefill_step_tokens: 1,
            checkpoint_interval_ms: 1,
            default_max_tokens: 1,
            job: "j7".into(),
            seed_base: "j7".into(),
            rank: 0,
            world_size: 1,
            gang: None,
            canary: None,
        };
        let line = String::from_utf8(Command::Init(&init).to_line()).unwrap();
        assert!(line.ends_with("\"rank\":0,\"world_size\":1}\n"), "{line}");
    }

    #[test]
    fn commands_are_one_line() {
        let request = RawValue::from_string(r#"{"custom_id":"a","body":{"n": 1.0}}"#.into()).unwrap();
        let rows = [RowOrder { row: 1, attempt: 2, request: &request, tokens: &[3], logprobs: None }];
        let line = String::from_utf8(Command::Rows { rows: &rows }.to_line()).unwrap();
        assert_eq!(
            line,
            "{\"op\":\"rows\",\"rows\":[{\"row\":1,\"attempt\":2,\"request\":{\"custom_id\":\"a\",\"body\":{\"n\": 1.0}},\"tokens\":[3],\"logprobs\":null}]}\n"
        );
        assert_eq!(Command::Finish.to_line(), b"{\"op\":\"finish\"}\n");
        assert_eq!(Command::Cancel { rows: &[4, 5] }.to_line(), b"{\"op\":\"cancel\",\"rows\":[4,5]}\n");
    }

    proptest! {
        #[test]
        fn no_line_panics(
            line in prop_oneof![Just(STEP), Just(RESULT), Just(CHECKPOINT)],
            at in any::<prop::sample::Index>(),
            cut in 0..20_usize,
            put in proptest::collection::vec(any::<u8>(), 0..20),
        ) {
            let (bytes, at) = (line.as_bytes(), at.index(line.len()));
            let mutated = [&bytes[..at], &put, &bytes[(at + cut).min(bytes.len())..]].concat();
            let _ = parse(&mutated);
        }
    }
}
