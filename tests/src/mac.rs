//! A Mac that is a directory: its tools are scripts that print what the tools of a real one would, in the shapes that
//! FIELD-NOTES 5 describes, and a test changes it as a person, a cable or an update would.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

/// What a cable leads to.
#[derive(Clone, Debug)]
pub struct Plugged {
    /// The bus of the Mac at the other end.
    pub domain_uuid: String,
    /// Whether that Mac offers RDMA.
    pub rdma: bool,
    /// What was negotiated.
    pub gigabits_per_s: u32,
}

/// A Thunderbolt port.
#[derive(Clone, Debug)]
pub struct Port {
    /// Its interface.
    pub interface: String,
    /// Of its bus.
    pub domain_uuid: String,
    /// What is plugged in.
    pub plugged: Option<Plugged>,
    /// The bridge has it.
    pub bridged: bool,
    /// `address/prefix` of its interface.
    pub address: Option<String>,
}

/// A Mac as it is now. [`Mac::apply`] makes it so.
#[derive(Clone, Debug)]
pub struct Mac {
    dir: PathBuf,
    /// `kern.bootsessionuuid`.
    pub boot: String,
    /// `kern.osversion`.
    pub os_build: String,
    /// `hw.model`.
    pub model: String,
    /// Whether a person has turned RDMA on, in Recovery.
    pub rdma: bool,
    /// Whether its ports can do it at all.
    pub thunderbolt_5: bool,
    /// `ibv_devinfo` does not answer.
    pub devinfo_hangs: bool,
    /// Restarts of the GPU since boot.
    pub gpu_restarts: u64,
    /// Minutes until it sleeps.
    pub sleep_min: u32,
    /// Whether FileVault is on.
    pub file_vault: bool,
    /// What is wired.
    pub wired_bytes: u64,
    /// `address/prefix` of its network for everything.
    pub network: Option<String>,
    /// By receptacle, from 1 on.
    pub ports: Vec<Port>,
}

impl Mac {
    /// One with two ports, nothing plugged in, RDMA on, set up for the night. Its buses are called after it.
    #[must_use]
    pub fn new(dir: PathBuf, name: &str) -> Self {
        let port = |number: usize, interface: &str| Port {
            interface: interface.to_owned(),
            domain_uuid: format!("{}-BUS-{number}", name.to_uppercase()),
            plugged: None,
            bridged: false,
            address: None,
        };
        Self {
            dir,
            boot: format!("{}-BOOT-1", name.to_uppercase()),
            os_build: "25D125".to_owned(),
            model: "Mac16,9".to_owned(),
            rdma: true,
            thunderbolt_5: true,
            devinfo_hangs: false,
            gpu_restarts: 0,
            sleep_min: 0,
            file_vault: false,
            wired_bytes: 5_000_000_000,
            network: None,
            // Not in the order of the receptacles, as on real ones.
            ports: vec![port(1, "en3"), port(2, "en1")],
        }
    }

    /// Where it is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the directory say so.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn apply(&self) {
        self.put("system.json", &self.system().to_string());
        self.say("system_profiler", &self.profiler().to_string());
        self.say("networksetup", &self.hardware_ports());
        self.put("ifconfig.out", &self.interfaces());
        // What is to change something is written down, and for the test to do or not.
        self.script(
            "ifconfig",
            "if [ \"$1\" = -a ]; then exec cat \"$0.out\"; fi\necho \"ifconfig $*\" >> \"${0%/*}/changes\"",
        );
        self.say("rdma_ctl", if self.rdma { "enabled\n" } else { "disabled\n" });
        self.say("ibv_devices", &self.devices());
        if self.devinfo_hangs {
            self.script("ibv_devinfo", "exec sleep 3600");
        } else {
            self.say("ibv_devinfo", &self.device_infos());
        }
        // An address is reached over the interface that has one of its network, of four.
        self.script(
            "route",
            "[ \"$2\" = get ] && awk -v peer=\"$3\" 'BEGIN { split(peer, p, \".\") }\n\
             /^[a-z]/ { sub(\":.*\", \"\", $1); name = $1 }\n\
             $1 == \"inet\" { split($2, a, \".\"); if (a[1] == p[1] && a[2] == p[2] && a[3] == p[3] && int(a[4] / 4) == int(p[4] / 4)) {\n\
             print \"  interface: \" name; found = 1; exit } }\n\
             END { exit !found }' \"${0%/*}/ifconfig.out\" && exit 0\n\
             echo 'route: writing to routing socket: not in table' >&2; exit 1",
        );
        self.say("ioclasscount", "AppleThunderboltRDMAProtectionDomain = 0\n");
        let settings = format!(
            "Currently in use:\n autorestart          1\n sleep                {}\n lowpowermode         0\n",
            self.sleep_min
        );
        self.put("pmset.out", &settings);
        self.script("pmset", "if [ \"$2\" = sched ]; then exit 0; fi\ncat \"${0%/*}/pmset.out\"");
        fs::create_dir_all(self.dir.join("DiagnosticReports")).expect("the Mac's directory can be written");
        // What is logged is added to the file; it ends with whoever listens.
        self.append("log.ndjson", "");
        self.script("log", "exec tail --pid=$PPID -n +1 -F \"${0%/*}/log.ndjson\" 2>/dev/null");
        self.script("launchctl", "echo 'Could not find service' >&2; exit 113");
        self.say("fdesetup", if self.file_vault { "FileVault is On.\n" } else { "FileVault is Off.\n" });
        // Written down; a test that wants the machine to be restarted does what follows.
        self.script("shutdown", "echo \"shutdown $*\" >> \"${0%/*}/restarts\"");
        self.say(
            "defaults",
            "{\n    AutomaticallyInstallMacOSUpdates = 0;\n    CriticalUpdateInstall = 0;\n}\n",
        );
    }

    /// Says this in the system's log.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn log(&self, process: &str, pid: u32, message: &str) {
        let line = json!({
            "processImagePath": format!("/opt/{process}"), "processID": pid, "eventMessage": message,
        });
        self.append("log.ndjson", &format!("{line}\n"));
    }

    /// Forgets what was logged, as a restart does.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn forget_log(&self) {
        self.put("log.ndjson", "");
    }

    /// Writes a report on a restart of the GPU, as the system does some time after it.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn report_gpu(&self, id: &str, process: &str, reason: &str) {
        let head = json!({ "bug_type": "284", "incident_id": id });
        let body = json!({ "process_name": process, "analysis": { "restart_reason_desc": reason } });
        self.put(&format!("DiagnosticReports/gpuEvent-{process}-{id}.ips"), &format!("{head}\n{body}\n"));
    }

    /// How it was told to restart, a line each time.
    #[must_use]
    pub fn restarts(&self) -> String {
        fs::read_to_string(self.dir.join("restarts")).unwrap_or_default()
    }

    /// What was run that is to change its network.
    #[must_use]
    pub fn changes(&self) -> String {
        fs::read_to_string(self.dir.join("changes")).unwrap_or_default()
    }

    fn append(&self, name: &str, text: &str) {
        let file = fs::OpenOptions::new().create(true).append(true).open(self.dir.join(name));
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .expect("the Mac's directory can be written");
    }

    fn put(&self, name: &str, text: &str) {
        // At once: a tool may be reading it.
        let new = self.dir.join(format!("{name}.new"));
        fs::write(&new, text).expect("a file of a scripted Mac can be written");
        fs::rename(new, self.dir.join(name)).expect("a file of a scripted Mac can be put in its place");
    }

    fn script(&self, tool: &str, script: &str) {
        let new = self.dir.join(format!("{tool}.new"));
        fs::write(&new, format!("#!/bin/sh\n{script}\n")).expect("a tool of a scripted Mac can be written");
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("it can be made executable");
        fs::rename(new, self.dir.join(tool)).expect("a tool of a scripted Mac can be put in its place");
    }

    fn say(&self, tool: &str, text: &str) {
        self.put(&format!("{tool}.out"), text);
        self.script(tool, &format!("exec cat \"${{0%/*}}/{tool}.out\""));
    }

    fn system(&self) -> Value {
        json!({
            "identity": {
                "boot_session_uuid": self.boot, "os_build": self.os_build, "hardware_model": self.model,
            },
            "memory": {
                "total_bytes": 137_438_953_472_u64, "available_bytes": 120_000_000_000_u64,
                "wired_bytes": self.wired_bytes, "swap_total_bytes": 0, "swap_used_bytes": 0, "pressure_level": 1,
                "wired_limit_mib": 0, "recommended_working_set_bytes": 103_079_215_104_u64,
            },
            "gpu": { "model": "Apple M4 Max", "cores": 40, "recovery_count": self.gpu_restarts },
        })
    }

    fn profiler(&self) -> Value {
        let top = if self.thunderbolt_5 { "Up to 120 Gb/s" } else { "Up to 40 Gb/s" };
        let bus = |(index, port): (usize, &Port)| {
            let mut services = vec![json!({ "_name": "service_ip", "protocol_id_key": 1 })];
            let items = port.plugged.iter().map(|plugged| {
                if plugged.rdma {
                    services.push(json!({ "_name": "unknown_xd_service", "protocol_id_key": 64_087 }));
                }
                json!({
                    "_name": "Mac", "device_name_key": "Mac16,9", "domain_uuid_key": plugged.domain_uuid,
                    "services_title": services.clone(),
                })
            });
            let items: Vec<Value> = items.collect();
            let (speed, status) = match &port.plugged {
                Some(plugged) => (format!("{} Gb/s", plugged.gigabits_per_s), "receptacle_connected"),
                None => (top.to_owned(), "receptacle_no_devices_connected"),
            };
            json!({
                "_name": format!("thunderboltusb4_bus_{index}"), "domain_uuid_key": port.domain_uuid, "_items": items,
                "receptacle_1_tag": {
                    "current_speed_key": speed, "receptacle_id_key": (index + 1).to_string(),
                    "receptacle_status_key": status,
                },
            })
        };
        json!({ "SPThunderboltDataType": self.ports.iter().enumerate().map(bus).collect::<Vec<_>>() })
    }

    fn hardware_ports(&self) -> String {
        let mut text =
            "\nHardware Port: Thunderbolt Bridge\nDevice: bridge0\n\nHardware Port: Wi-Fi\nDevice: en0\n"
                .to_owned();
        for (index, port) in self.ports.iter().enumerate() {
            // Writing into a string cannot fail.
            let _ = writeln!(text, "\nHardware Port: Thunderbolt {}\nDevice: {}", index + 1, port.interface);
        }
        text
    }

    fn interfaces(&self) -> String {
        let mut text = String::new();
        let network = self.network.iter().map(|address| ("en0", true, Some(address.as_str())));
        let ports = self.ports.iter().map(|port| {
            let address = port.address.as_deref().filter(|_| !port.bridged);
            (port.interface.as_str(), port.plugged.is_some(), address)
        });
        for (interface, is_active, address) in network.chain(ports) {
            let status = if is_active { "active" } else { "inactive" };
            let _ = writeln!(text, "{interface}: flags=8863<UP,BROADCAST,RUNNING> mtu 1500");
            if let Some(address) = address {
                let (address, bits) = address.split_once('/').expect("an address has a prefix");
                let bits: u32 = bits.parse().expect("a prefix is a number");
                let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
                let _ = writeln!(text, "\tinet {address} netmask {mask:#010x}");
            }
            let _ = writeln!(text, "\tstatus: {status}");
        }
        let _ = writeln!(text, "bridge0: flags=8863<UP,BROADCAST,RUNNING> mtu 1500");
        for port in self.ports.iter().filter(|port| port.bridged) {
            let _ = writeln!(text, "\tmember: {} flags=3<LEARNING,DISCOVER>", port.interface);
        }
        let carries = self.ports.iter().any(|port| port.bridged && port.plugged.is_some());
        text + if carries { "\tstatus: active\n" } else { "\tstatus: inactive\n" }
    }

    /// Without RDMA, and on a Mac that cannot do it, there are none.
    fn devices(&self) -> String {
        let mut text =
            "    device          \t   node GUID\n    ------          \t----------------\n".to_owned();
        for port in self.ports.iter().filter(|_| self.rdma && self.thunderbolt_5) {
            let _ = writeln!(text, "    rdma_{}        \t0000000000000001", port.interface);
        }
        text
    }

    fn device_infos(&self) -> String {
        let mut text = String::new();
        for port in &self.ports {
            let is_active = port.plugged.as_ref().is_some_and(|plugged| plugged.rdma) && !port.bridged;
            let state = if is_active { "PORT_ACTIVE (4)" } else { "PORT_DOWN (1)" };
            let _ = writeln!(
                text,
                "hca_id:\trdma_{}\n\tmax_pd:\t\t11\n\t\tport:\t1\n\t\t\tstate:\t\t{state}\n",
                port.interface
            );
        }
        text
    }
}

/// Plugs a cable into the first port of each, with addresses of a network of their own.
pub fn plug(a: &mut Mac, b: &mut Mac) {
    let end = |other: &Mac| Plugged {
        domain_uuid: other.ports[0].domain_uuid.clone(),
        rdma: other.rdma && other.thunderbolt_5,
        gigabits_per_s: if other.thunderbolt_5 { 80 } else { 40 },
    };
    let (at_a, at_b) = (end(b), end(a));
    for (mac, plugged, address) in [(a, at_a, "10.99.0.1/30"), (b, at_b, "10.99.0.2/30")] {
        mac.ports[0].plugged = Some(plugged);
        mac.ports[0].address = Some(address.to_owned());
    }
}
