//! `clusterctl submit FILE --model M`, `clusterctl submit --prompts FILE --model M`

use std::path::{Path, PathBuf};

use nightshift_proto::v1;

use super::{
    JobId,
    mode::{MOST_CONTEXT_TOKENS, ModeChoice},
};
use crate::{
    App,
    error::{Error, Result},
    exit::Exit,
    output::{human, views::SubmitView},
};

pub mod prompts;
pub mod upload;

use prompts::RowDefaults;
use upload::Source;

const EXAMPLES: &str = "\
Examples:
  clusterctl submit rows.jsonl --model mlx-community/Qwen3-0.6B-4bit --watch
  clusterctl submit --prompts questions.txt --model /models/llama --system 'Be brief.'
  clusterctl submit rows.jsonl --model /models/llama --window 22:00-07:00 --deadline 07:00
  clusterctl submit rows.jsonl --model /models/large --fallback-model /models/small --fallback-policy 30m
  zcat rows.jsonl.gz | clusterctl submit - --model /models/llama --name nightly";

/// Arguments of `submit`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("input").required(true).args(["file", "prompts"]), after_help = EXAMPLES)]
pub struct Args {
    /// Rows in OpenAI Batch form, one JSON object a line; - for standard input
    file: Option<PathBuf>,
    /// Take one prompt a line instead (blank lines are skipped); - for standard input
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// A model directory on the nodes, or a name on the model hub
    #[arg(long, value_name = "PATH|NAME")]
    model: String,
    /// What to call the job [default: the file's name]
    #[arg(long)]
    name: Option<String>,
    /// Jobs with a higher priority run first
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// Rows generated together on a worker [default: the controller's]
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
    /// Longest answer where a row gives no max_tokens [default: the controller's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
    /// Prompt tokens processed in one step [default: the controller's]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    prefill_step: Option<u32>,
    /// Run it in this mode; where pipeline or tensor cannot be had, the job goes down the ladder until they can
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "auto|independent|pipeline|tensor",
        hide_possible_values = true
    )]
    mode: ModeChoice,
    /// Plan for rows of this many tokens, prompt and answer together [default: the longest row's, at two bytes a token]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MOST_CONTEXT_TOKENS))]
    context: Option<u64>,
    /// Start rows only between these times, each night or day, on the controller's clock; what is not finished goes on at
    /// the next opening
    #[arg(long, value_name = "HH:MM-HH:MM", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    window: Option<String>,
    /// Say in status, job and watch whether it will be done by then: a time (the next 07:00 on the controller's clock) or
    /// a moment (2026-11-21T07:00:00+01:00)
    #[arg(long, value_name = "WHEN", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    deadline: Option<String>,
    /// A smaller model, which fits single nodes, for when the model itself cannot run anywhere; its answers say so
    #[arg(long, value_name = "PATH|NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    fallback_model: Option<String>,
    /// When the fallback model answers: never, at-once, or how long to wait for the model itself, like 30m [default: 10m]
    #[arg(
        long,
        value_name = "never|at-once|TIME",
        requires = "fallback_model",
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    fallback_policy: Option<String>,
    /// Watch the job until it ends
    #[arg(long, short)]
    watch: bool,
    /// What every row of --prompts gets.
    #[command(flatten)]
    row: RowArgs,
}

/// What every row of `--prompts` gets.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "With --prompts")]
struct RowArgs {
    /// A system message before each prompt
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["file", "completions"])]
    system: Option<String>,
    /// Sampling temperature; 0 is greedy
    #[arg(
        long,
        value_name = "T",
        conflicts_with = "file",
        value_parser = |text: &str| number(text, 2.0),
        allow_negative_numbers = true
    )]
    temperature: Option<f64>,
    /// Nucleus sampling
    #[arg(
        long,
        value_name = "P",
        conflicts_with = "file",
        value_parser = |text: &str| number(text, 1.0),
        allow_negative_numbers = true
    )]
    top_p: Option<f64>,
    /// Seed of every row
    #[arg(long, value_name = "N", conflicts_with = "file")]
    seed: Option<u64>,
    /// Text that ends an answer; may be given several times
    #[arg(
        long,
        value_name = "TEXT",
        conflicts_with = "file",
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    stop: Vec<String>,
    /// Complete the text (/v1/completions) in place of answering it
    #[arg(long, conflicts_with = "file")]
    completions: bool,
}

/// A number that workers take: with another one, every row would end with a 400.
fn number(text: &str, most: f64) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.0..=most).contains(&number) => Ok(number),
        Ok(number) if number.is_finite() => Err(format!("must be between 0 and {most}")),
        _ => Err("not a number".to_owned()),
    }
}

/// Submits a job.
pub async fn run(args: Args, app: &mut App) -> Result<Exit> {
    let (path, is_prompts) = match (&args.file, &args.prompts) {
        (Some(file), _) => (file, false),
        (None, Some(prompts)) => (prompts, true),
        (None, None) => {
            return Err(Error::Usage {
                message: "Name a file of rows, or --prompts FILE.".to_owned(),
                hint: None,
            });
        }
    };
    let source = Source::open(path)?;
    let model = resolve_model(&args.model);
    let spec = v1::JobSpec {
        name: args.name.clone().unwrap_or_else(|| default_name(path)),
        model: model.clone(),
        priority: args.priority,
        max_batch_rows: args.batch.unwrap_or(0),
        default_max_tokens: args.max_tokens.unwrap_or(0),
        prefill_step_tokens: args.prefill_step.unwrap_or(0),
        submission_id: submission_id()?,
        mode: v1::Mode::from(args.mode).into(),
        context_tokens: args.context.unwrap_or(0),
        window: args.window.clone().unwrap_or_default(),
        deadline: args.deadline.clone().unwrap_or_default(),
        fallback_model: args.fallback_model.as_deref().map(resolve_model).unwrap_or_default(),
        fallback_policy: args.fallback_policy.clone().unwrap_or_default(),
    };
    let defaults = is_prompts.then(|| RowDefaults {
        model,
        completions: args.row.completions,
        system: args.row.system.clone(),
        max_tokens: args.max_tokens,
        temperature: args.row.temperature,
        top_p: args.row.top_p,
        seed: args.row.seed,
        stop: args.row.stop.clone(),
    });

    let mut client = app.connect().await?;
    let reply = upload::upload(&mut client, spec, &source, defaults.as_ref(), &app.output).await?;
    let job_id = match &reply.outcome {
        Some(v1::submit_reply::Outcome::Accepted(job)) => Some(JobId(job.job_id)),
        _ => None,
    };
    let view = SubmitView::new(reply, if is_prompts { "row" } else { "line" });
    let watching = args.watch && job_id.is_some();
    if watching && app.output.is_json() {
        app.output.item(&view, |_, _| Vec::new())?;
    } else {
        app.output.value(&view, |view, screen| {
            human::submit::submitted(view, &source.describe(), watching, screen)
        })?;
    }
    match job_id {
        Some(id) if args.watch => super::watch::follow(Some(id), client, &app.output).await,
        Some(_) => Ok(Exit::Ok),
        None => Ok(Exit::Failed),
    }
}

/// The file's name without its ending; nothing for standard input.
fn default_name(path: &Path) -> String {
    if path.as_os_str() == "-" {
        return String::new();
    }
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

/// A path is made absolute, because workers run elsewhere; a name stays. What begins with `/` or `.` is a path, and so is
/// a directory of that name with a model in it.
pub fn resolve_model(model: &str) -> String {
    let is_path = model.starts_with(['/', '.']) || Path::new(model).join("config.json").is_file();
    if !is_path {
        return model.to_owned();
    }
    let path = Path::new(model);
    match path.canonicalize().or_else(|_| std::path::absolute(path)) {
        Ok(absolute) => absolute.to_string_lossy().into_owned(),
        Err(_) => model.to_owned(),
    }
}

/// A number nobody else draws, so that a submission sent twice is one job.
pub fn submission_id() -> Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::local(format!("The system gives no random numbers: {e}.")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_paths_become_absolute_and_names_stay() {
        assert_eq!(resolve_model("mlx-community/Qwen3-0.6B-4bit"), "mlx-community/Qwen3-0.6B-4bit");
        assert_eq!(resolve_model("/nowhere/model"), "/nowhere/model");
        assert!(resolve_model("./nowhere").starts_with('/'));
    }

    #[test]
    fn submission_ids_differ() {
        assert_ne!(submission_id().unwrap(), submission_id().unwrap());
        assert_eq!(submission_id().unwrap().len(), 32);
    }
}
