//! Another node's machine is looked at for the controller.

use crate::support::{Controller, Site};
use nightshift_proto::v1::{self, agent_message::Body, controller_message};

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_looked_at_over_the_session_and_a_public_one_is_not() {
    let (site, mut controller) = (Site::new(), Controller::start().await);
    let _agent = site.agent(controller.address, &[]);
    let mut session = controller.session().await;
    session.begin().await;
    for (request_id, address) in [(1, "192.0.2.1"), (2, "127.0.0.1")] {
        let addresses = vec![address.to_owned()];
        let request = v1::LookAtNode { request_id, node_id: "n2".to_owned(), addresses };
        session.send(controller_message::Body::LookAtNode(request)).await;
    }
    let seen = session
        .find(|body| match body {
            Body::NodeSeen(seen) => Some(seen.clone()),
            _ => None,
        })
        .await;
    assert_eq!((seen.request_id, seen.node_id.as_str()), (2, "n2"));
    assert!(seen.seen, "this machine is up: {seen:?}");
    assert!(seen.how.starts_with("127.0.0.1 "), "{seen:?}");
}
