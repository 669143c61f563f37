//! Input of jobs: OpenAI Batch rows with prompts of mixed lengths, the same for the same seed.

use std::fmt::Write as _;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::rng::Rng;

const WORDS: [&str; 24] = [
    "night", "lamp", "river", "stone", "paper", "count", "seven", "quiet", "engine", "morning", "letter",
    "green", "window", "answer", "copper", "slowly", "winter", "garden", "signal", "harbour", "thread",
    "candle", "north", "again",
];

/// Rows of a job, with their custom ids.
#[derive(Clone, Debug, Default)]
pub struct Input {
    lines: Vec<String>,
    ids: Vec<String>,
}

impl Input {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// `count` greedy chat rows with prompts of 1 to 40 words and up to `max_tokens` tokens to generate.
    #[must_use]
    pub fn chat(count: usize, max_tokens: u32, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut input = Self::new();
        for number in 0..count {
            let tokens = rng.range(u64::from(max_tokens / 2).max(1), u64::from(max_tokens) + 1);
            let prompt = words(&mut rng, 40);
            input.chat_row(
                &format!("row-{number:06}"),
                &prompt,
                json!({"max_tokens": tokens, "temperature": 0}),
            );
        }
        input
    }

    /// `count` chat rows that are sampled, each with a seed of its own and settings that differ.
    #[must_use]
    pub fn sampled(count: usize, max_tokens: u32, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut input = Self::new();
        for number in 0..count {
            let temperature = [0.7, 1.0, 1.3][number % 3];
            let mut settings = json!({
                "max_tokens": rng.range(u64::from(max_tokens / 2).max(1), u64::from(max_tokens) + 1),
                "temperature": temperature,
                "seed": number,
            });
            match number % 4 {
                1 => settings["top_p"] = json!(0.9),
                2 => settings["top_k"] = json!(20),
                3 => settings["min_p"] = json!(0.05),
                _ => {}
            }
            let prompt = words(&mut rng, 20);
            input.chat_row(&format!("row-{number:06}"), &prompt, settings);
        }
        input
    }

    /// Adds a chat row; `settings` is an object whose fields go into the body.
    pub fn chat_row(&mut self, id: &str, prompt: &str, settings: Value) {
        let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": prompt}]});
        merge(&mut body, settings);
        self.row(id, "/v1/chat/completions", body);
    }

    /// Adds a plain completion row.
    pub fn completion_row(&mut self, id: &str, prompt: &str, settings: Value) {
        let mut body = json!({"model": "tiny", "prompt": prompt});
        merge(&mut body, settings);
        self.row(id, "/v1/completions", body);
    }

    /// Adds a row with any body.
    pub fn row(&mut self, id: &str, url: &str, body: Value) {
        self.lines.push(json!({"custom_id": id, "method": "POST", "url": url, "body": body}).to_string());
        self.ids.push(id.to_owned());
    }

    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The custom ids, in order.
    #[must_use]
    pub fn ids(&self) -> &[String] {
        &self.ids
    }

    /// The file.
    #[must_use]
    pub fn jsonl(&self) -> Bytes {
        let mut text = String::new();
        for line in &self.lines {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{line}");
        }
        Bytes::from(text)
    }
}

fn merge(body: &mut Value, settings: Value) {
    if let (Value::Object(body), Value::Object(settings)) = (body, settings) {
        body.extend(settings);
    }
}

fn words(rng: &mut Rng, most: u64) -> String {
    let count = rng.range(1, most + 1);
    (0..count).map(|_| *rng.pick(&WORDS)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_input() {
        assert_eq!(Input::chat(10, 20, 1).jsonl(), Input::chat(10, 20, 1).jsonl());
        assert_ne!(Input::chat(10, 20, 1).jsonl(), Input::chat(10, 20, 2).jsonl());
    }

    #[test]
    fn every_line_is_a_batch_row() {
        let input = Input::sampled(8, 20, 1);
        let text = String::from_utf8(input.jsonl().to_vec()).unwrap();
        assert_eq!(text.lines().count(), input.len());
        for (line, id) in text.lines().zip(input.ids()) {
            let row: Value = serde_json::from_str(line).unwrap();
            assert_eq!(row["custom_id"], id.as_str());
            assert_eq!(row["method"], "POST");
            assert!(row["body"]["messages"].is_array() && row["body"]["seed"].is_u64());
        }
    }
}
