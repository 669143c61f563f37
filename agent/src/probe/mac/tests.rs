//! A scripted Mac, from its tools to what the probe says.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{Mac, scripted::Scripted, surveyor::Pauses, tools::Tools};
use crate::probe::{
    Observation, Options, Probe,
    changes::Error,
    observation::{FileVault, RdmaPortState},
    text, watch,
};

/// Long for any of this, also on a machine that is busy.
const AMPLE: Duration = Duration::from_secs(60);

const PROFILER: &str = r#"{ "SPThunderboltDataType": [
    { "_name": "bus_1", "domain_uuid_key": "A1",
      "_items": [ { "device_name_key": "Mac17,6", "domain_uuid_key": "B1",
                    "services_title": [ { "protocol_id_key": 64087 } ] } ],
      "receptacle_1_tag": { "current_speed_key": "80 Gb/s", "receptacle_id_key": "1",
                            "receptacle_status_key": "receptacle_connected" } } ] }"#;

/// What a tool of this Mac prints.
fn say(dir: &Path, tool: &str, text: &str) {
    fs::write(dir.join(format!("{tool}.out")), text).unwrap();
    script(dir, tool, &format!("cat \"${{0%/*}}/{tool}.out\""));
}

fn script(dir: &Path, tool: &str, script: &str) {
    // Put in its place at once: the survey may be reading it.
    let (path, new) = (dir.join(tool), dir.join(format!("{tool}.new")));
    crate::scripts::write(&new, script);
    fs::rename(new, path).unwrap();
}

fn interfaces(status: &str, bridge: &str) -> String {
    format!(
        "en3: flags=8863<UP,BROADCAST,RUNNING> mtu 1500\n\tinet 10.99.0.1 netmask 0xfffffffc\n\tstatus: {status}\n\
         bridge0: flags=8822<BROADCAST> mtu 1500\n{bridge}\tstatus: inactive\n"
    )
}

/// One cable to another Mac, RDMA on at both ends, set up for the night.
fn healthy() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    fs::write(
        at.join("system.json"),
        r#"{ "identity": { "boot_session_uuid": "BOOT-1", "os_build": "25D125", "hardware_model": "Mac16,9" },
             "memory": { "total_bytes": 137438953472, "available_bytes": 120000000000, "wired_bytes": 5000000000,
                         "pressure_level": 1, "wired_limit_mib": 0, "recommended_working_set_bytes": 103079215104 },
             "gpu": { "model": "Apple M4 Max", "cores": 40, "recovery_count": 0 } }"#,
    )
    .unwrap();
    say(at, "system_profiler", PROFILER);
    say(at, "networksetup", "Hardware Port: Thunderbolt 1\nDevice: en3\n");
    say(at, "ifconfig", &interfaces("active", ""));
    say(at, "rdma_ctl", "enabled\n");
    say(at, "ibv_devices", "    device   node GUID\n    ------   ---------\n    rdma_en3   1\n");
    say(at, "ibv_devinfo", "hca_id:\trdma_en3\n\tmax_pd:\t11\n\t\tport:\t1\n\t\t\tstate:\tPORT_ACTIVE (4)\n");
    say(at, "ioclasscount", "AppleThunderboltRDMAProtectionDomain = 1\n");
    script(
        at,
        "pmset",
        "if [ \"$2\" = sched ]; then echo ' [0]  restart at 3:00AM'; else echo ' sleep 0'; echo ' autorestart 1'; fi",
    );
    script(at, "launchctl", "echo 'Could not find service' >&2; exit 113");
    say(at, "fdesetup", "FileVault is Off.\n");
    say(at, "defaults", "{\n    AutomaticallyInstallMacOSUpdates = 0;\n}\n");
    dir
}

fn probe(dir: &TempDir) -> Mac {
    let options = Options { state_dir: dir.path().to_owned(), ..Options::default() };
    let mut mac = Mac::scripted(options, dir.path()).unwrap();
    mac.settle();
    mac
}

/// What is seen as soon as it is so.
fn seen_when(dir: &TempDir, what: &str, is_so: impl Fn(&Observation) -> bool) -> Observation {
    let mut mac = probe(dir);
    let until = Instant::now() + AMPLE;
    loop {
        let seen = mac.observe();
        if is_so(&seen) {
            return seen;
        }
        assert!(Instant::now() < until, "{what}: {seen:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn everything_a_healthy_mac_says_is_in_one_observation() {
    let dir = healthy();
    let seen = probe(&dir).observe();
    assert_eq!(seen.problems, [""; 0]);
    assert_eq!((seen.os_name.as_str(), seen.os_build.as_deref()), ("macos", Some("25D125")));
    assert_eq!((seen.boot_id.as_deref(), seen.hardware_model.as_deref()), (Some("BOOT-1"), Some("Mac16,9")));
    assert_eq!(seen.memory.gpu_working_set_bytes, Some(103_079_215_104));
    assert_eq!(seen.memory.pressure_level, Some(1));
    let gpu = seen.gpu.unwrap();
    assert_eq!((gpu.name.as_str(), gpu.recovery_count), ("Apple M4 Max", Some(0)));
    let en3 = seen.interfaces.iter().find(|interface| interface.name == "en3").unwrap();
    assert_eq!(
        (en3.up, en3.carrier, en3.addresses.as_slice()),
        (true, Some(true), &["10.99.0.1/30".to_owned()][..])
    );
    let thunderbolt = seen.thunderbolt.unwrap();
    let port = &thunderbolt.ports[0];
    assert_eq!(
        (port.interface.as_deref(), port.bridged, port.rdma_state),
        (Some("en3"), Some(false), Some(RdmaPortState::Active))
    );
    assert_eq!((port.peers[0].domain_uuid.as_str(), port.peers[0].rdma), ("B1", Some(true)));
    assert_eq!(thunderbolt.rdma.enabled, Some(true));
    assert_eq!(
        (thunderbolt.rdma.protection_domains_held, thunderbolt.rdma.protection_domains_most),
        (Some(1), Some(11))
    );
    let preflight = seen.preflight.unwrap();
    assert_eq!((preflight.sleep_min, preflight.auto_restart), (Some(0), Some(true)));
    assert_eq!((preflight.file_vault, preflight.installs_macos), (Some(FileVault::Off), Some(false)));
    assert_eq!(preflight.scheduled_stops, ["restart at 3:00AM"]);
    assert_eq!(preflight.exo_daemon, Some(false));
    say(dir.path(), "launchctl", "system/io.exo.networksetup = {\n\tstate = running\n}\n");
    assert_eq!(probe(&dir).observe().preflight.unwrap().exo_daemon, Some(true));
}

#[test]
fn a_person_reads_it_in_words() {
    let dir = healthy();
    let lines = |mac: &mut Mac| -> Vec<String> {
        let told = text::describe(&mac.observe());
        let of_mac = |line: &&str| {
            ["rdma ", "port ", "settings", "scheduled"].iter().any(|name| line.starts_with(name))
        };
        told.lines().filter(of_mac).map(ToOwned::to_owned).collect()
    };
    assert_eq!(
        lines(&mut probe(&dir)),
        [
            "rdma        on, 1 of 11 protection domains held",
            "port 1      en3, Mac17,6 at 80 Gb/s with RDMA, RDMA active",
            "settings    never sleeps, restart after power loss on, FileVault off, automatic macOS updates off, low power mode unknown",
            "scheduled   restart at 3:00AM",
        ]
    );
    say(dir.path(), "system_profiler", "{}");
    say(dir.path(), "ifconfig", &interfaces("active", "\tmember: en3 flags=3<LEARNING>\n"));
    say(dir.path(), "ibv_devices", "    device   node GUID\n    ------   ---------\n");
    script(dir.path(), "rdma_ctl", "exit 1");
    script(dir.path(), "pmset", "exit 1");
    script(dir.path(), "fdesetup", "exit 1");
    script(dir.path(), "defaults", "exit 1");
    assert_eq!(
        lines(&mut probe(&dir)),
        [
            "rdma        unknown",
            "port 1      en3, taken by bridge0, plug unknown, no RDMA device",
            "settings    sleep unknown, restart after power loss unknown, FileVault unknown, automatic macOS updates unknown, low power mode unknown",
        ]
    );
}

#[test]
fn a_tool_that_says_nothing_leaves_the_rest_and_is_named() {
    let dir = healthy();
    fs::remove_file(dir.path().join("rdma_ctl")).unwrap();
    say(dir.path(), "fdesetup", "Error: not permitted\n");
    script(dir.path(), "networksetup", "echo 'no such option' >&2; exit 4");
    let seen = probe(&dir).observe();
    let mut problems: Vec<_> =
        seen.tool_problems.iter().map(|p| (p.tool.as_str(), p.is_missing, p.problem.as_str())).collect();
    problems.sort_unstable();
    assert_eq!(
        problems,
        [
            ("fdesetup", false, "what fdesetup says cannot be read"),
            ("networksetup", false, "networksetup ended with exit code 4: no such option"),
            ("rdma_ctl", true, "this system has no rdma_ctl"),
        ]
    );
    let thunderbolt = seen.thunderbolt.unwrap();
    assert_eq!((thunderbolt.rdma.enabled, thunderbolt.ports[0].interface.as_ref()), (None, None));
    assert_eq!(thunderbolt.ports[0].peers.len(), 1, "what system_profiler says stands");
    assert_eq!(seen.preflight.unwrap().file_vault, None);
}

/// RDMA is off: there are no devices, and no more is asked of them.
#[test]
fn without_devices_none_is_asked_for_its_state() {
    let dir = healthy();
    say(dir.path(), "rdma_ctl", "disabled\n");
    say(dir.path(), "ibv_devices", "    device   node GUID\n    ------   ---------\n");
    script(dir.path(), "ibv_devinfo", "echo 'No IB devices found' >&2; exit 255");
    let seen = probe(&dir).observe();
    assert_eq!(seen.tool_problems, []);
    let thunderbolt = seen.thunderbolt.unwrap();
    assert_eq!((thunderbolt.rdma.enabled, thunderbolt.ports[0].rdma_listed), (Some(false), Some(false)));
    assert_eq!(thunderbolt.ports[0].rdma_state, None);
}

#[test]
fn a_tool_that_hangs_is_a_finding_and_keeps_nobody_from_seeing_a_cable() {
    let dir = healthy();
    script(dir.path(), "ibv_devinfo", "sleep 1000");
    let options = Options { state_dir: dir.path().to_owned(), ..Options::default() };
    let mut mac = Mac::scripted(options, dir.path()).unwrap();
    // The survey is under way, and hangs.
    assert_eq!(mac.observe().thunderbolt, None);
    say(dir.path(), "ifconfig", &interfaces("inactive", ""));
    let carrier = mac.interfaces().unwrap().iter().find(|i| i.name == "en3").and_then(|i| i.carrier);
    assert_eq!((carrier, mac.has_news()), (Some(false), false));
    mac.settle();
    let seen = mac.observe();
    let hung: Vec<_> = seen.tool_problems.iter().filter(|problem| problem.hangs).map(|p| &p.tool).collect();
    assert_eq!(hung, ["ibv_devinfo"]);
    assert_eq!(seen.thunderbolt.unwrap().ports[0].rdma_listed, Some(true));
}

/// The bridge takes the port: none of the addresses and carriers changes by that, and the kernel tells.
#[test]
fn what_the_kernel_tells_of_is_surveyed_without_waiting_for_the_next_time() {
    let dir = healthy();
    // It surveys when it is told to, and not before.
    let pauses = Pauses { usual: 100 * AMPLE, while_changing: 100 * AMPLE, least: Duration::ZERO };
    let options = Options { state_dir: dir.path().to_owned(), ..Options::default() };
    let tools = Tools::in_dirs(vec![dir.path().to_owned()]);
    let mut mac = Mac::start(options, Box::new(Scripted::new(dir.path())), tools, pauses).unwrap();
    mac.settle();
    assert_eq!(mac.observe().thunderbolt.unwrap().ports[0].bridged, Some(false));
    say(
        dir.path(),
        "ifconfig",
        &interfaces("active", "\tether 02:00:00:00:00:09\n\tmember: en3 flags=3<LEARNING>\n"),
    );
    let _ = mac.interfaces();
    let until = Instant::now() + AMPLE;
    while !mac.has_news() {
        assert!(Instant::now() < until, "it was told");
        std::thread::sleep(Duration::from_millis(10));
    }
    let port = mac.observe().thunderbolt.unwrap().ports[0].clone();
    assert_eq!((port.bridged, port.bridge.as_deref()), (Some(true), Some("bridge0")));
    assert!(!mac.has_news(), "it is in the observation now");

    say(dir.path(), "ifconfig", &interfaces("inactive", ""));
    let _ = mac.interfaces();
    let bridged = |mac: &mut Mac| mac.observe().thunderbolt.unwrap().ports[0].bridged;
    while bridged(&mut mac) != Some(false) {
        assert!(Instant::now() < until + AMPLE, "and so is what nobody told of, when it is seen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The peer turns RDMA off: no interface changes, so that is seen at the next survey, which comes soon after a change.
#[test]
fn what_only_a_tool_knows_comes_into_an_observation_by_itself() {
    let dir = healthy();
    let mac = probe(&dir);
    let handle =
        watch::run(Box::new(mac), Err(Error { what: "read", source: nix::errno::Errno::EBADF })).unwrap();
    let mut newest = handle.subscribe();
    let offers = |seen: &Arc<Observation>| {
        seen.thunderbolt.as_ref().and_then(|thunderbolt| thunderbolt.ports.first()?.peers.first()?.rdma)
    };
    assert_eq!(offers(&newest.borrow_and_update()), Some(true));
    say(dir.path(), "system_profiler", &PROFILER.replace("64087", "1"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let seen = tokio::time::timeout(AMPLE, newest.wait_for(|seen| offers(seen) == Some(false))).await;
        assert!(seen.is_ok(), "it was never observed");
    });
}

#[test]
fn a_mac_that_says_nothing_at_all_is_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let seen = seen_when(&dir, "a survey without tools", |seen| seen.thunderbolt.is_some());
    assert_eq!(seen.thunderbolt.unwrap(), Default::default());
    assert_eq!((seen.boot_id, seen.gpu, seen.memory.total_bytes), (None, None, None));
    assert!(seen.tool_problems.iter().all(|problem| problem.is_missing));
}
