//! The thread that asks a Mac's tools. Some take a second, and some hang; neither may keep anybody from seeing a lost carrier.
//!
//! It asks when it is told that something has changed, soon again after an answer that differs from the one before (a port
//! takes a while to come up), and regularly.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    survey::{self, Said},
    tools::{Error, Tools},
};
use crate::probe::{
    observation::{FileVault, Preflight, Thunderbolt, ToolProblem},
    parse::mac::{ifconfig, launchctl, ports, power, rdma, settings, thunderbolt},
};

/// From one survey to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pauses {
    /// When nothing changes.
    pub usual: Duration,
    /// After an answer that differs from the one before.
    pub while_changing: Duration,
    /// Whatever happens: a port that flaps must not keep the tools busy, of which some take a second of processor time.
    pub least: Duration,
}

impl Default for Pauses {
    fn default() -> Self {
        Self {
            usual: Duration::from_secs(30),
            while_changing: Duration::from_secs(5),
            least: Duration::from_secs(2),
        }
    }
}

/// Settings of the machine change when a person changes them.
const SETTINGS_PAUSE: Duration = Duration::from_secs(300);

/// `system_profiler` takes a second or two, and more on a machine that is busy.
const PROFILER_LIMIT: Duration = Duration::from_secs(20);

/// The others answer within some milliseconds. One that needs longer than this hangs.
const TOOL_LIMIT: Duration = Duration::from_secs(5);

/// A root daemon that EXO installs, and does not take along when it goes (FIELD-NOTES 5).
const EXO_DAEMON: &str = "io.exo.networksetup";

/// What the tools said last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// Ports, peers, RDMA.
    pub thunderbolt: Thunderbolt,
    /// Settings that can end a night.
    pub preflight: Preflight,
    /// Tools that gave no answer.
    pub problems: Vec<ToolProblem>,
}

#[derive(Debug, Default)]
struct Shared {
    newest: Mutex<Option<Survey>>,
    published: Condvar,
    version: AtomicU64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<Survey>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread, from outside. It ends after the survey under way when this is dropped.
#[derive(Debug)]
pub struct Surveyor {
    shared: Arc<Shared>,
    wake: SyncSender<()>,
}

impl Surveyor {
    /// Starts the thread, which begins with a survey.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(tools: Tools, pauses: Pauses) -> io::Result<Self> {
        // One call is as good as many: a survey that begins later sees everything before.
        let (wake, woken) = sync_channel(1);
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        thread::Builder::new()
            .name("survey".to_owned())
            .spawn(move || run(tools, pauses, &of_thread, &woken))?;
        Ok(Self { shared, wake })
    }

    /// Something has changed.
    pub fn wake(&self) {
        // Full: it has been told, and has not begun yet.
        let _ = self.wake.try_send(());
    }

    /// Grows with each survey that differs from the one before.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.shared.version.load(Ordering::Acquire)
    }

    /// The newest survey; `None` before the first.
    #[must_use]
    pub fn newest(&self) -> Option<Survey> {
        self.shared.lock().clone()
    }

    /// Waits for the first survey, so long at most.
    pub fn wait(&self, limit: Duration) {
        let newest = self.shared.lock();
        drop(self.shared.published.wait_timeout_while(newest, limit, |newest| newest.is_none()));
    }
}

fn run(mut tools: Tools, pauses: Pauses, shared: &Shared, woken: &Receiver<()>) {
    let mut settings: Option<(Instant, Preflight, Vec<ToolProblem>)> = None;
    loop {
        let (thunderbolt, mut problems) = ask_links(&mut tools);
        if settings.as_ref().is_none_or(|(at, ..)| at.elapsed() >= SETTINGS_PAUSE) {
            let (preflight, problems) = ask_settings(&mut tools);
            settings = Some((Instant::now(), preflight, problems));
        }
        let (preflight, of_settings) = settings
            .as_ref()
            .map(|(_, preflight, problems)| (preflight.clone(), problems.clone()))
            .unwrap_or_default();
        problems.extend(of_settings);
        let survey = Survey { thunderbolt, preflight, problems };
        let mut newest = shared.lock();
        let has_changed = newest.as_ref() != Some(&survey);
        if has_changed {
            *newest = Some(survey);
            shared.version.fetch_add(1, Ordering::Release);
            shared.published.notify_all();
        }
        drop(newest);
        let pause = if has_changed { pauses.while_changing } else { pauses.usual };
        thread::sleep(pauses.least);
        match woken.recv_timeout(pause.saturating_sub(pauses.least)) {
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// What a tool said, and the problem when it said nothing.
struct Asker<'a> {
    tools: &'a mut Tools,
    problems: Vec<ToolProblem>,
}

impl Asker<'_> {
    fn ask<T>(
        &mut self,
        (tool, arguments): (&str, &[&str]),
        limit: Duration,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        match self.tools.ask(tool, arguments, limit) {
            Ok(text) => {
                let parsed = parse(&text);
                if parsed.is_none() {
                    self.note(tool, false, false, format!("what {tool} says cannot be read"));
                }
                parsed
            }
            Err(error) => {
                let is_missing = matches!(error, Error::Missing { .. });
                self.note(tool, error.is_hang(), is_missing, error.to_string());
                None
            }
        }
    }

    /// Whether launchd knows a service of the system. It fails for one that it does not know.
    fn is_service(&mut self, label: &str) -> Option<bool> {
        match self.tools.ask("launchctl", &["print", &format!("system/{label}")], TOOL_LIMIT) {
            Ok(text) => Some(launchctl::service(&text).is_some()),
            Err(Error::Failed { .. }) => Some(false),
            Err(error) => {
                let is_missing = matches!(error, Error::Missing { .. });
                self.note("launchctl", error.is_hang(), is_missing, error.to_string());
                None
            }
        }
    }

    fn note(&mut self, tool: &str, hangs: bool, is_missing: bool, problem: String) {
        self.problems.push(ToolProblem { tool: tool.to_owned(), hangs, is_missing, problem });
    }
}

fn ask_links(tools: &mut Tools) -> (Thunderbolt, Vec<ToolProblem>) {
    let mut asker = Asker { tools, problems: Vec::new() };
    let profiler = ("system_profiler", &["SPThunderboltDataType", "-json"][..]);
    let buses = asker.ask(profiler, PROFILER_LIMIT, thunderbolt::buses);
    let listing = ("networksetup", &["-listallhardwareports"][..]);
    let hardware_ports = asker.ask(listing, TOOL_LIMIT, |text| {
        let ports = ports::hardware_ports(text);
        // Every Mac has one.
        (!ports.is_empty()).then_some(ports)
    });
    let interfaces = asker.ask(("ifconfig", &["-a"]), TOOL_LIMIT, |text| {
        let interfaces = ifconfig::interfaces(text);
        (!interfaces.is_empty()).then_some(interfaces)
    });
    let rdma_enabled = asker.ask(("rdma_ctl", &["status"]), TOOL_LIMIT, rdma::is_enabled);
    let devices = asker.ask(("ibv_devices", &[]), TOOL_LIMIT, rdma::devices);
    // Without devices it ends with an error, and there is nothing to ask it.
    let has_devices = devices.as_ref().is_some_and(|devices| !devices.is_empty());
    let device_infos = has_devices
        .then(|| asker.ask(("ibv_devinfo", &["-v"]), TOOL_LIMIT, |text| Some(rdma::device_infos(text))))
        .flatten();
    let protection_domains_held = has_devices
        .then(|| {
            let count = ("ioclasscount", &[rdma::PROTECTION_DOMAIN_CLASS][..]);
            asker.ask(count, TOOL_LIMIT, rdma::protection_domains_held)
        })
        .flatten();
    let said = Said {
        buses,
        hardware_ports,
        interfaces,
        rdma_enabled,
        devices,
        device_infos,
        protection_domains_held,
    };
    (survey::join(&said), asker.problems)
}

fn ask_settings(tools: &mut Tools) -> (Preflight, Vec<ToolProblem>) {
    let mut asker = Asker { tools, problems: Vec::new() };
    let power = asker.ask(("pmset", &["-g"]), TOOL_LIMIT, |text| Some(power::settings(text)));
    let stops = asker.ask(("pmset", &["-g", "sched"]), TOOL_LIMIT, |text| Some(power::stops(text)));
    let file_vault = asker.ask(("fdesetup", &["status"]), TOOL_LIMIT, settings::file_vault);
    let defaults = ("defaults", &["read", "/Library/Preferences/com.apple.SoftwareUpdate"][..]);
    let updates = asker.ask(defaults, TOOL_LIMIT, |text| Some(settings::updates(text)));
    let exo_daemon = asker.is_service(EXO_DAEMON);
    let (power, updates) = (power.unwrap_or_default(), updates.unwrap_or_default());
    let preflight = Preflight {
        sleep_min: power.sleep_min,
        sleep_disabled: power.sleep_disabled,
        auto_restart: power.auto_restart,
        low_power_mode: power.low_power_mode,
        scheduled_stops: stops.unwrap_or_default(),
        file_vault: file_vault.map(|state| match state {
            settings::FileVault::On => FileVault::On,
            settings::FileVault::Off => FileVault::Off,
            settings::FileVault::Changing => FileVault::Changing,
        }),
        installs_macos: updates.install_macos,
        installs_critical: updates.install_critical,
        exo_daemon,
    };
    (preflight, asker.problems)
}
