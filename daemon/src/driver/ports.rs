//! Tells agents which Thunderbolt ports are the cluster's, by the domain UUIDs of their buses, so that no other cable's are touched.

use std::collections::{BTreeSet, VecDeque};

use nightshift_proto::v1::{self, controller_message::Body};

use super::{Display, Driver};
use crate::rpc::cables;

/// A hundred nodes of five ports; agents keep no more.
const MOST_PORTS: usize = 512;

/// Of all nodes that were ever seen: one that is off has its cables all the same.
fn known<'a>(displays: impl IntoIterator<Item = &'a Display>) -> BTreeSet<String> {
    let ports =
        displays.into_iter().flat_map(|display| cables::thunderbolt(display.observation.as_ref()).ports);
    ports.filter_map(|port| port.domain_uuid).take(MOST_PORTS).collect()
}

impl Driver {
    /// Tells whoever has not heard of all of them.
    pub(super) async fn tell_ports(&mut self) {
        let known = known(self.displays.values());
        let sessions: Vec<_> =
            self.connections.iter().map(|(node, connection)| (node.clone(), connection.session)).collect();
        let mut queue = VecDeque::new();
        for (node, session) in sessions {
            let Some(display) = self.displays.get_mut(&node).filter(|of| !known.is_subset(&of.told_ports))
            else {
                continue;
            };
            display.told_ports.clone_from(&known);
            let ports = v1::ClusterPorts { domain_uuids: known.iter().cloned().collect() };
            self.send_body(&node, session, Body::ClusterPorts(ports), &mut queue);
        }
        for event in queue {
            self.apply(event, &[]).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_all_nodes_are_known_within_bounds() {
        let of = |uuids: Vec<String>| Display {
            observation: Some(v1::Observation {
                thunderbolt: Some(v1::Thunderbolt {
                    ports: uuids
                        .into_iter()
                        .map(|domain_uuid| v1::ThunderboltPort {
                            domain_uuid,
                            ..v1::ThunderboltPort::default()
                        })
                        .collect(),
                    rdma: None,
                }),
                ..v1::Observation::default()
            }),
            ..Display::default()
        };
        let two =
            [of(vec!["A1".into(), "A2".into()]), Display::default(), of(vec!["B1".into(), String::new()])];
        assert_eq!(known(&two).into_iter().collect::<Vec<_>>(), ["A1", "A2", "B1"]);
        let many: Vec<Display> =
            (0..200).map(|node| of((0..10).map(|port| format!("{node}-{port}")).collect())).collect();
        assert_eq!(known(&many).len(), MOST_PORTS);
    }
}
