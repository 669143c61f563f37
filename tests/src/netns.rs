//! A network for the nodes of a test cluster that can be hurt: each node in a network namespace of its own, all of them
//! joined by one bridge in one more.
//!
//! Promises: nothing of the machine's own network is touched, for every interface is made inside a namespace of ours;
//! two networks never meet, so all of them use the same addresses; a [`Net`] takes its namespaces with it when it goes,
//! and what a run that was killed has left is removed by the next one.
//!
//! ```text
//!   namespace n1                 namespace switch                    namespace n2
//!   link0 10.77.0.1/24 ───── n1 ═══════ bridge ═══════ n2 ───── link0 10.77.0.2/24
//!                                black_hole(n2): n2 leaves the bridge; link0 keeps its carrier and nothing arrives
//!                                cut(n2):        n2 goes down; link0 loses its carrier
//! ```
//!
//! It is the network between the ranks. The way from a node to the controller is a [`crate::relay::Relay`].

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{self, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use nix::{sys::signal::Signal, unistd::geteuid};

use crate::{process::send, procfs};

/// How every namespace of ours begins; behind it come the number of the process that made it, that process's start in
/// clock ticks, the number of the network in it, and the place.
const PREFIX: &str = "nightshift-test-";

/// The interface inside each node's namespace.
pub const INTERFACE: &str = "link0";

/// The bridge, in the namespace named after it.
const SWITCH: &str = "switch";

/// Nodes of a network at most: one byte of address for each.
const MOST_NODES: usize = 250;

/// The network of some nodes, named n1, n2, …
#[derive(Debug)]
pub struct Net {
    prefix: String,
    nodes: usize,
}

impl Net {
    /// The addresses of every network: as none is joined to anything else, they may all have the same.
    pub const ADDRESSES: &'static str = "10.77.0.0/24";

    /// The network of so many nodes, with all links up.
    ///
    /// # Panics
    /// When it cannot be made; [`missing`] tells beforehand.
    #[must_use]
    pub fn new(nodes: usize) -> Self {
        Self::try_new(nodes).unwrap_or_else(|problem| panic!("no network for {nodes} nodes: {problem}"))
    }

    fn try_new(nodes: usize) -> Result<Self, String> {
        assert!(nodes <= MOST_NODES, "a network has {MOST_NODES} nodes at most");
        sweep()?;
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // From here on, whatever exists goes with it.
        let net = Self { prefix: format!("{}{number}-", prefix_of_this_process()?), nodes };
        let switch = net.namespace(SWITCH);
        ip(&["netns", "add", &switch])?;
        ip(&["-n", &switch, "link", "add", SWITCH, "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", SWITCH, "up"])?;
        for node in net.names() {
            let inside = net.namespace(&node);
            let address = format!("{}/24", net.address(&node));
            ip(&["netns", "add", &inside])?;
            ip(&["-n", &inside, "link", "set", "lo", "up"])?;
            let pair = ["type", "veth", "peer", "name", INTERFACE, "netns", &inside];
            ip(&[["-n", &switch, "link", "add", &node].as_slice(), &pair].concat())?;
            ip(&["-n", &inside, "address", "add", &address, "dev", INTERFACE])?;
            ip(&["-n", &inside, "link", "set", INTERFACE, "up"])?;
            net.try_heal(&node)?;
        }
        Ok(net)
    }

    /// Takes every packet from and to the node away, and nothing else: its interface keeps carrier and address, and no
    /// connection hears that it is over.
    pub fn black_hole(&self, node: &str) {
        self.port(node, &["nomaster"]);
    }

    /// Pulls the cable: the node's interface loses its carrier.
    pub fn cut(&self, node: &str) {
        self.port(node, &["down"]);
    }

    /// Ends [`Self::black_hole`] and [`Self::cut`].
    ///
    /// # Panics
    /// When the system refuses.
    pub fn heal(&self, node: &str) {
        self.try_heal(node)
            .unwrap_or_else(|problem| panic!("the link of {node} cannot be healed: {problem}"));
    }

    /// A command that runs this program as the node: the very process that is started becomes it, so that its number is
    /// the program's. `/sys` shows the node's interfaces, from which an agent reads the carrier; that is why the
    /// namespace is entered by `ip` and not by a system call in between.
    #[must_use]
    pub fn command(&self, node: &str, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(node)]).arg(program);
        command
    }

    /// The node's address on the network.
    ///
    /// # Panics
    /// When there is no such node.
    #[must_use]
    pub fn address(&self, node: &str) -> Ipv4Addr {
        let number = (1..).zip(self.names()).find(|(_, name)| name == node).map(|(number, _)| number);
        Ipv4Addr::new(10, 77, 0, number.unwrap_or_else(|| panic!("there is no node {node} in this network")))
    }

    /// A socket of this process that listens as the node: a socket stays in the namespace it was made in, whoever uses
    /// it.
    ///
    /// # Panics
    /// When it cannot be had.
    #[must_use]
    pub fn listen(&self, node: &str, address: SocketAddr) -> TcpListener {
        within(&self.namespace(node), move || TcpListener::bind(address))
            .unwrap_or_else(|problem| panic!("{node} cannot listen on {address}: {problem}"))
    }

    /// A connection of this process from the node.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn connect(&self, node: &str, address: SocketAddr) -> TcpStream {
        within(&self.namespace(node), move || TcpStream::connect(address))
            .unwrap_or_else(|problem| panic!("{node} cannot connect to {address}: {problem}"))
    }

    fn names(&self) -> impl Iterator<Item = String> + use<> {
        (1..=self.nodes).map(|number| format!("n{number}"))
    }

    fn namespace(&self, place: &str) -> String {
        format!("{}{place}", self.prefix)
    }

    fn try_heal(&self, node: &str) -> Result<(), String> {
        ip(&["-n", &self.namespace(SWITCH), "link", "set", node, "master", SWITCH, "up"]).map(drop)
    }

    fn port(&self, node: &str, change: &[&str]) {
        let switch = self.namespace(SWITCH);
        ip(&[["-n", &switch, "link", "set", node].as_slice(), change].concat())
            .unwrap_or_else(|problem| panic!("the link of {node} cannot be hurt: {problem}"));
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let Ok(there) = namespaces() else { return };
        for namespace in there.iter().filter(|name| name.starts_with(&self.prefix)) {
            if let Err(problem) = ip(&["netns", "delete", namespace]) {
                eprintln!("a namespace is left over: {problem}");
            }
        }
    }
}

/// Why no such network can be had on this machine.
#[must_use]
pub fn missing() -> Option<String> {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    MISSING
        .get_or_init(|| {
            if !cfg!(target_os = "linux") {
                return Some("network namespaces are Linux's".to_owned());
            }
            if !geteuid().is_root() {
                return Some("only root can make the network namespaces this needs".to_owned());
            }
            Net::try_new(1).err().map(|problem| format!("network namespaces cannot be made here: {problem}"))
        })
        .clone()
}

/// Removes what runs that were killed have left: their namespaces, and the processes that are still in them.
fn sweep() -> Result<(), String> {
    for namespace in namespaces()?.iter().filter(|name| is_leftover(name)) {
        // Another run may be sweeping too: whatever is gone already is no problem.
        for pid in ip(&["netns", "pids", namespace]).unwrap_or_default().lines() {
            if let Ok(pid) = pid.trim().parse() {
                send(pid, Signal::SIGKILL);
            }
        }
        let _ = ip(&["netns", "delete", namespace]);
    }
    Ok(())
}

/// Whether this is a namespace of ours and its maker is gone. The start tells its maker from a later process of the same
/// number.
fn is_leftover(namespace: &str) -> bool {
    let Some(rest) = namespace.strip_prefix(PREFIX) else { return false };
    let mut parts = rest.split('-');
    let (Some(pid), Some(start_ticks)) = (parts.next(), parts.next()) else { return false };
    let (Ok(pid), Ok(start_ticks)) = (pid.parse(), start_ticks.parse::<u64>()) else { return false };
    procfs::seen(pid).is_none_or(|maker| maker.start_ticks != start_ticks)
}

fn prefix_of_this_process() -> Result<String, String> {
    let pid = process::id();
    let me = procfs::seen(pid).ok_or("this system has no /proc")?;
    Ok(format!("{PREFIX}{pid}-{}-", me.start_ticks))
}

/// The names of all there are. Behind each may be an identifier in brackets.
fn namespaces() -> Result<Vec<String>, String> {
    let list = ip(&["netns", "list"])?;
    Ok(list.lines().filter_map(|line| Some(line.split_ascii_whitespace().next()?.to_owned())).collect())
}

/// Runs `ip` and gives what it printed.
fn ip(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("`ip` (of iproute2) cannot be started: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(format!("`ip {}` ended with {}: {said}", arguments.join(" "), output.status))
}

/// Does something in a namespace, in a thread that ends with it: a namespace is a thread's.
#[cfg(target_os = "linux")]
fn within<T: Send + 'static>(
    namespace: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, String> {
    use std::{fs::File, thread};

    use nix::sched::{CloneFlags, setns};

    // Where `ip netns` keeps them (man 8 ip-netns).
    let path = Path::new("/var/run/netns").join(namespace);
    let inside = move || {
        let file = File::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        setns(file, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| format!("{} cannot be entered: {errno}", path.display()))?;
        work().map_err(|error| error.to_string())
    };
    thread::spawn(inside)
        .join()
        .unwrap_or_else(|_| Err("the thread in the namespace has panicked".to_owned()))
}

#[cfg(not(target_os = "linux"))]
fn within<T>(_: &str, _: impl FnOnce() -> io::Result<T>) -> Result<T, String> {
    Err("network namespaces are Linux's".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_dead_process_has_left_is_a_leftover() {
        // No process has this number, and the other is this one's with another start.
        for gone in [format!("{PREFIX}{}-1-0-n1", u32::MAX), format!("{PREFIX}{}-1-0-n1", process::id())] {
            assert!(is_leftover(&gone), "{gone}");
        }
        for other in ["nightshift-other", "nightshift-test-", "nightshift-test-x-1-0-n1", "n1"] {
            assert!(!is_leftover(other), "{other}");
        }
        if let Ok(prefix) = prefix_of_this_process() {
            assert!(!is_leftover(&format!("{prefix}0-n1")));
        }
    }
}
