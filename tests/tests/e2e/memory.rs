//! What a plan says a node needs is what workers come to take: weights, caches and what is computed on the way, held
//! against MLX's own peak in real workers at full load.

use nightshift_proto::v1::{Job, JobSpec, JobState, Mode};
use nightshift_tests::{
    cluster::Cluster,
    control, models,
    rows::Input,
    suite::{Case, Need, case},
    wait,
};
use serde_json::{Value, json};

use crate::sharded::ONE_AT_A_TIME;

const NEEDS: &[Need] = &[Need::Runtime, Need::Linux];

/// A plan's context may be all prompt, and is counted so: answers are short here, and in the small shapes end where a cache,
/// which grows by 256 tokens, is full.
const ANSWER_TOKENS: u32 = 4;

/// One more row, of next to nothing, keeps the worker until the peak of the others has been told.
const LAST_TOKENS: u32 = 64;

/// Of steps: reading as much as was planned for takes a processor a while, and on a busy machine it takes minutes.
const STEP_BUDGET: &str = "[recovery]\nstep_budget_ms = 600000\n";

/// A prediction may be off by this share of the peak.
const MOST_PERCENT_OFF: f64 = 5.0;

/// A model and a load.
struct Shape {
    architecture: &'static str,
    options: &'static [&'static str],
    mode: Mode,
    rows: u32,
    prompt_tokens: u32,
    prefill_rows: u32,
    prefill_step_tokens: u32,
}

/// 40 to 70 MB of weights; a hundred or two of caches and computation.
const SMALL: Shape = Shape {
    architecture: "llama",
    options: &["--hidden", "512", "--layers", "4", "--dtype", "float32"],
    mode: Mode::Independent,
    rows: 4,
    prompt_tokens: 4 * 256 - ANSWER_TOKENS,
    prefill_rows: 4,
    prefill_step_tokens: 256,
};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("memory::a_small_llama_takes_what_was_said", NEEDS, || measured("llama", SMALL)),
        case("memory::half_precision_takes_what_was_said", NEEDS, || {
            let options = &["--hidden", "512", "--layers", "4", "--dtype", "bfloat16"];
            measured("half", Shape { options, ..SMALL })
        }),
        case("memory::experts_take_what_was_said", NEEDS, || {
            measured("experts", Shape { architecture: "qwen3_moe", ..SMALL })
        }),
        case("memory::latents_take_what_was_said", NEEDS, || {
            measured("latents", Shape { architecture: "deepseek_v3", ..SMALL })
        }),
        case("memory::sinks_and_windows_take_what_was_said", NEEDS, || {
            measured("sinks", Shape { architecture: "gpt_oss", ..SMALL })
        }),
        case("memory::the_ranks_of_a_pipeline_take_what_was_said", NEEDS, || {
            let options = &["--hidden", "512", "--layers", "9", "--dtype", "float32"];
            measured("pipeline", Shape { mode: Mode::Pipeline, options, ..SMALL })
        }),
        case("memory::the_ranks_of_a_tensor_run_take_what_was_said", NEEDS, || {
            measured("tensor", Shape { mode: Mode::Tensor, ..SMALL })
        }),
        case("memory::the_ranks_of_a_model_of_more_than_a_gigabyte_take_what_was_said", NEEDS, || {
            let options = &["--hidden", "2048", "--layers", "8", "--dtype", "float32"];
            // Little to read: a token is more than half a billion operations, on a processor.
            let small =
                Shape { rows: 2, prompt_tokens: 128 - ANSWER_TOKENS, prefill_step_tokens: 128, ..SMALL };
            measured("gigabyte", Shape { mode: Mode::Pipeline, options, ..small })
        }),
    ]
}

/// Runs as many rows as go together, all of the length that was planned for.
async fn measured(name: &str, shape: Shape) {
    let is_gang = shape.mode != Mode::Independent;
    let agents = if is_gang { 2 } else { 1 };
    let _alone = if is_gang { Some(ONE_AT_A_TIME.lock().await) } else { None };
    let config = format!(
        "[gangs]\nnetworks = [\"127.0.0.0/8\"]\nsettle_ms = 500\nfirst_port = {}\nports = 100\n\
         [jobs]\nprefill_batch_rows = {}\nprefill_step_tokens = {}\n{STEP_BUDGET}",
        22_400 + 100 * shape.mode as i32,
        shape.prefill_rows,
        shape.prefill_step_tokens
    );
    let cluster = Cluster::builder(&format!("memory-{name}")).agents(agents).config(&config).start().await;
    let model = models::tiny(shape.architecture, &[shape.options, &["--max-position", "4096"]].concat());
    let context_tokens = u64::from(shape.prompt_tokens + ANSWER_TOKENS);
    let (context, rows) = (context_tokens.to_string(), shape.rows.to_string());
    let mode = shape.mode.as_str_name().trim_start_matches("MODE_").to_lowercase();
    let model_name = model.to_string_lossy();
    let plan = ["plan", "--model", &model_name, "--context", &context, "--rows", &rows, "--mode", &mode];
    let plan = cluster.ctl(&[&plan[..], &["--output", "json"]].concat()).await.expect_code(0);
    let plan: Value = serde_json::from_str(&plan.stdout).expect("a plan is one JSON object");

    let spec = JobSpec {
        max_batch_rows: shape.rows,
        context_tokens,
        mode: shape.mode.into(),
        ..control::spec(name, &*model)
    };
    let mut input = Input::new();
    for number in 0..=shape.rows {
        let is_last = number == shape.rows;
        let (tokens, max_tokens) =
            if is_last { (4, LAST_TOKENS) } else { (shape.prompt_tokens, ANSWER_TOKENS) };
        // Token numbers, so that every prompt is as long as it is planned.
        let prompt: Vec<u32> = (0..tokens).map(|at| 20 + (at * 7 + number * 31) % 400).collect();
        let body = json!({"model": "tiny", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0});
        input.row(&format!("row-{number}"), "/v1/completions", body);
    }
    let job = cluster.control().submit(spec, input.jsonl()).await;
    let mut peaks = vec![0; agents];
    let note = |job: &Job, peaks: &mut Vec<u64>| {
        for worker in &job.workers {
            let rank = worker.worker.map_or(0, |id| id.rank as usize);
            peaks[rank] = worker.peak_memory_bytes.max(peaks[rank]);
        }
        job.state() == JobState::Completed
    };
    let job = cluster
        .control()
        .wait_job(job.job_id, "all rows answered", wait::LONG, |job| note(job, &mut peaks))
        .await;
    assert_eq!(job.rows_succeeded, u64::from(shape.rows + 1));
    assert_eq!(job.mode(), shape.mode);

    let mut off = Vec::new();
    for (rank, peak) in peaks.iter().enumerate() {
        let parts = plan["parts"].as_array().expect("a part a rank");
        let part =
            parts.iter().find(|part| part["rank"].as_u64().unwrap_or(0) == rank as u64).expect("its part");
        let number = |name: &str| part[name].as_u64().unwrap_or_else(|| panic!("{name} in {part:#}"));
        // MLX's own, which its count of the peak leaves out.
        let predicted = number("total_bytes") - number("overhead_bytes");
        let percent = (predicted as f64 / *peak as f64 - 1.0) * 100.0;
        let line =
            format!("{name} rank {rank}: peak {peak}, predicted {predicted} ({percent:+.1} %): {part}");
        eprintln!("{line}");
        if percent.abs() > MOST_PERCENT_OFF {
            off.push(line);
        }
    }
    assert!(off.is_empty(), "predictions are off:\n{}", off.join("\n"));
    cluster.finish().await;
}
