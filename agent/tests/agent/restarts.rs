//! A controller asks for a restart of the machine, which is a directory of scripts here.

use std::{fs, os::unix::fs::PermissionsExt as _};

use crate::support::{Controller, Session, Site, fake_worker, is_alive, link_test};
use nightshift_proto::v1::{self, controller_message::Body};
use nix::sys::signal::Signal;

async fn restart(session: &mut Session, command_id: u64) -> v1::CommandResult {
    let restart = v1::RestartMachine {
        command_id,
        boot_id: "b1".to_owned(),
        cause: v1::RestartCause::StrandedMemory.into(),
        reason: "60.0 GB did not come back".to_owned(),
    };
    session.send(Body::RestartMachine(restart)).await;
    session.command_result(command_id).await
}

fn allowed(hello: &v1::Hello) -> bool {
    hello
        .observation
        .as_ref()
        .and_then(|seen| seen.restarts.as_ref())
        .is_some_and(|restarts| restarts.allowed)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_restarted_once_and_takes_no_work_from_then_on() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let mac = site.dir.path().join("mac");
    fs::create_dir(&mac).unwrap();
    for (tool, script) in
        [("fdesetup", "echo 'FileVault is Off.'"), ("shutdown", "echo \"$*\" >> \"${0%/*}/restarts\"")]
    {
        fs::write(mac.join(tool), format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(mac.join(tool), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let configuration = format!("boot_id = \"b1\"\nscripted_mac = {mac:?}\n[reboot]\nallow = true\n");
    let agent = site.agent_with(controller.address, &fake_worker(&[]), &configuration);
    let mut session = controller.session().await;
    let (hello, _) = session.begin().await;
    assert!(allowed(&hello));

    session.ready_worker(1).await;
    let refused = restart(&mut session, 101).await;
    assert_eq!(refused.problem, "a worker runs here; it can be restarted when that has ended");
    session.stop(1, v1::StopMode::Kill, 5_000).await;
    session.exited(1).await;
    // The controller would not ask while a link is tried: this one it has given up.
    session.send(Body::TestLink(link_test(1, true))).await;
    let stray = site.link_test_pid(1).await;
    let accepted = restart(&mut session, 102).await;
    assert!(accepted.accepted, "{accepted:?}");
    assert!(!is_alive(stray));
    session.send(Body::TestLink(link_test(2, false))).await;
    let tested = session.link_tested().await;
    assert_eq!((tested.request_id, tested.outcome()), (2, v1::LinkTestOutcome::NotMade));
    assert_eq!(tested.problem, "this machine is restarting");
    assert_eq!(session.start_worker(2).await.problem, "this machine is restarting");

    // Neither does one that is started anew before the machine is down.
    agent.sigkill();
    let _agent = site.agent_with(controller.address, &fake_worker(&[]), &configuration);
    let mut session = controller.session().await;
    session.begin().await;
    assert_eq!(session.start_worker(3).await.problem, "this machine is restarting");
    let again = restart(&mut session, 103).await;
    assert!(again.problem.starts_with("it was told to restart in this boot already"), "{again:?}");
    assert_eq!(fs::read_to_string(mac.join("restarts")).unwrap(), "-r now\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_configuration_says_nothing_is_not_restarted() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let mut agent = site.agent_with(controller.address, &fake_worker(&[]), "boot_id = \"b1\"\n");
    let mut session = controller.session().await;
    let (hello, _) = session.begin().await;
    assert!(!allowed(&hello));
    let refused = restart(&mut session, 101).await;
    assert!(!refused.accepted);
    assert!(
        refused.problem.starts_with("restarts are not allowed on this machine; allow them"),
        "{refused:?}"
    );
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.exit().await.code(), Some(0));
}
