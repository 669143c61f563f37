//! A node's way to the controller, as `ssh -L` gives it on real machines: what connects to the node's loopback comes out
//! at the controller's.
//!
//! Promises: it is no part of the network between the nodes, so that one can be lost without the other; when it is
//! dropped, every connection through it breaks at once and new ones are refused.

use std::net::TcpListener;

use tokio::{
    io::copy_bidirectional,
    net,
    task::{JoinHandle, JoinSet},
};

/// A running relay.
#[derive(Debug)]
pub struct Relay {
    task: JoinHandle<()>,
}

impl Relay {
    /// Carries whatever connects to `listener` to the controller ("ip:port").
    ///
    /// # Panics
    /// When the system does not let the socket be waited for.
    #[must_use]
    pub fn start(listener: TcpListener, controller: &str) -> Self {
        listener.set_nonblocking(true).expect("a socket can be made not to block");
        let listener = net::TcpListener::from_std(listener).expect("a socket can be waited for");
        let controller = controller.to_owned();
        Self { task: tokio::spawn(serve(listener, controller)) }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The connections are as many as an agent has: one, and those of its last tries.
async fn serve(listener: net::TcpListener, controller: String) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((inside, _)) = listener.accept() => {
                let controller = controller.clone();
                connections.spawn(async move {
                    // Nobody there, or a connection that breaks: the other end sees its own one close, as with SSH.
                    let _ = carry(inside, &controller).await;
                });
            }
            Some(_) = connections.join_next() => {}
            else => return,
        }
    }
}

async fn carry(mut inside: net::TcpStream, controller: &str) -> std::io::Result<()> {
    let mut outside = net::TcpStream::connect(controller).await?;
    // A heartbeat is a small packet and may not wait for the next.
    inside.set_nodelay(true)?;
    outside.set_nodelay(true)?;
    copy_bidirectional(&mut inside, &mut outside).await.map(drop)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn bytes_go_both_ways_until_it_is_dropped() {
        let controller = net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let inside = listener.local_addr().unwrap();
        let relay = Relay::start(listener, &controller.local_addr().unwrap().to_string());
        let mut agent = net::TcpStream::connect(inside).await.unwrap();
        agent.write_all(b"hello").await.unwrap();
        let (mut session, _) = controller.accept().await.unwrap();
        let mut said = [0; 5];
        session.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"hello");
        session.write_all(b"world").await.unwrap();
        agent.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"world");
        drop(relay);
        assert!(matches!(agent.read(&mut said).await, Ok(0) | Err(_)), "it breaks");
        assert!(matches!(session.read(&mut said).await, Ok(0) | Err(_)), "at both ends");
        assert!(net::TcpStream::connect(inside).await.is_err(), "and is not made again");
    }
}
