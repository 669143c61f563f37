//! `install` and `uninstall`, for real: in a directory that stands for a machine, with stand-ins for the system's programs (`system/`).
//!
//! The programs that are installed are scripts; what installs them is the real clusterctl.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use super::program::{Ended, command, ended};

/// A machine, and a directory with programs to install.
struct Machine {
    dir: tempfile::TempDir,
    manager: &'static str,
}

/// A program that starts, or one that does not.
fn script(name: &str, starts: bool) -> String {
    let start = if starts { ":" } else { "echo \"the port is in use\" >&2; exit 1" };
    format!(
        "#!/bin/sh\ncase $1 in --version) echo '{name} {}' ;; *) {start} ;; esac\n",
        env!("CARGO_PKG_VERSION")
    )
}

fn put(path: &Path, text: &str, mode: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

impl Machine {
    fn new(manager: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let machine = Self { dir, manager };
        for (place, text) in [
            ("bin/launchctl", include_str!("system/launchctl")),
            ("usr/bin/dscl", include_str!("system/dscl")),
            ("usr/bin/id", include_str!("system/id")),
            ("usr/bin/systemctl", include_str!("system/systemctl")),
            ("usr/sbin/useradd", include_str!("system/useradd")),
            ("usr/sbin/userdel", include_str!("system/useradd")),
            ("usr/lib/counted", include_str!("system/counted")),
        ] {
            put(&machine.at(place), text, 0o755);
        }
        fs::create_dir_all(machine.at("Library/LaunchDaemons")).unwrap();
        fs::create_dir_all(machine.at("etc/systemd/system/multi-user.target.wants")).unwrap();
        fs::create_dir_all(machine.at("var/lib")).unwrap();
        put(&machine.at("directory/Users/ada"), "UniqueID 501\n", 0o644);
        fs::create_dir(machine.source("")).unwrap();
        for name in ["clusterctl", "clusterd", "cluster-agent"] {
            machine.build(name, true);
        }
        machine
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join("machine").join(path)
    }

    fn source(&self, name: &str) -> PathBuf {
        self.dir.path().join("build").join(name)
    }

    /// A new build of a program.
    fn build(&self, name: &str, starts: bool) {
        put(&self.source(name), &script(name, starts), 0o755);
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = command(args);
        command.args(["--service-manager", self.manager, "--runs-for-ms", "1", "--root"]).arg(self.at(""));
        if args[0] == "install" {
            command.arg("--from").arg(self.source(""));
        }
        command
    }

    fn run(&self, args: &[&str]) -> Ended {
        ended(self.command(args))
    }

    fn done(&self, args: &[&str]) -> String {
        let ended = self.run(args);
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{}", ended.stdout);
        ended.stdout
    }

    /// Every path with its mode and content, but for what the stand-ins keep of their own.
    fn tree(&self) -> BTreeMap<PathBuf, (u32, String)> {
        let root = self.at("");
        let mut found = BTreeMap::new();
        let mut left = vec![root.clone()];
        while let Some(dir) = left.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let metadata = path.symlink_metadata().unwrap();
                let inner = path.strip_prefix(&root).unwrap().to_owned();
                if ["calls", "numbers"].iter().any(|own| inner == Path::new(own)) {
                    continue;
                }
                let text = if metadata.is_symlink() {
                    fs::read_link(&path).unwrap().display().to_string()
                } else if metadata.is_dir() {
                    left.push(path);
                    // What is loaded and who there is stands in files; that there were any once is not a difference.
                    if ["loaded", "active", "directory/Groups"].iter().any(|own| inner == Path::new(own)) {
                        continue;
                    }
                    String::new()
                } else {
                    String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned()
                };
                found.insert(inner, (metadata.mode() & 0o7777, text));
            }
        }
        found
    }

    /// What runs, by its number.
    fn pid(&self, label: &str) -> Option<u32> {
        let text = fs::read_to_string(match self.manager {
            "launchd" => self.at("loaded").join(label),
            _ => self.at("active").join(label),
        });
        let text = text.ok()?;
        text.split_whitespace().last()?.parse().ok()
    }

    /// What was run that changes something.
    fn calls(&self) -> String {
        fs::read_to_string(self.at("calls")).unwrap_or_default()
    }

    fn mode(&self, path: &str) -> u32 {
        fs::metadata(self.at(path)).unwrap().mode() & 0o7777
    }

    fn golden(&self, text: &str) -> String {
        text.replace(&*self.dir.path().canonicalize().unwrap().to_string_lossy(), "DIR")
            .replace(&*self.dir.path().to_string_lossy(), "DIR")
    }
}

const AGENT: &str = "io.nightshift.agent";
const CONTROLLER: &str = "io.nightshift.controller";
const DATA: &str = "Library/Application Support/Nightshift";

#[test]
fn a_dry_run_prints_every_step_and_does_none() {
    for (manager, what, more) in [
        ("launchd", "both", &["--node-id", "studio"][..]),
        ("launchd", "controller", &[]),
        (
            "systemd",
            "agent",
            &["--user", "ada", "--controller", "127.0.0.1:7401", "--prefix", "/opt/night shift"],
        ),
    ] {
        let machine = Machine::new(manager);
        let before = machine.tree();
        let args: Vec<&str> = ["install", what, "--dry-run"].iter().chain(more).copied().collect();
        let said = machine.golden(&machine.done(&args));
        insta::assert_snapshot!(format!("install_dry_run_{manager}_{what}"), said);
        assert_eq!(machine.tree(), before);
        assert_eq!(machine.calls(), "");
    }
}

#[test]
fn a_dry_run_is_one_json_value_for_programs() {
    let machine = Machine::new("launchd");
    let ended = machine.run(&["install", "agent", "--dry-run", "--output", "json"]);
    let view = ended.json();
    assert_eq!(view["dry_run"], true);
    let last = view["steps"].as_array().unwrap().last().unwrap();
    assert_eq!(last["what"], format!("see that {AGENT} runs and goes on running"));
    let commands: Vec<&str> = view["steps"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|step| step["commands"].as_array().unwrap())
        .map(|command| command.as_str().unwrap())
        .collect();
    assert!(
        commands
            .contains(&"/bin/launchctl bootstrap system /Library/LaunchDaemons/io.nightshift.agent.plist")
    );
}

#[test]
fn both_are_installed_and_a_second_time_changes_nothing() {
    let machine = Machine::new("launchd");
    let said = machine.done(&["install", "both"]);
    let pids = [AGENT, CONTROLLER].map(|label| machine.pid(label).unwrap());
    assert!(said.contains(&format!("{AGENT} runs (pid {}).\n", pids[0])), "{said}");
    assert!(said.contains(
        "next: install MLX, once on each machine: sudo /usr/local/bin/cluster-agent runtime install\n"
    ));
    for (path, mode) in [
        ("usr/local/bin/cluster-agent", 0o755),
        ("usr/local/bin/clusterd", 0o755),
        ("usr/local/bin/clusterctl", 0o755),
        ("Library/LaunchDaemons/io.nightshift.agent.plist", 0o644),
        ("Library/LaunchDaemons/io.nightshift.controller.plist", 0o644),
        ("Library/Logs/Nightshift", 0o755),
        (DATA, 0o755),
        (&format!("{DATA}/agent.toml"), 0o600),
        (&format!("{DATA}/controller.toml"), 0o600),
        (&format!("{DATA}/home"), 0o700),
    ] {
        assert_eq!(machine.mode(path), mode, "{path}");
    }
    let config = fs::read_to_string(machine.at(&format!("{DATA}/agent.toml"))).unwrap();
    assert_eq!(config.parse::<toml::Table>().unwrap()["worker_user"].as_str(), Some("_nightshift"));
    let user = fs::read_to_string(machine.at("directory/Users/_nightshift")).unwrap();
    assert!(user.contains("UniqueID 398\n"), "399 is another's: {user}");
    assert!(user.contains("NFSHomeDirectory /Library/Application Support/Nightshift/home\n"), "{user}");
    // The controller first: the agent dials it.
    let calls = machine.calls();
    let place =
        |label: &str| calls.find(&format!("bootstrap system /Library/LaunchDaemons/{label}")).unwrap();
    assert!(place(CONTROLLER) < place(AGENT));

    let (before, calls) = (machine.tree(), machine.calls());
    let again = machine.done(&["install", "both"]);
    assert!(again.contains("Nothing is to be done.\n"), "{again}");
    assert_eq!((machine.tree(), machine.calls()), (before, calls));
    assert_eq!([AGENT, CONTROLLER].map(|label| machine.pid(label).unwrap()), pids);
}

#[test]
fn a_new_build_is_put_in_place_and_only_what_changed_is_started_again() {
    for (manager, agent, controller) in [
        ("launchd", AGENT, CONTROLLER),
        ("systemd", "nightshift-agent.service", "nightshift-controller.service"),
    ] {
        let machine = Machine::new(manager);
        machine.done(&["install", "both", "--user", "ada"]);
        let pids = [agent, controller].map(|label| machine.pid(label).unwrap());
        put(&machine.source("cluster-agent"), &format!("{}# newer\n", script("cluster-agent", true)), 0o755);
        let old = fs::metadata(machine.at("usr/local/bin/cluster-agent")).unwrap().ino();
        // What a person has written stays.
        let config = if manager == "launchd" {
            format!("{DATA}/agent.toml")
        } else {
            "etc/nightshift/agent.toml".into()
        };
        let mine = "worker_user = \"ada\"\nmax_workers = 2\n";
        put(&machine.at(&config), mine, 0o600);
        machine.done(&["install", "both"]);
        let installed = machine.at("usr/local/bin/cluster-agent");
        assert!(fs::read_to_string(&installed).unwrap().ends_with("# newer\n"));
        assert_ne!(
            fs::metadata(&installed).unwrap().ino(),
            old,
            "macOS ends what runs from a file that is changed"
        );
        assert_ne!(machine.pid(agent), Some(pids[0]));
        assert_eq!(machine.pid(controller), Some(pids[1]));
        assert_eq!(fs::read_to_string(machine.at(&config)).unwrap(), mine);
        assert_no_leftovers(&machine);
    }
}

fn assert_no_leftovers(machine: &Machine) {
    let left: Vec<PathBuf> = machine
        .tree()
        .into_keys()
        .filter(|path| {
            path.to_string_lossy().ends_with(".new") || path.to_string_lossy().ends_with(".before-install")
        })
        .collect();
    assert_eq!(left, Vec::<PathBuf>::new());
}

#[test]
fn a_build_that_does_not_start_gives_way_to_the_one_before() {
    let machine = Machine::new("launchd");
    machine.done(&["install", "both"]);
    let before = machine.tree();
    machine.build("cluster-agent", false);
    let failed = machine.run(&["install", "agent"]);
    assert_eq!(failed.code, 1);
    assert!(
        failed.stderr.starts_with(&format!(
            "error: {AGENT} does not run; it said: the port is in use. What was done is taken back.\n"
        )),
        "{}",
        failed.stderr
    );
    assert!(machine.pid(AGENT).is_some(), "the one before runs again");
    let mut after = machine.tree();
    let (mut before, log) = (before, Path::new("Library/Logs/Nightshift/agent.stderr.log"));
    // It runs under another number, and what the other said is kept.
    for tree in [&mut before, &mut after] {
        tree.remove(log);
        tree.remove(&Path::new("loaded").join(AGENT));
    }
    assert_eq!(after, before);
}

#[test]
fn a_first_install_that_does_not_start_is_taken_back_and_its_words_are_kept() {
    for (manager, says, hint) in [
        (
            "launchd",
            "io.nightshift.agent does not run; it said: the port is in use.",
            "/Library/Logs/Nightshift/agent.stderr.log",
        ),
        ("systemd", "nightshift-agent.service does not run.", "journalctl --unit nightshift-agent.service"),
    ] {
        let machine = Machine::new(manager);
        machine.build("cluster-agent", false);
        let mut before = machine.tree();
        let failed = machine.run(&["install", "both", "--user", "ada"]);
        assert_eq!(failed.code, 1);
        assert!(
            failed.stderr.contains(says) && failed.stderr.contains("What was done is taken back."),
            "{}",
            failed.stderr
        );
        assert!(failed.stderr.contains(hint), "{}", failed.stderr);
        let mut after = machine.tree();
        // What services left behind is theirs: a log with the reason, and state.
        for tree in [&mut before, &mut after] {
            tree.retain(|path, _| {
                ![Path::new("Library/Logs"), Path::new("var/lib/nightshift")]
                    .iter()
                    .any(|own| path.starts_with(own))
            });
        }
        assert_eq!(after, before, "{manager}");
    }
}

#[test]
fn interrupted_between_the_new_build_and_its_start_it_can_still_give_way() {
    for (manager, label) in [("launchd", AGENT), ("systemd", "nightshift-agent.service")] {
        let machine = Machine::new(manager);
        machine.done(&["install", "agent", "--user", "ada"]);
        let good = script("cluster-agent", true);
        machine.build("cluster-agent", false);
        // Killed at the first command after the new one is in place: the service is down.
        let stopped = machine.calls().lines().count() + 1;
        let mut command = machine.command(&["install", "agent"]);
        let killed = command.env("FAKE_KILL_AT", (stopped + 1).to_string()).output().unwrap();
        assert!(!killed.status.success());
        let installed = machine.at("usr/local/bin/cluster-agent");
        assert_ne!(fs::read_to_string(&installed).unwrap(), good);
        let failed = machine.run(&["install", "agent"]);
        assert!(failed.stderr.contains("What was done is taken back."), "{}", failed.stderr);
        assert_eq!(fs::read_to_string(&installed).unwrap(), good, "{manager}");
        // The rerun found it down: it starts what was there before.
        machine.build("cluster-agent", true);
        machine.done(&["install", "agent"]);
        assert!(machine.pid(label).is_some());
        assert_no_leftovers(&machine);
    }
}

#[test]
fn where_it_was_installed_is_where_it_is_upgraded_and_removed() {
    for manager in ["launchd", "systemd"] {
        let machine = Machine::new(manager);
        machine.done(&["install", "both", "--user", "ada", "--prefix", "/opt/night shift"]);
        // Somebody else's.
        put(&machine.at("usr/local/bin/clusterctl"), "mine", 0o755);
        let again = machine.done(&["install", "both"]);
        assert!(again.contains("Nothing is to be done."), "{again}");
        machine.done(&["uninstall"]);
        assert!(!machine.at("opt/night shift/bin/clusterd").exists());
        // Nor does it go when there is nothing of ours any more.
        machine.done(&["uninstall"]);
        assert_eq!(fs::read_to_string(machine.at("usr/local/bin/clusterctl")).unwrap(), "mine");
    }
}

#[test]
fn a_user_that_was_there_before_is_not_ours_to_remove() {
    let machine = Machine::new("systemd");
    put(&machine.at("directory/Users/nightshift"), "UniqueID 1007\n", 0o644);
    machine.done(&["install", "agent"]);
    machine.done(&["uninstall", "--purge", "--yes"]);
    assert!(machine.at("directory/Users/nightshift").exists());
    // One that was made goes, and is named before it does.
    let machine = Machine::new("systemd");
    machine.done(&["install", "agent"]);
    let refused = machine.run(&["uninstall", "--purge"]);
    assert!(refused.stderr.contains("the user nightshift"), "{}", refused.stderr);
    machine.done(&["uninstall", "--purge", "--yes"]);
    assert!(!machine.at("directory/Users/nightshift").exists());
}

/// The number of calls that change something, counted by a run in which none fails.
fn calls_of(manager: &'static str, args: &[&str]) -> usize {
    let machine = Machine::new(manager);
    machine.done(args);
    machine.calls().lines().count()
}

#[test]
fn whichever_command_fails_nothing_is_left_of_a_first_install() {
    for manager in ["launchd", "systemd"] {
        let calls = calls_of(manager, &["install", "both"]);
        // The last one of launchd is tried again, and works then.
        for n in 1..=calls {
            let machine = Machine::new(manager);
            let before = machine.tree();
            let mut command = machine.command(&["install", "both"]);
            command.env("FAKE_FAIL_AT", n.to_string());
            let ended = ended(command);
            if ended.code == 0 {
                assert!(
                    machine.calls().lines().nth(n - 1).unwrap().starts_with("launchctl"),
                    "{}",
                    machine.calls()
                );
                continue;
            }
            assert!(ended.stderr.contains("What was done is taken back."), "{manager} {n}: {}", ended.stderr);
            let mut after = machine.tree();
            // What a service that was started has written is its own.
            after.retain(|path, _| !path.starts_with("var/lib/nightshift"));
            assert_eq!(after, before, "{manager} {n}");
        }
    }
}

#[test]
fn killed_at_whichever_command_a_second_time_completes_it() {
    for manager in ["launchd", "systemd"] {
        let whole = Machine::new(manager);
        whole.done(&["install", "both"]);
        let calls = whole.calls().lines().count();
        let settled = |machine: &Machine| {
            let mut tree = machine.tree();
            // Numbers differ; that it runs is seen apart.
            tree.retain(|path, _| !path.starts_with("loaded") && !path.starts_with("active"));
            // A record that was begun twice says the same twice.
            for (path, (_, text)) in &mut tree {
                if path.starts_with("directory") {
                    let lines: std::collections::BTreeSet<&str> = text.lines().collect();
                    *text = lines.into_iter().collect::<Vec<_>>().join("\n");
                }
            }
            tree
        };
        for n in 1..=calls {
            let machine = Machine::new(manager);
            let mut command = machine.command(&["install", "both"]);
            let killed = command.env("FAKE_KILL_AT", n.to_string()).output().unwrap();
            assert!(!killed.status.success(), "{manager} {n}");
            machine.done(&["install", "both"]);
            assert_eq!(settled(&machine), settled(&whole), "{manager} {n}");
            assert_no_leftovers(&machine);
        }
    }
}

#[test]
fn uninstalling_leaves_what_was_answered_and_purging_leaves_nothing() {
    for manager in ["launchd", "systemd"] {
        let machine = Machine::new(manager);
        let before = machine.tree();
        machine.done(&["install", "both"]);
        let (data, config) =
            if manager == "launchd" { (DATA, DATA) } else { ("var/lib/nightshift", "etc/nightshift") };
        let answers = machine.at(&format!("{data}/controller/jobs/j1/results.jsonl"));
        put(&answers, "{}\n", 0o600);
        // As `cluster-agent runtime install` leaves it.
        put(&machine.at(&format!("{data}/runtime/bin/python")), "", 0o755);
        put(&machine.at(&format!("{data}/runtime.lock")), "", 0o644);
        let said = machine.done(&["uninstall"]);
        assert!(said.contains(&format!("# /{data}/controller is kept\n")), "{said}");
        assert!(said.contains("# --purge removes that, too\n"), "{said}");
        assert!(answers.exists() && machine.at(&format!("{config}/agent.toml")).exists());
        for gone in ["usr/local/bin/clusterctl", "usr/local/bin/clusterd", "usr/local/bin/cluster-agent"] {
            assert!(!machine.at(gone).exists(), "{gone}");
        }
        let labels = [AGENT, CONTROLLER, "nightshift-agent.service", "nightshift-controller.service"];
        assert!(labels.iter().all(|label| machine.pid(label).is_none()));

        let refused = machine.run(&["uninstall", "--purge"]);
        assert_eq!(refused.code, 1);
        assert!(refused.stderr.contains("say that it is meant: --yes"), "{}", refused.stderr);
        assert!(answers.exists());
        machine.done(&["uninstall", "--purge", "--yes"]);
        let mut after = machine.tree();
        // The directory of programs is the system's, whoever made it.
        after.retain(|path, _| !Path::new("usr/local/bin").starts_with(path) || before.contains_key(path));
        let mut before = before;
        before.retain(|path, _| !path.starts_with("Library/Logs"));
        after.retain(|path, _| {
            !path.starts_with("Library/Logs") && path != Path::new("Library/Application Support")
        });
        assert_eq!(after, before, "{manager}");
        assert!(machine.done(&["uninstall", "--purge", "--yes"]).contains("Nothing is to be done.\n"));
    }
}

#[test]
fn killed_as_it_removes_a_second_time_completes_it() {
    for manager in ["launchd", "systemd"] {
        let gone = Machine::new(manager);
        gone.done(&["install", "both"]);
        let installed = gone.calls().lines().count();
        gone.done(&["uninstall", "--purge", "--yes"]);
        let calls = gone.calls().lines().count();
        for n in installed + 1..=calls {
            let machine = Machine::new(manager);
            machine.done(&["install", "both"]);
            // Another build than the one that is installed.
            machine.build("cluster-agent", false);
            let mut command = machine.command(&["uninstall", "--purge", "--yes"]);
            let killed = command.env("FAKE_KILL_AT", n.to_string()).output().unwrap();
            assert!(!killed.status.success(), "{manager} {n}");
            machine.done(&["uninstall", "--purge", "--yes"]);
            assert_eq!(machine.tree(), gone.tree(), "{manager} {n}");
        }
    }
}

#[test]
fn one_of_two_goes_and_the_other_stays() {
    let machine = Machine::new("launchd");
    machine.done(&["install", "both"]);
    put(&machine.at(&format!("{DATA}/agent/link-prep.json")), "{}", 0o600);
    let pid = machine.pid(CONTROLLER);
    let said = machine.done(&["uninstall", "agent", "--purge", "--yes"]);
    assert!(said.contains("    /usr/local/bin/cluster-agent link reset --once\n"), "{said}");
    assert!(machine.pid(AGENT).is_none() && machine.pid(CONTROLLER) == pid && pid.is_some());
    for (path, stays) in [
        ("usr/local/bin/cluster-agent", false),
        ("usr/local/bin/clusterctl", true),
        ("usr/local/bin/clusterd", true),
        ("directory/Users/_nightshift", false),
        ("directory/Users/ada", true),
        (&format!("{DATA}/home"), false),
        (&format!("{DATA}/controller.toml"), true),
        ("Library/Logs/Nightshift", true),
    ] {
        assert_eq!(machine.at(path).exists(), stays, "{path}");
    }
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_done() {
    let machine = Machine::new("launchd");
    let refused = |args: &[&str], code: i32, says: &str| {
        let before = machine.tree();
        let ended = machine.run(args);
        assert_eq!(ended.code, code, "{args:?}: {} {}", ended.stdout, ended.stderr);
        assert!(ended.stderr.contains(says), "{args:?}: {}", ended.stderr);
        assert_eq!(machine.tree(), before, "{args:?}");
        assert_eq!(machine.calls(), "", "{args:?}");
    };
    refused(&["install", "agent", "--user", "bob"], 1, "This machine has no user bob.");
    refused(&["install", "agent", "--user", "root"], 1, "Workers are kept from being root.");
    refused(&["install", "controller", "--user", "ada"], 64, "--user and --node-id are about the agent.");
    refused(&["install", "agent", "--prefix", "here"], 64, "here is no place for programs of the system.");
    fs::create_dir_all(machine.at("opt/all/bin")).unwrap();
    fs::set_permissions(machine.at("opt/all/bin"), fs::Permissions::from_mode(0o777)).unwrap();
    refused(
        &["install", "agent", "--prefix", "/opt/all"],
        1,
        "/opt/all/bin can be written by others than root",
    );
    let config = machine.at(&format!("{DATA}/agent.toml"));
    put(&config, "node_id = \"mini\"\n", 0o600);
    refused(&["install", "agent", "--node-id", "studio"], 1, "does not say node_id = \"studio\"");
    put(&config, "node_id = [\n", 0o600);
    refused(&["install", "agent"], 1, "agent.toml cannot be read");
    fs::remove_file(&config).unwrap();
    fs::remove_dir(machine.at(DATA)).unwrap();
    put(&machine.source("clusterd"), "#!/bin/sh\necho clusterd 9.9.9\n", 0o755);
    refused(&["install", "controller"], 1, "says it is \"clusterd 9.9.9\"");
    fs::remove_file(machine.source("clusterd")).unwrap();
    refused(&["install", "both"], 1, "There is no program clusterd in ");
}
