//! What is told of a machine that is set up for a night, and of each thing that is not.

use super::*;
use crate::{
    probe::{
        Gpu, Interface, Memory,
        observation::{Peer, Rdma, ToolProblem},
        parse::mac::{
            reports::{Killed, Report, Tells},
            unified_log::GpuLine,
        },
    },
    troubles::{Book, Sign},
    worker::Key,
};

fn ready() -> Observation {
    Observation {
        memory: Memory {
            total_bytes: Some(128 * GIB),
            gpu_working_set_bytes: Some(96 * GIB),
            swap_used_bytes: Some(0),
            pressure_level: Some(1),
            ..Memory::default()
        },
        gpu: Some(Gpu { present: true, name: "Apple M4".to_owned(), recovery_count: Some(0) }),
        disk_available_bytes: Some(500 * GIB),
        interfaces: vec![Interface {
            name: "en3".to_owned(),
            up: true,
            carrier: Some(true),
            addresses: vec!["10.99.0.1/30".to_owned()],
            ..Interface::default()
        }],
        thunderbolt: Some(Thunderbolt {
            ports: vec![
                ThunderboltPort {
                    receptacle: 1,
                    interface: Some("en3".to_owned()),
                    speed_bits_per_s: Some(80_000_000_000),
                    peers: vec![Peer { domain_uuid: "B1".to_owned(), ..Peer::default() }],
                    ..ThunderboltPort::default()
                },
                ThunderboltPort { receptacle: 2, ..ThunderboltPort::default() },
            ],
            rdma: Rdma { enabled: Some(true), ..Rdma::default() },
        }),
        preflight: Some(Preflight {
            sleep_min: Some(0),
            sleep_disabled: None,
            auto_restart: Some(true),
            low_power_mode: Some(false),
            scheduled_stops: Vec::new(),
            file_vault: Some(FileVault::Off),
            installs_macos: Some(false),
            installs_critical: Some(false),
            exo_daemon: Some(false),
        }),
        ..Observation::default()
    }
}

fn beside() -> Beside<'static> {
    Beside {
        runtime: Some(Ok(())),
        stranded_bytes: Some(0),
        rdma_starts: Some((0, 5)),
        workers: None,
        links: None,
        troubles: &[],
        time_zone: None,
    }
}

/// What is not well, after a change.
fn after(change: impl FnOnce(&mut Observation, &mut Beside<'static>)) -> Vec<(&'static str, Level, String)> {
    let (mut seen, mut beside) = (ready(), beside());
    change(&mut seen, &mut beside);
    let found = checks(&seen, &beside);
    for check in &found {
        assert_eq!(check.level == Level::Ok, check.next_step.is_empty(), "{check:?}");
    }
    let bad = found.into_iter().filter(|check| check.level != Level::Ok);
    bad.map(|check| (check.id, check.level, check.seen)).collect()
}

fn settings(seen: &mut Observation) -> &mut Preflight {
    seen.preflight.as_mut().unwrap()
}

fn port(seen: &mut Observation) -> &mut ThunderboltPort {
    &mut seen.thunderbolt.as_mut().unwrap().ports[0]
}

#[test]
fn a_machine_set_up_for_the_night_has_nothing_to_mend() {
    assert_eq!(after(|_, _| {}), []);
    let ids: Vec<_> = checks(&ready(), &beside()).into_iter().map(|check| check.id).collect();
    let expected = [
        "runtime",
        "swap",
        "memory-pressure",
        "gpu-memory",
        "wired-memory",
        "disk",
        "gpu",
        "sleep",
        "schedule",
        "updates",
        "file-vault",
        "auto-restart",
        "rdma",
        "cable",
    ];
    assert_eq!(ids, expected);
}

#[test]
fn each_thing_that_can_end_a_night_is_told_with_what_was_seen() {
    use Level::{Fail, Warn};
    type Change = fn(&mut Observation, &mut Beside<'static>);
    let rows: [(Change, &str, Level, &str); 27] = [
        (
            |of, _| settings(of).exo_daemon = Some(true),
            "exo-daemon",
            Fail,
            "EXO's daemon is installed, which changes the network of Thunderbolt ports by itself",
        ),
        (|_, of| of.runtime = Some(Err("mlx is missing")), "runtime", Fail, "mlx is missing"),
        (
            |_, of| of.workers = Some(WorkerUser::Root),
            "worker-user",
            Warn,
            "workers run as root, and a model's own code would, too",
        ),
        (|of, _| of.memory.swap_used_bytes = Some(5_000_000_000), "swap", Warn, "5.0 GB of swap are in use"),
        (
            |of, _| of.memory.pressure_level = Some(2),
            "memory-pressure",
            Warn,
            "memory is short now (pressure level 2)",
        ),
        (
            |of, _| of.memory.pressure_level = Some(4),
            "memory-pressure",
            Fail,
            "memory is short now (pressure level 4)",
        ),
        (
            |of, _| of.memory.gpu_working_set_bytes = Some(127 * GIB),
            "gpu-memory",
            Warn,
            "the GPU may use 136.4 GB of 137.4 GB, which leaves the system too little",
        ),
        (
            |_, of| of.stranded_bytes = Some(40_000_000_000),
            "wired-memory",
            Fail,
            "40.0 GB more are wired than at the least of this boot, and no worker runs",
        ),
        (
            |of, _| of.disk_available_bytes = Some(5_000_000_000),
            "disk",
            Warn,
            "5.0 GB are free where the agent keeps its state",
        ),
        (
            |of, _| of.disk_available_bytes = Some(0),
            "disk",
            Fail,
            "0.0 GB are free where the agent keeps its state",
        ),
        (
            |of, _| of.gpu.as_mut().unwrap().recovery_count = Some(3),
            "gpu",
            Warn,
            "the GPU was restarted 3 times since boot",
        ),
        (|of, _| settings(of).sleep_min = Some(10), "sleep", Fail, "it goes to sleep after 10 minutes"),
        (
            |of, _| settings(of).scheduled_stops = vec!["restart at 3:00AM".to_owned()],
            "schedule",
            Fail,
            "scheduled: restart at 3:00AM",
        ),
        (
            |of, _| settings(of).installs_macos = Some(true),
            "updates",
            Warn,
            "updates install themselves, and restart this machine at night",
        ),
        (
            |of, _| settings(of).installs_critical = Some(true),
            "updates",
            Warn,
            "updates install themselves, and restart this machine at night",
        ),
        (
            |of, _| settings(of).file_vault = Some(FileVault::Changing),
            "file-vault",
            Warn,
            "FileVault is on: after a restart nothing runs here until somebody unlocks the disk",
        ),
        (
            |of, _| settings(of).auto_restart = Some(false),
            "auto-restart",
            Warn,
            "it stays off when power returns",
        ),
        (
            |of, _| settings(of).low_power_mode = Some(true),
            "low-power",
            Warn,
            "low power mode is on, at half the speed",
        ),
        (|of, _| of.thunderbolt.as_mut().unwrap().rdma.enabled = Some(false), "rdma", Warn, "RDMA is off"),
        (
            |of, _| port(of).bridge = Some("bridge0".to_owned()),
            "cable",
            Warn,
            "port 1: bridge0 has taken en3, so that it carries no RDMA",
        ),
        (|of, _| of.interfaces.clear(), "cable", Warn, "port 1: en3 is no interface of this system"),
        (|of, _| of.interfaces[0].up = false, "cable", Warn, "port 1: en3 is down"),
        (|of, _| of.interfaces[0].carrier = Some(false), "cable", Warn, "port 1: en3 has no carrier"),
        (
            |of, _| of.interfaces[0].addresses = vec!["169.254.1.2/16".to_owned(), "fe80::1/64".to_owned()],
            "cable",
            Warn,
            "port 1: en3 has no IPv4 address of its own",
        ),
        (
            |_, of| of.rdma_starts = Some((5, 5)),
            "rdma-starts",
            Warn,
            "5 of 5 starts over RDMA of this boot are used",
        ),
        (|of, _| port(of).interface = None, "cable", Warn, "the interface of port 1 is not known"),
        (
            |of, _| {
                of.tool_problems.push(ToolProblem {
                    tool: "ibv_devinfo".to_owned(),
                    hangs: true,
                    is_missing: false,
                    problem: "ibv_devinfo does not answer: it was given 5000 ms".to_owned(),
                });
            },
            "tool-hangs",
            Fail,
            "ibv_devinfo does not answer: it was given 5000 ms",
        ),
    ];
    for (change, id, level, sentence) in rows {
        assert_eq!(after(change), [(id, level, sentence.to_owned())]);
    }
}

#[test]
fn what_is_not_known_is_not_said_to_be_well() {
    let unknown = after(|of, _| {
        of.memory.swap_used_bytes = None;
        of.gpu.as_mut().unwrap().recovery_count = None;
        of.preflight = Some(Preflight::default());
        of.thunderbolt.as_mut().unwrap().rdma.enabled = None;
    });
    let ids: Vec<_> = unknown.iter().map(|(id, ..)| *id).collect();
    assert_eq!(ids, ["swap", "gpu", "sleep", "updates", "file-vault", "rdma"]);
    assert!(unknown.iter().all(|(_, level, seen)| *level == Level::Warn && seen.ends_with("is not known")));
}

#[test]
fn the_worst_is_read_first_with_what_to_do() {
    let (mut seen, beside) = (ready(), beside());
    settings(&mut seen).sleep_min = Some(10);
    settings(&mut seen).auto_restart = Some(false);
    let told = describe(&checks(&seen, &beside));
    let head = "FAIL  it goes to sleep after 10 minutes\n      run `sudo pmset -a sleep 0`\n\
                warn  it stays off when power returns\n      run `sudo pmset -a autorestart 1`\n\
                ok    the Python runtime is ready\n";
    assert!(told.starts_with(head), "{told}");
}

#[test]
fn a_machine_without_cables_or_of_another_kind_is_told_less() {
    let alone = after(|of, _| {
        of.thunderbolt.as_mut().unwrap().ports[0].peers.clear();
        of.thunderbolt.as_mut().unwrap().rdma.enabled = Some(false);
    });
    assert_eq!(alone, [], "RDMA that nothing could use is no matter");
    let linux = after(|of, of_boot| {
        (of.thunderbolt, of.preflight, of.gpu) = (None, None, Some(Gpu::default()));
        (of.memory.pressure_level, of_boot.rdma_starts) = (None, None);
    });
    assert_eq!(linux, []);
}

#[test]
fn how_the_ports_to_other_nodes_are_is_told() {
    let told = |links: State| {
        let beside = Beside { links: Some(&links), ..beside() };
        let found = checks(&ready(), &beside).into_iter().find(|check| check.id == "link-preparation");
        found.map(|check| (check.level, check.seen))
    };
    assert_eq!(told(State::default()), None, "there are none");
    let two = State { ports: 2, ..State::default() };
    assert_eq!(told(two.clone()), Some((Level::Ok, "the 2 ports to other nodes are prepared".to_owned())));
    let lacks = vec!["sudo ifconfig en3 up".to_owned(), "sudo ifconfig en1 up".to_owned()];
    let says = |state, text: &str| assert_eq!(told(state), Some((Level::Warn, text.to_owned())));
    says(
        State { lacks, ..two.clone() },
        "the 2 ports to other nodes would be prepared by: sudo ifconfig en3 up; sudo ifconfig en1 up",
    );
    let problem = Some("no".to_owned());
    says(
        State { ports: 1, problem, given_up: true, ..State::default() },
        "the port to another node cannot be prepared: no; it is not tried again until something changes",
    );
    says(State { refused: vec!["bridge1 is somebody's".to_owned()], ..two }, "bridge1 is somebody's");
}

#[test]
fn a_port_that_a_person_has_reset_is_told_until_it_is_released() {
    let told = |ports, held: &[&str]| {
        let held = held.iter().map(ToString::to_string).collect();
        let links = State { ports, held, ..State::default() };
        let beside = Beside { links: Some(&links), ..beside() };
        let found = checks(&ready(), &beside).into_iter().filter(|check| check.id.starts_with("link-"));
        found.map(|check| (check.id, check.level, check.seen)).collect::<Vec<_>>()
    };
    let one = "en3 was reset by hand, and is not prepared until somebody does that by hand, too";
    assert_eq!(told(0, &["en3"]), [("link-held", Level::Warn, one.to_owned())], "nothing else is said of it");
    let both = told(1, &["en3", "en6"]);
    assert_eq!((both[0].0, both[0].1), ("link-preparation", Level::Ok));
    assert!(both[1].2.starts_with("en3, en6 were reset by hand, and are not prepared"), "{both:?}");
}

#[test]
fn what_the_machine_went_through_is_told_with_time_and_worker() {
    let t = 1_795_654_800_000;
    let report = |tells: Tells| Sign::Report { report: Report { tells, ..Report::default() }, unix_ms: t };
    let killed = Killed {
        process: "python3.13".to_owned(),
        pid: Some(88),
        reason: "vm-compressor-space-shortage".to_owned(),
        resident_bytes: None,
    };
    let victim = |pid| Sign::Line(GpuLine::Victim { process: "python3.13".to_owned(), pid });
    let panicked =
        Tells::Panic { summary: Some("panic(cpu 7): underflow".to_owned()), boot_session_uuid: None };
    let signs = [
        victim(88),
        victim(99),
        report(Tells::Jetsam { killed: vec![killed], largest: None }),
        report(panicked),
    ];
    let mut book = Book::default();
    for sign in signs {
        book.note(sign, t, |pid| (pid == 88).then_some(Key { job_id: 7, epoch: 2, rank: 0 }));
    }
    let troubles: Vec<Trouble> = book.troubles().cloned().collect();
    let mut seen = ready();
    seen.gpu.as_mut().unwrap().recovery_count = Some(2);
    let beside = Beside { troubles: &troubles, ..beside() };
    let told: Vec<String> = checks(&seen, &beside)
        .into_iter()
        .filter(|check| check.level == Level::Warn)
        .map(|check| format!("{}: {}", check.id, check.seen))
        .collect();
    let when = "on 2026-11-26 at 01:00:00";
    assert_eq!(
        told,
        [
            format!(
                "gpu: the GPU was restarted 2 times since boot; the last time {when}, while python3.13 (worker j7/e2/r0) and \
                 python3.13 (pid 99) used it"
            ),
            format!(
                "memory-kills: {when} the system ended python3.13 (worker j7/e2/r0) for want of memory (vm-compressor-space-shortage)"
            ),
            format!("panic: {when} the system stopped (panic(cpu 7): underflow)"),
        ]
    );
}
