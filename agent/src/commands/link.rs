//! `cluster-agent link plan|apply|reset`

use std::{
    env,
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use nightshift_agent::{
    link_prep::{
        held::{self, Held},
        keeper,
        plan::{Plan, Step},
        run::{Journal, prepare, propose, reset, wanted},
    },
    paths::Surroundings,
    probe::{self, Observation, mac::tools::Tools},
};

/// The ways to a port that is ready.
#[derive(Debug, Subcommand)]
pub(super) enum Link {
    /// Print the commands that the ports of this Mac need, and change nothing.
    Plan(Ports),
    /// Run these commands (as root), and note what they change. Ends what `reset` says of their ports.
    Apply(Ports),
    /// Take back what was changed since this machine started (as root). The agent leaves these ports alone until `apply`.
    Reset(Reset),
}

#[derive(Debug, Args)]
pub(super) struct Ports {
    #[command(flatten)]
    place: Place,
    /// Only the cable to the Mac with this domain UUID; may be given several times [default: every Mac on a cable].
    #[arg(long, value_name = "UUID")]
    peer: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Place {
    /// Where the agent keeps its state.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    #[arg(long, hide = true, value_name = "DIR")]
    scripted_mac: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Reset {
    #[command(flatten)]
    place: Place,
    /// Let the agent prepare them again, if that is its policy.
    #[arg(long)]
    once: bool,
}

pub(super) fn run(command: Link) -> anyhow::Result<ExitCode> {
    match command {
        Link::Plan(ports) => {
            let (mut site, seen) = Site::open(ports.place)?;
            let wanted = site.wanted(&seen, &ports.peer)?;
            say(&describe_plan(&propose(&mut site.tools, &wanted)?))?;
        }
        Link::Apply(ports) => {
            let (mut site, seen) = Site::open(ports.place)?;
            let wanted = site.wanted(&seen, &ports.peer)?;
            let mut journal = site.journal(&seen)?;
            let interfaces = wanted.iter().map(|port| port.interface.as_str());
            let released = site.held()?.release(interfaces, seen.thunderbolt.as_ref())?;
            say(&describe_released(&released))?;
            say(&describe_done("done", &prepare(&mut site.tools, &mut journal, &wanted)?))?;
        }
        Link::Reset(Reset { place, once }) => {
            let (mut site, seen) = Site::open(place)?;
            let mut journal = site.journal(&seen)?;
            if !once {
                // Before anything is taken back: an agent that runs would have it again within seconds.
                let held = site.held()?.hold(journal.interfaces(), seen.thunderbolt.as_ref())?;
                say(&describe_held(&held))?;
            }
            let steps = reset(&mut site.tools, &mut journal)?;
            say(&describe_done("taken back by", &Plan { steps, refused: Vec::new() }))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn say(text: &str) -> anyhow::Result<()> {
    write!(io::stdout().lock(), "{text}").context("cannot write to stdout")
}

struct Site {
    tools: Tools,
    state_dir: PathBuf,
    is_scripted: bool,
    /// Held while this runs: two at once would not know of one another's changes.
    lock: Option<fs::File>,
}

impl Site {
    fn open(place: Place) -> anyhow::Result<(Self, Observation)> {
        if place.scripted_mac.is_none() && env::consts::OS != "macos" {
            bail!("only the ports of a Mac are prepared; this system has tools of its own for its network");
        }
        let state_dir = place.state_dir.or_else(|| Surroundings::here().state_dir());
        let state_dir =
            state_dir.context("there is no home directory to find the state in; give --state-dir")?;
        let tools = match &place.scripted_mac {
            Some(dir) => Tools::in_dirs(vec![dir.clone()]),
            None => Tools::system(),
        };
        let is_scripted = place.scripted_mac.is_some();
        let options =
            probe::Options { state_dir: PathBuf::from("/"), boot_id: None, scripted_mac: place.scripted_mac };
        let mut probe = probe::native(options).context("cannot start the probe")?;
        probe.settle();
        Ok((Self { tools, state_dir, is_scripted, lock: None }, probe.observe()))
    }

    fn wanted(
        &self,
        seen: &Observation,
        peers: &[String],
    ) -> anyhow::Result<Vec<nightshift_agent::link_prep::plan::Wanted>> {
        let thunderbolt =
            seen.thunderbolt.as_ref().context("the Thunderbolt ports of this machine cannot be seen")?;
        let is_ours =
            |uuid: &str| peers.is_empty() || peers.iter().any(|peer| peer.eq_ignore_ascii_case(uuid));
        let wanted = wanted(thunderbolt, is_ours);
        if wanted.is_empty() {
            bail!("no other Mac is on a Thunderbolt cable here; `cluster-agent probe` tells what is seen");
        }
        Ok(wanted)
    }

    fn journal(&mut self, seen: &Observation) -> anyhow::Result<Journal> {
        if seen.preflight.as_ref().is_some_and(|preflight| preflight.exo_daemon == Some(true)) {
            bail!(
                "EXO's daemon is installed here, and would undo what is done: run \
                 `sudo launchctl bootout system/io.exo.networksetup` first"
            );
        }
        if !self.is_scripted && !nix::unistd::geteuid().is_root() {
            bail!("only root may change the network: run it with sudo");
        }
        let dir = &self.state_dir;
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let lock = keeper::lock(dir).map_err(anyhow::Error::msg)?;
        self.lock = Some(lock);
        Ok(Journal::open(&dir.join(keeper::JOURNAL), seen.boot_id.as_deref())?)
    }

    /// Only under the lock, which comes with the journal.
    fn held(&self) -> anyhow::Result<Held> {
        Ok(Held::open(&held::path(&self.state_dir))?)
    }
}

fn describe_plan(plan: &Plan) -> String {
    let mut text = String::new();
    if plan.steps.is_empty() && plan.refused.is_empty() {
        return "Nothing is missing.\n".to_owned();
    }
    lines(&mut text, &plan.steps, "");
    refused(&mut text, plan);
    text
}

fn describe_done(what: &str, plan: &Plan) -> String {
    let mut text = String::new();
    if plan.steps.is_empty() {
        text.push_str("Nothing was to be changed.\n");
    }
    lines(&mut text, &plan.steps, &format!("{what}: "));
    refused(&mut text, plan);
    text
}

fn describe_released(interfaces: &[String]) -> String {
    let line =
        |name: &String| format!("# {name} was left alone since it was reset by hand, and is not any more\n");
    interfaces.iter().map(line).collect()
}

fn describe_held(interfaces: &[String]) -> String {
    let line = |name: &String| {
        format!(
            "# {name} is left alone from now on, also after a restart and whatever the agent's `link_policy`; \
             `sudo cluster-agent link apply` ends that\n"
        )
    };
    interfaces.iter().map(line).collect()
}

fn lines(text: &mut String, steps: &[Step], before: &str) {
    for step in steps {
        // Writing into a string cannot fail.
        let _ = writeln!(text, "{before}{}", step.command_line());
    }
}

fn refused(text: &mut String, plan: &Plan) {
    for why in &plan.refused {
        let _ = writeln!(text, "# {why}");
    }
}
