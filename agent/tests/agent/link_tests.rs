//! Links are tried: one at a time, each for the controller that asked, and nothing is left of it.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test that uses it")]

use std::fs;

use crate::support::{Controller, Session, Site, is_alive, link_test, until};
use nightshift_proto::v1::{LinkTestOutcome, controller_message::Body};
use nix::sys::signal::Signal;

async fn try_link(session: &Session, request_id: u64, goes_on: bool) {
    session.send(Body::TestLink(link_test(request_id, goes_on))).await;
}

/// Nothing of a test lies in the directories of this agent.
fn has_no_traces(site: &Site) -> bool {
    ["gangs", "workers"].iter().all(|dir| fs::read_dir(site.state_dir().join(dir)).unwrap().count() == 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_is_superseded_by_the_next_and_ends_with_its_session() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let mut agent = site.agent(controller.address, &["stubborn"]);
    let mut session = controller.session().await;
    session.begin().await;
    try_link(&session, 1, true).await;
    let first = site.link_test_pid(1).await;
    try_link(&session, 2, false).await;
    let tested = session.link_tested().await;
    assert_eq!((tested.request_id, tested.outcome()), (2, LinkTestOutcome::Passed), "{tested:?}");
    assert_eq!((tested.round_trip_us, tested.bytes_per_s), (35, 8_000));
    assert!(!is_alive(first));
    assert!(has_no_traces(&site));

    try_link(&session, 3, true).await;
    let third = site.link_test_pid(3).await;
    drop(session);
    let mut session = controller.session().await;
    session.begin().await;
    assert!(!is_alive(third), "it was ended before the next session began");
    assert!(has_no_traces(&site));
    // The next controller counts from 1, and hears of its own tests only.
    try_link(&session, 1, false).await;
    let tested = session.link_tested().await;
    assert_eq!((tested.request_id, tested.outcome()), (1, LinkTestOutcome::Passed), "{tested:?}");
    assert!(has_no_traces(&site));

    // Nor does one outlive the agent.
    try_link(&session, 2, true).await;
    let last = site.link_test_pid(2).await;
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.exit().await.code(), Some(0));
    until("its process is gone", || (!is_alive(last)).then_some(())).await;
    assert!(has_no_traces(&site));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agents_test_is_gone_after_the_next_start_and_nobody_hears_of_it() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let agent = site.agent(controller.address, &["stubborn"]);
    let mut session = controller.session().await;
    session.begin().await;
    try_link(&session, 1, true).await;
    let left = site.link_test_pid(1).await;
    agent.sigkill();
    drop(session);
    assert!(is_alive(left), "it ignores the end of its input");

    let _agent = site.agent(controller.address, &[]);
    let mut session = controller.session().await;
    // Refuses every other message, as of a worker that has ended.
    session.begin().await;
    assert!(!is_alive(left));
    assert!(has_no_traces(&site));
    try_link(&session, 1, false).await;
    assert_eq!(session.link_tested().await.outcome(), LinkTestOutcome::Passed);
}
