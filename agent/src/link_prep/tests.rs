//! Link preparation against tools that keep state, as the kernel does.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use tempfile::TempDir;

use super::{
    plan::{Step, Wanted},
    run::{Error, Journal, look, prepare, propose, reset, wanted},
};
use crate::probe::{
    mac::tools::Tools,
    observation::{Peer, Thunderbolt, ThunderboltPort},
};

/// Directories `if/NAME` with `up`, `addresses` (`10.0.0.1 30`) and `members`; `routes/ADDRESS` with an interface.
const IFCONFIG: &str = r#"#!/bin/sh
d=${0%/*}
mask() { case $1 in 30) echo 0xfffffffc;; 24) echo 0xffffff00;; *) echo 0xffff0000;; esac; }
if [ "$1" = -a ]; then
  for i in "$d"/if/*; do
    flags='8822<BROADCAST>'; [ -e "$i/up" ] && flags='8863<UP,BROADCAST>'
    echo "${i##*/}: flags=$flags mtu 1500"
    while read -r address bits; do printf '\tinet %s netmask %s\n' "$address" "$(mask "$bits")"; done < "$i/addresses"
    while read -r member; do printf '\tmember: %s flags=3<LEARNING>\n' "$member"; done < "$i/members"
    printf '\tstatus: active\n'
  done
  exit 0
fi
echo "ifconfig $*" >> "$d/calls"
if [ -e "$d/refuses" ]; then echo 'ifconfig: permission denied' >&2; exit 1; fi
if [ -e "$d/ignores" ]; then exit 0; fi
i=$d/if/$1
[ -d "$i" ] || { echo "ifconfig: interface $1 does not exist" >&2; exit 1; }
drop() { grep -v "^$2" "$1" > "$1.new"; mv "$1.new" "$1"; }
case "$2 $4" in
  'up ') touch "$i/up";;
  'down ') rm -f "$i/up";;
  'deletem ') drop "$i/members" "$3\$";;
  'addm ') echo "$3" >> "$i/members";;
  'inet alias') echo "${3%/*} ${3#*/}" >> "$i/addresses";;
  'inet -alias') drop "$i/addresses" "$3 ";;
  *) echo "ifconfig: $*" >&2; exit 1;;
esac
"#;

const ROUTE: &str = r#"#!/bin/sh
d=${0%/*}
case $2 in
  get)
    if [ -e "$d/routes/$3" ]; then over=$(cat "$d/routes/$3")
    else
      for i in "$d"/if/*; do
        while read -r address bits; do
          [ "${address%.*}" = "${3%.*}" ] && [ $((${address##*.} & 252)) = $((${3##*.} & 252)) ] && over=${i##*/}
        done < "$i/addresses"
      done
    fi
    [ -n "$over" ] || { echo 'route: writing to routing socket: not in table' >&2; exit 1; }
    printf '   route to: %s\n  interface: %s\n' "$3" "$over";;
  add) echo "route $*" >> "$d/calls"; echo "$6" > "$d/routes/$4";;
  delete) echo "route $*" >> "$d/calls"; rm "$d/routes/$4";;
esac
"#;

const NETWORKSETUP: &str = "#!/bin/sh\nprintf 'Hardware Port: Thunderbolt Bridge\\nDevice: bridge0\\n\\nHardware Port: Thunderbolt 1\\nDevice: en3\\n\\nHardware Port: Thunderbolt 2\\nDevice: en6\\n'\n";

pub(super) struct Machine {
    dir: TempDir,
    pub(super) tools: Tools,
}

impl Machine {
    /// After a reboot: the bridge has both ports, one of them is down.
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        for (name, text) in [("ifconfig", IFCONFIG), ("route", ROUTE), ("networksetup", NETWORKSETUP)] {
            fs::write(at.join(name), text).unwrap();
            fs::set_permissions(at.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::create_dir(at.join("routes")).unwrap();
        let interface = |name: &str, up: bool, addresses: &str, members: &str| {
            let of = at.join("if").join(name);
            fs::create_dir_all(&of).unwrap();
            fs::write(of.join("addresses"), addresses).unwrap();
            fs::write(of.join("members"), members).unwrap();
            if up {
                fs::write(of.join("up"), "").unwrap();
            }
        };
        interface("bridge0", true, "", "en3\nen6\n");
        interface("en0", true, "192.168.1.7 24\n", "");
        interface("en3", true, "", "");
        interface("en6", false, "", "");
        let tools = Tools::in_dirs(vec![at.to_owned()]);
        Self { dir, tools }
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    fn journal(&self) -> Journal {
        Journal::open(&self.path().join("journal.json"), Some("boot-1")).unwrap()
    }

    /// Commands that were to change something.
    pub(super) fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.path().join("calls")).unwrap_or_default();
        calls.lines().map(ToOwned::to_owned).collect()
    }

    /// Everything the kernel holds.
    fn kernel(&mut self) -> super::plan::Network {
        look(&mut self.tools, [PEER.parse().unwrap()]).unwrap()
    }

    fn prepare(&mut self) -> Result<super::plan::Plan, Error> {
        let mut journal = self.journal();
        prepare(&mut self.tools, &mut journal, &port())
    }

    fn reset(&mut self) -> Result<Vec<Step>, Error> {
        let mut journal = self.journal();
        reset(&mut self.tools, &mut journal)
    }
}

const PEER: &str = "10.207.4.2";

pub(super) fn port() -> Vec<Wanted> {
    vec![Wanted {
        interface: "en6".to_owned(),
        address: "10.207.4.1".parse().unwrap(),
        peer: PEER.parse().unwrap(),
        prefix_bits: 30,
    }]
}

#[test]
fn a_port_is_prepared_once_and_taken_back_to_what_was() {
    let mut machine = Machine::new();
    let before = machine.kernel();
    let proposed = propose(&mut machine.tools, &port()).unwrap();
    assert_eq!((proposed.steps.len(), machine.calls().len()), (3, 0), "to propose changes nothing");
    let done = machine.prepare().unwrap();
    assert_eq!(done.steps, proposed.steps);
    let calls = ["ifconfig bridge0 deletem en6", "ifconfig en6 up", "ifconfig en6 inet 10.207.4.1/30 alias"];
    assert_eq!(machine.calls(), calls);
    assert_eq!(machine.kernel().routes[&PEER.parse().unwrap()], "en6");

    assert_eq!(machine.prepare().unwrap().steps, [], "again is nothing to do");
    assert_eq!(machine.calls().len(), 3);

    let back = machine.reset().unwrap();
    assert_eq!(back.len(), 3);
    assert_eq!(machine.kernel(), before);
    assert_eq!(machine.reset().unwrap(), [], "once is enough");
}

#[test]
fn what_is_foreign_is_reported_and_never_touched() {
    let mut machine = Machine::new();
    fs::create_dir(machine.path().join("if/bridge100")).unwrap();
    fs::write(machine.path().join("if/bridge100/addresses"), "").unwrap();
    fs::write(machine.path().join("if/bridge100/members"), "en6\n").unwrap();
    let outcome = machine.prepare().unwrap();
    assert_eq!(
        outcome.refused,
        ["en6 is left as it is: bridge100 has it, which is no bridge of macOS: somebody made that"]
    );
    assert_eq!(machine.calls(), [""; 0]);
}

#[test]
fn a_command_that_fails_ends_it_and_what_was_done_can_be_taken_back() {
    let mut machine = Machine::new();
    fs::write(machine.path().join("refuses"), "").unwrap();
    let error = machine.prepare().unwrap_err();
    let told = crate::util::chain(&error);
    assert!(told.contains("`sudo ifconfig bridge0 deletem en6` failed"), "{told}");
    assert!(told.contains("permission denied"), "{told}");
    assert_eq!(machine.calls().len(), 1, "nothing was tried after it");
    fs::remove_file(machine.path().join("refuses")).unwrap();
    assert_eq!(machine.reset().unwrap(), [], "it was noted, and never done");
    assert_eq!(machine.prepare().unwrap().steps.len(), 3);
}

#[test]
fn a_system_that_does_not_do_what_it_is_told_is_not_asked_for_ever() {
    let mut machine = Machine::new();
    fs::write(machine.path().join("ignores"), "").unwrap();
    let error = machine.prepare().unwrap_err();
    assert!(matches!(&error, Error::Stubborn { left } if left.len() == 3), "{error}");
    assert_eq!(machine.calls().len(), 3 * 3);
}

#[test]
fn what_cannot_be_seen_is_not_planned_over() {
    for (tool, script) in [
        ("ifconfig", "exit 1"),
        ("ifconfig", "exit 0"),
        ("ifconfig", "printf 'en6: flags=?\\n'"),
        ("networksetup", "exit 3"),
        ("networksetup", "exit 0"),
        ("route", "echo hm"),
    ] {
        let mut machine = Machine::new();
        fs::write(machine.path().join(tool), format!("#!/bin/sh\n{script}\n")).unwrap();
        let error = machine.prepare().unwrap_err();
        assert!(error.to_string().starts_with("nothing is changed, because"), "{tool} {script}: {error}");
        assert_eq!(machine.calls(), [""; 0]);
    }
}

/// Killed between the note and the command, or after the command: either way the next one takes back what is there.
#[test]
fn whatever_ends_it_the_next_one_takes_it_back() {
    let mut machine = Machine::new();
    let before = machine.kernel();
    machine.prepare().unwrap();
    // Another process, which knows what is on disk only.
    let mut other = Journal::open(&machine.path().join("journal.json"), Some("boot-1")).unwrap();
    assert_eq!(other.done().len(), 3);
    reset(&mut machine.tools, &mut other).unwrap();
    assert_eq!(machine.kernel(), before);
    assert_eq!(machine.journal().done(), []);
}

#[test]
fn what_another_boot_changed_went_with_it_and_a_torn_journal_is_told() {
    let mut machine = Machine::new();
    machine.prepare().unwrap();
    let path = machine.path().join("journal.json");
    let other_boot = Journal::open(&path, Some("boot-2")).unwrap();
    assert_eq!(other_boot.done(), []);
    fs::write(&path, "{").unwrap();
    let error = Journal::open(&path, Some("boot-1")).unwrap_err();
    assert!(error.to_string().contains("journal.json cannot be read"), "{error}");
}

#[test]
fn a_journal_that_cannot_be_written_keeps_everything_as_it_is() {
    let mut machine = Machine::new();
    let nowhere = machine.path().join("no/such/dir/journal.json");
    let mut journal = Journal::open(&nowhere, Some("boot-1")).unwrap();
    let error = prepare(&mut machine.tools, &mut journal, &port()).unwrap_err();
    assert!(error.to_string().contains("cannot be written"), "{error}");
    assert_eq!(machine.calls(), [""; 0]);
}

#[test]
fn only_ports_of_known_macs_on_a_cable_of_their_own_are_wanted() {
    let peer =
        |uuid: &str, behind_device| Peer { domain_uuid: uuid.to_owned(), behind_device, ..Peer::default() };
    let port = |receptacle, peers: Vec<Peer>| ThunderboltPort {
        receptacle,
        interface: Some(format!("en{receptacle}")),
        domain_uuid: Some(format!("A{receptacle}")),
        peers,
        ..ThunderboltPort::default()
    };
    let thunderbolt = Thunderbolt {
        ports: vec![
            port(1, vec![peer("B1", false)]),
            port(2, vec![peer("STRANGER", false)]),
            port(3, vec![peer("B3", true)]),
            port(4, vec![peer("B4", false), peer("B5", false)]),
            port(5, Vec::new()),
            ThunderboltPort { interface: None, ..port(6, vec![peer("B6", false)]) },
        ],
        ..Thunderbolt::default()
    };
    let found = wanted(&thunderbolt, |uuid| uuid.starts_with('B'));
    let names: Vec<_> = found.iter().map(|port| port.interface.as_str()).collect();
    assert_eq!(names, ["en1"]);
    assert_ne!(found[0].address, found[0].peer);
}

/// The limit of a tool is what keeps a hanging one from hanging us.
#[test]
fn a_tool_that_hangs_is_told() {
    let machine = Machine::new();
    fs::write(machine.path().join("networksetup"), "#!/bin/sh\nexec sleep 1000\n").unwrap();
    let mut tools = Tools::in_dirs(vec![machine.path().to_owned()]);
    let hung = tools.ask("networksetup", &[], Duration::from_millis(200)).unwrap_err();
    assert!(Error::Unseen(hung).to_string().contains("cannot be seen"));
}
