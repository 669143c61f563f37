//! Memory taken away from a process: a control group of version 1.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// Where the controller for memory is mounted.
const ROOT: &str = "/sys/fs/cgroup/memory";

/// What the group may have. Less than what is asked for in it.
const LIMIT_BYTES: &str = "8388608";

/// Asks for 40 MB at once, and has far less than a worker until then.
const HOG: &str = "head -c 41943040 /dev/zero | tail -c 41943040 >/dev/null";

/// Why there is none on this machine.
#[must_use]
pub fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("only root can make the control group this needs".to_owned());
    }
    let file = Path::new(ROOT).join("memory.limit_in_bytes");
    (!file.exists()).then(|| "this system has no memory control groups of version 1".to_owned())
}

/// A group with too little memory, in which a process finds itself beside another one that asks for more. The kernel ends the
/// larger of the two, as it does on a machine that has run out.
#[derive(Debug)]
pub struct Squeeze {
    group: PathBuf,
    hog: Child,
}

impl Squeeze {
    /// Puts the process into such a group.
    ///
    /// # Panics
    /// When that cannot be done; [`missing`] tells beforehand.
    #[must_use]
    pub fn on(pid: u32) -> Self {
        let group = Path::new(ROOT).join(format!("nightshift-test-{}-{pid}", std::process::id()));
        fs::create_dir_all(&group).expect("a control group can be made");
        fs::write(group.join("memory.limit_in_bytes"), LIMIT_BYTES).expect("the group takes a limit");
        fs::write(group.join("cgroup.procs"), pid.to_string())
            .expect("the process can be put into the group");
        let script = format!("echo $$ > '{}' && {HOG}", group.join("cgroup.procs").display());
        let mut command = Command::new("sh");
        let hog = command.args(["-c", &script]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self { group, hog: hog.expect("sh can be started") }
    }
}

impl Drop for Squeeze {
    fn drop(&mut self) {
        let _ = self.hog.kill();
        let _ = self.hog.wait();
        // Not empty yet where something lives on in it: then it stays until the machine is started anew.
        let _ = fs::remove_dir(&self.group);
    }
}
