//! `clusterctl`: see [`nightshift_ctl`].

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    nightshift_ctl::main()
}
