//! Carries plans out: looks, plans, changes, and looks again.
//!
//! Each change is on disk before it is made, so that whatever ends the agent, what it changed can be taken back; and each is in the
//! log with its command. What cannot be seen is never planned over.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    address::{PREFIX_BITS, addresses},
    plan::{Interface, Network, Plan, Step, Wanted, plan, take_back},
};
use crate::{
    durable,
    probe::{
        mac::tools::{self, Tools},
        observation::Thunderbolt,
        parse::mac::{ifconfig, ports, route},
    },
};

/// Looks and plans at most: one adds addresses, the next routes, the third finds nothing to do.
const MOST_ROUNDS: usize = 3;

/// These tools answer within some milliseconds.
const TOOL_LIMIT: Duration = Duration::from_secs(5);

/// Why ports could not be prepared, or not be left.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What there is cannot be seen.
    #[error("nothing is changed, because it cannot be seen what there is: {0}")]
    Unseen(#[source] tools::Error),
    /// A tool answers, and what it says makes no sense.
    #[error("nothing is changed, because what {tool} says cannot be read")]
    Unread {
        /// Which.
        tool: &'static str,
    },
    /// A command failed.
    #[error("`{command}` failed; what was done before is kept, and `cluster-agent link reset` takes it back")]
    Step {
        /// As a person would type it.
        command: String,
        /// Why.
        #[source]
        source: tools::Error,
    },
    /// It was done, and is not so.
    #[error("the system does not do what it was told; still to do: {}", .left.join("; "))]
    Stubborn {
        /// Command lines.
        left: Vec<String>,
    },
    /// The record of what was changed, or is to be left alone, cannot be kept or read.
    #[error("nothing is changed, because {} cannot be {verb}", .path.display())]
    Journal {
        /// The file.
        path: PathBuf,
        /// `read` or `written`.
        verb: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The ports of this Mac that a cable joins to another Mac which `is_ours` says is one of this cluster, by the domain UUID of its
/// bus.
#[must_use]
pub fn wanted(thunderbolt: &Thunderbolt, is_ours: impl Fn(&str) -> bool) -> Vec<Wanted> {
    let ports = thunderbolt.ports.iter().filter_map(|port| {
        let [peer] = port.peers.as_slice() else { return None };
        if peer.behind_device || !is_ours(&peer.domain_uuid) {
            return None;
        }
        let (address, peer) = addresses(port.domain_uuid.as_ref()?, &peer.domain_uuid)?;
        Some(Wanted { interface: port.interface.clone()?, address, peer, prefix_bits: PREFIX_BITS })
    });
    ports.collect()
}

/// What was changed in this boot, oldest first, and is not taken back.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    record: Record,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    boot_id: Option<String>,
    done: Vec<Step>,
}

impl Journal {
    /// Reads the file, if there is one. What was changed in another boot went with it.
    ///
    /// # Errors
    /// When there is one that cannot be read: what it holds could never be taken back.
    pub fn open(path: &Path, boot_id: Option<&str>) -> Result<Self, Error> {
        let found = match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Record::default()),
            Err(error) => Err(error),
        };
        let found: Record =
            found.map_err(|source| Error::Journal { path: path.to_owned(), verb: "read", source })?;
        let boot_id = boot_id.map(ToOwned::to_owned);
        let record = if found.boot_id == boot_id { found } else { Record { boot_id, done: Vec::new() } };
        Ok(Self { path: path.to_owned(), record })
    }

    /// What was changed.
    #[must_use]
    pub fn done(&self) -> &[Step] {
        &self.record.done
    }

    /// The interfaces that were changed.
    #[must_use]
    pub fn interfaces(&self) -> BTreeSet<&str> {
        self.record.done.iter().map(Step::interface).collect()
    }

    fn keep(&mut self, record: Record) -> Result<(), Error> {
        let text = serde_json::to_vec(&record).map_err(io::Error::other);
        text.and_then(|text| durable::replace_file(&self.path, &text)).map_err(|source| Error::Journal {
            path: self.path.clone(),
            verb: "written",
            source,
        })?;
        self.record = record;
        Ok(())
    }

    fn note(&mut self, step: &Step) -> Result<(), Error> {
        if self.record.done.contains(step) {
            return Ok(());
        }
        let mut record = self.record.clone();
        record.done.push(step.clone());
        self.keep(record)
    }

    fn forget(&mut self) -> Result<(), Error> {
        self.keep(Record { boot_id: self.record.boot_id.clone(), done: Vec::new() })
    }
}

/// What is there now, with the ways to these addresses.
///
/// # Errors
/// When a tool does not say.
pub fn look(tools: &mut Tools, peers: impl IntoIterator<Item = Ipv4Addr>) -> Result<Network, Error> {
    let said = tools.ask("ifconfig", &["-a"], TOOL_LIMIT).map_err(Error::Unseen)?;
    let found = ifconfig::interfaces(&said);
    if found.is_empty() {
        return Err(Error::Unread { tool: "ifconfig" });
    }
    let said = tools.ask("networksetup", &["-listallhardwareports"], TOOL_LIMIT).map_err(Error::Unseen)?;
    let hardware = ports::hardware_ports(&said);
    if hardware.is_empty() {
        return Err(Error::Unread { tool: "networksetup" });
    }
    let mut seen = Network {
        thunderbolt_bridge: hardware.into_iter().find(ports::HardwarePort::is_bridge).map(|port| port.device),
        ..Network::default()
    };
    for interface in found {
        // One whose flags cannot be read is not brought up.
        let up = interface.up.ok_or(Error::Unread { tool: "ifconfig" })?;
        let addresses = interface.ipv4.iter().map(|ip| (ip.address, ip.prefix_bits)).collect();
        if !interface.members.is_empty() {
            seen.bridges
                .insert(interface.name.clone(), interface.members.into_iter().collect::<BTreeSet<_>>());
        }
        seen.interfaces.insert(interface.name, Interface { up, addresses });
    }
    let mut routes = BTreeMap::new();
    for peer in peers {
        match tools.ask("route", &["-n", "get", &peer.to_string()], TOOL_LIMIT) {
            Ok(said) => {
                let over = route::interface(&said).ok_or(Error::Unread { tool: "route" })?;
                routes.insert(peer, over.to_owned());
            }
            // So it says that there is none.
            Err(tools::Error::Failed { .. }) => {}
            Err(error) => return Err(Error::Unseen(error)),
        }
    }
    seen.routes = routes;
    Ok(seen)
}

/// What would be changed now.
///
/// # Errors
/// When it cannot be seen what there is.
pub fn propose(tools: &mut Tools, wanted: &[Wanted]) -> Result<Plan, Error> {
    let seen = look(tools, wanted.iter().map(|port| port.peer))?;
    Ok(plan(wanted, &seen))
}

/// Changes what is missing, and sees to it that it is there then.
///
/// # Errors
/// See [`Error`]. What was done before stays in the journal.
pub fn prepare(tools: &mut Tools, journal: &mut Journal, wanted: &[Wanted]) -> Result<Plan, Error> {
    let mut done = Plan::default();
    for _ in 0..MOST_ROUNDS {
        let Plan { steps, refused } = propose(tools, wanted)?;
        done.refused = refused;
        if steps.is_empty() {
            return Ok(done);
        }
        for step in steps {
            journal.note(&step)?;
            carry_out(tools, &step)?;
            done.steps.push(step);
        }
    }
    let left = propose(tools, wanted)?;
    if left.steps.is_empty() {
        return Ok(Plan { steps: done.steps, refused: left.refused });
    }
    Err(Error::Stubborn { left: left.steps.iter().map(Step::command_line).collect() })
}

/// Takes back what was changed in this boot.
///
/// # Errors
/// See [`Error`]. What was not taken back stays in the journal.
pub fn reset(tools: &mut Tools, journal: &mut Journal) -> Result<Vec<Step>, Error> {
    let steps = back(tools, journal)?;
    for step in &steps {
        carry_out(tools, step)?;
    }
    let left = back(tools, journal)?;
    if !left.is_empty() {
        return Err(Error::Stubborn { left: left.iter().map(Step::command_line).collect() });
    }
    if !journal.done().is_empty() {
        journal.forget()?;
    }
    Ok(steps)
}

fn back(tools: &mut Tools, journal: &Journal) -> Result<Vec<Step>, Error> {
    let peers = journal.done().iter().filter_map(|step| match step {
        Step::AddRoute { peer, .. } => Some(*peer),
        _ => None,
    });
    let seen = look(tools, peers.collect::<Vec<_>>())?;
    Ok(take_back(journal.done(), &seen))
}

fn carry_out(tools: &mut Tools, step: &Step) -> Result<(), Error> {
    let command = step.command_line();
    let (tool, arguments) = step.command();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = tools.ask(tool, &arguments, TOOL_LIMIT);
    match &outcome {
        Ok(_) => tracing::info!(command, "changed the network of this machine"),
        Err(error) => tracing::warn!(command, %error, "a change of the network of this machine failed"),
    }
    outcome.map(drop).map_err(|source| Error::Step { command, source })
}
