//! `clusterctl install` and `clusterctl uninstall`

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::confirm;
use crate::{
    App,
    error::{Error, Result},
    exit::Exit,
    install::{
        layout::{Layout, Manager, Part, Program},
        look::Site,
        plan::{self, Plan, Request, Seen, State},
        run::Runner,
        step::Step,
    },
    output::{
        human,
        text::list,
        views::{InstallView, ServiceView, StepView},
    },
    siblings::{self, Limits},
};

/// What to install.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    /// What runs workers: on every machine.
    Agent,
    /// What keeps the ledger: on one machine.
    Controller,
    /// Both on this machine.
    Both,
}

impl What {
    fn parts(self) -> Vec<Part> {
        match self {
            Self::Agent => vec![Part::Agent],
            Self::Controller => vec![Part::Controller],
            Self::Both => Part::ALL.to_vec(),
        }
    }
}

/// A program that cannot start, for a port in use say, ends within a second.
const RUNS_FOR_MS: u64 = 2_000;

/// On everybody's search path, and not Homebrew's.
const DEFAULT_PREFIX: &str = "/usr/local";

/// What both commands take.
#[derive(Debug, clap::Args)]
struct Place {
    /// The programs are in PREFIX/bin [default: where they are installed, else /usr/local]
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<PathBuf>,
    /// Print every step, and do none
    #[arg(long)]
    dry_run: bool,
    /// Count a service as started when it has run for so long, for tests
    #[arg(long, hide = true, value_name = "MS", default_value_t = RUNS_FOR_MS)]
    runs_for_ms: u64,
    /// Stand-in for the machine, for tests
    #[arg(long, hide = true, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// As if what starts services here were this, for tests
    #[arg(long, hide = true, value_enum)]
    service_manager: Option<Manager>,
}

/// Arguments of `install`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(value_enum)]
    what: What,
    /// Let workers run as this user, who must be able to read the models [default: one made for them]
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    user: Option<String>,
    /// Name this machine in the cluster [default: its host name]
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    node_id: Option<String>,
    /// Take the programs from here [default: where this clusterctl lies]
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

/// Arguments of `uninstall`.
#[derive(Debug, clap::Args)]
pub struct UninstallArgs {
    #[arg(value_enum, default_value = "both")]
    what: What,
    /// Remove ledger, prompts, answers, runtime, configuration and logs, too
    #[arg(long)]
    purge: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    place: Place,
}

impl Place {
    fn site(&self, from: Option<PathBuf>) -> Result<Site> {
        if let Some(prefix) = self.prefix.as_ref().filter(|prefix| !prefix.is_absolute()) {
            let message = format!("{} is no place for programs of the system.", prefix.display());
            return Err(Error::Usage {
                message,
                hint: Some("give a whole path, such as /usr/local".to_owned()),
            });
        }
        let is_mac = cfg!(target_os = "macos");
        let manager =
            self.service_manager.unwrap_or(if is_mac { Manager::Launchd } else { Manager::Systemd });
        let is_real = self.root == Path::new("/");
        // sd_booted(3)
        if is_real && manager == Manager::Systemd && !Path::new("/run/systemd/system").exists() {
            return Err(Error::local_hint(
                "This machine does not run systemd, and services can be made with launchd and systemd only.",
                "start `clusterd` and `cluster-agent run` with what starts services here",
            ));
        }
        if is_real && !self.dry_run && !nix::unistd::geteuid().is_root() {
            return Err(Error::local_hint(
                "Only root can do that.",
                "run it with sudo, or look first: --dry-run",
            ));
        }
        let from = from.or_else(siblings::own_dir).ok_or_else(|| {
            Error::local_hint("It cannot be found out where this clusterctl lies.", "say it: --from DIR")
        })?;
        let mut site = Site {
            layout: Layout { manager, prefix: DEFAULT_PREFIX.into() },
            root: self.root.clone(),
            from,
            runs_for: Duration::from_millis(self.runs_for_ms),
        };
        let prefix = match &self.prefix {
            Some(prefix) => Some(prefix.clone()),
            None => site.installed_prefix()?,
        };
        if let Some(prefix) = prefix {
            site.layout.prefix = prefix;
        }
        Ok(site)
    }
}

/// Makes services of the programs.
pub async fn run(args: Args, app: &mut App) -> Result<Exit> {
    let site = args.place.site(args.from)?;
    let request = Request {
        parts: args.what.parts(),
        user: args.user,
        node_id: args.node_id,
        controller: app.given_address()?,
    };
    if request.parts == [Part::Controller] && (request.user.is_some() || request.node_id.is_some()) {
        let message = "--user and --node-id are about the agent.".to_owned();
        return Err(Error::Usage {
            message,
            hint: Some("leave them out, or install agent or both".to_owned()),
        });
    }
    site.check_bin()?;
    let seen = site.look(&request).await?;
    check_sources(&request.parts, &site, &seen).await?;
    let plan = plan::install(&request, &site.layout, &seen)?;
    if !args.place.dry_run {
        Runner::new(&site).all_or_none(&plan.steps, |step| tell(app, &site.layout, step)).await?;
    }
    let mut services = Vec::new();
    for &part in &request.parts {
        if let (false, State::Running { pid }) = (args.place.dry_run, site.state(part).await?) {
            services.push(ServiceView { label: site.layout.label(part).to_owned(), pid });
        }
    }
    let next_steps = if args.place.dry_run { Vec::new() } else { next_steps(&request, &site) };
    show(app, &site.layout, args.place.dry_run, &plan, services, next_steps)
}

/// Takes the services away.
pub async fn uninstall(args: UninstallArgs, app: &mut App) -> Result<Exit> {
    let site = args.place.site(None)?;
    let parts = args.what.parts();
    let seen = site.look(&Request::default()).await?;
    let plan = plan::uninstall(&parts, args.purge, &site.layout, &seen);
    let lost: Vec<String> = plan
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::RemoveTree { path } => Some(path.display().to_string()),
            Step::RemoveUser { name } => Some(format!("the user {name}")),
            _ => None,
        })
        .collect();
    if !lost.is_empty() && !args.place.dry_run && !args.yes {
        if !app.output.can_ask() {
            return Err(Error::local_hint(
                format!("This would remove {} for good.", list(&lost)),
                "say that it is meant: --yes",
            ));
        }
        if !confirm::ask(&format!("Remove {} for good? [y/N] ", list(&lost)))? {
            app.output.note("Nothing was removed.");
            return Ok(Exit::Failed);
        }
    }
    if plan.steps.iter().any(|step| matches!(step, Step::ResetLinks { .. })) {
        // It is run as root.
        site.check_bin()?;
    }
    if !args.place.dry_run {
        Runner::new(&site).each(&plan.steps, |step| tell(app, &site.layout, step)).await?;
    }
    show(app, &site.layout, args.place.dry_run, &plan, Vec::new(), Vec::new())
}

/// That there is something to install, and that it runs here and is of one version: asked before anything is replaced.
async fn check_sources(parts: &[Part], site: &Site, seen: &Seen) -> Result<()> {
    for program in parts.iter().map(|part| part.program()).chain([Program::Clusterctl]) {
        let name = program.name();
        let path = seen.sources.get(&program).ok_or_else(|| {
            Error::local_hint(
                format!("There is no program {name} in {}.", site.from.display()),
                "build all three, cargo build --release --workspace, and run target/release/clusterctl install",
            )
        })?;
        let said = siblings::ask(path, ["--version"], b"", Limits::DEFAULT).await?;
        let said = String::from_utf8_lossy(&said);
        let version = said.trim().strip_prefix(name).map(str::trim).unwrap_or_default();
        if version != env!("CARGO_PKG_VERSION") {
            return Err(Error::local_hint(
                format!(
                    "{} says it is {:?}, and this is clusterctl {}.",
                    path.display(),
                    said.trim(),
                    env!("CARGO_PKG_VERSION")
                ),
                "install programs that were built together",
            ));
        }
    }
    Ok(())
}

/// Says what is being done; programs are told of all of it at the end. That nobody reads it is no reason to stop half-way.
fn tell(app: &App, layout: &Layout, step: &Step) {
    if !app.output.is_json() {
        let lines = human::install::step(&view_of(layout, step), &app.output.screen());
        let _ = app.output.raw(human::text(&lines).as_bytes());
    }
}

fn view_of(layout: &Layout, step: &Step) -> StepView {
    let commands = step.commands(layout).iter().map(|command| command.line()).collect();
    StepView { what: step.words(layout), commands }
}

fn next_steps(request: &Request, site: &Site) -> Vec<String> {
    let layout = &site.layout;
    let mut steps = Vec::new();
    if request.parts.contains(&Part::Agent) && !site.at(&layout.data().join("runtime")).exists() {
        let agent = layout.program(Program::ClusterAgent);
        steps.push(format!("install MLX, once on each machine: sudo {} runtime install", agent.display()));
    }
    let ctl = layout.program(Program::Clusterctl);
    steps.push(format!("look whether all is ready for a night: {} doctor", ctl.display()));
    steps
}

fn show(
    app: &App,
    layout: &Layout,
    dry_run: bool,
    plan: &Plan,
    services: Vec<ServiceView>,
    next_steps: Vec<String>,
) -> Result<Exit> {
    let steps = plan.steps.iter().map(|step| view_of(layout, step)).collect();
    let view = InstallView { dry_run, steps, notes: plan.notes.clone(), services, next_steps };
    app.output.value(&view, human::install::end)?;
    Ok(Exit::Ok)
}
