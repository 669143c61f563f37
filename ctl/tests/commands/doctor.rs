//! `clusterctl doctor`: what is to be mended comes first, with the next step.

use nightshift_ctl::output::{Screen, human, text::width, views::DoctorView};
use nightshift_proto::v1::{self, CableClass, CheckLevel};

use super::{
    fake::{Fake, World},
    program::{ask, command, ended},
};

fn check(id: &str, level: CheckLevel, seen: &str, next_step: &str) -> v1::Check {
    v1::Check { id: id.into(), level: level.into(), seen: seen.into(), next_step: next_step.into() }
}

pub(crate) fn diagnosis() -> v1::Diagnosis {
    let node = |name: &str, checks| v1::NodeDiagnosis {
        node_id: name.into(),
        hardware_model: "Mac16,9".into(),
        system: "macos 25D125".into(),
        checks,
    };
    let runtime = || check("runtime", CheckLevel::Ok, "the Python runtime is ready", "");
    let flaw = |sentence: &str, next_step: &str| v1::CableFlaw {
        sentence: sentence.into(),
        next_step: next_step.into(),
    };
    let cable = |a: u32, b: u32, class: CableClass, flaws| v1::Cable {
        a_node_id: "mini-1".into(),
        a_receptacle: a,
        b_node_id: "mini-2".into(),
        b_receptacle: b,
        class: class.into(),
        flaws,
    };
    v1::Diagnosis {
        nodes: vec![
            node(
                "mini-1",
                vec![
                    runtime(),
                    check("disk", CheckLevel::Ok, "500.0 GB are free where the agent keeps its state", ""),
                    check(
                        "updates",
                        CheckLevel::Warn,
                        "updates install themselves, and restart this machine at night",
                        "turn that off in System Settings > General > Software Update > Automatic Updates",
                    ),
                    check(
                        "sleep",
                        CheckLevel::Fail,
                        "it goes to sleep after 10 minutes",
                        "run `sudo pmset -a sleep 0`",
                    ),
                ],
            ),
            node("mini-2", vec![runtime()]),
        ],
        cables: vec![
            cable(1, 2, CableClass::Rdma, vec![]),
            cable(
                2,
                3,
                CableClass::Tcp,
                vec![flaw(
                    "bridge0 of mini-2 has taken en6",
                    "on mini-2, run `cluster-agent link plan`, which says what is missing, and `sudo cluster-agent link apply`",
                )],
            ),
        ],
        cluster: vec![
            check("os-parity", CheckLevel::Ok, "all nodes have the same builds of macOS: 25D125", ""),
            check(
                "stranger",
                CheckLevel::Warn,
                "on the cable of mini-2 (port 1) is Mac17,6, which is no node of this cluster",
                "install and start `cluster-agent` there, if it is to work with the others",
            ),
        ],
    }
}

fn well() -> v1::Diagnosis {
    let mut well = diagnosis();
    for checks in well.nodes.iter_mut().map(|node| &mut node.checks).chain([&mut well.cluster]) {
        checks.retain(|check| check.level() == CheckLevel::Ok);
    }
    well.cables.truncate(1);
    well
}

fn human(diagnosis: v1::Diagnosis, all: bool, columns: Option<usize>) -> String {
    let text = human::doctor::doctor(&DoctorView::from(diagnosis), all, &Screen::plain(columns));
    for line in text.lines() {
        assert!(columns.is_none_or(|columns| width(line) <= columns), "{line:?}");
    }
    text
}

#[test]
fn screens() {
    insta::assert_snapshot!("doctor_wide", human(diagnosis(), false, Some(100)));
    insta::assert_snapshot!("doctor_narrow", human(diagnosis(), false, Some(50)));
    insta::assert_snapshot!("doctor_all", human(diagnosis(), true, Some(100)));
    insta::assert_snapshot!("doctor_well", human(well(), false, Some(80)));
    insta::assert_snapshot!("doctor_no_nodes", human(v1::Diagnosis::default(), false, None));
    for columns in 24..140 {
        human(diagnosis(), true, Some(columns));
    }
}

#[test]
fn json_and_exit_codes() {
    let fake = Fake::start(World { diagnosis: diagnosis(), ..World::healthy() });
    let ended = ask(&fake, &["doctor", "mini-1", "--output", "json"]);
    assert_eq!(ended.code, 1, "something will end the night");
    insta::assert_json_snapshot!("doctor_json", ended.json());
    assert_eq!(fake.world.asked(), ["diagnose node=\"mini-1\""]);
    let fake = Fake::start(World { diagnosis: well(), ..World::healthy() });
    let ended = ask(&fake, &["doctor"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    assert!(ended.stdout.starts_with("Nothing stands in the way of a night."), "{}", ended.stdout);
    let unknown = ask(&fake, &["doctor", "mini-9"]);
    assert_eq!(unknown.code, 1);
    assert_eq!(unknown.stderr, "error: There is no node mini-9.\nhint:  All nodes: clusterctl nodes\n");
}

#[test]
fn without_a_controller_it_says_how_to_look_at_a_machine() {
    // A port of the discard service: nobody listens there.
    let ended = ended(command(["--controller", "127.0.0.1:9", "doctor"]));
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("run `cluster-agent probe` there"), "{}", ended.stderr);
}
