//! What a person should know of this machine before a night: each thing with what was seen and what to do next. Pure, over an
//! observation; what joins several nodes is the controller's.
//!
//! The promise: what could not be found out is said to be unknown, never to be well.

use jiff::tz::TimeZone;
use nightshift_proto::v1;
use serde::Serialize;

use crate::{
    link_prep::keeper::State,
    probe::{
        Observation,
        observation::{FileVault, Preflight, Thunderbolt, ThunderboltPort},
    },
    troubles::{Kind, Trouble, text},
};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// The night may suffer.
    Warn,
    /// The night will fail, or may end at any time.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Stable, for programs: `sleep`, `file-vault`, ….
    pub id: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was seen, in a sentence.
    pub seen: String,
    /// What to do next; empty where all is well.
    pub next_step: String,
}

impl Check {
    fn new(id: &'static str, level: Level, seen: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self { id, level, seen: seen.into(), next_step: next_step.into() }
    }

    fn ok(id: &'static str, seen: impl Into<String>) -> Self {
        Self::new(id, Level::Ok, seen, "")
    }

    /// Nobody knows: worth a look before a night, and nothing is wrong for certain.
    fn unknown(id: &'static str, what: &str, command: &str) -> Self {
        Self::new(id, Level::Warn, format!("{what} is not known"), format!("see what `{command}` says"))
    }

    /// The message of the session protocol.
    #[must_use]
    pub fn to_proto(&self) -> v1::Check {
        let level = match self.level {
            Level::Ok => v1::CheckLevel::Ok,
            Level::Warn => v1::CheckLevel::Warn,
            Level::Fail => v1::CheckLevel::Fail,
        };
        v1::Check {
            id: self.id.to_owned(),
            level: level.into(),
            seen: self.seen.clone(),
            next_step: self.next_step.clone(),
        }
    }
}

/// What else this agent knows of its machine.
#[derive(Debug, Clone, Default)]
pub struct Beside<'a> {
    /// Whether the Python runtime can be used; `None` where nobody has looked.
    pub runtime: Option<Result<(), &'a str>>,
    /// Wired beyond the least of this boot while nothing runs.
    pub stranded_bytes: Option<u64>,
    /// RDMA starts of this boot, and how many there may be; `None` where nobody counts.
    pub rdma_starts: Option<(u32, u32)>,
    /// Whom workers run as, where that is not whoever started the agent.
    pub workers: Option<WorkerUser<'a>>,
    /// How the ports to other nodes are, where somebody looks.
    pub links: Option<&'a State>,
    /// What the machine went through lately, oldest first.
    pub troubles: &'a [Trouble],
    /// That of the machine's clock; UTC where it is not known.
    pub time_zone: Option<TimeZone>,
}

/// Whom an agent that is root starts workers as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerUser<'a> {
    /// Nobody was named.
    Root,
    /// This user.
    Named(&'a str),
}

const GIB: u64 = 1 << 30;

/// Below this the agent cannot spool the results of a night in which the controller is away.
const ENOUGH_DISK_BYTES: u64 = 10 * GIB;

/// Below this nothing can be spooled at all.
const LEAST_DISK_BYTES: u64 = GIB;

/// Used swap beyond this is of something large that was here before: loading on top of it swaps again (FIELD-NOTES 4).
const STALE_SWAP_BYTES: u64 = GIB;

/// What macOS and its services hold beside a model; with less it swaps, and a panic is near.
const SYSTEM_NEEDS_BYTES: u64 = 4 * GIB;

/// Wired memory beyond this is missing for a model.
const STRANDED_BYTES: u64 = 2 * GIB;

/// All of it, in the order in which a person would mend it.
#[must_use]
pub fn checks(seen: &Observation, beside: &Beside<'_>) -> Vec<Check> {
    let mut found = Vec::new();
    found.extend(beside.runtime.map(runtime));
    found.extend(beside.workers.map(worker_user));
    found.extend(memory(seen, beside));
    found.extend(disk(seen));
    found.extend(gpu(seen, beside));
    found.extend(last(beside, Kind::OutOfMemory).map(|of| ended_for_memory(of, beside)));
    found.extend(last(beside, Kind::Panic).map(|of| panicked(of, beside)));
    found.extend(seen.preflight.iter().flat_map(settings));
    found.extend(seen.thunderbolt.iter().flat_map(|thunderbolt| links(seen, thunderbolt)));
    found.extend(beside.links.filter(|links| links.ports > 0).map(link_preparation));
    found.extend(beside.links.filter(|links| !links.held.is_empty()).map(held_ports));
    found.extend(rdma_starts(beside));
    found.extend(tools(seen));
    found
}

fn runtime(runtime: Result<(), &str>) -> Check {
    match runtime {
        Ok(()) => Check::ok("runtime", "the Python runtime is ready"),
        Err(problem) => Check::new("runtime", Level::Fail, problem, "run `cluster-agent runtime install`"),
    }
}

fn worker_user(user: WorkerUser<'_>) -> Check {
    match user {
        WorkerUser::Named(name) => Check::ok("worker-user", format!("workers run as {name}")),
        WorkerUser::Root => Check::new(
            "worker-user",
            Level::Warn,
            "workers run as root, and a model's own code would, too",
            "name another user: `worker_user` in the agent's configuration, or `sudo clusterctl install agent`",
        ),
    }
}

fn memory(seen: &Observation, beside: &Beside<'_>) -> Vec<Check> {
    let mut found = Vec::new();
    match seen.memory.swap_used_bytes {
        Some(used) if used > STALE_SWAP_BYTES => found.push(Check::new(
            "swap",
            Level::Warn,
            format!("{} of swap are in use", gigabytes(used)),
            "close what is large, or restart this machine: a model loaded beside it will swap",
        )),
        Some(used) => found.push(Check::ok("swap", format!("{} of swap are in use", gigabytes(used)))),
        None => found.push(Check::unknown("swap", "how much swap is in use", "sysctl vm.swapusage")),
    }
    match seen.memory.pressure_level {
        Some(level @ (2 | 4)) => found.push(Check::new(
            "memory-pressure",
            if level == 4 { Level::Fail } else { Level::Warn },
            format!("memory is short now (pressure level {level})"),
            "close what is large before the night",
        )),
        Some(_) => found.push(Check::ok("memory-pressure", "memory is not short")),
        None => {}
    }
    if let (Some(usable), Some(total)) = (seen.memory.gpu_working_set_bytes, seen.memory.total_bytes) {
        let told = format!("the GPU may use {} of {}", gigabytes(usable), gigabytes(total));
        found.push(if total.saturating_sub(usable) < SYSTEM_NEEDS_BYTES {
            Check::new(
                "gpu-memory",
                Level::Warn,
                format!("{told}, which leaves the system too little"),
                "lower it: `sudo sysctl iogpu.wired_limit_mb=0` is the system's own choice",
            )
        } else {
            Check::ok("gpu-memory", told)
        });
    }
    match beside.stranded_bytes {
        Some(bytes) if bytes > STRANDED_BYTES => found.push(Check::new(
            "wired-memory",
            Level::Fail,
            format!("{} more are wired than at the least of this boot, and no worker runs", gigabytes(bytes)),
            "restart this machine: memory that a killed worker left wired comes back with the next boot only",
        )),
        Some(_) => found.push(Check::ok("wired-memory", "no worker left memory wired")),
        None => {}
    }
    found
}

fn disk(seen: &Observation) -> Option<Check> {
    let available = seen.disk_available_bytes?;
    let told = format!("{} are free where the agent keeps its state", gigabytes(available));
    Some(match available {
        0..LEAST_DISK_BYTES => Check::new("disk", Level::Fail, told, "make room: results cannot be kept"),
        LEAST_DISK_BYTES..ENOUGH_DISK_BYTES => {
            Check::new("disk", Level::Warn, told, "make room before a long night")
        }
        _ => Check::ok("disk", told),
    })
}

fn last<'a>(beside: &Beside<'a>, kind: Kind) -> Option<&'a Trouble> {
    beside.troubles.iter().rev().find(|trouble| trouble.kind == kind)
}

fn gpu(seen: &Observation, beside: &Beside<'_>) -> Option<Check> {
    let gpu = seen.gpu.as_ref().filter(|gpu| gpu.present)?;
    let restarted = last(beside, Kind::GpuRestart);
    Some(match gpu.recovery_count {
        None => Check::unknown("gpu", "how often the GPU was restarted", "ioreg -r -d 1 -c IOAccelerator"),
        Some(0) => Check::ok("gpu", "the GPU was not restarted since boot"),
        Some(count) => Check::new(
            "gpu",
            Level::Warn,
            format!(
                "the GPU was restarted {count} times since boot{}",
                restarted.map(|of| last_restart(of, beside)).unwrap_or_default()
            ),
            "restart this machine before the night; if it happens again, see its gpuEvent reports in /Library/Logs/DiagnosticReports",
        ),
    })
}

fn zone(beside: &Beside<'_>) -> TimeZone {
    beside.time_zone.clone().unwrap_or(TimeZone::UTC)
}

/// "; the last time at …, while … used it (why)"
fn last_restart(trouble: &Trouble, beside: &Beside<'_>) -> String {
    let whose = text::concerned(trouble).map(|whose| format!(", while {whose} used it")).unwrap_or_default();
    format!("; the last time {}{whose}{}", text::time(trouble, &zone(beside)), text::reason(trouble))
}

fn ended_for_memory(trouble: &Trouble, beside: &Beside<'_>) -> Check {
    Check::new(
        "memory-kills",
        Level::Warn,
        format!(
            "{} the system ended {} for want of memory{}",
            text::time(trouble, &zone(beside)),
            text::concerned(trouble).unwrap_or_else(|| "a process".to_owned()),
            text::reason(trouble)
        ),
        "close what is large before the night, or let models have less: `memory_budget_mib` in the agent's configuration",
    )
}

fn panicked(trouble: &Trouble, beside: &Beside<'_>) -> Check {
    Check::new(
        "panic",
        Level::Warn,
        format!("{} the system stopped{}", text::time(trouble, &zone(beside)), text::reason(trouble)),
        "see its panic-full report in /Library/Logs/DiagnosticReports; if it happens again, keep rows away from this machine: `clusterctl drain`",
    )
}

fn settings(preflight: &Preflight) -> Vec<Check> {
    let mut found = vec![match (preflight.sleep_disabled, preflight.sleep_min) {
        (Some(true), _) | (_, Some(0)) => Check::ok("sleep", "it never goes to sleep"),
        (_, Some(minutes)) => Check::new(
            "sleep",
            Level::Fail,
            format!("it goes to sleep after {minutes} minutes"),
            "run `sudo pmset -a sleep 0`",
        ),
        (_, None) => Check::unknown("sleep", "whether it goes to sleep", "pmset -g"),
    }];
    found.push(if preflight.scheduled_stops.is_empty() {
        Check::ok("schedule", "no sleep, shutdown or restart is scheduled")
    } else {
        Check::new(
            "schedule",
            Level::Fail,
            format!("scheduled: {}", preflight.scheduled_stops.join("; ")),
            "run `sudo pmset repeat cancel` and `sudo pmset schedule cancelall`, or change the night window",
        )
    });
    if preflight.exo_daemon == Some(true) {
        found.push(Check::new(
            "exo-daemon",
            Level::Fail,
            "EXO's daemon is installed, which changes the network of Thunderbolt ports by itself",
            "run `sudo launchctl bootout system/io.exo.networksetup` and remove \
             /Library/LaunchDaemons/io.exo.networksetup.plist",
        ));
    }
    found.push(match (preflight.installs_macos, preflight.installs_critical) {
        (Some(true), _) | (_, Some(true)) => Check::new(
            "updates",
            Level::Warn,
            "updates install themselves, and restart this machine at night",
            "turn that off in System Settings > General > Software Update > Automatic Updates",
        ),
        (Some(false), Some(false)) => Check::ok("updates", "updates do not install themselves"),
        (None, _) | (_, None) => Check::unknown(
            "updates",
            "whether updates install themselves",
            "defaults read /Library/Preferences/com.apple.SoftwareUpdate",
        ),
    });
    found.push(match preflight.file_vault {
        Some(FileVault::Off) => {
            Check::ok("file-vault", "FileVault is off: it starts by itself after a restart")
        }
        Some(FileVault::On | FileVault::Changing) => Check::new(
            "file-vault",
            Level::Warn,
            "FileVault is on: after a restart nothing runs here until somebody unlocks the disk",
            "know that a restart at night takes this node out until the morning, or turn FileVault off",
        ),
        None => Check::unknown("file-vault", "whether FileVault is on", "fdesetup status"),
    });
    // Laptops do not have it, and have a battery.
    if let Some(auto_restart) = preflight.auto_restart {
        found.push(if auto_restart {
            Check::ok("auto-restart", "it starts by itself when power returns")
        } else {
            let step = "run `sudo pmset -a autorestart 1`";
            Check::new("auto-restart", Level::Warn, "it stays off when power returns", step)
        });
    }
    if preflight.low_power_mode == Some(true) {
        let step = "run `sudo pmset -a lowpowermode 0`";
        found.push(Check::new("low-power", Level::Warn, "low power mode is on, at half the speed", step));
    }
    found
}

/// What this end of each cable says for itself.
fn links(seen: &Observation, thunderbolt: &Thunderbolt) -> Vec<Check> {
    let cabled = || thunderbolt.ports.iter().filter(|port| !port.peers.is_empty());
    let mut found = Vec::new();
    if cabled().next().is_none() {
        return vec![Check::ok("thunderbolt", "no other Mac is on a Thunderbolt cable")];
    }
    found.push(match thunderbolt.rdma.enabled {
        Some(true) => Check::ok("rdma", "RDMA is on"),
        Some(false) => Check::new(
            "rdma",
            Level::Warn,
            "RDMA is off",
            "start this machine in Recovery (hold the power button), open Terminal, run `rdma_ctl enable`, and restart",
        ),
        None => Check::unknown("rdma", "whether RDMA is on", "rdma_ctl status"),
    });
    found.extend(cabled().map(|port| cable(seen, port)));
    found
}

fn link_preparation(links: &State) -> Check {
    let ports = match links.ports {
        1 => "the port to another node".to_owned(),
        ports => format!("the {ports} ports to other nodes"),
    };
    let of = |level, seen: String, next_step: &str| Check::new("link-preparation", level, seen, next_step);
    if let Some(problem) = &links.problem {
        let again = if links.given_up { "; it is not tried again until something changes" } else { "" };
        let step = "see what `cluster-agent link plan` says there";
        return of(Level::Warn, format!("{ports} cannot be prepared: {problem}{again}"), step);
    }
    if !links.lacks.is_empty() {
        return of(
            Level::Warn,
            format!("{ports} would be prepared by: {}", links.lacks.join("; ")),
            "run `sudo cluster-agent link apply` there; `link_policy = \"apply\"` in the agent's configuration has it done after each restart",
        );
    }
    if !links.refused.is_empty() {
        return of(Level::Warn, links.refused.join("; "), "mend that by hand: it is not ours to change");
    }
    Check::ok("link-preparation", format!("{ports} {} prepared", if links.ports == 1 { "is" } else { "are" }))
}

fn held_ports(links: &State) -> Check {
    let (ports, was, is) = match links.held.as_slice() {
        [one] => (one.clone(), "was", "is"),
        more => (more.join(", "), "were", "are"),
    };
    Check::new(
        "link-held",
        Level::Warn,
        format!("{ports} {was} reset by hand, and {is} not prepared until somebody does that by hand, too"),
        "run `sudo cluster-agent link apply` there when it may be used again",
    )
}

fn cable(seen: &Observation, port: &ThunderboltPort) -> Check {
    let at = format!("port {}", port.receptacle);
    let fail = |what: String, step: String| Check::new("cable", Level::Warn, format!("{at}: {what}"), step);
    let Some(name) = &port.interface else {
        return Check::unknown(
            "cable",
            &format!("the interface of {at}"),
            "networksetup -listallhardwareports",
        );
    };
    if let Some(bridge) = &port.bridge {
        return fail(
            format!("{bridge} has taken {name}, so that it carries no RDMA"),
            "run `cluster-agent link plan`, which says how to take it out, and `sudo cluster-agent link apply`".to_owned(),
        );
    }
    let interface = seen.interfaces.iter().find(|interface| interface.name == *name);
    match interface {
        None => {
            return fail(format!("{name} is no interface of this system"), "restart this machine".to_owned());
        }
        Some(interface) if !interface.up => {
            return fail(format!("{name} is down"), format!("run `sudo ifconfig {name} up`"));
        }
        Some(interface) if interface.carrier == Some(false) => {
            return fail(format!("{name} has no carrier"), "look at both plugs of the cable".to_owned());
        }
        Some(interface) if !interface.addresses.iter().any(|address| is_given_ipv4(address)) => {
            return fail(
                format!("{name} has no IPv4 address of its own"),
                "wait some minutes after the cable was plugged in; if none comes, run `cluster-agent link plan` and \
                 `sudo cluster-agent link apply`"
                    .to_owned(),
            );
        }
        Some(_) => {}
    }
    let speed =
        port.speed_bits_per_s.map_or_else(String::new, |bits| format!(" at {} Gb/s", bits / 1_000_000_000));
    Check::ok("cable", format!("{at}: {name} is up{speed}"))
}

/// An IPv4 address that somebody gave, not one made up for want of it.
fn is_given_ipv4(address: &str) -> bool {
    let address = address.split('/').next().and_then(|text| text.parse::<std::net::Ipv4Addr>().ok());
    address.is_some_and(|address| !address.is_link_local())
}

fn rdma_starts(beside: &Beside<'_>) -> Option<Check> {
    let (used, most) = beside.rdma_starts.filter(|(used, _)| *used > 0)?;
    let told = format!("{used} of {most} starts over RDMA of this boot are used");
    Some(if used >= most {
        Check::new("rdma-starts", Level::Warn, told, "restart this machine: until then its jobs run over TCP")
    } else {
        Check::ok("rdma-starts", told)
    })
}

/// A tool that hangs says something about the machine; one that fails is told of where its answer is missed.
fn tools(seen: &Observation) -> Vec<Check> {
    let hung = seen.tool_problems.iter().filter(|problem| problem.hangs);
    hung.map(|problem| {
        Check::new(
            "tool-hangs",
            Level::Fail,
            problem.problem.clone(),
            "restart this machine: what it asks for does not answer any more",
        )
    })
    .collect()
}

/// As a person reads them: what is to be mended first, with the next step under each.
#[must_use]
pub fn describe(checks: &[Check]) -> String {
    let mut sorted: Vec<&Check> = checks.iter().collect();
    sorted.sort_by_key(|check| std::cmp::Reverse(check.level));
    let lines = sorted.into_iter().map(|check| {
        let level = match check.level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        let step =
            if check.next_step.is_empty() { String::new() } else { format!("\n      {}", check.next_step) };
        format!("{level:<6}{}{step}\n", check.seen)
    });
    lines.collect()
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

#[cfg(test)]
mod tests;
