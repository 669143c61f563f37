//! Binds the services to the address.

use std::{io, net::SocketAddr, time::Duration};

use jiff::tz::TimeZone;
use nightshift_proto::{
    DESCRIPTORS, MAX_MESSAGE_BYTES,
    v1::{agent_service_server::AgentServiceServer, control_service_server::ControlServiceServer},
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use super::{control::Control, session::Agents};
use crate::{driver, intake};

/// Detects a peer that is gone without a word, within heartbeat time.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(4);

/// What the services need.
#[derive(Debug)]
pub struct Options {
    /// The bound socket.
    pub listener: TcpListener,
    /// The driver.
    pub driver: driver::Handle,
    /// Where submissions are staged.
    pub state_dir: std::path::PathBuf,
    /// What a submission may be; follows the configuration.
    pub limits: tokio::sync::watch::Receiver<intake::Limits>,
    /// Whose clock is meant where a person gives a time of day.
    pub zone: TimeZone,
}

/// Why serving ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The descriptors built into this binary are broken.
    #[error("the reflection service cannot be built")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The transport failed.
    #[error("serving failed")]
    Transport(#[from] tonic::transport::Error),
    /// The address cannot be used.
    #[error("cannot listen on {address}: is another clusterd running? (see --listen)")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// Serves until `cancel` is cancelled; open streams are ended then, and unary calls answered.
///
/// # Errors
/// When the transport fails.
pub async fn serve(options: Options, cancel: CancellationToken) -> Result<(), Error> {
    let Options { listener, driver, state_dir, limits, zone } = options;
    let agents = Agents { driver: driver.clone(), cancel: cancel.clone() };
    let control = Control { driver, state_dir, limits, zone, cancel: cancel.clone() };
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<AgentServiceServer<Agents>>().await;
    health.set_serving::<ControlServiceServer<Control>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .tcp_nodelay(true)
        .add_service(health_service)
        .add_service(reflection)
        .add_service(AgentServiceServer::new(agents).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(ControlServiceServer::new(control).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), cancel.cancelled_owned())
        .await?;
    Ok(())
}
