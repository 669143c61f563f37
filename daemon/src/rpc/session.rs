//! Agents' sessions: one stream each, its first message a hello.

use std::{pin::Pin, time::Duration};

use nightshift_proto::{
    SESSION_PROTOCOL_VERSION,
    v1::{self, agent_message::Body, agent_service_server::AgentService},
};
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::convert;
use crate::driver::{self, Refusal};

/// How long a new connection may take to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages to an agent that it has not taken yet. An agent that lets more pile up loses its connection.
const OUTBOX_MESSAGES: usize = 1_024;

pub(super) struct Agents {
    pub(super) driver: driver::Handle,
    pub(super) cancel: CancellationToken,
}

#[tonic::async_trait]
impl AgentService for Agents {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::ControllerMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut inbound = request.into_inner();
        let first = tokio::time::timeout(HELLO_TIMEOUT, inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello within 10 s"))??;
        let Some(v1::AgentMessage { body: Some(Body::Hello(hello)) }) = first else {
            return Err(Status::invalid_argument("the first message of a session must be a hello"));
        };
        if hello.protocol_version != SESSION_PROTOCOL_VERSION {
            return Err(Status::failed_precondition(format!(
                "the agent (version {}) speaks session protocol {}, the controller {SESSION_PROTOCOL_VERSION}: \
                 install the same version of Nightshift on both",
                hello.agent_version, hello.protocol_version
            )));
        }
        let node = convert::node_id(&hello.node_id).map_err(Status::invalid_argument)?;
        let (outbox, messages) = mpsc::channel(OUTBOX_MESSAGES);
        let closed = self.cancel.child_token();
        let ticket =
            self.driver.open_session(node, hello, outbox, closed.clone()).await.map_err(|refusal| {
                match refusal {
                    Refusal::NameInUse(_) => Status::already_exists(refusal.to_string()),
                    other => Status::unavailable(other.to_string()),
                }
            })?;
        tokio::spawn(async move {
            loop {
                let message = tokio::select! {
                    () = closed.cancelled() => break,
                    message = inbound.message() => message,
                };
                match message {
                    Ok(Some(v1::AgentMessage { body: Some(body) })) => {
                        if ticket.say(body).await.is_err() {
                            break;
                        }
                    }
                    // A message of a newer protocol that this build does not know.
                    Ok(Some(v1::AgentMessage { body: None })) => {}
                    Ok(None) => break,
                    Err(status) => {
                        tracing::debug!(%status, "a session ended");
                        break;
                    }
                }
            }
            ticket.close().await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}
