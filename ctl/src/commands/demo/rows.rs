//! What the demo asks: built-in prompts, or a file of them.

use std::{
    fs::File,
    io::{BufWriter, Read, Write},
    path::Path,
};

use serde_json::json;

use super::{DEFAULT_ROWS, Plan};
use crate::{
    commands::submit::prompts::{Converter, RowDefaults},
    error::{Error, Result},
};

/// The longest answer a real model gives, unless told otherwise.
const DEFAULT_MAX_TOKENS: u32 = 256;

/// Answers of the tiny model are this long: random weights do not know when to stop, and a demo should last long enough
/// to see something, with rows that end at different times.
const TINY_MIN_TOKENS: u32 = 240;
const TINY_MORE_TOKENS: u32 = 360;

/// Read and converted at once.
const BLOCK_BYTES: usize = 64 * 1024;

const QUESTIONS: [&str; 24] = [
    "Why does the moon always show us the same face?",
    "Write a haiku about a computer that works at night.",
    "Explain what a checksum is to a ten-year-old.",
    "What is the difference between weather and climate?",
    "Give three reasons why bread rises.",
    "Summarise the plot of Hamlet.",
    "How does a refrigerator move heat from cold to warm?",
    "Translate into French: the night is long, but the work is done.",
    "What would you pack for two days on a mountain hut?",
    "Name a famous bridge and say how it carries its load.",
    "Why do cats purr?",
    "Write a short letter of thanks to a neighbour.",
    "How many prime numbers are there below 50? List them.",
    "What makes a good error message?",
    "Describe the taste of a lemon without the word sour.",
    "Why is the sky red at sunset?",
    "Explain compound interest with one example.",
    "What happens to a glass of water on the Moon?",
    "Write a limerick about a Thunderbolt cable.",
    "How do bees find their way home?",
    "What does an operating system do while nobody types?",
    "Give advice to somebody who cannot sleep.",
    "Which came first, the wheel or the road?",
    "Tell the story of a lighthouse keeper in four sentences.",
];

const TWISTS: [&str; 4] =
    ["", " Answer in one sentence.", " Explain your reasoning.", " Then ask a question back."];

/// Writes the input of the job and returns how many rows it has. Their ids are "prompt-000001" and so on.
pub(super) fn write(plan: &Plan, model: &str, file: &Path) -> Result<u64> {
    let cannot = |e: std::io::Error| Error::local(format!("Cannot write {}: {e}.", file.display()));
    let mut out = BufWriter::new(File::create(file).map_err(cannot)?);
    let rows = match &plan.prompts {
        Some(prompts) => write_prompts(plan, model, prompts, &mut out)?,
        None => {
            let rows = plan.rows.unwrap_or(DEFAULT_ROWS);
            for n in 0..rows {
                out.write_all(built_in(plan, model, n).as_bytes()).map_err(cannot)?;
            }
            rows.into()
        }
    };
    out.flush().map_err(cannot)?;
    Ok(rows)
}

fn built_in(plan: &Plan, model: &str, n: u32) -> String {
    let at = n as usize;
    let question = QUESTIONS[at % QUESTIONS.len()];
    let twist = TWISTS[at / QUESTIONS.len() % TWISTS.len()];
    let max_tokens = plan.max_tokens.unwrap_or(if plan.model.is_some() {
        DEFAULT_MAX_TOKENS
    } else {
        // 97 is prime to 360: lengths spread evenly, and are the same every time.
        TINY_MIN_TOKENS + n.wrapping_mul(97) % TINY_MORE_TOKENS
    });
    let row = json!({
        "custom_id": format!("prompt-{:06}", at + 1),
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": model,
            "messages": [{ "role": "user", "content": format!("{question}{twist}") }],
            "max_tokens": max_tokens,
        },
    });
    format!("{row}\n")
}

fn write_prompts(plan: &Plan, model: &str, prompts: &Path, out: &mut impl Write) -> Result<u64> {
    let defaults = RowDefaults {
        model: model.to_owned(),
        max_tokens: Some(plan.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS)),
        ..RowDefaults::default()
    };
    let failed = |e: String| Error::local(format!("Cannot use {}: {e}.", prompts.display()));
    let limit = plan.rows.map_or(u64::MAX, u64::from);
    let mut input = File::open(prompts).map_err(|e| failed(e.to_string()))?;
    let mut converter = Converter::new(&defaults);
    let mut block = vec![0; BLOCK_BYTES];
    let mut converted = Vec::new();
    let mut rows = 0;
    loop {
        let n = input.read(&mut block).map_err(|e| failed(e.to_string()))?;
        let mut rest = &block[..n];
        while rows < limit && (!rest.is_empty() || n == 0) {
            if n == 0 {
                converter.finish(&mut converted).map_err(|e| failed(e.to_string()))?;
            } else {
                let taken = converter.feed(rest, &mut converted).map_err(|e| failed(e.to_string()))?;
                rest = &rest[taken..];
            }
            // The converter hands over at most one end of a line at a time.
            rows += u64::from(converted.ends_with(b"\n"));
            out.write_all(&converted).map_err(|e| failed(e.to_string()))?;
            converted.clear();
            if n == 0 {
                break;
            }
        }
        if n == 0 || rows >= limit {
            break;
        }
    }
    match rows {
        0 => Err(failed("it has no prompts".to_owned())),
        rows => Ok(rows),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn plan(prompts: Option<PathBuf>, rows: Option<u32>) -> Plan {
        Plan { dir: PathBuf::new(), keep: false, model: None, prompts, rows, max_tokens: None, faults: true }
    }

    #[test]
    fn built_in_rows_are_numbered_and_differ() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("rows.jsonl");
        assert_eq!(write(&plan(None, Some(96)), "m", &file).unwrap(), 96);
        let text = std::fs::read_to_string(&file).unwrap();
        let mut prompts = std::collections::BTreeSet::new();
        for (i, line) in text.lines().enumerate() {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(row["custom_id"], format!("prompt-{:06}", i + 1));
            prompts.insert(row["body"]["messages"][0]["content"].as_str().unwrap().to_owned());
        }
        assert_eq!(prompts.len(), 96);
    }

    #[test]
    fn prompts_are_counted_and_limited() {
        let dir = tempfile::tempdir().unwrap();
        let (prompts, file) = (dir.path().join("p.txt"), dir.path().join("rows.jsonl"));
        std::fs::write(&prompts, "one\n\ntwo\nthree").unwrap();
        assert_eq!(write(&plan(Some(prompts.clone()), None), "m", &file).unwrap(), 3);
        assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 3);
        assert_eq!(write(&plan(Some(prompts.clone()), Some(2)), "m", &file).unwrap(), 2);
        assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 2);
        std::fs::write(&prompts, "\n \n").unwrap();
        assert!(
            write(&plan(Some(prompts), None), "m", &file).unwrap_err().to_string().contains("no prompts")
        );
    }
}
