//! Real network links, made in a network namespace of the test's own, lose their carrier and are seen to.
//!
//! Nothing of the machine's own network is touched: a namespace is a thread's, and goes with it. Where this machine cannot
//! make one, the cases are counted as ignored.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Trial};

fn main() -> ExitCode {
    let trials = vec![
        case("the_kernel_tells_of_a_lost_carrier", inside::told),
        case("what_the_kernel_could_not_tell_is_a_change", inside::overrun),
        case("a_lost_carrier_is_observed", inside::observed),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn case(name: &str, body: fn()) -> Trial {
    Trial::ignorable_test(name, move || {
        Ok(match inside::run(body) {
            Ok(()) => Completion::Completed,
            Err(reason) => Completion::ignored_with(reason),
        })
    })
}

#[cfg(not(target_os = "linux"))]
mod inside {
    pub(crate) fn run(_: fn()) -> Result<(), String> {
        Err("network namespaces are Linux's".to_owned())
    }

    pub(crate) fn told() {}
    pub(crate) fn overrun() {}
    pub(crate) fn observed() {}
}

#[cfg(target_os = "linux")]
#[expect(clippy::unwrap_used, clippy::print_stdout, reason = "what fails here fails the test that uses it")]
mod inside {
    use std::{
        fs,
        io::Write as _,
        panic,
        process::{Command, Stdio},
        thread,
        time::{Duration, Instant},
    };

    use nightshift_agent::probe::{self, Probe, changes};
    use nix::{
        sched::{CloneFlags, unshare},
        unistd::geteuid,
    };

    /// So much longer than anything here takes that it only ends a test that hangs.
    const LIMIT: Duration = Duration::from_secs(60);

    /// Linux holds some messages about carriers back for up to a second.
    const QUIET: Duration = Duration::from_millis(1_200);

    /// In a thread with a network of its own, as far as this machine can make one; if not, why.
    pub(crate) fn run(body: fn()) -> Result<(), String> {
        if !geteuid().is_root() {
            return Err("only root can make a network namespace".to_owned());
        }
        let inside = move || {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
                .map_err(|errno| format!("this machine makes no network namespace: {errno}"))?;
            // /sys shows the network of whoever mounted it, and the mount must stay in here.
            system("mount", &["--make-rprivate", "/"])?;
            system("mount", &["-t", "sysfs", "sysfs", "/sys"])?;
            system("ip", &["link", "set", "lo", "up"])?;
            system("ip", &["link", "add", "near", "type", "veth", "peer", "name", "far"])?;
            body();
            Ok(())
        };
        thread::spawn(inside).join().unwrap_or_else(|panicked| panic::resume_unwind(panicked))
    }

    /// Runs a command, which is in the namespaces of the thread that starts it.
    fn system(program: &str, arguments: &[&str]) -> Result<(), String> {
        let told = || format!("`{program} {}`", arguments.join(" "));
        let output = Command::new(program)
            .args(arguments)
            .output()
            .map_err(|error| format!("{} cannot be started: {error}", told()))?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("{}: {}", told(), String::from_utf8_lossy(&output.stderr).trim()))
    }

    fn set(interface: &str, state: &str) {
        system("ip", &["link", "set", interface, state]).unwrap();
    }

    fn native() -> Box<dyn Probe> {
        probe::native(probe::Options { state_dir: "/".into(), ..Default::default() }).unwrap()
    }

    fn carrier(interfaces: &[probe::Interface]) -> Option<bool> {
        interfaces.iter().find(|interface| interface.name == "near").unwrap().carrier
    }

    fn until_carrier(probe: &mut dyn Probe, wanted: bool) {
        let end = Instant::now() + LIMIT;
        while carrier(&probe.interfaces().unwrap()) != Some(wanted) {
            assert!(Instant::now() < end, "the carrier of the link does not become {wanted}");
            thread::yield_now();
        }
    }

    /// Returns when the kernel has told all it had to.
    fn quiet(changes: &mut dyn changes::Changes) {
        while changes.wait(QUIET).unwrap() {}
    }

    pub(crate) fn told() {
        let (mut probe, mut changes) = (native(), changes::native().unwrap());
        set("near", "up");
        set("far", "up");
        until_carrier(probe.as_mut(), true);
        quiet(changes.as_mut());
        set("far", "down");
        // Looks only when told, so that a change nobody tells of is not found.
        loop {
            assert_eq!(changes.wait(LIMIT), Ok(true), "the kernel told nothing");
            if carrier(&probe.interfaces().unwrap()) == Some(false) {
                break;
            }
        }
        quiet(changes.as_mut());
        system("ip", &["address", "add", "10.77.0.1/24", "dev", "near"]).unwrap();
        assert_eq!(changes.wait(LIMIT), Ok(true), "the kernel told nothing");
    }

    pub(crate) fn overrun() {
        let mut changes = changes::native().unwrap();
        // Each tells of a link and its addresses; a socket holds some hundreds of messages.
        let flapping = "link set lo down\nlink set lo up\n".repeat(2_000);
        let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        ip.stdin.take().unwrap().write_all(flapping.as_bytes()).unwrap();
        assert!(ip.wait().unwrap().success());
        assert!(dropped_messages() > 0, "the socket held all of it");
        assert_eq!(changes.wait(LIMIT), Ok(true));
        quiet(changes.as_mut());
        set("lo", "down");
        assert_eq!(changes.wait(LIMIT), Ok(true), "after the overrun the kernel told nothing");
    }

    /// By all netlink sockets of this namespace.
    fn dropped_messages() -> u64 {
        let text = fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
        let column =
            text.lines().next().unwrap().split_whitespace().position(|name| name == "Drops").unwrap();
        let drops =
            |line: &str| line.split_whitespace().nth(column).and_then(|field| field.parse::<u64>().ok());
        text.lines().skip(1).filter_map(drops).sum()
    }

    pub(crate) fn observed() {
        set("near", "up");
        set("far", "up");
        let mut probe = native();
        until_carrier(probe.as_mut(), true);
        let mut newest = probe::watch::run(probe, changes::native()).unwrap().subscribe();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        for wanted in [false, true, false] {
            let began = Instant::now();
            set("far", if wanted { "up" } else { "down" });
            let seen = newest.wait_for(|seen| carrier(&seen.interfaces) == Some(wanted));
            runtime.block_on(async { tokio::time::timeout(LIMIT, seen).await }).unwrap().unwrap();
            println!("carrier {wanted}: observed {:?} after `ip link set` was started", began.elapsed());
        }
    }
}
