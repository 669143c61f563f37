//! Which steps are missing. Pure: from what is asked for and what there is.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use super::{
    layout::{Layout, Manager, Part, Program},
    step::{Step, kept, staged},
    units,
};
use crate::error::{Error, Result};

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    pub(crate) parts: Vec<Part>,
    /// Whom workers run as.
    pub(crate) user: Option<String>,
    pub(crate) node_id: Option<String>,
    /// Where the agent finds the controller.
    pub(crate) controller: Option<String>,
}

/// A service, as its manager knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum State {
    /// It does not.
    #[default]
    Absent,
    /// Known, and no process runs.
    Stopped,
    /// A process runs.
    Running { pid: u32 },
}

/// What there is of a program in the place where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Copy {
    #[default]
    Absent,
    /// The very same.
    Same,
    /// Another one.
    Other,
}

/// What there is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// Where programs come from.
    pub(crate) sources: BTreeMap<Program, PathBuf>,
    pub(crate) programs: BTreeMap<Program, Copy>,
    /// Service files that are there.
    pub(crate) units: BTreeMap<Part, String>,
    /// Configurations that are there.
    pub(crate) configs: BTreeMap<Part, String>,
    /// Files and directories of the layout that are there.
    pub(crate) present: BTreeSet<PathBuf>,
    /// Of those that are asked about.
    pub(crate) users: BTreeSet<String>,
    /// For a new user, on macOS.
    pub(crate) free_number: Option<u32>,
    pub(crate) services: BTreeMap<Part, State>,
}

impl Seen {
    fn state(&self, part: Part) -> State {
        self.services.get(&part).copied().unwrap_or_default()
    }

    fn copy(&self, program: Program) -> Copy {
        self.programs.get(&program).copied().unwrap_or_default()
    }
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    /// What a person should know of what is not done.
    pub(crate) notes: Vec<String>,
}

/// What installing takes. Nothing, where all is as it should be.
pub(crate) fn install(request: &Request, layout: &Layout, seen: &Seen) -> Result<Plan> {
    let mut plan = Plan::default();
    let (mut configs, mut made, mut home) = (Vec::new(), None, None);
    let mut directories: Vec<(PathBuf, u32, Option<String>)> =
        vec![(layout.bin(), 0o755, None), (layout.data(), 0o755, None)];
    if layout.config_dir() != layout.data() {
        directories.push((layout.config_dir(), 0o755, None));
    }
    directories.extend(layout.logs().map(|dir| (dir, 0o755, None)));
    for &part in &request.parts {
        let config = match (part, seen.configs.get(&part)) {
            (Part::Agent, text) => {
                let user = worker_user(request, layout, text.map(String::as_str))?;
                made = user.as_deref().map(|user| make_user(user, layout, seen)).transpose()?.flatten();
                let is_ours = made.is_some() || seen.present.contains(&layout.user_marker());
                if is_ours && user.as_deref() == Some(layout.own_user()) {
                    home = Some((layout.home(), 0o700, user.clone()));
                }
                let (node, controller) = (request.node_id.as_deref(), request.controller.as_deref());
                units::agent_config(user.as_deref().unwrap_or_default(), node, controller)
            }
            (Part::Controller, _) => units::controller_config(),
        };
        if seen.configs.contains_key(&part) {
            plan.notes.push(format!("{} is kept as it is", layout.config(part).display()));
        } else {
            configs.push((part, config));
        }
    }
    let is_missing = |(path, ..): &(PathBuf, u32, Option<String>)| !seen.present.contains(path);
    let make = |(path, mode, owner)| Step::MakeDirectory { path, mode, owner };
    plan.steps.extend(directories.into_iter().filter(is_missing).map(make));
    if let Some(made) = made {
        // First that it is ours, so that it is never left behind.
        let text = format!("{}\n", layout.own_user());
        plan.steps.push(Step::Write { path: layout.user_marker(), text, mode: 0o644 });
        plan.steps.push(made);
    }
    plan.steps.extend(home.into_iter().filter(is_missing).map(make));

    let wanted: BTreeSet<Program> =
        request.parts.iter().map(|part| part.program()).chain([Program::Clusterctl]).collect();
    let stale: BTreeSet<Program> =
        wanted.iter().copied().filter(|program| seen.copy(*program) != Copy::Same).collect();
    for &program in &stale {
        let from = seen
            .sources
            .get(&program)
            .cloned()
            .ok_or_else(|| Error::local(format!("There is no {} to install.", program.name())))?;
        plan.steps.push(Step::Stage { program, from, to: layout.program(program) });
    }
    let units: Vec<(Part, String)> =
        request.parts.iter().map(|&part| (part, units::unit(layout, part))).collect();
    let changed = |part: Part, text: &String| seen.units.get(&part) != Some(text);
    let interrupted = |path: &PathBuf| seen.present.contains(&kept(path));
    let restarted: Vec<Part> = units
        .iter()
        .filter(|(part, text)| {
            changed(*part, text)
                || stale.contains(&part.program())
                || configs.iter().any(|(written, _)| written == part)
                || interrupted(&layout.unit(*part))
                || interrupted(&layout.program(part.program()))
                || !matches!(seen.state(*part), State::Running { .. })
        })
        .map(|(part, _)| *part)
        .collect();
    let known = restarted.iter().filter(|part| seen.state(**part) != State::Absent);
    plan.steps.extend(known.map(|&part| Step::Stop { part }));
    let same_programs =
        wanted.iter().filter(|program| !stale.contains(program)).map(|program| layout.program(*program));
    let same_units =
        units.iter().filter(|(part, text)| !changed(*part, text)).map(|(part, _)| layout.unit(*part));
    let done: Vec<PathBuf> = same_programs.chain(same_units).filter(interrupted).collect();
    plan.steps.extend(done.into_iter().map(|to| Step::Resume { to }));
    plan.steps.extend(stale.iter().map(|&program| Step::Place { to: layout.program(program) }));
    plan.steps.extend(configs.into_iter().map(|(part, text)| Step::Write {
        path: layout.config(part),
        text,
        // It may name a webhook, which is as good as a password.
        mode: 0o600,
    }));
    plan.steps.extend(
        units.iter().filter(|(part, text)| changed(*part, text)).map(|(part, text)| Step::Write {
            path: layout.unit(*part),
            text: text.clone(),
            mode: 0o644,
        }),
    );
    // The agent last: it finds its controller there.
    for &part in restarted.iter().rev() {
        plan.steps.extend([Step::Start { part }, Step::Verify { part }]);
    }
    Ok(plan)
}

/// Whom workers will run as; a configuration that is there decides, and what was asked for must not contradict it.
fn worker_user(request: &Request, layout: &Layout, config: Option<&str>) -> Result<Option<String>> {
    let Some(config) = config else {
        return Ok(Some(request.user.clone().unwrap_or_else(|| layout.own_user().to_owned())));
    };
    let path = layout.config(Part::Agent);
    let table: toml::Table = config.parse().map_err(|error: toml::de::Error| {
        Error::local_hint(
            format!("The configuration {} cannot be read: {}.", path.display(), error.message()),
            "mend it, or move it away and install again",
        )
    })?;
    let says = |key: &str| table.get(key).and_then(toml::Value::as_str).map(str::to_owned);
    let asked = [
        ("worker_user", "--user", &request.user),
        ("node_id", "--node-id", &request.node_id),
        ("controller", "--controller", &request.controller),
    ];
    for (key, flag, value) in asked {
        if let Some(value) = value
            && says(key).as_ref() != Some(value)
        {
            return Err(Error::local_hint(
                format!("{} is there already and does not say {key} = {value:?}.", path.display()),
                format!("write that into it and leave {flag} out, or move it away and install again"),
            ));
        }
    }
    Ok(says("worker_user"))
}

fn make_user(name: &str, layout: &Layout, seen: &Seen) -> Result<Option<Step>> {
    if name == "root" {
        return Err(Error::local_hint(
            "Workers are kept from being root.",
            "name another user, or none: then one is made for them",
        ));
    }
    if seen.users.contains(name) {
        return Ok(None);
    }
    if name != layout.own_user() {
        return Err(Error::local_hint(
            format!("This machine has no user {name}."),
            "name one that it has, or none: then one is made for workers",
        ));
    }
    if layout.manager == Manager::Launchd && seen.free_number.is_none() {
        return Err(Error::local_hint(
            format!("There is no free number for the user {name}."),
            "name a user that this Mac has: --user NAME",
        ));
    }
    Ok(Some(Step::MakeUser { name: name.to_owned(), home: layout.home(), number: seen.free_number }))
}

/// What taking away takes; with `purge`, of ledger, answers, logs and configuration, too.
pub(crate) fn uninstall(parts: &[Part], purge: bool, layout: &Layout, seen: &Seen) -> Plan {
    let mut plan = Plan::default();
    let there = |path: &PathBuf| seen.present.contains(path);
    let is_there = |part: Part| seen.units.contains_key(&part) || seen.state(part) != State::Absent;
    let others_left = Part::ALL.iter().any(|part| !parts.contains(part) && is_there(*part));
    let agent = layout.program(Program::ClusterAgent);
    let links_changed = layout.manager == Manager::Launchd && there(&layout.link_journal());
    let resets =
        parts.contains(&Part::Agent) && links_changed && seen.copy(Program::ClusterAgent) != Copy::Absent;
    for &part in parts {
        if seen.state(part) != State::Absent {
            plan.steps.push(Step::Stop { part });
        }
        if part == Part::Agent && resets {
            // Behind the agent, which might prepare them again.
            plan.steps.push(Step::ResetLinks { program: agent.clone() });
        }
        if seen.units.contains_key(&part) && layout.manager == Manager::Systemd {
            plan.steps.push(Step::Disable { part });
        }
    }
    // Where no service is, a program of that name may be somebody else's.
    let is_ours = |copy| copy == Copy::Same || (copy == Copy::Other && !seen.units.is_empty());
    let programs = Program::ALL.into_iter().filter(|program| {
        is_ours(seen.copy(*program)) && (!others_left || parts.iter().any(|part| part.program() == *program))
    });
    plan.steps.extend(programs.map(|program| Step::Remove { path: layout.program(program) }));
    // Behind them: it says where they are, should this be killed on the way.
    let units: Vec<Step> = parts
        .iter()
        .filter(|part| seen.units.contains_key(part))
        .map(|part| Step::Remove { path: layout.unit(*part) })
        .collect();
    let reload = (layout.manager == Manager::Systemd && !units.is_empty()).then_some(Step::Reload);
    plan.steps.extend(units.into_iter().chain(reload));
    // Of an installation that was killed.
    let targets = if others_left { Vec::new() } else { layout.targets() };
    let halves = targets.iter().flat_map(|path| [staged(path), kept(path)]).filter(there);
    plan.steps.extend(halves.map(|path| Step::Remove { path }));
    let states = parts.iter().flat_map(|part| layout.state(*part)).filter(there);
    let files = parts.iter().flat_map(|part| layout.files(*part)).filter(there);
    if purge {
        plan.steps.extend(states.map(|path| Step::RemoveTree { path }));
        plan.steps.extend(files.map(|path| Step::Remove { path }));
        if parts.contains(&Part::Agent) && there(&layout.user_marker()) {
            // Whoever is not known any more may have left a group behind.
            plan.steps.push(Step::RemoveUser { name: layout.own_user().to_owned() });
            plan.steps.push(Step::Remove { path: layout.user_marker() });
        }
        if !others_left {
            plan.steps.extend(layout.logs().filter(there).map(|path| Step::RemoveTree { path }));
            let dirs = BTreeSet::from([layout.config_dir(), layout.data()]);
            plan.steps.extend(dirs.into_iter().filter(there).map(|path| Step::RemoveEmpty { path }));
        }
    } else {
        plan.notes.extend(states.chain(files).map(|path| format!("{} is kept", path.display())));
        if plan.notes.is_empty() {
            return plan;
        }
        plan.notes.push("--purge removes that, too".to_owned());
    }
    plan
}
