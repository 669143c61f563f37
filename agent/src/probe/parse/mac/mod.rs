//! Parsers of macOS tools, in the shapes that FIELD-NOTES 3 to 6 describe. They run, and are tested, on any system.
//!
//! | module | tool |
//! | --- | --- |
//! | [`thunderbolt`] | `system_profiler SPThunderboltDataType -json` |
//! | [`ports`] | `networksetup -listallhardwareports` |
//! | [`ifconfig`] | `ifconfig -a` |
//! | [`route`] | `route -n get` |
//! | [`rdma`] | `rdma_ctl status`, `ibv_devices`, `ibv_devinfo`, `ioclasscount` |
//! | [`gpu`] | `ioreg -c IOAccelerator` |
//! | [`sysctl`] | `sysctl` |
//! | [`power`] | `pmset -g`, `pmset -g sched` |
//! | [`settings`] | `fdesetup status`, `defaults read` |
//! | [`launchctl`] | `launchctl print` |
//! | [`unified_log`] | `log stream --style ndjson` |
//! | [`reports`] | files in `DiagnosticReports` |

pub mod gpu;
pub mod ifconfig;
pub mod launchctl;
pub mod ports;
pub mod power;
pub mod rdma;
pub mod reports;
pub mod route;
pub mod settings;
pub mod sysctl;
pub mod thunderbolt;
pub mod unified_log;
