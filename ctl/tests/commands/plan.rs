//! `clusterctl plan`: what it prints, live and offline, and how it exits.

use std::{fs, process::Stdio};

use nightshift_ctl::output::{Screen, human, text::width, views::PlanView};
use nightshift_proto::v1;
use prost::Message;

use super::{
    bench::Bench,
    canned,
    fake::{Fake, World},
    program::{Ended, ask, ended, run},
};

fn human(reply: v1::PlanReply, columns: Option<usize>) -> String {
    let text = human::plan::plan(&PlanView::new(reply, v1::Mode::Unspecified, None), &Screen::plain(columns));
    for line in text.lines() {
        assert!(columns.is_none_or(|columns| width(line) <= columns), "wider than {columns:?}: {line:?}");
    }
    text
}

#[test]
fn screens_of_what_fits() {
    insta::assert_snapshot!("pipeline_wide", human(canned::pipeline_plan(), Some(100)));
    insta::assert_snapshot!("pipeline_narrow", human(canned::pipeline_plan(), Some(60)));
    insta::assert_snapshot!("pipeline_forty", human(canned::pipeline_plan(), Some(40)));
    insta::assert_snapshot!("pipeline_pipe", human(canned::pipeline_plan(), None));
    insta::assert_snapshot!("independent", human(canned::independent_plan(), Some(100)));
    insta::assert_snapshot!("two_gangs", human(canned::two_gangs_plan(), Some(100)));
}

#[test]
fn screens_of_refusals() {
    insta::assert_snapshot!("refused_wide", human(canned::refused_plan(), Some(100)));
    insta::assert_snapshot!("refused_narrow", human(canned::refused_plan(), Some(60)));
}

fn headline(reply: v1::PlanReply, asked: v1::Mode) -> String {
    let text = human::plan::plan(&PlanView::new(reply, asked, None), &Screen::plain(None));
    text.lines().next().unwrap().to_owned()
}

#[test]
fn every_outcome_opens_with_its_sentence() {
    let one = v1::PlanReply {
        parts: canned::independent_plan().parts.into_iter().take(1).collect(),
        ..canned::independent_plan()
    };
    let many = |reply: v1::PlanReply, nodes: usize| {
        let named = |(n, part): (usize, v1::PlanPart)| v1::PlanPart { node_id: format!("n{n}"), ..part };
        let parts = reply.parts.clone().into_iter().cycle().take(nodes).enumerate().map(named).collect();
        v1::PlanReply { parts, ..reply }
    };
    // Memory is not what is missing.
    let indivisible = v1::PlanReply {
        fits: false,
        mode: v1::Mode::Unspecified.into(),
        backend: v1::Backend::Unspecified.into(),
        ..canned::pipeline_plan()
    };
    let by_a_hair = v1::PlanReply {
        parts: vec![v1::PlanPart { node_id: "a".into(), free_bytes: -1, ..v1::PlanPart::default() }],
        ..canned::refused_plan()
    };
    let auto = v1::Mode::Unspecified;
    let sentences = [
        (canned::independent_plan(), auto),
        (one, auto),
        (many(canned::independent_plan(), 5), auto),
        (canned::pipeline_plan(), v1::Mode::Pipeline),
        (canned::two_gangs_plan(), auto),
        (canned::refused_plan(), auto),
        (many(canned::refused_plan(), 6), auto),
        (canned::refused_plan(), v1::Mode::Pipeline),
        (indivisible, v1::Mode::Tensor),
        (by_a_hair, auto),
        (v1::PlanReply::default(), auto),
    ]
    .map(|(reply, asked)| headline(reply, asked));
    insta::assert_snapshot!("sentences", sentences.join("\n"));
}

#[test]
fn every_width_is_kept() {
    for columns in 24..140 {
        for reply in [canned::pipeline_plan(), canned::two_gangs_plan(), canned::refused_plan()] {
            human(reply, Some(columns));
        }
    }
}

#[test]
fn what_is_missing_is_red_where_there_is_colour() {
    let view = PlanView::new(canned::refused_plan(), v1::Mode::Unspecified, None);
    let text = human::plan::plan(&view, &Screen { color: true, ..Screen::plain(Some(100)) });
    assert!(text.contains("\x1b[31m-19.7\x1b[0m"), "{text}");
}

#[test]
fn foreign_text_cannot_steer_the_terminal() {
    let mut reply = canned::refused_plan();
    reply.parts[0].node_id = "a\x1b[2Jb".into();
    reply.reasons[0].text = "be\x1b[31mware\x07".into();
    reply.advice[0] = "\x1b]0;title".into();
    let text = human(reply, Some(100));
    assert!(!text.contains(['\x1b', '\x07']), "{text:?}");
}

fn live(reply: v1::PlanReply) -> Fake {
    Fake::start(World { plan: Some(reply), ..World::default() })
}

#[test]
fn live_the_controller_is_asked_and_the_exit_code_says_whether_it_fits() {
    let fake = live(canned::pipeline_plan());
    let ended = ask(&fake, &["plan", "--model", "org/model"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    assert_eq!(ended.stdout, human(canned::pipeline_plan(), None));

    let args = ["plan", "--model", "org/model", "--context", "32768", "--rows", "4", "--mode", "tensor"];
    assert_eq!(ask(&fake, &args).code, 0);
    let request = |context_tokens, rows, mode: v1::Mode| v1::PlanRequest {
        model: "org/model".into(),
        context_tokens,
        rows,
        mode: mode.into(),
        ..v1::PlanRequest::default()
    };
    assert_eq!(
        *fake.world.planned.lock().unwrap(),
        [request(0, 0, v1::Mode::Unspecified), request(32_768, 4, v1::Mode::Tensor)]
    );

    let ended = ask(&live(canned::refused_plan()), &["plan", "--model", "org/model"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (1, ""));
    assert_eq!(ended.stdout, human(canned::refused_plan(), None), "the table is there all the same");
}

#[test]
fn nothing_to_plan_with_is_an_error() {
    let fake = Fake::start(World::default());
    let ended = ask(&fake, &["plan", "--model", "org/model"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (1, ""));
    insta::assert_snapshot!(ended.stderr, @r"
    error: No node has the model org/model (not on mini-1: there is no such directory).
    hint:  Not on mini-3: it has been silent for 12 min.
    ");
}

#[test]
fn json_shape() {
    let ended = ask(&live(canned::pipeline_plan()), &["plan", "--model", "m", "--output", "json"]);
    assert_eq!(ended.code, 0);
    insta::assert_json_snapshot!("json", ended.json());
    let ended = ask(&live(canned::refused_plan()), &["plan", "--model", "m", "--output", "json"]);
    assert_eq!(ended.code, 1);
    insta::assert_json_snapshot!("json_refused", ended.json());
}

#[test]
fn wrong_usage() {
    for wrong in [
        &["plan"][..],
        &["plan", "--model", "m", "--context", "0"],
        &["plan", "--model", "m", "--context", "16777217"],
        &["plan", "--model", "m", "--rows", "0"],
        &["plan", "--model", "m", "--rows", "many"],
        &["plan", "--model", "m", "--mode", "ring"],
    ] {
        let ended = run(wrong);
        assert_eq!((ended.code, ended.stdout.as_str()), (64, ""), "{wrong:?}");
    }
}

#[test]
fn help_tells_the_file_and_the_exit_codes() {
    insta::assert_snapshot!("help", run(&["plan", "--help"]).stdout);
}

/// Two machines of a file, and programs beside clusterctl that keep what they are asked and answer what they are told.
struct Offline(Bench);

const TWO_STUDIOS: &str = "rdma = true\n[[node]]\nname = \"studio\"\nmemory_gib = 128\ncount = 2\n";

impl Offline {
    fn new() -> Self {
        let bench = Bench::new();
        bench.program("cluster-agent", "echo \"$@\" > agent.args; cat report");
        bench.program("clusterd", "echo \"$@\" > clusterd.args; cat > request; cat reply");
        let offline = Offline(bench);
        offline.write("report", &report().encode_to_vec());
        offline.write("reply", &canned::pipeline_plan().encode_to_vec());
        offline.write("nodes.toml", TWO_STUDIOS.as_bytes());
        offline
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.0.path().join(name), bytes).unwrap();
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.0.path().join(name)).unwrap()
    }

    fn plan(&self, args: &[&str]) -> Ended {
        let args = [&["plan", "--nodes", "nodes.toml", "--model", "/models/m"], args].concat();
        ended(self.0.clusterctl(&args))
    }
}

fn report() -> v1::ModelReport {
    v1::ModelReport {
        model: "/models/m".into(),
        config_json: b"{}".to_vec(),
        tensors: vec![v1::ModelTensor { name: "lm_head.weight".into(), dtype: "U32".into(), bytes: 8 }],
        ..v1::ModelReport::default()
    }
}

#[test]
fn offline_the_siblings_are_asked_and_no_controller() {
    let offline = Offline::new();
    let ended = offline.plan(&["--context", "8192", "--rows", "2", "--mode", "pipeline"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    assert!(
        ended.stdout.contains("\nPlanned for the machines of nodes.toml; no controller was asked.\n"),
        "{}",
        ended.stdout
    );
    assert_eq!(offline.read("agent.args"), b"model /models/m --protobuf\n");
    assert_eq!(offline.read("clusterd.args"), b"offline-plan\n");
    let request = v1::PlanRequest::decode(offline.read("request").as_slice()).unwrap();
    let node = |name: &str| v1::PlannedNode {
        node_id: name.into(),
        memory_bytes: 128 << 30,
        ..v1::PlannedNode::default()
    };
    assert_eq!(
        request,
        v1::PlanRequest {
            model: "/models/m".into(),
            context_tokens: 8192,
            rows: 2,
            mode: v1::Mode::Pipeline.into(),
            nodes: vec![node("studio-1"), node("studio-2")],
            report: Some(report()),
            nodes_have_rdma: true,
        }
    );
    assert_eq!(offline.plan(&["--output", "json"]).json()["nodes_file"], "nodes.toml");

    offline.write("reply", &canned::refused_plan().encode_to_vec());
    let ended = offline.plan(&[]);
    assert_eq!((ended.code, ended.stderr.as_str()), (1, ""));
    assert!(ended.stdout.contains(" does not fit: missing "), "{}", ended.stdout);
}

#[test]
fn offline_errors_are_the_siblings_sentences() {
    let offline = Offline::new();
    let mut errors = Vec::new();
    let mut fails = |offline: &Offline| {
        let ended = offline.plan(&[]);
        assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{ended:?}");
        errors.push(ended.stderr);
    };
    offline.write(
        "reply",
        &v1::PlanReply { problem: "no node at all".into(), ..Default::default() }.encode_to_vec(),
    );
    fails(&offline);
    offline.write("reply", b"\xff\xff");
    fails(&offline);
    offline.write("reply", b"");
    fails(&offline);
    offline.0.program("clusterd", "echo 'clusterd: the request holds no nodes' >&2; exit 1");
    fails(&offline);
    offline.0.program("clusterd", "echo \"error: unrecognized subcommand 'offline-plan'\" >&2; exit 2");
    fails(&offline);
    let problem = "/models/m has no config.json".to_owned();
    offline.write("report", &v1::ModelReport { problem, ..report() }.encode_to_vec());
    fails(&offline);
    offline.0.program("cluster-agent", "echo '/models/m is not a directory' >&2; exit 1");
    fails(&offline);
    offline.write("nodes.toml", b"[[node]]\nname = \"a\"\n");
    fails(&offline);
    fs::remove_file(offline.0.path().join("nodes.toml")).unwrap();
    fails(&offline);
    insta::assert_snapshot!("offline_errors", errors.join("\n"));
}

#[test]
fn offline_without_the_siblings_says_how_to_build_them() {
    let bench = Bench::new();
    fs::write(bench.path().join("nodes.toml"), TWO_STUDIOS).unwrap();
    let ended = ended(bench.clusterctl(&["plan", "--nodes", "nodes.toml", "--model", "m"]));
    assert_eq!((ended.code, ended.stdout.as_str()), (1, ""));
    let here = bench.path().canonicalize().unwrap();
    insta::assert_snapshot!(ended.stderr.replace(here.to_str().unwrap(), "DIR"), @r"
    error: The program cluster-agent is neither beside clusterctl (DIR) nor in PATH.
    hint:  --nodes needs cluster-agent and clusterd on this machine. Build all three programs with: cargo build --release
    ");
}

#[test]
fn ctrl_c_ends_the_sibling_too() {
    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };
    let offline = Offline::new();
    offline.0.program("cluster-agent", "echo $$ > pid; exec sleep 600");
    let mut child = offline
        .0
        .clusterctl(&["plan", "--nodes", "nodes.toml", "--model", "m"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = loop {
        match fs::read_to_string(offline.0.path().join("pid")) {
            Ok(text) if text.ends_with('\n') => break text.trim().parse::<i32>().unwrap(),
            _ => std::thread::yield_now(),
        }
    };
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(kill(Pid::from_raw(pid), None).is_err(), "cluster-agent still runs");
}
