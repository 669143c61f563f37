//! Output of jobs, read as a person's script would, and judged: every line valid, every row exactly once.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, value::RawValue};

/// What became of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// As in HTTP.
    pub status: u64,
    /// How often the row had been given to a worker when it was answered; 0 where the line does not say.
    pub attempt: u32,
    /// The response's body.
    pub body: Value,
    /// What must not depend on what happened to the cluster, as it stands in the file, byte for byte: the choices and
    /// the token counts, or the error. Times and numbers of attempts do depend on it.
    pub essence: String,
}

impl Answer {
    /// The text of the first choice.
    #[must_use]
    pub fn text(&self) -> &str {
        let choice = &self.body["choices"][0];
        choice["message"]["content"].as_str().or_else(|| choice["text"].as_str()).unwrap_or_default()
    }
}

/// All answers of a job, by custom id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answers {
    rows: BTreeMap<String, Answer>,
}

impl Answers {
    /// Reads the two files of a finished job; a file that is not there holds nothing.
    ///
    /// # Errors
    /// Everything that is wrong with them, in words: lines that are not whole or not a row, rows answered twice, never,
    /// or in the wrong file.
    pub fn read(results: &Path, errors: &Path, ids: &[String]) -> Result<Self, String> {
        let mut problems = Vec::new();
        let mut answers = Self::default();
        for (path, is_errors) in [(results, false), (errors, true)] {
            let bytes = fs::read(path).unwrap_or_default();
            answers.take_file(&bytes, is_errors, &path.display().to_string(), &mut problems);
        }
        for id in ids {
            if !answers.rows.contains_key(id) {
                problems.push(format!("{id} has no answer"));
            }
        }
        let known: std::collections::BTreeSet<&String> = ids.iter().collect();
        for id in answers.rows.keys().filter(|id| !known.contains(id)) {
            problems.push(format!("{id} was never asked"));
        }
        if problems.is_empty() {
            return Ok(answers);
        }
        let count = problems.len();
        problems.truncate(20);
        Err(format!("{count} things are wrong with the output:\n{}", problems.join("\n")))
    }

    fn take_file(&mut self, bytes: &[u8], is_errors: bool, name: &str, problems: &mut Vec<String>) {
        if bytes.last().is_some_and(|byte| *byte != b'\n') {
            problems.push(format!("{name} ends in the middle of a line"));
        }
        for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            if line.is_empty() {
                continue;
            }
            match parse_line(line, is_errors) {
                Ok((id, answer)) => {
                    if self.rows.insert(id.clone(), answer).is_some() {
                        problems.push(format!("{name}:{}: {id} is answered twice", number + 1));
                    }
                }
                Err(problem) => problems.push(format!("{name}:{}: {problem}", number + 1)),
            }
        }
    }

    /// The answer of a row.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn of(&self, id: &str) -> &Answer {
        self.rows.get(id).unwrap_or_else(|| panic!("{id} has no answer"))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Answer)> {
        self.rows.iter()
    }

    /// How many were answered with 200.
    #[must_use]
    pub fn succeeded(&self) -> usize {
        self.rows.values().filter(|answer| answer.status == 200).count()
    }

    /// Checks that these are the answers of an undisturbed run, to the byte.
    ///
    /// # Panics
    /// When they are not: with the first rows that differ.
    pub fn assert_same_as(&self, undisturbed: &Self) {
        let mut different = Vec::new();
        for (id, expected) in &undisturbed.rows {
            let answer = self.of(id);
            if answer.status != expected.status || answer.essence != expected.essence {
                different
                    .push(format!("{id}:\n  was      {}\n  expected {}", answer.essence, expected.essence));
            }
        }
        assert!(
            different.is_empty(),
            "{} of {} rows differ from the undisturbed run; the first:\n{}",
            different.len(),
            undisturbed.rows.len(),
            different[..different.len().min(3)].join("\n")
        );
    }
}

/// A line of either file, in the output form of the OpenAI Batch API.
fn parse_line(line: &[u8], is_errors: bool) -> Result<(String, Answer), String> {
    let row: Value = serde_json::from_slice(line).map_err(|error| format!("not JSON: {error}"))?;
    let id = row["custom_id"].as_str().ok_or("no custom_id")?.to_owned();
    for field in ["id", "response", "error"] {
        if row.get(field).is_none() {
            return Err(format!("{id} has no \"{field}\""));
        }
    }
    if row["response"].is_null() {
        return if is_errors && row["error"].is_object() {
            let body = serde_json::json!({"error": row["error"]});
            Ok((id, Answer { status: 0, attempt: 0, essence: body.to_string(), body }))
        } else {
            Err(format!("{id} has neither a response nor an error"))
        };
    }
    let status = row["response"]["status_code"].as_u64().ok_or_else(|| format!("{id} has no status_code"))?;
    let request_id = row["response"]["request_id"].as_str().unwrap_or_default();
    if request_id.is_empty() {
        return Err(format!("{id} has no request_id"));
    }
    // Job, row, epoch, attempt.
    let attempt = request_id.rsplit('-').next().and_then(|attempt| attempt.parse().ok()).unwrap_or(0);
    if (status == 200) == is_errors {
        return Err(format!("{id} with status {status} is in the wrong file"));
    }
    let body = row["response"]["body"].clone();
    Ok((id, Answer { status, attempt, essence: essence(line)?, body }))
}

/// See [`Answer::essence`].
fn essence(line: &[u8]) -> Result<String, String> {
    type Fields<'a> = BTreeMap<String, &'a RawValue>;
    let fields = |json| serde_json::from_str::<Fields<'_>>(json).map_err(|error| error.to_string());
    let line = str::from_utf8(line).map_err(|error| error.to_string())?;
    let (row, empty) = (fields(line)?, "{}");
    let response = fields(row.get("response").map_or(empty, |response| response.get()))?;
    let body = fields(response.get("body").map_or(empty, |body| body.get()))?;
    let essential = ["choices", "usage", "error"];
    let essential =
        essential.iter().filter_map(|name| body.get(*name).map(|raw| format!("\"{name}\":{raw}")));
    Ok(essential.collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dirs::TestDir;

    fn line(id: &str, status: u64) -> String {
        format!(
            r#"{{"id":"batch_req_1","custom_id":"{id}","response":{{"status_code":{status},"request_id":"j1-0-2-3","body":{{"choices":[{{"text":"hm"}}],"created":7}}}},"error":null}}"#
        )
    }

    fn read(results: &str, errors: &str, ids: &[&str]) -> Result<Answers, String> {
        let dir = TestDir::new("answers");
        let (a, b) = (dir.path().join("results.jsonl"), dir.path().join("errors.jsonl"));
        fs::write(&a, results).unwrap();
        fs::write(&b, errors).unwrap();
        Answers::read(&a, &b, &ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn whole_output_is_accepted() {
        let answers =
            read(&format!("{}\n", line("a", 200)), &format!("{}\n", line("b", 400)), &["a", "b"]).unwrap();
        assert_eq!(answers.succeeded(), 1);
        assert_eq!(answers.of("a").text(), "hm");
        assert_eq!((answers.of("b").status, answers.of("b").attempt), (400, 3));
        answers.assert_same_as(&answers.clone());
        assert_eq!(answers.of("a").essence, r#""choices":[{"text":"hm"}]"#);
    }

    #[test]
    #[should_panic(expected = "1 of 1 rows differ")]
    fn answers_that_differ_in_spelling_only_differ() {
        let plain = read(&format!("{}\n", line("a", 200)), "", &["a"]).unwrap();
        let spelt = line("a", 200).replace("hm", "\\u0068m");
        read(&format!("{spelt}\n"), "", &["a"]).unwrap().assert_same_as(&plain);
    }

    #[test]
    fn every_kind_of_damage_is_told() {
        let twice = format!("{0}\n{0}\n", line("a", 200));
        for (results, errors, problem) in [
            (twice.as_str(), "", "a is answered twice"),
            ("", "", "a has no answer"),
            (&line("a", 200), "", "ends in the middle of a line"),
            ("{\"custom_id\":\n", "", "not JSON"),
            (&format!("{}\n", line("a", 400)), "", "is in the wrong file"),
            ("", &format!("{}\n", line("a", 200)), "is in the wrong file"),
            (&format!("{}\n{}\n", line("a", 200), line("b", 200)), "", "b was never asked"),
        ] {
            let told = read(results, errors, &["a"]).expect_err(problem);
            assert!(told.contains(problem), "{told}");
        }
    }
}
