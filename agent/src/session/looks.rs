//! Looks whether another machine is there, off the session's way: the controller has no word from it.
//!
//! A machine that runs answers a connection to a port on which nobody listens with a refusal, whatever became of its agent;
//! one that is gone, or that nothing leads to, does not answer. A firewall that drops what it does not know (macOS: stealth
//! mode) makes a machine look like one that is gone, and then silence is judged as if nobody had looked.
//!
//! Promises: at most [`MAX_AT_ONCE`] looks are under way, each at most [`MAX_ADDRESSES`] addresses and [`LIMIT`] long; nothing
//! is sent over a connection that is taken; only private, link-local and loopback addresses are ever tried; a look that is not
//! made is not answered, because it would say nothing. Heartbeats and commands wait for none of them.

use std::{
    future::Future,
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use nightshift_proto::v1::{self, agent_message::Body};
use tokio::{net::TcpStream, task::JoinSet, time::timeout};

use super::outgoing::Sender;

/// The port of the discard service, which no machine offers any more and no program takes.
const DISCARD: u16 = 9;

/// Looks of a session under way. A controller asks about each silent node once in two seconds; a cluster that has lost more
/// than eight at once has lost its network.
pub const MAX_AT_ONCE: usize = 8;

/// Addresses tried in one look. A machine with more would be seen at one of these.
pub const MAX_ADDRESSES: usize = 8;

/// For all addresses, which are tried together. A machine on the same network answers within milliseconds, a busy one within
/// some hundred; the controller waits for two looks before it does anything.
pub const LIMIT: Duration = Duration::from_secs(1);

/// The looks of one session; they end with it.
#[derive(Debug)]
pub struct Looks {
    sender: Sender,
    port: u16,
    tasks: JoinSet<()>,
}

impl Looks {
    /// For a session.
    #[must_use]
    pub fn new(sender: Sender) -> Self {
        Self { sender, port: DISCARD, tasks: JoinSet::new() }
    }

    /// Begins to look. The answer goes out when there is one.
    pub fn take(&mut self, request: v1::LookAtNode) {
        while self.tasks.try_join_next().is_some() {}
        let v1::LookAtNode { request_id, node_id, addresses } = request;
        let places = places(&addresses, self.port);
        if places.is_empty() || self.tasks.len() >= MAX_AT_ONCE {
            tracing::debug!(node_id, places = places.len(), under_way = self.tasks.len(), "not looked at");
            return;
        }
        let sender = self.sender.clone();
        self.tasks.spawn(async move {
            let Sight { seen, how } = look(&places, TcpStream::connect).await;
            // A controller that is gone asks again.
            let _ = sender.send(Body::NodeSeen(v1::NodeSeen { request_id, node_id, seen, how })).await;
        });
    }
}

/// Where to look, of what the controller names.
fn places(addresses: &[String], port: u16) -> Vec<SocketAddr> {
    let addresses = addresses.iter().filter_map(|text| text.parse().ok()).filter(|ip| is_near(*ip));
    addresses.take(MAX_ADDRESSES).map(|ip| SocketAddr::new(ip, port)).collect()
}

/// Whether an address belongs to no network but one's own.
fn is_near(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => ip.is_private() || ip.is_link_local() || ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_loopback(),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Sight {
    seen: bool,
    how: String,
}

/// Tries all places at once; the first that answers is enough.
async fn look<T, F>(places: &[SocketAddr], connect: impl Fn(SocketAddr) -> F) -> Sight
where
    F: Future<Output = io::Result<T>>,
{
    let tries = places.iter().map(|place| {
        let (ip, answer) = (place.ip(), timeout(LIMIT, connect(*place)));
        async move { (ip, answer.await) }
    });
    let mut tries: FuturesUnordered<_> = tries.collect();
    let mut failed = Vec::new();
    while let Some((ip, answer)) = tries.next().await {
        match answer {
            Ok(Ok(_)) => return Sight { seen: true, how: format!("{ip} takes connections") },
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
                return Sight { seen: true, how: format!("{ip} answers: it refuses the connection") };
            }
            Ok(Err(error)) => failed.push(format!("{ip} cannot be reached: {error}")),
            Err(_) => failed.push(format!("{ip} gives no answer within {} s", LIMIT.as_secs())),
        }
    }
    failed.sort_unstable();
    Sight { seen: false, how: failed.join("; ") }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        net::TcpListener,
    };

    use tokio::{net::TcpSocket, time::Instant};

    use super::*;
    use crate::session::outgoing;

    fn texts(addresses: &[&str]) -> Vec<String> {
        addresses.iter().map(ToString::to_string).collect()
    }

    fn request(request_id: u64, addresses: &[&str]) -> v1::LookAtNode {
        v1::LookAtNode { request_id, node_id: "n2".to_owned(), addresses: texts(addresses) }
    }

    async fn next(stream: &mut outgoing::Outgoing) -> v1::NodeSeen {
        match stream.next().await.unwrap().body {
            Some(Body::NodeSeen(seen)) => seen,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_machine_that_takes_or_refuses_a_connection_is_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, mut stream) = outgoing::channel();
        let mut looks = Looks { port, ..Looks::new(sender) };
        looks.take(request(1, &["127.0.0.1"]));
        let seen = |request_id, how: &str| v1::NodeSeen {
            request_id,
            node_id: "n2".to_owned(),
            seen: true,
            how: how.to_owned(),
        };
        assert_eq!(next(&mut stream).await, seen(1, "127.0.0.1 takes connections"));
        // Taken, so that no other program takes it, and nobody listens.
        let taken = TcpSocket::new_v4().unwrap();
        taken.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        looks.port = taken.local_addr().unwrap().port();
        looks.take(request(2, &["127.0.0.1"]));
        assert_eq!(next(&mut stream).await, seen(2, "127.0.0.1 answers: it refuses the connection"));
    }

    #[tokio::test]
    async fn only_near_addresses_are_tried_and_only_a_few() {
        let near = ["10.0.0.2", "172.16.0.2", "192.168.1.2", "169.254.3.4", "127.0.0.2", "fd00::2", "::1"];
        let tried: Vec<String> =
            places(&texts(&near), 9).iter().map(|place| place.ip().to_string()).collect();
        assert_eq!(tried, near);
        let far = [
            "192.0.2.1",
            "203.0.113.7",
            "8.8.8.8",
            "0.0.0.0",
            "255.255.255.255",
            "2001:db8::1",
            "::ffff:8.8.8.8",
            "n2",
            "10.0.0.2/24",
            "",
        ];
        assert_eq!(places(&texts(&far), 9), []);
        let many: Vec<String> = (0..100).map(|last| format!("10.0.0.{last}")).collect();
        assert_eq!(places(&many, 9).len(), MAX_ADDRESSES);

        let (sender, mut stream) = outgoing::channel();
        let mut looks = Looks::new(sender);
        looks.take(request(1, &["192.0.2.1"]));
        assert_eq!(looks.tasks.len(), 0);
        looks.take(request(2, &["192.0.2.1", "127.0.0.1"]));
        assert_eq!(next(&mut stream).await.request_id, 2, "the other one is not answered");
    }

    #[tokio::test]
    async fn too_many_at_once_are_not_looked_at() {
        let (sender, mut stream) = outgoing::channel();
        let mut looks = Looks::new(sender);
        // None of them is begun while these are taken.
        for request_id in 0..=MAX_AT_ONCE as u64 {
            looks.take(request(request_id, &["127.0.0.1"]));
        }
        assert_eq!(looks.tasks.len(), MAX_AT_ONCE);
        let mut answered = Vec::new();
        while answered.len() < MAX_AT_ONCE {
            answered.push(next(&mut stream).await.request_id);
        }
        answered.sort_unstable();
        assert_eq!(answered, (0..MAX_AT_ONCE as u64).collect::<Vec<_>>());
        while looks.tasks.join_next().await.is_some() {}
        looks.take(request(99, &["127.0.0.1"]));
        assert_eq!(next(&mut stream).await.request_id, 99);
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_does_not_answer_is_not_seen_and_is_waited_for_a_second_in_all() {
        let places = places(&texts(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]), 9);
        let began = Instant::now();
        let sight = look(&places, |_| pending::<io::Result<()>>()).await;
        let how = "10.0.0.1 gives no answer within 1 s; 10.0.0.2 gives no answer within 1 s; \
                   10.0.0.3 gives no answer within 1 s";
        assert_eq!(sight, Sight { seen: false, how: how.to_owned() });
        assert_eq!(began.elapsed(), LIMIT);

        let sight = look(&places[..1], |_| ready(Err::<(), _>(ErrorKind::HostUnreachable.into()))).await;
        assert_eq!(
            sight,
            Sight { seen: false, how: "10.0.0.1 cannot be reached: host unreachable".to_owned() }
        );

        // One address that answers is enough, and is waited for no longer.
        let began = Instant::now();
        let sight = look(&places, |place| async move {
            if place.ip().to_string() == "10.0.0.2" {
                return Err(io::Error::from(ErrorKind::ConnectionRefused));
            }
            pending::<io::Result<()>>().await
        })
        .await;
        assert!(sight.seen, "{sight:?}");
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
