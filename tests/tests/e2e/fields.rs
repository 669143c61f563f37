//! What a row may ask for. The worker refuses what it cannot do, by name and for that row alone; what it can do comes in
//! OpenAI's shapes.

use nightshift_tests::{
    answers::{Answer, Answers},
    cluster::Cluster,
    control::{self, sketch},
    models,
    rows::Input,
    suite::{Case, Need, case},
    wait,
};
use serde_json::{Value, json};

const NEEDS: &[Need] = &[Need::Runtime];

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("fields::what_the_worker_cannot_do_fails_its_row_alone", NEEDS, refused),
        case("fields::what_it_can_do_has_the_shapes_of_openai", NEEDS, supported),
    ]
}

/// Runs the rows as one job to its end.
async fn run(cluster: &Cluster, input: &Input) -> Answers {
    let job = cluster.control().submit(control::spec("fields", models::llama()), input.jsonl()).await;
    let job = cluster.control().wait_completed(job.job_id, wait::LONG).await;
    let answers = cluster.answers(&job, input);
    assert_eq!(job.rows_succeeded, answers.succeeded() as u64, "{}", sketch(&job));
    answers
}

/// Settings of a chat row, and the message, parameter and code of its refusal.
type Refusal = (Value, &'static str, &'static str, &'static str);

fn refusals() -> Vec<Refusal> {
    let image = json!([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]);
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
    let unsupported = "unsupported_parameter";
    vec![
        (json!({"n": 2}), "\"n\" is not supported with this value; leave it out", "n", unsupported),
        (
            json!({"stream": true}),
            "\"stream\" is not supported with this value; leave it out",
            "stream",
            unsupported,
        ),
        (
            json!({"tools": [tool]}),
            "\"tools\" is not supported with this value; leave it out",
            "tools",
            unsupported,
        ),
        (
            json!({"response_format": {"type": "json_object"}}),
            "\"response_format\" is not supported with this value; leave it out",
            "response_format",
            unsupported,
        ),
        (
            json!({"presence_penalty": 0.5}),
            "\"presence_penalty\" is not supported with this value; leave it out",
            "presence_penalty",
            unsupported,
        ),
        (
            json!({"frequency_penalty": -1}),
            "\"frequency_penalty\" is not supported with this value; leave it out",
            "frequency_penalty",
            unsupported,
        ),
        (json!({"max_tokenz": 8}), "unknown field \"max_tokenz\"", "max_tokenz", "unknown_parameter"),
        (
            json!({"messages": [{"role": "user", "content": image}]}),
            "\"messages[0].content[0]\" is not a text part; only text is supported",
            "messages[0].content[0]",
            unsupported,
        ),
        (
            json!({"messages": [{"role": "tool", "content": "hm"}]}),
            "\"messages[0].role\" must be one of system, developer, user, assistant",
            "messages[0].role",
            "invalid_value",
        ),
        (
            json!({"messages": [{"role": "user", "content": "hm"}, {"role": "assistant"}]}),
            "\"messages[1].content\" must be a string or a list of text parts",
            "messages[1].content",
            "invalid_type",
        ),
        (
            json!({"temperature": 2.5}),
            "\"temperature\" must be between 0 and 2",
            "temperature",
            "invalid_value",
        ),
        (json!({"top_p": -0.1}), "\"top_p\" must be between 0 and 1", "top_p", "invalid_value"),
        (json!({"seed": 1.5}), "\"seed\" must be an integer", "seed", "invalid_type"),
        (json!({"stop": ["a", ""]}), "\"stop\" must not hold an empty string", "stop", "invalid_value"),
        (json!({"stop": 7}), "\"stop\" must be a string or a list of strings", "stop", "invalid_type"),
        (json!({"logprobs": 3}), "\"logprobs\" must be true or false", "logprobs", "invalid_type"),
        (
            json!({"top_logprobs": 3}),
            "\"top_logprobs\" needs \"logprobs\": true",
            "top_logprobs",
            "invalid_value",
        ),
        (
            json!({"logprobs": true, "top_logprobs": 21}),
            "\"top_logprobs\" must be between 0 and 20",
            "top_logprobs",
            "invalid_value",
        ),
        (
            json!({"logit_bias": {"512000": 1}}),
            "\"logit_bias\" must map token ids below 512",
            "logit_bias",
            "invalid_value",
        ),
        (json!({"logit_bias": {"7": 101}}), "\"7\" must be between -100 and 100", "7", "invalid_value"),
    ]
}

fn refusal_body(message: &str, param: &str, code: &str) -> Value {
    json!({"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}})
}

async fn refused() {
    let cluster = Cluster::builder("fields-refused").agents(1).start().await;
    let mut input = Input::new();
    let mut expected = Vec::new();
    for (number, (settings, message, param, code)) in refusals().into_iter().enumerate() {
        input.chat_row(&format!("good-{number}"), "hello", json!({"max_tokens": 4}));
        input.chat_row(&format!("bad-{number}"), "hello", settings);
        expected.push(refusal_body(message, param, code));
    }
    // What one url knows, the other need not.
    input.completion_row("good-completion", "hello", json!({"max_tokens": 4}));
    for (settings, message, param, code) in [
        (
            json!({"echo": true}),
            "\"echo\" is not supported with this value; leave it out",
            "echo",
            "unsupported_parameter",
        ),
        (
            json!({"prompt": ["a", "b"]}),
            "\"prompt\" must be one prompt: a row has one answer",
            "prompt",
            "invalid_value",
        ),
        (json!({"messages": []}), "unknown field \"messages\"", "messages", "unknown_parameter"),
        (json!({"logprobs": 6}), "\"logprobs\" must be between 0 and 5", "logprobs", "invalid_value"),
    ] {
        input.completion_row(&format!("bad-{}", expected.len()), "hello", settings);
        expected.push(refusal_body(message, param, code));
    }
    let answers = run(&cluster, &input).await;
    let mut different = Vec::new();
    for (number, expected) in expected.iter().enumerate() {
        let answer = answers.of(&format!("bad-{number}"));
        if (answer.status, &answer.body) != (400, expected) {
            different
                .push(format!("  was      {} {}\n  expected 400 {expected}", answer.status, answer.body));
        }
    }
    assert!(different.is_empty(), "{} refusals differ:\n{}", different.len(), different.join("\n\n"));
    assert_eq!(answers.succeeded(), input.len() - expected.len(), "no other row has failed");
    cluster.finish().await;
}

fn choice(answer: &Answer) -> &Value {
    assert_eq!(answer.status, 200, "{}", answer.body);
    let choices = answer.body["choices"].as_array().expect("choices are a list");
    assert_eq!((choices.len(), &choices[0]["index"]), (1, &json!(0)));
    &choices[0]
}

fn completion_tokens(answer: &Answer) -> usize {
    answer.body["usage"]["completion_tokens"].as_u64().expect("tokens are counted") as usize
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("{value} is no list"))
}

/// The tokens' texts of a chat answer that came with logprobs.
fn tokens(answer: &Answer) -> Vec<&str> {
    let content = list(&choice(answer)["logprobs"]["content"]);
    content.iter().map(|token| token["token"].as_str().expect("a token has a text")).collect()
}

/// The text that the bytes of its tokens make.
fn bytes(answer: &Answer) -> String {
    let content = list(&choice(answer)["logprobs"]["content"]);
    let bytes = content.iter().flat_map(|token| list(&token["bytes"]));
    let bytes: Vec<u8> = bytes.filter_map(|byte| byte.as_u64()?.try_into().ok()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn supported() {
    let cluster = Cluster::builder("fields-supported").agents(1).start().await;
    let mut input = Input::new();
    let greedy = |more: Value| {
        let mut settings = json!({"max_tokens": 24, "temperature": 0});
        settings
            .as_object_mut()
            .expect("it is an object")
            .extend(more.as_object().expect("so is this").clone());
        settings
    };
    input.chat_row("plain", "Count the stones.", greedy(json!({})));
    input.chat_row("logprobs", "Count the stones.", greedy(json!({"logprobs": true})));
    input.chat_row("top", "Count the stones.", greedy(json!({"logprobs": true, "top_logprobs": 3})));
    input.chat_row("bias", "Count the stones.", greedy(json!({"logit_bias": {"70": 100}, "logprobs": true})));
    for (id, seed) in [("seed-7", 7), ("seed-7-again", 7), ("seed-8", 8)] {
        input.chat_row(id, "Count the stones.", json!({"max_tokens": 24, "temperature": 1, "seed": seed}));
    }
    input.chat_row(
        "harmless",
        "Count the stones.",
        greedy(json!({"n": 1, "stream": false, "tools": [], "presence_penalty": 0, "user": "me", "metadata": {"a": "b"},
            "response_format": {"type": "text"}, "stop": null, "logit_bias": null})),
    );
    input.completion_row("completion", "Once upon a time", greedy(json!({"logprobs": 2})));
    let first = run(&cluster, &input).await;

    let plain = first.of("plain");
    assert_eq!(choice(plain)["logprobs"], Value::Null);
    assert_eq!(choice(first.of("harmless")), choice(plain), "what asks for nothing changes nothing");
    assert_logprobs(first.of("logprobs"), 0);
    assert_logprobs(first.of("top"), 3);
    for id in ["logprobs", "top"] {
        assert_eq!(first.of(id).text(), plain.text(), "being watched changes nothing");
        assert_eq!(bytes(first.of(id)), plain.text(), "the tokens' bytes are the text");
    }
    let biased = tokens(first.of("bias"));
    assert_eq!(biased.len(), 24);
    assert!(biased.iter().all(|token| *token == biased[0]), "a bias of 100 leaves nothing else: {biased:?}");
    assert_eq!(choice(first.of("bias"))["finish_reason"], "length");
    assert_eq!(choice(first.of("seed-7")), choice(first.of("seed-7-again")), "the same seed, the same text");
    assert_ne!(first.of("seed-7").text(), first.of("seed-8").text(), "another seed, another text");
    assert_completion_logprobs(first.of("completion"), 2);

    // The end of a piece of the text is known now: an answer that stops there is the same up to it.
    let mut words = plain.text().split(|c: char| !c.is_ascii_alphanumeric());
    let stop = words.rfind(|word| !word.is_empty()).expect("noise holds letters, too").to_owned();
    let before = &plain.text()[..plain.text().find(&stop).expect("the text holds its words")];
    let mut input = Input::new();
    for (id, stop) in [("one", json!(stop)), ("several", json!(["never to be seen", stop]))] {
        input.chat_row(id, "Count the stones.", greedy(json!({"stop": stop})));
    }
    let second = run(&cluster, &input).await;
    for id in ["one", "several"] {
        let stopped = second.of(id);
        assert_eq!(stopped.text(), before, "the text ends before the stop string {stop:?}");
        assert_eq!(choice(stopped)["finish_reason"], "stop");
        assert!((1..=completion_tokens(plain)).contains(&completion_tokens(stopped)), "{}", stopped.body);
    }
    cluster.finish().await;
}

/// `choices[0].logprobs` of a chat: one entry a token, each with so many alternatives, likeliest first.
fn assert_logprobs(answer: &Answer, alternatives: usize) {
    let content = list(&choice(answer)["logprobs"]["content"]);
    assert_eq!(content.len(), completion_tokens(answer), "one entry a token");
    for token in content {
        let logprob = token["logprob"].as_f64().expect("a logprob is a number");
        assert!(logprob <= 0.0, "{token}");
        assert!(list(&token["bytes"]).iter().all(|byte| byte.as_u64() < Some(256)), "{token}");
        let top = list(&token["top_logprobs"]);
        assert_eq!(top.len(), alternatives, "{token}");
        if let Some(likeliest) = top.first() {
            assert_eq!((&likeliest["token"], &likeliest["logprob"]), (&token["token"], &token["logprob"]));
            assert!(likeliest["bytes"].is_array(), "{token}");
        }
        let logprobs: Vec<f64> = top.iter().filter_map(|other| other["logprob"].as_f64()).collect();
        assert_eq!(logprobs.len(), alternatives, "{token}");
        assert!(logprobs.is_sorted_by(|a, b| a >= b), "likeliest first: {token}");
    }
}

/// `choices[0].logprobs` of a plain completion: four lists, in step with the tokens.
fn assert_completion_logprobs(answer: &Answer, alternatives: usize) {
    let logprobs = &choice(answer)["logprobs"];
    for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(list(&logprobs[name]).len(), completion_tokens(answer), "{name}: {logprobs}");
    }
    let offsets: Vec<u64> = list(&logprobs["text_offset"]).iter().filter_map(Value::as_u64).collect();
    assert_eq!((offsets.len(), offsets[0]), (completion_tokens(answer), 0));
    assert!(offsets.is_sorted(), "{offsets:?}");
    for (token, top) in list(&logprobs["tokens"]).iter().zip(list(&logprobs["top_logprobs"])) {
        let top = top.as_object().expect("alternatives are by name");
        assert!((1..=alternatives + 1).contains(&top.len()), "{top:?}");
        assert!(top.contains_key(token.as_str().expect("a token is text")), "the chosen token is among them");
    }
}
